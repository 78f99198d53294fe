//! What BMCs of real servers tell: sensors, event log and inventory of `tests/fixtures/ipmi`, served by `ipmi_sim` and
//! compared with what `ipmitool` makes of them; and what is written to a BMC, as `ipmitool` sees it afterwards.

use std::fs;
use std::path::Path;

use rackline::bmc::{AddressFrom, Answer, Command, Fleet, Log, Network, Outcome, Part, Sensor, SetNetwork, User};
use rackline::ipmi::sensor::Level;
use rackline::machine::Secret;

use super::bmc::{IpmiSim, access, ipmitool, settings};

const SERVERS: [&str; 3] = ["dell_r630", "dell_r740xd", "quanta_d51"];

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ipmi").join(name);
    fs::read_to_string(path).unwrap()
}

pub async fn server(name: &str) -> IpmiSim {
    let commands = format!("{}\n{}", fixture(&format!("{name}.emu")), fixture(&format!("{name}.sel")));
    IpmiSim::start(Some(&commands)).await
}

async fn sensors(fleet: &Fleet, sim: &IpmiSim) -> Vec<Sensor> {
    match fleet.run(&access(sim.address), Command::Sensors).await.unwrap() {
        Answer::Sensors { sensors } => sensors,
        other => panic!("{other:?}"),
    }
}

async fn log(fleet: &Fleet, sim: &IpmiSim, after: Option<&str>) -> Log {
    match fleet.run(&access(sim.address), Command::Log { after: after.map(str::to_owned) }).await.unwrap() {
        Answer::Log(log) => log,
        other => panic!("{other:?}"),
    }
}

async fn done(fleet: &Fleet, sim: &IpmiSim, command: Command) -> Outcome {
    match fleet.run(&access(sim.address), command).await.unwrap() {
        Answer::Done { outcome, .. } => outcome,
        other => panic!("{other:?}"),
    }
}

/// Something that the BMC writes down (Add SEL Entry, 31.6).
async fn happens(sim: &IpmiSim) {
    let entry = "0x0a 0x44 0 0 2 0 0 0 0 0x20 0 4 0x09 0x01 0x6f 0x00 0xff 0xff";
    let words: Vec<&str> = std::iter::once("raw").chain(entry.split(' ')).collect();
    ipmitool(sim, &words).await;
}

#[tokio::test]
async fn sensors_of_real_servers_are_those_that_ipmitool_reads() {
    for name in SERVERS {
        let sim = server(name).await;
        let sensors = sensors(&Fleet::new(settings()), &sim).await;
        let expected = ipmitool(&sim, &["-c", "sdr", "list", "full"]).await;
        let mut compared = 0;
        for line in expected.lines() {
            // name,value,unit,state; a sensor without a value has an empty or textual second field.
            let fields: Vec<&str> = line.split(',').collect();
            let Some(value) = fields.get(1).and_then(|v| v.parse::<f64>().ok()) else { continue };
            let near = |v: f64| (v - value).abs() <= value.abs() * 0.005 + 0.005;
            let named = |s: &Sensor| s.name == fields[0] || s.name.starts_with(&format!("{} (", fields[0]));
            let found = sensors.iter().any(|s| named(s) && s.value.is_some_and(near));
            assert!(found, "{name}: {line}; ours: {:?}", sensors.iter().find(|s| named(s)));
            compared += 1;
        }
        assert!(compared >= 15, "{name}: only {compared} sensors have values:\n{expected}");
        // The limits of one sensor, as `ipmitool` has them.
        let (sensor, words) = match name {
            "quanta_d51" => ("Volt_P12V", "Volt_P12V"),
            _ => ("Inlet Temp", "Inlet Temp"),
        };
        let ours = sensors.iter().find(|s| s.name == sensor).unwrap();
        let theirs = ipmitool(&sim, &["sensor", "get", words]).await;
        for (label, value) in [
            ("Lower Non-Critical", ours.limits.lower_warning),
            ("Lower Critical", ours.limits.lower_critical),
            ("Upper Non-Critical", ours.limits.upper_warning),
            ("Upper Critical", ours.limits.upper_critical),
        ] {
            let line = theirs.lines().find(|l| l.trim_start().starts_with(label)).unwrap_or_default();
            let expected = line.split(':').nth(1).and_then(|v| v.trim().parse::<f64>().ok());
            assert_eq!(value, expected, "{name}: {label} of {sensor}\n{theirs}");
        }
        insta::assert_snapshot!(
            format!("sensors_{name}"),
            sensors.iter().map(sensor_line).collect::<Vec<_>>().join("\n")
        );
    }
}

fn sensor_line(s: &Sensor) -> String {
    let shown = match (s.value, s.states.is_empty()) {
        (Some(value), true) => format!("{value} {}", s.unit),
        (_, false) => s.states.join(", "),
        (None, true) => "-".to_owned(),
    };
    let level = s.level.map_or("none".to_owned(), |level| format!("{level:?}").to_lowercase());
    format!("{}: {} [{}, {level}]", s.name, shown.trim(), s.kind)
}

