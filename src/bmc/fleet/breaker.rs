//! When a BMC that does not answer is tried again: a circuit breaker for each of its doors, without a clock of its own.
//!
//! ```text
//!  closed ── SILENCES_MAX silences in a row ──► open, for PAUSE ── the pause is over ──► half open: one command tries
//!    ▲                                           ▲                                         │ silence: twice the pause
//!    └──────────────── any answer ───────────────┴─────────────────────────────────────────┘
//! ```
//!
//! That only one tries is the work of the BMC's line, which one command leaves at a time: the others are refused without
//! waiting, before they line up and again when it is their turn.

use std::time::Duration;

use tokio::time::Instant;

/// Commands in a row without an answer, after which a BMC is left alone for a while.
const SILENCES_MAX: u32 = 3;
const PAUSE: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct Breaker {
    silences: u32,
    /// The last silence, in words, and when there may be the next try.
    open: Option<(String, Instant)>,
}

/// Why a BMC is not asked now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// Commands in a row that it did not answer.
    pub silences: u32,
    pub why: String,
    /// Until the next try; zero: the next command, or the one under way, is that try.
    pub next_try: Duration,
}

impl Breaker {
    /// `None` while it is closed.
    pub fn open(&self, now: Instant) -> Option<Open> {
        let (why, until) = self.open.as_ref()?;
        let next_try = until.saturating_duration_since(now);
        Some(Open { silences: self.silences, why: why.clone(), next_try })
    }

    pub fn answered(&mut self) {
        *self = Self::default();
    }

    pub fn silent(&mut self, why: &str, now: Instant) {
        self.silences = self.silences.saturating_add(1);
        if let Some(more) = self.silences.checked_sub(SILENCES_MAX) {
            let pause = PAUSE.saturating_mul(1 << more.min(8)).min(PAUSE_MAX);
            self.open = Some((why.to_owned(), now + pause));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bmc_is_left_alone_after_three_silences_and_longer_each_time() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        for _ in 0..2 {
            breaker.silent("no answer", now);
            assert_eq!(breaker.open(now), None);
        }
        let mut pauses = Vec::new();
        for _ in 0..6 {
            breaker.silent("no answer", now);
            let open = breaker.open(now).unwrap();
            assert_eq!(open.why, "no answer");
            pauses.push(open.next_try.as_secs());
            now += open.next_try;
            assert_eq!(breaker.open(now).unwrap().next_try, Duration::ZERO, "half open, until something is heard");
        }
        assert_eq!(pauses, [5, 10, 20, 40, 60, 60]);
        breaker.answered();
        assert_eq!(breaker.open(now), None);
        breaker.silent("no answer", now);
        assert_eq!(breaker.open(now), None, "the count begins anew");
    }
}
