//! The swarms of all images: takes reports, hands out plans, and has the appliance's own frame server share an image from
//! the moment somebody wants it.
//!
//! Everything is in memory. After a restart each member's next report puts it back in its seat, and since a swarm's key
//! follows from the site's key, nobody is a stranger to anybody meanwhile.

mod help;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

pub use help::{Host, Hosts};
use tokio::sync::Notify;

use super::plan::{Millis, Note, Reporter, Settings, Standing, Swarm, Why};
use super::{FileKeep, Holdings, Server};
use crate::error::{Error, Result};
use crate::image::{Entry, Library};
use crate::link::{SwarmPlan, SwarmReport};
use crate::machine::{Digest, MachineId, Secret};

/// Machines that people wait for, at once: where everybody is first, nobody is.
const FIRST: usize = 256;

/// Who reports, as the connection and the appliance's own records have it.
#[derive(Debug, Clone)]
pub struct Who {
    pub machine: MachineId,
    /// Machines of one rack share a switch; empty where nothing is known.
    pub rack: Arc<str>,
    pub address: IpAddr,
    /// The appliance's address at the other end of that connection.
    pub reached: IpAddr,
    /// It is an installed host.
    pub host: bool,
}

pub struct Tracker {
    library: Arc<Library>,
    server: Arc<Server>,
    settings: Settings,
    /// Where `server` listens, on every address.
    port: u16,
    secret: [u8; 32],
    began: Instant,
    state: Mutex<State>,
    /// What installed hosts are asked for; none: they never help.
    hosts: Option<Hosts>,
    /// For each rack with hosts that would help: rings when a machine of it begins to fetch.
    bells: Mutex<HashMap<Arc<str>, Arc<Notify>>>,
}

#[derive(Default)]
struct State {
    swarms: HashMap<Digest, Tracked>,
    first: HashSet<MachineId>,
}

struct Tracked {
    name: String,
    key: Secret,
    swarm: Swarm,
    hosts: help::Asked,
}

/// Something for a machine's timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    /// `kvm-20261121-3f2a9c01`
    pub image: String,
    pub note: Note,
}

impl Tracker {
    /// `secret` is the same after each start; the keys of the swarms are derived from it.
    pub fn new(library: Arc<Library>, server: Arc<Server>, settings: Settings, port: u16, secret: [u8; 32]) -> Self {
        server.limit(settings.uplink);
        Self {
            library,
            server,
            settings,
            port,
            secret,
            began: Instant::now(),
            state: Mutex::default(),
            hosts: None,
            bells: Mutex::default(),
        }
    }

    /// With the help of installed hosts, where it is wanted.
    pub fn helped_by(self, hosts: Option<Hosts>) -> Self {
        Self { hosts, ..self }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Millis {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// What a member says, and whom it is to follow.
    pub fn report(&self, who: &Who, report: &SwarmReport) -> Result<SwarmPlan> {
        let now = self.now();
        let mut state = self.state();
        let State { swarms, first } = &mut *state;
        let tracked = match swarms.entry(report.image) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => new.insert(self.begin(report.image)?),
        };
        let reporter = Reporter {
            machine: who.machine,
            rack: who.rack.clone(),
            address: who.address,
            appliance: SocketAddr::new(who.reached, self.port),
            first: first.contains(&who.machine),
            host: who.host,
        };
        let plan = tracked.swarm.report(now, &reporter, report);
        if self.hosts.is_some() && tracked.enters(now, who, report) {
            self.ring(&who.rack);
        }
        Ok(SwarmPlan {
            predecessors: plan.predecessors,
            key: tracked.key.clone(),
            upload_limit: plan.upload_limit,
            needed: plan.needed,
            seat: plan.seat,
        })
    }

    /// The first one that wants an image makes its swarm, and the appliance its first holder.
    fn begin(&self, digest: Digest) -> Result<Tracked> {
        let catalogue = self.library.current();
        let image = catalogue.by_digest(digest).ok_or_else(|| {
            Error::not_found("image.unknown", format!("there is no image {digest}"))
                .hint("`rackline image list` shows them")
        })?;
        let key = Secret::new(blake3::keyed_hash(&self.secret, &digest.0).to_hex().as_str());
        self.server.share(holdings(image)?, &key);
        let frames = u32::try_from(image.manifest.chunks.len()).unwrap_or(u32::MAX);
        tracing::info!(image = %image.name(), "a swarm begins");
        let swarm = Swarm::new(self.settings, frames, image.manifest.data_size);
        Ok(Tracked { name: image.name(), key, swarm, hosts: help::Asked::default() })
    }

    /// A person waits for this machine: it goes to the front of its rack in each swarm, from its next report on.
    pub fn put_first(&self, machine: MachineId) -> Result<()> {
        let mut state = self.state();
        if state.first.len() >= FIRST && !state.first.contains(&machine) {
            return Err(Error::conflict("swarm.first", format!("{FIRST} machines are first already"))
                .hint("wait until some of them are done"));
        }
        state.first.insert(machine);
        Ok(())
    }

    /// Once a second: who fell silent, and what has happened since. A swarm that everybody left is over.
    pub fn tick(&self) -> Vec<Happened> {
        let now = self.now();
        let mut happened = Vec::new();
        let mut state = self.state();
        let State { swarms, first } = &mut *state;
        swarms.retain(|image, tracked| {
            tracked.swarm.tick(now);
            for note in tracked.swarm.notes() {
                if let Note::Done { member, .. } = note {
                    first.remove(&member);
                }
                happened.push(Happened { image: tracked.name.clone(), note });
            }
            let over = tracked.swarm.is_empty();
            if over {
                self.server.unshare(image);
                tracing::info!(image = tracked.name, "the swarm is over");
            }
            !over
        });
        happened
    }

    /// All swarms, by the name of their image; `name_of` turns ids into what people call the machines.
    pub fn status(&self, name_of: impl Fn(MachineId) -> String) -> SwarmList {
        let state = self.state();
        let view = |(image, tracked): (&Digest, &Tracked)| tracked.view(*image, &name_of);
        let mut swarms: Vec<SwarmView> = state.swarms.iter().map(view).collect();
        swarms.sort_by(|a, b| a.name.cmp(&b.name));
        SwarmList { swarms }
    }
}

fn holdings(image: &Entry) -> Result<Arc<Holdings>> {
    let keep = FileKeep::open(&image.data)?;
    Ok(Arc::new(Holdings::complete(image.digest, Arc::new(image.manifest.clone()), Box::new(keep))))
}

/// `GET /api/v1/swarm`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SwarmList {
    pub swarms: Vec<SwarmView>,
}

