//! Burn-in with the real appliance: agents in folders with loop devices, stress-ng, and one another as the network. Needs root.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rackline::agent::Options;
use rackline::api;
use rackline::boot::{BootAnswer, Policy, Sighting, Stage};
use rackline::engine::{About, Engine, Site};
use rackline::httpd;
use rackline::lifecycle::{Event, Machine as Known, State};
use rackline::link::{BurnProfile, CpuBurn, DiskBurn, MemoryBurn, NetworkBurn};
use rackline::machine::{MacAddr, MachineId, Severity};
use tokio_util::sync::CancellationToken;

use crate::agent::{Living, Machine, TestDisk};
use crate::engine::{site, start_on};
use crate::loader::{CONFIG, shared};

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(180);

fn profile(wait_seconds: u32, cpu_seconds: u32) -> BurnProfile {
    BurnProfile {
        name: "it".into(),
        rounds: 1,
        network: NetworkBurn { seconds: 1, wait_seconds, across: false },
        disk: DiskBurn { seconds: 1, write_mib: 8 },
        cpu: CpuBurn { seconds: cpu_seconds, stressors: vec!["cpu".into()] },
        memory: MemoryBurn { seconds: 1, share_percent: 1 },
        smart: None,
    }
}

/// The appliance with its doors for agents, and the port.
async fn appliance(dir: &Path, burn: BurnProfile) -> (Engine, u16, CancellationToken) {
    let (engine, stop) = start_on(Site { burn: Some(burn), ..site(dir).await }).await;
    let shared = shared(dir, &engine, &toml::from_str(CONFIG).unwrap());
    let router = api::agents(shared).merge(api::burn::agents(engine.clone()));
    let web = httpd::Server::new(|_| None, router, httpd::Limits::default(), Default::default(), stop.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(web.run(listener));
    (engine, port, stop)
}

/// What the agent looks at beside disks: one network card, the route to this machine, its memory.
fn furnish(machine: &Machine, mac: MacAddr) {
    let (sys, proc) = (&machine.roots.sys, &machine.roots.proc);
    std::fs::create_dir_all(sys.join("class/net/eno1/device")).unwrap();
    std::fs::write(sys.join("class/net/eno1/address"), mac.to_string()).unwrap();
    std::fs::create_dir_all(proc.join("net")).unwrap();
    let route = "Iface Destination Gateway Flags RefCnt Use Metric Mask\neno1 0000007F 0 1 0 0 0 000000FF\n";
    std::fs::write(proc.join("net/route"), route).unwrap();
    std::fs::copy("/proc/meminfo", proc.join("meminfo")).unwrap();
    boots(machine, 1);
}

/// From now on it is another boot.
fn boots(machine: &Machine, boot: u128) {
    let random = machine.roots.proc.join("sys/kernel/random");
    std::fs::create_dir_all(&random).unwrap();
    std::fs::write(random.join("boot_id"), uuid::Uuid::from_u128(boot).to_string()).unwrap();
    let _ = std::fs::remove_dir_all(&machine.roots.run);
}

/// Boots it as far as its agent.
async fn boot(engine: &Engine, port: u16, machine: &Machine, mac: MacAddr) -> (MachineId, Living) {
    let address = "127.0.0.1".parse().ok();
    let sighting = Sighting { mac, uuid: None, arch: None, address, stage: Stage::Ipxe, relay: None };
    let BootAnswer::Agent { machine: id, token } = engine.boot_answer(sighting).await.unwrap() else { panic!() };
    let line =
        format!("rackline.url=http://127.0.0.1:{port} rackline.machine={id} rackline.token={token} rackline.key=abcd");
    let mut options = Options::from_kernel_command_line(&line).unwrap();
    options.roots = machine.roots.clone();
    options.hooks.leave = Arc::new(|_| Ok(()));
    (id, Living::start(options))
}

async fn until(engine: &Engine, id: MachineId, what: &str, is: impl Fn(&Known) -> bool) -> Arc<Known> {
    let wait = async {
        loop {
            match engine.machine(id) {
                Some(machine) if is(&machine) => return machine,
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let found = tokio::time::timeout(PATIENCE, wait).await;
    found.unwrap_or_else(|_| panic!("{what}: {:?}", engine.machine(id)))
}

fn notes(machine: &Known) -> Vec<String> {
    machine.burn.iter().flat_map(|burn| &burn.done).flat_map(|done| done.notes.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_are_burned_in_with_each_other_and_a_disk_with_data_is_only_read() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, port, stop) = appliance(dir.path(), profile(60, 1)).await;
    let macs = [MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2])];
    let (blank, full) = (TestDisk::blank(160 * MIB), TestDisk::new(160 * MIB));
    let machines = [Machine::new(&[("vda", &blank)]), Machine::new(&[("vda", &full)])];
    let before = full.read(0, 160 << 20);
    let mut lives = Vec::new();
    for (machine, mac) in machines.iter().zip(macs) {
        furnish(machine, mac);
        lives.push(boot(&engine, port, machine, mac).await);
    }
    for (id, _) in &lives {
        let machine = until(&engine, *id, "ready", |m| m.state == State::Ready).await;
        assert_eq!(machine.findings.iter().find(|f| f.severity > Severity::Note), None);
        assert_eq!(machine.burn.as_ref().unwrap().done(), ["network", "disks", "cpu", "memory"]);
        let value = |name: &str| machine.measured.iter().find(|m| m.name == name).map(|m| m.value);
        for name in
            ["net.send.eno1", "net.receive.eno1", "disk.read.vda", "disk.randread.vda", "cpu.stress", "memory.pattern"]
        {
            assert!(value(name).is_some_and(|value| value > 0.0), "{name}: {:?}", machine.measured);
        }
        let held = notes(&machine).contains(&"vda holds data and was only read".to_owned());
        assert_ne!(value("disk.write.vda").is_some(), held);
        let other = lives.iter().find(|(other, _)| other != id).unwrap().0;
        let name = engine.machine(other).unwrap().name.clone();
        assert!(notes(&machine).contains(&format!("measured with {name}")), "{:?}", notes(&machine));
    }
    assert!(blank.read(0, 160 << 20).iter().all(|b| *b == 0), "it is left as it was");
    assert!(before == full.read(0, 160 << 20), "it was only read");
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_costs_the_test_that_ran_and_a_stop_frees_the_machine_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, port, stop) = appliance(dir.path(), profile(1, 3600)).await;
    let mac = MacAddr([2, 0, 0, 0, 0, 3]);
    let disk = TestDisk::blank(160 * MIB);
    let machine = Machine::new(&[("vda", &disk)]);
    furnish(&machine, mac);
    let (id, life) = boot(&engine, port, &machine, mac).await;
    let done = |m: &Known| m.burn.as_ref().map_or(0, |burn| burn.done.len());
    let known = until(&engine, id, "two tests", |m| done(m) == 2).await;
    // It was alone.
    let notes = notes(&known);
    assert!(notes.iter().any(|note| note.starts_with("received from the appliance at ")), "{notes:?}");
    assert!(notes.iter().any(|note| note.starts_with("sent to the appliance at ")), "{notes:?}");
    drop(life);
    boots(&machine, 2);
    let (_, _life) = boot(&engine, port, &machine, mac).await;
    let known = until(&engine, id, "the next boot", |m| m.burn.as_ref().is_some_and(|burn| burn.restarts == 1)).await;
    assert_eq!(
        (known.burning().unwrap().done(), known.state.name()),
        (vec!["network".into(), "disks".into()], "commissioning")
    );
    engine.submit(About::Machine(id), Event::BurnInStopped).await.unwrap();
    let known = until(&engine, id, "ready", |m| m.state == State::Ready).await;
    assert!(known.findings.iter().any(|f| f.id == "burn.restarted"), "{:?}", known.findings);
    // The load of an hour has ended: the same agent does the next one, by order.
    let profile = Box::new(BurnProfile { name: "again".into(), ..profile(1, 1) });
    engine.submit(About::Machine(id), Event::BurnInWanted { profile, overwrite: false, asked: true }).await.unwrap();
    let known = until(&engine, id, "ready again", |m| m.state == State::Ready).await;
    let burn = known.burn.as_ref().unwrap();
    assert_eq!((burn.done.len(), burn.restarts), (4, 0));
    assert!(!known.findings.iter().any(|f| f.id.starts_with("burn.")), "{:?}", known.findings);
    stop.cancel();
}
