//! The only place where state changes: a batch of facts, the rules, one transaction.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::sync::mpsc;

use super::parts::{Told, inventory};
use super::{About, BATCH, Engine, Letter, Post, effects::Effects, expected, now};
use crate::error::{Error, Result};
use crate::handoff::announce::Announcement;
use crate::lifecycle::ladder::Arrival;
use crate::lifecycle::{self, Action, Event, Machine, Millis, Refused, State};
use crate::link::{Outcome, Problem};
use crate::machine::{MachineId, Secret, Serial};
use crate::store::{components, failed, machines, seal};

/// Takes letters until the engine stops.
pub async fn run(engine: Engine, mut inbox: mpsc::Receiver<Post>, effects: Effects) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let count = tokio::select! {
            count = inbox.recv_many(&mut batch, BATCH) => count,
            () = engine.inner.stop.cancelled() => return,
        };
        if count == 0 {
            return;
        }
        let mut letters = Vec::with_capacity(count);
        for post in batch.drain(..) {
            match post {
                Post::Letter(letter) => letters.push(letter),
                // What came before it counts for it.
                Post::Import(import) => {
                    turn(&engine, std::mem::take(&mut letters), &effects).await;
                    expected::import(&engine, import, &effects).await;
                }
            }
        }
        turn(&engine, letters, &effects).await;
    }
}

/// Rings when the earliest deadline has passed.
pub async fn clock(engine: Engine) {
    loop {
        let at = now();
        let (due, next) = engine.world().due(at);
        for id in due {
            engine.tell(About::Machine(id), Event::Due { means: engine.means(id) });
        }
        let sleep = Duration::from_millis(next.map_or(60_000, |wake| (wake - at).clamp(50, 60_000)) as u64);
        tokio::select! {
            () = tokio::time::sleep(sleep) => {}
            () = engine.inner.alarm.notified() => {}
            () = engine.inner.stop.cancelled() => return,
        }
    }
}

/// What a batch has changed so far, on top of the world.
#[derive(Default)]
pub(super) struct Draft {
    pub changed: HashMap<MachineId, Machine>,
    forgotten: HashSet<MachineId>,
    /// In order: the machine after the event, and the event.
    pub book: Vec<(Machine, Event)>,
    pub actions: Vec<(MachineId, Action)>,
    /// By name, to be sealed.
    pub secrets: Vec<(String, Secret)>,
    /// Machines that came to the network as they were asked to.
    arrivals: Vec<(MachineId, Arrival)>,
    /// What others are to be told.
    announcements: Vec<Announcement>,
}

