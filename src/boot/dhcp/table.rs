//! Who holds which address. The truth while the server runs: loaded from the store once, asked by every packet, and
//! changed before the store is told.
//!
//! * An address belongs to one MAC address at a time, from the OFFER on: two machines that boot together never get one
//!   address. A live binding never moves to another MAC, whatever else matches.
//! * A machine keeps its address through firmware, iPXE, agent and installed system, which all send different client
//!   ids: the MAC finds it. UUID and client id find it only when the MAC is new (a replaced card) and the old binding is
//!   no longer live: one UUID in two machines is a factory's mistake that happens, and one client id is what a cloned
//!   disk sends.
//! * Subnets with one `shared` name are one wire: a client keeps the address that it has in any of them, and gets a new one
//!   from the first that has one.

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;

use super::plan::{Binding, Plan, State, Usage, Would};
use super::request::Client;
use crate::boot::config::Subnet;
use crate::machine::MacAddr;
use crate::store::lease::Lease;

/// How long an offered address waits for the REQUEST: PXE ROMs ask within seconds, and a lost REQUEST is repeated for
/// up to a minute (RFC 2131 section 4.1).
const OFFER_MS: i64 = 60_000;
/// The same for a stranger while the pools are nearly full.
const SCARCE_OFFER_MS: i64 = 10_000;
/// Percent of the pools above which they count as nearly full.
pub const SCARCE: u32 = 80;
/// How long an address that somebody else was found on stays out of service.
const DECLINED_MS: i64 = 3_600_000;

pub struct Table {
    plans: Vec<Plan>,
    /// Subnets by their first address.
    by_base: BTreeMap<u32, usize>,
    /// Addresses that are offered once nobody was found on them.
    probing: HashSet<Ipv4Addr>,
}

/// Why a REQUEST is answered with NAK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotYours;

/// Index of a subnet in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetId(usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    Address {
        address: Ipv4Addr,
        /// Nobody has had it yet.
        never_used: bool,
    },
    /// Whether the client's address is in use is being found out.
    Probing,
    PoolEmpty,
}

impl Table {
    /// `leases` in the order of their expiry: where a MAC has two, the later one counts. Leases outside the configured
    /// subnets stay in the store and are not used.
    pub fn new(subnets: &[Subnet], leases: impl IntoIterator<Item = Lease>) -> Self {
        let plans: Vec<Plan> = subnets.iter().cloned().map(Plan::new).collect();
        let by_base = plans.iter().enumerate().map(|(i, p)| (u32::from(p.subnet.network.first_host()), i)).collect();
        let mut table = Self { plans, by_base, probing: HashSet::new() };
        leases.into_iter().for_each(|lease| table.take_over(lease.address, lease.into()));
        table
    }

    /// Other subnets from now on; who holds what stays as it is, as far as the addresses are still ours.
    pub fn reconfigure(&mut self, subnets: &[Subnet]) {
        let old = std::mem::replace(self, Self::new(subnets, []));
        let mut bindings: Vec<_> = old.plans.into_iter().flat_map(|p| p.bindings).collect();
        bindings.sort_by_key(|(_, b)| b.expires);
        bindings.into_iter().for_each(|(address, binding)| self.take_over(address, binding));
        self.probing = old.probing;
    }

    fn take_over(&mut self, address: Ipv4Addr, binding: Binding) {
        if let Some(plan) = self.of(address).and_then(|id| self.plans.get_mut(id.0)) {
            plan.bind(address, binding);
        }
    }

    /// The subnet that contains `address`.
    pub fn of(&self, address: Ipv4Addr) -> Option<SubnetId> {
        // The network's own address stands just before its first host, and may be what a relay selects by.
        let at = u32::from(address).saturating_add(1);
        let (_, &index) = self.by_base.range(..=at).next_back()?;
        self.plans.get(index).filter(|p| p.subnet.network.contains(address)).map(|_| SubnetId(index))
    }

    pub fn subnet(&self, id: SubnetId) -> Option<&Subnet> {
        self.plans.get(id.0).map(|p| &p.subnet)
    }

