//! What every host must be, whatever its role: finished booting, the ordered image on the ordered disk, grown to it,
//! named, connected, and on time.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Found, Visit, said};
use crate::agent::deploy::{INSTALLED_FILE, Installed};
use crate::agent::{Agent, Roots, inventory, tool};
use crate::check::Kind;
use crate::error::{Error, Kind as Fault, OrFail, Result};
use crate::link::Verify;
use crate::machine::{Digest, Disk, Hostname};

const QUICK: Duration = Duration::from_secs(30);
/// A first boot grows file systems, makes keys and may wait for the network.
const BOOT: Duration = Duration::from_secs(600);

pub async fn check(agent: &Agent, order: &Verify, visit: &mut Visit<'_>) {
    let roots = &agent.options.roots;
    visit.ask(Kind::BootFinished, boot_finished()).await;
    visit.ask(Kind::FailedUnits, services()).await;
    visit.ask(Kind::KernelRelease, async { kernel(roots, &order.kernel_floor) }).await;
    visit.ask(Kind::HostName, async { hostname(roots, &order.hostname) }).await;
    visit.ask(Kind::RunningImage, async { image(order.manifest) }).await;
    visit.ask(Kind::BootDisk, async { disk(roots) }).await;
    visit.ask(Kind::PartitionsGrown, async { partitions_grown(roots) }).await;
    visit.ask(Kind::RootGrown, async { root_grown(roots) }).await;
    visit.ask(Kind::DefaultRoute, async { default_route(roots) }).await;
    visit.ask(Kind::ClockOffset, clock(agent)).await;
}

async fn boot_finished() -> Result<Found> {
    let start = Instant::now();
    // "degraded" is finished too: the failed units are the next check's.
    let output = tool::run("systemctl", &["is-system-running", "--wait"], BOOT).await?;
    Ok(match output.stdout.trim() {
        state @ ("running" | "degraded") => Found::Value(start.elapsed().as_secs_f64(), state.to_owned()),
        state => Found::bad(said(state)),
    })
}

async fn services() -> Result<Found> {
    let output = tool::expect("systemctl", &["list-units", "--failed", "--plain", "--no-legend"], QUICK).await?;
    let failed: Vec<&str> = output.stdout.lines().filter_map(|l| l.split_whitespace().next()).collect();
    Ok(match failed.is_empty() {
        true => Found::Good("no failed unit".into()),
        false => Found::Bad(failed.join(", ")),
    })
}

fn kernel(roots: &Roots, floor: &str) -> Result<Found> {
    let release = text(&roots.proc.join("sys/kernel/osrelease"))?;
    let floor = version(floor)
        .ok_or_else(|| Error::input("order.kernel", format!("{floor:?} is not a kernel version as major.minor")))?;
    Ok(Found::when(version(&release).is_some_and(|v| v >= floor), release))
}

/// `6.1` of `6.1.0-49-amd64`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// The kernel may hold the whole name or its first label: both are usual.
fn hostname(roots: &Roots, expected: &Hostname) -> Result<Found> {
    let found = text(&roots.proc.join("sys/kernel/hostname"))?;
    let short = expected.as_str().split('.').next();
    Ok(Found::when(found == expected.as_str() || Some(found.as_str()) == short, found))
}

fn installed() -> Result<Installed> {
    let failed = || format!("{INSTALLED_FILE} cannot be read");
    let bytes = std::fs::read(INSTALLED_FILE).or_fail(Fault::NotFound, "host.record", failed)?;
    serde_json::from_slice(&bytes).or_fail(Fault::Refused, "host.record", failed)
}

fn image(expected: Digest) -> Result<Found> {
    let found = installed()?.manifest;
    Ok(Found::when(found == expected, found.to_string()))
}

fn disk(roots: &Roots) -> Result<Found> {
    let written = installed()?;
    let root = root_disk(roots)?;
    let same =
        root.size_bytes == written.disk_bytes && root.serial == written.disk_serial && root.wwn == written.disk_wwn;
    let serial = root.serial.as_ref().map_or("no serial number", |s| s.as_str());
    Ok(Found::when(same, format!("{} ({serial}, {} bytes)", root.name, root.size_bytes)))
}

fn partitions_grown(roots: &Roots) -> Result<Found> {
    let root = root_disk(roots)?;
    let dir = roots.sys.join("block").join(&root.name);
    let parts = std::fs::read_dir(&dir).into_iter().flatten().flatten().map(|e| e.path());
    let in_partitions: u64 = parts.filter(|p| p.join("partition").exists()).map(|p| sectors(&p) * 512).sum();
    let percent = share(in_partitions, root.size_bytes) * 100.0;
    Ok(Found::Value(percent, format!("{percent:.0} % of {}", root.name)))
}

fn root_grown(roots: &Roots) -> Result<Found> {
    let part = root_partition(roots)?;
    let usage =
        rustix::fs::statvfs("/").or_fail(Fault::Internal, "host.root", || "the root file system does not answer")?;
    let percent = share(usage.f_blocks.saturating_mul(usage.f_frsize), sectors(&part) * 512) * 100.0;
    Ok(Found::Value(percent, format!("{percent:.0} % of its partition")))
}

