//! Reading back what was written, past all caches, and comparing it with the manifest: some disks confirm and forget.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::agent::block::{Buffer, Device};
use crate::agent::progress::Meter;
use crate::error::{Error, Result};
use crate::image::{Chunk, Manifest, chunk};
use crate::link::ReadBack;

/// More threads than this only queue up at the disk.
const THREADS_MAX: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Checked {
    pub bytes: u64,
    pub seconds: f64,
}

/// A piece of the disk with what it must hold: a stored chunk, or zeros.
#[derive(Debug, Clone, Copy)]
enum Piece<'a> {
    Chunk(&'a Chunk),
    Zeros { at: u64, len: u32 },
}

impl Piece<'_> {
    fn place(&self) -> (u64, usize) {
        match self {
            Piece::Chunk(c) => (c.disk_offset, c.raw_length as usize),
            Piece::Zeros { at, len } => (*at, *len as usize),
        }
    }
}

/// Every piece, or a sample of them; the first that differs is named.
pub fn check(device: &Device, image: &Manifest, how: ReadBack, meter: &Meter) -> Result<Checked> {
    let start = Instant::now();
    let pieces = chosen(pieces(image), how);
    let bytes = pieces.iter().map(|p| p.place().1 as u64).sum();
    meter.step("reading back", bytes);
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    // One more than there are cores: one reads while the others compare.
    std::thread::scope(|scope| {
        for _ in 0..threads + 1 {
            scope.spawn(|| {
                let mut buffer = Buffer::new(device.round_up(image.chunk_size as usize));
                while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = check_piece(device, piece, &mut buffer) {
                        next.store(pieces.len(), Ordering::Relaxed);
                        failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
                        return;
                    }
                    meter.add(piece.place().1 as u64);
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(Checked { bytes, seconds: start.elapsed().as_secs_f64() }),
    }
}

fn check_piece(device: &Device, piece: &Piece<'_>, buffer: &mut Buffer) -> Result<()> {
    let (at, len) = piece.place();
    device.read_at(&mut buffer[..device.round_up(len)], at)?;
    let there = &buffer[..len];
    let (right, what) = match piece {
        Piece::Chunk(chunk) => (chunk::verify_raw(chunk, there).is_ok(), format!("chunk {}", chunk.index)),
        Piece::Zeros { .. } => (chunk::is_zero(there), "a range of zeros".to_owned()),
    };
    if right {
        return Ok(());
    }
    Err(Error::refused(
        "disk.read-back",
        format!("{what} at {at} of {} reads back differently", device.path().display()),
    )
    .hint("the disk does not keep what it is told: take it out of service"))
}

/// All of the image in the order of the disk, in pieces of at most a chunk.
fn pieces(image: &Manifest) -> Vec<Piece<'_>> {
    let step = u64::from(image.chunk_size);
    let mut pieces: Vec<Piece<'_>> = image.chunks.iter().map(Piece::Chunk).collect();
    for (start, len) in image.zero_ranges() {
        let (mut at, end_of_range) = (start, start + len);
        while at < end_of_range {
            // Up to the next whole chunk: the count of pieces is then the count of chunks.
            let end = (at / step + 1).saturating_mul(step).min(end_of_range);
            pieces.push(Piece::Zeros { at, len: (end - at) as u32 });
            at = end;
        }
    }
    pieces.sort_by_key(|p| p.place().0);
    pieces
}

fn chosen(pieces: Vec<Piece<'_>>, how: ReadBack) -> Vec<Piece<'_>> {
    let every = match how {
        ReadBack::Full => 1,
        ReadBack::Sampled(n) => n.max(1) as usize,
    };
    let last = pieces.len().saturating_sub(1);
    let take = |i: usize| i.is_multiple_of(every) || i == last;
    pieces.into_iter().enumerate().filter(|(i, _)| take(*i)).map(|(_, p)| p).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::chunk::{PackOptions, pack};
    use crate::image::manifest::tests::manifest_of;

    #[test]
    fn first_and_last_are_always_among_the_samples() {
        let mut disk = vec![0u8; 4096 * 9 + 512];
        disk[4096] = 1;
        disk[4096 * 4] = 1;
        let options = PackOptions { chunk_size: 4096, level: 1, threads: 1 };
        let image = manifest_of(pack(&disk[..], disk.len() as u64, Vec::new(), options, &|_| {}).unwrap());
        let at = |how| chosen(pieces(&image), how).iter().map(|p| p.place().0 / 4096).collect::<Vec<_>>();
        assert_eq!(at(ReadBack::Full), (0..10).collect::<Vec<_>>());
        assert_eq!(at(ReadBack::Sampled(4)), [0, 4, 8, 9]);
        assert_eq!(at(ReadBack::Sampled(0)).len(), 10);
        assert_eq!(pieces(&image).last().unwrap().place(), (9 * 4096, 512));
    }
}
