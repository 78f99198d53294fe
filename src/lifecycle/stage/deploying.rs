//! The agent writes the image and the seed.

use super::super::Turn;
use super::super::event::{Event, Refused};
use super::super::ladder;
use super::super::machine::State;
use super::{AGENT_BOOT, DEPLOY, VERIFY, problem, unwelcome};
use crate::link::{Mode, Outcome};

pub fn on(turn: &mut Turn, event: &Event) -> Result<(), Refused> {
    match event {
        Event::Reported { outcome: Outcome::TargetChosen { disk, .. }, .. } => {
            turn.machine.target = Some(disk.clone());
            turn.expect_within(DEPLOY);
        }
        Event::Reported { outcome: Outcome::Deployed(deployed), .. } => {
            let ordered = turn.machine.order.as_ref().map(|o| o.manifest);
            if ordered != Some(deployed.manifest) {
                return Err(Refused::state("the agent wrote another image than the one ordered"));
            }
            turn.machine.target = Some(deployed.disk.clone());
            turn.machine.deployed = Some(deployed.as_ref().clone());
            turn.enter(State::Verifying);
            turn.expect_within(VERIFY);
        }
        Event::Hello { mode: Mode::Ram, .. } => turn.expect_within(DEPLOY),
        Event::Sighted(sighting) if sighting.boots => turn.expect_within(AGENT_BOOT),
        Event::Due { means } => {
            let end = problem(
                "deploy.silent",
                "the agent does not finish writing the image",
                "look at its console for disk errors; then `rackline machine retry`",
            );
            ladder::climb(turn, means, AGENT_BOOT, end);
        }
        other => return unwelcome(turn, other),
    }
    Ok(())
}
