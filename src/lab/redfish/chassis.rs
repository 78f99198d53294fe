//! `Chassis/1`: sensors, three times over as services of different age show them: `Thermal` and `Power`, the `Sensors`
//! collection, and `ThermalSubsystem`.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::document::{collection, healthy, link, resource};
use super::machine::{Identity, Scene};
use super::service::{Call, Reply};
use crate::error::Result;
use crate::lab::fru::{SENSORS, Sensor};

const PATH: &str = "/redfish/v1/Chassis/1";
/// Sensor types of IPMI table 42-3, which the lab's sensors carry.
const TEMPERATURE: u8 = 1;
const VOLTAGE: u8 = 2;
const FAN: u8 = 4;
const POWER: u8 = 8;

/// A reading with what follows from its thresholds.
struct Reading {
    sensor: &'static Sensor,
    id: String,
    value: f64,
    health: &'static str,
}

/// `OK`, `Warning` or `Critical`, by the thresholds.
fn health(sensor: &Sensor, raw: u8) -> &'static str {
    let [_, upper_critical, upper_caution] = sensor.upper;
    let beyond = |upper: u8, lower: Option<u8>| raw >= upper || lower.is_some_and(|lower| raw <= lower);
    match sensor.lower {
        lower if beyond(upper_critical, lower.map(|[_, critical, _]| critical)) => "Critical",
        lower if beyond(upper_caution, lower.map(|[.., caution]| caution)) => "Warning",
        _ => "OK",
    }
}

