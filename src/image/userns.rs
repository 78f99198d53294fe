//! Builds by a normal user: the program starts again as root of a user namespace (user_namespaces(7)), in which the ids of
//! the new system are those that /etc/subuid and /etc/subgid give this user.
//!
//! What is built is the same, bit by bit: the file system of the image is written inside the namespace, where the files
//! belong to whom they shall belong. In the cache they belong to the user and to those ids.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::error::{Error, Kind, OrFail, Result};

/// util-linux, with newuidmap and newgidmap of the package uidmap: our user becomes root, those of /etc/subuid the others.
const ENTER: [&str; 2] = ["--map-root-user", "--map-auto"];

/// Returns as root, or not at all: where a namespace is to be had, this program is started again in it.
pub fn become_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let tried = Command::new("unshare")
        .args(ENTER)
        .args(["--mount", "cat", "/proc/self/uid_map", "/proc/self/gid_map"])
        .stdin(Stdio::null())
        .output()
        .or_fail(Kind::Config, "image.root", || "unshare is not installed")
        .map_err(|e| e.hint("apt-get install util-linux"))?;
    if !tried.status.success() {
        return Err(refused(&String::from_utf8_lossy(&tried.stderr)));
    }
    if !is_enough(&String::from_utf8_lossy(&tried.stdout)) {
        return Err(refused("the subuid or subgid range is too short"));
    }
    let this = std::env::current_exe().or_fail(Kind::Internal, "image.root", || "this program is not found again")?;
    let failed = Command::new("unshare").args(ENTER).arg("--").arg(this).args(std::env::args_os().skip(1)).exec();
    Err(failed).or_fail(Kind::Internal, "image.root", || "cannot start again in a user namespace")
}

/// Both maps, of lines `first-inside first-outside count`, reach `nobody`, the highest id that packages use.
fn is_enough(maps: &str) -> bool {
    const NOBODY: u64 = 65534;
    let reach = |line: &str| {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        matches!(numbers[..], [first, _, count] if (first..first + count).contains(&NOBODY))
    };
    maps.lines().filter(|line| reach(line)).count() == 2
}

/// In the words of unshare and its helpers (util-linux 2.38, uidmap 4.13).
fn refused(said: &str) -> Error {
    let (why, hint) = if said.contains("failed to execute new") {
        ("newuidmap and newgidmap are not there", "apt-get install uidmap")
    } else if said.contains("subuid") || said.contains("subgid") {
        (
            "this user has no 65536 ids in /etc/subuid and /etc/subgid",
            "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER",
        )
    } else {
        (
            "the system gives normal users none",
            "sysctl -w user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1",
        )
    };
    let message = format!("building an image as a normal user needs a user namespace, and {why}");
    Error::config("image.root", message)
        .hint(format!("as root: {hint}; or build with sudo"))
        .because(said.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_needs_the_ids_of_a_whole_system() {
        let map = |count| format!("         0       1000          1\n         1     100000      {count}\n");
        assert!(is_enough(&map(65535).repeat(2)));
        assert!(!is_enough(&(map(65535) + &map(5))), "groups");
        assert!(!is_enough(""));
        assert!(is_enough(&"0 0 4294967295\n".repeat(2)));
    }
}
