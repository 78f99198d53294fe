//! A raw disk that is only read: a file, or an image of the catalogue whose chunks are decompressed as they are asked for.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Kind, OrFail, Result};
use crate::image::chunk::verify_and_decompress;
use crate::image::{Entry, Manifest};

/// Decompressed chunks that are kept: 64 MiB with chunks of the usual size. Directories and inodes are read again and
/// again from few places.
const KEPT: usize = 16;

/// Clones read the same disk.
#[derive(Clone)]
pub struct Disk(Arc<Inner>);

/// Decompressed chunks by number, the latest first.
type Kept = Mutex<VecDeque<(u32, Arc<Vec<u8>>)>>;

enum Inner {
    Raw { file: File, path: PathBuf, size: u64 },
    Packed { file: File, manifest: Box<Manifest>, chunks: Kept },
}

impl Disk {
    pub fn raw(path: &Path) -> Result<Self> {
        let failed = || format!("cannot read {}", path.display());
        let file = File::open(path).or_fail(Kind::Input, "image.source", failed)?;
        let size = file.metadata().or_fail(Kind::Input, "image.source", failed)?.len();
        Ok(Self(Arc::new(Inner::Raw { file, path: path.to_owned(), size })))
    }

    /// Every chunk is checked against the manifest before it is believed.
    pub fn packed(entry: &Entry) -> Result<Self> {
        let failed = || format!("cannot read {}", entry.data.display());
        let file = File::open(&entry.data).or_fail(Kind::NotFound, "image.data", failed)?;
        Ok(Self(Arc::new(Inner::Packed { file, manifest: Box::new(entry.manifest.clone()), chunks: Mutex::default() })))
    }

    /// In bytes.
    pub fn size(&self) -> u64 {
        match &*self.0 {
            Inner::Raw { size, .. } => *size,
            Inner::Packed { manifest, .. } => manifest.disk_size,
        }
    }

    /// The file with the raw disk, where there is one.
    pub fn path(&self) -> Option<&Path> {
        match &*self.0 {
            Inner::Raw { path, .. } => Some(path),
            Inner::Packed { .. } => None,
        }
    }

    /// Fills `out` from this byte of the disk on.
    pub fn read_at(&self, mut offset: u64, mut out: &mut [u8]) -> io::Result<()> {
        match &*self.0 {
            Inner::Raw { file, .. } => file.read_exact_at(out, offset),
            Inner::Packed { file, manifest, chunks } => {
                while !out.is_empty() {
                    if offset >= manifest.disk_size {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    let within = (offset % u64::from(manifest.chunk_size)) as usize;
                    let length = out.len().min(manifest.chunk_size as usize - within);
                    let (now, rest) = out.split_at_mut(length);
                    match manifest.chunk_at(offset) {
                        None => now.fill(0),
                        Some(chunk) => {
                            let raw = decompressed(file, chunk, chunks)?;
                            let bytes = raw.get(within..within + length).ok_or(io::ErrorKind::UnexpectedEof)?;
                            now.copy_from_slice(bytes);
                        }
                    }
                    offset += length as u64;
                    out = rest;
                }
                Ok(())
            }
        }
    }

    /// `length` bytes, `None` past the end of the disk.
    pub fn bytes(&self, offset: u64, length: usize) -> io::Result<Option<Vec<u8>>> {
        if offset.checked_add(length as u64).is_none_or(|end| end > self.size()) {
            return Ok(None);
        }
        let mut bytes = vec![0; length];
        self.read_at(offset, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// A stretch of the disk as a file of its own.
    pub fn window(&self, start: u64, length: u64) -> Window {
        Window { disk: self.clone(), start, length, at: 0 }
    }
}

fn decompressed(file: &File, chunk: &crate::image::Chunk, kept: &Kept) -> io::Result<Arc<Vec<u8>>> {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, raw)) = kept.iter().find(|(index, _)| *index == chunk.index) {
        return Ok(raw.clone());
    }
    let mut frame = vec![0; chunk.length as usize];
    file.read_exact_at(&mut frame, chunk.offset)?;
    let mut raw = Vec::new();
    verify_and_decompress(chunk, &frame, &mut raw).map_err(io::Error::other)?;
    let raw = Arc::new(raw);
    kept.push_front((chunk.index, raw.clone()));
    kept.truncate(KEPT);
    Ok(raw)
}

/// Reads end at the end of the window; writes fail, which readers of file systems ask for but do not use.
pub struct Window {
    disk: Disk,
    start: u64,
    length: u64,
    at: u64,
}

impl std::fmt::Debug for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Window({}+{})", self.start, self.length)
    }
}

impl Read for Window {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = (out.len() as u64).min(self.length.saturating_sub(self.at)) as usize;
        let Some(out) = out.get_mut(..length).filter(|out| !out.is_empty()) else { return Ok(0) };
        self.disk.read_at(self.start + self.at, out)?;
        self.at += length as u64;
        Ok(length)
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

impl Write for Window {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ext4_view::Ext4Read for Window {
    fn read(
        &mut self,
        start: u64,
        out: &mut [u8],
    ) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        if start.checked_add(out.len() as u64).is_none_or(|end| end > self.length) {
            return Err(Box::new(io::Error::from(io::ErrorKind::UnexpectedEof)));
        }
        Ok(self.disk.read_at(self.start + start, out)?)
    }
}
