//! What a virtual rack consists of: how many machines, what each is made of, and the addresses and names that follow
//! from a machine's number.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::machine::{Firmware, MacAddr, Roles};

/// 32 virtual machines is what one host can show; more are a matter for protocol-level rehearsals.
pub const MAX_MACHINES: usize = 32;

pub const BRIDGE: &str = "lab0";
pub const APPLIANCE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const NETWORK: &str = "10.77.0.0/16";
pub const POOL: &str = "10.77.2.0-10.77.9.255";
/// The name by which the rack's switch speaks LLDP.
pub const SWITCH: &str = "lab-leaf";
pub const BMC_USER: &str = "admin";
/// Of the Redfish BMCs.
pub const HTTPS: u16 = 443;

#[derive(Debug, Clone)]
pub struct Spec {
    /// Names the network namespace too, so that labs run side by side.
    pub name: String,
    pub dir: PathBuf,
    /// Built images; shared by labs and kept between them.
    pub cache: PathBuf,
    /// The `rackline` program, which is also the appliance, the guard and the BMCs' helper.
    pub binary: PathBuf,
    pub machines: Vec<MachineSpec>,
}

#[derive(Debug, Clone)]
pub struct MachineSpec {
    pub role: Roles,
    pub firmware: Firmware,
    pub memory_bytes: u64,
    /// In the order of the firmware's boot list.
    pub disks: Vec<Disk>,
    pub bmc: BmcKind,
    pub listed: Listed,
    /// SMBIOS tables of a real server that it presents, as `dmidecode --dump-bin` writes them; those of the lab where absent.
    pub smbios: Option<PathBuf>,
}

/// By what the machine's BMC is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BmcKind {
    Ipmi,
    /// Then there is no KCS device either.
    Redfish,
    Both,
}

impl BmcKind {
    pub fn has_ipmi(self) -> bool {
        self != BmcKind::Redfish
    }

    pub fn has_redfish(self) -> bool {
        self != BmcKind::Ipmi
    }
}

/// What the purchase list says of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listed {
    Right,
    /// The BMC's password is another one in truth.
    WrongPassword(String),
    /// Nothing: nobody told the appliance of it.
    Not,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    pub bytes: u64,
    pub kind: DiskKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskKind {
    Nvme,
    SataSsd,
    /// A SATA disk that turns.
    Hdd,
}

impl Spec {
    pub fn check(&self) -> Result<()> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.name.is_empty() || self.name.len() > 32 || !self.name.chars().all(plain) || self.name.starts_with('-') {
            return Err(Error::input("lab.name", format!("{:?} cannot be the name of a lab", self.name))
                .hint("use up to 32 of a-z, 0-9 and '-'"));
        }
        if self.machines.is_empty() || self.machines.len() > MAX_MACHINES {
            return Err(Error::input("lab.machines", format!("a lab has 1 to {MAX_MACHINES} machines")));
        }
        if !self.dir.is_absolute() || !self.binary.is_absolute() || !self.cache.is_absolute() {
            return Err(Error::internal("lab.paths", "the paths of a lab must be absolute"));
        }
        let quoted = |path: &PathBuf| path.to_str().is_none_or(|p| p.contains(['\'', '"', '\\', '\n']));
        if quoted(&self.dir) || quoted(&self.binary) {
            return Err(Error::input("lab.paths", "the BMC simulator cannot read paths with quotes in them"));
        }
        match self.machines.iter().find(|m| m.memory_bytes < 512 << 20) {
            Some(_) => {
                Err(Error::input("lab.memory", "a machine needs at least 512 MiB of memory").hint("--memory 2G"))
            }
            None => Ok(()),
        }
    }

    pub fn netns(&self) -> String {
        netns(&self.name)
    }
}

pub fn netns(name: &str) -> String {
    format!("rackline-{name}")
}

/// Sockets live here: their path is bounded to 107 bytes (`sockaddr_un`), and a lab's own directory may be deep.
pub fn run_dir(name: &str) -> PathBuf {
    PathBuf::from("/run/rackline").join(name)
}

/// A machine of the rack; `number` counts from 1.
#[derive(Debug, Clone)]
pub struct Machine {
    pub number: u8,
    pub spec: MachineSpec,
    /// Disks, console and BMC state.
    pub dir: PathBuf,
    /// Sockets.
    pub run: PathBuf,
}

impl Machine {
    pub fn all(spec: &Spec) -> Vec<Machine> {
        (1u8..)
            .zip(&spec.machines)
            .map(|(number, machine)| Machine {
                number,
                spec: machine.clone(),
                dir: spec.dir.join(format!("node-{number:02}")),
                run: run_dir(&spec.name).join(format!("node-{number:02}")),
            })
            .collect()
    }

    pub fn name(&self) -> String {
        format!("node-{:02}", self.number)
    }

    pub fn serial(&self) -> String {
        format!("LW77S{:05}", self.number)
    }

    pub fn mac(&self) -> MacAddr {
        MacAddr([0x52, 0x54, 0x00, 0x77, 0x00, self.number])
    }

    pub fn uuid(&self) -> uuid::Uuid {
        uuid::Uuid::from_u128(0x4c57_5231_0077_4000_8000_0000_0000_0000 | u128::from(self.number))
    }

    pub fn bmc_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 1, self.number)
    }

    /// As the purchase list writes it.
    pub fn bmc_doors(&self) -> String {
        let address = self.bmc_address();
        match self.spec.bmc {
            BmcKind::Ipmi => address.to_string(),
            BmcKind::Redfish => format!("https://{address}"),
            BmcKind::Both => format!("{address} https://{address}"),
        }
    }

    pub fn bmc_mac(&self) -> MacAddr {
        MacAddr([0x52, 0x54, 0x00, 0x77, 0x01, self.number])
    }

    /// Where the BMC listens for its host's KCS device, on the namespace's loopback.
    pub fn kcs_port(&self) -> u16 {
        9000 + u16::from(self.number)
    }

    /// Where the BMC finds its machine's serial port, on the namespace's loopback.
    pub fn serial_port(&self) -> u16 {
        9400 + u16::from(self.number)
    }

    /// Of [`SWITCH`].
    pub fn port(&self) -> String {
        format!("Ethernet{}", self.number)
    }

    pub fn tap(&self) -> String {
        format!("tap{}", self.number)
    }

    pub fn unit(&self) -> u8 {
        2 * self.number - 1
    }

    pub fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    pub fn disk(&self, index: usize) -> PathBuf {
        self.dir.join(format!("disk{index}.raw"))
    }

    /// The end of what the machine printed, without control sequences.
    pub fn console_tail(&self, lines: usize) -> Vec<String> {
        super::text::tail(&self.console(), lines)
    }
}
