//! What the site says about its boot networks, checked as a whole before a socket is opened: a pool that overlaps
//! another or contains the appliance itself shows up as two machines with one address, hours later and elsewhere.

use std::collections::HashSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::machine::{Hostname, MacAddr};

/// The `[boot]` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootConfig {
    /// Where machines boot from. Nothing is answered on any other interface.
    pub interfaces: Vec<Interface>,
    /// The appliance as machines reach it, `http://10.77.0.1`: scripts, kernels and images come from there.
    pub url: String,
    pub subnets: Vec<Subnet>,
    /// Added to the kernel command line of the RAM system.
    #[serde(default)]
    pub kernel_args: Vec<String>,
    #[serde(default = "yes")]
    pub tftp: bool,
    /// Send IPv6 router advertisements (lifetime 0: nobody gets a route from them). Debian's iPXE waits 13 s for one.
    #[serde(default = "yes")]
    pub router_advertisements: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    pub name: String,
    /// Our own IPv4 address on it: server identifier, TFTP server.
    pub address: Ipv4Addr,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    pub network: Network,
    /// Addresses for machines without a reservation; none: reserved machines only.
    #[serde(default)]
    pub pools: Vec<Range>,
    pub router: Option<Ipv4Addr>,
    #[serde(default)]
    pub dns: Vec<Ipv4Addr>,
    pub domain: Option<Hostname>,
    #[serde(default = "hour")]
    pub lease_seconds: u32,
    #[serde(default)]
    pub reservations: Vec<Reservation>,
}

/// Exactly one of `mac` and `uuid` says whose address it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reservation {
    pub mac: Option<MacAddr>,
    pub uuid: Option<uuid::Uuid>,
    pub address: Ipv4Addr,
}

fn yes() -> bool {
    true
}

fn hour() -> u32 {
    3600
}

/// At most this many name servers: the answer must fit the 548 bytes that every client takes (RFC 2131 section 2).
const MAX_DNS: usize = 4;
const MAX_URL: usize = 100;
const MAX_DOMAIN: usize = 64;
const LEASE_SECONDS: std::ops::RangeInclusive<u32> = 60..=365 * 86400;

impl BootConfig {
    /// Every contradiction that can be seen without touching the network.
    pub fn check(&self) -> Result<()> {
        self.check_interfaces()?;
        check_url(&self.url)?;
        self.kernel_args.iter().try_for_each(|arg| check_kernel_arg(arg))?;
        for (i, subnet) in self.subnets.iter().enumerate() {
            subnet.check()?;
            if let Some(other) = self.subnets.iter().take(i).find(|s| s.network.overlaps(subnet.network)) {
                return Err(wrong(format!("subnets {} and {} overlap", other.network, subnet.network))
                    .hint("every address may belong to one subnet only; make one of the two smaller"));
            }
            for interface in &self.interfaces {
                if let Some(pool) = subnet.pools.iter().find(|p| p.contains(interface.address)) {
                    return Err(wrong(format!(
                        "pool {pool} contains {}, the appliance's own address on {}",
                        interface.address, interface.name
                    ))
                    .hint("start the pool behind it"));
                }
                if subnet.reservations.iter().any(|r| r.address == interface.address) {
                    return Err(wrong(format!("{} is reserved, but is the appliance's own", interface.address)));
                }
            }
        }
        Ok(())
    }

    /// The TCP port that machines find us at.
    pub fn port(&self) -> u16 {
        reqwest::Url::parse(&self.url).ok().and_then(|url| url.port_or_known_default()).unwrap_or(80)
    }

    fn check_interfaces(&self) -> Result<()> {
        if self.interfaces.is_empty() {
            return Err(wrong("boot has no interface").hint("add interfaces = [{ name = \"…\", address = \"…\" }]"));
        }
        let mut names = HashSet::new();
        for interface in &self.interfaces {
            // IFNAMSIZ of linux/if.h is 16 with the final NUL.
            let shape = (1..=15).contains(&interface.name.len())
                && interface.name.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
            if !shape {
                return Err(wrong(format!("{:?} is not an interface name", interface.name)));
            }
            if !names.insert(&interface.name) {
                return Err(wrong(format!("interface {} is listed twice", interface.name)));
            }
        }
        Ok(())
    }
}

