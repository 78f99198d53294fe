//! The drives' tests of themselves, started and asked for by smartctl: all at once, until each has ended or the time is up.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{Found, disk::part};
use crate::agent::roots::Roots;
use crate::agent::{inventory, tool};
use crate::link::{SelfTest, SmartBurn};
use crate::machine::{Disk, Finding, Severity, Who};

/// A drive that reads its whole surface answers late.
const ANSWER: Duration = Duration::from_secs(60);

/// How a drive's own test stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Percent that is still to come, where it tells.
    Running(Option<u64>),
    Passed,
    Failed(String),
    /// It was ended from outside, or there is none.
    None(String),
}

/// `program` is smartctl. Progress is told by `note`.
pub async fn run(
    program: &str,
    roots: &Roots,
    profile: &SmartBurn,
    stop: &CancellationToken,
    note: impl Fn(String),
) -> Found {
    let mut found = Found::default();
    let drives = inventory::disks(roots).unwrap_or_default().into_iter();
    let drives = drives.filter(|d| matches!(d.transport.as_str(), "sata" | "sas" | "scsi" | "nvme"));
    let test = match profile.test {
        SelfTest::Short => "--test=short",
        SelfTest::Long => "--test=long",
    };
    let mut running = Vec::new();
    for drive in drives {
        let path = roots.dev.join(&drive.name);
        let path = path.display().to_string();
        let state = match ask(program, &["--json", "--capabilities", "--log=selftest", &path]).await {
            // One that was begun before a power cut goes on by itself.
            Ok(State::Running(_)) => Ok(State::Running(None)),
            Ok(_) | Err(_) => start(program, test, &path).await,
        };
        match state {
            Ok(_) => running.push((drive, path)),
            Err(why) => found.notes.push(format!("{} does not test itself: {why}", drive.name)),
        }
    }
    let end = Instant::now() + Duration::from_secs(profile.seconds.into());
    let pause = Duration::from_secs((profile.seconds / 50).clamp(1, 60).into());
    while !running.is_empty() && Instant::now() < end {
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            break;
        }
        let mut left = Vec::new();
        for (drive, path) in running {
            match ask(program, &["--json", "--capabilities", "--log=selftest", &path]).await {
                Ok(State::Running(percent)) => {
                    let percent = percent.map_or("unknown".into(), |percent| format!("{percent} %"));
                    note(format!("{}: {percent} left", drive.name));
                    left.push((drive, path));
                }
                Ok(State::Passed) => {}
                Ok(State::Failed(words)) => found.findings.push(failed(&drive, words)),
                Ok(State::None(words)) | Err(words) => {
                    found.notes.push(format!("the self-test of {} has no result: {words}", drive.name));
                }
            }
        }
        running = left;
    }
    let unfinished = running.iter().map(|(drive, _)| {
        format!("the self-test of {} goes on after {} s; its result is in the drive", drive.name, profile.seconds)
    });
    found.notes.extend(unfinished);
    found
}

fn failed(drive: &Disk, words: String) -> Finding {
    Finding {
        id: "burn.smart".into(),
        part: part(drive),
        severity: Severity::Fault,
        cause: format!("its own test failed: {words}"),
        expected: "completed without error".into(),
        found: words,
        who: Who::Supplier,
        next: "exchange the drive".into(),
    }
}

async fn start(program: &str, test: &str, path: &str) -> Result<State, String> {
    let answer = json(program, &["--json", test, path]).await?;
    // Bits 0 to 2 of the exit status: command line, open, command to the drive (smartctl(8)).
    match answer.pointer("/smartctl/exit_status").and_then(Value::as_u64) {
        Some(status) if status & 0b111 == 0 => Ok(State::Running(None)),
        _ => Err(message(&answer)),
    }
}

async fn ask(program: &str, args: &[&str]) -> Result<State, String> {
    Ok(state(&json(program, args).await?))
}

async fn json(program: &str, args: &[&str]) -> Result<Value, String> {
    let output = tool::run(program, args, ANSWER).await.map_err(|e| match e.code() {
        "tool.missing" => "smartctl is not in this system".to_owned(),
        _ => e.message().to_owned(),
    })?;
    serde_json::from_str(&output.stdout)
        .map_err(|_| format!("the answer of smartctl is not understood: {}", output.last_words()))
}

fn message(answer: &Value) -> String {
    let messages = answer.pointer("/smartctl/messages").and_then(Value::as_array);
    let text = |message: &Value| message.get("string").and_then(Value::as_str).map(str::to_owned);
    messages.and_then(|all| all.iter().find_map(text)).unwrap_or_else(|| "it refuses".into())
}

