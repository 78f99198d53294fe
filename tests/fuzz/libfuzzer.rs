//! One target under libFuzzer: its name in `RACKLINE_FUZZ`, libFuzzer's own options as arguments. With `RACKLINE_SEEDS=DIR`
//! the target's known inputs are written there first.

#![no_main]

mod targets;

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<targets::Target> = LazyLock::new(|| {
    let name = std::env::var("RACKLINE_FUZZ").unwrap_or_default();
    let found = targets::TARGETS.iter().find(|(n, _)| *n == name);
    let Some((_, target)) = found else {
        let names: Vec<_> = targets::TARGETS.iter().map(|(n, _)| *n).collect();
        eprintln!("RACKLINE_FUZZ is {name:?} and none of {}", names.join(" "));
        std::process::exit(2);
    };
    if let Some(folder) = std::env::var_os("RACKLINE_SEEDS") {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/dhcp");
        for (i, seed) in targets::seeds(&name, &fixtures).iter().enumerate() {
            std::fs::write(Path::new(&folder).join(format!("seed-{i:03}")), seed).unwrap();
        }
        return |_| ();
    }
    *target
});

fuzz_target!(|bytes: &[u8]| TARGET(bytes));
