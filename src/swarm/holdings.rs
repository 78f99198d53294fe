//! What one machine has of one image: complete frames, and those that arrive, which can be read group by group meanwhile.
//!
//! ```text
//! predecessor ─ groups ─► Arriving ─ last group ─► Keep
//!                            │                      │
//!                            └─ successors, as it comes ┘ ─ latecomers
//! ```
//!
//! Nothing gets in that does not match the signed manifest. Whoever reads is woken by notification.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;

use super::group::{self, Values};
use super::keep::Keep;
use super::wire::{Bitmap, PARTS_MAX};
use crate::image::{Chunk, Manifest};
use crate::machine::Digest;

/// Frames that are there in part: those under way, and those that a lost connection left.
const ARRIVING_MAX: usize = 24;
const _: () = assert!(ARRIVING_MAX <= PARTS_MAX);

pub struct Holdings {
    image: Digest,
    manifest: Arc<Manifest>,
    keep: Box<dyn Keep>,
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

struct State {
    /// By place in the manifest.
    slots: Vec<Slot>,
    /// The frames in the order in which they began to arrive.
    log: Vec<u32>,
    /// Counts how often `log` was made anew.
    edition: u32,
    arriving: Vec<u32>,
    held: u32,
    held_bytes: u64,
    complete: bool,
}

#[derive(Clone)]
enum Slot {
    Lacking,
    Arriving(Arc<Arriving>),
    Held,
}

/// A frame on its way in.
pub struct Arriving {
    frame: u32,
    values: Values,
    groups: Box<[OnceLock<Bytes>]>,
    have: AtomicU32,
}

impl Arriving {
    fn new(frame: u32, len: u32, values: Values) -> Self {
        let groups = (0..group::count(len)).map(|_| OnceLock::new()).collect();
        Self { frame, values, groups, have: AtomicU32::new(0) }
    }

    pub fn frame(&self) -> u32 {
        self.frame
    }

    pub fn values(&self) -> &Values {
        &self.values
    }

    pub fn count(&self) -> u16 {
        self.groups.len() as u16
    }

    pub fn group(&self, group: u16) -> Option<&Bytes> {
        self.groups.get(usize::from(group))?.get()
    }

    /// How many groups are there without a gap, from the first one on.
    pub fn prefix(&self) -> u16 {
        self.groups.iter().take_while(|g| g.get().is_some()).count() as u16
    }

    /// Whether this was the one that made it whole.
    fn put(&self, group: u16, bytes: Bytes) -> bool {
        let new = self.groups.get(usize::from(group)).is_some_and(|slot| slot.set(bytes).is_ok());
        new && self.have.fetch_add(1, Ordering::AcqRel) as usize + 1 == self.groups.len()
    }

    fn concat(&self) -> Bytes {
        if let [only] = &*self.groups {
            return only.get().cloned().unwrap_or_default();
        }
        let groups = || self.groups.iter().filter_map(OnceLock::get);
        let mut frame = BytesMut::with_capacity(groups().map(Bytes::len).sum());
        groups().for_each(|g| frame.extend_from_slice(g));
        frame.freeze()
    }
}

/// It does not match what was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Garbage;

/// What became of the announcement of a frame.
pub enum Begun {
    Arriving(Arc<Arriving>),
    /// It is there already.
    Known,
    /// Too many are there in part.
    Full,
}

/// A frame that has just become whole; [`Holdings::settle`] takes it.
#[derive(Debug)]
pub struct Whole {
    pub frame: u32,
    pub bytes: Bytes,
}

/// How far a reader has come in the order of arrival: it has done with `floor..top`, older and newer ones are before it.
#[derive(Debug)]
pub struct Cursor {
    edition: u32,
    floor: usize,
    top: usize,
}

impl Holdings {
    /// Nothing is there yet.
    pub fn empty(image: Digest, manifest: Arc<Manifest>, keep: Box<dyn Keep>) -> Self {
        Self::new(image, manifest, keep, false)
    }

    /// All is there: the appliance's own.
    pub fn complete(image: Digest, manifest: Arc<Manifest>, keep: Box<dyn Keep>) -> Self {
        Self::new(image, manifest, keep, true)
    }

    fn new(image: Digest, manifest: Arc<Manifest>, keep: Box<dyn Keep>, all: bool) -> Self {
        let count = manifest.chunks.len();
        let state = State {
            slots: vec![if all { Slot::Held } else { Slot::Lacking }; count],
            // The first frame is the newest, so that the whole image goes out from its beginning.
            log: if all { (0..count as u32).rev().collect() } else { Vec::new() },
            edition: 0,
            arriving: Vec::new(),
            held: if all { count as u32 } else { 0 },
            held_bytes: if all { manifest.chunks.iter().map(|c| u64::from(c.length)).sum() } else { 0 },
            complete: all,
        };
        Self { image, manifest, keep, state: Mutex::new(state), changed: watch::channel(()).0 }
    }

