//! Which machines are twins for a value: those that have the part alike that the value depends on. What may be wrong with a
//! machine is not part of it: a machine with a DIMM too few is compared with those that have all.

use crate::machine::{Disk, Inventory, Nic};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The name without the part: `disk.read` of `disk.read.sda`.
    pub measure: String,
    /// What they have in common, readable.
    pub alike: String,
}

/// And the part that the value tells of. `None`: of something that the inventory does not have.
pub fn of(inventory: &Inventory, name: &str) -> Option<(Key, String)> {
    let (kind, rest) = name.split_once('.')?;
    let (what, part) = rest.split_once('.').unwrap_or((rest, ""));
    let (alike, called) = match kind {
        "disk" => {
            let disk = inventory.disks.iter().find(|disk| disk.name == part)?;
            (of_disk(disk), name_of(disk))
        }
        "net" => {
            let nic = inventory.nics.iter().find(|nic| nic.name == part)?;
            (of_nic(nic), format!("NIC {}", nic.name))
        }
        "memory" => (of_board(inventory), "memory".into()),
        "cpu" => (of_board(inventory), "CPU".into()),
        _ => (of_board(inventory), "machine".into()),
    };
    let measure = if matches!(kind, "disk" | "net") { format!("{kind}.{what}") } else { name.to_owned() };
    Some((Key { measure, alike }, called))
}

/// Product, processors with their stepping, and the BIOS that sets them up.
fn of_board(inventory: &Inventory) -> String {
    let system = &inventory.system;
    let cpu = inventory.cpus.first();
    let words = [
        system.product.as_deref().unwrap_or("unknown product"),
        cpu.map_or("", |cpu| cpu.model.as_str()),
        cpu.and_then(|cpu| cpu.stepping.as_deref()).unwrap_or(""),
        system.bios_version.as_deref().unwrap_or(""),
    ];
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    format!("{}; {} sockets", words.join(", "), inventory.cpus.len())
}

fn of_disk(disk: &Disk) -> String {
    let model = disk.model.as_deref().unwrap_or("unknown model");
    format!("{model}, {}, firmware {}", disk.transport, disk.firmware.as_deref().unwrap_or("unknown"))
}

fn of_nic(nic: &Nic) -> String {
    let (driver, firmware) = (nic.driver.as_deref().unwrap_or("unknown"), nic.firmware.as_deref().unwrap_or("unknown"));
    let most = nic.max_mbps.map_or(String::new(), |most| format!(", {most} Mb/s"));
    format!("{driver}, firmware {firmware}{most}")
}

fn name_of(disk: &Disk) -> String {
    match &disk.serial {
        Some(serial) => format!("disk {}, serial {serial}", disk.name),
        None => format!("disk {}", disk.name),
    }
}
