//! ProxyDHCP (PXE 2.1 sections 2.2 and 2.4): another server gives the addresses, we say what to boot. A DISCOVER gets an
//! offer without address; a ROM that asks again at port 4011, or that only lists boot servers, gets the same as an ACK.

use std::net::Ipv4Addr;

use super::options::{Layout, Options};
use super::reply::{self, BootFile, Destination};
use super::request::{Kind, Request};
use super::{Dhcp, Door, Outcome, Ready, sighting, silent};
use crate::boot::Stage;
use crate::boot::count::{Answer, Silence};

/// ROMs ask here when the offer did not name a file (PXE 2.1 section 2.4.4).
pub const PORT: u16 = 4011;

impl Dhcp {
    pub(super) fn proxy(&self, request: &Request, door: Door) -> Outcome {
        let what = match (request.kind, door.port) {
            (Kind::Discover, 67) => Answer::Offer,
            (Kind::Request | Kind::Inform, PORT) => Answer::Ack,
            // Addresses are the other server's business.
            _ => return silent(Silence::NotProxied),
        };
        // A running system boots nothing.
        if request.stage == Stage::System {
            return silent(Silence::NotProxied);
        }
        let address = Some(request.ciaddr).filter(|a| !a.is_unspecified());
        let boot = match self.boot_file(request, address) {
            BootFile::None => return silent(Silence::NoBootFile),
            // The class is ours in every case: without it a ROM takes the offer for one of an address.
            BootFile::Tftp { name, .. } => BootFile::Tftp { name, pxe_options: true },
            other => other,
        };
        let script = matches!(boot, BootFile::Script { .. });
        let kind = if what == Answer::Offer { reply::Kind::Offer } else { reply::Kind::Ack };
        let mut options = Options::new(kind as u8, request);
        options.address(54, door.own);
        let header = boot.write(&mut options, door.own);
        if script {
            options.put(60, b"PXEClient");
        }
        if let Some(uuid) = request.client.uuid {
            options.put(97, &[&[0][..], &uuid.to_bytes_le()].concat());
        }
        let ciaddr = Some(request.ciaddr);
        let layout = Layout { ciaddr, siaddr: Some(door.own), file: header.file, ..Layout::default() };
        let packet = layout.encode(request, options);
        Outcome::Answer(Ready {
            what,
            packet,
            to: destination(request),
            save: None,
            sighting: Some(sighting(request, None)),
            bmc: None,
        })
    }
}

/// A client without address hears broadcasts only: the address that it will have is not ours to know.
fn destination(request: &Request) -> Destination {
    match request.ciaddr.is_unspecified() {
        true if request.giaddr.is_unspecified() => Destination::Broadcast,
        _ => reply::destination(request, reply::Kind::Ack, Ipv4Addr::UNSPECIFIED),
    }
}
