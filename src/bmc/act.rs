//! Look, act, read back: what a command means, the same for every protocol.
//!
//! | asked | it is | sent | confirmed by |
//! |---|---|---|---|
//! | on, off | so already | nothing | the look |
//! | on, off | not so | on, off | the state, within [`Limits::confirm`] |
//! | cycle, reset | off | on | the state |
//! | cycle | on | cycle | off seen, then on |
//! | reset | on | reset | nothing: no protocol counts resets |
//! | soft | on | soft | nothing: the operating system takes its time |
//! | boot device | valid and so already | nothing | the look |
//! | boot device | otherwise | the flags | the flags |

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Answer, Bmc, BootDevice, BootOverride, BootSeen, ChassisState, Command, Outcome, Power, PowerAction};
use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How long a power state may take to come about.
    pub confirm: Duration,
    /// How long to watch for the off-phase of a cycle. Some BMCs report "on" all the way through.
    pub cycle: Duration,
    /// Between two looks.
    pub look: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { confirm: Duration::from_secs(15), cycle: Duration::from_secs(6), look: Duration::from_millis(400) }
    }
}

pub async fn perform<B: Bmc>(bmc: &mut B, command: Command, limits: &Limits) -> Result<Answer> {
    match command {
        Command::PowerStatus => Ok(Answer::PowerStatus(bmc.chassis().await?)),
        Command::Power { action } => power(bmc, action, limits).await,
        Command::SetBoot(wanted) => set_boot(bmc, wanted).await,
        Command::Boot => Ok(Answer::Boot { seen: bmc.boot().await? }),
        Command::Sensors => Ok(Answer::Sensors { sensors: bmc.sensors().await? }),
        Command::Identify { seconds } => identify(bmc, seconds).await,
        Command::Info => Ok(Answer::Info(bmc.info().await?)),
    }
}

fn unconfirmed(why: &str) -> Outcome {
    Outcome::Unconfirmed { why: why.to_owned() }
}

async fn power<B: Bmc>(bmc: &mut B, action: PowerAction, limits: &Limits) -> Result<Answer> {
    let before = bmc.chassis().await?.power;
    let answer = |after, acted, outcome| Ok(Answer::Power { action, before, after, acted, outcome });
    match (action, before) {
        (PowerAction::On, Power::On) | (PowerAction::Off | PowerAction::Soft, Power::Off) => {
            answer(before, false, Outcome::Confirmed)
        }
        (PowerAction::On | PowerAction::Cycle | PowerAction::Reset, Power::Off) => {
            reach(bmc, PowerAction::On, Power::On, limits).await?;
            answer(Power::On, true, Outcome::Confirmed)
        }
        (PowerAction::Off, Power::On) => {
            reach(bmc, PowerAction::Off, Power::Off, limits).await?;
            answer(Power::Off, true, Outcome::Confirmed)
        }
        (PowerAction::Cycle, Power::On) => {
            bmc.control(PowerAction::Cycle).await?;
            let outcome = watch_cycle(bmc, limits).await?;
            answer(Power::On, true, outcome)
        }
        (PowerAction::Reset, Power::On) => {
            bmc.control(PowerAction::Reset).await?;
            wait_for(bmc, Power::On, limits).await?;
            answer(Power::On, true, unconfirmed("a BMC does not show that a reset has happened"))
        }
        (PowerAction::Soft, Power::On) => {
            bmc.control(PowerAction::Soft).await?;
            answer(Power::On, true, unconfirmed("the operating system was asked, and stops when it is ready"))
        }
    }
}

/// Sends the command and waits for the state. A refusal counts only if the state is not there all the same: somebody
/// may have pressed the button in between, and then the BMC refuses with "not in this state".
async fn reach<B: Bmc>(bmc: &mut B, action: PowerAction, want: Power, limits: &Limits) -> Result<()> {
    if let Err(refused) = bmc.control(action).await {
        if refused.code() == "bmc.refused" && bmc.chassis().await?.power == want {
            return Ok(());
        }
        return Err(refused);
    }
    wait_for(bmc, want, limits).await
}

