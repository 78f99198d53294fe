//! Burn-in from the appliance's side: which profile, and what the BMC saw of the load.

use super::{About, Engine};
use crate::bmc::Level;
use crate::bmc::sweep::Health;
use crate::error::Result;
use crate::lifecycle::{Event, Machine, State};
use crate::link::{Measured, Outcome, Tested};
use crate::machine::{Finding, MachineId, Severity, Who};
use crate::template::burn;

/// A test reports some values and findings for each part; a machine has hundreds of parts at most.
const MEASURED: usize = 1024;
const FINDINGS: usize = 128;
const NOTES: usize = 128;

impl Engine {
    /// The fact that an operator asks for a burn-in.
    pub fn burn_in(&self, profile: &str, overwrite: bool) -> Result<Event> {
        Ok(Event::BurnInWanted { profile: Box::new(burn::profile(profile)?), overwrite, asked: true })
    }

    /// What the site wants of a machine whose agent has just said hello; told once, and kept with the machine.
    pub async fn want_burn_in(&self, id: MachineId) -> Result<()> {
        let new = |machine: &Machine| machine.state == State::Commissioning && machine.burn.is_none();
        let new = self.machine(id).is_some_and(|machine| new(&machine));
        let Some(profile) = self.inner.site.burn.as_ref().filter(|_| new) else { return Ok(()) };
        let wanted = Event::BurnInWanted { profile: Box::new(profile.clone()), overwrite: false, asked: false };
        self.submit(About::Machine(id), wanted).await.map(drop)
    }

    /// To what an agent tells of a test, what the BMC says of it.
    pub(super) fn add_load(&self, machine: &Machine, outcome: &mut Outcome) {
        let Outcome::Tested(tested) = outcome else { return };
        tested.measured.truncate(MEASURED);
        tested.findings.truncate(FINDINGS);
        tested.notes.truncate(NOTES);
        if let Some(health) = self.health(machine.id) {
            under_load(tested, &health, jiff::Timestamp::now());
        }
    }
}

/// From a look at the sensors that was taken during the test: the highest temperature, the power, and what is out of bounds.
fn under_load(tested: &mut Tested, health: &Health, now: jiff::Timestamp) {
    let age = health.at.map(|at| now.duration_since(at).as_secs_f64());
    // Right after the start it is not warm yet.
    if !age.is_some_and(|age| age < tested.seconds / 2.0) {
        return;
    }
    let test = tested.test.split('#').next().unwrap_or_default().to_owned();
    for (name, unit) in [("temperature", "°C"), ("power", "W")] {
        let values = health.sensors.iter().filter(|sensor| sensor.unit == unit).filter_map(|sensor| sensor.value);
        // Of several supplies and rails the input of the whole machine is the largest.
        if let Some(value) = values.reduce(f64::max) {
            tested.measured.push(Measured::new(format!("{name}.{test}"), value, unit));
        }
    }
    for sensor in &health.sensors {
        let severity = match sensor.level {
            Some(Level::Warning) => Severity::Warning,
            Some(Level::Critical | Level::Fatal) => Severity::Fault,
            Some(Level::Ok) | None => continue,
        };
        let value = sensor.value.map_or_else(|| sensor.states.join(", "), |value| format!("{value} {}", sensor.unit));
        tested.findings.push(Finding {
            id: "burn.sensor".into(),
            part: format!("sensor {}", sensor.name),
            severity,
            cause: format!("it is out of bounds under load ({test}): {value}"),
            expected: "within its limits".into(),
            found: value,
            who: Who::Racker,
            next: "look at fans, air baffles, blanking panels and the heat sink; then at the air of the room".into(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bmc::{Sensor, SensorLimits};

    fn sensor(name: &str, value: f64, unit: &str, level: Level) -> Sensor {
        Sensor {
            name: name.into(),
            kind: String::new(),
            value: Some(value),
            unit: unit.into(),
            level: Some(level),
            states: Vec::new(),
            limits: SensorLimits::default(),
        }
    }

    #[test]
    fn a_look_during_the_load_is_believed_and_an_older_one_is_not() {
        let now = jiff::Timestamp::now();
        let health = |seconds: i64| Health {
            at: Some(now - jiff::SignedDuration::from_secs(seconds)),
            sensors: vec![
                sensor("CPU1 Temp", 91.0, "°C", Level::Warning),
                sensor("Inlet", 24.0, "°C", Level::Ok),
                sensor("PSU1", 210.0, "W", Level::Ok),
                sensor("Total", 405.0, "W", Level::Ok),
            ],
            ..Health::default()
        };
        let tested = || Tested {
            test: "cpu#2".into(),
            seconds: 120.0,
            measured: Vec::new(),
            findings: Vec::new(),
            notes: Vec::new(),
        };
        let mut warm = tested();
        under_load(&mut warm, &health(20), now);
        let told: Vec<_> = warm.measured.iter().map(|m| (m.name.as_str(), m.value)).collect();
        assert_eq!(told, [("temperature.cpu", 91.0), ("power.cpu", 405.0)]);
        assert_eq!(warm.findings.len(), 1);
        assert_eq!(warm.findings[0].to_string(), "sensor CPU1 Temp: it is out of bounds under load (cpu): 91 °C");
        let mut before = tested();
        under_load(&mut before, &health(90), now);
        assert_eq!(before, tested());
    }
}
