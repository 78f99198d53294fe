//! Replies as bytes, and where they go (RFC 2131 sections 4.1 and 4.3).

use std::net::{Ipv4Addr, SocketAddrV4};

use dhcproto::v4::{DhcpOption, Flags, HType, Message, MessageType, Opcode, OptionCode, UnknownOption};
use dhcproto::{Encodable, Encoder};

use super::request::Request;
use crate::boot::config::Subnet;
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
}

pub struct Reply<'a> {
    pub kind: MessageType,
    pub address: Ipv4Addr,
    /// `None`: no lease goes with it (INFORM).
    pub lease_seconds: Option<u32>,
    pub server: Ipv4Addr,
    pub subnet: &'a Subnet,
    pub boot: BootFile,
}

/// BOOTP's size (RFC 951 section 3 with a 64-byte vendor area); some relays and ROMs drop what is shorter.
const MIN_SIZE: usize = 300;
/// Where options begin, behind the cookie.
const OPTIONS: usize = 240;
/// Size of the `file` field, less the final NUL.
const MAX_FILE: usize = 127;
/// PXE 2.1 section 2.2, tag 43: discovery control (6) = 8, "do not ask boot servers, start the file named in the
/// offer", and END. With it a ROM waits neither for a ProxyDHCP server nor for port 4011.
const PXE_NO_DISCOVERY: &[u8] = &[6, 1, 8, 255];
/// ipxe.org/cfg: 175.176 `no-pxedhcp` = 1; saves the 3 s in which iPXE would look for a ProxyDHCP server.
const IPXE_NO_PROXY: &[u8] = &[176, 1, 1];

impl Reply<'_> {
    /// OFFER or ACK, with what the client asked to know.
    pub fn encode(self, request: &Request) -> Option<Vec<u8>> {
        let mut message = header(request, self.server);
        message.set_yiaddr(self.address);
        if self.kind == MessageType::Ack {
            message.set_ciaddr(request.ciaddr);
        }
        let subnet = self.subnet;
        let options = message.opts_mut();
        options.insert(DhcpOption::SubnetMask(subnet.network.mask()));
        if let Some(seconds) = self.lease_seconds {
            options.insert(DhcpOption::AddressLeaseTime(seconds));
        }
        if let Some(router) = subnet.router.filter(|_| request.wants(3)) {
            options.insert(DhcpOption::Router(vec![router]));
        }
        if !subnet.dns.is_empty() && request.wants(6) {
            options.insert(DhcpOption::DomainNameServer(subnet.dns.clone()));
        }
        if let Some(domain) = subnet.domain.as_ref().filter(|_| request.wants(15)) {
            options.insert(DhcpOption::DomainName(domain.as_str().to_owned()));
        }
        if request.wants(28) {
            options.insert(DhcpOption::BroadcastAddr(subnet.network.broadcast()));
        }
        add_boot_file(&mut message, self.boot, self.server);
        finish(self.kind, &message, request)
    }
}

/// NAK: nothing but the type and the server (RFC 2131 table 3).
pub fn nak(request: &Request, server: Ipv4Addr) -> Option<Vec<u8>> {
    let mut message = header(request, server);
    // RFC 2131 section 4.3.2: the relay must broadcast it, since the client's address is the wrong one.
    message.set_flags(Flags::default().set_broadcast());
    finish(MessageType::Nak, &message, request)
}

pub fn destination(request: &Request, kind: MessageType, address: Ipv4Addr) -> Destination {
    if !request.giaddr.is_unspecified() {
        return Destination::Routed(SocketAddrV4::new(request.giaddr, 67));
    }
    if kind == MessageType::Nak {
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

fn header(request: &Request, server: Ipv4Addr) -> Message {
    let mut message = Message::default();
    let flags = Flags::default();
    message
        .set_opcode(Opcode::BootReply)
        .set_htype(HType::Eth)
        .set_xid(request.xid)
        .set_flags(if request.broadcast { flags.set_broadcast() } else { flags })
        .set_giaddr(request.giaddr)
        .set_chaddr(&request.client.mac.0);
    message.opts_mut().insert(DhcpOption::ServerIdentifier(server));
    // RFC 6842: a client id is echoed. Firmware that reuses transaction ids tells answers apart by it.
    if !request.client.id.is_empty() {
        message.opts_mut().insert(DhcpOption::ClientIdentifier(request.client.id.clone()));
    }
    message
}

fn add_boot_file(message: &mut Message, boot: BootFile, server: Ipv4Addr) {
    let raw = |code: u8, data: &[u8]| DhcpOption::Unknown(UnknownOption::new(OptionCode::from(code), data.to_vec()));
    match boot {
        BootFile::None => {}
        BootFile::Tftp { name, pxe_options } => {
            message.set_siaddr(server).set_fname(cut(&name));
            let options = message.opts_mut();
            options.insert(DhcpOption::TFTPServerName(server.to_string().into_bytes()));
            options.insert(DhcpOption::BootfileName(name.into_bytes()));
            if pxe_options {
                options.insert(DhcpOption::ClassIdentifier(b"PXEClient".to_vec()));
                options.insert(DhcpOption::VendorExtensions(PXE_NO_DISCOVERY.to_vec()));
            }
        }
        BootFile::Http { url } => {
            // UEFI 2.10 section 24.7.3.1: the class is echoed, else the firmware ignores the offer.
            message.opts_mut().insert(DhcpOption::ClassIdentifier(b"HTTPClient".to_vec()));
            message.opts_mut().insert(DhcpOption::BootfileName(url.into_bytes()));
        }
        BootFile::Script { url } => {
            message.set_siaddr(server);
            message.opts_mut().insert(DhcpOption::BootfileName(url.into_bytes()));
            message.opts_mut().insert(raw(175, IPXE_NO_PROXY));
        }
    }
}

fn cut(name: &str) -> &[u8] {
    name.as_bytes().get(..MAX_FILE).unwrap_or(name.as_bytes())
}

/// The message with its type first, where simple clients look for it, and option 82 as it came and last, as RFC 3046
/// section 2.2 wants it.
fn finish(kind: MessageType, message: &Message, request: &Request) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(MIN_SIZE + 256);
    message.encode(&mut Encoder::new(&mut bytes)).ok()?;
    bytes.splice(OPTIONS..OPTIONS, [53, 1, kind.into()]);
    if let Some(relay) = &request.relay {
        let end = bytes.pop();
        debug_assert_eq!(end, Some(255));
        for part in relay.raw.chunks(255) {
            bytes.extend([82, part.len() as u8]);
            bytes.extend(part);
        }
        bytes.push(255);
    }
    bytes.resize(bytes.len().max(MIN_SIZE), 0);
    Some(bytes)
}
