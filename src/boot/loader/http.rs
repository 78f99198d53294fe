//! Boot files over HTTP, for UEFI HTTP boot: `GET`, `HEAD /boot/loader/MAC/NAME`. The MAC address says who fetches, and a
//! loader that fetches another file from beside it (shim) finds that too.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::Loaders;
use crate::machine::MacAddr;

pub fn router(loaders: Arc<Loaders>) -> Router {
    Router::new().route("/boot/loader/{mac}/{name}", get(loader)).with_state(loaders)
}

async fn loader(
    State(loaders): State<Arc<Loaders>>,
    Path((mac, name)): Path<(String, String)>,
    method: Method,
) -> Response {
    let file = loaders.files.memory.get(&name).cloned();
    let (Ok(mac), Some(bytes)) = (mac.parse::<MacAddr>(), file) else {
        return (StatusCode::NOT_FOUND, "no such boot file\n").into_response();
    };
    // Firmware asks for the size by HEAD before it fetches.
    if method == Method::GET {
        loaders.fetched(mac, &name);
    }
    ([(header::CONTENT_TYPE, "application/efi")], bytes).into_response()
}
