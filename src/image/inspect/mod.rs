//! What is on a disk image: its table, the system in it, how it boots, and whether our seed finds its way in. For import
//! and lint; nothing is written, and nothing of the image is run.
//!
//! [`disk`] reads bytes of a raw or packed disk, [`table`] its partitions, [`files`] the files of a partition, and
//! [`System`] is what follows from them.

pub mod cloud;
pub mod disk;
pub mod files;
pub mod table;

use std::io;

use self::disk::Disk;
use self::files::Files;
use self::table::{BIOS_BOOT, Content, ESP, Partition, ROOT_X86_64};
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::Firmware;

/// Configuration files and boot menus are short.
pub const TEXT: u64 = 1 << 20;

/// The system that a disk image starts.
pub struct System {
    pub partitions: Vec<Partition>,
    pub root: Partition,
    /// Where `/boot` is a partition of its own.
    pub boot: Option<Partition>,
    /// The files as the running system sees them.
    pub files: Tree,
    pub kernel: Option<Kernel>,
    /// The firmwares for which a boot loader is in place.
    pub firmware: Vec<Firmware>,
    /// Debian's name of the architecture, from the header of the system's own programs.
    pub arch: Option<&'static str>,
    /// `PRETTY_NAME` of os-release.
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// As `uname -r` prints it.
    pub release: String,
    pub image: String,
    /// The file may be missing: see [`Files::exists`].
    pub initrd: String,
    /// As the boot menu has it; empty where it was not found.
    pub command_line: String,
}

/// Root and `/boot` as one tree.
pub struct Tree {
    root: Box<dyn Files>,
    boot: Option<Box<dyn Files>>,
}

impl Tree {
    fn at<'a>(&'a self, path: &'a str) -> (&'a dyn Files, &'a str) {
        match (&self.boot, path.strip_prefix("/boot")) {
            (Some(boot), Some(rest)) if rest.is_empty() || rest.starts_with('/') => {
                (&**boot, if rest.is_empty() { "/" } else { rest })
            }
            _ => (&*self.root, path),
        }
    }

    /// A text file; `None` where there is none.
    pub fn text(&self, path: &str) -> Option<String> {
        self.read(path, TEXT).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Files for Tree {
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let (files, path) = self.at(path);
        files.list(path)
    }

    fn read(&self, path: &str, max: u64) -> io::Result<Vec<u8>> {
        let (files, path) = self.at(path);
        files.read(path, max)
    }

    fn exists(&self, path: &str) -> bool {
        let (files, path) = self.at(path);
        files.exists(path)
    }
}

impl System {
    pub fn find(disk: &Disk) -> Result<Self> {
        let partitions = table::partitions(disk)?;
        let mut opened = Vec::new();
        for partition in partitions.iter().filter(|p| matches!(p.content, Content::Ext | Content::Xfs | Content::Btrfs))
        {
            opened.push((partition.clone(), files::open(disk, partition)?));
        }
        let is_root = |files: &dyn Files| ["/etc/os-release", "/usr/lib/os-release"].iter().any(|p| files.exists(p));
        let roots: Vec<usize> =
            (0..opened.len()).filter(|i| opened.get(*i).is_some_and(|(_, f)| is_root(&**f))).collect();
        let typed = roots.iter().copied().find(|i| opened.get(*i).is_some_and(|(p, _)| p.kind == ROOT_X86_64));
        let Some(at) = typed.or(roots.first().copied()) else { return Err(no_root(&partitions)) };
        let (root, root_files) = opened.remove(at);
        let boot = opened.into_iter().find(|(_, f)| f.list("/").is_ok_and(|names| names.iter().any(|n| is_kernel(n))));
        let (boot, boot_files) = boot.unzip();
        let files = Tree { root: root_files, boot: boot_files };
        let kernel = kernel(&files).or_fail(Kind::Input, "image.filesystem", || "the system's /boot cannot be read")?;
        let firmware = firmware(disk, &partitions)?;
        let name = ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|p| files.text(p)).unwrap_or_default();
        let name = name.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("unknown system");
        let name = name.trim().trim_matches(['"', '\'']).chars().filter(|c| !c.is_control()).take(80).collect();
        let arch = arch(&files);
        Ok(Self { partitions, root, boot, files, kernel, firmware, arch, name })
    }
}

fn no_root(partitions: &[Partition]) -> Error {
    let seen: Vec<String> = partitions.iter().map(|p| format!("{}: {:?}", p.number, p.content)).collect();
    let seen = seen.join(", ");
    let sealed = partitions.iter().any(|p| matches!(p.content, Content::Luks | Content::Lvm));
    let error =
        Error::input("image.root-partition", format!("no partition of the disk image holds a Linux system ({seen})"));
    match sealed {
        true => error.hint("a root in LVM or LUKS is not supported: install it on a plain partition"),
        false => error.hint("a root partition has ext4, XFS or btrfs, and /etc/os-release"),
    }
}

/// Rocky and Fedora keep a rescue kernel beside the real one.
fn is_kernel(name: &str) -> bool {
    name.strip_prefix("vmlinuz-").is_some_and(|release| !release.contains("rescue") && !release.is_empty())
}

