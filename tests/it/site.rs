//! What a site has besides us: machines on addresses of the pool, other DHCP servers, a DHCP server that has to stay, and a
//! configuration that changes while machines boot. Real clients, real firmware, real neighbours.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use rackline::boot::Stage;
use rackline::boot::config::BootConfig;
use rackline::boot::firmware::Files;

use crate::net::{Appliance, CONFIG, Net, Running, can_run, receive, run, until};

/// A DISCOVER with the broadcast flag, as any client might send it.
fn discover(mac_end: u8) -> Vec<u8> {
    let mut packet = vec![0; 236];
    packet[..4].copy_from_slice(&[1, 1, 6, 0]);
    packet[4..8].copy_from_slice(&[9, 9, 9, mac_end]);
    packet[10] = 0x80;
    packet[28..34].copy_from_slice(&[0x52, 0x54, 0, 0x99, 0, mac_end]);
    packet.extend([99, 130, 83, 99, 53, 1, 1, 255]);
    packet.resize(300, 0);
    packet
}

/// The address in the answer to this client, if there is one within `wait`.
fn offered(socket: &UdpSocket, mac_end: u8, wait: Duration) -> Option<Ipv4Addr> {
    let mut buffer = [0; 1500];
    socket.set_read_timeout(Some(wait)).unwrap();
    loop {
        let (length, _) = receive(socket, &mut buffer).ok()?;
        let packet = &buffer[..length];
        if packet[4..8] == [9, 9, 9, mac_end] {
            return Some(Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]));
        }
    }
}

fn clients(net: &Net) -> UdpSocket {
    run("ip", &["-n", &net.client, "route", "add", "255.255.255.255", "dev", "c0"]);
    let socket = net.socket("0.0.0.0:68");
    socket.set_broadcast(true).unwrap();
    socket
}

const SERVER: &str = "255.255.255.255:67";

#[test]
fn an_address_that_somebody_uses_is_not_offered() {
    if !can_run(&["ip"]) {
        return;
    }
    let net = Net::new();
    net.client_address("10.77.2.0/16");
    net.client_address("10.77.2.1/16");
    let appliance = Appliance::start(&net, Files::default()).unwrap();
    let socket = clients(&net);
    for _ in 0..2 {
        socket.send_to(&discover(1), SERVER).unwrap();
        assert_eq!(offered(&socket, 1, Duration::from_millis(1200)), None, "somebody answers for it");
    }
    socket.send_to(&discover(1), SERVER).unwrap();
    assert_eq!(offered(&socket, 1, Duration::from_secs(5)), Some("10.77.2.2".parse().unwrap()));
    let why: Vec<String> = appliance.watcher.unheard().into_iter().map(|u| u.why).collect();
    assert!(why.iter().all(|w| w.contains("somebody else is on the address")) && why.len() == 2, "{why:?}");
    let aside = appliance.stop(&net);
    assert_eq!(aside.len(), 2, "both are on disk as set aside: {aside:?}");
}

#[test]
fn another_dhcp_server_is_named_with_address_and_mac() {
    if !can_run(&["ip", "dnsmasq"]) {
        return;
    }
    let net = Net::new();
    net.client_address("10.77.0.66/16");
    let rogue = dnsmasq(&net, "10.77.66.1,10.77.66.99,255.255.0.0,10m");
    let appliance = Appliance::start(&net, Files::default()).unwrap();
    let others = until("the other server to be seen", || {
        let others = appliance.monitor.status().other_servers;
        (!others.is_empty()).then_some(others)
    });
    assert_eq!(
        (others.len(), others[0].address, others[0].interface.as_str()),
        (1, "10.77.0.66".parse().unwrap(), "lab0")
    );
    let links = net.run_client("ip", &["-br", "link", "show", "c0"]);
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    assert!(links.contains(&others[0].mac.to_string()), "{links} {others:?}");
    // It is planned, after all.
    let mut config: BootConfig = toml::from_str(CONFIG).unwrap();
    config.other_servers = vec![others[0].address];
    assert!(appliance.monitor.reconfigure(&config).unwrap());
    assert!(appliance.monitor.status().other_servers.is_empty());
    drop(rogue);
}

