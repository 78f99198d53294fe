//! Three machines get one image from each other by the plans of a real appliance: its API, its frame server, its timeline.
//! On the loopback, each machine with an address of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rackline::api;
use rackline::engine::{About, Engine};
use rackline::httpd;
use rackline::image::{Library, Manifest, SigningKey};
use rackline::lifecycle::{AgentSeen, Event, Expectation, State};
use rackline::link::{Help, Mode, SwarmPlan, SwarmReport, SwarmSource};
use rackline::machine::{Digest, MachineId, Place, Serial};
use rackline::store::{self, Db};
use rackline::swarm::announce::{Answer, announcer, linger};
use rackline::swarm::plan::Settings;
use rackline::swarm::tracker::{Host, Hosts, SwarmList, SwarmView, Tracker, Who};
use rackline::swarm::{Frame, Holdings, RamKeep, Relay, RelayLimits, ServeLimits, Server, Source, Wanted};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::engine::{site, start_on};
use crate::fixture::{Image, noise};

const MIB: usize = 1 << 20;
const IMAGE: usize = 20 * MIB;
/// Longer than anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn loopback(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 77, 0, last).into()
}

/// The appliance's folder: state, signing key and one image, which does not compress.
struct Home {
    dir: tempfile::TempDir,
    manifest: Arc<Manifest>,
    digest: Digest,
    data: Vec<u8>,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let key = SigningKey::load_or_create(&dir.path().join("signing.key")).unwrap();
        let image = Image::pack("test", &noise("rackline tracker", IMAGE), MIB / 2, &key);
        image.store(&dir.path().join("images"));
        Self { dir, digest: image.signed.digest(), manifest: Arc::new(image.manifest), data: image.data }
    }

    /// Of a machine that has nothing yet.
    fn report(&self) -> SwarmReport {
        SwarmReport {
            image: self.digest,
            port: 4000,
            frames: 0,
            bytes: 0,
            lacking: self.manifest.chunks.len() as u32,
            from: Vec::new(),
            garbage: Vec::new(),
            starved_ms: 0,
            leaving: false,
            seat: None,
        }
    }
}

