//! In the pool, with the agent waiting in RAM; an order takes it out.

use super::super::Turn;
use super::super::event::{Event, Refused};
use super::super::machine::State;
use super::{PICK_UP, burning, unwelcome};

pub fn on(turn: &mut Turn, event: &Event) -> Result<(), Refused> {
    match event {
        Event::Ordered(order) => {
            turn.machine.order = Some(order.clone());
            start_if_ordered(turn);
            Ok(())
        }
        Event::BurnInWanted { asked: false, .. } => Err(Refused::Nothing),
        Event::BurnInWanted { profile, overwrite, .. } => {
            burning::again(turn, profile, *overwrite);
            Ok(())
        }
        other => unwelcome(turn, other),
    }
}

/// From the pool straight into the deployment; the agent that waits in RAM takes it up at once.
pub fn start_if_ordered(turn: &mut Turn) {
    if turn.machine.order.is_none() {
        return;
    }
    turn.machine.target = None;
    turn.machine.deployed = None;
    turn.machine.checks.clear();
    turn.enter(State::Allocated);
    turn.enter(State::Deploying);
    turn.expect_within(PICK_UP);
}
