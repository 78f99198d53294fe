//! Switches: what they asked for and fetched.

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::Shared;

pub async fn list(State(s): State<Shared>) -> Json<impl Serialize> {
    Json(s.engine.switches().report())
}
