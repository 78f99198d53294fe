//! The two ways in which a container image lies in a file or folder, read alike: what `docker save` writes
//! (`manifest.json`, moby's image/spec/v1.2) and the OCI image layout (`index.json`, image-spec, image-layout.md; as a tar
//! archive or a folder). Every blob is compared with the digest by which it is named; of the layers, what they unpack to.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Take};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256, digest};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Kind, OrFail, Result};

/// Manifests and configurations have some KB.
const MAX_JSON: u64 = 4 << 20;
/// Docker itself takes 127.
const MAX_LAYERS: usize = 1000;
/// Names in the outer archive.
const MAX_BLOBS: usize = 10_000;

/// The parts of an image by their names.
pub enum Blobs {
    Folder(PathBuf),
    Archive { path: PathBuf, places: HashMap<PathBuf, Place> },
}

/// Where a blob lies within the archive, or the name of the one it equals.
#[derive(Clone)]
pub enum Place {
    At { offset: u64, size: u64 },
    Same(PathBuf),
}

/// One image: what it is to run, and its layers from the lowest on.
#[derive(Debug)]
pub struct Image {
    /// The configuration as JSON, the command and the environment within.
    pub config: serde_json::Map<String, serde_json::Value>,
    /// `library/nginx:1.27`, if the archive says one.
    pub tag: Option<String>,
    pub layers: Vec<Layer>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    pub blob: PathBuf,
    /// Of the blob as it lies there, where it is known.
    pub packed: Option<Sha256>,
    /// Of the tar archive that it unpacks to.
    pub unpacked: Sha256,
}

/// Written as `sha256:` and 64 digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Sha256(pub [u8; 32]);

impl TryFrom<String> for Sha256 {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{:?} is not a SHA-256 digest", text.chars().take(80).collect::<String>());
        let digits = text.strip_prefix("sha256:").ok_or_else(wrong)?;
        // The same form as our own digests.
        digits.parse::<crate::machine::Digest>().map(|d| Self(d.0)).map_err(|_| wrong())
    }
}

impl std::fmt::Display for Sha256 {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl Sha256 {
    pub fn of(bytes: &[u8]) -> Self {
        Self::from(digest(&SHA256, bytes))
    }

    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    fn blob(&self) -> PathBuf {
        Path::new("blobs/sha256").join(self.hex())
    }
}

impl From<aws_lc_rs::digest::Digest> for Sha256 {
    fn from(digest: aws_lc_rs::digest::Digest) -> Self {
        let mut bytes = [0; 32];
        bytes.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
        Self(bytes)
    }
}

/// Hashes what passes through it.
pub struct Hashed<T> {
    pub inner: T,
    pub context: Context,
}

impl<T> Hashed<T> {
    pub fn new(inner: T) -> Self {
        Self { inner, context: Context::new(&SHA256) }
    }

    pub fn digest(self) -> Sha256 {
        self.context.finish().into()
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.context.update(out.get(..n).unwrap_or_default());
        Ok(n)
    }
}

impl<W: io::Write> io::Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.context.update(bytes.get(..n).unwrap_or_default());
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Of `manifest.json`, one image.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: PathBuf,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: Sha256,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

#[derive(Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Config {
    os: String,
    architecture: String,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Sha256>,
}

pub fn wrong(what: impl Into<String>) -> Error {
    Error::input("image.container", what)
        .hint("save it again: `docker save NAME:TAG -o FILE`, or `skopeo copy docker://NAME:TAG oci-archive:FILE`")
}

