//! Disks from `/sys/block`. Whole physical disks only: loop, RAM, device mapper, RAID and optical devices are not disks
//! to install on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{names, pci, value};
use crate::error::Result;
use crate::machine::{Disk, Serial};

/// Names of devices that are made of something else, or cannot be installed on.
const NOT_DISKS: &[&str] = &["loop", "ram", "zram", "dm-", "sr", "fd", "md", "nbd", "drbd", "rbd", "zd", "mtdblock"];

/// `slots`: what firmware calls a place, by PCI address.
pub fn read(sys: &Path, slots: &BTreeMap<String, String>) -> Result<Vec<Disk>> {
    let block = sys.join("block");
    if !block.exists() {
        return Ok(Vec::new());
    }
    let is_disk = |name: &&String| {
        let other = NOT_DISKS.iter().any(|p| name.starts_with(p));
        // eMMC boot areas and the path devices of NVMe multipath are no disks of their own.
        let area = name.starts_with("mmcblk") && (name.contains("boot") || name.ends_with("rpmb"));
        let hidden = value(&block.join(name).join("hidden")).is_some_and(|v| v == "1");
        !(other || area || hidden)
    };
    Ok(names(&block)?.iter().filter(is_disk).map(|name| disk(&block.join(name), name, slots)).collect())
}

fn disk(dir: &Path, name: &str, slots: &BTreeMap<String, String>) -> Disk {
    let flag = |path: &str| value(&dir.join(path)).is_some_and(|v| v == "1");
    let first = |paths: &[&str]| paths.iter().find_map(|p| value(&dir.join(p)));
    let transport = transport(dir, name);
    let controller = device(dir).and_then(|device| pci::function_of(&device));
    let sectors: u64 = first(&["size"]).and_then(|v| v.parse().ok()).unwrap_or(0);
    Disk {
        name: name.to_owned(),
        model: first(&["device/model"]),
        serial: serial(dir),
        wwn: first(&["wwid", "device/wwid"]).and_then(|w| normalise_wwn(&w)),
        // The kernel counts in 512 bytes whatever the sector size is.
        size_bytes: sectors.saturating_mul(512),
        // virtio-blk has no way to say that nothing turns, and the kernel then assumes that it does.
        rotational: transport != "virtio" && flag("queue/rotational"),
        removable: flag("removable"),
        read_only: flag("ro"),
        transport: transport.to_owned(),
        firmware: first(&["device/firmware_rev", "device/rev"]),
        slot: match (&controller, transport) {
            (Some((folder, address)), "nvme") => pci::slot(folder, address, slots),
            (_, "virtio" | "usb" | "mmc") => None,
            _ => bay(dir),
        },
        numa: controller.as_ref().and_then(|(folder, _)| pci::numa(folder)),
        controller: controller.map(|(_, address)| address),
        health: None,
    }
}

/// Where the device really is. The namespace of an NVMe subsystem with several paths belongs to none of them: its first
/// path says where it is plugged in.
fn device(dir: &Path) -> Option<PathBuf> {
    let device = std::fs::canonicalize(dir.join("device")).ok()?;
    if pci::function_of(&device).is_some() {
        return Some(device);
    }
    let paths = names(&device).ok()?.into_iter().filter(|name| name.starts_with("nvme"));
    paths.filter_map(|name| std::fs::canonicalize(device.join(name)).ok()).find(|path| pci::function_of(path).is_some())
}

