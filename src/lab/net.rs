//! The rack's network: a namespace with one bridge, on it the appliance's address, an address for each BMC and a tap for
//! each machine. Everything goes with the namespace.

use std::io::Write;
use std::process::{Command, Stdio};

use super::guard::Guard;
use super::spec::{APPLIANCE, BRIDGE, Machine};
use crate::error::{Error, Kind, OrFail, Result};

pub fn make(guard: &Guard, netns: &str, machines: &[Machine]) -> Result<()> {
    ip(guard, &["netns", "add", netns], "")?;
    ip(guard, &["-n", netns, "-batch", "-"], &batch(machines))
}

/// The command that runs in the namespace. `ip netns exec` also gives it a `/sys` that shows the namespace's devices.
pub fn inside(netns: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", netns]).arg(program);
    command
}

fn batch(machines: &[Machine]) -> String {
    // A bridge takes the lowest address of its ports unless it is told one, and the appliance's must not change.
    // Addresses are `nodad`: a bridge without a carrier never ends the detection of duplicates.
    let mut lines = vec![
        "link set lo up".to_owned(),
        format!("link add {BRIDGE} address 52:54:00:77:ff:01 type bridge stp_state 0 forward_delay 0 mcast_snooping 0"),
        format!("link set {BRIDGE} addrgenmode none"),
        format!("addr add {APPLIANCE}/16 dev {BRIDGE}"),
        format!("addr add fe80::1/64 dev {BRIDGE} nodad"),
        format!("addr add fd77::1/64 dev {BRIDGE} nodad"),
    ];
    lines.extend(machines.iter().map(|m| format!("addr add {}/32 dev {BRIDGE}", m.bmc_address())));
    lines.push(format!("link set {BRIDGE} up"));
    for tap in machines.iter().map(Machine::tap) {
        lines.push(format!("tuntap add dev {tap} mode tap"));
        lines.push(format!("link set {tap} master {BRIDGE} up"));
    }
    lines.join("\n") + "\n"
}

fn ip(guard: &Guard, args: &[&str], input: &str) -> Result<()> {
    let failed = || format!("ip {} failed", args.join(" "));
    let mut child = guard
        .spawn(Command::new("ip").args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // Where ip ends early, its own message says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().or_fail(Kind::Internal, "lab.network", failed)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Error::config("lab.network", failed())
            .because(String::from_utf8_lossy(&output.stderr).trim().to_owned())
            .hint("the lab needs root, network namespaces, bridges and /dev/net/tun")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::spec::{BmcKind, Listed, MachineSpec};
    use crate::machine::{Firmware, Role};

    #[test]
    fn each_machine_has_a_tap_and_each_bmc_an_address() {
        let spec = MachineSpec {
            role: Role::Kvm.into(),
            firmware: Firmware::Bios,
            memory_bytes: 1 << 30,
            disks: vec![],
            bmc: BmcKind::Ipmi,
            listed: Listed::Right,
            smbios: None,
        };
        let machine = Machine { number: 7, spec, dir: "/d".into(), run: "/r".into() };
        let text = batch(&[machine]);
        assert!(text.contains("addr add 10.77.1.7/32 dev lab0\n"), "{text}");
        assert!(text.ends_with("tuntap add dev tap7 mode tap\nlink set tap7 master lab0 up\n"), "{text}");
    }
}
