//! Where a machine is plugged in, and whether the list has it there. The port map is looked up at the door (`engine`);
//! what it says stands in the event, so that a replay needs no map.
//!
//! A machine is known by its serial number, never by its port: what contradicts the map is told, and changes nothing.

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use crate::link::Problem;
use crate::machine::finding::WRONG_PORT;
use crate::machine::{MacAddr, Nic, Place, SwitchPort};

/// The port that a request came through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenPort {
    pub at: SwitchPort,
    /// Whom the port map has there.
    pub expects: Option<Occupant>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occupant {
    pub name: String,
    /// Its place on the list of expected machines.
    pub place: Option<Place>,
}

impl Machine {
    /// What does not fit between where the machine was seen and what the list says; empty where all is well.
    pub fn cabling(&self) -> Vec<Problem> {
        self.seen_on
            .iter()
            .filter(|(mac, _)| !self.told_by_lldp(mac))
            .filter_map(|(_, seen)| if self.expected { self.misplaced(seen) } else { self.guess(seen) })
            .collect()
    }

    /// The same cable is among the findings.
    fn told_by_lldp(&self, mac: &MacAddr) -> bool {
        let seen = |nic: &Nic| nic.mac == *mac && nic.neighbour.is_some();
        self.findings.iter().any(|finding| finding.id == WRONG_PORT)
            && self.inventory.as_ref().is_some_and(|inventory| inventory.nics.iter().any(seen))
    }

    /// The place of the machine that is expected where this unlisted one was seen: a suggestion, never taken by itself.
    pub fn suggested_place(&self) -> Option<&Place> {
        let here = || self.seen_on.values().find_map(|seen| seen.expects.as_ref()?.place.as_ref());
        if self.expected { None } else { here() }
    }

    fn misplaced(&self, seen: &SeenPort) -> Option<Problem> {
        let (name, at) = (&self.name, &seen.at);
        if self.ports.contains(at) {
            return None;
        }
        let own: Vec<String> = self.ports.iter().map(ToString::to_string).collect();
        let (title, hint) = match &seen.expects {
            Some(other) if other.name == *name => return None,
            Some(other) => (
                format!(
                    "{} is expected on {at}, but {name} asked there: two cables are swapped, or the list is wrong",
                    other.name
                ),
                match own.is_empty() {
                    true => format!("{name} is on no port of [[switches]]; correct the list or the cable"),
                    false => format!("{name} is expected on {}; swap the cables or correct the list", own.join(", ")),
                },
            ),
            None if own.is_empty() => return None,
            None => (
                format!("{name} asked on {at}, but is expected on {}", own.join(", ")),
                "move its cable, or correct the ports in [[switches]]".to_owned(),
            ),
        };
        Some(Problem { code: "cabling.misplaced".into(), title, hint: Some(hint), causes: Vec::new() })
    }

    fn guess(&self, seen: &SeenPort) -> Option<Problem> {
        let other = seen.expects.as_ref()?;
        let place = other.place.as_ref().map_or(String::new(), |place| format!(" ({place})"));
        let said = match &self.serial {
            Some(serial) => format!("; if this is {}, enter its serial number {serial} on the list", other.name),
            None => String::new(),
        };
        Some(Problem {
            code: "cabling.unlisted".into(),
            title: format!("asked on {}, where {}{place} is expected, and is not on the list", seen.at, other.name),
            hint: Some(format!("compare its label with the list of expected machines{said}")),
            causes: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::lifecycle::State;
    use crate::machine::{MacAddr, MachineId, Serial};

    fn at(port: &str) -> SwitchPort {
        SwitchPort { switch: "c-tor1".into(), port: port.into() }
    }

    /// c03-u14, listed on `ports`, seen on Ethernet7 where `expects` is expected.
    fn machine(listed: bool, ports: &[&str], expects: Option<&str>) -> Machine {
        let mut machine = Machine::new(MachineId(uuid::Uuid::nil()), "c03-u14".into(), 0, State::Seen);
        machine.expected = listed;
        machine.serial = Serial::parse("7XK2M13");
        machine.ports = ports.iter().map(|port| at(port)).collect();
        let place = Some(Place { rack: "C".into(), unit: 12 });
        let expects = expects.map(|name| Occupant { name: name.into(), place });
        machine.seen_on = BTreeMap::from([(MacAddr([2; 6]), SeenPort { at: at("Ethernet7"), expects })]);
        machine
    }

    #[test]
    fn where_it_is_expected_nothing_is_said() {
        assert!(machine(true, &["Ethernet7"], Some("c03-u14")).cabling().is_empty());
        assert!(machine(true, &["Ethernet7", "Ethernet8"], None).cabling().is_empty(), "two uplinks, this is one");
        assert!(machine(true, &[], None).cabling().is_empty(), "the map knows neither");
        assert!(machine(false, &[], None).cabling().is_empty());
    }

    #[test]
    fn swapped_cables_are_named() {
        let problems = machine(true, &["Ethernet9"], Some("c03-u12")).cabling();
        assert_eq!(
            problems[0].title,
            "c03-u12 is expected on c-tor1 Ethernet7, but c03-u14 asked there: two cables are swapped, or the list is wrong"
        );
        assert!(problems[0].hint.as_ref().unwrap().contains("c03-u14 is expected on c-tor1 Ethernet9"));
        let problems = machine(true, &["Ethernet9"], None).cabling();
        assert_eq!(problems[0].title, "c03-u14 asked on c-tor1 Ethernet7, but is expected on c-tor1 Ethernet9");
    }

    #[test]
    fn an_unlisted_machine_gets_a_suggestion_and_no_place() {
        let stranger = machine(false, &[], Some("c03-u12"));
        let problems = stranger.cabling();
        assert!(problems[0].title.contains("where c03-u12 (C-U12) is expected"), "{problems:?}");
        assert!(problems[0].hint.as_ref().unwrap().contains("7XK2M13"));
        assert_eq!((stranger.suggested_place().unwrap().unit, &stranger.place), (12, &None));
        assert_eq!(machine(true, &[], Some("c03-u12")).suggested_place(), None);
    }
}
