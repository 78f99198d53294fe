//! Network boot: DHCP, TFTP, router advertisements and the HTTP part of the boot.
//!
//! The boot services know nothing of the lifecycle. They tell [`Policy`] what they saw, and ask it one read-only
//! question, many times a boot: what should this machine boot now?

use std::net::IpAddr;

use futures::future::BoxFuture;

use crate::error::Result;
use crate::machine::{ClientArch, MacAddr, MachineId};

/// A machine asked for an address, or for its boot script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    pub mac: MacAddr,
    /// Option 97 (RFC 4578 section 2.3).
    pub uuid: Option<uuid::Uuid>,
    pub arch: Option<ClientArch>,
    /// What the machine was given, or asked from.
    pub address: Option<IpAddr>,
    /// Who is speaking: the firmware's PXE ROM, iPXE, or a system that runs already.
    pub stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Rom,
    Ipxe,
    /// The agent's RAM system or an installed one: an address, no boot file.
    System,
}

/// What a machine boots now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootAnswer {
    /// The agent's RAM system.
    Agent { machine: MachineId, token: String },
    /// The system on its own disk.
    LocalDisk { machine: MachineId },
    /// Neither: the machine shows the reason on its console and asks again after a while.
    Hold { reason: String },
}

/// The rules, as the boot services see them.
pub trait Policy: Send + Sync + 'static {
    /// Takes note; never fails, since an answer to the machine must not wait for it.
    fn sighted(&self, sighting: Sighting);

    fn boot_answer(&self, asking: Sighting) -> BoxFuture<'_, Result<BootAnswer>>;
}
