//! DHCP clients that others wrote, through every state of RFC 2131 figure 5, with a tap on the appliance's interface: what
//! they believe must be what was said. The messages that they send are also the fixtures of `conversations.rs`.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use rackline::boot::firmware::Files;
use rackline::store::lease::LeaseState;

use crate::net::{Appliance, Net, Running, can_run, leases, run, udhcpc_script, until};
use crate::wire::{Tap, keep};

const FIRST: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 0);

fn quiet(command: &mut Command) -> Running {
    Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

/// Ends it as its user would, and waits.
fn end(mut client: Running, signal: &str) {
    run("kill", &[signal, &client.0.id().to_string()]);
    until("a client to end", || client.0.try_wait().unwrap());
}

fn state(net: &Net, address: Ipv4Addr) -> Option<LeaseState> {
    leases(net).into_iter().find(|l| l.address == address).map(|l| l.state)
}

fn version(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
}

/// ISC dhclient with a configuration, its lease file in the test's folder, and a script that ends with `verdict`.
fn dhclient(net: &Net, config: &str, verdict: u8, more: &[&str]) -> Command {
    let (conf, script) = (net.path("dhclient.conf"), net.path("dhclient.sh"));
    std::fs::write(&conf, config).unwrap();
    let text = format!(
        "#!/bin/sh\ncase $reason in\nBOUND|RENEW|REBIND|REBOOT)\n\
         [ {verdict} = 0 ] && ip addr replace $new_ip_address/16 dev $interface\nexit {verdict};;\nesac\n"
    );
    std::fs::write(&script, text).unwrap();
    run("chmod", &["755", script.to_str().unwrap()]);
    let (lf, pf) = (net.path("dhclient.leases"), net.path("dhclient.pid"));
    let files = [&conf, &script, &lf, &pf].map(|p| p.to_str().unwrap().to_owned());
    let mut command = net.client("dhclient", &["-4", "-d", "-cf", &files[0], "-sf", &files[1], "-lf", &files[2]]);
    command.args(["-pf", &files[3]]).args(more).arg("c0");
    command
}

#[test]
fn dhclient_in_every_state() {
    if !can_run(&["ip", "dhclient"]) {
        return;
    }
    let net = Net::new();
    let appliance = Appliance::start(&net, Files::default()).unwrap();
    let tap = Tap::on(&net.server, "lab0");
    let soon = "supersede dhcp-renewal-time 1;\nsupersede dhcp-rebinding-time 600;\n";
    let client = quiet(&mut dhclient(&net, soon, 0, &[]));
    tap.wait(0, "REQUEST selecting", Some("ACK"));
    let renewing = tap.wait(0, "REQUEST renewing", Some("ACK"));
    assert_eq!((renewing.message.ciaddr(), *renewing.to.ip()), (FIRST, Ipv4Addr::new(10, 77, 0, 1)));
    drop(client);

    // It was killed and knows its address: it asks for that, and renews where nobody listens, until it asks everyone.
    run("ip", &["-n", &net.client, "addr", "flush", "dev", "c0"]);
    let before = tap.seen().len();
    let lost = "supersede dhcp-server-identifier 10.77.0.99;\nsupersede dhcp-renewal-time 1;\n\
                supersede dhcp-rebinding-time 3;\n";
    let client = quiet(&mut dhclient(&net, lost, 0, &[]));
    let reboot = tap.wait(before, "REQUEST init-reboot", Some("ACK"));
    assert_eq!(reboot.message.option(50), Some(&FIRST.octets()[..]));
    let rebinding = tap.wait(before, "REQUEST rebinding", Some("ACK"));
    assert_eq!(rebinding.message.ciaddr(), FIRST);
    drop(client);

    // It gives back what the right server granted.
    let before = tap.seen().len();
    let client = quiet(&mut dhclient(&net, "", 0, &[]));
    tap.wait(before, "REQUEST init-reboot", Some("ACK"));
    until("the lease to be in dhclient's file", || {
        let text = std::fs::read_to_string(net.path("dhclient.leases")).unwrap();
        text.rsplit("lease {").next()?.contains("dhcp-server-identifier 10.77.0.1;").then_some(())
    });
    drop(client);
    let _release = quiet(&mut dhclient(&net, "", 0, &["-r"]));
    tap.wait(before, "RELEASE", None);
    until("the release to be on disk", || (state(&net, FIRST) == Some(LeaseState::Released)).then_some(()));
    keep(
        "dhclient",
        &[&version("dhclient", &["--version"]), "INIT, RENEWING, INIT-REBOOT, REBINDING, RELEASE"],
        &tap.seen(),
    );
    assert!(appliance.watcher.seen().iter().all(|s| s.address == Some(FIRST.into())), "one address all the time");
}

#[test]
fn dhclient_declines_and_gets_another_address() {
    if !can_run(&["ip", "dhclient"]) {
        return;
    }
    let net = Net::new();
    let _appliance = Appliance::start(&net, Files::default()).unwrap();
    let tap = Tap::on(&net.server, "lab0");
    // Its script found the address in use.
    let client = quiet(&mut dhclient(&net, "", 1, &[]));
    let declined = tap.wait(0, "DECLINE", None);
    assert_eq!(declined.message.option(50), Some(&FIRST.octets()[..]));
    drop(client);
    until("the decline to be on disk", || (state(&net, FIRST) == Some(LeaseState::Declined)).then_some(()));
    let before = tap.seen().len();
    let _client = quiet(&mut dhclient(&net, "", 0, &[]));
    let asked = tap.wait(before, "REQUEST selecting", Some("ACK"));
    assert_eq!(asked.message.option(50), Some(&[10, 77, 2, 1][..]));
    keep("dhclient-decline", &[&version("dhclient", &["--version"]), "DECLINE, and again"], &tap.seen());
}

#[test]
fn udhcpc_that_cannot_take_unicast_yet() {
    if !can_run(&["ip", "busybox"]) {
        return;
    }
    let net = Net::new();
    let _appliance = Appliance::start(&net, Files::default()).unwrap();
    let tap = Tap::on(&net.server, "lab0");
    let script = udhcpc_script(&net);
    // -B sets the broadcast flag, -R releases at the end.
    let args = ["udhcpc", "-f", "-R", "-B", "-i", "c0", "-t", "10", "-T", "1", "-s", &script];
    let client = quiet(&mut net.client("busybox", &args));
    let asked = tap.wait(0, "REQUEST selecting", Some("ACK"));
    assert!(asked.message.broadcast());
    let answers: Vec<_> = tap.seen().into_iter().filter(|s| !s.request()).collect();
    assert!(answers.iter().all(|s| s.to.ip().is_broadcast() && s.message.yiaddr() == FIRST), "{answers:?}");
    let log = || std::fs::read_to_string(net.path("udhcpc.log")).unwrap_or_default();
    until("udhcpc to be bound", || log().contains("bound ip=10.77.2.0 ").then_some(()));
    end(client, "-TERM");
    tap.wait(0, "RELEASE", None);
    let about = [version("busybox", &["udhcpc", "--help"]), "INIT with the broadcast flag, RELEASE".to_owned()];
    keep("udhcpc", &about.each_ref().map(String::as_str), &tap.seen());
}

/// A command among the clients with folders under `/run`, `/var/lib` and `/etc` of its own, for programs that keep their
/// state in fixed places.
fn private(net: &Net, script: &str) -> Command {
    let mounts = "set -e; for d in /run /var/lib/dhcpcd /etc/systemd/network; do \
                  if [ -d $d ]; then mount -t tmpfs none $d; fi; done; set +e; ";
    net.client("unshare", &["--mount", "--propagation", "private", "sh", "-c", &format!("{mounts}{script}")])
}

#[test]
fn dhcpcd_binds_again_renews_and_informs() {
    if !can_run(&["ip", "dhcpcd", "unshare"]) {
        return;
    }
    let net = Net::new();
    let appliance = Appliance::start(&net, Files::default()).unwrap();
    let tap = Tap::on(&net.server, "lab0");
    // One mount namespace for all calls, so that the second one finds the lease of the first.
    let quick = "dhcpcd -f /dev/null -4 -q -w -t 60 --noarp -c /bin/true c0";
    let script = format!(
        "{quick}; dhcpcd -4 -N c0; sleep 1; dhcpcd -4 -x c0; sleep 1; {quick}; dhcpcd -4 -k c0; sleep 1; \
         ip addr add 10.77.0.9/16 dev c0; \
         exec dhcpcd -f /dev/null -4 -q -B -t 60 -c /bin/true --noarp --inform=10.77.0.9/16 c0"
    );
    let _client = quiet(&mut private(&net, &script));
    tap.wait(0, "REQUEST selecting", Some("ACK"));
    tap.wait(0, "REQUEST renewing", Some("ACK"));
    tap.wait(0, "REQUEST init-reboot", Some("ACK"));
    tap.wait(0, "RELEASE", None);
    let inform = tap.wait(0, "INFORM", Some("ACK"));
    let answer = tap.seen().into_iter().rfind(|s| s.name() == "ACK").unwrap();
    assert_eq!(inform.message.ciaddr(), Ipv4Addr::new(10, 77, 0, 9));
    // RFC 2131 section 4.3.5: no address and no lease time, sent to the address that the client has.
    assert_eq!((answer.message.yiaddr(), answer.message.option(51)), (Ipv4Addr::UNSPECIFIED, None));
    assert_eq!((*answer.to.ip(), answer.message.option(1)), (inform.message.ciaddr(), Some(&[255, 255, 0, 0][..])));
    let about = [version("dhcpcd", &["--version"]), "INIT, RENEWING, INIT-REBOOT, RELEASE, INFORM".to_owned()];
    keep("dhcpcd", &about.each_ref().map(String::as_str), &tap.seen());
    drop(appliance);
}

/// systemd-networkd without systemd: its own `/run`, and `/sys` read-only, where it looks for udev.
fn networkd(net: &Net, dhcp: &str) -> Command {
    let config = format!(
        "[Match]\nName=c0\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n\
         [DHCPv4]\nUseDNS=no\nUseNTP=no\nUseHostname=no\n{dhcp}"
    );
    std::fs::write(net.path("c0.network"), config).unwrap();
    let script = format!(
        "mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases; \
         cp {} /run/systemd/network/; chown -R systemd-network:systemd-network /run/systemd/netif; \
         mount -o remount,ro,bind /sys || mount -t sysfs -o ro none /sys; exec /lib/systemd/systemd-networkd",
        net.path("c0.network").display()
    );
    private(net, &script)
}

#[test]
fn networkd_binds_and_releases() {
    if !can_run(&["ip", "unshare", "networkctl"]) {
        return;
    }
    let net = Net::new();
    let _appliance = Appliance::start(&net, Files::default()).unwrap();
    let tap = Tap::on(&net.server, "lab0");
    let client = quiet(&mut networkd(&net, ""));
    tap.wait(0, "REQUEST selecting", Some("ACK"));
    until("the address on the interface", || {
        let output = net.run_client("ip", &["-br", "addr", "show", "dev", "c0"]);
        String::from_utf8_lossy(&output.stdout).contains("10.77.2.0/16").then_some(())
    });
    end(client, "-TERM");
    tap.wait(0, "RELEASE", None);
    until("the release to be on disk", || (state(&net, FIRST) == Some(LeaseState::Released)).then_some(()));
    keep("networkd", &[&version("networkctl", &["--version"]), "INIT, RELEASE"], &tap.seen());
}

/// ROM, RAM system and installed systems have client ids of their own, and one MAC address.
#[test]
fn one_machine_keeps_its_address_through_all_its_client_ids() {
    if !can_run(&["ip", "busybox", "dhclient", "dhcpcd", "unshare", "networkctl"]) {
        return;
    }
    let net = Net::new();
    let appliance = Appliance::start(&net, Files::default()).unwrap();
    let tap = Tap::on(&net.server, "lab0");
    let script = udhcpc_script(&net);
    let rom = "0x3d:0044454c4c3000105a8031b2c04f4c3132";
    let udhcpc = |id: &str| {
        let args = ["udhcpc", "-f", "-q", "-n", "-i", "c0", "-t", "10", "-T", "1", "-s", &script];
        let mut command = net.client("busybox", &args);
        command.args(if id.is_empty() { vec![] } else { vec!["-C", "-x", id] });
        command
    };
    let clients: Vec<(&str, Command)> = vec![
        ("a ROM's id, type 0 and UUID", udhcpc(rom)),
        ("udhcpc's, type 1 and MAC", udhcpc("")),
        ("dhclient's, none", dhclient(&net, "", 0, &[])),
        ("dhcpcd's DUID", private(&net, "exec dhcpcd -f /dev/null -4 -q -B --duid --noarp -c /bin/true c0")),
        ("networkd's DUID", networkd(&net, "ClientIdentifier=duid\nDUIDType=link-layer\n")),
    ];
    let mut ids = Vec::new();
    for (whose, mut command) in clients {
        let before = tap.seen().len();
        let client = quiet(&mut command);
        let asked = tap.wait(before, "REQUEST selecting", Some("ACK"));
        assert_eq!(asked.message.option(50), Some(&FIRST.octets()[..]), "{whose}");
        ids.push(asked.message.option(61).map(<[u8]>::to_vec));
        drop(client);
        run("ip", &["-n", &net.client, "addr", "flush", "dev", "c0"]);
    }
    let before = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), before, "the ids differ: {ids:02x?}");
    let leases = appliance.stop(&net);
    assert_eq!(leases.iter().map(|l| l.address).collect::<Vec<_>>(), [FIRST], "one lease");
    keep("one-machine", &["busybox udhcpc, dhclient, dhcpcd, systemd-networkd: one MAC, five client ids"], &tap.seen());
}

