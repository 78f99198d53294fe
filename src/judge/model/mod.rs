//! A machine against what was bought: its row of the purchase list and the bill of materials of its model ([`bom`]).
//!
//! Parts are matched in groups, as cheaply as they can be ([`assign`]): one wrong disk is one finding, and says of how many.

mod assign;
pub mod bom;
mod disks;
mod memory;
mod nics;
#[cfg(test)]
mod tests;
mod unit;

pub use nics::same_port;

use bom::Model;

use crate::machine::version;
use crate::machine::{Finding, Inventory, MacAddr, PciDevice, Serial, Severity, SwitchPort, Who};

/// What the purchase list and the port map say of a machine.
pub struct Listed<'a> {
    pub serial: Option<&'a Serial>,
    /// The model that the list names.
    pub model: Option<&'a str>,
    pub bmc_mac: Option<MacAddr>,
    pub ports: &'a [SwitchPort],
    /// Whom the site expects on a port.
    pub occupant: &'a dyn Fn(&SwitchPort) -> Option<String>,
}

/// `model` is that which the list names, or else that of the machine's product.
pub fn judge(listed: &Listed, model: Option<&Model>, inventory: &Inventory) -> Vec<Finding> {
    let mut findings = Vec::new();
    identity(listed, model, inventory, &mut findings);
    cpus(model, inventory, &mut findings);
    if let Some(model) = model {
        memory::judge(model.memory.as_ref(), inventory, &mut findings);
        disks::judge(&model.disks, inventory, &mut findings);
        nics::judge(&model.nics, inventory, &mut findings);
        gpus(&model.gpus, inventory, &mut findings);
        tpm(model.tpm.as_ref(), inventory, &mut findings);
        firmware(model.firmware.as_ref(), inventory, &mut findings);
    }
    let severity = model.map_or(Severity::Fault, |model| model.cabling.severity);
    nics::cabling(listed, severity, inventory, &mut findings);
    findings
}

/// `one disk`, `2 disks`.
fn counted(count: usize, one: &str) -> String {
    if count == 1 { format!("one {one}") } else { format!("{count} {one}s") }
}

fn is_or_are(count: usize) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

fn wrong_part(part: &str) -> String {
    format!("compare {part} with the order, and have the supplier exchange what is wrong; or correct the model")
}

fn identity(listed: &Listed, model: Option<&Model>, inventory: &Inventory, findings: &mut Vec<Finding>) {
    let system = &inventory.system;
    if let (Some(expected), Some(found)) = (listed.serial, system.serial.as_ref())
        && expected != found
    {
        findings.push(Finding {
            id: "system.serial".into(),
            part: "machine".into(),
            severity: Severity::Fault,
            cause: format!("its serial number is {found}, expected {expected}"),
            expected: expected.to_string(),
            found: found.to_string(),
            who: Who::Racker,
            next:
                "compare its label with the list of expected machines; correct the list, or put the right machine there"
                    .into(),
        });
    }
    let bmc = inventory.bmc.as_ref().and_then(|bmc| bmc.mac);
    if let (Some(expected), Some(found)) = (listed.bmc_mac, bmc)
        && expected != found
    {
        findings.push(Finding {
            id: "bmc.mac".into(),
            part: "BMC".into(),
            severity: Severity::Fault,
            cause: format!("its MAC address is {found}, listed {expected}: another board, or a slip in the list"),
            expected: expected.to_string(),
            found: found.to_string(),
            who: Who::Operator,
            next: "compare the label of the board with the purchase list, and correct the list".into(),
        });
    }
    let (Some(name), None) = (listed.model, model) else {
        return product(model, inventory, findings);
    };
    findings.push(Finding {
        id: "model.unknown".into(),
        part: "machine".into(),
        severity: Severity::Warning,
        cause: format!("the list says that it is a {name:?}, and there is no such model: its parts were not compared"),
        expected: "a model that is known".into(),
        found: name.to_owned(),
        who: Who::Operator,
        next: "`rackline model list` shows the models; add one to the folder site.models, or correct the list".into(),
    });
}

