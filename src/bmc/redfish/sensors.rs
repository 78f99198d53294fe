//! Sensors of the machine's chassis, in whichever of three forms the BMC has them:
//!
//! 1. the `Sensors` collection (since 2020);
//! 2. `Thermal` and `Power`, two documents with everything, which all older BMCs have.
//!
//! The newer `ThermalSubsystem` and `PowerSubsystem` refer to the sensors of form 1. A chassis with nothing in form 1 is
//! read in form 2.

use serde_json::Value;

use super::doc::{Doc, Properties};
use super::session::Session;
use crate::bmc::{Sensor, SensorLimits};
use crate::error::Result;
use crate::ipmi::sensor::Level;

const SENSORS_MAX: usize = 1024;

impl Session {
    pub(super) async fn all_sensors(&mut self) -> Result<Vec<Sensor>> {
        let mut sensors = Vec::new();
        for chassis in self.found().await?.chassis {
            let Some(chassis) = self.find(&chassis).await? else { continue };
            let mut here = self.collected(&chassis).await?;
            if here.is_empty() {
                here = self.thermal_and_power(&chassis).await?;
            }
            sensors.extend(here);
            if sensors.len() > SENSORS_MAX {
                tracing::warn!(bmc = self.whose(), "more than {SENSORS_MAX} sensors; the rest is not read");
                sensors.truncate(SENSORS_MAX);
                break;
            }
        }
        match sensors.is_empty() {
            true => Err(self.lacks("sensors")),
            false => Ok(sensors),
        }
    }

    async fn collected(&mut self, chassis: &Doc) -> Result<Vec<Sensor>> {
        let Some(link) = chassis.link("Sensors") else { return Ok(Vec::new()) };
        if self.find(link).await?.is_none() {
            return Ok(Vec::new());
        }
        Ok(self.members(link).await?.iter().filter_map(|doc| sensor(doc)).collect())
    }

    async fn thermal_and_power(&mut self, chassis: &Doc) -> Result<Vec<Sensor>> {
        let mut sensors = Vec::new();
        if let Some(thermal) = self.find_linked(chassis.link("Thermal")).await? {
            sensors.extend(
                thermal.list("Temperatures").iter().filter_map(|t| old(t, "temperature", "°C", "ReadingCelsius")),
            );
            sensors.extend(thermal.list("Fans").iter().filter_map(fan));
        }
        if let Some(power) = self.find_linked(chassis.link("Power")).await? {
            sensors.extend(power.list("Voltages").iter().filter_map(|v| old(v, "voltage", "V", "ReadingVolts")));
            sensors.extend(power.list("PowerSupplies").iter().filter_map(supply));
            sensors
                .extend(power.list("PowerControl").iter().filter_map(|p| old(p, "power", "W", "PowerConsumedWatts")));
        }
        Ok(sensors)
    }
}

/// A place without a part in it has no sensor.
fn present(of: &Value) -> bool {
    let state = of.property("Status").and_then(|status| status.text("State"));
    state.as_deref() != Some("Absent")
}

fn name(of: &Value) -> Option<String> {
    of.text("Name").or_else(|| of.text("FanName")).or_else(|| of.text("Id")).or_else(|| of.text("MemberId"))
}

/// A resource of the `Sensors` collection.
fn sensor(doc: &Value) -> Option<Sensor> {
    if !present(doc) {
        return None;
    }
    let kind = doc.text("ReadingType").unwrap_or_default();
    let bound = |name: &str| doc.property("Thresholds")?.property(name)?.number("Reading");
    let value = doc.number("Reading");
    let limits = SensorLimits {
        lower_warning: bound("LowerCaution"),
        lower_critical: bound("LowerCritical"),
        lower_fatal: bound("LowerFatal"),
        upper_warning: bound("UpperCaution"),
        upper_critical: bound("UpperCritical"),
        upper_fatal: bound("UpperFatal"),
    };
    Some(Sensor {
        name: name(doc)?,
        kind: match kind.as_str() {
            "Rotational" => "fan".to_owned(),
            other => other.to_ascii_lowercase(),
        },
        value,
        unit: unit(&doc.text("ReadingUnits").unwrap_or_default()),
        level: level(doc, value, &limits),
        states: Vec::new(),
        limits,
    })
}

