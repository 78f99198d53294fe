//! Disks under load: sequential reads, random reads, and on disks that may be written to a pattern that is read back, compared
//! and zeroed again.
//!
//! ```text
//!  0       16 MiB                write_mib              size - 16 MiB     size
//!  ├─ ends ─┼─ pattern, block by block ─┼───────────────────┼─── ends ──────┤
//! ```
//!
//! A disk may be written to where the order says so, or where it holds nothing: both ends are zero, where partition tables, file
//! systems, RAID and LVM have their marks, and so are samples of the rest. Each page of the pattern begins with a mark and its
//! own offset, so that what an interrupted burn-in has left is known as ours.
//!
//! Our own, not `fio`: the disk is claimed for ourselves (`O_EXCL`), which fio does not do, so a disk in use cannot be hit
//! whatever we believe of it; and fio brings 84 MB of libraries into a RAM system of 24 MB. The loads are those of the usual
//! profiles: 4 MiB from the start on one thread, 4 KiB at random with 32 under way, 1 MiB writes with four.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::{Found, mix};
use crate::agent::block::{Buffer, Device};
use crate::agent::inventory;
use crate::agent::roots::Roots;
use crate::error::{Error, Result};
use crate::image::chunk::is_zero;
use crate::link::{DiskBurn, Measured};
use crate::machine::{Disk, Finding, Severity, Who};

const READ: usize = 4 << 20;
const PAGE: usize = 4096;
const BLOCK: usize = 1 << 20;
/// Where signatures live. Never written.
const ENDS: u64 = 16 << 20;
const SAMPLES: u64 = 64;
const READERS: usize = 32;
/// More would only queue in a rotating disk.
const READERS_ROTATING: usize = 8;
const WRITERS: usize = 4;
const MARK: [u8; 8] = *b"rackburn";

/// All disks at once, as a host would load them.
pub fn run(roots: &Roots, profile: &DiskBurn, overwrite: bool, stop: &CancellationToken) -> Found {
    let mut found = Found::default();
    let disks = match inventory::disks(roots) {
        Ok(disks) => disks,
        Err(e) => {
            found.notes.push(format!("disks: {}", e.message()));
            return found;
        }
    };
    let one = |disk: &Disk| Test { roots, disk, profile, overwrite, stop }.run();
    std::thread::scope(|scope| {
        let disks = disks.iter().filter(|disk| !disk.removable && disk.size_bytes > 0);
        let all: Vec<_> = disks.map(|disk| scope.spawn(move || one(disk))).collect();
        all.into_iter().filter_map(|one| one.join().ok()).for_each(|one| found.add(one));
    });
    found
}

struct Test<'a> {
    roots: &'a Roots,
    disk: &'a Disk,
    profile: &'a DiskBurn,
    overwrite: bool,
    stop: &'a CancellationToken,
}

