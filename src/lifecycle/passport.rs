//! The passport: what a delivered host is and what was proved of it. Made from a machine whose checks all passed; there
//! is no other way to make [`PassingChecks`].

use serde::{Deserialize, Serialize};

use super::{Erased, Machine, Millis, StageTime};
use crate::check::Set;
use crate::link::{Check, Deployed, Measured, Problem};
use crate::machine::{Disk, Finding, Firmware, Hostname, Inventory, MachineId, Place, Roles};

pub const VERSION: u32 = 2;

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

/// Bytes and seconds; times in milliseconds since 1970. What version 2 added is empty in a passport of version 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Passport {
    pub version: u32,
    pub machine: MachineId,
    pub name: String,
    pub place: Option<Place>,
    pub role: Roles,
    pub hostname: Hostname,
    /// What it boots with.
    pub firmware: Option<Firmware>,
    pub image: String,
    pub disk: Option<Disk>,
    pub deployed: Deployed,
    pub checks: Vec<Check>,
    pub measured: Vec<Measured>,
    pub times: Vec<StageTime>,
    pub inventory: Inventory,
    pub issued_at: Millis,
    /// BIOS, BMC, network cards and disks.
    #[serde(default)]
    pub versions: Vec<Version>,
    /// The firmware baseline that it was brought to.
    #[serde(default)]
    pub baseline: Option<String>,
    /// What is not as it should be and was no reason to keep it.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// When its disks were made blank before this delivery; `None` where it was never given back here.
    #[serde(default)]
    pub erased: Option<Erased>,
    #[serde(default)]
    pub energy: Option<Energy>,
    /// The first eight bytes of the BLAKE3 digest of the public key, in hexadecimal.
    #[serde(default)]
    pub key_id: Option<String>,
}

/// The firmware of a part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Version {
    pub part: String,
    pub version: String,
}

/// What it took from the mains at delivery, as its BMC said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    pub watts: f64,
    /// The sensors that said so.
    pub sensors: Vec<String>,
    pub at: Millis,
}

/// What the rules do not know, and a passport says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    pub energy: Option<Energy>,
    pub key_id: Option<String>,
}

impl Passport {
    pub fn of(machine: &Machine, facts: Facts, now: Millis) -> Result<Self, Problem> {
        let incomplete = |what: &str| Problem {
            code: "passport.incomplete".into(),
            title: format!("no passport without {what}"),
            hint: Some("`rackline machine retry` runs the missing stage again".into()),
            causes: Vec::new(),
        };
        let order = machine.order.as_ref().ok_or_else(|| incomplete("an order"))?;
        PassingChecks::of(&order.role, &order.setup.checks, &machine.checks)?;
        let inventory = machine.inventory.as_deref().cloned().ok_or_else(|| incomplete("an inventory"))?;
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
            versions: versions(&inventory),
            inventory,
            issued_at: now,
            baseline: machine.baseline.as_ref().and_then(|b| b.name.clone()),
            findings: machine.findings.clone(),
            erased: machine.erased.clone(),
            energy: facts.energy,
            key_id: facts.key_id,
        })
    }
}

fn versions(inventory: &Inventory) -> Vec<Version> {
    let bios = ("BIOS".to_owned(), &inventory.system.bios_version);
    let bmc = inventory.bmc.iter().map(|bmc| ("BMC".to_owned(), &bmc.firmware));
    let nics = inventory.nics.iter().map(|nic| (format!("NIC {}", nic.name), &nic.firmware));
    let disks = inventory.disks.iter().map(|disk| (format!("disk {}", disk.name), &disk.firmware));
    let all = std::iter::once(bios).chain(bmc).chain(nics).chain(disks);
    all.filter_map(|(part, version)| Some(Version { part, version: version.clone()? })).collect()
}