    pub fn usage(&mut self, id: SubnetId, now: i64) -> Usage {
        self.plans.get_mut(id.0).map_or(Usage::default(), |p| p.usage(now))
    }

    /// Each subnet and how full it is.
    pub fn usages(&mut self, now: i64) -> Vec<(&Subnet, Usage)> {
        let usage = |p: &'_ mut Plan| p.usage(now);
        let usages: Vec<Usage> = self.plans.iter_mut().map(usage).collect();
        self.plans.iter().map(|p| &p.subnet).zip(usages).collect()
    }

    /// For each subnet what a card would get there; nothing is set aside.
    pub fn would(&self, now: i64, mac: MacAddr) -> impl Iterator<Item = (SubnetId, &Subnet, Would)> {
        self.plans.iter().enumerate().map(move |(i, plan)| (SubnetId(i), &plan.subnet, plan.would(now, mac)))
    }

    /// The subnets of one wire, the named one first.
    fn wire(&self, id: SubnetId) -> impl Iterator<Item = usize> + use<> {
        let name = self.subnet(id).and_then(|s| s.shared.clone());
        let of_wire = |i: &usize| name.is_some() && self.plans.get(*i).is_some_and(|p| p.subnet.shared == name);
        let others: Vec<usize> = match name {
            Some(_) => (0..self.plans.len()).filter(|i| *i != id.0).filter(of_wire).collect(),
            None => Vec::new(),
        };
        std::iter::once(id.0).chain(others)
    }

    /// Sets an address aside for the client, the one it asked for where that is free. `known`: the rules know the machine.
    pub fn offer(&mut self, id: SubnetId, now: i64, client: &Client, asked: Option<Ipv4Addr>, known: bool) -> Offer {
        let Some((index, address)) = self.choose(id, now, client, asked, known) else { return Offer::PoolEmpty };
        let Some(plan) = self.plans.get_mut(index) else { return Offer::PoolEmpty };
        if self.probing.contains(&address) {
            return Offer::Probing;
        }
        let never_used = !plan.bindings.contains_key(&address);
        let scarce = !known && plan.usage(now).filled() >= SCARCE;
        let held = plan.bindings.get(&address).filter(|b| b.client.mac == client.mac && b.live(now));
        let (state, expires) = match held {
            Some(b) if b.state == State::Leased => (State::Leased, b.expires),
            _ if scarce => (State::Offered, now + SCARCE_OFFER_MS),
            _ => (State::Offered, now + OFFER_MS),
        };
        plan.bind(address, Binding { client: client.clone(), state, expires });
        Offer::Address { address, never_used }
    }

    fn choose(
        &mut self,
        id: SubnetId,
        now: i64,
        client: &Client,
        asked: Option<Ipv4Addr>,
        known: bool,
    ) -> Option<(usize, Ipv4Addr)> {
        let wire = || self.wire(id).filter_map(|i| Some((i, self.plans.get(i)?)));
        if let Some(own) = wire().find_map(|(i, plan)| Some((i, plan.known(now, client)?))) {
            return Some(own);
        }
        let asked = asked.and_then(|a| wire().find(|(_, p)| p.usable(now, client, a)).map(|(i, _)| (i, a)));
        if let Some((i, address)) = asked
            && self.plans.get_mut(i)?.open_to(now, known)
        {
            return Some((i, address));
        }
        self.wire(id).find_map(|i| {
            let plan = self.plans.get_mut(i)?;
            let address = if plan.open_to(now, known) { plan.any()? } else { return None };
            Some((i, address))
        })
    }

    /// Leases exactly this address to the client for so many seconds, or says that it cannot have it.
    pub fn lease(
        &mut self,
        id: SubnetId,
        now: i64,
        client: &Client,
        address: Ipv4Addr,
        (seconds, known): (u32, bool),
    ) -> Result<Lease, NotYours> {
        let index = self
            .wire(id)
            .find(|i| self.plans.get(*i).is_some_and(|p| p.subnet.network.contains(address)))
            .ok_or(NotYours)?;
        let plan = self.plans.get_mut(index).ok_or(NotYours)?;
        let stranger = plan.address_of(client.mac).is_none();
        let denied = !plan.may_have(now, client, address)
            || self.probing.contains(&address)
            || (stranger && !plan.open_to(now, known));
        if denied {
            return Err(NotYours);
        }
        let expires = now + i64::from(seconds) * 1000;
        plan.bind(address, Binding { client: client.clone(), state: State::Leased, expires });
        plan.bindings.get(&address).and_then(|b| b.stored(address)).ok_or(NotYours)
    }

