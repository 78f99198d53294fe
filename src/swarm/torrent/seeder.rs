//! The appliance as a peer: librqbit, which gives images away and takes nothing.
//!
//! It starts with the first client of an image and ends when the last one is gone, so an appliance whose machines all use
//! Rackline's own agents has neither a session nor an open port. It announces itself to nobody and connects to nobody:
//! the tracker tells clients of it, under the address at which they reached the tracker. DHT, local discovery and UPnP are
//! off.
//!
//! librqbit's own file storage opens files for writing and sets their length; [`ReadOnly`] cannot.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use librqbit::limits::LimitsConfig;
use librqbit::storage::{BoxStorageFactory, StorageFactory, StorageFactoryExt, TorrentStorage};
use librqbit::{
    AddTorrent, AddTorrentOptions, ListenerMode, ListenerOptions, ManagedTorrentShared, PeerConnectionOptions, Session,
    SessionOptions, TorrentMetadata,
};
use librqbit_core::Id20;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{error, info};

use super::metainfo::InfoHash;
use super::shelf::Torrent;
use super::tracker::Seed;
use crate::error::{Error, Result};

/// An announce waits so long for the first check of an image; a client that has to ask again loses more.
const PATIENCE: Duration = Duration::from_secs(4);
/// Clients that are served at once, for each image. The others hear of these from the tracker.
const MAX_PEERS: usize = 256;
/// A peer says something at least every two minutes (BEP 3, keep-alive). librqbit's own 10 s would cut off clients that
/// have enough peers just now.
const SILENCE: Duration = Duration::from_secs(150);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// TCP port for peers.
    pub port: u16,
    /// Bytes a second to all peers together, no less than a block of 16 KiB; none is no limit.
    pub rate: Option<NonZeroU32>,
}

/// Of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its data is compared with the piece hashes.
    Starting,
    Ready,
    /// With the reason in the log; the next round forgets it, and then it is tried again.
    Failed,
}

pub struct Seeder {
    settings: Settings,
    seeds: Mutex<HashMap<InfoHash, watch::Receiver<Phase>>>,
    session: Mutex<Option<Arc<Session>>>,
    /// Torrents come and go one at a time.
    turn: tokio::sync::Mutex<()>,
    /// Bytes that sessions sent that have ended.
    sent_before: AtomicU64,
}

