//! Running the tools that do the work: with a log, a deadline, and an ear for "stop".
//!
//! Each tool dies with us (`setpriv --pdeathsig`), its output goes to the log of the build, and the end of that output
//! is in the error.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, OrFail, Result};

/// What a build is doing, in the operator's words.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    pub image: &'a str,
    pub what: &'a str,
    /// Bytes, or steps; `total` is 0 where the end is not known.
    pub done: u64,
    pub total: u64,
}

/// Who watches a build. Called from several threads.
pub trait Progress: Sync {
    fn step(&self, step: &Step);

    /// True once the operator wants to stop: the build ends soon, and leaves nothing behind.
    fn stopped(&self) -> bool {
        false
    }
}

/// A build that nobody watches.
impl Progress for () {
    fn step(&self, _: &Step) {}
}

/// The longest that one tool may take: bootstrapping over a slow mirror.
const DEADLINE: Duration = Duration::from_secs(3600);

/// Runs tools for one build.
pub struct Tools<'a> {
    pub image: &'a str,
    pub progress: &'a dyn Progress,
    log: PathBuf,
}

impl<'a> Tools<'a> {
    pub fn new(image: &'a str, log: PathBuf, progress: &'a dyn Progress) -> Result<Self> {
        let failed = || format!("cannot write the log {}", log.display());
        if let Some(folder) = log.parent() {
            fs::create_dir_all(folder).or_fail(Kind::Config, "image.log", failed)?;
        }
        File::create(&log).or_fail(Kind::Config, "image.log", failed)?;
        Ok(Self { image, progress, log })
    }

    pub fn step(&self, what: &str) -> Result<()> {
        self.steps(what, 0, 0);
        self.check_stopped()
    }

    pub fn steps(&self, what: &str, done: u64, total: u64) {
        self.progress.step(&Step { image: self.image, what, done, total });
    }

    pub fn check_stopped(&self) -> Result<()> {
        match self.progress.stopped() {
            true => Err(Error::conflict("image.stopped", format!("the build of {} was stopped", self.image))),
            false => Ok(()),
        }
    }

    /// Runs a tool to its end. `package` is the Debian package that has it.
    pub fn run(&self, package: &str, command: &mut Command) -> Result<()> {
        let name = name_of(command);
        let mut log = OpenOptions::new()
            .append(true)
            .open(&self.log)
            .or_fail(Kind::Config, "image.log", || format!("cannot write the log {}", self.log.display()))?;
        let _ = writeln!(log, "+ {command:?}");
        let begin = log.seek(SeekFrom::End(0)).unwrap_or(0);
        let output = || log.try_clone().or_fail(Kind::Internal, "image.log", || "cannot share the log");
        let mut child = tied(command)
            .stdin(Stdio::null())
            .stdout(output()?)
            .stderr(output()?)
            .spawn()
            .map_err(|e| missing(&name, package, e))?;
        let status = self.wait(&name, &mut child, &|| ())?;
        match status.success() {
            true => Ok(()),
            // setpriv's word for a program that is not there.
            false if status.code() == Some(127) => Err(missing(&name, package, io::ErrorKind::NotFound.into())),
            false => Err(self.failure(&name, status, begin)),
        }
    }

    /// Runs a tool whose exit status and standard output are looked at by the caller: `out` takes the output, and `watch`
    /// is called every now and then meanwhile. What it says on standard error goes to the log; its end is returned.
    pub fn watched(
        &self,
        package: &str,
        command: &mut Command,
        out: &Path,
        watch: &dyn Fn(),
    ) -> Result<(ExitStatus, String)> {
        let name = name_of(command);
        let failed = || format!("cannot write the log {}", self.log.display());
        let mut log = OpenOptions::new().append(true).open(&self.log).or_fail(Kind::Config, "image.log", failed)?;
        let _ = writeln!(log, "+ {command:?}");
        let begin = log.seek(SeekFrom::End(0)).unwrap_or(0);
        let out = File::create(out).map_err(|e| super::disk_full(e, &name))?;
        let child = tied(command).stdin(Stdio::null()).stdout(out).stderr(log).spawn();
        let status = self.wait(&name, &mut child.map_err(|e| missing(&name, package, e))?, watch)?;
        match status.code() {
            Some(127) => Err(missing(&name, package, io::ErrorKind::NotFound.into())),
            _ => Ok((status, tail(&self.log, begin).unwrap_or_default())),
        }
    }

    /// What a tool prints, for the short ones.
    pub fn output(&self, package: &str, command: &mut Command) -> Result<String> {
        let name = name_of(command);
        let Output { status, stdout, stderr } =
            command.stdin(Stdio::null()).output().map_err(|e| missing(&name, package, e))?;
        if !status.success() {
            return Err(Error::config("image.tool", format!("{name} failed ({status})"))
                .because(String::from_utf8_lossy(&stderr).trim().to_owned()));
        }
        String::from_utf8(stdout).or_fail(Kind::Internal, "image.tool", || format!("{name} did not print text"))
    }

