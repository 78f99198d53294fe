//! Handed off. It boots its own disk whatever its firmware asks first; only a release changes that.

use super::super::Turn;
use super::super::event::{Event, Refused};
use super::{releasing, unwelcome};

pub fn on(turn: &mut Turn, event: &Event) -> Result<(), Refused> {
    match event {
        Event::ReleaseRequested => {
            releasing::start(turn);
            Ok(())
        }
        other => unwelcome(turn, other),
    }
}
