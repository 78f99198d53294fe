//! The nouns: what a machine is, in types that are parsed once at the door and trusted from there on.
//!
//! [`id`] names things, [`filler`] knows what is no name, [`inventory`] says what is built in, [`finding`] what is wrong with it,
//! [`role`] what it shall become, [`target`] picks the disk to install on, [`version`] says which firmware is newer.

pub mod component;
pub mod filler;
pub mod finding;
pub mod id;
pub mod inventory;
pub mod power;
pub mod purchase;
pub mod role;
pub mod secret;
pub mod target;
pub mod version;

pub use finding::{Finding, Severity, Who};
pub use id::{Digest, Hostname, Identity, MacAddr, MachineId, Serial};
pub use inventory::{
    Board, Concern, Cpu, Dimm, Disk, DiskHealth, InBandBmc, Inventory, Memory, MemoryErrors, Neighbour, Nic, NumaNode,
    PciDevice, PciLink, System, Tpm,
};
pub use power::PowerAction;
pub use purchase::Purchase;
pub use role::{Role, Roles};
pub use secret::Secret;
pub use target::{TargetRule, select_target};

use serde::{Deserialize, Serialize};

/// The firmware a machine boots with: decides the boot file and which boot loader of an image is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// Also where nothing says otherwise: UEFI shows itself.
    #[default]
    Bios,
    Uefi,
}

impl std::fmt::Display for Firmware {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Firmware::Bios => "BIOS",
            Firmware::Uefi => "UEFI",
        })
    }
}

/// Client architecture of DHCP option 93 (RFC 4578 section 2.1 and the IANA registry "Processor Architecture Types").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientArch {
    /// 0: x86 BIOS.
    Bios,
    /// 6: x86 UEFI, 32 bit.
    UefiIa32,
    /// 7 and 9: x86-64 UEFI (9 is "EBC", which many ROMs send by mistake).
    UefiX64,
    /// 11: ARM 64-bit UEFI.
    UefiArm64,
    /// 15: x86 UEFI HTTP boot.
    HttpIa32,
    /// 16: x86-64 UEFI HTTP boot.
    HttpX64,
    /// 18 and 19: ARM UEFI HTTP boot, 32 and 64 bit.
    HttpArm64,
}

impl ClientArch {
    pub fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            0 => Self::Bios,
            6 => Self::UefiIa32,
            7 | 9 => Self::UefiX64,
            11 => Self::UefiArm64,
            15 => Self::HttpIa32,
            16 => Self::HttpX64,
            18 | 19 => Self::HttpArm64,
            _ => return None,
        })
    }

    pub fn firmware(self) -> Firmware {
        match self {
            Self::Bios => Firmware::Bios,
            _ => Firmware::Uefi,
        }
    }

    /// UEFI HTTP boot wants a URL and the vendor class `HTTPClient` instead of a TFTP file name.
    pub fn is_http(self) -> bool {
        matches!(self, Self::HttpIa32 | Self::HttpX64 | Self::HttpArm64)
    }
}

/// Where a machine stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    pub rack: String,
    /// Height unit counted from the bottom, 1 first.
    pub unit: u8,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-U{:02}", self.rack, self.unit)
    }
}

/// A port of a switch, as the site's configuration names both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SwitchPort {
    pub switch: String,
    pub port: String,
}

impl std::fmt::Display for SwitchPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.switch, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_of_the_iana_table() {
        assert_eq!(ClientArch::from_code(0), Some(ClientArch::Bios));
        assert_eq!(ClientArch::from_code(9), Some(ClientArch::UefiX64));
        assert_eq!(ClientArch::from_code(11), Some(ClientArch::UefiArm64));
        assert!(ClientArch::from_code(16).is_some_and(ClientArch::is_http));
        assert_eq!(ClientArch::from_code(999), None);
    }
}
