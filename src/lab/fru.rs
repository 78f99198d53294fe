//! What a BMC knows by heart: the FRU inventory and the sensor data records, as bytes.
//!
//! FRU: Platform Management FRU Information Storage Definition 1.0 rev. 1.3, sections 8 and 10-13.
//! SDR: IPMI 2.0 rev. 1.1, section 43 (type 01h full sensor, 11h FRU locator, 12h management controller locator).

/// The size that `ipmi_sim` is told.
pub const FRU_BYTES: usize = 512;

/// Common header, chassis, board and product area, padded to [`FRU_BYTES`].
pub fn fru(serial: &str, number: u8) -> Vec<u8> {
    // Chassis type 17h: rack mount chassis.
    let chassis = area(&[1, 0, 0x17], &["LW-R1-2U", &format!("{serial}C")]);
    // Board manufacturing time, in minutes since 1996: left 0, which means unspecified.
    let board = area(&[1, 0, 0, 0, 0, 0], &["Labworks", "LW-R1-MB", &format!("{serial}B"), "LW-MB-0001", ""]);
    let asset = format!("LAB-{number:04}");
    let product = area(&[1, 0, 0], &["Labworks", "LW-R1", "LW-R1-2U", "1", serial, &asset, ""]);
    // Offsets count in units of eight bytes.
    let unit = |bytes: usize| (bytes / 8) as u8;
    let board_at = 8 + chassis.len();
    let product_at = board_at + board.len();
    let mut bytes = vec![1, 0, 1, unit(board_at), unit(product_at), 0, 0];
    bytes.push(checksum(&bytes));
    bytes.extend([chassis, board, product].concat());
    bytes.resize(FRU_BYTES, 0);
    bytes
}

/// An area: its header with the length filled in, type/length fields, C1h, padding, checksum.
fn area(header: &[u8], fields: &[&str]) -> Vec<u8> {
    let mut bytes = header.to_vec();
    for field in fields {
        bytes.extend(text(field, 0x3f));
    }
    bytes.push(0xc1);
    let length = (bytes.len() + 1).next_multiple_of(8);
    bytes.resize(length - 1, 0);
    bytes[1] = (length / 8) as u8;
    bytes.push(checksum(&bytes));
    bytes
}

/// A type/length byte of "8-bit ASCII + Latin 1" and the text, cut to `limit` bytes.
fn text(text: &str, limit: usize) -> Vec<u8> {
    let bytes: Vec<u8> = text.bytes().take(limit).collect();
    [&[0xc0 | bytes.len() as u8], bytes.as_slice()].concat()
}

/// The two's complement of the sum, so that all bytes together make 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)).wrapping_neg()
}

/// A threshold sensor. Values are raw readings: the value is `reading × m × 10^exponent` in the unit.
pub struct Sensor {
    pub number: u8,
    pub name: &'static str,
    /// Table 42-3: 1 temperature, 2 voltage, 4 fan, 8 power supply.
    pub kind: u8,
    /// Table 43-15: 1 °C, 4 V, 6 W, 18 RPM.
    unit: u8,
    /// Table 43-14, and its instance.
    entity: [u8; 2],
    m: u8,
    exponent: i8,
    pub nominal: u8,
    /// Non-recoverable, critical and non-critical, upper then lower, from the outside in.
    pub upper: [u8; 3],
    /// `None` where falling short is no fault.
    pub lower: Option<[u8; 3]>,
}

pub const SENSORS: [Sensor; 6] = [
    Sensor {
        number: 1,
        name: "CPU0 Temp",
        kind: 1,
        unit: 1,
        entity: [3, 1],
        m: 1,
        exponent: 0,
        nominal: 42,
        upper: [100, 95, 85],
        lower: Some([0, 2, 5]),
    },
    Sensor {
        number: 2,
        name: "Inlet Temp",
        kind: 1,
        unit: 1,
        entity: [55, 1],
        m: 1,
        exponent: 0,
        nominal: 24,
        upper: [45, 42, 38],
        lower: Some([0, 2, 5]),
    },
    Sensor {
        number: 3,
        name: "FAN1",
        kind: 4,
        unit: 18,
        entity: [29, 1],
        m: 100,
        exponent: 0,
        nominal: 84,
        upper: [250, 240, 220],
        lower: Some([3, 5, 10]),
    },
    Sensor {
        number: 4,
        name: "FAN2",
        kind: 4,
        unit: 18,
        entity: [29, 2],
        m: 100,
        exponent: 0,
        nominal: 83,
        upper: [250, 240, 220],
        lower: Some([3, 5, 10]),
    },
    Sensor {
        number: 5,
        name: "PSU1 Power",
        kind: 8,
        unit: 6,
        entity: [10, 1],
        m: 4,
        exponent: 0,
        nominal: 60,
        upper: [240, 220, 200],
        lower: None,
    },
    Sensor {
        number: 6,
        name: "12V Rail",
        kind: 2,
        unit: 4,
        entity: [7, 1],
        m: 7,
        exponent: -2,
        nominal: 172,
        upper: [195, 190, 185],
        lower: Some([145, 150, 155]),
    },
];

