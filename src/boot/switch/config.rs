//! The `[[switches]]` and `[services]` sections: which switch is to become what, and which server is expected on which
//! of its ports. Checked as a whole at load: a port map with a slip in it would place machines wrongly for years.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::port;
use crate::boot::config::{BootConfig, Subnet};
use crate::error::{Error, Result};
use crate::machine::{Hostname, MacAddr, Place, Serial};

/// The network operating systems whose zero-touch configuration is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vendor {
    Arista,
    Cumulus,
    IosXe,
    NxOs,
    Sonic,
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Arista => "Arista EOS",
            Self::Cumulus => "Cumulus Linux",
            Self::IosXe => "Cisco IOS XE",
            Self::NxOs => "Cisco NX-OS",
            Self::Sonic => "SONiC",
        })
    }
}

/// One entry of `[[switches]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Switch {
    pub name: Hostname,
    pub vendor: Vendor,
    /// By `serial`, `mac` or both it is known when it asks. ONIE and Cumulus do not tell the serial number by DHCP.
    pub serial: Option<Serial>,
    pub mac: Option<MacAddr>,
    /// Of its management port, from then on.
    pub address: Address,
    /// Where absent: the router of the subnet that `address` belongs to.
    pub gateway: Option<Ipv4Addr>,
    pub rack: Option<String>,
    pub unit: Option<u8>,
    /// The provisioning network: untagged on the ports of servers, tagged on `uplinks`.
    pub vlan: u16,
    /// The switch's own address in `vlan`; with it, it relays DHCP requests to the appliance. Without, the VLAN reaches
    /// the appliance by itself.
    pub relay: Option<Address>,
    /// The image that ONIE installs.
    pub installer: Option<PathBuf>,
    /// Port → the machine expected there. One machine may have several ports.
    #[serde(default)]
    pub ports: BTreeMap<String, Hostname>,
    #[serde(default)]
    pub uplinks: Vec<String>,
}

impl Switch {
    /// `None` unless rack and unit are both given ([`check`] refuses one alone).
    pub fn place(&self) -> Option<Place> {
        Some(Place { rack: self.rack.clone()?, unit: self.unit? })
    }
}

/// The `[services]` section: what every switch is told besides its own entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Services {
    /// Where empty: the name servers of the subnet that the switch's address belongs to.
    #[serde(default)]
    pub dns: Vec<Ipv4Addr>,
    #[serde(default)]
    pub ntp: Vec<Ipv4Addr>,
    #[serde(default)]
    pub syslog: Vec<Ipv4Addr>,
}

/// The VLANs of IEEE 802.1Q that may carry hosts.
const VLANS: std::ops::RangeInclusive<u16> = 1..=4094;
/// More than the largest chassis has.
const MAX_PORTS: usize = 1024;
const MAX_NAME: usize = 63;
const MAX_PORT_NAME: usize = 32;
const MAX_RACK: usize = 32;
/// NX-OS takes no lease shorter than this ("Using PowerOn Auto Provisioning", DHCP discovery phase), in seconds.
const POAP_LEASE: u32 = 3600;

/// Every contradiction within the list, and between the list and the boot networks.
pub fn check(switches: &[Switch], boot: &BootConfig) -> Result<()> {
    let mut taken: HashMap<String, &Hostname> = HashMap::new();
    for switch in switches {
        switch.check()?;
        switch.check_network(boot)?;
        let keys = [
            Some(format!("name {}", switch.name)),
            switch.serial.as_ref().map(|serial| format!("serial number {serial}")),
            switch.mac.map(|mac| format!("MAC address {mac}")),
            Some(format!("address {}", switch.address.ip)),
            switch.relay.map(|relay| format!("address {}", relay.ip)),
        ];
        for key in keys.into_iter().flatten() {
            if let Some(other) = taken.insert(key.clone(), &switch.name) {
                return Err(wrong(format!("switches {other} and {} have the same {key}", switch.name))
                    .hint("each has its own; correct one of the two entries"));
            }
        }
    }
    Ok(())
}

impl Switch {
    fn check(&self) -> Result<()> {
        let name = &self.name;
        // URLs of its documents must fit one DHCP option.
        if name.as_str().len() > MAX_NAME {
            return Err(wrong(format!("the name {name} of a switch is longer than {MAX_NAME} characters")));
        }
        if self.serial.is_none() && self.mac.is_none() {
            return Err(wrong(format!("switch {name} has neither serial nor mac"))
                .hint("give one of the two as it stands on its label: it is how the switch is known when it asks"));
        }
        if !VLANS.contains(&self.vlan) {
            return Err(wrong(format!("vlan {} of switch {name} is not a VLAN", self.vlan)).hint("use 1 to 4094"));
        }
        if self.rack.is_some() != self.unit.is_some() {
            return Err(wrong(format!("switch {name} has only one of rack and unit")).hint("give both or none"));
        }
        if self.rack.as_ref().is_some_and(|rack| !plain(rack, MAX_RACK)) {
            return Err(wrong(format!("rack of switch {name} is not one plain word"))
                .hint(format!("use letters, digits and -_./: , at most {MAX_RACK}")));
        }
        self.check_ports()
    }

