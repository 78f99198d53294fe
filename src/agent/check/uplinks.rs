//! The bridges of Open vSwitch as its database has them: what leads out of each, and what the kernel refused.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Found;

/// Kinds of interfaces that lead to other hosts, or on to a bridge that does.
const TUNNELS: &[&str] =
    &["vxlan", "geneve", "gre", "erspan", "ip6gre", "stt", "lisp", "gtpu", "bareudp", "srv6", "patch", "dpdk"];

#[derive(Debug, Clone, PartialEq)]
pub struct Bridge {
    pub name: String,
    pub interfaces: Vec<Interface>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Interface {
    pub name: String,
    /// Empty or `system`: one of the kernel's.
    pub kind: String,
    /// As the database says it; `None` where it does not know.
    pub link: Option<bool>,
    pub error: Option<String>,
}

/// From the three tables as `ovs-vsctl --format=json` writes them (RFC 7047 section 5.1); the error names the table.
pub fn read(bridges: &str, ports: &str, interfaces: &str) -> Result<Vec<Bridge>, String> {
    let interfaces: BTreeMap<String, Interface> = rows("Interface", interfaces)?
        .into_iter()
        .filter_map(|row| {
            let interface = Interface {
                name: word(&row, "name")?,
                kind: word(&row, "type").unwrap_or_default(),
                link: word(&row, "link_state").map(|state| state == "up"),
                error: word(&row, "error").filter(|e| !e.is_empty()),
            };
            Some((uuids(&row, "_uuid").pop()?, interface))
        })
        .collect();
    let ports: BTreeMap<String, Vec<String>> = rows("Port", ports)?
        .into_iter()
        .filter_map(|row| Some((uuids(&row, "_uuid").pop()?, uuids(&row, "interfaces"))))
        .collect();
    let bridges = rows("Bridge", bridges)?.into_iter().filter_map(|row| {
        let of_port = |port: String| ports.get(&port).into_iter().flatten();
        let own = uuids(&row, "ports").into_iter().flat_map(of_port);
        Some(Bridge {
            name: word(&row, "name")?,
            interfaces: own.filter_map(|id| interfaces.get(id).cloned()).collect(),
        })
    });
    Ok(bridges.collect())
}

type Row = BTreeMap<String, Value>;

fn rows(table: &str, text: &str) -> Result<Vec<Row>, String> {
    let wrong = || format!("ovs-vsctl says {} for the table {table}", super::said(text));
    let value: Value = serde_json::from_str(text).map_err(|_| wrong())?;
    let headings = value.get("headings").and_then(Value::as_array).ok_or_else(wrong)?;
    let headings: Vec<&str> = headings.iter().filter_map(Value::as_str).collect();
    let data = value.get("data").and_then(Value::as_array).ok_or_else(wrong)?;
    let row = |cells: &Value| {
        let cells = cells.as_array().filter(|cells| cells.len() == headings.len())?;
        Some(headings.iter().map(|h| (*h).to_owned()).zip(cells.iter().cloned()).collect())
    };
    data.iter().map(|cells| row(cells).ok_or_else(wrong)).collect()
}

/// A column that holds a string, or a set with at most one.
fn word(row: &Row, column: &str) -> Option<String> {
    row.get(column)?.as_str().map(str::to_owned)
}

/// A column that holds one UUID, `["uuid", X]`, or a set of them, `["set", [["uuid", X], …]]`.
fn uuids(row: &Row, column: &str) -> Vec<String> {
    let one = |value: &Value| match value.as_array().map(Vec::as_slice) {
        Some([kind, id]) if kind == "uuid" => id.as_str().map(str::to_owned),
        _ => None,
    };
    let Some(value) = row.get(column) else { return Vec::new() };
    match value.as_array().map(Vec::as_slice) {
        Some([kind, Value::Array(all)]) if kind == "set" => all.iter().filter_map(one).collect(),
        _ => one(value).into_iter().collect(),
    }
}

/// What the database could not bring about.
pub fn errors(bridges: &[Bridge]) -> Found {
    let each = bridges.iter().flat_map(|b| b.interfaces.iter().map(move |i| (b, i)));
    let errors: Vec<String> = each
        .filter_map(|(b, i)| i.error.as_ref().map(|error| format!("{} in bridge {}: {error}", i.name, b.name)))
        .collect();
    match errors.is_empty() {
        true => {
            let interfaces: usize = bridges.iter().map(|b| b.interfaces.len()).sum();
            Found::Good(format!("{} bridges, {interfaces} interfaces, none in error", bridges.len()))
        }
        false => Found::Bad(errors.join("; ")),
    }
}

/// `out`: whether the kernel has an interface of this name that leads out of the host.
pub fn judge(bridges: &[Bridge], out: impl Fn(&str) -> bool) -> Found {
    if bridges.is_empty() {
        return Found::Skipped("no bridge is configured".into());
    }
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for bridge in bridges {
        let leads = |i: &&Interface| match i.kind.as_str() {
            "" | "system" => out(&i.name),
            kind => TUNNELS.contains(&kind),
        };
        let uplinks: Vec<&Interface> = bridge.interfaces.iter().filter(leads).collect();
        let names = |list: &[&Interface]| list.iter().map(|i| i.name.as_str()).collect::<Vec<_>>().join(", ");
        let others: Vec<&Interface> = bridge.interfaces.iter().filter(|i| i.name != bridge.name).collect();
        match (uplinks.as_slice(), others.as_slice()) {
            ([], []) => bad.push(format!("bridge {} has no uplink, and no other port", bridge.name)),
            ([], others) => bad.push(format!("bridge {} has no uplink, only {}", bridge.name, names(others))),
            (uplinks, _) if uplinks.iter().all(|i| i.link == Some(false)) => {
                bad.push(format!("bridge {}: no link at {}", bridge.name, names(uplinks)));
            }
            (uplinks, _) => good.push(format!("{} by {}", bridge.name, names(uplinks))),
        }
    }
    if bad.is_empty() { Found::Good(good.join("; ")) } else { Found::Bad(bad.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGES: &str = r#"{"data":[["br-ex",["set",[["uuid","p1"],["uuid","p2"]]]],["br-int",["uuid","p3"]]],"headings":["name","ports"]}"#;
    const PORTS: &str = r#"{"data":[[["uuid","p1"],["uuid","i1"]],[["uuid","p2"],["set",[["uuid","i2"],["uuid","i4"]]]],[["uuid","p3"],["uuid","i3"]]],"headings":["_uuid","interfaces"]}"#;

    fn interfaces(second: &str) -> String {
        format!(
            r#"{{"data":[[["uuid","i1"],"br-ex","internal","up",["set",[]]],{second},
            [["uuid","i3"],"vx0","vxlan","up",["set",[]]],[["uuid","i4"],"vnet0","",["set",[]],["set",[]]]],
            "headings":["_uuid","name","type","link_state","error"]}}"#
        )
    }

