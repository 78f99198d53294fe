//! The agent takes the inventory and measures.

use std::sync::Arc;

use super::super::Turn;
use super::super::event::{BmcAccount, Event, OWN_BMC_USER, Refused};
use super::super::ladder;
use super::super::machine::State;
use super::{COMMISSION, change_bmc_password, problem, ready, unwelcome};
use crate::link::Outcome;

/// Registered port of RMCP (IANA `asf-rmcp`).
const RMCP: u16 = 623;

pub fn on(turn: &mut Turn, event: &Event) -> Result<(), Refused> {
    match event {
        Event::Ordered(order) => turn.machine.order = Some(order.clone()),
        Event::Reported { outcome: Outcome::Commissioned { inventory, measured, bmc_user_made }, .. } => {
            let in_band = inventory.bmc.as_ref().and_then(|bmc| bmc.address);
            if let (None, true, Some(address)) = (&turn.machine.bmc, *bmc_user_made, in_band) {
                turn.machine.bmc =
                    Some(BmcAccount { address: (address, RMCP).into(), redfish: None, user: OWN_BMC_USER.into() });
            }
            turn.machine.inventory = Some(Arc::new(inventory.as_ref().clone()));
            turn.machine.measured.clone_from(measured);
            turn.enter(State::Ready);
            change_bmc_password(turn);
            ready::start_if_ordered(turn);
        }
        Event::Due { means } => {
            let end = problem(
                "commission.silent",
                "the agent does not finish the inventory",
                "look at its console for a device that hangs; then `rackline machine retry`",
            );
            ladder::climb(turn, means, COMMISSION, end);
        }
        other => return unwelcome(turn, other),
    }
    Ok(())
}
