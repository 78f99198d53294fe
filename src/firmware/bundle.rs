//! Firmware images of the site: a folder with an index. Each file is kept under its own digest and compared with it again before
//! it goes to a BMC; for which machines and parts it is, the person says who adds it, since no format of the vendors tells.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::baseline::{Part, fits};
use crate::durable;
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::Digest;

const INDEX: &str = "index.toml";
/// The largest that vendors offer are below 1 GB.
const MAX_BUNDLE: u64 = 4 << 30;

/// One image, and what it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// Its name as it was added, for people and for BMCs that look at the ending.
    pub file: String,
    /// By its name in `firmware/settings.toml`.
    pub vendor: String,
    /// As in baselines, with `*`.
    pub models: Vec<String>,
    pub component: Part,
    /// Only for parts in whose name or id this occurs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named: Option<String>,
    pub version: String,
    pub blake3: Digest,
    pub sha256: Digest,
    pub bytes: u64,
}

impl Bundle {
    pub fn fits_model(&self, model: &str) -> bool {
        self.models.iter().any(|pattern| fits(pattern, model))
    }

    /// Under which it is kept; made of the digest and plain letters only.
    fn stored(&self) -> String {
        format!("{}-{}", self.blake3.short(), self.file)
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    #[serde(default, rename = "bundle")]
    bundles: Vec<Bundle>,
}

/// What is said of a file that is added.
#[derive(Debug, Clone)]
pub struct About {
    pub vendor: String,
    pub models: Vec<String>,
    pub component: Part,
    pub named: Option<String>,
    pub version: String,
    /// As the vendor's page has it; compared.
    pub sha256: Option<Digest>,
}

/// The folder.
#[derive(Debug, Clone)]
pub struct Bundles {
    folder: PathBuf,
}

impl Bundles {
    /// The folder is made with the first bundle.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Those of the index; none where there is no folder yet.
    pub fn list(&self) -> Result<Vec<Bundle>> {
        let path = self.folder.join(INDEX);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(unusable(&path).because(e)),
        };
        let index: Index = toml::from_str(&text).map_err(|e| unusable(&path).because(e))?;
        if let Some(strange) = index.bundles.iter().find(|b| !plain(&b.file)) {
            return Err(unusable(&path).because(format!("{:?} is no name for a file", strange.file)));
        }
        Ok(index.bundles)
    }

    pub fn path(&self, bundle: &Bundle) -> PathBuf {
        self.folder.join(bundle.stored())
    }

    /// Copies a file in. One that is there already for the same thing is left as it is.
    pub fn add(&self, from: &Path, about: About) -> Result<Bundle> {
        let file = plain_name(from);
        std::fs::create_dir_all(&self.folder).or_fail(Kind::Config, "firmware.folder", || {
            format!("cannot make the folder for firmware {}", self.folder.display())
        })?;
        let _held = self.hold()?;
        let mut index = self.list()?;
        let copy = self.folder.join(format!(".{file}.{}", std::process::id()));
        let summed = copy_and_sum(from, &copy);
        let outcome = summed.and_then(|(blake3, sha256, bytes)| {
            if let Some(said) = about.sha256.filter(|said| *said != sha256) {
                return Err(Error::refused(
                    "firmware.digest",
                    format!("the SHA-256 of {} is {sha256}, expected {said}", from.display()),
                )
                .hint("fetch it again from the vendor, and compare with the digest on the vendor's page"));
            }
            let About { vendor, models, component, named, version, .. } = about;
            Ok(Bundle { file, vendor, models, component, named, version, blake3, sha256, bytes })
        });
        let bundle = outcome.inspect_err(|_| drop(std::fs::remove_file(&copy)))?;
        durable::rename(&copy, &self.path(&bundle)).or_fail(
            Kind::Config,
            "firmware.folder",
            || "cannot keep the bundle",
        )?;
        if !index.contains(&bundle) {
            index.push(bundle.clone());
            self.write(index)?;
        }
        Ok(bundle)
    }

