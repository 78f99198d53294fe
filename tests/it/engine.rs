//! The engine on a real database: what is acknowledged survives a stop, identities are never guessed.

use std::path::Path;
use std::time::Duration;

use rackline::bmc::{Fleet, Settings};
use rackline::boot::{BootAnswer, Policy, Sighting, Stage};
use rackline::engine::{About, Engine, SeedFacts, Site};
use rackline::image::SigningKey;
use rackline::lifecycle::{Event, Expectation, Order, State};
use rackline::link::{Mode, Order as Issue, Outcome};
use rackline::machine::{ClientArch, Digest, Inventory, MacAddr, MachineId, Role, Serial, TargetRule};
use rackline::store::Db;
use rackline::store::seal::Seal;
use tokio_util::sync::CancellationToken;

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

/// An appliance's site that keeps its state in `dir` and has nothing but machines.
pub async fn site(dir: &Path) -> Site {
    Site {
        db: Db::open(dir).await.unwrap(),
        seal: Seal::load_or_make(&dir.join("site.key")).unwrap(),
        key: SigningKey::load_or_create(&dir.join("signing.key")).unwrap(),
        fleet: Fleet::new(Settings::default()),
        outlets: Default::default(),
        firmware: Default::default(),
        models: Default::default(),
        seed: SeedFacts { url: "http://10.77.0.1".into(), kernel_floor: "6.1".into(), tls: false },
        bmc_setup: Default::default(),
        checks: rackline::check::Set::built_in().clone(),
        burn: None,
        boot_limit: 6,
        switches: Default::default(),
        announce: Default::default(),
    }
}

pub async fn start(dir: &Path) -> (Engine, CancellationToken) {
    start_on(site(dir).await).await
}

pub async fn start_on(site: Site) -> (Engine, CancellationToken) {
    let stop = CancellationToken::new();
    (Engine::start(site, stop.clone()).await.unwrap(), stop)
}

fn sighting(mac: MacAddr) -> Sighting {
    Sighting {
        mac,
        uuid: None,
        arch: Some(ClientArch::Bios),
        address: "10.77.2.1".parse().ok(),
        stage: Stage::Ipxe,
        relay: None,
    }
}

pub fn hello(serial: &str, uuid: u128, mac: MacAddr) -> Event {
    Event::Hello {
        mode: Mode::Ram,
        boot_id: uuid::Uuid::from_u128(uuid + 1000),
        serial: Serial::parse(serial),
        uuid: Some(uuid::Uuid::from_u128(uuid)),
        macs: vec![mac],
        agent_version: "0.1.0".into(),
        address: None,
        arch: None,
        name: None,
        seen_on: Default::default(),
    }
}

fn order() -> Event {
    Event::Ordered(Order {
        role: Role::Kvm.into(),
        image_name: "kvm 1".into(),
        manifest: Digest([1; 32]),
        hostname: "kvm-1".parse().unwrap(),
        target: TargetRule::SmallestSsd,
        ssh_keys: vec![],
        compare_with_dd: false,
        setup: Default::default(),
    })
}

pub fn commissioned() -> Outcome {
    let inventory = Inventory { kernel: "6.1".into(), ..Inventory::default() };
    Outcome::Commissioned { inventory: Box::new(inventory), measured: vec![], bmc_user_made: false }
}

/// Boots a machine as far as its script, as the boot services would.
async fn boot(engine: &Engine, mac: MacAddr) -> MachineId {
    match engine.boot_answer(sighting(mac)).await.unwrap() {
        BootAnswer::Agent { machine, token } => {
            assert!(engine.token_fits(machine, &token));
            assert!(!engine.token_fits(MachineId::generate(), &token));
            machine
        }
        other => panic!("{other:?}"),
    }
}

async fn expect(engine: &Engine, name: &str, serial: &str) -> MachineId {
    let serial = Serial::parse(serial).unwrap();
    let row = Expectation::new(name, serial.clone());
    engine.submit(About::Serial { serial, name: name.into() }, Event::Expected(row)).await.unwrap()
}

#[tokio::test]
async fn a_stop_at_any_moment_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, stop) = start(dir.path()).await;
    let id = boot(&engine, MAC).await;
    let id = engine.submit(About::Agent(id), hello("7XK2M13", 1, MAC)).await.unwrap();
    engine.submit(About::Machine(id), order()).await.unwrap();
    let issued = engine.order(id, Mode::Ram, None, Duration::ZERO).await.unwrap();
    assert!(matches!(issued.order, Issue::Commission { bmc_user: Some(_) }));
    let report = Event::Reported { number: issued.number, outcome: commissioned(), findings: Vec::new() };
    engine.submit(About::Machine(id), report).await.unwrap();
    let before = engine.machine(id).unwrap();
    let deploy = engine.order(id, Mode::Ram, None, Duration::ZERO).await.unwrap();
    assert!(matches!(deploy.order, Issue::Deploy(_)));
    stop.cancel();

    let (again, _stop) = start(dir.path()).await;
    assert_eq!(again.machine(id).unwrap(), before);
    assert_eq!(again.order(id, Mode::Ram, None, Duration::ZERO).await.unwrap(), deploy);
    // The same report again, as an agent that saw no answer repeats it: stale, and nothing changes.
    let stale = Event::Reported { number: issued.number, outcome: commissioned(), findings: Vec::new() };
    assert_eq!(again.submit(About::Machine(id), stale).await.unwrap_err().code(), "order.stale");
    let events = again.db().events(id, 0, 100).await.unwrap();
    let mut replayed = rackline::lifecycle::Machine::new(id, before.name.clone(), events[0].at, State::Seen);
    for recorded in &events {
        replayed = rackline::lifecycle::decide(recorded.at, &replayed, &recorded.event).unwrap().machine;
    }
    assert_eq!(&replayed, before.as_ref());
}

