//! Looks at every BMC once in an interval, one after the other, spread evenly over it: power, sensors, new log entries. What
//! was found last is kept in memory; what changed is told, once.
//!
//! | told | when |
//! |---|---|
//! | a sensor's level | it crosses a threshold, up or down; at the first look if it is beyond one |
//! | an entry of the BMC's log | it was not there at the look before |
//! | silence, and its end | after as many silences as open the circuit ([`super::fleet`]) |
//! | another failure, and its end | it begins, or becomes another |
//!
//! A look gives way to every command. The log is read from the last entry on that was seen; what it has at the first look is
//! history.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Access, Answer, Command, Fleet, Log, LogEntry, Power, Sensor};
use crate::error::{Error, Result};
use crate::ipmi::sensor::Level;
use crate::machine::MachineId;

/// What a sweep needs to know of the site, and whom it tells.
pub trait Roster: Send + Sync + 'static {
    /// Machines whose BMC is known. Asked once in an interval.
    fn machines(&self) -> Vec<MachineId>;
    fn access(&self, machine: MachineId) -> impl Future<Output = Result<Access>> + Send;
    /// One sentence on what changed.
    fn changed(&self, machine: MachineId, sentence: String);
}

/// What is known of a machine by its BMC.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// When it was looked at last with success; the rest is from then.
    pub at: Option<Timestamp>,
    pub power: Option<Power>,
    pub sensors: Vec<Sensor>,
    /// Sensors beyond a threshold, by name. One that has no reading any more stays until it has one.
    pub alarms: BTreeMap<String, Level>,
    /// Id of the newest log entry that was seen; empty for a log without one, `None` where there is no log.
    pub logged: Option<String>,
    /// Why the last look came to nothing.
    pub problem: Option<Trouble>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    pub code: String,
    pub sentence: String,
}

/// A handle; clones are the same sweep.
#[derive(Clone)]
pub struct Sweep {
    fleet: Fleet,
    interval: Duration,
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    latest: HashMap<MachineId, Arc<Health>>,
    /// Being looked at.
    under_way: HashSet<MachineId>,
}

/// Up to this interval a session is kept alive from look to look, every half a minute with one request; a log-in has four, and
/// many BMCs write it into their log.
const KEPT_FOR: Duration = Duration::from_secs(180);
/// How often a look that gave way is tried again before the next interval, and how long after.
const TRIES: u32 = 5;
const AFTER_COMMAND: Duration = Duration::from_secs(2);
/// Sentences of one look; a broken fan tray or a log that was cleared must not fill the timeline.
const SENTENCES: usize = 16;

impl Sweep {
    pub fn new(fleet: Fleet, interval: Duration) -> Self {
        Self { fleet, interval, known: Arc::default() }
    }

