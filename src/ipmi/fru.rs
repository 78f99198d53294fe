//! FRU inventories: makers, models, serial and part numbers of the parts of a server (IPMI sections 34.1 and 34.2, Platform
//! Management FRU Information Storage Definition v1.3).
//!
//! [`needed`] says how much of the storage has to be read, and [`parse`] reads it. An area whose checksum or length is
//! wrong is named and left out, and the others are read.

use super::message::{Ask, Fields, Request, netfn};
use super::text::{bcd_plus, hex, latin, packed_ascii, printable};

/// Get FRU Inventory Area Info (34.1), by FRU device id.
pub struct GetArea(pub u8);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    pub bytes: u16,
    /// Offsets and counts are in words of two bytes.
    pub by_words: bool,
}

impl Ask for GetArea {
    const NAME: &'static str = "Get FRU Inventory Area Info";
    type Answer = Area;

    fn request(&self) -> Request {
        Request::new(netfn::STORAGE, 0x10, [self.0])
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<Area> {
        Some(Area { bytes: data.u16()?, by_words: data.u8()? & 1 == 1 })
    }
}

/// Read FRU Data (34.2). Offset and count in bytes, or in words where the area is one of words.
pub struct Read {
    pub device: u8,
    pub offset: u16,
    pub count: u8,
}

impl Ask for Read {
    const NAME: &'static str = "Read FRU Data";
    /// At most what was asked for, counted in bytes by its length; the count in the answer is in units of the area.
    type Answer = Vec<u8>;

    fn request(&self) -> Request {
        let [low, high] = self.offset.to_le_bytes();
        Request::new(netfn::STORAGE, 0x11, [self.device, low, high, self.count])
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<Vec<u8>> {
        let _count = data.u8()?;
        Some(data.rest().to_vec())
    }

    fn refusal(&self, code: u8) -> Option<&'static str> {
        (code == 0x81).then_some("the inventory device is busy")
    }
}

/// An inventory, in the order of the storage. What is empty there is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    pub fields: Vec<Field>,
    /// Areas that could not be read, each as a sentence.
    pub broken: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    pub area: Part,
    pub name: String,
    pub value: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Chassis,
    Board,
    Product,
    /// Records of other kinds behind the areas: power supplies, addresses of the management.
    Record,
}

impl Part {
    pub fn name(self) -> &'static str {
        match self {
            Self::Chassis => "chassis",
            Self::Board => "board",
            Self::Product => "product",
            Self::Record => "record",
        }
    }
}

impl Inventory {
    /// The value of a field, where it is there.
    pub fn value(&self, area: Part, name: &str) -> Option<&str> {
        self.fields.iter().find(|f| f.area == area && f.name == name).map(|f| f.value.as_str())
    }
}

/// Common header (section 8): format, offsets of five areas in multiples of 8 bytes, pad, checksum.
const HEADER: usize = 8;
const RECORD_HEADER: usize = 5;
/// Areas by their place in the common header; the internal use area in front of them belongs to the controller alone.
const AREAS: [(usize, Part); 3] = [(2, Part::Chassis), (3, Part::Board), (4, Part::Product)];
const RECORDS: usize = 5;
/// Records behind the areas; each is at least a header long.
const RECORDS_MAX: usize = 256;

fn sums_up(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)) == 0
}

/// Offset of an area in bytes, by its place in the common header; `None` where there is none.
fn offset(storage: &[u8], place: usize) -> Option<usize> {
    storage.get(..HEADER)?.get(place).map(|units| usize::from(*units) * 8).filter(|offset| *offset > 0)
}

/// How many bytes of the storage from its beginning are needed, as far as these say. Read until the answer does not grow.
pub fn needed(storage: &[u8]) -> usize {
    let Some(header) = storage.get(..HEADER) else { return HEADER };
    if !is_header(header) {
        return HEADER;
    }
    let areas = AREAS.iter().filter_map(|(place, _)| {
        let start = offset(storage, *place)?;
        Some(storage.get(start + 1).map_or(start + 2, |length| start + usize::from(*length) * 8))
    });
    let records = offset(storage, RECORDS).map(|start| {
        let mut at = start;
        for _ in 0..RECORDS_MAX {
            let Some([_, flags, length, ..]) = storage.get(at..at + RECORD_HEADER) else { return at + RECORD_HEADER };
            at += RECORD_HEADER + usize::from(*length);
            if flags & 0x80 != 0 {
                break;
            }
        }
        at
    });
    areas.chain(records).max().unwrap_or(HEADER)
}