impl Subnet {
    fn check(&self) -> Result<()> {
        let network = self.network;
        for (i, pool) in self.pools.iter().enumerate() {
            if !network.is_host(pool.first) || !network.is_host(pool.last) {
                return Err(wrong(format!("pool {pool} is not inside subnet {network}")).hint(format!(
                    "hosts of {network} are {} to {}",
                    network.first_host(),
                    network.last_host()
                )));
            }
            if let Some(other) = self.pools.iter().take(i).find(|p| p.overlaps(*pool)) {
                return Err(wrong(format!("pools {other} and {pool} of subnet {network} overlap")));
            }
            if let Some(router) = self.router.filter(|r| pool.contains(*r)) {
                return Err(wrong(format!("pool {pool} contains the router {router}")));
            }
        }
        if let Some(router) = self.router.filter(|r| !network.is_host(*r)) {
            return Err(wrong(format!("router {router} is not inside subnet {network}")));
        }
        if self.dns.len() > MAX_DNS {
            return Err(wrong(format!("subnet {network} has more than {MAX_DNS} name servers")));
        }
        if self.domain.as_ref().is_some_and(|d| d.as_str().len() > MAX_DOMAIN) {
            return Err(wrong(format!("the domain of subnet {network} is longer than {MAX_DOMAIN} characters")));
        }
        if !LEASE_SECONDS.contains(&self.lease_seconds) {
            return Err(wrong(format!("lease_seconds of subnet {network} is {}", self.lease_seconds)).hint(format!(
                "use {} to {}",
                LEASE_SECONDS.start(),
                LEASE_SECONDS.end()
            )));
        }
        self.check_reservations()
    }

    fn check_reservations(&self) -> Result<()> {
        let (mut addresses, mut macs, mut uuids) = (HashSet::new(), HashSet::new(), HashSet::new());
        for r in &self.reservations {
            let whose = match (r.mac, r.uuid) {
                (Some(mac), None) => mac.to_string(),
                (None, Some(uuid)) => uuid.to_string(),
                _ => {
                    return Err(wrong(format!("the reservation of {} needs either mac or uuid", r.address)));
                }
            };
            if !self.network.is_host(r.address) {
                return Err(wrong(format!("reservation {} is not inside subnet {}", r.address, self.network)));
            }
            if Some(r.address) == self.router {
                return Err(wrong(format!("{} is reserved for {whose}, but is the router", r.address)));
            }
            if !addresses.insert(r.address) {
                return Err(wrong(format!("{} is reserved twice, the second time for {whose}", r.address)));
            }
            if r.mac.is_some_and(|m| !macs.insert(m)) || r.uuid.is_some_and(|u| !uuids.insert(u)) {
                return Err(wrong(format!("{whose} has two reservations in subnet {}", self.network)));
            }
        }
        Ok(())
    }
}

fn wrong(message: impl Into<String>) -> Error {
    Error::config("boot.config", message)
}

fn check_url(url: &str) -> Result<()> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let plain = |b: u8| b.is_ascii_alphanumeric() || b".:/_-[]".contains(&b);
    match rest {
        Some(rest) if !rest.is_empty() && url.len() <= MAX_URL && !url.ends_with('/') && rest.bytes().all(plain) => {
            Ok(())
        }
        _ => Err(wrong(format!("boot.url {url:?} is not usable"))
            .hint("write it as http://10.77.0.1 or http://10.77.0.1:8080, without a slash at the end")),
    }
}

/// One word that neither iPXE's shell nor the kernel reads as something else.
fn check_kernel_arg(arg: &str) -> Result<()> {
    let plain = arg.bytes().all(|b| b.is_ascii_graphic() && !b"$;#|&".contains(&b));
    if arg.is_empty() || arg.len() > 256 || !plain {
        return Err(wrong(format!("kernel argument {arg:?} is not one plain word"))
            .hint("one argument an entry; no blanks and none of $ ; # | &, which iPXE reads as its own"));
    }
    if ["rackline.", "BOOTIF=", "initrd="].iter().any(|ours| arg.starts_with(ours)) {
        return Err(wrong(format!("kernel argument {arg:?} is set by the appliance itself")));
    }
    Ok(())
}

/// An IPv4 network in CIDR notation, `/8` to `/30`, host bits zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    base: u32,
    prefix: u8,
}

impl Network {
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from(self.bits())
    }

    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base | !self.bits())
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.bits() == self.base
    }

    /// Inside, and neither the network's own address nor its broadcast address.
    pub fn is_host(self, address: Ipv4Addr) -> bool {
        (self.first_host()..=self.last_host()).contains(&address)
    }

    pub fn first_host(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 1)
    }

    pub fn last_host(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.broadcast()) - 1)
    }

    fn overlaps(self, other: Network) -> bool {
        self.contains(Ipv4Addr::from(other.base)) || other.contains(Ipv4Addr::from(self.base))
    }

    fn bits(self) -> u32 {
        u32::MAX << (32 - u32::from(self.prefix))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Network {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let wrong = || wrong(format!("{s:?} is not an IPv4 network")).hint("write it as 10.77.0.0/16, /8 to /30");
        let (address, prefix) = s.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().ok().filter(|p| (8..=30).contains(p)).ok_or_else(wrong)?;
        let network = Network { base: u32::from(address), prefix };
        match network.base & !network.bits() {
            0 => Ok(network),
            _ => Err(wrong().hint(format!("did you mean {}/{prefix}?", Ipv4Addr::from(network.base & network.bits())))),
        }
    }
}