impl Test<'_> {
    fn run(&self) -> Found {
        let mut found = Found::default();
        let path = self.roots.dev.join(&self.disk.name);
        let tested = Device::read_only(&path).and_then(|device| self.read(&device, &mut found));
        if let Err(e) = tested {
            found.findings.push(self.io_error(&e));
            return found;
        }
        if self.profile.write_mib == 0 || self.stop.is_cancelled() {
            return found;
        }
        let name = &self.disk.name;
        if self.disk.read_only {
            found.notes.push(format!("{name} is read-only"));
            return found;
        }
        match Device::claim(&path) {
            Ok(device) => self.write(&device, &mut found),
            Err(e) => found.notes.push(format!("{name} was only read: {}", e.message())),
        }
        found
    }

    fn until(&self) -> Instant {
        Instant::now() + Duration::from_secs(self.profile.seconds.into())
    }

    fn over(&self, end: Instant) -> bool {
        self.stop.is_cancelled() || Instant::now() >= end
    }

    fn read(&self, device: &Device, found: &mut Found) -> Result<()> {
        let name = &self.disk.name;
        let whole = device.size() / READ as u64 * READ as u64;
        if whole == 0 {
            found.notes.push(format!("{name} is too small to be measured"));
            return Ok(());
        }
        let (began, end) = (Instant::now(), self.until());
        let (mut buffer, mut bytes) = (Buffer::new(READ), 0);
        while !self.over(end) {
            device.read_at(&mut buffer, bytes % whole)?;
            bytes += READ as u64;
        }
        found.measured.push(self.megabytes("read", bytes, began));

        let (began, end) = (Instant::now(), self.until());
        let readers = if self.disk.rotational { READERS_ROTATING } else { READERS };
        let reads = self.each(readers, |seed| {
            let mut page = Buffer::new(PAGE);
            let mut count = 0;
            while !self.over(end) {
                let place = mix(seed << 40 | count) % (device.size() / PAGE as u64);
                device.read_at(&mut page, place * PAGE as u64)?;
                count += 1;
            }
            Ok(count)
        })?;
        let value = (reads as f64 / began.elapsed().as_secs_f64().max(1e-9)).round();
        found.measured.push(Measured::new(format!("disk.randread.{name}"), value, "IOPS"));
        Ok(())
    }

    /// The sum of what `count` threads bring, or the first error.
    fn each(&self, count: usize, work: impl Fn(u64) -> Result<u64> + Sync) -> Result<u64> {
        std::thread::scope(|scope| {
            let work = &work;
            let all: Vec<_> = (0..count as u64).map(|n| scope.spawn(move || work(n))).collect();
            let lost = || Error::internal("burn.disk", "a thread of the disk test was lost");
            all.into_iter().map(|one| one.join().unwrap_or_else(|_| Err(lost()))).sum()
        })
    }

    fn write(&self, device: &Device, found: &mut Found) {
        let name = &self.disk.name;
        let room = device.size().saturating_sub(2 * ENDS) / BLOCK as u64 * BLOCK as u64;
        let length = room.min(u64::from(self.profile.write_mib) << 20);
        if length == 0 {
            found.notes.push(format!("{name} is too small to be written to"));
            return;
        }
        let free = if self.overwrite { Ok(true) } else { blank(device) };
        match free {
            Ok(true) => {}
            Ok(false) => {
                found.notes.push(format!("{name} holds data and was only read"));
                return;
            }
            Err(e) => {
                found.findings.push(self.io_error(&e));
                return;
            }
        }
        let (began, end) = (Instant::now(), self.until());
        let next = AtomicU64::new(0);
        let written = self
            .each(WRITERS, |_| {
                let mut block = Buffer::new(BLOCK);
                let mut count = 0;
                while !self.over(end) {
                    let at = next.fetch_add(BLOCK as u64, Ordering::Relaxed);
                    if at >= length {
                        break;
                    }
                    fill(&mut block, ENDS + at);
                    device.write_at(&block, ENDS + at)?;
                    count += BLOCK as u64;
                }
                Ok(count)
            })
            .and_then(|written| device.sync().map(|()| written));
        match written {
            Ok(written) => {
                found.measured.push(self.megabytes("write", written, began));
                found.findings.extend(self.compare(device, written));
            }
            Err(e) => found.findings.push(self.io_error(&e)),
        }
        // Also after a fault, and when the test is withdrawn: the disk was blank.
        let touched = length.min(next.load(Ordering::Relaxed));
        if let Err(e) = device.zero(ENDS, touched).and_then(|()| device.sync()) {
            found.findings.push(self.io_error(&e));
        }
    }

    /// Reads back what was written. Not withdrawn: the first `written` bytes are whole.
    fn compare(&self, device: &Device, written: u64) -> Option<Finding> {
        let (next, first) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
        let wrong = self.each(WRITERS, |_| {
            let (mut block, mut wanted) = (Buffer::new(BLOCK), Buffer::new(BLOCK));
            let mut wrong = 0;
            while !self.stop.is_cancelled() {
                let at = next.fetch_add(BLOCK as u64, Ordering::Relaxed);
                if at >= written {
                    break;
                }
                device.read_at(&mut block, ENDS + at)?;
                fill(&mut wanted, ENDS + at);
                let pages = block.chunks(PAGE).zip(wanted.chunks(PAGE)).enumerate();
                for (page, _) in pages.filter(|(_, (found, wanted))| found != wanted) {
                    first.fetch_min(ENDS + at + (page * PAGE) as u64, Ordering::Relaxed);
                    wrong += 1;
                }
            }
            Ok(wrong)
        });
        let wrong = match wrong {
            Ok(0) => return None,
            Ok(wrong) => wrong,
            Err(e) => return Some(self.io_error(&e)),
        };
        let at = first.into_inner();
        let mut page = Buffer::new(PAGE);
        let what = match device.read_at(&mut page, at).map(|()| owner(&page)) {
            Ok(Some(other)) if other != at => format!("the page at {at} holds what was written to {other}"),
            Ok(_) if is_zero(&page) => format!("the page at {at} reads zero"),
            _ => format!("the page at {at} came back changed"),
        };
        Some(Finding {
            id: "burn.disk.data".into(),
            part: part(self.disk),
            severity: Severity::Fault,
            cause: format!("it does not keep what is written: {what}"),
            expected: "what was written".into(),
            found: format!("{wrong} of {} pages wrong", written / PAGE as u64),
            who: Who::Supplier,
            next: "exchange the drive; where several are wrong, the controller or the backplane".into(),
        })
    }

    fn io_error(&self, error: &Error) -> Finding {
        let causes = error.causes();
        let words = causes.last().map_or(String::new(), |cause| format!(" ({cause})"));
        Finding {
            id: "burn.disk".into(),
            part: part(self.disk),
            severity: Severity::Fault,
            cause: format!("it failed under load: {}{words}", error.message()),
            expected: "no errors".into(),
            found: error.message().to_owned(),
            who: Who::Racker,
            next: "seat the drive and its cables again; exchange it if it fails again".into(),
        }
    }

    fn megabytes(&self, what: &str, bytes: u64, began: Instant) -> Measured {
        let rate = bytes as f64 / began.elapsed().as_secs_f64().max(1e-9);
        let value = (rate / 1e4).round() / 100.0;
        Measured::new(format!("disk.{what}.{}", self.disk.name), value, "MB/s")
    }
}

