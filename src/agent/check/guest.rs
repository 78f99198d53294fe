//! The guest that a host of virtual machines has to run: the host's own kernel, and an initramfs that says on the serial port
//! how far it is. It needs no download, so delivery works without a network.

use std::fs;
use std::path::{Path, PathBuf};

use crate::agent::Roots;
use crate::error::{Error, Kind as Fault, OrFail, Result};
use crate::image::cpio::Archive;

pub const NAME: &str = "rackline-check";
/// Where libvirt's own guests are; QEMU may read there whatever user it runs as.
const FOLDER: &str = "/var/lib/libvirt/images/rackline-check";
/// A static busybox as an initramfs; ours is laid over it.
const BUSYBOX: &str = "/usr/share/rackline/guest.cpio";

const UP: &str = "RACKLINE-GUEST-OK";
const DISK: &str = "RACKLINE-DISK";
const TICK: &str = "RACKLINE-TICK";
/// What the guest writes to its disk, in MiB.
const WRITES: u32 = 64;
/// Of the virtual disk, in MiB.
const DISK_SIZE: &str = "256M";
/// What the guest needs to see a virtio disk; built into some kernels.
const MODULES: [&str; 2] = ["virtio_pci", "virtio_blk"];

/// The files of one visit. Dropping it leaves them: libvirt may still use them; see [`Files::remove`].
pub struct Files {
    folder: PathBuf,
}

impl Files {
    pub fn new() -> Self {
        Self { folder: FOLDER.into() }
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    pub fn definition(&self) -> String {
        self.path("guest.xml")
    }

    pub fn disk(&self) -> String {
        self.path("disk.qcow2")
    }

    /// What is written to while a snapshot is taken.
    pub fn overlay(&self) -> String {
        self.path("overlay.qcow2")
    }

    /// What it takes to make the disk.
    pub fn disk_arguments(&self) -> Vec<String> {
        ["create", "-q", "-f", "qcow2"].map(String::from).into_iter().chain([self.disk(), DISK_SIZE.into()]).collect()
    }

    /// Kernel, initramfs and definition.
    pub fn write(&self, roots: &Roots) -> Result<()> {
        let release = fs::read_to_string(roots.proc.join("sys/kernel/osrelease")).unwrap_or_default();
        let release = release.trim();
        let failed = || format!("cannot prepare a guest in {}", self.folder.display());
        fs::create_dir_all(&self.folder).or_fail(Fault::Config, "kvm.guest", failed)?;
        let there = |path: &str| match Path::new(path).exists() {
            true => Ok(()),
            false => Err(Error::not_found("kvm.guest", format!("{path} is missing"))
                .hint("build the image with the files of its role")),
        };
        let kernel = format!("/boot/vmlinuz-{release}");
        there(&kernel)?;
        there(BUSYBOX)?;
        // A copy: libvirt makes what a guest uses that guest's own.
        fs::copy(&kernel, self.folder.join("kernel")).or_fail(Fault::Config, "kvm.guest", failed)?;
        let modules = Path::new("/lib/modules").join(release);
        let mut initramfs = fs::read(BUSYBOX).or_fail(Fault::Config, "kvm.guest", failed)?;
        initramfs.extend(overlay(&modules).or_fail(Fault::Config, "kvm.guest", failed)?);
        fs::write(self.folder.join("initramfs"), initramfs).or_fail(Fault::Config, "kvm.guest", failed)?;
        fs::write(self.definition(), self.xml()).or_fail(Fault::Config, "kvm.guest", failed)
    }

    pub fn console(&self) -> Console {
        Console(
            fs::read(self.folder.join("console")).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default(),
        )
    }

    pub fn remove(&self) {
        let _ = fs::remove_dir_all(&self.folder);
    }

    /// As plain as libvirt takes it: what a guest has besides is not what is tried here.
    fn xml(&self) -> String {
        format!(
            "<domain type='kvm'>
  <name>{NAME}</name>
  <memory unit='MiB'>256</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initramfs}</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 no_timer_check</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='host-passthrough'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <controller type='usb' model='none'/>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='{disk}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='file'><source path='{console}'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
",
            kernel = self.path("kernel"),
            initramfs = self.path("initramfs"),
            disk = self.disk(),
            console = self.path("console"),
        )
    }
}

/// What Linux unpacks over the busybox: an `init`, and the modules of the running kernel in the order of their needs.
fn overlay(modules: &Path) -> std::io::Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::new());
    archive.file("init", true, init().as_bytes())?;
    archive.folder("modules")?;
    let table = fs::read_to_string(modules.join("modules.dep"))?;
    for (i, path) in in_order(&table).iter().enumerate() {
        archive.file(&format!("modules/{i:02}.ko"), false, &fs::read(modules.join(path))?)?;
    }
    archive.finish()
}