/// Every line of the snapshots should mean something to a technician.
#[tokio::test]
async fn the_event_log_is_told_in_sentences() {
    for name in SERVERS {
        let sim = server(name).await;
        let log = log(&Fleet::new(settings()), &sim, None).await;
        let theirs = ipmitool(&sim, &["sel", "elist"]).await;
        assert_eq!(log.entries.len(), theirs.lines().count(), "{theirs}");
        for (entry, line) in log.entries.iter().zip(theirs.lines()) {
            // `  1a |  Pre-Init  |0000037749| OS Critical Stop | Run-time critical stop () | Asserted`
            let fields: Vec<&str> = line.split('|').map(str::trim).collect();
            assert_eq!(u16::from_str_radix(fields[0], 16).unwrap().to_string(), entry.id);
            if let Some(direction) = fields.iter().find(|field| field.ends_with("sserted") && !field.contains(' ')) {
                assert_eq!(entry.asserted, *direction == "Asserted", "{line}\n{entry:?}");
            }
        }
        let ours = fixture(&format!("{name}.sel")).lines().filter(|l| l.starts_with("sel_add")).count();
        let text: Vec<String> = log
            .entries
            .iter()
            .skip(log.entries.len() - ours)
            .map(|e| format!("{:<8} {}", format!("{:?}", e.severity).to_lowercase(), e.text))
            .collect();
        insta::assert_snapshot!(format!("log_{name}"), text.join("\n"));
    }
}

#[tokio::test]
async fn inventories_agree_with_ipmitool_and_broken_ones_are_named() {
    for name in SERVERS {
        let sim = server(name).await;
        let parts = match Fleet::new(settings()).run(&access(sim.address), Command::Parts).await.unwrap() {
            Answer::Parts { parts } => parts,
            other => panic!("{other:?}"),
        };
        let theirs = ipmitool(&sim, &["fru", "print"]).await;
        let mut compared = 0;
        let mut device = "";
        for line in theirs.lines() {
            let Some((label, value)) = line.split_once(':') else { continue };
            let (label, value) = (label.trim(), value.trim());
            let field = match label {
                "FRU Device Description" => {
                    device = value.split(" (ID").next().unwrap_or_default();
                    continue;
                }
                "Board Mfg" => "board.manufacturer",
                "Board Product" => "board.product",
                "Board Serial" => "board.serial",
                "Board Part Number" => "board.part number",
                "Product Manufacturer" => "product.manufacturer",
                "Product Name" => "product.product",
                "Product Part Number" => "product.part number",
                "Product Version" => "product.version",
                "Product Serial" => "product.serial",
                "Product Asset Tag" => "product.asset tag",
                "Chassis Serial" => "chassis.serial",
                "Chassis Part Number" => "chassis.part number",
                _ => continue,
            };
            if value.is_empty() {
                continue;
            }
            // `ipmitool` has its own name for device 0.
            let part = match device {
                "Builtin FRU Device" => parts.first(),
                device => parts.iter().find(|p| p.name == device),
            };
            assert_eq!(
                part.and_then(|p| p.fields.get(field)).map(String::as_str),
                Some(value),
                "{name}: {device}: {line}"
            );
            compared += 1;
        }
        assert!(compared >= 5, "{name}:\n{theirs}");
        insta::assert_snapshot!(format!("parts_{name}"), parts.iter().map(part_lines).collect::<Vec<_>>().join("\n"));
    }
}

