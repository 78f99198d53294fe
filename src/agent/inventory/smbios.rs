//! SMBIOS tables as the kernel exports them in `/sys/firmware/dmi/tables` (DSP0134: types 0-4, 9, 17, 41, 43).
//!
//! Tables come from firmware and are often wrong: fillers for names, counts of 0, sizes left out. What does not make
//! sense is left out here too, and a parser that gives up takes only the tables with it, not the inventory.

use std::collections::BTreeMap;
use std::path::Path;

use smbioslib::{
    BusNumber, CoreCount, CoreCount2, DeviceFunctionNumber, MemorySize, MemorySizeExtended, MemorySpeed,
    ProcessorSpeed, SMBiosBaseboardInformation, SMBiosData, SMBiosInformation, SMBiosMemoryDevice,
    SMBiosOnboardDevicesExtendedInformation, SMBiosProcessorInformation, SMBiosString, SMBiosStruct,
    SMBiosSystemChassisInformation, SMBiosSystemInformation, SMBiosSystemSlot, SMBiosTpmDevice, SegmentGroupNumber,
    SystemUuidData, ThreadCount, ThreadCount2,
};

use crate::machine::filler::{is_filler, is_filler_uuid, is_run};
use crate::machine::{Board, Cpu, Dimm, Memory, Serial, System, Tpm};

/// The largest table that is looked at: a fully fitted four-socket server needs about 16 KiB.
const TABLE_MAX: usize = 1 << 20;
/// Strings have no limit of their own.
const TEXT_MAX: usize = 128;

#[derive(Debug, Default, PartialEq)]
pub struct Tables {
    pub system: System,
    pub board: Board,
    pub chassis: Board,
    pub tpm: Option<Tpm>,
    pub cpus: Vec<Cpu>,
    pub memory: Memory,
    /// What is printed beside a slot or a socket, by PCI address (`0000:3b:00.0`).
    pub slots: BTreeMap<String, String>,
}

/// Empty where there are no tables, or only such as cannot be read.
pub fn read(sys: &Path) -> Tables {
    match std::fs::read(sys.join("firmware/dmi/tables/DMI")) {
        Ok(bytes) if bytes.len() <= TABLE_MAX => parse(bytes),
        _ => Tables::default(),
    }
}

pub fn parse(bytes: Vec<u8>) -> Tables {
    // The parser indexes by lengths that the firmware gave; a broken table must not end the agent.
    std::panic::catch_unwind(|| {
        let data = SMBiosData::from_vec_and_version(bytes, None);
        Tables {
            system: system(&data),
            board: board(&data),
            chassis: chassis(&data),
            tpm: data.first::<SMBiosTpmDevice<'_>>().and_then(|tpm| self::tpm(&tpm)),
            cpus: cpus(&data),
            memory: memory(&data),
            slots: slots(&data),
        }
    })
    .unwrap_or_default()
}

fn system(data: &SMBiosData) -> System {
    let mut system = System::default();
    if let Some(bios) = data.first::<SMBiosInformation>() {
        system.bios_vendor = text(bios.vendor());
        system.bios_version = text(bios.version());
        system.bios_date = text(bios.release_date());
    }
    if let Some(info) = data.first::<SMBiosSystemInformation>() {
        system.manufacturer = text(info.manufacturer());
        system.product = text(info.product_name());
        system.serial = serial(info.serial_number());
        system.uuid = match info.uuid() {
            // Bytes 0-7 are little-endian fields since SMBIOS 2.6 (section 7.2.1).
            Some(SystemUuidData::Uuid(uuid)) => uuid::Uuid::parse_str(&uuid.to_string()).ok(),
            _ => None,
        }
        .filter(|uuid| !is_filler_uuid(uuid));
    }
    system
}

fn board(data: &SMBiosData) -> Board {
    // Blades and multi-node boards list several; the first hosts the processors.
    let Some(board) = data.first::<SMBiosBaseboardInformation<'_>>() else { return Board::default() };
    Board {
        manufacturer: text(board.manufacturer()),
        product: text(board.product()),
        version: text(board.version()),
        serial: serial(board.serial_number()),
        asset_tag: text(board.asset_tag()),
    }
}