/// Of ATA (ACS-4 table 139: self-test execution status), NVMe (2.0 figure 212) or SCSI (SPC-4 table 328).
fn state(answer: &Value) -> State {
    let at = |path: &str| answer.pointer(path);
    let number = |path: &str| at(path).and_then(Value::as_u64);
    let words = |path: &str| at(path).and_then(Value::as_str).unwrap_or("no words for it").to_owned();
    let result = |code: u64, aborted: std::ops::RangeInclusive<u64>, path: &str| match code {
        0 => State::Passed,
        code if aborted.contains(&code) => State::None(words(path)),
        _ => State::Failed(words(path)),
    };
    if let Some(status) = number("/ata_smart_data/self_test/status/value") {
        return match status >> 4 {
            15 => State::Running(number("/ata_smart_data/self_test/status/remaining_percent")),
            code => result(code, 1..=2, "/ata_smart_data/self_test/status/string"),
        };
    }
    if let Some(log) = at("/nvme_self_test_log") {
        let done = log.get("current_self_test_completion_percent").and_then(Value::as_u64);
        return match log.pointer("/current_self_test_operation/value").and_then(Value::as_u64) {
            Some(1..) => State::Running(done.map(|done| 100_u64.saturating_sub(done))),
            _ => match number("/nvme_self_test_log/table/0/self_test_result/value") {
                Some(9) => State::None("it was ended by a sanitize operation".into()),
                Some(code) => result(code, 1..=4, "/nvme_self_test_log/table/0/self_test_result/string"),
                None => State::None("its log has no test".into()),
            },
        };
    }
    match number("/scsi_self_test_0/result/value") {
        Some(15) => State::Running(None),
        Some(code) => result(code, 1..=2, "/scsi_self_test_0/result/string"),
        None => State::None(message(answer)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn each_kind_of_drive_says_how_its_test_stands() {
        let ata = |value: u64, text: &str| json!({"ata_smart_data": {"self_test": {"status": {"value": value, "string": text, "remaining_percent": 90}}}});
        assert_eq!(state(&ata(249, "in progress, 90% remaining")), State::Running(Some(90)));
        assert_eq!(state(&ata(0, "completed without error")), State::Passed);
        assert_eq!(state(&ata(25, "was aborted by the host")), State::None("was aborted by the host".into()));
        let read = "completed having the read element of the test failed";
        assert_eq!(state(&ata(121, read)), State::Failed(read.into()));
        let nvme = |now: u64, last: u64| {
            json!({"nvme_self_test_log": {"current_self_test_operation": {"value": now},
                "current_self_test_completion_percent": 30,
                "table": [{"self_test_result": {"value": last, "string": "Completed: failed segments"}}]}})
        };
        assert_eq!(state(&nvme(2, 0)), State::Running(Some(70)));
        assert_eq!(state(&nvme(0, 0)), State::Passed);
        assert_eq!(state(&nvme(0, 7)), State::Failed("Completed: failed segments".into()));
        let scsi =
            |value: u64| json!({"scsi_self_test_0": {"result": {"value": value, "string": "Failed in segment"}}});
        assert_eq!(state(&scsi(15)), State::Running(None));
        assert_eq!(state(&scsi(6)), State::Failed("Failed in segment".into()));
        assert_eq!(state(&json!({"ata_smart_data": []})), State::None("it refuses".into()));
    }

    /// A script in the place of smartctl; `sda` and `sdb` are ATA drives, `vda` is not asked.
    async fn tested(script: &str) -> Found {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("smartctl");
        std::fs::write(&program, format!("#!/bin/sh\ncd {}\n{script}\n", dir.path().display())).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let roots = Roots { sys: dir.path().join("sys"), ..Roots::default() };
        for (name, bus) in [("sda", "ata1"), ("sdb", "ata2"), ("vda", "virtio0")] {
            let (block, device) = (roots.sys.join("block").join(name), roots.sys.join("devices").join(bus).join("dev"));
            std::fs::create_dir_all(&block).unwrap();
            std::fs::create_dir_all(&device).unwrap();
            std::os::unix::fs::symlink(&device, block.join("device")).unwrap();
        }
        let profile = SmartBurn { test: SelfTest::Long, seconds: 3 };
        run(program.to_str().unwrap(), &roots, &profile, &CancellationToken::new(), |_| {}).await
    }

    #[tokio::test]
    async fn a_drive_whose_test_fails_is_a_fault_and_one_that_goes_on_is_told() {
        // sda is asked to begin, runs for one look and fails; sdb never ends.
        let found = tested(
            r#"status() { echo '{"smartctl": {"exit_status": 0}, "ata_smart_data": {"self_test": {"status":
                   {"value": '$1', "string": "the read element failed", "remaining_percent": 10}}}}'; }
               case "$*" in
                 *--test=long*sda) touch begun; echo '{"smartctl": {"exit_status": 0}}' ;;
                 *sda) if [ -e looked ]; then status 121; elif [ -e begun ]; then touch looked; status 241; else status 0; fi ;;
                 *--test*sdb) exit 9 ;;
                 *sdb) status 249 ;;
               esac"#,
        )
        .await;
        assert_eq!(found.findings.len(), 1, "{found:?}");
        assert_eq!(found.findings[0].to_string(), "disk sda: its own test failed: the read element failed");
        assert_eq!(found.notes, ["the self-test of sdb goes on after 3 s; its result is in the drive"]);
    }

    #[tokio::test]
    async fn garbage_and_a_drive_that_cannot_are_named_and_nothing_more() {
        let found = tested(
            r#"case "$*" in
                 *sda) echo 'no json' ;;
                 *) echo '{"smartctl": {"exit_status": 4, "messages": [{"string": "Self-tests not supported"}]}}' ;;
               esac"#,
        )
        .await;
        assert!(found.findings.is_empty());
        let sda = "sda does not test itself: the answer of smartctl is not understood: no json";
        assert_eq!(found.notes, [sda, "sdb does not test itself: Self-tests not supported"]);
    }
}
