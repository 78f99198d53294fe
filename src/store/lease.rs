//! DHCP leases on disk. A lease is granted only after it was written: a machine must find its address taken by itself,
//! and nobody else, after the appliance lost power.
//!
//! The DHCP server keeps all bindings in memory and reads the stored ones once, at start. Writing is done by one thread that
//! takes whatever waits, makes it durable in one go and only then lets the answers leave: while the disk is busy with one
//! group, the next one gathers, so the cost is shared by as many machines as ask at the same time.
//!
//! A lease is a line of a [`Journal`]: `ADDRESS MAC CLIENT UUID STATE EXPIRES`, with the client id in hexadecimal digits and
//! `-` for what is not there. The last line about an address counts.

use std::collections::HashMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;
use std::str::FromStr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::journal::{Journal, seal};
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::MacAddr;

/// What is known of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub address: Ipv4Addr,
    pub mac: MacAddr,
    /// Option 61 as sent; empty: none.
    pub client: Vec<u8>,
    pub uuid: Option<uuid::Uuid>,
    pub state: LeaseState,
    /// Milliseconds since 1970.
    pub expires: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    Leased,
    /// Given back; still the first choice of the machine that had it.
    Released,
    /// A client found somebody else on it: nobody's until it expires.
    Declined,
}

impl LeaseState {
    fn name(self) -> &'static str {
        match self {
            Self::Leased => "leased",
            Self::Released => "released",
            Self::Declined => "declined",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Leased, Self::Released, Self::Declined].into_iter().find(|s| s.name() == name)
    }
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.address, self.mac)?;
        match self.client.is_empty() {
            true => f.write_str("- ")?,
            false => write!(f, "{} ", hex::encode(&self.client))?,
        }
        match self.uuid {
            Some(uuid) => write!(f, "{uuid} ")?,
            None => f.write_str("- ")?,
        }
        write!(f, "{} {}", self.state.name(), self.expires)
    }
}

/// Not a lease.
#[derive(Debug, PartialEq, Eq)]
pub struct Unreadable;

impl FromStr for Lease {
    type Err = Unreadable;

    fn from_str(line: &str) -> std::result::Result<Self, Unreadable> {
        let words: Vec<&str> = line.split(' ').collect();
        let [address, mac, client, uuid, state, expires] = words.as_slice() else { return Err(Unreadable) };
        let read = || {
            Some(Self {
                address: address.parse().ok()?,
                mac: mac.parse().ok()?,
                client: if *client == "-" { Vec::new() } else { hex::decode(client).ok()? },
                uuid: if *uuid == "-" { None } else { Some(uuid.parse().ok()?) },
                state: LeaseState::from_name(state)?,
                expires: expires.parse().ok()?,
            })
        };
        read().ok_or(Unreadable)
    }
}

/// For each address the last line about it; lines that are no lease, of a later release say, stay as they are.
fn fold(lines: Vec<String>) -> Vec<String> {
    let key = |line: &String| line.split(' ').next().unwrap_or_default().to_owned();
    let last: HashMap<String, String> = lines.into_iter().map(|line| (key(&line), line)).collect();
    last.into_values().collect()
}

/// The leases in the state directory, oldest expiry first.
pub fn read(state: &Path) -> Result<Vec<Lease>> {
    Journal::read(&state.join(FOLDER), fold).map(leases).or_fail(Kind::Config, "store.lease", || unusable(state))
}

fn leases(lines: Vec<String>) -> Vec<Lease> {
    let mut leases: Vec<Lease> = lines.iter().filter_map(|line| line.parse().ok()).collect();
    if leases.len() < lines.len() {
        tracing::warn!(lines = lines.len() - leases.len(), "stored leases that this release cannot read are not used");
    }
    leases.sort_by_key(|lease| (lease.expires, lease.address));
    leases
}

fn unusable(state: &Path) -> String {
    format!("cannot use the leases in {}", state.join(FOLDER).display())
}

/// In the state directory.
const FOLDER: &str = "leases";
/// Leases that are written at once.
const GROUP: usize = 1024;
/// How long the first lease of a group waits for others, where the disk was busy until just now: some hundred writes a second
/// are as many as any disk should be asked for.
const GATHER: Duration = Duration::from_millis(1);
/// Leases that may wait for the next group. What does not fit is not granted; the client asks again.
const WAITING: usize = 8192;

/// The way to the writing thread; `T` is what has to happen once the lease is on disk.
pub struct Writer<T> {
    queue: SyncSender<(Lease, T)>,
}

impl<T> Clone for Writer<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

impl<T: Send + 'static> Writer<T> {
    /// With the leases in the state directory, oldest expiry first. The thread ends, with everything written, when the last
    /// `Writer` is gone.
    pub fn open(
        state: &Path,
        done: impl FnMut(Result<()>, Vec<T>) + Send + 'static,
    ) -> Result<(Self, Vec<Lease>, JoinHandle<()>)> {
        let opened = Journal::open(&state.join(FOLDER), fold);
        let (journal, lines) = opened.or_fail(Kind::Config, "store.lease", || unusable(state))?;
        let (queue, waiting) = sync_channel(WAITING);
        let thread = tokio::task::spawn_blocking(move || write(journal, &waiting, done));
        Ok((Self { queue }, leases(lines), thread))
    }

    /// Queues without waiting; `false` when the queue is full, and then nothing will happen.
    pub fn save(&self, lease: Lease, then: T) -> bool {
        self.queue.try_send((lease, then)).is_ok()
    }
}

