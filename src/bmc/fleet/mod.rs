//! All BMCs of the site: who is asked when, and with which session.
//!
//! ```text
//! command ─► breaker ─► the BMC's line ─► breaker ─► a place ─► slot: session, log-in, command ─► kept sessions
//!             silent?    one at a time     silent?    for 2 s at most
//! ```
//!
//! * One command at a time per BMC, since BMCs are slow and get confused. A look on behalf of nobody ([`Fleet::look`]) gives
//!   way to a command: it does not begin while one waits, and ends when one comes.
//! * A place is held for [`Settings::place`] at most. So places limit how many commands begin at once, and not how many BMCs
//!   are slow: with `d` dead ones in front of it, a command waits `place * d / parallel` at most, and what waits for a BMC
//!   costs a socket and a timer. Looks have places of their own.
//! * A BMC that is not being talked to costs a map entry, its kept session and sensor records, and no task: one task looks
//!   after the kept sessions, and it lives only while there are some.

mod breaker;
mod kept;
mod slot;

use std::collections::HashMap;
use std::future::{Future, pending};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use breaker::Breaker;
pub use breaker::Open;
use futures::future::BoxFuture;
use kept::{Kept, Next, Put};
use slot::Slot;
use tokio::sync::{Mutex as Turn, Notify, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};

use super::act::Limits;
use super::redfish::Known;
use super::rmcp::{Pace, Session};
use super::{Access, Answer, Command, Doors, Protocol};
use crate::error::{Error, Result};
use crate::machine::Secret;

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub pace: Pace,
    pub limits: Limits,
    /// For one command, from its turn on.
    pub command: Duration,
    /// For those that read a lot: sensors, logs, parts.
    pub long: Duration,
    /// For a look that nobody waits for: the sensor records of a slow BMC take minutes, once.
    pub look: Duration,
    /// For a firmware update, which some BMCs take half an hour for.
    pub update: Duration,
    /// For its turn.
    pub turn: Duration,
    /// Until an unused session is closed, or kept alive where a look comes soon. Below the 60 s after which a BMC drops it
    /// by itself (section 6.12.15).
    pub idle: Duration,
    /// Sessions that are kept open for the next command, at most.
    pub keep: usize,
    /// Commands that have a place at the same time; as many looks besides.
    pub parallel: usize,
    /// How long a command keeps its place, at most.
    pub place: Duration,
    /// Between two log-ins at one BMC: many have four sessions, and hold those that were lost for a minute.
    pub log_in_gap: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pace: Pace::default(),
            limits: Limits::default(),
            command: Duration::from_secs(40),
            long: Duration::from_secs(120),
            look: Duration::from_secs(600),
            update: Duration::from_secs(3600),
            turn: Duration::from_secs(120),
            idle: Duration::from_secs(30),
            keep: 4096,
            parallel: 2048,
            place: Duration::from_secs(2),
            log_in_gap: Duration::from_secs(1),
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
/// Commands that may wait for their turn with one BMC.
const LINE: u32 = 32;

/// Cheap to clone; all clones are the same fleet.
#[derive(Clone)]
pub struct Fleet {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    known: Known,
    bmcs: Mutex<HashMap<SocketAddr, Arc<Entry>>>,
    commands: Arc<Semaphore>,
    looks: Arc<Semaphore>,
    kept: Kept,
}

/// One BMC. What is known without its turn, and the turn.
#[derive(Default)]
struct Entry {
    standing: Mutex<Standing>,
    /// Commands that wait for their turn or have it.
    waiting: AtomicU32,
    /// Rings when one comes.
    asked: Notify,
    slot: Arc<Turn<Slot>>,
}

#[derive(Default)]
struct Standing {
    ipmi: Breaker,
    redfish: Breaker,
    refused: Option<Refused>,
}

struct Refused {
    user: String,
    password: Secret,
    times: u32,
}

/// Holds the turn of a BMC.
pub struct Guard {
    _turn: OwnedMutexGuard<Slot>,
}

/// A command on its way, with what it is about.
struct Call<'a> {
    access: &'a Access,
    key: SocketAddr,
    door: Protocol,
    address: SocketAddr,
    entry: Arc<Entry>,
}

/// One more in the line, until it is dropped.
struct InLine<'a>(&'a Entry);

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
    }
}

