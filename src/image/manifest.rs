//! The manifest: what an image is, chunk by chunk, under a signature.
//!
//! # The signed manifest, byte by byte
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `RKLIMG1\n` |
//! | 8 | 8 | id of the key: the first eight bytes of the BLAKE3 digest of the public key |
//! | 16 | 64 | Ed25519 signature (RFC 8032) over the manifest |
//! | 80 | 4 | length of the manifest in bytes, little endian, at most [`MAX_BYTES`] |
//! | 84 | n | the manifest, JSON; the file ends with it |
//!
//! The signature is over exactly the bytes of the manifest, and their BLAKE3 digest is the name of the image. Nothing of
//! the manifest is looked at before the signature has been checked. A chunk in JSON is
//! `[index, offset, length, "frame", "raw"]`, see [`Chunk`]; chunks that are all zero are not listed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::chunk;
use super::sign::{KeyId, PublicKey, SIGNATURE_BYTES, SigningKey};
use crate::error::{Error, Result};
use crate::machine::{Digest, Firmware, Role};

/// Version of the manifest's own format; a reader refuses any other.
pub const VERSION: u32 = 1;
/// A manifest is at most this long: enough for 350 GB of data in chunks of 2 MiB.
pub const MAX_BYTES: usize = 32 << 20;
/// The largest disk an image can be.
pub const MAX_DISK: u64 = 16 << 40;
/// Bounds of the chunk size, which is a power of two.
pub const CHUNK_SIZES: std::ops::RangeInclusive<u32> = 4 << 10..=64 << 20;
/// What is used where nothing else is asked for. The root file system is laid out for it, see [`super::layout`].
pub const DEFAULT_CHUNK_SIZE: u32 = 2 << 20;

const MAGIC: &[u8; 8] = b"RKLIMG1\n";
const HEADER: usize = 8 + 8 + SIGNATURE_BYTES + 4;

/// A stretch of the disk that is not all zero: where its frame lies in the data file, and its two digests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Number of the chunk on the disk, from 0.
    pub index: u32,
    /// Where its frame begins in the data file, in bytes.
    pub offset: u64,
    /// Length of the frame in bytes.
    pub length: u32,
    /// BLAKE3 of the frame as it travels.
    pub frame: Digest,
    /// BLAKE3 of the decompressed bytes, for reading back.
    pub raw: Digest,
    /// Where it belongs on the disk: `index` × chunk size. Not stored.
    pub disk_offset: u64,
    /// Decompressed length: the chunk size, less at the end of the disk. Not stored.
    pub raw_length: u32,
}

/// How to start the installed system, for boot loaders, `kexec` and people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// File system label of the root partition.
    pub root_label: String,
    /// Kernel release, as `uname -r` prints it.
    pub release: String,
    /// Paths on the root partition.
    pub kernel: String,
    pub initrd: String,
    /// The kernel command line of the image's own boot loader.
    pub command_line: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub name: String,
    /// Date of the build and a tag of its content: `20261121-3f2a9c01`. Sorts by age.
    pub release: String,
    /// Debian's name of the architecture.
    pub arch: String,
    pub roles: Vec<Role>,
    pub firmware: Vec<Firmware>,
    /// In bytes, a multiple of 512.
    pub disk_size: u64,
    pub chunk_size: u32,
    /// Decompressed bytes of all listed chunks: what is written to a disk.
    pub used_bytes: u64,
    /// Length of the data file with frames of zero chunks and seek table.
    pub data_size: u64,
    pub boot: Boot,
    /// Free facts: suite, number of packages; of a built image also its recipe's key and its [`super::snapshot`].
    pub labels: BTreeMap<String, String>,
    /// In the order of the disk, which is the order of the data file.
    pub chunks: Vec<Chunk>,
}

/// A manifest as JSON has it. Kept apart so that a [`Manifest`] is always one that has been checked.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    version: u32,
    name: String,
    release: String,
    arch: String,
    roles: Vec<Role>,
    firmware: Vec<Firmware>,
    disk_size: u64,
    chunk_size: u32,
    used_bytes: u64,
    data_size: u64,
    boot: Boot,
    labels: BTreeMap<String, String>,
    chunks: Vec<(u32, u64, u32, Digest, Digest)>,
}

fn malformed(why: impl std::fmt::Display) -> Error {
    Error::refused("image.manifest", format!("the image's manifest is not valid: {why}"))
        .hint("build or import the image again: `rackline image build NAME`")
}

