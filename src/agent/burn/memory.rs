//! Patterns over all memory that is free, until the time is up: each word is written, and compared when all were.
//!
//! Our own, not `stress-ng --vm`: that one repeats its methods on small pieces and says only that it failed. Here it is known
//! how much of the memory was covered and how often, and a fault is told with the bits and the physical address, by which the
//! board's tools name the DIMM.

use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::Found;
use crate::agent::roots::Roots;
use crate::link::{Measured, MemoryBurn};
use crate::machine::{Finding, Severity, Who};

/// Left to the system in any case.
const SPARE: u64 = 128 << 20;
/// Words between two looks at the clock: 1 MiB, so that a piece has left the caches long before it is read again.
const PIECE: usize = (1 << 20) / 8;
/// Faults that are told one by one.
const TOLD: usize = 8;
const PAGE: u64 = 4096;

/// A word that came back changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fault {
    wrote: u64,
    read: u64,
    /// `None`: the kernel does not tell.
    physical: Option<u64>,
}

#[derive(Debug, Default)]
struct Outcome {
    /// Written and compared, counted each time.
    bytes: u64,
    /// Written and compared at least once.
    covered: u64,
    passes: u64,
    wrong: u64,
    faults: Vec<Fault>,
}

pub fn run(roots: &Roots, profile: &MemoryBurn, stop: &CancellationToken) -> Found {
    let mut found = Found::default();
    let Some(free) = available(roots) else {
        found.notes.push("the kernel does not tell how much memory is free: it was not tested".into());
        return found;
    };
    let bytes = (free / 100 * u64::from(profile.share_percent)).min(free.saturating_sub(SPARE));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let began = Instant::now();
    let all = patterns(bytes, threads, Duration::from_secs(profile.seconds.into()), stop, &|_, _| {});
    let seconds = began.elapsed().as_secs_f64().max(1e-9);
    let rate = all.bytes as f64 * 2.0 / seconds;
    let value = (rate / 1e4).round() / 100.0;
    found.measured.push(Measured::new("memory.pattern", value, "MB/s"));
    found.notes.push(format!(
        "patterns over {} of {} MiB of free memory, {} times over all of it",
        all.covered >> 20,
        free >> 20,
        all.passes
    ));
    found.findings.extend(finding(&all));
    found
}

