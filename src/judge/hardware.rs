//! What is wrong with a part whatever the machine is meant to be: a drive that says that it fails, a link far below what both
//! ends can, memory errors, a kernel that complains about the hardware.

use crate::machine::{Disk, Finding, Inventory, Nic, PciDevice, Severity, Who};

/// Below it a cable is damaged, or a port is set by hand: Mb/s.
const SLOW_LINK: u32 = 1000;
/// Share of the rated endurance at which a drive is not built into a host again, in percent.
const WORN_OUT: u16 = 100;
const WORN: u16 = 80;

pub fn judge(inventory: &Inventory) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    inventory.disks.iter().for_each(|disk| judge_disk(disk, &mut findings));
    findings.extend(inventory.nics.iter().filter_map(slow_link));
    findings.extend(inventory.pci.iter().filter_map(narrow));
    findings.extend(memory_errors(inventory));
    findings.extend(inventory.concerns.iter().map(|concern| Finding {
        id: format!("kernel.{}", concern.kind),
        part: "kernel log".into(),
        severity: Severity::Warning,
        cause: format!("the kernel complains about the hardware ({}): {}", concern.kind, concern.message),
        expected: "no such message".into(),
        found: format!("{} of them", concern.count),
        who: Who::Operator,
        next: "read the kernel's messages on its console; exchange the part that they name".into(),
    }));
    findings
}

fn name(disk: &Disk) -> String {
    let slot = disk.slot.as_ref().map_or(String::new(), |slot| format!(" in {slot}"));
    match &disk.serial {
        Some(serial) => format!("disk {}{slot}, serial {serial}", disk.name),
        None => format!("disk {}{slot}", disk.name),
    }
}

fn judge_disk(disk: &Disk, findings: &mut Vec<Finding>) {
    let Some(health) = &disk.health else { return };
    let mut told = |id: &str, severity, cause: String, expected: &str, found: String| {
        findings.push(Finding {
            id: id.into(),
            part: name(disk),
            severity,
            cause,
            expected: expected.into(),
            found,
            who: Who::Supplier,
            next: "exchange the drive".into(),
        });
    };
    if health.passed == Some(false) || !health.warnings.is_empty() {
        let words = if health.warnings.is_empty() { "SMART failed".into() } else { health.warnings.join(", ") };
        told("disk.health", Severity::Fault, format!("the drive says that it fails: {words}"), "passed", words.clone());
    }
    if let Some(sectors @ 1..) = health.pending_sectors {
        let found = format!("{sectors} pending sectors");
        told("disk.pending", Severity::Fault, format!("it has {found}: it cannot read them"), "none", found.clone());
    }
    match health.wear_percent {
        Some(wear @ WORN_OUT..) => told(
            "disk.wear",
            Severity::Fault,
            format!("its rated endurance is used up: {wear} %"),
            "below 100 %",
            format!("{wear} %"),
        ),
        Some(wear @ WORN..) => told(
            "disk.wear",
            Severity::Warning,
            format!("{wear} % of its rated endurance is used"),
            "below 80 %",
            format!("{wear} %"),
        ),
        _ => {}
    }
}

fn slow_link(nic: &Nic) -> Option<Finding> {
    let speed = nic.speed_mbps.filter(|speed| nic.link && *speed < SLOW_LINK)?;
    if nic.max_mbps.is_some_and(|max| max <= speed) {
        return None;
    }
    Some(Finding {
        id: "nic.slow".into(),
        part: format!("NIC {}", nic.name),
        severity: Severity::Fault,
        cause: format!("its link runs at {speed} Mb/s: a damaged cable, or a port set to that speed"),
        expected: nic.max_mbps.map_or_else(|| format!("{SLOW_LINK} Mb/s or more"), |max| format!("{max} Mb/s")),
        found: format!("{speed} Mb/s"),
        who: Who::Racker,
        next: "exchange the cable; if that does not help, look at the port of the switch".into(),
    })
}

