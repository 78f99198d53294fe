//! The ladder: what is tried, in this order, when a machine does not do what was asked of it.
//!
//! ```text
//!  deadline passed ──► climb: the next open rung with budget ──► Action::Climb ──► Event::Climbing ──► steps ──► seen?
//!        ▲                          └ none left: Broken, with the cause and all that was tried                    │ no
//!        └── earlier, where the steps failed (`pause`) ◄──────────────────────────────────────────────────────────┘
//! ```
//!
//! The only way up is a deadline, so no failure, however fast, runs through the rungs in a moment. A rung is closed where it
//! cannot help: that is known from the kind of the trouble ([`Trouble`]) and from what the site has ([`Means`]). It is
//! told before its first step ([`Event::Climbing`]), and one that has begun is never begun again: after a restart only the
//! steps that do no harm are carried out (`Step::again`).
//!
//! [`Event::Climbing`]: super::Event::Climbing

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::event::Action;
use super::machine::Millis;
use super::{Machine, Turn};
use crate::link::Problem;
use crate::machine::PowerAction;

const SECOND: Millis = 1_000;
const MINUTE: Millis = 60 * SECOND;

/// From gentle to hard. The order is the order of climbing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// The same once more.
    Retry,
    /// Through the BMC's other interface: Redfish for IPMI, IPMI for Redfish.
    OtherDoor,
    /// The network in front for every boot, not only the next.
    BootOrder,
    /// Off, the boot device set while it is off, on: for BMCs that lose it in a cycle.
    OffAndOn,
    /// The BMC's software starts again.
    WarmReset,
    /// The BMC starts again as after power loss.
    ColdReset,
    /// The machine's outlets off and on: the BMC loses power too.
    Outlets,
}

impl Rung {
    pub const ALL: [Rung; 7] = [
        Rung::Retry,
        Rung::OtherDoor,
        Rung::BootOrder,
        Rung::OffAndOn,
        Rung::WarmReset,
        Rung::ColdReset,
        Rung::Outlets,
    ];

    /// Its word, as it is stored.
    pub fn name(self) -> &'static str {
        match self {
            Rung::Retry => "retry",
            Rung::OtherDoor => "other_door",
            Rung::BootOrder => "boot_order",
            Rung::OffAndOn => "off_and_on",
            Rung::WarmReset => "warm_reset",
            Rung::ColdReset => "cold_reset",
            Rung::Outlets => "outlets",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rung| rung.name() == name)
    }

    /// Times in one state.
    pub fn budget(self) -> u32 {
        match self {
            Rung::Retry => 2,
            _ => 1,
        }
    }

    /// What its steps take, on top of the time that the stage gives the machine: a BMC needs up to five minutes to start.
    fn takes(self) -> Millis {
        match self {
            Rung::Retry | Rung::OtherDoor | Rung::BootOrder => MINUTE,
            Rung::OffAndOn => 2 * MINUTE,
            Rung::WarmReset | Rung::ColdReset | Rung::Outlets => 7 * MINUTE,
        }
    }

    /// What is done outside, one after the other. `network`: the machine is to boot from the network, else from its disk.
    pub fn steps(self, network: bool) -> Vec<Step> {
        let before: &[Step] = match self {
            Rung::Retry | Rung::OtherDoor | Rung::BootOrder => &[],
            Rung::OffAndOn => &[Step::Power(PowerAction::Off)],
            Rung::WarmReset => &[Step::ResetBmc { cold: false }],
            Rung::ColdReset => &[Step::ResetBmc { cold: true }],
            Rung::Outlets => &[Step::OutletsOff, Step::OutletsOn],
        };
        let boot = network.then_some(Step::BootNetwork { persistent: self == Rung::BootOrder });
        let power = if self == Rung::OffAndOn { PowerAction::On } else { PowerAction::Cycle };
        before.iter().copied().chain(boot).chain([Step::Power(power)]).collect()
    }
}

impl std::fmt::Display for Rung {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Rung::Retry => "the same again",
            Rung::OtherDoor => "through the BMC's other interface",
            Rung::BootOrder => "the network first in the boot order",
            Rung::OffAndOn => "power off, and on with the boot device set in between",
            Rung::WarmReset => "warm reset of the BMC",
            Rung::ColdReset => "cold reset of the BMC",
            Rung::Outlets => "outlets off and on",
        })
    }
}

/// One thing done outside on a rung.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Starts the BMC again and waits until it answers.
    ResetBmc {
        cold: bool,
    },
    /// All outlets of the machine off, and a moment without power.
    OutletsOff,
    /// All outlets on, and the time that the BMC needs to start.
    OutletsOn,
    BootNetwork {
        persistent: bool,
    },
    Power(PowerAction),
}

