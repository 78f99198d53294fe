//! What happened on the machines' connections, by name. What points at trouble is also logged: once a minute and event,
//! with how often it happened, so that a broken or hostile client cannot fill the log.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::count::{Tally, named};

/// Between two lines of the log about the same event.
const EVERY: Duration = Duration::from_secs(60);

named! {
    Event {
        /// A connection was taken.
        Connection = "http-connection",
        /// A file or a range of it was sent to its end.
        Sent = "http-file-sent",
        /// A request for a file was answered without its content: HEAD, 304, 405, 412, 416.
        Answered = "http-file-answered",
        /// A request went to the router.
        Router = "http-router",
        /// The client went away in the middle.
        Aborted = "http-aborted",
        /// A kept connection was not used any more.
        Idle = "http-idle",
        /// A window of a file was not in the page cache and was read from disk first.
        Cold = "http-cold-read",
        /// Not HTTP/1, or a request without exactly one `Host`.
        Malformed = "http-malformed",
        /// The head of a request is longer than [`super::Limits::head_bytes`] or has too many lines.
        HeadTooLong = "http-head-too-long",
        /// A request did not come to its end in time.
        HeadTimeout = "http-head-timeout",
        /// A client took no byte for too long.
        WriteTimeout = "http-write-timeout",
        /// The router took too long.
        RouterTimeout = "http-router-timeout",
        /// More connections than allowed.
        Busy = "http-busy",
        /// More connections from one address than allowed.
        ClientBusy = "http-client-busy",
        /// A file was cut short or could not be read while it was sent.
        FileFailed = "http-file-failed",
        /// A machine waits until others have their kernel or RAM system.
        Queued = "http-file-queued",
        /// The kernel did not hand over a connection.
        AcceptFailed = "http-accept-failed",
    }
}

impl Event {
    /// The log's sentence, for what points at trouble.
    fn sentence(self) -> Option<&'static str> {
        let sentence = match self {
            Event::Connection
            | Event::Sent
            | Event::Answered
            | Event::Router
            | Event::Aborted
            | Event::Idle
            | Event::Cold
            | Event::Queued => return None,
            Event::Malformed => "a client on the machines' port does not speak HTTP/1.1",
            Event::HeadTooLong => "a request head is too long and was refused",
            Event::HeadTimeout => "a client did not finish its request in time",
            Event::WriteTimeout => "a client stopped taking the file that it asked for",
            Event::RouterTimeout => "a request took too long and was given up",
            Event::Busy => "there are too many connections; new ones get status 503",
            Event::ClientBusy => "a client has too many connections; more get status 503",
            Event::FileFailed => "a file changed or failed while it was sent",
            Event::AcceptFailed => "a connection could not be taken",
        };
        Some(sentence)
    }
}

pub struct Counters {
    started: Instant,
    count: Tally<Event>,
    /// For each event: when it may be logged again, in milliseconds since `started`, and how often it was by the last line.
    due: Tally<Event>,
    said: Tally<Event>,
    /// Bytes of files that were handed to the kernel.
    bytes: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        let (count, due, said) = Default::default();
        Self { started: Instant::now(), count, due, said, bytes: AtomicU64::new(0) }
    }
}

impl Counters {
    pub(super) fn add(&self, event: Event, peer: Option<SocketAddr>) {
        let count = self.count.add(event);
        let Some(sentence) = event.sentence() else { return };
        let (Some(due), Some(said)) = (self.due.number(event), self.said.number(event)) else { return };
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let next = due.load(Relaxed);
        let again = now.saturating_add(EVERY.as_millis() as u64);
        if now >= next && due.compare_exchange(next, again, Relaxed, Relaxed).is_ok() {
            let times = count.saturating_sub(said.swap(count, Relaxed));
            warn!(reason = event.name(), times, client = peer.map(tracing::field::display), "{sentence}");
        }
    }

    pub(super) fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
    }

    pub fn get(&self, event: Event) -> u64 {
        self.count.get(event)
    }

    /// Name and count.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        self.count.snapshot().chain([("http-file-bytes", self.bytes.load(Relaxed))]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::count::Named;

    #[test]
    fn each_event_has_a_name_of_its_own_and_is_counted_under_it() {
        let counters = Counters::default();
        for event in Event::ALL {
            counters.add(*event, None);
            counters.add(*event, None);
        }
        counters.add_bytes(7);
        let snapshot = counters.snapshot();
        let names: std::collections::HashSet<_> = snapshot.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), Event::ALL.len() + 1);
        assert!(snapshot.iter().all(|(name, n)| *n == if *name == "http-file-bytes" { 7 } else { 2 }));
    }

    #[test]
    fn a_flood_is_one_line_in_the_log() {
        let counters = Counters::default();
        (0..1000).for_each(|_| counters.add(Event::Busy, None));
        assert_eq!(counters.said.get(Event::Busy), 1, "the first is said, the rest waits for the next minute");
        assert!(counters.due.get(Event::Busy) >= EVERY.as_millis() as u64);
    }
}