fn part_lines(part: &Part) -> String {
    let fields = part.fields.iter().map(|(name, value)| format!("  {name}: {value}"));
    let broken = part.broken.iter().map(|why| format!("  broken: {why}"));
    std::iter::once(part.name.clone()).chain(fields).chain(broken).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn a_log_is_read_on_from_where_it_was_and_cleared_only_when_all_of_it_was_read() {
    let sim = server("dell_r630").await;
    let fleet = Fleet::new(settings());
    let whole = log(&fleet, &sim, None).await;
    let last = whole.entries.last().unwrap().id.clone();
    let before = &whole.entries[whole.entries.len() - 4].id;
    assert_eq!(log(&fleet, &sim, Some(before)).await.entries, whole.entries[whole.entries.len() - 3..]);
    assert!(log(&fleet, &sim, Some(&last)).await.entries.is_empty());
    assert_eq!(log(&fleet, &sim, Some("60000")).await.entries, whole.entries, "not in the log: all");

    happens(&sim).await;
    let newer = fleet.run(&access(sim.address), Command::ClearLog { last: last.clone() }).await.unwrap_err();
    assert_eq!(newer.code(), "bmc.log-newer", "{newer:?}");
    let more = log(&fleet, &sim, Some(&last)).await;
    assert!(!more.entries.is_empty());
    assert!(ipmitool(&sim, &["sel", "elist"]).await.lines().count() > whole.entries.len());

    let last = more.entries.last().unwrap().id.clone();
    assert_eq!(done(&fleet, &sim, Command::ClearLog { last: last.clone() }).await, Outcome::Confirmed);
    assert!(ipmitool(&sim, &["sel", "elist"]).await.lines().count() <= 1);
    // Ids of before mean nothing in a log that was cleared.
    happens(&sim).await;
    let fresh = log(&fleet, &sim, Some(&last)).await;
    assert!(!fresh.entries.is_empty() && fresh.entries.len() < 4, "{fresh:?}");
}

#[tokio::test]
async fn the_clock_is_compared_and_set() {
    let sim = server("quanta_d51").await;
    let fleet = Fleet::new(settings());
    let wrong = log(&fleet, &sim, None).await;
    assert!(wrong.clock.unwrap().ahead_seconds < -1_000_000, "ipmi_sim counts from its start: {:?}", wrong.clock);
    assert!(wrong.entries.iter().all(|entry| entry.at.is_none()), "no time is better than a wrong one");
    assert_eq!(done(&fleet, &sim, Command::SetClock).await, Outcome::Confirmed);
    assert!(log(&fleet, &sim, None).await.clock.unwrap().ahead_seconds.abs() <= 2);
    happens(&sim).await;
    let entry = log(&fleet, &sim, None).await.entries.pop().unwrap();
    let age = jiff::Timestamp::now().as_second() - entry.at.unwrap().as_second();
    assert!((-2..60).contains(&age), "{entry:?}");
}

#[tokio::test]
async fn users_and_network() {
    let sim = server("quanta_d51").await;
    let fleet = Fleet::new(settings());
    let Answer::Users { users } = fleet.run(&access(sim.address), Command::Users).await.unwrap() else { panic!() };
    let user = |id: &str, name: &str| User {
        id: id.into(),
        name: name.into(),
        // ipmi_sim does not tell.
        enabled: None,
        role: "Administrator".into(),
    };
    assert_eq!(users, [user("2", "admin")]);

    let wanted = AddressFrom::Static { address: [10, 1, 2, 3].into(), prefix: 20, gateway: Some([10, 1, 0, 1].into()) };
    let set = SetNetwork { address: Some(wanted), ntp: None };
    assert_eq!(done(&fleet, &sim, Command::SetNetwork(set)).await, Outcome::Confirmed);
    let theirs = ipmitool(&sim, &["lan", "print", "1"]).await;
    for line in ["Static Address", ": 10.1.2.3", ": 255.255.240.0", ": 10.1.0.1", "Set Complete"] {
        assert!(theirs.contains(line), "{line}\n{theirs}");
    }
    let Answer::Network(network) = fleet.run(&access(sim.address), Command::Network).await.unwrap() else { panic!() };
    let Network { address, prefix, gateway, source, vlan, .. } = network;
    assert_eq!((address, prefix, gateway), (Some([10, 1, 2, 3].into()), Some(20), Some([10, 1, 0, 1].into())));
    assert_eq!((source.as_deref(), vlan), (Some("static"), None));
    let ntp = SetNetwork { address: None, ntp: Some(vec!["10.1.0.1".into()]) };
    let refused = fleet.run(&access(sim.address), Command::SetNetwork(ntp)).await.unwrap_err();
    assert_eq!(refused.code(), "bmc.unsupported");
    // ipmi_sim cannot restart itself, and says so.
    let refused = fleet.run(&access(sim.address), Command::ResetBmc { cold: true }).await.unwrap_err();
    assert_eq!(refused.code(), "bmc.refused", "{refused:?}");
}

#[tokio::test]
async fn a_new_password_is_the_one_that_opens() {
    let sim = server("quanta_d51").await;
    let fleet = Fleet::new(settings());
    let new = Secret::new("sixteen-letters!");
    let set = |user: &str| Command::SetPassword { user: user.into(), password: new.clone() };
    let unknown = fleet.run(&access(sim.address), set("nobody")).await.unwrap_err();
    assert_eq!(unknown.code(), "bmc.user");
    done(&fleet, &sim, set("admin")).await;
    fleet.close().await;
    let old = fleet.run(&access(sim.address), Command::PowerStatus).await.unwrap_err();
    assert_eq!(old.code(), "bmc.auth", "{old:?}");
    let with_new = rackline::bmc::Access { password: new.clone(), ..access(sim.address) };
    assert!(matches!(fleet.run(&with_new, Command::PowerStatus).await.unwrap(), Answer::PowerStatus(_)));
}

/// Levels of states are those of the tables, not of thresholds.
#[tokio::test]
async fn a_state_that_is_bad_is_shown_as_bad() {
    let sim = server("quanta_d51").await;
    let sensors = sensors(&Fleet::new(settings()), &sim).await;
    let supply = sensors.iter().find(|s| s.name == "PSU2 Status").unwrap();
    assert_eq!((supply.level, supply.states.join(", ")), (Some(Level::Critical), "present, power input lost".into()));
}
