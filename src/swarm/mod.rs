//! How the bytes of an image reach a machine: sources of frames.
//!
//! A frame is the compressed form of one chunk. A [`Source`] brings frames in any order and from anywhere; whether they
//! are right is for the receiver to say, who has the signed manifest.

pub mod announce;
pub mod group;
pub mod plan;
pub mod torrent;
pub mod tracker;
pub mod wire;
mod backoff;
mod crew;
mod follow;
mod holdings;
mod http;
mod keep;
mod relay;
mod serve;
mod standing;
mod throttle;

pub use backoff::BackOff;
pub use holdings::Holdings;
pub use http::{HttpSource, Limits};
pub use keep::{FileKeep, Keep, RamKeep};
pub use relay::{Fallback, Relay, RelayLimits};
pub use serve::{ServeLimits, Server};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::mpsc;

use crate::error::Result;

/// Where a frame stands in the chunk file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The chunk's number in the image.
    pub index: u32,
    /// In bytes from the start of the chunk file.
    pub offset: u64,
    pub len: u32,
}

#[derive(Debug, Clone)]
pub struct Frame {
    pub index: u32,
    pub bytes: Bytes,
}

pub trait Source: Send + Sync {
    /// Brings each wanted frame once, unchecked, and is done when the last one is in `sink`. A full `sink` holds it up;
    /// a closed one ends it. It gives up by itself when it has brought nothing for its own patience.
    fn fetch<'a>(&'a self, wanted: &'a [Wanted], sink: mpsc::Sender<Frame>) -> BoxFuture<'a, Result<()>>;
}
