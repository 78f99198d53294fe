//! A password of its own for each BMC, in the place of the one that it came with.
//!
//! Whatever crashes when, there is always a password at hand that opens: the new one is sealed in the store before the BMC
//! hears of it, the old one is not forgotten, and all that come into question are tried before anybody is locked out.

use std::sync::Arc;

use aws_lc_rs::rand;
use serde_json::{Value, json};

use super::Engine;
use super::bmc::Door;
use crate::bmc::{Access, Answer, Command};
use crate::error::{Error, Kind, OrFail, Result};
use crate::lifecycle::Machine;
use crate::machine::{MachineId, Secret};

/// What IPMI 2.0 stores, and what BMCs keep that know only the passwords of IPMI 1.5 (section 22.30).
const LONG: usize = 20;
pub(super) const SHORT: usize = 16;

/// The name under which it is sealed.
pub(super) fn own_secret(machine: MachineId) -> String {
    format!("bmc-own/{machine}")
}

impl Engine {
    /// Changes the password, unless an earlier try got as far. The answer says how long it is, and nothing else of it.
    pub(super) async fn change_bmc_password(&self, machine: &Machine) -> Result<Value> {
        is_its_own(machine)?;
        self.is_its_alone(machine)?;
        let listed = self.access(machine, Door::First).await?;
        let site = &self.inner.site;
        let earlier = site.db.secret(&site.seal, &own_secret(machine.id)).await?;
        if let Some(earlier) = &earlier {
            for password in [earlier.as_str(), short(earlier)] {
                if self.opens(&listed, password).await? {
                    return self.keep(machine.id, password).await;
                }
            }
        }
        self.meet(machine, &listed).await?;
        let own = match earlier {
            Some(earlier) if earlier.len() == LONG => earlier,
            _ => generate()?,
        };
        let mut refused = None;
        for password in [own.as_str(), short(&own)] {
            self.keep(machine.id, password).await?;
            let set = Command::SetPassword { user: listed.user.clone(), password: Secret::new(password) };
            match site.fleet.run(&listed, set).await {
                Ok(_) => {}
                // Its own test says that it keeps another one, perhaps this one cut short.
                Err(e) if e.code() == "bmc.not-applied" => refused = Some(e),
                // Too long, or not to its liking: the shorter one may do.
                Err(e) if e.kind() == Kind::Refused && e.code() != "bmc.auth" => {
                    refused = Some(e);
                    continue;
                }
                Err(e) => return Err(e),
            }
            // Some say yes to twenty bytes and keep sixteen.
            if self.opens(&listed, password).await? {
                return self.keep(machine.id, password).await;
            }
            if password.len() > SHORT && self.opens(&listed, short(password)).await? {
                return self.keep(machine.id, short(password)).await;
            }
        }
        let name = &machine.name;
        Err(refused.unwrap_or_else(|| {
            Error::refused("bmc.not-applied", format!("the BMC of {name} took a new password and keeps the old one"))
                .hint("it is tried again when the machine is commissioned again; update the BMC's firmware")
        }))
    }

    /// One password cannot be that of each machine of a chassis.
    fn is_its_alone(&self, machine: &Machine) -> Result<()> {
        let address = machine.bmc.as_ref().map(|account| account.address);
        let shares = |other: &&Arc<Machine>| {
            other.id != machine.id && address.is_some() && other.bmc.as_ref().map(|account| account.address) == address
        };
        match self.world().all().iter().find(shares) {
            Some(other) => {
                let message =
                    format!("the BMC of {} is that of {} as well and keeps its password", machine.name, other.name);
                Err(Error::conflict("bmc.shared", message)
                    .hint("change it by hand, and in the list for each of its machines"))
            }
            None => Ok(()),
        }
    }

    /// A log-in, which is the only proof.
    async fn opens(&self, access: &Access, password: &str) -> Result<bool> {
        let access = Access { password: Secret::new(password), ..access.clone() };
        match self.inner.site.fleet.run(&access, Command::PowerStatus).await {
            Ok(Answer::PowerStatus(_)) => Ok(true),
            Ok(_) => Ok(false),
            Err(e) if e.code() == "bmc.auth" => Ok(false),
            Err(e) => Err(e),
        }
    }

    async fn keep(&self, machine: MachineId, password: &str) -> Result<Value> {
        let site = &self.inner.site;
        site.db.put_secret(&site.seal, &own_secret(machine), password).await?;
        Ok(json!({ "length": password.len() }))
    }
}

pub(super) fn short(password: &str) -> &str {
    password.get(..SHORT).unwrap_or(password)
}

/// The BMC of another machine must not get the password and settings of this one; [`Engine::meet`] compares serial numbers besides.
pub(super) fn is_its_own(machine: &Machine) -> Result<()> {
    let listed = machine.bmc.as_ref().map(|account| account.address.ip());
    let in_band = machine.inventory.as_ref().and_then(|inventory| inventory.bmc.as_ref()).and_then(|bmc| bmc.address);
    match (listed, in_band) {
        (Some(listed), Some(found)) if listed != found => {
            let message = format!("the list has {listed} for the BMC of {}, which itself says {found}", machine.name);
            Err(Error::conflict("bmc.other-machine", message)
                .hint("correct bmc_address in the list of expected machines"))
        }
        _ => Ok(()),
    }
}

/// 64 signs that every BMC takes, so each carries six random bits.
const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// With signs of each kind among the first [`SHORT`], since many BMCs insist.
fn generate() -> Result<String> {
    loop {
        let mut random = [0u8; LONG];
        rand::fill(&mut random).or_fail(Kind::Internal, "bmc.password", || "there are no random numbers")?;
        let password: String =
            random.iter().filter_map(|b| SIGNS.get(usize::from(b & 63))).map(|sign| char::from(*sign)).collect();
        let has = |kind: fn(char) -> bool| short(&password).contains(kind);
        if has(|c| c.is_ascii_uppercase())
            && has(|c| c.is_ascii_lowercase())
            && has(|c| c.is_ascii_digit())
            && has(|c| c.is_ascii_punctuation())
        {
            return Ok(password);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_long_varied_and_never_the_same() {
        let made: std::collections::HashSet<String> = (0..200).map(|_| generate().unwrap()).collect();
        assert_eq!(made.len(), 200);
        assert!(made.iter().all(|p| p.len() == LONG && p.is_ascii() && short(p).len() == SHORT));
    }
}