/// The swarm of one image. Bytes are as the members tell them, since the swarm or the appliance began.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SwarmView {
    pub image: Digest,
    pub name: String,
    /// Of its data file.
    pub image_bytes: u64,
    pub from_appliance_bytes: u64,
    pub from_same_rack_bytes: u64,
    pub from_other_racks_bytes: u64,
    /// From machines that have not reported to this appliance.
    pub from_unknown_bytes: u64,
    pub racks: Vec<RackView>,
    pub members: Vec<MemberView>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RackView {
    /// Empty for machines whose rack is not known.
    pub rack: String,
    /// What came in over its uplink, in copies of the image.
    pub copies_in: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MemberView {
    pub machine: MachineId,
    pub name: String,
    pub rack: String,
    pub address: SocketAddr,
    /// `fetching`, `done`, `slow`, `garbage`, `serves nobody`, `holds part`, `waits`, `silent`, `left`.
    pub state: String,
    /// Of what it wants, between 0 and 1.
    pub share: f64,
    /// Bytes a second.
    pub rate: u64,
    /// The machine that it was told to follow; none is the appliance.
    pub follows: Option<String>,
    pub from_peers_bytes: u64,
    pub from_appliance_bytes: u64,
    pub starved_ms: u32,
}

impl Tracked {
    fn view(&self, image: Digest, name_of: &impl Fn(MachineId) -> String) -> SwarmView {
        let (swarm, traffic) = (&self.swarm, self.swarm.traffic());
        let copies = |bytes: u64| bytes as f64 / swarm.data_size().max(1) as f64;
        let rack = |(rack, bytes): (&str, u64)| RackView { rack: rack.to_owned(), copies_in: copies(bytes) };
        let mut racks: Vec<RackView> = swarm.into_racks().map(rack).collect();
        racks.sort_by(|a, b| a.rack.cmp(&b.rack));
        let member = |m: &super::plan::Member| MemberView {
            machine: m.machine,
            name: name_of(m.machine),
            rack: m.rack.to_string(),
            address: m.address,
            state: match m.standing {
                Standing::Gone => "silent",
                Standing::Left => "left",
                Standing::Waits => "waits",
                Standing::Leaf(Why::Slow) => "slow",
                Standing::Leaf(Why::Garbage) => "garbage",
                _ if m.is_done() => "done",
                Standing::Leaf(Why::ServesNobody) => "serves nobody",
                Standing::Leaf(Why::HoldsPart) => "holds part",
                Standing::Line => "fetching",
            }
            .to_owned(),
            share: f64::from(m.frames) / f64::from((m.frames + m.lacking).max(1)),
            rate: m.rate(),
            follows: m.follows.map(name_of),
            from_peers_bytes: m.from_peers,
            from_appliance_bytes: m.from_appliance,
            starved_ms: m.starved_ms,
        };
        let mut members: Vec<MemberView> = swarm.members().map(member).collect();
        members.sort_by(|a, b| (&a.rack, &a.name).cmp(&(&b.rack, &b.name)));
        SwarmView {
            image,
            name: self.name.clone(),
            image_bytes: swarm.data_size(),
            from_appliance_bytes: traffic.appliance,
            from_same_rack_bytes: traffic.same_rack,
            from_other_racks_bytes: traffic.other_rack,
            from_unknown_bytes: traffic.unknown,
            racks,
            members,
        }
    }
}
