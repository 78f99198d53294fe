//! Where frames stay for other machines: in memory as far as that reaches, then in the free space at the end of the target
//! disk, and then not at all. So an image may be larger than the memory of the machines that pass it on.
//!
//! What lies on the disk has no table there: it is found by what this process remembers, verified again before it is
//! passed on, and zeroed when this machine leaves. After a power cut it is free space with something in it, where an
//! installed system puts what it likes.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};

use crate::agent::block::{ALIGN, Buffer, Device};
use crate::agent::blocking;
use crate::agent::console::say;
use crate::error::Result;
use crate::image::chunk::verify_frame;
use crate::image::{Chunk, Manifest};
use crate::swarm::{Keep, RamKeep};

/// Of the memory that is free, this part: the pipeline, the kernel and the network have the rest.
const PART: u64 = 3;

pub struct Spill {
    memory: RamKeep,
    device: Arc<Device>,
    places: Mutex<Places>,
}

/// Which frame is where in the area: given out from its start on, and never given back.
struct Places {
    area: Range<u64>,
    next: u64,
    frames: HashMap<u32, u64>,
}

impl Places {
    fn new(area: Range<u64>) -> Self {
        Self { next: area.start, area, frames: HashMap::new() }
    }

    /// The frame's place, new or old. `None`: no room.
    fn give(&mut self, index: u32, len: u64) -> Option<u64> {
        if let Some(at) = self.frames.get(&index) {
            return Some(*at);
        }
        let at = self.next;
        let end = at.checked_add(len.checked_next_multiple_of(ALIGN as u64)?)?;
        if end > self.area.end {
            return None;
        }
        self.next = end;
        self.frames.insert(index, at);
        Some(at)
    }
}

impl Spill {
    /// `area` is free on the disk; of memory it takes no more than `budget` bytes.
    pub fn new(device: &Arc<Device>, area: Range<u64>, budget: u64) -> Self {
        Self { memory: RamKeep::new(budget), device: Arc::clone(device), places: Mutex::new(Places::new(area)) }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing of it is left on the disk, and nothing goes there any more.
    pub fn wipe(&self) -> Result<()> {
        let used = {
            let mut places = self.places();
            let used = places.area.start..places.next;
            *places = Places::new(0..0);
            used
        };
        if used.is_empty() {
            return Ok(());
        }
        self.device.zero(used.start, used.end - used.start)?;
        self.device.sync()
    }

    async fn write(&self, chunk: &Chunk, frame: &Bytes) -> bool {
        let Some(at) = self.places().give(chunk.index, frame.len() as u64) else { return false };
        let (device, frame) = (Arc::clone(&self.device), frame.clone());
        let written = blocking(move || {
            let mut buffer = Buffer::new(frame.len().next_multiple_of(ALIGN));
            buffer[..frame.len()].copy_from_slice(&frame);
            device.write_at(&buffer, at)
        });
        match written.await {
            Ok(()) => true,
            Err(e) => {
                // The place is lost, the image's own write will say more if the disk is broken.
                say(format!("a frame is not kept for others: {e}"));
                self.places().frames.remove(&chunk.index);
                false
            }
        }
    }

    /// A disk may lie: what it gives back is checked before anybody gets it.
    async fn read(&self, chunk: &Chunk) -> Option<Bytes> {
        let at = *self.places().frames.get(&chunk.index)?;
        let (device, chunk) = (Arc::clone(&self.device), chunk.clone());
        let read = blocking(move || {
            let len = chunk.length as usize;
            let mut buffer = Buffer::new(len.next_multiple_of(ALIGN));
            device.read_at(&mut buffer, at)?;
            verify_frame(&chunk, &buffer[..len])?;
            Ok(Bytes::copy_from_slice(&buffer[..len]))
        });
        read.await.inspect_err(|e| say(format!("a frame that was kept for others is lost: {e}"))).ok()
    }
}

impl Keep for Arc<Spill> {
    fn put<'a>(&'a self, chunk: &'a Chunk, frame: Bytes) -> BoxFuture<'a, bool> {
        async move { self.memory.put(chunk, frame.clone()).await || self.write(chunk, &frame).await }.boxed()
    }

