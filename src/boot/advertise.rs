//! IPv6 router advertisements, for one reader: Debian's iPXE (2019) solicits a router before DHCP is done and waits 13 s
//! when none answers. Ours offer no route (lifetime 0), no prefix and no DHCPv6 (flags M and O clear), which is all that
//! iPXE wants to know; other systems on the link take nothing from them. RFC 4861 sections 4.1, 4.2 and 6.2.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::config::Interface;
use super::count::{Answer, Counters};
use super::net::{self, Link};
use crate::machine::MacAddr;

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
/// Unsolicited ones: 4 s, the shortest MaxRtrAdvInterval of RFC 4861 section 6.2.1, and up to 6 s more.
const INTERVAL: Duration = Duration::from_secs(4);
const JITTER: Duration = Duration::from_secs(6);
/// Solicited ones to everyone: at most this often, however many ask.
const MIN_DELAY: Duration = Duration::from_millis(100);

pub struct Advertiser {
    socket: UdpSocket,
    index: u32,
    message: [u8; 24],
    counters: Arc<Counters>,
}

impl Advertiser {
    /// `None`, with a line in the log, where the interface has no IPv6: then nobody waits for a router there either.
    pub fn open(interface: &Interface, link: &Link, counters: Arc<Counters>) -> Option<Self> {
        let socket = net::icmp6(interface, link.index);
        match socket {
            Ok(socket) => Some(Self { socket, index: link.index, message: advertisement(link.mac), counters }),
            Err(e) => {
                warn!(interface = interface.name, error = %e,
                    "no router advertisements, so Debian's iPXE waits 13 s for one; is IPv6 off on this interface?");
                None
            }
        }
    }

    /// Runs until cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let mut next = Instant::now();
        let mut last_to_all: Option<Instant> = None;
        loop {
            let asked = tokio::select! {
                () = stop.cancelled() => return,
                () = sleep_until(next) => None,
                asked = self.solicitation() => match asked {
                    Ok(from) => Some(from),
                    Err(e) => {
                        debug!(error = %e, "router solicitations cannot be received");
                        tokio::time::sleep(MIN_DELAY).await;
                        continue;
                    }
                },
            };
            // A host without an address yet asks from `::`, and is answered with everyone else.
            let to_one = asked.filter(|from| !from.ip().is_unspecified());
            if to_one.is_none() {
                let now = Instant::now();
                if asked.is_some() && last_to_all.is_some_and(|last| now.duration_since(last) < MIN_DELAY) {
                    continue;
                }
                last_to_all = Some(now);
                next = now + INTERVAL + jitter();
            }
            let to = to_one.unwrap_or(net::all_nodes(self.index));
            match self.socket.send_to(&self.message, SocketAddr::V6(to)).await {
                Ok(_) => self.counters.sent(Answer::RouterAdvertisement),
                Err(e) => debug!(error = %e, "a router advertisement could not be sent"),
            }
        }
    }

    /// The next host on this link that looks for a router.
    async fn solicitation(&self) -> io::Result<SocketAddrV6> {
        loop {
            let mut buffer = [0; 256];
            let (length, SocketAddr::V6(from)) = self.socket.recv_from(&mut buffer).await? else { continue };
            let solicits = length >= 8 && buffer[0] == ROUTER_SOLICITATION;
            // Link-local or `::`: what came through a router is not for us (RFC 4861 section 6.1.1 has hop limit 255).
            let near = from.ip().is_unspecified() || is_link_local(from.ip());
            if solicits && near {
                return Ok(SocketAddrV6::new(*from.ip(), 0, 0, self.index));
            }
        }
    }
}

fn is_link_local(address: &Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

/// Not to be in step with other routers is all that is asked of it (RFC 4861 section 6.2.4).
fn jitter() -> Duration {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
    JITTER * (nanos % 1000) / 1000
}

/// Hop limit 64, no flags, lifetime 0, timers unspecified, and the source link-layer address option. The kernel fills in
/// the checksum.
fn advertisement(mac: MacAddr) -> [u8; 24] {
    let mut message = [0; 24];
    message[0] = ROUTER_ADVERTISEMENT;
    message[4] = 64;
    message[16] = 1;
    message[17] = 1;
    message[18..24].copy_from_slice(&mac.0);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_offers_no_route_and_no_configuration() {
        let message = advertisement(MacAddr([2, 0, 0, 0, 0, 9]));
        assert_eq!(message[..16], [134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(message[16..], [1, 1, 2, 0, 0, 0, 0, 9]);
        assert!(is_link_local(&"fe80::1".parse().unwrap()) && !is_link_local(&"fd77::1".parse().unwrap()));
    }
}