/// A panic while the lock was held leaves what it guards whole; there is nothing to repair.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fleet {
    pub fn new(settings: Settings) -> Self {
        Self::knowing(settings, Known::default())
    }

    /// With what the BMCs that speak Redfish are believed by.
    pub fn knowing(settings: Settings, known: Known) -> Self {
        let places = || Arc::new(Semaphore::new(settings.parallel));
        let (commands, looks) = (places(), places());
        let inner = Inner { settings, known, bmcs: Mutex::default(), commands, looks, kept: Kept::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Runs one command: look, act, read back. Waits for its turn with this BMC first.
    pub async fn run(&self, access: &Access, command: Command) -> Result<Answer> {
        let (limits, allowed) = (self.limits(), self.allowed(&command));
        self.run_within(access, command, &limits, allowed).await
    }

    /// What is usual, where nothing else is known of a BMC.
    pub fn limits(&self) -> Limits {
        self.inner.settings.limits
    }

    /// How long a command may take as a whole, likewise.
    pub fn allowed(&self, command: &Command) -> Duration {
        self.inner.settings.allowed(command)
    }

    /// The same, with the waits that this BMC is known to need.
    pub async fn run_within(
        &self,
        access: &Access,
        command: Command,
        limits: &Limits,
        allowed: Duration,
    ) -> Result<Answer> {
        let settings = &self.inner.settings;
        let call = self.call(access)?;
        let (mut slot, place, _in_line) = self.turn(&call).await?;
        let work = self.attend(&mut slot, &call, &command, limits, allowed, pending());
        let result = briefly(place, settings.place, work).await;
        self.leave(slot, &call, &result).await;
        result
    }

    /// Runs a command that only reads, on behalf of nobody who waits for it: `bmc.gave-way` where the BMC is busy, or as
    /// soon as somebody else wants it. The session is kept for `again`, when the next look comes.
    pub async fn look(&self, access: &Access, command: Command, again: Duration) -> Result<Answer> {
        let settings = &self.inner.settings;
        let call = self.call(access)?;
        let mut asked = pin!(call.entry.asked.notified());
        asked.as_mut().enable();
        if call.entry.waiting.load(SeqCst) > 0 {
            return Err(call.gave_way());
        }
        let mut slot = call.entry.slot.clone().try_lock_owned().map_err(|_| call.gave_way())?;
        call.admit(false)?;
        let place = self.inner.looks.clone().acquire_owned().await;
        slot.expected = Some(Instant::now() + again);
        let work = self.attend(&mut slot, &call, &command, &settings.limits, settings.look, asked);
        let result = briefly(place.ok(), settings.place, work).await;
        self.leave(slot, &call, &result).await;
        result
    }

    /// This BMC's turn, a place to begin in, and the mark that somebody waits, which a look gives way to.
    async fn turn<'c>(
        &self,
        call: &'c Call<'_>,
    ) -> Result<(OwnedMutexGuard<Slot>, Option<OwnedSemaphorePermit>, InLine<'c>)> {
        let patience = self.inner.settings.turn;
        call.admit(call.entry.slot.try_lock().is_err())?;
        let in_line = call.line_up()?;
        let slot = timeout(patience, call.entry.slot.clone().lock_owned()).await.map_err(|_| call.busy())?;
        call.admit(false)?;
        let place = timeout(patience, self.inner.commands.clone().acquire_owned()).await.map_err(|_| call.busy())?;
        Ok((slot, place.ok(), in_line))
    }

    /// A session of its own beside the fleet's, for what lasts, such as a console. It is made in the turn of this BMC, and
    /// nobody else asks it anything until the guard is dropped; a refused log-in and a silence count as those of commands do.
    pub async fn beside(&self, access: &Access) -> Result<(Session, Guard)> {
        let settings = &self.inner.settings;
        let (Some(key), Some(address)) = (access.doors.key(), access.doors.ipmi) else {
            return Err(Error::refused("bmc.unsupported", "this needs IPMI, and the BMC's IPMI address is not known")
                .hint("add it to bmc_address in the list of expected machines"));
        };
        let entry = lock(&self.inner.bmcs).entry(key).or_default().clone();
        let call = Call { access, key, door: Protocol::Ipmi, address, entry };
        let (mut slot, place, _in_line) = self.turn(&call).await?;
        let work = slot.beside(access, address, settings, Instant::now() + settings.command);
        let opened = briefly(place, settings.place, work).await;
        lock(&call.entry.standing).note(&call, opened.as_ref().err());
        Ok((opened?, Guard { _turn: slot }))
    }

    /// Why a BMC is not asked through its first door, while that is so.
    pub fn open_circuit(&self, doors: &Doors) -> Option<Open> {
        let (door, _) = doors.way()?;
        let entry = lock(&self.inner.bmcs).get(&doors.key()?).cloned()?;
        lock(&entry.standing).breaker(door).open(Instant::now())
    }

    fn call<'a>(&self, access: &'a Access) -> Result<Call<'a>> {
        let (Some(key), Some((door, address))) = (access.doors.key(), access.doors.way()) else {
            return Err(Error::config("bmc.unknown", "a BMC has no address"));
        };
        let entry = lock(&self.inner.bmcs).entry(key).or_default().clone();
        Ok(Call { access, key, door, address, entry })
    }

    /// `give_way` ends the command, but not a log-in, which would leave half a session at the BMC.
    async fn attend(
        &self,
        slot: &mut Slot,
        call: &Call<'_>,
        command: &Command,
        limits: &Limits,
        allowed: Duration,
        give_way: impl Future<Output = ()>,
    ) -> Result<Answer> {
        let settings = &self.inner.settings;
        if let Some(at) = slot.kept.take() {
            self.inner.kept.take(at, call.key);
        }
        let deadline = Instant::now() + allowed;
        let reused = slot.enter(call.access, settings, &self.inner.known, deadline).await?;
        let work = async {
            match slot.perform(command, limits).await {
                // Silence in a session from before says that the BMC has dropped it, or was restarted: once more, in a new
                // one. Nothing was done yet, since nothing was heard.
                Err(e) if reused && e.code() == "bmc.unreachable" && !slot.heard() => {
                    slot.open(call.access, settings, &self.inner.known, deadline).await?;
                    slot.perform(command, limits).await
                }
                result => result,
            }
        };
        tokio::select! {
            biased;
            result = work => result,
            () = give_way => Err(call.gave_way()),
        }
    }

    /// Notes what came of it, and keeps the session for the next command or closes it where too many are kept.
    async fn leave(&self, mut slot: OwnedMutexGuard<Slot>, call: &Call<'_>, result: &Result<Answer>) {
        lock(&call.entry.standing).note(call, result.as_ref().err());
        if result.as_ref().is_err_and(|e| e.code() == "bmc.unreachable") {
            slot.drop_session();
        }
        self.keep(&mut slot, call.key).await;
    }

    async fn keep(&self, slot: &mut Slot, bmc: SocketAddr) {
        let Some(used) = slot.last_used() else { return };
        let at = used + self.inner.settings.idle;
        slot.kept = Some(at);
        match self.inner.kept.put(at, bmc, self.inner.settings.keep) {
            Put::Watched => {}
            Put::Unwatched => drop(tokio::spawn(look_after_kept(Arc::downgrade(&self.inner)))),
            Put::Full => {
                slot.kept = None;
                slot.close().await;
            }
        }
    }

    fn look_after(self, bmc: SocketAddr) {
        let Some(entry) = lock(&self.inner.bmcs).get(&bmc).cloned() else { return };
        // Whoever has the turn now puts the session back.
        let Ok(mut slot) = entry.slot.clone().try_lock_owned() else { return };
        slot.kept = None;
        tokio::spawn(async move {
            match slot.expected.is_some_and(|until| until > Instant::now()) {
                true => {
                    slot.keep_alive().await;
                    self.keep(&mut slot, bmc).await;
                }
                false => slot.close().await,
            }
        });
    }

    /// Ends all sessions, so that the BMCs have their session slots back. For the shut-down.
    pub async fn close(&self) {
        let bmcs: Vec<_> = lock(&self.inner.bmcs).iter().map(|(key, entry)| (*key, entry.clone())).collect();
        let farewells = bmcs.into_iter().map(|(key, entry)| async move {
            let mut slot = entry.slot.lock().await;
            if let Some(at) = slot.kept.take() {
                self.inner.kept.take(at, key);
            }
            slot.close().await;
        });
        futures::future::join_all(farewells).await;
    }
}

