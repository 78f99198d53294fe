//! What came of it: for each machine what it is now and how that is known, and where the time went.

use std::collections::BTreeSet;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::Value;

use super::appliance::Operator;
use super::text::plain;
use super::watch::{End, Watched};
use super::{Lab, Machine};
use crate::api::view::{MachineView, StageTime};
use crate::error::{Kind, OrFail, Result};
use crate::link::{Check, Deployed, Measured, Problem, peer_share};
use crate::machine::{Firmware, Roles};

/// How much of a broken machine's console is shown.
const CONSOLE_LINES: usize = 12;

#[derive(Debug, Serialize)]
pub struct Report {
    lab: String,
    outcome: &'static str,
    /// From the first power-on to the last delivery, or to the end of the watch.
    seconds: f64,
    /// Of the image data that travelled to all machines, the part that other machines sent: 0 to 1.
    peer_share: Option<f64>,
    machines: Vec<Entry>,
}

#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    firmware: Firmware,
    role: Roles,
    state: String,
    /// From power-on to delivered.
    seconds: Option<f64>,
    stages: Vec<StageTime>,
    serial: Option<String>,
    model: Option<String>,
    cpu_threads: Option<u16>,
    memory_bytes: Option<u64>,
    address: Option<std::net::IpAddr>,
    deployed: Option<Deployed>,
    peer_share: Option<f64>,
    checks: Vec<Check>,
    measured: Vec<Measured>,
    waiting: Option<String>,
    problem: Option<Problem>,
    console: Vec<String>,
    passport: Option<Value>,
}

impl Report {
    pub async fn collect(api: &Operator, lab: &Lab, watched: Watched) -> Result<Report> {
        let mut machines = Vec::new();
        for machine in &lab.machines {
            let Some(seen) = watched.views.iter().find(|v| v.name == machine.name()) else { continue };
            // The list is short; the machine's own page has inventory, checks and passport.
            let view = api.machine(seen.id).await?;
            machines.push(entry(machine, view, watched.seconds.get(&machine.name()).copied()));
        }
        Ok(Report {
            lab: lab.spec.name.clone(),
            outcome: watched.end.name(),
            seconds: watched.total.as_secs_f64(),
            peer_share: share_of_all(&machines),
            machines,
        })
    }

