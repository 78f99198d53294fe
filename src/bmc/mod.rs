//! Power, boot device, sensors and identity of a machine through its BMC.
//!
//! ```text
//! engine ── Command ──► Fleet ── one at a time per BMC ──► act ──► trait Bmc ──► ipmi ──► rmcp ──► the BMC
//!        ◄── Answer ───  sessions, tries, deadlines         look, do, read back
//! ```
//!
//! [`Fleet::run`] is the door. [`act`] holds the policy that is the same for all protocols: look before acting, read back
//! after. [`Bmc`] is what a protocol has to offer for that; IPMI 2.0 over the network ([`ipmi`], [`rmcp`]) is the first.

pub mod act;
pub mod fleet;
pub mod ipmi;
pub mod rmcp;

use std::future::Future;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

pub use fleet::{Fleet, Settings};

use crate::error::Result;
use crate::ipmi::sensor::Level;
use crate::machine::{Firmware, MacAddr, PowerAction, Secret};

/// How to reach and enter a BMC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    pub address: SocketAddr,
    pub user: String,
    pub password: Secret,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Power {
    On,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootDevice {
    /// No override: the order that the firmware has set.
    None,
    Network,
    Disk,
}

/// A boot override that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootOverride {
    pub device: BootDevice,
    pub firmware: Firmware,
    /// For every boot from now on, not only the next.
    pub persistent: bool,
}

/// A boot override as the BMC tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSeen {
    /// `None`: one that is not among ours, such as a CD or the set-up screen.
    pub device: Option<BootDevice>,
    pub firmware: Firmware,
    pub persistent: bool,
    /// Whether the firmware will follow it.
    pub valid: bool,
}

/// Whether an effect was seen afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    Confirmed,
    /// Accepted, but the BMC cannot show that it came about.
    Unconfirmed {
        why: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChassisState {
    pub power: Power,
    /// The BMC reports a fault of the main power, of its control, an overload or an open interlock.
    pub fault: Option<Fault>,
    /// State of the identify light, where the BMC tells.
    pub identify: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    Power,
    Control,
    Overload,
    Interlock,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sensor {
    pub name: String,
    /// `temperature`, `fan`, `power supply` …
    pub kind: String,
    /// `None` for sensors with states only, and where the BMC has no reading now.
    pub value: Option<f64>,
    /// `°C`, `RPM`, `W`, `V` …; empty where there is none.
    pub unit: String,
    /// Against the thresholds, for sensors that have them.
    pub level: Option<Level>,
    /// States that are asserted, one bit each, for sensors without thresholds.
    pub states: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// How it is spoken to: `IPMI 2.0, cipher suite 17`.
    pub protocol: String,
    pub firmware: String,
    /// Name, or the IANA enterprise number where the name is not known here.
    pub manufacturer: String,
    pub product: u16,
    /// The 16 bytes as the BMC sends them; their order differs between makers.
    pub guid: Option<uuid::Uuid>,
    pub address: Option<IpAddr>,
    pub mac: Option<MacAddr>,
    /// Where the address is from: `static`, `DHCP` …
    pub address_source: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    PowerStatus,
    Power {
        action: PowerAction,
    },
    SetBoot(BootOverride),
    Boot,
    Sensors,
    /// The light is on for so many seconds; 0 turns it off.
    Identify {
        seconds: u8,
    },
    Info,
}

/// What came of a command; kept as an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    PowerStatus(ChassisState),
    Power {
        action: PowerAction,
        before: Power,
        after: Power,
        /// False where it was so already.
        acted: bool,
        #[serde(flatten)]
        outcome: Outcome,
    },
    SetBoot {
        wanted: BootOverride,
        seen: Option<BootSeen>,
        acted: bool,
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// `None` where the BMC cannot tell.
    Boot {
        seen: Option<BootSeen>,
    },
    Sensors {
        sensors: Vec<Sensor>,
    },
    Identify {
        seconds: u8,
        #[serde(flatten)]
        outcome: Outcome,
    },
    Info(Info),
}

/// What a protocol offers; each call is one look or one act, without judgement.
pub trait Bmc: Send {
    /// For errors: `BMC 10.0.0.7`.
    fn whose(&self) -> &str;
    fn chassis(&mut self) -> impl Future<Output = Result<ChassisState>> + Send;
    fn control(&mut self, action: PowerAction) -> impl Future<Output = Result<()>> + Send;
    fn identify(&mut self, seconds: u8) -> impl Future<Output = Result<()>> + Send;
    /// `None` where the BMC cannot tell.
    fn boot(&mut self) -> impl Future<Output = Result<Option<BootSeen>>> + Send;
    fn set_boot(&mut self, wanted: BootOverride) -> impl Future<Output = Result<()>> + Send;
    fn sensors(&mut self) -> impl Future<Output = Result<Vec<Sensor>>> + Send;
    fn info(&mut self) -> impl Future<Output = Result<Info>> + Send;
}