fn is_header(header: &[u8]) -> bool {
    header.first().is_some_and(|format| format & 0xf == 1) && sums_up(header)
}

/// Reads the storage from its beginning; what [`needed`] asks for and is not there counts as broken.
pub fn parse(storage: &[u8]) -> Inventory {
    let mut found = Inventory::default();
    match storage.get(..HEADER) {
        Some(header) if is_header(header) => {}
        // Storage that nobody has ever written is no fault.
        Some(header) if header.iter().all(|b| *b == 0xff) || header.iter().all(|b| *b == 0) => return found,
        _ => {
            found.broken.push("the header's checksum or format is wrong".to_owned());
            return found;
        }
    }
    for (place, area) in AREAS {
        let Some(start) = offset(storage, place) else { continue };
        match area_bytes(storage, start) {
            Ok(bytes) => {
                if fields(area, bytes, &mut found.fields).is_none() {
                    found.broken.push(format!("the {} area has no end mark", area.name()));
                }
            }
            Err(why) => found.broken.push(format!("the {} area {why}", area.name())),
        }
    }
    if let Some(start) = offset(storage, RECORDS) {
        records(storage, start, &mut found);
    }
    found
}

/// An area from its format version to before its checksum: version, length in multiples of 8 bytes, …
fn area_bytes(storage: &[u8], start: usize) -> Result<&[u8], &'static str> {
    const BEYOND: &str = "lies beyond the end of the storage";
    let length = usize::from(*storage.get(start + 1).ok_or(BEYOND)?) * 8;
    let area = storage.get(start..start + length).ok_or(BEYOND)?;
    match area.split_last() {
        Some((_, bytes)) if sums_up(area) => Ok(bytes),
        Some(_) => Err("has a wrong checksum"),
        None => Err("has no length"),
    }
}

/// Language codes whose text is 8-bit ASCII and Latin-1 (section 15): unspecified and English. The others have 16 bits.
const LATIN: [u8; 2] = [0, 25];
/// In the chassis area, which has no language code.
const ENGLISH: u8 = 25;

/// The fields of an area behind its version and length. `None` where the end mark is missing; what stands before is kept.
fn fields(area: Part, bytes: &[u8], found: &mut Vec<Field>) -> Option<()> {
    let mut data = Fields(bytes);
    let _version_length = data.take(2)?;
    let mut add = |name: &str, value: String| {
        if !value.is_empty() {
            found.push(Field { area, name: name.to_owned(), value });
        }
    };
    let mut language = ENGLISH;
    let names: &[&str] = match area {
        Part::Chassis => {
            add("type", chassis_type(data.u8()?).to_owned());
            &["part number", "serial"]
        }
        Part::Board => {
            language = data.u8()?;
            let [a, b, c] = data.array()?;
            add("made", made(u32::from_le_bytes([a, b, c, 0])));
            &["manufacturer", "product", "serial", "part number", "FRU file"]
        }
        _ => {
            language = data.u8()?;
            &["manufacturer", "product", "part number", "version", "serial", "asset tag", "FRU file"]
        }
    };
    for name in names {
        match text(&mut data, language)? {
            Some(value) => add(name, value),
            None => return Some(()),
        }
    }
    let mut number = 1;
    while let Some(value) = text(&mut data, language)? {
        add(&format!("custom {number}"), value);
        number += 1;
    }
    Some(())
}

