//! Channels: names that point to a version, such as `kvm@stable`, with the whole of their history.
//!
//! The file `channels.json` beside the images holds, for each channel, what was done to it, the oldest first. What a
//! channel points to follows from that: a promotion puts a version on top, a roll-back takes it off again. The file is
//! replaced in one step and is on the disk before that, so that a crash at any moment leaves the old or the new one;
//! whoever changes it holds `channels.lock`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::catalogue::{Catalogue, Entry};
use super::manifest::is_name;
use crate::durable;
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::Digest;

pub const FILE: &str = "channels.json";
const VERSION: u32 = 1;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Channels {
    version: u32,
    /// `kvm@stable` and what was done to it.
    channels: BTreeMap<String, Vec<Change>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    pub what: What,
    /// The image that the channel points to since: `kvm-20261121-3f2a9c01`.
    pub image: String,
    pub manifest: Digest,
    /// Milliseconds since 1970.
    pub at: i64,
    pub by: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Promoted,
    RolledBack,
}

impl Channels {
    /// None promoted yet is not an error; a file that cannot be understood is.
    pub fn load(images: &Path) -> Result<Self> {
        let path = images.join(FILE);
        let text = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self { version: VERSION, ..Self::default() });
            }
            text => text.or_fail(Kind::Config, "image.channels", || format!("cannot read {}", path.display()))?,
        };
        let wrong = || format!("{} is not a list of channels", path.display());
        let found: Self = serde_json::from_slice(&text).or_fail(Kind::Config, "image.channels", wrong)?;
        match found.version {
            VERSION => Ok(found),
            other => Err(Error::config("image.channels", format!("{} has format {other}", path.display()))
                .hint("use the newer release of rackline")),
        }
    }

    /// Channel and what it points to.
    pub fn current(&self) -> impl Iterator<Item = (&str, &Change)> {
        self.channels.iter().filter_map(|(name, changes)| Some((name.as_str(), *stack(changes).last()?)))
    }

    /// What `kvm@stable` points to.
    pub fn get(&self, name: &str) -> Option<&Change> {
        self.channels.get(name).and_then(|changes| stack(changes).pop())
    }

    /// What a roll-back would bring.
    pub fn before(&self, name: &str) -> Option<&Change> {
        let mut stack = self.channels.get(name).map(|changes| stack(changes))?;
        stack.pop();
        stack.pop()
    }

    pub fn history(&self, name: &str) -> &[Change] {
        self.channels.get(name).map_or(&[], Vec::as_slice)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.channels.keys().map(String::as_str)
    }

    fn push(&mut self, name: &str, change: Change) {
        self.channels.entry(name.to_owned()).or_default().push(change);
    }
}

/// The promotions that were not rolled back, the current one last.
fn stack(changes: &[Change]) -> Vec<&Change> {
    let mut stack: Vec<&Change> = Vec::new();
    for change in changes {
        match change.what {
            What::Promoted => stack.push(change),
            What::RolledBack => drop(stack.pop()),
        }
    }
    stack
}

/// Lets a channel point to a version. `false`: it did already.
pub fn promote(images: &Path, entry: &Entry, channel: &str, by: &str) -> Result<bool> {
    if !is_name(channel) {
        return Err(Error::input("image.channel", format!("{channel:?} is not a name for a channel"))
            .hint("letters, digits, and - . _ + behind the first one: stable, testing"));
    }
    let name = format!("{}@{channel}", entry.manifest.name);
    change(images, |channels| {
        if channels.get(&name).is_some_and(|now| now.manifest == entry.digest) {
            return Ok(false);
        }
        let change = Change {
            what: What::Promoted,
            image: entry.name(),
            manifest: entry.digest,
            at: jiff::Timestamp::now().as_millisecond(),
            by: by.to_owned(),
        };
        channels.push(&name, change);
        Ok(true)
    })
}

/// Lets `kvm@stable` point to what it did before its last promotion; returns that version.
pub fn roll_back(images: &Path, catalogue: &Catalogue, name: &str, by: &str) -> Result<Change> {
    change(images, |channels| {
        if channels.get(name).is_none() {
            return Err(unknown(channels, name));
        }
        let before = channels.before(name).cloned().ok_or_else(|| {
            Error::conflict("image.channel", format!("{name} has pointed to nothing before"))
                .hint("promote the version that it is to have: `rackline image promote NAME-RELEASE --channel CHANNEL`")
        })?;
        if catalogue.by_digest(before.manifest).is_none() {
            let what = format!("{name} pointed to {} before, which is not here any more", before.image);
            return Err(Error::not_found("image.channel", what)
                .hint("promote another version: `rackline image promote NAME-RELEASE --channel CHANNEL`"));
        }
        let at = jiff::Timestamp::now().as_millisecond();
        channels.push(name, Change { what: What::RolledBack, at, by: by.to_owned(), ..before.clone() });
        Ok(before)
    })
}