#[test]
fn perfdhcp_loses_nothing_and_gets_200_addresses() {
    if !can_run(&["ip", "perfdhcp"]) {
        return;
    }
    let net = Net::new();
    net.client_address("10.77.0.9/16");
    let appliance =
        Appliance::start_with(&net, Files::default(), &crate::net::CONFIG.replace("2.255", "5.255")).unwrap();
    let tap = Tap::on(&net.server, "lab0");
    let args = ["-4", "-l", "c0", "-r", "100", "-n", "200", "-R", "200", "-u", "-W", "3000000", "10.77.0.1"];
    let output = net.run_client("perfdhcp", &args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    for part in ["DISCOVER-OFFER", "REQUEST-ACK"] {
        let numbers = text.split(&format!("Statistics for: {part}")).nth(1).unwrap_or_default();
        for line in
            ["sent packets: 200", "received packets: 200", "drops: 0", "rejected leases: 0", "non unique addresses: 0"]
        {
            assert!(numbers.contains(line), "{part} without {line:?}: {text}");
        }
    }
    keep(
        "perfdhcp",
        &[&format!("perfdhcp {}", version("perfdhcp", &["-v"])), "two clients through a relay"],
        &first_two(&tap),
    );
    assert_eq!(appliance.stop(&net).len(), 200);
}

/// Everything of the first two clients.
fn first_two(tap: &Tap) -> Vec<crate::wire::Seen> {
    let seen = tap.seen();
    let mac = |s: &crate::wire::Seen| s.message.header[28..34].to_vec();
    let mut macs: Vec<_> = Vec::new();
    seen.iter().map(mac).for_each(|m| {
        if !macs.contains(&m) {
            macs.push(m)
        }
    });
    seen.into_iter().filter(|s| macs[..2].contains(&mac(s))).collect()
}
