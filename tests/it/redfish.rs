//! The Redfish client against the emulator of OpenStack (`sushy-emulator`: HTTP Basic, no sessions), a simulated BMC with
//! faults, and the recorded tree of a real Dell R750; and the same commands over IPMI beside them.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rackline::bmc::act::Limits;
use rackline::bmc::redfish::{Authority, Known};
use rackline::bmc::{
    Access, Answer, BiosAttributes, BootDevice, BootOverride, Command, Doors, Fleet, Outcome, Power, SetNetwork,
    Settings, Update, UpdateFrom,
};
use rackline::error::{Error, Kind};
use rackline::ipmi::sensor::Level;
use rackline::lab::redfish::{Behaviour, Fault, Oddity, Reset, Simulated, firmware_image, start};
use rackline::machine::{Firmware, Identity, PowerAction, Secret, Serial};
use serde_json::json;

use super::bmc_sim::Sim;
use super::redfish_tree::{SYSTEM, Tree};

const PXE: BootOverride = BootOverride { device: BootDevice::Network, firmware: Firmware::Uefi, persistent: false };
const MACHINE: &str = "/redfish/v1/Systems/1";

/// A loopback address that no other test has; the second byte keeps it apart from those of the IPMI tests.
fn address() -> Ipv4Addr {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let [_, b, c, d] = (std::process::id().wrapping_mul(241) + COUNT.fetch_add(1, Relaxed)).to_be_bytes();
    Ipv4Addr::new(127, b & 0x3f | 0x80, c, d.clamp(1, 254))
}

fn access(address: SocketAddr, user: &str, password: &str) -> Access {
    Access {
        doors: Doors::redfish(address),
        user: user.into(),
        password: Secret::new(password),
        machine: Default::default(),
    }
}

fn settings() -> Settings {
    let ms = Duration::from_millis;
    Settings {
        limits: Limits { confirm: ms(6000), cycle: ms(800), look: ms(50) },
        command: ms(15_000),
        long: ms(30_000),
        update: ms(15_000),
        ..Settings::default()
    }
}

/// A simulated BMC, and a fleet that knows it alone.
struct Bench {
    bmc: Simulated,
    fleet: Fleet,
    access: Access,
}

impl Bench {
    async fn start() -> Self {
        Self::with(settings()).await
    }

    async fn with(settings: Settings) -> Self {
        let bmc = start((address(), 0).into()).await.unwrap();
        let access = access(bmc.server.address, "root", "calvin");
        Self { bmc, fleet: Fleet::new(settings), access }
    }

    async fn run(&self, command: Command) -> Result<Answer, Error> {
        self.fleet.run(&self.access, command).await
    }

    async fn ok(&self, command: Command) -> Answer {
        self.run(command).await.unwrap()
    }

    async fn code(&self, command: Command) -> &'static str {
        self.run(command).await.expect_err("this must fail").code()
    }

    fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        self.bmc.controls.behave(change);
    }

    fn fault(&self, what: &str, times: u32, fault: Fault) {
        self.bmc.controls.heal();
        self.bmc.controls.fault_times(what, times, fault);
    }

    fn sessions(&self) -> usize {
        self.bmc.accounts.sessions(&self.bmc.controls.behaviour()).len()
    }
}

async fn power(fleet: &Fleet, access: &Access, action: PowerAction) -> (Power, bool, Outcome) {
    match fleet.run(access, Command::Power { action }).await.unwrap() {
        Answer::Power { after, acted, outcome, .. } => (after, acted, outcome),
        other => panic!("{other:?}"),
    }
}

async fn device(fleet: &Fleet, access: &Access) -> Option<BootDevice> {
    match fleet.run(access, Command::Boot).await.unwrap() {
        Answer::Boot { seen } => seen.filter(|seen| seen.valid).and_then(|seen| seen.device),
        other => panic!("{other:?}"),
    }
}

/// The same for every protocol and vendor: what is so is left alone, what changes is seen afterwards.
async fn vendor_neutral(name: &str, access: &Access) {
    let fleet = Fleet::new(settings());
    let Answer::PowerStatus(chassis) = fleet.run(access, Command::PowerStatus).await.unwrap() else { panic!() };
    assert_eq!(chassis.power, Power::Off, "{name}");
    for (action, after, acted) in [
        (PowerAction::Off, Power::Off, false),
        (PowerAction::On, Power::On, true),
        (PowerAction::On, Power::On, false),
        (PowerAction::Off, Power::Off, true),
        (PowerAction::Soft, Power::Off, false),
    ] {
        assert_eq!(power(&fleet, access, action).await, (after, acted, Outcome::Confirmed), "{name}: {action}");
    }
    for wanted in [PXE, BootOverride { device: BootDevice::Disk, ..PXE }, PXE] {
        let answer = fleet.run(access, Command::SetBoot(wanted)).await.unwrap();
        let Answer::SetBoot { acted: true, seen: Some(seen), .. } = answer else { panic!("{name}: {answer:?}") };
        assert_eq!((seen.device, seen.firmware), (Some(wanted.device), Firmware::Uefi), "{name}");
        assert_eq!(device(&fleet, access).await, Some(wanted.device), "{name}");
    }
    fleet.run(access, Command::Info).await.unwrap();
    fleet.close().await;
}