fn chassis(data: &SMBiosData) -> Board {
    let Some(chassis) = data.first::<SMBiosSystemChassisInformation<'_>>() else { return Board::default() };
    Board {
        manufacturer: text(chassis.manufacturer()),
        product: text(chassis.sku_number()),
        version: text(chassis.version()),
        serial: serial(chassis.serial_number()),
        asset_tag: text(chassis.asset_tag_number()),
    }
}

/// Section 7.44. The vendor is four characters of the TCG's registry: `IFX`, `STM`, `NTC`.
fn tpm(device: &SMBiosTpmDevice<'_>) -> Option<Tpm> {
    let (major, minor) = (device.major_spec_version()?, device.minor_spec_version()?);
    let vendor: String = (4..8).filter_map(|at| device.parts().get_field_byte(at)).map(char::from).collect();
    let vendor = vendor.trim_matches(|c: char| c == '\0' || c == ' ');
    let firmware = device.firmware_version_1().filter(|_| major == 2).map(|v| format!("{}.{}", v >> 16, v & 0xffff));
    matches!((major, minor), (1, 2) | (2, _)).then(|| Tpm {
        version: format!("{major}.{minor}"),
        vendor: Some(vendor.to_owned()).filter(|v| !v.is_empty() && v.bytes().all(|b| b.is_ascii_graphic())),
        firmware,
    })
}

/// Slots (section 7.10) and devices on the board (section 7.42) with the address of what they lead to.
fn slots(data: &SMBiosData) -> BTreeMap<String, String> {
    let mut slots = BTreeMap::new();
    let mut add = |name: SMBiosString, segment, bus, place| {
        let segment = match segment {
            Some(SegmentGroupNumber::SingleSegment) => 0,
            Some(SegmentGroupNumber::Number(n)) => n,
            _ => return,
        };
        let (Some(BusNumber::Number(bus)), Some(DeviceFunctionNumber::Number { device, function })) = (bus, place)
        else {
            return;
        };
        if let Some(name) = text(name) {
            slots.entry(format!("{segment:04x}:{bus:02x}:{device:02x}.{function}")).or_insert(name);
        }
    };
    for device in data.collect::<SMBiosOnboardDevicesExtendedInformation<'_>>() {
        let name = device.reference_designation();
        add(name, device.segment_group_number(), device.bus_number(), device.device_function_number());
    }
    for slot in data.collect::<SMBiosSystemSlot<'_>>() {
        let name = slot.slot_designation();
        add(name, slot.segment_group_number(), slot.bus_number(), slot.device_function_number());
    }
    slots
}

fn cpus(data: &SMBiosData) -> Vec<Cpu> {
    let populated = |cpu: &SMBiosProcessorInformation<'_>| cpu.status().is_some_and(|s| s.socket_populated());
    data.collect::<SMBiosProcessorInformation<'_>>()
        .iter()
        .filter(|cpu| populated(cpu))
        .map(|cpu| Cpu {
            socket: text(cpu.socket_designation()).unwrap_or_default(),
            model: text(cpu.processor_version()).unwrap_or_default(),
            cores: match (cpu.core_count(), cpu.core_count_2()) {
                (Some(CoreCount::SeeCoreCount2), Some(CoreCount2::Count(n))) => n,
                (Some(CoreCount::Count(n)), _) => n.into(),
                _ => 0,
            },
            threads: match (cpu.thread_count(), cpu.thread_count_2()) {
                (Some(ThreadCount::SeeThreadCount2), Some(ThreadCount2::Count(n))) => n,
                (Some(ThreadCount::Count(n)), _) => n.into(),
                _ => 0,
            },
            max_mhz: match cpu.max_speed() {
                Some(ProcessorSpeed::MHz(mhz)) => Some(mhz),
                _ => None,
            },
            microcode: None,
            virtualisation: false,
            ..Cpu::default()
        })
        .collect()
}

fn memory(data: &SMBiosData) -> Memory {
    let devices = data.collect::<SMBiosMemoryDevice<'_>>();
    let mut memory = Memory { slots: u16::try_from(devices.len()).unwrap_or(u16::MAX), ..Memory::default() };
    for device in &devices {
        match dimm(device) {
            Some(dimm) => memory.dimms.push(dimm),
            None => memory.empty.extend(text(device.device_locator())),
        }
    }
    memory
}

