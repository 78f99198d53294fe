//! The ways in which the agent can look at a host; a declared check names one of them.

use serde::{Deserialize, Serialize};

use super::Unit;
use crate::error::{Error, Result};

/// As text, also on the wire: the name in [`KINDS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Kind {
    BootFinished,
    FailedUnits,
    KernelRelease,
    HostName,
    RunningImage,
    BootDisk,
    PartitionsGrown,
    RootGrown,
    DefaultRoute,
    ClockOffset,
    KvmDevice,
    Libvirt,
    Guest,
    GuestDisk,
    GuestSnapshot,
    GuestDestroyed,
    BridgeGateway,
    DockerDaemon,
    DockerStorage,
    DockerSpace,
    DockerImage,
    DockerContainer,
    DockerMemory,
    DockerPids,
    DockerRestart,
    OvsDaemon,
    OvsBridges,
    OvsUplinks,
    OvsTraffic,
    OvsFlows,
    OvsVlan,
    OvsRestart,
    File,
    Command,
}

/// Name in the files, and what its value is measured in; a kind without a unit answers yes or no.
const KINDS: &[(Kind, &str, Option<Unit>)] = &[
    (Kind::BootFinished, "boot-finished", Some(Unit::Seconds)),
    (Kind::FailedUnits, "failed-units", None),
    (Kind::KernelRelease, "kernel-release", None),
    (Kind::HostName, "host-name", None),
    (Kind::RunningImage, "running-image", None),
    (Kind::BootDisk, "boot-disk", None),
    (Kind::PartitionsGrown, "partitions-grown", Some(Unit::Percent)),
    (Kind::RootGrown, "root-grown", Some(Unit::Percent)),
    (Kind::DefaultRoute, "default-route", None),
    (Kind::ClockOffset, "clock-offset", Some(Unit::Seconds)),
    (Kind::KvmDevice, "kvm-device", None),
    (Kind::Libvirt, "libvirt", None),
    (Kind::Guest, "guest", Some(Unit::Seconds)),
    (Kind::GuestDisk, "guest-disk", Some(Unit::MegabytesPerSecond)),
    (Kind::GuestSnapshot, "guest-snapshot", Some(Unit::Seconds)),
    (Kind::GuestDestroyed, "guest-destroyed", None),
    (Kind::BridgeGateway, "bridge-gateway", None),
    (Kind::DockerDaemon, "docker-daemon", None),
    (Kind::DockerStorage, "docker-storage", None),
    (Kind::DockerSpace, "docker-space", Some(Unit::Mebibytes)),
    (Kind::DockerImage, "docker-image", None),
    (Kind::DockerContainer, "docker-container", Some(Unit::Seconds)),
    (Kind::DockerMemory, "docker-memory", None),
    (Kind::DockerPids, "docker-pids", None),
    (Kind::DockerRestart, "docker-restart", Some(Unit::Seconds)),
    (Kind::OvsDaemon, "ovs-daemon", None),
    (Kind::OvsBridges, "ovs-bridges", None),
    (Kind::OvsUplinks, "ovs-uplinks", None),
    (Kind::OvsTraffic, "ovs-traffic", None),
    (Kind::OvsFlows, "ovs-flows", Some(Unit::Count)),
    (Kind::OvsVlan, "ovs-vlan", None),
    (Kind::OvsRestart, "ovs-restart", Some(Unit::Seconds)),
    (Kind::File, "file", Some(Unit::Count)),
    (Kind::Command, "command", Some(Unit::Count)),
];

impl Kind {
    pub fn all() -> impl Iterator<Item = Kind> {
        KINDS.iter().map(|(kind, ..)| *kind)
    }

    pub fn name(self) -> &'static str {
        KINDS.iter().find(|(kind, ..)| *kind == self).map_or("", |(_, name, _)| name)
    }

    pub fn unit(self) -> Option<Unit> {
        KINDS.iter().find(|(kind, ..)| *kind == self).and_then(|(.., unit)| *unit)
    }

    /// A site may declare as many of these as it likes; of all others there is the one that is built in.
    pub fn repeats(self) -> bool {
        matches!(self, Kind::File | Kind::Command)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl From<Kind> for String {
    fn from(kind: Kind) -> Self {
        kind.name().to_owned()
    }
}

impl TryFrom<String> for Kind {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Kind::all().find(|kind| kind.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Kind::all().map(Kind::name).collect();
            Error::config("check.kind", format!("there is no kind {text:?}"))
                .hint(format!("the kinds are {}", names.join(", ")))
        })
    }
}
