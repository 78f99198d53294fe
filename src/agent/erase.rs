//! Making disks blank, and looking whether they are.
//!
//! Whole-device discard where the device has it (secure discard first); the ends of the disk and of each partition are
//! zeroed in any case, since what a discarded block reads is the device's choice (ATA "deterministic read" is optional).
//! On a rotating disk without discard that leaves data blocks: the report says so, and does not call it erased.

use std::time::Instant;

use super::block::{Buffer, Device};
use super::inventory;
use super::progress::Meter;
use super::roots::Roots;
use crate::error::{Error, Result};
use crate::image::chunk::is_zero;
use crate::link::{ErasedDisk, Erasure};
use crate::machine::{Disk, Serial};

/// Zeroed at each end of the disk: partition tables, RAID superblocks and boot loaders.
const ENDS: u64 = 16 << 20;
/// Zeroed at each end of each partition: superblocks of file systems, LVM, LUKS (btrfs at 64 KiB is the furthest in) and
/// of RAID with metadata at the end.
const PART_ENDS: u64 = 1 << 20;
const SAMPLE: usize = 64 << 10;
/// Samples across the whole device.
const SAMPLES: u64 = 64;

/// All disks that are not kept, one after another; the first that fails stops it.
pub fn erase(roots: &Roots, keep: &[Serial], meter: &Meter) -> Result<Vec<ErasedDisk>> {
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
    let mut proof = Vec::new();
    for (disk, device) in chosen.iter().zip(&claimed) {
        meter.step(format!("erasing {}", disk.name), 0);
        let start = Instant::now();
        let (how, read_back_bytes) = erase_disk(device, &partitions(roots, &disk.name))?;
        proof.push(ErasedDisk {
            name: disk.name.clone(),
            model: disk.model.clone(),
            serial: disk.serial.clone(),
            size_bytes: device.size(),
            how,
            read_back_bytes,
            seconds: start.elapsed().as_secs_f64(),
        });
    }
    Ok(proof)
}

/// How it was done, and the bytes that were read back as zero.
fn erase_disk(device: &Device, partitions: &[(u64, u64)]) -> Result<(Erasure, u64)> {
    let size = device.size();
    let mut how = if device.secure_discard(0, size)? {
        Erasure::SecureDiscard
    } else if device.discard(0, size)? {
        Erasure::Discard
    } else {
        Erasure::Signatures
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
    let mut read_back = 0;
    if how != Erasure::Signatures {
        match samples_zero(device, 0, size, SAMPLES)? {
            Some(bytes) => read_back += bytes,
            None => how = Erasure::Signatures,
        }
    }
    for (offset, len) in edges {
        let Some(bytes) = samples_zero(device, offset, len, 4)? else {
            let what = format!("{} still shows data at {offset} after zeroing", device.path().display());
            return Err(Error::refused("disk.erase", what).hint("take the disk out; it does not keep what it is told"));
        };
        read_back += bytes;
    }
    // Fails where the kernel cannot forget the partitions; then they are empty all the same.
    let _ = device.reread_partitions();
    Ok((how, read_back))
}

/// `count` samples, evenly across the range, its two ends among them: the bytes that were read, or `None` where one of them
/// is not zero.
fn samples_zero(device: &Device, offset: u64, len: u64, count: u64) -> Result<Option<u64>> {
    let mut buffer = Buffer::new(SAMPLE);
    let sector = u64::from(device.sector());
    let sample = (SAMPLE as u64).min(len) / sector * sector;
    let room = len - sample;
    let mut read = 0;
    for i in 0..count {
        let at = offset + (room / (count - 1).max(1)).saturating_mul(i).min(room) / sector * sector;
        let Some(part) = buffer.get_mut(..sample as usize) else { return Ok(Some(read)) };
        device.read_at(part, at)?;
        if !is_zero(part) {
            return Ok(None);
        }
        read += sample;
    }
    Ok(Some(read))
}

/// Start and length in bytes of the partitions that the kernel sees. /sys counts in 512 bytes.
fn partitions(roots: &Roots, disk: &str) -> Vec<(u64, u64)> {
    let number = |path: std::path::PathBuf| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let entries = std::fs::read_dir(roots.sys.join("block").join(disk)).into_iter().flatten().flatten();
    let parts = entries.map(|e| e.path()).filter(|p| p.join("partition").exists());
    let ranges = parts.filter_map(|p| Some((number(p.join("start"))?, number(p.join("size"))?)));
    ranges.filter_map(|(start, len)| Some((start.checked_mul(512)?, len.checked_mul(512)?))).collect()
}
