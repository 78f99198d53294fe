//! The boot services against real clients: DHCP, HTTP, and iPXE in QEMU. TFTP has a module of its own.

use std::collections::HashSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use rackline::boot::Stage;
use rackline::boot::firmware::Files;
use rackline::store::lease::LeaseState;

use crate::net::{Appliance, Net, Running, can_run, inside, leases, receive, run, udhcpc_script, until};
use crate::wire::{Tap, keep};

#[test]
fn udhcpc_binds_renews_and_releases_and_finds_its_address_after_a_restart() {
    if !can_run(&["ip", "busybox"]) {
        return;
    }
    let net = Net::new();
    let appliance = Appliance::start(&net, Files::default()).unwrap();
    let script = udhcpc_script(&net);
    let log = || std::fs::read_to_string(net.path("udhcpc.log")).unwrap_or_default();
    let args = ["udhcpc", "-i", "c0", "-f", "-t", "10", "-T", "1", "-s", &script];
    let client = Running(net.client("busybox", &args).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
    until("udhcpc to be bound", || log().contains("bound ip=").then_some(()));
    let expected = "bound ip=10.77.2.0 router=10.77.0.1 domain=lab serverid=10.77.0.1 lease=3600 boot_file=";
    assert!(log().lines().any(|l| l == expected), "{}", log());
    // By unicast, from the address it has now.
    run("kill", &["-USR1", &client.0.id().to_string()]);
    until("udhcpc to renew", || log().contains("renew ip=10.77.2.0").then_some(()));
    drop(client);
    let seen = appliance.watcher.seen();
    assert!(seen.len() >= 3 && seen.iter().all(|s| s.stage == Stage::System), "{seen:?}");
    let leases = appliance.stop(&net);
    assert_eq!(leases.len(), 1);
    assert_eq!((leases[0].address, leases[0].state), (Ipv4Addr::new(10, 77, 2, 0), LeaseState::Leased));

    let appliance = Appliance::start(&net, Files::default()).unwrap();
    run("ip", &["-n", &net.client, "addr", "flush", "dev", "c0"]);
    net.client_address("10.77.0.9/16");
    let other = exchange(&net.socket("0.0.0.0:68"), &[discover(7)]);
    assert_eq!(
        other[0].1,
        Ipv4Addr::new(10, 77, 2, 1),
        "the lease is remembered: the next machine gets the next address"
    );
    let client = Running(net.client("busybox", &args).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
    until("udhcpc to be bound again", || (log().matches("bound ip=10.77.2.0 ").count() == 2).then_some(()));
    run("kill", &["-USR2", &client.0.id().to_string()]);
    until("the release", || (state_of_first(&net) == Some(LeaseState::Released)).then_some(()));
    drop(appliance);
}

fn state_of_first(net: &Net) -> Option<LeaseState> {
    leases(net).into_iter().find(|l| l.address == Ipv4Addr::new(10, 77, 2, 0)).map(|l| l.state)
}

#[test]
fn dhclient_binds() {
    if !can_run(&["ip", "dhclient"]) {
        return;
    }
    let net = Net::new();
    let _appliance = Appliance::start(&net, Files::default()).unwrap();
    let (lf, pf) = (net.path("dhclient.leases"), net.path("dhclient.pid"));
    let args = ["-4", "-d", "-1", "-sf", "/bin/true", "-lf", lf.to_str().unwrap(), "-pf", pf.to_str().unwrap(), "c0"];
    let quiet = Stdio::null;
    let _client = Running(net.client("dhclient", &args).stderr(quiet()).stdout(quiet()).spawn().unwrap());
    let lease = until("dhclient to be bound", || {
        let text = std::fs::read_to_string(&lf).ok()?;
        text.contains("fixed-address").then_some(text)
    });
    assert!(lease.contains("fixed-address 10.77.2.0;"), "{lease}");
    assert!(lease.contains("option subnet-mask 255.255.0.0;"), "{lease}");
    assert!(lease.contains("option dhcp-server-identifier 10.77.0.1;"), "{lease}");
}

/// A broadcast DISCOVER of machine `n`, which wants a broadcast answer.
fn discover(n: u8) -> Vec<u8> {
    message(n, 1, &[])
}

fn message(n: u8, kind: u8, options: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
    bytes[7] = n;
    bytes[10] = 0x80;
    bytes[28..34].copy_from_slice(&[2, 0, 0, 0, 0x77, n]);
    bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
    bytes.extend([53, 1, kind]);
    bytes.extend(options);
    bytes.push(255);
    bytes
}

/// Sends everything at once, then reads as many answers: machine, address, type.
fn exchange(socket: &UdpSocket, messages: &[Vec<u8>]) -> Vec<(u8, Ipv4Addr, u8)> {
    socket.set_broadcast(true).unwrap();
    rustix::net::sockopt::set_socket_reuseaddr(socket, true).unwrap();
    for message in messages {
        socket.send_to(message, "10.77.255.255:67").unwrap();
    }
    let mut buffer = [0; 1500];
    let mut answers = Vec::new();
    while answers.len() < messages.len() {
        let (length, _) = receive(socket, &mut buffer).unwrap();
        assert!(length >= 300);
        let address = <[u8; 4]>::try_from(&buffer[16..20]).unwrap();
        answers.push((buffer[33], Ipv4Addr::from(address), buffer[242]));
    }
    answers
}

#[test]
fn sixteen_machines_at_once_get_sixteen_addresses_and_keep_them() {
    if !can_run(&["ip"]) {
        return;
    }
    let net = Net::new();
    let appliance = Appliance::start(&net, Files::default()).unwrap();
    net.client_address("10.77.0.9/16");
    let socket = net.socket("0.0.0.0:68");
    let offers = exchange(&socket, &(1..=16).map(discover).collect::<Vec<_>>());
    let addresses: HashSet<_> = offers.iter().map(|(_, address, _)| *address).collect();
    assert_eq!((addresses.len(), offers.iter().all(|(.., kind)| *kind == 2)), (16, true), "{offers:?}");
    let request = |(n, address, _): &(u8, Ipv4Addr, u8)| {
        let [a, b, c, d] = address.octets();
        message(*n, 3, &[50, 4, a, b, c, d, 54, 4, 10, 77, 0, 1])
    };
    let acks = exchange(&socket, &offers.iter().map(request).collect::<Vec<_>>());
    let mut expected: Vec<_> = offers.iter().map(|(n, address, _)| (*n, *address, 5)).collect();
    expected.sort();
    let mut got = acks.clone();
    got.sort();
    assert_eq!(got, expected);
    let stored: HashSet<_> = appliance.stop(&net).into_iter().map(|l| (l.mac.0[5], l.address)).collect();
    assert_eq!(stored, acks.iter().map(|(n, address, _)| (*n, *address)).collect());

    let _appliance = Appliance::start(&net, Files::default()).unwrap();
    let again = exchange(&socket, &(1..=16).rev().map(discover).collect::<Vec<_>>());
    let again: HashSet<_> = again.into_iter().map(|(n, address, _)| (n, address)).collect();
    assert_eq!(again, stored, "after a restart");
}

#[test]
fn a_port_in_use_is_named() {
    if !can_run(&["ip"]) {
        return;
    }
    let net = Net::new();
    for port in [67, 69] {
        let other = inside(&net.server, move || UdpSocket::bind(("0.0.0.0", port)).unwrap());
        let error = Appliance::start(&net, Files::default()).err().unwrap();
        assert_eq!(error.code(), "boot.port");
        assert_eq!(error.message(), format!("UDP port {port} on interface lab0 is in use by another program"));
        assert_eq!(error.next_step(), Some(format!("find it with: ss -ulpn 'sport = :{port}'").as_str()));
        drop(other);
    }
    run("ip", &["-n", &net.server, "addr", "del", "10.77.0.1/16", "dev", "lab0"]);
    assert_eq!(Appliance::start(&net, Files::default()).err().unwrap().code(), "boot.address");
    run("ip", &["-n", &net.server, "link", "set", "lab0", "down"]);
    run("ip", &["-n", &net.server, "link", "set", "lab0", "name", "lab1"]);
    assert_eq!(Appliance::start(&net, Files::default()).err().unwrap().code(), "boot.interface");
}

#[test]
fn nothing_is_answered_on_other_interfaces() {
    if !can_run(&["ip"]) {
        return;
    }
    let net = Net::new();
    run(
        "ip",
        &["-n", &net.server, "link", "add", "other0", "type", "veth", "peer", "name", "o0", "netns", &net.client],
    );
    for (ns, link, address) in [(&net.server, "other0", "10.99.0.1/24"), (&net.client, "o0", "10.99.0.2/24")] {
        run("ip", &["-n", ns, "addr", "add", address, "dev", link]);
        run("ip", &["-n", ns, "link", "set", link, "up"]);
    }
    let mut files = Files::default();
    files.memory.insert("small".into(), Bytes::from_static(b"hello"));
    let _appliance = Appliance::start(&net, files).unwrap();
    let socket = net.socket("0.0.0.0:68");
    socket.set_broadcast(true).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket.send_to(&discover(1), "10.99.0.255:67").unwrap();
    socket.send_to(b"\0\x01small\0octet\0", "10.99.0.1:69").unwrap();
    assert!(receive(&socket, &mut [0; 1500]).is_err());
    net.client_address("10.77.0.9/16");
    assert_eq!(exchange(&socket, &[discover(1)])[0].2, 2, "the same packet on the right interface");
}

#[test]
fn scripts_and_files_over_http() {
    if !can_run(&["ip", "curl"]) {
        return;
    }
    let net = Net::new();
    net.client_address("10.77.0.9/16");
    std::fs::write(net.path("kernel"), b"0123456789").unwrap();
    let files = Files::default().with("vmlinuz", &net.path("kernel")).unwrap();
    let appliance = Appliance::start(&net, files).unwrap();
    let curl = |args: &[&str]| {
        let output = net.run_client("curl", &[&["-sS", "--path-as-is", "--max-time", "10"], args].concat());
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let script = curl(&["http://10.77.0.1/boot/ipxe?mac=52:54:00:77:00:01&uuid=junk&arch=bios"]);
    assert!(script.starts_with("#!ipxe\n") && script.contains("nothing to do for 52:54:00:77:00:01"), "{script}");
    let seen = appliance.watcher.seen();
    // Once as a sighting, once with the question; and only with the question while it waits.
    assert_eq!((seen.len(), seen[0].stage, seen[0].uuid), (2, Stage::Ipxe, None));
    curl(&["http://10.77.0.1/boot/ipxe?mac=52:54:00:77:00:01&again=1"]);
    assert_eq!(appliance.watcher.seen().len(), 3);
    assert_eq!(seen[0].address, Some("10.77.0.9".parse().unwrap()));
    for query in ["", "?mac=zz", "?mac=%ff%00", "?mac=1&mac=2"] {
        let script = curl(&[&format!("http://10.77.0.1/boot/ipxe{query}")]);
        assert!(script.starts_with("#!ipxe\n") && script.contains("chain --replace"), "{query}: {script}");
    }
    assert_eq!(curl(&["http://10.77.0.1/boot/files/vmlinuz"]), "0123456789");
    assert_eq!(curl(&["-r", "2-4", "http://10.77.0.1/boot/files/vmlinuz"]), "234");
    assert!(curl(&["-I", "http://10.77.0.1/boot/files/vmlinuz"]).to_lowercase().contains("content-length: 10"));
    for name in ["kernel", "../kernel", "%2e%2e%2fkernel", "/etc/shadow", "vmlinuz/"] {
        let code = curl(&["-o", "/dev/null", "-w", "%{http_code}", &format!("http://10.77.0.1/boot/files/{name}")]);
        assert_eq!(code, "404", "{name}");
    }
}

#[test]
fn two_ipxe_guests_boot_side_by_side() {
    if !can_run(&["ip", "qemu-system-x86_64"]) {
        return;
    }
    let net = Net::new();
    let ns = net.client.as_str();
    run("ip", &["-n", ns, "link", "add", "br0", "type", "bridge", "stp_state", "0", "forward_delay", "0"]);
    run("ip", &["-n", ns, "link", "set", "br0", "up"]);
    run("ip", &["-n", ns, "link", "set", "c0", "master", "br0"]);
    let appliance = Appliance::start(&net, Files::default()).unwrap();
    let tap = Tap::on(&net.server, "lab0");
    let guests: Vec<Running> = (1..=2).map(|n| guest(&net, n)).collect();
    for n in 1..=2 {
        let console = net.path(&format!("console{n}"));
        until("the script on the guest's console", || {
            let text = String::from_utf8_lossy(&std::fs::read(&console).unwrap_or_default()).into_owned();
            text.contains(&format!("Rackline: waiting: nothing to do for 52:54:00:77:00:0{n}")).then_some(())
        });
    }
    drop(guests);
    keep(
        "ipxe-rom",
        &["SeaBIOS and the iPXE ROM of QEMU 7.2 (Debian ipxe-qemu, iPXE 2019), two guests", "INIT"],
        &tap.seen(),
    );
    let seen = appliance.watcher.seen();
    let addresses: HashSet<_> = seen.iter().map(|s| (s.mac, s.address)).collect();
    assert_eq!(addresses.len(), 2, "each machine one address, by DHCP and by HTTP: {seen:?}");
    assert!(seen.iter().all(|s| s.stage == Stage::Ipxe));
    assert_eq!(appliance.stop(&net).len(), 2);
}

/// A BIOS machine with QEMU's iPXE ROM.
pub fn guest(net: &Net, n: u8) -> Running {
    guest_with(net, n, "", &[])
}

/// With more for the card and for the machine.
pub fn guest_with(net: &Net, n: u8, card: &str, more: &[&str]) -> Running {
    let tap = format!("tap{n}");
    run("ip", &["-n", &net.client, "tuntap", "add", "dev", &tap, "mode", "tap"]);
    run("ip", &["-n", &net.client, "link", "set", &tap, "master", "br0", "up"]);
    let console = format!("file:{}", net.path(&format!("console{n}")).display());
    let netdev = format!("tap,id=n0,ifname={tap},script=no,downscript=no");
    let device = format!("virtio-net-pci,netdev=n0,mac=52:54:00:77:00:0{n},bootindex=1{card}");
    let args = [
        "-accel",
        "tcg,tb-size=64",
        "-M",
        "q35,graphics=off",
        "-m",
        "256",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
        "-serial",
        &console,
        "-netdev",
        &netdev,
        "-device",
        &device,
    ];
    let args: Vec<&str> = args.into_iter().chain(more.iter().copied()).collect();
    Running(net.client("qemu-system-x86_64", &args).spawn().unwrap())
}
