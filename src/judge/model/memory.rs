//! DIMMs: how many, how large, how fast, in which slots, and whether every channel has its share.

use std::collections::{BTreeMap, BTreeSet};

use super::bom;
use super::counted;
use crate::machine::{Dimm, Finding, Inventory, Memory, Severity, Who};

pub fn judge(row: Option<&bom::Memory>, inventory: &Inventory, findings: &mut Vec<Finding>) {
    let Some(row) = row else { return };
    let memory = &inventory.memory;
    let before = findings.len();
    population(row, memory, findings);
    if findings.len() == before {
        findings.extend(unbalanced(row, memory));
    }
    kinds(row, memory, findings);
}

/// `DIMM B4`, `DIMMs A4, B4`, `DIMM_C1`.
fn named(slots: &[impl AsRef<str>]) -> String {
    let names = slots.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join(", ");
    match (names.to_ascii_uppercase().contains("DIMM"), slots.len()) {
        (true, _) => names,
        (false, 1) => format!("DIMM {names}"),
        (false, _) => format!("DIMMs {names}"),
    }
}

struct Told<'a> {
    id: &'a str,
    part: String,
    cause: String,
    expected: String,
    found: String,
    who: Who,
    next: &'a str,
}

impl Told<'_> {
    fn with(self, severity: Severity) -> Finding {
        let Told { id, part, cause, expected, found, who, next } = self;
        Finding { id: id.into(), part, severity, cause, expected, found, who, next: next.into() }
    }
}

/// What is missing, too many, or in another slot.
fn population(row: &bom::Memory, memory: &Memory, findings: &mut Vec<Finding>) {
    let (count, there) = (*row.count.as_ref(), memory.dimms.len());
    let expected = format!("{count} × {}", row.size);
    let found = format!("{there} DIMMs");
    let is_wanted = |slot: &str| row.slots.iter().any(|wanted| wanted.eq_ignore_ascii_case(slot));
    let elsewhere: Vec<&str> = match row.slots.is_empty() {
        true => Vec::new(),
        false => memory.dimms.iter().map(|dimm| dimm.slot.as_str()).filter(|slot| !is_wanted(slot)).collect(),
    };
    if there < count {
        let names = if elsewhere.is_empty() { missing(row, memory, count - there) } else { None };
        let part = match names.as_deref() {
            Some(slots) => named(slots),
            None => counted(count - there, "DIMM"),
        };
        let told = Told {
            id: "memory.missing",
            cause: format!("{part} missing: {there} of {count} × {}", row.size),
            part: if names.is_some() { part } else { "memory".into() },
            expected,
            found,
            who: Who::Racker,
            next: "seat it again, or put it in; a DIMM that is there and not seen is exchanged",
        };
        findings.push(told.with(row.severity));
    } else if there > count {
        let told = Told {
            id: "memory.extra",
            part: "memory".into(),
            cause: format!("{there} DIMMs found, {count} expected"),
            expected,
            found,
            who: Who::Operator,
            next: "compare with the order; correct the model, or take out what is too many",
        };
        findings.push(told.with(Severity::Warning.min(row.severity)));
    } else if !elsewhere.is_empty() {
        let populated = |slot: &str| memory.dimms.iter().any(|dimm| dimm.slot.eq_ignore_ascii_case(slot));
        let vacant: Vec<&str> = row.slots.iter().map(String::as_str).filter(|slot| !populated(slot)).collect();
        let part = named(&elsewhere);
        let told = Told {
            id: "memory.slot",
            cause: format!("{part} belongs in {}", vacant.join(", ")),
            part,
            expected: vacant.join(", "),
            found: elsewhere.join(", "),
            who: Who::Racker,
            next: "move it: channels are filled in the order of the board's manual",
        };
        findings.push(told.with(row.severity));
    }
}

/// The names of slots in which `count` DIMMs are missing, where that is certain: the model's, or those that would make the banks
/// alike.
fn missing(row: &bom::Memory, memory: &Memory, count: usize) -> Option<Vec<String>> {
    let taken: BTreeSet<String> = memory.dimms.iter().map(|dimm| dimm.slot.to_ascii_uppercase()).collect();
    if !row.slots.is_empty() {
        let vacant: Vec<String> =
            row.slots.iter().filter(|slot| !taken.contains(&slot.to_ascii_uppercase())).cloned().collect();
        return (vacant.len() == count).then_some(vacant);
    }
    let (taken, empty) = (banks(memory.dimms.iter().map(|dimm| &dimm.slot)), banks(&memory.empty));
    let score = |bank: &str, position: u32| {
        let others = taken.iter().filter(|(name, places)| **name != bank && places.contains_key(&position)).count();
        let own = taken.get(bank);
        let has = |found: &dyn Fn(u32) -> bool| own.is_some_and(|places| places.keys().any(|place| found(*place)));
        // A gap between neighbours is a sign, but less of one than all other banks.
        (others, has(&|place| place < position) && has(&|place| place > position))
    };
    let mut vacant: Vec<_> = empty
        .iter()
        .flat_map(|(bank, places)| places.iter().map(|(place, name)| (score(bank, *place), name.to_string())))
        .collect();
    vacant.sort_by_key(|slot| std::cmp::Reverse(slot.0));
    let last = vacant.get(count.checked_sub(1)?)?.0;
    let next = vacant.get(count).map(|candidate| candidate.0);
    // As many others fit as well: nobody can say.
    if last == (0, false) || next.is_some_and(|next| next == last) {
        return None;
    }
    let mut names: Vec<String> = vacant.into_iter().take(count).map(|(_, name)| name).collect();
    names.sort();
    Some(names)
}

