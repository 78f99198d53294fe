//! What the operator can see of the boot services, and the way to give them another configuration while they run.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::config::BootConfig;
use super::count::{Counters, Silence};
use super::dhcp::table::SCARCE;
use super::dhcp::{Asked, Dhcp};
use super::neighbours::{self, Neighbours};
use super::others::{OtherServer, Others};
use crate::error::{Error, Result};
use crate::machine::MacAddr;

/// Between two looks at the pools.
const LOOK: Duration = Duration::from_secs(5);
/// Unanswered requests that are remembered, the latest of each MAC address and reason.
const REMEMBERED: usize = 256;

/// Clones see the same services.
#[derive(Clone)]
pub struct Monitor {
    pub(super) dhcp: Arc<Mutex<Dhcp>>,
    pub(super) config: Arc<Mutex<BootConfig>>,
    pub(super) counters: Arc<Counters>,
    pub(super) others: Arc<Others>,
    pub(super) silences: Arc<Silences>,
    /// Why the configuration on disk is not the one in use.
    pub(super) refused: Arc<Mutex<Option<String>>>,
    neighbours: Arc<Mutex<Neighbours>>,
}

/// The boot services at a glance.
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    /// Why the configuration on disk is not the one in use; none: it is.
    pub refused: Option<String>,
    pub subnets: Vec<SubnetStatus>,
    /// Whether the kernel can reach every machine of the pools at once.
    pub neighbours: Neighbours,
    pub other_servers: Vec<OtherServer>,
    /// Latest first.
    pub unanswered: Vec<Unheard>,
    /// What was sent and what was not, by name; from the API with those of the machines' web server.
    pub counters: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct SubnetStatus {
    pub network: String,
    pub shared: Option<String>,
    /// Addresses in the pools.
    pub size: u32,
    pub taken: u32,
    pub percent: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unheard {
    pub mac: MacAddr,
    pub why: String,
    pub times: u64,
    /// Milliseconds since 1970.
    pub last: i64,
}

impl Monitor {
    pub fn new(dhcp: Arc<Mutex<Dhcp>>, config: &BootConfig, counters: Arc<Counters>) -> Self {
        let others = Arc::<Others>::default();
        others.expect(&config.other_servers);
        let config = Arc::new(Mutex::new(config.clone()));
        Self {
            dhcp,
            config,
            counters,
            others,
            silences: Arc::default(),
            refused: Arc::default(),
            neighbours: Arc::default(),
        }
    }

    pub fn status(&self) -> Status {
        let subnets = {
            let mut dhcp = self.dhcp.lock().unwrap_or_else(PoisonError::into_inner);
            let usages = dhcp.table.usages(super::now_ms());
            usages
                .into_iter()
                .map(|(subnet, usage)| SubnetStatus {
                    network: subnet.network.to_string(),
                    shared: subnet.shared.clone(),
                    size: usage.size,
                    taken: usage.taken,
                    percent: usage.filled(),
                })
                .collect()
        };
        Status {
            subnets,
            neighbours: self.neighbours.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            other_servers: self.others.list(),
            unanswered: self.silences.list(),
            counters: self.counters.snapshot().into_iter().map(|(name, n)| (name.to_owned(), n)).collect(),
            refused: self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Whether machines of this address are ours: it lies in a subnet. Where another server gives the addresses and no
    /// subnet is configured, nobody knows, and everybody is.
    pub fn serves(&self, address: IpAddr) -> bool {
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        match address {
            _ if config.subnets.is_empty() => true,
            IpAddr::V4(address) => config.subnets.iter().any(|subnet| subnet.network.contains(address)),
            IpAddr::V6(_) => false,
        }
    }

    pub(super) fn probe_ms(&self) -> u16 {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).probe_ms
    }

    /// Takes over another configuration at once, or says why not and changes nothing. Sockets stay as they are, so the
    /// interfaces cannot change. `true`: there was something to take over.
    pub fn reconfigure(&self, new: &BootConfig) -> Result<bool> {
        new.check()?;
        let mut current = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let fixed = |c: &BootConfig| (c.interfaces.clone(), c.router_advertisements, c.port(), c.boot_limit);
        if fixed(&current) != fixed(new) || current.tftp != new.tftp {
            return Err(Error::config(
                "boot.fixed",
                "boot.interfaces, tftp, router_advertisements, boot_limit and the port of boot.url cannot change while it runs",
            )
            .hint("restart the appliance; machines that boot just now ask again by themselves"));
        }
        if *current == *new {
            return Ok(false);
        }
        let loaders = self.dhcp.lock().unwrap_or_else(PoisonError::into_inner).loaders.clone();
        loaders.reconfigure(new)?;
        self.dhcp.lock().unwrap_or_else(PoisonError::into_inner).reconfigure(new);
        self.others.expect(&new.other_servers);
        self.make_room(new);
        current.clone_from(new);
        info!(
            subnets = new.subnets.len(),
            rules = new.options.len(),
            "the boot services go on with the new configuration"
        );
        Ok(true)
    }

    /// For switches that fetch by TFTP.
    pub fn serve_switches(&self, files: HashMap<String, Bytes>) {
        self.dhcp.lock().unwrap_or_else(PoisonError::into_inner).loaders.serve_switches(files);
    }

    /// In the kernel's neighbour tables.
    pub(super) fn make_room(&self, config: &BootConfig) {
        let room = Neighbours::make_room(config, Path::new(neighbours::SYSCTL));
        *self.neighbours.lock().unwrap_or_else(PoisonError::into_inner) = room;
    }

    /// For [`Status::refused`].
    pub fn refused(&self, why: Option<String>) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Says when a pool runs low, before it hurts, and when it has room again.
    pub(super) async fn watch_pools(self, stop: CancellationToken) {
        let mut said: HashMap<String, u32> = HashMap::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            for subnet in self.status().subnets.into_iter().filter(|s| s.size > 0) {
                let level = match subnet.percent {
                    100.. => 100,
                    95.. => 95,
                    SCARCE.. => SCARCE,
                    _ => 0,
                };
                let before = said.insert(subnet.network.clone(), level).unwrap_or(0);
                if level > before {
                    warn!(
                        subnet = subnet.network,
                        taken = subnet.taken,
                        size = subnet.size,
                        "{} % of the pool are taken; make it larger, or lease_seconds shorter",
                        subnet.percent
                    );
                } else if level < before {
                    info!(subnet = subnet.network, taken = subnet.taken, size = subnet.size, "the pool has room again");
                }
            }
        }
    }
}

/// The latest requests without answer.
#[derive(Default)]
pub struct Silences(Mutex<HashMap<(MacAddr, String), (u64, i64)>>);

impl Silences {
    pub fn note(&self, now: i64, mac: MacAddr, why: &str) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if map.len() >= REMEMBERED {
            // A quarter at a time, so that a flood does not search the list for each packet.
            let mut times: Vec<i64> = map.values().map(|(_, last)| *last).collect();
            times.sort_unstable();
            let cut = times.get(REMEMBERED / 4).copied().unwrap_or(now);
            let mut spare = REMEMBERED / 4;
            map.retain(|_, (_, last)| {
                let old = *last <= cut && spare > 0;
                spare -= usize::from(old);
                !old
            });
        }
        let entry = map.entry((mac, why.to_owned())).or_insert((0, now));
        *entry = (entry.0 + 1, now);
    }

    fn list(&self) -> Vec<Unheard> {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let unheard = |((mac, why), (times, last)): (&(MacAddr, String), &(u64, i64))| Unheard {
            mac: *mac,
            why: why.clone(),
            times: *times,
            last: *last,
        };
        let mut list: Vec<Unheard> = map.iter().map(unheard).collect();
        list.sort_by_key(|u| (std::cmp::Reverse(u.last), u.mac));
        list
    }
}