async fn wait_for<B: Bmc>(bmc: &mut B, want: Power, limits: &Limits) -> Result<()> {
    let until = Instant::now() + limits.confirm;
    loop {
        let ChassisState { power, fault, .. } = bmc.chassis().await?;
        if power == want {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(stayed(bmc.whose(), power, fault.is_some(), limits.confirm));
        }
        sleep(limits.look).await;
    }
}

fn stayed(whose: &str, power: Power, fault: bool, waited: Duration) -> Error {
    let state = match power {
        Power::On => "on",
        Power::Off => "off",
    };
    let message = format!("{whose} took the command, but the machine is {state} {:.1} s later", waited.as_secs_f64());
    let hint = match fault {
        true => "the BMC reports a power fault: check power supplies and mains",
        false => "look at the machine and its BMC log; some BMCs need a reset of their own to follow again",
    };
    Error::refused("bmc.not-applied", message).hint(hint)
}

async fn watch_cycle<B: Bmc>(bmc: &mut B, limits: &Limits) -> Result<Outcome> {
    let until = Instant::now() + limits.cycle;
    while Instant::now() < until {
        if bmc.chassis().await?.power == Power::Off {
            wait_for(bmc, Power::On, limits).await?;
            return Ok(Outcome::Confirmed);
        }
        sleep(limits.look).await;
    }
    Ok(unconfirmed("the BMC took the command and showed the machine as on all the time"))
}

async fn set_boot<B: Bmc>(bmc: &mut B, wanted: BootOverride) -> Result<Answer> {
    let answer = |seen, acted, outcome| Ok(Answer::SetBoot { wanted, seen, acted, outcome });
    let before = bmc.boot().await?;
    // "Not valid" is as good as no override, but BMCs that never say "valid" follow the device all the same.
    let so_already = |seen: BootSeen| seen.device == Some(wanted.device) && differences(wanted, seen).is_empty();
    if before.is_some_and(so_already) {
        return answer(before, false, Outcome::Confirmed);
    }
    bmc.set_boot(wanted).await?;
    let Some(seen) = bmc.boot().await? else {
        return answer(None, true, unconfirmed("the BMC cannot tell its boot device"));
    };
    if !same_device(wanted, seen) {
        return Err(Error::refused(
            "bmc.not-applied",
            format!("{} took the boot device {:?}, but has {} after it", bmc.whose(), wanted.device, named(seen)),
        )
        .hint("set the boot order in the firmware set-up, or update the BMC firmware"));
    }
    let differences = differences(wanted, seen);
    let outcome = match differences.is_empty() {
        true => Outcome::Confirmed,
        false => Outcome::Unconfirmed { why: format!("the BMC has the device, but {}", differences.join(" and ")) },
    };
    answer(Some(seen), true, outcome)
}

/// No override is the same as one that is not valid.
fn same_device(wanted: BootOverride, seen: BootSeen) -> bool {
    seen.device == Some(wanted.device) || (wanted.device == BootDevice::None && !seen.valid)
}

fn named(seen: BootSeen) -> String {
    seen.device.map_or_else(|| "another one".to_owned(), |device| format!("{device:?}"))
}

/// What of the override is not as wanted, as parts of a sentence.
fn differences(wanted: BootOverride, seen: BootSeen) -> Vec<&'static str> {
    let mut found = Vec::new();
    if !same_device(wanted, seen) {
        found.push("it names another device");
    }
    // Without an override the rest has no meaning.
    if wanted.device == BootDevice::None {
        return found;
    }
    if !seen.valid {
        found.push("it does not call the override valid");
    }
    if seen.firmware != wanted.firmware {
        found.push("it does not show the firmware type");
    }
    if seen.persistent != wanted.persistent {
        found.push("it does not show how long the override lasts");
    }
    found
}

async fn identify<B: Bmc>(bmc: &mut B, seconds: u8) -> Result<Answer> {
    bmc.identify(seconds).await?;
    let outcome = match bmc.chassis().await?.identify {
        Some(lit) if lit == (seconds > 0) => Outcome::Confirmed,
        Some(_) => unconfirmed("the BMC took the command and shows the light unchanged"),
        None => unconfirmed("the BMC does not show the state of its light"),
    };
    Ok(Answer::Identify { seconds, outcome })
}

#[cfg(test)]
#[path = "act_tests.rs"]
mod tests;
