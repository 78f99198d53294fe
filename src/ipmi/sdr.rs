//! Sensor data records: what they say of sensors and of devices with an inventory (section 43). [`super::records`] reads them.
//!
//! `ipmi-rs-core` 0.6 has a parser too, but it indexes past the end of short records, panics on reserved bits and knows
//! linear sensors only; records come from outside, so they are read here with every length checked.

use super::message::{Ask, Fields, Request, netfn};
use super::text::{bcd_plus, latin, packed_ascii, printable};

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

/// A sensor as its record describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensor {
    /// Slave address of the controller that owns it, or the id of the software that reports it (section 43.1); 0x20 is
    /// the BMC itself.
    pub owner: u8,
    pub lun: u8,
    pub number: u8,
    pub name: String,
    /// What it belongs to (table 43-13), and which of them.
    pub entity: u8,
    pub instance: u8,
    /// Sensor type (table 42-3).
    pub kind: u8,
    /// Event/reading type (table 42-1): 1 for thresholds, otherwise states.
    pub reading_type: u8,
    /// It has no reading and only makes events.
    pub event_only: bool,
    /// Thresholds that can be read, one bit each as in Get Sensor Thresholds.
    pub thresholds: u8,
    pub unit: &'static str,
    /// `None` where the raw byte is not a number.
    pub scale: Option<Scale>,
}

impl Sensor {
    /// Has thresholds; the others have states.
    pub fn has_thresholds(&self) -> bool {
        self.reading_type == THRESHOLD
    }
}

/// A device of the BMC that keeps an inventory (section 43.8): its FRU device id and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FruDevice {
    pub id: u8,
    pub name: String,
}

/// What one record says.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// One sensor of a full record, up to 15 of a compact or an event-only one.
    Sensors(Vec<Sensor>),
    Fru(FruDevice),
    /// Of a type that says nothing here: other controllers, associations, makers' own.
    Other,
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

const HEADER: usize = 5;
const FULL: u8 = 0x01;
const COMPACT: u8 = 0x02;
const EVENT_ONLY: u8 = 0x03;
const FRU_LOCATOR: u8 = 0x11;
/// Event/reading type of sensors with thresholds.
pub const THRESHOLD: u8 = 0x01;
/// Slave address of the BMC itself.
pub const BMC: u8 = 0x20;

/// Reads one record; the error says what is wrong with it, as a part of a sentence.
pub fn parse(record: &[u8]) -> Result<Record, &'static str> {
    let (head, body) = record.split_at_checked(HEADER).ok_or("has no whole header")?;
    let body = Fields(body);
    match head.get(3).copied() {
        Some(FULL) => {
            full(body).map(|sensor| Record::Sensors(vec![sensor])).ok_or("is too short for a full sensor record")
        }
        Some(COMPACT) => compact(body).map(Record::Sensors).ok_or("is too short for a compact sensor record"),
        Some(EVENT_ONLY) => event_only(body).map(Record::Sensors).ok_or("is too short for an event-only sensor record"),
        Some(FRU_LOCATOR) => fru_locator(body).ok_or("is too short for a FRU device locator"),
        _ => Ok(Record::Other),
    }
}

/// The 18 bytes that full and compact records share; the name comes later in each.
fn common(fields: &mut Fields<'_>) -> Option<(Sensor, u8)> {
    let (owner, owner_lun, number) = (fields.u8()?, fields.u8()?, fields.u8()?);
    let [entity, instance, _init, capabilities, kind, reading_type] = fields.array()?;
    let [_, _, _, _, readable, _settable] = fields.array()?;
    let [units, base_unit, _modifier] = fields.array()?;
    let has_readable = matches!(capabilities >> 2 & 3, 1 | 2);
    let sensor = Sensor {
        owner,
        lun: owner_lun & 3,
        number,
        name: String::new(),
        entity,
        instance: instance & 0x7f,
        kind,
        reading_type: reading_type & 0x7f,
        event_only: false,
        thresholds: if has_readable && reading_type == THRESHOLD { readable & 0x3f } else { 0 },
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

/// Type 02h (section 43.2).
fn compact(mut fields: Fields<'_>) -> Option<Vec<Sensor>> {
    let (sensor, _) = common(&mut fields)?;
    let sharing = fields.array()?;
    let _hysteresis_reserved_oem = fields.take(6)?;
    shared(Sensor { name: name(&mut fields)?, ..sensor }, sharing)
}

/// Type 03h (section 43.3).
fn event_only(mut fields: Fields<'_>) -> Option<Vec<Sensor>> {
    let (owner, owner_lun, number) = (fields.u8()?, fields.u8()?, fields.u8()?);
    let [entity, instance, kind, reading_type] = fields.array()?;
    let sharing = fields.array()?;
    let _reserved_oem = fields.take(2)?;
    let sensor = Sensor {
        owner,
        lun: owner_lun & 3,
        number,
        name: name(&mut fields)?,
        entity,
        instance: instance & 0x7f,
        kind,
        reading_type: reading_type & 0x7f,
        event_only: true,
        thresholds: 0,
        unit: "",
        scale: None,
    };
    shared(sensor, sharing)
}

/// Like sensors share a record, numbered on, with a number or letter after the name.
fn shared(sensor: Sensor, [sharing, offset]: [u8; 2]) -> Option<Vec<Sensor>> {
    let count = (sharing & 0xf).max(1);
    let same_instance = offset & 0x80 == 0;
    let offset = offset & 0x7f;
    let each = (0..count).filter_map(|i| {
        let tag = match (count, sharing >> 4 & 3) {
            (1, _) => String::new(),
            (_, 1) => char::from(b'A' + (offset + i) % 26).to_string(),
            _ => (offset + i).to_string(),
        };
        Some(Sensor {
            number: sensor.number.checked_add(i)?,
            name: format!("{}{tag}", sensor.name),
            instance: if same_instance { sensor.instance } else { sensor.instance.saturating_add(i) },
            ..sensor.clone()
        })
    });
    Some(each.collect())
}

/// Type 11h (section 43.8): logical FRU devices of the BMC; the others are memory chips on its private buses.
fn fru_locator(mut fields: Fields<'_>) -> Option<Record> {
    let (controller, id, bus) = (fields.u8()?, fields.u8()?, fields.u8()?);
    let _channel_types_entity_oem = fields.take(7)?;
    let name = name(&mut fields)?;
    Some(match (controller, bus & 0x80) {
        (BMC, 0x80) => Record::Fru(FruDevice { id, name }),
        _ => Record::Other,
    })
}

/// Type/length byte and string (section 43.15).
fn name(fields: &mut Fields<'_>) -> Option<String> {
    let type_length = fields.u8()?;
    let bytes = fields.0.get(..usize::from(type_length & 0x1f)).unwrap_or(fields.0);
    Some(printable(&match type_length >> 6 {
        1 => bcd_plus(bytes),
        2 => packed_ascii(bytes),
        _ => latin(bytes),
    }))
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

#[cfg(test)]
#[path = "sdr_tests.rs"]
mod tests;
