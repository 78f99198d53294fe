//! Which disk of a machine becomes what. Asked when a role is ordered, before the first byte is written, and on the installed
//! host; kernel names differ between these systems, so nothing here depends on them.

use serde::{Deserialize, Serialize};

use super::storage::{Bytes, Kind, Pick, Raid, Storage};
use crate::error::{Error, Result};
use crate::machine::Disk;

/// Disks of one array whose sizes differ by more than this share of the smallest are of different models, and the larger
/// ones are wasted.
const SAME_SIZE: u64 = 20;

/// The disks for everything that gets any.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Assigned {
    pub pools: Vec<PoolDisks>,
    pub separate: Vec<SeparateDisks>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct PoolDisks {
    pub name: String,
    pub disks: Vec<Disk>,
    pub cache: Vec<Disk>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SeparateDisks {
    pub name: String,
    pub disks: Vec<Disk>,
}

/// What tells a disk from all others on every system that looks at it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identity {
    pub size_bytes: u64,
    pub serial: Option<String>,
    pub wwn: Option<String>,
}

impl Identity {
    pub fn of(disk: &Disk) -> Self {
        let serial = disk.serial.as_ref().map(|s| s.as_str().to_owned());
        Self { size_bytes: disk.size_bytes, serial, wwn: disk.wwn.clone() }
    }
}

impl Assigned {
    pub fn disks(&self) -> impl Iterator<Item = &Disk> {
        let pools = self.pools.iter().flat_map(|p| p.disks.iter().chain(&p.cache));
        pools.chain(self.separate.iter().flat_map(|s| &s.disks))
    }
}

/// `system`: the disk with the image on it, which nothing else gets.
pub fn assign(storage: &Storage, disks: &[Disk], system: &Disk) -> Result<Assigned> {
    if storage.is_empty() {
        return Ok(Assigned::default());
    }
    let system = (Identity::of(system), &system.name);
    let usable = |d: &&Disk| !d.removable && !d.read_only && d.size_bytes > 0 && d.transport != "usb";
    let mut free: Vec<&Disk> = disks.iter().filter(usable).filter(|d| (Identity::of(d), &d.name) != system).collect();
    // Two that nothing tells apart are in the order of their names; which is which does not matter then.
    free.sort_by_cached_key(|d| (Identity::of(d), d.name.clone()));
    let all = free.clone();
    let mut assigned = Assigned::default();
    for pool in &storage.pool {
        let what = format!("pool {}", pool.name);
        let taken = take(&what, &pool.disks, pool.raid, &mut free, &all)?;
        if taken.is_empty() {
            continue;
        }
        let cache = match &pool.cache {
            Some(cache) => {
                take(&format!("the cache of pool {}", pool.name), &cache.disks, cache.raid, &mut free, &all)?
            }
            None => Vec::new(),
        };
        assigned.pools.push(PoolDisks { name: pool.name.clone(), disks: taken, cache });
    }
    for separate in &storage.separate {
        let disks = take(&separate.name, &separate.disks, None, &mut free, &all)?;
        if !disks.is_empty() {
            assigned.separate.push(SeparateDisks { name: separate.name.clone(), disks });
        }
    }
    for disk in assigned.disks() {
        let twins = all.iter().filter(|d| Identity::of(d) == Identity::of(disk)).count();
        if twins > 1 && disk.serial.is_none() && disk.wwn.is_none() {
            let what = format!("{} has neither serial number nor WWN, and {twins} disks look the same", disk.name);
            return Err(Error::conflict("storage.identity", what)
                .hint("such a disk cannot be found again after a restart: take it out, or leave it out by its size"));
        }
    }
    Ok(assigned)
}