/// The enclosure knows (SES), or the SAS expander, or the controller's port.
fn bay(dir: &Path) -> Option<String> {
    let link = names(&dir.join("device")).ok()?.into_iter().find(|name| name.starts_with("enclosure_device:"));
    if let Some(link) = link {
        let component = std::fs::canonicalize(dir.join("device").join(&link)).ok()?;
        let name = link.split_once(':')?.1.trim().to_owned();
        let place = value(&component.join("slot")).map_or(name, |slot| format!("slot {slot}"));
        let enclosure = component.parent().and_then(|e| e.file_name()).map(|e| e.to_string_lossy().into_owned());
        return Some(enclosure.map_or(place.clone(), |enclosure| format!("enclosure {enclosure} {place}")));
    }
    let device = std::fs::canonicalize(dir.join("device")).ok()?;
    device.ancestors().find_map(|folder| {
        let name = folder.file_name()?.to_str()?;
        if name.starts_with("end_device-") {
            let bay = value(&folder.join("sas_device").join(name).join("bay_identifier"))?;
            return Some(format!("bay {bay}"));
        }
        let number = name.strip_prefix("ata")?;
        let number: u32 = number.parse().ok()?;
        let port = value(&folder.join("ata_port").join(name).join("port_no")).unwrap_or_else(|| number.to_string());
        Some(format!("SATA port {port}"))
    })
}

/// NVMe: `device/serial`; virtio: `serial`; SCSI and SATA: page 0x80 of the vital product data.
fn serial(dir: &Path) -> Option<Serial> {
    let text = value(&dir.join("serial")).or_else(|| value(&dir.join("device/serial")));
    text.and_then(|t| Serial::parse(&t))
        .or_else(|| unit_serial_number(&std::fs::read(dir.join("device/vpd_pg80")).ok()?))
}

/// SPC-4 section 7.8.16: device type, page code 0x80, length (big endian), then the serial number.
fn unit_serial_number(page: &[u8]) -> Option<Serial> {
    let [_, 0x80, high, low, rest @ ..] = page else { return None };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let text = String::from_utf8_lossy(rest.get(..length).unwrap_or(rest)).into_owned();
    Serial::parse(text.trim_matches('\0'))
}

/// World wide names only, in lower case: `t10.` and `nvme.` ids are made of model and serial, which are told already.
fn normalise_wwn(text: &str) -> Option<String> {
    let text = text.trim().to_ascii_lowercase();
    let (kind, id) = text.split_once('.')?;
    let known = matches!(kind, "naa" | "eui" | "uuid");
    let says_something = id.chars().any(|c| c.is_ascii_hexdigit() && c != '0') && !id.contains(char::is_whitespace);
    (known && says_something).then_some(text)
}

fn transport(dir: &Path, name: &str) -> &'static str {
    if name.starts_with("nvme") {
        return "nvme";
    }
    if name.starts_with("vd") {
        return "virtio";
    }
    if name.starts_with("mmcblk") {
        return "mmc";
    }
    let path = std::fs::canonicalize(dir.join("device")).map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
    let through = |part: &str| path.split('/').any(|p| p.starts_with(part) && p.len() > part.len());
    match () {
        _ if through("usb") => "usb",
        _ if through("ata") => "sata",
        _ if through("end_device-") => "sas",
        _ => "scsi",
    }
}

