//! Firmware and settings: which baselines and bundles there are, and what a machine would need.

use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};

use super::{Failure, Shared};
use crate::firmware::{Bundle, Plan};
use crate::lifecycle::Baseline;

/// All that the appliance has.
#[derive(Debug, Serialize, Deserialize)]
pub struct Stock {
    /// Whether machines are brought to their baselines, or only looked at.
    pub apply: bool,
    pub baselines: Vec<BaselineView>,
    pub bundles: Vec<Bundle>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct BaselineView {
    pub name: String,
    pub vendor: String,
    pub models: Vec<String>,
    pub required: bool,
    /// `BIOS at least 1.10.2`, `power-profile performance`.
    pub wants: Vec<String>,
}

/// A machine's firmware and settings.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineFirmware {
    /// What would have to be done now, from a look at the machine; `None` where there is no baseline for its model.
    pub plan: Option<Plan>,
    /// Whether that is done when it is commissioned, or only told.
    #[serde(default)]
    pub apply: bool,
    /// What came of its last commissioning, or what is being done now.
    pub last: Option<Baseline>,
}

pub async fn stock(State(s): State<Shared>) -> Result<Json<Stock>, Failure> {
    let depot = s.engine.firmware();
    let view = |b: &crate::firmware::Baseline| BaselineView {
        name: b.name.clone(),
        vendor: b.vendor.clone(),
        models: b.models.clone(),
        required: b.required,
        wants: b.wants(),
    };
    let baselines = depot.baselines()?.all().iter().map(view).collect();
    Ok(Json(Stock { apply: depot.apply, baselines, bundles: depot.bundles().list()? }))
}

pub async fn machine(State(s): State<Shared>, Path(name): Path<String>) -> Result<Json<MachineFirmware>, Failure> {
    let machine = s.engine.find(&name)?;
    let plan = s.engine.firmware_plan(&machine).await?;
    Ok(Json(MachineFirmware { plan, apply: s.engine.firmware().apply, last: machine.baseline.clone() }))
}