    /// The client gives its address back.
    pub fn release(&mut self, now: i64, client: &Client, address: Ipv4Addr) -> Option<Lease> {
        self.end(client, address, State::Released, now)
    }

    /// The client found somebody else on the address it was given.
    pub fn decline(&mut self, now: i64, client: &Client, address: Ipv4Addr) -> Option<Lease> {
        self.end(client, address, State::Declined, now + DECLINED_MS)
    }

    fn end(&mut self, client: &Client, address: Ipv4Addr, state: State, expires: i64) -> Option<Lease> {
        let plan = self.of(address).and_then(|id| self.plans.get_mut(id.0))?;
        let binding = Binding { state, expires, ..plan.held_by(client.mac, address)?.clone() };
        let lease = binding.stored(address);
        plan.bind(address, binding);
        lease
    }

    /// The client took another server's offer: ours is free again. A lease stays.
    pub fn withdraw(&mut self, id: SubnetId, now: i64, client: &Client) {
        let found = self.wire(id).find_map(|i| Some((i, self.plans.get(i)?.address_of(client.mac)?)));
        let Some((plan, address)) = found.and_then(|(i, address)| Some((self.plans.get_mut(i)?, address))) else {
            return;
        };
        if let Some(binding) = plan.bindings.get(&address).filter(|b| b.state == State::Offered) {
            let binding = Binding { state: State::Released, expires: now, ..binding.clone() };
            plan.bind(address, binding);
        }
    }

    /// From now on the address is offered to nobody until [`Table::probed`].
    pub fn probe(&mut self, address: Ipv4Addr) {
        self.probing.insert(address);
    }

    /// Somebody was found on the address, or nobody. Where it is in use it stays out of service for a while.
    pub fn probed(&mut self, now: i64, address: Ipv4Addr, found: Option<MacAddr>) -> Option<Lease> {
        self.probing.remove(&address);
        let mac = found?;
        let plan = self.of(address).and_then(|id| self.plans.get_mut(id.0))?;
        let client = Client { mac, uuid: None, id: Vec::new(), port: None };
        let binding = Binding { client, state: State::Declined, expires: now + DECLINED_MS };
        let lease = binding.stored(address);
        plan.bind(address, binding);
        lease
    }

    /// Whether this MAC has, or had, a lease on the wire: no stranger.
    pub fn has_leased(&self, id: SubnetId, mac: MacAddr) -> bool {
        self.wire(id).any(|i| {
            let plan = self.plans.get(i);
            let binding = plan.and_then(|p| p.address_of(mac).and_then(|a| p.bindings.get(&a)));
            binding.is_some_and(|b| b.state != State::Offered)
        })
    }

    /// The address that the client would be offered, without setting it aside.
    pub fn peek(&mut self, id: SubnetId, now: i64, client: &Client) -> Option<Ipv4Addr> {
        let wire: Vec<usize> = self.wire(id).collect();
        wire.into_iter().find_map(|i| self.plans.get(i)?.known(now, client))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::config::tests::sample;
    use crate::store::lease::LeaseState;

    const NOW: i64 = 1_800_000_000_000;

    fn client(last: u8) -> Client {
        Client { mac: MacAddr([0x52, 0x54, 0, 0, 0, last]), uuid: None, id: vec![], port: None }
    }

    /// Four dynamic addresses, 10.78.0.10 to .13.
    fn small() -> (Table, SubnetId) {
        let table = Table::new(&sample().subnets, []);
        let id = table.of(Ipv4Addr::new(10, 78, 0, 1)).unwrap();
        (table, id)
    }

    const HOUR: (u32, bool) = (3600, true);

    impl Table {
        /// Offers to a machine that is known.
        fn gives(&mut self, id: SubnetId, now: i64, client: &Client, asked: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
            match self.offer(id, now, client, asked, true) {
                Offer::Address { address, .. } => Some(address),
                Offer::Probing | Offer::PoolEmpty => None,
            }
        }
    }

    fn at(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 78, 0, last)
    }

