//! The virtual rack itself: BMCs that really drive the machines, and nothing left when a lab ends, however it ends.
//! Needs root, QEMU, `ipmi_sim` and `ipmitool`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rackline::lab::{BmcKind, BootDevice, Disk, DiskKind, Lab, Listed, MachineSpec, Spec};
use rackline::machine::{Firmware, Role};
use serde_json::{Value, json};

/// A lab of this name in a directory that goes with the test.
fn spec(name: &str, machines: usize, dir: &Path) -> Spec {
    let machine = MachineSpec {
        role: Role::Kvm.into(),
        firmware: Firmware::Bios,
        memory_bytes: 512 << 20,
        disks: vec![Disk { bytes: 1 << 30, kind: DiskKind::Nvme }],
        bmc: BmcKind::Ipmi,
        listed: Listed::Right,
        smbios: None,
    };
    Spec {
        name: format!("{name}-{}", std::process::id()),
        dir: dir.join(name),
        cache: dir.join("cache"),
        binary: PathBuf::from(env!("CARGO_BIN_EXE_rackline")),
        machines: vec![machine; machines],
    }
}

/// A boot sector that prints `DISK!` by the firmware's teletype call (int 10h, ah=0eh), and ends at the power button: ACPI's
/// PM1 registers, which SeaBIOS puts at 600h.
fn bootable(disk: &Path) {
    let mut sector = [0u8; 512];
    let code = [
        // mov si, 7c29h; next: lodsb; or al, al; jz done; mov ah, 0eh; int 10h; jmp next
        0xbe, 0x29, 0x7c, 0xac, 0x08, 0xc0, 0x74, 0x06, 0xb4, 0x0e, 0xcd, 0x10, 0xeb, 0xf5, //
        // done: out PM1_EN, PWRBTN_EN; sti
        0xba, 0x02, 0x06, 0xb8, 0x00, 0x01, 0xef, 0xfb, //
        // wait: hlt; in ax, PM1_STS; test ah, 1; jz wait
        0xf4, 0xba, 0x00, 0x06, 0xed, 0xf6, 0xc4, 0x01, 0x74, 0xf6, //
        // out PM1_CNT, SLP_EN with sleep type 0, which is S5 for QEMU; jmp $
        0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xeb, 0xfe,
    ];
    sector[..code.len()].copy_from_slice(&code);
    sector[0x29..0x30].copy_from_slice(b"DISK!\r\n");
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    use std::os::unix::fs::FileExt;
    std::fs::OpenOptions::new().write(true).open(disk).unwrap().write_all_at(&sector, 0).unwrap();
}

/// Processes whose environment names the lab.
fn left(name: &str) -> Vec<String> {
    let mark = format!("RACKLINE_LAB_PROCESS={name}\0");
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let marked = all.filter(|p| {
        let environment = std::fs::read(p.path().join("environ")).unwrap_or_default();
        environment.windows(mark.len()).any(|w| w == mark.as_bytes())
    });
    marked.map(|p| p.file_name().to_string_lossy().into_owned()).collect()
}

fn nothing_left(name: &str) -> bool {
    left(name).is_empty()
        && !Path::new("/run/netns").join(format!("rackline-{name}")).exists()
        && !Path::new("/run/rackline").join(name).exists()
}

fn times(text: &str, part: &str) -> usize {
    text.matches(part).count()
}

#[test]
fn a_bmc_switches_its_machine_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(spec("power", 2, dir.path())).unwrap();
    let (first, second) = (lab.chassis(1).unwrap(), lab.chassis(2).unwrap());
    assert!(lab.ipmitool(1, &["power", "status"]).unwrap().contains("is off"));
    lab.ipmitool(1, &["power", "on"]).unwrap();
    assert!(first.is_on() && !second.is_on());
    assert!(lab.ipmitool(1, &["power", "status"]).unwrap().contains("is on"));
    assert!(lab.ipmitool(2, &["power", "status"]).unwrap().contains("is off"));

    let running = first.process_id();
    lab.ipmitool(1, &["power", "cycle"]).unwrap();
    lab.wait_until("a new QEMU", Duration::from_secs(120), |_| first.is_on() && first.process_id() != running).unwrap();
    lab.ipmitool(1, &["power", "off"]).unwrap();
    lab.wait_until("power off", Duration::from_secs(120), |_| !first.is_on()).unwrap();

    let fru = lab.ipmitool(2, &["fru", "print"]).unwrap();
    assert!(fru.contains("LW77S00002") && fru.contains("Labworks"), "{fru}");
    let sensors = lab.ipmitool(2, &["sdr", "elist"]).unwrap();
    assert!(sensors.contains("CPU0 Temp") && sensors.contains("42 degrees C"), "{sensors}");
    lab.stop().unwrap();
}

