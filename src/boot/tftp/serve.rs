//! All transfers of one interface on one thread: sockets and clock around [`Transfer`].
//!
//! A transfer is a conversation of short packets, so what counts is how soon an ACK is answered. One thread that takes an
//! ACK and sends the next block from the same place needs no wakeup of another thread and no lock for it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use tokio::runtime::Handle;
use tracing::{debug, error, info, warn};

use super::batch::{BATCH, Inbox, Outbox};
use super::mail::{Mail, Mailbox, Order};
use super::packet::{self, Fault, Packet};
use super::quiet::{Cause, Quiet};
use super::sessions::{Port, Session, Sessions};
use super::socket::{Family, TIDS};
use super::transfer::{Step, Transfer, netascii};
use crate::boot::count::{Answer, Counters, Silence};
use crate::boot::loader::{File, Loaders};

/// Transfers at once on one interface.
const MAX_TRANSFERS: usize = 4096;
/// Transfers at once for one client address.
const MAX_PER_CLIENT: usize = 32;
/// Largest file that is turned into netascii.
const MAX_TEXT: usize = 16 << 20;
/// From this size on the text is kept, which makes a second copy of the file. A smaller one is made sooner than looked up,
/// and whatever is made for a machine is smaller: the kept ones have names out of a closed set.
const KEPT_TEXT: usize = 64 << 10;
/// Files that are being made at once; each takes a question to the rules.
const MAX_MAKING: usize = 256;
/// Batches of one socket before others get their turn.
const ROUNDS: usize = 4;
/// How long to look for the next packet before sleeping. Firmware polls its card and answers within some microseconds; to
/// be woken takes as long again.
const LOOK: Duration = Duration::from_micros(50);
const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// What an event is about: requests of a family, answers at one of its ports, or mail.
const ANSWERS: u64 = 1 << 32;
const MAIL: u64 = u64::MAX;

