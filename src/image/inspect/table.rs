//! The partitions of a disk, and what each holds: told from their first bytes, nothing is mounted.

use std::io;

use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;

use super::disk::Disk;
use crate::error::{Error, Kind, OrFail, Result};

const SECTOR: u64 = 512;
/// UEFI specification 2.10, table 5.7, and the Discoverable Partitions Specification.
pub const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
pub const BIOS_BOOT: &str = "21686148-6449-6e6f-744e-656564454649";
pub const ROOT_X86_64: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// ext2, ext3 and ext4.
    Ext,
    Xfs,
    Btrfs,
    Fat,
    Luks,
    Lvm,
    Unknown,
}

#[derive(Debug, Clone)]
pub struct Partition {
    pub number: u32,
    /// Bytes from the start of the disk.
    pub start: u64,
    pub length: u64,
    /// The type's GUID, in lower case.
    pub kind: String,
    pub content: Content,
    /// Label of the file system.
    pub label: Option<String>,
}

/// The partitions in the order in which they lie on the disk.
pub fn partitions(disk: &Disk) -> Result<Vec<Partition>> {
    let unreadable = || "cannot read the disk image";
    let first = disk.bytes(0, SECTOR as usize).or_fail(Kind::Input, "image.source", unreadable)?;
    let first = first.ok_or_else(|| no_table("it is shorter than a sector"))?;
    let entries = first.get(446..510).unwrap_or_default().chunks_exact(16);
    let kinds: Vec<u8> = entries.filter_map(|entry| entry.get(4).copied()).filter(|kind| *kind != 0).collect();
    if first.get(510..) != Some(&[0x55, 0xaa]) || kinds.is_empty() {
        return Err(no_table("its first sector has none"));
    }
    if !kinds.contains(&0xee) {
        return Err(Error::input("image.mbr", "the disk image has an MBR partition table; Rackline deploys GPT disks only")
            .hint("take the vendor's GPT or UEFI variant of the image, or convert a copy: `sgdisk --mbrtogpt FILE`, then install GRUB in it again"));
    }
    // Both headers must hold: a file that was cut off has lost the one at its end.
    let config = GptConfig::new().writable(false).logical_block_size(LogicalBlockSize::Lb512);
    let table =
        config.open_from_device(disk.window(0, disk.size())).map_err(|e| no_table("it cannot be read").because(e))?;
    if let Err(e) = table.backup_header() {
        return Err(
            truncated("the backup of its partition table, in its last sectors, is not there").because(e.to_string())
        );
    }
    let mut found = Vec::new();
    for (number, entry) in table.partitions().iter().filter(|(_, entry)| entry.is_used()) {
        let place =
            entry.first_lba.checked_mul(SECTOR).zip(entry.last_lba.checked_add(1).and_then(|l| l.checked_mul(SECTOR)));
        let (start, end) = match place {
            Some((start, end)) if start < end => (start, end),
            _ => return Err(no_table(&format!("partition {number} has no valid extent"))),
        };
        if end > disk.size() {
            return Err(truncated(&format!("partition {number} ends at byte {end}, the disk at {}", disk.size())));
        }
        let (content, label) = content(disk, start, end - start).or_fail(Kind::Input, "image.source", unreadable)?;
        let kind = entry.part_type_guid.guid.to_string().to_lowercase();
        found.push(Partition { number: *number, start, length: end - start, kind, content, label });
    }
    found.sort_by_key(|p| p.start);
    match found.is_empty() {
        true => Err(no_table("it is empty")),
        false => Ok(found),
    }
}

fn no_table(why: &str) -> Error {
    Error::input("image.gpt", format!("the disk image has no partition table (GPT) that can be used: {why}"))
        .hint("an image is a whole disk with sectors of 512 bytes, not a file system and not an installer's ISO")
}

pub fn truncated(why: &str) -> Error {
    Error::input("image.truncated", format!("the disk image is not whole: {why}"))
        .hint("fetch it again and compare its checksum with the vendor's")
}

/// What a partition holds, by the magic numbers of `blkid`.
fn content(disk: &Disk, start: u64, length: u64) -> io::Result<(Content, Option<String>)> {
    // The farthest superblock is that of btrfs.
    let mut head = vec![0; length.min(68 << 10) as usize];
    disk.read_at(start, &mut head)?;
    let is = |at: usize, magic: &[u8]| head.get(at..at + magic.len()) == Some(magic);
    let text = |at: usize, length: usize| {
        let bytes = head.get(at..at + length)?;
        let text = String::from_utf8_lossy(bytes.split(|b| *b == 0).next()?).trim_end().to_owned();
        (!text.is_empty() && text != "NO NAME").then_some(text)
    };
    Ok(match () {
        () if is(0, b"LUKS\xba\xbe") => (Content::Luks, None),
        () if is(512, b"LABELONE") => (Content::Lvm, None),
        () if is(0, b"XFSB") => (Content::Xfs, text(108, 12)),
        () if is(0x10040, b"_BHRfS_M") => (Content::Btrfs, text(0x1012b, 256)),
        () if is(1024 + 56, &[0x53, 0xef]) => (Content::Ext, text(1024 + 120, 16)),
        () if is(510, &[0x55, 0xaa]) && is(82, b"FAT32") => (Content::Fat, text(71, 11)),
        () if is(510, &[0x55, 0xaa]) && is(54, b"FAT") => (Content::Fat, text(43, 11)),
        () => (Content::Unknown, None),
    })
}
