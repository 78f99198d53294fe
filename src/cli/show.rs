//! Tables for people, JSON for scripts.

use comfy_table::{ContentArrangement, Table, presets};

use crate::api::view::{BurnView, EventView, MachineView};
use crate::boot::monitor::Status;
use crate::boot::switch::{Report, State, SwitchReport};
use crate::image::Catalogue;
use crate::lifecycle::Recheck;
use crate::link::Check;
use crate::swarm::tracker::{MemberView, SwarmList, SwarmView};

pub fn print(json: bool, value: &impl serde::Serialize, table: impl FnOnce() -> String) {
    let text = if json { serde_json::to_string_pretty(value).unwrap_or_default() } else { table() };
    use std::io::Write;
    // A closed pipe (`| head`) is not a failure.
    let _ = writeln!(std::io::stdout(), "{text}");
}

pub fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(head.iter().copied());
    table
}

/// What a machine is doing, in one line.
pub fn doing(m: &MachineView) -> String {
    if let Some(problem) = &m.problem {
        return problem.title.clone();
    }
    if let Some(p) = &m.progress {
        let percent = (p.done.min(p.total) * 100).checked_div(p.total);
        let share = percent.map_or(String::new(), |percent| format!(" {percent} %"));
        return format!("{}{share}", p.step);
    }
    m.waiting.as_ref().map_or(String::new(), |w| w.reason.clone())
}

pub fn machines(list: &[MachineView]) -> String {
    if list.is_empty() {
        return "no machine yet: power one on, or name a list of expected machines in rackline.toml".into();
    }
    let mut table = table(&["NAME", "PLACE", "STATE", "ROLE", "ADDRESS", "NOW"]);
    for m in list {
        table.add_row([
            m.name.clone(),
            m.place.as_ref().map_or(String::new(), |p| p.to_string()),
            m.state.clone(),
            m.role.as_ref().map_or(String::new(), |r| r.to_string()),
            m.address.map_or(String::new(), |a| a.to_string()),
            doing(m),
        ]);
    }
    table.to_string()
}

pub fn machine(m: &MachineView, swarms: Option<&SwarmList>) -> String {
    let mut lines = vec![machines(std::slice::from_ref(m)), String::new()];
    for swarm in swarms.iter().flat_map(|list| &list.swarms) {
        if let Some(member) = swarm.members.iter().find(|member| member.machine == m.id) {
            lines.extend([member_now(&swarm.name, member), String::new()]);
        }
    }
    if let Some(problem) = &m.problem {
        lines.push(format!("broken: {} [{}]", problem.title, problem.code));
        lines.extend(problem.causes.iter().map(|c| format!("  because: {c}")));
        lines.extend(problem.hint.iter().map(|h| format!("  hint: {h}")));
        lines.push(String::new());
    }
    for f in &m.findings {
        lines.push(format!("{}: {f} [{}]", f.severity, f.id));
        lines.push(format!("  expected {}, found {}; {}: {}", f.expected, f.found, f.who, f.next));
    }
    if !m.findings.is_empty() {
        lines.push(String::new());
    }
    if let Some(burn) = &m.burn {
        lines.extend([burn_in(burn), String::new()]);
    }
    lines.extend(m.ports.iter().map(|p| format!("on {} {} ({})", p.switch, p.port, p.mac)));
    for problem in &m.cabling {
        lines.push(format!("  warning: {} [{}]", problem.title, problem.code));
        lines.extend(problem.hint.iter().map(|h| format!("  hint: {h}")));
    }
    if !m.ports.is_empty() {
        lines.push(String::new());
    }
    if let Some(i) = &m.inventory {
        lines.extend(super::show_parts::inventory(i, m.serial.as_ref()));
        lines.push(String::new());
    }
    lines.extend(checks(&m.checks));
    for v in &m.measured {
        lines.push(format!("  {}: {:.1} {}", v.name, v.value, v.unit));
    }
    for t in &m.times {
        lines.push(format!("  {:<14}{:8.1} s", t.state, t.seconds));
    }
    lines.extend(m.recheck.iter().flat_map(|r| [String::new(), recheck(r)]));
    lines.join("\n")
}

fn checks(list: &[Check]) -> Vec<String> {
    let line = |c: &Check| {
        let expected = if c.failed() {
            format!("; expected {}; {}: {}", c.expected, c.who, c.hint.as_deref().unwrap_or(""))
        } else {
            String::new()
        };
        format!("  {:<8}{}: {}{expected} ({:.1} s)", c.verdict(), c.id, c.found, c.seconds)
    };
    list.iter().map(line).collect()
}

