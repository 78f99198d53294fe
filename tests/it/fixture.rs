//! Images for tests and benchmarks that care for their chunks only: a whole manifest around them, and a place in a library.

use std::fs;
use std::path::{Path, PathBuf};

use rackline::image::chunk::{PackOptions, Packed, pack};
use rackline::image::manifest::Boot;
use rackline::image::{Manifest, SignedManifest, SigningKey, catalogue};
use rackline::machine::Firmware;

/// A manifest with everything that one must have: for BIOS, without a role, release `1`.
pub fn manifest(name: &str, packed: Packed) -> Manifest {
    Manifest {
        name: name.into(),
        release: "1".into(),
        arch: "amd64".into(),
        roles: Vec::new(),
        firmware: vec![Firmware::Bios],
        disk_size: packed.disk_size,
        chunk_size: packed.chunk_size,
        used_bytes: packed.used_bytes,
        data_size: packed.data_size,
        boot: Boot {
            root_label: "root".into(),
            release: "6.1".into(),
            kernel: "/vmlinuz".into(),
            initrd: "/initrd.img".into(),
            command_line: "ro".into(),
        },
        labels: Default::default(),
        chunks: packed.chunks,
    }
}

/// As it is published, with the data file.
pub struct Image {
    pub manifest: Manifest,
    pub signed: SignedManifest,
    pub data: Vec<u8>,
}

impl Image {
    /// `disk` in chunks of `chunk_size` bytes.
    pub fn pack(name: &str, disk: &[u8], chunk_size: usize, key: &SigningKey) -> Self {
        let options = PackOptions { chunk_size: chunk_size as u32, level: 1, threads: 2 };
        let mut data = Vec::new();
        let packed = pack(disk, disk.len() as u64, &mut data, options, &|_| {}).unwrap();
        Self::sign(manifest(name, packed), data, key)
    }

    pub fn sign(manifest: Manifest, data: Vec<u8>, key: &SigningKey) -> Self {
        Self { signed: SignedManifest::sign(&manifest, key).unwrap(), manifest, data }
    }

    /// Puts it among those of the folder `images`.
    pub fn store(&self, images: &Path) -> PathBuf {
        let folder = images.join(format!("{}-{}", self.manifest.name, self.manifest.release));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(catalogue::DATA), &self.data).unwrap();
        fs::write(folder.join(catalogue::MANIFEST), self.signed.encode()).unwrap();
        folder
    }
}

/// Bytes that do not compress, always the same.
pub fn noise(name: &str, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
