//! SMBIOS tables as the kernel exports them in `/sys/firmware/dmi/tables` (DSP0134: types 0, 1, 4, 16, 17).
//!
//! Tables come from firmware and are often wrong: fillers for names, counts of 0, sizes left out. What does not make
//! sense is left out here too, and a parser that gives up takes only the tables with it, not the inventory.

use std::path::Path;

use smbioslib::{
    CoreCount, CoreCount2, MemorySize, MemorySizeExtended, MemorySpeed, ProcessorSpeed, SMBiosData, SMBiosInformation,
    SMBiosMemoryDevice, SMBiosProcessorInformation, SMBiosString, SMBiosSystemInformation, SystemUuidData, ThreadCount,
    ThreadCount2,
};

use crate::machine::{Cpu, Dimm, Memory, Serial, System};

/// The largest table that is looked at: a fully fitted four-socket server needs about 16 KiB.
const TABLE_MAX: usize = 1 << 20;

#[derive(Debug, Default, PartialEq)]
pub struct Tables {
    pub system: System,
    pub cpus: Vec<Cpu>,
    pub memory: Memory,
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
        Tables { system: system(&data), cpus: cpus(&data), memory: memory(&data) }
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
        system.serial = text(info.serial_number()).and_then(|s| Serial::parse(&s));
        system.uuid = match info.uuid() {
            // Bytes 0-7 are little-endian fields since SMBIOS 2.6 (section 7.2.1).
            Some(SystemUuidData::Uuid(uuid)) => uuid::Uuid::parse_str(&uuid.to_string()).ok(),
            _ => None,
        };
    }
    system
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
    let slots = u16::try_from(devices.len()).unwrap_or(u16::MAX);
    let dimms = devices.iter().filter_map(dimm).collect();
    Memory { dimms, slots, ..Memory::default() }
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
    Some(Dimm {
        slot: text(device.device_locator()).unwrap_or_default(),
        size_bytes,
        speed_mts: match device.configured_memory_speed().or(device.speed()) {
            Some(MemorySpeed::MTs(mts)) => Some(mts),
            _ => None,
        },
        manufacturer: text(device.manufacturer()),
        rated_mts: match device.speed() {
            Some(MemorySpeed::MTs(mts)) => Some(mts),
            _ => None,
        },
        part: text(device.part_number()),
        serial: text(device.serial_number()).and_then(|s| Serial::parse(&s)),
    })
}

/// A string that says something. The list of fillers is that for serial numbers; short ones (`00`, `1.1`) may be real
/// versions and are kept.
fn text(string: SMBiosString) -> Option<String> {
    let text = string.to_utf8_lossy()?.trim().to_owned();
    let filler = (4..=Serial::MAX).contains(&text.len()) && text.is_ascii() && Serial::parse(&text).is_none();
    (!text.is_empty() && !filler).then_some(text)
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

    #[test]
    fn tables_of_real_servers() {
        let folder = Path::new("/work/shared/data/ipmi");
        for (file, serial) in [
            ("dell_r630_smbios.bin", "95SF082"),
            ("dell_r740xd_smbios.bin", "CSX5YM2"),
            ("quanta_d51_smbios.bin", "QTFCJ05160195"),
        ] {
            let Ok(bytes) = std::fs::read(folder.join(file)) else {
                eprintln!("skipped: {file} is not here");
                continue;
            };
            // `dmidecode --dump-bin` puts the entry point into the first 32 bytes.
            let tables = parse(bytes[32..].to_vec());
            assert_eq!(tables.system.serial, Serial::parse(serial), "{file}: {:?}", tables.system);
            assert!(
                tables.system.uuid.is_some() && tables.system.bios_version.is_some(),
                "{file}: {:?}",
                tables.system
            );
            assert_eq!(tables.cpus.len(), 2, "{file}: {:?}", tables.cpus);
            assert!(tables.cpus.iter().all(|c| c.cores > 0 && c.threads >= c.cores), "{file}: {:?}", tables.cpus);
            assert!(!tables.memory.dimms.is_empty() && tables.memory.slots as usize >= tables.memory.dimms.len());
            assert!(tables.memory.dimms.iter().all(|d| d.size_bytes >= 1 << 30), "{file}: {:?}", tables.memory);
        }
    }

    proptest! {
        #[test]
        fn no_table_stops_the_inventory(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            parse(bytes);
        }
    }
}
