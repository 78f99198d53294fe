//! The QEMU command line of a machine, made to look like a server of the catalogue: SMBIOS strings (or those of a real server, [`smbios`]), serial
//! numbers, a BMC behind KCS, disks that do not turn, a serial console.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::smbios;
use super::spec::{DiskKind, Machine};
use crate::error::{Kind, OrFail, Result};
use crate::machine::Firmware;

pub const QEMU: &str = "qemu-system-x86_64";
pub const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
pub const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// EPYC without what TCG cannot do, so that QEMU does not warn; `svm` stays, for the guests of a KVM host.
pub const CPU: &str = "EPYC,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,-topoext,-nrip-save,-xsavec";

/// What the BMC's boot device parameter asks for (IPMI 2.0 table 28-14), as `ipmi_sim` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootDevice {
    /// No override: the firmware's own order, network first.
    None,
    Pxe,
    Disk,
    Cdrom,
    BiosSetup,
}

impl BootDevice {
    pub fn from_ipmi_sim(name: &str) -> Option<Self> {
        Some(match name {
            "none" => Self::None,
            "pxe" => Self::Pxe,
            "default" => Self::Disk,
            "cdrom" => Self::Cdrom,
            "bios" => Self::BiosSetup,
            _ => return None,
        })
    }

    pub fn ipmi_sim(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Pxe => "pxe",
            Self::Disk => "default",
            Self::Cdrom => "cdrom",
            Self::BiosSetup => "bios",
        }
    }
}

/// QEMU's device ids with their place in the boot order, which has every bootable device.
pub fn boot_order(machine: &Machine, device: BootDevice) -> Vec<(String, i32)> {
    let disks = (0..machine.spec.disks.len()).map(|i| format!("disk{i}"));
    let net = std::iter::once("net0".to_owned());
    let ordered: Vec<String> = match device {
        BootDevice::Disk => disks.chain(net).collect(),
        // There is no optical drive and no set-up screen, so these fall through to the normal order.
        BootDevice::None | BootDevice::Pxe | BootDevice::Cdrom | BootDevice::BiosSetup => net.chain(disks).collect(),
    };
    ordered.into_iter().zip(1..).collect()
}

/// Blank disks, for UEFI an empty variable store, and the SMBIOS tables of a real server.
pub fn make_disks(machine: &Machine) -> Result<()> {
    smbios::write(machine)?;
    let failed = || format!("cannot make the disks of {}", machine.name());
    for (i, disk) in machine.spec.disks.iter().enumerate() {
        let file = File::create(machine.disk(i)).and_then(|f| f.set_len(disk.bytes));
        file.or_fail(Kind::Config, "lab.disk", failed)?;
    }
    if machine.spec.firmware == Firmware::Uefi {
        fs::copy(OVMF_VARS, vars(machine)).or_fail(Kind::Config, "lab.disk", failed)?;
    }
    Ok(())
}

pub fn monitor(machine: &Machine) -> PathBuf {
    machine.run.join("qmp.sock")
}

pub fn events(machine: &Machine) -> PathBuf {
    machine.run.join("events.sock")
}

/// Where the lab listens for the machine's serial port.
pub fn serial(machine: &Machine) -> PathBuf {
    machine.run.join("serial.sock")
}

fn vars(machine: &Machine) -> PathBuf {
    machine.dir.join("uefi-vars.fd")
}