impl Sensor {
    /// What a raw reading means, in the sensor's unit.
    pub fn value(&self, raw: u8) -> f64 {
        let step = f64::from(self.m) * 10f64.powi(i32::from(self.exponent));
        // Free of the noise that binary fractions bring.
        (f64::from(raw) * step * 1000.0).round() / 1000.0
    }

    /// Which thresholds can be read and set: bit 5 upper non-recoverable to bit 0 lower non-critical.
    fn mask(&self) -> u8 {
        if self.lower.is_some() { 0x3f } else { 0x38 }
    }

    /// Table 43-1, with record id 0: `ipmi_sim` numbers the records itself.
    pub fn record(&self) -> Vec<u8> {
        let lower = self.lower.unwrap_or_default();
        let mut body = vec![0x20, 0, self.number, self.entity[0], self.entity[1], 0x7f, 0x68, self.kind, 1];
        // Assertion and deassertion events, then the thresholds that can be read and set.
        body.extend([0x95, 0x7a, 0x95, 0x7a, self.mask(), self.mask()]);
        // Units, linearisation, M, tolerance, B, accuracy (two bytes), exponents of result and B.
        body.extend([0, self.unit, 0, 0, self.m, 0, 0, 0, 0, (self.exponent as u8 & 0x0f) << 4]);
        // Of the analogue values only the nominal reading is given; sensor range 00h-FFh.
        body.extend([1, self.nominal, 0xff, 0, 0xff, 0]);
        body.extend(self.upper);
        // Hysteresis 2 up and down; two reserved bytes and one for the maker.
        body.extend([lower[0], lower[1], lower[2], 2, 2, 0, 0, 0]);
        body.extend(text(self.name, 16));
        record(0x01, &body)
    }

    /// The `emu` commands that make the sensor; its reading is taken from `value_file` each second.
    pub fn commands(&self, value_file: &str) -> Vec<String> {
        let (n, [unr, uc, unc], [lnr, lc, lnc]) = (self.number, self.upper, self.lower.unwrap_or_default());
        let enabled = if self.lower.is_some() { "111111" } else { "111000" };
        let events = ["000111111111111"; 4].join(" ");
        vec![
            format!("main_sdr_add 0x20 {}", hex(&self.record())),
            format!("sensor_add 0x20 0 {n} {:#04x} 0x01 poll 1000 file \"{value_file}\"", self.kind),
            format!("sensor_set_value 0x20 0 {n} {} 0", self.nominal),
            format!("sensor_set_hysteresis 0x20 0 {n} settable 2 2"),
            format!("sensor_set_threshold 0x20 0 {n} settable {enabled} {unr} {uc} {unc} {lnr} {lc} {lnc}"),
            format!("sensor_set_event_support 0x20 0 {n} enable scanning per-state {events}"),
        ]
    }
}

/// Table 43-8: the BMC itself, with its SEL, SDR repository, FRU inventory and sensors.
pub fn controller_record(name: &str) -> Vec<u8> {
    let mut body = vec![0x20, 0, 0, 0xbf, 0, 0, 0, 0x07, 1, 0];
    body.extend(text(name, 16));
    record(0x12, &body)
}

/// Record header (section 43.1): id 0, SDR version 1.5, type, length.
fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[0, 0, 0x51, kind, body.len() as u8], body].concat()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:#04x}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fru_area_adds_up_to_nothing() {
        let bytes = fru("LW77S00001", 1);
        assert_eq!(bytes.len(), FRU_BYTES);
        let sum = |part: &[u8]| part.iter().fold(0u8, |s, b| s.wrapping_add(*b));
        assert_eq!(sum(&bytes[..8]), 0);
        for at in [bytes[2], bytes[3], bytes[4]].map(|unit| usize::from(unit) * 8) {
            let length = usize::from(bytes[at + 1]) * 8;
            assert!(length > 8);
            assert_eq!(sum(&bytes[at..at + length]), 0);
        }
    }

    #[test]
    fn the_record_that_ipmitool_read() {
        // The first sensor of the rack that the record was tried in.
        let expected = "0x00 0x00 0x51 0x01 0x34 0x20 0x00 0x01 0x03 0x01 0x7f 0x68 0x01 0x01 0x95 0x7a 0x95 0x7a 0x3f 0x3f \
             0x00 0x01 0x00 0x00 0x01 0x00 0x00 0x00 0x00 0x00 0x01 0x2a 0xff 0x00 0xff 0x00 0x64 0x5f 0x55 0x00 0x02 \
             0x05 0x02 0x02 0x00 0x00 0x00 0xc9 0x43 0x50 0x55 0x30 0x20 0x54 0x65 0x6d 0x70";
        assert_eq!(hex(&SENSORS[0].record()), expected);
        assert_eq!(
            hex(&controller_record("LW BMC")),
            "0x00 0x00 0x51 0x12 0x11 0x20 0x00 0x00 0xbf 0x00 0x00 0x00 0x07 0x01 0x00 0xc6 0x4c 0x57 0x20 0x42 0x4d 0x43"
        );
    }
}
