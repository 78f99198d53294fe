//! Images built for real, and booted.
//!
//! These need root, a package mirror, QEMU and minutes, so they run when asked for:
//! `cargo test --test it image -- --ignored --nocapture`. `RACKLINE_CACHE` names the cache that they build into.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;

use rackline::image::{Built, Cache, Catalogue, Entry, Options, Progress, SigningKey, Step, build, snapshot};

/// Prints each step once, with the seconds since the start.
struct Print(Instant, Mutex<String>);

impl Progress for Print {
    fn step(&self, step: &Step) {
        let line = format!("{}: {}", step.image, step.what);
        let mut last = self.1.lock().unwrap();
        if *last != line {
            println!("{:7.1} s  {line}", self.0.elapsed().as_secs_f64());
            *last = line;
        }
    }
}

fn built(name: &str) -> Built {
    let cache = Cache::open(&Cache::default_root().unwrap()).unwrap();
    let key = SigningKey::load_or_create(&cache.root().join("test.key")).unwrap();
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("images");
    let options =
        Options { recipes: &recipes, name, cache: &cache, key: &key, mirror: None, refresh: false, snapshot: None };
    let progress = Print(Instant::now(), Mutex::default());
    let built = build(&options, &progress).unwrap();
    println!("{:7.1} s  {name} is built", progress.0.elapsed().as_secs_f64());
    built
}

#[test]
#[ignore = "builds an image: root, network, minutes"]
fn image_build() {
    for name in std::env::var("RACKLINE_TEST_IMAGES").unwrap_or_else(|_| "agent kvm docker ovs".into()).split(' ') {
        println!("{:?}", built(name));
    }
}

/// The same recipe and the same packages give the same disk, bit by bit: built from nothing, and again from nothing, later,
/// by other processes under another umask and on one processor, on tmpfs, which lists folders in another order.
#[test]
#[ignore = "builds an image twice: root, network, minutes"]
fn image_is_reproducible() {
    let name = std::env::var("RACKLINE_TEST_IMAGES").unwrap_or_else(|_| "ovs".into());
    // Packages are fetched once: mirrors do not keep old versions.
    let debs = Cache::open(&Cache::default_root().unwrap()).unwrap().folder("debs").unwrap();
    let cache = |folder: &str| {
        let dir = tempfile::tempdir_in(folder).unwrap();
        assert!(Command::new("cp").arg("-R").args([&debs, dir.path()]).status().unwrap().success());
        dir
    };
    let build = |cache: &Path, shell: &str, more: &[&Path]| {
        let mut command = Command::new("sh");
        command.args(["-c", shell, env!("CARGO_BIN_EXE_rackline"), "image", "build", &name, "--cache"]).arg(cache);
        let ended = command.args(more).current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
        assert!(ended.success());
        only(cache)
    };
    let (plain, memory) = (cache(env!("CARGO_TARGET_TMPDIR")), cache("/dev/shm"));
    let first = build(plain.path(), "exec \"$0\" \"$@\"", &[]);
    let list = plain.path().join("snapshot");
    fs::write(&list, &first.manifest.labels[snapshot::LIST]).unwrap();
    let other = "umask 077; exec taskset -c 0 \"$0\" \"$@\"";
    let again = build(memory.path(), other, &[Path::new("--snapshot"), &list]);

    let table = |e: &Entry| e.manifest.chunks.iter().map(|c| (c.index, c.frame, c.raw)).collect::<Vec<_>>();
    let differ = table(&first).iter().zip(table(&again)).filter(|(a, b)| **a != *b).count();
    assert_eq!((differ, table(&first).len()), (0, table(&again).len()));
    assert_eq!(first.digest, again.digest);
}

/// The one image of a cache.
fn only(cache: &Path) -> Entry {
    let cache = Cache::open(cache).unwrap();
    let trusted = [cache.signing_key().unwrap().public()];
    let mut images = Catalogue::open(&cache.folder("images").unwrap(), &trusted).unwrap().images;
    assert_eq!(images.len(), 1);
    images.remove(0)
}
