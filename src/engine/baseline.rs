//! Bringing a machine's firmware and settings to the baseline of its model: looks, does what is next, looks again. What is begun is
//! on disk before it is, so that an appliance that was killed in between looks before it does anything a second time.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::bmc::Door;
use super::effects::Effects;
use super::{About, Engine, now};
use crate::bmc::{Answer, Command};
use crate::error::{Error, Kind, Result};
use crate::firmware::plan::{Plan, Seen, Step, plan};
use crate::firmware::progress::{self, Facts, Next};
use crate::firmware::{Baseline, visit};
use crate::lifecycle::{Action, Attempt, BaselineEnd, BaselineNews, Event, Finding, Machine};
use crate::machine::MachineId;

/// A BMC may be silent for so long before anything was done to it.
const SILENCE: Duration = Duration::from_secs(3 * 60);
/// Afterwards it may restart by itself, and write its own flash while it does.
const LONG_SILENCE: Duration = Duration::from_secs(45 * 60);

struct OfMachine<'a> {
    engine: &'a Engine,
    machine: &'a Machine,
}

impl visit::Ask for OfMachine<'_> {
    async fn ask(&self, command: Command) -> Result<Answer> {
        self.engine.ask_bmc_through(self.machine, Door::Redfish, command).await
    }
}

impl Engine {
    /// What would have to be done for a machine to be as its baseline wants it; changes nothing. `None`: there is no baseline for
    /// its model.
    pub async fn firmware_plan(&self, machine: &Machine) -> Result<Option<Plan>> {
        let Some(baseline) = self.baseline_of(machine)? else { return Ok(None) };
        let seen = self.see(machine, false).await?;
        self.plan(machine, &baseline, &seen).map(Some)
    }

    fn baseline_of(&self, machine: &Machine) -> Result<Option<Baseline>> {
        let (maker, model) = maker_and_model(machine);
        Ok(self.inner.site.firmware.baselines()?.of(maker, model).cloned())
    }

    fn plan(&self, machine: &Machine, baseline: &Baseline, seen: &Seen) -> Result<Plan> {
        let (_, model) = maker_and_model(machine);
        let bundles = self.inner.site.firmware.bundles().list()?;
        Ok(plan(baseline, model, seen, machine.inventory.as_deref(), &bundles))
    }

    async fn see(&self, machine: &Machine, writing: bool) -> Result<Seen> {
        // By IPMI alone nothing of it can be asked.
        match machine.bmc.as_ref().and_then(|bmc| bmc.redfish) {
            Some(_) => visit::see(&OfMachine { engine: self, machine }, writing).await,
            None => Ok(Seen::default()),
        }
    }
}

/// As SMBIOS has them.
fn maker_and_model(machine: &Machine) -> (&str, &str) {
    let Some(system) = machine.inventory.as_deref().map(|i| &i.system) else { return ("", "") };
    (system.manufacturer.as_deref().unwrap_or_default(), system.product.as_deref().unwrap_or_default())
}

/// What one look leads to.
enum Outcome {
    /// Something was done: look at once.
    Acted,
    Wait(String),
    End(BaselineNews),
}

impl Effects {
    /// Until the machine is there, or will not get there; the event settles the action.
    pub(super) async fn baseline(&self, id: MachineId) -> Event {
        let mut answered = Instant::now();
        loop {
            let wanted = self.engine.machine(id).filter(|m| m.baseline_running().is_some());
            let Some(machine) = wanted.filter(|_| !self.engine.inner.stop.is_cancelled()) else {
                return Event::ActionDone { action: Action::Baseline, answer: "no longer wanted".into() };
            };
            let outcome = match self.look_and_act(&machine).await {
                Ok(outcome) => {
                    answered = Instant::now();
                    outcome
                }
                Err(e) => silent(&machine, &e, answered.elapsed()),
            };
            match outcome {
                Outcome::Acted => {}
                Outcome::End(news) => return Event::Baseline(news),
                Outcome::Wait(why) => {
                    let told = machine.baseline_running().is_some_and(|b| b.doing == why);
                    if !told {
                        let (name, attempts) = record(&machine);
                        self.tell(id, BaselineNews { baseline: name, attempts, sentence: why, end: None }).await;
                    }
                    self.pause(id).await;
                }
            }
        }
    }

    /// A while, or until something happens to the machine.
    async fn pause(&self, id: MachineId) {
        let Some(bell) = self.engine.world().bell(id) else { return };
        tokio::select! {
            () = bell.notified() => {}
            () = sleep(self.engine.inner.site.firmware.look) => {}
        }
    }

    async fn tell(&self, id: MachineId, news: BaselineNews) -> bool {
        self.engine.submit(About::Machine(id), Event::Baseline(news)).await.is_ok()
    }

