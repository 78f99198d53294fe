//! Learning what BMCs really do: the engine tells their personalities (`bmc::personality`) what came of commands, and asks
//! them for limits and for rungs that never helped. A hint, not a truth: kept in memory, written to the store within a
//! second by one task, and learnt again where it is lost.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Engine;
use super::pairing::{self, Said};
use crate::bmc::act::Limits;
use crate::bmc::personality::{self, Key, Personality};
use crate::bmc::{Access, Answer, Command};
use crate::error::{Kind, OrFail, Result};
use crate::lifecycle::Machine;
use crate::lifecycle::ladder::{Arrival, Rung};
use crate::machine::MachineId;
use crate::store::Db;
use crate::store::personality::{self as rows, Row};

/// A BMC is asked again who it is after this time: its firmware may have been updated meanwhile.
const KNOWN: Duration = Duration::from_secs(3600);
/// Changes of this time share one commit.
const GATHER: Duration = Duration::from_secs(1);

/// One personality with its name, as it is shown and stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Known {
    #[serde(flatten)]
    pub key: Key,
    #[serde(flatten)]
    pub learnt: Personality,
}

/// Clones share what is known.
#[derive(Clone, Default)]
pub struct Learning {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct Inner {
    known: BTreeMap<Key, Personality>,
    /// Whose BMC is of which kind, and when it last said so; `None`: it is to be asked anew.
    whose: HashMap<MachineId, (Key, Option<Instant>)>,
    unwritten: HashSet<Key>,
}

impl Learning {
    /// With what earlier runs have learnt; what cannot be read is learnt again.
    pub async fn load(db: &Db) -> Result<Self> {
        let mut inner = Inner::default();
        for Row { vendor, product, firmware, body } in rows::load(db).await? {
            let key = Key { vendor, product, firmware };
            match serde_json::from_str(&body) {
                Ok(learnt) => drop(inner.known.insert(key, learnt)),
                Err(e) => tracing::warn!(%key, error = %e, "a BMC's personality cannot be read and is learnt again"),
            }
        }
        Ok(Self { inner: Arc::new(Mutex::new(inner)), changed: Arc::default() })
    }

    /// Writes what was learnt, until cancelled, and then what is left.
    pub async fn write(self, db: Db, stop: CancellationToken) {
        loop {
            let ends = tokio::select! {
                () = self.changed.notified() => tokio::time::timeout(GATHER, stop.cancelled()).await.is_ok(),
                () = stop.cancelled() => true,
            };
            if let Err(e) = self.flush(&db).await {
                tracing::warn!(error = ?e, "what was learnt of BMCs is not stored; it is learnt again");
            }
            if ends {
                return;
            }
        }
    }

    async fn flush(&self, db: &Db) -> Result<()> {
        let rows: Vec<Row> = {
            let mut inner = self.lock();
            let keys = std::mem::take(&mut inner.unwritten);
            let row = |key: Key| {
                let body = serde_json::to_string(inner.known.get(&key)?);
                let body = body.or_fail(Kind::Internal, "store.encode", || "a personality cannot be written as JSON");
                Some(body.map(|body| Row { vendor: key.vendor, product: key.product, firmware: key.firmware, body }))
            };
            keys.into_iter().filter_map(row).collect::<Result<_>>()?
        };
        rows::save(db, &rows).await
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, machine: MachineId) -> Option<Personality> {
        let inner = self.lock();
        let (key, _) = inner.whose.get(&machine)?;
        inner.known.get(key).cloned()
    }

    /// Whether the machine's BMC is to be asked who it is.
    fn is_stranger(&self, machine: MachineId) -> bool {
        let at = self.lock().whose.get(&machine).and_then(|(_, at)| *at);
        at.is_none_or(|at| at.elapsed() > KNOWN)
    }

    fn introduce(&self, machine: MachineId, key: Key) {
        self.lock().whose.insert(machine, (key, Some(Instant::now())));
    }

