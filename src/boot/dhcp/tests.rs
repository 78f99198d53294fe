//! Packets as clients send them, byte by byte, and what comes back.

use std::collections::HashMap;
use std::net::SocketAddrV4;

use futures::future::BoxFuture;
use proptest::prelude::*;

use super::*;
use crate::boot::config::Reservation;
use crate::boot::config::tests::sample;
use crate::boot::{BootAnswer, Stage, Unanswered};
use crate::machine::{ClientArch, MacAddr};
use crate::store::lease::LeaseState;

const NOW: i64 = 1_800_000_000_000;
const OWN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x77, 0, 1];

const DISCOVER: u8 = 1;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const RELEASE: u8 = 7;
const INFORM: u8 = 8;

const DOOR: Door = Door { own: OWN, mode: Mode::Dhcp, port: 67 };

/// Knows the machines that it was told of.
#[derive(Default)]
struct Rules(HashMap<MacAddr, Facts>);

impl Policy for Rules {
    fn sighted(&self, _: Sighting) {}

    fn unanswered(&self, _: Unanswered) {}

    fn facts(&self, mac: MacAddr) -> Option<Facts> {
        self.0.get(&mac).cloned()
    }

    fn boot_answer(&self, _: Sighting) -> BoxFuture<'_, crate::error::Result<BootAnswer>> {
        unreachable!("DHCP does not ask")
    }
}

fn server() -> Dhcp {
    server_with(|_| {}, Rules::default())
}

fn server_with(change: impl FnOnce(&mut BootConfig), rules: Rules) -> Dhcp {
    let mut config = BootConfig { probe_ms: 0, unknown_lease_seconds: 600, ..sample() };
    change(&mut config);
    config.check().unwrap();
    Dhcp::new(&config, [], loader::tests::loaders(&config), Arc::new(rules))
}

/// A client's packet under construction.
#[derive(Clone)]
struct Packet(Vec<u8>);

impl Packet {
    fn new(kind: u8) -> Self {
        let mut bytes = vec![0; 240];
        bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
        bytes[4..8].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
        bytes[28..34].copy_from_slice(&MAC);
        bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
        Self(bytes).option(53, &[kind])
    }

    fn option(mut self, code: u8, data: &[u8]) -> Self {
        self.0.extend([code, data.len() as u8]);
        self.0.extend(data);
        self
    }

    fn at(mut self, offset: usize, data: &[u8]) -> Self {
        self.0[offset..offset + data.len()].copy_from_slice(data);
        self
    }

    fn mac(self, last: u8) -> Self {
        self.at(33, &[last])
    }

    fn broadcast(self) -> Self {
        self.at(10, &[0x80, 0])
    }

    fn ciaddr(self, address: Ipv4Addr) -> Self {
        self.at(12, &address.octets())
    }

    fn relayed(self, giaddr: [u8; 4]) -> Self {
        self.at(3, &[1]).at(24, &giaddr)
    }

    fn asks(self, address: Ipv4Addr) -> Self {
        self.option(50, &address.octets())
    }

    fn chose(self, server: Ipv4Addr) -> Self {
        self.option(54, &server.octets())
    }

    fn to(&self, dhcp: &mut Dhcp) -> Outcome {
        self.at_time(dhcp, NOW)
    }

    fn at_time(&self, dhcp: &mut Dhcp, now: i64) -> Outcome {
        let mut bytes = self.0.clone();
        bytes.push(255);
        dhcp.receive(now, &bytes, DOOR)
    }
}

/// Options in the order of the Intel boot agent (BIOS).
fn bios_rom(kind: u8) -> Packet {
    Packet::new(kind)
        .broadcast()
        .option(
            55,
            &[1, 2, 3, 5, 6, 11, 12, 13, 15, 16, 17, 18, 43, 54, 60, 67, 128, 129, 130, 131, 132, 133, 134, 135],
        )
        .option(57, &[4, 236])
        .option(97, &[&[0][..], &UUID].concat())
        .option(93, &[0, 0])
        .option(94, &[1, 2, 1])
        .option(60, b"PXEClient:Arch:00000:UNDI:002001")
}

/// As EDK II sends it.
fn uefi_rom(kind: u8) -> Packet {
    Packet::new(kind)
        .broadcast()
        .option(57, &[5, 192])
        .option(
            55,
            &[1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59, 60, 66, 67, 97],
        )
        .option(97, &[&[0][..], &UUID].concat())
        .option(94, &[1, 3, 16])
        .option(93, &[0, 7])
        .option(60, b"PXEClient:Arch:00007:UNDI:003016")
}