impl Blobs {
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        let failed = || format!("cannot read {}", path.display());
        let file = File::open(path).or_fail(Kind::Input, "image.source", failed)?;
        let length = file.metadata().or_fail(Kind::Input, "image.source", failed)?.len();
        let mut places = HashMap::new();
        super::layer::scan(file, length, |entry| {
            let place = match entry.kind {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    Place::At { offset: entry.offset, size: entry.size }
                }
                // Docker before 25 writes a layer that comes twice as a link to the first.
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    let beside = match entry.kind {
                        tar::EntryType::Symlink => entry.path.parent().unwrap_or(Path::new("")),
                        _ => Path::new(""),
                    };
                    match lexical(&beside.join(entry.link.unwrap_or_default())) {
                        Some(target) => Place::Same(target),
                        None => return Err(wrong("a link in the archive leads out of it")),
                    }
                }
                _ => return Ok(()),
            };
            if let Some(path) = lexical(&entry.path) {
                places.insert(path, place);
            }
            match places.len() > MAX_BLOBS {
                true => Err(wrong(format!("the archive has more than {MAX_BLOBS} files"))),
                false => Ok(()),
            }
        })?;
        Ok(Self::Archive { path: path.to_owned(), places })
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(name).is_file(),
            Self::Archive { places, .. } => places.contains_key(Path::new(name)),
        }
    }

    /// A part for reading, with its size.
    pub fn read(&self, name: &Path) -> Result<(Take<File>, u64)> {
        let missing = || wrong(format!("{} names {}, which is not in it", self.path().display(), name.display()));
        let name = lexical(name).ok_or_else(missing)?;
        let failed = || format!("cannot read {}", self.path().display());
        match self {
            Self::Folder(folder) => {
                let path = folder.join(&name);
                // A link in a folder that came from elsewhere could name any file of this machine.
                if !path.symlink_metadata().is_ok_and(|m| m.is_file()) {
                    return Err(missing());
                }
                let file = File::open(&path).or_fail(Kind::Input, "image.source", failed)?;
                let size = file.metadata().or_fail(Kind::Input, "image.source", failed)?.len();
                Ok((file.take(size), size))
            }
            Self::Archive { path, places } => {
                let place = match places.get(&name) {
                    Some(Place::Same(other)) => places.get(other),
                    place => place,
                };
                let Some(&Place::At { offset, size }) = place else { return Err(missing()) };
                let mut file = File::open(path).or_fail(Kind::Input, "image.source", failed)?;
                file.seek(SeekFrom::Start(offset)).or_fail(Kind::Input, "image.source", failed)?;
                Ok((file.take(size), size))
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::Archive { path, .. } => path,
        }
    }

    /// A small part as a whole, compared with the digest by which it is named.
    fn small(&self, name: &Path, expected: Option<Sha256>) -> Result<Vec<u8>> {
        let (mut from, size) = self.read(name)?;
        if size > MAX_JSON {
            return Err(wrong(format!("{} has {} MiB, where some KB are expected", name.display(), size >> 20)));
        }
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).or_fail(Kind::Input, "image.source", || "cannot read the archive")?;
        match expected {
            Some(expected) if Sha256::of(&bytes) != expected => Err(damaged(name)),
            _ => Ok(bytes),
        }
    }

    fn described(&self, of: &Descriptor) -> Result<Vec<u8>> {
        let bytes = self.small(&of.digest.blob(), Some(of.digest))?;
        match bytes.len() as u64 == of.size {
            true => Ok(bytes),
            false => Err(damaged(&of.digest.blob())),
        }
    }

    /// The one image that is in it.
    pub fn image(&self) -> Result<Image> {
        match () {
            () if self.has("manifest.json") => self.saved(),
            () if self.has("index.json") => self.layout(),
            () => Err(wrong(format!(
                "{} is not a container image: it has neither manifest.json nor index.json",
                self.path().display()
            ))),
        }
    }

    fn saved(&self) -> Result<Image> {
        let name = Path::new("manifest.json");
        let images: Vec<Saved> = json(&self.small(name, None)?, name)?;
        let count = images.len();
        let Ok([image]) = <[Saved; 1]>::try_from(images) else {
            return Err(wrong(format!("the archive has {count} images, where one is expected")));
        };
        // The configuration is named after its digest: DIGITS.json, or blobs/sha256/DIGITS.
        let digits = image.config.file_stem().map(|s| format!("sha256:{}", s.to_string_lossy()));
        let expected = digits.and_then(|d| Sha256::try_from(d).ok());
        let expected = expected.ok_or_else(|| wrong("the configuration of the image is not named after its digest"))?;
        let (config, diff_ids) = config(&self.small(&image.config, Some(expected))?, &image.config)?;
        let layers = image.layers.into_iter().map(|blob| (blob, None)).collect();
        Ok(Image { config, tag: image.repo_tags.and_then(|t| t.into_iter().next()), layers: paired(layers, diff_ids)? })
    }

    fn layout(&self) -> Result<Image> {
        let name = Path::new("index.json");
        let mut index: Index = json(&self.small(name, None)?, name)?;
        let mut tag = None;
        // An index may name indexes: one for each platform.
        for _ in 0..3 {
            let chosen = choose(index.manifests)?;
            // containerd's and Docker's full name; OCI's own is often only the tag.
            let named = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
            tag = tag
                .or_else(|| named.iter().find_map(|n| chosen.annotations.get(*n)).filter(|n| n.contains(':')).cloned());
            let bytes = self.described(&chosen)?;
            let name = chosen.digest.blob();
            if chosen.media_type.contains("index") || chosen.media_type.contains("manifest.list") {
                index = json(&bytes, &name)?;
                continue;
            }
            let manifest: Manifest = json(&bytes, &name)?;
            let (config, diff_ids) = config(&self.described(&manifest.config)?, &manifest.config.digest.blob())?;
            let layers = manifest.layers.into_iter().map(|l| (l.digest.blob(), Some(l.digest))).collect();
            return Ok(Image { config, tag, layers: paired(layers, diff_ids)? });
        }
        Err(wrong("the index names only other indexes"))
    }
}

