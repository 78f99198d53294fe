//! The words that agent and appliance share: who is asking, what is ordered, how far it is, what came of it.
//!
//! The agent asks "what now?" and gets the one order that follows from the machine's state; there is no queue. An order
//! carries a number that changes when the state does: after a lost connection, a restart of the appliance or a power
//! cut the agent asks again and finds the same order, a newer one, or [`Order::Wait`].
//!
//! | request | body | answer |
//! |---|---|---|
//! | `POST /agent/v1/hello` | [`Hello`] | [`Welcome`] |
//! | `GET /agent/v1/{machine}/order?after=N` | – | [`Issued`]; held up to [`POLL_SECONDS`] while the number is still `N` |
//! | `POST /agent/v1/{machine}/progress` | [`Progress`] | 204; kept in memory only |
//! | `POST /agent/v1/{machine}/report` | [`Report`] | 204 once it is on disk |
//! | `POST /agent/v1/{machine}/certificate` | [`CertificateRequest`] | [`HostCertificate`], for an installed host |
//! | `GET /images/{manifest}/manifest` | – | the signed manifest, named by its digest |
//! | `GET /images/{manifest}/data` | – | the chunk file, with range requests |
//! | `POST /agent/v1/{machine}/swarm` | [`SwarmReport`] | [`SwarmPlan`], or 204: keep the last one; repeated every [`SWARM_SECONDS`] while the machine fetches or serves |
//! | `POST /agent/v1/{machine}/partner` | [`PartnerAsk`] | [`Partner`] to measure the network with; held up to [`POLL_SECONDS`], then 204 |
//! | `GET`, `POST /agent/v1/{machine}/stream` | –, bytes | bytes, [`Received`]: the appliance as the other end, one machine at a time; 429: another one measures |
//! | `GET /agent/v1/{machine}/help?kept=D,D` | – | [`Help`] for an installed host; held up to [`POLL_SECONDS`], then 204; 404: hosts do not help here |
//!
//! Each request after the hello has `Authorization: Bearer TOKEN`. Errors are `application/problem+json` ([`Problem`]).

mod burn;

pub use burn::{
    BurnIn, BurnProfile, CpuBurn, DiskBurn, MemoryBurn, NetworkBurn, Partner, PartnerAsk, Received, SelfTest,
    SmartBurn, Tested,
};

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::check::Declared;
use crate::error::{Error, Kind};
use crate::machine::{
    Digest, Hostname, Inventory, MacAddr, MachineId, Roles, Secret, Serial, Severity, TargetRule, Who,
};
use crate::role::Setup;

/// Raised whenever an old agent would misread a new order. The appliance refuses any other number.
pub const VERSION: u32 = 1;

/// How long the appliance holds a question for orders open, in seconds.
pub const POLL_SECONDS: u64 = 25;

/// How often a machine tells how far it is in a swarm, in seconds; the answer is its plan.
pub const SWARM_SECONDS: u64 = 1;

/// Where the agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// In RAM, booted from the network.
    Ram,
    /// On the installed host.
    Resident,
}

/// The first words of an agent after each boot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
    /// As given by the boot script or the seed.
    pub machine: MachineId,
    pub mode: Mode,
    /// `/proc/sys/kernel/random/boot_id`: tells a new boot from a repeated hello.
    pub boot_id: uuid::Uuid,
    pub serial: Option<Serial>,
    pub uuid: Option<uuid::Uuid>,
    pub macs: Vec<MacAddr>,
    pub agent_version: String,
    /// Seconds since the kernel started.
    pub uptime: f64,
}

/// The appliance knows the agent's machine, perhaps under another id than the one it came with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    pub machine: MachineId,
    pub name: String,
    pub token: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Issued {
    pub number: u64,
    pub order: Order,
}

