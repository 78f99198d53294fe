//! What is set in the running kernel at each start because no file sets it: governors, idle states, queues and interrupts of
//! NICs, transparent huge pages. A look at /sys and /proc gives the changes that are lacking, and the same look says for the
//! delivery checks what was expected and what was found.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::super::roots::Roots;
use crate::role::{Setting, Setup, files};

/// One thing to be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Write {
        path: PathBuf,
        value: String,
    },
    /// A program and its arguments.
    Run(Vec<String>),
}

/// What a setting came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuned {
    pub name: String,
    pub expected: String,
    pub found: String,
    pub why: String,
    /// What is lacking; nothing: it is as it should be.
    pub changes: Vec<Change>,
}

/// Answers of `ethtool`, which /sys does not have.
pub trait Ethtool {
    /// The text of `ethtool OPTION NIC`; `None` where the driver does not know it.
    fn ask(&self, option: &str, nic: &str) -> Option<String>;
}

/// All settings that are not a file's alone.
pub fn look(roots: &Roots, setup: &Setup, ethtool: &dyn Ethtool) -> Vec<Tuned> {
    let nics = nics(roots);
    let mut all = Vec::new();
    for setting in &setup.tuning {
        let value = setting.value.as_str();
        let found = match setting.name.as_str() {
            "cpu.governor" => governor(roots, value),
            "cpu.idle-latency" => idle(roots, value.parse().unwrap_or(u64::MAX)),
            "memory.huge-pages" => huge_pages(roots, value),
            "nic.queues" => each(&nics, |nic| queues(nic, ethtool)),
            "nic.irqs" => each(&nics, |nic| irqs(roots, nic)),
            "nic.rps" => each(&nics, |nic| rps(roots, nic, value)),
            // The agent's own check of the kernel has it.
            "kernel.floor" => continue,
            name => match name.strip_prefix("offload.") {
                Some(feature) => each(&nics, |nic| offload(nic, feature, value, ethtool)),
                None => sysctl(roots, setting),
            },
        };
        let (expected, found, changes) = found;
        all.push(Tuned { name: setting.name.clone(), expected, found, why: setting.why.clone(), changes });
    }
    all
}

/// Expected, found, lacking.
type Look = (String, String, Vec<Change>);

fn each(nics: &[Nic], mut of: impl FnMut(&Nic) -> Option<Look>) -> Look {
    let (mut expected, mut found, mut changes) = (Vec::new(), Vec::new(), Vec::new());
    for nic in nics {
        if let Some((e, f, c)) = of(nic) {
            expected.push(format!("{}: {e}", nic.name));
            found.push(format!("{}: {f}", nic.name));
            changes.extend(c);
        }
    }
    if expected.is_empty() {
        return ("as far as the NICs have it".into(), "no NIC of this host has it".into(), Vec::new());
    }
    (expected.join("; "), found.join("; "), changes)
}

fn text(path: &Path) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number(path: &Path) -> Option<u64> {
    text(path)?.parse().ok()
}

/// `0-3,8` as numbers. Bounded: a kernel has fewer than this.
fn list(text: &str) -> Vec<usize> {
    const MOST: usize = 1 << 14;
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.trim().parse().ok()?, last.trim().parse::<usize>().ok()?.min(MOST)))
    };
    text.split(',').filter_map(range).flat_map(|(first, last)| first..=last).collect()
}

/// As the kernel takes it: groups of 32 bits, the highest first.
fn mask(cpus: &[usize]) -> String {
    let words = cpus.iter().max().map_or(1, |most| most / 32 + 1);
    let mut bits = vec![0u32; words];
    for cpu in cpus {
        if let Some(word) = bits.get_mut(cpu / 32) {
            *word |= 1 << (cpu % 32);
        }
    }
    bits.iter().rev().map(|w| format!("{w:08x}")).collect::<Vec<_>>().join(",")
}

/// The same mask in every spelling: without leading zeros and commas.
fn same_mask(one: &str, other: &str) -> bool {
    let plain = |text: &str| text.replace(',', "").trim_start_matches('0').to_lowercase();
    plain(one) == plain(other)
}

