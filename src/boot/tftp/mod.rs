//! TFTP, read-only, for firmware that cannot do better: the files are in memory under fixed names, so a name from the
//! network is only ever compared. Each transfer has a task and a socket of its own, bound to the address that was asked.
//!
//! Firmware first asks for a file only to learn its size, ends that with an ERROR, and at once asks again from the same
//! port: an ERROR ends a transfer, and a new request from a client's port replaces the old one.

mod packet;
mod transfer;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::config::Interface;
use super::count::{Answer, Counters, Silence};
use super::loader::{File, Loaders};
use super::net;
use crate::error::Result;
use packet::{Fault, Packet, ReadRequest};
use transfer::{Progress, Transfer};

const PORT: u16 = 69;
/// Transfers at once. A thousand take some MB and are more than a TFTP boot wave needs at 0.1 s each.
const MAX_TRANSFERS: usize = 1024;
/// Transfers at once for one client address.
const MAX_PER_CLIENT: usize = 32;
/// Larger than any request: RFC 2347 section 2 has 512.
const BUFFER: usize = 1024;
/// Until the first repetition, where the client names no time; doubled each time.
const RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(8);
/// Repetitions without any progress before a transfer is given up.
const RETRIES: u32 = 5;

pub struct Server {
    socket: UdpSocket,
    interface: Interface,
    loaders: Arc<Loaders>,
    counters: Arc<Counters>,
    transfers: Transfers,
}

#[derive(Default)]
struct Transfers {
    tasks: JoinSet<()>,
    by_client: HashMap<SocketAddr, AbortHandle>,
    clients: HashMap<Id, SocketAddr>,
    per_host: HashMap<IpAddr, usize>,
}

impl Server {
    pub fn open(interface: &Interface, loaders: Arc<Loaders>, counters: Arc<Counters>) -> Result<Self> {
        let socket = net::udp(interface, interface.address, PORT)?;
        Ok(Self { socket, interface: interface.clone(), loaders, counters, transfers: Transfers::default() })
    }

    /// Runs until cancelled; transfers end with it.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut buffer = [0; BUFFER];
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(ended) = self.transfers.tasks.join_next_with_id() => {
                    let id = match ended { Ok((id, ())) => id, Err(e) => e.id() };
                    self.transfers.ended(id);
                }
                received = self.socket.recv_from(&mut buffer) => match received {
                    Ok((length, from)) => self.request(buffer.get(..length).unwrap_or_default(), from),
                    // An ICMP error of an earlier answer, or the interface is down: the socket stays good.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                },
            }
        }
    }

    fn request(&mut self, bytes: &[u8], client: SocketAddr) {
        let request = match Packet::parse(bytes) {
            Some(Packet::Read(request)) => request,
            Some(Packet::Refused(why)) => return self.refuse(client, Fault::IllegalOperation, why),
            Some(Packet::Ack(_) | Packet::Error) | None => return self.counters.silent(Silence::TftpMalformed),
        };
        // Firmware may put a slash before the name; nothing else of a path is known here.
        let name = request.name.strip_prefix('/').unwrap_or(&request.name);
        let Some(file) = self.loaders.file(name) else {
            info!(%client, name = ?name.chars().take(64).collect::<String>(), "TFTP file is not offered");
            let known = !name.contains(['/', '\\']);
            let (fault, why) = match known {
                true => (Fault::NotFound, "no such file"),
                false => (Fault::AccessViolation, "only plain file names are served"),
            };
            return self.refuse(client, fault, why);
        };
        self.transfers.replace(client);
        if !self.transfers.room_for(client.ip()) {
            return self.counters.silent(Silence::TftpBusy);
        }
        let socket = match net::udp(&self.interface, self.interface.address, 0) {
            Ok(socket) => socket,
            Err(e) => {
                debug!(error = ?e, "no socket for a TFTP transfer");
                return self.counters.silent(Silence::TftpBusy);
            }
        };
        debug!(%client, name, "TFTP transfer");
        self.counters.sent(Answer::TftpTransfer);
        let counters = self.counters.clone();
        let (loaders, name) = (self.loaders.clone(), name.to_owned());
        self.transfers.start(client, async move {
            let file = match file {
                File::Ready(file) => Some(file),
                File::Made(making) => making.await,
            };
            let Some(file) = file else { return counters.silent(Silence::TftpBusy) };
            if send(socket, client, Transfer::new(&file, &request), request, &counters).await {
                loaders.fetched_by(client.ip(), &name);
            }
        });
    }

    fn refuse(&self, client: SocketAddr, fault: Fault, why: &str) {
        match self.socket.try_send_to(&packet::error(fault, why), client) {
            Ok(_) => self.counters.sent(Answer::TftpRefused),
            Err(_) => self.counters.silent(Silence::SendFailed),
        }
    }
}

