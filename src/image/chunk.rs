//! The data file: a raw disk cut into chunks, each an independent zstd frame.
//!
//! # The data file, byte by byte
//!
//! The disk is cut into chunks of `chunk_size` bytes, the last one may be shorter. Chunk *i* is frame *i* of the file, in
//! the order of the disk, so that `zstd -d` alone restores the disk. After the frames comes the seek table of the zstd
//! seekable format (`contrib/seekable_format/zstd_seekable_compression_format.md` of zstd), a skippable frame that
//! decompressors pass over:
//!
//! | bytes | what (integers little endian) |
//! |---|---|
//! | any | frame 0: zstd (RFC 8878) with its content size in the header, without checksum or dictionary |
//! | … | frames 1 … n−1 |
//! | 4 | `0x184D2A5E`: skippable frame |
//! | 4 | length of the rest: 8 n + 9 |
//! | 8 n | per frame: compressed length (u32), decompressed length (u32) |
//! | 4 | n |
//! | 1 | 0: no checksums in the table; the manifest has better ones |
//! | 4 | `0x8F92EAB1`: seekable format |
//!
//! A chunk of zeros is a frame like any other, about 80 bytes for 2 MiB. The manifest does not list it, so nobody
//! fetches or writes it, but for `zstd -d` and the seek table it is there. Listed chunks therefore lie in the file with
//! small gaps between them.
//!
//! # Chunk size and level
//!
//! 2 MiB and level 9, by these figures (2026-11-21, zstd on 32 MiB from the middle of the ovs image, one thread, other
//! compilers beside it, so speeds are rough and sizes exact). What a newer image has in common with an older one by chunk
//! size is in [`super::layout`]: 2 MiB keeps far more than 4, and 1 MiB hardly more than 2.
//!
//! | chunk | level | size of the frames | compression | decompression |
//! |---|---|---|---|---|
//! | 1 MiB | 9 | 101.3 % | 18 MB/s | 560 MB/s |
//! | **2 MiB** | **9** | **100 %** | **20 MB/s** | **500 MB/s** |
//! | 4 MiB | 9 | 98.8 % | 11 MB/s | 350 MB/s |
//! | 8 MiB | 9 | 98.1 % | 12 MB/s | 220 MB/s |
//! | 2 MiB | 3 | 106.0 % | 93 MB/s | 320 MB/s |
//! | 2 MiB | 6 | 101.0 % | 18 MB/s | 300 MB/s |
//! | 2 MiB | 12 | 99.6 % | 6 MB/s | 350 MB/s |
//! | 2 MiB | 15 | 99.3 % | 2 MB/s | 450 MB/s |
//! | 2 MiB | 19 | 92.4 % | 1 MB/s | 370 MB/s |

use std::cell::RefCell;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::{Condvar, Mutex, PoisonError};

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe;

use super::manifest::{Chunk, Manifest};
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::Digest;

const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
/// "The maximum number of frames", seekable format specification.
pub const MAX_FRAMES: u32 = 0x0800_0000;

/// Length of the seek table of that many frames.
pub fn seek_table_len(frames: u32) -> u64 {
    8 + 8 * u64::from(frames) + 9
}

/// The longest frame that a chunk of this many bytes can become.
pub fn max_frame(raw_length: u32) -> u64 {
    zstd_safe::compress_bound(raw_length as usize) as u64
}

