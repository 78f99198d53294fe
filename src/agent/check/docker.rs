//! A container host must run a container, from an image that it brings along: delivery needs no registry. What it runs stays
//! within its limits, and is there again after Docker was restarted.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Found, Visit, said};
use crate::agent::{blocking, tool};
use crate::check::Kind;
use crate::error::{Kind as Fault, OrFail, Result};
use crate::image::container::ON_THE_HOST;

/// Removes each archive of [`ON_THE_HOST`] once Docker has it.
const LOADER: &str = "rackline-containers.service";
/// A root file system with a static busybox, as `docker import` takes it.
const ROOT: &str = "/usr/share/rackline/container.tar";
const IMAGE: &str = "rackline/check:1";
const MARKER: &str = "RACKLINE-CONTAINER-OK";
const QUICK: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(170);
const LOOK: Duration = Duration::from_millis(200);
/// Where Docker keeps its data when it is not there to say.
const DATA: &str = "/var/lib/docker";
/// Share of free inodes below which a disk is full, whatever it has in bytes.
const INODES: f64 = 0.02;

/// The containers of the checks: one that runs, and one for each limit.
const RUNNING: &str = "rackline-check";
const GREEDY: &str = "rackline-check-memory";
const FORKING: &str = "rackline-check-pids";

pub async fn check(visit: &mut Visit<'_>) {
    visit.ask(Kind::DockerDaemon, daemon()).await;
    visit.ask(Kind::DockerStorage, storage()).await;
    // Before what needs room: on a full disk everything else fails with a worse sentence.
    visit.ask(Kind::DockerSpace, space()).await;
    visit.ask(Kind::DockerImage, image()).await;
    // An earlier visit may have been cut off.
    take_down().await;
    let runs = visit.ask(Kind::DockerContainer, container()).await;
    visit.ask(Kind::DockerMemory, memory()).await;
    visit.ask(Kind::DockerPids, pids()).await;
    visit.ask(Kind::DockerRestart, restart(runs)).await;
    take_down().await;
}

/// What is not there need not be removed: failures here say nothing.
async fn take_down() {
    let _ = tool::run("docker", &["rm", "--force", "--volumes", RUNNING, GREEDY, FORKING], QUICK).await;
}

async fn daemon() -> Result<Found> {
    let output = tool::run("docker", &["version", "--format", "{{.Server.Version}}"], QUICK).await?;
    let version = output.stdout.trim();
    Ok(match output.success && version.starts_with(|c: char| c.is_ascii_digit()) {
        true => Found::Good(version.to_owned()),
        false => Found::bad(output.last_words()),
    })
}

async fn storage() -> Result<Found> {
    let output = tool::expect("docker", &["info", "--format", "{{.Driver}} {{.CgroupVersion}}"], QUICK).await?;
    Ok(judge_storage(output.stdout.trim()))
}

/// `overlay2 2`, or `overlayfs 2` with containerd's snapshotter.
fn judge_storage(text: &str) -> Found {
    match text.split_once(' ') {
        Some((driver, cgroup)) => {
            Found::when(driver.starts_with("overlay") && cgroup == "2", format!("{driver}, cgroup {cgroup}"))
        }
        None => Found::bad(format!("`docker info` says {}, no driver and cgroup version", said(text))),
    }
}

async fn space() -> Result<Found> {
    let output = tool::run("docker", &["info", "--format", "{{.DockerRootDir}}"], QUICK).await;
    // It may be the full disk that keeps Docker from starting.
    let folder = output.ok().map(|o| o.stdout.trim().to_owned()).filter(|f| f.starts_with('/'));
    let folder = folder.unwrap_or_else(|| DATA.to_owned());
    blocking(move || {
        let failed = || format!("the file system of {folder} does not answer");
        let usage = rustix::fs::statvfs(folder.as_str()).or_fail(Fault::Refused, "docker.space", failed)?;
        let bytes = |blocks: u64| blocks.saturating_mul(usage.f_frsize);
        Ok(judge_space(&folder, bytes(usage.f_bavail), bytes(usage.f_blocks), usage.f_favail, usage.f_files))
    })
    .await
}

