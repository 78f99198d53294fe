//! Where parts are and have been.

use axum::Json;
use axum::extract::{Path, State};

use super::{Failure, Shared};
use crate::engine::parts::StayView;
use crate::error::Error;

pub async fn of_machine(State(s): State<Shared>, Path(name): Path<String>) -> Result<Json<Vec<StayView>>, Failure> {
    let machine = s.engine.find(&name)?;
    Ok(Json(s.engine.parts_of(machine.id).await?))
}

pub async fn way(State(s): State<Shared>, Path(serial): Path<String>) -> Result<Json<Vec<StayView>>, Failure> {
    let stays = s.engine.way_of_part(&serial).await?;
    if stays.is_empty() {
        return Err(Error::not_found("component.unknown", format!("no inventory had a part {serial:?}"))
            .hint("a serial number as `rackline machine components NAME` shows it; of a NIC the MAC address")
            .into());
    }
    Ok(Json(stays))
}
