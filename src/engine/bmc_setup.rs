//! A BMC as the site wants it, when its machine is commissioned: where it has its time from, and whether its address is its own
//! or comes by DHCP. Looks first, changes only what differs, and reads back; what fails is told and holds up nobody.

use std::net::IpAddr;

use serde_json::Value;

use super::Engine;
use super::bmc::Door;
use super::password::is_its_own;
use crate::bmc::{AddressFrom, Answer, Command, Network, Outcome, SetNetwork};
use crate::error::{Error, Result};
use crate::lifecycle::{Action, Machine};

/// A log is read to the second; a clock further off than this misleads.
const CLOCK_OFF: u64 = 5;

/// What the site wants of each BMC; nothing unless it says so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BmcSetup {
    /// Time servers; empty: left as they are.
    pub ntp: Vec<String>,
    pub address: BmcAddress,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BmcAddress {
    /// As it is.
    #[default]
    Keep,
    Dhcp,
    /// The one of the list, which it has now, without asking for it.
    Static,
}

impl Engine {
    /// Whether there is anything to do for an action; what the site has no opinion on is not begun.
    pub(super) fn has_work_for(&self, action: &Action) -> bool {
        *action != Action::BmcSetup || self.inner.site.bmc_setup != BmcSetup::default()
    }

    /// The answer is a sentence for the timeline.
    pub(super) async fn set_up_bmc(&self, machine: &Machine) -> Result<Value> {
        is_its_own(machine)?;
        self.meet(machine, &self.access(machine, Door::First).await?).await?;
        let BmcSetup { ntp, address } = &self.inner.site.bmc_setup;
        let Answer::Network(now) = self.ask_bmc_through(machine, Door::Redfish, Command::Network).await? else {
            return Err(Error::internal("bmc.answer", "network settings were asked for and something else came"));
        };
        // The address last: whatever comes of it, the rest is done.
        let time = self.set_time_servers(machine, ntp, &now).await;
        let address = self.set_address(machine, *address, &now).await;
        let done: Vec<String> = [time?, address?].into_iter().flatten().collect();
        Ok(match done.is_empty() {
            true => "was as the site wants it".into(),
            false => done.join("; ").into(),
        })
    }

    async fn set_time_servers(&self, machine: &Machine, ntp: &[String], now: &Network) -> Result<Option<String>> {
        if ntp.is_empty() || now.ntp.as_deref() == Some(ntp) {
            return Ok(None);
        }
        if now.ntp.is_none() {
            return self.set_clock_instead(machine).await;
        }
        let wanted = SetNetwork { address: None, ntp: Some(ntp.to_vec()) };
        let seen = self.change_network(machine, wanted).await?;
        Ok(Some(format!("its time is from {}{seen}", ntp.join(", "))))
    }

    /// IPMI has no words for time servers (2.0 section 23).
    async fn set_clock_instead(&self, machine: &Machine) -> Result<Option<String>> {
        let off = match self.ask_bmc_through(machine, Door::Redfish, Command::Clock).await? {
            Answer::Clock { clock } => clock.map(|clock| clock.ahead_seconds.unsigned_abs()),
            _ => None,
        };
        match off {
            Some(off) if off > CLOCK_OFF => {
                self.ask_bmc_through(machine, Door::Redfish, Command::SetClock).await?;
                Ok(Some(format!("its clock was {off} s off and is set, since time servers cannot be given to it")))
            }
            _ => Ok(None),
        }
    }

    async fn set_address(&self, machine: &Machine, wanted: BmcAddress, now: &Network) -> Result<Option<String>> {
        let is = |source: &str| now.source.as_deref().is_some_and(|now| now.eq_ignore_ascii_case(source));
        let listed = machine.bmc.as_ref().map(|account| account.address.ip());
        let (from, sentence) = match wanted {
            BmcAddress::Keep => return Ok(None),
            BmcAddress::Dhcp if is("DHCP") => return Ok(None),
            BmcAddress::Static if is("static") => return Ok(None),
            BmcAddress::Dhcp => (AddressFrom::Dhcp, "its address comes by DHCP".to_owned()),
            BmcAddress::Static => {
                let from = as_it_is(machine, listed, now)?;
                (from, listed.map_or(String::new(), |address| format!("it keeps the address {address} without DHCP")))
            }
        };
        let seen = self.change_network(machine, SetNetwork { address: Some(from), ntp: None }).await?;
        Ok(Some(sentence + &seen))
    }

    /// What is to be said of it besides.
    async fn change_network(&self, machine: &Machine, wanted: SetNetwork) -> Result<String> {
        match self.ask_bmc_through(machine, Door::Redfish, Command::SetNetwork(wanted)).await? {
            Answer::Done { outcome: Outcome::Unconfirmed { why }, .. } => Ok(format!(" (not confirmed: {why})")),
            _ => Ok(String::new()),
        }
    }
}

/// A BMC that we reach by another address than it has, behind a translation or by another card, would be cut off.
fn as_it_is(machine: &Machine, listed: Option<IpAddr>, now: &Network) -> Result<AddressFrom> {
    match (now.address, now.prefix) {
        (Some(address), Some(prefix @ 1..)) if Some(address) == listed => {
            Ok(AddressFrom::Static { address, prefix, gateway: now.gateway })
        }
        (address, _) => {
            let text = |address: Option<IpAddr>| address.map_or("none".to_owned(), |address| address.to_string());
            let (name, has, listed) = (&machine.name, text(address), text(listed));
            let message = format!(
                "the BMC of {name} says that its address is {has}, expected {listed} of the list: it is left so"
            );
            Err(Error::conflict("bmc.network", message)
                .hint("correct bmc_address in the list of expected machines, or use `rackline bmc network`"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::State;
    use crate::machine::MachineId;

    #[test]
    fn only_the_address_of_the_list_is_kept() {
        let machine = Machine::new(MachineId::generate(), "kvm-1".into(), 0, State::Commissioning);
        let now = Network {
            mac: None,
            address: Some([10, 0, 0, 7].into()),
            prefix: Some(24),
            gateway: Some([10, 0, 0, 1].into()),
            source: Some("DHCP".into()),
            vlan: None,
            ntp: None,
        };
        let listed = Some([10, 0, 0, 7].into());
        let kept = AddressFrom::Static { address: [10, 0, 0, 7].into(), prefix: 24, gateway: now.gateway };
        assert_eq!(as_it_is(&machine, listed, &now).unwrap(), kept);
        let error = as_it_is(&machine, Some([10, 0, 0, 8].into()), &now).unwrap_err();
        for word in ["10.0.0.7", "expected 10.0.0.8"] {
            assert!(error.message().contains(word), "{error}");
        }
        for unclear in [Network { prefix: None, ..now.clone() }, Network { prefix: Some(0), ..now.clone() }] {
            assert!(as_it_is(&machine, listed, &unclear).is_err());
        }
        assert!(as_it_is(&machine, listed, &Network { address: None, ..now }).is_err());
    }
}
