//! Consoles of machines against `ipmi_sim` of OpenIPMI, whose serial port is a TCP connection to the test, directly and
//! through a proxy that loses datagrams; with `ipmitool` as the other one who wants the console.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket as StdSocket};
use std::process::{Child, ChildStdout, Command as Process, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use rackline::api;
use rackline::bmc::rmcp::Pace;
use rackline::bmc::sol::hub::{Hands, Status, Told, Typed, Watch};
use rackline::bmc::sol::record::{Limits, Recorder};
use rackline::bmc::sol::{Consoles, Door, Timing, text};
use rackline::bmc::{Access, Answer, Command, Doors, Fleet, Settings};
use rackline::engine::consoles::{Recorded, record};
use rackline::engine::{About, Site as EngineSite};
use rackline::lifecycle::{BmcAccount, Event, Expectation};
use rackline::machine::{MachineId, Secret, Serial};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::bmc_proxy::{Proxy, Weather};
use super::engine::{site, start_on};

const MS: Duration = Duration::from_millis(1);

/// A loopback address that no other test has.
fn address() -> Ipv4Addr {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let [_, b, c, d] = (std::process::id().wrapping_mul(241) + COUNT.fetch_add(1, Relaxed)).to_be_bytes();
    Ipv4Addr::new(127, b | 0x80, c, d.clamp(1, 254))
}

/// A BMC and the other end of its serial port.
struct Bmc {
    child: Child,
    dir: tempfile::TempDir,
    address: SocketAddr,
    port: TcpListener,
}

impl Drop for Bmc {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Bmc {
    async fn start() -> (Self, TcpStream) {
        let dir = tempfile::tempdir().unwrap();
        let at = address();
        let address = StdSocket::bind((at, 0)).unwrap().local_addr().unwrap();
        let port = TcpListener::bind((at, 0)).await.unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        let emu = "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\nmc_enable 0x20\n";
        fs::write(dir.path().join("bmc.emu"), emu).unwrap();
        let auth = "none md2 md5 straight";
        let levels = ["callback", "user", "operator", "admin"].map(|l| format!("allowed_auths_{l} {auth}\n")).concat();
        let conf = format!(
            "name \"sim\"\nset_working_mc 0x20\nstartlan 1\naddr {} {}\npriv_limit admin\n{levels}\
             guid 4c414200000000000000000000000001\nendlan\nchassis_control \"/bin/true\"\nsol \"tcp:{at}:{}\" 115200\n\
             startnow false\nuser 1 false \"\" \"\" user 10 {auth}\nuser 2 true \"admin\" \"calvin-lab\" admin 10 {auth}\n",
            at,
            address.port(),
            port.local_addr().unwrap().port(),
        );
        fs::write(dir.path().join("lan.conf"), conf).unwrap();
        let child = Self::spawn(dir.path());
        let bmc = Self { child, dir, address, port };
        let machine = bmc.machine().await;
        (bmc, machine)
    }

    fn spawn(dir: &std::path::Path) -> Child {
        let mut sim = Process::new("ipmi_sim");
        sim.args(["-n", "-c"]).arg(dir.join("lan.conf")).arg("-f").arg(dir.join("bmc.emu"));
        sim.arg("-s").arg(dir.join("state")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        sim.spawn().expect("ipmi_sim of the Debian package openipmi")
    }

    /// The serial port as the machine has it.
    async fn machine(&self) -> TcpStream {
        timeout(10_000 * MS, self.port.accept()).await.expect("ipmi_sim opens its serial port").unwrap().0
    }

    fn ipmitool(&self, words: &str) -> Process {
        let line = format!(
            "ipmitool -I lanplus -C 3 -H {} -p {} -U admin -P calvin-lab {words}",
            self.address.ip(),
            self.address.port()
        );
        let mut tool = Process::new("script");
        // It wants a terminal.
        tool.args(["-qec", &line, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        tool
    }
}

/// Waits until `ipmitool sol activate` has the console. What it says next must be read somewhere, so this is handed back.
async fn operational(mut said: ChildStdout) -> ChildStdout {
    let read = move || {
        let (mut seen, mut part) = (String::new(), [0; 256]);
        while !seen.contains("operational") {
            let length = said.read(&mut part).unwrap();
            assert!(length > 0, "ipmitool has no console: {seen}");
            seen += &String::from_utf8_lossy(&part[..length]);
        }
        said
    };
    timeout(20_000 * MS, tokio::task::spawn_blocking(read)).await.unwrap().unwrap()
}

struct Site {
    consoles: Consoles,
    fleet: Fleet,
    access: Access,
    machine: MachineId,
    _dir: tempfile::TempDir,
}

impl Site {
    fn new(bmc: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pace = Pace { first: 150 * MS, longest: 600 * MS, answer: 4000 * MS, open: 6000 * MS };
        let fleet = Fleet::new(Settings { pace, ..Settings::default() });
        let access = Access {
            doors: Doors::ipmi(bmc),
            user: "admin".into(),
            password: Secret::new("calvin-lab".to_owned()),
            machine: Default::default(),
        };
        let (given, recorder) = (access.clone(), Recorder::start(dir.path(), Limits::default()).unwrap());
        let door: Door = std::sync::Arc::new(move |_| Box::pin(std::future::ready(Ok(given.clone()))));
        let timing = Timing {
            keep_alive: 500 * MS,
            ask_again: 200 * MS,
            pause: 200 * MS,
            pause_max: 500 * MS,
            pause_refused: 500 * MS,
        };
        let consoles = Consoles::new(fleet.clone(), recorder, door, timing);
        Self { consoles, fleet, access, machine: MachineId::generate(), _dir: dir }
    }

    fn watch(&self) -> Watch {
        self.consoles.watch(self.machine, Hands::On, false)
    }

    async fn connected(&self) {
        until("the console is connected", || self.consoles.status(self.machine).0 == Status::Connected).await;
    }

    /// Everything that is recorded of the newest boot.
    fn recorded(&self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Ok(piece) = self.consoles.shelf().read(self.machine, None, all.len() as u64, 1 << 20) {
            if piece.bytes.is_empty() {
                break;
            }
            all.extend(piece.bytes);
        }
        all
    }

    /// The lines of the newest boot; notes in angle brackets.
    fn lines(&self) -> Vec<String> {
        let Ok(piece) = self.consoles.shelf().read(self.machine, None, 0, 1 << 20) else { return Vec::new() };
        let lines = text::lines(&piece);
        let show = |line: text::Line| if line.note { format!("<{}>", line.text) } else { line.text };
        lines.lines.into_iter().chain(lines.tail).map(show).collect()
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + 20_000 * MS;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(10 * MS).await;
    }
}

async fn type_in(watch: &Watch, text: &[u8]) {
    for part in text.chunks(512) {
        let mut typed = Some(Typed::Text(part.to_vec()));
        while !watch.type_in(&mut typed) || typed.is_some() {
            sleep(5 * MS).await;
        }
    }
}

/// What the machine gets, up to this.
async fn hears(machine: &mut TcpStream, last: &[u8]) -> Vec<u8> {
    let mut heard = Vec::new();
    while !heard.ends_with(last) {
        let byte = timeout(20_000 * MS, machine.read_u8()).await;
        heard.push(byte.unwrap_or_else(|_| panic!("only {:?}", String::from_utf8_lossy(&heard))).unwrap());
    }
    heard
}

/// What the watcher gets, up to this; notes are left out.
async fn sees(watch: &mut Watch, last: &str) -> String {
    let mut seen = watch.recent.clone();
    watch.recent.clear();
    while !seen.ends_with(last.as_bytes()) {
        let told = timeout(20_000 * MS, watch.next()).await;
        match told.unwrap_or_else(|_| panic!("only {:?}", String::from_utf8_lossy(&seen))) {
            Some(Told::Text(text)) => seen.extend_from_slice(&text),
            Some(_) => {}
            None => panic!("the console has ended"),
        }
    }
    String::from_utf8(seen).unwrap()
}

/// Printable, and each place different from the others.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..).map(|n: u32| format!("{n:07}\n")).flat_map(String::into_bytes).take(bytes).collect()
}

#[tokio::test]
async fn both_directions_while_other_commands_go_on() {
    let (bmc, mut machine) = Bmc::start().await;
    let site = Site::new(bmc.address);
    site.consoles.record(site.machine, false);
    let mut watch = site.watch();
    assert!(watch.types);
    site.connected().await;
    machine.write_all(b"GRUB loading\r\nlogin: ").await.unwrap();
    assert_eq!(sees(&mut watch, "login: ").await, "GRUB loading\r\nlogin: ");
    for _ in 0..3 {
        let answer = site.fleet.run(&site.access, Command::Info).await.unwrap();
        assert!(matches!(answer, Answer::Info(_)));
    }
    // Somebody else sees what was printed and does not type.
    let mut other = site.watch();
    assert!(!other.types);
    type_in(&other, b"nobody\r").await;
    type_in(&watch, b"root\r").await;
    assert_eq!(hears(&mut machine, b"\r").await, b"root\r");
    machine.write_all(b"root\r\n# ").await.unwrap();
    assert_eq!(sees(&mut other, "# ").await, "GRUB loading\r\nlogin: root\r\n# ");
    // Then takes the keys.
    let instead = site.consoles.watch(site.machine, Hands::Instead, false);
    until("the first is told", || {
        matches!(futures::FutureExt::now_or_never(watch.next()), Some(Some(Told::Displaced)))
    })
    .await;
    type_in(&watch, b"not me\r").await;
    assert!(instead.type_in(&mut Some(Typed::Break)));
    type_in(&instead, b"b").await;
    // Telnet's sign for a break is what ipmi_sim makes of it, with the next key.
    assert_eq!(hears(&mut machine, b"b").await, b"\xff\xf3b");
    until("the recording is written", || site.lines() == ["GRUB loading", "login: root", "#"]).await;
    site.consoles.leave(site.machine);
    drop((watch, other, instead));
    until("nobody wants it", || site.consoles.status(site.machine).0 == Status::Idle).await;
    // The BMC has its console back.
    let mut tool = bmc.ipmitool("sol activate").spawn().unwrap();
    let _said = operational(tool.stdout.take().unwrap()).await;
    tool.kill().unwrap();
    tool.wait().unwrap();
}

#[tokio::test]
async fn a_burst_comes_whole_and_a_long_paste_too() {
    let (bmc, mut machine) = Bmc::start().await;
    let site = Site::new(bmc.address);
    site.consoles.record(site.machine, false);
    let watch = site.watch();
    site.connected().await;
    let burst = pattern(64 << 10);
    machine.write_all(&burst).await.unwrap();
    until("64 KiB are recorded", || site.recorded().len() >= burst.len()).await;
    assert!(site.recorded() == burst, "the recording differs");
    // Its buffer holds 32 bytes: parts are accepted, and refused, and sent again.
    let mut paste = pattern(6000);
    paste.push(b'!');
    let typing = type_in(&watch, &paste);
    let (heard, ()) = tokio::join!(hears(&mut machine, b"!"), typing);
    assert!(heard == paste, "{} of {} bytes", heard.len(), paste.len());
    site.consoles.close().await;
}

#[tokio::test]
async fn lost_packets_lose_no_text() {
    let (bmc, mut machine) = Bmc::start().await;
    let weather = Weather { loss: 15, doubled: 10, late: 5, garbage: true };
    let proxy = Proxy::start(address(), bmc.address, weather).await;
    let site = Site::new(proxy.address);
    site.consoles.record(site.machine, false);
    let watch = site.watch();
    site.connected().await;
    let (text, mut keys) = (pattern(1500), pattern(200));
    keys.push(b'!');
    machine.write_all(&text).await.unwrap();
    let (heard, ()) = tokio::join!(hears(&mut machine, b"!"), type_in(&watch, &keys));
    assert!(heard == keys, "{:?}", String::from_utf8_lossy(&heard));
    until("all is recorded", || site.recorded().len() >= text.len()).await;
    assert_eq!(String::from_utf8(site.recorded()).unwrap(), String::from_utf8(text).unwrap());
    assert!(proxy.lost() > 3, "{}", proxy.lost());
}

#[tokio::test]
async fn a_console_that_somebody_has_is_left_or_taken_over() {
    let (bmc, mut machine) = Bmc::start().await;
    let mut tool = bmc.ipmitool("sol activate").spawn().unwrap();
    let site = Site::new(bmc.address);
    let _said = operational(tool.stdout.take().unwrap()).await;
    let mut watch = site.watch();
    let taken = |status: &Status| matches!(status, Status::Waiting { why, .. } if why.contains("somebody"));
    until("the console is in use", || taken(&site.consoles.status(site.machine).0)).await;
    let Status::Waiting { why, hint } = site.consoles.status(site.machine).0 else { panic!() };
    assert!(why.contains("has the console of BMC") && hint.unwrap().contains("--force"), "{why}");
    assert!(tool.try_wait().unwrap().is_none(), "ipmitool was left alone");
    let by_force = site.consoles.watch(site.machine, Hands::On, true);
    site.connected().await;
    machine.write_all(b"ours now\n").await.unwrap();
    assert_eq!(sees(&mut watch, "now\n").await, "ours now\n");
    tool.kill().unwrap();
    tool.wait().unwrap();
    // And the other way round: somebody ends ours. It is noticed, and taken up again.
    drop(by_force);
    // The one that was killed may still be giving its console back, and ours with it: then there is none to end for a moment.
    until("somebody ends it", || bmc.ipmitool("sol deactivate").status().unwrap().success()).await;
    until("the end is noticed", || site.consoles.status(site.machine).0 != Status::Connected).await;
    site.connected().await;
    machine.write_all(b"and again\n").await.unwrap();
    assert_eq!(sees(&mut watch, "again\n").await, "and again\n");
}

#[tokio::test]
async fn a_bmc_that_dies_leaves_a_gap_in_the_recording() {
    let (mut bmc, mut machine) = Bmc::start().await;
    let site = Site::new(bmc.address);
    site.consoles.record(site.machine, false);
    site.connected().await;
    machine.write_all(b"before\n").await.unwrap();
    until("it is recorded", || site.lines() == ["before"]).await;
    bmc.child.kill().unwrap();
    bmc.child.wait().unwrap();
    until("the loss is noticed", || matches!(site.consoles.status(site.machine).0, Status::Waiting { .. })).await;
    bmc.child = Bmc::spawn(bmc.dir.path());
    let mut machine = bmc.machine().await;
    site.connected().await;
    machine.write_all(b"after\n").await.unwrap();
    until("the rest is recorded", || site.lines().last().is_some_and(|line| line == "after")).await;
    let lines = site.lines();
    assert!(lines.len() >= 4 && lines[1].starts_with("<no console: BMC"), "{lines:?}");
    assert!(lines[lines.len() - 2].starts_with("<console back after"), "{lines:?}");
}

/// `ipmi_sim` ends a session after 30 s without an IPMI message, whatever goes on at its console.
#[tokio::test]
async fn a_machine_that_prints_all_the_time_keeps_its_console() {
    let (bmc, mut machine) = Bmc::start().await;
    let site = Site::new(bmc.address);
    site.consoles.record(site.machine, false);
    site.connected().await;
    let expected: Vec<String> = (0..105).map(|n| format!("line {n}")).collect();
    for line in &expected {
        machine.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        sleep(320 * MS).await;
    }
    until("all is recorded, and nothing else", || site.lines() == expected).await;
}

#[tokio::test]
async fn a_console_that_is_switched_off_is_switched_on_with_a_note() {
    let (bmc, mut machine) = Bmc::start().await;
    assert!(bmc.ipmitool("sol set enabled false").status().unwrap().success());
    let site = Site::new(bmc.address);
    site.consoles.record(site.machine, false);
    site.connected().await;
    machine.write_all(b"hello\n").await.unwrap();
    let expected = ["<Serial over LAN was switched off in the BMC, and has been switched on>", "hello"];
    until("the note and the text", || site.lines() == expected).await;
}

/// An appliance with one machine, kvm-1, at this BMC, as far as consoles need one.
struct Appliance {
    url: String,
    stop: CancellationToken,
    consoles: Consoles,
    machine: MachineId,
    dir: tempfile::TempDir,
}

impl Appliance {
    async fn start(bmc: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        let fleet = Fleet::new(Settings::default());
        let (engine, stop) = start_on(EngineSite { fleet: fleet.clone(), ..site(at).await }).await;
        let serial = Serial::parse("7XK2M13").unwrap();
        let expectation = Expectation {
            bmc: Some(BmcAccount { address: bmc, redfish: None, user: "admin".into() }),
            ..Expectation::new("kvm-1", serial.clone())
        };
        let about = About::Serial { serial, name: "kvm-1".into() };
        let machine = engine.submit(about, Event::Expected(expectation)).await.unwrap();
        engine.set_bmc_password(machine, &Secret::new("calvin-lab".to_owned())).await.unwrap();
        let recorder = Recorder::start(&at.join("console"), Limits::default()).unwrap();
        let consoles = Consoles::new(fleet, recorder, engine.console_door(), Timing::default());
        tokio::spawn(record(engine.clone(), consoles.clone(), Recorded::Always, stop.clone()));
        let router = api::console::people(api::console::Site { engine, consoles: consoles.clone() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, stop, consoles, machine, dir }
    }

    fn command(&self, words: &str) -> String {
        format!("{} console --url {} {words}", env!("CARGO_BIN_EXE_rackline"), self.url)
    }

    async fn run(&self, words: &str) -> String {
        let output = tokio::process::Command::new("sh").args(["-c", &self.command(words)]).output().await.unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    /// In a terminal of its own. Beside it stand `before` and `after`, what the terminal was set to.
    fn terminal(&self, command: &str) -> tokio::process::Child {
        let at = self.dir.path().display();
        let line = format!("stty -g > {at}/before; {command}; stty -g > {at}/after");
        let mut tool = tokio::process::Command::new("script");
        tool.args(["-qec", &line, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        tool.spawn().unwrap()
    }

    fn assert_terminal_is_as_before(&self) {
        let [before, after] = ["before", "after"].map(|name| fs::read_to_string(self.dir.path().join(name)).unwrap());
        assert!(!before.is_empty() && before == after, "{before} {after}");
    }
}

/// Reads until this is there.
async fn reads(from: &mut (impl AsyncReadExt + Unpin), last: &str) -> String {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(last) {
        let mut part = [0; 4096];
        let count = timeout(20_000 * MS, from.read(&mut part)).await;
        let count = count.unwrap_or_else(|_| panic!("only {:?}", String::from_utf8_lossy(&read))).unwrap();
        assert!(count > 0, "ended after {:?}", String::from_utf8_lossy(&read));
        read.extend_from_slice(&part[..count]);
    }
    String::from_utf8_lossy(&read).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_has_the_console_and_gives_the_terminal_back() {
    let (bmc, mut machine) = Bmc::start().await;
    let appliance = Appliance::start(bmc.address).await;
    until("it is recorded", || appliance.consoles.status(appliance.machine) == (Status::Connected, true)).await;
    machine.write_all(b"GRUB \x1b[31mloading\x1b[0m\r\nlogin: ").await.unwrap();
    let mut terminal = appliance.terminal(&appliance.command("kvm-1"));
    let (mut keys, mut screen) = (terminal.stdin.take().unwrap(), terminal.stdout.take().unwrap());
    // What was printed before is there, with its colours.
    let shown = reads(&mut screen, "connected").await;
    assert!(shown.contains("GRUB \x1b[31mloading\x1b[0m\r\nlogin: "), "{shown:?}");
    keys.write_all(b"ro\x03ot\r").await.unwrap();
    assert_eq!(hears(&mut machine, b"\r").await, b"ro\x03ot\r");
    machine.write_all(b"Password: ").await.unwrap();
    reads(&mut screen, "Password: ").await;
    // A second one looks on.
    let mut second = appliance.terminal(&appliance.command("kvm-1"));
    let mut second_screen = second.stdout.take().unwrap();
    reads(&mut second_screen, "somebody else types here").await;
    second.kill().await.unwrap();
    keys.write_all(b"~?").await.unwrap();
    reads(&mut screen, "end the console").await;
    keys.write_all(b"~.").await.unwrap();
    reads(&mut screen, "[closed]").await;
    assert!(terminal.wait().await.unwrap().success());
    appliance.assert_terminal_is_as_before();
    // Ended by a signal, the terminal is as before too.
    let mut terminal = appliance.terminal(&format!("timeout --foreground -s TERM 2 {}", appliance.command("kvm-1")));
    let _open = terminal.stdin.take();
    reads(&mut terminal.stdout.take().unwrap(), "[closed]").await;
    terminal.wait().await.unwrap();
    appliance.assert_terminal_is_as_before();
    // Off a terminal: what was recorded, without escape sequences.
    let log = appliance.run("kvm-1 --log").await;
    assert_eq!(log, "[rackline: expected]\nGRUB loading\nlogin: Password:\n");
    let boots = appliance.run("kvm-1 --boots").await;
    assert!(boots.contains("It is recorded now. The console is connected."), "{boots}");
    let unknown = appliance.run("kvm-9").await;
    assert!(unknown.contains("there is no machine") && unknown.contains("hint"), "{unknown}");
    appliance.stop.cancel();
    appliance.consoles.close().await;
}
