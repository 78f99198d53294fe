//! What is built in, read from SMBIOS, `/proc` and `/sys`, and asked of the drives and of the switches. Each reader takes the
//! root of its tree, so that fixtures can stand for hardware that is not here; nothing that a table, file or tool says can
//! stop the inventory.
//!
//! It has three parts, so that the machine waits for nothing: [`Begun::begin`] reads what is there at once and starts to
//! listen for switches, [`drives`] asks the drives while the short measurements run, and [`Begun::finish`] reads what may
//! have changed meanwhile: links, the kernel's messages, memory errors.

mod block;
mod cpu;
mod kernel;
pub(crate) mod lldp;
mod net;
mod pci;
mod smart;
pub(crate) mod smbios;
mod tpm;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::agent::roots::Roots;
use crate::agent::{blocking, tool};
use crate::error::{Error, Result};
use crate::machine::{Cpu, Disk, Firmware, InBandBmc, Inventory, MacAddr, Neighbour, Nic, Serial, System};

pub use block::in_use;
pub use smart::{Answers, ask as drives};

/// Files in /sys hold one value; a longer one is cut here.
const VALUE_MAX: usize = 4096;
/// lldpd answers from its memory.
const LLDPCLI: Duration = Duration::from_secs(3);

/// An inventory that still lacks what the drives and the switches say.
pub struct Begun {
    pub inventory: Inventory,
    listener: Option<lldp::Listener>,
    start: Instant,
    spent: Duration,
}

impl Begun {
    /// Without the BMC, which only `/dev/ipmi0` tells. `ours`: this system is the RAM system, so that its cards may be
    /// brought up and speak.
    pub fn begin(roots: &Roots, bmc: Option<InBandBmc>, ours: bool) -> Result<Self> {
        let start = Instant::now();
        let mut gaps = Vec::new();
        let listener = match ours && roots.live() {
            true => net::read(roots).map_err(|e| e.message().to_owned()).and_then(|nics| {
                net::bring_up(&nics);
                lldp::Listener::start(&nics).map_err(|e| format!("the switches cannot be heard: {e}"))
            }),
            false => Err(String::new()),
        };
        let listener = listener.map_err(|why| gaps.extend(Some(why).filter(|why| !why.is_empty()))).ok();
        let tables = smbios::read(&roots.sys);
        let mut memory = tables.memory;
        memory.usable_bytes = cpu::memory_total(&roots.proc);
        let inventory = Inventory {
            system: tables.system,
            board: tables.board,
            chassis: tables.chassis,
            tpm: tpm::read(&roots.sys, tables.tpm),
            firmware: firmware(&roots.sys),
            cpus: join_cpus(tables.cpus, cpu::read(&roots.proc, &roots.sys)),
            memory,
            disks: block::read(&roots.sys, &tables.slots)?,
            nics: Vec::new(),
            pci: pci::read(&roots.sys, &tables.slots),
            numa: cpu::numa(&roots.sys),
            concerns: Vec::new(),
            gaps,
            seconds: 0.0,
            bmc,
            kernel: value(&roots.proc.join("sys/kernel/osrelease")).unwrap_or_default(),
        };
        Ok(Self { inventory, listener, start, spent: start.elapsed() })
    }

    /// What the drives said, and what may be different now. `waited`: the time that was spent on the drives alone.
    pub async fn finish(self, roots: &Roots, drives: Answers, waited: Duration) -> Result<Inventory> {
        let again = Instant::now();
        let Self { mut inventory, listener, start, spent } = self;
        for (name, health) in drives.health {
            if let Some(disk) = inventory.disks.iter_mut().find(|disk| disk.name == name) {
                disk.health = Some(health);
            }
        }
        inventory.gaps.extend(drives.gaps);
        inventory.nics = net::read(roots)?;
        let listened = listener.as_ref().map(|_| start.elapsed().as_secs());
        let mut heard = listener.map(lldp::Listener::finish).unwrap_or_default();
        if inventory.nics.iter().any(|nic| nic.link && !heard.contains_key(&nic.name)) {
            for (card, neighbour) in running_lldpd(roots, &mut inventory.gaps).await {
                heard.entry(card).or_insert(neighbour);
            }
        }
        inventory.nics.iter_mut().for_each(|nic| nic.neighbour = heard.remove(&nic.name));
        let silent = inventory.nics.iter().filter(|nic| nic.link && nic.neighbour.is_none());
        let silent: Vec<&str> = silent.map(|nic| nic.name.as_str()).collect();
        if let (Some(seconds), false) = (listened, silent.is_empty()) {
            let cards = silent.join(", ");
            inventory
                .gaps
                .push(format!("no switch was heard by LLDP on {cards} within {seconds} s; many speak each 30 s"));
        }
        kernel::memory_errors(&roots.sys, &mut inventory.memory);
        match kernel::messages(&roots.dev) {
            Ok(messages) => inventory.concerns = kernel::concerns(messages.iter().map(String::as_str)),
            Err(why) => inventory.gaps.push(why),
        }
        inventory.seconds = (spent + waited + again.elapsed()).as_secs_f64();
        Ok(inventory)
    }
}

