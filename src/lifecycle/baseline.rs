//! What the rules know of a machine's firmware baseline: what was tried and when, so that nothing is tried twice at once, and
//! what is left to say. What a baseline is, and what follows from it, `firmware` knows.

use serde::{Deserialize, Serialize};

use super::machine::Millis;

/// How far a machine is with the baseline of its model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// `None` until it is looked up, and where there is none for the model.
    pub name: Option<String>,
    pub attempts: Vec<Attempt>,
    /// What is being done or waited for, or how it ended, as a sentence.
    pub doing: String,
    pub findings: Vec<Finding>,
    pub done: bool,
}

impl Baseline {
    pub fn begin() -> Self {
        let doing = "looks which firmware and settings the machine shall have".into();
        Self { name: None, attempts: Vec::new(), doing, findings: Vec::new(), done: false }
    }
}

/// Something that was done to the machine, written down before it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Which of the steps of the plan: the same for the same thing in every plan.
    pub what: String,
    pub tries: u32,
    /// Of the last try.
    pub begun: Millis,
    /// `None`: not yet, or the appliance ended first.
    pub ended: Option<Millis>,
    pub failed: Option<String>,
    /// It takes effect with the next boot of the host.
    pub needs_boot: bool,
}

/// Something that is not as the baseline wants it, and stays so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// `power-profile (SysProfile)`, `BIOS`.
    pub what: String,
    pub expected: String,
    pub found: String,
    /// What stands in the way, and the next step, as a sentence.
    pub cause: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { what, expected, found, cause } = self;
        write!(f, "{what} is {found}, expected {expected}: {cause}")
    }
}

/// What came of one look at the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaselineNews {
    pub baseline: Option<String>,
    pub attempts: Vec<Attempt>,
    /// For the timeline.
    pub sentence: String,
    pub end: Option<BaselineEnd>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaselineEnd {
    pub findings: Vec<Finding>,
    /// The machine is not to be used as it is.
    pub hold: bool,
}