fn wrong(chunk: &Chunk, what: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Error {
    Error::refused(
        "image.chunk",
        format!(
            "chunk {} (disk offset {}) has the wrong {what}: expected {expected}, found {found}",
            chunk.index, chunk.disk_offset
        ),
    )
    .hint("fetch the chunk again; if it stays wrong, check the image: `rackline image verify NAME`")
}

/// The frame as it came over the wire is the one that the manifest means.
pub fn verify_frame(chunk: &Chunk, frame: &[u8]) -> Result<()> {
    if frame.len() != chunk.length as usize {
        return Err(wrong(chunk, "length", chunk.length, frame.len()));
    }
    let found = Digest::of(frame);
    if found != chunk.frame {
        return Err(wrong(chunk, "digest", chunk.frame, found));
    }
    Ok(())
}

/// What was read back from a disk is what the manifest means.
pub fn verify_raw(chunk: &Chunk, raw: &[u8]) -> Result<()> {
    if raw.len() != chunk.raw_length as usize {
        return Err(wrong(chunk, "decompressed length", chunk.raw_length, raw.len()));
    }
    let found = Digest::of(raw);
    if found != chunk.raw {
        return Err(wrong(chunk, "decompressed digest", chunk.raw, found));
    }
    Ok(())
}

/// Checks the frame against the manifest and only then decompresses it: `raw` holds exactly the chunk's bytes of the
/// disk afterwards. A buffer that is used again, and the thread's own decompressor, make this free of allocations.
///
/// The digest of the frame vouches for the bytes; that of the decompressed bytes is for reading back ([`verify_raw`]).
pub fn verify_and_decompress(chunk: &Chunk, frame: &[u8], raw: &mut Vec<u8>) -> Result<()> {
    thread_local! {
        static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    }
    verify_frame(chunk, frame)?;
    if zstd_safe::find_frame_compressed_size(frame) != Ok(frame.len()) {
        return Err(wrong(chunk, "frame", "one zstd frame", "something else"));
    }
    // The length is the manifest's, bounded there; the frame cannot make us use more memory.
    raw.resize(chunk.raw_length as usize, 0);
    let written = DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(Decompressor::new()?),
        };
        decompressor.decompress_to_buffer(frame, &mut raw[..])
    });
    match written {
        Ok(length) if length == raw.len() => Ok(()),
        Ok(length) => Err(wrong(chunk, "decompressed length", chunk.raw_length, length)),
        Err(e) => Err(wrong(chunk, "content", format_args!("{} bytes", chunk.raw_length), "no zstd data").because(e)),
    }
}

/// What [`pack`] made of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    pub disk_size: u64,
    pub chunk_size: u32,
    /// Decompressed bytes of the chunks that are not all zero.
    pub used_bytes: u64,
    /// Length of the data file.
    pub data_size: u64,
    pub chunks: Vec<Chunk>,
}

/// How to compress.
#[derive(Debug, Clone, Copy)]
pub struct PackOptions {
    pub chunk_size: u32,
    /// zstd level.
    pub level: i32,
    pub threads: usize,
}

/// Cuts `disk_size` bytes of `disk` into chunks and writes the data file to `out`, compressing on all `threads`.
/// `progress` is told the bytes of the disk that are done.
pub fn pack<R: Read + Send, W: Write + Send>(
    disk: R,
    disk_size: u64,
    out: W,
    options: PackOptions,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Packed> {
    let PackOptions { chunk_size, level, threads } = options;
    let count = disk_size.div_ceil(u64::from(chunk_size));
    let count = u32::try_from(count).ok().filter(|n| *n <= MAX_FRAMES).ok_or_else(|| {
        Error::input("image.size", format!("a disk of {disk_size} bytes has too many chunks of {chunk_size}"))
    })?;
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::UnexpectedEof => {
            Error::input("image.source", format!("the disk image ends before its {disk_size} bytes")).because(e)
        }
        _ => super::disk_full(e, "compressing the disk image"),
    };
    let line = Line {
        source: Mutex::new((disk, 0)),
        sink: Mutex::new(Sink { out, next: 0, offset: 0, chunks: Vec::new(), lengths: Vec::new(), failure: None }),
        turn: Condvar::new(),
        disk_size,
        chunk_size,
        count,
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, 64) {
            scope.spawn(|| {
                if let Err(e) = line.work(level, progress) {
                    line.lock().failure.get_or_insert(e);
                    line.turn.notify_all();
                }
            });
        }
    });
    let mut sink = line.sink.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(e) = sink.failure {
        return Err(failed(e));
    }
    write_seek_table(&mut sink.out, &sink.lengths).map_err(failed)?;
    sink.out.flush().map_err(failed)?;
    let used_bytes = sink.chunks.iter().map(|c| u64::from(c.raw_length)).sum();
    let data_size = sink.offset + seek_table_len(count);
    Ok(Packed { disk_size, chunk_size, used_bytes, data_size, chunks: sink.chunks })
}