fn dimm(device: &SMBiosMemoryDevice<'_>) -> Option<Dimm> {
    let size_bytes = match device.size()? {
        MemorySize::Kilobytes(kib) => u64::from(kib) << 10,
        MemorySize::Megabytes(mib) => u64::from(mib) << 20,
        MemorySize::SeeExtendedSize => match device.extended_size()? {
            MemorySizeExtended::Megabytes(mib) => u64::from(mib) << 20,
            MemorySizeExtended::SeeSize => return None,
        },
        MemorySize::NotInstalled | MemorySize::Unknown => return None,
    };
    if size_bytes == 0 {
        return None;
    }
    let speed = |speed: Option<MemorySpeed>| match speed {
        Some(MemorySpeed::MTs(mts)) if mts > 0 => Some(mts),
        _ => None,
    };
    let rated_mts = speed(device.speed());
    Some(Dimm {
        slot: text(device.device_locator()).unwrap_or_default(),
        bank: text(device.bank_locator()),
        size_bytes,
        speed_mts: speed(device.configured_memory_speed()).or(rated_mts),
        rated_mts,
        manufacturer: text(device.manufacturer()).map(|code| maker(&code).map_or(code, str::to_owned)),
        part: text(device.part_number()),
        serial: serial(device.serial_number()),
    })
}

/// Firmware that does not know the maker of a DIMM writes the maker's number (JEDEC JEP106: bank and code with parity),
/// in either order, sometimes that of the register after it.
fn maker(code: &str) -> Option<&'static str> {
    let code = code.trim_start_matches("0x").get(..4)?;
    Some(match code.to_ascii_uppercase().as_str() {
        "00CE" | "CE00" | "80CE" | "CE80" => "Samsung",
        "00AD" | "AD00" | "80AD" | "AD80" => "SK Hynix",
        "002C" | "2C00" | "802C" | "2C80" => "Micron",
        "0198" | "9801" => "Kingston",
        _ => return None,
    })
}

fn serial(string: SMBiosString) -> Option<Serial> {
    Serial::parse(&text(string)?)
}

