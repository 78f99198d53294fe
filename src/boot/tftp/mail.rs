//! How the rest of the program reaches the thread of [`super::serve`]: a message, and a ring that ends its sleep.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use bytes::Bytes;
use rustix::event::{EventfdFlags, eventfd};

use super::packet::ReadRequest;

pub enum Mail {
    /// A file that was made for one request; `None`: there is none after all.
    Made(Order, Option<Bytes>),
    Stop,
}

/// Who asked for what, and at which of our addresses.
#[derive(PartialEq, Eq)]
pub struct Order {
    pub client: SocketAddr,
    pub local: IpAddr,
    pub request: ReadRequest,
}

#[derive(Clone)]
pub struct Mailbox {
    messages: Sender<Mail>,
    /// An eventfd, readable from [`Mailbox::post`] until [`Mailbox::quiet`].
    ring: Arc<OwnedFd>,
}

impl Mailbox {
    pub fn new() -> io::Result<(Self, Receiver<Mail>)> {
        let (messages, mail) = mpsc::channel();
        let ring = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        Ok((Self { messages, ring }, mail))
    }

    /// Nobody reads it any more: then it is about nothing.
    pub fn post(&self, mail: Mail) {
        let _ = self.messages.send(mail);
        let _ = rustix::io::write(&*self.ring, &1u64.to_ne_bytes());
    }

    pub fn quiet(&self) {
        let _ = rustix::io::read(&*self.ring, &mut [0; 8]);
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}
