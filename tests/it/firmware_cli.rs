//! `rackline firmware …` as people use it: the real binary, the appliance on a loopback port, and a simulated Redfish BMC.

use std::path::Path;

use rackline::engine::{BmcSetup, Engine};
use rackline::lab::redfish;
use rackline::lifecycle::{Machine, State};

use super::baseline::{BASELINE, Rack, rebooted, until};
use super::loader;

struct Desk {
    url: String,
    dir: tempfile::TempDir,
    serves: tokio::task::JoinHandle<()>,
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.serves.abort();
    }
}

impl Desk {
    async fn at(engine: &Engine, bundles: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let router = loader::people(dir.path(), engine, &toml::from_str(loader::CONFIG).unwrap());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serves = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let example = include_str!("../../rackline.example.toml");
        let of_site = format!("[firmware]\nbundles = {:?}\n", bundles);
        std::fs::write(dir.path().join("rackline.toml"), example.replace("[firmware]\n", &of_site)).unwrap();
        std::fs::write(dir.path().join("BMC.bin"), redfish::firmware_image("BMC", "9.9.0", "LW-R1")).unwrap();
        std::fs::write(dir.path().join("BIOS.bin"), redfish::firmware_image("BIOS", "2.5.0", "LW-R1")).unwrap();
        Self { url, dir, serves }
    }

    /// What the command printed, and whether it succeeded.
    async fn firmware(&self, words: &str) -> (bool, String) {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_rackline"));
        command.arg("firmware").args(words.split(' ')).args(["--url", &self.url]).current_dir(self.dir.path());
        let output = command.output().await.unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        println!("$ rackline firmware {words}\n{text}");
        (output.status.success(), text)
    }

    async fn done(&self, words: &str) -> String {
        let (done, text) = self.firmware(words).await;
        assert!(done, "{words}: {text}");
        text
    }
}

fn ready(machine: &Machine) -> bool {
    machine.state == State::Ready
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_is_added_planned_applied_and_shown() {
    let mut rack = Rack::new(BASELINE).await;
    rack.apply = false;
    let (engine, stop) = rack.engine_with(BmcSetup::default()).await;
    let id = rack.commission(&engine).await;
    let desk = Desk::at(&engine, &rack.bundles()).await;
    until(&engine, id, "looked at", |m| m.baseline.as_ref().is_some_and(|b| b.done)).await;
    let empty = desk.done("list").await;
    assert!(
        empty.contains("rack R1 (required)")
            && empty.contains("no bundle yet")
            && empty.contains("firmware.apply is false")
    );
    let lacks = desk.done("plan kvm-1").await;
    assert!(lacks.contains("LW-R1 by the baseline rack R1: "), "{lacks}");
    let of = "--vendor labworks --model LW-R1 --config rackline.toml";
    let wrong = [
        (format!("add nowhere.bin {of} --component bios --version 1"), "cannot read nowhere.bin"),
        (format!("add BIOS.bin {of} --component toaster --version 1"), "toaster"),
        (
            format!("add BIOS.bin {of} --component bios --version 2.5.0 --sha256 {}", "0".repeat(64)),
            "expected 00000000",
        ),
        (
            "add BIOS.bin --vendor Delll --model LW-R1 --config rackline.toml --component bios --version 1".into(),
            "no vendor \"Delll\"",
        ),
        ("remove nothing --config rackline.toml".into(), "nothing"),
        ("plan kvm-9".into(), "there is no machine"),
        ("check nowhere.toml".into(), "cannot read"),
        ("check rackline.toml".into(), "rackline.toml, line "),
    ];
    for (words, why) in &wrong {
        let (done, text) = desk.firmware(words).await;
        assert!(!done && text.contains(why), "{words}: {text}");
    }
    let added = desk.done(&format!("add BMC.bin {of} --component bmc --version 9.9.0")).await;
    assert!(added.contains("BMC.bin") && added.contains("9.9.0"), "{added}");
    desk.done(&format!("add BIOS.bin {of} --component bios --version 2.5.0")).await;
    let plan = desk.done("plan kvm-1").await;
    for line in [
        "  1. ",
        "BMC firmware 9.8.0 -> 9.9.0",
        "BIOS firmware 2.4.1 -> 2.5.0",
        "power-profile",
        "reboot",
        "firmware.apply is false",
    ] {
        assert!(plan.contains(line), "{plan}");
    }
    stop.cancel();
    drop((desk, engine));

    // The site has set firmware.apply, and the machine is commissioned.
    (rack.apply, rack.state) = (true, "again");
    let (engine, _stop) = rack.engine_with(BmcSetup::default()).await;
    let id = rack.commission(&engine).await;
    let desk = Desk::at(&engine, &rack.bundles()).await;
    until(&engine, id, "the reboot", rebooted).await;
    let meanwhile = desk.done("plan kvm-1").await;
    assert!(meanwhile.contains("under way: the machine restarts"), "{meanwhile}");
    rack.boot(&engine, id, 2).await;
    until(&engine, id, "the end", |m| m.baseline.as_ref().is_some_and(|b| b.done)).await;
    rack.report(&engine, id).await;
    until(&engine, id, "ready", ready).await;
    let after = desk.done("plan kvm-1").await;
    assert!(
        after.contains(": as the baseline wants it") && after.contains("is now as the baseline rack R1 wants it"),
        "{after}"
    );
    desk.done("remove BIOS.bin --config rackline.toml").await;
    assert!(!desk.done("list").await.contains("BIOS.bin"));
}