    fn found(second: &str) -> (Found, Found) {
        let bridges = read(BRIDGES, PORTS, &interfaces(second)).unwrap();
        (errors(&bridges), judge(&bridges, |name| name == "eth1"))
    }

    #[test]
    fn a_bridge_without_an_uplink_is_found() {
        let (errors, uplinks) = found(r#"[["uuid","i2"],"eth1","system","up",["set",[]]]"#);
        assert_eq!(errors, Found::Good("2 bridges, 4 interfaces, none in error".into()));
        assert_eq!(uplinks, Found::Good("br-ex by eth1; br-int by vx0".into()));
        let (_, uplinks) = found(r#"[["uuid","i2"],"eth1","","down",["set",[]]]"#);
        assert_eq!(uplinks, Found::bad("bridge br-ex: no link at eth1"));
        let (_, uplinks) = found(r#"[["uuid","i2"],"tap7","","up",["set",[]]]"#);
        assert_eq!(uplinks, Found::bad("bridge br-ex has no uplink, only tap7, vnet0"));
        assert!(matches!(judge(&[], |_| true), Found::Skipped(_)));
    }

    #[test]
    fn what_open_vswitch_writes_is_read() {
        let table = |name: &str| {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ovs").join(name);
            std::fs::read_to_string(path).unwrap()
        };
        let mut bridges = read(&table("bridge.json"), &table("port.json"), &table("interface.json")).unwrap();
        assert_eq!(errors(&bridges), Found::Good("3 bridges, 8 interfaces, none in error".into()));
        let out = |name: &str| name.starts_with("eth");
        assert_eq!(judge(&bridges, out), Found::bad("bridge br-alone has no uplink, and no other port"));
        bridges.retain(|b| b.name != "br-alone");
        assert!(matches!(judge(&bridges, out), Found::Good(found) if found.contains("br-ex by eth1")));
        let found = judge(&bridges, |name| name == "eth2");
        assert_eq!(found, Found::bad("bridge br-ex has no uplink, only eth1, vnet0"));
    }

    #[test]
    fn what_the_kernel_refused_is_told() {
        let (errors, _) =
            found(r#"[["uuid","i2"],"eth9","","down","could not open network device eth9 (No such device)"]"#);
        assert_eq!(errors, Found::bad("eth9 in bridge br-ex: could not open network device eth9 (No such device)"));
    }

    #[test]
    fn garbage_is_named_with_its_table() {
        for text in ["", "not json", "{}", r#"{"data":[[1]],"headings":["a","b"]}"#, r#"{"data":7,"headings":[]}"#] {
            assert!(read(text, PORTS, &interfaces("[]")).unwrap_err().contains("table"), "{text}");
        }
        assert!(read(BRIDGES, PORTS, &interfaces("[]")).unwrap_err().contains("table Interface"));
        assert!(read(BRIDGES, "x", &interfaces("[1,2,3,4,5]")).unwrap_err().contains("\"x\" for the table Port"));
    }
}
