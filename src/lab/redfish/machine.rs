//! The machine behind the door: what it is, what changes on it, and which resource shows what.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use axum::http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::account::Accounts;
use super::bios::Bios;
use super::chassis::Alarms;
use super::control::{Behaviour, Controls};
use super::document::{collection, link};
use super::hardware::Hardware;
use super::log::Log;
use super::manager::Manager;
use super::message::Message;
use super::service::{Call, Reply, Service};
use super::session;
use super::system::System;
use super::task::Tasks;
use super::update::Inventory;
use crate::error::{Error, Result};
use crate::lab::{Disk, DiskKind};
use crate::machine::{Firmware, MacAddr};

/// What is printed on the machine and built into it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Identity {
    pub manufacturer: String,
    pub model: String,
    pub serial: String,
    pub uuid: uuid::Uuid,
    pub firmware: Firmware,
    pub memory_bytes: u64,
    pub mac: MacAddr,
    pub disks: Vec<Disk>,
    pub bmc_mac: MacAddr,
    pub bmc_address: IpAddr,
}

impl Identity {
    pub fn example() -> Self {
        Self {
            manufacturer: "Labworks".into(),
            model: "LW-R1".into(),
            serial: "LW77S00099".into(),
            uuid: uuid::Uuid::from_u128(0x4c57_5231_0077_4000_8000_0000_0000_0063),
            firmware: Firmware::Uefi,
            memory_bytes: 2 << 30,
            mac: MacAddr([0x52, 0x54, 0, 0x77, 0, 0x63]),
            disks: vec![Disk { bytes: 10 << 30, kind: DiskKind::Nvme }],
            bmc_mac: MacAddr([0x52, 0x54, 0, 0x77, 1, 0x63]),
            bmc_address: IpAddr::from([127, 0, 0, 1]),
        }
    }
}

pub struct Machine {
    pub(super) identity: Identity,
    pub(super) hardware: Arc<dyn Hardware>,
    pub(super) controls: Arc<Controls>,
    pub(super) accounts: Arc<Accounts>,
    /// Shared with downloads that go on after their request.
    state: Arc<Mutex<State>>,
}

/// What the BMC remembers.
pub(super) struct State {
    pub system: System,
    pub bios: Bios,
    pub manager: Manager,
    pub log: Log,
    pub inventory: Inventory,
    pub tasks: Tasks,
    /// As last seen, to notice what the machine did by itself.
    starts: u64,
    on: bool,
    alarms: Alarms,
}

/// One request's view: the machine and its state, settled.
pub(super) struct Scene<'a> {
    pub machine: &'a Machine,
    pub state: MutexGuard<'a, State>,
    pub behaviour: Behaviour,
}

impl Machine {
    pub fn new(
        identity: Identity,
        hardware: Arc<dyn Hardware>,
        controls: Arc<Controls>,
        accounts: Arc<Accounts>,
    ) -> Self {
        let state = State {
            system: System::new(&identity),
            bios: Bios::new(identity.firmware),
            manager: Manager::new(&identity),
            log: Log::default(),
            inventory: Inventory::default(),
            tasks: Tasks::default(),
            starts: 0,
            on: false,
            alarms: Alarms::default(),
        };
        Self { identity, hardware, controls, accounts, state: Arc::new(Mutex::new(state)) }
    }

    /// Adds to the log, as the BMC itself would.
    pub fn log(&self, severity: &'static str, message: &str) {
        let offset = self.controls.behaviour().clock_offset;
        lock(&self.state).log.add(offset, severity, message);
    }

    pub(super) fn shared(&self) -> Arc<Mutex<State>> {
        self.state.clone()
    }

    /// What the machine did by itself, and what time has done.
    fn settle(&self, state: &mut State, behaviour: &Behaviour) -> Result<()> {
        let (starts, on) = (self.hardware.starts()?, self.hardware.is_on()?);
        let offset = state.manager.clock(behaviour);
        if on != state.on {
            let text = if on { "The system was powered on." } else { "The system was powered off." };
            state.log.add(offset, "OK", text);
            state.on = on;
        }
        if starts != state.starts {
            state.starts = starts;
            state.bios.restarted();
            state.system.restarted(starts);
            state.inventory.restarted();
        }
        for (severity, text) in state.alarms.look(|sensor| self.hardware.reading(sensor)) {
            state.log.add(offset, severity, &text);
        }
        let done = state.tasks.settle(behaviour);
        for effect in done {
            state.log.add(offset, "OK", &format!("{} was updated to {}.", effect.component, effect.version));
            if state.inventory.installed(&effect) {
                self.restart(behaviour);
            }
        }
        Ok(())
    }