    /// `None` until it was looked at for the first time.
    pub fn health(&self, machine: MachineId) -> Option<Arc<Health>> {
        self.known().latest.get(&machine).cloned()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until the stop. A BMC that takes longer than the interval is looked at again in the first one that finds it free.
    pub async fn run<R: Roster>(self, roster: Arc<R>, stop: CancellationToken) {
        let rounds = async {
            let mut start = Instant::now();
            loop {
                let machines = roster.machines();
                let among: HashSet<MachineId> = machines.iter().copied().collect();
                self.known().latest.retain(|machine, _| among.contains(machine));
                let each = self.interval / u32::try_from(machines.len().max(1)).unwrap_or(u32::MAX);
                for (place, machine) in (0..).zip(machines) {
                    sleep_until(start + each * place).await;
                    if self.known().under_way.insert(machine) {
                        tokio::spawn(self.clone().visit(roster.clone(), machine));
                    }
                }
                start = (start + self.interval).max(Instant::now());
                sleep_until(start).await;
            }
        };
        tokio::select! {
            () = rounds => {}
            () = stop.cancelled() => {}
        }
    }

    async fn visit<R: Roster>(self, roster: Arc<R>, machine: MachineId) {
        let before = self.health(machine).unwrap_or_default();
        if let Some((health, told)) = self.look(&*roster, machine, &before).await {
            let more = told.len().saturating_sub(SENTENCES);
            told.into_iter().take(SENTENCES).for_each(|sentence| roster.changed(machine, sentence));
            if more > 0 {
                roster.changed(machine, format!("{more} more changes at its BMC"));
            }
            self.known().latest.insert(machine, Arc::new(health));
        }
        self.known().under_way.remove(&machine);
    }

    /// What is there now and what is new about it; `None` where others had the BMC all the time.
    async fn look<R: Roster>(&self, roster: &R, machine: MachineId, before: &Health) -> Option<(Health, Vec<String>)> {
        let access = match roster.access(machine).await {
            Ok(access) => access,
            Err(e) => return Some(failed(before, &e, true)),
        };
        let mut now = Health { problem: None, ..before.clone() };
        let mut told = Vec::new();
        let after = before.logged.clone().filter(|id| !id.is_empty());
        for command in [Command::PowerStatus, Command::Sensors, Command::Log { after }] {
            match self.ask(&access, command).await {
                Ok(Answer::PowerStatus(chassis)) => now.power = Some(chassis.power),
                Ok(Answer::Sensors { sensors }) => {
                    told.extend(crossed(&mut now.alarms, &sensors));
                    now.sensors = sensors;
                }
                Ok(Answer::Log(log)) => told.extend(logged(&mut now.logged, log)),
                Ok(_) => {}
                Err(e) if e.code() == "bmc.unsupported" => {}
                Err(e) if e.code() == "bmc.gave-way" => return None,
                Err(e) => return Some(failed(before, &e, self.fleet.open_circuit(&access.doors).is_some())),
            }
        }
        if before.problem.is_some() {
            told.insert(0, "its BMC can be looked at again".to_owned());
        }
        now.at = Some(Timestamp::now());
        Some((now, told))
    }

    async fn ask(&self, access: &Access, command: Command) -> Result<Answer> {
        // Twice the interval, since a look may come late in its own.
        let again = if self.interval <= KEPT_FOR { self.interval * 2 } else { Duration::ZERO };
        for _ in 1..TRIES {
            match self.fleet.look(access, command.clone(), again).await {
                Err(e) if e.code() == "bmc.gave-way" => sleep(AFTER_COMMAND).await,
                result => return result,
            }
        }
        self.fleet.look(access, command, again).await
    }
}

/// `for_sure`: it is not one lost answer.
fn failed(before: &Health, error: &Error, for_sure: bool) -> (Health, Vec<String>) {
    let same = before.problem.as_ref().is_some_and(|problem| problem.code == error.code());
    if same || !for_sure && error.code() == "bmc.unreachable" {
        return (before.clone(), Vec::new());
    }
    let sentence = error.message().to_owned();
    let told = vec![format!("its BMC cannot be looked at: {sentence}")];
    (Health { problem: Some(Trouble { code: error.code().to_owned(), sentence }), ..before.clone() }, told)
}

/// The sensors that have crossed a threshold since.
fn crossed(alarms: &mut BTreeMap<String, Level>, sensors: &[Sensor]) -> Vec<String> {
    let mut told = Vec::new();
    for sensor in sensors {
        let Some(level) = sensor.level else { continue };
        let before = alarms.get(&sensor.name).copied().unwrap_or(Level::Ok);
        if level == before {
            continue;
        }
        let value =
            sensor.value.map_or(String::new(), |value| format!(" ({value} {})", sensor.unit).replace(" )", ")"));
        told.push(match level {
            Level::Ok => format!("sensor {} is normal again{value}", sensor.name),
            Level::Warning => format!("sensor {} is beyond its warning threshold{value}", sensor.name),
            Level::Critical => format!("sensor {} is critical{value}", sensor.name),
            Level::Fatal => format!("sensor {} is beyond what the hardware stands{value}", sensor.name),
        });
        match level {
            Level::Ok => drop(alarms.remove(&sensor.name)),
            _ => drop(alarms.insert(sensor.name.clone(), level)),
        }
    }
    told
}

/// The entries since the newest that was seen, where there was a look before.
fn logged(newest: &mut Option<String>, log: Log) -> Vec<String> {
    let first_look = newest.is_none();
    if let Some(LogEntry { id, .. }) = log.entries.last() {
        *newest = Some(id.clone());
    }
    newest.get_or_insert_default();
    match first_look {
        true => Vec::new(),
        false => log.entries.into_iter().map(|entry| format!("BMC log: {}", entry.text)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bmc::Severity;

    fn sensor(name: &str, value: f64, level: Option<Level>) -> Sensor {
        let (kind, unit) = ("temperature".to_owned(), "°C".to_owned());
        let limits = Default::default();
        Sensor { name: name.into(), kind, value: Some(value), unit, level, states: Vec::new(), limits }
    }

    #[test]
    fn a_threshold_is_told_when_it_is_crossed_and_not_again() {
        let mut alarms = BTreeMap::new();
        let mut see =
            |value, level| crossed(&mut alarms, &[sensor("CPU", value, level), sensor("Inlet", 20.0, Some(Level::Ok))]);
        assert!(see(40.0, Some(Level::Ok)).is_empty());
        assert_eq!(see(97.0, Some(Level::Critical)), ["sensor CPU is critical (97 °C)"]);
        assert!(see(98.0, Some(Level::Critical)).is_empty());
        assert!(see(0.0, None).is_empty(), "no reading is no news");
        assert!(see(98.0, Some(Level::Critical)).is_empty());
        assert_eq!(see(88.0, Some(Level::Warning)), ["sensor CPU is beyond its warning threshold (88 °C)"]);
        assert_eq!(see(50.0, Some(Level::Ok)), ["sensor CPU is normal again (50 °C)"]);
        assert!(alarms.is_empty());
    }

    #[test]
    fn a_log_is_history_at_first_and_news_later() {
        let entry = |id: &str| LogEntry {
            id: id.into(),
            at: None,
            severity: Severity::Critical,
            sensor: None,
            text: format!("entry {id}"),
            asserted: true,
        };
        let log =
            |ids: &[&str]| Log { entries: ids.iter().map(|id| entry(id)).collect(), overflow: false, clock: None };
        let mut newest = None;
        assert!(logged(&mut newest, log(&["1", "2"])).is_empty());
        assert!(logged(&mut newest, log(&[])).is_empty());
        assert_eq!(newest.as_deref(), Some("2"));
        assert_eq!(logged(&mut newest, log(&["3"])), ["BMC log: entry 3"]);
        let mut empty = None;
        assert!(logged(&mut empty, log(&[])).is_empty());
        assert_eq!(logged(&mut empty, log(&["1"])), ["BMC log: entry 1"], "an empty log was seen before");
    }

    #[test]
    fn a_failure_is_told_when_it_begins_or_changes_and_silence_only_when_it_lasts() {
        let silence = Error::unreachable("bmc.unreachable", "BMC a did not answer within 12.0 s");
        let (health, told) = failed(&Health::default(), &silence, false);
        assert!(told.is_empty() && health.problem.is_none());
        let (health, told) = failed(&health, &silence, true);
        assert_eq!(told, ["its BMC cannot be looked at: BMC a did not answer within 12.0 s"]);
        assert!(failed(&health, &silence, true).1.is_empty());
        let refusal = Error::refused("bmc.auth", "BMC a has another password");
        assert_eq!(failed(&health, &refusal, false).1.len(), 1);
    }
}
