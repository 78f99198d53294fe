//! The side that follows: fetches frames from the predecessors of the plan and, where they fail, over HTTP, hands them to
//! the sink, and lets successors have them while they arrive.
//!
//! ```text
//! plan ─► crew ─ follows ─► predecessor ─ groups ─┐
//!          │                standby, on trial ────┼─► Holdings ─► complete frames ─► sink
//!          └─ when nobody delivers ─► HTTP ───────┘       └─► successors (serve)
//! ```

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast, mpsc, watch};

use super::crew::Crew;
use super::holdings::{Holdings, Whole};
use super::wire::{self, Bitmap};
use super::{Frame, Source, Wanted};
use crate::error::{Error, Result};
use crate::link::{SwarmPlan, SwarmReport, SwarmSource};

/// Frames that wait for the sink in memory. Others are taken from the keep when their turn comes, and where that has no
/// room, fetching waits.
const WAITING: usize = 4;
/// News of frames that came from elsewhere; who misses some is sent a frame in vain.
const SKIPS: usize = 64;
/// Sources that are told apart in reports; the plan names a few.
const SOURCES: usize = 256;

/// How long is waited for what.
#[derive(Debug, Clone)]
pub struct RelayLimits {
    /// For a connection.
    pub connect: Duration,
    /// For any byte of a peer that is connected; it sends some four times a second.
    pub silence: Duration,
    /// For a group of a peer that says that it has some, and for each message.
    pub stall: Duration,
    /// With a peer that is there and has nothing new itself: then others are tried beside it.
    pub probe: Duration,
    /// Without any peer: then HTTP is asked.
    pub fallback: Duration,
    /// With peers that have nothing new: then HTTP is asked. Up to half as long again, differently on each machine.
    pub starved: Duration,
    /// When no more than this is missing and it takes twice as long as it should, it is asked for elsewhere too.
    pub end_game: u64,
    /// Without any group from anywhere: then it is given up.
    pub patience: Duration,
    /// The same where HTTP refuses, which will hardly pass.
    pub refused: Duration,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            silence: Duration::from_secs(1),
            stall: Duration::from_secs(2),
            probe: Duration::from_secs(3),
            fallback: Duration::from_secs(3),
            starved: Duration::from_secs(15),
            end_game: 8 << 20,
            patience: Duration::from_secs(900),
            refused: Duration::from_secs(30),
        }
    }
}

/// Frames over HTTP, and the address under which they are counted.
pub struct Fallback {
    pub source: Box<dyn Source>,
    pub address: SocketAddr,
}

pub(super) type Note = dyn Fn(Option<String>) + Send + Sync;

pub struct Relay {
    shared: Arc<Shared>,
    plan: watch::Receiver<SwarmPlan>,
    fallback: Option<Arc<Fallback>>,
    /// Told what is being waited for, and `None` when it goes on.
    note: Box<Note>,
}

/// What the parts of a relay have in common.
pub(super) struct Shared {
    pub holdings: Arc<Holdings>,
    pub limits: RelayLimits,
    /// Frames that came from a peer (`Some`) or over HTTP, for those that might send them too.
    pub skips: broadcast::Sender<(u32, Option<SocketAddr>)>,
    /// Something happened that the crew should look at.
    pub wake: Notify,
    plan: watch::Receiver<SwarmPlan>,
    room: Arc<Semaphore>,
    state: Mutex<State>,
}