#[tokio::test]
async fn a_sighting_becomes_the_machine_that_was_expected() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _stop) = start(dir.path()).await;
    let expected = expect(&engine, "kvm-1", "7XK2M13").await;
    let sighted = boot(&engine, MAC).await;
    assert_ne!(sighted, expected);
    let id = engine.submit(About::Agent(sighted), hello("7XK2M13", 1, MAC)).await.unwrap();
    assert_eq!(id, expected);
    assert!(engine.machine(sighted).is_none());
    let machine = engine.find("02:00:00:00:00:01").unwrap();
    assert_eq!((machine.id, machine.arch), (expected, Some(ClientArch::Bios)));
    assert_eq!(engine.machines().len(), 1);
}

#[tokio::test]
async fn two_machines_claiming_one_serial_number() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _stop) = start(dir.path()).await;
    let other = MacAddr([2, 0, 0, 0, 0, 2]);
    let first = boot(&engine, MAC).await;
    let first = engine.submit(About::Agent(first), hello("7XK2M13", 1, MAC)).await.unwrap();
    let second = boot(&engine, other).await;
    let second = engine.submit(About::Agent(second), hello("7XK2M13", 2, other)).await.unwrap();
    assert_ne!(first, second);
    let second = engine.machine(second).unwrap();
    let State::Broken { problem, .. } = &second.state else { panic!("{:?}", second.state) };
    assert_eq!(problem.code, "identity.serial-taken");
    assert!(problem.title.contains("7XK2M13") && problem.hint.is_some());
    // The first goes on undisturbed; the same machine with a new NIC is still the same machine.
    assert_eq!(engine.machine(first).unwrap().state, State::Commissioning);
    let third = MacAddr([2, 0, 0, 0, 0, 3]);
    let sighted = boot(&engine, third).await;
    assert_eq!(engine.submit(About::Agent(sighted), hello("7XK2M13", 1, third)).await.unwrap(), first);
}

#[tokio::test]
async fn the_wrong_serial_number_behind_an_expected_mac_is_refused_with_both() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _stop) = start(dir.path()).await;
    let serial = Serial::parse("7XK2M13").unwrap();
    let row = Expectation { mac: Some(MAC), ..Expectation::new("kvm-1", serial.clone()) };
    let about = About::Serial { serial, name: "kvm-1".into() };
    let id = engine.submit(about, Event::Expected(row)).await.unwrap();
    assert_eq!(boot(&engine, MAC).await, id);
    engine.submit(About::Agent(id), hello("9ZZ9Z99", 1, MAC)).await.unwrap();
    let machine = engine.machine(id).unwrap();
    let State::Broken { problem, .. } = &machine.state else { panic!("{:?}", machine.state) };
    assert!(problem.title.contains("7XK2M13") && problem.title.contains("9ZZ9Z99"));
}

#[tokio::test]
async fn an_agent_that_waits_is_woken_by_the_order() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _stop) = start(dir.path()).await;
    let id = boot(&engine, MAC).await;
    let id = engine.submit(About::Agent(id), hello("7XK2M13", 1, MAC)).await.unwrap();
    let number = engine.order(id, Mode::Ram, None, Duration::ZERO).await.unwrap().number;
    let report = Event::Reported { number, outcome: commissioned(), findings: Vec::new() };
    engine.submit(About::Machine(id), report).await.unwrap();
    let idle = engine.order(id, Mode::Ram, None, Duration::ZERO).await.unwrap();
    let waiting = engine.order(id, Mode::Ram, Some(idle.number), Duration::from_secs(60));
    let (woken, told) = tokio::join!(waiting, engine.submit(About::Machine(id), order()));
    told.unwrap();
    assert!(matches!(woken.unwrap().order, Issue::Deploy(_)));
}

#[tokio::test]
async fn a_bmc_password_is_kept_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _stop) = start(dir.path()).await;
    let id = expect(&engine, "kvm-1", "7XK2M13").await;
    engine.set_bmc_password(id, &rackline::machine::Secret::new("calvin-9000")).await.unwrap();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(11).any(|w| w == b"calvin-9000"));
    }
}
