//! What the kernel has said that a good machine does not make it say: machine checks, memory errors, PCI Express errors,
//! drives that do not answer, heat, links that come and go.
//!
//! The messages are those of `/dev/kmsg` (Documentation/ABI/testing/dev-kmsg). The patterns are pure and were written from
//! the kernel's sources and from messages of real machines, of which the tests have one for each.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::machine::{Concern, Memory, MemoryErrors};

use super::{names, value};

/// A record is at most 8 KiB (`CONSOLE_EXT_LOG_MAX`), and no kernel keeps this many.
const RECORD_MAX: usize = 8192;
const RECORDS_MAX: usize = 200_000;
/// A message is cut here.
const MESSAGE_MAX: usize = 240;
/// A link goes down once or twice when its card is set up.
const FLAPS: u32 = 3;

/// All messages of the kernel itself since it started. The error is a sentence.
pub fn messages(dev: &Path) -> Result<Vec<String>, String> {
    let path = dev.join("kmsg");
    let failed = |e: std::io::Error| format!("the kernel's messages cannot be read: {e}");
    let flags = OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path).map_err(failed)?;
    let (mut record, mut messages) = (vec![0; RECORD_MAX], Vec::new());
    while messages.len() < RECORDS_MAX {
        match file.read(&mut record) {
            Ok(0) => break,
            Ok(n) => messages.extend(message(&String::from_utf8_lossy(&record[..n]))),
            Err(e) if e.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => break,
            // It was overwritten meanwhile; the next read goes on behind it.
            Err(e) if e.raw_os_error() == Some(Errno::PIPE.raw_os_error()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(messages)
}

/// `6,339,5140900,-;message`, where the first number is level and facility: what programs wrote has another facility
/// than 0.
fn message(record: &str) -> Option<String> {
    let (head, rest) = record.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    (priority >> 3 == 0).then(|| rest.lines().next().unwrap_or_default().to_owned())
}

/// One for each kind, in the order of the alphabet.
pub fn concerns<'a>(messages: impl IntoIterator<Item = &'a str>) -> Vec<Concern> {
    let mut kinds: BTreeMap<&str, Concern> = BTreeMap::new();
    let mut downs: BTreeMap<String, (u32, &str)> = BTreeMap::new();
    let mut add = |kind: &'static str, text: &str, count: u32| {
        let message = || text.chars().filter(|c| !c.is_control()).take(MESSAGE_MAX).collect();
        let concern = kinds.entry(kind).or_insert_with(|| Concern { kind: kind.into(), message: message(), count: 0 });
        concern.count = concern.count.saturating_add(count);
    };
    for text in messages {
        if let Some(kind) = kind(text) {
            add(kind, text, 1);
        } else if let Some(card) = link_down(text) {
            downs.entry(card.to_owned()).or_insert((0, text)).0 += 1;
        }
    }
    for (count, text) in downs.into_values().filter(|(count, _)| *count >= FLAPS) {
        add("link", text, count);
    }
    kinds.into_values().collect()
}

/// The more special ones come first: a kernel that is too hot says so as `mce:`.
fn kind(text: &str) -> Option<&'static str> {
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let starts = |prefix: &str| text.starts_with(prefix);
    if has(&["temperature above threshold", "critical temperature reached", "Critical temperature reached"]) {
        return Some("thermal");
    }
    if has(&["AER: "]) && has(&["error received", "Corrected error", "Uncorrected", "Fatal error", "error message"])
        || has(&["PCIe Bus Error: severity="])
    {
        return Some("aer");
    }
    if starts("EDAC ") && has(&[" CE ", " UE ", "CE memory", "UE memory"]) || starts("Memory failure: ") {
        return Some("edac");
    }
    if has(&["[Hardware Error]", "Machine check events logged", "Machine Check Exception"]) {
        return Some("mce");
    }
    if starts("ata")
        && has(&["exception Emask", "failed command", "SError: {", "limiting SATA link speed", "hard resetting"])
    {
        return Some("ata");
    }
    if starts("nvme ")
        && has(&["timeout, ", "controller is down", "Device not ready", "Removing after probe failure", "frozen state"])
    {
        return Some("nvme");
    }
    if disk_error(text) {
        return Some("scsi");
    }
    if has(&["NETDEV WATCHDOG", "Detected Tx Unit Hang", "Detected Hardware Unit Hang", "transmit queue"]) {
        return Some("link");
    }
    if has(&[
        "DMAR: [DMA Read",
        "DMAR: [DMA Write",
        "AMD-Vi: Event logged [IO_PAGE_FAULT",
        "DMAR: DRHD: handling fault",
    ]) {
        return Some("pci");
    }
    has(&["[Firmware Bug]"]).then_some("firmware")
}

