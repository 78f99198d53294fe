//! Purchase lists taken over by a running engine: all rows or none, told before it is done, and the same list again changes
//! nothing. And what a model makes of a machine that was bought by such a list.

use std::time::Duration;

use rackline::config::expected::parse;
use rackline::engine::expected::ImportReport;
use rackline::engine::{About, Engine};
use rackline::error::Result;
use rackline::lifecycle::{Event, State};
use rackline::link::{Mode, Outcome};
use rackline::machine::{Dimm, Disk, DiskHealth, Inventory, MacAddr, Serial};

use super::engine::{hello, start};

const LIST: &str = "serial;name;rack;unit;order;model;customer;switch;port;bmc_address;bmc_user;bmc_password\n\
                    7XK2M13;kvm-1;R1;12;PO-4711;compute;Big;leaf-1a leaf-1b;18 18;10.77.1.1;admin;calvin\n\
                    7XK2M14;;R1;13;PO-4711;compute;Big;leaf-1a leaf-1b;19 19;10.77.1.2;admin;calvin\n";

async fn import(engine: &Engine, text: &str, dry_run: bool) -> Result<ImportReport> {
    engine.import(parse(text)?, dry_run).await
}

async fn events(engine: &Engine, name: &str) -> usize {
    engine.db().events(engine.find(name).unwrap().id, 0, 100).await.unwrap().len()
}

#[tokio::test]
async fn a_list_is_taken_over_whole_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, stop) = start(dir.path()).await;
    let tried = import(&engine, LIST, true).await.unwrap();
    assert_eq!((tried.dry_run, tried.new.len(), engine.machines().len()), (true, 2, 0));
    let done = import(&engine, LIST, false).await.unwrap();
    assert_eq!((done.rows, done.new, done.unchanged), (2, vec!["kvm-1".to_owned(), "7xk2m14".to_owned()], 0));
    let again = import(&engine, LIST, false).await.unwrap();
    assert_eq!((again.new.len(), again.changed.len(), again.unchanged), (0, 0, 2));
    assert_eq!(events(&engine, "kvm-1").await, 1, "nothing is written twice");

    // What has no column stays; what has one is said before it is changed.
    let moved = "serial,rack,unit\n7XK2M13,R2,1\n";
    let tried = import(&engine, moved, true).await.unwrap();
    assert_eq!(tried.changed[0].what, ["place R1-U12 -> R2-U01"]);
    assert_eq!(engine.find("kvm-1").unwrap().place.as_ref().unwrap().rack, "R1");
    import(&engine, moved, false).await.unwrap();
    stop.cancel();

    let (engine, _stop) = start(dir.path()).await;
    let kvm = engine.find("kvm-1").unwrap();
    assert_eq!((kvm.name.as_str(), kvm.place.as_ref().unwrap().rack.as_str()), ("kvm-1", "R2"));
    assert_eq!((kvm.purchase.as_ref().unwrap().order.as_deref(), kvm.ports.len()), (Some("PO-4711"), 2));
    let other = engine.find("7XK2M14").unwrap();
    assert!(std::sync::Arc::ptr_eq(kvm.purchase.as_ref().unwrap(), other.purchase.as_ref().unwrap()));
    let password = "serial,bmc_address,bmc_user,bmc_password\n7XK2M13,10.77.1.1,admin,other\n";
    assert_eq!(import(&engine, password, false).await.unwrap().changed[0].what, ["BMC password"]);
    assert_eq!(import(&engine, &password.replace("other", ""), false).await.unwrap().unchanged, 1);
    assert_eq!(import(&engine, password, false).await.unwrap().unchanged, 1);
}

#[tokio::test]
async fn one_wrong_row_and_nothing_of_it_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _stop) = start(dir.path()).await;
    import(&engine, "serial,name\nX77,kvm-9\n", false).await.unwrap();
    for (rows, wanted) in [
        (
            "serial,name\nA11,kvm-1\nB22,kvm-9\n",
            "line 3, column name: kvm-9 is another machine with the serial number X77",
        ),
        ("serial,model\nA11,compute\nB22,laptop\n", "line 3, column model: there is no model \"laptop\""),
        (
            "serial,bmc_address,bmc_user,bmc_password\nA11,10.0.0.1,a,b\nB22,10.0.0.2,a,\n",
            "line 3, column bmc_password: is empty, and none was given before",
        ),
        (
            "serial,name\nA11,kvm-1\nB 22,\n",
            "line 3, column name: is empty, and the serial number B 22 cannot be a host name",
        ),
        ("serial,name\nA11,kvm-1\nkvm-1,\n", "line 3, column name: kvm-1 is another machine"),
    ] {
        let error = import(&engine, rows, false).await.unwrap_err();
        assert_eq!((error.message(), error.code()), (wanted, "expected.csv"));
        assert_eq!(engine.machines().len(), 1, "{rows}");
    }
}

#[tokio::test]
async fn thousands_of_rows_are_one_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _stop) = start(dir.path()).await;
    let rows: String = (0..2_000).map(|n| format!("S{n:06},r{},{},PO-1,compute\n", n / 40, n % 40 + 1)).collect();
    let list = format!("serial,rack,unit,order,model\n{rows}");
    assert_eq!(import(&engine, &list, false).await.unwrap().new.len(), 2_000);
    assert_eq!(import(&engine, &list, false).await.unwrap().unchanged, 2_000);
    assert_eq!(engine.expected().len(), 2_000);
}

