//! Power and identify light of the machine (ComputerSystem: `PowerState`, `#ComputerSystem.Reset`).

use serde_json::{Value, json};
use tokio::time::{Duration, Instant, sleep};

use super::doc::{Doc, Properties};
use super::session::Session;
use crate::bmc::{ChassisState, Power};
use crate::error::{Error, Result};
use crate::machine::PowerAction;

/// Off and on by two commands: how long the first may take.
const OFF: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(300);

/// Types of reset that do what is asked, the best one first. What is missing is replaced only by what is as hard or
/// harder, and a soft one never by a hard one: `ForceOff` is no shut-down.
fn resets(action: PowerAction) -> &'static [&'static str] {
    match action {
        PowerAction::On => &["On", "ForceOn", "PushPowerButton"],
        PowerAction::Off => &["ForceOff"],
        // IBM has no `ForceRestart` (ibm-openbmc/bmcweb#522), older iLO and sushy no `PowerCycle`.
        PowerAction::Cycle => &["PowerCycle", "ForceRestart"],
        PowerAction::Reset => &["ForceRestart", "PowerCycle"],
        // A short press of the button asks the operating system; iLO 4 has only that.
        PowerAction::Soft => &["GracefulShutdown", "PushPowerButton"],
    }
}

impl Session {
    pub(super) async fn power_state(&mut self) -> Result<ChassisState> {
        let system = self.system().await?;
        let identify = self.light_of(&system).await?;
        Ok(ChassisState { power: power(&system, self.whose())?, fault: None, identify })
    }

    pub(super) async fn reset(&mut self, action: PowerAction) -> Result<()> {
        let system = self.system().await?;
        let Some(reset) = system.action("#ComputerSystem.Reset") else {
            return Err(self.lacks("power control"));
        };
        let mut allowed = reset.allowed("ResetType");
        if allowed.is_empty()
            && let Some(info) = self.find_linked(reset.info()).await?
        {
            allowed = allowed_by(&info, "ResetType");
        }
        let wanted = resets(action);
        let fit: Vec<&str> =
            wanted.iter().copied().filter(|kind| allowed.is_empty() || allowed.iter().any(|a| a == kind)).collect();
        let target = reset.target.to_owned();
        for (at, kind) in fit.iter().enumerate() {
            match self.post(&target, json!({ "ResetType": kind })).await {
                // It did not say what it takes: the next one may do.
                Err(e) if e.code() == "bmc.refused" && allowed.is_empty() && at + 1 < fit.len() => {}
                answered => return answered.map(drop),
            }
        }
        let both = ["ForceOff", "On"].iter().all(|kind| allowed.iter().any(|a| a == kind));
        if matches!(action, PowerAction::Cycle | PowerAction::Reset) && both {
            return self.off_and_on(&target).await;
        }
        let message = format!("{} knows no way to {action}: it offers {}", self.whose(), allowed.join(", "));
        Err(Error::refused("bmc.unsupported", message).hint("use IPMI for this"))
    }

    async fn off_and_on(&mut self, target: &str) -> Result<()> {
        self.post(target, json!({ "ResetType": "ForceOff" })).await?;
        let until = Instant::now() + OFF;
        while power(&*self.system().await?, self.whose())? == Power::On && Instant::now() < until {
            sleep(LOOK).await;
        }
        self.post(target, json!({ "ResetType": "On" })).await.map(drop)
    }

    /// Redfish has no timer for the light: it stays as it is set.
    pub(super) async fn set_light(&mut self, lit: bool) -> Result<()> {
        let system = self.system().await?;
        let dell = self.dell();
        let mut last = None;
        for doc in self.with_light(system).await? {
            for body in light_bodies(&doc, lit, dell) {
                match self.patch(&doc.path, |_| Some(body.clone())).await {
                    Ok(_) => return Ok(()),
                    Err(e) if matches!(e.code(), "bmc.refused" | "bmc.unsupported") => last = Some(e),
                    Err(e) => return Err(e),
                }
            }
        }
        Err(last.unwrap_or_else(|| self.lacks("an identify light")))
    }