/// Drives on SCSI and the block layer. Optical drives and loop devices say such things without anything being broken.
fn disk_error(text: &str) -> bool {
    let of = |words: &str| text.split_once(words).map(|(_, rest)| rest.trim_start());
    let device = of("I/O error, dev ")
        .or_else(|| of("critical medium error, dev "))
        .or_else(|| of("critical target error, dev "));
    if let Some(device) = device {
        return !["sr", "fd", "loop", "ram", "zram"].iter().any(|other| device.starts_with(other));
    }
    text.starts_with("sd ")
        && ["Sense Key : Medium Error", "Sense Key : Hardware Error"].iter().any(|w| text.contains(w))
}

/// The card of a message that a link was lost, as the message names it.
fn link_down(text: &str) -> Option<&str> {
    let phrases = ["NIC Link is Down", "Link is Down", "Link is down", ": Link down", ": link down"];
    let at = phrases.iter().find_map(|phrase| text.find(phrase))?;
    // SATA says the same of ports that are empty.
    let card = text.get(..at)?.trim_end_matches([':', ' ']);
    (!card.is_empty() && !card.starts_with("ata")).then_some(card)
}

/// Counters of EDAC (Documentation/admin-guide/RAS). Nothing changes where no controller is known.
pub fn memory_errors(sys: &Path, memory: &mut Memory) {
    let controllers = sys.join("devices/system/edac/mc");
    for controller in names(&controllers).unwrap_or_default().iter().filter(|name| is_numbered(name, "mc")) {
        let folder = controllers.join(controller);
        let count = |path: &str| value(&folder.join(path)).and_then(|v| v.parse::<u64>().ok());
        let (Some(corrected), Some(uncorrected)) = (count("ce_count"), count("ue_count")) else { continue };
        let sum = |sum: Option<u64>, more| Some(sum.unwrap_or(0).saturating_add(more));
        memory.corrected_errors = sum(memory.corrected_errors, corrected);
        memory.uncorrected_errors = sum(memory.uncorrected_errors, uncorrected);
        let dimms = names(&folder).unwrap_or_default();
        let known = memory.errors.len();
        for dimm in dimms.iter().filter(|name| is_numbered(name, "dimm") || is_numbered(name, "rank")) {
            let corrected = count(&format!("{dimm}/dimm_ce_count")).unwrap_or(0);
            let uncorrected = count(&format!("{dimm}/dimm_ue_count")).unwrap_or(0);
            if corrected > 0 || uncorrected > 0 {
                let label =
                    value(&folder.join(dimm).join("dimm_label")).unwrap_or_else(|| format!("{controller} {dimm}"));
                memory.errors.push(MemoryErrors { label, corrected, uncorrected });
            }
        }
        if memory.errors.len() == known && (corrected > 0 || uncorrected > 0) {
            memory.errors.push(MemoryErrors { label: controller.clone(), corrected, uncorrected });
        }
    }
}