#[test]
fn a_new_configuration_takes_effect_while_it_runs() {
    if !can_run(&["ip"]) {
        return;
    }
    let net = Net::new();
    let appliance = Appliance::start_with(
        &net,
        Files::default(),
        &CONFIG
            .replace("10.77.0.0/16", "10.99.0.0/16")
            .replace("10.77.2.", "10.99.2.")
            .replace("router = \"10.77.0.1\"", ""),
    )
    .unwrap();
    let socket = clients(&net);
    socket.send_to(&discover(1), SERVER).unwrap();
    assert_eq!(offered(&socket, 1, Duration::from_millis(700)), None);
    let why = until("the reason", || appliance.watcher.unheard().pop()).why;
    assert_eq!(why, "asked on lab0, no subnet has it; add one to boot.subnets");
    assert_eq!(appliance.monitor.status().unanswered[0].why, why);

    let wrong = BootConfig { unknown_per_second: 0, ..toml::from_str(CONFIG).unwrap() };
    assert_eq!(appliance.monitor.reconfigure(&wrong).unwrap_err().code(), "boot.config");
    let mut elsewhere: BootConfig = toml::from_str(CONFIG).unwrap();
    elsewhere.interfaces[0].name = "eth9".into();
    assert_eq!(appliance.monitor.reconfigure(&elsewhere).unwrap_err().code(), "boot.fixed");
    socket.send_to(&discover(2), SERVER).unwrap();
    assert_eq!(offered(&socket, 2, Duration::from_millis(700)), None, "nothing has changed");

    let right: BootConfig = toml::from_str(CONFIG).unwrap();
    assert!(appliance.monitor.reconfigure(&right).unwrap());
    assert!(!appliance.monitor.reconfigure(&right).unwrap(), "the same again");
    socket.send_to(&discover(3), SERVER).unwrap();
    assert_eq!(offered(&socket, 3, Duration::from_secs(5)), Some("10.77.2.0".parse().unwrap()));
}

#[test]
fn beside_a_dhcp_server_that_stays_firmware_gets_its_boot_file_from_us() {
    if !can_run(&["ip", "qemu-system-x86_64", "dnsmasq"]) {
        return;
    }
    let net = Net::new();
    let ns = net.client.as_str();
    run("ip", &["-n", ns, "link", "add", "br0", "type", "bridge", "stp_state", "0", "forward_delay", "0"]);
    run("ip", &["-n", ns, "link", "set", "br0", "up"]);
    run("ip", &["-n", ns, "link", "set", "c0", "master", "br0"]);
    run("ip", &["-n", ns, "addr", "add", "10.77.0.66/16", "dev", "br0"]);
    let config = CONFIG.replace("address = \"10.77.0.1\" }", "address = \"10.77.0.1\", mode = \"proxy\" }");
    let config = config.replace("url =", "other_servers = [\"10.77.0.66\"]\nurl =");
    let appliance = Appliance::start_with(&net, Files::installed().unwrap(), &config).unwrap();
    let addresses = dnsmasq(&net, "10.77.66.1,10.77.66.99,255.255.0.0,10m");
    let guests = [bios(&net), uefi(&net)];
    for n in [1, 2] {
        until("the script to be asked for", || {
            let seen = appliance.watcher.seen();
            let asked =
                |s: &&rackline::boot::Sighting| s.mac.0[5] == n && s.stage == Stage::Ipxe && s.address.is_some();
            seen.iter().find(asked).map(|s| assert!(s.address.unwrap().to_string().starts_with("10.77.66.")))
        });
    }
    let roms = appliance.watcher.seen().iter().filter(|s| s.stage == Stage::Rom && s.mac.0[5] == 2).count();
    assert!(roms > 0, "the UEFI firmware itself asked");
    drop((guests, addresses));
    assert!(appliance.stop(&net).is_empty(), "no lease of ours");
}

fn dnsmasq(net: &Net, range: &str) -> Running {
    let range = format!("--dhcp-range={range}");
    let leases = format!("--dhcp-leasefile={}", net.path("dnsmasq.leases").display());
    let args =
        ["-k", "--conf-file=/dev/null", "--port=0", "--user=root", "--pid-file=", "--no-ping", "--dhcp-authoritative"];
    let args: Vec<&str> = args.into_iter().chain([range.as_str(), leases.as_str()]).collect();
    Running(net.client("dnsmasq", &args).spawn().unwrap())
}

/// QEMU's iPXE ROM.
fn bios(net: &Net) -> Running {
    crate::boot::guest(net, 1)
}

/// The PXE client of the firmware itself, without a ROM on the card.
fn uefi(net: &Net) -> Running {
    let vars = net.path("vars.fd");
    std::fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &vars).unwrap();
    crate::boot::guest_with(
        net,
        2,
        ",romfile=",
        &[
            "-drive",
            "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
            "-drive",
            &format!("if=pflash,format=raw,file={}", vars.display()),
        ],
    )
}
