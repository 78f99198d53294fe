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

use super::{
    AddressFrom, Answer, BiosAttributes, Bmc, BootDevice, BootOverride, BootSeen, ChassisState, Command, Outcome,
    Power, PowerAction, SetNetwork,
};
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

pub async fn perform<B: Bmc>(bmc: &mut B, command: &Command, limits: &Limits) -> Result<Answer> {
    match command {
        Command::PowerStatus => Ok(Answer::PowerStatus(bmc.chassis().await?)),
        Command::Power { action } => power(bmc, *action, limits).await,
        Command::SetBoot(wanted) => set_boot(bmc, *wanted).await,
        Command::Boot => Ok(Answer::Boot { seen: bmc.boot().await? }),
        Command::Sensors => Ok(Answer::Sensors { sensors: bmc.sensors().await? }),
        Command::Identify { seconds } => identify(bmc, *seconds).await,
        Command::Info => Ok(Answer::Info(bmc.info().await?)),
        Command::Log { after } => Ok(Answer::Log(bmc.log(after.as_deref()).await?)),
        Command::ClearLog { last } => clear_log(bmc, last).await,
        Command::Clock => Ok(Answer::Clock { clock: bmc.clock().await? }),
        Command::SetClock => set_clock(bmc).await,
        Command::Parts => Ok(Answer::Parts { parts: bmc.parts().await? }),
        Command::Users => Ok(Answer::Users { users: bmc.users().await? }),
        Command::SetPassword { user, password } => {
            bmc.set_password(user, password).await?;
            done("the password is set", unconfirmed("the next log-in shows it"))
        }
        Command::Network => Ok(Answer::Network(bmc.network().await?)),
        Command::SetNetwork(wanted) => set_network(bmc, wanted).await,
        Command::ResetBmc { cold } => {
            bmc.reset_bmc(*cold).await?;
            done("the BMC starts anew", unconfirmed("it cannot be asked until it is back"))
        }
        Command::Bios => Ok(Answer::Bios(bmc.bios().await?)),
        Command::SetBios { attributes } => set_bios(bmc, attributes).await,
        Command::BootOrder => Ok(Answer::BootOrder { order: bmc.boot_order().await?, names: bmc.boot_names().await? }),
        Command::SetBootOrder { order } => set_boot_order(bmc, order).await,
        Command::Updating => Ok(Answer::Updating { busy: bmc.updating().await? }),
        Command::Components => Ok(Answer::Components { components: bmc.components().await? }),
        Command::Update(update) => {
            bmc.update(update).await?;
            done("the image is in place", unconfirmed("the versions show what runs, some only after a reboot"))
        }
    }
}

fn done(what: &str, outcome: Outcome) -> Result<Answer> {
    Ok(Answer::Done { what: what.to_owned(), outcome })
}

fn unconfirmed(why: &str) -> Outcome {
    Outcome::Unconfirmed { why: why.to_owned() }
}

