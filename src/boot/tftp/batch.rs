//! Many packets in one system call, in and out. Under a wave of machines that go in lock-step this is a seventh of the
//! server's time. Nothing is allocated on the way.

use std::io;
use std::mem::zeroed;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;

/// Packets that are read, or sent, at once.
pub const BATCH: usize = 64;
/// Larger than any request: RFC 2347 section 2 has 512.
const BUFFER: usize = 1024;
/// Bytes to be sent at once.
const FULL: usize = 128 << 10;
/// `sizeof(struct sockaddr_in6)`, the larger of the two.
const ADDRESS: usize = 28;
/// `IPV6_PKTINFO` and `UDP_SEGMENT`, each behind its `cmsghdr` and padded to 8.
const CONTROL: usize = 40 + 24;

/// A packet and what the kernel says, or is told, of it.
#[repr(C, align(8))]
struct Place<const N: usize> {
    /// `struct cmsghdr` and its data, one or two of them.
    control: [u8; CONTROL],
    /// `struct sockaddr_in` or `sockaddr_in6`.
    address: [u8; ADDRESS],
    bytes: [u8; N],
}

/// The kernel's description of a batch. The pointers in it are to memory that its owner has on the heap.
struct Headers {
    messages: Vec<libc::mmsghdr>,
    parts: Vec<libc::iovec>,
}

// SAFETY: whoever has the headers has the memory that they point to, and both move together.
unsafe impl Send for Headers {}

impl Headers {
    fn new() -> Self {
        Self { messages: Vec::with_capacity(BATCH), parts: Vec::with_capacity(BATCH) }
    }
}

/// Where the kernel puts what arrives.
pub struct Inbox {
    places: Box<[Place<BUFFER>]>,
    headers: Headers,
}

/// One packet that arrived.
pub struct Arrived<'a> {
    pub bytes: &'a [u8],
    pub from: SocketAddr,
    /// Which of our addresses it was sent to, where the socket says so.
    pub to: Option<IpAddr>,
}

impl Inbox {
    pub fn new() -> Self {
        let place = || Place { control: [0; CONTROL], address: [0; ADDRESS], bytes: [0; BUFFER] };
        let mut places: Box<[_]> = (0..BATCH).map(|_| place()).collect();
        let mut headers = Headers::new();
        let part = |p: &mut Place<BUFFER>| libc::iovec { iov_base: p.bytes.as_mut_ptr().cast(), iov_len: BUFFER };
        headers.parts.extend(places.iter_mut().map(part));
        for (place, part) in places.iter_mut().zip(&mut headers.parts) {
            headers.messages.push(message(&mut place.address, &mut place.control, part));
        }
        Self { places, headers }
    }

    /// How many packets there are now, for [`Inbox::get`]. Does not wait.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let Headers { messages, .. } = &mut self.headers;
        // SAFETY: the messages are BATCH, and each points to a place of its own, with the lengths below.
        let count = unsafe {
            let none = std::ptr::null_mut();
            libc::recvmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), BATCH as u32, libc::MSG_DONTWAIT, none)
        };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        // For the next time: the kernel wrote what it used of these.
        for message in messages.iter_mut().take(count as usize) {
            (message.msg_hdr.msg_namelen, message.msg_hdr.msg_controllen) = (ADDRESS as u32, CONTROL);
        }
        Ok(count as usize)
    }

    /// `None`: there is no such packet, or nothing can be sent back to where it came from.
    pub fn get(&self, n: usize) -> Option<Arrived<'_>> {
        let (place, message) = (self.places.get(n)?, self.headers.messages.get(n)?);
        let bytes = place.bytes.get(..message.msg_len as usize)?;
        Some(Arrived { bytes, from: decode(&place.address)?, to: asked_address(&place.control) })
    }
}

/// Packets to be sent from one socket.
pub struct Outbox {
    /// The content of all of them, end to end.
    bytes: Vec<u8>,
    packets: Vec<Outgoing>,
    headers: Headers,
}

struct Outgoing {
    /// Whose packet it is, for its sender.
    key: usize,
    /// Where it ends in `bytes`.
    end: usize,
    place: Place<0>,
    control: usize,
}

impl Outbox {
    pub fn new() -> Self {
        Self { bytes: Vec::new(), packets: Vec::with_capacity(BATCH), headers: Headers::new() }
    }

    /// Time to send: more would not be in the processor's cache any more when the kernel reads it.
    pub fn is_full(&self) -> bool {
        self.packets.len() >= BATCH || self.bytes.len() >= FULL
    }

