//! The side that is followed: streams to each successor the frames that it lacks. What arrives now goes first, group by
//! group as it comes; what is held fills the gaps, from the newest to the oldest.
//!
//! Machines of one rack do not start at the same moment. One that joins late, in the middle of a row, passes on at once what
//! all behind it wait for, and makes up for its own beginning when the stream is over. In the order of arrival they would all
//! stand still until it had caught up.
//!
//! A stranger gets nothing: the first words prove the swarm's key, and must come soon. Whoever does not read is dropped.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::group::{self, Values};
use super::holdings::{Arriving, Cursor, Holdings};
use super::throttle::Throttle;
use super::wire::{self, Bitmap, HEAD, HELLO, Hello, KEEP_ALIVE, OPEN_MAX, Refusal};
use crate::machine::{Digest, Secret};

/// Frames that are read from the keep ahead of the one that is sent.
const AHEAD: usize = 2;
/// What the kernel may hold unsent of one connection: enough to keep the link busy while this program does something else,
/// and little enough that a hop adds no more than its own group to the way of a byte.
const UNSENT: u32 = 128 << 10;

/// Cubic, the usual default, fills the queue in front of a link until it loses, and every loss is a gap that all machines
/// behind inherit: a row of 32 at 50 Mbit/s ends at 1.14 of the ideal with it, at 1.05 with BBR, whose processor time is
/// half of that. Accepted sockets inherit it from the listener.
const CONGESTION: &[u8] = b"bbr";

/// What one server takes upon itself.
#[derive(Debug, Clone)]
pub struct ServeLimits {
    /// Successors at once.
    pub connections: usize,
    /// Of these, from one address.
    pub per_address: usize,
    /// The whole hello must have come by then.
    pub hello: Duration,
    /// A successor that takes nothing for so long is dropped.
    pub stuck: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self { connections: 64, per_address: 8, hello: Duration::from_secs(3), stuck: Duration::from_secs(20) }
    }
}

/// What is counted since the start.
#[derive(Debug, Default)]
pub struct Counted {
    /// Bytes of groups that went out.
    pub sent: AtomicU64,
    pub refused: AtomicU64,
    /// Successors that did not take what they were sent.
    pub stuck: AtomicU64,
}

/// One image that is served.
#[derive(Clone)]
struct Shared {
    holdings: Arc<Holdings>,
    proof: blake3::Hash,
}

pub struct Server {
    images: RwLock<HashMap<Digest, Shared>>,
    throttle: Throttle,
    limits: ServeLimits,
    present: Mutex<HashMap<IpAddr, usize>>,
    pub counted: Counted,
}

impl Server {
    pub fn new(limits: ServeLimits) -> Arc<Self> {
        Arc::new(Self {
            images: RwLock::default(),
            throttle: Throttle::new(None),
            limits,
            present: Mutex::default(),
            counted: Counted::default(),
        })
    }

    /// Serves this image from now on to those who know the key.
    pub fn share(&self, holdings: Arc<Holdings>, key: &Secret) {
        let proof = wire::proof(key, &holdings.image());
        let mut images = self.images.write().unwrap_or_else(PoisonError::into_inner);
        images.insert(holdings.image(), Shared { holdings, proof });
    }

    /// No new successors for this image.
    pub fn unshare(&self, image: &Digest) {
        self.images.write().unwrap_or_else(PoisonError::into_inner).remove(image);
    }

    /// Bytes a second to all successors together, from now on.
    pub fn limit(&self, rate: Option<u64>) {
        self.throttle.set(rate);
    }

    /// Successors that are connected.
    pub fn successors(&self) -> usize {
        self.present().values().sum()
    }

