//! Ed25519 keys (RFC 8032) that say who built an image.
//!
//! A signing key is a file of 64 hex digits, the seed, that nobody but its owner can read. A public key is written as
//! 64 hex digits wherever text is wanted: in the configuration, on the agent's kernel command line.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;

use aws_lc_rs::encoding::AsBigEndian;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, ParsedPublicKey};

use crate::durable;
use crate::error::{Error, Kind, OrFail, Result};

pub const SIGNATURE_BYTES: usize = 64;

/// Names a public key: the first eight bytes of its BLAKE3 digest. It picks the key to check with, it proves nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId(pub [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    pub fn id(&self) -> KeyId {
        let mut id = [0; 8];
        id.copy_from_slice(&blake3::hash(&self.0).as_bytes()[..8]);
        KeyId(id)
    }

    /// True if `signature` over `message` was made with this key.
    pub fn signed(&self, message: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
        ParsedPublicKey::new(&ED25519, self.0).is_ok_and(|key| key.verify_sig(message, signature).is_ok())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let mut key = [0; 32];
        hex::decode_to_slice(s, &mut key).map(|()| Self(key)).map_err(|_| {
            Error::input("image.key", "a public key is 64 hex digits, and this is not")
                .hint("`rackline image key` prints the public key of this appliance")
        })
    }
}

/// The private half. Neither its `Debug` nor any error shows it.
pub struct SigningKey(Ed25519KeyPair);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public().id())
    }
}

impl SigningKey {
    /// A new key that is nowhere but in memory.
    pub fn generate() -> Result<Self> {
        Ed25519KeyPair::generate()
            .map(Self)
            .map_err(|_| Error::internal("image.key", "the crypto library could not make a key"))
    }

    /// The key in `path`; a new one is made and stored there (mode 0600) where there is none.
    pub fn load_or_create(path: &Path) -> Result<Self> {
        match fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            _ => return Self::load(path),
        }
        let key = Self::generate()?;
        match key.store(path) {
            // Another process was quicker: its key is the key.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Self::load(path),
            stored => stored
                .or_fail(Kind::Config, "image.key", || format!("cannot write the signing key {}", path.display()))
                .map(|()| key),
        }
    }

    pub fn load(path: &Path) -> Result<Self> {
        let shown = path.display();
        let about =
            fs::metadata(path).or_fail(Kind::Config, "image.key", || format!("cannot read the signing key {shown}"))?;
        if about.mode() & 0o077 != 0 {
            return Err(Error::config("image.key", format!("others than its owner can read the signing key {shown}"))
                .hint(format!("chmod 600 {shown}")));
        }
        let wrong = || {
            Error::config("image.key", format!("{shown} is not a signing key of 64 hex digits"))
                .hint("restore it from a backup; with a new key, images must be signed and agents told anew")
        };
        if about.len() > 100 {
            return Err(wrong());
        }
        let text = fs::read_to_string(path)
            .or_fail(Kind::Config, "image.key", || format!("cannot read the signing key {shown}"))?;
        let mut seed = [0; 32];
        hex::decode_to_slice(text.trim(), &mut seed).map_err(|_| wrong())?;
        Ed25519KeyPair::from_seed_unchecked(&seed).map(Self).map_err(|_| wrong())
    }

    fn store(&self, path: &Path) -> io::Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let seed = self.0.seed().and_then(|seed| seed.as_be_bytes()).map_err(|_| io::Error::other("no seed"))?;
        let mut text = hex::encode(seed.as_ref());
        text.push('\n');
        durable::create_secret(path, text.as_bytes())
    }

    pub fn public(&self) -> PublicKey {
        let mut key = [0; 32];
        key.copy_from_slice(self.0.public_key().as_ref());
        PublicKey(key)
    }

    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let mut signature = [0; SIGNATURE_BYTES];
        signature.copy_from_slice(self.0.sign(message).as_ref());
        signature
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys/image.key");
        let made = SigningKey::load_or_create(&path).unwrap();
        let found = SigningKey::load_or_create(&path).unwrap();
        assert_eq!(made.public(), found.public());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        let signature = made.sign(b"message");
        assert!(found.public().signed(b"message", &signature));
        assert!(!found.public().signed(b"messagf", &signature));
        assert!(!SigningKey::generate().unwrap().public().signed(b"message", &signature));
    }

    #[test]
    fn a_key_that_others_can_read_or_that_is_damaged_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.key");
        SigningKey::load_or_create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(SigningKey::load(&path).unwrap_err().next_step().unwrap().starts_with("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "00").unwrap();
        assert_eq!(SigningKey::load_or_create(&path).unwrap_err().code(), "image.key");
    }

    #[test]
    fn public_keys_as_text() {
        let key = SigningKey::generate().unwrap().public();
        assert_eq!(key.to_string().parse::<PublicKey>().unwrap(), key);
        for text in ["", "00", "é", &"g".repeat(64), &format!("{key}0"), &"é".repeat(32)] {
            assert_eq!(text.parse::<PublicKey>().unwrap_err().code(), "image.key", "{text}");
        }
    }
}
