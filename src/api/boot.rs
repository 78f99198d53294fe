//! `GET /api/v1/boot`: how the boot services fare. `GET /api/v1/boot/explain/{mac}?arch=…`: what this machine would get now,
//! and why. Neither changes anything.

use axum::Json;
use axum::extract::{Path, Query, State};
use serde::Deserialize;

use super::{Failure, Shared};
use crate::boot::explain::Explanation;
use crate::boot::monitor::Status;
use crate::engine;
use crate::error::{Error, Result};
use crate::machine::{ClientArch, MacAddr};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct As {
    arch: Option<String>,
}

pub async fn status(State(s): State<Shared>) -> Json<Status> {
    let mut status = s.monitor.status();
    let torrents = s.torrents.as_ref().map(|torrents| torrents.snapshot()).unwrap_or_default();
    status.counters.extend(s.web.snapshot().into_iter().chain(torrents).map(|(name, n)| (name.to_owned(), n)));
    Json(status)
}

pub async fn explain(
    State(s): State<Shared>,
    Path(mac): Path<String>,
    Query(query): Query<As>,
) -> Result<Json<Explanation>, Failure> {
    let mac: MacAddr = mac.parse()?;
    let arch = query.arch.map(|arch| {
        serde_json::from_value::<ClientArch>(arch.clone().into()).map_err(|_| {
            Error::input("boot.arch", format!("{arch:?} is no architecture"))
                .hint("bios, uefi-ia32, uefi-x64, uefi-arm64, http-ia32, http-x64 or http-arm64")
        })
    });
    Ok(Json(s.boot.explain(engine::now(), mac, arch.transpose()?)?))
}
