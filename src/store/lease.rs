//! DHCP leases on disk. A lease is granted only after it was committed: a machine must find its address taken by itself,
//! and nobody else, after the appliance lost power.
//!
//! The DHCP server keeps all bindings in memory and reads this table once, at start. Writing is done by one task that
//! takes whatever waits, commits it as one transaction and only then lets the answers go: while the disk is busy with one
//! group, the next one gathers, so the cost of a commit is shared by as many machines as ask at the same time.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use sqlx::Row;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Db, failed};
use crate::error::{Kind, OrFail, Result};
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

/// Every row, oldest expiry first.
pub async fn load(db: &Db) -> Result<Vec<Lease>> {
    let rows = sqlx::query("SELECT address, mac, client, uuid, state, expires FROM lease ORDER BY expires, address")
        .fetch_all(db.read())
        .await
        .map_err(failed)?;
    rows.iter().map(from_row).collect()
}

fn from_row(row: &sqlx::any::AnyRow) -> Result<Lease> {
    let address: String = row.try_get("address").map_err(failed)?;
    let unreadable = || format!("the stored lease of {address} cannot be read");
    let mac: String = row.try_get("mac").map_err(failed)?;
    let uuid: Option<String> = row.try_get("uuid").map_err(failed)?;
    let state: String = row.try_get("state").map_err(failed)?;
    Ok(Lease {
        address: address.parse().or_fail(Kind::Internal, "store.lease", unreadable)?,
        mac: mac.parse().or_fail(Kind::Internal, "store.lease", unreadable)?,
        client: row.try_get("client").map_err(failed)?,
        uuid: uuid.map(|u| u.parse()).transpose().or_fail(Kind::Internal, "store.lease", unreadable)?,
        state: LeaseState::from_name(&state).ok_or_else(|| format!("state {state:?}")).or_fail(
            Kind::Internal,
            "store.lease",
            unreadable,
        )?,
        expires: row.try_get("expires").map_err(failed)?,
    })
}

/// Leases that share one commit.
const GROUP: usize = 1024;
/// How long the first lease of a group waits for others, where the commit before has only just ended.
const GATHER: Duration = Duration::from_millis(1);
/// Leases that may wait for the next one. What does not fit is not granted; the client asks again.
const WAITING: usize = 8192;

/// The way to the writing task; `T` is what has to happen once the lease is on disk.
pub struct Writer<T> {
    queue: mpsc::Sender<(Lease, T)>,
}

impl<T> Clone for Writer<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

impl<T: Send + 'static> Writer<T> {
    /// The task ends, with everything written, when the last `Writer` is gone.
    pub fn start(db: Db, mut done: impl FnMut(Result<()>, Vec<T>) + Send + 'static) -> (Self, JoinHandle<()>) {
        let (queue, mut waiting) = mpsc::channel(WAITING);
        let task = tokio::spawn(async move {
            let mut group: Vec<(Lease, T)> = Vec::with_capacity(GROUP);
            let mut committed = Instant::now() - GATHER;
            while waiting.recv_many(&mut group, GROUP).await > 0 {
                if committed.elapsed() < GATHER {
                    gather(&mut waiting, &mut group).await;
                }
                let (leases, then): (Vec<Lease>, Vec<T>) = group.drain(..).unzip();
                done(commit(&db, &leases).await, then);
                committed = Instant::now();
            }
        });
        (Self { queue }, task)
    }

    /// Queues without waiting; `false` when the queue is full, and then nothing will happen.
    pub fn save(&self, lease: Lease, then: T) -> bool {
        self.queue.try_send((lease, then)).is_ok()
    }
}

/// Waits a moment for more leases: some hundred commits a second are as many as any disk should be asked for.
async fn gather<T>(waiting: &mut mpsc::Receiver<(Lease, T)>, group: &mut Vec<(Lease, T)>) {
    tokio::time::sleep(GATHER).await;
    while group.len() < GROUP {
        match waiting.try_recv() {
            Ok(next) => group.push(next),
            Err(_) => return,
        }
    }
}

/// One statement for the whole group, since each one is a round trip to SQLite's thread; it is its own transaction.
async fn commit(db: &Db, leases: &[Lease]) -> Result<()> {
    // The last word on an address counts; no database takes two in one statement.
    let last: HashMap<Ipv4Addr, &Lease> = leases.iter().map(|lease| (lease.address, lease)).collect();
    let mut statement =
        sqlx::QueryBuilder::<sqlx::Any>::new("INSERT INTO lease (address, mac, client, uuid, state, expires) ");
    statement.push_values(last.into_values(), |mut row, lease| {
        row.push_bind(lease.address.to_string())
            .push_bind(lease.mac.to_string())
            .push_bind(lease.client.clone())
            .push_bind(lease.uuid.map(|u| u.to_string()))
            .push_bind(lease.state.name())
            .push_bind(lease.expires);
    });
    statement.push(
        " ON CONFLICT (address) DO UPDATE SET mac = excluded.mac, client = excluded.client, uuid = excluded.uuid, \
         state = excluded.state, expires = excluded.expires",
    );
    statement.build().persistent(false).execute(db.statement()).await.map(|_| ()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn lease(last: u8, state: LeaseState, expires: i64) -> Lease {
        Lease {
            address: Ipv4Addr::new(10, 77, 2, last),
            mac: MacAddr([2, 0, 0, 0, 0, last]),
            client: vec![1, 0, 255],
            uuid: last.is_multiple_of(2).then(|| uuid::Uuid::from_u128(last.into())),
            state,
            expires,
        }
    }

    #[tokio::test]
    async fn what_was_reported_done_is_there_after_opening_again() {
        let dir = tempfile::tempdir().unwrap();
        let done: Arc<Mutex<Vec<u8>>> = Arc::default();
        {
            let db = Db::open(dir.path()).await.unwrap();
            let seen = done.clone();
            let (writer, task) = Writer::start(db, move |result, group| {
                result.unwrap();
                seen.lock().unwrap().extend(group);
            });
            for last in 1..=200 {
                assert!(writer.save(lease(last, LeaseState::Leased, i64::from(last)), last));
            }
            assert!(writer.save(lease(7, LeaseState::Released, 1000), 201));
            assert!(writer.save(lease(8, LeaseState::Declined, 2000), 202));
            drop(writer);
            task.await.unwrap();
        }
        assert_eq!(*done.lock().unwrap(), (1..=202).collect::<Vec<u8>>(), "in order, each once");
        let leases = load(&Db::open(dir.path()).await.unwrap()).await.unwrap();
        assert_eq!(leases.len(), 200);
        assert_eq!(leases[0], lease(1, LeaseState::Leased, 1));
        assert_eq!(leases[198], lease(7, LeaseState::Released, 1000), "the later write of an address wins");
        assert_eq!(leases[199], lease(8, LeaseState::Declined, 2000));
    }

    #[tokio::test]
    async fn a_group_that_cannot_be_committed_is_reported_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(dir.path()).await.unwrap();
        sqlx::query("DROP TABLE lease").execute(db.read()).await.unwrap();
        let (send, receive) = std::sync::mpsc::channel();
        let (writer, task) = Writer::start(db, move |result, group: Vec<u8>| {
            send.send((result.map_err(|e| e.code()), group)).unwrap();
        });
        assert!(writer.save(lease(1, LeaseState::Leased, 1), 1));
        drop(writer);
        task.await.unwrap();
        assert_eq!(receive.recv().unwrap(), (Err("store.statement"), vec![1]));
    }
}