/// File systems without a table of inodes say that they have none.
fn judge_space(folder: &str, free: u64, all: u64, inodes_free: u64, inodes: u64) -> Found {
    if inodes > 0 && (inodes_free as f64) < inodes as f64 * INODES {
        return Found::bad(format!("the disk of {folder} is full: {inodes_free} of {inodes} inodes are free"));
    }
    let mib = free as f64 / f64::from(1 << 20);
    let full = if all > 0 && free * 100 < all { "the disk is full: " } else { "" };
    Found::Value(mib, format!("{full}{mib:.0} MiB of {} MiB free at {folder}", all >> 20))
}

/// The archives that Docker does not have yet.
fn not_loaded() -> Vec<String> {
    let entries = std::fs::read_dir(Path::new("/").join(ON_THE_HOST)).into_iter().flatten().flatten();
    let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".tar")).collect()
}

async fn image() -> Result<Found> {
    if !not_loaded().is_empty() {
        // Waits for the one that the boot started.
        tool::run("systemctl", &["start", LOADER], LONG).await?;
    }
    let left = not_loaded();
    if !left.is_empty() {
        return Ok(Found::bad(format!("{LOADER} has not loaded {}", left.join(", "))));
    }
    if tool::run("docker", &["image", "inspect", "--format", "{{.Id}}", IMAGE], QUICK).await?.success {
        return Ok(Found::Good("it was there".into()));
    }
    let output = tool::run("docker", &["import", ROOT, IMAGE], LONG).await?;
    Ok(match output.success {
        true => Found::Good("imported".into()),
        false => Found::bad(output.last_words()),
    })
}

/// Leaves the container running, for [`restart`].
async fn container() -> Result<Found> {
    let script = format!("echo {MARKER}; exec sleep 86400");
    // A shell that sleeps does not hear SIGTERM as the first process: without this each stop would take ten seconds.
    let options = ["run", "--detach", "--name", RUNNING, "--network", "none", "--restart", "unless-stopped"];
    let args: Vec<&str> = options.into_iter().chain(["--stop-signal", "KILL", IMAGE, "sh", "-c", &script]).collect();
    let start = Instant::now();
    let output = tool::run("docker", &args, LONG).await?;
    if !output.success {
        return Ok(Found::bad(output.last_words()));
    }
    if !running().await? {
        return Ok(Found::bad("the container was created and does not run"));
    }
    let seconds = start.elapsed().as_secs_f64();
    // What it says takes its own way through the daemon.
    loop {
        let logs = tool::run("docker", &["logs", RUNNING], QUICK).await?;
        match logs.stdout.trim() {
            MARKER => return Ok(Found::Value(seconds, format!("running after {seconds:.1} s"))),
            "" if logs.success => tokio::time::sleep(LOOK).await,
            other => return Ok(Found::bad(format!("the container says {}", said(other)))),
        }
    }
}

async fn running() -> Result<bool> {
    let output = tool::run("docker", &["inspect", "--format", "{{.State.Running}}", RUNNING], QUICK).await?;
    Ok(output.success && output.stdout.trim() == "true")
}

async fn memory() -> Result<Found> {
    let options = ["run", "--name", GREEDY, "--network", "none", "--memory", "32m", "--memory-swap", "32m", IMAGE];
    // One buffer of that size, filled once.
    let work = ["busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=96M", "count=1"];
    let args: Vec<&str> = options.into_iter().chain(work).collect();
    let run = tool::run("docker", &args, LONG).await?;
    if run.success {
        return Ok(Found::bad("96 MiB were used in a container that may have 32 MiB"));
    }
    let state = ["inspect", "--format", "{{.State.OOMKilled}} {{.State.ExitCode}}", GREEDY];
    let state = tool::run("docker", &state, QUICK).await?;
    Ok(judge_memory(state.stdout.trim(), run.last_words()))
}

