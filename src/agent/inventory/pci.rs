//! Functions of PCI devices from `/sys/bus/pci/devices`, without bridges and without virtual functions, which are made by
//! software. Names are those of the PCI ID repository.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{names, value};
use crate::machine::{PciDevice, PciLink};

/// Base class of bridges, ports and switches (PCI Code and ID Assignment, section 1.7).
const BRIDGE: u16 = 0x06;

/// `slots`: what firmware calls a place, by PCI address.
pub fn read(sys: &Path, slots: &BTreeMap<String, String>) -> Vec<PciDevice> {
    let bus = sys.join("bus/pci/devices");
    let read = |address: &String| device(&fs::canonicalize(bus.join(address)).ok()?, address, slots);
    names(&bus).unwrap_or_default().iter().filter_map(read).collect()
}

/// `folder` in the tree of devices, where the parent is the port above.
fn device(folder: &Path, address: &str, slots: &BTreeMap<String, String>) -> Option<PciDevice> {
    let hex = |file: &str| u32::from_str_radix(value(&folder.join(file))?.trim_start_matches("0x"), 16).ok();
    // Three bytes: class, subclass, programming interface.
    let class = (hex("class")? >> 8) as u16;
    if class >> 8 == BRIDGE || folder.join("physfn").exists() {
        return None;
    }
    let id = |file: &str| hex(file).and_then(|id| u16::try_from(id).ok());
    let (vendor, product) = (id("vendor")?, id("device")?);
    let link = link(folder, "current");
    Some(PciDevice {
        address: address.to_owned(),
        id: format!("{vendor:04x}:{product:04x}"),
        class,
        name: pci_ids::Device::from_vid_pid(vendor, product).map(|d| format!("{} {}", d.vendor().name(), d.name())),
        driver: fs::read_link(folder.join("driver")).ok().and_then(|d| Some(d.file_name()?.to_str()?.to_owned())),
        slot: slot(folder, address, slots),
        numa: numa(folder),
        link,
        capable: link.and_then(|_| capable(folder)),
    })
}

/// What firmware says of it, or of the first function of its card; else the number of its slot.
pub fn slot(folder: &Path, address: &str, slots: &BTreeMap<String, String>) -> Option<String> {
    let card = address.rsplit_once('.').map(|(card, _)| format!("{card}.0"));
    let named = slots.get(address).or_else(|| slots.get(card.as_ref()?)).cloned();
    named.or_else(|| value(&folder.join("label"))).or_else(|| {
        // `slots/4/address` is `0000:af:00`.
        let folder = folder.ancestors().find(|f| f.ends_with("devices"))?.parent()?.join("bus/pci/slots");
        let number = names(&folder).ok()?.into_iter().find(|slot| {
            value(&folder.join(slot).join("address")).is_some_and(|card| address.strip_prefix(&card).is_some())
        })?;
        Some(format!("slot {number}"))
    })
}

/// The kernel writes -1 where there is but one node.
pub fn numa(folder: &Path) -> Option<u16> {
    value(&folder.join("numa_node"))?.parse().ok()
}

/// The lesser of what the device and the port above it can. A port that does not tell (it is in the root complex) limits
/// nothing.
fn capable(folder: &Path) -> Option<PciLink> {
    let own = link(folder, "max")?;
    let Some(port) = folder.parent().and_then(|port| link(port, "max")) else { return Some(own) };
    Some(PciLink { gts: own.gts.min(port.gts), lanes: own.lanes.min(port.lanes) })
}

/// `current` or `max`. Without a link, and in devices of the root complex, the width is 0 and the speed `Unknown`.
fn link(folder: &Path, which: &str) -> Option<PciLink> {
    let speed = value(&folder.join(format!("{which}_link_speed")))?;
    let lanes: u8 = value(&folder.join(format!("{which}_link_width")))?.parse().ok()?;
    // `8.0 GT/s PCIe`; before Linux 5.9 `8 GT/s`.
    let gts: f32 = speed.split_whitespace().next()?.parse().ok()?;
    (gts.is_finite() && gts > 0.0 && (1..=32).contains(&lanes)).then_some(PciLink { gts, lanes })
}

/// The folder of the PCI function that a device belongs to, and its address: `…/0000:3b:00.0`.
pub fn function_of(device: &Path) -> Option<(PathBuf, String)> {
    device.ancestors().find_map(|folder| Some((folder.to_owned(), address(folder.file_name()?.to_str()?)?)))
}

