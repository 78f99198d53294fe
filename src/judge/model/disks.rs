//! Disks, in groups: of which kind how many, and in which slots.

use std::collections::BTreeMap;

use super::assign::assign;
use super::bom::{Disks, Interface};
use super::{counted, is_or_are, wrong_part};
use crate::machine::{Disk, Finding, Inventory, Severity, Who};

/// Makers round sizes: 480 GB are 480,103,981,056 bytes.
const ROUNDED: f64 = 0.02;
/// Beyond it they are only counted.
const MAX_DISKS: usize = 256;

/// How a disk may differ from what is wanted, the weightiest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Aspect {
    Kind,
    Interface,
    Size,
    Model,
    Slot,
}

impl Aspect {
    fn weight(self) -> u32 {
        [64, 32, 16, 8, 1][self as usize]
    }

    fn word(self) -> &'static str {
        ["kind", "interface", "size", "model", "slot"][self as usize]
    }
}

fn differences(wanted: &Disks, disk: &Disk) -> Vec<Aspect> {
    let size = |bytes: u64| {
        let wanted = bytes as f64;
        (disk.size_bytes as f64 - wanted).abs() > wanted * ROUNDED
    };
    let slot = |slot: &str| !wanted.slots.iter().any(|own| own.eq_ignore_ascii_case(slot));
    let each = [
        (Aspect::Kind, wanted.rotational.is_some_and(|rotational| rotational != disk.rotational)),
        (Aspect::Interface, wanted.interface.is_some_and(|interface| interface.word() != disk.transport)),
        (Aspect::Size, wanted.size.as_ref().is_some_and(|amount| size(amount.value))),
        (Aspect::Model, wanted.model.as_ref().is_some_and(|m| disk.model.as_ref().is_none_or(|model| !m.fits(model)))),
        (Aspect::Slot, !wanted.slots.is_empty() && disk.slot.as_deref().is_some_and(slot)),
    ];
    each.into_iter().filter_map(|(aspect, differs)| differs.then_some(aspect)).collect()
}

pub fn judge(groups: &[Disks], inventory: &Inventory, findings: &mut Vec<Finding>) {
    if groups.is_empty() {
        return;
    }
    // A stick, and the virtual drive of a BMC, are no parts of the machine.
    let usb = groups.iter().any(|group| group.interface == Some(Interface::Usb));
    let fixed = |disk: &&Disk| !disk.removable && !disk.read_only && (usb || disk.transport != "usb");
    let disks: Vec<&Disk> = inventory.disks.iter().filter(fixed).take(MAX_DISKS).collect();
    let positions: Vec<usize> =
        groups.iter().enumerate().flat_map(|(at, group)| std::iter::repeat_n(at, *group.count.as_ref())).collect();
    let (found, left) = assign(positions.len(), &disks, |position, disk| {
        differences(&groups[positions[position]], disk).into_iter().map(Aspect::weight).sum()
    });
    let mut misplaced: Vec<(usize, &Disk)> = Vec::new();
    for (at, group) in groups.iter().enumerate() {
        let own: Vec<Option<&Disk>> = positions
            .iter()
            .zip(&found)
            .filter(|(of, _)| **of == at)
            .map(|(_, disk)| disk.map(|disk| disks[disk]))
            .collect();
        let missing = own.iter().filter(|disk| disk.is_none()).count();
        let mut wrong: BTreeMap<Vec<Aspect>, Vec<&Disk>> = BTreeMap::new();
        for disk in own.into_iter().flatten() {
            let mut aspects = differences(group, disk);
            if aspects == [Aspect::Slot] {
                misplaced.push((at, disk));
            }
            aspects.retain(|aspect| *aspect != Aspect::Slot);
            if !aspects.is_empty() {
                wrong.entry(aspects).or_default().push(disk);
            }
        }
        findings.extend(wrong.iter().map(|(aspects, disks)| other(group, aspects, disks)));
        if missing > 0 {
            findings.push(gone(group, missing, &disks));
        }
    }
    in_other_slots(groups, misplaced, findings);
    let left: Vec<&Disk> = left.map(|disk| disks[disk]).collect();
    findings.extend(too_many(&left));
}

fn name(disk: &Disk) -> String {
    let slot = disk.slot.as_ref().map_or(String::new(), |slot| format!(" in {slot}"));
    let serial = disk.serial.as_ref().map_or(String::new(), |serial| format!(", serial {serial}"));
    format!("disk {}{slot}{serial}", disk.name)
}

/// Of one another, with what it is.
fn described(disk: &Disk) -> String {
    let kind = if disk.rotational { "spinning" } else { "solid state" };
    let size = disk.size_bytes as f64;
    let size = if size < 1e12 { format!("{:.0} GB", size / 1e9) } else { format!("{:.2} TB", size / 1e12) };
    format!("{}, {size}, {}, {kind}", disk.model.as_deref().unwrap_or("unknown model"), disk.transport)
}

