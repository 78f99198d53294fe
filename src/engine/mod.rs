//! The loop that joins rules and effects: inbox → turn → outbox → effects → inbox.
//!
//! Everything that happens comes in through [`Engine::submit`]. One task takes the inbox in batches, asks the rules, and
//! writes events, states, outbox and settled actions in one transaction (`turn`); what is acknowledged is on disk. Actions are
//! carried out after that (`effects`), and their results come in again as events. Questions are answered from memory.

pub mod announce;
mod baseline;
mod bmc;
mod bmc_setup;
mod burn;
mod climb;
pub mod consoles;
mod effects;
mod energy;
pub mod expected;
pub mod found;
mod judging;
pub mod learn;
pub mod models;
mod orders;
mod pairing;
pub mod parts;
mod password;
mod policy;
mod turn;
pub mod watch;
mod world;

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use bmc_setup::{BmcAddress, BmcSetup};
pub use orders::SeedFacts;

use crate::bmc::Fleet;
use crate::bmc::sweep::Sweep;
use crate::boot::switch::Switches;
use crate::check;
use crate::error::{Error, Result};
use crate::firmware::Depot;
use crate::image::sign::{PublicKey, SigningKey};
use crate::judge::cohort::Cohorts;
use crate::lifecycle::{Event, Machine, Millis};
use crate::link::{BurnProfile, Issued, Mode, Progress};
use crate::machine::{MacAddr, MachineId, Secret, Serial};
use crate::outlet::Outlets;
use crate::store::Db;
use crate::store::seal::Seal;
use world::World;

/// Events taken in one transaction at most.
const BATCH: usize = 256;
/// Events that may wait; senders wait beyond it.
const INBOX: usize = 4096;

/// Which machine a fact is about, as far as the one who tells it knows.
#[derive(Debug, Clone)]
pub enum About {
    Machine(MachineId),
    /// A MAC address on the wire; an unknown one makes a new machine.
    Mac(MacAddr),
    /// A row of the expected machines; an unknown serial number makes a new machine of this name.
    Serial {
        serial: Serial,
        name: String,
    },
    /// An agent with the id its boot script gave it.
    Agent(MachineId),
}

/// One fact on its way to the turn.
struct Letter {
    about: About,
    event: Event,
    /// The action whose result this is.
    settles: Option<i64>,
    answer: Option<oneshot::Sender<Result<MachineId>>>,
}

/// What comes in, in order.
#[allow(clippy::large_enum_variant, reason = "nearly all are letters")]
enum Post {
    Letter(Letter),
    /// A list of expected machines: whole, or nothing of it.
    Import(expected::Import),
}

/// What the engine needs of the site to act and to issue orders.
pub struct Site {
    pub db: Db,
    pub seal: Seal,
    pub key: SigningKey,
    pub fleet: Fleet,
    pub outlets: Outlets,
    pub firmware: Depot,
    pub models: models::Shelf,
    pub seed: SeedFacts,
    pub bmc_setup: BmcSetup,
    /// What a host must show before it is handed off.
    pub checks: check::Set,
    /// What every machine is put through before it is ready.
    pub burn: Option<BurnProfile>,
    /// Network boots in one state after which a machine is held.
    pub boot_limit: u32,
    /// The port map is asked where a machine is plugged in.
    pub switches: Arc<Switches>,
    /// Who is told what becomes of machines.
    pub announce: announce::Announce,
}

/// A handle; clones speak to the same engine.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    site: Site,
    inbox: mpsc::Sender<Post>,
    /// Whether BMCs of the list get passwords of their own.
    own_passwords: AtomicBool,
    world: RwLock<World>,
    progress: Mutex<HashMap<MachineId, Progress>>,
    learning: learn::Learning,
    sweep: OnceLock<Sweep>,
    found: found::Found,
    /// What all machines measured. Locked after the world where both are.
    cohorts: Mutex<Cohorts>,
    changes: broadcast::Sender<MachineId>,
    /// Machines that are about to be switched on, reset or power cycled.
    boots: broadcast::Sender<MachineId>,
    /// Wakes the clock when a turn set an earlier deadline.
    alarm: tokio::sync::Notify,
    stop: CancellationToken,
}

pub fn now() -> Millis {
    jiff::Timestamp::now().as_millisecond()
}

impl Engine {
    /// Loads what the last run left and goes on from there.
    pub async fn start(site: Site, stop: CancellationToken) -> Result<Self> {
        let mut world = World::default();
        let mut machines = site.db.machines().await?;
        expected::share_purchases(&mut machines);
        for machine in machines {
            world.put(machine);
        }
        let pending = site.db.pending().await?;
        let learning = learn::Learning::load(&site.db).await?;
        tokio::spawn(learning.clone().write(site.db.clone(), stop.clone()));
        let (inbox, letters) = mpsc::channel(INBOX);
        let ((changes, _), (boots, _)) = (broadcast::channel(1024), broadcast::channel(1024));
        let inner = Arc::new(Inner {
            site,
            inbox,
            own_passwords: AtomicBool::new(false),
            world: RwLock::new(world),
            progress: Mutex::default(),
            learning,
            sweep: OnceLock::new(),
            found: found::Found::default(),
            cohorts: Mutex::default(),
            changes,
            boots,
            alarm: tokio::sync::Notify::new(),
            stop,
        });
        let engine = Self { inner };
        engine.machines().iter().for_each(|machine| engine.twin(None, Some(machine)));
        let effects = effects::Effects::new(engine.clone());
        for left in pending {
            effects.resume(left);
        }
        tokio::spawn(turn::run(engine.clone(), letters, effects));
        tokio::spawn(turn::clock(engine.clone()));
        engine.announce();
        Ok(engine)
    }

