//! How far an order is, told to the appliance at most twice a second, without ever holding up the work.
//!
//! The work adds to a counter; a task that lives as long as the order looks at it. At rest there is no such task.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::appliance::Appliance;
use super::console::say;
use crate::link::Progress;

const EVERY: Duration = Duration::from_millis(500);

/// Shared by all who work on an order.
#[derive(Clone, Default)]
pub struct Meter(Arc<Shared>);

#[derive(Default)]
struct Shared {
    number: u64,
    done: AtomicU64,
    step: Mutex<Step>,
}

#[derive(Default, Clone, PartialEq)]
struct Step {
    name: String,
    total: u64,
    note: Option<String>,
}

impl Meter {
    pub fn new(number: u64) -> Self {
        Self(Arc::new(Shared { number, ..Shared::default() }))
    }

    /// The next step; `total` is 0 where the end is not known.
    pub fn step(&self, name: impl Into<String>, total: u64) {
        let name = name.into();
        say(&name);
        let mut step = self.lock();
        self.0.done.store(0, Ordering::Relaxed);
        *step = Step { name, total, note: None };
    }

    pub fn add(&self, count: u64) {
        self.0.done.fetch_add(count, Ordering::Relaxed);
    }

    /// Something the operator should see beside the step: what is being waited for.
    pub fn note(&self, note: Option<String>) {
        let mut step = self.lock();
        if let Some(new) = note.as_ref().filter(|_| step.note != note) {
            say(new);
        }
        step.note = note;
    }

    fn lock(&self) -> MutexGuard<'_, Step> {
        self.0.step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Progress {
        let step = self.lock().clone();
        Progress {
            number: self.0.number,
            step: step.name,
            done: self.0.done.load(Ordering::Relaxed),
            total: step.total,
            note: step.note,
        }
    }

    /// Tells what has changed, for as long as it is polled.
    pub async fn tell(&self, appliance: &Appliance) {
        let mut told: Option<Progress> = None;
        loop {
            tokio::time::sleep(EVERY).await;
            let now = self.now();
            if !now.step.is_empty() && told.as_ref() != Some(&now) {
                appliance.progress(&now).await;
                told = Some(now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_counts_from_zero() {
        let meter = Meter::new(7);
        meter.step("writing", 100);
        meter.add(40);
        meter.clone().add(2);
        let now = meter.now();
        assert_eq!((now.number, now.step.as_str(), now.done, now.total), (7, "writing", 42, 100));
        meter.note(Some("waiting for the appliance".into()));
        assert!(meter.now().note.is_some());
        meter.step("reading back", 0);
        assert_eq!((meter.now().done, meter.now().note), (0, None));
    }
}