/// Folders `cpuN` of /sys, in the order of their numbers.
fn cpus(roots: &Roots) -> Vec<(usize, PathBuf)> {
    let folder = roots.sys.join("devices/system/cpu");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let named = entries.filter_map(|p| Some((p.file_name()?.to_str()?.strip_prefix("cpu")?.parse().ok()?, p)));
    let mut cpus: Vec<(usize, PathBuf)> = named.collect();
    cpus.sort();
    cpus
}

fn governor(roots: &Roots, wanted: &str) -> Look {
    let (mut other, mut count, mut changes) = (BTreeSet::new(), 0, Vec::new());
    for (_, cpu) in cpus(roots) {
        let path = cpu.join("cpufreq/scaling_governor");
        let Some(found) = text(&path) else { continue };
        count += 1;
        if found != wanted {
            other.insert(found);
            changes.push(Change::Write { path, value: wanted.to_owned() });
        }
    }
    let found = match (count, changes.len()) {
        (0, _) => "the kernel does not scale this machine's cores".into(),
        (_, 0) => format!("{wanted} on {count} cores"),
        (_, n) => format!("{} on {n} of {count} cores", other.into_iter().collect::<Vec<_>>().join(", ")),
    };
    (wanted.to_owned(), found, changes)
}

/// State 0 is polling on x86 and a plain halt elsewhere: it stays.
fn idle(roots: &Roots, limit: u64) -> Look {
    let (mut slow, mut states, mut changes) = (BTreeSet::new(), 0, Vec::new());
    for (_, cpu) in cpus(roots) {
        for state in 1..32 {
            let folder = cpu.join(format!("cpuidle/state{state}"));
            let Some(latency) = number(&folder.join("latency")) else { break };
            states += 1;
            let path = folder.join("disable");
            if latency > limit && text(&path).as_deref() != Some("1") {
                slow.insert(text(&folder.join("name")).unwrap_or_else(|| format!("state {state}")));
                changes.push(Change::Write { path, value: "1".into() });
            }
        }
    }
    let found = match (states, changes.len()) {
        (0, _) => "the kernel chooses no idle states here".into(),
        (_, 0) => format!("no state above {limit} µs in use"),
        (_, n) => format!("{} in use ({n} times)", slow.into_iter().collect::<Vec<_>>().join(", ")),
    };
    (format!("no idle state that takes over {limit} µs to leave"), found, changes)
}

/// `always [madvise] never`: the one in brackets is in use.
fn huge_pages(roots: &Roots, wanted: &str) -> Look {
    let path = roots.sys.join("kernel/mm/transparent_hugepage/enabled");
    let Some(line) = text(&path) else {
        return (wanted.to_owned(), "the kernel has no transparent huge pages".into(), Vec::new());
    };
    let found = line.split(['[', ']']).nth(1).unwrap_or("unknown").to_owned();
    let changes = if found == wanted { Vec::new() } else { vec![Change::Write { path, value: wanted.to_owned() }] };
    (wanted.to_owned(), found, changes)
}

fn sysctl(roots: &Roots, setting: &Setting) -> Look {
    let one = Setup { tuning: vec![setting.clone()], ..Setup::default() };
    let (mut expected, mut found, mut changes) = (Vec::new(), Vec::new(), Vec::new());
    for (name, value) in files::sysctls(&one) {
        let path = roots.proc.join("sys").join(name.replace('.', "/"));
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        expected.push(format!("{name} = {value}"));
        match text(&path) {
            Some(there) if words(&there) == words(&value) => found.push(format!("{name} = {value}")),
            Some(there) => {
                found.push(format!("{name} = {}", words(&there).join(" ")));
                changes.push(Change::Write { path, value });
            }
            None => {
                found.push(format!("{name} is not there"));
                changes.push(Change::Write { path, value });
            }
        }
    }
    (expected.join(", "), found.join(", "), changes)
}

/// A NIC with a device behind it, and the cores near it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Nic {
    name: String,
    /// Of its NUMA node, or all.
    cpus: Vec<usize>,
    /// The first thread of each core among them.
    cores: Vec<usize>,
}

