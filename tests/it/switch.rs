//! Switches that ask for their configuration, and the port map: real DHCP clients and a real relay in network namespaces,
//! against engine, boot services and API. Needs root and iproute2.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use rackline::api::{self, Shared};
use rackline::boot::firmware::Files;
use rackline::boot::script::Scripts;
use rackline::boot::switch::{self, Switches};
use rackline::boot::{BootAnswer, Policy, RelayPort, Sighting, Stage};
use rackline::config::Config;
use rackline::engine::{About, Engine, Site};
use rackline::image::Library;
use rackline::lifecycle::{Event, Expectation, SwitchPort};
use rackline::link::Mode;
use rackline::machine::{MacAddr, Place, Serial};
use rackline::role::Templates;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::net::{Net, Running, can_run, command_in, inside, run, until};

const CONFIG: &str = r#"
    [site]
    name = "test"
    state = "/nonexistent"

    [boot]
    url = "http://10.77.0.1"
    interfaces = [{ name = "lab0", address = "10.77.0.1" }]
    [[boot.subnets]]
    network = "10.77.0.0/16"
    pools = ["10.77.2.0-10.77.2.255"]
    router = "10.77.0.1"
    dns = ["10.77.0.53"]
    [[boot.subnets]]
    network = "10.78.0.0/24"
    pools = ["10.78.0.100-10.78.0.199"]

    [services]
    ntp = ["10.77.0.123"]

    [[switches]]
    name = "c-tor1"
    vendor = "arista"
    serial = "JPE12221671"
    address = "10.77.0.22/16"
    relay = "10.78.0.1/24"
    rack = "C"
    unit = 42
    vlan = 210
    ports = { "Ethernet7" = "c03-u12", "Ethernet9" = "c03-u14" }

    [[switches]]
    name = "c-tor2"
    vendor = "cumulus"
    mac = "44:38:39:00:01:02"
    installer = "INSTALLER"
    address = "10.77.0.23/16"
    vlan = 210
    ports = { "swp7" = "c03-u12" }

    [[switches]]
    name = "d-tor1"
    vendor = "sonic"
    serial = "MT1607X11210"
    address = "10.77.0.24/16"
    vlan = 210
    ports = { "Ethernet0" = "d01-u01" }

    [[switches]]
    name = "e-tor1"
    vendor = "nxos"
    serial = "FDO21120U8N"
    address = "10.77.0.25/16"
    vlan = 210
    ports = { "Ethernet1/1" = "e01-u01" }
"#;

const INSTALLER: &[u8] = b"#!/bin/sh\necho a network operating system\n";

/// The appliance on `lab0`; the client's `c0` on the same wire, or behind a relay on its port `Ethernet7`.
struct Lab {
    net: Net,
    relay: String,
}

impl Lab {
    fn new(relayed: bool) -> Self {
        let mut net = Net::new();
        let relay = net.namespace("r");
        let (s, r, c) = (net.server.as_str(), relay.as_str(), net.client.as_str());
        if relayed {
            // With it goes the direct wire.
            run("ip", &["-n", c, "link", "del", "c0"]);
            for (from, name, to, peer) in [(s, "lab0", r, "up0"), (r, "Ethernet7", c, "c0")] {
                run("ip", &["-n", from, "link", "add", name, "type", "veth", "peer", "name", peer, "netns", to]);
                run("ip", &["-n", from, "link", "set", name, "up"]);
                run("ip", &["-n", to, "link", "set", peer, "up"]);
            }
            run("ip", &["-n", s, "addr", "add", "10.77.0.1/16", "dev", "lab0"]);
            run("ip", &["-n", s, "route", "add", "10.78.0.0/24", "via", "10.77.0.22"]);
            run("ip", &["-n", r, "addr", "add", "10.77.0.22/16", "dev", "up0"]);
            run("ip", &["-n", r, "addr", "add", "10.78.0.1/24", "dev", "Ethernet7"]);
        }
        Self { net, relay }
    }

