//! One BMC as whoever has its turn sees it: the session, and what was learnt that makes the next command cheaper.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Settings;
use crate::bmc::act::perform;
use crate::bmc::ipmi::{Ipmi, Records};
use crate::bmc::rmcp::{Session, Suite};
use crate::bmc::{Access, Answer, Command, Protocol};
use crate::error::{Error, Result};
use crate::ipmi::app::GetDeviceId;

/// For a keep-alive: a BMC that does not answer it has a new session with the next command.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

#[derive(Default)]
pub struct Slot {
    session: Option<(Session, Access)>,
    suite: Option<Suite>,
    records: Option<Records>,
    logged_in: Option<Instant>,
    /// When the session stands to be looked after, if it is among those that are kept.
    pub kept: Option<Instant>,
    /// The next look comes before this.
    pub expected: Option<Instant>,
}

impl Slot {
    /// With a session that this access may use: the one from before where it is fresh, or a new one. Says which, `true` for
    /// the former.
    pub async fn enter(&mut self, access: &Access, settings: &Settings, deadline: Instant) -> Result<bool> {
        if let Some((session, of)) = &mut self.session
            && of == access
            && session.last_used().elapsed() < settings.idle
        {
            session.begin(deadline);
            return Ok(true);
        }
        self.close().await;
        self.open(access, settings, deadline).await?;
        Ok(false)
    }

    /// A new session, and not sooner after the last one than BMCs stand.
    pub async fn open(&mut self, access: &Access, settings: &Settings, deadline: Instant) -> Result<()> {
        self.session = None;
        if let Some(at) = self.logged_in {
            sleep_until((at + settings.log_in_gap).min(deadline)).await;
        }
        self.logged_in = Some(Instant::now());
        let opened = match access.doors.way() {
            Some((Protocol::Ipmi, address)) => {
                Session::open(access, address, settings.pace, self.suite, deadline).await
            }
            _ => Err(Error::refused("bmc.unsupported", "Redfish is not spoken by this release")
                .hint("give the BMC's IPMI address")),
        };
        // The suites of a BMC change with its settings and its firmware.
        self.suite = opened.as_ref().ok().map(Session::suite);
        self.session = Some((opened?, access.clone()));
        Ok(())
    }

    pub async fn perform(&mut self, command: &Command, settings: &Settings) -> Result<Answer> {
        let Some((session, _)) = &mut self.session else {
            return Err(Error::internal("bmc.session", "a command without a session"));
        };
        // These are allowed to anybody who is logged in (appendix G), so a look is spared the question.
        if !matches!(command, Command::PowerStatus | Command::Sensors | Command::Log { .. } | Command::Info) {
            session.raise().await?;
        }
        perform(&mut Ipmi { session, records: &mut self.records }, command, &settings.limits).await
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
        if session.ask(&GetDeviceId).await.is_err() {
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
