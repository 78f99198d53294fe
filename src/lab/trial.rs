//! One image tried out by itself: written to a virtual disk, started by BIOS or UEFI, set up by a seed as on a delivered
//! host, and checked from inside by its own agent.
//!
//! ```text
//!  image ─► disk, larger than the image ─► QEMU ─ first boot, cloud-init ─► agent ─ hello, orders, report ─► us
//!  seed with this very binary ───────────────┘        console ─────────────────────────────────────────────► cause
//! ```
//!
//! The agent gets the orders that an appliance would give it, over QEMU's user network; nothing is injected into the image.
//! Two things differ from a server: the seed is on a disk of its own instead of the last partition, and QEMU emulates
//! without KVM. When the agent does not speak, what the console shows says why.

mod appliance;
mod console;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

use self::appliance::{Appliance, Told};
use self::console::Console;
use super::vm::{CPU, OVMF_CODE, OVMF_VARS, QEMU, comma};
use crate::agent::{Installed, seed_image};
use crate::check;
use crate::error::{Error, Kind, OrFail, Result};
use crate::image::proof::{Passed, Proof};
use crate::image::{Entry, verify_and_decompress};
use crate::link::{Check, Outcome, Verify};
use crate::machine::{Firmware, Hostname, MacAddr, MachineId, Role, Roles, Serial};
use crate::role::{Setup, Storage, Templates};
use crate::template::seed::{self, Facts};

/// The disk is that much larger than the image: growing to it is part of the first boot.
const ROOM: u64 = 2 << 30;
const DISK_SERIAL: &str = "RLTRIAL1";
const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x54, 0x52, 1]);
/// Where a guest of QEMU's user network finds this machine's loopback.
const HOST: &str = "10.0.2.2";
/// A first boot, emulated, on a host that has other things to do as well.
const BOOT: Duration = Duration::from_secs(1200);
/// The checks of one role; each has a deadline of its own, this is for an agent that is gone.
const CHECKS: Duration = Duration::from_secs(1200);
const LOOK: Duration = Duration::from_millis(500);

pub struct Trial<'a> {
    pub entry: &'a Entry,
    pub firmware: Firmware,
    /// What [`restore`] wrote. It stays as it is: QEMU keeps changes elsewhere.
    pub disk: &'a Path,
    /// A folder for all else.
    pub work: &'a Path,
    /// What the installed host is to run as its agent.
    pub binary: &'a [u8],
}

/// Writes the disk that an image is, with room behind it. `progress` is told the bytes that are done.
pub fn restore(entry: &Entry, to: &Path, progress: &dyn Fn(u64)) -> Result<()> {
    let failed = || format!("cannot write the disk of {}", entry.name());
    let data = File::open(&entry.data).or_fail(Kind::NotFound, "image.data", failed)?;
    let disk = File::create(to).or_fail(Kind::Config, "image.test", failed)?;
    disk.set_len(entry.manifest.disk_size + ROOM).or_fail(Kind::Config, "image.test", failed)?;
    let (mut frame, mut raw) = (Vec::new(), Vec::new());
    for chunk in &entry.manifest.chunks {
        frame.resize(chunk.length as usize, 0);
        data.read_exact_at(&mut frame, chunk.offset).or_fail(Kind::Refused, "image.data", failed)?;
        verify_and_decompress(chunk, &frame, &mut raw)?;
        disk.write_all_at(&raw, chunk.disk_offset).or_fail(Kind::Config, "image.test", failed)?;
        progress(chunk.disk_offset + raw.len() as u64);
    }
    Ok(())
}

