//! Network ports: of which kind how many, and on which ports of which switches their cables end.

use super::assign::assign;
use super::bom::Nics;
use super::{Listed, counted, is_or_are, wrong_part};
use crate::machine::finding::WRONG_PORT;
use crate::machine::version;
use crate::machine::{Finding, Inventory, Neighbour, Nic, Severity, SwitchPort, Who};

/// Beyond it they are only counted.
const MAX_NICS: usize = 256;
/// Below it the link is told whatever the model is (`judge::hardware`), in Mb/s.
const TOLD: u32 = 1000;

pub fn judge(groups: &[Nics], inventory: &Inventory, findings: &mut Vec<Finding>) {
    if groups.is_empty() {
        return;
    }
    let nics: Vec<&Nic> = inventory.nics.iter().take(MAX_NICS).collect();
    let positions: Vec<usize> =
        groups.iter().enumerate().flat_map(|(at, group)| std::iter::repeat_n(at, *group.count.as_ref())).collect();
    let (found, _) = assign(positions.len(), &nics, |position, nic| {
        let group = &groups[positions[position]];
        let weights = [(is_other(group, nic, inventory), 8), (is_slow(group, nic), 4)];
        // One with a link is wanted more than one without.
        weights.iter().filter_map(|(differs, weight)| differs.then_some(*weight)).sum::<u32>() + u32::from(!nic.link)
    });
    for (at, group) in groups.iter().enumerate() {
        let own =
            positions.iter().zip(&found).filter(|(of, _)| **of == at).filter_map(|(_, nic)| nic.map(|nic| nics[nic]));
        let mut own: Vec<&Nic> = own.collect();
        // In the order of the inventory, whatever the assignment was.
        own.sort_by_key(|nic| nics.iter().position(|other| std::ptr::eq(*other, *nic)));
        of_group(group, &own, inventory, findings);
    }
}

fn model<'a>(nic: &Nic, inventory: &'a Inventory) -> Option<&'a str> {
    let address = nic.pci.as_deref()?;
    inventory.pci.iter().find(|device| device.address == address)?.name.as_deref()
}

fn is_other(group: &Nics, nic: &Nic, inventory: &Inventory) -> bool {
    let driver = group.driver.as_ref().is_some_and(|d| nic.driver.as_ref().is_some_and(|driver| !d.fits(driver)));
    let named = group.model.as_ref().is_some_and(|m| model(nic, inventory).is_some_and(|name| !m.fits(name)));
    driver || named
}

/// What the card can do, or where that is not known, does.
fn is_slow(group: &Nics, nic: &Nic) -> bool {
    let can = nic.max_mbps.or(nic.speed_mbps);
    group.speed.as_ref().is_some_and(|speed| can.is_some_and(|can| u64::from(can) < speed.value))
}

fn mbps(mbps: u32) -> String {
    if mbps.is_multiple_of(1000) { format!("{} Gb/s", mbps / 1000) } else { format!("{mbps} Mb/s") }
}

fn names(nics: &[&Nic]) -> String {
    let names = nics.iter().map(|nic| nic.name.as_str()).collect::<Vec<_>>().join(", ");
    format!("NIC{} {names}", if nics.len() == 1 { "" } else { "s" })
}