    /// What a switch does: takes an address with udhcpc, which leaves everything it was told in a file, one `name=value` a
    /// line. Its address is on `c0` then.
    fn lease(&self, mac: &str, args: &[&str]) -> String {
        run("ip", &["-n", &self.net.client, "addr", "flush", "dev", "c0"]);
        run("ip", &["-n", &self.net.client, "link", "set", "c0", "address", mac]);
        let (script, told) = (self.net.path("udhcpc.sh"), self.net.path("told"));
        let _ = std::fs::remove_file(&told);
        let text = format!(
            "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip addr add $ip/$mask dev c0\nenv > {}\n",
            told.display()
        );
        std::fs::write(&script, text).unwrap();
        run("chmod", &["755", script.to_str().unwrap()]);
        let script = script.to_str().unwrap();
        let all = [&["udhcpc", "-i", "c0", "-f", "-q", "-n", "-t", "10", "-T", "1", "-s", script], args].concat();
        let mut client = command_in(&self.net.client, "busybox", &all);
        let output = client.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read_to_string(&told).unwrap()
    }

    fn curl(&self, ns: &str, args: &[&str]) -> String {
        let all = [&["-sS", "--fail", "--max-time", "10"], args].concat();
        let output = command_in(ns, "curl", &all).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn api(&self, path: &str) -> Value {
        serde_json::from_str(&self.curl(&self.net.server, &[&format!("http://127.0.0.1:8480/api/v1/{path}")])).unwrap()
    }

    fn rackline(&self, args: &[&str]) -> String {
        let output = command_in(&self.net.server, env!("CARGO_BIN_EXE_rackline"), args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Engine, boot services, the machines' listener and the API, in the server namespace.
struct Appliance {
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Appliance {
    fn start(lab: &Lab) -> Self {
        std::fs::write(lab.net.path("installer.bin"), INSTALLER).unwrap();
        let text = CONFIG.replace("INSTALLER", lab.net.path("installer.bin").to_str().unwrap());
        let (config, dir) = (Config::parse(&text).unwrap(), lab.net.path("state"));
        let stop = CancellationToken::new();
        let (stopped, ns) = (stop.clone(), lab.net.server.clone());
        let (ready, started) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            inside(&ns, move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(serve(config, dir, stopped, ready));
            });
        });
        started.recv().unwrap();
        Self { stop, thread: Some(thread) }
    }
}

/// The engine with two expected machines, C-U12 on Ethernet7 and C-U14 on Ethernet9, known by serial number, and by MAC
/// address where `macs` says so.
async fn engine(config: &Config, dir: &Path, macs: bool, stop: CancellationToken) -> (Engine, Arc<Switches>) {
    let switches = Arc::new(Switches::new(config.switches.clone(), &config.services, &config.boot).unwrap());
    let site = Site { switches: switches.clone(), ..super::engine::site(dir).await };
    let engine = Engine::start(site, stop).await.unwrap();
    for (name, serial, mac, unit, port) in
        [("c03-u12", "7XK2M12", 0x12, 12, "Ethernet7"), ("c03-u14", "7XK2M14", 0x14, 14, "Ethernet9")]
    {
        let serial: Serial = serial.parse().unwrap();
        let row = Expectation {
            mac: macs.then_some(MacAddr([0x52, 0x54, 0, 0x77, 0, mac])),
            place: Some(Place { rack: "C".into(), unit }),
            ports: vec![SwitchPort { switch: "c-tor1".into(), port: port.into() }],
            ..Expectation::new(name, serial.clone())
        };
        engine.submit(About::Serial { serial, name: name.into() }, Event::Expected(row)).await.unwrap();
    }
    (engine, switches)
}

async fn serve(config: Config, dir: PathBuf, stop: CancellationToken, ready: std::sync::mpsc::Sender<()>) {
    let (engine, switches) = engine(&config, &dir, true, stop.clone()).await;
    let files = Arc::new(Files::default());
    let (policy, db) = (Arc::new(engine.clone()), engine.db().clone());
    let scripts = Arc::new(Scripts::new(&config.boot, "00").unwrap());
    let handle = rackline::boot::serve(&config.boot, files, scripts, switches.clone(), policy, db).await.unwrap();
    let boot = Arc::new(handle.explainer(Arc::new(engine.clone())));
    let monitor = handle.monitor();
    let library = Arc::new(Library::open(Path::new("/nonexistent"), &[]).unwrap());
    let shared = Shared {
        engine,
        library,
        boot,
        monitor,
        web: Arc::default(),
        torrents: None,
        ssh_keys: Arc::new([]),
        roles: Templates::new(None),
        authority: crate::handoff::authority(),
    };
    for (address, app) in [("10.77.0.1:80", switch::http::router(switches)), ("127.0.0.1:8480", api::people(shared))] {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let app = app.into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    }
    ready.send(()).unwrap();
    stop.cancelled().await;
    handle.stop().await;
}

impl Drop for Appliance {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The value of one line of what udhcpc was told.
fn told<'a>(env: &'a str, name: &str) -> &'a str {
    env.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('=')).unwrap_or_else(|| panic!("no {name} in {env}"))
}

