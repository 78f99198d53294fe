//! Processors and memory as the kernel sees them: `/proc/cpuinfo` and `/proc/meminfo`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::machine::Cpu;

/// One entry per package, in the order of their numbers.
pub fn read(proc: &Path) -> Vec<Cpu> {
    parse(&std::fs::read_to_string(proc.join("cpuinfo")).unwrap_or_default())
}

fn parse(text: &str) -> Vec<Cpu> {
    let mut packages: BTreeMap<u32, Cpu> = BTreeMap::new();
    for block in text.split("\n\n") {
        let fields: BTreeMap<&str, &str> =
            block.lines().filter_map(|l| l.split_once(':')).map(|(k, v)| (k.trim(), v.trim())).collect();
        if !fields.contains_key("processor") {
            continue;
        }
        let number = |key: &str| fields.get(key).and_then(|v| v.parse::<u32>().ok());
        // Guests and some hypervisors leave the package out: then all processors are of one.
        let id = number("physical id").unwrap_or(0);
        let cpu = packages.entry(id).or_insert_with(|| Cpu {
            socket: id.to_string(),
            model: fields.get("model name").map(|m| m.to_string()).unwrap_or_default(),
            cores: number("cpu cores").and_then(|n| n.try_into().ok()).unwrap_or(0),
            microcode: fields.get("microcode").map(|m| m.to_string()),
            virtualisation: fields.get("flags").is_some_and(|f| f.split(' ').any(|f| f == "vmx" || f == "svm")),
            ..Cpu::default()
        });
        cpu.threads = cpu.threads.saturating_add(1);
        cpu.cores = cpu.cores.max(1);
    }
    packages.into_values().collect()
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
                 microcode\t: 0x830107c\nflags\t\t: fpu svm sse\n"
            )
        };
        let text = [cpu(0, 0), cpu(1, 0), cpu(2, 1), cpu(3, 1)].join("\n");
        let cpus = parse(&text);
        assert_eq!(cpus.len(), 2);
        assert_eq!((cpus[1].socket.as_str(), cpus[1].cores, cpus[1].threads), ("1", 16, 2));
        assert!(cpus[0].virtualisation);
        assert_eq!(cpus[0].microcode.as_deref(), Some("0x830107c"));
    }

    #[test]
    fn no_flag_no_virtualisation() {
        let cpus = parse("processor : 0\nflags : fpu vmxnet svmx\n");
        assert_eq!((cpus.len(), cpus[0].virtualisation, cpus[0].cores), (1, false, 1));
        assert!(parse("").is_empty());
    }
}
