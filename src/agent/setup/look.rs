//! What is on the disks, for the plan of the storage: signatures read from the devices themselves, arrays from /sys, volumes
//! from LVM's own tools.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use uuid::Uuid;

use crate::agent::block::{Buffer, Device};
use crate::agent::deploy::gpt;
use crate::agent::roots::Roots;
use crate::agent::{blocking, tool};
use crate::error::{Error, Result};
use crate::image::chunk::is_zero;
use crate::role::plan::{ALIGN, Array, Content, Logical, Part, Physical, Seen, Wanted};

const LVM: Duration = Duration::from_secs(60);
/// Superblocks of ext4 (at 1 KiB) and XFS (at 0) lie within this.
const HEAD: usize = 4096;
/// Of md with metadata 1.2, at 4 KiB.
const MD_HEAD: usize = 8192;

/// All of it. Devices are opened for reading only.
pub async fn look(roots: &Roots, wanted: &Wanted<'_>) -> Result<Seen> {
    let disks: Vec<(String, Uuid)> = wanted.assigned.disks().map(|d| (d.name.clone(), wanted.partition(d))).collect();
    let from = roots.clone();
    let mut seen = blocking(move || partitions(&from, &disks)).await?;
    if !wanted.assigned.pools.is_empty() && !seen.parts.is_empty() {
        volumes(&mut seen).await?;
    }
    let mut devices: Vec<String> = seen.logical.keys().map(|(group, name)| format!("/dev/{group}/{name}")).collect();
    let separate = wanted.assigned.separate.iter().flat_map(|s| &s.disks).map(|d| wanted.partition(d));
    devices.extend(separate.filter_map(|id| seen.parts.get(&id)).map(|p| p.device.clone()));
    let volumes = wanted.storage.volume.iter().filter_map(|v| v.mount.clone());
    let separate = wanted.storage.separate.iter().map(|s| s.mount.clone());
    let targets: Vec<String> = volumes.chain(separate).collect();
    let from = roots.clone();
    let (systems, mounts) = blocking(move || {
        let mut systems = BTreeMap::new();
        for device in devices.into_iter().filter(|d| Path::new(d).exists()) {
            let content = file_system(Path::new(&device))?;
            systems.insert(device, content);
        }
        Ok((systems, mounts(&from, &targets)))
    })
    .await?;
    (seen.systems, seen.mounts) = (systems, mounts);
    Ok(seen)
}

/// Only the disks: whether they are blank.
pub fn contents(roots: &Roots, disks: &[(String, Uuid)]) -> Result<BTreeMap<String, Content>> {
    let content = |(name, _): &(String, Uuid)| Ok((name.clone(), disk(&Device::read_only(&roots.dev.join(name))?)?));
    disks.iter().map(content).collect()
}

fn partitions(roots: &Roots, disks: &[(String, Uuid)]) -> Result<Seen> {
    let mut seen = Seen { disks: contents(roots, disks)?, ..Seen::default() };
    for (disk, id) in disks.iter().filter(|(name, id)| seen.disks.get(name) == Some(&Content::Is(*id))) {
        let folder = roots.sys.join("block").join(disk);
        let Some(name) = first_partition(&folder) else { continue };
        let device = roots.dev.join(&name);
        let content = member(&Device::read_only(&device)?)?;
        let array = holder(&roots.sys.join("class/block").join(&name));
        if let Some(array) = &array {
            seen.arrays.insert(format!("/dev/{array}"), state(&roots.sys.join("block").join(array)));
        }
        let array = array.map(|a| format!("/dev/{a}"));
        seen.parts.insert(*id, Part { device: device.display().to_string(), content, array });
    }
    Ok(seen)
}

fn first_partition(folder: &Path) -> Option<String> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    let first = entries.map(|e| e.path()).find(|p| text(&p.join("partition")).as_deref() == Some("1"))?;
    Some(first.file_name()?.to_str()?.to_owned())
}

/// The array that the kernel has made of a partition.
fn holder(part: &Path) -> Option<String> {
    let entries = fs::read_dir(part.join("holders")).ok()?.flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).find(|n| n.starts_with("md"))
}

fn state(array: &Path) -> Array {
    let number = |name: &str| text(&array.join("md").join(name)).and_then(|t| t.parse().ok()).unwrap_or(0);
    Array {
        level: text(&array.join("md/level")).unwrap_or_default(),
        members: number("raid_disks"),
        missing: number("degraded"),
    }
}

fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn head(device: &Device, offset: u64, len: usize) -> Result<Buffer> {
    let mut buffer = Buffer::new(len);
    device.read_at(&mut buffer, offset)?;
    Ok(buffer)
}

