//! The facts that come in, the actions that go out, and the refusal in between.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::baseline::BaselineNews;
use super::cabling::SeenPort;
use super::ladder::{Climb, Means};
use crate::link::{BurnProfile, Check, Mode, Outcome, Problem, Tested};
use crate::machine::{
    ClientArch, Digest, Finding, Hostname, MacAddr, Place, PowerAction, Purchase, Roles, Serial, SwitchPort, TargetRule,
};
use crate::role::Setup;

/// A fact, as a type. Stored as it is: a variant may gain fields with defaults, never lose or change one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The machine is on the list of expected machines.
    Expected(Expectation),
    /// It asked for an address.
    Sighted(Sighting),
    /// It asked for an address and got none.
    Unanswered {
        why: String,
    },
    /// What the boot services found out about it: a sentence for the timeline, without effect on the state.
    Noted {
        sentence: String,
    },
    /// What its BMC had written down, kept here before the BMC was told to forget it.
    BmcLogSaved {
        entries: Vec<serde_json::Value>,
    },
    /// It was handed a boot script.
    ScriptServed {
        choice: String,
    },
    /// An agent runs on it and says who it is.
    Hello {
        mode: Mode,
        boot_id: uuid::Uuid,
        serial: Option<Serial>,
        uuid: Option<uuid::Uuid>,
        macs: Vec<MacAddr>,
        agent_version: String,
        address: Option<IpAddr>,
        /// Added at the door: what was sighted at one of its MAC addresses.
        arch: Option<ClientArch>,
        /// Added at the door: its name from now on.
        name: Option<String>,
        /// Added at the door: the ports where its NICs were sighted.
        #[serde(default)]
        seen_on: BTreeMap<MacAddr, SeenPort>,
    },
    /// The agent reports on the order with this number.
    Reported {
        number: u64,
        outcome: Outcome,
        /// Added at the door: what is not as it should be.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        findings: Vec<Finding>,
    },
    /// It shall become a host.
    Ordered(Order),
    /// It shall be wiped and go back to the pool.
    ReleaseRequested,
    /// The cause is mended; try again from the start.
    RetryRequested,
    /// It is delivered, and shall be looked at again.
    CheckRequested,
    RetireRequested,
    PowerRequested {
        action: PowerAction,
    },
    /// Its BMC shall have a password of its own in the place of the listed one, or keep that.
    BmcPasswordWanted {
        own: bool,
    },
    /// It shall be put under load before it is used.
    BurnInWanted {
        profile: Box<BurnProfile>,
        /// Also write to disks that hold data.
        #[serde(default)]
        overwrite: bool,
        /// An operator asked; otherwise the site wants it of every machine.
        #[serde(default)]
        asked: bool,
    },
    /// The rest of its burn-in is left.
    BurnInStopped,
    /// What was decided is done; `answer` is what the BMC said.
    ActionDone {
        action: Action,
        answer: serde_json::Value,
    },
    ActionFailed {
        action: Action,
        problem: Problem,
    },
    PassportSigned {
        passport: serde_json::Value,
    },
    /// A look at its firmware and settings, and what is done about them.
    Baseline(BaselineNews),
    /// What it says of itself contradicts what is known: a serial number that another machine has, or not the expected one.
    Misidentified {
        problem: Problem,
    },
    /// A rung of the ladder is climbed from here on: on disk before its first step is done.
    Climbing(Climb),
    /// The deadline has passed.
    Due {
        /// Added at the door: what there is to try.
        #[serde(default)]
        means: Means,
    },
}

