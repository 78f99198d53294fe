//! One file per stage. Each says which facts are welcome there and what follows; [`anywhere`] holds what is the same in
//! every stage, and the ladder that a machine climbs when a deadline passes.

pub mod broken;
pub mod burning;
pub mod commissioning;
pub mod delivered;
pub mod deploying;
pub mod expected;
pub mod ready;
pub mod releasing;
pub mod seen;
pub mod verifying;

use super::event::{Action, Event, OWN_BMC_USER, Refused, Sighting};
use super::ladder;
use super::machine::{AgentSeen, BmcPassword, Machine, Millis, State};
use super::{BootChoice, Turn, boot_choice};
use crate::link::{Mode, Outcome, Problem};
use crate::machine::PowerAction;

const SECOND: Millis = 1_000;
const MINUTE: Millis = 60 * SECOND;

/// From power-on to the first DHCP request: memory training of a large server takes minutes.
pub const POST: Millis = 10 * MINUTE;
/// From the first DHCP request to the agent's hello.
pub const AGENT_BOOT: Millis = 5 * MINUTE;
/// Inventory and short measurements.
pub const COMMISSION: Millis = 10 * MINUTE;
/// Bringing firmware and settings to their baseline: two BMC updates of an hour, and a slow server that restarts twice.
pub const BASELINE: Millis = 180 * MINUTE;
/// Beyond what the next test of a burn-in takes: a drive that hangs, a BMC that starts the machine again.
pub const BURN_SLACK: Millis = 15 * MINUTE;
/// From the order to the chosen disk, with an agent that waits for orders.
pub const PICK_UP: Millis = 2 * MINUTE;
/// Writing and reading back an image.
pub const DEPLOY: Millis = 60 * MINUTE;
/// From the reboot to the resident agent's hello, and from there to the last check.
pub const VERIFY: Millis = 20 * MINUTE;
/// Erasing all disks.
pub const ERASE: Millis = 60 * MINUTE;

/// The same reason for no answer is told again after this time.
const UNANSWERED_AGAIN: Millis = 10 * MINUTE;
/// Boots further apart than this are not a loop: the slowest loop is a server that tests its memory and finds no boot file.
const LOOP: Millis = 60 * MINUTE;
/// A loop that the timeline has told of goes on with one boot in this time.
const TOLD: Millis = 10 * MINUTE;
/// Requests of ROM and boot loader this close together belong to one boot.
const ONE_BOOT: Millis = 20 * SECOND;

fn problem(code: &str, title: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem { code: code.into(), title: title.into(), hint: Some(hint.into()), causes: Vec::new() }
}

