//! What BMCs say, for people.

use comfy_table::{Cell, Color};

use super::show::table;
use crate::bmc::{Answer, Clock, Info, LogEntry, Network, Outcome, Part, Power, Sensor, SensorLimits, Severity, User};
use crate::ipmi::sensor::Level;

/// `all`: also sensors that have nothing to show.
pub fn answer(answer: &Answer, all: bool) -> String {
    match answer {
        Answer::PowerStatus(chassis) => {
            let power = if chassis.power == Power::On { "on" } else { "off" };
            let fault = chassis.fault.map_or(String::new(), |fault| format!("; the BMC reports a fault: {fault:?}"));
            let light = if chassis.identify == Some(true) { "; the identify light is on" } else { "" };
            format!("power: {power}{fault}{light}")
        }
        Answer::Info(info) => lines(&facts(info)),
        Answer::Sensors { sensors } => self::sensors(sensors, all),
        Answer::Log(log) => {
            let full = if log.overflow { "\nthe log is full: newer events may be missing" } else { "" };
            self::log(&log.entries) + full + &log.clock.map_or(String::new(), wrong_clock)
        }
        Answer::Clock { clock } => clock.map_or("the BMC does not show a clock".to_owned(), |clock| {
            format!("{}, {}", minute(Some(clock.shows)), off(clock))
        }),
        Answer::Parts { parts } => parts.iter().map(part).collect::<Vec<_>>().join("\n\n"),
        Answer::Users { users } => self::users(users),
        Answer::Network(network) => lines(&on_the_network(network)),
        Answer::Identify { seconds: 0, outcome } => format!("the light goes off{}", doubt(outcome)),
        Answer::Identify { seconds, outcome } => format!("the light is on for {seconds} s{}", doubt(outcome)),
        Answer::Done { what, outcome } => format!("{what}{}", doubt(outcome)),
        other => serde_json::to_string_pretty(other).unwrap_or_default(),
    }
}

fn doubt(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Confirmed => String::new(),
        Outcome::Unconfirmed { why } => format!(", which is not confirmed: {why}"),
    }
}

fn lines(facts: &[(&str, Option<String>)]) -> String {
    let known = facts.iter().filter_map(|(name, value)| Some(format!("{name}: {}", value.as_deref()?)));
    known.collect::<Vec<_>>().join("\n")
}

fn facts(info: &Info) -> Vec<(&'static str, Option<String>)> {
    vec![
        ("maker", Some(info.manufacturer.clone())),
        ("product", Some(info.product.to_string())),
        ("firmware", Some(info.firmware.clone())),
        ("spoken to by", Some(info.protocol.clone())),
        ("address", info.address.map(|a| a.to_string())),
        ("address by", info.address_source.clone()),
        ("MAC", info.mac.map(|mac| mac.to_string())),
        ("GUID", info.guid.map(|guid| guid.to_string())),
    ]
}

fn on_the_network(network: &Network) -> Vec<(&'static str, Option<String>)> {
    let prefix = network.prefix.map_or(String::new(), |bits| format!("/{bits}"));
    vec![
        ("address", Some(network.address.map_or("none".to_owned(), |address| format!("{address}{prefix}")))),
        ("by", network.source.clone()),
        ("gateway", network.gateway.map(|gateway| gateway.to_string())),
        ("VLAN", network.vlan.map(|vlan| vlan.to_string())),
        ("MAC", network.mac.map(|mac| mac.to_string())),
        ("time servers", network.ntp.as_ref().map(|servers| servers.join(", "))),
    ]
}

/// Colours only reach terminals; `comfy_table` looks.
fn coloured(text: &str, level: Option<Level>) -> Cell {
    match level {
        Some(Level::Warning) => Cell::new(text).fg(Color::Yellow),
        Some(Level::Critical | Level::Fatal) => Cell::new(text).fg(Color::Red),
        Some(Level::Ok) | None => Cell::new(text),
    }
}

/// The worst first, otherwise in the order of the BMC.
fn sensors(sensors: &[Sensor], all: bool) -> String {
    let says_something = |s: &Sensor| s.value.is_some() || !s.states.is_empty() || s.level > Some(Level::Ok);
    let mut shown: Vec<&Sensor> = sensors.iter().filter(|s| all || says_something(s)).collect();
    shown.sort_by_key(|s| std::cmp::Reverse(s.level.unwrap_or(Level::Ok)));
    let mut table = table(&["SENSOR", "SHOWS", "STATE", "WARNING", "CRITICAL"]);
    for s in &shown {
        let value = s.value.map(|value| format!("{value} {}", s.unit).trim_end().to_owned());
        let reading = value.into_iter().chain(s.states.iter().cloned()).collect::<Vec<_>>().join(", ");
        let state = match s.level {
            None => "no reading",
            Some(Level::Ok) => "ok",
            Some(Level::Warning) => "warning",
            Some(Level::Critical) => "critical",
            Some(Level::Fatal) => "fatal",
        };
        let SensorLimits { lower_warning, lower_critical, upper_warning, upper_critical, .. } = s.limits;
        table.add_row([
            Cell::new(&s.name),
            coloured(&reading, s.level),
            coloured(state, s.level),
            Cell::new(beyond(lower_warning, upper_warning)),
            Cell::new(beyond(lower_critical, upper_critical)),
        ]);
    }
    let silent = sensors.len() - shown.len();
    let more = if silent == 0 { String::new() } else { format!("\n{silent} more have nothing to show; see --all") };
    table.to_string() + &more
}

