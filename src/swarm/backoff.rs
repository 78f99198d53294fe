//! How long to wait before the next try.

use std::time::Duration;

/// 1, 2, 4 … 30 seconds, each between half and the whole of it, so that a rack that lost the appliance together does
/// not come back together.
#[derive(Debug, Default)]
pub struct BackOff {
    tries: u32,
}

impl BackOff {
    const LONGEST: Duration = Duration::from_secs(30);

    pub fn next_wait(&mut self) -> Duration {
        let whole = Duration::from_secs(1 << self.tries.min(5)).min(Self::LONGEST);
        self.tries = self.tries.saturating_add(1);
        // Version 4 UUIDs are random in their first 32 bits.
        let part = f64::from(uuid::Uuid::new_v4().as_fields().0) / f64::from(u32::MAX);
        whole.mul_f64(0.5 + part / 2.0)
    }

    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_cap_and_differ() {
        let mut wait = BackOff::default();
        let waits: Vec<f64> = (0..40).map(|_| wait.next_wait().as_secs_f64()).collect();
        assert!((0.5..=1.0).contains(&waits[0]));
        assert!(waits[6..].iter().all(|w| (15.0..=30.0).contains(w)));
        assert!(waits[6..].windows(2).any(|w| w[0] != w[1]));
        wait.reset();
        assert!(wait.next_wait() <= Duration::from_secs(1));
    }
}
