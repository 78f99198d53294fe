//! The guard: a small process that outlives the lab, so that nothing else does.
//!
//! It takes the lab's locks, removes what a killed lab of the same name left, says `ready` and then waits for the end of
//! a pipe whose other end only the lab holds. However the lab ends (Ctrl-C, an error, `kill -9`), the pipe ends with it,
//! and the guard kills every process of the lab and deletes its network namespace. The clean-up of every day is thus
//! the same code as the clean-up after a crash.
//!
//! A process of the lab is known by a variable in its environment, which its children inherit; process ids in files can
//! lie after a restart. A child that was forked and not yet executed has no such variable, but still holds the pipe:
//! the guard sees the end only after it has become one that has.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, PipeWriter, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::spec::{Spec, netns, run_dir};
use crate::error::{Error, Kind, OrFail, Result};

/// In the environment of each process of a lab, with the lab's name.
const MARK: &str = "RACKLINE_LAB_PROCESS";

/// In the directory of each lab.
const LOCK: &str = "lab.lock";

/// A killed process goes away when its last system call returns; writing back a large disk file takes the longest.
const KILL_WITHIN: Duration = Duration::from_secs(20);

/// A killed lab's guard needs [`KILL_WITHIN`] at most before it lets go of the lock.
const LOCK_WITHIN: Duration = Duration::from_secs(25);

/// The lab's end of the pipe, and the only place where it starts processes.
#[derive(Clone)]
pub struct Guard(Arc<Shared>);

struct Shared {
    name: String,
    state: RwLock<State>,
}

enum State {
    /// The closing of the pipe is the signal.
    Up { process: Child, pipe: PipeWriter },
    /// Nothing is started any more.
    Down { clean: bool },
}

impl Guard {
    /// Takes the name and the directory for this lab. A lab that runs already is refused.
    pub fn start(spec: &Spec) -> Result<Guard> {
        own(&spec.dir)?;
        let failed = || "cannot start the lab's guard";
        let log = File::create(spec.dir.join("guard.log")).or_fail(Kind::Config, "lab.guard", failed)?;
        let (reader, writer) = std::io::pipe().or_fail(Kind::Internal, "lab.guard", failed)?;
        let mut process = Command::new(&spec.binary)
            .args(["lab", "guard", &spec.name])
            .arg(&spec.dir)
            .arg(std::process::id().to_string())
            .env_remove(MARK)
            .stdin(reader)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .or_fail(Kind::Internal, "lab.guard", failed)?;
        let mut answer = String::new();
        if let Some(out) = process.stdout.take() {
            // Bounded by LOCK_WITHIN and KILL_WITHIN in the guard itself.
            BufReader::new(out.take(4096)).read_line(&mut answer).or_fail(Kind::Internal, "lab.guard", failed)?;
        }
        if answer.trim_end() == "ready" {
            let state = RwLock::new(State::Up { process, pipe: writer });
            return Ok(Guard(Arc::new(Shared { name: spec.name.clone(), state })));
        }
        drop(writer);
        let _ = process.wait();
        match answer.trim_end().strip_prefix("busy ") {
            Some(holder) => {
                Err(Error::conflict("lab.running", format!("the lab {:?} runs already: {holder}", spec.name))
                    .hint("stop that one, or start another with its own --name and --dir"))
            }
            None => {
                Err(Error::internal("lab.guard", format!("the lab's guard did not get ready: {}", answer.trim_end()))
                    .hint(format!("see {}", spec.dir.join("guard.log").display())))
            }
        }
    }

    /// Starts a process of the lab, unless the lab is being taken down.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let state = self.0.state.read().unwrap_or_else(|e| e.into_inner());
        state.up()?;
        let program = command.get_program().to_string_lossy().into_owned();
        command
            .env(MARK, &self.0.name)
            .process_group(0)
            .spawn()
            .or_fail(Kind::Internal, "lab.spawn", || format!("cannot start {program}"))
    }

    /// Called in each loop that waits.
    pub fn check(&self) -> Result<()> {
        self.0.state.read().unwrap_or_else(|e| e.into_inner()).up()
    }

    /// Ends every process of the lab and deletes its namespace; returns when that is done. Again is the same answer.
    pub fn finish(&self) -> Result<()> {
        self.0.finish()
    }
}

