//! A rack row that is switched on: machines that boot from the network all at once, with real packets, for `boot-storm.sh`.
//!
//! `boot-load INTERFACE SERVER CLIENTS WITHIN UEFI` starts CLIENTS machines within WITHIN seconds; UEFI percent of them are UEFI.
//! Each does what firmware and iPXE do: DHCP as the ROM, the loader by TFTP (blksize 1468, one block at a time; UEFI asks for
//! the size first and stops that transfer), DHCP as iPXE, the script by HTTP, then HEAD and the first bytes of the kernel.
//! What is lost is sent again as firmware does. Prints p50, p99 and the longest time of each step, and what failed.
//!
//! DHCP goes through a packet socket, since a machine without an address has no other way; from then on every machine
//! speaks from its own address, which the interface's namespace must take for its own (`ip route add local … dev lo`).

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, timeout};

type Failed = String;

const BLOCK: usize = 1468;
/// PXE 2.1 section 2.2.1: DISCOVER after 4, 8, 16 and 32 s.
const DHCP_WAITS: [u64; 4] = [4, 8, 16, 32];
/// EDK II, NetworkPkg/UefiPxeBcDxe/PxeBcImpl.h: PXEBC_MTFTP_TIMEOUT, and PXEBC_MTFTP_RETRIES after the first try.
const TFTP_WAIT: Duration = Duration::from_secs(4);
const TFTP_TRIES: usize = 1 + 6;
const HTTP_WAIT: Duration = Duration::from_secs(20);
const XID: u32 = 0x5241_0000;

struct Site {
    server: Ipv4Addr,
    frames: Socket,
    /// Where each machine waits for its DHCP answers.
    inboxes: Vec<UnboundedSender<Vec<u8>>>,
    times: Mutex<BTreeMap<&'static str, Vec<f64>>>,
}

struct Machine {
    number: u32,
    uefi: bool,
    inbox: UnboundedReceiver<Vec<u8>>,
}

/// What a DHCP exchange came to.
struct Bound {
    address: Ipv4Addr,
    file: String,
}

impl Machine {
    fn mac(&self) -> [u8; 6] {
        let [a, b, c, d] = self.number.to_be_bytes();
        [2, 0x52, a, b, c, d]
    }

    async fn boot(mut self, site: &Site) -> Result<(), Failed> {
        let mut clock = Clock { site, last: Instant::now() };
        let rom = self.bind(site, false).await?;
        clock.step("1 dhcp rom");
        if self.uefi {
            tftp(site.server, &rom, true).await?;
        }
        let size = tftp(site.server, &rom, false).await?;
        clock.step("2 tftp");
        if size < 50_000 {
            return Err(format!("the loader {} has {size} bytes", rom.file));
        }
        let ipxe = self.bind(site, true).await?;
        clock.step("3 dhcp ipxe");
        if ipxe.address != rom.address {
            return Err(format!("address {} and then {}", rom.address, ipxe.address));
        }
        let path = ipxe.file.strip_prefix("http://").and_then(|rest| Some(&rest[rest.find('/')?..]));
        let path = path.ok_or_else(|| format!("iPXE was sent to {:?}", ipxe.file))?;
        let script = http(site.server, ipxe.address, &format!("GET {path}"), "").await?;
        if !script.contains("\r\n\r\n#!ipxe\n") || !script.contains("vmlinuz") {
            return Err(format!("the script is {script:?}"));
        }
        clock.step("4 script");
        let head = http(site.server, ipxe.address, "HEAD /boot/files/vmlinuz", "").await?;
        let first = http(site.server, ipxe.address, "GET /boot/files/vmlinuz", "Range: bytes=0-16383\r\n").await?;
        if !head.starts_with("HTTP/1.1 200") || !first.starts_with("HTTP/1.1 206") {
            return Err(format!("the kernel: {:.60?} and {:.60?}", head, first));
        }
        clock.step("5 kernel");
        Ok(())
    }

    /// DISCOVER, OFFER, REQUEST, ACK.
    async fn bind(&mut self, site: &Site, ipxe: bool) -> Result<Bound, Failed> {
        let offer = self.ask(site, &self.message(1, ipxe, None), 2).await.map_err(|()| "no OFFER")?;
        let address = Ipv4Addr::from(<[u8; 4]>::try_from(&offer[16..20]).unwrap());
        let ack = self.ask(site, &self.message(3, ipxe, Some(address)), 5).await.map_err(|()| "no ACK")?;
        let file = option(&ack, 67).map(|f| String::from_utf8_lossy(f).into_owned()).unwrap_or_default();
        Ok(Bound { address, file })
    }

