//! The seed partition: a FAT file system labelled CIDATA, where cloud-init's NoCloud source looks, with the seed's
//! documents, a record of what was installed, and this very binary for the resident agent.
//!
//! It is made in memory and written in one go, so that it can be read back and compared like the image.

use std::io::{Cursor, Read, Write};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::gpt;
use crate::agent::block::{Buffer, Device};
use crate::error::{Error, Kind, OrFail, Result};
use crate::image::chunk::is_zero;
use crate::link::Seed;
use crate::machine::{Digest, MachineId, Serial};
use crate::role::Setup;

/// Where the first boot copies [`Installed`] to; the delivery checks read it there.
pub const INSTALLED_FILE: &str = "/etc/rackline/deployed.json";

const LABEL: [u8; 11] = *b"CIDATA     ";
const LEAST: u64 = 64 << 20;
/// Beside the binary: documents and the file system's own tables.
const SPARE: u64 = 16 << 20;
/// No binary of ours is near this; a wrong length must not ask for all memory.
const BINARY_MAX: u64 = 512 << 20;
const PIECE: usize = 4 << 20;
/// Tables and documents of the seed lie within this.
const HEAD: u64 = 4 << 20;
const DOCUMENT_MAX: u64 = 64 << 10;

/// What was put on which disk, for the installed system: `deployed.json` on the seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Installed {
    pub machine: MachineId,
    pub manifest: Digest,
    pub disk_serial: Option<Serial>,
    pub disk_wwn: Option<String>,
    pub disk_bytes: u64,
    /// What the host is set up with, at its first start and at each one after that.
    #[serde(default)]
    pub setup: Setup,
}

/// The size of the seed partition for a binary of `binary` bytes, in whole MiB.
pub fn size_for(binary: u64) -> u64 {
    (binary + SPARE).next_multiple_of(1 << 20).max(LEAST)
}

/// This very binary.
pub fn own_binary() -> Result<Vec<u8>> {
    let failed = || "this program cannot read itself";
    let path = "/proc/self/exe";
    let len = std::fs::metadata(path).or_fail(Kind::Internal, "agent.binary", failed)?.len();
    if len > BINARY_MAX {
        return Err(Error::internal("agent.binary", format!("this program has {len} bytes")));
    }
    std::fs::read(path).or_fail(Kind::Internal, "agent.binary", failed)
}

/// Writes the file system to `place` and compares what the disk then holds.
pub fn write(device: &Device, place: &Range<u64>, seed: &Seed, installed: &Installed, binary: &[u8]) -> Result<()> {
    let len =
        usize::try_from(place.end - place.start).or_fail(Kind::Internal, "seed.make", || "the seed is too large")?;
    let mut image = Buffer::new(len);
    make(&mut image, seed, installed, binary).or_fail(
        Kind::Internal,
        "seed.make",
        || "the seed's file system cannot be made",
    )?;
    // Most of it is empty: that is left to the device.
    device.zero(place.start, place.end - place.start)?;
    for (i, piece) in image.chunks(PIECE).enumerate() {
        if !is_zero(piece) {
            device.write_at(piece, place.start + (i * PIECE) as u64)?;
        }
    }
    device.sync()?;
    let mut there = Buffer::new(PIECE);
    for (i, piece) in image.chunks(PIECE).enumerate() {
        let offset = place.start + (i * PIECE) as u64;
        let there = &mut there[..piece.len()];
        device.read_at(there, offset)?;
        if there != piece {
            let what = format!("the seed at {offset} of {} reads back differently", device.path().display());
            return Err(Error::refused("disk.read-back", what).hint("take the disk out of service"));
        }
    }
    Ok(())
}

/// What was installed on this disk, as far as its seed still says so. Only a hint: it comes from a disk that others have
/// written to since, so that the file system's reader may even give up in a panic.
pub fn installed(device: &Device) -> Result<Option<Installed>> {
    let Some(place) = gpt::find_seed(device)? else { return Ok(None) };
    // The documents were made before the binary, so that they lie at the start.
    let len = (place.end - place.start).min(HEAD) as usize;
    let mut head = Buffer::new(len);
    device.read_at(&mut head, place.start)?;
    let text = std::panic::catch_unwind(|| document(head.to_vec(), "deployed.json")).ok().flatten();
    Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
}