/// udhcpc hands on an option that it does not know as hexadecimal digits.
fn text_of(digits: &str) -> String {
    String::from_utf8(hex::decode(digits).unwrap()).unwrap()
}

fn of<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["switches"].as_array().unwrap().iter().find(|s| s["name"] == name).unwrap()
}

#[test]
fn switches_of_each_vendor_fetch_their_configuration() {
    if !can_run(&["ip", "busybox", "curl"]) {
        return;
    }
    let lab = Lab::new(false);
    let _appliance = Appliance::start(&lab);
    lab.curl(&lab.net.server, &["http://10.77.0.1/boot/switch/c-tor1/startup-config"]);
    let report = lab.api("switches");
    let expected = report["switches"].as_array().unwrap().iter().all(|s| s["state"] == "expected");
    assert!(expected, "a look at the document from the appliance is not the switch's: {report}");

    // Arista: option 67, a whole startup-config.
    let env = lab.lease("00:1c:73:00:00:01", &["-V", "Arista;DCS-7050S-64;01.23;JPE12221671", "-O", "bootfile"]);
    assert_eq!(told(&env, "bootfile"), "http://10.77.0.1/boot/switch/c-tor1/startup-config");
    assert_eq!(of(&lab.api("switches"), "c-tor1")["state"], "asked");
    let config = lab.curl(&lab.net.client, &[told(&env, "bootfile")]);
    for line in [
        "hostname c-tor1\n",
        "interface Ethernet7\n   description c03-u12\n",
        "ip address 10.77.0.22/16\n",
        "ntp server 10.77.0.123\n",
        "ip name-server 10.77.0.53\n",
        "ip dhcp relay information option\n",
        "ip helper-address 10.77.0.1\n",
        "lldp run\n",
    ] {
        assert!(config.contains(line), "{line:?} is not in {config}");
    }

    // SONiC: option 67, JSON that names another one.
    let id = format!("0x3d:{}", hex::encode(b"SONiC##MSN2700##MT1607X11210"));
    let class = format!("0x4d:{}", hex::encode(b"SONiC-ZTP"));
    let env =
        lab.lease("7c:fe:90:00:00:01", &["-C", "-V", "Mellanox:MSN2700", "-x", &id, "-x", &class, "-O", "bootfile"]);
    let ztp: Value = serde_json::from_str(&lab.curl(&lab.net.client, &[told(&env, "bootfile")])).unwrap();
    let source = ztp["ztp"]["01-configdb-json"]["url"]["source"].as_str().unwrap();
    let db: Value = serde_json::from_str(&lab.curl(&lab.net.client, &[source])).unwrap();
    assert_eq!(db["DEVICE_METADATA"]["localhost"]["hostname"], "d-tor1");
    assert_eq!(db["VLAN_MEMBER"]["Vlan210|Ethernet0"]["tagging_mode"], "untagged");

    // Cumulus: ONIE first, which installs what option 114 names; then option 239, a script that bash can read.
    let onie = [
        "-V",
        "onie_vendor:x86_64-cel_pebble-r0",
        "-x",
        &format!("0x4d:{}", hex::encode(b"onie_dhcp_user_class")),
        "-O",
        "114",
        "-O",
        "125",
    ];
    let env = lab.lease("44:38:39:00:01:02", &onie);
    let url = text_of(told(&env, "opt114"));
    assert_eq!(url, "http://10.77.0.1/boot/switch/c-tor2/installer");
    assert_eq!(told(&env, "opt125"), format!("0000a67f{:02x}01{:02x}{}", url.len() + 2, url.len(), hex::encode(&url)));
    let headers = ["-H", "ONIE-SERIAL-NUMBER: XYZ123004", "-H", "ONIE-OPERATION: os-install"];
    assert_eq!(lab.curl(&lab.net.client, &[&headers[..], &[&url]].concat()).as_bytes(), INSTALLER);
    let by_header = ["-H", "ONIE-ETH-ADDR: 44:38:39:00:01:02", "http://10.77.0.1/boot/onie"];
    assert_eq!(lab.curl(&lab.net.client, &by_header).as_bytes(), INSTALLER);
    let env = lab.lease("44:38:39:00:01:02", &["-V", "cumulus-linux x86_64", "-O", "239"]);
    let script = lab.net.path("ztp.sh");
    lab.curl(&lab.net.client, &["-o", script.to_str().unwrap(), &text_of(told(&env, "opt239"))]);
    run("bash", &["-n", script.to_str().unwrap()]);
    assert!(std::fs::read_to_string(script).unwrap().contains("# CUMULUS-AUTOPROVISIONING\n"));

    // NX-OS: a script over TFTP, which names the configuration.
    let id = format!("0x3d:{}", hex::encode(b"\0FDO21120U8N"));
    let env =
        lab.lease("00:2a:10:00:00:01", &["-C", "-V", "Cisco N9K-C9372PX", "-x", &id, "-O", "tftp", "-O", "bootfile"]);
    assert_eq!(told(&env, "lease"), "3600", "not the short one of strangers: POAP would not take it");
    let script = lab.curl(&lab.net.client, &[&format!("tftp://{}/{}", told(&env, "tftp"), told(&env, "bootfile"))]);
    let url = script.split_whitespace().find(|word| word.starts_with("http://")).unwrap();
    assert!(lab.curl(&lab.net.client, &[url]).contains("hostname e-tor1\n"));

    let report = lab.api("switches");
    assert!(report["switches"].as_array().unwrap().iter().all(|s| s["state"] == "fetched"), "{report}");
    let fetched = of(&report, "c-tor1")["fetched"][0].clone();
    assert_eq!((fetched["file"].as_str(), fetched["times"].as_u64()), (Some("startup-config"), Some(1)));
    assert!(fetched["by"].as_str().unwrap().starts_with("10.77.2."));
    assert_eq!(of(&report, "c-tor2")["fetched"].as_array().unwrap().len(), 2);
    let table = lab.rackline(&["switch", "list"]);
    assert!(table.contains("c-tor1") && table.contains("startup-config at "), "{table}");
    let json: Value = serde_json::from_str(&lab.rackline(&["switch", "list", "--json"])).unwrap();
    assert_eq!(json["switches"], report["switches"]);
    let machines = lab.api("machines");
    let names: Vec<_> = machines["machines"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["c03-u12", "c03-u14"], "a switch is not a machine");
}