/// An assembly line: each worker takes the next chunk, compresses it by itself, and waits for its turn to write it.
/// The worker with the lowest number never waits, so the line always moves, and holds one chunk per worker.
struct Line<R, W> {
    source: Mutex<(R, u32)>,
    sink: Mutex<Sink<W>>,
    turn: Condvar,
    disk_size: u64,
    chunk_size: u32,
    count: u32,
}

struct Sink<W> {
    out: W,
    next: u32,
    offset: u64,
    chunks: Vec<Chunk>,
    /// Per frame: compressed and decompressed length.
    lengths: Vec<(u32, u32)>,
    failure: Option<io::Error>,
}

impl<R: Read, W: Write> Line<R, W> {
    fn lock(&self) -> std::sync::MutexGuard<'_, Sink<W>> {
        self.sink.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, level: i32, progress: &(dyn Fn(u64) + Sync)) -> io::Result<()> {
        let mut compressor = Compressor::new(level)?;
        let mut raw = Vec::new();
        let mut frame = Vec::new();
        while let Some((index, disk_offset)) = self.take(&mut raw)? {
            frame.clear();
            frame.reserve(zstd_safe::compress_bound(raw.len()));
            compressor.compress_to_buffer(&raw, &mut frame)?;
            let listed = !is_zero(&raw);
            let digests = listed.then(|| (Digest::of(&frame), Digest::of(&raw)));
            let mut sink = self.lock();
            while sink.next != index && sink.failure.is_none() {
                sink = self.turn.wait(sink).unwrap_or_else(PoisonError::into_inner);
            }
            if sink.failure.is_some() {
                return Ok(());
            }
            sink.out.write_all(&frame)?;
            let (offset, length, raw_length) = (sink.offset, frame.len() as u32, raw.len() as u32);
            if let Some((frame, raw)) = digests {
                sink.chunks.push(Chunk { index, offset, length, frame, raw, disk_offset, raw_length });
            }
            sink.lengths.push((length, raw_length));
            sink.offset += u64::from(length);
            sink.next += 1;
            self.turn.notify_all();
            drop(sink);
            progress(disk_offset + u64::from(raw_length));
        }
        Ok(())
    }

    /// The next chunk's number and place, with its bytes in `raw`.
    fn take(&self, raw: &mut Vec<u8>) -> io::Result<Option<(u32, u64)>> {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let index = source.1;
        let Some((disk_offset, length)) =
            Chunk::place(index, self.disk_size, self.chunk_size).filter(|_| index < self.count)
        else {
            return Ok(None);
        };
        source.1 += 1;
        raw.resize(length as usize, 0);
        source.0.read_exact(raw)?;
        Ok(Some((index, disk_offset)))
    }
}

pub fn is_zero(bytes: &[u8]) -> bool {
    let (words, tail) = bytes.as_chunks::<64>();
    words.iter().all(|word| *word == [0; 64]) && tail.iter().all(|byte| *byte == 0)
}

fn write_seek_table(out: &mut impl Write, lengths: &[(u32, u32)]) -> io::Result<()> {
    let mut table = Vec::with_capacity(lengths.len() * 8 + 17);
    table.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
    table.extend_from_slice(&(lengths.len() as u32 * 8 + 9).to_le_bytes());
    for (compressed, decompressed) in lengths {
        table.extend_from_slice(&compressed.to_le_bytes());
        table.extend_from_slice(&decompressed.to_le_bytes());
    }
    table.extend_from_slice(&(lengths.len() as u32).to_le_bytes());
    table.push(0);
    table.extend_from_slice(&SEEKABLE_MAGIC.to_le_bytes());
    out.write_all(&table)
}