/// Addresses from first to last, both included: `10.77.2.0-10.77.5.255`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Range {
    pub first: Ipv4Addr,
    pub last: Ipv4Addr,
}

impl Range {
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address)
    }

    fn overlaps(self, other: Range) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl fmt::Debug for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Range {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let ends = s.split_once('-').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
        match ends {
            Some((first, last)) if first <= last => Ok(Range { first, last }),
            _ => Err(wrong(format!("{s:?} is not a range of addresses")).hint("write it as 10.77.2.0-10.77.5.255")),
        }
    }
}

macro_rules! serde_as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let error = |e: Error| match e.next_step() {
                    Some(hint) => serde::de::Error::custom(format!("{e}; {hint}")),
                    None => serde::de::Error::custom(e),
                };
                String::deserialize(d)?.parse().map_err(error)
            }
        }
    };
}

serde_as_text!(Network);
serde_as_text!(Range);

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn sample() -> BootConfig {
        toml::from_str(SAMPLE).unwrap()
    }

    const SAMPLE: &str = r#"
        url = "http://10.77.0.1"
        kernel_args = ["no_timer_check", "panic=10"]
        interfaces = [{ name = "lab0", address = "10.77.0.1" }]

        [[subnets]]
        network = "10.77.0.0/16"
        pools = ["10.77.2.0-10.77.5.255"]
        router = "10.77.0.1"
        dns = ["10.77.0.1"]
        domain = "lab"
        lease_seconds = 600
        reservations = [
            { mac = "52:54:00:77:00:99", address = "10.77.9.9" },
            { uuid = "564d2c3a-0000-4000-8000-000000000001", address = "10.77.2.7" },
        ]

        [[subnets]]
        network = "10.78.0.0/24"
        pools = ["10.78.0.10-10.78.0.13"]
    "#;

    #[test]
    fn the_sample_is_right_and_unknown_keys_are_not() {
        let config = sample();
        config.check().unwrap();
        assert!(config.tftp && config.router_advertisements);
        assert_eq!(config.subnets[1].lease_seconds, 3600);
        assert_eq!(config.subnets[0].network.mask(), Ipv4Addr::new(255, 255, 0, 0));
        assert_eq!(config.subnets[0].network.broadcast(), Ipv4Addr::new(10, 77, 255, 255));
        let error = toml::from_str::<BootConfig>(&SAMPLE.replace("router =", "gateway =")).unwrap_err();
        assert!(error.to_string().contains("gateway"), "{error}");
        let error = toml::from_str::<BootConfig>(&SAMPLE.replace("10.78.0.0/24", "10.78.0.1/24")).unwrap_err();
        assert!(error.to_string().contains("did you mean 10.78.0.0/24?"), "{error}");
    }

    /// `from` in the sample replaced by `to` must be refused with a sentence that has `says`.
    fn refused(from: &str, to: &str, says: &str) {
        assert!(SAMPLE.contains(from), "{from}");
        let config: BootConfig = toml::from_str(&SAMPLE.replace(from, to)).unwrap();
        let error = config.check().unwrap_err();
        assert_eq!(error.code(), "boot.config");
        assert!(error.message().contains(says), "{error}");
    }

    #[test]
    fn contradictions_are_refused() {
        refused("10.78.0.", "10.77.3.", "overlap");
        refused("10.78.0.10-10.78.0.13", "10.78.0.10-10.78.1.13", "not inside subnet 10.78.0.0/24");
        refused("10.78.0.10-10.78.0.13", "10.78.0.10-10.78.0.255", "not inside");
        refused(r#"["10.77.2.0-10.77.5.255"]"#, r#"["10.77.2.0-10.77.5.255", "10.77.5.0-10.77.6.0"]"#, "overlap");
        refused("10.77.2.0-", "10.77.0.1-", "contains the router");
        refused("10.77.9.9", "10.78.0.9", "not inside");
        refused("10.77.9.9", "10.77.2.7", "reserved twice");
        refused("10.77.9.9", "10.77.0.1", "is the router");
        refused("mac = \"52:54:00:77:00:99\", ", "", "either mac or uuid");
        refused("lease_seconds = 600", "lease_seconds = 5", "lease_seconds");
        refused("\"http://10.77.0.1\"", "\"10.77.0.1\"", "boot.url");
        refused("\"http://10.77.0.1\"", "\"http://10.77.0.1/\"", "boot.url");
        refused("panic=10", "panic=10 quiet", "plain word");
        refused("panic=10", "a=${net0/mac}", "plain word");
        refused("panic=10", "rackline.token=x", "set by the appliance");
        refused("lab0", "a-name-that-is-too-long", "interface name");
        refused("name = \"lab0\", address = \"10.77.0.1\"", "name = \"lab0\", address = \"10.77.2.1\"", "own address");
    }
}
