//! The sensor records of a BMC, kept between calls: to read them takes seconds, and they hardly ever change. They say
//! which sensors there are and what they are called, where their limits are, and which parts have an inventory.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Ipmi;
use crate::bmc::{Sensor, SensorLimits};
use crate::error::Result;
use crate::ipmi::app::GetDeviceId;
use crate::ipmi::event::Event;
use crate::ipmi::meaning::{self, kind_name};
use crate::ipmi::records::{Broken, Found, Source, Walk};
use crate::ipmi::sdr::{self, FruDevice, GetRepositoryInfo, Record, RepositoryInfo};
use crate::ipmi::sensor::{GetReading, GetThresholds, Reading, Thresholds};

use super::super::rmcp::Repeat;

const LATELY: Duration = Duration::from_secs(10);
/// Sensors of one BMC that are read; a real server has 50 to 400.
const SENSORS_MAX: usize = 1024;

pub struct Records {
    info: RepositoryInfo,
    /// When the BMC was last asked whether they have changed.
    checked: Instant,
    sensors: Vec<Known>,
    pub fru: Vec<FruDevice>,
    /// As the log was when it was last read: a later erasure makes its record ids start anew.
    pub log_erased: Option<u32>,
}

struct Known {
    record: sdr::Sensor,
    /// What it goes by: its own name, with that of its part where several have the same.
    name: String,
    limits: SensorLimits,
}

impl Records {
    /// The sensor that an event is about, with its name. Of what software reports, only the software knows the sensors.
    pub fn sensor_of(&self, event: &Event) -> Option<(&sdr::Sensor, &str)> {
        let exact = self.sensors.iter().find(|known| event.is_of(&known.record));
        exact.map(|known| (&known.record, known.name.as_str()))
    }
}

impl Ipmi<'_> {
    /// The same without a question, where one was asked a moment ago: sensors and log are looked at one after the other.
    pub(super) async fn read_records_lately(&mut self) -> Result<()> {
        match self.records.as_ref().is_some_and(|records| records.checked.elapsed() < LATELY) {
            true => Ok(()),
            false => self.read_records().await.map(drop),
        }
    }

    /// Reads the records again only where the BMC says that they changed.
    pub(super) async fn read_records(&mut self) -> Result<&Records> {
        let has_repository = self.ask(&GetDeviceId).await?.has_sdr_repository;
        let info = match has_repository {
            true => Some(self.ask(&GetRepositoryInfo).await?),
            false => None,
        };
        match self.records.as_mut().filter(|records| info == Some(records.info)) {
            Some(kept) => kept.checked = Instant::now(),
            None => *self.records = Some(self.fetch_records(info).await?),
        }
        self.records.as_ref().ok_or_else(|| crate::error::Error::internal("bmc.records", "no sensor records"))
    }

    async fn fetch_records(&mut self, info: Option<RepositoryInfo>) -> Result<Records> {
        let mut walk = Walk::new(if info.is_some() { Source::Repository } else { Source::Device });
        let (mut sensors, mut fru) = (Vec::new(), Vec::new());
        while let Some(request) = walk.request() {
            let response = self.session.exchange(&request, Repeat::Soon).await?;
            let found = walk.answer(&response).map_err(|fault| fault.into_error(self.session.whose()))?;
            match found.map(understand) {
                None => {}
                Some(Ok(Record::Sensors(more))) => sensors.extend(more),
                Some(Ok(Record::Fru(device))) => fru.push(device),
                Some(Ok(Record::Other)) => {}
                Some(Err(broken)) => {
                    tracing::warn!(bmc = self.session.whose(), "a sensor record is left out: {broken}");
                }
            }
            if sensors.len() >= SENSORS_MAX {
                tracing::warn!(bmc = self.session.whose(), "more than {SENSORS_MAX} sensors; the rest is not read");
                sensors.truncate(SENSORS_MAX);
                break;
            }
        }
        let names = names(&sensors);
        let mut known = Vec::with_capacity(sensors.len());
        for (record, name) in sensors.into_iter().zip(names) {
            let limits = self.limits(&record).await?;
            known.push(Known { record, name, limits });
        }
        let info = info.unwrap_or(RepositoryInfo { records: 0, added: 0, erased: 0 });
        let log_erased = self.records.as_ref().and_then(|records| records.log_erased);
        Ok(Records { info, checked: Instant::now(), sensors: known, fru, log_erased })
    }

    /// Asked once and kept with the record: limits change even less often than records.
    async fn limits(&mut self, sensor: &sdr::Sensor) -> Result<SensorLimits> {
        let (Some(scale), true) = (sensor.scale, sensor.owner == sdr::BMC && sensor.thresholds != 0) else {
            return Ok(SensorLimits::default());
        };
        let ask = GetThresholds { lun: sensor.lun, number: sensor.number };
        let Ok(raw) = self.session.ask(&ask).await? else { return Ok(SensorLimits::default()) };
        let value = |raw: Option<u8>| raw.and_then(|raw| scale.value(raw));
        let Thresholds { lower_warning, lower_critical, lower_fatal, upper_warning, upper_critical, upper_fatal } = raw;
        Ok(SensorLimits {
            lower_warning: value(lower_warning),
            lower_critical: value(lower_critical),
            lower_fatal: value(lower_fatal),
            upper_warning: value(upper_warning),
            upper_critical: value(upper_critical),
            upper_fatal: value(upper_fatal),
        })
    }

    pub(super) async fn read_sensors(&mut self) -> Result<Vec<Sensor>> {
        self.read_records().await?;
        let known = self.records.as_ref().map(|records| records.sensors.as_slice()).unwrap_or_default();
        // Sensors of other controllers would need bridging.
        let ours = known.iter().filter(|known| known.record.owner == sdr::BMC && !known.record.event_only);
        let mut sensors = Vec::new();
        for Known { record, name, limits } in ours {
            // A refusal here is "not present" or "not allowed for this sensor": there is no reading.
            let reading = self.session.ask(&GetReading { lun: record.lun, number: record.number }).await?.ok();
            sensors.push(shown(record, name, *limits, reading.filter(|reading| reading.raw.is_some())));
        }
        Ok(sensors)
    }
}

