//! A raw disk becomes an image of the catalogue: packed, named after its content, signed, read back, published. The same
//! for what was built here and for what came from elsewhere.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Read};
use std::path::Path;

use super::cache::Cache;
use super::catalogue::{Catalogue, DATA, Entry, MANIFEST};
use super::chunk::{PackOptions, Packed, pack};
use super::manifest::{Boot, DEFAULT_CHUNK_SIZE, Manifest, SignedManifest};
use super::sign::SigningKey;
use super::tool::Tools;
use crate::error::{Kind, OrFail, Result};
use crate::machine::{Firmware, Role};

/// zstd level of the data file.
const LEVEL: i32 = 9;

/// What is known of an image besides its bytes.
pub struct Draft {
    pub name: String,
    /// Seconds since 1970: the date in the release.
    pub epoch: u64,
    pub arch: String,
    pub roles: Vec<Role>,
    pub firmware: Vec<Firmware>,
    pub boot: Boot,
    pub labels: BTreeMap<String, String>,
}

/// `work` is an empty folder on the file system of the cache.
pub fn publish(
    tools: &Tools,
    cache: &Cache,
    key: &SigningKey,
    raw: &Path,
    size: u64,
    draft: Draft,
    work: &Path,
) -> Result<Entry> {
    let out = work.join("out");
    let failed = |e| super::disk_full(e, "writing the image");
    fs::create_dir(&out).map_err(failed)?;
    let packed = pack_file(tools, raw, size, &out.join(DATA))?;
    let tag = content_tag(&packed);
    let manifest = draft.manifest(&tag, packed)?;
    let images = cache.folder("images")?;
    // The same bytes under the same name, with nothing else said of them, are the version that is there.
    let catalogue = Catalogue::open(&images, &[key.public()])?;
    let verify = |entry: &Entry| entry.verify(&|done| tools.steps("verifying the image", done, size));
    if let Some(same) = catalogue.images.iter().find(|e| same_but_date(&e.manifest, &manifest))
        && verify(same).is_ok()
    {
        return Ok(same.clone());
    }
    let signed = SignedManifest::sign(&manifest, key)?;
    fs::write(out.join(MANIFEST), signed.encode()).map_err(failed)?;

    let entry = Entry::open(&out, &[key.public()])?;
    verify(&entry)?;
    tools.check_stopped()?;
    let target = images.join(entry.name());
    cache.publish(&out, &target)?;
    Entry::open(&target, &[key.public()])
}

fn pack_file(tools: &Tools, raw: &Path, size: u64, data: &Path) -> Result<Packed> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let options = PackOptions { chunk_size: DEFAULT_CHUNK_SIZE, level: LEVEL, threads };
    let source = File::open(raw).or_fail(Kind::Internal, "image.source", || "cannot read the raw disk")?;
    let file = File::create(data).map_err(|e| super::disk_full(e, "writing the image"))?;
    let source = Stoppable { source, tools };
    let packed = pack(source, size, BufWriter::new(&file), options, &|done| tools.steps("compressing", done, size));
    tools.check_stopped()?;
    let packed = packed?;
    file.sync_all().map_err(|e| super::disk_full(e, "writing the image"))?;
    tools.check_stopped()?;
    Ok(packed)
}

/// A source that ends with an error once the operator wants to stop.
struct Stoppable<'a> {
    source: File,
    tools: &'a Tools<'a>,
}

impl Read for Stoppable<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        self.tools.check_stopped().map_err(std::io::Error::other)?;
        self.source.read(out)
    }
}

/// Eight digits that follow from what is on the disk, however it is compressed.
fn content_tag(packed: &Packed) -> String {
    let content = packed.chunks.iter().fold(blake3::Hasher::new(), |mut hasher, chunk| {
        hasher.update(&chunk.disk_offset.to_le_bytes()).update(&chunk.raw.0);
        hasher
    });
    content.finalize().to_hex()[..8].to_owned()
}

fn same_but_date(a: &Manifest, b: &Manifest) -> bool {
    let mut a = a.clone();
    a.release.clone_from(&b.release);
    a == *b
}

impl Draft {
    fn manifest(self, tag: &str, packed: Packed) -> Result<Manifest> {
        Ok(Manifest {
            name: self.name,
            release: format!("{}-{tag}", date(self.epoch)?),
            arch: self.arch,
            roles: self.roles,
            firmware: self.firmware,
            disk_size: packed.disk_size,
            chunk_size: packed.chunk_size,
            used_bytes: packed.used_bytes,
            data_size: packed.data_size,
            boot: self.boot,
            labels: self.labels,
            chunks: packed.chunks,
        })
    }
}

/// `20261121`.
fn date(epoch: u64) -> Result<String> {
    let seconds = i64::try_from(epoch).unwrap_or(i64::MAX);
    let when = jiff::Timestamp::from_second(seconds)
        .or_fail(Kind::Input, "image.epoch", || format!("{epoch} is not a date"))?;
    Ok(when.strftime("%Y%m%d").to_string())
}