/// Boots the image and runs the checks of its roles. `say` is told each step.
pub async fn run(trial: &Trial<'_>, say: &(dyn Fn(&str) + Sync)) -> Result<Proof> {
    let qemu = version().await?;
    let machine = MachineId::generate();
    let hostname: Hostname = "image-test".parse()?;
    let manifest = &trial.entry.manifest;
    let (declared, kernel_floor) = (super::checks()?, major_minor(&manifest.boot.release));
    let roles = Roles::of(manifest.roles.iter().copied()).unwrap_or(Role::Kvm.into());
    // There are no disks besides the image's own.
    let setup = Setup { storage: Storage::default(), ..Templates::default().of(&roles)?.setup };
    let order = |role: Roles| {
        let facts = check::Facts { hostname: &hostname, manifest: trial.entry.digest, kernel_floor: &kernel_floor };
        let checks = declared.asks(&role, &facts, false);
        let (hostname, kernel_floor) = (hostname.clone(), kernel_floor.clone());
        Verify { role, hostname, manifest: trial.entry.digest, kernel_floor, setup: setup.clone(), checks, tls: false }
    };
    let orders = manifest.roles.iter().map(|role| order((*role).into())).collect();
    let mut appliance = Appliance::start(machine, orders).await?;

    let facts = Facts {
        machine,
        hostname: &hostname,
        role: &roles,
        ssh_keys: &[],
        url: &format!("http://{HOST}:{}", appliance.port),
        token: &appliance.token,
        key: None,
        manifest: trial.entry.digest,
        boot_mac: Some(MAC),
    };
    let installed = Installed {
        machine,
        manifest: trial.entry.digest,
        disk_serial: Serial::parse(DISK_SERIAL),
        disk_wwn: None,
        disk_bytes: manifest.disk_size + ROOM,
        setup: setup.clone(),
    };
    let seed = seed_image(&seed::render(&facts)?, &installed, trial.binary)?;
    let failed = || "cannot prepare the virtual machine".to_owned();
    fs::write(trial.seed(), seed).or_fail(Kind::Config, "image.test", failed)?;
    if trial.firmware == Firmware::Uefi {
        fs::copy(OVMF_VARS, trial.vars()).or_fail(Kind::Config, "image.test", failed)?;
    }
    let mut run = Running { console: Console::new(trial.console()), qemu: trial.start()?, trial, say };

    let start = Instant::now();
    say("starting");
    run.wait(&mut appliance, BOOT, |told| matches!(told, Told::Hello).then_some(Ok(()))).await?;
    let boot_seconds = start.elapsed().as_secs_f64();
    let mut checks = Vec::new();
    for (i, role) in manifest.roles.iter().enumerate() {
        let wanted = i as u64 + 1;
        let outcome = run.wait(&mut appliance, CHECKS, |told| match told {
            Told::Report(report) if report.number == wanted => Some(Ok(report.outcome)),
            _ => None,
        });
        let found = match outcome.await? {
            Outcome::Checked { checks, .. } => passed(checks).map_err(|e| run.console.explain(e))?,
            Outcome::Failed(problem) => return Err(run.console.explain(problem.into_error(Kind::Refused))),
            other => return Err(Error::refused("image.test", format!("the agent reports {other:?}"))),
        };
        let of_role = |c: Check| Passed { role: *role, id: c.id, found: c.found, seconds: c.seconds };
        checks.extend(found.into_iter().map(of_role));
    }
    Ok(Proof {
        manifest: trial.entry.digest,
        firmware: trial.firmware,
        at: jiff::Timestamp::now(),
        rackline: env!("CARGO_PKG_VERSION").into(),
        qemu,
        boot_seconds,
        checks,
    })
}

/// `6.1` of `6.1.0-56-amd64`: at least what the manifest names must be running. Anything where it names nothing.
fn major_minor(release: &str) -> String {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if !major.is_empty() && !minor.is_empty() => format!("{major}.{minor}"),
        _ => "0.0".into(),
    }
}

fn passed(checks: Vec<Check>) -> Result<Vec<Check>> {
    let bad = |c: &&Check| c.failed();
    let Some(first) = checks.iter().find(bad) else { return Ok(checks) };
    let list = checks.iter().filter(bad).map(|c| format!("{}: expected {}, found {}", c.id, c.expected, c.found));
    let message = format!("the image boots, but not all is well: {}", list.collect::<Vec<_>>().join("; "));
    let error = Error::refused("image.test-check", message);
    Err(match &first.hint {
        Some(hint) => error.hint(hint.clone()),
        None => error,
    })
}

