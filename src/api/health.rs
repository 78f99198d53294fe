//! What a machine's BMC said at the last look of the sweep.

use axum::Json;
use axum::extract::{Path, State};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Failure, Shared};
use crate::engine::watch::Health;
use crate::error::Error;

/// `GET /api/v1/machines/{machine}/health`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HealthView {
    /// Since the last look that succeeded; `None` where none did.
    pub age_seconds: Option<i64>,
    #[serde(flatten)]
    pub health: Health,
}

pub async fn show(State(s): State<Shared>, Path(name): Path<String>) -> Result<Json<HealthView>, Failure> {
    let machine = s.engine.find(&name)?;
    let unseen = || {
        Error::not_found("bmc.unseen", format!("the BMC of {} has not been looked at", machine.name))
            .hint("it takes up to bmc.sweep_seconds after the start; a machine without a BMC address is left out")
    };
    let health = s.engine.health(machine.id).ok_or_else(unseen)?;
    let age_seconds = health.at.map(|at| Timestamp::now().duration_since(at).as_secs().max(0));
    Ok(Json(HealthView { age_seconds, health: health.as_ref().clone() }))
}
