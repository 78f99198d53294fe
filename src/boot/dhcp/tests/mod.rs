//! Packets as clients send them, byte by byte, and what comes back: one client here, what a site has beside it in [`site`].

mod site;

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

/// Last byte of the MAC address of a BMC that the rules know.
const BMC: u8 = 0xbb;

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

    fn is_bmc(&self, mac: MacAddr) -> bool {
        mac.0[5] == BMC
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
    Dhcp::new(&config, [], loader::tests::loaders(&config), Arc::default(), Arc::new(rules))
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
    bmc: Option<BmcSighting>,
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
    let Outcome::Answer(Ready { what, packet, to, save, sighting, bmc }) = outcome else { panic!("{outcome:?}") };
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
        bmc,
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
