//! The torrents of the catalogue's images: computed when the first client asks for one, found again by info hash.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::metainfo::{InfoHash, Metainfo};
use crate::error::{Error, Kind, OrFail, Result};
use crate::image::{Catalogue, Entry};
use crate::machine::Digest;

/// Between two searches for kept hashes, so that made-up info hashes cost nothing.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Torrent {
    pub image: Digest,
    /// `kvm-20261121-3f2a9c01`.
    pub name: String,
    /// The payload.
    #[allow(dead_code, reason = "for the seeder")]
    pub data: PathBuf,
    pub metainfo: Metainfo,
}

pub struct Library {
    catalogue: Arc<Catalogue>,
    known: Mutex<Known>,
    /// Hashing keeps a core busy: one image at a time.
    hashing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    torrents: HashMap<InfoHash, Arc<Torrent>>,
    looked: Option<Instant>,
}

impl Library {
    pub fn new(catalogue: Arc<Catalogue>) -> Self {
        Self { catalogue, known: Mutex::default(), hashing: tokio::sync::Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For those who have the `.torrent`. After a restart of the appliance, or if `rackline image torrent` made it, only the
    /// disk knows what its info hash is.
    pub fn find(&self, hash: InfoHash) -> Option<Arc<Torrent>> {
        let mut known = self.known();
        if let Some(torrent) = known.torrents.get(&hash) {
            return Some(torrent.clone());
        }
        if known.looked.is_some_and(|then| then.elapsed() < LOOK) {
            return None;
        }
        known.looked = Some(Instant::now());
        for image in &self.catalogue.images {
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
        let known = |known: &Known| known.of(image).cloned();
        if let Some(torrent) = known(&self.known()) {
            return Ok(torrent);
        }
        let entry = self.catalogue.by_digest(image).cloned();
        let entry = entry.ok_or_else(|| Error::not_found("image.unknown", format!("there is no image {image}")))?;
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
        let (_dir, catalogue) = published(400 << 10);
        let catalogue = Arc::new(catalogue);
        let image = catalogue.images[0].digest;
        let library = Library::new(catalogue.clone());
        assert_eq!(library.of(Digest::of(b"x")).await.unwrap_err().code(), "image.unknown");
        let hash = library.of(image).await.unwrap().metainfo.info_hash;
        assert_eq!(library.find(hash).unwrap().image, image);
        assert!(library.find(InfoHash([1; 20])).is_none());
        // Another start of the appliance: the hashes that were kept are enough.
        let again = Library::new(catalogue.clone());
        assert_eq!(again.find(hash).unwrap().name, "kvm-1");
        // A flood of made-up hashes is no flood of searches on disk.
        let third = Library::new(catalogue);
        assert!(third.find(InfoHash([1; 20])).is_none());
        let looked = third.known().looked;
        assert!(third.find(InfoHash([2; 20])).is_some() || third.known().looked == looked);
    }
}