async fn version() -> Result<String> {
    let output = Command::new(QEMU).arg("--version").output().await;
    let output = output
        .or_fail(Kind::Config, "image.test", || format!("{QEMU} cannot be run"))
        .map_err(|e| e.hint("apt-get install qemu-system-x86 ovmf"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().trim_start_matches("QEMU emulator version ").to_owned())
}

impl Trial<'_> {
    fn seed(&self) -> PathBuf {
        self.work.join("seed.img")
    }

    fn vars(&self) -> PathBuf {
        self.work.join("uefi-vars.fd")
    }

    fn console(&self) -> PathBuf {
        self.work.join(format!("console-{}", self.firmware).to_lowercase())
    }

    fn errors(&self) -> PathBuf {
        self.work.join("qemu-errors")
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> = ["-nodefaults", "-no-user-config", "-no-reboot"].map(String::from).into();
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        for (option, value) in [
            ("-accel", "tcg,thread=multi,tb-size=256"),
            ("-cpu", CPU),
            ("-M", "q35,graphics=off"),
            ("-m", "2048M"),
            ("-smp", "2"),
            ("-display", "none"),
            ("-device", "virtio-rng-pci"),
            ("-netdev", "user,id=n0"),
        ] {
            add(option, value.into());
        }
        if self.firmware == Firmware::Uefi {
            add("-drive", format!("if=pflash,format=raw,unit=0,readonly=on,file={OVMF_CODE}"));
            add("-drive", format!("if=pflash,format=raw,unit=1,file={}", comma(&self.vars())));
        }
        // Without a ROM, so that nothing but the disk can be started.
        add("-device", format!("virtio-net-pci,netdev=n0,mac={MAC},romfile="));
        let disk = comma(self.disk);
        add("-drive", format!("if=none,id=d0,format=raw,file={disk},snapshot=on,cache=unsafe,discard=unmap"));
        add("-device", format!("nvme,drive=d0,serial={DISK_SERIAL},bootindex=1"));
        add("-drive", format!("if=none,id=d1,format=raw,file={},snapshot=on,cache=unsafe", comma(&self.seed())));
        add("-device", "nvme,drive=d1,serial=RLSEED1".into());
        add("-chardev", format!("file,id=console,path={}", comma(&self.console())));
        add("-serial", "chardev:console".into());
        arguments
    }

    fn start(&self) -> Result<Child> {
        let failed = || "cannot start QEMU".to_owned();
        let errors = File::create(self.errors()).or_fail(Kind::Config, "image.test", failed)?;
        // It ends with us, however we end. What it writes to the disks lies in a file without a name in TMPDIR.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", QEMU]).args(self.arguments()).env("TMPDIR", self.work);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).kill_on_drop(true);
        command.spawn().or_fail(Kind::Config, "image.test", failed)
    }
}

struct Running<'a> {
    trial: &'a Trial<'a>,
    qemu: Child,
    console: Console,
    say: &'a (dyn Fn(&str) + Sync),
}

impl Running<'_> {
    /// Until the agent tells what `wanted` looks for, the console shows a fault, QEMU ends, or it has taken too long.
    async fn wait<T>(
        &mut self,
        appliance: &mut Appliance,
        within: Duration,
        wanted: impl Fn(Told) -> Option<Result<T>>,
    ) -> Result<T> {
        let give_up = Instant::now() + within;
        loop {
            tokio::select! {
                told = appliance.told.recv() => match told {
                    Some(Told::Step(step)) => (self.say)(&step),
                    Some(told) => if let Some(found) = wanted(told) {
                        return found;
                    },
                    None => return Err(Error::internal("image.test", "the trial's own appliance has ended")),
                },
                () = tokio::time::sleep(LOOK) => {}
            }
            if let Some(step) = self.console.look()? {
                (self.say)(step);
            }
            if let Ok(Some(status)) = self.qemu.try_wait() {
                let errors = fs::read_to_string(self.trial.errors()).unwrap_or_default();
                let what = format!("the machine switched itself off or QEMU ended ({status})");
                let error = Error::refused("image.test-ended", what);
                return Err(self.console.explain(match errors.trim() {
                    "" => error,
                    errors => error.because(errors.to_owned()),
                }));
            }
            if Instant::now() > give_up {
                return Err(self.console.too_late(within));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(id: &str, passed: bool) -> Check {
        let hint = (!passed).then(|| format!("mend {id}"));
        Check { id: id.into(), passed, expected: "yes".into(), found: "no".into(), hint, ..Check::default() }
    }

    #[test]
    fn all_checks_that_failed_are_named() {
        assert_eq!(passed(vec![check("a", true)]).unwrap().len(), 1);
        let error = passed(vec![check("a", true), check("b", false), check("c", false)]).unwrap_err();
        assert_eq!(error.code(), "image.test-check");
        assert!(error.message().ends_with("b: expected yes, found no; c: expected yes, found no"), "{error}");
        assert_eq!(error.next_step(), Some("mend b"));
    }

    #[test]
    fn the_kernel_of_the_manifest_is_the_least() {
        assert_eq!(major_minor("6.1.0-56-amd64"), "6.1");
        assert_eq!((major_minor(""), major_minor("linux")), ("0.0".into(), "0.0".into()));
    }
}
