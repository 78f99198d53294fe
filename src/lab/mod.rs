//! A virtual rack on one machine: blank servers in QEMU, each with a BMC, their network, and an appliance that brings
//! them from power-on to delivered.
//!
//! ```text
//!   rackline lab up ── starts and holds a pipe to ──► guard: ends everything when the pipe does
//!     │ threads: chassis of each machine                netns rackline-NAME
//!     ├───────────────────────────────────────────────► ipmi_sim  10.77.1.N:623 ─┐ power, boot device:
//!     ├──────────────────────────────── or, or both: ─► redfish   10.77.1.N:443 ─┤
//!     ├───────────────────────────────────────────────► qemu      tapN on lab0 ◄─┘ "rackline lab chassis DIR" asks us
//!     └───────────────────────────────────────────────► rackline serve  10.77.0.1, API on the host's 127.0.0.1:8480
//! ```
//!
//! [`Lab`] is the rack for tests, [`up`] the command; [`trial`] is for one image by itself. Nothing here is told to the appliance but by the doors that a
//! real rack has: a purchase list, packets, BMCs, and the public API.

mod activate;
mod appliance;
mod bmc;
mod chassis;
mod fru;
mod guard;
mod lan;
mod leaf;
mod net;
mod preflight;
mod qmp;
mod rack;
pub mod redfish;
mod report;
mod serial;
mod smbios;
mod spec;
mod text;
pub mod trial;
mod up;
mod vm;
mod watch;

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};

pub use appliance::{Appliance, Operator, ready};
pub use guard::Guard;
pub use rack::Chassis;
pub use spec::{BmcKind, Disk, DiskKind, Listed, Machine, MachineSpec, Spec};
pub use up::{Options, up};
pub use vm::BootDevice;

use serde_json::Value;

use crate::check;
use crate::error::{Error, Kind, OrFail, Result};
use bmc::Bmc;
use rack::Rack;

/// What the checks of delivery may take in an emulated machine.
const CHECKS: &str = include_str!("../../templates/lab/checks.toml");

fn checks() -> Result<check::Set> {
    check::Set::built_in().clone().with("templates/lab/checks.toml", CHECKS)
}

