//! The standard way to an image, for any other client: BitTorrent.
//!
//! ```text
//!  image::Library ─► shelf: metainfo of an image's data file ──► GET /images/DIGEST/torrent, `rackline image torrent`
//!                  │ info hash
//!                  ▼
//!  announce ─► is it one? (announce) ─► of an image, a served network, true of its size? ─► tracker ─► peers
//!                  │ the first of an image                                                                │
//!                  ▼                                                                                      ▼
//!               seeder: librqbit over the data file ◄───────────────── pieces ─────────────────────► the client
//! ```
//!
//! Rackline's own agents do not use it. The torrents are private (BEP 27): clients get peers from this tracker only, and
//! no image wanders off into the DHT.

pub mod announce;
mod bencode;
mod count;
mod metainfo;
mod seeder;
mod shelf;
pub mod tracker;

pub use count::{Counters, Refusal};
pub use metainfo::{InfoHash, Metainfo};
pub use seeder::Settings;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use announce::{Announce, Event};
use seeder::Seeder;
use shelf::Shelf;
use tokio_util::sync::CancellationToken;
use tracker::Tracker;

use crate::error::Result;
use crate::image::Library;
use crate::machine::Digest;

/// Where clients find the tracker, on an appliance that machines reach under `base`.
pub fn tracker_url(base: &str) -> String {
    format!("{base}/announce")
}

/// Between two looks for images that no client wants any more.
const ROUND: Duration = Duration::from_secs(60);

/// Whether a client of this address may take part.
pub type Served = dyn Fn(IpAddr) -> bool + Send + Sync;

pub struct Torrents {
    shelf: Shelf,
    tracker: Mutex<Tracker>,
    seeder: Arc<Seeder>,
    tracker_url: String,
    served: Box<Served>,
    counters: Counters,
}

impl Torrents {
    /// `base` is the URL under which machines reach the appliance.
    pub fn new(
        library: Arc<Library>,
        base: &str,
        seeder: Settings,
        served: impl Fn(IpAddr) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self {
            shelf: Shelf::new(library),
            tracker: Mutex::default(),
            seeder: Arc::new(Seeder::new(seeder)),
            tracker_url: tracker_url(base),
            served: Box::new(served),
            counters: Counters::default(),
        }
    }

    /// Name and `.torrent` of an image.
    pub async fn file(&self, image: Digest) -> Result<(String, Vec<u8>)> {
        let torrent = self.shelf.of(image).await?;
        self.counters.handed_out();
        Ok((torrent.name.clone(), torrent.metainfo.file(&self.tracker_url)))
    }

    /// The answer to an announce from this address, which reached us under `home`: peers, or why there are none.
    pub async fn announce(&self, from: IpAddr, home: IpAddr, query: &str) -> Vec<u8> {
        match self.try_announce(from, home, query).await {
            Ok(answer) => {
                self.counters.answered();
                answer
            }
            Err(why) => {
                tracing::debug!(client = %from, why = why.name(), "announce refused");
                self.counters.refused(why);
                tracker::failure(why.sentence())
            }
        }
    }

    async fn try_announce(&self, from: IpAddr, home: IpAddr, query: &str) -> Result<Vec<u8>, Refusal> {
        if !(self.served)(from) {
            return Err(Refusal::Outside);
        }
        let announce = Announce::parse(query)?;
        let torrent = self.shelf.find(announce.info_hash).ok_or(Refusal::UnknownTorrent)?;
        announce.fits(torrent.metainfo.length)?;
        let reply = self.tracker().announce(Instant::now(), from, &announce)?;
        let wants = announce.left > 0 && announce.event != Event::Stopped;
        let seed = match wants {
            true => self.seeder.seed(&torrent, home).await,
            false => self.seeder.look(announce.info_hash, home),
        };
        Ok(reply.encode(seed, !wants, announce.wanted))
    }

    fn tracker(&self) -> MutexGuard<'_, Tracker> {
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets clients that are gone, and stops seeding what nobody wants. Runs until cancelled.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(ROUND)).await.is_some() {
            let alive = self.tracker().alive(Instant::now());
            self.seeder.keep(&alive).await;
        }
    }

    /// Name and count.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let (downloading, complete) = self.tracker().clients();
        let now = [
            ("torrent-clients", downloading as u64),
            ("torrent-complete-clients", complete as u64),
            ("torrent-bytes", self.seeder.sent()),
        ];
        self.counters.snapshot().into_iter().chain(now).collect()
    }
}