    /// Tells a fact and waits until it is on disk, or refused.
    pub async fn submit(&self, about: About, event: Event) -> Result<MachineId> {
        let (answer, done) = oneshot::channel();
        self.send(Letter { about, event, settles: None, answer: Some(answer) }).await?;
        done.await.map_err(|_| stopping())?
    }

    /// Tells a fact without waiting; dropped with a warning when the inbox is full, since the caller must not be held up.
    pub fn tell(&self, about: About, event: Event) {
        if self.inner.inbox.try_send(Post::Letter(Letter { about, event, settles: None, answer: None })).is_err() {
            tracing::warn!("the inbox is full: a fact was dropped; the machine will tell it again");
        }
    }

    /// The result of an action: settles it in the same transaction.
    async fn settle(&self, action: i64, machine: MachineId, event: Event) -> Result<()> {
        self.send(Letter { about: About::Machine(machine), event, settles: Some(action), answer: None }).await
    }

    async fn send(&self, letter: Letter) -> Result<()> {
        self.inner.inbox.send(Post::Letter(letter)).await.map_err(|_| stopping())
    }

    pub fn find(&self, text: &str) -> Result<Arc<Machine>> {
        self.world().find(text)
    }

    pub fn machine(&self, id: MachineId) -> Option<Arc<Machine>> {
        self.world().get(id)
    }

    /// All machines by name.
    pub fn machines(&self) -> Vec<Arc<Machine>> {
        let mut all = self.world().all();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Sealed at once; an unchanged password writes nothing.
    pub async fn set_bmc_password(&self, id: MachineId, password: &Secret) -> Result<()> {
        let site = &self.inner.site;
        let name = bmc_secret(id);
        if site.db.secret(&site.seal, &name).await?.as_deref() == Some(password.expose()) {
            return Ok(());
        }
        site.db.put_secret(&site.seal, &name, password.expose()).await
    }

    pub fn db(&self) -> &Db {
        &self.inner.site.db
    }

    /// The key that passports and images of this site are signed with.
    pub fn public_key(&self) -> PublicKey {
        self.inner.site.key.public()
    }

    pub fn firmware(&self) -> &Depot {
        &self.inner.site.firmware
    }

    pub fn models(&self) -> &models::Shelf {
        &self.inner.site.models
    }

    pub fn switches(&self) -> &Switches {
        &self.inner.site.switches
    }

    pub fn progress(&self, id: MachineId) -> Option<Progress> {
        self.inner.progress.lock().unwrap_or_else(|e| e.into_inner()).get(&id).cloned()
    }

    /// Kept in memory only, and only for the order that is current.
    pub fn set_progress(&self, id: MachineId, progress: Progress) {
        if self.machine(id).is_some_and(|m| m.number == progress.number) {
            self.inner.progress.lock().unwrap_or_else(|e| e.into_inner()).insert(id, progress);
            let _ = self.inner.changes.send(id);
        }
    }

    /// Names of machines as they change; a slow listener misses some and is told so by the channel.
    pub fn changes(&self) -> broadcast::Receiver<MachineId> {
        self.inner.changes.subscribe()
    }

    /// Machines that are about to be switched on, reset or power cycled.
    pub fn boots(&self) -> broadcast::Receiver<MachineId> {
        self.inner.boots.subscribe()
    }

    /// The agent's current order; waits up to `patience` while its number is still `after`.
    pub async fn order(&self, id: MachineId, mode: Mode, after: Option<u64>, patience: Duration) -> Result<Issued> {
        let gone = || Error::not_found("machine.unknown", "this machine is not known here").hint("say hello again");
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let bell = self.world().bell(id).ok_or_else(gone)?;
            let rung = bell.notified();
            tokio::pin!(rung);
            rung.as_mut().enable();
            let machine = self.machine(id).ok_or_else(gone)?;
            if after != Some(machine.number) {
                return self.issue(&machine, mode);
            }
            tokio::select! {
                () = &mut rung => {}
                () = tokio::time::sleep_until(deadline) => return self.issue(&machine, mode),
                () = self.inner.stop.cancelled() => return Err(stopping()),
            }
        }
    }

    fn world(&self) -> std::sync::RwLockReadGuard<'_, World> {
        self.inner.world.read().unwrap_or_else(|e| e.into_inner())
    }

    fn world_mut(&self) -> std::sync::RwLockWriteGuard<'_, World> {
        self.inner.world.write().unwrap_or_else(|e| e.into_inner())
    }
}

fn stopping() -> Error {
    Error::unreachable("engine.stopping", "the appliance is stopping").hint("try again when it is up")
}

/// The name under which the password of a machine's BMC is sealed.
fn bmc_secret(machine: MachineId) -> String {
    format!("bmc/{machine}")
}
