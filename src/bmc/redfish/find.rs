//! Where things are on this BMC: found by links from the service root, never by paths that others use.

use serde_json::Value;

use super::doc::{Doc, Properties};
use super::session::Session;
use crate::error::{Error, Result};
use crate::machine::Serial;

/// Chassis of one machine that are looked at: its own, drive cages, risers.
const CHASSIS_MAX: usize = 16;

/// Paths of the machine's resources, kept for as long as the session.
#[derive(Debug, Clone)]
pub struct Found {
    pub system: String,
    pub manager: Option<String>,
    pub chassis: Vec<String>,
}

impl Session {
    /// The machine itself, as it is now.
    pub(super) async fn system(&mut self) -> Result<Doc> {
        if let Some(found) = &self.found {
            let system = found.system.clone();
            return self.get(&system).await;
        }
        let system = self.choose_system().await?;
        let manager = self.manager_of(&system).await?;
        let chassis = self.chassis_of(&system).await?;
        self.found = Some(Found { system: system.path.clone(), manager, chassis });
        Ok(system)
    }

    pub(super) async fn found(&mut self) -> Result<Found> {
        if self.found.is_none() {
            self.system().await?;
        }
        self.found.clone().ok_or_else(|| Error::internal("bmc.found", "nothing was found and nothing said so"))
    }

    /// The BMC as a resource of its own.
    pub(super) async fn manager(&mut self) -> Result<Doc> {
        match self.found().await?.manager {
            Some(manager) => self.get(&manager).await,
            None => Err(self.lacks("a resource for the BMC itself")),
        }
    }

    pub(super) fn lacks(&self, what: &str) -> Error {
        Error::refused("bmc.unsupported", format!("{} does not offer {what} by Redfish", self.whose()))
            .hint("update the BMC firmware, or use IPMI for this")
    }

    /// Of several, the one with the machine's serial number or UUID, as in a chassis of blades. BMCs of machines with
    /// accelerators list their boards as systems too (`HGX_Baseboard_0`): where only one can be started and told what to
    /// boot, the machine is that. Nothing else is guessed.
    async fn choose_system(&mut self) -> Result<Doc> {
        let Some(systems) = self.root().link("Systems").map(str::to_owned) else {
            return Err(self.lacks("any machine"));
        };
        let mut systems = self.members(&systems).await?;
        if systems.len() > 1 {
            let list: Vec<String> = systems.iter().map(|system| name_of(system)).collect();
            let of_many = self.meant(&systems);
            match of_many {
                Some(meant) => systems = vec![systems.swap_remove(meant)],
                None => systems.retain(|system| can_boot(system)),
            }
            if systems.len() != 1 {
                return Err(self.ambiguous(&list));
            }
        }
        systems.pop().ok_or_else(|| self.lacks("any machine"))
    }

    /// By serial number; by UUID where no serial number tells, or the chassis gave all of them the same.
    fn meant(&self, systems: &[Doc]) -> Option<usize> {
        // What Dell prints on the machine is the service tag.
        let names: &[&str] = if self.dell() { &["SerialNumber", "SKU"] } else { &["SerialNumber"] };
        let serials = |system: &Doc| names.iter().filter_map(|name| system.text(name)).collect::<Vec<_>>();
        let is_serial = |text: &String| self.machine.serial.is_some() && Serial::parse(text) == self.machine.serial;
        let uuid = |system: &Doc| system.text("UUID").and_then(|text| text.parse().ok());
        let all = || (0..).zip(systems);
        let by_serial = |(at, system): (usize, &Doc)| serials(system).iter().any(is_serial).then_some(at);
        let by_uuid =
            |(at, system): (usize, &Doc)| uuid(system).filter(|uuid| self.machine.has_uuid(*uuid)).map(|_| at);
        let serial: Vec<usize> = all().filter_map(by_serial).collect();
        let uuid: Vec<usize> =
            all().filter_map(by_uuid).filter(|at| serial.is_empty() || serial.contains(at)).collect();
        match (serial.as_slice(), uuid.as_slice()) {
            ([only], _) | (_, [only]) => Some(*only),
            _ => None,
        }
    }

    fn ambiguous(&self, list: &[String]) -> Error {
        let (whose, many, list) = (self.whose(), list.len(), list.join("; "));
        let message = match (&self.machine.serial, &self.machine.uuid) {
            (Some(serial), _) => format!("{whose} has {many} machines, and {serial} is not one of them: {list}"),
            (None, Some(uuid)) => format!("{whose} has {many} machines, and {uuid} is not one of them: {list}"),
            (None, None) => format!("{whose} has {many} machines: {list}"),
        };
        Error::refused("bmc.ambiguous", message)
            .hint("correct the serial number or bmc_address in the list of expected machines")
    }

    async fn manager_of(&mut self, system: &Value) -> Result<Option<String>> {
        // Some call it `Managers` (opendev.org/openstack/sushy, `System.managers`).
        let links = system.property("Links");
        let linked = ["ManagedBy", "Managers"].iter().find_map(|name| links?.links(name).into_iter().next());
        if linked.is_some() {
            return Ok(linked);
        }
        let Some(managers) = self.root().link("Managers").map(str::to_owned) else { return Ok(None) };
        let managers = self.members(&managers).await?;
        Ok(match managers.as_slice() {
            [only] => Some(only.path.clone()),
            _ => None,
        })
    }

    async fn chassis_of(&mut self, system: &Value) -> Result<Vec<String>> {
        let mut chassis = system.property("Links").map(|links| links.links("Chassis")).unwrap_or_default();
        if chassis.is_empty()
            && let Some(all) = self.root().link("Chassis").map(str::to_owned)
        {
            chassis = self.members(&all).await?.into_iter().map(|doc| doc.path).collect();
        }
        chassis.truncate(CHASSIS_MAX);
        Ok(chassis)
    }
}

fn can_boot(system: &Value) -> bool {
    let overrides = system.property("Boot").is_some_and(|boot| {
        boot.property("BootSourceOverrideTarget").is_some() || boot.property("BootSourceOverrideEnabled").is_some()
    });
    overrides && system.action("#ComputerSystem.Reset").is_some()
}

fn name_of(system: &Value) -> String {
    let told = |name: &str| system.text(name).map(|value| format!("{name} {value}"));
    let parts: Vec<String> = ["Id", "SerialNumber", "SKU", "UUID"].into_iter().filter_map(told).collect();
    parts.join(", ")
}
