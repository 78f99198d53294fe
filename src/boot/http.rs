//! The HTTP part of the boot: the script for iPXE, and the files that it and UEFI firmware load.
//!
//! | request | answer |
//! |---|---|
//! | `GET /boot/ipxe?mac=…&uuid=…&arch=…&again=…` | always 200 and a script: iPXE shows an HTTP error for a moment and goes on to the next boot entry, a script can say what is wrong and ask again |
//! | `GET`, `HEAD /boot/files/NAME` | one of a closed set of files, with ranges; 404 else |
//! | `GET`, `HEAD /boot/loader/MAC/NAME` | a boot file for UEFI HTTP boot (`loader::http`) |
//!
//! Where [`httpd::Server`] stands before the router, it sends the files itself and asks [`Site::file`] for them.

use std::net::SocketAddr;
use std::path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{ConnectInfo, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use serde::Deserialize;
use tracing::{debug, error};

use super::firmware::Files;
use super::loader::Loaders;
use super::script::{Asker, Dialect};
use super::{BootAnswer, Policy, Sighting, Stage};
use crate::error::Result;
use crate::httpd;
use crate::machine::filler::is_filler_uuid;
use crate::machine::{ClientArch, MacAddr};

/// How long the rules may take. iPXE gives an HTTP answer some tens of seconds.
const DECIDE: Duration = Duration::from_secs(10);

/// What the boot pages need.
pub struct Site {
    pub policy: Arc<dyn Policy>,
    pub files: Arc<Files>,
    /// Has the scripts, and is told of every machine that asks for one: whatever loaded it works.
    pub loaders: Arc<Loaders>,
}

impl Site {
    /// The file that is served under this path of a URL.
    pub fn file(&self, path: &str) -> Option<&path::Path> {
        self.files.paths.get(path.strip_prefix("/boot/files/")?).map(path::PathBuf::as_path)
    }
}

pub fn router(site: Arc<Site>) -> Router {
    let loaders = super::loader::http::router(site.loaders.clone());
    Router::new()
        .route("/boot/ipxe", get(script))
        .route("/boot/files/{name}", any(file))
        .with_state(site)
        .merge(loaders)
}

/// As text, since a value that cannot be read must not cost the machine its script.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Asked {
    mac: String,
    uuid: String,
    arch: String,
    /// Of a machine that waits in its script, in the same boot.
    again: String,
}

async fn script(
    State(site): State<Arc<Site>>,
    asked: Result<Query<Asked>, QueryRejection>,
    request: Request,
) -> Response {
    let asked = asked.map(|Query(asked)| asked).unwrap_or_default();
    let arch = serde_json::from_value::<ClientArch>(asked.arch.clone().into()).ok();
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
    let mac = asked.mac.parse::<MacAddr>();
    let answer = match &mac {
        Ok(mac) => {
            let mac = *mac;
            site.loaders.speaks(mac);
            let uuid = asked.uuid.parse().ok().filter(|u| !is_filler_uuid(u));
            let asking = Sighting { mac, uuid, arch, address: peer, stage: Stage::Ipxe, relay: None };
            if asked.again.is_empty() {
                // Where another server gives the addresses, this is all that is seen of a boot.
                site.policy.sighted(asking.clone());
            }
            decide(&site, asking).await
        }
        Err(e) => BootAnswer::Hold { reason: e.to_string() },
    };
    let facts = mac.as_ref().ok().and_then(|mac| site.policy.facts(*mac));
    let name = facts.as_ref().map(|f| f.name.as_str());
    let asker = Asker { mac: mac.unwrap_or(MacAddr([0; 6])), name, arch, dialect: Dialect::Ipxe };
    let scripts = site.loaders.scripts();
    let script = scripts.render(&asker, &answer).or_else(|e| {
        error!(error = ?e, mac = asked.mac, "boot script");
        let reason = format!("the appliance cannot make the boot script: {e}");
        scripts.render(&asker, &BootAnswer::Hold { reason })
    });
    answer_with(script)
}

/// The rules' answer; where they have none, the reason for the machine's console.
async fn decide(site: &Site, asking: Sighting) -> BootAnswer {
    let mac = asking.mac;
    debug!(%mac, "asks for its boot script");
    match tokio::time::timeout(DECIDE, site.policy.boot_answer(asking)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(e)) => {
            error!(error = ?e, %mac, "no boot answer");
            BootAnswer::Hold { reason: e.to_string() }
        }
        Err(_) => {
            error!(%mac, "no boot answer within {} s", DECIDE.as_secs());
            BootAnswer::Hold { reason: "the appliance is too busy to say what to start".into() }
        }
    }
}

fn answer_with(script: Result<String>) -> Response {
    match script {
        // A script holds the machine's token: no cache may keep it. What it loads next is large and on a new connection,
        // which `httpd::Server` can keep to itself.
        Ok(script) => {
            let headers = [
                (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
                (header::CACHE_CONTROL, "no-store"),
                (header::CONNECTION, "close"),
            ];
            (headers, script).into_response()
        }
        Err(e) => {
            error!(error = ?e, "boot script");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn file(State(site): State<Arc<Site>>, Path(name): Path<String>, request: Request) -> Response {
    match site.files.paths.get(&name) {
        Some(path) => httpd::respond(&request, path),
        None => httpd::text(request.method(), StatusCode::NOT_FOUND, "no such boot file\n"),
    }
}
