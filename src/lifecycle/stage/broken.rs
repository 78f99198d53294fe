//! Quarantine: keeps the reason and the evidence until a person says that the cause is mended.

use super::super::Turn;
use super::super::event::{Event, Refused};
use super::super::machine::State;
use super::{AGENT_BOOT, POST, releasing, unwelcome};

pub fn on(turn: &mut Turn, event: &Event) -> Result<(), Refused> {
    match event {
        Event::RetryRequested => {
            // A release that broke goes on being a release: its disks are not yet blank.
            let erase = matches!(&turn.machine.state, State::Broken { stage, .. } if stage == State::Releasing.name());
            turn.enter(if erase { State::Releasing } else { State::Expected });
            turn.network_boot();
            turn.expect_within(POST + AGENT_BOOT);
            Ok(())
        }
        Event::Ordered(order) => {
            turn.machine.order = Some(order.clone());
            Ok(())
        }
        Event::ReleaseRequested => {
            releasing::start(turn);
            Ok(())
        }
        other => unwelcome(turn, other),
    }
}
