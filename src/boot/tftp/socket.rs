//! The UDP sockets of TFTP: one to ask at for each address family, and one for each transfer, connected to its client, so
//! that the kernel keeps strangers away from it.

use std::io::{self, IoSlice};
use std::mem::zeroed;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::net::sockopt;
use socket2::{Domain, MsgHdr, Protocol, SockAddr, SockRef, Socket, Type};

use super::packet::MAX_BLOCK;
use super::transfer::{Transfer, Window};
use crate::boot::config::Interface;
use crate::boot::net;
use crate::error::{Kind, OrFail, Result};

const PORT: u16 = 69;
/// Packets that the kernel takes in one call: `UDP_MAX_SEGMENTS` of linux/udp.h before Linux 6.9.
const SEGMENTS: usize = 64;
/// Bytes that it takes in one call: the largest IPv4 packet, less the headers of IP and UDP.
const SEGMENTED: usize = 65_507;

/// Where clients ask.
pub struct Listener {
    socket: UdpSocket,
    /// The address that is asked. `None`: any IPv6 address of the interface, and each request says which.
    local: Option<IpAddr>,
}

impl Listener {
    /// On the interface's IPv4 address.
    pub fn v4(interface: &Interface) -> Result<Self> {
        let socket = blocking(net::udp(interface, interface.address, PORT)?, interface)?;
        Ok(Self { socket, local: Some(interface.address.into()) })
    }

    /// On every IPv6 address that the interface has or will have, the link-local one included: UEFI asks there. `None`
    /// where the kernel has no IPv6.
    pub fn v6(interface: &Interface) -> Result<Option<Self>> {
        if Socket::new(Domain::IPV6, Type::DGRAM, None).is_err() {
            return Ok(None);
        }
        let socket = blocking(net::udp(interface, Ipv6Addr::UNSPECIFIED, PORT)?, interface)?;
        option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)
            .or_fail(Kind::Config, "boot.socket", || format!("cannot serve TFTP over IPv6 on {}", interface.name))?;
        Ok(Some(Self { socket, local: None }))
    }

    /// Length, who asked, and which of our addresses. Does not wait.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr, IpAddr)> {
        match self.local {
            Some(local) => self.socket.recv_from(buffer).map(|(length, client)| (length, client, local)),
            None => receive_v6(&self.socket, buffer),
        }
    }

    /// Whether a request to this address came here.
    pub fn serves(&self, local: IpAddr) -> bool {
        self.local.map_or(local.is_ipv6(), |own| own == local)
    }

    /// From the address that was asked.
    pub fn send_to(&self, packet: &[u8], client: SocketAddr, local: IpAddr) -> io::Result<()> {
        let IpAddr::V6(local) = local else { return self.socket.send_to(packet, client).map(drop) };
        let control = packet_info(local);
        let to = SockAddr::from(client);
        let buffers = [IoSlice::new(packet)];
        let message = MsgHdr::new().with_addr(&to).with_buffers(&buffers).with_control(&control);
        SockRef::from(&self.socket).sendmsg(&message, 0).map(drop)
    }
}

/// `struct cmsghdr` { len, level, type } with `struct in6_pktinfo` { addr = source, ifindex 0 }, padded to 8.
fn packet_info(source: Ipv6Addr) -> [u8; 40] {
    let mut control = [0; 40];
    control[..8].copy_from_slice(&36u64.to_ne_bytes());
    control[8..12].copy_from_slice(&libc::IPPROTO_IPV6.to_ne_bytes());
    control[12..16].copy_from_slice(&libc::IPV6_PKTINFO.to_ne_bytes());
    control[16..32].copy_from_slice(&source.octets());
    control
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Out of the hands of the runtime, which is where the other boot services' sockets are; it stays non-blocking.
fn blocking(socket: tokio::net::UdpSocket, interface: &Interface) -> Result<UdpSocket> {
    socket.into_std().or_fail(Kind::Internal, "boot.socket", || format!("no TFTP socket on {}", interface.name))
}

/// `recvmsg` with the address that the packet was sent to, out of `IPV6_PKTINFO` (RFC 3542 section 6.2).
fn receive_v6(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr, IpAddr)> {
    // SAFETY: all-zero is a valid value of these C structures; the pointers in `message` are to buffers that outlive the
    // call, with their lengths. The macros stay within the control buffer that the kernel wrote, and the buffer is
    // aligned for `cmsghdr`.
    let (length, from, local) = unsafe {
        let mut from: libc::sockaddr_in6 = zeroed();
        let mut control = [0u64; 16];
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let mut message: libc::msghdr = zeroed();
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = size_of_val(&from) as libc::socklen_t;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        let length = libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0);
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut local = None;
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::IPPROTO_IPV6 && (*header).cmsg_type == libc::IPV6_PKTINFO {
                let info: libc::in6_pktinfo = libc::CMSG_DATA(header).cast::<libc::in6_pktinfo>().read_unaligned();
                local = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr));
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
        (length as usize, from, local)
    };
    let address = Ipv6Addr::from(from.sin6_addr.s6_addr);
    let client = SocketAddrV6::new(address, u16::from_be(from.sin6_port), 0, from.sin6_scope_id);
    let local = local.ok_or_else(|| io::Error::other("the kernel does not say which address was asked"))?;
    Ok((length, client.into(), local.into()))
}