    #[test]
    fn an_offer_reserves_and_the_pool_ends() {
        let (mut table, id) = small();
        let offered: Vec<_> = (1..=4).map(|n| table.gives(id, NOW, &client(n), None).unwrap()).collect();
        assert_eq!(offered, [at(10), at(11), at(12), at(13)]);
        assert_eq!(table.gives(id, NOW, &client(2), None), Some(at(11)), "asking again gets the same");
        assert_eq!(table.gives(id, NOW, &client(5), None), None);
        assert_eq!(table.gives(id, NOW + OFFER_MS, &client(5), None), Some(at(10)), "an offer not taken up ends");
        assert_eq!(table.lease(id, NOW + OFFER_MS, &client(1), at(10), HOUR), Err(NotYours));
    }

    #[test]
    fn a_lease_outlives_offers_and_is_the_machines_first_choice_after_it_ended() {
        let (mut table, id) = small();
        table.gives(id, NOW, &client(1), None).unwrap();
        let lease = table.lease(id, NOW, &client(1), at(10), HOUR).unwrap();
        assert_eq!((lease.expires, lease.state), (NOW + 3_600_000, LeaseState::Leased));
        table.gives(id, NOW + 1, &client(1), None).unwrap();
        assert!(
            table.lease(id, NOW + OFFER_MS + 2, &client(2), at(10), HOUR).is_err(),
            "a new DISCOVER shortens nothing"
        );
        let later = NOW + 4_000_000;
        assert_eq!(table.gives(id, later, &client(2), None), Some(at(11)), "fresh addresses go first");
        assert_eq!(table.gives(id, later, &client(1), None), Some(at(10)));
    }

    #[test]
    fn the_address_that_ended_first_is_used_again_first() {
        let (mut table, id) = small();
        for (n, t) in [(1, 3), (2, 1), (3, 2), (4, 4)] {
            table.lease(id, NOW + t, &client(n), at(9 + n), HOUR).unwrap();
        }
        let later = NOW + 3_600_010;
        assert_eq!(table.gives(id, later, &client(7), None), Some(at(11)));
        assert_eq!(table.gives(id, later, &client(8), None), Some(at(12)));
    }

    #[test]
    fn uuid_and_client_id_find_the_address_of_a_replaced_card_but_never_take_a_live_one() {
        let (mut table, id) = small();
        let uuid = Some(uuid::Uuid::from_u128(7));
        let old = Client { uuid, id: vec![1, 2], ..client(1) };
        table.lease(id, NOW, &old, at(12), HOUR).unwrap();
        let by_uuid = Client { uuid, ..client(2) };
        let by_id = Client { id: vec![1, 2], ..client(3) };
        assert_eq!(table.gives(id, NOW, &by_uuid, None), Some(at(10)), "two machines with one UUID");
        assert_eq!(table.gives(id, NOW, &by_id, None), Some(at(11)), "two machines with one client id");
        let (mut table, id) = small();
        table.lease(id, NOW, &old, at(12), HOUR).unwrap();
        table.release(NOW, &old, at(12)).unwrap();
        assert_eq!(table.gives(id, NOW, &by_uuid, None), Some(at(12)));
        let (mut table, id) = small();
        table.lease(id, NOW, &old, at(12), HOUR).unwrap();
        table.release(NOW, &old, at(12)).unwrap();
        assert_eq!(table.gives(id, NOW, &by_id, None), Some(at(12)));
    }