    fn check_ports(&self) -> Result<()> {
        let name = &self.name;
        if self.ports.len() + self.uplinks.len() > MAX_PORTS {
            return Err(wrong(format!("switch {name} has more than {MAX_PORTS} ports")));
        }
        let mut seen: Vec<&String> = Vec::new();
        for port in self.ports.keys().chain(&self.uplinks) {
            if !plain(port, MAX_PORT_NAME) || !port.ends_with(|c: char| c.is_ascii_digit()) {
                return Err(wrong(format!("{port:?} of switch {name} is not a port name"))
                    .hint("write it as the switch does: Ethernet1, swp1, GigabitEthernet1/0/1"));
            }
            if let Some(other) = seen.iter().find(|other| port::same(other, port)) {
                return Err(wrong(format!("{other} and {port} of switch {name} are one port"))
                    .hint("a port has one machine, or is an uplink; remove one of the two entries"));
            }
            seen.push(port);
        }
        Ok(())
    }

    /// Its addresses must be free for it, and the way it gets its configuration must be open.
    fn check_network(&self, boot: &BootConfig) -> Result<()> {
        let name = &self.name;
        for address in [Some(self.address), self.relay].into_iter().flatten() {
            let ip = address.ip;
            if let Some(interface) = boot.interfaces.iter().find(|i| i.address == ip) {
                return Err(wrong(format!("{ip} of switch {name} is the appliance's own on {}", interface.name)));
            }
            for subnet in &boot.subnets {
                if let Some(pool) = subnet.pools.iter().find(|pool| pool.contains(ip)) {
                    return Err(wrong(format!("{ip} of switch {name} lies in the pool {pool}"))
                        .hint("machines would be given it: choose an address outside of every pool"));
                }
                let theirs =
                    |r: &&crate::boot::config::Reservation| r.address == ip && (r.mac.is_none() || r.mac != self.mac);
                if subnet.reservations.iter().any(|r| theirs(&r)) {
                    return Err(wrong(format!("{ip} of switch {name} is reserved for a machine")));
                }
            }
        }
        if let Some(relay) = self.relay.filter(|relay| subnet_of(boot, relay.ip).is_none()) {
            return Err(wrong(format!("relay {} of switch {name} is in none of boot.subnets", relay.ip))
                .hint("requests relayed from an unknown network are not answered: add the subnet"));
        }
        if self.vendor == Vendor::NxOs {
            if !boot.tftp {
                return Err(wrong(format!("switch {name} runs NX-OS, which fetches its script by TFTP"))
                    .hint("set boot.tftp = true"));
            }
            if let Some(short) = boot.subnets.iter().find(|s| s.lease_seconds < POAP_LEASE) {
                return Err(wrong(format!(
                    "switch {name} runs NX-OS, which takes no lease shorter than {POAP_LEASE} s, and subnet {} gives {} s",
                    short.network, short.lease_seconds
                ))
                .hint(format!("set its lease_seconds to {POAP_LEASE} or more")));
            }
        }
        Ok(())
    }
}

pub(super) fn subnet_of(boot: &BootConfig, address: Ipv4Addr) -> Option<&Subnet> {
    boot.subnets.iter().find(|subnet| subnet.network.contains(address))
}

fn wrong(message: impl Into<String>) -> Error {
    Error::config("switch.config", message)
}

/// What may stand in every template as it is.
fn plain(text: &str, max: usize) -> bool {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"-_./:".contains(&b);
    (1..=max).contains(&text.len()) && text.bytes().all(fine)
}

/// An address with the length of its network: `10.77.0.21/16`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Address {
    pub ip: Ipv4Addr,
    pub prefix: u8,
}

impl Address {
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::MAX << (32 - u32::from(self.prefix)))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let parts = s.split_once('/').and_then(|(ip, prefix)| Some((ip.parse().ok()?, prefix.parse().ok()?)));
        match parts {
            Some((ip, prefix @ 8..=30)) => {
                let address = Self { ip, prefix };
                let host = u32::from(ip) & !u32::from(address.mask());
                match host != 0 && host != !u32::from(address.mask()) {
                    true => Ok(address),
                    false => Err(wrong(format!("{s:?} is a whole network, not an address in it"))),
                }
            }
            _ => Err(wrong(format!("{s:?} is not an address with its network")).hint("write it as 10.77.0.21/16")),
        }
    }
}