    fn present(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until `stop`; then all connections end.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        if let Err(e) = socket2::SockRef::from(&listener).set_tcp_congestion(CONGESTION) {
            tracing::debug!(error = %e, "the kernel has no BBR; sending with its default");
        }
        let mut sessions = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                Some(_) = sessions.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => match self.enter(peer.ip()) {
                    Some(seat) => drop(sessions.spawn(Arc::clone(&self).session(stream, peer, seat))),
                    None => self.turn_away(stream),
                },
                // Out of descriptors, or the connection was gone before it was taken.
                Err(e) => {
                    tracing::debug!(error = %e, "a successor could not be accepted");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Seat> {
        let mut present = self.present();
        let all: usize = present.values().sum();
        let here = present.get(&address).copied().unwrap_or(0);
        if all >= self.limits.connections || here >= self.limits.per_address {
            return None;
        }
        present.insert(address, here + 1);
        Some(Seat { server: Arc::clone(self), address })
    }

    /// The buffer of a new socket has room for this; nobody is waited for.
    fn turn_away(&self, stream: TcpStream) {
        self.counted.refused.fetch_add(1, Ordering::Relaxed);
        let _ = stream.try_write(&wire::refused(Refusal::Full));
    }

    async fn session(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, _seat: Seat) {
        if let Err(e) = set_options(&stream) {
            tracing::debug!(%peer, error = %e, "socket options");
        }
        let (mut reader, mut writer) = stream.into_split();
        let hello = timeout(self.limits.hello, self.read_hello(&mut reader)).await;
        let (shared, skip, parts) = match hello {
            Ok(Ok(Ok(accepted))) => accepted,
            Ok(Ok(Err(refusal))) => {
                self.counted.refused.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%peer, ?refusal, "a successor is refused");
                let _ = timeout(self.limits.hello, writer.write_all(&wire::refused(refusal))).await;
                return;
            }
            // It went away or never said who it is.
            Ok(Err(_)) | Err(_) => return,
        };
        let skip = Mutex::new(skip);
        let mut feed = Feed::new(&self, &shared.holdings, writer, &skip, &parts);
        let why = tokio::select! {
            end = feed.run() => end.err(),
            end = listen(&mut reader, &skip) => end.err(),
        };
        if why.as_ref().is_some_and(|e| e.kind() == io::ErrorKind::TimedOut) {
            self.counted.stuck.fetch_add(1, Ordering::Relaxed);
        }
        tracing::debug!(%peer, sent = feed.sent, ?why, "a successor has left");
    }

    async fn read_hello(
        &self,
        reader: &mut OwnedReadHalf,
    ) -> io::Result<Result<(Shared, Bitmap, Vec<(u32, u16)>), Refusal>> {
        let mut head = [0; HELLO];
        reader.read_exact(&mut head).await?;
        let Some(hello) = Hello::parse(&head) else { return Ok(Err(Refusal::Malformed)) };
        let shared = self.images.read().unwrap_or_else(PoisonError::into_inner).get(&hello.image).cloned();
        // Digests compare in constant time.
        let Some(shared) = shared.filter(|s| s.proof == blake3::Hash::from_bytes(hello.proof)) else {
            return Ok(Err(Refusal::Unknown));
        };
        if hello.frames != shared.holdings.frames() {
            return Ok(Err(Refusal::Malformed));
        }
        let mut tail = vec![0; hello.tail()];
        reader.read_exact(&mut tail).await?;
        Ok(match hello.parse_tail(&tail) {
            Some((skip, parts)) => Ok((shared, skip, parts)),
            None => Err(Refusal::Malformed),
        })
    }
}

/// A place among the connections, given back when it is dropped.
struct Seat {
    server: Arc<Server>,
    address: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut present = self.server.present();
        match present.get_mut(&self.address) {
            Some(n) if *n > 1 => *n -= 1,
            _ => drop(present.remove(&self.address)),
        }
    }
}

fn set_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT)
}

/// What the successor does not want, or has been sent already.
type Skip = Mutex<Bitmap>;

fn lock(skip: &Skip) -> MutexGuard<'_, Bitmap> {
    skip.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes what is no longer wanted, until the successor hangs up. A frame that has begun goes on: a few groups cost less
/// than agreeing on the end.
async fn listen(reader: &mut OwnedReadHalf, skip: &Skip) -> io::Result<()> {
    loop {
        match reader.read_u32_le().await {
            Ok(frame) => lock(skip).set(frame, true),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(e) => return Err(e),
        }
    }
}

/// A frame that is being sent.
struct Open {
    frame: u32,
    next: u16,
    begun: bool,
    urgency: Urgency,
    from: From,
}

/// What is sent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// A frame that the successor has a part of: until it is whole, it takes memory there and a place among those that may be
    /// under way.
    Part,
    Arriving,
    Held,
}

enum From {
    Arriving(Arc<Arriving>),
    Whole { frame: u32, bytes: Bytes, values: Values },
}

impl Open {
    fn new(parts: &mut HashMap<u32, u16>, holdings: &Holdings, from: From) -> Self {
        let (frame, urgency) = match &from {
            From::Arriving(arriving) => (arriving.frame(), Urgency::Arriving),
            From::Whole { frame, .. } => (*frame, Urgency::Held),
        };
        let mut open = Self { frame, next: 0, begun: false, urgency, from };
        // A part of the last group's number or more is nonsense: then it gets the whole frame.
        if let Some(have) = parts.remove(&frame).filter(|have| *have < open.count(holdings)) {
            (open.next, open.urgency) = (have, Urgency::Part);
        }
        open
    }

    fn count(&self, holdings: &Holdings) -> u16 {
        holdings.chunk(self.frame).map_or(0, |c| group::count(c.length))
    }

    /// The next group, if it is there.
    fn ready(&self) -> Option<Bytes> {
        match &self.from {
            From::Arriving(arriving) => arriving.group(self.next).cloned(),
            From::Whole { bytes, .. } => {
                let len = u32::try_from(bytes.len()).ok()?;
                Some(bytes.slice(group::range(len, self.next)?))
            }
        }
    }

    fn values(&self) -> &Values {
        match &self.from {
            From::Arriving(arriving) => arriving.values(),
            From::Whole { values, .. } => values,
        }
    }
}

/// A frame on its way out of the keep.
type Loading = JoinHandle<Option<(Bytes, Values)>>;

