//! Who holds which address. The truth while the server runs: loaded from the store once, asked by every packet, and
//! changed before the store is told.
//!
//! * An address belongs to one MAC address at a time, from the OFFER on: two machines that boot together never get one
//!   address. A live binding never moves to another MAC, whatever else matches.
//! * A machine keeps its address through firmware, iPXE, agent and installed system, which all send different client
//!   ids: the MAC finds it. UUID and client id find it only when the MAC is new (a replaced card) and the old binding is
//!   no longer live: one UUID in two machines is a factory's mistake that happens, and one client id is what a cloned
//!   disk sends.
//! * Finding, offering and leasing cost the same with ten bindings as with a million: maps, one ordered set of expiries
//!   for each subnet, and a cursor over the addresses that were never used.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;

use super::request::Client;
use crate::boot::config::{Range, Subnet};
use crate::machine::MacAddr;
use crate::store::lease::{Lease, LeaseState};

/// How long an offered address waits for the REQUEST: PXE ROMs ask within seconds, and a lost REQUEST is repeated for
/// up to a minute (RFC 2131 section 4.1).
const OFFER_MS: i64 = 60_000;
/// How long an address that a client found in use stays out of service.
const DECLINED_MS: i64 = 3_600_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Offered,
    Leased,
    Released,
    Declined,
}

#[derive(Debug, Clone)]
struct Binding {
    client: Client,
    state: State,
    expires: i64,
}

impl Binding {
    fn live(&self, now: i64) -> bool {
        self.expires > now
    }
}

pub struct Table {
    subnets: Vec<Plan>,
}

/// One subnet with its bindings.
struct Plan {
    subnet: Subnet,
    bindings: HashMap<Ipv4Addr, Binding>,
    /// Bindings of pool addresses by the time they end: the first one is the next to be used again.
    ends: BTreeSet<(i64, Ipv4Addr)>,
    by_mac: HashMap<MacAddr, Ipv4Addr>,
    by_uuid: HashMap<uuid::Uuid, Ipv4Addr>,
    by_id: HashMap<Vec<u8>, Ipv4Addr>,
    reserved: HashMap<Ipv4Addr, (Option<MacAddr>, Option<uuid::Uuid>)>,
    reserved_mac: HashMap<MacAddr, Ipv4Addr>,
    reserved_uuid: HashMap<uuid::Uuid, Ipv4Addr>,
    fresh: Fresh,
}

/// Walks the pools once; addresses behind it have a binding or are not for everyone.
struct Fresh {
    pools: Vec<Range>,
    next: Option<u32>,
}

/// Why a REQUEST is answered with NAK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotYours;

/// Index of a subnet in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetId(usize);

impl Table {
    /// `leases` in the order of their expiry: where a MAC has two, the later one counts. Leases outside the configured
    /// subnets stay in the store and are not used.
    pub fn new(subnets: &[Subnet], leases: impl IntoIterator<Item = Lease>) -> Self {
        let mut table = Self { subnets: subnets.iter().cloned().map(Plan::new).collect() };
        for lease in leases {
            if let Some(plan) = table.of(lease.address).and_then(|id| table.subnets.get_mut(id.0)) {
                let state = match lease.state {
                    LeaseState::Leased => State::Leased,
                    LeaseState::Released => State::Released,
                    LeaseState::Declined => State::Declined,
                };
                let client = Client { mac: lease.mac, uuid: lease.uuid, id: lease.client };
                plan.bind(lease.address, Binding { client, state, expires: lease.expires });
            }
        }
        table
    }

    /// The subnet that contains `address`.
    pub fn of(&self, address: Ipv4Addr) -> Option<SubnetId> {
        self.subnets.iter().position(|p| p.subnet.network.contains(address)).map(SubnetId)
    }

    pub fn subnet(&self, id: SubnetId) -> Option<&Subnet> {
        self.subnets.get(id.0).map(|p| &p.subnet)
    }

    /// Sets an address aside for the client, the one it asked for where that is free.
    pub fn offer(&mut self, id: SubnetId, now: i64, client: &Client, asked: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let plan = self.subnets.get_mut(id.0)?;
        let address = plan.choose(now, client, asked)?;
        let held = plan.bindings.get(&address).filter(|b| b.client.mac == client.mac && b.live(now));
        let (state, expires) = match held {
            Some(b) if b.state == State::Leased => (State::Leased, b.expires),
            _ => (State::Offered, now + OFFER_MS),
        };
        plan.bind(address, Binding { client: client.clone(), state, expires });
        Some(address)
    }

