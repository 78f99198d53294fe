//! Sensors and event log of a simulated BMC: the Storage and Sensor commands (sections 31, 33 and 35) over records that are
//! made from a few numbers.

/// A temperature in °C as its raw byte, with an upper non-critical threshold at 85 and a critical one at 95.
pub struct Sensor {
    pub name: String,
    pub raw: u8,
}

#[derive(Default)]
pub struct Records {
    pub sensors: Vec<Sensor>,
    /// Bytes 4 to 16 of each entry; the record id is its place, from 1 on.
    pub log: Vec<[u8; 14]>,
    /// Time stamp of the last entry; a new value for each.
    pub logged: u32,
    /// Get SDR that were answered.
    pub records_read: u32,
    /// Get Sensor Reading that were answered.
    pub readings: u32,
}

/// Most bytes of a record in one answer.
const PIECE: u8 = 32;
const LAST: u16 = 0xffff;

impl Records {
    /// Completion code and data; `None` for commands of others.
    pub fn command(&mut self, netfn: u8, cmd: u8, data: &[u8]) -> Option<Vec<u8>> {
        Some(match (netfn, cmd) {
            (4, 0x2d) => self.reading(data),
            (0x0a, 0x20) => info(self.sensors.len(), 7),
            (0x0a, 0x22 | 0x42) => vec![0, 1, 0],
            (0x0a, 0x23) => self.sdr(data),
            (0x0a, 0x40) => info(self.log.len(), self.logged),
            (0x0a, 0x43) => self.entry(data),
            (0x0a, 0x48) => [&[0][..], &self.logged.to_le_bytes()].concat(),
            _ => return None,
        })
    }

    /// An assertion of "upper critical" by the sensor with this number (table 32-1).
    pub fn log_event(&mut self, sensor: u8) {
        self.logged += 1;
        let [a, b, c, d] = self.logged.to_le_bytes();
        self.log.push([0x02, a, b, c, d, 0x20, 0, 0x04, 0x01, sensor, 0x01, 0x09, 97, 95]);
    }

    fn reading(&mut self, data: &[u8]) -> Vec<u8> {
        let Some(sensor) = data.first().and_then(|n| self.sensors.get(usize::from(*n).wrapping_sub(1))) else {
            return vec![0xcb];
        };
        self.readings += 1;
        let level = match sensor.raw {
            95.. => 0x18,
            85.. => 0x08,
            _ => 0,
        };
        vec![0, sensor.raw, 0xc0, 0xc0 | level, 0x80]
    }

    /// Record ids are the sensors' numbers; 0 is the first.
    fn sdr(&mut self, data: &[u8]) -> Vec<u8> {
        let [_, _, id, _, offset, count] = data else { return vec![0xc7] };
        let number = (*id).max(1);
        let Some(sensor) = self.sensors.get(usize::from(number) - 1) else { return vec![0xcb] };
        if *count > PIECE {
            return vec![0xca];
        }
        let record = full_record(number, &sensor.name);
        let next = if usize::from(number) == self.sensors.len() { LAST } else { u16::from(number) + 1 };
        let piece = record.into_iter().skip((*offset).into()).take((*count).into());
        self.records_read += 1;
        [0].into_iter().chain(next.to_le_bytes()).chain(piece).collect()
    }

    /// 0 is the first record, 0xFFFF the last.
    fn entry(&self, data: &[u8]) -> Vec<u8> {
        let [_, _, low, high, offset, count] = data else { return vec![0xc7] };
        let id = match u16::from_le_bytes([*low, *high]) {
            0 => 1,
            LAST => self.log.len() as u16,
            id => id,
        };
        let Some(entry) = self.log.get(usize::from(id).wrapping_sub(1)) else { return vec![0xcb] };
        let next = if usize::from(id) == self.log.len() { LAST } else { id + 1 };
        let record = id.to_le_bytes().into_iter().chain(*entry);
        [0].into_iter().chain(next.to_le_bytes()).chain(record.skip((*offset).into()).take((*count).into())).collect()
    }
}

/// Version, records, free space, last addition, last erasure, what is supported.
fn info(records: usize, added: u32) -> Vec<u8> {
    let mut out = vec![0, 0x51];
    out.extend((records as u16).to_le_bytes());
    out.extend([0xff, 0xff]);
    out.extend(added.to_le_bytes());
    out.extend([0, 0, 0, 0, 0x02]);
    out
}

/// Full sensor record (section 43.1): temperature, °C, value = raw byte.
fn full_record(number: u8, name: &str) -> Vec<u8> {
    let mut body = vec![0x20, 0, number, 3, number, 0x7f, 0x68, 1, 1];
    body.extend([0x95, 0x7a, 0x95, 0x7a, 0x3f, 0x3f, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0xff, 0, 0xff, 0]);
    body.extend([255, 95, 85, 0, 0, 0, 2, 2, 0, 0, 0, 0xc0 | name.len() as u8]);
    body.extend(name.as_bytes());
    [&[number, 0, 0x51, 1, body.len() as u8][..], &body].concat()
}
