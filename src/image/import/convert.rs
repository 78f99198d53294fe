//! Any disk image that people hand us, as a raw disk.
//!
//! The format is told from the first bytes and never from the name, and given to `qemu-img` explicitly: its own guess can
//! be steered by what a guest writes into its disk. Formats can name other files as parts or beneath them (qcow2 backing
//! and data files, VMDK descriptors and parents); those are refused before `qemu-img` sees the file, since it would open
//! whatever is named there. It runs without a network, with limits on memory and on what it writes, and gets absolute
//! paths, in which no protocol (`nbd:`, `json:`) is looked for.
//!
//! Where an image was cut off, `qemu-img convert` puts zeros without a word (7.2, qcow2 and VMDK), so `qemu-img check` goes
//! first.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::error::{Error, Kind, OrFail, Result};
use crate::image::chunk::is_zero;
use crate::image::disk_full;
use crate::image::inspect::table::truncated;
use crate::image::tool::Tools;

/// The largest disk that is taken in; the free room of the cache is a narrower limit for what is really used.
pub const MAX_SIZE: u64 = 1 << 40;
/// Memory of `qemu-img`: tables of an image of that size with the smallest clusters.
const MEMORY: u64 = 2 << 30;
/// Output of `qemu-img check` and `info`.
const MAX_SAID: u64 = 16 << 20;
const PIECE: usize = 1 << 20;

/// A raw disk, and what it was.
pub struct Source {
    pub path: PathBuf,
    pub format: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Raw,
    Qcow2,
    Vmdk,
    Vhdx,
    Vpc,
    Zstd,
    Gzip,
    Xz,
}

impl Format {
    /// As `qemu-img` calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhdx => "vhdx",
            Self::Vpc => "vpc",
            Self::Zstd => "raw.zst",
            Self::Gzip => "raw.gz",
            Self::Xz => "raw.xz",
        }
    }
}

/// The raw disk in `file`: the file itself where it is one, else made in the folder `work`.
pub fn raw_disk(tools: &Tools, file: &Path, work: &Path) -> Result<Source> {
    let unreadable = || format!("cannot read {}", file.display());
    let file = &fs::canonicalize(file).or_fail(Kind::Input, "image.source", unreadable)?;
    let about = fs::metadata(file).or_fail(Kind::Input, "image.source", unreadable)?;
    if !about.is_file() {
        return Err(Error::input("image.source", format!("{} is not a file", file.display())));
    }
    let raw = work.join("disk.raw");
    let outer = recognise(file)?;
    let (path, inner) = match outer {
        Format::Zstd | Format::Gzip | Format::Xz => {
            let unpacked = work.join("unpacked");
            decompress(tools, file, outer, &unpacked)?;
            let inner = recognise(&unpacked)?;
            if matches!(inner, Format::Zstd | Format::Gzip | Format::Xz) {
                return Err(
                    Error::input("image.format", "the file is compressed more than once").hint("unpack it first")
                );
            }
            (unpacked, inner)
        }
        _ => (file.clone(), outer),
    };
    let path = match inner {
        Format::Raw => path,
        _ => {
            convert(tools, &path, inner, work, &raw)?;
            raw
        }
    };
    let size = fs::metadata(&path).or_fail(Kind::Input, "image.source", unreadable)?.len();
    if size % 512 != 0 {
        return Err(truncated(&format!("it has {size} bytes, which are not whole sectors")));
    }
    check_size(size)?;
    Ok(Source { path, format: if inner == Format::Raw { outer.name() } else { inner.name() } })
}

fn check_size(size: u64) -> Result<()> {
    match size {
        0 => Err(Error::input("image.size", "the disk image is empty")),
        1..=MAX_SIZE => Ok(()),
        _ => Err(Error::input(
            "image.size",
            format!("the disk image has {} GiB, at most {} are taken", size >> 30, MAX_SIZE >> 30),
        )
        .hint("shrink its file system and its disk first; it grows again at the first boot")),
    }
}

/// The file itself, or what is in it if a compressor packed it, as `to`.
pub fn unwrapped(tools: &Tools, file: &Path, to: &Path) -> Result<PathBuf> {
    match wrapping(&head_of(file)?.1) {
        None => Ok(file.to_owned()),
        Some(format) => decompress(tools, file, format, to).map(|()| to.to_owned()),
    }
}

