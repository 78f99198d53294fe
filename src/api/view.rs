//! What the outside sees of a machine: the JSON of `/api/v1`, which command line, console and lab read alike.

use serde::{Deserialize, Serialize};

use crate::bmc::sol::hub::Status;
use crate::lifecycle::{Recheck, TestDone};
use crate::link::{Check, Measured, Problem, Progress};
use crate::machine::{Finding, Firmware, Hostname, Inventory, MacAddr, MachineId, Place, Roles, Serial, TargetRule};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MachineList {
    pub machines: Vec<MachineView>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MachineView {
    pub id: MachineId,
    pub name: String,
    pub serial: Option<Serial>,
    pub place: Option<Place>,
    pub macs: Vec<MacAddr>,
    /// The switch ports where its NICs were seen.
    #[serde(default)]
    pub ports: Vec<PortView>,
    /// Where a machine that is not on the list probably stands: where another is expected on its port.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub suggested_place: Option<Place>,
    /// What does not fit between its switch ports and the list.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub cabling: Vec<Problem>,
    pub firmware: Option<Firmware>,
    /// `expected`, `seen`, `enlisted`, `commissioning`, `ready`, `allocated`, `deploying`, `verifying`, `delivered`,
    /// `releasing`, `broken`, `retired`.
    pub state: String,
    /// When the state was entered, milliseconds since 1970.
    pub since: i64,
    /// Why the machine does not move on by itself right now.
    pub waiting: Option<Waiting>,
    pub progress: Option<Progress>,
    pub role: Option<Roles>,
    pub hostname: Option<Hostname>,
    pub address: Option<std::net::IpAddr>,
    /// Only in `broken`.
    pub problem: Option<Problem>,
    pub times: Vec<StageTime>,
    /// The burn-in that is under way, or the last one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub burn: Option<BurnView>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub inventory: Option<Inventory>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub checks: Vec<Check>,
    /// The last look at a delivered host on demand.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub recheck: Option<Recheck>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub measured: Vec<Measured>,
    /// What was not as it should be when it was last commissioned.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub findings: Vec<Finding>,
    /// The signed passport as it is handed out; only in `delivered`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub passport: Option<serde_json::Value>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PortView {
    pub mac: MacAddr,
    pub switch: String,
    pub port: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Waiting {
    pub reason: String,
    /// Milliseconds since 1970; past it the machine is stuck and says so.
    pub deadline: Option<i64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StageTime {
    pub state: String,
    pub seconds: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EventView {
    pub sequence: u64,
    /// Milliseconds since 1970.
    pub at: i64,
    pub kind: String,
    /// One sentence.
    pub text: String,
    pub body: serde_json::Value,
}

/// `POST /api/v1/machines/{machine}/deploy`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployRequest {
    pub role: Roles,
    /// An image of the catalogue; the role's own name where absent.
    #[serde(default)]
    pub image: Option<String>,
    /// The machine's name where absent.
    #[serde(default)]
    pub hostname: Option<Hostname>,
    #[serde(default)]
    pub target: TargetRule,
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// Time `dd` of as many bytes first, for the benchmark.
    #[serde(default)]
    pub compare_with_dd: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BurnView {
    pub profile: String,
    /// Milliseconds since 1970; absent while it waits for inventory and firmware.
    pub began: Option<i64>,
    pub ended: Option<i64>,
    /// An operator cut it short.
    pub stopped: bool,
    /// Tests in all, and those that are done.
    pub tests: usize,
    pub done: Vec<TestDone>,
    pub restarts: u32,
}

/// `POST /api/v1/machines/{machine}/burn`; `…/burn/stop` cuts it short.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BurnRequest {
    /// `quick`, `standard`, `soak`.
    pub profile: String,
    /// Also write to disks that hold data.
    #[serde(default)]
    pub overwrite: bool,
}

/// `POST /api/v1/machines/{machine}/power`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerRequest {
    /// `on`, `off`, `cycle`, `reset`, `soft`.
    pub action: String,
}

/// A machine's console.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConsoleView {
    pub state: Status,
    /// Whether it is recorded now.
    pub recorded: bool,
    /// Oldest first.
    pub boots: Vec<ConsoleBoot>,
}

/// What is kept of a boot, from one power action to the next.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConsoleBoot {
    /// Its name: when it began, in milliseconds since 1970.
    pub boot: i64,
    /// When something was printed last.
    pub last: i64,
    /// Bytes that were printed, and what of them takes how much on disk.
    pub printed: u64,
    pub stored: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConsoleLines {
    /// In bytes from the start of the boot: of the first line, where to read on, and what there is now.
    pub offset: u64,
    pub next: u64,
    pub end: u64,
    /// A note at `next` comes again when read on from there.
    pub lines: Vec<ConsoleLine>,
    /// A line that is not ended, such as a prompt; it is there again when read on from `next`.
    pub tail: Option<ConsoleLine>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleLine {
    /// Milliseconds since 1970, to the second.
    pub at: i64,
    pub text: String,
    /// Said by the appliance: a gap, a stage of the machine.
    #[serde(default)]
    pub note: bool,
}

/// Text frames of the live console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConsoleSays {
    State(Status),
    Note(String),
    /// Whether what you type is taken.
    Types(bool),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConsoleAsks {
    /// A break on the serial line.
    Break,
}
