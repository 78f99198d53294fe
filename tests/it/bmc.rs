//! The BMC client against `ipmi_sim` of OpenIPMI (cipher suite 3, its own code base) and against [`super::bmc_sim`]
//! (suite 17 and faults), directly and through a proxy that loses, doubles, delays and makes up datagrams.
//!
//! Each test has BMCs of its own on loopback addresses. `ipmi_sim` runs a shell script for the chassis, which keeps its
//! state in files, so that a test sees what really reached the machine.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket as StdSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rackline::bmc::act::Limits;
use rackline::bmc::discover::{self, Search};
use rackline::bmc::rmcp::Pace;
use rackline::bmc::{Access, Answer, BootDevice, BootOverride, Command, Doors, Fleet, Outcome, Power, Settings};
use rackline::error::Kind;
use rackline::ipmi::device::{describe, ensure_user};
use rackline::ipmi::{Completion, Request, Response};
use rackline::link::BmcUser;
use rackline::machine::PowerAction;
use rackline::machine::{Firmware, Secret};
use tokio::net::UdpSocket;

use super::bmc_proxy::{Proxy, Weather};
use super::bmc_sim::Sim;

/// A loopback address that no other test has: the process id keeps two runs apart, the count two tests.
pub fn address() -> Ipv4Addr {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let [_, b, c, d] = (std::process::id().wrapping_mul(251) + COUNT.fetch_add(1, Relaxed)).to_be_bytes();
    Ipv4Addr::new(127, b | 0x40, c, d.clamp(1, 254))
}

fn free_port(ip: Ipv4Addr) -> SocketAddr {
    StdSocket::bind((ip, 0)).unwrap().local_addr().unwrap()
}

pub fn access(address: SocketAddr) -> Access {
    Access {
        doors: Doors::ipmi(address),
        user: "admin".into(),
        password: Secret::new("calvin-lab"),
        machine: Default::default(),
    }
}

/// Short waits: everything is on this machine.
pub fn settings() -> Settings {
    let ms = Duration::from_millis;
    Settings {
        pace: Pace { first: ms(150), longest: ms(600), answer: ms(6000), open: ms(8000) },
        limits: Limits { confirm: ms(4000), cycle: ms(1500), look: ms(50) },
        log_in_gap: ms(50),
        ..Settings::default()
    }
}

/// An `ipmi_sim` process with six sensors of which the values are in files.
pub struct IpmiSim {
    child: Child,
    dir: tempfile::TempDir,
    pub address: SocketAddr,
}

impl Drop for IpmiSim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const CHASSIS: &str = r#"#!/bin/sh
# chassis DIR get|set PARAMETER [VALUE]...
cd "$1" || exit 1
operation=$2; shift 2
while [ $# -gt 0 ]; do
    if [ $operation = get ]; then
        case $1 in boot) unset=none ;; *) unset=0 ;; esac
        echo "$1:$(cat $1 2>/dev/null || echo $unset)"; shift
    else
        echo "$1 $2" >> log
        case $1 in
            reset) echo 1 > power ;;
            shutdown) echo 0 > power ;;
            *) echo "$2" > "$1" ;;
        esac
        shift 2
    fi
done
"#;

/// Full sensor record (section 43.1): sensor type and base unit, M and R exponent, upper critical and non-critical
/// threshold.
fn record(number: u8, name: &str, [kind, unit]: [u8; 2], [m, r]: [u8; 2], [critical, warning]: [u8; 2]) -> Vec<u8> {
    let mut body = vec![0x20, 0, number, 3, 1, 0x7f, 0x68, kind, 1];
    body.extend([0x95, 0x7a, 0x95, 0x7a, 0x3f, 0x3f, 0, unit, 0, 0, m, 0, 0, 0, 0, r << 4, 1, 0, 0xff, 0, 0xff, 0]);
    body.extend([255, critical, warning, 0, 0, 0, 2, 2, 0, 0, 0, 0xc0 | name.len() as u8]);
    body.extend(name.as_bytes());
    [&[0, 0, 0x51, 1, body.len() as u8][..], &body].concat()
}