/// What is the same in every stage. `true`: done with, the stage is not asked.
pub fn anywhere(turn: &mut Turn, event: &Event) -> Result<bool, Refused> {
    match event {
        Event::Sighted(sighting) => return sighted(turn, sighting),
        Event::Hello { mode, boot_id, agent_version, address, macs, uuid, serial, arch, name, seen_on } => {
            let machine = &mut turn.machine;
            let known = machine.agent.as_ref().is_some_and(|a| a.boot_id == *boot_id && a.mode == *mode);
            if known && !matches!(machine.state, State::Expected | State::Seen) {
                return Err(Refused::Nothing);
            }
            // The old system, where the network was asked for, is no answer.
            if *mode == Mode::Ram || !machine.wants_network() {
                machine.ladder.seen();
            }
            machine.agent =
                Some(AgentSeen { mode: *mode, boot_id: *boot_id, version: agent_version.clone(), at: turn.now });
            machine.macs.extend(macs.iter().copied());
            machine.seen_on.extend(seen_on.iter().map(|(mac, port)| (*mac, port.clone())));
            machine.address = address.or(machine.address);
            machine.arch = arch.or(machine.arch);
            if let Some(name) = name {
                machine.name.clone_from(name);
            }
            machine.uuid = uuid.or(machine.uuid);
            if *mode == Mode::Resident && matches!(machine.state, State::Verifying | State::Delivered { .. }) {
                // Its own system runs: it has arrived where the boots were to lead.
                machine.boots = 0;
                machine.comes_back = false;
            }
            if machine.serial.is_none() {
                machine.serial.clone_from(serial);
            }
        }
        Event::Reported { number, .. } if *number != turn.machine.number => return Err(Refused::Stale),
        Event::Reported { outcome: Outcome::Leaving, .. } => return Ok(true),
        Event::BmcPasswordWanted { own } => return bmc_password(turn, *own),
        Event::ActionDone { action: Action::ChangeBmcPassword, .. } => {
            turn.machine.bmc_password = BmcPassword::Own;
            return Ok(true);
        }
        Event::ActionDone { .. } | Event::Noted { .. } | Event::BmcLogSaved { .. } => return Ok(true),
        // It asks every few seconds; the timeline wants each reason once in a while.
        Event::Unanswered { why } => {
            let machine = &mut turn.machine;
            if machine.unanswered.as_ref().is_some_and(|(old, at)| old == why && turn.now - at < UNANSWERED_AGAIN) {
                return Err(Refused::Nothing);
            }
            machine.unanswered = Some((why.clone(), turn.now));
            return Ok(true);
        }
        // A machine on hold asks every half minute; the timeline wants the first answer of each boot.
        Event::ScriptServed { choice } if turn.machine.served.as_ref() == Some(choice) => return Err(Refused::Nothing),
        Event::ScriptServed { choice } => {
            turn.machine.served = Some(choice.clone());
            return Ok(true);
        }
        Event::ActionFailed { action, problem } => return Ok(action_failed(turn, action, problem)),
        Event::Expected(e) => {
            let machine = &mut turn.machine;
            let known = machine.macs.len();
            let listed = |m: &Machine| (m.listed_mac, m.listed_ports.clone(), m.bmc_mac, m.purchase.clone());
            let is =
                |m: &Machine| (m.expected, m.name.clone(), m.place.clone(), m.bmc.clone(), m.ports.clone(), listed(m));
            let before = is(machine);
            machine.expected = true;
            machine.name.clone_from(&e.name);
            machine.serial = Some(e.serial.clone());
            machine.macs.extend(e.mac);
            machine.place.clone_from(&e.place);
            machine.ports.clone_from(&e.ports);
            machine.listed_mac = e.mac;
            machine.listed_ports.clone_from(&e.listed_ports);
            machine.bmc_mac = e.bmc_mac;
            machine.purchase.clone_from(&e.purchase);
            if e.bmc.is_some() && machine.bmc != e.bmc {
                machine.bmc.clone_from(&e.bmc);
                // Another BMC has the password that it came with.
                machine.bmc_password = BmcPassword::Listed;
            }
            return if before == is(machine) && known == machine.macs.len() { Err(Refused::Nothing) } else { Ok(true) };
        }
        Event::PowerRequested { action } => return power(turn, *action),
        Event::RetireRequested => {
            if matches!(turn.machine.state, State::Delivered { .. } | State::Deploying | State::Verifying) {
                return Err(Refused::state("a machine in use is released before it is retired"));
            }
            turn.enter(State::Retired);
            return Ok(true);
        }
        Event::Misidentified { problem } => {
            turn.broken(problem.clone());
            return Ok(true);
        }
        Event::Climbing(climb) => {
            let ladder = &mut turn.machine.ladder;
            if ladder.begun || ladder.current.as_ref() != Some(climb) {
                return Err(Refused::state(format!("{climb} is no longer wanted")));
            }
            ladder.begun = true;
            return Ok(true);
        }
        Event::Due { .. } if turn.machine.deadline.is_none_or(|at| turn.now < at) => return Err(Refused::Nothing),
        // A delivered host is in use, whatever becomes of a look at it.
        Event::Reported { outcome: Outcome::Failed(problem), .. }
            if !matches!(turn.machine.state, State::Delivered { .. }) =>
        {
            turn.broken(problem.clone());
            return Ok(true);
        }
        _ => {}
    }
    Ok(false)
}

fn sighted(turn: &mut Turn, sighting: &Sighting) -> Result<bool, Refused> {
    let now = turn.now;
    let machine = &mut turn.machine;
    // A boot asks for an address more than once: the ROM, then iPXE. Of a loop that was told, a boot now and then is enough.
    let apart = if machine.boots > sighting.limit { TOLD } else { ONE_BOOT };
    let since = machine.last_sighted.map(|at| now - at);
    let boot = sighting.boots && since.is_none_or(|since| since > apart);
    let new = boot
        || machine.address != sighting.address
        || !machine.macs.contains(&sighting.mac)
        || sighting.port.as_ref().is_some_and(|port| machine.seen_on.get(&sighting.mac) != Some(port))
        || machine.state == State::Expected;
    if !new {
        return Err(Refused::Nothing);
    }
    machine.macs.insert(sighting.mac);
    if let Some(port) = &sighting.port {
        machine.seen_on.insert(sighting.mac, port.clone());
    }
    machine.uuid = sighting.uuid.or(machine.uuid);
    machine.arch = sighting.arch.or(machine.arch);
    machine.address = sighting.address.or(machine.address);
    if boot {
        machine.last_sighted = Some(now);
        machine.agent = None;
        machine.served = None;
        machine.ladder.seen();
        machine.boots = if since.is_some_and(|since| since > LOOP) { 1 } else { machine.boots + 1 };
        return Ok(loops(turn, sighting.limit));
    }
    Ok(false)
}

