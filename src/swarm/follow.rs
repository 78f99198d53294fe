//! One connection to a predecessor: its stream of groups, each verified before anybody else sees it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::broadcast;
use tokio::time::timeout;

use super::group::{self, GROUP};
use super::holdings::{Arriving, Begun, Whole};
use super::relay::Shared;
use super::wire::{self, Bitmap, Decoded, HEAD, Message, OPEN_MAX, Refusal};

/// Why a connection has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// It sent what does not verify or what the protocol does not allow: never again.
    Garbage(&'static str),
    /// Not reached, gone, or silent.
    Lost(String),
    /// It has what is missing, says so, and does not send it.
    Stalled,
    /// It has nothing that is missing and will not get it.
    Exhausted,
    Refused(Refusal),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Garbage(what) => write!(f, "sent {what}"),
            Self::Lost(why) => f.write_str(why),
            Self::Stalled => f.write_str("does not send what it has"),
            Self::Exhausted => f.write_str("has nothing more"),
            Self::Refused(Refusal::Full) => f.write_str("serves as many as it may"),
            Self::Refused(_) => f.write_str("refuses to serve"),
        }
    }
}

/// What others see of a connection.
#[derive(Debug)]
pub(super) struct Link {
    pub peer: SocketAddr,
    pub since: Instant,
    /// It has accepted the hello.
    pub welcomed: AtomicBool,
    /// Groups that came from it, and those of them that were still missing.
    all: AtomicU64,
    groups: AtomicU64,
}

impl Link {
    pub fn new(peer: SocketAddr) -> Arc<Self> {
        let (all, groups) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { peer, since: Instant::now(), welcomed: AtomicBool::new(false), all, groups })
    }

    pub fn is_welcome(&self) -> bool {
        self.welcomed.load(Ordering::Relaxed)
    }

    pub fn sent(&self) -> u64 {
        self.all.load(Ordering::Relaxed)
    }

    pub fn delivered(&self) -> u64 {
        self.groups.load(Ordering::Relaxed)
    }
}

/// A frame that the peer has begun.
struct Open {
    frame: u32,
    next: u16,
    /// `None`: it came from elsewhere meanwhile.
    into: Option<Arc<Arriving>>,
}

struct Stream<'a> {
    shared: &'a Shared,
    link: &'a Link,
    reader: OwnedReadHalf,
    buffer: BytesMut,
    /// What the socket was last told about when to wake us.
    low_water: usize,
    /// Frames that it may still begin.
    asked: Bitmap,
    open: Vec<Open>,
    /// It holds something of what is missing.
    pending: bool,
    /// The last group, or the last time that the peer could not be blamed for there being none.
    moved: Instant,
}