fn product(model: Option<&Model>, inventory: &Inventory, findings: &mut Vec<Finding>) {
    let (Some(model), Some(product)) = (model, inventory.system.product.as_ref()) else { return };
    if model.products.is_empty() || model.products.iter().any(|pattern| pattern.fits(product)) {
        return;
    }
    let expected = model.products.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
    findings.push(Finding {
        id: "system.product".into(),
        part: "machine".into(),
        severity: Severity::Fault,
        cause: format!("it is a {product}, expected {expected} (model {})", model.name),
        expected,
        found: product.clone(),
        who: Who::Supplier,
        next: "compare its label with the order; correct the list, or send the machine back".into(),
    });
}

fn cpus(model: Option<&Model>, inventory: &Inventory, findings: &mut Vec<Finding>) {
    let cpus = &inventory.cpus;
    let mut steppings: Vec<&str> = cpus.iter().filter_map(|cpu| cpu.stepping.as_deref()).collect();
    steppings.sort_unstable();
    steppings.dedup();
    let row = model.and_then(|model| model.cpu.as_ref());
    if steppings.len() > 1 {
        let found: Vec<String> =
            cpus.iter().filter_map(|cpu| Some(format!("{} {}", cpu.socket, cpu.stepping.as_ref()?))).collect();
        findings.push(Finding {
            id: "cpu.mixed".into(),
            part: "CPUs".into(),
            // Makers let some mixtures run; nobody orders one.
            severity: row.map_or(Severity::Warning, |row| row.severity),
            cause: format!("the CPUs have {} steppings: {}", steppings.len(), found.join(", ")),
            expected: "one stepping".into(),
            found: found.join(", "),
            who: Who::Supplier,
            next: wrong_part("the CPUs"),
        });
    }
    let Some(row) = row else { return };
    let count = *row.count.as_ref();
    let mut told = |id: &str, cause: String, expected: String, found: String, who, next: String| {
        let part = "CPUs".into();
        findings.push(Finding { id: id.into(), part, severity: row.severity, cause, expected, found, who, next });
    };
    let sockets = || cpus.iter().map(|cpu| cpu.socket.as_str()).collect::<Vec<_>>().join(", ");
    if cpus.len() != count {
        let cause = format!("{} of {} found", cpus.len(), counted(count, "CPU"));
        let next = "look whether the socket is empty, and what the firmware says of it".into();
        told("cpu.count", cause, counted(count, "CPU"), sockets(), Who::Racker, next);
    }
    let total = cpus.len();
    let mut wrong = |id: &str, what: &str, expected: String, found: Vec<String>, who, next: String| {
        if !found.is_empty() {
            let cause =
                format!("{} of {} {} {what}: {}", found.len(), counted(total, "CPU"), is_or_are(found.len()), found[0]);
            told(id, cause, expected, found.join(", "), who, next);
        }
    };
    if let Some(pattern) = &row.model {
        let others = cpus.iter().filter(|cpu| !pattern.fits(&cpu.model));
        let found: Vec<String> = others.map(|cpu| format!("{} ({})", cpu.model.trim(), cpu.socket)).collect();
        let other = !found.is_empty();
        wrong("cpu.model", "another model", pattern.to_string(), found, Who::Supplier, wrong_part("the CPUs"));
        if other {
            return;
        }
    }
    // Mixed steppings were told already.
    if let Some(pattern) = row.stepping.as_ref().filter(|_| steppings.len() <= 1) {
        let others = cpus.iter().filter_map(|cpu| Some((cpu, cpu.stepping.as_ref().filter(|s| !pattern.fits(s))?)));
        let found = others.map(|(cpu, stepping)| format!("{stepping} ({})", cpu.socket)).collect();
        wrong("cpu.stepping", "of another stepping", pattern.to_string(), found, Who::Supplier, wrong_part("the CPUs"));
    }
    if let Some(cores) = row.cores {
        let others = cpus.iter().filter(|cpu| cpu.cores != cores);
        let found = others.map(|cpu| format!("{} cores ({})", cpu.cores, cpu.socket)).collect();
        let next =
            "look for cores that are switched off in the firmware settings; else compare the CPUs with the order";
        wrong("cpu.cores", "of another number of cores", format!("{cores} cores"), found, Who::Operator, next.into());
    }
}

