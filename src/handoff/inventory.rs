//! The machines as other tools read them: Ansible's dynamic inventory, Prometheus' HTTP service discovery, and the flat words that
//! Terraform's `external` data source takes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use serde_json::{Map, Value, json};

use super::announce::facts;
use crate::lifecycle::{Machine, State};

/// Whether a host is there to be worked on: its own system runs, and others may log in.
fn handed_over(m: &Machine) -> bool {
    matches!(m.state, State::Delivered { .. })
}

/// What a host goes by: its host name where no other machine has that, else the machine's name.
fn names<'a>(machines: &'a [&'a Machine]) -> impl Fn(&Machine) -> String + 'a {
    let hostname = |m: &Machine| m.order.as_ref().map(|o| o.hostname.to_string());
    let mut count: HashMap<String, usize> = HashMap::new();
    machines.iter().filter_map(|m| hostname(m)).for_each(|name| *count.entry(name).or_default() += 1);
    move |m| hostname(m).filter(|name| count.get(name) == Some(&1)).unwrap_or_else(|| m.name.clone())
}

/// Ansible's "inventory script" format with `_meta`, so that it asks once. `all`: also machines that are not handed over.
pub fn ansible(machines: &[&Machine], all: bool) -> Value {
    let listed: Vec<&Machine> = machines.iter().copied().filter(|m| all || handed_over(m)).collect();
    let name = names(&listed);
    let mut groups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut variables = Map::new();
    for m in &listed {
        let host = name(m);
        for group in groups_of(m) {
            groups.entry(group).or_default().insert(host.clone());
        }
        variables.insert(host, Value::Object(hostvars(m)));
    }
    let mut document = Map::new();
    document.insert("_meta".into(), json!({ "hostvars": variables }));
    let children: Vec<&String> = groups.keys().collect();
    document.insert("all".into(), json!({ "children": children }));
    document.extend(groups.into_iter().map(|(group, hosts)| (group, json!({ "hosts": hosts }))));
    Value::Object(document)
}

/// `None`: there is no such host.
pub fn ansible_host(machines: &[&Machine], host: &str) -> Option<Value> {
    let name = names(machines);
    let machine = machines.iter().find(|m| name(m) == host || m.name == host)?;
    Some(Value::Object(hostvars(machine)))
}

fn hostvars(m: &Machine) -> Map<String, Value> {
    let mut variables = Map::new();
    if let Some(address) = m.address {
        variables.insert("ansible_host".into(), json!(address));
    }
    variables.insert("ansible_user".into(), json!("root"));
    if let Value::Object(facts) = facts(m) {
        variables.extend(facts.into_iter().map(|(key, value)| (format!("rackline_{key}"), value)));
    }
    variables
}

fn groups_of(m: &Machine) -> Vec<String> {
    let group = |kind: &str, name: &str| {
        let word: String =
            name.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        format!("{kind}_{}", word.trim_matches('_'))
    };
    let mut groups = vec![group("state", m.state.name())];
    groups.extend(m.order.iter().flat_map(|o| o.role.iter()).map(|role| group("role", role.name())));
    groups.extend(m.place.as_ref().map(|place| group("rack", &place.rack)));
    let model = m.inventory.as_ref().and_then(|i| i.system.product.as_ref());
    groups.extend(model.map(|model| group("model", model)));
    groups
}

/// The documents of Prometheus' `http_sd_config`: each delivered host at `port`, with what is known of it as `__meta` labels, which
/// a relabelling keeps or drops.
pub fn prometheus(machines: &[&Machine], port: u16) -> Value {
    let delivered = machines.iter().filter(|m| handed_over(m));
    let target = |m: &&&Machine| {
        let address: IpAddr = m.address?;
        let mut labels = Map::new();
        for (key, value) in words(m) {
            if !value.is_empty() {
                labels.insert(format!("__meta_rackline_{key}"), json!(value));
            }
        }
        Some(json!({ "targets": [SocketAddr::new(address, port).to_string()], "labels": labels }))
    };
    Value::Array(delivered.collect::<Vec<_>>().iter().filter_map(target).collect())
}

/// Strings only, as the `external` data source of Terraform demands; what is not known is empty.
pub fn words(m: &Machine) -> BTreeMap<String, String> {
    let Value::Object(facts) = facts(m) else { return BTreeMap::new() };
    let word = |value: Value| match value {
        Value::Null => Some(String::new()),
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(is) => Some(is.to_string()),
        Value::Array(list) => {
            let texts: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
            Some(texts.join(","))
        }
        Value::Object(problem) => problem.get("title").and_then(Value::as_str).map(str::to_owned),
    };
    facts.into_iter().filter_map(|(key, value)| Some((key, word(value)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::passport::tests::large;
    use super::*;
    use crate::machine::Role;

    fn host(name: &str, hostname: &str, role: Role, address: &str) -> Machine {
        let mut machine = large(role);
        let checks = serde_json::from_value(json!([])).unwrap();
        machine.state = State::Delivered { checks, passport: json!({}) };
        machine.name = name.into();
        machine.address = address.parse().ok();
        machine.order.as_mut().unwrap().hostname = hostname.parse().unwrap();
        machine
    }

    #[test]
    fn ansible_gets_groups_and_all_variables_at_once() {
        let (a, b) = (host("m1", "kvm-1", Role::Kvm, "10.0.0.1"), host("m2", "ovs-1", Role::Ovs, "10.0.0.2"));
        let waiting = Machine { name: "m3".into(), state: State::Ready, order: None, ..large(Role::Kvm) };
        let list = ansible(&[&a, &b, &waiting], false);
        assert_eq!(list["role_kvm"]["hosts"], json!(["kvm-1"]));
        assert_eq!(list["rack_r12"]["hosts"], json!(["kvm-1", "ovs-1"]));
        assert_eq!(list["model_poweredge_r740xd"]["hosts"], json!(["kvm-1", "ovs-1"]));
        assert_eq!(list["_meta"]["hostvars"]["ovs-1"]["ansible_host"], "10.0.0.2");
        assert_eq!(list["_meta"]["hostvars"]["ovs-1"]["rackline_serial"], "CN7475164R0123");
        assert!(list.get("state_ready").is_none());
        let children = list["all"]["children"].as_array().unwrap();
        assert!(children.iter().all(|group| list.get(group.as_str().unwrap()).is_some()));
        let all = ansible(&[&a, &b, &waiting], true);
        assert_eq!(all["state_ready"]["hosts"], json!(["m3"]));
        assert_eq!(ansible_host(&[&a, &b], "kvm-1"), Some(list["_meta"]["hostvars"]["kvm-1"].clone()));
        assert_eq!(ansible_host(&[&a, &b], "kvm-9"), None);
    }

    #[test]
    fn two_hosts_of_one_name_keep_apart() {
        let (a, b) = (host("m1", "node", Role::Kvm, "10.0.0.1"), host("m2", "node", Role::Kvm, "10.0.0.2"));
        assert_eq!(ansible(&[&a, &b], false)["role_kvm"]["hosts"], json!(["m1", "m2"]));
    }

    #[test]
    fn prometheus_gets_targets_with_labels() {
        let (a, b) = (host("m1", "kvm-1", Role::Kvm, "10.0.0.1"), host("m2", "kvm-2", Role::Kvm, "fd00::2"));
        let targets = prometheus(&[&a, &b, &large(Role::Kvm)], 9100);
        assert_eq!(targets[0]["targets"], json!(["10.0.0.1:9100"]));
        assert_eq!(targets[1]["targets"], json!(["[fd00::2]:9100"]));
        assert_eq!(targets[0]["labels"]["__meta_rackline_rack"], "r12");
        assert_eq!(targets.as_array().unwrap().len(), 2);
        let labels = targets[0]["labels"].as_object().unwrap();
        assert!(
            labels
                .iter()
                .all(|(key, value)| value.is_string() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
        );
    }

    #[test]
    fn terraform_gets_strings_only_and_the_same_keys_of_every_machine() {
        let (a, b) = (host("m1", "kvm-1", Role::Kvm, "10.0.0.1"), Machine { order: None, ..large(Role::Kvm) });
        assert_eq!(words(&a)["address"], "10.0.0.1");
        assert_eq!(words(&a)["unit"], "30");
        assert_eq!(words(&b)["hostname"], "");
        assert!(words(&a).keys().all(|key| key == "problem" || words(&b).contains_key(key)));
    }
}