/// The reason in the operator's words, where it is one that somebody has to act upon.
pub fn sentence(why: Silence, asked: &Asked, interface: &str) -> Option<String> {
    let way = match (asked.relay, &asked.circuit) {
        (Some(relay), Some(circuit)) => format!("through relay {relay} ({circuit})"),
        (Some(relay), None) => format!("through relay {relay}"),
        (None, Some(circuit)) => format!("on {interface} ({circuit})"),
        (None, None) => format!("on {interface}"),
    };
    Some(match why {
        Silence::UnknownNetwork => format!("asked {way}, no subnet has it; add one to boot.subnets"),
        Silence::PoolEmpty => format!("asked {way}, every address of its subnet is taken"),
        Silence::TooManyStrangers => {
            format!("asked {way}, more requests of unknown machines come from there than are answered")
        }
        Silence::OtherServer => {
            let server = asked.server.unwrap_or(Ipv4Addr::UNSPECIFIED);
            format!("asked {way}, talks to another DHCP server, {server}")
        }
        Silence::NoBootFile => format!("asked {way}, there is no boot file for its architecture"),
        Silence::AddressInUse => format!("asked {way}, somebody else is on the address that it was to get"),
        Silence::StoreBusy | Silence::StoreFailed => "its lease could not be stored".to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(n: u16) -> MacAddr {
        let [high, low] = n.to_be_bytes();
        MacAddr([2, 0, 0, 0, high, low])
    }

    #[test]
    fn the_latest_silences_are_kept_and_no_more() {
        let silences = Silences::default();
        (0..10_000).for_each(|n| silences.note(i64::from(n), mac(n), "asked on eth1"));
        silences.note(20_000, mac(9_999), "asked on eth1");
        let list = silences.list();
        assert!(list.len() <= REMEMBERED && list.len() > REMEMBERED / 2);
        assert_eq!((list[0].mac, list[0].times, list[0].last), (mac(9_999), 2, 20_000));
        // All in one moment, as a flood is.
        let silences = Silences::default();
        (0..10_000).for_each(|n| silences.note(7, mac(n), "asked on eth1"));
        assert!(silences.list().len() <= REMEMBERED);
    }

    #[test]
    fn sentences_name_the_way() {
        let asked = Asked {
            mac: mac(1),
            relay: Some(Ipv4Addr::new(10, 210, 0, 1)),
            circuit: Some("Vlan210".into()),
            server: None,
        };
        let said = sentence(Silence::UnknownNetwork, &asked, "eth1").unwrap();
        assert_eq!(said, "asked through relay 10.210.0.1 (Vlan210), no subnet has it; add one to boot.subnets");
        assert_eq!(sentence(Silence::Released, &asked, "eth1"), None, "as it should be");
    }
}
