//! What must survive a power cut: events, machine states, the outbox, sealed secrets, and beside the database leases.
//!
//! SQLite is built in and needs no set-up: write-ahead log, and `synchronous = FULL`, so that what was committed is on
//! the disk. Writers go through [`Db::write`], which takes the write lock at the start: a transaction that reads first and
//! writes later would otherwise fail with "database is locked" as soon as another one writes in between.

pub mod components;
mod journal;
pub mod lease;
pub mod loader;
pub mod machines;
pub mod personality;
pub mod posts;
pub mod seal;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::{Any, AnyPool, Transaction};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::error::{Error, Kind, OrFail, Result};

#[derive(Clone)]
pub struct Db {
    folder: Arc<Path>,
    pool: AnyPool,
    checkpoints: Arc<Checkpoints>,
}

impl Db {
    /// Opens the database in `dir` (made where missing) and brings its schema up to date.
    pub async fn open(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)
            .or_fail(Kind::Config, "store.open", || format!("cannot make the state directory {}", dir.display()))?;
        Self::connect(dir, &format!("sqlite://{}?mode=rwc", dir.join("rackline.db").display())).await
    }

    /// Opens the database of an appliance that may be running, for looking only: nothing is made, and the schema stays.
    pub async fn open_to_read(dir: &Path) -> Result<Self> {
        sqlx::any::install_default_drivers();
        let url = format!("sqlite://{}?mode=ro", dir.join("rackline.db").display());
        let fail = || format!("cannot read the database {url}");
        let options: AnyConnectOptions = url.parse().or_fail(Kind::Config, "store.open", fail)?;
        let pool = AnyPoolOptions::new().max_connections(1).acquire_timeout(Duration::from_secs(10));
        let pool = pool.connect_with(options).await.or_fail(Kind::Config, "store.open", fail)?;
        Ok(Self { folder: dir.into(), checkpoints: Arc::new(Checkpoints::start(pool.clone())), pool })
    }

    async fn connect(folder: &Path, url: &str) -> Result<Self> {
        sqlx::any::install_default_drivers();
        let fail = || format!("cannot open the database {url}");
        let options: AnyConnectOptions = url.parse().or_fail(Kind::Config, "store.open", fail)?;
        let pool = AnyPoolOptions::new()
            .max_connections(8)
            .acquire_timeout(Duration::from_secs(10))
            .after_connect(|connection, _| {
                Box::pin(async move {
                    use sqlx::Executor;
                    connection
                        .execute(
                            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 10000; \
                             PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = 0",
                        )
                        .await
                        .map(|_| ())
                })
            })
            .connect_with(options)
            .await
            .or_fail(Kind::Config, "store.open", fail)?;
        sqlx::migrate!("src/store/migrations/sqlite").run(&pool).await.map_err(|e| match e {
            sqlx::migrate::MigrateError::VersionMissing(version) => Error::config(
                "store.newer",
                format!("the database has schema step {version}, which this release does not know"),
            )
            .hint("start the newer release again, or restore the backup made before the upgrade"),
            other => Error::config("store.migrate", "the database schema cannot be brought up to date").because(other),
        })?;
        let checkpoints = Arc::new(Checkpoints::start(pool.clone()));
        Ok(Self { folder: folder.into(), pool, checkpoints })
    }

    /// The state directory, for what is kept beside the database.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// For reading; each statement sees the last committed state.
    pub fn read(&self) -> &AnyPool {
        &self.pool
    }

    /// For one statement that writes: a transaction of its own, durable when it returns.
    pub fn statement(&self) -> &AnyPool {
        self.checkpoints.written.notify_one();
        &self.pool
    }

    /// A transaction that holds the write lock from its start. Committed means on disk.
    pub async fn write(&self) -> Result<Transaction<'static, Any>> {
        self.checkpoints.written.notify_one();
        self.pool.begin_with("BEGIN IMMEDIATE").await.or_fail(
            Kind::Internal,
            "store.write",
            || "the database does not take writes",
        )
    }
}