impl Transfers {
    fn room_for(&self, host: IpAddr) -> bool {
        self.tasks.len() < MAX_TRANSFERS && self.per_host.get(&host).is_none_or(|n| *n < MAX_PER_CLIENT)
    }

    fn start(&mut self, client: SocketAddr, transfer: impl Future<Output = ()> + Send + 'static) {
        let handle = self.tasks.spawn(transfer);
        self.clients.insert(handle.id(), client);
        *self.per_host.entry(client.ip()).or_default() += 1;
        self.by_client.insert(client, handle);
    }

    /// Ends the transfer that this client port has, if any: it has forgotten about it.
    fn replace(&mut self, client: SocketAddr) {
        if let Some(old) = self.by_client.remove(&client) {
            old.abort();
            self.ended(old.id());
        }
    }

    fn ended(&mut self, id: Id) {
        let Some(client) = self.clients.remove(&id) else { return };
        if self.by_client.get(&client).is_some_and(|h| h.id() == id) {
            self.by_client.remove(&client);
        }
        if let Some(count) = self.per_host.get_mut(&client.ip()) {
            *count -= 1;
            if *count == 0 {
                self.per_host.remove(&client.ip());
            }
        }
    }
}

/// Sends until the last block is acknowledged (`true`), the client says stop, or nothing was heard for [`RETRIES`]
/// repetitions.
async fn send(
    socket: UdpSocket,
    client: SocketAddr,
    mut transfer: Transfer,
    request: ReadRequest,
    counters: &Counters,
) -> bool {
    let sent = |what| {
        counters.sent(what);
        what == Answer::TftpComplete
    };
    let mut retry = request.timeout.map_or(RETRY, |seconds| Duration::from_secs(seconds.into()));
    let doubles = request.timeout.is_none();
    let mut left = RETRIES;
    let mut buffer = [0; BUFFER];
    loop {
        for packet in transfer.window() {
            if socket.send_to(&packet, client).await.is_err() {
                counters.silent(Silence::SendFailed);
                return false;
            }
        }
        let deadline = Instant::now() + retry;
        let progress = loop {
            match tokio::time::timeout_at(deadline, socket.recv_from(&mut buffer)).await {
                Err(_) => break None,
                Ok(Err(_)) => return sent(Answer::TftpGivenUp),
                Ok(Ok((_, from))) if from != client => continue,
                Ok(Ok((length, _))) => match Packet::parse(buffer.get(..length).unwrap_or_default()) {
                    Some(Packet::Ack(number)) => match transfer.acknowledge(number) {
                        Progress::Nothing => continue,
                        progress => break Some(progress),
                    },
                    Some(Packet::Error) => return false,
                    _ => continue,
                },
            }
        };
        match progress {
            Some(Progress::Complete) => return sent(Answer::TftpComplete),
            Some(_) => {
                left = RETRIES;
                retry = if doubles { RETRY } else { retry };
            }
            None if left == 0 => {
                info!(%client, name = request.name, "TFTP client went silent");
                return sent(Answer::TftpGivenUp);
            }
            None => {
                left -= 1;
                retry = if doubles { (retry * 2).min(MAX_RETRY) } else { retry };
            }
        }
    }
}
