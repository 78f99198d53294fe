//! What is not in a machine any more, or is another one, between two inventories: at delivery and when it comes back.
//!
//! Parts are recognised by what cannot change: a DIMM by its serial number and slot, a disk by its serial number or world wide
//! name, a network port by its MAC address. What neither inventory names is not compared, so that a newer agent, which sees
//! more, does not find a machine full of new parts.

use std::collections::{BTreeMap, BTreeSet};

use crate::machine::{Dimm, Disk, Finding, Inventory, Nic, Severity, Who};

/// `since` as part of a sentence: `delivery`.
pub fn judge(old: &Inventory, new: &Inventory, since: &str) -> Vec<Finding> {
    let mut told = Told { since, findings: Vec::new() };
    system(old, new, &mut told);
    processors(old, new, &mut told);
    memory(&old.memory.dimms, &new.memory.dimms, &mut told);
    disks(&old.disks, &new.disks, &mut told);
    ports(&old.nics, &new.nics, &mut told);
    devices(old, new, &mut told);
    told.findings
}

struct Told<'a> {
    since: &'a str,
    findings: Vec<Finding>,
}

impl Told<'_> {
    fn put(&mut self, id: &str, part: String, severity: Severity, cause: String, expected: String, found: String) {
        let (who, next) = match severity {
            Severity::Note => (Who::Operator, "nothing, where this was meant to change"),
            _ => (Who::Racker, "look into the machine, and ask whoever had it"),
        };
        let id = format!("changed.{id}");
        self.findings.push(Finding { id, part, severity, cause, expected, found, who, next: next.into() });
    }

    fn missing(&mut self, id: &str, part: String, what: String) {
        let cause = format!("missing since {}: {what}", self.since);
        self.put(id, part, Severity::Warning, cause, what, "nothing".into());
    }

    fn appeared(&mut self, id: &str, part: String, what: String) {
        let cause = format!("new since {}: {what}", self.since);
        self.put(id, part, Severity::Note, cause, "nothing".into(), what);
    }

    fn other(&mut self, id: &str, part: String, was: String, is: String) {
        let cause = format!("changed since {}: {was} before, {is} now", self.since);
        self.put(id, part, Severity::Warning, cause, was, is);
    }

    /// Only where both are known.
    fn version(&mut self, part: &str, was: Option<&str>, is: Option<&str>) {
        if let (Some(was), Some(is)) = (was, is)
            && was != is
        {
            let cause = format!("firmware changed since {}: {was} before, {is} now", self.since);
            self.put("firmware", part.into(), Severity::Note, cause, was.into(), is.into());
        }
    }
}

fn system(old: &Inventory, new: &Inventory, told: &mut Told<'_>) {
    let serials = [
        ("system", &old.system.serial, &new.system.serial),
        ("main board", &old.board.serial, &new.board.serial),
        ("chassis", &old.chassis.serial, &new.chassis.serial),
    ];
    for (part, was, is) in serials {
        if let (Some(was), Some(is)) = (was, is)
            && was != is
        {
            told.other("identity", part.into(), format!("serial {was}"), format!("serial {is}"));
        }
    }
    told.version("BIOS", old.system.bios_version.as_deref(), new.system.bios_version.as_deref());
    let bmc = |i: &Inventory| i.bmc.as_ref().and_then(|bmc| bmc.firmware.clone());
    told.version("BMC", bmc(old).as_deref(), bmc(new).as_deref());
}

fn processors(old: &Inventory, new: &Inventory, told: &mut Told<'_>) {
    let now: BTreeMap<&str, _> = new.cpus.iter().map(|cpu| (cpu.socket.as_str(), cpu)).collect();
    let before: BTreeSet<&str> = old.cpus.iter().map(|cpu| cpu.socket.as_str()).collect();
    for was in &old.cpus {
        let part = format!("CPU {}", was.socket);
        match now.get(was.socket.as_str()) {
            None => told.missing("cpu", part, was.model.clone()),
            Some(is) if is.model != was.model => told.other("cpu", part, was.model.clone(), is.model.clone()),
            Some(is) => told.version(&format!("{part} microcode"), was.microcode.as_deref(), is.microcode.as_deref()),
        }
    }
    for is in new.cpus.iter().filter(|cpu| !before.contains(cpu.socket.as_str())) {
        told.appeared("cpu", format!("CPU {}", is.socket), is.model.clone());
    }
}