/// As Debian's iPXE sends it: user class without a length, encapsulated options.
fn ipxe(kind: u8) -> Packet {
    Packet::new(kind)
        .option(57, &[5, 192])
        .option(93, &[0, 7])
        .option(94, &[1, 3, 16])
        .option(60, b"PXEClient:Arch:00007:UNDI:003016")
        .option(77, b"iPXE")
        .option(
            55,
            &[1, 3, 6, 7, 12, 15, 17, 26, 43, 60, 66, 67, 119, 128, 129, 130, 131, 132, 133, 134, 135, 175, 203],
        )
        .option(175, &[177, 5, 1, 0x1a, 0xf4, 0x10, 0x00, 24, 1, 1, 35, 1, 1, 34, 1, 1, 25, 1, 1])
        .option(61, &[&[1][..], &MAC].concat())
        .option(97, &[&[0][..], &UUID].concat())
}

fn udhcpc(kind: u8) -> Packet {
    Packet::new(kind)
        .option(61, &[&[1][..], &MAC].concat())
        .option(57, &[2, 64])
        .option(55, &[1, 3, 6, 12, 15, 28, 42])
        .option(60, b"udhcp 1.35.0")
        .option(12, b"agent")
}

/// Client id of RFC 4361: type 255, IAID, DUID-EN.
fn networkd(kind: u8) -> Packet {
    Packet::new(kind)
        .option(61, &[255, 0x7d, 0x9c, 0x40, 0x66, 0, 2, 0, 0, 0xab, 0x11, 1, 2, 3, 4, 5, 6, 7, 8])
        .option(57, &[5, 192])
        .option(55, &[1, 3, 12, 15, 6, 33, 121, 42])
}

/// As SMBIOS holds it and firmware sends it, and as people read it.
const UUID: [u8; 16] = [0x44, 0x45, 0x4c, 0x4c, 0x37, 0, 0x58, 0x10, 0x80, 0x4b, 0xb7, 0xc0, 0x4f, 0x44, 0x4d, 0x32];
const UUID_TEXT: &str = "4c4c4544-0037-1058-804b-b7c04f444d32";

/// What a client reads from an answer.
struct Got {
    what: Answer,
    yiaddr: Ipv4Addr,
    siaddr: Ipv4Addr,
    file: String,
    to: Destination,
    lease: Option<Lease>,
    sighting: Option<Sighting>,
    options: Vec<(u8, Vec<u8>)>,
    flags: [u8; 2],
    giaddr: Ipv4Addr,
}

impl Got {
    fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.iter().find(|(c, _)| *c == code).map(|(_, data)| data.as_slice())
    }

    fn text(&self, code: u8) -> &str {
        std::str::from_utf8(self.option(code).unwrap_or_default()).unwrap()
    }
}

#[track_caller]
fn got(outcome: Outcome) -> Got {
    let Outcome::Answer(Ready { what, packet, to, save, sighting }) = outcome else { panic!("{outcome:?}") };
    assert!(packet.len() >= 300 && packet.len() <= 548, "{} bytes", packet.len());
    assert_eq!(packet[..3], [2, 1, 6]);
    assert_eq!(packet[4..8], [0xde, 0xad, 0xbe, 0xef]);
    let ip = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
    let mut options = Vec::new();
    let mut rest = &packet[240..];
    while rest[0] != 255 {
        let length = rest[1] as usize;
        options.push((rest[0], rest[2..2 + length].to_vec()));
        rest = &rest[2 + length..];
    }
    let kind = match what {
        Answer::Offer => 2,
        Answer::Ack => 5,
        _ => 6,
    };
    assert_eq!(options.first(), Some(&(53, vec![kind])));
    let file: Vec<u8> = packet[108..236].iter().copied().take_while(|b| *b != 0).collect();
    Got {
        what,
        yiaddr: ip(16),
        siaddr: ip(20),
        file: String::from_utf8(file).unwrap(),
        to,
        lease: save,
        sighting,
        options,
        flags: [packet[10], packet[11]],
        giaddr: ip(24),
    }
}

#[track_caller]
fn silence(outcome: Outcome) -> Silence {
    match outcome {
        Outcome::Silent { why, .. } => why,
        answer => panic!("{answer:?}"),
    }
}

/// DISCOVER, OFFER, REQUEST, ACK.
#[track_caller]
fn boot(dhcp: &mut Dhcp, packet: fn(u8) -> Packet) -> Got {
    let offer = got(packet(DISCOVER).to(dhcp));
    assert_eq!(offer.what, Answer::Offer);
    assert_eq!(offer.lease, None, "an offer is not written");
    let ack = got(packet(REQUEST).asks(offer.yiaddr).chose(OWN).to(dhcp));
    assert_eq!((ack.what, ack.yiaddr), (Answer::Ack, offer.yiaddr));
    assert_eq!(ack.lease.as_ref().map(|l| (l.address, l.state)), Some((ack.yiaddr, LeaseState::Leased)));
    ack
}