impl Shared {
    fn finish(&self) -> Result<()> {
        let mut state = self.state.write().unwrap_or_else(|e| e.into_inner());
        *state = match std::mem::replace(&mut *state, State::Down { clean: false }) {
            State::Up { mut process, pipe } => {
                drop(pipe);
                State::Down { clean: process.wait().is_ok_and(|status| status.success()) }
            }
            down => down,
        };
        match *state {
            State::Down { clean: true } => Ok(()),
            _ => Err(Error::internal("lab.cleanup", "the lab could not be taken down completely")
                .hint(format!("see guard.log in the lab's directory, and: ip netns pids {}", netns(&self.name)))),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Err(e) = self.finish() {
            tracing::error!("{e:?}");
        }
    }
}

impl State {
    fn up(&self) -> Result<()> {
        match self {
            State::Up { .. } => Ok(()),
            State::Down { .. } => Err(Error::conflict("lab.stopping", "the lab is being taken down")),
        }
    }
}

/// A lab empties its directory at each start, so it takes none that holds other things.
fn own(dir: &Path) -> Result<()> {
    let failed = || format!("cannot make {}", dir.display());
    fs::create_dir_all(dir).or_fail(Kind::Config, "lab.dir", failed)?;
    let empty = fs::read_dir(dir).or_fail(Kind::Config, "lab.dir", failed)?.next().is_none();
    match empty || dir.join(LOCK).exists() {
        true => File::options().append(true).create(true).open(dir.join(LOCK)).map(drop),
        false => Err(std::io::ErrorKind::DirectoryNotEmpty.into()),
    }
    .or_fail(Kind::Config, "lab.dir", || format!("{} is not the directory of a lab", dir.display()))
    .map_err(|e| e.hint("name an empty one with --dir"))
}

/// `rackline lab guard NAME DIR PID`
pub fn main(name: &str, dir: &Path, lab: u32) -> Result<ExitCode> {
    // A session of its own: neither Ctrl-C in the terminal nor the end of the shell's job reaches the guard.
    let _ = rustix::process::setsid();
    let holder = format!("process {lab}, directory {}", dir.display());
    // The second one is for two labs of different names in one directory.
    let locks = [PathBuf::from("/run/rackline").join(format!("{name}.lock")), dir.join(LOCK)];
    let mut held = Vec::new();
    for path in &locks {
        match lock(path, &holder)? {
            Ok(file) => held.push(file),
            Err(other) => {
                println!("busy {other}");
                if !held.is_empty() {
                    let _ = fs::remove_file(&locks[0]);
                }
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    remove(name)?;
    let run = run_dir(name);
    fs::create_dir_all(&run).or_fail(Kind::Config, "lab.run-dir", || format!("cannot make {}", run.display()))?;
    println!("ready");
    // Ends with the lab, whenever that is.
    let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    remove(name)?;
    let _ = fs::remove_file(&locks[0]);
    Ok(ExitCode::SUCCESS)
}

/// The lock with our name in it, or who has it. One that belongs to a dead lab is waited for: its guard cleans up.
fn lock(path: &Path, holder: &str) -> Result<Result<File, String>> {
    let failed = || format!("cannot take the lock {}", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).or_fail(Kind::Config, "lab.lock", failed)?;
    }
    let deadline = Instant::now() + LOCK_WITHIN;
    loop {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = file.or_fail(Kind::Config, "lab.lock", failed)?;
        if file.try_lock().is_ok() {
            // The one before removes its file when it is done: then this is a lock that nobody else will look at.
            let same = fs::metadata(path).is_ok_and(|now| file.metadata().is_ok_and(|m| m.ino() == now.ino()));
            if same {
                let written = file.set_len(0).and_then(|()| file.write_all(holder.as_bytes()));
                return written.or_fail(Kind::Config, "lab.lock", failed).map(|()| Ok(file));
            }
            continue;
        }
        let other = fs::read_to_string(path).unwrap_or_default();
        let pid = other.strip_prefix("process ").and_then(|rest| rest.split(',').next());
        if pid.is_some_and(|pid| Path::new("/proc").join(pid).exists()) || Instant::now() > deadline {
            return Ok(Err(other));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Removes all that a lab of this name has outside its directory. Finding nothing is fine.
fn remove(name: &str) -> Result<()> {
    let deadline = Instant::now() + KILL_WITHIN;
    loop {
        let left: Vec<Pid> = marked(name).filter(|pid| kill(*pid, name)).collect();
        if left.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            return Err(Error::internal("lab.kill", format!("processes of the lab do not end: {left:?}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let netns = netns(name);
    if Path::new("/run/netns").join(&netns).exists() {
        let status = Command::new("ip").args(["netns", "del", &netns]).stdin(Stdio::null()).status();
        if !status.or_fail(Kind::Config, "lab.netns", || "cannot run ip")?.success() {
            return Err(Error::internal("lab.netns", format!("cannot delete the network namespace {netns}")));
        }
    }
    match fs::remove_dir_all(run_dir(name)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::internal("lab.run-dir", format!("cannot remove {}", run_dir(name).display())).because(e))
        }
        _ => Ok(()),
    }
}

fn marked(name: &str) -> impl Iterator<Item = Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
        .filter(move |pid| is_marked(*pid, name))
}

/// A process that has ended but is not yet waited for has no environment any more, and so does not count.
fn is_marked(pid: Pid, name: &str) -> bool {
    let mark = format!("{MARK}={name}");
    let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap_or_default();
    environment.split(|b| *b == 0).any(|variable| variable == mark.as_bytes())
}

/// The mark is looked at again once the process is held by a descriptor: the number may have gone to another one.
fn kill(pid: Pid, name: &str) -> bool {
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    is_marked(pid, name) && pidfd_send_signal(process, Signal::KILL).is_ok()
}
