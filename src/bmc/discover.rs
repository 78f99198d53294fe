//! Looking for BMCs in a range of addresses, by what each of them tells anybody: RMCP's presence ping (ASF 2.0 section
//! 3.2.4), the system GUID (IPMI 2.0 section 22.14), and the service root of Redfish (DSP0266 section 6.9). No user, no
//! password; nothing is changed. In networks of this host, those with Redfish can be asked for all at once ([`ssdp`]).
//!
//! Addresses are begun at a measured rate, since a switch that has to ask for a thousand unknown neighbours at once drops
//! other people's packets, and security appliances take a fast sweep for an attack.

mod ssdp;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::net::UdpSocket;
use tokio::time::{interval, timeout};

use super::rmcp::packet::{sessionless, sessionless_response};
use crate::error::{Error, Kind, OrFail, Result};
use crate::ipmi::app::GetSystemGuid;
use crate::ipmi::message::Ask;

/// For one answer; a ping is sent twice.
const ANSWER: Duration = Duration::from_millis(800);
/// For the service root, with the slow TLS of a BMC.
const ROOT: Duration = Duration::from_secs(8);
const ROOT_MAX: usize = 64 << 10;
/// Longest prefix that is searched: 65,536 addresses.
const WIDEST: u8 = 16;
/// The IANA number of ASF, and its message types.
const ASF: [u8; 4] = [0, 0, 0x11, 0xbe];
const PING: u8 = 0x80;
const PONG: u8 = 0x40;

/// A network of IPv4 addresses, `10.0.0.0/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    first: u32,
    last: u32,
}

impl FromStr for Range {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::input("bmc.range", format!("{text:?} is not a range of addresses: {why}"))
                .hint("10.0.0.0/24, or one address")
        };
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let address: Ipv4Addr = address.parse().map_err(|_| wrong("no IPv4 address"))?;
        let prefix: u8 = prefix.parse().ok().filter(|p| *p <= 32).ok_or_else(|| wrong("the prefix is 0 to 32"))?;
        if prefix < WIDEST {
            return Err(wrong("it has more than 65,536 addresses"));
        }
        let hosts = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
        let (first, last) = (u32::from(address) & !hosts, u32::from(address) | hosts);
        // The first and the last of a network are no hosts', except in those of one or two addresses (RFC 3021).
        Ok(if prefix < 31 { Self { first: first + 1, last: last - 1 } } else { Self { first, last } })
    }
}

impl Range {
    /// From one to another, both included, however many are between them.
    pub fn between(first: Ipv4Addr, last: Ipv4Addr) -> Self {
        Self { first: first.into(), last: last.into() }
    }

    fn contains(self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&u32::from(address))
    }

    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        (self.first..=self.last).map(Ipv4Addr::from)
    }
}

/// How fast, and where to knock.
#[derive(Debug, Clone, Copy)]
pub struct Search {
    /// Addresses begun in a second.
    pub per_second: u32,
    /// Addresses at work at a time.
    pub at_once: usize,
    pub ipmi_port: u16,
    pub redfish_port: u16,
}

impl Default for Search {
    fn default() -> Self {
        Self { per_second: 200, at_once: 128, ipmi_port: 623, redfish_port: 443 }
    }
}

/// An address where something answers as a BMC does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    pub address: IpAddr,
    /// It answers the presence ping and says that it knows IPMI.
    pub ipmi: bool,
    /// As the BMC sends it, where it tells strangers.
    pub guid: Option<uuid::Uuid>,
    pub redfish: Option<Root>,
}

/// The service root of Redfish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all(deserialize = "PascalCase"))]
pub struct Root {
    #[serde(rename(deserialize = "RedfishVersion"))]
    pub version: String,
    #[serde(default)]
    pub vendor: Option<String>,
    #[serde(default)]
    pub product: Option<String>,
    /// Of the service, which is not the machine's.
    #[serde(default, rename(deserialize = "UUID"))]
    pub uuid: Option<uuid::Uuid>,
}

/// Everything that answers in a range, by address.
pub async fn search(range: Range, search: Search) -> Result<Vec<Found>> {
    look_at(range.addresses(), search).await
}

/// What answers in these networks of this host when all are asked for Redfish at once.
pub async fn announced(networks: &[Range], search: Search) -> Result<Vec<Found>> {
    look_at(ssdp::ask(networks).await?.into_iter(), search).await
}

