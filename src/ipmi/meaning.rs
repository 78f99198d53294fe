//! What the numbers of sensors, states and events mean (tables 42-1 to 42-3 and 43-13), in words for people.
//!
//! A state is the same whether a sensor shows it now or the log says that it began, so readings and events share these
//! tables, which also say how bad each state is.

use super::sensor::Level;

type State = (Level, &'static str);

/// Shorthands for the tables below.
const I: Level = Level::Ok;
const W: Level = Level::Warning;
const C: Level = Level::Critical;
const F: Level = Level::Fatal;

/// The states that a sensor shows, one bit each (table 35-15), with the worst level among them.
pub fn states(kind: u8, reading_type: u8, bits: u16) -> (Level, Vec<String>) {
    let mut worst = Level::Ok;
    let mut found = Vec::new();
    for offset in (0..15).filter(|n| bits >> n & 1 == 1) {
        match state(kind, reading_type, offset) {
            Some((level, text)) => {
                worst = worst.max(level);
                found.push(text.to_owned());
            }
            None => found.push(format!("state {offset}")),
        }
    }
    (worst, found)
}

/// Thresholds (table 42-2, type 01h): how bad, which limit, what happened.
pub fn threshold(offset: u8) -> Option<(Level, &'static str, &'static str)> {
    const FELL: &str = "fell below";
    const ROSE: &str = "rose above";
    Some(match offset {
        0x0 => (W, "lower warning", FELL),
        0x1 => (I, "lower warning", ROSE),
        0x2 => (C, "lower critical", FELL),
        0x3 => (W, "lower critical", ROSE),
        0x4 => (F, "lower fatal", FELL),
        0x5 => (C, "lower fatal", ROSE),
        0x6 => (I, "upper warning", FELL),
        0x7 => (W, "upper warning", ROSE),
        0x8 => (W, "upper critical", FELL),
        0x9 => (C, "upper critical", ROSE),
        0xa => (C, "upper fatal", FELL),
        0xb => (F, "upper fatal", ROSE),
        _ => return None,
    })
}

/// Event/reading type of states that the sensor type defines.
pub const SPECIFIC: u8 = 0x6f;

pub fn state(kind: u8, reading_type: u8, offset: u8) -> Option<State> {
    let table = if reading_type == SPECIFIC { specific(kind) } else { generic(reading_type) };
    table.get(usize::from(offset)).copied().filter(|(_, text)| !text.is_empty())
}

/// Table 42-2.
fn generic(reading_type: u8) -> &'static [State] {
    match reading_type {
        0x02 => &[(I, "idle"), (I, "active"), (I, "busy")],
        0x03 => &[(I, "not asserted"), (I, "asserted")],
        0x04 => &[(I, "no failure foreseen"), (W, "failure foreseen")],
        0x05 => &[(I, "within its limit"), (W, "beyond its limit")],
        0x06 => &[(I, "as fast as it should be"), (W, "slower than it should be")],
        0x07 => &[
            (I, "OK"),
            (W, "turned bad enough for a warning"),
            (C, "turned critical"),
            (F, "turned fatal"),
            (W, "eased to a warning"),
            (C, "eased to critical"),
            (F, "fatal"),
            (W, "to be watched"),
            (I, "for information"),
        ],
        0x08 => &[(W, "absent"), (I, "present")],
        0x09 => &[(I, "disabled"), (I, "enabled")],
        0x0a => &[
            (I, "running"),
            (I, "in test"),
            (W, "powered off"),
            (I, "on line"),
            (W, "off line"),
            (W, "off duty"),
            (W, "degraded"),
            (I, "saving power"),
            (C, "installation error"),
        ],
        0x0b => &[
            (I, "fully redundant"),
            (C, "redundancy lost"),
            (W, "redundancy degraded"),
            (C, "not redundant: lost it, what is left is enough"),
            (W, "not redundant: what there is is enough again"),
            (C, "not redundant: what is left is not enough"),
            (W, "redundancy degraded, was full"),
            (W, "redundancy degraded, was none"),
        ],
        0x0c => &[(I, "power state D0"), (I, "power state D1"), (I, "power state D2"), (I, "power state D3")],
        _ => &[],
    }
}

