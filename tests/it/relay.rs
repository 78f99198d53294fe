//! Machines behind a relay: relay agents that others wrote, between the appliance's network and one that it is not on.
//!
//! ```text
//! appliance lab0 10.77.0.1 ─── c0 10.77.0.9  relay  r0 10.78.0.1 ─── f0 far
//! ```

use std::net::Ipv4Addr;
use std::process::Stdio;

use rackline::boot::firmware::Files;

use crate::net::{Appliance, C0, CONFIG, Net, Running, can_run, command_in, inside, run, udhcpc_script, until};
use crate::wire::{Tap, keep};

const RELAY: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);

/// The relay's host with both its networks, a namespace behind it, and the appliance with a subnet for that.
struct Rack {
    net: Net,
    far: String,
    appliance: Appliance,
}

impl Rack {
    fn new() -> Self {
        let mut net = Net::new();
        let far = net.namespace("f");
        let relay = net.client.as_str();
        run("ip", &["-n", relay, "link", "add", "r0", "type", "veth", "peer", "name", "f0", "netns", &far]);
        run("ip", &["-n", relay, "addr", "add", "10.77.0.9/16", "dev", "c0"]);
        run("ip", &["-n", relay, "addr", "add", "10.78.0.1/24", "dev", "r0"]);
        for (ns, link) in [(relay, "r0"), (far.as_str(), "f0")] {
            run("ip", &["-n", ns, "link", "set", link, "up"]);
        }
        inside(relay, || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
        run("ip", &["-n", &net.server, "route", "add", "10.78.0.0/24", "via", "10.77.0.9"]);
        let subnet =
            "[[subnets]]\nnetwork = \"10.78.0.0/24\"\npools = [\"10.78.0.100-10.78.0.199\"]\nrouter = \"10.78.0.1\"\n";
        let appliance = Appliance::start_with(&net, Files::default(), &format!("{CONFIG}{subnet}")).unwrap();
        Self { net, far, appliance }
    }

    fn start(&self, ns: &str, program: &str, args: &[&str]) -> Running {
        let mut command = command_in(ns, program, args);
        Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// A client behind the relay binds, renews by unicast through the relay's host, and releases.
    fn serves_a_client(self, name: &str, about: &str, adds_option_82: bool) {
        let (near, far) = (Tap::on(&self.net.server, "lab0"), Tap::on(&self.far, "f0"));
        let script = udhcpc_script(&self.net);
        let args = ["udhcpc", "-f", "-R", "-i", "f0", "-t", "20", "-T", "1", "-s", &script];
        let client = self.start(&self.far, "busybox", &args);
        let log = || std::fs::read_to_string(self.net.path("udhcpc.log")).unwrap_or_default();
        until("udhcpc to be bound", || log().contains("bound ip=10.78.0.100 router=10.78.0.1 ").then_some(()));
        run("ip", &["-n", &self.far, "route", "add", "default", "via", "10.78.0.1"]);
        run("kill", &["-USR1", &client.0.id().to_string()]);
        far.wait(0, "REQUEST renewing", Some("ACK"));
        run("kill", &["-USR2", &client.0.id().to_string()]);
        far.wait(0, "RELEASE", None);
        near.wait(0, "RELEASE", None);

        let seen = near.seen();
        let relayed: Vec<_> = seen.iter().filter(|s| s.message.giaddr() == RELAY).collect();
        let asked = relayed.iter().find(|s| s.request()).unwrap().message.option(82);
        assert_eq!(asked.is_some(), adds_option_82, "{asked:02x?}");
        for packet in &relayed {
            assert_eq!(packet.message.option(82), asked, "{} with option 82 as the relay made it", packet.name());
            let to_relay = packet.to.ip() == &RELAY && packet.to.port() == 67;
            assert!(packet.request() || to_relay, "{} to {}", packet.name(), packet.to);
            let last = packet.message.options.last().map(|(code, _)| *code);
            assert!(packet.request() || asked.is_none() || last == Some(82), "RFC 3046 section 2.2: the last option");
        }
        assert!(relayed.iter().filter(|s| !s.request()).count() >= 2, "{:?}", near.names(0));
        assert!(far.seen().iter().all(|s| s.message.option(82).is_none()), "the relay takes it out again");
        keep(name, &[about, "busybox udhcpc behind it: INIT, RENEWING through the router, RELEASE"], &seen);
        let leases = self.appliance.stop(&self.net);
        assert_eq!(leases.iter().map(|l| l.address).collect::<Vec<_>>(), [Ipv4Addr::new(10, 78, 0, 100)]);
        assert_ne!(leases[0].mac.0, C0, "the machine's, not the relay's");
    }
}

#[test]
fn dhcrelay_with_option_82() {
    if !can_run(&["ip", "busybox", "dhcrelay"]) {
        return;
    }
    let rack = Rack::new();
    let pid = rack.net.path("dhcrelay.pid");
    let args = ["-4", "-d", "-a", "-pf", pid.to_str().unwrap(), "-iu", "c0", "-id", "r0", "10.77.0.1"];
    let _relay = rack.start(&rack.net.client, "dhcrelay", &args);
    rack.serves_a_client("dhcrelay", "ISC dhcrelay 4.4.3-P1 -a", true);
}

#[test]
fn dnsmasq_as_a_relay() {
    if !can_run(&["ip", "busybox", "dnsmasq"]) {
        return;
    }
    let rack = Rack::new();
    let args =
        ["-k", "--conf-file=/dev/null", "--port=0", "--user=root", "--pid-file=", "--dhcp-relay=10.78.0.1,10.77.0.1"];
    let _relay = rack.start(&rack.net.client, "dnsmasq", &args);
    rack.serves_a_client("dnsmasq-relay", "dnsmasq 2.90 --dhcp-relay", false);
}