#[test]
fn a_bios_rom_gets_its_loader_and_is_told_not_to_look_further() {
    let ack = boot(&mut server(), bios_rom);
    assert_eq!((ack.file.as_str(), ack.siaddr), ("undionly.kpxe", OWN));
    assert_eq!((ack.text(67), ack.text(66)), ("undionly.kpxe", "10.77.0.1"));
    assert_eq!(ack.text(60), "PXEClient");
    assert_eq!(ack.option(43), Some(&[6, 1, 8, 255][..]));
    assert_eq!(ack.option(1), Some(&[255, 255, 0, 0][..]));
    assert_eq!(ack.option(3), Some(&[10, 77, 0, 1][..]));
    assert_eq!(ack.option(51), Some(&600u32.to_be_bytes()[..]));
    assert_eq!((ack.to, ack.flags), (Destination::Broadcast, [0x80, 0]));
    let sighting = ack.sighting.unwrap();
    assert_eq!((sighting.stage, sighting.arch), (Stage::Rom, Some(ClientArch::Bios)));
}

#[test]
fn a_uefi_rom_gets_its_loader_without_pxe_options() {
    let ack = boot(&mut server(), uefi_rom);
    assert_eq!((ack.file.as_str(), ack.siaddr), ("snponly.efi", OWN));
    assert_eq!((ack.option(43), ack.option(60)), (None, None));
    let http = |kind| uefi_rom(kind).option(60, b"HTTPClient:Arch:00016:UNDI:003001").option(93, &[0, 16]);
    let ack = boot(&mut server(), http);
    assert_eq!(ack.text(67), "http://10.77.0.1/boot/loader/52-54-00-77-00-01/snponly.efi");
    assert_eq!((ack.text(60), ack.siaddr), ("HTTPClient", Ipv4Addr::UNSPECIFIED));
    let mut without_tftp = server_with(|config| config.tftp = false, Rules::default());
    assert_eq!(boot(&mut without_tftp, uefi_rom).option(67), None);
}

#[test]
fn ipxe_gets_its_script_in_a_frame_of_its_own() {
    let ack = boot(&mut server(), ipxe);
    let url = format!("http://10.77.0.1/boot/ipxe?mac=52:54:00:77:00:01&uuid={}&arch=uefi-x64", UUID_TEXT);
    assert_eq!(ack.text(67), url);
    assert_eq!(ack.option(175), Some(&[176, 1, 1][..]));
    assert_eq!(ack.to, Destination::Frame { mac: MacAddr(MAC), address: ack.yiaddr });
    assert_eq!(ack.sighting.unwrap().stage, Stage::Ipxe);
    // RFC 3004's form of the user class, without option 175.
    let framed = |kind| uefi_rom(kind).option(77, b"\x04gPXE\x04iPXE");
    assert!(boot(&mut server(), framed).text(67).contains("/boot/ipxe?"));
    let other = |kind| uefi_rom(kind).option(77, b"\x04gPXE\xffiPXE");
    assert_eq!(boot(&mut server(), other).text(67), "snponly.efi");
}

#[test]
fn a_running_system_gets_an_address_and_no_boot_file() {
    for packet in [udhcpc, networkd] {
        let ack = boot(&mut server(), packet);
        assert_eq!((ack.option(66), ack.option(67), ack.option(43), ack.file.as_str()), (None, None, None, ""));
        assert_eq!(ack.text(15), "lab");
        assert_eq!(ack.sighting.unwrap().stage, Stage::System);
    }
    let ack = boot(&mut server(), networkd);
    assert_eq!(ack.option(28), None, "was not asked for");
}

#[test]
fn one_machine_keeps_one_address_through_its_boot() {
    let mut dhcp = server();
    let first = boot(&mut dhcp, uefi_rom).yiaddr;
    for packet in [ipxe, udhcpc, networkd, bios_rom] {
        assert_eq!(boot(&mut dhcp, packet).yiaddr, first);
    }
    let other = got(networkd(DISCOVER).mac(2).to(&mut dhcp));
    assert_ne!(other.yiaddr, first, "a cloned disk with the same client id");
}

#[test]
fn sixteen_at_once_get_sixteen_addresses() {
    let mut dhcp = server();
    let offers: Vec<_> = (1..=16).map(|n| got(bios_rom(DISCOVER).mac(n).to(&mut dhcp)).yiaddr).collect();
    for (n, address) in (1..=16).zip(&offers) {
        let ack = got(bios_rom(REQUEST).mac(n).asks(*address).chose(OWN).to(&mut dhcp));
        assert_eq!((ack.what, ack.yiaddr), (Answer::Ack, *address));
    }
    let different: std::collections::HashSet<_> = offers.iter().collect();
    assert_eq!(different.len(), 16);
}

