//! Which port of which switch a request came through: the circuit id and remote id of option 82 (RFC 3046 sections 2.1
//! and 2.2) against the names in `[[switches]]`. Each vendor writes them in its own way:
//!
//! | circuit id | who |
//! |---|---|
//! | `Ethernet1`, `swp1`, `Ethernet1/7` | isc-dhcp-relay with `-a` (Cumulus: and `--use-pif-circuit-id`), Arista EOS, NX-OS as string |
//! | `Ethernet1:210`, `c-tor1:Ethernet4` | Arista EOS with the VLAN; SONiC (`-a %h:%p`) with its own name |
//! | 01 LEN text | IOS XE and others with a text set by the operator |
//! | 00 04 VLAN(2) MODULE PORT | Cisco's default, D-Link, Eltex and others after it ("Configuring DHCP Features", figure "Suboption Packet Formats") |

use super::config::Switch;
use crate::boot::RelayPort;

/// The switch and its port as the configuration names them.
pub fn locate<'a>(switches: &'a [Switch], relay: &RelayPort) -> Option<(&'a Switch, &'a str)> {
    let id = bytes(relay.circuit.as_ref()?)?;
    let circuit = Circuit::parse(&id)?;
    let remote = relay.remote.as_ref().and_then(|id| bytes(id)).unwrap_or_default();
    let mut owners = switches.iter().filter(|switch| owns(switch, &circuit, relay, &remote));
    // Two switches that both fit name none.
    let (Some(switch), None) = (owners.next(), owners.next()) else { return None };
    let ports = || switch.ports.keys().chain(&switch.uplinks).map(String::as_str);
    let found = match &circuit {
        Circuit::Name { port, .. } => {
            ports().find(|name| name.eq_ignore_ascii_case(port)).or_else(|| ports().find(|name| same(name, port)))
        }
        Circuit::Numbers { module, port } => ports().find(|name| numbered(name, *module, *port)),
    };
    found.map(|port| (switch, port))
}

/// By the relay's address, by the switch's name or MAC address in the remote id, or by its name in the circuit id.
fn owns(switch: &Switch, circuit: &Circuit<'_>, relay: &RelayPort, remote: &[u8]) -> bool {
    let named = |text: &str| text.eq_ignore_ascii_case(switch.name.as_str());
    if let Circuit::Name { switch: Some(name), .. } = circuit {
        return named(name);
    }
    let own = relay.relay == switch.address.ip || switch.relay.is_some_and(|own| own.ip == relay.relay);
    // Bare, or after its type and length.
    let mac = switch.mac.is_some_and(|mac| remote.ends_with(&mac.0) && remote.len() <= 8);
    own || mac || text(remote).is_some_and(named)
}

/// An id back from how `boot::dhcp::relay::id_text` writes it.
fn bytes(id: &str) -> Option<Vec<u8>> {
    let Some(digits) = id.strip_prefix("0x") else { return Some(id.as_bytes().to_vec()) };
    let nibbles: Option<Vec<u8>> = digits.chars().map(|c| c.to_digit(16).map(|n| n as u8)).collect();
    Some(nibbles?.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, nibble| byte << 4 | nibble)).collect())
}

#[derive(Debug, PartialEq, Eq)]
enum Circuit<'a> {
    Name { switch: Option<&'a str>, port: &'a str },
    Numbers { module: u8, port: u8 },
}

impl<'a> Circuit<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        if let &[0, 4, _, _, module, port] = bytes {
            return Some(Self::Numbers { module, port });
        }
        let text = text(bytes)?;
        Some(match text.split_once(':') {
            None => Self::Name { switch: None, port: text },
            // `PORT:VLAN` or `SWITCH:PORT`.
            Some((port, vlan)) if vlan.trim_start_matches("Vlan").bytes().all(|b| b.is_ascii_digit()) => {
                Self::Name { switch: None, port }
            }
            Some((switch, port)) => Self::Name { switch: Some(switch), port },
        })
    }
}

/// Printable text, bare or after its type and length.
fn text(bytes: &[u8]) -> Option<&str> {
    let bare = match bytes {
        [0 | 1, length, rest @ ..] if usize::from(*length) == rest.len() => rest,
        _ => bytes,
    };
    let text = std::str::from_utf8(bare).ok()?.trim_matches([' ', '\0']);
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())).then_some(text)
}

