//! Everything the rules know of one machine.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::baseline::Baseline;
use super::burn::BurnIn;
use super::cabling::SeenPort;
use super::event::{BmcAccount, Order};
use super::ladder::Ladder;
use super::passport::PassingChecks;
use super::{BootChoice, Recheck, boot_choice};
use crate::link::{Check, Deployed, ErasedDisk, Measured, Mode, Problem};
use crate::machine::{
    ClientArch, Disk, Finding, Identity, Inventory, MacAddr, MachineId, Place, Purchase, Serial, SwitchPort,
};

/// Milliseconds since 1970, UTC.
pub type Millis = i64;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub id: MachineId,
    pub name: String,
    pub serial: Option<Serial>,
    pub uuid: Option<uuid::Uuid>,
    pub macs: BTreeSet<MacAddr>,
    pub place: Option<Place>,
    /// The ports of switches where the list has it.
    #[serde(default)]
    pub ports: Vec<SwitchPort>,
    /// The ports where its NICs were seen.
    #[serde(default)]
    pub seen_on: BTreeMap<MacAddr, SeenPort>,
    /// On the list of expected machines.
    pub expected: bool,
    /// What the list says besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listed_mac: Option<MacAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listed_ports: Vec<SwitchPort>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bmc_mac: Option<MacAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purchase: Option<Arc<Purchase>>,
    pub bmc: Option<BmcAccount>,
    #[serde(default)]
    pub bmc_password: BmcPassword,
    pub arch: Option<ClientArch>,
    pub address: Option<IpAddr>,
    pub agent: Option<AgentSeen>,
    pub inventory: Option<Arc<Inventory>>,
    pub measured: Vec<Measured>,
    /// What was not as it should be when it was last commissioned.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// Its firmware and settings, since it was last commissioned.
    #[serde(default)]
    pub baseline: Option<Baseline>,
    #[serde(default)]
    pub burn: Option<BurnIn>,
    pub order: Option<Order>,
    /// The disk that this deployment writes, once it is chosen.
    pub target: Option<String>,
    pub deployed: Option<Deployed>,
    /// What was made of its disks when it was last given back.
    #[serde(default)]
    pub erased: Option<Erased>,
    pub checks: Vec<Check>,
    /// The last look at it on demand, since it was delivered.
    #[serde(default)]
    pub recheck: Option<Recheck>,
    pub state: State,
    pub entered: Millis,
    /// Past it the machine is stuck in this state.
    pub deadline: Option<Millis>,
    /// Where it stands on the ladder in this state.
    #[serde(default)]
    pub ladder: Ladder,
    /// Network boots begun in this state, each within an hour of the one before.
    pub boots: u32,
    /// Delivered, and back at the network more often than the site allows, without its own system reporting in between.
    #[serde(default)]
    pub comes_back: bool,
    pub last_sighted: Option<Millis>,
    /// What its boot script started in this boot.
    pub served: Option<String>,
    /// The last reason why it got no address, and when that was told.
    #[serde(default)]
    pub unanswered: Option<(String, Millis)>,
    /// Time spent in each state since the last release, in order.
    pub times: Vec<StageTime>,
    /// Events so far.
    pub sequence: u64,
    /// The number of the agent's current order: the sequence at which the task last changed.
    pub number: u64,
}

/// Which password its BMC has. The words themselves are in the sealed store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BmcPassword {
    /// That of the list of expected machines.
    #[default]
    Listed,
    /// Still that of the list, to be changed when the machine is enlisted.
    Wanted,
    /// One that was generated for it.
    Own,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// On the list, never seen.
    Expected,
    Seen,
    Enlisted,
    Commissioning,
    Ready,
    Allocated,
    Deploying,
    Verifying,
    /// Cannot be made without a set of checks that passed.
    Delivered {
        checks: PassingChecks,
        passport: serde_json::Value,
    },
    Releasing,
    /// Kept out of use; knows what is wrong and in which stage it happened.
    Broken {
        problem: Problem,
        stage: String,
    },
    Retired,
}