/// Which sensors are beyond a threshold, to notice when that changes.
#[derive(Default)]
pub struct Alarms(HashMap<u8, &'static str>);

impl Alarms {
    /// Severity and sentence of each change since the last look.
    pub fn look(&mut self, reading: impl Fn(&Sensor) -> u8) -> Vec<(&'static str, String)> {
        let mut changes = Vec::new();
        for sensor in &SENSORS {
            let raw = reading(sensor);
            let now = health(sensor, raw);
            if self.0.insert(sensor.number, now).unwrap_or("OK") != now {
                let place = if now == "OK" { "within its thresholds again" } else { "beyond a threshold" };
                changes.push((now, format!("{} is {place}: {}.", sensor.name, sensor.value(raw))));
            }
        }
        changes
    }
}

impl Reading {
    fn status(&self) -> Value {
        json!({ "State": "Enabled", "Health": self.health })
    }

    /// Threshold names by the age of the schema, outermost first.
    fn thresholds(&self, upper: [&str; 3], lower: [&str; 3]) -> Map<String, Value> {
        let uppers = upper.into_iter().zip(self.sensor.upper);
        let lowers = self.sensor.lower.map(|values| lower.into_iter().zip(values)).into_iter().flatten();
        uppers.chain(lowers).map(|(name, raw)| (name.to_owned(), json!(self.sensor.value(raw)))).collect()
    }

    /// An entry of `Thermal` or `Power`.
    fn entry(&self, part: &str, index: usize, reading: &str) -> Value {
        let mut entry = self.thresholds(
            ["UpperThresholdFatal", "UpperThresholdCritical", "UpperThresholdNonCritical"],
            ["LowerThresholdFatal", "LowerThresholdCritical", "LowerThresholdNonCritical"],
        );
        entry.insert("@odata.id".into(), json!(format!("{PATH}/{part}/{index}")));
        entry.insert("MemberId".into(), json!(index.to_string()));
        entry.insert("Name".into(), json!(self.sensor.name));
        entry.insert("SensorNumber".into(), json!(self.sensor.number));
        entry.insert(reading.into(), json!(self.value));
        entry.insert("Status".into(), self.status());
        if self.sensor.kind == FAN {
            entry.insert("ReadingUnits".into(), json!("RPM"));
        }
        Value::Object(entry)
    }

    fn document(&self) -> Value {
        let (kind, units) = match self.sensor.kind {
            TEMPERATURE => ("Temperature", "Cel"),
            FAN => ("Rotational", "RPM"),
            VOLTAGE => ("Voltage", "V"),
            _ => ("Power", "W"),
        };
        let levels = self.thresholds(
            ["UpperFatal", "UpperCritical", "UpperCaution"],
            ["LowerFatal", "LowerCritical", "LowerCaution"],
        );
        let levels: Map<String, Value> = levels.into_iter().map(|(k, v)| (k, json!({ "Reading": v }))).collect();
        let body = json!({
            "Reading": self.value, "ReadingType": kind, "ReadingUnits": units, "Thresholds": levels,
            "Status": self.status(),
        });
        resource(&self.path(), "#Sensor.v1_9_0.Sensor", self.sensor.name, body)
    }

    fn path(&self) -> String {
        format!("{PATH}/Sensors/{}", self.id)
    }
}

impl Scene<'_> {
    pub fn chassis(&mut self, call: &Call, rest: &[&str]) -> Result<Reply> {
        if call.method != axum::http::Method::GET {
            return Ok(Reply::not_allowed());
        }
        Ok(match rest {
            [] => Reply::ok(self.chassis_document()?),
            ["Thermal"] => Reply::ok(resource(
                &format!("{PATH}/Thermal"),
                "#Thermal.v1_7_1.Thermal",
                "Thermal",
                json!({
                    "Temperatures": self.entries(TEMPERATURE, "Thermal#/Temperatures", "ReadingCelsius"),
                    "Fans": self.entries(FAN, "Thermal#/Fans", "Reading"),
                }),
            )),
            ["Power"] => Reply::ok(self.power_document()),
            ["Sensors"] => {
                let paths = self.readings().iter().map(Reading::path).collect();
                let path = format!("{PATH}/Sensors");
                Reply::ok(collection(&path, "#SensorCollection.SensorCollection", "Sensors", paths))
            }
            ["Sensors", id] => self.readings().iter().find(|r| r.id == *id).map(Reading::document).into(),
            ["ThermalSubsystem", rest @ ..] => self.thermal_subsystem(rest),
            _ => Reply::missing(&call.path),
        })
    }

    fn readings(&self) -> Vec<Reading> {
        let read = |sensor: &'static Sensor| {
            let raw = self.machine.hardware.reading(sensor);
            let id = sensor.name.replace(' ', "");
            Reading { sensor, id, value: sensor.value(raw), health: health(sensor, raw) }
        };
        SENSORS.iter().map(read).collect()
    }

    fn entries(&self, kind: u8, part: &str, reading: &str) -> Vec<Value> {
        let all = self.readings();
        all.iter().filter(|r| r.sensor.kind == kind).enumerate().map(|(i, r)| r.entry(part, i, reading)).collect()
    }

    fn chassis_document(&mut self) -> Result<Value> {
        let (identity, on): (&Identity, bool) = (&self.machine.identity, self.shown_power()?);
        let child = |name: &str| link(&format!("{PATH}/{name}"));
        let body = json!({
            "ChassisType": "RackMount",
            "Manufacturer": identity.manufacturer,
            "Model": format!("{}-2U", identity.model),
            "SerialNumber": format!("{}C", identity.serial),
            "PowerState": if on { "On" } else { "Off" },
            "Status": healthy(),
            "Thermal": child("Thermal"),
            "Power": child("Power"),
            "Sensors": child("Sensors"),
            "ThermalSubsystem": child("ThermalSubsystem"),
            "Links": {
                "ComputerSystems": [link("/redfish/v1/Systems/1")],
                "ManagedBy": [link("/redfish/v1/Managers/1")],
            },
        });
        Ok(resource(PATH, "#Chassis.v1_25_0.Chassis", "Chassis", body))
    }

    fn power_document(&self) -> Value {
        let watts = self.readings().iter().find(|r| r.sensor.kind == POWER).map(|r| r.value);
        let supply = json!({
            "@odata.id": format!("{PATH}/Power#/PowerSupplies/0"), "MemberId": "0", "Name": "PSU1",
            "PowerCapacityWatts": 960, "PowerInputWatts": watts, "Status": healthy(),
        });
        let control = json!({
            "@odata.id": format!("{PATH}/Power#/PowerControl/0"), "MemberId": "0", "Name": "System Power Control",
            "PowerConsumedWatts": watts, "PowerCapacityWatts": 960,
        });
        let body = json!({
            "PowerControl": [control],
            "PowerSupplies": [supply],
            "Voltages": self.entries(VOLTAGE, "Power#/Voltages", "ReadingVolts"),
        });
        resource(&format!("{PATH}/Power"), "#Power.v1_7_1.Power", "Power", body)
    }

    fn thermal_subsystem(&self, rest: &[&str]) -> Reply {
        let path = format!("{PATH}/ThermalSubsystem");
        let all = self.readings();
        let fans = all.iter().filter(|r| r.sensor.kind == FAN);
        let fan_path = |fan: &Reading| format!("{path}/Fans/{}", fan.id);
        match rest {
            [] => {
                let body = json!({
                    "Fans": link(&format!("{path}/Fans")),
                    "ThermalMetrics": link(&format!("{path}/ThermalMetrics")),
                    "Status": healthy(),
                });
                Reply::ok(resource(&path, "#ThermalSubsystem.v1_3_0.ThermalSubsystem", "Thermal Subsystem", body))
            }
            ["Fans"] => {
                let members = fans.map(fan_path).collect();
                Reply::ok(collection(&format!("{path}/Fans"), "#FanCollection.FanCollection", "Fans", members))
            }
            ["Fans", id] => {
                let fan = all.iter().find(|r| r.sensor.kind == FAN && r.id == *id);
                fan.map(|fan| {
                    let speed = json!({ "DataSourceUri": fan.path(), "SpeedRPM": fan.value });
                    let body = json!({ "SpeedPercent": speed, "Status": fan.status() });
                    resource(&fan_path(fan), "#Fan.v1_5_0.Fan", fan.sensor.name, body)
                })
                .into()
            }
            ["ThermalMetrics"] => {
                let temperatures = all.iter().filter(|r| r.sensor.kind == TEMPERATURE);
                let excerpt =
                    |r: &Reading| json!({ "DataSourceUri": r.path(), "DeviceName": r.sensor.name, "Reading": r.value });
                let body = json!({ "TemperatureReadingsCelsius": temperatures.map(excerpt).collect::<Vec<_>>() });
                let kind = "#ThermalMetrics.v1_3_0.ThermalMetrics";
                Reply::ok(resource(&format!("{path}/ThermalMetrics"), kind, "Thermal Metrics", body))
            }
            _ => Reply::missing(&path),
        }
    }
}