fn available(roots: &Roots) -> Option<u64> {
    let text = std::fs::read_to_string(roots.proc.join("meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn finding(all: &Outcome) -> Option<Finding> {
    let first = all.faults.first()?;
    let bits = all.faults.iter().fold(0, |bits, fault| bits | (fault.wrote ^ fault.read));
    let places: Vec<String> = all.faults.iter().filter_map(|f| Some(format!("{:#x}", f.physical?))).collect();
    let places = if places.is_empty() { "unknown".into() } else { places.join(", ") };
    Some(Finding {
        id: "burn.memory".into(),
        part: "memory".into(),
        severity: Severity::Fault,
        cause: format!(
            "{} words came back changed (wrote {:#018x}, read {:#018x}; bits {bits:#x}; physical address {places})",
            all.wrong, first.wrote, first.read
        ),
        expected: "what was written".into(),
        found: format!("{} wrong words in {} MiB", all.wrong, all.bytes >> 20),
        who: Who::Racker,
        next: "the BMC's log may name the DIMM; seat the DIMMs again, then exchange one after the other".into(),
    })
}

/// What a word is to hold: its own address and the inverse, which finds address lines; alternating bits; and a sequence without
/// order and its inverse, which finds what depends on neighbours.
fn word(pass: u64, index: u64) -> u64 {
    match pass % 6 {
        0 => index,
        1 => !index,
        2 => 0x5555_5555_5555_5555,
        3 => 0xaaaa_aaaa_aaaa_aaaa,
        4 => super::mix(index ^ (pass << 40)),
        _ => !super::mix(index ^ ((pass - 1) << 40)),
    }
}

/// `spoil` may change the words of a region after they were written: the tests' broken memory.
fn patterns(
    bytes: u64,
    threads: usize,
    time: Duration,
    stop: &CancellationToken,
    spoil: &(dyn Fn(usize, &mut [u64]) + Sync),
) -> Outcome {
    let end = Instant::now() + time;
    let words = (bytes / 8) as usize / threads.max(1);
    let mut all = Outcome { passes: u64::MAX, ..Outcome::default() };
    std::thread::scope(|scope| {
        let work = |thread: usize| move || region(thread, words, end, stop, spoil);
        let workers: Vec<_> = (0..threads).map(|thread| scope.spawn(work(thread))).collect();
        for worker in workers {
            let Ok(one) = worker.join() else { continue };
            all.bytes += one.bytes;
            all.covered += one.covered;
            all.passes = all.passes.min(one.passes);
            all.wrong += one.wrong;
            all.faults.extend(one.faults);
        }
    });
    all.passes = if all.passes == u64::MAX { 0 } else { all.passes };
    all.faults.truncate(TOLD);
    all
}

fn region(
    thread: usize,
    words: usize,
    end: Instant,
    stop: &CancellationToken,
    spoil: &(dyn Fn(usize, &mut [u64]) + Sync),
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut region: Vec<u64> = Vec::new();
    // Address space only: a page is taken when the first pass writes it.
    if region.try_reserve_exact(words).is_err() {
        return outcome;
    }
    let base = (thread as u64) << 48;
    for pass in 0.. {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || stop.is_cancelled() {
            break;
        }
        // As much again for the comparison.
        let until = Instant::now() + left.mul_f64(0.45);
        let mut written = 0;
        while written < words && Instant::now() < until && !stop.is_cancelled() {
            let piece = written..(written + PIECE).min(words);
            let values = piece.clone().map(|i| word(pass, base | i as u64));
            match region.get_mut(piece.clone()) {
                Some(old) => old.iter_mut().zip(values).for_each(|(old, new)| *old = new),
                None => region.extend(values),
            }
            written = piece.end;
        }
        let Some(region) = region.get_mut(..written) else { break };
        spoil(thread, region);
        for (index, (read, i)) in black_box(&*region).iter().zip(0u64..).enumerate() {
            if index % PIECE == 0 && stop.is_cancelled() {
                return outcome;
            }
            let wrote = word(pass, base | i);
            if *read != wrote {
                outcome.wrong += 1;
                if outcome.faults.len() < TOLD {
                    outcome.faults.push(Fault { wrote, read: *read, physical: physical(read) });
                }
            }
        }
        outcome.bytes += written as u64 * 8;
        outcome.covered = outcome.covered.max(written as u64 * 8);
        outcome.passes += u64::from(written == words);
    }
    outcome
}

/// `/proc/self/pagemap` (`Documentation/admin-guide/mm/pagemap.rst`): bit 63 present, bits 0 to 54 the page frame, which the
/// kernel shows to root only.
fn physical(word: &u64) -> Option<u64> {
    let address = word as *const u64 as u64;
    let mut entry = [0; 8];
    let map = std::fs::File::open("/proc/self/pagemap").ok()?;
    map.read_exact_at(&mut entry, address / PAGE * 8).ok()?;
    let entry = u64::from_le_bytes(entry);
    let frame = entry & ((1 << 55) - 1);
    (entry >> 63 == 1 && frame != 0).then(|| frame * PAGE + address % PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_memory_is_covered_again_and_again() {
        let all = patterns(8 << 20, 2, Duration::from_millis(1500), &CancellationToken::new(), &|_, _| {});
        assert_eq!((all.covered, all.wrong), (8 << 20, 0));
        assert!(all.passes >= 1 && all.bytes >= all.passes * (8 << 20), "{all:?}");
        assert_eq!(finding(&all), None);
    }

    #[test]
    fn one_bit_of_one_word_is_found_with_its_place() {
        let spoil = |thread: usize, words: &mut [u64]| {
            if let Some(word) = words.get_mut(70_000).filter(|_| thread == 1) {
                *word |= 1 << 17;
            }
        };
        let all = patterns(4 << 20, 2, Duration::from_millis(1500), &CancellationToken::new(), &spoil);
        assert!(all.wrong >= 1, "{all:?}");
        let fault = all.faults[0];
        assert_eq!(fault.wrote ^ fault.read, 1 << 17);
        let finding = finding(&all).unwrap();
        assert_eq!((finding.severity, finding.who), (Severity::Fault, Who::Racker));
        assert!(finding.cause.contains("bits 0x20000"), "{}", finding.cause);
        // The tests run as root; where the kernel hides frames, it says so.
        assert!(finding.cause.contains("physical address 0x") || finding.cause.contains("unknown"));
    }

    #[test]
    fn a_withdrawn_test_ends_and_an_unknown_size_is_left_out() {
        let stop = CancellationToken::new();
        stop.cancel();
        let began = Instant::now();
        assert_eq!(patterns(1 << 20, 1, Duration::from_secs(600), &stop, &|_, _| {}).bytes, 0);
        assert!(began.elapsed() < Duration::from_secs(60));
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots { proc: dir.path().to_owned(), ..Roots::default() };
        let profile = MemoryBurn { seconds: 1, share_percent: 50 };
        assert_eq!(run(&roots, &profile, &CancellationToken::new()).notes.len(), 1);
    }
}
