//! A container host must run a container, from an image that it brings along: delivery needs no registry.

use std::path::Path;
use std::time::Duration;

use super::{Found, Question, Visit};
use crate::agent::tool;
use crate::error::Result;
use crate::image::container::ON_THE_HOST;

/// Removes each archive of [`ON_THE_HOST`] once Docker has it.
const LOADER: &str = "rackline-containers.service";
/// A root file system with a shell's `echo`, as `docker import` takes it.
const ROOT: &str = "/usr/share/rackline/container.tar";
const IMAGE: &str = "rackline/check:1";
const MARKER: &str = "RACKLINE-CONTAINER-OK";
const QUICK: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(120);

pub async fn check(visit: &mut Visit<'_>) {
    let question = Question {
        id: "docker.daemon",
        expected: "a server version".into(),
        deadline: QUICK,
        hint: "see `systemctl status docker` on the host",
    };
    visit.ask(question, daemon()).await;

    let question = Question {
        id: "docker.storage",
        expected: "an overlay driver and cgroup 2".into(),
        deadline: QUICK,
        hint: "see `docker info`; the root file system must be ext4 or XFS with ftype=1",
    };
    visit.ask(question, storage()).await;

    let question = Question {
        id: "docker.image",
        expected: format!("{IMAGE} there or imported, and what the image brought along loaded"),
        deadline: LONG,
        hint: "build the image with the files of its role",
    };
    visit.ask(question, image()).await;

    let question = Question {
        id: "docker.container",
        expected: format!("a container that says {MARKER}"),
        deadline: LONG,
        hint: "see `docker run` and `journalctl -u docker` on the host",
    };
    let seconds = visit.ask(question, container()).await;
    visit.seconds("docker.run", seconds);
}

async fn daemon() -> Result<Found> {
    let output = tool::run("docker", &["version", "--format", "{{.Server.Version}}"], QUICK).await?;
    Ok(match output.success {
        true => Found::Good(output.stdout.trim().to_owned()),
        false => Found::Bad(output.last_words().to_owned()),
    })
}

async fn storage() -> Result<Found> {
    let output = tool::expect("docker", &["info", "--format", "{{.Driver}} {{.CgroupVersion}}"], QUICK).await?;
    Ok(judge_storage(output.stdout.trim()))
}

/// `overlay2 2`, or `overlayfs 2` with containerd's snapshotter.
fn judge_storage(text: &str) -> Found {
    let (driver, cgroup) = text.split_once(' ').unwrap_or((text, ""));
    Found::when(driver.starts_with("overlay") && cgroup == "2", format!("{driver}, cgroup {cgroup}"))
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
        return Ok(Found::Bad(format!("{LOADER} has not loaded {}", left.join(", "))));
    }
    if tool::run("docker", &["image", "inspect", "--format", "{{.Id}}", IMAGE], QUICK).await?.success {
        return Ok(Found::Good("it was there".into()));
    }
    let output = tool::run("docker", &["import", ROOT, IMAGE], LONG).await?;
    Ok(match output.success {
        true => Found::Good("imported".into()),
        false => Found::Bad(output.last_words().to_owned()),
    })
}

async fn container() -> Result<Found> {
    let args = ["run", "--rm", "--network", "none", IMAGE, "echo", MARKER];
    let output = tool::run("docker", &args, LONG).await?;
    Ok(match output.success && output.stdout.trim() == MARKER {
        true => Found::Good(MARKER.into()),
        false => Found::Bad(output.last_words().to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_and_the_new_cgroups() {
        for (text, good) in
            [("overlay2 2", true), ("overlayfs 2", true), ("vfs 2", false), ("overlay2 1", false), ("", false)]
        {
            assert_eq!(matches!(judge_storage(text), Found::Good(_)), good, "{text}");
        }
    }
}
