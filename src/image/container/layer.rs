//! One layer: unpacked to a tar archive of its own, compared with its digests, and read entry by entry.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use tar::EntryType;

use super::archive::{Blobs, Hashed, Layer, damaged, wrong};
use super::tree::{Content, Inode, Item, Tree};
use crate::error::{Error, Kind, OrFail, Result};
use crate::image::disk_full;
use crate::image::tool::Tools;

/// The text before an entry that says what its header has no room for: long names, extended attributes.
const MAX_EXTENSION: u64 = 1 << 20;
const PIECE: usize = 1 << 20;
const XATTR: &str = "SCHILY.xattr.";

/// An entry of a tar archive.
pub struct Entry<'a> {
    pub path: PathBuf,
    pub kind: EntryType,
    /// Of its bytes within the archive.
    pub offset: u64,
    pub size: u64,
    pub link: Option<PathBuf>,
    pub header: &'a tar::Header,
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// What stands before an entry.
#[derive(Default)]
struct Extension {
    path: Option<PathBuf>,
    link: Option<PathBuf>,
    uid: Option<u64>,
    gid: Option<u64>,
    xattrs: Vec<(String, Vec<u8>)>,
}

/// Calls `visit` for each entry; the content is passed over. `tar::Entry` itself would read extensions of any length.
pub fn scan(file: impl Read + Seek, length: u64, mut visit: impl FnMut(Entry) -> Result<()>) -> Result<()> {
    let bad = |e: io::Error| wrong("the tar archive is damaged or cut off").because(e);
    let mut archive = tar::Archive::new(file);
    let mut before = Extension::default();
    for entry in archive.entries_with_seek().map_err(bad)?.raw(true) {
        let mut entry = entry.map_err(bad)?;
        let kind = entry.header().entry_type();
        let (offset, size) = (entry.raw_file_position(), entry.header().entry_size().map_err(bad)?);
        if offset.checked_add(size).is_none_or(|end| end > length) {
            return Err(wrong("the tar archive is cut off"));
        }
        if matches!(kind, EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink) {
            if size > MAX_EXTENSION {
                return Err(Error::refused("image.container", "a name or attribute in a tar archive has over 1 MiB"));
            }
            let mut text = Vec::new();
            entry.read_to_end(&mut text).map_err(bad)?;
            before.read(kind, text)?;
            continue;
        }
        if kind == EntryType::XGlobalHeader {
            continue;
        }
        let path_of = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
        let Extension { path, link, uid, gid, xattrs } = std::mem::take(&mut before);
        let mut header = entry.header().clone();
        uid.into_iter().for_each(|uid| header.set_uid(uid));
        gid.into_iter().for_each(|gid| header.set_gid(gid));
        visit(Entry {
            path: path.unwrap_or_else(|| path_of(&header.path_bytes())),
            kind,
            offset,
            size,
            link: link.or_else(|| header.link_name_bytes().map(|l| path_of(&l))),
            header: &header,
            xattrs,
        })?;
    }
    Ok(())
}