/// `ipmitool` with the console of the lab's first machine; what it shows goes to the file.
fn console(spec: &Spec, shown: &Path) -> Child {
    let password = rackline::lab::password_file(&spec.dir);
    let tool = format!("ipmitool -I lanplus -C 3 -U admin -H 10.77.1.1 -f {} sol activate", password.display());
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &spec.netns(), "script", "-qfec", &tool]).arg(shown);
    // It wants a terminal, and ends with its input.
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_boot_device_holds_for_one_boot() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(spec("boot", 1, dir.path())).unwrap();
    bootable(&lab.machines[0].disk(0));
    let shown = dir.path().join("shown");
    let mut watching = console(&lab.spec, &shown);
    lab.wait_until("the console by the BMC", Duration::from_secs(60), |_| {
        std::fs::read_to_string(&shown).is_ok_and(|text| text.contains("SOL Session operational"))
    })
    .unwrap();
    let chassis = lab.chassis(1).unwrap();
    let console = |part: &str| times(&lab.console(1).unwrap(), part);
    let within = Duration::from_secs(300);

    lab.ipmitool(1, &["chassis", "bootdev", "disk"]).unwrap();
    lab.ipmitool(1, &["power", "on"]).unwrap();
    lab.wait_until("the disk", within, |_| console("DISK!") == 1).unwrap();
    assert_eq!(chassis.boot_device(), BootDevice::None);
    assert_eq!(console("Booting from ROM"), 0);

    // The firmware's own order has the network first.
    lab.ipmitool(1, &["power", "reset"]).unwrap();
    lab.wait_until("the network", within, |_| console("Booting from ROM") == 1).unwrap();
    assert_eq!(console("DISK!"), 1);

    // Set while the machine runs, it holds for the next reset.
    lab.ipmitool(1, &["chassis", "bootdev", "disk"]).unwrap();
    assert_eq!(chassis.boot_device(), BootDevice::Disk);
    lab.ipmitool(1, &["power", "reset"]).unwrap();
    lab.wait_until("the disk again", within, |_| console("DISK!") == 2).unwrap();
    assert_eq!(chassis.boot_device(), BootDevice::None);

    // A new QEMU, on the same serial cable: the BMC has shown every boot, and its console is the one from the start.
    lab.ipmitool(1, &["power", "off"]).unwrap();
    lab.ipmitool(1, &["chassis", "bootdev", "disk"]).unwrap();
    lab.ipmitool(1, &["power", "on"]).unwrap();
    lab.wait_until("the disk after a power cycle", within, |_| console("DISK!") == 3).unwrap();
    let by_bmc = |part: &str| times(&String::from_utf8_lossy(&std::fs::read(&shown).unwrap()), part);
    // ipmitool shows some text twice when the BMC sends it again with more behind it.
    lab.wait_until("all of it by the BMC", Duration::from_secs(30), |_| by_bmc("DISK!") >= 3).unwrap();
    watching.kill().unwrap();
    watching.wait().unwrap();
    lab.stop().unwrap();
}