/// An entry of `Thermal` or `Power`.
fn old(entry: &Value, kind: &str, unit: &str, reading: &str) -> Option<Sensor> {
    if !present(entry) {
        return None;
    }
    let value = entry.number(reading);
    let bound = |name: &str| entry.number(name);
    let limits = SensorLimits {
        lower_warning: bound("LowerThresholdNonCritical"),
        lower_critical: bound("LowerThresholdCritical"),
        lower_fatal: bound("LowerThresholdFatal"),
        upper_warning: bound("UpperThresholdNonCritical"),
        upper_critical: bound("UpperThresholdCritical"),
        upper_fatal: bound("UpperThresholdFatal"),
    };
    Some(Sensor {
        name: name(entry)?,
        kind: kind.to_owned(),
        value,
        unit: unit.to_owned(),
        level: level(entry, value, &limits),
        states: Vec::new(),
        limits,
    })
}

fn fan(entry: &Value) -> Option<Sensor> {
    // The reading has had two names, and a unit of its own only later; before, it was RPM on most.
    let reading = if entry.property("Reading").is_some() { "Reading" } else { "ReadingRPM" };
    let units = entry.text("ReadingUnits").or_else(|| entry.text("Units"));
    old(entry, "fan", &unit(units.as_deref().unwrap_or("RPM")), reading)
}

fn supply(entry: &Value) -> Option<Sensor> {
    let reading = ["PowerInputWatts", "LastPowerOutputWatts", "PowerOutputWatts"];
    let reading = reading.into_iter().find(|name| entry.number(name).is_some()).unwrap_or("PowerInputWatts");
    old(entry, "power supply", "W", reading)
}

/// UCUM, as the Sensor schema has it, in the signs of the field.
fn unit(code: &str) -> String {
    match code {
        "Cel" => "°C",
        "%" | "Percent" => "%",
        other => other,
    }
    .to_owned()
}

/// The worse of what the thresholds and the BMC's own judgement say; `None` where neither says anything.
fn level(of: &Value, value: Option<f64>, limits: &SensorLimits) -> Option<Level> {
    let beyond = |(lower, upper): (Option<f64>, Option<f64>), value: f64| {
        lower.is_some_and(|lower| value <= lower) || upper.is_some_and(|upper| value >= upper)
    };
    let ranks = [
        ((limits.lower_fatal, limits.upper_fatal), Level::Fatal),
        ((limits.lower_critical, limits.upper_critical), Level::Critical),
        ((limits.lower_warning, limits.upper_warning), Level::Warning),
    ];
    let known = ranks.iter().any(|(bound, _)| bound.0.is_some() || bound.1.is_some());
    let by_value = value
        .filter(|_| known)
        .map(|value| ranks.iter().find(|(bound, _)| beyond(*bound, value)).map_or(Level::Ok, |(_, level)| *level));
    let health = of.property("Status").and_then(|status| status.text("Health"));
    let by_health = match health.as_deref() {
        Some("OK") => Some(Level::Ok),
        Some("Warning") => Some(Level::Warning),
        Some("Critical") => Some(Level::Critical),
        _ => None,
    };
    by_value.max(by_health)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_sensor_resource_with_its_level() {
        let at = |reading: Value| {
            let doc = json!({"Name": "CPU1 Temp", "ReadingType": "Temperature", "ReadingUnits": "Cel", "Reading": reading,
                "Thresholds": {"UpperCritical": {"Reading": 99}, "UpperCaution": {"Reading": "90"},
                    "UpperFatal": {"Reading": null}, "LowerCritical": {"Reading": 3}}, "Status": {"Health": "OK"}});
            sensor(&doc).unwrap()
        };
        assert_eq!((at(json!(37.0)).kind.as_str(), at(json!(37.0)).unit.as_str()), ("temperature", "°C"));
        assert_eq!(at(json!(37.0)).level, Some(Level::Ok));
        assert_eq!(at(json!(90)).level, Some(Level::Warning));
        assert_eq!((at(json!(120)).level, at(json!(1)).level), (Some(Level::Critical), Some(Level::Critical)));
        assert_eq!((at(Value::Null).value, at(Value::Null).level), (None, Some(Level::Ok)));
    }

    #[test]
    fn old_documents_and_empty_places() {
        let one =
            fan(&json!({"FanName": "Fan1", "ReadingRPM": 3000, "Status": {"Health": "Critical", "State": "Enabled"}}))
                .unwrap();
        assert_eq!(
            (one.name.as_str(), one.value, one.unit.as_str(), one.level),
            ("Fan1", Some(3000.0), "RPM", Some(Level::Critical))
        );
        assert!(fan(&json!({"Name": "Fan2", "Status": {"State": "Absent"}})).is_none());
        assert!(old(&json!({"ReadingVolts": 12}), "voltage", "V", "ReadingVolts").is_none(), "a sensor without a name");
        assert_eq!(supply(&json!({"Name": "PS1", "LastPowerOutputWatts": 273.0})).unwrap().value, Some(273.0));
    }
}
