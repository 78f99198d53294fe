//! Processors under load: stress-ng computes on each of them and compares what comes out (`--verify`).

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Found;
use crate::agent::tool::{self, Output};
use crate::link::{CpuBurn, Measured};
use crate::machine::{Finding, Severity, Who};

/// It ends its workers by itself; one that computes in the kernel may take a while.
const LATE: Duration = Duration::from_secs(60);

/// One stressor after the other. `program` is stress-ng.
pub async fn run(program: &str, profile: &CpuBurn, stop: &CancellationToken) -> Found {
    let mut found = Found::default();
    let each = (profile.seconds / profile.stressors.len().max(1) as u32).max(1);
    for stressor in &profile.stressors {
        let (option, time) = (format!("--{stressor}"), format!("{each}s"));
        let args = [&option, "0", "--verify", "--metrics", "--temp-path", "/tmp", "--timeout", &time];
        let deadline = Duration::from_secs(each.into()) + LATE;
        match stop.run_until_cancelled(tool::run(program, &args, deadline)).await {
            None => break,
            Some(Ok(output)) => read(stressor, &output, &mut found),
            Some(Err(e)) if e.code() == "tool.missing" => {
                found.notes.push("stress-ng is not in this system: the processors were not loaded".into());
                break;
            }
            Some(Err(e)) => found.findings.push(odd(stressor, e.message().to_owned())),
        }
    }
    found
}

fn read(stressor: &str, output: &Output, found: &mut Found) {
    let lines = || output.stdout.lines().chain(output.stderr.lines());
    let words: Vec<&str> =
        lines().filter_map(|line| line.split_once("fail:")).map(|(_, rest)| after_pid(rest)).collect();
    match words.first() {
        Some(first) => found.findings.push(Finding {
            id: "burn.cpu".into(),
            part: "processors".into(),
            severity: Severity::Fault,
            cause: format!("they compute wrongly under load ({stressor}): {first}"),
            expected: "the same result each time".into(),
            found: format!("{} wrong results or more", words.len()),
            who: Who::Supplier,
            next: "set the BIOS to its defaults (no overclocking, no lowered voltage) and burn it in again; \
                   then exchange the processor or the board"
                .into(),
        }),
        None if output.success => match lines().find_map(|line| rate(stressor, line)) {
            Some(value) => {
                let name = if stressor == "cpu" { "cpu.stress".into() } else { format!("cpu.{stressor}") };
                found.measured.push(Measured::new(name, value, "ops/s"));
            }
            None => {
                let said = output.last_words();
                found.findings.push(odd(stressor, format!("stress-ng says nothing that is understood: {said}")));
            }
        },
        None if lines().any(|line| line.contains("unrecognized option")) => {
            found.notes.push(format!("this stress-ng has no stressor {stressor}"));
        }
        None => found.findings.push(odd(stressor, format!("stress-ng failed: {}", output.last_words()))),
    }
}

/// It need not be the processor.
fn odd(stressor: &str, cause: String) -> Finding {
    Finding {
        id: "burn.cpu.unfinished".into(),
        part: format!("processors ({stressor})"),
        severity: Severity::Warning,
        cause,
        expected: "a test that ends with a result".into(),
        found: "none".into(),
        who: Who::Operator,
        next: "look at the kernel's messages on its console; burn it in again".into(),
    }
}

/// `[4711] cpu: …` without the process number.
fn after_pid(text: &str) -> &str {
    let text = text.trim();
    text.strip_prefix('[').and_then(|rest| rest.split_once(']')).map_or(text, |(_, rest)| rest.trim())
}

