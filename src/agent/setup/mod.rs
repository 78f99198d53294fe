//! Storage and kernel of an installed host as they were ordered: set up at the first start before anything uses them, set again
//! at each start where no file does it, and looked at by the delivery checks.
//!
//! A start does what is lacking and nothing else, and may be cut off anywhere. What is being made is written down on the disk
//! with the system first ([`Begun`]). Once all of the storage was there, it belongs to the host's owner, and is only looked at.

mod act;
mod look;
mod tune;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use super::console::{say, say_error};
use super::deploy::Installed;
use super::progress::Meter;
use super::roots::Roots;
use super::{Agent, blocking, inventory, tool};
use crate::durable;
use crate::error::{Error, Kind, OrFail, Result};
use crate::link::Check;
use crate::machine::{Disk, MachineId, Severity, Who};
use crate::role::disks::{Identity, assign};
use crate::role::plan::{self, Wanted};
use crate::role::{Setup, files};
use tune::{Change, Ethtool};

/// Controllers find their disks some time after the kernel has started.
const DISKS: Duration = Duration::from_secs(60);
const QUICK: Duration = Duration::from_secs(30);
/// More steps than any layout has: four for each of 64 disks and 64 volumes.
const STEPS: usize = 1024;

/// Before an image is written: the disks that the role asks for are there, and hold nobody's data.
pub async fn ready(roots: &Roots, machine: MachineId, setup: &Setup, system: &Disk) -> Result<()> {
    let (roots, setup, system) = (roots.clone(), setup.clone(), system.clone());
    blocking(move || {
        let storage = &setup.storage;
        let assigned = assign(storage, &inventory::disks(&roots)?, &system)?;
        plan::fits(storage, &assigned)?;
        let wanted = Wanted { machine, storage, assigned };
        let disks: Vec<_> = wanted.assigned.disks().map(|d| (d.name.clone(), wanted.partition(d))).collect();
        let seen = plan::Seen { disks: look::contents(&roots, &disks)?, ..plan::Seen::default() };
        match wanted.foreign(&seen, &BTreeSet::new()) {
            Some((disk, what)) => Err(plan::refuse(disk, what)),
            None => Ok(()),
        }
    })
    .await
}

/// `rackline agent --setup`, at each start of the host.
pub async fn apply(roots: &Roots, record: &Path) -> Result<()> {
    let failed = || format!("{} cannot be read", record.display());
    let bytes = std::fs::read(record).or_fail(Kind::NotFound, "host.record", failed)?;
    let installed: Installed = serde_json::from_slice(&bytes).or_fail(Kind::Refused, "host.record", failed)?;
    let written = write_files(&installed.setup).await;
    let stored = store(roots, &installed).await;
    let tuned = tune(roots, &installed.setup).await;
    // One that fails does not keep the others from being done.
    let all = [written, stored, tuned];
    all.iter().filter_map(|r| r.as_ref().err()).for_each(say_error);
    all.into_iter().collect()
}