#[test]
fn through_a_relay() {
    let mut dhcp = server();
    let circuit: &[u8] = &[9, 3, 1, 2, 3, 1, 4, b'e', b't', b'h', b'7', 2, 2, 0xca, 0xfe, 200, 0];
    let relayed = |kind: u8| ipxe(kind).relayed([10, 78, 0, 1]).option(82, circuit);
    let offer = got(relayed(DISCOVER).to(&mut dhcp));
    assert_eq!(offer.yiaddr, Ipv4Addr::new(10, 78, 0, 10), "the relay's subnet");
    assert_eq!(offer.to, Destination::Routed("10.78.0.1:67".parse().unwrap()));
    assert_eq!(offer.giaddr, Ipv4Addr::new(10, 78, 0, 1));
    assert_eq!(offer.options.last(), Some(&(82, circuit.to_vec())), "unchanged, and last");
    let long = [0xaa; 255];
    let split = ipxe(DISCOVER).relayed([10, 78, 0, 1]).option(82, &long[..200]).option(82, &long[..100]);
    let echoed: Vec<u8> =
        got_long(split.to(&mut dhcp)).into_iter().filter(|(c, _)| *c == 82).flat_map(|(_, d)| d).collect();
    assert_eq!(echoed, [0xaa; 300]);
    let nak = got(relayed(REQUEST).asks(Ipv4Addr::new(10, 77, 2, 9)).chose(OWN).to(&mut dhcp));
    assert_eq!((nak.what, nak.flags), (Answer::Nak, [0x80, 0]), "the relay must broadcast it");
    assert_eq!(nak.option(82), Some(circuit));
    assert_eq!(silence(ipxe(DISCOVER).relayed([10, 99, 0, 1]).to(&mut dhcp)), Silence::UnknownNetwork);
}

/// Like [`got`], for an answer with relay information that makes it longer than others may be.
fn got_long(outcome: Outcome) -> Vec<(u8, Vec<u8>)> {
    let Outcome::Answer(Ready { packet, .. }) = outcome else { panic!("{outcome:?}") };
    let mut options = Vec::new();
    let mut rest = &packet[240..];
    while rest[0] != 255 {
        options.push((rest[0], rest[2..2 + rest[1] as usize].to_vec()));
        rest = &rest[2 + rest[1] as usize..];
    }
    options
}

#[test]
fn renewing_rebinding_and_coming_back() {
    let mut dhcp = server();
    let address = boot(&mut dhcp, udhcpc).yiaddr;
    let renewed = got(udhcpc(REQUEST).ciaddr(address).at_time(&mut dhcp, NOW + 300_000));
    assert_eq!((renewed.what, renewed.yiaddr), (Answer::Ack, address));
    assert_eq!(renewed.to, Destination::Routed(SocketAddrV4::new(address, 68)));
    assert_eq!(renewed.lease.unwrap().expires, NOW + 900_000);
    let back = got(networkd(REQUEST).asks(address).at_time(&mut dhcp, NOW + 2_000_000));
    assert_eq!((back.what, back.yiaddr), (Answer::Ack, address), "INIT-REBOOT, after the lease ended");
    // After a restart that lost nothing but the memory of an offer, and with a database that was lost.
    let mut empty = server();
    assert_eq!(got(udhcpc(REQUEST).ciaddr(address).to(&mut empty)).what, Answer::Ack);
}

#[test]
fn nak_where_the_address_is_not_the_clients() {
    let mut dhcp = server();
    let address = boot(&mut dhcp, udhcpc).yiaddr;
    let nak = |dhcp: &mut Dhcp, packet: Packet| {
        let nak = got(packet.to(dhcp));
        assert_eq!((nak.what, nak.to, nak.yiaddr), (Answer::Nak, Destination::Broadcast, Ipv4Addr::UNSPECIFIED));
        assert_eq!(nak.option(54), Some(&OWN.octets()[..]));
        assert!(nak.lease.is_none() && nak.sighting.is_none());
    };
    nak(&mut dhcp, udhcpc(REQUEST).mac(9).ciaddr(address));
    nak(&mut dhcp, udhcpc(REQUEST).mac(9).asks(address));
    nak(&mut dhcp, udhcpc(REQUEST).mac(9).asks(address).chose(OWN));
    nak(&mut dhcp, udhcpc(REQUEST).asks(Ipv4Addr::new(10, 77, 2, 200)));
    nak(&mut dhcp, udhcpc(REQUEST).asks(Ipv4Addr::new(192, 168, 1, 7)));
    nak(&mut dhcp, udhcpc(REQUEST).ciaddr(Ipv4Addr::new(192, 168, 1, 7)));
    nak(&mut dhcp, udhcpc(REQUEST).mac(9).asks(OWN));
    nak(&mut dhcp, udhcpc(REQUEST).mac(9).asks(Ipv4Addr::new(10, 77, 9, 9)));
}

