//! What the machine boots next: the override (`Boot` of ComputerSystem) and the order.
//!
//! Every vendor reads this part of the standard in a way of its own, and refuses what another one demands. So the fullest
//! form is sent first, and what is refused is sent again in the forms that are known to help; what the BMC then shows
//! decides (`crate::bmc::act`).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::doc::{Doc, Properties, allowable};
use super::session::Session;
use crate::bmc::{BootDevice, BootOverride, BootSeen};
use crate::error::{Error, Result};
use crate::machine::Firmware;

const TARGET: &str = "BootSourceOverrideTarget";
const ENABLED: &str = "BootSourceOverrideEnabled";
const MODE: &str = "BootSourceOverrideMode";

/// `Boot` of the machine and of its settings resource, where newer BMCs have moved it (AMI: DMTF/Redfish-Tacklebox#144;
/// sushy, `BootField`).
struct BootDocs {
    system: Doc,
    settings: Option<Doc>,
}

impl BootDocs {
    fn property(&self, name: &str) -> Option<&Value> {
        fn of<'a>(doc: &'a Doc, name: &str) -> Option<&'a Value> {
            doc.property("Boot")?.property(name)
        }
        of(&self.system, name).or_else(|| of(self.settings.as_ref()?, name))
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.property(name)?.as_str()
    }

    fn allowed(&self, name: &str) -> Vec<String> {
        let of = |doc: &Doc| doc.property("Boot").map(|boot| allowable(boot, name)).unwrap_or_default();
        let values = of(&self.system);
        if values.is_empty() { self.settings.as_ref().map(of).unwrap_or_default() } else { values }
    }

    /// Where a property is changed: in the settings resource, if it is there.
    fn place(&self, name: &str) -> &str {
        let there = |doc: &&Doc| doc.property("Boot").is_some_and(|boot| boot.property(name).is_some());
        self.settings.as_ref().filter(there).map_or(self.system.path.as_str(), |doc| doc.path.as_str())
    }
}

impl Session {
    async fn boot_docs(&mut self) -> Result<BootDocs> {
        let system = self.system().await?;
        let link = system.property("@Redfish.Settings").and_then(|s| s.link("SettingsObject")).map(str::to_owned);
        let settings = self.find_linked(link.as_deref()).await?;
        Ok(BootDocs { system, settings })
    }

    pub(super) async fn boot_override(&mut self) -> Result<Option<BootSeen>> {
        let docs = self.boot_docs().await?;
        Ok(seen(&docs))
    }

    pub(super) async fn set_boot_override(&mut self, wanted: BootOverride) -> Result<()> {
        let docs = self.boot_docs().await?;
        if docs.property(TARGET).is_none() && docs.property(ENABLED).is_none() {
            return Err(self.lacks("a choice of the boot device"));
        }
        let target = target(wanted, &docs.allowed(TARGET)).ok_or_else(|| {
            let message = format!(
                "{} cannot boot from {:?}: it offers {}",
                self.whose(),
                wanted.device,
                docs.allowed(TARGET).join(", ")
            );
            Error::refused("bmc.unsupported", message).hint("set the boot order in the firmware set-up")
        })?;
        let place = docs.place(TARGET).to_owned();
        let mut first = None;
        for body in forms(wanted, target, &docs) {
            match self.patch(&place, |_| Some(json!({ "Boot": body }))).await {
                Ok(reply) => return self.settle(reply).await,
                Err(e) if e.code() == "bmc.refused" => {
                    tracing::debug!(bmc = self.whose(), ?body, error = ?e, "another form is tried");
                    first.get_or_insert(e);
                }
                Err(e) => return Err(e),
            }
        }
        Err(first.unwrap_or_else(|| self.lacks("a choice of the boot device")))
    }

