//! The site's outlets: settings from the configuration, secrets from their files or, once sealed, from the store.

use super::secret;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::outlet::Outlets;
use crate::store::Db;
use crate::store::seal::Seal;

pub async fn open(config: &Config, db: &Db, seal: &Seal) -> Result<Outlets> {
    let mut outlets = Outlets::default();
    for settings in &config.power.outlets {
        let secret = secret::known(&settings.secret_name(), settings.secret_file.as_deref(), db, seal).await?;
        let secret = secret.ok_or_else(|| {
            Error::config("outlet.secret", format!("the secret of outlet {} is not known", settings.name))
                .hint("name a file with it as secret_file; it is read and sealed, and may be deleted then")
        })?;
        outlets.add(&settings.machine, settings.open(&secret)?);
    }
    Ok(outlets)
}