#[tokio::test]
async fn the_same_commands_do_the_same_whatever_the_protocol() {
    let ipmi = Sim::start(&format!("{}:0", address())).await;
    let by_ipmi = Access {
        doors: Doors::ipmi(ipmi.address),
        user: "admin".into(),
        password: Secret::new("calvin-lab"),
        machine: Default::default(),
    };
    vendor_neutral("IPMI", &by_ipmi).await;

    let bench = Bench::start().await;
    vendor_neutral("simulated Redfish", &bench.access).await;
    assert_eq!(bench.sessions(), 0, "sessions are given back");

    let sushy = Sushy::start();
    vendor_neutral("sushy-emulator", &access(sushy.address, "admin", "calvin-lab")).await;

    let tree = Tree::dell();
    tree.edit(SYSTEM, |system| system["PowerState"] = json!("Off"));
    let (server, _controls) = tree.serve(&format!("{}:0", address())).await;
    vendor_neutral("Dell R750", &access(server.address, "root", "calvin")).await;
}

/// `sushy-emulator` with its fake driver and a certificate of its own.
struct Sushy {
    child: Child,
    address: SocketAddr,
    dir: tempfile::TempDir,
}

impl Drop for Sushy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Sushy {
    /// The emulator lets a power change take 1 to 11 s by chance; here it takes the least.
    const RUN: &str = "import random, sys; random.randint = lambda least, most: least\n\
                       from sushy_tools.emulator.main import main; sys.exit(main())";

