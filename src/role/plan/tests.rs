//! The plan against a model of disks, arrays and LVM in which the power may go at any moment.

use super::super::disks::assign;
use super::super::disks::tests::{disk, storage};
use super::*;

const ALL: &str = r#"
    pool = [{ name = "data", disks = { kind = "hdd", count = 4 }, raid = "10",
              cache = { volume = "guests", raid = "1", mode = "writeback", disks = { kind = "nvme", count = 2 } } }]
    thin = [{ name = "images", pool = "data", size = "30%" }]
    volume = [
        { name = "golden", thin = "images", size = "60%", file-system = "xfs", mount = "/srv/golden" },
        { name = "raw", thin = "images", size = "40%" },
        { name = "guests", pool = "data", size = "rest", file-system = "xfs", mount = "/srv/guests", options = ["noatime"] },
        { name = "log", pool = "data", size = "10G", file-system = "ext4", mount = "/srv/log" },
    ]
    separate = [{ name = "spool", disks = { kind = "ssd" }, file-system = "ext4", mount = "/srv/spool" }]
"#;

const EXTENT: u64 = 4 << 20;

fn disks() -> Vec<Disk> {
    let mut disks = vec![disk("sda", 100, false), disk("sdb", 200, false), disk("sdc", 200, false)];
    disks.extend(["sdd", "sde", "sdf", "sdg"].map(|n| disk(n, 4000, true)));
    disks.extend(["nvme0n1", "nvme1n1"].map(|n| disk(n, 800, false)));
    disks
}

fn wanted<'a>(storage: &'a Storage, disks: &[Disk]) -> Wanted<'a> {
    Wanted { machine: MachineId(Uuid::nil()), storage, assigned: assign(storage, disks, &disks[0]).unwrap() }
}

fn blank(wanted: &Wanted<'_>) -> Seen {
    let disks = wanted.assigned.disks().map(|d| (d.name.clone(), Content::Blank)).collect();
    Seen { disks, ..Seen::default() }
}

/// What a step leaves. `cut`: the power goes in the middle of it.
fn apply(seen: &mut Seen, step: &Step, wanted: &Wanted<'_>, cut: bool) {
    match step {
        Step::Partition { disk, id, .. } if !cut => {
            seen.disks.insert(disk.clone(), Content::Is(*id));
            let part = Part { device: format!("/dev/{disk}1"), content: Content::Blank, array: None };
            seen.parts.insert(*id, part);
        }
        Step::Partition { disk, .. } => {
            seen.disks.insert(disk.clone(), Content::Foreign("half a partition table".into()));
        }
        Step::Array { id, devices, raid, .. } => {
            for part in seen.parts.values_mut().filter(|p| devices.contains(&p.device)).take(if cut { 1 } else { 99 }) {
                part.content = Content::Is(*id);
                part.array = (!cut).then(|| format!("/dev/md{}", id.as_u128() % 100));
            }
            if !cut {
                let array = Array { level: format!("raid{}", raid.level()), members: devices.len(), missing: 0 };
                seen.arrays.insert(format!("/dev/md{}", id.as_u128() % 100), array);
            }
        }
        Step::Assemble { id, devices, .. } => {
            for part in seen.parts.values_mut().filter(|p| devices.contains(&p.device)) {
                part.array = Some(format!("/dev/md{}", id.as_u128() % 100));
            }
        }
        Step::Group { name, devices } | Step::Extend { name, devices } if !cut => {
            seen.groups.insert(name.clone(), EXTENT);
            for device in devices {
                // The cache is on smaller disks than the data.
                let extents = if matches!(step, Step::Extend { .. }) { 200_000 } else { 2_000_000 };
                seen.physical.insert(device.clone(), Physical { group: name.clone(), extents });
            }
        }
        Step::Group { .. } | Step::Extend { .. } => {}
        Step::Volume { .. } | Step::ThinPool { .. } | Step::Thin { .. } | Step::Cache { .. } if cut => {}
        Step::Volume { group, name, extents, .. } => {
            logical(seen, group, name, extents * EXTENT, "linear");
        }
        Step::ThinPool { group, name, extents, .. } => {
            logical(seen, group, name, extents * EXTENT, "thin-pool");
        }
        Step::Thin { group, name, bytes, .. } => logical(seen, group, name, *bytes, "thin"),
        Step::Cache { group, volume, with, .. } => {
            seen.logical.remove(&(group.clone(), with.clone()));
            seen.logical.get_mut(&(group.clone(), volume.clone())).unwrap().kind = "cache".into();
        }
        Step::Format { device, id, .. } => {
            let content = if cut { Content::Foreign("half a file system".into()) } else { Content::Is(*id) };
            seen.systems.insert(device.clone(), content);
        }
        Step::Mount { id, target, .. } if !cut => {
            seen.mounts.insert(target.clone(), *id);
        }
        Step::Mount { .. } => {}
    }
    for separate in &wanted.assigned.separate {
        for disk in &separate.disks {
            if seen.parts.contains_key(&wanted.partition(disk)) {
                seen.systems.entry(format!("/dev/{}1", disk.name)).or_insert(Content::Blank);
            }
        }
    }
}

