//! What is set in a host's kernel, and with which right two roles may say it differently.

use serde::{Deserialize, Serialize};

/// One setting with the reason why it is set: the reason is told where the check finds another value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    pub name: String,
    pub value: String,
    pub why: String,
}

/// What a setting can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    Words(&'static [&'static str]),
    Number(u64, u64),
    /// `major.minor`.
    Version,
    /// One line.
    Text,
}

/// What is right where two roles want different values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    /// Nothing is: the roles contradict each other.
    Same,
    Larger,
    Smaller,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Knob {
    pub values: Values,
    pub join: Join,
}

/// The settings that have a name of their own.
const KNOBS: &[(&str, Values, Join)] = &[
    ("cpu.governor", Values::Words(&["performance", "powersave", "schedutil", "ondemand", "conservative"]), Join::Same),
    // In µs: idle states that take longer to leave are switched off.
    ("cpu.idle-latency", Values::Number(0, 100_000), Join::Smaller),
    ("nic.queues", Values::Words(&["cores"]), Join::Same),
    ("nic.irqs", Values::Words(&["numa"]), Join::Same),
    ("nic.rps", Values::Words(&["numa", "off"]), Join::Same),
    ("memory.huge-pages", Values::Words(&["always", "madvise", "never"]), Join::Same),
    ("limit.files", Values::Number(1024, 1 << 30), Join::Larger),
    // PID_MAX_LIMIT of 64-bit kernels.
    ("limit.pids", Values::Number(1024, 4 << 20), Join::Larger),
    ("conntrack.max", Values::Number(4096, 1 << 26), Join::Larger),
    ("kernel.floor", Values::Version, Join::Larger),
];

/// By name: one of the above, `sysctl.NAME`, or `offload.FEATURE` as `ethtool -k` calls it.
pub fn knob(name: &str) -> Option<Knob> {
    if let Some((_, values, join)) = KNOBS.iter().find(|(known, ..)| *known == name) {
        return Some(Knob { values: *values, join: *join });
    }
    let plain = |text: &str, more: &[u8]| {
        !text.is_empty()
            && text.split('.').all(|p| !p.is_empty())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
    };
    if name.strip_prefix("sysctl.").is_some_and(|rest| plain(rest, b"._-")) {
        return Some(Knob { values: Values::Text, join: Join::Same });
    }
    let feature = name.strip_prefix("offload.").is_some_and(|rest| plain(rest, b"-"));
    feature.then_some(Knob { values: Values::Words(&["on", "off"]), join: Join::Same })
}

/// The names that there are, for a person who has written another one.
pub fn names() -> String {
    let known: Vec<&str> = KNOBS.iter().map(|(name, ..)| *name).collect();
    format!("{}, sysctl.NAME, offload.FEATURE", known.join(", "))
}

impl Values {
    pub fn allow(self, value: &str) -> bool {
        match self {
            Values::Words(words) => words.contains(&value),
            Values::Number(least, most) => value.parse::<u64>().is_ok_and(|n| (least..=most).contains(&n)),
            Values::Version => version(value).is_some(),
            Values::Text => {
                let value = value.trim();
                !value.is_empty() && value.len() <= 256 && value.chars().all(|c| !c.is_control())
            }
        }
    }
}

impl std::fmt::Display for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Values::Words(words) => f.write_str(&words.join(" or ")),
            Values::Number(least, most) => write!(f, "a number from {least} to {most}"),
            Values::Version => f.write_str("a release like 6.1"),
            Values::Text => f.write_str("a line of text"),
        }
    }
}

fn version(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

impl Knob {
    /// The value that satisfies both; `None`: there is none.
    pub fn join<'a>(self, one: &'a str, other: &'a str) -> Option<&'a str> {
        if one == other {
            return Some(one);
        }
        let rank =
            |text: &str| if self.values == Values::Version { version(text) } else { Some((text.parse().ok()?, 0)) };
        let larger = rank(one)? >= rank(other)?;
        match self.join {
            Join::Same => None,
            Join::Larger => Some(if larger { one } else { other }),
            Join::Smaller => Some(if larger { other } else { one }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values() {
        for (name, value, good) in [
            ("cpu.governor", "performance", true),
            ("cpu.governor", "fast", false),
            ("cpu.idle-latency", "0", true),
            ("cpu.idle-latency", "-1", false),
            ("kernel.floor", "6.1", true),
            ("kernel.floor", "new", false),
            ("sysctl.vm.swappiness", "1", true),
            ("sysctl.net.ipv4.ip_local_port_range", "1024 65535", true),
            ("sysctl.vm.swappiness", "1\n2", false),
            ("offload.large-receive-offload", "off", true),
            ("offload.large-receive-offload", "maybe", false),
        ] {
            assert_eq!(knob(name).unwrap().values.allow(value), good, "{name} {value}");
        }
        for name in ["cpu.govenor", "sysctl.", "sysctl.a..b", "sysctl.../etc", "offload.a b", ""] {
            assert_eq!(knob(name), None, "{name}");
        }
    }

    #[test]
    fn two_roles_that_want_different_values() {
        let join = |name: &str, one, other| knob(name).unwrap().join(one, other);
        assert_eq!(join("limit.files", "1024", "65536"), Some("65536"));
        assert_eq!(join("cpu.idle-latency", "100", "10"), Some("10"));
        assert_eq!(join("kernel.floor", "6.9", "6.10"), Some("6.10"));
        assert_eq!(join("cpu.governor", "performance", "powersave"), None);
        assert_eq!(join("sysctl.vm.swappiness", "1", "10"), None);
        assert_eq!(join("sysctl.vm.swappiness", "1", "1"), Some("1"));
    }
}
