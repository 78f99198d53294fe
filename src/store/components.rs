//! Where each part has been: a row for each stay in a machine, found by serial number and by machine without reading others.

use sqlx::{Any, Row as _, Transaction};

use super::{Db, failed};
use crate::error::{Error, Result};
use crate::lifecycle::Millis;
use crate::machine::MachineId;
use crate::machine::component::{Component, ComponentKind};

/// A part in a machine, from an inventory to the last that had it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stay {
    pub part: Component,
    pub machine: MachineId,
    pub since: Millis,
    /// In the last inventory that had it.
    pub seen: Millis,
    /// When it was found to be gone, or elsewhere.
    pub until: Option<Millis>,
}

/// Stays of one part, or of one machine, that are read at once.
const MOST: i64 = 1000;

const COLUMNS: &str = "kind, serial, model, place, machine, since, seen, until";

fn stay(row: &sqlx::any::AnyRow) -> Result<Stay> {
    let text = |at: usize| row.try_get::<String, _>(at).map_err(failed);
    let broken = |what: &str| Error::internal("store.component", format!("a stored part has no {what}"));
    Ok(Stay {
        part: Component {
            kind: ComponentKind::parse(&text(0)?).ok_or_else(|| broken("kind that is known"))?,
            serial: text(1)?,
            model: text(2)?,
            place: text(3)?,
        },
        machine: text(4)?.parse()?,
        since: row.try_get(5).map_err(failed)?,
        seen: row.try_get(6).map_err(failed)?,
        until: row.try_get(7).map_err(failed)?,
    })
}

impl Db {
    /// What is and was in a machine, what is there now first.
    pub async fn stays_in(&self, machine: MachineId) -> Result<Vec<Stay>> {
        let query = format!(
            "SELECT {COLUMNS} FROM component WHERE machine = $1 ORDER BY until IS NOT NULL, until DESC, kind, place LIMIT $2"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(query)).bind(machine.to_string()).bind(MOST);
        rows.fetch_all(self.read()).await.map_err(failed)?.iter().map(stay).collect()
    }

    /// Where parts with this serial number have been, the last first.
    pub async fn stays_of(&self, serial: &str) -> Result<Vec<Stay>> {
        let query = format!("SELECT {COLUMNS} FROM component WHERE serial = $1 ORDER BY since DESC, id DESC LIMIT $2");
        let rows = sqlx::query(sqlx::AssertSqlSafe(query)).bind(serial).bind(MOST);
        rows.fetch_all(self.read()).await.map_err(failed)?.iter().map(stay).collect()
    }
}

/// Takes over what an inventory has: stays that are over end, also those of parts that were in another machine until now.
pub async fn record(
    tx: &mut Transaction<'static, Any>,
    machine: MachineId,
    at: Millis,
    now: &[Component],
) -> Result<()> {
    let id = machine.to_string();
    let query = format!("SELECT {COLUMNS} FROM component WHERE machine = $1 AND until IS NULL");
    let open = sqlx::query(sqlx::AssertSqlSafe(query)).bind(&id).fetch_all(&mut **tx).await.map_err(failed)?;
    let open: Vec<Stay> = open.iter().map(stay).collect::<Result<_>>()?;
    sqlx::query("UPDATE component SET seen = $1 WHERE machine = $2 AND until IS NULL")
        .bind(at)
        .bind(&id)
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
    // Another place is another stay.
    let stays = |part: &Component| open.iter().any(|stay| stay.part == *part);
    for over in open.iter().filter(|stay| !now.contains(&stay.part)) {
        sqlx::query(
            "UPDATE component SET until = $1, seen = $2 \
             WHERE serial = $3 AND kind = $4 AND model = $5 AND machine = $6 AND until IS NULL",
        )
        .bind(at)
        .bind(over.seen)
        .bind(&over.part.serial)
        .bind(over.part.kind.word())
        .bind(&over.part.model)
        .bind(&id)
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
    }
    for part in now.iter().filter(|part| !stays(part)) {
        sqlx::query("UPDATE component SET until = $1 WHERE serial = $2 AND kind = $3 AND model = $4 AND until IS NULL")
            .bind(at)
            .bind(&part.serial)
            .bind(part.kind.word())
            .bind(&part.model)
            .execute(&mut **tx)
            .await
            .map_err(failed)?;
        sqlx::query(
            "INSERT INTO component (kind, serial, model, place, machine, since, seen) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(part.kind.word())
        .bind(&part.serial)
        .bind(&part.model)
        .bind(&part.place)
        .bind(&id)
        .bind(at)
        .bind(at)
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(serial: &str, place: &str) -> Component {
        Component { kind: ComponentKind::Disk, serial: serial.into(), model: "m".into(), place: place.into() }
    }

    #[tokio::test]
    async fn the_way_of_a_part() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(dir.path()).await.unwrap();
        let (one, two) = (MachineId(uuid::Uuid::from_u128(1)), MachineId(uuid::Uuid::from_u128(2)));
        let inventories = [
            (one, 10, vec![disk("S1", "0"), disk("S2", "1")]),
            (one, 20, vec![disk("S1", "0")]),
            (two, 30, vec![disk("S1", "5")]),
        ];
        for (machine, at, parts) in &inventories {
            let mut tx = db.write().await.unwrap();
            record(&mut tx, *machine, *at, parts).await.unwrap();
            tx.commit().await.unwrap();
        }
        let way = |stays: Vec<Stay>| {
            stays.into_iter().map(|s| (s.machine, s.part.place, s.since, s.seen, s.until)).collect::<Vec<_>>()
        };
        assert_eq!(
            way(db.stays_of("S1").await.unwrap()),
            [(two, "5".into(), 30, 30, None), (one, "0".into(), 10, 20, Some(30))]
        );
        assert_eq!(way(db.stays_of("S2").await.unwrap()), [(one, "1".into(), 10, 10, Some(20))]);
        assert_eq!(db.stays_in(one).await.unwrap().len(), 2);
        assert!(db.stays_of("S").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_part_is_found_without_reading_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(dir.path()).await.unwrap();
        for query in [
            "UPDATE component SET until = 1 WHERE serial = 'x' AND kind = 'disk' AND model = 'm' AND until IS NULL",
            "SELECT * FROM component WHERE serial = 'x' ORDER BY since DESC, id DESC",
            "SELECT * FROM component WHERE machine = 'x' AND until IS NULL",
        ] {
            let plan: Vec<(i64, i64, i64, String)> =
                sqlx::query_as(sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {query}")))
                    .fetch_all(db.read())
                    .await
                    .unwrap();
            assert!(plan.iter().any(|step| step.3.contains("USING INDEX")), "{query}: {plan:?}");
            assert!(!plan.iter().any(|step| step.3.starts_with("SCAN")), "{query}: {plan:?}");
        }
    }
}
