//! BMCs: what those of each kind were found to do.

use axum::Json;
use axum::extract::State;

use super::Shared;
use crate::engine::learn::Known;

pub async fn personalities(State(s): State<Shared>) -> Json<Vec<Known>> {
    Json(s.engine.personalities())
}