    pub(super) async fn order(&mut self) -> Result<Vec<String>> {
        let docs = self.boot_docs().await?;
        match docs.property("BootOrder").and_then(Value::as_array) {
            Some(order) => Ok(order.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
            None => Err(self.lacks("the boot order")),
        }
    }

    /// By `BootOptions`: what people call the entry, what kind it is, and where the firmware finds it.
    pub(super) async fn order_names(&mut self) -> Result<BTreeMap<String, String>> {
        let docs = self.boot_docs().await?;
        let options = docs.system.property("Boot").and_then(|boot| boot.link("BootOptions")).map(str::to_owned);
        let Some(options) = options else { return Ok(BTreeMap::new()) };
        let each = self.members(&options).await?.into_iter().filter_map(|option| {
            let words = [option.text("DisplayName"), option.text("Alias"), option.text("UefiDevicePath")];
            Some((option.text("BootOptionReference")?, words.into_iter().flatten().collect::<Vec<_>>().join(" ")))
        });
        Ok(each.collect())
    }

    /// What is not named keeps its place behind what is.
    pub(super) async fn set_order(&mut self, order: &[String]) -> Result<()> {
        let docs = self.boot_docs().await?;
        let now = self.order().await?;
        if let Some(unknown) = order.iter().find(|name| !now.contains(name)) {
            let message = format!("{} has no boot entry {unknown}: it has {}", self.whose(), now.join(", "));
            return Err(Error::input("bmc.boot-entry", message).hint("name entries as the BMC does"));
        }
        let rest = now.iter().filter(|name| !order.contains(name));
        let whole: Vec<&String> = order.iter().chain(rest).collect();
        let place = docs.place("BootOrder").to_owned();
        let reply = self.patch(&place, |_| Some(json!({ "Boot": { "BootOrder": whole } }))).await?;
        self.settle(reply).await
    }
}

fn seen(docs: &BootDocs) -> Option<BootSeen> {
    let (target, enabled) = (docs.text(TARGET), docs.text(ENABLED));
    if target.is_none() && enabled.is_none() {
        return None;
    }
    let device = match target.unwrap_or("None") {
        "None" => Some(BootDevice::None),
        "Pxe" | "UefiHttp" => Some(BootDevice::Network),
        "Hdd" => Some(BootDevice::Disk),
        _ => None,
    };
    let on = enabled != Some("Disabled") && target.unwrap_or("None") != "None";
    let firmware = match docs.text(MODE) {
        Some("Legacy") => Firmware::Bios,
        Some(_) => Firmware::Uefi,
        // Older BMCs that do not tell have machines of either kind; only those with UEFI have a Secure Boot resource.
        None if docs.system.link("SecureBoot").is_some() => Firmware::Uefi,
        None => Firmware::Bios,
    };
    Some(BootSeen { device, firmware, persistent: enabled == Some("Continuous"), valid: on })
}

/// The name that the BMC has for a device.
fn target(wanted: BootOverride, allowed: &[String]) -> Option<&'static str> {
    let names: &[&str] = match (wanted.device, wanted.firmware) {
        (BootDevice::None, _) => return Some("None"),
        (BootDevice::Network, Firmware::Uefi) => &["Pxe", "UefiHttp"],
        (BootDevice::Network, Firmware::Bios) => &["Pxe"],
        (BootDevice::Disk, _) => &["Hdd"],
    };
    names.iter().copied().find(|name| allowed.is_empty() || allowed.iter().any(|a| a == name))
}

/// What to send, the fullest first.
///
/// * Supermicro goes back to its own defaults for what is not sent (OpenStack story 2008547, DMTF/Redfishtool#106).
/// * Some refuse `Enabled` where it is so already (OpenStack story 2007355).
/// * Supermicro X10 has no `Mode` and refuses it (ironcore-dev/metal-operator#982).
/// * Newer schemas have no `Continuous`: once is better than nothing (ironic, `_set_boot_device`).
/// * iLO refuses `Disabled` with the target `None` (ironcore-dev/metal-operator#998); some want the mode with it
///   (ansible-collections/community.general#11542).
fn forms(wanted: BootOverride, target: &str, docs: &BootDocs) -> Vec<Map<String, Value>> {
    let form = |parts: &[(&str, &str)]| -> Map<String, Value> {
        parts.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect()
    };
    let mode_now = docs.text(MODE);
    if wanted.device == BootDevice::None {
        let mode = mode_now.unwrap_or("UEFI");
        return vec![
            form(&[(TARGET, "None"), (ENABLED, "Disabled")]),
            form(&[(ENABLED, "Disabled")]),
            form(&[(TARGET, "Pxe"), (ENABLED, "Disabled")]),
            form(&[(ENABLED, "Disabled"), (MODE, mode)]),
        ];
    }
    let mode = match wanted.firmware {
        Firmware::Uefi => "UEFI",
        Firmware::Bios => "Legacy",
    };
    let enabled = if wanted.persistent { "Continuous" } else { "Once" };
    let mut forms = Vec::new();
    if mode_now.is_some() {
        forms.push(form(&[(TARGET, target), (ENABLED, enabled), (MODE, mode)]));
    }
    if mode_now.is_none_or(|now| now == mode) {
        forms.push(form(&[(TARGET, target), (ENABLED, enabled)]));
    }
    if docs.text(ENABLED) == Some(enabled) {
        forms.push(form(&[(TARGET, target)]));
    }
    if wanted.persistent {
        forms.push(form(&[(TARGET, target), (ENABLED, "Once")]));
    }
    forms
}