fn emulation(dir: &Path) -> String {
    let mut lines = vec![
        "mc_setbmc 0x20".to_owned(),
        "mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02".into(),
        "sel_enable 0x20 1000 0x0a".into(),
        "mc_set_guid 0x20 4c414200000000000000000000000001".into(),
    ];
    let sensors = [
        (1, "CPU0 Temp", 1, 1, 1, 0, 95, 85, 42),
        (2, "FAN1", 4, 18, 100, 0, 250, 240, 84),
        (3, "12V Rail", 2, 4, 7, 0xe, 190, 185, 172),
    ];
    for (number, name, kind, unit, m, r, critical, warning, value) in sensors {
        let file = dir.join(format!("sensor{number}.val"));
        fs::write(&file, format!("{value}\n")).unwrap();
        let record = record(number, name, [kind, unit], [m, r], [critical, warning]);
        let bytes: Vec<String> = record.iter().map(|b| format!("0x{b:02x}")).collect();
        lines.push(format!("main_sdr_add 0x20 {}", bytes.join(" ")));
        lines.push(format!("sensor_add 0x20 0 {number} {kind} 0x01 poll 200 file \"{}\"", file.display()));
        lines.push(format!("sensor_set_value 0x20 0 {number} {value} 0"));
        lines.push(format!("sensor_set_threshold 0x20 0 {number} settable 111000 255 {critical} {warning} 0 0 0"));
        let all = "000111111111111";
        lines.push(format!(
            "sensor_set_event_support 0x20 0 {number} enable scanning per-state {all} {all} {all} {all}"
        ));
    }
    lines.push("mc_enable 0x20\n".into());
    lines.join("\n")
}

impl IpmiSim {
    /// With the sensors of [`emulation`], or those of a file in the same form.
    pub async fn start(emu: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        let address = free_port(address());
        fs::create_dir(at.join("state")).unwrap();
        fs::write(at.join("chassis"), CHASSIS).unwrap();
        fs::set_permissions(at.join("chassis"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(at.join("bmc.emu"), emu.map_or_else(|| emulation(at), str::to_owned)).unwrap();
        let auth = "none md2 md5 straight";
        let levels: Vec<String> =
            ["callback", "user", "operator", "admin"].iter().map(|l| format!("allowed_auths_{l} {auth}")).collect();
        let conf = format!(
            "name \"sim\"\nset_working_mc 0x20\nstartlan 1\naddr {} {}\npriv_limit admin\n{}\n\
             guid 4c414200000000000000000000000001\nendlan\nchassis_control \"{} {}\"\nstartnow false\n\
             user 1 false \"\" \"\" user 10 {auth}\nuser 2 true \"admin\" \"calvin-lab\" admin 10 {auth}\n",
            address.ip(),
            address.port(),
            levels.join("\n"),
            at.join("chassis").display(),
            at.display(),
        );
        fs::write(at.join("lan.conf"), conf).unwrap();
        let mut sim = Self { child: Self::spawn(at), dir, address };
        sim.wait_until_up().await;
        sim
    }

    fn spawn(dir: &Path) -> Child {
        let mut sim = Process::new("ipmi_sim");
        sim.args(["-n", "-c"]).arg(dir.join("lan.conf")).arg("-f").arg(dir.join("bmc.emu"));
        sim.arg("-s").arg(dir.join("state"));
        sim.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        sim.spawn().expect("ipmi_sim of the Debian package openipmi")
    }

    /// Asks with the RMCP presence ping (section 13.2.3) until it answers.
    async fn wait_until_up(&mut self) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let ping = [6, 0, 255, 6, 0, 0, 0x11, 0xbe, 0x80, 0, 0, 0];
        let mut pong = [0u8; 64];
        for _ in 0..200 {
            let _ = socket.send_to(&ping, self.address).await;
            if tokio::time::timeout(Duration::from_millis(100), socket.recv_from(&mut pong))
                .await
                .is_ok_and(|r| r.is_ok())
            {
                return;
            }
            assert!(self.child.try_wait().unwrap().is_none(), "ipmi_sim ended");
        }
        panic!("ipmi_sim does not answer");
    }

    async fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(self.dir.path());
        self.wait_until_up().await;
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default().trim().to_owned()
    }

    /// How often the chassis script was told this.
    fn told(&self, words: &str) -> usize {
        self.file("log").lines().filter(|line| *line == words).count()
    }
}

async fn power(fleet: &Fleet, access: &Access, action: PowerAction) -> (Power, bool, Outcome) {
    match fleet.run(access, Command::Power { action }).await.unwrap() {
        Answer::Power { after, acted, outcome, .. } => (after, acted, outcome),
        other => panic!("{other:?}"),
    }
}

