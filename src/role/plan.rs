//! From what is on the disks to what shall be there, one step at a time: [`next`] looks at all that was seen and says what is
//! to be done next, until nothing is. It is asked after each step and after each power cut, and knows no more then than before.
//!
//! Everything that is made carries an id that follows from the machine, the layout and its name ([`Wanted::id`]). So what is
//! there is known to be of this very layout, or is somebody's data: a disk that is neither blank nor ours is never written.
//! Something of ours that is half there is made again only where the record on the disk with the system says that it was being
//! made ([`Step::name`]); otherwise a disk that was exchanged would be taken for one that was never set up.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::disks::{Assigned, Identity};
use super::storage::{FileSystem, Raid, Size, Storage, Thin, Volume};
use crate::error::{Error, Result};
use crate::machine::{Disk, MachineId};

/// Data of a partition begins here: partition tables and the first signatures lie before it.
pub const ALIGN: u64 = 1 << 20;
/// Metadata of a thin pool: 64 bytes for each chunk of 64 KiB, within what device mapper takes.
const THIN_METADATA: (u64, u64) = (8 << 20, 15 << 30);

/// A layout for one machine.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    pub machine: MachineId,
    pub storage: &'a Storage,
    pub assigned: Assigned,
}

/// What is at the beginning of something that holds data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Zeros where every partition table, array, volume group and file system has its signature.
    Blank,
    /// Something with this id.
    Is(Uuid),
    /// Something else, in words.
    Foreign(String),
}

