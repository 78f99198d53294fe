//! Other DHCP servers on our wires. One that nobody planned hands out addresses that lead nowhere, and the machines that
//! take them look like machines with broken cards; so it is looked for, and named with its address and MAC.
//!
//! Two ways: every answer that some server broadcasts is seen, and every few minutes a DISCOVER of our own asks who is there.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::config::Interface;
use super::net::{self, Link};
use crate::error::Result;
use crate::machine::MacAddr;

/// Between two questions of our own.
const ASK: Duration = Duration::from_secs(300);
/// Before the first one.
const FIRST: Duration = Duration::from_secs(2);
/// Servers that are remembered. Where more are made up, one that is real is among them.
const MOST: usize = 64;
/// A server that is still there is said again after this time, in milliseconds.
const SAY_AGAIN: i64 = 3_600_000;
/// Class of our own DISCOVER, for whoever reads a capture.
const CLASS: &[u8] = b"rackline-watch";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherServer {
    /// Server identifier of its answers (option 54), else their sender's address.
    pub address: Ipv4Addr,
    pub mac: MacAddr,
    pub interface: String,
    /// Milliseconds since 1970.
    pub first: i64,
    pub last: i64,
    pub answers: u64,
}

/// The servers that were seen and are not expected.
#[derive(Default)]
pub struct Others {
    seen: Mutex<BTreeMap<(Ipv4Addr, MacAddr), (OtherServer, i64)>>,
    expected: Mutex<Vec<Ipv4Addr>>,
}

impl Others {
    pub fn expect(&self, servers: &[Ipv4Addr]) {
        *self.expected.lock().unwrap_or_else(PoisonError::into_inner) = servers.to_vec();
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).retain(|(a, _), _| !servers.contains(a));
    }

    pub fn list(&self) -> Vec<OtherServer> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).values().map(|(s, _)| s.clone()).collect()
    }

    fn saw(&self, now: i64, interface: &str, address: Ipv4Addr, mac: MacAddr) {
        if self.expected.lock().unwrap_or_else(PoisonError::into_inner).contains(&address) {
            return;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= MOST && !seen.contains_key(&(address, mac)) {
            return;
        }
        let interface = interface.to_owned();
        let new = || (OtherServer { address, mac, interface, first: now, last: now, answers: 0 }, i64::MIN);
        let (server, said) = seen.entry((address, mac)).or_insert_with(new);
        server.last = now;
        server.answers += 1;
        if now.saturating_sub(*said) > SAY_AGAIN {
            *said = now;
            warn!(server = %address, %mac, interface = server.interface,
                "another DHCP server answers here; switch it off, or list it in boot.other_servers");
        }
    }
}

/// Looks on one interface.
pub struct Watch {
    interface: String,
    own: Ipv4Addr,
    link: Arc<Link>,
    socket: UdpSocket,
    others: Arc<Others>,
}

impl Watch {
    pub fn open(interface: &Interface, link: Arc<Link>, others: Arc<Others>) -> Result<Self> {
        let socket = net::packet(interface, link.index, net::Listen::DhcpReplies)?;
        Ok(Self { interface: interface.name.clone(), own: interface.address, link, socket, others })
    }

    /// Runs until cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let mut frame = [0; 1600];
        let mut ask = tokio::time::interval_at(tokio::time::Instant::now() + FIRST, ASK);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ask.tick() => self.ask(),
                received = self.socket.recv(&mut frame) => match received {
                    Ok(length) => self.look(frame.get(..length).unwrap_or_default()),
                    // The interface is down.
                    Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
                },
            }
        }
    }

    fn look(&self, frame: &[u8]) {
        let Some((address, mac)) = sender(frame) else { return };
        // Our own frames, and our own answers that a relay passes on.
        if mac != self.link.mac && address != self.own {
            self.others.saw(super::now_ms(), &self.interface, address, mac);
        }
    }

    fn ask(&self) {
        let everyone = (MacAddr([0xff; 6]), SocketAddrV4::new(Ipv4Addr::BROADCAST, 67));
        let from = (self.link.mac, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68));
        let sent = net::frame(from, everyone, &discover(self.link.mac)).map(|frame| self.link.send(&frame));
        if let Some(Err(e)) = sent {
            debug!(interface = self.interface, error = %e, "cannot ask for other DHCP servers");
        }
    }
}

/// Broadcast flag set, so that the answers are broadcast too and not sent to an address that we do not have.
fn discover(mac: MacAddr) -> Vec<u8> {
    let mut packet = vec![0; 236];
    packet[..4].copy_from_slice(&[1, 1, 6, 0]);
    packet[4..8].copy_from_slice(b"RkWa");
    packet[10] = 0x80;
    packet[28..34].copy_from_slice(&mac.0);
    packet.extend([99, 130, 83, 99, 53, 1, 1, 55, 2, 1, 54, 60, CLASS.len() as u8]);
    packet.extend(CLASS);
    packet.push(255);
    packet.resize(300, 0);
    packet
}

/// Server identifier, else source address, and MAC of a frame that the filter let through.
pub fn sender(frame: &[u8]) -> Option<(Ipv4Addr, MacAddr)> {
    let mac = MacAddr(frame.get(6..12)?.try_into().ok()?);
    let ip = frame.get(14..)?;
    let header = usize::from(ip.first()? & 0x0f) * 4;
    let source: [u8; 4] = ip.get(12..16)?.try_into().ok()?;
    let message = dhcproto::v4::borrowed::Message::new(ip.get(header + 8..)?).ok()?;
    let named = message.opts().find(|o| u8::from(o.code()) == 54).and_then(|o| <[u8; 4]>::try_from(o.data()).ok());
    Some((Ipv4Addr::from(named.unwrap_or(source)), mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

    fn answer(options: &[u8]) -> Vec<u8> {
        let mut message = discover(MAC);
        message[0] = 2;
        message.truncate(240);
        message.extend(options);
        message.push(255);
        let from = (MAC, "10.77.0.9:67".parse().unwrap());
        net::frame(from, (MacAddr([0xff; 6]), "255.255.255.255:68".parse().unwrap()), &message).unwrap()
    }

    #[test]
    fn the_server_identifier_counts_else_the_source() {
        let named = answer(&[53, 1, 2, 54, 4, 10, 77, 0, 8]);
        assert_eq!(sender(&named), Some((Ipv4Addr::new(10, 77, 0, 8), MAC)));
        assert_eq!(sender(&answer(&[53, 1, 2])), Some((Ipv4Addr::new(10, 77, 0, 9), MAC)));
        for cut in [0, 11, 14, 20, 33, 42, 100] {
            assert_eq!(sender(&named[..cut]), None, "{cut} bytes");
        }
    }

    #[test]
    fn expected_servers_are_no_news_and_the_list_is_bounded() {
        let others = Others::default();
        let (good, bad) = (Ipv4Addr::new(10, 77, 0, 2), Ipv4Addr::new(10, 77, 0, 3));
        others.expect(&[good]);
        others.saw(5, "eth1", good, MAC);
        others.saw(5, "eth1", bad, MAC);
        others.saw(9, "eth1", bad, MAC);
        let list = others.list();
        assert_eq!((list.len(), list[0].address, list[0].first, list[0].last, list[0].answers), (1, bad, 5, 9, 2));
        (0..1000).for_each(|n| others.saw(9, "eth1", Ipv4Addr::from(n), MAC));
        assert_eq!(others.list().len(), MOST);
        others.expect(&[good, bad]);
        assert!(!others.list().iter().any(|s| s.address == bad));
    }
}
