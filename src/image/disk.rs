//! A root directory becomes a raw disk that BIOS and UEFI boot. No loop devices, no mounts: every tool writes straight
//! into a sparse file.
//!
//! | from | partition | what |
//! |---|---|---|
//! | 0 | – | protective MBR with GRUB's `boot.img`, GPT |
//! | 1 MiB | 1 `bios` | GRUB's `core.img` for BIOS |
//! | 2 MiB | 2 `esp` | FAT32, `/EFI/BOOT/BOOTX64.EFI` is GRUB |
//! | after it | 3 `root` | ext4, label `root`; grows at the first boot to whatever follows it, or the end of the disk |
//!
//! Identifiers follow from the recipe's key, so that the same root gives the same disk.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use super::layout::{self, Owners};
use super::manifest::DEFAULT_CHUNK_SIZE;
use super::recipe::{Disk, walk};
use super::tool::Tools;
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::Digest;

const MIB: u64 = 1 << 20;
const BIOS_LBA: u64 = 2048;
const ESP_MIB: u64 = 2;
pub const ROOT_LABEL: &str = "root";
/// In the middle of the first 128 MiB, behind the inode tables, whatever the size of the file system.
const JOURNAL: &str = "size=64,location=48M";
/// Blocks up to which the file system grows online in one go: just below 8 TiB. Its descriptors, reserved beside each
/// copy of the super block, then take 4 MiB together with it, which is a whole number of chunks.
const GROWS_TO: u64 = (1 << 31) - (1 << 31) / 1024;

/// GRUB modules that both boot loaders carry: they load no others.
const MODULES: &[&str] = &[
    "part_gpt",
    "ext2",
    "search",
    "search_label",
    "configfile",
    "linux",
    "normal",
    "test",
    "serial",
    "terminal",
    "echo",
];

/// Where GRUB starts: on the disk it came from, or, where firmware does not tell, on the one with the label.
const EARLY: &str = "\
if [ ! -e $prefix/grub.cfg ]; then
    search --no-floppy --set=root --label root
    set prefix=($root)/boot/grub
fi
configfile $prefix/grub.cfg
";

/// A kernel that is installed in a root directory.
#[derive(Debug, Clone)]
pub struct Kernel {
    pub release: String,
}

impl Kernel {
    /// The newest one.
    pub fn find(root: &Path) -> Result<Self> {
        let entries = fs::read_dir(root.join("boot")).into_iter().flatten().flatten();
        let release = entries.filter_map(|e| e.file_name().to_str()?.strip_prefix("vmlinuz-").map(str::to_owned)).max();
        release.map(|release| Self { release }).ok_or_else(|| {
            Error::config("image.kernel", "the system has no kernel")
                .hint("add linux-image-amd64 to the packages of the recipe")
        })
    }

    pub fn image(&self) -> String {
        format!("/boot/vmlinuz-{}", self.release)
    }

    pub fn initrd(&self) -> String {
        format!("/boot/initrd.img-{}", self.release)
    }
}

/// The kernel command line of a disk image.
pub fn command_line(disk: &Disk) -> String {
    format!("root=LABEL={ROOT_LABEL} ro {}", disk.kernel_args).trim_end().to_owned()
}

