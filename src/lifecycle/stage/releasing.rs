//! Back to the pool: the network boot brings the agent, which erases the disks.

use std::sync::Arc;

use super::super::Turn;
use super::super::event::{Event, Refused};
use super::super::ladder;
use super::super::machine::{Erased, State};
use super::{AGENT_BOOT, ERASE, POST, commissioning, problem, ready, unwelcome};
use crate::link::{Mode, Outcome};

/// Whatever it was, it goes back: the disks are erased by the agent of the next network boot.
pub fn start(turn: &mut Turn) {
    turn.enter(State::Releasing);
    turn.machine.order = None;
    turn.machine.recheck = None;
    turn.network_boot();
    turn.expect_within(POST + AGENT_BOOT);
}

pub fn on(turn: &mut Turn, event: &Event) -> Result<(), Refused> {
    match event {
        Event::Ordered(order) => turn.machine.order = Some(order.clone()),
        Event::Hello { mode: Mode::Ram, .. } => turn.expect_within(ERASE),
        Event::Reported { outcome: Outcome::Erased { proof, inventory, .. }, findings, .. } => {
            let machine = &mut turn.machine;
            machine.erased = Some(Erased { at: turn.now, disks: proof.clone() });
            machine.target = None;
            machine.deployed = None;
            machine.checks.clear();
            if let Some(inventory) = inventory {
                machine.inventory = Some(Arc::new(inventory.as_ref().clone()));
                machine.findings.clone_from(findings);
                if let Some(problem) = commissioning::faults(findings) {
                    turn.broken(problem);
                    return Ok(());
                }
            }
            turn.enter(State::Ready);
            turn.machine.times.clear();
            ready::start_if_ordered(turn);
        }
        Event::Due { means } => {
            let end = problem(
                "release.silent",
                "the agent does not finish erasing the disks",
                "look at its console; then `rackline machine retry`: the disks may still hold data",
            );
            ladder::climb(turn, means, POST + AGENT_BOOT, end);
        }
        other => return unwelcome(turn, other),
    }
    Ok(())
}