    #[test]
    fn other_client_ids_and_no_uuid_keep_the_address() {
        let (mut table, id) = small();
        let rom = Client { uuid: Some(uuid::Uuid::from_u128(7)), id: vec![0, 1], ..client(1) };
        table.lease(id, NOW, &rom, at(10), HOUR).unwrap();
        let installed = Client { id: vec![255, 9, 9], ..client(1) };
        assert_eq!(table.gives(id, NOW, &installed, Some(at(13))), Some(at(10)));
        let lease = table.lease(id, NOW, &installed, at(10), HOUR).unwrap();
        assert_eq!((lease.uuid, lease.client), (rom.uuid, installed.id), "the UUID is kept");
    }

    #[test]
    fn a_declined_address_is_nobodys_for_a_while() {
        let (mut table, id) = small();
        table.gives(id, NOW, &client(1), None).unwrap();
        assert_eq!(table.decline(NOW, &client(2), at(10)), None, "only who was given it");
        assert_eq!(table.decline(NOW, &client(1), at(10)).unwrap().state, LeaseState::Declined);
        assert_eq!(table.gives(id, NOW, &client(1), Some(at(10))), Some(at(11)));
        assert!(table.lease(id, NOW, &client(1), at(10), HOUR).is_err());
        for n in 2..=3 {
            table.lease(id, NOW, &client(n), at(10 + n), HOUR).unwrap();
        }
        assert_eq!(table.gives(id, NOW, &client(9), None), None);
        assert_eq!(table.gives(id, NOW + DECLINED_MS - 1, &client(9), None), Some(at(11)), "the offer ended first");
    }

    #[test]
    fn a_reservation_is_its_owners_alone_and_wins_over_an_older_lease() {
        let config = sample();
        let mut table = Table::new(&config.subnets, []);
        let id = SubnetId(0);
        let reserved = Ipv4Addr::new(10, 77, 9, 9);
        let owner = Client { mac: "52:54:00:77:00:99".parse().unwrap(), uuid: None, id: vec![], port: None };
        assert!(table.lease(id, NOW, &client(1), reserved, HOUR).is_err());
        assert_eq!(table.gives(id, NOW, &owner, Some(Ipv4Addr::new(10, 77, 2, 9))), Some(reserved));
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
        assert!(table.lease(id, NOW, &owner, old.address, HOUR).is_err());
        assert_eq!(table.gives(id, NOW, &owner, None), Some(reserved));
        // By UUID: given in firmware, kept by the installed system, which sends none.
        let by_uuid = Ipv4Addr::new(10, 77, 2, 7);
        let rom = Client { uuid: Some("564d2c3a-0000-4000-8000-000000000001".parse().unwrap()), ..client(3) };
        assert_eq!(table.gives(id, NOW, &rom, None), Some(by_uuid));
        table.lease(id, NOW, &rom, by_uuid, HOUR).unwrap();
        assert!(table.lease(id, NOW + 1, &client(3), by_uuid, HOUR).is_ok());
        let twin = Client { uuid: rom.uuid, ..client(4) };
        assert_ne!(table.gives(id, NOW, &twin, None), Some(by_uuid), "the second card of the machine gets its own");
    }

    #[test]
    fn leases_are_found_again_after_a_restart() {
        let (mut table, id) = small();
        let mut leases: Vec<Lease> =
            (1..=3).map(|n| table.lease(id, NOW + i64::from(n), &client(n), at(9 + n), HOUR).unwrap()).collect();
        leases.push(Lease { address: Ipv4Addr::new(192, 0, 2, 1), ..leases[0].clone() });
        let mut table = Table::new(&sample().subnets, leases);
        assert_eq!(table.gives(id, NOW + 9, &client(2), None), Some(at(11)));
        assert_eq!(table.gives(id, NOW + 9, &client(8), None), Some(at(13)));
        assert_eq!(table.gives(id, NOW + 9, &client(9), None), None);
    }

    #[test]
    fn another_servers_client_frees_our_offer_but_not_our_lease() {
        let (mut table, id) = small();
        table.gives(id, NOW, &client(1), None).unwrap();
        table.withdraw(id, NOW, &client(1));
        assert!(table.lease(id, NOW, &client(2), at(10), HOUR).is_ok());
        table.withdraw(id, NOW, &client(2));
        assert!(table.lease(id, NOW, &client(3), at(10), HOUR).is_err());
    }
}
