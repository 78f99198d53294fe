//! All transfers of one interface on one thread: sockets and clock around [`Transfer`].
//!
//! A transfer is a conversation of short packets, so what counts is how soon an ACK is answered. One thread that takes an
//! ACK and sends the next block from the same place needs no wakeup of another thread, no lock and no allocation for it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use slab::Slab;
use tokio::runtime::Handle;
use tracing::{debug, error, info, warn};

use super::mail::{Mail, Mailbox, Order};
use super::packet::{self, Fault, Packet, ReadRequest};
use super::quiet::{Cause, Quiet};
use super::socket::{Listener, Peer};
use super::transfer::{Step, Transfer, netascii};
use crate::boot::config::Interface;
use crate::boot::count::{Answer, Counters, Silence};
use crate::boot::loader::{File, Loaders};

/// Transfers at once on one interface: some 3 KB each, most of it the kernel's socket.
const MAX_TRANSFERS: usize = 4096;
/// Transfers at once for one client address.
const MAX_PER_CLIENT: usize = 32;
/// A client that has not answered once after this long gives way when there is no room: to a flood of requests with
/// invented senders nobody answers.
const UNANSWERED: Duration = Duration::from_secs(1);
/// Larger than any request: RFC 2347 section 2 has 512.
const BUFFER: usize = 1024;
/// Largest file that is turned into netascii.
const MAX_TEXT: usize = 16 << 20;
/// From this size on the text is kept, which makes a second copy of the file. A smaller one is made sooner than looked up,
/// and whatever is made for a machine is smaller: the kept ones have names out of a closed set.
const KEPT_TEXT: usize = 64 << 10;
/// Files that are being made at once; each takes a question to the rules.
const MAX_MAKING: usize = 256;
/// Requests in a row before transfers get their turn.
const REQUESTS: usize = 16;
/// Sockets that the kernel reports at once.
const EVENTS: usize = 256;
/// How long to look for the next packet before sleeping. Firmware polls its card and answers within some microseconds; to
/// be woken takes as long again.
const LOOK: Duration = Duration::from_micros(50);
const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// What an event belongs to: the key of a session, or one of these.
const LISTENERS: u64 = 1 << 32;
const MAIL: u64 = u64::MAX;

struct Session {
    client: SocketAddr,
    peer: Peer,
    request: ReadRequest,
    transfer: Transfer,
    /// The client answered: its address is no invention.
    heard: bool,
    started: Instant,
    /// Since when nothing was sent, and nothing that is new was acknowledged.
    since: Instant,
    /// When the client's silence has lasted too long.
    due: Instant,
    /// Under which time the session stands among the timers: at `due`, or before it. So an ACK costs no timer.
    queued: Instant,
}

pub struct Reactor {
    interface: Interface,
    loaders: Arc<Loaders>,
    counters: Arc<Counters>,
    epoll: OwnedFd,
    mailbox: Mailbox,
    mail: Receiver<Mail>,
    /// For what takes longer than a packet may wait.
    runtime: Handle,
    listeners: Vec<Listener>,
    sessions: Slab<Session>,
    by_client: HashMap<SocketAddr, usize>,
    per_host: HashMap<IpAddr, usize>,
    timers: BTreeSet<(Instant, usize)>,
    /// Whose file is being made.
    making: HashSet<SocketAddr>,
    /// Large files, and what they are as netascii.
    texts: HashMap<String, (Bytes, Bytes)>,
    /// The last packet came within [`LOOK`]: the next one may.
    quick: bool,
    quiet: Quiet,
}

impl Reactor {
    /// Inside the runtime that makes files.
    pub fn new(
        interface: &Interface,
        listeners: Vec<Listener>,
        (mailbox, mail): (Mailbox, Receiver<Mail>),
        loaders: Arc<Loaders>,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let readable = epoll::EventFlags::IN;
        epoll::add(&epoll, &mailbox, epoll::EventData::new_u64(MAIL), readable)?;
        for (listener, token) in listeners.iter().zip(LISTENERS..) {
            epoll::add(&epoll, listener, epoll::EventData::new_u64(token), readable)?;
        }
        Ok(Self {
            interface: interface.clone(),
            loaders,
            counters,
            epoll,
            mailbox,
            mail,
            runtime: Handle::current(),
            listeners,
            sessions: Slab::new(),
            by_client: HashMap::new(),
            per_host: HashMap::new(),
            timers: BTreeSet::new(),
            making: HashSet::new(),
            texts: HashMap::new(),
            quick: false,
            quiet: Quiet::default(),
        })
    }

