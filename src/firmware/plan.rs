//! What has to be done for a machine to be as its baseline wants it: pure, from what is seen and which bundles there are. The BMC
//! comes first, since its restart costs the host nothing; whatever waits for the next boot shares one.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::baseline::{Baseline, Part, Version, Wanted};
use super::bundle::Bundle;
use super::names::{self, Attribute, Names};
use crate::bmc::{Bios, BiosAttributes, Component};
use crate::lifecycle::Finding;
use crate::machine::Inventory;
use crate::machine::version;

/// What a machine shows of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// `None` where the BMC does not tell.
    pub components: Option<Vec<Component>>,
    pub bios: Option<Bios>,
    pub boot_order: Option<Vec<String>>,
    /// What the entries of the boot order are, where the BMC tells.
    pub boot_names: BTreeMap<String, String>,
    /// Whether the BMC writes firmware right now, where it tells.
    pub updating: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub baseline: String,
    pub model: String,
    pub required: bool,
    /// In order; a reboot is one of them.
    pub steps: Vec<Step>,
    /// What no step can mend.
    pub findings: Vec<Finding>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    Update {
        part: Part,
        /// By which the BMC names the parts; all get the same image.
        targets: Vec<String>,
        from: String,
        wanted: String,
        bundle: Box<Bundle>,
        why: Option<String>,
    },
    Settings {
        changes: Vec<Change>,
    },
    BootOrder {
        order: Vec<String>,
        first_now: String,
    },
    Reboot,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// `None` for attributes by the vendor's own name.
    pub meaning: Option<String>,
    pub attribute: String,
    pub now: Value,
    pub wanted: Value,
    /// Written already, and waits for the next boot.
    pub pending: bool,
    pub why: Option<String>,
}

impl Step {
    /// The same for the same thing in every plan.
    pub fn key(&self) -> String {
        match self {
            Step::Update { part, bundle, .. } => format!("{UPDATE}{part} {}", bundle.blake3.short()),
            Step::Settings { .. } => "settings".into(),
            Step::BootOrder { .. } => "boot order".into(),
            Step::Reboot => REBOOT.into(),
        }
    }

    pub fn needs_boot(&self) -> bool {
        !matches!(self, Step::Update { part: Part::Bmc, .. } | Step::Reboot)
    }

    /// What is not as wanted, for when it stays so.
    pub fn findings(&self, cause: &str) -> Vec<Finding> {
        let finding =
            |what: String, expected: String, found: String| Finding { what, expected, found, cause: cause.to_owned() };
        match self {
            Step::Update { part, from, bundle, .. } => {
                vec![finding(format!("{part} firmware"), bundle.version.clone(), from.clone())]
            }
            Step::Settings { changes } => {
                changes.iter().map(|c| finding(c.named(), text(&c.wanted), text(&c.now))).collect()
            }
            Step::BootOrder { first_now, .. } => {
                vec![finding("the first boot entry".into(), "the network".into(), first_now.clone())]
            }
            Step::Reboot => Vec::new(),
        }
    }
}

/// [`Step::key`] of an update begins with it.
pub const UPDATE: &str = "update ";
/// [`Step::key`] of a reboot.
pub const REBOOT: &str = "reboot";

impl Change {
    fn named(&self) -> String {
        match &self.meaning {
            Some(meaning) => format!("{meaning} ({})", self.attribute),
            None => self.attribute.clone(),
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Update { part, from, bundle, targets, .. } => {
                write!(f, "{part} firmware {from} -> {}", bundle.version)?;
                if targets.len() > 1 { write!(f, " ({} parts)", targets.len()) } else { Ok(()) }
            }
            Step::Settings { changes } => {
                let each = changes.iter().map(|c| format!("{} {} -> {}", c.named(), text(&c.now), text(&c.wanted)));
                write!(f, "settings: {}", each.collect::<Vec<_>>().join(", "))
            }
            Step::BootOrder { first_now, .. } => write!(f, "boot order: the network before {first_now}"),
            Step::Reboot => f.write_str("reboot"),
        }
    }
}

impl Plan {
    pub fn reboots(&self) -> usize {
        self.steps.iter().filter(|step| matches!(step, Step::Reboot)).count()
    }

    /// `these 3 steps, 1 reboot`, in short.
    pub fn summary(&self) -> String {
        let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let reboots = self.reboots();
        let steps = self.steps.len() - reboots;
        match (steps, self.findings.len()) {
            (0, 0) => "as the baseline wants it".into(),
            (0, findings) => format!("nothing that can be done; {}", count(findings, "finding")),
            (steps, 0) => format!("{}, {}", count(steps, "step"), count(reboots, "reboot")),
            (steps, findings) => {
                format!("{}, {}; {}", count(steps, "step"), count(reboots, "reboot"), count(findings, "finding"))
            }
        }
    }
}

