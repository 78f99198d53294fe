//! Which peer next: what is remembered of each, and the order that the plan gives.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The first pause after a failure; it doubles. Machines start together, and the one that is to feed this one may be ready a
/// moment later; until then a standby's link is shared.
const PAUSE: Duration = Duration::from_millis(125);
/// One packet in so long is cheap, and a switch that was down for a while should not be down for longer to us.
const PAUSE_MAX: Duration = Duration::from_secs(4);

#[derive(Debug, Default)]
pub struct Standings {
    /// Whoever sent garbage once is never asked again.
    garbage: HashSet<SocketAddr>,
    failed: HashMap<SocketAddr, Failed>,
    plan: Vec<SocketAddr>,
}

#[derive(Debug)]
struct Failed {
    times: u32,
    until: Instant,
    /// It had accepted this machine and then did not do what it should.
    broke: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    NotReached,
    /// It was of no use.
    Useless,
    /// It had brought something, so it starts again with the shortest pause.
    AfterUse,
}

impl Standings {
    /// A plan that differs forgives failures: the planner may know that the peer is back.
    pub fn follow_plan(&mut self, plan: &[SocketAddr]) {
        if self.plan != plan {
            self.plan = plan.to_vec();
            self.failed.clear();
        }
    }

    pub fn garbage(&mut self, peer: SocketAddr) {
        self.garbage.insert(peer);
    }

    pub fn failed(&mut self, peer: SocketAddr, how: Failure, now: Instant) {
        let failed = self.failed.entry(peer).or_insert(Failed { times: 0, until: now, broke: false });
        failed.times = if how == Failure::AfterUse { 1 } else { failed.times.saturating_add(1) };
        failed.until = now + (PAUSE * (1 << (failed.times - 1).min(5))).min(PAUSE_MAX);
        failed.broke |= how != Failure::NotReached;
    }

    /// Nothing but not being there is held against it since the plan was made.
    pub fn is_clean(&self, peer: SocketAddr) -> bool {
        self.failed.get(&peer).is_none_or(|failed| !failed.broke)
    }

    /// Place in the plan, 0 first; those that are not in it come last.
    pub fn rank(&self, peer: SocketAddr) -> usize {
        self.plan.iter().position(|p| *p == peer).unwrap_or(usize::MAX)
    }

    /// The first that may be asked now and is not asked already.
    pub fn next(&self, busy: &[SocketAddr], now: Instant) -> Option<SocketAddr> {
        let free = |peer: &&SocketAddr| {
            !busy.contains(peer)
                && !self.garbage.contains(peer)
                && self.failed.get(peer).is_none_or(|failed| failed.until <= now)
        };
        self.plan.iter().find(free).copied()
    }

    /// Whether there is anybody who might be asked sooner or later.
    pub fn anybody(&self) -> bool {
        self.plan.iter().any(|peer| !self.garbage.contains(peer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 7000))
    }

    #[test]
    fn the_plans_order_holds_but_for_those_that_failed() {
        let now = Instant::now();
        let later = |ms| now + Duration::from_millis(ms);
        let mut standings = Standings::default();
        assert_eq!((standings.next(&[], now), standings.anybody()), (None, false));
        standings.follow_plan(&[peer(1), peer(2), peer(3)]);
        assert_eq!(standings.next(&[], now), Some(peer(1)));
        assert_eq!(standings.next(&[peer(1)], now), Some(peer(2)));
        standings.failed(peer(1), Failure::NotReached, now);
        assert_eq!(standings.next(&[], now), Some(peer(2)));
        assert_eq!(standings.next(&[], later(125)), Some(peer(1)));
        assert!(standings.is_clean(peer(1)), "it was not ready yet");
        standings.failed(peer(1), Failure::Useless, now);
        assert_eq!(standings.next(&[], later(249)), Some(peer(2)), "twice as long");
        standings.garbage(peer(2));
        assert_eq!(standings.next(&[], later(1)), Some(peer(3)));
        assert_eq!((standings.rank(peer(3)), standings.rank(peer(9))), (2, usize::MAX));
        (0..90).for_each(|_| standings.failed(peer(1), Failure::NotReached, now));
        assert_eq!(standings.next(&[peer(3)], later(4_000)), Some(peer(1)), "the pause has an end");
        // The same plan changes nothing, another forgives failures, but not garbage.
        standings.follow_plan(&[peer(1), peer(2), peer(3)]);
        assert!(!standings.is_clean(peer(1)));
        standings.follow_plan(&[peer(2), peer(1)]);
        assert_eq!((standings.next(&[], now), standings.is_clean(peer(1))), (Some(peer(1)), true));
        assert!(standings.anybody());
        standings.garbage(peer(1));
        assert!(!standings.anybody());
    }
}