    /// The BMC itself: sessions are gone, and for a while so is it.
    pub(super) fn restart(&self, behaviour: &Behaviour) {
        self.accounts.close_all();
        self.controls.away(behaviour.restart);
    }

    fn root(&self) -> Value {
        let child = |name: &str| link(&format!("/redfish/v1/{name}"));
        json!({
            "@odata.id": "/redfish/v1",
            "@odata.type": "#ServiceRoot.v1_17_0.ServiceRoot",
            "Id": "RootService",
            "Name": "Root Service",
            "RedfishVersion": "1.20.0",
            "UUID": self.identity.uuid,
            "Vendor": self.identity.manufacturer,
            "Product": "Labworks BMC",
            "ProtocolFeaturesSupported": {
                "ExpandQuery": { "ExpandAll": false, "Levels": true, "Links": false, "MaxLevels": 1, "NoLinks": true },
                "FilterQuery": false,
                "SelectQuery": false,
                "OnlyMemberQuery": false,
                "TopSkipQuery": true,
            },
            "Systems": child("Systems"),
            "Chassis": child("Chassis"),
            "Managers": child("Managers"),
            "AccountService": child("AccountService"),
            "SessionService": child("SessionService"),
            "UpdateService": child("UpdateService"),
            "Tasks": child("TaskService"),
            "Links": { "Sessions": child("SessionService/Sessions") },
        })
    }
}

pub(super) fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(|e| e.into_inner())
}

impl Service for Machine {
    fn answer(&self, call: &Call) -> Reply {
        let behaviour = self.controls.behaviour();
        let mut state = lock(&self.state);
        if let Err(e) = self.settle(&mut state, &behaviour) {
            return hardware_fault(&e);
        }
        let mut scene = Scene { machine: self, state, behaviour };
        let parts = call.parts();
        let Some((first, rest)) = parts.split_first() else { return self.root_or_metadata(call) };
        match *first {
            "$metadata" | "odata" => self.root_or_metadata(call),
            "AccountService" => session::accounts(&self.accounts, &self.controls, call, rest),
            "Systems" => scene.one(call, rest, Scene::system, "ComputerSystemCollection", "Computer Systems"),
            "Chassis" => scene.one(call, rest, Scene::chassis, "ChassisCollection", "Chassis"),
            "Managers" => scene.one(call, rest, Scene::manager, "ManagerCollection", "Managers"),
            "UpdateService" => scene.update(call, rest),
            "TaskService" => scene.tasks(call, rest),
            _ => Reply::missing(&call.path),
        }
    }
}

impl Machine {
    fn root_or_metadata(&self, call: &Call) -> Reply {
        match (call.method == Method::GET, call.path.as_str()) {
            (false, _) => Reply::not_allowed(),
            (true, "/redfish") => Reply::ok(json!({ "v1": "/redfish/v1/" })),
            (true, "/redfish/v1") => Reply::ok(self.root()),
            (true, "/redfish/v1/odata") => Reply::ok(json!({
                "@odata.context": "/redfish/v1/$metadata",
                "value": [{ "name": "Service", "kind": "Singleton", "url": "/redfish/v1/" }],
            })),
            (true, path) => Reply::missing(path),
        }
    }
}

impl Scene<'_> {
    /// A collection whose one member is `1`.
    fn one(
        &mut self,
        call: &Call,
        rest: &[&str],
        member: fn(&mut Self, &Call, &[&str]) -> Result<Reply>,
        kind: &str,
        name: &str,
    ) -> Reply {
        let top = call.path.split('/').nth(3).unwrap_or_default();
        let path = format!("/redfish/v1/{top}");
        match rest.split_first() {
            None if call.method == Method::GET => {
                Reply::ok(collection(&path, &format!("#{kind}.{kind}"), name, vec![format!("{path}/1")]))
            }
            None => Reply::not_allowed(),
            Some((&"1", rest)) => member(self, call, rest).unwrap_or_else(|e| hardware_fault(&e)),
            Some(_) => Reply::missing(&call.path),
        }
    }

    pub fn clock(&self) -> i64 {
        self.state.manager.clock(&self.behaviour)
    }

    /// The state that is shown, which may lag behind the one that is.
    pub fn shown_power(&mut self) -> Result<bool> {
        match self.state.system.lagging {
            Some((shown, until)) if Instant::now() < until => Ok(shown),
            _ => self.machine.hardware.is_on(),
        }
    }
}

fn hardware_fault(e: &Error) -> Reply {
    tracing::warn!("{e:?}");
    Reply::error(StatusCode::INTERNAL_SERVER_ERROR, Message::general(&e.to_string()))
}