fn logical(seen: &mut Seen, group: &str, name: &str, bytes: u64, kind: &str) {
    seen.logical.insert((group.into(), name.into()), Logical { bytes, kind: kind.into() });
    seen.systems.insert(format!("/dev/{group}/{name}"), Content::Blank);
}

/// Nothing that is mounted or assembled outlives a restart; udev puts whole arrays together again.
fn restart(seen: &mut Seen) {
    seen.mounts.clear();
    for part in seen.parts.values_mut().filter(|p| p.array.is_none()) {
        part.array = None;
    }
}

fn run(wanted: &Wanted<'_>, seen: &mut Seen, mut cut: impl FnMut() -> bool) -> Vec<Step> {
    let (mut done, mut begun) = (Vec::new(), BTreeSet::new());
    for _ in 0..500 {
        let Some(step) = next(wanted, seen, &begun).unwrap() else { return done };
        begun.insert(step.name());
        if cut() {
            apply(seen, &step, wanted, true);
            restart(seen);
            continue;
        }
        apply(seen, &step, wanted, false);
        begun.remove(&step.name());
        done.push(step);
    }
    panic!("it does not end: {done:#?}");
}

#[test]
fn from_blank_disks_to_mounted_file_systems() {
    let (storage, disks) = (storage(ALL), disks());
    let wanted = wanted(&storage, &disks);
    let mut seen = blank(&wanted);
    let steps = run(&wanted, &mut seen, || false);
    let count = |is: fn(&Step) -> bool| steps.iter().filter(|s| is(s)).count();
    assert_eq!(count(|s| matches!(s, Step::Partition { .. })), 8);
    assert_eq!(count(|s| matches!(s, Step::Array { .. })), 2);
    assert_eq!(count(|s| matches!(s, Step::Mount { .. })), 5);
    let lines: Vec<String> = steps.iter().filter_map(|s| s.command(false)).map(|c| c.join(" ")).collect();
    for part in [
        "mdadm --create /dev/md/data --run --metadata=1.2 --homehost=any --name=data --uuid=",
        " --bitmap=internal --level=10 --raid-devices=4 /dev/sdd1 /dev/sde1 /dev/sdf1 /dev/sdg1",
        "vgcreate --yes data /dev/md",
        "vgextend --yes data /dev/md",
        "lvcreate --yes --type thin-pool --name images --extents ",
        "--discards nopassdown data /dev/md",
        "lvconvert --yes --type cache --cachevol guests_cache --cachemode writeback data/guests",
        "-L guests /dev/data/guests",
        "mkfs.ext4 -q -E nodiscard -U ",
    ] {
        assert!(lines.iter().any(|l| l.contains(part)), "{part}: {lines:#?}");
    }
    // Once all is there, nothing is done any more: also after a restart, but for what is mounted.
    assert_eq!(run(&wanted, &mut seen, || false), []);
    restart(&mut seen);
    assert!(run(&wanted, &mut seen, || false).iter().all(|s| matches!(s, Step::Mount { .. })));
}

#[test]
fn whenever_the_power_goes_it_ends_in_the_same() {
    let (storage, disks) = (storage(ALL), disks());
    let wanted = wanted(&storage, &disks);
    let mut whole = blank(&wanted);
    let steps = run(&wanted, &mut whole, || false).len();
    for at in 0..steps {
        let (mut seen, mut turn) = (blank(&wanted), 0);
        run(&wanted, &mut seen, || {
            turn += 1;
            turn == at + 1 || turn == at + 2
        });
        assert_eq!(seen, whole, "cut at {at}");
    }
}

