//! Machines beside their twins in the engine: an outlier is held with the reason, and a restart forgets no value.

use std::time::Duration;

use rackline::engine::{About, Engine};
use rackline::lifecycle::{Event, State};
use rackline::link::{Measured, Mode, Outcome};
use rackline::machine::{Cpu, Inventory, MacAddr, MachineId, System};

use crate::engine::{hello, start};

/// Enlisted and commissioned, as an agent would tell it.
async fn commission(engine: &Engine, number: u8, governor: &str, speed: f64) -> MachineId {
    let mac = MacAddr([2, 0, 0, 0, 1, number]);
    let event = hello(&format!("7XK2M{number:02}"), number.into(), mac);
    let id = engine.submit(About::Agent(MachineId::generate()), event).await.unwrap();
    let order = engine.order(id, Mode::Ram, None, Duration::ZERO).await.unwrap();
    let cpu = Cpu { model: "Xeon".into(), governor: Some(governor.into()), ..Cpu::default() };
    let inventory = Inventory {
        system: System { product: Some("LW-C1".into()), ..System::default() },
        cpus: vec![cpu.clone(), cpu],
        ..Inventory::default()
    };
    let outcome = Outcome::Commissioned {
        inventory: Box::new(inventory),
        measured: vec![Measured::new("cpu.blake3", speed, "MB/s")],
        bmc_user_made: false,
    };
    let report = Event::Reported { number: order.number, outcome, findings: Vec::new() };
    engine.submit(About::Machine(id), report).await.unwrap()
}

#[tokio::test]
async fn a_slow_machine_is_held_with_the_probable_cause_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, stop) = start(dir.path()).await;
    for number in 0..9 {
        let id = commission(&engine, number, "performance", 900.0 + f64::from(number)).await;
        let machine = engine.machine(id).unwrap();
        assert_eq!((machine.state.name(), machine.findings.len()), ("ready", 0), "{:?}", machine.findings);
    }
    let views = engine.cohort_views();
    assert!(views.len() == 1 && views[0].count == 9 && views[0].median == 904.0, "{views:?}");
    stop.cancel();
    drop(engine);

    let (engine, _stop) = start(dir.path()).await;
    assert_eq!(engine.cohort_views(), views);
    let id = commission(&engine, 20, "powersave", 620.0).await;
    let machine = engine.machine(id).unwrap();
    let State::Broken { problem, .. } = &machine.state else { panic!("{:?}", machine.state) };
    assert_eq!(problem.title, "CPU: cpu.blake3 31 % below 9 twins; governor is powersave");
    assert_eq!(machine.measured[0].twins.as_ref().map(|twins| twins.count), Some(9));
    assert_eq!(engine.cohort_views()[0].count, 10, "it counts among the twins of the next");
}
