//! The transfers of one interface: who is served, for how long there was no word, and when that is too long.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use slab::Slab;

use super::batch::Outbox;
use super::mail::Order;
use super::transfer::{Transfer, Window};

/// A client that has not answered once after this long gives way when there is no room: to a flood of requests with
/// invented senders nobody answers.
const UNANSWERED: Duration = Duration::from_secs(1);
/// Packets that the kernel cuts out of one call: `UDP_MAX_SEGMENTS` of linux/udp.h before Linux 6.9.
const SEGMENTS: usize = 64;
/// Bytes that it takes in one call: the largest IPv4 packet, less the headers of IP and UDP.
const SEGMENTED: usize = 65_507;

/// A socket that transfers share, by address family and number.
pub type Port = (usize, usize);

pub struct Session {
    pub order: Order,
    pub port: Port,
    pub transfer: Transfer,
    /// The client answered: its address is no invention.
    pub heard: bool,
    /// The kernel cuts a window into packets; not every device and path lets it.
    pub segmented: bool,
    started: Instant,
    /// Since when nothing was sent, and nothing that is new was acknowledged.
    pub since: Instant,
    /// When the client's silence has lasted too long.
    due: Instant,
    /// Under which time the session stands among the timers: at `due`, or before it. So an ACK costs no timer.
    queued: Instant,
}

impl Session {
    pub fn new(order: Order, port: Port, transfer: Transfer, now: Instant) -> Self {
        let due = now + transfer.patience();
        let (heard, segmented) = (false, true);
        Self { order, port, transfer, heard, segmented, started: now, since: now, due, queued: due }
    }

    /// What the transfer has to send now.
    pub fn write(&self, key: usize, outbox: &mut Outbox) {
        let (client, local) = (self.order.client, Some(self.order.local));
        let numbers = match self.transfer.window() {
            Window::OptionAck(packet) => return outbox.push(key, client, local, None, |b| b.extend_from_slice(packet)),
            Window::Blocks(numbers) => numbers,
        };
        let size = self.transfer.packet_size();
        let at_once = if self.segmented { (SEGMENTED / size).clamp(1, SEGMENTS) } else { 1 };
        for first in numbers.clone().step_by(at_once) {
            let last = (*numbers.end()).min(first + at_once as u64 - 1);
            let segment = (last > first).then_some(size as u16);
            outbox.push(key, client, local, segment, |bytes| {
                for (header, data) in (first..=last).map(|n| self.transfer.block(n)) {
                    bytes.extend_from_slice(&header);
                    bytes.extend_from_slice(data);
                }
            });
        }
    }
}

#[derive(Default)]
pub struct Sessions {
    all: Slab<Session>,
    by_client: HashMap<SocketAddr, usize>,
    per_host: HashMap<IpAddr, usize>,
    timers: BTreeSet<(Instant, usize)>,
}

impl Sessions {
    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn get(&self, key: usize) -> Option<&Session> {
        self.all.get(key)
    }

    pub fn get_mut(&mut self, key: usize) -> Option<&mut Session> {
        self.all.get_mut(key)
    }

    /// The transfer of this client port.
    pub fn find(&self, client: SocketAddr) -> Option<usize> {
        self.by_client.get(&client).copied()
    }

    /// Transfers of this host.
    pub fn of_host(&self, host: IpAddr) -> usize {
        self.per_host.get(&host).copied().unwrap_or_default()
    }

    /// In the place of the one that the client port has, if any: the client asks for something else now.
    pub fn insert(&mut self, session: Session) -> usize {
        let client = session.order.client;
        self.find(client).map(|key| self.remove(key));
        let due = session.due;
        let key = self.all.insert(session);
        self.timers.insert((due, key));
        self.by_client.insert(client, key);
        *self.per_host.entry(client.ip()).or_default() += 1;
        key
    }

    pub fn remove(&mut self, key: usize) -> Option<Session> {
        let session = self.all.try_remove(key)?;
        let client = session.order.client;
        self.timers.remove(&(session.queued, key));
        self.by_client.remove(&client);
        if let Some(count) = self.per_host.get_mut(&client.ip()) {
            *count -= 1;
            if *count == 0 {
                self.per_host.remove(&client.ip());
            }
        }
        Some(session)
    }

    /// Who gives way when there is no room, if anybody.
    pub fn unanswered(&self, now: Instant) -> Option<usize> {
        let silent = self.all.iter().filter(|(_, s)| !s.heard);
        let (key, oldest) = silent.min_by_key(|(_, s)| s.started)?;
        (now.saturating_duration_since(oldest.started) >= UNANSWERED).then_some(key)
    }