/// All arguments, with `order` as the boot order of the first boot.
pub fn arguments(machine: &Machine, order: &[(String, i32)]) -> Vec<OsString> {
    let mut args = Arguments(Vec::new());
    // `graphics=off` has SeaBIOS and iPXE write to the serial port; OVMF does so anyway. Without a reboot timeout
    // SeaBIOS stays at "No bootable device" for ever.
    let memory = format!("{}M", machine.spec.memory_bytes >> 20);
    let real = smbios::files(machine);
    let sockets = match &real {
        Some((_, count)) if *count > 1 => format!("{count},sockets={count},cores=1,threads=1"),
        _ => "2,sockets=1,cores=2,threads=1".to_owned(),
    };
    for (option, value) in [
        ("-name", machine.name().as_str()),
        ("-uuid", machine.uuid().to_string().as_str()),
        ("-accel", "tcg,thread=multi,tb-size=256"),
        ("-cpu", CPU),
        ("-M", "q35,graphics=off"),
        ("-m", memory.as_str()),
        ("-smp", sockets.as_str()),
        ("-display", "none"),
        ("-boot", "reboot-timeout=5000"),
        ("-device", "virtio-rng-pci"),
    ] {
        args.add(option, value);
    }
    args.0.extend(["-nodefaults", "-no-user-config"].map(OsString::from));
    match real {
        Some((files, _)) => files.iter().for_each(|file| args.add("-smbios", format!("file={}", comma(file)))),
        None => labworks(&mut args, machine),
    }
    if machine.spec.firmware == Firmware::Uefi {
        args.add("-drive", format!("if=pflash,format=raw,unit=0,readonly=on,file={OVMF_CODE}"));
        args.add("-drive", format!("if=pflash,format=raw,unit=1,file={}", comma(&vars(machine))));
    }
    network(&mut args, machine, order);
    disks(&mut args, machine, order);
    if machine.spec.bmc.has_ipmi() {
        // The BMC's host interface; the BMC may start later or be restarted.
        args.add("-chardev", format!("socket,id=ipmi0,host=127.0.0.1,port={},reconnect=2", machine.kcs_port()));
        args.add("-device", "ipmi-bmc-extern,id=bmc0,chardev=ipmi0");
        args.add("-device", "isa-ipmi-kcs,bmc=bmc0");
    }
    let (serial, log) = (comma(&serial(machine)), comma(&machine.console()));
    args.add("-chardev", format!("socket,id=console,path={serial},logfile={log},logappend=on"));
    args.add("-serial", "chardev:console");
    for socket in [monitor(machine), events(machine)] {
        args.add("-qmp", format!("unix:{},server=on,wait=off", comma(&socket)));
    }
    args.0
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn add(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.push(option.into());
        self.0.push(value.into());
    }
}

