//! Machines: see them, steer them.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::sse::{Event as Sse, KeepAlive, Sse as Stream};
use futures::StreamExt;
use serde::Deserialize;
use tokio_stream::wrappers::BroadcastStream;

use super::view::{
    BurnRequest, BurnView, DeployRequest, EventView, MachineList, MachineView, PortView, PowerRequest, StageTime,
    Waiting,
};
use super::{Failure, Shared};
use crate::engine::{About, Engine};
use crate::error::{Error, Result};
use crate::judge::cohort::CohortView;
use crate::lifecycle::{BurnIn, Event, Machine, Order, State as Lifecycle};
use crate::machine::select_target;
use crate::role::{disks, plan};

/// Events in one answer.
const EVENTS: u32 = 1000;
/// Keys in one order, and bytes in one key: an RSA key of 16 KiB bits stays below.
const MAX_KEYS: usize = 64;
const MAX_KEY: usize = 4096;

/// The outside's view of a machine. `whole`: with inventory, checks and passport.
pub fn view_of(engine: &Engine, m: &Machine, whole: bool) -> MachineView {
    let (problem, passport) = match &m.state {
        Lifecycle::Broken { problem, .. } => (Some(problem.clone()), None),
        Lifecycle::Delivered { passport, .. } => (None, Some(passport.clone())),
        _ => (None, None),
    };
    MachineView {
        id: m.id,
        name: m.name.clone(),
        serial: m.serial.clone(),
        place: m.place.clone(),
        macs: m.macs.iter().copied().collect(),
        ports: m
            .seen_on
            .iter()
            .map(|(mac, seen)| PortView { mac: *mac, switch: seen.at.switch.clone(), port: seen.at.port.clone() })
            .collect(),
        suggested_place: m.suggested_place().cloned(),
        cabling: m.cabling(),
        firmware: m.arch.map(|a| a.firmware()),
        state: m.state.name().to_owned(),
        since: m.entered,
        waiting: m.waiting().map(|w| Waiting { reason: w.reason, deadline: w.deadline }),
        progress: engine.progress(m.id),
        role: m.order.as_ref().map(|o| o.role.clone()),
        hostname: m.order.as_ref().map(|o| o.hostname.clone()),
        address: m.address,
        problem,
        times: m
            .times
            .iter()
            .map(|t| StageTime { state: t.state.clone(), seconds: t.millis as f64 / 1000.0 })
            .collect(),
        burn: m.burn.as_ref().map(burn_view),
        inventory: m.inventory.as_deref().filter(|_| whole).cloned(),
        checks: if whole { m.checks.clone() } else { Vec::new() },
        recheck: m.recheck.clone().filter(|_| whole),
        measured: if whole { m.measured.clone() } else { Vec::new() },
        findings: m.findings.clone(),
        passport: passport.filter(|_| whole),
    }
}

fn burn_view(burn: &BurnIn) -> BurnView {
    BurnView {
        profile: burn.profile.name.clone(),
        began: burn.began,
        ended: burn.ended,
        stopped: burn.stopped,
        tests: burn.profile.tests().len(),
        done: burn.done.clone(),
        restarts: burn.restarts,
    }
}

pub async fn list(State(s): State<Shared>) -> Json<MachineList> {
    Json(MachineList { machines: s.engine.machines().iter().map(|m| view_of(&s.engine, m, false)).collect() })
}

