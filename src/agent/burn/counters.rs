//! What the kernel counts of a machine's troubles, before and after a test: memory errors, processors that throttle, packets
//! that arrive broken, links that go down.

use std::collections::BTreeMap;
use std::path::Path;

use crate::agent::roots::Roots;
use crate::machine::{Finding, Severity, Who};

/// Of `/sys/class/net/*/statistics` (`Documentation/ABI/testing/sysfs-class-net-statistics`): what a cable, a transceiver or
/// a port spoils. Dropped packets are the host's own affair.
const SPOILT: &[&str] =
    &["rx_errors", "tx_errors", "rx_crc_errors", "rx_frame_errors", "rx_length_errors", "tx_carrier_errors"];
/// Up to this many broken packets in a million a cable is suspect, beyond it bad; a link of 10 Gb/s within the standard's bit
/// error rate (1e-12) has far less.
const SUSPECT_PER_MILLION: u64 = 1;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Corrected and uncorrectable errors by DIMM, or by memory controller where it does not tell them apart.
    memory: BTreeMap<String, (u64, u64)>,
    /// Times that any processor was slowed down for its heat.
    throttled: u64,
    nics: BTreeMap<String, Nic>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Nic {
    packets: u64,
    spoilt: BTreeMap<&'static str, u64>,
    changes: u64,
    /// Mb/s, while there is a link.
    speed: Option<u64>,
}

impl Counters {
    pub fn take(roots: &Roots) -> Self {
        let system = roots.sys.join("devices/system");
        let cpus = entries(&system.join("cpu"), "cpu");
        let throttled = cpus.iter().flat_map(|(_, cpu)| {
            ["core_throttle_count", "package_throttle_count"]
                .map(|file| number(&cpu.join("thermal_throttle").join(file)))
        });
        let nics = entries(&roots.sys.join("class/net"), "");
        let nics = nics.into_iter().filter(|(_, dir)| dir.join("device").exists());
        Self {
            memory: memory(&system.join("edac/mc")),
            throttled: throttled.flatten().sum(),
            nics: nics.map(|(name, dir)| (name, Nic::read(&dir))).collect(),
        }
    }

    /// What has come since `before`, in the test of this name.
    pub fn since(&self, before: &Self, test: &str) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (part, (corrected, uncorrected)) in &self.memory {
            let (old_corrected, old_uncorrected) = before.memory.get(part).copied().unwrap_or_default();
            let (more, worse) = (corrected.saturating_sub(old_corrected), uncorrected.saturating_sub(old_uncorrected));
            findings.extend(ecc(part, more, worse, test));
        }
        if let Some(times @ 1..) = self.throttled.checked_sub(before.throttled) {
            findings.push(Finding {
                id: "burn.throttled".into(),
                part: "processors".into(),
                severity: Severity::Warning,
                cause: format!("they were slowed down for their heat {times} times under load ({test})"),
                expected: "never".into(),
                found: format!("{times} times"),
                who: Who::Racker,
                next: "look at fans, air baffles and the heat sinks; then at the power profile of the BIOS".into(),
            });
        }
        for (name, nic) in &self.nics {
            findings.extend(before.nics.get(name).into_iter().flat_map(|old| nic.since(old, name, test)));
        }
        findings
    }
}

fn ecc(part: &str, corrected: u64, uncorrected: u64, test: &str) -> Option<Finding> {
    let (severity, count, what) = match (uncorrected, corrected) {
        (1.., _) => (Severity::Fault, uncorrected, "uncorrectable"),
        (_, 1..) => (Severity::Warning, corrected, "corrected"),
        _ => return None,
    };
    Some(Finding {
        id: "burn.ecc".into(),
        part: part.into(),
        severity,
        cause: format!("{count} {what} memory errors came under load ({test})"),
        expected: "none".into(),
        found: count.to_string(),
        who: Who::Racker,
        next: "seat the DIMM again and burn the machine in again; exchange it if they come again".into(),
    })
}

