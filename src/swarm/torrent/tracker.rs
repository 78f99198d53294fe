//! Who shares which image by BitTorrent, and whom a client is told of. Pure: no clock and no socket.
//!
//! What a client may cost is bounded: only info hashes of the catalogue get here, a swarm and an address have room for so
//! many, and an answer takes steps by the number of peers asked for, not by the size of the swarm.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::announce::{Announce, Event};
use super::bencode::Value;
use super::count::Refusal;
use super::metainfo::InfoHash;

/// Between two announces of a client: short, since a machine has its image within minutes.
const INTERVAL: Duration = Duration::from_secs(30);
/// While the appliance gets ready to seed.
const SOON: Duration = Duration::from_secs(5);
/// Three announces that did not come.
const EXPIRY: Duration = Duration::from_secs(100);
/// Between two searches for peers that expired.
const SWEEP: Duration = Duration::from_secs(5);
/// Clients of one image.
const MAX_SWARM: usize = 10_000;
/// Of one address: a machine has one; more are a person's who tries out.
const MAX_OF_ADDRESS: usize = 8;

#[derive(Debug, Default)]
pub struct Tracker {
    swarms: HashMap<InfoHash, Swarm>,
}

#[derive(Debug, Default)]
struct Swarm {
    /// In no order, so that a random number is a random peer.
    peers: Vec<Peer>,
    /// Where in `peers`.
    places: HashMap<SocketAddr, usize>,
    of_address: HashMap<IpAddr, usize>,
    /// Peers that have everything.
    complete: usize,
    swept: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Peer {
    address: SocketAddr,
    complete: bool,
    last: Instant,
}

/// Whom a client is told of. Clients that have everything are told of none such.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub complete: usize,
    pub incomplete: usize,
    pub peers: Vec<SocketAddr>,
}

impl Tracker {
    /// `from` is the address of the connection. Whether the announce can be true of the image is checked before.
    pub fn announce(&mut self, now: Instant, from: IpAddr, announce: &Announce) -> Result<Reply, Refusal> {
        let swarm = self.swarms.entry(announce.info_hash).or_default();
        swarm.sweep(now);
        let address = SocketAddr::new(from, announce.port);
        if announce.event == Event::Stopped {
            swarm.remove(address);
            return Ok(swarm.reply(address, false, 0));
        }
        let complete = announce.left == 0;
        swarm.put(Peer { address, complete, last: now })?;
        Ok(swarm.reply(address, complete, announce.wanted))
    }

    /// Swarms with anybody in them, after those who are gone were forgotten.
    pub fn alive(&mut self, now: Instant) -> HashSet<InfoHash> {
        self.swarms.values_mut().for_each(|swarm| swarm.expire(now));
        self.swarms.retain(|_, swarm| !swarm.peers.is_empty());
        self.swarms.keys().copied().collect()
    }

    /// Clients that lack something, and those that have everything.
    pub fn clients(&self) -> (usize, usize) {
        let counts = self.swarms.values().map(|s| (s.peers.len() - s.complete, s.complete));
        counts.fold((0, 0), |sum, next| (sum.0 + next.0, sum.1 + next.1))
    }
}

impl Swarm {
    fn put(&mut self, peer: Peer) -> Result<(), Refusal> {
        if let Some(known) = self.places.get(&peer.address).and_then(|at| self.peers.get_mut(*at)) {
            self.complete = self.complete + usize::from(peer.complete) - usize::from(known.complete);
            *known = peer;
            return Ok(());
        }
        if self.peers.len() >= MAX_SWARM {
            return Err(Refusal::SwarmFull);
        }
        let of_address = self.of_address.entry(peer.address.ip()).or_default();
        if *of_address >= MAX_OF_ADDRESS {
            return Err(Refusal::ClientBusy);
        }
        *of_address += 1;
        self.complete += usize::from(peer.complete);
        self.places.insert(peer.address, self.peers.len());
        self.peers.push(peer);
        Ok(())
    }

    fn remove(&mut self, address: SocketAddr) {
        let Some(at) = self.places.remove(&address) else { return };
        let gone = self.peers.swap_remove(at);
        if let Some(moved) = self.peers.get(at) {
            self.places.insert(moved.address, at);
        }
        self.complete -= usize::from(gone.complete);
        if let Some(count) = self.of_address.get_mut(&address.ip()) {
            *count -= 1;
            if *count == 0 {
                self.of_address.remove(&address.ip());
            }
        }
    }

    fn sweep(&mut self, now: Instant) {
        if self.swept.is_none_or(|then| now.saturating_duration_since(then) >= SWEEP) {
            self.expire(now);
        }
    }

