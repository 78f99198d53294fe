//! Where things are on this BMC: found by links from the service root, never by paths that others use.

use serde_json::Value;

use super::doc::{Doc, Properties};
use super::session::Session;
use crate::error::{Error, Result};

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

    /// BMCs of machines with accelerators list their boards as systems too (`HGX_Baseboard_0`): the machine is the one
    /// that can be started and told what to boot. Where several can, as in an enclosure, nothing is guessed.
    async fn choose_system(&mut self) -> Result<Doc> {
        let Some(systems) = self.root().link("Systems").map(str::to_owned) else {
            return Err(self.lacks("any machine"));
        };
        let mut systems = self.members(&systems).await?;
        if systems.len() > 1 {
            let list: Vec<String> = systems.iter().map(|system| name_of(system)).collect();
            systems.retain(|system| can_boot(system));
            if systems.len() != 1 {
                let message = format!("{} has {} machines: {}", self.whose(), list.len(), list.join("; "));
                return Err(Error::refused("bmc.ambiguous", message)
                    .hint("give the address of the machine's own BMC, not that of its enclosure"));
            }
        }
        systems.pop().ok_or_else(|| self.lacks("any machine"))
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
    let parts: Vec<String> = ["Id", "SerialNumber", "UUID"].into_iter().filter_map(told).collect();
    parts.join(", ")
}
