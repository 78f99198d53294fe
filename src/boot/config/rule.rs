//! Options for some machines: each `[[boot.options]]` says whom it is for and what they get. Rules are read in order and
//! a later one wins, so general rules stand first.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::network::Network;
use super::subnet::{check_domain, check_lease, check_servers};
use super::wrong;
use crate::boot::Facts;
use crate::error::Result;
use crate::machine::{Hostname, Role};

/// Every condition that is given must hold; a rule without any is for everyone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub subnet: Option<Network>,
    /// Product name, as SMBIOS has it.
    pub model: Option<String>,
    pub role: Option<Role>,
    /// Name of a machine.
    pub machine: Option<String>,
    /// State in the lifecycle: `seen`, `ready`, `delivered` and so on.
    pub state: Option<String>,

    pub lease_seconds: Option<u32>,
    pub router: Option<Ipv4Addr>,
    pub dns: Option<Vec<Ipv4Addr>>,
    pub domain: Option<Hostname>,
    pub ntp: Option<Vec<Ipv4Addr>>,
    /// Bytes, 68 to 65535 (RFC 2132 section 5.1).
    pub mtu: Option<u16>,
    /// Any other option by its number: text, or bytes as digits behind `0x`.
    #[serde(default)]
    pub raw: BTreeMap<String, String>,
}

/// Options that the server sets itself; a rule that set them would break the exchange.
const OWN: [u8; 14] = [0, 1, 50, 51, 52, 53, 54, 55, 57, 58, 59, 61, 82, 255];
/// Options that have a key of their own.
const NAMED: [(u8, &str); 6] =
    [(3, "router"), (6, "dns"), (15, "domain"), (26, "mtu"), (42, "ntp"), (67, "boot.loaders or boot.overrides")];
/// All raw options of a rule together: what every client takes is 548 bytes.
const MAX_RAW: usize = 200;

/// What the rules make of one machine on one subnet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    pub lease_seconds: Option<u32>,
    pub router: Option<Ipv4Addr>,
    pub dns: Option<Vec<Ipv4Addr>>,
    pub domain: Option<Hostname>,
    pub ntp: Vec<Ipv4Addr>,
    pub mtu: Option<u16>,
    pub raw: BTreeMap<u8, Vec<u8>>,
}

impl Rule {
    pub fn check(&self, number: usize) -> Result<()> {
        let whose = format!("boot.options number {number}");
        if let Some(seconds) = self.lease_seconds {
            check_lease(seconds, &whose)?;
        }
        check_servers(self.dns.as_deref().unwrap_or_default(), "name servers", &whose)?;
        check_servers(self.ntp.as_deref().unwrap_or_default(), "time servers", &whose)?;
        check_domain(self.domain.as_ref(), &whose)?;
        if self.mtu.is_some_and(|mtu| mtu < 68) {
            return Err(wrong(format!("{whose}: mtu is below 68")));
        }
        let mut length = 0;
        for (code, value) in &self.raw {
            let number: u8 = code
                .parse()
                .ok()
                .filter(|n| !OWN.contains(n))
                .ok_or_else(|| wrong(format!("{whose}: raw option {code:?} cannot be set")))?;
            if let Some((_, key)) = NAMED.iter().find(|(n, _)| *n == number) {
                return Err(wrong(format!("{whose}: option {number} has a key of its own")).hint(format!("use {key}")));
            }
            let bytes = raw_bytes(value).ok_or_else(|| {
                wrong(format!("{whose}: raw option {number} is {value:?}"))
                    .hint("write text of 1 to 255 characters, or bytes as 0x0a4d0001")
            })?;
            length += bytes.len() + 2;
        }
        match length {
            0..=MAX_RAW => Ok(()),
            _ => Err(wrong(format!("{whose}: the raw options are longer than {MAX_RAW} bytes together"))),
        }
    }