fn take(what: &str, pick: &Pick, raid: Option<Raid>, free: &mut Vec<&Disk>, all: &[&Disk]) -> Result<Vec<Disk>> {
    let fitting: Vec<&Disk> = free.iter().copied().filter(|d| fits(pick, d)).collect();
    let needed = usize::from(pick.needed());
    let hint = "order another role, change the site's template of this one, or fit disks";
    if fitting.len() < needed {
        let seen: Vec<String> = all.iter().map(|d| word(d)).collect();
        let seen = if seen.is_empty() { "none besides the one with the system".into() } else { seen.join(", ") };
        let sentence = format!("{what} needs {}, and {} there: {seen}", wanted(pick), are(fitting.len()));
        return Err(Error::conflict("storage.disks", sentence).hint(hint));
    }
    let count = pick.count.map_or(fitting.len(), usize::from);
    let taken: Vec<Disk> = fitting.into_iter().take(count).cloned().collect();
    if raid.is_some() && taken.len() == 1 {
        let sentence = format!("{what} is a RAID, and only one disk is there for it: {}", word(&taken[0]));
        return Err(Error::conflict("storage.disks", sentence).hint(hint));
    }
    if let (Some(raid), Some(first), Some(last)) = (raid, taken.first(), taken.last())
        && last.size_bytes - first.size_bytes > first.size_bytes / SAME_SIZE
    {
        let sentence = format!(
            "{what} is a RAID {} of disks of different sizes: {} and {}",
            raid.level(),
            word(first),
            word(last)
        );
        return Err(Error::conflict("storage.sizes", sentence)
            .hint("bound the size in the role's template (smallest, largest), or exchange the disk"));
    }
    free.retain(|d| !taken.iter().any(|t| t == *d));
    Ok(taken)
}

fn fits(pick: &Pick, disk: &Disk) -> bool {
    let kind = match pick.kind {
        Kind::Any => true,
        Kind::Ssd => !disk.rotational,
        Kind::Nvme => disk.transport == "nvme",
        Kind::Hdd => disk.rotational,
    };
    let large = pick.smallest.is_none_or(|Bytes(least)| disk.size_bytes >= least);
    kind && large && pick.largest.is_none_or(|Bytes(most)| disk.size_bytes <= most)
}

fn wanted(pick: &Pick) -> String {
    let exactly = if pick.count.is_some() { "" } else { "at least " };
    let kind = match pick.kind {
        Kind::Any => "",
        Kind::Ssd => " without moving parts",
        Kind::Nvme => " on NVMe",
        Kind::Hdd => " that rotate",
    };
    let s = if pick.needed() == 1 { "" } else { "s" };
    let from = pick.smallest.map_or(String::new(), |b| format!(" from {b}"));
    let to = pick.largest.map_or(String::new(), |b| format!(" up to {b}"));
    format!("{exactly}{} disk{s}{kind}{from}{to}", pick.needed())
}

fn are(count: usize) -> String {
    match count {
        0 => "none is".into(),
        1 => "only one is".into(),
        n => format!("only {n} are"),
    }
}