struct State {
    /// Frames that are to be had and did not come yet, and how much that is.
    lacking: Bitmap,
    missing: Missing,
    /// Where complete frames are told, while somebody fetches.
    done: Option<mpsc::UnboundedSender<Done>>,
    from: HashMap<SocketAddr, u64>,
    garbage: Vec<SocketAddr>,
    moved: Instant,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Missing {
    pub frames: u32,
    pub bytes: u64,
}

/// A frame that is complete.
struct Done {
    frame: u32,
    /// Its bytes and the right to hold them in memory; without them it is to be had from the keep.
    bytes: Option<(Bytes, OwnedSemaphorePermit)>,
}

impl Relay {
    /// `skip` says which chunks will never be asked for, because they are on the disk already. All others are fetched as
    /// they come, whatever is asked for first.
    pub fn new(
        holdings: Arc<Holdings>,
        plan: watch::Receiver<SwarmPlan>,
        fallback: Option<Fallback>,
        skip: impl Fn(u32) -> bool,
        note: impl Fn(Option<String>) + Send + Sync + 'static,
        limits: RelayLimits,
    ) -> Self {
        let count = holdings.frames();
        let mut state = State {
            lacking: Bitmap::new(count, false),
            missing: Missing::default(),
            done: None,
            from: HashMap::new(),
            garbage: Vec::new(),
            moved: Instant::now(),
        };
        for (frame, chunk) in (0..).zip(&holdings.manifest().chunks) {
            state.set_lacking(frame, chunk.length, !skip(chunk.index) && !holdings.holds(frame));
        }
        let shared = Shared {
            holdings,
            limits,
            skips: broadcast::channel(SKIPS).0,
            wake: Notify::new(),
            plan: plan.clone(),
            room: Arc::new(Semaphore::new(WAITING)),
            state: Mutex::new(state),
        };
        Self { shared: Arc::new(shared), plan, fallback: fallback.map(Arc::new), note: Box::new(note) }
    }

    /// Where this machine is, but for its seat. Garbage peers are in one report only.
    pub fn report(&self, port: u16, leaving: bool) -> SwarmReport {
        let (frames, bytes) = self.shared.holdings.held();
        let starved = self.shared.starved();
        let mut state = self.shared.state();
        let from = state.from.iter().map(|(address, bytes)| SwarmSource { address: *address, bytes: *bytes });
        SwarmReport {
            image: self.shared.holdings.image(),
            port,
            frames,
            bytes,
            lacking: state.missing.frames,
            from: from.collect(),
            garbage: std::mem::take(&mut state.garbage),
            starved_ms: starved.as_millis().try_into().unwrap_or(u32::MAX),
            leaving,
            seat: None,
        }
    }

    /// What came from whom since the beginning.
    pub fn sources(&self) -> Vec<SwarmSource> {
        let state = self.shared.state();
        state.from.iter().map(|(address, bytes)| SwarmSource { address: *address, bytes: *bytes }).collect()
    }

