//! The agent takes the inventory and measures; firmware and settings are brought to the baseline of the model; and where that
//! changed anything, the agent of the new boot takes the inventory again. Then it is burned in, where that is wanted
//! ([`burning`]).

use std::sync::Arc;

use super::super::Turn;
use super::super::baseline::{Baseline, BaselineEnd, BaselineNews};
use super::super::event::{Action, BmcAccount, Event, OWN_BMC_USER, Refused};
use super::super::ladder;
use super::super::machine::State;
use super::{BASELINE, COMMISSION, burning, change_bmc_password, problem, ready, unwelcome};
use crate::link::{Outcome, Problem};
use crate::machine::{Finding, Severity};

/// Registered port of RMCP (IANA `asf-rmcp`).
const RMCP: u16 = 623;

pub fn on(turn: &mut Turn, event: &Event) -> Result<(), Refused> {
    if burning::on(turn, event)? {
        return Ok(());
    }
    match event {
        Event::Ordered(order) => turn.machine.order = Some(order.clone()),
        Event::Reported { outcome: Outcome::Commissioned { inventory, measured, bmc_user_made }, findings, .. } => {
            let in_band = inventory.bmc.as_ref().and_then(|bmc| bmc.address);
            if let (None, true, Some(address)) = (&turn.machine.bmc, *bmc_user_made, in_band) {
                turn.machine.bmc =
                    Some(BmcAccount { address: (address, RMCP).into(), redfish: None, user: OWN_BMC_USER.into() });
            }
            turn.machine.inventory = Some(Arc::new(inventory.as_ref().clone()));
            turn.machine.measured.clone_from(measured);
            turn.machine.findings.clone_from(findings);
            change_bmc_password(turn);
            if turn.machine.bmc.is_some() && turn.machine.baseline.is_none() {
                turn.machine.baseline = Some(Baseline::begin());
                // What fails is told, and tried again when it is commissioned again.
                turn.act(Action::BmcSetup);
                turn.act(Action::Baseline);
                turn.expect_within(BASELINE);
            } else {
                done(turn);
            }
        }
        Event::BurnInWanted { profile, overwrite, asked } => return burning::wanted(turn, profile, *overwrite, *asked),
        Event::Baseline(news) => return baseline(turn, news),
        Event::Due { .. } if turn.machine.baseline_running().is_some() => turn.broken(problem(
            "firmware.silent",
            "its firmware and settings do not get to their baseline",
            "look at its console, and at the BMC's own log and tasks; then `rackline machine retry`",
        )),
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

/// A machine with a fault is not put under load. What was found under load is found at the end of it.
pub fn done(turn: &mut Turn) {
    if let Some(problem) = faults(&turn.machine.findings) {
        turn.broken(problem);
        return;
    }
    if burning::begin(turn) {
        return;
    }
    turn.enter(State::Ready);
    ready::start_if_ordered(turn);
}

/// The first fault in its sentence and with its next step, and how many more there are.
pub(super) fn faults(findings: &[Finding]) -> Option<Problem> {
    let faults: Vec<&Finding> = findings.iter().filter(|f| f.severity == Severity::Fault).collect();
    let first = faults.first()?;
    let (title, more) = match faults.len() - 1 {
        0 => (first.to_string(), String::new()),
        1 => (format!("{first}; and one more fault"), "; `rackline machine show` has the other".to_owned()),
        more => (format!("{first}; and {more} more faults"), "; `rackline machine show` has them all".to_owned()),
    };
    let hint = format!("{}{more}; then `rackline machine retry`", first.next);
    Some(Problem { code: first.id.clone(), title, hint: Some(hint), causes: Vec::new() })
}

fn baseline(turn: &mut Turn, news: &BaselineNews) -> Result<(), Refused> {
    let BaselineNews { baseline: name, attempts, sentence, end } = news;
    let Some(baseline) = turn.machine.baseline.as_mut().filter(|b| !b.done) else {
        return Err(Refused::state("its firmware baseline is not being brought about"));
    };
    baseline.name.clone_from(name);
    baseline.attempts.clone_from(attempts);
    baseline.doing.clone_from(sentence);
    // These boots are ours.
    turn.machine.boots = 0;
    let Some(BaselineEnd { findings, hold }) = end else { return Ok(()) };
    baseline.done = true;
    baseline.findings.clone_from(findings);
    match (hold, attempts.is_empty()) {
        (true, _) => {
            let first = findings.first().map_or_else(|| sentence.clone(), ToString::to_string);
            let hint = format!(
                "see `rackline firmware plan {}`; mend it or the baseline, then `rackline machine retry`",
                turn.machine.name
            );
            turn.broken(problem("firmware.baseline", format!("does not get to its firmware baseline: {first}"), hint));
        }
        (false, true) => done(turn),
        // What the agent found before is not so any more.
        (false, false) => turn.expect_within(COMMISSION),
    }
    Ok(())
}