/// The file and how it begins.
fn head_of(path: &Path) -> Result<(File, Vec<u8>)> {
    let failed = || format!("cannot read {}", path.display());
    let mut file = File::open(path).or_fail(Kind::Input, "image.source", failed)?;
    let mut head = vec![0; 1024];
    let mut length = 0;
    while let Some(rest) = head.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read(rest).or_fail(Kind::Input, "image.source", failed)? {
            0 => break,
            n => length += n,
        }
    }
    Ok((file, head))
}

fn wrapping(head: &[u8]) -> Option<Format> {
    match () {
        () if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) => Some(Format::Zstd),
        () if head.starts_with(&[0x1f, 0x8b]) => Some(Format::Gzip),
        () if head.starts_with(b"\xfd7zXZ\0") => Some(Format::Xz),
        () => None,
    }
}

fn recognise(path: &Path) -> Result<Format> {
    let (mut file, mut head) = head_of(path)?;
    if let Some(wrapping) = wrapping(&head) {
        return Ok(wrapping);
    }
    let is = |at: usize, magic: &[u8]| head.get(at..at + magic.len()) == Some(magic);
    let format = match () {
        () if is(0, b"QFI\xfb") => Format::Qcow2,
        () if is(0, b"KDMV") || is(0, b"COWD") => Format::Vmdk,
        () if is(0, b"vhdxfile") => Format::Vhdx,
        () if is(0, b"conectix") => Format::Vpc,
        () if is(0, b"# Disk DescriptorFile") => {
            return Err(other_file("a VMDK descriptor, which names the files with the data")
                .hint("make one file of it: `qemu-img convert -f vmdk -O qcow2 IMAGE.vmdk IMAGE.qcow2`"));
        }
        () if is(257, b"ustar") => {
            return Err(Error::input("image.format", "the file is a tar archive").hint(
                "a container image is imported with `--as container`; of other archives, unpack the disk image first",
            ));
        }
        // A fixed VHD is a raw disk with one sector behind it.
        () if file.seek(SeekFrom::End(-512)).is_ok()
            && file.read_exact(&mut head[..8]).is_ok()
            && head.starts_with(b"conectix") =>
        {
            Format::Vpc
        }
        () => Format::Raw,
    };
    match format {
        Format::Qcow2 => check_qcow2(&file)?,
        Format::Vmdk => check_vmdk(&file)?,
        _ => {}
    }
    Ok(format)
}

fn other_file(what: &str) -> Error {
    Error::refused("image.other-file", format!("the disk image needs another file: {what}"))
}

/// The header of qcow2 (QEMU's docs/interop/qcow2.txt): what it needs besides itself.
fn check_qcow2(file: &File) -> Result<()> {
    let mut header = [0; 104];
    file.read_exact_at(&mut header, 0).map_err(|e| truncated("its qcow2 header is cut off").because(e))?;
    let number = |at: usize, bytes: usize| {
        header.get(at..at + bytes).unwrap_or_default().iter().fold(0u64, |n, b| n << 8 | u64::from(*b))
    };
    let (version, backing, backing_length, crypt) = (number(4, 4), number(8, 8), number(16, 4), number(32, 4));
    if backing != 0 {
        let mut name = vec![0; backing_length.min(1023) as usize];
        let _ = file.read_exact_at(&mut name, backing);
        let name: String = String::from_utf8_lossy(&name).chars().filter(|c| !c.is_control()).collect();
        return Err(other_file(&format!("it is only the difference to its backing file {name:?}"))
            .hint("make it whole where both files are: `qemu-img convert -O qcow2 IMAGE.qcow2 WHOLE.qcow2`"));
    }
    if crypt != 0 {
        return Err(encrypted());
    }
    // Incompatible feature 2: external data file.
    if version >= 3 && number(72, 8) & 4 != 0 {
        return Err(other_file("its data is in an external data file")
            .hint("make it whole where both files are: `qemu-img convert -O qcow2 IMAGE.qcow2 WHOLE.qcow2`"));
    }
    check_size(number(24, 8))
}

fn encrypted() -> Error {
    Error::refused("image.encrypted", "the disk image is encrypted").hint("convert it to one without encryption first")
}