async fn power_status(fleet: &Fleet, access: &Access) -> Power {
    match fleet.run(access, Command::PowerStatus).await.unwrap() {
        Answer::PowerStatus(chassis) => chassis.power,
        other => panic!("{other:?}"),
    }
}

async fn failure(fleet: &Fleet, access: &Access, command: Command) -> rackline::error::Error {
    fleet.run(access, command).await.expect_err("this must fail")
}

/// Waits for what another task does.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const PXE: BootOverride = BootOverride { device: BootDevice::Network, firmware: Firmware::Uefi, persistent: false };

#[tokio::test]
async fn power_really_changes_and_what_is_so_is_left_alone() {
    let sim = IpmiSim::start(None).await;
    let (fleet, access) = (Fleet::new(settings()), access(sim.address));
    assert_eq!(power_status(&fleet, &access).await, Power::Off);
    assert_eq!(power(&fleet, &access, PowerAction::Off).await, (Power::Off, false, Outcome::Confirmed));
    assert_eq!(power(&fleet, &access, PowerAction::Cycle).await, (Power::On, true, Outcome::Confirmed));
    assert_eq!((sim.file("power").as_str(), sim.told("power 1")), ("1", 1));
    assert_eq!(power(&fleet, &access, PowerAction::On).await, (Power::On, false, Outcome::Confirmed));
    assert_eq!(sim.told("power 1"), 1);
    assert!(power(&fleet, &access, PowerAction::Reset).await.1);
    assert_eq!(sim.told("reset 1"), 1);
    let (after, acted, _) = power(&fleet, &access, PowerAction::Cycle).await;
    assert_eq!((after, acted, sim.told("power 0"), sim.told("power 1")), (Power::On, true, 1, 2));
    assert_eq!(power(&fleet, &access, PowerAction::Off).await, (Power::Off, true, Outcome::Confirmed));
    assert_eq!(sim.file("power"), "0");
    fleet.close().await;
}

#[tokio::test]
async fn a_soft_shutdown_is_asked_for_and_not_called_done() {
    let sim = IpmiSim::start(None).await;
    let (fleet, access) = (Fleet::new(settings()), access(sim.address));
    power(&fleet, &access, PowerAction::On).await;
    let (_, acted, outcome) = power(&fleet, &access, PowerAction::Soft).await;
    assert!(acted && matches!(outcome, Outcome::Unconfirmed { .. }));
    assert_eq!(sim.told("shutdown 1"), 1);
    assert_eq!(power_status(&fleet, &access).await, Power::Off);
}

#[tokio::test]
async fn the_boot_device_reaches_the_machine() {
    let sim = IpmiSim::start(None).await;
    let (fleet, access) = (Fleet::new(settings()), access(sim.address));
    for (device, name) in [(BootDevice::Network, "pxe"), (BootDevice::Disk, "default"), (BootDevice::None, "none")] {
        let wanted = BootOverride { device, ..PXE };
        let answer = fleet.run(&access, Command::SetBoot(wanted)).await.unwrap();
        let Answer::SetBoot { seen, outcome, .. } = answer else { panic!("{answer:?}") };
        assert_eq!(seen.and_then(|s| s.device), Some(device));
        assert_eq!(sim.file("boot"), name);
        // ipmi_sim loses the valid and the UEFI bit.
        assert_eq!(matches!(outcome, Outcome::Unconfirmed { .. }), device != BootDevice::None, "{outcome:?}");
    }
    let answer = fleet.run(&access, Command::Boot).await.unwrap();
    assert!(matches!(answer, Answer::Boot { seen: Some(seen) } if seen.device == Some(BootDevice::None)));
}