impl Extension {
    fn read(&mut self, kind: EntryType, mut text: Vec<u8>) -> Result<()> {
        let path = |bytes: Vec<u8>| Some(PathBuf::from(OsString::from_vec(bytes)));
        if kind != EntryType::XHeader {
            text.truncate(text.iter().position(|b| *b == 0).unwrap_or(text.len()));
            match kind {
                EntryType::GNULongName => self.path = path(text),
                _ => self.link = path(text),
            }
            return Ok(());
        }
        for pair in tar::PaxExtensions::new(&text) {
            let bad = || wrong("an attribute in a tar archive is damaged");
            let pair = pair.map_err(|e| bad().because(e))?;
            let (key, value) = (pair.key().map_err(|e| bad().because(e))?, pair.value_bytes().to_vec());
            let number = || pair.value().ok().and_then(|v| v.parse::<u64>().ok()).ok_or_else(bad);
            match key {
                "path" => self.path = path(value),
                "linkpath" => self.link = path(value),
                "uid" => self.uid = Some(number()?),
                "gid" => self.gid = Some(number()?),
                // Where the content ends would be another place for us than for the reader of headers.
                "size" => return Err(wrong("the container has a file of over 8 GiB, which is not taken")),
                key => {
                    if let Some(name) = key.strip_prefix(XATTR) {
                        self.xattrs.push((name.to_owned(), value));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Bytes that the layers of one image have unpacked to, and may.
pub struct Room {
    pub used: u64,
    pub limit: u64,
}

/// Writes the tar archive that the layer is to `to`.
pub fn unpack(tools: &Tools, blobs: &Blobs, layer: &Layer, to: &Path, room: &mut Room) -> Result<()> {
    let (blob, _) = blobs.read(&layer.blob)?;
    let mut source = BufReader::new(Hashed::new(blob));
    let head = io::Read::by_ref(&mut source).fill_head().map_err(|e| cut_off(&layer.blob, e))?;
    let mut out = Hashed::new(BufWriter::new(File::create(to).map_err(|e| disk_full(e, "unpacking the layers"))?));
    let mut limited = Limited { tools, out: &mut out, room };
    match head {
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let mut unpacked = zstd::Decoder::with_buffer(&mut source).map_err(|e| cut_off(&layer.blob, e))?;
            limited.copy(&mut unpacked, &layer.blob)?;
        }
        [0x1f, 0x8b, ..] => limited.copy(&mut flate2::bufread::MultiGzDecoder::new(&mut source), &layer.blob)?,
        _ => limited.copy(&mut source, &layer.blob)?,
    }
    // What a decompressor leaves belongs to the blob.
    io::copy(&mut source, &mut io::sink()).map_err(|e| cut_off(&layer.blob, e))?;
    out.flush().map_err(|e| disk_full(e, "unpacking the layers"))?;
    let packed = source.into_inner().digest();
    match out.digest() == layer.unpacked && layer.packed.is_none_or(|expected| expected == packed) {
        true => Ok(()),
        false => Err(damaged(&layer.blob)),
    }
}

trait Head {
    fn fill_head(&mut self) -> io::Result<[u8; 4]>;
}

impl<R: io::BufRead> Head for R {
    /// The first bytes, which stay to be read.
    fn fill_head(&mut self) -> io::Result<[u8; 4]> {
        let mut head = [0; 4];
        head.iter_mut().zip(self.fill_buf()?).for_each(|(to, from)| *to = *from);
        Ok(head)
    }
}

fn cut_off(blob: &Path, e: io::Error) -> Error {
    wrong(format!("the layer {} is cut off or damaged", blob.display())).because(e)
}

struct Limited<'a, W> {
    tools: &'a Tools<'a>,
    out: W,
    room: &'a mut Room,
}

impl<W: Write> Limited<'_, W> {
    fn copy(&mut self, source: &mut dyn Read, blob: &Path) -> Result<()> {
        let mut piece = vec![0; PIECE];
        loop {
            self.tools.check_stopped()?;
            let bytes = match source.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(n) => piece.get(..n).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(cut_off(blob, e)),
            };
            self.room.used += bytes.len() as u64;
            if self.room.used > self.room.limit {
                let what = format!("the layers unpack to more than {} MiB", self.room.limit >> 20);
                return Err(Error::refused("image.size", what).hint("such a container cannot be preloaded"));
            }
            self.tools.steps("unpacking the layers", self.room.used, 0);
            self.out.write_all(bytes).map_err(|e| disk_full(e, "unpacking the layers"))?;
        }
    }
}

/// Applies an unpacked layer to the tree; returns how many device nodes were left out, which the runtime makes itself.
pub fn apply(tree: &mut Tree, number: usize, unpacked: &Path) -> Result<usize> {
    let failed = || format!("cannot read {}", unpacked.display());
    let file = File::open(unpacked).or_fail(Kind::Internal, "image.source", failed)?;
    let length = file.metadata().or_fail(Kind::Internal, "image.source", failed)?.len();
    let mut devices = 0;
    scan(file, length, |entry| {
        let link = || {
            entry
                .link
                .clone()
                .filter(|l| !l.as_os_str().is_empty() && l.as_os_str().len() < 4096)
                .ok_or_else(|| wrong(format!("the link {} in a layer leads nowhere", entry.path.display())))
        };
        let content = match entry.kind {
            EntryType::Directory => Content::Folder,
            EntryType::Regular | EntryType::Continuous => {
                Content::File { layer: number, offset: entry.offset, size: entry.size }
            }
            EntryType::Symlink => Content::Link(link()?),
            EntryType::Fifo => Content::Fifo,
            EntryType::Link => return tree.apply(number, &entry.path, Item::HardLink(link()?)),
            EntryType::Char | EntryType::Block => {
                devices += 1;
                return Ok(());
            }
            kind => {
                let what = format!("{} in a layer is of a kind ({kind:?}) that is not taken", entry.path.display());
                return Err(Error::refused("image.container", what));
            }
        };
        let bad = |e: io::Error| wrong("a header in a layer is damaged").because(e);
        let inode = Inode {
            mode: entry.header.mode().map_err(bad)? & 0o7777,
            uid: entry.header.uid().map_err(bad)?,
            gid: entry.header.gid().map_err(bad)?,
            // Before 1970 is as good as then.
            mtime: entry.header.mtime().unwrap_or(0),
            xattrs: entry.xattrs.clone(),
            content,
        };
        tree.apply(number, &entry.path, Item::Node(inode))
    })?;
    Ok(devices)
}

/// Reads what files contain out of the unpacked layers.
#[derive(Default)]
pub struct Contents {
    pub layers: Vec<PathBuf>,
    open: HashMap<usize, File>,
}

impl Contents {
    pub fn read(&mut self, layer: usize, offset: u64, size: u64) -> io::Result<impl Read + '_> {
        let path = self.layers.get(layer).ok_or(io::ErrorKind::NotFound)?;
        let file = match self.open.entry(layer) {
            std::collections::hash_map::Entry::Occupied(there) => there.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => new.insert(File::open(path)?),
        };
        file.seek(io::SeekFrom::Start(offset))?;
        Ok(file.take(size))
    }
}