/// Does the work, and gives the place back after this time even if that takes longer.
async fn briefly<T>(place: Option<OwnedSemaphorePermit>, time: Duration, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    if let Ok(done) = timeout(time, &mut work).await {
        return done;
    }
    drop(place);
    work.await
}

impl Call<'_> {
    fn line_up(&self) -> Result<InLine<'_>> {
        let before = self.entry.waiting.fetch_add(1, SeqCst);
        let in_line = InLine(&self.entry);
        if before >= LINE {
            return Err(self.busy());
        }
        self.entry.asked.notify_waiters();
        Ok(in_line)
    }

    /// Refuses at once what would lock the account, or wait for a BMC that is known to be silent. `taken`: somebody has its
    /// turn, so that the try which is due is under way.
    fn admit(&self, taken: bool) -> Result<()> {
        let mut standing = lock(&self.entry.standing);
        let name = self.whose();
        if let Some(refused) = &standing.refused
            && refused.times >= REFUSALS_MAX
            && refused.is_of(self.access)
        {
            let message = format!("{name} refused this user and password {REFUSALS_MAX} times and is not asked again");
            return Err(Error::refused("bmc.auth", message)
                .hint("enter the right user and password; new credentials are tried at once"));
        }
        let Some(open) = standing.breaker(self.door).open(Instant::now()) else { return Ok(()) };
        let next = match open.next_try.is_zero() {
            true if !taken => return Ok(()),
            true => "it is being tried right now".to_owned(),
            false => format!("it is asked again in {} s", open.next_try.as_secs() + 1),
        };
        let message = format!("{name} did not answer {} times in a row", open.silences);
        let hint = format!("{next}; check the cable and the address: ping {}", self.address.ip());
        Err(Error::unreachable("bmc.unreachable", message).because(open.why).hint(hint))
    }

    fn whose(&self) -> String {
        self.door.whose(self.address)
    }

    fn busy(&self) -> Error {
        Error::unreachable("bmc.busy", format!("{} is still busy with earlier commands", self.whose()))
            .hint("ask again in a minute")
    }

    fn gave_way(&self) -> Error {
        Error::unreachable("bmc.gave-way", format!("{} is wanted for a command", self.whose()))
    }
}

