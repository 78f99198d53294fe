//! BMCs: what those of each kind were found to do, and those that asked for an address.

use axum::Json;
use axum::extract::State;

use super::Shared;
use crate::engine::found::FoundBmc;
use crate::engine::learn::Known;

pub async fn personalities(State(s): State<Shared>) -> Json<Vec<Known>> {
    Json(s.engine.personalities())
}

pub async fn found(State(s): State<Shared>) -> Json<Vec<FoundBmc>> {
    Json(s.engine.found_bmcs())
}
