//! The list of expected machines: taken over whole or not at all, and told as it stands.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Query, State};
use serde::Deserialize;

use super::{Failure, Shared};
use crate::config::expected;
use crate::engine::expected::{ExpectedView, ImportReport};
use crate::error::{Error, Result};

/// 200,000 rows of 300 bytes.
pub const MAX_LIST: usize = 64 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct How {
    #[serde(default)]
    dry_run: bool,
}

pub async fn list(State(s): State<Shared>) -> Json<Vec<ExpectedView>> {
    Json(s.engine.expected())
}

/// The body is the CSV.
pub async fn import(
    State(s): State<Shared>,
    Query(how): Query<How>,
    body: Bytes,
) -> Result<Json<ImportReport>, Failure> {
    let parsing = move || expected::text(body.to_vec()).and_then(|text| expected::parse(&text));
    let list = tokio::task::spawn_blocking(parsing).await;
    let list = list.map_err(|e| Error::internal("expected.parse", "reading the list was cut short").because(e))??;
    Ok(Json(s.engine.import(list, how.dry_run).await?))
}
