//! What may go wrong with an image on the machines that are to get it, told before it is published.

use serde::Serialize;

use super::inspect::cloud::{self, CloudInit};
use super::inspect::disk::Disk;
use super::inspect::files::Files;
use super::inspect::{System, TEXT, Tree};
use crate::error::{Error, Result};
use crate::machine::Firmware;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Good to know.
    Note,
    /// Some machines, or some uses, will be worse for it.
    Warning,
    /// It will not boot, not be set up, or gives a secret away.
    Error,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// Stable, for scripts.
    pub code: &'static str,
    pub sentence: String,
    pub hint: String,
}

/// The machines that the image is held against.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Kernel drivers and how many machines need each; empty: no inventory is known.
    pub drivers: Vec<(String, usize)>,
    /// In bytes: the smallest disk that could be the target.
    pub smallest_disk: Option<u64>,
    /// Room that the seed partition takes, in bytes.
    pub seed: u64,
}

/// Without inventories: drivers of what servers usually have.
const USUAL: &[&str] = &[
    "ahci",
    "nvme",
    "megaraid_sas",
    "mpt3sas",
    "smartpqi",
    "aacraid",
    "hpsa",
    "sd_mod", // disks
    "tg3",
    "bnxt_en",
    "bnx2x",
    "igb",
    "e1000e",
    "ixgbe",
    "i40e",
    "ice",
    "mlx4_core",
    "mlx5_core",
    "qede",
    "sfc", // network
];

/// Files that nobody should find on a delivered host, with what they are.
const PRIVATE: &[(&str, &str)] = &[
    ("/etc/rackline/agent.toml", "the token of another machine's agent"),
    ("/root/.netrc", "passwords of web sites"),
    ("/root/.aws/credentials", "a cloud account's keys"),
    ("/root/.docker/config.json", "a registry's password"),
    ("/root/.kube/config", "a cluster's credentials"),
    ("/root/.git-credentials", "passwords of repositories"),
];

/// What to look at when nothing else is said.
pub fn check(disk: &Disk, system: &System, expected: &Expected) -> Result<Vec<Finding>> {
    let mut found = Found(Vec::new());
    boot(system, &mut found);
    cloud_init(&system.files, &mut found);
    drivers(system, expected, &mut found);
    grow(system, &mut found);
    secrets(&system.files, &mut found);
    size(disk.size(), expected, &mut found);
    let Found(mut findings) = found;
    findings.sort_by_key(|f| std::cmp::Reverse(f.level));
    Ok(findings)
}

/// Errors keep an image out of the catalogue, unless somebody gives a reason.
pub fn refuse(name: &str, findings: &[Finding], force: Option<&str>) -> Result<()> {
    let errors: Vec<&Finding> = findings.iter().filter(|f| f.level == Level::Error).collect();
    match (errors.first(), force) {
        (Some(first), None) => {
            let what = format!(
                "{name} is not published: {} ({} of this weight; {})",
                first.sentence,
                errors.len(),
                first.code
            );
            let all: Vec<String> = errors.iter().map(|f| format!("{}: {}", f.code, f.sentence)).collect();
            Err(Error::refused("image.lint", what)
                .because(all.join("\n"))
                .hint(format!("{}; `--force REASON` publishes it all the same", first.hint)))
        }
        _ => Ok(()),
    }
}

struct Found(Vec<Finding>);

impl Found {
    fn add(&mut self, level: Level, code: &'static str, sentence: impl Into<String>, hint: &str) {
        self.0.push(Finding { level, code, sentence: sentence.into(), hint: hint.to_owned() });
    }
}

fn boot(system: &System, found: &mut Found) {
    let has = |firmware| system.firmware.contains(&firmware);
    match (has(Firmware::Bios), has(Firmware::Uefi)) {
        (true, true) => {}
        (false, false) => found.add(
            Level::Error,
            "boot.loader",
            "there is no boot loader for BIOS or UEFI on the disk",
            "install GRUB in the image: `grub-install --target=i386-pc DISK` and `grub-install --target=x86_64-efi --removable`",
        ),
        (false, true) => found.add(
            Level::Warning,
            "boot.bios",
            "machines with BIOS do not start it: there is no GRUB in the MBR and a BIOS boot partition",
            "use it on UEFI machines only, or add a partition of 1 MiB of type ef02 and `grub-install --target=i386-pc DISK`",
        ),
        (true, false) => found.add(
            Level::Warning,
            "boot.uefi",
            "machines with UEFI do not start it: /EFI/BOOT/BOOTX64.EFI is not on an EFI system partition",
            "use it on BIOS machines only, or `grub-install --target=x86_64-efi --removable` in the image",
        ),
    }
    if system.root.label.is_none() {
        found.add(
            Level::Note,
            "boot.label",
            "the root file system has no label",
            "tell disks apart more easily: `e2label` or `xfs_admin -L`",
        );
    }
    match &system.kernel {
        None => found.add(
            Level::Error,
            "boot.kernel",
            "there is no kernel in /boot",
            "install one: `apt-get install linux-image-amd64`",
        ),
        Some(kernel) if !system.files.exists(&kernel.initrd) => found.add(
            Level::Error,
            "boot.initrd",
            format!("kernel {} has no initramfs", kernel.release),
            "make it in the image: `update-initramfs -c -k all` or `dracut --regenerate-all`",
        ),
        Some(_) => {}
    }
    if !matches!(system.arch, Some("amd64" | "arm64")) {
        found.add(
            Level::Warning,
            "boot.arch",
            "the architecture of its programs is not known",
            "images are for amd64 or arm64",
        );
    }
}