/// Each DIMM by the label that the board's driver gives it (`Documentation/admin-guide/RAS`).
fn memory(edac: &Path) -> BTreeMap<String, (u64, u64)> {
    let mut counts = BTreeMap::new();
    for (controller, dir) in entries(edac, "mc") {
        let dimms = entries(&dir, "dimm");
        for (dimm, dir) in &dimms {
            let label = text(&dir.join("dimm_label")).unwrap_or_else(|| format!("{controller} {dimm}"));
            let count = |file| number(&dir.join(file)).unwrap_or(0);
            counts.insert(format!("DIMM {label}"), (count("dimm_ce_count"), count("dimm_ue_count")));
        }
        // What a controller cannot pin on a DIMM, or all of it where it knows no DIMMs.
        let files = if dimms.is_empty() { ["ce_count", "ue_count"] } else { ["ce_noinfo_count", "ue_noinfo_count"] };
        let [corrected, uncorrected] = files.map(|file| number(&dir.join(file)).unwrap_or(0));
        counts.insert(format!("memory controller {controller}"), (corrected, uncorrected));
    }
    counts
}

impl Nic {
    fn read(dir: &Path) -> Self {
        let statistics = dir.join("statistics");
        let count = |file: &str| number(&statistics.join(file)).unwrap_or(0);
        Self {
            packets: count("rx_packets").saturating_add(count("tx_packets")),
            spoilt: SPOILT.iter().map(|file| (*file, count(file))).collect(),
            changes: number(&dir.join("carrier_changes")).unwrap_or(0),
            speed: number(&dir.join("speed")).filter(|_| number(&dir.join("carrier")) == Some(1)),
        }
    }

    fn since(&self, before: &Self, name: &str, test: &str) -> Vec<Finding> {
        let told = |id: &str, severity, cause: String, expected: String, found: String| Finding {
            id: id.into(),
            part: format!("NIC {name}"),
            severity,
            cause,
            expected,
            found,
            who: Who::Racker,
            next: "exchange the cable or transceiver; if that does not help, try another port of the switch".into(),
        };
        let mut findings = Vec::new();
        let of = |nic: &Self, file: &str| nic.spoilt.get(file).copied().unwrap_or(0);
        let more = |file: &str| of(self, file).saturating_sub(of(before, file));
        let grown: Vec<(&str, u64)> = SPOILT.iter().map(|file| (*file, more(file))).filter(|(_, n)| *n > 0).collect();
        // `rx_errors` is the sum of the others in most drivers, so the largest is the least that can have happened.
        if let Some(worst) = grown.iter().map(|(_, n)| *n).max() {
            let packets = self.packets.saturating_sub(before.packets);
            let bad = worst.saturating_mul(1_000_000) > packets.saturating_mul(SUSPECT_PER_MILLION);
            let each: Vec<String> = grown.iter().map(|(file, n)| format!("{file} {n}")).collect();
            findings.push(told(
                "burn.packets",
                if bad { Severity::Fault } else { Severity::Warning },
                format!("{worst} of {packets} packets were broken ({test}): a damaged cable, transceiver or port"),
                "none".into(),
                each.join(", "),
            ));
        }
        if let Some(times @ 1..) = self.changes.checked_sub(before.changes) {
            findings.push(told(
                "burn.link",
                Severity::Fault,
                format!("its link changed {times} times in a test ({test})"),
                "a link that stays".into(),
                format!("{times} changes"),
            ));
        }
        if let (Some(old), Some(now)) = (before.speed, self.speed)
            && now < old
        {
            findings.push(told(
                "burn.speed",
                Severity::Fault,
                format!("its link fell from {old} to {now} Mb/s ({test}): a damaged cable"),
                format!("{old} Mb/s"),
                format!("{now} Mb/s"),
            ));
        }
        findings
    }
}

