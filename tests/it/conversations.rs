//! Whole conversations with clients of the real world, as they were on the wire (`tests/fixtures/dhcp/*.hex`), against the
//! DHCP server without sockets or clock. The snapshots show every message as decoded text: who said what, and what became
//! of it.
//!
//! New captures: `RACKLINE_CAPTURE=tests/fixtures/dhcp cargo test --test it -- --include-ignored dhcp_clients relay:: firmware
//! two_ipxe`.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use rackline::boot::config::{BootConfig, Mode};
use rackline::boot::dhcp::reply::Destination;
use rackline::boot::dhcp::{Dhcp, Door, Outcome};
use rackline::boot::firmware::Files;
use rackline::boot::loader::Loaders;
use rackline::boot::script::Scripts;

use crate::net::{CONFIG, Watcher};
use crate::wire::{Message, kept};

/// 2026-01-01.
const START: i64 = 1_767_225_600_000;

/// The subnet of the relay tests beside the usual one. Nothing is probed: there is no wire.
fn server() -> Dhcp {
    let relayed =
        "[[subnets]]\nnetwork = \"10.78.0.0/24\"\npools = [\"10.78.0.100-10.78.0.199\"]\nrouter = \"10.78.0.1\"\n";
    let config: BootConfig = toml::from_str(&format!("probe_ms = 0\n{CONFIG}{relayed}")).unwrap();
    config.check().unwrap();
    let (policy, scripts) = (Arc::new(Watcher::default()), Arc::new(Scripts::new(&config, "00").unwrap()));
    // Nothing is learnt: no file is fetched.
    let (learns, _) = tokio::sync::mpsc::channel(1);
    let files = Arc::new(Files::installed().unwrap());
    let loaders = Loaders::new(&config, files, scripts, policy.clone(), vec![], learns).unwrap();
    Dhcp::new(&config, [], Arc::new(loaders), Arc::default(), policy)
}

/// Every message and its outcome, a second apart.
fn conversation(packets: &[Vec<u8>]) -> String {
    let door = Door { own: Ipv4Addr::new(10, 77, 0, 1), mode: Mode::Dhcp, port: 67 };
    let (mut server, mut now, mut text) = (server(), START, String::new());
    for packet in packets {
        text += &format!("> {}", Message::read(packet));
        text += &match server.receive(now, packet, door) {
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
        let packets = kept(&std::fs::read_to_string(&path).unwrap());
        assert!(!packets.is_empty(), "{}", path.display());
        insta::assert_snapshot!(path.file_stem().unwrap().to_str().unwrap(), conversation(&packets));
    }
}
