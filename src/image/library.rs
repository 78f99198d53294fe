//! The catalogue of a running appliance: read again when its folder changes, so that a new image, and where a channel
//! points, count for the next order. What was handed out before stays valid.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use super::catalogue::Catalogue;
use super::sign::PublicKey;
use crate::error::Result;

pub struct Library {
    folder: PathBuf,
    trusted: Vec<PublicKey>,
    current: RwLock<Arc<Catalogue>>,
}

/// What a reading found new, and what is not there any more.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct News {
    pub come: Vec<String>,
    pub gone: Vec<String>,
    /// Channels that point elsewhere, with what they point to now.
    pub channels: Vec<String>,
}

impl Library {
    pub fn open(folder: &Path, trusted: &[PublicKey]) -> Result<Self> {
        let current = RwLock::new(Arc::new(Catalogue::open(folder, trusted)?));
        Ok(Self { folder: folder.to_owned(), trusted: trusted.to_vec(), current })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The catalogue as it is now; it does not change in the holder's hands.
    pub fn current(&self) -> Arc<Catalogue> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the folder again. If that fails, the catalogue stays as it was.
    pub fn reload(&self) -> Result<News> {
        let new = Arc::new(Catalogue::open(&self.folder, &self.trusted)?);
        let old = std::mem::replace(&mut *self.current.write().unwrap_or_else(PoisonError::into_inner), new.clone());
        let missing = |from: &Catalogue, of: &Catalogue| -> Vec<String> {
            of.images.iter().filter(|e| from.by_digest(e.digest).is_none()).map(super::Entry::name).collect()
        };
        let moved = new.channels.current().filter(|(name, now)| old.channels.get(name) != Some(*now));
        Ok(News {
            come: missing(&old, &new),
            gone: missing(&new, &old),
            channels: moved.map(|(name, now)| format!("{name} is {}", now.image)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::catalogue::tests::publish;
    use crate::image::channels;
    use crate::image::sign::SigningKey;

    #[test]
    fn news_count_at_once_and_old_ones_stay_in_hand() {
        let dir = tempfile::tempdir().unwrap();
        let key = SigningKey::generate().unwrap();
        let library = Library::open(dir.path(), &[key.public()]).unwrap();
        let empty = library.current();
        publish(dir.path(), "kvm", "1", &key);
        assert_eq!(library.reload().unwrap().come, ["kvm-1"]);
        assert_eq!((empty.images.len(), library.current().images.len()), (0, 1));
        channels::promote(dir.path(), &library.current().images[0], "stable", "me").unwrap();
        assert_eq!(library.reload().unwrap().channels, ["kvm@stable is kvm-1"]);
        assert!(library.current().resolve("kvm@stable").is_ok());
        std::fs::remove_dir_all(dir.path().join("kvm-1")).unwrap();
        assert_eq!(library.reload().unwrap(), News { gone: vec!["kvm-1".into()], ..News::default() });
        // Where the image of a channel is gone, that is said.
        assert_eq!(library.current().resolve("kvm@stable").unwrap_err().code(), "image.channel");
    }
}
