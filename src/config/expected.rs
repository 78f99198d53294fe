//! The list of expected machines, as a file of the site or imported: CSV with a header, separated by commas, semicolons or tabs. A
//! row that is wrong is named by its line and column, and then nothing of the file is taken.
//!
//! | column | |
//! |---|---|
//! | `serial` | as on the label and in SMBIOS |
//! | `name` | host name that the machine goes by; empty: as it was, or its serial number |
//! | `mac` | of the NIC it boots from; may be empty |
//! | `rack`, `unit` | where it stands; both or none |
//! | `bmc_address` | IPMI: `10.0.0.7`, with `:port` where it is not 623; Redfish: `https://10.0.0.7`; both, with a space; empty |
//! | `bmc_user`, `bmc_password` | needed with `bmc_address`; the password may be empty where it was given before |
//! | `bmc_mac` | of the BMC, as on the label of the board |
//! | `order`, `vendor`, `customer` | purchase order, who delivers, for whom |
//! | `model` | the bill of materials that it is held against: `rackline model list` |
//! | `switch`, `port` | where it is plugged in; several, with spaces: `leaf-1a leaf-1b`, `18 18` |
//!
//! A column that the file does not have says nothing: what is known already stays.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::machine::{Hostname, MacAddr, Place, Purchase, Secret, Serial, SwitchPort};

/// Registered port of RMCP (IANA `asf-rmcp`).
const RMCP: u16 = 623;
const HTTPS: u16 = 443;
/// Rows taken from one file.
pub const MAX_ROWS: usize = 200_000;
/// Bytes of one field that is taken as it is.
const MAX_TEXT: usize = 128;
/// Switch ports of one machine.
const MAX_PORTS: usize = 16;

/// In the order in which they are written.
pub const COLUMNS: [&str; 15] = [
    "name",
    "serial",
    "mac",
    "rack",
    "unit",
    "bmc_address",
    "bmc_user",
    "bmc_password",
    "bmc_mac",
    "order",
    "vendor",
    "model",
    "customer",
    "switch",
    "port",
];

#[derive(Debug, Default)]
pub struct List {
    /// Those that the file has.
    pub columns: HashSet<&'static str>,
    pub machines: Vec<ExpectedMachine>,
}

#[derive(Debug, Clone)]
pub struct ExpectedMachine {
    /// Where it stands in the file.
    pub line: u64,
    pub name: Option<Hostname>,
    pub serial: Serial,
    pub mac: Option<MacAddr>,
    pub place: Option<Place>,
    pub bmc: Option<ExpectedBmc>,
    pub bmc_mac: Option<MacAddr>,
    /// One for all rows that say the same.
    pub purchase: Option<Arc<Purchase>>,
    pub ports: Vec<SwitchPort>,
}

#[derive(Debug, Clone)]
pub struct ExpectedBmc {
    /// Of IPMI; where there is none, the same as `redfish`.
    pub address: SocketAddr,
    pub redfish: Option<SocketAddr>,
    pub user: String,
    /// `None`: as it was given before.
    pub password: Option<Secret>,
}

/// A fault of a row; the same sentence from wherever it is found.
pub fn wrong(line: u64, column: &str, what: impl std::fmt::Display) -> Error {
    Error::input("expected.csv", format!("line {line}, column {column}: {what}"))
        .hint("correct the line; nothing of the file was taken")
}

/// As a file or a request has it.
pub fn text(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let good = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes().iter().take(good).filter(|byte| **byte == b'\n').count();
        Error::input("expected.csv", format!("line {line} is not UTF-8")).hint("save it as \"CSV UTF-8\"")
    })
}

