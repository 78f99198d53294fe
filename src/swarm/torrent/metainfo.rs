//! The `.torrent` of an image: BEP 3, one file, private (BEP 27). The payload is the image's data file as it is.
//!
//! The same image always has the same info hash, whoever computes it. The SHA-1 of each piece is computed once and kept
//! beside the data file:
//!
//! | bytes | what of `pieces.sha1` |
//! |---|---|
//! | 20 × n | SHA-1 of each piece |
//! | 32 | BLAKE3 of the image's digest and all before it: a file that is cut short, damaged or of another image is not used |

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, digest};

use super::bencode::Value;
use crate::durable;
use crate::error::{Error, Kind, OrFail, Result};
use crate::image::Entry;
use crate::machine::Digest;

/// Beside the data file.
const KEPT: &str = "pieces.sha1";
const SHA1: usize = 20;
/// Pieces a torrent has at most, as long as they are not as large as can be: enough that machines have different ones to
/// give, few enough that bit fields and the `.torrent` stay small.
const PIECES: u64 = 2048;
/// Some clients refuse more.
const LARGEST_PIECE: u64 = 16 << 20;
const SMALLEST_PIECE: u64 = 256 << 10;

/// SHA-1 of the info dictionary: the name of a torrent.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct InfoHash(pub [u8; SHA1]);

impl fmt::Display for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InfoHash({self})")
    }
}

#[derive(Debug, Clone)]
pub struct Metainfo {
    pub info_hash: InfoHash,
    /// Of the payload, in bytes.
    pub length: u64,
    /// The info dictionary as it is hashed.
    info: Vec<u8>,
}

impl Metainfo {
    /// From the kept hashes; `None` where there are none that can be used. Reads a few KB.
    pub fn kept(image: &Entry) -> Option<Self> {
        let pieces = fs::read(image.data.with_file_name(KEPT)).ok()?;
        let (pieces, seal) = pieces.split_last_chunk::<32>()?;
        let count = image.manifest.data_size.div_ceil(piece_length(image.manifest.data_size));
        let whole = pieces.len() as u64 == count * SHA1 as u64 && *seal == seal_of(image.digest, pieces);
        whole.then(|| Self::new(image, pieces))
    }

    /// From the kept hashes, else from the data file: that reads all of it, at about 1 GB/s where it is in memory.
    pub fn of(image: &Entry) -> Result<Self> {
        if let Some(kept) = Self::kept(image) {
            return Ok(kept);
        }
        let pieces = hash(&image.data, image.manifest.data_size)?;
        if let Err(e) = keep(image, &pieces) {
            tracing::warn!(image = image.name(), error = %e, "the piece hashes of the torrent cannot be kept; they are computed each time");
        }
        Ok(Self::new(image, &pieces))
    }

    fn new(image: &Entry, pieces: &[u8]) -> Self {
        let length = image.manifest.data_size;
        let info = Value::from([
            ("length", length.into()),
            ("name", format!("{}.zst", image.name()).as_str().into()),
            ("piece length", piece_length(length).into()),
            ("pieces", Value::Bytes(pieces.to_vec())),
            ("private", 1.into()),
        ])
        .encode();
        let mut hash = [0; SHA1];
        hash.copy_from_slice(digest(&SHA1_FOR_LEGACY_USE_ONLY, &info).as_ref());
        Self { info_hash: InfoHash(hash), length, info }
    }

    /// The file for clients; `announce` is the URL of the only tracker.
    pub fn file(&self, announce: &str) -> Vec<u8> {
        Value::from([("announce", announce.into()), ("info", Value::Raw(self.info.clone()))]).encode()
    }
}

/// The smallest power of two that gives no more than [`PIECES`], within bounds.
fn piece_length(length: u64) -> u64 {
    length.div_ceil(PIECES).next_power_of_two().clamp(SMALLEST_PIECE, LARGEST_PIECE)
}

fn hash(data: &Path, length: u64) -> Result<Vec<u8>> {
    let unreadable = || format!("cannot read {}", data.display());
    let mut file = File::open(data).or_fail(Kind::NotFound, "torrent.data", unreadable)?;
    let (mut pieces, mut left) = (Vec::new(), length);
    let mut buffer = vec![0; 1 << 20];
    while left > 0 {
        let mut piece = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
        let mut missing = left.min(piece_length(length));
        left -= missing;
        while missing > 0 {
            let part = buffer.len().min(usize::try_from(missing).unwrap_or(usize::MAX));
            let part = buffer.get_mut(..part).unwrap_or_default();
            file.read_exact(part).or_fail(Kind::Internal, "torrent.data", unreadable)?;
            piece.update(part);
            missing -= part.len() as u64;
        }
        pieces.extend(piece.finish().as_ref());
    }
    match file.read(&mut buffer).or_fail(Kind::Internal, "torrent.data", unreadable)? {
        0 => Ok(pieces),
        _ => Err(Error::refused("torrent.data", format!("{} is longer than its manifest says", data.display()))
            .hint("build or import the image again: `rackline image build NAME`")),
    }
}