/// Writes the disk to `out` and returns its size. `roots` are the finished system and before it those that it extends, the
/// base first; `work` is an empty folder.
pub fn assemble(
    tools: &Tools,
    roots: &[&Path],
    out: &Path,
    layout: &Disk,
    key: Digest,
    epoch: u64,
    work: &Path,
) -> Result<u64> {
    let root = *roots.last().ok_or_else(|| Error::internal("image.root", "a disk is made of no system"))?;
    tools.step("writing the file system")?;
    let failed = |e| super::disk_full(e, "writing the disk image");
    write_grub_config(root, layout, epoch).map_err(failed)?;
    let esp = u64::from(layout.esp_mib);
    // From the start of a chunk, so that what lies together there is in chunks of its own.
    let root_start = (ESP_MIB + esp).next_multiple_of(u64::from(DEFAULT_CHUNK_SIZE) / MIB);
    let root_mib = root_mib(root, layout).map_err(failed)?;
    let size = (root_start + root_mib + 1) * MIB;
    File::create(out).and_then(|f| f.set_len(size)).map_err(failed)?;

    let table = format!(
        "label: gpt\nlabel-id: {}\nfirst-lba: {BIOS_LBA}\n\
         start=1MiB, size=1MiB, type=21686148-6449-6E6F-744E-656564454649, name=bios, uuid={}\n\
         start={ESP_MIB}MiB, size={esp}MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=esp, uuid={}\n\
         start={root_start}MiB, size={root_mib}MiB, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root, uuid={}\n",
        guid(key, "disk"),
        guid(key, "bios"),
        guid(key, "esp"),
        guid(key, "root"),
    );
    let script = work.join("partitions");
    fs::write(&script, table).map_err(failed)?;
    let mut sfdisk = Command::new("sh");
    sfdisk.args(["-c", "exec sfdisk --quiet \"$1\" < \"$2\"", "sfdisk"]).arg(out).arg(&script);
    tools.run("fdisk", &mut sfdisk)?;

    let plain = work.join("root.ext4");
    make_ext4(tools, root, &plain, root_mib, key, epoch)?;
    let owners = Owners::read(roots).map_err(failed)?;
    let arranged = || -> std::io::Result<()> {
        let (plain, out) = (File::open(&plain)?, OpenOptions::new().write(true).open(out)?);
        layout::arrange(&plain, &out, root_start * MIB, &owners, epoch)
    };
    arranged().map_err(failed)?;
    fs::remove_file(&plain).map_err(failed)?;
    // Nobody deploys what a file system check would have to mend.
    let mut check = Command::new("e2fsck");
    check.env("E2FSPROGS_FAKE_TIME", epoch.to_string()).arg("-fn");
    tools.run("e2fsprogs", check.arg(format!("{}?offset={}", out.display(), root_start * MIB)))?;

    tools.step("installing the boot loaders")?;
    let early = work.join("early.cfg");
    fs::write(&early, EARLY).map_err(failed)?;
    write_esp(tools, out, esp, key, epoch, &early, work)?;
    write_bios(tools, out, &early, work)?;
    Ok(size)
}

/// All of the root directory in an ext4 of its own, in the order that `mke2fs` likes.
fn make_ext4(tools: &Tools, root: &Path, out: &Path, root_mib: u64, key: Digest, epoch: u64) -> Result<()> {
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.env("E2FSPROGS_FAKE_TIME", epoch.to_string());
    mke2fs.args([
        "-q",
        "-F",
        "-t",
        "ext4",
        "-b",
        "4096",
        "-L",
        ROOT_LABEL,
        "-m",
        "1",
        "-J",
        JOURNAL,
        "-O",
        "^orphan_file",
        "-d",
    ]);
    mke2fs.arg(root).args(["-U", &guid(key, "filesystem"), "-E"]);
    mke2fs.arg(format!(
        "hash_seed={},root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1,nodiscard,resize={GROWS_TO}",
        guid(key, "hash")
    ));
    tools.run("e2fsprogs", mke2fs.arg(out).arg(format!("{root_mib}M")))
}

/// Files, their inodes and block lists, rounded up; then what the file system itself and the order of its files need, and
/// the free room.
fn root_mib(root: &Path, layout: &Disk) -> std::io::Result<u64> {
    let mut bytes = 0;
    let mut seen = std::collections::HashSet::new();
    for (_, about) in walk(root)? {
        // How long a directory is depends on the file system that it comes from: a block, and its entry elsewhere.
        let len = if about.is_dir() { 4096 } else { about.len() };
        if about.nlink() < 2 || about.is_dir() || seen.insert(about.ino()) {
            bytes += len.next_multiple_of(4096) + 512;
        }
    }
    let used = bytes.div_ceil(MIB);
    Ok(used + used / 8 + 64 + 32 + u64::from(layout.free_mib))
}

fn write_grub_config(root: &Path, layout: &Disk, epoch: u64) -> std::io::Result<()> {
    let folder = root.join("boot/grub");
    fs::create_dir_all(&folder)?;
    // Debian's kernel packages keep /vmlinuz and /initrd.img, and their .old, pointing at what is installed.
    let text = format!(
        "serial --unit=0 --speed=115200\nterminal_input console serial\nterminal_output console serial\n\
         set timeout=0\nset default=0\nset fallback=1\n\
         menuentry Linux {{\n linux /vmlinuz {line}\n initrd /initrd.img\n}}\n\
         menuentry 'Linux, previous kernel' {{\n linux /vmlinuz.old {line}\n initrd /initrd.img.old\n}}\n",
        line = command_line(layout)
    );
    let path = folder.join("grub.cfg");
    fs::write(&path, text)?;
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(epoch);
    for path in [path.as_path(), &folder, &root.join("boot")] {
        File::open(path)?.set_modified(time)?;
    }
    Ok(())
}

