//! What drives say of their own health: `smartctl --json -a`, which knows ATA, SCSI and NVMe.
//!
//! All drives are asked at the same time and each answer has a deadline, since a drive that fails may take long to say so.
//! The end status of smartctl is a set of bits (smartctl(8), "EXIT STATUS") of which only the lowest two mean that there
//! is no answer; the JSON repeats it.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use serde_json::Value;

use super::super::roots::Roots;
use super::super::tool;
use crate::machine::{Disk, DiskHealth};

/// A drive that has to spin up first takes some ten seconds.
const DEADLINE: Duration = Duration::from_secs(12);
/// As many drives as one controller is asked at once without their commands queueing up behind one another.
const AT_ONCE: usize = 16;
/// smartctl did not parse its command line, or could not open the device.
const NO_ANSWER: u64 = 0b11;

/// By name of the disk, and what could not be found out.
#[derive(Debug, Default, PartialEq)]
pub struct Answers {
    pub health: Vec<(String, DiskHealth)>,
    pub gaps: Vec<String>,
}

pub async fn ask(roots: &Roots, disks: &[Disk]) -> Answers {
    if roots.live() { ask_by("smartctl", DEADLINE, roots, disks).await } else { Answers::default() }
}

async fn ask_by(program: &str, deadline: Duration, roots: &Roots, disks: &[Disk]) -> Answers {
    // What a hypervisor makes up has no health, and a stick is none of the machine's drives.
    let drives = disks.iter().filter(|d| !d.removable && !matches!(d.transport.as_str(), "virtio" | "mmc"));
    let one = |name: String| async move {
        let device = roots.dev.join(&name);
        let answer = tool::run(program, &["--json", "-a", &device.to_string_lossy()], deadline).await;
        let health = answer
            .map_err(|e| (e.code() == "tool.missing", e.message().to_owned()))
            .and_then(|output| parse(&output.stdout).map_err(|why| (false, format!("smartctl: {why}"))));
        (name, health)
    };
    let questions: Vec<_> = drives.map(|d| one(d.name.clone())).collect();
    let mut answers: Vec<_> = futures::stream::iter(questions).buffer_unordered(AT_ONCE).collect().await;
    answers.sort_by(|(a, _), (b, _)| a.cmp(b));

    let mut told = Answers::default();
    let mut gaps = BTreeSet::new();
    for (name, answer) in answers {
        match answer {
            Ok(Some(health)) => told.health.push((name, health)),
            Ok(None) => {}
            // Once, not for each disk.
            Err((true, why)) => drop(gaps.insert(format!("the health of the disks is unknown: {why}"))),
            Err((false, why)) => drop(gaps.insert(format!("the health of disk {name} is unknown: {why}"))),
        }
    }
    told.gaps = gaps.into_iter().collect();
    told
}

/// `None`: the drive keeps no such data. The error is why there is no answer, in smartctl's words where it has any.
pub fn parse(text: &str) -> Result<Option<DiskHealth>, String> {
    let root: Value = serde_json::from_str(text).map_err(|_| "what it printed is not JSON".to_owned())?;
    let status = root.pointer("/smartctl/exit_status").and_then(Value::as_u64).ok_or("its answer has no status")?;
    if status & NO_ANSWER != 0 {
        let messages = root.pointer("/smartctl/messages").and_then(Value::as_array).into_iter().flatten();
        let words = messages.filter_map(|m| m.get("string")?.as_str()).next_back();
        return Err(words.map_or_else(|| format!("it ended with status {status}"), |w| w.chars().take(200).collect()));
    }
    let number = |path: &str| root.pointer(path).and_then(Value::as_u64);
    let mut health = DiskHealth {
        passed: root.pointer("/smart_status/passed").and_then(Value::as_bool),
        power_on_hours: number("/power_on_time/hours"),
        temperature_celsius: root
            .pointer("/temperature/current")
            .and_then(Value::as_i64)
            .and_then(|t| t.try_into().ok()),
        ..DiskHealth::default()
    };
    nvme(&root, &mut health);
    ata(&root, &mut health);
    scsi(&root, &mut health);
    Ok((health != DiskHealth::default()).then_some(health))
}

/// NVM Express Base Specification 2.0, figure 207: the bits of "Critical Warning".
const CRITICAL: &[&str] = &[
    "spare below threshold",
    "temperature outside its limits",
    "reliability degraded",
    "read only",
    "memory backup failed",
    "persistent memory region unreliable",
];

