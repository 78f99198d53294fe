//! DHCP as it is on the wire: a tap on an interface of a namespace, and messages as text that people can read. Reads by
//! RFC 2131 and 2132 alone and uses nothing of the server, so that a mistake is not made twice.

use std::fmt;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::net::{LAB0, inside, until};

/// One DHCP message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub header: Vec<u8>,
    /// In the order they came in; a code may come more than once.
    pub options: Vec<(u8, Vec<u8>)>,
}

impl Message {
    /// Panics on what is no DHCP message: tests feed it only what should be one.
    pub fn read(bytes: &[u8]) -> Self {
        assert!(bytes.len() >= 240 && bytes[236..240] == [99, 130, 83, 99], "no DHCP message: {bytes:02x?}");
        let (mut options, mut rest) = (Vec::new(), &bytes[240..]);
        while let [code, tail @ ..] = rest {
            match code {
                0 => rest = tail,
                255 => break,
                _ => {
                    let (data, next) = tail[1..].split_at(tail[0].into());
                    options.push((*code, data.to_vec()));
                    rest = next;
                }
            }
        }
        Self { header: bytes[..236].to_vec(), options }
    }

    pub fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.iter().find(|(c, _)| *c == code).map(|(_, data)| data.as_slice())
    }

    pub fn address(&self, at: usize) -> Ipv4Addr {
        let bytes: [u8; 4] = self.header[at..at + 4].try_into().unwrap();
        bytes.into()
    }

    pub fn ciaddr(&self) -> Ipv4Addr {
        self.address(12)
    }

    pub fn yiaddr(&self) -> Ipv4Addr {
        self.address(16)
    }

    pub fn giaddr(&self) -> Ipv4Addr {
        self.address(24)
    }

    pub fn broadcast(&self) -> bool {
        self.header[10] & 0x80 != 0
    }

    fn kind(&self) -> &'static str {
        const KINDS: [&str; 9] = ["?", "DISCOVER", "OFFER", "REQUEST", "DECLINE", "ACK", "NAK", "RELEASE", "INFORM"];
        self.option(53).and_then(|d| KINDS.get(usize::from(d[0]))).unwrap_or(&"?")
    }
}

/// Header fields that say something, then every option, by name.
impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let h = &self.header;
        let text = |from: usize, to: usize| {
            let field: Vec<u8> = h[from..to].iter().copied().take_while(|b| *b != 0).collect();
            String::from_utf8_lossy(&field).into_owned()
        };
        write!(f, "{} xid {:02x}{:02x}{:02x}{:02x}", self.kind(), h[4], h[5], h[6], h[7])?;
        write!(f, " secs {}", u16::from_be_bytes([h[8], h[9]]))?;
        write!(f, "{}{}", if h[3] > 0 { " relayed" } else { "" }, if self.broadcast() { " broadcast" } else { "" })?;
        writeln!(f, " chaddr {}", hex(&h[28..28 + usize::from(h[2]).min(16)], ":"))?;
        for (name, at) in [("ciaddr", 12), ("yiaddr", 16), ("siaddr", 20), ("giaddr", 24)] {
            if !self.address(at).is_unspecified() {
                writeln!(f, "  {name} {}", self.address(at))?;
            }
        }
        for (name, from, to) in [("sname", 44, 108), ("file", 108, 236)] {
            if h[from] != 0 {
                writeln!(f, "  {name} {:?}", text(from, to))?;
            }
        }
        for (code, data) in &self.options {
            writeln!(f, "  {code} {}", option(*code, data))?;
        }
        Ok(())
    }
}

fn hex(bytes: &[u8], between: &str) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(between)
}

/// Name and value (RFC 2132, RFC 3046, RFC 4578, ipxe.org/howto/dhcpd).
fn option(code: u8, data: &[u8]) -> String {
    let addresses = || {
        let all: Vec<_> = data.chunks(4).map(|c| <[u8; 4]>::try_from(c).map(Ipv4Addr::from)).collect();
        all.iter().map(|a| a.map_or("?".into(), |a| a.to_string())).collect::<Vec<_>>().join(" ")
    };
    let number = || data.iter().fold(0u64, |n, b| n << 8 | u64::from(*b)).to_string();
    let text = || format!("{:?}", String::from_utf8_lossy(data));
    let list = || data.iter().map(u8::to_string).collect::<Vec<_>>().join(" ");
    match code {
        1 => format!("subnet mask {}", addresses()),
        3 => format!("router {}", addresses()),
        6 => format!("name server {}", addresses()),
        12 => format!("host name {}", text()),
        15 => format!("domain {}", text()),
        28 => format!("broadcast address {}", addresses()),
        43 => format!("vendor options {}", hex(data, " ")),
        50 => format!("requested address {}", addresses()),
        51 => format!("lease time {} s", number()),
        53 => format!("type {}", number()),
        54 => format!("server {}", addresses()),
        55 => format!("wants {}", list()),
        56 => format!("message {}", text()),
        57 => format!("largest message {}", number()),
        58 => format!("renewal time {} s", number()),
        59 => format!("rebinding time {} s", number()),
        60 => format!("vendor class {}", text()),
        61 => format!("client id {}", hex(data, ":")),
        66 => format!("TFTP server {}", text()),
        67 => format!("boot file {}", text()),
        77 => format!("user class {}", text()),
        81 => format!("client FQDN {}", hex(data, " ")),
        82 => format!("relay agent {}", parts(data)),
        93 => format!("architecture {}", hex(data, "")),
        94 => format!("network interface {}", list()),
        97 => format!("machine {}", hex(data, "")),
        175 => format!("iPXE {}", parts(data)),
        _ => format!("= {}", hex(data, " ")),
    }
}

