//! How the disks besides the one with the system are used: which of them, as RAID, LVM and file systems, or each by itself.
//!
//! ```text
//! disks ─ GPT, one partition ─┬─ RAID 1 or 10 ─┬─ LVM ─┬─ volume ─ file system ─ mounted
//!                             └────────────────┘   │   └─ thin pool ─ thin volumes
//!                                                  └ SSD cache before it (dm-cache)
//! disks ─ GPT, one partition ─ file system ─ mounted, each by itself
//! ```
//!
//! The cache is dm-cache through LVM and not bcache: it is put before a volume and taken away again while that is in use and
//! without a new format (`lvconvert --uncache`), what lies on the slow disks is where it would be without it, and the tools
//! are the ones that the volumes need anyway. A bcache device needs its own superblock from the start.
//!
//! What cannot be right is refused here, before any machine is looked at: a thin pool that promises more than it has, a cache
//! that loses data with one SSD, a mount below the system's own folders.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::Error;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Storage {
    /// Whether freed blocks are handed through LVM to the disks as soon as they are freed.
    pub discard: bool,
    /// Disks that are used together, as one volume group each. In this order they take disks.
    pub pool: Vec<Pool>,
    /// Thin pools in a volume group.
    pub thin: Vec<Thin>,
    pub volume: Vec<Volume>,
    /// Disks that are used each by itself; they take what the pools leave.
    pub separate: Vec<Separate>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Pool {
    /// Also the name of the volume group and of the array.
    pub name: String,
    pub disks: Pick,
    #[serde(default)]
    pub raid: Option<Raid>,
    #[serde(default)]
    pub cache: Option<Cache>,
}

/// Which disks are taken. Never the one with the system, never one that can be pulled out like a USB stick.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Pick {
    #[serde(default)]
    pub kind: Kind,
    /// Exactly so many; otherwise all there are.
    #[serde(default)]
    pub count: Option<u16>,
    /// Where all are taken: fewer than this are refused. 0: without any, the pool is left out.
    #[serde(default)]
    pub least: Option<u16>,
    /// Smaller disks are not looked at.
    #[serde(default)]
    pub smallest: Option<Bytes>,
    #[serde(default)]
    pub largest: Option<Bytes>,
}

impl Pick {
    /// Fewer disks than this are refused.
    pub fn needed(&self) -> u16 {
        self.count.or(self.least).unwrap_or(1)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    #[default]
    Any,
    /// Without moving parts, NVMe among them.
    Ssd,
    Nvme,
    /// Rotating.
    Hdd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Raid {
    /// Every disk has everything.
    #[serde(rename = "1")]
    Mirror,
    /// Everything is on two disks.
    #[serde(rename = "10")]
    Striped,
}

impl Raid {
    /// As mdadm writes it.
    pub fn level(self) -> &'static str {
        match self {
            Raid::Mirror => "1",
            Raid::Striped => "10",
        }
    }
}

/// Fast disks before the volumes of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cache {
    pub disks: Pick,
    #[serde(default)]
    pub raid: Option<Raid>,
    #[serde(default)]
    pub mode: CacheMode,
    /// The volume that is cached.
    pub volume: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// What is written is on the slow disks before it is confirmed: a lost SSD loses nothing.
    #[default]
    WriteThrough,
    /// Faster, and what is only in the cache is lost with it.
    WriteBack,
}

