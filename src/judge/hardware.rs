//! What is wrong with a part whatever the machine is meant to be: a drive that says that it fails, a link far below what both
//! ends can, memory errors, a kernel that complains about the hardware.
//!
//! A fault is what no host is handed on with. A warning is looked at; the machine may be used. A note tells what was not
//! looked at, or what nobody has to mend.

use crate::machine::{
    Concern, Disk, DiskHealth, Finding, Inventory, Memory, MemoryErrors, Nic, PciDevice, Severity, Who,
};

/// Below it a cable is damaged, or a port is set by hand: Mb/s.
const SLOW_LINK: u32 = 1000;
/// Share of the rated endurance at which a drive is not built into a host again, in percent.
const WORN_OUT: u16 = 100;
const WORN: u16 = 80;
/// A disk that turns has spare sectors for a few defects of its making; beyond, it is on its way out.
const REALLOCATED_FAULT: u64 = 100;
/// Counted since the drive was made and never reset: one or two are from a day when somebody pulled it.
const CRC_ERRORS: u64 = 10;
/// Highest operating temperature that makers name for disks that turn, and for others, in degrees Celsius.
const HOT_DISK: i16 = 60;
const HOT_SSD: i16 = 70;
/// Memory that the kernel and its tables keep for themselves, in percent of all.
const KERNEL_SHARE: u64 = 4;

