//! Sensor data records: reading them in pieces under a reservation (sections 33 and 35), and what they say (section 43).
//!
//! `ipmi-rs-core` 0.6 has a parser too, but it indexes past the end of short records, panics on reserved bits and knows
//! linear sensors only; records come from outside, so they are read here with every length checked.

use super::message::{Ask, Completion, Fault, Fields, Request, Response, netfn};

/// Get SDR Repository Info (33.9).
pub struct GetRepositoryInfo;

/// Times of the last change, as the BMC counts them: a new value means that the records must be read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepositoryInfo {
    pub records: u16,
    pub added: u32,
    pub erased: u32,
}

impl Ask for GetRepositoryInfo {
    const NAME: &'static str = "Get SDR Repository Info";
    type Answer = RepositoryInfo;

    fn request(&self) -> Request {
        Request::new(netfn::STORAGE, 0x20, [])
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<RepositoryInfo> {
        let (_version, records, _free) = (data.u8()?, data.u16()?, data.u16()?);
        Some(RepositoryInfo { records, added: data.u32()?, erased: data.u32()? })
    }
}

/// Where the records are: the repository, or the device's own list on BMCs without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Repository,
    Device,
}

/// Reads all records one piece at a time. It has no transport: [`Walk::request`] says what to send and
/// [`Walk::answer`] takes what came back, until there is no next request.
pub struct Walk {
    source: Source,
    reservation: Option<u16>,
    record: u16,
    buffer: Vec<u8>,
    /// Longest piece that this BMC returns, learnt by halving.
    piece: u8,
    asked: u8,
    /// Requests left: ends the walk over a list that runs in circles.
    budget: u16,
    /// Cancelled reservations since the last whole record. Another reader cancels ours, and we cancel its.
    cancelled: u8,
    done: bool,
}

const HEADER: usize = 5;
const PIECE: u8 = 56;
const PIECE_MIN: u8 = 4;
const BUDGET: u16 = 8192;
const CANCELLED_MAX: u8 = 32;
const LAST_RECORD: u16 = 0xffff;

impl Walk {
    pub fn new(source: Source) -> Self {
        Self {
            source,
            reservation: None,
            record: 0,
            buffer: Vec::new(),
            piece: PIECE,
            asked: 0,
            budget: BUDGET,
            cancelled: 0,
            done: false,
        }
    }

    pub fn request(&mut self) -> Option<Request> {
        if self.done {
            return None;
        }
        self.budget = self.budget.checked_sub(1)?;
        let (netfn, reserve, get) = match self.source {
            Source::Repository => (netfn::STORAGE, 0x22, 0x23),
            Source::Device => (netfn::SENSOR, 0x22, 0x21),
        };
        let Some(reservation) = self.reservation else {
            return Some(Request::new(netfn, reserve, []));
        };
        let offset = self.buffer.len();
        let left = self.length().unwrap_or(HEADER).saturating_sub(offset);
        self.asked = (self.piece as usize).min(left) as u8;
        let [r0, r1] = reservation.to_le_bytes();
        let [i0, i1] = self.record.to_le_bytes();
        Some(Request::new(netfn, get, [r0, r1, i0, i1, offset as u8, self.asked]))
    }

    /// Whole length of the record, once its header is there.
    fn length(&self) -> Option<usize> {
        self.buffer.get(HEADER - 1).map(|n| HEADER + *n as usize)
    }

    /// A record when this answer completes one.
    pub fn answer(&mut self, response: &Response) -> Result<Option<Vec<u8>>, Fault> {
        if self.reservation.is_none() {
            return self.reserved(response).map(|()| None);
        }
        match response.completion {
            Completion::OK => {}
            Completion::RESERVATION_CANCELED if self.cancelled < CANCELLED_MAX => {
                self.cancelled += 1;
                self.reservation = None;
                self.buffer.clear();
                return Ok(None);
            }
            Completion::CANNOT_RETURN_LENGTH | Completion(0xc7 | 0xc8) if self.asked > PIECE_MIN => {
                self.piece = (self.asked / 2).max(PIECE_MIN);
                return Ok(None);
            }
            // An empty repository, or a record that was removed while it was read.
            Completion::NOT_PRESENT => {
                self.done = true;
                return Ok(None);
            }
            completion => {
                return Err(Fault::Refused { command: "Get SDR", completion, why: completion.sentence() });
            }
        }
        let malformed = || Fault::Malformed { command: "Get SDR", data: response.data.clone() };
        let mut data = Fields(&response.data);
        let next = data.u16().ok_or_else(malformed)?;
        let piece = data.rest();
        if piece.is_empty() {
            return Err(malformed());
        }
        self.buffer.extend(piece.iter().take(self.asked as usize));
        // The offset of a piece has 8 bits.
        if self.length().is_some_and(|length| length > usize::from(u8::MAX)) {
            return Err(malformed());
        }
        if self.length().is_none_or(|length| self.buffer.len() < length) {
            return Ok(None);
        }
        self.done = next == LAST_RECORD || next == self.record;
        self.record = next;
        self.cancelled = 0;
        Ok(Some(std::mem::take(&mut self.buffer)))
    }