/// The last look at a delivered host.
pub fn recheck(r: &Recheck) -> String {
    let Some(done) = r.done else { return format!("checked on demand since {}: not done yet", clock(r.asked)) };
    let mut lines = vec![format!("checked on demand at {}", clock(done))];
    if let Some(problem) = &r.problem {
        lines.push(format!("  {} [{}]", problem.title, problem.code));
        lines.extend(problem.hint.iter().map(|h| format!("  hint: {h}")));
        return lines.join("\n");
    }
    lines.extend(checks(&r.checks));
    match r.differences.as_slice() {
        [] => lines.push("as it was when it was delivered".into()),
        differences => {
            lines.push("not as it was when it was delivered:".into());
            lines.extend(differences.iter().map(|d| format!("  {d}")));
        }
    }
    lines.join("\n")
}

/// How far a burn-in is, or how it ended, and what was left out of it.
fn burn_in(burn: &BurnView) -> String {
    let state = match (burn.began, burn.ended, burn.stopped) {
        (None, ..) => "waits for inventory and firmware".to_owned(),
        (Some(_), None, _) => "under way".to_owned(),
        (_, Some(at), true) => format!("cut short {}", date(at)),
        (_, Some(at), false) => format!("ended {}", date(at)),
    };
    let restarts = if burn.restarts > 0 { format!(", restarted {} times", burn.restarts) } else { String::new() };
    let head = format!("burn-in {}: {state}, {} of {} tests{restarts}", burn.profile, burn.done.len(), burn.tests);
    let tests = burn.done.iter().flat_map(|done| {
        let notes = done.notes.iter().map(|note| format!("    {note}"));
        [format!("  {:<14}{:8.1} s", done.test, done.seconds)].into_iter().chain(notes)
    });
    [head].into_iter().chain(tests).collect::<Vec<_>>().join("\n")
}

/// One machine in one swarm, in a line.
fn member_now(image: &str, m: &MemberView) -> String {
    let sum = m.from_peers_bytes + m.from_appliance_bytes;
    let peers = (m.from_peers_bytes * 100).checked_div(sum).unwrap_or(0);
    let follows = m.follows.as_deref().unwrap_or("the appliance");
    let now = match m.state.as_str() {
        "done" | "left" | "waits" => String::new(),
        _ => format!(", follows {follows} at {:.1} MB/s", m.rate as f64 / 1e6),
    };
    format!("{image}: {}, {:.0} %{now}; {peers} % of {} MiB from other machines", m.state, m.share * 100.0, sum >> 20)
}

pub fn swarms(list: &SwarmList) -> String {
    if list.swarms.is_empty() {
        return "no machine fetches an image".into();
    }
    list.swarms.iter().map(swarm).collect::<Vec<_>>().join("\n\n")
}

fn swarm(s: &SwarmView) -> String {
    let copies = |bytes: u64| bytes as f64 / s.image_bytes.max(1) as f64;
    let done = s.members.iter().filter(|m| m.share >= 1.0).count();
    let mut text = format!(
        "{}, {} MiB: {done} of {} machines have it; copies sent by the appliance {:.2}, within racks {:.2}, between racks {:.2}\n",
        s.name,
        s.image_bytes >> 20,
        s.members.len(),
        copies(s.from_appliance_bytes),
        copies(s.from_same_rack_bytes),
        copies(s.from_other_racks_bytes),
    );
    let name = |rack: &str| if rack.is_empty() { "unknown".to_owned() } else { rack.to_owned() };
    let racks: Vec<String> = s.racks.iter().map(|r| format!("{} {:.2}", name(&r.rack), r.copies_in)).collect();
    if !racks.is_empty() {
        text += &format!("copies that came into each rack: {}\n", racks.join(", "));
    }
    let mut table = table(&["MACHINE", "RACK", "STATE", "HAS", "MB/s", "FOLLOWS", "FROM MACHINES"]);
    for m in &s.members {
        let sum = m.from_peers_bytes + m.from_appliance_bytes;
        let fetching = !matches!(m.state.as_str(), "done" | "left" | "silent" | "waits");
        table.add_row([
            m.name.clone(),
            m.rack.clone(),
            m.state.clone(),
            format!("{:.0} %", m.share * 100.0),
            if fetching { format!("{:.1}", m.rate as f64 / 1e6) } else { String::new() },
            if fetching { m.follows.clone().unwrap_or_else(|| "the appliance".into()) } else { String::new() },
            (m.from_peers_bytes * 100).checked_div(sum).map_or(String::new(), |percent| format!("{percent} %")),
        ]);
    }
    text + &table.to_string()
}