type Banks<'a> = BTreeMap<&'a str, BTreeMap<u32, &'a str>>;

/// Slot names by what stands before the last number, and that number: `B4` is 4 of `B`, `DIMM_A0` is 0 of `DIMM_A`.
fn banks<'a>(slots: impl IntoIterator<Item = &'a String>) -> Banks<'a> {
    let mut banks = Banks::new();
    for slot in slots {
        let name = slot.trim_end_matches(|c: char| c.is_ascii_digit());
        if let Ok(place) = slot[name.len()..].parse() {
            banks.entry(name).or_default().insert(place, slot.as_str());
        }
    }
    banks
}

/// Slots of one channel on any board.
const MAX_PER_CHANNEL: usize = 3;

/// Every channel has as many DIMMs as the others, or one more where they do not come out even.
fn unbalanced(row: &bom::Memory, memory: &Memory) -> Option<Finding> {
    let all = banks(memory.dimms.iter().map(|dimm| &dimm.slot).chain(&memory.empty));
    let taken: BTreeSet<&str> = memory.dimms.iter().map(|dimm| dimm.slot.as_str()).collect();
    // Channel by name, and how many of its slots are taken.
    let mut channels: BTreeMap<String, usize> = BTreeMap::new();
    for (bank, places) in &all {
        let first = *places.keys().next()?;
        for (place, slot) in places {
            let channel = match (&row.channels, places.len() <= MAX_PER_CHANNEL) {
                (_, true) => (*bank).to_owned(),
                (Some(channels), false) => {
                    let channel = (place - first) as usize % channels.as_ref();
                    format!("{bank}{}", first as usize + channel)
                }
                (None, false) => return None,
            };
            *channels.entry(channel).or_default() += usize::from(taken.contains(slot));
        }
    }
    let dimms: usize = channels.values().sum();
    if channels.is_empty() || dimms != memory.dimms.len() {
        return None;
    }
    let (least, most) = (dimms / channels.len(), dimms.div_ceil(channels.len()));
    if channels.values().all(|taken| (least..=most).contains(taken)) {
        return None;
    }
    let each = channels.iter().map(|(name, taken)| format!("{name} {taken}")).collect::<Vec<_>>().join(", ");
    let populated = channels.values().filter(|taken| **taken > 0).count();
    let cause = match populated < channels.len().min(dimms) {
        true => format!("{populated} of {} channels populated: bandwidth is lost", channels.len()),
        false => "the channels have different numbers of DIMMs: bandwidth is lost".to_owned(),
    };
    let told = Told {
        id: "memory.unbalanced",
        part: "memory".into(),
        cause,
        expected: if least == most {
            format!("{least} on each channel")
        } else {
            format!("{least} or {most} on each channel")
        },
        found: each,
        who: Who::Racker,
        next: "move DIMMs so that every channel has as many, in the order of the board's manual",
    };
    Some(told.with(row.severity))
}

/// Size and speed of those that are there.
fn kinds(row: &bom::Memory, memory: &Memory, findings: &mut Vec<Finding>) {
    let count = memory.dimms.len();
    let mut wrong = |id, what: &str, expected: String, dimms: Vec<&Dimm>, found: &dyn Fn(&Dimm) -> String| {
        let slots: Vec<&str> = dimms.iter().map(|dimm| dimm.slot.as_str()).collect();
        let Some(first) = dimms.first() else { return };
        let all = dimms.iter().map(|dimm| format!("{} {}", dimm.slot, found(dimm))).collect::<Vec<_>>().join(", ");
        let told = match dimms.len() {
            1 => Told {
                id,
                part: named(&[&first.slot]),
                cause: format!("{} {what}: {}, expected {expected}", named(&[&first.slot]), found(first)),
                expected,
                found: found(first),
                who: Who::Supplier,
                next: "exchange it for one as it was ordered",
            },
            several => Told {
                id,
                part: named(&slots),
                cause: format!("{several} of {count} DIMMs {what}: {}, expected {expected}", found(first)),
                expected,
                found: all,
                who: Who::Supplier,
                next: "exchange them for those that were ordered, or correct the model",
            },
        };
        findings.push(told.with(row.severity));
    };
    let gib = |dimm: &Dimm| match dimm.size_bytes % (1 << 30) {
        0 => format!("{} GiB", dimm.size_bytes >> 30),
        _ => format!("{} MiB", dimm.size_bytes >> 20),
    };
    let other = memory.dimms.iter().filter(|dimm| dimm.size_bytes != row.size.value).collect();
    wrong("memory.size", "of another size", row.size.to_string(), other, &gib);
    let Some(speed) = &row.speed else { return };
    let below = |mts: Option<u16>| mts.is_some_and(|mts| u64::from(mts) < speed.value);
    let mts = |mts: Option<u16>| format!("{} MT/s", mts.unwrap_or_default());
    let slow: Vec<&Dimm> = memory.dimms.iter().filter(|dimm| below(dimm.rated_mts)).collect();
    let all_fast_enough = slow.is_empty();
    wrong("memory.rated", "too slow", speed.to_string(), slow, &|dimm| mts(dimm.rated_mts));
    let throttled: Vec<&Dimm> = memory.dimms.iter().filter(|dimm| below(dimm.speed_mts)).collect();
    if let Some(first) = throttled.first().filter(|_| all_fast_enough) {
        let told = Told {
            id: "memory.speed",
            part: "memory".into(),
            cause: format!("it runs at {}, expected {speed}", mts(first.speed_mts)),
            expected: speed.to_string(),
            found: mts(first.speed_mts),
            who: Who::Operator,
            next: "look at the memory frequency in the firmware settings, and at how the slots are filled",
        };
        findings.push(told.with(row.severity));
    }
}