    fn reserved(&mut self, response: &Response) -> Result<(), Fault> {
        self.reservation = Some(match response.completion {
            Completion::OK => Fields(&response.data)
                .u16()
                .ok_or_else(|| Fault::Malformed { command: "Reserve SDR Repository", data: response.data.clone() })?,
            // Reservations are optional; 0 stands for none.
            Completion::INVALID_COMMAND => 0,
            completion => {
                let why = completion.sentence();
                return Err(Fault::Refused { command: "Reserve SDR Repository", completion, why });
            }
        });
        Ok(())
    }
}

/// A sensor as its record describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensor {
    /// Slave address of the controller that owns it; 0x20 is the BMC itself.
    pub owner: u8,
    pub lun: u8,
    pub number: u8,
    pub name: String,
    /// Sensor type (table 42-3).
    pub kind: u8,
    /// Has thresholds; the others have states.
    pub threshold: bool,
    pub unit: &'static str,
    /// `None` where the raw byte is not a number.
    pub scale: Option<Scale>,
}

/// From the raw byte to the value (section 36.3).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    format: Format,
    linearization: u8,
    m: i16,
    b: i16,
    b_exponent: i8,
    r_exponent: i8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Unsigned,
    OnesComplement,
    TwosComplement,
}

const FULL: u8 = 0x01;
const COMPACT: u8 = 0x02;

