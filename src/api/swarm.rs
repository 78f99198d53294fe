//! Swarms: a member's report, answered with its plan; what is seen of them; what of it goes into a machine's timeline.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::Deserialize;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::agent::{allowed, parsed};
use crate::engine::{About, Engine};
use crate::error::{Error, Result};
use crate::httpd::Reached;
use crate::lifecycle::{Event, Machine, State as Stage};
use crate::link::{Mode, POLL_SECONDS, SwarmPlan, SwarmReport};
use crate::machine::MachineId;
use crate::swarm::plan::Note;
use crate::swarm::tracker::{Happened, Host, SwarmList, Tracker, Who};

/// Of one report: some hundred addresses with their counts.
const MAX_REPORT: usize = 64 << 10;
/// Kept images that are looked at in one question.
const MAX_KEPT: usize = 64;
const TICK: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct Site {
    pub engine: Engine,
    pub tracker: Arc<Tracker>,
}

/// For agents, on the provisioning network, behind [`crate::httpd::Server`].
pub fn agents(site: Site) -> Router {
    Router::new()
        .route("/agent/v1/{machine}/swarm", post(report))
        .route("/agent/v1/{machine}/help", get(help))
        .layer(DefaultBodyLimit::max(MAX_REPORT))
        .with_state(site)
}

/// For people and scripts.
pub fn people(site: Site) -> Router {
    Router::new()
        .route("/api/v1/swarm", get(status))
        .route("/api/v1/swarm/first/{machine}", post(first))
        .with_state(site)
}

async fn report(
    State(s): State<Site>,
    Path(machine): Path<MachineId>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Extension(Reached(reached)): Extension<Reached>,
    headers: HeaderMap,
    body: std::result::Result<Json<SwarmReport>, JsonRejection>,
) -> Result<Json<SwarmPlan>, Failure> {
    allowed(&s.engine, &headers, machine)?;
    let report = parsed(body)?;
    let known = known(&s, machine)?;
    let (rack, host) = (rack_of(&known).into(), known.agent_mode() == Some(Mode::Resident));
    let who = Who { machine, rack, address: peer.ip().to_canonical(), reached, host };
    Ok(Json(s.tracker.report(&who, &report)?))
}

fn known(s: &Site, machine: MachineId) -> Result<Arc<Machine>> {
    let gone = || Error::conflict("agent.unknown", "no machine has this id any more").hint("say hello again");
    s.engine.machine(machine).ok_or_else(gone)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keeps {
    /// Digests with commas between them.
    #[serde(default)]
    kept: String,
}

/// Held open like the question for orders; 204 when nobody needed this host meanwhile.
async fn help(
    State(s): State<Site>,
    Path(machine): Path<MachineId>,
    Query(keeps): Query<Keeps>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    allowed(&s.engine, &headers, machine)?;
    if !s.tracker.wants_hosts() {
        return Err(Error::not_found("swarm.hosts", "installed hosts do not help with images at this site")
            .hint("swarm.hosts_upload_mbit in rackline.toml lets them")
            .into());
    }
    let known = known(&s, machine)?;
    let idle = known.agent_mode() == Some(Mode::Resident) && matches!(known.state, Stage::Delivered { .. });
    let kept: HashSet<_> = keeps.kept.split(',').take(MAX_KEPT).filter_map(|digest| digest.parse().ok()).collect();
    let host = Host { machine, rack: rack_of(&known).into(), kept };
    let wanted = async {
        match idle {
            true => s.tracker.help(&host).await,
            false => std::future::pending().await,
        }
    };
    Ok(match timeout(Duration::from_secs(POLL_SECONDS), wanted).await {
        Ok(help) => Json(help).into_response(),
        Err(_) => StatusCode::NO_CONTENT.into_response(),
    })
}

/// Where the machine stands, as listed or as its switch port suggests; else the switch stands for the rack.
pub(super) fn rack_of(machine: &Machine) -> &str {
    let place = machine.place.as_ref().or_else(|| machine.suggested_place());
    let switch = || machine.seen_on.values().next().map(|seen| seen.at.switch.as_str());
    place.map(|place| place.rack.as_str()).or_else(switch).unwrap_or_default()
}

async fn status(State(s): State<Site>) -> Json<SwarmList> {
    Json(s.tracker.status(|id| name_of(&s.engine, id)))
}

async fn first(State(s): State<Site>, Path(name): Path<String>) -> Result<Json<SwarmList>, Failure> {
    s.tracker.put_first(s.engine.find(&name)?.id)?;
    Ok(status(State(s)).await)
}

fn name_of(engine: &Engine, id: MachineId) -> String {
    engine.machine(id).map_or_else(|| id.to_string(), |m| m.name.clone())
}

/// Until the stop: notices who fell silent, and tells the machines' timelines what happened in their swarms.
pub async fn watch(site: Site, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(TICK)).await.is_some() {
        for happened in site.tracker.tick() {
            for (machine, sentence) in sentences(&happened, |id| name_of(&site.engine, id)) {
                site.engine.tell(About::Machine(machine), Event::Noted { sentence });
            }
        }
    }
}

fn sentences(happened: &Happened, name_of: impl Fn(MachineId) -> String) -> Vec<(MachineId, String)> {
    let image = &happened.image;
    match happened.note {
        Note::Garbage { peer, by } => vec![
            (peer, format!("sent {} data that is not of {image}; no machine fetches from it any more", name_of(by))),
            (by, format!("got data from {} that is not of {image}, and fetches it from others", name_of(peer))),
        ],
        Note::Slow { member } => vec![(
            member,
            format!("is much slower than the machines around it; no other one waits for it to get {image}"),
        )],
        Note::Gone { member } => vec![(member, format!("fell silent while it fetched {image}"))],
        Note::Done { member, from_peers, from_appliance, took } => {
            let sum = from_peers + from_appliance;
            let percent = (from_peers * 100).checked_div(sum).unwrap_or(0);
            let seconds = took as f64 / 1000.0;
            let sentence =
                format!("has all of {image}: {} MiB in {seconds:.0} s, {percent} % from other machines", sum >> 20);
            vec![(member, sentence)]
        }
    }
}
