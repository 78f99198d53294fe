//! Judges what an agent found before the rules get to know it: the findings travel with the fact, so that a replay comes to
//! the same end whatever the site expects by then.

use super::Engine;
use crate::judge;
use crate::lifecycle::Machine;
use crate::link::Outcome;
use crate::machine::Finding;

impl Engine {
    pub(super) fn judge(&self, _machine: &Machine, outcome: &Outcome) -> Vec<Finding> {
        match outcome {
            Outcome::Commissioned { inventory, .. } => judge::hardware::judge(inventory),
            _ => Vec::new(),
        }
    }
}
