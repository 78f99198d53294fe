//! The files that machines may fetch while they boot: a closed set of names, read or opened at start. What a client
//! sends is looked up among these names and never becomes a path.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use serde::Deserialize;
use tracing::warn;

use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::ClientArch;

/// The name of a boot loader.
pub type Name = Arc<str>;

/// `firmware/boot-files.toml` as built into the program.
const TABLE: &str = include_str!("../../firmware/boot-files.toml");

/// The names in [`TABLE`] by architecture, in order of preference: what a configuration may name. A table that cannot be
/// read has none; that it can is a test.
static KNOWN: LazyLock<BTreeMap<&'static str, Vec<Name>>> = LazyLock::new(|| {
    let mut known: BTreeMap<_, Vec<Name>> = BTreeMap::new();
    for loader in toml::from_str::<Table>(TABLE).map(|t| t.loader).unwrap_or_default() {
        for arch in loader.arch {
            known.entry(super::script::arch_name(arch)).or_default().push(loader.name.as_str().into());
        }
    }
    known
});

/// Boot loaders are some hundred kilobytes, GRUB some megabytes; what is larger is not one.
const MAX_LOADER: u64 = 16 << 20;
/// A kernel is about 8 MiB, its RAM disk with the agent some tens.
const MAX_OVER_TFTP: u64 = 512 << 20;

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
    about: String,
    package: String,
    path: PathBuf,
    /// A file that this one fetches itself, from where it came.
    with: Option<Companion>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Companion {
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
    loaders: HashMap<ClientArch, Vec<Name>>,
    about: HashMap<Name, String>,
    /// Those of `loaders` that start GRUB; all others are iPXE.
    grub: HashSet<Name>,
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
        for loader in &table.loader {
            packages.extend([Some(&loader.package), loader.with.as_ref().map(|w| &w.package)].into_iter().flatten());
            files.add(loader)?;
        }
        for arch in table.loader.iter().flat_map(|l| &l.arch) {
            if !files.loaders.contains_key(arch) {
                warn!(
                    ?arch,
                    "no boot loader is installed for machines of this architecture; they cannot boot from here"
                );
            }
        }
        if files.loaders.is_empty() {
            packages.dedup();
            let packages: Vec<&str> = packages.into_iter().map(String::as_str).collect();
            return Err(Error::config("boot.loader", "no boot loader for network boot is installed")
                .hint(format!("apt-get install {}", packages.join(" "))));
        }
        Ok(files)
    }

    /// Adds a loader with what belongs to it, or nothing where a part is not installed.
    fn add(&mut self, loader: &Loader) -> Result<()> {
        let mut parts = vec![(&loader.name, &loader.package, &loader.path)];
        parts.extend(loader.with.as_ref().map(|w| (&w.name, &w.package, &w.path)));
        let mut contents = Vec::new();
        for (name, package, path) in parts {
            match read(path, MAX_LOADER) {
                Ok(bytes) => contents.push((name, path, bytes)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    tracing::info!(path = %path.display(), package, "boot file {} is left out: not installed", loader.name);
                    return Ok(());
                }
                Err(e) => return Err(unreadable(path).because(e)),
            }
        }
        for (name, path, bytes) in contents {
            self.memory.insert(name.clone(), bytes);
            self.paths.insert(name.clone(), path.clone());
        }
        let name = Name::from(loader.name.as_str());
        for arch in &loader.arch {
            self.loaders.entry(*arch).or_default().push(name.clone());
        }
        if loader.with.is_some() {
            self.grub.insert(name.clone());
        }
        self.about.insert(name, loader.about.clone());
        Ok(())
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

    /// Offers these files of HTTP over TFTP too, where a loader is installed that can do no better: the signed GRUB.
    pub fn over_tftp(mut self, names: &[&str]) -> Result<Self> {
        if self.grub.is_empty() {
            return Ok(self);
        }
        for name in names {
            if let Some(path) = self.paths.get(*name) {
                let bytes = read(path, MAX_OVER_TFTP).map_err(|e| unreadable(path).because(e))?;
                self.memory.insert((*name).to_owned(), bytes);
            }
        }
        Ok(self)
    }

    /// What firmware of this architecture can be given, in order of preference.
    pub fn loaders(&self, arch: ClientArch) -> &[Name] {
        self.loaders.get(&arch).map_or(&[], Vec::as_slice)
    }

    /// What a loader is, in a few words.
    pub fn about(&self, name: &str) -> &str {
        self.about.get(name).map_or("", String::as_str)
    }

    pub fn starts_grub(&self, name: &str) -> bool {
        self.grub.contains(name)
    }
}

/// The names that a configuration may use for this architecture, installed or not.
pub fn known(arch: ClientArch) -> &'static [Name] {
    KNOWN.get(super::script::arch_name(arch)).map_or(&[], Vec::as_slice)
}

