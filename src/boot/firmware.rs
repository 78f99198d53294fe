//! The files that machines may fetch while they boot: a closed set of names, read or opened at start. What a client
//! sends is looked up among these names and never becomes a path.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Deserialize;
use tracing::warn;

use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::ClientArch;

/// `firmware/boot-files.toml` as built into the program.
const TABLE: &str = include_str!("../../firmware/boot-files.toml");

/// Boot loaders are some hundred kilobytes; what is larger is not one.
const MAX_LOADER: u64 = 16 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    loader: Vec<Loader>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Loader {
    arch: Vec<ClientArch>,
    name: String,
    package: String,
    path: PathBuf,
}

/// What is served, by name.
#[derive(Clone, Default)]
pub struct Files {
    /// Over TFTP, from memory.
    pub memory: HashMap<String, Bytes>,
    /// Over HTTP, from these paths.
    pub paths: HashMap<String, PathBuf>,
    loaders: HashMap<ClientArch, String>,
}

impl Files {
    /// The boot loaders of the built-in table that are installed.
    pub fn installed() -> Result<Self> {
        Self::from_table(TABLE)
    }

    fn from_table(table: &str) -> Result<Self> {
        let table: Table =
            toml::from_str(table).or_fail(Kind::Internal, "boot.loader", || "the table of boot loaders is wrong")?;
        let mut files = Self::default();
        let mut packages = Vec::new();
        for loader in table.loader {
            packages.push(loader.package.clone());
            match read(&loader.path) {
                Ok(bytes) => {
                    for arch in loader.arch {
                        files.loaders.insert(arch, loader.name.clone());
                    }
                    files.memory.insert(loader.name.clone(), bytes);
                    files.paths.insert(loader.name, loader.path);
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    warn!(path = %loader.path.display(), package = loader.package, arch = ?loader.arch,
                        "boot loader is not installed; machines of this architecture cannot boot from the network");
                }
                Err(e) => {
                    return Err(Error::config(
                        "boot.loader",
                        format!("cannot read the boot loader {}", loader.path.display()),
                    )
                    .because(e));
                }
            }
        }
        if files.loaders.is_empty() {
            packages.dedup();
            return Err(Error::config("boot.loader", "no boot loader for network boot is installed")
                .hint(format!("apt-get install {}", packages.join(" "))));
        }
        Ok(files)
    }

    /// Adds a file for HTTP: the kernel, its RAM disk, the loader of the local disk.
    pub fn with(mut self, name: &str, path: &Path) -> Result<Self> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(Error::internal("boot.file", format!("{name:?} is no name for a boot file")));
        }
        std::fs::File::open(path)
            .and_then(|f| f.metadata())
            .and_then(|m| if m.is_file() { Ok(()) } else { Err(std::io::ErrorKind::InvalidInput.into()) })
            .or_fail(Kind::Config, "boot.file", || format!("cannot read the boot file {}", path.display()))?;
        self.paths.insert(name.to_owned(), path.to_owned());
        Ok(self)
    }

    /// The name of the loader that firmware of this architecture starts.
    pub fn loader(&self, arch: ClientArch) -> Option<&str> {
        self.loaders.get(&arch).map(String::as_str)
    }
}

fn read(path: &Path) -> std::io::Result<Bytes> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_LOADER + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 {
        0 => Err(std::io::Error::other("the file is empty")),
        n if n > MAX_LOADER => Err(std::io::Error::other("the file is too large for a boot loader")),
        _ => Ok(bytes.into()),
    }
}

#[cfg(test)]
impl Files {
    /// One small loader for each firmware.
    pub fn sample() -> Self {
        let mut files = Self::default();
        for (arch, name) in [
            (ClientArch::Bios, "undionly.kpxe"),
            (ClientArch::UefiX64, "snponly.efi"),
            (ClientArch::HttpX64, "snponly.efi"),
        ] {
            files.loaders.insert(arch, name.to_owned());
            files.memory.insert(name.to_owned(), Bytes::from_static(b"loader"));
        }
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_table_names_a_loader_for_each_firmware() {
        let table: Table = toml::from_str(TABLE).unwrap();
        let archs: Vec<ClientArch> = table.loader.iter().flat_map(|l| l.arch.clone()).collect();
        for arch in [ClientArch::Bios, ClientArch::UefiX64, ClientArch::HttpX64, ClientArch::UefiArm64] {
            assert_eq!(archs.iter().filter(|a| **a == arch).count(), 1, "{arch:?}");
        }
    }

    #[test]
    fn a_missing_loader_is_left_out_and_none_at_all_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.kpxe");
        std::fs::write(&path, b"loader").unwrap();
        let entry = |arch: &str, path: &Path| {
            format!("[[loader]]\narch = [\"{arch}\"]\nname = \"{arch}\"\npackage = \"ipxe\"\npath = {path:?}\n")
        };
        let gone = dir.path().join("gone");
        let files = Files::from_table(&(entry("bios", &path) + &entry("uefi-x64", &gone))).unwrap();
        assert_eq!(files.loader(ClientArch::Bios), Some("bios"));
        assert_eq!(files.loader(ClientArch::UefiX64), None);
        assert_eq!(files.memory["bios"], "loader");
        let error = Files::from_table(&entry("bios", &gone)).err().unwrap();
        assert_eq!((error.code(), error.next_step()), ("boot.loader", Some("apt-get install ipxe")));
        assert!(files.clone().with("../x", &path).is_err());
        assert!(files.clone().with("vmlinuz", dir.path()).is_err());
        assert!(files.with("vmlinuz", &path).unwrap().paths.contains_key("vmlinuz"));
    }
}