pub fn unknown(channels: &Channels, name: &str) -> Error {
    let names: Vec<&str> = channels.names().collect();
    Error::not_found("image.channel", format!("there is no channel {name:?}")).hint(match names.is_empty() {
        true => "make it: `rackline image promote NAME-RELEASE --channel CHANNEL`".to_owned(),
        false => format!("there are {}", names.join(", ")),
    })
}

/// One change at a time.
fn change<T>(images: &Path, work: impl FnOnce(&mut Channels) -> Result<T>) -> Result<T> {
    let failed = || format!("cannot change the channels in {}", images.display());
    let lock = File::create(images.join("channels.lock")).or_fail(Kind::Config, "image.channels", failed)?;
    lock.lock().or_fail(Kind::Config, "image.channels", failed)?;
    let before = Channels::load(images)?;
    let mut channels = before.clone();
    let result = work(&mut channels)?;
    if channels != before {
        let failed = |e| super::disk_full(e, "writing the channels");
        let text = serde_json::to_vec_pretty(&channels).map_err(|e| failed(e.into()))?;
        durable::replace(&images.join(FILE), &text).map_err(failed)?;
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::catalogue::tests::publish;
    use crate::image::sign::SigningKey;

    #[test]
    fn back_and_back_again() {
        let dir = tempfile::tempdir().unwrap();
        let key = SigningKey::generate().unwrap();
        for release in ["20261119-a", "20261120-bb", "20261121-ccc"] {
            publish(dir.path(), "kvm", release, &key);
        }
        let open = || Catalogue::open(dir.path(), &[key.public()]).unwrap();
        let stable = || open().resolve("kvm@stable").map(Entry::name);
        assert_eq!(stable().unwrap_err().code(), "image.channel");
        for release in ["20261119-a", "20261120-bb", "20261121-ccc"] {
            let catalogue = open();
            let entry = catalogue.resolve(&format!("kvm-{release}")).unwrap();
            assert!(promote(dir.path(), entry, "stable", "me").unwrap());
            assert!(!promote(dir.path(), entry, "stable", "me").unwrap(), "it is there already");
            assert_eq!(stable().unwrap(), entry.name());
        }
        for expected in ["kvm-20261120-bb", "kvm-20261119-a"] {
            assert_eq!(roll_back(dir.path(), &open(), "kvm@stable", "you").unwrap().image, expected);
            assert_eq!(stable().unwrap(), expected);
        }
        assert_eq!(roll_back(dir.path(), &open(), "kvm@stable", "you").unwrap_err().code(), "image.channel");
        assert_eq!(roll_back(dir.path(), &open(), "kvm@edge", "you").unwrap_err().code(), "image.channel");
        let channels = Channels::load(dir.path()).unwrap();
        let history: Vec<_> = channels.history("kvm@stable").iter().map(|c| (c.what, c.by.as_str())).collect();
        assert_eq!(history.len(), 5);
        assert_eq!(history[4], (What::RolledBack, "you"));
        // Forward again after going back.
        let catalogue = open();
        promote(dir.path(), catalogue.resolve("kvm").unwrap(), "stable", "me").unwrap();
        assert_eq!(Channels::load(dir.path()).unwrap().before("kvm@stable").unwrap().image, "kvm-20261119-a");
        assert!(promote(dir.path(), catalogue.resolve("kvm").unwrap(), "a b", "me").is_err());
    }

    #[test]
    fn a_half_written_file_is_never_seen() {
        let dir = tempfile::tempdir().unwrap();
        let key = SigningKey::generate().unwrap();
        publish(dir.path(), "kvm", "1", &key);
        let catalogue = Catalogue::open(dir.path(), &[key.public()]).unwrap();
        promote(dir.path(), &catalogue.images[0], "stable", "me").unwrap();
        // What a crash within the writing leaves.
        fs::write(dir.path().join("channels.json.new"), "{\"vers").unwrap();
        assert!(Channels::load(dir.path()).unwrap().get("kvm@stable").is_some());
        promote(dir.path(), &catalogue.images[0], "edge", "me").unwrap();
        assert_eq!(Channels::load(dir.path()).unwrap().names().count(), 2);
        // What somebody edited by hand is not taken for "no channels".
        fs::write(dir.path().join(FILE), "{}").unwrap();
        assert_eq!(Channels::load(dir.path()).unwrap_err().code(), "image.channels");
        let catalogue = Catalogue::open(dir.path(), &[key.public()]).unwrap();
        assert_eq!(catalogue.unusable.len(), 1);
        assert!(promote(dir.path(), &catalogue.images[0], "stable", "me").is_err());
    }
}