/// Reads a whole data file and compares it with its manifest: seek table, every frame, every decompressed byte. What
/// holds here restores to the disk that was signed, with us or with `zstd -d`.
pub fn check<F: Read + Seek>(data: &mut F, manifest: &Manifest, progress: &dyn Fn(u64)) -> Result<()> {
    let unreadable = || "cannot read the image's data file";
    let found = data.seek(SeekFrom::End(0)).or_fail(Kind::Internal, "image.data", unreadable)?;
    let damaged = |why: String| {
        Error::refused("image.data", format!("the data file of image {} is damaged: {why}", manifest.name))
            .hint("build or import the image again: `rackline image build NAME`")
    };
    if found != manifest.data_size {
        return Err(damaged(format!("it has {found} bytes, the manifest says {}", manifest.data_size)));
    }
    let count = manifest.chunk_count();
    let mut table = vec![0; seek_table_len(count) as usize];
    let frames_end = manifest.data_size - table.len() as u64;
    data.seek(SeekFrom::Start(frames_end)).or_fail(Kind::Internal, "image.data", unreadable)?;
    data.read_exact(&mut table).or_fail(Kind::Internal, "image.data", unreadable)?;
    let lengths = parse_seek_table(&table, count).ok_or_else(|| damaged("its seek table is not valid".into()))?;

    data.seek(SeekFrom::Start(0)).or_fail(Kind::Internal, "image.data", unreadable)?;
    let (mut offset, mut frame, mut raw) = (0u64, Vec::new(), Vec::new());
    let mut listed = manifest.chunks.iter().peekable();
    for (index, (length, raw_length)) in (0..count).zip(lengths) {
        let (disk_offset, expected) =
            Chunk::place(index, manifest.disk_size, manifest.chunk_size).unwrap_or((manifest.disk_size, 0));
        if raw_length != expected || u64::from(length) > max_frame(raw_length) {
            return Err(damaged(format!("its seek table says that chunk {index} has {raw_length} bytes")));
        }
        frame.resize(length as usize, 0);
        data.read_exact(&mut frame).or_fail(Kind::Internal, "image.data", unreadable)?;
        match listed.next_if(|chunk| chunk.index == index) {
            Some(chunk) if chunk.offset != offset => {
                return Err(damaged(format!("chunk {index} is at {offset}, the manifest says {}", chunk.offset)));
            }
            Some(chunk) => {
                verify_and_decompress(chunk, &frame, &mut raw)?;
                verify_raw(chunk, &raw)?;
            }
            None => {
                let frame_digest = Digest::of(&frame);
                let zeros =
                    Chunk { index, offset, length, frame: frame_digest, raw: frame_digest, disk_offset, raw_length };
                verify_and_decompress(&zeros, &frame, &mut raw)?;
                if !is_zero(&raw) {
                    return Err(damaged(format!("chunk {index} has data that the manifest does not list")));
                }
            }
        }
        offset += u64::from(length);
        progress(disk_offset + u64::from(raw_length));
    }
    if offset != frames_end {
        return Err(damaged(format!("its frames end at {offset}, its seek table begins at {frames_end}")));
    }
    Ok(())
}

/// Compressed and decompressed length per frame; `None` if this is not exactly a seek table of `count` frames.
fn parse_seek_table(table: &[u8], count: u32) -> Option<Vec<(u32, u32)>> {
    let number = |at: usize| Some(u32::from_le_bytes(table.get(at..at + 4)?.try_into().ok()?));
    let entries = count as usize * 8;
    let valid = table.len() as u64 == seek_table_len(count)
        && number(0)? == SKIPPABLE_MAGIC
        && number(4)? as usize == entries + 9
        && number(8 + entries)? == count
        && *table.get(12 + entries)? == 0
        && number(13 + entries)? == SEEKABLE_MAGIC;
    if !valid {
        return None;
    }
    (0..count as usize).map(|i| Some((number(8 + i * 8)?, number(12 + i * 8)?))).collect()
}

#[cfg(test)]
#[path = "chunk_tests.rs"]
mod tests;