impl Seeder {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            seeds: Mutex::default(),
            session: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            sent_before: AtomicU64::new(0),
        }
    }

    fn seeds(&self) -> MutexGuard<'_, HashMap<InfoHash, watch::Receiver<Phase>>> {
        self.seeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self) -> Option<Arc<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_session(&self, session: Option<Arc<Session>>) {
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = session;
    }

    /// Sees to it that this image is given away, to those who reach us under `home`.
    pub async fn seed(self: &Arc<Self>, torrent: &Arc<Torrent>, home: IpAddr) -> Seed {
        let mut phase = {
            let mut seeds = self.seeds();
            let seat = seeds.entry(torrent.metainfo.info_hash).or_insert_with(|| {
                let (sender, receiver) = watch::channel(Phase::Starting);
                tokio::spawn(self.clone().start(torrent.clone(), sender));
                receiver
            });
            seat.clone()
        };
        let _ = timeout(PATIENCE, phase.changed()).await;
        let phase = *phase.borrow();
        self.as_seed(phase, home)
    }

    /// The same as it is now; starts nothing.
    pub fn look(&self, hash: InfoHash, home: IpAddr) -> Seed {
        let phase = self.seeds().get(&hash).map(|phase| *phase.borrow());
        phase.map_or(Seed::None, |phase| self.as_seed(phase, home))
    }

    fn as_seed(&self, phase: Phase, home: IpAddr) -> Seed {
        match phase {
            Phase::Starting => Seed::Starting,
            Phase::Ready => Seed::At((home, self.settings.port).into()),
            Phase::Failed => Seed::None,
        }
    }

    async fn start(self: Arc<Self>, torrent: Arc<Torrent>, phase: watch::Sender<Phase>) {
        let hash = torrent.metainfo.info_hash;
        match self.add(&torrent).await {
            Ok(()) => {
                info!(image = torrent.name, port = self.settings.port, "BitTorrent clients get the image from here");
                phase.send_replace(Phase::Ready);
            }
            Err(e) => {
                error!(error = ?e, image = torrent.name, %hash, "the image is not given to BitTorrent clients");
                phase.send_replace(Phase::Failed);
            }
        }
    }

    async fn add(&self, torrent: &Torrent) -> Result<()> {
        let failed = |e: anyhow::Error| {
            Error::internal("torrent.seed", format!("{} cannot be seeded", torrent.name))
                .because(e.into_boxed_dyn_error())
        };
        let _turn = self.turn.lock().await;
        let session = match self.session() {
            Some(session) => session,
            None => {
                let session = Session::new_with_opts(PathBuf::from("/"), self.options()).await.map_err(|e| {
                    Error::config(
                        "torrent.port",
                        format!("cannot listen on port {} for BitTorrent", self.settings.port),
                    )
                    .because(e.into_boxed_dyn_error())
                    .hint("set swarm.bittorrent_port to a free one, or swarm.bittorrent = false")
                })?;
                self.set_session(Some(session.clone()));
                session
            }
        };
        let options = AddTorrentOptions {
            disable_trackers: true,
            overwrite: true,
            storage_factory: Some(Data(torrent.data.clone()).boxed()),
            ..AddTorrentOptions::default()
        };
        let file = AddTorrent::from_bytes(torrent.metainfo.file(""));
        let added = session.add_torrent(file, Some(options)).await.map_err(failed)?;
        let handle = added.into_handle().ok_or_else(|| Error::internal("torrent.seed", "nothing was added"))?;
        handle.wait_until_initialized().await.map_err(failed)?;
        if handle.stats().finished {
            return Ok(());
        }
        session.delete(Id20::new(torrent.metainfo.info_hash.0).into(), false).await.map_err(failed)?;
        let changed = format!("{} is no longer what its piece hashes were computed from", torrent.data.display());
        Err(Error::refused("torrent.data", changed)
            .hint("build or import the image again: `rackline image build NAME`"))
    }

    fn options(&self) -> SessionOptions {
        SessionOptions {
            dht: None,
            disable_trackers: true,
            disable_local_service_discovery: true,
            // As the machines' web server, which the tracker is on.
            ipv4_only: true,
            listen: Some(ListenerOptions {
                // Over uTP, Transmission 3.00 got no answer from librqbit 9.1; aria2 does not speak it.
                mode: ListenerMode::TcpOnly,
                listen_addr: (Ipv4Addr::UNSPECIFIED, self.settings.port).into(),
                announce_port: Some(self.settings.port),
                enable_upnp_port_forwarding: false,
                ipv4_only: true,
                ..ListenerOptions::default()
            }),
            connect: Some(librqbit::ConnectionOptions {
                peer_opts: Some(PeerConnectionOptions {
                    read_write_timeout: Some(SILENCE),
                    ..PeerConnectionOptions::default()
                }),
                ..librqbit::ConnectionOptions::default()
            }),
            ratelimits: LimitsConfig { upload_bps: self.settings.rate, download_bps: None },
            peer_limit: Some(MAX_PEERS),
            client_name_and_version: Some(concat!("Rackline ", env!("CARGO_PKG_VERSION")).into()),
            ..SessionOptions::default()
        }
    }

    /// Gives away these images only from now on; without any, the session ends and the port is closed.
    pub async fn keep(&self, alive: &HashSet<InfoHash>) {
        let _turn = self.turn.lock().await;
        let gone: Vec<InfoHash> = {
            let mut seeds = self.seeds();
            let settled = |phase: &watch::Receiver<Phase>| *phase.borrow() != Phase::Starting;
            let gone = seeds
                .iter()
                .filter(|(hash, phase)| settled(phase) && (!alive.contains(hash) || *phase.borrow() == Phase::Failed));
            let gone: Vec<InfoHash> = gone.map(|(hash, _)| *hash).collect();
            gone.iter().for_each(|hash| drop(seeds.remove(hash)));
            gone
        };
        let Some(session) = self.session() else { return };
        for hash in gone {
            if session.get(Id20::new(hash.0).into()).is_some()
                && let Err(e) = session.delete(Id20::new(hash.0).into(), false).await
            {
                error!(error = %e, %hash, "an image is still given to BitTorrent clients");
            }
        }
        // One that starts waits for its turn, and opens another.
        if session.with_torrents(|torrents| torrents.next().is_none()) {
            session.stop().await;
            self.sent_before.fetch_add(session.stats_snapshot().counters.uploaded_bytes, Relaxed);
            self.set_session(None);
        }
    }

    /// Bytes of images that went to peers.
    pub fn sent(&self) -> u64 {
        let current = self.session().map_or(0, |session| session.stats_snapshot().counters.uploaded_bytes);
        self.sent_before.load(Relaxed) + current
    }
}

