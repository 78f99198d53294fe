//! The disk to install on, chosen by rule and never by luck: where a rule fits no disk or more than one, nothing is
//! written and the sentence says which disks were looked at.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Disk, Serial};
use crate::error::{Error, Result};

/// How the target disk is found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum TargetRule {
    /// The smallest disk without moving parts that the image fits on; two of the same smallest size are ambiguous.
    #[default]
    SmallestSsd,
    /// The disk with this serial number.
    Serial(Serial),
    /// The disk with this world wide name.
    Wwn(String),
}

impl fmt::Display for TargetRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SmallestSsd => f.write_str("smallest-ssd"),
            Self::Serial(serial) => write!(f, "serial={serial}"),
            Self::Wwn(wwn) => write!(f, "wwn={wwn}"),
        }
    }
}

impl FromStr for TargetRule {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s.split_once('=') {
            None if s == "smallest-ssd" => Ok(Self::SmallestSsd),
            Some(("serial", serial)) => Ok(Self::Serial(serial.parse()?)),
            Some(("wwn", wwn)) if !wwn.is_empty() => Ok(Self::Wwn(wwn.to_owned())),
            _ => Err(Error::input("disk.rule", format!("{s:?} is not a rule for the target disk"))
                .hint("use smallest-ssd, serial=SERIAL or wwn=WWN")),
        }
    }
}

impl Serialize for TargetRule {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TargetRule {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

/// The one disk that `rule` means among `disks` for an image of `need` bytes, or the reason why there is none.
pub fn select_target<'a>(disks: &'a [Disk], rule: &TargetRule, need: u64) -> Result<&'a Disk> {
    let usable: Vec<&Disk> = disks.iter().filter(|d| !d.removable && !d.read_only && d.size_bytes > 0).collect();
    let matching: Vec<&Disk> = usable
        .into_iter()
        .filter(|d| match rule {
            TargetRule::SmallestSsd => !d.rotational,
            TargetRule::Serial(serial) => d.serial.as_ref() == Some(serial),
            TargetRule::Wwn(wwn) => d.wwn.as_ref() == Some(wwn),
        })
        .collect();
    if matching.is_empty() {
        return Err(Error::conflict("disk.none", format!("no disk fits the rule {rule}: {}", seen(disks)))
            .hint("fit a disk, or order with --disk serial=SERIAL"));
    }
    let large: Vec<&Disk> = matching.iter().copied().filter(|d| d.size_bytes >= need).collect();
    let Some(smallest) = large.iter().copied().min_by_key(|d| d.size_bytes) else {
        return Err(Error::conflict(
            "disk.too-small",
            format!(
                "the image needs {need} bytes and no disk that fits the rule {rule} is that large: {}",
                seen(disks)
            ),
        )
        .hint("order an image for smaller disks, or name a larger disk with --disk serial=SERIAL"));
    };
    if large.iter().filter(|d| d.size_bytes == smallest.size_bytes).count() > 1 {
        return Err(Error::conflict(
            "disk.ambiguous",
            format!("more than one disk fits the rule {rule}: {}", seen(disks)),
        )
        .hint("name the disk: --disk serial=SERIAL or --disk wwn=WWN"));
    }
    Ok(smallest)
}

fn seen(disks: &[Disk]) -> String {
    if disks.is_empty() {
        return "the machine has no disk".into();
    }
    let each = disks.iter().map(|d| {
        let serial = d.serial.as_ref().map_or("no serial", |s| s.as_str());
        let kind = match (d.removable, d.read_only, d.rotational) {
            (true, _, _) => "removable",
            (_, true, _) => "read-only",
            (_, _, true) => "rotating",
            _ => "SSD",
        };
        format!("{} ({serial}, {} bytes, {kind})", d.name, d.size_bytes)
    });
    each.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str, gib: u64, rotational: bool) -> Disk {
        Disk {
            name: name.into(),
            serial: Serial::parse(&format!("DSK-{name}")),
            wwn: Some(format!("naa.{name}")),
            size_bytes: gib << 30,
            rotational,
            transport: "sata".into(),
            ..Disk::default()
        }
    }

    #[test]
    fn the_smallest_ssd_that_is_large_enough() {
        let disks = [disk("sda", 4000, true), disk("sdb", 480, false), disk("sdc", 240, false), disk("sdd", 1, false)];
        assert_eq!(select_target(&disks, &TargetRule::SmallestSsd, 2 << 30).unwrap().name, "sdc");
    }

    #[test]
    fn none_two_and_too_small_are_refused_with_the_disks_named() {
        let code = |disks: &[Disk]| select_target(disks, &TargetRule::SmallestSsd, 2 << 30).unwrap_err();
        assert_eq!(code(&[]).code(), "disk.none");
        assert_eq!(code(&[disk("sda", 100, true)]).code(), "disk.none");
        assert_eq!(code(&[disk("sda", 1, false)]).code(), "disk.too-small");
        let two = code(&[disk("sda", 100, false), disk("sdb", 100, false)]);
        assert_eq!(two.code(), "disk.ambiguous");
        assert!(two.message().contains("DSK-sda") && two.message().contains("DSK-sdb"));
    }

    #[test]
    fn by_serial_and_by_wwn_even_when_rotating() {
        let disks = [disk("sda", 100, true), disk("sdb", 100, false)];
        let by = |rule: &str| select_target(&disks, &rule.parse().unwrap(), 1).map(|d| d.name.clone());
        assert_eq!(by("serial=DSK-sda").unwrap(), "sda");
        assert_eq!(by("wwn=naa.sdb").unwrap(), "sdb");
        assert_eq!(by("serial=DSK-sdz").unwrap_err().code(), "disk.none");
        assert!("largest".parse::<TargetRule>().is_err());
    }
}
