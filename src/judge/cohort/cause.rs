//! Why a value is probably low: what else is known of the machine that makes such a value low.

use std::collections::BTreeMap;

use crate::machine::{Inventory, Who};

pub struct Cause {
    pub sentence: String,
    pub who: Who,
    pub next: String,
}

fn cause(sentence: impl Into<String>, who: Who, next: impl Into<String>) -> Option<Cause> {
    Some(Cause { sentence: sentence.into(), who, next: next.into() })
}

pub fn of(inventory: &Inventory, name: &str) -> Option<Cause> {
    let (kind, rest) = name.split_once('.')?;
    let part = rest.split_once('.').map_or("", |(_, part)| part);
    match kind {
        "cpu" => governor(inventory).or_else(|| concern(inventory, &["thermal", "mce"])),
        "memory" => {
            channels(inventory).or_else(|| slow_dimm(inventory)).or_else(|| concern(inventory, &["edac", "mce"]))
        }
        "disk" => disk(inventory, part),
        "net" => net(inventory, part),
        _ => None,
    }
}

fn governor(inventory: &Inventory) -> Option<Cause> {
    let governor = inventory.cpus.iter().find_map(|cpu| cpu.governor.as_deref().filter(|g| *g != "performance"))?;
    let next = "set the power profile of the firmware to performance (`rackline firmware plan`), and the governor of the image";
    cause(format!("governor is {governor}"), Who::Operator, next)
}

fn concern(inventory: &Inventory, kinds: &[&str]) -> Option<Cause> {
    let concern = inventory.concerns.iter().find(|concern| kinds.contains(&concern.kind.as_str()))?;
    let next = "look at fans, heat sinks and the BMC's log; exchange the part that the message names";
    cause(format!("the kernel says: {}", concern.message), Who::Racker, next)
}

/// Memory is as fast as it has channels: slots are called by socket and channel (`A1`, `DIMM_B2`, `P1-DIMMC1`, `CPU2_DIMM_D1`).
fn channels(inventory: &Inventory) -> Option<Cause> {
    let mut channels: BTreeMap<String, bool> = BTreeMap::new();
    let filled = inventory.memory.dimms.iter().map(|dimm| (&dimm.slot, true));
    for (slot, populated) in filled.chain(inventory.memory.empty.iter().map(|slot| (slot, false))) {
        *channels.entry(channel(slot)?).or_default() |= populated;
    }
    let populated = channels.values().filter(|populated| **populated).count();
    let empty: Vec<&str> =
        channels.iter().filter(|(_, populated)| !**populated).map(|(name, _)| name.as_str()).collect();
    if empty.is_empty() {
        return None;
    }
    let next = format!("put a DIMM into each channel: {} has none", empty.join(", "));
    cause(format!("{populated} of {} channels populated", channels.len()), Who::Racker, next)
}

/// A slot without its last number: its channel. `None` where the name has no number at its end, or nothing but that.
fn channel(slot: &str) -> Option<String> {
    let channel = slot.trim_end_matches(|c: char| c.is_ascii_digit());
    (channel.len() < slot.len() && channel.ends_with(|c: char| c.is_ascii_alphabetic())).then(|| channel.to_owned())
}

fn slow_dimm(inventory: &Inventory) -> Option<Cause> {
    let slow = inventory.memory.dimms.iter().find(|dimm| match (dimm.speed_mts, dimm.rated_mts) {
        (Some(speed), Some(rated)) => speed < rated,
        _ => false,
    })?;
    let (speed, rated) = (slow.speed_mts.unwrap_or_default(), slow.rated_mts.unwrap_or_default());
    let next = "look whether all DIMMs are of one kind, and how many a channel has; the slowest sets the speed";
    cause(format!("DIMM {} runs at {speed} of {rated} MT/s", slow.slot), Who::Racker, next)
}

fn disk(inventory: &Inventory, name: &str) -> Option<Cause> {
    let disk = inventory.disks.iter().find(|disk| disk.name == name)?;
    let health = disk.health.as_ref();
    let many = |count: Option<u64>, what: &str| {
        let count = count.filter(|count| *count > 0)?;
        cause(format!("{count} {what}"), Who::Supplier, "exchange the drive")
    };
    many(health.and_then(|h| h.pending_sectors), "pending sectors")
        .or_else(|| many(health.and_then(|h| h.reallocated_sectors), "reallocated sectors"))
        .or_else(|| {
            let wear = health?.wear_percent.filter(|wear| *wear >= 80)?;
            cause(format!("{wear} % of its rated endurance is used"), Who::Supplier, "exchange the drive")
        })
        .or_else(|| narrow(inventory, disk.controller.as_deref()?))
        .or_else(|| concern(inventory, &["ata", "nvme", "aer"]))
}

fn net(inventory: &Inventory, name: &str) -> Option<Cause> {
    let nic = inventory.nics.iter().find(|nic| nic.name == name)?;
    if let (Some(speed), Some(most)) = (nic.speed_mbps, nic.max_mbps)
        && speed < most
    {
        let next = "exchange the cable; if that does not help, look at the port of the switch";
        return cause(format!("its link runs at {speed} of {most} Mb/s"), Who::Racker, next);
    }
    narrow(inventory, nic.pci.as_deref()?).or_else(|| concern(inventory, &["link", "aer"]))
}

/// Fewer lanes than both ends have, at the PCI device with this address.
fn narrow(inventory: &Inventory, address: &str) -> Option<Cause> {
    let device = inventory.pci.iter().find(|device| device.address == address)?;
    let (link, capable) = (device.link?, device.capable?);
    let slower = link.gts < capable.gts;
    if link.lanes >= capable.lanes && !slower {
        return None;
    }
    let words = |link: crate::machine::PciLink| format!("x{} at {} GT/s", link.lanes, link.gts);
    let next = format!("seat the card or drive at {address} again; compare the slot with a twin's");
    cause(format!("its PCIe link is {} of {}", words(link), words(capable)), Who::Racker, next)
}
