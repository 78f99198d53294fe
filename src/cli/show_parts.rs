//! What is built into a machine, for people: one block for each kind of part, serial numbers where a racker looks for them.

use super::show::table;
use crate::machine::{Disk, DiskHealth, Inventory, Memory, Nic, PciDevice, PciLink, Serial};

/// Base classes of PCI devices that people ask for: storage, network, display, processing accelerators.
const OF_INTEREST: &[u16] = &[0x01, 0x02, 0x03, 0x12];

pub fn inventory(i: &Inventory, serial: Option<&Serial>) -> Vec<String> {
    let mut lines = system(i, serial);
    lines.push(String::new());
    for c in &i.cpus {
        let more = [
            Some(format!("{} cores, {} threads", c.cores, c.threads)),
            c.stepping.as_ref().map(|s| format!("stepping {s}")),
            c.microcode.as_ref().map(|m| format!("microcode {m}")),
            c.governor.as_ref().map(|g| format!("governor {g}")),
            (!c.virtualisation).then(|| "no virtualisation".into()),
        ];
        lines.push(format!("CPU {}: {}, {}", c.socket, c.model, join(more, ", ")));
    }
    if i.numa.len() > 1 {
        let node = |n: &crate::machine::NumaNode| format!("node {} {} CPUs {}", n.node, size(n.memory_bytes), n.cpus);
        lines.push(format!("NUMA: {}", i.numa.iter().map(node).collect::<Vec<_>>().join("; ")));
    }
    lines.extend(memory(&i.memory));
    lines.extend(block("DISK SIZE TYPE MODEL SERIAL FIRMWARE PLACE HEALTH", i.disks.iter().map(disk)));
    lines.extend(block("NIC MAC LINK DRIVER PCI QUEUES NUMA SWITCH", i.nics.iter().map(nic)));
    let shown = |d: &&PciDevice| OF_INTEREST.contains(&(d.class >> 8));
    lines.extend(block("PCI DEVICE DRIVER SLOT LINK NUMA", i.pci.iter().filter(shown).map(device)));
    let others = i.pci.iter().filter(|d| !shown(d)).count();
    if others > 0 {
        lines.push(format!("and {others} other PCI devices (--json)"));
    }
    if !i.concerns.is_empty() {
        lines.push(String::new());
        lines.extend(i.concerns.iter().map(|c| format!("kernel, {} × {}: {}", c.count, c.kind, c.message)));
    }
    lines.extend(i.gaps.iter().map(|gap| format!("not known: {gap}")));
    lines
}

fn system(i: &Inventory, serial: Option<&Serial>) -> Vec<String> {
    let s = &i.system;
    let named = |parts: [&Option<String>; 2]| join(parts.map(Option::clone), " ");
    let maker = named([&s.manufacturer, &s.product]);
    let mut lines = vec![format!(
        "{}, serial {}, {}, BIOS {}{}",
        if maker.is_empty() { "unknown maker" } else { &maker },
        serial.or(s.serial.as_ref()).map_or("none", Serial::as_str),
        i.firmware,
        s.bios_version.as_deref().unwrap_or("unknown"),
        s.bios_date.as_ref().map_or(String::new(), |date| format!(" of {date}")),
    )];
    let more = [
        Some(named([&i.board.product, &i.board.version])).filter(|b| !b.is_empty()).map(|b| format!("board {b}")),
        i.board.serial.as_ref().map(|s| format!("board serial {s}")),
        i.chassis.serial.as_ref().map(|s| format!("chassis serial {s}")),
        i.chassis.asset_tag.as_ref().or(i.board.asset_tag.as_ref()).map(|tag| format!("asset tag {tag}")),
    ];
    let bmc = i.bmc.as_ref().map(|bmc| {
        let firmware = bmc.firmware.as_ref().map(|f| format!("firmware {f}"));
        let parts = [bmc.address.map(|a| a.to_string()), bmc.mac.map(|m| m.to_string()), firmware];
        format!("BMC {}", join(parts, ", "))
    });
    let tpm = i.tpm.as_ref().map(|t| named([&Some(format!("TPM {}", t.version)), &t.vendor]));
    for line in [join(more, ", "), join([bmc, tpm, Some(format!("seen by Linux {}", i.kernel))], "; ")] {
        if !line.is_empty() {
            lines.push(format!("  {line}"));
        }
    }
    lines
}

