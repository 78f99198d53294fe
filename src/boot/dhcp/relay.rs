//! Option 82: what the relay says of the way that a request came. Read leniently, echoed byte for byte.
//!
//! | sub-option | meaning | source |
//! |---|---|---|
//! | 1 | circuit id: the port of the switch, in the vendor's own form | RFC 3046 section 3.1 |
//! | 2 | remote id: the switch, often its MAC address or host name | RFC 3046 section 3.2 |
//! | 5 | link selection: the subnet to take an address from, where that is not the relay's own | RFC 3527 |
//! | 11 | server identifier override: the client is to talk to the relay instead of us | RFC 5107 |

use std::net::Ipv4Addr;

use super::request::Port;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RelayInfo {
    /// As it came; echoed.
    pub raw: Vec<u8>,
    pub circuit: Option<Vec<u8>>,
    pub remote: Option<Vec<u8>>,
    pub link: Option<Ipv4Addr>,
    pub server: Option<Ipv4Addr>,
}

impl RelayInfo {
    /// Sub-options up to the first one that does not fit; the first of a kind counts.
    pub fn parse(raw: &[u8]) -> Self {
        let mut info = Self { raw: raw.to_vec(), ..Self::default() };
        let mut rest = raw;
        while let [code, length, tail @ ..] = rest {
            let Some((data, next)) = tail.split_at_checked((*length).into()) else { break };
            match code {
                1 if !data.is_empty() => info.circuit = info.circuit.or_else(|| Some(data.to_vec())),
                2 if !data.is_empty() => info.remote = info.remote.or_else(|| Some(data.to_vec())),
                5 => info.link = info.link.or_else(|| super::request::address(data)),
                11 => info.server = info.server.or_else(|| super::request::address(data)),
                _ => {}
            }
            rest = next;
        }
        info
    }

    /// The port of the switch, as people write it.
    pub fn port(&self) -> Option<Port> {
        let circuit = id_text(self.circuit.as_deref()?);
        Some(Port { circuit, remote: self.remote.as_deref().map(id_text) })
    }
}

/// An id of a circuit or a relay as people write it: text where it is printable, else hexadecimal digits behind `0x`.
pub fn id_text(id: &[u8]) -> String {
    // Some agents end their text with NUL.
    let text = id.strip_suffix(&[0]).unwrap_or(id);
    match !text.is_empty() && text.iter().all(|b| b.is_ascii_graphic() || *b == b' ') {
        true => String::from_utf8_lossy(text).into_owned(),
        false => format!("0x{}", hex::encode(id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_sub_options_and_what_does_not_fit() {
        let raw =
            b"\x01\x09Ethernet7\x02\x06\x52\x54\0\0\0\x01\x05\x04\x0a\x4e\0\0\x0b\x04\x0a\x4e\0\x01\x97\x02ab\x09\xff";
        let info = RelayInfo::parse(raw);
        assert_eq!(info.raw, raw);
        assert_eq!(info.circuit.as_deref().map(id_text).as_deref(), Some("Ethernet7"));
        assert_eq!(info.remote.as_deref().map(id_text).as_deref(), Some("0x525400000001"));
        assert_eq!(info.link, Some(Ipv4Addr::new(10, 78, 0, 0)));
        assert_eq!(info.server, Some(Ipv4Addr::new(10, 78, 0, 1)));
        for raw in [&b""[..], b"\x01", b"\x01\xff", b"\x05\x03abc", b"\x01\0", b"\x05\x04\0\0\0\0"] {
            assert_eq!(RelayInfo::parse(raw), RelayInfo { raw: raw.to_vec(), ..RelayInfo::default() });
        }
    }

    #[test]
    fn ids_as_people_write_them() {
        assert_eq!(id_text(b"Ethernet1/7"), "Ethernet1/7");
        assert_eq!(id_text(b"eth0\0"), "eth0");
        assert_eq!(id_text(&[0, 4, 0, 210, 1, 7]), "0x000400d20107");
        assert_eq!(id_text(b""), "0x");
    }
}
