//! From frames to the disk: check, decompress on all cores, write directly, with a fixed amount of memory.
//!
//! ```text
//! source ─ frames ─► workers: frame hash, then zstd into a buffer ─ full buffers ─► writers ─► disk
//!            (few)       ▲                                                            │ │
//!                        └───────────────────── empty buffers ◄───────────────────────┘ └─► journal, now and then
//! ```
//!
//! A frame that does not match its signed hash never reaches the disk; it is fetched again, twice at most.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::journal::Journal;
use super::unpack::Unpacker;
use crate::agent::block::{Buffer, Device};
use crate::agent::blocking;
use crate::agent::progress::Meter;
use crate::error::{Error, Kind, OrFail, Result};
use crate::image::{Chunk, Manifest, chunk};
use crate::swarm::{Frame, Source, Wanted};

/// How often a frame is asked for when it comes wrong.
const ROUNDS: usize = 3;
/// Larger chunks would need more memory than a RAM system has to spare.
pub const CHUNK_MAX: u32 = 8 << 20;
/// All memory for frames and chunks together.
const MEMORY: usize = 112 << 20;
/// Decompression is faster than any disk with fewer threads than this.
const WORKERS_MAX: usize = 8;
const WRITERS: usize = 2;
/// Frames between source and workers.
const QUEUE: usize = 4;
/// Frames that the source holds while it reads them.
const IN_SOURCE: usize = 2;

/// The journal is brought up to date this often: a power cut costs at most what was written since.
const JOURNAL: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Written {
    pub written_bytes: u64,
    pub fetched_bytes: u64,
    pub seconds: f64,
}

/// Writes all stored chunks but the kept ones, given by their positions in the manifest, and has the disk confirm them.
/// The first chunk, with boot loader and partition table, comes last and after that confirmation: a disk that was left
/// half written does not start.
pub async fn write(
    device: &Arc<Device>,
    image: &Arc<Manifest>,
    kept: &BTreeSet<usize>,
    journal: Option<&Arc<Mutex<Journal>>>,
    source: &dyn Source,
    meter: &Meter,
) -> Result<Written> {
    let start = Instant::now();
    let to_write = image.chunks.iter().enumerate().filter(|(position, _)| !kept.contains(position));
    let (first, rest): (Vec<_>, Vec<_>) = to_write.partition(|(_, c)| c.index == 0);
    let written_bytes = first.iter().chain(&rest).map(|(_, c)| u64::from(c.raw_length)).sum();
    meter.step("writing", written_bytes);
    let mut fetched_bytes = 0;
    for (chunks, journal) in [(rest, journal), (first, None)] {
        let crew = Arc::new(Crew::new(device, image, chunks, journal, meter));
        for _ in 0..ROUNDS {
            let wanted: Vec<Wanted> = crew.missing().values().map(|(_, chunk)| wanted(chunk)).collect();
            if wanted.is_empty() {
                break;
            }
            crew.round(&wanted, source).await?;
        }
        if let Some((_, chunk)) = crew.missing().values().next() {
            let what = format!("chunk {} of the image is not what was signed", chunk.index);
            return Err(Error::refused("image.chunk", what).hint("see `rackline image verify` on the appliance"));
        }
        // The journal's last entry has had the disk confirm it all.
        if journal.is_none() {
            let confirmed = Arc::clone(device);
            blocking(move || confirmed.sync()).await?;
        }
        fetched_bytes += crew.fetched.load(Ordering::Relaxed);
    }
    Ok(Written { written_bytes, fetched_bytes, seconds: start.elapsed().as_secs_f64() })
}

fn wanted(chunk: &Chunk) -> Wanted {
    Wanted { index: chunk.index, offset: chunk.offset, len: chunk.length }
}

/// What the threads of a write share.
struct Crew {
    device: Arc<Device>,
    image: Arc<Manifest>,
    meter: Meter,
    /// Chunks that are not on the disk yet by their number, with their position in the manifest.
    missing: Mutex<BTreeMap<u32, (usize, Chunk)>>,
    journal: Option<Arc<Mutex<Journal>>>,
    /// Positions of chunks that were written and are not in the journal yet.
    unconfirmed: Mutex<Vec<usize>>,
    fetched: AtomicU64,
    /// The first error ends it for all.
    failed: Mutex<Option<Error>>,
}

/// A buffer on its way to the disk.
struct Full {
    position: usize,
    chunk: Chunk,
    buffer: Buffer,
}

impl Crew {
    fn new(
        device: &Arc<Device>,
        image: &Arc<Manifest>,
        chunks: Vec<(usize, &Chunk)>,
        journal: Option<&Arc<Mutex<Journal>>>,
        meter: &Meter,
    ) -> Self {
        Self {
            device: Arc::clone(device),
            image: Arc::clone(image),
            meter: meter.clone(),
            missing: Mutex::new(chunks.into_iter().map(|(position, c)| (c.index, (position, c.clone()))).collect()),
            journal: journal.cloned(),
            unconfirmed: Mutex::default(),
            fetched: AtomicU64::new(0),
            failed: Mutex::new(None),
        }
    }