/// The plan for a machine of `model`, for which `baseline` was found.
pub fn plan(baseline: &Baseline, model: &str, seen: &Seen, inventory: Option<&Inventory>, bundles: &[Bundle]) -> Plan {
    let mut findings = Vec::new();
    let mut steps = updates(baseline, model, &parts(seen, inventory), bundles, &mut findings);
    steps.sort_by_key(|step| match step {
        Step::Update { part, .. } => Some(*part),
        _ => None,
    });
    steps.extend(settings(baseline, seen.bios.as_ref(), &mut findings));
    if baseline.network_first {
        let order = seen.boot_order.as_deref().unwrap_or_default();
        steps.extend(boot_order(order, &seen.boot_names, &mut findings));
    }
    if steps.iter().any(Step::needs_boot) {
        steps.push(Step::Reboot);
    }
    Plan { baseline: baseline.name.clone(), model: model.to_owned(), required: baseline.required, steps, findings }
}

/// A part with firmware, told by the BMC or, where it does not list that kind, by the host.
struct Found {
    part: Part,
    id: String,
    name: String,
    version: String,
    updateable: bool,
}

fn parts(seen: &Seen, inventory: Option<&Inventory>) -> Vec<Found> {
    let listed = seen.components.as_deref().unwrap_or_default();
    let mut found: Vec<Found> = listed.iter().filter(|c| runs(c, listed)).filter_map(told_by_bmc).collect();
    let kinds: BTreeSet<Part> = found.iter().map(|f| f.part).collect();
    let by_host = inventory.map(told_by_host).unwrap_or_default();
    found.extend(by_host.into_iter().filter(|f| !kinds.contains(&f.part)));
    found
}

/// iDRAC lists `Previous-…`, `Available-…`, `Current-…` and `Installed-…` of one part: what runs, and what else it keeps.
fn runs(component: &Component, all: &[Component]) -> bool {
    let id = component.id.as_str();
    if id.starts_with("Previous-") || id.starts_with("Available-") {
        return false;
    }
    id.strip_prefix("Current-").is_none_or(|rest| !all.iter().any(|c| c.id.strip_prefix("Installed-") == Some(rest)))
}

fn told_by_bmc(component: &Component) -> Option<Found> {
    let version = component.version.clone()?;
    let Component { id, name, updateable, .. } = component.clone();
    Some(Found { part: kind(&id, &name)?, id, name, version, updateable })
}

/// By the words that vendors use for it; the first that is in it counts.
fn kind(id: &str, name: &str) -> Option<Part> {
    const WORDS: &[(&str, Part)] = &[
        ("cpld", Part::Cpld),
        ("psu", Part::Psu),
        ("power supply", Part::Psu),
        ("idrac", Part::Bmc),
        ("remote access controller", Part::Bmc),
        ("ilo", Part::Bmc),
        ("xcc", Part::Bmc),
        ("bmc", Part::Bmc),
        ("bios", Part::Bios),
        ("system rom", Part::Bios),
        ("uefi", Part::Bios),
        ("nic", Part::Nic),
        ("ethernet", Part::Nic),
        ("network", Part::Nic),
        ("infiniband", Part::Nic),
        ("connectx", Part::Nic),
        ("disk", Part::Disk),
        ("drive", Part::Disk),
        ("ssd", Part::Disk),
        ("nvme", Part::Disk),
    ];
    let text = format!("{id} {name}").to_lowercase();
    let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric()).collect();
    let has = |word: &str| if word.contains(' ') { text.contains(word) } else { words.iter().any(|w| begins(w, word)) };
    // Software that a BMC keeps for hosts is no firmware of a part; a backplane with disks is neither.
    if ["driver pack", "diagnostics", "service module", "backplane"].iter().any(|w| text.contains(w)) {
        return None;
    }
    WORDS.iter().find(|(word, _)| has(word)).map(|(_, part)| *part)
}

/// `BIOS2` and `NIC1` are a BIOS and a NIC, `uniconv` is not.
fn begins(word: &str, with: &str) -> bool {
    word.strip_prefix(with).is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
}