/// Hosted sparse extents with their own header only (VMware's Virtual Disk Format 5.0): a descriptor within the file names
/// its parent, and where the header says that the disk has no sectors, QEMU takes all extents from the descriptor.
fn check_vmdk(file: &File) -> Result<()> {
    let mut header = [0; 512];
    file.read_exact_at(&mut header, 0).map_err(|e| truncated("its VMDK header is cut off").because(e))?;
    let number = |at: usize| header.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    if header.starts_with(b"COWD") || number(12) == 0 {
        return Err(other_file("it is one extent of a VMDK of several files")
            .hint("make one file of it: `qemu-img convert -f vmdk -O qcow2 IMAGE.vmdk IMAGE.qcow2`"));
    }
    let (at, sectors) = (number(28).saturating_mul(512), number(36).min(2048));
    let mut descriptor = vec![0; (sectors * 512) as usize];
    if at != 0 {
        let length = file.read_at(&mut descriptor, at).unwrap_or(0);
        descriptor.truncate(length);
    }
    let descriptor = String::from_utf8_lossy(&descriptor).to_lowercase();
    let value = |key: &str| {
        let line = descriptor.lines().find_map(|l| l.trim().strip_prefix(key)?.trim_start().strip_prefix('='));
        line.map(|v| v.trim().trim_matches(['"', '\0']).to_owned())
    };
    if value("parentcid").is_some_and(|cid| cid != "ffffffff") || value("parentfilenamehint").is_some() {
        return Err(other_file("it is only the difference to its parent disk")
            .hint("export the whole disk: `qemu-img convert` where both files are, or the hypervisor's export"));
    }
    check_size(number(12).saturating_mul(512))
}

/// Writes what a compressor packed, with holes where it is zero.
fn decompress(tools: &Tools, from: &Path, format: Format, to: &Path) -> Result<()> {
    let unreadable = || format!("cannot read {}", from.display());
    let file = File::open(from).or_fail(Kind::Input, "image.source", unreadable)?;
    let total = file.metadata().or_fail(Kind::Input, "image.source", unreadable)?.len();
    let mut out = File::create(to).map_err(|e| disk_full(e, "unpacking the disk image"))?;
    let counted = Counted { file, tools, total, done: 0 };
    let mut child = None;
    let mut source: Box<dyn Read> = match format {
        Format::Gzip => Box::new(flate2::read::MultiGzDecoder::new(counted)),
        Format::Zstd => Box::new(zstd::Decoder::new(counted).map_err(|e| disk_full(e, "unpacking the disk image"))?),
        _ => {
            drop(counted);
            let mut running = xz(from)?;
            let output = running.stdout.take().ok_or_else(|| Error::internal("image.tool", "xz has no output"))?;
            child = Some(running);
            Box::new(output)
        }
    };
    let copied = copy(tools, &mut source, &mut out);
    if let Some(mut child) = child {
        if copied.is_err() {
            let _ = child.kill();
        }
        let status = child.wait().or_fail(Kind::Internal, "image.tool", || "cannot wait for xz")?;
        copied?;
        return match status.success() {
            true => Ok(()),
            false => Err(truncated("its xz data is cut off or damaged")),
        };
    }
    copied
}

fn xz(from: &Path) -> Result<std::process::Child> {
    // Memory for decompressing is at most what `xz -9` asks for.
    let mut xz = Command::new("setpriv");
    xz.args(["--pdeathsig", "KILL", "--", "xz", "--decompress", "--stdout", "--memlimit=256MiB", "--single-stream"])
        .arg("--")
        .arg(from);
    let quiet = std::process::Stdio::null;
    xz.stdin(quiet()).stderr(quiet()).stdout(std::process::Stdio::piped()).spawn().or_fail(
        Kind::Config,
        "image.tool",
        || "cannot start xz; install xz-utils",
    )
}

fn copy(tools: &Tools, source: &mut dyn Read, out: &mut File) -> Result<()> {
    let writing = |e| disk_full(e, "unpacking the disk image");
    let mut piece = vec![0; PIECE];
    let mut size = 0u64;
    loop {
        tools.check_stopped()?;
        let mut length = 0;
        while let Some(rest) = piece.get_mut(length..).filter(|rest| !rest.is_empty()) {
            match source.read(rest) {
                Ok(0) => break,
                Ok(n) => length += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    tools.check_stopped()?;
                    return Err(truncated("its compressed data is cut off or damaged").because(e));
                }
            }
        }
        let Some(bytes) = piece.get(..length).filter(|bytes| !bytes.is_empty()) else { break };
        size += length as u64;
        check_size(size)?;
        match is_zero(bytes) {
            true => out.seek(SeekFrom::Current(length as i64)).map(|_| ()).map_err(writing)?,
            false => out.write_all(bytes).map_err(writing)?,
        }
    }
    out.set_len(size).map_err(writing)
}

