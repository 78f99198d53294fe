//! The packages that an image was built from, by version: with the recipe it decides every byte of the image.
//!
//! As text it is what the manifest keeps under the label [`LIST`] and `rackline image build --snapshot FILE` takes:
//!
//! ```text
//! epoch 1795140670
//! adduser=3.134
//! apt=2.6.2
//! ```
//!
//! The epoch, in Unix seconds, is the newest date that the package lists had: files of the build carry it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use super::tool::Tools;
use crate::error::{Error, Result};
use crate::machine::Digest;

/// Labels of a manifest: BLAKE3 of the snapshot as text, and the text.
pub const DIGEST: &str = "snapshot";
pub const LIST: &str = "snapshot-list";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub epoch: u64,
    /// Version by name.
    pub packages: BTreeMap<String, String>,
}

impl Snapshot {
    /// What dpkg says is installed in a root directory.
    pub fn installed(tools: &Tools, root: &Path) -> Result<BTreeMap<String, String>> {
        let mut query = Command::new("dpkg-query");
        query.arg("--admindir").arg(root.join("var/lib/dpkg")).args(["-W", "-f", "${Package}=${Version}\\n"]);
        let text = tools.output("dpkg", &mut query)?;
        Ok(text.lines().filter_map(package).collect())
    }

    pub fn digest(&self) -> Digest {
        Digest::of(self.to_string().as_bytes())
    }

    /// Preferences of apt that allow no other versions (apt_preferences(5)); above 1000 they may be older, too.
    pub fn preferences(&self) -> String {
        let pin = |(name, version)| format!("Package: {name}\nPin: version {version}\nPin-Priority: 1001\n\n");
        self.packages.iter().map(pin).collect()
    }

    /// Every package that was installed is in the snapshot, in that version.
    pub fn check(&self, installed: &BTreeMap<String, String>) -> Result<()> {
        let other = |(name, found): (&String, &String)| match self.packages.get(name) {
            Some(wanted) if wanted == found => None,
            Some(wanted) => Some(format!("{name}={wanted} (there is {found})")),
            None => Some(format!("{name} (not in the snapshot)")),
        };
        let gone: Vec<String> = installed.iter().filter_map(other).collect();
        if gone.is_empty() {
            return Ok(());
        }
        let message = format!("the mirror does not have what the snapshot asks for: {}", gone.join(", "));
        Err(Error::config("image.snapshot", message)
            .hint("name a mirror that keeps old versions with --mirror, such as one of snapshot.debian.org"))
    }
}

fn package(line: &str) -> Option<(String, String)> {
    let (name, version) = line.split_once('=')?;
    let plain =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.:~".contains(&b));
    (plain(name) && plain(version)).then(|| (name.to_owned(), version.to_owned()))
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "epoch {}", self.epoch)?;
        self.packages.iter().try_for_each(|(name, version)| writeln!(f, "{name}={version}"))
    }
}

impl FromStr for Snapshot {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |line: usize, what: &str| {
            Error::input("image.snapshot", format!("line {line} of the snapshot is not {what}"))
                .hint("`rackline image snapshot NAME` prints that of an image")
        };
        let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
        let epoch = first.strip_prefix("epoch ").and_then(|n| n.trim().parse().ok());
        let epoch = epoch.ok_or_else(|| wrong(1, "`epoch SECONDS`"))?;
        let lines = rest.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let packages = lines.map(|(i, line)| package(line.trim()).ok_or_else(|| wrong(i + 2, "`name=version`")));
        Ok(Self { epoch, packages: packages.collect::<Result<_>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "epoch 1795140670\nadduser=3.134\nbusybox-static=1:1.35.0-4+deb12u1+b1\n";

    #[test]
    fn as_text_and_back() {
        let snapshot: Snapshot = TEXT.parse().unwrap();
        assert_eq!(snapshot.to_string(), TEXT);
        assert_eq!(snapshot.epoch, 1_795_140_670);
        for text in ["", "adduser=3.134\n", "epoch 1\nadduser\n", "epoch 1\na=b c\n", "epoch 1\na=1\nPin: x=1\n"] {
            assert_eq!(text.parse::<Snapshot>().unwrap_err().code(), "image.snapshot", "{text}");
        }
    }

    #[test]
    fn what_the_mirror_no_longer_has_is_named() {
        let snapshot: Snapshot = TEXT.parse().unwrap();
        let mut installed = snapshot.packages.clone();
        snapshot.check(&installed).unwrap();
        installed.insert("adduser".into(), "3.135".into());
        installed.insert("jq".into(), "1.6".into());
        let error = snapshot.check(&installed).unwrap_err();
        assert!(error.message().contains("adduser=3.134 (there is 3.135), jq (not in the snapshot)"), "{error}");
        assert!(snapshot.preferences().contains("Package: adduser\nPin: version 3.134\nPin-Priority: 1001\n\n"));
    }
}
