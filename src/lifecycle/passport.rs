//! The passport: what a delivered host is and what was proved of it. Made from a machine whose checks all passed; there
//! is no other way to make [`PassingChecks`].

use serde::{Deserialize, Serialize};

use super::{Machine, Millis, StageTime};
use crate::check::Set;
use crate::link::{Check, Deployed, Measured, Problem};
use crate::machine::{Disk, Firmware, Hostname, Inventory, MachineId, Place, Roles};

pub const VERSION: u32 = 1;

/// The ids of the checks that were run, of which none holds the host back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassingChecks(Vec<String>);

impl PassingChecks {
    /// Refused where a check that is declared for the roles was not run, or one found a fault, naming each. A warning is in
    /// the passport, as the check says it. `besides`: ids that the templates of the roles name.
    pub fn of(roles: &Roles, besides: &[String], checks: &[Check]) -> Result<Self, Problem> {
        let failed: Vec<&Check> = checks.iter().filter(|c| c.holds_back()).collect();
        if let Some(first) = failed.first() {
            let each = failed.iter().map(|c| format!("{}: expected {}, found {}", c.id, c.expected, c.found));
            return Err(Problem {
                code: "check.failed".into(),
                title: each.collect::<Vec<_>>().join("; "),
                hint: first.hint.clone(),
                causes: Vec::new(),
            });
        }
        let declared = Set::built_in().of(roles).map(|declared| declared.id.as_str());
        let declared = declared.chain(besides.iter().map(String::as_str));
        let missing: Vec<&str> = declared.filter(|id| !checks.iter().any(|c| c.id == *id)).collect();
        if !missing.is_empty() {
            return Err(Problem {
                code: "check.missing".into(),
                title: format!("the agent did not run {}", missing.join(", ")),
                hint: Some("does the agent on the host have the appliance's release? `rackline machine show`".into()),
                causes: Vec::new(),
            });
        }
        Ok(Self(checks.iter().map(|c| c.id.clone()).collect()))
    }
}

/// Version 1. Bytes and seconds; times in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Passport {
    pub version: u32,
    pub machine: MachineId,
    pub name: String,
    pub place: Option<Place>,
    pub role: Roles,
    pub hostname: Hostname,
    pub firmware: Option<Firmware>,
    pub image: String,
    pub disk: Option<Disk>,
    pub deployed: Deployed,
    pub checks: Vec<Check>,
    pub measured: Vec<Measured>,
    pub times: Vec<StageTime>,
    pub inventory: Inventory,
    pub issued_at: Millis,
}

impl Passport {
    pub fn of(machine: &Machine, now: Millis) -> Result<Self, Problem> {
        let incomplete = |what: &str| Problem {
            code: "passport.incomplete".into(),
            title: format!("no passport without {what}"),
            hint: Some("`rackline machine retry` runs the missing stage again".into()),
            causes: Vec::new(),
        };
        let order = machine.order.as_ref().ok_or_else(|| incomplete("an order"))?;
        PassingChecks::of(&order.role, &order.setup.checks, &machine.checks)?;
        let mut times = machine.times.clone();
        times.push(StageTime { state: machine.state.name().to_owned(), millis: now - machine.entered });
        Ok(Self {
            version: VERSION,
            machine: machine.id,
            name: machine.name.clone(),
            place: machine.place.clone(),
            role: order.role.clone(),
            hostname: order.hostname.clone(),
            firmware: machine.arch.map(|a| a.firmware()),
            image: order.image_name.clone(),
            disk: machine.target_disk().cloned(),
            deployed: machine.deployed.clone().ok_or_else(|| incomplete("a written image"))?,
            checks: machine.checks.clone(),
            measured: machine.measured.clone(),
            times,
            inventory: machine.inventory.as_deref().cloned().ok_or_else(|| incomplete("an inventory"))?,
            issued_at: now,
        })
    }
}
