//! The agent link: see `crate::link` for the words. Each request but the manifest and data of an image shows the token of
//! its machine; images are public by digest, signed, and hold no secrets.

use std::net::SocketAddr;
use std::path;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use serde::Deserialize;

use super::{Failure, Shared};
use crate::engine::{About, Engine};
use crate::error::{Error, Result};
use crate::httpd;
use crate::image::{Entry, Library};
use crate::lifecycle::Event;
use crate::link::{self, Hello, Issued, Mode, Outcome, POLL_SECONDS, Progress, Report, Welcome};
use crate::machine::{Digest, MachineId};

/// MAC addresses in one hello: a server with 16 ports and its virtual functions stays below.
const MAX_MACS: usize = 256;

pub(super) fn allowed(engine: &Engine, headers: &HeaderMap, machine: MachineId) -> Result<()> {
    let token =
        headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
    match token {
        Some(token) if engine.token_fits(machine, token) => Ok(()),
        _ => Err(Error::refused("agent.token", "the token does not belong to this machine")
            .hint("boot the machine from the network again: the boot script carries its token")),
    }
}

pub async fn hello(
    State(s): State<Shared>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: std::result::Result<Json<Hello>, JsonRejection>,
) -> Result<Json<Welcome>, Failure> {
    let hello = parsed(body)?;
    allowed(&s.engine, &headers, hello.machine)?;
    if hello.version != link::VERSION {
        return Err(Error::refused(
            "agent.version",
            format!("the agent speaks version {} of the agent link, the appliance {}", hello.version, link::VERSION),
        )
        .hint("boot it from the network again, or reinstall the agent of this release")
        .into());
    }
    let mut macs = hello.macs;
    macs.truncate(MAX_MACS);
    let event = Event::Hello {
        mode: hello.mode,
        boot_id: hello.boot_id,
        serial: hello.serial,
        uuid: hello.uuid,
        macs,
        agent_version: hello.agent_version.chars().take(64).collect(),
        address: Some(peer.ip()),
        arch: None,
        name: None,
        seen_on: Default::default(),
    };
    let id = s.engine.submit(About::Agent(hello.machine), event).await?;
    s.engine.want_burn_in(id).await?;
    let machine = s.engine.find(&id.to_string())?;
    Ok(Json(Welcome { machine: id, name: machine.name.clone(), token: s.engine.token(id) }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct After {
    after: Option<u64>,
}

pub async fn order(
    State(s): State<Shared>,
    Path(machine): Path<MachineId>,
    Query(query): Query<After>,
    headers: HeaderMap,
) -> Result<Json<Issued>, Failure> {
    allowed(&s.engine, &headers, machine)?;
    let known = s.engine.machine(machine).and_then(|m| m.agent_mode());
    let mode = known.ok_or_else(|| {
        Error::not_found("agent.unknown", "no agent of this machine has said hello since it booted")
            .hint("say hello again")
    })?;
    let patience = Duration::from_secs(POLL_SECONDS);
    Ok(Json(s.engine.order(machine, mode, query.after, patience).await?))
}

pub async fn progress(
    State(s): State<Shared>,
    Path(machine): Path<MachineId>,
    headers: HeaderMap,
    body: std::result::Result<Json<Progress>, JsonRejection>,
) -> Result<StatusCode, Failure> {
    allowed(&s.engine, &headers, machine)?;
    s.engine.set_progress(machine, parsed(body)?);
    Ok(StatusCode::NO_CONTENT)
}

pub async fn report(
    State(s): State<Shared>,
    Path(machine): Path<MachineId>,
    headers: HeaderMap,
    body: std::result::Result<Json<Report>, JsonRejection>,
) -> Result<StatusCode, Failure> {
    allowed(&s.engine, &headers, machine)?;
    let Report { number, outcome } = parsed(body)?;
    // Only the installed system can speak for itself, only the RAM system of the disks.
    let mode = s.engine.machine(machine).and_then(|m| m.agent_mode());
    let fits = match outcome {
        Outcome::Checked { .. } => mode == Some(Mode::Resident),
        Outcome::Failed(_) | Outcome::Leaving => true,
        _ => mode == Some(Mode::Ram),
    };
    if !fits {
        return Err(Error::conflict("agent.mode", "this report does not fit where the agent runs").into());
    }
    s.engine.submit(About::Machine(machine), Event::Reported { number, outcome, findings: Vec::new() }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn manifest(
    State(s): State<Shared>,
    Path(digest): Path<Digest>,
    request: Request,
) -> Result<Response, Failure> {
    Ok(httpd::respond(&request, &image(&s, digest)?.signed))
}

pub async fn data(State(s): State<Shared>, Path(digest): Path<Digest>, request: Request) -> Result<Response, Failure> {
    Ok(httpd::respond(&request, &image(&s, digest)?.data))
}

/// The file that is served under this path of a URL.
pub fn image_file(library: &Library, path: &str) -> Option<path::PathBuf> {
    let (digest, file) = path.strip_prefix("/images/")?.split_once('/')?;
    let catalogue = library.current();
    let image = catalogue.by_digest(digest.parse().ok()?)?;
    match file {
        "manifest" => Some(image.signed.clone()),
        "data" => Some(image.data.clone()),
        _ => None,
    }
}

fn image(s: &Shared, digest: Digest) -> Result<Entry> {
    s.library.current().by_digest(digest).cloned().ok_or_else(|| {
        Error::not_found("image.unknown", format!("there is no image {digest}"))
            .hint("`rackline image list` shows them")
    })
}

pub(super) fn parsed<T>(body: std::result::Result<Json<T>, JsonRejection>) -> Result<T> {
    body.map(|Json(body)| body).map_err(|e| Error::input("request.body", e.body_text()))
}
