//! Which machine a BMC belongs to: by the serial number in its own data, by the UUID of the system where no serial number
//! tells, and by nothing else. An address that was mixed up in the list would have another machine cut off in the middle of
//! its work.

use std::sync::Arc;

use super::world::World;
use crate::bmc::{Info, Part};
use crate::error::{Error, Result};
use crate::lifecycle::Machine;
use crate::machine::Serial;
use crate::machine::id::uuid_readings;

/// What a BMC says of the machine that it is in.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    serials: Vec<Serial>,
    uuids: Vec<uuid::Uuid>,
}

impl Said {
    /// The first part is the machine: FRU 0 of IPMI (section 38), the ComputerSystem of Redfish; the others are power supplies
    /// and boards with serial numbers of their own.
    pub fn by(info: Option<&Info>, parts: &[Part]) -> Self {
        let field = |name: &&str| parts.first()?.fields.get(*name);
        let serials = ["product.serial", "chassis.serial"].iter().filter_map(field);
        let uuids = ["product.uuid", "record.unique id"].iter().filter_map(field).filter_map(|text| text.parse().ok());
        Self {
            serials: serials.filter_map(|text| Serial::parse(text)).collect(),
            uuids: info.and_then(|info| info.guid).into_iter().chain(uuids).collect(),
        }
    }
}

/// Refuses a BMC that is another machine's. One that says nothing, or what nobody has, is taken: makers fill in what they like.
pub fn check(machine: &Machine, whose: &str, said: &Said, world: &World) -> Result<()> {
    let own = machine.identity();
    if said.serials.iter().any(|serial| Some(serial) == own.serial.as_ref()) {
        return Ok(());
    }
    let others = |holder: Option<Arc<Machine>>| holder.filter(|other| other.id != machine.id);
    let by_serial = |serial: &Serial| others(world.by_serial(serial)).map(|other| (serial.clone(), other));
    if let Some((serial, other)) = said.serials.iter().find_map(by_serial) {
        let expected = own.serial.map_or("none".to_owned(), |serial| serial.to_string());
        return Err(refused(machine, whose, &other, &format!("serial number is {serial}, expected {expected}")));
    }
    if said.uuids.iter().any(|told| own.has_uuid(*told)) {
        return Ok(());
    }
    let by_uuid = |uuid: uuid::Uuid| others(world.by_uuid(uuid)).map(|other| (uuid, other));
    match said.uuids.iter().flat_map(|told| uuid_readings(*told)).find_map(by_uuid) {
        Some((uuid, other)) => {
            let expected = own.uuid.map_or("none".to_owned(), |uuid| uuid.to_string());
            Err(refused(machine, whose, &other, &format!("UUID is {uuid}, expected {expected}")))
        }
        None => Ok(()),
    }
}