pub fn parse(csv: &str) -> Result<List> {
    // The reader takes the second half of a line's end for the start of the next record, and would name the line before.
    let csv = csv.strip_prefix('\u{feff}').unwrap_or(csv).replace("\r\n", "\n");
    // Nobody is expected yet.
    if csv.trim().is_empty() {
        return Ok(List::default());
    }
    let first = csv.lines().next().unwrap_or_default();
    let count = |separator: u8| first.bytes().filter(|byte| *byte == separator).count();
    let separator = [b',', b';', b'\t'].into_iter().rev().max_by_key(|separator| count(*separator)).unwrap_or(b',');
    let mut reader = csv::ReaderBuilder::new();
    let reader = reader.trim(csv::Trim::All).flexible(true).delimiter(separator);
    let mut reader = reader.from_reader(csv.as_bytes());
    let broken = |e: csv::Error| Error::input("expected.csv", format!("the list is no CSV: {e}"));
    let head = Head::of(reader.headers().map_err(broken)?)?;
    let mut machines = Vec::new();
    let mut seen: HashMap<String, u64> = HashMap::new();
    let mut purchases: HashSet<Arc<Purchase>> = HashSet::new();
    for record in reader.records() {
        let record = record.map_err(broken)?;
        let line = record.position().map_or(0, csv::Position::line);
        if record.iter().all(str::is_empty) {
            continue;
        }
        if record.len() != head.width {
            let what = format!("line {line} has {} fields, and the header {}", record.len(), head.width);
            return Err(Error::input("expected.csv", what)
                .hint("a field with a separator or a line break in it stands in double quotes; the same goes for one quote too many"));
        }
        if machines.len() == MAX_ROWS {
            return Err(Error::input("expected.csv", format!("more than {MAX_ROWS} rows")).hint("split the file"));
        }
        let machine = Row { head: &head, record: &record, line }.machine(&mut purchases)?;
        for key in keys(&machine) {
            if let Some(first) = seen.get(&key) {
                return Err(Error::input(
                    "expected.duplicate",
                    format!("line {line}: {key} stands in line {first} already"),
                )
                .hint("each machine has its own; correct one of the two lines"));
            }
            seen.insert(key, line);
        }
        machines.push(machine);
    }
    Ok(List { columns: head.at.into_keys().collect(), machines })
}

/// What no two machines share.
fn keys(machine: &ExpectedMachine) -> impl Iterator<Item = String> {
    let ports = machine.ports.iter().map(|port| format!("switch port {port}")).collect::<Vec<_>>();
    let keys = [
        Some(format!("serial {}", machine.serial)),
        machine.name.as_ref().map(|name| format!("name {name}")),
        machine.mac.map(|mac| format!("MAC address {mac}")),
        machine.place.as_ref().map(|place| format!("place {place}")),
        // The Redfish service of a chassis answers for each of its machines, which are told apart by serial number.
        machine
            .bmc
            .as_ref()
            .filter(|bmc| bmc.redfish != Some(bmc.address))
            .map(|bmc| format!("BMC address {}", bmc.address)),
        machine.bmc_mac.map(|mac| format!("MAC address {mac}")),
    ];
    keys.into_iter().flatten().chain(ports)
}

/// Which column stands where.
struct Head {
    at: HashMap<&'static str, usize>,
    width: usize,
}

impl Head {
    fn of(record: &csv::StringRecord) -> Result<Self> {
        let mut at = HashMap::new();
        for (position, said) in record.iter().enumerate() {
            let plain = said.trim().to_lowercase().replace([' ', '-'], "_");
            let Some(name) = COLUMNS.into_iter().find(|name| *name == plain) else {
                let error = Error::input("expected.csv", format!("line 1: there is no column {said:?}"));
                return Err(error.hint(format!("the columns are {}", COLUMNS.join(","))));
            };
            if at.insert(name, position).is_some() {
                return Err(Error::input("expected.csv", format!("line 1: the column {name} stands there twice")));
            }
        }
        if !at.contains_key("serial") {
            return Err(Error::input("expected.csv", "line 1: there is no column serial")
                .hint("the first line names the columns; a machine is known by its serial number"));
        }
        Ok(Self { at, width: record.len() })
    }
}