fn nics(roots: &Roots) -> Vec<Nic> {
    let entries = std::fs::read_dir(roots.sys.join("class/net")).into_iter().flatten().flatten();
    let mut nics: Vec<Nic> = entries
        .filter(|e| e.path().join("device").exists())
        .filter_map(|e| {
            let name = e.file_name().into_string().ok()?;
            let all: Vec<usize> = cpus(roots).into_iter().map(|(n, _)| n).collect();
            // A virtual function or a virtio device has its node one level up.
            let near = ["device/local_cpulist", "device/../local_cpulist"].iter().find_map(|p| text(&e.path().join(p)));
            let near: Vec<usize> =
                near.map(|l| list(&l)).unwrap_or_default().into_iter().filter(|c| all.contains(c)).collect();
            let cpus = if near.is_empty() { all } else { near };
            let first = |cpu: &usize| {
                let path = roots.sys.join(format!("devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"));
                text(&path).and_then(|l| list(&l).first().copied()).is_none_or(|first| first == *cpu)
            };
            let cores = cpus.iter().copied().filter(first).collect();
            Some(Nic { name, cpus, cores })
        })
        .collect();
    nics.sort_by(|a, b| a.name.cmp(&b.name));
    nics
}

/// Queues that are there now: `rx-N` below `queues`.
fn receive_queues(roots: &Roots, nic: &Nic) -> Vec<PathBuf> {
    let folder = roots.sys.join("class/net").join(&nic.name).join("queues");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let mut queues: Vec<PathBuf> =
        entries.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("rx-"))).collect();
    queues.sort();
    queues
}

/// Combined channels: maximum and current, of `ethtool -l`, which prints the section of maxima first.
fn channels(text: &str) -> Option<(usize, usize)> {
    let mut combined = text.lines().filter_map(|l| l.trim().strip_prefix("Combined:")).map(|n| n.trim().parse().ok());
    Some((combined.next()??, combined.next()??))
}

fn queues(nic: &Nic, ethtool: &dyn Ethtool) -> Option<Look> {
    let (most, now) = channels(&ethtool.ask("-l", &nic.name)?).filter(|(most, _)| *most > 0)?;
    let wanted = nic.cores.len().clamp(1, most);
    let run = ["ethtool", "-L", &nic.name, "combined", &wanted.to_string()].map(str::to_owned).to_vec();
    let changes = if now == wanted { Vec::new() } else { vec![Change::Run(run)] };
    Some((format!("{wanted} queues"), format!("{now} queues"), changes))
}

/// The interrupts of the NIC's queues: those of its device whose name in /proc/interrupts has a number, in their order.
fn irqs(roots: &Roots, nic: &Nic) -> Option<Look> {
    let device = roots.sys.join("class/net").join(&nic.name).join("device");
    let own = ["msi_irqs", "../msi_irqs"].iter().find_map(|f| std::fs::read_dir(device.join(f)).ok())?;
    let own: BTreeSet<u32> = own.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    let table = text(&roots.proc.join("interrupts"))?;
    let of_queue = |line: &str| {
        let (irq, rest) = line.trim().split_once(':')?;
        let name = rest.split_whitespace().last()?;
        // `eth0-TxRx-3`, `virtio0-input.0`, `mlx5_comp3@pci:…`; not `virtio0-config`, `mlx5_async0`.
        let queue = name.chars().any(|c| c.is_ascii_digit()) && !name.contains("config") && !name.contains("async");
        let numbered = name.trim_end_matches(|c: char| c.is_ascii_digit()).len() < name.len() || name.contains("comp");
        (queue && numbered).then(|| irq.trim().parse().ok()).flatten()
    };
    let irqs: Vec<u32> = table.lines().filter_map(of_queue).filter(|irq| own.contains(irq)).collect();
    if irqs.is_empty() || nic.cores.is_empty() {
        return None;
    }
    let (mut wrong, mut changes) = (0, Vec::new());
    for (irq, cpu) in irqs.iter().zip(nic.cores.iter().cycle()) {
        let path = roots.proc.join(format!("irq/{irq}/smp_affinity_list"));
        if text(&path).map(|l| list(&l)) != Some(vec![*cpu]) {
            wrong += 1;
            changes.push(Change::Write { path, value: cpu.to_string() });
        }
    }
    let found = if wrong == 0 {
        format!("{} interrupts, a core each", irqs.len())
    } else {
        format!("{wrong} of {} interrupts elsewhere", irqs.len())
    };
    Some((format!("{} interrupts spread over {} cores of its node", irqs.len(), nic.cores.len()), found, changes))
}