fn cloud_init(files: &Tree, found: &mut Found) {
    let (code, sentence, hint) = match cloud::check(files) {
        CloudInit::Fits => return,
        CloudInit::Missing => (
            "cloud-init.missing",
            "cloud-init is not installed: nothing would take up name, network and keys".to_owned(),
            "install cloud-init in the image",
        ),
        CloudInit::Disabled(file) => (
            "cloud-init.disabled",
            format!("cloud-init is kept from running by {file}"),
            "remove that file in the image",
        ),
        CloudInit::OtherSources { sources, file } => (
            "cloud-init.datasource",
            format!("cloud-init does not look for our seed: {file} has {} and not NoCloud", sources.join(", ")),
            "add NoCloud to datasource_list, or take the vendor's generic image instead of one for a certain cloud",
        ),
    };
    found.add(Level::Error, code, sentence, hint);
}

/// The modules that the image's kernel can load or has built in.
fn modules(files: &Tree, release: &str) -> Vec<String> {
    let list = |name: &str| {
        let path = ["/lib/modules", "/usr/lib/modules"].map(|folder| format!("{folder}/{release}/{name}"));
        let bytes = path.iter().find_map(|p| files.read(p, 16 * TEXT).ok()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let text = list("modules.dep") + &list("modules.builtin");
    let path =
        |line: &str| line.split(':').next()?.rsplit('/').next()?.split(".ko").next().map(|n| n.replace('-', "_"));
    let mut names: Vec<String> = text.lines().filter_map(path).filter(|n| !n.is_empty()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn drivers(system: &System, expected: &Expected, found: &mut Found) {
    let Some(kernel) = &system.kernel else { return };
    let modules = modules(&system.files, &kernel.release);
    if modules.is_empty() {
        let sentence = format!("there are no modules for kernel {}", kernel.release);
        return found.add(Level::Error, "drivers.none", sentence, "install the kernel's package again in the image");
    }
    let lacks = |driver: &str| modules.binary_search(&driver.replace('-', "_")).is_err();
    if expected.drivers.is_empty() {
        let missing: Vec<&str> = USUAL.iter().copied().filter(|d| lacks(d)).collect();
        if !missing.is_empty() {
            found.add(
                Level::Warning,
                "drivers.usual",
                format!("its kernel {} lacks drivers of usual servers: {}", kernel.release, missing.join(", ")),
                "a vendor's cloud kernel is for virtual machines: take the generic one",
            );
        }
        return;
    }
    for (driver, machines) in expected.drivers.iter().filter(|(driver, _)| lacks(driver)) {
        found.add(
            Level::Error,
            "drivers.fleet",
            format!("its kernel {} lacks the driver {driver}, which {machines} of our machines need", kernel.release),
            "take an image with that driver, or with the generic instead of a cloud kernel",
        );
    }
}

fn grow(system: &System, found: &mut Found) {
    if system.partitions.last().is_some_and(|last| last.number != system.root.number) {
        found.add(
            Level::Error,
            "grow.last",
            format!("the root, partition {}, is not the last one on the disk and cannot grow", system.root.number),
            "move it to the end of the disk",
        );
    }
    let has = |path: &str| system.files.exists(path);
    let table = has("/usr/bin/growpart")
        || has("/usr/bin/systemd-repart")
            && ["/etc/repart.d", "/usr/lib/repart.d"]
                .iter()
                .any(|folder| system.files.list(folder).is_ok_and(|names| names.iter().any(|n| n.ends_with(".conf"))));
    let tools = ["resize2fs", "xfs_growfs", "btrfs"]
        .iter()
        .any(|tool| ["/sbin", "/usr/sbin", "/usr/bin", "/bin"].iter().any(|folder| has(&format!("{folder}/{tool}"))));
    let growfs = has("/lib/systemd/systemd-growfs") || has("/usr/lib/systemd/systemd-growfs");
    if !table {
        found.add(
            Level::Warning,
            "grow.partition",
            "nothing makes the root partition larger: there is neither growpart nor a systemd-repart definition",
            "install cloud-guest-utils (Debian, Ubuntu) or cloud-utils-growpart (Rocky) in the image",
        );
    } else if !tools && !growfs {
        found.add(
            Level::Warning,
            "grow.filesystem",
            "nothing makes the root file system larger",
            "install e2fsprogs or xfsprogs in the image",
        );
    }
}

/// What identifies one machine, or lets somebody in.
fn secrets(files: &Tree, found: &mut Found) {
    let list = |folder: &str| files.list(folder).unwrap_or_default();
    let filled = |path: &str| files.read(path, 64 << 10).is_ok_and(|b| b.iter().any(|c| !c.is_ascii_whitespace()));
    let host_keys = list("/etc/ssh").into_iter().filter(|n| n.starts_with("ssh_host_") && n.ends_with("_key"));
    if let Some(key) = host_keys.into_iter().find(|n| filled(&format!("/etc/ssh/{n}"))) {
        found.add(
            Level::Error,
            "secret.host-key",
            format!("every host would have the same SSH host key (/etc/ssh/{key})"),
            "delete /etc/ssh/ssh_host_* in the image; they are made at the first boot",
        );
    }
    let id = files.text("/etc/machine-id").unwrap_or_default();
    if !["", "uninitialized"].contains(&id.trim()) {
        found.add(
            Level::Error,
            "secret.machine-id",
            "every host would have the same /etc/machine-id, and with it the same DHCP client id",
            "empty it in the image: `truncate -s 0 /etc/machine-id`",
        );
    } else if filled("/var/lib/dbus/machine-id") {
        found.add(
            Level::Warning,
            "secret.dbus-id",
            "/var/lib/dbus/machine-id is left from another machine",
            "delete it in the image",
        );
    }
    let shadow = files.text("/etc/shadow").unwrap_or_default();
    let with_password: Vec<&str> = shadow
        .lines()
        .filter_map(|l| {
            let (user, rest) = l.split_once(':')?;
            let hash = rest.split(':').next()?;
            (hash.is_empty() || hash.starts_with('$') || hash.starts_with('_') || hash.len() == 13).then_some(user)
        })
        .collect();
    if !with_password.is_empty() {
        found.add(
            Level::Error,
            "secret.password",
            format!("a password, or none at all, opens the accounts {}", with_password.join(", ")),
            "lock them in the image: `passwd --lock USER`",
        );
    }
    let homes = list("/home").into_iter().map(|n| format!("/home/{n}"));
    for home in std::iter::once("/root".to_owned()).chain(homes) {
        secrets_of(files, &home, found);
    }
    for (path, what) in PRIVATE.iter().filter(|(path, _)| filled(path)) {
        found.add(Level::Error, "secret.file", format!("{path} is {what}"), "delete it in the image");
    }
    if list("/etc/ssl/private").iter().any(|n| n.ends_with(".key") || n.ends_with(".pem")) {
        found.add(
            Level::Warning,
            "secret.tls-key",
            "there is a private key in /etc/ssl/private",
            "delete it, and let it be made at the first boot",
        );
    }
    if !list("/var/lib/cloud/instances").is_empty() {
        found.add(
            Level::Error,
            "secret.instance",
            "cloud-init has run in it: data of another machine lies in /var/lib/cloud",
            "`cloud-init clean --logs --seed` in the image",
        );
    }
    if filled("/var/lib/systemd/random-seed") {
        found.add(
            Level::Warning,
            "secret.random-seed",
            "every host would start from the same random seed",
            "delete /var/lib/systemd/random-seed in the image",
        );
    }
}

fn secrets_of(files: &Tree, home: &str, found: &mut Found) {
    let names = files.list(home).unwrap_or_default();
    for history in names.iter().filter(|n| n.ends_with("_history")) {
        found.add(
            Level::Warning,
            "secret.history",
            format!("{home}/{history} tells what somebody typed"),
            "delete it in the image",
        );
    }
    for name in files.list(&format!("{home}/.ssh")).unwrap_or_default() {
        let path = format!("{home}/.ssh/{name}");
        let Ok(bytes) = files.read(&path, 64 << 10) else { continue };
        let text = String::from_utf8_lossy(&bytes);
        if text.contains("PRIVATE KEY-----") {
            found.add(Level::Error, "secret.ssh-key", format!("{path} is a private key"), "delete it in the image");
        } else if name.starts_with("authorized_keys")
            && text.lines().any(|l| !l.trim().is_empty() && !l.starts_with('#'))
        {
            found.add(
                Level::Error,
                "secret.authorized",
                format!("{path} lets somebody in on every host"),
                "delete it in the image; keys come with the order",
            );
        }
    }
}

fn size(disk: u64, expected: &Expected, found: &mut Found) {
    let needed = disk.saturating_add(expected.seed);
    if let Some(smallest) = expected.smallest_disk.filter(|smallest| *smallest < needed) {
        let mib = |bytes: u64| bytes >> 20;
        found.add(
            Level::Error,
            "size.disk",
            format!(
                "with its seed it needs {} MiB, the smallest disk that it may meet has {} MiB",
                mib(needed),
                mib(smallest)
            ),
            "shrink its file system and its disk; the root grows again at the first boot",
        );
    }
}