fn text(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Counters only: what is negative or no number is unknown.
fn number(path: &Path) -> Option<u64> {
    text(path)?.parse().ok()
}

/// Folders whose names begin with `kind` and go on with a number, or all of them.
fn entries(dir: &Path, kind: &str) -> Vec<(String, std::path::PathBuf)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let wanted = |name: &str| {
        let rest = name.strip_prefix(kind);
        rest.is_some_and(|rest| kind.is_empty() || (!rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit())))
    };
    entries
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .filter(|(name, _)| wanted(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn put(root: &Path, path: &str, value: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{value}\n")).unwrap();
    }

    #[test]
    fn what_grew_in_a_test_is_told_with_its_part_and_what_was_there_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let sys = dir.path();
        let roots = Roots { sys: sys.to_owned(), ..Roots::default() };
        put(sys, "devices/system/edac/mc/mc0/dimm3/dimm_label", "CPU0_DIMM_B1");
        put(sys, "devices/system/edac/mc/mc0/dimm3/dimm_ce_count", "7");
        put(sys, "devices/system/edac/mc/mc0/dimm3/dimm_ue_count", "0");
        put(sys, "devices/system/edac/mc/mc1/ue_count", "0");
        put(sys, "devices/system/cpu/cpu1/thermal_throttle/core_throttle_count", "2");
        put(sys, "devices/system/cpu/cpufreq/thermal_throttle/core_throttle_count", "nonsense");
        fs::create_dir_all(sys.join("class/net/eno1/device")).unwrap();
        for (file, value) in [("carrier", "1"), ("speed", "10000"), ("carrier_changes", "2")] {
            put(sys, &format!("class/net/eno1/{file}"), value);
        }
        for (file, value) in [("rx_packets", "1000000"), ("rx_crc_errors", "5"), ("tx_packets", "0")] {
            put(sys, &format!("class/net/eno1/statistics/{file}"), value);
        }
        put(sys, "class/net/lo/statistics/rx_errors", "9");
        let before = Counters::take(&roots);
        assert_eq!(before.since(&before.clone(), "cpu"), []);

        put(sys, "devices/system/edac/mc/mc0/dimm3/dimm_ce_count", "19");
        put(sys, "devices/system/edac/mc/mc1/ue_count", "1");
        put(sys, "devices/system/cpu/cpu1/thermal_throttle/core_throttle_count", "6");
        put(sys, "class/net/eno1/statistics/rx_packets", "5000000");
        put(sys, "class/net/eno1/statistics/rx_crc_errors", "8");
        put(sys, "class/net/eno1/speed", "1000");
        put(sys, "class/net/lo/statistics/rx_errors", "99");
        let told: Vec<String> = Counters::take(&roots)
            .since(&before, "network")
            .iter()
            .map(|f| format!("{} {} {f}", f.severity, f.id))
            .collect();
        assert_eq!(
            told,
            [
                "warning burn.ecc DIMM CPU0_DIMM_B1: 12 corrected memory errors came under load (network)",
                "fault burn.ecc memory controller mc1: 1 uncorrectable memory errors came under load (network)",
                "warning burn.throttled processors: they were slowed down for their heat 4 times under load (network)",
                "warning burn.packets NIC eno1: 3 of 4000000 packets were broken (network): a damaged cable, transceiver or port",
                "fault burn.speed NIC eno1: its link fell from 10000 to 1000 Mb/s (network): a damaged cable",
            ]
        );
        // Two in a million are too many.
        put(sys, "class/net/eno1/statistics/rx_crc_errors", "13");
        put(sys, "class/net/eno1/carrier_changes", "4");
        let told: Vec<_> =
            Counters::take(&roots).since(&before, "network").into_iter().map(|f| (f.id, f.severity)).collect();
        assert!(told.contains(&("burn.packets".into(), Severity::Fault)), "{told:?}");
        assert!(told.contains(&("burn.link".into(), Severity::Fault)));
    }
}