/// A partition of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// `/dev/sdb1`.
    pub device: String,
    /// The array that its content belongs to, or another content.
    pub content: Content,
    /// The array that the kernel has made of it: `/dev/md127`.
    pub array: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array {
    pub level: String,
    pub members: usize,
    pub missing: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Physical {
    pub group: String,
    pub extents: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logical {
    pub bytes: u64,
    /// As `lvs -o segtype` says: `linear`, `thin-pool`, `thin`, `cache`.
    pub kind: String,
}

/// All that was looked at. Devices by their path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// By kernel name; of an own partition table the id of its one partition.
    pub disks: BTreeMap<String, Content>,
    pub parts: BTreeMap<Uuid, Part>,
    pub arrays: BTreeMap<String, Array>,
    pub physical: BTreeMap<String, Physical>,
    /// Bytes of an extent, by volume group.
    pub groups: BTreeMap<String, u64>,
    /// By volume group and name, parts of others too, without brackets.
    pub logical: BTreeMap<(String, String), Logical>,
    /// File systems on what holds one, by device.
    pub systems: BTreeMap<String, Content>,
    /// What is mounted where: target to the id of the file system.
    pub mounts: BTreeMap<String, Uuid>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Partition { disk: String, id: Uuid, label: String },
    Array { name: String, id: Uuid, raid: Raid, devices: Vec<String> },
    Assemble { name: String, id: Uuid, devices: Vec<String> },
    Group { name: String, devices: Vec<String> },
    Extend { name: String, devices: Vec<String> },
    Volume { group: String, name: String, extents: u64, devices: Vec<String> },
    ThinPool { group: String, name: String, extents: u64, metadata: u64, discard: bool, devices: Vec<String> },
    Thin { group: String, pool: String, name: String, bytes: u64 },
    Cache { group: String, volume: String, with: String, mode: &'static str },
    Format { device: String, system: FileSystem, id: Uuid, label: String },
    Mount { id: Uuid, system: FileSystem, target: String, options: Vec<String> },
}

impl Step {
    /// Under which it is recorded while it is done.
    pub fn name(&self) -> String {
        match self {
            // Names of disks change from start to start.
            Step::Partition { id, .. } => format!("partition {id}"),
            Step::Array { name, .. } => format!("array {name}"),
            Step::Assemble { name, .. } => format!("assemble {name}"),
            Step::Group { name, .. } => format!("group {name}"),
            Step::Extend { name, .. } => format!("extend {name}"),
            Step::Volume { group, name, .. } | Step::ThinPool { group, name, .. } | Step::Thin { group, name, .. } => {
                format!("volume {group}/{name}")
            }
            Step::Cache { group, volume, .. } => format!("cache {group}/{volume}"),
            Step::Format { id, .. } => format!("format {id}"),
            Step::Mount { target, .. } => format!("mount {target}"),
        }
    }

    /// For the console, and for the one who finds that it was not done.
    pub fn sentence(&self) -> String {
        match self {
            Step::Partition { disk, label, .. } => format!("a partition {label} on {disk}"),
            Step::Array { name, raid, devices, .. } => {
                format!("RAID {} {name} of {}", raid.level(), devices.join(", "))
            }
            Step::Assemble { name, .. } => format!("the array {name} running"),
            Step::Group { name, devices } => format!("volume group {name} on {}", devices.join(", ")),
            Step::Extend { name, devices } => format!("{} in volume group {name}", devices.join(", ")),
            Step::Volume { group, name, .. } => format!("volume {group}/{name}"),
            Step::ThinPool { group, name, .. } => format!("thin pool {group}/{name}"),
            Step::Thin { group, name, .. } => format!("thin volume {group}/{name}"),
            Step::Cache { group, volume, mode, .. } => format!("a {mode} cache before {group}/{volume}"),
            Step::Format { device, system, .. } => format!("{} on {device}", system.name()),
            Step::Mount { target, .. } => format!("{target} mounted"),
        }
    }

    /// The program and its arguments; none for what the agent does by itself. `again`: an earlier attempt was interrupted, and
    /// what it left may be overwritten.
    pub fn command(&self, again: bool) -> Option<Vec<String>> {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<String>>();
        let mut command = match self {
            Step::Partition { .. } | Step::Mount { .. } => return None,
            // Known on any host by this name; a write-intent bitmap, so that a restart does not read all disks.
            Step::Array { name, id, raid, devices } => words(&format!(
                "mdadm --create /dev/md/{name} --run --metadata=1.2 --homehost=any --name={name} --uuid={} --bitmap=internal \
                 --level={} --raid-devices={}",
                md_uuid(*id),
                raid.level(),
                devices.len()
            )),
            Step::Assemble { name, id, .. } => {
                words(&format!("mdadm --assemble /dev/md/{name} --run --uuid={}", md_uuid(*id)))
            }
            Step::Group { name, .. } => words(&format!("vgcreate --yes {name}")),
            Step::Extend { name, .. } => words(&format!("vgextend --yes {name}")),
            Step::Volume { group, name, extents, .. } => {
                words(&format!("lvcreate --yes --wipesignatures y --zero y --name {name} --extents {extents} {group}"))
            }
            Step::ThinPool { group, name, extents, metadata, discard, .. } => {
                let discards = if *discard { "passdown" } else { "nopassdown" };
                words(&format!(
                    "lvcreate --yes --type thin-pool --name {name} --extents {extents} --poolmetadatasize {metadata}b \
                     --discards {discards} {group}"
                ))
            }
            Step::Thin { group, pool, name, bytes } => words(&format!(
                "lvcreate --yes --type thin --name {name} --virtualsize {bytes}b --thinpool {pool} {group}"
            )),
            Step::Cache { group, volume, with, mode } => {
                words(&format!("lvconvert --yes --type cache --cachevol {with} --cachemode {mode} {group}/{volume}"))
            }
            // Blocks are not discarded: the disks were blank, and a terabyte of discards takes minutes on some.
            Step::Format { system: FileSystem::Xfs, id, label, device } => {
                let force = if again { "-f " } else { "" };
                words(&format!("mkfs.xfs {force}-K -m uuid={id} -L {label} {device}"))
            }
            Step::Format { system: FileSystem::Ext4, id, label, device } => {
                let force = if again { "-F " } else { "" };
                words(&format!("mkfs.ext4 -q {force}-E nodiscard -U {id} -L {label} {device}"))
            }
        };
        if let Step::Array { devices, .. }
        | Step::Assemble { devices, .. }
        | Step::Group { devices, .. }
        | Step::Extend { devices, .. }
        | Step::Volume { devices, .. }
        | Step::ThinPool { devices, .. } = self
        {
            command.extend(devices.iter().cloned());
        }
        Some(command)
    }
}

/// As mdadm writes it: four groups of eight digits.
fn md_uuid(id: Uuid) -> String {
    let digits = id.simple().to_string();
    let groups: Vec<&str> = (0..4).filter_map(|i| digits.get(i * 8..i * 8 + 8)).collect();
    groups.join(":")
}

impl Wanted<'_> {
    /// The id of something of this layout on this machine.
    pub fn id(&self, what: &str) -> Uuid {
        let layout = serde_json::to_vec(self.storage).unwrap_or_default();
        let mut hash = blake3::Hasher::new_derive_key("rackline storage 1");
        for part in [self.machine.0.as_bytes().as_slice(), &layout, what.as_bytes()] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finalize().as_bytes()[..16]);
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }

    /// The id of the one partition of a disk.
    pub fn partition(&self, disk: &Disk) -> Uuid {
        let identity = Identity::of(disk);
        self.id(&format!("partition {} {:?} {:?}", identity.size_bytes, identity.serial, identity.wwn))
    }

    fn partition_step(&self, disk: &Disk, label: &str) -> Step {
        Step::Partition { disk: disk.name.clone(), id: self.partition(disk), label: format!("rackline-{label}") }
    }

    pub fn array(&self, name: &str) -> Uuid {
        self.id(&format!("array {name}"))
    }

    fn file_system(&self, name: &str) -> Uuid {
        self.id(&format!("file system {name}"))
    }

    /// A disk that is neither blank nor ours, before anything is written.
    pub fn foreign<'s>(&self, seen: &'s Seen, begun: &BTreeSet<String>) -> Option<(&Disk, &'s str)> {
        let ours = |disk: &Disk| begun.contains(&self.partition_step(disk, "").name());
        self.assigned.disks().find_map(|disk| match seen.disks.get(&disk.name) {
            Some(Content::Foreign(_)) if ours(disk) => None,
            Some(Content::Foreign(what)) => Some((disk, what.as_str())),
            Some(Content::Is(id)) if *id != self.partition(disk) => {
                Some((disk, "the storage of another host or layout"))
            }
            _ => None,
        })
    }
}

