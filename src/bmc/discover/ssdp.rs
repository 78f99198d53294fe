//! Asking a whole network at once which Redfish services there are: SSDP (DSP0266, "Discovery"; the messages are those of
//! UPnP Device Architecture 1.1 section 1.3).
//!
//! ```text
//! M-SEARCH for redfish-rest:1 ──► 239.255.255.250 port 1900, out of each interface that is in one of the networks
//!           AL: https://10.0.0.7/redfish/v1/ ◄── every service that listens
//! ```
//!
//! Anybody may answer, with anything. Of an answer only the address counts, and only where it lies in the networks that were
//! asked: nobody can send us elsewhere. Whether a BMC is there is then looked at as for any other address.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use reqwest::Url;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep, timeout_at};

use super::Range;
use crate::error::{Error, Kind, OrFail, Result};

const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1900);
const SERVICE: &str = "urn:dmtf-org:service:redfish-rest:1";
/// Within which services spread their answers, in seconds.
const SPREAD: u64 = 2;
/// UDP loses packets, and a switch forgets its first multicast.
const TIMES: u32 = 3;
const BETWEEN: Duration = Duration::from_millis(300);
/// DSP0266 wants 2.
const TTL: u32 = 2;
/// Addresses of answers that are kept; whoever answers in the name of more is lying.
const MOST: usize = 8192;

/// Addresses in these networks that somebody says have a Redfish service.
pub(super) async fn ask(networks: &[Range]) -> Result<BTreeSet<Ipv4Addr>> {
    let ours: BTreeSet<Ipv4Addr> = networks.iter().filter_map(|network| our_address(*network)).collect();
    if ours.is_empty() {
        return Err(Error::input(
            "bmc.ssdp",
            "this host has no address in any of these networks, and SSDP is not routed",
        )
        .hint("give a range of addresses, which is searched one by one: rackline bmc discover 10.0.0.0/24"));
    }
    let asked = ours.into_iter().map(|ours| ask_from(ours, networks));
    let answers = futures::future::try_join_all(asked).await?;
    Ok(answers.into_iter().flatten().collect())
}

/// Of the interface that is in this network.
fn our_address(network: Range) -> Option<Ipv4Addr> {
    // Connecting a UDP socket sends nothing and tells by which address we would.
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::from(network.last), GROUP.port())).ok()?;
    match socket.local_addr().ok()?.ip() {
        std::net::IpAddr::V4(ours) if network.contains(ours) => Some(ours),
        _ => None,
    }
}

async fn ask_from(ours: Ipv4Addr, networks: &[Range]) -> Result<BTreeSet<Ipv4Addr>> {
    let failed = || format!("cannot ask for BMCs by SSDP from {ours}");
    let socket = open(ours).or_fail(Kind::Config, "bmc.ssdp", failed)?;
    let question = format!(
        "M-SEARCH * HTTP/1.1\r\nHOST: {GROUP}\r\nMAN: \"ssdp:discover\"\r\nMX: {SPREAD}\r\nST: {SERVICE}\r\n\r\n"
    );
    let send = async {
        for time in 0..TIMES {
            sleep(BETWEEN * time.min(1)).await;
            socket.send_to(question.as_bytes(), GROUP).await?;
        }
        Ok(())
    };
    let until = Instant::now() + BETWEEN * TIMES + Duration::from_secs(SPREAD + 1);
    let (sent, answers) = tokio::join!(send, listen(&socket, networks, until));
    sent.map_err(|e: std::io::Error| Error::config("bmc.ssdp", failed()).because(e))?;
    Ok(answers)
}

fn open(ours: Ipv4Addr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_multicast_if_v4(&ours)?;
    socket.set_multicast_ttl_v4(TTL)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddrV4::new(ours, 0).into())?;
    UdpSocket::from_std(socket.into())
}

async fn listen(socket: &UdpSocket, networks: &[Range], until: Instant) -> BTreeSet<Ipv4Addr> {
    let mut told = BTreeSet::new();
    let mut buffer = [0; 2048];
    while told.len() < MOST {
        let Ok(received) = timeout_at(until, socket.recv_from(&mut buffer)).await else { break };
        // An ICMP error to what was sent is no reason to stop listening.
        let Ok((length, from)) = received else { continue };
        let Some(address) = buffer.get(..length).and_then(answer) else { continue };
        match networks.iter().any(|network| network.contains(address)) {
            true => drop(told.insert(address)),
            false => tracing::warn!(%from, %address, "an answer by SSDP names an address elsewhere and is left out"),
        }
    }
    told
}

/// The address in an answer, where it is one for Redfish.
fn answer(packet: &[u8]) -> Option<Ipv4Addr> {
    let text = std::str::from_utf8(packet).ok()?;
    let (status, headers) = text.split_once('\n')?;
    let mut status = status.split_whitespace();
    if !status.next()?.starts_with("HTTP/1.") || status.next()? != "200" {
        return None;
    }
    let header = |name: &str| {
        let mut lines = headers.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(of, _)| of.trim().eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    };
    // With a minor version it goes on: `redfish-rest:1:6`.
    let of = header("ST")?.strip_prefix(SERVICE)?;
    if !(of.is_empty() || of.starts_with(':')) {
        return None;
    }
    let url: Url = header("AL")?.trim_matches(['<', '>']).parse().ok()?;
    url.host_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(st: &str, al: &str) -> Option<Ipv4Addr> {
        answer(
            format!(
                "HTTP/1.1 200 OK\r\nCACHE-CONTROL:max-age=1800\r\nSt: {st}\r\nUSN: uuid:1::{st}\r\nal:{al}\r\n\r\n"
            )
            .as_bytes(),
        )
    }

    #[test]
    fn of_an_answer_the_address_counts() {
        let at = Some(Ipv4Addr::new(10, 0, 0, 7));
        assert_eq!(told(SERVICE, "https://10.0.0.7/redfish/v1/"), at);
        assert_eq!(told("urn:dmtf-org:service:redfish-rest:1:6", "<https://user:pw@10.0.0.7:8443/other?x#y>"), at);
        for (st, al) in [
            ("urn:dmtf-org:service:redfish-rest:10", "https://10.0.0.7/"),
            ("upnp:rootdevice", "https://10.0.0.7/"),
            (SERVICE, "https://bmc.example/redfish/v1/"),
            (SERVICE, "https://[fe80::1]/redfish/v1/"),
            (SERVICE, "10.0.0.7"),
            (SERVICE, ""),
        ] {
            assert_eq!(told(st, al), None, "{st} {al}");
        }
        for garbage in
            [&b""[..], b"\n", b"HTTP/1.1 200 OK", b"\xff\xfe\n", b"NOTIFY * HTTP/1.1\r\nAL: https://10.0.0.7/\r\n"]
        {
            assert_eq!(answer(garbage), None);
        }
    }
}