fn refused(machine: &Machine, whose: &str, other: &Machine, what: &str) -> Error {
    let message = format!("{whose} belongs to {}: its {what} of {}", other.name, machine.name);
    Error::conflict("bmc.other-machine", message)
        .hint("correct bmc_address of both machines in the list of expected machines; nothing was done to either")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::State;
    use crate::machine::MachineId;

    const UUID: &str = "4c4c4544-0058-4b10-8032-b7c04f4d3133";

    fn machine(name: &str, serial: &str, uuid: &str) -> Machine {
        let mut machine = Machine::new(MachineId::generate(), name.into(), 0, State::Expected);
        machine.serial = Serial::parse(serial);
        machine.uuid = uuid.parse().ok();
        machine
    }

    fn world(machines: &[&Machine]) -> World {
        let mut world = World::default();
        machines.iter().for_each(|machine| world.put((*machine).clone()));
        world
    }

    fn part(name: &str, fields: &[(&str, &str)]) -> Part {
        let fields = fields.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Part { name: name.into(), fields, broken: Vec::new() }
    }

    fn info(guid: uuid::Uuid) -> Info {
        Info {
            protocol: "IPMI 2.0, cipher suite 17".into(),
            firmware: "2.63".into(),
            manufacturer: "Dell".into(),
            product: 0,
            guid: Some(guid),
            address: None,
            mac: None,
            address_source: None,
        }
    }

    fn said(serials: &[&str]) -> Said {
        Said { serials: serials.iter().filter_map(|text| Serial::parse(text)).collect(), uuids: Vec::new() }
    }

    #[test]
    fn the_first_part_is_the_machine() {
        let parts = [
            part(
                "Builtin FRU Device",
                &[("product.serial", "7XK2M13"), ("chassis.serial", "0000000"), ("board.serial", "CN1")],
            ),
            part("PSU 1", &[("product.serial", "PSU-1"), ("product.uuid", UUID)]),
        ];
        assert_eq!(Said::by(None, &parts), said(&["7XK2M13"]));
        assert_eq!(Said::by(None, &[]), Said::default());
    }

    #[test]
    fn a_bmc_of_another_machine_is_refused_with_expected_and_found() {
        let (one, two) = (machine("kvm-1", "7XK2M13", ""), machine("kvm-2", "9ZZ9Z99", ""));
        let world = world(&[&one, &two]);
        let error = check(&one, "BMC 10.0.0.7", &said(&["9ZZ9Z99"]), &world).unwrap_err();
        assert_eq!(error.code(), "bmc.other-machine");
        for word in ["10.0.0.7", "kvm-2", "9ZZ9Z99", "expected 7XK2M13"] {
            assert!(error.message().contains(word), "{error}");
        }
        assert!(check(&two, "BMC 10.0.0.7", &said(&["9ZZ9Z99"]), &world).is_ok());
        // A board's serial number of nobody, or none at all, is no other machine's.
        assert!(check(&one, "BMC 10.0.0.7", &said(&["CN-0123"]), &world).is_ok());
        assert!(check(&one, "BMC 10.0.0.7", &Said::default(), &world).is_ok());
        // Its own comes first: a blade may tell its enclosure's as well.
        assert!(check(&one, "BMC 10.0.0.7", &said(&["9ZZ9Z99", "7XK2M13"]), &world).is_ok());
    }

    /// The serial number is a filler: the UUID tells, in the order of bytes that the BMC has it in.
    #[test]
    fn without_a_serial_number_the_uuid_tells() {
        let other = "4c4c4544-0058-4b10-8032-b7c04f4d3134";
        let (one, two) = (machine("kvm-1", "To Be Filled By O.E.M.", UUID), machine("kvm-2", "", other));
        let world = world(&[&one, &two]);
        let parts = [part("Builtin FRU Device", &[("product.serial", "Default string")])];
        let uuid: uuid::Uuid = UUID.parse().unwrap();
        let mut reversed = uuid.into_bytes();
        reversed.reverse();
        for sent in [uuid.into_bytes(), uuid.to_bytes_le(), reversed].map(uuid::Uuid::from_bytes) {
            let said = Said::by(Some(&info(sent)), &parts);
            assert!(check(&one, "BMC 10.0.0.7", &said, &world).is_ok());
            let error = check(&two, "BMC 10.0.0.7", &said, &world).unwrap_err();
            assert_eq!(error.code(), "bmc.other-machine");
            for word in ["kvm-1", UUID, other] {
                assert!(error.message().contains(word), "{error}");
            }
        }
        // Of the parts as well: Redfish's ComputerSystem, the management record of a FRU.
        for field in ["product.uuid", "record.unique id"] {
            let said = Said::by(None, &[part("System", &[(field, UUID)])]);
            assert!(check(&two, "BMC 10.0.0.7", &said, &world).is_err(), "{field}");
        }
        // Left by the maker in every board, or that of nobody here.
        for nobody in ["03000200-0400-0500-0006-000700080009", "f0f0f0f0-0000-4000-8000-000000000001"] {
            assert!(check(&two, "BMC", &Said::by(Some(&info(nobody.parse().unwrap())), &[]), &world).is_ok());
        }
        // Where a serial number tells, it is believed.
        let three = machine("kvm-3", "7XK2M13", "");
        let of_three = Said { uuids: vec![uuid], ..said(&["7XK2M13"]) };
        assert!(check(&three, "BMC 10.0.0.7", &of_three, &world).is_ok());
    }
}
