//! A limit on bytes a second, shared by all who send.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How far back unused time counts.
const BURST: Duration = Duration::from_millis(20);
/// Less than this would let a successor believe that nothing comes at all.
const LEAST: u64 = 256 << 10;

/// A token bucket, kept as the moment at which the next byte is free to go (generic cell rate algorithm).
#[derive(Debug)]
pub struct Throttle {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rate: Option<u64>,
    free_at: Instant,
}

impl Throttle {
    pub fn new(rate: Option<u64>) -> Self {
        let throttle = Self { state: Mutex::new(State { rate: None, free_at: Instant::now() }) };
        throttle.set(rate);
        throttle
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on; `None` is no limit.
    pub fn set(&self, rate: Option<u64>) {
        self.state().rate = rate.map(|r| r.max(LEAST));
    }

    /// Takes a place for so many bytes; they may go after this long.
    pub fn reserve(&self, bytes: usize) -> Duration {
        self.reserve_at(Instant::now(), bytes)
    }

    fn reserve_at(&self, now: Instant, bytes: usize) -> Duration {
        let mut state = self.state();
        let Some(rate) = state.rate else { return Duration::ZERO };
        let at = state.free_at.max(now.checked_sub(BURST).unwrap_or(now));
        state.free_at = at + Duration::from_secs_f64(bytes as f64 / rate as f64);
        at.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_at_the_rate_and_unused_time_is_soon_forgotten() {
        let start = Instant::now() + Duration::from_secs(60);
        let throttle = Throttle::new(Some(1 << 20));
        let mut now = start;
        for _ in 0..64 {
            now += throttle.reserve_at(now, 64 << 10);
        }
        // 63 waits, less the burst.
        let waited = now - start;
        assert!((Duration::from_millis(3900)..Duration::from_millis(3940)).contains(&waited), "{waited:?}");
        assert_eq!(throttle.reserve_at(now + Duration::from_secs(9), 64 << 10), Duration::ZERO);
        assert!(throttle.reserve_at(now + Duration::from_secs(9), 1) > Duration::from_millis(40));
        throttle.set(None);
        assert_eq!(throttle.reserve_at(now, 1 << 30), Duration::ZERO);
        throttle.set(Some(0));
        throttle.reserve_at(now + Duration::from_secs(60), LEAST as usize);
        assert!(throttle.reserve_at(now + Duration::from_secs(60), 1) <= Duration::from_secs(1));
    }
}