/// One stream of frames to one successor.
struct Feed<'a> {
    server: &'a Server,
    holdings: &'a Arc<Holdings>,
    writer: OwnedWriteHalf,
    skip: &'a Skip,
    /// What it has of frames that are not whole there.
    parts: HashMap<u32, u16>,
    cursor: Cursor,
    open: VecDeque<Open>,
    loading: Option<(u32, Loading)>,
    changed: watch::Receiver<()>,
    last: Instant,
    sent: u64,
}

impl<'a> Feed<'a> {
    fn new(
        server: &'a Server,
        holdings: &'a Arc<Holdings>,
        writer: OwnedWriteHalf,
        skip: &'a Skip,
        parts: &[(u32, u16)],
    ) -> Self {
        Self {
            server,
            holdings,
            writer,
            skip,
            parts: parts.iter().copied().collect(),
            cursor: holdings.cursor(),
            open: VecDeque::new(),
            loading: None,
            changed: holdings.watch(),
            last: Instant::now(),
            sent: 0,
        }
    }

    async fn run(&mut self) -> io::Result<()> {
        self.say_alive().await?;
        loop {
            self.changed.mark_unchanged();
            self.top_up();
            let ready = self.open.iter().enumerate().filter_map(|(at, open)| Some((open.urgency, at, open.ready()?)));
            match ready.min_by_key(|(urgency, at, _)| (*urgency, *at)) {
                Some((_, at, bytes)) => self.send(at, bytes).await?,
                None => self.wait().await?,
            }
        }
    }

    /// Takes frames, as many as may be under way.
    fn top_up(&mut self) {
        let mut skip = lock(self.skip);
        while self.open.len() + usize::from(self.loading.is_some()) < OPEN_MAX {
            if let Some(arriving) = self.holdings.arriving(&skip) {
                skip.set(arriving.frame(), true);
                self.open.push_back(Open::new(&mut self.parts, self.holdings, From::Arriving(arriving)));
                continue;
            }
            let whole = self.open.iter().filter(|o| matches!(o.from, From::Whole { .. })).count();
            if self.loading.is_some() || whole >= AHEAD {
                return;
            }
            let part = self.parts.keys().copied().find(|f| !skip.get(*f) && self.holdings.holds(*f));
            let Some(frame) = part.or_else(|| self.holdings.newest(&mut self.cursor, &skip)) else { return };
            skip.set(frame, true);
            let holdings = Arc::clone(self.holdings);
            self.loading = Some((frame, tokio::spawn(async move { holdings.load(frame).await })));
        }
    }

    async fn send(&mut self, at: usize, bytes: Bytes) -> io::Result<()> {
        self.wait_for_turn(bytes.len()).await?;
        let holdings = self.holdings;
        let Some(open) = self.open.get_mut(at) else { return Ok(()) };
        let mut heads = Vec::with_capacity(2 * HEAD);
        let mut list = Bytes::new();
        if !open.begun {
            open.begun = true;
            heads.extend_from_slice(&wire::begin(open.frame, open.next));
            list = open.values().list().clone();
        }
        let head = wire::group(open.frame, open.next);
        open.next += 1;
        if open.next == open.count(holdings) {
            self.open.remove(at);
        }
        let len = bytes.len() as u64;
        let mut message = Bytes::from(heads).chain(list).chain(&head[..]).chain(bytes);
        let written = timeout(self.server.limits.stuck, self.writer.write_all_buf(&mut message)).await;
        written.map_err(|_| io::ErrorKind::TimedOut)??;
        self.last = Instant::now();
        self.sent += len;
        self.server.counted.sent.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }

    /// Keeps to the limit on bytes a second, and says so meanwhile.
    async fn wait_for_turn(&mut self, bytes: usize) -> io::Result<()> {
        let until = Instant::now() + self.server.throttle.reserve(bytes);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            sleep(left.min(KEEP_ALIVE)).await;
            if self.last.elapsed() >= KEEP_ALIVE {
                self.say_alive().await?;
            }
        }
    }

    /// Until there is something new, or it is time to say that this machine is still there.
    async fn wait(&mut self) -> io::Result<()> {
        let silent = tokio::time::Instant::from_std(self.last + KEEP_ALIVE);
        let loaded = async {
            match &mut self.loading {
                Some((frame, task)) => (*frame, task.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            (frame, loaded) = loaded => {
                self.loading = None;
                if let Ok(Some((bytes, values))) = loaded {
                    let from = From::Whole { frame, bytes, values };
                    self.open.push_back(Open::new(&mut self.parts, self.holdings, from));
                }
            }
            changed = self.changed.changed() => changed.map_err(|_| io::ErrorKind::BrokenPipe)?,
            () = sleep_until(silent) => self.say_alive().await?,
        }
        Ok(())
    }

    async fn say_alive(&mut self) -> io::Result<()> {
        let (held, _) = self.holdings.held();
        let under_way = self.open.iter().filter(|o| o.ready().is_some()).count() + usize::from(self.loading.is_some());
        let pending = self.holdings.pending(&lock(self.skip)) + under_way as u32;
        let alive = wire::alive(held, pending, self.holdings.is_complete());
        let written = timeout(self.server.limits.stuck, self.writer.write_all(&alive)).await;
        written.map_err(|_| io::ErrorKind::TimedOut)??;
        self.last = Instant::now();
        Ok(())
    }
}