fn write<T>(mut journal: Journal, waiting: &Receiver<(Lease, T)>, mut done: impl FnMut(Result<()>, Vec<T>)) {
    let mut lines = Vec::new();
    let mut written = Instant::now() - GATHER;
    while let Ok(first) = waiting.recv() {
        if let Some(rest) = GATHER.checked_sub(written.elapsed()) {
            std::thread::sleep(rest);
        }
        lines.clear();
        let group = std::iter::once(first).chain(waiting.try_iter()).take(GROUP);
        let then = group.map(|(lease, then)| {
            seal(&lease.to_string(), &mut lines);
            then
        });
        let then = then.collect();
        done(journal.append(&lines).map_err(failed), then);
        written = Instant::now();
    }
}

fn failed(e: std::io::Error) -> Error {
    Error::internal("store.lease", "the disk does not take leases")
        .because(e)
        .hint("is it full or read-only? see the log for the cause")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn lease(last: u8, state: LeaseState, expires: i64) -> Lease {
        Lease {
            address: Ipv4Addr::new(10, 77, 2, last),
            mac: MacAddr([2, 0, 0, 0, 0, last]),
            client: if last.is_multiple_of(3) { vec![] } else { vec![1, 0, 255] },
            uuid: last.is_multiple_of(2).then(|| uuid::Uuid::from_u128(last.into())),
            state,
            expires,
        }
    }

    #[test]
    fn a_lease_is_a_line_that_people_can_read() {
        let line = "10.77.2.2 02:00:00:00:00:02 0100ff 00000000-0000-0000-0000-000000000002 leased 1800000000000";
        assert_eq!(lease(2, LeaseState::Leased, 1_800_000_000_000).to_string(), line);
        for lease in
            [lease(2, LeaseState::Leased, 5), lease(3, LeaseState::Declined, 0), lease(6, LeaseState::Released, -1)]
        {
            assert_eq!(lease.to_string().parse(), Ok(lease));
        }
        for wrong in
            ["", "10.77.2.2", &line.replace("0100ff", "0100f"), &line.replace("leased", "lent"), &format!("{line} x")]
        {
            assert_eq!(wrong.parse::<Lease>(), Err(Unreadable), "{wrong}");
        }
    }

    #[tokio::test]
    async fn what_was_reported_done_is_there_after_opening_again() {
        let dir = tempfile::tempdir().unwrap();
        let done: Arc<Mutex<Vec<u8>>> = Arc::default();
        let seen = done.clone();
        let (writer, before, task) = Writer::open(dir.path(), move |result, group| {
            result.unwrap();
            seen.lock().unwrap().extend(group);
        })
        .unwrap();
        assert_eq!(before, []);
        for last in 1..=200 {
            assert!(writer.save(lease(last, LeaseState::Leased, i64::from(last)), last));
        }
        assert!(writer.save(lease(7, LeaseState::Released, 1000), 201));
        assert!(writer.save(lease(8, LeaseState::Declined, 2000), 202));
        drop(writer);
        task.await.unwrap();
        assert_eq!(*done.lock().unwrap(), (1..=202).collect::<Vec<u8>>(), "in order, each once");
        let leases = read(dir.path()).unwrap();
        assert_eq!(leases.len(), 200);
        assert_eq!(leases[0], lease(1, LeaseState::Leased, 1));
        assert_eq!(leases[198], lease(7, LeaseState::Released, 1000), "the later write of an address wins");
        assert_eq!(leases[199], lease(8, LeaseState::Declined, 2000));
        let (_, again, _) = Writer::<u8>::open(dir.path(), |_, _| {}).unwrap();
        assert_eq!(again, leases);
    }

    #[tokio::test]
    async fn a_group_that_cannot_be_written_is_reported_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (send, receive) = std::sync::mpsc::channel();
        let (mut journal, _) = Journal::open(&dir.path().join(FOLDER), fold).unwrap();
        journal.takes_nothing();
        let (queue, waiting) = sync_channel(WAITING);
        for n in 1..=2 {
            queue.try_send((lease(n, LeaseState::Leased, 1), n)).unwrap();
        }
        drop(queue);
        write(journal, &waiting, move |result, group: Vec<u8>| {
            send.send((result.map_err(|e| e.code()), group)).unwrap();
        });
        assert_eq!(receive.recv().unwrap(), (Err("store.lease"), vec![1, 2]));
    }

    /// In a process of its own: leases without end, each told on standard output once it is granted.
    #[tokio::test]
    #[ignore = "started by the test below"]
    async fn grants_until_it_is_killed() {
        let Some(state) = std::env::var_os("RACKLINE_TEST_LEASES") else { return };
        let said = |result: Result<()>, group: Vec<i64>| {
            result.unwrap();
            println!("{}", group.iter().max().unwrap());
        };
        let (writer, _, _) = Writer::open(Path::new(&state), said).unwrap();
        for n in 1.. {
            while !writer.save(lease((n % 250) as u8, LeaseState::Leased, n), n) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    #[test]
    fn what_was_granted_is_there_after_kill_9() {
        use std::io::{BufRead, BufReader};
        let dir = tempfile::tempdir().unwrap();
        let mut granted = 0;
        for round in 1..=3 {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "store::lease::tests::grants_until_it_is_killed", "--ignored", "--nocapture"])
                .env("RACKLINE_TEST_LEASES", dir.path())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut numbers = lines.filter_map(|line| line.unwrap().parse::<i64>().ok());
            granted = numbers.by_ref().find(|n| *n > round * 2000).unwrap();
            child.kill().unwrap();
            granted = numbers.last().unwrap_or(granted);
            child.wait().unwrap();
            let leases = read(dir.path()).unwrap();
            assert_eq!(leases.len(), 250);
            // Each address was granted within the last 250 leases, or a few later ones were written and not yet told.
            let expires: Vec<i64> = leases.iter().map(|l| l.expires).collect();
            assert!(expires.iter().all(|e| *e > granted - 250), "granted {granted}, found {expires:?}");
        }
        assert!(granted > 6000);
    }
}