#[test]
fn release_decline_and_inform() {
    let mut dhcp = server();
    let address = boot(&mut dhcp, udhcpc).yiaddr;
    let inform = got(udhcpc(INFORM).ciaddr(address).to(&mut dhcp));
    assert_eq!((inform.what, inform.yiaddr, inform.option(51)), (Answer::Ack, Ipv4Addr::UNSPECIFIED, None));
    assert!(inform.lease.is_none());
    assert_eq!(silence(udhcpc(RELEASE).mac(9).ciaddr(address).chose(OWN).to(&mut dhcp)), Silence::NotHolder);
    let released = udhcpc(RELEASE).ciaddr(address).chose(OWN).to(&mut dhcp);
    let Outcome::Silent { why: Silence::Released, save: Some(lease), .. } = released else { panic!("{released:?}") };
    assert_eq!((lease.address, lease.state, lease.expires), (address, LeaseState::Released, NOW));
    assert_eq!(boot(&mut dhcp, networkd).yiaddr, address, "its own again");
    let declined = networkd(DECLINE).asks(address).chose(OWN).to(&mut dhcp);
    let Outcome::Silent { why: Silence::Declined, save: Some(lease), .. } = declined else { panic!("{declined:?}") };
    assert_eq!(lease.state, LeaseState::Declined);
    assert_ne!(boot(&mut dhcp, networkd).yiaddr, address);
}

#[test]
fn another_server_was_chosen() {
    let mut dhcp = server();
    let address = got(udhcpc(DISCOVER).to(&mut dhcp)).yiaddr;
    let other = Ipv4Addr::new(10, 77, 0, 2);
    assert_eq!(silence(udhcpc(REQUEST).asks(address).chose(other).to(&mut dhcp)), Silence::OtherServer);
    assert_eq!(got(udhcpc(REQUEST).mac(2).asks(address).chose(OWN).to(&mut dhcp)).what, Answer::Ack, "free again");
}

#[test]
fn every_silence_has_its_reason() {
    let mut dhcp = server();
    let why = |dhcp: &mut Dhcp, packet: Packet| silence(packet.to(dhcp));
    let d = udhcpc(DISCOVER);
    assert_eq!(silence(dhcp.receive(NOW, &[], DOOR)), Silence::Malformed);
    assert_eq!(silence(dhcp.receive(NOW, &d.0[..239], DOOR)), Silence::Malformed);
    assert_eq!(why(&mut dhcp, d.clone().at(236, &[0])), Silence::Malformed);
    assert_eq!(why(&mut dhcp, d.clone().at(0, &[2])), Silence::NotRequest);
    assert_eq!(why(&mut dhcp, d.clone().at(1, &[32])), Silence::NotEthernet);
    assert_eq!(why(&mut dhcp, d.clone().at(2, &[16])), Silence::NotEthernet);
    assert_eq!(why(&mut dhcp, d.clone().at(28, &[0xff])), Silence::NotEthernet);
    assert_eq!(why(&mut dhcp, d.clone().at(28, &[0; 6])), Silence::NotEthernet);
    assert_eq!(why(&mut dhcp, d.clone().at(3, &[17])), Silence::TooManyHops);
    assert_eq!(why(&mut dhcp, Packet(d.0[..240].to_vec())), Silence::NoMessageType);
    assert_eq!(why(&mut dhcp, udhcpc(5)), Silence::NoMessageType);
    assert_eq!(why(&mut dhcp, udhcpc(REQUEST)), Silence::NoAddressAsked);
    assert_eq!(why(&mut dhcp, udhcpc(INFORM)), Silence::NoAddressAsked);
    for n in 0..4 {
        got(udhcpc(DISCOVER).mac(n).relayed([10, 78, 0, 1]).to(&mut dhcp));
    }
    assert_eq!(why(&mut dhcp, udhcpc(DISCOVER).mac(9).relayed([10, 78, 0, 1])), Silence::PoolEmpty);
    let elsewhere = Ipv4Addr::new(172, 16, 0, 1);
    assert_eq!(silence(dhcp.receive(NOW, &d.0, Door { own: elsewhere, ..DOOR })), Silence::UnknownNetwork);
}

#[test]
fn odd_options_are_as_if_not_sent() {
    let mut dhcp = server();
    let odd = |kind| {
        udhcpc(kind)
            .option(50, &[10, 77])
            .option(54, &[])
            .option(93, &[7])
            .option(97, &[0, 1])
            .option(61, &[1])
            .option(82, &[])
    };
    assert_eq!(got(odd(DISCOVER).to(&mut dhcp)).what, Answer::Offer);
    let several = uefi_rom(DISCOVER).option(93, &[0x12, 0x34, 0, 7]);
    assert_eq!(got(several.to(&mut dhcp)).file, "snponly.efi", "the first known one of a list");
    let unknown = uefi_rom(DISCOVER).option(93, &[0, 27]);
    assert_eq!(got(unknown.to(&mut dhcp)).option(67), None);
    let filler = uefi_rom(DISCOVER).option(97, &[0xff; 17]).option(97, &[0; 17]);
    assert_eq!(got(filler.to(&mut dhcp)).what, Answer::Offer);
}

