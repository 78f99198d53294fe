//! What became of the parts of a machine since its last inventory: what was exchanged, moved, came and went.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::machine::component::{Component, ComponentKind};
use crate::machine::{Finding, Severity, Who};

/// Where a part was before it came here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Earlier {
    pub machine: String,
    /// When it was last seen there: `12 May`.
    pub day: String,
}

/// `before` is empty for a machine of which no inventory was kept: then only what came from elsewhere is told.
pub fn judge(before: &[Component], now: &[Component], earlier: impl Fn(&Component) -> Option<Earlier>) -> Vec<Finding> {
    let (old, new) = (by_identity(before), by_identity(now));
    let mut gone: Vec<&Component> = before.iter().filter(|part| !new.contains_key(&part.identity())).collect();
    let come: Vec<&Component> = now.iter().filter(|part| !old.contains_key(&part.identity())).collect();
    let mut findings: Vec<Finding> = now
        .iter()
        .filter_map(|part| {
            let before = old.get(&part.identity())?;
            let moved = before.place != part.place && !before.place.is_empty() && !part.place.is_empty();
            moved.then(|| {
                let cause = format!("{} {} moved from {} to {}", part.kind, part.serial, before.place, part.place);
                note("component.moved", Severity::Note, cause, before.place.clone(), part.place.clone())
            })
        })
        .collect();
    let places: HashSet<(ComponentKind, &str)> = now.iter().map(|part| (part.kind, part.place.as_str())).collect();
    // Kind, machine and day, of those without a predecessor in their place.
    let mut arrivals: BTreeMap<(ComponentKind, Option<Earlier>), Vec<&Component>> = BTreeMap::new();
    for part in come {
        let from = earlier(part);
        // Whose slots nobody knows are paired as they come.
        let predecessor = gone.iter().position(|old| old.kind == part.kind && old.place == part.place);
        match predecessor.map(|at| gone.remove(at)) {
            Some(old) => findings.push(exchanged(old, part, from)),
            None => arrivals.entry((part.kind, from)).or_default().push(part),
        }
    }
    for ((kind, from), parts) in arrivals {
        let serials = list(&parts);
        match from {
            Some(Earlier { machine, day }) => {
                let cause = format!("{} moved here from machine {machine} ({day})", named(kind, &parts));
                findings.push(note("component.from", Severity::Note, cause, format!("in {machine}"), serials));
            }
            None if before.is_empty() => {}
            None => {
                let cause = format!("{} appeared{}", named(kind, &parts), places_of(&parts));
                findings.push(note("component.appeared", Severity::Note, cause, "no new part".into(), serials));
            }
        }
    }
    for kind in ComponentKind::ALL {
        let parts: Vec<&Component> = gone.iter().copied().filter(|part| part.kind == kind).collect();
        if !parts.is_empty() {
            let left = parts.iter().all(|part| part.place.is_empty() || !places.contains(&(kind, part.place.as_str())));
            let from = if left { places_of(&parts).replacen(" in ", " from ", 1) } else { String::new() };
            let cause = format!("{} vanished{from}", named(kind, &parts));
            findings.push(note("component.vanished", Severity::Warning, cause, list(&parts), "none".into()));
        }
    }
    findings
}

fn by_identity(parts: &[Component]) -> HashMap<(ComponentKind, &str, &str), &Component> {
    parts.iter().map(|part| (part.identity(), part)).collect()
}

fn list(parts: &[&Component]) -> String {
    parts.iter().map(|part| part.serial.as_str()).collect::<Vec<_>>().join(", ")
}

/// `disk S4YN`, `3 disks`.
fn named(kind: ComponentKind, parts: &[&Component]) -> String {
    match parts {
        [one] => format!("{kind} {}", one.serial),
        several => format!("{} {kind}s", several.len()),
    }
}

fn places_of(parts: &[&Component]) -> String {
    let places: Vec<&str> = parts.iter().map(|part| part.place.as_str()).filter(|place| !place.is_empty()).collect();
    if places.is_empty() { String::new() } else { format!(" in {}", places.join(", ")) }
}

