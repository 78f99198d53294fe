//! On the list, never seen: waits for power and for the first DHCP request.

use super::super::Turn;
use super::super::event::{Event, Refused};
use super::super::ladder;
use super::super::machine::State;
use super::{POST, problem, seen, unwelcome};

pub fn on(turn: &mut Turn, event: &Event) -> Result<(), Refused> {
    match event {
        Event::Ordered(order) => turn.machine.order = Some(order.clone()),
        Event::Sighted(_) => {
            turn.enter(State::Seen);
            turn.expect_within(super::AGENT_BOOT);
        }
        Event::Hello { .. } => {
            turn.enter(State::Seen);
            turn.expect_within(super::AGENT_BOOT);
            return seen::on(turn, event);
        }
        Event::Due { means } => {
            let end = problem(
                "boot.no-dhcp",
                "no DHCP request since power-on",
                "check cable, VLAN and spanning tree of its boot port, and the boot order; then `rackline machine retry`",
            );
            ladder::climb(turn, means, POST, end);
        }
        other => return unwelcome(turn, other),
    }
    Ok(())
}
