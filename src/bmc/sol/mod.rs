//! Serial over LAN: the serial console of a machine through its BMC (IPMI 2.0 section 15).
//!
//! ```text
//! Consoles ── one task per machine ──► Sol ──► Link ──► a session of its own ──► the BMC's serial port
//!   ├─ Recorder: to disk                │ keeps alive, asks whether it still has the console
//!   └─ watchers: live, one of them types└ Link: packets, sequence numbers, again, in part (pure)
//! ```
//!
//! [`Sol`] is one console from activation to its loss; [`hub::Consoles`] has those of all machines, and takes a lost one up
//! again; [`record`] is what becomes of it on disk, [`text`] what a reader sees of that.

pub mod hub;
pub mod link;
pub mod record;
pub mod text;

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

pub use hub::{Consoles, Door};

use self::link::{Link, Received};
use super::rmcp::{Payload, Session};
use crate::error::{Error, Result};
use crate::ipmi::message::lan_response;
use crate::ipmi::payload::{
    ALREADY_ACTIVE, ActivateSol, Activated, AllowSol, DISABLED, DeactivateSol, EnableSol, GetSession, GetSolEnabled,
    GetSolHolder,
};
use crate::ipmi::{Ask, Completion, Fault, Response};

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Between two questions to the BMC whether all is well. It drops a session after 60 s without a message (section
    /// 6.12.15), `ipmi_sim` after 30 s, and what goes to and fro on the console does not count for all of them.
    pub keep_alive: Duration,
    /// Between two sendings of that question.
    pub ask_again: Duration,
    /// Before a lost console is taken up again; twice as long each time.
    pub pause: Duration,
    pub pause_max: Duration,
    /// Where trying soon cannot help: somebody else has it, the password is wrong, the BMC has no IPMI.
    pub pause_refused: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(20),
            ask_again: Duration::from_millis(1500),
            pause: Duration::from_secs(1),
            pause_max: Duration::from_secs(60),
            pause_refused: Duration::from_secs(30),
        }
    }
}

/// Sendings of the question without an answer, after which the session counts as lost.
const ASKED_MAX: u32 = 5;
/// For the commands that set the console up.
const SET_UP: Duration = Duration::from_secs(20);

/// Code of the error that says so of a console that was active.
const ENDED: &str = "console.ended";

/// What a console says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Text(Vec<u8>),
    /// Something that the reader should know and the machine did not print.
    Note(String),
    /// All that was typed has reached the BMC, or was given up.
    Taken,
}

/// What to do where somebody else has the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Leave it to them, unless it is a session of ours with this id that the BMC has not dropped yet.
    Leave {
        ours: Option<u32>,
    },
    TakeOver,
}

pub struct Sol {
    session: Session,
    link: Link,
    timing: Timing,
    /// Who has the console, as the BMC told right after it was activated; `None` where it cannot tell.
    holder: Option<u32>,
    /// Of the last packet that came.
    heard: Instant,
    /// When the next question is due.
    due: Instant,
    asked: Option<Asked>,
    reply: Option<Vec<u8>>,
    said: Vec<Said>,
    typing: bool,
    ended: bool,
}

/// The question whether all is well, on its way.
struct Asked {
    times: u32,
    again: Instant,
}

impl Sol {
    /// Activates the console in this session. The notes are what had to be changed for it.
    pub async fn open(mut session: Session, taken: Taken, timing: Timing) -> Result<(Self, Vec<String>)> {
        session.begin(Instant::now() + SET_UP);
        let mut notes = Vec::new();
        match activate(&mut session, taken, &mut notes).await {
            Ok(activated) => {
                let holder = session.ask(&GetSolHolder).await?.ok().flatten();
                let now = Instant::now();
                let link = Link::new(activated.inbound, session.id());
                let sol = Self {
                    session,
                    link,
                    timing,
                    holder,
                    heard: now,
                    due: now + timing.keep_alive,
                    asked: None,
                    reply: None,
                    said: Vec::new(),
                    typing: false,
                    ended: false,
                };
                Ok((sol, notes))
            }
            Err(e) => {
                session.close().await;
                Err(e)
            }
        }
    }

    /// The id that the BMC gave the session.
    pub fn id(&self) -> u32 {
        self.session.id()
    }