/// Tells how much of the file has been read.
struct Counted<'a> {
    file: File,
    tools: &'a Tools<'a>,
    total: u64,
    done: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(out)?;
        self.done += n as u64;
        self.tools.steps("unpacking", self.done, self.total);
        Ok(n)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: u64,
    #[serde(default)]
    encrypted: bool,
    backing_filename: Option<String>,
    full_backing_filename: Option<String>,
    #[serde(default)]
    format_specific: serde_json::Value,
}

fn convert(tools: &Tools, from: &Path, format: Format, work: &Path, to: &Path) -> Result<()> {
    let said = work.join("said");
    tools.step("checking the disk image")?;
    let (status, words) = tools.watched(
        "qemu-utils",
        qemu_img(MAX_SAID).args(["check", "-q", "-f", format.name()]).arg(from),
        &said,
        &|| (),
    )?;
    // 3: clusters that nobody uses, which cost room and nothing else; 63: nothing to check in this format.
    if !matches!(status.code(), Some(0 | 3 | 63)) {
        return Err(
            truncated(&format!("`qemu-img check` finds faults in it ({})", format.name())).because(last_line(&words))
        );
    }
    let (status, words) = tools.watched(
        "qemu-utils",
        qemu_img(MAX_SAID).args(["info", "--output=json", "-f", format.name()]).arg(from),
        &said,
        &|| (),
    )?;
    if !status.success() {
        return Err(Error::input("image.format", format!("the {} image cannot be read", format.name()))
            .because(last_line(&words)));
    }
    let text = fs::read(&said).map_err(|e| disk_full(e, "reading what qemu-img says"))?;
    let info: Info = serde_json::from_slice(&text).or_fail(
        Kind::Internal,
        "image.tool",
        || "qemu-img does not describe the image",
    )?;
    if let Some(name) = info.backing_filename.or(info.full_backing_filename) {
        return Err(other_file(&format!("it is only the difference to its backing file {name:?}")));
    }
    let specific = info.format_specific.to_string();
    if info.encrypted || specific.contains("\"encrypt\"") {
        return Err(encrypted());
    }
    if specific.contains("\"data-file\"") {
        return Err(other_file("its data is in an external data file"));
    }
    check_size(info.virtual_size)?;

    let total = info.virtual_size;
    let watch = || tools.steps("converting", percent(&said).map_or(0, |p| (total as f64 * p / 100.0) as u64), total);
    let mut command = qemu_img(info.virtual_size.max(MAX_SAID));
    command.args(["convert", "-p", "-f", format.name(), "-O", "raw"]).arg(from).arg(to);
    let (status, words) = tools.watched("qemu-utils", &mut command, &said, &watch)?;
    match status.success() {
        true => Ok(()),
        false if words.contains("No space left on device") => {
            Err(disk_full(io::ErrorKind::StorageFull.into(), "converting the disk image").because(last_line(&words)))
        }
        false => Err(Error::input("image.format", format!("the {} image cannot be converted", format.name()))
            .because(last_line(&words))),
    }
}

/// `qemu-img` without a network where we may take it away, and with limits.
fn qemu_img(writes: u64) -> Command {
    let limits = ["prlimit", "--core=0", &format!("--as={MEMORY}"), &format!("--fsize={writes}"), "--", "qemu-img"]
        .map(str::to_owned);
    let mut command = Command::new(if rustix::process::geteuid().is_root() { "unshare" } else { "env" });
    if rustix::process::geteuid().is_root() {
        command.args(["--net", "--"]);
    }
    command.args(limits);
    command
}

fn last_line(words: &str) -> String {
    words.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it said nothing").to_owned()
}

/// The last figure of `qemu-img -p`: `    (12.34/100%)\r`.
fn percent(said: &Path) -> Option<f64> {
    let mut file = File::open(said).ok()?;
    let end = file.seek(SeekFrom::End(0)).ok()?;
    file.seek(SeekFrom::Start(end.saturating_sub(64))).ok()?;
    let mut text = String::new();
    file.take(64).read_to_string(&mut text).ok()?;
    text.rsplit_once("/100%)")?.0.rsplit('(').next()?.trim().parse().ok()
}