/// Type/length byte and value (section 13). `Some(None)` at the end of the fields.
fn text(data: &mut Fields<'_>, language: u8) -> Option<Option<String>> {
    const END: u8 = 0xc1;
    let head = data.u8()?;
    if head == END {
        return Some(None);
    }
    let bytes = data.take(usize::from(head & 0x3f))?;
    Some(Some(match head >> 6 {
        0 if bytes.iter().all(|b| *b == 0) => String::new(),
        0 => hex(bytes),
        1 => printable(&bcd_plus(bytes)),
        2 => printable(&packed_ascii(bytes)),
        _ if LATIN.contains(&language) => printable(&latin(bytes)),
        _ => {
            let units: Vec<u16> = bytes.chunks_exact(2).filter_map(|pair| Fields(pair).u16()).collect();
            printable(&String::from_utf16_lossy(&units))
        }
    }))
}

/// Minutes since 1996; 0 stands for unspecified. UTC.
fn made(minutes: u32) -> String {
    const SINCE: i64 = 820_454_400;
    let at = jiff::Timestamp::from_second(SINCE + i64::from(minutes) * 60);
    match at {
        Ok(at) if minutes > 0 => at.strftime("%Y-%m-%d %H:%M").to_string(),
        _ => String::new(),
    }
}

/// SMBIOS chassis types (section 10 refers to table 17 there) that servers have.
fn chassis_type(code: u8) -> &'static str {
    match code {
        0x01 => "other",
        0x03 => "desktop",
        0x07 => "tower",
        0x11 => "main server chassis",
        0x12 => "expansion chassis",
        0x13 => "sub-chassis",
        0x17 => "rack mount",
        0x18 => "sealed case",
        0x19 => "multi-system chassis",
        0x1c => "blade",
        0x1d => "blade enclosure",
        _ => "",
    }
}

/// Multi-record area (section 16): type, end flag and version, length, checksum of the record, checksum of the header.
fn records(storage: &[u8], start: usize, found: &mut Inventory) {
    let mut at = start;
    for number in 1..=RECORDS_MAX {
        let header = storage.get(at..at + RECORD_HEADER).filter(|header| sums_up(header));
        let Some([kind, flags, length, sum, _]) = header else {
            found.broken.push(format!("record {number} has a wrong header, and no others are found behind it"));
            return;
        };
        at += RECORD_HEADER;
        let data = storage.get(at..at + usize::from(*length));
        match data {
            Some(data) if data.iter().fold(*sum, |sum, b| sum.wrapping_add(*b)) == 0 => {
                found.fields.extend(record(*kind, data));
            }
            Some(_) => found.broken.push(format!("record {number} has a wrong checksum")),
            None => found.broken.push(format!("record {number} lies beyond the end of the storage")),
        }
        at += usize::from(*length);
        if flags & 0x80 != 0 {
            return;
        }
    }
}

fn record(kind: u8, data: &[u8]) -> Option<Field> {
    let field = |name: &str, value: String| {
        let value = printable(&value);
        (!value.is_empty()).then(|| Field { area: Part::Record, name: name.to_owned(), value })
    };
    let mut fields = Fields(data);
    match kind {
        // Power supply information (18.1): overall capacity in watts, 12 bits.
        0x00 => {
            let capacity = fields.u16()? & 0x0fff;
            field("power supply", format!("{capacity} W"))
        }
        // Management access (18.4).
        0x03 => {
            let name = match fields.u8()? {
                0x01 => "management address",
                0x02 => "management name",
                0x03 => "management ping address",
                0x04 => "component address",
                0x05 => "component name",
                0x06 => "component ping address",
                0x07 => "unique id",
                _ => return None,
            };
            match (name, <[u8; 16]>::try_from(fields.0)) {
                ("unique id", Ok(bytes)) => field(name, uuid::Uuid::from_bytes(bytes).to_string()),
                _ => field(name, latin(fields.0)),
            }
        }
        // Voltages and loads of single outputs, compatibility codes.
        0x01 | 0x02 | 0x04..=0x0b => None,
        0xc0..=0xff => {
            let [a, b, c] = fields.array()?;
            let maker = u32::from_le_bytes([a, b, c, 0]);
            field(&format!("maker's record 0x{kind:02x} (IANA {maker})"), hex(fields.0))
        }
        _ => None,
    }
}

#[cfg(test)]
#[path = "fru_tests.rs"]
mod tests;
