//! The fuzz targets as ordinary tests: known inputs, everything that a fuzzer once found (`tests/fuzz/kept`), and mutations
//! of both from a fixed seed. `make fuzz` goes on from here.

#[path = "../fuzz/targets.rs"]
pub mod targets;

use std::path::{Path, PathBuf};

use targets::{TARGETS, Target, seeds};

/// Inputs of each target: some seconds in all.
const MUTATIONS: usize = 4_000;
const LONGEST: usize = 4_096;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

/// xorshift64: the same inputs in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }

    /// One to eight changes: a bit, an edge value, a piece cut out, doubled, or taken from another input.
    fn mutate(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        const EDGES: [u8; 8] = [0, 1, 3, 0x7f, 0x80, 0xfe, 0xff, b'='];
        let mut bytes = inputs[self.below(inputs.len())].clone();
        for _ in 0..=self.below(8) {
            let at = self.below(bytes.len());
            let length = self.below(32).min(bytes.len().saturating_sub(at));
            match self.below(6) {
                _ if bytes.is_empty() => bytes.push(self.below(256) as u8),
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = EDGES[self.below(EDGES.len())],
                2 => drop(bytes.drain(at..at + length)),
                3 => drop(bytes.splice(at..at, bytes[at..at + length].to_vec())),
                4 => bytes.truncate(at),
                _ => {
                    let other = &inputs[self.below(inputs.len())];
                    let from = self.below(other.len());
                    let piece = other[from..(from + length).min(other.len())].to_vec();
                    bytes.splice(at..at + length, piece);
                }
            }
        }
        bytes.truncate(LONGEST);
        bytes
    }
}

/// With the input where it fails, so that it can be kept.
fn run(name: &str, target: Target, input: &[u8]) {
    if std::panic::catch_unwind(|| target(input)).is_err() {
        panic!("{name} fails on {}\nkeep it: xxd -r -p > tests/fuzz/kept/{name}-WHAT", hex::encode(input));
    }
}

#[test]
fn known_inputs_and_mutations_of_them() {
    for (name, target) in TARGETS {
        let mut inputs = seeds(name, &folder("fixtures/dhcp"));
        assert!(!inputs.is_empty(), "{name} has no seed");
        for entry in std::fs::read_dir(folder("fuzz/kept")).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap().to_str().unwrap().starts_with(&format!("{name}-")) {
                inputs.push(std::fs::read(path).unwrap());
            }
        }
        inputs.push(Vec::new());
        inputs.iter().for_each(|input| run(name, *target, input));
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        (0..MUTATIONS).for_each(|_| run(name, *target, &random.mutate(&inputs)));
    }
}
