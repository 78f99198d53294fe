//! A session with a BMC over the network: RMCP+ of IPMI 2.0 (section 13), cipher suites 17 and 3.
//!
//! [`wire`] sends and waits, [`packet`] has the forms of the datagrams, [`crypto`] the keys, [`handshake`] makes a session
//! and [`Session`] carries requests in it. Every answer within a session is checked: signature, session, sequence number
//! not seen before, and the number of the very request. What does not pass is dropped without a word, so that late,
//! doubled, forged and garbled datagrams cost nothing but the time to look at them.

pub mod crypto;
mod handshake;
pub mod packet;
mod wire;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep};

pub use crypto::Suite;
pub use packet::Payload;
use packet::Window;
pub use wire::Pace;
use wire::Wire;

use super::{Access, Protocol};
use crate::error::{Error, Result};
use crate::ipmi::app::{CloseSession, Privilege, SetSessionPrivilege};
use crate::ipmi::message::{lan_request, lan_response};
use crate::ipmi::user::{NAME_MAX, PASSWORD_MAX};
use crate::ipmi::{Ask, Completion, Fault, Request, Response};

/// Between two tries of a command that the BMC was too busy for.
const BUSY: Duration = Duration::from_millis(250);
/// How long the farewell may take; a BMC that misses it ends the session by time-out.
const FAREWELL: Duration = Duration::from_millis(500);
/// IPMI over LAN (IANA: asf-rmcp).
pub const PORT: u16 = 623;

fn unreachable(whose: &str, address: SocketAddr, waited: Duration, cause: Option<std::io::Error>) -> Error {
    let error =
        Error::unreachable("bmc.unreachable", format!("{whose} did not answer within {:.1} s", waited.as_secs_f64()))
            .hint(format!("check the cable and the address: ping {}", address.ip()));
    match cause {
        Some(cause) => error.because(cause),
        None => error,
    }
}

/// How soon a request is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    Soon,
    /// For what does harm when a slow BMC does it twice, such as a reset.
    Late,
}

pub struct Session {
    wire: Wire,
    address: SocketAddr,
    whose: String,
    suite: Suite,
    keys: crypto::Keys,
    remote: u32,
    local: u32,
    sequence: u32,
    window: Window,
    /// Of the last request, 6 bits.
    number: u8,
    /// No call goes on past this, whatever it waits for.
    deadline: Instant,
    heard: bool,
    /// More may be done than what a session starts with.
    raised: bool,
    last_used: Instant,
}

impl Session {
    /// Logs in. What takes more than the privilege User comes after [`Session::raise`].
    pub async fn open(
        access: &Access,
        address: SocketAddr,
        pace: Pace,
        known: Option<Suite>,
        deadline: Instant,
    ) -> Result<Self> {
        let whose = Protocol::Ipmi.whose(address);
        if access.user.len() > NAME_MAX || access.password.expose().len() > PASSWORD_MAX {
            let limits = format!("IPMI has user names up to {NAME_MAX} bytes and passwords up to {PASSWORD_MAX}");
            return Err(Error::input("bmc.auth", format!("the credentials for {whose} are too long"))
                .hint(format!("{limits}; give the BMC a user that keeps to them")));
        }
        let mut wire =
            Wire::connect(address, pace).await.map_err(|e| unreachable(&whose, address, Duration::ZERO, Some(e)))?;
        let made = handshake::open(&mut wire, access, &whose, known).await?;
        Ok(Self {
            wire,
            address,
            whose,
            suite: made.suite,
            keys: made.keys,
            remote: made.remote,
            local: made.local,
            sequence: 0,
            window: Window::default(),
            number: 0,
            deadline,
            heard: false,
            raised: false,
            last_used: Instant::now(),
        })
    }

    /// From User, as which every session starts, to Administrator, else to Operator, which is enough for power and boot
    /// device.
    pub async fn raise(&mut self) -> Result<()> {
        if self.raised {
            return Ok(());
        }
        if self.set_level(Privilege::Administrator).await?.is_err()
            && let Err(fault) = self.set_level(Privilege::Operator).await?
        {
            let why = fault.into_error(&self.whose);
            return Err(Error::refused("bmc.privilege", format!("the user has too few rights on {}", self.whose))
                .because(why)
                .hint("give the BMC user the privilege Administrator, or at least Operator"));
        }
        self.raised = true;
        Ok(())
    }

    async fn set_level(&mut self, level: Privilege) -> Result<Result<u8, Fault>> {
        let ask = SetSessionPrivilege(level);
        Ok(ask.settle(&self.patiently(&ask.request(), Repeat::Soon).await?))
    }

    pub fn whose(&self) -> &str {
        &self.whose
    }

    pub fn suite(&self) -> Suite {
        self.suite
    }

    pub fn last_used(&self) -> Instant {
        self.last_used
    }

    /// For the next command: its deadline, and nothing heard yet.
    pub fn begin(&mut self, deadline: Instant) {
        self.deadline = deadline;
        self.heard = false;
    }