/// What the agent is to do now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order {
    /// Nothing for now; ask again.
    Wait { reason: String },
    /// Take the inventory and the short measurements → [`Report::Commissioned`].
    Commission {
        /// Make this user on the BMC through `/dev/ipmi0`, where the site has no other way in.
        bmc_user: Option<BmcUser>,
    },
    /// Load every part and look whether it stands that → [`Outcome::Tested`] after each test, at the end [`Outcome::BurnedIn`].
    BurnIn(Box<BurnIn>),
    /// Write an image and its seed to the target disk → [`Report::Deployed`].
    Deploy(Box<Deploy>),
    /// Make the disks blank → [`Report::Erased`].
    Erase { keep: Vec<Serial> },
    /// Run the delivery checks on the installed host → [`Report::Checked`].
    Verify(Box<Verify>),
    /// Leave this system.
    Leave { how: Leave, reason: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leave {
    Reboot,
    PowerOff,
}

/// A BMC account to be made in band. Its password is never logged: see the `Debug` below.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct BmcUser {
    pub name: String,
    pub password: String,
}

impl std::fmt::Debug for BmcUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BmcUser({})", self.name)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deploy {
    /// Digest of the signed manifest: names the image and binds the order to it.
    pub manifest: Digest,
    pub target: TargetRule,
    pub seed: Seed,
    /// How much of what was written is read back and compared.
    pub read_back: ReadBack,
    /// Keep what an earlier installation on the disk has in common with this image. Off: the whole disk is cleared first.
    #[serde(default)]
    pub reuse: bool,
    /// Also time `dd` of as many bytes on the blank disk before the write, for the benchmark.
    pub compare_with_dd: bool,
    /// What becomes of the other disks: looked at before the first byte is written.
    #[serde(default)]
    pub setup: Setup,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadBack {
    Full,
    /// Every n-th chunk, first and last always.
    Sampled(u32),
}

/// The three documents of cloud-init's NoCloud data source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed {
    pub meta_data: String,
    pub user_data: String,
    pub network_config: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verify {
    pub role: Roles,
    pub hostname: Hostname,
    /// The image that must be running.
    pub manifest: Digest,
    /// Kernel release below which a host is not handed off, as `major.minor`.
    pub kernel_floor: String,
    /// What must have been set up.
    #[serde(default)]
    pub setup: Setup,
    /// What the host has to show.
    #[serde(default)]
    pub checks: Vec<Declared>,
    /// The host gets a certificate of the site, and its services show it.
    #[serde(default)]
    pub tls: bool,
}

/// A public key that wants a certificate, and the proof that the sender has the private half.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRequest {
    /// Uncompressed point on P-256 (SEC 1 section 2.3.3), in hexadecimal.
    pub public_key: String,
    /// ECDSA with SHA-256 over [`CertificateRequest::statement`], in DER and hexadecimal.
    pub proof: String,
}

impl CertificateRequest {
    /// What is signed; `who` is the id of a machine or the name of a client.
    pub fn statement(who: &str, public_key: &str) -> String {
        format!("rackline certificate request\n{who}\n{public_key}\n")
    }
}

/// Both in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCertificate {
    pub certificate: String,
    pub authority: String,
}

/// How far the agent is with an order. Not kept: the next one replaces it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub number: u64,
    /// In the operator's words: `writing`, `reading back`, `measuring disk sda`.
    pub step: String,
    pub done: u64,
    /// Bytes, or what else `step` counts; 0 where the end is not known.
    pub total: u64,
    pub note: Option<String>,
}

/// Where a machine is in the swarm of one image. The next one replaces it; nothing of it is kept on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SwarmReport {
    pub image: Digest,
    /// TCP port on which this machine serves others; its address is that of the request.
    pub port: u16,
    /// Frames it holds whole and verified, of those that the manifest lists.
    pub frames: u32,
    pub bytes: u64,
    /// Frames that are still to come. What its disk had before is neither here nor there: it cannot serve those.
    pub lacking: u32,
    /// What came from whom since the beginning, in bytes as they travelled.
    pub from: Vec<SwarmSource>,
    /// Peers that sent what does not verify; each is told once.
    pub garbage: Vec<SocketAddr>,
    /// Nothing came for this many milliseconds though something is missing.
    pub starved_ms: u32,
    /// It is about to leave this system: give nobody its address any more.
    pub leaving: bool,
    /// From the last plan. An appliance that was started again puts everybody back where they were.
    #[serde(default)]
    pub seat: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmSource {
    pub address: SocketAddr,
    pub bytes: u64,
}