fn word(disk: &Disk) -> String {
    let kind = match (disk.transport.as_str(), disk.rotational) {
        ("nvme", _) => "NVMe",
        (_, true) => "rotating",
        _ => "SSD",
    };
    format!("{} ({} GB, {kind})", disk.name, disk.size_bytes / 1_000_000_000)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::machine::Serial;

    pub fn disk(name: &str, gib: u64, rotational: bool) -> Disk {
        Disk {
            name: name.into(),
            serial: Serial::parse(&format!("SN-{name}")),
            size_bytes: gib << 30,
            rotational,
            transport: if name.starts_with("nvme") { "nvme" } else { "sata" }.into(),
            ..Disk::default()
        }
    }

    pub fn storage(text: &str) -> Storage {
        let storage: Storage = toml::from_str(text).unwrap();
        storage.check().unwrap();
        storage
    }

    const CACHED: &str = r#"
        pool = [{ name = "data", disks = { kind = "hdd", least = 2 }, raid = "10",
                  cache = { volume = "guests", raid = "1", mode = "writeback", disks = { kind = "nvme", count = 2 } } }]
        volume = [{ name = "guests", pool = "data", size = "rest", file-system = "xfs", mount = "/srv/guests" }]
        separate = [{ name = "spool", disks = { kind = "ssd", least = 0 }, file-system = "ext4", mount = "/srv/spool" }]
    "#;

    fn names(disks: &[Disk]) -> Vec<&str> {
        disks.iter().map(|d| d.name.as_str()).collect()
    }

    #[test]
    fn each_disk_once_and_never_the_one_with_the_system() {
        let mut disks = vec![
            disk("sda", 100, false),
            disk("sdd", 4000, true),
            disk("sdc", 4000, true),
            disk("sdb", 100, false),
            disk("nvme0n1", 800, false),
            disk("nvme1n1", 800, false),
        ];
        disks.push(Disk { removable: true, ..disk("sdz", 4000, true) });
        let assigned = assign(&storage(CACHED), &disks, &disks[0]).unwrap();
        assert_eq!(names(&assigned.pools[0].disks), ["sdc", "sdd"]);
        assert_eq!(names(&assigned.pools[0].cache), ["nvme0n1", "nvme1n1"]);
        assert_eq!(names(&assigned.separate[0].disks), ["sdb"]);
        assert_eq!(assign(&Storage::default(), &disks, &disks[0]).unwrap(), Assigned::default());
    }

    #[test]
    fn other_kernel_names_change_nothing() {
        let named = |names: [&str; 4]| -> Vec<Disk> {
            let rename = |(name, old): (&str, &str)| Disk { name: name.into(), ..disk(old, 4000, true) };
            names.into_iter().zip(["sda", "sdb", "sdc", "sdd"]).map(rename).collect()
        };
        let two = storage(
            r#"pool = [{ name = "data", disks = { count = 2 }, raid = "1" }]
               volume = [{ name = "all", pool = "data", size = "100%" }]"#,
        );
        let (one, other) = (named(["sda", "sdb", "sdc", "sdd"]), named(["vdd", "vdc", "vdb", "vda"]));
        let serials = |disks: &[Disk]| {
            let assigned = assign(&two, disks, &disks[0]).unwrap();
            assigned.disks().map(|d| d.serial.clone()).collect::<Vec<_>>()
        };
        assert_eq!(serials(&one), serials(&other));
    }

    #[test]
    fn too_few_disks_are_told_with_those_that_are_there() {
        let disks = [disk("sda", 100, false), disk("sdb", 4000, true), disk("nvme0n1", 800, false)];
        let error = assign(&storage(CACHED), &disks, &disks[0]).unwrap_err();
        assert_eq!(error.code(), "storage.disks");
        assert_eq!(
            error.message(),
            "pool data needs at least 2 disks that rotate, and only one is there: nvme0n1 (858 GB, NVMe), sdb (4294 GB, rotating)"
        );
        let alone = assign(&storage(CACHED), &disks[..1], &disks[0]).unwrap_err();
        assert!(alone.message().contains("none is there: none besides"), "{alone}");
    }

    #[test]
    fn arrays_of_one_disk_and_of_different_disks_are_refused() {
        let mirror = storage(
            r#"pool = [{ name = "data", disks = { kind = "hdd", least = 0 }, raid = "1" }]
               volume = [{ name = "all", pool = "data", size = "100%" }]"#,
        );
        let disks = [disk("sda", 100, false), disk("sdb", 4000, true), disk("sdc", 3000, true)];
        assert_eq!(assign(&mirror, &disks, &disks[0]).unwrap_err().code(), "storage.sizes");
        assert_eq!(assign(&mirror, &disks[..2], &disks[0]).unwrap_err().code(), "storage.disks");
        assert_eq!(assign(&mirror, &disks[..1], &disks[0]).unwrap(), Assigned::default());
    }

    #[test]
    fn disks_that_nothing_tells_apart_are_refused() {
        let each = storage(r#"separate = [{ name = "d", disks = {}, file-system = "xfs", mount = "/srv/d" }]"#);
        let bare = |name: &str| Disk { serial: None, ..disk(name, 10, false) };
        let disks = [disk("sda", 100, false), bare("sdb"), bare("sdc")];
        assert_eq!(assign(&each, &disks, &disks[0]).unwrap_err().code(), "storage.identity");
        assert_eq!(assign(&each, &disks[..2], &disks[0]).unwrap().separate[0].disks.len(), 1);
    }
}