impl Refused {
    /// Through whichever door: both lead to the same account.
    fn is_of(&self, access: &Access) -> bool {
        self.user == access.user && self.password == access.password
    }
}

impl Standing {
    fn breaker(&mut self, door: Protocol) -> &mut Breaker {
        match door {
            Protocol::Ipmi => &mut self.ipmi,
            Protocol::Redfish => &mut self.redfish,
        }
    }

    /// `None`: it went well.
    fn note(&mut self, call: &Call<'_>, failed: Option<&Error>) {
        match failed.map(Error::code) {
            None => self.refused = None,
            Some("bmc.auth") => {
                let before = self.refused.take().filter(|refused| refused.is_of(call.access)).map_or(0, |r| r.times);
                let Access { user, password, .. } = call.access.clone();
                self.refused = Some(Refused { user, password, times: before + 1 });
            }
            // Says nothing of the BMC.
            Some("bmc.gave-way") => return,
            Some(_) => {}
        }
        let breaker = self.breaker(call.door);
        match failed {
            Some(e) if e.code() == "bmc.unreachable" => breaker.silent(e.message(), Instant::now()),
            _ => breaker.answered(),
        }
    }
}

/// Closes sessions that were not used for [`Settings::idle`], and keeps those alive for which a look comes; ends when none
/// is left. Boxed, since keeping a session alive puts it back, which starts this task.
fn look_after_kept(fleet: Weak<Inner>) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        while let Some(inner) = fleet.upgrade() {
            match inner.kept.next(Instant::now()) {
                Next::End => return,
                Next::At(at) => {
                    drop(inner);
                    sleep_until(at).await;
                }
                Next::Due(bmc) => Fleet { inner }.look_after(bmc),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_spawned() {
        fn is_send(_: impl Send) {}
        let fleet = Fleet::new(Settings::default());
        let doors = Doors::ipmi(([127, 0, 0, 1], 623).into());
        let access = Access { doors, user: String::new(), password: Secret::new(""), machine: Default::default() };
        is_send(fleet.run(&access, Command::Sensors));
        is_send(fleet.look(&access, Command::Sensors, Duration::ZERO));
    }

    #[tokio::test]
    async fn a_place_is_given_back_before_long_work_ends() {
        let places = Arc::new(Semaphore::new(1));
        let place = places.clone().acquire_owned().await.ok();
        let work = tokio::spawn(briefly(place, Duration::from_millis(20), pending::<()>()));
        let _mine = places.acquire().await.unwrap();
        assert!(!work.is_finished());
        work.abort();
    }
}