/// Table 42-3.
fn specific(kind: u8) -> &'static [State] {
    match kind {
        0x05..=0x0d => hardware(kind),
        0x0f..=0x13 => system(kind),
        0x14 => &[
            (I, "power button pressed"),
            (I, "sleep button pressed"),
            (I, "reset button pressed"),
            (W, "latch open"),
            (W, "service asked for"),
        ],
        0x19 => &[(C, "soft power control failed"), (C, "thermal trip")],
        0x1b => &[(I, "connected"), (C, "wrong cable, or connected the wrong way")],
        0x1d..=0x20 => boot(kind),
        0x21 => &[
            (C, "fault"),
            (I, "identify light on"),
            (I, "device installed"),
            (I, "ready for a device"),
            (I, "device may be removed"),
            (I, "slot is powered off"),
            (I, "device asks to be removed"),
            (W, "interlock open"),
            (W, "slot is disabled"),
            (I, "slot holds a spare"),
        ],
        0x22 => &[
            (I, "working (S0)"),
            (I, "sleeping (S1)"),
            (I, "sleeping (S2)"),
            (I, "sleeping (S3)"),
            (I, "hibernating (S4)"),
            (I, "soft off (S5)"),
            (I, "soft off (S4 or S5)"),
            (I, "mechanically off (G3)"),
            (I, "sleeping"),
            (I, "sleeping (G1)"),
            (W, "switched off by the override of the power button"),
            (I, "on"),
            (I, "off"),
            (I, ""),
            (I, "power state unknown"),
        ],
        0x23 => &[
            (W, "the watchdog expired"),
            (C, "the watchdog reset the machine"),
            (C, "the watchdog powered the machine off"),
            (C, "the watchdog power-cycled the machine"),
            (I, ""),
            (I, ""),
            (I, ""),
            (I, ""),
            (W, "the watchdog is about to expire"),
        ],
        0x24..=0x2c => management(kind),
        _ => &[],
    }
}

fn hardware(kind: u8) -> &'static [State] {
    match kind {
        0x05 => &[
            (W, "chassis opened"),
            (W, "drive bay opened"),
            (W, "I/O card area opened"),
            (W, "processor area opened"),
            (W, "unplugged from the network"),
            (W, "docked or undocked without authorization"),
            (W, "fan area opened"),
        ],
        0x06 => &[
            (W, "secure mode violated: a button of the locked front panel was pressed"),
            (W, "wrong user password before boot"),
            (W, "wrong set-up password before boot"),
            (W, "wrong network boot password"),
            (W, "wrong password before boot"),
            (W, "wrong password for the management network"),
        ],
        0x07 => &[
            (F, "internal error (IERR)"),
            (F, "shut down by heat (thermal trip)"),
            (C, "self-test failed (FRB1)"),
            (C, "hung in the power-on self-test (FRB2)"),
            (C, "did not start (FRB3)"),
            (C, "configuration error: the processors do not fit together"),
            (F, "uncorrectable error, reported by the BIOS"),
            (I, "present"),
            (W, "disabled"),
            (I, "terminator present"),
            (W, "throttled"),
            (F, "uncorrectable machine check"),
            (W, "correctable machine check"),
        ],
        0x08 => &[
            (I, "present"),
            (C, "failed"),
            (W, "will fail soon"),
            (C, "power input lost"),
            (C, "power input lost or out of range"),
            (W, "power input out of range"),
            (C, "configuration error"),
            (I, "on standby"),
        ],
        0x09 => &[
            (I, "powered off"),
            (I, "power cycle"),
            (C, "powered off by the 240 VA protection"),
            (W, "powered off by an interlock"),
            (C, "power input lost"),
            (C, "soft power control failed: the machine does not follow power commands"),
            (C, "failed"),
            (W, "will fail soon"),
        ],
        0x0c => &[
            (W, "correctable memory error"),
            (F, "uncorrectable memory error"),
            (C, "memory parity error"),
            (C, "memory scrubbing failed: stuck bit"),
            (C, "memory module disabled"),
            (C, "too many correctable memory errors, no more are logged"),
            (I, "present"),
            (C, "memory configuration error"),
            (I, "spare"),
            (W, "throttled"),
            (F, "too hot"),
        ],
        0x0d => &[
            (I, "drive present"),
            (C, "drive failed"),
            (W, "drive will fail soon"),
            (I, "hot spare"),
            (I, "consistency check running"),
            (C, "in a critical array"),
            (C, "in a failed array"),
            (W, "rebuilding"),
            (C, "rebuild stopped"),
        ],
        _ => &[],
    }
}