proptest! {
    #[test]
    fn no_packet_brings_it_down(head in prop::collection::vec(any::<u8>(), 0..32), tail in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut dhcp = server();
        let _ = dhcp.receive(NOW, &tail, DOOR);
        let mut bytes = ipxe(DISCOVER).0;
        for (i, byte) in head.into_iter().enumerate() {
            bytes[i + 3] = byte;
        }
        bytes.extend(tail);
        let _ = dhcp.receive(NOW, &bytes, DOOR);
    }
}

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn facts(name: &str, state: &'static str) -> Facts {
    Facts { name: name.into(), model: Some("R650".into()), role: None, state }
}

#[test]
fn a_relay_selects_the_link_and_stands_in_for_us() {
    let mut dhcp = server();
    // RFC 3527 and RFC 5107: the relay is reached at 10.99.0.1, the client is on 10.78.0.0/24.
    let relay = ip("10.78.0.1");
    let info = [&[5, 4, 10, 78, 0, 0][..], &[11, 4], &relay.octets()].concat();
    let through = |packet: Packet| packet.relayed([10, 99, 0, 1]).option(82, &info);
    let offer = got(through(udhcpc(DISCOVER)).to(&mut dhcp));
    assert_eq!(offer.yiaddr, ip("10.78.0.10"));
    assert_eq!(offer.to, Destination::Routed("10.99.0.1:67".parse().unwrap()));
    assert_eq!(offer.option(54), Some(&relay.octets()[..]), "the client is to talk to the relay");
    let ack = got(through(udhcpc(REQUEST)).asks(offer.yiaddr).chose(relay).to(&mut dhcp));
    assert_eq!((ack.what, ack.yiaddr), (Answer::Ack, offer.yiaddr));
    let renewed = got(through(udhcpc(REQUEST)).ciaddr(offer.yiaddr).to(&mut dhcp));
    assert_eq!(renewed.what, Answer::Ack);
    let sighting = ack.sighting.unwrap();
    assert_eq!(sighting.relay.unwrap().relay, ip("10.99.0.1"));
    let other = through(udhcpc(REQUEST)).asks(offer.yiaddr).chose(ip("10.78.0.2"));
    assert_eq!(silence(other.to(&mut dhcp)), Silence::OtherServer);
}

#[test]
fn a_port_of_a_switch_has_its_address() {
    let reservation = |circuit: &str, remote: Option<&str>, address| Reservation {
        mac: None,
        uuid: None,
        circuit: Some(circuit.into()),
        remote: remote.map(Into::into),
        address: ip(address),
    };
    let mut dhcp = server_with(
        |config| {
            config.subnets[1].reservations = vec![
                reservation("Ethernet7", Some("tor1"), "10.78.0.7"),
                reservation("Ethernet7", None, "10.78.0.8"),
                reservation("0x000400d20107", None, "10.78.0.9"),
            ]
        },
        Rules::default(),
    );
    let behind = |mac: u8, info: &[u8]| udhcpc(DISCOVER).mac(mac).relayed([10, 78, 0, 1]).option(82, info);
    let mut at = |mac, info: &[u8]| got(behind(mac, info).to(&mut dhcp)).yiaddr;
    assert_eq!(at(1, b"\x01\x09Ethernet7\x02\x04tor1"), ip("10.78.0.7"));
    assert_eq!(at(2, b"\x01\x09Ethernet7\x02\x04tor2"), ip("10.78.0.8"));
    assert_eq!(at(3, b"\x01\x06\0\x04\0\xd2\x01\x07"), ip("10.78.0.9"));
    assert_eq!(at(4, b"\x01\x09Ethernet8\x02\x04tor1"), ip("10.78.0.10"), "a port without reservation");
    assert_eq!(at(5, b"\x01\x09Ethernet7\x02\x04tor1"), ip("10.78.0.11"), "another machine while the first one lives");
}

#[test]
fn subnets_of_one_wire() {
    let mut dhcp = server_with(
        |config| {
            config.subnets[0].shared = Some("lab".into());
            config.subnets[0].pools.truncate(0);
            config.subnets[1].shared = Some("lab".into());
        },
        Rules::default(),
    );
    let ack = boot(&mut dhcp, udhcpc);
    assert_eq!(ack.yiaddr, ip("10.78.0.10"), "asked in 10.77.0.0/16, whose pools are empty");
    assert_eq!(ack.option(1), Some(&[255, 255, 255, 0][..]), "the mask goes with the address");
    let renewed = got(udhcpc(REQUEST).ciaddr(ack.yiaddr).to(&mut dhcp));
    assert_eq!((renewed.what, renewed.yiaddr), (Answer::Ack, ack.yiaddr));
    let back = got(udhcpc(REQUEST).asks(ack.yiaddr).to(&mut dhcp));
    assert_eq!(back.what, Answer::Ack, "INIT-REBOOT");
    // Without the shared name the address is of another wire.
    let nak = got(udhcpc(REQUEST).asks(ip("10.78.0.10")).to(&mut server()));
    assert_eq!(nak.what, Answer::Nak);
}

