//! What a maker's BMC with a certain firmware really does, learnt from what came of commands. Pure: the engine tells
//! ([`Personality::note`] and the others) and asks ([`Personality::limits`], [`Personality::useless`]), the store keeps.
//!
//! | learnt from | what |
//! |---|---|
//! | the read-back after each power command and boot device | confirmed, not shown, not applied; how long it took |
//! | updates of firmware, from 202 to the end of their task | how long they take |
//! | a boot override read back | whether it is called valid, and whether its duration is kept |
//! | the first DHCP request after a network boot | whether the boot device is followed, and how long the machine takes |
//! | the rung of the ladder after which a machine came, and those before it | which remedies help |
//! | log-ins | protocols and cipher suites that work, refusals by their code |
//!
//! A machine that never comes says nothing about its BMC: it may be a cable. So a boot that was not followed and a rung that
//! did not help count only when a later one did. Counts are halved when they grow, so that what was long ago weighs less; a
//! new firmware is a new personality.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::act::Limits;
use super::{Answer, BootDevice, Command, Info, Outcome, Part};
use crate::error::Result;

/// Whose behaviour it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    pub vendor: String,
    /// The model, or the maker's number where the BMC does not know it.
    pub product: String,
    /// Of the BMC.
    pub firmware: String,
}

impl Key {
    /// `machine`: the BMC's own data of the machine, where it has some.
    pub fn of(info: &Info, machine: Option<&Part>) -> Self {
        let named = machine.and_then(|part| part.fields.get("product.name"));
        let bounded = |text: &str| -> String { text.chars().filter(|c| !c.is_control()).take(64).collect() };
        Self {
            vendor: bounded(&info.manufacturer),
            product: named.map_or_else(|| info.product.to_string(), |name| bounded(name)),
            firmware: bounded(&info.firmware),
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} firmware {}", self.vendor, self.product, self.firmware)
    }
}

/// Past this, what was counted is halved.
const OLD: u32 = 400;
/// Tries without one success, after which a remedy is left out.
const HOPELESS: u32 = 5;
/// Longest wait for a power state; a command as a whole has 40 s.
const CONFIRM_MAX: Duration = Duration::from_secs(30);
/// Updates that ended well before less than the usual time is given to the next.
const UPDATES: u32 = 3;
/// A BMC of the same kind may be asked for a larger image.
const UPDATE_MIN: Duration = Duration::from_secs(15 * 60);
/// Different words kept of one kind: they come from the network.
const WORDS: usize = 16;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Personality {
    /// By what was asked: `power on`, `boot device`, `boot device for good` …
    pub acts: BTreeMap<String, Tally>,
    /// Overrides that it had after they were set and called valid, and those that it had and did not.
    pub valid: Share,
    /// Overrides of which the duration, once or for good, was read back as it was set.
    pub duration_kept: Share,
    /// Network boots after which the machine was seen there, and those of a machine that was seen only after a later one.
    pub followed: Share,
    /// From the order to the first DHCP request.
    pub boot: Span,
    /// By rung: it brought the machine, or a later one did.
    pub remedies: BTreeMap<String, Share>,
    /// `IPMI 2.0, cipher suite 17`, and how often.
    pub protocols: BTreeMap<String, u32>,
    /// Codes of what failed.
    pub failures: BTreeMap<String, u32>,
}

/// What came of one kind of command.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    pub confirmed: u32,
    /// Taken, and the BMC cannot show it.
    pub unconfirmed: u32,
    /// Taken, and it is not so afterwards.
    pub not_applied: u32,
    /// Refused, or no answer.
    pub failed: u32,
    /// From the command to its effect, of those that were confirmed.
    pub took: Span,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub yes: u32,
    pub no: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    pub count: u32,
    pub total_millis: u64,
    pub longest_millis: u64,
}

impl Tally {
    pub fn of(&self) -> u32 {
        self.confirmed + self.unconfirmed + self.not_applied + self.failed
    }

    fn fade(&mut self) {
        if self.of() < OLD {
            return;
        }
        for count in [&mut self.confirmed, &mut self.unconfirmed, &mut self.not_applied, &mut self.failed] {
            *count /= 2;
        }
        self.took.halve();
    }
}

impl Share {
    pub fn of(&self) -> u32 {
        self.yes + self.no
    }

    fn add(&mut self, yes: bool) {
        if self.of() >= OLD {
            *self = Self { yes: self.yes / 2, no: self.no / 2 };
        }
        *(if yes { &mut self.yes } else { &mut self.no }) += 1;
    }
}

impl Span {
    fn add(&mut self, millis: u64) {
        if self.count >= OLD {
            self.halve();
        }
        self.count += 1;
        self.total_millis += millis;
        self.longest_millis = self.longest_millis.max(millis);
    }

    /// The longest goes down to the mean, and comes back where it is still so.
    fn halve(&mut self) {
        self.longest_millis = self.mean().map_or(0, |mean| mean.max(self.longest_millis / 2));
        self.count /= 2;
        self.total_millis /= 2;
    }

    /// Milliseconds.
    pub fn mean(&self) -> Option<u64> {
        self.total_millis.checked_div(self.count.into())
    }
}

const UPDATE: &str = "firmware update";
/// The code of an update that had not ended when its time was over.
const LATE: &str = "bmc.task-late";