    /// The client has from `since` on to answer.
    pub fn wait_from(&mut self, key: usize, since: Instant) {
        let Some(session) = self.all.get_mut(key) else { return };
        session.since = since;
        session.due = since + session.transfer.patience();
        if session.due < session.queued {
            self.timers.remove(&(session.queued, key));
            self.timers.insert((session.due, key));
            session.queued = session.due;
        }
    }

    /// No session is due before.
    pub fn next_due(&self) -> Option<Instant> {
        self.timers.first().map(|(when, _)| *when)
    }

    /// A session whose client was silent for too long; it has as long again before it is named once more.
    pub fn overdue(&mut self, now: Instant) -> Option<usize> {
        while let Some((when, key)) = self.timers.first().copied().filter(|(when, _)| *when <= now) {
            self.timers.remove(&(when, key));
            let Some(session) = self.all.get_mut(key) else { continue };
            let late = session.due <= now;
            if late {
                session.due = now + session.transfer.patience();
            }
            session.queued = session.due;
            self.timers.insert((session.due, key));
            if late {
                return Some(key);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::packet::ReadRequest;
    use super::super::transfer::Step;
    use super::*;

    fn session(client: &str, now: Instant) -> Session {
        let request = ReadRequest {
            name: "f".into(),
            netascii: false,
            block_size: Some(8),
            size: false,
            timeout: None,
            window: Some(3),
        };
        let transfer = Transfer::new(Bytes::from_static(b"once upon a time"), &request, 1468);
        let order = Order { client: client.parse().unwrap(), local: "10.77.0.1".parse().unwrap(), request };
        Session::new(order, (0, 0), transfer, now)
    }

    #[test]
    fn a_client_port_has_one_transfer_and_hosts_are_counted() {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        let (a, b) = ("10.77.0.9:2070".parse::<SocketAddr>().unwrap(), "10.77.0.9:2071".parse::<SocketAddr>().unwrap());
        let first = sessions.insert(session("10.77.0.9:2070", now));
        sessions.insert(session("10.77.0.9:2071", now));
        assert_eq!((sessions.find(a), sessions.of_host(a.ip())), (Some(first), 2));
        sessions.insert(session("10.77.0.9:2070", now));
        assert_eq!((sessions.len(), sessions.of_host(a.ip())), (2, 2));
        for client in [a, b] {
            assert!(sessions.find(client).and_then(|key| sessions.remove(key)).is_some());
        }
        assert_eq!((sessions.len(), sessions.of_host(a.ip()), sessions.next_due()), (0, 0, None));
        assert!(sessions.per_host.is_empty() && sessions.by_client.is_empty());
    }

    #[test]
    fn who_is_silent_for_too_long_is_named_at_the_right_time() {
        let (mut sessions, start) = (Sessions::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let key = sessions.insert(session("10.77.0.9:2070", start));
        assert_eq!(sessions.overdue(at(999)), None);
        sessions.wait_from(key, at(900));
        assert_eq!(sessions.overdue(at(1000)), None, "there was a word at 900");
        assert_eq!(sessions.next_due(), Some(at(1900)));
        assert_eq!(sessions.overdue(at(1900)), Some(key));
        assert_eq!(sessions.overdue(at(1900)), None, "once");
        // With an answer, waits become shorter.
        let transfer = &mut sessions.get_mut(key).unwrap().transfer;
        assert_eq!(transfer.acknowledge(0, Duration::from_millis(1)), Step::Send);
        sessions.wait_from(key, at(2000));
        assert_eq!(sessions.next_due(), Some(at(2200)));
    }

    #[test]
    fn only_who_never_answered_gives_way() {
        let (mut sessions, start) = (Sessions::default(), Instant::now());
        let old = sessions.insert(session("10.77.0.9:2070", start));
        let second = sessions.insert(session("10.77.0.9:2071", start + Duration::from_millis(10)));
        let later = start + Duration::from_millis(1005);
        assert_eq!(sessions.unanswered(start), None);
        assert_eq!(sessions.unanswered(later), Some(old));
        sessions.get_mut(old).unwrap().heard = true;
        assert_eq!(sessions.unanswered(later), None);
        assert_eq!(sessions.unanswered(later + Duration::from_millis(10)), Some(second));
    }
}