/// Display and 3D controllers, processing accelerators (PCI Code and ID Assignment, base classes 03h and 12h).
fn is_gpu(device: &PciDevice) -> bool {
    matches!(device.class >> 8, 0x03 | 0x12)
}

/// VGA compatible: also the BMC's own.
const VGA: u16 = 0x0300;

fn gpus(rows: &[bom::Gpus], inventory: &Inventory, findings: &mut Vec<Finding>) {
    let name = |device: &PciDevice| device.name.clone().unwrap_or_else(|| device.id.clone());
    let mut left: Vec<&PciDevice> = inventory.pci.iter().filter(|device| is_gpu(device)).collect();
    let mut short = Vec::new();
    for row in rows {
        let count = *row.count.as_ref();
        let (mut fitting, others): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|device| row.model.fits(&name(device)) || row.model.fits(&device.id));
        left = others;
        left.extend(fitting.drain(count.min(fitting.len())..));
        if fitting.len() < count {
            short.push((row, count, count - fitting.len()));
        }
    }
    left.retain(|device| device.class != VGA);
    for (row, count, missing) in short {
        let others: Vec<&PciDevice> = left.drain(..missing.min(left.len())).collect();
        let mut told = |id: &str, cause: String, found: String, who, next: String| {
            let (part, expected) = ("GPUs".into(), format!("{count} × {}", row.model));
            findings.push(Finding { id: id.into(), part, severity: row.severity, cause, expected, found, who, next });
        };
        if !others.is_empty() {
            let cause =
                format!("{} of {} {} another model", others.len(), counted(count, "GPU"), is_or_are(others.len()));
            let found = others.iter().map(|d| format!("{} at {}", name(d), d.address)).collect::<Vec<_>>().join(", ");
            told("gpu.model", cause, found, Who::Supplier, wrong_part("the GPUs"));
        }
        let missing = missing - others.len();
        if missing > 0 {
            let there = count - missing - others.len();
            let cause = format!("{} missing: {there} of {count} × {}", counted(missing, "GPU"), row.model);
            let next = "look whether the card is fully in its slot and has its power cable".into();
            told("gpu.missing", cause, format!("{there}"), Who::Racker, next);
        }
    }
}

fn tpm(row: Option<&bom::Tpm>, inventory: &Inventory, findings: &mut Vec<Finding>) {
    let Some(row) = row else { return };
    let (id, cause, found) = match &inventory.tpm {
        None => ("tpm.missing", "TPM missing, or switched off in the firmware settings".to_owned(), "none".to_owned()),
        Some(tpm) if version::same(&tpm.version, &row.version) => return,
        Some(tpm) => {
            ("tpm.version", format!("TPM {} found, expected {}", tpm.version, row.version), tpm.version.clone())
        }
    };
    findings.push(Finding {
        id: id.into(),
        part: "TPM".into(),
        severity: row.severity,
        cause,
        expected: row.version.clone(),
        found,
        who: Who::Operator,
        next: "switch it on in the firmware settings; where there is none, compare the board with the order".into(),
    });
}

fn firmware(row: Option<&bom::Firmware>, inventory: &Inventory, findings: &mut Vec<Finding>) {
    let Some(row) = row else { return };
    let bmc = inventory.bmc.as_ref().and_then(|bmc| bmc.firmware.as_ref());
    let both = [("BIOS", &row.bios, inventory.system.bios_version.as_ref()), ("BMC", &row.bmc, bmc)];
    for (part, least, found) in both {
        let (Some(least), Some(found)) = (least, found) else { continue };
        if version::compare(found, least).is_some_and(std::cmp::Ordering::is_lt) {
            findings.push(Finding {
                id: format!("firmware.{}", part.to_lowercase()),
                part: part.into(),
                severity: row.severity,
                cause: format!("its firmware {found} is older than {least}"),
                expected: format!("at least {least}"),
                found: found.clone(),
                who: Who::Operator,
                next: "update it, or write a firmware baseline that does: `rackline firmware list`".into(),
            });
        }
    }
}