/// What is counted of a command; `None` for those that only look.
fn word(command: &Command) -> Option<String> {
    Some(match command {
        Command::Power { action } => format!("power {action}"),
        Command::SetBoot(wanted) if wanted.persistent => "boot device for good".into(),
        Command::SetBoot(_) => "boot device".into(),
        Command::SetBootOrder { .. } => "boot order".into(),
        Command::ResetBmc { cold: true } => "cold reset".into(),
        Command::ResetBmc { cold: false } => "warm reset".into(),
        Command::Identify { .. } => "identify".into(),
        Command::SetBios { .. } => "firmware settings".into(),
        Command::Update(_) => UPDATE.into(),
        _ => return None,
    })
}

/// Whether anything is to be learnt from a command.
pub fn tells(command: &Command) -> bool {
    word(command).is_some()
}

impl Personality {
    /// What came of a command.
    pub fn note(&mut self, command: &Command, result: &Result<Answer>) {
        let Some(word) = word(command) else { return };
        let tally = self.acts.entry(word).or_default();
        tally.fade();
        match result {
            // What was so already says nothing.
            Ok(Answer::Power { acted: false, .. } | Answer::SetBoot { acted: false, .. }) => return,
            Ok(answer) => match outcome(answer) {
                Some(Outcome::Unconfirmed { .. }) => tally.unconfirmed += 1,
                _ => tally.confirmed += 1,
            },
            Err(e) if e.code() == "bmc.not-applied" => tally.not_applied += 1,
            Err(e) => {
                tally.failed += 1;
                count(&mut self.failures, e.code());
            }
        }
        match result {
            Ok(Answer::Power { outcome: Outcome::Confirmed, millis, .. }) => tally.took.add(*millis),
            Ok(Answer::SetBoot { wanted, seen: Some(seen), .. }) if wanted.device != BootDevice::None => {
                self.valid.add(seen.valid);
                self.duration_kept.add(seen.persistent == wanted.persistent);
            }
            _ => {}
        }
    }

    /// How long it took until an update was over; of power commands the answer says so itself.
    pub fn took(&mut self, command: &Command, result: &Result<Answer>, took: Duration) {
        if let (Command::Update(_), Ok(_)) = (command, result) {
            let tally = self.acts.entry(UPDATE.to_owned()).or_default();
            tally.took.add(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        }
    }

    /// A log-in went well by this protocol.
    pub fn spoke(&mut self, protocol: &str) {
        count(&mut self.protocols, protocol);
    }

    /// The machine was seen at the network `millis` after that was asked for, the last time; `unheeded` earlier requests
    /// had led to nothing.
    pub fn booted(&mut self, millis: u64, unheeded: u32) {
        (0..unheeded.min(16)).for_each(|_| self.followed.add(false));
        self.followed.add(true);
        self.boot.add(millis);
    }

    /// This rung brought the machine, and those did not.
    pub fn helped<'a>(&mut self, rung: &str, others: impl IntoIterator<Item = &'a str>) {
        for (rung, helped) in others.into_iter().map(|rung| (rung, false)).chain([(rung, true)]) {
            if self.remedies.contains_key(rung) || self.remedies.len() < WORDS {
                self.remedies.entry(rung.to_owned()).or_default().add(helped);
            }
        }
    }

    /// How long to wait for effects: longer where it was seen to take long or never came in time, and not for the gap of a
    /// cycle where it is never shown.
    pub fn limits(&self, usual: &Limits) -> Limits {
        let power = |action: &str| self.acts.get(&format!("power {action}")).copied().unwrap_or_default();
        let (on, off, cycle) = (power("on"), power("off"), power("cycle"));
        let longest = Duration::from_millis(on.took.longest_millis.max(off.took.longest_millis));
        let never = |t: Tally| t.confirmed == 0 && t.not_applied >= 2;
        let wanted = if never(on) || never(off) { CONFIRM_MAX } else { longest * 2 };
        let gapless = cycle.confirmed == 0 && cycle.unconfirmed >= HOPELESS;
        Limits {
            confirm: wanted.clamp(usual.confirm, usual.confirm.max(CONFIRM_MAX)),
            cycle: if gapless { usual.look } else { usual.cycle },
            look: usual.look,
        }
    }

    /// How long a command may take: of a firmware update three times the longest that ended well, so that one that hangs does not
    /// hold its machine for an hour; and twice the usual where one was given up while it still ran.
    pub fn allowed(&self, command: &Command, usual: Duration) -> Duration {
        let Command::Update(_) = command else { return usual };
        let took = self.acts.get(UPDATE).map(|tally| tally.took).unwrap_or_default();
        if self.failures.contains_key(LATE) {
            return usual * 2;
        }
        match took.count {
            0..UPDATES => usual,
            _ => Duration::from_millis(took.longest_millis.saturating_mul(3)).clamp(UPDATE_MIN.min(usual), usual * 2),
        }
    }

    /// Remedies that were tried often enough and never helped, each with the figures.
    pub fn useless(&self) -> impl Iterator<Item = (&str, String)> {
        let hopeless = self.remedies.iter().filter(|(_, share)| share.yes == 0 && share.no >= HOPELESS);
        hopeless.map(|(rung, share)| (rung.as_str(), format!("helped in 0 of {} cases", share.of())))
    }
}

fn outcome(answer: &Answer) -> Option<&Outcome> {
    match answer {
        Answer::Power { outcome, .. }
        | Answer::SetBoot { outcome, .. }
        | Answer::Identify { outcome, .. }
        | Answer::Done { outcome, .. } => Some(outcome),
        _ => None,
    }
}

fn count(counts: &mut BTreeMap<String, u32>, word: &str) {
    let word: String = word.chars().take(64).collect();
    if counts.contains_key(&word) || counts.len() < WORDS {
        let count = counts.entry(word).or_default();
        *count = count.saturating_add(1);
    }
}

#[cfg(test)]
mod tests;
