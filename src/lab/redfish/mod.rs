//! A BMC that speaks Redfish: `ipmi_sim` has none, and the emulators there are know no sessions, no log, no BIOS and no
//! faults. It is written from the specification (DMTF DSP0266 1.20; properties by the schemas of DSP2046) and shares
//! nothing with the client that is tried on it.
//!
//! ```text
//!   TLS, connections ─► door ─► faults ─► who is it ─► service: machine ─► hardware: the lab's QEMU, or memory
//!   (listen)             │ (fault)        (account)         └ or whatever a test serves: a recorded tree
//!                        └ entity tags, paging, $expand, errors
//! ```
//!
//! In the lab it runs as a process of its own inside the rack's network ([`process`]); a test starts it with [`start`]
//! and plants faults through [`Controls`] while it runs.

mod account;
mod bios;
mod certificate;
mod chassis;
mod control;
mod document;
mod door;
mod fault;
mod hardware;
mod listen;
mod log;
mod machine;
mod manager;
mod message;
pub mod process;
mod service;
mod session;
mod system;
mod task;
mod update;

#[cfg(test)]
mod tests;

pub use account::{Account, Accounts, Role};
pub use control::{Behaviour, Controls};
pub use fault::{Fault, Oddity, Planted};
pub use hardware::{Boot, Hardware, InMemory, Reset};
pub use listen::Server;
pub use machine::{Identity, Machine};
pub use service::{Call, Reply, Service};
pub use update::image as firmware_image;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::error::Result;

/// A machine in memory with its BMC on `address`, for tests; the user is `root` with the password `calvin`.
pub struct Simulated {
    pub server: Server,
    pub controls: Arc<Controls>,
    pub accounts: Arc<Accounts>,
    pub hardware: Arc<InMemory>,
    pub machine: Arc<Machine>,
}

pub async fn start(address: SocketAddr) -> Result<Simulated> {
    let controls = Arc::new(Controls::default());
    let accounts = Arc::new(Accounts::new(vec![Account::administrator("root", "calvin")]));
    let hardware = Arc::new(InMemory::default());
    let machine = Arc::new(Machine::new(Identity::example(), hardware.clone(), controls.clone(), accounts.clone()));
    let server = Server::start(address, true, machine.clone(), controls.clone(), accounts.clone()).await?;
    Ok(Simulated { server, controls, accounts, hardware, machine })
}
