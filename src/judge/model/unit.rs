//! The words of a bill of materials: amounts with their unit, and patterns. Each keeps how it was written, for sentences.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

/// A number with a unit of `U`, in its smallest one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Amount<U> {
    text: String,
    pub value: u64,
    unit: std::marker::PhantomData<U>,
}

/// A kind of units.
pub trait Units {
    const WHAT: &'static str;
    /// In lower case, and how many of the smallest one each is.
    const UNITS: &'static [(&'static str, u64)];
    /// As they are written.
    const NAMES: &'static str;
}

/// Bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bytes;

impl Units for Bytes {
    const WHAT: &'static str = "size";
    const UNITS: &'static [(&'static str, u64)] = &[
        ("mb", 1_000_000),
        ("gb", 1_000_000_000),
        ("tb", 1_000_000_000_000),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
        ("tib", 1 << 40),
    ];
    const NAMES: &'static str = "MB, GB, TB, MiB, GiB or TiB";
}

/// Mb/s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link;

impl Units for Link {
    const WHAT: &'static str = "speed of a link";
    const UNITS: &'static [(&'static str, u64)] = &[("mb/s", 1), ("gb/s", 1000)];
    const NAMES: &'static str = "Mb/s or Gb/s";
}

/// MT/s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfers;

impl Units for Transfers {
    const WHAT: &'static str = "speed of memory";
    const UNITS: &'static [(&'static str, u64)] = &[("mt/s", 1)];
    const NAMES: &'static str = "MT/s";
}

impl<U: Units> FromStr for Amount<U> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(at);
        let unit = unit.trim().to_ascii_lowercase();
        let Some((_, factor)) = U::UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(format!("{text:?} is no {}: the unit is {}", U::WHAT, U::NAMES));
        };
        let value = number.parse::<f64>().ok().map(|number| number * *factor as f64);
        // Above it a number of 64 bits with a fraction is not exact.
        let value = value.filter(|value| (1.0..1e15).contains(value)).ok_or(format!("{text:?} is no {}", U::WHAT))?;
        Ok(Self { text: text.to_owned(), value: value.round() as u64, unit: std::marker::PhantomData })
    }
}

impl<U> fmt::Display for Amount<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Text in which `*` stands for anything. Upper and lower case are the same, and so is any run of spaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    plain: String,
}

fn plain(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

impl Pattern {
    pub fn fits(&self, text: &str) -> bool {
        let text = plain(text);
        let mut parts = self.plain.split('*');
        let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
        let mut end = None;
        for part in parts {
            // What was the end so far has a star after it: the first place will do.
            if let Some(middle) = end.replace(part) {
                let Some((_, after)) = rest.split_once(middle) else { return false };
                rest = after;
            }
        }
        end.map_or(rest.is_empty(), |end| rest.ends_with(end))
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        match text.trim_matches('*').is_empty() {
            true => Err(format!("{text:?} says nothing: leave the key out where anything will do")),
            false => Ok(Self { text: text.to_owned(), plain: plain(text) }),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text.trim_matches('*'))
    }
}

fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err = String>>(from: D) -> Result<T, D::Error> {
    String::deserialize(from)?.parse().map_err(de::Error::custom)
}

impl<'de, U: Units> Deserialize<'de> for Amount<U> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        parsed(from)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        parsed(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_with_their_unit() {
        let bytes = |text: &str| text.parse::<Amount<Bytes>>().map(|amount| amount.value);
        assert_eq!(bytes("32 GiB"), Ok(32 << 30));
        assert_eq!(bytes("1.92TB"), Ok(1_920_000_000_000));
        assert_eq!("25 Gb/s".parse::<Amount<Link>>().map(|a| (a.value, a.to_string())), Ok((25_000, "25 Gb/s".into())));
        assert_eq!(bytes("32 G").unwrap_err(), "\"32 G\" is no size: the unit is MB, GB, TB, MiB, GiB or TiB");
        for text in ["", "GiB", "0 GiB", "1.2.3 GiB", "-1 GiB", "1e9 GiB", "99999999999999999999 TB", "25 GB/s", "32"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn patterns() {
        let fits = |pattern: &str, text: &str| pattern.parse::<Pattern>().unwrap().fits(text);
        assert!(fits("*gold 6126*", "Intel(R) Xeon(R)  Gold 6126 CPU @ 2.60GHz"));
        assert!(fits("SAMSUNG MZ7*", "Samsung MZ7LH480HAHQ"));
        assert!(fits("*a*b", "xaxbxab"));
        assert!(fits("ab", "AB"));
        for (pattern, text) in
            [("ab", "abc"), ("ab*", "cab"), ("*ab", "abc"), ("a*a", "a"), ("*a*b*", "ba"), ("*x*", "")]
        {
            assert!(!fits(pattern, text), "{pattern} {text}");
        }
        assert!("**".parse::<Pattern>().is_err() && " ".parse::<Pattern>().is_err());
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_is_written_is_too_strange(pattern: String, text: String) {
            if let Ok(pattern) = pattern.parse::<Pattern>() {
                pattern.fits(&text);
            }
            let _ = text.parse::<Amount<Bytes>>();
        }

        #[test]
        fn a_star_stands_for_anything(a in "[a-z]{1,3}", b in "[a-z]{1,3}", between in "[a-z]{0,4}") {
            let pattern: Pattern = format!("{a}*{b}").parse().unwrap();
            let text = format!("{a}{between}{b}");
            proptest::prop_assert!(pattern.fits(&text));
        }
    }
}