    fn missing(&self) -> MutexGuard<'_, BTreeMap<u32, (usize, Chunk)>> {
        lock(&self.missing)
    }

    /// One pass over `wanted`. What came wrong stays missing.
    async fn round(self: &Arc<Self>, wanted: &[Wanted], source: &dyn Source) -> Result<()> {
        let (sink, frames) = mpsc::channel(QUEUE);
        let stop = CancellationToken::new();
        let crew = Arc::clone(self);
        let work = {
            let stop = stop.clone();
            tokio::task::spawn_blocking(move || crew.work(frames, &stop))
        };
        // Leaving the fetch drops its sink, and that ends the workers.
        let fetched = tokio::select! {
            fetched = source.fetch(wanted, sink) => fetched,
            () = stop.cancelled() => Ok(()),
        };
        work.await.or_fail(Kind::Internal, "agent.task", || "writing has failed")?;
        match lock(&self.failed).take() {
            Some(error) => Err(error),
            None => fetched,
        }
    }

    fn work(&self, frames: mpsc::Receiver<Frame>, stop: &CancellationToken) {
        let chunk = self.device.round_up(self.image.chunk_size as usize);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = workers(cores, chunk);
        let (full, to_write) = sync_channel::<Full>(1);
        let (empty, buffers) = sync_channel::<Buffer>(workers + WRITERS + 1);
        for _ in 0..workers + WRITERS {
            // The channel has room for all of them.
            let _ = empty.send(Buffer::new(chunk));
        }
        let (frames, buffers, to_write) = (Mutex::new(frames), Mutex::new(buffers), Mutex::new(to_write));
        let (frames, buffers, to_write) = (&frames, &buffers, &to_write);
        let (writing, written) = channel::<()>();
        std::thread::scope(|scope| {
            for _ in 0..workers {
                let full = full.clone();
                scope.spawn(move || self.ended(self.unpack(frames, buffers, &full), stop));
            }
            for _ in 0..WRITERS {
                let (empty, writing) = (empty.clone(), writing.clone());
                scope.spawn(move || self.write(to_write, &empty, stop, writing));
            }
            if let Some(journal) = &self.journal {
                scope.spawn(move || self.ended(self.keep_journal(journal, &written), stop));
            }
            // Each end of a channel is now held by threads only: when those of one side leave, the other side does too.
            drop((full, empty, writing));
        });
    }

    fn ended(&self, result: Result<()>, stop: &CancellationToken) {
        if let Err(error) = result {
            lock(&self.failed).get_or_insert(error);
            stop.cancel();
        }
    }

    fn unpack(
        &self,
        frames: &Mutex<mpsc::Receiver<Frame>>,
        buffers: &Mutex<Receiver<Buffer>>,
        full: &SyncSender<Full>,
    ) -> Result<()> {
        let mut unpacker = Unpacker::new()?;
        loop {
            // In a statement of its own: the lock must be free while this frame is worked on.
            let Some(frame) = lock(frames).blocking_recv() else { return Ok(()) };
            self.fetched.fetch_add(frame.bytes.len() as u64, Ordering::Relaxed);
            let Some((position, chunk)) = self.missing().get(&frame.index).cloned() else { continue };
            // What came wrong stays missing, and is asked for in the next round.
            if chunk::verify_frame(&chunk, &frame.bytes).is_err() {
                continue;
            }
            let Ok(mut buffer) = lock(buffers).recv() else { return Ok(()) };
            unpacker.unpack(&chunk, &frame.bytes, &mut buffer)?;
            if full.send(Full { position, chunk, buffer }).is_err() {
                return Ok(());
            }
        }
    }

    /// Until all workers have left. After an error the buffers still go round, so that nobody waits for one. `_writing`
    /// tells the journal's thread that somebody still writes.
    fn write(
        &self,
        to_write: &Mutex<Receiver<Full>>,
        empty: &SyncSender<Buffer>,
        stop: &CancellationToken,
        _writing: Sender<()>,
    ) {
        loop {
            let Ok(mut full) = lock(to_write).recv() else { return };
            if !stop.is_cancelled() {
                self.ended(self.write_chunk(&mut full), stop);
            }
            if empty.send(full.buffer).is_err() {
                return;
            }
        }
    }

    fn write_chunk(&self, Full { position, chunk, buffer }: &mut Full) -> Result<()> {
        let len = chunk.raw_length as usize;
        let whole = self.device.round_up(len);
        buffer[len..whole].fill(0);
        self.device.write_at(&buffer[..whole], chunk.disk_offset)?;
        lock(&self.unconfirmed).push(*position);
        self.missing().remove(&chunk.index);
        self.meter.add(u64::from(chunk.raw_length));
        Ok(())
    }

    /// Until all writers have left, and once more then.
    fn keep_journal(&self, journal: &Mutex<Journal>, writing: &Receiver<()>) -> Result<()> {
        loop {
            let last = writing.recv_timeout(JOURNAL) != Err(RecvTimeoutError::Timeout);
            let batch = std::mem::take(&mut *lock(&self.unconfirmed));
            if !batch.is_empty() {
                lock(journal).confirm(batch)?;
            }
            if last {
                return Ok(());
            }
        }
    }
}

/// As many as there are cores, as far as the memory goes: each holds a frame and a buffer, and so do queue and writers.
fn workers(cores: usize, chunk: usize) -> usize {
    let fixed = QUEUE + IN_SOURCE + WRITERS;
    let room = (MEMORY / chunk.max(1)).saturating_sub(fixed) / 2;
    cores.min(WORKERS_MAX).min(room).max(1)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_on_large_machines_too() {
        for (cores, chunk) in [(1, 4 << 20), (2, 4 << 20), (128, 4 << 20), (128, 1 << 20), (128, 8 << 20)] {
            let workers = workers(cores, chunk);
            let memory = (2 * workers + QUEUE + IN_SOURCE + WRITERS) * chunk;
            assert!(workers >= 1 && memory <= 128 << 20, "{cores} cores, {chunk}: {workers} workers, {memory} bytes");
        }
        assert_eq!(workers(2, 4 << 20), 2);
    }
}
