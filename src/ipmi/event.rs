//! An event message (table 29-6) as a sentence for whoever stands in front of the machine. What its numbers mean stands in
//! [`super::meaning`].

use super::meaning::{
    FIRMWARE_ERRORS, FIRMWARE_PROGRESS, SPECIFIC, SUPPLY_MISMATCHES, VERSIONS, WATCHDOG_USERS, state, threshold,
};
use super::sdr::{Sensor, THRESHOLD};
use super::sensor::Level;
use super::text::hex;

/// Of an event message or a log entry (table 29-6, table 32-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Slave address of the controller or id of the software that reports it, as in [`Sensor::owner`].
    pub generator: u8,
    pub lun: u8,
    /// Sensor type.
    pub kind: u8,
    pub number: u8,
    /// Event/reading type.
    pub reading_type: u8,
    /// It began; otherwise it ended.
    pub asserted: bool,
    pub data: [u8; 3],
}

impl Event {
    pub fn is_of(&self, sensor: &Sensor) -> bool {
        sensor.owner == self.generator && sensor.number == self.number && sensor.lun == self.lun
    }

    fn offset(&self) -> u8 {
        self.data[0] & 0xf
    }

    /// Byte 2 and byte 3, where byte 1 says that they have this use: 1 a reading or threshold, 2 the maker's, 3 as the
    /// table of the sensor type has it.
    fn byte(&self, which: usize, usage: u8) -> Option<u8> {
        let shift = if which == 1 { 6 } else { 4 };
        (self.data[0] >> shift & 3 == usage).then(|| self.data.get(which).copied()).flatten()
    }

    /// How bad it is; what has ended is over.
    pub fn level(&self) -> Level {
        if !self.asserted {
            return Level::Ok;
        }
        if self.reading_type == THRESHOLD {
            return threshold(self.offset()).map_or(Level::Warning, |(level, ..)| level);
        }
        state(self.kind, self.reading_type, self.offset()).map_or(Level::Ok, |(level, _)| level)
    }

    /// `PS1 Status: power input lost`. `sensor` is its record, where there is one, `name` what the sensor goes by.
    pub fn sentence(&self, name: &str, sensor: Option<&Sensor>) -> String {
        if self.reading_type == THRESHOLD
            && let Some((_, limit, crossed)) = threshold(self.offset())
        {
            let has = if self.asserted { crossed } else { "is no longer beyond" };
            return format!("{name} {has} its {limit} limit{}", self.values(sensor));
        }
        let what = match state(self.kind, self.reading_type, self.offset()) {
            Some((_, text)) => text.to_owned(),
            None => format!("event type 0x{:02x} number {}", self.reading_type, self.offset()),
        };
        let over = if self.asserted { "" } else { ", which has ended" };
        format!("{name}: {what}{}{over}", self.details())
    }

    /// `: 12.9 V, the limit is 12.6 V`, as far as bytes 2 and 3 hold them and the record knows their scale.
    fn values(&self, sensor: Option<&Sensor>) -> String {
        let value = |raw: Option<u8>| {
            let sensor = sensor?;
            Some(format!("{} {}", sensor.scale?.value(raw?)?, sensor.unit).trim_end().to_owned())
        };
        match (value(self.byte(1, 1)), value(self.byte(2, 1))) {
            (Some(reading), Some(limit)) => format!(": {reading}, the limit is {limit}"),
            (Some(reading), None) => format!(": {reading}"),
            (None, Some(limit)) => format!(" of {limit}"),
            (None, None) => String::new(),
        }
    }

    /// What bytes 2 and 3 add.
    fn details(&self) -> String {
        let (two, three) = (self.byte(1, 3), self.byte(2, 3));
        let known = match (self.reading_type, self.kind, self.offset()) {
            (SPECIFIC, 0x0c, _) => three.map(|n| format!("module {n}")),
            (SPECIFIC, 0x0f, 0) => two.and_then(|n| named(n, FIRMWARE_ERRORS)),
            (SPECIFIC, 0x0f, _) => two.and_then(|n| named(n, FIRMWARE_PROGRESS)),
            (SPECIFIC, 0x08, 6) => three.and_then(|n| named(n & 0xf, SUPPLY_MISMATCHES)),
            (SPECIFIC, 0x10, 5) => three.map(|n| format!("{n} % full")),
            (SPECIFIC, 0x12, 5) => two.map(|n| if n & 0x80 == 0 { "before it" } else { "after it" }.to_owned()),
            (SPECIFIC, 0x21, _) => three.map(|n| format!("slot {n}")),
            (SPECIFIC, 0x23, _) => two.and_then(|n| named(n & 0xf, WATCHDOG_USERS)),
            (SPECIFIC, 0x2a, _) => two.map(|n| format!("user {}", n & 0x3f)),
            (SPECIFIC, 0x2b, _) => two.and_then(|n| named(n, VERSIONS)),
            _ => None,
        };
        if let Some(known) = known {
            return format!(" ({known})");
        }
        // The maker's code for it: of no meaning here, and the one thing that its support asks for.
        let own: Vec<u8> = [self.byte(1, 2), self.byte(2, 2)].into_iter().flatten().filter(|b| *b != 0xff).collect();
        if own.is_empty() { String::new() } else { format!(" (maker's code {})", hex(&own)) }
    }
}

fn named(n: u8, table: &[&str]) -> Option<String> {
    table.get(usize::from(n)).filter(|text| !text.is_empty()).map(|text| (*text).to_owned())
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