    pub fn image(&self) -> Digest {
        self.image
    }

    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Number of frames of the image.
    pub fn frames(&self) -> u32 {
        self.manifest.chunks.len() as u32
    }

    pub fn chunk(&self, frame: u32) -> Option<&Chunk> {
        self.manifest.chunks.get(frame as usize)
    }

    /// The frame of the chunk with this number on the disk.
    pub fn frame_of(&self, index: u32) -> Option<u32> {
        self.manifest.chunks.binary_search_by_key(&index, |c| c.index).ok().map(|at| at as u32)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whenever there is something new to read.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Complete frames and their bytes.
    pub fn held(&self) -> (u32, u64) {
        let state = self.state();
        (state.held, state.held_bytes)
    }

    pub fn holds(&self, frame: u32) -> bool {
        matches!(self.state().slots.get(frame as usize), Some(Slot::Held))
    }

    /// Nothing more will come: successors that lack something have to look elsewhere for it.
    pub fn set_complete(&self, complete: bool) {
        self.state().complete = complete;
        self.changed.send_replace(());
    }

    pub fn is_complete(&self) -> bool {
        self.state().complete
    }

    /// Frames that are there in part, with the number of their first groups.
    pub fn parts(&self) -> Vec<(u32, u16)> {
        let state = self.state();
        let part = |frame: &u32| match state.slots.get(*frame as usize) {
            Some(Slot::Arriving(a)) => Some((*frame, a.prefix())),
            _ => None,
        };
        state.arriving.iter().filter_map(part).collect()
    }

    /// A frame is announced with the list of its groups' chaining values.
    pub fn begin(&self, frame: u32, list: Bytes) -> Result<Begun, Garbage> {
        let chunk = self.chunk(frame).ok_or(Garbage)?;
        let values = Values::signed(list, chunk.length, chunk.frame).ok_or(Garbage)?;
        let arriving = Arriving::new(frame, chunk.length, values);
        Ok(self.enter(arriving))
    }

    fn enter(&self, arriving: Arriving) -> Begun {
        let frame = arriving.frame;
        let mut state = self.state();
        match state.slots.get(frame as usize) {
            Some(Slot::Arriving(a)) => return Begun::Arriving(Arc::clone(a)),
            Some(Slot::Lacking) => {}
            Some(Slot::Held) | None => return Begun::Known,
        }
        if state.arriving.len() >= ARRIVING_MAX && !state.evict() {
            return Begun::Full;
        }
        let arriving = Arc::new(arriving);
        state.set(frame, Slot::Arriving(Arc::clone(&arriving)));
        state.arriving.push(frame);
        state.append(frame);
        drop(state);
        self.changed.send_replace(());
        Begun::Arriving(arriving)
    }

    /// A group of a frame. The one that makes it whole gets the frame, to give it to [`Self::settle`].
    pub fn put(&self, arriving: &Arriving, group: u16, bytes: Bytes) -> Result<Option<Whole>, Garbage> {
        if arriving.group(group).is_some() {
            return Ok(None);
        }
        if !arriving.values.has(group, &bytes) {
            return Err(Garbage);
        }
        let last = arriving.put(group, bytes);
        self.changed.send_replace(());
        Ok(last.then(|| Whole { frame: arriving.frame, bytes: arriving.concat() }))
    }

    /// A frame that came in one piece. `None`: somebody else makes it whole, or it is there.
    pub fn put_frame(&self, frame: u32, bytes: &Bytes) -> Result<Option<Whole>, Garbage> {
        let chunk = self.chunk(frame).ok_or(Garbage)?;
        let values = Values::of(bytes, chunk.frame).ok_or(Garbage)?;
        let arriving = match self.enter(Arriving::new(frame, chunk.length, values)) {
            Begun::Arriving(arriving) => arriving,
            Begun::Known => return Ok(None),
            // Verified all the same: it can be kept, but is not passed on while it arrives.
            Begun::Full => return Ok(Some(Whole { frame, bytes: bytes.clone() })),
        };
        let mut last = false;
        for group in 0..arriving.count() {
            if let Some(range) = group::range(chunk.length, group) {
                last |= arriving.put(group, bytes.slice(range));
            }
        }
        self.changed.send_replace(());
        Ok(last.then(|| Whole { frame, bytes: bytes.clone() }))
    }

    /// Keeps a frame that is whole, if there is room. When this is given up half way, the frame lacks again.
    pub async fn settle(&self, whole: &Whole) -> bool {
        let Some(chunk) = self.chunk(whole.frame) else { return false };
        let mut settling = Settling { holdings: self, frame: whole.frame, kept: false };
        settling.kept = self.keep.put(chunk, whole.bytes.clone()).await;
        settling.kept
    }

    /// The bytes of a frame that is held, as the keep gives them.
    pub async fn get(&self, frame: u32) -> Option<Bytes> {
        let found = self.keep.get(self.chunk(frame)?).await;
        if found.is_none() {
            self.lost(frame);
        }
        found
    }

    /// A frame that is held, verified again, to be passed on.
    pub async fn load(&self, frame: u32) -> Option<(Bytes, Values)> {
        let bytes = self.get(frame).await?;
        match Values::of(&bytes, self.chunk(frame)?.frame) {
            Some(values) => Some((bytes, values)),
            None => {
                tracing::error!(image = %self.image.short(), frame, "a kept frame is damaged and is not passed on");
                self.lost(frame);
                None
            }
        }
    }

    fn lost(&self, frame: u32) {
        let mut state = self.state();
        if matches!(state.slots.get(frame as usize), Some(Slot::Held)) {
            state.set(frame, Slot::Lacking);
            state.held -= 1;
            state.held_bytes -= self.chunk(frame).map_or(0, |c| u64::from(c.length));
        }
    }

    /// For a reader that begins now.
    pub fn cursor(&self) -> Cursor {
        self.state().cursor()
    }

    /// A frame that arrives now and is not in `skip`; of several, the one that began first.
    pub fn arriving(&self, skip: &Bitmap) -> Option<Arc<Arriving>> {
        let state = self.state();
        let slots = state.arriving.iter().filter(|f| !skip.get(**f)).map(|f| state.slots.get(*f as usize));
        slots.flatten().find_map(|slot| match slot {
            Slot::Arriving(arriving) => Some(Arc::clone(arriving)),
            _ => None,
        })
    }

    /// The newest held frame that is not in `skip`, into which the reader puts what it takes.
    pub fn newest(&self, cursor: &mut Cursor, skip: &Bitmap) -> Option<u32> {
        let state = self.state();
        if cursor.edition != state.edition {
            *cursor = state.cursor();
        }
        let slot = |at: usize| state.log.get(at).and_then(|frame| Some((*frame, state.slots.get(*frame as usize)?)));
        // One that is lost goes to the end of the order when it comes again.
        let is_done = |at| slot(at).is_none_or(|(frame, slot)| skip.get(frame) || matches!(slot, Slot::Lacking));
        let held =
            |at| slot(at).filter(|(f, slot)| !skip.get(*f) && matches!(slot, Slot::Held)).map(|(frame, _)| frame);
        while cursor.top < state.log.len() && is_done(cursor.top) {
            cursor.top += 1;
        }
        while cursor.floor > 0 && is_done(cursor.floor - 1) {
            cursor.floor -= 1;
        }
        (cursor.top..state.log.len()).rev().chain((0..cursor.floor).rev()).find_map(held)
    }

    /// How many held frames are not in `skip`.
    pub fn pending(&self, skip: &Bitmap) -> u32 {
        let state = self.state();
        (0..).zip(&state.slots).filter(|(frame, slot)| matches!(slot, Slot::Held) && !skip.get(*frame)).count() as u32
    }
}

impl State {
    fn cursor(&self) -> Cursor {
        Cursor { edition: self.edition, floor: self.log.len(), top: self.log.len() }
    }