    /// From `local`, where the socket has several addresses. With `segment`, the kernel cuts the bytes into packets of that
    /// size (UDP segmentation offload).
    pub fn push(
        &mut self,
        key: usize,
        to: SocketAddr,
        local: Option<IpAddr>,
        segment: Option<u16>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        write(&mut self.bytes);
        let mut place = Place { control: [0; CONTROL], address: encode(to), bytes: [] };
        let control = write_control(&mut place.control, local, segment);
        self.packets.push(Outgoing { key, end: self.bytes.len(), place, control });
    }

    /// Sends everything; `failed` hears of what the kernel did not take.
    pub fn send(&mut self, socket: &UdpSocket, mut failed: impl FnMut(usize, io::Error)) {
        let Self { bytes, packets, headers: Headers { messages, parts } } = self;
        let (mut rest, mut before) = (bytes.as_mut_slice(), 0);
        for packet in packets.iter() {
            let (content, behind) = std::mem::take(&mut rest).split_at_mut(packet.end - before);
            parts.push(libc::iovec { iov_base: content.as_mut_ptr().cast(), iov_len: content.len() });
            (rest, before) = (behind, packet.end);
        }
        for (packet, part) in packets.iter_mut().zip(parts.iter_mut()) {
            let mut message = message(&mut packet.place.address, &mut packet.place.control, part);
            message.msg_hdr.msg_controllen = packet.control;
            messages.push(message);
        }
        let mut left = messages.as_mut_slice();
        let mut keys = packets.iter().map(|p| p.key);
        while !left.is_empty() {
            // SAFETY: each message points to a packet, a part and bytes, none of which moves until they are cleared below.
            let sent =
                unsafe { libc::sendmmsg(socket.as_raw_fd(), left.as_mut_ptr(), left.len() as u32, libc::MSG_DONTWAIT) };
            // An error is about the first message; the others are tried again.
            let done = usize::try_from(sent).unwrap_or(1).max(1);
            let last = keys.nth(done - 1);
            if sent < 0 {
                last.into_iter().for_each(|key| failed(key, io::Error::last_os_error()));
            }
            left = left.get_mut(done..).unwrap_or_default();
        }
        messages.clear();
        parts.clear();
        packets.clear();
        bytes.clear();
    }
}

fn message(address: &mut [u8; ADDRESS], control: &mut [u8; CONTROL], part: &mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: all-zero is a valid value of this C structure.
    let mut message: libc::mmsghdr = unsafe { zeroed() };
    let header = &mut message.msg_hdr;
    (header.msg_iov, header.msg_iovlen) = (part, 1);
    (header.msg_name, header.msg_namelen) = (address.as_mut_ptr().cast(), ADDRESS as u32);
    (header.msg_control, header.msg_controllen) = (control.as_mut_ptr().cast(), CONTROL);
    message
}

/// `struct sockaddr_in` { family, port, address } or `sockaddr_in6` { family, port, flow, address, scope }.
fn encode(address: SocketAddr) -> [u8; ADDRESS] {
    let mut bytes = [0; ADDRESS];
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u16;
    bytes[..2].copy_from_slice(&family.to_ne_bytes());
    bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
    match address {
        SocketAddr::V4(address) => bytes[4..8].copy_from_slice(&address.ip().octets()),
        SocketAddr::V6(address) => {
            bytes[8..24].copy_from_slice(&address.ip().octets());
            bytes[24..28].copy_from_slice(&address.scope_id().to_ne_bytes());
        }
    }
    bytes
}

/// `None`: neither of the two, or port 0.
fn decode(bytes: &[u8; ADDRESS]) -> Option<SocketAddr> {
    let [f0, f1, p0, p1, rest @ ..] = *bytes;
    let port = Some(u16::from_be_bytes([p0, p1])).filter(|p| *p != 0)?;
    match i32::from(u16::from_ne_bytes([f0, f1])) {
        libc::AF_INET => {
            let ip: [u8; 4] = *rest.first_chunk()?;
            Some(SocketAddrV4::new(ip.into(), port).into())
        }
        libc::AF_INET6 => {
            let ip: [u8; 16] = *rest.get(4..)?.first_chunk()?;
            let scope: [u8; 4] = *rest.get(20..)?.first_chunk()?;
            Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, u32::from_ne_bytes(scope)).into())
        }
        _ => None,
    }
}

