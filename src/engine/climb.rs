//! Climbing: what there is to climb with, and what the rungs of the ladder (`lifecycle::ladder`) come down to outside.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::bmc::{Door, doors};
use super::effects::Effects;
use super::{About, Engine};
use crate::bmc::{BootDevice, BootOverride, Command};
use crate::error::{Error, Result};
use crate::lifecycle::ladder::{Climb, Means, Rung, Step};
use crate::lifecycle::{Event, Machine};
use crate::machine::{Firmware, MachineId};

/// Without mains: power supplies hold a BMC up for some seconds.
const DRAINED: Duration = Duration::from_secs(15);
/// A BMC that was told to restart answers for a moment yet.
const GOES_DOWN: Duration = Duration::from_secs(10);
/// From its restart to a BMC's first answer.
const STARTS: Duration = Duration::from_secs(5 * 60);
const LOOK: Duration = Duration::from_secs(5);

impl Engine {
    /// What there is to try on a machine beside its BMC's first door.
    pub(super) fn means(&self, machine: MachineId) -> Means {
        let Some(machine) = self.machine(machine) else { return Means::default() };
        let other = machine.bmc.as_ref().and_then(|account| doors(account).other());
        Means {
            second_door: other.is_some(),
            outlets: self.inner.site.outlets.has(&machine.name),
            useless: self.inner.learning.useless(machine.id),
        }
    }
}

impl Effects {
    /// Climbs one rung, which is told first: from then on it is never climbed again, and after a restart only brought to
    /// its end.
    pub(super) async fn climb(&self, machine: &Machine, climb: &Climb) -> Result<Value> {
        let interrupted = machine.ladder.begun && machine.ladder.current.as_ref() == Some(climb);
        if !interrupted {
            match self.engine.submit(About::Machine(machine.id), Event::Climbing(climb.clone())).await {
                Ok(_) => {}
                // The machine came, or somebody decided otherwise, since the rung was decided on.
                Err(e) if e.code() == "machine.state" => return Ok(json!("no longer wanted")),
                Err(e) => return Err(e),
            }
        }
        let steps = climb.rung.steps(machine.wants_network()).into_iter();
        let steps: Vec<Step> = if interrupted { steps.filter_map(Step::again).collect() } else { steps.collect() };
        let door = if climb.rung == Rung::OtherDoor { Door::Other } else { Door::First };
        let mut answers = Vec::new();
        for step in steps {
            match self.step(machine, door, step).await {
                Ok(answer) => answers.push(answer),
                // With the mains back a machine may start by itself, and its BMC come later.
                Err(e) if climb.rung == Rung::Outlets && !matches!(step, Step::OutletsOff | Step::OutletsOn) => {
                    answers.push(json!(e.to_string()));
                    break;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(Value::Array(answers))
    }

    /// Done and, as far as its BMC can show it, confirmed.
    pub(super) async fn step(&self, machine: &Machine, door: Door, step: Step) -> Result<Value> {
        let command = match step {
            Step::BootNetwork { persistent } => {
                let firmware = machine.arch.map_or(Firmware::Bios, |arch| arch.firmware());
                Command::SetBoot(BootOverride { device: BootDevice::Network, firmware, persistent })
            }
            Step::Power(action) => Command::Power { action },
            Step::ResetBmc { cold } => Command::ResetBmc { cold },
            Step::OutletsOff | Step::OutletsOn => return self.mains(machine, step == Step::OutletsOn).await,
        };
        let answer = self.engine.ask_bmc_through(machine, door, command).await?;
        if let Step::ResetBmc { .. } = step {
            sleep(GOES_DOWN).await;
            self.await_bmc(machine, door).await?;
        }
        serde_json::to_value(&answer)
            .map_err(|e| Error::internal("bmc.answer", "the BMC's answer cannot be stored").because(e))
    }

    async fn mains(&self, machine: &Machine, on: bool) -> Result<Value> {
        let switched = self.engine.inner.site.outlets.switch(&machine.name, on).await?;
        tracing::warn!(machine = %machine.name, outlets = switched.join(", "), on, "outlets switched");
        match on {
            false => sleep(DRAINED).await,
            // Where it stays away, the next step says so.
            true if machine.bmc.is_some() => drop(self.await_bmc(machine, Door::First).await),
            true => {}
        }
        Ok(json!({ "outlets": switched, "on": on }))
    }

    async fn await_bmc(&self, machine: &Machine, door: Door) -> Result<()> {
        let until = Instant::now() + STARTS;
        loop {
            match self.engine.ask_bmc_through(machine, door, Command::PowerStatus).await {
                Ok(_) => return Ok(()),
                Err(e) if Instant::now() >= until => return Err(e),
                Err(_) => sleep(LOOK).await,
            }
        }
    }
}
