//! Names of things: machine ids, MAC addresses, serial numbers, digests, host names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::filler::{is_filler, is_run};
use crate::error::Error;

/// A machine of this site: a UUIDv7, so that ids sort by first sight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MachineId(pub uuid::Uuid);

impl MachineId {
    pub fn generate() -> Self {
        Self(uuid::Uuid::now_v7())
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

impl FromStr for MachineId {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        uuid::Uuid::parse_str(s)
            .map(Self)
            .map_err(|e| Error::input("machine.id", format!("{s:?} is not a machine id")).because(e))
    }
}

/// Text that is parsed on the way in and printed on the way out, for a type with `FromStr` and `Display`.
macro_rules! serde_as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

/// An EUI-48 address. Read with `:`, `-`, `.` or nothing between the digits; written lower case with `:`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        let wrong = || Error::input("mac", format!("{s:?} is not a MAC address")).hint("write it as 52:54:00:12:34:56");
        let mut mac = [0u8; 6];
        let mut digits = 0;
        for c in s.chars().filter(|c| !matches!(c, ':' | '-' | '.')) {
            let value = c.to_digit(16).ok_or_else(wrong)? as u8;
            let byte = mac.get_mut(digits / 2).ok_or_else(wrong)?;
            *byte = *byte << 4 | value;
            digits += 1;
        }
        if digits == 12 { Ok(Self(mac)) } else { Err(wrong()) }
    }
}

serde_as_text!(MacAddr);

/// A serial number that means something. What vendors leave in SMBIOS and on disks instead ([`super::filler`]) is none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(String);

impl Serial {
    /// At most this many bytes: SMBIOS strings have no limit of their own, files and labels do.
    pub const MAX: usize = 64;

    /// `None` for fillers, for a run of one character (`0000000`, `XXXXXX`) and for what cannot be printed.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let printable = text.chars().all(|c| c.is_ascii_graphic() || c == ' ');
        (printable && !is_filler(text) && !is_run(text) && text.len() <= Self::MAX).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Serial {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        Self::parse(s).ok_or_else(|| Error::input("serial", format!("{s:?} is not a serial number")))
    }
}

serde_as_text!(Serial);

/// By what a machine is told from others where it says so itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    pub serial: Option<Serial>,
    /// As SMBIOS has it.
    pub uuid: Option<uuid::Uuid>,
}

impl Identity {
    /// Whether a UUID that a BMC told is this one, in whichever order its bytes came.
    pub fn has_uuid(&self, told: uuid::Uuid) -> bool {
        self.uuid.is_some_and(|uuid| uuid_readings(told).contains(&uuid))
    }
}

/// The UUIDs that the 16 bytes of a BMC may mean; none for a filler. They come in the order of RFC 4122, with the first
/// three fields reversed as SMBIOS stores them (DSP0134 section 7.2.1), or all reversed as IPMI wants them (2.0, table 22-15).
pub fn uuid_readings(told: uuid::Uuid) -> Vec<uuid::Uuid> {
    let bytes = told.into_bytes();
    let first = bytes[0];
    if bytes.iter().all(|byte| *byte == first) {
        return Vec::new();
    }
    let mut reversed = bytes;
    reversed.reverse();
    let readings =
        [told, uuid::Uuid::from_bytes_le(bytes), uuid::Uuid::from_bytes(reversed), uuid::Uuid::from_bytes_le(reversed)];
    match readings.iter().any(|uuid| UUID_FILLERS.contains(&uuid.as_u128())) {
        true => Vec::new(),
        false => readings.into(),
    }
}

/// What makers of boards leave in every one of them: AMI's default, and the counted one.
const UUID_FILLERS: &[u128] = &[
    0x03000200_0400_0500_0006_000700080009,
    0x00020003_0004_0005_0006_000700080009,
    0x00010203_0405_0607_0809_0a0b0c0d0e0f,
];

/// A BLAKE3 digest, 32 bytes, written as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).into())
    }

    /// The first twelve digits: enough for people to tell two apart.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(hash.into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        blake3::Hash::from_hex(s)
            .map(Self::from)
            .map_err(|e| Error::input("digest", format!("{s:?} is not a BLAKE3 digest of 64 hex digits")).because(e))
    }
}

serde_as_text!(Digest);

/// A host name as RFC 1123 section 2.1 allows it: letters, digits and `-`, labels of 1 to 63, at most 253 in all.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hostname(String);

impl Hostname {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Hostname {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !l.starts_with('-')
                && !l.ends_with('-')
        };
        if s.len() <= 253 && s.split('.').all(label) {
            Ok(Self(s.to_ascii_lowercase()))
        } else {
            Err(Error::input("hostname", format!("{s:?} is not a host name"))
                .hint("use letters, digits and '-', at most 63 in a label"))
        }
    }
}

serde_as_text!(Hostname);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_in_every_spelling() {
        for text in ["52:54:00:AB:cd:01", "52-54-00-ab-cd-01", "5254.00ab.cd01", "525400abcd01"] {
            assert_eq!(text.parse::<MacAddr>().unwrap().to_string(), "52:54:00:ab:cd:01");
        }
        for text in ["", "52:54:00:ab:cd", "52:54:00:ab:cd:01:02", "52:54:00:ab:cd:0g"] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn fillers_are_not_serials() {
        for text in ["", "  ", "To Be Filled By O.E.M.", "0123456789", "00000000", "XXXX", "N/A", "a\u{7}b"] {
            assert_eq!(Serial::parse(text), None, "{text}");
        }
        assert_eq!(Serial::parse(" 7XK2M13 ").unwrap().as_str(), "7XK2M13");
    }

    #[test]
    fn a_uuid_is_the_same_in_whichever_order_its_bytes_come() {
        let text = "4c4c4544-0058-4b10-8032-b7c04f4d3133";
        let uuid: uuid::Uuid = text.parse().unwrap();
        let identity = Identity { serial: None, uuid: Some(uuid) };
        let mut reversed = uuid.into_bytes();
        reversed.reverse();
        // Written out: what a BMC of each kind sends.
        assert_eq!(hex(&uuid.to_bytes_le()), "44454c4c5800104b8032b7c04f4d3133");
        assert_eq!(hex(&reversed), "33314d4fc0b73280104b580044454c4c");
        for bytes in [uuid.into_bytes(), uuid.to_bytes_le(), reversed] {
            assert!(identity.has_uuid(uuid::Uuid::from_bytes(bytes)));
        }
        assert!(!identity.has_uuid("4c4c4544-0058-4b10-8032-b7c04f4d3134".parse().unwrap()));
        let fillers = [uuid::Uuid::nil(), uuid::Uuid::max(), uuid::Uuid::from_u128(UUID_FILLERS[0])];
        for filler in fillers {
            assert!(!Identity { serial: None, uuid: Some(filler) }.has_uuid(filler), "{filler}");
        }
        assert!(!Identity::default().has_uuid(uuid));
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn host_names() {
        assert_eq!("KVM-01.lab".parse::<Hostname>().unwrap().as_str(), "kvm-01.lab");
        for text in ["", "-a", "a-", "a..b", "a_b", "<b>", &"a".repeat(64)] {
            assert!(text.parse::<Hostname>().is_err(), "{text}");
        }
    }
}
