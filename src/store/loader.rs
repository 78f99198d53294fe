//! Which boot file worked on which network card, so that a machine is not tried through again after a restart. A hint, not
//! a truth: what is lost here is learnt again, so it is written when there is time and nobody waits for it.

use std::sync::Arc;

use sqlx::Row;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Db, failed};
use crate::error::{Kind, OrFail, Result};
use crate::machine::MacAddr;

/// This file started on this card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Learnt {
    pub mac: MacAddr,
    pub loader: Arc<str>,
}

/// Rows that share one commit, and rows that may wait for it.
const GROUP: usize = 256;
pub const WAITING: usize = 1024;

/// The `limit` rows that were learnt last, oldest first.
pub async fn load(db: &Db, limit: usize) -> Result<Vec<Learnt>> {
    let rows = sqlx::query("SELECT mac, loader FROM boot_loader ORDER BY at DESC, mac LIMIT $1")
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(db.read())
        .await
        .map_err(failed)?;
    let read = |row: &sqlx::any::AnyRow| -> Result<Learnt> {
        let mac: String = row.try_get("mac").map_err(failed)?;
        let loader: String = row.try_get("loader").map_err(failed)?;
        let mac = mac
            .parse()
            .or_fail(Kind::Internal, "store.loader", || format!("the stored MAC address {mac:?} is none"))?;
        Ok(Learnt { mac, loader: loader.into() })
    };
    rows.iter().rev().map(read).collect()
}

/// Writes what arrives until cancelled, and then what still waits. Keeps the `limit` newest rows.
pub async fn write(db: Db, mut arriving: mpsc::Receiver<Learnt>, limit: usize, stop: CancellationToken) {
    let mut group = Vec::with_capacity(GROUP);
    loop {
        let ends = tokio::select! {
            count = arriving.recv_many(&mut group, GROUP) => count == 0,
            () = stop.cancelled() => {
                arriving.close();
                arriving.recv_many(&mut group, WAITING).await;
                true
            }
        };
        if let Err(e) = commit(&db, &group, limit).await {
            warn!(error = ?e, "what boot files work is not stored; it is learnt again");
        }
        group.clear();
        if ends {
            return;
        }
    }
}

async fn commit(db: &Db, group: &[Learnt], limit: usize) -> Result<()> {
    if group.is_empty() {
        return Ok(());
    }
    let mut tx = db.write().await?;
    let at = jiff::Timestamp::now().as_millisecond();
    for learnt in group {
        sqlx::query(
            "INSERT INTO boot_loader (mac, loader, at) VALUES ($1, $2, $3) \
             ON CONFLICT (mac) DO UPDATE SET loader = excluded.loader, at = excluded.at",
        )
        .bind(learnt.mac.to_string())
        .bind(learnt.loader.as_ref())
        .bind(at)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
    }
    sqlx::query(
        "DELETE FROM boot_loader WHERE mac IN (SELECT mac FROM boot_loader ORDER BY at DESC, mac LIMIT 1000000 OFFSET $1)",
    )
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .execute(&mut *tx)
    .await
    .map_err(failed)?;
    tx.commit().await.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learnt(last: u8, loader: &str) -> Learnt {
        Learnt { mac: MacAddr([2, 0, 0, 0, 0, last]), loader: loader.into() }
    }

    #[tokio::test]
    async fn what_was_learnt_is_there_after_a_restart_and_stays_bounded() {
        let dir = tempfile::tempdir().unwrap();
        for (round, limit) in [(0, 100), (1, 3)] {
            let db = Db::open(dir.path()).await.unwrap();
            let (send, receive) = mpsc::channel(WAITING);
            let stop = CancellationToken::new();
            let task = tokio::spawn(write(db, receive, limit, stop.clone()));
            for last in 1..=5 {
                send.send(learnt(last + 5 * round, "snponly.efi")).await.unwrap();
            }
            send.send(learnt(1 + 5 * round, "ipxe.efi")).await.unwrap();
            // The sender lives on, as the boot services' does: the end is the cancellation.
            stop.cancel();
            task.await.unwrap();
            drop(send);
        }
        let rows = load(&Db::open(dir.path()).await.unwrap(), 10).await.unwrap();
        assert_eq!(rows.len(), 3, "only the newest are kept: {rows:?}");
        assert!(rows.iter().all(|r| r.mac.0[5] > 5), "{rows:?}");
        assert!(rows.contains(&learnt(6, "ipxe.efi")), "the later word counts: {rows:?}");
    }
}
