//! The life of a catalogue, through the command line: channels, roll-back, and removing what nobody needs.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rackline::image::channels::Channels;
use rackline::image::lint::Expected;
use rackline::image::{Cache, Entry};
use rackline::lifecycle::{Machine, Order, State};
use rackline::machine::{Digest, MachineId, Role, TargetRule};
use rackline::store::{Db, machines};
use serde_json::Value;

use crate::image_import::{disk, root, take};

struct Site {
    dir: tempfile::TempDir,
    cache: Cache,
    /// Oldest first.
    versions: Vec<Entry>,
}

impl Site {
    /// Four versions of one image, and an appliance whose state knows no machine.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("cache")).unwrap();
        let root = root(dir.path());
        // What no version changes: chunks that lie within it are shared, whatever the file system writes around it.
        let same: Vec<u8> = blake3::hash(b"same").as_bytes().iter().copied().cycle().take(20 << 20).collect();
        std::fs::write(root.join("usr/same"), same).unwrap();
        let version = |n: u8| {
            std::fs::write(root.join("etc/version"), [b'0' + n]).unwrap();
            let entry = take(&cache, &disk(dir.path(), &root), "kvm", &Expected::default(), None).unwrap().entry;
            // All of one day: the time of publishing decides, whose clock ticks in milliseconds.
            std::thread::sleep(Duration::from_millis(20));
            entry
        };
        let versions = (0..4).map(version).collect();
        let config = include_str!("../../rackline.example.toml")
            .replace("/var/lib/rackline", &dir.path().join("state").display().to_string())
            .replace("/var/cache/rackline", &cache.root().display().to_string());
        std::fs::write(dir.path().join("rackline.toml"), config).unwrap();
        Self { dir, cache, versions }
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("rackline.toml")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rackline"));
        command.arg("image").arg("--cache").arg(self.cache.root()).args(args).env("SUDO_USER", "olga");
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn refused(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn name(&self, version: usize) -> String {
        self.versions[version].name()
    }

    fn there(&self) -> Vec<String> {
        let names = self.json(&["list"]);
        let mut names: Vec<String> = names
            .as_array()
            .unwrap()
            .iter()
            .map(|i| format!("{}-{}", i["name"].as_str().unwrap(), i["release"].as_str().unwrap()))
            .collect();
        names.sort_by_key(|n| self.versions.iter().position(|v| v.name() == *n));
        names
    }

    /// The state of an appliance with one machine that this image was ordered for.
    async fn machine(&self, manifest: Digest) {
        let db = Db::open(&self.dir.path().join("state")).await.unwrap();
        let mut machine = Machine::new(MachineId::generate(), "web01".into(), 0, State::Deploying);
        machine.order = Some(Order {
            role: Role::Kvm.into(),
            image_name: "kvm".into(),
            manifest,
            hostname: "web01".parse().unwrap(),
            target: TargetRule::default(),
            ssh_keys: Vec::new(),
            compare_with_dd: false,
            setup: Default::default(),
        });
        let mut tx = db.write().await.unwrap();
        machines::save(&mut tx, &machine).await.unwrap();
        tx.commit().await.unwrap();
    }
}

#[tokio::test]
async fn a_version_lives_as_long_as_somebody_needs_it() {
    let site = Site::new();
    let config = site.config();
    let config = config.to_str().unwrap();
    let all: Vec<String> = (0..4).map(|n| site.name(n)).collect();
    for n in [0, 2] {
        let promote = ["promote", &all[n], "--channel", "stable"];
        assert!(site.refused(&promote).contains("has not been shown to boot"));
        site.json(&[&promote[..], &["--force", "no boot in this test"]].concat());
    }
    assert_eq!(site.json(&["show", "kvm@stable"])["image"], Value::from(all[2].clone()));
    let shared = &site.json(&["show", &all[3]])["shared"];
    assert_eq!(shared["with"], Value::from(all[2].clone()));
    let (same, of) = (shared["chunks"].as_u64().unwrap(), site.versions[3].manifest.chunks.len() as u64);
    assert!(same >= 1 && same < of, "{same} of {of}");

    // What cannot be asked is not answered with "none".
    for doubt in [vec!["gc", "--config", "/nonexistent.toml"], vec!["gc", "--config", config]] {
        assert!(site.refused(&doubt).contains("nothing is removed"));
        assert!(site.refused(&["remove", &all[1], "--config", "/nonexistent.toml"]).contains("nothing is removed"));
        assert_eq!(site.there(), all);
    }
    site.machine(site.versions[1].digest).await;
    let kept = site.json(&["gc", "--keep", "1", "--config", config]);
    assert_eq!(kept["removed"], Value::Array(vec![]), "each is needed: {kept}");
    let said = site.refused(&["remove", &all[1], "--config", config]);
    assert!(said.contains("web01 is ordered with it (deploying)"), "{said}");
    let said = site.refused(&["remove", &all[2], "--config", config]);
    assert!(said.contains("kvm@stable points to it"), "{said}");

    site.json(&["rollback", "kvm@stable"]);
    let channels = site.json(&["channels"]);
    assert_eq!(channels[0]["image"], Value::from(all[0].clone()));
    assert_eq!(channels[0]["history"].as_array().unwrap().len(), 3);
    assert_eq!(channels[0]["history"][1]["by"], "olga, untested: no boot in this test");
    assert_eq!(channels[0]["history"][2]["by"], "olga");
    assert!(site.refused(&["rollback", "kvm@stable"]).contains("nothing before"));

    let planned = site.json(&["gc", "--keep", "1", "--dry-run", "--config", config]);
    assert_eq!((planned["removed"].clone(), site.there().len()), (Value::from(vec![all[2].clone()]), 4));
    let done = site.json(&["gc", "--keep", "1", "--config", config]);
    assert_eq!(done["removed"], Value::from(vec![all[2].clone()]));
    assert_eq!(site.there(), [all[0].clone(), all[1].clone(), all[3].clone()]);
    site.json(&["verify", "kvm@stable"]);
}

#[test]
fn a_killed_promotion_leaves_the_channel_whole() {
    let site = Site::new();
    let images = site.cache.folder("images").unwrap();
    let mut known = None;
    for round in 0..40u64 {
        let image = site.name(round as usize % 2);
        let mut child = site
            .command(&["promote", &image, "--channel", "stable", "--force", "x"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(round * 500));
        child.kill().unwrap();
        child.wait().unwrap();
        // Old or new, and never less than was there before.
        let now = Channels::load(&images).unwrap().history("kvm@stable").len();
        assert!(now >= known.unwrap_or(0));
        known = Some(now);
    }
    site.json(&["promote", &site.name(3), "--channel", "stable", "--force", "x"]);
    assert_eq!(site.json(&["show", "kvm@stable"])["image"], Value::from(site.name(3)));
    assert!(Path::new(&images.join("channels.json")).exists());
}