/// A card that is not fully in its slot, or a riser with a bad contact, trains to fewer lanes.
fn narrow(device: &PciDevice) -> Option<Finding> {
    let (link, capable) = (device.link?, device.capable?);
    if link.lanes >= capable.lanes {
        return None;
    }
    Some(Finding {
        id: "pci.width".into(),
        part: format!("PCI device {}", device.name.as_deref().unwrap_or(&device.address)),
        severity: Severity::Warning,
        cause: format!("it has {} of {} lanes: not fully in its slot, or a slot with fewer", link.lanes, capable.lanes),
        expected: format!("x{}", capable.lanes),
        found: format!("x{}", link.lanes),
        who: Who::Racker,
        next: format!("look at the card at {}: seat it again, or compare the slot's width", device.address),
    })
}

fn memory_errors(inventory: &Inventory) -> Option<Finding> {
    let memory = &inventory.memory;
    let (severity, count, what) = match (memory.uncorrected_errors, memory.corrected_errors) {
        (Some(count @ 1..), _) => (Severity::Fault, count, "uncorrectable"),
        (_, Some(count @ 1..)) => (Severity::Warning, count, "corrected"),
        _ => return None,
    };
    Some(Finding {
        id: "memory.errors".into(),
        part: "memory".into(),
        severity,
        cause: format!("{count} {what} memory errors since it was started"),
        expected: "none".into(),
        found: count.to_string(),
        who: Who::Racker,
        next: "the BMC's log names the DIMM; seat it again, then exchange it".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{DiskHealth, MacAddr, PciLink, Serial};

    fn nic(speed: u32, max: Option<u32>) -> Nic {
        Nic {
            name: "eno2".into(),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            driver: None,
            pci: None,
            firmware: None,
            link: true,
            speed_mbps: Some(speed),
            boot: false,
            max_mbps: max,
            queues: None,
            max_queues: None,
            numa: None,
            neighbour: None,
        }
    }

    fn found(health: DiskHealth) -> Vec<String> {
        let disk = Disk { name: "sdd".into(), serial: Serial::parse("S4YN"), health: Some(health), ..Disk::default() };
        let mut findings = Vec::new();
        judge_disk(&disk, &mut findings);
        findings.iter().map(|f| format!("{} {f}", f.severity)).collect()
    }

    #[test]
    fn a_drive_that_fails_is_named_with_its_reason() {
        assert!(found(DiskHealth { passed: Some(true), wear_percent: Some(3), ..DiskHealth::default() }).is_empty());
        assert_eq!(
            found(DiskHealth { passed: Some(false), pending_sectors: Some(14), ..DiskHealth::default() }),
            [
                "fault disk sdd, serial S4YN: the drive says that it fails: SMART failed",
                "fault disk sdd, serial S4YN: it has 14 pending sectors: it cannot read them"
            ]
        );
        assert_eq!(
            found(DiskHealth { wear_percent: Some(85), ..DiskHealth::default() }),
            ["warning disk sdd, serial S4YN: 85 % of its rated endurance is used"]
        );
    }

    #[test]
    fn a_link_is_slow_where_it_could_be_faster() {
        assert_eq!(slow_link(&nic(100, Some(10_000))).unwrap().expected, "10000 Mb/s");
        assert!(slow_link(&nic(100, None)).is_some());
        assert!(slow_link(&nic(100, Some(100))).is_none());
        assert!(slow_link(&nic(1000, Some(10_000))).is_none());
    }

    #[test]
    fn a_card_with_fewer_lanes_than_it_could_have() {
        let device = |lanes| PciDevice {
            address: "0000:3b:00.0".into(),
            id: "15b3:1017".into(),
            class: 0x0200,
            link: Some(PciLink { gts: 8.0, lanes }),
            capable: Some(PciLink { gts: 8.0, lanes: 16 }),
            ..PciDevice::default()
        };
        assert_eq!(narrow(&device(8)).unwrap().found, "x8");
        assert!(narrow(&device(16)).is_none());
    }
}