    pub fn json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).or_fail(Kind::Internal, "lab.report", || "the report has no JSON form")
    }

    pub fn text(&self) -> String {
        let mut text: String = self.machines.iter().map(|m| m.text() + "\n").collect();
        text += &self.table().to_string();
        text += &self.peer_share.map_or_else(String::new, |share| match self.shares_an_image() {
            true => format!("\n{}", from_others(share)),
            false => "\nno two machines got the same image, so each fetched its own from the appliance".to_owned(),
        });
        let machines = self.machines.len();
        text += &match self.outcome {
            o if o == End::Delivered.name() => format!("\nall {machines} delivered in {:.1} s", self.seconds),
            outcome => format!("\nnot all delivered after {:.1} s: {outcome}", self.seconds),
        };
        text
    }

    /// Only frames of the same image are passed on.
    fn shares_an_image(&self) -> bool {
        let mut seen = BTreeSet::new();
        self.machines.iter().filter_map(|m| m.deployed.as_ref()).any(|d| !seen.insert(d.manifest.0))
    }

    /// Stages down, machines across, seconds in the cells.
    fn table(&self) -> Table {
        let mut stages: Vec<&str> = Vec::new();
        for stage in self.machines.iter().flat_map(|m| &m.stages) {
            if !stages.contains(&stage.state.as_str()) {
                stages.push(&stage.state);
            }
        }
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        table.set_header(std::iter::once("seconds").chain(self.machines.iter().map(|m| m.name.as_str())));
        for stage in stages {
            let spent = self.machines.iter().map(|m| {
                let times = m.stages.iter().filter(|s| s.state == stage).map(|s| s.seconds);
                times.reduce(|a, b| a + b).map_or_else(|| "-".to_owned(), |s| format!("{s:.1}"))
            });
            table.add_row(std::iter::once(stage.to_owned()).chain(spent));
        }
        let total = self.machines.iter().map(|m| m.seconds.map_or_else(|| "-".to_owned(), |s| format!("{s:.1}")));
        table.add_row(std::iter::once("power-on to delivered".to_owned()).chain(total));
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

fn share_of_all(machines: &[Entry]) -> Option<f64> {
    let deployed = || machines.iter().filter_map(|m| m.deployed.as_ref());
    peer_share(deployed().map(|d| d.peer_bytes).sum(), deployed().map(|d| d.appliance_bytes).sum())
}

fn from_others(share: f64) -> String {
    format!("{:.0} % of the image data came from other machines", share * 100.0)
}

fn entry(machine: &Machine, view: MachineView, seconds: Option<f64>) -> Entry {
    let deployed = view.passport.as_ref().and_then(deployed);
    let system = view.inventory.as_ref().map(|i| &i.system);
    let model = system.and_then(|s| Some(format!("{} {}", s.manufacturer.as_deref()?, s.product.as_deref()?)));
    Entry {
        name: machine.name(),
        firmware: machine.spec.firmware,
        role: view.role.clone().unwrap_or_else(|| machine.spec.role.clone()),
        seconds,
        serial: view.serial.as_ref().map(ToString::to_string),
        model,
        cpu_threads: view.inventory.as_ref().map(|i| i.cpus.iter().map(|c| c.threads).fold(0, u16::saturating_add)),
        memory_bytes: view.inventory.as_ref().map(|i| i.memory.usable_bytes),
        address: view.address,
        peer_share: deployed.as_ref().and_then(Deployed::peer_share),
        deployed,
        waiting: view.waiting.map(|w| w.reason),
        console: if view.state == "delivered" { Vec::new() } else { machine.console_tail(CONSOLE_LINES) },
        stages: view.times,
        state: view.state,
        checks: view.checks,
        measured: view.measured,
        problem: view.problem,
        passport: view.passport,
    }
}

/// The record of the write.
fn deployed(passport: &Value) -> Option<Deployed> {
    serde_json::from_value(passport.get("passport")?.get("deployed")?.clone()).ok()
}

impl Entry {
    fn text(&self) -> String {
        let built_in = [
            self.model.clone(),
            self.serial.as_ref().map(|serial| format!("serial {serial}")),
            self.cpu_threads.map(|threads| format!("{threads} CPU threads")),
            self.memory_bytes.map(|bytes| format!("{} MiB", bytes >> 20)),
        ];
        let built_in = built_in.into_iter().flatten().collect::<Vec<_>>().join(", ");
        let mut lines =
            vec![format!("{}  {}, {} {} host: {built_in}", self.name, self.state, self.firmware, self.role)];
        lines.extend(self.deployed.as_ref().map(written));
        lines.extend(self.peer_share.map(|share| format!("  {}", from_others(share))));
        lines.extend(self.checks.iter().map(|c| {
            let mark = c.verdict();
            let expected = if c.failed() { format!(" (expected {})", c.expected) } else { String::new() };
            format!("  {mark:7} {:20} {:6.1} s  {}{expected}", c.id, c.seconds, c.found)
        }));
        let measured: Vec<String> =
            self.measured.iter().map(|m| format!("{} {} {}", m.name, Short(m.value), m.unit)).collect();
        if !measured.is_empty() {
            lines.push(format!("  measured {}", measured.join(", ")));
        }
        if let Some(problem) = &self.problem {
            lines.push(format!("  problem [{}] {}", problem.code, problem.title));
            lines.extend(problem.causes.iter().map(|cause| format!("    because {cause}")));
            lines.extend(problem.hint.iter().map(|hint| format!("  hint: {hint}")));
        }
        lines.extend(self.waiting.iter().map(|reason| format!("  waiting: {reason}")));
        lines.extend(self.console.iter().map(|line| format!("  console | {line}")));
        plain(&lines.join("\n")) + "\n"
    }
}

fn written(d: &Deployed) -> String {
    let rate = d.written_bytes as f64 / d.write_seconds.max(1e-3);
    let serial = d.serial.as_ref().map_or_else(String::new, |s| format!(" ({s})"));
    let dd = d
        .dd_bytes_per_second
        .map_or_else(String::new, |dd| format!(", dd {:.1} MB/s, ratio {:.2}", dd / 1e6, rate / dd.max(1.0)));
    format!(
        "  image {} on {}{serial}: {} MiB written in {:.1} s, {:.1} MB/s{dd}; {} MiB read back in {:.1} s",
        d.manifest,
        d.disk,
        d.written_bytes >> 20,
        d.write_seconds,
        rate / 1e6,
        d.read_back_bytes >> 20,
        d.read_back_seconds
    )
}

/// Three digits after the point at most, and none where there is nothing.
struct Short(f64);

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:.3}", self.0);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Value {
        serde_json::json!({
            "manifest": "ab".repeat(32), "disk": "nvme0n1", "serial": "LWD000010", "written_bytes": 2_000_000_000u64,
            "fetched_bytes": 500_000_000, "write_seconds": 20.0, "read_back_bytes": 2_000_000_000u64,
            "read_back_seconds": 4.0, "dd_bytes_per_second": 125e6, "peer_bytes": 300_000_000, "appliance_bytes": 200_000_000
        })
    }

    fn entry(name: &str, state: &str, stages: &[(&str, f64)]) -> Entry {
        Entry {
            name: name.into(),
            firmware: Firmware::Bios,
            role: crate::machine::Role::Kvm.into(),
            state: state.into(),
            seconds: (state == "delivered").then_some(61.25),
            stages: stages.iter().map(|(s, t)| StageTime { state: (*s).into(), seconds: *t }).collect(),
            serial: Some("S1".into()),
            model: None,
            cpu_threads: Some(2),
            memory_bytes: Some(2 << 30),
            address: None,
            deployed: deployed(&serde_json::json!({ "passport": { "deployed": record() } })),
            peer_share: Some(0.6),
            checks: Vec::new(),
            measured: vec![Measured::new("boot", 12.3400, "s")],
            waiting: None,
            problem: None,
            console: Vec::new(),
            passport: None,
        }
    }

    #[test]
    fn the_write_is_told_with_its_rate_and_its_peer() {
        let text = entry("node-01", "delivered", &[]).text();
        assert!(text.contains("1907 MiB written in 20.0 s, 100.0 MB/s, dd 125.0 MB/s, ratio 0.80"), "{text}");
        assert!(text.contains("\n  60 % of the image data came from other machines\n"), "{text}");
        assert!(text.contains("measured boot 12.34 s"), "{text}");
        assert!(deployed(&serde_json::json!({ "disk": "nvme0n1" })).is_none());
    }

    #[test]
    fn a_broken_machine_says_why_and_cannot_drive_the_terminal() {
        let mut broken = entry("node-01", "broken", &[]);
        broken.problem = Some(Problem {
            code: "disk.none".into(),
            title: "no disk\u{1b}[2J fits".into(),
            hint: Some("fit a disk".into()),
            causes: vec![],
        });
        broken.console = vec!["login:".into()];
        let text = broken.text();
        assert!(text.contains("problem [disk.none] no disk fits\n  hint: fit a disk\n  console | login:"), "{text}");
    }

    #[test]
    fn stages_down_and_machines_across() {
        let machines = vec![
            entry("node-01", "delivered", &[("seen", 1.0), ("deploying", 2.0), ("seen", 0.5)]),
            entry("node-02", "broken", &[("seen", 4.0)]),
        ];
        assert_eq!(share_of_all(&machines), Some(0.6));
        assert_eq!(share_of_all(&[]), None);
        let report =
            Report { lab: "t".into(), outcome: End::Broken.name(), seconds: 70.0, peer_share: Some(0.6), machines };
        let table = report.table().to_string();
        let row =
            |name: &str| table.lines().find(|l| l.contains(name)).map(|l| l.split_whitespace().collect::<Vec<_>>());
        assert_eq!(row("seen").unwrap()[1..4], ["seen", "1.5", "4.0"]);
        assert_eq!(row("deploying").unwrap()[1..4], ["deploying", "2.0", "-"]);
        let text = report.text();
        assert!(
            text.ends_with("\n60 % of the image data came from other machines\nnot all delivered after 70.0 s: broken")
        );
        let alone = Report { machines: report.machines.into_iter().take(1).collect(), ..report };
        assert!(alone.text().contains("\nno two machines got the same image"));
    }
}
