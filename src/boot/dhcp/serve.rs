//! DHCP on one interface: sockets and clock around [`Dhcp::receive`].
//!
//! Offers leave at once, unless their address has to be probed first. An ACK waits in the lease writer until its lease is on
//! disk, together with every other ACK of that moment, so the receiving task waits for nothing.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::reply::Destination;
use super::{Asked, Dhcp, Door, Outcome, Ready, proxy};
use crate::boot::config::{Interface, Mode};
use crate::boot::count::{Counters, Silence};
use crate::boot::monitor::{Monitor, sentence};
use crate::boot::net::{self, Link};
use crate::boot::now_ms;
use crate::boot::probe::Prober;
use crate::boot::{Policy, Unanswered};
use crate::error::Result;
use crate::machine::MacAddr;
use crate::store::lease::Writer;

/// Larger than any DHCP packet on Ethernet.
const BUFFER: usize = 2048;
/// Packets that are handled before other tasks get their turn.
const BURST: usize = 256;
/// Between two looks at the socket while packets keep coming. A machine alone is answered at once.
const PAUSE: Duration = Duration::from_millis(1);

/// An answer on its way through the lease writer; `None`: a lease that nobody waits for.
pub type Waiting = Option<(Ready, Arc<Port>)>;

/// The ways in and out of one interface.
pub struct Port {
    udp: UdpSocket,
    /// Port 4011, for ProxyDHCP.
    again: Option<UdpSocket>,
    link: Arc<Link>,
    interface: Interface,
    counters: Arc<Counters>,
}

impl Port {
    pub fn open(interface: &Interface, link: Arc<Link>, counters: Arc<Counters>) -> Result<Self> {
        let udp = net::udp(interface, Ipv4Addr::UNSPECIFIED, 67)?;
        let again = match interface.mode {
            Mode::Proxy => Some(net::udp(interface, Ipv4Addr::UNSPECIFIED, proxy::PORT)?),
            Mode::Dhcp => None,
        };
        Ok(Self { udp, again, link, interface: interface.clone(), counters })
    }

    pub fn send(&self, ready: &Ready) {
        let own = self.interface.address;
        let framed = |mac, address| {
            let from = (self.link.mac, SocketAddrV4::new(own, 67));
            let frame = net::frame(from, (mac, SocketAddrV4::new(address, 68)), &ready.packet);
            frame.map_or(Err(std::io::ErrorKind::InvalidData.into()), |f| self.link.send(&f))
        };
        let sent = match ready.to {
            Destination::Routed(to) => net::send_from(&self.udp, own, to, &ready.packet),
            Destination::Frame { mac, address } => framed(mac, address),
            Destination::Broadcast => framed(MacAddr([0xff; 6]), Ipv4Addr::BROADCAST),
        };
        match sent {
            Ok(()) => self.counters.sent(ready.what),
            Err(e) => {
                self.counters.silent(Silence::SendFailed);
                debug!(error = %e, to = ?ready.to, "a DHCP answer could not be sent");
            }
        }
    }

    pub fn give_up(&self) {
        self.counters.silent(Silence::StoreFailed);
    }
}

/// What the task of an interface works with.
pub struct Server {
    pub port: Arc<Port>,
    pub monitor: Monitor,
    pub prober: Arc<Prober>,
    pub writer: Writer<Waiting>,
    pub policy: Arc<dyn Policy>,
}