#[tokio::test]
async fn a_machine_that_lacks_a_part_of_its_model_is_held_with_that_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    std::fs::create_dir(&models).unwrap();
    let model =
        "name = \"small\"\nwhy = \"a test\"\n[memory]\ncount = 4\nsize = \"32 GiB\"\n[tpm]\nversion = \"2.0\"\n";
    std::fs::write(models.join("small.toml"), model).unwrap();
    let mut site = super::engine::site(dir.path()).await;
    site.models = rackline::engine::models::Shelf::open(Some(models)).unwrap();
    let (engine, _stop) = super::engine::start_on(site).await;
    import(&engine, "serial,name,mac,model\n7XK2M13,kvm-1,02:00:00:00:00:01,small\n", false).await.unwrap();
    let id = engine.find("kvm-1").unwrap().id;
    engine.submit(About::Agent(id), hello("7XK2M13", 1, MacAddr([2, 0, 0, 0, 0, 1]))).await.unwrap();
    let dimm = |slot: &str| Dimm {
        slot: slot.into(),
        size_bytes: 32 << 30,
        serial: Serial::parse(&format!("D{slot}")),
        ..Dimm::default()
    };
    let mut inventory = Inventory { kernel: "6.1".into(), ..Inventory::default() };
    inventory.memory.dimms = ["A1", "A2", "B1"].map(dimm).to_vec();
    inventory.memory.empty = ["A3", "B2", "B3"].map(str::to_owned).to_vec();
    let number = engine.order(id, Mode::Ram, None, Duration::ZERO).await.unwrap().number;
    let outcome = Outcome::Commissioned { inventory: Box::new(inventory), measured: vec![], bmc_user_made: false };
    engine.submit(About::Machine(id), Event::Reported { number, outcome, findings: vec![] }).await.unwrap();
    let machine = engine.machine(id).unwrap();
    let State::Broken { problem, .. } = &machine.state else { panic!("{:?}", machine.state) };
    assert_eq!(
        (problem.title.as_str(), problem.code.as_str()),
        ("DIMM B2 missing: 3 of 4 × 32 GiB; and one more fault", "memory.missing")
    );
    assert_eq!(machine.findings[1].to_string(), "TPM missing, or switched off in the firmware settings");
}

async fn commission(engine: &Engine, name: &str, serial: &str, disks: &[(&str, &str)]) -> Vec<String> {
    if engine.find(name).is_err() {
        import(engine, &format!("serial,name\n{serial},{name}\n"), false).await.unwrap();
        let id = engine.find(name).unwrap().id;
        let mac = MacAddr([2, 0, 0, 0, 0, serial.as_bytes()[0]]);
        engine.submit(About::Agent(id), hello(serial, u128::from(serial.as_bytes()[0]), mac)).await.unwrap();
    } else {
        let id = engine.find(name).unwrap().id;
        engine.submit(About::Machine(id), Event::RetryRequested).await.unwrap();
        let mac = MacAddr([2, 0, 0, 0, 0, serial.as_bytes()[0]]);
        engine.submit(About::Agent(id), hello(serial, 7 + u128::from(serial.as_bytes()[0]), mac)).await.unwrap();
    }
    let id = engine.find(name).unwrap().id;
    let disk = |(serial, slot): &(&str, &str)| Disk {
        name: "sda".into(),
        serial: Serial::parse(serial),
        slot: Some((*slot).into()),
        ..Disk::default()
    };
    // A fault, so that it can be retried.
    let health = Some(DiskHealth { passed: Some(false), ..DiskHealth::default() });
    let broken = Disk { name: "sdz".into(), health, ..Disk::default() };
    let disks = disks.iter().map(disk).chain([broken]).collect();
    let inventory = Inventory { kernel: "6.1".into(), disks, ..Inventory::default() };
    let number = engine.order(id, Mode::Ram, None, Duration::ZERO).await.unwrap().number;
    let outcome = Outcome::Commissioned { inventory: Box::new(inventory), measured: vec![], bmc_user_made: false };
    engine.submit(About::Machine(id), Event::Reported { number, outcome, findings: vec![] }).await.unwrap();
    let machine = engine.machine(id).unwrap();
    let parts = machine.findings.iter().filter(|finding| finding.id.starts_with("component"));
    parts.map(|finding| finding.cause.clone()).collect()
}

#[tokio::test]
async fn a_part_is_followed_from_machine_to_machine() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _stop) = start(dir.path()).await;
    assert!(commission(&engine, "m17", "A17", &[("S4YN", "bay 0"), ("S5XX", "bay 1")]).await.is_empty());
    let told = commission(&engine, "m18", "B18", &[("S4YN", "bay 3")]).await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("disk S4YN moved here from machine m17 ("), "{told:?}");
    let way = engine.way_of_part("S4YN").await.unwrap();
    let stays: Vec<_> =
        way.iter().map(|stay| (stay.machine.as_str(), stay.place.as_str(), stay.until.is_some())).collect();
    assert_eq!(stays, [("m18", "bay 3", false), ("m17", "bay 0", true)]);
    let told = commission(&engine, "m17", "A17", &[("S6NEW", "bay 1")]).await;
    assert_eq!(told, ["disk in bay 1 was exchanged: old serial S5XX, new serial S6NEW"]);
    // The machine that lost it has it in its timeline.
    let events = engine.db().events(engine.find("m17").unwrap().id, 0, 100).await.unwrap();
    assert!(events.iter().any(|recorded| recorded.event.sentence() == "disk S4YN is in m18 now"), "{events:?}");
}