/// `rackline lab …`
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Start a virtual rack and bring its machines from power-on to delivered
    Up(Options),
    /// Chassis control of a lab's BMC, run by ipmi_sim
    #[command(hide = true)]
    Chassis {
        dir: PathBuf,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// A Redfish BMC of a lab's machine, run by the lab
    #[command(hide = true)]
    Redfish { file: PathBuf },
    /// The switch of a lab, run by the lab
    #[command(hide = true)]
    Leaf { file: PathBuf },
    /// LAN parameters of a lab's BMC, run by ipmi_sim
    #[command(hide = true)]
    Lan {
        file: PathBuf,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Ends what a lab leaves behind, run by the lab
    #[command(hide = true)]
    Guard { name: String, dir: PathBuf, lab: u32 },
    /// Hands a listening socket over, run by the lab
    #[command(hide = true)]
    Activate {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

pub async fn main(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up(options) => up(options).await,
        Command::Chassis { dir, arguments } => chassis::main(&dir, arguments),
        Command::Redfish { file } => redfish::process::main(&file).await,
        Command::Leaf { file } => leaf::main(&file),
        Command::Lan { file, arguments } => lan::main(&file, &arguments),
        Command::Guard { name, dir, lab } => guard::main(&name, &dir, lab),
        Command::Activate { command } => activate::main(&command),
    }
}

/// A running rack. Dropping it takes everything down; so does the end of the process, however it comes.
pub struct Lab {
    pub spec: Spec,
    pub machines: Vec<Machine>,
    pub appliance: Appliance,
    rack: Rack,
    bmcs: Vec<Bmc>,
    leaf: Child,
    guard: Guard,
}

impl Lab {
    /// Network, BMCs and blank machines, all powered off; the appliance is configured and not started.
    pub fn start(spec: Spec) -> Result<Lab> {
        spec.check()?;
        preflight::check(&spec)?;
        let guard = Guard::start(&spec)?;
        Self::build(spec, guard)
    }

    /// With a guard that the caller keeps too, to end the lab in the middle of this.
    pub fn build(spec: Spec, guard: Guard) -> Result<Lab> {
        let machines = Machine::all(&spec);
        fresh(&spec, &machines)?;
        let password = uuid::Uuid::new_v4().simple().to_string()[..16].to_owned();
        let written = bmc::write_secret(&password_file(&spec.dir), &password);
        written.or_fail(Kind::Config, "lab.dir", || "cannot write the BMCs' password")?;
        net::make(&guard, &spec.netns(), &machines)?;
        let leaf = leaf::start(&guard, &spec.netns(), &spec.binary, &spec.dir, &machines)?;
        let rack = Rack::start(&machines, &spec.netns(), &guard)?;
        let mut bmcs = Vec::new();
        for machine in &machines {
            vm::make_disks(machine)?;
            bmcs.extend(bmc::start(&guard, &spec.netns(), &spec.binary, machine, &password)?);
        }
        for bmc in &mut bmcs {
            bmc.wait(&guard)?;
        }
        let appliance = Appliance::prepare(&guard, &spec, &machines, &password)?;
        Ok(Lab { spec, machines, appliance, rack, bmcs, leaf, guard })
    }

    /// The machine of this number, counted from 1, as its BMC holds it.
    pub fn chassis(&self, number: usize) -> Result<&Chassis> {
        let found = number.checked_sub(1).and_then(|i| self.rack.chassis.get(i));
        found.ok_or_else(|| Error::not_found("lab.machine", format!("the lab has no machine {number}")))
    }

    pub fn machine(&self, number: usize) -> Result<&Machine> {
        let found = number.checked_sub(1).and_then(|i| self.machines.get(i));
        found.ok_or_else(|| Error::not_found("lab.machine", format!("the lab has no machine {number}")))
    }

    /// All that the machine has printed so far, without control sequences.
    pub fn console(&self, number: usize) -> Result<String> {
        let bytes = fs::read(self.machine(number)?.console()).unwrap_or_default();
        Ok(text::plain(&String::from_utf8_lossy(&bytes)))
    }

    /// `ipmitool` against the machine's BMC; what it printed.
    pub fn ipmitool(&self, number: usize, arguments: &[&str]) -> Result<String> {
        let failed = || format!("ipmitool {} failed", arguments.join(" "));
        let mut command = net::inside(&self.spec.netns(), "ipmitool");
        command.args(["-I", "lanplus", "-C", "3", "-U", spec::BMC_USER, "-H"]);
        command.arg(self.machine(number)?.bmc_address().to_string()).arg("-f").arg(password_file(&self.spec.dir));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Bounded by ipmitool itself: four tries of a second each.
        let output = self.guard.spawn(&mut command)?.wait_with_output();
        let output = output.or_fail(Kind::Internal, "lab.ipmitool", failed)?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(Error::refused("lab.ipmitool", failed())
                .because(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        }
    }

    /// `curl` against the machine's Redfish BMC with a method, a path and a JSON body: the status and the answer's JSON.
    pub fn redfish(&self, number: usize, method: &str, path: &str, body: &Value) -> Result<(u16, Value)> {
        let failed = || format!("{method} {path} failed");
        let url = format!("https://{}{path}", self.machine(number)?.bmc_address());
        let mut command = net::inside(&self.spec.netns(), "curl");
        command.args(["-sSk", "--max-time", "30", "-K", "-", "-w", "\n%{http_code}", "-X", method]);
        if !body.is_null() {
            command.args(["-H", "Content-Type: application/json", "-d", &body.to_string()]);
        }
        command.arg(url).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut curl = self.guard.spawn(&mut command)?;
        if let Some(mut options) = curl.stdin.take() {
            // The password is for nobody's list of processes.
            let password = fs::read_to_string(password_file(&self.spec.dir)).unwrap_or_default();
            let written = writeln!(options, "user = \"{}:{password}\"", spec::BMC_USER);
            written.or_fail(Kind::Internal, "lab.curl", failed)?;
        }
        let output = curl.wait_with_output().or_fail(Kind::Internal, "lab.curl", failed)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let (answer, status) = text.rsplit_once('\n').unwrap_or(("", &text));
        match status.parse() {
            Ok(status) if output.status.success() => Ok((status, serde_json::from_str(answer).unwrap_or(Value::Null))),
            _ => {
                Err(Error::refused("lab.curl", failed())
                    .because(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
            }
        }
    }

    /// From the next request on, the machine's Redfish BMC has these faults and no others.
    pub fn plant(&self, number: usize, faults: &[redfish::Planted]) -> Result<()> {
        let failed = || "cannot plant faults";
        let text = serde_json::to_string(faults).or_fail(Kind::Internal, "lab.faults", failed)?;
        let file = redfish::process::faults_file(&self.machine(number)?.dir);
        // The BMC never sees half of it.
        let half = file.with_extension("new");
        let written = fs::write(&half, text).and_then(|()| fs::rename(&half, &file));
        written.or_fail(Kind::Internal, "lab.faults", failed)
    }

    /// Two racking mistakes at once: each of the two is at the other's port of the switch.
    pub fn swap_cables(&self, one: usize, other: usize) -> Result<()> {
        leaf::swap(&self.spec.dir, self.machine(one)?, self.machine(other)?)
    }

    /// Waits until `done` says so, at most `within`.
    pub fn wait_until(&self, what: &str, within: Duration, mut done: impl FnMut(&Lab) -> bool) -> Result<()> {
        let deadline = Instant::now() + within;
        while !done(self) {
            self.guard.check()?;
            if Instant::now() > deadline {
                return Err(Error::unreachable("lab.wait", format!("{what}: not within {} s", within.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Ends all processes and deletes the namespace; the directory with logs and disks stays.
    pub fn stop(mut self) -> Result<()> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<()> {
        let stopped = self.appliance.stop();
        let finished = self.guard.finish();
        self.rack.stop();
        self.bmcs.iter_mut().for_each(Bmc::ended);
        let _ = self.leaf.wait();
        stopped.and(finished)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(e) = self.take_down() {
            tracing::error!("{e:?}");
        }
    }
}

pub fn password_file(dir: &Path) -> PathBuf {
    dir.join("bmc.password")
}

/// Empty directories for the machines and for the appliance's state: each start is a delivery of blank machines.
fn fresh(spec: &Spec, machines: &[Machine]) -> Result<()> {
    let failed = || format!("cannot empty {}", spec.dir.display());
    let nodes = fs::read_dir(&spec.dir).or_fail(Kind::Config, "lab.dir", failed)?;
    let old = nodes.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("node-")).map(|e| e.path());
    for dir in old.chain([spec.dir.join("state")]) {
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::config("lab.dir", failed()).because(e));
            }
            _ => {}
        }
    }
    let _ = fs::remove_file(spec.dir.join("appliance.log"));
    for machine in machines {
        let made = fs::create_dir_all(&machine.dir).and_then(|()| fs::create_dir_all(&machine.run));
        made.or_fail(Kind::Config, "lab.dir", failed)?;
    }
    Ok(())
}
