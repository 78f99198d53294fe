//! Replies as bytes, and where they go (RFC 2131 sections 4.1 and 4.3).

use std::net::{Ipv4Addr, SocketAddrV4};

use super::options::{Layout, Options};
use super::request::Request;
use crate::boot::config::{Settings, Subnet};
use crate::machine::MacAddr;

/// Where a reply goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// Through the network stack: a relay, or a client that has its address already.
    Routed(SocketAddrV4),
    /// A frame to a client that cannot answer ARP yet.
    Frame { mac: MacAddr, address: Ipv4Addr },
    /// A frame to everyone on the interface.
    Broadcast,
}

/// Message types that a server sends (RFC 2132 section 9.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Offer = 2,
    Ack = 5,
    Nak = 6,
}

/// What the firmware is to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootFile {
    None,
    /// A file name on our TFTP server. BIOS ROMs look for PXE options in an offer before they take a plain one.
    Tftp {
        name: String,
        pxe_options: bool,
    },
    /// UEFI HTTP boot.
    Http {
        url: String,
    },
    /// The script that iPXE runs.
    Script {
        url: String,
    },
    /// What leads a switch to its configuration: options by code.
    Options(Vec<(u8, Vec<u8>)>),
}

pub struct Reply<'a> {
    pub kind: Kind,
    /// `None`: none is given (INFORM, ProxyDHCP).
    pub address: Option<Ipv4Addr>,
    /// `None`: no lease goes with it (INFORM).
    pub lease_seconds: Option<u32>,
    /// Whom the client is to talk to: us, or the relay in our place.
    pub server: Ipv4Addr,
    /// Where the boot files are.
    pub own: Ipv4Addr,
    pub subnet: &'a Subnet,
    pub settings: &'a Settings,
    pub boot: BootFile,
}

/// Size of the `file` field, less the final NUL.
const MAX_FILE: usize = 127;
/// PXE 2.1 section 2.2, tag 43: discovery control (6) = 8, "do not ask boot servers, start the file named in the
/// offer", and END. With it a ROM waits neither for a ProxyDHCP server nor for port 4011.
const PXE_NO_DISCOVERY: &[u8] = &[6, 1, 8, 255];
/// ipxe.org/cfg: 175.176 `no-pxedhcp` = 1; saves the 3 s in which iPXE would look for a ProxyDHCP server.
const IPXE_NO_PROXY: &[u8] = &[176, 1, 1];

impl Reply<'_> {
    /// OFFER or ACK, with what the client asked to know; the least important options last, since they are the first to
    /// go where a client takes only short messages.
    pub fn encode(self, request: &Request) -> Vec<u8> {
        let (subnet, settings) = (self.subnet, self.settings);
        let mut options = Options::new(self.kind as u8, request);
        options.address(54, self.server);
        if let Some(seconds) = self.lease_seconds {
            options.put(51, &seconds.to_be_bytes());
        }
        options.address(1, subnet.network.mask());
        if let Some(router) = settings.router.or(subnet.router).filter(|_| request.wants(3)) {
            options.address(3, router);
        }
        let boot = self.boot.write(&mut options, self.own);
        let lists = [(6, settings.dns.as_ref().unwrap_or(&subnet.dns)), (42, &settings.ntp)];
        for (code, servers) in lists.into_iter().filter(|(code, _)| request.wants(*code)) {
            options.addresses(code, servers);
        }
        if let Some(domain) = settings.domain.as_ref().or(subnet.domain.as_ref()).filter(|_| request.wants(15)) {
            options.put(15, domain.as_str().as_bytes());
        }
        if request.wants(28) {
            options.address(28, subnet.network.broadcast());
        }
        if let Some(mtu) = settings.mtu.filter(|_| request.wants(26)) {
            options.put(26, &mtu.to_be_bytes());
        }
        // Set for this machine by a rule: sent whether it asks for it or not.
        settings.raw.iter().for_each(|(code, data)| options.put(*code, data));
        let ciaddr = (self.kind == Kind::Ack).then_some(request.ciaddr);
        let layout = Layout { ciaddr, yiaddr: self.address, siaddr: boot.siaddr, file: boot.file, broadcast: false };
        layout.encode(request, options)
    }
}

/// NAK: nothing but the type and the server (RFC 2131 table 3).
pub fn nak(request: &Request, server: Ipv4Addr) -> Vec<u8> {
    let mut options = Options::new(Kind::Nak as u8, request);
    options.address(54, server);
    // RFC 2131 section 4.3.2: the relay must broadcast it, since the client's address is the wrong one.
    Layout { broadcast: true, ..Layout::default() }.encode(request, options)
}

pub fn destination(request: &Request, kind: Kind, address: Ipv4Addr) -> Destination {
    if !request.giaddr.is_unspecified() {
        return Destination::Routed(SocketAddrV4::new(request.giaddr, 67));
    }
    if kind == Kind::Nak {
        return Destination::Broadcast;
    }
    if !request.ciaddr.is_unspecified() {
        return Destination::Routed(SocketAddrV4::new(request.ciaddr, 68));
    }
    match request.broadcast {
        true => Destination::Broadcast,
        false => Destination::Frame { mac: request.client.mac, address },
    }
}

/// Header fields that say the same as an option does, for firmware that only reads one of the two.
#[derive(Default)]
pub struct Header {
    pub siaddr: Option<Ipv4Addr>,
    pub file: Vec<u8>,
}

impl BootFile {
    pub fn write(self, options: &mut Options, server: Ipv4Addr) -> Header {
        match self {
            BootFile::None => Header::default(),
            BootFile::Tftp { name, pxe_options } => {
                options.put(66, server.to_string().as_bytes());
                options.put(67, name.as_bytes());
                if pxe_options {
                    options.put(60, b"PXEClient");
                    options.put(43, PXE_NO_DISCOVERY);
                }
                let file = name.as_bytes().get(..MAX_FILE).unwrap_or(name.as_bytes()).to_vec();
                Header { siaddr: Some(server), file }
            }
            BootFile::Http { url } => {
                // UEFI 2.10 section 24.7.3.1: the class is echoed, else the firmware ignores the offer.
                options.put(60, b"HTTPClient");
                options.put(67, url.as_bytes());
                Header::default()
            }
            BootFile::Script { url } => {
                options.put(67, url.as_bytes());
                options.put(175, IPXE_NO_PROXY);
                Header { siaddr: Some(server), file: Vec::new() }
            }
            BootFile::Options(list) => {
                list.iter().for_each(|(code, data)| options.put(*code, data));
                Header::default()
            }
        }
    }
}