/// In QEMU's option syntax a comma inside a value is written twice.
pub fn comma(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// DSP0134: type 0 BIOS, 1 system, 2 board, 3 chassis, 4 processor, 17 memory device.
fn labworks(args: &mut Arguments, machine: &Machine) {
    let (serial, number) = (machine.serial(), machine.number);
    args.add("-smbios", "type=0,vendor=Labworks,version=2.4.1,date=03/14/2026");
    args.add(
        "-smbios",
        format!("type=1,manufacturer=Labworks,product=LW-R1,version=1,serial={serial},sku=LW-R1-2U,family=LW"),
    );
    args.add("-smbios", format!("type=2,manufacturer=Labworks,product=LW-R1-MB,version=A2,serial={serial}B"));
    args.add("-smbios", format!("type=3,manufacturer=Labworks,version=2U,serial={serial}C,asset=LAB-{number:04}"));
    args.add(
        "-smbios",
        "type=4,sock_pfx=CPU,manufacturer=AMD,version=AMD EPYC Processor,max-speed=2600,current-speed=2600",
    );
    args.add(
        "-smbios",
        format!(
            "type=17,loc_pfx=DIMM_A,bank=P0,manufacturer=Labworks,serial=LWM{number:05},part=LW-DDR4-3200,speed=3200"
        ),
    );
}

fn network(args: &mut Arguments, machine: &Machine, order: &[(String, i32)]) {
    // Without a ROM the NIC has no iPXE of QEMU's, and UEFI boots by its own PXE, as a server's would.
    let rom = match machine.spec.firmware {
        Firmware::Bios => "",
        Firmware::Uefi => ",romfile=",
    };
    args.add("-netdev", format!("tap,id=n0,ifname={},script=no,downscript=no", machine.tap()));
    let device = format!("virtio-net-pci,id=net0,netdev=n0,mac={}{rom}", machine.mac());
    args.add("-device", device + &index(order, "net0"));
}

fn disks(args: &mut Arguments, machine: &Machine, order: &[(String, i32)]) {
    for (i, disk) in machine.spec.disks.iter().enumerate() {
        let file = comma(&machine.disk(i));
        args.add(
            "-drive",
            format!("if=none,id=d{i},format=raw,file={file},discard=unmap,detect-zeroes=off,cache=unsafe"),
        );
        let serial = format!("LWD{:05}{i}", machine.number);
        // Addresses of the IEEE "52:54:00" kind, so that they are no real maker's.
        let wwn = 0x5525_4000_7700_0000_u64 | u64::from(machine.number) << 8 | i as u64;
        let device = match disk.kind {
            DiskKind::Nvme => format!("nvme,id=disk{i},drive=d{i},serial={serial}"),
            DiskKind::SataSsd => sata(i, &serial, wwn, 1),
            DiskKind::Hdd => sata(i, &serial, wwn, 7200),
        };
        args.add("-device", device + &index(order, &format!("disk{i}")));
    }
}

/// `rotation` as ATA IDENTIFY word 217 has it: 1 for a disk that does not turn, else turns a minute.
fn sata(i: usize, serial: &str, wwn: u64, rotation: u16) -> String {
    format!("ide-hd,id=disk{i},drive=d{i},bus=ide.{i},serial={serial},wwn={wwn:#x},rotation_rate={rotation}")
}

fn index(order: &[(String, i32)], device: &str) -> String {
    order.iter().find(|(name, _)| name == device).map_or_else(String::new, |(_, i)| format!(",bootindex={i}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::spec::{BmcKind, Disk, Listed, MachineSpec};
    use crate::machine::Role;

    fn machine(firmware: Firmware) -> Machine {
        let disk = |kind| Disk { bytes: 10 << 30, kind };
        let disks = vec![disk(DiskKind::Nvme), disk(DiskKind::Hdd)];
        let bmc = BmcKind::Ipmi;
        let spec = MachineSpec {
            role: Role::Kvm.into(),
            firmware,
            memory_bytes: 2 << 30,
            disks,
            bmc,
            listed: Listed::Right,
            smbios: None,
        };
        Machine { number: 3, spec, dir: "/tmp/a,b".into(), run: "/run/r".into() }
    }

    fn line(machine: &Machine, device: BootDevice) -> String {
        let arguments = arguments(machine, &boot_order(machine, device));
        arguments.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_network_comes_first_unless_the_bmc_says_disk() {
        let normal = line(&machine(Firmware::Bios), BootDevice::None);
        assert!(normal.contains("virtio-net-pci,id=net0,netdev=n0,mac=52:54:00:77:00:03,bootindex=1"), "{normal}");
        assert!(normal.contains("nvme,id=disk0,drive=d0,serial=LWD000030,bootindex=2"), "{normal}");
        let disk = line(&machine(Firmware::Bios), BootDevice::Disk);
        assert!(
            disk.contains("serial=LWD000030,bootindex=1") && disk.contains("rotation_rate=7200,bootindex=2"),
            "{disk}"
        );
    }

    #[test]
    fn uefi_boots_by_its_own_pxe() {
        let uefi = line(&machine(Firmware::Uefi), BootDevice::None);
        assert!(uefi.contains("romfile=,bootindex=1") && uefi.contains("file=/tmp/a,,b/uefi"), "{uefi}");
        assert!(!line(&machine(Firmware::Bios), BootDevice::None).contains("pflash"));
    }

    #[test]
    fn without_ipmi_there_is_no_device_for_it() {
        let mut machine = machine(Firmware::Bios);
        assert!(line(&machine, BootDevice::None).contains("isa-ipmi-kcs"));
        machine.spec.bmc = BmcKind::Redfish;
        assert!(!line(&machine, BootDevice::None).contains("ipmi"));
    }

    #[test]
    fn boot_devices_keep_their_names() {
        for name in ["none", "pxe", "default", "cdrom", "bios"] {
            assert_eq!(BootDevice::from_ipmi_sim(name).unwrap().ipmi_sim(), name);
        }
        assert_eq!(BootDevice::from_ipmi_sim("floppy"), None);
    }
}
