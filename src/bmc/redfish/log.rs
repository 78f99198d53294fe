//! What the BMC has written down about the hardware (LogService): the system event log, where it has several logs.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::doc::{Doc, Properties};
use super::session::Session;
use crate::bmc::{Clock, Log, LogEntry, Severity};
use crate::error::Result;

impl Session {
    pub(super) async fn events(&mut self, after: Option<&str>) -> Result<Log> {
        let service = self.event_log().await?;
        let clock = self.clock(&service).await?;
        let Some(link) = service.link("Entries").map(str::to_owned) else {
            return Err(self.lacks("the entries of its event log"));
        };
        let members = self.members(&link).await?;
        let overflow = full(&service, members.len());
        let mut entries: Vec<LogEntry> = members.iter().filter_map(|doc| entry(doc)).collect();
        oldest_first(&mut entries);
        if let Some(at) = after.and_then(|after| entries.iter().position(|entry| entry.id == after)) {
            entries.drain(..=at);
        }
        Ok(Log { entries, overflow, clock })
    }

    pub(super) async fn clear_events(&mut self) -> Result<()> {
        let service = self.event_log().await?;
        let Some(clear) = service.action("#LogService.ClearLog") else {
            return Err(self.lacks("to clear its event log"));
        };
        let call = self.post(clear.target, json!({})).await?;
        self.settle(Some(call)).await
    }

    pub(super) async fn set_time(&mut self) -> Result<()> {
        let manager = self.manager().await?;
        let Some(shown) = manager.text("DateTime") else { return Err(self.lacks("to set its clock")) };
        // Both forms are allowed; what a BMC writes, it reads.
        let zone = if shown.ends_with('Z') { "Z" } else { "+00:00" };
        let reply = self.patch(&manager.path, |_| Some(json!({ "DateTime": now().replace('Z', zone) }))).await?;
        self.settle(reply).await
    }

    async fn clock(&mut self, service: &Doc) -> Result<Option<Clock>> {
        let of = |doc: &Doc| doc.text("DateTime").and_then(|text| time(&text));
        let shows = match of(service) {
            Some(shows) => Some(shows),
            None => self.manager().await.ok().as_ref().and_then(of),
        };
        Ok(shows.map(|shows| Clock { shows, ahead_seconds: shows.as_second() - Timestamp::now().as_second() }))
    }

    /// The logs of the machine and of its BMC; the one that says that it is the SEL, else the one that goes by its name,
    /// else the only one.
    async fn event_log(&mut self) -> Result<Doc> {
        let system = self.system().await?;
        let mut links: Vec<String> = system.link("LogServices").map(str::to_owned).into_iter().collect();
        if let Ok(manager) = self.manager().await {
            links.extend(manager.link("LogServices").map(str::to_owned));
        }
        let mut services = Vec::new();
        for link in links {
            if self.find(&link).await?.is_some() {
                services.extend(self.members(&link).await?);
            }
        }
        let best = services.iter().enumerate().filter_map(|(at, doc)| Some((rank(doc)?, std::cmp::Reverse(at)))).max();
        match best {
            Some((_, std::cmp::Reverse(at))) => Ok(services.swap_remove(at)),
            None => Err(self.lacks("an event log")),
        }
    }
}