impl CacheMode {
    /// As LVM writes it.
    pub fn name(self) -> &'static str {
        match self {
            CacheMode::WriteThrough => "writethrough",
            CacheMode::WriteBack => "writeback",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thin {
    pub name: String,
    pub pool: String,
    pub size: Size,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Volume {
    pub name: String,
    /// The disks that it is on ...
    #[serde(default)]
    pub pool: Option<String>,
    /// ... or the thin pool. One of the two.
    #[serde(default)]
    pub thin: Option<String>,
    pub size: Size,
    /// Without one it is left as a block device.
    #[serde(default)]
    pub file_system: Option<FileSystem>,
    #[serde(default)]
    pub mount: Option<String>,
    #[serde(default)]
    pub options: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Separate {
    pub name: String,
    pub disks: Pick,
    pub file_system: FileSystem,
    /// The disk's number, from 1, is put behind it: `/srv/disk` gives `/srv/disk1`.
    pub mount: String,
    #[serde(default)]
    pub options: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileSystem {
    Xfs,
    Ext4,
}

impl FileSystem {
    pub fn name(self) -> &'static str {
        match self {
            FileSystem::Xfs => "xfs",
            FileSystem::Ext4 => "ext4",
        }
    }
}

/// A number of bytes; as text with a binary unit: `200G`, `512M`, `2T`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

const UNITS: [(&str, u32); 4] = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().find(|(_, shift)| self.0 != 0 && self.0.trailing_zeros() >= *shift);
        match unit {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Bytes {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::input("size", format!("{text:?} is not a size")).hint("write it as 512M, 200G or 2T");
        let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let unit = unit.strip_suffix("iB").unwrap_or(unit);
        let shift = match unit {
            "" => 0,
            unit => UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1,
        };
        number.checked_mul(1 << shift).map(Self).ok_or_else(wrong)
    }
}

/// How large a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    Bytes(Bytes),
    /// Of the pool that it is in.
    Percent(u8),
    /// What the others leave; several of them share it evenly.
    Rest,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Size::Bytes(bytes) => bytes.fmt(f),
            Size::Percent(percent) => write!(f, "{percent}%"),
            Size::Rest => f.write_str("rest"),
        }
    }
}

impl FromStr for Size {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::input("size", format!("{text:?} is not a size")).hint("write it as 200G, 50% or rest");
        if text == "rest" {
            return Ok(Self::Rest);
        }
        if let Some(percent) = text.strip_suffix('%') {
            let percent = percent.parse().ok().filter(|p| (1..=100).contains(p));
            return percent.map(Self::Percent).ok_or_else(wrong);
        }
        text.parse().ok().filter(|b| *b > Bytes(0)).map(Self::Bytes).ok_or_else(wrong)
    }
}

macro_rules! as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                text.parse().map_err(|e: Error| match e.next_step() {
                    Some(hint) => de::Error::custom(format!("{}: {hint}", e.message())),
                    None => de::Error::custom(e.message()),
                })
            }
        }
    };
}

as_text!(Bytes);
as_text!(Size);

/// What is wrong, at which key, and what would be allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    pub key: String,
    pub what: String,
    pub allowed: String,
}

fn wrong(key: impl Into<String>, what: impl Into<String>, allowed: impl Into<String>) -> Wrong {
    Wrong { key: key.into(), what: what.into(), allowed: allowed.into() }
}

/// Where the system itself lives; a data disk in the place of one of these is a host that does not start.
const SYSTEM: &[&str] = &[
    "/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/usr", "/var",
    "/var/lib",
];
/// Below these nothing is mounted at all.
const SYSTEM_TREES: &[&str] = &["/boot", "/dev", "/etc", "/proc", "/run", "/sys", "/usr"];
/// The name of an array has at most 32 bytes (md superblock 1.x), and `-` is doubled in names of device mapper.
const NAME_MAX: usize = 16;

impl Storage {
    /// Only the disk with the system is used.
    pub fn is_empty(&self) -> bool {
        self.pool.is_empty() && self.separate.is_empty()
    }

    /// Whatever can be known without a machine.
    pub fn check(&self) -> Result<(), Wrong> {
        let mut names = BTreeSet::new();
        let pools = self.pool.iter().map(|p| ("pool", &p.name));
        let thin = self.thin.iter().map(|t| ("thin", &t.name));
        let volumes = self.volume.iter().map(|v| ("volume", &v.name));
        let separate = self.separate.iter().map(|s| ("separate", &s.name));
        for (key, name) in pools.chain(thin).chain(volumes).chain(separate) {
            let letters = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            if name.is_empty()
                || name.len() > NAME_MAX
                || !letters
                || !name.starts_with(|c: char| c.is_ascii_lowercase())
            {
                let allowed = format!("a lower case letter, then letters, digits and _, at most {NAME_MAX}");
                return Err(wrong(format!("storage.{key}.name"), format!("{name:?} is not a name"), allowed));
            }
            if !names.insert(name) {
                let what = format!("{name} is there twice");
                return Err(wrong(format!("storage.{key}.name"), what, "each name once in all of storage"));
            }
        }
        self.volume.iter().try_for_each(|volume| self.check_volume(volume))?;
        self.pool.iter().try_for_each(|pool| self.check_pool(pool))?;
        self.separate.iter().try_for_each(|s| check_pick(&format!("storage.separate {}", s.name), &s.disks, None))?;
        self.thin.iter().try_for_each(|thin| self.check_thin(thin))?;
        self.check_mounts()
    }

