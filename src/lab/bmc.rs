//! A BMC for each machine: OpenIPMI's `ipmi_sim`, with RMCP+ on an address of its own and KCS towards the host; the
//! Redfish one of ours ([`super::redfish`]); or both, on one address.
//!
//! `ipmi_sim` has only cipher suites 1 to 15 (so `ipmitool -C 3`), no chassis policy and no watchdog reset. What it says about
//! sensors comes from the files `sensorN.val`, read each second: write 97 into `sensor1.val` and the CPU is too hot.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::fru::{FRU_BYTES, SENSORS, Sensor, controller_record, fru, hex};
use super::guard::Guard;
use super::net;
use super::redfish::process::Setup;
use super::spec::{BMC_USER, HTTPS, Machine};
use crate::error::{Error, Kind, OrFail, Result};

pub const IPMI_SIM: &str = "ipmi_sim";
/// Registered port of RMCP (IANA `asf-rmcp`), where `ipmi_sim` is told to listen.
const RMCP: u16 = 623;
const LAN_CONF: &str = include_str!("../../templates/lab/lan.conf");
const START_WITHIN: Duration = Duration::from_secs(15);

/// A BMC's process, or one of its two.
pub struct Bmc {
    process: Child,
    whose: String,
    log: PathBuf,
    /// In the table of this protocol under `/proc`, once it listens.
    socket: String,
    protocol: &'static str,
}

/// Writes what the BMC reads and starts it.
pub fn start(guard: &Guard, netns: &str, binary: &Path, machine: &Machine, password: &str) -> Result<Vec<Bmc>> {
    let failed = || format!("cannot make the BMC of {}", machine.name());
    write_readings(machine).or_fail(Kind::Config, "lab.bmc", failed)?;
    let mut started = Vec::new();
    if machine.spec.bmc.has_ipmi() {
        write_files(binary, machine, password).or_fail(Kind::Config, "lab.bmc", failed)?;
        let mut command = net::inside(netns, IPMI_SIM);
        command.arg("-n").arg("-c").arg(machine.dir.join("lan.conf")).arg("-f").arg(machine.dir.join("bmc.emu"));
        command.arg("-s").arg(machine.dir.join("bmc-state"));
        started.push(Bmc::start(guard, machine, command, "bmc.log", "udp", RMCP)?);
    }
    if machine.spec.bmc.has_redfish() {
        let file = machine.dir.join("redfish.json");
        let setup = serde_json::to_string(&Setup::of(machine, password)).map_err(std::io::Error::other);
        setup.and_then(|text| write_secret(&file, &text)).or_fail(Kind::Config, "lab.bmc", failed)?;
        let mut command = net::inside(netns, binary);
        command.args(["lab", "redfish"]).arg(file);
        started.push(Bmc::start(guard, machine, command, "redfish.log", "tcp", HTTPS)?);
    }
    Ok(started)
}

impl Bmc {
    fn start(
        guard: &Guard,
        machine: &Machine,
        mut command: Command,
        log: &str,
        protocol: &'static str,
        port: u16,
    ) -> Result<Self> {
        let failed = || format!("cannot make the BMC of {}", machine.name());
        let path = machine.dir.join(log);
        let log = File::create(&path).or_fail(Kind::Config, "lab.bmc", failed)?;
        let errors = log.try_clone().or_fail(Kind::Config, "lab.bmc", failed)?;
        let process = guard.spawn(command.stdin(Stdio::null()).stdout(log).stderr(errors))?;
        // Addresses are in host byte order there.
        let socket = format!("{:08X}:{port:04X}", u32::from_ne_bytes(machine.bmc_address().octets()));
        Ok(Self { process, whose: machine.name(), log: path, socket, protocol })
    }