#[cfg(test)]
mod tests {
    use super::*;

    fn docs(boot: Value, settings: Option<Value>) -> BootDocs {
        let doc = |path: &str, boot: Value| Doc { path: path.to_owned(), etag: None, body: json!({ "Boot": boot }) };
        BootDocs { system: doc("/s", boot), settings: settings.map(|boot| doc("/s/SD", boot)) }
    }

    fn wanted(device: BootDevice, persistent: bool) -> BootOverride {
        BootOverride { device, firmware: Firmware::Uefi, persistent }
    }

    #[test]
    fn a_disabled_override_is_not_valid_whatever_its_target() {
        let seen = |boot| seen(&docs(boot, None)).unwrap();
        let left = seen(json!({ TARGET: "Pxe", ENABLED: "Disabled", MODE: "UEFI" }));
        assert_eq!((left.device, left.valid), (Some(BootDevice::Network), false));
        let once = seen(json!({ TARGET: "Pxe", ENABLED: "Once", MODE: "Legacy" }));
        assert_eq!((once.valid, once.persistent, once.firmware), (true, false, Firmware::Bios));
        assert_eq!(seen(json!({ TARGET: "Cd", ENABLED: "Continuous" })).device, None);
        assert!(super::seen(&docs(json!({}), None)).is_none());
    }

    #[test]
    fn what_the_machine_lacks_is_in_its_settings() {
        let moved = docs(json!({ ENABLED: null }), Some(json!({ TARGET: "Hdd", ENABLED: "Once" })));
        assert_eq!(moved.place(TARGET), "/s/SD");
        assert_eq!(seen(&moved).unwrap().device, Some(BootDevice::Disk));
        assert_eq!(docs(json!({ TARGET: "Hdd" }), Some(json!({}))).place(TARGET), "/s");
    }

    #[test]
    fn the_fullest_form_comes_first_and_the_mode_only_where_there_is_one() {
        let text = |forms: Vec<Map<String, Value>>| -> Vec<String> {
            forms.iter().map(|form| form.values().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")).collect()
        };
        let now = docs(json!({ TARGET: "None", ENABLED: "Disabled", MODE: "UEFI" }), None);
        assert_eq!(text(forms(wanted(BootDevice::Network, false), "Pxe", &now)), ["Once UEFI Pxe", "Once Pxe"]);
        let old = docs(json!({ TARGET: "None", ENABLED: "Once" }), None);
        assert_eq!(text(forms(wanted(BootDevice::Network, false), "Pxe", &old)), ["Once Pxe", "Pxe"]);
        let legacy = docs(json!({ TARGET: "None", ENABLED: "Disabled", MODE: "Legacy" }), None);
        assert_eq!(text(forms(wanted(BootDevice::Disk, true), "Hdd", &legacy)), ["Continuous UEFI Hdd", "Once Hdd"]);
    }

    #[test]
    fn a_device_that_the_bmc_does_not_list_is_not_sent() {
        let allowed = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let network = wanted(BootDevice::Network, false);
        assert_eq!(target(network, &allowed(&["Hdd", "UefiHttp"])), Some("UefiHttp"));
        assert_eq!(target(BootOverride { firmware: Firmware::Bios, ..network }, &allowed(&["UefiHttp"])), None);
        assert_eq!(target(network, &[]), Some("Pxe"));
    }
}
