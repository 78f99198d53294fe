//! One BMC as whoever has its turn sees it: the session, and what was learnt that makes the next command cheaper.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Settings;
use crate::bmc::act::{Limits, perform};
use crate::bmc::ipmi::{Ipmi, Records};
use crate::bmc::redfish::{self, Known};
use crate::bmc::rmcp::{Session, Suite};
use crate::bmc::{Access, Answer, Bmc, Command, Protocol};
use crate::error::{Error, Result};
use crate::ipmi::app::GetDeviceId;

/// For a keep-alive: a BMC that does not answer it has a new session with the next command.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

#[derive(Default)]
pub struct Slot {
    session: Option<(Line, Access)>,
    suite: Option<Suite>,
    records: Option<Records>,
    logged_in: Option<Instant>,
    /// When the session stands to be looked after, if it is among those that are kept.
    pub kept: Option<Instant>,
    /// The next look comes before this.
    pub expected: Option<Instant>,
}

/// A session by either protocol.
enum Line {
    Ipmi(Box<Session>),
    Redfish(Box<redfish::Session>),
}

impl Line {
    fn last_used(&self) -> Instant {
        match self {
            Line::Ipmi(session) => session.last_used(),
            Line::Redfish(session) => session.last_used(),
        }
    }

    fn begin(&mut self, deadline: Instant) {
        match self {
            Line::Ipmi(session) => session.begin(deadline),
            Line::Redfish(session) => session.begin(deadline),
        }
    }

    fn heard(&self) -> bool {
        match self {
            Line::Ipmi(session) => session.heard(),
            Line::Redfish(session) => session.heard(),
        }
    }

    async fn close(self) {
        match self {
            Line::Ipmi(session) => session.close().await,
            Line::Redfish(session) => session.close().await,
        }
    }
}

impl Slot {
    /// With a session that this access may use: the one from before where it is fresh, or a new one. Says which, `true` for
    /// the former.
    pub async fn enter(
        &mut self,
        access: &Access,
        settings: &Settings,
        known: &Known,
        deadline: Instant,
    ) -> Result<bool> {
        if let Some((session, of)) = &mut self.session
            && of.enters_like(access)
            && session.last_used().elapsed() < settings.idle
        {
            session.begin(deadline);
            if let Line::Redfish(session) = session {
                session.turn_to(&access.machine);
            }
            of.machine.clone_from(&access.machine);
            return Ok(true);
        }
        self.close().await;
        self.open(access, settings, known, deadline).await?;
        Ok(false)
    }

    /// A new session, and not sooner after the last one than BMCs stand.
    pub async fn open(&mut self, access: &Access, settings: &Settings, known: &Known, deadline: Instant) -> Result<()> {
        self.session = None;
        self.wait_to_log_in(settings, deadline).await;
        let line = match access.doors.way() {
            Some((Protocol::Ipmi, address)) => {
                Line::Ipmi(Box::new(self.open_ipmi(access, address, settings, deadline).await?))
            }
            Some((Protocol::Redfish, address)) => {
                let session = open_redfish(access, address, known, deadline).await?;
                Line::Redfish(Box::new(session))
            }
            None => return Err(Error::config("bmc.unknown", "a BMC has no address")),
        };
        self.session = Some((line, access.clone()));
        Ok(())
    }

    /// A session besides, of whoever wants it for long, with the highest privilege.
    pub async fn beside(
        &mut self,
        access: &Access,
        address: SocketAddr,
        settings: &Settings,
        deadline: Instant,
    ) -> Result<Session> {
        self.wait_to_log_in(settings, deadline).await;
        let mut session = self.open_ipmi(access, address, settings, deadline).await?;
        session.raise().await?;
        Ok(session)
    }

    async fn open_ipmi(
        &mut self,
        access: &Access,
        address: SocketAddr,
        settings: &Settings,
        deadline: Instant,
    ) -> Result<Session> {
        let opened = Session::open(access, address, settings.pace, self.suite, deadline).await;
        // The suites of a BMC change with its settings and its firmware.
        self.suite = opened.as_ref().ok().map(Session::suite);
        opened
    }

    async fn wait_to_log_in(&mut self, settings: &Settings, deadline: Instant) {
        if let Some(at) = self.logged_in {
            sleep_until((at + settings.log_in_gap).min(deadline)).await;
        }
        self.logged_in = Some(Instant::now());
    }

    pub async fn perform(&mut self, command: &Command, limits: &Limits) -> Result<Answer> {
        match &mut self.session {
            Some((Line::Ipmi(session), _)) => {
                // These are allowed to anybody who is logged in (appendix G), so a look is spared the question.
                if !matches!(command, Command::PowerStatus | Command::Sensors | Command::Log { .. } | Command::Info) {
                    session.raise().await?;
                }
                perform(&mut Ipmi { session, records: &mut self.records }, command, limits).await
            }
            Some((Line::Redfish(session), _)) => perform(session.as_mut(), command, limits).await,
            None => Err(Error::internal("bmc.session", "a command without a session")),
        }
    }

    /// Whether the BMC has answered since the command began.
    pub fn heard(&self) -> bool {
        self.session.as_ref().is_some_and(|(session, _)| session.heard())
    }

    /// `None` where there is no session.
    pub fn last_used(&self) -> Option<Instant> {
        self.session.as_ref().map(|(session, _)| session.last_used())
    }

    pub async fn keep_alive(&mut self) {
        let Some((session, _)) = &mut self.session else { return };
        session.begin(Instant::now() + KEEP_ALIVE);
        let alive = match session {
            Line::Ipmi(session) => session.ask(&GetDeviceId).await.is_ok(),
            Line::Redfish(session) => session.chassis().await.is_ok(),
        };
        if !alive {
            self.session = None;
        }
    }

    /// Whatever state the session is in, the next command starts with a new one.
    pub fn drop_session(&mut self) {
        self.session = None;
    }

    pub async fn close(&mut self) {
        if let Some((session, _)) = self.session.take() {
            session.close().await;
        }
    }
}

/// With the certificate that this BMC had before, or, where a person has said that it is gone, with the one it has now.
async fn open_redfish(
    access: &Access,
    address: SocketAddr,
    known: &Known,
    deadline: Instant,
) -> Result<redfish::Session> {
    let mut opened = redfish::Session::open(access, address, known.trust(address), deadline).await;
    if let Err(refused) = &opened
        && refused.code() == "bmc.certificate"
        && known.was_removed(address)
    {
        opened = redfish::Session::open(access, address, known.trust(address), deadline).await;
    }
    let session = opened.map_err(|error| match error.code() {
        "bmc.certificate" => known.explain(error, address),
        _ => error,
    })?;
    if let Some(certificate) = session.certificate() {
        known.learn(address, certificate);
    }
    Ok(session)
}