/// From whom a machine is to fetch, as decided by the appliance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmPlan {
    /// The first one feeds this machine; the others stand by, in this order. The appliance itself may be among them.
    pub predecessors: Vec<SocketAddr>,
    /// What members of this swarm show one another; never logged.
    pub key: Secret,
    /// Bytes a second to all successors together; none is no limit.
    pub upload_limit: Option<u64>,
    /// Others still need this machine: it stays and serves.
    pub needed: bool,
    /// Where it stands in its rack's line; for its next report.
    pub seat: u64,
}

/// An installed host is asked to give an image to new machines of its rack. Its question names the images that it keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Help {
    /// Digest of the signed manifest.
    pub manifest: Digest,
    /// Bytes a second to all together.
    pub upload_limit: u64,
    /// Bytes that kept images may take on its disk.
    pub space: u64,
}

/// What came of an order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub number: u64,
    #[serde(flatten)]
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    Commissioned {
        inventory: Box<Inventory>,
        measured: Vec<Measured>,
        bmc_user_made: bool,
    },
    /// One test of a burn-in is done; the order goes on.
    Tested(Box<Tested>),
    /// All tests of a burn-in are done.
    BurnedIn,
    /// Shown before the first byte is written: which disk, found by which rule.
    TargetChosen {
        disk: String,
        serial: Option<Serial>,
        wwn: Option<String>,
        size_bytes: u64,
        rule: TargetRule,
    },
    Deployed(Box<Deployed>),
    Erased {
        disks: Vec<String>,
        how: String,
        /// What was done to each disk, and what was read back.
        #[serde(default)]
        proof: Vec<ErasedDisk>,
        /// As it came back, taken before the first byte was erased.
        #[serde(default)]
        inventory: Option<Box<Inventory>>,
    },
    Checked {
        checks: Vec<Check>,
        measured: Vec<Measured>,
    },
    /// About to leave, as ordered.
    Leaving,
    Failed(Problem),
}

/// A value with its unit; names are stable, since cohorts compare them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub name: String,
    pub value: f64,
    pub unit: String,
    /// Added by the appliance: where machines that are built alike stand.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub twins: Option<Twins>,
}

impl Measured {
    pub fn new(name: impl Into<String>, value: f64, unit: impl Into<String>) -> Self {
        Self { name: name.into(), value, unit: unit.into(), twins: None }
    }
}

/// The same value of machines that are built alike, in its unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Twins {
    pub count: usize,
    pub median: f64,
    /// Median absolute deviation from the median.
    pub mad: f64,
}

/// What is left of a disk's content, and how that is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErasedDisk {
    pub name: String,
    pub model: Option<String>,
    pub serial: Option<Serial>,
    pub size_bytes: u64,
    pub how: Erasure,
    /// What was read back afterwards, in samples across the whole disk and at its ends; all of it read zero, but what a disk
    /// kept that says [`Erasure::Signatures`].
    pub read_back_bytes: u64,
    pub seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Erasure {
    SecureDiscard,
    Discard,
    /// The device keeps showing old data after a discard, or has no discard.
    Signatures,
}

impl Erasure {
    /// Whether the data is gone, and not only what leads to it.
    pub fn complete(self) -> bool {
        self != Erasure::Signatures
    }
}

impl std::fmt::Display for Erasure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Erasure::SecureDiscard => "securely discarded, reads zero",
            Erasure::Discard => "discarded, reads zero",
            Erasure::Signatures => "partition tables and signatures zeroed, data blocks left",
        })
    }
}

