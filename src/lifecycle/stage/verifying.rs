//! Booted from its own disk: the resident agent runs the delivery checks, and the passport is signed.

use super::super::Turn;
use super::super::event::{Action, Event, Refused};
use super::super::ladder;
use super::super::machine::State;
use super::super::passport::PassingChecks;
use super::{VERIFY, problem, unwelcome};
use crate::link::{Mode, Outcome};

pub fn on(turn: &mut Turn, event: &Event) -> Result<(), Refused> {
    match event {
        Event::Hello { mode: Mode::Resident, .. } => turn.expect_within(VERIFY),
        Event::Reported { outcome: Outcome::Checked { checks, measured }, .. } => {
            let Some(order) = &turn.machine.order else {
                return Err(Refused::state("there is no order to verify"));
            };
            let passing = PassingChecks::of(&order.role, &order.setup.checks, checks);
            turn.machine.checks.clone_from(checks);
            turn.machine.measured.extend(measured.iter().cloned());
            match passing {
                Ok(_) => turn.act(Action::SignPassport),
                Err(cause) => turn.broken(cause),
            }
        }
        Event::PassportSigned { passport } => {
            let order = turn.machine.order.as_ref();
            let checks = order.map(|o| PassingChecks::of(&o.role, &o.setup.checks, &turn.machine.checks));
            match checks {
                Some(Ok(checks)) => turn.enter(State::Delivered { checks, passport: passport.clone() }),
                Some(Err(cause)) => turn.broken(cause),
                None => return Err(Refused::state("there is no order to deliver")),
            }
        }
        Event::Due { means } => {
            let end = problem(
                "verify.silent",
                "the installed system does not report",
                "look at its console: boot order, boot loader, network of the installed system; then `rackline machine retry`",
            );
            ladder::climb(turn, means, VERIFY, end);
        }
        other => return unwelcome(turn, other),
    }
    Ok(())
}