struct Row<'a> {
    head: &'a Head,
    record: &'a csv::StringRecord,
    line: u64,
}

impl Row<'_> {
    /// Empty where the file has no such column.
    fn get(&self, column: &str) -> &str {
        self.head.at.get(column).and_then(|at| self.record.get(*at)).unwrap_or_default()
    }

    fn wrong(&self, column: &str, what: impl std::fmt::Display) -> Error {
        wrong(self.line, column, what)
    }

    /// Words that are kept as they are.
    fn text(&self, column: &str) -> Result<Option<String>> {
        let text = self.get(column);
        if text.len() > MAX_TEXT || text.chars().any(char::is_control) {
            return Err(self.wrong(column, format!("more than {MAX_TEXT} bytes, or something that cannot be printed")));
        }
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }

    fn parsed<T: std::str::FromStr<Err = Error>>(&self, column: &str) -> Result<Option<T>> {
        let text = self.get(column);
        (!text.is_empty()).then(|| text.parse()).transpose().map_err(|e: Error| self.wrong(column, e))
    }

    fn machine(&self, purchases: &mut HashSet<Arc<Purchase>>) -> Result<ExpectedMachine> {
        let serial = self.get("serial").parse().map_err(|e: Error| self.wrong("serial", e))?;
        let place = match (self.text("rack")?, self.get("unit")) {
            (None, "") => None,
            (Some(_), "") | (None, _) => return Err(self.wrong("rack", "rack and unit go together")),
            (Some(rack), unit) => {
                let unit = unit.parse().map_err(|_| self.wrong("unit", format!("{unit:?} is not a height unit")))?;
                Some(Place { rack, unit })
            }
        };
        Ok(ExpectedMachine {
            line: self.line,
            name: self.parsed("name")?,
            serial,
            mac: self.parsed("mac")?,
            place,
            bmc: self.bmc()?,
            bmc_mac: self.parsed("bmc_mac")?,
            purchase: self.purchase(purchases)?,
            ports: self.ports()?,
        })
    }

    fn bmc(&self) -> Result<Option<ExpectedBmc>> {
        let (addresses, user, password) = (self.get("bmc_address"), self.text("bmc_user")?, self.get("bmc_password"));
        match (addresses, user) {
            ("", None) if password.is_empty() => Ok(None),
            ("", _) => Err(self.wrong("bmc_address", "is empty, but there is a BMC user or password")),
            (_, None) => Err(self.wrong("bmc_user", "a BMC address needs bmc_user and bmc_password")),
            (addresses, Some(user)) => {
                let (address, redfish) = bmc_addresses(addresses).map_err(|what| self.wrong("bmc_address", what))?;
                let password = (!password.is_empty()).then(|| Secret::new(password));
                Ok(Some(ExpectedBmc { address, redfish, user, password }))
            }
        }
    }

    fn purchase(&self, purchases: &mut HashSet<Arc<Purchase>>) -> Result<Option<Arc<Purchase>>> {
        let purchase = Purchase {
            order: self.text("order")?,
            vendor: self.text("vendor")?,
            model: self.text("model")?,
            customer: self.text("customer")?,
        };
        if purchase == Purchase::default() {
            return Ok(None);
        }
        Ok(Some(Purchase::shared(purchase.into(), purchases)))
    }

    fn ports(&self) -> Result<Vec<SwitchPort>> {
        self.text("switch")?;
        self.text("port")?;
        let switches: Vec<&str> = self.get("switch").split_whitespace().collect();
        let ports: Vec<&str> = self.get("port").split_whitespace().collect();
        let at = |switch: &str, port: &str| SwitchPort { switch: switch.to_owned(), port: port.to_owned() };
        if ports.len() > MAX_PORTS {
            return Err(self.wrong("port", format!("more than {MAX_PORTS} ports")));
        }
        match switches.as_slice() {
            [] if ports.is_empty() => Ok(Vec::new()),
            [switch] if !ports.is_empty() => Ok(ports.iter().map(|port| at(switch, port)).collect()),
            several if several.len() == ports.len() => {
                Ok(several.iter().zip(ports).map(|(switch, port)| at(switch, port)).collect())
            }
            several => {
                let what = format!("{} switches and {} ports: each port has its switch", several.len(), ports.len());
                Err(self.wrong("port", what))
            }
        }
    }
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

    fn parse(text: &str) -> Result<Vec<ExpectedMachine>> {
        super::parse(text).map(|list| list.machines)
    }

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
            ("kvm-1,7XK2M13,,,,10.77.1.1,,secret", "line 2", "column bmc_user"),
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
    fn a_purchase_list_as_a_spreadsheet_saves_it() {
        let text = "\u{feff}Serial;Name;Order;Vendor;Model;Rack;Unit;Switch;Port;BMC MAC;Customer\r\n\
                    7XK2M13;kvm-1;PO-4711;Dell;compute;R1;12;leaf-1a leaf-1b;18 18;d0-94-66-00-00-01;\"Big, and Sons\"\r\n\
                    7XK2M14;;PO-4711;Dell;compute;R1;13;leaf-1a;19 20;;\"Big, and Sons\"\r\n;;;;;;;;;;\r\n";
        let machines = parse(text).unwrap();
        assert_eq!((machines.len(), machines[0].name.as_ref().unwrap().as_str(), machines[1].line), (2, "kvm-1", 3));
        let ports = |n: usize| machines[n].ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        assert_eq!((ports(0).as_str(), ports(1).as_str()), ("leaf-1a 18, leaf-1b 18", "leaf-1a 19, leaf-1a 20"));
        assert_eq!(machines[0].bmc_mac.unwrap().to_string(), "d0:94:66:00:00:01");
        let purchase = machines[0].purchase.as_ref().unwrap();
        assert_eq!((purchase.model.as_deref(), purchase.customer.as_deref()), (Some("compute"), Some("Big, and Sons")));
        assert!(Arc::ptr_eq(purchase, machines[1].purchase.as_ref().unwrap()), "one for the whole order");
        assert_eq!(parse("serial\tname\n7XK2M13\ta\n").unwrap()[0].name.as_ref().unwrap().as_str(), "a");
    }

    #[test]
    fn what_is_no_list_is_said_where_it_is_wrong() {
        for (text, wanted) in [
            ("name,serial,colour\na,7XK2M13,red\n", "line 1: there is no column \"colour\""),
            ("serial,Serial\n", "line 1: the column serial stands there twice"),
            ("name\na\n", "line 1: there is no column serial"),
            ("serial,name\n7XK2M13\n", "line 2 has 1 fields, and the header 2"),
            ("serial,name\n\"7XK\n2M13,a\n", "line 2 has 1 fields, and the header 2"),
            ("serial,switch,port\nX7,a b,1\n", "line 2, column port: 2 switches and 1 ports"),
            ("serial,switch,port\nX7,,1\n", "line 2, column port: 0 switches and 1 ports"),
            ("serial,order\nX7,\u{7}\n", "line 2, column order: "),
            ("serial,switch,port\nX7,a,1\nX8,a,1\n", "line 3: switch port a 1 stands in line 2 already"),
            (
                "serial,mac,bmc_mac\nX7,525400000001,\nX8,,525400000001\n",
                "line 3: MAC address 52:54:00:00:00:01 stands",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.message().starts_with(wanted), "{error}\n{wanted}");
        }
        assert!(parse("\n").unwrap().is_empty());
        assert_eq!(super::text(b"a\nb\n\xfc\n".to_vec()).unwrap_err().message(), "line 3 is not UTF-8");
    }

    proptest::proptest! {
        #[test]
        fn no_list_is_too_strange(text in "(serial|name|;|,|\\n|\"|[a-z0-9 ]){0,40}") {
            let _ = parse(&text);
        }
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