fn nvme(root: &Value, health: &mut DiskHealth) {
    let Some(log) = root.get("nvme_smart_health_information_log") else { return };
    let number = |name: &str| log.get(name).and_then(Value::as_u64);
    let warning = number("critical_warning").unwrap_or(0);
    let set = CRITICAL.iter().enumerate().filter(|(bit, _)| warning >> bit & 1 == 1);
    health.warnings.extend(set.map(|(_, words)| words.to_string()));
    health.wear_percent = number("percentage_used").and_then(|n| n.try_into().ok());
    health.spare_percent = number("available_spare").and_then(|n| n.try_into().ok());
    health.uncorrectable_errors = number("media_errors");
    // In units of 1000 × 512 bytes.
    health.written_bytes = number("data_units_written").map(|n| n.saturating_mul(512_000));
    health.power_on_hours = health.power_on_hours.or(number("power_on_hours"));
}

/// Attributes whose normalised value is what is left of the endurance, as smartctl's database names them.
const LIFE_LEFT: &[&str] = &[
    "Percent_Lifetime_Remain",
    "Media_Wearout_Indicator",
    "Wear_Leveling_Count",
    "SSD_Life_Left",
    "Remaining_Lifetime_Perc",
    "Percent_Life_Remaining",
    "Ave_Block-Erase_Count",
];

fn ata(root: &Value, health: &mut DiskHealth) {
    let Some(table) = root.pointer("/ata_smart_attributes/table").and_then(Value::as_array) else { return };
    let turns = root.get("rotation_rate").and_then(Value::as_u64).is_some_and(|rate| rate > 0);
    for attribute in table {
        let id = attribute.get("id").and_then(Value::as_u64).unwrap_or(0);
        let name = attribute.get("name").and_then(Value::as_str).unwrap_or_default();
        let raw = raw(attribute);
        match id {
            5 => health.reallocated_sectors = raw,
            197 => health.pending_sectors = raw,
            198 => health.uncorrectable_errors = raw,
            199 => health.crc_errors = raw,
            _ => {}
        }
        let left = attribute.get("value").and_then(Value::as_u64).filter(|left| *left <= 100);
        if !turns && health.wear_percent.is_none() && LIFE_LEFT.contains(&name) {
            health.wear_percent = left.map(|left| 100 - left as u16);
        }
        let unit = match name {
            "Total_LBAs_Written" => 512,
            "Host_Writes_32MiB" => 32 << 20,
            "Host_Writes_GiB" | "Lifetime_Writes_GiB" => 1 << 30,
            _ => 0,
        };
        if unit > 0 {
            health.written_bytes = raw.map(|n| n.saturating_mul(unit));
        }
        if attribute.get("when_failed").and_then(Value::as_str) == Some("now") {
            health.warnings.push(format!("{} is below its threshold", name.replace('_', " ")));
        }
    }
}

/// The first number of the text, since some vendors keep more than one in the 48 bits: `37 (Min/Max 21/50)`.
fn raw(attribute: &Value) -> Option<u64> {
    let raw = attribute.get("raw")?;
    let text = raw.get("string").and_then(Value::as_str).and_then(|s| s.split(|c: char| !c.is_ascii_digit()).next());
    text.and_then(|t| t.parse().ok()).or_else(|| raw.get("value")?.as_u64())
}