#[test]
fn a_switch_that_is_not_listed_gets_nothing_and_is_told_of() {
    if !can_run(&["ip", "busybox", "curl"]) {
        return;
    }
    let lab = Lab::new(false);
    let _appliance = Appliance::start(&lab);
    let env = lab.lease("00:1c:73:00:00:09", &["-V", "Arista;DCS-7050S-64;01.23;JPE99999999", "-O", "bootfile"]);
    assert!(!env.contains("bootfile="), "{env}");
    let report = lab.api("switches");
    let stranger = &report["unlisted"][0];
    assert_eq!(stranger["what"], "an Arista EOS switch DCS-7050S-64 with serial number JPE99999999");
    assert_eq!(stranger["mac"], "00:1c:73:00:00:09");
    assert!(stranger["times"].as_u64().unwrap() >= 2, "the offer and the acknowledgement: {stranger}");
    assert!(lab.rackline(&["switch", "list"]).contains("JPE99999999 asked at "));
    for path in
        ["switch/c-tor9/startup-config", "switch/c-tor1/ztp.sh", "switch/c-tor1/installer", "switch/..%2f/x", "onie"]
    {
        let url = format!("http://10.77.0.1/boot/{path}");
        let args = ["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "10", &url];
        let output = command_in(&lab.net.client, "curl", &args).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "404", "{path}");
    }
    // A server with the same needs is still a machine.
    lab.lease("52:54:00:77:00:99", &["-V", "udhcp 1.35.0"]);
    until("the machine", || lab.api("machines").to_string().contains("mac-525400770099").then_some(()));
}

