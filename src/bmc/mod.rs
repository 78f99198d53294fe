//! Power, boot device, sensors, identity and console of a machine through its BMC.
//!
//! ```text
//! engine ── Command ──► Fleet ── one at a time per BMC ──► act ──► trait Bmc ─┬► ipmi ──► rmcp ──► the BMC
//!        ◄── Answer ───  sessions, tries, deadlines         look, do, read back └► redfish ──────►
//! ```
//!
//! [`Fleet::run`] is the door. [`act`] holds the policy that is the same for all protocols: look before acting, read back
//! after. [`Bmc`] is what a protocol has to offer for that: IPMI 2.0 over the network ([`ipmi`], [`rmcp`]) and [`redfish`].

pub mod act;
pub mod command;
pub mod discover;
pub mod fleet;
pub mod ipmi;
pub mod personality;
pub mod redfish;
pub mod rmcp;
pub mod sol;
pub mod sweep;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

pub use crate::ipmi::sensor::Level;
pub use command::{
    AddressFrom, Answer, Bios, BiosAttributes, BootDevice, BootOverride, BootSeen, ChassisState, Clock, Command,
    Component, Fault, Info, Log, LogEntry, Network, Outcome, Part, Power, Sensor, SensorLimits, SetNetwork, Severity,
    Update, UpdateFrom, User,
};
pub use fleet::{Fleet, Settings};

use crate::error::{Error, Result};
use crate::machine::{Identity, PowerAction, Secret};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Ipmi,
    Redfish,
}

impl Protocol {
    /// How errors name a BMC: `BMC 10.0.0.7`, with the port where it is not the protocol's own.
    fn whose(self, address: SocketAddr) -> String {
        let port = match self {
            Protocol::Ipmi => rmcp::PORT,
            Protocol::Redfish => redfish::PORT,
        };
        match address.port() == port {
            true => format!("BMC {}", address.ip()),
            false => format!("BMC {address}"),
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Protocol::Ipmi => "IPMI",
            Protocol::Redfish => "Redfish",
        })
    }
}

/// Where a BMC answers, by what: UDP for IPMI, TLS for Redfish. One of them at least; a command goes through one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Doors {
    pub ipmi: Option<SocketAddr>,
    pub redfish: Option<SocketAddr>,
    /// Which to take where there are both.
    pub first: Protocol,
}

impl Doors {
    pub fn ipmi(address: SocketAddr) -> Self {
        Self { ipmi: Some(address), redfish: None, first: Protocol::Ipmi }
    }

    pub fn redfish(address: SocketAddr) -> Self {
        Self { ipmi: None, redfish: Some(address), first: Protocol::Redfish }
    }

    fn by(&self, protocol: Protocol) -> Option<(Protocol, SocketAddr)> {
        let address = match protocol {
            Protocol::Ipmi => self.ipmi,
            Protocol::Redfish => self.redfish,
        };
        address.map(|address| (protocol, address))
    }

    /// The way in; `None` where there is no door at all.
    pub fn way(&self) -> Option<(Protocol, SocketAddr)> {
        let other = match self.first {
            Protocol::Ipmi => Protocol::Redfish,
            Protocol::Redfish => Protocol::Ipmi,
        };
        self.by(self.first).or_else(|| self.by(other))
    }

    /// The same BMC through the other door, where it has one.
    pub fn other(&self) -> Option<Self> {
        let first = match self.way()?.0 {
            Protocol::Ipmi => Protocol::Redfish,
            Protocol::Redfish => Protocol::Ipmi,
        };
        self.by(first).map(|_| Self { first, ..*self })
    }

    /// What the BMC goes by among all of the site: the same through whichever door.
    pub fn key(&self) -> Option<SocketAddr> {
        self.ipmi.or(self.redfish)
    }
}

/// How to reach and enter a BMC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    pub doors: Doors,
    pub user: String,
    pub password: Secret,
    /// Which machine is meant where one BMC answers for several, as those of blades and multi-node chassis do.
    pub machine: Identity,
}

