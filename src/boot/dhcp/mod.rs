//! The DHCPv4 server: what to answer to one packet (here, without sockets or clock), and the tasks around it ([`serve`]).
//!
//! Receive → is it for us → validate → ask → build → send. A packet has an [`Outcome::Answer`], at once or once its address
//! was probed, or an [`Outcome::Silent`] with its reason; there is no other way out.

mod options;
pub mod plan;
mod proxy;
pub mod relay;
pub mod reply;
pub mod request;
pub mod serve;
pub mod table;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::bmc::{self, BmcSighting};
use super::config::{BootConfig, Mode, Rule, Settings};
use super::count::{Answer, Silence};
use super::limit::Limits;
use super::loader::{self, Loaders};
use super::switch::{Switches, recognise};
use super::{Facts, Policy, Sighting, explain};
use crate::machine::MacAddr;
use crate::store::lease::Lease;
use reply::{BootFile, Destination, Reply};
use request::{Kind, Request};
use table::{Offer, SubnetId, Table};

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Answer(Ready),
    /// The answer, once nobody was found on the address that it offers.
    Probe {
        address: Ipv4Addr,
        then: Ready,
    },
    Silent {
        why: Silence,
        save: Option<Lease>,
        /// Who asked, and for what, where that could be read.
        asked: Option<Asked>,
    },
}

/// An answer that is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    pub what: Answer,
    pub packet: Vec<u8>,
    pub to: Destination,
    /// Must be on disk before the packet leaves.
    pub save: Option<Lease>,
    pub sighting: Option<Sighting>,
    /// A BMC, which is no machine.
    pub bmc: Option<BmcSighting>,
}

/// What the operator wants to know of a request without answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub mac: MacAddr,
    /// The relay that brought it.
    pub relay: Option<Ipv4Addr>,
    /// The port of the switch behind the relay.
    pub circuit: Option<String>,
    /// The DHCP server that it chose instead of us.
    pub server: Option<Ipv4Addr>,
}

fn silent(why: Silence) -> Outcome {
    Outcome::Silent { why, save: None, asked: None }
}

/// Where a packet came in: our address there and what we are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Door {
    pub own: Ipv4Addr,
    pub mode: Mode,
    /// UDP port: 67, or 4011 for a ProxyDHCP client that asks again.
    pub port: u16,
}

/// The rules of answering; the same on every interface.
pub struct Dhcp {
    pub table: Table,
    pub loaders: Arc<Loaders>,
    switches: Arc<Switches>,
    policy: Arc<dyn Policy>,
    rules: Vec<Rule>,
    unknown_lease_seconds: u32,
    /// Addresses that were never used are probed before they are offered.
    probe: bool,
    limits: Limits,
}

impl Dhcp {
    pub fn new(
        config: &BootConfig,
        leases: impl IntoIterator<Item = Lease>,
        loaders: Arc<Loaders>,
        switches: Arc<Switches>,
        policy: Arc<dyn Policy>,
    ) -> Self {
        Self {
            table: Table::new(&config.subnets, leases),
            loaders,
            switches,
            policy,
            rules: config.options.clone(),
            unknown_lease_seconds: config.unknown_lease_seconds,
            probe: config.probe_ms > 0,
            limits: Limits::new(config.unknown_per_second),
        }
    }

    /// Takes over another configuration; leases and limits go on.
    pub fn reconfigure(&mut self, config: &BootConfig) {
        self.table.reconfigure(&config.subnets);
        self.rules.clone_from(&config.options);
        self.unknown_lease_seconds = config.unknown_lease_seconds;
        self.probe = config.probe_ms > 0;
        self.limits.reconfigure(config.unknown_per_second);
    }

    /// `now` in milliseconds since 1970.
    pub fn receive(&mut self, now: i64, packet: &[u8], door: Door) -> Outcome {
        let request = match Request::parse(packet) {
            Ok(request) => request,
            Err(why) => return silent(why),
        };
        let outcome = match door.mode {
            Mode::Dhcp => self.serve(now, &request, door.own),
            Mode::Proxy => self.proxy(&request, door),
        };
        match outcome {
            Outcome::Silent { why, save, .. } => Outcome::Silent { why, save, asked: Some(Asked::of(&request)) },
            answer => answer,
        }
    }

