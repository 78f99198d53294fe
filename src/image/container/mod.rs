//! Container images that a host brings along: the layers of what `docker save` or an OCI tool wrote become one, and the
//! result waits in the cache, as `containers/RECIPE/NAME.tar`, for the next build of that recipe's image. The host loads
//! it at its first boot (images/docker), so that the first container starts from the local disk.
//!
//! Why one layer: Docker unpacks layers one after the other, each with its own synchronisation and its own file system.

pub mod archive;
mod layer;
pub mod tree;

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use self::archive::{Blobs, Hashed, Image, Sha256};
pub use self::layer::Contents;
use self::layer::Room;
use self::tree::{Content, Inode, Tree};
use super::cache::Cache;
use super::disk_full;
use super::recipe::Recipe;
use super::tool::{Progress, Tools};
use crate::durable;
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::Role;

/// Folder of the cache.
pub const FOLDER: &str = "containers";
/// Where the archives lie in the image.
pub const ON_THE_HOST: &str = "usr/share/rackline/containers";
const DOING: &str = "writing the container";

pub struct Options<'a> {
    /// An archive, packed or not, or an OCI layout in a folder.
    pub source: &'a Path,
    /// Name and tag; without one, that of the archive.
    pub tag: Option<&'a str>,
    /// Whose image brings it along.
    pub recipe: &'a Recipe,
    pub cache: &'a Cache,
    /// Bytes that all layers may unpack to.
    pub limit: u64,
}

/// The limit for what comes from elsewhere.
pub const LIMIT: u64 = 64 << 30;

#[derive(Debug)]
pub struct Flattened {
    pub archive: PathBuf,
    pub tag: String,
    pub layers: usize,
    /// Of all layers, unpacked, and of the one.
    pub before: u64,
    pub after: u64,
    /// Device nodes that were left out.
    pub devices: usize,
}

/// Flattens a container image and lays it ready for a recipe.
pub fn preload(options: &Options, progress: &dyn Progress) -> Result<Flattened> {
    let Options { source, recipe, cache, .. } = *options;
    if !recipe.roles.contains(&Role::Docker) {
        let what = format!("the image {} does not run containers: it has not the role docker", recipe.name);
        return Err(Error::input("image.into", what).hint("`--into docker`, or a recipe of your own with that role"));
    }
    let name = format!("container-for-{}", recipe.name);
    let tools = Tools::new(&name, cache.log(&name), progress)?;
    let _lock = cache.lock(&tools, &name)?;
    let work = cache.work(&name)?;

    let mut flat = flatten(&tools, source, work.path(), options.limit)?;
    let tag = options.tag.or(flat.image.tag.as_deref()).ok_or_else(|| {
        Error::input("image.tag", "the container has no name").hint("give it one: --name registry.example/app:1.0")
    })?;
    let tag = full_tag(tag)?;
    let out = work.path().join("out.tar");
    let after = write(&tools, &tag, &mut flat, work.path(), &out)?;
    tools.check_stopped()?;
    let folder = cache.folder(FOLDER)?.join(&recipe.name);
    fs::create_dir_all(&folder).map_err(|e| disk_full(e, DOING))?;
    // `/` and `:` have no place in a file name; `+` and `@` have none in a tag.
    let archive = folder.join(format!("{}.tar", tag.replace('/', "+").replace(':', "@")));
    durable::rename(&out, &archive).map_err(|e| disk_full(e, DOING))?;
    Ok(Flattened { archive, tag, layers: flat.image.layers.len(), before: flat.unpacked, after, devices: flat.devices })
}

/// A container's file system: what its layers leave, and the bytes of its files, which lie in the work folder.
pub struct Flat {
    pub image: Image,
    pub tree: Tree,
    pub contents: Contents,
    /// Bytes of all layers.
    pub unpacked: u64,
    /// Device nodes that were left out.
    pub devices: usize,
}

