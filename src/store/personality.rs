//! What was learnt of each kind of BMC, as JSON: one row a vendor, product and firmware. A hint; what is lost is learnt again.

use sqlx::Row as _;

use super::{Db, failed};
use crate::error::Result;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub vendor: String,
    pub product: String,
    pub firmware: String,
    pub body: String,
}

/// Kinds that are kept, the last to change first: names come from the network.
const LIMIT: i64 = 2000;

pub async fn load(db: &Db) -> Result<Vec<Row>> {
    let rows =
        sqlx::query("SELECT vendor, product, firmware, body FROM bmc_personality ORDER BY vendor, product, firmware")
            .fetch_all(db.read())
            .await
            .map_err(failed)?;
    let text = |row: &sqlx::any::AnyRow, column: &str| row.try_get::<String, _>(column).map_err(failed);
    let read = |row| {
        Ok(Row {
            vendor: text(row, "vendor")?,
            product: text(row, "product")?,
            firmware: text(row, "firmware")?,
            body: text(row, "body")?,
        })
    };
    rows.iter().map(read).collect()
}

/// In one transaction; a row that is there is replaced.
pub async fn save(db: &Db, rows: &[Row]) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let at = jiff::Timestamp::now().as_millisecond();
    let mut tx = db.write().await?;
    for row in rows {
        sqlx::query(
            "INSERT INTO bmc_personality (vendor, product, firmware, at, body) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (vendor, product, firmware) DO UPDATE SET at = excluded.at, body = excluded.body",
        )
        .bind(&row.vendor)
        .bind(&row.product)
        .bind(&row.firmware)
        .bind(at)
        .bind(&row.body)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
    }
    sqlx::query("DELETE FROM bmc_personality WHERE at < (SELECT MIN(at) FROM (SELECT at FROM bmc_personality ORDER BY at DESC LIMIT $1) newest)")
        .bind(LIMIT)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
    tx.commit().await.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(firmware: &str, body: &str) -> Row {
        Row { vendor: "Dell".into(), product: "256".into(), firmware: firmware.into(), body: body.into() }
    }

    #[tokio::test]
    async fn each_firmware_has_its_own_row_and_the_last_word_counts() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(dir.path()).await.unwrap();
        save(&db, &[]).await.unwrap();
        save(&db, &[row("2.92", "{}"), row("6.10", "{}")]).await.unwrap();
        save(&db, &[row("2.92", "{\"boot\":1}")]).await.unwrap();
        drop(db);
        let db = Db::open(dir.path()).await.unwrap();
        assert_eq!(load(&db).await.unwrap(), [row("2.92", "{\"boot\":1}"), row("6.10", "{}")]);
    }
}
