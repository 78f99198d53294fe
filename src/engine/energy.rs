//! What a machine takes from the mains, from the sensors of its BMC.

use crate::bmc::command::Sensor;
use crate::lifecycle::Millis;
use crate::lifecycle::passport::Energy;

/// A sensor of the whole machine where there is one (`Pwr Consumption` of Dell, `PowerControl` of Redfish), else the inputs of
/// its power supplies together. `None`: the BMC does not measure it, or says zero of a machine that runs.
pub fn taken(sensors: &[Sensor], at: Millis) -> Option<Energy> {
    let watts: Vec<(&Sensor, f64)> =
        sensors.iter().filter(|s| s.unit == "W").filter_map(|s| Some((s, s.value?))).collect();
    let named = |words: &[&str]| {
        watts.iter().filter(|(s, _)| words.iter().any(|word| s.name.to_lowercase().contains(word))).copied().collect()
    };
    let whole: Vec<(&Sensor, f64)> = named(&["consum", "system", "total", "powercontrol", "power control"]);
    let chosen = match whole.first() {
        Some(first) => vec![*first],
        None => named(&["input", "psu"]),
    };
    let sum: f64 = chosen.iter().map(|(_, watts)| watts).sum();
    let sensors = chosen.iter().map(|(s, _)| s.name.clone()).collect();
    (sum.is_finite() && sum > 0.0).then_some(Energy { watts: sum, sensors, at })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sensor(name: &str, value: f64, unit: &str) -> Sensor {
        Sensor {
            name: name.into(),
            kind: "other".into(),
            value: Some(value),
            unit: unit.into(),
            level: None,
            states: Vec::new(),
            limits: Default::default(),
        }
    }

    /// The names are those of the servers in tests/it/snapshots.
    #[test]
    fn the_machine_itself_or_its_supplies_together() {
        let dell =
            [sensor("Inlet Temp", 22.0, "°C"), sensor("Pwr Consumption", 220.0, "W"), sensor("Current 1", 0.4, "A")];
        let quanta = [sensor("PSU1 Input", 140.0, "W"), sensor("PSU2 Input", 30.0, "W")];
        assert_eq!(taken(&dell, 7), Some(Energy { watts: 220.0, sensors: vec!["Pwr Consumption".into()], at: 7 }));
        assert_eq!(taken(&quanta, 7).map(|e| (e.watts, e.sensors.len())), Some((170.0, 2)));
        assert_eq!(taken(&[sensor("Pwr Consumption", 0.0, "W")], 7), None);
        assert_eq!(taken(&[], 7), None);
    }
}
