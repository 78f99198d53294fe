//! Which versions may go: those that nothing and nobody needs. Every version that stays does so for a named reason.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::catalogue::{Catalogue, Entry};
use super::channels::Channels;
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::Digest;

/// Who uses an image, in words, by its digest.
pub type Users = BTreeMap<Digest, Vec<String>>;

#[derive(Debug)]
pub struct Verdict<'a> {
    pub entry: &'a Entry,
    /// None: it may go.
    pub reasons: Vec<String>,
}

/// `keep`: the newest versions of each name that stay in any case.
pub fn judge<'a>(catalogue: &'a Catalogue, channels: &Channels, users: &Users, keep: usize) -> Vec<Verdict<'a>> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let verdict = |entry: &'a Entry| {
        let mut reasons = needed(entry, channels, users);
        // The newest of a name come first.
        let number = seen.entry(&entry.manifest.name).or_default();
        *number += 1;
        if *number <= keep {
            reasons.push(match keep {
                1 => "the newest version".to_owned(),
                _ => format!("one of the newest {keep} versions"),
            });
        }
        Verdict { entry, reasons }
    };
    catalogue.images.iter().map(verdict).collect()
}

/// Why a version must not be taken away, whatever its age.
pub fn needed(entry: &Entry, channels: &Channels, users: &Users) -> Vec<String> {
    let mut reasons = Vec::new();
    for (name, change) in channels.current() {
        if change.manifest == entry.digest {
            reasons.push(format!("{name} points to it"));
        } else if channels.before(name).is_some_and(|c| c.manifest == entry.digest) {
            reasons.push(format!("a roll-back of {name} would bring it back"));
        }
    }
    if let Some(users) = users.get(&entry.digest) {
        let more = users.len().saturating_sub(3);
        let named = users.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
        reasons.push(if more > 0 { format!("{named}, and {more} more") } else { named });
    }
    reasons
}

/// A version that is out of the catalogue and not yet gone; it is brought back when this is dropped.
pub struct Aside {
    hidden: PathBuf,
    from: PathBuf,
    settled: bool,
}

/// Folders that begin so are no images: [`Catalogue::open`] passes over them.
const HIDDEN: &str = ".removing-";

/// Whoever removes holds this. What one before left that was killed is back in the catalogue first.
pub fn begin(images: &Path) -> Result<File> {
    let failed = || format!("cannot change {}", images.display());
    let lock = File::create(images.join(".lock")).or_fail(Kind::Config, "image.remove", failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Error::conflict("image.busy", "images are being removed by another command at the moment")
                .hint("try again when it is done"));
        }
        Err(TryLockError::Error(e)) => return Err(e).or_fail(Kind::Config, "image.remove", failed),
    }
    for entry in fs::read_dir(images).or_fail(Kind::Config, "image.remove", failed)?.flatten() {
        if let Some(name) = entry.file_name().to_str().and_then(|name| name.strip_prefix(HIDDEN)) {
            // Where it was built again meanwhile, the newer one is the image.
            let from = images.join(name);
            drop(Aside { hidden: entry.path(), settled: from.exists(), from });
        }
    }
    Ok(lock)
}

/// Takes a version out of the catalogue in one step.
pub fn set_aside(images: &Path, entry: &Entry) -> Result<Aside> {
    let from = images.join(entry.name());
    if entry.signed.parent() != Some(&from) {
        let what = format!("{} does not lie in a folder of its name", entry.name());
        return Err(Error::conflict("image.remove", what).hint("look into the folder of images and remove it by hand"));
    }
    let hidden = images.join(format!("{HIDDEN}{}", entry.name()));
    fs::rename(&from, &hidden).or_fail(Kind::Config, "image.remove", || format!("cannot remove {}", from.display()))?;
    Ok(Aside { hidden, from, settled: false })
}

impl Aside {
    /// For good.
    pub fn remove(mut self) -> Result<()> {
        self.settled = true;
        fs::remove_dir_all(&self.hidden)
            .or_fail(Kind::Config, "image.remove", || format!("cannot remove {}", self.hidden.display()))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if !self.settled
            && let Err(e) = fs::rename(&self.hidden, &self.from)
        {
            tracing::error!(error = %e, folder = %self.hidden.display(), "an image could not be brought back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::catalogue::tests::publish;
    use crate::image::{Cache, channels};

    #[test]
    fn what_is_needed_stays_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let (images, key) = (cache.folder("images").unwrap(), cache.signing_key().unwrap());
        for release in ["20261117-a", "20261118-aa", "20261119-aaa", "20261120-aaaa", "20261121-aaaaa"] {
            publish(&images, "kvm", release, &key);
        }
        publish(&images, "ovs", "20261101-aaaaaa", &key);
        let open = || Catalogue::open(&images, &[key.public()]).unwrap();
        let catalogue = open();
        for release in ["20261118-aa", "20261119-aaa"] {
            channels::promote(&images, catalogue.resolve(&format!("kvm-{release}")).unwrap(), "stable", "me").unwrap();
        }
        let old = catalogue.resolve("kvm-20261117-a").unwrap();
        let users = |names: &[&str]| Users::from([(old.digest, names.iter().map(|n| (*n).to_owned()).collect())]);
        let channels = Channels::load(&images).unwrap();
        let reasons: Vec<_> = judge(&catalogue, &channels, &users(&["a", "b", "c", "d"]), 1)
            .iter()
            .map(|v| (v.entry.manifest.release.clone(), v.reasons.join("; ")))
            .collect();
        let expected = [
            ("20261121-aaaaa", "the newest version"),
            ("20261120-aaaa", ""),
            ("20261119-aaa", "kvm@stable points to it"),
            ("20261118-aa", "a roll-back of kvm@stable would bring it back"),
            ("20261117-a", "a, b, c, and 1 more"),
            ("20261101-aaaaaa", "the newest version"),
        ];
        assert_eq!(reasons, expected.map(|(r, why)| (r.to_owned(), why.to_owned())));

        let entry = catalogue.resolve("kvm-20261120-aaaa").unwrap();
        let there = || open().resolve("kvm-20261120-aaaa").is_ok();
        let lock = begin(&images).unwrap();
        let aside = set_aside(&images, entry).unwrap();
        assert!(!there());
        drop(aside);
        assert!(there());
        // Killed in between: the next one brings it back before it judges.
        std::mem::forget(set_aside(&images, entry).unwrap());
        assert!(!there());
        assert_eq!(begin(&images).unwrap_err().code(), "image.busy");
        drop(lock);
        drop(begin(&images).unwrap());
        assert!(there());
        set_aside(&images, entry).unwrap().remove().unwrap();
        assert!(!there() && !images.join(".removing-kvm-20261120-aaaa").exists());
    }
}
