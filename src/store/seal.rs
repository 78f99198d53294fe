//! Secrets at rest: AES-256-GCM under a site key that lies beside the database, readable by its owner only.
//!
//! A sealed secret is `nonce (12 bytes) ‖ ciphertext ‖ tag (16 bytes)`; its name is authenticated with it, so that a
//! sealed password cannot be moved to another machine's row.

use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::rand;
use sqlx::{Any, Transaction};

use super::{Db, failed};
use crate::durable;
use crate::error::{Error, Kind, OrFail, Result};

pub struct Seal {
    key: RandomizedNonceKey,
    raw: [u8; 32],
}

impl Seal {
    /// Reads the key file, or makes it on the first start.
    pub fn load_or_make(path: &Path) -> Result<Self> {
        let raw = match std::fs::read(path) {
            Ok(raw) => raw,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => make(path)?,
            Err(e) => {
                return Err(
                    Error::config("seal.key", format!("cannot read the site key {}", path.display())).because(e)
                );
            }
        };
        let raw: [u8; 32] = raw.try_into().map_err(|_| {
            Error::config("seal.key", format!("the site key {} is not 32 bytes long", path.display()))
                .hint("restore it from the backup: without it the stored BMC passwords are lost")
        })?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, &raw)
            .map_err(|_| Error::internal("seal.key", "the site key is not usable"))?;
        Ok(Self { key, raw })
    }

    /// A key for another purpose, derived from the site key.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        blake3::derive_key(&format!("rackline 2026 {purpose}"), &self.raw)
    }

    fn close(&self, name: &str, secret: &str) -> Result<Vec<u8>> {
        let mut text = secret.as_bytes().to_vec();
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(name.as_bytes()), &mut text)
            .map_err(|_| Error::internal("seal.close", "a secret cannot be sealed"))?;
        let mut sealed = nonce.as_ref().to_vec();
        sealed.append(&mut text);
        Ok(sealed)
    }

    fn open(&self, name: &str, sealed: &[u8]) -> Result<String> {
        let broken = || {
            Error::config("seal.open", format!("the stored secret {name} does not open with the site key"))
                .hint("restore the site key that belongs to this database")
        };
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN).ok_or_else(broken)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| broken())?;
        let mut text = text.to_vec();
        let open = self.key.open_in_place(nonce, Aad::from(name.as_bytes()), &mut text).map_err(|_| broken())?;
        String::from_utf8(open.to_vec()).map_err(|_| broken())
    }
}

fn make(path: &Path) -> Result<Vec<u8>> {
    let mut raw = vec![0u8; 32];
    rand::fill(&mut raw).map_err(|_| Error::internal("seal.random", "the system gives no random bytes"))?;
    let fail = || format!("cannot make the site key {}", path.display());
    durable::create_secret(path, &raw).or_fail(Kind::Config, "seal.key", fail)?;
    Ok(raw)
}

/// Together with what else the transaction writes.
pub async fn put(tx: &mut Transaction<'static, Any>, seal: &Seal, name: &str, secret: &str) -> Result<()> {
    sqlx::query(
        "INSERT INTO secret (name, sealed) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET sealed = excluded.sealed",
    )
    .bind(name)
    .bind(seal.close(name, secret)?)
    .execute(&mut **tx)
    .await
    .map_err(failed)?;
    Ok(())
}

impl Db {
    pub async fn put_secret(&self, seal: &Seal, name: &str, secret: &str) -> Result<()> {
        let mut tx = self.write().await?;
        put(&mut tx, seal, name, secret).await?;
        tx.commit().await.map_err(failed)
    }

    pub async fn secret(&self, seal: &Seal, name: &str) -> Result<Option<String>> {
        let row: Option<(Vec<u8>,)> = sqlx::query_as("SELECT sealed FROM secret WHERE name = $1")
            .bind(name)
            .fetch_optional(self.read())
            .await
            .map_err(failed)?;
        row.map(|(sealed,)| seal.open(name, &sealed)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn secrets_are_sealed_at_rest_and_bound_to_their_name() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("site.key");
        let db = Db::open(dir.path()).await.unwrap();
        let seal = Seal::load_or_make(&key).unwrap();
        db.put_secret(&seal, "bmc/a", "calvin").await.unwrap();
        let again = Seal::load_or_make(&key).unwrap();
        assert_eq!(db.secret(&again, "bmc/a").await.unwrap().as_deref(), Some("calvin"));
        assert_eq!(db.secret(&again, "bmc/b").await.unwrap(), None);
        let sealed = seal.close("bmc/a", "calvin").unwrap();
        assert!(!sealed.windows(6).any(|w| w == b"calvin"));
        assert_eq!(seal.open("bmc/b", &sealed).unwrap_err().code(), "seal.open");
        std::fs::write(&key, [7u8; 32]).unwrap();
        let other = Seal::load_or_make(&key).unwrap();
        assert_eq!(db.secret(&other, "bmc/a").await.unwrap_err().code(), "seal.open");
    }
}
