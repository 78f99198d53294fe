//! The ladder through engine, database and a BMC: a rung is told before its first step, and one that a `kill -9` interrupted
//! is brought to its end without being climbed again.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rackline::bmc::personality::Share;
use rackline::boot::{Policy, Sighting, Stage};
use rackline::engine::{About, Engine, Site};
use rackline::lab::redfish;
use rackline::lifecycle::ladder::{Climb, Rung};
use rackline::lifecycle::{Action, BmcAccount, Event, Expectation, Machine};
use rackline::machine::{ClientArch, MacAddr, Secret, Serial};
use rackline::outlet::Outlets;
use rackline::store::{Db, machines};
use tokio_util::sync::CancellationToken;

use super::bmc_sim::Sim;
use super::engine;
use super::outlet::{KEY, service};

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);
/// Chassis Control (section 28.3 of IPMI 2.0).
const DOWN: u8 = 0;
const UP: u8 = 1;

async fn start(dir: &Path) -> (Engine, CancellationToken) {
    start_with(dir, Outlets::default()).await
}

async fn start_with(dir: &Path, outlets: Outlets) -> (Engine, CancellationToken) {
    engine::start_on(Site { outlets, ..engine::site(dir).await }).await
}

/// A BMC with the user and password of the one that speaks Redfish.
async fn ipmi() -> Sim {
    let sim = Sim::start("127.0.0.1:0").await;
    let mut state = sim.state.lock().unwrap();
    (state.user, state.password) = ("root", "calvin");
    drop(state);
    sim
}

/// A machine on the list, with the simulated BMC.
async fn listed(dir: &Path, sim: &Sim) -> Machine {
    let (engine, stop) = start(dir).await;
    let serial = Serial::parse("7XK2M13").unwrap();
    let row = Expectation {
        mac: Some(MAC),
        bmc: Some(BmcAccount { address: sim.address, redfish: None, user: "root".into() }),
        ..Expectation::new("kvm-1", serial.clone())
    };
    let about = About::Serial { serial, name: "kvm-1".into() };
    let id = engine.submit(about, Event::Expected(row)).await.unwrap();
    engine.set_bmc_password(id, &Secret::new("calvin")).await.unwrap();
    let machine = engine.machine(id).unwrap();
    stop.cancel();
    Arc::unwrap_or_clone(machine)
}

/// As the last run left it: the rung decided on, and perhaps begun.
async fn leave_on(dir: &Path, mut machine: Machine, rung: Rung, begun: bool) -> Machine {
    let climb = Climb { rung, number: 3, of: 5, because: "no DHCP request since power-on".into(), skipped: vec![] };
    machine.ladder.current = Some(climb.clone());
    machine.ladder.begun = begun;
    machine.ladder.used = [(Rung::Retry, 1), (rung, 1)].into();
    machine.ladder.unheeded = 1;
    let at = jiff::Timestamp::now().as_millisecond();
    machine.ladder.asked = Some(at);
    machine.deadline = Some(at + 600_000);
    let db = Db::open(dir).await.unwrap();
    let mut tx = db.write().await.unwrap();
    machines::save(&mut tx, &machine).await.unwrap();
    machines::post(&mut tx, machine.id, at, &Action::Climb(climb)).await.unwrap();
    tx.commit().await.unwrap();
    machine
}

/// The sentences of the timeline, once the outbox is empty.
async fn settled(engine: &Engine, machine: &Machine) -> Vec<String> {
    let wait = async {
        while !engine.db().pending().await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(40), wait).await.expect("the rung does not end");
    let events = engine.db().events(machine.id, 0, 100).await.unwrap();
    events.iter().map(|recorded| recorded.event.sentence()).collect()
}

#[tokio::test]
async fn a_rung_is_told_and_then_climbed() {
    let dir = tempfile::tempdir().unwrap();
    let sim = ipmi().await;
    sim.state.lock().unwrap().power = true;
    let machine = listed(dir.path(), &sim).await;
    let machine = leave_on(dir.path(), machine, Rung::OffAndOn, false).await;
    let (engine, _stop) = start(dir.path()).await;
    let told = settled(&engine, &machine).await;
    let begun =
        "rung 3 of 5: power off, and on with the boot device set in between, because: no DHCP request since power-on";
    assert_eq!(told[told.len() - 2], begun, "{told:?}");
    assert!(told.last().unwrap().ends_with(": done"), "{told:?}");
    let state = sim.state.lock().unwrap();
    assert_eq!((state.controls.as_slice(), state.power), ([DOWN, UP].as_slice(), true));
}

#[tokio::test]
async fn an_interrupted_rung_takes_nothing_down_again() {
    // Killed while the machine was off, and killed when all was done but not yet settled.
    for (power, expected) in [(false, [UP].as_slice()), (true, &[])] {
        let dir = tempfile::tempdir().unwrap();
        let sim = ipmi().await;
        sim.state.lock().unwrap().power = power;
        let machine = listed(dir.path(), &sim).await;
        let machine = leave_on(dir.path(), machine, Rung::OffAndOn, true).await;
        let (engine, _stop) = start(dir.path()).await;
        let told = settled(&engine, &machine).await;
        assert_eq!(told.iter().filter(|s| s.contains("because")).count(), 0, "{told:?}");
        let state = sim.state.lock().unwrap();
        assert_eq!((state.controls.as_slice(), state.power), (expected, true));
    }
}

