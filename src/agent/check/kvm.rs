//! A KVM host must make virtual machines: by the kernel's own interface, by libvirt, and with a guest that boots.

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

use super::{Found, Question, Visit};
use crate::agent::{blocking, tool};
use crate::error::{Error, Kind, OrFail, Result};

/// `linux/kvm.h`: `KVM_GET_API_VERSION` and `KVM_CREATE_VM`, and the only version that is to be used.
const KVM_GET_API_VERSION: Opcode = opcode::none(0xae, 0x00);
const KVM_CREATE_VM: Opcode = opcode::none(0xae, 0x01);
const KVM_API_VERSION: i32 = 12;

/// Its `/init` prints [`MARKER`] on the first serial port and powers off.
const GUEST: &str = "/usr/share/rackline/guest.cpio";
const MARKER: &str = "RACKLINE-GUEST-OK";
/// About 2 s on hardware, 15 s in a virtual lab that emulates virtualisation.
const GUEST_DEADLINE: Duration = Duration::from_secs(120);

/// The first call starts libvirtd, which tries out each QEMU that is installed: that took from 39 s to over 50 s in an emulated
/// virtual machine on a busy host.
const VIRSH: Duration = Duration::from_secs(120);

pub async fn check(visit: &mut Visit<'_>) {
    let question = Question {
        id: "kvm.device",
        expected: format!("API version {KVM_API_VERSION} and a virtual machine made"),
        deadline: Duration::from_secs(10),
        hint: "enable virtualisation (VT-x, SVM) in the firmware set-up",
    };
    visit.ask(question, blocking(device)).await;

    let question = Question {
        id: "kvm.libvirt",
        expected: "an answer at qemu:///system".into(),
        deadline: VIRSH + Duration::from_secs(10),
        hint: "see `systemctl status libvirtd` on the host",
    };
    visit.ask(question, libvirt()).await;

    let question = Question {
        id: "kvm.guest",
        expected: format!("a guest that says {MARKER}"),
        deadline: GUEST_DEADLINE,
        hint: "start the guest by hand and read its console; the image must hold a guest.cpio",
    };
    let seconds = visit.ask(question, guest()).await;
    visit.seconds("kvm.guest_boot", seconds);
}

/// An ioctl with an integer (here always 0) as its argument, whose return value is the answer.
struct Ask<const CODE: Opcode>;

// SAFETY: both requests take an integer argument of 0 and touch no memory of ours.
unsafe impl<const CODE: Opcode> Ioctl for Ask<CODE> {
    type Output = i32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        CODE
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(value: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<i32> {
        Ok(value)
    }
}

fn device() -> Result<Found> {
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    let kvm = kvm.or_fail(Kind::Config, "kvm.device", || "/dev/kvm cannot be opened")?;
    // SAFETY: see `Ask`.
    let version = unsafe { ioctl(&kvm, Ask::<KVM_GET_API_VERSION>) };
    let version = version.or_fail(Kind::Refused, "kvm.device", || "/dev/kvm does not tell its version")?;
    if version != KVM_API_VERSION {
        return Ok(Found::Bad(format!("API version {version}")));
    }
    // SAFETY: see `Ask`.
    let machine = unsafe { ioctl(&kvm, Ask::<KVM_CREATE_VM>) };
    let machine = machine.or_fail(Kind::Refused, "kvm.device", || "KVM does not make a virtual machine")?;
    // SAFETY: the kernel has just made this descriptor for us; dropping it takes the virtual machine away.
    drop(unsafe { OwnedFd::from_raw_fd(machine) });
    Ok(Found::Good(format!("API version {version} and a virtual machine made")))
}

async fn libvirt() -> Result<Found> {
    let output = tool::run("virsh", &["-c", "qemu:///system", "version"], VIRSH).await?;
    let hypervisor = output.stdout.lines().find_map(|l| l.strip_prefix("Running hypervisor:")).map(str::trim);
    Ok(match (output.success, hypervisor) {
        (true, Some(hypervisor)) => Found::Good(hypervisor.to_owned()),
        _ => Found::Bad(output.last_words().to_owned()),
    })
}

async fn guest() -> Result<Found> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = format!("/boot/vmlinuz-{}", release.trim());
    for file in [kernel.as_str(), GUEST] {
        if !Path::new(file).exists() {
            return Err(Error::not_found("kvm.guest", format!("{file} is missing"))
                .hint("build the image with the files of its role"));
        }
    }
    let args = [
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-M",
        "q35",
        "-m",
        "256",
        "-smp",
        "1",
        "-nodefaults",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-kernel",
        &kernel,
        "-initrd",
        GUEST,
        "-append",
        "console=ttyS0 quiet panic=-1 no_timer_check",
    ];
    let output = tool::run("qemu-system-x86_64", &args, GUEST_DEADLINE).await?;
    Ok(match output.stdout.contains(MARKER) {
        true => Found::Good(MARKER.into()),
        false => Found::Bad(format!("the guest ended without it: {}", output.last_words())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requests_are_those_of_the_kernel() {
        assert_eq!((KVM_GET_API_VERSION, KVM_CREATE_VM), (0xae00, 0xae01));
    }
}