pub async fn show(State(s): State<Shared>, Path(name): Path<String>) -> Result<Json<MachineView>, Failure> {
    let machine = s.engine.find(&name)?;
    Ok(Json(view_of(&s.engine, &machine, true)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct After {
    #[serde(default)]
    after: u64,
}

pub async fn events(
    State(s): State<Shared>,
    Path(name): Path<String>,
    Query(query): Query<After>,
) -> Result<Json<Vec<EventView>>, Failure> {
    let machine = s.engine.find(&name)?;
    let recorded = s.engine.db().events(machine.id, query.after, EVENTS).await?;
    let views = recorded.into_iter().map(|r| EventView {
        sequence: r.sequence,
        at: r.at,
        kind: r.event.kind().to_owned(),
        text: r.event.sentence(),
        body: serde_json::to_value(&r.event).unwrap_or_default(),
    });
    Ok(Json(views.collect()))
}

/// A body that is not what it should be, as a problem like any other.
fn body<T>(json: std::result::Result<Json<T>, JsonRejection>) -> Result<T> {
    json.map(|Json(body)| body).map_err(|e| {
        Error::input("request.body", e.body_text())
            .hint("the roles are kvm, docker and ovs; see `rackline machine deploy --help`")
    })
}

pub async fn deploy(
    State(s): State<Shared>,
    Path(name): Path<String>,
    request: std::result::Result<Json<DeployRequest>, JsonRejection>,
) -> Result<Json<MachineView>, Failure> {
    let machine = s.engine.find(&name)?;
    let request = body(request)?;
    let keys: Vec<String> = s.ssh_keys.iter().cloned().chain(request.ssh_keys).collect();
    if keys.len() > MAX_KEYS || keys.iter().any(|k| k.len() > MAX_KEY || k.contains(['\n', '\r', '\0'])) {
        return Err(Error::input("order.keys", "an SSH key is not one line, or there are too many").into());
    }
    let template = s.roles.of(&request.role)?;
    s.engine.declared(&template.setup.checks)?;
    let image = request.image.unwrap_or(template.image);
    let catalogue = s.library.current();
    let found = catalogue.resolve(&image)?;
    if !request.role.all_in(&found.manifest.roles) {
        return Err(Error::input(
            "order.image",
            format!("the image {image} is not made for the role {}", request.role),
        )
        .hint("`rackline image list` shows the roles of each image")
        .into());
    }
    // Where the inventory is not known yet, the agent looks before it writes.
    if let Some(inventory) = machine.inventory.as_ref().filter(|_| !template.setup.storage.is_empty()) {
        let system = select_target(&inventory.disks, &request.target, found.manifest.disk_size)?;
        let assigned = disks::assign(&template.setup.storage, &inventory.disks, system)?;
        plan::fits(&template.setup.storage, &assigned)?;
    }
    let order = Order {
        role: request.role,
        image_name: format!("{} {}", found.manifest.name, found.manifest.release),
        manifest: found.digest,
        hostname: match request.hostname {
            Some(hostname) => hostname,
            None => machine.name.parse()?,
        },
        target: request.target,
        ssh_keys: keys,
        compare_with_dd: request.compare_with_dd,
        setup: template.setup,
    };
    tell(&s, &machine, Event::Ordered(order)).await
}

pub async fn release(State(s): State<Shared>, Path(name): Path<String>) -> Result<Json<MachineView>, Failure> {
    let machine = s.engine.find(&name)?;
    tell(&s, &machine, Event::ReleaseRequested).await
}

pub async fn retry(State(s): State<Shared>, Path(name): Path<String>) -> Result<Json<MachineView>, Failure> {
    let machine = s.engine.find(&name)?;
    tell(&s, &machine, Event::RetryRequested).await
}

/// The checks are run again; the results are in the machine's view once they are there.
pub async fn check(State(s): State<Shared>, Path(name): Path<String>) -> Result<Json<MachineView>, Failure> {
    let machine = s.engine.find(&name)?;
    tell(&s, &machine, Event::CheckRequested).await
}

pub async fn retire(State(s): State<Shared>, Path(name): Path<String>) -> Result<Json<MachineView>, Failure> {
    let machine = s.engine.find(&name)?;
    tell(&s, &machine, Event::RetireRequested).await
}

pub async fn burn(
    State(s): State<Shared>,
    Path(name): Path<String>,
    request: std::result::Result<Json<BurnRequest>, JsonRejection>,
) -> Result<Json<MachineView>, Failure> {
    let machine = s.engine.find(&name)?;
    let request = body(request)?;
    let wanted = s.engine.burn_in(&request.profile, request.overwrite)?;
    tell(&s, &machine, wanted).await
}

pub async fn stop_burn(State(s): State<Shared>, Path(name): Path<String>) -> Result<Json<MachineView>, Failure> {
    let machine = s.engine.find(&name)?;
    tell(&s, &machine, Event::BurnInStopped).await
}

pub async fn power(
    State(s): State<Shared>,
    Path(name): Path<String>,
    request: std::result::Result<Json<PowerRequest>, JsonRejection>,
) -> Result<Json<MachineView>, Failure> {
    let machine = s.engine.find(&name)?;
    let action = body(request)?.action.parse()?;
    tell(&s, &machine, Event::PowerRequested { action }).await
}

async fn tell(s: &Shared, machine: &Machine, event: Event) -> Result<Json<MachineView>, Failure> {
    s.engine.submit(About::Machine(machine.id), event).await?;
    let machine = s.engine.find(&machine.id.to_string())?;
    Ok(Json(view_of(&s.engine, &machine, false)))
}

pub async fn cohorts(State(s): State<Shared>) -> Json<Vec<CohortView>> {
    Json(s.engine.cohort_views())
}

pub async fn images(State(s): State<Shared>) -> Result<Json<serde_json::Value>, Failure> {
    let catalogue = s.library.current();
    let views = catalogue.images.iter().map(|i| {
        serde_json::json!({
            "name": i.manifest.name, "release": i.manifest.release, "manifest": i.digest, "roles": i.manifest.roles,
            "disk_bytes": i.manifest.disk_size, "used_bytes": i.manifest.used_bytes, "data_bytes": i.manifest.data_size,
        })
    });
    Ok(Json(views.collect()))
}

/// Server-Sent Events: one `machine` event with the machine's view for each change; a listener that is too slow gets
/// `missed` and reads the list again.
pub async fn changes(
    State(s): State<Shared>,
) -> (StatusCode, Stream<impl futures::Stream<Item = Result<Sse, Infallible>>>) {
    let engine = s.engine.clone();
    let stream = BroadcastStream::new(s.engine.changes()).filter_map(move |change| {
        let event = match change {
            Ok(id) => engine
                .machine(id)
                .and_then(|m| Sse::default().event("machine").json_data(view_of(&engine, &m, false)).ok()),
            Err(_) => Some(Sse::default().event("missed").data("read the list again")),
        };
        std::future::ready(event.map(Ok))
    });
    (StatusCode::OK, Stream::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))))
}
