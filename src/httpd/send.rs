//! Bytes to a socket: the head of an answer, and stretches of files by `sendfile(2)`.

use std::fs::File;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustix::fs::{Advice, fadvise, sendfile};
use rustix::io::{ReadWriteFlags, preadv2};
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use super::count::{Counters, Event};

/// What is sent with one call, in bytes, and looked at first: is it in the page cache?
const WINDOW: u64 = 2 << 20;

/// What one connection sends without waiting for its client before it is another's turn: about 2 ms. Less costs: a turn that
/// ends wakes another thread to look for work.
const TURN: u64 = 8 << 20;

/// Why an answer did not get to its end. The connection is of no use after it.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// The client went away.
    Aborted,
    /// It took no byte for too long.
    Timeout,
    /// The file is shorter than it was, or cannot be read.
    File,
}

impl From<Fault> for Event {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Aborted => Self::Aborted,
            Fault::Timeout => Self::WriteTimeout,
            Fault::File => Self::FileFailed,
        }
    }
}

/// Where to, and how long the client may take for the next bytes.
pub struct Sender<'a> {
    pub stream: &'a TcpStream,
    pub patience: Duration,
    pub counters: &'a Counters,
}

impl Sender<'_> {
    /// All of `bytes`; with `more`, the kernel waits for what follows and sends it in the same packet.
    pub async fn bytes(&self, mut bytes: &[u8], more: bool) -> Result<(), Fault> {
        let flags = if more { SendFlags::MORE | SendFlags::NOSIGNAL } else { SendFlags::NOSIGNAL };
        while !bytes.is_empty() {
            match self.try_send(|| Ok(rustix::net::send(self.stream, bytes, flags)?))? {
                Some(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
                None => Alarm::new(self.patience).or_writable(self.stream, 0).await?,
            }
        }
        Ok(())
    }

    /// `length` bytes of the file from `first` on.
    pub async fn file(&self, file: File, first: u64, length: u64) -> Result<(), Fault> {
        let file = Arc::new(file);
        let (mut at, end) = (first, first.saturating_add(length));
        let mut alarm = Alarm::new(self.patience);
        let mut unbroken = 0;
        while at < end {
            let window = at.saturating_add(WINDOW).min(end);
            if !cached(&file, at, window) {
                self.counters.add(Event::Cold, None);
                load(file.clone(), at, window).await;
            }
            while at < window {
                let ask = usize::try_from(window - at).unwrap_or(usize::MAX);
                match self.try_send(|| Ok(sendfile(self.stream, &*file, Some(&mut at), ask)?))? {
                    Some(0) => return Err(Fault::File),
                    Some(sent) => {
                        self.counters.add_bytes(sent as u64);
                        unbroken += sent as u64;
                    }
                    None => {
                        alarm.or_writable(self.stream, at).await?;
                        unbroken = 0;
                    }
                }
            }
            if unbroken >= TURN {
                tokio::task::yield_now().await;
                unbroken = 0;
            }
        }
        Ok(())
    }

    /// `None`: the client has to take something first.
    fn try_send(&self, mut send: impl FnMut() -> io::Result<usize>) -> Result<Option<usize>, Fault> {
        loop {
            match self.stream.try_io(Interest::WRITABLE, &mut send) {
                Ok(sent) => return Ok(Some(sent)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(if of_the_file(&e) { Fault::File } else { Fault::Aborted }),
            }
        }
    }
}

/// Goes off when a client took nothing for a whole interval, so after one to two of them. One timer for a whole file: a new
/// one for each wait would wake the thread that waits for events each time.
struct Alarm {
    timer: Pin<Box<Sleep>>,
    interval: Duration,
    /// How far the file was at the last look.
    seen: Option<u64>,
}

impl Alarm {
    fn new(interval: Duration) -> Self {
        Self { timer: Box::pin(sleep(interval)), interval, seen: None }
    }

    /// Until the client takes something; `at` is how far the file is.
    async fn or_writable(&mut self, stream: &TcpStream, at: u64) -> Result<(), Fault> {
        loop {
            tokio::select! {
                biased;
                ready = stream.writable() => return ready.map_err(|_| Fault::Aborted),
                () = &mut self.timer => {
                    if self.seen.replace(at) == Some(at) {
                        return Err(Fault::Timeout);
                    }
                    self.timer.as_mut().reset(Instant::now() + self.interval);
                }
            }
        }
    }
}

/// `sendfile` has one error number for two files; these come from reading, and no socket gives them.
fn of_the_file(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EOVERFLOW | libc::ESTALE | libc::ENOMEM))
}

/// Whether `sendfile` of this window would find its first and its last byte in the page cache, and so most likely not wait
/// for a disk, which would hold up every other connection of this thread. A file system that cannot tell is taken at its
/// best: those are the ones in memory.
fn cached(file: &File, from: u64, to: u64) -> bool {
    let there = |at| {
        let mut byte = [0];
        let read = preadv2(file, &mut [io::IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT);
        !matches!(read, Err(rustix::io::Errno::AGAIN))
    };
    there(from) && there(to.saturating_sub(1))
}

/// Brings a window into the page cache, on a thread that may wait for disks. Whatever goes wrong shows again when it is sent.
async fn load(file: Arc<File>, from: u64, to: u64) {
    static NOWHERE: LazyLock<io::Result<File>> = LazyLock::new(|| File::options().write(true).open("/dev/null"));
    let loaded = tokio::task::spawn_blocking(move || {
        // The kernel reads ahead by itself, further so. To ask for stretches by name (WILLNEED) halves the speed: it takes
        // the place of the reading ahead and waits for each stretch.
        let _ = fadvise(&*file, 0, None, Advice::Sequential);
        let Ok(nowhere) = &*NOWHERE else { return };
        // The pages are waited for and not copied.
        let mut at = from;
        while at < to {
            let ask = usize::try_from(to - at).unwrap_or(usize::MAX);
            if !matches!(sendfile(nowhere, &*file, Some(&mut at), ask), Ok(1..)) {
                return;
            }
        }
    });
    let _ = loaded.await;
}