    /// As much as is given; [`Said::Taken`] tells when there is room for more.
    pub fn type_in(&mut self, text: &[u8]) {
        self.typing |= !text.is_empty();
        self.link.type_in(text);
    }

    pub fn press_break(&mut self) {
        self.typing = true;
        self.link.press_break();
    }

    /// Waits for what the console says next, and keeps it going meanwhile. The wait may be given up at any point: nothing
    /// is lost by it. An error is the loss of the console.
    pub async fn next(&mut self) -> Result<Said> {
        loop {
            if let Some(reply) = self.reply.take() {
                self.session.send(Payload::Sol, &reply).await;
            }
            if !self.said.is_empty() {
                return Ok(self.said.remove(0));
            }
            if self.ended {
                return Err(self.taken_over("the BMC has ended the console"));
            }
            let now = Instant::now();
            while let Some(packet) = self.link.next(now) {
                self.session.send(Payload::Sol, &packet).await;
            }
            let lost = self.link.given_up();
            if lost > 0 {
                self.note(format!("{lost} typed characters were not taken: is the machine on?"));
                continue;
            }
            if self.typing && self.link.is_idle() {
                self.typing = false;
                return Ok(Said::Taken);
            }
            self.keep_alive(now).await?;
            let due = self.asked.as_ref().map_or(self.due, |asked| asked.again);
            let wake = self.link.wake().map_or(due, |wake| wake.min(due));
            tokio::select! {
                (kind, payload) = self.session.receive() => match kind {
                    Payload::Sol => self.hear(&payload),
                    Payload::Message => self.hear_answer(&payload),
                },
                () = sleep_until(wake) => {}
            }
        }
    }

    fn hear(&mut self, payload: &[u8]) {
        let now = Instant::now();
        let Some(Received { text, reply, overrun, broke, ended }) = self.link.receive(now, payload) else { return };
        self.heard = now;
        self.reply = reply;
        if overrun {
            self.note("the BMC lost characters of the machine here".into());
        }
        if broke {
            self.note("the machine sent a break".into());
        }
        if !text.is_empty() {
            self.said.push(Said::Text(text));
        }
        self.ended |= ended;
    }

    fn note(&mut self, note: String) {
        self.said.push(Said::Note(note));
    }

    /// Asks who has the console, again until there is an answer.
    async fn keep_alive(&mut self, now: Instant) -> Result<()> {
        let times = match &self.asked {
            None if now < self.due => return Ok(()),
            Some(asked) if now < asked.again => return Ok(()),
            None => 1,
            Some(asked) => asked.times + 1,
        };
        if times > ASKED_MAX && now < self.heard + self.timing.keep_alive {
            // Whoever sends text is there, and has the console with us.
            self.answered(now);
            return Ok(());
        }
        if times > ASKED_MAX {
            let silent = now.duration_since(self.heard).as_secs();
            let message = format!("{} was silent for {silent} s", self.session.whose());
            let error = Error::unreachable("bmc.unreachable", message);
            return Err(match self.session.trouble() {
                Some(trouble) => error.because(trouble),
                None => error,
            });
        }
        self.session.send_request(&GetSolHolder.request()).await;
        self.asked = Some(Asked { times, again: now + self.timing.ask_again });
        Ok(())
    }

    fn hear_answer(&mut self, payload: &[u8]) {
        let (request, Some((_, response))) = (GetSolHolder.request(), lan_response(payload)) else { return };
        // Whichever sending it answers: some BMCs are slower than we ask.
        if (response.netfn, response.cmd) != (request.netfn | 1, request.cmd) {
            return;
        }
        self.heard = Instant::now();
        self.answered(self.heard);
        let holder = self.settle(&response);
        if let (Some(ours), Some(now)) = (self.holder, holder) {
            self.ended |= now != Some(ours);
        }
    }

    fn answered(&mut self, now: Instant) {
        self.asked = None;
        self.due = now + self.timing.keep_alive;
    }

    /// Who has the console; `None` where the BMC cannot tell.
    fn settle(&self, response: &Response) -> Option<Option<u32>> {
        GetSolHolder.settle(response).ok()
    }