fn document(head: Vec<u8>, name: &str) -> Option<Vec<u8>> {
    let disk = fatfs::FileSystem::new(Cursor::new(head), fatfs::FsOptions::new()).ok()?;
    let mut text = Vec::new();
    disk.root_dir().open_file(name).ok()?.take(DOCUMENT_MAX).read_to_end(&mut text).ok()?;
    Some(text)
}

/// The file system by itself, for a disk of its own: how an image is tried out.
pub fn image(seed: &Seed, installed: &Installed, binary: &[u8]) -> Result<Vec<u8>> {
    let len = usize::try_from(size_for(binary.len() as u64)).unwrap_or(usize::MAX);
    let mut image = vec![0; len];
    let failed = || "the seed's file system cannot be made";
    make(&mut image, seed, installed, binary).or_fail(Kind::Internal, "seed.make", failed)?;
    Ok(image)
}

fn make(image: &mut [u8], seed: &Seed, installed: &Installed, binary: &[u8]) -> std::io::Result<()> {
    let id = uuid::Uuid::new_v4().as_fields().0;
    let options = fatfs::FormatVolumeOptions::new().volume_label(LABEL).volume_id(id);
    fatfs::format_volume(Cursor::new(&mut *image), options)?;
    let disk = fatfs::FileSystem::new(Cursor::new(image), fatfs::FsOptions::new())?;
    {
        let root = disk.root_dir();
        let put = |name: &str, bytes: &[u8]| {
            let mut file = root.create_file(name)?;
            file.truncate()?;
            file.write_all(bytes)?;
            file.flush()
        };
        put("meta-data", seed.meta_data.as_bytes())?;
        put("user-data", seed.user_data.as_bytes())?;
        // An empty network-config would be taken for "no network"; without one the image's own default holds.
        if !seed.network_config.is_empty() {
            put("network-config", seed.network_config.as_bytes())?;
        }
        put("deployed.json", &serde_json::to_vec_pretty(installed)?)?;
        put("rackline", binary)?;
    }
    disk.unmount()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_seed_holds_what_cloud_init_looks_for() {
        let installed = Installed {
            machine: MachineId::generate(),
            manifest: Digest::of(b"image"),
            disk_serial: Serial::parse("DISK-1"),
            disk_wwn: None,
            disk_bytes: 1 << 30,
            setup: Setup::default(),
        };
        let seed =
            Seed { meta_data: "instance-id: a\n".into(), user_data: "#cloud-config\n".into(), ..Seed::default() };
        let binary: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        let mut image = vec![0u8; size_for(binary.len() as u64) as usize];
        make(&mut image, &seed, &installed, &binary).unwrap();

        let disk = fatfs::FileSystem::new(Cursor::new(image), fatfs::FsOptions::new()).unwrap();
        assert_eq!(disk.volume_label(), "CIDATA");
        assert_eq!(disk.read_volume_label_from_root_dir().unwrap().as_deref(), Some("CIDATA"));
        let read = |name: &str| {
            let mut bytes = Vec::new();
            disk.root_dir().open_file(name).map(|mut f| f.read_to_end(&mut bytes).unwrap())?;
            std::io::Result::Ok(bytes)
        };
        assert_eq!(read("meta-data").unwrap(), b"instance-id: a\n");
        assert_eq!(read("user-data").unwrap(), b"#cloud-config\n");
        assert!(read("network-config").is_err());
        assert_eq!(read("rackline").unwrap(), binary);
        assert_eq!(serde_json::from_slice::<Installed>(&read("deployed.json").unwrap()).unwrap(), installed);
    }

    #[test]
    fn the_documents_are_found_at_the_start() {
        let seed = Seed { user_data: "#".repeat(1 << 20), ..Seed::default() };
        let installed = Installed {
            machine: MachineId::generate(),
            manifest: Digest::of(b"image"),
            disk_serial: None,
            disk_wwn: None,
            disk_bytes: 1 << 30,
            setup: Setup::default(),
        };
        let binary = vec![7; 140 << 20];
        let mut image = vec![0u8; size_for(binary.len() as u64) as usize];
        make(&mut image, &seed, &installed, &binary).unwrap();
        image.truncate(HEAD as usize);
        let text = document(image, "deployed.json").unwrap();
        assert_eq!(serde_json::from_slice::<Installed>(&text).unwrap(), installed);
        assert_eq!(document(vec![0; 4096], "deployed.json"), None);
    }

    #[test]
    fn the_partition_is_large_enough_for_any_build() {
        assert_eq!(size_for(30 << 20), 64 << 20);
        assert_eq!(size_for((140 << 20) + 1), 157 << 20);
    }
}
