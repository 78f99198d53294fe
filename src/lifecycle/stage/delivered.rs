//! Handed off. It boots its own disk whatever its firmware asks first; only a release changes that.

use super::super::Turn;
use super::super::event::{Event, Refused};
use super::super::machine::State;
use super::{AGENT_BOOT, POST, unwelcome};

pub fn on(turn: &mut Turn, event: &Event) -> Result<(), Refused> {
    match event {
        Event::ReleaseRequested => {
            turn.enter(State::Releasing);
            turn.machine.order = None;
            turn.network_boot();
            turn.expect_within(POST + AGENT_BOOT);
            Ok(())
        }
        other => unwelcome(turn, other),
    }
}