impl Access {
    /// Whether a session of the one will do for the other.
    fn enters_like(&self, other: &Self) -> bool {
        (self.doors, &self.user, &self.password) == (other.doors, &other.user, &other.password)
    }
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

    // What not every protocol or BMC has.

    fn log(&mut self, _after: Option<&str>) -> impl Future<Output = Result<Log>> + Send {
        let refused = unsupported(self.whose(), "its event log");
        async move { Err(refused) }
    }

    fn clear_log(&mut self, _last: &str) -> impl Future<Output = Result<()>> + Send {
        let refused = unsupported(self.whose(), "to clear its event log");
        async move { Err(refused) }
    }

    /// `None` where it has none, or does not tell.
    fn clock(&mut self) -> impl Future<Output = Result<Option<Clock>>> + Send {
        async { Ok(self.log(None).await?.clock) }
    }

    fn set_clock(&mut self) -> impl Future<Output = Result<()>> + Send {
        let refused = unsupported(self.whose(), "to set its clock");
        async move { Err(refused) }
    }

    fn parts(&mut self) -> impl Future<Output = Result<Vec<Part>>> + Send {
        let refused = unsupported(self.whose(), "the data of its parts");
        async move { Err(refused) }
    }

    fn users(&mut self) -> impl Future<Output = Result<Vec<User>>> + Send {
        let refused = unsupported(self.whose(), "its users");
        async move { Err(refused) }
    }

    fn set_password(&mut self, _user: &str, _password: &Secret) -> impl Future<Output = Result<()>> + Send {
        let refused = unsupported(self.whose(), "to change a password");
        async move { Err(refused) }
    }

    fn network(&mut self) -> impl Future<Output = Result<Network>> + Send {
        let refused = unsupported(self.whose(), "its network settings");
        async move { Err(refused) }
    }

    fn set_network(&mut self, _wanted: &SetNetwork) -> impl Future<Output = Result<()>> + Send {
        let refused = unsupported(self.whose(), "to change its network settings");
        async move { Err(refused) }
    }

    fn reset_bmc(&mut self, _cold: bool) -> impl Future<Output = Result<()>> + Send {
        let refused = unsupported(self.whose(), "to restart the BMC");
        async move { Err(refused) }
    }

    fn bios(&mut self) -> impl Future<Output = Result<Bios>> + Send {
        let refused = unsupported(self.whose(), "the settings of the firmware");
        async move { Err(refused) }
    }

    fn set_bios(&mut self, _attributes: &BiosAttributes) -> impl Future<Output = Result<()>> + Send {
        let refused = unsupported(self.whose(), "to change settings of the firmware");
        async move { Err(refused) }
    }

    fn boot_order(&mut self) -> impl Future<Output = Result<Vec<String>>> + Send {
        let refused = unsupported(self.whose(), "the boot order");
        async move { Err(refused) }
    }

    /// What the entries of the boot order are; empty where the BMC does not tell.
    fn boot_names(&mut self) -> impl Future<Output = Result<BTreeMap<String, String>>> + Send {
        async { Ok(BTreeMap::new()) }
    }

    fn set_boot_order(&mut self, _order: &[String]) -> impl Future<Output = Result<()>> + Send {
        let refused = unsupported(self.whose(), "to change the boot order");
        async move { Err(refused) }
    }

    fn components(&mut self) -> impl Future<Output = Result<Vec<Component>>> + Send {
        let refused = unsupported(self.whose(), "its firmware versions");
        async move { Err(refused) }
    }

    fn updating(&mut self) -> impl Future<Output = Result<bool>> + Send {
        let refused = unsupported(self.whose(), "to tell what it is doing");
        async move { Err(refused) }
    }

    fn update(&mut self, _update: &Update) -> impl Future<Output = Result<()>> + Send {
        let refused = unsupported(self.whose(), "firmware updates");
        async move { Err(refused) }
    }
}

fn unsupported(whose: &str, what: &str) -> Error {
    Error::refused("bmc.unsupported", format!("{whose} does not offer {what} by this protocol"))
}