    fn taken_over(&self, what: &str) -> Error {
        Error::conflict(ENDED, format!("{what} ({})", self.session.whose()))
            .hint("somebody else may have taken it over; it is tried again in a while")
    }

    /// Ends the console and gives the session back to the BMC.
    pub async fn close(mut self) {
        self.session.begin(Instant::now() + Duration::from_secs(2));
        if !self.ended {
            // The end of the session ends the console too, on most BMCs.
            let _ = self.session.ask(&DeactivateSol).await;
        }
        self.session.close().await;
    }
}

fn completion(fault: &Fault) -> Option<u8> {
    fault.completion().map(|Completion(code)| code)
}

async fn activate(session: &mut Session, taken: Taken, notes: &mut Vec<String>) -> Result<Activated> {
    // Each of the three steps can be in the way once, in this order on the BMCs that have them all.
    let (mut freed, mut enabled, mut allowed) = (false, false, false);
    loop {
        let fault = match session.ask(&ActivateSol).await? {
            Ok(activated) => return Ok(activated),
            Err(fault) => fault,
        };
        match completion(&fault) {
            Some(ALREADY_ACTIVE) if !freed => {
                freed = true;
                free(session, taken, notes).await?;
            }
            Some(DISABLED) if !enabled => {
                enabled = true;
                enable(session, notes).await?;
            }
            Some(DISABLED) if !allowed => {
                allowed = true;
                allow(session, notes).await?;
            }
            Some(DISABLED) => {
                let message = format!("{} does not let this user have the console", session.whose());
                return Err(Error::refused("console.disabled", message)
                    .hint("switch Serial over LAN on in the BMC's settings, for this user too"));
            }
            Some(0x83) => {
                let message = format!("{} cannot encrypt the console", session.whose());
                return Err(Error::refused("console.encryption", message).hint(
                    "update the BMC's firmware; without encryption every key typed could be read on the network",
                ));
            }
            _ => return Err(fault.into_error(session.whose())),
        }
    }
}

/// Ends the console that is active, where that is ours to do.
async fn free(session: &mut Session, taken: Taken, notes: &mut Vec<String>) -> Result<()> {
    let holder = session.ask(&GetSolHolder).await?.ok().flatten();
    // Ours is also the one of this very session: the answer to the first activation was lost.
    let own = holder.is_some_and(|id| id == session.id() || taken == Taken::Leave { ours: Some(id) });
    let who = match holder {
        Some(id) if !own => session.ask(&GetSession::Id(id)).await?.ok().flatten().and_then(|info| info.from),
        _ => None,
    };
    let who = match who {
        Some(from) => format!("somebody at {}", from.ip()),
        None => "somebody else (the BMC does not tell who)".to_owned(),
    };
    if !own && taken != Taken::TakeOver {
        return Err(Error::conflict("console.taken", format!("{who} has the console of {}", session.whose()))
            .hint("take it over with `rackline console NAME --force`; they lose it then"));
    }
    if let Err(fault) = session.ask(&DeactivateSol).await? {
        // It may have ended by itself between the two.
        tracing::debug!(bmc = session.whose(), ?fault, "the other console was not ended");
    }
    if !own {
        notes.push(format!("the console was taken over from {who}"));
    }
    Ok(())
}

async fn enable(session: &mut Session, notes: &mut Vec<String>) -> Result<()> {
    if session.ask(&GetSolEnabled).await? == Ok(true) {
        return Ok(());
    }
    session.ask(&EnableSol).await?.map_err(|fault| {
        let message = format!("Serial over LAN is switched off on {}, and could not be switched on", session.whose());
        Error::refused("console.disabled", message)
            .because(fault.into_error(session.whose()))
            .hint("switch it on in the BMC's settings, or give the BMC user the privilege Administrator")
    })?;
    notes.push("Serial over LAN was switched off in the BMC, and has been switched on".into());
    Ok(())
}

async fn allow(session: &mut Session, notes: &mut Vec<String>) -> Result<()> {
    let Ok(Some(own)) = session.ask(&GetSession::Own).await? else { return Ok(()) };
    if session.ask(&AllowSol { user: own.user }).await?.is_ok() {
        notes.push(format!("the BMC's user in slot {} was not allowed the console, and now is", own.user));
    }
    Ok(())
}
