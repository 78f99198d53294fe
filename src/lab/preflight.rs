//! Is this host able to be a rack? Everything that is missing is said at once.

use std::ffi::OsStr;
use std::path::Path;

use super::bmc::IPMI_SIM;
use super::spec::Spec;
use super::vm::{OVMF_CODE, OVMF_VARS, QEMU};
use crate::error::{Error, Result};
use crate::machine::Firmware;

/// What a machine leaves on its disk: an installed host.
const DISK_BYTES: u64 = 3 << 30;
/// What the host itself and the appliance need beside the machines.
const HOST_BYTES: u64 = 1 << 30;

pub fn check(spec: &Spec) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::config("lab.root", "the lab needs root: it makes network namespaces and tap devices")
            .hint("run it with sudo"));
    }
    tools(spec, &std::env::var_os("PATH").unwrap_or_default())?;
    memory(spec)?;
    disk(spec)
}

/// Programs and files with the Debian package that has them.
fn tools(spec: &Spec, path: &OsStr) -> Result<()> {
    let ipmi = spec.machines.iter().any(|m| m.bmc.has_ipmi());
    let mut missing: Vec<(&str, &str)> = [(QEMU, "qemu-system-x86"), (IPMI_SIM, "openipmi"), ("ip", "iproute2")]
        .into_iter()
        .filter(|(program, _)| ipmi || *program != IPMI_SIM)
        .filter(|(program, _)| !in_path(path, program))
        .collect();
    if spec.machines.iter().any(|m| m.firmware == Firmware::Uefi) {
        let firmware = [OVMF_CODE, OVMF_VARS].into_iter().filter(|file| !Path::new(file).exists());
        missing.extend(firmware.map(|file| (file, "ovmf")));
    }
    if !Path::new("/dev/net/tun").exists() {
        return Err(Error::config("lab.tun", "there is no /dev/net/tun, which the machines' network needs")
            .hint("modprobe tun"));
    }
    if missing.is_empty() {
        return Ok(());
    }
    let what: Vec<&str> = missing.iter().map(|(what, _)| *what).collect();
    let mut packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    Err(Error::config("lab.tools", format!("the lab needs what is not installed here: {}", what.join(", ")))
        .hint(format!("apt-get install --no-install-recommends {}", packages.join(" "))))
}

fn in_path(path: &OsStr, program: &str) -> bool {
    std::env::split_paths(path).any(|dir| dir.join(program).is_file())
}

fn memory(spec: &Spec) -> Result<()> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available =
        text.lines().find_map(|l| l.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse().ok());
    let Some(available) = available.map(|kib: u64| kib << 10) else { return Ok(()) };
    let needed = spec.machines.iter().map(|m| m.memory_bytes).sum::<u64>() + HOST_BYTES;
    match needed <= available {
        true => Ok(()),
        false => Err(Error::config(
            "lab.memory",
            format!("{} machines need {} MiB, and {} MiB are free", spec.machines.len(), needed >> 20, available >> 20),
        )
        .hint("ask for fewer with --machines, or smaller ones with --memory")),
    }
}

fn disk(spec: &Spec) -> Result<()> {
    let needed = DISK_BYTES * spec.machines.len() as u64;
    let existing = spec.dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let Ok(fs) = rustix::fs::statvfs(existing) else { return Ok(()) };
    let free = fs.f_bavail.saturating_mul(fs.f_frsize);
    match needed <= free {
        true => Ok(()),
        false => Err(Error::config(
            "lab.disk-space",
            format!(
                "the machines' disks may take {} MiB, and {} has {} MiB",
                needed >> 20,
                existing.display(),
                free >> 20
            ),
        )
        .hint("name another place with --dir")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::spec::{BmcKind, Listed, MachineSpec};
    use crate::machine::Role;

    fn spec(memory_bytes: u64) -> Spec {
        let machine = MachineSpec {
            role: Role::Kvm.into(),
            firmware: Firmware::Bios,
            memory_bytes,
            disks: vec![],
            bmc: BmcKind::Both,
            listed: Listed::Right,
            smbios: None,
        };
        let paths = "/nonexistent";
        Spec { name: "t".into(), dir: paths.into(), cache: paths.into(), binary: paths.into(), machines: vec![machine] }
    }

    #[test]
    fn what_is_missing_is_named_with_its_packages() {
        let error = tools(&spec(1 << 30), OsStr::new("/nonexistent")).unwrap_err();
        // Where there is no tun device that is said first.
        if error.code() == "lab.tools" {
            assert!(error.message().contains("qemu-system-x86_64, ipmi_sim, ip"), "{error}");
            assert!(error.next_step().is_some_and(|h| h.ends_with("qemu-system-x86 openipmi iproute2")), "{error:?}");
        } else {
            assert_eq!(error.code(), "lab.tun");
        }
    }

    #[test]
    fn more_memory_than_there_is_is_refused() {
        assert_eq!(memory(&spec(1 << 50)).unwrap_err().code(), "lab.memory");
    }
}
