//! DHCP on one interface: sockets and clock around [`Dhcp::receive`].
//!
//! Offers leave at once. An ACK waits in the lease writer until its lease is on disk, together with every other ACK of
//! that moment, so the receiving task never waits for the disk.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::reply::Destination;
use super::{Dhcp, Outcome};
use crate::boot::Policy;
use crate::boot::config::Interface;
use crate::boot::count::{Answer, Counters, Silence};
use crate::boot::net::{self, Link};
use crate::error::Result;
use crate::machine::MacAddr;
use crate::store::lease::Writer;

/// Larger than any DHCP packet on Ethernet.
const BUFFER: usize = 2048;
/// Packets that are handled before other tasks get their turn.
const BURST: usize = 64;

/// An answer that waits for its lease to be on disk.
pub struct Ready {
    what: Answer,
    packet: Vec<u8>,
    to: Destination,
    port: Arc<Port>,
}

impl Ready {
    pub fn send(self) {
        self.port.send(self.what, &self.packet, self.to);
    }

    pub fn give_up(self) {
        self.port.counters.silent(Silence::StoreFailed);
    }
}

/// The two ways out of one interface.
pub struct Port {
    udp: UdpSocket,
    link: Arc<Link>,
    address: Ipv4Addr,
    counters: Arc<Counters>,
}

impl Port {
    pub fn open(interface: &Interface, link: Arc<Link>, counters: Arc<Counters>) -> Result<Self> {
        let udp = net::udp(interface, Ipv4Addr::UNSPECIFIED, 67)?;
        Ok(Self { udp, link, address: interface.address, counters })
    }

    fn send(&self, what: Answer, packet: &[u8], to: Destination) {
        let framed = |mac, address| {
            let from = (self.link.mac, SocketAddrV4::new(self.address, 67));
            let frame = net::frame(from, (mac, SocketAddrV4::new(address, 68)), packet);
            frame.map_or(Err(std::io::ErrorKind::InvalidData.into()), |f| self.link.send(&f))
        };
        let sent = match to {
            Destination::Routed(to) => net::send_from(&self.udp, self.address, to, packet),
            Destination::Frame { mac, address } => framed(mac, address),
            Destination::Broadcast => framed(MacAddr([0xff; 6]), Ipv4Addr::BROADCAST),
        };
        match sent {
            Ok(()) => self.counters.sent(what),
            Err(e) => {
                self.counters.silent(Silence::SendFailed);
                debug!(error = %e, ?to, "a DHCP answer could not be sent");
            }
        }
    }
}

/// Runs until cancelled.
pub async fn run(
    port: Arc<Port>,
    dhcp: Arc<Mutex<Dhcp>>,
    writer: Writer<Option<Ready>>,
    policy: Arc<dyn Policy>,
    stop: CancellationToken,
) {
    let mut buffer = [0; BUFFER];
    let mut server = Server { port, dhcp, writer, policy, pool_warned: None };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            ready = server.port.udp.readable() => if ready.is_err() { return },
        }
        for _ in 0..BURST {
            match server.port.udp.try_recv_from(&mut buffer) {
                Ok((length, _)) => server.packet(buffer.get(..length).unwrap_or_default()),
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

struct Server {
    port: Arc<Port>,
    dhcp: Arc<Mutex<Dhcp>>,
    writer: Writer<Option<Ready>>,
    policy: Arc<dyn Policy>,
    /// When the log last said that a pool is empty.
    pool_warned: Option<tokio::time::Instant>,
}

impl Server {
    fn packet(&mut self, packet: &[u8]) {
        let outcome = {
            let mut dhcp = self.dhcp.lock().unwrap_or_else(PoisonError::into_inner);
            dhcp.receive(now_ms(), packet, self.port.address)
        };
        match outcome {
            Outcome::Answer { what, packet, to, save, sighting } => {
                let ready = Ready { what, packet, to, port: self.port.clone() };
                match save {
                    None => ready.send(),
                    Some(lease) => {
                        if !self.writer.save(lease, Some(ready)) {
                            return self.port.counters.silent(Silence::StoreBusy);
                        }
                    }
                }
                if let Some(sighting) = sighting {
                    self.policy.sighted(sighting);
                }
            }
            Outcome::Silent { why, save } => {
                self.port.counters.silent(why);
                if let Some(lease) = save {
                    self.writer.save(lease, None);
                }
                if why == Silence::PoolEmpty {
                    self.warn_pool_empty();
                }
            }
        }
    }

    /// Once a minute: a machine that gets no address asks every few seconds.
    fn warn_pool_empty(&mut self) {
        let now = tokio::time::Instant::now();
        if self.pool_warned.is_none_or(|last| now.duration_since(last) > Duration::from_secs(60)) {
            self.pool_warned = Some(now);
            warn!("no free address for a machine; make a pool of boot.subnets larger or its lease_seconds shorter");
        }
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}
