//! Short measurements for the performance baseline: enough to tell a machine that is slower than its fellows, bounded in
//! time and bytes, and never writing to a disk.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::block::{Buffer, Device};
use super::progress::Meter;
use super::roots::Roots;
use crate::link::Measured;
use crate::machine::Disk;

const CPU: Duration = Duration::from_millis(1000);
const MEMORY: Duration = Duration::from_millis(500);
const DISK: Duration = Duration::from_millis(1500);
/// No disk is read further than this, however fast it is.
const DISK_BYTES: u64 = 16 << 30;
const READ: usize = 4 << 20;
/// Larger than the last-level caches that are common, small enough for a RAM system.
const COPY: usize = 32 << 20;

/// All of them, one after another, so that they do not disturb each other. A disk that cannot be read is left out here;
/// it shows as a missing value beside its fellows.
pub fn all(roots: &Roots, disks: &[Disk], meter: &Meter) -> Vec<Measured> {
    meter.step("measuring processor and memory", 0);
    let mut measured = vec![cpu(), memory()];
    for disk in disks.iter().filter(|d| !d.removable && d.size_bytes > 0) {
        meter.step(format!("measuring disk {}", disk.name), 0);
        match read_rate(roots, disk) {
            Ok(rate) => measured.push(megabytes(format!("disk.read.{}", disk.name), rate)),
            Err(e) => super::console::say_error(&e),
        }
    }
    measured
}

/// BLAKE3 on one thread: integer and vector units, out of the second-level cache.
fn cpu() -> Measured {
    let data = vec![0x5a_u8; 256 << 10];
    let rate = rate_of(CPU, u64::MAX, |_| {
        black_box(blake3::hash(black_box(&data)));
        Ok(data.len() as u64)
    });
    megabytes("cpu.blake3".into(), rate.unwrap_or_default())
}

fn memory() -> Measured {
    let source = vec![0x5a_u8; COPY];
    let mut target = vec![0u8; COPY];
    let rate = rate_of(MEMORY, u64::MAX, |_| {
        target.copy_from_slice(black_box(&source));
        black_box(&mut target);
        Ok(COPY as u64)
    });
    megabytes("memory.copy".into(), rate.unwrap_or_default())
}

/// Bytes a second of reading from the start on.
fn read_rate(roots: &Roots, disk: &Disk) -> crate::error::Result<f64> {
    let device = Device::read_only(&roots.dev.join(&disk.name))?;
    let mut buffer = Buffer::new(READ);
    let size = device.size();
    rate_of(DISK, DISK_BYTES.min(size), |done| {
        let len = (READ as u64).min(size - done);
        let sector = u64::from(device.sector());
        let len = len - len % sector;
        device.read_at(&mut buffer[..len as usize], done)?;
        Ok(len)
    })
}

/// Repeats `work`, which gets and returns counts of bytes, until time or bytes are used up.
fn rate_of(
    time: Duration,
    bytes: u64,
    mut work: impl FnMut(u64) -> crate::error::Result<u64>,
) -> crate::error::Result<f64> {
    let start = Instant::now();
    let mut done = 0;
    while done < bytes && start.elapsed() < time {
        match work(done)? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done as f64 / start.elapsed().as_secs_f64().max(1e-9))
}

fn megabytes(name: String, bytes_per_second: f64) -> Measured {
    Measured::new(name, (bytes_per_second / 1e4).round() / 100.0, "MB/s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_end_by_bytes_or_by_having_nothing_left() {
        let mut calls = 0;
        rate_of(Duration::from_secs(600), 10, |done| {
            calls += 1;
            assert!(done < 10);
            Ok(4)
        })
        .unwrap();
        assert_eq!(calls, 3);
        assert_eq!(rate_of(Duration::from_secs(600), 10, |_| Ok(0)).unwrap(), 0.0);
    }

    #[test]
    fn processor_and_memory_have_a_rate() {
        assert!(cpu().value > 0.0 && memory().value > 0.0);
    }
}