    /// Leases exactly this address to the client, or says that it cannot have it.
    pub fn lease(&mut self, id: SubnetId, now: i64, client: &Client, address: Ipv4Addr) -> Result<Lease, NotYours> {
        let plan = self.subnets.get_mut(id.0).ok_or(NotYours)?;
        if !plan.may_have(now, client, address) {
            return Err(NotYours);
        }
        let expires = now + i64::from(plan.subnet.lease_seconds) * 1000;
        plan.bind(address, Binding { client: client.clone(), state: State::Leased, expires });
        plan.stored(address, LeaseState::Leased).ok_or(NotYours)
    }

    /// The client gives its address back.
    pub fn release(&mut self, id: SubnetId, now: i64, client: &Client, address: Ipv4Addr) -> Option<Lease> {
        let plan = self.subnets.get_mut(id.0)?;
        let mut binding = plan.held_by(client.mac, address)?.clone();
        (binding.state, binding.expires) = (State::Released, now);
        plan.bind(address, binding);
        plan.stored(address, LeaseState::Released)
    }

    /// The client found somebody else on the address it was given.
    pub fn decline(&mut self, id: SubnetId, now: i64, client: &Client, address: Ipv4Addr) -> Option<Lease> {
        let plan = self.subnets.get_mut(id.0)?;
        let mut binding = plan.held_by(client.mac, address)?.clone();
        (binding.state, binding.expires) = (State::Declined, now + DECLINED_MS);
        plan.bind(address, binding);
        plan.stored(address, LeaseState::Declined)
    }

    /// The client took another server's offer: ours is free again. A lease stays.
    pub fn withdraw(&mut self, id: SubnetId, now: i64, client: &Client) {
        let Some(plan) = self.subnets.get_mut(id.0) else { return };
        let Some(&address) = plan.by_mac.get(&client.mac) else { return };
        if let Some(binding) = plan.bindings.get(&address).filter(|b| b.state == State::Offered) {
            let binding = Binding { state: State::Released, expires: now, ..binding.clone() };
            plan.bind(address, binding);
        }
    }
}

impl Plan {
    fn new(subnet: Subnet) -> Self {
        let mut plan = Self {
            bindings: HashMap::new(),
            ends: BTreeSet::new(),
            by_mac: HashMap::new(),
            by_uuid: HashMap::new(),
            by_id: HashMap::new(),
            reserved: HashMap::new(),
            reserved_mac: HashMap::new(),
            reserved_uuid: HashMap::new(),
            fresh: Fresh::new(&subnet.pools),
            subnet,
        };
        for r in &plan.subnet.reservations {
            plan.reserved.insert(r.address, (r.mac, r.uuid));
            r.mac.map(|mac| plan.reserved_mac.insert(mac, r.address));
            r.uuid.map(|uuid| plan.reserved_uuid.insert(uuid, r.address));
        }
        plan
    }

    fn choose(&mut self, now: i64, client: &Client, asked: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let own = self.reservation(client).filter(|a| self.free_for(now, client.mac, *a));
        let held = || self.by_mac.get(&client.mac).copied();
        let known = || {
            let by_uuid = client.uuid.and_then(|u| self.by_uuid.get(&u));
            by_uuid.or_else(|| self.by_id.get(&client.id)).copied()
        };
        own.or_else(|| held().filter(|a| self.usable(now, client, *a)))
            .or_else(|| known().filter(|a| self.usable(now, client, *a)))
            .or_else(|| asked.filter(|a| self.usable(now, client, *a)))
            .or_else(|| self.unused())
            .or_else(|| self.ended(now))
    }

    /// A pool address without a reservation, or the client's own reservation, that nobody else holds.
    fn usable(&self, now: i64, client: &Client, address: Ipv4Addr) -> bool {
        (self.dynamic(address) || self.reservation(client) == Some(address)) && self.free_for(now, client.mac, address)
    }

