//! Networks and ranges of IPv4 addresses, as the configuration writes them.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::wrong;
use crate::error::{Error, Result};

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

    pub fn overlaps(self, other: Network) -> bool {
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

    pub fn overlaps(self, other: Range) -> bool {
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