/// `struct in6_pktinfo` { address, interface }, which is the only thing our sockets are told (RFC 3542 section 6.2).
fn asked_address(control: &[u8; CONTROL]) -> Option<IpAddr> {
    let word = |at: usize| Some(i32::from_ne_bytes(*control.get(at..)?.first_chunk()?));
    let there = word(0)? == 36 && word(8)? == libc::IPPROTO_IPV6 && word(12)? == libc::IPV6_PKTINFO;
    let ip: [u8; 16] = *control.get(16..)?.first_chunk()?;
    there.then_some(Ipv6Addr::from(ip).into())
}

/// `struct cmsghdr` { length, level, type } and what it is about. Returns how much there is of it.
fn write_control(control: &mut [u8; CONTROL], local: Option<IpAddr>, segment: Option<u16>) -> usize {
    let mut end = 0;
    let mut write = |level: i32, kind: i32, data: &[u8]| {
        let header = [&(16 + data.len()).to_ne_bytes()[..], &level.to_ne_bytes(), &kind.to_ne_bytes(), data].concat();
        if let Some(place) = control.get_mut(end..end + header.len()) {
            place.copy_from_slice(&header);
            end += header.len().next_multiple_of(8);
        }
    };
    if let Some(IpAddr::V6(source)) = local {
        let mut info = [0; 20];
        info[..16].copy_from_slice(&source.octets());
        write(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
    }
    if let Some(size) = segment {
        write(libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(address: &str) -> UdpSocket {
        let socket = UdpSocket::bind(address).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    }

    #[test]
    fn addresses_are_written_as_the_kernel_reads_them() {
        for address in ["10.77.0.1:69", "255.255.255.255:65535", "[fe80::1%7]:2070", "[::1]:1"] {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(decode(&encode(address)), Some(address));
        }
        assert_eq!(decode(&[0; ADDRESS]), None);
        assert_eq!(decode(&encode("10.77.0.1:0".parse().unwrap())), None, "nobody is there");
    }

    #[test]
    fn packets_go_out_and_come_in_together() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b) = (socket(local), socket(local));
            let (from, to) = (a.local_addr().unwrap(), b.local_addr().unwrap());
            let (mut outbox, mut inbox) = (Outbox::new(), Inbox::new());
            for round in 0..3u8 {
                for n in 0..5u8 {
                    outbox.push(0, to, None, None, |b| b.extend([round, n, n, n]));
                }
                outbox.send(&a, |_, e| panic!("{e}"));
                assert_eq!(inbox.receive(&b).unwrap(), 5);
                for n in 0..5u8 {
                    let arrived = inbox.get(n.into()).unwrap();
                    assert_eq!((arrived.bytes, arrived.from, arrived.to), (&[round, n, n, n][..], from, None));
                }
                assert_eq!(inbox.receive(&b).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            }
        }
    }

    #[test]
    fn the_kernel_cuts_segments_and_says_who_was_asked() {
        let (a, b) = (socket("[::1]:0"), socket("[::]:0"));
        super::super::socket::tell_address(&b).unwrap();
        let to = SocketAddr::new("::1".parse().unwrap(), b.local_addr().unwrap().port());
        let (mut outbox, mut inbox) = (Outbox::new(), Inbox::new());
        outbox.push(0, to, Some(to.ip()), Some(4), |b| b.extend(b"onceupontime"));
        outbox.send(&a, |_, e| panic!("{e}"));
        assert_eq!(inbox.receive(&b).unwrap(), 3);
        let words: Vec<_> = (0..3).filter_map(|n| Some(inbox.get(n)?.bytes.to_vec())).collect();
        assert_eq!(words, [b"once", b"upon", b"time"]);
        assert!((0..3).all(|n| inbox.get(n).unwrap().to == Some(to.ip())));
    }

    #[test]
    fn what_cannot_be_sent_is_named_and_the_rest_goes_out() {
        let (a, b) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
        let (good, bad) = (b.local_addr().unwrap(), "255.255.255.255:9".parse().unwrap());
        let (mut outbox, mut inbox, mut failed) = (Outbox::new(), Inbox::new(), Vec::new());
        for (key, to) in [(7, bad), (8, good), (9, bad), (10, good)] {
            outbox.push(key, to, None, None, |b| b.push(b'x'));
        }
        outbox.send(&a, |key, e| failed.push((key, e.kind())));
        assert_eq!(failed, [(7, io::ErrorKind::PermissionDenied), (9, io::ErrorKind::PermissionDenied)]);
        assert_eq!(inbox.receive(&b).unwrap(), 2);
    }
}