/// `0000:3b:00.1`: domain, bus, device, function. Behind VMD the domain has five digits.
fn address(text: &str) -> Option<String> {
    let (domain, rest) = text.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let hex = |s: &str, len: usize| s.len() == len && s.bytes().all(|b| b.is_ascii_hexdigit());
    let domain = hex(domain, 4) || hex(domain, 5);
    (domain && hex(bus, 2) && hex(device, 2) && hex(function, 1)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A function under `parent` with files, found through the bus.
    fn put(sys: &Path, path: &str, files: &[(&str, &str)]) {
        let folder = sys.join("devices").join(path);
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir_all(sys.join("bus/pci/devices")).unwrap();
        files.iter().for_each(|(name, text)| fs::write(folder.join(name), format!("{text}\n")).unwrap());
        symlink(&folder, sys.join("bus/pci/devices").join(folder.file_name().unwrap())).unwrap();
    }

    fn links(
        current: (&'static str, &'static str),
        max: (&'static str, &'static str),
    ) -> [(&'static str, &'static str); 4] {
        [
            ("current_link_speed", current.0),
            ("current_link_width", current.1),
            ("max_link_speed", max.0),
            ("max_link_width", max.1),
        ]
    }

    #[test]
    fn devices_with_their_names_slots_and_links() {
        let root = tempfile::tempdir().unwrap();
        let sys = root.path();
        let bridge = [("class", "0x060400"), ("vendor", "0x8086"), ("device", "0x2030")];
        put(
            sys,
            "pci0000:3a/0000:3a:00.0",
            &[&bridge[..], &links(("8.0 GT/s PCIe", "8"), ("8.0 GT/s PCIe", "8"))].concat(),
        );
        let card = [("class", "0x020000"), ("vendor", "0x15b3"), ("device", "0x1017"), ("numa_node", "1")];
        let wide = links(("8.0 GT/s PCIe", "4"), ("16.0 GT/s PCIe", "16"));
        put(sys, "pci0000:3a/0000:3a:00.0/0000:3b:00.0", &[&card[..], &wide].concat());
        put(sys, "pci0000:3a/0000:3a:00.0/0000:3b:00.1", &card);
        put(sys, "pci0000:3a/0000:3a:00.0/0000:3b:00.2", &[&card[..], &[("physfn", "")]].concat());
        let inside = [("class", "0x010802"), ("vendor", "0x1b36"), ("device", "0x0010"), ("numa_node", "-1")];
        put(sys, "pci0000:00/0000:00:03.0", &[&inside[..], &links(("Unknown", "0"), ("Unknown", "0"))].concat());

        let slots = BTreeMap::from([("0000:3b:00.0".to_owned(), "PCIe Slot 4".to_owned())]);
        let devices = read(sys, &slots);
        let seen: Vec<_> = devices.iter().map(|d| (d.address.as_str(), d.id.as_str(), d.class, d.numa)).collect();
        assert_eq!(
            seen,
            [
                ("0000:00:03.0", "1b36:0010", 0x0108, None),
                ("0000:3b:00.0", "15b3:1017", 0x0200, Some(1)),
                ("0000:3b:00.1", "15b3:1017", 0x0200, Some(1)),
            ]
        );
        let [nvme, first, second] = devices.as_slice() else { panic!() };
        assert_eq!((nvme.link, nvme.capable), (None, None));
        assert_eq!(first.link, Some(PciLink { gts: 8.0, lanes: 4 }));
        // The card could do 16 lanes, its slot has 8.
        assert_eq!(first.capable, Some(PciLink { gts: 8.0, lanes: 8 }));
        assert_eq!(second.slot.as_deref(), Some("PCIe Slot 4"));
        let name = first.name.as_deref().unwrap();
        assert!(name.starts_with("Mellanox") && name.contains("ConnectX-5"), "{name}");
    }

    #[test]
    fn addresses_and_nothing_else() {
        let of = |path: &str| function_of(Path::new(path)).map(|(_, address)| address);
        assert_eq!(of("/sys/devices/pci0000:3a/0000:3a:00.0/0000:3b:00.1/net/eth0").as_deref(), Some("0000:3b:00.1"));
        assert_eq!(of("/sys/devices/pci10000:00/10000:01:00.0/nvme/nvme0").as_deref(), Some("10000:01:00.0"));
        for text in ["/sys/virtio0", "/pci0000:00", "/0000:3b:00", "/0000:3g:00.1"] {
            assert_eq!(of(text), None, "{text}");
        }
    }
}