fn understand(found: Found) -> std::result::Result<Record, Broken> {
    match found {
        Found::Record(bytes) => sdr::parse(&bytes).map_err(|why| Broken {
            record: bytes.first_chunk().map_or(0, |id| u16::from_le_bytes(*id)),
            why: why.to_owned(),
        }),
        Found::Broken(broken) => Err(broken),
    }
}

fn shown(record: &sdr::Sensor, name: &str, limits: SensorLimits, reading: Option<Reading>) -> Sensor {
    let (level, states) = match reading {
        None => (None, Vec::new()),
        Some(reading) if record.has_thresholds() => (Some(reading.level()), Vec::new()),
        Some(reading) => {
            let (level, states) = meaning::states(record.kind, record.reading_type, reading.states);
            (Some(level), states)
        }
    };
    Sensor {
        name: name.to_owned(),
        kind: kind_name(record.kind).to_owned(),
        value: reading.and_then(|reading| record.scale?.value(reading.raw?)),
        unit: record.unit.to_owned(),
        level,
        states,
        limits,
    }
}

/// `Status (power supply 2)` where several sensors are called `Status`.
fn names(sensors: &[sdr::Sensor]) -> Vec<String> {
    let mut count: HashMap<&str, usize> = HashMap::new();
    for sensor in sensors {
        *count.entry(&sensor.name).or_default() += 1;
    }
    let each = sensors.iter().map(|sensor| {
        let part = match meaning::entity_name(sensor.entity) {
            Some(part) => format!("{part} {}", sensor.instance),
            None => format!("{} 0x{:02x}", kind_name(sensor.kind), sensor.number),
        };
        match (sensor.name.as_str(), count.get(sensor.name.as_str())) {
            ("", _) => part,
            (name, Some(1)) => name.to_owned(),
            (name, _) => format!("{name} ({part})"),
        }
    });
    each.collect()
}
