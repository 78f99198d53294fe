//! Handed off. It boots its own disk whatever its firmware asks first; only a release changes that. On demand its agent runs
//! the checks again that do not disturb a host in use: what they find is told, and changes neither state nor passport.

use super::super::Turn;
use super::super::event::{Event, Refused};
use super::super::recheck::{Recheck, differences};
use super::{VERIFY, problem, releasing, unwelcome};
use crate::link::{Check, Mode, Outcome, Problem};

pub fn on(turn: &mut Turn, event: &Event) -> Result<(), Refused> {
    match event {
        Event::ReleaseRequested => releasing::start(turn),
        Event::CheckRequested if turn.machine.rechecking() => {
            return Err(Refused::state("it is being checked already: `rackline machine show` has the results"));
        }
        Event::CheckRequested if turn.machine.agent_mode() != Some(Mode::Resident) => {
            return Err(Refused::state("no agent has reported from its installed system: look at its console"));
        }
        Event::CheckRequested => {
            turn.machine.recheck = Some(Recheck::asked(turn.now));
            turn.expect_within(VERIFY);
        }
        Event::Reported { outcome: Outcome::Checked { checks, .. }, .. } if turn.machine.rechecking() => {
            end(turn, checks.clone(), None);
        }
        Event::Reported { outcome: Outcome::Failed(problem), .. } if turn.machine.rechecking() => {
            end(turn, Vec::new(), Some(problem.clone()));
        }
        Event::Due { .. } if turn.machine.rechecking() => {
            let silent = problem(
                "check.silent",
                "the installed system did not report within 20 minutes",
                "look at the host: does it run, does `systemctl status rackline-agent` say why?",
            );
            end(turn, Vec::new(), Some(silent));
        }
        other => return unwelcome(turn, other),
    }
    Ok(())
}

fn end(turn: &mut Turn, checks: Vec<Check>, problem: Option<Problem>) {
    let machine = &mut turn.machine;
    let asked = machine.recheck.as_ref().map_or(turn.now, |recheck| recheck.asked);
    let differences = differences(&machine.checks, &checks);
    machine.recheck = Some(Recheck { asked, done: Some(turn.now), checks, differences, problem });
    machine.deadline = None;
}
