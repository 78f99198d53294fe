//! The JSON face: `/api/v1` for people and scripts, `/agent/v1` and `/images` for agents. Writes are events, reads are
//! projections of what is in memory.

mod agent;
mod bmc;
mod boot;
pub mod burn;
pub mod client;
pub mod console;
mod expected;
pub mod firmware;
pub mod handoff;
pub mod health;
mod machines;
pub mod models;
mod parts;
mod problem;
pub mod swarm;
mod switches;
pub mod torrent;
pub mod view;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{any, get, post};

use crate::boot::explain::Explainer;
use crate::boot::monitor::Monitor;
use crate::engine::Engine;
use crate::handoff::authority::Authority;
use crate::httpd;
use crate::image::Library;
use crate::role::Templates;
use crate::swarm::torrent::Torrents;

pub use agent::image_file;
pub use machines::view_of;
pub use problem::Failure;

/// Bodies larger than this are refused; an inventory of a large storage server is about 100 KB.
const MAX_BODY: usize = 2 << 20;

#[derive(Clone)]
pub struct Shared {
    pub engine: Engine,
    pub library: Arc<Library>,
    pub boot: Arc<Explainer>,
    pub monitor: Monitor,
    /// Of the machines' web server.
    pub web: Arc<httpd::Counters>,
    /// The BitTorrent face, where it is wanted.
    pub torrents: Option<Arc<Torrents>>,
    /// Public SSH keys that every host gets.
    pub ssh_keys: Arc<[String]>,
    /// What each role is.
    pub roles: Templates,
    /// Signs the certificates of hosts and of those who work with them.
    pub authority: Arc<Authority>,
}

/// For people and scripts.
pub fn people(shared: Shared) -> Router {
    Router::new()
        .route("/api/v1/machines", get(machines::list))
        .route("/api/v1/cohorts", get(machines::cohorts))
        .route("/api/v1/machines/{machine}", get(machines::show))
        .route("/api/v1/machines/{machine}/events", get(machines::events))
        .route("/api/v1/machines/{machine}/deploy", post(machines::deploy))
        .route("/api/v1/machines/{machine}/release", post(machines::release))
        .route("/api/v1/machines/{machine}/retry", post(machines::retry))
        .route("/api/v1/machines/{machine}/check", post(machines::check))
        .route("/api/v1/machines/{machine}/retire", post(machines::retire))
        .route("/api/v1/machines/{machine}/burn", post(machines::burn))
        .route("/api/v1/machines/{machine}/burn/stop", post(machines::stop_burn))
        .route("/api/v1/machines/{machine}/power", post(machines::power))
        .route("/api/v1/machines/{machine}/health", get(health::show))
        .route("/api/v1/bmc/found", get(bmc::found))
        .route("/api/v1/machines/{machine}/bmc/{what}", get(bmc::look).post(bmc::act))
        .route("/api/v1/bmc/personalities", get(bmc::personalities))
        .route("/api/v1/machines/{machine}/firmware", get(firmware::machine))
        .route("/api/v1/firmware", get(firmware::stock))
        .route("/api/v1/models", get(models::list))
        .route("/api/v1/machines/{machine}/components", get(parts::of_machine))
        .route("/api/v1/components/{serial}", get(parts::way))
        .route(
            "/api/v1/expected",
            get(expected::list).post(expected::import).layer(DefaultBodyLimit::max(expected::MAX_LIST)),
        )
        .route("/api/v1/machines/{machine}/passport", get(handoff::passport))
        .route("/api/v1/machines/{machine}/words", get(handoff::words))
        .route("/api/v1/passport/key", get(handoff::key))
        .route("/api/v1/inventory/ansible", get(handoff::ansible))
        .route("/api/v1/inventory/ansible/{host}", get(handoff::ansible_host))
        .route("/api/v1/prometheus/targets", get(handoff::prometheus))
        .route("/api/v1/handoff/clients", post(handoff::client))
        .route("/api/v1/handoff/receivers", get(handoff::receivers))
        .route("/api/v1/handoff/receivers/{receiver}/again", post(handoff::again))
        .route("/api/v1/boot", get(boot::status))
        .route("/api/v1/boot/explain/{mac}", get(boot::explain))
        .route("/api/v1/images", get(machines::images))
        .route("/api/v1/switches", get(switches::list))
        .route("/api/v1/changes", get(machines::changes))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(shared)
}

/// For agents, on the provisioning network.
pub fn agents(shared: Shared) -> Router {
    Router::new()
        .route("/agent/v1/hello", post(agent::hello))
        .route("/agent/v1/{machine}/order", get(agent::order))
        .route("/agent/v1/{machine}/progress", post(agent::progress))
        .route("/agent/v1/{machine}/report", post(agent::report))
        .route("/agent/v1/{machine}/certificate", post(handoff::certificate))
        .route("/images/{manifest}/manifest", any(agent::manifest))
        .route("/images/{manifest}/data", any(agent::data))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(shared)
}
