//! What is built in, read from SMBIOS, `/proc` and `/sys`. Each reader takes the root of its tree, so that fixtures can
//! stand for hardware that is not here; nothing that a table or file says can stop the inventory.

mod block;
mod cpu;
mod net;
mod smbios;

use std::path::Path;

use crate::agent::roots::Roots;
use crate::error::{Error, Result};
use crate::machine::{Board, Cpu, Disk, Firmware, InBandBmc, Inventory, MacAddr, Serial, System};

pub use block::in_use;

/// Files in /sys hold one value; a longer one is cut here.
const VALUE_MAX: usize = 4096;

/// Everything, without the BMC, which only `/dev/ipmi0` tells.
pub fn take(roots: &Roots, bmc: Option<InBandBmc>) -> Result<Inventory> {
    let tables = smbios::read(&roots.sys);
    let kernel_cpus = cpu::read(&roots.proc);
    let mut memory = tables.memory;
    memory.usable_bytes = cpu::memory_total(&roots.proc);
    Ok(Inventory {
        system: tables.system,
        board: Board::default(),
        chassis: Board::default(),
        tpm: None,
        firmware: firmware(&roots.sys),
        cpus: join_cpus(tables.cpus, kernel_cpus),
        memory,
        disks: disks(roots)?,
        nics: net::read(roots)?,
        pci: Vec::new(),
        numa: Vec::new(),
        concerns: Vec::new(),
        bmc,
        kernel: value(&roots.proc.join("sys/kernel/osrelease")).unwrap_or_default(),
    })
}

pub fn disks(roots: &Roots) -> Result<Vec<Disk>> {
    block::read(&roots.sys)
}

/// What the first words need: quickly read and enough to tell which machine this is.
pub struct Identity {
    pub serial: Option<Serial>,
    pub uuid: Option<uuid::Uuid>,
    pub macs: Vec<MacAddr>,
}

pub fn identity(roots: &Roots) -> Identity {
    let System { serial, uuid, .. } = smbios::read(&roots.sys).system;
    // Without network devices there would be nobody to say hello to; an unreadable /sys is told by the inventory.
    let macs = net::read(roots).unwrap_or_default().into_iter().map(|n| n.mac).collect();
    Identity { serial, uuid, macs }
}

/// UEFI kernels have this folder, others have not.
fn firmware(sys: &Path) -> Firmware {
    if sys.join("firmware/efi").is_dir() { Firmware::Uefi } else { Firmware::Bios }
}

/// SMBIOS knows sockets, the kernel knows what it runs on: model, microcode and flags are the kernel's, and where the
/// tables have no processors (or none at all), the kernel's packages stand for sockets.
fn join_cpus(tables: Vec<Cpu>, kernel: Vec<Cpu>) -> Vec<Cpu> {
    if tables.is_empty() {
        return kernel;
    }
    let join = |(i, socket): (usize, Cpu)| {
        let Some(seen) = kernel.get(i).or(kernel.first()) else { return socket };
        Cpu {
            model: if seen.model.is_empty() { socket.model } else { seen.model.clone() },
            cores: if socket.cores == 0 { seen.cores } else { socket.cores },
            threads: if socket.threads == 0 { seen.threads } else { socket.threads },
            microcode: seen.microcode.clone(),
            virtualisation: seen.virtualisation,
            ..socket
        }
    };
    tables.into_iter().enumerate().map(join).collect()
}

/// The trimmed text of a one-value file; `None` when it is missing, empty or not to be read.
fn value(path: &Path) -> Option<String> {
    let bytes = std::fs::read(path).ok()?;
    let text = String::from_utf8_lossy(bytes.get(..VALUE_MAX).unwrap_or(&bytes));
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned();
    (!text.is_empty()).then_some(text)
}

/// The names in a folder, sorted so that an inventory does not change by chance.
fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(dir).map_err(|e| {
        Error::config("agent.sysfs", format!("{} cannot be read", dir.display()))
            .hint("mount sysfs on /sys before the agent starts")
            .because(e)
    })?;
    let mut names: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_completes_the_sockets() {
        let socket = |name: &str| Cpu { socket: name.into(), model: "Xeon".into(), cores: 8, ..Cpu::default() };
        let kernel = Cpu { model: "Intel(R) Xeon(R)".into(), threads: 16, virtualisation: true, ..Cpu::default() };
        let cpus = join_cpus(vec![socket("CPU1"), socket("CPU2")], vec![kernel.clone()]);
        assert_eq!(cpus.len(), 2);
        assert_eq!((cpus[1].socket.as_str(), cpus[1].cores, cpus[1].threads), ("CPU2", 8, 16));
        assert!(cpus.iter().all(|c| c.virtualisation && c.model == "Intel(R) Xeon(R)"));
        assert_eq!(join_cpus(vec![], vec![kernel.clone()]), [kernel]);
    }

    #[test]
    fn an_inventory_of_this_very_machine() {
        let inventory = take(&Roots::default(), None).unwrap();
        assert!(inventory.memory.usable_bytes > 0);
        assert!(!inventory.cpus.is_empty());
        assert!(!inventory.kernel.is_empty());
    }
}
