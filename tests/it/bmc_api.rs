//! A machine's BMC through the API and the command line, as people use them: the appliance on a loopback port, the real
//! binary beside it, and `ipmi_sim` with the data of a real server behind it.

use std::path::Path;

use rackline::bmc::{Answer, Command};
use rackline::engine::{About, Engine};
use rackline::lifecycle::{BmcAccount, Event, Expectation};
use rackline::machine::{MachineId, Secret, Serial};

use super::bmc::{IpmiSim, ipmitool};
use super::bmc_data::server;
use super::loader;

/// The machine `d51` of a list of expected machines, with this BMC.
pub async fn expect(engine: &Engine, sim: &IpmiSim) -> MachineId {
    let serial = Serial::parse("QTFCJ052806D1").unwrap();
    let row = Expectation {
        bmc: Some(BmcAccount { address: sim.address, redfish: None, user: "admin".into() }),
        ..Expectation::new("d51", serial.clone())
    };
    let id = engine.submit(About::Serial { serial, name: "d51".into() }, Event::Expected(row)).await.unwrap();
    engine.set_bmc_password(id, &Secret::new("calvin-lab")).await.unwrap();
    id
}

struct Appliance {
    url: String,
    engine: Engine,
    machine: MachineId,
    serves: tokio::task::JoinHandle<()>,
}

impl Drop for Appliance {
    fn drop(&mut self) {
        self.serves.abort();
    }
}

async fn appliance(dir: &Path, sim: &IpmiSim) -> Appliance {
    let engine = loader::engine(dir).await;
    let machine = expect(&engine, sim).await;
    let router = loader::people(dir, &engine, &toml::from_str(loader::CONFIG).unwrap());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serves = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Appliance { url, engine, machine, serves }
}

impl Appliance {
    /// What the command printed, and whether it succeeded.
    async fn rackline(&self, words: &str) -> (bool, String) {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_rackline"));
        let output = command.args(words.split(' ')).args(["--url", &self.url]).output().await.unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    async fn bmc(&self, words: &str) -> String {
        let (done, text) = self.rackline(&format!("bmc {words}")).await;
        assert!(done, "bmc {words}: {text}");
        assert!(!text.contains("calvin") && !text.contains('\u{1b}'), "no secrets and no colours: {text}");
        text
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_bmc_says_reaches_people_and_scripts() {
    let dir = tempfile::tempdir().unwrap();
    let sim = server("quanta_d51").await;
    let appliance = appliance(dir.path(), &sim).await;

    let sensors = appliance.bmc("sensors d51").await;
    let lines: Vec<&str> = sensors.lines().collect();
    let critical = lines.iter().filter(|l| l.contains("critical")).count();
    assert!(critical > 10 && lines[1..=critical].iter().all(|l| l.contains("critical")), "{sensors}");
    assert!(sensors.contains("power input lost") && sensors.contains("see --all"), "{sensors}");
    let json: Answer = serde_json::from_str(&appliance.bmc("sensors d51 --json").await).unwrap();
    assert!(matches!(json, Answer::Sensors { sensors } if sensors.len() > 80));

    assert!(appliance.bmc("show d51").await.contains("spoken to by: IPMI 2.0, cipher suite 3\n"));
    assert!(appliance.bmc("power d51").await.starts_with("power: off"));
    assert!(appliance.bmc("fru d51").await.contains("  product.serial: QTFCJ052806D1\n"));
    assert!(appliance.bmc("users d51").await.contains("Administrator"));
    assert!(appliance.bmc("clock d51").await.contains("s behind"));
    assert!(appliance.bmc("clock d51 --set").await.contains("the clock is set"));
    assert!(appliance.bmc("network d51 --address 10.1.2.3/20 --gateway 10.1.0.1").await.contains("are there"));
    assert!(appliance.bmc("network d51").await.starts_with("address: 10.1.2.3/20\nby: static\ngateway: 10.1.0.1\n"));
    assert!(appliance.bmc("identify d51 --seconds 5").await.starts_with("the light is on for 5 s"));

    for (words, why) in [
        ("bmc network d51 --ntp 10.1.0.1", "cannot be given time servers"),
        ("bmc sensors nobody", "there is no machine"),
        ("bmc power d51 up", "there is no power action"),
    ] {
        let (done, text) = appliance.rackline(words).await;
        assert!(!done && text.contains(why) && text.contains("hint:"), "{words}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_kept_before_it_is_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let sim = server("quanta_d51").await;
    let appliance = appliance(dir.path(), &sim).await;
    let shown = appliance.bmc("log d51").await;
    assert!(shown.contains("HDD3: drive failed") && shown.contains("s behind, and so are these times"), "{shown}");

    let entries = shown.lines().filter(|line| line.contains("no time")).count();
    let cleared = appliance.bmc("log d51 --clear").await;
    assert!(cleared.contains("HDD3: drive failed"), "what was cleared is shown: {cleared}");
    assert!(ipmitool(&sim, &["sel", "elist"]).await.lines().count() <= 1);
    let events = appliance.engine.db().events(appliance.machine, 0, 100).await.unwrap();
    let kept = events.iter().find_map(|e| match &e.event {
        Event::BmcLogSaved { entries } => Some((entries.clone(), e.event.sentence())),
        _ => None,
    });
    let (kept, sentence) = kept.unwrap();
    assert_eq!(kept.len(), entries);
    assert!(kept.iter().any(|entry| entry["text"] == "HDD3: drive failed"));
    assert!(sentence.contains(&format!("the {entries} entries")), "{sentence}");
    let answer = appliance.engine.ask_bmc(&appliance.engine.find("d51").unwrap(), Command::Log { after: None }).await;
    assert!(matches!(answer.unwrap(), Answer::Log(log) if log.entries.len() <= 1));
}