    fn serve(&mut self, now: i64, request: &Request, own: Ipv4Addr) -> Outcome {
        let Some(subnet) = self.subnet_of(request, own) else {
            // A client that renews, or comes back with, an address from elsewhere must start anew to get one from here.
            let stranger = request.kind == Kind::Request && request.server.is_none() && request.giaddr.is_unspecified();
            return match stranger && self.table.of(own).is_some() {
                true => self.nak(request, own),
                false => silent(Silence::UnknownNetwork),
            };
        };
        let ours = |server| server == own || Some(server) == request.server_override();
        if request.server.is_some_and(|server| !ours(server)) {
            if request.kind == Kind::Request {
                self.table.withdraw(subnet, now, &request.client);
            }
            return silent(Silence::OtherServer);
        }
        let mac = request.client.mac;
        let facts = self.policy.facts(mac);
        let switch = recognise::recognise(request);
        let listed = switch.as_ref().is_some_and(|asking| self.switches.lists(asking, mac));
        let known = facts.is_some() || listed || self.table.has_leased(subnet, mac);
        let way = if request.giaddr.is_unspecified() { own } else { request.giaddr };
        if !known && !self.limits.allow(now, way, request.client.port.as_ref()) {
            return silent(Silence::TooManyStrangers);
        }
        let bmc = bmc::recognise(request, self.policy.as_ref());
        let asking =
            Asking { request, own, subnet, facts: facts.as_ref(), switch: switch.as_ref(), bmc, listed, known };
        match request.kind {
            Kind::Discover => self.discover(now, &asking),
            Kind::Request => self.request(now, &asking),
            Kind::Release => {
                let save = self.table.release(now, &request.client, request.ciaddr);
                let why = save.as_ref().map_or(Silence::NotHolder, |_| Silence::Released);
                Outcome::Silent { why, save, asked: None }
            }
            Kind::Decline => {
                let address = request.requested.unwrap_or(Ipv4Addr::UNSPECIFIED);
                let save = self.table.decline(now, &request.client, address);
                let why = save.as_ref().map_or(Silence::NotHolder, |_| Silence::Declined);
                Outcome::Silent { why, save, asked: None }
            }
            Kind::Inform if request.ciaddr.is_unspecified() => silent(Silence::NoAddressAsked),
            Kind::Inform => Outcome::Answer(self.answer(&asking, Answer::Ack, None, None)),
        }
    }

    /// What a card would get in each subnet, as far as that stands before it asks. Changes nothing.
    pub fn explain(&self, now: i64, mac: MacAddr) -> Vec<explain::Network> {
        let facts = self.policy.facts(mac);
        let said = self.table.would(now, mac).map(|(id, subnet, would)| {
            let (address, why) = match would {
                plan::Would::Reserved(address) => (Some(address), "it is reserved for this machine"),
                plan::Would::Held(address) => (Some(address), "the machine holds it"),
                plan::Would::Again(address) => (Some(address), "the machine had it last"),
                plan::Would::Pool => (None, "an address of the pool that is free"),
                plan::Would::Nothing => (None, "no pool, and no reservation for this machine: it gets no answer"),
            };
            let lease_seconds = self.lease_seconds(id, facts.as_ref(), false);
            explain::Network { subnet: subnet.network.to_string(), address, why: why.to_owned(), lease_seconds }
        });
        said.collect()
    }

    /// Which network the client is on: the relay's link selection (RFC 3527), else the relay's address. Without a relay it
    /// is the interface's own, except for a client that has an address already: it may renew through a router, from any
    /// of our networks.
    fn subnet_of(&self, request: &Request, own: Ipv4Addr) -> Option<SubnetId> {
        let link = request.relay.as_ref().and_then(|r| r.link);
        match (request.giaddr.is_unspecified(), request.ciaddr.is_unspecified()) {
            (false, _) => self.table.of(link.unwrap_or(request.giaddr)),
            (true, false) => self.table.of(request.ciaddr),
            (true, true) => self.table.of(own),
        }
    }

    fn discover(&mut self, now: i64, asking: &Asking) -> Outcome {
        let Asking { request, subnet, known, .. } = *asking;
        match self.table.offer(subnet, now, &request.client, request.requested, known) {
            Offer::Address { address, never_used } => {
                let then = self.answer(asking, Answer::Offer, Some(address), None);
                if never_used && self.probe {
                    self.table.probe(address);
                    return Outcome::Probe { address, then };
                }
                Outcome::Answer(then)
            }
            Offer::Probing => silent(Silence::Probing),
            Offer::PoolEmpty => silent(Silence::PoolEmpty),
        }
    }

    /// SELECTING and INIT-REBOOT name the address in option 50, RENEWING and REBINDING in `ciaddr` (RFC 2131 table 4).
    fn request(&mut self, now: i64, asking: &Asking) -> Outcome {
        let Asking { request, own, subnet, facts, listed, known, .. } = *asking;
        let ciaddr = Some(request.ciaddr).filter(|a| !a.is_unspecified());
        let Some(address) = request.requested.or(ciaddr) else { return silent(Silence::NoAddressAsked) };
        let seconds = self.lease_seconds(self.table.of(address).unwrap_or(subnet), facts, listed);
        match self.table.lease(subnet, now, &request.client, address, (seconds, known)) {
            Ok(lease) => Outcome::Answer(self.answer(asking, Answer::Ack, Some(address), Some(lease))),
            Err(table::NotYours) => self.nak(request, own),
        }
    }