    fn holds(&self, subnet: Network, facts: Option<&Facts>) -> bool {
        let is = |wanted: &Option<String>, found: Option<&str>| wanted.as_deref().is_none_or(|w| found == Some(w));
        self.subnet.is_none_or(|s| s == subnet)
            && is(&self.model, facts.and_then(|f| f.model.as_deref()))
            && self.role.is_none_or(|r| facts.and_then(|f| f.role.as_ref()).is_some_and(|has| has.contains(r)))
            && is(&self.machine, facts.map(|f| f.name.as_str()))
            && is(&self.state, facts.map(|f| f.state))
    }
}

impl Settings {
    pub fn of(rules: &[Rule], subnet: Network, facts: Option<&Facts>) -> Self {
        let mut settings = Self::default();
        for rule in rules.iter().filter(|rule| rule.holds(subnet, facts)) {
            settings.lease_seconds = rule.lease_seconds.or(settings.lease_seconds);
            settings.router = rule.router.or(settings.router);
            settings.dns = rule.dns.clone().or(settings.dns);
            settings.domain = rule.domain.clone().or(settings.domain);
            settings.ntp = rule.ntp.clone().unwrap_or(settings.ntp);
            settings.mtu = rule.mtu.or(settings.mtu);
            let raw = rule.raw.iter().filter_map(|(code, value)| Some((code.parse().ok()?, raw_bytes(value)?)));
            settings.raw.extend(raw);
        }
        settings
    }
}

fn raw_bytes(value: &str) -> Option<Vec<u8>> {
    let bytes: Vec<u8> = match value.strip_prefix("0x") {
        None => value.as_bytes().to_vec(),
        Some(digits) => hex::decode(digits).ok()?,
    };
    (1..=255).contains(&bytes.len()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Result<Vec<Rule>> {
        #[derive(Deserialize)]
        struct Rules {
            options: Vec<Rule>,
        }
        let rules = toml::from_str::<Rules>(text).unwrap().options;
        rules.iter().enumerate().try_for_each(|(i, rule)| rule.check(i + 1))?;
        Ok(rules)
    }

    #[test]
    fn later_rules_win_and_each_condition_counts() {
        let rules = rules(
            r#"
            [[options]]
            ntp = ["10.77.0.1"]
            mtu = 1500
            [[options]]
            subnet = "10.78.0.0/24"
            mtu = 9000
            [[options]]
            role = "kvm"
            state = "delivered"
            lease_seconds = 86400
            raw = { 224 = "0x0aFF", 225 = "text" }
            "#,
        )
        .unwrap();
        let (here, there): (Network, Network) = ("10.77.0.0/16".parse().unwrap(), "10.78.0.0/24".parse().unwrap());
        let stranger = Settings::of(&rules, here, None);
        assert_eq!((stranger.mtu, stranger.ntp.len(), stranger.lease_seconds), (Some(1500), 1, None));
        let facts = Facts { name: "a".into(), model: None, role: Some(Role::Kvm.into()), state: "delivered" };
        let known = Settings::of(&rules, there, Some(&facts));
        assert_eq!((known.mtu, known.lease_seconds), (Some(9000), Some(86400)));
        assert_eq!(known.raw, BTreeMap::from([(224, vec![10, 255]), (225, b"text".to_vec())]));
        let ready = Facts { state: "ready", ..facts };
        assert_eq!(Settings::of(&rules, there, Some(&ready)).lease_seconds, None);
    }

    #[test]
    fn what_a_rule_cannot_set() {
        for (rule, says) in [
            ("raw = { 53 = \"x\" }", "cannot be set"),
            ("raw = { 256 = \"x\" }", "cannot be set"),
            ("raw = { 6 = \"x\" }", "key of its own"),
            ("raw = { 224 = \"0xabc\" }", "raw option 224"),
            ("raw = { 224 = \"\" }", "raw option 224"),
            ("mtu = 60", "below 68"),
            ("lease_seconds = 1", "lease_seconds"),
            ("ntp = [\"10.0.0.1\", \"10.0.0.2\", \"10.0.0.3\", \"10.0.0.4\", \"10.0.0.5\"]", "time servers"),
        ] {
            let error = rules(&format!("[[options]]\n{rule}")).unwrap_err();
            assert!(error.message().contains(says), "{rule}: {error}");
        }
    }
}
