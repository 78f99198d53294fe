//! Network boot: DHCP, TFTP, router advertisements and the HTTP part of the boot.
//!
//! The boot services know nothing of the lifecycle. They tell [`Policy`] what they saw, and ask it one read-only
//! question, many times a boot: what should this machine boot now?
//!
//! [`serve`] starts DHCP, TFTP and advertisements; [`http::router`] is the part that lives in the appliance's web server.

pub mod bmc;
pub mod config;
pub mod count;
pub mod dhcp;
pub mod explain;
pub mod firmware;
pub mod http;
pub mod loader;
pub mod monitor;
pub mod neighbours;
pub mod others;
pub mod probe;
pub mod script;
pub mod switch;
pub mod tftp;

mod advertise;
mod limit;
mod net;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::error::{Error, Result};
use crate::machine::{ClientArch, MacAddr, MachineId, Roles};
use crate::store::Db;
use crate::store::lease::Writer;
use crate::store::loader as learnt;
use advertise::Advertiser;
use config::BootConfig;
use count::Counters;
use dhcp::Dhcp;
use dhcp::serve::{Port, Waiting};
use explain::{Explainer, Preview};
use firmware::Files;
use loader::Loaders;
use monitor::Monitor;
use others::Watch;
use probe::Prober;
use script::Scripts;
use switch::Switches;

/// A machine asked for an address, or for its boot script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    pub mac: MacAddr,
    /// Option 97 (RFC 4578 section 2.3).
    pub uuid: Option<uuid::Uuid>,
    pub arch: Option<ClientArch>,
    /// What the machine was given, or asked from.
    pub address: Option<IpAddr>,
    /// Who is speaking: the firmware's PXE ROM, iPXE, or a system that runs already.
    pub stage: Stage,
    /// The way the request came, where a relay brought it.
    pub relay: Option<RelayPort>,
}

/// A relay agent and the port behind it (option 82), as people write them: text, or hexadecimal digits behind `0x`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayPort {
    /// `giaddr`; unspecified where a switch adds option 82 to what it only bridges.
    pub relay: Ipv4Addr,
    pub circuit: Option<String>,
    pub remote: Option<String>,
}

/// What the rules know of the machine behind a MAC address: enough to choose options and boot files by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub name: String,
    /// Product name from SMBIOS, once an inventory was taken.
    pub model: Option<String>,
    pub role: Option<Roles>,
    /// Name of its state in the lifecycle.
    pub state: &'static str,
}

/// A request that got no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unanswered {
    pub mac: MacAddr,
    /// A sentence for the operator.
    pub why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Rom,
    Ipxe,
    /// The agent's RAM system or an installed one: an address, no boot file.
    System,
}

/// What a machine boots now.
#[derive(Clone, PartialEq, Eq)]
pub enum BootAnswer {
    /// The agent's RAM system.
    Agent { machine: MachineId, token: String },
    /// The system on its own disk.
    LocalDisk { machine: MachineId },
    /// Neither: the machine shows the reason on its console and asks again after a while.
    Hold { reason: String },
}

/// Without the token: answers are logged.
impl std::fmt::Debug for BootAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Agent { machine, .. } => write!(f, "Agent({machine})"),
            Self::LocalDisk { machine } => write!(f, "LocalDisk({machine})"),
            Self::Hold { reason } => write!(f, "Hold({reason:?})"),
        }
    }
}

/// The rules, as the boot services see them.
pub trait Policy: Send + Sync + 'static {
    /// Takes note, for each answered step of each boot; never fails and never waits, since the answer to the machine
    /// would wait with it.
    fn sighted(&self, sighting: Sighting);

    /// Takes note that a request got no answer; like [`Policy::sighted`], never fails and never waits.
    fn unanswered(&self, unanswered: Unanswered);

    /// What is known of the machine with this MAC address; from memory, since every packet asks.
    fn facts(&self, mac: MacAddr) -> Option<Facts>;

    /// A sentence for the timeline of a machine that was sighted; like [`Policy::sighted`], never fails and never waits.
    /// Rules that keep no timeline need not care.
    fn noted(&self, _mac: MacAddr, _sentence: String) {}

    /// Whether this is known to be the MAC address of a BMC; from memory, like [`Policy::facts`].
    fn is_bmc(&self, _mac: MacAddr) -> bool {
        false
    }

    /// A BMC has an address; like [`Policy::sighted`], never fails and never waits.
    fn bmc_sighted(&self, _sighting: bmc::BmcSighting) {}

    fn boot_answer(&self, asking: Sighting) -> BoxFuture<'_, Result<BootAnswer>>;
}

/// How long [`Handle::stop`] waits for leases to reach the disk.
const STOP: Duration = Duration::from_secs(10);