    /// Short while nobody knows what the machine is: a rack that is only looked at does not hold its addresses for long.
    fn lease_seconds(&self, id: SubnetId, facts: Option<&Facts>, listed: bool) -> u32 {
        let Some(subnet) = self.table.subnet(id) else { return self.unknown_lease_seconds };
        let ruled = Settings::of(&self.rules, subnet.network, facts).lease_seconds;
        let unknown = !listed && facts.is_none_or(|f| f.state == "seen");
        let usual = subnet.lease_seconds;
        ruled.unwrap_or(if unknown { usual.min(self.unknown_lease_seconds) } else { usual })
    }

    fn nak(&self, request: &Request, own: Ipv4Addr) -> Outcome {
        Outcome::Answer(Ready {
            what: Answer::Nak,
            packet: reply::nak(request, request.server_override().unwrap_or(own)),
            to: reply::destination(request, reply::Kind::Nak, Ipv4Addr::UNSPECIFIED),
            save: None,
            sighting: None,
            bmc: None,
        })
    }

    /// `address`: none for INFORM, whose client has one.
    fn answer(&self, asking: &Asking, what: Answer, address: Option<Ipv4Addr>, save: Option<Lease>) -> Ready {
        let Asking { request, own, subnet, facts, switch, bmc, listed, .. } = *asking;
        // On a shared wire the address may be of another subnet than the one that was asked in.
        let id = address.or(Some(request.ciaddr)).and_then(|a| self.table.of(a)).unwrap_or(subnet);
        let seconds = self.lease_seconds(id, facts, listed);
        let kind = if what == Answer::Offer { reply::Kind::Offer } else { reply::Kind::Ack };
        let packet = self.table.subnet(id).map_or_else(Vec::new, |subnet| {
            let reply = Reply {
                kind,
                address,
                lease_seconds: address.map(|_| seconds),
                server: request.server_override().unwrap_or(own),
                own,
                subnet,
                settings: &Settings::of(&self.rules, subnet.network, facts),
                boot: match (switch, bmc) {
                    (Some(asking), _) => BootFile::Options(self.switches.answer(asking, request.client.mac)),
                    (None, Some(_)) => BootFile::None,
                    (None, None) => self.boot_file(request, address),
                },
            };
            reply.encode(request)
        });
        let to = reply::destination(request, kind, address.unwrap_or(Ipv4Addr::UNSPECIFIED));
        let machine = switch.is_none() && bmc.is_none();
        let sighting = address.filter(|_| machine).map(|address| sighting(request, Some(address)));
        let mac = request.client.mac;
        let bmc = bmc.zip(address).map(|(asking, address)| BmcSighting { mac, address, maker: asking.maker });
        Ready { what, packet, to, save, sighting, bmc }
    }

    /// `address`: the client's, as far as it is ours to know.
    fn boot_file(&self, request: &Request, address: Option<Ipv4Addr>) -> BootFile {
        self.loaders.boot_file(&loader::Asking {
            mac: request.client.mac,
            uuid: request.client.uuid,
            arch: request.arch,
            stage: request.stage,
            http: request.http,
            address: address.map(IpAddr::V4),
            begins: request.kind == Kind::Discover,
        })
    }
}

/// A request that is for us, with what is known of who sent it.
#[derive(Clone, Copy)]
struct Asking<'a> {
    request: &'a Request,
    own: Ipv4Addr,
    subnet: SubnetId,
    facts: Option<&'a Facts>,
    /// A switch that wants its configuration; it is no machine.
    switch: Option<&'a recognise::Asking>,
    /// A BMC; it is no machine either.
    bmc: Option<bmc::Asking>,
    /// The switch is one of ours.
    listed: bool,
    /// It is one of our switches, the rules know the machine, or it has leased here before.
    known: bool,
}

fn sighting(request: &Request, address: Option<Ipv4Addr>) -> Sighting {
    Sighting {
        mac: request.client.mac,
        uuid: request.client.uuid,
        arch: request.arch,
        address: address.map(IpAddr::V4),
        stage: request.stage,
        relay: request.relay_port(),
    }
}

impl Asked {
    fn of(request: &Request) -> Self {
        Self {
            mac: request.client.mac,
            relay: Some(request.giaddr).filter(|a| !a.is_unspecified()),
            circuit: request.client.port.as_ref().map(|p| p.circuit.clone()),
            server: request.server,
        }
    }
}