async fn look_at(addresses: impl Iterator<Item = Ipv4Addr>, search: Search) -> Result<Vec<Found>> {
    let client = reqwest::Client::builder()
        .timeout(ROOT)
        .connect_timeout(ANSWER * 2)
        .redirect(reqwest::redirect::Policy::none())
        // Nothing is sent that anybody could want, and most BMCs sign for themselves.
        .tls_danger_accept_invalid_certs(true)
        .no_proxy()
        .build()
        .or_fail(Kind::Internal, "bmc.discover", || "cannot make an HTTP client")?;
    let tick = interval(Duration::from_secs(1) / search.per_second.max(1));
    let paced = stream::unfold((addresses, tick), |(mut addresses, mut tick)| async move {
        let address = addresses.next()?;
        tick.tick().await;
        Some((address, (addresses, tick)))
    });
    let looked = paced.map(|address| look(&client, address.into(), search)).buffer_unordered(search.at_once.max(1));
    let mut found: Vec<Found> = looked.filter_map(std::future::ready).collect().await;
    found.sort_by_key(|found| found.address);
    Ok(found)
}

async fn look(client: &reqwest::Client, address: IpAddr, search: Search) -> Option<Found> {
    let ipmi = SocketAddr::new(address, search.ipmi_port);
    let (pinged, redfish) = tokio::join!(ping(ipmi), root(client, SocketAddr::new(address, search.redfish_port)));
    let ipmi_there = pinged.unwrap_or(false);
    if !ipmi_there && redfish.is_none() {
        return None;
    }
    let guid = if ipmi_there { guid(ipmi).await } else { None };
    Some(Found { address, ipmi: ipmi_there, guid, redfish })
}

/// Whether something there knows IPMI; `None`: silence.
async fn ping(address: SocketAddr) -> Option<bool> {
    const TAG: u8 = 0x52;
    let [a, b, c, d] = ASF;
    // RMCP version 1.0, no acknowledgement, class ASF; then the ASF header without data.
    let ping = [6, 0, 0xff, 6, a, b, c, d, PING, TAG, 0, 0];
    ask(address, &ping, |answer| {
        let (head, data) = answer.split_at_checked(12)?;
        let pong = head.get(3) == Some(&6) && head.get(4..8) == Some(&ASF) && head.get(8) == Some(&PONG);
        // Byte 9 of a pong's data: the entities that are supported, IPMI in bit 7.
        (pong && head.get(9) == Some(&TAG)).then(|| data.get(8).is_some_and(|entities| entities & 0x80 != 0))
    })
    .await
}

async fn guid(address: SocketAddr) -> Option<uuid::Uuid> {
    ask(address, &sessionless(&GetSystemGuid.request(), 1), |answer| {
        let (_, response) = sessionless_response(answer)?;
        // "Not without a session" is an answer too.
        Some(GetSystemGuid.settle(&response).ok().map(uuid::Uuid::from_bytes))
    })
    .await
    .flatten()
}

/// Sends twice; the first answer from there that can be read.
async fn ask<T>(address: SocketAddr, packet: &[u8], read: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
    let any = if address.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let socket = UdpSocket::bind((any, 0)).await.ok()?;
    socket.connect(address).await.ok()?;
    let mut buffer = [0; 512];
    for _ in 0..2 {
        socket.send(packet).await.ok()?;
        let answer = async {
            loop {
                let length = socket.recv(&mut buffer).await.ok()?;
                if let Some(answer) = read(buffer.get(..length).unwrap_or_default()) {
                    return Some(answer);
                }
            }
        };
        if let Ok(answer) = timeout(ANSWER, answer).await {
            return answer;
        }
    }
    None
}

async fn root(client: &reqwest::Client, address: SocketAddr) -> Option<Root> {
    let mut answer = client.get(format!("https://{address}/redfish/v1/")).send().await.ok()?;
    if !answer.status().is_success() {
        return None;
    }
    let mut text = Vec::new();
    while let Some(part) = answer.chunk().await.ok()? {
        if text.len() + part.len() > ROOT_MAX {
            return None;
        }
        text.extend_from_slice(&part);
    }
    let mut root: Root = serde_json::from_slice(&text).ok()?;
    root.version = short(&root.version);
    root.vendor = root.vendor.as_deref().map(short);
    root.product = root.product.as_deref().map(short);
    Some(root)
}

/// A word of a stranger, fit for a terminal.
fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_its_hosts() {
        let all = |text: &str| text.parse::<Range>().unwrap().addresses().collect::<Vec<_>>();
        assert_eq!(all("10.0.0.7"), [Ipv4Addr::new(10, 0, 0, 7)]);
        assert_eq!(all("10.0.0.6/31").len(), 2);
        assert_eq!(all("10.0.0.5/30"), [Ipv4Addr::new(10, 0, 0, 5), Ipv4Addr::new(10, 0, 0, 6)]);
        assert_eq!(all("10.0.1.0/24").len(), 254);
        assert_eq!(all("255.255.0.0/16").len(), 65_534);
        for wrong in ["", "10.0.0.0/15", "10.0.0.0/33", "10.0.0.0/x", "bmc1/24", "fd77::/120"] {
            assert_eq!(wrong.parse::<Range>().unwrap_err().code(), "bmc.range", "{wrong}");
        }
    }
}