/// The running services.
pub struct Handle {
    monitor: Monitor,
    loaders: Arc<Loaders>,
    policy: Arc<dyn Policy>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Handle {
    pub fn counters(&self) -> Arc<Counters> {
        self.monitor.counters.clone()
    }

    pub fn monitor(&self) -> Monitor {
        self.monitor.clone()
    }

    /// For the web server: what it fetches and starts is learnt here too.
    pub fn loaders(&self) -> Arc<Loaders> {
        self.loaders.clone()
    }

    /// Answers what a machine would get now.
    pub fn explainer(&self, preview: Arc<dyn Preview>) -> Explainer {
        let (dhcp, loaders) = (self.monitor.dhcp.clone(), self.loaders.clone());
        Explainer { dhcp, loaders, policy: self.policy.clone(), preview }
    }

    /// Waits for ever, unless a service ends by itself: then the rest is of little use, and the caller should say so.
    pub async fn failed(&mut self) -> Error {
        let error =
            Error::internal("boot.ended", "a network boot service ended by itself").hint("restart the appliance");
        match self.tasks.join_next().await {
            Some(Err(e)) => error.because(e),
            _ => error,
        }
    }

    /// Ends the services; what was leased is on disk when this returns. Dropping the handle ends them at once.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                if let Err(e) = ended {
                    error!(error = %e, "a boot service failed");
                }
            }
        };
        if tokio::time::timeout(STOP, all).await.is_err() {
            error!("the boot services did not end within {} s", STOP.as_secs());
        }
    }
}

/// Starts DHCP, TFTP and router advertisements on every configured interface, or none of them.
pub async fn serve(
    config: &BootConfig,
    files: Arc<Files>,
    scripts: Arc<Scripts>,
    switches: Arc<Switches>,
    policy: Arc<dyn Policy>,
    db: Db,
) -> Result<Handle> {
    config.check()?;
    let counters = Arc::new(Counters::default());
    let (writer, leases, writing) = Writer::open(db.folder(), committed)?;
    info!(leases = leases.len(), subnets = config.subnets.len(), "network boot starts");
    let known = learnt::load(&db, loader::CARDS).await?;
    let (learns, learning) = mpsc::channel(learnt::WAITING);
    let loaders = Arc::new(Loaders::new(config, files, scripts, policy.clone(), known, learns)?);
    loaders.serve_switches(switches.tftp_files());
    let dhcp = Arc::new(Mutex::new(Dhcp::new(config, leases, loaders.clone(), switches, policy.clone())));
    let monitor = Monitor::new(dhcp, config, counters.clone());
    monitor.make_room(config);

    // All sockets first: where one cannot be opened, nothing has been answered yet.
    let (mut servers, mut probers, mut watches) = (Vec::new(), Vec::new(), Vec::new());
    let (mut advertisers, mut tftp) = (Vec::new(), Vec::new());
    for interface in &config.interfaces {
        net::has_address(interface)?;
        let link = Arc::new(net::Link::open(interface)?);
        if config.router_advertisements {
            advertisers.extend(Advertiser::open(interface, &link, counters.clone()));
        }
        if config.tftp {
            tftp.push(tftp::Server::open(interface, loaders.clone(), counters.clone())?);
        }
        watches.push(Watch::open(interface, link.clone(), monitor.others.clone())?);
        let prober = Arc::new(Prober::open(interface, link.clone())?);
        probers.push(prober.clone());
        let port = Arc::new(Port::open(interface, link, counters.clone())?);
        let (monitor, writer, policy) = (monitor.clone(), writer.clone(), policy.clone());
        servers.push(dhcp::serve::Server { port, monitor, prober, writer, policy });
    }
    drop(writer);

    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(learnt::write(db, learning, loader::CARDS, stop.clone()));
    for server in servers {
        tasks.spawn(server.run(stop.clone()));
    }
    for prober in probers {
        tasks.spawn(prober.run(stop.clone()));
    }
    for watch in watches {
        tasks.spawn(watch.run(stop.clone()));
    }
    tasks.spawn(monitor.clone().watch_pools(stop.clone()));
    for server in tftp {
        tasks.spawn(server.run(stop.clone()));
    }
    for advertiser in advertisers {
        tasks.spawn(advertiser.run(stop.clone()));
    }
    // The writer ends by itself once the DHCP tasks are gone and everything is written.
    tasks.spawn(async move {
        if let Err(e) = writing.await {
            error!(error = %e, "the lease writer failed");
        }
    });
    Ok(Handle { monitor, loaders, policy, stop, tasks })
}

/// The leases of these answers are on disk, or are not.
fn committed(result: Result<()>, group: Vec<Waiting>) {
    match result {
        Ok(()) => group.into_iter().flatten().for_each(|(ready, port)| port.send(&ready)),
        Err(e) => {
            error!(error = ?e, leases = group.len(), "leases could not be stored and are not granted");
            group.into_iter().flatten().for_each(|(_, port)| port.give_up());
        }
    }
}

/// Milliseconds since 1970.
fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}
