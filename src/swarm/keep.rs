//! Where the bytes of complete frames are kept, for successors and for a sink that lags behind.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, ready};

use crate::error::{Kind, OrFail, Result};
use crate::image::Chunk;

/// A store of frames. What it gives back is verified again before it is passed on, so that it may lie on any medium.
pub trait Keep: Send + Sync {
    /// Takes a frame that has been verified. `false`: there is no room, and nobody is told that this machine has it.
    fn put<'a>(&'a self, chunk: &'a Chunk, frame: Bytes) -> BoxFuture<'a, bool>;

    /// A frame that was taken; `None` where it is no longer there.
    fn get<'a>(&'a self, chunk: &'a Chunk) -> BoxFuture<'a, Option<Bytes>>;
}

/// In memory, up to so many bytes. What came first stays: successors get what comes now while it arrives, and ask for what
/// is kept only when that is over.
pub struct RamKeep {
    budget: u64,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    bytes: u64,
    frames: HashMap<u32, Bytes>,
}

impl RamKeep {
    pub fn new(budget: u64) -> Self {
        Self { budget, kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keep for RamKeep {
    fn put<'a>(&'a self, chunk: &'a Chunk, frame: Bytes) -> BoxFuture<'a, bool> {
        let mut kept = self.kept();
        let len = frame.len() as u64;
        let room = kept.frames.contains_key(&chunk.index) || kept.bytes + len <= self.budget;
        if room && kept.frames.insert(chunk.index, frame).is_none() {
            kept.bytes += len;
        }
        ready(room).boxed()
    }

    fn get<'a>(&'a self, chunk: &'a Chunk) -> BoxFuture<'a, Option<Bytes>> {
        ready(self.kept().frames.get(&chunk.index).cloned()).boxed()
    }
}

/// A file in the form of the appliance's data file: all frames at their offsets.
pub struct FileKeep {
    file: Arc<File>,
    filling: bool,
}

impl FileKeep {
    /// All is there, and nothing is added.
    pub fn open(path: &Path) -> Result<Self> {
        let file =
            File::open(path).or_fail(Kind::Config, "image.data", || format!("cannot read {}", path.display()))?;
        Ok(Self { file: Arc::new(file), filling: false })
    }

    /// A file that is filled as frames come.
    pub fn filling(file: Arc<File>) -> Self {
        Self { file, filling: true }
    }
}

impl Keep for FileKeep {
    fn put<'a>(&'a self, chunk: &'a Chunk, frame: Bytes) -> BoxFuture<'a, bool> {
        if !self.filling {
            return ready(false).boxed();
        }
        let (file, offset) = (Arc::clone(&self.file), chunk.offset);
        async move {
            let written = tokio::task::spawn_blocking(move || file.write_all_at(&frame, offset)).await;
            matches!(written, Ok(Ok(())))
        }
        .boxed()
    }

    fn get<'a>(&'a self, chunk: &'a Chunk) -> BoxFuture<'a, Option<Bytes>> {
        let (file, offset, len) = (Arc::clone(&self.file), chunk.offset, chunk.length as usize);
        async move {
            let read = move || {
                let mut frame = vec![0; len];
                file.read_exact_at(&mut frame, offset).map(|()| Bytes::from(frame))
            };
            match tokio::task::spawn_blocking(read).await {
                Ok(Ok(frame)) => Some(frame),
                Ok(Err(e)) => {
                    tracing::error!(error = %e, offset, "the data file of an image cannot be read");
                    None
                }
                Err(_) => None,
            }
        }
        .boxed()
    }
}
