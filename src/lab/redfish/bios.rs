//! `Systems/1/Bios` with its settings resource (DSP0266 section 9.10, "Settings resource"), and `SecureBoot`: what is
//! asked for holds from the next start.

use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::document::{link, patch, resource};
use super::machine::Scene;
use super::message::Message;
use super::service::{Call, Reply};
use super::system;
use crate::machine::Firmware;

/// Name, values; the first one is the factory's.
const ATTRIBUTES: [(&str, &[&str]); 10] = [
    ("SysProfile", &["PerfPerWattOptimizedDapc", "PerfPerWattOptimizedOs", "PerfOptimized", "Custom"]),
    ("ProcPwrPerf", &["SysDbpm", "OsDbpm", "MaxPerf"]),
    ("ProcCStates", &["Enabled", "Disabled"]),
    ("LogicalProc", &["Enabled", "Disabled"]),
    ("ProcVirtualization", &["Enabled", "Disabled"]),
    ("SriovGlobalEnable", &["Disabled", "Enabled"]),
    ("NumaNodesPerSocket", &["1", "2", "4"]),
    ("BootMode", &["Uefi", "Bios"]),
    ("AcPwrRcvry", &["Last", "On", "Off"]),
    ("WorkloadProfile", &["NotConfigured", "VirtualizationOptimizedPerformance", "Hpc"]),
];

pub struct Bios {
    current: Map<String, Value>,
    pending: Map<String, Value>,
    secure: bool,
    secure_wanted: bool,
}

impl Bios {
    pub fn new(firmware: Firmware) -> Self {
        let mut current = defaults();
        if firmware == Firmware::Bios {
            current.insert("BootMode".into(), json!("Bios"));
        }
        Self { current, pending: Map::new(), secure: false, secure_wanted: false }
    }

    pub fn restarted(&mut self) {
        self.current.append(&mut self.pending);
        self.secure = self.secure_wanted;
    }
}

fn defaults() -> Map<String, Value> {
    ATTRIBUTES.iter().map(|(name, values)| ((*name).to_owned(), json!(values.first()))).collect()
}

impl Scene<'_> {
    pub fn bios(&mut self, call: &Call, rest: &[&str]) -> Reply {
        let path = format!("{}/Bios", system::PATH);
        let settings = format!("{path}/Settings");
        match (call.method.as_str(), rest) {
            ("GET", []) => Reply::ok(resource(
                &path,
                "#Bios.v1_2_3.Bios",
                "BIOS Configuration",
                json!({
                    "AttributeRegistry": "LabworksBiosRegistry.v1_0_0",
                    "Attributes": self.state.bios.current,
                    "@Redfish.Settings": {
                        "@odata.type": "#Settings.v1_4_0.Settings",
                        "SettingsObject": link(&settings),
                        "SupportedApplyTimes": ["OnReset"],
                    },
                    "Actions": { "#Bios.ResetBios": { "target": format!("{path}/Actions/Bios.ResetBios") } },
                }),
            )),
            ("GET", ["Settings"]) => {
                let body = json!({ "Attributes": self.state.bios.pending });
                Reply::ok(resource(&settings, "#Bios.v1_2_3.Bios", "BIOS Configuration Pending", body))
            }
            ("PATCH" | "PUT", ["Settings"]) => self.change_bios(call),
            ("POST", ["Actions", "Bios.ResetBios"]) => {
                self.state.bios.pending = defaults();
                Reply::empty()
            }
            ("GET", _) => Reply::missing(&call.path),
            _ => Reply::not_allowed(),
        }
    }

    fn change_bios(&mut self, call: &Call) -> Reply {
        let mut wanted = Map::new();
        let reply = patch(call, |name, value| match (name, value) {
            ("Attributes", Value::Object(attributes)) => {
                for (name, value) in attributes {
                    let known = ATTRIBUTES.iter().find(|(known, _)| known == name);
                    let (_, values) = known.ok_or_else(|| Message::unknown(name))?;
                    if !value.as_str().is_some_and(|v| values.contains(&v)) {
                        return Err(Message::value(name, value));
                    }
                    wanted.insert(name.clone(), value.clone());
                }
                Ok(())
            }
            ("@Redfish.SettingsApplyTime", time) if time["ApplyTime"] == "OnReset" => Ok(()),
            ("@Redfish.SettingsApplyTime", time) => Err(Message::value("ApplyTime", &time["ApplyTime"])),
            _ => Err(Message::unknown(name)),
        });
        if reply.status == StatusCode::OK {
            self.state.bios.pending.append(&mut wanted);
        }
        reply
    }

    pub fn secure_boot(&mut self, call: &Call, rest: &[&str]) -> Reply {
        match (call.method.as_str(), rest) {
            ("GET", []) => {
                let body = json!({
                    "SecureBootEnable": self.state.bios.secure_wanted,
                    "SecureBootCurrentBoot": if self.state.bios.secure { "Enabled" } else { "Disabled" },
                    "SecureBootMode": "UserMode",
                });
                let path = format!("{}/SecureBoot", system::PATH);
                Reply::ok(resource(&path, "#SecureBoot.v1_1_2.SecureBoot", "UEFI Secure Boot", body))
            }
            ("PATCH", []) => patch(call, |name, value| match (name, value) {
                ("SecureBootEnable", Value::Bool(on)) => {
                    self.state.bios.secure_wanted = *on;
                    Ok(())
                }
                ("SecureBootEnable", _) => Err(Message::value(name, value)),
                _ => Err(Message::unknown(name)),
            }),
            ("GET", _) => Reply::missing(&call.path),
            _ => Reply::not_allowed(),
        }
    }
}