/// Two spellings of one port: the same numbers after the same word, which may be cut (`Et1`, `Gi1/0/7`) to no less than
/// two letters.
pub(super) fn same(a: &str, b: &str) -> bool {
    let split = |name: &str| {
        let at = name.find(|c: char| c.is_ascii_digit()).unwrap_or(name.len());
        let (word, numbers) = name.split_at(at);
        (word.to_ascii_lowercase(), numbers.to_ascii_lowercase())
    };
    let ((a_word, a_numbers), (b_word, b_numbers)) = (split(a), split(b));
    let (short, long) = if a_word.len() <= b_word.len() { (&a_word, &b_word) } else { (&b_word, &a_word) };
    a_numbers == b_numbers && (short == long || (short.len() >= 2 && long.starts_with(short.as_str())))
}

/// Whether the first and the last number of a name are these: `Ethernet1/7` and `GigabitEthernet1/0/7` are port 7 of
/// module 1. Catalyst models whose ports count from another number than their names do are told to send names instead
/// (`templates/switch/iosxe.py`).
fn numbered(name: &str, module: u8, port: u8) -> bool {
    let numbers: Vec<u8> =
        name.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty()).filter_map(|n| n.parse().ok()).collect();
    match numbers.as_slice() {
        [only] => module == 0 && *only == port,
        [first, .., last] => *first == module && *last == port,
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::tests::sample;
    use super::*;
    use crate::boot::dhcp::relay::id_text;

    fn found(address: &str, circuit: &[u8], remote: &[u8]) -> Option<String> {
        let id = |id: &[u8]| (!id.is_empty()).then(|| id_text(id));
        let relay = address.parse().unwrap_or(std::net::Ipv4Addr::UNSPECIFIED);
        let relay = RelayPort { relay, circuit: id(circuit), remote: id(remote) };
        let switches = sample();
        locate(&switches, &relay).map(|(switch, port)| format!("{} {port}", switch.name))
    }

    #[test]
    fn every_way_to_name_a_port() {
        let at = |text: &str| Some(text.to_owned());
        assert_eq!(found("10.77.0.21", b"Ethernet1", b""), at("c-tor1 Ethernet1"));
        assert_eq!(found("10.77.0.21", b"Ethernet10", b""), at("c-tor1 Ethernet10"), "and not Ethernet1");
        assert_eq!(found("10.77.0.21", b"Et2", b""), at("c-tor1 Ethernet2"));
        assert_eq!(found("10.77.0.21", b"Ethernet2:210", b""), at("c-tor1 Ethernet2"));
        assert_eq!(found("10.77.0.21", b"\x00\x0dEthernet2:210", b""), at("c-tor1 Ethernet2"));
        assert_eq!(found("10.78.0.1", b"swp2", b""), at("c-tor2 swp2"), "by the relay's own address");
        assert_eq!(found("", b"d-tor1:Ethernet4", b""), at("d-tor1 Ethernet4"));
        assert_eq!(found("", b"swp1", b"c-tor2"), at("c-tor2 swp1"));
        assert_eq!(found("", b"swp1", b"\x00\x06\x44\x38\x39\x00\x01\x02"), at("c-tor2 swp1"));
        assert_eq!(found("", b"\x01\x14GigabitEthernet1/0/2", b"\x01\x07f-mgmt1"), at("f-mgmt1 GigabitEthernet1/0/2"));
        assert_eq!(found("10.78.0.3", &[0, 4, 0, 210, 1, 2], b""), at("e-tor1 Ethernet1/2"));
        assert_eq!(found("10.77.0.25", &[0, 4, 0, 210, 1, 1], b""), at("f-mgmt1 GigabitEthernet1/0/1"));
    }

    #[test]
    fn what_fits_nothing_or_two_is_nowhere() {
        assert_eq!(found("10.77.0.99", b"Ethernet1", b""), None, "another relay");
        assert_eq!(found("10.77.0.21", b"Ethernet3", b""), None, "a port that is not on the map");
        assert_eq!(found("10.77.0.21", b"", b""), None);
        assert_eq!(found("10.77.0.21", &[0, 4, 0, 210], b""), None);
        assert_eq!(found("10.77.0.21", &[0xff, 0xfe], b""), None);
        assert_eq!(found("10.77.0.21", b"swp1", b"c-tor2"), None, "two switches claim it");
    }

    #[test]
    fn spellings() {
        for (a, b) in [("Et1", "Ethernet1"), ("Gi1/0/7", "GigabitEthernet1/0/7"), ("SWP1", "swp1")] {
            assert!(same(a, b) && same(b, a), "{a} {b}");
        }
        for (a, b) in [("Ethernet1", "Ethernet10"), ("swp1", "swp1s0"), ("E1", "Ethernet1"), ("swp1", "eth1")] {
            assert!(!same(a, b), "{a} {b}");
        }
    }
}