/// Follows a peer until it is of no more use. Whoever drops this hangs up.
pub(super) async fn follow(shared: Arc<Shared>, link: Arc<Link>) -> End {
    let limits = &shared.limits;
    let connect = timeout(limits.connect, TcpStream::connect(link.peer));
    let stream = match connect.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => return End::Lost(e.to_string()),
        Err(_) => return End::Lost("no answer".into()),
    };
    let _ = stream.set_nodelay(true);
    let (reader, mut writer) = stream.into_split();
    let mut skips = shared.skips.subscribe();
    let lacking = shared.lacking();
    let mut skip = Bitmap::new(lacking.len(), true);
    lacking.ones().for_each(|frame| skip.set(frame, false));
    let hello = wire::hello(&shared.proof(), &shared.holdings.image(), &skip, &shared.holdings.parts());
    match timeout(limits.silence, writer.write_all(&hello)).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => return End::Lost(e.to_string()),
        Err(_) => return End::Lost("it does not listen".into()),
    }
    let mut stream = Stream {
        shared: &shared,
        link: &link,
        reader,
        buffer: BytesMut::new(),
        low_water: 1,
        asked: lacking,
        open: Vec::new(),
        pending: false,
        moved: Instant::now(),
    };
    // Frames that came from elsewhere need not be sent by this peer.
    let tell = async {
        loop {
            match skips.recv().await {
                Ok((_, from)) if from == Some(link.peer) => {}
                Ok((frame, _)) => {
                    if let Err(e) = writer.write_all(&u32::to_le_bytes(frame)).await {
                        return End::Lost(e.to_string());
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    };
    tokio::select! {
        end = stream.run() => end,
        end = tell => end,
    }
}

impl Stream<'_> {
    async fn run(&mut self) -> End {
        loop {
            let holdings = &self.shared.holdings;
            let length = |frame| holdings.chunk(frame).map(|c| c.length);
            let done = match wire::decode(&mut self.buffer, length) {
                Ok(Decoded::Need(bytes)) => self.read(bytes).await,
                Ok(Decoded::Message(message)) => self.take(message).await,
                Err(what) => Err(End::Garbage(what)),
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    /// Until the buffer has so many bytes.
    async fn read(&mut self, bytes: usize) -> Result<(), End> {
        let mut silent = false;
        while self.buffer.len() < bytes {
            // As much as is expected comes in one read, and the head after it; not more, since what is read beyond has to be
            // copied when the next room is made.
            let have = self.buffer.len();
            let target = bytes.max(self.expected());
            if self.buffer.capacity() < target + HEAD {
                self.buffer.reserve(target.max(HEAD + GROUP) + HEAD - have);
            }
            self.wake_at(if silent { 1 } else { target - have });
            // Half of the time that is allowed with the mark where it is, the other half with any byte being enough.
            match timeout(self.shared.limits.silence / 2, self.reader.read_buf(&mut self.buffer)).await {
                Ok(Ok(0)) => return Err(End::Lost("the connection was closed".into())),
                Ok(Ok(_)) => silent = false,
                Ok(Err(e)) => return Err(End::Lost(e.to_string())),
                Err(_) if silent => return Err(End::Lost("nothing was heard from it".into())),
                Err(_) => silent = true,
            }
            let owes = self.pending || !self.buffer.is_empty();
            if owes && self.buffer.len() < bytes && self.moved.elapsed() > self.shared.limits.stall {
                return Err(End::Stalled);
            }
        }
        Ok(())
    }

    /// Length of the message that most likely comes next: the next group of a frame that has begun.
    fn expected(&self) -> usize {
        let group = self.open.first().and_then(|open| {
            let chunk = self.shared.holdings.chunk(open.frame)?;
            Some(HEAD + group::range(chunk.length, open.next)?.len())
        });
        group.unwrap_or(HEAD)
    }

    /// Lets the kernel wake this task once for a whole group instead of for each packet. A peer that has nothing says so
    /// every 250 ms in a few bytes, which then wait for half the time of silence: no harm.
    fn wake_at(&mut self, bytes: usize) {
        if self.low_water != bytes && set_receive_low_water(self.reader.as_ref(), bytes).is_ok() {
            self.low_water = bytes;
        }
    }

    async fn take(&mut self, message: Message) -> Result<(), End> {
        match message {
            Message::Alive { pending, complete, .. } => {
                self.link.welcomed.store(true, Ordering::Relaxed);
                self.shared.wake.notify_one();
                if pending == 0 && complete && !self.shared.is_all_there() {
                    return Err(End::Exhausted);
                }
                if self.pending && pending > 0 && self.moved.elapsed() > self.shared.limits.stall {
                    return Err(End::Stalled);
                }
                if pending == 0 {
                    self.moved = Instant::now();
                }
                self.pending = pending > 0;
                Ok(())
            }
            Message::Begin { frame, first, list } => self.begin(frame, first, list),
            Message::Group { frame, group, bytes } => {
                let Some(at) = self.open.iter().position(|o| o.frame == frame && o.next == group) else {
                    return Err(End::Garbage("a group that was not announced"));
                };
                self.shared.count(self.link.peer, bytes.len() as u64);
                self.link.all.fetch_add(1, Ordering::Relaxed);
                let whole = self.group(at, group, bytes)?;
                self.moved = Instant::now();
                match whole {
                    Some(whole) => self.complete(whole).await,
                    None => Ok(()),
                }
            }
            Message::Refused(why) => Err(End::Refused(why)),
        }
    }

    fn begin(&mut self, frame: u32, first: u16, list: bytes::Bytes) -> Result<(), End> {
        if !self.asked.get(frame) {
            return Err(End::Garbage("a frame that was not asked for"));
        }
        if self.open.len() >= OPEN_MAX {
            return Err(End::Garbage("too many frames at once"));
        }
        self.asked.set(frame, false);
        let into = match self.shared.holdings.begin(frame, list) {
            Err(_) => return Err(End::Garbage("hashes that are not those of the image")),
            Ok(Begun::Arriving(arriving)) => Some(arriving),
            Ok(Begun::Known) => None,
            Ok(Begun::Full) => return Err(End::Lost("too many frames are under way".into())),
        };
        self.open.push(Open { frame, next: first, into });
        Ok(())
    }

    fn group(&mut self, at: usize, group: u16, bytes: bytes::Bytes) -> Result<Option<Whole>, End> {
        let Some(open) = self.open.get_mut(at) else { return Ok(None) };
        open.next += 1;
        let last = self.shared.holdings.chunk(open.frame).is_none_or(|c| open.next >= group::count(c.length));
        let into = open.into.clone();
        if last {
            self.open.remove(at);
        }
        let Some(arriving) = into else { return Ok(None) };
        if arriving.group(group).is_some() {
            return Ok(None);
        }
        match self.shared.holdings.put(&arriving, group, bytes) {
            Ok(whole) => {
                self.link.groups.fetch_add(1, Ordering::Relaxed);
                self.shared.moved();
                Ok(whole)
            }
            Err(_) => Err(End::Garbage("bytes that are not those of the image")),
        }
    }

    /// May take long, when the sink is slow and there is no room; the peer cannot be blamed for that.
    async fn complete(&mut self, whole: Whole) -> Result<(), End> {
        self.shared.complete(whole, Some(self.link.peer)).await;
        self.moved = Instant::now();
        Ok(())
    }
}

fn set_receive_low_water(stream: &TcpStream, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointer is to an int that lives through the call, and the length is its own.
    let set = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, (&raw const bytes).cast(), length)
    };
    match set {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