    fn expire(&mut self, now: Instant) {
        self.swept = Some(now);
        let late = |peer: &&Peer| now.saturating_duration_since(peer.last) > EXPIRY;
        let gone: Vec<SocketAddr> = self.peers.iter().filter(late).map(|peer| peer.address).collect();
        gone.into_iter().for_each(|address| self.remove(address));
    }

    fn reply(&self, asker: SocketAddr, seeds: bool, wanted: usize) -> Reply {
        let useful = |peer: &&Peer| peer.address != asker && !(seeds && peer.complete);
        let peers = match wanted {
            0 => Vec::new(),
            // So few that all of them are looked at.
            _ if self.peers.len() <= 2 * wanted => {
                let mut all: Vec<_> = self.peers.iter().filter(useful).map(|peer| peer.address).collect();
                all.truncate(wanted);
                all
            }
            _ => {
                let mut random = Random::new();
                // Twice as many draws as peers: some are drawn again, some are of no use.
                let drawn: HashSet<usize> = (0..2 * wanted).map(|_| random.below(self.peers.len())).collect();
                let peers = drawn.into_iter().filter_map(|at| self.peers.get(at)).filter(useful);
                peers.map(|peer| peer.address).take(wanted).collect()
            }
        };
        Reply { complete: self.complete, incomplete: self.peers.len() - self.complete, peers }
    }
}

/// SplitMix64, seeded anew for each answer.
struct Random(u64);

impl Random {
    fn new() -> Self {
        Self(uuid::Uuid::new_v4().as_u64_pair().1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(z ^ (z >> 31)) * bound as u128) >> 64) as usize
    }
}

/// What the appliance itself does for this torrent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seed {
    /// It gives nothing by BitTorrent.
    None,
    /// It checks the file first; the client is to ask again soon.
    Starting,
    At(SocketAddr),
}

impl Reply {
    /// The answer of BEP 3 in the compact form of BEP 23 and, for IPv6, BEP 7. `asker` has everything: it is not sent to
    /// the appliance, which has everything too.
    pub fn encode(&self, seed: Seed, asker_is_complete: bool, wanted: usize) -> Vec<u8> {
        let own = match seed {
            Seed::At(address) if !asker_is_complete && wanted > 0 => Some(address),
            _ => None,
        };
        let (mut four, mut six) = (Vec::new(), Vec::new());
        for address in own.iter().chain(&self.peers) {
            let list = match address.ip() {
                IpAddr::V4(ip) => {
                    four.extend(ip.octets());
                    &mut four
                }
                IpAddr::V6(ip) => {
                    six.extend(ip.octets());
                    &mut six
                }
            };
            list.extend(address.port().to_be_bytes());
        }
        let interval = if seed == Seed::Starting { SOON } else { INTERVAL }.as_secs();
        let complete = self.complete as u64 + u64::from(matches!(seed, Seed::At(_)));
        Value::from([
            ("complete", complete.into()),
            ("incomplete", (self.incomplete as u64).into()),
            ("interval", interval.into()),
            ("min interval", (interval / 3).max(1).into()),
            ("peers", Value::Bytes(four)),
            ("peers6", Value::Bytes(six)),
        ])
        .encode()
    }
}