/// A disk with somebody's data on it.
pub fn refuse(disk: &Disk, what: &str) -> Error {
    let serial = disk.serial.as_ref().map_or("no serial number", |s| s.as_str());
    let sentence = format!("{} ({serial}) is not blank: {what}; nothing was written to it", disk.name);
    Error::conflict("storage.foreign", sentence).hint(
        "save what is on it, then `rackline machine release` erases all disks; or leave it out in the role's template",
    )
}

/// What is to be done next; `None`: all is there. `begun`: the steps that were being done when the power went, and have not
/// been finished since.
pub fn next(wanted: &Wanted<'_>, seen: &Seen, begun: &BTreeSet<String>) -> Result<Option<Step>> {
    if let Some((disk, what)) = wanted.foreign(seen, begun) {
        return Err(refuse(disk, what));
    }
    let look = Look { wanted, seen, begun };
    for pool in &wanted.assigned.pools {
        if let Some(step) = look.pool(pool)? {
            return Ok(Some(step));
        }
    }
    for separate in &wanted.assigned.separate {
        let Some(rules) = wanted.storage.separate.iter().find(|s| s.name == separate.name) else { continue };
        for (i, disk) in separate.disks.iter().enumerate() {
            let name = format!("{}{}", rules.name, i + 1);
            let device = match look.partition(disk, &name)? {
                Found::There(part) => part.device.clone(),
                Found::Lacking(step) => return Ok(Some(step)),
            };
            let mount = format!("{}{}", rules.mount, i + 1);
            if let Some(step) = look.file_system(&name, &device, rules.file_system, Some((&mount, &rules.options)))? {
                return Ok(Some(step));
            }
        }
    }
    Ok(None)
}

enum Found<T> {
    There(T),
    Lacking(Step),
}

struct Look<'a> {
    wanted: &'a Wanted<'a>,
    seen: &'a Seen,
    begun: &'a BTreeSet<String>,
}