/// A partition of the disk that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// From 1, as the kernel counts.
    pub number: u32,
    pub name: String,
    pub start_bytes: u64,
    pub size_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deployed {
    pub manifest: Digest,
    pub disk: String,
    pub serial: Option<Serial>,
    /// As it is when the machine leaves the RAM system; the first boot lets the root file system grow.
    #[serde(default)]
    pub partitions: Vec<Partition>,
    /// Decompressed bytes that went to the disk; zero ranges are discarded and do not count.
    pub written_bytes: u64,
    /// Compressed bytes that were fetched.
    pub fetched_bytes: u64,
    /// Of what travelled, this much came from other machines that got the same image, and ...
    #[serde(default)]
    pub peer_bytes: u64,
    /// ... this much from the appliance. What was on the way twice counts twice.
    #[serde(default)]
    pub appliance_bytes: u64,
    /// Decompressed bytes that an interrupted write of this image had left on the disk.
    #[serde(default)]
    pub resumed_bytes: u64,
    /// Decompressed bytes that an earlier installation had left on the disk.
    #[serde(default)]
    pub reused_bytes: u64,
    pub write_seconds: f64,
    pub read_back_bytes: u64,
    pub read_back_seconds: f64,
    /// Bytes a second of `dd`, where it was asked for.
    pub dd_bytes_per_second: Option<f64>,
}

impl Deployed {
    /// The part of what travelled that other machines sent, from 0 to 1. `None`: nothing had to travel.
    pub fn peer_share(&self) -> Option<f64> {
        peer_share(self.peer_bytes, self.appliance_bytes)
    }
}

/// See [`Deployed::peer_share`].
pub fn peer_share(peers: u64, appliance: u64) -> Option<f64> {
    let all = peers.saturating_add(appliance);
    (all > 0).then(|| peers as f64 / all as f64)
}

/// One delivery check with what was wanted and what was there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Stable id: `kernel`, `kvm.guest`, `docker.container`, `ovs.traffic`.
    pub id: String,
    pub passed: bool,
    /// There was nothing to look at: `found` says why. It has not passed, and holds nothing back.
    #[serde(default)]
    pub skipped: bool,
    pub expected: String,
    pub found: String,
    /// What was measured, in `unit`, where the check measures.
    #[serde(default)]
    pub value: Option<f64>,
    #[serde(default)]
    pub unit: Option<String>,
    #[serde(default)]
    pub severity: Severity,
    #[serde(default)]
    pub who: Who,
    /// Why it is looked at; where the site has another bound than the one built in, also why that.
    #[serde(default)]
    pub why: String,
    pub seconds: f64,
    /// What to do, when it did not pass.
    pub hint: Option<String>,
}

impl Check {
    /// It was looked at, and is not as it should be.
    pub fn failed(&self) -> bool {
        !self.passed && !self.skipped
    }

    /// The host is not handed off like this.
    pub fn holds_back(&self) -> bool {
        self.failed() && self.severity == Severity::Fault
    }

    /// For lists: `ok`, `skipped`, else how bad it is.
    pub fn verdict(&self) -> String {
        match (self.passed, self.skipped) {
            (true, _) => "ok".into(),
            (_, true) => "skipped".into(),
            _ => self.severity.to_string(),
        }
    }
}

/// RFC 9457 problem details with our stable code and the next step; also how an agent reports its own failure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    #[serde(rename = "type")]
    pub code: String,
    pub title: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hint: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub causes: Vec<String>,
}

impl From<&Error> for Problem {
    fn from(e: &Error) -> Self {
        Self {
            code: e.code().to_owned(),
            title: e.message().to_owned(),
            hint: e.next_step().map(str::to_owned),
            causes: e.causes(),
        }
    }
}

impl Problem {
    /// Back into an [`Error`] on the other side of the wire. The code is ours, so it is one of a bounded set; it is
    /// kept in the text, since [`Error::code`] holds static names only.
    pub fn into_error(self, kind: Kind) -> Error {
        let mut error = Error::new(kind, "remote", self.title);
        if let Some(hint) = self.hint {
            error = error.hint(hint);
        }
        match self.causes.is_empty() {
            true => error,
            false => error.because(self.causes.join(": ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_flat_object() {
        let report = Report { number: 7, outcome: Outcome::Leaving };
        assert_eq!(serde_json::to_string(&report).unwrap(), r#"{"number":7,"outcome":"leaving"}"#);
    }

    #[test]
    fn a_password_does_not_reach_the_log() {
        let order =
            Order::Commission { bmc_user: Some(BmcUser { name: "rackline".into(), password: "s3cret".into() }) };
        assert!(!format!("{order:?}").contains("s3cret"));
    }
}
