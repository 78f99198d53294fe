//! The walk over a list of records, one piece at a time: sensor records (sections 33 and 35) and the event log (31.5).
//!
//! It has no transport: [`Walk::request`] says what to send and [`Walk::answer`] takes what came back, until there is no
//! next request. Lists change while they are read, by the BMC and by other readers, and some are damaged: a cancelled
//! reservation is taken again, a record that is gone starts the list again, a record that cannot be read is named and
//! passed over, and a list that runs in circles ends.

use std::collections::HashSet;

use super::message::{Completion, Fault, Fields, Request, Response, netfn};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The sensor records of the whole system.
    Repository,
    /// The BMC's own sensor records, on those without a repository.
    Device,
    /// The system event log.
    Log,
}

impl Source {
    /// Network function, command to reserve, command to get.
    fn commands(self) -> (u8, u8, u8) {
        match self {
            Self::Repository => (netfn::STORAGE, 0x22, 0x23),
            Self::Device => (netfn::SENSOR, 0x22, 0x21),
            Self::Log => (netfn::STORAGE, 0x42, 0x43),
        }
    }

    fn reserve_name(self) -> &'static str {
        match self {
            Self::Repository | Self::Device => "Reserve SDR Repository",
            Self::Log => "Reserve SEL",
        }
    }

    fn get_name(self) -> &'static str {
        match self {
            Self::Repository => "Get SDR",
            Self::Device => "Get Device SDR",
            Self::Log => "Get SEL Entry",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Record(Vec<u8>),
    Broken(Broken),
}

/// A record that could not be read or makes no sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub record: u16,
    pub why: String,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "record 0x{:04x}: {}", self.record, self.why)
    }
}

pub struct Walk {
    source: Source,
    /// 0 stands for none, which is enough for whole entries of the log: reserving would cancel other readers.
    reservation: Option<u16>,
    record: u16,
    /// What follows, once a piece of this record has said so.
    next: Option<u16>,
    buffer: Vec<u8>,
    /// Longest piece that this BMC returns, learnt by halving.
    piece: u8,
    asked: u8,
    /// Requests left, for BMCs that answer for ever.
    budget: u32,
    /// Cancelled reservations since the last whole record. Another reader cancels ours, and we cancel its.
    cancelled: u8,
    restarts: u8,
    /// Asked for since the last start: nothing is read twice, so no list runs in circles.
    visited: HashSet<u16>,
    /// Ids, as they stand in the records, of what was handed out.
    given: HashSet<u16>,
    done: bool,
}

const HEADER: usize = 5;
/// Length of an entry of the log (table 32-1).
pub const ENTRY: usize = 16;
const PIECE: u8 = 56;
const PIECE_MIN: u8 = 4;
const BUDGET: u32 = 20_000;
const CANCELLED_MAX: u8 = 32;
const RESTARTS_MAX: u8 = 3;
const FIRST_RECORD: u16 = 0;
const LAST_RECORD: u16 = 0xffff;
/// "The entire record".
const WHOLE: u8 = 0xff;

impl Walk {
    pub fn new(source: Source) -> Self {
        Self {
            source,
            reservation: (source == Source::Log).then_some(0),
            record: FIRST_RECORD,
            next: None,
            buffer: Vec::new(),
            piece: PIECE,
            asked: 0,
            budget: BUDGET,
            cancelled: 0,
            restarts: 0,
            visited: HashSet::from([FIRST_RECORD]),
            given: HashSet::new(),
            done: false,
        }
    }

    /// The log from this entry on, or all of it where the entry is gone.
    pub fn log_from(entry: u16) -> Self {
        Self { record: entry, visited: HashSet::from([entry]), ..Self::new(Source::Log) }
    }

    pub fn request(&mut self) -> Option<Request> {
        if self.done {
            return None;
        }
        self.budget = self.budget.checked_sub(1)?;
        let (netfn, reserve, get) = self.source.commands();
        let Some(reservation) = self.reservation else {
            return Some(Request::new(netfn, reserve, []));
        };
        let offset = self.buffer.len();
        let left = self.length().unwrap_or(HEADER).saturating_sub(offset);
        self.asked = usize::from(self.piece).min(left) as u8;
        let count = if self.source == Source::Log && usize::from(self.asked) == ENTRY { WHOLE } else { self.asked };
        let [r0, r1] = reservation.to_le_bytes();
        let [i0, i1] = self.record.to_le_bytes();
        Some(Request::new(netfn, get, [r0, r1, i0, i1, offset as u8, count]))
    }

