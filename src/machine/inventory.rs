//! What is built into a machine, as the agent found it. Sizes in bytes, speeds in the unit that the name says.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Firmware, MacAddr, Serial};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    pub system: System,
    #[serde(default)]
    pub board: Board,
    #[serde(default)]
    pub chassis: Board,
    #[serde(default)]
    pub tpm: Option<Tpm>,
    pub firmware: Firmware,
    pub cpus: Vec<Cpu>,
    pub memory: Memory,
    pub disks: Vec<Disk>,
    pub nics: Vec<Nic>,
    /// All devices on PCI but bridges, in the order of their addresses.
    #[serde(default)]
    pub pci: Vec<PciDevice>,
    #[serde(default)]
    pub numa: Vec<NumaNode>,
    /// What the kernel has said that a good machine does not make it say.
    #[serde(default)]
    pub concerns: Vec<Concern>,
    /// What could not be found out, and why, as sentences: a tool that is missing or hangs costs its values only.
    #[serde(default)]
    pub gaps: Vec<String>,
    /// How much longer commissioning took because of it.
    #[serde(default)]
    pub seconds: f64,
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

/// Main board and chassis, SMBIOS type 2 and 3 (DSP0134 sections 7.3 and 7.4).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Board {
    pub manufacturer: Option<String>,
    pub product: Option<String>,
    pub version: Option<String>,
    pub serial: Option<Serial>,
    pub asset_tag: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tpm {
    /// `1.2`, `2.0`.
    pub version: String,
    pub vendor: Option<String>,
    pub firmware: Option<String>,
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
    /// Family, model and stepping as the kernel writes them: `6-85-7`.
    #[serde(default)]
    pub stepping: Option<String>,
    /// Of `/proc/cpuinfo`, sorted.
    #[serde(default)]
    pub flags: Vec<String>,
    /// The scaling governor; `None` where the kernel does not scale.
    #[serde(default)]
    pub governor: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// `MemTotal` of the kernel.
    pub usable_bytes: u64,
    /// Populated slots only (SMBIOS type 17).
    pub dimms: Vec<Dimm>,
    pub slots: u16,
    /// Names of the slots without a DIMM.
    #[serde(default)]
    pub empty: Vec<String>,
    /// Errors that the memory controllers corrected and could not correct since the kernel started; `None` without EDAC.
    #[serde(default)]
    pub corrected_errors: Option<u64>,
    #[serde(default)]
    pub uncorrected_errors: Option<u64>,
    /// Where there are such errors: the DIMMs as EDAC names them.
    #[serde(default)]
    pub errors: Vec<MemoryErrors>,
}

/// Counters of EDAC for a DIMM, or for a controller where it does not know the DIMM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryErrors {
    pub label: String,
    pub corrected: u64,
    pub uncorrected: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Dimm {
    /// The device locator: `A1`, `DIMM_A0`.
    pub slot: String,
    /// The bank locator, where it says more: `_Node0_Channel0_Dimm0`.
    #[serde(default)]
    pub bank: Option<String>,
    pub size_bytes: u64,
    /// As configured, in MT/s.
    pub speed_mts: Option<u16>,
    /// What the DIMM could do, in MT/s.
    #[serde(default)]
    pub rated_mts: Option<u16>,
    pub manufacturer: Option<String>,
    pub part: Option<String>,
    pub serial: Option<Serial>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
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
    /// Where it is plugged in, as the enclosure or the PCI slot says: `enclosure 1 slot 7`.
    #[serde(default)]
    pub slot: Option<String>,
    /// PCI address of its controller; for NVMe its own.
    #[serde(default)]
    pub controller: Option<String>,
    #[serde(default)]
    pub numa: Option<u16>,
    /// `None`: it has nothing to say of itself, or no tool to ask it.
    #[serde(default)]
    pub health: Option<DiskHealth>,
}

/// SMART or the health log of NVMe, as `smartctl --json` tells it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DiskHealth {
    /// The drive's own verdict.
    pub passed: Option<bool>,
    /// Share of the rated endurance that is used, in percent; may exceed 100.
    pub wear_percent: Option<u16>,
    pub power_on_hours: Option<u64>,
    pub temperature_celsius: Option<i16>,
    pub reallocated_sectors: Option<u64>,
    pub pending_sectors: Option<u64>,
    pub uncorrectable_errors: Option<u64>,
    /// Bytes since it was made.
    pub written_bytes: Option<u64>,
    /// Transfers that arrived damaged (interface CRC): a cable or a backplane, not the drive.
    #[serde(default)]
    pub crc_errors: Option<u64>,
    /// What is left of the spare blocks, in percent (NVMe).
    #[serde(default)]
    pub spare_percent: Option<u16>,
    /// NVMe critical warnings in words: `spare below threshold`; for ATA the attributes that are below theirs.
    #[serde(default)]
    pub warnings: Vec<String>,
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
    /// The highest that it supports, in Mb/s.
    #[serde(default)]
    pub max_mbps: Option<u32>,
    /// Combined or receive queues, in use and possible.
    #[serde(default)]
    pub queues: Option<u16>,
    #[serde(default)]
    pub max_queues: Option<u16>,
    #[serde(default)]
    pub numa: Option<u16>,
    /// What the switch says by LLDP.
    #[serde(default)]
    pub neighbour: Option<Neighbour>,
}

/// The other end of a cable (IEEE 802.1AB).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// System name; the chassis id where it has none.
    pub switch: String,
    /// Port id, and its description where that differs.
    pub port: String,
    pub description: Option<String>,
    /// The untagged VLAN of the port.
    pub vlan: Option<u16>,
}

/// A function of a PCI device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PciDevice {
    /// `0000:3b:00.1`: domain, bus, device, function.
    pub address: String,
    /// `8086:1572`, vendor and device.
    pub id: String,
    /// Base class and subclass: `0x0302` is a 3D controller.
    pub class: u16,
    /// As the PCI ID repository calls it; `None` where it does not know it.
    pub name: Option<String>,
    pub driver: Option<String>,
    /// What is printed beside it: `PCIe Slot 4`, `Integrated NIC 1` (SMBIOS types 9 and 41).
    #[serde(default)]
    pub slot: Option<String>,
    pub numa: Option<u16>,
    /// As negotiated, and as both ends could; `None` for devices of the root complex.
    pub link: Option<PciLink>,
    pub capable: Option<PciLink>,
}

/// Speed and width of a PCI Express link.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PciLink {
    /// GT/s of one lane.
    pub gts: f32,
    pub lanes: u8,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NumaNode {
    pub node: u16,
    pub memory_bytes: u64,
    /// As the kernel writes it: `0-15,32-47`.
    pub cpus: String,
}

/// One kind of message of the kernel that tells of a fault in the hardware.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Concern {
    /// `mce`, `edac`, `aer`, `thermal`, `ata`, `scsi`, `nvme`, `link`, `pci`, `firmware`.
    pub kind: String,
    /// The first message of this kind.
    pub message: String,
    pub count: u32,
}

/// What the host side of the BMC tells: enough to pair a BMC with its host without guessing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InBandBmc {
    pub address: Option<IpAddr>,
    pub mac: Option<MacAddr>,
    pub firmware: Option<String>,
}
