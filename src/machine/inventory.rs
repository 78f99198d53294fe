//! What is built into a machine, as the agent found it. Sizes in bytes, speeds in the unit that the name says.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Firmware, MacAddr, Serial};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    pub system: System,
    pub firmware: Firmware,
    pub cpus: Vec<Cpu>,
    pub memory: Memory,
    pub disks: Vec<Disk>,
    pub nics: Vec<Nic>,
    /// The BMC as `/dev/ipmi0` tells it, where there is one.
    pub bmc: Option<InBandBmc>,
    /// Kernel release of the system that took the inventory.
    pub kernel: String,
}

/// SMBIOS type 0 and 1 (DSP0134 sections 7.1 and 7.2).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct System {
    pub manufacturer: Option<String>,
    pub product: Option<String>,
    pub serial: Option<Serial>,
    pub uuid: Option<uuid::Uuid>,
    pub bios_vendor: Option<String>,
    pub bios_version: Option<String>,
    pub bios_date: Option<String>,
}

/// One populated socket (SMBIOS type 4), with what the kernel adds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    pub socket: String,
    pub model: String,
    pub cores: u16,
    pub threads: u16,
    pub max_mhz: Option<u16>,
    pub microcode: Option<String>,
    /// Hardware virtualisation usable by the kernel: the `vmx` or `svm` flag.
    pub virtualisation: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// `MemTotal` of the kernel.
    pub usable_bytes: u64,
    /// Populated slots only (SMBIOS type 17).
    pub dimms: Vec<Dimm>,
    pub slots: u16,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Dimm {
    pub slot: String,
    pub size_bytes: u64,
    pub speed_mts: Option<u16>,
    pub manufacturer: Option<String>,
    pub part: Option<String>,
    pub serial: Option<Serial>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Disk {
    /// Kernel name without `/dev/`: `sda`, `nvme0n1`, `vda`.
    pub name: String,
    pub model: Option<String>,
    pub serial: Option<Serial>,
    /// World wide name or EUI-64/NGUID, as the kernel writes it (`naa.…`, `eui.…`).
    pub wwn: Option<String>,
    pub size_bytes: u64,
    pub rotational: bool,
    pub removable: bool,
    pub read_only: bool,
    /// `nvme`, `sata`, `sas`, `usb`, `virtio`, `scsi`.
    pub transport: String,
    pub firmware: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Nic {
    pub name: String,
    pub mac: MacAddr,
    pub driver: Option<String>,
    pub pci: Option<String>,
    pub firmware: Option<String>,
    pub link: bool,
    /// As negotiated, in Mb/s; `None` without link or where the driver does not say (virtio).
    pub speed_mbps: Option<u32>,
    /// This is the one the machine booted from.
    pub boot: bool,
}

/// What the host side of the BMC tells: enough to pair a BMC with its host without guessing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InBandBmc {
    pub address: Option<IpAddr>,
    pub mac: Option<MacAddr>,
    pub firmware: Option<String>,
}