/// The one for our machines.
fn choose(manifests: Vec<Descriptor>) -> Result<Descriptor> {
    let count = manifests.len();
    // Attestations are listed as images of an unknown platform.
    let mut ours = manifests
        .into_iter()
        .filter(|d| d.platform.as_ref().is_none_or(|p| p.os == "linux" && p.architecture == "amd64"));
    match (ours.next(), ours.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(wrong(format!("none of its {count} images is for Linux on amd64"))),
        _ => Err(wrong("it has several images for Linux on amd64, where one is expected")),
    }
}

type Fields = serde_json::Map<String, serde_json::Value>;

fn config(bytes: &[u8], name: &Path) -> Result<(Fields, Vec<Sha256>)> {
    let Config { os, architecture, rootfs } = json(bytes, name)?;
    match (os.as_str(), architecture.as_str()) {
        ("linux", "amd64") => Ok((json(bytes, name)?, rootfs.diff_ids)),
        _ => Err(wrong(format!("the container is for {os} on {architecture}, not for Linux on amd64"))),
    }
}

fn paired(layers: Vec<(PathBuf, Option<Sha256>)>, diff_ids: Vec<Sha256>) -> Result<Vec<Layer>> {
    if layers.len() != diff_ids.len() || layers.is_empty() || layers.len() > MAX_LAYERS {
        let (layers, ids) = (layers.len(), diff_ids.len());
        return Err(wrong(format!(
            "the image has {layers} layers, and digests of {ids} (1 to {MAX_LAYERS} are taken)"
        )));
    }
    let pair = |((blob, packed), unpacked)| Layer { blob, packed, unpacked };
    Ok(layers.into_iter().zip(diff_ids).map(pair).collect())
}

fn json<T: DeserializeOwned>(bytes: &[u8], name: &Path) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| wrong(format!("{} is not as it must be: {e}", name.display())))
}

pub fn damaged(name: &Path) -> Error {
    Error::refused("image.digest", format!("{} is not what its digest says", name.display()))
        .hint("the archive is damaged or was changed; save the image again")
}

/// A name without `.` and `..`; none if it leads out.
fn lexical(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::Normal(part) => clean.push(part),
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir if clean.pop() => {}
            _ => return None,
        }
    }
    Some(clean)
}