fn memory(old: &[Dimm], new: &[Dimm], told: &mut Told<'_>) {
    let slots = |dimms: &[Dimm]| dimms.iter().map(|d| (d.slot.clone(), d.clone())).collect::<BTreeMap<_, _>>();
    let (before, now) = (slots(old), slots(new));
    let place = |dimms: &[Dimm], dimm: &Dimm| {
        let serial = dimm.serial.as_ref()?;
        dimms.iter().find(|d| d.serial.as_ref() == Some(serial)).map(|d| d.slot.clone())
    };
    for (slot, was) in &before {
        let part = format!("DIMM {slot}");
        let moved = place(new, was).filter(|to| to != slot);
        match (now.get(slot), moved) {
            (Some(is), _) if same_dimm(was, is) => {}
            (_, Some(to)) => {
                let cause = format!("moved to slot {to} since {}", told.since);
                let (was, is) = (format!("{} in {slot}", dimm(was)), format!("in {to}"));
                told.put("memory", part, Severity::Note, cause, was, is);
            }
            (Some(is), None) => told.other("memory", part, dimm(was), dimm(is)),
            (None, None) => told.missing("memory", part, dimm(was)),
        }
    }
    for (slot, is) in now.iter().filter(|(slot, is)| !before.contains_key(*slot) && place(old, is).is_none()) {
        told.appeared("memory", format!("DIMM {slot}"), dimm(is));
    }
}

/// By serial number where both have one, else by what is printed on it.
fn same_dimm(a: &Dimm, b: &Dimm) -> bool {
    let known = a.serial.is_none() || b.serial.is_none() || a.serial == b.serial;
    known && a.size_bytes == b.size_bytes && (a.part.is_none() || b.part.is_none() || a.part == b.part)
}

fn dimm(d: &Dimm) -> String {
    let part = d.part.as_ref().map_or(String::new(), |part| format!(" {part}"));
    format!("{} GiB{part}, {}", d.size_bytes >> 30, serial(d.serial.as_ref()))
}

fn serial(serial: Option<&crate::machine::Serial>) -> String {
    serial.map_or("no serial".into(), |serial| format!("serial {serial}"))
}

fn same_disk(a: &Disk, b: &Disk) -> bool {
    match (&a.serial, &b.serial, &a.wwn, &b.wwn) {
        (Some(a), Some(b), _, _) => a == b,
        (_, _, Some(a), Some(b)) => a == b,
        _ => a.name == b.name && a.size_bytes == b.size_bytes,
    }
}

fn disk(d: &Disk) -> String {
    let model = d.model.as_deref().unwrap_or("unknown model");
    format!("{model}, {} GB, {}", d.size_bytes / 1_000_000_000, serial(d.serial.as_ref()))
}

/// Where it is plugged in; the kernel's name, where nothing says.
fn bay(d: &Disk) -> String {
    d.slot.clone().unwrap_or_else(|| d.name.clone())
}

fn disks(old: &[Disk], new: &[Disk], told: &mut Told<'_>) {
    let fixed = |d: &&Disk| !d.removable;
    let (old, new): (Vec<&Disk>, Vec<&Disk>) = (old.iter().filter(fixed).collect(), new.iter().filter(fixed).collect());
    let mut added: Vec<&Disk> = new.iter().copied().filter(|is| !old.iter().any(|was| same_disk(was, is))).collect();
    for was in old {
        match new.iter().find(|is| same_disk(was, is)) {
            Some(is) if is.size_bytes != was.size_bytes => {
                told.other("disk", format!("disk {}", bay(was)), disk(was), disk(is));
            }
            Some(is) => {
                let name = format!("disk {}, {}", bay(was), serial(was.serial.as_ref()));
                told.version(&name, was.firmware.as_deref(), is.firmware.as_deref());
            }
            // Another one in the same bay.
            None => match added.iter().position(|is| bay(is) == bay(was)) {
                Some(at) => {
                    let is = added.remove(at);
                    told.other("disk", format!("disk {}", bay(was)), disk(was), disk(is));
                }
                None => told.missing("disk", format!("disk {}", bay(was)), disk(was)),
            },
        }
    }
    for is in added {
        told.appeared("disk", format!("disk {}", bay(is)), disk(is));
    }
}

fn ports(old: &[Nic], new: &[Nic], told: &mut Told<'_>) {
    let what = |nic: &Nic| format!("{}, driver {}", nic.mac, nic.driver.as_deref().unwrap_or("unknown"));
    for was in old {
        match new.iter().find(|is| is.mac == was.mac) {
            Some(is) => {
                told.version(&format!("NIC {}", was.name), was.firmware.as_deref(), is.firmware.as_deref());
            }
            None => told.missing("nic", format!("NIC {}", was.name), what(was)),
        }
    }
    for is in new.iter().filter(|is| !old.iter().any(|was| was.mac == is.mac)) {
        told.appeared("nic", format!("NIC {}", is.name), what(is));
    }
}