/// Partition tables, RAID and file systems have something in the first or the last MiB.
fn disk(device: &Device) -> Result<Content> {
    let len = ALIGN.min(device.size()) as usize / HEAD * HEAD;
    let first = head(device, 0, len)?;
    let sector = u64::from(device.sector());
    let last = head(device, (device.size() - len as u64) / sector * sector, len)?;
    if let Some((id, 1)) = gpt::identity(device)? {
        return Ok(Content::Is(id));
    }
    if is_zero(&first) && is_zero(&last) {
        return Ok(Content::Blank);
    }
    Ok(Content::Foreign(words(&first)))
}

/// What a person would call it.
fn words(first: &[u8]) -> String {
    let at = |offset: usize, magic: &[u8]| first.get(offset..offset + magic.len()) == Some(magic);
    let known: &[(usize, &[u8], &str)] = &[
        (512, b"EFI PART", "a partition table (GPT)"),
        (4096, b"EFI PART", "a partition table (GPT)"),
        (0, b"XFSB", "an XFS file system"),
        (0x438, &[0x53, 0xef], "an ext4 file system"),
        (0x10040, b"_BHRfS_M", "a btrfs file system"),
        (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
        (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of a software RAID"),
        (512, b"LABELONE", "an LVM physical volume"),
        (4096 + 24, &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca], "a bcache device"),
        (510, &[0x55, 0xaa], "a partition table (MBR)"),
    ];
    let found = known.iter().find(|(offset, magic, _)| at(*offset, magic));
    found.map_or("data without a signature that is known here".into(), |(.., words)| (*words).into())
}

/// Member of an array: md superblock 1.2 at 4 KiB, its `set_uuid` at byte 16 (linux/raid/md_p.h).
fn member(device: &Device) -> Result<Content> {
    let head = head(device, 0, MD_HEAD)?;
    let superblock = head.get(4096..4096 + 32).unwrap_or_default();
    if superblock.starts_with(&[0xfc, 0x4e, 0x2b, 0xa9])
        && let Some(id) = superblock.get(16..32).and_then(|b| b.try_into().ok())
    {
        return Ok(Content::Is(Uuid::from_bytes(id)));
    }
    Ok(if is_zero(&head) { Content::Blank } else { Content::Foreign(words(&head)) })
}

/// XFS: `sb_uuid` at 32, `sb_inprogress` at 126 until mkfs is done. ext4: magic at 0x38 and `s_uuid` at 0x68 of a superblock
/// that begins at 1 KiB.
fn file_system(path: &Path) -> Result<Content> {
    let device = Device::read_only(path)?;
    let head = head(&device, 0, HEAD)?;
    let id = |at: usize| head.get(at..at + 16).and_then(|b| b.try_into().ok()).map(Uuid::from_bytes);
    let found = if head.starts_with(b"XFSB") && head.get(126) == Some(&0) {
        id(32)
    } else if head.get(0x438..0x43a) == Some(&[0x53, 0xef]) {
        id(0x468)
    } else {
        None
    };
    Ok(match found {
        Some(id) => Content::Is(id),
        None if is_zero(&head) => Content::Blank,
        None => Content::Foreign(words(&head)),
    })
}

/// Of `/proc/self/mountinfo` (proc(5)): mount point is the fifth word, the source the second after ` - `.
fn mounts(roots: &Roots, targets: &[String]) -> BTreeMap<String, Uuid> {
    let table = text(&roots.proc.join("self/mountinfo")).unwrap_or_default();
    let mut mounts = BTreeMap::new();
    for line in table.lines() {
        let (Some(target), Some((_, rest))) = (line.split(' ').nth(4), line.split_once(" - ")) else { continue };
        // Separate disks have their number behind the target.
        let ours = targets
            .iter()
            .any(|t| target.strip_prefix(t.as_str()).is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit())));
        let Some(source) = rest.split(' ').nth(1).filter(|_| ours) else { continue };
        let id = match file_system(&PathBuf::from(source)) {
            Ok(Content::Is(id)) => id,
            _ => Uuid::nil(),
        };
        mounts.insert(target.to_owned(), id);
    }
    mounts
}

#[derive(Deserialize)]
struct Answer {
    report: Vec<BTreeMap<String, Vec<BTreeMap<String, String>>>>,
}

