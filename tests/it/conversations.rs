//! Whole conversations with clients of the real world, as they were on the wire (`tests/fixtures/dhcp/*.hex`), against the
//! DHCP server without sockets or clock. The snapshots show every message as decoded text: who said what, and what became
//! of it.
//!
//! New captures: `RACKLINE_CAPTURE=tests/fixtures/dhcp cargo test --test it -- --include-ignored dhcp_clients relay:: firmware
//! two_ipxe`.

use std::path::Path;

use rackline::boot::dhcp::Outcome;
use rackline::boot::dhcp::reply::Destination;
use rackline::boot::firmware::Files;

use crate::fuzz::targets::{DOOR, START, captured, server};
use crate::wire::Message;

/// Every message and its outcome, a second apart.
fn conversation(packets: &[Vec<u8>]) -> String {
    let (mut server, mut now, mut text) = (server(Files::installed().unwrap()), START, String::new());
    for packet in packets {
        text += &format!("> {}", Message::read(packet));
        text += &match server.receive(now, packet, DOOR) {
            Outcome::Answer(ready) => {
                let to = match ready.to {
                    Destination::Routed(to) => format!("by way of {to}"),
                    Destination::Frame { mac, address } => format!("in a frame to {mac}, {address}"),
                    Destination::Broadcast => "to everyone".to_owned(),
                };
                let after = if ready.save.is_some() { ", once the lease is on disk" } else { "" };
                format!("< {to}{after}: {}", Message::read(&ready.packet))
            }
            Outcome::Probe { address, .. } => format!("< probes {address}\n"),
            Outcome::Silent { why, save, .. } => format!(
                "< nothing: {}{}\n",
                why.name(),
                save.map_or(String::new(), |l| format!("; {} is {:?}", l.address, l.state))
            ),
        };
        text.push('\n');
        now += 1000;
    }
    text
}

#[test]
fn as_they_were_on_the_wire() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dhcp");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10, "{files:?}");
    for path in files {
        let packets = captured(&std::fs::read_to_string(&path).unwrap());
        assert!(!packets.is_empty(), "{}", path.display());
        insta::assert_snapshot!(path.file_stem().unwrap().to_str().unwrap(), conversation(&packets));
    }
}
