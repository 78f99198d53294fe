//! The system event log: read, cleared, its clock.

use super::super::rmcp::Repeat;
use super::Ipmi;
use crate::bmc::{Clock, Log, LogEntry, Severity};
use crate::error::{Error, Kind, Result};
use crate::ipmi::event::Event;
use crate::ipmi::meaning::kind_name;
use crate::ipmi::records::{Found, Source, Walk};
use crate::ipmi::sel::{Clear, Entry, GetInfo, GetTime, Reserve, SetTime, What, When};
use crate::ipmi::sensor::Level;

/// Looks at a log that is being erased. Some BMCs need half a minute for it.
const ERASED: std::time::Duration = std::time::Duration::from_millis(500);

impl Ipmi<'_> {
    pub(super) async fn read_log(&mut self, after: Option<&str>) -> Result<Log> {
        // Without the names of sensors a log is still a log.
        if let Err(e) = self.read_records_lately().await {
            if e.kind() == Kind::Unreachable {
                return Err(e);
            }
            tracing::warn!(bmc = self.session.whose(), error = ?e, "the log is read without the names of sensors");
        }
        let info = self.ask(&GetInfo).await?;
        let clock = self.read_clock().await?;
        // Ids start anew in a log that was erased: those of before mean nothing then.
        let same = self
            .records
            .as_mut()
            .is_some_and(|records| records.log_erased.replace(info.erased).is_none_or(|erased| erased == info.erased));
        let after = after.filter(|_| same).and_then(id);
        let entries = if info.entries == 0 { Vec::new() } else { self.entries(after).await? };
        Ok(Log { entries, overflow: info.overflow, clock })
    }

    pub(super) async fn read_clock(&mut self) -> Result<Option<Clock>> {
        let Ok(seconds) = self.session.ask(&GetTime).await? else { return Ok(None) };
        let shows = jiff::Timestamp::from_second(seconds.into()).ok();
        let now = jiff::Timestamp::now().as_second();
        Ok(shows.map(|shows| Clock { shows, ahead_seconds: shows.as_second() - now }))
    }

    /// Those after this id; all, where it is not there any more.
    async fn entries(&mut self, after: Option<u16>) -> Result<Vec<LogEntry>> {
        let mut entries = Vec::new();
        let mut walk = after.map_or_else(|| Walk::new(Source::Log), Walk::log_from);
        while let Some(request) = walk.request() {
            let response = self.session.exchange(&request, Repeat::Soon).await?;
            match walk.answer(&response).map_err(|fault| fault.into_error(self.session.whose()))? {
                None => {}
                Some(Found::Record(bytes)) => match Entry::parse(&bytes) {
                    Some(entry) if Some(entry.id) == after && entries.is_empty() => {}
                    Some(entry) => entries.push(self.entry(&entry)),
                    None => tracing::warn!(
                        bmc = self.session.whose(),
                        "a log entry of unknown type is left out: {}",
                        crate::ipmi::text::hex(&bytes)
                    ),
                },
                Some(Found::Broken(broken)) => {
                    tracing::warn!(bmc = self.session.whose(), "a log entry is left out: {broken}");
                }
            }
        }
        Ok(entries)
    }

    fn entry(&self, entry: &Entry) -> LogEntry {
        let known = |event: &Event| self.records.as_ref().and_then(|records| records.sensor_of(event));
        let event = match &entry.what {
            What::Event { event, .. } => Some(event),
            _ => None,
        };
        let name = event.map(|event| known(event).map_or_else(|| unnamed(event), |(_, name)| name.to_owned()));
        let sensor = event.and_then(known).map(|(sensor, _)| sensor);
        LogEntry {
            id: entry.id.to_string(),
            at: match entry.when() {
                When::At(seconds) => jiff::Timestamp::from_second(seconds.into()).ok(),
                When::SinceStart(_) | When::Unknown => None,
            },
            severity: match entry.level() {
                Level::Ok => Severity::Ok,
                Level::Warning => Severity::Warning,
                Level::Critical | Level::Fatal => Severity::Critical,
            },
            text: entry.sentence(name.as_deref().unwrap_or_default(), sensor),
            sensor: name,
            asserted: event.is_none_or(|event| event.asserted),
        }
    }

    /// The reservation is lost when an entry comes after it, and then nothing is cleared.
    pub(super) async fn erase_log(&mut self, last: &str) -> Result<()> {
        let whose = self.session.whose().to_owned();
        let last = id(last).ok_or_else(|| {
            Error::input("bmc.log-id", format!("{last:?} is not the id of a log entry")).hint("an IPMI log has numbers")
        })?;
        let reservation = self.ask(&Reserve).await?;
        let newer = self.entries(Some(last)).await?;
        if let Some(entry) = newer.first() {
            return Err(Error::conflict("bmc.log-newer", format!("{whose} has written entry {} meanwhile", entry.id))
                .hint("read and save the log again, then clear it"));
        }
        let mut erased = self.ask(&Clear { reservation, start: true }).await?;
        while !erased {
            tokio::time::sleep(ERASED).await;
            erased = self.ask(&Clear { reservation, start: false }).await?;
        }
        Ok(())
    }

    pub(super) async fn write_clock(&mut self) -> Result<()> {
        let now = jiff::Timestamp::now().as_second();
        let seconds = u32::try_from(now)
            .map_err(|_| Error::internal("bmc.clock", "the appliance's clock shows a time that IPMI cannot carry"))?;
        self.ask(&SetTime(seconds)).await
    }
}

/// 0 and 0xffff stand for the first and the last entry.
fn id(word: &str) -> Option<u16> {
    word.parse().ok().filter(|id| (1..0xffff).contains(id))
}

/// A sensor without a record: by its type and its number; software that reports has numbers of its own (table 5-4).
fn unnamed(event: &Event) -> String {
    let software = match event.generator {
        generator if generator & 1 == 0 => None,
        0x01..=0x1f => Some("BIOS"),
        0x21..=0x3f => Some("SMI handler"),
        0x41..=0x5f => Some("operating system"),
        _ => None,
    };
    match software {
        Some(software) if event.number == 0 => software.to_owned(),
        Some(software) => format!("{software}, {} 0x{:02x}", kind_name(event.kind), event.number),
        None => format!("{} 0x{:02x}", kind_name(event.kind), event.number),
    }
}