/// Only where there are fewer queues than cores: otherwise the hardware has spread the packets already.
fn rps(roots: &Roots, nic: &Nic, wanted: &str) -> Option<Look> {
    let queues = receive_queues(roots, nic);
    if queues.is_empty() {
        return None;
    }
    let spread = wanted == "numa" && queues.len() < nic.cores.len();
    let value = if spread { mask(&nic.cpus) } else { "0".into() };
    let (mut wrong, mut changes) = (0, Vec::new());
    for queue in &queues {
        let path = queue.join("rps_cpus");
        let Some(there) = text(&path) else { continue };
        if !same_mask(&there, &value) {
            wrong += 1;
            changes.push(Change::Write { path, value: value.clone() });
        }
    }
    let expected = if spread { format!("over {} cores of its node", nic.cpus.len()) } else { "off".into() };
    let found = if wrong == 0 { expected.clone() } else { format!("otherwise on {wrong} of {} queues", queues.len()) };
    Some((expected, found, changes))
}

/// `ethtool -k`: `large-receive-offload: off [fixed]`. What the NIC does not know, it does not do.
fn offload(nic: &Nic, feature: &str, wanted: &str, ethtool: &dyn Ethtool) -> Option<Look> {
    let all = ethtool.ask("-k", &nic.name)?;
    let line = all.lines().find_map(|l| l.trim().strip_prefix(feature)?.strip_prefix(':'))?;
    let mut words = line.split_whitespace();
    let found = words.next()?;
    // What is fixed is not for us to change.
    if found == wanted || line.contains("[fixed]") {
        return Some((wanted.to_owned(), line.trim().to_owned(), Vec::new()));
    }
    let run = ["ethtool", "-K", &nic.name, feature, wanted].map(str::to_owned).to_vec();
    Some((wanted.to_owned(), line.trim().to_owned(), vec![Change::Run(run)]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::role::Templates;

    struct Fake;

    impl Ethtool for Fake {
        fn ask(&self, option: &str, nic: &str) -> Option<String> {
            match (option, nic) {
                ("-l", "eth0") => Some("Channel parameters for eth0:\nPre-set maximums:\nRX:\t\tn/a\nCombined:\t8\nCurrent hardware settings:\nRX:\t\tn/a\nCombined:\t1\n".into()),
                ("-k", "eth0") => Some("Features for eth0:\nlarge-receive-offload: off [fixed]\nrx-gro-hw: on\n".into()),
                _ => None,
            }
        }
    }

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Two sockets of two cores with two threads each; eth0 on the second.
    fn machine() -> (tempfile::TempDir, Roots) {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots { sys: dir.path().join("sys"), proc: dir.path().join("proc"), ..Roots::default() };
        for cpu in 0..8 {
            let base = format!("devices/system/cpu/cpu{cpu}");
            put(
                &roots.sys,
                &format!("{base}/cpufreq/scaling_governor"),
                if cpu == 0 { "performance\n" } else { "powersave\n" },
            );
            for (state, name, latency) in [(0, "POLL", 0), (1, "C1", 2), (2, "C6", 133)] {
                put(&roots.sys, &format!("{base}/cpuidle/state{state}/name"), name);
                put(&roots.sys, &format!("{base}/cpuidle/state{state}/latency"), &latency.to_string());
                put(&roots.sys, &format!("{base}/cpuidle/state{state}/disable"), "0\n");
            }
            put(&roots.sys, &format!("{base}/topology/thread_siblings_list"), &format!("{},{}", cpu % 4, cpu % 4 + 4));
        }
        put(&roots.sys, "kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n");
        put(&roots.sys, "class/net/eth0/device/local_cpulist", "2-3,6-7\n");
        put(&roots.sys, "class/net/eth0/queues/rx-0/rps_cpus", "00000000,00000000\n");
        for irq in [40, 41, 42] {
            put(&roots.sys, &format!("class/net/eth0/device/msi_irqs/{irq}"), "msix\n");
            put(&roots.proc, &format!("irq/{irq}/smp_affinity_list"), "0-7\n");
        }
        put(&roots.sys, "class/net/lo/mtu", "65536\n");
        put(
            &roots.proc,
            "interrupts",
            "      CPU0\n 40:  1  PCI-MSI 1-edge  eth0-config\n 41:  9  PCI-MSI 2-edge  eth0-TxRx-0\n 42:  9  PCI-MSI 3-edge  eth0-TxRx-1\n 43: 1 x other-1\n",
        );
        for (name, value) in files::sysctls(&Templates::default().of(&"kvm+ovs".parse().unwrap()).unwrap().setup) {
            put(&roots.proc, &format!("sys/{}", name.replace('.', "/")), &format!("{value}\n"));
        }
        put(&roots.proc, "sys/vm/swappiness", "60\n");
        (dir, roots)
    }

    fn apply(changes: &[Change]) -> Vec<String> {
        let mut run = Vec::new();
        for change in changes {
            match change {
                Change::Write { path, value } => std::fs::write(path, value).unwrap(),
                Change::Run(words) => run.push(words.join(" ")),
            }
        }
        run
    }

    #[test]
    fn what_is_lacking_is_set_once_and_then_found() {
        let (_dir, roots) = machine();
        let setup = Templates::default().of(&"kvm+ovs".parse().unwrap()).unwrap().setup;
        let before = look(&roots, &setup, &Fake);
        let of = |all: &[Tuned], name: &str| all.iter().find(|t| t.name == name).unwrap().clone();
        assert_eq!(of(&before, "cpu.governor").found, "powersave on 7 of 8 cores");
        assert_eq!(of(&before, "cpu.idle-latency").found, "C6 in use (8 times)");
        assert_eq!(of(&before, "nic.queues").expected, "eth0: 2 queues");
        assert_eq!(of(&before, "sysctl.vm.swappiness").found, "vm.swappiness = 60");
        assert_eq!(of(&before, "memory.huge-pages").found, "always");
        assert!(of(&before, "cpu.governor").why.contains("governors"));
        let irqs = of(&before, "nic.irqs").changes;
        let list = |irq: u32, cpu: &str| Change::Write {
            path: roots.proc.join(format!("irq/{irq}/smp_affinity_list")),
            value: cpu.into(),
        };
        assert_eq!(irqs, [list(41, "2"), list(42, "3")]);
        let rps = of(&before, "nic.rps").changes;
        assert_eq!(
            rps,
            [Change::Write { path: roots.sys.join("class/net/eth0/queues/rx-0/rps_cpus"), value: "000000cc".into() }]
        );

        let run: Vec<String> = before.iter().flat_map(|t| apply(&t.changes)).collect();
        assert_eq!(run, ["ethtool -L eth0 combined 2", "ethtool -K eth0 rx-gro-hw off"]);
        // A real kernel writes it back its own way.
        put(&roots.sys, "kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
        let after = look(&roots, &setup, &Fake);
        let left: Vec<&str> = after.iter().filter(|t| !t.changes.is_empty()).map(|t| t.name.as_str()).collect();
        assert_eq!(left, ["nic.queues", "offload.rx-gro-hw"]);
    }

    #[test]
    fn a_machine_without_any_of_it_lacks_nothing_but_sysctls() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots { sys: dir.path().join("sys"), proc: dir.path().join("proc"), ..Roots::default() };
        let setup = Templates::default().of(&"kvm+ovs".parse().unwrap()).unwrap().setup;
        for tuned in look(&roots, &setup, &Fake) {
            let file = ["sysctl.", "limit.", "conntrack."].iter().any(|p| tuned.name.starts_with(p));
            assert_eq!(tuned.changes.is_empty(), !file, "{tuned:?}");
        }
    }

    #[test]
    fn lists_and_masks() {
        assert_eq!(list("0-2,8, 10-11"), [0, 1, 2, 8, 10, 11]);
        assert!(list("x,-,5-").is_empty() && list("").is_empty() && list("0-99999999999").len() < 1 << 15);
        assert_eq!(mask(&[2, 3, 6, 7]), "000000cc");
        assert_eq!(mask(&[0, 33]), "00000002,00000001");
        assert!(same_mask("00000000,000000cc", "cc") && !same_mask("cd", "cc") && same_mask("0", "00000000,00000000"));
    }
}