/// Reads an archive or an OCI layout, and applies its layers one after the other.
pub fn flatten(tools: &Tools, source: &Path, work: &Path, limit: u64) -> Result<Flat> {
    tools.step("reading the archive")?;
    let blobs = Blobs::open(&plain(tools, source, work)?)?;
    let image = blobs.image()?;
    let mut flat = Flat { image, tree: Tree::default(), contents: Contents::default(), unpacked: 0, devices: 0 };
    let mut room = Room { used: 0, limit };
    for (number, one) in flat.image.layers.iter().enumerate() {
        let unpacked = work.join(format!("layer-{number}"));
        layer::unpack(tools, &blobs, one, &unpacked, &mut room)?;
        flat.devices += layer::apply(&mut flat.tree, number, &unpacked)?;
        flat.contents.layers.push(unpacked);
    }
    flat.unpacked = room.used;
    Ok(flat)
}

/// Whether a file or folder is a container's rather than a disk's: a tar archive, maybe packed, or an OCI layout.
pub fn is_archive(path: &Path) -> bool {
    if path.is_dir() {
        return ["index.json", "manifest.json"].iter().any(|name| path.join(name).is_file());
    }
    let begins = || -> io::Result<Vec<u8>> {
        let mut head = Vec::new();
        let mut file = BufReader::new(File::open(path)?);
        let packer: Vec<u8> = io::BufRead::fill_buf(&mut file)?.iter().take(4).copied().collect();
        let plain: Box<dyn Read> = match packer[..] {
            [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::with_buffer(file)?),
            [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
            _ => Box::new(file),
        };
        plain.take(512).read_to_end(&mut head)?;
        Ok(head)
    };
    // POSIX.1, pax: the field `magic` of the first header.
    begins().is_ok_and(|head| head.get(257..262) == Some(b"ustar"))
}

/// The archives that wait for a recipe, sorted.
pub fn waiting(cache: &Cache, recipe: &str) -> Result<Vec<PathBuf>> {
    let folder = cache.folder(FOLDER)?.join(recipe);
    let entries = match fs::read_dir(&folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.or_fail(Kind::Config, "image.cache", || format!("cannot read {}", folder.display()))?,
    };
    let mut found: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "tar")).collect();
    found.sort();
    Ok(found)
}

/// `docker save | gzip` is common.
fn plain(tools: &Tools, source: &Path, work: &Path) -> Result<PathBuf> {
    let failed = || format!("cannot read {}", source.display());
    let path = fs::canonicalize(source).or_fail(Kind::Input, "image.source", failed)?;
    if path.is_dir() {
        return Ok(path);
    }
    super::import::convert::unwrapped(tools, &path, &work.join("archive.tar"))
}

/// With a tag behind the name; characters as in the reference grammar of distribution.
fn full_tag(text: &str) -> Result<String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b"._-/:".contains(&b);
    let parts = text.split('/').all(|part| part.starts_with(|c: char| c.is_ascii_alphanumeric()));
    if text.len() > 200 || !text.bytes().all(word) || !parts || text.ends_with(':') {
        return Err(Error::input("image.tag", format!("{text:?} is not the name of a container image"))
            .hint("as in `docker pull`: nginx:1.27, registry.example/team/app:2"));
    }
    let tagged = text.rsplit('/').next().is_some_and(|last| last.contains(':'));
    Ok(if tagged { text.to_owned() } else { format!("{text}:latest") })
}

/// One layer in the form of `docker save`, the same bytes for the same image. Returns the size of the layer.
fn write(tools: &Tools, tag: &str, flat: &mut Flat, work: &Path, out: &Path) -> Result<u64> {
    let failed = |e| disk_full(e, DOING);
    let layer = work.join("flat");
    let digest = write_layer(tools, &flat.tree, &mut flat.contents, &layer)?;
    let mut config = flat.image.config.clone();
    let made = config.get("created").cloned().unwrap_or_else(|| json!("1970-01-01T00:00:00Z"));
    config.insert("rootfs".into(), json!({ "type": "layers", "diff_ids": [digest.to_string()] }));
    let said = format!("{} layers in one", flat.image.layers.len());
    config
        .insert("history".into(), json!([{ "created": made, "created_by": "rackline image import", "comment": said }]));
    let config =
        serde_json::to_vec(&config).or_fail(Kind::Internal, "image.container", || "cannot write the config")?;
    let config_name = format!("{}.json", Sha256::of(&config).hex());
    let layer_name = format!("{}/layer.tar", digest.hex());
    let manifest = json!([{ "Config": config_name, "RepoTags": [tag], "Layers": [layer_name] }]).to_string();

    let mut archive = tar::Builder::new(BufWriter::new(File::create(out).map_err(failed)?));
    let mut one = File::open(&layer).map_err(failed)?;
    let size = one.metadata().map_err(failed)?.len();
    let mut add = |name: &str, size: u64, from: &mut dyn Read| {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, from)
    };
    add("manifest.json", manifest.len() as u64, &mut manifest.as_bytes()).map_err(failed)?;
    add(&config_name, config.len() as u64, &mut config.as_slice()).map_err(failed)?;
    let mut watched = Watched { inner: &mut one, tools, done: 0, total: size };
    add(&layer_name, size, &mut watched).map_err(|e| stopped_or(tools, e))?;
    let file = archive.into_inner().and_then(|b| b.into_inner().map_err(io::IntoInnerError::into_error));
    file.map_err(failed)?;
    Ok(size)
}

