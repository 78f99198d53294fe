//! The network test of a burn-in from the appliance's side: two machines that test at the same time are told of each other,
//! and one that finds nobody has the appliance as the other end.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

use super::Failure;
use super::agent::{allowed, parsed};
use super::swarm::rack_of;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::lifecycle::Machine;
use crate::link::{POLL_SECONDS, Partner, PartnerAsk, Received};
use crate::machine::{MachineId, Secret};

/// Of the appliance as the other end, in bytes a second: it has images to send.
const RATE: f64 = 100e6;
const PIECE: usize = 256 << 10;
/// One stream, in either direction.
const LONGEST: Duration = Duration::from_secs(60);

#[derive(Clone)]
struct Site {
    engine: Engine,
    partners: Arc<Partners>,
    /// One machine at a time has the appliance as the other end.
    end: Arc<Semaphore>,
}

/// For agents, on the provisioning network.
pub fn agents(engine: Engine) -> Router {
    Router::new()
        .route("/agent/v1/{machine}/partner", post(partner))
        .route("/agent/v1/{machine}/stream", get(send).post(receive))
        .layer(DefaultBodyLimit::disable())
        .with_state(Site { engine, partners: Arc::default(), end: Arc::new(Semaphore::new(1)) })
}

/// Machines that wait for another one.
#[derive(Default)]
struct Partners(Mutex<HashMap<MachineId, Waiting>>);

struct Waiting {
    who: Who,
    found: oneshot::Sender<Partner>,
}

#[derive(Debug, Clone)]
struct Who {
    id: MachineId,
    name: String,
    rack: String,
    across: bool,
    address: SocketAddr,
}

impl Who {
    fn fits(&self, other: &Who) -> bool {
        self.id != other.id && self.across == other.across && (self.rack != other.rack) == self.across
    }

    fn as_partner(&self, key: &Secret, connects: bool) -> Partner {
        Partner { name: self.name.clone(), address: self.address, key: key.clone(), connects }
    }
}

impl Partners {
    fn waiting(&self) -> MutexGuard<'_, HashMap<MachineId, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until another machine comes. One that gives up waiting is forgotten when the next one looks.
    async fn meet(&self, who: &Who) -> Option<Partner> {
        let coming = {
            let mut waiting = self.waiting();
            waiting.retain(|_, other| !other.found.is_closed());
            while let Some(id) = waiting.iter().find_map(|(id, other)| who.fits(&other.who).then_some(*id)) {
                let Some(other) = waiting.remove(&id) else { continue };
                let key = Secret::new(uuid::Uuid::new_v4().simple().to_string());
                // Whoever comes second connects: the first one listens already.
                if other.found.send(who.as_partner(&key, false)).is_ok() {
                    return Some(other.who.as_partner(&key, true));
                }
            }
            let (found, coming) = oneshot::channel();
            waiting.insert(who.id, Waiting { who: who.clone(), found });
            coming
        };
        coming.await.ok()
    }
}

async fn partner(
    State(s): State<Site>,
    Path(machine): Path<MachineId>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: std::result::Result<Json<PartnerAsk>, JsonRejection>,
) -> Result<Response, Failure> {
    let known = under_load(&s, &headers, machine)?;
    let ask = parsed(body)?;
    let who = Who {
        id: machine,
        name: known.name.clone(),
        rack: rack_of(&known).to_owned(),
        across: ask.across,
        address: SocketAddr::new(peer.ip().to_canonical(), ask.port),
    };
    Ok(match timeout(Duration::from_secs(POLL_SECONDS), s.partners.meet(&who)).await {
        Ok(Some(partner)) => Json(partner).into_response(),
        Ok(None) | Err(_) => StatusCode::NO_CONTENT.into_response(),
    })
}

fn under_load(s: &Site, headers: &HeaderMap, machine: MachineId) -> Result<Arc<Machine>> {
    allowed(&s.engine, headers, machine)?;
    s.engine
        .machine(machine)
        .filter(|known| known.burning().is_some())
        .ok_or_else(|| Error::conflict("burn.over", "this machine is not being burned in").hint("ask for the order"))
}