fn is_numbered(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kinds(text: &str) -> Vec<(String, u32)> {
        concerns(text.lines()).into_iter().map(|c| (c.kind, c.count)).collect()
    }

    #[test]
    fn messages_of_machines_that_had_something() {
        for (expected, text) in [
            ("mce", "mce: [Hardware Error]: Machine check events logged"),
            ("mce", "mce: [Hardware Error]: CPU 8: Machine Check: 0 Bank 7: 8c00004000010092"),
            ("mce", "{1}[Hardware Error]: Hardware error from APEI Generic Hardware Error Source: 1"),
            (
                "edac",
                "EDAC MC0: 1 CE memory read error on CPU_SrcID#0_MC#0_Chan#1_DIMM#0 (channel:1 slot:0 page:0x41d3f1 \
                 offset:0xd40 grain:32 syndrome:0x0 -  err_code:0x0101:0x0091)",
            ),
            ("edac", "EDAC MC1: 1 UE Multi-bit ECC Error on unknown memory (csrow:2 channel:0 page:0x0 offset:0x0)"),
            ("edac", "Memory failure: 0x1c8a3f: recovery action for clean LRU page: Recovered"),
            ("aer", "pcieport 0000:00:1c.5: AER: Corrected error received: 0000:03:00.0"),
            ("aer", "pcieport 0000:3a:00.0: PCIe Bus Error: severity=Corrected, type=Physical Layer, (Receiver ID)"),
            ("aer", "nvme 0000:01:00.0: PCIe Bus Error: severity=Uncorrected (Non-Fatal), type=Transaction Layer"),
            ("thermal", "mce: CPU3: Core temperature above threshold, cpu clock throttled (total events = 1)"),
            ("thermal", "CPU12: Package temperature above threshold, cpu clock throttled (total events = 8921)"),
            ("ata", "ata3.00: exception Emask 0x0 SAct 0x7ff SErr 0x0 action 0x6 frozen"),
            ("ata", "ata3.00: failed command: READ FPDMA QUEUED"),
            ("ata", "ata1: limiting SATA link speed to 3.0 Gbps"),
            ("nvme", "nvme nvme0: I/O 26 QID 3 timeout, aborting"),
            ("nvme", "nvme nvme1: controller is down; will reset: CSTS=0xffffffff, PCI_STATUS=0x10"),
            ("scsi", "blk_update_request: I/O error, dev sdb, sector 3907028992 op 0x0:(READ) flags 0x80700"),
            ("scsi", "I/O error, dev sdc, sector 2048 op 0x1:(WRITE) flags 0x0 phys_seg 1 prio class 2"),
            ("scsi", "sd 0:2:1:0: [sdb] tag#18 Sense Key : Medium Error [current] "),
            ("link", "NETDEV WATCHDOG: eno2 (igb): transmit queue 3 timed out"),
            ("pci", "DMAR: [DMA Read] Request device [3b:00.0] fault addr 79a5f000 [fault reason 06]"),
            ("firmware", "[Firmware Bug]: the BIOS has corrupted hw-PMU resources (MSR 38d is 330)"),
        ] {
            assert_eq!(kinds(text), [(expected.to_owned(), 1)], "{text}");
        }
    }

    #[test]
    fn messages_of_every_good_machine() {
        for text in [
            "mce: CPU supports 20 MCE banks",
            "mce: CPU0: Thermal monitoring enabled (TM1)",
            "EDAC MC: Ver: 3.0.0",
            "EDAC MC0: Giving out device to module skx_edac controller Skylake Socket#0 IMC#0: DEV 0000:3a:0a.0 (INTERRUPT)",
            "pcieport 0000:00:1c.0: AER: enabled with IRQ 122",
            "acpi PNP0A08:00: _OSC: OS now controls [PCIeHotplug PME AER PCIeCapability LTR]",
            "CPU3: Core temperature/speed normal",
            "ata5: SATA link down (SStatus 0 SControl 300)",
            "ata1: SATA link up 6.0 Gbps (SStatus 133 SControl 300)",
            "ata1.00: configured for UDMA/133",
            "nvme nvme0: missing or invalid SUBNQN field.",
            "nvme nvme0: 8/0/0 default/read/poll queues",
            "nvme nvme0: Shutdown timeout set to 10 seconds",
            "I/O error, dev fd0, sector 0 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2",
            "blk_update_request: I/O error, dev sr0, sector 0 op 0x0:(READ)",
            "sd 0:0:0:0: [sda] Attached SCSI disk",
            "HEST: Table parsing has been initialized.",
            "igb 0000:03:00.0 eno1: igb: eno1 NIC Link is Up 1000 Mbps Full Duplex, Flow Control: RX/TX",
            "igb 0000:03:00.0 eno1: igb: eno1 NIC Link is Down",
        ] {
            assert_eq!(kinds(text), [], "{text}");
        }
    }

    #[test]
    fn a_link_that_comes_and_goes() {
        let down = "ixgbe 0000:18:00.1 eno2: NIC Link is Down";
        let other = "mlx5_core 0000:3b:00.0 ens1f0np0: Link down";
        assert_eq!(kinds(&[down, other, down, other].join("\n")), []);
        let found = concerns([down, other, down, down, other]);
        assert_eq!((found.len(), found[0].kind.as_str(), found[0].count), (1, "link", 3));
        assert!(found[0].message.contains("eno2"));
    }

    #[test]
    fn what_programs_write_is_not_the_kernels() {
        assert_eq!(message("4,339,5140900,-;ata3.00: failed\n SUBSYSTEM=scsi\n").as_deref(), Some("ata3.00: failed"));
        assert_eq!(message("12,340,5140901,-;rackline: ata3.00: failed command"), None);
        assert_eq!(message("garbage"), None);
    }

    #[test]
    fn memory_errors_by_dimm() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join("devices/system/edac/mc").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{text}\n")).unwrap();
        };
        let mut memory = Memory::default();
        memory_errors(root.path(), &mut memory);
        assert_eq!(memory.corrected_errors, None);
        for (path, text) in [
            ("mc0/ce_count", "14"),
            ("mc0/ue_count", "0"),
            ("mc0/dimm0/dimm_label", "CPU_SrcID#0_MC#0_Chan#0_DIMM#0"),
            ("mc0/dimm0/dimm_ce_count", "14"),
            ("mc0/dimm1/dimm_ce_count", "0"),
            ("mc1/ce_count", "0"),
            ("mc1/ue_count", "2"),
        ] {
            put(path, text);
        }
        memory_errors(root.path(), &mut memory);
        assert_eq!((memory.corrected_errors, memory.uncorrected_errors), (Some(14), Some(2)));
        assert_eq!(
            memory.errors,
            [
                MemoryErrors { label: "CPU_SrcID#0_MC#0_Chan#0_DIMM#0".into(), corrected: 14, uncorrected: 0 },
                MemoryErrors { label: "mc1".into(), corrected: 0, uncorrected: 2 },
            ]
        );
    }

    proptest! {
        #[test]
        fn no_message_stops_the_inventory(texts in proptest::collection::vec(".{0,80}", 0..20)) {
            texts.iter().for_each(|text| { message(text); });
            concerns(texts.iter().map(String::as_str));
        }
    }
}
