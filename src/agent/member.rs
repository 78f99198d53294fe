//! This machine as one of those that have or get the same image: it fetches from whom the appliance names, serves those
//! that come after it, and tells the appliance each second where it is.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::Url;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::appliance::Appliance;
use super::console::say_error;
use crate::error::{Kind, OrFail, Result};
use crate::link::SwarmPlan;
use crate::swarm::announce::{announcer, linger};
use crate::swarm::{Fallback, Holdings, HttpSource, Relay, RelayLimits, ServeLimits, Server, Source};

/// For the first plan. Without one it begins all the same.
const FIRST: Duration = Duration::from_secs(3);

/// Ends with all that it has begun when it is dropped.
pub struct Member {
    relay: Arc<Relay>,
    server: Arc<Server>,
    plan: watch::Receiver<SwarmPlan>,
    appliance: IpAddr,
    port: u16,
    leave: CancellationToken,
    tasks: JoinSet<()>,
}

/// What the machine has and wants.
pub struct Wish {
    pub holdings: Arc<Holdings>,
    /// Numbers of chunks that it neither holds nor wants.
    pub kept: BTreeSet<u32>,
    /// For frames that no machine of the plan delivers.
    pub http: Option<HttpSource>,
    /// Bytes a second to all successors, where the plan allows more.
    pub upload_limit: Option<u64>,
}

/// Bytes as they travelled.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    pub from_peers: u64,
    pub from_appliance: u64,
}

impl Member {
    /// `None`: this appliance knows no swarms, or this machine cannot serve others. An appliance that does not answer may do
    /// so later. `note` is told what is being waited for.
    pub async fn join(
        asks: &Appliance,
        wish: Wish,
        note: impl Fn(Option<String>) + Send + Sync + 'static,
    ) -> Option<Self> {
        let Wish { holdings, kept, http, upload_limit } = wish;
        let appliance = address_of(asks.url());
        let (listener, port) = listen(appliance.ip()).await.inspect_err(say_error).ok()?;
        let (announcer, mut plan) = announcer();
        let relay = Arc::new(Relay::new(
            Arc::clone(&holdings),
            plan.clone(),
            http.map(|http| Fallback { source: Box::new(http), address: appliance }),
            |index| kept.contains(&index),
            note,
            RelayLimits::default(),
        ));
        let server = Server::new(ServeLimits::default());
        let (leave, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(Arc::clone(&server).serve(listener, leave.clone()));
        let (reports, asks, serves) = (Arc::clone(&relay), asks.clone(), Arc::clone(&server));
        let tell = move |report| {
            let asks = asks.clone();
            async move { asks.swarm(&report).await }
        };
        let apply = move |plan: &SwarmPlan| {
            serves.share(Arc::clone(&holdings), &plan.key);
            serves.limit([plan.upload_limit, upload_limit].into_iter().flatten().min());
        };
        tasks.spawn(announcer.run(leave.clone(), move |leaving| reports.report(port, leaving), tell, apply));
        match timeout(FIRST, plan.changed()).await {
            Ok(Err(_)) => None,
            Ok(Ok(())) | Err(_) => Some(Self { relay, server, plan, appliance: appliance.ip(), port, leave, tasks }),
        }
    }

    pub fn source(&self) -> &dyn Source {
        &*self.relay
    }

    /// Where it serves others.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The appliance has said whom to follow.
    pub fn has_plan(&self) -> bool {
        !self.plan.borrow().key.expose().is_empty()
    }

    /// Others still need this machine, as far as the appliance has said.
    pub fn is_needed(&self) -> bool {
        self.plan.borrow().needed
    }

    /// No plan will come any more: the appliance does not know this image now.
    pub fn is_over(&self) -> bool {
        self.plan.has_changed().is_err()
    }

    /// Stays while others need this machine, at most so long. False where somebody still did.
    pub async fn linger(&mut self, at_most: Duration) -> bool {
        linger(&mut self.plan, at_most).await
    }

    pub fn fetched(&self) -> Fetched {
        self.relay.sources().iter().fold(Fetched::default(), |mut sum, source| {
            let counter = match source.address.ip() == self.appliance {
                true => &mut sum.from_appliance,
                false => &mut sum.from_peers,
            };
            *counter += source.bytes;
            sum
        })
    }

    /// Bytes that went to others.
    pub fn sent(&self) -> u64 {
        self.server.counted.sent.load(Ordering::Relaxed)
    }

    /// Says good-bye and serves nobody any more.
    pub async fn close(&mut self) {
        self.leave.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// On any port, by the protocol by which the appliance is reached.
async fn listen(appliance: IpAddr) -> Result<(TcpListener, u16)> {
    let failed = || "this machine cannot listen for those that come after it";
    let any: IpAddr = if appliance.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let listener = TcpListener::bind((any, 0)).await.or_fail(Kind::Internal, "swarm.listen", failed)?;
    let port = listener.local_addr().or_fail(Kind::Internal, "swarm.listen", failed)?.port();
    Ok((listener, port))
}

/// Where the appliance is, if its URL says so without a name; only for telling it from other machines.
fn address_of(url: &str) -> SocketAddr {
    let url = Url::parse(url).ok();
    let host = url.as_ref().and_then(Url::host_str).map(|host| host.trim_matches(['[', ']']));
    let address = host.and_then(|host| host.parse().ok()).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    SocketAddr::new(address, url.and_then(|url| url.port_or_known_default()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_appliance_is_known_by_its_url() {
        let of = |url| address_of(url).to_string();
        assert_eq!(of("http://10.77.0.1:8080"), "10.77.0.1:8080");
        assert_eq!(of("http://10.77.0.1"), "10.77.0.1:80");
        assert_eq!(of("http://[fd00::1]:8080"), "[fd00::1]:8080");
        assert_eq!(of("http://appliance:8080"), "0.0.0.0:8080");
        assert_eq!(of("nonsense"), "0.0.0.0:0");
    }
}
