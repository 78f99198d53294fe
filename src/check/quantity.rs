//! Values with units and the bounds on them, as people write them: `7 s`, `20 MB/s`, `1 GiB`, `85 %`, `200000`.

use serde::{Deserialize, Serialize};

/// What is measured; each value is kept in one unit, whatever the file says it in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    #[serde(rename = "s")]
    Seconds,
    #[serde(rename = "%")]
    Percent,
    #[serde(rename = "MB/s")]
    MegabytesPerSecond,
    #[serde(rename = "MiB")]
    Mebibytes,
    #[serde(rename = "")]
    Count,
}

/// As written, what it measures, and how many of the kept unit one is.
const WRITTEN: &[(&str, Unit, f64)] = &[
    ("ms", Unit::Seconds, 0.001),
    ("s", Unit::Seconds, 1.0),
    ("min", Unit::Seconds, 60.0),
    ("%", Unit::Percent, 1.0),
    ("MB/s", Unit::MegabytesPerSecond, 1.0),
    ("GB/s", Unit::MegabytesPerSecond, 1000.0),
    ("MiB", Unit::Mebibytes, 1.0),
    ("GiB", Unit::Mebibytes, 1024.0),
    ("", Unit::Count, 1.0),
];

impl Unit {
    pub fn name(self) -> &'static str {
        match self {
            Unit::Seconds => "s",
            Unit::Percent => "%",
            Unit::MegabytesPerSecond => "MB/s",
            Unit::Mebibytes => "MiB",
            Unit::Count => "",
        }
    }

    /// A value of this unit for people: three digits are enough.
    pub fn say(self, value: f64) -> String {
        let number = match value.abs() {
            v if v >= 100.0 || v.fract() == 0.0 => format!("{value:.0}"),
            v if v >= 10.0 => format!("{value:.1}"),
            _ => format!("{value:.2}"),
        };
        format!("{number} {}", self.name()).trim_end().to_owned()
    }
}

/// A number and its unit, in the kept unit. The error is a sentence without the place.
pub fn parse(text: &str) -> Result<(f64, Unit), String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let value: f64 = number.parse().map_err(|_| format!("{text:?} does not begin with a number"))?;
    let row = WRITTEN.iter().find(|(name, ..)| *name == unit.trim());
    let (_, unit, factor) = row.ok_or_else(|| format!("{:?} is no unit that is known", unit.trim()))?;
    Ok((value * factor, *unit))
}

/// For the hint of an error.
pub fn known_units() -> String {
    let names: Vec<&str> = WRITTEN.iter().map(|(name, ..)| *name).filter(|name| !name.is_empty()).collect();
    format!("the units are {}, and none for what is counted", names.join(", "))
}

/// What a value must keep to; at least one side is given.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    #[serde(default)]
    pub at_least: Option<f64>,
    #[serde(default)]
    pub at_most: Option<f64>,
    pub unit: Unit,
}

impl Bound {
    /// What is not a number keeps to nothing.
    pub fn holds(&self, value: f64) -> bool {
        value.is_finite()
            && self.at_least.is_none_or(|least| value >= least)
            && self.at_most.is_none_or(|most| value <= most)
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let say = |value| self.unit.say(value);
        match (self.at_least, self.at_most) {
            (Some(least), Some(most)) => write!(f, "from {} to {}", say(least), say(most)),
            (Some(least), None) => write!(f, "at least {}", say(least)),
            (None, Some(most)) => write!(f, "at most {}", say(most)),
            (None, None) => f.write_str("anything"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_kept_in_one_unit() {
        assert_eq!(parse("7 s"), Ok((7.0, Unit::Seconds)));
        assert_eq!(parse("500ms"), Ok((0.5, Unit::Seconds)));
        assert_eq!(parse(" 1.5 GiB "), Ok((1536.0, Unit::Mebibytes)));
        assert_eq!(parse("3"), Ok((3.0, Unit::Count)));
        for (text, fault) in
            [("7 parsec", "no unit"), ("seven s", "number"), ("", "number"), ("-1 s", "number"), ("1.2.3 s", "number")]
        {
            assert!(parse(text).unwrap_err().contains(fault), "{text}");
        }
    }

    #[test]
    fn a_bound_has_one_side_or_two() {
        let bound = |at_least, at_most| Bound { at_least, at_most, unit: Unit::Seconds };
        assert!(bound(None, Some(7.0)).holds(7.0) && !bound(None, Some(7.0)).holds(7.1));
        assert!(bound(Some(1.0), None).holds(1.0) && !bound(Some(1.0), Some(2.0)).holds(0.9));
        assert!(!bound(None, Some(7.0)).holds(f64::NAN));
        assert_eq!(bound(Some(1.0), Some(2.5)).to_string(), "from 1 s to 2.50 s");
        assert_eq!(bound(None, Some(7.0)).to_string(), "at most 7 s");
    }
}