/// All of it in the RAM system, where nothing else is to be done meanwhile.
pub async fn take(roots: &Roots, bmc: Option<InBandBmc>) -> Result<Inventory> {
    let begin = {
        let roots = roots.clone();
        blocking(move || Begun::begin(&roots, bmc, true))
    };
    let begun = begin.await?;
    let start = Instant::now();
    let answers = drives(roots, &begun.inventory.disks).await;
    begun.finish(roots, answers, start.elapsed()).await
}

/// What an lldpd that runs here has heard. Where there is none, nothing is missing: in RAM the agent listens itself.
async fn running_lldpd(roots: &Roots, gaps: &mut Vec<String>) -> BTreeMap<String, Neighbour> {
    if !roots.live() {
        return BTreeMap::new();
    }
    match tool::run("lldpcli", &["-f", "json", "show", "neighbors"], LLDPCLI).await {
        Ok(output) if output.success => lldp::from_lldpcli(&output.stdout).unwrap_or_else(|why| {
            gaps.push(why);
            BTreeMap::new()
        }),
        // It is there, and its lldpd is not.
        Ok(_) => BTreeMap::new(),
        Err(error) if error.code() == "tool.missing" => BTreeMap::new(),
        Err(error) => {
            gaps.push(error.message().to_owned());
            BTreeMap::new()
        }
    }
}

pub fn disks(roots: &Roots) -> Result<Vec<Disk>> {
    block::read(&roots.sys, &BTreeMap::new())
}

pub fn nics(roots: &Roots) -> Result<Vec<Nic>> {
    net::read(roots)
}

/// What the first words need: quickly read and enough to tell which machine this is.
pub struct Identity {
    pub serial: Option<Serial>,
    pub uuid: Option<uuid::Uuid>,
    pub macs: Vec<MacAddr>,
}

/// `ours` as with [`Begun::begin`]: a card that is brought up now has its link when the inventory wants to see it.
pub fn identity(roots: &Roots, ours: bool) -> Identity {
    let System { serial, uuid, .. } = smbios::read(&roots.sys).system;
    // Without network devices there would be nobody to say hello to; an unreadable /sys is told by the inventory.
    let nics = net::read(roots).unwrap_or_default();
    if ours && roots.live() {
        net::bring_up(&nics);
    }
    Identity { serial, uuid, macs: nics.into_iter().map(|n| n.mac).collect() }
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
            stepping: seen.stepping.clone(),
            flags: seen.flags.clone(),
            governor: seen.governor.clone(),
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

    #[tokio::test]
    async fn an_inventory_of_this_very_machine() {
        let roots = Roots::default();
        let begun = Begun::begin(&roots, None, false).unwrap();
        let drives = drives(&roots, &begun.inventory.disks).await;
        let inventory = begun.finish(&roots, drives, Duration::ZERO).await.unwrap();
        assert!(inventory.memory.usable_bytes > 0);
        assert!(!inventory.cpus.is_empty());
        assert!(!inventory.kernel.is_empty());
        assert!(inventory.cpus.iter().all(|c| c.stepping.is_some() && !c.flags.is_empty()));
        assert!(inventory.numa.iter().all(|n| !n.cpus.is_empty()));
        let text = serde_json::to_string(&inventory).unwrap();
        assert_eq!(serde_json::from_str::<Inventory>(&text).unwrap(), inventory);
    }
}