/// The newest kernel of `/boot` with the initramfs that belongs to it.
fn kernel(files: &Tree) -> io::Result<Option<Kernel>> {
    let names = match files.list("/boot") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        names => names?,
    };
    let releases = names.iter().filter(|n| is_kernel(n)).filter_map(|n| n.strip_prefix("vmlinuz-"));
    let Some(release) = releases.max_by(|a, b| version(a).cmp(&version(b))) else { return Ok(None) };
    let initrds = [format!("initrd.img-{release}"), format!("initramfs-{release}.img"), format!("initrd-{release}")];
    let initrd = initrds.iter().find(|name| names.contains(name)).unwrap_or(&initrds[0]);
    Ok(Some(Kernel {
        release: release.to_owned(),
        image: format!("/boot/vmlinuz-{release}"),
        initrd: format!("/boot/{initrd}"),
        command_line: command_line(files).unwrap_or_default(),
    }))
}

/// Numbers compare as numbers: 6.1.0-9 is older than 6.1.0-56.
pub fn version(text: &str) -> Vec<(u64, String)> {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let words = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (word, after) = rest.split_at(words);
        let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let (number, after) = after.split_at(digits);
        parts.push((number.parse().unwrap_or(0), word.to_owned()));
        rest = after;
    }
    parts
}

/// What the boot menu's first entry passes to the kernel: GRUB's own menu, or the Boot Loader Specification's entries.
fn command_line(files: &Tree) -> Option<String> {
    let menus = ["/boot/grub/grub.cfg", "/boot/grub2/grub.cfg"];
    let of_menu = menus.iter().find_map(|path| {
        let text = files.text(path)?;
        let line = text
            .lines()
            .map(str::trim_start)
            .find(|l| ["linux ", "linux\t", "linuxefi ", "linux16 "].iter().any(|word| l.starts_with(word)))?;
        Some(line.split_whitespace().skip(2).collect::<Vec<_>>().join(" "))
    });
    of_menu.or_else(|| {
        let mut entries = files.list("/boot/loader/entries").ok()?;
        entries.retain(|name| name.ends_with(".conf") && !name.contains("rescue"));
        entries.sort_by_key(|name| version(name));
        let text = files.text(&format!("/boot/loader/entries/{}", entries.last()?))?;
        let options = text.lines().find_map(|l| l.strip_prefix("options"))?;
        Some(options.trim().to_owned())
    })
}

/// Which firmware finds a boot loader: GRUB's first sector with the rest of it where it points to, and the file that
/// UEFI starts from a disk it was never told about.
fn firmware(disk: &Disk, partitions: &[Partition]) -> Result<Vec<Firmware>> {
    let failed = || "cannot read the disk image";
    let mut found = Vec::new();
    if bios_grub(disk, partitions).or_fail(Kind::Input, "image.source", failed)? {
        found.push(Firmware::Bios);
    }
    if let Some(esp) = partitions.iter().find(|p| p.kind == ESP && p.content == Content::Fat)
        && let Ok(files) = files::open(disk, esp)
        && ["/EFI/BOOT/BOOTX64.EFI", "/EFI/BOOT/BOOTAA64.EFI"].iter().any(|path| files.exists(path))
    {
        found.push(Firmware::Uefi);
    }
    Ok(found)
}

/// `boot.img` names itself, and has the address of `core.img` at byte 0x5c (GRUB 2.06, boot/i386/pc/boot.S).
fn bios_grub(disk: &Disk, partitions: &[Partition]) -> io::Result<bool> {
    let Some(sector) = disk.bytes(0, 512)? else { return Ok(false) };
    let named = sector.get(..440).is_some_and(|code| code.windows(5).any(|w| w == b"GRUB "));
    let core = sector.get(0x5c..0x64).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes).unwrap_or_default();
    let Some(at) = core.checked_mul(512).filter(|_| named) else { return Ok(false) };
    let inside = partitions.iter().any(|p| p.kind == BIOS_BOOT && (p.start..p.start + p.length).contains(&at));
    let present = disk.bytes(at, 512)?.is_some_and(|sector| sector.iter().any(|b| *b != 0));
    Ok(inside && present)
}

/// `e_machine` of the ELF header (System V ABI).
fn arch(files: &Tree) -> Option<&'static str> {
    let programs = ["/usr/bin/env", "/bin/sh", "/usr/bin/ls", "/usr/lib/systemd/systemd"];
    let header = programs.iter().find_map(|p| files.read(p, 20).ok().filter(|h| h.starts_with(b"\x7fELF")))?;
    match header.get(18..20)? {
        [0x3e, 0] => Some("amd64"),
        [0xb7, 0] => Some("arm64"),
        _ => Some("unknown"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_not_the_last_in_the_alphabet() {
        let mut releases = ["6.1.0-9-amd64", "6.1.0-56-amd64", "5.14.0-427.el9.x86_64", "6.1.0-56-cloud-amd64"];
        releases.sort_by_key(|r| version(r));
        assert_eq!(releases[0], "5.14.0-427.el9.x86_64");
        assert_eq!(releases[1], "6.1.0-9-amd64");
        assert!(is_kernel("vmlinuz-6.1.0") && !is_kernel("vmlinuz-0-rescue-1234") && !is_kernel("vmlinuz.old"));
    }
}