impl Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let error = |e: Error| match e.next_step() {
            Some(hint) => serde::de::Error::custom(format!("{e}; {hint}")),
            None => serde::de::Error::custom(e),
        };
        String::deserialize(d)?.parse().map_err(error)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::boot::config::tests::sample as boot;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct List {
        switches: Vec<Switch>,
    }

    fn parse(text: &str) -> Result<Vec<Switch>, String> {
        let list: List = toml::from_str(text).map_err(|e| e.to_string())?;
        // The sample's subnets lend addresses for ten minutes.
        let mut boot = boot();
        boot.subnets.iter_mut().for_each(|subnet| subnet.lease_seconds = 3600);
        check(&list.switches, &boot).map_err(|e| format!("{e}; {}", e.next_step().unwrap_or("")))?;
        Ok(list.switches)
    }

    /// One switch of each vendor.
    pub fn sample() -> Vec<Switch> {
        parse(SAMPLE).unwrap()
    }

    const SAMPLE: &str = include_str!("sample.toml");

    #[test]
    fn the_sample_is_right() {
        let switches = sample();
        assert_eq!(switches.len(), 5);
        assert_eq!(switches[0].place().unwrap().to_string(), "C-U42");
        assert_eq!(switches[0].address.mask(), Ipv4Addr::new(255, 255, 0, 0));
    }

    /// `from` in the sample replaced by `to` must be refused with a sentence that has every one of `says`.
    fn spoilt(from: &str, to: &str, says: &[&str]) {
        assert!(SAMPLE.contains(from), "{from}");
        let error = parse(&SAMPLE.replacen(from, to, 1)).unwrap_err();
        assert!(says.iter().all(|said| error.contains(said)), "{from} → {to}: {error}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        spoilt("vendor = \"arista\"", "vendor = \"arista-eos\"", &["arista-eos", "cumulus"]);
        spoilt("unit = 42", "height = 42", &["height"]);
        spoilt("unit = 42", "", &["c-tor1", "rack and unit"]);
        spoilt("serial = \"JPE12221671\"", "", &["c-tor1", "neither serial nor mac"]);
        spoilt("name = \"c-tor2\"", "name = \"c-tor1\"", &["c-tor1", "same name"]);
        spoilt("mac = \"44:38:39:00:01:02\"", "serial = \"JPE12221671\"", &["c-tor1 and c-tor2", "JPE12221671"]);
        spoilt("10.77.0.22/16", "10.77.0.21/16", &["same address 10.77.0.21"]);
        spoilt("10.77.0.21/16", "10.77.0.21", &["10.77.0.21/16"]);
        spoilt("10.77.0.21/16", "10.77.0.0/16", &["whole network"]);
        spoilt("10.77.0.21/16", "10.77.2.9/16", &["c-tor1", "pool 10.77.2.0-10.77.5.255"]);
        spoilt("10.77.0.21/16", "10.77.0.1/16", &["appliance's own on lab0"]);
        spoilt("10.77.0.21/16", "10.77.9.9/16", &["reserved for a machine"]);
        spoilt("vlan = 210", "vlan = 4095", &["4095", "1 to 4094"]);
        spoilt("relay = \"10.78.0.1/24\"", "relay = \"10.79.0.1/24\"", &["c-tor2", "boot.subnets"]);
        spoilt("\"Ethernet2\" = ", "\"Et1\" = ", &["Et1 and Ethernet1", "are one port"]);
        spoilt("\"Ethernet2\" = ", "\"Ethernet1\" = ", &["duplicate key"]);
        spoilt("uplinks = [\"Ethernet49/1\"]", "uplinks = [\"ethernet1\"]", &["are one port"]);
        spoilt("\"Ethernet2\" = ", "\"Ethernet 2; shutdown\" = ", &["is not a port name"]);
        spoilt("\"c03-u14\"", "\"c03 u14\"", &["c03 u14", "not a host name"]);
        spoilt("rack = \"C\"", "rack = \"C\\n!\"", &["plain word"]);
    }

    #[test]
    fn nx_os_needs_tftp_and_long_leases() {
        let switches = sample();
        let mut boot = boot();
        let error = check(&switches, &boot).unwrap_err();
        assert!(error.message().contains("3600 s") && error.message().contains("600 s"), "{error}");
        boot.tftp = false;
        assert_eq!(check(&switches, &boot).unwrap_err().next_step(), Some("set boot.tftp = true"));
    }

    #[test]
    fn one_machine_may_have_two_uplinks() {
        let switches = sample();
        let ports = |s: &Switch| s.ports.values().filter(|m| m.as_str() == "c03-u12").count();
        assert!(switches.iter().map(ports).sum::<usize>() > 1);
    }
}
