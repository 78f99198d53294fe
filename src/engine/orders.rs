//! From a task to the order that an agent can carry out: adds the documents and the secrets that rules do not handle.

use super::Engine;
use crate::check::{self, Declared};
use crate::error::{Error, Result};
use crate::lifecycle::{Machine, OWN_BMC_USER, Order as Ordered, State, Task, task};
use crate::link::{BmcUser, BurnIn, Deploy, Issued, Leave, Mode, Order, ReadBack, Verify};
use crate::machine::MachineId;
use crate::template::seed::{self, Facts};

/// What every seed of this site says.
#[derive(Debug, Clone)]
pub struct SeedFacts {
    /// Where the resident agent finds the appliance.
    pub url: String,
    /// Kernel release below which no host is handed off, `major.minor`.
    pub kernel_floor: String,
    /// Hosts get certificates of the site.
    pub tls: bool,
}

impl Engine {
    /// The order of a machine as it is now.
    pub(super) fn issue(&self, machine: &Machine, mode: Mode) -> Result<Issued> {
        let order = match task(machine, mode) {
            Task::Wait { reason } => Order::Wait { reason },
            Task::Commission => Order::Commission { bmc_user: self.bmc_user(machine) },
            Task::BurnIn => {
                let burn = machine
                    .burning()
                    .ok_or_else(|| Error::internal("engine.order", "a machine is burned in without a profile"))?;
                Order::BurnIn(Box::new(BurnIn {
                    profile: burn.profile.clone(),
                    done: burn.done(),
                    overwrite: burn.overwrite,
                }))
            }
            Task::Deploy => self.deploy(machine, ordered(machine)?)?,
            Task::Verify => {
                let ordered = ordered(machine)?;
                Order::Verify(Box::new(Verify {
                    role: ordered.role.clone(),
                    hostname: ordered.hostname.clone(),
                    manifest: ordered.manifest,
                    kernel_floor: ordered.setup.kernel_floor(&self.inner.site.seed.kernel_floor),
                    setup: ordered.setup.clone(),
                    checks: self.asked(machine, ordered),
                    // A host in use keeps the certificate that it was delivered with.
                    tls: self.inner.site.seed.tls && machine.state == State::Verifying,
                }))
            }
            Task::Erase => Order::Erase { keep: Vec::new() },
            Task::Reboot { reason } => Order::Leave { how: Leave::Reboot, reason },
        };
        Ok(Issued { number: machine.number, order })
    }

    /// A host that has to show what nobody can look at would never be handed off.
    pub fn declared(&self, ids: &[String]) -> Result<()> {
        let known = |id: &&String| self.inner.site.checks.iter().any(|declared| declared.id == **id);
        match ids.iter().find(|id| !known(id)) {
            None => Ok(()),
            Some(id) => {
                Err(Error::input("order.checks", format!("the role asks for the check {id}, which nobody declares"))
                    .hint("declare it in the folder of `[host] checks`, or take it out of the role's template"))
            }
        }
    }

    /// What is declared for its roles; of a host in use only what does not disturb it.
    fn asked(&self, machine: &Machine, ordered: &Ordered) -> Vec<Declared> {
        let site = &self.inner.site;
        let kernel_floor = ordered.setup.kernel_floor(&site.seed.kernel_floor);
        let facts =
            check::Facts { hostname: &ordered.hostname, manifest: ordered.manifest, kernel_floor: &kernel_floor };
        site.checks.asks(&ordered.role, &facts, matches!(machine.state, State::Delivered { .. }))
    }

    fn deploy(&self, machine: &Machine, ordered: &Ordered) -> Result<Order> {
        let boot_mac = machine
            .inventory
            .as_ref()
            .and_then(|i| i.nics.iter().find(|n| n.boot))
            .map(|n| n.mac)
            .or_else(|| machine.macs.first().copied());
        let seed = seed::render(&Facts {
            machine: machine.id,
            hostname: &ordered.hostname,
            role: &ordered.role,
            ssh_keys: &ordered.ssh_keys,
            url: &self.inner.site.seed.url,
            token: &self.token(machine.id),
            key: Some(&self.inner.site.key.public().to_string()),
            manifest: ordered.manifest,
            boot_mac,
        })?;
        Ok(Order::Deploy(Box::new(Deploy {
            manifest: ordered.manifest,
            target: ordered.target.clone(),
            seed,
            read_back: ReadBack::Full,
            // After a release that erased there is no record of a deployment, and nothing on the disk.
            reuse: machine.deployed.is_some(),
            compare_with_dd: ordered.compare_with_dd,
            setup: ordered.setup.clone(),
        })))
    }

    /// Where the site names no way in to the BMC, the agent makes one from inside.
    fn bmc_user(&self, machine: &Machine) -> Option<BmcUser> {
        let own = machine.bmc.as_ref().is_none_or(|bmc| bmc.user == OWN_BMC_USER);
        own.then(|| BmcUser { name: OWN_BMC_USER.into(), password: self.own_bmc_password(machine.id) })
    }

    /// Derived from the site key, so that there is no moment in which only the BMC knows it. Sixteen characters: more
    /// would be cut by BMCs that speak IPMI 1.5 (IPMI 2.0 section 22.30).
    pub(super) fn own_bmc_password(&self, machine: MachineId) -> String {
        let key = self.inner.site.seal.derive("BMC user");
        blake3::keyed_hash(&key, machine.0.as_bytes()).to_hex()[..16].to_owned()
    }

    /// What an agent of this machine shows with each request: bound to the machine's id by the site key.
    pub fn token(&self, machine: MachineId) -> String {
        let key = self.inner.site.seal.derive("agent token");
        blake3::keyed_hash(&key, machine.0.as_bytes()).to_hex().to_string()
    }

    /// Compared in constant time.
    pub fn token_fits(&self, machine: MachineId, token: &str) -> bool {
        let key = self.inner.site.seal.derive("agent token");
        blake3::Hash::from_hex(token).is_ok_and(|said| said == blake3::keyed_hash(&key, machine.0.as_bytes()))
    }
}

fn ordered(machine: &Machine) -> Result<&Ordered> {
    machine.order.as_ref().ok_or_else(|| Error::internal("engine.order", "a machine is deployed without an order"))
}