async fn lvm(program: &str, columns: &str) -> Result<Vec<BTreeMap<String, String>>> {
    let args = ["-a", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", columns];
    let args = if program == "lvs" { &args[..] } else { &args[1..] };
    let output = tool::expect(program, args, LVM).await?;
    rows(program, &output.stdout)
}

fn rows(program: &str, text: &str) -> Result<Vec<BTreeMap<String, String>>> {
    let answer: Answer = serde_json::from_str(text)
        .map_err(|e| Error::refused("tool.garbage", format!("{program} did not answer with its JSON")).because(e))?;
    Ok(answer.report.into_iter().flat_map(|r| r.into_values()).flatten().collect())
}

async fn volumes(seen: &mut Seen) -> Result<()> {
    let physical = lvm("pvs", "pv_name,vg_name,pv_pe_count").await?;
    let groups = lvm("vgs", "vg_name,vg_extent_size").await?;
    let logical = lvm("lvs", "vg_name,lv_name,lv_size,segtype").await?;
    let real = |name: &str| fs::canonicalize(name).map_or(name.to_owned(), |p| p.display().to_string());
    take(seen, &physical, &groups, &logical, real);
    Ok(())
}

type Row = BTreeMap<String, String>;

fn take(seen: &mut Seen, physical: &[Row], groups: &[Row], logical: &[Row], real: impl Fn(&str) -> String) {
    let get = |row: &Row, name: &str| row.get(name).cloned().unwrap_or_default();
    let number = |row: &Row, name: &str| get(row, name).parse::<u64>().unwrap_or(0);
    for row in physical {
        // Marked, but of no group yet.
        let group = get(row, "vg_name");
        if !group.is_empty() {
            let extents = number(row, "pv_pe_count");
            seen.physical.insert(real(&get(row, "pv_name")), Physical { group, extents });
        }
    }
    seen.groups.extend(groups.iter().map(|row| (get(row, "vg_name"), number(row, "vg_extent_size"))));
    for row in logical {
        let name = get(row, "lv_name").trim_matches(['[', ']']).to_owned();
        let found = Logical { bytes: number(row, "lv_size"), kind: get(row, "segtype") };
        seen.logical.insert((get(row, "vg_name"), name), found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(bytes: &[(usize, &[u8])]) -> (tempfile::NamedTempFile, Device) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(32 << 20).unwrap();
        use std::os::unix::fs::FileExt;
        bytes.iter().for_each(|(at, bytes)| file.as_file().write_all_at(bytes, *at as u64).unwrap());
        let device = Device::of_file(file.path());
        (file, device)
    }

    #[test]
    fn blank_ours_and_somebody_elses() {
        assert_eq!(disk(&device(&[]).1).unwrap(), Content::Blank);
        let (_file, own) = device(&[]);
        gpt::single(&own, Uuid::from_u128(7), "rackline-data").unwrap();
        assert_eq!(disk(&own).unwrap(), Content::Is(Uuid::from_u128(7)));
        for (at, bytes, what) in [
            (0usize, b"XFSB".as_slice(), "XFS"),
            (0x438, &[0x53, 0xef], "ext4"),
            (510, &[0x55, 0xaa], "MBR"),
            (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "software RAID"),
            (512, b"LABELONE", "LVM"),
            ((32 << 20) - 512, b"at the end", "without a signature"),
        ] {
            let Content::Foreign(words) = disk(&device(&[(at, bytes)]).1).unwrap() else { panic!("{what}") };
            assert!(words.contains(what), "{words}");
        }
    }

    #[test]
    fn members_of_arrays_by_their_id() {
        let id = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
        let superblock = [&[0xfc, 0x4e, 0x2b, 0xa9][..], &[0; 12], id.as_bytes()].concat();
        assert_eq!(member(&device(&[(4096, &superblock)]).1).unwrap(), Content::Is(id));
        assert_eq!(member(&device(&[]).1).unwrap(), Content::Blank);
        assert!(matches!(member(&device(&[(512, b"LABELONE")]).1).unwrap(), Content::Foreign(_)));
    }

    #[test]
    fn what_lvm_says() {
        let text = r#"{"report":[{"lv":[
            {"vg_name":"data","lv_name":"guests","lv_size":"4194304","segtype":"cache"},
            {"vg_name":"data","lv_name":"[guests_cache_cvol]","lv_size":"8388608","segtype":"linear"}]}]}"#;
        let logical = rows("lvs", text).unwrap();
        let physical = rows(
            "pvs",
            r#"{"report":[{"pv":[{"pv_name":"/dev/md/data","vg_name":"data","pv_pe_count":"100"},
            {"pv_name":"/dev/sdz","vg_name":"","pv_pe_count":"0"}]}]}"#,
        )
        .unwrap();
        let groups = rows("vgs", r#"{"report":[{"vg":[{"vg_name":"data","vg_extent_size":"4194304"}]}]}"#).unwrap();
        let mut seen = Seen::default();
        take(&mut seen, &physical, &groups, &logical, |name| name.replace("md/data", "md127"));
        assert_eq!(seen.physical.keys().collect::<Vec<_>>(), ["/dev/md127"]);
        assert_eq!(seen.groups["data"], 4 << 20);
        assert_eq!(seen.logical[&("data".into(), "guests".into())].kind, "cache");
        assert!(seen.logical.contains_key(&("data".into(), "guests_cache_cvol".into())));
        assert_eq!(rows("lvs", "  WARNING: no").unwrap_err().code(), "tool.garbage");
    }
}
