//! One DHCP packet, read: header fields and the options that decide something. Nothing from the packet is trusted to be
//! there or to have the right length; what cannot be used is as if it had not been sent.
//!
//! | option | meaning | source |
//! |---|---|---|
//! | 50, 52, 53, 54, 55, 57, 61 | requested address, overload, type, server, parameter list, size, client id | RFC 2132 section 9 |
//! | 60 | `PXEClient:…`, `HTTPClient:…`; switches: `boot::switch::recognise` | RFC 4578, UEFI 2.10 section 24.7 |
//! | 77 | user class; iPXE sends `iPXE` bare, RFC 3004 wants length-prefixed strings: both are read | RFC 3004 |
//! | 82 | relay agent information, echoed byte for byte | RFC 3046 |
//! | 93, 97 | client architecture (a list), machine UUID (type 0 and 16 bytes) | RFC 4578 |
//! | 124, 125 | what switches say of themselves: `boot::switch::recognise` | RFC 3925 |
//! | 175 | iPXE's own options: only iPXE sends it | ipxe.org/howto/dhcpd |

use std::net::Ipv4Addr;

use dhcproto::v4::borrowed;

use super::options::{FILE, SNAME};
use super::relay::{RelayInfo, id_text};
use crate::boot::count::Silence;
use crate::boot::{RelayPort, Stage};
use crate::machine::filler::is_filler_uuid;
use crate::machine::{ClientArch, MacAddr};

/// Header up to `file`, and the cookie (RFC 2131 section 2).
const HEADER: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const MAX_HOPS: u8 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Discover,
    Request,
    Decline,
    Release,
    Inform,
}

/// Who is asking, by everything that may name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    pub mac: MacAddr,
    pub uuid: Option<uuid::Uuid>,
    /// Option 61; empty: none.
    pub id: Vec<u8>,
    /// The port of the switch that it is behind, where a relay says so.
    pub port: Option<Port>,
}

/// Option 82, as people write it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Port {
    pub circuit: String,
    pub remote: Option<String>,
}

/// What a client says of its kind, as it came; empty: not sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Classes {
    /// Option 60.
    pub vendor: Vec<u8>,
    /// Option 77.
    pub user: Vec<u8>,
    /// Option 124, vendor-identifying vendor class.
    pub identifying: Vec<u8>,
    /// Option 125, vendor-identifying vendor-specific information.
    pub information: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub kind: Kind,
    pub xid: u32,
    pub broadcast: bool,
    pub ciaddr: Ipv4Addr,
    pub giaddr: Ipv4Addr,
    pub client: Client,
    pub requested: Option<Ipv4Addr>,
    pub server: Option<Ipv4Addr>,
    /// Option 55; `None`: the client did not say what it wants.
    pub wanted: Option<Vec<u8>>,
    pub stage: Stage,
    /// Vendor class begins with `HTTPClient`.
    pub http: bool,
    /// `PXEClient` or `HTTPClient`: wants a boot file.
    pub netboot: bool,
    pub arch: Option<ClientArch>,
    /// Option 57: the longest message that the client takes, with IP and UDP headers.
    pub max_size: Option<u16>,
    pub relay: Option<RelayInfo>,
    pub classes: Classes,
}

impl Request {
    pub fn parse(packet: &[u8]) -> Result<Self, Silence> {
        let &[op, htype, hlen, hops, ..] = packet else { return Err(Silence::Malformed) };
        if packet.get(HEADER..HEADER + 4) != Some(&COOKIE) {
            return Err(Silence::Malformed);
        }
        if op != 1 {
            return Err(Silence::NotRequest);
        }
        if htype != 1 || hlen != 6 {
            return Err(Silence::NotEthernet);
        }
        if hops > MAX_HOPS {
            return Err(Silence::TooManyHops);
        }
        let message = borrowed::Message::new(packet).map_err(|_| Silence::Malformed)?;
        let mac = message.chaddr().first_chunk::<6>().copied().ok_or(Silence::Malformed)?;
        if mac[0] & 1 == 1 || mac == [0; 6] {
            return Err(Silence::NotEthernet);
        }
        let options = Options::read(packet, &message);
        let port = options.relay.as_ref().and_then(RelayInfo::port);
        Ok(Self {
            kind: options.kind.ok_or(Silence::NoMessageType)?,
            xid: message.xid(),
            broadcast: message.flags().broadcast(),
            ciaddr: message.ciaddr(),
            giaddr: message.giaddr(),
            stage: options.stage(),
            http: options.http_client,
            netboot: options.pxe_client || options.http_client,
            client: Client { mac: MacAddr(mac), uuid: options.uuid, id: options.client_id, port },
            requested: options.requested,
            server: options.server,
            wanted: options.wanted,
            arch: options.arch,
            max_size: options.max_size,
            relay: options.relay,
            classes: options.classes,
        })
    }