/// Where the payload of one torrent lies.
#[derive(Clone)]
struct Data(PathBuf);

impl StorageFactory for Data {
    type Storage = ReadOnly;

    fn create(&self, _: &ManagedTorrentShared, _: &TorrentMetadata) -> anyhow::Result<ReadOnly> {
        Ok(ReadOnly(File::open(&self.0)?))
    }

    fn clone_box(&self) -> BoxStorageFactory {
        self.clone().boxed()
    }
}

/// The data file of an image, opened for reading.
struct ReadOnly(File);

impl TorrentStorage for ReadOnly {
    fn init(&mut self, _: &ManagedTorrentShared, _: &TorrentMetadata) -> anyhow::Result<()> {
        Ok(())
    }

    fn pread_exact(&self, _: usize, offset: u64, buffer: &mut [u8]) -> anyhow::Result<()> {
        Ok(self.0.read_exact_at(buffer, offset)?)
    }

    fn pwrite_all(&self, _: usize, _: u64, bytes: &[u8]) -> anyhow::Result<()> {
        anyhow::ensure!(bytes.is_empty(), "images are not written to");
        Ok(())
    }

    fn remove_file(&self, _: usize, _: &Path) -> anyhow::Result<()> {
        anyhow::bail!("images are not removed")
    }

    fn remove_directory_if_empty(&self, _: &Path) -> anyhow::Result<()> {
        Ok(())
    }

    /// It has the length of the manifest, which the catalogue has seen to.
    fn ensure_file_length(&self, _: usize, _: u64) -> anyhow::Result<()> {
        Ok(())
    }

    fn take(&self) -> anyhow::Result<Box<dyn TorrentStorage>> {
        Ok(Box::new(Self(self.0.try_clone()?)))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use super::*;
    use crate::image::Library;
    use crate::swarm::torrent::metainfo::tests::published;
    use crate::swarm::torrent::shelf::Shelf;

    const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// A seeder on a free port, where it will be found, and the torrent of the library's only image.
    async fn seeder(library: &Arc<Library>) -> (Arc<Seeder>, SocketAddr, Arc<Torrent>) {
        let port = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port();
        let torrent = Shelf::new(library.clone()).of(library.current().images[0].digest).await.unwrap();
        (Arc::new(Seeder::new(Settings { port, rate: None })), (HOME, port).into(), torrent)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_port_is_open_only_while_an_image_is_wanted() {
        let (_dir, library) = published(600 << 10);
        let (seeder, address, torrent) = seeder(&Arc::new(library)).await;
        let hash = torrent.metainfo.info_hash;
        assert_eq!(seeder.look(hash, HOME), Seed::None);
        // The second time after it was closed.
        for _ in 0..2 {
            assert!(TcpStream::connect(address).is_err());
            let (one, two) = tokio::join!(seeder.seed(&torrent, HOME), seeder.seed(&torrent, HOME));
            assert_eq!((one, two, seeder.look(hash, HOME)), (Seed::At(address), Seed::At(address), Seed::At(address)));
            TcpStream::connect(address).unwrap();
            seeder.keep(&HashSet::from([hash])).await;
            assert_eq!(seeder.look(hash, HOME), Seed::At(address));
            seeder.keep(&HashSet::new()).await;
            assert_eq!(seeder.look(hash, HOME), Seed::None);
        }
        assert!(TcpStream::connect(address).is_err());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn data_that_changed_is_not_given_away() {
        let (_dir, library) = published(600 << 10);
        let (seeder, address, torrent) = seeder(&Arc::new(library)).await;
        let hash = torrent.metainfo.info_hash;
        let right = std::fs::read(&torrent.data).unwrap();
        let mut wrong = right.clone();
        wrong[300 << 10] ^= 1;
        std::fs::write(&torrent.data, wrong).unwrap();
        assert_eq!(seeder.seed(&torrent, HOME).await, Seed::None);
        // Somebody put it right; the next round tries again.
        std::fs::write(&torrent.data, right).unwrap();
        seeder.keep(&HashSet::from([hash])).await;
        assert_eq!(seeder.seed(&torrent, HOME).await, Seed::At(address));
        seeder.keep(&HashSet::new()).await;
    }
}