async fn write_files(setup: &Setup) -> Result<()> {
    for file in files::files(setup) {
        let path = Path::new(file.path);
        let failed = || format!("{} cannot be written", file.path);
        if std::fs::read_to_string(path).is_ok_and(|there| there == file.text) {
            continue;
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).or_fail(Kind::Internal, "setup.file", failed)?;
        }
        durable::replace(path, file.text.as_bytes()).or_fail(Kind::Internal, "setup.file", failed)?;
        say(format!("wrote {}", file.path));
        match file.path {
            // Limits of services that start from here on.
            path if path.starts_with("/etc/systemd/system.conf.d/") => {
                tool::expect("systemctl", &["daemon-reexec"], QUICK).await?;
            }
            path if path.starts_with("/etc/modules-load.d/") => {
                tool::expect("modprobe", &["nf_conntrack"], QUICK).await?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// The layout, with the disks of this machine. Waits for disks that are still being found.
async fn wanted<'a>(
    roots: &Roots,
    installed: &Identity,
    machine: MachineId,
    setup: &'a Setup,
    patience: Duration,
) -> Result<Wanted<'a>> {
    let give_up = Instant::now() + patience;
    loop {
        let from = roots.clone();
        let disks = blocking(move || inventory::disks(&from)).await?;
        let system = disks.iter().find(|d| Identity::of(d) == *installed);
        let found = match system {
            Some(system) => assign(&setup.storage, &disks, system),
            None => Err(Error::conflict("storage.system", "the disk that the system was written to is not here")),
        };
        match found {
            Ok(assigned) => return Ok(Wanted { machine, storage: &setup.storage, assigned }),
            Err(error) if Instant::now() >= give_up => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

fn identity(installed: &Installed) -> Identity {
    let serial = installed.disk_serial.as_ref().map(|s| s.as_str().to_owned());
    Identity { size_bytes: installed.disk_bytes, serial, wwn: installed.disk_wwn.clone() }
}

async fn store(roots: &Roots, installed: &Installed) -> Result<()> {
    if installed.setup.storage.is_empty() {
        return Ok(());
    }
    let mut begun = Begun::open(roots)?;
    if begun.done(installed)? {
        return Ok(());
    }
    // The rules of LVM and md are udev's work.
    tool::expect("udevadm", &["settle", "--timeout=60"], Duration::from_secs(90)).await?;
    let wanted = wanted(roots, &identity(installed), installed.machine, &installed.setup, DISKS).await?;
    for _ in 0..STEPS {
        let seen = look::look(roots, &wanted).await?;
        let Some(step) = plan::next(&wanted, &seen, &begun.names)? else {
            return begun.finish(installed);
        };
        let again = begun.names.contains(&step.name());
        say(format!("storage: {}", step.sentence()));
        begun.begin(&step.name())?;
        act::act(roots, &step, again).await?;
        begun.end(&step.name())?;
    }
    Err(Error::internal("storage.steps", "the storage is not done after more steps than it can have"))
}

/// The steps that were begun and not finished, a line each, and whether all was there once.
struct Begun {
    file: std::path::PathBuf,
    done: std::path::PathBuf,
    names: BTreeSet<String>,
}

impl Begun {
    fn open(roots: &Roots) -> Result<Self> {
        let failed = || format!("{} cannot be written", roots.state.display());
        std::fs::create_dir_all(&roots.state).or_fail(Kind::Internal, "storage.record", failed)?;
        let file = roots.state.join("storage-begun");
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::internal("storage.record", failed()).because(e)),
        };
        Ok(Self { file, done: roots.state.join("storage-done"), names: text.lines().map(str::to_owned).collect() })
    }

    fn done(&self, installed: &Installed) -> Result<bool> {
        Ok(std::fs::read_to_string(&self.done).is_ok_and(|there| there == layout(installed)))
    }

    fn begin(&mut self, name: &str) -> Result<()> {
        self.names.insert(name.to_owned());
        self.save()
    }

    fn end(&mut self, name: &str) -> Result<()> {
        self.names.remove(name);
        self.save()
    }

    fn save(&self) -> Result<()> {
        let text: String = self.names.iter().map(|n| format!("{n}\n")).collect();
        let failed = || format!("{} cannot be written", self.file.display());
        durable::replace(&self.file, text.as_bytes()).or_fail(Kind::Internal, "storage.record", failed)
    }

    fn finish(&self, installed: &Installed) -> Result<()> {
        let failed = || format!("{} cannot be written", self.done.display());
        durable::replace(&self.done, layout(installed).as_bytes()).or_fail(Kind::Internal, "storage.record", failed)
    }
}

fn layout(installed: &Installed) -> String {
    serde_json::to_string(&installed.setup.storage).unwrap_or_default()
}

/// What `ethtool` said of each NIC.
struct Asked(BTreeMap<(String, String), String>);

impl Ethtool for Asked {
    fn ask(&self, option: &str, nic: &str) -> Option<String> {
        self.0.get(&(option.to_owned(), nic.to_owned())).cloned()
    }
}

async fn ask_ethtool(roots: &Roots, setup: &Setup) -> Asked {
    let mut asked = BTreeMap::new();
    let wanted = |prefix: &str| setup.tuning.iter().any(|s| s.name.starts_with(prefix));
    let entries = std::fs::read_dir(roots.sys.join("class/net")).into_iter().flatten().flatten();
    let nics: Vec<String> =
        entries.filter(|e| e.path().join("device").exists()).filter_map(|e| e.file_name().into_string().ok()).collect();
    for nic in nics {
        for (option, prefix) in [("-l", "nic.queues"), ("-k", "offload.")] {
            // Not every driver knows it; then there is nothing to set.
            if wanted(prefix)
                && let Ok(output) = tool::expect("ethtool", &[option, &nic], QUICK).await
            {
                asked.insert((option.to_owned(), nic.clone()), output.stdout);
            }
        }
    }
    Asked(asked)
}

async fn tune(roots: &Roots, setup: &Setup) -> Result<()> {
    if setup.tuning.is_empty() {
        return Ok(());
    }
    // Interrupts are another set after the queues have changed: one round for these, and one for the rest.
    for _ in 0..2 {
        let asked = ask_ethtool(roots, setup).await;
        for tuned in tune::look(roots, setup, &asked) {
            for change in &tuned.changes {
                // One that the hardware does not take is found by the check, with what it is instead.
                if let Err(error) = set(change).await {
                    say(format!("{}: {error}", tuned.name));
                }
            }
        }
    }
    Ok(())
}

async fn set(change: &Change) -> Result<()> {
    match change {
        Change::Write { path, value } => {
            let failed = || format!("{} does not take {value}", path.display());
            std::fs::write(path, value).or_fail(Kind::Refused, "tuning.write", failed)
        }
        Change::Run(words) => {
            let Some((program, args)) = words.split_first() else { return Ok(()) };
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            tool::expect(program, &args, QUICK).await.map(|_| ())
        }
    }
}

/// For the delivery checks: the storage as one, and each setting with its reason.
pub async fn verify(agent: &Agent, setup: &Setup, meter: &Meter) -> Vec<Check> {
    let roots = &agent.options.roots;
    let mut checks = Vec::new();
    let start = Instant::now();
    if !setup.storage.is_empty() {
        meter.step("checking storage", 0);
        let found = storage(roots, agent.appliance.machine(), setup).await;
        let (passed, found, hint) = match found {
            Ok((passed, found)) => (passed, found, "see `journalctl -u rackline-setup` on the host".to_owned()),
            Err(e) => (
                false,
                e.message().to_owned(),
                e.next_step().unwrap_or("see `journalctl -u rackline-setup`").to_owned(),
            ),
        };
        checks.push(Check {
            id: "storage".into(),
            passed,
            expected: "the storage that was ordered, all arrays whole".into(),
            found,
            seconds: start.elapsed().as_secs_f64(),
            hint: Some(hint).filter(|_| !passed),
            severity: Severity::Fault,
            who: Who::Operator,
            why: "what runs on the host writes where its disks were meant to be".into(),
            ..Check::default()
        });
    }
    if setup.tuning.is_empty() {
        return checks;
    }
    meter.step("checking tuning", 0);
    let asked = ask_ethtool(roots, setup).await;
    let start = Instant::now();
    checks.extend(tune::look(roots, setup, &asked).into_iter().map(|tuned| {
        let passed = tuned.changes.is_empty();
        // Not every card takes what it is told; everything else is the kernel's own, and takes it.
        let card = tuned.name.starts_with("nic.") || tuned.name.starts_with("offload.");
        Check {
            id: format!("tuning.{}", tuned.name),
            passed,
            expected: tuned.expected,
            found: tuned.found,
            seconds: start.elapsed().as_secs_f64(),
            hint: Some("see `journalctl -u rackline-setup` on the host".into()).filter(|_| !passed),
            severity: if card { Severity::Warning } else { Severity::Fault },
            who: Who::Operator,
            why: tuned.why,
            ..Check::default()
        }
    }));
    checks
}

async fn storage(roots: &Roots, machine: MachineId, setup: &Setup) -> Result<(bool, String)> {
    let failed = || format!("{} cannot be read", super::deploy::INSTALLED_FILE);
    let bytes = std::fs::read(super::deploy::INSTALLED_FILE).or_fail(Kind::NotFound, "host.record", failed)?;
    let installed: Installed = serde_json::from_slice(&bytes).or_fail(Kind::Refused, "host.record", failed)?;
    let wanted = wanted(roots, &identity(&installed), machine, setup, Duration::ZERO).await?;
    let seen = look::look(roots, &wanted).await?;
    if let Some(step) = plan::next(&wanted, &seen, &BTreeSet::new())? {
        return Ok((false, format!("not there: {}", step.sentence())));
    }
    let degraded = seen.arrays.iter().find(|(_, a)| a.missing > 0);
    if let Some((array, state)) = degraded {
        return Ok((false, format!("{array} lacks {} of {} disks", state.missing, state.members)));
    }
    let mounts: Vec<&str> = seen.mounts.keys().map(String::as_str).collect();
    Ok((true, format!("{} disks, mounted: {}", wanted.assigned.disks().count(), mounts.join(", "))))
}