impl Chunk {
    /// The chunk with what follows from its number filled in.
    pub fn place(index: u32, disk_size: u64, chunk_size: u32) -> Option<(u64, u32)> {
        let disk_offset = u64::from(index) * u64::from(chunk_size);
        let left = disk_size.checked_sub(disk_offset).filter(|left| *left > 0)?;
        Some((disk_offset, left.min(u64::from(chunk_size)) as u32))
    }
}

impl Manifest {
    /// Number of chunks on the disk, zero ones included.
    pub fn chunk_count(&self) -> u32 {
        self.disk_size.div_ceil(u64::from(self.chunk_size)) as u32
    }

    /// The listed chunk that holds this byte of the disk; `None` where the disk is zero.
    pub fn chunk_at(&self, disk_offset: u64) -> Option<&Chunk> {
        let index = u32::try_from(disk_offset / u64::from(self.chunk_size)).ok()?;
        self.chunks.binary_search_by_key(&index, |c| c.index).ok().and_then(|at| self.chunks.get(at))
    }

    /// The stretches of the disk that are zero, as (offset, length) in bytes: to be discarded, not written.
    pub fn zero_ranges(&self) -> Vec<(u64, u64)> {
        let mut ranges = Vec::new();
        let mut end = 0;
        for chunk in &self.chunks {
            if chunk.disk_offset > end {
                ranges.push((end, chunk.disk_offset - end));
            }
            end = chunk.disk_offset + u64::from(chunk.raw_length);
        }
        if self.disk_size > end {
            ranges.push((end, self.disk_size - end));
        }
        ranges
    }

    /// The bytes that are signed and whose digest names the image.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let wire = Wire {
            version: VERSION,
            name: self.name.clone(),
            release: self.release.clone(),
            arch: self.arch.clone(),
            roles: self.roles.clone(),
            firmware: self.firmware.clone(),
            disk_size: self.disk_size,
            chunk_size: self.chunk_size,
            used_bytes: self.used_bytes,
            data_size: self.data_size,
            boot: self.boot.clone(),
            labels: self.labels.clone(),
            chunks: self.chunks.iter().map(|c| (c.index, c.offset, c.length, c.frame, c.raw)).collect(),
        };
        let bytes = serde_json::to_vec(&wire).map_err(malformed)?;
        // What we could not read ourselves is never signed.
        Self::parse(&bytes)?;
        Ok(bytes)
    }

    /// From JSON whose signature has been checked, or that has just been made.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_BYTES {
            return Err(malformed(format_args!("it has {} bytes, at most {MAX_BYTES} are allowed", bytes.len())));
        }
        let wire: Wire = serde_json::from_slice(bytes).map_err(malformed)?;
        wire.check()
    }
}

impl Wire {
    fn check(self) -> Result<Manifest> {
        if self.version != VERSION {
            return Err(malformed(format_args!("it has format {}, this version reads {VERSION}", self.version)));
        }
        for (what, text) in [("name", &self.name), ("release", &self.release), ("arch", &self.arch)] {
            if !is_name(text) {
                return Err(malformed(format_args!("its {what} is {text:?}")));
            }
        }
        if self.firmware.is_empty() {
            return Err(malformed("no firmware can boot it"));
        }
        if !CHUNK_SIZES.contains(&self.chunk_size) || !self.chunk_size.is_power_of_two() {
            return Err(malformed(format_args!("its chunk size is {}", self.chunk_size)));
        }
        if self.disk_size == 0 || self.disk_size > MAX_DISK || !self.disk_size.is_multiple_of(512) {
            return Err(malformed(format_args!("its disk has {} bytes", self.disk_size)));
        }
        let count = self.disk_size.div_ceil(u64::from(self.chunk_size));
        if count > u64::from(chunk::MAX_FRAMES) {
            return Err(malformed(format_args!("{count} chunks are too many, use larger ones")));
        }
        let chunks = self.check_chunks(count)?;
        Ok(Manifest {
            name: self.name,
            release: self.release,
            arch: self.arch,
            roles: self.roles,
            firmware: self.firmware,
            disk_size: self.disk_size,
            chunk_size: self.chunk_size,
            used_bytes: self.used_bytes,
            data_size: self.data_size,
            boot: self.boot,
            labels: self.labels,
            chunks,
        })
    }

