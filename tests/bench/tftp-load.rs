//! Machines that boot by TFTP, without end: the load for tests/bench/tftp.sh.
//!
//! `tftp-load LINK SERVER MAC FILE MACHINES BLOCK WINDOW SECONDS` prints what the machines received altogether, in MB/s.
//! MAC is the server's.
//!
//! Each machine has a MAC and an IPv4 address of its own (10.17.0.0 and up) and fetches FILE again and again. All of them
//! live in this one program on a packet socket with no network stack under it: the load must cost less than the server
//! does, or it is the load that is measured. Like firmware it polls its card. Blocks are counted by number and length and
//! not looked into; that a server sends the right ones is checked by other means.

use std::error::Error;
use std::io;
use std::mem::zeroed;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

/// Frames that the kernel hands over, or takes, in one call.
const BATCH: usize = 256;
/// Of a frame this much is looked at: the headers, and an OACK as a whole.
const SNAP: usize = 160;
/// A machine that hears nothing says the last thing again.
const PATIENCE: Duration = Duration::from_secs(1);
/// Not counted: in it the machines are switched on.
const WARM_UP: Duration = Duration::from_millis(300);
/// Frames that wait for this program.
const RECEIVE_BUFFER: usize = 256 << 20;
/// Ethernet, IPv4 without options, UDP.
const HEADERS: usize = 14 + 20 + 8;

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo bench` adds --bench to the arguments of every benchmark.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [link, server, mac, file, machines, block, window, seconds] = args.as_slice() else {
        return Err("usage: tftp-load LINK SERVER MAC FILE MACHINES BLOCK WINDOW SECONDS".into());
    };
    let mut request = format!("\0\x01{file}\0octet\0blksize\0{block}\0tsize\x000\0");
    if window != "1" {
        request += &format!("windowsize\0{window}\0");
    }
    let mac: Vec<u8> = mac.split(':').map(|b| u8::from_str_radix(b, 16)).collect::<Result<_, _>>()?;
    let server = (mac.try_into().map_err(|_| "no MAC address")?, server.parse()?);
    let mut load = Load {
        card: card(link)?,
        machines: (0..machines.parse()?).map(|n| Machine::new(n, server, request.clone().into())).collect(),
        started: 0,
        total: Total::default(),
    };
    load.run(WARM_UP)?;
    load.total = Total::default();
    let took = load.run(Duration::from_secs_f64(seconds.parse()?))?;
    let Total { bytes, fetches, repeats, errors } = load.total;
    let agreed = load.machines.first().filter(|_| bytes > 0 && errors == 0);
    let Machine { block, window, .. } = agreed.ok_or(format!("{bytes} bytes, {errors} errors"))?;
    let rate = bytes as f64 / 1e6 / took.as_secs_f64();
    println!("MB/s={rate:.1} fetches={fetches} repeats={repeats} blksize={block} windowsize={window}");
    Ok(())
}

#[derive(Default)]
struct Total {
    bytes: u64,
    fetches: u64,
    repeats: u64,
    errors: u64,
}

struct Load {
    card: Socket,
    machines: Vec<Machine>,
    /// Machines that asked for their first file.
    started: usize,
    total: Total,
}

impl Load {
    /// How long it took.
    fn run(&mut self, span: Duration) -> io::Result<Duration> {
        let start = Instant::now();
        let mut looked = start;
        let (mut received, mut out) = (Received::new(), Out::default());
        loop {
            let now = Instant::now();
            if now - start > span {
                return Ok(now - start);
            }
            // One after the other, as nobody switches them on in the same microsecond.
            if let Some(machine) = self.machines.get_mut(self.started) {
                machine.ask(now, &mut out);
                self.started += 1;
            }
            for (frame, length) in received.read(&self.card)? {
                if let Some(machine) = receiver(frame).and_then(|n| self.machines.get_mut(n)) {
                    machine.hear(frame, length, now, &mut self.total, &mut out);
                }
            }
            if now - looked > PATIENCE / 10 {
                looked = now;
                for machine in self.machines.iter_mut().take(self.started).filter(|m| now - m.heard > PATIENCE) {
                    machine.heard = now;
                    machine.repeat(&mut out);
                    self.total.repeats += 1;
                }
            }
            out.send(&self.card)?;
        }
    }
}

fn address(machine: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 17, 0, 0)) + machine as u32)
}

fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [2, 0, a, b, c, d]
}

/// Which machine a frame with UDP over IPv4 is for.
fn receiver(frame: &[u8]) -> Option<usize> {
    let udp = frame.get(14) == Some(&0x45) && frame.get(23) == Some(&17);
    let to: [u8; 4] = frame.get(30..34)?.try_into().ok()?;
    udp.then_some(u32::from(Ipv4Addr::from(to)).wrapping_sub(u32::from(address(0))) as usize)
}

struct Machine {
    address: Ipv4Addr,
    server: ([u8; 6], Ipv4Addr),
    request: Vec<u8>,
    /// A new one for each transfer.
    port: u16,
    /// The server's TID, once it answered.
    peer: Option<u16>,
    block: usize,
    window: usize,
    /// The last block that came in order.
    held: u64,
    /// Blocks since the last ACK.
    unanswered: usize,
    /// What the server says, and what came.
    size: u64,
    got: u64,
    heard: Instant,
}

impl Machine {
    fn new(n: usize, server: ([u8; 6], Ipv4Addr), request: Vec<u8>) -> Self {
        let (address, heard) = (address(n), Instant::now());
        let (held, unanswered, size, got) = (0, 0, 0, 0);
        let (port, peer, block, window) = (2000, None, 512, 1);
        Self { address, server, request, port, peer, block, window, held, unanswered, size, got, heard }
    }

    fn ask(&mut self, now: Instant, out: &mut Out) {
        self.port = if self.port == 60_000 { 2000 } else { self.port + 1 };
        (self.peer, self.held, self.unanswered, self.size, self.got, self.heard) = (None, 0, 0, 0, 0, now);
        self.repeat(out);
    }

    fn repeat(&self, out: &mut Out) {
        match self.peer {
            None => self.say(69, &self.request, out),
            Some(peer) => {
                let [high, low] = (self.held as u16).to_be_bytes();
                self.say(peer, &[0, 4, high, low], out);
            }
        }
    }

    fn acknowledge(&mut self, out: &mut Out) {
        self.unanswered = 0;
        self.repeat(out);
    }

    /// UDP without a checksum, which IPv4 allows (RFC 768).
    fn say(&self, port: u16, payload: &[u8], out: &mut Out) {
        let mut ip = [0u8; 20];
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&(28 + payload.len() as u16).to_be_bytes());
        (ip[6], ip[8], ip[9]) = (0x40, 64, 17);
        ip[12..16].copy_from_slice(&self.address.octets());
        ip[16..20].copy_from_slice(&self.server.1.octets());
        let sum: u32 = ip.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let udp = [self.port, port, 8 + payload.len() as u16, 0].map(u16::to_be_bytes).concat();
        out.push(&[&self.server.0, &mac(self.address), &[8, 0], &ip, &udp, payload]);
    }

    fn hear(&mut self, frame: &[u8], length: usize, now: Instant, total: &mut Total, out: &mut Out) {
        let word = |at: usize| frame.get(at..at + 2).map_or(0, |w| u16::from_be_bytes([w[0], w[1]]));
        let (from, to, code, number) = (word(34), word(36), word(HEADERS), word(HEADERS + 2));
        if to != self.port || *self.peer.get_or_insert(from) != from {
            return;
        }
        match code {
            3 => self.data(number, length.saturating_sub(HEADERS + 4), now, total, out),
            6 if self.held == 0 => {
                self.options(frame.get(HEADERS + 2..length.min(frame.len())).unwrap_or_default());
                self.heard = now;
                self.acknowledge(out);
            }
            5 => {
                total.errors += 1;
                self.ask(now, out);
            }
            _ => {}
        }
    }

    fn options(&mut self, bytes: &[u8]) {
        (self.block, self.window) = (512, 1);
        let mut words = bytes.split(|b| *b == 0).map(|w| std::str::from_utf8(w).unwrap_or_default());
        while let (Some(name), Some(value)) = (words.next(), words.next()) {
            let value: usize = value.parse().unwrap_or_default();
            match name {
                "blksize" => self.block = value,
                "windowsize" => self.window = value,
                "tsize" => self.size = value as u64,
                _ => {}
            }
        }
    }

    fn data(&mut self, number: u16, length: usize, now: Instant, total: &mut Total, out: &mut Out) {
        if number != (self.held + 1) as u16 {
            // What came twice is ignored; of a gap the server is told once (RFC 7440 section 4).
            if number.wrapping_sub(self.held as u16) < 1 << 15 && self.unanswered > 0 {
                self.acknowledge(out);
            }
            return;
        }
        (self.held, self.unanswered, self.heard) = (self.held + 1, self.unanswered + 1, now);
        self.got += length as u64;
        total.bytes += length as u64;
        if length < self.block {
            let whole = if self.got == self.size { &mut total.fetches } else { &mut total.errors };
            *whole += 1;
            self.acknowledge(out);
            self.ask(now, out);
        } else if self.unanswered == self.window {
            self.acknowledge(out);
        }
    }
}

/// A packet socket that gets every IPv4 frame, whosever MAC address is on it, and sends past the queues.
fn card(link: &str) -> io::Result<Socket> {
    let protocol = (libc::ETH_P_IP as u16).to_be();
    let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), Some(Protocol::from(i32::from(protocol))))?;
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)?;
    let index = rustix::net::netdevice::name_to_index(&socket, link)?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is plain data, smaller than sockaddr_storage, and zero is a valid value of each field; the
    // storage then holds a sockaddr_ll of this length. The kernel reads one int of the option.
    unsafe {
        let address: &mut libc::sockaddr_ll = storage.view_as();
        (address.sll_family, address.sll_protocol, address.sll_ifindex) =
            (libc::AF_PACKET as u16, protocol, index as i32);
        socket.bind(&SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t))?;
        let yes: libc::c_int = 1;
        let length = size_of_val(&yes) as libc::socklen_t;
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_QDISC_BYPASS,
            (&raw const yes).cast(),
            length,
        );
    }
    Ok(socket)
}

/// What arrived, cut to [`SNAP`] bytes.
struct Received {
    frames: Box<[[u8; SNAP]; BATCH]>,
    messages: Vec<libc::mmsghdr>,
    _parts: Vec<libc::iovec>,
}

impl Received {
    fn new() -> Self {
        let mut frames = Box::new([[0; SNAP]; BATCH]);
        let part = |f: &mut [u8; SNAP]| libc::iovec { iov_base: f.as_mut_ptr().cast(), iov_len: SNAP };
        let mut parts: Vec<_> = frames.iter_mut().map(part).collect();
        Self { messages: headers(&mut parts), frames, _parts: parts }
    }

    /// With the length that each had on the wire.
    fn read(&mut self, card: &Socket) -> io::Result<impl Iterator<Item = (&[u8], usize)>> {
        // SAFETY: every message has one part, a frame of this structure on the heap.
        let count = unsafe {
            let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
            libc::recvmmsg(card.as_raw_fd(), self.messages.as_mut_ptr(), BATCH as u32, flags, std::ptr::null_mut())
        };
        let count = if count < 0 { none_yet(io::Error::last_os_error())? } else { count as usize };
        let length = |m: &libc::mmsghdr| m.msg_len as usize;
        let frames = self.frames.iter().zip(&self.messages).take(count);
        Ok(frames
            .map(move |(frame, message)| (frame.get(..length(message).min(SNAP)).unwrap_or_default(), length(message))))
    }
}

/// Frames to send, end to end.
#[derive(Default)]
struct Out {
    bytes: Vec<u8>,
    lengths: Vec<usize>,
}

impl Out {
    fn push(&mut self, parts: &[&[u8]]) {
        let before = self.bytes.len();
        parts.iter().for_each(|p| self.bytes.extend_from_slice(p));
        self.lengths.push(self.bytes.len() - before);
    }

    /// A frame that the card does not take is as lost.
    fn send(&mut self, card: &Socket) -> io::Result<()> {
        let mut rest = self.bytes.as_mut_slice();
        let mut parts = Vec::with_capacity(self.lengths.len());
        for length in &self.lengths {
            let (frame, behind) = rest.split_at_mut(*length);
            parts.push(libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: *length });
            rest = behind;
        }
        let mut messages = headers(&mut parts);
        let mut left = messages.as_mut_slice();
        while !left.is_empty() {
            // SAFETY: every message has one part, a piece of `bytes`.
            let sent =
                unsafe { libc::sendmmsg(card.as_raw_fd(), left.as_mut_ptr(), left.len() as u32, libc::MSG_DONTWAIT) };
            let sent = if sent < 0 { none_yet(io::Error::last_os_error())?.max(1) } else { sent as usize };
            left = left.get_mut(sent..).unwrap_or_default();
        }
        self.bytes.clear();
        self.lengths.clear();
        Ok(())
    }
}

/// A message for each part.
fn headers(parts: &mut [libc::iovec]) -> Vec<libc::mmsghdr> {
    let header = |part: &mut libc::iovec| {
        // SAFETY: all-zero is a valid value of this C structure.
        let mut message: libc::mmsghdr = unsafe { zeroed() };
        (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (part, 1);
        message
    };
    parts.iter_mut().map(header).collect()
}

fn none_yet(error: io::Error) -> io::Result<usize> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
        _ if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(0),
        _ => Err(error),
    }
}
