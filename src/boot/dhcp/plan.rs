//! The bindings of one subnet: which address a client may have, and which is the next to be given away.
//!
//! Finding, offering and leasing cost the same with ten bindings as with a million: maps, two ordered sets of expiries (of
//! bindings that hold and that have ended), and a cursor over the addresses that were never used.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;

use super::request::{Client, Port};
use crate::boot::config::{Owner, Range, Subnet};
use crate::machine::MacAddr;
use crate::store::lease::{Lease, LeaseState};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Offered,
    Leased,
    Released,
    Declined,
}

#[derive(Debug, Clone)]
pub struct Binding {
    pub client: Client,
    pub state: State,
    pub expires: i64,
}

impl Binding {
    pub fn live(&self, now: i64) -> bool {
        self.expires > now
    }

    /// The row that says the same.
    pub fn stored(&self, address: Ipv4Addr) -> Option<Lease> {
        let state = match self.state {
            State::Offered => return None,
            State::Leased => LeaseState::Leased,
            State::Released => LeaseState::Released,
            State::Declined => LeaseState::Declined,
        };
        let Client { mac, uuid, ref id, .. } = self.client;
        Some(Lease { address, mac, client: id.clone(), uuid, state, expires: self.expires })
    }
}

impl From<Lease> for Binding {
    fn from(lease: Lease) -> Self {
        let state = match lease.state {
            LeaseState::Leased => State::Leased,
            LeaseState::Released => State::Released,
            LeaseState::Declined => State::Declined,
        };
        let client = Client { mac: lease.mac, uuid: lease.uuid, id: lease.client, port: None };
        Self { client, state, expires: lease.expires }
    }
}

/// How full a subnet's pools are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Addresses in the pools, without those that are reserved.
    pub size: u32,
    /// Offered, leased or set aside.
    pub taken: u32,
}

impl Usage {
    /// Percent.
    pub fn filled(self) -> u32 {
        (u64::from(self.taken) * 100).checked_div(self.size.into()).map_or(100, |percent| percent as u32)
    }
}

/// What a card would get, were it to ask now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Would {
    Reserved(Ipv4Addr),
    Held(Ipv4Addr),
    /// Its binding has ended, and nobody else has the address.
    Again(Ipv4Addr),
    Pool,
    Nothing,
}

/// One subnet with its bindings.
pub struct Plan {
    pub subnet: Subnet,
    pub bindings: HashMap<Ipv4Addr, Binding>,
    /// Bindings of pool addresses that hold, by the time they end.
    holding: BTreeSet<(i64, Ipv4Addr)>,
    /// Those that have ended: the first one is the next to be used again.
    ended: BTreeSet<(i64, Ipv4Addr)>,
    by_mac: HashMap<MacAddr, Ipv4Addr>,
    by_uuid: HashMap<uuid::Uuid, Ipv4Addr>,
    by_id: HashMap<Vec<u8>, Ipv4Addr>,
    reserved: HashMap<Ipv4Addr, Owner>,
    owners: HashMap<Owner, Ipv4Addr>,
    /// Addresses for everyone.
    size: u32,
    fresh: Fresh,
}

/// Walks the pools once; addresses behind it have a binding or are not for everyone.
struct Fresh {
    pools: Vec<Range>,
    next: Option<u32>,
}

impl Plan {
    pub fn new(subnet: Subnet) -> Self {
        let owned = || subnet.reservations.iter().filter_map(|r| Some((r.owner()?, r.address)));
        let in_pools = |a: Ipv4Addr| subnet.pools.iter().any(|p| p.contains(a));
        Self {
            bindings: HashMap::new(),
            holding: BTreeSet::new(),
            ended: BTreeSet::new(),
            by_mac: HashMap::new(),
            by_uuid: HashMap::new(),
            by_id: HashMap::new(),
            reserved: owned().map(|(owner, address)| (address, owner)).collect(),
            size: subnet.size() - owned().filter(|(_, address)| in_pools(*address)).count() as u32,
            owners: owned().collect(),
            fresh: Fresh::new(&subnet.pools),
            subnet,
        }
    }

    pub fn usage(&mut self, now: i64) -> Usage {
        self.settle(now);
        Usage { size: self.size, taken: self.holding.len() as u32 }
    }

    /// The address that this client has, had, or is to have.
    pub fn known(&self, now: i64, client: &Client) -> Option<Ipv4Addr> {
        let usable = |a: &Ipv4Addr| self.usable(now, client, *a);
        let by_uuid = || client.uuid.and_then(|u| self.by_uuid.get(&u)).copied();
        let by_id = || self.by_id.get(&client.id).copied();
        self.reservation(client)
            .filter(|a| self.free_for(now, client.mac, *a))
            .or_else(|| self.by_mac.get(&client.mac).copied().filter(usable))
            .or_else(|| by_uuid().or_else(by_id).filter(usable))
    }

    pub fn would(&self, now: i64, mac: MacAddr) -> Would {
        let client = Client { mac, uuid: None, id: Vec::new(), port: None };
        match self.known(now, &client) {
            Some(own) if self.reservation(&client) == Some(own) => Would::Reserved(own),
            Some(own) if self.bindings.get(&own).is_some_and(|b| b.live(now)) => Would::Held(own),
            Some(own) => Would::Again(own),
            None if self.subnet.pools.is_empty() => Would::Nothing,
            None => Would::Pool,
        }
    }

    /// Whether there is an address for a client that has none here. Strangers leave the last tenth of the pools to machines
    /// that are known: a flood of made-up addresses does not keep a rack from booting.
    pub fn open_to(&mut self, now: i64, known: bool) -> bool {
        let Usage { size, taken } = self.usage(now);
        known || size.saturating_sub(taken) > size / 10
    }

