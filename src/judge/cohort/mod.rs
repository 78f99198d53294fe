//! A machine beside its twins: every measured value is compared with those of machines that are built alike, by median and
//! MAD (median absolute deviation), which a few bad ones among them do not move.
//!
//! A value is an outlier when it is worse than the median by a tenth of it and by [`SIGMAS`] standard deviations, as the MAD
//! estimates them. Both are needed: twins that are alike to a thousandth do not make a fault of two thousandths, and twins
//! that scatter widely are no measure. `tests.rs` plants faults in generated fleets and counts what is found and what is not.

mod cause;
mod key;
mod ranked;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::link::{Measured, Twins};
use crate::machine::{Finding, Inventory, Severity, Who};
use key::Key;
use ranked::Ranked;

/// Fewer twins are no measure.
pub const TWINS_MIN: usize = 8;
/// Four would do for a normal distribution (1 in 30,000 lies further out), but measurements stray further now and then, and a
/// storage server has dozens of them: with four, 1.1 % of the healthy machines in `tests.rs` had a finding, with six 0.3 %.
const SIGMAS: f64 = 6.0;
/// The standard deviation of a normal distribution over its MAD: 1 / Φ⁻¹(3/4).
const SIGMA_OF_MAD: f64 = 1.4826;
/// Worse than the median by less than this is no outlier, ...
const OUTLIER: f64 = 0.10;
/// ... and by this much, the machine is not handed on.
const FAULT: f64 = 0.20;

/// The values of all machines, by what makes machines twins.
#[derive(Debug, Default)]
pub struct Cohorts {
    by_key: HashMap<Key, Cohort>,
}

#[derive(Debug, Default)]
struct Cohort {
    unit: String,
    values: Ranked,
}

/// One cohort, for people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CohortView {
    /// `cpu.blake3`, `disk.read`.
    pub measure: String,
    pub unit: String,
    /// What they have in common.
    pub twins_by: String,
    pub count: usize,
    pub median: f64,
    pub mad: f64,
    pub least: f64,
    pub greatest: f64,
}

/// What a model says that a value must reach, whatever the twins do, by the name of the measure.
pub type Floors = BTreeMap<String, f64>;

impl Cohorts {
    /// Takes the values of a machine in, in the place of those that it had before.
    pub fn replace(&mut self, before: Option<(&Inventory, &[Measured])>, after: Option<(&Inventory, &[Measured])>) {
        if let Some((inventory, measured)) = before {
            for value in measured {
                let Some((key, _)) = key::of(inventory, &value.name) else { continue };
                if let Some(cohort) = self.by_key.get_mut(&key) {
                    cohort.values.remove(value.value);
                }
            }
        }
        if let Some((inventory, measured)) = after {
            for value in measured.iter().filter(|value| value.value.is_finite()) {
                let Some((key, _)) = key::of(inventory, &value.name) else { continue };
                let cohort = self.by_key.entry(key).or_default();
                cohort.unit.clone_from(&value.unit);
                cohort.values.insert(value.value);
            }
        }
    }

    /// Puts beside each value where its twins are, and tells which are outliers. Disks and NICs of one machine are each other's
    /// twins too; the machine's own earlier values are not.
    pub fn judge(
        &mut self,
        inventory: &Inventory,
        before: Option<(&Inventory, &[Measured])>,
        measured: &mut [Measured],
        floors: &Floors,
    ) -> Vec<Finding> {
        self.replace(before, Some((inventory, measured)));
        let mut findings = Vec::new();
        for value in measured.iter_mut() {
            let Some((key, part)) = key::of(inventory, &value.name) else { continue };
            value.twins = self.by_key.get_mut(&key).and_then(|cohort| cohort.without(value.value));
            let floor = floors.get(&key.measure).copied();
            let Some((expected, severity, count)) = worse(value, floor) else { continue };
            findings.push(finding(inventory, &key, part, value, expected, severity, count));
        }
        self.replace(Some((inventory, measured)), before);
        findings
    }

