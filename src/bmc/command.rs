//! What a BMC can be asked, and what comes back: the same words for every protocol.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ipmi::sensor::Level;
use crate::machine::{Firmware, MacAddr, PowerAction, Secret};

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
    /// Against the limits, or the worst of the states. `None` where nothing is known now.
    pub level: Option<Level>,
    /// In words, for sensors without limits: `present`, `power input lost`.
    pub states: Vec<String>,
    pub limits: SensorLimits,
}

/// Where a sensor's limits are, in its unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct SensorLimits {
    pub lower_warning: Option<f64>,
    pub lower_critical: Option<f64>,
    pub lower_fatal: Option<f64>,
    pub upper_warning: Option<f64>,
    pub upper_critical: Option<f64>,
    pub upper_fatal: Option<f64>,
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

/// What a BMC has written down (the SEL of IPMI, a LogService of Redfish), oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    pub entries: Vec<LogEntry>,
    /// The log is full, or has lost entries for want of room.
    pub overflow: bool,
    /// Where the BMC has a clock.
    pub clock: Option<Clock>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// As the BMC counts: the record id of IPMI, the `Id` of Redfish.
    pub id: String,
    /// `None` where the BMC had no time yet when it wrote the entry.
    pub at: Option<jiff::Timestamp>,
    pub severity: Severity,
    /// `None` for entries that are not about one.
    pub sensor: Option<String>,
    /// One sentence.
    pub text: String,
    /// False: the state has ended.
    pub asserted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Ok,
    Warning,
    Critical,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    pub shows: jiff::Timestamp,
    /// How much it is ahead of the appliance's clock; negative: behind.
    pub ahead_seconds: i64,
}

/// A part that tells what it is: FRU data of IPMI, an `Assembly` or a resource of Redfish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// `Builtin FRU Device`, `PSU 1` …
    pub name: String,
    /// `product.serial` → `7XK2M13`; areas are `chassis`, `board` and `product`.
    pub fields: BTreeMap<String, String>,
    /// What could not be read, a sentence each.
    pub broken: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// As the BMC counts: the slot of IPMI, the `Id` of Redfish.
    pub id: String,
    pub name: String,
    /// `None` where the BMC does not tell.
    pub enabled: Option<bool>,
    /// `Administrator`, `Operator`, `ReadOnly` …
    pub role: String,
}

/// How the BMC itself is on the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub mac: Option<MacAddr>,
    pub address: Option<IpAddr>,
    /// Bits of the network part.
    pub prefix: Option<u8>,
    pub gateway: Option<IpAddr>,
    /// `static`, `DHCP` …
    pub source: Option<String>,
    pub vlan: Option<u16>,
    /// Time servers; `None` where the protocol does not tell.
    pub ntp: Option<Vec<String>>,
}

/// What is wanted of [`Network`]; `None` leaves as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetNetwork {
    #[serde(default)]
    pub address: Option<AddressFrom>,
    #[serde(default)]
    pub ntp: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddressFrom {
    Dhcp,
    Static { address: IpAddr, prefix: u8, gateway: Option<IpAddr> },
}

/// Firmware of one part, as the BMC has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// By which an update names it.
    pub id: String,
    pub name: String,
    pub version: Option<String>,
    pub updateable: bool,
}

/// A firmware image on its way to a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    pub from: UpdateFrom,
    /// [`Component::id`]; empty: the BMC finds out by the image.
    pub targets: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateFrom {
    /// The BMC fetches it.
    Url(String),
    /// It is sent to the BMC.
    File(PathBuf),
}

/// Attributes of the firmware set-up; numbers, booleans and words, by the vendor's names.
pub type BiosAttributes = BTreeMap<String, serde_json::Value>;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bios {
    pub now: BiosAttributes,
    /// What becomes true with the next boot.
    pub pending: BiosAttributes,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Entries after this one; all where there is none, or where it is not in the log any more.
    Log {
        after: Option<String>,
    },
    /// Only if `last` is still the newest entry: what came since was not saved yet.
    ClearLog {
        last: String,
    },
    Clock,
    /// Sets the BMC's clock to the appliance's.
    SetClock,
    Parts,
    Users,
    /// The password of a user that there is; the next session must use it.
    SetPassword {
        user: String,
        #[serde(skip_serializing)]
        password: Secret,
    },
    Network,
    SetNetwork(SetNetwork),
    /// Restarts the BMC itself, not the machine; `cold` with its hardware.
    ResetBmc {
        cold: bool,
    },
    Bios,
    SetBios {
        attributes: BiosAttributes,
    },
    /// Boot entries by the firmware's names, the first one first.
    BootOrder,
    SetBootOrder {
        order: Vec<String>,
    },
    Components,
    /// Ends when the BMC says that the image is in place; what is there then, [`Command::Components`] tells.
    Update(Update),
    /// Whether the BMC writes firmware at this moment, whoever told it to.
    Updating,
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
        /// From the command to the state that was wanted.
        #[serde(default)]
        millis: u64,
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
    Log(Log),
    /// `None` where it has none, or does not tell.
    Clock {
        clock: Option<Clock>,
    },
    Parts {
        parts: Vec<Part>,
    },
    Users {
        users: Vec<User>,
    },
    Network(Network),
    Bios(Bios),
    BootOrder {
        order: Vec<String>,
        /// What the entries are, where the BMC tells: `PXE Device 1: Integrated NIC 1`.
        #[serde(default)]
        names: BTreeMap<String, String>,
    },
    Components {
        components: Vec<Component>,
    },
    Updating {
        busy: bool,
    },
    /// Of what has no more to tell: `what` as a part of a sentence.
    Done {
        what: String,
        #[serde(flatten)]
        outcome: Outcome,
    },
}