impl Event {
    /// The stable name of the variant, as it stands in the store.
    pub fn kind(&self) -> &'static str {
        match self {
            Event::Expected(_) => "expected",
            Event::Sighted(_) => "sighted",
            Event::Unanswered { .. } => "unanswered",
            Event::Noted { .. } => "noted",
            Event::BmcLogSaved { .. } => "bmc_log_saved",
            Event::ScriptServed { .. } => "script_served",
            Event::Hello { .. } => "hello",
            Event::Reported { .. } => "reported",
            Event::Ordered(_) => "ordered",
            Event::ReleaseRequested => "release_requested",
            Event::RetryRequested => "retry_requested",
            Event::CheckRequested => "check_requested",
            Event::RetireRequested => "retire_requested",
            Event::PowerRequested { .. } => "power_requested",
            Event::BmcPasswordWanted { .. } => "bmc_password_wanted",
            Event::BurnInWanted { .. } => "burn_in_wanted",
            Event::BurnInStopped => "burn_in_stopped",
            Event::ActionDone { .. } => "action_done",
            Event::ActionFailed { .. } => "action_failed",
            Event::PassportSigned { .. } => "passport_signed",
            Event::Baseline(_) => "baseline",
            Event::Misidentified { .. } => "misidentified",
            Event::Climbing(_) => "climbing",
            Event::Due { .. } => "due",
        }
    }

    /// One sentence for the timeline.
    pub fn sentence(&self) -> String {
        match self {
            Event::Expected(e) => format!(
                "expected{}{}",
                e.place.as_ref().map_or(String::new(), |p| format!(" in {p}")),
                e.purchase.as_ref().map_or(String::new(), |purchase| purchase.sentence()),
            ),
            Event::Sighted(s) => format!(
                "{} asked for an address{}{}{}",
                s.mac,
                s.arch.map_or(String::new(), |a| format!(" ({})", a.firmware())),
                s.address.map_or(String::new(), |a| format!(", has {a}")),
                s.port.as_ref().map_or(String::new(), |p| format!(", seen on {}", p.at)),
            ),
            Event::Unanswered { why } => format!("got no answer: {why}"),
            Event::Noted { sentence } => sentence.clone(),
            Event::BmcLogSaved { entries } => {
                format!("the {} entries of its BMC's log are kept here, since the log is to be cleared", entries.len())
            }
            Event::ScriptServed { choice } => format!("boots: {choice}"),
            Event::Hello { mode: Mode::Ram, agent_version, .. } => format!("agent {agent_version} runs in RAM"),
            Event::Hello { mode: Mode::Resident, agent_version, .. } => {
                format!("agent {agent_version} runs on the installed system")
            }
            Event::Reported { outcome, findings, .. } if findings.is_empty() => outcome_sentence(outcome),
            Event::Reported { outcome, findings, .. } => {
                let each: Vec<String> = findings.iter().map(Finding::to_string).collect();
                format!("{}; {}", outcome_sentence(outcome), each.join("; "))
            }
            Event::Ordered(o) => format!("ordered as {} ({} {})", o.hostname, o.image_name, o.manifest.short()),
            Event::ReleaseRequested => "release asked for".into(),
            Event::RetryRequested => "retry asked for".into(),
            Event::CheckRequested => "check asked for".into(),
            Event::RetireRequested => "retirement asked for".into(),
            Event::PowerRequested { action } => format!("power {action} asked for"),
            Event::BmcPasswordWanted { own: true } => "its BMC shall have a password of its own".into(),
            Event::BmcPasswordWanted { own: false } => "its BMC keeps the password of the list".into(),
            Event::ActionDone { action, answer: serde_json::Value::String(answer) } => format!("{action}: {answer}"),
            Event::BurnInWanted { profile, overwrite, asked } => format!(
                "burn-in {}{}{}",
                profile.name,
                if *asked { " asked for" } else { " wanted by the site" },
                if *overwrite { "; disks with data may be written to" } else { "" }
            ),
            Event::BurnInStopped => "the burn-in is cut short".into(),
            Event::ActionDone { action, .. } => format!("{action}: done"),
            Event::ActionFailed { action, problem } => format!("{action}: failed: {}", problem.title),
            Event::PassportSigned { .. } => "passport signed".into(),
            Event::Baseline(news) => news.sentence.clone(),
            Event::Misidentified { problem } => problem.title.clone(),
            Event::Climbing(climb) => {
                let skipped = match climb.skipped.as_slice() {
                    [] => String::new(),
                    skipped => format!(" (skipped: {})", skipped.join("; ")),
                };
                format!("{climb}, because: {}{skipped}", climb.because)
            }
            Event::Due { .. } => "deadline passed".into(),
        }
    }
}

fn outcome_sentence(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Commissioned { inventory, .. } => format!(
            "inventory: {} CPU, {} MiB of memory, {} disks, {} NICs",
            inventory.cpus.len(),
            inventory.memory.usable_bytes >> 20,
            inventory.disks.len(),
            inventory.nics.len()
        ),
        Outcome::Tested(tested) => tested_sentence(tested),
        Outcome::BurnedIn => "burned in".into(),
        Outcome::TargetChosen { disk, serial, rule, .. } => {
            format!("will write {disk} (serial {}, by rule {rule})", serial.as_ref().map_or("none", |s| s.as_str()))
        }
        Outcome::Deployed(d) => format!(
            "wrote {} MiB to {} in {:.1} s, read {} MiB back",
            d.written_bytes >> 20,
            d.disk,
            d.write_seconds,
            d.read_back_bytes >> 20
        ),
        Outcome::Erased { disks, how, .. } => format!("erased {} ({how})", disks.join(", ")),
        Outcome::Checked { checks, .. } => {
            let count = |which: &dyn Fn(&&Check) -> bool| checks.iter().filter(which).count();
            let skipped = match count(&|c| c.skipped) {
                0 => String::new(),
                skipped => format!(", {skipped} skipped"),
            };
            let each = checks.iter().filter(|c| c.failed());
            let each = each.map(|c| format!("; {}: expected {}, found {}", c.id, c.expected, c.found));
            format!("{} of {} checks passed{skipped}{}", count(&|c| c.passed), checks.len(), each.collect::<String>())
        }
        Outcome::Leaving => "leaves as ordered".into(),
        Outcome::Failed(problem) => format!("failed: {}", problem.title),
    }
}

