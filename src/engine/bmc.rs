//! The engine's way to a machine's BMC: address from the machine, password from the sealed store.

use super::Engine;
use super::password::{own_secret, short};
use crate::bmc::{Access, Answer, Command, Doors, Protocol};
use crate::error::{Error, Result};
use crate::lifecycle::{BmcAccount, BmcPassword, Machine, OWN_BMC_USER};
use crate::machine::{MachineId, PowerAction, Secret};

/// Which of a BMC's interfaces is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    First,
    /// IPMI where Redfish goes first, and the other way round.
    Other,
    /// Redfish where there is one: for what IPMI has no words for.
    Redfish,
}

impl Engine {
    /// Asks a machine's BMC; what changes the machine goes through an event instead.
    pub async fn ask_bmc(&self, machine: &Machine, command: Command) -> Result<Answer> {
        self.ask_bmc_through(machine, Door::First, command).await
    }

    pub(super) async fn ask_bmc_through(&self, machine: &Machine, door: Door, command: Command) -> Result<Answer> {
        let mut access = self.access(machine, door).await?;
        if let Command::Power { action: PowerAction::On | PowerAction::Cycle | PowerAction::Reset } = &command {
            let _ = self.inner.boots.send(machine.id);
        }
        let first = self.run_and_learn(machine, &access, command.clone()).await;
        if !refused_entry(&first) {
            return first;
        }
        for password in self.other_passwords(machine, &access).await? {
            access.password = password;
            let again = self.run_and_learn(machine, &access, command.clone()).await;
            if !refused_entry(&again) {
                return again;
            }
        }
        first
    }

    /// What may open where the first password does not: the listed one behind the BMC's own, or, while that is being set,
    /// its own, whole or as short as some BMCs keep it.
    async fn other_passwords(&self, machine: &Machine, first: &Access) -> Result<Vec<Secret>> {
        if first.user == OWN_BMC_USER {
            return Ok(Vec::new());
        }
        let site = &self.inner.site;
        let listed = site.db.secret(&site.seal, &super::bmc_secret(machine.id)).await?;
        let own = site.db.secret(&site.seal, &own_secret(machine.id)).await?;
        let shortened = own.as_deref().map(|own| short(own).to_owned());
        let mut passwords: Vec<Secret> = Vec::new();
        for password in [own, shortened, listed].into_iter().flatten().map(Secret::new) {
            if password != first.password && !passwords.contains(&password) {
                passwords.push(password);
            }
        }
        Ok(passwords)
    }

    /// For those who know no more of a machine than its id, and ask later than they learnt it.
    pub(super) async fn access_by_id(&self, id: MachineId) -> Result<Access> {
        let gone = || Error::not_found("machine.unknown", "this machine is not known here");
        let machine = self.machine(id).ok_or_else(gone)?;
        self.access(&machine, Door::First).await
    }

    /// How a machine's BMC is entered now.
    pub(super) async fn access(&self, machine: &Machine, door: Door) -> Result<Access> {
        let account = machine.bmc.as_ref().ok_or_else(|| {
            Error::conflict("bmc.unknown", "its BMC is not known").hint("add it to the list of expected machines")
        })?;
        let site = &self.inner.site;
        let password = match account.user == OWN_BMC_USER {
            true => Some(self.own_bmc_password(machine.id)),
            false if machine.bmc_password == BmcPassword::Own => {
                site.db.secret(&site.seal, &own_secret(machine.id)).await?
            }
            false => site.db.secret(&site.seal, &super::bmc_secret(machine.id)).await?,
        };
        let password = password.ok_or_else(|| {
            Error::config("bmc.password", "the password of its BMC is not known")
                .hint("add bmc_password to its row of the expected machines")
        })?;
        let doors = match door {
            Door::First => doors(account),
            Door::Redfish => Doors { first: Protocol::Redfish, ..doors(account) },
            Door::Other => doors(account).other().ok_or_else(|| {
                Error::conflict("bmc.one-door", "its BMC is known by one interface only")
                    .hint("name both in the list of expected machines: 10.0.0.7 https://10.0.0.7")
            })?,
        };
        Ok(Access { doors, user: account.user.clone(), password: Secret::new(password), machine: machine.identity() })
    }
}

fn refused_entry(result: &Result<Answer>) -> bool {
    matches!(result, Err(e) if e.code() == "bmc.auth")
}

pub(super) fn doors(account: &BmcAccount) -> Doors {
    match account.redfish {
        Some(redfish) if redfish == account.address => Doors::redfish(redfish),
        redfish => Doors { redfish, ..Doors::ipmi(account.address) },
    }
}
