//! Swarms: a member's report, answered with its plan; what is seen of them; what of it goes into a machine's timeline.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, State};
use axum::http::HeaderMap;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::agent::{allowed, parsed};
use crate::engine::{About, Engine};
use crate::error::{Error, Result};
use crate::httpd::Reached;
use crate::lifecycle::{Event, Machine};
use crate::link::{SwarmPlan, SwarmReport};
use crate::machine::MachineId;
use crate::swarm::plan::Note;
use crate::swarm::tracker::{Happened, SwarmList, Tracker, Who};

/// Of one report: some hundred addresses with their counts.
const MAX_REPORT: usize = 64 << 10;
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
    let known = s
        .engine
        .machine(machine)
        .ok_or_else(|| Error::conflict("agent.unknown", "no machine has this id any more").hint("say hello again"))?;
    let who = Who { machine, rack: rack_of(&known).into(), address: peer.ip().to_canonical(), reached };
    Ok(Json(s.tracker.report(&who, &report)?))
}

/// Where the machine stands, as listed or as its switch port suggests; else the switch stands for the rack.
fn rack_of(machine: &Machine) -> &str {
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