/// Moves what was committed from the write-ahead log into the database, beside the writers: SQLite would do it within
/// whichever commit comes next, and the machine that waits for that one would wait for it too.
struct Checkpoints {
    written: Arc<Notify>,
    task: AbortHandle,
}

/// From a write to the checkpoint that takes it over.
const CHECKPOINT: Duration = Duration::from_secs(1);
/// Pages in the log (4 KiB each) past which writers wait until it starts anew.
const MAX_LOG: i64 = 16 * 1024;

impl Checkpoints {
    fn start(pool: AnyPool) -> Self {
        let written = Arc::new(Notify::new());
        let bell = written.clone();
        let task = tokio::spawn(async move {
            loop {
                bell.notified().await;
                tokio::time::sleep(CHECKPOINT).await;
                // Columns: blocked, pages in the log, pages taken over.
                let done =
                    sqlx::query_as::<_, (i64, i64, i64)>("PRAGMA wal_checkpoint(PASSIVE)").fetch_one(&pool).await;
                let full = done.as_ref().is_ok_and(|(_, pages, _)| *pages > MAX_LOG);
                let done = match full {
                    true => sqlx::query("PRAGMA wal_checkpoint(RESTART)").execute(&pool).await.map(|_| ()),
                    false => done.map(|_| ()),
                };
                if let Err(e) = done {
                    tracing::warn!(error = %e, "the database's log could not be taken over; it is tried again");
                }
            }
        });
        Self { written, task: task.abort_handle() }
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Holds the state directory for this process until the file is dropped: two appliances on one database would both carry
/// out what is in the outbox. The kernel lets go of it however the process ends.
pub fn lock(dir: &Path) -> Result<std::fs::File> {
    let path = dir.join("rackline.lock");
    let failed = || format!("cannot use the state directory {}", dir.display());
    std::fs::create_dir_all(dir).or_fail(Kind::Config, "store.lock", failed)?;
    let file = std::fs::File::create(&path).or_fail(Kind::Config, "store.lock", failed)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::config(
            "store.locked",
            format!("another appliance runs on the state directory {}", dir.display()),
        )
        .hint(format!("stop it, or give this one its own site.state: `fuser {}` names it", path.display()))),
        Err(e) => Err(Error::config("store.lock", failed()).because(e)),
    }
}

/// A failed statement: ours or the disk's, never the caller's.
pub fn failed(e: sqlx::Error) -> Error {
    Error::internal("store.statement", "the database refused a statement")
        .because(e)
        .hint("is the disk full or read-only? see the log for the cause")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn opens_twice_and_keeps_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..2 {
            let db = Db::open(dir.path()).await.unwrap();
            let mut tx = db.write().await.unwrap();
            sqlx::query("INSERT INTO secret (name, sealed) VALUES ($1, $2)")
                .bind(format!("s{round}"))
                .bind(vec![1u8])
                .execute(&mut *tx)
                .await
                .unwrap();
            tx.commit().await.unwrap();
            let (count,): (i64,) = sqlx::query_as("SELECT COUNT(*) FROM secret").fetch_one(db.read()).await.unwrap();
            assert_eq!(count, round + 1);
        }
    }

    #[test]
    fn a_state_directory_has_one_appliance() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert_eq!(lock(dir.path()).unwrap_err().code(), "store.locked");
        drop(held);
        lock(dir.path()).unwrap();
    }

    #[tokio::test]
    async fn a_newer_schema_is_refused_with_a_clear_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(dir.path()).await.unwrap();
        sqlx::query(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES (9999, 'later', TRUE, X'00', 0)",
        )
        .execute(db.read())
        .await
        .unwrap();
        assert_eq!(Db::open(dir.path()).await.err().unwrap().code(), "store.newer");
    }
}