    /// Until told to stop; transfers end with it.
    pub fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            match self.wait(&mut events) {
                Ok(()) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return error!(error = %e, interface = self.interface.name, "TFTP cannot wait for packets"),
            }
            let now = Instant::now();
            for event in events.drain(..) {
                match event.data.u64() {
                    MAIL if self.read_mail(now) => return,
                    MAIL => {}
                    token if token >= LISTENERS => self.requests((token - LISTENERS) as usize, now),
                    token => self.answer(token as usize, now),
                }
            }
            self.expire(now);
        }
    }

    /// Sleeps only when a look around was, or would be, in vain. Where clients take longer than [`LOOK`] to answer, that
    /// is found out at the first one and costs nothing from then on.
    fn wait(&mut self, events: &mut Vec<epoll::Event>) -> rustix::io::Result<()> {
        let start = Instant::now();
        if self.quick && !self.sessions.is_empty() {
            while start.elapsed() < LOOK {
                epoll::wait(&self.epoll, spare_capacity(events), Some(&AT_ONCE))?;
                if !events.is_empty() {
                    return Ok(());
                }
                std::thread::yield_now();
            }
        }
        let timeout = self.timers.first().map(|(when, _)| when.saturating_duration_since(start));
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        epoll::wait(&self.epoll, spare_capacity(events), timeout.as_ref())?;
        self.quick = start.elapsed() < LOOK;
        Ok(())
    }

    fn requests(&mut self, listener: usize, now: Instant) {
        let mut buffer = [0; BUFFER];
        for _ in 0..REQUESTS {
            let Some(listening) = self.listeners.get(listener) else { return };
            match listening.receive(&mut buffer) {
                Ok((length, client, local)) => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    if let Err((fault, why)) = self.request(bytes, client, local, now) {
                        self.refuse(listener, (client, local), fault, why);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // An ICMP error of an earlier answer, or the interface is down: the socket stays good, and this took
                // the error from it.
                Err(_) => {}
            }
        }
    }

    fn refuse(&self, listener: usize, (client, local): (SocketAddr, IpAddr), fault: Fault, why: &str) {
        let sent = self.listeners.get(listener).map(|l| l.send_to(&packet::error(fault, why), client, local));
        match sent {
            Some(Ok(())) => self.counters.sent(Answer::TftpRefused),
            _ => self.counters.silent(Silence::SendFailed),
        }
    }

    /// An error goes back to the client.
    fn request(&mut self, bytes: &[u8], client: SocketAddr, local: IpAddr, now: Instant) -> Result<(), Refusal> {
        // To a group, or from nowhere: there is no answer to these.
        if local.is_multicast() || client.port() == 0 {
            self.counters.silent(Silence::TftpMalformed);
            return Ok(());
        }
        let request = match Packet::parse(bytes) {
            Some(Packet::Read(request)) => request,
            Some(Packet::Refused(why)) => return Err((Fault::IllegalOperation, why)),
            Some(Packet::Ack(_) | Packet::Error) | None => {
                self.counters.silent(Silence::TftpMalformed);
                return Ok(());
            }
        };
        let name = plain(&request.name);
        let Some(file) = self.loaders.file(name) else {
            if let Some(more) = self.quiet.say(Cause::NotOffered, now) {
                info!(%client, name = ?name.chars().take(64).collect::<String>(), more, "TFTP file is not offered");
            }
            return Err(match name.contains(['/', '\\']) {
                false => NO_SUCH_FILE,
                true => (Fault::AccessViolation, "only plain file names are served"),
            });
        };
        if let Some(key) = self.repeated(client, &request, now) {
            self.send(key, now);
        } else if !self.making.contains(&client) {
            let order = Order { client, local, request };
            match file {
                File::Ready(file) => self.begin(order, file, now)?,
                File::Made(making) => self.make(order, making, now),
            }
        }
        Ok(())
    }

    /// Transfers go on while the file is made; then it comes by mail.
    fn make(&mut self, order: Order, making: impl Future<Output = Option<Bytes>> + Send + 'static, now: Instant) {
        if self.making.len() >= MAX_MAKING {
            return self.busy(order.client, now);
        }
        self.making.insert(order.client);
        let mailbox = self.mailbox.clone();
        self.runtime.spawn(async move {
            // Without an answer, the client could never ask again.
            let file = AssertUnwindSafe(making).catch_unwind().await.ok().flatten();
            mailbox.post(Mail::Made(order, file));
        });
    }

    /// Whether it is time to stop.
    fn read_mail(&mut self, now: Instant) -> bool {
        self.mailbox.quiet();
        while let Ok(mail) = self.mail.try_recv() {
            let Mail::Made(order, file) = mail else { return true };
            let (client, local) = (order.client, order.local);
            self.making.remove(&client);
            let begun = file.ok_or(NO_SUCH_FILE).and_then(|file| self.begin(order, file, now));
            if let Err((fault, why)) = begun {
                let listener = self.listeners.iter().position(|l| l.serves(local));
                self.refuse(listener.unwrap_or_default(), (client, local), fault, why);
            }
        }
        false
    }

    fn begin(&mut self, order: Order, file: Bytes, now: Instant) -> Result<(), Refusal> {
        let file = if order.request.netascii { self.text(&order.request.name, file)? } else { file };
        match self.room_for(order.client, now) {
            true => self.start(order, file, now),
            false => self.busy(order.client, now),
        }
        Ok(())
    }

    fn busy(&mut self, client: SocketAddr, now: Instant) {
        self.counters.silent(Silence::TftpBusy);
        if let Some(more) = self.quiet.say(Cause::Busy, now) {
            warn!(%client, transfers = self.sessions.len(), more, "too many TFTP transfers at once");
        }
    }

    fn text(&mut self, name: &str, file: Bytes) -> Result<Bytes, Refusal> {
        if file.len() > MAX_TEXT {
            return Err((Fault::IllegalOperation, "too large for netascii, use octet"));
        }
        match self.texts.get(name) {
            _ if file.len() < KEPT_TEXT => Ok(netascii(&file)),
            Some((known, text)) if *known == file => Ok(text.clone()),
            _ => {
                let text = netascii(&file);
                self.texts.insert(name.to_owned(), (file, text.clone()));
                Ok(text)
            }
        }
    }

    /// A client whose request, or its answer, took too long asks again. It may get the first answer all the same and go
    /// on with that, so there must not be a second transfer in the place of the first.
    fn repeated(&mut self, client: SocketAddr, request: &ReadRequest, now: Instant) -> Option<usize> {
        let key = *self.by_client.get(&client)?;
        // What it said before this request may still be unread: that it stops.
        self.answer(key, now);
        let session = self.sessions.get(key)?;
        (session.client == client && !session.heard && session.request == *request).then_some(key)
    }

    /// Ends the transfer that this client port has, if any: it asks for something else now.
    fn room_for(&mut self, client: SocketAddr, now: Instant) -> bool {
        if let Some(key) = self.by_client.get(&client) {
            self.end(*key);
        }
        if self.per_host.get(&client.ip()).is_some_and(|n| *n >= MAX_PER_CLIENT) {
            return false;
        }
        if self.sessions.len() >= MAX_TRANSFERS {
            let unheard = self.sessions.iter().filter(|(_, s)| !s.heard);
            let oldest = unheard.min_by_key(|(_, s)| s.started);
            match oldest.filter(|(_, s)| now.saturating_duration_since(s.started) >= UNANSWERED) {
                Some((key, _)) => self.give_up(key, now),
                None => return false,
            }
        }
        true
    }

    fn start(&mut self, order: Order, file: Bytes, now: Instant) {
        let Order { client, local, request } = order;
        let entry = self.sessions.vacant_entry();
        let token = epoll::EventData::new_u64(entry.key() as u64);
        let open = || -> io::Result<(Peer, Transfer)> {
            let mut peer = Peer::connect(&self.interface, local, client)?;
            let transfer = Transfer::new(file, &request, peer.largest_block()?);
            peer.prepare(&transfer);
            epoll::add(&self.epoll, &peer, token, epoll::EventFlags::IN)?;
            Ok((peer, transfer))
        };
        let (peer, transfer) = match open() {
            Ok(opened) => opened,
            Err(e) => {
                self.counters.silent(Silence::TftpBusy);
                if let Some(more) = self.quiet.say(Cause::NoSocket, now) {
                    warn!(error = %e, %client, more, "no socket for a TFTP transfer; is the limit of open files too low?");
                }
                return;
            }
        };
        debug!(%client, name = request.name, "TFTP transfer");
        self.counters.sent(Answer::TftpTransfer);
        let due = now + transfer.patience();
        let session =
            Session { client, peer, request, transfer, heard: false, started: now, since: now, due, queued: due };
        let key = entry.key();
        entry.insert(session);
        self.timers.insert((due, key));
        self.by_client.insert(client, key);
        *self.per_host.entry(client.ip()).or_default() += 1;
        self.send(key, now);
    }

    /// A packet of the client of a transfer.
    fn answer(&mut self, key: usize, now: Instant) {
        // Gone, when another event of this round ended it.
        let Some(session) = self.sessions.get_mut(key) else { return };
        let mut buffer = [0; BUFFER];
        let received = session.peer.receive(&mut buffer).or_else(|e| match e.kind() {
            // The client's port is closed (ICMP). The last ACK may have come before that.
            io::ErrorKind::ConnectionRefused => session.peer.receive(&mut buffer).map_err(|_| e),
            _ => Err(e),
        });
        let packet = match received {
            Ok(length) => Packet::parse(buffer.get(..length).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => return self.give_up(key, now),
            // Another event of this round took the packet, or the network is down for a while.
            Err(_) => return,
        };
        match packet {
            Some(Packet::Ack(number)) => {
                session.heard = true;
                let after = now.saturating_duration_since(session.since);
                let step = session.transfer.acknowledge(number, after);
                self.step(key, step, now);
            }
            Some(Packet::Error) => self.end(key),
            Some(Packet::Read(_) | Packet::Refused(_)) | None => self.counters.silent(Silence::TftpMalformed),
        }
    }

    fn step(&mut self, key: usize, step: Step, now: Instant) {
        match step {
            Step::Send => self.send(key, now),
            Step::Wait => self.wait_from(key, now),
            // It may have raised a doubt, and then the wait is shorter.
            Step::Ignore => {
                let since = self.sessions.get(key).map_or(now, |s| s.since);
                self.wait_from(key, since);
            }
            Step::Complete => {
                self.counters.sent(Answer::TftpComplete);
                if let Some(session) = self.sessions.get(key) {
                    self.loaders.fetched_by(session.client.ip(), plain(&session.request.name));
                }
                self.end(key);
            }
            Step::GiveUp => self.give_up(key, now),
        }
    }

    fn send(&mut self, key: usize, now: Instant) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if let Err(e) = session.peer.send(&session.transfer) {
            self.counters.silent(Silence::SendFailed);
            debug!(error = %e, client = %session.client, "a TFTP packet could not be sent");
            // As if lost on the way. Where the client is gone, the next packet says so.
        }
        self.wait_from(key, now);
    }

    fn wait_from(&mut self, key: usize, since: Instant) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.since = since;
        session.due = since + session.transfer.patience();
        if session.due < session.queued {
            self.timers.remove(&(session.queued, key));
            self.timers.insert((session.due, key));
            session.queued = session.due;
        }
    }

    fn expire(&mut self, now: Instant) {
        while let Some((when, key)) = self.timers.first().copied().filter(|(when, _)| *when <= now) {
            self.timers.remove(&(when, key));
            let Some(session) = self.sessions.get_mut(key) else { continue };
            if session.due <= now {
                session.since = now;
                let step = session.transfer.expired();
                session.due = now + session.transfer.patience();
                session.queued = session.due;
                self.timers.insert((session.due, key));
                self.step(key, step, now);
            } else {
                session.queued = session.due;
                self.timers.insert((session.due, key));
            }
        }
    }

    fn give_up(&mut self, key: usize, now: Instant) {
        self.counters.sent(Answer::TftpGivenUp);
        if let Some(session) = self.sessions.get(key)
            && let Some(more) = self.quiet.say(Cause::Gone, now)
        {
            info!(client = %session.client, name = session.request.name, more, "TFTP client went silent");
        }
        self.end(key);
    }

    /// Closing the socket takes it out of the epoll set.
    fn end(&mut self, key: usize) {
        let Some(session) = self.sessions.try_remove(key) else { return };
        self.timers.remove(&(session.queued, key));
        self.by_client.remove(&session.client);
        if let Some(count) = self.per_host.get_mut(&session.client.ip()) {
            *count -= 1;
            if *count == 0 {
                self.per_host.remove(&session.client.ip());
            }
        }
    }
}

/// What the client is told.
type Refusal = (Fault, &'static str);
const NO_SUCH_FILE: Refusal = (Fault::NotFound, "no such file");

/// Firmware may put a slash before the name; nothing else of a path is known here.
fn plain(name: &str) -> &str {
    name.strip_prefix('/').unwrap_or(name)
}
