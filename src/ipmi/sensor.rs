//! What a sensor shows: a raw byte, the thresholds or states that are reached, and where the thresholds are.

use serde::{Deserialize, Serialize};

use super::message::{Ask, Fields, Request, netfn};

/// Get Sensor Reading (section 35.14).
pub struct GetReading {
    pub lun: u8,
    pub number: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// `None` where scanning is off or the BMC has no value now (a powered-off fan, a sensor that is starting).
    pub raw: Option<u8>,
    /// For thresholds: the comparison bits; for discrete sensors: the states, one bit each (table 35-15).
    pub states: u16,
}

impl Ask for GetReading {
    const NAME: &'static str = "Get Sensor Reading";
    type Answer = Reading;

    fn request(&self) -> Request {
        Request { lun: self.lun, ..Request::new(netfn::SENSOR, 0x2d, [self.number]) }
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<Reading> {
        let (raw, flags) = (data.u8()?, data.u8()?);
        let present = flags & 0x40 != 0 && flags & 0x20 == 0;
        // Both state bytes are optional.
        let low = data.u8().unwrap_or(0);
        let high = data.u8().unwrap_or(0) & 0x7f;
        Some(Reading { raw: present.then_some(raw), states: if present { u16::from_le_bytes([low, high]) } else { 0 } })
    }
}

/// How far a threshold sensor is from normal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    Warning,
    Critical,
    /// Beyond what the hardware stands.
    Fatal,
}

impl Reading {
    /// The comparison byte of a threshold sensor: lower and upper non-critical, critical, non-recoverable.
    pub fn level(&self) -> Level {
        match self.states as u8 & 0x3f {
            bits if bits & 0b10_0100 != 0 => Level::Fatal,
            bits if bits & 0b01_0010 != 0 => Level::Critical,
            bits if bits & 0b00_1001 != 0 => Level::Warning,
            _ => Level::Ok,
        }
    }
}

/// Get Sensor Thresholds (section 35.9).
pub struct GetThresholds {
    pub lun: u8,
    pub number: u8,
}

/// Raw bytes, in the order of the answer; `None` where the sensor has no such threshold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Thresholds {
    pub lower_warning: Option<u8>,
    pub lower_critical: Option<u8>,
    pub lower_fatal: Option<u8>,
    pub upper_warning: Option<u8>,
    pub upper_critical: Option<u8>,
    pub upper_fatal: Option<u8>,
}

impl Ask for GetThresholds {
    const NAME: &'static str = "Get Sensor Thresholds";
    type Answer = Thresholds;

    fn request(&self) -> Request {
        Request { lun: self.lun, ..Request::new(netfn::SENSOR, 0x27, [self.number]) }
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<Thresholds> {
        let readable = data.u8()?;
        let raw: [u8; 6] = data.array()?;
        let mut each = raw.iter().enumerate().map(|(n, raw)| (readable >> n & 1 == 1).then_some(*raw));
        let mut next = || each.next().flatten();
        Some(Thresholds {
            lower_warning: next(),
            lower_critical: next(),
            lower_fatal: next(),
            upper_warning: next(),
            upper_critical: next(),
            upper_fatal: next(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::{parse, survives_truncation};
    use super::*;

    #[test]
    fn a_value_its_level_and_no_value() {
        let ask = GetReading { lun: 1, number: 7 };
        assert_eq!((ask.request().lun, ask.request().data), (1, vec![7]));
        let level = |bits: u8| parse(&ask, &[97, 0xc0, 0xc0 | bits]).unwrap().level();
        assert_eq!(
            [level(0), level(0x08), level(0x18), level(0x38)],
            [Level::Ok, Level::Warning, Level::Critical, Level::Fatal]
        );
        assert_eq!([level(0x01), level(0x03), level(0x07)], [Level::Warning, Level::Critical, Level::Fatal]);
        assert_eq!(parse(&ask, &[97, 0xc0]).unwrap(), Reading { raw: Some(97), states: 0 });
        assert_eq!(parse(&ask, &[97, 0xe0, 0xff]).unwrap(), Reading { raw: None, states: 0 });
        assert_eq!(parse(&ask, &[97, 0x80, 0x00]).unwrap().raw, None);
        assert_eq!(parse(&ask, &[0, 0xc0, 0x01, 0x82]).unwrap().states, 0x0201);
        survives_truncation(&ask, &[97, 0xc0, 0xc0, 0x80]);
    }

    #[test]
    fn thresholds_that_the_sensor_has() {
        let ask = GetThresholds { lun: 0, number: 4 };
        assert_eq!(ask.request(), Request::new(netfn::SENSOR, 0x27, [4]));
        let data = [0b01_1011, 131, 121, 0, 170, 175, 0];
        let found = parse(&ask, &data).unwrap();
        assert_eq!((found.lower_warning, found.lower_critical, found.lower_fatal), (Some(131), Some(121), None));
        assert_eq!((found.upper_warning, found.upper_critical, found.upper_fatal), (Some(170), Some(175), None));
        survives_truncation(&ask, &data);
    }
}