fn of_group(group: &Nics, own: &[&Nic], inventory: &Inventory, findings: &mut Vec<Finding>) {
    let count = *group.count.as_ref();
    let mut told = |id: &str, part, cause: String, expected: String, found: String, who, next: &str| {
        let next = next.to_owned();
        findings.push(Finding { id: id.into(), part, severity: group.severity, cause, expected, found, who, next });
    };
    let which = |wanted: &dyn Fn(&Nic) -> bool| own.iter().copied().filter(|nic| wanted(nic)).collect::<Vec<&Nic>>();
    let list = |nics: &[&Nic], say: &dyn Fn(&Nic) -> String| {
        nics.iter().map(|nic| format!("{} {}", nic.name, say(nic))).collect::<Vec<_>>().join(", ")
    };
    let kind = match (&group.model, &group.driver) {
        (Some(model), _) => model.to_string(),
        (None, Some(driver)) => format!("driver {driver}"),
        (None, None) => String::new(),
    };
    let of = |nics: &[&Nic]| format!("{} of {} {}", nics.len(), counted(count, "NIC"), is_or_are(nics.len()));
    if own.len() < count {
        let missing = counted(count - own.len(), "NIC");
        let cause = format!("{missing} missing: {} of {count} found", own.len());
        let next = "look whether the card is fully in its slot; a port that is off in the firmware settings is not seen either";
        told("nic.missing", "NICs".into(), cause, counted(count, "NIC"), own.len().to_string(), Who::Racker, next);
    }
    let others = which(&|nic| is_other(group, nic, inventory));
    if !others.is_empty() {
        let say = |nic: &Nic| model(nic, inventory).or(nic.driver.as_deref()).unwrap_or("unknown").to_owned();
        let cause = format!("{} another model", of(&others));
        told("nic.model", names(&others), cause, kind, list(&others, &say), Who::Supplier, &wrong_part("the card"));
    }
    if let Some(speed) = &group.speed {
        let slow = which(&|nic| is_slow(group, nic) && !is_other(group, nic, inventory));
        if !slow.is_empty() {
            let say = |nic: &Nic| mbps(nic.max_mbps.or(nic.speed_mbps).unwrap_or_default());
            let cause = format!("{} too slow: {}, expected {speed}", of(&slow), say(slow[0]));
            let next = wrong_part("the card");
            told("nic.speed", names(&slow), cause, speed.to_string(), list(&slow, &say), Who::Supplier, &next);
        }
        let below = |nic: &Nic| nic.speed_mbps.filter(|mbps| *mbps >= TOLD && u64::from(*mbps) < speed.value);
        let trained = which(&|nic| nic.link && below(nic).is_some() && !is_slow(group, nic));
        if !trained.is_empty() {
            let say = |nic: &Nic| mbps(nic.speed_mbps.unwrap_or_default());
            let cause = format!("{} linked at {}, expected {speed}", of(&trained), say(trained[0]));
            let next = "compare cable, transceiver and the speed of the switch port";
            told("nic.link-speed", names(&trained), cause, speed.to_string(), list(&trained, &say), Who::Racker, next);
        }
    }
    if let Some(least) = &group.firmware {
        let is_older = |nic: &Nic| {
            let order = nic.firmware.as_ref().and_then(|found| version::compare(found, least));
            order.is_some_and(std::cmp::Ordering::is_lt)
        };
        let old = which(&|nic| is_older(nic) && !is_other(group, nic, inventory));
        if !old.is_empty() {
            let say = |nic: &Nic| nic.firmware.clone().unwrap_or_default();
            let cause = format!("its firmware {} is older than {least}", say(old[0]));
            let expected = format!("at least {least}");
            let next = "update it, or write a firmware baseline that does: `rackline firmware list`";
            told("nic.firmware", names(&old), cause, expected, list(&old, &say), Who::Operator, next);
        }
    }
    if let Some(links) = group.links.as_ref().map(|links| *links.as_ref()) {
        let (up, down) = (which(&|nic| nic.link).len(), which(&|nic| !nic.link));
        // Those that are missing were told.
        if up < links && !down.is_empty() {
            let cause = format!("{up} of {} up", counted(links, "link"));
            let next = "plug the cable in, exchange it or its transceiver; look whether the switch port is on";
            told("nic.link", names(&down), cause, links.to_string(), up.to_string(), Who::Racker, next);
        }
    }
}

