//! The consoles of all machines: who is connected and why, who watches, who types, what is recorded.
//!
//! A console is connected while it is recorded or somebody watches it, by a task of its own that sleeps until the machine
//! prints, a key is typed or its BMC is due to be asked (20 s). A lost console is taken up again, after a pause that
//! grows; the recording goes on with a note about the gap. The session is set up in the BMC's turn in the fleet
//! ([`Fleet::beside`]), so that it counts for what one BMC is asked at a time.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::record::{Recorder, Shelf};
use super::{ENDED, Said, Sol, Taken, Timing};
use crate::bmc::{Access, Fleet};
use crate::error::{Error, Kind, Result};
use crate::machine::MachineId;

/// How a machine's BMC is entered now; asked before each connection, since users and passwords change.
pub type Door = Arc<dyn Fn(MachineId) -> BoxFuture<'static, Result<Access>> + Send + Sync>;

/// What a new watcher sees of what was printed before.
const RECENT: usize = 8 << 10;
/// Pieces that wait for a slow watcher; then it misses some, and is told.
const PIECES: usize = 256;
/// Characters typed that the BMC has not taken yet.
const TYPED_MAX: usize = 4096;
/// A connection that lasted this long was a good one.
const GOOD: Duration = Duration::from_secs(60);
/// For all consoles to say farewell when the appliance stops.
const FAREWELL: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Nobody wants it.
    #[default]
    Idle,
    Connecting,
    Connected,
    /// It is tried again in a while.
    Waiting {
        why: String,
        hint: Option<String>,
    },
}

/// What a watcher is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    Text(Arc<[u8]>),
    Note(String),
    Status(Status),
    /// Somebody else types now.
    Displaced,
}

/// What is typed.
pub enum Typed {
    Text(Vec<u8>),
    Break,
}

/// Whether a watcher types too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hands {
    Off,
    /// If nobody else does.
    On,
    /// Even so.
    Instead,
}

#[derive(Clone)]
pub struct Consoles {
    inner: Arc<Inner>,
}

struct Inner {
    fleet: Fleet,
    door: Door,
    recorder: Recorder,
    timing: Timing,
    consoles: Mutex<HashMap<MachineId, Arc<Console>>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// One machine's.
struct Console {
    machine: MachineId,
    state: Mutex<State>,
    /// Rung when something is wanted of the task.
    bell: Notify,
}

#[derive(Default)]
struct State {
    recorded: bool,
    watchers: HashMap<u64, Watcher>,
    last_watcher: u64,
    /// The one who types.
    writer: Option<u64>,
    status: Status,
    recent: VecDeque<u8>,
    typed: Vec<Typed>,
    /// Characters that were typed and not taken yet.
    ahead: usize,
    /// The next connection takes the console from whoever has it.
    take_over: bool,
    /// The task runs.
    running: bool,
}

struct Watcher {
    door: mpsc::Sender<Told>,
    /// It was too slow for something.
    missed: bool,
}

impl Watcher {
    fn tell(&mut self, told: Told) {
        if self.missed {
            self.missed = self.door.try_send(Told::Note("some text was left out here: too slow".into())).is_err();
        }
        self.missed |= self.door.try_send(told).is_err();
    }
}

impl State {
    fn is_wanted(&self) -> bool {
        self.recorded || !self.watchers.is_empty()
    }

    fn tell(&mut self, told: &Told) {
        self.watchers.values_mut().for_each(|watcher| watcher.tell(told.clone()));
    }
}

impl Console {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole after each statement that changes it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Consoles {
    pub fn new(fleet: Fleet, recorder: Recorder, door: Door, timing: Timing) -> Self {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        Self { inner: Arc::new(Inner { fleet, door, recorder, timing, consoles: Mutex::default(), stop, tasks }) }
    }

    fn console(&self, machine: MachineId) -> Arc<Console> {
        let mut consoles = self.inner.consoles.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Console { machine, state: Mutex::default(), bell: Notify::new() });
        consoles.entry(machine).or_insert_with(new).clone()
    }

    /// Connects where that is wanted and not so already.
    fn ensure(&self, console: &Arc<Console>) {
        let mut state = console.state();
        if state.is_wanted() && !std::mem::replace(&mut state.running, true) {
            self.inner.tasks.spawn(run(self.inner.clone(), console.clone()));
        }
        drop(state);
        console.bell.notify_one();
    }

    pub fn shelf(&self) -> &Shelf {
        self.inner.recorder.shelf()
    }

    pub fn status(&self, machine: MachineId) -> (Status, bool) {
        let consoles = self.inner.consoles.lock().unwrap_or_else(PoisonError::into_inner);
        consoles.get(&machine).map_or((Status::Idle, false), |console| {
            let state = console.state();
            (state.status.clone(), state.recorded)
        })
    }

