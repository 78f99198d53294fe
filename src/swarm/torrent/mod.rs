//! The standard way to an image, for any other client: BitTorrent.
//!
//! ```text
//!  catalogue ─► library: metainfo of an image's data file ──► GET /images/DIGEST/torrent, `rackline image torrent`
//!                  │ info hash
//!                  ▼
//!  announce ─► is it one? (announce) ─► of an image, a served network, true of its size? ─► tracker ─► peers
//! ```
//!
//! Rackline's own agents do not use it. The torrents are private (BEP 27): clients get peers from this tracker only, and
//! no image wanders off into the DHT.

mod announce;
mod bencode;
mod count;
mod http;
mod library;
mod metainfo;
mod tracker;

pub use count::{Counters, Refusal};
pub use http::router;
pub use metainfo::{InfoHash, Metainfo};

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use announce::Announce;
use library::Library;
use tracker::{Seed, Tracker};

use crate::error::Result;
use crate::image::Catalogue;
use crate::machine::Digest;

/// Where clients find the tracker, on an appliance that machines reach under `base`.
pub fn tracker_url(base: &str) -> String {
    format!("{base}/announce")
}

/// Whether a client of this address may take part.
pub type Served = dyn Fn(IpAddr) -> bool + Send + Sync;

pub struct Torrents {
    library: Library,
    tracker: Mutex<Tracker>,
    tracker_url: String,
    served: Box<Served>,
    counters: Counters,
}

impl Torrents {
    /// `base` is the URL under which machines reach the appliance.
    pub fn new(catalogue: Arc<Catalogue>, base: &str, served: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Self {
        Self {
            library: Library::new(catalogue),
            tracker: Mutex::default(),
            tracker_url: tracker_url(base),
            served: Box::new(served),
            counters: Counters::default(),
        }
    }

    /// Name and `.torrent` of an image.
    async fn file(&self, image: Digest) -> Result<(String, Vec<u8>)> {
        let torrent = self.library.of(image).await?;
        self.counters.handed_out();
        Ok((torrent.name.clone(), torrent.metainfo.file(&self.tracker_url)))
    }

    /// The answer to an announce from this address. `home` is our own one, as the client reaches it.
    async fn announce(&self, from: IpAddr, home: Option<IpAddr>, query: &str) -> Result<Vec<u8>, Refusal> {
        let answer = self.try_announce(from, home, query).await;
        match &answer {
            Ok(_) => self.counters.answered(),
            Err(why) => self.counters.refused(*why),
        }
        answer
    }

    async fn try_announce(&self, from: IpAddr, _home: Option<IpAddr>, query: &str) -> Result<Vec<u8>, Refusal> {
        if !(self.served)(from) {
            return Err(Refusal::Outside);
        }
        let announce = Announce::parse(query)?;
        let torrent = self.library.find(announce.info_hash).ok_or(Refusal::UnknownTorrent)?;
        announce.fits(torrent.metainfo.length)?;
        let mut tracker = self.tracker.lock().unwrap_or_else(PoisonError::into_inner);
        let reply = tracker.announce(Instant::now(), from, &announce)?;
        Ok(reply.encode(Seed::None, announce.left == 0, announce.wanted))
    }

    /// Name and count.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let (downloading, complete) = self.tracker.lock().unwrap_or_else(PoisonError::into_inner).clients();
        let clients = [("torrent-clients", downloading as u64), ("torrent-complete-clients", complete as u64)];
        self.counters.snapshot().into_iter().chain(clients).collect()
    }
}
