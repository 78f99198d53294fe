//! What to do next: pure, from the plan of this moment, what was tried before, and the time. The machine is the truth: a step that
//! took effect is not in the plan any more. What was tried only says what must not be done again, or not yet.

use super::plan::{Plan, REBOOT, Step, UPDATE};
use crate::lifecycle::{Attempt, Finding, Millis};

const SECOND: Millis = 1_000;
const MINUTE: Millis = 60 * SECOND;

/// From a reboot to the agent's hello: memory training, and firmware that is written while the machine starts.
pub const BACK: Millis = 40 * MINUTE;
/// An update of which nothing was heard since the appliance stopped, where the BMC does not tell whether it writes.
pub const LOST: Millis = 30 * MINUTE;
/// After which a BMC that says that it writes nothing is believed.
pub const GRACE: Millis = MINUTE;
/// How long a BMC may take to show what it has.
pub const SETTLE: Millis = 3 * MINUTE;
/// From a failed try to the next.
pub const AGAIN: Millis = MINUTE;
/// Each reboot is for a reason, and a machine that never gets there must come to an end.
const REBOOTS: u32 = 4;
/// Uploads of one image.
const UPLOADS: u32 = 2;

/// What is known besides the plan.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts {
    pub now: Millis,
    /// The agent's last hello.
    pub agent_at: Option<Millis>,
    /// The last boot that was seen to begin.
    pub sighted_at: Option<Millis>,
    /// Whether the BMC writes firmware, where it tells.
    pub updating: Option<bool>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    Act(Step),
    /// Look again soon.
    Wait(String),
    /// `hold`: the machine is not to be used.
    Done {
        findings: Vec<Finding>,
        hold: bool,
    },
}

/// What is to be done about one step.
enum Turn {
    Act,
    Wait(String),
    /// Done, and takes effect with the next boot.
    Staged,
    GivenUp(String),
}

pub fn next(plan: &Plan, attempts: &[Attempt], facts: &Facts) -> Next {
    if let Some(waiting) = rebooting(attempts, facts) {
        return waiting;
    }
    if facts.updating == Some(true) {
        return Next::Wait("the BMC writes firmware".into());
    }
    let mut findings = plan.findings.clone();
    let mut staged = attempts.iter().any(|a| is_update(a) && awaits_boot(a, attempts));
    for step in plan.steps.iter().filter(|step| !matches!(step, Step::Reboot)) {
        match about(step, attempts, facts) {
            Turn::Act => return Next::Act(step.clone()),
            Turn::Wait(why) => return Next::Wait(why),
            Turn::Staged => staged = true,
            Turn::GivenUp(cause) => findings.extend(step.findings(&cause)),
        }
    }
    if staged && find(attempts, REBOOT).is_none_or(|a| a.tries < REBOOTS) {
        return Next::Act(Step::Reboot);
    }
    let hold = plan.required && !findings.is_empty();
    Next::Done { findings, hold }
}

/// Notes that a step is begun; to be on disk before it is.
pub fn begin(attempts: &mut Vec<Attempt>, step: &Step, now: Millis) {
    let what = step.key();
    let tries = 1 + find(attempts, &what).map_or(0, |a| a.tries);
    attempts.retain(|a| a.what != what);
    attempts.push(Attempt { what, tries, begun: now, ended: None, failed: None, needs_boot: step.needs_boot() });
}

/// Notes how it ended.
pub fn end(attempts: &mut [Attempt], step: &Step, now: Millis, failed: Option<String>) {
    let what = step.key();
    for attempt in attempts.iter_mut().filter(|a| a.what == what) {
        attempt.ended = Some(now);
        attempt.failed.clone_from(&failed);
    }
}

fn find<'a>(attempts: &'a [Attempt], what: &str) -> Option<&'a Attempt> {
    attempts.iter().find(|a| a.what == what)
}

fn is_update(attempt: &Attempt) -> bool {
    attempt.what.starts_with(UPDATE)
}