    fn get<'a>(&'a self, chunk: &'a Chunk) -> BoxFuture<'a, Option<Bytes>> {
        async move {
            match self.memory.get(chunk).await {
                Some(frame) => Some(frame),
                None => self.read(chunk).await,
            }
        }
        .boxed()
    }
}

/// How many bytes of frames may stay in memory: a part of what is free now, and no more than the image has.
pub fn budget(proc: &Path, image: &Manifest) -> u64 {
    let meminfo = std::fs::read_to_string(proc.join("meminfo")).unwrap_or_default();
    let frames = image.chunks.iter().map(|c| u64::from(c.length)).sum();
    (available(&meminfo) / PART).min(frames)
}

/// `MemAvailable` of proc_meminfo(5), in bytes.
fn available(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default().saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::image::chunk::{PackOptions, pack};
    use crate::image::manifest::tests::manifest_of;
    use crate::machine::Digest;
    use crate::swarm::Holdings;

    #[test]
    fn places_are_aligned_apart_and_within_the_area() {
        let mut places = Places::new(1 << 20..(1 << 20) + 10 * 4096);
        assert_eq!(places.give(7, 1), Some(1 << 20));
        assert_eq!(places.give(3, 4097), Some((1 << 20) + 4096));
        assert_eq!(places.give(7, 1), Some(1 << 20), "the same frame has the same place");
        assert_eq!(places.give(4, 7 * 4096 + 1), None);
        assert_eq!(places.give(4, 7 * 4096), Some((1 << 20) + 3 * 4096));
        assert_eq!(places.give(5, 1), None);
        assert_eq!(places.give(6, u64::MAX), None);
        assert_eq!(Places::new(0..0).give(1, 1), None);
    }

    const MIB: u64 = 1 << 20;
    const OLD: u8 = 0xaa;

    struct Disk {
        file: tempfile::NamedTempFile,
        device: Arc<Device>,
    }

    impl Disk {
        fn new() -> Self {
            let file = tempfile::NamedTempFile::new().unwrap();
            file.as_file().write_all_at(&vec![OLD; 4 * MIB as usize], 0).unwrap();
            Self { device: Arc::new(Device::of_file(file.path())), file }
        }

        fn read(&self, range: Range<u64>) -> Vec<u8> {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            self.file.as_file().read_exact_at(&mut bytes, range.start).unwrap();
            bytes
        }
    }

    /// Eight chunks of 256 KiB of noise, with their frames.
    fn image() -> (Arc<Manifest>, Vec<Bytes>) {
        let mut disk = vec![0; 2 * MIB as usize];
        blake3::Hasher::new().update(b"spill").finalize_xof().fill(&mut disk);
        let mut data = Vec::new();
        let options = PackOptions { chunk_size: 256 << 10, level: 1, threads: 1 };
        let packed = pack(&disk[..], disk.len() as u64, &mut data, options, &|_| {}).unwrap();
        let image = manifest_of(packed);
        let frame = |c: &Chunk| Bytes::copy_from_slice(&data[c.offset as usize..][..c.length as usize]);
        let frames = image.chunks.iter().map(frame).collect();
        (Arc::new(image), frames)
    }

    async fn fill(spill: &Arc<Spill>, image: &Manifest, frames: &[Bytes]) -> Vec<bool> {
        let mut kept = Vec::new();
        for (chunk, frame) in image.chunks.iter().zip(frames) {
            kept.push(spill.put(chunk, frame.clone()).await);
        }
        kept
    }

    #[tokio::test]
    async fn memory_first_then_the_disk_then_nothing_and_no_byte_beside_the_area() {
        let (disk, (image, frames)) = (Disk::new(), image());
        // Room for two in memory and for four on the disk: each frame is a little longer than its chunk.
        let budget = 2 * u64::from(image.chunks[0].length) + 100;
        let area = MIB..2 * MIB + 4 * ALIGN as u64;
        let spill = Arc::new(Spill::new(&disk.device, area.clone(), budget));
        assert_eq!(fill(&spill, &image, &frames).await, [true, true, true, true, true, true, false, false]);
        for (at, (chunk, frame)) in image.chunks.iter().zip(&frames).enumerate() {
            assert_eq!(spill.get(chunk).await, (at < 6).then(|| frame.clone()), "frame {at}");
        }
        let on_disk = disk.read(area.clone());
        assert!(on_disk.starts_with(&frames[2]) && !on_disk.windows(64).any(|w| w == &frames[0][..64]));
        let beside = |disk: &Disk| [disk.read(0..area.start), disk.read(area.end..4 * MIB)].concat();
        assert!(beside(&disk).iter().all(|b| *b == OLD));

        spill.wipe().unwrap();
        assert!(disk.read(area.clone()).iter().all(|b| *b == 0));
        assert!(beside(&disk).iter().all(|b| *b == OLD));
        assert_eq!(spill.get(&image.chunks[3]).await, None);
        assert!(!spill.put(&image.chunks[3], frames[3].clone()).await, "nothing goes there any more");
        assert!(disk.read(area).iter().all(|b| *b == 0));
    }

    #[tokio::test]
    async fn what_has_no_room_or_went_bad_is_no_longer_offered() {
        let (disk, (image, frames)) = (Disk::new(), image());
        let spill = Arc::new(Spill::new(&disk.device, MIB..2 * MIB + 4 * ALIGN as u64, 0));
        let holdings = Holdings::empty(Digest::of(b"image"), Arc::clone(&image), Box::new(Arc::clone(&spill)));
        for (frame, bytes) in (0..).zip(&frames) {
            let whole = holdings.put_frame(frame, bytes).unwrap().unwrap();
            assert_eq!(holdings.settle(&whole).await, frame < 4, "frame {frame}");
        }
        assert_eq!(holdings.held().0, 4);
        assert!(holdings.holds(3) && !holdings.holds(4));
        // A disk that has confirmed and forgotten.
        disk.file.as_file().write_all_at(b"?", MIB + 77).unwrap();
        assert!(holdings.load(0).await.is_none() && holdings.load(1).await.is_some_and(|(b, _)| b == frames[1]));
        assert_eq!((holdings.held().0, holdings.holds(0)), (3, false));
        // It comes again, to the same place.
        let whole = holdings.put_frame(0, &frames[0]).unwrap().unwrap();
        assert!(holdings.settle(&whole).await && holdings.load(0).await.is_some());
    }

    #[test]
    fn memory_is_counted_in_kib() {
        assert_eq!(available("MemTotal:  8 kB\nMemAvailable:   2048 kB\n"), 2 << 20);
        assert_eq!(available("nothing of it"), 0);
        assert_eq!(available("MemAvailable: 99999999999999999999 kB"), 0);
    }
}
