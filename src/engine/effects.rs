//! Carries out what was decided: one action at a time for each machine, in the order they were decided; different
//! machines do not wait for each other. Every action ends in an event that settles it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use super::bmc::Door;
use super::{Engine, energy, now};
use crate::error::Result;
use crate::handoff::passport;
use crate::lifecycle::ladder::Step;
use crate::lifecycle::passport::Facts;
use crate::lifecycle::{self, Action, Event, Machine};
use crate::link::Problem;
use crate::machine::{MachineId, PowerAction};
use crate::store::machines::Pending;

#[derive(Clone)]
pub struct Effects {
    pub(super) engine: Engine,
    /// A machine with an entry has a task at work; the queue holds what comes after.
    queues: Arc<Mutex<HashMap<MachineId, VecDeque<Work>>>>,
}

struct Work {
    pending: Pending,
    /// Found in the outbox after a restart: looked at before it is done again.
    resumed: bool,
}

impl Effects {
    pub fn new(engine: Engine) -> Self {
        Self { engine, queues: Arc::default() }
    }

    pub fn start(&self, pending: Pending) {
        self.enqueue(Work { pending, resumed: false });
    }

    pub fn resume(&self, pending: Pending) {
        self.enqueue(Work { pending, resumed: true });
    }

    fn enqueue(&self, work: Work) {
        let machine = work.pending.machine;
        let mut queues = self.queues.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(queue) = queues.get_mut(&machine) {
            queue.push_back(work);
            return;
        }
        queues.insert(machine, VecDeque::from([work]));
        tokio::spawn(self.clone().drain(machine));
    }

    async fn drain(self, machine: MachineId) {
        loop {
            let work = {
                let mut queues = self.queues.lock().unwrap_or_else(|e| e.into_inner());
                match queues.get_mut(&machine).and_then(VecDeque::pop_front) {
                    Some(work) => work,
                    None => {
                        queues.remove(&machine);
                        return;
                    }
                }
            };
            let Pending { id, action, at, .. } = work.pending;
            let event = match self.engine.machine(machine) {
                Some(m) if work.resumed && !lifecycle::still_wanted(&m, &action, at) => {
                    Event::ActionDone { action, answer: serde_json::json!("had taken effect before the restart") }
                }
                Some(m) => self.carry_out(&m, action).await,
                None => continue,
            };
            if self.engine.settle(id, machine, event).await.is_err() {
                return; // stopping: the outbox keeps it
            }
        }
    }

    async fn carry_out(&self, machine: &Machine, action: Action) -> Event {
        tracing::info!(machine = %machine.name, %action, "acting");
        let outcome = match &action {
            Action::SignPassport => {
                return match passport::issue(&self.engine.inner.site.key, machine, self.facts(machine), now()) {
                    Ok(passport) => Event::PassportSigned { passport },
                    Err(problem) => Event::ActionFailed { action, problem },
                };
            }
            Action::ChangeBmcPassword => self.engine.change_bmc_password(machine).await,
            Action::BmcSetup => self.engine.set_up_bmc(machine).await,
            Action::NetworkBoot => self.network_boot(machine).await,
            Action::Power { power } => self.step(machine, Door::First, Step::Power(*power)).await,
            Action::Climb(climb) => self.climb(machine, climb).await,
            Action::Baseline => return self.baseline(machine.id).await,
        };
        match outcome {
            Ok(answer) => Event::ActionDone { action, answer },
            Err(e) => {
                tracing::warn!(machine = %machine.name, %action, error = ?e, "an action failed");
                Event::ActionFailed { action, problem: Problem::from(&e) }
            }
        }
    }

    /// What its BMC knows of a host that is handed over.
    fn facts(&self, machine: &Machine) -> Facts {
        let health = self.engine.health(machine.id);
        let energy = health.as_deref().and_then(|h| energy::taken(&h.sensors, h.at?.as_millisecond()));
        Facts { energy, key_id: None }
    }

    pub(super) async fn network_boot(&self, machine: &Machine) -> Result<serde_json::Value> {
        let set = self.step(machine, Door::First, Step::BootNetwork { persistent: false }).await?;
        let power = self.step(machine, Door::First, Step::Power(PowerAction::Cycle)).await?;
        Ok(serde_json::json!({ "boot": set, "power": power }))
    }
}