/// Of a folder in /sys that is a disk or a partition; 0 where it does not say.
fn sectors(dir: &Path) -> u64 {
    text(&dir.join("size")).ok().and_then(|s| s.parse().ok()).unwrap_or(0)
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// The folder in /sys of the partition that `/` is on.
fn root_partition(roots: &Roots) -> Result<PathBuf> {
    let unknown = || "the device of the root file system is not known to the kernel as a disk's partition";
    let number = rustix::fs::stat("/").or_fail(Fault::Internal, "host.root", unknown)?.st_dev;
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let path = roots.sys.join(format!("dev/block/{major}:{minor}"));
    let path = std::fs::canonicalize(path).or_fail(Fault::Refused, "host.root", unknown)?;
    match path.join("partition").exists() {
        true => Ok(path),
        false => Err(Error::refused("host.root", unknown())),
    }
}

fn root_disk(roots: &Roots) -> Result<Disk> {
    let part = root_partition(roots)?;
    let name = part.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    let disk = inventory::disks(roots)?.into_iter().find(|d| d.name == name);
    disk.ok_or_else(|| Error::refused("host.root", format!("the root file system is on {name}, which is no disk")))
}

/// `/proc/net/route` (IPv4) or `/proc/net/ipv6_route`: the first default route, and whether its link is up.
fn default_route(roots: &Roots) -> Result<Found> {
    let read = |name: &str| std::fs::read_to_string(roots.proc.join("net").join(name)).unwrap_or_default();
    let Some(device) = route_v4(&read("route")).or_else(|| route_v6(&read("ipv6_route"))) else {
        return Ok(Found::Bad("no default route".into()));
    };
    let state = text(&roots.sys.join("class/net").join(&device).join("operstate")).unwrap_or_default();
    Ok(Found::when(matches!(state.as_str(), "up" | "unknown"), format!("{device}, link {state}")))
}

/// Columns: device, destination, gateway, flags, …, mask (hexadecimal).
fn route_v4(table: &str) -> Option<String> {
    let rows = table.lines().skip(1).map(|l| l.split_whitespace().collect::<Vec<_>>());
    let mut defaults = rows.filter(|r| r.get(1) == Some(&"00000000") && r.get(7) == Some(&"00000000"));
    defaults.next()?.first().map(|d| d.to_string())
}

/// Columns: destination, prefix length, source, its length, next hop, metric, references, use, flags, device.
fn route_v6(table: &str) -> Option<String> {
    let rows = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
    let mut defaults = rows.filter(|r| {
        let zero = r.first().is_some_and(|d| d.bytes().all(|b| b == b'0'));
        // The reject route of an unconnected host is on `lo`.
        zero && r.get(1) == Some(&"00") && r.get(9).is_some_and(|d| *d != "lo")
    });
    defaults.next()?.get(9).map(|d| d.to_string())
}

async fn clock(agent: &Agent) -> Result<Found> {
    let offset = agent.appliance.clock_offset().await?;
    Ok(Found::Value(offset.abs(), format!("{offset:+.1} s")))
}

fn text(path: &Path) -> Result<String> {
    let failed = || format!("{} cannot be read", path.display());
    Ok(std::fs::read_to_string(path).or_fail(Fault::Internal, "host.read", failed)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_numbers_not_text() {
        assert_eq!(version("6.1.0-49-amd64"), Some((6, 1)));
        assert!(version("6.10") > version("6.9"));
        assert_eq!((version("6"), version("six.one")), (None, None));
    }

    #[test]
    fn default_routes_of_both_families() {
        let v4 = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                  eth1 0002000A 00000000 0001 0 0 0 00FFFFFF 0 0 0\n\
                  eth0 00000000 0102000A 0003 0 0 0 00000000 0 0 0\n";
        assert_eq!(route_v4(v4).as_deref(), Some("eth0"));
        assert_eq!(route_v4("Iface\n"), None);
        let zero = "0".repeat(32);
        let v6 =
            format!("{zero} 00 {zero} 00 {zero} ffffffff 1 0 00200200 lo\n{zero} 00 {zero} 00 fe80 400 1 0 3 eth0\n");
        assert_eq!(route_v6(&v6).as_deref(), Some("eth0"));
    }

    #[test]
    fn a_default_route_needs_its_link() {
        let root = tempfile::tempdir().unwrap();
        let roots = Roots { sys: root.path().join("sys"), proc: root.path().join("proc"), ..Roots::default() };
        std::fs::create_dir_all(roots.proc.join("net")).unwrap();
        std::fs::create_dir_all(roots.sys.join("class/net/eth0")).unwrap();
        let table = "Iface x\neth0 00000000 0102000A 0003 0 0 0 00000000 0 0 0\n";
        std::fs::write(roots.proc.join("net/route"), table).unwrap();
        for (state, good) in [("up", true), ("down", false)] {
            std::fs::write(roots.sys.join("class/net/eth0/operstate"), state).unwrap();
            assert_eq!(matches!(default_route(&roots).unwrap(), Found::Good(_)), good);
        }
    }

    #[test]
    fn kernel_and_name_of_a_host() {
        let root = tempfile::tempdir().unwrap();
        let roots = Roots { proc: root.path().to_owned(), ..Roots::default() };
        std::fs::create_dir_all(root.path().join("sys/kernel")).unwrap();
        std::fs::write(root.path().join("sys/kernel/osrelease"), "6.1.0-49-amd64\n").unwrap();
        std::fs::write(root.path().join("sys/kernel/hostname"), "kvm-01\n").unwrap();
        assert!(matches!(kernel(&roots, "6.1").unwrap(), Found::Good(_)));
        assert!(matches!(kernel(&roots, "6.2").unwrap(), Found::Bad(_)));
        assert!(kernel(&roots, "new").is_err());
        assert!(matches!(hostname(&roots, &"kvm-01.lab".parse().unwrap()).unwrap(), Found::Good(_)));
        assert!(matches!(hostname(&roots, &"kvm-02.lab".parse().unwrap()).unwrap(), Found::Bad(_)));
    }
}