    fn start() -> Self {
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/sushy/bin/python3");
        assert!(python.exists(), "`make target/sushy` installs the emulator that this test needs");
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let address = TcpListener::bind((address(), 0)).unwrap().local_addr().unwrap();
        certify(dir.path(), address.ip());
        // The password is calvin-lab, hashed by bcrypt with the least cost.
        fs::write(at("users"), "admin:$2b$04$ULEKYKD2Pyx6RI4SHhUgleLolgbFpxiv9NI8Q5GylxOb/zJZLnUNO\n").unwrap();
        let config = format!(
            "SUSHY_EMULATOR_LISTEN_IP = '{}'\nSUSHY_EMULATOR_LISTEN_PORT = {}\nSUSHY_EMULATOR_SSL_CERT = '{}'\n\
             SUSHY_EMULATOR_SSL_KEY = '{}'\nSUSHY_EMULATOR_AUTH_FILE = '{}'\nSUSHY_EMULATOR_STATE_DIR = '{}'\n\
             SUSHY_EMULATOR_FAKE_DRIVER = True\n",
            address.ip(),
            address.port(),
            at("certificate.pem"),
            at("key.pem"),
            at("users"),
            dir.path().display(),
        );
        fs::write(at("config"), config).unwrap();
        let mut child = Process::new(python)
            .args(["-c", Self::RUN, "--config", &at("config")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(address).is_err() {
            assert!(child.try_wait().unwrap().is_none(), "sushy-emulator ended");
            assert!(Instant::now() < until, "sushy-emulator does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { child, address, dir }
    }
}

/// `authority.pem`, and `certificate.pem` with `key.pem` that it has signed for this address.
fn certify(dir: &Path, address: IpAddr) {
    let openssl = |words: &str| {
        let made = Process::new("openssl").args(words.split(' ')).current_dir(dir).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -days 2 -subj /CN=Site -keyout authority.key -out authority.pem"));
    openssl(&format!("req {key} -subj /CN=BMC -keyout key.pem -out request.pem"));
    fs::write(dir.join("names"), format!("subjectAltName=IP:{address}\n")).unwrap();
    let sign = "-CA authority.pem -CAkey authority.key -CAcreateserial -days 2 -extfile names";
    openssl(&format!("x509 -req -in request.pem {sign} -out certificate.pem"));
}

#[tokio::test]
async fn an_authority_of_the_site_is_believed_and_no_other() {
    let sushy = Sushy::start();
    let access = access(sushy.address, "admin", "calvin-lab");
    let authority = |dir: &Path| {
        let pem = fs::read(dir.join("authority.pem")).unwrap();
        Fleet::knowing(settings(), Known::by_authority(Authority::from_pem(&pem).unwrap()))
    };
    authority(sushy.dir.path()).run(&access, Command::PowerStatus).await.unwrap();
    let other = tempfile::tempdir().unwrap();
    certify(other.path(), sushy.address.ip());
    let error = authority(other.path()).run(&access, Command::PowerStatus).await.unwrap_err();
    assert_eq!((error.code(), error.kind()), ("bmc.certificate", Kind::Refused), "{error:?}");
}

#[tokio::test]
async fn a_cycle_is_replaced_by_what_the_bmc_has() {
    let bench = Bench::start().await;
    for (offered, sent) in [
        (vec![Reset::On, Reset::ForceOff, Reset::ForceRestart], 1),
        (vec![Reset::On, Reset::ForceOff], 2),
        (Reset::ALL.to_vec(), 1),
    ] {
        bench.behave(|bmc| bmc.resets = offered.clone());
        power(&bench.fleet, &bench.access, PowerAction::On).await;
        let (before, starts) =
            (bench.bmc.controls.count("POST /redfish/v1/Systems"), bench.bmc.hardware.booted().len());
        let (after, acted, _) = power(&bench.fleet, &bench.access, PowerAction::Cycle).await;
        assert_eq!((after, acted), (Power::On, true));
        assert_eq!(bench.bmc.controls.count("POST /redfish/v1/Systems") - before, sent, "{offered:?}");
        assert_eq!(bench.bmc.hardware.booted().len(), starts + 1, "{offered:?}");
    }
    bench.behave(|bmc| bmc.resets = vec![Reset::ForceOff]);
    assert_eq!(bench.code(Command::Power { action: PowerAction::Soft }).await, "bmc.unsupported");
    assert_eq!(power(&bench.fleet, &bench.access, PowerAction::Off).await.0, Power::Off);
}

#[tokio::test]
async fn a_power_state_that_lags_is_waited_for() {
    let bench = Bench::start().await;
    bench.behave(|bmc| bmc.power_lag = Duration::from_millis(1500));
    let start = Instant::now();
    assert_eq!(power(&bench.fleet, &bench.access, PowerAction::On).await, (Power::On, true, Outcome::Confirmed));
    assert!(start.elapsed() >= Duration::from_millis(1400));
    // Somebody else was faster: refused, and so all the same.
    bench.behave(|bmc| {
        bmc.power_lag = Duration::from_millis(1500);
        bmc.strict_power = true;
    });
    assert_eq!(power(&bench.fleet, &bench.access, PowerAction::Off).await.0, Power::Off);
}

#[tokio::test]
async fn what_the_bmc_knows_is_read() {
    let bench = Bench::start().await;
    power(&bench.fleet, &bench.access, PowerAction::On).await;
    let Answer::Info(info) = bench.ok(Command::Info).await else { panic!() };
    assert!(info.protocol.starts_with("Redfish 1."), "{info:?}");
    assert_eq!((info.manufacturer.as_str(), info.guid.is_some(), info.mac.is_some()), ("Labworks", true, true));
    let Answer::Sensors { sensors } = bench.ok(Command::Sensors).await else { panic!() };
    assert!(
        sensors.iter().any(|s| s.kind == "temperature" && s.unit == "°C" && s.level == Some(Level::Ok)),
        "{sensors:?}"
    );
    assert!(sensors.iter().any(|s| s.kind == "fan"), "{sensors:?}");
    let Answer::Users { users } = bench.ok(Command::Users).await else { panic!() };
    assert_eq!((users[0].name.as_str(), users[0].role.as_str()), ("root", "Administrator"));
    let Answer::Network(network) = bench.ok(Command::Network).await else { panic!() };
    assert!(network.address.is_some() && network.ntp.is_some(), "{network:?}");
    let Answer::Components { components } = bench.ok(Command::Components).await else { panic!() };
    assert!(components.iter().any(|c| c.id == "BIOS" && c.updateable && c.version.is_some()), "{components:?}");
    let Answer::Parts { parts } = bench.ok(Command::Parts).await else { panic!() };
    assert_eq!(parts[0].fields["product.serial"], "LW77S00099");
    let Answer::Updating { busy } = bench.ok(Command::Updating).await else { panic!() };
    assert!(!busy);
    let Answer::Bios(bios) = bench.ok(Command::Bios).await else { panic!() };
    assert!(!bios.now.is_empty() && bios.pending.is_empty(), "{bios:?}");
    assert_eq!(bench.sessions(), 1, "one session for all of it");
    bench.fleet.close().await;
    assert_eq!(bench.sessions(), 0);
}

#[tokio::test]
async fn the_log_is_read_in_pages_continued_and_cleared_when_saved() {
    let bench = Bench::start().await;
    bench.behave(|bmc| bmc.page = 7);
    for number in 0..30 {
        bench.bmc.machine.log("Warning", &format!("event {number}"));
    }
    let read = async |after: Option<String>| match bench.ok(Command::Log { after }).await {
        Answer::Log(log) => log,
        other => panic!("{other:?}"),
    };
    let log = read(None).await;
    let texts: Vec<&str> = log.entries.iter().map(|e| e.text.as_str()).filter(|t| t.starts_with("event")).collect();
    assert_eq!((texts.len(), texts[0], texts[29]), (30, "event 0", "event 29"));
    assert!(log.clock.unwrap().ahead_seconds.abs() <= 2);
    let last = log.entries.last().unwrap().id.clone();
    assert!(read(Some(last.clone())).await.entries.is_empty());
    bench.bmc.machine.log("Critical", "fresh");
    assert_eq!(read(Some(last.clone())).await.entries[0].text, "fresh");
    assert_eq!(bench.code(Command::ClearLog { last }).await, "bmc.log-newer");
    let last = read(None).await.entries.last().unwrap().id.clone();
    bench.ok(Command::ClearLog { last }).await;
    assert!(read(None).await.entries.len() <= 1);
    bench.behave(|bmc| bmc.clock_offset = 3600);
    assert!(read(None).await.clock.unwrap().ahead_seconds > 3500);
}

#[tokio::test]
async fn settings_are_changed_and_shown() {
    let bench = Bench::start().await;
    bench.behave(|bmc| bmc.clock_offset = -7200);
    let Answer::Done { outcome, .. } = bench.ok(Command::SetClock).await else { panic!() };
    assert_eq!(outcome, Outcome::Confirmed);
    let servers = vec!["10.77.0.1".to_owned()];
    bench.ok(Command::SetNetwork(SetNetwork { address: None, ntp: Some(servers.clone()) })).await;
    let Answer::Network(network) = bench.ok(Command::Network).await else { panic!() };
    assert_eq!(network.ntp, Some(servers));

    let Answer::BootOrder { order, names } = bench.ok(Command::BootOrder).await else { panic!() };
    assert!(names["Boot0001"].contains("PXE") && names["Boot0001"].contains("IPv4("), "{names:?}");
    let last = order.last().unwrap().clone();
    bench.ok(Command::SetBootOrder { order: vec![last.clone()] }).await;
    let Answer::BootOrder { order: now, .. } = bench.ok(Command::BootOrder).await else { panic!() };
    assert_eq!((now[0].as_str(), now.len()), (last.as_str(), order.len()));
    assert_eq!(bench.code(Command::SetBootOrder { order: vec!["Boot9999".into()] }).await, "bmc.boot-entry");

    let Answer::Bios(bios) = bench.ok(Command::Bios).await else { panic!() };
    let (name, value) = bios.now.iter().find(|(_, value)| *value == "Enabled").expect("a setting that is on");
    let attributes = BiosAttributes::from([(name.clone(), json!("Disabled"))]);
    bench.ok(Command::SetBios { attributes: attributes.clone() }).await;
    let Answer::Bios(waiting) = bench.ok(Command::Bios).await else { panic!() };
    assert_eq!((&waiting.now[name], &waiting.pending), (value, &attributes));
    let unknown = BiosAttributes::from([("NoSuchThing".to_owned(), json!(1))]);
    assert_eq!(bench.code(Command::SetBios { attributes: unknown }).await, "bmc.bios-attribute");

    let Answer::Identify { outcome, .. } = bench.ok(Command::Identify { seconds: 60 }).await else { panic!() };
    assert_eq!(outcome, Outcome::Confirmed);
    let Answer::Identify { outcome, .. } = bench.ok(Command::Identify { seconds: 0 }).await else { panic!() };
    assert_eq!(outcome, Outcome::Confirmed);
}

#[tokio::test]
async fn a_new_password_is_the_only_one_that_opens() {
    let bench = Bench::start().await;
    let password = Secret::new("a-new-one-of-20-byte");
    bench.ok(Command::SetPassword { user: "root".into(), password: password.clone() }).await;
    bench.fleet.close().await;
    let new = Access { password, ..bench.access.clone() };
    assert_eq!(power(&bench.fleet, &new, PowerAction::On).await.0, Power::On);
    bench.fleet.close().await;
    assert_eq!(bench.code(Command::PowerStatus).await, "bmc.auth");
    let unknown = Command::SetPassword { user: "nobody".into(), password: Secret::new("x") };
    assert_eq!(bench.fleet.run(&new, unknown).await.unwrap_err().code(), "bmc.user");
}

#[tokio::test]
async fn a_wrong_password_is_tried_three_times_and_not_by_other_ways() {
    let bench = Bench::start().await;
    let wrong = Access { password: Secret::new("guess"), ..bench.access.clone() };
    for _ in 0..6 {
        let error = bench.fleet.run(&wrong, Command::PowerStatus).await.unwrap_err();
        assert_eq!((error.code(), error.kind()), ("bmc.auth", Kind::Refused), "{error:?}");
        assert!(!format!("{error:?}").contains("guess"));
    }
    assert_eq!(bench.bmc.controls.count("POST /redfish/v1/SessionService/Sessions"), 3);
    assert_eq!(bench.bmc.controls.count("GET /redfish/v1/Systems"), 0);
    bench.ok(Command::PowerStatus).await;
}

#[tokio::test]
async fn a_session_that_has_expired_is_made_anew_once() {
    let bench = Bench::start().await;
    bench.ok(Command::PowerStatus).await;
    bench.bmc.accounts.close_all();
    assert_eq!(power(&bench.fleet, &bench.access, PowerAction::On).await, (Power::On, true, Outcome::Confirmed));
    assert_eq!(bench.bmc.controls.count("POST /redfish/v1/SessionService/Sessions"), 2);
    // One that loses every session at once is given up, not asked for ever.
    bench.fault("GET /redfish/v1/Systems*", 1000, Fault::Expired);
    assert_eq!(bench.code(Command::PowerStatus).await, "bmc.auth");
    assert_eq!(bench.bmc.controls.count("POST /redfish/v1/SessionService/Sessions"), 3);
}

#[tokio::test]
async fn a_bmc_without_a_free_session_is_asked_by_basic() {
    let bench = Bench::start().await;
    bench.behave(|bmc| bmc.max_sessions = 0);
    assert_eq!(power(&bench.fleet, &bench.access, PowerAction::On).await.0, Power::On);
    assert_eq!(bench.sessions(), 0);
}

#[tokio::test]
async fn what_passes_is_waited_out() {
    let bench = Bench::start().await;
    for fault in [
        Fault::Reset,
        Fault::Truncated,
        Fault::Unavailable(1),
        Fault::Redirect(String::new()),
        Fault::Slow(Duration::from_millis(700)),
        Fault::Expired,
        Fault::Odd(Oddity::NoId),
        Fault::Odd(Oddity::IdCase),
        Fault::Odd(Oddity::Count),
    ] {
        bench.fault(&format!("GET {MACHINE}"), 2, fault.clone());
        if fault == Fault::Expired || matches!(fault, Fault::Redirect(_)) {
            bench.fault(&format!("GET {MACHINE}"), 1, fault.clone());
        }
        let answer = bench.run(Command::PowerStatus).await;
        assert!(answer.is_ok(), "{fault:?}: {answer:?}");
    }
    // A write is repeated where the BMC said that it was not done.
    let start = Instant::now();
    bench.fault("POST /redfish/v1/Systems*", 1, Fault::Unavailable(1));
    assert_eq!(power(&bench.fleet, &bench.access, PowerAction::On).await.0, Power::On);
    assert!(start.elapsed() >= Duration::from_secs(1));
    // Where its answer was cut off, it was done.
    bench.fault("PATCH", 1, Fault::Truncated);
    bench.ok(Command::SetBoot(PXE)).await;
    bench.fault("GET /redfish/v1/Chassis*", 1000, Fault::Odd(Oddity::PlainNextLink));
    bench.behave(|bmc| bmc.page = 2);
    let Answer::Sensors { sensors } = bench.ok(Command::Sensors).await else { panic!() };
    assert!(sensors.len() > 2, "{sensors:?}");
}

#[tokio::test]
async fn what_does_not_pass_is_named_and_ends_in_time() {
    let brief = Duration::from_millis(2500);
    let bench = Bench::with(Settings { command: brief, long: brief, update: brief, ..settings() }).await;
    bench.ok(Command::PowerStatus).await;
    let elsewhere = TcpListener::bind((address(), 0)).unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let other = format!("https://{}", elsewhere.local_addr().unwrap());
    for (fault, code) in [
        (Fault::Reset, "bmc.interrupted"),
        (Fault::Truncated, "bmc.interrupted"),
        (Fault::Unavailable(3600), "bmc.busy"),
        (Fault::Broken, "bmc.refused"),
        (Fault::Redirect(other), "bmc.redirect"),
        (Fault::Redirect(String::new()), "bmc.redirect"),
        (Fault::Drip(Duration::from_millis(20)), "bmc.late"),
        (Fault::Slow(Duration::from_secs(60)), "bmc.unreachable"),
        (Fault::Silent, "bmc.unreachable"),
        (Fault::Garbage, "bmc.malformed"),
        (Fault::Odd(Oddity::Nulls), "bmc.malformed"),
    ] {
        bench.fault(&format!("GET {MACHINE}"), 1000, fault.clone());
        let start = Instant::now();
        let error = bench.run(Command::PowerStatus).await.unwrap_err();
        assert_eq!(error.code(), code, "{fault:?}: {error:?}");
        assert!(error.next_step().is_some(), "{error:?}");
        assert!(start.elapsed() < brief * 3, "{fault:?} took {:?}", start.elapsed());
        bench.bmc.controls.heal();
        bench.ok(Command::PowerStatus).await;
    }
    assert!(elsewhere.accept().is_err(), "nothing is asked of another host");
    let error =
        Fleet::new(settings()).run(&access(no_tls(), "root", "calvin"), Command::PowerStatus).await.unwrap_err();
    assert_eq!(error.code(), "bmc.tls", "{error:?}");
}

/// Something that is no web server: SSH, for one.
fn no_tls() -> SocketAddr {
    let listener = TcpListener::bind((address(), 0)).unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.write_all(b"SSH-2.0-dropbear\r\n");
        let _ = stream.read(&mut [0; 4096]);
    });
    at
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_not_repeated() {
    let bench = Bench::start().await;
    bench.fault("POST /redfish/v1/Systems*", 1, Fault::Reset);
    let error = bench.run(Command::Power { action: PowerAction::On }).await.unwrap_err();
    assert_eq!((error.code(), error.kind()), ("bmc.interrupted", Kind::Unreachable));
    assert!(error.next_step().unwrap().contains("look at the state"), "{error:?}");
    assert_eq!(bench.bmc.controls.count("POST /redfish/v1/Systems"), 1);
    let bench = Bench::with(Settings { command: Duration::from_secs(1), ..settings() }).await;
    bench.fault("POST /redfish/v1/Systems*", 1, Fault::Silent);
    assert_eq!(bench.code(Command::Power { action: PowerAction::On }).await, "bmc.interrupted");
    assert_eq!(bench.bmc.controls.count("POST /redfish/v1/Systems"), 1);
}

#[tokio::test]
async fn a_yes_without_an_effect_is_noticed() {
    let bench = Bench::with(Settings {
        limits: Limits { confirm: Duration::from_millis(300), ..settings().limits },
        ..settings()
    })
    .await;
    bench.bmc.controls.fault("PATCH", Fault::Ignored);
    bench.bmc.controls.fault("POST /redfish/v1/Systems*", Fault::Ignored);
    assert_eq!(bench.code(Command::SetBoot(PXE)).await, "bmc.not-applied");
    assert_eq!(bench.code(Command::Power { action: PowerAction::On }).await, "bmc.not-applied");
    let Answer::Identify { outcome, .. } = bench.ok(Command::Identify { seconds: 9 }).await else { panic!() };
    assert!(matches!(outcome, Outcome::Unconfirmed { .. }));
}

#[tokio::test]
async fn entity_tags_are_sent_and_a_refused_one_is_thought_over() {
    let bench = Bench::start().await;
    bench.behave(|bmc| bmc.tags_required = true);
    bench.ok(Command::SetBoot(PXE)).await;
    let disk = BootOverride { device: BootDevice::Disk, ..PXE };
    bench.fault("PATCH", 2, Fault::Precondition);
    bench.ok(Command::SetBoot(disk)).await;
    assert_eq!(device(&bench.fleet, &bench.access).await, Some(BootDevice::Disk));
    bench.fault("PATCH", 1000, Fault::Precondition);
    let patches = bench.bmc.controls.count("PATCH");
    assert_eq!(bench.code(Command::SetBoot(PXE)).await, "bmc.refused");
    assert!(bench.bmc.controls.count("PATCH") - patches <= 12, "it ends");
}

#[tokio::test]
async fn pages_that_lead_in_a_circle_are_cut() {
    let bench = Bench::start().await;
    bench.bmc.machine.log("OK", "one");
    bench.bmc.controls.fault("GET /redfish/v1/Managers*", Fault::Odd(Oddity::NextLinkLoop));
    let Answer::Log(log) = bench.ok(Command::Log { after: None }).await else { panic!() };
    assert!(log.entries.iter().any(|entry| entry.text == "one"));
}

#[tokio::test]
async fn firmware_is_pushed_and_its_task_watched() {
    let bench = Bench::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, model: &str| -> PathBuf {
        let path = dir.path().join(name);
        fs::write(&path, firmware_image("BMC", "2.9.9", model)).unwrap();
        path
    };
    let push = |from: PathBuf, targets: &[&str]| {
        let targets = targets.iter().map(|t| (*t).to_owned()).collect();
        Command::Update(Update { from: UpdateFrom::File(from), targets })
    };
    let right = file("bmc.bin", "LW-R1");
    bench.behave(|bmc| bmc.restart = Duration::from_millis(800));
    bench.ok(push(right.clone(), &["BMC"])).await;
    // It may be away for its own restart.
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        if let Ok(Answer::Components { components }) = bench.run(Command::Components).await
            && components.iter().any(|c| c.id == "BMC" && c.version.as_deref() == Some("2.9.9"))
        {
            break;
        }
        assert!(Instant::now() < until, "the new version is not there");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // The same, fetched by the BMC.
    let url = serve_once(firmware_image("BIOS", "3.1.4", "LW-R1"));
    let fetch = Update { from: UpdateFrom::Url(url), targets: vec!["BIOS".into()] };
    bench.ok(Command::Update(fetch)).await;

    let error = bench.run(push(file("other.bin", "LW-R2"), &[])).await.unwrap_err();
    assert_eq!(error.code(), "bmc.task-failed", "{error:?}");
    assert!(error.message().contains("not for a LW-R1") || error.message().contains("LW-R1"), "{error:?}");
    assert_eq!(bench.code(push(right.clone(), &["Toaster"])).await, "bmc.component");
    assert_eq!(bench.code(push(dir.path().join("missing"), &[])).await, "bmc.bundle");
}

/// A web server for one request.
fn serve_once(body: Vec<u8>) -> String {
    let listener = TcpListener::bind((address(), 0)).unwrap();
    let url = format!("http://{}/image.bin", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
    });
    url
}

#[tokio::test]
async fn a_task_without_an_end_is_left_at_its_deadline() {
    let bench = Bench::with(Settings { update: Duration::from_secs(2), ..settings() }).await;
    bench.behave(|bmc| bmc.task = None);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bios.bin");
    fs::write(&path, firmware_image("BIOS", "3.0.0", "LW-R1")).unwrap();
    let start = Instant::now();
    let update = Update { from: UpdateFrom::File(path), targets: vec![] };
    let error = bench.run(Command::Update(update)).await.unwrap_err();
    assert_eq!((error.code(), error.kind()), ("bmc.task-late", Kind::Unreachable), "{error:?}");
    assert!(error.message().contains('%'), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn another_certificate_is_refused_before_the_password_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bmc-certificates");
    // Each as after a restart of the appliance.
    let fleet = || Fleet::knowing(settings(), Known::open(&file).unwrap());
    let Bench { bmc, access, .. } = Bench::start().await;
    fleet().run(&access, Command::PowerStatus).await.unwrap();
    let address = bmc.server.address;
    drop(bmc);
    let until = Instant::now() + Duration::from_secs(5);
    let other = loop {
        match start(address).await {
            Ok(other) => break other,
            Err(e) if Instant::now() > until => panic!("{e:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let later = fleet();
    let error = later.run(&access, Command::PowerStatus).await.unwrap_err();
    assert_eq!((error.code(), error.kind()), ("bmc.certificate", Kind::Refused), "{error:?}");
    assert!(error.next_step().unwrap().contains(file.to_str().unwrap()), "{error:?}");
    assert!(other.controls.seen().is_empty(), "{:?}", other.controls.seen());
    // A person removes the line, and the same fleet goes on with the certificate that is there now.
    fs::write(&file, "").unwrap();
    later.run(&access, Command::PowerStatus).await.unwrap();
    assert!(fs::read_to_string(&file).unwrap().starts_with(&format!("{address} ")));
}

#[tokio::test]
async fn a_bmc_that_restarts_is_found_again() {
    let bench = Bench::start().await;
    bench.ok(Command::PowerStatus).await;
    bench.ok(Command::ResetBmc { cold: true }).await;
    let until = Instant::now() + Duration::from_secs(10);
    while bench.run(Command::PowerStatus).await.is_err() {
        assert!(Instant::now() < until, "the BMC is not back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The recorded R750 with a fleet of its own.
async fn dell(tree: &std::sync::Arc<Tree>) -> (rackline::lab::redfish::Server, Fleet, Access) {
    let (server, _) = tree.serve(&format!("{}:0", address())).await;
    let access = access(server.address, "root", "calvin");
    (server, Fleet::new(settings()), access)
}

#[tokio::test]
async fn a_real_dell_r750_is_read_completely() {
    let tree = Tree::dell();
    let (_server, fleet, access) = dell(&tree).await;
    let run = async |command| fleet.run(&access, command).await.unwrap();
    let Answer::Info(info) = run(Command::Info).await else { panic!() };
    assert_eq!((info.protocol.as_str(), info.firmware.as_str()), ("Redfish 1.13.1", "6.00.30.00"));
    assert_eq!(info.guid.unwrap().to_string(), "4c4c4544-0035-3410-8050-c6c04f314733");
    assert_eq!(
        (info.address.unwrap().to_string(), info.address_source.as_deref()),
        ("10.180.247.199".into(), Some("DHCP"))
    );
    let Answer::PowerStatus(chassis) = run(Command::PowerStatus).await else { panic!() };
    assert_eq!((chassis.power, chassis.identify), (Power::On, Some(false)));
    let Answer::Sensors { sensors } = run(Command::Sensors).await else { panic!() };
    assert_eq!(sensors.len(), 33);
    let one = |name: &str| sensors.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("no sensor {name}"));
    assert_eq!((one("CPU1 Temp").value, one("CPU1 Temp").level), (Some(37.0), Some(Level::Ok)));
    assert_eq!((one("System Board Fan1A").value, one("System Board Fan1A").kind.as_str()), (Some(18600.0), "fan"));
    let Answer::Log(log) = run(Command::Log { after: Some("1021".into()) }).await else { panic!() };
    let ids: Vec<&str> = log.entries.iter().map(|e| e.id.as_str()).collect();
    assert_eq!(ids, ["1022", "1023", "1024"]);
    assert_eq!(log.entries[2].at.unwrap().to_string(), "2024-06-11T05:13:00Z");
    let Answer::Users { users } = run(Command::Users).await else { panic!() };
    assert_eq!(users.iter().map(|u| u.name.as_str()).collect::<Vec<_>>(), ["root", "forge_admin", "fwupd"]);
    let Answer::Parts { parts } = run(Command::Parts).await else { panic!() };
    assert_eq!(
        (parts[0].fields["product.serial"].as_str(), parts[0].fields["product.name"].as_str()),
        ("F54P1G3", "PowerEdge R750")
    );
    assert!(
        parts.iter().any(|part| part.fields.get("product.serial").is_some_and(|s| s == "PHARP0016L008V")),
        "{parts:?}"
    );
    let Answer::Components { components } = run(Command::Components).await else { panic!() };
    let bios: Vec<_> = components.iter().filter(|c| c.name == "BIOS").map(|c| c.version.as_deref()).collect();
    assert_eq!(bios, [Some("1.8.2")], "once, and not the version before");
    let Answer::BootOrder { order, names } = run(Command::BootOrder).await else { panic!() };
    assert_eq!(order[0], "Boot0000");
    assert!(names["Boot0000"].starts_with("HTTP Device 1: NIC in Slot 5"), "{names:?}");
    let Answer::Bios(bios) = run(Command::Bios).await else { panic!() };
    assert_eq!((bios.now["BootMode"].as_str(), bios.now.len() > 100), (Some("Uefi"), true));
}

#[tokio::test]
async fn a_real_dell_r750_is_told_things_in_its_own_way() {
    let tree = Tree::dell();
    let (_server, fleet, access) = dell(&tree).await;
    let run = async |command| fleet.run(&access, command).await.unwrap();
    run(Command::Identify { seconds: 60 }).await;
    assert_eq!(tree.last(SYSTEM), json!({ "IndicatorLED": "Blinking" }));
    run(Command::Identify { seconds: 0 }).await;
    assert_eq!(tree.last(SYSTEM), json!({ "IndicatorLED": "Lit" }));
    run(Command::SetBoot(PXE)).await;
    assert_eq!(tree.last(SYSTEM)["Boot"]["BootSourceOverrideTarget"], "Pxe");
    let attributes = BiosAttributes::from([("SysProfile".to_owned(), json!("PerfOptimized"))]);
    run(Command::SetBios { attributes: attributes.clone() }).await;
    let settings = format!("{SYSTEM}/Bios/Settings");
    assert_eq!(tree.last(&settings)["@Redfish.SettingsApplyTime"]["ApplyTime"], "OnReset");
    // Older iDRACs know no apply time: their job has to be made.
    tree.edit(&format!("{SYSTEM}/Bios"), |bios| bios["@Redfish.Settings"]["SupportedApplyTimes"] = json!([]));
    run(Command::SetBios { attributes }).await;
    let job = tree.last("/redfish/v1/Managers/iDRAC.Embedded.1/Oem/Dell/Jobs");
    assert_eq!(job["TargetSettingsURI"], settings.as_str());
}

#[tokio::test]
async fn of_several_machines_none_is_guessed() {
    let tree = Tree::dell();
    let second = "/redfish/v1/Systems/HGX_Baseboard_0";
    let mut board = tree.document(SYSTEM);
    board["Id"] = json!("HGX_Baseboard_0");
    board["@odata.id"] = json!(second);
    board.as_object_mut().unwrap().remove("Boot");
    tree.add(second, board);
    tree.edit("/redfish/v1/Systems", |systems| {
        systems["Members"].as_array_mut().unwrap().insert(0, json!({ "@odata.id": second }));
    });
    let (_server, fleet, access) = dell(&tree).await;
    assert_eq!(power(&fleet, &access, PowerAction::Off).await.0, Power::Off, "the one that can be told what to boot");
    assert_eq!(tree.document(second)["PowerState"], "On");

    let boot = tree.document(SYSTEM)["Boot"].clone();
    tree.edit(second, |board| board["Boot"] = boot);
    let error = Fleet::new(settings()).run(&access, Command::PowerStatus).await.unwrap_err();
    assert_eq!(error.code(), "bmc.ambiguous");
    assert!(error.message().contains("HGX_Baseboard_0") && error.message().contains("System.Embedded.1"), "{error}");
}

/// Three nodes in a chassis with one Redfish service: each machine is told by its serial number, and the others stay as they are.
#[tokio::test]
async fn of_a_chassis_with_several_machines_each_is_the_one_with_its_serial_number() {
    let tree = Tree::dell();
    let node = |n: usize| format!("/redfish/v1/Systems/Node{n}");
    let uuid = |n: usize| format!("4c4c4544-0058-4b10-8032-00000000000{n}");
    for n in 1..=3 {
        let mut system = tree.document(SYSTEM);
        system["Id"] = json!(format!("Node{n}"));
        system["@odata.id"] = json!(node(n));
        system["SKU"] = json!(format!("TAG000{n}"));
        system["SerialNumber"] = json!("CN-OF-ALL");
        system["UUID"] = json!(uuid(n));
        tree.add(&node(n), system);
    }
    let members: Vec<_> = (1..=3).map(|n| json!({ "@odata.id": node(n) })).collect();
    tree.edit("/redfish/v1/Systems", |systems| systems["Members"] = json!(members));
    let (_server, fleet, access) = dell(&tree).await;
    let whose = |serial: &str, uuid: Option<String>| Access {
        machine: Identity { serial: Serial::parse(serial), uuid: uuid.map(|uuid| uuid.parse().unwrap()) },
        ..access.clone()
    };
    let off = Command::SetBoot(PXE);
    let targets =
        || (1..=3).map(|n| tree.document(&node(n))["Boot"]["BootSourceOverrideTarget"].clone()).collect::<Vec<_>>();
    fleet.run(&whose("TAG0002", None), off.clone()).await.unwrap();
    assert_eq!(targets(), ["None", "Pxe", "None"]);
    // Through the same session, and by UUID where the serial number is a filler or that of the chassis.
    fleet.run(&whose("CN-OF-ALL", Some(uuid(3))), off.clone()).await.unwrap();
    assert_eq!(targets(), ["None", "Pxe", "Pxe"]);
    fleet.run(&whose("Default string", Some(uuid(1))), off.clone()).await.unwrap();
    assert_eq!(targets(), ["Pxe", "Pxe", "Pxe"]);
    let Answer::Parts { parts } = fleet.run(&whose("TAG0003", None), Command::Parts).await.unwrap() else { panic!() };
    assert_eq!(
        (parts[0].fields["product.serial"].as_str(), parts[0].fields["product.uuid"].as_str()),
        ("TAG0003", uuid(3).as_str())
    );
    // Never the first: nobody said which, or none of them is meant.
    for (stranger, said) in
        [(whose("", None), "has 3 machines: "), (whose("TAG0009", None), "TAG0009 is not one of them: ")]
    {
        let error = fleet.run(&stranger, off.clone()).await.unwrap_err();
        assert_eq!(error.code(), "bmc.ambiguous");
        for word in [said, "Node1", "Node3", "TAG0002", &uuid(2)] {
            assert!(error.message().contains(word), "{error}");
        }
    }
}