    async fn ask(&mut self, site: &Site, message: &[u8], kind: u8) -> Result<Vec<u8>, ()> {
        let frame = frame(self.mac(), message);
        for wait in DHCP_WAITS {
            // A full queue is a lost packet.
            let _ = site.frames.send(&frame);
            let answer = async {
                while let Some(answer) = self.inbox.recv().await {
                    if option(&answer, 53) == Some(&[kind]) {
                        return answer;
                    }
                }
                std::future::pending().await
            };
            if let Ok(answer) = timeout(Duration::from_secs(wait), answer).await {
                return Ok(answer);
            }
        }
        Err(())
    }

    fn message(&self, kind: u8, ipxe: bool, address: Option<Ipv4Addr>) -> Vec<u8> {
        let mut bytes = vec![0; 240];
        bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
        bytes[4..8].copy_from_slice(&(XID + self.number).to_be_bytes());
        // EDK II wants its answers by broadcast; the others can take a frame.
        bytes[10] = if self.uefi && !ipxe { 0x80 } else { 0 };
        bytes[28..34].copy_from_slice(&self.mac());
        bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
        let mut add = |code: u8, data: &[u8]| {
            bytes.extend([code, data.len() as u8]);
            bytes.extend(data);
        };
        add(53, &[kind]);
        if let Some(address) = address {
            add(50, &address.octets());
            add(54, &Ipv4Addr::new(10, 16, 0, 1).octets());
        }
        add(57, &[5, 0xc0]);
        add(55, &[1, 3, 6, 12, 15, 28, 43, 60, 66, 67, 97, 175]);
        let mut uuid = [0; 17];
        uuid[13..].copy_from_slice(&self.number.to_be_bytes());
        uuid[1] = 0x4c;
        add(97, &uuid);
        add(93, &[0, if self.uefi { 7 } else { 0 }]);
        add(60, if self.uefi { b"PXEClient:Arch:00007:UNDI:003000" } else { b"PXEClient:Arch:00000:UNDI:002001" });
        if ipxe {
            add(77, b"iPXE");
            add(175, &[177, 1, 1]);
        }
        bytes.push(255);
        bytes.resize(bytes.len().max(300), 0);
        bytes
    }
}

struct Clock<'a> {
    site: &'a Site,
    last: Instant,
}

impl Clock<'_> {
    fn step(&mut self, name: &'static str) {
        let now = Instant::now();
        let took = now.duration_since(self.last).as_secs_f64();
        self.site.times.lock().unwrap().entry(name).or_default().push(took);
        self.last = now;
    }
}

/// Fetches a file, or with `probe` only asks for its size. Bytes received.
async fn tftp(server: Ipv4Addr, bound: &Bound, probe: bool) -> Result<usize, Failed> {
    let failed = |what: &str| format!("TFTP of {:?}: {what}", bound.file);
    let socket = UdpSocket::bind((bound.address, 0)).await.map_err(|e| failed(&e.to_string()))?;
    let mut last = [&[0, 1][..], bound.file.as_bytes(), b"\0octet\0tsize\x000\0blksize\x001468\0"].concat();
    let mut to = SocketAddr::from((server, 69));
    let (mut buffer, mut expected, mut size, mut tries) = ([0; BLOCK + 4], 0u16, 0, 0);
    socket.send_to(&last, to).await.map_err(|e| failed(&e.to_string()))?;
    loop {
        let Ok(received) = timeout(TFTP_WAIT, socket.recv_from(&mut buffer)).await else {
            tries += 1;
            if tries == TFTP_TRIES {
                return Err(failed(&format!("no block {expected}")));
            }
            let _ = socket.send_to(&last, to).await;
            continue;
        };
        let (length, from) = received.map_err(|e| failed(&e.to_string()))?;
        let block = u16::from_be_bytes([buffer[2], buffer[3]]);
        let payload = match buffer[1] {
            6 if expected == 0 && probe => {
                let _ = socket.send_to(b"\0\x05\0\x08stop\0", from).await;
                return Ok(0);
            }
            6 if expected == 0 => BLOCK,
            3 if expected > 0 && block == expected => length - 4,
            3 | 6 => continue,
            _ => return Err(failed(&String::from_utf8_lossy(&buffer[4..length]))),
        };
        (to, tries) = (from, 0);
        let [high, low] = expected.to_be_bytes();
        last = vec![0, 4, high, low];
        let _ = socket.send_to(&last, to).await;
        if expected > 0 {
            size += payload;
        }
        if payload < BLOCK {
            return Ok(size);
        }
        expected = expected.wrapping_add(1);
    }
}

/// One request on a connection of its own; the whole answer.
async fn http(server: Ipv4Addr, from: Ipv4Addr, request: &str, headers: &str) -> Result<String, Failed> {
    let answer = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        let mut stream = socket.connect((server, 80).into()).await?;
        let text = format!("{request} HTTP/1.1\r\nHost: {server}\r\n{headers}Connection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    match timeout(HTTP_WAIT, answer).await {
        Ok(answer) => answer.map_err(|e| format!("{request}: {e}")),
        Err(_) => Err(format!("{request}: no answer within {} s", HTTP_WAIT.as_secs())),
    }
}

