//! The list of expected machines: CSV with a header. A row that is wrong is named by its line and column, and then nothing
//! of the file is taken.
//!
//! | column | |
//! |---|---|
//! | `name` | host name that the machine goes by |
//! | `serial` | as on the label and in SMBIOS |
//! | `mac` | of the NIC it boots from; may be empty |
//! | `rack`, `unit` | where it stands; both or none |
//! | `bmc_address` | IPMI: `10.0.0.7`, with `:port` where it is not 623; Redfish: `https://10.0.0.7`; both, with a space; empty |
//! | `bmc_user`, `bmc_password` | needed with `bmc_address` |

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::machine::{Hostname, MacAddr, Place, Secret, Serial};

/// Registered port of RMCP (IANA `asf-rmcp`).
const RMCP: u16 = 623;
const HTTPS: u16 = 443;
/// Rows taken from one file.
const MAX_ROWS: usize = 200_000;

#[derive(Debug, Clone)]
pub struct ExpectedMachine {
    pub name: Hostname,
    pub serial: Serial,
    pub mac: Option<MacAddr>,
    pub place: Option<Place>,
    pub bmc: Option<ExpectedBmc>,
}

#[derive(Debug, Clone)]
pub struct ExpectedBmc {
    /// Of IPMI; where there is none, the same as `redfish`.
    pub address: SocketAddr,
    pub redfish: Option<SocketAddr>,
    pub user: String,
    pub password: Secret,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    serial: String,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    rack: String,
    #[serde(default)]
    unit: String,
    #[serde(default)]
    bmc_address: String,
    #[serde(default)]
    bmc_user: String,
    #[serde(default)]
    bmc_password: String,
}

pub fn parse(csv: &str) -> Result<Vec<ExpectedMachine>> {
    let csv = csv.strip_prefix('\u{feff}').unwrap_or(csv);
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(csv.as_bytes());
    let mut machines = Vec::new();
    let mut seen: HashMap<String, u64> = HashMap::new();
    for row in reader.deserialize::<Row>() {
        let row = row.map_err(|e| {
            let line = e.position().map_or(String::new(), |p| format!("line {}: ", p.line()));
            Error::input("expected.csv", format!("{line}{e}"))
                .hint("the columns are name,serial,mac,rack,unit,bmc_address,bmc_user,bmc_password")
        })?;
        let line = machines.len() as u64 + 2;
        if machines.len() == MAX_ROWS {
            return Err(Error::input("expected.csv", format!("more than {MAX_ROWS} rows")).hint("split the file"));
        }
        let machine = check(row, line)?;
        let keys = [
            Some(format!("serial {}", machine.serial)),
            Some(format!("name {}", machine.name)),
            machine.mac.map(|mac| format!("MAC address {mac}")),
            machine.place.as_ref().map(|place| format!("place {place}")),
            // The Redfish service of a chassis answers for each of its machines, which are told apart by serial number.
            machine
                .bmc
                .as_ref()
                .filter(|bmc| bmc.redfish != Some(bmc.address))
                .map(|bmc| format!("BMC address {}", bmc.address)),
        ];
        for key in keys.into_iter().flatten() {
            if let Some(first) = seen.insert(key.clone(), line) {
                return Err(Error::input(
                    "expected.duplicate",
                    format!("line {line}: {key} stands in line {first} already"),
                )
                .hint("each machine has its own; correct one of the two lines"));
            }
        }
        machines.push(machine);
    }
    Ok(machines)
}

fn check(row: Row, line: u64) -> Result<ExpectedMachine> {
    let wrong = |column: &str, what: String| {
        Error::input("expected.csv", format!("line {line}, column {column}: {what}"))
            .hint("correct the line; nothing of the file was taken")
    };
    let optional = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let place = match (optional(&row.rack), optional(&row.unit)) {
        (None, None) => None,
        (Some(rack), Some(unit)) => {
            let unit = unit.parse().map_err(|_| wrong("unit", format!("{unit:?} is not a height unit")))?;
            Some(Place { rack, unit })
        }
        _ => return Err(wrong("rack", "rack and unit go together".into())),
    };
    let bmc = match optional(&row.bmc_address) {
        None if !row.bmc_user.is_empty() || !row.bmc_password.is_empty() => {
            return Err(wrong("bmc_address", "is empty, but there is a BMC user or password".into()));
        }
        None => None,
        Some(_) if row.bmc_user.is_empty() || row.bmc_password.is_empty() => {
            return Err(wrong("bmc_user", "a BMC address needs bmc_user and bmc_password".into()));
        }
        Some(addresses) => {
            let (address, redfish) = bmc_addresses(&addresses).map_err(|what| wrong("bmc_address", what))?;
            Some(ExpectedBmc { address, redfish, user: row.bmc_user, password: Secret::new(row.bmc_password) })
        }
    };
    Ok(ExpectedMachine {
        name: row.name.parse().map_err(|e: Error| wrong("name", e.to_string()))?,
        serial: row.serial.parse().map_err(|e: Error| wrong("serial", e.to_string()))?,
        mac: optional(&row.mac).map(|mac| mac.parse()).transpose().map_err(|e: Error| wrong("mac", e.to_string()))?,
        place,
        bmc,
    })
}