/// The sensors of one record: one of a full record, up to 15 of a compact one, none of any other or a damaged one.
pub fn sensors(record: &[u8]) -> Vec<Sensor> {
    let Some((head, body)) = record.split_at_checked(HEADER) else { return Vec::new() };
    let body = Fields(body);
    match head.get(3) {
        Some(&FULL) => full(body).into_iter().collect(),
        Some(&COMPACT) => compact(body).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// The 18 bytes that full and compact records share; the name comes later in each.
fn common(fields: &mut Fields<'_>) -> Option<(Sensor, u8)> {
    let (owner, owner_lun, number) = (fields.u8()?, fields.u8()?, fields.u8()?);
    let [_entity, _instance, _init, _caps, kind, reading_type] = fields.array()?;
    let _masks = fields.take(6)?;
    let [units, base_unit, _modifier] = fields.array()?;
    let sensor = Sensor {
        owner,
        lun: owner_lun & 3,
        number,
        name: String::new(),
        kind,
        threshold: reading_type == 0x01,
        unit: if units & 1 == 1 { "%" } else { unit(base_unit) },
        scale: None,
    };
    Some((sensor, units))
}

/// Type 01h (section 43.1).
fn full(mut fields: Fields<'_>) -> Option<Sensor> {
    let (mut sensor, units) = common(&mut fields)?;
    let [linearization, m, m_high, b, b_high, _accuracy, exponents] = fields.array()?;
    let format = match units >> 6 {
        0 => Some(Format::Unsigned),
        1 => Some(Format::OnesComplement),
        2 => Some(Format::TwosComplement),
        _ => None,
    };
    sensor.scale = format.map(|format| Scale {
        format,
        linearization: linearization & 0x7f,
        m: ten_bits(m, m_high),
        b: ten_bits(b, b_high),
        b_exponent: four_bits(exponents),
        r_exponent: four_bits(exponents >> 4),
    });
    // Analog flags, nominal and normal range, sensor range, six thresholds, hysteresis, reserved, OEM.
    let _ranges = fields.take(17)?;
    sensor.name = name(&mut fields)?;
    Some(sensor)
}

/// Type 02h (section 43.2): like sensors share a record, numbered on, with a number or letter after the name.
fn compact(mut fields: Fields<'_>) -> Option<Vec<Sensor>> {
    let (sensor, _) = common(&mut fields)?;
    let [sharing, offset] = fields.array()?;
    let _rest = fields.take(6)?;
    let name = name(&mut fields)?;
    let count = (sharing & 0xf).max(1);
    let offset = offset & 0x7f;
    let each = (0..count).filter_map(|i| {
        let tag = match (count, sharing >> 4 & 3) {
            (1, _) => String::new(),
            (_, 1) => char::from(b'A' + (offset + i) % 26).to_string(),
            _ => (offset + i).to_string(),
        };
        Some(Sensor { number: sensor.number.checked_add(i)?, name: format!("{name}{tag}"), ..sensor.clone() })
    });
    Some(each.collect())
}

/// Type/length byte and string (section 43.15). What is not printable becomes `?`: names end in terminals and logs.
fn name(fields: &mut Fields<'_>) -> Option<String> {
    let type_length = fields.u8()?;
    let bytes = fields.0.get(..(type_length & 0x1f) as usize).unwrap_or(fields.0);
    let text: String = match type_length >> 6 {
        1 => {
            bytes.iter().flat_map(|b| [b >> 4, b & 0xf]).map(|n| char::from(b"0123456789 -.:,_"[n as usize])).collect()
        }
        2 => packed_ascii(bytes),
        _ => bytes.iter().map(|b| char::from(*b)).collect(),
    };
    let text: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    Some(text.trim().to_owned())
}

/// 6-bit ASCII, least significant bits first, from the space on (section 43.16).
fn packed_ascii(bytes: &[u8]) -> String {
    let bits = |i: usize| bytes.get(i / 8).is_some_and(|b| b >> (i % 8) & 1 == 1);
    (0..bytes.len() * 8 / 6)
        .map(|c| char::from(0x20 + (0..6).map(|i| u8::from(bits(c * 6 + i)) << i).sum::<u8>()))
        .collect()
}

/// Two's complement of 10 bits, the upper two at the top of the second byte.
fn ten_bits(low: u8, high: u8) -> i16 {
    (i16::from(high >> 6) << 14 | i16::from(low) << 6) >> 6
}

fn four_bits(nibble: u8) -> i8 {
    (nibble << 4) as i8 >> 4
}

impl Scale {
    /// `None` for non-linear sensors, whose factors change with the reading, and for results that are not finite.
    pub fn value(&self, raw: u8) -> Option<f64> {
        let x = match self.format {
            Format::Unsigned => f64::from(raw),
            Format::TwosComplement => f64::from(raw as i8),
            Format::OnesComplement if raw & 0x80 != 0 => -f64::from(!raw),
            Format::OnesComplement => f64::from(raw),
        };
        let b = f64::from(self.b) * 10f64.powi(self.b_exponent.into());
        let y = (f64::from(self.m) * x + b) * 10f64.powi(self.r_exponent.into());
        let value = match self.linearization {
            0 => y,
            1 => y.ln(),
            2 => y.log10(),
            3 => y.log2(),
            4 => y.exp(),
            5 => 10f64.powf(y),
            6 => y.exp2(),
            7 => y.recip(),
            8 => y.powi(2),
            9 => y.powi(3),
            10 => y.sqrt(),
            11 => y.cbrt(),
            _ => return None,
        };
        // The byte and its factors carry no more than six digits; the rest is noise of binary fractions.
        let value = (value * 1e6).round() / 1e6;
        value.is_finite().then_some(value)
    }
}

/// Base units that servers use (table 43-15).
fn unit(code: u8) -> &'static str {
    match code {
        1 => "°C",
        2 => "°F",
        3 => "K",
        4 => "V",
        5 => "A",
        6 => "W",
        7 => "J",
        9 => "VA",
        14 => "kPa",
        17 => "CFM",
        18 => "RPM",
        19 => "Hz",
        20 => "µs",
        21 => "ms",
        22 => "s",
        23 => "min",
        24 => "h",
        25 => "d",
        70 => "B",
        71 => "KB",
        72 => "MB",
        73 => "GB",
        _ => "",
    }
}

/// Sensor types that servers have (table 42-3).
pub fn kind_name(kind: u8) -> &'static str {
    match kind {
        0x01 => "temperature",
        0x02 => "voltage",
        0x03 => "current",
        0x04 => "fan",
        0x05 => "intrusion",
        0x06 => "security",
        0x07 => "processor",
        0x08 => "power supply",
        0x09 => "power unit",
        0x0a => "cooling",
        0x0b => "other",
        0x0c => "memory",
        0x0d => "drive bay",
        0x0f => "firmware progress",
        0x10 => "event log",
        0x11 | 0x23 => "watchdog",
        0x12 => "system event",
        0x13 => "critical interrupt",
        0x14 => "button",
        0x15 => "board",
        0x17 => "add-in card",
        0x18 => "chassis",
        0x1b => "cable",
        0x1d => "boot",
        0x1e => "boot error",
        0x1f => "OS boot",
        0x20 => "OS stop",
        0x21 => "slot",
        0x22 => "ACPI power state",
        0x25 => "presence",
        0x27 => "LAN",
        0x28 => "management subsystem",
        0x29 => "battery",
        0x2b => "version change",
        0xc0..=0xff => "OEM",
        _ => "unknown",
    }
}

#[cfg(test)]
#[path = "sdr_tests.rs"]
mod tests;
