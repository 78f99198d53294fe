//! How many requests of strangers are answered: a token bucket for each interface, each relay, and each port of a switch that
//! a relay names. A flood with made-up MAC addresses spends the tokens of its port, and nobody else's; machines that are
//! known do not need any.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use super::dhcp::request::Port;

/// Sources that are told apart: the ports of 256 switches.
const SOURCES: usize = 16_384;
/// Requests a second from one port. A server behind it has some cards and a BMC, and each asks every few seconds.
const PORT_PER_SECOND: f64 = 10.0;
/// Seconds of the rate that may come at once: a rack that is powered on asks in one moment.
const BURST: f64 = 4.0;

pub struct Limits {
    per_second: f64,
    buckets: HashMap<Source, Bucket>,
}

/// Where a request came from: our own interface, or a relay, and the port behind it where the relay says so.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    pub way: Ipv4Addr,
    pub port: Option<Port>,
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

    /// Takes a token of the port, if one is named, and then one of the interface or relay.
    pub fn allow(&mut self, now: i64, way: Ipv4Addr, port: Option<&Port>) -> bool {
        let of_port = port.map(|port| Source { way, port: Some(port.clone()) });
        of_port.is_none_or(|source| self.take(now, source, self.per_second.min(PORT_PER_SECOND)))
            && self.take(now, Source { way, port: None }, self.per_second)
    }

    /// A clock that jumps back gives none and takes none.
    fn take(&mut self, now: i64, source: Source, per_second: f64) -> bool {
        let most = per_second * BURST;
        let gained = |b: &Bucket| (now - b.at).max(0) as f64 / 1000.0;
        if self.buckets.len() >= SOURCES && !self.buckets.contains_key(&source) {
            let idle = |b: &Bucket| gained(b) >= BURST;
            self.buckets.retain(|_, b| !idle(b));
            if self.buckets.len() >= SOURCES {
                return false;
            }
        }
        let bucket = self.buckets.entry(source).or_insert(Bucket { tokens: most, at: now });
        bucket.tokens = (bucket.tokens + gained(bucket) * per_second).min(most);
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
        let allowed = (0..100).filter(|_| limits.allow(0, A, None)).count();
        assert_eq!(allowed, 40, "four seconds of the rate at once");
        assert!(limits.allow(0, B, None));
        assert!(!limits.allow(50, A, None));
        assert!(limits.allow(150, A, None), "a tenth of a second makes one");
        assert!(!limits.allow(100, A, None), "the clock went back");
        assert_eq!(
            (0..1000).filter(|i| limits.allow(1_000 + i, A, None)).count(),
            19,
            "half a token, 0.9 s, then 1 s of the rate"
        );
    }

    #[test]
    fn a_port_that_floods_leaves_the_others_of_its_switch_alone() {
        let mut limits = Limits::new(1000);
        let port = |name: &str| Port { circuit: name.into(), remote: Some("tor1".into()) };
        let (bad, good) = (port("Ethernet7"), port("Ethernet8"));
        assert_eq!((0..5000).filter(|_| limits.allow(0, A, Some(&bad))).count(), 40);
        assert!(limits.allow(0, A, Some(&good)));
        assert_eq!((0..5000).filter(|_| limits.allow(0, A, None)).count(), 4000 - 41, "the relay's own tokens");
    }

    #[test]
    fn the_table_of_sources_is_bounded() {
        let mut limits = Limits::new(10);
        for i in 0..2 * SOURCES as u32 {
            limits.allow(0, Ipv4Addr::from(i), None);
        }
        assert_eq!(limits.buckets.len(), SOURCES);
        assert!(limits.allow(60_000, B, None), "those that are full again make room");
    }
}
