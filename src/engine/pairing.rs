//! Which machine a BMC belongs to: by the serial number in its own data, and by nothing else. An address that was mixed up
//! in the list would have another machine cut off in the middle of its work.

use std::sync::Arc;

use crate::bmc::Part;
use crate::error::{Error, Result};
use crate::lifecycle::Machine;
use crate::machine::Serial;

/// Serial numbers of the machine itself as its BMC has them. The first part is the machine: FRU 0 of IPMI (section 38),
/// the ComputerSystem of Redfish; the others are power supplies and boards with serial numbers of their own.
pub fn serials(parts: &[Part]) -> Vec<Serial> {
    let fields = parts.first().map(|part| &part.fields);
    let serial = |name| fields?.get(name).and_then(|text| Serial::parse(text));
    ["product.serial", "chassis.serial"].into_iter().filter_map(serial).collect()
}

/// Refuses a BMC that is another machine's. One that says nothing, or a serial number that nobody has, is taken: makers fill
/// in what they like.
pub fn check(
    machine: &Machine,
    whose: &str,
    found: &[Serial],
    holder: impl Fn(&Serial) -> Option<Arc<Machine>>,
) -> Result<()> {
    let expected = machine.serial.as_ref();
    if found.iter().any(|serial| Some(serial) == expected) {
        return Ok(());
    }
    let other = |serial: &Serial| holder(serial).filter(|other| other.id != machine.id).map(|m| (serial.clone(), m));
    let Some((serial, other)) = found.iter().find_map(other) else { return Ok(()) };
    let expected = expected.map_or("none".to_owned(), ToString::to_string);
    let message = format!(
        "{whose} belongs to {}: its serial number is {serial}, expected {expected} of {}",
        other.name, machine.name
    );
    Err(Error::conflict("bmc.other-machine", message)
        .hint("correct bmc_address of both machines in the list of expected machines; nothing was done to either"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::State;
    use crate::machine::MachineId;

    fn machine(name: &str, serial: &str) -> Machine {
        let mut machine = Machine::new(MachineId::generate(), name.into(), 0, State::Expected);
        machine.serial = Serial::parse(serial);
        machine
    }

    fn part(name: &str, fields: &[(&str, &str)]) -> Part {
        let fields = fields.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Part { name: name.into(), fields, broken: Vec::new() }
    }

    #[test]
    fn the_first_part_is_the_machine() {
        let parts = [
            part(
                "Builtin FRU Device",
                &[("product.serial", "7XK2M13"), ("chassis.serial", "0000000"), ("board.serial", "CN1")],
            ),
            part("PSU 1", &[("product.serial", "PSU-1")]),
        ];
        assert_eq!(serials(&parts), [Serial::parse("7XK2M13").unwrap()]);
        assert!(serials(&[]).is_empty());
    }

    #[test]
    fn a_bmc_of_another_machine_is_refused_with_expected_and_found() {
        let (one, two) = (machine("kvm-1", "7XK2M13"), Arc::new(machine("kvm-2", "9ZZ9Z99")));
        let holder = |serial: &Serial| (two.serial.as_ref() == Some(serial)).then(|| two.clone());
        let said = |text: &str| Serial::parse(text).into_iter().collect::<Vec<_>>();
        let error = check(&one, "BMC 10.0.0.7", &said("9ZZ9Z99"), holder).unwrap_err();
        assert_eq!(error.code(), "bmc.other-machine");
        for word in ["10.0.0.7", "kvm-2", "9ZZ9Z99", "expected 7XK2M13"] {
            assert!(error.message().contains(word), "{error}");
        }
        assert!(check(&two, "BMC 10.0.0.7", &said("9ZZ9Z99"), holder).is_ok());
        // A board's serial number of nobody, or none at all, is no other machine's.
        assert!(check(&one, "BMC 10.0.0.7", &said("CN-0123"), holder).is_ok());
        assert!(check(&one, "BMC 10.0.0.7", &[], holder).is_ok());
        // Its own comes first: a blade may tell its enclosure's as well.
        let both = [said("9ZZ9Z99"), said("7XK2M13")].concat();
        assert!(check(&one, "BMC 10.0.0.7", &both, holder).is_ok());
    }
}