fn system(kind: u8) -> &'static [State] {
    match kind {
        0x0f => &[(C, "firmware error in the power-on self-test"), (C, "firmware hung"), (I, "firmware progress")],
        0x10 => &[
            (W, "logging of correctable memory errors is off"),
            (W, "logging of one kind of events is off"),
            (I, "log cleared"),
            (W, "all logging is off"),
            (W, "log full"),
            (W, "log almost full"),
            (W, "logging of correctable machine checks is off"),
        ],
        0x11 => &[
            (C, "the BIOS watchdog reset the machine"),
            (C, "the OS watchdog reset the machine"),
            (C, "the OS watchdog shut the machine down"),
            (C, "the OS watchdog powered the machine off"),
            (C, "the OS watchdog power-cycled the machine"),
            (C, "the OS watchdog made an NMI"),
            (W, "the OS watchdog expired"),
            (W, "the OS watchdog is about to expire"),
        ],
        0x12 => &[
            (I, "system reconfigured"),
            (I, "boot event of the maker"),
            (C, "hardware failure of unknown cause"),
            (I, "entry added to an auxiliary log"),
            (I, "platform event action"),
            (I, "clock set"),
        ],
        0x13 => &[
            (W, "diagnostic interrupt (NMI) from the front panel"),
            (C, "bus time-out"),
            (C, "I/O channel check"),
            (W, "NMI made by software"),
            (C, "PCI parity error (PERR)"),
            (C, "PCI system error (SERR)"),
            (C, "EISA fail-safe time-out"),
            (W, "correctable bus error"),
            (C, "uncorrectable bus error"),
            (F, "fatal NMI"),
            (F, "fatal bus error"),
            (W, "bus degraded: fewer lanes or lower speed than it should have"),
        ],
        _ => &[],
    }
}

fn boot(kind: u8) -> &'static [State] {
    match kind {
        0x1d => &[
            (I, "boot after power-up"),
            (I, "boot after a hard reset"),
            (I, "boot after a warm reset"),
            (I, "network boot asked for by the user"),
            (I, "boot into diagnostics"),
            (I, "hard reset by software"),
            (I, "warm reset by the operating system"),
            (I, "system restart"),
        ],
        0x1e => &[
            (C, "no bootable medium"),
            (C, "a diskette that cannot be booted is in the drive"),
            (C, "no PXE server found"),
            (C, "boot sector not valid"),
            (W, "time-out while waiting for the choice of a boot source"),
        ],
        0x1f => &[
            (I, "booted from A:"),
            (I, "booted from disk"),
            (I, "booted from the network"),
            (I, "booted into diagnostics"),
            (I, "booted from CD"),
            (I, "booted from ROM"),
            (I, "boot completed"),
            (I, "installation of the operating system started"),
            (I, "installation of the operating system completed"),
            (W, "installation of the operating system aborted"),
            (C, "installation of the operating system failed"),
        ],
        0x20 => &[
            (C, "stopped while it started"),
            (C, "crashed"),
            (I, "stopped"),
            (I, "shut down"),
            (I, "shut down by a platform event"),
            (W, "agent in the operating system does not answer"),
        ],
        _ => &[],
    }
}

fn management(kind: u8) -> &'static [State] {
    match kind {
        0x24 => &[(I, "page sent"), (I, "LAN alert sent"), (I, "platform event trap sent"), (I, "SNMP trap sent")],
        0x25 => &[(I, "present"), (I, "absent"), (W, "disabled")],
        0x27 => &[(W, "heartbeat lost"), (I, "heartbeat")],
        0x28 => &[
            (W, "a sensor cannot be read or is degraded"),
            (W, "a management controller is degraded"),
            (W, "a management controller is off line"),
            (W, "a management controller cannot be reached"),
            (W, "a sensor failed"),
            (W, "an inventory device failed"),
        ],
        0x29 => &[(W, "battery low"), (C, "battery failed"), (I, "battery present")],
        0x2a => &[
            (I, "session opened"),
            (I, "session closed"),
            (W, "log-in with a wrong user name or password"),
            (W, "user disabled after wrong passwords"),
        ],
        0x2b => &[
            (I, "hardware changed"),
            (I, "firmware or software changed"),
            (W, "hardware does not fit"),
            (W, "firmware or software does not fit"),
            (W, "hardware not supported"),
            (W, "firmware or software not supported"),
            (I, "hardware change succeeded"),
            (I, "firmware or software change succeeded"),
        ],
        0x2c => &[
            (I, "not installed"),
            (I, "inactive"),
            (I, "activation asked for"),
            (I, "being activated"),
            (I, "active"),
            (I, "deactivation asked for"),
            (I, "being deactivated"),
            (W, "communication lost"),
        ],
        _ => &[],
    }
}

