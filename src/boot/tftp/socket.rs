//! The UDP sockets of TFTP for each address family: one to ask at, and some that transfers share, each of them a TID
//! (RFC 1350 section 4) of ours. A socket for each transfer would let the kernel filter strangers and costs a sixth of the
//! speed, a file descriptor for each machine, and some 20 us for each request of a flood.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use rustix::net::sockopt;
use socket2::{Domain, Socket, Type};

use super::packet::MAX_BLOCK;
use crate::boot::config::Interface;
use crate::boot::net;
use crate::error::{Kind, OrFail, Result};

const PORT: u16 = 69;
/// TIDs of ours. A client that asks again gets another one, so that nothing under way belongs to its new transfer.
pub const TIDS: usize = 4;

/// The sockets of one address family.
pub struct Family {
    pub listener: UdpSocket,
    pub ports: Vec<UdpSocket>,
    /// The address that is asked. `None`: any IPv6 address of the interface, and each request says which.
    pub local: Option<IpAddr>,
    /// Connected to one client after the other, only to ask the kernel for the way.
    path: UdpSocket,
}

impl Family {
    /// On the interface's IPv4 address.
    pub fn v4(interface: &Interface) -> Result<Self> {
        Self::open(interface, interface.address.into())
    }

    /// On every IPv6 address that the interface has or will have, the link-local one included: UEFI asks there. `None`
    /// where the kernel has no IPv6.
    pub fn v6(interface: &Interface) -> Result<Option<Self>> {
        if Socket::new(Domain::IPV6, Type::DGRAM, None).is_err() {
            return Ok(None);
        }
        let family = Self::open(interface, Ipv6Addr::UNSPECIFIED.into())?;
        tell_address(&family.listener)
            .or_fail(Kind::Config, "boot.socket", || format!("cannot serve TFTP over IPv6 on {}", interface.name))?;
        Ok(Some(family))
    }

    fn open(interface: &Interface, address: IpAddr) -> Result<Self> {
        // Out of the hands of the runtime, where the other boot services' sockets are; it stays non-blocking.
        let socket = |port| {
            let socket = net::udp(interface, address, port)?.into_std();
            socket.or_fail(Kind::Internal, "boot.socket", || format!("no TFTP socket on {}", interface.name))
        };
        Ok(Self {
            listener: socket(PORT)?,
            ports: (0..TIDS).map(|_| socket(0)).collect::<Result<_>>()?,
            local: Some(address).filter(|a| !a.is_unspecified()),
            path: socket(0)?,
        })
    }

    /// The largest block that reaches the client in one piece, as far as the kernel knows the path: its MTU, less the
    /// headers of IP, UDP and TFTP. A block in fragments is lost with each of them, PXE ROMs do not put it together, and
    /// windows are as fast.
    pub fn largest_block(&self, client: SocketAddr) -> io::Result<u16> {
        self.path.connect(client)?;
        let (mtu, headers) = match client {
            SocketAddr::V4(_) => (sockopt::ip_mtu(&self.path)?, 20 + 8 + 4),
            SocketAddr::V6(_) => (sockopt::ipv6_mtu(&self.path)?, 40 + 8 + 4),
        };
        Ok(mtu.saturating_sub(headers).clamp(8, MAX_BLOCK.into()) as u16)
    }
}

/// With each packet, the address that it was sent to (RFC 3542 section 6.1).
pub fn tell_address(socket: &UdpSocket) -> io::Result<()> {
    // SAFETY: the kernel reads one int.
    let set = unsafe {
        let yes: libc::c_int = 1;
        let length = size_of_val(&yes) as libc::socklen_t;
        let (level, option) = (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO);
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const yes).cast(), length)
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
