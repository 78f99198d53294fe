//! The burn-in of a machine: what it is put through, what is done of it, what came of that.

use serde::{Deserialize, Serialize};

use super::machine::{Machine, Millis, State};
use crate::link::{BurnProfile, Measured};
use crate::machine::{Finding, Severity, Who};

/// Findings of a burn-in have ids that begin with it.
const FINDINGS: &str = "burn.";

/// Since the machine was last commissioned, or burned in by order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BurnIn {
    pub profile: BurnProfile,
    /// Disks that hold data are written to.
    #[serde(default)]
    pub overwrite: bool,
    /// `None`: it comes after the inventory and the firmware.
    #[serde(default)]
    pub began: Option<Millis>,
    #[serde(default)]
    pub ended: Option<Millis>,
    /// An operator cut it short.
    #[serde(default)]
    pub stopped: bool,
    #[serde(default)]
    pub done: Vec<TestDone>,
    /// Times the machine started again in between.
    #[serde(default)]
    pub restarts: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TestDone {
    pub test: String,
    pub seconds: f64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl BurnIn {
    pub fn wanted(profile: BurnProfile, overwrite: bool) -> Self {
        Self { profile, overwrite, began: None, ended: None, stopped: false, done: Vec::new(), restarts: 0 }
    }

    /// Names of the tests that were reported.
    pub fn done(&self) -> Vec<String> {
        self.done.iter().map(|done| done.test.clone()).collect()
    }

    /// The first test that was not reported yet.
    pub fn next(&self) -> Option<String> {
        self.profile.tests().into_iter().find(|test| !self.done.iter().any(|done| &done.test == test))
    }

    /// `burn-in standard: cpu, 3 of 6 tests done`.
    pub fn now(&self) -> String {
        let next = self.next().map_or(String::new(), |test| format!("{test}, "));
        let all = self.profile.tests().len();
        format!("burn-in {}: {next}{} of {all} tests done", self.profile.name, self.done.len())
    }

    /// A machine that starts again under load is not fit, unless somebody pulled its plug: a person has to look.
    pub(super) fn restarted(&self) -> Option<Finding> {
        let times = match self.restarts {
            0 => return None,
            1 => "once".to_owned(),
            n => format!("{n} times"),
        };
        Some(Finding {
            id: "burn.restarted".into(),
            part: "machine".into(),
            severity: Severity::Warning,
            cause: format!("it started again {times} during its burn-in"),
            expected: "no restart".into(),
            found: times,
            who: Who::Operator,
            next: "its console and the BMC's log tell a power cut from a crash; after a crash, burn it in again".into(),
        })
    }
}

impl Machine {
    /// The burn-in that is under way.
    pub fn burning(&self) -> Option<&BurnIn> {
        let under_way = |burn: &&BurnIn| burn.began.is_some() && burn.ended.is_none();
        self.burn.as_ref().filter(|_| self.state == State::Commissioning).filter(under_way)
    }

    /// What an earlier burn-in found is no longer so.
    pub(super) fn forget_burn_in(&mut self) {
        self.findings.retain(|finding| !finding.id.starts_with(FINDINGS));
    }

    /// A value that was measured before is replaced, and what was found of it is no longer so.
    pub(super) fn measured_again(&mut self, measured: &[Measured]) {
        let about = |measure: &str, new: &Measured| {
            new.name.strip_prefix(measure).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let again = |finding: &Finding| {
            finding.id.strip_prefix("cohort.").is_some_and(|measure| measured.iter().any(|new| about(measure, new)))
        };
        self.findings.retain(|finding| !again(finding));
        self.measured.retain(|old| !measured.iter().any(|new| new.name == old.name));
        self.measured.extend(measured.iter().cloned());
    }

    /// The same about the same part is told once, as it was found last.
    pub(super) fn found(&mut self, findings: &[Finding]) {
        self.findings.retain(|old| !findings.iter().any(|new| new.id == old.id && new.part == old.part));
        self.findings.extend(findings.iter().cloned());
    }
}