    fn check_pool(&self, pool: &Pool) -> Result<(), Wrong> {
        let key = format!("storage.pool {}", pool.name);
        check_pick(&key, &pool.disks, pool.raid)?;
        let inside: Vec<Size> = self.sizes_in(&pool.name).collect();
        if inside.is_empty() {
            return Err(wrong(key, "has no volume", "at least one [[storage.volume]] with this pool"));
        }
        let percent: u32 = inside.iter().map(|s| if let Size::Percent(p) = s { u32::from(*p) } else { 0 }).sum();
        if percent > 100 {
            return Err(wrong(key, format!("its volumes take {percent}% of it"), "at most 100%"));
        }
        let Some(cache) = &pool.cache else { return Ok(()) };
        let key = format!("{key}.cache");
        check_pick(&key, &cache.disks, cache.raid)?;
        if cache.mode == CacheMode::WriteBack && cache.raid.is_none() {
            let allowed = "raid = \"1\" beside it, or mode = \"writethrough\"";
            return Err(wrong(format!("{key}.mode"), "writeback on one SSD loses data with that SSD", allowed));
        }
        let cached = self.volume.iter().any(|v| v.name == cache.volume && v.pool.as_ref() == Some(&pool.name));
        match cached || self.thin.iter().any(|t| t.name == cache.volume && t.pool == pool.name) {
            true => Ok(()),
            false => {
                let what = format!("there is no volume {:?} in this pool", cache.volume);
                Err(wrong(format!("{key}.volume"), what, "the name of a volume or thin pool of the same pool"))
            }
        }
    }

    /// What lies directly in a volume group.
    pub fn sizes_in<'a>(&'a self, pool: &'a str) -> impl Iterator<Item = Size> + 'a {
        let thin = self.thin.iter().filter(move |t| t.pool == pool).map(|t| t.size);
        thin.chain(self.volume.iter().filter(move |v| v.pool.as_deref() == Some(pool)).map(|v| v.size))
    }

    /// A thin pool that promises more than it has stops all its file systems at once when it is full.
    fn check_thin(&self, thin: &Thin) -> Result<(), Wrong> {
        let key = format!("storage.thin {}", thin.name);
        self.known_pool(&key, &thin.pool)?;
        let volumes: Vec<&Volume> = self.volume.iter().filter(|v| v.thin.as_ref() == Some(&thin.name)).collect();
        let over = |promised: String| {
            let what = format!("its volumes are promised {promised} of {}", thin.size);
            wrong(&key, what, "the sizes of all volumes together at most that of the thin pool")
        };
        let percent: Option<u32> =
            volumes.iter().map(|v| if let Size::Percent(p) = v.size { Some(u32::from(p)) } else { None }).sum();
        if let Some(percent) = percent {
            return if percent > 100 { Err(over(format!("{percent}%"))) } else { Ok(()) };
        }
        let bytes: Option<Vec<u64>> =
            volumes.iter().map(|v| if let Size::Bytes(b) = v.size { Some(b.0) } else { None }).collect();
        match (bytes, thin.size) {
            (Some(bytes), Size::Bytes(size)) => {
                let sum = bytes.iter().try_fold(0u64, |sum, b| sum.checked_add(*b)).unwrap_or(u64::MAX);
                if sum > size.0 { Err(over(Bytes(sum).to_string())) } else { Ok(()) }
            }
            _ => Err(wrong(
                key,
                "nobody can say whether its volumes fit in it",
                "all its volumes in percent, or all of them and the thin pool in bytes",
            )),
        }
    }

    fn known_pool(&self, key: &str, pool: &str) -> Result<(), Wrong> {
        if self.pool.iter().any(|p| p.name == pool) {
            return Ok(());
        }
        let known: Vec<&str> = self.pool.iter().map(|p| p.name.as_str()).collect();
        let allowed = if known.is_empty() { "a [[storage.pool]] of this name".into() } else { known.join(", ") };
        Err(wrong(format!("{key}.pool"), format!("there is no pool {pool:?}"), allowed))
    }

