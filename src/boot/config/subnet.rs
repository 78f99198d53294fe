//! One subnet: its pools, its reservations, and the wire it shares with others.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::network::{Network, Range};
use super::wrong;
use crate::error::Result;
use crate::machine::{Hostname, MacAddr};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    pub network: Network,
    /// Subnets with the same name here are on one wire: a client may get an address from any of them.
    pub shared: Option<String>,
    /// Addresses for machines without a reservation; none: reserved machines only.
    #[serde(default)]
    pub pools: Vec<Range>,
    pub router: Option<Ipv4Addr>,
    #[serde(default)]
    pub dns: Vec<Ipv4Addr>,
    pub domain: Option<Hostname>,
    #[serde(default = "hour")]
    pub lease_seconds: u32,
    #[serde(default)]
    pub reservations: Vec<Reservation>,
}

/// Exactly one of `mac`, `uuid` and `circuit` says whose address it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reservation {
    pub mac: Option<MacAddr>,
    pub uuid: Option<uuid::Uuid>,
    /// The port of the switch, as the relay names it (option 82, sub-option 1): text, or digits behind `0x`.
    pub circuit: Option<String>,
    /// The switch, where port names alone do not tell (sub-option 2); only with `circuit`.
    pub remote: Option<String>,
    pub address: Ipv4Addr,
}

/// Whose a reserved address is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Owner {
    Mac(MacAddr),
    Uuid(uuid::Uuid),
    Port { circuit: String, remote: Option<String> },
}

impl Reservation {
    /// `None`: it names nobody, or more than one.
    pub fn owner(&self) -> Option<Owner> {
        match (self.mac, self.uuid, &self.circuit, &self.remote) {
            (Some(mac), None, None, None) => Some(Owner::Mac(mac)),
            (None, Some(uuid), None, None) => Some(Owner::Uuid(uuid)),
            (None, None, Some(circuit), remote) => {
                Some(Owner::Port { circuit: circuit.clone(), remote: remote.clone() })
            }
            _ => None,
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Owner::Mac(mac) => mac.fmt(f),
            Owner::Uuid(uuid) => uuid.fmt(f),
            Owner::Port { circuit, remote: None } => write!(f, "circuit {circuit}"),
            Owner::Port { circuit, remote: Some(remote) } => write!(f, "circuit {circuit} of {remote}"),
        }
    }
}

fn hour() -> u32 {
    3600
}

/// At most this many servers of a kind: the answer must fit the 548 bytes that every client takes (RFC 2131 section 2).
pub const MAX_SERVERS: usize = 4;
const MAX_DOMAIN: usize = 64;
/// An option holds 255 bytes, and the port's name shares it with the switch's.
const MAX_ID: usize = 128;

/// Time of a lease, in seconds.
pub fn check_lease(seconds: u32, whose: &str) -> Result<()> {
    let range = 60..=365 * 86400;
    match range.contains(&seconds) {
        true => Ok(()),
        false => Err(wrong(format!("lease_seconds of {whose} is {seconds}")).hint(format!(
            "use {} to {}",
            range.start(),
            range.end()
        ))),
    }
}

pub fn check_servers(servers: &[Ipv4Addr], kind: &str, whose: &str) -> Result<()> {
    match servers.len() {
        0..=MAX_SERVERS => Ok(()),
        _ => Err(wrong(format!("{whose} has more than {MAX_SERVERS} {kind}"))),
    }
}

pub fn check_domain(domain: Option<&Hostname>, whose: &str) -> Result<()> {
    match domain {
        Some(domain) if domain.as_str().len() > MAX_DOMAIN => {
            Err(wrong(format!("the domain of {whose} is longer than {MAX_DOMAIN} characters")))
        }
        _ => Ok(()),
    }
}

impl Subnet {
    pub fn check(&self) -> Result<()> {
        let network = self.network;
        for (i, pool) in self.pools.iter().enumerate() {
            if !network.is_host(pool.first) || !network.is_host(pool.last) {
                return Err(wrong(format!("pool {pool} is not inside subnet {network}")).hint(format!(
                    "hosts of {network} are {} to {}",
                    network.first_host(),
                    network.last_host()
                )));
            }
            if let Some(other) = self.pools.iter().take(i).find(|p| p.overlaps(*pool)) {
                return Err(wrong(format!("pools {other} and {pool} of subnet {network} overlap")));
            }
            if let Some(router) = self.router.filter(|r| pool.contains(*r)) {
                return Err(wrong(format!("pool {pool} contains the router {router}")));
            }
        }
        if let Some(router) = self.router.filter(|r| !network.is_host(*r)) {
            return Err(wrong(format!("router {router} is not inside subnet {network}")));
        }
        if self.shared.as_ref().is_some_and(|name| name.is_empty() || name.len() > MAX_ID) {
            return Err(wrong(format!("shared of subnet {network} is empty or too long")));
        }
        let whose = format!("subnet {network}");
        check_servers(&self.dns, "name servers", &whose)?;
        check_domain(self.domain.as_ref(), &whose)?;
        check_lease(self.lease_seconds, &whose)?;
        self.check_reservations()
    }

    fn check_reservations(&self) -> Result<()> {
        let (mut addresses, mut owners) = (HashSet::new(), HashSet::new());
        for r in &self.reservations {
            let Some(owner) = r.owner() else {
                return Err(wrong(format!("the reservation of {} needs one of mac, uuid and circuit", r.address))
                    .hint("remote goes with circuit only"));
            };
            if [&r.circuit, &r.remote].into_iter().flatten().any(|id| id.is_empty() || id.len() > MAX_ID) {
                return Err(wrong(format!("circuit or remote of {} is empty or too long", r.address)));
            }
            if !self.network.is_host(r.address) {
                return Err(wrong(format!("reservation {} is not inside subnet {}", r.address, self.network)));
            }
            if Some(r.address) == self.router {
                return Err(wrong(format!("{} is reserved for {owner}, but is the router", r.address)));
            }
            if !addresses.insert(r.address) {
                return Err(wrong(format!("{} is reserved twice, the second time for {owner}", r.address)));
            }
            if owners.contains(&owner) {
                return Err(wrong(format!("{owner} has two reservations in subnet {}", self.network)));
            }
            owners.insert(owner);
        }
        Ok(())
    }

    /// Addresses in the pools.
    pub fn size(&self) -> u32 {
        self.pools.iter().map(|p| u32::from(p.last) - u32::from(p.first) + 1).sum()
    }
}