#[test]
fn rules_by_state_and_short_leases_for_the_unknown() {
    let seconds = |got: &Got| u32::from_be_bytes(got.option(51).unwrap().try_into().unwrap());
    let rules = || {
        let known = |last| MacAddr([0x52, 0x54, 0, 0x77, 0, last]);
        Rules(HashMap::from([
            (known(1), facts("a", "seen")),
            (known(2), facts("b", "ready")),
            (known(3), facts("c", "delivered")),
        ]))
    };
    let change = |config: &mut BootConfig| {
        config.unknown_lease_seconds = 120;
        config.options = toml::from_str::<HashMap<String, Vec<Rule>>>(
            r#"options = [
                { ntp = ["10.77.0.1"], mtu = 9000 },
                { state = "delivered", lease_seconds = 86400, dns = ["10.77.0.2"], raw = { 224 = "0x0a0b" } },
            ]"#,
        )
        .unwrap()
        .remove("options")
        .unwrap();
    };
    let mut dhcp = server_with(change, rules());
    let mut asks = |mac: u8| got(udhcpc(DISCOVER).mac(mac).to(&mut dhcp));
    assert_eq!(seconds(&asks(9)), 120, "nobody knows it");
    assert_eq!(seconds(&asks(1)), 120, "it has not said who it is");
    let ready = asks(2);
    assert_eq!((seconds(&ready), ready.option(42)), (600, Some(&[10, 77, 0, 1][..])));
    assert_eq!(ready.option(26), None, "udhcpc does not ask for an MTU");
    assert_eq!(ready.option(6), Some(&[10, 77, 0, 1][..]));
    let delivered = asks(3);
    assert_eq!((seconds(&delivered), delivered.option(224)), (86400, Some(&[10, 11][..])));
    assert_eq!(delivered.option(6), Some(&[10, 77, 0, 2][..]));
}

#[test]
fn options_overflow_into_the_old_fields_both_ways() {
    // A request that has its type in `file` and its wanted address in `sname`.
    let mut packet = udhcpc(DISCOVER);
    packet.0.truncate(240);
    let packet = packet.option(52, &[3]).at(108, &[53, 1, DISCOVER, 255]).at(44, &[50, 4, 10, 77, 4, 4, 255]);
    assert_eq!(got(packet.to(&mut server())).yiaddr, ip("10.77.4.4"));
    // An answer that is longer than this client takes.
    let long: Vec<(String, String)> = (224..=233).map(|n| (n.to_string(), "x".repeat(17))).collect();
    let mut dhcp = server_with(
        |config| config.options = vec![Rule { raw: long.into_iter().collect(), ..Rule::default() }],
        Rules::default(),
    );
    let asks = ipxe(DISCOVER).option(57, &[2, 64]).relayed([10, 78, 0, 1]).option(82, &[1, 100].map(|b| b).repeat(50));
    let Outcome::Answer(ready) = asks.to(&mut dhcp) else { panic!() };
    assert!(ready.packet.len() <= 548 + 102, "{}", ready.packet.len());
    let message = dhcproto::v4::borrowed::Message::new(&ready.packet).unwrap();
    let overload = message.opts().find(|o| u8::from(o.code()) == 52).map(|o| o.data().to_vec());
    let mut codes: Vec<u8> = message.opts().map(|o| o.code().into()).collect();
    for field in [options::FILE, options::SNAME] {
        let field = &ready.packet[field];
        codes.extend(dhcproto::v4::borrowed::DhcpOptionIterator::new(field).map(|o| u8::from(o.code())));
    }
    for code in [53, 54, 51, 1, 67, 61, 82].into_iter().chain(224..=233) {
        assert!(codes.contains(&code), "option {code} in {codes:?}, overload {overload:?}");
    }
}

#[test]
fn an_address_that_was_never_used_is_probed_first() {
    let mut dhcp = server_with(|config| config.probe_ms = 250, Rules::default());
    let Outcome::Probe { address, then } = udhcpc(DISCOVER).to(&mut dhcp) else { panic!() };
    assert_eq!((address, then.what), (ip("10.77.2.0"), Answer::Offer));
    assert_eq!(silence(udhcpc(DISCOVER).to(&mut dhcp)), Silence::Probing);
    assert_eq!(got(udhcpc(REQUEST).asks(address).to(&mut dhcp)).what, Answer::Nak, "nobody has it yet");
    assert_eq!(dhcp.table.probed(NOW, address, None), None);
    assert_eq!(got(udhcpc(REQUEST).asks(address).chose(OWN).to(&mut dhcp)).what, Answer::Ack);
    assert_eq!(got(udhcpc(DISCOVER).to(&mut dhcp)).yiaddr, address, "no second time");
    // Somebody is there: set aside, and the client gets the next one.
    let Outcome::Probe { address, .. } = udhcpc(DISCOVER).mac(2).to(&mut dhcp) else { panic!() };
    let lease = dhcp.table.probed(NOW, address, Some(MacAddr([2, 0, 0, 0, 0, 9]))).unwrap();
    assert_eq!((lease.address, lease.state), (address, LeaseState::Declined));
    let Outcome::Probe { address: next, .. } = udhcpc(DISCOVER).mac(2).to(&mut dhcp) else { panic!() };
    assert_ne!(next, address);
}

