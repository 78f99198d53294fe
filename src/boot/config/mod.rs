//! What the site says about its boot networks, checked as a whole before a socket is opened: a pool that overlaps
//! another or contains the appliance itself shows up as two machines with one address, hours later and elsewhere.

pub mod network;
pub mod rule;
pub mod subnet;

use std::collections::HashSet;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

pub use network::{Network, Range};
pub use rule::{Rule, Settings};
pub use subnet::{Owner, Reservation, Subnet};

use super::loader::rules::{LoaderRule, Override};
use crate::error::{Error, Result};

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
    /// Options for some machines, on top of what their subnet says.
    #[serde(default)]
    pub options: Vec<Rule>,
    /// Longest lease of a machine that has not said yet who it is.
    #[serde(default = "five_minutes")]
    pub unknown_lease_seconds: u32,
    /// How long an address that was never used is asked for (ARP, ICMP echo behind a relay) before it is offered, in
    /// milliseconds; 0: not at all.
    #[serde(default = "quarter_second")]
    pub probe_ms: u16,
    /// Requests of machines that are not known, answered a second on one interface or behind one relay. Known machines
    /// do not count.
    #[serde(default = "five_hundred")]
    pub unknown_per_second: u32,
    /// DHCP servers besides us that may be there; any other one is reported.
    #[serde(default)]
    pub other_servers: Vec<Ipv4Addr>,
    /// Network boots in one state, each within an hour of the one before, after which a machine is held.
    #[serde(default = "boot_limit")]
    pub boot_limit: u32,
    /// Which boot files are tried in which order, by model and architecture.
    #[serde(default)]
    pub loaders: Vec<LoaderRule>,
    /// What single machines get instead of what all others get.
    #[serde(default)]
    pub overrides: Vec<Override>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    pub name: String,
    /// Our own IPv4 address on it: server identifier, TFTP server.
    pub address: Ipv4Addr,
    #[serde(default)]
    pub mode: Mode,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Addresses and boot files.
    #[default]
    Dhcp,
    /// ProxyDHCP (PXE 2.1 section 2.2): another server gives the addresses, we add what to boot.
    Proxy,
}

fn yes() -> bool {
    true
}

fn five_minutes() -> u32 {
    300
}

fn quarter_second() -> u16 {
    250
}

fn five_hundred() -> u32 {
    500
}

fn boot_limit() -> u32 {
    6
}

const MAX_URL: usize = 100;
/// A client asks again after 4 s (RFC 2131 section 4.1), and must have had its answer by then.
const MAX_PROBE_MS: u16 = 2000;
const BOOT_LIMIT: std::ops::RangeInclusive<u32> = 3..=100;

impl BootConfig {
    /// Every contradiction that can be seen without touching the network.
    pub fn check(&self) -> Result<()> {
        self.check_interfaces()?;
        check_url(&self.url)?;
        self.kernel_args.iter().try_for_each(|arg| check_kernel_arg(arg))?;
        self.options.iter().enumerate().try_for_each(|(i, rule)| rule.check(i + 1))?;
        for rule in &self.options {
            if let Some(network) = rule.subnet.filter(|n| !self.subnets.iter().any(|s| s.network == *n)) {
                return Err(wrong(format!("boot.options names the subnet {network}, which is not configured")));
            }
        }
        subnet::check_lease(self.unknown_lease_seconds, "unknown machines (unknown_lease_seconds)")?;
        if self.probe_ms > MAX_PROBE_MS || self.unknown_per_second == 0 {
            return Err(wrong(format!("probe_ms is above {MAX_PROBE_MS}, or unknown_per_second is 0")));
        }
        self.check_boot_files()?;
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

    fn check_boot_files(&self) -> Result<()> {
        if !BOOT_LIMIT.contains(&self.boot_limit) {
            return Err(wrong(format!("boot_limit is {}", self.boot_limit))
                .hint("use 3 to 100: a healthy machine may boot twice from the network in one state"));
        }
        for (i, rule) in self.loaders.iter().enumerate() {
            rule.check()?;
            if self.loaders.iter().take(i).any(|r| r.arch == rule.arch && r.model == rule.model) {
                return Err(wrong("two entries of boot.loaders have the same model and arch"));
            }
        }
        for (i, special) in self.overrides.iter().enumerate() {
            special.check()?;
            special.kernel_args.iter().flatten().try_for_each(|arg| check_kernel_arg(arg))?;
            if self.overrides.iter().take(i).any(|o| o.same_machine(special)) {
                return Err(wrong("two entries of boot.overrides are for the same machine"));
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

/// One word that neither a boot loader's shell nor the kernel reads as something else.
fn check_kernel_arg(arg: &str) -> Result<()> {
    let plain = arg.bytes().all(|b| b.is_ascii_graphic() && !b"$;#|&'\"\\".contains(&b));
    if arg.is_empty() || arg.len() > 256 || !plain {
        return Err(wrong(format!("kernel argument {arg:?} is not one plain word")).hint(
            "one argument an entry; no blanks and none of $ ; # | & ' \" \\, which boot loaders read as their own",
        ));
    }
    if ["rackline.", "BOOTIF=", "initrd="].iter().any(|ours| arg.starts_with(ours)) {
        return Err(wrong(format!("kernel argument {arg:?} is set by the appliance itself")));
    }
    Ok(())
}

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
        refused("mac = \"52:54:00:77:00:99\", ", "", "one of mac, uuid and circuit");
        refused(
            "mac = \"52:54:00:77:00:99\", ",
            "mac = \"52:54:00:77:00:99\", remote = \"tor1\", ",
            "one of mac, uuid",
        );
        refused("lease_seconds = 600", "lease_seconds = 600\nshared = \"\"", "shared");
        refused("lease_seconds = 600", "lease_seconds = 5", "lease_seconds");
        refused("\"http://10.77.0.1\"", "\"10.77.0.1\"", "boot.url");
        refused("\"http://10.77.0.1\"", "\"http://10.77.0.1/\"", "boot.url");
        refused("panic=10", "panic=10 quiet", "plain word");
        refused("panic=10", "a=${net0/mac}", "plain word");
        refused("panic=10", "rackline.token=x", "set by the appliance");
        refused(
            "[[subnets]]\n        network = \"10.77",
            "[[options]]\n subnet = \"10.99.0.0/16\"\n[[subnets]]\n        network = \"10.77",
            "not configured",
        );
        refused("lab0", "a-name-that-is-too-long", "interface name");
        refused("name = \"lab0\", address = \"10.77.0.1\"", "name = \"lab0\", address = \"10.77.2.1\"", "own address");
    }
}