/// Of IPMI and of Redfish, at most one each.
fn bmc_addresses(words: &str) -> std::result::Result<(SocketAddr, Option<SocketAddr>), String> {
    let (mut ipmi, mut redfish) = (None, None);
    for word in words.split_whitespace() {
        let (place, bare, port) = match word.strip_prefix("https://") {
            Some(bare) => (&mut redfish, bare.trim_end_matches('/'), HTTPS),
            None => (&mut ipmi, word, RMCP),
        };
        let address = bare.parse().or_else(|_| bare.parse::<IpAddr>().map(|ip| SocketAddr::from((ip, port))));
        let address = address.map_err(|_| format!("{word:?} is not an IP address"))?;
        if place.replace(address).is_some() {
            return Err(format!("{words:?} has two addresses of one kind"));
        }
    }
    match (ipmi, redfish) {
        (Some(ipmi), redfish) => Ok((ipmi, redfish)),
        (None, Some(redfish)) => Ok((redfish, Some(redfish))),
        (None, None) => Err("there is no address in it".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "name,serial,mac,rack,unit,bmc_address,bmc_user,bmc_password\n";

    #[test]
    fn a_good_list_with_byte_order_mark() {
        let text = format!(
            "\u{feff}{HEAD}kvm-1,7XK2M13,52:54:00:00:00:01,R1,12,10.77.1.1,admin,secret\nkvm-2,7XK2M14,,,,,,\n"
        );
        let machines = parse(&text).unwrap();
        assert_eq!(machines[0].bmc.as_ref().unwrap().address, "10.77.1.1:623".parse().unwrap());
        assert_eq!(machines[0].place.as_ref().unwrap().to_string(), "R1-U12");
        assert!(machines[1].bmc.is_none() && machines[1].mac.is_none());
        assert!(!format!("{machines:?}").contains("secret"));
    }

    #[test]
    fn a_broken_row_is_named_by_line_and_column() {
        for (row, line, column) in [
            ("kvm 1,7XK2M13,,,,,,", "line 2", "column name"),
            ("kvm-1,0123456789,,,,,,", "line 2", "column serial"),
            ("kvm-1,7XK2M13,52:54,,,,,", "line 2", "column mac"),
            ("kvm-1,7XK2M13,,R1,,,,", "line 2", "column rack"),
            ("kvm-1,7XK2M13,,R1,x,,,", "line 2", "column unit"),
            ("kvm-1,7XK2M13,,,,10.77.1,a,b", "line 2", "column bmc_address"),
            ("kvm-1,7XK2M13,,,,10.77.1.1,,", "line 2", "column bmc_user"),
            ("kvm-1,7XK2M13,,,,https://bmc1,a,b", "line 2", "column bmc_address"),
            ("kvm-1,7XK2M13,,,,10.77.1.1 10.77.1.2,a,b", "line 2", "column bmc_address"),
        ] {
            let error = parse(&format!("{HEAD}{row}\n")).unwrap_err();
            assert!(error.message().contains(line) && error.message().contains(column), "{row}: {error}");
        }
        assert!(parse(&format!("{HEAD}kvm-1,7XK2M13\n")).unwrap_err().message().contains("line"));
        assert!(parse("name,serial,colour\na,b,red\n").is_err());
    }

    #[test]
    fn a_bmc_is_reached_by_ipmi_by_redfish_or_by_both() {
        let doors = |words: &str| {
            let machines = parse(&format!("{HEAD}kvm-1,7XK2M13,,,,{words},admin,secret\n")).unwrap();
            let bmc = machines[0].bmc.clone().unwrap();
            (bmc.address.to_string(), bmc.redfish.map(|address| address.to_string()))
        };
        assert_eq!(doors("10.77.1.1"), ("10.77.1.1:623".into(), None));
        assert_eq!(doors("https://10.77.1.1/"), ("10.77.1.1:443".into(), Some("10.77.1.1:443".into())));
        assert_eq!(
            doors("10.77.1.1:6230 https://[fd77::1]:8443"),
            ("10.77.1.1:6230".into(), Some("[fd77::1]:8443".into()))
        );
    }

    #[test]
    fn duplicates_name_both_lines() {
        let shared = |bmc: &str| parse(&format!("{HEAD}a,7XK2M13,,,,{bmc},u,p\nb,7XK2M14,,,,{bmc},u,p\n"));
        assert_eq!(shared("10.77.1.1 https://10.77.1.1").unwrap_err().code(), "expected.duplicate");
        assert_eq!(shared("https://10.77.1.1").unwrap().len(), 2, "a chassis of blades");
        let error = parse(&format!("{HEAD}a,7XK2M13,,,,,,\nb,7XK2M14,,,,,,\nc,7XK2M13,,,,,,\n")).unwrap_err();
        assert!(error.message().contains("line 4") && error.message().contains("line 2"), "{error}");
    }
}
