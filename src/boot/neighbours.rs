//! Room for every machine of the wire in the kernel's neighbour tables (ARP, and neighbour discovery of IPv6).
//!
//! Linux keeps 1024 neighbours at most, of all interfaces together, and drops packets to any more of them
//! (`gc_thresh3` of ip-sysctl.rst; the soft limit is `gc_thresh2`). A hall on one wire has more machines than that, and then
//! answers are lost in a way that nothing in a log explains. Only what is directly attached counts: machines behind a relay
//! are the router's neighbours, not ours.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::config::BootConfig;

/// Where the limits are; they are the machine's, and a network namespace besides the first has none to see.
pub const SYSCTL: &str = "/proc/sys/net";
/// Neighbours that are no machines of ours: routers, switches, BMCs.
const OTHERS: u32 = 256;
/// A wire with more machines than this is not one, and a limit is there to stop floods.
const MOST: u32 = 128 << 10;

/// How it stands with the two tables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbours {
    /// Machines that may be on the wires of our interfaces, and some for what else is there.
    pub needed: u32,
    pub tables: Vec<Table>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// Most neighbours that the kernel keeps now.
    pub limit: u32,
    /// What to type, where the limit is too low and could not be raised.
    pub command: Option<String>,
}

impl Neighbours {
    /// Raises what is too low; nothing is ever lowered.
    pub fn make_room(config: &BootConfig, sysctl: &Path) -> Self {
        let needed = needed(config);
        let tables = ["ipv4", "ipv6"].into_iter().filter_map(|family| table(family, needed, sysctl)).collect();
        Self { needed, tables }
    }
}

/// Addresses that we may give on the wires of our interfaces. Subnets that share a wire with one of them are attached, too.
fn needed(config: &BootConfig) -> u32 {
    let attached = |s: &super::config::Subnet| config.interfaces.iter().any(|i| s.network.contains(i.address));
    let wires: Vec<&String> = config.subnets.iter().filter(|s| attached(s)).filter_map(|s| s.shared.as_ref()).collect();
    let here = config.subnets.iter().filter(|s| attached(s) || s.shared.as_ref().is_some_and(|w| wires.contains(&w)));
    let machines = here.map(|s| s.size().saturating_add(u32::try_from(s.reservations.len()).unwrap_or(u32::MAX)));
    machines.fold(OTHERS, u32::saturating_add).min(MOST)
}

/// `None`: the limits are not to be seen here.
fn table(family: &str, needed: u32, sysctl: &Path) -> Option<Table> {
    let file = |number: u8| sysctl.join(format!("{family}/neigh/default/gc_thresh{number}"));
    let read = |number| std::fs::read_to_string(file(number)).ok()?.trim().parse::<u32>().ok();
    let (soft, hard) = (read(2)?, read(3)?);
    let mut table = Table { family: family.to_owned(), limit: hard, command: None };
    // Above the soft limit for five seconds, neighbours that were not heard of are dropped.
    let (soft_wanted, hard_wanted) = (soft.max(needed), hard.max(needed.saturating_mul(2)));
    if hard >= needed && soft >= needed {
        return Some(table);
    }
    let write = |number, limit: u32| std::fs::write(file(number), limit.to_string());
    match write(3, hard_wanted).and_then(|()| write(2, soft_wanted)) {
        Ok(()) => {
            table.limit = hard_wanted;
            info!(family, from = hard, to = hard_wanted, needed, "the kernel keeps more neighbours now");
        }
        Err(e) => {
            let key = format!("net.{family}.neigh.default.gc_thresh");
            let command = format!("sysctl -w {key}3={hard_wanted} {key}2={soft_wanted}");
            warn!(family, limit = hard, needed, error = %e, command, "the kernel keeps too few neighbours for the pools");
            table.command = Some(command);
        }
    }
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::config::tests::sample;

    /// A machine with these soft and hard limits.
    fn limits(soft: u32, hard: u32) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for family in ["ipv4", "ipv6"] {
            let folder = dir.path().join(format!("{family}/neigh/default"));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("gc_thresh2"), format!("{soft}\n")).unwrap();
            std::fs::write(folder.join("gc_thresh3"), format!("{hard}\n")).unwrap();
        }
        dir
    }

    fn read(sysctl: &Path, family: &str) -> [u32; 2] {
        [2, 3].map(|n| {
            let path = sysctl.join(format!("{family}/neigh/default/gc_thresh{n}"));
            std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
        })
    }

    /// The sample's first subnet is ours; the second, behind a relay, has 4 addresses.
    fn config(pool: &str) -> BootConfig {
        let mut config = sample();
        config.subnets[0].pools = vec![pool.parse().unwrap()];
        config
    }

    #[test]
    fn limits_are_raised_to_the_pools_of_our_own_wires_and_never_lowered() {
        let large = config("10.77.16.0-10.77.31.255");
        let own = large.subnets[0].reservations.len() as u32;
        let needed = 4096 + own + OTHERS;
        let small = limits(512, 1024);
        let room = Neighbours::make_room(&large, small.path());
        assert_eq!(room.needed, needed);
        for table in &room.tables {
            assert_eq!((table.limit, &table.command), (2 * needed, &None));
            assert_eq!(read(small.path(), &table.family), [needed, 2 * needed]);
        }
        assert_eq!(room.tables.len(), 2);
        assert_eq!(Neighbours::make_room(&large, small.path()), room, "the second time nothing is to do");
        Neighbours::make_room(&config("10.77.16.0-10.77.16.9"), small.path());
        assert_eq!(read(small.path(), "ipv4"), [needed, 2 * needed]);
        let ample = limits(100_000, 200_000);
        Neighbours::make_room(&large, ample.path());
        assert_eq!(read(ample.path(), "ipv6"), [100_000, 200_000]);
    }

    #[test]
    fn a_shared_wire_counts_as_a_whole_and_an_invented_size_is_cut() {
        let mut config = config("10.77.16.0-10.77.16.9");
        let before = needed(&config);
        config.subnets[0].shared = Some("hall".into());
        config.subnets[1].shared = Some("hall".into());
        assert_eq!(needed(&config), before + config.subnets[1].size() + config.subnets[1].reservations.len() as u32);
        config.subnets[1].pools = vec!["10.128.0.1-10.255.0.1".parse().unwrap()];
        assert_eq!(needed(&config), MOST);
    }

    #[test]
    fn what_may_not_be_written_is_said_as_a_command() {
        let dir = limits(512, 1024);
        // A limit of 40 or so that even root may only read.
        let path = dir.path().join("ipv4/neigh/default/gc_thresh3");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/proc/sys/kernel/cap_last_cap", &path).unwrap();
        let large = config("10.77.16.0-10.77.31.255");
        let room = Neighbours::make_room(&large, dir.path());
        let need = needed(&large);
        let key = "net.ipv4.neigh.default.gc_thresh";
        let command = format!("sysctl -w {key}3={} {key}2={need}", 2 * need);
        assert_eq!(room.tables[0].command.as_deref(), Some(command.as_str()));
        assert_eq!(room.tables[1].command, None);
    }

    #[test]
    fn where_there_are_no_limits_to_see_there_is_nothing_to_say() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Neighbours::make_room(&config("10.77.16.0-10.77.31.255"), dir.path()).tables, []);
    }
}
