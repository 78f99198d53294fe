//! The event log: what a BMC writes down, in a ring.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::document::resource;

const MAX_RECORDS: usize = 512;

#[derive(Default)]
pub struct Log {
    entries: VecDeque<Entry>,
    last: u64,
}

struct Entry {
    id: u64,
    created: String,
    severity: &'static str,
    message: String,
}

impl Log {
    /// `severity` is one of `OK`, `Warning`, `Critical`; `offset` says by how many seconds the clock is wrong.
    pub fn add(&mut self, offset: i64, severity: &'static str, message: &str) {
        if self.entries.len() == MAX_RECORDS {
            self.entries.pop_front();
        }
        self.last += 1;
        let created = time(offset);
        self.entries.push_back(Entry { id: self.last, created, severity, message: message.to_owned() });
    }

    pub fn clear(&mut self) {
        self.entries.clear();
    }

    pub fn max_records() -> usize {
        MAX_RECORDS
    }

    pub fn documents(&self, path: &str) -> Vec<Value> {
        self.entries.iter().map(|entry| entry.document(path)).collect()
    }

    pub fn document(&self, path: &str, id: &str) -> Option<Value> {
        self.entries.iter().find(|e| e.id.to_string() == id).map(|e| e.document(path))
    }
}

impl Entry {
    fn document(&self, path: &str) -> Value {
        let body = json!({
            "EntryType": "Event",
            "Severity": self.severity,
            "Created": self.created,
            "Message": self.message,
            "MessageId": "Labworks.1.0.Event",
            "MessageArgs": [],
        });
        let name = format!("Log Entry {}", self.id);
        resource(&format!("{path}/{}", self.id), "#LogEntry.v1_17_0.LogEntry", &name, body)
    }
}

/// The time as a clock shows it that is wrong by so many seconds.
pub fn time(offset: i64) -> String {
    let now = Timestamp::now();
    let shown = now.checked_add(SignedDuration::from_secs(offset)).unwrap_or(now);
    shown.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
