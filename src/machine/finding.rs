//! Something about a machine that is not as it should be: which part, what was expected and found, why, and who does what
//! about it. Made by pure rules from what was looked at; never stored without the facts it came from.

use serde::{Deserialize, Serialize};

/// The id of a cable that ends elsewhere than the list has it, as LLDP shows it.
pub const WRONG_PORT: &str = "nic.port";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Stable id of the rule: `memory.missing`, `disk.model`, `nic.port`, `cohort.cpu`.
    pub id: String,
    /// As a person in front of the machine would call it: `DIMM B4`, `disk sdd, serial S4YNNE0N`.
    pub part: String,
    pub severity: Severity,
    /// One sentence with the probable cause: `DIMM B4 missing: 15 of 16 × 32 GiB`.
    pub cause: String,
    pub expected: String,
    pub found: String,
    pub who: Who,
    /// What that person does next, as a sentence.
    pub next: String,
}

/// In ascending order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; nobody has to do anything.
    Note,
    /// To be looked at; the machine may be used.
    Warning,
    /// The machine is not handed on like this.
    #[default]
    Fault,
}

/// Who has to act.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// In front of the machine: a part, a cable, a label.
    Racker,
    /// The ports and VLANs of the site's switches.
    Network,
    /// Whoever runs the appliance: images, settings, lists.
    #[default]
    Operator,
    /// A part is to be exchanged under warranty, or another one was delivered than ordered.
    Supplier,
}

impl std::fmt::Display for Severity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Fault => "fault",
        })
    }
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Who::Racker => "racker",
            Who::Network => "network",
            Who::Operator => "operator",
            Who::Supplier => "supplier",
        })
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.cause.starts_with(&self.part) {
            true => f.write_str(&self.cause),
            false => write!(f, "{}: {}", self.part, self.cause),
        }
    }
}