impl Step {
    /// What is left of it for a rung that was interrupted: whatever brings the machine back up, and nothing that takes it down.
    pub fn again(self) -> Option<Step> {
        match self {
            Step::ResetBmc { .. } | Step::OutletsOff | Step::Power(PowerAction::Off) => None,
            Step::OutletsOn | Step::BootNetwork { .. } => Some(self),
            Step::Power(_) => Some(Step::Power(PowerAction::On)),
        }
    }
}

/// A rung that is to be climbed, as the timeline tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Climb {
    pub rung: Rung,
    /// Its place among those that are open to this machine now, from 1.
    pub number: u32,
    pub of: u32,
    pub because: String,
    /// Rungs below that were passed over, each with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<String>,
}

impl std::fmt::Display for Climb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rung {} of {}: {}", self.number, self.of, self.rung)
    }
}

/// What the site has for a machine beside the BMC's preferred door; looked up when its deadline passes, and kept with that
/// event, so that a replay comes to the same end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Means {
    /// The BMC can be reached over both IPMI and Redfish.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub second_door: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub outlets: bool,
    /// Rungs that this model's BMC is known never to be helped by, with the figures.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub useless: BTreeMap<Rung, String>,
}

/// Where a machine stands on the ladder; new in every state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ladder {
    /// Times each rung was decided on.
    pub used: BTreeMap<Rung, u32>,
    /// The rung of which the effect is awaited.
    pub current: Option<Climb>,
    /// Its first step may have been done.
    pub begun: bool,
    /// What the last action failed with; `None` where it went well and the machine is silent all the same.
    pub failed: Option<Problem>,
    /// A network boot was asked for then, and nothing was seen of it yet.
    pub asked: Option<Millis>,
    /// Network boots of this state that were asked for, went well and led to nothing.
    #[serde(default)]
    pub unheeded: u32,
}

/// A machine came to the network as it was asked to: what that says of its BMC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// From the order on.
    pub millis: u64,
    /// Orders before it that had led to nothing.
    pub unheeded: u32,
    /// The rung that brought it, and those that had not.
    pub by: Option<Rung>,
    pub after: Vec<Rung>,
}

impl Arrival {
    /// What a step from `before` to `after` at `now` says.
    pub fn of(now: Millis, before: &Machine, after: &Machine) -> Option<Self> {
        let asked = before.ladder.asked?;
        // Otherwise it was asked for again, failed, was given up, or the machine is on its way to its own disk.
        let came = after.last_sighted != before.last_sighted || after.agent != before.agent;
        if after.ladder.asked.is_some() || !came {
            return None;
        }
        let by = before.ladder.current.as_ref().filter(|_| before.ladder.begun).map(|climb| climb.rung);
        let after = before.ladder.used.keys().copied().filter(|rung| Some(*rung) != by).collect();
        let millis = u64::try_from(now - asked).unwrap_or(0);
        Some(Self { millis, unheeded: before.ladder.unheeded, by, after })
    }
}

/// What kind of obstacle it is, which says what can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// It starts as it was asked to, and does not arrive.
    Lost,
    /// Everything was done, and the machine is not seen.
    Silent,
    /// The BMC refuses, or does not do what it says.
    Unwilling,
    /// The BMC does not answer.
    Unreachable,
    /// The BMC does not let us in.
    Shut,
}

impl Trouble {
    fn of(ladder: &Ladder) -> Self {
        match ladder.failed.as_ref().map(|problem| problem.code.as_str()) {
            None if ladder.asked.is_none() => Trouble::Lost,
            None => Trouble::Silent,
            Some("bmc.unreachable" | "bmc.busy" | "bmc.late" | "bmc.session") => Trouble::Unreachable,
            Some("bmc.auth" | "bmc.password" | "bmc.privilege" | "bmc.unknown" | "bmc.suite" | "bmc.other-machine") => {
                Trouble::Shut
            }
            Some(_) => Trouble::Unwilling,
        }
    }

    /// Why a rung cannot help against it.
    fn closes(self, rung: Rung) -> Option<&'static str> {
        match (self, rung) {
            (Trouble::Silent | Trouble::Unwilling, _) | (Trouble::Lost, Rung::Retry | Rung::OffAndOn) => None,
            (Trouble::Lost, _) => Some("the machine starts as it is asked to"),
            (_, Rung::OtherDoor) | (Trouble::Unreachable, Rung::Retry | Rung::Outlets) => None,
            (Trouble::Unreachable, _) => Some("the BMC does not answer"),
            (Trouble::Shut, _) => Some("the BMC does not let us in"),
        }
    }
}

