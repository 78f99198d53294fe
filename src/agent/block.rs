//! Block devices: exclusive direct access, discard and zeroing, and the aligned buffers that direct access wants.
//!
//! The requests are those of `linux/fs.h`: `BLKRRPART` 0x12,95; `BLKSSZGET` 104; `BLKGETSIZE64` 114; `BLKDISCARD` 119;
//! `BLKSECDISCARD` 125; `BLKZEROOUT` 127. The last three take `{ offset, length }` in bytes as two u64.

use std::fs::{File, OpenOptions};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::ioctl::{Getter, NoArg, Opcode, Setter, ioctl, opcode};

use crate::error::{Error, Kind, OrFail, Result};

const BLKRRPART: Opcode = opcode::none(0x12, 95);
const BLKSSZGET: Opcode = opcode::none(0x12, 104);
const BLKGETSIZE64: Opcode = opcode::read::<usize>(0x12, 114);
const BLKDISCARD: Opcode = opcode::none(0x12, 119);
const BLKSECDISCARD: Opcode = opcode::none(0x12, 125);
const BLKZEROOUT: Opcode = opcode::none(0x12, 127);

/// The strictest alignment of memory and length that a disk asks for.
pub const ALIGN: usize = 4096;

/// Zeros are written in pieces of this size where the device cannot zero by itself, and long ranges are zeroed in
/// pieces of [`ZERO_STEP`], so that progress can be shown and a stop is noticed.
const ZERO_PIECE: usize = 1 << 20;
pub const ZERO_STEP: u64 = 1 << 30;

/// A freed claim (a closing partition scan) may take a moment to be seen.
const CLAIM_PATIENCE: Duration = Duration::from_secs(3);

/// A whole disk, opened for direct access.
#[derive(Debug)]
pub struct Device {
    file: File,
    path: PathBuf,
    size: u64,
    sector: u32,
}