    /// Whether a REQUEST for this address is granted.
    fn may_have(&self, now: i64, client: &Client, address: Ipv4Addr) -> bool {
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

    fn reservation(&self, client: &Client) -> Option<Ipv4Addr> {
        let by_uuid = || {
            // Known by its UUID in firmware, by its MAC from then on: an installed system does not send the UUID.
            let held = self.by_mac.get(&client.mac).and_then(|a| self.bindings.get(a)).and_then(|b| b.client.uuid);
            client.uuid.or(held).and_then(|u| self.reserved_uuid.get(&u).copied())
        };
        self.reserved_mac.get(&client.mac).copied().or_else(by_uuid)
    }

    fn dynamic(&self, address: Ipv4Addr) -> bool {
        self.subnet.pools.iter().any(|p| p.contains(address)) && !self.reserved.contains_key(&address)
    }

    fn free_for(&self, now: i64, mac: MacAddr, address: Ipv4Addr) -> bool {
        self.bindings.get(&address).is_none_or(|b| !b.live(now) || (b.client.mac == mac && b.state != State::Declined))
    }

    fn held_by(&self, mac: MacAddr, address: Ipv4Addr) -> Option<&Binding> {
        self.bindings.get(&address).filter(|b| b.client.mac == mac && matches!(b.state, State::Offered | State::Leased))
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

    /// The address whose binding ended first.
    fn ended(&self, now: i64) -> Option<Ipv4Addr> {
        self.ends.first().filter(|(expires, _)| *expires <= now).map(|(_, address)| *address)
    }

    fn bind(&mut self, address: Ipv4Addr, mut binding: Binding) {
        if let Some(old) = self.bindings.remove(&address) {
            self.ends.remove(&(old.expires, address));
            if old.client.mac == binding.client.mac {
                binding.client.uuid = binding.client.uuid.or(old.client.uuid);
            }
            self.forget(address, &old.client);
        }
        if self.dynamic(address) {
            self.ends.insert((binding.expires, address));
        }
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

    fn stored(&self, address: Ipv4Addr, state: LeaseState) -> Option<Lease> {
        self.bindings.get(&address).map(|b| Lease {
            address,
            mac: b.client.mac,
            client: b.client.id.clone(),
            uuid: b.client.uuid,
            state,
            expires: b.expires,
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::config::tests::sample;

    const NOW: i64 = 1_800_000_000_000;

    fn client(last: u8) -> Client {
        Client { mac: MacAddr([0x52, 0x54, 0, 0, 0, last]), uuid: None, id: vec![] }
    }

    /// Four dynamic addresses, 10.78.0.10 to .13.
    fn small() -> (Table, SubnetId) {
        let table = Table::new(&sample().subnets, []);
        let id = table.of(Ipv4Addr::new(10, 78, 0, 1)).unwrap();
        (table, id)
    }

    fn at(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 78, 0, last)
    }

    #[test]
    fn an_offer_reserves_and_the_pool_ends() {
        let (mut table, id) = small();
        let offered: Vec<_> = (1..=4).map(|n| table.offer(id, NOW, &client(n), None).unwrap()).collect();
        assert_eq!(offered, [at(10), at(11), at(12), at(13)]);
        assert_eq!(table.offer(id, NOW, &client(2), None), Some(at(11)), "asking again gets the same");
        assert_eq!(table.offer(id, NOW, &client(5), None), None);
        assert_eq!(table.offer(id, NOW + OFFER_MS, &client(5), None), Some(at(10)), "an offer not taken up ends");
        assert_eq!(table.lease(id, NOW + OFFER_MS, &client(1), at(10)), Err(NotYours));
    }

    #[test]
    fn a_lease_outlives_offers_and_is_the_machines_first_choice_after_it_ended() {
        let (mut table, id) = small();
        table.offer(id, NOW, &client(1), None).unwrap();
        let lease = table.lease(id, NOW, &client(1), at(10)).unwrap();
        assert_eq!((lease.expires, lease.state), (NOW + 3_600_000, LeaseState::Leased));
        table.offer(id, NOW + 1, &client(1), None).unwrap();
        assert!(table.lease(id, NOW + OFFER_MS + 2, &client(2), at(10)).is_err(), "a new DISCOVER shortens nothing");
        let later = NOW + 4_000_000;
        assert_eq!(table.offer(id, later, &client(2), None), Some(at(11)), "fresh addresses go first");
        assert_eq!(table.offer(id, later, &client(1), None), Some(at(10)));
    }

    #[test]
    fn the_address_that_ended_first_is_used_again_first() {
        let (mut table, id) = small();
        for (n, t) in [(1, 3), (2, 1), (3, 2), (4, 4)] {
            table.lease(id, NOW + t, &client(n), at(9 + n)).unwrap();
        }
        let later = NOW + 3_600_010;
        assert_eq!(table.offer(id, later, &client(7), None), Some(at(11)));
        assert_eq!(table.offer(id, later, &client(8), None), Some(at(12)));
    }

    #[test]
    fn uuid_and_client_id_find_the_address_of_a_replaced_card_but_never_take_a_live_one() {
        let (mut table, id) = small();
        let uuid = Some(uuid::Uuid::from_u128(7));
        let old = Client { uuid, id: vec![1, 2], ..client(1) };
        table.lease(id, NOW, &old, at(12)).unwrap();
        let by_uuid = Client { uuid, ..client(2) };
        let by_id = Client { id: vec![1, 2], ..client(3) };
        assert_eq!(table.offer(id, NOW, &by_uuid, None), Some(at(10)), "two machines with one UUID");
        assert_eq!(table.offer(id, NOW, &by_id, None), Some(at(11)), "two machines with one client id");
        let (mut table, id) = small();
        table.lease(id, NOW, &old, at(12)).unwrap();
        table.release(id, NOW, &old, at(12)).unwrap();
        assert_eq!(table.offer(id, NOW, &by_uuid, None), Some(at(12)));
        let (mut table, id) = small();
        table.lease(id, NOW, &old, at(12)).unwrap();
        table.release(id, NOW, &old, at(12)).unwrap();
        assert_eq!(table.offer(id, NOW, &by_id, None), Some(at(12)));
    }

    #[test]
    fn other_client_ids_and_no_uuid_keep_the_address() {
        let (mut table, id) = small();
        let rom = Client { uuid: Some(uuid::Uuid::from_u128(7)), id: vec![0, 1], ..client(1) };
        table.lease(id, NOW, &rom, at(10)).unwrap();
        let installed = Client { id: vec![255, 9, 9], ..client(1) };
        assert_eq!(table.offer(id, NOW, &installed, Some(at(13))), Some(at(10)));
        let lease = table.lease(id, NOW, &installed, at(10)).unwrap();
        assert_eq!((lease.uuid, lease.client), (rom.uuid, installed.id), "the UUID is kept");
    }

    #[test]
    fn a_declined_address_is_nobodys_for_a_while() {
        let (mut table, id) = small();
        table.offer(id, NOW, &client(1), None).unwrap();
        assert_eq!(table.decline(id, NOW, &client(2), at(10)), None, "only who was given it");
        assert_eq!(table.decline(id, NOW, &client(1), at(10)).unwrap().state, LeaseState::Declined);
        assert_eq!(table.offer(id, NOW, &client(1), Some(at(10))), Some(at(11)));
        assert!(table.lease(id, NOW, &client(1), at(10)).is_err());
        for n in 2..=3 {
            table.lease(id, NOW, &client(n), at(10 + n)).unwrap();
        }
        assert_eq!(table.offer(id, NOW, &client(9), None), None);
        assert_eq!(table.offer(id, NOW + DECLINED_MS - 1, &client(9), None), Some(at(11)), "the offer ended first");
    }

    #[test]
    fn a_reservation_is_its_owners_alone_and_wins_over_an_older_lease() {
        let config = sample();
        let mut table = Table::new(&config.subnets, []);
        let id = SubnetId(0);
        let reserved = Ipv4Addr::new(10, 77, 9, 9);
        let owner = Client { mac: "52:54:00:77:00:99".parse().unwrap(), uuid: None, id: vec![] };
        assert!(table.lease(id, NOW, &client(1), reserved).is_err());
        assert_eq!(table.offer(id, NOW, &owner, Some(Ipv4Addr::new(10, 77, 2, 9))), Some(reserved));
        // The reservation came after the lease: the machine moves when it renews.
        let old = Lease {
            address: Ipv4Addr::new(10, 77, 2, 9),
            mac: owner.mac,
            client: vec![],
            uuid: None,
            state: LeaseState::Leased,
            expires: NOW + 500_000,
        };
        let mut table = Table::new(&config.subnets, [old.clone()]);
        assert!(table.lease(id, NOW, &owner, old.address).is_err());
        assert_eq!(table.offer(id, NOW, &owner, None), Some(reserved));
        // By UUID: given in firmware, kept by the installed system, which sends none.
        let by_uuid = Ipv4Addr::new(10, 77, 2, 7);
        let rom = Client { uuid: Some("564d2c3a-0000-4000-8000-000000000001".parse().unwrap()), ..client(3) };
        assert_eq!(table.offer(id, NOW, &rom, None), Some(by_uuid));
        table.lease(id, NOW, &rom, by_uuid).unwrap();
        assert!(table.lease(id, NOW + 1, &client(3), by_uuid).is_ok());
        let twin = Client { uuid: rom.uuid, ..client(4) };
        assert_ne!(table.offer(id, NOW, &twin, None), Some(by_uuid), "the second card of the machine gets its own");
    }

    #[test]
    fn leases_are_found_again_after_a_restart() {
        let (mut table, id) = small();
        let mut leases: Vec<Lease> =
            (1..=3).map(|n| table.lease(id, NOW + i64::from(n), &client(n), at(9 + n)).unwrap()).collect();
        leases.push(Lease { address: Ipv4Addr::new(192, 0, 2, 1), ..leases[0].clone() });
        let mut table = Table::new(&sample().subnets, leases);
        assert_eq!(table.offer(id, NOW + 9, &client(2), None), Some(at(11)));
        assert_eq!(table.offer(id, NOW + 9, &client(8), None), Some(at(13)));
        assert_eq!(table.offer(id, NOW + 9, &client(9), None), None);
    }

    #[test]
    fn another_servers_client_frees_our_offer_but_not_our_lease() {
        let (mut table, id) = small();
        table.offer(id, NOW, &client(1), None).unwrap();
        table.withdraw(id, NOW, &client(1));
        assert!(table.lease(id, NOW, &client(2), at(10)).is_ok());
        table.withdraw(id, NOW, &client(2));
        assert!(table.lease(id, NOW, &client(3), at(10)).is_err());
    }
}