/// `true 137`: killed by the kernel for its memory, and Docker was told.
fn judge_memory(state: &str, words: &str) -> Found {
    match state {
        "true 137" => Found::Good("killed at 32 MiB".into()),
        "false 137" => Found::bad("killed, but Docker does not know that it was for its memory"),
        other => Found::bad(format!("not killed for its memory: {words} ({})", said(other))),
    }
}

async fn pids() -> Result<Found> {
    let script = "n=0; while [ $n -lt 16 ]; do sleep 60 & n=$((n+1)); echo $n; done; kill -9 -1";
    let args = ["run", "--name", FORKING, "--network", "none", "--pids-limit", "8", IMAGE, "sh", "-c", script];
    let output = tool::run("docker", &args, LONG).await?;
    Ok(judge_pids(&output.stdout, &output.stderr))
}

/// The shell counts what it could start, until it is refused.
fn judge_pids(stdout: &str, stderr: &str) -> Found {
    let started = stdout.lines().filter_map(|l| l.trim().parse::<u32>().ok()).max().unwrap_or(0);
    match stderr.contains("can't fork") {
        true if started < 8 => Found::Good(format!("fork refused after {started} processes")),
        true => Found::bad(format!("fork was refused only after {started} processes, with a limit of 8")),
        false if started >= 16 => Found::bad("16 processes started, with a limit of 8"),
        false => Found::bad(format!("the container did not get as far as its limit: {}", said(stderr))),
    }
}

async fn restart(runs: bool) -> Result<Found> {
    if !runs {
        return Ok(Found::bad("there is no running container that could survive it"));
    }
    let start = Instant::now();
    tool::expect("systemctl", &["restart", "docker.service"], LONG).await?;
    while !running().await? {
        tokio::time::sleep(LOOK).await;
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(Found::Value(seconds, format!("running again after {seconds:.1} s")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_and_the_new_cgroups() {
        for (text, good) in [
            ("overlay2 2", true),
            ("overlayfs 2", true),
            ("vfs 2", false),
            ("overlay2 1", false),
            ("", false),
            ("\u{1}\u{2}garbage", false),
        ] {
            assert_eq!(matches!(judge_storage(text), Found::Good(_)), good, "{text}");
        }
        assert_eq!(
            judge_storage("WARNING"),
            Found::bad("`docker info` says \"WARNING\", no driver and cgroup version")
        );
    }

    #[test]
    fn a_full_disk_is_called_one() {
        let sentence = |free, inodes| match judge_space("/var/lib/docker", free, 4 << 30, inodes, 1000) {
            Found::Value(mib, text) => format!("{mib:.0}: {text}"),
            Found::Bad(text) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(sentence(3 << 30, 900), "3072: 3072 MiB of 4096 MiB free at /var/lib/docker");
        assert_eq!(sentence(12 << 20, 900), "12: the disk is full: 12 MiB of 4096 MiB free at /var/lib/docker");
        assert_eq!(sentence(3 << 30, 19), "the disk of /var/lib/docker is full: 19 of 1000 inodes are free");
        assert!(matches!(judge_space("/", 1, 0, 0, 0), Found::Value(..)), "no table of inodes");
    }

    #[test]
    fn limits_that_hold_and_limits_that_do_not() {
        assert!(matches!(judge_memory("true 137", ""), Found::Good(_)));
        for state in ["false 137", "false 1", "", "<no value>"] {
            assert!(matches!(judge_memory(state, "dd: out of memory"), Found::Bad(_)), "{state}");
        }
        let count = |n: u32| (1..=n).map(|i| format!("{i}\n")).collect::<String>();
        let refused = "sh: can't fork: Resource temporarily unavailable";
        assert_eq!(judge_pids(&count(7), refused), Found::Good("fork refused after 7 processes".into()));
        assert!(matches!(judge_pids(&count(12), refused), Found::Bad(_)));
        assert!(matches!(judge_pids(&count(16), ""), Found::Bad(found) if found.starts_with("16 processes")));
        assert!(
            matches!(judge_pids("", "docker: no space left on device"), Found::Bad(f) if f.contains("no space left"))
        );
    }
}
