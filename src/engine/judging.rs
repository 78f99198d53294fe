//! Judges what an agent found before the rules get to know it: the findings travel with the fact, so that a replay comes to
//! the same end whatever the site expects by then.

use std::sync::{Arc, MutexGuard, PoisonError};

use super::Engine;
use crate::boot::switch::Expected;
use crate::judge::cohort::{CohortView, Cohorts, Floors};
use crate::judge::model::bom::{Model, Models};
use crate::judge::{self, model};
use crate::lifecycle::Machine;
use crate::link::{Measured, Outcome};
use crate::machine::{Finding, Inventory, Severity, SwitchPort};

impl Engine {
    /// What is not as it should be. Values get those of the machine's twins beside them.
    pub(super) fn judge(&self, machine: &Machine, outcome: &mut Outcome) -> Vec<Finding> {
        match outcome {
            Outcome::Commissioned { inventory, measured, .. } => {
                // What was bought first: a machine that is another one explains much of the rest.
                let mut findings = self.beside_purchase(machine, inventory);
                findings.extend(judge::hardware::judge(inventory));
                findings.extend(self.beside_twins(machine, inventory, measured));
                findings
            }
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
            // How long a check took depends on more than the hardware: worth a look, no reason to hold the host.
            Outcome::Checked { measured, .. } => {
                let Some(inventory) = machine.inventory.as_deref() else { return Vec::new() };
                let mut findings = self.beside_twins(machine, inventory, measured);
                findings.iter_mut().for_each(|finding| finding.severity = finding.severity.min(Severity::Warning));
                findings
            }
            Outcome::Tested(tested) => {
                let mut findings = tested.findings.clone();
                if let Some(inventory) = machine.inventory.as_deref() {
                    findings.extend(self.beside_twins(machine, inventory, &mut tested.measured));
                }
                findings
            }
            _ => Vec::new(),
        }
    }

    /// What a machine measured takes the place of what it measured before.
    pub(super) fn twin(&self, before: Option<&Machine>, after: Option<&Machine>) {
        let inventory = |m: &Machine| m.inventory.as_ref().map(Arc::as_ptr);
        let same = |a: &Machine, b: &Machine| inventory(a) == inventory(b) && a.measured == b.measured;
        if !before.zip(after).is_some_and(|(before, after)| same(before, after)) {
            self.cohorts().replace(before.and_then(values), after.and_then(values));
        }
    }

    pub fn cohort_views(&self) -> Vec<CohortView> {
        self.cohorts().views()
    }

    fn cohorts(&self) -> MutexGuard<'_, Cohorts> {
        self.inner.cohorts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn beside_twins(&self, machine: &Machine, inventory: &Inventory, measured: &mut [Measured]) -> Vec<Finding> {
        let models = self.inner.site.models.current();
        let none = Floors::new();
        let floors = model_of(machine, inventory, &models).map_or(&none, |model| &model.floors);
        self.cohorts().judge(inventory, values(machine), measured, floors)
    }

    fn beside_purchase(&self, machine: &Machine, inventory: &Inventory) -> Vec<Finding> {
        let models = self.inner.site.models.current();
        let listed = model::Listed {
            serial: machine.serial.as_ref(),
            model: machine.purchase.as_ref().and_then(|purchase| purchase.model.as_deref()),
            bmc_mac: machine.bmc_mac,
            ports: &machine.ports,
            occupant: &|at| self.occupant(machine, at),
        };
        model::judge(&listed, model_of(machine, inventory, &models), inventory)
    }

    /// Another machine that the port map has there.
    fn occupant(&self, machine: &Machine, at: &SwitchPort) -> Option<String> {
        let expected = self.switches().ports();
        let here = |expected: &&Expected| {
            expected.switch.as_str().eq_ignore_ascii_case(&at.switch) && model::same_port(&expected.port, &at.port)
        };
        expected.iter().find(here).map(|expected| expected.machine.to_string()).filter(|name| *name != machine.name)
    }
}

/// The one that the list names, or else that of its product.
fn model_of<'a>(machine: &Machine, inventory: &Inventory, models: &'a Models) -> Option<&'a Model> {
    match (machine.purchase.as_ref().and_then(|purchase| purchase.model.as_deref()), &inventory.system.product) {
        (Some(name), _) => models.named(name),
        (None, Some(product)) => models.of_product(product),
        (None, None) => None,
    }
}

/// What a machine has in the cohorts.
fn values(machine: &Machine) -> Option<(&Inventory, &[Measured])> {
    Some((machine.inventory.as_deref()?, &machine.measured))
}
