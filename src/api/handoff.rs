//! What is handed over: passports, lists for other tools, and how those stand who are told.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, Path, Query, State};
use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::agent::{allowed, parsed};
use super::{Failure, Shared};
use crate::engine::announce::ReceiverView;
use crate::engine::{About, Engine};
use crate::error::{Error, Result};
use crate::handoff::authority::Holder;
use crate::handoff::inventory;
use crate::lifecycle::{Event, Machine, State as Lifecycle};
use crate::link::{CertificateRequest, HostCertificate, Mode};
use crate::machine::MachineId;

/// `GET /api/v1/passport/key`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyView {
    pub key: String,
    pub id: String,
}

/// The signed file of a delivered host.
pub fn passport_of(engine: &Engine, name: &str) -> Result<Value> {
    let machine = engine.find(name)?;
    match &machine.state {
        Lifecycle::Delivered { passport, .. } => Ok(passport.clone()),
        state => {
            Err(Error::not_found("passport.none", format!("{} is {}, and has no passport", machine.name, state.name()))
                .hint("a machine has one from its delivery to its release; its timeline keeps those before"))
        }
    }
}

pub async fn passport(State(s): State<Shared>, Path(name): Path<String>) -> Result<Json<Value>, Failure> {
    Ok(Json(passport_of(&s.engine, &name)?))
}

pub async fn key(State(s): State<Shared>) -> Json<KeyView> {
    let key = s.engine.public_key();
    Json(KeyView { key: key.to_string(), id: key.id().to_string() })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct All {
    #[serde(default)]
    all: bool,
}

fn borrowed(machines: &[Arc<Machine>]) -> Vec<&Machine> {
    machines.iter().map(Arc::as_ref).collect()
}

pub async fn ansible(State(s): State<Shared>, Query(query): Query<All>) -> Json<Value> {
    Json(inventory::ansible(&borrowed(&s.engine.machines()), query.all))
}

pub async fn ansible_host(State(s): State<Shared>, Path(host): Path<String>) -> Result<Json<Value>, Failure> {
    let found = inventory::ansible_host(&borrowed(&s.engine.machines()), &host);
    let unknown = || {
        Error::not_found("inventory.host", format!("there is no host {host:?}"))
            .hint("`rackline inventory --list` names them")
    };
    Ok(Json(found.ok_or_else(unknown)?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// That of node_exporter where none is named.
    #[serde(default = "node_exporter")]
    port: u16,
}

fn node_exporter() -> u16 {
    9100
}

pub async fn prometheus(State(s): State<Shared>, Query(query): Query<Port>) -> Json<Value> {
    Json(inventory::prometheus(&borrowed(&s.engine.machines()), query.port))
}

pub async fn words(
    State(s): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<BTreeMap<String, String>>, Failure> {
    Ok(Json(inventory::words(&*s.engine.find(&name)?)))
}

pub async fn receivers(State(s): State<Shared>) -> Result<Json<Vec<ReceiverView>>, Failure> {
    Ok(Json(s.engine.receivers().await?))
}

pub async fn again(State(s): State<Shared>, Path(name): Path<String>) -> Result<Json<Vec<ReceiverView>>, Failure> {
    s.engine.tell_again(&name).await?;
    receivers(State(s)).await
}

/// An installed host has made a key. It is named as the appliance knows it, and at the address from which it asks.
pub async fn certificate(
    State(s): State<Shared>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(id): Path<MachineId>,
    headers: HeaderMap,
    body: std::result::Result<Json<CertificateRequest>, JsonRejection>,
) -> Result<Json<HostCertificate>, Failure> {
    allowed(&s.engine, &headers, id)?;
    let request = parsed(body)?;
    let machine = s.engine.find(&id.to_string())?;
    let stage = matches!(machine.state, Lifecycle::Verifying | Lifecycle::Delivered { .. });
    let (true, Some(Mode::Resident), Some(order)) = (stage, machine.agent_mode(), &machine.order) else {
        return Err(Error::conflict("certificate.stage", "only an installed host gets a certificate")
            .hint("the agent asks again when it runs on the installed system")
            .into());
    };
    let mut addresses: Vec<IpAddr> = [Some(peer.ip()), machine.address].into_iter().flatten().collect();
    addresses.dedup();
    let hostname = order.hostname.to_string();
    let holder = Holder::Host { hostname: &hostname, addresses: &addresses };
    let signed = s.authority.sign(&id.to_string(), &holder, &request)?;
    let sentence = format!("got a certificate of the site for {hostname} at {}", peer.ip());
    s.engine.tell(About::Machine(id), Event::Noted { sentence });
    Ok(Json(signed))
}

/// `POST /api/v1/handoff/clients`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClientRequest {
    pub name: String,
    #[serde(flatten)]
    pub request: CertificateRequest,
}

/// Somebody of the site who works with delivered hosts.
pub async fn client(
    State(s): State<Shared>,
    body: std::result::Result<Json<ClientRequest>, JsonRejection>,
) -> Result<Json<HostCertificate>, Failure> {
    let ClientRequest { name, request } = parsed(body)?;
    if name.is_empty() || name.len() > 60 || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-._@".contains(c)) {
        return Err(Error::input("client.name", "a client's name is letters, digits, and - . _ @, at most 60").into());
    }
    let signed = s.authority.sign(&name, &Holder::Client { name: &name }, &request)?;
    tracing::info!(client = name, "made a certificate for a client of delivered hosts");
    Ok(Json(signed))
}
