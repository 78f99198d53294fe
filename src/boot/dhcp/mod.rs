//! The DHCPv4 server: what to answer to one packet (here, without sockets or clock), and the tasks around it ([`serve`]).
//!
//! Receive → is it for us → validate → ask → build → send. A packet either has an [`Outcome::Answer`], or an
//! [`Outcome::Silent`] with its reason; there is no third way out.

pub mod relay;
pub mod reply;
pub mod request;
pub mod serve;
pub mod table;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use dhcproto::v4::MessageType;

use super::count::{Answer, Silence};
use super::firmware::Files;
use super::{Sighting, Stage};
use crate::machine::Firmware;
use crate::store::lease::Lease;
use reply::{BootFile, Destination, Reply};
use request::{Kind, Request};
use table::{SubnetId, Table};

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Answer {
        what: Answer,
        packet: Vec<u8>,
        to: Destination,
        /// Must be on disk before the packet leaves.
        save: Option<Lease>,
        sighting: Option<Sighting>,
    },
    Silent {
        why: Silence,
        save: Option<Lease>,
    },
}

fn silent(why: Silence) -> Outcome {
    Outcome::Silent { why, save: None }
}

/// The rules of answering; the same on every interface.
pub struct Dhcp {
    pub table: Table,
    /// The appliance as machines reach it, without a slash at the end.
    pub url: String,
    /// `false`: firmware that boots by TFTP gets an address and no file.
    pub tftp: bool,
    pub files: Arc<Files>,
}

impl Dhcp {
    /// `now` in milliseconds since 1970; `own` is our address on the interface that the packet came in on.
    pub fn receive(&mut self, now: i64, packet: &[u8], own: Ipv4Addr) -> Outcome {
        let request = match Request::parse(packet) {
            Ok(request) => request,
            Err(why) => return silent(why),
        };
        let Some(subnet) = self.subnet_of(&request, own) else {
            // A client that renews, or comes back with, an address from elsewhere must start anew to get one from here.
            let stranger = request.kind == Kind::Request && request.server.is_none() && request.giaddr.is_unspecified();
            return match stranger && self.table.of(own).is_some() {
                true => self.nak(&request, own),
                false => silent(Silence::UnknownNetwork),
            };
        };
        if request.server.is_some_and(|server| server != own) {
            if request.kind == Kind::Request {
                self.table.withdraw(subnet, now, &request.client);
            }
            return silent(Silence::OtherServer);
        }
        match request.kind {
            Kind::Discover => self.discover(now, subnet, &request, own),
            Kind::Request => self.request(now, subnet, &request, own),
            Kind::Release => {
                let save = self.table.release(subnet, now, &request.client, request.ciaddr);
                Outcome::Silent { why: save.as_ref().map_or(Silence::NotHolder, |_| Silence::Released), save }
            }
            Kind::Decline => {
                let address = request.requested.unwrap_or(Ipv4Addr::UNSPECIFIED);
                let save = self.table.decline(subnet, now, &request.client, address);
                Outcome::Silent { why: save.as_ref().map_or(Silence::NotHolder, |_| Silence::Declined), save }
            }
            Kind::Inform if request.ciaddr.is_unspecified() => silent(Silence::NoAddressAsked),
            Kind::Inform => self.answer(subnet, &request, own, Answer::Ack, request.ciaddr, None),
        }
    }

    /// The relay says which network the client is on. Without one it is the interface's own, except for a client that
    /// has an address already: it may renew through a router, from any of our networks.
    fn subnet_of(&self, request: &Request, own: Ipv4Addr) -> Option<SubnetId> {
        match (request.giaddr.is_unspecified(), request.ciaddr.is_unspecified()) {
            (false, _) => self.table.of(request.giaddr),
            (true, false) => self.table.of(request.ciaddr),
            (true, true) => self.table.of(own),
        }
    }

    fn discover(&mut self, now: i64, subnet: SubnetId, request: &Request, own: Ipv4Addr) -> Outcome {
        match self.table.offer(subnet, now, &request.client, request.requested) {
            Some(address) => self.answer(subnet, request, own, Answer::Offer, address, None),
            None => silent(Silence::PoolEmpty),
        }
    }

    /// SELECTING and INIT-REBOOT name the address in option 50, RENEWING and REBINDING in `ciaddr` (RFC 2131 table 4).
    fn request(&mut self, now: i64, subnet: SubnetId, request: &Request, own: Ipv4Addr) -> Outcome {
        let ciaddr = Some(request.ciaddr).filter(|a| !a.is_unspecified());
        let Some(address) = request.requested.or(ciaddr) else { return silent(Silence::NoAddressAsked) };
        match self.table.lease(subnet, now, &request.client, address) {
            Ok(lease) => self.answer(subnet, request, own, Answer::Ack, address, Some(lease)),
            Err(table::NotYours) => self.nak(request, own),
        }
    }

    fn nak(&self, request: &Request, own: Ipv4Addr) -> Outcome {
        match reply::nak(request, own) {
            Some(packet) => Outcome::Answer {
                what: Answer::Nak,
                packet,
                to: reply::destination(request, MessageType::Nak, Ipv4Addr::UNSPECIFIED),
                save: None,
                sighting: None,
            },
            None => silent(Silence::Malformed),
        }
    }

    fn answer(
        &self,
        id: SubnetId,
        request: &Request,
        own: Ipv4Addr,
        what: Answer,
        address: Ipv4Addr,
        save: Option<Lease>,
    ) -> Outcome {
        let Some(subnet) = self.table.subnet(id) else { return silent(Silence::UnknownNetwork) };
        let inform = request.kind == Kind::Inform;
        let kind = if what == Answer::Offer { MessageType::Offer } else { MessageType::Ack };
        let reply = Reply {
            kind,
            address: if inform { Ipv4Addr::UNSPECIFIED } else { address },
            lease_seconds: (!inform).then_some(subnet.lease_seconds),
            server: own,
            subnet,
            boot: self.boot_file(request),
        };
        let Some(packet) = reply.encode(request) else { return silent(Silence::Malformed) };
        let sighting = (!inform).then_some(Sighting {
            mac: request.client.mac,
            uuid: request.client.uuid,
            arch: request.arch,
            address: Some(IpAddr::V4(address)),
            stage: request.stage,
            relay: request.relay_port(),
        });
        Outcome::Answer { what, packet, to: reply::destination(request, kind, address), save, sighting }
    }

    /// By who is asking: firmware gets iPXE, iPXE gets its script, a running system gets nothing.
    fn boot_file(&self, request: &Request) -> BootFile {
        match request.stage {
            Stage::System => BootFile::None,
            Stage::Ipxe => BootFile::Script { url: self.script_url(request) },
            Stage::Rom => self.loader(request),
        }
    }

    fn loader(&self, request: &Request) -> BootFile {
        let Some((arch, name)) = request.arch.and_then(|arch| Some((arch, self.files.loader(arch)?))) else {
            return BootFile::None;
        };
        if arch.is_http() || request.http {
            BootFile::Http { url: format!("{}/boot/files/{name}", self.url) }
        } else if self.tftp {
            BootFile::Tftp { name: name.to_owned(), pxe_options: arch.firmware() == Firmware::Bios }
        } else {
            BootFile::None
        }
    }

    fn script_url(&self, request: &Request) -> String {
        let mut url = format!("{}/boot/ipxe?mac={}", self.url, request.client.mac);
        if let Some(uuid) = request.client.uuid {
            url += &format!("&uuid={uuid}");
        }
        if let Some(arch) = request.arch {
            url += &format!("&arch={}", super::script::arch_name(arch));
        }
        url
    }
}