fn scsi(root: &Value, health: &mut DiskHealth) {
    let number = |path: &str| root.pointer(path).and_then(Value::as_u64);
    if let Some(grown) = number("/scsi_grown_defect_list") {
        health.reallocated_sectors = Some(grown);
    }
    if let Some(pending) = number("/scsi_pending_defects/count") {
        health.pending_sectors = Some(pending);
    }
    let used = number("/scsi_percentage_used_endurance_indicator").or(number("/endurance_used/current_percent"));
    health.wear_percent = health.wear_percent.or(used.and_then(|n| n.try_into().ok()));
    let directions = ["read", "write", "verify"];
    let errors = directions.map(|d| number(&format!("/scsi_error_counter_log/{d}/total_uncorrected_errors")));
    if errors.iter().any(Option::is_some) {
        health.uncorrectable_errors = Some(errors.into_iter().flatten().fold(0, u64::saturating_add));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    fn fixture(name: &str) -> String {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/smartctl");
        std::fs::read_to_string(folder.join(name)).unwrap()
    }

    #[test]
    fn a_sata_ssd() {
        let health = parse(&fixture("micron-5200.json")).unwrap().unwrap();
        assert_eq!((health.passed, health.wear_percent, health.power_on_hours), (Some(true), Some(0), Some(3410)));
        assert_eq!(
            (health.reallocated_sectors, health.pending_sectors, health.crc_errors),
            (Some(0), Some(0), Some(0))
        );
        assert!(health.temperature_celsius.is_some() && health.warnings.is_empty(), "{health:?}");
    }

    #[test]
    fn an_nvme_drive() {
        let health = parse(&fixture("toshiba-nvme.json")).unwrap().unwrap();
        assert_eq!(
            health,
            DiskHealth {
                passed: Some(true),
                wear_percent: Some(0),
                power_on_hours: Some(3415),
                temperature_celsius: Some(55),
                uncorrectable_errors: Some(0),
                written_bytes: Some(683_891 * 512_000),
                spare_percent: Some(100),
                ..DiskHealth::default()
            }
        );
    }

    #[test]
    fn drives_that_fail() {
        let health = parse(&fixture("failing-sata.json")).unwrap().unwrap();
        assert_eq!(
            (health.passed, health.pending_sectors, health.reallocated_sectors),
            (Some(false), Some(14), Some(2104))
        );
        assert_eq!(health.warnings, ["Reallocated Sector Ct is below its threshold"]);
        assert_eq!((health.temperature_celsius, health.wear_percent), (Some(37), None));
        assert_eq!(health.written_bytes, Some(118_291_023_511 * 512));
        let health = parse(&fixture("failing-nvme.json")).unwrap().unwrap();
        assert_eq!((health.passed, health.wear_percent, health.spare_percent), (Some(false), Some(104), Some(4)));
        assert_eq!(health.warnings, ["spare below threshold", "reliability degraded"]);
        let health = parse(&fixture("sas.json")).unwrap().unwrap();
        assert_eq!(
            (health.reallocated_sectors, health.uncorrectable_errors, health.wear_percent),
            (Some(3), Some(2), Some(1))
        );
    }

    #[test]
    fn no_answer_is_no_health() {
        let refused = r#"{"smartctl": {"exit_status": 2, "messages":
            [{"string": "Smartctl open device: /dev/sdz failed: No such device", "severity": "error"}]}}"#;
        assert_eq!(parse(refused), Err("Smartctl open device: /dev/sdz failed: No such device".into()));
        assert_eq!(parse(r#"{"smartctl": {"exit_status": 4}, "model_name": "QEMU HARDDISK"}"#), Ok(None));
        for text in ["", "garbage", "[]", "{}", r#"{"smartctl": 3}"#] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    fn disks(names: &[&str]) -> Vec<Disk> {
        let disk = |name: &&str| Disk { name: name.to_string(), transport: "sata".into(), ..Disk::default() };
        names.iter().map(disk).collect()
    }

    #[tokio::test]
    async fn a_tool_that_hangs_prints_garbage_or_is_missing_costs_its_value_only() {
        let root = tempfile::tempdir().unwrap();
        let script = root.path().join("smartctl");
        let good = r#"{"smartctl": {"exit_status": 0}, "smart_status": {"passed": true}}"#;
        let text =
            format!("#!/bin/sh\ncase $3 in */sda) echo '{good}';; */sdb) exec sleep 600;; *) echo '<html>';; esac\n");
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let roots = Roots::default();
        let program = script.to_str().unwrap();
        let answers = ask_by(program, Duration::from_secs(3), &roots, &disks(&["sda", "sdb", "sdc"])).await;
        assert_eq!(answers.health.len(), 1);
        assert_eq!((answers.health[0].0.as_str(), answers.health[0].1.passed), ("sda", Some(true)));
        assert_eq!(answers.gaps.len(), 2);
        assert!(
            answers.gaps[0].contains("disk sdb is unknown") && answers.gaps[0].contains("within 3 s"),
            "{answers:?}"
        );
        assert!(answers.gaps[1].contains("disk sdc is unknown: smartctl: what it printed is not JSON"), "{answers:?}");

        let missing = ask_by("/no/such/smartctl", Duration::from_secs(3), &roots, &disks(&["sda", "sdb"])).await;
        assert_eq!(missing.gaps.len(), 1, "{missing:?}");
    }

    proptest! {
        #[test]
        fn no_text_stops_the_inventory(text in ".{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn nor_does_a_real_one_with_bytes_changed(changes in proptest::collection::vec((0usize..2000, any::<u8>()), 1..20)) {
            for name in ["micron-5200.json", "failing-nvme.json", "sas.json"] {
                let mut bytes = fixture(name).into_bytes();
                changes.iter().for_each(|(at, byte)| if let Some(old) = bytes.get_mut(*at) { *old = *byte });
                let _ = parse(&String::from_utf8_lossy(&bytes));
            }
        }
    }
}
