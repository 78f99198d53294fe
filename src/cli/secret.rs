//! Secrets of the site that the configuration names as files: read when they are there, sealed, and known without the file after.

use std::path::Path;

use crate::error::{Kind, OrFail, Result};
use crate::machine::Secret;
use crate::store::Db;
use crate::store::seal::Seal;

/// A file that is there counts, and is sealed where it says something new. `None`: neither file nor sealed.
pub async fn known(name: &str, file: Option<&Path>, db: &Db, seal: &Seal) -> Result<Option<Secret>> {
    let sealed = db.secret(seal, name).await?;
    let text = match file.map(|path| (path, std::fs::read_to_string(path))) {
        Some((_, Ok(text))) => Some(text),
        Some((_, Err(e))) if e.kind() == std::io::ErrorKind::NotFound => None,
        Some((path, Err(e))) => {
            return Err(e).or_fail(Kind::Config, "secret.read", || format!("cannot read {}", path.display()));
        }
        None => None,
    };
    if let Some(text) = &text
        && sealed.as_deref() != Some(text.as_str())
    {
        db.put_secret(seal, name, text).await?;
    }
    Ok(text.or(sealed).map(Secret::new))
}