/// The file system as one tar archive, the same bytes for the same tree.
pub fn write_layer(tools: &Tools, tree: &Tree, contents: &mut Contents, to: &Path) -> Result<Sha256> {
    let failed = |e| disk_full(e, DOING);
    let file = Hashed::new(BufWriter::new(File::create(to).map_err(failed)?));
    let mut archive = tar::Builder::new(file);
    tools.step("making one layer of them")?;
    for (path, inode, before) in tree.entries() {
        append(tools, &mut archive, path, inode, before, contents).map_err(|e| stopped_or(tools, e))?;
    }
    let mut file = archive.into_inner().map_err(failed)?;
    file.flush().map_err(failed)?;
    Ok(file.digest())
}

fn append(
    tools: &Tools,
    archive: &mut tar::Builder<impl Write>,
    path: &Path,
    inode: &Inode,
    before: Option<&Path>,
    contents: &mut Contents,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(inode.mode);
    header.set_uid(inode.uid);
    header.set_gid(inode.gid);
    header.set_mtime(inode.mtime);
    header.set_size(0);
    if let Some(before) = before {
        header.set_entry_type(tar::EntryType::Link);
        return archive.append_link(&mut header, path, before);
    }
    let xattrs: Vec<(String, &[u8])> =
        inode.xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.as_slice())).collect();
    archive.append_pax_extensions(xattrs.iter().map(|(name, value)| (name.as_str(), *value)))?;
    match &inode.content {
        Content::Folder => {
            header.set_entry_type(tar::EntryType::Directory);
            archive.append_data(&mut header, path, io::empty())
        }
        Content::Fifo => {
            header.set_entry_type(tar::EntryType::Fifo);
            archive.append_data(&mut header, path, io::empty())
        }
        Content::Link(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            archive.append_link(&mut header, path, target)
        }
        &Content::File { layer, offset, size } => {
            header.set_size(size);
            let from = contents.read(layer, offset, size)?;
            let total = size;
            archive.append_data(&mut header, path, Watched { inner: &mut BufReader::new(from), tools, done: 0, total })
        }
    }
}

/// An error that stopping has made is told as such.
fn stopped_or(tools: &Tools, e: io::Error) -> Error {
    tools.check_stopped().err().unwrap_or_else(|| disk_full(e, DOING))
}

/// Ends with an error once the operator wants to stop.
struct Watched<'a> {
    inner: &'a mut dyn Read,
    tools: &'a Tools<'a>,
    done: u64,
    total: u64,
}

impl Read for Watched<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.tools.check_stopped().map_err(io::Error::other)?;
        let n = self.inner.read(out)?;
        self.done += n as u64;
        self.tools.steps(DOING, self.done, self.total);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_containers() {
        assert_eq!(full_tag("nginx").unwrap(), "nginx:latest");
        assert_eq!(full_tag("registry:5000/team/app").unwrap(), "registry:5000/team/app:latest");
        assert_eq!(full_tag("registry:5000/team/app:2").unwrap(), "registry:5000/team/app:2");
        for bad in ["", "-x", "a//b", "../a", "a b", "a:", "a@b", "a+b", "é"] {
            assert!(full_tag(bad).is_err(), "{bad:?}");
        }
    }
}