/// Who uses the disk or one of its partitions, in words: a mount, or a device built on it. The claim on the device is
/// what protects it; this is for the sentence.
pub fn in_use(sys: &Path, proc: &Path, disk: &str) -> Option<String> {
    let dir = sys.join("block").join(disk);
    let parts = names(&dir).unwrap_or_default().into_iter().filter(|n| dir.join(n).join("partition").exists());
    let mounts = std::fs::read_to_string(proc.join("self/mountinfo")).unwrap_or_default();
    let swaps = std::fs::read_to_string(proc.join("swaps")).unwrap_or_default();
    std::iter::once((dir.clone(), disk.to_owned())).chain(parts.map(|p| (dir.join(&p), p))).find_map(|(path, name)| {
        if let Some(holder) = names(&path.join("holders")).unwrap_or_default().first() {
            return Some(format!("{name} is part of {holder}"));
        }
        if swaps.lines().any(|l| l.split_whitespace().next() == Some(&format!("/dev/{name}"))) {
            return Some(format!("{name} is swap"));
        }
        // Fields 3 and 5 of a line: device number and mount point (proc_pid_mountinfo(5)).
        let number = value(&path.join("dev"))?;
        let mut mounted = mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>());
        let place = mounted.find(|f| f.get(2) == Some(&number.as_str()))?.get(4)?.to_string();
        Some(format!("{name} is mounted on {place}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// `path` under the root with `text` in it.
    fn put(root: &Path, path: &str, text: impl AsRef<[u8]>) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn disk_tree(root: &Path, name: &str, sectors: u64, rotational: u8) {
        put(root, &format!("block/{name}/size"), format!("{sectors}\n"));
        put(root, &format!("block/{name}/queue/rotational"), format!("{rotational}\n"));
        put(root, &format!("block/{name}/removable"), "0\n");
        put(root, &format!("block/{name}/ro"), "0\n");
    }

    #[test]
    fn nvme_virtio_sata_and_what_is_no_disk() {
        let root = tempfile::tempdir().unwrap();
        let sys = root.path();
        disk_tree(sys, "nvme0n1", 2048, 0);
        put(sys, "block/nvme0n1/wwid", "eui.00000000000000E0\n");
        put(sys, "block/nvme0n1/device/serial", "S4YNNE0N  \n");
        put(sys, "block/nvme0n1/device/model", "SAMSUNG MZQL2\n");
        put(sys, "block/nvme0n1/device/firmware_rev", "GDC5302Q\n");
        disk_tree(sys, "vda", 4096, 1);
        put(sys, "block/vda/serial", "DISK-1\n");
        disk_tree(sys, "sda", 8192, 1);
        let device = sys.join("devices/pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0");
        fs::create_dir_all(&device).unwrap();
        std::os::unix::fs::symlink(&device, sys.join("block/sda/device")).unwrap();
        put(sys, "block/sda/device/vpd_pg80", [&[0u8, 0x80, 0, 8][..], b" WD-123\0"].concat());
        put(sys, "block/sda/device/wwid", "t10.ATA     WDC WD40     WD-123\n");
        for other in ["loop0", "sr0", "dm-0", "zram0", "ram1", "md127"] {
            disk_tree(sys, other, 100, 0);
        }
        disk_tree(sys, "nvme1c1n1", 2048, 0);
        put(sys, "block/nvme1c1n1/hidden", "1\n");

        put(sys, "devices/pci0000:00/0000:00:1f.2/numa_node", "0\n");
        put(sys, "devices/pci0000:00/0000:00:1f.2/ata1/ata_port/ata1/port_no", "3\n");
        let disks = read(sys, &BTreeMap::new()).unwrap();
        assert_eq!(disks.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["nvme0n1", "sda", "vda"]);
        let [nvme, sata, virtio] = disks.as_slice() else { panic!() };
        assert_eq!(nvme.size_bytes, 1 << 20);
        assert_eq!(nvme.wwn.as_deref(), Some("eui.00000000000000e0"));
        assert_eq!((nvme.serial.as_ref().unwrap().as_str(), nvme.transport.as_str()), ("S4YNNE0N", "nvme"));
        assert_eq!(nvme.firmware.as_deref(), Some("GDC5302Q"));
        assert_eq!((sata.serial.as_ref().unwrap().as_str(), sata.transport.as_str()), ("WD-123", "sata"));
        assert_eq!((sata.wwn.as_deref(), sata.rotational), (None, true));
        assert_eq!((sata.slot.as_deref(), sata.controller.as_deref()), (Some("SATA port 3"), Some("0000:00:1f.2")));
        assert_eq!((sata.numa, virtio.slot.as_deref()), (Some(0), None));
        assert!(!virtio.rotational);
        assert_eq!((virtio.serial.as_ref().unwrap().as_str(), virtio.transport.as_str()), ("DISK-1", "virtio"));
    }

    #[test]
    fn places_of_sas_disks_and_of_nvme_with_several_paths() {
        let root = tempfile::tempdir().unwrap();
        let sys = root.path();
        let link = |from: &str, to: &str| {
            fs::create_dir_all(sys.join(from).parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(sys.join(to), sys.join(from)).unwrap();
        };
        let end = "devices/pci0000:17/0000:18:00.0/host0/port-0:0/end_device-0:0:3";
        put(sys, &format!("{end}/sas_device/end_device-0:0:3/bay_identifier"), "7\n");
        put(sys, &format!("{end}/target0:0:3/0:0:3:0/model"), "ST12000NM\n");
        disk_tree(sys, "sda", 8, 1);
        link("block/sda/device", &format!("{end}/target0:0:3/0:0:3:0"));
        disk_tree(sys, "sdb", 8, 1);
        put(sys, "devices/pci0000:17/0000:18:00.0/enclosure/0:0:24:0/Slot 07/slot", "7\n");
        let other = "devices/pci0000:17/0000:18:00.0/host0/target0:0:4/0:0:4:0";
        put(sys, &format!("{other}/model"), "ST12000NM\n");
        link("block/sdb/device", other);
        link(
            &format!("{other}/enclosure_device:Slot 07"),
            "devices/pci0000:17/0000:18:00.0/enclosure/0:0:24:0/Slot 07",
        );
        disk_tree(sys, "nvme0n1", 8, 0);
        put(sys, "devices/virtual/nvme-subsystem/nvme-subsys0/model", "MZQL2\n");
        put(sys, "devices/pci0000:3a/0000:3b:00.0/nvme/nvme0/serial", "S1\n");
        link("devices/virtual/nvme-subsystem/nvme-subsys0/nvme0", "devices/pci0000:3a/0000:3b:00.0/nvme/nvme0");
        link("block/nvme0n1/device", "devices/virtual/nvme-subsystem/nvme-subsys0");

        let slots = BTreeMap::from([("0000:3b:00.0".to_owned(), "PCIe Slot 4".to_owned())]);
        let disks = read(sys, &slots).unwrap();
        let [nvme, sda, sdb] = disks.as_slice() else { panic!("{disks:?}") };
        assert_eq!((nvme.slot.as_deref(), nvme.controller.as_deref()), (Some("PCIe Slot 4"), Some("0000:3b:00.0")));
        assert_eq!((sda.slot.as_deref(), sda.transport.as_str()), (Some("bay 7"), "sas"));
        assert_eq!(sdb.slot.as_deref(), Some("enclosure 0:0:24:0 slot 7"));
    }

    #[test]
    fn names_that_say_nothing_are_no_names() {
        assert_eq!(normalise_wwn("naa.5000C500A1B2C3D4").as_deref(), Some("naa.5000c500a1b2c3d4"));
        for text in ["", "eui.0000000000000000", "t10.ATA disk", "nvme.1af4-31-51-00000001", "naa"] {
            assert_eq!(normalise_wwn(text), None, "{text}");
        }
        assert_eq!(unit_serial_number(&[0, 0x80, 0, 200, b'A', b'B', b'1']).unwrap().as_str(), "AB1");
        assert_eq!(unit_serial_number(&[0, 0x83, 0, 1, b'A']), None);
        assert_eq!(unit_serial_number(&[0, 0x80]), None);
    }

    #[test]
    fn users_of_a_disk_are_named() {
        let root = tempfile::tempdir().unwrap();
        let (sys, proc) = (root.path().join("sys"), root.path().join("proc"));
        put(&sys, "block/sda/dev", "8:0\n");
        put(&sys, "block/sda/sda1/partition", "1\n");
        put(&sys, "block/sda/sda1/dev", "8:1\n");
        put(&proc, "self/mountinfo", "36 35 98:0 / /other rw - ext4 /dev/x rw\n");
        assert_eq!(in_use(&sys, &proc, "sda"), None);
        put(&proc, "self/mountinfo", "36 35 8:1 / /srv rw,noatime - ext4 /dev/sda1 rw\n");
        assert_eq!(in_use(&sys, &proc, "sda").as_deref(), Some("sda1 is mounted on /srv"));
        put(&sys, "block/sda/holders/md0", "");
        assert_eq!(in_use(&sys, &proc, "sda").as_deref(), Some("sda is part of md0"));
    }
}
