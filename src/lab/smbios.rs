//! SMBIOS tables of a real server for a machine of the rack: what `dmidecode --dump-bin` wrote of it, with the lab's serial
//! number and UUID in the place of its own, so that two machines may present the same server and each is on the list.
//!
//! QEMU takes raw structures with `-smbios file=`, one in each file: it counts files, and Linux stops where the count ends.
//! Types that are given so it does not make up itself. It insists on as many processors (type 4) as `-smp` has sockets.

use std::fs;
use std::path::PathBuf;

use super::spec::Machine;
use crate::error::{Error, Kind, OrFail, Result};

/// `dmidecode --dump-bin` writes the entry point, padded to this, before the tables.
const ENTRY_POINT: usize = 32;
const SYSTEM: u8 = 1;
const PROCESSOR: u8 = 4;
const END: u8 = 127;

/// One structure of DSP0134 section 6.1: header and formatted area, then its strings.
#[derive(Debug, Clone, PartialEq)]
struct Structure {
    formatted: Vec<u8>,
    strings: Vec<Vec<u8>>,
}

impl Structure {
    fn kind(&self) -> u8 {
        self.formatted.first().copied().unwrap_or(END)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.formatted.clone();
        for string in &self.strings {
            bytes.extend_from_slice(string);
            bytes.push(0);
        }
        bytes.push(0);
        if self.strings.is_empty() {
            bytes.push(0);
        }
        bytes
    }

    /// Another text for the string whose number stands at `at`.
    fn set_string(&mut self, at: usize, text: &str) {
        let Some(number) = self.formatted.get_mut(at) else { return };
        match usize::from(*number).checked_sub(1).and_then(|n| self.strings.get_mut(n)) {
            Some(string) => *string = text.as_bytes().to_vec(),
            None => {
                self.strings.push(text.as_bytes().to_vec());
                *number = self.strings.len() as u8;
            }
        }
    }
}

/// Up to the end-of-table structure, which QEMU writes itself.
fn split(dump: &[u8]) -> Option<Vec<Structure>> {
    let mut rest = dump.strip_prefix(b"_SM").map_or(Some(dump), |_| dump.get(ENTRY_POINT..))?;
    let mut structures = Vec::new();
    while let [kind, length, ..] = *rest {
        if kind == END {
            return Some(structures);
        }
        let formatted = rest.get(..usize::from(length)).filter(|f| f.len() >= 4)?.to_vec();
        rest = rest.get(usize::from(length)..)?;
        let mut strings = Vec::new();
        while *rest.first()? != 0 {
            let end = rest.iter().position(|b| *b == 0)?;
            strings.push(rest.get(..end)?.to_vec());
            rest = rest.get(end + 1..)?;
        }
        // The empty string at the end; without any strings there are two zeros.
        rest = rest.get(if strings.is_empty() { 2 } else { 1 }..)?;
        structures.push(Structure { formatted, strings });
    }
    (!structures.is_empty()).then_some(structures)
}

fn folder(machine: &Machine) -> PathBuf {
    machine.dir.join("smbios")
}

/// Writes the structures for the machine, if it presents a real server.
pub fn write(machine: &Machine) -> Result<()> {
    let Some(source) = &machine.spec.smbios else { return Ok(()) };
    let shown = source.display();
    let dump = fs::read(source).or_fail(Kind::Input, "lab.smbios", || format!("cannot read {shown}"))?;
    let mut structures = split(&dump).ok_or_else(|| {
        Error::input("lab.smbios", format!("{shown} holds no SMBIOS tables"))
            .hint("make it on the server: dmidecode --dump-bin FILE")
    })?;
    // The fields of type 1 (section 7.2): serial number at 7, UUID at 8.
    for system in structures.iter_mut().filter(|s| s.kind() == SYSTEM) {
        system.set_string(7, &machine.serial());
        if let Some(uuid) = system.formatted.get_mut(8..24) {
            uuid.copy_from_slice(&machine.uuid().to_bytes_le());
        }
    }
    let folder = folder(machine);
    let failed = || format!("cannot write to {}", folder.display());
    fs::create_dir_all(&folder).or_fail(Kind::Config, "lab.smbios", failed)?;
    for (number, structure) in structures.iter().enumerate() {
        let file = folder.join(format!("{number:03}-{}", structure.kind()));
        fs::write(file, structure.bytes()).or_fail(Kind::Config, "lab.smbios", failed)?;
    }
    Ok(())
}