    /// Records from now on. `again`: a recording that was made before goes on, else a new boot begins.
    pub fn record(&self, machine: MachineId, again: bool) {
        self.inner.recorder.begin(machine, again);
        let console = self.console(machine);
        console.state().recorded = true;
        self.ensure(&console);
    }

    /// Ends the recording; the console stays connected where somebody watches.
    pub fn leave(&self, machine: MachineId) {
        let console = self.console(machine);
        if std::mem::take(&mut console.state().recorded) {
            self.inner.recorder.end(machine);
            console.bell.notify_one();
        }
    }

    /// Into the recording, where there is one.
    pub fn note(&self, machine: MachineId, note: &str) {
        if self.status(machine).1 {
            self.inner.recorder.note(machine, note);
        }
    }

    /// Live, from what was printed last on. `take_over`: from whoever has it, if that is somebody else.
    pub fn watch(&self, machine: MachineId, hands: Hands, take_over: bool) -> Watch {
        let console = self.console(machine);
        let (door, told) = mpsc::channel(PIECES);
        let mut state = console.state();
        state.last_watcher += 1;
        let id = state.last_watcher;
        let types = match hands {
            Hands::Off => false,
            Hands::On => state.writer.is_none(),
            Hands::Instead => true,
        };
        let before = if types { state.writer.replace(id) } else { None };
        if let Some(before) = before.and_then(|id| state.watchers.get_mut(&id)) {
            before.tell(Told::Displaced);
        }
        state.watchers.insert(id, Watcher { door, missed: false });
        state.take_over |= take_over && state.status != Status::Connected;
        let (recent, status) = (state.recent.iter().copied().collect(), state.status.clone());
        drop(state);
        self.ensure(&console);
        Watch { console, id, types, told, recent, status }
    }

    /// Ends all consoles, so that the BMCs have their sessions back. For the shut-down.
    pub async fn close(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        if timeout(FAREWELL, self.inner.tasks.wait()).await.is_err() {
            tracing::debug!("some BMCs did not confirm the end of their consoles");
        }
    }
}

/// One who watches a console, until this is dropped.
pub struct Watch {
    console: Arc<Console>,
    id: u64,
    /// Whether this one types.
    pub types: bool,
    /// What was printed before.
    pub recent: Vec<u8>,
    pub status: Status,
    told: mpsc::Receiver<Told>,
}

impl Watch {
    /// What comes next; `None` at the end of the appliance.
    pub async fn next(&mut self) -> Option<Told> {
        let told = self.told.recv().await;
        if told == Some(Told::Displaced) {
            self.types = false;
        }
        told
    }