/// Options inside an option.
fn parts(mut data: &[u8]) -> String {
    let mut parts = Vec::new();
    while let [code, length, tail @ ..] = data {
        let length = usize::from(*length).min(tail.len());
        parts.push(format!("{code}={}", hex(&tail[..length], "")));
        data = &tail[length..];
    }
    parts.join(" ")
}

/// One message on its way.
#[derive(Debug, Clone)]
pub struct Seen {
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
    pub bytes: Vec<u8>,
    pub message: Message,
}

impl Seen {
    /// Ethernet II, IPv4, UDP from or to port 67; anything else is `None`.
    fn read(frame: &[u8]) -> Option<Self> {
        let ip = frame.get(14..).filter(|_| frame[12..14] == [8, 0])?;
        let udp = ip.get(usize::from(ip.first()? & 15) * 4..).filter(|_| ip[9] == 17)?;
        let port = |at: usize| Some(u16::from_be_bytes([*udp.get(at)?, *udp.get(at + 1)?]));
        let address = |at: usize| Some(Ipv4Addr::from(*ip.get(at..)?.first_chunk::<4>()?));
        let (from, to) = (SocketAddrV4::new(address(12)?, port(0)?), SocketAddrV4::new(address(16)?, port(2)?));
        let bytes = udp.get(8..port(4)?.into()).filter(|_| from.port() == 67 || to.port() == 67)?.to_vec();
        Some(Self { from, to, message: Message::read(&bytes), bytes })
    }

    pub fn request(&self) -> bool {
        self.message.header[0] == 1
    }

    /// The message's type; for a REQUEST with the client's state, told apart as RFC 2131 table 4 does.
    pub fn name(&self) -> String {
        let m = &self.message;
        let state = match (m.option(54).is_some(), m.option(50).is_some(), self.to.ip().is_broadcast()) {
            _ if m.kind() != "REQUEST" => return m.kind().to_owned(),
            (true, ..) => "selecting",
            (false, true, _) => "init-reboot",
            (false, false, false) => "renewing",
            (false, false, true) => "rebinding",
        };
        format!("REQUEST {state}")
    }
}

/// Listens on an interface until it is dropped. What the appliance itself asks is left out: it looks for other DHCP servers
/// with a DISCOVER of its own.
pub struct Tap {
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Tap {
    pub fn on(ns: &str, interface: &str) -> Self {
        let name = interface.to_owned();
        let mut socket = inside(ns, move || packet_socket(&name));
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (seen_too, stop_too) = (seen.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stop_too.load(Ordering::Relaxed) {
                if let Ok(length) = socket.read(&mut buffer) {
                    let others = Seen::read(&buffer[..length]).filter(|s| s.message.header[28..34] != LAB0);
                    seen_too.lock().unwrap().extend(others);
                }
            }
        });
        Self { seen, stop, thread: Some(thread) }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// What was seen since the first `skip` messages, by name.
    pub fn names(&self, skip: usize) -> Vec<String> {
        self.seen().iter().skip(skip).map(Seen::name).collect()
    }

    /// Waits for a message of this name that comes after the first `skip` ones, and for its answer where it has one.
    pub fn wait(&self, skip: usize, name: &str, answer: Option<&str>) -> Seen {
        until(&format!("{name} on the wire; there was {:?}", self.names(0)), || {
            let seen = self.seen();
            let at = skip + seen.iter().skip(skip).position(|s| s.name() == name)?;
            let xid = |s: &Seen| s.message.header[4..8].to_vec();
            match answer {
                None => Some(seen[at].clone()),
                Some(kind) => {
                    let asked = &seen[at];
                    seen[at..].iter().find(|s| s.name() == kind && xid(s) == xid(asked)).map(|_| asked.clone())
                }
            }
        })
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn packet_socket(interface: &str) -> Socket {
    let every = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(every)).unwrap();
    let index = rustix::net::netdevice::name_to_index(&socket, interface).unwrap();
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is plain data, smaller than sockaddr_storage, and zero is a valid value of each field.
    let link: &mut libc::sockaddr_ll = unsafe { storage.view_as() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    link.sll_ifindex = index as i32;
    // SAFETY: the storage holds a sockaddr_ll, as the family says, of this length.
    let address = unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) };
    socket.bind(&address).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    socket
}

/// With `RACKLINE_CAPTURE=DIR` in the environment, writes what clients sent as `DIR/NAME.hex`: how the files under
/// `tests/fixtures/dhcp` are made. `about` becomes the head of the file.
pub fn keep(name: &str, about: &[&str], seen: &[Seen]) {
    let Some(folder) = std::env::var_os("RACKLINE_CAPTURE") else { return };
    let mut text: String = about.iter().map(|line| format!("# {line}\n")).collect();
    for packet in seen.iter().filter(|s| s.request()) {
        text += &format!("\n# {} {} to {}\n", packet.name(), packet.from, packet.to);
        for line in packet.bytes.chunks(32) {
            text += &(hex(line, "") + "\n");
        }
    }
    std::fs::write(Path::new(&folder).join(format!("{name}.hex")), text).unwrap();
}