    async fn light_of(&mut self, system: &Doc) -> Result<Option<bool>> {
        let dell = self.dell();
        if let Some(lit) = lit(system, dell) {
            return Ok(Some(lit));
        }
        // Not asked again for every look at the power state.
        Ok(None)
    }

    /// The machine, else its first chassis.
    async fn with_light(&mut self, system: Doc) -> Result<Vec<Doc>> {
        let mut docs = vec![system];
        if let Some(first) = self.found().await?.chassis.first().cloned() {
            docs.extend(self.find(&first).await?);
        }
        docs.retain(|doc| doc.property("LocationIndicatorActive").is_some() || doc.property("IndicatorLED").is_some());
        Ok(docs)
    }

    pub(super) fn dell(&self) -> bool {
        let vendor = self.root().text("Vendor").or_else(|| self.root().text("Product")).unwrap_or_default();
        vendor.contains("Dell")
    }
}

fn power(system: &Value, whose: &str) -> Result<Power> {
    match system.text("PowerState").unwrap_or_default().as_str() {
        "On" | "PoweringOff" | "Paused" => Ok(Power::On),
        "Off" | "PoweringOn" => Ok(Power::Off),
        other => Err(Error::refused("bmc.malformed", format!("{whose} tells no power state, but “{other}”"))
            .hint("ask again in a minute: some BMCs cannot tell while they start")),
    }
}

/// Allowed values of an ActionInfo resource.
pub(super) fn allowed_by(info: &Value, parameter: &str) -> Vec<String> {
    let about = info.list("Parameters").iter().find(|about| about.text("Name").as_deref() == Some(parameter));
    let values = about.map(|about| about.list("AllowableValues")).unwrap_or_default();
    values.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// iDRAC shows `Lit` for a machine that nobody looks for, and blinks to identify (tree of a PowerEdge R750 in the tests).
fn lit(doc: &Value, dell: bool) -> Option<bool> {
    if let Some(lit) = doc.flag("LocationIndicatorActive") {
        return Some(lit);
    }
    match doc.text("IndicatorLED")?.as_str() {
        "Blinking" => Some(true),
        "Lit" => Some(!dell),
        "Off" => Some(false),
        _ => None,
    }
}

fn light_bodies(doc: &Value, lit: bool, dell: bool) -> Vec<Value> {
    let mut bodies = Vec::new();
    if doc.property("LocationIndicatorActive").is_some() {
        bodies.push(json!({ "LocationIndicatorActive": lit }));
    }
    let names: &[&str] = match (lit, dell) {
        (true, true) => &["Blinking"],
        (true, false) => &["Blinking", "Lit"],
        (false, true) => &["Lit", "Off"],
        (false, false) => &["Off"],
    };
    if doc.property("IndicatorLED").is_some() {
        bodies.extend(names.iter().map(|name| json!({ "IndicatorLED": name })));
    }
    bodies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_light_of_a_dell_is_lit_when_it_is_off() {
        let light = |value: &str, dell| lit(&json!({ "IndicatorLED": value }), dell);
        assert_eq!((light("Lit", true), light("Blinking", true)), (Some(false), Some(true)));
        assert_eq!(
            (light("Lit", false), light("Off", false), light("Unknown", false)),
            (Some(true), Some(false), None)
        );
        assert_eq!(lit(&json!({ "LocationIndicatorActive": false, "IndicatorLED": "Lit" }), false), Some(false));
        let both = json!({ "LocationIndicatorActive": false, "IndicatorLED": "Off" });
        assert_eq!(light_bodies(&both, true, false)[0], json!({ "LocationIndicatorActive": true }));
    }

    #[test]
    fn a_machine_that_is_powering_on_is_not_on_yet() {
        let state = |value: &str| power(&json!({ "PowerState": value }), "BMC").ok();
        assert_eq!((state("PoweringOn"), state("PoweringOff")), (Some(Power::Off), Some(Power::On)));
        assert_eq!((state("On"), state("Off"), state("Unknown")), (Some(Power::On), Some(Power::Off), None));
    }

    #[test]
    fn a_shut_down_is_never_replaced_by_a_hard_one() {
        assert!(!resets(PowerAction::Soft).iter().any(|kind| kind.starts_with("Force")));
    }
}