/// Under its final name only when it is whole.
fn keep(image: &Entry, pieces: &[u8]) -> std::io::Result<()> {
    let kept = [pieces, &seal_of(image.digest, pieces)].concat();
    durable::replace(&image.data.with_file_name(KEPT), &kept)
}

fn seal_of(image: Digest, pieces: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(image.to_string().as_bytes()).update(pieces).finalize().as_bytes()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::image::Library;
    use crate::image::chunk::{PackOptions, pack};
    use crate::image::manifest::tests::manifest_of;
    use crate::image::{SignedManifest, SigningKey};

    /// A folder of one image, `kvm-1`, whose disk has `size` bytes that do not compress.
    pub fn published(size: usize) -> (tempfile::TempDir, Library) {
        let dir = tempfile::tempdir().unwrap();
        let key = SigningKey::generate().unwrap();
        let folder = dir.path().join("kvm-1");
        fs::create_dir(&folder).unwrap();
        let mut disk = vec![0; size];
        blake3::Hasher::new().update(b"rackline torrent").finalize_xof().fill(&mut disk);
        let data = File::create(folder.join("disk.zst")).unwrap();
        let options = PackOptions { chunk_size: 64 << 10, level: 1, threads: 1 };
        let mut manifest = manifest_of(pack(&disk[..], size as u64, data, options, &|_| {}).unwrap());
        (manifest.name, manifest.release) = ("kvm".into(), "1".into());
        fs::write(folder.join("manifest"), SignedManifest::sign(&manifest, &key).unwrap().encode()).unwrap();
        let library = Library::open(dir.path(), &[key.public()]).unwrap();
        assert_eq!(library.current().images.len(), 1, "{:?}", library.current().unusable);
        (dir, library)
    }

    #[test]
    fn another_implementation_reads_the_same_torrent() {
        let (_dir, library) = published(1 << 20);
        let image = &library.current().images[0];
        let metainfo = Metainfo::of(image).unwrap();
        let file = metainfo.file("http://10.77.0.1/announce");
        let read = librqbit::torrent_from_bytes(&file).unwrap();
        assert_eq!(read.info_hash.0, metainfo.info_hash.0);
        assert_eq!(read.announce.as_ref().unwrap().as_ref(), b"http://10.77.0.1/announce");
        let info = &read.info.data;
        assert!(info.private);
        assert_eq!(info.name.as_ref().unwrap().as_ref(), b"kvm-1.zst");
        assert_eq!((info.length, u64::from(info.piece_length)), (Some(metainfo.length), SMALLEST_PIECE));
        let data = fs::read(&image.data).unwrap();
        assert_eq!(data.len() as u64, metainfo.length);
        let pieces: Vec<u8> = data
            .chunks(SMALLEST_PIECE as usize)
            .flat_map(|p| digest(&SHA1_FOR_LEGACY_USE_ONLY, p).as_ref().to_vec())
            .collect();
        assert_eq!(info.pieces.as_ref(), pieces);
    }

    #[test]
    fn hashes_are_kept_and_only_used_while_they_are_right() {
        let (_dir, library) = published(600 << 10);
        let image = &library.current().images[0];
        assert!(Metainfo::kept(image).is_none());
        let computed = Metainfo::of(image).unwrap().info_hash;
        assert_eq!(Metainfo::kept(image).unwrap().info_hash, computed);
        let path = image.data.with_file_name(KEPT);
        let right = fs::read(&path).unwrap();
        let mut flipped = right.clone();
        flipped[3] ^= 1;
        for wrong in [&flipped[..], &right[..right.len() - 1], &right[20..], b""] {
            fs::write(&path, wrong).unwrap();
            assert!(Metainfo::kept(image).is_none());
            assert_eq!(Metainfo::of(image).unwrap().info_hash, computed, "computed anew");
        }
        let mut other = image.clone();
        other.digest = Digest::of(b"another image");
        assert!(Metainfo::kept(&other).is_none());
        File::options().append(true).open(&image.data).unwrap().set_len(image.manifest.data_size + 1).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(Metainfo::of(image).unwrap_err().code(), "torrent.data");
    }

    #[test]
    fn pieces_are_neither_many_nor_huge() {
        for (length, piece) in [
            (1, 256 << 10),
            (512 << 20, 256 << 10),
            ((512 << 20) + 1, 512 << 10),
            (32 << 30, 16 << 20),
            (1 << 40, 16 << 20),
        ] {
            assert_eq!(piece_length(length), piece, "{length}");
        }
    }
}