#[test]
fn a_flood_of_strangers_leaves_room_for_the_known() {
    let known = MacAddr([0x52, 0x54, 0, 0x77, 9, 9]);
    let rules = Rules(HashMap::from([(known, facts("a", "ready"))]));
    let mut dhcp = server_with(|config| config.unknown_per_second = 200, rules);
    let stranger = |n: u16| udhcpc(DISCOVER).at(32, &n.to_be_bytes());
    let mut count = HashMap::new();
    for n in 0..3000 {
        let outcome = stranger(n).at(31, &[1]).to(&mut dhcp);
        *count.entry(matches!(outcome, Outcome::Answer(_))).or_insert(0) += 1;
    }
    assert_eq!(count[&true], 800, "four seconds of the rate");
    assert_eq!(silence(stranger(3000).at(31, &[1]).to(&mut dhcp)), Silence::TooManyStrangers);
    let machine = udhcpc(DISCOVER).at(32, &[9, 9]);
    assert_eq!(got(machine.to(&mut dhcp)).what, Answer::Offer);
    // Later, with many addresses taken: the last tenth of 1,024 is not for strangers.
    for n in 0..3000u16 {
        stranger(n).at(31, &[2]).at_time(&mut dhcp, NOW + i64::from(n) * 10);
        let usage = dhcp.table.usage(dhcp.table.of(OWN).unwrap(), NOW + i64::from(n) * 10);
        assert!(usage.size - usage.taken >= usage.size / 10, "{usage:?}");
    }
    let back = got(udhcpc(DISCOVER).at(32, &[9, 9]).at_time(&mut dhcp, NOW + 30_001));
    assert_eq!(back.what, Answer::Offer);
}

#[test]
fn proxy_dhcp_says_what_to_boot_and_gives_no_address() {
    let mut dhcp = server();
    let door = Door { mode: Mode::Proxy, ..DOOR };
    let again = Door { port: proxy::PORT, ..door };
    let mut ask = |packet: Packet, door| {
        let mut bytes = packet.0;
        bytes.push(255);
        dhcp.receive(NOW, &bytes, door)
    };
    for rom in [bios_rom as fn(u8) -> Packet, uefi_rom] {
        let offer = got(ask(rom(DISCOVER), door));
        assert_eq!((offer.yiaddr, offer.option(51), offer.option(1)), (Ipv4Addr::UNSPECIFIED, None, None));
        assert_eq!((offer.text(60), offer.siaddr, offer.to), ("PXEClient", OWN, Destination::Broadcast));
        assert!(offer.file.ends_with("kpxe") || offer.file.ends_with("efi"));
        assert_eq!(offer.option(97).map(|o| o[1..].to_vec()), Some(UUID.to_vec()));
        assert!(offer.lease.is_none());
    }
    let ack = got(ask(uefi_rom(REQUEST).ciaddr(ip("10.77.3.3")), again));
    assert_eq!((ack.what, ack.to), (Answer::Ack, Destination::Routed("10.77.3.3:68".parse().unwrap())));
    assert!(got(ask(ipxe(DISCOVER), door)).text(67).contains("/boot/ipxe?"));
    assert_eq!(silence(ask(uefi_rom(REQUEST).asks(ip("10.77.3.3")), door)), Silence::NotProxied);
    assert_eq!(silence(ask(udhcpc(DISCOVER), door)), Silence::NotProxied);
    let arm = uefi_rom(DISCOVER).option(93, &[0, 11]);
    assert_eq!(silence(ask(arm, door)), Silence::NoBootFile);
}

#[test]
fn another_configuration_keeps_the_leases() {
    let mut dhcp = server();
    let address = boot(&mut dhcp, udhcpc).yiaddr;
    let mut config = sample();
    config.subnets[0].lease_seconds = 7200;
    config.subnets.remove(1);
    config.probe_ms = 0;
    dhcp.reconfigure(&config);
    let other = got(udhcpc(DISCOVER).mac(7).asks(address).to(&mut dhcp));
    assert_ne!(other.yiaddr, address, "still the first one's");
    assert_eq!(got(udhcpc(REQUEST).ciaddr(address).to(&mut dhcp)).what, Answer::Ack);
    assert_eq!(silence(udhcpc(DISCOVER).relayed([10, 78, 0, 1]).to(&mut dhcp)), Silence::UnknownNetwork);
}
