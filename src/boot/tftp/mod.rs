//! TFTP, read-only, for firmware that cannot do better: the files are in memory under fixed names, or are made for one
//! machine ([`super::loader`]), so a name from the network is only ever compared. IPv4 at the interface's address, IPv6 at
//! any address the interface has.
//!
//! [`packet`] is the wire, [`transfer`] and [`retry`] are the protocol without sockets and clock, [`serve`] is the thread
//! around them, [`sessions`] whom it serves, [`socket`] and [`batch`] what it sends and receives with, [`mail`] how the rest
//! of the program reaches it.
//!
//! Firmware first asks for a file only to learn its size, ends that with an ERROR, and at once asks again from the same
//! port: an ERROR ends a transfer, and a new request from a client's port replaces the old one.

mod batch;
mod mail;
pub mod packet;
mod quiet;
mod retry;
mod serve;
mod sessions;
mod socket;
mod transfer;

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::config::Interface;
use super::count::Counters;
use super::loader::Loaders;
use crate::error::{Kind, OrFail, Result};
use mail::{Mail, Mailbox};
use serve::Reactor;
use socket::Family;

pub struct Server {
    reactor: Reactor,
    stop: StopOnDrop,
}

impl Server {
    pub fn open(interface: &Interface, loaders: Arc<Loaders>, counters: Arc<Counters>) -> Result<Self> {
        let mut families = vec![Family::v4(interface)?];
        families.extend(Family::v6(interface)?);
        let start = || -> std::io::Result<_> {
            let (mailbox, mail) = Mailbox::new()?;
            let stop = StopOnDrop(mailbox.clone());
            Ok((Reactor::new(&interface.name, families, (mailbox, mail), loaders, counters)?, stop))
        };
        let (reactor, stop) =
            start().or_fail(Kind::Internal, "boot.tftp", || format!("cannot start TFTP on {}", interface.name))?;
        Ok(Self { reactor, stop })
    }

    /// Runs until cancelled or dropped; transfers end with it.
    pub async fn run(self, stop: CancellationToken) {
        let (ended, mut end) = oneshot::channel();
        let thread = std::thread::Builder::new().name("tftp".into()).spawn(move || {
            self.reactor.run();
            let _ = ended.send(());
        });
        if let Err(e) = thread {
            return error!(error = %e, "no thread for TFTP");
        }
        tokio::select! {
            () = stop.cancelled() => {
                drop(self.stop);
                let _ = end.await;
            }
            // Before it was told to: the owner of this task sees it end.
            _ = &mut end => {}
        }
    }
}

/// Tells the thread to end.
struct StopOnDrop(Mailbox);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.post(Mail::Stop);
    }
}