fn option(message: &[u8], code: u8) -> Option<&[u8]> {
    let mut rest = message.get(240..)?;
    while let [found, tail @ ..] = rest {
        match found {
            0 => rest = tail,
            255 => return None,
            _ => {
                let (length, tail) = tail.split_first()?;
                let (data, next) = tail.split_at_checked((*length).into())?;
                if *found == code {
                    return Some(data);
                }
                rest = next;
            }
        }
    }
    None
}

/// From a machine without an address to everyone. UDP without checksum, which RFC 768 allows.
fn frame(mac: [u8; 6], message: &[u8]) -> Vec<u8> {
    let length = message.len() as u16;
    let mut ip = [0u8; 20];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&(length + 28).to_be_bytes());
    (ip[8], ip[9]) = (64, 17);
    ip[16..].fill(0xff);
    let sum = ip.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>();
    ip[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    let udp = [[0, 68], [0, 67], (length + 8).to_be_bytes(), [0, 0]].concat();
    [&[0xff; 6][..], &mac, &[8, 0], &ip, &udp, message].concat()
}

/// Sends any frame; receives what goes to UDP port 68.
fn packet_socket(interface: &str) -> std::io::Result<Socket> {
    let ip = (libc::ETH_P_IP as u16).to_be();
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(ip))))?;
    let step = |code: u32, yes: u8, no: u8, value: u32| SockFilter::new(code as u16, yes, no, value);
    let (load_byte, load_half, equal, give) = (
        libc::BPF_LD | libc::BPF_B | libc::BPF_ABS,
        libc::BPF_LD | libc::BPF_H | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    socket.attach_filter(&[
        step(load_byte, 0, 0, 23),
        step(equal, 0, 3, 17),
        step(load_half, 0, 0, 36),
        step(equal, 0, 1, 68),
        step(give, 0, 0, 0xffff),
        step(give, 0, 0, 0),
    ])?;
    let index = rustix::net::netdevice::name_to_index(&socket, interface)?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is plain data, smaller than sockaddr_storage, and zero is a valid value of each field.
    let link: &mut libc::sockaddr_ll = unsafe { storage.view_as() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_protocol = ip;
    link.sll_ifindex = index as i32;
    // SAFETY: the storage holds a sockaddr_ll, as the family says, of this length.
    let address = unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) };
    socket.bind(&address)?;
    let _ = socket.set_recv_buffer_size(8 << 20);
    Ok(socket)
}

fn deliver(mut socket: Socket, inboxes: &[UnboundedSender<Vec<u8>>]) {
    let mut buffer = [0; 2048];
    while let Ok(length) = socket.read(&mut buffer) {
        let Some(message) = buffer.get(42..length).filter(|m| m.len() >= 240 && m[0] == 2) else { continue };
        let xid = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
        if let Some(inbox) = inboxes.get(xid.wrapping_sub(XID) as usize) {
            let _ = inbox.send(message.to_vec());
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [interface, server, clients, within, uefi] = args.as_slice() else {
        return Err("usage: boot-load INTERFACE SERVER CLIENTS WITHIN UEFI".into());
    };
    let (clients, within, uefi): (u32, f64, u32) = (clients.parse()?, within.parse()?, uefi.parse()?);
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let files = rustix::process::Rlimit { current: most, maximum: most };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, files)?;
    let frames = packet_socket(interface)?;
    let receiving = frames.try_clone()?;
    let (inboxes, waiting): (Vec<_>, Vec<_>) = (0..clients).map(|_| unbounded_channel()).unzip();
    let to = inboxes.clone();
    std::thread::spawn(move || deliver(receiving, &to));
    let site = Arc::new(Site { server: server.parse()?, frames, inboxes, times: Mutex::default() });

    let start = Instant::now();
    let mut machines = tokio::task::JoinSet::new();
    for (number, inbox) in (0..clients).zip(waiting) {
        let site = site.clone();
        machines.spawn(async move {
            tokio::time::sleep(Duration::from_secs_f64(within * f64::from(number) / f64::from(clients))).await;
            Machine { number, uefi: number % 100 < uefi, inbox }.boot(&site).await
        });
    }
    let mut failures: BTreeMap<Failed, usize> = BTreeMap::new();
    while let Some(machine) = machines.join_next().await {
        if let Err(why) = machine? {
            *failures.entry(why).or_default() += 1;
        }
    }
    let total = start.elapsed().as_secs_f64();
    debug_assert_eq!(site.inboxes.len(), clients as usize);
    for (step, times) in site.times.lock().unwrap().iter_mut() {
        times.sort_by(f64::total_cmp);
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
        println!(
            "{step:<12} n {:>5}  p50 {:>7.3} s  p99 {:>7.3} s  max {:>7.3} s",
            times.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
    println!("total {total:.1} s, failed {}", failures.values().sum::<usize>());
    failures.iter().take(10).for_each(|(why, n)| println!("  {n} x {why}"));
    Ok(())
}