/// Whole seconds of UTC.
fn now() -> String {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

/// How likely a log is the one of hardware events; `None` for one that is off or of another kind.
fn rank(service: &Value) -> Option<u8> {
    if service.flag("ServiceEnabled") == Some(false) || service.link("Entries").is_none() {
        return None;
    }
    let id = service.text("Id").unwrap_or_default().to_ascii_lowercase();
    match (service.text("LogEntryType").as_deref(), id.as_str()) {
        (Some("SEL"), _) => Some(4),
        (_, "sel") => Some(3),
        // iLO calls it the integrated management log, AMI and OpenBMC `EventLog`.
        (_, "iml" | "eventlog" | "log" | "log1" | "logs") => Some(2),
        // What the BMC did by itself: log-ins, updates, faults of its own (iDRAC `Lclog`, iLO `IEL`).
        (_, "lclog" | "iel" | "auditlog" | "journal" | "dump" | "postcodes" | "faultlist" | "sl") => None,
        _ => Some(1),
    }
}

fn full(service: &Value, entries: usize) -> bool {
    let wraps = service.text("OverWritePolicy").as_deref() == Some("WrapsWhenFull");
    let max = service.number("MaxNumberOfRecords").filter(|max| *max >= 1.0);
    !wraps && max.is_some_and(|max| entries as f64 >= max)
}

fn entry(doc: &Value) -> Option<LogEntry> {
    let text = doc.text("Message").or_else(|| doc.text("Name"))?;
    let severity = match doc.text("Severity").or_else(|| doc.text("MessageSeverity")).as_deref() {
        Some("Critical") => Severity::Critical,
        Some("Warning") => Severity::Warning,
        _ => Severity::Ok,
    };
    let sensor = doc.text("SensorType").filter(|_| doc.number("SensorNumber").is_some());
    Some(LogEntry {
        id: doc.text("Id").or_else(|| doc.text("@odata.id"))?,
        at: doc.text("EventTimestamp").or_else(|| doc.text("Created")).and_then(|text| time(&text)),
        severity,
        sensor,
        text: super::http::quote(&text),
        asserted: !doc.text("EntryCode").is_some_and(|code| code.starts_with("Deassert")),
    })
}

/// BMCs without a set clock write the year 1970.
fn time(text: &str) -> Option<Timestamp> {
    const BORN: i64 = 86_400 * 366;
    text.parse().ok().filter(|at: &Timestamp| at.as_second() > BORN)
}

/// Dell sends the newest first, most the oldest. The ids count where they are numbers, else the times, else the order is
/// left as it came.
fn oldest_first(entries: &mut [LogEntry]) {
    let numbers: Option<Vec<u64>> = entries.iter().map(|entry| entry.id.parse().ok()).collect();
    if numbers.is_some() {
        entries.sort_by_key(|entry| entry.id.parse::<u64>().unwrap_or(u64::MAX));
    } else if entries.iter().all(|entry| entry.at.is_some()) {
        entries.sort_by_key(|entry| entry.at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_as_dell_writes_it() {
        let doc = json!({"Id": "1024", "Created": "2024-06-11T00:13:00-05:00", "EntryCode": "Assert", "SensorNumber": 26,
            "SensorType": null, "Severity": "OK", "Message": "An OEM diagnostic event occurred."});
        let read = entry(&doc).unwrap();
        assert_eq!(read.at.unwrap().to_string(), "2024-06-11T05:13:00Z");
        assert_eq!((read.asserted, read.sensor, read.severity), (true, None, Severity::Ok));
        assert!(entry(&json!({"Id": "1"})).is_none());
        assert_eq!(time("1970-01-01T00:00:12Z"), None);
    }

    #[test]
    fn the_oldest_entry_is_first_by_number() {
        let of = |id: &str| entry(&json!({"Id": id, "Message": "x"})).unwrap();
        let mut entries = [of("10"), of("9"), of("1")];
        oldest_first(&mut entries);
        assert_eq!(entries.map(|entry| entry.id), ["1", "9", "10"]);
    }

    #[test]
    fn the_log_of_the_hardware_is_preferred() {
        let service =
            |id: &str, kind: Option<&str>| json!({"Id": id, "LogEntryType": kind, "Entries": {"@odata.id": "/e"}});
        let ranks = [service("Log1", Some("SEL")), service("Sel", None), service("IML", None), service("x", None)];
        assert_eq!(ranks.map(|service| rank(&service)), [Some(4), Some(3), Some(2), Some(1)]);
        assert_eq!(rank(&service("Lclog", Some("OEM"))), None);
        assert!(full(&json!({"MaxNumberOfRecords": 5, "OverWritePolicy": "NeverOverWrites"}), 5));
        assert!(!full(&json!({"MaxNumberOfRecords": 5, "OverWritePolicy": "WrapsWhenFull"}), 5));
    }
}
