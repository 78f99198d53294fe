//! The rack's switch, as far as LLDP goes: each port says its name, so that the agents learn where their cables end.
//!
//! It is a process in the lab's network, which the guard ends with the rest (lldpd writes over its environment, by which the
//! guard would know it). Which port is at which tap stands in a file that is read again each time: cables can be swapped
//! while the rack runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::guard::Guard;
use super::net;
use super::spec::{Machine, SWITCH};
use crate::agent::inventory::lldp::{announcement, speak};
use crate::error::{Kind, OrFail, Result};
use crate::machine::MacAddr;

/// Real switches send each half minute, and at once to who is new; this one need not know who is.
const EACH: Duration = Duration::from_secs(2);
const MAC: MacAddr = MacAddr([0x52, 0x54, 0x00, 0x77, 0xff, 0x02]);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Port {
    name: String,
    description: String,
}

type Ports = BTreeMap<String, Port>;

fn file(dir: &Path) -> PathBuf {
    dir.join("leaf.json")
}

pub fn start(guard: &Guard, netns: &str, binary: &Path, dir: &Path, machines: &[Machine]) -> Result<Child> {
    let port = |m: &Machine| (m.tap(), Port { name: m.port(), description: m.name() });
    write(dir, &machines.iter().map(port).collect())?;
    let mut command = net::inside(netns, binary);
    command.args(["lab", "leaf"]).arg(file(dir));
    guard.spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
}

/// The cables of two machines change places.
pub fn swap(dir: &Path, one: &Machine, other: &Machine) -> Result<()> {
    let mut ports = read(&file(dir))?;
    if let (Some(a), Some(b)) = (ports.remove(&one.tap()), ports.remove(&other.tap())) {
        ports.insert(one.tap(), b);
        ports.insert(other.tap(), a);
    }
    write(dir, &ports)
}

fn write(dir: &Path, ports: &Ports) -> Result<()> {
    let failed = || "cannot write the ports of the lab's switch";
    let text = serde_json::to_string(ports).or_fail(Kind::Internal, "lab.leaf", failed)?;
    let half = file(dir).with_extension("new");
    let written = fs::write(&half, text).and_then(|()| fs::rename(&half, file(dir)));
    written.or_fail(Kind::Config, "lab.leaf", failed)
}

fn read(file: &Path) -> Result<Ports> {
    let failed = || format!("{} does not hold the ports of a switch", file.display());
    let text = fs::read_to_string(file).or_fail(Kind::Config, "lab.leaf", failed)?;
    serde_json::from_str(&text).or_fail(Kind::Config, "lab.leaf", failed)
}

/// `rackline lab leaf FILE`: until the lab ends.
pub fn main(file: &Path) -> Result<std::process::ExitCode> {
    loop {
        round(file)?;
        std::thread::sleep(EACH);
    }
}

/// One frame from each port.
fn round(file: &Path) -> Result<()> {
    let frame = |port: &Port| announcement(MAC, SWITCH, &port.name, Some(&port.description));
    let frames = read(file)?.iter().map(|(tap, port)| (tap.clone(), frame(port))).collect();
    speak(&frames).or_fail(Kind::Internal, "lab.leaf", || "the lab's switch cannot speak")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::inventory::lldp::Listener;
    use crate::agent::inventory::lldp::tests::{card, own_network, run};
    use crate::lab::spec::{BmcKind, Listed, MachineSpec};
    use crate::machine::{Firmware, Role};

    fn machine(number: u8) -> Machine {
        let spec = MachineSpec {
            role: Role::Kvm.into(),
            firmware: Firmware::Bios,
            memory_bytes: 1 << 30,
            disks: vec![],
            bmc: BmcKind::Ipmi,
            listed: Listed::Right,
            smbios: None,
        };
        Machine { number, spec, dir: "/d".into(), run: "/r".into() }
    }

    #[test]
    fn machines_hear_the_ports_they_are_plugged_into() {
        let in_thread = std::thread::spawn(|| {
            if !own_network() {
                eprintln!("skipped: this needs root");
                return;
            }
            let cards = ["eth1", "eth2"];
            for (machine, card) in [machine(1), machine(2)].iter().zip(cards) {
                run("ip", &format!("link add {} type veth peer name {card}", machine.tap()));
                run("ip", &format!("link set {} up", machine.tap()));
                run("ip", &format!("link set {card} up"));
            }
            let dir = tempfile::tempdir().unwrap();
            let port = |m: &Machine| (m.tap(), Port { name: m.port(), description: m.name() });
            write(dir.path(), &[port(&machine(1)), port(&machine(2))].into()).unwrap();
            let hear = || {
                let listener = Listener::start(&cards.map(card)).unwrap();
                round(&file(dir.path())).unwrap();
                std::thread::sleep(Duration::from_millis(300));
                listener
                    .finish()
                    .into_iter()
                    .map(|(card, n)| format!("{card}: {} {}", n.switch, n.port))
                    .collect::<Vec<_>>()
            };
            assert_eq!(hear(), ["eth1: lab-leaf Ethernet1", "eth2: lab-leaf Ethernet2"]);
            swap(dir.path(), &machine(1), &machine(2)).unwrap();
            assert_eq!(hear(), ["eth1: lab-leaf Ethernet2", "eth2: lab-leaf Ethernet1"]);
        });
        in_thread.join().unwrap();
    }
}
