//! Takes connections, as many as allowed, and ends them when the server stops.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, Method, StatusCode, header};
use rustix::net::{SendFlags, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::Find;
use super::answer::Answer;
use super::connection::{Connection, written};
use super::count::{Counters, Event};

/// What is running when the server stops may go on for so long.
const GRACE: Duration = Duration::from_secs(2);

/// Each installed host holds two, for orders and for help with images, so these are of 32,000 hosts.
const MOST_CONNECTIONS: u64 = 1 << 16;

/// How patient the server is.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once, altogether.
    pub connections: usize,
    /// And of one address: a machine has a handful, so one that runs wild leaves room for the others.
    pub of_one_client: usize,
    /// The longest head of a request, in bytes.
    pub head_bytes: usize,
    /// From a new connection, or the first byte of a later request, to the end of the request's head.
    pub head: Duration,
    /// Between two requests of a connection.
    pub idle: Duration,
    /// Until the client takes the next bytes of an answer, and up to twice as long.
    pub write: Duration,
    /// Until the router has an answer; agents' questions are held open for about a minute.
    pub router: Duration,
    /// Kernels and RAM systems that iPXE is sent at once. A hall that is powered on asks for thousands: one after another they
    /// get there as fast as all together, the first machines much sooner, and the kernel holds less of them in its buffers.
    pub downloads: usize,
    /// From an answer's head until its file begins, whoever is before it. iPXE itself would wait for ever.
    pub queue: Duration,
    /// After this the next one may begin too: a machine at the end of a bad cable holds up nobody.
    pub place: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8192,
            of_one_client: 256,
            head_bytes: 16 << 10,
            head: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            write: Duration::from_secs(60),
            router: Duration::from_secs(600),
            downloads: 256,
            queue: Duration::from_secs(120),
            place: Duration::from_secs(20),
        }
    }
}

impl Limits {
    /// For a process that may open so many files, 1024 of which are not for machines. A connection that is served a file
    /// holds two.
    pub fn of_files(files: u64) -> Self {
        let connections = (files.saturating_sub(1024) / 2).clamp(256, MOST_CONNECTIONS);
        Self { connections: connections as usize, ..Self::default() }
    }
}

/// What all connections share.
pub struct Shared {
    pub find: Box<Find>,
    pub router: Router,
    pub limits: Limits,
    pub counters: Arc<Counters>,
    pub stop: CancellationToken,
    /// [`Limits::downloads`].
    pub places: Semaphore,
}

pub struct Server {
    shared: Arc<Shared>,
    clients: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Server {
    /// `find` names the files; any other request goes to `router`, with the client's address as `ConnectInfo<SocketAddr>`.
    pub fn new(
        find: impl Fn(&str) -> Option<std::path::PathBuf> + Send + Sync + 'static,
        router: Router,
        limits: Limits,
        counters: Arc<Counters>,
        stop: CancellationToken,
    ) -> Self {
        let places = Semaphore::new(limits.downloads);
        Self {
            shared: Arc::new(Shared { find: Box::new(find), router, limits, counters, stop, places }),
            clients: Arc::default(),
        }
    }

    /// Until the stop, and [`GRACE`] longer for what is running then.
    pub async fn run(self, listener: TcpListener) {
        // Heads are small packets that must not wait for an acknowledgement; accepted sockets inherit it.
        let _ = sockopt::set_tcp_nodelay(&listener, true);
        // For answers of the router: the kernel ends a connection whose client takes nothing for so long.
        let patience = u32::try_from(self.shared.limits.write.as_millis()).unwrap_or(u32::MAX);
        let _ = sockopt::set_tcp_user_timeout(&listener, patience);
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => self.take(stream, peer, &mut running),
                    Err(e) => self.not_accepted(&e).await,
                },
                () = self.shared.stop.cancelled() => break,
            }
        }
        drop(listener);
        let _ = timeout(GRACE, async {
            while let Some(ended) = running.join_next().await {
                note(ended);
            }
        })
        .await;
    }

    fn take(&self, stream: TcpStream, peer: SocketAddr, running: &mut JoinSet<()>) {
        while let Some(ended) = running.try_join_next() {
            note(ended);
        }
        let counters = &self.shared.counters;
        if running.len() >= self.shared.limits.connections {
            counters.add(Event::Busy, Some(peer));
            return refuse(&stream);
        }
        let Some(place) = Place::take(&self.clients, peer.ip(), self.shared.limits.of_one_client) else {
            counters.add(Event::ClientBusy, Some(peer));
            return refuse(&stream);
        };
        counters.add(Event::Connection, Some(peer));
        let connection = Connection::new(stream, peer, self.shared.clone());
        running.spawn(async move {
            connection.serve().await;
            drop(place);
        });
    }

    /// A client that went away while it waited is nothing; without a free file descriptor, each next try fails as well.
    async fn not_accepted(&self, e: &std::io::Error) {
        use std::io::ErrorKind::{ConnectionAborted, ConnectionReset};
        if !matches!(e.kind(), ConnectionAborted | ConnectionReset) {
            self.shared.counters.add(Event::AcceptFailed, None);
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The answer fits into the empty send buffer of a new socket. Nobody waits for what such a client still sends, so it may
/// find a reset instead.
fn refuse(stream: &TcpStream) {
    let (status, text) = (StatusCode::SERVICE_UNAVAILABLE, "there are too many connections: try again in a while\n");
    let mut answer = Answer::text(&Method::GET, status, text);
    answer.headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    let mut bytes = written(&answer, Some("close"));
    bytes.extend_from_slice(text.as_bytes());
    let _ = rustix::net::send(stream, &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    let _ = rustix::net::shutdown(stream, rustix::net::Shutdown::Write);
}

/// A connection failed in a way that nobody thought of; the others go on.
fn note(ended: Result<(), tokio::task::JoinError>) {
    if let Err(e) = ended
        && e.is_panic()
    {
        error!(error = %e, "a connection ended by a fault of the appliance");
    }
}

/// One of the connections that an address may have.
struct Place {
    clients: Arc<Mutex<HashMap<IpAddr, usize>>>,
    address: IpAddr,
}

impl Place {
    fn take(clients: &Arc<Mutex<HashMap<IpAddr, usize>>>, address: IpAddr, limit: usize) -> Option<Self> {
        let mut held = clients.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(address).or_default();
        (*count < limit).then(|| {
            *count += 1;
            Self { clients: clients.clone(), address }
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_connections_as_files_allow() {
        let connections = |files| Limits::of_files(files).connections;
        // Debian's usual limit, systemd's for a service, none at all.
        assert_eq!([1024, 524_288, u64::MAX].map(connections), [256, 65_536, 65_536]);
        assert!(connections(20_000) * 2 + 1024 <= 20_000);
    }
}
