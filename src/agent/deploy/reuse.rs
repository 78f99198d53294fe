//! What the disk has already, so that neither network nor disk are asked for it again: chunks that an interrupted write
//! has left (the journal lists them), and those of an earlier installation that a newer image still has.
//!
//! Nothing of it is believed: each chunk is read from the disk and compared with its digest. The rest of the disk is
//! cleared, so that afterwards it holds nothing but chunks of this image and zeros.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::journal::{Binding, Journal};
use super::layout::Layout;
use super::seed;
use crate::agent::block::{Buffer, Device};
use crate::agent::console::say;
use crate::agent::progress::Meter;
use crate::agent::{Agent, blocking};
use crate::error::Result;
use crate::image::{Chunk, Manifest, PublicKey, SignedManifest, chunk};
use crate::link::Deploy;
use crate::machine::Digest;

/// Behind the image and at the end of the disk, signatures of an earlier use are zeroed this far.
const EDGE: u64 = 16 << 20;
/// More threads than this only queue up at the disk.
const THREADS_MAX: usize = 8;
/// So many chunks, spread over the image, are read in any case before it is said that reading is not worth it.
const SAMPLES: usize = 16;
/// What a network brings that is not worth waiting for less: 1 Gbit/s, in bytes a second.
const NETWORK: f64 = 117e6;
/// The old image's manifest is a help and no more.
const MANIFEST_PATIENCE: Duration = Duration::from_secs(20);

/// A disk that is ready to be written.
pub struct Prepared {
    pub journal: Journal,
    /// Positions of the chunks that are there already, in the manifest's list.
    pub kept: BTreeSet<usize>,
    pub resumed_bytes: u64,
    pub reused_bytes: u64,
}

/// Finds out what can stay and clears the rest. From here on the disk does not start any more.
pub async fn prepare(
    agent: &Agent,
    order: &Deploy,
    device: &Arc<Device>,
    layout: &Layout,
    image: &Arc<Manifest>,
    meter: &Meter,
) -> Result<Prepared> {
    let chunks = image.chunks.len() as u32;
    let binding = Binding { machine: agent.appliance.machine(), image: order.manifest, chunks };
    let place = layout.journal.clone();
    let (found, installed) = {
        let (device, place) = (Arc::clone(device), place.clone());
        let look = order.reuse;
        blocking(move || {
            let found = Journal::find(&device, place, &binding)?;
            // A disk without a readable table or seed has no installation of ours.
            let installed = if look && found.is_none() { seed::installed(&device).ok().flatten() } else { None };
            Ok((found, installed.map(|i| i.manifest)))
        })
        .await?
    };
    let old = match installed {
        Some(digest) if digest == order.manifest => Some(Arc::clone(image)),
        Some(digest) => manifest_of(agent, digest).await.map(Arc::new),
        None => None,
    };
    let (device, image, meter) = (Arc::clone(device), Arc::clone(image), meter.clone());
    blocking(move || {
        if let Some(journal) = found {
            return resume(&device, &image, journal, &meter);
        }
        let kept = match installed {
            Some(_) => search(&device, &image, old.as_deref(), &meter)?,
            None => BTreeSet::new(),
        };
        clear(&device, &image, &kept, &meter)?;
        let mut journal = Journal::new(&device, place, &binding)?;
        journal.restart(kept.iter().copied())?;
        let reused_bytes = bytes(&image, &kept);
        Ok(Prepared { journal, kept, resumed_bytes: 0, reused_bytes })
    })
    .await
}

/// The manifest of an image that this disk once got, where the appliance still has it and its signature holds.
async fn manifest_of(agent: &Agent, digest: Digest) -> Option<Manifest> {
    let key: PublicKey = agent.options.key.as_ref()?.parse().ok()?;
    let file = tokio::time::timeout(MANIFEST_PATIENCE, agent.appliance.manifest(digest)).await.ok()?.ok()?;
    let signed = SignedManifest::parse(&file).ok().filter(|s| s.digest() == digest)?;
    signed.verify(&[key]).ok()
}

/// A write of this very image to this very machine was interrupted, after the disk had been cleared for it.
fn resume(device: &Device, image: &Manifest, mut journal: Journal, meter: &Meter) -> Result<Prepared> {
    let listed: Vec<Place> = journal.listed().filter_map(|p| Place::own(image, p)).collect();
    let claimed = listed.len();
    meter.step("checking what is already written", listed.iter().map(Place::len).sum());
    let kept = compare(device, image, &listed, None, meter);
    let resumed_bytes = bytes(image, &kept);
    say(format!("an interrupted write is taken up: {} of {claimed} chunks are right", kept.len()));
    unbootable(device, image)?;
    journal.restart(kept.iter().copied())?;
    Ok(Prepared { journal, kept, resumed_bytes, reused_bytes: 0 })
}