    /// By the beginning of its digest or by its file name, where that means one.
    pub fn remove(&self, which: &str) -> Result<Bundle> {
        let _held = self.hold()?;
        let (found, rest): (Vec<Bundle>, Vec<Bundle>) =
            self.list()?.into_iter().partition(|b| b.blake3.to_string().starts_with(which) || b.file == which);
        let [bundle] = <[Bundle; 1]>::try_from(found).map_err(|found| {
            let how_many = if found.is_empty() { "no bundle" } else { "more than one bundle" };
            Error::not_found("firmware.bundle", format!("{how_many} is meant by {which:?}"))
                .hint("`rackline firmware list` shows them; the first letters of a digest are enough")
        })?;
        let shared = rest.iter().any(|b| b.stored() == bundle.stored());
        self.write(rest)?;
        if !shared {
            let _ = std::fs::remove_file(self.path(&bundle));
        }
        Ok(bundle)
    }

    /// The file is what the index says, byte for byte; the last look before it goes to a BMC.
    pub fn verify(&self, bundle: &Bundle) -> Result<PathBuf> {
        let path = self.path(bundle);
        let mut hasher = blake3::Hasher::new();
        let read = File::open(&path).and_then(|file| hasher.update_reader(file).map(|_| ()));
        read.map_err(|e| {
            Error::refused("firmware.missing", format!("the bundle {} cannot be read", bundle.file))
                .because(e)
                .hint("add it again: `rackline firmware add FILE`")
        })?;
        let found = Digest::from(hasher.finalize());
        if found != bundle.blake3 {
            return Err(Error::refused(
                "firmware.digest",
                format!(
                    "the bundle {} has changed: BLAKE3 {}, expected {}",
                    bundle.file,
                    found.short(),
                    bundle.blake3.short()
                ),
            )
            .hint("fetch it again from the vendor and add it again; it was not sent"));
        }
        Ok(path)
    }

    /// One writer at a time; released when dropped.
    fn hold(&self) -> Result<File> {
        let path = self.folder.join(".lock");
        let held = File::create(&path).and_then(|file| file.lock().map(|()| file));
        held.or_fail(Kind::Config, "firmware.folder", || {
            format!("cannot use the folder for firmware {}", self.folder.display())
        })
    }

    /// All or nothing: readers see the old index or the new one.
    fn write(&self, bundles: Vec<Bundle>) -> Result<()> {
        let text = toml::to_string(&Index { bundles }).or_fail(
            Kind::Internal,
            "firmware.index",
            || "the index of firmware cannot be written",
        )?;
        let path = self.folder.join(INDEX);
        durable::replace(&path, text.as_bytes())
            .or_fail(Kind::Config, "firmware.index", || format!("cannot write {}", path.display()))
    }
}

fn unusable(index: &Path) -> Error {
    Error::config("firmware.index", format!("the index of firmware {} cannot be read", index.display()))
        .hint("correct it, or remove it and add the bundles again")
}

/// Names become part of a path and of a URL.
fn plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(plain_byte)
}

fn plain_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-+".contains(&byte)
}

/// What a file is called here: letters that mean something in a path or a URL are replaced.
fn plain_name(path: &Path) -> String {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let each = name.trim_start_matches('.').chars();
    let name: String = each.map(|c| if u8::try_from(c).is_ok_and(plain_byte) { c } else { '_' }).collect();
    if name.is_empty() { "bundle".into() } else { name }
}

