//! The whole way, on the lab's machines: real firmware, real ROMs, real packets, a BMC that is not ours, a Debian that boots
//! by itself. Needs root and the images of `make images`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rackline::api::view::{EventView, MachineView};
use rackline::image::Cache;
use rackline::lab::{BmcKind, Disk, DiskKind, Lab, Listed, MachineSpec, Operator, Spec, ready};
use rackline::machine::{Firmware, Role};

/// Bounds a hang, not a speed: the machines are emulated, several at a time, on whatever there is.
const DELIVERY: Duration = Duration::from_secs(15 * 60);

fn machine(role: Role, firmware: Firmware) -> MachineSpec {
    let disks = vec![Disk { bytes: 10 << 30, kind: DiskKind::Nvme }];
    MachineSpec {
        role: role.into(),
        firmware,
        memory_bytes: 2 << 30,
        disks,
        bmc: BmcKind::Ipmi,
        listed: Listed::Right,
        smbios: None,
    }
}

fn spec(name: &str, dir: &Path, machines: Vec<MachineSpec>) -> Spec {
    Spec {
        name: format!("{name}-{}", std::process::id()),
        dir: dir.join("lab"),
        cache: Cache::default_root().unwrap(),
        binary: PathBuf::from(env!("CARGO_BIN_EXE_rackline")),
        machines,
    }
}

/// A lab whose appliance answers.
async fn up(name: &str, dir: &Path, machines: Vec<MachineSpec>) -> (Lab, Operator, Vec<MachineView>) {
    let spec = spec(name, dir, machines);
    let mut lab = tokio::task::spawn_blocking(move || Lab::start(spec)).await.unwrap().unwrap();
    lab.appliance.start().unwrap();
    let api = Operator::new(lab.appliance.address).unwrap();
    let machines = lab.machines.clone();
    let views = ready(&api, &mut lab.appliance, &machines).await.unwrap();
    (lab, api, views)
}