/// BEP 3: an answer with a reason has nothing else in it.
pub fn failure(reason: &str) -> Vec<u8> {
    Value::from([("failure reason", reason.into())]).encode()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn announce(port: u16, left: u64, event: Event) -> Announce {
        Announce { info_hash: InfoHash([7; 20]), port, left, downloaded: 0, uploaded: 0, event, wanted: 50 }
    }

    fn ip(n: u32) -> IpAddr {
        IpAddr::V4((0x0a4d_0000 + n).into())
    }

    #[test]
    fn clients_hear_of_one_another_until_they_stop_or_fall_silent() {
        let (mut tracker, start) = (Tracker::default(), Instant::now());
        let first = tracker.announce(start, ip(1), &announce(7000, 9, Event::Started)).unwrap();
        assert_eq!(first, Reply { complete: 0, incomplete: 1, peers: vec![] });
        let second = tracker.announce(start, ip(2), &announce(7000, 0, Event::Started)).unwrap();
        assert_eq!(second, Reply { complete: 1, incomplete: 1, peers: vec!["10.77.0.1:7000".parse().unwrap()] });
        // It got everything: from now on the other one is of no use to it.
        let done = tracker.announce(start, ip(1), &announce(7000, 0, Event::Completed)).unwrap();
        assert_eq!(done, Reply { complete: 2, incomplete: 0, peers: vec![] });
        let stopped = tracker.announce(start, ip(1), &announce(7000, 0, Event::Stopped)).unwrap();
        assert_eq!((stopped.complete, stopped.incomplete), (1, 0));
        // Another address cannot stop it.
        tracker.announce(start, ip(3), &announce(7000, 0, Event::Stopped)).unwrap();
        assert_eq!(tracker.clients(), (0, 1));
        assert_eq!(tracker.alive(start + EXPIRY).len(), 1);
        let late = start + EXPIRY + SWEEP;
        let third = tracker.announce(late, ip(3), &announce(7000, 9, Event::Started)).unwrap();
        assert_eq!(third, Reply { complete: 0, incomplete: 1, peers: vec![] });
        assert!(tracker.alive(late + EXPIRY * 2).is_empty());
        assert!(tracker.swarms.is_empty());
    }

    #[test]
    fn a_client_that_runs_wild_leaves_room_for_others() {
        let (mut tracker, now) = (Tracker::default(), Instant::now());
        let ports = 2000..2000 + MAX_OF_ADDRESS as u16;
        ports.for_each(|port| drop(tracker.announce(now, ip(1), &announce(port, 9, Event::Started)).unwrap()));
        assert_eq!(tracker.announce(now, ip(1), &announce(3000, 9, Event::Started)), Err(Refusal::ClientBusy));
        tracker.announce(now, ip(1), &announce(2000, 9, Event::Regular)).unwrap();
        for n in 2..(MAX_SWARM + 2 - MAX_OF_ADDRESS) as u32 {
            tracker.announce(now, ip(n), &announce(2000, 9, Event::Started)).unwrap();
        }
        assert_eq!(tracker.announce(now, ip(99_999), &announce(2000, 9, Event::Started)), Err(Refusal::SwarmFull));
        tracker.announce(now, ip(5), &announce(2000, 9, Event::Stopped)).unwrap();
        let reply = tracker.announce(now, ip(99_999), &announce(2000, 9, Event::Started)).unwrap();
        assert!((45..=50).contains(&reply.peers.len()), "{}", reply.peers.len());
        let other = tracker.announce(now, ip(99_999), &announce(2000, 9, Event::Regular)).unwrap();
        let (a, b): (HashSet<_>, HashSet<_>) = (reply.peers.iter().collect(), other.peers.iter().collect());
        assert!(a.len() == reply.peers.len() && a.intersection(&b).count() < 20, "each answer is drawn anew");
    }

    #[test]
    fn answers_are_compact() {
        let peers = vec!["10.77.0.9:6882".parse().unwrap(), "[fd00::9]:6883".parse().unwrap()];
        let reply = Reply { complete: 0, incomplete: 2, peers };
        let home = Seed::At("10.77.0.1:6881".parse().unwrap());
        let expected = [
            &b"d8:completei1e10:incompletei2e8:intervali30e12:min intervali10e5:peers12:"[..],
            &[10, 77, 0, 1, 0x1a, 0xe1, 10, 77, 0, 9, 0x1a, 0xe2],
            b"6:peers618:",
            &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0x1a, 0xe3],
            b"e",
        ]
        .concat();
        assert_eq!(reply.encode(home, false, 50), expected);
        let none = Reply { complete: 0, incomplete: 1, peers: vec![] };
        let text = |seed, complete, wanted| String::from_utf8(none.encode(seed, complete, wanted)).unwrap();
        assert!(text(home, true, 50).contains("5:peers0:6:peers60:"));
        assert!(text(home, false, 0).contains("5:peers0:6:peers60:"));
        assert!(text(Seed::Starting, false, 50).contains("8:intervali5e12:min intervali1e"));
        assert_eq!(failure("no"), b"d14:failure reason2:noe");
    }

    proptest! {
        /// Whatever is announced in whatever order, the counts and indexes say what the list says.
        #[test]
        fn the_books_balance(steps in proptest::collection::vec((0u32..6, 2000u16..2012, 0u64..2, 0u8..3, 0u64..60), 1..200)) {
            let (mut tracker, mut now) = (Tracker::default(), Instant::now());
            for (host, port, left, event, seconds) in steps {
                now += Duration::from_secs(seconds);
                let event = [Event::Started, Event::Regular, Event::Stopped][usize::from(event)];
                if let Ok(reply) = tracker.announce(now, ip(host), &announce(port, left, event)) {
                    prop_assert!(!reply.peers.contains(&SocketAddr::new(ip(host), port)));
                }
                let swarm = &tracker.swarms[&InfoHash([7; 20])];
                prop_assert_eq!(swarm.complete, swarm.peers.iter().filter(|p| p.complete).count());
                prop_assert_eq!(swarm.places.len(), swarm.peers.len());
                prop_assert!(swarm.peers.iter().enumerate().all(|(at, p)| swarm.places[&p.address] == at));
                prop_assert_eq!(swarm.of_address.values().sum::<usize>(), swarm.peers.len());
                prop_assert!(swarm.of_address.values().all(|n| (1..=MAX_OF_ADDRESS).contains(n)));
            }
        }
    }
}
