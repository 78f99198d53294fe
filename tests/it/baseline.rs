//! Firmware baselines through engine, database and a Redfish BMC: from what a machine was delivered with to what its baseline
//! wants, read back; a `kill -9` while the BMC writes; and what must not be written.

use std::path::PathBuf;
use std::time::Duration;

use rackline::boot::{Policy, Sighting, Stage};
use rackline::engine::{About, BmcSetup, Engine, Site};
use rackline::firmware::bundle::{About as AboutBundle, Bundle};
use rackline::firmware::{Depot, Part};
use rackline::lab::redfish::{self, Fault, Hardware, Identity, Reset, Simulated};
use rackline::lifecycle::{BmcAccount, Event, Expectation, Machine, State};
use rackline::link::{Mode, Order, Outcome};
use rackline::machine::{ClientArch, Firmware, Inventory, MacAddr, MachineId, Secret, Serial, System};
use tokio_util::sync::CancellationToken;

use super::engine;

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x77, 0, 0x63]);
const PATIENCE: Duration = Duration::from_secs(60);

pub const BASELINE: &str = r#"
name = "rack R1"
vendor = "Labworks"
models = ["LW-R*"]
required = true

[[setting]]
name = "power-profile"
value = "performance"

[[setting]]
name = "sr-iov"
value = "on"

[attributes]
AcPwrRcvry = "On"

[[firmware]]
component = "bmc"
minimum = "9.9.0"

[[firmware]]
component = "bios"
minimum = "2.5.0"
"#;

/// A site with one machine, whose BMC speaks Redfish.
pub struct Rack {
    pub dir: tempfile::TempDir,
    pub bmc: Simulated,
    pub serial: Serial,
    /// Whether the site has machines brought to their baselines.
    pub apply: bool,
    /// The folder of the appliance's state: with another one it has never seen the machine.
    pub state: &'static str,
}

impl Rack {
    pub async fn new(baseline: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("baselines")).unwrap();
        std::fs::write(dir.path().join("baselines/r1.toml"), baseline).unwrap();
        let bmc = redfish::start(([127, 0, 0, 1], 0).into()).await.unwrap();
        bmc.hardware.reset(Reset::On).unwrap();
        let serial = Serial::parse(&Identity::example().serial).unwrap();
        Self { dir, bmc, serial, apply: true, state: "state" }
    }

    pub fn bundles(&self) -> PathBuf {
        self.dir.path().join("bundles")
    }

    fn depot(&self) -> Depot {
        let baselines = Some(self.dir.path().join("baselines"));
        let mut depot = Depot::new(baselines, self.bundles(), self.apply, "http://127.0.0.1:1", [7; 32]);
        depot.look = Duration::from_millis(50);
        depot
    }

    fn add(&self, part: Part, component: &str, version: &str) -> Bundle {
        let file = self.dir.path().join(format!("{component}.bin"));
        std::fs::write(&file, redfish::firmware_image(component, version, "LW-R1")).unwrap();
        let about = AboutBundle {
            vendor: "Labworks".into(),
            models: vec!["LW-R1".into()],
            component: part,
            named: None,
            version: version.into(),
            sha256: None,
        };
        self.depot().bundles().add(&file, about).unwrap()
    }

    async fn engine(&self) -> (Engine, CancellationToken) {
        self.engine_with(BmcSetup::default()).await
    }

    pub async fn engine_with(&self, bmc_setup: BmcSetup) -> (Engine, CancellationToken) {
        let state = self.dir.path().join(self.state);
        std::fs::create_dir_all(&state).unwrap();
        let site = engine::site(&state).await;
        engine::start_on(Site { firmware: self.depot(), bmc_setup, ..site }).await
    }

    /// On the list, booted, and its inventory taken.
    pub async fn commission(&self, engine: &Engine) -> MachineId {
        let bmc = self.bmc.server.address;
        let row = Expectation {
            mac: Some(MAC),
            bmc: Some(BmcAccount { address: bmc, redfish: Some(bmc), user: "root".into() }),
            ..Expectation::new("kvm-1", self.serial.clone())
        };
        let about = About::Serial { serial: self.serial.clone(), name: "kvm-1".into() };
        let id = engine.submit(about, Event::Expected(row)).await.unwrap();
        engine.set_bmc_password(id, &Secret::new("calvin")).await.unwrap();
        self.boot(engine, id, 1).await;
        self.report(engine, id).await;
        id
    }

    /// The machine starts, and its agent says hello.
    pub async fn boot(&self, engine: &Engine, id: MachineId, boot: u128) {
        let sighting = Sighting {
            mac: MAC,
            uuid: None,
            arch: Some(ClientArch::UefiX64),
            address: None,
            stage: Stage::Ipxe,
            relay: None,
        };
        engine.boot_answer(sighting).await.unwrap();
        let hello = Event::Hello {
            mode: Mode::Ram,
            boot_id: uuid::Uuid::from_u128(boot),
            serial: Some(self.serial.clone()),
            uuid: None,
            macs: vec![MAC],
            agent_version: "test".into(),
            address: None,
            arch: None,
            name: None,
            seen_on: Default::default(),
        };
        engine.submit(About::Agent(id), hello).await.unwrap();
    }

    pub async fn report(&self, engine: &Engine, id: MachineId) {
        let system = System {
            manufacturer: Some("Labworks".into()),
            product: Some("LW-R1".into()),
            serial: Some(self.serial.clone()),
            ..System::default()
        };
        let inventory = Inventory { system, firmware: Firmware::Uefi, kernel: "6.1".into(), ..Inventory::default() };
        let issued = engine.order(id, Mode::Ram, None, Duration::ZERO).await.unwrap();
        assert!(matches!(issued.order, Order::Commission { .. }), "{:?}", issued.order);
        let outcome = Outcome::Commissioned { inventory: Box::new(inventory), measured: vec![], bmc_user_made: false };
        engine
            .submit(About::Machine(id), Event::Reported { number: issued.number, outcome, findings: Vec::new() })
            .await
            .unwrap();
    }

    fn uploads(&self) -> usize {
        self.bmc.controls.count("POST /redfish/v1/UpdateService")
    }
}