fn told_by_host(inventory: &Inventory) -> Vec<Found> {
    let found = |part, name: &str, version: &Option<String>| {
        let version = version.clone()?;
        Some(Found { part, id: name.to_owned(), name: name.to_owned(), version, updateable: false })
    };
    let bios = found(Part::Bios, "BIOS", &inventory.system.bios_version);
    let bmc = inventory.bmc.as_ref().and_then(|bmc| found(Part::Bmc, "BMC", &bmc.firmware));
    let nics = inventory.nics.iter().filter_map(|nic| found(Part::Nic, &nic.name, &nic.firmware));
    let disks =
        inventory.disks.iter().filter_map(|d| found(Part::Disk, d.model.as_deref().unwrap_or(&d.name), &d.firmware));
    bmc.into_iter().chain(bios).chain(nics).chain(disks).collect()
}

fn updates(
    baseline: &Baseline,
    model: &str,
    parts: &[Found],
    bundles: &[Bundle],
    findings: &mut Vec<Finding>,
) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for wanted in &baseline.firmware {
        let meant = |part: &&Found| part.part == wanted.part && named(wanted.named.as_deref(), part);
        let mut mine = parts.iter().filter(meant).peekable();
        // Every machine has these two; of cards and disks only what is built in counts.
        if mine.peek().is_none() && matches!(wanted.part, Part::Bmc | Part::Bios) {
            findings.push(finding(wanted, "not told", "neither the BMC nor the host tells the version"));
        }
        for part in mine {
            match wanted.version.is_met_by(&part.version) {
                Some(true) => continue,
                Some(false) => {}
                None => {
                    findings.push(finding(
                        wanted,
                        &part.version,
                        "nobody can say which of the two is newer: use exact",
                    ));
                    continue;
                }
            }
            match choose(wanted, part, baseline, model, bundles) {
                Ok(bundle) => add_update(&mut steps, wanted, part, bundle),
                Err(cause) => findings.push(finding(wanted, &part.version, &cause)),
            }
        }
    }
    steps
}

/// Parts that get the same image are one step.
fn add_update(steps: &mut Vec<Step>, wanted: &Wanted, found: &Found, bundle: &Bundle) {
    for step in steps.iter_mut() {
        if let Step::Update { bundle: other, targets, .. } = step
            && other.blake3 == bundle.blake3
        {
            targets.push(found.id.clone());
            return;
        }
    }
    steps.push(Step::Update {
        part: wanted.part,
        targets: vec![found.id.clone()],
        from: found.version.clone(),
        wanted: wanted.version.to_string(),
        bundle: Box::new(bundle.clone()),
        why: wanted.why.clone(),
    });
}

fn named(words: Option<&str>, part: &Found) -> bool {
    let words = words.map(str::to_lowercase);
    words.is_none_or(|w| part.name.to_lowercase().contains(&w) || part.id.to_lowercase().contains(&w))
}

/// The newest bundle that may be written to this part, or why there is none.
fn choose<'a>(
    wanted: &Wanted,
    part: &Found,
    baseline: &Baseline,
    model: &str,
    bundles: &'a [Bundle],
) -> Result<&'a Bundle, String> {
    if !part.updateable {
        return Err(format!("{} cannot be updated through the BMC; do it by the vendor's means", part.name));
    }
    let is_for =
        |b: &&Bundle| b.component == wanted.part && b.vendor == baseline.vendor && named(b.named.as_deref(), part);
    let fitting: Vec<&Bundle> =
        bundles.iter().filter(is_for).filter(|b| wanted.version.is_met_by(&b.version) == Some(true)).collect();
    let (mine, others): (Vec<&Bundle>, Vec<&Bundle>) = fitting.into_iter().partition(|b| b.fits_model(model));
    let digest =
        |b: &&&Bundle| wanted.blake3.is_none_or(|d| d == b.blake3) && wanted.sha256.is_none_or(|d| d == b.sha256);
    let newest = mine
        .iter()
        .filter(digest)
        .max_by(|a, b| version::compare(&a.version, &b.version).unwrap_or(std::cmp::Ordering::Equal));
    let Some(bundle) = newest.copied() else {
        return Err(match (mine.first(), others.first()) {
            (Some(b), _) => {
                format!("the bundle {} ({}) has another digest than the baseline wants", b.file, b.blake3.short())
            }
            (None, Some(b)) => format!("the bundle {} is for {}, not for {model}", b.file, b.models.join(", ")),
            (None, None) => "there is no bundle for it: `rackline firmware add FILE`".into(),
        });
    };
    let older = version::compare(&bundle.version, &part.version) != Some(std::cmp::Ordering::Greater);
    if older && !(wanted.downgrade && matches!(wanted.version, Version::Exact(_))) {
        return Err("it would be a downgrade, for which the baseline gives no leave (downgrade = true)".into());
    }
    Ok(bundle)
}