    fn check_volume(&self, volume: &Volume) -> Result<(), Wrong> {
        let key = format!("storage.volume {}", volume.name);
        match (&volume.pool, &volume.thin) {
            (Some(pool), None) => self.known_pool(&key, pool)?,
            (None, Some(thin)) if self.thin.iter().any(|t| t.name == *thin) => {}
            (None, Some(thin)) => {
                let what = format!("there is no thin pool {thin:?}");
                return Err(wrong(format!("{key}.thin"), what, "the name of a [[storage.thin]]"));
            }
            _ => return Err(wrong(key, "lies in both or neither", "either pool or thin")),
        }
        match (volume.file_system, &volume.mount) {
            (Some(_), Some(_)) => Ok(()),
            (None, None) if volume.options.is_empty() => Ok(()),
            _ => Err(wrong(
                key,
                "is half a file system",
                "file-system and mount together, or neither of them and no options",
            )),
        }
    }

    fn check_mounts(&self) -> Result<(), Wrong> {
        let volumes = self.volume.iter().filter_map(|v| Some(("volume", &v.name, v.mount.as_ref()?, &v.options)));
        let separate = self.separate.iter().map(|s| ("separate", &s.name, &s.mount, &s.options));
        let mut seen = BTreeSet::new();
        for (kind, name, mount, options) in volumes.chain(separate) {
            let key = format!("storage.{kind} {name}");
            let plain = |part: &str| {
                !part.is_empty()
                    && !part.starts_with('.')
                    && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            };
            let path = mount.strip_prefix('/').is_some_and(|rest| rest.split('/').all(plain));
            let below = |tree: &&str| mount.strip_prefix(*tree).is_some_and(|rest| rest.starts_with('/'));
            if !path || SYSTEM.contains(&mount.as_str()) || SYSTEM_TREES.iter().any(below) {
                let allowed = "an absolute path outside of the system's own folders, as /srv/data or /var/lib/docker";
                return Err(wrong(format!("{key}.mount"), format!("nothing is mounted on {mount:?}"), allowed));
            }
            if !seen.insert(mount) {
                return Err(wrong(format!("{key}.mount"), format!("{mount} is there twice"), "each mount point once"));
            }
            for option in options {
                if option.is_empty() || !option.bytes().all(|b| b.is_ascii_alphanumeric() || b"=._-".contains(&b)) {
                    let what = format!("{option:?} is not one option");
                    return Err(wrong(format!("{key}.options"), what, "options of mount(8), each by itself"));
                }
                if option == "discard" && !self.discard {
                    let what = "discard hands every freed block to the disk at once, and storage.discard is off";
                    return Err(wrong(
                        format!("{key}.options"),
                        what,
                        "fstrim in a quiet hour, or storage.discard = true",
                    ));
                }
            }
        }
        Ok(())
    }
}

fn check_pick(key: &str, pick: &Pick, raid: Option<Raid>) -> Result<(), Wrong> {
    if pick.count.is_some() && pick.least.is_some() {
        return Err(wrong(format!("{key}.disks"), "has count and least", "one of them"));
    }
    if pick.count == Some(0) {
        return Err(wrong(format!("{key}.disks.count"), "no disk at all", "at least 1"));
    }
    if pick.smallest.zip(pick.largest).is_some_and(|(s, l)| s > l) {
        return Err(wrong(format!("{key}.disks"), "smallest is larger than largest", "smallest at most largest"));
    }
    let fewest = pick.count.or(pick.least.filter(|l| *l > 0));
    match raid {
        Some(raid) if fewest.is_some_and(|n| n < 2) => {
            Err(wrong(format!("{key}.raid"), format!("RAID {} of one disk", raid.level()), "at least 2 disks"))
        }
        Some(Raid::Striped) if pick.count.is_some_and(|n| n % 2 == 1) => {
            let what = format!("RAID 10 of {} disks", pick.needed());
            Err(wrong(format!("{key}.raid"), what, "an even number of disks"))
        }
        _ => Ok(()),
    }
}