/// By LLDP: each cable against the ports of the list and of the port map.
pub fn cabling(listed: &Listed, severity: Severity, inventory: &Inventory, findings: &mut Vec<Finding>) {
    if listed.ports.is_empty() {
        return;
    }
    let mut free: Vec<&SwitchPort> = listed.ports.iter().collect();
    let mut elsewhere: Vec<(usize, &Nic, &Neighbour)> = Vec::new();
    for (at, nic) in inventory.nics.iter().enumerate() {
        let Some(neighbour) = &nic.neighbour else { continue };
        match free.iter().position(|port| is_at(neighbour, port)) {
            Some(found) => drop(free.remove(found)),
            None => elsewhere.push((at, nic, neighbour)),
        }
    }
    // What is on the right switch is told by its port, before another takes the place.
    elsewhere
        .sort_by_key(|(at, _, neighbour)| (!free.iter().any(|port| same_switch(&neighbour.switch, &port.switch)), *at));
    for (at, nic, neighbour) in elsewhere {
        let same = free.iter().position(|port| same_switch(&neighbour.switch, &port.switch));
        // A further NIC may be plugged in anywhere.
        let Some(wanted) = same.or((!free.is_empty()).then_some(0)).map(|found| free.remove(found)) else { continue };
        let expected = match same {
            Some(_) => format!("port {}", wanted.port),
            None => wanted.to_string(),
        };
        let found = SwitchPort { switch: neighbour.switch.clone(), port: neighbour.port.clone() };
        let next = match (listed.occupant)(&found) {
            Some(other) => format!("{other} is expected on {found}: swap the cables, or correct the list"),
            None => "move the cable, or correct the ports of the list".to_owned(),
        };
        findings.push(Finding {
            id: WRONG_PORT.into(),
            part: format!("NIC {}", at + 1),
            severity,
            cause: format!("NIC {} on {} port {}, expected {expected}", at + 1, found.switch, found.port),
            expected: wanted.to_string(),
            found: format!("{found} ({}, {})", nic.name, nic.mac),
            who: Who::Racker,
            next,
        });
    }
}

fn is_at(neighbour: &Neighbour, port: &SwitchPort) -> bool {
    let named = [Some(&neighbour.port), neighbour.description.as_ref()];
    same_switch(&neighbour.switch, &port.switch) && named.into_iter().flatten().any(|name| same_port(name, &port.port))
}

/// With or without its domain.
fn same_switch(a: &str, b: &str) -> bool {
    let first = |name: &str| name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    a.eq_ignore_ascii_case(b) || (first(a) == first(b) && (a.contains('.') != b.contains('.')))
}

/// `Ethernet1/17`, `Eth1/17` and `1/17` are one port.
pub fn same_port(a: &str, b: &str) -> bool {
    let split = |name: &str| {
        let name = name.trim().to_ascii_lowercase();
        let at = name.find(|c: char| c.is_ascii_digit()).unwrap_or(name.len());
        let (word, number) = name.split_at(at);
        (word.trim().to_owned(), number.to_owned())
    };
    let ((a_word, a_number), (b_word, b_number)) = (split(a), split(b));
    a_number == b_number && (a_word.starts_with(&b_word) || b_word.starts_with(&a_word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_port_by_several_names() {
        for (a, b) in
            [("Ethernet17", "17"), ("Eth1/17", "Ethernet1/17"), ("swp5", "swp5"), ("GigabitEthernet1/0/1", "Gi1/0/1")]
        {
            assert!(same_port(a, b) && same_port(b, a), "{a} {b}");
        }
        for (a, b) in [("Ethernet17", "Ethernet1"), ("Ethernet17", "mgmt17"), ("Ethernet1/17", "Ethernet17")] {
            assert!(!same_port(a, b), "{a} {b}");
        }
        assert!(same_switch("leaf-12b.dc1.example", "leaf-12B") && !same_switch("leaf-12b", "leaf-12a"));
        assert!(!same_switch("leaf.a.example", "leaf.b.example"));
    }
}