    fn set(&mut self, frame: u32, slot: Slot) {
        if let Some(place) = self.slots.get_mut(frame as usize) {
            *place = slot;
        }
    }

    /// A frame that was lost is there twice. When that becomes much, the order is made anew and all readers start again,
    /// which costs them little: they know what they have read.
    fn append(&mut self, frame: u32) {
        if self.log.len() > 2 * self.slots.len() + 64 {
            let mut seen = Bitmap::new(self.slots.len() as u32, false);
            let slots = &self.slots;
            self.log.retain(|f| {
                let again = seen.get(*f);
                seen.set(*f, true);
                !again && !matches!(slots.get(*f as usize), None | Some(Slot::Lacking))
            });
            self.edition += 1;
        }
        self.log.push(frame);
    }

    /// Gives up a frame that is there in part and that nobody fills or reads.
    fn evict(&mut self) -> bool {
        let idle = |frame: &u32| match self.slots.get(*frame as usize) {
            Some(Slot::Arriving(a)) => Arc::strong_count(a) == 1,
            _ => true,
        };
        let Some(at) = self.arriving.iter().position(idle) else { return false };
        let frame = self.arriving.remove(at);
        self.set(frame, Slot::Lacking);
        true
    }
}

struct Settling<'a> {
    holdings: &'a Holdings,
    frame: u32,
    kept: bool,
}

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        let mut state = self.holdings.state();
        state.arriving.retain(|f| *f != self.frame);
        let readable = match state.slots.get(self.frame as usize) {
            Some(Slot::Arriving(_)) => true,
            Some(Slot::Lacking) => false,
            Some(Slot::Held) | None => return,
        };
        if !self.kept {
            return state.set(self.frame, Slot::Lacking);
        }
        state.set(self.frame, Slot::Held);
        state.held += 1;
        state.held_bytes += self.holdings.chunk(self.frame).map_or(0, |c| u64::from(c.length));
        // One that could not be read while it arrived is news to the readers.
        if !readable {
            state.append(self.frame);
            drop(state);
            self.holdings.changed.send_replace(());
        }
    }
}