    fn wait(&self, name: &str, child: &mut Child, watch: &dyn Fn()) -> Result<ExitStatus> {
        let begin = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => {}
                Err(e) => return Err(Error::internal("image.tool", format!("cannot wait for {name}")).because(e)),
            }
            let late = begin.elapsed() > DEADLINE;
            if let (Err(e), _) | (Ok(()), Err(e)) = (self.check_stopped(), self.check_late(name, late)) {
                // The tools that have children of their own run in a PID namespace, which ends with its first process.
                let _ = child.kill();
                let _ = child.wait();
                return Err(e);
            }
            watch();
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    fn check_late(&self, name: &str, late: bool) -> Result<()> {
        match late {
            true => Err(Error::unreachable("image.tool", format!("{name} did not end within an hour"))
                .hint(format!("look into {}", self.log.display()))),
            false => Ok(()),
        }
    }

    fn failure(&self, name: &str, status: ExitStatus, begin: u64) -> Error {
        let tail = tail(&self.log, begin).unwrap_or_default();
        let log = self.log.display();
        let missing = tail.lines().find_map(|l| {
            let package = l.strip_prefix("E: Unable to locate package ");
            package.or_else(|| l.strip_prefix("E: Package '")?.strip_suffix("' has no installation candidate"))
        });
        if let Some(package) = missing {
            return Error::config("image.package", format!("{}: {}", self.image, no_package(package)))
                .hint("correct the name in recipe.toml; `apt-cache search` finds names")
                .because(tail);
        }
        if tail.contains("No space left on device") || tail.contains("you don't have enough free space") {
            return super::disk_full(io::ErrorKind::StorageFull.into(), name).because(tail);
        }
        if tail.contains("Failed to fetch") || tail.contains("Could not resolve") {
            return Error::unreachable("image.mirror", "the package mirror did not deliver")
                .hint("check the network and /etc/apt/sources.list, or name another mirror with --mirror URL")
                .because(tail);
        }
        Error::config("image.tool", format!("{name} failed ({status}) while building {}", self.image))
            .hint(format!("the whole output is in {log}"))
            .because(tail)
    }
}

/// How an error of the code `image.package` ends.
pub fn no_package(name: &str) -> String {
    format!("there is no package {name}")
}

/// The same command under a parent-death signal.
fn tied(command: &Command) -> Command {
    let mut tied = Command::new("setpriv");
    tied.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => tied.env(name, value),
            None => tied.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        tied.current_dir(folder);
    }
    tied
}

fn name_of(command: &Command) -> String {
    let program = Path::new(command.get_program());
    program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned()
}

fn missing(name: &str, package: &str, e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::NotFound => {
            Error::config("image.tool", format!("{name} is not installed")).hint(format!("apt-get install {package}"))
        }
        _ => Error::config("image.tool", format!("cannot start {name}")).because(e),
    }
}

/// The last lines that were written to the log after `begin`.
fn tail(log: &Path, begin: u64) -> io::Result<String> {
    let mut file = File::open(log)?;
    let end = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(begin.max(end.saturating_sub(8192))))?;
    let mut bytes = Vec::new();
    file.take(8192).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines.iter().skip(lines.len().saturating_sub(20)).copied().collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn failing(script: &str) -> Error {
        let dir = tempfile::tempdir().unwrap();
        let tools = Tools::new("kvm", dir.path().join("log"), &()).unwrap();
        tools.run("dash", Command::new("sh").args(["-c", script])).unwrap_err()
    }

    #[test]
    fn the_end_of_the_output_is_in_the_error() {
        let error = failing("seq 1 100; echo the reason >&2; exit 3");
        assert_eq!(error.code(), "image.tool");
        let cause = error.causes().join("\n");
        assert!(cause.ends_with("100\nthe reason") && !cause.contains("\n80\n"), "{cause}");
    }

    #[test]
    fn known_causes_have_their_own_codes() {
        let package = failing("echo 'E: Unable to locate package qemu-sytem'; exit 100");
        assert_eq!(package.code(), "image.package");
        assert!(package.message().contains("qemu-sytem"));
        assert_eq!(failing("echo 'cp: error writing x: No space left on device'; exit 1").code(), "image.disk-full");
        let dir = tempfile::tempdir().unwrap();
        let tools = Tools::new("kvm", dir.path().join("log"), &()).unwrap();
        let failed = tools.output("nonesuch-utils", &mut Command::new("nonesuch")).unwrap_err();
        assert_eq!(failed.next_step(), Some("apt-get install nonesuch-utils"));
    }

    #[test]
    fn a_stop_ends_the_tool() {
        struct Stop(AtomicBool);
        impl Progress for Stop {
            fn step(&self, _: &Step) {}
            fn stopped(&self) -> bool {
                // Let it start, then stop it.
                self.0.swap(true, Ordering::Relaxed)
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let stop = Stop(AtomicBool::new(false));
        let tools = Tools::new("kvm", dir.path().join("log"), &stop).unwrap();
        let error = tools.run("coreutils", Command::new("sleep").arg("1000")).unwrap_err();
        assert_eq!(error.code(), "image.stopped");
    }
}