fn memory(memory: &Memory) -> Vec<String> {
    let slots = format!("{} of {} slots", memory.dimms.len(), memory.slots);
    let mut lines = vec![format!("memory: {} usable, {slots}", size(memory.usable_bytes))];
    lines.extend(block(
        "DIMM SIZE SPEED MAKER PART SERIAL",
        memory.dimms.iter().map(|d| {
            let speed = match (d.speed_mts, d.rated_mts) {
                (Some(speed), Some(rated)) if speed < rated => format!("{speed} of {rated} MT/s"),
                (speed, rated) => speed.or(rated).map_or(String::new(), |s| format!("{s} MT/s")),
            };
            vec![d.slot.clone(), size(d.size_bytes), speed, text(&d.manufacturer), text(&d.part), text(&d.serial)]
        }),
    ));
    if !memory.empty.is_empty() {
        lines.push(format!("empty: {}", memory.empty.join(" ")));
    }
    for e in &memory.errors {
        lines.push(format!("errors at {}: {} corrected, {} not", e.label, e.corrected, e.uncorrected));
    }
    lines
}

fn disk(d: &Disk) -> Vec<String> {
    let turns = if d.rotational { " HDD" } else { "" };
    let place = d.slot.clone().or_else(|| d.controller.clone()).unwrap_or_default();
    vec![
        d.name.clone(),
        decimal(d.size_bytes),
        format!("{}{turns}", d.transport),
        text(&d.model),
        text(&d.serial),
        text(&d.firmware),
        place,
        d.health.as_ref().map_or_else(|| "unknown".into(), health),
    ]
}

fn health(h: &DiskHealth) -> String {
    let verdict = match h.passed {
        Some(true) if h.warnings.is_empty() => "good".into(),
        Some(false) if h.warnings.is_empty() => "FAILS".into(),
        None if h.warnings.is_empty() => String::new(),
        _ => format!("FAILS: {}", h.warnings.join(", ")),
    };
    let some = |n: Option<u64>, what: &str| n.filter(|n| *n > 0).map(|n| format!("{n} {what}"));
    let parts = [
        Some(verdict).filter(|v| !v.is_empty()),
        h.wear_percent.map(|w| format!("{w} % worn")),
        h.power_on_hours.map(|hours| format!("{hours} h")),
        h.temperature_celsius.map(|t| format!("{t} °C")),
        some(h.pending_sectors, "pending"),
        some(h.reallocated_sectors, "reallocated"),
        some(h.uncorrectable_errors, "uncorrectable"),
    ];
    join(parts, ", ")
}

fn nic(n: &Nic) -> Vec<String> {
    let link = match (n.link, n.speed_mbps) {
        (true, Some(speed)) => format!(
            "{}{}",
            rate(speed),
            n.max_mbps.filter(|max| *max > speed).map_or(String::new(), |max| format!(" of {}", rate(max)))
        ),
        (true, None) => "up".into(),
        (false, _) => "no link".into(),
    };
    let switch = n.neighbour.as_ref().map_or(String::new(), |s| {
        let vlan = s.vlan.map_or(String::new(), |vlan| format!(" VLAN {vlan}"));
        format!("{} {}{vlan}", s.switch, s.port)
    });
    vec![
        if n.boot { format!("{} (boot)", n.name) } else { n.name.clone() },
        n.mac.to_string(),
        link,
        join([n.driver.clone(), n.firmware.clone()], " "),
        text(&n.pci),
        match (n.queues, n.max_queues) {
            (Some(used), Some(max)) => format!("{used} of {max}"),
            (used, _) => text(&used),
        },
        text(&n.numa),
        switch,
    ]
}

fn device(d: &PciDevice) -> Vec<String> {
    let link = |l: &PciLink| format!("x{} {} GT/s", l.lanes, l.gts);
    let trained = match (&d.link, &d.capable) {
        (Some(now), Some(max)) if now != max => format!("{} of {}", link(now), link(max)),
        (now, _) => now.as_ref().map_or(String::new(), link),
    };
    vec![
        d.address.clone(),
        d.name.clone().unwrap_or_else(|| d.id.clone()),
        text(&d.driver),
        text(&d.slot),
        trained,
        text(&d.numa),
    ]
}

