//! All BMCs of the site: who is asked when, and with which session.
//!
//! One command at a time per BMC, since BMCs are slow and get confused; as many BMCs at once as [`Settings::parallel`]
//! allows. A session stays open for a while after a command. A BMC that is not being talked to costs a map entry and no
//! task: one task closes idle sessions, and it lives only while there are some.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Mutex as Turn, OwnedMutexGuard, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};

use super::act::{Limits, perform};
use super::ipmi::{Ipmi, Records};
use super::rmcp::{Pace, Session, Suite, whose};
use super::{Access, Answer, Command, Protocol};
use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub pace: Pace,
    pub limits: Limits,
    /// For one command, from its turn on.
    pub command: Duration,
    /// For those that read a lot: sensors, logs, parts.
    pub long: Duration,
    /// For a firmware update, which some BMCs take half an hour for.
    pub update: Duration,
    /// For its turn.
    pub turn: Duration,
    /// Below the 60 s after which a BMC drops a session by itself (section 6.12.15).
    pub idle: Duration,
    /// Sessions that are kept open for the next command, at most.
    pub keep: usize,
    /// BMCs that are talked to at the same time.
    pub parallel: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pace: Pace::default(),
            limits: Limits::default(),
            command: Duration::from_secs(40),
            long: Duration::from_secs(120),
            update: Duration::from_secs(3600),
            turn: Duration::from_secs(120),
            idle: Duration::from_secs(20),
            keep: 256,
            parallel: 256,
        }
    }
}

impl Settings {
    fn allowed(&self, command: &Command) -> Duration {
        match command {
            Command::Sensors | Command::Log { .. } | Command::Parts | Command::Components => self.long,
            Command::Update(_) => self.update,
            _ => self.command,
        }
    }
}

/// Log-ins with one user and password that a BMC may refuse. More would lock the account on many BMCs.
const REFUSALS_MAX: u32 = 3;
/// Commands in a row without an answer, after which a BMC is left alone for a while.
const SILENCES_MAX: u32 = 3;
const LEFT_ALONE: Duration = Duration::from_secs(5);
const LEFT_ALONE_MAX: Duration = Duration::from_secs(60);

/// Cheap to clone; all clones are the same fleet.
#[derive(Clone)]
pub struct Fleet {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    slots: Mutex<HashMap<SocketAddr, Arc<Turn<Slot>>>>,
    parallel: Arc<Semaphore>,
    idle: Mutex<Idle>,
}

/// Sessions that may be closed, the one that is due first in front.
#[derive(Default)]
struct Idle {
    queue: VecDeque<Due>,
    /// The closing task is running.
    watched: bool,
}

enum Kept {
    No,
    Watched,
    /// Nobody watches the queue yet.
    First,
}

struct Due {
    address: SocketAddr,
    used: Instant,
}

/// What is known of one BMC; held by whoever has the turn.
#[derive(Default)]
struct Slot {
    session: Option<(Session, Access)>,
    suite: Option<Suite>,
    records: Option<Records>,
    refused: Option<Refused>,
    silences: u32,
    left_alone_until: Option<Instant>,
}

struct Refused {
    access: Access,
    times: u32,
}

