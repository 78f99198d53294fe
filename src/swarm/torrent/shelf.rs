//! The torrents of the library's images: computed when the first client asks for one, found again by info hash.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::metainfo::{InfoHash, Metainfo};
use crate::error::{Error, Kind, OrFail, Result};
use crate::image::{Entry, Library};
use crate::machine::Digest;

/// Between two searches for kept hashes, so that made-up info hashes cost nothing.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Torrent {
    pub image: Digest,
    /// `kvm-20261121-3f2a9c01`.
    pub name: String,
    /// The payload.
    pub data: PathBuf,
    pub metainfo: Metainfo,
}

pub struct Shelf {
    library: Arc<Library>,
    known: Mutex<Known>,
    /// Hashing keeps a core busy: one image at a time.
    hashing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    torrents: HashMap<InfoHash, Arc<Torrent>>,
    looked: Option<Instant>,
}

impl Shelf {
    pub fn new(library: Arc<Library>) -> Self {
        Self { library, known: Mutex::default(), hashing: tokio::sync::Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For those who have the `.torrent`. After a restart of the appliance, or if `rackline image torrent` made it, only the
    /// disk knows what its info hash is.
    pub fn find(&self, hash: InfoHash) -> Option<Arc<Torrent>> {
        let catalogue = self.library.current();
        let mut known = self.known();
        if let Some(torrent) = known.torrents.get(&hash) {
            // An image that was removed is not handed on any more.
            return catalogue.by_digest(torrent.image).map(|_| torrent.clone());
        }
        if known.looked.is_some_and(|then| then.elapsed() < LOOK) {
            return None;
        }
        known.looked = Some(Instant::now());
        for image in &catalogue.images {
            if known.of(image.digest).is_none()
                && let Some(metainfo) = Metainfo::kept(image)
            {
                known.add(image, metainfo);
            }
        }
        known.torrents.get(&hash).cloned()
    }

    /// Of one image; the first time its data file is read as a whole.
    pub async fn of(&self, image: Digest) -> Result<Arc<Torrent>> {
        let entry = self.library.current().by_digest(image).cloned();
        let entry = entry.ok_or_else(|| Error::not_found("image.unknown", format!("there is no image {image}")))?;
        let known = |known: &Known| known.of(image).cloned();
        if let Some(torrent) = known(&self.known()) {
            return Ok(torrent);
        }
        let _one = self.hashing.lock().await;
        if let Some(torrent) = known(&self.known()) {
            return Ok(torrent);
        }
        let hashing = tokio::task::spawn_blocking(move || Metainfo::of(&entry).map(|metainfo| (entry, metainfo)));
        let (entry, metainfo) =
            hashing.await.or_fail(Kind::Internal, "torrent.hash", || "the hashing was cut short")??;
        Ok(self.known().add(&entry, metainfo))
    }
}

impl Known {
    fn of(&self, image: Digest) -> Option<&Arc<Torrent>> {
        self.torrents.values().find(|torrent| torrent.image == image)
    }

    fn add(&mut self, image: &Entry, metainfo: Metainfo) -> Arc<Torrent> {
        let torrent = Torrent { image: image.digest, name: image.name(), data: image.data.clone(), metainfo };
        let torrent = Arc::new(torrent);
        self.torrents.insert(torrent.metainfo.info_hash, torrent.clone());
        torrent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::torrent::metainfo::tests::published;

    #[tokio::test]
    async fn a_torrent_is_found_by_its_image_and_by_its_hash() {
        let (dir, images) = published(400 << 10);
        let images = Arc::new(images);
        let image = images.current().images[0].digest;
        let shelf = Shelf::new(images.clone());
        assert_eq!(shelf.of(Digest::of(b"x")).await.unwrap_err().code(), "image.unknown");
        let hash = shelf.of(image).await.unwrap().metainfo.info_hash;
        assert_eq!(shelf.find(hash).unwrap().image, image);
        assert!(shelf.find(InfoHash([1; 20])).is_none());
        // Another start of the appliance: the hashes that were kept are enough.
        let again = Shelf::new(images.clone());
        assert_eq!(again.find(hash).unwrap().name, "kvm-1");
        // A flood of made-up hashes is no flood of searches on disk.
        let third = Shelf::new(images.clone());
        assert!(third.find(InfoHash([1; 20])).is_none());
        let looked = third.known().looked;
        assert!(third.find(InfoHash([2; 20])).is_some() || third.known().looked == looked);
        // One that was removed while clients share it.
        std::fs::remove_dir_all(dir.path().join("kvm-1")).unwrap();
        images.reload().unwrap();
        assert!(shelf.find(hash).is_none() && shelf.of(image).await.is_err());
    }
}
