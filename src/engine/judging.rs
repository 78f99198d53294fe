//! Judges what an agent found before the rules get to know it: the findings travel with the fact, so that a replay comes to
//! the same end whatever the site expects by then.

use super::Engine;
use crate::judge;
use crate::lifecycle::Machine;
use crate::link::Outcome;
use crate::machine::Finding;

impl Engine {
    pub(super) fn judge(&self, machine: &Machine, outcome: &Outcome) -> Vec<Finding> {
        match outcome {
            Outcome::Commissioned { inventory, .. } => judge::hardware::judge(inventory),
            // Its own inventory is still the one of its passport.
            Outcome::Erased { inventory: Some(inventory), .. } => {
                let mut findings = judge::hardware::judge(inventory);
                if let Some(before) = &machine.inventory {
                    let delivered = machine.times.iter().any(|t| t.state == "delivered");
                    let since = if delivered { "delivery" } else { "its last inventory" };
                    findings.extend(judge::changed::judge(before, inventory, since));
                }
                findings
            }
            _ => Vec::new(),
        }
    }
}