pub fn switches(report: &Report) -> String {
    let mut lines = Vec::new();
    if report.switches.is_empty() {
        lines.push("no switch is listed: add [[switches]] to rackline.toml".to_owned());
    } else {
        let mut table = table(&["NAME", "PLACE", "SYSTEM", "ADDRESS", "PORTS", "STATE", "NOW"]);
        for s in &report.switches {
            table.add_row([
                s.name.clone(),
                s.place.as_ref().map_or(String::new(), |p| p.to_string()),
                s.vendor.to_string(),
                s.address.clone(),
                s.ports.to_string(),
                match s.state {
                    State::Expected => "expected".into(),
                    State::Asked => "asked".into(),
                    State::Fetched => "fetched".into(),
                },
                switch_now(s),
            ]);
        }
        lines.push(table.to_string());
    }
    for u in &report.unlisted {
        lines.push(format!("{} asked at {} and is not in [[switches]] ({})", u.what, clock(u.asked), u.mac));
    }
    lines.join("\n")
}

fn switch_now(s: &SwitchReport) -> String {
    match (&s.problem, s.fetched.last(), s.asked) {
        (Some(problem), ..) => problem.clone(),
        (None, Some(last), _) => format!("{} at {}", last.file, clock(last.at)),
        (None, None, Some(at)) => format!("asked at {}", clock(at)),
        (None, None, None) => "has not asked since the appliance started".into(),
    }
}

/// The time of day in UTC.
fn clock(millis: i64) -> String {
    jiff::Timestamp::from_millisecond(millis).map_or(String::new(), |t| t.strftime("%H:%M:%S").to_string())
}

pub fn images(catalogue: &Catalogue) -> String {
    if catalogue.images.is_empty() {
        return "no image yet: `rackline image build --all`".into();
    }
    let mut table = table(&["IMAGE", "ROLES", "DISK MiB", "DATA MiB", "MANIFEST"]);
    for image in &catalogue.images {
        let m = &image.manifest;
        let roles: Vec<String> = m.roles.iter().map(ToString::to_string).collect();
        let sizes = [m.disk_size >> 20, m.data_size >> 20].map(|mib| mib.to_string());
        let [disk, data] = sizes;
        table.add_row([image.name(), roles.join(", "), disk, data, image.digest.short()]);
    }
    table.to_string()
}

pub fn events(events: &[EventView]) -> String {
    let mut table = table(&["#", "WHEN", "WHAT"]);
    for e in events {
        let at = time(e.at);
        table.add_row([e.sequence.to_string(), at, e.text.clone()]);
    }
    table.to_string()
}

/// Day and time of day in UTC.
pub fn date(millis: i64) -> String {
    jiff::Timestamp::from_millisecond(millis).map_or(String::new(), |t| t.strftime("%Y-%m-%d %H:%M:%S").to_string())
}

/// UTC, of today as far as a reader cares.
fn time(millis: i64) -> String {
    jiff::Timestamp::from_millisecond(millis).map_or(String::new(), |t| t.strftime("%H:%M:%S%.3f").to_string())
}

/// Pools first, then what somebody has to act upon, then the counters that are not zero.
pub fn boot_status(status: &Status) -> String {
    let mut text = String::new();
    if let Some(why) = &status.refused {
        text += &format!("the configuration on disk is not in use: {why}\n\n");
    }
    let mut pools = table(&["SUBNET", "WIRE", "TAKEN", "OF", ""]);
    for s in &status.subnets {
        let bar = "#".repeat((s.percent / 5).min(20) as usize);
        let wire = s.shared.clone().unwrap_or_default();
        pools.add_row([
            s.network.clone(),
            wire,
            s.taken.to_string(),
            s.size.to_string(),
            format!("{:3} % {bar}", s.percent),
        ]);
    }
    text += &pools.to_string();
    for (table, command) in status.neighbours.tables.iter().filter_map(|t| Some((t, t.command.as_ref()?))) {
        let (family, limit, needed) = (&table.family, table.limit, status.neighbours.needed);
        text +=
            &format!("\n\nthe kernel keeps {limit} {family} neighbours, and {needed} may be on the wire: {command}");
    }
    if !status.other_servers.is_empty() {
        let mut others = table(&["OTHER DHCP SERVER", "MAC", "INTERFACE", "ANSWERS", "LAST"]);
        for o in &status.other_servers {
            others.add_row([
                o.address.to_string(),
                o.mac.to_string(),
                o.interface.clone(),
                o.answers.to_string(),
                time(o.last),
            ]);
        }
        text += &format!("\n\n{others}");
    }
    if !status.unanswered.is_empty() {
        let mut silent = table(&["NO ANSWER TO", "TIMES", "LAST", "WHY"]);
        for u in status.unanswered.iter().take(20) {
            silent.add_row([u.mac.to_string(), u.times.to_string(), time(u.last), u.why.clone()]);
        }
        text += &format!("\n\n{silent}");
    }
    let mut counters = table(&["COUNTER", "TIMES"]);
    for (name, n) in status.counters.iter().filter(|(_, n)| **n > 0) {
        counters.add_row([name.clone(), n.to_string()]);
    }
    text + &format!("\n\n{counters}")
}