    fn change(&self, machine: MachineId, change: impl FnOnce(&mut Personality)) {
        let mut inner = self.lock();
        let Some((key, _)) = inner.whose.get(&machine).cloned() else { return };
        change(inner.known.entry(key.clone()).or_default());
        inner.unwritten.insert(key);
        self.changed.notify_one();
    }

    pub fn all(&self) -> Vec<Known> {
        let known = |(key, learnt): (&Key, &Personality)| Known { key: key.clone(), learnt: learnt.clone() };
        self.lock().known.iter().map(known).collect()
    }

    /// Rungs that never helped this kind of BMC, with the figures.
    pub fn useless(&self, machine: MachineId) -> BTreeMap<Rung, String> {
        let inner = self.lock();
        let Some((key, _)) = inner.whose.get(&machine) else { return BTreeMap::new() };
        let useless = inner.known.get(key).into_iter().flat_map(Personality::useless);
        useless.filter_map(|(rung, why)| Some((Rung::named(rung)?, format!("{why} on {key}")))).collect()
    }

    /// A machine came to the network as it was asked to.
    pub fn arrived(&self, machine: MachineId, arrival: &Arrival) {
        self.change(machine, |learnt| {
            learnt.booted(arrival.millis, arrival.unheeded);
            if let Some(rung) = arrival.by {
                learnt.helped(rung.name(), arrival.after.iter().map(|rung| rung.name()));
            }
        });
    }
}

impl Engine {
    /// What BMCs of each kind were found to do.
    pub fn personalities(&self) -> Vec<Known> {
        self.inner.learning.all()
    }

    /// Runs a command with the limits that this kind of BMC needs, and learns from what comes of it.
    pub(super) async fn run_and_learn(&self, machine: &Machine, access: &Access, command: Command) -> Result<Answer> {
        let fleet = &self.inner.site.fleet;
        let learning = &self.inner.learning;
        if !personality::tells(&command) {
            return fleet.run(access, command).await;
        }
        if learning.is_stranger(machine.id) {
            self.meet(machine, access).await?;
        }
        let machine = machine.id;
        let usual: Limits = fleet.limits();
        let learnt = learning.of(machine).unwrap_or_default();
        let (limits, allowed) = (learnt.limits(&usual), learnt.allowed(&command, fleet.allowed(&command)));
        let begun = Instant::now();
        let result = fleet.run_within(access, command.clone(), &limits, allowed).await;
        let took = begun.elapsed();
        learning.change(machine, |learnt| {
            learnt.note(&command, &result);
            learnt.took(&command, &result, took);
        });
        if matches!(command, Command::Update(_) | Command::ResetBmc { .. }) {
            // When it is back, its firmware may be another.
            learning.lock().whose.entry(machine).and_modify(|(_, at)| *at = None);
        }
        result
    }

    /// Finds out who a BMC is before it is told to do something: of which kind, and that it is this machine's.
    pub(super) async fn meet(&self, machine: &Machine, access: &Access) -> Result<()> {
        let fleet = &self.inner.site.fleet;
        let info = match fleet.run(access, Command::Info).await {
            Ok(Answer::Info(info)) => Some(info),
            // One that is silent, or does not let us in, is not asked a second time.
            Err(e) if e.kind() == Kind::Unreachable || e.code() == "bmc.auth" => return Err(e),
            _ => None,
        };
        let parts = match fleet.run(access, Command::Parts).await {
            Ok(Answer::Parts { parts }) => parts,
            // Many have none, or one that cannot be read: no reason not to power the machine on.
            _ => Vec::new(),
        };
        let whose = access.doors.way().map_or_else(|| "the BMC".to_owned(), |(_, at)| format!("BMC {}", at.ip()));
        pairing::check(machine, &whose, &Said::by(info.as_ref(), &parts), &self.world())?;
        if let Some(info) = info {
            let learning = &self.inner.learning;
            learning.introduce(machine.id, Key::of(&info, parts.first()));
            learning.change(machine.id, |learnt| learnt.spoke(&info.protocol));
        }
        Ok(())
    }
}
