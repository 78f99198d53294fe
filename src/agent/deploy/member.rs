//! This machine as one of those that get the same image: it fetches from whom the appliance names, serves those that come
//! after it, and tells the appliance each second where it is.
//!
//! ```text
//! join ─ fetch, served on at once ─ read back, seed ─ report ─ linger while somebody needs it ─ close, reboot
//! ```
//!
//! What the disk had before is there decompressed only; it is not offered to others.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::Url;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::spill::{self, Spill};
use crate::agent::block::Device;
use crate::agent::console::{say, say_error};
use crate::agent::progress::Meter;
use crate::agent::{Agent, blocking};
use crate::error::{Kind, OrFail, Result};
use crate::image::Manifest;
use crate::link::SwarmPlan;
use crate::machine::Digest;
use crate::swarm::announce::{announcer, linger};
use crate::swarm::{Fallback, Holdings, HttpSource, Relay, RelayLimits, ServeLimits, Server, Source};

/// How long it stays for others after its own deployment. From there to the last check of the installed system the
/// appliance waits 20 minutes, of which the power-on test of a large server takes ten.
const LINGER: Duration = Duration::from_secs(120);
/// For the first plan. Without one it begins all the same, over HTTP.
const FIRST: Duration = Duration::from_secs(3);
const COUNT: Duration = Duration::from_secs(1);

/// Ends with all that it has begun when it is dropped.
pub struct Member {
    relay: Arc<Relay>,
    server: Arc<Server>,
    spill: Arc<Spill>,
    plan: watch::Receiver<SwarmPlan>,
    appliance: IpAddr,
    leave: CancellationToken,
    tasks: JoinSet<()>,
}

/// What the machine fetches, and where it may keep it for others.
pub struct Wish<'a> {
    pub image: Digest,
    pub manifest: &'a Arc<Manifest>,
    /// Positions of chunks that are on the disk already.
    pub kept: &'a BTreeSet<usize>,
    pub device: &'a Arc<Device>,
    /// Free on the disk until the machine leaves.
    pub free: Range<u64>,
}

/// Bytes as they travelled.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    pub from_peers: u64,
    pub from_appliance: u64,
}

impl Member {
    /// `None`: this appliance knows no swarms, or this machine cannot serve others. An appliance that does not answer may do
    /// so later; until then frames come over HTTP.
    pub async fn join(agent: &Agent, wish: Wish<'_>, http: HttpSource, meter: &Meter) -> Option<Self> {
        let appliance = address_of(agent.appliance.url());
        let budget = spill::budget(&agent.options.roots.proc, wish.manifest);
        let spill = Arc::new(Spill::new(wish.device, wish.free, budget));
        let keep = Box::new(Arc::clone(&spill));
        let holdings = Arc::new(Holdings::empty(wish.image, Arc::clone(wish.manifest), keep));
        let (listener, port) = listen(appliance.ip()).await.inspect_err(say_error).ok()?;

        let (announcer, mut plan) = announcer();
        let chunks = &wish.manifest.chunks;
        let kept: BTreeSet<u32> = wish.kept.iter().filter_map(|p| chunks.get(*p)).map(|c| c.index).collect();
        let note = meter.clone();
        let relay = Arc::new(Relay::new(
            Arc::clone(&holdings),
            plan.clone(),
            Some(Fallback { source: Box::new(http), address: appliance }),
            |index| kept.contains(&index),
            move |what| note.note(what),
            RelayLimits::default(),
        ));
        let server = Server::new(ServeLimits::default());
        let (leave, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(Arc::clone(&server).serve(listener, leave.clone()));
        let (reports, asks, serves) = (Arc::clone(&relay), agent.appliance.clone(), Arc::clone(&server));
        let tell = move |report| {
            let asks = asks.clone();
            async move { asks.swarm(&report).await }
        };
        let apply = move |plan: &SwarmPlan| {
            serves.share(Arc::clone(&holdings), &plan.key);
            serves.limit(plan.upload_limit);
        };
        tasks.spawn(announcer.run(leave.clone(), move |leaving| reports.report(port, leaving), tell, apply));
        match timeout(FIRST, plan.changed()).await {
            Ok(Err(_)) => return None,
            Ok(Ok(())) => say(format!("serving others on port {port}")),
            Err(_) => say("the appliance does not say yet whom to follow"),
        }
        Some(Self { relay, server, spill, plan, appliance: appliance.ip(), leave, tasks })
    }

    pub fn source(&self) -> &dyn Source {
        &*self.relay
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

    /// Serves for as long as somebody needs it, within bounds.
    pub async fn linger(&mut self, meter: &Meter) {
        if !self.plan.borrow().needed {
            return;
        }
        meter.step("serving other machines", 0);
        let sent = || self.server.counted.sent.load(Ordering::Relaxed);
        let count = async {
            let mut told = sent();
            loop {
                sleep(COUNT).await;
                let now = sent();
                meter.add(now - std::mem::replace(&mut told, now));
            }
        };
        tokio::select! {
            alone = linger(&mut self.plan, LINGER) => if !alone {
                say("others still need this machine; they have to get on without it");
            },
            () = count => {}
        }
    }

    /// Says good-bye, serves nobody any more, and leaves nothing of it on the disk.
    pub async fn close(mut self) {
        self.leave.cancel();
        while self.tasks.join_next().await.is_some() {}
        let Fetched { from_peers, from_appliance } = self.fetched();
        let sent = self.server.counted.sent.load(Ordering::Relaxed);
        say(format!("got {from_peers} bytes from other machines and {from_appliance} from the appliance, sent {sent}"));
        let spill = Arc::clone(&self.spill);
        if let Err(e) = blocking(move || spill.wipe()).await {
            say_error(&e);
        }
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
