//! BMCs that asked for an address: whose they are is known where an agent has seen them from inside, and is not guessed for
//! the others. In memory: whoever is there asks again within its lease.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::{About, Engine};
use crate::boot::bmc::BmcSighting;
use crate::lifecycle::Event;
use crate::machine::MacAddr;

/// BMCs kept; MAC addresses come from the network.
const MAX: usize = 20_000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundBmc {
    pub mac: MacAddr,
    pub address: Ipv4Addr,
    /// As its DHCP client says.
    pub maker: Option<String>,
    /// The name of its machine.
    pub machine: Option<String>,
}

#[derive(Default)]
pub struct Found {
    by_mac: Mutex<HashMap<MacAddr, (Ipv4Addr, Option<&'static str>)>>,
}

impl Found {
    /// Whether it is news.
    fn note(&self, sighting: &BmcSighting) -> bool {
        let mut found = self.by_mac.lock().unwrap_or_else(PoisonError::into_inner);
        if found.len() >= MAX && !found.contains_key(&sighting.mac) {
            return false;
        }
        let BmcSighting { mac, address, maker } = *sighting;
        found.insert(mac, (address, maker)) != Some((address, maker))
    }
}

impl Engine {
    pub(super) fn met_bmc(&self, sighting: BmcSighting) {
        if !self.inner.found.note(&sighting) {
            return;
        }
        let BmcSighting { mac, address, maker } = sighting;
        let Some(machine) = self.world().by_bmc(mac) else {
            tracing::info!(%mac, %address, maker, "a BMC has an address; whose it is, an agent will say");
            return;
        };
        let listed = machine.bmc.as_ref().map(|account| account.address.ip());
        let sentence = match listed {
            Some(listed) if listed != address => format!("its BMC {mac} has the address {address}, and not {listed}"),
            _ => format!("its BMC {mac} has the address {address}"),
        };
        self.tell(About::Machine(machine.id), Event::Noted { sentence });
    }

    /// By address.
    pub fn found_bmcs(&self) -> Vec<FoundBmc> {
        let found = self.inner.found.by_mac.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let world = self.world();
        let bmc = |(mac, (address, maker)): (MacAddr, (Ipv4Addr, Option<&str>))| FoundBmc {
            mac,
            address,
            maker: maker.map(str::to_owned),
            machine: world.by_bmc(mac).map(|machine| machine.name.clone()),
        };
        let mut all: Vec<FoundBmc> = found.into_iter().map(bmc).collect();
        all.sort_by_key(|bmc| bmc.address);
        all
    }
}
