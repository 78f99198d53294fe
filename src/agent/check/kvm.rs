//! A KVM host must make virtual machines: by the kernel's own interface, and by libvirt with a guest that boots, writes to its
//! disk, goes on while a snapshot is taken of it, and is gone when it is told to go.

use std::fs::File;
use std::future::Future;
use std::net::Ipv4Addr;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

use super::guest::{Files, NAME};
use super::{Found, Visit, said};
use crate::agent::tool::{self, Output};
use crate::agent::{Roots, blocking};
use crate::check::Kind;
use crate::error::{Kind as Fault, OrFail, Result};

/// `linux/kvm.h`: `KVM_GET_API_VERSION` and `KVM_CREATE_VM`, and the only version that is to be used.
const KVM_GET_API_VERSION: Opcode = opcode::none(0xae, 0x00);
const KVM_CREATE_VM: Opcode = opcode::none(0xae, 0x01);
const KVM_API_VERSION: i32 = 12;

/// One call of virsh. The first one starts libvirtd, which tries out each QEMU that is installed: that took from 39 s to over
/// 50 s in an emulated virtual machine on a busy host.
const VIRSH: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(200);
const PING: Duration = Duration::from_secs(30);

pub async fn check(roots: &Roots, visit: &mut Visit<'_>) {
    visit.ask(Kind::KvmDevice, blocking(device)).await;
    visit.ask(Kind::Libvirt, libvirt()).await;
    if visit.asks(Kind::Guest) {
        let files = Files::new();
        // An earlier visit may have been cut off.
        take_down(&files).await;
        let up = visit.ask(Kind::Guest, start(roots, &files)).await;
        visit.ask(Kind::GuestDisk, with(up, disk(&files))).await;
        visit.ask(Kind::GuestSnapshot, with(up, snapshot(&files))).await;
        visit.ask(Kind::GuestDestroyed, with(up, destroy())).await;
        take_down(&files).await;
    }
    visit.ask(Kind::BridgeGateway, bridges(roots)).await;
}

/// What is asked of a guest that is not there has a short answer.
async fn with(up: bool, work: impl Future<Output = Result<Found>>) -> Result<Found> {
    if up { work.await } else { Ok(Found::bad("the guest is not up")) }
}

async fn virsh(args: &[&str]) -> Result<Output> {
    let all: Vec<&str> = ["-c", "qemu:///system"].into_iter().chain(args.iter().copied()).collect();
    tool::run("virsh", &all, VIRSH).await
}

/// Like [`virsh`], where only success will do; the sentence for what went wrong.
async fn must(args: &[&str]) -> Result<Result<(), Found>> {
    let output = virsh(args).await?;
    let what = args.first().copied().unwrap_or_default();
    Ok(if output.success { Ok(()) } else { Err(Found::bad(format!("virsh {what}: {}", output.last_words()))) })
}

/// What is not there need not be removed: failures here say nothing.
async fn take_down(files: &Files) {
    let _ = virsh(&["destroy", NAME]).await;
    let _ = virsh(&["undefine", NAME]).await;
    files.remove();
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
    let kvm = kvm.or_fail(Fault::Config, "kvm.device", || "/dev/kvm cannot be opened")?;
    // SAFETY: see `Ask`.
    let version = unsafe { ioctl(&kvm, Ask::<KVM_GET_API_VERSION>) };
    let version = version.or_fail(Fault::Refused, "kvm.device", || "/dev/kvm does not tell its version")?;
    if version != KVM_API_VERSION {
        return Ok(Found::Bad(format!("API version {version}")));
    }
    // SAFETY: see `Ask`.
    let machine = unsafe { ioctl(&kvm, Ask::<KVM_CREATE_VM>) };
    let machine = machine.or_fail(Fault::Refused, "kvm.device", || "KVM does not make a virtual machine")?;
    // SAFETY: the kernel has just made this descriptor for us; dropping it takes the virtual machine away.
    drop(unsafe { OwnedFd::from_raw_fd(machine) });
    Ok(Found::Good(format!("API version {version} and a virtual machine made")))
}