    async fn look_and_act(&self, machine: &Machine) -> Result<Outcome> {
        let (_, mut attempts) = record(machine);
        let end = |baseline: Option<String>, attempts, sentence: String, findings, hold| {
            Outcome::End(BaselineNews { baseline, attempts, sentence, end: Some(BaselineEnd { findings, hold }) })
        };
        let Some(baseline) = self.engine.baseline_of(machine)? else {
            let (maker, model) = maker_and_model(machine);
            let sentence = format!("there is no firmware baseline for {maker} {model}");
            return Ok(end(None, attempts, sentence, Vec::new(), false));
        };
        let name = Some(baseline.name.clone());
        // Only an update of which nobody saw the end can still be running.
        let seen = self.engine.see(machine, attempts.iter().any(|a| a.ended.is_none())).await?;
        let plan = self.engine.plan(machine, &baseline, &seen)?;
        if !self.engine.inner.site.firmware.apply {
            let left = plan.steps.iter().flat_map(|s| s.findings("not applied: firmware.apply is false"));
            let findings: Vec<Finding> = plan.findings.iter().cloned().chain(left).collect();
            return Ok(end(name, attempts, format!("{}: {}", baseline.name, plan.summary()), findings, false));
        }
        let facts = Facts {
            now: now(),
            agent_at: machine.agent.as_ref().map(|a| a.at),
            sighted_at: machine.last_sighted,
            updating: seen.updating,
        };
        match progress::next(&plan, &attempts, &facts) {
            Next::Wait(why) => Ok(Outcome::Wait(why)),
            Next::Done { findings, hold } => {
                let sentence = ending(&baseline.name, &attempts, &findings);
                Ok(end(name, attempts, sentence, findings, hold))
            }
            Next::Act(step) => {
                progress::begin(&mut attempts, &step, now());
                let news = |attempts: &Vec<Attempt>, sentence| BaselineNews {
                    baseline: name.clone(),
                    attempts: attempts.clone(),
                    sentence,
                    end: None,
                };
                if !self.tell(machine.id, news(&attempts, format!("{step} (baseline {})", baseline.name))).await {
                    // Not on disk: the machine was taken elsewhere meanwhile, or the appliance stops. The loop will see.
                    return Ok(Outcome::Acted);
                }
                self.act(machine, &step, &mut attempts, news).await;
                Ok(Outcome::Acted)
            }
        }
    }

    async fn act(
        &self,
        machine: &Machine,
        step: &Step,
        attempts: &mut [Attempt],
        news: impl Fn(&Vec<Attempt>, String) -> BaselineNews,
    ) {
        tracing::info!(machine = %machine.name, %step, "firmware baseline");
        let done = match step {
            Step::Reboot => self.network_boot(machine).await.map(drop),
            _ => visit::act(&OfMachine { engine: &self.engine, machine }, &self.engine.inner.site.firmware, step).await,
        };
        let (failed, sentence) = match done {
            Ok(()) => (None, format!("{step}: {}", if step.needs_boot() { "waits for the reboot" } else { "done" })),
            // The image is there, and the BMC waits for the boot that comes.
            Err(e) if e.code() == "bmc.task-late" && step.needs_boot() => (None, format!("{step}: {e}")),
            // Nobody knows how far it got: the next looks will show.
            Err(e) if e.kind() == Kind::Unreachable && matches!(step, Step::Update { .. }) => {
                tracing::warn!(machine = %machine.name, %step, error = ?e, "the end of an update was not seen");
                return;
            }
            Err(e) => {
                tracing::warn!(machine = %machine.name, %step, error = ?e, "a step of the firmware baseline failed");
                (Some(e.to_string()), format!("{step}: failed: {e}"))
            }
        };
        progress::end(attempts, step, now(), failed);
        self.tell(machine.id, news(&attempts.to_vec(), sentence)).await;
    }
}

fn record(machine: &Machine) -> (Option<String>, Vec<Attempt>) {
    machine.baseline.as_ref().map_or((None, Vec::new()), |b| (b.name.clone(), b.attempts.clone()))
}

/// A BMC that was told to update itself is away for a while; one that never answered has a machine that goes on without it.
fn silent(machine: &Machine, error: &Error, since: Duration) -> Outcome {
    let (baseline, attempts) = record(machine);
    let patience = if attempts.is_empty() { SILENCE } else { LONG_SILENCE };
    if error.kind() == Kind::Unreachable && since < patience {
        return Outcome::Wait(format!("waits for its BMC: {error}"));
    }
    let finding = Finding {
        what: "firmware and settings".into(),
        expected: "looked at".into(),
        found: "not known".into(),
        cause: error.to_string(),
    };
    // Half way there it is not to be used.
    let hold = !attempts.is_empty();
    let sentence = format!("its firmware and settings cannot be looked at: {error}");
    Outcome::End(BaselineNews {
        baseline,
        attempts,
        sentence,
        end: Some(BaselineEnd { findings: vec![finding], hold }),
    })
}

fn ending(baseline: &str, attempts: &[Attempt], findings: &[Finding]) -> String {
    let acted = if attempts.is_empty() { "is" } else { "is now" };
    match findings {
        [] => format!("{acted} as the baseline {baseline} wants it"),
        [one] => format!("differs from the baseline {baseline}: {one}"),
        [first, rest @ ..] => format!("differs from the baseline {baseline}: {first}; and {} more", rest.len()),
    }
}