fn write_esp(tools: &Tools, out: &Path, esp: u64, key: Digest, epoch: u64, early: &Path, work: &Path) -> Result<()> {
    let loader = work.join("BOOTX64.EFI");
    let mut mkimage = Command::new("grub-mkimage");
    mkimage.args(["-O", "x86_64-efi", "-p", "(,gpt3)/boot/grub", "-c"]).arg(early).arg("-o").arg(&loader);
    mkimage.args(MODULES).args(["fat", "all_video", "efi_gop"]);
    tools.run("grub-efi-amd64-bin", &mut mkimage)?;
    let volume = u32::from_le_bytes([key.0[0], key.0[1], key.0[2], key.0[3]]);
    let mut mkfs = Command::new("mkfs.vfat");
    mkfs.args(["--invariant", "-F", "32", "-s", "1", "-n", "ESP", "-i", &format!("{volume:08x}")]);
    mkfs.args(["--offset", &(ESP_MIB * MIB / 512).to_string()]).arg(out).arg((esp * 1024).to_string());
    tools.run("dosfstools", &mut mkfs)?;
    let image = format!("{}@@{}M", out.display(), ESP_MIB);
    let mtools = |program: &str| {
        let mut command = Command::new(program);
        command.env("SOURCE_DATE_EPOCH", epoch.to_string()).env("MTOOLS_SKIP_CHECK", "1").args(["-i", &image]);
        command
    };
    tools.run("mtools", mtools("mmd").args(["::/EFI", "::/EFI/BOOT"]))?;
    tools.run("mtools", mtools("mcopy").arg(&loader).arg("::/EFI/BOOT/BOOTX64.EFI"))
}

/// What `grub-bios-setup` does, on a file: `boot.img` into the MBR with the address of `core.img`, and that one into the
/// BIOS partition with the list of its own sectors (GRUB 2.06, `util/setup.c` and `boot/i386/pc/*.S`).
fn write_bios(tools: &Tools, out: &Path, early: &Path, work: &Path) -> Result<()> {
    let core_path = work.join("core.img");
    let mut mkimage = Command::new("grub-mkimage");
    mkimage.args(["-O", "i386-pc", "-p", "(,gpt3)/boot/grub", "-c"]).arg(early).arg("-o").arg(&core_path);
    tools.run("grub-pc-bin", mkimage.args(MODULES).arg("biosdisk"))?;
    let boot_path = Path::new("/usr/lib/grub/i386-pc/boot.img");
    let boot =
        fs::read(boot_path).or_fail(Kind::Config, "image.grub", || format!("cannot read {}", boot_path.display()));
    let core = fs::read(&core_path).map_err(|e| super::disk_full(e, "making the boot loader"))?;
    let (boot, core) = bios_sectors(boot.map_err(|e| e.hint("apt-get install grub-pc-bin"))?, core)
        .ok_or_else(|| Error::config("image.grub", "GRUB's boot sectors are not what they should be"))?;
    let write = || -> std::io::Result<()> {
        let file = OpenOptions::new().write(true).open(out)?;
        file.write_all_at(&boot, 0)?;
        file.write_all_at(&core, BIOS_LBA * 512)
    };
    write().map_err(|e| super::disk_full(e, "writing the boot loader"))
}

fn bios_sectors(mut boot: Vec<u8>, mut core: Vec<u8>) -> Option<(Vec<u8>, Vec<u8>)> {
    // From byte 440 on the sector belongs to the partition table.
    boot.truncate(440);
    core.resize(core.len().next_multiple_of(512), 0);
    let rest = u16::try_from(core.len() / 512).ok()?.checked_sub(1)?;
    // kernel_sector: where core.img begins.
    boot.get_mut(0x5c..0x64)?.copy_from_slice(&BIOS_LBA.to_le_bytes());
    // boot_drive_check: a jump that only floppies need.
    boot.get_mut(0x66..0x68)?.copy_from_slice(&[0x90, 0x90]);
    // First block list at the end of the first sector: start, number of sectors, segment to load them to.
    let list = core.get_mut(500..512)?;
    list[..8].copy_from_slice(&(BIOS_LBA + 1).to_le_bytes());
    list[8..10].copy_from_slice(&rest.to_le_bytes());
    list[10..].copy_from_slice(&0x820u16.to_le_bytes());
    (core.len() as u64 <= MIB).then_some((boot, core))
}

/// An identifier that follows from the recipe: a UUID of version 8 (RFC 9562), made of a digest.
fn guid(key: Digest, of: &str) -> String {
    let digest = blake3::keyed_hash(&key.0, of.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.as_bytes()[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}