pub fn judge(inventory: &Inventory) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for disk in &inventory.disks {
        findings.extend(disk.health.iter().flat_map(|health| drive(disk, health)));
    }
    findings.extend(inventory.nics.iter().filter_map(slow_link));
    findings.extend(inventory.pci.iter().filter_map(pci_link));
    findings.extend(memory_errors(&inventory.memory));
    findings.extend(memory_left_out(&inventory.memory));
    findings.extend(inventory.concerns.iter().map(complaint));
    findings.extend(inventory.gaps.iter().map(|gap| Finding {
        id: "inventory.gap".into(),
        part: "inventory".into(),
        severity: Severity::Note,
        cause: gap.clone(),
        expected: "an answer".into(),
        found: "none".into(),
        who: Who::Operator,
        next: "look at it by hand; where a tool is missing, add its package to images/agent/recipe.toml".into(),
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

fn drive(disk: &Disk, health: &DiskHealth) -> Vec<Finding> {
    use Severity::{Fault, Warning};
    let mut findings = Vec::new();
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
    // Heat is not the drive's fault, although it says so in the same place.
    let heat = |words: &&String| words.starts_with("temperature");
    let warnings: Vec<&str> = health.warnings.iter().filter(|w| !heat(w)).map(String::as_str).collect();
    if (health.passed == Some(false) && !health.warnings.iter().any(|w| heat(&w))) || !warnings.is_empty() {
        let words = if warnings.is_empty() { "SMART failed".into() } else { warnings.join(", ") };
        told("disk.health", Fault, format!("the drive says that it fails: {words}"), "passed", words.clone());
    }
    if let Some(sectors @ 1..) = health.pending_sectors {
        let found = format!("{sectors} pending sectors");
        told("disk.pending", Fault, format!("it has {found}: it cannot read them"), "none", found.clone());
    } else if let Some(errors @ 1..) = health.uncorrectable_errors {
        let cause = format!("it could not correct {errors} errors since it was made");
        told("disk.uncorrectable", Warning, cause, "none", errors.to_string());
    }
    if let Some(sectors @ 1..) = health.reallocated_sectors.filter(|_| disk.rotational) {
        let severity = if sectors >= REALLOCATED_FAULT { Fault } else { Warning };
        let cause = format!("it has replaced {sectors} sectors that went bad");
        told("disk.reallocated", severity, cause, "none", sectors.to_string());
    }
    match health.wear_percent {
        Some(wear @ WORN_OUT..) => {
            let cause = format!("its rated endurance is used up: {wear} %");
            told("disk.wear", Fault, cause, "below 100 %", format!("{wear} %"));
        }
        Some(wear @ WORN..) => {
            told(
                "disk.wear",
                Warning,
                format!("{wear} % of its rated endurance is used"),
                "below 80 %",
                format!("{wear} %"),
            );
        }
        _ => {}
    }
    if let Some(errors @ CRC_ERRORS..) = health.crc_errors {
        findings.push(Finding {
            id: "disk.crc".into(),
            part: name(disk),
            severity: Warning,
            cause: format!(
                "{errors} transfers arrived damaged since it was made: a cable or the backplane, not the drive"
            ),
            expected: format!("fewer than {CRC_ERRORS}"),
            found: errors.to_string(),
            who: Who::Racker,
            next: "seat drive and cable again; if it counts on, exchange the cable".into(),
        });
    }
    let limit = if disk.rotational { HOT_DISK } else { HOT_SSD };
    let hot = health.temperature_celsius.is_some_and(|t| t >= limit) || health.warnings.iter().any(|w| heat(&w));
    if hot {
        let found = health.temperature_celsius.map_or_else(|| "too hot".into(), |t| format!("{t} °C"));
        findings.push(Finding {
            id: "disk.hot".into(),
            part: name(disk),
            severity: Warning,
            cause: format!("it is too hot while nothing is to do: {found}"),
            expected: format!("below {limit} °C"),
            found,
            who: Who::Racker,
            next: "look for a fan that stands still, a missing blank, a blocked front".into(),
        });
    }
    findings
}

fn slow_link(nic: &Nic) -> Option<Finding> {
    let speed = nic.speed_mbps.filter(|speed| nic.link && *speed < SLOW_LINK)?;
    if nic.max_mbps.is_some_and(|max| max <= speed) {
        return None;
    }
    let port = nic.neighbour.as_ref().map(|n| format!(" ({} port {})", n.switch, n.port)).unwrap_or_default();
    Some(Finding {
        id: "nic.slow".into(),
        part: format!("NIC {}", nic.name),
        severity: Severity::Fault,
        cause: format!("its link runs at {speed} Mb/s: a damaged cable, or a port set to that speed"),
        expected: nic.max_mbps.map_or_else(|| format!("{SLOW_LINK} Mb/s or more"), |max| format!("{max} Mb/s")),
        found: format!("{speed} Mb/s"),
        who: Who::Racker,
        next: format!("exchange the cable; if that does not help, look at the port of the switch{port}"),
    })
}

/// A card that is not fully in its slot, or a riser with a bad contact, trains to fewer lanes or to a lower speed. Graphics
/// cards slow their link down by themselves while they are idle; drives and network cards do not. Functions of one card
/// have one link.
fn pci_link(device: &PciDevice) -> Option<Finding> {
    let (link, capable) = (device.link?, device.capable?);
    if !device.address.ends_with(".0") {
        return None;
    }
    let steady = matches!(device.class, 0x0108 | 0x0200 | 0x0207);
    let (id, what) = if link.lanes < capable.lanes {
        ("pci.width", format!("it has {} of {} lanes", link.lanes, capable.lanes))
    } else if steady && link.gts < capable.gts {
        ("pci.speed", format!("its link runs at {} of {} GT/s", link.gts, capable.gts))
    } else {
        return None;
    };
    let place = device.slot.as_ref().map_or_else(|| format!("at {}", device.address), |slot| format!("in {slot}"));
    Some(Finding {
        id: id.into(),
        part: format!("PCI device {} {place}", device.name.as_deref().unwrap_or(&device.id)),
        severity: Severity::Warning,
        cause: format!("{what}: not fully in its slot, or a bad contact"),
        expected: format!("x{} at {} GT/s", capable.lanes, capable.gts),
        found: format!("x{} at {} GT/s", link.lanes, link.gts),
        who: Who::Racker,
        next: format!("seat the card {place} again; if it stays, try another slot or riser"),
    })
}

fn memory_errors(memory: &Memory) -> Option<Finding> {
    let (severity, count, what) = match (memory.uncorrected_errors, memory.corrected_errors) {
        (Some(count @ 1..), _) => (Severity::Fault, count, "uncorrectable"),
        (_, Some(count @ 1..)) => (Severity::Warning, count, "corrected"),
        _ => return None,
    };
    let worst = |e: &&MemoryErrors| if severity == Severity::Fault { e.uncorrected } else { e.corrected };
    let mut places: Vec<&MemoryErrors> = memory.errors.iter().filter(|e| worst(e) > 0).collect();
    places.sort_by_key(|e| std::cmp::Reverse(worst(e)));
    let labels: Vec<&str> = places.iter().take(4).map(|e| e.label.as_str()).collect();
    let (part, next) = match labels.as_slice() {
        [] => ("memory".into(), "the BMC's log names the DIMM; seat it again, then exchange it"),
        labels => {
            (format!("memory at {}", labels.join(", ")), "seat that DIMM again; if errors come back, exchange it")
        }
    };
    Some(Finding {
        id: "memory.errors".into(),
        part,
        severity,
        cause: format!("{count} {what} memory errors since it was started"),
        expected: "none".into(),
        found: count.to_string(),
        who: Who::Racker,
        next: next.into(),
    })
}

/// Firmware leaves out a DIMM that fails its training or its test, and still lists it.
fn memory_left_out(memory: &Memory) -> Option<Finding> {
    let fitted = memory.dimms.iter().try_fold(0u64, |sum, dimm| sum.checked_add(dimm.size_bytes))?;
    let smallest = memory.dimms.iter().map(|dimm| dimm.size_bytes).min()?;
    let missing = fitted.saturating_sub(memory.usable_bytes);
    if memory.dimms.len() < 2
        || memory.usable_bytes == 0
        || missing < (smallest / 10 * 9).max(fitted / 100 * KERNEL_SHARE)
    {
        return None;
    }
    let gib = |bytes: u64| format!("{} GiB", (bytes + (1 << 29)) >> 30);
    let (usable, fitted) = (gib(memory.usable_bytes), gib(fitted));
    Some(Finding {
        id: "memory.left-out".into(),
        part: "memory".into(),
        severity: Severity::Warning,
        cause: format!("{usable} of {fitted} can be used: firmware left out a DIMM that failed its test, or mirrors memory"),
        expected: fitted,
        found: usable,
        who: Who::Racker,
        next: "the BMC's log names the DIMM; seat it again, then exchange it; look for mirroring in the firmware's settings".into(),
    })
}

fn complaint(concern: &Concern) -> Finding {
    use Severity::{Note, Warning};
    use Who::{Operator, Racker, Supplier};
    let (severity, who, next) = match concern.kind.as_str() {
        "mce" | "edac" => {
            (Warning, Supplier, "the BMC's log names the part; if it comes again under load, exchange it")
        }
        "aer" | "pci" => (Warning, Racker, "seat the card that the message names again; then try another slot"),
        "thermal" => (Warning, Racker, "look for a fan that stands still, a loose heat sink, a blocked front"),
        "ata" => (Warning, Racker, "seat drive and cable again; if it comes back, exchange the cable, then the drive"),
        "scsi" | "nvme" => {
            (Warning, Supplier, "look at the health of the drive that the message names, and exchange it")
        }
        "link" => (Warning, Racker, "exchange the cable or transceiver; then look at the port of the switch"),
        _ => (Note, Operator, "look whether a later firmware of the machine mends it"),
    };
    Finding {
        id: format!("kernel.{}", concern.kind),
        part: "kernel log".into(),
        severity,
        cause: format!("the kernel complains about the hardware ({}): {}", concern.kind, concern.message),
        expected: "no such message".into(),
        found: format!("{} of them", concern.count),
        who,
        next: next.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Dimm, MacAddr, PciLink, Serial};

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

    fn found(rotational: bool, health: DiskHealth) -> Vec<String> {
        let serial = Serial::parse("S4YN");
        let disk = Disk { name: "sdd".into(), serial, rotational, slot: Some("bay 3".into()), ..Disk::default() };
        drive(&disk, &health).iter().map(|f| format!("{} {f}", f.severity)).collect()
    }

    #[test]
    fn a_drive_that_fails_is_named_with_its_reason() {
        let good = DiskHealth { passed: Some(true), wear_percent: Some(3), ..DiskHealth::default() };
        assert!(found(false, good.clone()).is_empty());
        assert_eq!(
            found(true, DiskHealth { passed: Some(false), pending_sectors: Some(14), ..DiskHealth::default() }),
            [
                "fault disk sdd in bay 3, serial S4YN: the drive says that it fails: SMART failed",
                "fault disk sdd in bay 3, serial S4YN: it has 14 pending sectors: it cannot read them"
            ]
        );
        assert_eq!(
            found(false, DiskHealth { wear_percent: Some(85), ..good.clone() }),
            ["warning disk sdd in bay 3, serial S4YN: 85 % of its rated endurance is used"]
        );
        let worn = DiskHealth { warnings: vec!["read only".into()], wear_percent: Some(104), ..good.clone() };
        assert_eq!(
            found(false, worn),
            [
                "fault disk sdd in bay 3, serial S4YN: the drive says that it fails: read only",
                "fault disk sdd in bay 3, serial S4YN: its rated endurance is used up: 104 %"
            ]
        );
        // A solid-state drive replaces blocks all its life; a disk that turns does not.
        assert!(found(false, DiskHealth { reallocated_sectors: Some(8), ..good.clone() }).is_empty());
        assert_eq!(
            found(true, DiskHealth { reallocated_sectors: Some(8), crc_errors: Some(1), ..good.clone() }),
            ["warning disk sdd in bay 3, serial S4YN: it has replaced 8 sectors that went bad"]
        );
        let cable = found(true, DiskHealth { crc_errors: Some(4711), ..good.clone() });
        assert!(cable.len() == 1 && cable[0].contains("a cable or the backplane"), "{cable:?}");
        let hot = DiskHealth {
            passed: Some(false),
            warnings: vec!["temperature outside its limits".into()],
            temperature_celsius: Some(81),
            ..DiskHealth::default()
        };
        let hot = found(false, hot);
        assert!(hot.len() == 1 && hot[0].starts_with("warning") && hot[0].ends_with("81 °C"), "{hot:?}");
    }

    #[test]
    fn a_link_is_slow_where_it_could_be_faster() {
        assert_eq!(slow_link(&nic(100, Some(10_000))).unwrap().expected, "10000 Mb/s");
        assert!(slow_link(&nic(100, None)).is_some());
        assert!(slow_link(&nic(100, Some(100))).is_none());
        assert!(slow_link(&nic(1000, Some(10_000))).is_none());
    }

    #[test]
    fn a_card_with_less_of_a_link_than_it_could_have() {
        let device = |class, gts, lanes| PciDevice {
            address: "0000:3b:00.0".into(),
            id: "15b3:1017".into(),
            class,
            slot: Some("PCIe Slot 4".into()),
            link: Some(PciLink { gts, lanes }),
            capable: Some(PciLink { gts: 8.0, lanes: 16 }),
            ..PciDevice::default()
        };
        let narrow = pci_link(&device(0x0200, 8.0, 8)).unwrap();
        assert_eq!(
            (narrow.part.as_str(), narrow.found.as_str()),
            ("PCI device 15b3:1017 in PCIe Slot 4", "x8 at 8 GT/s")
        );
        assert!(pci_link(&device(0x0200, 8.0, 16)).is_none());
        assert_eq!(pci_link(&device(0x0200, 2.5, 16)).unwrap().id, "pci.speed");
        // A graphics card that has nothing to do; the second function of a card.
        assert!(pci_link(&device(0x0300, 2.5, 16)).is_none());
        assert!(pci_link(&PciDevice { address: "0000:3b:00.1".into(), ..device(0x0200, 8.0, 8) }).is_none());
    }

    #[test]
    fn memory_with_errors_and_memory_that_is_left_out() {
        let dimms = |count| vec![Dimm { size_bytes: 16 << 30, ..Dimm::default() }; count];
        let good = Memory { dimms: dimms(16), usable_bytes: 251 << 30, slots: 24, ..Memory::default() };
        assert_eq!(memory_left_out(&good), None);
        let less = memory_left_out(&Memory { usable_bytes: 236 << 30, ..good.clone() }).unwrap();
        assert!(less.cause.starts_with("236 GiB of 256 GiB can be used"), "{}", less.cause);
        assert_eq!(memory_left_out(&Memory { usable_bytes: 13 << 30, dimms: dimms(1), ..Memory::default() }), None);
        assert_eq!(memory_left_out(&Memory::default()), None);

        assert_eq!(memory_errors(&good), None);
        let errors = |label: &str, corrected| MemoryErrors { label: label.into(), corrected, uncorrected: 0 };
        let bad = Memory {
            corrected_errors: Some(15),
            uncorrected_errors: Some(0),
            errors: vec![errors("mc#0chan#0dimm#0", 1), errors("mc#1chan#2dimm#0", 14)],
            ..good
        };
        let finding = memory_errors(&bad).unwrap();
        assert_eq!(finding.severity, Severity::Warning);
        assert_eq!(
            finding.to_string(),
            "memory at mc#1chan#2dimm#0, mc#0chan#0dimm#0: 15 corrected memory errors since it was started"
        );
    }

    #[test]
    fn complaints_and_gaps_are_told() {
        let concern = |kind: &str| Concern { kind: kind.into(), message: "x".into(), count: 2 };
        let inventory = Inventory {
            concerns: vec![concern("aer"), concern("firmware")],
            gaps: vec!["smartctl cannot be started".into()],
            ..Inventory::default()
        };
        let told: Vec<_> = judge(&inventory).into_iter().map(|f| (f.id, f.severity)).collect();
        assert_eq!(
            told,
            [
                ("kernel.aer".into(), Severity::Warning),
                ("kernel.firmware".into(), Severity::Note),
                ("inventory.gap".to_owned(), Severity::Note)
            ]
        );
    }
}