/// Waits for a state; anything that ends otherwise fails with what the machine and its console say.
async fn until(
    lab: &Lab,
    api: &Operator,
    name: &str,
    what: &str,
    mut done: impl FnMut(&MachineView) -> bool,
) -> MachineView {
    let deadline = Instant::now() + DELIVERY;
    loop {
        // The appliance may be down in the middle of a test.
        if let Ok(view) = api.by_name(name).await {
            if done(&view) {
                return view;
            }
            let number = lab.machines.iter().position(|m| m.name() == name).unwrap() + 1;
            let stuck = Instant::now() > deadline;
            if view.state == "broken" || stuck {
                let events: Vec<EventView> = api.events(view.id).await.unwrap_or_default();
                let story: Vec<String> = events.iter().map(|e| format!("{} {}", e.sequence, e.text)).collect();
                let console = lab.console(number).unwrap_or_default();
                let tail: Vec<&str> = console.lines().rev().take(40).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                panic!(
                    "{name} waits for {what} and is {} {:?} {:?}\nevents:\n{}\nconsole:\n{}",
                    view.state,
                    view.problem,
                    view.waiting,
                    story.join("\n"),
                    tail.join("\n")
                );
            }
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

fn passport(view: &MachineView) -> &serde_json::Value {
    &view.passport.as_ref().unwrap()["passport"]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bios_machine_is_delivered_though_the_appliance_is_killed_in_the_middle() {
    let dir = tempfile::tempdir().unwrap();
    let (mut lab, api, views) = up("delivery-kill", dir.path(), vec![machine(Role::Kvm, Firmware::Bios)]).await;
    let node = views[0].name.clone();
    api.deploy(views[0].id, Role::Kvm, false).await.unwrap();
    api.power(views[0].id, "on").await.unwrap();
    // In the middle of the write: a quarter of the bytes are on the disk.
    until(&lab, &api, &node, "the write", |m| {
        m.state == "deploying" && m.progress.as_ref().is_some_and(|p| p.total > 100 << 20 && p.done > p.total / 4)
    })
    .await;
    lab.appliance.kill().unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    lab.appliance.start().unwrap();
    let view = until(&lab, &api, &node, "delivery", |m| m.state == "delivered").await;

    let whole = api.machine(view.id).await.unwrap();
    let passport = passport(&whole);
    assert_eq!((passport["role"].as_str(), passport["firmware"].as_str()), (Some("kvm"), Some("bios")));
    assert!(whole.checks.iter().any(|c| c.id == "kvm.guest" && c.passed));
    let events = api.events(view.id).await.unwrap();
    let count = |kind: &str| events.iter().filter(|e| e.kind == kind).count();
    assert_eq!(count("ordered"), 1);
    // The agent went on writing while the appliance was gone: one disk chosen, one image written.
    let wrote = events.iter().filter(|e| e.text.starts_with("wrote")).count();
    assert_eq!(wrote, 1, "{:?}", events.iter().map(|e| &e.text).collect::<Vec<_>>());
    tokio::task::spawn_blocking(move || lab.stop()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_uefi_machine_is_delivered_released_and_blank_again() {
    let dir = tempfile::tempdir().unwrap();
    let liar =
        MachineSpec { listed: Listed::WrongPassword("0123456789abcdef".into()), ..machine(Role::Kvm, Firmware::Bios) };
    let (lab, api, views) = up("delivery-uefi", dir.path(), vec![machine(Role::Docker, Firmware::Uefi), liar]).await;
    let name = |number: usize| lab.machine(number).unwrap().name();
    let id = |number: usize| views.iter().find(|v| v.name == name(number)).unwrap().id;

    // Its BMC does not take the password of the list: named as such, and the other machine does not care.
    api.power(id(2), "on").await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(300);
    let problem = loop {
        if let Some(problem) = api.by_name(&name(2)).await.unwrap().problem {
            break problem;
        }
        assert!(Instant::now() < deadline, "the wrong password is not noticed");
        tokio::time::sleep(Duration::from_millis(250)).await;
    };
    assert!(problem.code == "bmc.auth" && problem.hint.is_some(), "{problem:?}");

    api.deploy(id(1), Role::Docker, false).await.unwrap();
    api.power(id(1), "on").await.unwrap();
    let view = until(&lab, &api, &name(1), "delivery", |m| m.state == "delivered").await;
    let whole = api.machine(view.id).await.unwrap();
    assert_eq!(passport(&whole)["firmware"].as_str(), Some("uefi"));
    let console = lab.console(1).unwrap();
    assert!(console.contains("login:"), "the installed system never asked for a login");

    let refused = api.deploy(view.id, Role::Docker, false).await.unwrap_err();
    assert!(refused.message().contains("release it first"), "{refused}");
    api.release(view.id).await.unwrap();
    let view = until(&lab, &api, &name(1), "a blank disk", |m| m.state == "ready").await;
    assert!(view.role.is_none());
    let mut start = vec![1; 64 << 20];
    std::fs::File::open(lab.machine(1).unwrap().disk(0)).unwrap().read_exact(&mut start).unwrap();
    assert!(start.iter().all(|b| *b == 0), "the first 64 MiB of the disk are not blank after the release");
    tokio::task::spawn_blocking(move || lab.stop()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_nobody_listed_is_found_out_and_its_bmc_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let hdd = Disk { bytes: 4 << 30, kind: DiskKind::Hdd };
    let spec = MachineSpec {
        listed: Listed::Not,
        smbios: None,
        memory_bytes: 1 << 30,
        disks: vec![hdd],
        ..machine(Role::Ovs, Firmware::Bios)
    };
    let (lab, api, views) = up("delivery-stranger", dir.path(), vec![spec]).await;
    assert!(views.is_empty());
    // Somebody presses the power button.
    let (serial, bmc) = (lab.machine(1).unwrap().serial(), lab.machine(1).unwrap().bmc_address());
    lab.chassis(1).unwrap().on().unwrap();
    let deadline = Instant::now() + DELIVERY;
    while !api.by_name(&serial).await.is_ok_and(|m| m.state == "ready") {
        assert!(Instant::now() < deadline, "never ready:\n{}", lab.console(1).unwrap());
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let view = api.by_name(&serial).await.unwrap();
    let inventory = view.inventory.as_ref().unwrap();
    assert_eq!(inventory.bmc.as_ref().and_then(|b| b.address), Some(bmc.into()));
    assert!(inventory.disks[0].rotational && inventory.system.manufacturer.as_deref() == Some("Labworks"));

    // An order that its only disk does not fit: refused by name before a byte is written.
    api.deploy(view.id, Role::Ovs, false).await.unwrap();
    while api.by_name(&serial).await.unwrap().state != "broken" {
        assert!(Instant::now() < deadline, "never refused");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let problem = api.by_name(&serial).await.unwrap().problem.unwrap();
    assert!(problem.code == "disk.none" && problem.title.contains("rotating"), "{problem:?}");

    // The user that the agent made on the BMC works from outside.
    api.power(view.id, "off").await.unwrap();
    while lab.chassis(1).unwrap().is_on() {
        assert!(Instant::now() < deadline, "its BMC was not found");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    tokio::task::spawn_blocking(move || lab.stop()).await.unwrap().unwrap();
}