/// The names of all architectures, each once.
pub fn known_anywhere() -> Vec<Name> {
    let mut all: Vec<Name> = Vec::new();
    for name in KNOWN.values().flatten() {
        if !all.contains(name) {
            all.push(name.clone());
        }
    }
    all
}

fn unreadable(path: &Path) -> Error {
    Error::config("boot.loader", format!("cannot read the boot file {}", path.display()))
}

fn read(path: &Path, most: u64) -> std::io::Result<Bytes> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 {
        0 => Err(std::io::Error::other("the file is empty")),
        n if n > most => Err(std::io::Error::other("the file is too large")),
        _ => Ok(bytes.into()),
    }
}

#[cfg(test)]
impl Files {
    /// Small loaders for each firmware.
    pub fn sample() -> Self {
        let mut files = Self::default();
        for (arch, names) in [
            (ClientArch::Bios, &["undionly.kpxe", "ipxe.pxe"][..]),
            (ClientArch::UefiX64, &["snponly.efi", "ipxe.efi", "shimx64.efi"]),
            (ClientArch::HttpX64, &["snponly.efi", "ipxe.efi"]),
        ] {
            files.loaders.insert(arch, names.iter().map(|n| Name::from(*n)).collect());
            files.memory.extend(names.iter().map(|n| ((*n).to_owned(), Bytes::from_static(b"loader"))));
        }
        files.grub.insert("shimx64.efi".into());
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_table_names_loaders_for_each_firmware() {
        let names = |arch| known(arch).iter().map(|n| n.to_string()).collect::<Vec<_>>();
        assert_eq!(names(ClientArch::Bios), ["undionly.kpxe", "ipxe.pxe"]);
        assert_eq!(names(ClientArch::UefiX64), ["snponly.efi", "ipxe.efi", "shimx64.efi"]);
        assert_eq!(names(ClientArch::HttpX64), ["snponly.efi", "ipxe.efi"]);
        assert_eq!(names(ClientArch::UefiArm64), ["ipxe-arm64.efi"]);
        assert!(known(ClientArch::UefiIa32).is_empty());
        let table: Table = toml::from_str(TABLE).unwrap();
        let mut all: Vec<&str> = table.loader.iter().map(|l| l.name.as_str()).collect();
        all.extend(table.loader.iter().filter_map(|l| Some(l.with.as_ref()?.name.as_str())));
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len(), "each name once");
    }

    #[test]
    fn a_missing_loader_is_left_out_and_none_at_all_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.kpxe");
        std::fs::write(&path, b"loader").unwrap();
        let entry = |arch: &str, name: &str, path: &Path| {
            format!(
                "[[loader]]\narch = [\"{arch}\"]\nname = \"{name}\"\nabout = \"\"\npackage = \"ipxe\"\npath = {path:?}\n"
            )
        };
        let gone = dir.path().join("gone");
        let table = entry("bios", "b", &path) + &entry("bios", "a", &path) + &entry("uefi-x64", "u", &gone);
        let files = Files::from_table(&table).unwrap();
        assert_eq!(files.loaders(ClientArch::Bios), [Name::from("b"), Name::from("a")], "in the order of the table");
        assert!(files.loaders(ClientArch::UefiX64).is_empty());
        assert_eq!(files.memory["b"], "loader");
        let error = Files::from_table(&entry("bios", "b", &gone)).err().unwrap();
        assert_eq!((error.code(), error.next_step()), ("boot.loader", Some("apt-get install ipxe")));
        assert!(files.clone().with("../x", &path).is_err());
        assert!(files.clone().with("vmlinuz", dir.path()).is_err());
        assert!(files.with("vmlinuz", &path).unwrap().paths.contains_key("vmlinuz"));
    }

    #[test]
    fn shim_without_its_grub_is_of_no_use() {
        let dir = tempfile::tempdir().unwrap();
        let (shim, grub) = (dir.path().join("shim"), dir.path().join("grub"));
        std::fs::write(&shim, b"shim").unwrap();
        let table = format!(
            "[[loader]]\narch = [\"uefi-x64\"]\nname = \"shim.efi\"\nabout = \"\"\npackage = \"s\"\npath = {shim:?}\n\
             with = {{ name = \"grub.efi\", package = \"g\", path = {grub:?} }}\n"
        );
        let error = Files::from_table(&table).err().unwrap();
        assert_eq!(error.next_step(), Some("apt-get install s g"));
        std::fs::write(&grub, b"grub").unwrap();
        let files = Files::from_table(&table).unwrap();
        assert!(files.starts_grub("shim.efi") && files.memory.contains_key("grub.efi"));
        // Only then are kernel and RAM disk held in memory.
        assert!(!files.clone().with("vmlinuz", &shim).unwrap().memory.contains_key("vmlinuz"));
        let files = files.with("vmlinuz", &shim).unwrap().over_tftp(&["vmlinuz", "initrd"]).unwrap();
        assert_eq!(files.memory["vmlinuz"], "shim");
    }
}