    /// Whole length of the record: of a sensor record once its header is there.
    fn length(&self) -> Option<usize> {
        match self.source {
            Source::Log => Some(ENTRY),
            _ => self.buffer.get(HEADER - 1).map(|n| HEADER + usize::from(*n)),
        }
    }

    /// A record when this answer completes one, or says that it cannot be had.
    pub fn answer(&mut self, response: &Response) -> Result<Option<Found>, Fault> {
        if self.reservation.is_none() {
            return self.reserved(response).map(|()| None);
        }
        match response.completion {
            Completion::OK => self.piece_came(&response.data),
            Completion::RESERVATION_CANCELED if self.cancelled < CANCELLED_MAX => {
                self.cancelled += 1;
                self.reservation = None;
                self.buffer.clear();
                Ok(None)
            }
            Completion::CANNOT_RETURN_LENGTH | Completion(0xc7 | 0xc8) if self.asked > PIECE_MIN => {
                self.piece = (self.asked / 2).max(PIECE_MIN);
                // Pieces of an entry need a reservation.
                if self.source == Source::Log {
                    self.reservation = None;
                }
                Ok(None)
            }
            Completion::NOT_PRESENT => {
                self.gone();
                Ok(None)
            }
            completion => self.unreadable(completion),
        }
    }

    fn piece_came(&mut self, data: &[u8]) -> Result<Option<Found>, Fault> {
        let malformed = || Fault::Malformed { command: self.source.get_name(), data: data.to_vec() };
        let mut data = Fields(data);
        let next = data.u16().ok_or_else(malformed)?;
        let piece = data.rest();
        if piece.is_empty() {
            return Err(malformed());
        }
        self.next = Some(next);
        self.buffer.extend(piece.iter().take(usize::from(self.asked)));
        // The offset of a piece has 8 bits.
        if self.length().is_some_and(|length| length > usize::from(u8::MAX)) {
            return Ok(Some(self.broken("is longer than a record can be".to_owned())));
        }
        if self.length().is_none_or(|length| self.buffer.len() < length) {
            return Ok(None);
        }
        let record = std::mem::take(&mut self.buffer);
        let id = Fields(&record).u16();
        self.go_on();
        // After a restart the list begins with what was handed out already.
        let known = id.is_some_and(|id| !self.given.insert(id));
        Ok((!known || self.restarts == 0).then_some(Found::Record(record)))
    }

    fn go_on(&mut self) {
        let next = self.next.take().unwrap_or(LAST_RECORD);
        self.done = next == LAST_RECORD || !self.visited.insert(next);
        self.record = next;
        self.cancelled = 0;
        self.buffer.clear();
    }

    /// The first record of an empty list, or one that was removed while the list was read.
    fn gone(&mut self) {
        self.done = self.record == FIRST_RECORD || self.restarts == RESTARTS_MAX;
        self.restarts += 1;
        self.record = FIRST_RECORD;
        self.visited = HashSet::from([FIRST_RECORD]);
        self.next = None;
        self.buffer.clear();
    }

    /// One that the BMC itself cannot read: passed over, as far as the way to the next one is known.
    fn unreadable(&mut self, completion: Completion) -> Result<Option<Found>, Fault> {
        let why = completion.sentence();
        if self.next.is_none() && self.given.is_empty() {
            return Err(Fault::Refused { command: self.source.get_name(), completion, why });
        }
        let rest = if self.next.is_none() { ", and so are those behind it" } else { "" };
        Ok(Some(self.broken(format!("cannot be read ({why}){rest}"))))
    }

    fn broken(&mut self, why: String) -> Found {
        let record = Fields(&self.buffer).u16().unwrap_or(self.record);
        self.go_on();
        Found::Broken(Broken { record, why })
    }

    fn reserved(&mut self, response: &Response) -> Result<(), Fault> {
        let command = self.source.reserve_name();
        self.reservation = Some(match response.completion {
            Completion::OK => {
                Fields(&response.data).u16().ok_or_else(|| Fault::Malformed { command, data: response.data.clone() })?
            }
            // Reservations are optional.
            Completion::INVALID_COMMAND => 0,
            completion => {
                return Err(Fault::Refused { command, completion, why: completion.sentence() });
            }
        });
        Ok(())
    }
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