/// A string that says something. Runs of one character are fillers where they are long: `00` may be a version.
fn text(string: SMBiosString) -> Option<String> {
    let text: String = string.to_utf8_lossy()?.trim().chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect();
    let filler = is_filler(&text) || (text.len() >= 4 && is_run(&text));
    (!filler).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A structure: header (type, length, handle), formatted area, strings, and the empty string at the end.
    fn structure(kind: u8, formatted: &[u8], strings: &[&str]) -> Vec<u8> {
        let mut bytes = vec![kind, formatted.len() as u8 + 4, kind, 0];
        bytes.extend_from_slice(formatted);
        strings.iter().for_each(|s| {
            bytes.extend_from_slice(s.as_bytes());
            bytes.push(0);
        });
        bytes.extend_from_slice(if strings.is_empty() { &[0, 0] } else { &[0] });
        bytes
    }

    #[test]
    fn a_small_table() {
        let mut table = structure(
            1,
            &[&[1u8, 2, 0, 3][..], &[0x44, 0x33, 0x22, 0x11, 0x66, 0x55, 0x88, 0x77], &[9; 8], &[6]].concat(),
            &["Example", "Default string", "7XK2M13"],
        );
        table.extend(structure(127, &[], &[]));
        let system = parse(table).system;
        assert_eq!(system.manufacturer.as_deref(), Some("Example"));
        assert_eq!(system.product, None);
        assert_eq!(system.serial, Serial::parse("7XK2M13"));
        assert_eq!(system.uuid.unwrap().to_string(), "11223344-5566-7788-0909-090909090909");
    }

    fn fixture(name: &str) -> Vec<u8> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/smbios").join(name);
        // `dmidecode --dump-bin` puts the entry point into the first 32 bytes.
        std::fs::read(path).unwrap()[32..].to_vec()
    }

    #[test]
    fn a_dell_r740xd() {
        let tables = parse(fixture("dell_r740xd.bin"));
        assert_eq!(tables.system.product.as_deref(), Some("PowerEdge R740xd"));
        assert_eq!(tables.system.serial, Serial::parse("CSX5YM2"));
        assert_eq!(tables.board.product.as_deref(), Some("0RR8YK"));
        assert_eq!(tables.chassis.serial, Serial::parse("CSX5YM2"));
        let memory = &tables.memory;
        assert_eq!((memory.slots, memory.dimms.len(), memory.empty.len()), (24, 16, 8));
        assert_eq!(memory.empty[..2], ["A9", "A10"]);
        let dimm = &memory.dimms[0];
        assert_eq!((dimm.slot.as_str(), dimm.size_bytes), ("A1", 16 << 30));
        assert_eq!((dimm.speed_mts, dimm.rated_mts), (Some(2666), Some(2666)));
        assert_eq!((dimm.manufacturer.as_deref(), dimm.part.as_deref()), (Some("SK Hynix"), Some("HMA82GR7AFR8N-VK")));
        assert_eq!(tables.slots.get("0000:af:00.0").map(String::as_str), Some("PCIe Slot 4"));
        assert_eq!(tables.slots.get("0000:18:00.1").map(String::as_str), Some("Integrated NIC 2"));
        assert_eq!(tables.cpus.len(), 2);
        assert_eq!((tables.cpus[1].socket.as_str(), tables.cpus[1].cores, tables.cpus[1].threads), ("CPU2", 12, 24));
    }

    #[test]
    fn a_quanta_full_of_fillers() {
        let tables = parse(fixture("quanta_d51.bin"));
        assert_eq!(tables.system.serial, Serial::parse("QTFCJ05160195"));
        assert_eq!(tables.system.manufacturer.as_deref(), Some("Quanta Computer Inc"));
        assert_eq!(
            (tables.board.serial.as_ref().map(Serial::as_str), tables.board.asset_tag),
            (Some("QTF4J051400040"), None)
        );
        assert_eq!((tables.chassis.version, tables.chassis.asset_tag), (None, None));
        let memory = &tables.memory;
        assert_eq!((memory.slots, memory.dimms.len(), memory.empty.len()), (24, 16, 8));
        assert!(memory.empty.iter().all(|slot| slot.ends_with('2')), "{:?}", memory.empty);
        assert_eq!(memory.dimms[0].bank.as_deref(), Some("_Node0_Channel0_Dimm0"));
        assert_eq!(memory.dimms[0].manufacturer.as_deref(), Some("Samsung"));
        assert!(memory.dimms.iter().all(|d| d.serial.is_some() && d.part.as_deref() == Some("M393A2G40DB0-CPB")));
    }

    #[test]
    fn a_dell_r630_whose_names_were_taken_out() {
        let tables = parse(fixture("dell_r630.bin"));
        assert_eq!((tables.system.serial, tables.system.product), (Serial::parse("95SF082"), None));
        assert_eq!((tables.memory.dimms.len(), tables.memory.dimms[0].size_bytes), (16, 32 << 30));
    }

    #[test]
    fn a_tpm_and_an_uuid_that_thousands_have() {
        let fillers = [0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0, 7, 0, 8, 0, 9];
        let mut table = structure(1, &[&[0u8, 0, 0, 0][..], &fillers, &[6]].concat(), &[]);
        let tpm = [&b"IFX\0"[..], &[2, 0], &0x0007_0055u32.to_le_bytes(), &[0; 4], &[1], &[0; 12]].concat();
        table.extend(structure(43, &tpm, &["INFINEON"]));
        table.extend(structure(127, &[], &[]));
        let tables = parse(table);
        assert_eq!(tables.system.uuid, None);
        let tpm = tables.tpm.unwrap();
        assert_eq!(
            (tpm.version.as_str(), tpm.vendor.as_deref(), tpm.firmware.as_deref()),
            ("2.0", Some("IFX"), Some("7.85"))
        );
    }

    proptest! {
        #[test]
        fn no_table_stops_the_inventory(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            parse(bytes);
        }

        #[test]
        fn nor_does_a_real_one_with_bytes_changed(changes in proptest::collection::vec((0usize..4000, any::<u8>()), 1..30)) {
            let mut bytes = fixture("dell_r740xd.bin");
            changes.iter().for_each(|(at, byte)| bytes[*at] = *byte);
            parse(bytes);
        }
    }
}