/// A machine that boots again and again is held, or, where it is in use, said to be in trouble: the appliance never stands
/// between a delivered host and its disk. `true`: the state has changed.
fn loops(turn: &mut Turn, limit: u32) -> bool {
    let boots = turn.machine.boots;
    let over = boots > limit;
    let (title, hint) = match (&turn.machine.state, boot_choice(&turn.machine)) {
        (State::Delivered { .. }, _) => {
            turn.machine.comes_back = over;
            return false;
        }
        (_, BootChoice::Hold { .. }) => return false,
        (_, BootChoice::LocalDisk) => (
            format!("came back to the network {boots} times instead of starting from its own disk"),
            "look at its console for what the boot loader says; then `rackline machine retry` writes the disk again",
        ),
        (_, BootChoice::Agent) => (
            format!("booted from the network {boots} times without moving on"),
            "look at its console; `rackline machine events` shows how far each boot came, `rackline boot explain` what it gets",
        ),
    };
    if over {
        turn.broken(problem("boot.loop", title, hint));
    }
    over
}

/// A failed action matters where the machine waits for its effect; else it is told and that is all.
fn action_failed(turn: &mut Turn, action: &Action, cause: &Problem) -> bool {
    let machine = &turn.machine;
    let waits = machine.deadline.is_some();
    match (&machine.state, action) {
        (State::Verifying, Action::SignPassport) => {
            let mut cause = cause.clone();
            cause.title = format!("could not {action}: {}", cause.title);
            turn.broken(cause);
        }
        (_, Action::Climb(climb)) if waits && machine.ladder.current.as_ref() == Some(climb) => {
            ladder::failed(turn, cause);
        }
        (State::Expected | State::Releasing, Action::NetworkBoot) if waits && machine.ladder.asked.is_some() => {
            ladder::failed(turn, cause);
        }
        // Nothing was asked after all.
        (_, Action::NetworkBoot) => turn.machine.ladder.asked = None,
        _ => {}
    }
    true
}

fn bmc_password(turn: &mut Turn, own: bool) -> Result<bool, Refused> {
    let machine = &mut turn.machine;
    let listed = machine.bmc.as_ref().is_some_and(|bmc| bmc.user != OWN_BMC_USER);
    machine.bmc_password = match (machine.bmc_password, own) {
        (BmcPassword::Listed, true) if listed => BmcPassword::Wanted,
        (BmcPassword::Wanted, false) => BmcPassword::Listed,
        _ => return Err(Refused::Nothing),
    };
    if machine.state == State::Ready {
        change_bmc_password(turn);
    }
    Ok(true)
}

/// Once the machine has said who it is. What fails is told, and tried again when it is commissioned again.
fn change_bmc_password(turn: &mut Turn) {
    if turn.machine.bmc_password == BmcPassword::Wanted {
        turn.act(Action::ChangeBmcPassword);
    }
}

fn power(turn: &mut Turn, action: PowerAction) -> Result<bool, Refused> {
    if turn.machine.bmc.is_none() {
        return Err(Refused::state("its BMC is not known: import it with the expected machines, or power it by hand"));
    }
    let wants_agent = matches!(boot_choice(&turn.machine), BootChoice::Agent);
    match action {
        PowerAction::On | PowerAction::Cycle | PowerAction::Reset if wants_agent => {
            turn.network_boot();
            if turn.machine.state == State::Expected {
                turn.expect_within(POST);
            }
        }
        _ => turn.act(Action::Power { power: action }),
    }
    Ok(true)
}

/// The answer to a fact that this stage does not want.
fn unwelcome(turn: &Turn, event: &Event) -> Result<(), Refused> {
    let state = turn.machine.state.name();
    match event {
        Event::Sighted(_) | Event::Hello { .. } => Ok(()),
        Event::Due { .. } => Err(Refused::Nothing),
        Event::Reported { .. } => Err(Refused::Stale),
        Event::Ordered(_) => Err(Refused::state(format!("it is {state}: release it first"))),
        Event::CheckRequested => {
            Err(Refused::state(format!("it is {state}: only delivered hosts are checked on demand")))
        }
        Event::ReleaseRequested => Err(Refused::state(format!("it is {state}: there is nothing to release"))),
        Event::RetryRequested => Err(Refused::state(format!("it is {state}, not broken: there is nothing to retry"))),
        other => Err(Refused::state(format!("{} does not fit a machine that is {state}", other.kind()))),
    }
}