/// Ends like a process when it is dropped: with all its connections.
struct Appliance {
    engine: Engine,
    /// API for agents and for people.
    web: SocketAddr,
    frames: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Appliance {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

/// On this port, as soon as it is free.
async fn listen(port: u16) -> std::net::TcpListener {
    let begun = Instant::now();
    loop {
        match std::net::TcpListener::bind((loopback(1), port)) {
            Ok(listener) => {
                listener.set_nonblocking(true).unwrap();
                return listener;
            }
            Err(e) => assert!(begun.elapsed() < PATIENCE, "{e}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl Appliance {
    /// `uplink`: bytes a second. `ports` of the one before, or 0.
    async fn start(home: &Path, uplink: u64, ports: [u16; 2]) -> Self {
        Self::helped_by(None, home, uplink, ports).await
    }

    async fn helped_by(hosts: Option<Hosts>, home: &Path, uplink: u64, ports: [u16; 2]) -> Self {
        let (web, frames) = (listen(ports[0]).await, listen(ports[1]).await);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let addresses = (web.local_addr().unwrap(), frames.local_addr().unwrap());
        let home = home.to_owned();
        let engine = runtime.spawn(async move { serve(&home, uplink, hosts, web, frames).await }).await.unwrap();
        Self { engine, web: addresses.0, frames: addresses.1, runtime: Some(runtime) }
    }

    async fn stop(self) -> [u16; 2] {
        [self.web.port(), self.frames.port()]
    }

    async fn expect(&self, name: &str, rack: &str) -> MachineId {
        let serial = Serial::parse(&format!("SER{name}")).unwrap();
        let place = Some(Place { rack: rack.into(), unit: 1 });
        let row = Expectation { place, ..Expectation::new(name, serial.clone()) };
        self.engine.submit(About::Serial { serial, name: name.into() }, Event::Expected(row)).await.unwrap()
    }

    async fn swarm(&self) -> Option<SwarmView> {
        let client = api::client::Client::new(&format!("http://{}", self.web)).unwrap();
        let mut list: SwarmList = client.get("/api/v1/swarm").await.unwrap();
        assert!(list.swarms.len() <= 1);
        list.swarms.pop()
    }

    /// Until the timeline of this machine has such a sentence.
    async fn told(&self, id: MachineId, part: &str) -> String {
        let begun = Instant::now();
        loop {
            let events = self.engine.db().events(id, 0, 100).await.unwrap();
            let sentences: Vec<String> = events.iter().map(|e| e.event.sentence()).collect();
            if let Some(found) = sentences.iter().find(|s| s.contains(part)) {
                return found.clone();
            }
            assert!(begun.elapsed() < PATIENCE, "no {part:?} in {sentences:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn serve(
    home: &Path,
    uplink: u64,
    hosts: Option<Hosts>,
    web: std::net::TcpListener,
    frames: std::net::TcpListener,
) -> Engine {
    let site = site(home).await;
    let secret = site.seal.derive("swarm");
    let library = Arc::new(Library::open(&home.join("images"), &[site.key.public()]).unwrap());
    let (engine, stop) = start_on(site).await;
    let server = Server::new(ServeLimits::default());
    let frames = TcpListener::from_std(frames).unwrap();
    let port = frames.local_addr().unwrap().port();
    let settings = Settings { uplink: Some(uplink), ..Settings::default() };
    let tracker = Arc::new(Tracker::new(library, server.clone(), settings, port, secret).helped_by(hosts));
    tokio::spawn(server.serve(frames, stop.clone()));
    let swarms = api::swarm::Site { engine: engine.clone(), tracker };
    tokio::spawn(api::swarm::watch(swarms.clone(), stop.clone()));
    let router = api::swarm::agents(swarms.clone()).merge(api::swarm::people(swarms));
    let web_server = httpd::Server::new(|_| None, router, httpd::Limits::default(), Default::default(), stop);
    tokio::spawn(web_server.run(TcpListener::from_std(web).unwrap()));
    engine
}

/// A machine's way to the appliance, from an address of its own.
#[derive(Clone)]
struct Link {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Link {
    fn new(appliance: &Appliance, id: MachineId, address: IpAddr) -> Self {
        let http = reqwest::Client::builder().no_proxy().local_address(address).build().unwrap();
        let url = format!("http://{}/agent/v1/{id}/swarm", appliance.web);
        Self { http, url, token: appliance.engine.token(id) }
    }

    async fn send(&self, report: &SwarmReport) -> Result<reqwest::Response, reqwest::Error> {
        self.http.post(&self.url).bearer_auth(&self.token).json(report).send().await
    }

    async fn tell(self, report: SwarmReport) -> Answer {
        match self.send(&report).await {
            Ok(answer) if answer.status() == 200 => answer.json().await.map_or(Answer::Lost, Answer::Plan),
            Ok(answer) if answer.status() == 404 => Answer::Never,
            _ => Answer::Lost,
        }
    }

    async fn plan(&self, report: &SwarmReport) -> SwarmPlan {
        let answer = self.send(report).await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.json().await.unwrap()
    }
}

/// Fetches the image as an agent does, serves it on, and stays until nobody needs it. Its bytes by who sent them.
async fn member(link: Link, home: &Home, address: IpAddr) -> Vec<SwarmSource> {
    let holdings = Arc::new(Holdings::empty(home.digest, home.manifest.clone(), Box::new(RamKeep::new(u64::MAX))));
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (announcer, mut plan) = announcer();
    let relay = Arc::new(Relay::new(holdings.clone(), plan.clone(), None, |_| false, |_| {}, RelayLimits::default()));
    let server = Server::new(ServeLimits::default());
    let (leave, stop) = (CancellationToken::new(), CancellationToken::new());
    let serving = tokio::spawn(server.clone().serve(listener, stop.clone()));
    let reporter = relay.clone();
    let shared = holdings.clone();
    let announcing = tokio::spawn(announcer.run(
        leave.clone(),
        move |leaving| reporter.report(port, leaving),
        move |report| link.clone().tell(report),
        move |plan| {
            server.share(shared.clone(), &plan.key);
            server.limit(plan.upload_limit);
        },
    ));
    let wanted: Vec<Wanted> =
        home.manifest.chunks.iter().map(|c| Wanted { index: c.index, offset: c.offset, len: c.length }).collect();
    let (sink, mut frames) = mpsc::channel::<Frame>(4);
    let check = async {
        let mut count = 0;
        while let Some(frame) = frames.recv().await {
            let chunk = &home.manifest.chunks[holdings.frame_of(frame.index).unwrap() as usize];
            let at = chunk.offset as usize;
            assert!(frame.bytes == home.data[at..at + chunk.length as usize], "chunk {}", frame.index);
            count += 1;
        }
        count
    };
    let fetched = async { tokio::join!(relay.fetch(&wanted, sink), check) };
    let (fetched, count) = tokio::time::timeout(PATIENCE, fetched).await.expect("it does not end");
    fetched.unwrap();
    assert_eq!(count, wanted.len());
    // The plan that follows its being complete.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(linger(&mut plan, PATIENCE).await);
    leave.cancel();
    announcing.await.unwrap();
    stop.cancel();
    serving.await.unwrap();
    relay.report(port, true).from
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_machines_follow_one_another_and_the_shares_are_counted() {
    let home = Home::new();
    let appliance = Appliance::start(home.dir.path(), 8 * MIB as u64, [0, 0]).await;
    let names = ["kvm-1", "kvm-2", "kvm-3"];
    let mut ids = Vec::new();
    for (name, rack) in names.into_iter().zip(["A", "A", "B"]) {
        ids.push(appliance.expect(name, rack).await);
    }
    let members = (2..).zip(&ids).map(|(n, id)| member(Link::new(&appliance, *id, loopback(n)), &home, loopback(n)));
    let from = futures::future::join_all(members).await;

    let sent: u64 = from.iter().flatten().filter(|s| s.address == appliance.frames).map(|s| s.bytes).sum();
    let all: u64 = from.iter().flatten().map(|s| s.bytes).sum();
    let copies = |bytes: u64| bytes as f64 / IMAGE as f64;
    assert!(
        copies(all) >= 3.0 && copies(sent) < 1.7,
        "{} copies, of them {} by the appliance",
        copies(all),
        copies(sent)
    );
    let swarm = appliance.swarm().await.unwrap();
    assert_eq!((swarm.from_appliance_bytes, swarm.from_unknown_bytes), (sent, 0));
    assert_eq!(swarm.from_same_rack_bytes + swarm.from_other_racks_bytes, all - sent);
    assert_eq!(swarm.members.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), names);
    assert!(swarm.members.iter().all(|m| m.state == "left" && m.share == 1.0), "{:?}", swarm.members);
    let table = tokio::task::spawn_blocking(move || {
        let url = format!("http://{}", appliance.web);
        let run = Command::new(env!("CARGO_BIN_EXE_rackline")).args(["swarm", "--url", &url]).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        (appliance, String::from_utf8(run.stdout).unwrap())
    });
    let (appliance, table) = table.await.unwrap();
    assert!(table.starts_with("test-1, 20 MiB: 3 of 3 machines have it"), "{table}");
    assert!(names.iter().all(|name| table.lines().any(|l| l.contains(name) && l.contains("100 %"))), "{table}");
    for (id, from) in ids.iter().zip(&from) {
        let peers: u64 = from.iter().filter(|s| s.address != appliance.frames).map(|s| s.bytes).sum();
        let all: u64 = from.iter().map(|s| s.bytes).sum();
        let sentence = appliance.told(*id, "has all of test-1").await;
        assert!(sentence.ends_with(&format!("{} % from other machines", peers * 100 / all)), "{sentence}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_loses_power_is_closed_up_around() {
    let home = Arc::new(Home::new());
    let appliance = Appliance::start(home.dir.path(), 4 * MIB as u64, [0, 0]).await;
    let (mut ids, mut machines) = (Vec::new(), Vec::new());
    for (n, name) in (71..).zip(["kvm-1", "kvm-2", "kvm-3"]) {
        let id = appliance.expect(name, "A").await;
        let (link, home) = (Link::new(&appliance, id, loopback(n)), home.clone());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let running = runtime.spawn(async move { member(link, &home, loopback(n)).await });
        ids.push(id);
        machines.push((runtime, running));
        // So that they stand in this order.
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let before = appliance.swarm().await.unwrap();
    assert!(before.members.len() == 3 && before.members.iter().all(|m| m.share < 1.0), "{before:?}");
    // The last one follows the second, or the first where those two have changed places.
    let front = before.members[2].follows.clone().unwrap();
    let victim = before.members.iter().position(|m| m.name == front).unwrap();
    machines.remove(victim).0.shutdown_background();
    appliance.told(ids[victim], "fell silent while it fetched test-1").await;
    assert_eq!(appliance.swarm().await.unwrap().members[victim].state, "silent");
    let mut from: Vec<Vec<SwarmSource>> = Vec::new();
    for (runtime, running) in machines {
        from.push(running.await.unwrap());
        runtime.shutdown_background();
    }
    let last: Vec<IpAddr> = from[1].iter().filter(|s| s.bytes > 0).map(|s| s.address.ip()).collect();
    assert!(
        last.contains(&loopback(71 + victim as u8)) && last.len() > 1,
        "a part from it, the rest elsewhere: {from:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_appliance_restarts_while_three_machines_fetch() {
    let home = Home::new();
    let appliance = Appliance::start(home.dir.path(), 4 * MIB as u64, [0, 0]).await;
    let mut links = Vec::new();
    for (n, name) in (2..).zip(["kvm-1", "kvm-2", "kvm-3"]) {
        let id = appliance.expect(name, "A").await;
        links.push((n, Link::new(&appliance, id, loopback(10 + n))));
    }
    let members = links.iter().map(|(n, link)| member(link.clone(), &home, loopback(10 + n)));
    let restart = async {
        tokio::time::sleep(Duration::from_millis(2500)).await;
        let before = appliance.swarm().await.unwrap();
        assert!(before.members.len() == 3 && before.members.iter().any(|m| m.share < 1.0), "{before:?}");
        let ports = appliance.stop().await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        Appliance::start(home.dir.path(), 8 * MIB as u64, ports).await
    };
    let (from, appliance) = tokio::join!(futures::future::join_all(members), restart);
    let after = appliance.swarm().await.unwrap();
    assert_eq!(after.members.len(), 3, "their reports have built it again");
    assert!(after.members.iter().all(|m| m.share == 1.0));
    let sent: u64 = from.iter().flatten().filter(|s| s.address == appliance.frames).map(|s| s.bytes).sum();
    assert!(sent < 2 * IMAGE as u64, "{sent}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_a_person_waits_for_goes_to_the_front() {
    let home = Home::new();
    let appliance = Appliance::start(home.dir.path(), 1 << 30, [0, 0]).await;
    let mut links = Vec::new();
    for (n, name) in (51..).zip(["kvm-1", "kvm-2"]) {
        links.push(Link::new(&appliance, appliance.expect(name, "A").await, loopback(n)));
        links.last().unwrap().plan(&home.report()).await;
    }
    let client = api::client::Client::new(&format!("http://{}", appliance.web)).unwrap();
    let _: SwarmList = client.post("/api/v1/swarm/first/kvm-2", &()).await.unwrap();
    assert_eq!(links[1].plan(&home.report()).await.predecessors, [appliance.frames]);
    let second = SocketAddr::new(loopback(52), 4000);
    assert_eq!(links[0].plan(&home.report()).await.predecessors, [second, appliance.frames]);
    assert!(client.post::<SwarmList>("/api/v1/swarm/first/kvm-9", &()).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_machines_say_is_held_against_what_is_known() {
    let home = Home::new();
    let appliance = Appliance::start(home.dir.path(), 1 << 30, [0, 0]).await;
    let (first, second) = (appliance.expect("kvm-1", "A").await, appliance.expect("kvm-2", "A").await);
    let [one, two] = [(first, 31), (second, 32)].map(|(id, n)| Link::new(&appliance, id, loopback(n)));
    let report = home.report();
    // Nobody reports for another one, nobody swarms around what is not there.
    let forger = Link { token: two.token.clone(), ..one.clone() };
    assert_eq!(forger.send(&report).await.unwrap().status(), 403);
    let nameless = SwarmReport { image: Digest([9; 32]), ..report.clone() };
    assert_eq!(one.clone().tell(nameless).await, Answer::Never);
    let long = SwarmReport { garbage: vec![appliance.web; 9000], ..report.clone() };
    assert!(matches!(one.send(&long).await.unwrap().status().as_u16(), 413 | 422));
    assert!(appliance.swarm().await.is_none());

    let plan = one.plan(&report).await;
    assert_eq!(plan.predecessors, [appliance.frames], "at the address by which the machine came");
    let plan = two.plan(&report).await;
    let peer = SocketAddr::new(loopback(31), 4000);
    assert_eq!(plan.predecessors, [peer, appliance.frames]);

    let huge = |address| SwarmSource { address, bytes: u64::MAX };
    let lies =
        SwarmReport { bytes: u64::MAX, frames: 1, from: vec![huge(peer), huge(appliance.web)], ..report.clone() };
    two.plan(&lies).await;
    let swarm = appliance.swarm().await.unwrap();
    let sum = swarm.from_appliance_bytes + swarm.from_same_rack_bytes;
    assert!(sum <= 4 * home.manifest.data_size, "{swarm:?}");

    let accuses = SwarmReport { garbage: vec![peer], ..report.clone() };
    assert_eq!(two.plan(&accuses).await.predecessors, [appliance.frames]);
    appliance.told(first, "sent kvm-2 data that is not of test-1").await;
    appliance.told(second, "got data from kvm-1").await;
    assert_eq!(
        one.plan(&report).await.predecessors[0],
        SocketAddr::new(loopback(32), 4000),
        "it is fed, and feeds nobody"
    );

    // Then both fall silent, one after the other.
    for _ in 0..5 {
        two.plan(&report).await;
        tokio::time::sleep(Duration::from_millis(900)).await;
    }
    appliance.told(first, "fell silent while it fetched test-1").await;
    let states: Vec<String> = appliance.swarm().await.unwrap().members.into_iter().map(|m| m.state).collect();
    assert_eq!(states, ["silent", "fetching"]);
}

const HOSTS: Hosts = Hosts { upload_limit: 25_000_000, space: 20 << 30 };

/// The planner's side by itself, with hosts that may help.
struct Hall {
    home: Home,
    tracker: Arc<Tracker>,
}

impl Hall {
    fn new() -> Self {
        let home = Home::new();
        let key = SigningKey::load_or_create(&home.dir.path().join("signing.key")).unwrap();
        let library = Arc::new(Library::open(&home.dir.path().join("images"), &[key.public()]).unwrap());
        let tracker = Tracker::new(library, Server::new(ServeLimits::default()), Settings::default(), 7070, [7; 32]);
        Self { home, tracker: Arc::new(tracker.helped_by(Some(HOSTS))) }
    }

    fn says(&self, machine: MachineId, rack: &str, host: bool, report: &SwarmReport) -> SwarmPlan {
        let who = Who { machine, rack: rack.into(), address: loopback(9), reached: loopback(1), host };
        self.tracker.report(&who, report).unwrap()
    }

    /// Asks as a host does, for so long.
    async fn ask(&self, machine: MachineId, rack: &str, keeps: bool, millis: u64) -> Option<Help> {
        let kept = keeps.then_some(self.home.digest).into_iter().collect();
        let host = Host { machine, rack: rack.into(), kept };
        tokio::time::timeout(Duration::from_millis(millis), self.tracker.help(&host)).await.ok()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_of_a_rack_are_asked_each_once() {
    let hall = Hall::new();
    let hosts: Vec<MachineId> = (0..6).map(|_| MachineId::generate()).collect();
    let ask = |n: usize, rack| hall.ask(hosts[n], rack, true, 1500);
    let begins = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        hall.says(MachineId::generate(), "A", false, &hall.home.report());
    };
    // All of them wait when the first machine of their rack begins; one stands in another rack.
    let racks = ["A", "A", "A", "A", "A", "B"];
    let waiting = futures::future::join_all(racks.into_iter().enumerate().map(|(n, rack)| ask(n, rack)));
    let (answers, ()) = tokio::join!(waiting, begins);
    let help = Help { manifest: hall.home.digest, upload_limit: 25_000_000, space: 20 << 30 };
    assert!(answers.iter().flatten().all(|answer| *answer == help));
    let asked: Vec<usize> = (0..6).filter(|n| answers[*n].is_some()).collect();
    assert!(asked.len() == 2 && !asked.contains(&5), "{asked:?}");

    let frames = hall.home.manifest.chunks.len() as u32;
    let complete = SwarmReport { frames, lacking: 0, ..hall.home.report() };
    for n in &asked {
        let plan = hall.says(hosts[*n], "A", true, &complete);
        assert!(plan.needed && plan.predecessors.is_empty());
    }
    let others: Vec<usize> = (0..5).filter(|n| !asked.contains(n)).collect();
    assert_eq!(hall.ask(hosts[others[0]], "A", true, 100).await, None, "two are enough");
    let list = hall.tracker.status(|id| id.to_string());
    let of = |id: MachineId| list.swarms[0].members.iter().find(|m| m.machine == id).unwrap();
    assert!(asked.iter().all(|n| of(hosts[*n]).state == "done"));

    // One of them goes: another one is asked, and never the same again.
    hall.says(hosts[asked[0]], "A", true, &SwarmReport { leaving: true, ..complete });
    assert_eq!(hall.ask(hosts[asked[0]], "A", true, 100).await, None);
    assert_eq!(hall.ask(hosts[others[0]], "A", true, 1000).await, Some(help));
    assert_eq!(hall.ask(hosts[5], "B", true, 100).await, None, "nobody fetches there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_keep_the_image_are_asked_before_those_that_do_not() {
    let hall = Hall::new();
    let [keeper, other, third] = [(), (), ()].map(|()| MachineId::generate());
    let begun = Instant::now();
    hall.says(MachineId::generate(), "", false, &hall.home.report());
    assert_eq!(hall.ask(other, "A", true, 100).await, None, "where its rack is known, unknown ones are others");
    assert_eq!(hall.ask(other, "", false, 500).await, None, "a keeper may come yet");
    assert!(hall.ask(other, "", false, 10_000).await.is_some() && begun.elapsed() >= Duration::from_secs(3));
    // It lacks everything and waits. That does not count against those that have it.
    assert!(hall.says(other, "", true, &hall.home.report()).predecessors.is_empty());
    assert!(hall.ask(third, "", false, 100).await.is_some());
    hall.says(third, "", true, &hall.home.report());
    assert_eq!(hall.ask(MachineId::generate(), "", false, 100).await, None, "two of these are enough");
    assert!(hall.ask(keeper, "", true, 100).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_do_not_help_unless_the_site_lets_them() {
    let home = Home::new();
    let appliance = Appliance::start(home.dir.path(), 1 << 30, [0, 0]).await;
    let id = appliance.expect("kvm-1", "A").await;
    let link = Link::new(&appliance, id, loopback(61));
    let url = link.url.replace("/swarm", "/help?kept=");
    let ask = |token: String| link.http.get(&url).bearer_auth(token).send();
    assert_eq!(ask(link.token.clone()).await.unwrap().status(), 404);
    assert_eq!(ask("0".repeat(64)).await.unwrap().status(), 403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivered_host_feeds_its_rack_and_one_that_is_not_is_left_alone() {
    let home = Home::new();
    let before = Appliance::start(home.dir.path(), 1 << 30, [0, 0]).await;
    let mut ids = Vec::new();
    for name in ["kvm-1", "kvm-2", "kvm-3"] {
        ids.push(before.expect(name, "A").await);
    }
    let ports = before.stop().await;
    let db = Db::open(home.dir.path()).await.unwrap();
    for mut machine in db.machines().await.unwrap() {
        let agent = AgentSeen { mode: Mode::Resident, boot_id: Default::default(), version: "1".into(), at: 0 };
        machine.agent = (machine.id != ids[2]).then_some(agent);
        if machine.id == ids[0] {
            let delivered = serde_json::json!({ "state": "delivered", "checks": [], "passport": {} });
            machine.state = serde_json::from_value::<State>(delivered).unwrap();
        }
        let mut tx = db.write().await.unwrap();
        store::machines::save(&mut tx, &machine).await.unwrap();
        tx.commit().await.unwrap();
    }
    drop(db);

    let appliance = Appliance::helped_by(Some(HOSTS), home.dir.path(), 1 << 30, ports).await;
    let links: Vec<Link> = (81..).zip(&ids).map(|(n, id)| Link::new(&appliance, *id, loopback(n))).collect();
    let ask = |n: usize| {
        let url = format!("{}?kept={}", links[n].url.replace("/swarm", "/help"), home.digest);
        links[n].http.get(url).bearer_auth(&links[n].token).timeout(Duration::from_secs(3)).send()
    };
    let begins = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        links[2].plan(&home.report()).await
    };
    let (delivered, other, new, plan) =
        tokio::join!(async { ask(0).await?.json::<Help>().await }, ask(1), ask(2), begins);
    assert_eq!(plan.predecessors, [appliance.frames]);
    assert_eq!(delivered.unwrap(), Help { manifest: home.digest, upload_limit: 25_000_000, space: 20 << 30 });
    assert!(other.is_err_and(|e| e.is_timeout()) && new.is_err_and(|e| e.is_timeout()), "only a delivered host helps");

    let frames = home.manifest.chunks.len() as u32;
    let plan = links[0].plan(&SwarmReport { frames, lacking: 0, port: 4100, ..home.report() }).await;
    assert!(plan.needed && plan.predecessors.is_empty());
    let host = SocketAddr::new(loopback(81), 4100);
    assert_eq!(links[2].plan(&home.report()).await.predecessors, [host, appliance.frames]);
    let swarm = appliance.swarm().await.unwrap();
    let states: Vec<_> = swarm.members.iter().map(|m| (m.name.as_str(), m.state.as_str())).collect();
    assert_eq!(states, [("kvm-1", "done"), ("kvm-3", "fetching")]);
}