async fn turn(engine: &Engine, letters: Vec<Letter>, effects: &Effects) {
    if letters.is_empty() {
        return;
    }
    let at = now();
    let mut draft = Draft::default();
    let mut parts = engine.look_up_parts(&letters).await;
    let mut answers = Vec::with_capacity(letters.len());
    let mut settled = Vec::new();
    for letter in letters {
        settled.extend(letter.settles);
        let outcome = take(engine, &mut draft, at, &letter.about, letter.event, &parts);
        answers.push((letter.answer, outcome));
    }
    match write(engine, at, &draft, &settled).await {
        Ok(posted) => {
            let inventories = draft.book.iter().filter(|(_, event)| inventory(event).is_some());
            let told: Vec<Told> = inventories.filter_map(|(machine, _)| parts.remove(&machine.id)).collect();
            publish(engine, draft);
            told.into_iter().for_each(|told| engine.tell_who_lost_parts(told));
            for (answer, outcome) in answers {
                answer.map(|to| to.send(outcome));
            }
            posted.into_iter().for_each(|pending| effects.start(pending));
        }
        Err(e) => {
            tracing::error!(error = ?e, "a turn could not be written; nothing of it took effect");
            for (answer, _) in answers.into_iter() {
                answer.map(|to| to.send(Err(not_written())));
            }
            // Never spin on a broken disk.
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

pub(super) fn not_written() -> Error {
    Error::internal("store.write", "the appliance could not write to its database")
        .hint("is the disk full? see the appliance's log; then try again")
}

pub(super) async fn write(
    engine: &Engine,
    at: Millis,
    draft: &Draft,
    settled: &[i64],
) -> Result<Vec<machines::Pending>> {
    if draft.book.is_empty() && settled.is_empty() && draft.forgotten.is_empty() && draft.secrets.is_empty() {
        return Ok(Vec::new());
    }
    let mut tx = engine.db().write().await?;
    for id in &draft.forgotten {
        machines::forget(&mut tx, *id).await?;
    }
    for (machine, event) in &draft.book {
        machines::append(&mut tx, machine, at, event).await?;
        if let Some(inventory) = inventory(event) {
            components::record(&mut tx, machine.id, at, &inventory.components()).await?;
        }
    }
    for machine in draft.changed.values() {
        machines::save(&mut tx, machine).await?;
    }
    for (name, secret) in &draft.secrets {
        seal::put(&mut tx, &engine.inner.site.seal, name, secret.expose()).await?;
    }
    let mut posted = Vec::with_capacity(draft.actions.len());
    for (machine, action) in &draft.actions {
        let id = machines::post(&mut tx, *machine, at, action).await?;
        posted.push(machines::Pending { id, machine: *machine, at, action: action.clone() });
    }
    for announcement in &draft.announcements {
        engine.inner.site.announce.write(&mut tx, announcement).await?;
    }
    for id in settled {
        machines::settle(&mut tx, *id).await?;
    }
    tx.commit().await.map_err(failed)?;
    Ok(posted)
}

pub(super) fn publish(engine: &Engine, draft: Draft) {
    if !draft.announcements.is_empty() {
        engine.inner.site.announce.ring();
    }
    for (id, arrival) in &draft.arrivals {
        engine.inner.learning.arrived(*id, arrival);
    }
    let mut world = engine.world_mut();
    let mut progress = engine.inner.progress.lock().unwrap_or_else(|e| e.into_inner());
    for id in draft.forgotten {
        engine.twin(world.get(id).as_deref(), None);
        world.remove(id);
        progress.remove(&id);
    }
    for (id, machine) in draft.changed {
        if progress.get(&id).is_some_and(|p| p.number != machine.number) {
            progress.remove(&id);
        }
        engine.twin(world.get(id).as_deref(), Some(&machine));
        world.put(machine);
        let _ = engine.inner.changes.send(id);
    }
    engine.inner.alarm.notify_one();
}

/// One fact: whose it is, what the rules say to it.
fn take(
    engine: &Engine,
    draft: &mut Draft,
    at: Millis,
    about: &About,
    event: Event,
    parts: &HashMap<MachineId, Told>,
) -> Result<MachineId> {
    let (machine, mut event) = resolve(engine, draft, at, about, event)?;
    let id = machine.id;
    if let Event::Reported { outcome, findings, .. } = &mut event {
        engine.add_load(&machine, outcome);
        *findings = engine.judge(&machine, outcome);
        let commissioned = matches!(outcome, Outcome::Commissioned { .. });
        findings.extend(parts.get(&id).filter(|_| commissioned).into_iter().flat_map(|told| told.findings.clone()));
    }
    match lifecycle::decide(at, &machine, &event) {
        Ok(step) => {
            tell_of_cabling(&machine, &step.machine);
            draft.arrivals.extend(Arrival::of(at, &machine, &step.machine).map(|arrival| (id, arrival)));
            let announcement = Announcement::of(&machine, &step.machine, at);
            draft.announcements.extend(announcement.filter(|a| engine.inner.site.announce.wanted(a)));
            let actions = step.actions.into_iter().filter(|action| engine.has_work_for(action));
            draft.actions.extend(actions.map(|a| (id, a)));
            draft.book.push((step.machine.clone(), event));
            draft.changed.insert(id, step.machine);
            Ok(id)
        }
        Err(Refused::Nothing) => Ok(id),
        Err(Refused::Stale) => {
            Err(Error::conflict("order.stale", "this order is no longer the current one")
                .hint("ask for the current order"))
        }
        Err(Refused::State(why)) => Err(Error::conflict("machine.state", format!("{}: {why}", machine.name))
            .hint(format!("`rackline machine show {}` tells what it is doing", machine.name))),
    }
}

/// In the log, once: the machine's own page says it as long as it is so.
fn tell_of_cabling(before: &Machine, after: &Machine) {
    if before.seen_on == after.seen_on && before.expected == after.expected {
        return;
    }
    let known = before.cabling();
    for problem in after.cabling().into_iter().filter(|problem| !known.contains(problem)) {
        tracing::warn!(machine = after.name, hint = problem.hint, "{}", problem.title);
    }
}

impl Draft {
    fn get(&self, engine: &Engine, id: MachineId) -> Option<Machine> {
        if self.forgotten.contains(&id) {
            return None;
        }
        self.changed.get(&id).cloned().or_else(|| engine.machine(id).map(|m| m.as_ref().clone()))
    }

    /// The first machine that `wanted` holds for, those of this batch before those of the world.
    fn find(&self, wanted: impl Fn(&Machine) -> bool, in_world: Option<std::sync::Arc<Machine>>) -> Option<Machine> {
        let fresh = self.changed.values().find(|m| wanted(m)).cloned();
        fresh.or_else(|| {
            let old = in_world?;
            let stands = !self.forgotten.contains(&old.id) && !self.changed.contains_key(&old.id);
            stands.then(|| old.as_ref().clone())
        })
    }

    fn by_serial(&self, engine: &Engine, serial: &Serial) -> Option<Machine> {
        self.find(|m| m.serial.as_ref() == Some(serial), engine.world().by_serial(serial))
    }

    fn name_taken(&self, engine: &Engine, name: &str) -> bool {
        engine.world().has_name(name) || self.changed.values().any(|m| m.name == name)
    }
}

fn resolve(engine: &Engine, draft: &mut Draft, at: Millis, about: &About, event: Event) -> Result<(Machine, Event)> {
    match about {
        About::Machine(id) => {
            let gone = || Error::not_found("machine.unknown", "this machine is not known here");
            Ok((draft.get(engine, *id).ok_or_else(gone)?, event))
        }
        About::Mac(mac) => {
            let known = draft.find(|m| m.macs.contains(mac), engine.world().by_mac(*mac));
            let name = || format!("mac-{}", mac.to_string().replace(':', ""));
            Ok((known.unwrap_or_else(|| Machine::new(MachineId::generate(), name(), at, State::Seen)), event))
        }
        About::Serial { serial, name } => {
            let known = draft.by_serial(engine, serial);
            if known.as_ref().is_none_or(|m| &m.name != name) && draft.name_taken(engine, name) {
                return Err(Error::conflict("machine.name", format!("the name {name} belongs to another machine"))
                    .hint("names of expected machines are unique"));
            }
            let new = || Machine::new(MachineId::generate(), name.clone(), at, State::Expected);
            Ok((known.unwrap_or_else(new), event))
        }
        About::Agent(id) => identify(engine, draft, at, *id, event),
    }
}

/// Pairs an agent with its machine by serial number and UUID; never guesses.
fn identify(
    engine: &Engine,
    draft: &mut Draft,
    at: Millis,
    id: MachineId,
    mut event: Event,
) -> Result<(Machine, Event)> {
    let Event::Hello { serial, uuid, macs, arch, name, seen_on, .. } = &mut event else {
        return Err(Error::internal("engine.identify", "only a hello identifies a machine"));
    };
    let own = draft.get(engine, id);
    let Some(said) = serial.as_ref() else {
        // Without a usable serial number the MAC addresses are all there is.
        let first = macs.first().copied();
        let machine =
            own.or_else(|| draft.find(|m| m.macs.iter().any(|x| Some(*x) == first), engine.world().by_mac(first?)));
        let unknown = || Error::not_found("machine.unknown", "an agent without serial number came with an unknown id");
        return Ok((machine.ok_or_else(unknown)?, event));
    };
    if let Some(expected) = own.as_ref().and_then(|m| m.serial.clone())
        && &expected != said
    {
        let found = said.clone();
        let machine = own.ok_or_else(|| Error::internal("engine.identify", "a machine vanished"))?;
        let problem = Problem {
            code: "identity.mismatch".into(),
            title: format!("the machine at this MAC address has serial number {found}, expected {expected}"),
            hint: Some("compare the label with the list of expected machines; correct the list or the wiring".into()),
            causes: Vec::new(),
        };
        return Ok((machine, Event::Misidentified { problem }));
    }
    let holder = draft.by_serial(engine, said).filter(|m| m.id != id);
    match (own, holder) {
        (own, Some(holder)) => {
            let same = holder.uuid.is_none() || holder.uuid == *uuid;
            if same {
                // First seen under its MAC address only: the sighting becomes the machine that was expected.
                if let Some(sighting) = own {
                    macs.extend(sighting.macs.iter().copied());
                    *arch = sighting.arch;
                    seen_on.clone_from(&sighting.seen_on);
                    draft.changed.remove(&sighting.id);
                    draft.book.retain(|(m, _)| m.id != sighting.id);
                    draft.forgotten.insert(sighting.id);
                }
                return Ok((holder, event));
            }
            let problem = Problem {
                code: "identity.serial-taken".into(),
                title: format!("its serial number {said} already belongs to {}, which has another UUID", holder.name),
                hint: Some("compare the labels of both machines and correct the wrong one's SMBIOS, then retry".into()),
                causes: Vec::new(),
            };
            // The newcomer is kept apart without the serial number; the holder goes on undisturbed.
            let first = macs.first().map_or_else(|| id.to_string(), |m| m.to_string().replace(':', ""));
            let machine =
                own.unwrap_or_else(|| Machine::new(MachineId::generate(), format!("mac-{first}"), at, State::Seen));
            Ok((machine, Event::Misidentified { problem }))
        }
        (Some(own), None) => {
            if own.serial.is_none() && !draft.name_taken(engine, said.as_str()) {
                *name = Some(said.to_string());
            }
            Ok((own, event))
        }
        (None, None) => Ok((Machine::new(MachineId::generate(), said.to_string(), at, State::Seen), event)),
    }
}
