//! What a role makes of a machine: which image, how its disks are laid out, what is set in its kernel, which checks it has to
//! pass, how it is handed over. Declared in `templates/role/*.toml` and by the site, read and joined by pure rules.
//!
//! An order carries the whole [`Setup`]: what a template says later changes no host that was ordered before.

pub mod disks;
pub mod files;
pub mod plan;
pub mod storage;
mod template;
pub mod tuning;

use serde::{Deserialize, Serialize};

pub use storage::Storage;
pub use template::{Template, Templates};
pub use tuning::Setting;

/// What a host is set up with, complete when its order is accepted. The default is a host that is only its image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Setup {
    pub storage: Storage,
    pub network: Network,
    pub tuning: Vec<Setting>,
    /// Ids of the checks that have to have been run, besides those that every host has.
    pub checks: Vec<String>,
    pub hand_off: Vec<HandOff>,
}

impl Setup {
    /// The value of a setting, where it is set.
    pub fn tuned(&self, name: &str) -> Option<&str> {
        self.tuning.iter().find(|s| s.name == name).map(|s| s.value.as_str())
    }

    /// The kernel release below which this host is not handed off: that of its roles, or that of the site where it is higher.
    pub fn kernel_floor(&self, site: &str) -> String {
        let own = self.tuned("kernel.floor").zip(tuning::knob("kernel.floor"));
        own.and_then(|(own, knob)| knob.join(own, site)).unwrap_or(site).to_owned()
    }
}

/// How the host is connected: by DHCP on the NIC that it was installed through.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {}

/// By what others reach what runs on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HandOff {
    /// A connection URI of libvirt.
    Libvirt,
    /// A context of the Docker command.
    Docker,
    /// The database of Open vSwitch.
    Ovsdb,
}