/// The socket of one transfer: our TID and the client's.
pub struct Peer {
    socket: UdpSocket,
    /// The kernel cuts what it gets into packets (UDP segmentation offload): one call for a window.
    segmented: bool,
}

impl Peer {
    /// From the address that was asked, on a port that the kernel draws.
    pub fn connect(interface: &Interface, local: IpAddr, client: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(client), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        socket.bind_device(Some(interface.name.as_bytes()))?;
        let local = match (local, client) {
            (IpAddr::V6(ip), SocketAddr::V6(client)) => SocketAddrV6::new(ip, 0, 0, client.scope_id()).into(),
            (ip, _) => SocketAddr::new(ip, 0),
        };
        socket.bind(&local.into())?;
        socket.connect(&client.into())?;
        Ok(Self { socket: socket.into(), segmented: false })
    }

    /// The largest block that reaches the client in one piece, as far as the kernel knows the path: its MTU, less the
    /// headers of IP, UDP and TFTP. A block in fragments is lost with each of them, PXE ROMs do not put it together, and
    /// windows are as fast.
    pub fn largest_block(&self) -> io::Result<u16> {
        let (mtu, headers) = match self.socket.peer_addr()? {
            SocketAddr::V4(_) => (sockopt::ip_mtu(&self.socket)?, 20 + 8 + 4),
            SocketAddr::V6(_) => (sockopt::ipv6_mtu(&self.socket)?, 40 + 8 + 4),
        };
        Ok(mtu.saturating_sub(headers).clamp(8, MAX_BLOCK.into()) as u16)
    }

    /// Does not wait.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.recv(buffer)
    }

    /// Makes ready for many packets of this size; without the kernel's help they go one by one.
    pub fn prepare(&mut self, transfer: &Transfer) {
        if transfer.has_window() {
            self.segmented = self.segment(transfer.packet_size());
        }
    }

    fn segment(&self, size: usize) -> bool {
        option(&self.socket, libc::SOL_UDP, libc::UDP_SEGMENT, size as libc::c_int).is_ok()
    }

    pub fn send(&mut self, transfer: &Transfer) -> io::Result<()> {
        let numbers = match transfer.window() {
            Window::OptionAck(packet) => return self.socket.send(packet).map(drop),
            Window::Blocks(numbers) => numbers,
        };
        if self.segmented && numbers.start() != numbers.end() {
            match self.send_segmented(transfer, *numbers.start(), *numbers.end()) {
                // EIO: the device cannot (before Linux 6.11); EINVAL: the path became narrower.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EIO | libc::EINVAL)) => {
                    self.segment(0);
                    self.segmented = false;
                }
                sent => return sent,
            }
        }
        for number in numbers {
            let (header, bytes) = transfer.block(number);
            self.send_parts(&[IoSlice::new(&header), IoSlice::new(bytes)])?;
        }
        Ok(())
    }

    fn send_segmented(&self, transfer: &Transfer, first: u64, last: u64) -> io::Result<()> {
        let at_once = (SEGMENTED / transfer.packet_size()).clamp(1, SEGMENTS);
        let mut next = first;
        while next <= last {
            let mut blocks = [([0; 4], &[][..]); SEGMENTS];
            let mut parts = [IoSlice::new(&[]); 2 * SEGMENTS];
            let mut count = 0;
            for (block, number) in blocks.iter_mut().take(at_once).zip(next..=last) {
                *block = transfer.block(number);
                count += 1;
            }
            for (pair, (header, bytes)) in parts.chunks_exact_mut(2).zip(&blocks) {
                pair.copy_from_slice(&[IoSlice::new(header), IoSlice::new(bytes)]);
            }
            self.send_parts(parts.get(..2 * count).unwrap_or_default())?;
            next += count as u64;
        }
        Ok(())
    }

    fn send_parts(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        rustix::io::writev(&self.socket, parts)?;
        Ok(())
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Socket options that neither rustix nor socket2 knows.
fn option(socket: &UdpSocket, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one int.
    let set = unsafe {
        let value = (&raw const value).cast();
        libc::setsockopt(socket.as_raw_fd(), level, name, value, size_of::<libc::c_int>() as libc::socklen_t)
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
