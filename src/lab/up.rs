//! `rackline lab up`: from nothing to delivered machines and a report, in one command.

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::appliance::{Operator, ready};
use super::report::Report;
use super::spec::{BMC_USER, BmcKind, Disk, DiskKind, Listed, MachineSpec, Spec};
use super::watch::{self, End};
use super::{Guard, Lab, password_file, preflight, text};
use crate::error::{Kind, OrFail, Result};
use crate::image::Cache;
use crate::machine::{Firmware, Role, Roles};

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Number of machines
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=super::spec::MAX_MACHINES as i64))]
    machines: u8,
    /// What the machines become: kvm, docker or ovs; given more than once, in turn [default: all in turn]
    #[arg(long)]
    role: Vec<Roles>,
    /// How the machines boot; mixed: one by BIOS, two by UEFI, and so on
    #[arg(long, value_enum, default_value_t = Boots::Mixed)]
    firmware: Boots,
    /// By what the machines' BMCs are spoken to; mixed: one by IPMI, one by Redfish, one by both, and so on
    #[arg(long, value_enum, default_value_t = Bmcs::Mixed)]
    bmc: Bmcs,
    /// Memory of each machine
    #[arg(long, value_name = "SIZE", default_value = "2G", value_parser = text::size)]
    memory: u64,
    /// Disk of each machine
    #[arg(long, value_name = "SIZE", default_value = "10G", value_parser = text::size)]
    disk: u64,
    /// SMBIOS tables of a real server that the machines present, from `dmidecode --dump-bin`; given more than once, in turn
    #[arg(long, value_name = "FILE")]
    smbios: Vec<PathBuf>,
    /// Name of the lab; labs of different names run side by side
    #[arg(long, default_value = "lab")]
    name: String,
    /// Where disks, logs and the appliance's state go [default: var/lab/NAME]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where built images are [default: RACKLINE_CACHE, else the user's cache folder]
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Seconds until all machines must be delivered
    #[arg(long, value_name = "SECONDS", default_value_t = 1200, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// On how many machines the image write is compared with dd
    #[arg(long, value_enum, default_value_t = Compare::One)]
    dd: Compare,
    /// Take the lab down after the report
    #[arg(long)]
    once: bool,
    /// Print the report as one JSON document, and nothing else
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Boots {
    Bios,
    Uefi,
    Mixed,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Bmcs {
    Ipmi,
    Redfish,
    Mixed,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Compare {
    None,
    One,
    All,
}

impl Options {
    fn spec(&self) -> Result<Spec> {
        let absolute = |path: PathBuf| {
            std::path::absolute(&path).or_fail(Kind::Input, "lab.paths", || format!("{} is no path", path.display()))
        };
        let binary = std::env::current_exe().or_fail(Kind::Internal, "lab.paths", || "cannot find the own program")?;
        let roles = if self.role.is_empty() { Role::ALL.map(Roles::from).to_vec() } else { self.role.clone() };
        let boots = match self.firmware {
            Boots::Bios => vec![Firmware::Bios],
            Boots::Uefi => vec![Firmware::Uefi],
            Boots::Mixed => vec![Firmware::Bios, Firmware::Uefi, Firmware::Uefi],
        };
        let bmcs = match self.bmc {
            Bmcs::Ipmi => vec![BmcKind::Ipmi],
            Bmcs::Redfish => vec![BmcKind::Redfish],
            Bmcs::Mixed => vec![BmcKind::Ipmi, BmcKind::Redfish, BmcKind::Both],
        };
        let servers = self.smbios.iter().map(Some).cycle().chain(std::iter::repeat(None));
        let kinds = roles.iter().cycle().zip(boots.iter().cycle()).zip(bmcs.iter().cycle()).zip(servers);
        let machines = kinds.take(usize::from(self.machines));
        let spec = Spec {
            name: self.name.clone(),
            dir: absolute(self.dir.clone().unwrap_or_else(|| PathBuf::from("var/lab").join(&self.name)))?,
            cache: Cache::open_or_default(self.images.as_deref())?.root().to_owned(),
            binary,
            machines: machines
                .map(|(((role, firmware), bmc), smbios)| MachineSpec {
                    role: role.clone(),
                    firmware: *firmware,
                    memory_bytes: self.memory,
                    disks: vec![Disk { bytes: self.disk, kind: DiskKind::Nvme }],
                    bmc: *bmc,
                    listed: Listed::Right,
                    smbios: smbios.cloned(),
                })
                .collect(),
        };
        spec.check()?;
        Ok(spec)
    }

    fn compares(&self, number: u8) -> bool {
        match self.dd {
            Compare::None => false,
            Compare::One => number == 1,
            Compare::All => true,
        }
    }
}

/// Ctrl-C, a service manager, a closed terminal.
struct Signals([Signal; 3]);

impl Signals {
    fn listen() -> Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [a, b, c] =
            kinds.map(|kind| signal(kind).or_fail(Kind::Internal, "lab.signal", || "cannot listen for signals"));
        Ok(Self([a?, b?, c?]))
    }

    async fn any(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// What a shell reports for a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

pub async fn up(options: Options) -> Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let spec = options.spec()?;
    preflight::check(&spec)?;
    note(format!("lab {}: {} machines in {}", spec.name, spec.machines.len(), spec.dir.display()));
    let (guarded, guard) = {
        let spec = spec.clone();
        let starting = tokio::task::spawn_blocking(move || Guard::start(&spec).map(|guard| (guard.clone(), guard)));
        // Where this is interrupted, the guard sees the end of this process.
        tokio::select! {
            guard = starting => guard.or_fail(Kind::Internal, "lab.guard", || "the lab's start was cut short")??,
            () = signals.any() => return Ok(ExitCode::from(INTERRUPTED)),
        }
    };
    let outcome = tokio::select! {
        outcome = run(&options, spec, guarded) => outcome,
        () = signals.any() => {
            note("stopping".to_owned());
            Ok(ExitCode::from(INTERRUPTED))
        }
    };
    let finished = tokio::task::spawn_blocking(move || guard.finish()).await;
    let finished = finished.or_fail(Kind::Internal, "lab.cleanup", || "the clean-up was cut short")?;
    outcome.and_then(|code| finished.map(|()| code))
}

async fn run(options: &Options, spec: Spec, guard: Guard) -> Result<ExitCode> {
    let start = Instant::now();
    let building = tokio::task::spawn_blocking(move || Lab::build(spec, guard));
    let mut lab = building.await.or_fail(Kind::Internal, "lab.build", || "the lab's start was cut short")??;
    note(format!("{:5.1} s  network, BMCs and blank machines are there", start.elapsed().as_secs_f64()));
    lab.appliance.start()?;
    let api = Operator::new(lab.appliance.address)?;
    let views = ready(&api, &mut lab.appliance, &lab.machines).await?;
    note(format!("{:5.1} s  the appliance answers at http://{}", start.elapsed().as_secs_f64(), lab.appliance.address));
    let powered = Instant::now();
    for machine in &lab.machines {
        let Some(view) = views.iter().find(|v| v.name == machine.name()) else { continue };
        api.deploy(view.id, machine.spec.role.clone(), options.compares(machine.number)).await?;
        api.power(view.id, "on").await?;
    }
    let timeout = Duration::from_secs(options.timeout);
    let watched = watch::until_delivered(&api, &mut lab, powered, timeout).await?;
    let end = watched.end;
    let report = Report::collect(&api, &lab, watched).await?;
    let text = if options.json { report.json()? } else { report.text() };
    writeln!(std::io::stdout(), "{text}").or_fail(Kind::Input, "lab.report", || "nobody reads the report")?;
    if !options.once {
        stay(&lab).await;
    }
    Ok(if end == End::Delivered { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Until a signal ends the whole of [`run`].
async fn stay(lab: &Lab) {
    let (address, dir) = (lab.appliance.address, lab.spec.dir.display());
    note(format!("\nThe lab stays up until Ctrl-C.\n  console        http://{address}/"));
    for command in ["machine list", "machine show node-01", "machine release node-01"] {
        note(format!("  command line   RACKLINE_URL=http://{address} rackline {command}"));
    }
    note(format!("  serial console tail -f {dir}/node-01/console.log"));
    let (netns, password) = (lab.spec.netns(), password_file(&lab.spec.dir));
    let password = password.display();
    if let Some(address) = first_bmc(lab, BmcKind::has_ipmi) {
        let command = format!("ipmitool -I lanplus -C 3 -H {address} -U {BMC_USER} -f {password} power status");
        note(format!("  BMC by IPMI    ip netns exec {netns} {command}"));
    }
    if let Some(address) = first_bmc(lab, BmcKind::has_redfish) {
        let command = format!("curl -sk -u {BMC_USER} https://{address}/redfish/v1/Systems/1");
        note(format!("  BMC by Redfish ip netns exec {netns} {command}  (the password is in {password})"));
    }
    std::future::pending::<()>().await;
}

fn first_bmc(lab: &Lab, fits: impl Fn(BmcKind) -> bool) -> Option<Ipv4Addr> {
    lab.machines.iter().find(|m| fits(m.spec.bmc)).map(|m| m.bmc_address())
}

/// For the person who waits; standard output is for the report alone.
fn note(line: String) {
    eprintln!("{line}");
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn spec(line: &[&str]) -> Result<Spec> {
        Line::parse_from([&["up"], line].concat()).options.spec()
    }

    #[test]
    fn machines_of_all_roles_and_both_kinds_of_firmware_and_two_that_share_an_image() {
        let machines = spec(&[]).unwrap().machines;
        let found: Vec<_> = machines.iter().map(|m| (m.firmware, m.role.clone())).collect();
        let all = [(Firmware::Bios, Role::Kvm), (Firmware::Uefi, Role::Docker), (Firmware::Uefi, Role::Ovs)];
        let all = all.map(|(firmware, role)| (firmware, Roles::from(role)));
        assert_eq!(found[..3], all);
        assert_eq!(found[3..], [(Firmware::Bios, Role::Kvm.into())]);
        assert_eq!(machines[0].memory_bytes, 2 << 30);
        let bmcs: Vec<_> = machines.iter().map(|m| m.bmc).collect();
        assert_eq!(bmcs, [BmcKind::Ipmi, BmcKind::Redfish, BmcKind::Both, BmcKind::Ipmi]);
    }

    #[test]
    fn one_role_for_all() {
        let machines = spec(&["--machines", "5", "--role", "docker", "--firmware", "uefi"]).unwrap().machines;
        assert!(
            machines.len() == 5
                && machines.iter().all(|m| m.role == Role::Docker.into() && m.firmware == Firmware::Uefi)
        );
    }

    #[test]
    fn names_that_are_no_namespace_are_refused() {
        assert_eq!(spec(&["--name", "../x"]).unwrap_err().code(), "lab.name");
        assert_eq!(spec(&["--memory", "64M"]).unwrap_err().code(), "lab.memory");
        assert!(Line::try_parse_from(["up", "--machines", "0"]).is_err());
    }
}
