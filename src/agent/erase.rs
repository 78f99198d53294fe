//! Making disks blank, and looking whether they are.
//!
//! Whole-device discard where the device has it (secure discard first); the ends of the disk and of each partition are
//! zeroed in any case, since what a discarded block reads is the device's choice (ATA "deterministic read" is optional).
//! On a rotating disk without discard that leaves data blocks: the report says so, and does not call it erased.

use super::block::{Buffer, Device};
use super::inventory;
use super::progress::Meter;
use super::roots::Roots;
use crate::error::{Error, Result};
use crate::image::chunk::is_zero;
use crate::link::Outcome;
use crate::machine::{Disk, Serial};

/// Zeroed at each end of the disk: partition tables, RAID superblocks and boot loaders.
const ENDS: u64 = 16 << 20;
/// Zeroed at each end of each partition: superblocks of file systems, LVM, LUKS (btrfs at 64 KiB is the furthest in) and
/// of RAID with metadata at the end.
const PART_ENDS: u64 = 1 << 20;
const SAMPLE: usize = 64 << 10;
/// Samples across the whole device.
const SAMPLES: u64 = 64;

/// What was done to a disk, in the report's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    SecureDiscard,
    Discard,
    /// The device keeps showing old data after a discard, or has no discard.
    Signatures,
}

impl How {
    fn words(self) -> &'static str {
        match self {
            How::SecureDiscard => "securely discarded, reads zero",
            How::Discard => "discarded, reads zero",
            How::Signatures => "partition tables and signatures zeroed, data blocks left",
        }
    }
}

/// All disks that are not kept, one after another; the first that fails stops it.
pub fn erase(roots: &Roots, keep: &[Serial], meter: &Meter) -> Result<Outcome> {
    let disks = inventory::disks(roots)?;
    let chosen: Vec<&Disk> = disks
        .iter()
        .filter(|d| !d.removable && !d.read_only && d.size_bytes > 0)
        .filter(|d| !d.serial.as_ref().is_some_and(|s| keep.contains(s)))
        .collect();
    // Before the first byte is gone, all of them must be free.
    let mut claimed = Vec::new();
    for disk in &chosen {
        if let Some(user) = inventory::in_use(&roots.sys, &roots.proc, &disk.name) {
            return Err(Error::conflict("disk.busy", format!("{} is in use: {user}", disk.name))
                .hint("erase from the RAM system, where nothing is mounted"));
        }
        claimed.push(Device::claim(&roots.dev.join(&disk.name))?);
    }
    let mut how = Vec::new();
    for (disk, device) in chosen.iter().zip(&claimed) {
        meter.step(format!("erasing {}", disk.name), 0);
        let done = erase_disk(device, &partitions(roots, &disk.name))?;
        how.push(format!("{}: {}", disk.name, done.words()));
    }
    Ok(Outcome::Erased { disks: chosen.iter().map(|d| d.name.clone()).collect(), how: how.join("; ") })
}

fn erase_disk(device: &Device, partitions: &[(u64, u64)]) -> Result<How> {
    let size = device.size();
    let mut how = if device.secure_discard(0, size)? {
        How::SecureDiscard
    } else if device.discard(0, size)? {
        How::Discard
    } else {
        How::Signatures
    };
    let mut edges = vec![(0, ENDS.min(size)), (size.saturating_sub(ENDS), ENDS.min(size))];
    for (start, len) in partitions {
        let end = start.saturating_add(*len).min(size);
        let part = PART_ENDS.min(end.saturating_sub(*start));
        edges.extend([(*start, part), (end.saturating_sub(part), part)]);
    }
    for (offset, len) in &edges {
        device.zero(*offset, *len)?;
    }
    device.sync()?;
    if how != How::Signatures && !samples_zero(device, 0, size, SAMPLES)? {
        how = How::Signatures;
    }
    for (offset, len) in edges {
        if !samples_zero(device, offset, len, 4)? {
            let what = format!("{} still shows data at {offset} after zeroing", device.path().display());
            return Err(Error::refused("disk.erase", what).hint("take the disk out; it does not keep what it is told"));
        }
    }
    // Fails where the kernel cannot forget the partitions; then they are empty all the same.
    let _ = device.reread_partitions();
    Ok(how)
}

/// `count` samples, evenly across the range, its two ends among them.
fn samples_zero(device: &Device, offset: u64, len: u64, count: u64) -> Result<bool> {
    let mut buffer = Buffer::new(SAMPLE);
    let sector = u64::from(device.sector());
    let sample = (SAMPLE as u64).min(len) / sector * sector;
    let room = len - sample;
    for i in 0..count {
        let at = offset + (room / (count - 1).max(1)).saturating_mul(i).min(room) / sector * sector;
        let Some(part) = buffer.get_mut(..sample as usize) else { return Ok(true) };
        device.read_at(part, at)?;
        if !is_zero(part) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Start and length in bytes of the partitions that the kernel sees. /sys counts in 512 bytes.
fn partitions(roots: &Roots, disk: &str) -> Vec<(u64, u64)> {
    let number = |path: std::path::PathBuf| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let entries = std::fs::read_dir(roots.sys.join("block").join(disk)).into_iter().flatten().flatten();
    let parts = entries.map(|e| e.path()).filter(|p| p.join("partition").exists());
    let ranges = parts.filter_map(|p| Some((number(p.join("start"))?, number(p.join("size"))?)));
    ranges.filter_map(|(start, len)| Some((start.checked_mul(512)?, len.checked_mul(512)?))).collect()
}