fn finding(wanted: &Wanted, found: &str, cause: &str) -> Finding {
    Finding {
        what: format!("{} firmware", wanted.part),
        expected: wanted.version.to_string(),
        found: found.to_owned(),
        cause: cause.to_owned(),
    }
}

fn settings(baseline: &Baseline, bios: Option<&Bios>, findings: &mut Vec<Finding>) -> Option<Step> {
    let Some(bios) = bios else {
        findings.extend(baseline.settings.iter().map(|setting| Finding {
            what: setting.meaning.clone(),
            expected: setting.value.clone(),
            found: "not told".into(),
            cause: "its BMC does not offer the settings of the firmware: look, and set it by hand".into(),
        }));
        return None;
    };
    let vendor = Names::built_in().vendor(&baseline.vendor);
    let mut changes: Vec<Change> = Vec::new();
    let mut following = Vec::new();
    for setting in &baseline.settings {
        let found = vendor.and_then(|v| v.attributes(&setting.meaning, &setting.value, &bios.now));
        let Some(attributes) = found else {
            findings.push(Finding {
                what: setting.meaning.clone(),
                expected: setting.value.clone(),
                found: "not known".into(),
                cause: "no attribute of this machine is known for it: name it under [attributes] of the baseline"
                    .into(),
            });
            continue;
        };
        for attribute in attributes.into_iter().filter(|a| !a.fits) {
            let decided = attribute.follows.as_ref().filter(|f| baseline.settings.iter().any(|s| &s.meaning == *f));
            match decided.cloned() {
                Some(leader) => following.push((leader, change(bios, Some(&setting.meaning), attribute, &setting.why))),
                None => changes.push(change(bios, Some(&setting.meaning), attribute, &setting.why)),
            }
        }
    }
    changes.extend(by_name(&baseline.attributes, bios, findings));
    for (leader, change) in following {
        // What follows is looked at again when its leader is as wanted.
        if !changes.iter().any(|c| c.meaning.as_ref() == Some(&leader)) {
            let cause = format!("it follows {leader}, which is as wanted; the firmware has its own mind about it");
            findings.extend(Step::Settings { changes: vec![change] }.findings(&cause));
        }
    }
    (!changes.is_empty()).then_some(Step::Settings { changes })
}

fn by_name(wanted: &BiosAttributes, bios: &Bios, findings: &mut Vec<Finding>) -> Vec<Change> {
    let mut changes = Vec::new();
    for (name, value) in wanted {
        match names::by_name(&bios.now, name, value) {
            Some(attribute) if attribute.fits => {}
            Some(attribute) => changes.push(change(bios, None, attribute, &None)),
            None => findings.push(Finding {
                what: name.clone(),
                expected: text(value),
                found: "not there".into(),
                cause: "this machine has no such attribute".into(),
            }),
        }
    }
    changes
}

fn change(bios: &Bios, meaning: Option<&str>, attribute: Attribute, why: &Option<String>) -> Change {
    Change {
        meaning: meaning.map(str::to_owned),
        pending: bios.pending.get(&attribute.name) == Some(&attribute.wanted),
        attribute: attribute.name,
        now: attribute.now,
        wanted: attribute.wanted,
        why: why.clone(),
    }
}

/// The network's entries before all others, else as it is. Entries whose names say nothing stay where they are.
fn boot_order(order: &[String], names: &BTreeMap<String, String>, findings: &mut Vec<Finding>) -> Option<Step> {
    let named = |entry: &String| names.get(entry).map_or_else(|| entry.clone(), |name| format!("{entry} ({name})"));
    let first = order.first()?;
    if is_network(&named(first)) {
        return None;
    }
    let (mut network, rest): (Vec<String>, Vec<String>) = order.iter().cloned().partition(|e| is_network(&named(e)));
    if network.is_empty() {
        findings.push(Finding {
            what: "the first boot entry".into(),
            expected: "the network".into(),
            found: named(first),
            cause: "none of the boot entries says that it is the network: switch on PXE for the card".into(),
        });
        return None;
    }
    network.extend(rest);
    Some(Step::BootOrder { order: network, first_now: named(first) })
}

fn is_network(entry: &str) -> bool {
    let entry = entry.to_lowercase();
    ["pxe", "network", "nic ", "nic.", "ethernet", "ipv4(", "ipv6(", "http"].iter().any(|w| entry.contains(w))
}

/// A value as people write it: words without quotation marks.
pub fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