pub struct Reactor {
    /// For the log.
    interface: String,
    loaders: Arc<Loaders>,
    counters: Arc<Counters>,
    epoll: OwnedFd,
    mailbox: Mailbox,
    mail: Receiver<Mail>,
    /// For what takes longer than a packet may wait.
    runtime: Handle,
    families: Vec<Family>,
    sessions: Sessions,
    /// The port that the next transfer gets.
    turn: usize,
    outbox: Outbox,
    /// Where the outbox is to be sent from.
    sending: Port,
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
        interface: &str,
        families: Vec<Family>,
        (mailbox, mail): (Mailbox, Receiver<Mail>),
        loaders: Arc<Loaders>,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let readable = |token| (epoll::EventData::new_u64(token), epoll::EventFlags::IN);
        let (data, flags) = readable(MAIL);
        epoll::add(&epoll, &mailbox, data, flags)?;
        for (family, number) in families.iter().zip(0u64..) {
            let (data, flags) = readable(number);
            epoll::add(&epoll, &family.listener, data, flags)?;
            for (port, token) in family.ports.iter().zip(ANSWERS + number * TIDS as u64..) {
                let (data, flags) = readable(token);
                epoll::add(&epoll, port, data, flags)?;
            }
        }
        Ok(Self {
            interface: interface.to_owned(),
            loaders,
            counters,
            epoll,
            mailbox,
            mail,
            runtime: Handle::current(),
            families,
            sessions: Sessions::default(),
            turn: 0,
            outbox: Outbox::new(),
            sending: (0, 0),
            making: HashSet::new(),
            texts: HashMap::new(),
            quick: false,
            quiet: Quiet::default(),
        })
    }

    /// Until told to stop; transfers end with it.
    pub fn run(mut self) {
        let mut events = Vec::with_capacity(2 * (1 + TIDS) + 1);
        let (mut asked, mut said) = (Inbox::new(), Inbox::new());
        loop {
            match self.wait(&mut events) {
                Ok(()) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return error!(error = %e, self.interface, "TFTP cannot wait for packets"),
            }
            let now = Instant::now();
            for event in events.drain(..) {
                match event.data.u64() {
                    MAIL if self.read_mail(now) => return,
                    MAIL => {}
                    token if token < ANSWERS => self.requests(token as usize, &mut asked, &mut said, now),
                    token => {
                        let number = (token - ANSWERS) as usize;
                        self.answers((number / TIDS, number % TIDS), &mut said, now);
                    }
                }
            }
            while let Some(key) = self.sessions.overdue(now) {
                self.expire(key, now);
            }
            self.flush();
        }
    }

    /// Sleeps only when a look around was, or would be, in vain. Where clients take longer than [`LOOK`] to answer, that
    /// is found out at the first one and costs nothing from then on.
    fn wait(&mut self, events: &mut Vec<epoll::Event>) -> rustix::io::Result<()> {
        let start = Instant::now();
        if self.quick && self.sessions.len() > 0 {
            while start.elapsed() < LOOK {
                epoll::wait(&self.epoll, spare_capacity(events), Some(&AT_ONCE))?;
                if !events.is_empty() {
                    return Ok(());
                }
                std::thread::yield_now();
            }
        }
        let timeout = self.sessions.next_due().map(|when| when.saturating_duration_since(start));
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        epoll::wait(&self.epoll, spare_capacity(events), timeout.as_ref())?;
        self.quick = start.elapsed() < LOOK;
        Ok(())
    }

    fn requests(&mut self, family: usize, asked: &mut Inbox, said: &mut Inbox, now: Instant) {
        let Some(sockets) = self.families.get(family) else { return };
        let local = sockets.local;
        // An error is that the interface is down, or nothing is there any more: the socket stays good.
        let Ok(count) = asked.receive(&sockets.listener) else { return };
        // What the clients said before they asked: that they stop the transfer they had.
        for number in 0..TIDS {
            self.answers((family, number), said, now);
        }
        for arrived in (0..count).filter_map(|n| asked.get(n)) {
            let Some(local) = local.or(arrived.to) else { continue };
            if let Err((fault, why)) = self.request(arrived.bytes, arrived.from, local, now) {
                self.refuse(family, (arrived.from, local), fault, why);
            }
        }
        self.flush();
    }

    fn refuse(&mut self, family: usize, (client, local): (SocketAddr, IpAddr), fault: Fault, why: &str) {
        self.flush();
        let Some(sockets) = self.families.get(family) else { return };
        let packet = packet::error(fault, why);
        self.outbox.push(0, client, Some(local), None, |bytes| bytes.extend_from_slice(&packet));
        let mut sent = true;
        self.outbox.send(&sockets.listener, |_, _| sent = false);
        match sent {
            true => self.counters.sent(Answer::TftpRefused),
            false => self.counters.silent(Silence::SendFailed),
        }
    }

    /// An error goes back to the client.
    fn request(&mut self, bytes: &[u8], client: SocketAddr, local: IpAddr, now: Instant) -> Result<(), Refusal> {
        // To a group: none of us is meant.
        if local.is_multicast() {
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
        let order = Order { client, local, request };
        if let Some(key) = self.repeated(&order) {
            self.send(key, now);
        } else if !self.making.contains(&client) {
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
                self.refuse(self.family_of(local), (client, local), fault, why);
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
    fn repeated(&self, order: &Order) -> Option<usize> {
        let key = self.sessions.find(order.client)?;
        self.sessions.get(key).is_some_and(|s| !s.heard && s.order == *order).then_some(key)
    }

    fn room_for(&mut self, client: SocketAddr, now: Instant) -> bool {
        if self.sessions.find(client).is_some() {
            return true;
        }
        if self.sessions.of_host(client.ip()) >= MAX_PER_CLIENT {
            return false;
        }
        if self.sessions.len() >= MAX_TRANSFERS {
            match self.sessions.unanswered(now) {
                Some(key) => self.give_up(key, now),
                None => return false,
            }
        }
        true
    }

    fn start(&mut self, order: Order, file: Bytes, now: Instant) {
        let family = self.family_of(order.local);
        let path = self.families.get(family).map(|f| f.largest_block(order.client));
        let Some(Ok(path)) = path else {
            debug!(?path, client = %order.client, "no way to a TFTP client");
            return self.counters.silent(Silence::SendFailed);
        };
        debug!(client = %order.client, name = order.request.name, "TFTP transfer");
        self.counters.sent(Answer::TftpTransfer);
        let transfer = Transfer::new(file, &order.request, path);
        let old = self.sessions.find(order.client).and_then(|key| self.sessions.get(key));
        // Never the TID of the transfer that this one replaces.
        let step = if old.is_some_and(|s| s.port.1 == (self.turn + 1) % TIDS) { 2 } else { 1 };
        self.turn = (self.turn + step) % TIDS;
        let key = self.sessions.insert(Session::new(order, (family, self.turn), transfer, now));
        self.send(key, now);
    }

    /// The one whose listener answers for this address of ours.
    fn family_of(&self, local: IpAddr) -> usize {
        self.families.iter().position(|f| f.local.map_or(local.is_ipv6(), |own| own == local)).unwrap_or_default()
    }

    fn socket(&self, (family, number): Port) -> Option<&UdpSocket> {
        self.families.get(family)?.ports.get(number)
    }

    fn answers(&mut self, port: Port, said: &mut Inbox, now: Instant) {
        for _ in 0..ROUNDS {
            let Some(Ok(count)) = self.socket(port).map(|socket| said.receive(socket)) else { return };
            for arrived in (0..count).filter_map(|n| said.get(n)) {
                self.answer(arrived.from, port, arrived.bytes, now);
            }
            self.flush();
            if count < BATCH {
                return;
            }
        }
    }

    fn answer(&mut self, client: SocketAddr, port: Port, bytes: &[u8], now: Instant) {
        let found = self.sessions.find(client).and_then(|key| Some((key, self.sessions.get_mut(key)?)));
        let Some((key, session)) = found.filter(|(_, s)| s.port == port) else {
            return self.counters.silent(Silence::TftpStray);
        };
        match Packet::parse(bytes) {
            Some(Packet::Ack(number)) => {
                session.heard = true;
                let after = now.saturating_duration_since(session.since);
                let step = session.transfer.acknowledge(number, after);
                self.step(key, step, now);
            }
            Some(Packet::Error) => _ = self.sessions.remove(key),
            Some(Packet::Read(_) | Packet::Refused(_)) | None => self.counters.silent(Silence::TftpMalformed),
        }
    }

    fn step(&mut self, key: usize, step: Step, now: Instant) {
        match step {
            Step::Send => self.send(key, now),
            Step::Wait => self.sessions.wait_from(key, now),
            // It may have raised a doubt, and then the wait is shorter.
            Step::Ignore => {
                let since = self.sessions.get(key).map_or(now, |s| s.since);
                self.sessions.wait_from(key, since);
            }
            Step::Complete => {
                self.counters.sent(Answer::TftpComplete);
                if let Some(Session { order, .. }) = self.sessions.remove(key) {
                    self.loaders.fetched_by(order.client.ip(), plain(&order.request.name));
                }
            }
            Step::GiveUp => self.give_up(key, now),
        }
    }

    fn expire(&mut self, key: usize, now: Instant) {
        if let Some(session) = self.sessions.get_mut(key) {
            let step = session.transfer.expired();
            self.step(key, step, now);
        }
    }

    /// With the next [`Reactor::flush`].
    fn send(&mut self, key: usize, now: Instant) {
        let Some(port) = self.sessions.get(key).map(|s| s.port) else { return };
        if self.sending != port || self.outbox.is_full() {
            self.flush();
            self.sending = port;
        }
        if let Some(session) = self.sessions.get(key) {
            session.write(key, &mut self.outbox);
        }
        self.sessions.wait_from(key, now);
    }

    /// What the kernel does not take is as if lost on the way, except that it may not be able to cut windows.
    fn flush(&mut self) {
        let Self { families, outbox, counters, sessions, sending, .. } = self;
        let Some(socket) = families.get(sending.0).and_then(|f| f.ports.get(sending.1)) else { return };
        let mut uncut = Vec::new();
        outbox.send(socket, |key, error| {
            let session = sessions.get_mut(key);
            // EIO: the device cannot (before Linux 6.11); EINVAL: the path became narrower.
            if let Some(session) = session.filter(|s| s.segmented && s.transfer.has_window())
                && matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL))
            {
                session.segmented = false;
                uncut.push(key);
            } else {
                counters.silent(Silence::SendFailed);
                debug!(%error, "a TFTP packet could not be sent");
            }
        });
        if !uncut.is_empty() {
            uncut.iter().filter_map(|key| Some((key, sessions.get(*key)?))).for_each(|(key, s)| s.write(*key, outbox));
            outbox.send(socket, |_, _| counters.silent(Silence::SendFailed));
        }
    }

    fn give_up(&mut self, key: usize, now: Instant) {
        self.counters.sent(Answer::TftpGivenUp);
        if let Some(Session { order, .. }) = self.sessions.remove(key)
            && let Some(more) = self.quiet.say(Cause::Gone, now)
        {
            info!(client = %order.client, name = order.request.name, more, "TFTP client went silent");
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
