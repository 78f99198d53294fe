//! When to send again, and when to give up. No clock: durations come in and go out.
//!
//! Without a word from the client the time follows what was measured, as RFC 6298 does for TCP: a lost packet then costs
//! a fifth of a second instead of the whole second that TFTP servers wait by habit. A client that names a time (RFC 2349)
//! gets that time.

use std::time::Duration;

/// Before anything was measured (RFC 6298 section 2.1).
const FIRST: Duration = Duration::from_secs(1);
/// Firmware pauses while it writes what it got; below this, pauses would be taken for losses.
const SHORTEST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(8);
/// Silence after which the client is gone. Switching a machine off is the usual way to end a transfer.
const GIVE_UP: Duration = Duration::from_secs(30);
/// As many repetitions at least, however long the time is that the client named.
const REPETITIONS: u32 = 3;

#[derive(Debug)]
pub struct Retry {
    named: Option<Duration>,
    /// SRTT and RTTVAR of RFC 6298.
    measured: Option<(Duration, Duration)>,
    /// Repetitions since the client was last heard.
    repeated: u32,
    /// How long those have taken.
    silent: Duration,
    /// What was sent last was sent once and nothing else is under way, so the answer is to that (Karn's algorithm).
    clean: bool,
}

impl Retry {
    /// `seconds`: what the client asked for.
    pub fn new(seconds: Option<u8>) -> Self {
        let named = seconds.map(|s| Duration::from_secs(s.into()));
        Self { named, measured: None, repeated: 0, silent: Duration::ZERO, clean: true }
    }

    /// From the last sending until the next repetition.
    pub fn delay(&self) -> Duration {
        if let Some(named) = self.named {
            return named;
        }
        let base = self.measured.map_or(FIRST, |(smoothed, deviation)| (smoothed + deviation * 4).max(SHORTEST));
        (base * (1 << self.repeated.min(10))).min(LONGEST)
    }

    /// From the last sending until what the client did not acknowledge counts as lost: surely not still under way.
    pub fn doubt(&self) -> Duration {
        let round_trips = self.measured.map_or(SHORTEST, |(smoothed, _)| smoothed * 2);
        round_trips.max(Duration::from_millis(1)).min(self.delay())
    }

    /// The client is there, and goes on.
    pub fn heard(&mut self) {
        (self.repeated, self.silent) = (0, Duration::ZERO);
    }

    /// The client has everything that was sent, the last of it this long ago.
    pub fn answered(&mut self, after: Duration) {
        if self.clean {
            self.measured = Some(match self.measured {
                None => (after, after / 2),
                Some((smoothed, deviation)) => {
                    ((smoothed * 7 + after) / 8, (deviation * 3 + smoothed.abs_diff(after)) / 4)
                }
            });
        }
        self.clean = true;
        self.heard();
    }

    /// Sent again, or sent more, before everything was answered.
    pub fn mixed(&mut self) {
        self.clean = false;
    }

    /// [`Retry::delay`] has passed without an answer. Whether to send again.
    pub fn expired(&mut self) -> bool {
        self.silent += self.delay();
        self.repeated += 1;
        self.clean = false;
        self.silent < GIVE_UP || self.repeated <= REPETITIONS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The waits until a client that never answers is given up.
    fn waits(mut retry: Retry) -> Vec<u128> {
        let mut waits = vec![retry.delay().as_millis()];
        while retry.expired() {
            waits.push(retry.delay().as_millis());
        }
        waits
    }

    #[test]
    fn waits_double_until_the_client_is_given_up() {
        assert_eq!(waits(Retry::new(None)), [1000, 2000, 4000, 8000, 8000, 8000]);
        let mut measured = Retry::new(None);
        measured.answered(Duration::from_micros(300));
        assert_eq!(waits(measured), [200, 400, 800, 1600, 3200, 6400, 8000, 8000, 8000]);
    }

    #[test]
    fn a_time_that_the_client_names_is_kept() {
        assert_eq!(waits(Retry::new(Some(3))), [3000; 10]);
        assert_eq!(waits(Retry::new(Some(255))), [255_000; 4]);
    }

    #[test]
    fn a_slow_link_is_measured_and_an_answer_to_a_repetition_is_not() {
        let mut retry = Retry::new(None);
        (0..50).for_each(|_| retry.answered(Duration::from_millis(400)));
        assert_eq!(retry.delay().as_millis(), 400);
        assert!(retry.expired());
        assert_eq!(retry.delay().as_millis(), 800);
        retry.answered(Duration::from_millis(1));
        assert_eq!(retry.delay().as_millis(), 400, "it may be an answer to the first sending");
        retry.answered(Duration::from_millis(400));
        retry.mixed();
        retry.answered(Duration::from_millis(1));
        assert_eq!((retry.delay().as_millis(), retry.doubt().as_millis()), (400, 400));
    }
}
