//! What an appliance is for the agent of one installed host: [`crate::link`], with the orders known beforehand.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::error::{Kind, OrFail, Result};
use crate::link::{Hello, Issued, Order, POLL_SECONDS, Progress, Report, Verify, Welcome};
use crate::machine::MachineId;

/// What the agent tells.
pub enum Told {
    Hello,
    Step(String),
    Report(Report),
}

/// Serves on a port of the loopback until it is dropped.
pub struct Appliance {
    pub port: u16,
    pub token: String,
    pub told: mpsc::UnboundedReceiver<Told>,
    server: tokio::task::JoinHandle<()>,
}

struct Desk {
    machine: MachineId,
    token: String,
    orders: Vec<Verify>,
    told: mpsc::UnboundedSender<Told>,
}

impl Appliance {
    /// Order n is number n + 1, and given once the one before has been reported.
    pub async fn start(machine: MachineId, orders: Vec<Verify>) -> Result<Self> {
        let failed = || "cannot serve the agent of the image";
        let listener = TcpListener::bind("127.0.0.1:0").await.or_fail(Kind::Config, "image.test", failed)?;
        let port = listener.local_addr().or_fail(Kind::Internal, "image.test", failed)?.port();
        let token = uuid::Uuid::new_v4().simple().to_string();
        let (sender, told) = mpsc::unbounded_channel();
        let desk = Arc::new(Desk { machine, token: token.clone(), orders, told: sender });
        let router = Router::new()
            // Every answer has the date, which is what the check of the clock looks at.
            .route("/", get(|| async { StatusCode::NO_CONTENT }))
            .route("/agent/v1/hello", post(hello))
            .route("/agent/v1/{machine}/order", get(order))
            .route("/agent/v1/{machine}/progress", post(progress))
            .route("/agent/v1/{machine}/report", post(report))
            .with_state(desk);
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { port, token, told, server })
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Desk {
    /// The token is in the seed: it shows that this is the agent which was installed.
    fn admit(&self, headers: &HeaderMap) -> Result<(), StatusCode> {
        let shown = headers.get(header::AUTHORIZATION).and_then(|h| h.to_str().ok()?.strip_prefix("Bearer "));
        match shown == Some(&self.token) {
            true => Ok(()),
            false => Err(StatusCode::UNAUTHORIZED),
        }
    }

    fn tell(&self, told: Told) -> StatusCode {
        // Nobody listens any more once it is over.
        let _ = self.told.send(told);
        StatusCode::NO_CONTENT
    }
}

async fn hello(
    State(desk): State<Arc<Desk>>,
    headers: HeaderMap,
    Json(hello): Json<Hello>,
) -> Result<Json<Welcome>, StatusCode> {
    desk.admit(&headers)?;
    if hello.machine != desk.machine {
        return Err(StatusCode::FORBIDDEN);
    }
    desk.tell(Told::Hello);
    Ok(Json(Welcome { machine: desk.machine, name: "image-test".into(), token: desk.token.clone() }))
}

#[derive(Deserialize)]
struct After {
    after: u64,
}

async fn order(
    State(desk): State<Arc<Desk>>,
    headers: HeaderMap,
    Path(_): Path<MachineId>,
    Query(After { after }): Query<After>,
) -> Result<Json<Issued>, StatusCode> {
    desk.admit(&headers)?;
    let next = usize::try_from(after).ok().and_then(|n| desk.orders.get(n));
    if let Some(verify) = next {
        return Ok(Json(Issued { number: after + 1, order: Order::Verify(Box::new(verify.clone())) }));
    }
    tokio::time::sleep(Duration::from_secs(POLL_SECONDS)).await;
    Ok(Json(Issued { number: after, order: Order::Wait { reason: "that was all".into() } }))
}

async fn progress(
    State(desk): State<Arc<Desk>>,
    headers: HeaderMap,
    Path(_): Path<MachineId>,
    Json(progress): Json<Progress>,
) -> Result<StatusCode, StatusCode> {
    desk.admit(&headers)?;
    Ok(desk.tell(Told::Step(progress.step)))
}

async fn report(
    State(desk): State<Arc<Desk>>,
    headers: HeaderMap,
    Path(_): Path<MachineId>,
    Json(report): Json<Report>,
) -> Result<StatusCode, StatusCode> {
    desk.admit(&headers)?;
    Ok(desk.tell(Told::Report(report)))
}