    /// False where there is no room at the moment. What somebody types who may not is dropped.
    pub fn type_in(&self, typed: &mut Option<Typed>) -> bool {
        let mut state = self.console.state();
        if state.writer != Some(self.id) {
            *typed = None;
        }
        if state.ahead >= TYPED_MAX {
            return typed.is_none();
        }
        if let Some(typed) = typed.take() {
            state.ahead += match &typed {
                Typed::Text(text) => text.len(),
                Typed::Break => 1,
            };
            state.typed.push(typed);
            drop(state);
            self.console.bell.notify_one();
        }
        true
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut state = self.console.state();
        state.watchers.remove(&self.id);
        if state.writer == Some(self.id) {
            state.writer = None;
        }
        drop(state);
        self.console.bell.notify_one();
    }
}

/// What is known of a console between two connections.
struct Past {
    /// The BMC's id for the session that was lost.
    ours: Option<u32>,
    pause: Duration,
    /// When it was connected last; not for the first time.
    lost: Option<Instant>,
    /// The last failure, which is noted once.
    failure: Option<&'static str>,
}

/// The task of one console; ends when nobody wants it.
async fn run(inner: Arc<Inner>, console: Arc<Console>) {
    let mut past = Past { ours: None, pause: inner.timing.pause, lost: None, failure: None };
    while goes_on(&inner, &console) {
        let failure = match connect(&inner, &console, &past).await {
            Ok((sol, notes)) => {
                past.ours = Some(sol.id());
                let since = Instant::now();
                welcome(&inner, &console, &mut past, notes);
                let lost = converse(&inner, &console, sol).await;
                if since.elapsed() > GOOD {
                    past.pause = inner.timing.pause;
                }
                past.lost = Some(Instant::now());
                match lost {
                    None => continue,
                    Some(e) => e,
                }
            }
            Err(e) => e,
        };
        // Some BMCs end the console when the machine's power changes: the boot that follows is not to be missed.
        let soon = failure.kind() == Kind::Unreachable || failure.code() == ENDED;
        let pause = if soon { past.pause } else { past.pause.max(inner.timing.pause_refused) };
        past.pause = (past.pause * 2).min(inner.timing.pause_max);
        rest(&inner, &console, &mut past, &failure, pause).await;
    }
}

/// Whether the console is still wanted; if not, its task has ended with this.
fn goes_on(inner: &Inner, console: &Console) -> bool {
    let mut state = console.state();
    let wanted = state.is_wanted() && !inner.stop.is_cancelled();
    if !wanted {
        state.running = false;
        state.status = Status::Idle;
        state.recent = VecDeque::new();
        state.watchers.clear();
    }
    wanted
}

async fn connect(inner: &Inner, console: &Console, past: &Past) -> Result<(Sol, Vec<String>)> {
    set_status(console, Status::Connecting);
    let access = (inner.door)(console.machine).await?;
    let (session, turn) = inner.fleet.beside(&access).await?;
    let taken = match std::mem::take(&mut console.state().take_over) {
        true => Taken::TakeOver,
        false => Taken::Leave { ours: past.ours },
    };
    let opened = Sol::open(session, taken, inner.timing).await;
    drop(turn);
    opened
}

fn set_status(console: &Console, status: Status) {
    let mut state = console.state();
    if state.status != status {
        state.status = status.clone();
        state.tell(&Told::Status(status));
    }
}

/// Says what became of the console, where it is recorded and to those who watch.
fn note(inner: &Inner, console: &Console, note: &str) {
    let mut state = console.state();
    if state.recorded {
        inner.recorder.note(console.machine, note);
    }
    state.tell(&Told::Note(note.to_owned()));
}

fn welcome(inner: &Inner, console: &Console, past: &mut Past, notes: Vec<String>) {
    set_status(console, Status::Connected);
    past.failure = None;
    if let Some(lost) = past.lost {
        let gap = lost.elapsed().as_secs();
        note(inner, console, &format!("console back after {gap} s; what was printed meanwhile is missing"));
    }
    notes.iter().for_each(|text| note(inner, console, text));
}

/// Carries text in both directions. `None` when nobody wants the console any more, else how it was lost.
async fn converse(inner: &Inner, console: &Console, mut sol: Sol) -> Option<Error> {
    loop {
        let typed = std::mem::take(&mut console.state().typed);
        for key in typed {
            match key {
                Typed::Text(text) => sol.type_in(&text),
                Typed::Break => sol.press_break(),
            }
        }
        if !console.state().is_wanted() || inner.stop.is_cancelled() {
            sol.close().await;
            return None;
        }
        let said = tokio::select! {
            said = sol.next() => said,
            () = console.bell.notified() => continue,
            () = inner.stop.cancelled() => continue,
        };
        match said {
            Ok(Said::Text(text)) => print(inner, console, text).await,
            Ok(Said::Note(text)) => note(inner, console, &text),
            Ok(Said::Taken) => console.state().ahead = 0,
            Err(e) => {
                // One that is silent does not hear a farewell.
                if e.kind() != Kind::Unreachable {
                    sol.close().await;
                }
                return Some(e);
            }
        }
    }
}

async fn print(inner: &Inner, console: &Console, text: Vec<u8>) {
    let recorded = {
        let mut state = console.state();
        let excess = (state.recent.len() + text.len()).saturating_sub(RECENT).min(state.recent.len());
        state.recent.drain(..excess);
        state.recent.extend(&text);
        if !state.watchers.is_empty() {
            state.tell(&Told::Text(text.as_slice().into()));
        }
        state.recorded
    };
    if recorded {
        inner.recorder.text(console.machine, text).await;
    }
}

/// Waits before the next try; somebody who comes to watch, or the end, cuts it short.
async fn rest(inner: &Inner, console: &Console, past: &mut Past, failure: &Error, pause: Duration) {
    tracing::debug!(machine = %console.machine, error = ?failure, ?pause, "no console");
    if past.failure != Some(failure.code()) {
        past.failure = Some(failure.code());
        note(inner, console, &format!("no console: {failure}"));
    }
    let hint = failure.next_step().map(str::to_owned);
    set_status(console, Status::Waiting { why: failure.to_string(), hint });
    {
        let mut state = console.state();
        // Keys typed at a machine that is not there are not kept for when it is.
        state.typed.clear();
        state.ahead = 0;
    }
    let watchers = console.state().last_watcher;
    let until = Instant::now() + pause;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(until) => return,
            () = inner.stop.cancelled() => return,
            () = console.bell.notified() => {
                let state = console.state();
                if state.last_watcher != watchers || !state.is_wanted() {
                    return;
                }
            }
        }
    }
}
