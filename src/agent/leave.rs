//! The end of this system, as ordered: everything written, then a reboot or power off.

use rustix::system::{RebootCommand, reboot};

use crate::error::{Error, Kind, OrFail, Result};
use crate::link::Leave;

/// In RAM nothing has to be stopped first: no file system of the target is mounted. Does not return where it succeeds.
pub fn leave_ram(how: Leave) -> Result<()> {
    rustix::fs::sync();
    let command = match how {
        Leave::Reboot => RebootCommand::Restart,
        Leave::PowerOff => RebootCommand::PowerOff,
    };
    reboot(command).or_fail(Kind::Internal, "agent.leave", || "the kernel refuses to leave")
}

/// On an installed host its init stops guests and services first.
pub fn leave_installed(how: Leave) -> Result<()> {
    let verb = match how {
        Leave::Reboot => "reboot",
        Leave::PowerOff => "poweroff",
    };
    let failed = || format!("systemctl {verb} cannot be started");
    let status = std::process::Command::new("systemctl").arg(verb).status();
    match status.or_fail(Kind::Internal, "agent.leave", failed)?.success() {
        true => Ok(()),
        false => Err(Error::internal("agent.leave", format!("systemctl {verb} failed"))),
    }
}
