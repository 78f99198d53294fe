//! Machines, their events and their outbox. Written in one transaction by the engine's turn, read as a whole at start.

use sqlx::{Any, Row, Transaction};

use super::{Db, failed};
use crate::error::{Error, Result};
use crate::lifecycle::{Action, Event, Machine, Millis};
use crate::machine::MachineId;

/// Format of the stored body. A newer release upgrades older rows at start, in [`Db::machines`] and nowhere else.
const FORMAT: i64 = 1;

/// An action that was decided and has not come back yet.
#[derive(Debug, Clone)]
pub struct Pending {
    pub id: i64,
    pub machine: MachineId,
    pub at: Millis,
    pub action: Action,
}

/// An accepted event as it stands in the book.
#[derive(Debug, Clone)]
pub struct Recorded {
    pub sequence: u64,
    pub at: Millis,
    pub event: Event,
}

fn encode<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|e| Error::internal("store.encode", "a row cannot be written as JSON").because(e))
}

fn decode<T: serde::de::DeserializeOwned>(what: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| {
        Error::internal("store.decode", format!("a stored {what} cannot be read"))
            .because(e)
            .hint("was the database written by a newer release? restore the backup made before the upgrade")
    })
}

/// Appends one accepted event.
pub async fn append(tx: &mut Transaction<'static, Any>, machine: &Machine, at: Millis, event: &Event) -> Result<()> {
    sqlx::query("INSERT INTO event (machine, sequence, at, kind, body) VALUES ($1, $2, $3, $4, $5)")
        .bind(machine.id.to_string())
        .bind(machine.sequence as i64)
        .bind(at)
        .bind(event.kind())
        .bind(encode(event)?)
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
    Ok(())
}

/// Writes the state that a turn left the machine in.
pub async fn save(tx: &mut Transaction<'static, Any>, machine: &Machine) -> Result<()> {
    sqlx::query(
        "INSERT INTO machine (id, name, serial, state, sequence, wake_at, format, body) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, serial = excluded.serial, state = excluded.state, \
         sequence = excluded.sequence, wake_at = excluded.wake_at, format = excluded.format, body = excluded.body",
    )
    .bind(machine.id.to_string())
    .bind(&machine.name)
    .bind(machine.serial.as_ref().map(|s| s.to_string()))
    .bind(machine.state.name())
    .bind(machine.sequence as i64)
    .bind(machine.wake_at())
    .bind(FORMAT)
    .bind(encode(machine)?)
    .execute(&mut **tx)
    .await
    .map_err(failed)?;
    Ok(())
}

/// Forgets a machine that turned out to be another one; its events stay in the book under the old id.
pub async fn forget(tx: &mut Transaction<'static, Any>, id: MachineId) -> Result<()> {
    for statement in ["DELETE FROM outbox WHERE machine = $1", "DELETE FROM machine WHERE id = $1"] {
        sqlx::query(statement).bind(id.to_string()).execute(&mut **tx).await.map_err(failed)?;
    }
    Ok(())
}

/// Puts an action into the outbox; the number settles it later.
pub async fn post(tx: &mut Transaction<'static, Any>, machine: MachineId, at: Millis, action: &Action) -> Result<i64> {
    let row = sqlx::query("INSERT INTO outbox (machine, at, body) VALUES ($1, $2, $3) RETURNING id")
        .bind(machine.to_string())
        .bind(at)
        .bind(encode(action)?)
        .fetch_one(&mut **tx)
        .await
        .map_err(failed)?;
    row.try_get(0).map_err(failed)
}

/// Its result is in: the action leaves the outbox.
pub async fn settle(tx: &mut Transaction<'static, Any>, id: i64) -> Result<()> {
    sqlx::query("DELETE FROM outbox WHERE id = $1").bind(id).execute(&mut **tx).await.map_err(failed)?;
    Ok(())
}

impl Db {
    /// All machines, as the last turn left them.
    pub async fn machines(&self) -> Result<Vec<Machine>> {
        let rows = sqlx::query("SELECT format, body FROM machine").fetch_all(self.read()).await.map_err(failed)?;
        rows.iter()
            .map(|row| {
                let format: i64 = row.try_get(0).map_err(failed)?;
                if format > FORMAT {
                    return Err(Error::config("store.newer", format!("a machine is stored in format {format}"))
                        .hint("start the newer release again"));
                }
                decode("machine", row.try_get(1).map_err(failed)?)
            })
            .collect()
    }

    /// Actions that were decided before a stop, oldest first.
    pub async fn pending(&self) -> Result<Vec<Pending>> {
        let rows = sqlx::query("SELECT id, machine, at, body FROM outbox ORDER BY id")
            .fetch_all(self.read())
            .await
            .map_err(failed)?;
        rows.iter()
            .map(|row| {
                let machine: &str = row.try_get(1).map_err(failed)?;
                Ok(Pending {
                    id: row.try_get(0).map_err(failed)?,
                    machine: machine.parse()?,
                    at: row.try_get(2).map_err(failed)?,
                    action: decode("action", row.try_get(3).map_err(failed)?)?,
                })
            })
            .collect()
    }

    /// A machine's events after `after`, oldest first, at most `limit`.
    pub async fn events(&self, machine: MachineId, after: u64, limit: u32) -> Result<Vec<Recorded>> {
        let rows = sqlx::query(
            "SELECT sequence, at, body FROM event WHERE machine = $1 AND sequence > $2 ORDER BY sequence LIMIT $3",
        )
        .bind(machine.to_string())
        .bind(after as i64)
        .bind(i64::from(limit))
        .fetch_all(self.read())
        .await
        .map_err(failed)?;
        rows.iter()
            .map(|row| {
                let sequence: i64 = row.try_get(0).map_err(failed)?;
                Ok(Recorded {
                    sequence: sequence as u64,
                    at: row.try_get(1).map_err(failed)?,
                    event: decode("event", row.try_get(2).map_err(failed)?)?,
                })
            })
            .collect()
    }
}