/// Killed while the mains were cut: they are switched on, and not off once more. Its BMC is gone for good.
#[tokio::test]
async fn outlets_that_a_kill_left_off_are_switched_on() {
    let dir = tempfile::tempdir().unwrap();
    let sim = ipmi().await;
    let mut machine = listed(dir.path(), &sim).await;
    machine.bmc = None;
    let machine = leave_on(dir.path(), machine, Rung::Outlets, true).await;
    let (settings, asked) = service((axum::http::StatusCode::OK, r#"{"state":"on"}"#)).await;
    let mut outlets = Outlets::default();
    outlets.add("kvm-1", settings.open(&Secret::new(KEY)).unwrap());
    let (engine, _stop) = start_with(dir.path(), outlets).await;
    let told = settled(&engine, &machine).await;
    assert!(told.last().unwrap().ends_with("outlets off and on: done"), "{told:?}");
    let asked = asked.lock().unwrap();
    let [(_, body)] = asked.as_slice() else { panic!("{asked:?}") };
    assert!(body.contains(r#""state":"on""#), "{body}");
}

#[tokio::test]
async fn a_bmc_without_a_second_door_fails_the_rung_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let sim = ipmi().await;
    let machine = listed(dir.path(), &sim).await;
    let machine = leave_on(dir.path(), machine, Rung::OtherDoor, false).await;
    let (engine, _stop) = start(dir.path()).await;
    let told = settled(&engine, &machine).await;
    assert!(told.last().unwrap().contains("known by one interface only"), "{told:?}");
    let after = engine.machine(machine.id).unwrap();
    assert_eq!(after.ladder.failed.as_ref().map(|problem| problem.code.as_str()), Some("bmc.one-door"));
    assert!(after.deadline < machine.deadline, "the next rung is due sooner");
    assert_eq!(sim.state.lock().unwrap().opened, 0);
}

#[tokio::test]
async fn what_brought_the_machine_is_learnt_of_its_bmc_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let sim = ipmi().await;
    sim.state.lock().unwrap().power = true;
    let machine = listed(dir.path(), &sim).await;
    let machine = leave_on(dir.path(), machine, Rung::OffAndOn, false).await;
    let (engine, stop) = start(dir.path()).await;
    settled(&engine, &machine).await;
    engine.sighted(Sighting {
        mac: MAC,
        uuid: None,
        arch: Some(ClientArch::Bios),
        address: "10.77.2.1".parse().ok(),
        stage: Stage::Rom,
        relay: None,
    });
    let seen = async {
        while engine.machine(machine.id).unwrap().last_sighted.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), seen).await.unwrap();
    let known = engine.personalities();
    let [one] = known.as_slice() else { panic!("{known:?}") };
    let tally = |word: &str| one.learnt.acts[word];
    assert_eq!((tally("power off").confirmed, tally("power on").confirmed, tally("boot device").of()), (1, 1, 1));
    assert_eq!(one.learnt.followed, Share { yes: 1, no: 1 });
    assert_eq!(one.learnt.remedies["off_and_on"], Share { yes: 1, no: 0 });
    assert_eq!(one.learnt.remedies["retry"], Share { yes: 0, no: 1 });
    assert!(one.learnt.protocols.keys().any(|p| p.contains("cipher suite 17")), "{one:?}");
    stop.cancel();
    let written = async {
        let db = Db::open(dir.path()).await.unwrap();
        while rackline::store::personality::load(&db).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), written).await.unwrap();
    let (again, _stop) = start(dir.path()).await;
    assert_eq!(again.personalities(), known);
}

/// Its IPMI takes every command and follows none, and its Redfish works.
#[tokio::test]
async fn the_other_door_leads_to_the_same_machine() {
    let dir = tempfile::tempdir().unwrap();
    let sim = ipmi().await;
    sim.state.lock().unwrap().deaf = true;
    let other = redfish::start(([127, 0, 0, 1], 0).into()).await.unwrap();
    let mut machine = listed(dir.path(), &sim).await;
    machine.bmc.as_mut().unwrap().redfish = Some(other.server.address);
    machine.arch = Some(ClientArch::UefiX64);
    let machine = leave_on(dir.path(), machine, Rung::OtherDoor, false).await;
    let (engine, _stop) = start(dir.path()).await;
    let told = settled(&engine, &machine).await;
    assert!(told.last().unwrap().ends_with("through the BMC's other interface: done"), "{told:?}");
    assert_eq!(other.hardware.booted().len(), 1);
    assert!(sim.state.lock().unwrap().controls.is_empty());
    // Its own data name the model, which IPMI has as a number.
    assert_eq!(engine.personalities()[0].key.product, "LW-R1");
}

/// The addresses of two BMCs were mixed up in the list.
#[tokio::test]
async fn a_bmc_of_another_machine_is_told_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let other = redfish::start(([127, 0, 0, 1], 0).into()).await.unwrap();
    let sim = ipmi().await;
    let mut machine = listed(dir.path(), &sim).await;
    machine.bmc.as_mut().unwrap().address = other.server.address;
    machine.bmc.as_mut().unwrap().redfish = Some(other.server.address);
    let (engine, stop) = start(dir.path()).await;
    let serial = Serial::parse("LW77S00099").unwrap();
    let row = Expectation::new("kvm-2", serial.clone());
    engine.submit(About::Serial { serial, name: "kvm-2".into() }, Event::Expected(row)).await.unwrap();
    stop.cancel();
    let machine = leave_on(dir.path(), machine, Rung::Retry, false).await;
    let (engine, _stop) = start(dir.path()).await;
    let told = settled(&engine, &machine).await;
    let last = told.last().unwrap();
    assert!(last.contains("belongs to kvm-2: its serial number is LW77S00099, expected 7XK2M13 of kvm-1"), "{last}");
    assert!(other.hardware.booted().is_empty());
}
