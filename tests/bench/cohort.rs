//! What it costs to judge one machine beside its twins, with few twins and with many; for comparison, the median and MAD of
//! the same twins by sorting them anew for each machine. See `cohort.sh`.

use std::hint::black_box;
use std::time::Instant;

use rackline::judge::cohort::{Cohorts, Floors};
use rackline::link::Measured;
use rackline::machine::{Inventory, System};

/// Machines judged for each figure.
const JUDGED: usize = 2000;
const NAMES: [&str; 4] = ["cpu.blake3", "cpu.stress", "memory.copy", "power.load"];

fn main() {
    println!("{:>8} {:>14} {:>14} {:>8}", "twins", "us/machine", "sorting", "ratio");
    let costs: Vec<f64> = [200, 2_000, 20_000].into_iter().map(row).collect();
    println!("cost with 20,000 twins over that with 200: {:.2}", costs[2] / costs[0]);
}

fn row(twins: usize) -> f64 {
    let inventory =
        Inventory { system: System { product: Some("LW-C1".into()), ..System::default() }, ..Inventory::default() };
    let mut state = 1u64;
    let mut values = || {
        NAMES.map(|name| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            Measured::new(name, 900.0 + (state >> 40) as f64 / 1e6, "MB/s")
        })
    };
    let mut cohorts = Cohorts::default();
    for _ in 0..twins {
        cohorts.replace(None, Some((&inventory, &values())));
    }
    let sorted: Vec<f64> = (0..twins).map(|_| values()[0].value).collect();
    let mut machines: Vec<_> = (0..JUDGED).map(|_| values()).collect();

    let start = Instant::now();
    for measured in &mut machines {
        black_box(cohorts.judge(&inventory, None, measured, &Floors::new()));
    }
    let ours = start.elapsed().as_secs_f64() * 1e6 / JUDGED as f64;

    let repeats = (JUDGED * 200 / twins).max(20);
    let start = Instant::now();
    for _ in 0..repeats * NAMES.len() {
        black_box(by_sorting(&sorted));
    }
    let naive = start.elapsed().as_secs_f64() * 1e6 / repeats as f64;
    println!("{twins:>8} {ours:>14.2} {naive:>14.2} {:>8.3}", ours / naive);
    ours
}

fn by_sorting(values: &[f64]) -> (f64, f64) {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    let median = values[values.len() / 2];
    values.iter_mut().for_each(|value| *value = (*value - median).abs());
    values.sort_unstable_by(f64::total_cmp);
    (median, values[values.len() / 2])
}
