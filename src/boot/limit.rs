//! How many requests of strangers are answered: a token bucket for each interface and each relay. A flood with made-up MAC
//! addresses spends its own tokens and nobody else's; machines that are known do not need any.

use std::collections::HashMap;
use std::net::Ipv4Addr;

/// Interfaces and relays that are told apart. Relays are of configured networks only, so there are not more in earnest.
const SOURCES: usize = 4096;
/// Seconds of the rate that may come at once: a rack that is powered on asks in one moment.
const BURST: f64 = 4.0;

pub struct Limits {
    per_second: f64,
    buckets: HashMap<Ipv4Addr, Bucket>,
}

struct Bucket {
    tokens: f64,
    /// Milliseconds since 1970.
    at: i64,
}

impl Limits {
    pub fn new(per_second: u32) -> Self {
        Self { per_second: per_second.into(), buckets: HashMap::new() }
    }

    pub fn reconfigure(&mut self, per_second: u32) {
        self.per_second = per_second.into();
    }

    /// Takes a token of this interface or relay. A clock that jumps back gives none and takes none.
    pub fn allow(&mut self, now: i64, source: Ipv4Addr) -> bool {
        let most = self.per_second * BURST;
        if self.buckets.len() >= SOURCES && !self.buckets.contains_key(&source) {
            let full = |b: &Bucket| b.tokens + (now - b.at).max(0) as f64 / 1000.0 * self.per_second >= most;
            self.buckets.retain(|_, b| !full(b));
            if self.buckets.len() >= SOURCES {
                return false;
            }
        }
        let bucket = self.buckets.entry(source).or_insert(Bucket { tokens: most, at: now });
        bucket.tokens = (bucket.tokens + (now - bucket.at).max(0) as f64 / 1000.0 * self.per_second).min(most);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
    const B: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);

    #[test]
    fn each_source_spends_its_own() {
        let mut limits = Limits::new(10);
        let allowed = (0..100).filter(|_| limits.allow(0, A)).count();
        assert_eq!(allowed, 40, "four seconds of the rate at once");
        assert!(limits.allow(0, B));
        assert!(!limits.allow(50, A));
        assert!(limits.allow(150, A), "a tenth of a second makes one");
        assert!(!limits.allow(100, A), "the clock went back");
        assert_eq!(
            (0..1000).filter(|i| limits.allow(1_000 + i, A)).count(),
            19,
            "half a token, 0.9 s, then 1 s of the rate"
        );
    }

    #[test]
    fn the_table_of_sources_is_bounded() {
        let mut limits = Limits::new(10);
        for i in 0..2 * SOURCES as u32 {
            limits.allow(0, Ipv4Addr::from(i));
        }
        assert_eq!(limits.buckets.len(), SOURCES);
        assert!(limits.allow(60_000, B), "those that are full again make room");
    }
}