    pub fn views(&self) -> Vec<CohortView> {
        let view = |(key, cohort): (&Key, &Cohort)| {
            let Twins { count, median, mad } = cohort.middle()?;
            let (least, greatest) = (cohort.values.smallest(0)?, cohort.values.smallest(count - 1)?);
            let (measure, twins_by, unit) = (key.measure.clone(), key.alike.clone(), cohort.unit.clone());
            Some(CohortView { measure, unit, twins_by, count, median, mad, least, greatest })
        };
        let mut views: Vec<CohortView> = self.by_key.iter().filter_map(view).collect();
        views.sort_by(|a, b| (&a.measure, &a.twins_by).cmp(&(&b.measure, &b.twins_by)));
        views
    }
}

impl Cohort {
    /// Of all values but this one.
    fn without(&mut self, value: f64) -> Option<Twins> {
        let was = self.values.remove(value);
        let middle = self.middle();
        if was {
            self.values.insert(value);
        }
        middle
    }

    /// `None` without any value.
    fn middle(&self) -> Option<Twins> {
        let count = self.values.len();
        let lower = self.values.smallest(count.checked_sub(1)? / 2)?;
        let median = (lower + self.values.smallest(count / 2)?) / 2.0;
        Some(Twins { count, median, mad: self.deviation(median, count) })
    }

    /// The least distance within which half of the values lie, by halving: as many steps for ten values as for a million.
    fn deviation(&self, median: f64, count: usize) -> f64 {
        let half = count.div_ceil(2);
        let within = |d: f64| self.values.below(median + d, true) - self.values.below(median - d, false);
        let ends = [self.values.smallest(0), self.values.smallest(count - 1)];
        let (mut low, mut high) = (0.0, ends.into_iter().flatten().map(|end| (end - median).abs()).fold(0.0, f64::max));
        if within(0.0) >= half {
            return 0.0;
        }
        for _ in 0..32 {
            let middle = (low + high) / 2.0;
            match within(middle) >= half {
                true => high = middle,
                false => low = middle,
            }
        }
        high
    }
}

/// Seconds, degrees, watts and errors are better when there are fewer; rates are not.
fn fewer_is_better(unit: &str) -> bool {
    matches!(unit, "s" | "ms" | "us" | "°C" | "W" | "errors")
}

/// What was expected of a value that is too bad, how bad that is, and beside how many twins; 0: the model says so.
fn worse(value: &Measured, floor: Option<f64>) -> Option<(f64, Severity, usize)> {
    if let Some(floor) = floor {
        let missed = if fewer_is_better(&value.unit) { value.value > floor } else { value.value < floor };
        if missed {
            return Some((floor, Severity::Fault, 0));
        }
    }
    let twins = value.twins.as_ref().filter(|twins| twins.count >= TWINS_MIN && twins.median > 0.0)?;
    let short = match fewer_is_better(&value.unit) {
        true => value.value - twins.median,
        false => twins.median - value.value,
    };
    let far = short > SIGMAS * SIGMA_OF_MAD * twins.mad;
    match short / twins.median {
        share if far && share >= FAULT => Some((twins.median, Severity::Fault, twins.count)),
        share if far && share >= OUTLIER => Some((twins.median, Severity::Warning, twins.count)),
        _ => None,
    }
}

fn finding(
    inventory: &Inventory,
    key: &Key,
    part: String,
    value: &Measured,
    expected: f64,
    severity: Severity,
    twins: usize,
) -> Finding {
    let share = ((value.value / expected - 1.0) * 100.0).round();
    let way = if share < 0.0 { "below" } else { "above" };
    let beside = match twins {
        0 => "what its model must reach".to_owned(),
        twins => format!("{twins} twins"),
    };
    let cause = cause::of(inventory, &value.name);
    Finding {
        id: format!("cohort.{}", key.measure),
        part,
        severity,
        cause: match &cause {
            Some(cause) => format!("{} {:.0} % {way} {beside}; {}", key.measure, share.abs(), cause.sentence),
            None => format!("{} {:.0} % {way} {beside}", key.measure, share.abs()),
        },
        expected: format!("{expected:.1} {}", value.unit),
        found: format!("{:.1} {}", value.value, value.unit),
        who: cause.as_ref().map_or(Who::Operator, |cause| cause.who),
        next: cause.map_or_else(
            || {
                "run the measurement again (`rackline machine retry`); if it stays, compare its parts with a twin's"
                    .into()
            },
            |cause| cause.next,
        ),
    }
}