#[test]
fn a_relay_with_option_82_leads_to_the_port() {
    if !can_run(&["ip", "busybox", "curl", "dhcrelay"]) {
        return;
    }
    let lab = Lab::new(true);
    let _appliance = Appliance::start(&lab);
    let pid = lab.net.path("dhcrelay.pid");
    let args = ["-4", "-d", "-a", "-pf", pid.to_str().unwrap(), "-id", "Ethernet7", "-iu", "up0", "10.77.0.1"];
    let quiet = Stdio::null;
    let _relay = Running(command_in(&lab.relay, "dhcrelay", &args).stdout(quiet()).stderr(quiet()).spawn().unwrap());

    // The machine that belongs on Ethernet9.
    let env = lab.lease("52:54:00:77:00:14", &["-V", "udhcp 1.35.0"]);
    assert!(told(&env, "ip").starts_with("10.78.0."), "{env}");
    let wrong = until("c03-u14 on a port", || {
        let machine = lab.api("machines/c03-u14");
        (!machine["ports"].as_array().unwrap().is_empty()).then_some(machine)
    });
    assert_eq!(
        (wrong["ports"][0]["switch"].as_str(), wrong["ports"][0]["port"].as_str()),
        (Some("c-tor1"), Some("Ethernet7"))
    );
    let title = "c03-u12 is expected on c-tor1 Ethernet7, but c03-u14 asked there: two cables are swapped, or the list is wrong";
    assert_eq!(wrong["cabling"][0]["title"], title);
    assert_eq!(wrong["place"]["unit"], 14, "the list stands");
    let events = lab.api("machines/c03-u14/events").to_string();
    assert!(events.contains("seen on c-tor1 Ethernet7"), "{events}");
    let page = lab.rackline(&["machine", "show", "c03-u14"]);
    assert!(page.contains("on c-tor1 Ethernet7 (52:54:00:77:00:14)") && page.contains(title), "{page}");

    // One that is on no list.
    lab.lease("52:54:00:77:00:99", &["-V", "udhcp 1.35.0"]);
    let stranger = until("the stranger on a port", || {
        let machine = lab.api("machines");
        let found = machine["machines"].as_array().unwrap().iter().find(|m| m["name"] == "mac-525400770099").cloned();
        found.filter(|m| !m["ports"].as_array().unwrap().is_empty())
    });
    assert_eq!((&stranger["suggested_place"]["unit"], &stranger["place"]), (&Value::from(12), &Value::Null));

    // The one that belongs there.
    lab.lease("52:54:00:77:00:12", &["-V", "udhcp 1.35.0"]);
    let right = until("c03-u12 on its port", || {
        let machine = lab.api("machines/c03-u12");
        (!machine["ports"].as_array().unwrap().is_empty()).then_some(machine)
    });
    assert!(right["cabling"].is_null() && right["suggested_place"].is_null(), "{right}");
}

/// The list has no MAC address: the port waits with the sighting until the agent says who it is, and outlives a restart.
#[tokio::test]
async fn the_port_of_a_sighting_goes_over_to_the_machine_that_was_expected() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::parse(CONFIG).unwrap();
    config.switches.retain(|switch| switch.installer.is_none());
    let stop = CancellationToken::new();
    let (machines, _) = engine(&config, dir.path(), false, stop.clone()).await;
    let mac = MacAddr([2, 0, 0, 0, 0, 9]);
    let relay = RelayPort {
        relay: [10, 78, 0, 1].into(),
        // As Cisco writes port 7 of module 0.
        circuit: Some("0x000400d20007".into()),
        remote: None,
    };
    let asking = Sighting { mac, uuid: None, arch: None, address: None, stage: Stage::Ipxe, relay: Some(relay) };
    let BootAnswer::Agent { machine, .. } = machines.boot_answer(asking).await.unwrap() else { panic!() };
    assert!(machines.machine(machine).unwrap().cabling()[0].title.contains("where c03-u12 (C-U12) is expected"));
    let hello = Event::Hello {
        mode: Mode::Ram,
        boot_id: uuid::Uuid::from_u128(1),
        serial: Serial::parse("7XK2M14"),
        uuid: None,
        macs: vec![mac],
        agent_version: "0.1.0".into(),
        address: None,
        arch: None,
        name: None,
        seen_on: Default::default(),
    };
    machines.submit(About::Agent(machine), hello).await.unwrap();
    let known = machines.find("c03-u14").unwrap();
    assert!(known.cabling()[0].title.starts_with("c03-u12 is expected on c-tor1 Ethernet7, but c03-u14 asked there"));
    stop.cancel();
    drop(machines);
    let (machines, _) = engine(&config, dir.path(), false, CancellationToken::new()).await;
    assert_eq!(machines.find("c03-u14").unwrap().seen_on, known.seen_on);
}