fn tested_sentence(tested: &Tested) -> String {
    let measured = tested.measured.iter().map(|m| format!("{} {:.1} {}", m.name, m.value, m.unit));
    let all: Vec<String> = measured.chain(tested.notes.iter().cloned()).collect();
    format!("burn-in: {} took {:.0} s: {}", tested.test, tested.seconds, all.join(", "))
}

/// A row of the list of expected machines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Expectation {
    pub name: String,
    pub serial: Serial,
    pub mac: Option<MacAddr>,
    pub place: Option<Place>,
    pub bmc: Option<BmcAccount>,
    /// Of the list, and of the port map of the site's switches.
    #[serde(default)]
    pub ports: Vec<SwitchPort>,
    /// Those of the list alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listed_ports: Vec<SwitchPort>,
    /// Of its BMC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bmc_mac: Option<MacAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purchase: Option<Arc<Purchase>>,
}

impl Expectation {
    /// With nothing but what each row has.
    pub fn new(name: impl Into<String>, serial: Serial) -> Self {
        let name = name.into();
        Self {
            name,
            serial,
            mac: None,
            place: None,
            bmc: None,
            ports: Vec::new(),
            listed_ports: Vec::new(),
            bmc_mac: None,
            purchase: None,
        }
    }
}

/// The user that the agent makes on a BMC in band, where the site has named none.
pub const OWN_BMC_USER: &str = "rackline";

/// The way in to a BMC. The password is in the sealed store, under the machine's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BmcAccount {
    /// Of IPMI; where there is none, the same as `redfish`.
    pub address: SocketAddr,
    #[serde(default)]
    pub redfish: Option<SocketAddr>,
    pub user: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sighting {
    pub mac: MacAddr,
    pub uuid: Option<uuid::Uuid>,
    pub arch: Option<ClientArch>,
    pub address: Option<IpAddr>,
    /// The firmware asked: a boot has begun. Otherwise a system that runs already.
    pub boots: bool,
    /// Boots in one state that the site allowed when this was seen: with it, a replay comes to the same end.
    #[serde(default = "six")]
    pub limit: u32,
    /// Where a relay brought the request from, and the port map knows the port.
    #[serde(default)]
    pub port: Option<SeenPort>,
}

fn six() -> u32 {
    6
}

/// What a machine is to become. Complete when it is accepted: nothing is looked up later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    pub role: Roles,
    pub image_name: String,
    pub manifest: Digest,
    pub hostname: Hostname,
    pub target: TargetRule,
    pub ssh_keys: Vec<String>,
    pub compare_with_dd: bool,
    /// Storage, network, tuning, checks, hand-off: what the templates of its roles said then.
    #[serde(default)]
    pub setup: Setup,
}

/// What is to be done outside. Each is idempotent or looked at before it is repeated (`still_wanted`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Boot device network for the next boot, then on, or a cycle where it is on.
    NetworkBoot,
    Power {
        power: PowerAction,
    },
    /// Not the first attempt: a rung of the ladder.
    Climb(Climb),
    /// The password that the BMC came with, for a generated one.
    ChangeBmcPassword,
    /// Time servers and address of the BMC, as the site wants them; where it wants nothing, the engine leaves it out.
    BmcSetup,
    /// Brings firmware and settings to the baseline of the model: looks, does what is next, and looks again until it is there.
    Baseline,
    SignPassport,
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Action::NetworkBoot => f.write_str("boot from the network"),
            Action::Power { power } => write!(f, "power {power}"),
            Action::Climb(climb) => write!(f, "{climb}"),
            Action::ChangeBmcPassword => f.write_str("give the BMC a password of its own"),
            Action::BmcSetup => f.write_str("set up the BMC"),
            Action::Baseline => f.write_str("firmware baseline"),
            Action::SignPassport => f.write_str("sign the passport"),
        }
    }
}

/// An event that is not welcome in this state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The state does not allow it; the sentence is for the operator.
    State(String),
    /// It speaks of an order that is no longer the current one: ask again.
    Stale,
    /// True, and of no consequence: nothing is stored.
    Nothing,
}

impl Refused {
    pub fn state(why: impl Into<String>) -> Self {
        Self::State(why.into())
    }
}