/// Why a rung is closed to a machine now; `None`: open.
fn closed(machine: &Machine, means: &Means, network: bool, rung: Rung) -> Option<String> {
    let no_bmc = machine.bmc.is_none();
    let fixed = match rung {
        Rung::Outlets if !means.outlets => Some("no outlet is named for it"),
        Rung::Outlets if no_bmc => None,
        _ if no_bmc => Some("it has no BMC"),
        Rung::OtherDoor if !means.second_door => Some("its BMC has one interface"),
        Rung::BootOrder if !network => Some("it is to start from its own disk"),
        _ => Trouble::of(&machine.ladder).closes(rung),
    };
    fixed.map(str::to_owned).or_else(|| means.useless.get(&rung).cloned())
}

/// The next rung, or the reasons why there is none.
fn next(machine: &Machine, means: &Means, because: &str) -> Result<Climb, Vec<String>> {
    let network = machine.wants_network();
    let used = |rung| machine.ladder.used.get(&rung).copied().unwrap_or(0);
    let last = machine.ladder.used.keys().next_back().copied();
    let (mut open, mut skipped, mut found) = (0, Vec::new(), None);
    for rung in Rung::ALL {
        let shut = closed(machine, means, network, rung);
        if used(rung) > 0 || shut.is_none() {
            open += 1;
        }
        // Never down again: what opens later below the place reached is left.
        if used(rung) >= rung.budget() || last.is_some_and(|last| rung < last) || found.is_some() {
            continue;
        }
        match shut {
            Some(why) => skipped.push(format!("{rung}: {why}")),
            None => found = Some((rung, open)),
        }
    }
    match found {
        Some((rung, number)) => Ok(Climb { rung, number, of: open, because: because.to_owned(), skipped }),
        None => Err(skipped),
    }
}

/// A deadline has passed: the next rung, or the end of the ladder with the cause by its name.
pub(crate) fn climb(turn: &mut Turn, means: &Means, wait: Millis, end: Problem) {
    let failed = turn.machine.ladder.failed.clone();
    let because = failed.as_ref().map_or(&end.title, |problem| &problem.title);
    match next(&turn.machine, means, because) {
        Ok(climb) => {
            let before = std::mem::take(&mut turn.machine.ladder);
            let mut used = before.used;
            *used.entry(climb.rung).or_default() += 1;
            turn.machine.ladder = Ladder {
                used,
                unheeded: before.unheeded + u32::from(before.asked.is_some()),
                current: Some(climb.clone()),
                asked: turn.machine.wants_network().then_some(turn.now),
                ..Ladder::default()
            };
            turn.expect_within(wait + climb.rung.takes());
            turn.act(Action::Climb(climb));
        }
        Err(closed) => {
            let mut end = match failed {
                Some(mut failed) => {
                    failed.title = format!("could not start it: {}", failed.title);
                    failed
                }
                None => end,
            };
            let tried = turn.machine.ladder.used.iter().map(|(rung, times)| match times {
                1 => format!("tried: {rung}"),
                _ => format!("tried: {rung}, {times} times"),
            });
            end.causes.extend(tried);
            end.causes.extend(closed.iter().map(|why| format!("not tried: {why}")));
            turn.broken(end);
        }
    }
}

/// An action that the machine waits for failed: the next rung is due sooner, and later each time.
pub(crate) fn failed(turn: &mut Turn, problem: &Problem) {
    let climbed: u32 = turn.machine.ladder.used.values().sum();
    let pause = pause(climbed);
    let ladder = &mut turn.machine.ladder;
    ladder.failed = Some(problem.clone());
    ladder.asked = None;
    turn.machine.deadline = Some(turn.machine.deadline.map_or(turn.now + pause, |at| at.min(turn.now + pause)));
}

/// From a failure to the next rung: 10 s, 30 s, 90 s, then five minutes. A switch that restarts is back by then, before
/// anything is reset or cut for it.
fn pause(climbed: u32) -> Millis {
    (10 * SECOND * 3_i64.pow(climbed.min(4))).min(5 * MINUTE)
}

impl Ladder {
    /// The machine was seen: whatever was asked has led to something, or is no longer needed.
    pub fn seen(&mut self) {
        self.unheeded = 0;
        self.current = None;
        self.begun = false;
        self.failed = None;
        self.asked = None;
    }
}