impl Look<'_> {
    fn may_repeat(&self, step: &Step) -> bool {
        self.begun.contains(&step.name())
    }

    fn partition(&self, disk: &Disk, label: &str) -> Result<Found<&Part>> {
        let id = self.wanted.partition(disk);
        match self.seen.disks.get(&disk.name) {
            Some(Content::Is(there)) if *there == id => match self.seen.parts.get(&id) {
                Some(part) => Ok(Found::There(part)),
                None => {
                    let what = format!("the kernel does not show the partition on {}", disk.name);
                    Err(Error::unreachable("storage.partition", what).hint("see `dmesg` on the host"))
                }
            },
            Some(Content::Blank) => Ok(Found::Lacking(self.wanted.partition_step(disk, label))),
            Some(Content::Foreign(_)) if self.may_repeat(&self.wanted.partition_step(disk, label)) => {
                Ok(Found::Lacking(self.wanted.partition_step(disk, label)))
            }
            Some(Content::Foreign(what)) => Err(refuse(disk, what)),
            Some(Content::Is(_)) | None => Err(refuse(disk, "nobody has looked at it")),
        }
    }

    /// The devices that LVM gets: the partitions themselves, or the array of them.
    fn devices(&self, name: &str, disks: &[Disk], raid: Option<Raid>) -> Result<Found<Vec<String>>> {
        let mut parts = Vec::new();
        for disk in disks {
            match self.partition(disk, name)? {
                Found::There(part) => parts.push(part),
                Found::Lacking(step) => return Ok(Found::Lacking(step)),
            }
        }
        let devices: Vec<String> = parts.iter().map(|p| p.device.clone()).collect();
        let Some(raid) = raid else { return Ok(Found::There(devices)) };
        let id = self.wanted.array(name);
        if let Some(array) = parts.iter().find_map(|p| p.array.as_ref()) {
            let running = self.seen.arrays.get(array);
            let whole = running.is_some_and(|a| a.level == format!("raid{}", raid.level()) && a.members == parts.len());
            let of_it = parts.iter().filter(|p| p.array.as_ref() == Some(array)).count();
            if whole && (of_it == parts.len() || running.is_some_and(|a| a.missing > 0)) {
                return Ok(Found::There(vec![array.clone()]));
            }
            let what = format!(
                "the array {array} is not the RAID {} of {} that was ordered",
                raid.level(),
                devices.join(", ")
            );
            return Err(Error::conflict("storage.array", what).hint("see `mdadm --detail` on the host"));
        }
        let step = Step::Array { name: name.to_owned(), id, raid, devices: devices.clone() };
        let ours = parts.iter().filter(|p| p.content == Content::Is(id)).count();
        let blank = parts.iter().filter(|p| p.content == Content::Blank).count();
        if blank == parts.len() || (self.may_repeat(&step) && ours + blank == parts.len()) {
            return Ok(Found::Lacking(step));
        }
        if ours > 0 {
            return Ok(Found::Lacking(Step::Assemble { name: name.to_owned(), id, devices }));
        }
        let what = format!("{} hold something else than the array {name}", devices.join(", "));
        Err(Error::conflict("storage.array", what).hint("see `mdadm --examine` on the host"))
    }

    fn pool(&self, disks: &super::disks::PoolDisks) -> Result<Option<Step>> {
        let Some(pool) = self.wanted.storage.pool.iter().find(|p| p.name == disks.name) else { return Ok(None) };
        let devices = match self.devices(&pool.name, &disks.disks, pool.raid)? {
            Found::There(devices) => devices,
            Found::Lacking(step) => return Ok(Some(step)),
        };
        if let Some(step) = self.group(&pool.name, &devices, false)? {
            return Ok(Some(step));
        }
        let extent = self.seen.groups.get(&pool.name).copied().filter(|e| *e > 0).ok_or_else(|| lost(&pool.name))?;
        let extents = devices.iter().filter_map(|d| self.seen.physical.get(d)).map(|p| p.extents).sum();
        let sizes = sizes(self.wanted.storage, &pool.name, extents, extent)?;
        let of = |name: &str| sizes.get(name).copied().unwrap_or(0);
        let storage = self.wanted.storage;
        for thin in storage.thin.iter().filter(|t| t.pool == pool.name) {
            if let Some(step) = self.thin_pool(thin, of(&thin.name), extent, &devices)? {
                return Ok(Some(step));
            }
        }
        for volume in storage.volume.iter().filter(|v| v.pool.as_ref() == Some(&pool.name)) {
            let step = Step::Volume {
                group: pool.name.clone(),
                name: volume.name.clone(),
                extents: of(&volume.name),
                devices: devices.clone(),
            };
            if let Some(step) = self.volume(&pool.name, volume, of(&volume.name) * extent, step)? {
                return Ok(Some(step));
            }
        }
        match &pool.cache {
            Some(cache) => self.cache(&pool.name, cache, &disks.cache),
            None => Ok(None),
        }
    }

    /// All devices in the volume group.
    fn group(&self, name: &str, devices: &[String], more: bool) -> Result<Option<Step>> {
        let lacking: Vec<String> = devices.iter().filter(|d| !self.seen.physical.contains_key(*d)).cloned().collect();
        if let Some((device, other)) =
            devices.iter().find_map(|d| Some((d, self.seen.physical.get(d)?)).filter(|(_, p)| p.group != name))
        {
            let what = format!("{device} is in the volume group {:?} and not in {name}", other.group);
            return Err(Error::conflict("storage.group", what).hint("see `pvs` on the host"));
        }
        if lacking.is_empty() {
            return Ok(None);
        }
        let there = self.seen.groups.contains_key(name);
        let none = lacking.len() == devices.len();
        match (more, there) {
            (false, false) if none => Ok(Some(Step::Group { name: name.to_owned(), devices: lacking })),
            (true, true) if none => Ok(Some(Step::Extend { name: name.to_owned(), devices: lacking })),
            // Interrupted while the devices were being marked.
            (false, false) => Ok(Some(Step::Group { name: name.to_owned(), devices: devices.to_vec() })),
            _ => {
                let what = format!("{} not in the volume group {name}, which is there", lacking.join(", "));
                Err(Error::conflict("storage.group", what).hint("see `vgs` and `pvs` on the host"))
            }
        }
    }

    fn thin_pool(&self, thin: &Thin, extents: u64, extent: u64, devices: &[String]) -> Result<Option<Step>> {
        let key = (thin.pool.clone(), thin.name.clone());
        let Some(there) = self.seen.logical.get(&key) else {
            let step = Step::ThinPool {
                group: thin.pool.clone(),
                name: thin.name.clone(),
                extents,
                metadata: metadata(extents * extent).next_multiple_of(extent),
                discard: self.wanted.storage.discard,
                devices: devices.to_vec(),
            };
            return Ok(Some(step));
        };
        right_size(&key, there, extents * extent)?;
        for volume in self.wanted.storage.volume.iter().filter(|v| v.thin.as_ref() == Some(&thin.name)) {
            let bytes = match volume.size {
                Size::Percent(percent) => extents * u64::from(percent) / 100 * extent,
                Size::Bytes(bytes) => bytes.0 / extent * extent,
                Size::Rest => 0,
            };
            let (group, pool, name) = (thin.pool.clone(), thin.name.clone(), volume.name.clone());
            if let Some(step) = self.volume(&thin.pool, volume, bytes, Step::Thin { group, pool, name, bytes })? {
                return Ok(Some(step));
            }
        }
        Ok(None)
    }

    fn volume(&self, group: &str, volume: &Volume, bytes: u64, make: Step) -> Result<Option<Step>> {
        let key = (group.to_owned(), volume.name.clone());
        let Some(there) = self.seen.logical.get(&key) else { return Ok(Some(make)) };
        right_size(&key, there, bytes)?;
        let Some(system) = volume.file_system else { return Ok(None) };
        let mount = volume.mount.as_deref().map(|m| (m, volume.options.as_slice()));
        self.file_system(&volume.name, &format!("/dev/{group}/{}", volume.name), system, mount)
    }

    fn cache(&self, group: &str, cache: &super::storage::Cache, disks: &[Disk]) -> Result<Option<Step>> {
        let name = format!("{group}_cache");
        let devices = match self.devices(&name, disks, cache.raid)? {
            Found::There(devices) => devices,
            Found::Lacking(step) => return Ok(Some(step)),
        };
        if let Some(step) = self.group(group, &devices, true)? {
            return Ok(Some(step));
        }
        let key = |name: &str| (group.to_owned(), name.to_owned());
        let kind = |name: &str| self.seen.logical.get(&key(name)).map(|l| l.kind.as_str());
        if kind(&cache.volume) == Some("cache") || kind(&format!("{}_tdata", cache.volume)) == Some("cache") {
            return Ok(None);
        }
        let with = format!("{}_cache", cache.volume);
        if kind(&with).is_none() {
            let extents = devices.iter().filter_map(|d| self.seen.physical.get(d)).map(|p| p.extents).sum();
            return Ok(Some(Step::Volume { group: group.to_owned(), name: with, extents, devices }));
        }
        let mode = cache.mode.name();
        Ok(Some(Step::Cache { group: group.to_owned(), volume: cache.volume.clone(), with, mode }))
    }

    fn file_system(
        &self,
        name: &str,
        device: &str,
        system: FileSystem,
        mount: Option<(&str, &[String])>,
    ) -> Result<Option<Step>> {
        let id = self.wanted.file_system(name);
        // XFS keeps twelve bytes of a label.
        let label: String = name.chars().take(12).collect();
        let step = Step::Format { device: device.to_owned(), system, id, label };
        match self.seen.systems.get(device) {
            Some(Content::Is(there)) if *there == id => {}
            Some(Content::Blank) => return Ok(Some(step)),
            Some(_) if self.may_repeat(&step) => return Ok(Some(step)),
            Some(Content::Foreign(what)) => {
                return Err(Error::conflict(
                    "storage.foreign",
                    format!("{device} holds {what}; nothing was written to it"),
                ));
            }
            Some(Content::Is(other)) => {
                let what = format!("{device} holds the file system {other}, which is not of this layout");
                return Err(Error::conflict("storage.foreign", what));
            }
            None => return Err(Error::unreachable("storage.device", format!("{device} is not there"))),
        }
        let Some((target, options)) = mount else { return Ok(None) };
        match self.seen.mounts.get(target) {
            Some(mounted) if *mounted == id => Ok(None),
            Some(other) => {
                let what = format!("{target} has another file system mounted, {other}");
                Err(Error::conflict("storage.mount", what).hint("see `findmnt` on the host"))
            }
            None => {
                let (target, options) = (target.to_owned(), options.to_vec());
                Ok(Some(Step::Mount { id, system, target, options }))
            }
        }
    }
}