pub async fn until(engine: &Engine, id: MachineId, what: &str, wanted: impl Fn(&Machine) -> bool) {
    let wait = async {
        while !engine.machine(id).is_some_and(|m| wanted(&m)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, wait).await.is_err() {
        panic!("never: {what}; {:#?}; {:#?}", engine.machine(id).unwrap().baseline, told(engine, id).await);
    }
}

pub async fn told(engine: &Engine, id: MachineId) -> Vec<String> {
    engine.db().events(id, 0, 200).await.unwrap().iter().map(|e| e.event.sentence()).collect()
}

pub fn rebooted(machine: &Machine) -> bool {
    let attempts = machine.baseline.as_ref().map_or(&[][..], |b| &b.attempts);
    attempts.iter().any(|a| a.what == "reboot" && a.ended.is_some())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_as_delivered_to_the_baseline_with_one_reboot() {
    let rack = Rack::new(BASELINE).await;
    rack.add(Part::Bmc, "BMC", "9.9.0");
    rack.add(Part::Bios, "BIOS", "2.5.0");
    let (engine, stop) = rack.engine().await;
    let id = rack.commission(&engine).await;
    until(&engine, id, "the reboot", rebooted).await;
    // Nothing more is done until the machine is back.
    assert_eq!((rack.uploads(), rack.bmc.hardware.starts().unwrap()), (2, 2));
    rack.boot(&engine, id, 2).await;
    until(&engine, id, "the end", |m| m.baseline.as_ref().is_some_and(|b| b.done)).await;
    // What the agent found before is not so any more: it takes the inventory again.
    rack.report(&engine, id).await;
    let machine = engine.machine(id).unwrap();
    assert_eq!(machine.state, State::Ready);
    assert_eq!(machine.baseline.as_ref().unwrap().findings, []);
    let plan = engine.firmware_plan(&machine).await.unwrap().unwrap();
    assert_eq!((plan.steps, plan.findings), (vec![], vec![]));
    let timeline = told(&engine, id).await;
    let in_order = [
        "BMC firmware 9.8.0 -> 9.9.0 (baseline rack R1)",
        "BIOS firmware 2.4.1 -> 2.5.0 (baseline rack R1)",
        "settings: power-profile (SysProfile) PerfPerWattOptimizedDapc -> PerfOptimized, sr-iov (SriovGlobalEnable) Disabled \
         -> Enabled, AcPwrRcvry Last -> On (baseline rack R1)",
        "reboot (baseline rack R1)",
        "is now as the baseline rack R1 wants it",
    ];
    let places: Vec<usize> = in_order.iter().filter_map(|s| timeline.iter().position(|t| t == s)).collect();
    assert!(places.len() == in_order.len() && places.is_sorted(), "{timeline:#?}");
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_the_bmc_writes_nothing_is_sent_twice() {
    let baseline = BASELINE.split("[[setting]]").next().unwrap().to_owned()
        + "[[firmware]]\ncomponent = \"bmc\"\nminimum = \"9.9.0\"\n";
    let rack = Rack::new(&baseline).await;
    rack.add(Part::Bmc, "BMC", "9.9.0");
    rack.bmc.controls.behave(|b| b.task = None);
    let (engine, stop) = rack.engine().await;
    let id = rack.commission(&engine).await;
    until(&engine, id, "the upload", |_| rack.uploads() == 1).await;
    stop.cancel();
    // The database has the action and what was begun, and no end of it.
    let (engine, stop) = rack.engine().await;
    until(&engine, id, "the look", |m| m.baseline.as_ref().is_some_and(|b| b.doing == "the BMC writes firmware")).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(rack.uploads(), 1);
    // Now the BMC is done, and the machine goes on.
    rack.bmc.controls.behave(|b| b.task = Some(Duration::ZERO));
    until(&engine, id, "the end", |m| m.baseline.as_ref().is_some_and(|b| b.done)).await;
    assert_eq!((rack.uploads(), rack.bmc.hardware.starts().unwrap()), (1, 1));
    assert_eq!(engine.machine(id).unwrap().baseline.as_ref().unwrap().findings, []);
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_that_does_not_stick_is_a_finding_and_the_machine_is_held() {
    let baseline = BASELINE.split("[attributes]").next().unwrap();
    let rack = Rack::new(baseline).await;
    rack.bmc.controls.fault("PATCH /redfish/v1/Systems/1/Bios/Settings", Fault::Ignored);
    let (engine, stop) = rack.engine().await;
    let id = rack.commission(&engine).await;
    until(&engine, id, "the end or the reboot", |m| rebooted(m) || matches!(m.state, State::Broken { .. })).await;
    if !matches!(engine.machine(id).unwrap().state, State::Broken { .. }) {
        rack.boot(&engine, id, 2).await;
        until(&engine, id, "the end", |m| matches!(m.state, State::Broken { .. })).await;
    }
    let machine = engine.machine(id).unwrap();
    let State::Broken { problem, .. } = &machine.state else { panic!() };
    assert_eq!(problem.code, "firmware.baseline");
    let findings = &machine.baseline.as_ref().unwrap().findings;
    assert_eq!(
        (findings[0].found.as_str(), findings[0].expected.as_str()),
        ("PerfPerWattOptimizedDapc", "PerfOptimized")
    );
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_that_changed_on_the_disk_is_not_sent() {
    let baseline = BASELINE.replace("required = true", "required = false");
    let baseline = baseline.split("[[setting]]").next().unwrap().to_owned()
        + "[[firmware]]\ncomponent = \"bios\"\nminimum = \"2.5.0\"\n";
    let rack = Rack::new(&baseline).await;
    let bundle = rack.add(Part::Bios, "BIOS", "2.5.0");
    std::fs::write(rack.depot().bundles().path(&bundle), "something else").unwrap();
    let (engine, stop) = rack.engine().await;
    let id = rack.commission(&engine).await;
    let failed = |m: &Machine| m.baseline.as_ref().is_some_and(|b| b.attempts.iter().any(|a| a.failed.is_some()));
    until(&engine, id, "the refusal", failed).await;
    assert_eq!(rack.uploads(), 0);
    let why = told(&engine, id).await;
    assert!(why.iter().any(|s| s.contains("failed: the bundle BIOS.bin has changed")), "{why:#?}");
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_built_in_holds_where_the_site_says_nothing() {
    let rack = Rack::new(&BASELINE.replace("LW-R*", "LW-R9")).await;
    let (engine, stop) = rack.engine().await;
    let id = rack.commission(&engine).await;
    until(&engine, id, "the reboot", rebooted).await;
    rack.boot(&engine, id, 2).await;
    until(&engine, id, "the end", |m| m.baseline.as_ref().is_some_and(|b| b.done)).await;
    assert_eq!(engine.machine(id).unwrap().baseline.as_ref().unwrap().name.as_deref(), Some("Labworks LW-R1"));
    stop.cancel();
}