    async fn deliver(
        &self,
        wanted: &[Wanted],
        mut done: mpsc::UnboundedReceiver<Done>,
        sink: &mpsc::Sender<Frame>,
    ) -> Result<()> {
        let holdings = &self.shared.holdings;
        let mut left = BTreeSet::new();
        for wanted in wanted {
            left.insert(holdings.frame_of(wanted.index).ok_or_else(|| {
                Error::internal("relay.chunk", format!("chunk {} is not one of the image", wanted.index))
            })?);
        }
        while !left.is_empty() {
            // The sender lives in the shared state for as long as this runs.
            let Some(Done { frame, bytes }) = done.recv().await else { return Ok(()) };
            if !left.contains(&frame) {
                continue;
            }
            let (bytes, _permit) = match bytes {
                Some((bytes, permit)) => (bytes, Some(permit)),
                None => match holdings.get(frame).await {
                    Some(bytes) => (bytes, None),
                    None => {
                        self.shared.want_again(frame);
                        continue;
                    }
                },
            };
            let Some(index) = holdings.chunk(frame).map(|c| c.index) else { continue };
            if sink.send(Frame { index, bytes }).await.is_err() {
                return Ok(());
            }
            left.remove(&frame);
        }
        Ok(())
    }
}

impl Source for Relay {
    /// The frames that come in have been verified. One fetch at a time.
    fn fetch<'a>(&'a self, wanted: &'a [Wanted], sink: mpsc::Sender<Frame>) -> BoxFuture<'a, Result<()>> {
        async move {
            let (done, dones) = mpsc::unbounded_channel();
            let _session = self.shared.start(wanted, done)?;
            let mut crew = Crew::new(&self.shared, self.plan.clone(), self.fallback.as_ref(), &self.note);
            tokio::select! {
                delivered = self.deliver(wanted, dones, &sink) => delivered,
                error = crew.run() => Err(error),
                () = sink.closed() => Ok(()),
            }
        }
        .boxed()
    }
}

/// Ends a fetch however it is left.
struct Session<'a>(&'a Shared);

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.0.state().done = None;
        self.0.holdings.set_complete(self.0.is_all_there());
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is held already is told at once; what is not becomes a goal.
    fn start(&self, wanted: &[Wanted], done: mpsc::UnboundedSender<Done>) -> Result<Session<'_>> {
        let mut state = self.state();
        if state.done.is_some() {
            return Err(Error::internal("relay.busy", "the image is being fetched already"));
        }
        for frame in wanted.iter().filter_map(|w| self.holdings.frame_of(w.index)) {
            let held = self.holdings.holds(frame);
            state.set_lacking(frame, self.length(frame), !held);
            if held {
                let _ = done.send(Done { frame, bytes: None });
            }
        }
        state.done = Some(done);
        state.moved = Instant::now();
        drop(state);
        self.holdings.set_complete(self.is_all_there());
        Ok(Session(self))
    }

    /// The frames to be had that did not come yet.
    pub fn lacking(&self) -> Bitmap {
        self.state().lacking.clone()
    }

    pub fn missing(&self) -> Missing {
        self.state().missing
    }

    pub fn is_all_there(&self) -> bool {
        self.missing().frames == 0
    }

    fn length(&self, frame: u32) -> u32 {
        self.holdings.chunk(frame).map_or(0, |c| c.length)
    }

    pub fn proof(&self) -> blake3::Hash {
        wire::proof(&self.plan.borrow().key, &self.holdings.image())
    }

    /// A group came that was missing.
    pub fn moved(&self) {
        self.state().moved = Instant::now();
    }

    /// Since when nothing came though something is missing.
    pub fn starved(&self) -> Duration {
        let state = self.state();
        match state.missing.frames {
            0 => Duration::ZERO,
            _ => state.moved.elapsed(),
        }
    }

    pub fn count(&self, from: SocketAddr, bytes: u64) {
        let mut state = self.state();
        if state.from.len() < SOURCES || state.from.contains_key(&from) {
            *state.from.entry(from).or_default() += bytes;
        }
    }

    pub fn garbage(&self, peer: SocketAddr) {
        let mut state = self.state();
        if state.garbage.len() < SOURCES && !state.garbage.contains(&peer) {
            state.garbage.push(peer);
        }
    }

    /// Keeps a whole frame and tells the fetch. Without room it waits until the sink has taken what came before.
    pub async fn complete(&self, whole: Whole, from: Option<SocketAddr>) {
        let kept = self.holdings.settle(&whole).await;
        let frame = whole.frame;
        let room = Arc::clone(&self.room);
        let permit = match kept {
            true => room.try_acquire_owned().ok(),
            // The semaphore is never closed.
            false => room.acquire_owned().await.ok(),
        };
        let bytes = permit.map(|permit| (whole.bytes, permit));
        let mut state = self.state();
        state.set_lacking(frame, self.length(frame), false);
        if let Some(done) = &state.done {
            let _ = done.send(Done { frame, bytes });
        }
        drop(state);
        let _ = self.skips.send((frame, from));
        if self.is_all_there() {
            self.holdings.set_complete(true);
            self.wake.notify_one();
        }
    }

    /// A frame that was kept is gone.
    fn want_again(&self, frame: u32) {
        self.state().set_lacking(frame, self.length(frame), true);
        self.holdings.set_complete(false);
        self.wake.notify_one();
    }
}

impl State {
    fn set_lacking(&mut self, frame: u32, length: u32, lacking: bool) {
        if self.lacking.get(frame) == lacking {
            return;
        }
        self.lacking.set(frame, lacking);
        let (frames, bytes) = (&mut self.missing.frames, &mut self.missing.bytes);
        match lacking {
            true => (*frames, *bytes) = (*frames + 1, *bytes + u64::from(length)),
            false => (*frames, *bytes) = (*frames - 1, *bytes - u64::from(length)),
        }
    }
}
