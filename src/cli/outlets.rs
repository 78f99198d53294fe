//! The site's outlets: settings from the configuration, secrets from their files or, once sealed, from the store.

use crate::config::Config;
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::Secret;
use crate::outlet::{Outlets, Settings};
use crate::store::Db;
use crate::store::seal::Seal;

pub async fn open(config: &Config, db: &Db, seal: &Seal) -> Result<Outlets> {
    let mut outlets = Outlets::default();
    for settings in &config.power.outlets {
        let secret = secret(settings, db, seal).await?;
        outlets.add(&settings.machine, settings.open(&secret)?);
    }
    Ok(outlets)
}

/// A file that is there counts, and is sealed where it says something new.
async fn secret(settings: &Settings, db: &Db, seal: &Seal) -> Result<Secret> {
    let name = settings.secret_name();
    let sealed = db.secret(seal, &name).await?;
    let file = match &settings.secret_file {
        None => None,
        Some(path) => match std::fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => {
                return Err(e).or_fail(Kind::Config, "outlet.secret", || format!("cannot read {}", path.display()));
            }
        },
    };
    match (file, sealed) {
        (Some(text), sealed) => {
            if sealed.as_deref() != Some(text.as_str()) {
                db.put_secret(seal, &name, &text).await?;
            }
            Ok(Secret::new(text))
        }
        (None, Some(sealed)) => Ok(Secret::new(sealed)),
        (None, None) => {
            Err(Error::config("outlet.secret", format!("the secret of outlet {} is not known", settings.name))
                .hint("name a file with it as secret_file; it is read and sealed, and may be deleted then"))
        }
    }
}