/// Byte 2 of firmware progress, offset 0.
pub const FIRMWARE_ERRORS: &[&str] = &[
    "",
    "no memory installed",
    "no usable memory",
    "hard disk failed",
    "system board failed",
    "diskette drive failed",
    "hard disk controller failed",
    "keyboard failed",
    "removable boot medium not found",
    "video controller failed",
    "no video device",
    "firmware ROM is corrupt",
    "processor voltages do not match",
    "processor speeds do not match",
];

/// Byte 2 of firmware progress, offsets 1 and 2.
pub const FIRMWARE_PROGRESS: &[&str] = &[
    "",
    "memory initialization",
    "hard disk initialization",
    "secondary processor initialization",
    "user authentication",
    "set-up screen entered",
    "USB configuration",
    "PCI configuration",
    "option ROM initialization",
    "video initialization",
    "cache initialization",
    "SMBus initialization",
    "keyboard controller initialization",
    "management controller initialization",
    "docking",
    "docking enabled",
    "undocking",
    "docking disabled",
    "OS wake-up",
    "starting the operating system",
    "system board initialization",
    "",
    "diskette initialization",
    "keyboard test",
    "pointing device test",
    "primary processor initialization",
];

/// Byte 3 of a configuration error of power supplies.
pub const SUPPLY_MISMATCHES: &[&str] = &[
    "makers do not match",
    "revisions do not match",
    "a processor is missing",
    "ratings do not match",
    "voltages do not match",
];

/// Byte 2 of the second watchdog: who had set it.
pub const WATCHDOG_USERS: &[&str] = &["", "BIOS FRB2", "BIOS self-test", "OS load", "operating system", "OEM"];

/// Byte 2 of version changes: of what.
pub const VERSIONS: &[&str] = &[
    "",
    "device id of the BMC",
    "BMC firmware",
    "BMC hardware revision",
    "maker of the BMC",
    "IPMI version",
    "auxiliary BMC firmware",
    "BMC boot block",
    "other BMC firmware",
    "BIOS",
    "SMBIOS",
    "operating system",
    "boot loader",
    "diagnostics",
    "management software",
    "management application",
];

/// Names of the sensor types that servers have (table 42-3).
pub fn kind_name(kind: u8) -> &'static str {
    match kind {
        0x01 => "temperature",
        0x02 => "voltage",
        0x03 => "current",
        0x04 => "fan",
        0x05 => "intrusion",
        0x06 => "security",
        0x07 => "processor",
        0x08 => "power supply",
        0x09 => "power unit",
        0x0a => "cooling",
        0x0b => "other",
        0x0c => "memory",
        0x0d => "drive bay",
        0x0f => "firmware progress",
        0x10 => "event log",
        0x11 | 0x23 => "watchdog",
        0x12 => "system event",
        0x13 => "critical interrupt",
        0x14 => "button",
        0x15 => "board",
        0x17 => "add-in card",
        0x18 => "chassis",
        0x1b => "cable",
        0x1d => "boot",
        0x1e => "boot error",
        0x1f => "OS boot",
        0x20 => "OS stop",
        0x21 => "slot",
        0x22 => "ACPI power state",
        0x25 => "presence",
        0x27 => "LAN",
        0x28 => "management subsystem",
        0x29 => "battery",
        0x2b => "version change",
        0xc0..=0xff => "OEM",
        _ => "unknown",
    }
}

/// What a sensor or an inventory belongs to (table 43-13), as far as servers have it.
pub fn entity_name(entity: u8) -> Option<&'static str> {
    Some(match entity {
        0x03 | 0x41 => "CPU",
        0x04 | 0x1a => "disk bay",
        0x07 | 0x42 => "system board",
        0x08 => "memory module",
        0x09 => "processor module",
        0x0a => "power supply",
        0x0b => "add-in card",
        0x0c => "front panel",
        0x0d => "back panel",
        0x0e => "power board",
        0x0f => "drive backplane",
        0x10 => "expansion board",
        0x12 => "processor board",
        0x13 => "power unit",
        0x14 => "power module",
        0x15 => "power distribution board",
        0x17 => "chassis",
        0x1d => "fan",
        0x1e => "cooling unit",
        0x1f => "cable",
        0x20 => "memory",
        0x22 => "BIOS",
        0x28 => "battery",
        0x2e => "management firmware",
        0x30 | 0x31 => "PCI",
        0x37 | 0x40 => "air inlet",
        _ => return None,
    })
}