/// A table under its head, after an empty line; nothing where there are no rows.
fn block(head: &str, rows: impl Iterator<Item = Vec<String>>) -> Vec<String> {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return Vec::new();
    }
    let mut table = table(&head.split(' ').collect::<Vec<_>>());
    for row in rows {
        table.add_row(row);
    }
    vec![String::new(), table.to_string()]
}

fn text(value: &Option<impl ToString>) -> String {
    value.as_ref().map_or(String::new(), ToString::to_string)
}

fn join<const N: usize>(parts: [Option<String>; N], between: &str) -> String {
    parts.into_iter().flatten().collect::<Vec<_>>().join(between)
}

/// Memory: in units of 1024.
fn size(bytes: u64) -> String {
    if bytes >= 10 << 30 { format!("{} GiB", (bytes + (1 << 29)) >> 30) } else { format!("{} MiB", bytes >> 20) }
}

/// Disks, as they are sold: in units of 1000.
fn decimal(bytes: u64) -> String {
    if bytes >= 1_000_000_000_000 {
        format!("{:.2} TB", bytes as f64 / 1e12)
    } else {
        format!("{:.0} GB", bytes as f64 / 1e9)
    }
}

fn rate(mbps: u32) -> String {
    if mbps >= 1000 { format!("{} Gb/s", f64::from(mbps) / 1000.0) } else { format!("{mbps} Mb/s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Dimm, Neighbour};

    #[test]
    fn a_machine_with_a_little_of_everything() {
        let dimm = |slot: &str| Dimm {
            slot: slot.into(),
            size_bytes: 16 << 30,
            speed_mts: Some(2400),
            rated_mts: Some(2666),
            serial: Serial::parse("52184DED"),
            ..Dimm::default()
        };
        let disk = Disk {
            name: "sda".into(),
            size_bytes: 960_197_124_096,
            transport: "sata".into(),
            serial: Serial::parse("2013273A99BD"),
            slot: Some("bay 3".into()),
            health: Some(DiskHealth {
                passed: Some(true),
                pending_sectors: Some(14),
                wear_percent: Some(3),
                ..DiskHealth::default()
            }),
            ..Disk::default()
        };
        let nic = Nic {
            name: "eno1".into(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            driver: Some("ixgbe".into()),
            pci: None,
            firmware: None,
            link: true,
            speed_mbps: Some(100),
            boot: true,
            max_mbps: Some(10_000),
            queues: Some(8),
            max_queues: Some(64),
            numa: Some(0),
            neighbour: Some(Neighbour {
                switch: "leaf-12b".into(),
                port: "Ethernet1/17".into(),
                description: None,
                vlan: Some(100),
            }),
        };
        let card = PciDevice {
            address: "0000:3b:00.0".into(),
            id: "15b3:1017".into(),
            class: 0x0200,
            link: Some(PciLink { gts: 8.0, lanes: 8 }),
            capable: Some(PciLink { gts: 8.0, lanes: 16 }),
            ..PciDevice::default()
        };
        let shown = Inventory {
            memory: Memory {
                usable_bytes: 31 << 30,
                slots: 24,
                dimms: vec![dimm("A1"), dimm("A2")],
                empty: vec!["A3".into()],
                ..Memory::default()
            },
            disks: vec![disk],
            nics: vec![nic],
            pci: vec![card, PciDevice { class: 0x0880, ..PciDevice::default() }],
            gaps: vec!["smartctl did not end within 12 s".into()],
            ..Inventory::default()
        };
        let text = inventory(&shown, Serial::parse("CSX5YM2").as_ref()).join("\n");
        for part in [
            "unknown maker, serial CSX5YM2, BIOS, BIOS unknown",
            "memory: 31 GiB usable, 2 of 24 slots",
            "2400 of 2666 MT/s",
            "empty: A3",
            "960 GB",
            "bay 3",
            "good, 3 % worn, 14 pending",
            "100 Mb/s of 10 Gb/s",
            "eno1 (boot)",
            "leaf-12b Ethernet1/17 VLAN 100",
            "x8 8 GT/s of x16 8 GT/s",
            "and 1 other PCI devices",
            "not known: smartctl did not end",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