/// Of `stress-ng: metrc: [4711] cpu 1542 3.02 0.99 0.00 511.01 1558.89 …`: the operations a second of real time, which is the
/// sixth word. Older releases write `info:` for `metrc:`.
fn rate(stressor: &str, line: &str) -> Option<f64> {
    let (_, rest) = line.split_once("metrc:").or_else(|| line.split_once("info:"))?;
    let mut words = after_pid(rest).split_whitespace();
    if words.next() != Some(stressor) {
        return None;
    }
    let numbers: Option<Vec<f64>> = words.take(5).map(|word| word.parse().ok()).collect();
    numbers?.get(4).copied().filter(|rate| rate.is_finite() && *rate > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    const GOOD: &str = "stress-ng: info:  [5070] dispatching hogs: 2 cpu
stress-ng: metrc: [5070] stressor       bogo ops real time  usr time  sys time   bogo ops/s     bogo ops/s CPU used per       RSS Max
stress-ng: metrc: [5070]                           (secs)    (secs)    (secs)   (real time) (usr+sys time) instance (%)          (KB)
stress-ng: metrc: [5070] cpu                1542      3.02      0.99      0.00       511.01        1558.89        16.39          6464
stress-ng: info:  [5070] successful run completed in 3.03s";

    fn judged(text: &str, success: bool) -> Found {
        let mut found = Found::default();
        read("cpu", &Output { success, stdout: String::new(), stderr: text.into() }, &mut found);
        found
    }

    #[test]
    fn a_good_run_has_a_rate_and_a_wrong_result_is_a_fault() {
        let good = judged(GOOD, true);
        assert_eq!(good.measured, [Measured::new("cpu.stress", 511.01, "ops/s")]);
        assert!(good.findings.is_empty());
        let wrong = "stress-ng: fail:  [4711] cpu: loops: 1234 failed, expected 0.5 got 0.25\n\
                     stress-ng: error: [4710] unsuccessful run completed in 9.02s";
        let bad = judged(wrong, false);
        assert_eq!(bad.findings[0].severity, Severity::Fault);
        assert!(bad.findings[0].cause.ends_with("(cpu): cpu: loops: 1234 failed, expected 0.5 got 0.25"));
        assert!(bad.measured.is_empty());
    }

    #[test]
    fn what_is_not_understood_is_said_and_blames_nobody() {
        for (text, success) in [("\u{0}\u{1}garbage", true), ("metrc: [1] cpu NaN inf 1 2 -3", true), ("killed", false)]
        {
            let found = judged(text, success);
            assert_eq!(found.findings[0].severity, Severity::Warning, "{text}");
            assert!(found.measured.is_empty());
        }
        let old = judged("stress-ng: unrecognized option '--fft'\nTry 'stress-ng --help'", false);
        assert_eq!((old.notes.len(), old.findings.len()), (1, 0));
    }

    #[tokio::test]
    async fn without_stress_ng_the_test_is_left_out_by_name() {
        let profile = CpuBurn { seconds: 1, stressors: vec!["cpu".into(), "matrix".into()] };
        let found = run("/no/such/stress-ng", &profile, &CancellationToken::new()).await;
        assert_eq!(found.notes, ["stress-ng is not in this system: the processors were not loaded"]);
        assert!(found.findings.is_empty());
    }

    /// The real one.
    #[tokio::test]
    async fn stress_ng_is_run_and_understood() {
        let profile = CpuBurn { seconds: 2, stressors: vec!["cpu".into(), "matrix".into()] };
        let found = run("stress-ng", &profile, &CancellationToken::new()).await;
        let names: Vec<&str> = found.measured.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["cpu.stress", "cpu.matrix"], "{found:?}");
        assert_eq!((found.findings.len(), found.notes.len()), (0, 0), "{found:?}");
    }

    #[tokio::test]
    async fn a_test_that_is_withdrawn_ends_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("stress-ng");
        let mut file = std::fs::File::create(&program).unwrap();
        file.write_all(b"#!/bin/sh\nsleep 600\n").unwrap();
        drop(file);
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let (stop, profile) = (CancellationToken::new(), CpuBurn { seconds: 600, stressors: vec!["cpu".into()] });
        let program = program.to_str().unwrap();
        let run = run(program, &profile, &stop);
        let (found, ()) = tokio::join!(run, async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            stop.cancel();
        });
        assert!(found.findings.is_empty() && found.measured.is_empty());
    }
}
