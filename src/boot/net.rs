//! Sockets of the boot services, each bound to one interface, and Ethernet frames for clients that have no address yet.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::config::Interface;
use crate::error::{Error, Result};
use crate::machine::MacAddr;

/// Asked of the kernel for what arrives: a rack that is powered on asks all at once.
const RECEIVE_BUFFER: usize = 4 << 20;

/// RFC 4291 section 2.7.1.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// A UDP socket on one interface; nothing that arrives elsewhere reaches it.
pub fn udp(interface: &Interface, address: impl Into<IpAddr>, port: u16) -> Result<UdpSocket> {
    let local = SocketAddr::new(address.into(), port);
    let open = || -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
        socket.bind_device(Some(interface.name.as_bytes()))?;
        match local {
            SocketAddr::V4(_) => socket.set_broadcast(true)?,
            SocketAddr::V6(_) => socket.set_only_v6(true)?,
        }
        socket.set_nonblocking(true)?;
        // Past the limit of net.core.rmem_max where we may, up to it where not.
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
            socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        }
        socket.bind(&local.into())?;
        UdpSocket::from_std(socket.into())
    };
    open().map_err(|e| cannot_open(interface, local, e))
}

/// Whether the interface has the address that it is configured with.
pub fn has_address(interface: &Interface) -> Result<()> {
    udp(interface, interface.address, 0).map(|_| ())
}

fn cannot_open(interface: &Interface, local: SocketAddr, e: io::Error) -> Error {
    let (name, address, port) = (&interface.name, local.ip(), local.port());
    match e.kind() {
        io::ErrorKind::AddrInUse => {
            Error::config("boot.port", format!("UDP port {port} on interface {name} is in use by another program"))
                .hint(format!("find it with: ss -ulpn 'sport = :{port}'"))
        }
        io::ErrorKind::AddrNotAvailable => {
            Error::config("boot.address", format!("interface {name} does not have the address {address}"))
                .hint(format!("ip addr add {address}/… dev {name}, or correct boot.interfaces"))
        }
        io::ErrorKind::PermissionDenied => {
            Error::config("boot.permission", format!("not allowed to open UDP port {port} on interface {name}"))
                .hint("run as root, or with CAP_NET_RAW, CAP_NET_ADMIN and CAP_NET_BIND_SERVICE")
        }
        _ if e.raw_os_error() == Some(libc::ENODEV) => no_interface(name),
        _ => Error::config("boot.socket", format!("cannot open UDP port {port} on interface {name}")),
    }
    .because(e)
}

fn no_interface(name: &str) -> Error {
    Error::config("boot.interface", format!("there is no network interface {name}"))
        .hint("ip -brief link lists the interfaces; correct boot.interfaces")
}

/// Sends with `source` as the sender's address, whatever other addresses the interface has.
pub fn send_from(socket: &UdpSocket, source: Ipv4Addr, to: SocketAddrV4, data: &[u8]) -> io::Result<()> {
    let control = packet_info(source);
    let to = SockAddr::from(to);
    let buffers = [io::IoSlice::new(data)];
    let message = socket2::MsgHdr::new().with_addr(&to).with_buffers(&buffers).with_control(&control);
    socket.try_io(Interest::WRITABLE, || SockRef::from(socket).sendmsg(&message, 0)).map(|_| ())
}

/// `struct cmsghdr` { len, level, type } with `struct in_pktinfo` { ifindex 0, spec_dst = source, addr 0 }, padded to 8.
fn packet_info(source: Ipv4Addr) -> [u8; 32] {
    let mut control = [0; 32];
    control[..8].copy_from_slice(&28u64.to_ne_bytes());
    control[8..12].copy_from_slice(&libc::IPPROTO_IP.to_ne_bytes());
    control[12..16].copy_from_slice(&libc::IP_PKTINFO.to_ne_bytes());
    control[20..24].copy_from_slice(&source.octets());
    control
}

/// A packet socket that only sends: to a client that cannot answer ARP, the frame is all there is.
pub struct Link {
    socket: Socket,
    pub mac: MacAddr,
    pub index: u32,
}

