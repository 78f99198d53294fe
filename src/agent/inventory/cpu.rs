//! Processors, memory and NUMA nodes as the kernel sees them: `/proc/cpuinfo`, `/proc/meminfo`, `/sys/devices/system`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{names, value};
use crate::machine::{Cpu, NumaNode};

/// One entry per package, in the order of their numbers.
pub fn read(proc: &Path, sys: &Path) -> Vec<Cpu> {
    let mut packages = parse(&std::fs::read_to_string(proc.join("cpuinfo")).unwrap_or_default());
    for package in &mut packages {
        let file = |n: &u32| sys.join(format!("devices/system/cpu/cpu{n}/cpufreq/scaling_governor"));
        let governors: BTreeSet<String> = package.processors.iter().filter_map(|n| value(&file(n))).collect();
        package.cpu.governor = (!governors.is_empty()).then(|| governors.into_iter().collect::<Vec<_>>().join(", "));
    }
    packages.into_iter().map(|p| p.cpu).collect()
}

#[derive(Default)]
struct Package {
    cpu: Cpu,
    processors: Vec<u32>,
}

fn parse(text: &str) -> Vec<Package> {
    let mut packages: BTreeMap<u32, Package> = BTreeMap::new();
    for block in text.split("\n\n") {
        let fields: BTreeMap<&str, &str> =
            block.lines().filter_map(|l| l.split_once(':')).map(|(k, v)| (k.trim(), v.trim())).collect();
        let number = |key: &str| fields.get(key).and_then(|v| v.parse::<u32>().ok());
        let Some(processor) = number("processor") else { continue };
        // Guests and some hypervisors leave the package out: then all processors are of one.
        let id = number("physical id").unwrap_or(0);
        let package = packages.entry(id).or_insert_with(|| Package { cpu: first(id, &fields), ..Package::default() });
        package.processors.push(processor);
        package.cpu.threads = package.cpu.threads.saturating_add(1);
    }
    packages.into_values().collect()
}

/// What the first processor of a package says for all of it.
fn first(id: u32, fields: &BTreeMap<&str, &str>) -> Cpu {
    let text = |key: &str| fields.get(key).map(|v| v.to_string());
    let mut flags: Vec<String> = text("flags").unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    flags.sort();
    let stepping = (text("cpu family"), text("model"), text("stepping"));
    Cpu {
        socket: id.to_string(),
        model: text("model name").unwrap_or_default(),
        cores: text("cpu cores").and_then(|n| n.parse().ok()).unwrap_or(1).max(1),
        microcode: text("microcode"),
        virtualisation: flags.iter().any(|f| f == "vmx" || f == "svm"),
        stepping: match stepping {
            (Some(family), Some(model), Some(stepping)) => Some(format!("{family}-{model}-{stepping}")),
            _ => None,
        },
        flags,
        ..Cpu::default()
    }
}

/// None where the kernel knows no nodes.
pub fn numa(sys: &Path) -> Vec<NumaNode> {
    let nodes = sys.join("devices/system/node");
    let number = |name: &String| name.strip_prefix("node")?.parse::<u16>().ok();
    let mut found: Vec<u16> = names(&nodes).unwrap_or_default().iter().filter_map(number).collect();
    found.sort_unstable();
    let node = |node: u16| {
        let folder = nodes.join(format!("node{node}"));
        let memory = std::fs::read_to_string(folder.join("meminfo")).unwrap_or_default();
        // `Node 0 MemTotal:       65717656 kB`
        let total = memory.lines().find_map(|l| l.split_once("MemTotal:"));
        let kib: Option<u64> = total.and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
        NumaNode {
            node,
            memory_bytes: kib.unwrap_or(0).saturating_mul(1024),
            cpus: value(&folder.join("cpulist")).unwrap_or_default(),
        }
    };
    found.into_iter().map(node).collect()
}

/// `MemTotal` in bytes; 0 where the kernel does not say.
pub fn memory_total(proc: &Path) -> u64 {
    let text = std::fs::read_to_string(proc.join("meminfo")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib: Option<u64> = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_counted_by_their_number() {
        let cpu = |n: u32, package: u32| {
            format!(
                "processor\t: {n}\nmodel name\t: AMD EPYC 7302\nphysical id\t: {package}\ncpu cores\t: 16\n\
                 cpu family\t: 23\nmodel\t\t: 49\nstepping\t: 0\nmicrocode\t: 0x830107c\nflags\t\t: fpu svm sse\n"
            )
        };
        let text = [cpu(0, 0), cpu(1, 0), cpu(2, 1), cpu(3, 1)].join("\n");
        let root = tempfile::tempdir().unwrap();
        let (proc, sys) = (root.path().join("proc"), root.path().join("sys"));
        std::fs::create_dir_all(&proc).unwrap();
        std::fs::write(proc.join("cpuinfo"), text).unwrap();
        for (n, governor) in [(0, "performance"), (1, "powersave"), (2, "powersave"), (3, "powersave")] {
            let folder = sys.join(format!("devices/system/cpu/cpu{n}/cpufreq"));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("scaling_governor"), format!("{governor}\n")).unwrap();
        }
        let cpus = read(&proc, &sys);
        assert_eq!(cpus.len(), 2);
        assert_eq!(cpus[0].governor.as_deref(), Some("performance, powersave"));
        assert_eq!(cpus[1].governor.as_deref(), Some("powersave"));
        assert_eq!((cpus[0].stepping.as_deref(), cpus[0].flags.join(" ")), (Some("23-49-0"), "fpu sse svm".into()));
        assert_eq!((cpus[1].socket.as_str(), cpus[1].cores, cpus[1].threads), ("1", 16, 2));
        assert!(cpus[0].virtualisation);
        assert_eq!(cpus[0].microcode.as_deref(), Some("0x830107c"));
    }

    #[test]
    fn no_flag_no_virtualisation() {
        let cpus = parse("processor : 0\nflags : fpu vmxnet svmx\n");
        assert_eq!((cpus.len(), cpus[0].cpu.virtualisation, cpus[0].cpu.cores), (1, false, 1));
        assert!(parse("").is_empty());
    }

    #[test]
    fn nodes_with_their_memory_and_processors() {
        let root = tempfile::tempdir().unwrap();
        for (node, kib, cpus) in [(10, 1024, "8-15"), (2, 2048, "0-7")] {
            let folder = root.path().join(format!("devices/system/node/node{node}"));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("meminfo"), format!("Node {node} MemTotal:       {kib} kB\n")).unwrap();
            std::fs::write(folder.join("cpulist"), format!("{cpus}\n")).unwrap();
        }
        std::fs::write(root.path().join("devices/system/node/online"), "2,10").unwrap();
        let nodes = numa(root.path());
        assert_eq!(nodes.iter().map(|n| (n.node, n.memory_bytes)).collect::<Vec<_>>(), [(2, 2 << 20), (10, 1 << 20)]);
        assert_eq!(nodes[1].cpus, "8-15");
    }
}