    /// An address that nobody has: one that never was in use, else the one whose binding ended first.
    pub fn any(&mut self) -> Option<Ipv4Addr> {
        self.unused().or_else(|| self.ended.first().map(|(_, address)| *address))
    }

    /// A pool address without a reservation, or the client's own reservation, that nobody else holds.
    pub fn usable(&self, now: i64, client: &Client, address: Ipv4Addr) -> bool {
        (self.dynamic(address) || self.reservation(client) == Some(address)) && self.free_for(now, client.mac, address)
    }

    /// Whether a REQUEST for this address is granted.
    pub fn may_have(&self, now: i64, client: &Client, address: Ipv4Addr) -> bool {
        if !self.usable(now, client, address) {
            return false;
        }
        // A machine whose own address is another one moves there: one machine, one address.
        if let Some(own) = self.reservation(client).filter(|own| *own != address) {
            return !self.free_for(now, client.mac, own);
        }
        match self.by_mac.get(&client.mac) {
            Some(held) if *held != address => !self.bindings.get(held).is_some_and(|b| b.live(now)),
            _ => true,
        }
    }

    pub fn held_by(&self, mac: MacAddr, address: Ipv4Addr) -> Option<&Binding> {
        self.bindings.get(&address).filter(|b| b.client.mac == mac && matches!(b.state, State::Offered | State::Leased))
    }

    /// The address that this MAC was last given.
    pub fn address_of(&self, mac: MacAddr) -> Option<Ipv4Addr> {
        self.by_mac.get(&mac).copied()
    }

    pub fn bind(&mut self, address: Ipv4Addr, mut binding: Binding) {
        if let Some(old) = self.bindings.remove(&address) {
            let entry = (old.expires, address);
            let _ = self.holding.remove(&entry) || self.ended.remove(&entry);
            if old.client.mac == binding.client.mac {
                binding.client.uuid = binding.client.uuid.or(old.client.uuid);
            }
            self.forget(address, &old.client);
        }
        if self.dynamic(address) {
            self.holding.insert((binding.expires, address));
        }
        binding.client.port = None;
        if binding.state != State::Declined {
            let client = &binding.client;
            self.by_mac.insert(client.mac, address);
            client.uuid.map(|uuid| self.by_uuid.insert(uuid, address));
            if !client.id.is_empty() {
                self.by_id.insert(client.id.clone(), address);
            }
        }
        self.bindings.insert(address, binding);
    }

    fn reservation(&self, client: &Client) -> Option<Ipv4Addr> {
        if self.owners.is_empty() {
            return None;
        }
        // Known by its UUID in firmware, by its MAC from then on: an installed system does not send the UUID.
        let held = || self.by_mac.get(&client.mac).and_then(|a| self.bindings.get(a)).and_then(|b| b.client.uuid);
        let by_uuid = || client.uuid.or_else(held).and_then(|u| self.owners.get(&Owner::Uuid(u)));
        let by_port = || {
            let Port { circuit, remote } = client.port.clone()?;
            let exact = self.owners.get(&Owner::Port { circuit: circuit.clone(), remote });
            exact.or_else(|| self.owners.get(&Owner::Port { circuit, remote: None }))
        };
        self.owners.get(&Owner::Mac(client.mac)).or_else(by_uuid).or_else(by_port).copied()
    }

    fn dynamic(&self, address: Ipv4Addr) -> bool {
        self.subnet.pools.iter().any(|p| p.contains(address)) && !self.reserved.contains_key(&address)
    }

    fn free_for(&self, now: i64, mac: MacAddr, address: Ipv4Addr) -> bool {
        self.bindings.get(&address).is_none_or(|b| !b.live(now) || (b.client.mac == mac && b.state != State::Declined))
    }

    /// The next address that never had a binding.
    fn unused(&mut self) -> Option<Ipv4Addr> {
        loop {
            let address = self.fresh.next()?;
            if !self.reserved.contains_key(&address) && !self.bindings.contains_key(&address) {
                return Some(address);
            }
        }
    }

    /// Moves what has ended by now; each binding is moved once.
    fn settle(&mut self, now: i64) {
        while let Some(first) = self.holding.first().copied().filter(|(expires, _)| *expires <= now) {
            self.holding.remove(&first);
            self.ended.insert(first);
        }
    }

    fn forget(&mut self, address: Ipv4Addr, client: &Client) {
        if self.by_mac.get(&client.mac) == Some(&address) {
            self.by_mac.remove(&client.mac);
        }
        if let Some(uuid) = client.uuid.filter(|u| self.by_uuid.get(u) == Some(&address)) {
            self.by_uuid.remove(&uuid);
        }
        if self.by_id.get(&client.id) == Some(&address) {
            self.by_id.remove(&client.id);
        }
    }
}

impl Fresh {
    fn new(pools: &[Range]) -> Self {
        let mut pools = pools.to_vec();
        pools.sort_by_key(|p| std::cmp::Reverse(p.first));
        let next = pools.last().map(|p| u32::from(p.first));
        Self { pools, next }
    }

    fn next(&mut self) -> Option<Ipv4Addr> {
        let current = self.next?;
        let address = Ipv4Addr::from(current);
        if self.pools.last().is_some_and(|p| address < p.last) {
            self.next = Some(current + 1);
        } else {
            self.pools.pop();
            self.next = self.pools.last().map(|p| u32::from(p.first));
        }
        Some(address)
    }
}