#[test]
fn what_is_neither_blank_nor_ours_is_left_alone() {
    let (storage, disks) = (storage(ALL), disks());
    let wanted = wanted(&storage, &disks);
    let mut seen = blank(&wanted);
    seen.disks.insert("sdf".into(), Content::Foreign("ext4".into()));
    let error = next(&wanted, &seen, &["partition sdf".to_owned()].into()).unwrap_err();
    assert_eq!(error.code(), "storage.foreign");
    assert!(error.message().starts_with("sdf (SN-sdf) is not blank: ext4; nothing was written"), "{error}");

    // The same layout of another machine is somebody else's data as well.
    let other = Wanted { machine: MachineId(Uuid::max()), ..wanted.clone() };
    let mut theirs = blank(&other);
    run(&other, &mut theirs, || false);
    assert_eq!(next(&wanted, &theirs, &BTreeSet::new()).unwrap_err().code(), "storage.foreign");
}

#[test]
fn an_exchanged_disk_is_not_taken_for_one_that_was_never_set_up() {
    let (storage, disks) = (storage(ALL), disks());
    let wanted = wanted(&storage, &disks);
    let mut seen = blank(&wanted);
    run(&wanted, &mut seen, || false);
    let id = wanted.partition(&disks[4]);
    let part = seen.parts.get_mut(&id).unwrap();
    (part.content, part.array) = (Content::Blank, None);
    // The array runs without it: nothing is made anew.
    let array = wanted.array("data").as_u128() % 100;
    seen.arrays.get_mut(&format!("/dev/md{array}")).unwrap().missing = 1;
    assert_eq!(next(&wanted, &seen, &BTreeSet::new()).unwrap(), None);
    // It does not run: it is started, not made.
    seen.parts.values_mut().for_each(|p| p.array = None);
    assert!(matches!(next(&wanted, &seen, &BTreeSet::new()).unwrap(), Some(Step::Assemble { .. })));
    // A file system that is gone is not made anew either.
    run(&wanted, &mut seen, || false);
    seen.systems.insert("/dev/data/guests".into(), Content::Foreign("zeros and ones".into()));
    assert_eq!(next(&wanted, &seen, &BTreeSet::new()).unwrap_err().code(), "storage.foreign");
}

#[test]
fn sizes_never_promise_more_than_there_is() {
    let storage = storage(ALL);
    for extents in [10_000, 123_457, 2_000_000, 50_000_000] {
        let sizes = sizes(&storage, "data", extents, EXTENT).unwrap();
        let meta = metadata(sizes["images"] * EXTENT).div_ceil(EXTENT);
        assert!(sizes.values().sum::<u64>() + 2 * meta <= extents, "{extents}");
        assert_eq!(sizes["log"], 2560);
    }
    let error = sizes(&storage, "data", 2_600, EXTENT).unwrap_err();
    assert!(error.message().contains("the volumes of pool data need"), "{error}");
}

#[test]
fn volumes_that_cannot_fit_are_refused_before_anything_is_written() {
    let text = ALL.replace("size = \"10G\"", "size = \"7T\"");
    let (small, disks) = (storage(&text), disks());
    let assigned = assign(&small, &disks, &disks[0]).unwrap();
    assert_eq!(fits(&small, &assigned).unwrap_err().code(), "storage.space");
    fits(&storage(ALL), &assigned).unwrap();
}

#[test]
fn ids_follow_from_machine_layout_and_name() {
    let (one, disks) = (storage(ALL), disks());
    let wanted = wanted(&one, &disks);
    let again = Wanted { ..wanted.clone() };
    assert_eq!(wanted.partition(&disks[3]), again.partition(&disks[3]));
    assert_ne!(wanted.partition(&disks[3]), wanted.partition(&disks[4]));
    let text = ALL.replace("10G", "11G");
    let changed = storage(&text);
    assert_ne!(Wanted { storage: &changed, ..wanted.clone() }.partition(&disks[3]), wanted.partition(&disks[3]));
    assert_eq!(
        md_uuid(Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff)),
        "00112233:44556677:8899aabb:ccddeeff"
    );
}
