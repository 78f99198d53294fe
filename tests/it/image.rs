//! Images built for real, and booted.
//!
//! These need root, a package mirror, QEMU and minutes, so they run when asked for:
//! `cargo test --test it image -- --ignored --nocapture`. `RACKLINE_CACHE` names the cache that they build into.

use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use rackline::image::{Built, Cache, Options, Progress, SigningKey, Step, build};

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
    let options = Options { recipes: &recipes, name, cache: &cache, key: &key, mirror: None, refresh: false };
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