pub fn part(disk: &Disk) -> String {
    match &disk.serial {
        Some(serial) => format!("disk {}, serial {serial}", disk.name),
        None => format!("disk {}", disk.name),
    }
}

/// What belongs at an offset: in each page the mark, its offset, and a sequence that follows from it.
fn fill(block: &mut [u8], offset: u64) {
    for (page, at) in block.chunks_mut(PAGE).zip((offset..).step_by(PAGE)) {
        let words = page.chunks_exact_mut(8).zip(0u64..);
        for (word, i) in words {
            word.copy_from_slice(&match i {
                0 => MARK,
                1 => at.to_le_bytes(),
                _ => mix(at ^ i).to_le_bytes(),
            });
        }
    }
}

/// The offset in the mark of a page of the pattern.
fn owner(page: &[u8]) -> Option<u64> {
    let (mark, rest) = page.split_first_chunk::<8>()?;
    (*mark == MARK).then(|| rest.first_chunk::<8>().map(|offset| u64::from_le_bytes(*offset)))?
}

/// Holds nothing, or what an interrupted burn-in has left.
fn blank(device: &Device) -> Result<bool> {
    let mut buffer = Buffer::new(BLOCK);
    for start in [0, device.size() - ENDS] {
        for at in (start..start + ENDS).step_by(BLOCK) {
            device.read_at(&mut buffer, at)?;
            if !is_zero(&buffer) {
                return Ok(false);
            }
        }
    }
    let pages = device.size().saturating_sub(2 * ENDS) / PAGE as u64;
    let mut page = Buffer::new(PAGE);
    // The first pages are looked at one by one: an interrupted test began there.
    let samples = (0..SAMPLES).chain((1..SAMPLES).map(|n| pages / SAMPLES * n));
    for at in samples.map(|n| ENDS + n.min(pages.saturating_sub(1)) * PAGE as u64) {
        device.read_at(&mut page, at)?;
        if !is_zero(&page) && owner(&page) != Some(at) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    const SIZE: u64 = 96 << 20;

    struct Bench {
        file: tempfile::NamedTempFile,
        disk: Disk,
        profile: DiskBurn,
        stop: CancellationToken,
        roots: Roots,
    }

    impl Bench {
        fn new() -> Self {
            let file = tempfile::NamedTempFile::new().unwrap();
            file.as_file().set_len(SIZE).unwrap();
            let serial = crate::machine::Serial::parse("S4YN");
            Self {
                file,
                disk: Disk { name: "sdd".into(), serial, size_bytes: SIZE, ..Disk::default() },
                profile: DiskBurn { seconds: 1, write_mib: 8 },
                stop: CancellationToken::new(),
                roots: Roots::default(),
            }
        }

        fn test(&self, overwrite: bool) -> Test<'_> {
            Test { roots: &self.roots, disk: &self.disk, profile: &self.profile, overwrite, stop: &self.stop }
        }

        fn device(&self) -> Device {
            Device::of_file(self.file.path())
        }

        fn write(&self, overwrite: bool) -> Found {
            let mut found = Found::default();
            self.test(overwrite).write(&self.device(), &mut found);
            found
        }
    }

    #[test]
    fn a_blank_disk_is_written_compared_and_left_blank() {
        let bench = Bench::new();
        let found = bench.write(false);
        assert_eq!((found.findings.len(), found.notes.len()), (0, 0), "{found:?}");
        assert_eq!((found.measured[0].name.as_str(), found.measured[0].unit.as_str()), ("disk.write.sdd", "MB/s"));
        assert!(is_zero(&std::fs::read(bench.file.path()).unwrap()));
        let mut found = Found::default();
        bench.test(false).read(&bench.device(), &mut found).unwrap();
        let names: Vec<_> = found.measured.iter().map(|m| (m.name.as_str(), m.unit.as_str())).collect();
        assert_eq!(names, [("disk.read.sdd", "MB/s"), ("disk.randread.sdd", "IOPS")]);
    }

    #[test]
    fn a_disk_with_anything_on_it_is_not_written_to() {
        let bench = Bench::new();
        // A protective MBR; a backup GPT; LVM's label; data in the middle; ZFS at the very end.
        for offset in [510, SIZE - 512, 512, 48 << 20, SIZE - 300_000] {
            bench.file.as_file().write_all_at(&[0x55, 0xaa], offset).unwrap();
            let before = std::fs::read(bench.file.path()).unwrap();
            let found = bench.write(false);
            if offset == 48 << 20 {
                // One page of millions may be missed by samples; this one stands where one is taken.
                let pages = (SIZE - 2 * ENDS) / PAGE as u64;
                let sampled = (((48 << 20) - ENDS) / PAGE as u64).is_multiple_of(pages / SAMPLES);
                assert!(sampled, "the test's own offset");
            }
            assert_eq!(found.notes, ["sdd holds data and was only read"], "{offset}");
            assert_eq!(before, std::fs::read(bench.file.path()).unwrap());
            bench.file.as_file().write_all_at(&[0, 0], offset).unwrap();
        }
        // Unless the order says so.
        bench.file.as_file().write_all_at(b"old", 48 << 20).unwrap();
        assert_eq!(bench.write(true).notes.len(), 0);
    }

    #[test]
    fn what_a_power_cut_left_of_the_pattern_is_ours() {
        let bench = Bench::new();
        let mut block = vec![0; BLOCK];
        fill(&mut block, ENDS);
        bench.file.as_file().write_all_at(&block, ENDS).unwrap();
        assert!(blank(&bench.device()).unwrap());
        assert!(bench.write(false).notes.is_empty());
        assert!(is_zero(&std::fs::read(bench.file.path()).unwrap()));
        // The same pattern elsewhere is somebody's copy.
        bench.file.as_file().write_all_at(&block, ENDS + PAGE as u64).unwrap();
        assert!(!blank(&bench.device()).unwrap());
    }

    #[test]
    fn a_disk_that_does_not_keep_its_data_is_named_with_the_place() {
        let bench = Bench::new();
        let (device, file) = (bench.device(), bench.file.as_file());
        let mut block = vec![0; BLOCK];
        fill(&mut block, ENDS);
        file.write_all_at(&block, ENDS).unwrap();
        assert_eq!(bench.test(false).compare(&device, BLOCK as u64), None);
        let cause = || bench.test(false).compare(&device, BLOCK as u64).unwrap().to_string();
        // What was meant for the fifth page went to the third.
        file.write_all_at(&block[5 * PAGE..6 * PAGE], ENDS + 3 * PAGE as u64).unwrap();
        let (at, meant) = (ENDS + 3 * PAGE as u64, ENDS + 5 * PAGE as u64);
        let head = "disk sdd, serial S4YN: it does not keep what is written: the page at";
        assert_eq!(cause(), format!("{head} {at} holds what was written to {meant}"));
        file.write_all_at(&[0; PAGE], at).unwrap();
        assert_eq!(cause(), format!("{head} {at} reads zero"));
        file.write_all_at(&block[3 * PAGE..4 * PAGE], at).unwrap();
        file.write_all_at(&[1], at + 100).unwrap();
        assert_eq!(cause(), format!("{head} {at} came back changed"));
    }
}
