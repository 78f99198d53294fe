//! A UDP socket to one BMC, and the one way to use it: send, wait, send again, until the right answer or the limit.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until, timeout_at};

/// How long to wait before what is sent again, and for how long in all.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Before the second sending; each further wait is half as long again. BMCs that need half a second for an answer are
    /// common, and what is sent to one of them meanwhile takes another of its few sessions.
    pub first: Duration,
    pub longest: Duration,
    /// For one answer within a session, with all sendings.
    pub answer: Duration,
    /// For the whole session set-up.
    pub open: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(2),
            answer: Duration::from_secs(8),
            open: Duration::from_secs(12),
        }
    }
}

/// The largest datagram that can be an IPMI answer, with room to spare.
const DATAGRAM: usize = 2048;
/// Pause after a socket error, which may be there again at once.
const AFTER_ERROR: Duration = Duration::from_millis(20);

pub struct Wire {
    socket: UdpSocket,
    address: SocketAddr,
    buffer: Box<[u8]>,
    pace: Pace,
    /// What the network said last, such as "connection refused": the cause in the error when no answer comes.
    trouble: Option<io::Error>,
}

impl Wire {
    pub async fn connect(address: SocketAddr, pace: Pace) -> io::Result<Self> {
        let any: SocketAddr = match address {
            SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        // The kernel drops what comes from anybody else, and tells when nobody listens there.
        socket.connect(address).await?;
        Ok(Self { socket, address, buffer: vec![0; DATAGRAM].into(), pace, trouble: None })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn pace(&self) -> Pace {
        self.pace
    }

    pub fn trouble(&mut self) -> Option<io::Error> {
        self.trouble.take()
    }

    /// Sends what `make` gives for each attempt, from 0 on, and returns what `take` makes of the datagrams that come: a
    /// good answer at once, a bad one only when its wait is over without a good one, since bad answers can be forged by
    /// anybody and good ones by nobody. `None` when `limit` passed without either.
    pub async fn exchange<T, E>(
        &mut self,
        first_wait: Duration,
        limit: Instant,
        mut make: impl FnMut(u8) -> Vec<u8>,
        mut take: impl FnMut(&[u8]) -> Option<Result<T, E>>,
    ) -> Option<Result<T, E>> {
        let mut wait = first_wait;
        let mut attempt: u8 = 0;
        while Instant::now() < limit {
            if let Err(e) = self.socket.send(&make(attempt)).await {
                self.trouble = Some(e);
            }
            if let Some(found) = self.listen((Instant::now() + wait).min(limit), &mut take).await {
                return Some(found);
            }
            attempt = attempt.wrapping_add(1);
            wait = (wait * 3 / 2).min(self.pace.longest.max(first_wait));
        }
        None
    }

    async fn listen<T, E>(
        &mut self,
        until: Instant,
        take: &mut impl FnMut(&[u8]) -> Option<Result<T, E>>,
    ) -> Option<Result<T, E>> {
        let mut bad = None;
        // The clock is looked at between datagrams too: a flood of them must not hold us here.
        while Instant::now() < until {
            match timeout_at(until, self.socket.recv(&mut self.buffer)).await {
                Err(_elapsed) => break,
                Ok(Ok(length)) => match self.buffer.get(..length).and_then(&mut *take) {
                    Some(Ok(good)) => return Some(Ok(good)),
                    Some(Err(e)) => bad = bad.or(Some(Err(e))),
                    None => {}
                },
                Ok(Err(e)) => {
                    self.trouble = Some(e);
                    sleep_until((Instant::now() + AFTER_ERROR).min(until)).await;
                }
            }
        }
        bad
    }

    /// The next datagram; `None` after an error of the socket, which is noted.
    pub async fn receive(&mut self) -> Option<&[u8]> {
        match self.socket.recv(&mut self.buffer).await {
            Ok(length) => self.buffer.get(..length),
            Err(e) => {
                self.trouble = Some(e);
                tokio::time::sleep(AFTER_ERROR).await;
                None
            }
        }
    }

    /// Sends once and does not wait.
    pub async fn tell(&mut self, packet: &[u8]) {
        if let Err(e) = self.socket.send(packet).await {
            self.trouble = Some(e);
        }
    }
}