impl Device {
    /// Opens for writing and claims the disk: the kernel refuses while it or one of its partitions is mounted, is swap,
    /// or belongs to LVM, RAID or device mapper, and refuses those as long as we hold it.
    pub fn claim(path: &Path) -> Result<Self> {
        let give_up = Instant::now() + CLAIM_PATIENCE;
        loop {
            let flags = OFlags::DIRECT | OFlags::EXCL | OFlags::CLOEXEC;
            match OpenOptions::new().read(true).write(true).custom_flags(flags.bits() as i32).open(path) {
                Ok(file) => return Self::from_file(file, path),
                Err(e) if e.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
                    if Instant::now() >= give_up {
                        return Err(Error::conflict("disk.busy", format!("{} is in use", path.display()))
                            .hint("unmount it, or stop the RAID, LVM or swap on it, then order again")
                            .because(e));
                    }
                    std::thread::sleep(Duration::from_millis(200));
                }
                Err(e) => {
                    return Err(
                        Error::unreachable("disk.io", format!("cannot open {} for writing", path.display())).because(e)
                    );
                }
            }
        }
    }

    /// Opens for direct reading only, without a claim.
    pub fn read_only(path: &Path) -> Result<Self> {
        let flags = OFlags::DIRECT | OFlags::CLOEXEC;
        let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path).or_fail(
            Kind::Unreachable,
            "disk.io",
            || format!("cannot open {} for reading", path.display()),
        )?;
        Self::from_file(file, path)
    }

    fn from_file(file: File, path: &Path) -> Result<Self> {
        let failed = || format!("{} does not tell its size", path.display());
        let block = file.metadata().or_fail(Kind::Unreachable, "disk.io", failed)?.file_type().is_block_device();
        if !block {
            return Err(Error::internal("disk.io", format!("{} is not a block device", path.display())));
        }
        // SAFETY: BLKGETSIZE64 writes one u64 and BLKSSZGET one int, as linux/fs.h says.
        let (size, sector) = unsafe {
            (
                ioctl(&file, Getter::<BLKGETSIZE64, u64>::new()).or_fail(Kind::Unreachable, "disk.io", failed)?,
                ioctl(&file, Getter::<BLKSSZGET, i32>::new()).or_fail(Kind::Unreachable, "disk.io", failed)?,
            )
        };
        let sector = u32::try_from(sector)
            .ok()
            .filter(|s| s.is_power_of_two() && (512..=ALIGN as u32).contains(s))
            .ok_or_else(|| Error::refused("disk.io", format!("{} has sectors of {sector} bytes", path.display())))?;
        Ok(Self { file, path: path.to_owned(), size, sector })
    }

    /// A file stands for a disk: without a claim, direct access or a controller that zeroes by itself.
    #[cfg(test)]
    pub fn of_file(path: &Path) -> Self {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        Self { size: file.metadata().unwrap().len(), file, path: path.to_owned(), sector: 512 }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// In bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Logical sector size in bytes: 512 to 4096.
    pub fn sector(&self) -> u32 {
        self.sector
    }

    /// `len` rounded up to whole sectors.
    pub fn round_up(&self, len: usize) -> usize {
        len.next_multiple_of(self.sector as usize)
    }

    /// Offset and length must be multiples of the sector, the memory aligned: use a [`Buffer`].
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).or_fail(Kind::Unreachable, "disk.io", || {
            format!("writing {} bytes at {offset} of {} failed", bytes.len(), self.path.display())
        })
    }

    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let len = bytes.len();
        self.file.read_exact_at(bytes, offset).or_fail(Kind::Unreachable, "disk.io", || {
            format!("reading {len} bytes at {offset} of {} failed", self.path.display())
        })
    }

    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().or_fail(Kind::Unreachable, "disk.io", || {
            format!("{} did not confirm that everything is written", self.path.display())
        })
    }

    /// Gives a range back to the device. `false` where it cannot; what the range reads afterwards is the device's choice.
    pub fn discard(&self, offset: u64, len: u64) -> Result<bool> {
        // SAFETY: BLKDISCARD reads two u64.
        self.supported(unsafe { ioctl(&self.file, Setter::<BLKDISCARD, [u64; 2]>::new([offset, len])) }, "discarding")
    }

    /// Like [`Device::discard`], and the device also forgets copies that its wear levelling has made.
    pub fn secure_discard(&self, offset: u64, len: u64) -> Result<bool> {
        // SAFETY: BLKSECDISCARD reads two u64.
        let result = unsafe { ioctl(&self.file, Setter::<BLKSECDISCARD, [u64; 2]>::new([offset, len])) };
        self.supported(result, "securely discarding")
    }

    fn supported(&self, result: rustix::io::Result<()>, what: &str) -> Result<bool> {
        match result {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL) => Ok(false),
            Err(e) => {
                Err(Error::unreachable("disk.io", format!("{what} on {} failed", self.path.display())).because(e))
            }
        }
    }

    /// After this the range reads zero for certain: the kernel has the device zero it (write zeroes, unmap where that is
    /// defined to read zero), else writes zeros, and we do where it does not know how.
    pub fn zero(&self, offset: u64, len: u64) -> Result<()> {
        let end = offset.saturating_add(len).min(self.size);
        let mut at = offset;
        while at < end {
            let step = ZERO_STEP.min(end - at);
            // SAFETY: BLKZEROOUT reads two u64.
            match unsafe { ioctl(&self.file, Setter::<BLKZEROOUT, [u64; 2]>::new([at, step])) } {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::NOTTY) => self.write_zeros(at, step)?,
                Err(e) => {
                    let what = format!("zeroing {step} bytes at {at} of {} failed", self.path.display());
                    return Err(Error::unreachable("disk.io", what).because(e));
                }
            }
            at += step;
        }
        Ok(())
    }

    fn write_zeros(&self, offset: u64, len: u64) -> Result<()> {
        let zeros = Buffer::new(ZERO_PIECE);
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let piece = (ZERO_PIECE as u64).min(end - at);
            self.write_at(&zeros[..piece as usize], at)?;
            at += piece;
        }
        Ok(())
    }

    /// Has the kernel read the partition table again. A device without partition support (a plain loop device) is fine.
    pub fn reread_partitions(&self) -> Result<()> {
        let give_up = Instant::now() + CLAIM_PATIENCE;
        loop {
            // SAFETY: BLKRRPART takes no argument.
            match unsafe { ioctl(&self.file, NoArg::<BLKRRPART>::new()) } {
                Ok(()) | Err(Errno::INVAL | Errno::NOTTY) => return Ok(()),
                Err(Errno::BUSY) if Instant::now() < give_up => std::thread::sleep(Duration::from_millis(200)),
                Err(e) => {
                    let what = format!("the kernel does not take the new partition table of {}", self.path.display());
                    return Err(Error::conflict("disk.busy", what).because(e));
                }
            }
        }
    }
}

/// Zeroed memory at an address that direct access accepts.
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    pub fn new(len: usize) -> Self {
        let memory = vec![0u8; len + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        Self { memory, start, len }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::chunk::is_zero;

    #[test]
    fn buffers_are_aligned_and_zero() {
        for len in [512, 4096, 1 << 20, 4 << 20] {
            let buffer = Buffer::new(len);
            assert_eq!((buffer.as_ptr() as usize % ALIGN, buffer.len()), (0, len));
            assert!(is_zero(&buffer));
        }
    }

    #[test]
    fn a_file_is_not_a_disk() {
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/target").unwrap();
        assert!(Device::claim(file.path()).is_err());
    }
}
