//! All machines in memory, with the ways to find one. Written by the turn only, after its transaction is on disk; read by
//! everybody.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tokio::sync::Notify;

use crate::error::{Error, Result};
use crate::lifecycle::{Machine, Millis};
use crate::machine::{MacAddr, MachineId, Serial};

#[derive(Default)]
pub struct World {
    machines: HashMap<MachineId, Entry>,
    by_mac: HashMap<MacAddr, MachineId>,
    by_serial: HashMap<Serial, MachineId>,
    by_uuid: HashMap<uuid::Uuid, MachineId>,
    by_name: HashMap<String, MachineId>,
    /// As their agents saw them from inside.
    by_bmc: HashMap<MacAddr, MachineId>,
    /// Deadlines, earliest first.
    wakes: BTreeSet<(Millis, MachineId)>,
}

struct Entry {
    machine: Arc<Machine>,
    /// Rung whenever the machine changes; held by those who wait for it.
    bell: Arc<Notify>,
}

impl World {
    pub fn get(&self, id: MachineId) -> Option<Arc<Machine>> {
        self.machines.get(&id).map(|e| e.machine.clone())
    }

    pub fn bell(&self, id: MachineId) -> Option<Arc<Notify>> {
        self.machines.get(&id).map(|e| e.bell.clone())
    }

    pub fn by_mac(&self, mac: MacAddr) -> Option<Arc<Machine>> {
        self.by_mac.get(&mac).and_then(|id| self.get(*id))
    }

    pub fn by_serial(&self, serial: &Serial) -> Option<Arc<Machine>> {
        self.by_serial.get(serial).and_then(|id| self.get(*id))
    }

    /// The first machine that said so: makers leave the same UUID in many.
    pub fn by_uuid(&self, uuid: uuid::Uuid) -> Option<Arc<Machine>> {
        self.by_uuid.get(&uuid).and_then(|id| self.get(*id))
    }

    /// The machine that has this BMC.
    pub fn by_bmc(&self, mac: MacAddr) -> Option<Arc<Machine>> {
        self.by_bmc.get(&mac).and_then(|id| self.get(*id))
    }

    pub fn by_name(&self, name: &str) -> Option<Arc<Machine>> {
        self.by_name.get(name).and_then(|id| self.get(*id))
    }

    pub fn has_name(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    pub fn all(&self) -> Vec<Arc<Machine>> {
        self.machines.values().map(|e| e.machine.clone()).collect()
    }

    /// Those whose deadline is not later than `at`, and the next deadline after it.
    pub fn due(&self, at: Millis) -> (Vec<MachineId>, Option<Millis>) {
        let due = self.wakes.iter().take_while(|(wake, _)| *wake <= at).map(|(_, id)| *id).collect();
        (due, self.wakes.iter().map(|(wake, _)| *wake).find(|wake| *wake > at))
    }

    /// By name, serial number, MAC address or id, in this order.
    pub fn find(&self, text: &str) -> Result<Arc<Machine>> {
        let id = self
            .by_name
            .get(text)
            .copied()
            .or_else(|| self.by_serial.get(&Serial::parse(text)?).copied())
            .or_else(|| self.by_mac.get(&text.parse().ok()?).copied())
            .or_else(|| text.parse().ok());
        id.and_then(|id| self.get(id)).ok_or_else(|| {
            Error::not_found("machine.unknown", format!("there is no machine {text:?}"))
                .hint("`rackline machine list` shows the names; a serial number, MAC address or id works too")
        })
    }

    /// Takes over what a turn made of a machine.
    pub fn put(&mut self, machine: Machine) {
        if let Some(old) = self.get(machine.id) {
            self.unlist(&old);
        }
        for mac in &machine.macs {
            self.by_mac.insert(*mac, machine.id);
        }
        if let Some(serial) = &machine.serial {
            self.by_serial.entry(serial.clone()).or_insert(machine.id);
        }
        if let Some(uuid) = machine.uuid {
            self.by_uuid.entry(uuid).or_insert(machine.id);
        }
        self.by_name.insert(machine.name.clone(), machine.id);
        self.by_bmc.extend(bmc_mac(&machine).map(|mac| (mac, machine.id)));
        self.wakes.extend(machine.wake_at().map(|at| (at, machine.id)));
        let machine = Arc::new(machine);
        match self.machines.entry(machine.id) {
            std::collections::hash_map::Entry::Occupied(mut entry) => {
                entry.get_mut().machine = machine;
                entry.get().bell.notify_waiters();
            }
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(Entry { machine, bell: Arc::default() });
            }
        }
    }

    pub fn remove(&mut self, id: MachineId) {
        if let Some(entry) = self.machines.remove(&id) {
            self.unlist(&entry.machine);
            entry.bell.notify_waiters();
        }
    }

    fn unlist(&mut self, machine: &Machine) {
        for mac in &machine.macs {
            if self.by_mac.get(mac) == Some(&machine.id) {
                self.by_mac.remove(mac);
            }
        }
        if let Some(serial) = &machine.serial
            && self.by_serial.get(serial) == Some(&machine.id)
        {
            self.by_serial.remove(serial);
        }
        if let Some(uuid) = machine.uuid
            && self.by_uuid.get(&uuid) == Some(&machine.id)
        {
            self.by_uuid.remove(&uuid);
        }
        self.by_name.remove(&machine.name);
        if let Some(mac) = bmc_mac(machine)
            && self.by_bmc.get(&mac) == Some(&machine.id)
        {
            self.by_bmc.remove(&mac);
        }
        if let Some(at) = machine.wake_at() {
            self.wakes.remove(&(at, machine.id));
        }
    }
}

fn bmc_mac(machine: &Machine) -> Option<MacAddr> {
    machine.inventory.as_ref()?.bmc.as_ref()?.mac
}