    /// Waits until it listens. A mistake in its files is not reported by `ipmi_sim`; the port just never opens.
    pub fn wait(&mut self, guard: &Guard) -> Result<()> {
        let deadline = Instant::now() + START_WITHIN;
        // The table of the process's own network namespace.
        let table = format!("/proc/{}/net/{}", self.process.id(), self.protocol);
        while !fs::read_to_string(&table).unwrap_or_default().contains(&self.socket) {
            guard.check()?;
            if Instant::now() > deadline || !matches!(self.process.try_wait(), Ok(None)) {
                let said = super::text::tail(&self.log, 3).join(" ");
                return Err(Error::internal("lab.bmc", format!("the BMC of {} does not listen: {said}", self.whose))
                    .hint(format!("see {}", self.log.display())));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Takes note of its end, once the guard has killed it.
    pub fn ended(&mut self) {
        let _ = self.process.wait();
    }
}

/// Where a sensor's raw reading is, for a test to change.
pub fn reading_file(dir: &Path, sensor: &Sensor) -> PathBuf {
    dir.join(format!("sensor{}.val", sensor.number))
}

fn write_readings(machine: &Machine) -> std::io::Result<()> {
    SENSORS.iter().try_for_each(|s| fs::write(reading_file(&machine.dir, s), format!("{}\n", s.nominal)))
}

fn write_files(binary: &Path, machine: &Machine, password: &str) -> std::io::Result<()> {
    fs::create_dir_all(machine.dir.join("bmc-state"))?;
    fs::write(machine.dir.join("fru.bin"), fru(&machine.serial(), machine.number))?;
    fs::write(machine.dir.join("bmc.emu"), emulation(machine))?;
    let parameters = machine.dir.join("lan.parms");
    fs::write(
        &parameters,
        format!(
            "ip_addr:{}\nip_addr_src:static\nmac_addr:{}\nsubnet_mask:255.255.0.0\ndefault_gw_ip_addr:0.0.0.0\n\
             default_gw_mac_addr:00:00:00:00:00:00\n",
            machine.bmc_address(),
            machine.bmc_mac()
        ),
    )?;
    let program = |command: &str, path: &Path| {
        format!("{} lab {command} {}", quoted(&binary.to_string_lossy()), quoted(&path.to_string_lossy()))
    };
    let context = minijinja::context! {
        name => machine.name(),
        address => machine.bmc_address().to_string(),
        guid => machine.uuid().simple().to_string(),
        kcs_port => machine.kcs_port(),
        serial_port => machine.serial_port(),
        user => BMC_USER,
        password,
        lan_program => program("lan", &parameters),
        chassis_program => program("chassis", &machine.run),
    };
    let text = minijinja::Environment::new().render_str(LAN_CONF, context).map_err(std::io::Error::other)?;
    write_secret(&machine.dir.join("lan.conf"), &text)
}

/// For `sh`, which `ipmi_sim` starts its programs with, inside its own double quotes.
fn quoted(word: &str) -> String {
    format!("'{word}'")
}

/// A file for root only.
pub fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())
}

/// The commands for `ipmi_sim`'s emulator: the management controller, its records, sensors and FRU data.
fn emulation(machine: &Machine) -> String {
    let file = |name: &str| machine.dir.join(name).display().to_string();
    let mut lines = vec![
        "mc_setbmc 0x20".to_owned(),
        // No device SDRs, hardware revision 3, firmware 9.8, all device support bits, the ids of OpenIPMI's example.
        "mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02".to_owned(),
        "sel_enable 0x20 1000 0x0a".to_owned(),
        format!("mc_set_guid 0x20 {}", machine.uuid().simple()),
        format!("main_sdr_add 0x20 {}", hex(&controller_record("LW BMC"))),
    ];
    for sensor in &SENSORS {
        lines.extend(sensor.commands(&reading_file(&machine.dir, sensor).display().to_string()));
    }
    lines.push(format!("mc_add_fru_data 0x20 0 {FRU_BYTES} file 0 \"{}\"", file("fru.bin")));
    lines.push("mc_enable 0x20".to_owned());
    lines.join("\n") + "\n"
}
