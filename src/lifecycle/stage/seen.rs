//! It asked for an address; which machine it is, the agent will say.

use super::super::Turn;
use super::super::event::{Event, Refused};
use super::super::ladder;
use super::super::machine::State;
use super::{AGENT_BOOT, COMMISSION, problem, unwelcome};
use crate::link::Mode;

pub fn on(turn: &mut Turn, event: &Event) -> Result<(), Refused> {
    match event {
        Event::Ordered(order) => turn.machine.order = Some(order.clone()),
        Event::Hello { mode: Mode::Ram, .. } => {
            turn.enter(State::Enlisted);
            turn.enter(State::Commissioning);
            turn.machine.baseline = None;
            turn.machine.burn = None;
            turn.expect_within(COMMISSION);
        }
        Event::Sighted(sighting) if sighting.boots => turn.expect_within(AGENT_BOOT),
        Event::Due { means } => {
            let end = problem(
                "boot.no-agent",
                "it has an address, but the agent never reported",
                "look at its console: boot file fetched and no kernel means Secure Boot or a NIC without driver",
            );
            ladder::climb(turn, means, AGENT_BOOT, end);
        }
        other => return unwelcome(turn, other),
    }
    Ok(())
}
