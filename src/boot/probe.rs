//! Is anybody on this address? Asked before an address that was never used is offered: by ARP on our own wire, by ICMP echo
//! behind a relay. One question at a time for an address; silence for the whole wait means that nobody is there.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::config::Interface;
use super::net::{self, Link};
use crate::error::Result;
use crate::machine::MacAddr;

/// Who sends an ICMP answer from behind a router, nobody can say.
pub const BEHIND_A_ROUTER: MacAddr = MacAddr([0; 6]);

/// Ethernet header and ARP for IPv4 over Ethernet (RFC 826).
const ARP_SIZE: usize = 42;
const ARP_REPLY: u16 = 2;

type Waiting = Arc<Mutex<HashMap<Ipv4Addr, oneshot::Sender<MacAddr>>>>;

/// Where the answers of one interface come in.
pub struct Prober {
    arp: UdpSocket,
    icmp: UdpSocket,
    link: Arc<Link>,
    own: Ipv4Addr,
    waiting: Waiting,
}

impl Prober {
    pub fn open(interface: &Interface, link: Arc<Link>) -> Result<Self> {
        let arp = net::packet(interface, link.index, net::Listen::ArpReplies)?;
        let icmp = net::icmp4(interface)?;
        Ok(Self { arp, icmp, link, own: interface.address, waiting: Waiting::default() })
    }

    /// Who answers for the address within `wait`; `direct`: it is on our own wire.
    pub async fn anyone_at(&self, address: Ipv4Addr, direct: bool, wait: Duration) -> Option<MacAddr> {
        let (found, mut answer) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(address, found);
        let mut answered = None;
        // Twice, since a frame may be lost.
        for _ in 0..2 {
            let sent = if direct {
                self.link.send(&arp_request(self.link.mac, self.own, address))
            } else {
                self.echo(address)
            };
            if let Err(e) = sent {
                debug!(%address, error = %e, "a probe could not be sent");
            }
            if let Ok(found) = tokio::time::timeout(wait / 2, &mut answer).await {
                answered = found.ok();
                break;
            }
        }
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
        answered
    }

    fn echo(&self, address: Ipv4Addr) -> io::Result<()> {
        // Type 8, code 0, checksum, identifier, sequence (RFC 792); the address tells answers apart.
        let mut packet = [8, 0, 0, 0, b'R', b'k', 0, 1];
        let sum = net::checksum(0, &packet).to_be_bytes();
        packet[2..4].copy_from_slice(&sum);
        self.icmp.try_send_to(&packet, SocketAddrV4::new(address, 0).into()).map(|_| ())
    }

    /// Reads answers until cancelled.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let (mut frame, mut packet) = ([0; 128], [0; 128]);
        loop {
            let received = tokio::select! {
                () = stop.cancelled() => return,
                got = self.arp.recv(&mut frame) => got.map(|n| arp_reply(frame.get(..n)?)),
                got = self.icmp.recv(&mut packet) => got.map(|n| echo_reply(packet.get(..n)?)),
            };
            let Ok(found) = received else {
                // The interface is down.
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            };
            let Some((address, mac)) = found else { continue };
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(answer) = waiting.remove(&address) {
                let _ = answer.send(mac);
            }
        }
    }
}

fn arp_request(mac: MacAddr, own: Ipv4Addr, address: Ipv4Addr) -> [u8; ARP_SIZE] {
    let mut frame = [0; ARP_SIZE];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac.0);
    // ARP; Ethernet, IPv4, 6- and 4-byte addresses, request.
    frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&mac.0);
    frame[28..32].copy_from_slice(&own.octets());
    frame[38..42].copy_from_slice(&address.octets());
    frame
}

/// Whose address an ARP reply says it is.
pub fn arp_reply(frame: &[u8]) -> Option<(Ipv4Addr, MacAddr)> {
    let head = frame.get(12..22)?;
    let reply = head.starts_with(&[8, 6, 0, 1, 8, 0, 6, 4]) && head.ends_with(&ARP_REPLY.to_be_bytes());
    let mac = MacAddr(frame.get(22..28)?.try_into().ok()?);
    let address = Ipv4Addr::from(<[u8; 4]>::try_from(frame.get(28..32)?).ok()?);
    reply.then_some((address, mac))
}

/// A raw socket gives the IP header too.
pub fn echo_reply(packet: &[u8]) -> Option<(Ipv4Addr, MacAddr)> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let source = Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(12..16)?).ok()?);
    (*packet.get(header)? == 0).then_some((source, BEHIND_A_ROUTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);
    const AT: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 5);

    #[test]
    fn an_arp_reply_names_its_sender() {
        let mut frame = arp_request(MAC, AT, Ipv4Addr::new(10, 77, 0, 1));
        assert_eq!(arp_reply(&frame), None, "a request says nothing");
        frame[21] = 2;
        assert_eq!(arp_reply(&frame), Some((AT, MAC)));
        assert_eq!(arp_reply(&frame[..31]), None);
        assert_eq!(arp_reply(&[]), None);
    }

    #[test]
    fn an_echo_reply_behind_ip_options() {
        let mut packet = vec![0; 32];
        packet[0] = 0x46;
        packet[12..16].copy_from_slice(&AT.octets());
        assert_eq!(echo_reply(&packet), Some((AT, BEHIND_A_ROUTER)));
        packet[24] = 8;
        assert_eq!(echo_reply(&packet), None, "our own question");
        assert_eq!(echo_reply(&[0x4f; 20]), None);
    }
}