async fn libvirt() -> Result<Found> {
    let output = virsh(&["version"]).await?;
    let hypervisor = output.stdout.lines().find_map(|l| l.strip_prefix("Running hypervisor:")).map(str::trim);
    Ok(match (output.success, hypervisor) {
        (true, Some(hypervisor)) => Found::Good(hypervisor.to_owned()),
        (true, None) => Found::bad(format!("virsh version says {}, no hypervisor", said(&output.stdout))),
        _ => Found::bad(output.last_words()),
    })
}

async fn start(roots: &Roots, files: &Files) -> Result<Found> {
    let (roots, arguments, definition) = (roots.clone(), files.disk_arguments(), files.definition());
    blocking(move || Files::new().write(&roots)).await?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    tool::expect("qemu-img", &arguments, PING).await?;
    let start = Instant::now();
    for step in [["define", definition.as_str()], ["start", NAME]] {
        if let Err(found) = must(&step).await? {
            return Ok(found);
        }
    }
    while !files.console().up() {
        let state = virsh(&["domstate", NAME]).await?;
        if state.stdout.trim() != "running" {
            let console = files.console();
            let state = said(&state.stdout);
            return Ok(Found::bad(format!("the guest is {state}; the last it said: {}", console.last_words())));
        }
        tokio::time::sleep(LOOK).await;
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(Found::Value(seconds, format!("up {seconds:.1} s after libvirt was told")))
}

async fn disk(files: &Files) -> Result<Found> {
    loop {
        match files.console().disk() {
            Some(Ok(rate)) => return Ok(Found::Value(rate, format!("{rate:.0} MB/s"))),
            Some(Err(words)) => return Ok(Found::bad(format!("the guest says: {words}"))),
            None => tokio::time::sleep(LOOK).await,
        }
    }
}

async fn snapshot(files: &Files) -> Result<Found> {
    let before = files.console().ticks();
    let start = Instant::now();
    let overlay = format!("vda,snapshot=external,file={}", files.overlay());
    let take = ["snapshot-create-as", NAME, "--no-metadata", "--disk-only", "--atomic", "--diskspec", &overlay];
    if let Err(found) = must(&take).await? {
        return Ok(found);
    }
    if !virsh(&["domblklist", NAME]).await?.stdout.contains(&files.overlay()) {
        return Ok(Found::bad("the guest does not write to the snapshot's overlay"));
    }
    if let Err(found) = must(&["blockcommit", NAME, "vda", "--active", "--pivot", "--wait"]).await? {
        return Ok(found);
    }
    if !virsh(&["domblklist", NAME]).await?.stdout.contains(&files.disk()) {
        return Ok(Found::bad("the snapshot was not merged back into the guest's disk"));
    }
    let seconds = start.elapsed().as_secs_f64();
    // It says something each second, as long as it lives.
    while files.console().ticks() <= before + 1 {
        tokio::time::sleep(LOOK).await;
    }
    Ok(Found::Value(seconds, format!("made and merged back in {seconds:.1} s, the guest went on")))
}

async fn destroy() -> Result<Found> {
    for step in [["destroy", NAME], ["undefine", NAME]] {
        if let Err(found) = must(&step).await? {
            return Ok(found);
        }
    }
    let left = virsh(&["list", "--all", "--name"]).await?;
    let there = left.stdout.lines().any(|l| l.trim() == NAME);
    Ok(match (left.success, there) {
        (true, false) => Found::Good("nothing left of the guest".into()),
        (true, true) => Found::bad("libvirt still lists the guest"),
        (false, _) => Found::bad(left.last_words()),
    })
}

/// One bridge of the host, as `/sys/class/net` has it.
#[derive(Debug, PartialEq)]
struct Bridge {
    name: String,
    /// Its ports that are no guest's: cards, bonds, VLANs.
    uplinks: Vec<String>,
}

async fn bridges(roots: &Roots) -> Result<Found> {
    let found = bridges_of(roots);
    if found.is_empty() {
        return Ok(Found::Skipped("no bridge is configured".into()));
    }
    if let Some(bare) = found.iter().find(|b| b.uplinks.is_empty()) {
        return Ok(Found::bad(format!("bridge {} has no uplink", bare.name)));
    }
    let names: Vec<String> = found.iter().map(|b| format!("{} with {}", b.name, b.uplinks.join(", "))).collect();
    let table = std::fs::read_to_string(roots.proc.join("net/route")).unwrap_or_default();
    let gateway = gateway(&table).filter(|(device, _)| found.iter().any(|b| b.name == *device));
    let Some((device, address)) = gateway else {
        return Ok(Found::Good(format!("{}; the default route is elsewhere", names.join("; "))));
    };
    let ping = ["-n", "-c", "3", "-W", "5", "-I", &device, &address.to_string()].map(str::to_owned);
    let ping: Vec<&str> = ping.iter().map(String::as_str).collect();
    let output = tool::run("ping", &ping, PING).await?;
    Ok(match output.success {
        true => Found::Good(format!("{}; {address} answers through {device}", names.join("; "))),
        false => Found::bad(format!("the gateway {address} does not answer through {device}: {}", output.last_words())),
    })
}

/// libvirt's own network and Docker's are behind NAT, and have no uplink by design.
fn bridges_of(roots: &Roots) -> Vec<Bridge> {
    let net = roots.sys.join("class/net");
    let list = |path: &std::path::Path| {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let hidden = |name: &str| name.starts_with("virbr") || name.starts_with("docker") || name.starts_with("br-");
    let bridges = list(&net).into_iter().filter(|name| net.join(name).join("bridge").exists() && !hidden(name));
    let uplinks = |name: &str| {
        let ports = list(&net.join(name).join("brif"));
        ports.into_iter().filter(|port| is_uplink(roots, port)).collect()
    };
    bridges.map(|name| Bridge { uplinks: uplinks(&name), name }).collect()
}

/// A card, a bond or a VLAN: what leads out of the host.
pub(super) fn is_uplink(roots: &Roots, name: &str) -> bool {
    let dir = roots.sys.join("class/net").join(name);
    let about = std::fs::read_to_string(dir.join("uevent")).unwrap_or_default();
    let kind = about.lines().find_map(|l| l.strip_prefix("DEVTYPE="));
    dir.join("device").exists() || matches!(kind, Some("bond" | "vlan" | "vxlan" | "geneve"))
}

/// Device and address of the IPv4 gateway in `/proc/net/route`: hexadecimal, in the byte order of the processor.
fn gateway(table: &str) -> Option<(String, Ipv4Addr)> {
    let rows = table.lines().skip(1).map(|l| l.split_whitespace().collect::<Vec<_>>());
    let mut defaults = rows.filter(|r| r.get(1) == Some(&"00000000") && r.get(7) == Some(&"00000000"));
    let row = defaults.next()?;
    let address = u32::from_str_radix(row.get(2)?, 16).ok().filter(|a| *a != 0)?;
    Some((row.first()?.to_string(), Ipv4Addr::from(address.to_ne_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requests_are_those_of_the_kernel() {
        assert_eq!((KVM_GET_API_VERSION, KVM_CREATE_VM), (0xae00, 0xae01));
    }

    #[tokio::test]
    async fn a_bridge_without_an_uplink_is_found() {
        let root = tempfile::tempdir().unwrap();
        let roots = Roots { sys: root.path().join("sys"), proc: root.path().join("proc"), ..Roots::default() };
        let net = roots.sys.join("class/net");
        let make = |path: &str| std::fs::create_dir_all(net.join(path)).unwrap();
        make("virbr0/bridge");
        make("docker0/bridge");
        assert!(matches!(bridges(&roots).await.unwrap(), Found::Skipped(_)));
        for path in ["br0/bridge", "br0/brif/eth0", "br0/brif/vnet3", "eth0/device", "vnet3"] {
            make(path);
        }
        assert_eq!(bridges_of(&roots), [Bridge { name: "br0".into(), uplinks: vec!["eth0".into()] }]);
        assert!(matches!(bridges(&roots).await.unwrap(), Found::Good(found) if found.contains("elsewhere")));
        make("br1/bridge");
        make("br1/brif/vnet4");
        assert_eq!(bridges(&roots).await.unwrap(), Found::bad("bridge br1 has no uplink"));
    }

    #[test]
    fn the_gateway_is_in_the_kernels_table() {
        let head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n";
        let table = format!("{head}br0 00000000 0202000A 0003 0 0 0 00000000 0 0 0\n");
        assert_eq!(gateway(&table), Some(("br0".into(), Ipv4Addr::new(10, 0, 2, 2))));
        assert_eq!(gateway(head), None);
        assert_eq!(gateway("x\nbr0 00000000 zz 0 0 0 0 00000000"), None);
    }
}