async fn power<B: Bmc>(bmc: &mut B, action: PowerAction, limits: &Limits) -> Result<Answer> {
    let before = bmc.chassis().await?.power;
    let since = Instant::now();
    let answer = |after, acted, outcome| {
        let millis = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(Answer::Power { action, before, after, acted, outcome, millis })
    };
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

/// What came since the caller has read it was saved by nobody: then it stays.
async fn clear_log<B: Bmc>(bmc: &mut B, last: &str) -> Result<Answer> {
    let newer = bmc.log(Some(last)).await?.entries;
    if let Some(entry) = newer.first() {
        let message = format!("{} has written entry {} since the log was read", bmc.whose(), entry.id);
        return Err(Error::conflict("bmc.log-newer", message).hint("read and save the log again, then clear it"));
    }
    bmc.clear_log(last).await?;
    let left = bmc.log(None).await?.entries;
    // The clearing itself is an entry on most BMCs.
    match left.iter().any(|entry| entry.id == last) && left.len() > 1 {
        true => {
            Err(not_applied(bmc.whose(), "the order to clear its log", format!("it still has {} entries", left.len())))
        }
        false => done("the log is empty", Outcome::Confirmed),
    }
}

/// A BMC's clock is right when it is within this of ours, seconds; more would mislead whoever compares its log with another.
const CLOCK_WITHIN: i64 = 5;

async fn set_clock<B: Bmc>(bmc: &mut B) -> Result<Answer> {
    bmc.set_clock().await?;
    match bmc.clock().await? {
        Some(clock) if clock.ahead_seconds.abs() <= CLOCK_WITHIN => done("the clock is set", Outcome::Confirmed),
        Some(clock) => {
            Err(not_applied(bmc.whose(), "the time", format!("its clock is {} s ahead", clock.ahead_seconds)))
        }
        None => done("the clock is set", unconfirmed("the BMC does not show its clock")),
    }
}

async fn set_network<B: Bmc>(bmc: &mut B, wanted: &SetNetwork) -> Result<Answer> {
    bmc.set_network(wanted).await?;
    let Some(AddressFrom::Static { address, .. }) = &wanted.address else {
        return match (&wanted.address, &wanted.ntp) {
            (None, Some(ntp)) => time_servers_seen(bmc, ntp).await,
            _ => done("the network settings are sent", unconfirmed("the address that it gets shows it")),
        };
    };
    match bmc.network().await {
        Ok(seen) if seen.address == Some(*address) => done("the network settings are there", Outcome::Confirmed),
        Ok(seen) => {
            let has = seen.address.map_or("none".to_owned(), |a| a.to_string());
            Err(not_applied(bmc.whose(), "the address", format!("it has {has}")))
        }
        Err(_) => done("the network settings are sent", unconfirmed("it does not answer at its old address any more")),
    }
}

async fn time_servers_seen<B: Bmc>(bmc: &mut B, wanted: &[String]) -> Result<Answer> {
    match bmc.network().await?.ntp {
        // Some keep servers of their own behind those that they are given.
        Some(seen) if wanted.iter().all(|server| seen.contains(server)) && wanted.is_empty() == seen.is_empty() => {
            done("the time servers are there", Outcome::Confirmed)
        }
        Some(seen) => {
            let has = if seen.is_empty() { "none".to_owned() } else { seen.join(", ") };
            Err(not_applied(bmc.whose(), "the time servers", format!("it has {has}")))
        }
        None => done("the time servers are sent", unconfirmed("the BMC does not show them")),
    }
}

async fn set_bios<B: Bmc>(bmc: &mut B, attributes: &BiosAttributes) -> Result<Answer> {
    bmc.set_bios(attributes).await?;
    let bios = bmc.bios().await?;
    let has = |name: &String| bios.pending.get(name).or_else(|| bios.now.get(name));
    let lost: Vec<&str> =
        attributes.iter().filter(|(name, value)| has(name) != Some(value)).map(|(name, _)| name.as_str()).collect();
    match lost.is_empty() {
        true => done("the settings are there, or wait for the next boot", Outcome::Confirmed),
        false => Err(not_applied(bmc.whose(), "the settings", format!("it does not show {}", lost.join(", ")))),
    }
}

async fn set_boot_order<B: Bmc>(bmc: &mut B, order: &[String]) -> Result<Answer> {
    if bmc.boot_order().await?.starts_with(order) {
        return done("the boot order was so already", Outcome::Confirmed);
    }
    bmc.set_boot_order(order).await?;
    let seen = bmc.boot_order().await?;
    match seen.starts_with(order) {
        true => done("the boot order is set", Outcome::Confirmed),
        false => done("the boot order is sent", unconfirmed("the BMC shows it only after the next boot")),
    }
}

fn not_applied(whose: &str, took: &str, but: String) -> Error {
    Error::refused("bmc.not-applied", format!("{whose} took {took}, but {but}"))
        .hint("ask again; if this lasts, restart the BMC or update its firmware")
}

#[cfg(test)]
#[path = "act_tests.rs"]
mod tests;