#[test]
fn a_redfish_bmc_drives_its_machine() {
    const SYSTEM: &str = "/redfish/v1/Systems/1";
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec("redfish", 1, dir.path());
    spec.machines[0].bmc = BmcKind::Redfish;
    let lab = Lab::start(spec).unwrap();
    bootable(&lab.machines[0].disk(0));
    let chassis = lab.chassis(1).unwrap();
    let call = |method: &str, path: &str, body: Value, wanted: u16| {
        let (status, answer) = lab.redfish(1, method, path, &body).unwrap();
        assert_eq!(status, wanted, "{method} {path}: {answer}");
        answer
    };
    let reset = |how: &str| {
        call("POST", &format!("{SYSTEM}/Actions/ComputerSystem.Reset"), json!({ "ResetType": how }), 204);
    };
    let console = |part: &str| times(&lab.console(1).unwrap(), part);
    let within = Duration::from_secs(300);

    let system = call("GET", SYSTEM, Value::Null, 200);
    assert_eq!((&system["PowerState"], &system["SerialNumber"]), (&json!("Off"), &json!("LW77S00001")));
    call("PATCH", SYSTEM, json!({ "Boot": { "BootOrder": ["Boot0002", "Boot0001"] } }), 200);
    reset("On");
    lab.wait_until("the disk", within, |_| console("DISK!") == 1).unwrap();
    reset("GracefulShutdown");
    lab.wait_until("the end of the machine", within, |_| !chassis.is_on()).unwrap();
    assert_eq!(call("GET", SYSTEM, Value::Null, 200)["PowerState"], "Off");

    let once = json!({ "Boot": { "BootSourceOverrideEnabled": "Once", "BootSourceOverrideTarget": "Pxe" } });
    call("PATCH", SYSTEM, once, 200);
    reset("On");
    lab.wait_until("the network", within, |_| console("Booting from ROM") == 1).unwrap();
    assert_eq!(call("GET", SYSTEM, Value::Null, 200)["Boot"]["BootSourceOverrideEnabled"], "Disabled");
    let running = chassis.process_id();
    reset("PowerCycle");
    lab.wait_until("the disk again", within, |_| console("DISK!") == 2).unwrap();
    assert!(chassis.process_id() != running && console("Booting from ROM") == 1);

    std::fs::write(lab.machines[0].dir.join("sensor1.val"), "97\n").unwrap();
    let hot = call("GET", "/redfish/v1/Chassis/1/Sensors/CPU0Temp", Value::Null, 200);
    assert_eq!((&hot["Reading"], &hot["Status"]["Health"]), (&json!(97.0), &json!("Critical")));
    reset("ForceOff");
    assert!(!chassis.is_on());
    lab.stop().unwrap();
}

#[test]
fn a_stopped_lab_leaves_only_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec("stop", 1, dir.path());
    let name = spec.name.clone();
    let lab = Lab::start(spec.clone()).unwrap();
    lab.ipmitool(1, &["power", "on"]).unwrap();
    // The BMC's helper programs may take a moment to end.
    lab.wait_until("one switch, one BMC and one machine", Duration::from_secs(120), |_| left(&name).len() == 3)
        .unwrap();

    let refused = Lab::start(spec.clone()).map(drop).unwrap_err();
    assert_eq!(refused.code(), "lab.running", "{refused:?}");
    assert!(lab.chassis(1).unwrap().is_on());

    lab.stop().unwrap();
    assert!(nothing_left(&name), "{:?}", left(&name));
    assert!(spec.dir.join("node-01/lan.conf").exists());
    Lab::start(spec).unwrap().stop().unwrap();
}

#[test]
fn a_uefi_machine_with_all_kinds_of_disks_asks_the_network_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec("uefi", 1, dir.path());
    let disk = |kind| Disk { bytes: 1 << 30, kind };
    spec.machines[0].firmware = Firmware::Uefi;
    spec.machines[0].disks = [DiskKind::Nvme, DiskKind::SataSsd, DiskKind::Hdd].map(disk).to_vec();
    let lab = Lab::start(spec).unwrap();
    lab.ipmitool(1, &["power", "on"]).unwrap();
    let within = Duration::from_secs(300);
    lab.wait_until("PXE of the firmware", within, |lab| lab.console(1).unwrap().contains("PXE over IPv4")).unwrap();
    assert_eq!(times(&lab.console(1).unwrap(), "iPXE"), 0, "the firmware's own PXE, not QEMU's ROM");
    lab.stop().unwrap();
}

/// Runs `lab up` until its network is there.
fn running(name: &str, dir: &Path) -> std::process::Child {
    let mut lab = Command::new(env!("CARGO_BIN_EXE_rackline"))
        .args(["lab", "up", "--machines", "2", "--memory", "512M", "--name", name, "--dir"])
        .arg(dir.join(name))
        .arg("--images")
        .arg(dir.join("cache"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while left(name).is_empty() {
        assert!(Instant::now() < deadline && lab.try_wait().unwrap().is_none(), "the lab does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    lab
}

#[test]
fn a_killed_lab_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let name = format!("kill-{}", std::process::id());
    let mut lab = running(&name, dir.path());
    lab.kill().unwrap();
    lab.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while !nothing_left(&name) {
        assert!(Instant::now() < deadline, "left: {:?}", left(&name));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn ctrl_c_during_the_start_takes_the_lab_down() {
    let dir = tempfile::tempdir().unwrap();
    let name = format!("int-{}", std::process::id());
    let mut lab = running(&name, dir.path());
    let pid = rustix::process::Pid::from_child(&lab);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    let status = loop {
        if let Some(status) = lab.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "the lab does not end");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(130));
    assert!(nothing_left(&name), "left: {:?}", left(&name));
}
