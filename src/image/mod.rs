//! Images: the chunked and signed format, the recipes they are built from, the build itself and the catalogue.
//!
//! [`manifest`], [`chunk`] and [`sign`] are the format and what the agent needs of it; the others run on the appliance.
//! A build goes [`recipe`] → [`root`] (packages in a directory) → [`disk`] (a raw disk) → [`publish`] (compressed, signed) →
//! [`catalogue`]; what others built goes [`import`] → [`inspect`] → [`publish`]; the agent's own system goes [`recipe`] →
//! [`ram`]; a container goes [`container`] → [`adopt`] → [`disk`].

pub mod chunk;
pub mod manifest;
pub mod sign;
pub mod cache;
pub mod catalogue;
pub mod channels;
pub mod gc;
pub mod library;
pub mod recipe;
pub mod inspect;
pub mod publish;
pub mod build;
pub mod lint;
pub mod import;
pub mod container;
pub mod adopt;
pub mod ram;
pub mod snapshot;
pub mod proof;
pub mod tool;
pub mod userns;
pub mod cpio;
mod disk;
mod ext4;
mod layout;
mod root;

pub use build::{Built, Options, build};
pub use cache::Cache;
pub use catalogue::{Catalogue, Entry};
pub use chunk::verify_and_decompress;
pub use library::Library;
pub use manifest::{Chunk, Manifest, SignedManifest};
pub use proof::Proof;
pub use ram::RamSystem;
pub use sign::{PublicKey, SigningKey};
pub use snapshot::Snapshot;
pub use tool::{Progress, Step};

use crate::error::Error;

/// A failed read or write while an image is made, with the one cause that people can remove told apart.
fn disk_full(e: std::io::Error, doing: &str) -> Error {
    match e.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Error::config("image.disk-full", format!("the disk is full: {doing} stopped"))
                .because(e)
                .hint("make room, or set RACKLINE_CACHE to a folder with 10 GB of it")
        }
        _ => Error::config("image.io", format!("{doing} failed")).because(e),
    }
}