/// Chunks of the new image on a disk with an older installation: those at their own place, and, where the old manifest
/// tells of them, those that have moved.
fn search(device: &Device, image: &Manifest, old: Option<&Manifest>, meter: &Meter) -> Result<BTreeSet<usize>> {
    let same = |c: &Chunk| old.is_none_or(|o| o.chunk_at(c.disk_offset).is_some_and(|there| there.raw == c.raw));
    let own = (0..image.chunks.len()).filter_map(|p| Place::own(image, p));
    let places = spread(own.filter(|p| same(p.chunk)).collect());
    meter.step("looking for what can stay", places.iter().map(Place::len).sum());
    let tally = Tally::new();
    let mut kept = compare(device, image, &places, Some(&tally), meter);
    if let Some(old) = old.filter(|_| tally.worth_it()) {
        kept.extend(moved(device, image, old, &kept)?);
    }
    say(format!("{} of {} chunks stay from the earlier installation", kept.len(), image.chunks.len()));
    Ok(kept)
}

/// Copies chunks that the old image had at another place. A place that is itself still read from is not written.
fn moved(device: &Device, image: &Manifest, old: &Manifest, kept: &BTreeSet<usize>) -> Result<Vec<usize>> {
    let there: BTreeMap<[u8; 32], &Chunk> = old.chunks.iter().filter(|c| c.index > 0).map(|c| (c.raw.0, c)).collect();
    let own = (0..image.chunks.len()).filter(|p| !kept.contains(p)).filter_map(|p| Place::own(image, p));
    let moves: Vec<(u64, Place<'_>)> =
        own.filter_map(|p| Some((there.get(&p.chunk.raw.0)?.disk_offset, p))).filter(|(at, p)| *at != p.at).collect();
    let step = u64::from(image.chunk_size);
    let sources: BTreeSet<u64> = moves.iter().flat_map(|(at, p)| [at / step, (at + p.len() - 1) / step]).collect();
    let mut buffer = Buffer::new(device.round_up(image.chunk_size as usize));
    let mut copied = Vec::new();
    unbootable(device, image)?;
    for (at, to) in moves.iter().filter(|(_, to)| !sources.contains(&(to.at / step))) {
        let source = Place { at: *at, ..*to };
        if at + to.len() <= device.size() && source.holds(device, &mut buffer) {
            device.write_at(&buffer[..device.round_up(to.len() as usize)], to.at)?;
            copied.push(to.position);
        }
    }
    Ok(copied)
}

/// What was installed before must not start any more; the image's own first chunk is written last.
fn unbootable(device: &Device, image: &Manifest) -> Result<()> {
    device.zero(0, u64::from(image.chunk_size).min(device.size()))
}

/// So that nothing old shows through: the device may forget all that is not kept, and what must read zero is zeroed for
/// certain, since after a discard a block reads what the device likes.
fn clear(device: &Device, image: &Manifest, kept: &BTreeSet<usize>, meter: &Meter) -> Result<()> {
    meter.step("clearing the disk", 0);
    let size = device.size();
    unbootable(device, image)?;
    for (offset, len) in gaps(image, kept, size) {
        device.discard(offset, len)?;
    }
    unbootable(device, image)?;
    for (offset, len) in image.zero_ranges() {
        device.zero(offset, len)?;
    }
    let behind = image.disk_size;
    device.zero(behind, EDGE)?;
    device.zero(size.saturating_sub(EDGE).max(behind), EDGE)
}

/// Everything but the kept chunks, as (offset, length) in bytes.
fn gaps(image: &Manifest, kept: &BTreeSet<usize>, size: u64) -> Vec<(u64, u64)> {
    let mut gaps = Vec::new();
    let mut at = 0;
    for chunk in kept.iter().filter_map(|p| image.chunks.get(*p)) {
        if chunk.disk_offset > at {
            gaps.push((at, chunk.disk_offset - at));
        }
        at = chunk.disk_offset + u64::from(chunk.raw_length);
    }
    if size > at {
        gaps.push((at, size - at));
    }
    gaps
}

fn bytes(image: &Manifest, kept: &BTreeSet<usize>) -> u64 {
    kept.iter().filter_map(|p| image.chunks.get(*p)).map(|c| u64::from(c.raw_length)).sum()
}

/// A chunk and where on the disk it may be.
#[derive(Clone, Copy)]
struct Place<'a> {
    position: usize,
    chunk: &'a Chunk,
    at: u64,
}

impl<'a> Place<'a> {
    /// Where the image has it. The first chunk is never there already: it comes last.
    fn own(image: &'a Manifest, position: usize) -> Option<Self> {
        let chunk = image.chunks.get(position).filter(|c| c.index > 0)?;
        Some(Self { position, chunk, at: chunk.disk_offset })
    }

    fn len(&self) -> u64 {
        u64::from(self.chunk.raw_length)
    }

    /// A place that cannot be read holds nothing.
    fn holds(&self, device: &Device, buffer: &mut Buffer) -> bool {
        let len = self.chunk.raw_length as usize;
        let read = buffer.get_mut(..device.round_up(len)).is_some_and(|b| device.read_at(b, self.at).is_ok());
        read && chunk::verify_raw(self.chunk, &buffer[..len]).is_ok()
    }
}