fn wanted(group: &Disks) -> String {
    let mut words = vec![];
    words.extend(group.model.as_ref().map(ToString::to_string));
    words.extend(group.size.as_ref().map(ToString::to_string));
    words.extend(group.interface.map(|interface| interface.word().to_owned()));
    words.extend(group.rotational.map(|yes| if yes { "spinning".to_owned() } else { "solid state".to_owned() }));
    words.join(", ")
}

/// `disk`, `data disk`.
fn noun(group: &Disks) -> String {
    if group.name.is_empty() { "disk".into() } else { format!("{} disk", group.name) }
}

fn other(group: &Disks, aspects: &[Aspect], disks: &[&Disk]) -> Finding {
    let what = match aspects.iter().map(|aspect| aspect.word()).collect::<Vec<_>>().as_slice() {
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
        [] => String::new(),
    };
    let of = counted(*group.count.as_ref(), &noun(group));
    Finding {
        id: format!("disk.{}", aspects.first().map_or("model", |aspect| aspect.word())),
        part: disks.iter().map(|disk| name(disk)).collect::<Vec<_>>().join("; "),
        severity: group.severity,
        cause: format!("{} of {of} {} another {what}", disks.len(), is_or_are(disks.len())),
        expected: wanted(group),
        found: disks.iter().map(|disk| format!("{}: {}", disk.name, described(disk))).collect::<Vec<_>>().join("; "),
        who: Who::Supplier,
        next: wrong_part("them"),
    }
}

/// Those of the group's slots that nothing is in, where that says which disks are missing.
fn gone(group: &Disks, missing: usize, disks: &[&Disk]) -> Finding {
    let taken =
        |slot: &str| disks.iter().any(|disk| disk.slot.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(slot)));
    let vacant: Vec<&str> = group.slots.iter().map(String::as_str).filter(|slot| !taken(slot)).collect();
    let count = *group.count.as_ref();
    let (noun, there) = (noun(group), count - missing);
    let part = match vacant.len() == missing {
        true if missing == 1 => format!("{noun} in {}", vacant[0]),
        true => format!("{noun}s in {}", vacant.join(", ")),
        false => counted(missing, &noun),
    };
    let each = wanted(group);
    let each = if each.is_empty() { String::new() } else { format!(" × {each}") };
    Finding {
        id: "disk.missing".into(),
        cause: format!("{part} missing: {there} of {count}{each}"),
        part,
        severity: group.severity,
        expected: format!("{count}{each}"),
        found: there.to_string(),
        who: Who::Racker,
        next: "look at the slot: seat the disk again, or put it in; then look at the cable of the backplane".into(),
    }
}

/// Two that are in one another's place are one finding.
fn in_other_slots(groups: &[Disks], mut misplaced: Vec<(usize, &Disk)>, findings: &mut Vec<Finding>) {
    let is_of = |group: usize, disk: &Disk| {
        let slot = disk.slot.as_deref().unwrap_or_default();
        groups[group].slots.iter().any(|own| own.eq_ignore_ascii_case(slot))
    };
    while let Some((group, disk)) = misplaced.pop() {
        let here = disk.slot.as_deref().unwrap_or_default();
        let severity = groups[group].severity;
        let swapped = misplaced.iter().position(|(other, second)| is_of(*other, disk) && is_of(group, second));
        let finding = match swapped.map(|at| misplaced.remove(at)) {
            Some((other, second)) => {
                let there = second.slot.as_deref().unwrap_or_default();
                Finding {
                    id: "disk.slot".into(),
                    part: format!("{}; {}", name(second), name(disk)),
                    severity: severity.max(groups[other].severity),
                    cause: format!(
                        "{} in {there} and {} in {here} are swapped",
                        noun(&groups[other]),
                        noun(&groups[group])
                    ),
                    expected: format!("{} in {there}", noun(&groups[group])),
                    found: format!("{} in {here}", noun(&groups[group])),
                    who: Who::Racker,
                    next: "swap them, while the machine is off".into(),
                }
            }
            None => Finding {
                id: "disk.slot".into(),
                part: name(disk),
                severity,
                cause: format!(
                    "{} is in the wrong slot {here}, expected in {}",
                    noun(&groups[group]),
                    groups[group].slots.join(", ")
                ),
                expected: groups[group].slots.join(", "),
                found: here.to_owned(),
                who: Who::Racker,
                next: "move it, while the machine is off; or correct the slots of the model".into(),
            },
        };
        findings.push(finding);
    }
}

fn too_many(left: &[&Disk]) -> Option<Finding> {
    let part = left.iter().map(|disk| name(disk)).collect::<Vec<_>>().join("; ");
    (!left.is_empty()).then(|| Finding {
        id: "disk.extra".into(),
        part,
        severity: Severity::Warning,
        cause: format!("{} more than the model has", counted(left.len(), "disk")),
        expected: "no other disk".into(),
        found: left.iter().map(|disk| format!("{}: {}", disk.name, described(disk))).collect::<Vec<_>>().join("; "),
        who: Who::Operator,
        next: "compare with the order; correct the model, or take out what is too many".into(),
    })
}