impl Link {
    pub fn open(interface: &Interface) -> Result<Self> {
        let name = &interface.name;
        let failed = |e: io::Error| {
            let message = format!("cannot send frames on interface {name}");
            Error::config("boot.socket", message).because(e).hint("run as root, or with CAP_NET_RAW")
        };
        let socket = Socket::new(Domain::PACKET, Type::RAW, None).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let index = rustix::net::netdevice::name_to_index(&socket, name).map_err(|_| no_interface(name))?;
        socket.bind(&link_address(index, 0)).map_err(failed)?;
        let mac = hardware_address(socket.local_addr().map_err(failed)?).ok_or_else(|| {
            Error::config("boot.interface", format!("interface {name} is not Ethernet"))
                .hint("machines boot over Ethernet; name a physical interface, a bridge or a VLAN")
        })?;
        Ok(Self { socket, mac, index })
    }

    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.send(frame).map(|_| ())
    }
}

/// What a listening packet socket is for; the kernel filters, so that nothing else wakes us.
#[derive(Debug, Clone, Copy)]
pub enum Listen {
    ArpReplies,
    /// DHCP packets that a server sent.
    DhcpReplies,
}

impl Listen {
    fn protocol(self) -> u16 {
        (match self {
            Self::ArpReplies => libc::ETH_P_ARP,
            Self::DhcpReplies => libc::ETH_P_IP,
        }) as u16
    }

    /// A classic BPF program over the Ethernet frame; the numbers are jumps forward, when true and when false.
    fn filter(self) -> Vec<SockFilter> {
        const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
        const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
        const LOAD_HEADER: u16 = (libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH) as u16;
        const LOAD_HALF_BEHIND: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_IND) as u16;
        const LOAD_BYTE_BEHIND: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_IND) as u16;
        const IS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        const HAS: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
        const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
        let program: &[(u16, u8, u8, u32)] = match self {
            // Opcode of ARP.
            Self::ArpReplies => &[(LOAD_HALF, 0, 0, 20), (IS, 0, 1, 2), (RETURN, 0, 0, u32::MAX), (RETURN, 0, 0, 0)],
            // UDP, no fragment, from port 67, `op` BOOTREPLY.
            Self::DhcpReplies => &[
                (LOAD_BYTE, 0, 0, 23),
                (IS, 0, 8, 17),
                (LOAD_HALF, 0, 0, 20),
                (HAS, 6, 0, 0x1fff),
                (LOAD_HEADER, 0, 0, 14),
                (LOAD_HALF_BEHIND, 0, 0, 14),
                (IS, 0, 3, 67),
                (LOAD_BYTE_BEHIND, 0, 0, 22),
                (IS, 0, 1, 2),
                (RETURN, 0, 0, u32::MAX),
                (RETURN, 0, 0, 0),
            ],
        };
        program.iter().map(|&(code, yes, no, k)| SockFilter::new(code, yes, no, k)).collect()
    }
}

/// A packet socket that only listens. The type says UDP, and means nothing but datagrams.
pub fn packet(interface: &Interface, index: u32, listen: Listen) -> Result<UdpSocket> {
    let open = || -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        socket.set_nonblocking(true)?;
        socket.attach_filter(&listen.filter())?;
        socket.bind(&link_address(index, listen.protocol()))?;
        UdpSocket::from_std(socket.into())
    };
    open().map_err(|e| no_raw_socket(interface, e))
}

/// A raw ICMP socket on one interface.
pub fn icmp4(interface: &Interface) -> Result<UdpSocket> {
    let open = || -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
        socket.bind_device(Some(interface.name.as_bytes()))?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket.into())
    };
    open().map_err(|e| no_raw_socket(interface, e))
}

fn no_raw_socket(interface: &Interface, e: io::Error) -> Error {
    Error::config("boot.socket", format!("cannot listen for frames on interface {}", interface.name))
        .because(e)
        .hint("run as root, or with CAP_NET_RAW")
}

