//! Images: the chunked and signed format, the recipes they are built from, the build itself and the catalogue.
//!
//! [`manifest`], [`chunk`] and [`sign`] are the format and what the agent needs of it; the others run on the appliance.

pub mod chunk;
pub mod manifest;
pub mod sign;

pub use chunk::verify_and_decompress;
pub use manifest::{Chunk, Manifest, SignedManifest};
pub use sign::{PublicKey, SigningKey};

use crate::error::Error;

/// A failed read or write while an image is made, with the one cause that people can remove told apart.
fn disk_full(e: std::io::Error, doing: &str) -> Error {
    match e.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Error::config("image.disk-full", format!("the disk is full: {doing} stopped")).because(e).hint(
                "make room, or use another cache: set RACKLINE_CACHE to a folder with 10 GB; `rackline image prune`",
            )
        }
        _ => Error::config("image.io", format!("{doing} failed")).because(e),
    }
}