/// The positions of those that are where they may be. With a tally it ends as soon as reading is not worth it.
fn compare(
    device: &Device,
    image: &Manifest,
    places: &[Place],
    tally: Option<&Tally>,
    meter: &Meter,
) -> BTreeSet<usize> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(BTreeSet::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    // One more than there are cores: one reads while the others compare.
    std::thread::scope(|scope| {
        for _ in 0..threads + 1 {
            scope.spawn(|| {
                let mut buffer = Buffer::new(device.round_up(image.chunk_size as usize));
                while let Some(place) = places.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let holds = place.holds(device, &mut buffer);
                    if holds {
                        found.lock().unwrap_or_else(PoisonError::into_inner).insert(place.position);
                    }
                    meter.add(place.len());
                    if tally.is_some_and(|t| !t.count(place, holds)) {
                        return;
                    }
                }
            });
        }
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// A few from everywhere first, then all the others in the order of the disk.
fn spread(places: Vec<Place<'_>>) -> Vec<Place<'_>> {
    let every = places.len().div_ceil(SAMPLES).max(1);
    let (samples, rest): (Vec<_>, Vec<_>) = places.into_iter().enumerate().partition(|(i, _)| i.is_multiple_of(every));
    samples.into_iter().chain(rest).map(|(_, place)| place).collect()
}

/// Whether looking pays: reading a chunk that does not fit costs time, one that fits saves writing it, which takes about
/// as long as reading, and its way through the network.
struct Tally {
    start: Instant,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    places: usize,
    read: u64,
    /// Bytes that fit, on the disk and as they travel.
    fits: u64,
    frames: u64,
}

impl Tally {
    fn new() -> Self {
        Self { start: Instant::now(), counts: Mutex::default() }
    }

    /// Whether to go on.
    fn count(&self, place: &Place<'_>, holds: bool) -> bool {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.places += 1;
        counts.read += place.len();
        if holds {
            counts.fits += place.len();
            counts.frames += u64::from(place.chunk.length);
        }
        counts.worth_it(self.start.elapsed())
    }

    fn worth_it(&self) -> bool {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).worth_it(self.start.elapsed())
    }
}

impl Counts {
    fn worth_it(&self, spent: Duration) -> bool {
        let spent = spent.as_secs_f64();
        let writing = spent * self.fits as f64 / self.read.max(1) as f64;
        self.places < SAMPLES || writing + self.frames as f64 / NETWORK >= spent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::chunk::{PackOptions, pack};
    use crate::image::manifest::tests::manifest_of;

    fn image(chunks: usize) -> Manifest {
        let mut disk = vec![0u8; 4096 * chunks];
        disk.iter_mut().step_by(4096).enumerate().for_each(|(i, b)| *b = (i % 4) as u8);
        let options = PackOptions { chunk_size: 4096, level: 1, threads: 1 };
        manifest_of(pack(&disk[..], disk.len() as u64, Vec::new(), options, &|_| {}).unwrap())
    }

    #[test]
    fn what_is_kept_is_never_discarded() {
        // Every fourth chunk is zero and not listed: positions 0, 1, 2 … are chunks 1, 2, 3, 5, 6, 7, 9 …
        let image = image(12);
        let gaps = |kept: &[usize]| gaps(&image, &kept.iter().copied().collect(), 20 * 4096);
        assert_eq!(gaps(&[]), [(0, 20 * 4096)]);
        assert_eq!(gaps(&[0, 1, 3]), [(0, 4096), (3 * 4096, 2 * 4096), (6 * 4096, 14 * 4096)]);
        assert_eq!(gaps(&[8, 99]), [(0, 11 * 4096), (12 * 4096, 8 * 4096)]);
    }

    #[test]
    fn samples_come_from_everywhere_and_nothing_is_left_out() {
        let image = image(200);
        let places: Vec<Place> = (0..image.chunks.len()).filter_map(|p| Place::own(&image, p)).collect();
        let count = places.len();
        let spread: Vec<usize> = spread(places).iter().map(|p| p.position).collect();
        assert!(spread[..SAMPLES - 1].windows(2).all(|w| w[1] - w[0] == count.div_ceil(SAMPLES)));
        assert_eq!(spread.iter().collect::<BTreeSet<_>>().len(), count);
        assert!(super::spread(Vec::new()).is_empty());
    }

    #[test]
    fn looking_ends_where_it_costs_more_than_it_saves() {
        let mib = |n: u64| n << 20;
        let after = |places, fits: u64, seconds: f64| {
            let counts =
                Counts { places, read: mib(4 * places as u64), fits: mib(4 * fits), frames: mib(4 * fits) / 3 };
            counts.worth_it(Duration::from_secs_f64(seconds))
        };
        assert!(after(SAMPLES - 1, 0, 100.0));
        assert!(!after(SAMPLES, 0, 0.1));
        assert!(after(SAMPLES, SAMPLES as u64, 100.0), "all fit");
        // 64 MiB at 2 GB/s: a quarter is enough. At 150 MB/s it is not.
        assert!(after(16, 4, 0.034));
        assert!(!after(16, 4, 0.45));
    }
}