    /// Chunks ascend on the disk and in the file without touching one another, within both, and add up.
    fn check_chunks(&self, count: u64) -> Result<Vec<Chunk>> {
        let frames_end = self.data_size.checked_sub(chunk::seek_table_len(count as u32));
        let frames_end = frames_end.ok_or_else(|| malformed("the data file has no room for its seek table"))?;
        let (mut used, mut file_end, mut next) = (0u64, 0u64, 0u32);
        let mut chunks = Vec::with_capacity(self.chunks.len());
        for &(index, offset, length, frame, raw) in &self.chunks {
            let fault = |why: &str| Err(malformed(format_args!("chunk {index} {why}")));
            let Some((disk_offset, raw_length)) = Chunk::place(index, self.disk_size, self.chunk_size) else {
                return fault("lies beyond the end of the disk");
            };
            if index < next {
                return fault("is listed twice or out of order");
            }
            if length == 0 || u64::from(length) > chunk::max_frame(raw_length) {
                return fault("has a frame of impossible length");
            }
            if offset < file_end {
                return fault("overlaps the chunk before it in the data file");
            }
            file_end = match offset.checked_add(u64::from(length)) {
                Some(end) if end <= frames_end => end,
                _ => return fault("lies beyond the end of the data file"),
            };
            next = index + 1;
            used += u64::from(raw_length);
            chunks.push(Chunk { index, offset, length, frame, raw, disk_offset, raw_length });
        }
        if used != self.used_bytes {
            return Err(malformed(format_args!("it claims {} used bytes and lists {used}", self.used_bytes)));
        }
        Ok(chunks)
    }
}

/// Names of images, releases and architectures become file names and parts of URLs.
pub fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'+'))
        && text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
}

/// A manifest with its signature, taken apart but not yet believed.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedManifest {
    key: KeyId,
    signature: [u8; SIGNATURE_BYTES],
    manifest: Vec<u8>,
}

impl std::fmt::Debug for SignedManifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SignedManifest({}, key {})", self.digest(), self.key)
    }
}

impl SignedManifest {
    pub fn sign(manifest: &Manifest, key: &SigningKey) -> Result<Self> {
        let manifest = manifest.encode()?;
        Ok(Self { key: key.public().id(), signature: key.sign(&manifest), manifest })
    }

    /// Takes the file apart. That the manifest is genuine is for [`Self::verify`] to say.
    pub fn parse(file: &[u8]) -> Result<Self> {
        let (magic, rest) = file.split_first_chunk::<8>().ok_or_else(|| malformed("the file is too short"))?;
        if magic != MAGIC {
            return Err(malformed("the file does not begin as a signed manifest does"));
        }
        let short = || malformed("the file is cut off");
        let (key, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
        let (signature, rest) = rest.split_first_chunk::<SIGNATURE_BYTES>().ok_or_else(short)?;
        let (length, manifest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let length = u32::from_le_bytes(*length) as usize;
        if length != manifest.len() || length > MAX_BYTES {
            return Err(malformed(format_args!(
                "the file promises {length} bytes of manifest and has {}",
                manifest.len()
            )));
        }
        Ok(Self { key: KeyId(*key), signature: *signature, manifest: manifest.to_vec() })
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut file = Vec::with_capacity(HEADER + self.manifest.len());
        file.extend_from_slice(MAGIC);
        file.extend_from_slice(&self.key.0);
        file.extend_from_slice(&self.signature);
        file.extend_from_slice(&(self.manifest.len() as u32).to_le_bytes());
        file.extend_from_slice(&self.manifest);
        file
    }

    /// Names the image. The same bytes under another signature are the same image.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    pub fn key(&self) -> KeyId {
        self.key
    }

    /// The manifest, if one of the trusted keys signed it.
    pub fn verify(&self, trusted: &[PublicKey]) -> Result<Manifest> {
        let refused = |message: String| {
            Err(Error::refused("image.signature", message)
                .hint("sign the image with a key that this site trusts, or fetch it again: `rackline image list`"))
        };
        let Some(key) = trusted.iter().find(|key| key.id() == self.key) else {
            let known: Vec<String> = trusted.iter().map(|k| k.id().to_string()).collect();
            return refused(format!(
                "the image's manifest is signed with key {}, trusted is {}",
                self.key,
                if known.is_empty() { "none".to_owned() } else { known.join(", ") }
            ));
        };
        if !key.signed(&self.manifest, &self.signature) {
            return refused(format!("the signature of the image's manifest is wrong for key {}", self.key));
        }
        Manifest::parse(&self.manifest)
    }
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
pub mod tests;