/// `None`: another machine measures.
fn place(s: &Site) -> Option<OwnedSemaphorePermit> {
    s.end.clone().try_acquire_owned().ok()
}

/// Bytes until the machine has enough and goes.
async fn send(State(s): State<Site>, Path(machine): Path<MachineId>, headers: HeaderMap) -> Result<Response, Failure> {
    under_load(&s, &headers, machine)?;
    let Some(place) = place(&s) else { return Ok(StatusCode::TOO_MANY_REQUESTS.into_response()) };
    let piece = Bytes::from(vec![0x5a; PIECE]);
    let stream = futures::stream::unfold((place, Pace::new()), move |(place, mut pace)| {
        let piece = piece.clone();
        async move {
            let more = pace.step(PIECE).await;
            more.then_some((Ok::<_, std::io::Error>(piece), (place, pace)))
        }
    });
    Ok(Body::from_stream(stream).into_response())
}

/// Bytes until the machine ends them.
async fn receive(
    State(s): State<Site>,
    Path(machine): Path<MachineId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    under_load(&s, &headers, machine)?;
    let Some(_place) = place(&s) else { return Ok(StatusCode::TOO_MANY_REQUESTS.into_response()) };
    let (mut bytes, mut pace, mut body) = (0, Pace::new(), body.into_data_stream());
    while let Some(Ok(piece)) = body.next().await {
        bytes += piece.len() as u64;
        if !pace.step(piece.len()).await {
            break;
        }
    }
    Ok(Json(Received { bytes }).into_response())
}

/// Holds a stream to [`RATE`] and [`LONGEST`].
struct Pace {
    began: Instant,
    bytes: f64,
}

impl Pace {
    fn new() -> Self {
        Self { began: Instant::now(), bytes: 0.0 }
    }

    /// Waits until so many bytes more are due. `false`: the time is up.
    async fn step(&mut self, bytes: usize) -> bool {
        self.bytes += bytes as f64;
        let due = Duration::from_secs_f64(self.bytes / RATE);
        tokio::time::sleep(due.saturating_sub(self.began.elapsed())).await;
        self.began.elapsed() < LONGEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(n: u8, rack: &str, across: bool) -> Who {
        Who {
            id: MachineId(uuid::Uuid::from_u128(n.into())),
            name: format!("m{n}"),
            rack: rack.into(),
            across,
            address: SocketAddr::from(([10, 0, 0, n], 1000)),
        }
    }

    #[tokio::test]
    async fn two_of_a_rack_meet_and_one_of_another_rack_waits_for_across() {
        let partners = Partners::default();
        let [a, b, c, d] = [who(1, "A", false), who(2, "A", false), who(3, "B", false), who(4, "B", true)];
        let soon = Duration::from_millis(30);
        let meets = async {
            // Alone in its rack; and one that gave up is not waited for.
            assert!(timeout(soon, partners.meet(&c)).await.is_err());
            assert!(timeout(soon, partners.meet(&b)).await.is_err());
            tokio::join!(partners.meet(&a), partners.meet(&b), async {
                assert!(timeout(soon, partners.meet(&d)).await.is_err());
            })
        };
        let (first, second, ()) = timeout(Duration::from_secs(20), meets).await.unwrap();
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_eq!((first.name.as_str(), second.name.as_str()), ("m2", "m1"));
        assert_eq!((first.connects, second.connects), (false, true));
        assert_eq!((first.key, second.address), (second.key.clone(), a.address));
        let e = who(5, "A", true);
        let across = async { tokio::join!(partners.meet(&d), partners.meet(&e)) };
        let (first, _) = timeout(Duration::from_secs(20), across).await.unwrap();
        assert_eq!(first.unwrap().name, "m5");
        assert!(partners.waiting().is_empty());
    }
}
