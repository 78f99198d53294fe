//! The way of parts from machine to machine: what an inventory tells of it, and what is kept.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{About, Engine, Letter};
use crate::error::Result;
use crate::judge::history::{self, Earlier};
use crate::lifecycle::{Event, Millis};
use crate::link::Outcome;
use crate::machine::component::{Component, ComponentKind};
use crate::machine::{Finding, Inventory, MachineId};
use crate::store::components::Stay;

/// A part in a machine, as it is told to people.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StayView {
    pub kind: ComponentKind,
    pub serial: String,
    pub model: String,
    pub place: String,
    /// The machine's name; its id where it is no more.
    pub machine: String,
    /// Milliseconds since 1970.
    pub since: Millis,
    pub seen: Millis,
    pub until: Option<Millis>,
}

/// What an inventory tells of the parts of a machine.
#[derive(Default)]
pub(super) struct Told {
    pub findings: Vec<Finding>,
    /// For the machines that they came from.
    left: Vec<(MachineId, String)>,
}

/// The inventory that an event brings.
pub(super) fn inventory(event: &Event) -> Option<&Inventory> {
    match event {
        Event::Reported { outcome: Outcome::Commissioned { inventory, .. }, .. } => Some(inventory),
        _ => None,
    }
}

/// UTC.
fn day(at: Millis) -> String {
    jiff::Timestamp::from_millisecond(at).map_or(String::new(), |at| at.strftime("%-d %b").to_string())
}

impl Engine {
    /// Looked up before the rules see the inventories: what is found travels with the fact.
    pub(super) async fn look_up_parts(&self, letters: &[Letter]) -> HashMap<MachineId, Told> {
        let mut told = HashMap::new();
        for letter in letters {
            let (About::Machine(id), Some(inventory)) = (&letter.about, inventory(&letter.event)) else { continue };
            match self.parts_told(*id, inventory).await {
                Ok(parts) => drop(told.insert(*id, parts)),
                Err(e) => tracing::error!(error = ?e, "where the parts of a machine were cannot be looked up"),
            }
        }
        told
    }

    async fn parts_told(&self, id: MachineId, inventory: &Inventory) -> Result<Told> {
        let (stays, now) = (self.db().stays_in(id).await?, inventory.components());
        let before: Vec<Component> = stays.into_iter().filter(|s| s.until.is_none()).map(|s| s.part).collect();
        let mut earlier: HashMap<&Component, (MachineId, Earlier)> = HashMap::new();
        for part in now.iter().filter(|part| !before.iter().any(|old| old.identity() == part.identity())) {
            let stays = self.db().stays_of(&part.serial).await?;
            let last: Option<Stay> = stays.into_iter().find(|stay| stay.part.identity() == part.identity());
            if let Some(stay) = last.filter(|stay| stay.machine != id) {
                let machine = self.name_of(stay.machine);
                earlier.insert(part, (stay.machine, Earlier { machine, day: day(stay.seen) }));
            }
        }
        let findings = history::judge(&before, &now, |part| earlier.get(part).map(|(_, earlier)| earlier.clone()));
        let here = self.name_of(id);
        let left = earlier.iter();
        let left = left.map(|(part, (from, _))| (*from, format!("{} {} is in {here} now", part.kind, part.serial)));
        Ok(Told { findings, left: left.collect() })
    }

    /// In the timeline of each machine that lost a part to another one.
    pub(super) fn tell_who_lost_parts(&self, told: Told) {
        for (machine, sentence) in told.left {
            if self.machine(machine).is_some() {
                self.tell(About::Machine(machine), Event::Noted { sentence });
            }
        }
    }

    fn name_of(&self, id: MachineId) -> String {
        self.machine(id).map_or_else(|| id.to_string(), |machine| machine.name.clone())
    }

    /// What is and was in a machine, what is there now first.
    pub async fn parts_of(&self, id: MachineId) -> Result<Vec<StayView>> {
        Ok(self.views(self.db().stays_in(id).await?))
    }

    /// Where parts with this serial number have been, the last first.
    pub async fn way_of_part(&self, serial: &str) -> Result<Vec<StayView>> {
        Ok(self.views(self.db().stays_of(serial).await?))
    }

    fn views(&self, stays: Vec<Stay>) -> Vec<StayView> {
        let view = |stay: Stay| StayView {
            kind: stay.part.kind,
            serial: stay.part.serial,
            model: stay.part.model,
            place: stay.part.place,
            machine: self.name_of(stay.machine),
            since: stay.since,
            seen: stay.seen,
            until: stay.until,
        };
        stays.into_iter().map(view).collect()
    }
}