/// A panic while the map was locked leaves a map that is whole; there is nothing to repair.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fleet {
    pub fn new(settings: Settings) -> Self {
        let parallel = Arc::new(Semaphore::new(settings.parallel));
        let inner = Inner { settings, slots: Mutex::default(), parallel, idle: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Runs one command: look, act, read back. Waits for its turn with this BMC first.
    pub async fn run(&self, access: &Access, command: Command) -> Result<Answer> {
        self.run_within(access, command, &self.inner.settings.limits).await
    }

    /// What is usual, where nothing else is known of a BMC.
    pub fn limits(&self) -> Limits {
        self.inner.settings.limits
    }

    /// The same, with the waits that this BMC is known to need.
    pub async fn run_within(&self, access: &Access, command: Command, limits: &Limits) -> Result<Answer> {
        let settings = &self.inner.settings;
        let (Some(key), Some((_, address))) = (access.doors.key(), access.doors.way()) else {
            return Err(Error::config("bmc.unknown", "a BMC has no address"));
        };
        let slot = lock(&self.inner.slots).entry(key).or_default().clone();
        let busy = |_| {
            Error::unreachable("bmc.busy", format!("{} is still busy with earlier commands", whose(address)))
                .hint("ask again in a minute")
        };
        let mut slot = timeout(settings.turn, slot.lock_owned()).await.map_err(busy)?;
        slot.may_try(access, address)?;
        let _place = timeout(settings.turn, self.inner.parallel.clone().acquire_owned()).await.map_err(busy)?;
        let result = self.attend(&mut slot, access, command, limits).await;
        slot.note(access, &result);
        self.put_back(slot, key).await;
        result
    }

    async fn attend(&self, slot: &mut Slot, access: &Access, command: Command, limits: &Limits) -> Result<Answer> {
        let settings = &self.inner.settings;
        let allowed = settings.allowed(&command);
        let deadline = Instant::now() + allowed;
        let reused = slot.reuse(access, settings, deadline).await;
        if !reused {
            slot.open(access, settings, deadline).await?;
        }
        let result = slot.perform(&command, limits).await;
        match result {
            // Silence in a session from before says that the BMC has dropped it, or was restarted: once more, in a new
            // one. Nothing was done yet, since nothing was heard.
            Err(e) if reused && e.code() == "bmc.unreachable" && !slot.heard() => {
                slot.session = None;
                slot.open(access, settings, deadline).await?;
                slot.perform(&command, limits).await
            }
            result => result,
        }
    }

    /// Keeps the session for the next command, or closes it where too many are kept.
    async fn put_back(&self, mut slot: OwnedMutexGuard<Slot>, address: SocketAddr) {
        let Some(used) = slot.session.as_ref().map(|(session, _)| session.last_used()) else { return };
        match self.keep(Due { address, used }) {
            Kept::No => slot.close().await,
            Kept::Watched => {}
            Kept::First => drop(tokio::spawn(close_idle(Arc::downgrade(&self.inner)))),
        }
    }

    fn keep(&self, due: Due) -> Kept {
        let mut idle = lock(&self.inner.idle);
        if idle.queue.len() >= self.inner.settings.keep {
            return Kept::No;
        }
        idle.queue.push_back(due);
        match std::mem::replace(&mut idle.watched, true) {
            true => Kept::Watched,
            false => Kept::First,
        }
    }

    /// Ends all sessions, so that the BMCs have their session slots back. For the shut-down.
    pub async fn close(&self) {
        let slots: Vec<_> = lock(&self.inner.slots).values().cloned().collect();
        let farewells = slots.into_iter().map(|slot| async move { slot.lock().await.close().await });
        futures::future::join_all(farewells).await;
    }
}

impl Slot {
    /// Whether the session from before can be used; one of another user or an old one is closed.
    async fn reuse(&mut self, access: &Access, settings: &Settings, deadline: Instant) -> bool {
        match &mut self.session {
            Some((session, of)) if of == access && session.last_used().elapsed() < settings.idle => {
                session.begin(deadline);
                true
            }
            _ => {
                self.close().await;
                false
            }
        }
    }

    async fn open(&mut self, access: &Access, settings: &Settings, deadline: Instant) -> Result<()> {
        let opened = match access.doors.way() {
            Some((Protocol::Ipmi, address)) => {
                Session::open(access, address, settings.pace, self.suite, deadline).await
            }
            _ => Err(Error::refused("bmc.unsupported", "Redfish is not spoken by this release")
                .hint("give the BMC's IPMI address")),
        };
        // The suites of a BMC change with its settings and its firmware.
        self.suite = opened.as_ref().ok().map(Session::suite);
        self.session = Some((opened?, access.clone()));
        Ok(())
    }

    async fn perform(&mut self, command: &Command, limits: &Limits) -> Result<Answer> {
        let Some((session, _)) = &mut self.session else {
            return Err(Error::internal("bmc.session", "a command without a session"));
        };
        perform(&mut Ipmi { session, records: &mut self.records }, command, limits).await
    }

    fn heard(&self) -> bool {
        self.session.as_ref().is_some_and(|(session, _)| session.heard())
    }

    async fn close(&mut self) {
        if let Some((session, _)) = self.session.take() {
            session.close().await;
        }
    }

    /// Refuses at once what would lock the account, or wait for a BMC that is known to be silent.
    fn may_try(&self, access: &Access, address: SocketAddr) -> Result<()> {
        let name = whose(address);
        if let Some(refused) = &self.refused
            && refused.times >= REFUSALS_MAX
            && refused.access == *access
        {
            let message = format!("{name} refused this user and password {REFUSALS_MAX} times and is not asked again");
            return Err(Error::refused("bmc.auth", message)
                .hint("enter the right user and password; new credentials are tried at once"));
        }
        let left = self.left_alone_until.map(|until| until.saturating_duration_since(Instant::now()));
        if let Some(left) = left.filter(|left| !left.is_zero()) {
            let message = format!("{name} did not answer {} times in a row", self.silences);
            return Err(Error::unreachable("bmc.unreachable", message).hint(format!(
                "it is asked again in {} s; check the cable and the address: ping {}",
                left.as_secs() + 1,
                address.ip()
            )));
        }
        Ok(())
    }

    fn note(&mut self, access: &Access, result: &Result<Answer>) {
        let code = result.as_ref().err().map(Error::code);
        if code == Some("bmc.auth") {
            let before = self.refused.take().filter(|refused| refused.access == *access).map_or(0, |r| r.times);
            self.refused = Some(Refused { access: access.clone(), times: before + 1 });
        } else if result.is_ok() {
            self.refused = None;
        }
        if code != Some("bmc.unreachable") {
            self.silences = 0;
            self.left_alone_until = None;
            return;
        }
        // Whatever state that session is in, the next command starts with a new one.
        self.session = None;
        self.silences = self.silences.saturating_add(1);
        if let Some(more) = self.silences.checked_sub(SILENCES_MAX) {
            let pause = LEFT_ALONE.saturating_mul(1 << more.min(8)).min(LEFT_ALONE_MAX);
            self.left_alone_until = Some(Instant::now() + pause);
        }
    }
}

/// Closes sessions that were not used for [`Settings::idle`]; ends when none is left.
async fn close_idle(fleet: Weak<Inner>) {
    loop {
        let Some(inner) = fleet.upgrade() else { return };
        let next = {
            let mut idle = lock(&inner.idle);
            let at = |due: &Due| due.used + inner.settings.idle;
            match idle.queue.front().map(at) {
                Some(at) if at > Instant::now() => Err(at),
                Some(_) => Ok(idle.queue.pop_front()),
                None => {
                    idle.watched = false;
                    return;
                }
            }
        };
        let due = match next {
            Ok(due) => due,
            Err(at) => {
                drop(inner);
                sleep_until(at).await;
                continue;
            }
        };
        let Some(due) = due else { continue };
        let slot = lock(&inner.slots).get(&due.address).cloned();
        // Whoever has the turn now puts the session back with a later time.
        let Some(Ok(mut slot)) = slot.map(Turn::try_lock_owned) else { continue };
        if slot.session.as_ref().is_some_and(|(session, _)| session.last_used() == due.used) {
            tokio::spawn(async move { slot.close().await });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bmc::Doors;

    const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 623);

    #[test]
    fn a_command_can_be_spawned() {
        fn is_send(_: impl Send) {}
        let fleet = Fleet::new(Settings::default());
        let access =
            Access { doors: Doors::ipmi(ADDRESS), user: String::new(), password: crate::machine::Secret::new("") };
        is_send(fleet.run(&access, Command::Sensors));
    }

    #[test]
    fn a_bmc_is_left_alone_after_three_silences_and_longer_each_time() {
        let access =
            Access { doors: Doors::ipmi(ADDRESS), user: "a".into(), password: crate::machine::Secret::new("b") };
        let mut slot = Slot::default();
        let silence = || Err(Error::unreachable("bmc.unreachable", "no answer"));
        for _ in 0..2 {
            slot.note(&access, &silence());
            assert!(slot.may_try(&access, ADDRESS).is_ok());
        }
        let mut pauses = Vec::new();
        for _ in 0..6 {
            slot.note(&access, &silence());
            assert_eq!(slot.may_try(&access, ADDRESS).unwrap_err().code(), "bmc.unreachable");
            pauses.push(slot.left_alone_until.unwrap().duration_since(Instant::now()).as_secs_f64().round());
        }
        assert_eq!(pauses, [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]);
        slot.note(&access, &Err(Error::refused("bmc.refused", "it speaks")));
        assert!(slot.may_try(&access, ADDRESS).is_ok());
    }
}
