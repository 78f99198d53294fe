//! Relays, ports of switches, shared wires, rules, floods, other servers, and a configuration that changes.

use super::*;

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// What it says, or what is known of its MAC address, makes a client a BMC; a firmware that boots is none.
#[test]
fn a_bmc_gets_an_address_and_no_boot_file_and_is_no_machine() {
    let mut dhcp = server();
    for (mac, class, maker) in [
        (1, b"iDRAC".as_slice(), Some("Dell iDRAC")),
        (2, b"CPQRIB3".as_slice(), Some("HPE iLO")),
        (BMC, b"OpenBMC".as_slice(), None),
    ] {
        let says = |kind| networkd(kind).mac(mac).option(60, class).option(61, &[1, mac]);
        let offer = got(says(DISCOVER).to(&mut dhcp));
        let ack = got(says(REQUEST).asks(offer.yiaddr).to(&mut dhcp));
        assert_eq!((ack.what, ack.sighting, ack.file.as_str()), (Answer::Ack, None, ""));
        let bmc = ack.bmc.unwrap();
        assert_eq!((bmc.address, bmc.maker, bmc.mac.0[5]), (offer.yiaddr, maker, mac));
    }
    for host in [networkd(DISCOVER).mac(3).option(60, b"iDRAC tools"), uefi_rom(DISCOVER).mac(BMC)] {
        let host = got(host.to(&mut dhcp));
        assert!(host.sighting.is_some() && host.bmc.is_none());
    }
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