/// Ended well, and no boot since.
fn awaits_boot(attempt: &Attempt, attempts: &[Attempt]) -> bool {
    let booted = find(attempts, REBOOT).map(|a| a.begun);
    attempt.needs_boot
        && attempt.failed.is_none()
        && attempt.ended.is_some_and(|ended| booted.is_none_or(|booted| booted < ended))
}

/// While the machine restarts nothing that it shows counts.
fn rebooting(attempts: &[Attempt], facts: &Facts) -> Option<Next> {
    let reboot = find(attempts, REBOOT)?;
    let since = |at: Option<Millis>| at.is_some_and(|at| at > reboot.begun);
    if since(facts.agent_at) {
        return None;
    }
    let waited = facts.now - reboot.begun;
    if reboot.failed.is_some() || (reboot.ended.is_none() && !since(facts.sighted_at) && waited > GRACE) {
        // The BMC refused, or the appliance stopped in between and nothing was seen to begin.
        if reboot.tries >= REBOOTS {
            let cause = reboot.failed.clone().unwrap_or_else(|| "the appliance was stopped each time".into());
            return Some(Next::Done { findings: vec![lost("could not be restarted", &cause)], hold: true });
        }
        let wait = reboot.ended.unwrap_or(reboot.begun) + AGAIN;
        return Some(match facts.now >= wait {
            true => Next::Act(Step::Reboot),
            false => Next::Wait("the restart is tried again".into()),
        });
    }
    if waited <= BACK {
        return Some(Next::Wait("the machine restarts".into()));
    }
    let finding = lost("not back", "it did not come back after the restart for its firmware: look at its console");
    Some(Next::Done { findings: vec![finding], hold: true })
}

fn lost(found: &str, cause: &str) -> Finding {
    Finding {
        what: "the machine".into(),
        expected: "back from its restart".into(),
        found: found.into(),
        cause: cause.to_owned(),
    }
}

fn about(step: &Step, attempts: &[Attempt], facts: &Facts) -> Turn {
    let Some(attempt) = find(attempts, &step.key()) else { return Turn::Act };
    let again = attempt.tries < tries(step, attempts);
    let Some(ended) = attempt.ended else { return interrupted(step, attempt, facts) };
    if let Some(cause) = &attempt.failed {
        return match (again, facts.now >= ended + AGAIN) {
            (true, true) => Turn::Act,
            (true, false) => Turn::Wait(format!("{step} is tried again")),
            (false, _) => Turn::GivenUp(cause.clone()),
        };
    }
    if awaits_boot(attempt, attempts) {
        return Turn::Staged;
    }
    let shown_from = if attempt.needs_boot { facts.agent_at.unwrap_or(ended).max(ended) } else { ended };
    if facts.now < shown_from + SETTLE {
        return Turn::Wait(format!("reads back: {step}"));
    }
    match again {
        true => Turn::Act,
        false => Turn::GivenUp("it was written and accepted, and is not so after the reboot".into()),
    }
}

/// A try whose end nobody wrote down: the appliance stopped meanwhile. Settings are the same however often they are written; an
/// update may still be running.
fn interrupted(step: &Step, attempt: &Attempt, facts: &Facts) -> Turn {
    let quiet = match facts.updating {
        Some(false) => GRACE,
        _ => LOST,
    };
    if matches!(step, Step::Update { .. }) && facts.now < attempt.begun + quiet {
        return Turn::Wait(format!("{step} may still be running since before the appliance was restarted"));
    }
    match attempt.tries <= UPLOADS {
        true => Turn::Act,
        false => Turn::GivenUp("it was interrupted again and again".into()),
    }
}

/// A setting that does not stick with its reboot is told at once, unless that reboot also brought new firmware, which may have
/// put its own defaults in place.
fn tries(step: &Step, attempts: &[Attempt]) -> u32 {
    match step {
        Step::Update { .. } => UPLOADS,
        _ => 1 + attempts.iter().filter(|a| is_update(a) && a.needs_boot).map(|a| a.tries).sum::<u32>(),
    }
}

#[cfg(test)]
#[path = "progress_tests.rs"]
mod tests;