/// `struct sockaddr_ll` for an interface; protocol 0: nothing is received.
fn link_address(index: u32, protocol: u16) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is plain data, smaller than sockaddr_storage, and zero is a valid value of each field.
    let link: &mut libc::sockaddr_ll = unsafe { storage.view_as() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_ifindex = index as i32;
    link.sll_protocol = protocol.to_be();
    // SAFETY: the storage holds a sockaddr_ll, as the family says, of this length.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}

fn hardware_address(address: SockAddr) -> Option<MacAddr> {
    if address.domain() != Domain::PACKET || (address.len() as usize) < size_of::<libc::sockaddr_ll>() - 2 {
        return None;
    }
    let mut storage = address.as_storage();
    // SAFETY: the family is AF_PACKET, so the kernel filled in a sockaddr_ll.
    let link: &libc::sockaddr_ll = unsafe { storage.view_as() };
    let mac = link.sll_addr.first_chunk::<6>()?;
    (link.sll_hatype == libc::ARPHRD_ETHER && link.sll_halen == 6).then_some(MacAddr(*mac))
}

/// A raw ICMPv6 socket on one interface. The kernel fills in and checks checksums (RFC 3542 section 3.1). The type says
/// UDP, and means nothing but datagrams with IPv6 addresses; ports are 0.
pub fn icmp6(interface: &Interface, index: u32) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.bind_device(Some(interface.name.as_bytes()))?;
    socket.set_nonblocking(true)?;
    socket.set_multicast_hops_v6(255)?;
    socket.set_unicast_hops_v6(255)?;
    socket.set_multicast_loop_v6(false)?;
    socket.set_multicast_if_v6(index)?;
    socket.join_multicast_v6(&ALL_ROUTERS, index)?;
    UdpSocket::from_std(socket.into())
}

/// Every host on the link.
pub fn all_nodes(index: u32) -> SocketAddrV6 {
    SocketAddrV6::new(ALL_NODES, 0, 0, index)
}

/// Ethernet II, IPv4 and UDP headers before the payload. `None` when it does not fit one IPv4 packet.
pub fn frame(from: (MacAddr, SocketAddrV4), to: (MacAddr, SocketAddrV4), payload: &[u8]) -> Option<Vec<u8>> {
    let udp_length = u16::try_from(payload.len() + 8).ok()?;
    let ip_length = udp_length.checked_add(20)?;
    let (source, destination) = (from.1.ip().octets(), to.1.ip().octets());

    let mut ip = [0u8; 20];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&ip_length.to_be_bytes());
    ip[6] = 0x40; // do not fragment
    ip[8] = 64;
    ip[9] = 17;
    ip[12..16].copy_from_slice(&source);
    ip[16..20].copy_from_slice(&destination);
    let sum = checksum(0, &ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    let mut udp = [0u8; 8];
    udp[0..2].copy_from_slice(&from.1.port().to_be_bytes());
    udp[2..4].copy_from_slice(&to.1.port().to_be_bytes());
    udp[4..6].copy_from_slice(&udp_length.to_be_bytes());
    let pseudo = add(add(17 + u32::from(udp_length), &source), &destination);
    // RFC 768: a sum of zero is sent as ones, since zero means "no checksum".
    let sum = match checksum(add(pseudo, &udp), payload) {
        0 => 0xffff,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());

    let mut frame = Vec::with_capacity(14 + usize::from(ip_length));
    frame.extend(to.0.0);
    frame.extend(from.0.0);
    frame.extend([0x08, 0x00]);
    frame.extend(ip);
    frame.extend(udp);
    frame.extend(payload);
    Some(frame)
}

/// One's complement of the one's complement sum (RFC 1071).
pub fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = add(start, bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// At most 32 Ki words of 16 bits: the sum cannot overflow.
fn add(start: u32, bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(start, |sum, pair| {
        let word = match *pair {
            [high, low] => u16::from_be_bytes([high, low]),
            [high] => u16::from_be_bytes([high, 0]),
            _ => 0,
        };
        sum + u32::from(word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_carry_right_checksums() {
        let from = (MacAddr([2, 0, 0, 0, 0, 1]), "10.77.0.1:67".parse().unwrap());
        let to = (MacAddr([0x52, 0x54, 0, 0, 0, 9]), "10.77.2.5:68".parse().unwrap());
        for payload in [&b"odd"[..], b"even", &[0xff; 548]] {
            let frame = frame(from, to, payload).unwrap();
            assert_eq!(frame.len(), 42 + payload.len());
            assert_eq!(&frame[..14], [0x52, 0x54, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 8, 0]);
            // A header or datagram with a right checksum sums to zero (RFC 1071 section 1).
            assert_eq!(checksum(0, &frame[14..34]), 0);
            let udp = &frame[34..];
            let pseudo = add(add(17 + udp.len() as u32, &frame[26..30]), &frame[30..34]);
            assert_eq!(checksum(pseudo, udp), 0);
        }
        assert!(super::frame(from, to, &vec![0; 65_536]).is_none());
    }

    #[test]
    fn a_known_header_checksum() {
        // The example of RFC 1071 section 3.
        assert_eq!(checksum(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }
}