/// `below 3, above 42`.
fn beyond(lower: Option<f64>, upper: Option<f64>) -> String {
    let parts = [lower.map(|v| format!("below {v}")), upper.map(|v| format!("above {v}"))];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn log(entries: &[LogEntry]) -> String {
    if entries.is_empty() {
        return "the log is empty".to_owned();
    }
    let mut table = table(&["#", "WHEN", "", "WHAT"]);
    for entry in entries {
        let (severity, level) = match entry.severity {
            Severity::Ok => ("", Level::Ok),
            Severity::Warning => ("warning", Level::Warning),
            Severity::Critical => ("critical", Level::Critical),
        };
        table.add_row([
            Cell::new(&entry.id),
            Cell::new(minute(entry.at)),
            coloured(severity, Some(level)),
            Cell::new(&entry.text),
        ]);
    }
    table.to_string()
}

/// UTC, with the day: logs go back for years.
fn minute(at: Option<jiff::Timestamp>) -> String {
    at.map_or("no time".to_owned(), |at| at.strftime("%Y-%m-%d %H:%M:%S").to_string())
}

/// Off by more than this, seconds, times in the log mislead.
const RIGHT: i64 = 60;

fn wrong_clock(clock: Clock) -> String {
    match clock.ahead_seconds.abs() > RIGHT {
        true => format!("\nthe BMC's clock is {}, and so are these times: `rackline bmc clock NAME --set`", off(clock)),
        false => String::new(),
    }
}

fn off(clock: Clock) -> String {
    match clock.ahead_seconds {
        0 => "as the appliance's".to_owned(),
        ahead @ 1.. => format!("{ahead} s ahead"),
        behind => format!("{} s behind", behind.unsigned_abs()),
    }
}

fn part(part: &Part) -> String {
    let fields = part.fields.iter().map(|(name, value)| format!("  {name}: {value}"));
    let broken = part.broken.iter().map(|why| format!("  not read: {why}"));
    std::iter::once(part.name.clone()).chain(fields).chain(broken).collect::<Vec<_>>().join("\n")
}

fn users(users: &[User]) -> String {
    let mut table = table(&["#", "NAME", "ROLE", "ENABLED"]);
    for user in users {
        let enabled = match user.enabled {
            Some(true) => "yes",
            Some(false) => "no",
            None => "",
        };
        let name = if user.name.is_empty() { "(no name)" } else { user.name.as_str() };
        table.add_row([user.id.as_str(), name, user.role.as_str(), enabled]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sensor(name: &str, value: Option<f64>, level: Option<Level>) -> Sensor {
        let limits = SensorLimits { lower_critical: Some(-7.0), upper_critical: Some(47.0), ..SensorLimits::default() };
        let (kind, unit) = ("temperature".to_owned(), "°C".to_owned());
        Sensor { name: name.to_owned(), kind, value, unit, level, states: Vec::new(), limits }
    }

    #[test]
    fn what_is_out_of_bounds_stands_first_and_what_is_silent_is_counted() {
        let sensors = [
            sensor("Exhaust", Some(33.0), Some(Level::Ok)),
            sensor("GPU", None, None),
            sensor("Inlet", Some(48.5), Some(Level::Critical)),
            sensor("CPU", Some(70.0), Some(Level::Warning)),
        ];
        let text = self::sensors(&sensors, false);
        let names: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(names, ["Inlet", "CPU", "Exhaust", "1"]);
        assert!(text.contains("48.5 °C") && text.contains("below -7, above 47"), "{text}");
        assert!(!text.contains('\u{1b}'), "no colours but on a terminal");
        assert!(self::sensors(&sensors, true).contains("no reading"));
    }

    #[test]
    fn a_wrong_clock_is_told_with_the_log() {
        let shows = jiff::Timestamp::from_second(1_700_000_000).unwrap();
        let told = |ahead_seconds| wrong_clock(Clock { shows, ahead_seconds });
        assert!(told(-3600).contains("3600 s behind") && told(61).contains("61 s ahead"));
        assert_eq!(told(59), "");
    }
}