    /// Whether the BMC has answered since [`Session::begin`]; if not, it may have dropped the session.
    pub fn heard(&self) -> bool {
        self.heard
    }

    /// The outer error is the network's, the inner one the BMC's.
    pub async fn ask<A: Ask>(&mut self, ask: &A) -> Result<Result<A::Answer, Fault>> {
        Ok(ask.settle(&self.exchange(&ask.request(), Repeat::Soon).await?))
    }

    /// One command; asked again with more rights where the BMC wants them for it, although the specification does not.
    pub async fn exchange(&mut self, request: &Request, repeat: Repeat) -> Result<Response> {
        let response = self.patiently(request, repeat).await?;
        if response.completion != Completion::INSUFFICIENT_PRIVILEGE || self.raised {
            return Ok(response);
        }
        self.raise().await?;
        self.patiently(request, repeat).await
    }

    /// Asks again while the BMC says that it is busy.
    async fn patiently(&mut self, request: &Request, repeat: Repeat) -> Result<Response> {
        loop {
            let response = self.once(request, repeat).await?;
            if !response.completion.is_passing() || Instant::now() + BUSY >= self.deadline {
                return Ok(response);
            }
            sleep(BUSY).await;
        }
    }

    async fn once(&mut self, request: &Request, repeat: Repeat) -> Result<Response> {
        let pace = self.wire.pace();
        let start = Instant::now();
        if start >= self.deadline {
            return Err(Error::unreachable(
                "bmc.late",
                format!("{} needed longer than the command was given", self.whose),
            )
            .hint("ask again; if this lasts, reset the BMC"));
        }
        let limit = self.deadline.min(start + pace.answer);
        let first = match repeat {
            Repeat::Soon => pace.first,
            Repeat::Late => pace.first * 4,
        };
        let found = self.travel(request, first, limit).await;
        self.last_used = Instant::now();
        match found {
            Some(response) => {
                self.heard = true;
                Ok(response)
            }
            None => Err(unreachable(&self.whose, self.address, start.elapsed(), self.wire.trouble())),
        }
    }

    async fn travel(&mut self, request: &Request, first: Duration, limit: Instant) -> Option<Response> {
        self.number = (self.number + 1) & 0x3f;
        let (keys, remote, local, number) = (&self.keys, self.remote, self.local, self.number);
        let (sequence, window) = (&mut self.sequence, &mut self.window);
        let message = lan_request(request, number);
        self.wire
            .exchange(
                first,
                limit,
                |_| {
                    // Each sending has a number of its own; the BMC drops what it has seen (section 6.12.13).
                    *sequence = sequence.wrapping_add(1).max(1);
                    // The cipher fails on text that is not a multiple of the block, which this is. Nothing is sent then.
                    packet::sealed(keys, remote, *sequence, Payload::Message, &message).unwrap_or_default()
                },
                |packet| {
                    let (sequence, kind, message) = packet::unseal(keys, local, packet)?;
                    // What another payload brings meanwhile is not confirmed, so the BMC sends it again.
                    if !window.accept(sequence) || kind != Payload::Message {
                        return None;
                    }
                    let (seq, response) = lan_response(&message)?;
                    let ours = seq == number && response.netfn == request.netfn | 1 && response.cmd == request.cmd;
                    ours.then_some(Ok::<_, Infallible>(response))
                },
            )
            .await?
            .ok()
    }

    /// The id that the BMC gave this session.
    pub fn id(&self) -> u32 {
        self.remote
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends and waits for nothing: for what goes its own way within the session.
    pub async fn send(&mut self, kind: Payload, payload: &[u8]) {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        if let Ok(packet) = packet::sealed(&self.keys, self.remote, self.sequence, kind, payload) {
            self.wire.tell(&packet).await;
        }
    }

    /// Sends a request of which the answer comes by [`Session::receive`].
    pub async fn send_request(&mut self, request: &Request) {
        self.number = (self.number + 1) & 0x3f;
        self.send(Payload::Message, &lan_request(request, self.number)).await;
    }

    /// The next payload that is whole, signed, of this session and new. Nothing is lost where the wait is given up.
    pub async fn receive(&mut self) -> (Payload, Vec<u8>) {
        loop {
            let Some(packet) = self.wire.receive().await else { continue };
            let Some((sequence, kind, payload)) = packet::unseal(&self.keys, self.local, packet) else { continue };
            if self.window.accept(sequence) {
                self.last_used = Instant::now();
                return (kind, payload);
            }
        }
    }

    /// What the network said last about the BMC's address, such as "connection refused".
    pub fn trouble(&mut self) -> Option<std::io::Error> {
        self.wire.trouble()
    }

    /// Gives the session slot back to the BMC.
    pub async fn close(mut self) {
        let request = CloseSession(self.remote).request();
        let limit = Instant::now() + FAREWELL;
        if self.travel(&request, self.wire.pace().first.min(FAREWELL / 2), limit).await.is_none() {
            tracing::debug!(bmc = %self.whose, "the BMC did not confirm the end of the session");
        }
    }
}