fn right_size((group, name): &(String, String), there: &Logical, bytes: u64) -> Result<()> {
    if there.bytes >= bytes {
        return Ok(());
    }
    let what = format!("{group}/{name} has {} bytes where {bytes} were ordered", there.bytes);
    Err(Error::conflict("storage.size", what).hint("see `lvs` on the host"))
}

fn lost(group: &str) -> Error {
    Error::unreachable("storage.group", format!("the volume group {group} does not tell its extents"))
}

fn metadata(bytes: u64) -> u64 {
    (bytes / 1000).clamp(THIN_METADATA.0, THIN_METADATA.1)
}

/// What everything in a volume group gets, in extents. Percent and the rest are of what is left beside the metadata of thin
/// pools and its spare.
fn sizes(storage: &Storage, pool: &str, extents: u64, extent: u64) -> Result<BTreeMap<String, u64>> {
    let thin = storage.thin.iter().filter(|t| t.pool == pool).map(|t| (&t.name, t.size));
    let volumes = storage.volume.iter().filter(|v| v.pool.as_deref() == Some(pool)).map(|v| (&v.name, v.size));
    let pools = storage.thin.iter().filter(|t| t.pool == pool).count() as u64;
    let spare = if pools == 0 { 0 } else { (pools + 1) * metadata(extents * extent).div_ceil(extent) };
    let usable = extents.saturating_sub(spare);
    let mut sizes = BTreeMap::new();
    let mut rest = Vec::new();
    for (name, size) in thin.chain(volumes) {
        match size {
            Size::Bytes(bytes) => _ = sizes.insert(name.clone(), bytes.0.div_ceil(extent)),
            Size::Percent(percent) => _ = sizes.insert(name.clone(), usable * u64::from(percent) / 100),
            Size::Rest => rest.push(name.clone()),
        }
    }
    let fixed = sizes.values().fold(0u64, |sum, n| sum.saturating_add(*n));
    let left = usable.checked_sub(fixed).filter(|left| *left >= rest.len() as u64).ok_or_else(|| {
        let (need, has) = (fixed.saturating_mul(extent) >> 20, usable.saturating_mul(extent) >> 20);
        Error::conflict("storage.space", format!("the volumes of pool {pool} need {need} MiB, and it has {has} MiB"))
            .hint("give them sizes in percent, or fit larger disks")
    })?;
    for name in &rest {
        sizes.insert(name.clone(), left / rest.len() as u64);
    }
    Ok(sizes)
}

/// Whether the volumes fit on these disks, as far as can be said before they are made: some MiB on each are the layers' own.
pub fn fits(storage: &Storage, assigned: &Assigned) -> Result<()> {
    const EXTENT: u64 = 4 << 20;
    const OWN: u64 = 256 << 20;
    for disks in &assigned.pools {
        let raid = storage.pool.iter().find(|p| p.name == disks.name).and_then(|p| p.raid);
        let each = disks.disks.iter().map(|d| d.size_bytes.saturating_sub(OWN));
        let bytes: u64 = match raid {
            None => each.sum(),
            Some(Raid::Mirror) => each.min().unwrap_or(0),
            Some(Raid::Striped) => each.clone().min().unwrap_or(0).saturating_mul(each.count() as u64) / 2,
        };
        sizes(storage, &disks.name, bytes / EXTENT, EXTENT)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
