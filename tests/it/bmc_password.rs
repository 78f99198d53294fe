//! The password that a BMC came with, changed for one of its own: on `ipmi_sim`, which takes twenty bytes and keeps sixteen,
//! and with the crashes that could lock somebody out.

use std::time::{Duration, Instant};

use rackline::bmc::{Access, Answer, Command, Fleet};
use rackline::engine::{About, Engine};
use rackline::lifecycle::{BmcPassword, Event};
use rackline::link::Outcome;
use rackline::machine::{InBandBmc, MacAddr, MachineId, Secret};
use rackline::store::seal::Seal;

use super::bmc::{IpmiSim, access, ipmitool, settings};
use super::bmc_api::expect;
use super::bmc_data::server;
use super::engine::{commissioned, hello, start};

/// The agent says which machine it is and what it found; `in_band` is the BMC's address as the machine itself has it.
async fn enlist(engine: &Engine, id: MachineId, in_band: Option<std::net::IpAddr>) {
    engine.submit(About::Machine(id), Event::BmcPasswordWanted { own: true }).await.unwrap();
    engine.submit(About::Machine(id), hello("QTFCJ052806D1", 1, MacAddr([2, 0, 0, 0, 0, 9]))).await.unwrap();
    let mut outcome = commissioned();
    if let Outcome::Commissioned { inventory, .. } = &mut outcome {
        inventory.bmc = Some(InBandBmc { address: in_band, mac: None, firmware: None });
    }
    let number = engine.machine(id).unwrap().number;
    engine.submit(About::Machine(id), Event::Reported { number, outcome, findings: Vec::new() }).await.unwrap();
}

/// Waits for the action to be settled and gives its event.
async fn settled(engine: &Engine, id: MachineId) -> Event {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let events = engine.db().events(id, 0, 100).await.unwrap();
        let found = events
            .into_iter()
            .map(|e| e.event)
            .find(|e| matches!(e, Event::ActionDone { .. } | Event::ActionFailed { .. }));
        if let Some(event) = found {
            return event;
        }
        assert!(Instant::now() < deadline, "the password is not changed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn opens(sim: &IpmiSim, password: &str) -> bool {
    let access = Access { password: Secret::new(password), ..access(sim.address) };
    match Fleet::new(settings()).run(&access, Command::PowerStatus).await {
        Ok(answer) => matches!(answer, Answer::PowerStatus(_)),
        Err(e) => {
            assert_eq!(e.code(), "bmc.auth", "{e:?}");
            false
        }
    }
}

async fn asks(engine: &Engine, id: MachineId) {
    let machine = engine.machine(id).unwrap();
    let answer = engine.ask_bmc(&machine, Command::PowerStatus).await.unwrap();
    assert!(matches!(answer, Answer::PowerStatus(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_changed_once_kept_sealed_and_found_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let sim = server("quanta_d51").await;
    let (engine, stop) = start(dir.path()).await;
    let id = expect(&engine, &sim).await;
    enlist(&engine, id, Some(sim.address.ip())).await;
    let event = settled(&engine, id).await;
    assert!(matches!(&event, Event::ActionDone { answer, .. } if answer["length"] == 16), "{event:?}");
    assert_eq!(engine.machine(id).unwrap().bmc_password, BmcPassword::Own);
    assert!(!opens(&sim, "calvin-lab").await, "the listed password opens still");
    let seal = Seal::load_or_make(&dir.path().join("site.key")).unwrap();
    let own = engine.db().secret(&seal, &format!("bmc-own/{id}")).await.unwrap().unwrap();
    assert!(opens(&sim, &own).await);
    let events = engine.db().events(id, 0, 100).await.unwrap();
    assert!(!serde_json::to_string(&events.iter().map(|e| &e.event).collect::<Vec<_>>()).unwrap().contains(&own));
    asks(&engine, id).await;
    stop.cancel();
    drop(engine);

    // The list says the same as ever, which is not what opens any more.
    let (engine, stop) = start(dir.path()).await;
    assert_eq!(expect(&engine, &sim).await, id);
    engine.submit(About::Machine(id), Event::BmcPasswordWanted { own: true }).await.unwrap();
    assert_eq!(engine.machine(id).unwrap().bmc_password, BmcPassword::Own);
    asks(&engine, id).await;
    stop.cancel();
    drop(engine);

    // Somebody gave the BMC back the password of the list; without a session from before, it has to be found out.
    ipmitool_as(&sim, &own, &["user", "set", "password", "2", "calvin-lab", "16"]).await;
    assert!(!opens(&sim, &own).await);
    let (engine, _stop) = start(dir.path()).await;
    asks(&engine, id).await;
}

async fn ipmitool_as(sim: &IpmiSim, password: &str, words: &[&str]) {
    let (ip, port) = (sim.address.ip().to_string(), sim.address.port().to_string());
    let mut tool = tokio::process::Command::new("ipmitool");
    tool.args(["-I", "lanplus", "-C", "3", "-U", "admin", "-E", "-H", &ip, "-p", &port]).args(words);
    assert!(tool.env("IPMI_PASSWORD", password).output().await.unwrap().status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_setting_and_knowing_locks_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let sim = server("quanta_d51").await;
    let (engine, _stop) = start(dir.path()).await;
    let id = expect(&engine, &sim).await;
    // Twenty bytes were sealed and set, the BMC kept sixteen, and then the lights went out.
    let own = "Aa0-Bb1_Cc2-Dd3_Ee4-";
    let seal = Seal::load_or_make(&dir.path().join("site.key")).unwrap();
    engine.db().put_secret(&seal, &format!("bmc-own/{id}"), own).await.unwrap();
    ipmitool(&sim, &["user", "set", "password", "2", &own[..16], "16"]).await;
    assert!(!opens(&sim, "calvin-lab").await);
    asks(&engine, id).await;
    enlist(&engine, id, None).await;
    assert!(matches!(settled(&engine, id).await, Event::ActionDone { .. }));
    assert_eq!(engine.db().secret(&seal, &format!("bmc-own/{id}")).await.unwrap().as_deref(), Some(&own[..16]));
    assert!(opens(&sim, &own[..16]).await, "what was set is kept");
    asks(&engine, id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bmc_of_another_machine_keeps_its_password() {
    let dir = tempfile::tempdir().unwrap();
    let sim = server("quanta_d51").await;
    let (engine, _stop) = start(dir.path()).await;
    let id = expect(&engine, &sim).await;
    enlist(&engine, id, Some([10, 9, 9, 9].into())).await;
    let event = settled(&engine, id).await;
    let Event::ActionFailed { problem, .. } = &event else { panic!("{event:?}") };
    assert_eq!(problem.code, "bmc.other-machine");
    assert!(problem.title.contains("10.9.9.9") && problem.title.contains(&sim.address.ip().to_string()), "{problem:?}");
    assert_eq!(engine.machine(id).unwrap().bmc_password, BmcPassword::Wanted, "tried again with the next enlistment");
    assert!(opens(&sim, "calvin-lab").await);
}