fn exchanged(old: &Component, new: &Component, from: Option<Earlier>) -> Finding {
    let place = if new.place.is_empty() { String::new() } else { format!(" in {}", new.place) };
    let from = from.map_or(String::new(), |from| format!(", which was in machine {} ({})", from.machine, from.day));
    let cause =
        format!("{}{place} was exchanged: old serial {}, new serial {}{from}", new.kind, old.serial, new.serial);
    note("component.exchanged", Severity::Note, cause, old.serial.clone(), new.serial.clone())
}

fn note(id: &str, severity: Severity, cause: String, expected: String, found: String) -> Finding {
    Finding {
        id: id.into(),
        part: "parts".into(),
        severity,
        cause,
        expected,
        found,
        who: Who::Operator,
        next: "nothing, if somebody did that; `rackline component SERIAL` shows where a part has been".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part(kind: ComponentKind, serial: &str, place: &str) -> Component {
        Component { kind, serial: serial.into(), model: "m".into(), place: place.into() }
    }

    fn told(before: &[Component], now: &[Component]) -> Vec<String> {
        let earlier = |part: &Component| {
            part.serial.starts_with("S4").then(|| Earlier { machine: "m17".into(), day: "12 May".into() })
        };
        judge(before, now, earlier).into_iter().map(|finding| finding.cause).collect()
    }

    use ComponentKind::{Dimm, Disk};

    #[test]
    fn what_became_of_each_part() {
        let before =
            [part(Dimm, "A", "B3"), part(Dimm, "B", "B4"), part(Disk, "S1", "bay 0"), part(Disk, "S2", "bay 1")];
        assert!(told(&before, &before).is_empty() && told(&[], &before).is_empty());
        let with = |at: usize, new: Component| {
            let mut now = before.to_vec();
            now[at] = new;
            now
        };
        assert_eq!(
            told(&before, &with(1, part(Dimm, "C", "B4"))),
            ["DIMM in B4 was exchanged: old serial B, new serial C"]
        );
        assert_eq!(
            told(&before, &with(3, part(Disk, "S4YN", "bay 1"))),
            ["disk in bay 1 was exchanged: old serial S2, new serial S4YN, which was in machine m17 (12 May)"]
        );
        assert_eq!(told(&before, &with(3, part(Disk, "S2", "bay 7"))), ["disk S2 moved from bay 1 to bay 7"]);
        assert_eq!(told(&before, &before[..3]), ["disk S2 vanished from bay 1"]);
        assert_eq!(told(&before[..3], &before), ["disk S2 appeared in bay 1"]);
        assert_eq!(told(&[], &[part(Disk, "S4YN", "")]), ["disk S4YN moved here from machine m17 (12 May)"]);
        let two = [part(Disk, "S41", ""), part(Disk, "S42", ""), part(Disk, "T", "")];
        assert_eq!(told(&[], &two), ["2 disks moved here from machine m17 (12 May)"]);
        assert_eq!(told(&before, &[]), ["2 DIMMs vanished from B3, B4", "2 disks vanished from bay 0, bay 1"]);
        // Without slots, as they come.
        assert_eq!(
            told(&[part(Disk, "S1", "")], &[part(Disk, "S3", "")]),
            ["disk was exchanged: old serial S1, new serial S3"]
        );
    }

    proptest! {
        #[test]
        fn each_part_that_came_or_went_is_told_once(
            before in prop::collection::hash_set("[a-d][0-3]", 0..8), now in prop::collection::hash_set("[a-d][0-3]", 0..8),
        ) {
            let parts = |names: &HashSet<String>| {
                names.iter().map(|name| part(Disk, name, &name[1..])).collect::<Vec<_>>()
            };
            let findings = judge(&parts(&before), &parts(&now), |_| None);
            let words: Vec<&str> = findings
                .iter()
                .flat_map(|finding| finding.expected.split(", ").chain(finding.found.split(", ")))
                .collect();
            for name in before.symmetric_difference(&now).filter(|name| !before.is_empty() || before.contains(*name)) {
                prop_assert_eq!(words.iter().filter(|word| **word == name.as_str()).count(), 1, "{} {:?}", name, findings);
            }
        }
    }
}
