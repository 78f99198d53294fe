//! The last part of commissioning: every part under load. Each test is a fact of its own, so that a power cut costs one test.

use super::super::Turn;
use super::super::burn::{BurnIn, TestDone};
use super::super::event::{Event, Refused};
use super::super::ladder;
use super::super::machine::{Millis, State};
use super::{BURN_SLACK, SECOND, commissioning, problem};
use crate::link::{BurnProfile, Mode, Outcome, Tested};
use crate::machine::Finding;

/// The site or an operator wants a machine that is being commissioned burned in; it begins when the rest is done.
pub fn wanted(turn: &mut Turn, profile: &BurnProfile, overwrite: bool, asked: bool) -> Result<(), Refused> {
    let machine = &mut turn.machine;
    match &machine.burn {
        None => machine.burn = Some(BurnIn::wanted(profile.clone(), overwrite)),
        Some(_) if !asked => return Err(Refused::Nothing),
        Some(burn) if burn.began.is_some() => {
            return Err(Refused::state(format!("{}: stop it first", burn.now())));
        }
        Some(_) => machine.burn = Some(BurnIn::wanted(profile.clone(), overwrite)),
    }
    Ok(())
}

/// A machine of the pool goes back to be burned in.
pub fn again(turn: &mut Turn, profile: &BurnProfile, overwrite: bool) {
    turn.enter(State::Commissioning);
    turn.machine.burn = Some(BurnIn::wanted(profile.clone(), overwrite));
    begin(turn);
}

/// `false`: nobody wants it, or it is over.
pub fn begin(turn: &mut Turn) -> bool {
    let now = turn.now;
    let Some(burn) = turn.machine.burn.as_mut().filter(|burn| burn.ended.is_none()) else { return false };
    burn.began = Some(now);
    turn.machine.forget_burn_in();
    expect_next(turn);
    true
}

/// What a machine under load is told, and what befalls it.
pub fn on(turn: &mut Turn, event: &Event) -> Result<bool, Refused> {
    if turn.machine.burning().is_none() {
        return match event {
            Event::Reported { outcome: Outcome::Tested(_) | Outcome::BurnedIn, .. } => Err(Refused::Stale),
            Event::BurnInStopped if turn.machine.burn.as_ref().is_some_and(|burn| burn.began.is_none()) => {
                turn.machine.burn = None;
                Ok(true)
            }
            Event::BurnInStopped => Err(Refused::state("it is not being burned in")),
            _ => Ok(false),
        };
    }
    match event {
        Event::Reported { outcome: Outcome::Tested(tested), findings, .. } => test_done(turn, tested, findings)?,
        Event::Reported { outcome: Outcome::BurnedIn, .. } => match turn.machine.burning().and_then(BurnIn::next) {
            None => end(turn, false),
            Some(missing) => turn.broken(problem(
                "burn.incomplete",
                format!("the agent ends the burn-in without the test {missing}"),
                "is it the agent of this release? boot it again with `rackline machine retry`",
            )),
        },
        Event::Reported { .. } => return Err(Refused::Stale),
        Event::BurnInStopped => end(turn, true),
        // Every hello that comes this far is of a new boot.
        Event::Hello { mode: Mode::Ram, .. } => {
            if let Some(burn) = &mut turn.machine.burn {
                burn.restarts += 1;
            }
            expect_next(turn);
        }
        Event::Due { means } => {
            let now = turn.machine.burning().map(BurnIn::now).unwrap_or_default();
            let silent = problem(
                "burn.silent",
                format!("it went silent under load ({now})"),
                "look at its console and the BMC's log for what stopped it; then `rackline machine retry`",
            );
            let wait = wait(&turn.machine.burn);
            ladder::climb(turn, means, wait, silent);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn test_done(turn: &mut Turn, tested: &Tested, findings: &[Finding]) -> Result<(), Refused> {
    let Tested { test, seconds, measured, notes, findings: _ } = tested;
    let Some(burn) = turn.machine.burn.as_mut() else { return Err(Refused::Stale) };
    if !burn.profile.tests().contains(test) {
        return Err(Refused::state(format!("{test:?} is no test of the burn-in {}", burn.profile.name)));
    }
    if burn.done.iter().any(|done| &done.test == test) {
        // Told again after a lost answer.
        return Err(Refused::Nothing);
    }
    burn.done.push(TestDone { test: test.clone(), seconds: *seconds, notes: notes.clone() });
    turn.machine.measured_again(measured);
    turn.machine.found(findings);
    // It moves on.
    turn.machine.boots = 0;
    expect_next(turn);
    Ok(())
}

fn end(turn: &mut Turn, stopped: bool) {
    let now = turn.now;
    if let Some(burn) = &mut turn.machine.burn {
        burn.ended = Some(now);
        burn.stopped = stopped;
        if let Some(restarted) = burn.restarted() {
            turn.machine.found(&[restarted]);
        }
    }
    commissioning::done(turn);
}

fn expect_next(turn: &mut Turn) {
    let wait = wait(&turn.machine.burn);
    turn.expect_within(wait);
}

/// The time of the next test, and time to be late.
fn wait(burn: &Option<BurnIn>) -> Millis {
    let next = burn.as_ref().and_then(|burn| Some(burn.profile.seconds(&burn.next()?)));
    Millis::from(next.unwrap_or(0)) * SECOND + BURN_SLACK
}