#[tokio::test]
async fn sensors_have_values_units_and_levels_that_follow_the_machine() {
    let sim = IpmiSim::start(None).await;
    let (fleet, access) = (Fleet::new(settings()), access(sim.address));
    let read = async || match fleet.run(&access, Command::Sensors).await.unwrap() {
        Answer::Sensors { sensors } => sensors,
        other => panic!("{other:?}"),
    };
    let lines = |sensors: &[rackline::bmc::Sensor]| -> Vec<String> {
        let line =
            |s: &rackline::bmc::Sensor| format!("{} {} {}{} {:?}", s.name, s.kind, s.value.unwrap(), s.unit, s.level);
        sensors.iter().map(line).collect()
    };
    let expected =
        ["CPU0 Temp temperature 42°C Some(Ok)", "FAN1 fan 8400RPM Some(Ok)", "12V Rail voltage 12.04V Some(Ok)"];
    assert_eq!(lines(&read().await), expected);
    fs::write(sim.dir.path().join("sensor1.val"), "97\n").unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let sensors = read().await;
        if lines(&sensors)[0] == "CPU0 Temp temperature 97°C Some(Critical)" {
            break;
        }
        assert!(Instant::now() < until, "{sensors:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn info_and_identify() {
    let sim = IpmiSim::start(None).await;
    let (fleet, access) = (Fleet::new(settings()), access(sim.address));
    let Answer::Info(info) = fleet.run(&access, Command::Info).await.unwrap() else { panic!() };
    assert_eq!((info.protocol.as_str(), info.firmware.as_str()), ("IPMI 2.0, cipher suite 3", "9.08"));
    assert_eq!((info.manufacturer.as_str(), info.product), ("IANA 4753", 0xf02));
    assert_eq!(info.guid.map(|g| g.simple().to_string()).as_deref(), Some("4c414200000000000000000000000001"));
    fleet.run(&access, Command::Identify { seconds: 15 }).await.unwrap();
    assert!(sim.file("identify").starts_with("15"), "{:?}", sim.file("identify"));
}

#[tokio::test]
async fn a_restarted_bmc_is_logged_in_to_again() {
    let mut sim = IpmiSim::start(None).await;
    let (fleet, access) = (Fleet::new(settings()), access(sim.address));
    assert_eq!(power_status(&fleet, &access).await, Power::Off);
    sim.restart().await;
    assert_eq!(power(&fleet, &access, PowerAction::On).await, (Power::On, true, Outcome::Confirmed));
}

#[tokio::test]
async fn a_wrong_password_is_tried_three_times_and_a_new_one_at_once() {
    let sim = IpmiSim::start(None).await;
    let proxy = Proxy::start(address(), sim.address, Weather::default()).await;
    let (fleet, right) = (Fleet::new(settings()), access(proxy.address));
    let wrong = Access { password: Secret::new("guess"), ..right.clone() };
    for _ in 0..6 {
        let error = failure(&fleet, &wrong, Command::PowerStatus).await;
        assert_eq!((error.code(), error.kind()), ("bmc.auth", Kind::Refused), "{error:?}");
        assert!(!format!("{error:?}").contains("guess"));
    }
    assert_eq!(proxy.log_ins(), 3);
    assert_eq!(power_status(&fleet, &right).await, Power::Off);
    let nobody = Access { user: "nobody".into(), ..right.clone() };
    let error = failure(&fleet, &nobody, Command::PowerStatus).await;
    assert_eq!(error.code(), "bmc.auth", "{error:?}");
}

#[tokio::test]
async fn silence_ends_at_its_deadline_and_is_not_waited_for_again_and_again() {
    let silent = UdpSocket::bind((address(), 0)).await.unwrap();
    let access = access(silent.local_addr().unwrap());
    let pace = Pace { open: Duration::from_millis(700), ..settings().pace };
    let fleet = Fleet::new(Settings { pace, ..settings() });
    for _ in 0..3 {
        let start = Instant::now();
        let error = failure(&fleet, &access, Command::PowerStatus).await;
        assert_eq!((error.code(), error.kind()), ("bmc.unreachable", Kind::Unreachable));
        assert!(error.next_step().unwrap().contains("ping 127."));
        assert!(start.elapsed() >= Duration::from_millis(700));
    }
    let mut packet = [0u8; 100];
    while silent.try_recv(&mut packet).is_ok() {}
    let error = failure(&fleet, &access, Command::PowerStatus).await;
    assert_eq!(error.code(), "bmc.unreachable");
    assert!(error.message().contains("3 times in a row"), "{error:?}");
    assert!(silent.try_recv(&mut packet).is_err(), "a BMC that is left alone gets no packet");
    drop(silent);
    let closed = Fleet::new(Settings { pace, ..settings() });
    let error = failure(&closed, &access, Command::PowerStatus).await;
    assert!(error.causes().join(" ").contains("refused"), "{error:?}");
}

#[tokio::test]
async fn a_third_of_the_packets_may_be_lost() {
    let sim = IpmiSim::start(None).await;
    let proxy = Proxy::start(address(), sim.address, Weather { loss: 30, ..Weather::default() }).await;
    let pace = Pace { first: Duration::from_millis(60), ..settings().pace };
    let (fleet, access) = (Fleet::new(Settings { pace, ..settings() }), access(proxy.address));
    for round in 0..3 {
        assert_eq!(power(&fleet, &access, PowerAction::On).await.0, Power::On, "round {round}");
        fleet.run(&access, Command::SetBoot(PXE)).await.unwrap();
        let Answer::Sensors { sensors } = fleet.run(&access, Command::Sensors).await.unwrap() else { panic!() };
        assert_eq!(sensors.len(), 3);
        assert_eq!(power(&fleet, &access, PowerAction::Off).await.0, Power::Off);
        // A new session each round.
        fleet.close().await;
    }
    assert!(proxy.lost() > 20, "the proxy lost only {} packets", proxy.lost());
}

#[tokio::test]
async fn doubled_late_and_made_up_packets_change_nothing() {
    let sim = IpmiSim::start(None).await;
    let weather = Weather { doubled: 50, late: 40, garbage: true, ..Weather::default() };
    let proxy = Proxy::start(address(), sim.address, weather).await;
    let (fleet, access) = (Fleet::new(settings()), access(proxy.address));
    for action in [PowerAction::On, PowerAction::Off, PowerAction::On] {
        let (after, _, outcome) = power(&fleet, &access, action).await;
        assert_eq!((after == Power::On, outcome), (action == PowerAction::On, Outcome::Confirmed));
        assert_eq!(sim.file("power") == "1", after == Power::On);
    }
    let Answer::Sensors { sensors } = fleet.run(&access, Command::Sensors).await.unwrap() else { panic!() };
    assert_eq!(sensors[1].value, Some(8400.0));
}

#[tokio::test]
async fn the_simulator_of_suite_17_is_one_to_ipmitool_too() {
    let sim = Sim::start(&format!("{}:0", address())).await;
    sim.state.lock().unwrap().power = true;
    for suite in ["17", "3"] {
        let (ip, port) = (sim.address.ip().to_string(), sim.address.port().to_string());
        let words = ["-I", "lanplus", "-C", suite, "-H", &ip, "-p", &port, "-U", "admin", "-P", "calvin-lab"];
        let output =
            tokio::process::Command::new("ipmitool").args(words).args(["power", "status"]).output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(text.trim(), "Chassis Power is on", "suite {suite}");
    }
}

#[tokio::test]
async fn the_strongest_suite_that_the_bmc_offers() {
    for (offered, expected) in [(vec![3, 17], "17"), (vec![17], "17"), (vec![1, 2, 3, 8], "3")] {
        let sim = Sim::start(&format!("{}:0", address())).await;
        sim.state.lock().unwrap().suites = offered;
        let Answer::Info(info) = Fleet::new(settings()).run(&access(sim.address), Command::Info).await.unwrap() else {
            panic!()
        };
        assert_eq!(info.protocol, format!("IPMI 2.0, cipher suite {expected}"));
    }
    // One that does not answer to a suite that it lacks is asked what it has.
    let sim = Sim::start(&format!("{}:0", address())).await;
    sim.state.lock().unwrap().mute = true;
    sim.state.lock().unwrap().suites = vec![3];
    assert_eq!(power_status(&Fleet::new(settings()), &access(sim.address)).await, Power::Off);
    let sim = Sim::start(&format!("{}:0", address())).await;
    sim.state.lock().unwrap().suites = vec![1, 2];
    assert_eq!(failure(&Fleet::new(settings()), &access(sim.address), Command::PowerStatus).await.code(), "bmc.suite");
}

#[tokio::test]
async fn suite_17_carries_power_and_boot_and_confirms_them() {
    let sim = Sim::start(&format!("{}:0", address())).await;
    let (fleet, access) = (Fleet::new(settings()), access(sim.address));
    sim.state.lock().unwrap().noisy = true;
    for acted in [true, false] {
        let answer = fleet.run(&access, Command::SetBoot(PXE)).await.unwrap();
        assert!(
            matches!(answer, Answer::SetBoot { acted: a, outcome: Outcome::Confirmed, .. } if a == acted),
            "{answer:?}"
        );
    }
    assert_eq!(sim.state.lock().unwrap().boot, [0xa0, 0x04, 0, 0, 0]);
    assert_eq!(power(&fleet, &access, PowerAction::On).await, (Power::On, true, Outcome::Confirmed));
    sim.state.lock().unwrap().busy = 2;
    assert_eq!(power(&fleet, &access, PowerAction::Off).await, (Power::Off, true, Outcome::Confirmed));
    assert_eq!(sim.state.lock().unwrap().controls, [1, 0]);
    assert_eq!(sim.state.lock().unwrap().opened, 1, "one session for all");
    // The BMC forgets its sessions, as after a time-out.
    sim.state.lock().unwrap().sessions.clear();
    assert_eq!(power(&fleet, &access, PowerAction::Cycle).await, (Power::On, true, Outcome::Confirmed));
    assert_eq!(sim.state.lock().unwrap().opened, 2);
    fleet.close().await;
    let state = sim.state.lock().unwrap();
    assert_eq!((state.closed, state.sessions.len()), (1, 0));
}

#[tokio::test]
async fn an_operator_is_enough_and_a_deaf_bmc_is_found_out() {
    let sim = Sim::start(&format!("{}:0", address())).await;
    let (fleet, access) = (Fleet::new(settings()), access(sim.address));
    sim.state.lock().unwrap().privilege = 3;
    assert_eq!(power(&fleet, &access, PowerAction::On).await, (Power::On, true, Outcome::Confirmed));
    sim.state.lock().unwrap().deaf = true;
    let error = failure(&fleet, &access, Command::Power { action: PowerAction::Off }).await;
    assert_eq!(error.code(), "bmc.not-applied", "{error:?}");
    assert_eq!(failure(&fleet, &access, Command::SetBoot(PXE)).await.code(), "bmc.not-applied");
    sim.state.lock().unwrap().privilege = 2;
    fleet.close().await;
    assert_eq!(failure(&fleet, &access, Command::PowerStatus).await.code(), "bmc.privilege");
}

#[tokio::test]
async fn which_of_user_and_password_is_wrong() {
    let sim = Sim::start(&format!("{}:0", address())).await;
    let fleet = Fleet::new(settings());
    let right = access(sim.address);
    let error = failure(&fleet, &Access { user: "root".into(), ..right.clone() }, Command::PowerStatus).await;
    assert!(error.code() == "bmc.auth" && error.message().contains("does not know the user"), "{error:?}");
    let error = failure(&fleet, &Access { password: Secret::new("no"), ..right.clone() }, Command::PowerStatus).await;
    assert!(error.code() == "bmc.auth" && error.message().contains("another password"), "{error:?}");
    until("a refused log-in leaves no session behind", || sim.state.lock().unwrap().sessions.is_empty()).await;
    let long = Access { password: Secret::new("x".repeat(21)), ..right };
    assert_eq!(failure(&fleet, &long, Command::PowerStatus).await.kind(), Kind::Input);
}

#[tokio::test]
async fn commands_for_one_bmc_take_turns_and_idle_sessions_are_closed() {
    let sim = Sim::start(&format!("{}:0", address())).await;
    let fleet = Fleet::new(Settings { idle: Duration::from_millis(300), ..settings() });
    let access = access(sim.address);
    let asked = (0..20).map(|_| fleet.run(&access, Command::PowerStatus));
    assert!(futures::future::join_all(asked).await.iter().all(Result::is_ok));
    assert_eq!(sim.state.lock().unwrap().opened, 1);
    until("the idle session is closed", || sim.state.lock().unwrap().closed == 1).await;
    assert_eq!(power_status(&fleet, &access).await, Power::Off);
    assert_eq!(sim.state.lock().unwrap().opened, 2);
}

#[tokio::test]
async fn many_bmcs_at_once_with_few_open_at_a_time() {
    let base = address();
    let mut sims = Vec::new();
    for _ in 0..120 {
        sims.push(Sim::start(&format!("{base}:0")).await);
    }
    let fleet = Fleet::new(Settings { parallel: 16, keep: 8, ..settings() });
    let all: Vec<Access> = sims.iter().map(|sim| access(sim.address)).collect();
    let asked = all.iter().map(|access| fleet.run(access, Command::Power { action: PowerAction::On }));
    let answers = futures::future::join_all(asked).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert!(sims.iter().all(|sim| sim.state.lock().unwrap().power));
    let open = sims.iter().filter(|sim| !sim.state.lock().unwrap().sessions.is_empty()).count();
    assert!(open <= 8, "{open} sessions are kept");
    fleet.close().await;
}

pub async fn ipmitool(sim: &IpmiSim, words: &[&str]) -> String {
    let mut tool = tokio::process::Command::new("ipmitool");
    tool.args(["-I", "lanplus", "-C", "3", "-U", "admin", "-P", "calvin-lab"]);
    tool.args(["-H", &sim.address.ip().to_string(), "-p", &sim.address.port().to_string()]);
    let output = tool.args(words).output().await.expect("ipmitool of the Debian package ipmitool");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Carries the in-band calls through `ipmitool raw`, so that they meet a real BMC without `/dev/ipmi0`.
struct Raw<'a>(&'a IpmiSim);

impl rackline::ipmi::device::Exchange for Raw<'_> {
    fn exchange(&mut self, request: &Request) -> rackline::error::Result<Response> {
        let mut tool = Process::new("ipmitool");
        tool.args(["-I", "lanplus", "-C", "3", "-U", "admin", "-P", "calvin-lab"]);
        tool.args(["-H", &self.0.address.ip().to_string(), "-p", &self.0.address.port().to_string(), "raw"]);
        tool.args([request.netfn, request.cmd].iter().chain(&request.data).map(|b| format!("0x{b:02x}")));
        let output = tool.output().unwrap();
        // "Unable to send RAW command (channel=0x0 netfn=0x6 lun=0x0 cmd=0x46 rsp=0xcc): Invalid data field"
        let trouble = String::from_utf8_lossy(&output.stderr).into_owned();
        let refused = trouble.split_once("rsp=0x").and_then(|(_, rest)| u8::from_str_radix(rest.get(..2)?, 16).ok());
        let data = String::from_utf8_lossy(&output.stdout)
            .split_whitespace()
            .map(|b| u8::from_str_radix(b, 16).unwrap())
            .collect();
        let completion = Completion(refused.unwrap_or(0));
        assert!(output.status.success() || refused.is_some(), "{trouble}");
        Ok(Response { netfn: request.netfn | 1, cmd: request.cmd, completion, data })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_made_in_band_can_log_in_over_the_network() {
    let sim = IpmiSim::start(None).await;
    let found = tokio::task::block_in_place(|| describe(&mut Raw(&sim))).unwrap();
    assert_eq!(found.firmware.as_deref(), Some("9.08"));
    let user = BmcUser { name: "rackline".into(), password: "16-characters-pw".into() };
    for _ in 0..2 {
        tokio::task::block_in_place(|| ensure_user(&mut Raw(&sim), &user)).unwrap();
    }
    let list = ipmitool(&sim, &["user", "list", "1"]).await;
    let ours: Vec<&str> = list.lines().filter(|line| line.contains("rackline")).collect();
    assert!(ours.len() == 1 && ours[0].starts_with('3') && ours[0].contains("ADMINISTRATOR"), "{list}");
    let access = Access { user: user.name, password: Secret::new(user.password), ..access(sim.address) };
    assert_eq!(power(&Fleet::new(settings()), &access, PowerAction::On).await, (Power::On, true, Outcome::Confirmed));
}

/// By what they tell strangers: the ping and the GUID of OpenIPMI's BMC, the service root of Redfish beside it.
#[tokio::test]
async fn bmcs_are_found_in_a_range_without_a_password() {
    let sim = IpmiSim::start(None).await;
    let ip = sim.address.ip();
    let redfish = rackline::lab::redfish::start((ip, 0).into()).await.unwrap();
    let search = Search {
        ipmi_port: sim.address.port(),
        redfish_port: redfish.server.address.port(),
        per_second: 1000,
        ..Search::default()
    };
    let found = discover::search(ip.to_string().parse().unwrap(), search).await.unwrap();
    let [found] = found.as_slice() else { panic!("{found:?}") };
    assert!(found.address == ip && found.ipmi, "{found:?}");
    assert_eq!(found.guid.map(|guid| guid.to_string()).as_deref(), Some("4c414200-0000-0000-0000-000000000001"));
    assert!(found.redfish.as_ref().is_some_and(|root| root.version.starts_with("1.")), "{found:?}");
    // Nobody has logged in anywhere, and where nobody is, nothing is found.
    let elsewhere = Search { ipmi_port: 1, redfish_port: 1, ..search };
    assert_eq!(discover::search(format!("{ip}/31").parse().unwrap(), elsewhere).await.unwrap(), []);
}