/// `modules.dep` names a module and what it needs, the most needed last.
fn in_order(table: &str) -> Vec<&str> {
    let mut order: Vec<&str> = Vec::new();
    for name in MODULES {
        let file = format!("/{name}.ko");
        let row = table.lines().filter_map(|l| l.split_once(':')).find(|(path, _)| path.ends_with(&file));
        let Some((path, needs)) = row else { continue };
        for path in needs.split_whitespace().rev().chain([path]) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    order
}

fn init() -> String {
    format!(
        "#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /dev /proc
$b mount -t devtmpfs devtmpfs /dev
$b mount -t proc proc /proc
exec >/dev/ttyS0 2>&1
echo {UP}
for module in /modules/*.ko; do $b insmod $module; done
n=0
until [ -b /dev/vda ] || [ $n -ge 100 ]; do $b sleep 0.1; n=$((n+1)); done
read begin rest </proc/uptime
if [ -b /dev/vda ] && $b dd if=/dev/zero of=/dev/vda bs=1M count={WRITES} oflag=direct; then
    read end rest </proc/uptime
    echo {DISK} $begin $end
else
    echo {DISK} no virtio disk
fi
while :; do echo {TICK}; $b sleep 1; done
"
    )
}

/// What the guest has said so far.
pub struct Console(String);

impl Console {
    pub fn up(&self) -> bool {
        self.0.contains(UP)
    }

    /// MB/s; the error is what it said instead. `None`: it has not got that far.
    pub fn disk(&self) -> Option<Result<f64, String>> {
        // A line that is not whole yet is not read.
        let whole = self.0.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let said = whole.lines().find_map(|l| l.split_once(DISK))?.1.trim();
        let mut times = said.split_whitespace().map(|t| t.parse::<f64>());
        Some(match (times.next(), times.next()) {
            (Some(Ok(begin)), Some(Ok(end))) if end >= begin => {
                // The clock of /proc/uptime has hundredths.
                Ok(f64::from(WRITES) * 1.048576 / (end - begin).max(0.01))
            }
            _ => Err(said.to_owned()),
        })
    }

    pub fn ticks(&self) -> usize {
        self.0.matches(TICK).count()
    }

    /// For a sentence about a guest that does not come up.
    pub fn last_words(&self) -> &str {
        self.0.lines().rev().map(str::trim).find(|l| !l.is_empty()).unwrap_or("nothing on its console")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need() {
        let table = "kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko\n\
                     kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio_pci_legacy_dev.ko \
                     kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko\n\
                     kernel/drivers/virtio/virtio.ko:\n";
        let names: Vec<&str> = in_order(table).iter().filter_map(|p| p.rsplit('/').next()).collect();
        assert_eq!(
            names,
            ["virtio.ko", "virtio_ring.ko", "virtio_pci_legacy_dev.ko", "virtio_pci.ko", "virtio_blk.ko"]
        );
        assert!(in_order("garbage").is_empty(), "all built in");
    }

    #[test]
    fn the_console_is_read_as_far_as_it_goes() {
        let said = |text: &str| Console(text.to_owned());
        assert!(!said("[    0.0] Linux").up());
        let booting = said("[    0.1] noise\nRACKLINE-GUEST-OK\n");
        assert!(booting.up() && booting.disk().is_none());
        assert!(said("RACKLINE-DISK 2.00 4.").disk().is_none(), "half a line");
        let rate = said("x\r\nRACKLINE-DISK 2.00 4.00\r\nRACKLINE-TICK\nRACKLINE-TICK\n");
        assert!((rate.disk().unwrap().unwrap() - 33.55).abs() < 0.01);
        assert_eq!((rate.ticks(), rate.last_words()), (2, "RACKLINE-TICK"));
        assert_eq!(said("RACKLINE-DISK no virtio disk\n").disk(), Some(Err("no virtio disk".into())));
        assert_eq!(said("RACKLINE-DISK 9 3\n").disk(), Some(Err("9 3".into())));
        assert_eq!(said("").last_words(), "nothing on its console");
    }

    #[test]
    fn what_is_laid_over_the_busybox_is_an_archive() {
        let modules = tempfile::tempdir().unwrap();
        std::fs::write(modules.path().join("modules.dep"), "a/virtio_blk.ko: a/virtio.ko\na/virtio.ko:\n").unwrap();
        std::fs::create_dir(modules.path().join("a")).unwrap();
        for name in ["virtio_blk.ko", "virtio.ko"] {
            std::fs::write(modules.path().join("a").join(name), name).unwrap();
        }
        let archive = overlay(modules.path()).unwrap();
        let text = String::from_utf8_lossy(&archive);
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part}"));
        assert!(text.starts_with("070701") && at("modules/00.ko") < at("modules/01.ko"));
        assert!(at("00.ko") < at("virtio.ko\0") || at("virtio.ko") < at("01.ko"));
        assert!(text.contains("TRAILER!!!") && archive.len().is_multiple_of(4));
    }
}