/// Display and 3D controllers and accelerators (PCI Code and ID Assignment 1.11, base classes 03h and 12h), counted by kind:
/// addresses change with the slots in use.
fn devices(old: &Inventory, new: &Inventory, told: &mut Told<'_>) {
    if old.pci.is_empty() || new.pci.is_empty() {
        return;
    }
    let count = |inventory: &Inventory| {
        let mut kinds: BTreeMap<String, (usize, String)> = BTreeMap::new();
        for device in inventory.pci.iter().filter(|d| matches!(d.class >> 8, 0x03 | 0x12)) {
            let name = device.name.clone().unwrap_or_else(|| device.id.clone());
            kinds.entry(device.id.clone()).or_insert((0, name)).0 += 1;
        }
        kinds
    };
    let (before, now) = (count(old), count(new));
    for (id, (was, name)) in &before {
        let is = now.get(id).map_or(0, |(is, _)| *is);
        if is < *was {
            told.missing("device", name.clone(), format!("{} of {was}", was - is));
        }
    }
    for (id, (is, name)) in &now {
        let was = before.get(id).map_or(0, |(was, _)| *was);
        if was < *is {
            told.appeared("device", name.clone(), format!("{} more", is - was));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{MacAddr, Serial};

    fn dimm(slot: &str, serial: &str) -> Dimm {
        Dimm {
            slot: slot.into(),
            size_bytes: 32 << 30,
            part: Some("M393A4K40DB3".into()),
            serial: Serial::parse(serial),
            ..Dimm::default()
        }
    }

    fn disk(name: &str, serial: &str) -> Disk {
        Disk {
            name: name.into(),
            model: Some("PM883".into()),
            serial: Serial::parse(serial),
            size_bytes: 480_000_000_000,
            firmware: Some("HXT7".into()),
            ..Disk::default()
        }
    }

    fn nic(last: u8) -> Nic {
        Nic {
            name: format!("eth{last}"),
            mac: MacAddr([2, 0, 0, 0, 0, last]),
            driver: Some("ixgbe".into()),
            pci: None,
            firmware: Some("0x1".into()),
            link: true,
            speed_mbps: None,
            boot: false,
            max_mbps: None,
            queues: None,
            max_queues: None,
            numa: None,
            neighbour: None,
        }
    }

    fn delivered() -> Inventory {
        let mut inventory = Inventory { kernel: "6.1".into(), ..Inventory::default() };
        inventory.system.bios_version = Some("2.1".into());
        inventory.memory.dimms = vec![dimm("A1", "DD01"), dimm("A2", "DD02"), dimm("B1", "DD03")];
        inventory.disks = vec![disk("sda", "S4Y1"), disk("sdb", "S4Y2")];
        inventory.nics = vec![nic(1), nic(2)];
        inventory
    }

    fn causes(new: &Inventory) -> Vec<String> {
        judge(&delivered(), new, "delivery").iter().map(|f| format!("{} {f}", f.severity)).collect()
    }

    #[test]
    fn the_same_machine_has_not_changed() {
        let mut same = delivered();
        // The kernel names disks in the order it finds them.
        same.disks.reverse();
        same.disks[0].name = "sda".into();
        same.disks[1].name = "sdb".into();
        same.memory.usable_bytes = 1;
        same.nics[0].link = false;
        assert_eq!(causes(&same), [""; 0]);
    }

    #[test]
    fn what_was_exchanged_taken_out_or_put_in_is_named() {
        let mut new = delivered();
        new.memory.dimms[1] = dimm("A2", "DD99");
        new.memory.dimms.remove(2);
        new.disks[0] = disk("sda", "S4Y9");
        new.disks.remove(1);
        new.nics[1] = nic(7);
        new.system.bios_version = Some("2.2".into());
        assert_eq!(
            causes(&new),
            [
                "note BIOS: firmware changed since delivery: 2.1 before, 2.2 now",
                "warning DIMM A2: changed since delivery: 32 GiB M393A4K40DB3, serial DD02 before, 32 GiB M393A4K40DB3, \
                 serial DD99 now",
                "warning DIMM B1: missing since delivery: 32 GiB M393A4K40DB3, serial DD03",
                "warning disk sda: changed since delivery: PM883, 480 GB, serial S4Y1 before, PM883, 480 GB, serial S4Y9 now",
                "warning disk sdb: missing since delivery: PM883, 480 GB, serial S4Y2",
                "warning NIC eth2: missing since delivery: 02:00:00:00:00:02, driver ixgbe",
                "note NIC eth7: new since delivery: 02:00:00:00:00:07, driver ixgbe",
            ]
        );
    }

    #[test]
    fn a_dimm_that_moved_is_neither_missing_nor_new() {
        let mut new = delivered();
        new.memory.dimms[2].slot = "B2".into();
        assert_eq!(causes(&new), ["note DIMM B1: moved to slot B2 since delivery"]);
    }

    #[test]
    fn what_an_older_agent_did_not_see_is_not_new() {
        let mut old = delivered();
        old.memory.dimms[0].serial = None;
        old.disks[0].firmware = None;
        old.system.bios_version = None;
        let mut new = delivered();
        new.pci = vec![crate::machine::PciDevice {
            address: "0000:3b:00.0".into(),
            slot: None,
            id: "10de:20b0".into(),
            class: 0x0302,
            name: Some("A100".into()),
            ..Default::default()
        }];
        assert_eq!(judge(&old, &new, "delivery"), []);
        let gone =
            Inventory { pci: vec![crate::machine::PciDevice { class: 0x0106, ..new.pci[0].clone() }], ..delivered() };
        let found = judge(&new, &gone, "delivery");
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), ["A100: missing since delivery: 1 of 1"]);
    }
}