impl State {
    pub fn name(&self) -> &'static str {
        match self {
            State::Expected => "expected",
            State::Seen => "seen",
            State::Enlisted => "enlisted",
            State::Commissioning => "commissioning",
            State::Ready => "ready",
            State::Allocated => "allocated",
            State::Deploying => "deploying",
            State::Verifying => "verifying",
            State::Delivered { .. } => "delivered",
            State::Releasing => "releasing",
            State::Broken { .. } => "broken",
            State::Retired => "retired",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentSeen {
    pub mode: Mode,
    pub boot_id: uuid::Uuid,
    pub version: String,
    pub at: Millis,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Erased {
    pub at: Millis,
    pub disks: Vec<ErasedDisk>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageTime {
    pub state: String,
    pub millis: Millis,
}

/// Why a machine does not move on by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub reason: String,
    pub deadline: Option<Millis>,
}

impl Machine {
    pub fn identity(&self) -> Identity {
        Identity { serial: self.serial.clone(), uuid: self.uuid }
    }

    /// A machine of which nothing is known but its name.
    pub fn new(id: MachineId, name: String, now: Millis, state: State) -> Self {
        Self {
            id,
            name,
            serial: None,
            uuid: None,
            macs: BTreeSet::new(),
            place: None,
            ports: Vec::new(),
            seen_on: BTreeMap::new(),
            expected: false,
            listed_mac: None,
            listed_ports: Vec::new(),
            bmc_mac: None,
            purchase: None,
            bmc: None,
            bmc_password: BmcPassword::Listed,
            arch: None,
            address: None,
            agent: None,
            inventory: None,
            measured: Vec::new(),
            findings: Vec::new(),
            baseline: None,
            burn: None,
            order: None,
            target: None,
            deployed: None,
            erased: None,
            checks: Vec::new(),
            recheck: None,
            state,
            entered: now,
            deadline: None,
            ladder: Ladder::default(),
            boots: 0,
            comes_back: false,
            last_sighted: None,
            served: None,
            unanswered: None,
            times: Vec::new(),
            sequence: 0,
            number: 0,
        }
    }

    /// When the engine has to look again by itself.
    pub fn wake_at(&self) -> Option<Millis> {
        self.deadline
    }

    /// The firmware baseline while it is being brought about.
    pub fn baseline_running(&self) -> Option<&Baseline> {
        self.baseline.as_ref().filter(|b| !b.done && self.state == State::Commissioning)
    }

    /// A delivered host is being looked at on demand.
    pub fn rechecking(&self) -> bool {
        matches!(self.state, State::Delivered { .. }) && self.recheck.as_ref().is_some_and(Recheck::running)
    }

    pub fn agent_mode(&self) -> Option<Mode> {
        self.agent.as_ref().map(|a| a.mode)
    }

    /// The disk of the inventory that was written.
    pub fn target_disk(&self) -> Option<&Disk> {
        let name = self.target.as_ref()?;
        self.inventory.as_ref()?.disks.iter().find(|d| &d.name == name)
    }

    /// It is to boot the agent, not its own disk and not nothing.
    pub fn wants_network(&self) -> bool {
        matches!(boot_choice(self), BootChoice::Agent)
    }

    /// `None` where the machine moves or rests as it should.
    pub fn waiting(&self) -> Option<Waiting> {
        let here = |reason: &str| {
            let climb = self.ladder.current.as_ref().map_or(String::new(), |climb| format!("; {climb}"));
            Some(Waiting { reason: format!("{reason}{climb}"), deadline: self.deadline })
        };
        if let Some(baseline) = self.baseline_running() {
            return here(&baseline.doing);
        }
        if let Some(burn) = self.burning() {
            return here(&burn.now());
        }
        match (&self.state, self.agent_mode()) {
            (State::Expected, _) if self.deadline.is_none() => here("not powered on yet"),
            (State::Expected, _) => here("powered on; no DHCP request yet"),
            (State::Seen, _) => here("booting; the agent has not reported yet"),
            (State::Enlisted | State::Commissioning, _) => here("the agent takes the inventory and measures"),
            (State::Ready | State::Allocated, _) if self.order.is_none() => here("ready for an order"),
            (State::Ready | State::Allocated, _) => here("about to be deployed"),
            (State::Deploying, _) if self.target.is_none() => here("the agent has not chosen the disk yet"),
            (State::Deploying, _) => here("the image is being written"),
            (State::Verifying, Some(Mode::Resident)) if self.checks.is_empty() => here("delivery checks run"),
            (State::Verifying, Some(Mode::Resident)) => here("the passport is being signed"),
            (State::Verifying, _) => here("booting from its own disk"),
            (State::Releasing, Some(Mode::Ram)) => here("the disks are being erased"),
            (State::Releasing, _) => here("booting from the network to be erased"),
            (State::Broken { problem, .. }, _) => {
                here(problem.hint.as_deref().unwrap_or("mend the cause, then `rackline machine retry`"))
            }
            (State::Delivered { .. }, _) if self.rechecking() => here("its checks are run again, on demand"),
            (State::Delivered { .. }, _) if self.comes_back => here(&format!(
                "came back to the network {} times; its own disk does not start, look at its console",
                self.boots
            )),
            (State::Delivered { .. } | State::Retired, _) => None,
        }
    }
}