/// What was written, in the order of the server's table, and how many processors it has.
pub fn files(machine: &Machine) -> Option<(Vec<PathBuf>, usize)> {
    machine.spec.smbios.as_ref()?;
    let entries = fs::read_dir(folder(machine)).ok()?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    files.sort();
    let processor = format!("-{PROCESSOR}");
    let processors = files.iter().filter(|f| f.to_string_lossy().ends_with(&processor)).count();
    Some((files, processors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::inventory::smbios as agent;
    use crate::lab::qmp::Qmp;
    use crate::lab::spec::{BmcKind, Listed, MachineSpec};
    use crate::lab::vm;
    use crate::machine::{Firmware, Role, Serial};
    use serde_json::json;
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/smbios").join(name)
    }

    fn machine(dir: &Path, dump: &str) -> Machine {
        let spec = MachineSpec {
            role: Role::Kvm.into(),
            firmware: Firmware::Bios,
            memory_bytes: 512 << 20,
            disks: vec![],
            bmc: BmcKind::Redfish,
            listed: Listed::Right,
            smbios: Some(fixture(dump)),
        };
        Machine { number: 7, spec, dir: dir.to_owned(), run: dir.to_owned() }
    }

    #[test]
    fn a_table_is_split_and_put_together_again() {
        for name in ["dell_r630.bin", "dell_r740xd.bin", "quanta_d51.bin"] {
            let dump = fs::read(fixture(name)).unwrap();
            let structures = split(&dump).unwrap();
            let again: Vec<u8> = structures.iter().flat_map(Structure::bytes).collect();
            assert_eq!(dump[ENTRY_POINT..ENTRY_POINT + again.len()], again, "{name}");
            assert_eq!(structures.iter().filter(|s| s.kind() == PROCESSOR).count(), 2, "{name}");
        }
        for broken in [&b""[..], b"_SM_", &[1, 27, 0], &[1, 2, 0, 0, 0, 0], &[1, 4, 0, 0, b'x']] {
            assert_eq!(split(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn what_is_no_dump_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut machine = machine(dir.path(), "quanta_d51.bin");
        machine.spec.smbios = Some(fixture("README"));
        assert_eq!(write(&machine).unwrap_err().code(), "lab.smbios");
    }

    /// The memory of a machine that QEMU started with the lab's own arguments, as its firmware has left it.
    fn presented(machine: &Machine) -> Vec<u8> {
        let all: Vec<String> =
            vm::arguments(machine, &[]).into_iter().map(|a| a.to_string_lossy().into_owned()).collect();
        let kept =
            all.chunks(2).filter(|pair| matches!(pair[0].as_str(), "-smbios" | "-smp" | "-M" | "-cpu" | "-accel"));
        let socket = machine.run.join("qmp.sock");
        let mut qemu = Command::new(vm::QEMU)
            .args(kept.flatten())
            .args(["-nodefaults", "-display", "none", "-m", "64M", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let give_up = Instant::now() + Duration::from_secs(60);
        let table = loop {
            assert!(Instant::now() < give_up, "the firmware did not write the tables");
            assert!(qemu.try_wait().unwrap().is_none(), "QEMU did not take the arguments");
            std::thread::sleep(Duration::from_millis(200));
            let Ok(mut qmp) = Qmp::connect(&socket) else { continue };
            let mut memory = |at: u32, size: u32| {
                let file = machine.run.join("memory");
                let arguments = json!({ "val": at, "size": size, "filename": file });
                qmp.command("pmemsave", arguments).map(|_| fs::read(&file).unwrap()).unwrap_or_default()
            };
            // The 2.1 entry point (section 5.2.1): length of the table at 16h, its address at 18h.
            let low = memory(0xf0000, 0x10000);
            let Some(entry) = low.chunks(16).position(|c| c.starts_with(b"_SM_")).map(|n| &low[16 * n..]) else {
                continue;
            };
            let length = u16::from_le_bytes([entry[0x16], entry[0x17]]);
            let address = u32::from_le_bytes([entry[0x18], entry[0x19], entry[0x1a], entry[0x1b]]);
            break memory(address, length.into());
        };
        qemu.kill().unwrap();
        qemu.wait().unwrap();
        table
    }

    #[test]
    fn the_agent_sees_the_server_with_the_labs_serial_number() {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(dir.path(), "dell_r740xd.bin");
        write(&machine).unwrap();
        let tables = agent::parse(presented(&machine));
        assert_eq!(tables.system.product.as_deref(), Some("PowerEdge R740xd"));
        assert_eq!(tables.system.serial, Serial::parse(&machine.serial()));
        assert_eq!(tables.system.uuid, Some(machine.uuid()));
        assert_eq!((tables.memory.slots, tables.memory.dimms.len()), (24, 16));
        assert_eq!(tables.cpus.len(), 2);
        assert_eq!(tables.board.product.as_deref(), Some("0RR8YK"));
    }
}
