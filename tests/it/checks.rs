//! What a host has to show, on its way through the appliance: the order asks for what is declared and what the site changes of
//! it; a delivered host is asked again, without what would disturb it.

use std::time::Duration;

use rackline::check::{Declared, Set};
use rackline::engine::{About, Engine};
use rackline::lifecycle::{Event, Order, State};
use rackline::link::{Check, Deployed, Mode, Order as Issue, Outcome};
use rackline::machine::{Digest, Disk, Inventory, MacAddr, MachineId, Role, Serial, TargetRule};

use crate::engine::{hello, site, start_on};

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

fn order(role: Role) -> Event {
    Event::Ordered(Order {
        role: role.into(),
        image_name: "ovs 1".into(),
        manifest: Digest([1; 32]),
        hostname: "ovs-1".parse().unwrap(),
        target: TargetRule::SmallestSsd,
        ssh_keys: vec![],
        compare_with_dd: false,
        setup: Default::default(),
    })
}

async fn report(engine: &Engine, id: MachineId, outcome: Outcome) {
    let number = engine.machine(id).unwrap().number;
    engine.submit(About::Machine(id), Event::Reported { number, outcome, findings: Vec::new() }).await.unwrap();
}

async fn asked(engine: &Engine, id: MachineId) -> Vec<Declared> {
    match engine.order(id, Mode::Resident, None, Duration::ZERO).await.unwrap().order {
        Issue::Verify(verify) => verify.checks,
        other => panic!("{other:?}"),
    }
}

/// As an agent would that finds all as it should be, but for `wrong`.
fn answered(asked: &[Declared], wrong: Option<&str>) -> Outcome {
    let answer = |declared: &Declared| Check {
        id: declared.id.clone(),
        passed: Some(declared.id.as_str()) != wrong,
        expected: declared.expected.clone(),
        found: "something".into(),
        severity: declared.severity,
        ..Check::default()
    };
    Outcome::Checked { checks: asked.iter().map(answer).collect(), measured: vec![] }
}

async fn until_verifying(engine: &Engine, role: Role) -> MachineId {
    let id = engine.submit(About::Agent(MachineId::generate()), hello("7XK2M13", 1, MAC)).await.unwrap();
    let disk = Disk { name: "sda".into(), serial: Serial::parse("D1"), size_bytes: 10 << 30, ..Disk::default() };
    let inventory = Box::new(Inventory { disks: vec![disk], kernel: "6.1".into(), ..Inventory::default() });
    report(engine, id, Outcome::Commissioned { inventory, measured: vec![], bmc_user_made: false }).await;
    engine.submit(About::Machine(id), order(role)).await.unwrap();
    let chosen = Outcome::TargetChosen {
        disk: "sda".into(),
        serial: Serial::parse("D1"),
        wwn: None,
        size_bytes: 10 << 30,
        rule: TargetRule::SmallestSsd,
    };
    report(engine, id, chosen).await;
    let deployed = Deployed {
        manifest: Digest([1; 32]),
        disk: "sda".into(),
        serial: Serial::parse("D1"),
        written_bytes: 1,
        fetched_bytes: 1,
        peer_bytes: 0,
        appliance_bytes: 1,
        resumed_bytes: 0,
        reused_bytes: 0,
        write_seconds: 1.0,
        read_back_bytes: 1,
        read_back_seconds: 1.0,
        dd_bytes_per_second: None,
        partitions: vec![],
    };
    report(engine, id, Outcome::Deployed(Box::new(deployed))).await;
    let mut resident = hello("7XK2M13", 1, MAC);
    if let Event::Hello { mode, boot_id, .. } = &mut resident {
        (*mode, *boot_id) = (Mode::Resident, uuid::Uuid::from_u128(9));
    }
    engine.submit(About::Agent(id), resident).await.unwrap()
}

#[tokio::test]
async fn a_host_shows_what_is_declared_and_is_asked_again_on_demand() {
    let dir = tempfile::tempdir().unwrap();
    let change = "[[change]]\nid = \"ovs.restart\"\nat-most = \"9 s\"\nreason = \"old kernels\"\n";
    let mut site = site(dir.path()).await;
    site.checks = site.checks.with("site.toml", change).unwrap();
    let (engine, _stop) = start_on(site).await;
    let id = until_verifying(&engine, Role::Ovs).await;

    let first = asked(&engine, id).await;
    let restart = first.iter().find(|declared| declared.id == "ovs.restart").unwrap();
    assert_eq!(
        (restart.expected.as_str(), restart.changed.as_deref()),
        ("traffic interrupted for at most 9 s", Some("old kernels"))
    );
    assert!(!first.iter().any(|declared| declared.id.starts_with("kvm.")));
    report(&engine, id, answered(&first, None)).await;
    let delivered = async {
        while !matches!(engine.machine(id).unwrap().state, State::Delivered { .. }) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), delivered).await.unwrap();
    let before = engine.machine(id).unwrap();

    engine.submit(About::Machine(id), Event::CheckRequested).await.unwrap();
    let again = asked(&engine, id).await;
    assert!(
        again.iter().any(|declared| declared.id == "ovs.traffic") && !again.iter().any(|declared| declared.disruptive)
    );
    report(&engine, id, answered(&again, Some("ovs.traffic"))).await;
    let after = engine.machine(id).unwrap();
    assert_eq!((&after.state, &after.checks), (&before.state, &before.checks));
    let recheck = after.recheck.as_ref().unwrap();
    assert!(recheck.differences.len() == 1 && recheck.differences[0].starts_with("ovs.traffic: ok"), "{recheck:?}");
    assert!(matches!(engine.order(id, Mode::Resident, None, Duration::ZERO).await.unwrap().order, Issue::Wait { .. }));
}

#[tokio::test]
async fn an_agent_that_leaves_checks_out_delivers_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _stop) = start_on(site(dir.path()).await).await;
    let id = until_verifying(&engine, Role::Docker).await;
    let mut asked = asked(&engine, id).await;
    asked.retain(|declared| declared.id != "docker.memory");
    report(&engine, id, answered(&asked, None)).await;
    let machine = engine.machine(id).unwrap();
    let State::Broken { problem, .. } = &machine.state else { panic!("{:?}", machine.state) };
    assert_eq!(
        (problem.code.as_str(), problem.title.as_str()),
        ("check.missing", "the agent did not run docker.memory")
    );
}

#[tokio::test]
async fn a_role_cannot_ask_for_what_nobody_declares() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, _stop) = start_on(site(dir.path()).await).await;
    let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    engine.declared(&ids(&["kvm.guest", "boot"])).unwrap();
    let error = engine.declared(&ids(&["kvm.guest", "kvm.gust"])).unwrap_err();
    assert!(
        error.message().contains("kvm.gust") && error.next_step().is_some_and(|hint| hint.contains("[host] checks"))
    );
    assert!(Set::load(dir.path()).is_ok(), "a folder without files changes nothing");
}