    /// The way it came, where a relay brought it.
    pub fn relay_port(&self) -> Option<RelayPort> {
        (!self.giaddr.is_unspecified() || self.relay.is_some()).then(|| RelayPort {
            relay: self.giaddr,
            circuit: self.client.port.as_ref().map(|p| p.circuit.clone()),
            remote: self.relay.as_ref().and_then(|r| r.remote.as_deref()).map(id_text),
        })
    }

    /// The relay that wants to be talked to in our place (RFC 5107).
    pub fn server_override(&self) -> Option<Ipv4Addr> {
        self.relay.as_ref().and_then(|r| r.server)
    }

    pub fn wants(&self, code: u8) -> bool {
        self.wanted.as_ref().is_none_or(|list| list.contains(&code))
    }
}

#[derive(Default)]
struct Options {
    kind: Option<Kind>,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    wanted: Option<Vec<u8>>,
    client_id: Vec<u8>,
    uuid: Option<uuid::Uuid>,
    arch: Option<ClientArch>,
    names_arch: bool,
    overload: u8,
    max_size: Option<u16>,
    relay: Option<RelayInfo>,
    pxe_client: bool,
    http_client: bool,
    ipxe: bool,
    classes: Classes,
}

impl Options {
    fn read(packet: &[u8], message: &borrowed::Message<'_>) -> Self {
        let mut options = Self::default();
        message.opts().for_each(|option| options.take(option.code().into(), option.data()));
        // RFC 2132 section 9.3: with option 52 the fields of BOOTP hold options too, `file` first.
        let overload = options.overload;
        for (_, range) in [(1, FILE), (2, SNAME)].into_iter().filter(|(bit, _)| overload & bit != 0) {
            // Not dhcproto's accessors, which end at the first NUL.
            let field = packet.get(range).unwrap_or_default();
            borrowed::DhcpOptionIterator::new(field).for_each(|o| options.take(o.code().into(), o.data()));
        }
        // Old BIOS ROMs leave option 93 out; RFC 4578 section 2.1 has 0 for them.
        if options.pxe_client && !options.names_arch {
            options.arch = Some(ClientArch::Bios);
        }
        options
    }

    fn take(&mut self, code: u8, data: &[u8]) {
        match code {
            50 => self.requested = address(data),
            52 => self.overload = data.first().copied().filter(|_| data.len() == 1).unwrap_or(0),
            53 => self.kind = kind(data),
            54 => self.server = address(data),
            55 => self.wanted = Some(data.to_vec()),
            57 => self.max_size = data.try_into().ok().map(u16::from_be_bytes),
            60 => {
                self.pxe_client = data.starts_with(b"PXEClient");
                self.http_client = data.starts_with(b"HTTPClient");
                self.classes.vendor = data.to_vec();
            }
            // RFC 2132 section 9.14: at least two bytes.
            61 if data.len() >= 2 => self.client_id = data.to_vec(),
            77 => {
                self.ipxe |= is_ipxe_class(data);
                self.classes.user = data.to_vec();
            }
            82 => self.relay = Some(RelayInfo::parse(data)),
            93 => {
                self.names_arch = true;
                self.arch = architecture(data);
            }
            97 => self.uuid = machine_uuid(data),
            124 => self.classes.identifying = data.to_vec(),
            125 => self.classes.information = data.to_vec(),
            175 => self.ipxe = true,
            _ => {}
        }
    }

    fn stage(&self) -> Stage {
        match (self.ipxe, self.pxe_client || self.http_client) {
            (true, _) => Stage::Ipxe,
            (false, true) => Stage::Rom,
            (false, false) => Stage::System,
        }
    }
}

fn kind(data: &[u8]) -> Option<Kind> {
    Some(match data {
        [1] => Kind::Discover,
        [3] => Kind::Request,
        [4] => Kind::Decline,
        [7] => Kind::Release,
        [8] => Kind::Inform,
        _ => return None,
    })
}

pub(super) fn address(data: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from).filter(|a| !a.is_unspecified())
}

fn is_ipxe_class(data: &[u8]) -> bool {
    let mut rest = data;
    while let Some((&length, tail)) = rest.split_first() {
        let Some((class, next)) = tail.split_at_checked(length.into()) else { break };
        if class == b"iPXE" {
            return true;
        }
        rest = next;
    }
    data == b"iPXE"
}

/// The first architecture of the list that is known.
fn architecture(data: &[u8]) -> Option<ClientArch> {
    data.chunks_exact(2).find_map(|code| match code {
        &[high, low] => ClientArch::from_code(u16::from_be_bytes([high, low])),
        _ => None,
    })
}

/// The bytes of SMBIOS type 1, whose first three fields are little-endian (DSP0134 section 7.2.1): so iPXE and EDK II
/// send them, and so read they equal what dmidecode and the BMC print. Boards leave the factory with fillers where a
/// UUID should be; such a one names no machine.
fn machine_uuid(data: &[u8]) -> Option<uuid::Uuid> {
    let (&0, bytes) = data.split_first()? else { return None };
    let bytes: [u8; 16] = bytes.try_into().ok()?;
    Some(uuid::Uuid::from_bytes_le(bytes)).filter(|uuid| !is_filler_uuid(uuid))
}
