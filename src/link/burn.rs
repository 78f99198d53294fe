//! Burn-in, in the words that agent and appliance share: what is ordered, what came of each test, who measures with whom.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::Measured;
use crate::machine::{Finding, Secret};

/// What a machine is put through before it is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BurnIn {
    pub profile: BurnProfile,
    /// Tests that were reported before; after a power cut the next one goes on from there.
    #[serde(default)]
    pub done: Vec<String>,
    /// Also write to disks that hold data. Otherwise those are only read.
    #[serde(default)]
    pub overwrite: bool,
}

/// How long and how hard: `templates/burn/*.toml`. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BurnProfile {
    /// That of the file.
    #[serde(default)]
    pub name: String,
    /// Everything but the self-test of the drives is repeated so often.
    pub rounds: u32,
    pub network: NetworkBurn,
    pub disk: DiskBurn,
    pub cpu: CpuBurn,
    pub memory: MemoryBurn,
    #[serde(default)]
    pub smart: Option<SmartBurn>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkBurn {
    /// In each direction.
    pub seconds: u32,
    /// For a machine that measures at the same time; then the appliance is the other end.
    pub wait_seconds: u32,
    /// Once more with a machine of another rack.
    pub across: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskBurn {
    /// Of sequential reads, of random reads, and of writes at most.
    pub seconds: u32,
    /// Written to each disk that may be written to, read back and compared, then zeroed; 0: nothing is.
    pub write_mib: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuBurn {
    /// Shared by the stressors.
    pub seconds: u32,
    /// Of stress-ng, each with `--verify` on every CPU.
    pub stressors: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryBurn {
    pub seconds: u32,
    /// Of what is free.
    pub share_percent: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmartBurn {
    pub test: SelfTest,
    /// How long its end is waited for.
    pub seconds: u32,
}

/// What a drive does to itself when it is asked (`smartctl --test`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SelfTest {
    Short,
    Long,
}

impl BurnProfile {
    /// The names of its tests, in their order: `disks`, and from the second round on `disks#2`.
    pub fn tests(&self) -> Vec<String> {
        let across = self.network.across.then_some("network.across");
        let round: Vec<&str> = ["network"].into_iter().chain(across).chain(["disks", "cpu", "memory"]).collect();
        let name = |round, test: &str| if round == 1 { test.to_owned() } else { format!("{test}#{round}") };
        let rounds = (1..=self.rounds).flat_map(|n| round.iter().map(move |test| name(n, test)));
        rounds.chain(self.smart.as_ref().map(|_| "smart".to_owned())).collect()
    }

    /// What a test of this name takes in the worst case.
    pub fn seconds(&self, test: &str) -> u32 {
        match test.split('#').next().unwrap_or(test) {
            "network" | "network.across" => self.network.wait_seconds.saturating_add(self.network.seconds * 2),
            // What was written is read back, and zeroed.
            "disks" => self.disk.seconds.saturating_mul(5),
            "cpu" => self.cpu.seconds,
            "memory" => self.memory.seconds,
            _ => self.smart.as_ref().map_or(0, |smart| smart.seconds),
        }
    }
}

/// What came of one test of a burn-in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tested {
    /// As in [`BurnProfile::tests`].
    pub test: String,
    pub seconds: f64,
    pub measured: Vec<Measured>,
    pub findings: Vec<Finding>,
    /// What was not done, and why (`sda holds data and was only read`); with whom the network was measured.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// A machine waits for another one to measure the network with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartnerAsk {
    /// TCP port on which it waits; its address is that of the request.
    pub port: u16,
    /// Of another rack, not of its own.
    pub across: bool,
}

/// Two machines that are to measure with each other: one is told to connect, the other is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partner {
    pub name: String,
    pub address: SocketAddr,
    /// What they show one another.
    pub key: Secret,
    pub connects: bool,
}

/// What the appliance got of a machine's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tests_of_a_burn_in_come_in_rounds_and_the_drives_test_themselves_last() {
        let profile = BurnProfile {
            name: "t".into(),
            rounds: 2,
            network: NetworkBurn { seconds: 1, wait_seconds: 5, across: true },
            disk: DiskBurn { seconds: 2, write_mib: 0 },
            cpu: CpuBurn { seconds: 3, stressors: vec![] },
            memory: MemoryBurn { seconds: 4, share_percent: 90 },
            smart: Some(SmartBurn { test: SelfTest::Long, seconds: 60 }),
        };
        let round = ["network", "network.across", "disks", "cpu", "memory"];
        let second = ["network#2", "network.across#2", "disks#2", "cpu#2", "memory#2", "smart"];
        assert_eq!(profile.tests(), [&round[..], &second].concat());
        let times: Vec<u32> = ["network#2", "disks", "cpu#2", "memory", "smart"].map(|t| profile.seconds(t)).into();
        assert_eq!(times, [7, 10, 3, 4, 60]);
    }
}