fn copy_and_sum(from: &Path, to: &Path) -> Result<(Digest, Digest, u64)> {
    let unreadable = || format!("cannot read {}", from.display());
    let mut source = File::open(from).or_fail(Kind::Input, "firmware.file", unreadable)?;
    let mut copy =
        File::create(to).or_fail(Kind::Config, "firmware.folder", || format!("cannot write {}", to.display()))?;
    let (mut blake3, mut sha256, mut bytes) = (blake3::Hasher::new(), Context::new(&SHA256), 0_u64);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = source.read(&mut buffer).or_fail(Kind::Input, "firmware.file", unreadable)?;
        let Some(part) = buffer.get(..count).filter(|part| !part.is_empty()) else { break };
        blake3.update(part);
        sha256.update(part);
        bytes += count as u64;
        if bytes > MAX_BUNDLE {
            return Err(Error::input("firmware.file", format!("{} is too large for firmware", from.display())));
        }
        copy.write_all(part).or_fail(Kind::Config, "firmware.folder", || format!("cannot write {}", to.display()))?;
    }
    if bytes == 0 {
        return Err(Error::input("firmware.file", format!("{} is empty", from.display())));
    }
    copy.sync_all().or_fail(Kind::Config, "firmware.folder", || format!("cannot write {}", to.display()))?;
    let sha256 = <[u8; 32]>::try_from(sha256.finish().as_ref()).or_fail(
        Kind::Internal,
        "firmware.digest",
        || "a SHA-256 has another length",
    )?;
    Ok((blake3.finalize().into(), Digest(sha256), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(version: &str) -> About {
        About {
            vendor: "Dell".into(),
            models: vec!["PowerEdge R750".into()],
            component: Part::Bios,
            named: None,
            version: version.into(),
            sha256: None,
        }
    }

    #[test]
    fn added_listed_verified_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let bundles = Bundles::new(dir.path().join("firmware"));
        assert_eq!(bundles.list().unwrap(), []);
        let file = dir.path().join(".BIOS 1.15&.EXE");
        std::fs::write(&file, b"abc").unwrap();
        let bundle = bundles.add(&file, about("1.15.2")).unwrap();
        assert_eq!(bundle.sha256.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(bundle.blake3, Digest::of(b"abc"));
        assert_eq!(bundle.file, "BIOS_1.15_.EXE");
        // Adding it again changes nothing.
        assert_eq!(bundles.add(&file, about("1.15.2")).unwrap(), bundle);
        assert_eq!(bundles.list().unwrap(), std::slice::from_ref(&bundle));
        assert_eq!(std::fs::read(bundles.verify(&bundle).unwrap()).unwrap(), b"abc");
        bundles.remove(&bundle.blake3.short()).unwrap();
        assert!(bundles.list().unwrap().is_empty() && !bundles.path(&bundle).exists());
        assert_eq!(bundles.remove("nothing").unwrap_err().code(), "firmware.bundle");
        assert_eq!(bundles.verify(&bundle).unwrap_err().code(), "firmware.missing");
    }

    #[test]
    fn what_changed_or_is_not_what_the_vendor_says_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let bundles = Bundles::new(dir.path().join("firmware"));
        let file = dir.path().join("bmc.bin");
        std::fs::write(&file, b"abc").unwrap();
        let wrong = About { sha256: Some(Digest::of(b"other")), ..about("1") };
        assert_eq!(bundles.add(&file, wrong).unwrap_err().code(), "firmware.digest");
        let left: Vec<_> =
            std::fs::read_dir(dir.path().join("firmware")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, [".lock"]);
        let bundle = bundles.add(&file, about("1")).unwrap();
        std::fs::write(bundles.path(&bundle), b"abd").unwrap();
        assert_eq!(bundles.verify(&bundle).unwrap_err().code(), "firmware.digest");
        std::fs::write(&file, b"").unwrap();
        assert_eq!(bundles.add(&file, about("1")).unwrap_err().code(), "firmware.file");
    }

    #[test]
    fn an_index_cannot_lead_out_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let bundles = Bundles::new(dir.path().into());
        let file = dir.path().join("x.bin");
        std::fs::write(&file, b"abc").unwrap();
        bundles.add(&file, about("1")).unwrap();
        let index = dir.path().join(INDEX);
        let text = std::fs::read_to_string(&index).unwrap().replace("x.bin", "../../etc/shadow");
        std::fs::write(&index, text).unwrap();
        assert_eq!(bundles.list().unwrap_err().code(), "firmware.index");
    }
}