impl Server {
    /// Runs until cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let server = Arc::new(self);
        let mut buffer = [0; BUFFER];
        let mut woken = Instant::now() - PAUSE;
        loop {
            // Waking up costs more than an answer: under load, packets are taken together once in a millisecond.
            if woken.elapsed() < PAUSE {
                tokio::time::sleep(PAUSE).await;
            }
            let (socket, port) = tokio::select! {
                () = stop.cancelled() => return,
                ready = server.port.udp.readable() => match ready { Ok(()) => (&server.port.udp, 67), Err(_) => return },
                Some(socket) = readable(server.port.again.as_ref()) => (socket, proxy::PORT),
            };
            woken = Instant::now();
            for _ in 0..BURST {
                match socket.try_recv_from(&mut buffer) {
                    Ok((length, _)) => server.packet(buffer.get(..length).unwrap_or_default(), port),
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(e) => {
                        // The interface went down, or an ICMP error of an earlier send; the socket stays good.
                        warn!(error = %e, "DHCP cannot receive");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        break;
                    }
                }
            }
            tokio::task::yield_now().await;
        }
    }

    fn packet(self: &Arc<Self>, packet: &[u8], port: u16) {
        let Interface { address: own, mode, .. } = self.port.interface;
        match self.dhcp(|dhcp| dhcp.receive(now_ms(), packet, Door { own, mode, port })) {
            Outcome::Answer(ready) => self.deliver(ready),
            Outcome::Probe { address, then } => {
                let server = self.clone();
                tokio::spawn(async move { server.probe(address, then).await });
            }
            Outcome::Silent { why, save, asked } => {
                if let Some(lease) = save {
                    self.writer.save(lease, None);
                }
                self.silent(why, asked);
            }
        }
    }

    fn deliver(&self, mut ready: Ready) {
        let (sighting, bmc, leased) = (ready.sighting.take(), ready.bmc.take(), ready.save.is_some());
        match ready.save.take() {
            None => self.port.send(&ready),
            Some(lease) => {
                if !self.writer.save(lease, Some((ready, self.port.clone()))) {
                    return self.port.counters.silent(Silence::StoreBusy);
                }
            }
        }
        if let Some(sighting) = sighting {
            self.policy.sighted(sighting);
        }
        // An offer may still go unused.
        if let Some(bmc) = bmc.filter(|_| leased) {
            self.policy.bmc_sighted(bmc);
        }
    }

    /// The answer leaves if nobody is on the address; else the address is set aside, and the client asks again.
    async fn probe(&self, address: Ipv4Addr, then: Ready) {
        let own = self.port.interface.address;
        let direct = self.dhcp(|dhcp| dhcp.table.of(own).is_some() && dhcp.table.of(own) == dhcp.table.of(address));
        let wait = Duration::from_millis(self.monitor.probe_ms().into());
        let client = then.sighting.as_ref().map(|s| s.mac);
        // Its own answer is no conflict: it has the address from an earlier life.
        let found = self.prober.anyone_at(address, direct, wait).await.filter(|mac| Some(*mac) != client);
        let taken = self.dhcp(|dhcp| dhcp.table.probed(now_ms(), address, found));
        let Some(mac) = found else { return self.deliver(then) };
        warn!(%address, %mac, "an address of the pool is in use by a machine that did not get it from us; it is set aside");
        if let Some(lease) = taken {
            self.writer.save(lease, None);
        }
        let asked = then.sighting.map(|s| Asked { mac: s.mac, relay: None, circuit: None, server: None });
        self.silent(Silence::AddressInUse, asked);
    }

    /// Counted, and told where somebody has to act upon it.
    fn silent(&self, why: Silence, asked: Option<Asked>) {
        self.port.counters.silent(why);
        let said = asked.and_then(|asked| Some((sentence(why, &asked, &self.port.interface.name)?, asked.mac)));
        if let Some((why, mac)) = said {
            self.monitor.silences.note(now_ms(), mac, &why);
            self.policy.unanswered(Unanswered { mac, why });
        }
    }

    fn dhcp<T>(&self, ask: impl FnOnce(&mut Dhcp) -> T) -> T {
        ask(&mut self.monitor.dhcp.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn readable(socket: Option<&UdpSocket>) -> Option<&UdpSocket> {
    match socket {
        Some(socket) => socket.readable().await.ok().map(|()| socket),
        None => std::future::pending().await,
    }
}
