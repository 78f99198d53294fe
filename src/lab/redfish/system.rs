//! `Systems/1`: power, boot, LED, and what is built in.

use std::time::Instant;

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use super::document::{collection, healthy, link, patch, resource};
use super::hardware::{Boot, Reset};
use super::machine::{Identity, Scene};
use super::message::Message;
use super::service::{Call, Reply};
use crate::error::Result;
use crate::lab::{BootDevice, DiskKind};
use crate::machine::Firmware;

pub const PATH: &str = "/redfish/v1/Systems/1";
const TARGETS: [&str; 7] = ["None", "Pxe", "Hdd", "Cd", "BiosSetup", "UefiHttp", "UefiTarget"];
const NETWORK: &str = "Boot0001";

pub struct System {
    wish: Wish,
    /// References of boot options, the first one first.
    order: Vec<String>,
    lit: bool,
    asset: String,
    pub lagging: Option<(bool, Instant)>,
}

/// The boot override as it was asked for.
#[derive(Clone)]
struct Wish {
    enabled: String,
    target: String,
    mode: &'static str,
    uefi_path: Option<String>,
    /// The machine's starts when it was asked.
    at: u64,
}

impl System {
    pub fn new(identity: &Identity) -> Self {
        let mode = match identity.firmware {
            Firmware::Uefi => "UEFI",
            Firmware::Bios => "Legacy",
        };
        let wish = Wish { enabled: "Disabled".into(), target: "None".into(), mode, uefi_path: None, at: 0 };
        let order = options(identity).into_iter().map(|(reference, ..)| reference).collect();
        Self { wish, order, lit: false, asset: String::new(), lagging: None }
    }

    /// A wish for one start is over with it.
    pub fn restarted(&mut self, starts: u64) {
        if self.wish.enabled == "Once" && starts > self.wish.at {
            self.wish.enabled = "Disabled".into();
            self.wish.target = "None".into();
            self.wish.uefi_path = None;
        }
    }
}

/// Reference, name, UEFI device path.
fn options(identity: &Identity) -> Vec<(String, String, String)> {
    let mac = identity.mac.to_string().replace(':', "").to_uppercase();
    let net = (
        NETWORK.to_owned(),
        format!("PXE: {}", identity.mac),
        format!("PciRoot(0x0)/Pci(0x2,0x0)/MAC({mac},0x1)/IPv4(0.0.0.0,0x0,DHCP,0.0.0.0,0.0.0.0,0.0.0.0)"),
    );
    let disks = (0..identity.disks.len()).map(|i| {
        let path = format!("PciRoot(0x0)/Pci(0x{:X},0x0)/NVMe(0x1,00-00-00-00-00-00-00-00)", i + 3);
        (format!("Boot{:04}", i + 2), format!("Disk {i}"), path)
    });
    std::iter::once(net).chain(disks).collect()
}

fn device(target: &str, uefi_path: Option<&str>) -> BootDevice {
    match target {
        "Pxe" | "UefiHttp" => BootDevice::Pxe,
        "Hdd" => BootDevice::Disk,
        "Cd" => BootDevice::Cdrom,
        "BiosSetup" => BootDevice::BiosSetup,
        "UefiTarget" if uefi_path.is_some_and(|p| p.contains("MAC(")) => BootDevice::Pxe,
        "UefiTarget" => BootDevice::Disk,
        _ => BootDevice::None,
    }
}

impl Scene<'_> {
    pub fn system(&mut self, call: &Call, rest: &[&str]) -> Result<Reply> {
        Ok(match (call.method.as_str(), rest) {
            ("GET", []) => Reply::ok(self.system_document()?),
            ("PATCH", []) => self.change_system(call)?,
            ("POST", ["Actions", "ComputerSystem.Reset"]) => self.reset(call)?,
            ("GET", ["ResetActionInfo"]) => Reply::ok(self.reset_info()),
            ("GET", ["BootOptions", rest @ ..]) => self.boot_options(rest),
            (_, ["Bios", rest @ ..]) => self.bios(call, rest),
            (_, ["SecureBoot", rest @ ..]) => self.secure_boot(call, rest),
            ("GET", [part @ ("Processors" | "Memory" | "EthernetInterfaces" | "Storage"), rest @ ..]) => {
                self.built_in(part, rest)
            }
            (_, [] | ["Actions", ..] | ["BootOptions", ..]) if call.method != Method::GET => Reply::not_allowed(),
            _ => Reply::missing(&call.path),
        })
    }

    fn system_document(&mut self) -> Result<Value> {
        let (identity, on) = (&self.machine.identity, self.shown_power()?);
        let child = |name: &str| link(&format!("{PATH}/{name}"));
        let body = json!({
            "SystemType": "Physical",
            "Manufacturer": identity.manufacturer,
            "Model": identity.model,
            "SKU": format!("{}-2U", identity.model),
            "SerialNumber": identity.serial,
            "PartNumber": "LW-MB-0001",
            "UUID": identity.uuid,
            "AssetTag": self.state.system.asset,
            "BiosVersion": self.state.inventory.version("BIOS"),
            "PowerState": if on { "On" } else { "Off" },
            "IndicatorLED": if self.state.system.lit { "Lit" } else { "Off" },
            "LocationIndicatorActive": self.state.system.lit,
            "Status": healthy(),
            "Boot": self.boot_document(),
            "ProcessorSummary": { "Count": 1, "CoreCount": 2, "Model": "AMD EPYC Processor", "Status": healthy() },
            "MemorySummary": { "TotalSystemMemoryGiB": gib(identity.memory_bytes), "Status": healthy() },
            "Processors": child("Processors"),
            "Memory": child("Memory"),
            "EthernetInterfaces": child("EthernetInterfaces"),
            "Storage": child("Storage"),
            "Bios": child("Bios"),
            "SecureBoot": child("SecureBoot"),
            "Links": { "Chassis": [link("/redfish/v1/Chassis/1")], "ManagedBy": [link("/redfish/v1/Managers/1")] },
            "Actions": { "#ComputerSystem.Reset": {
                "target": format!("{PATH}/Actions/ComputerSystem.Reset"),
                "ResetType@Redfish.AllowableValues": self.reset_names(),
                "@Redfish.ActionInfo": format!("{PATH}/ResetActionInfo"),
            }},
        });
        Ok(resource(PATH, "#ComputerSystem.v1_22_0.ComputerSystem", "System", body))
    }

    fn boot_document(&self) -> Value {
        let system = &self.state.system;
        json!({
            "BootSourceOverrideEnabled": system.wish.enabled,
            "BootSourceOverrideEnabled@Redfish.AllowableValues": ["Disabled", "Once", "Continuous"],
            "BootSourceOverrideTarget": system.wish.target,
            "BootSourceOverrideTarget@Redfish.AllowableValues": TARGETS,
            "BootSourceOverrideMode": system.wish.mode,
            "BootSourceOverrideMode@Redfish.AllowableValues": ["Legacy", "UEFI"],
            "UefiTargetBootSourceOverride": system.wish.uefi_path,
            "BootOptions": link(&format!("{PATH}/BootOptions")),
            "BootOrder": system.order,
        })
    }

    fn boot_options(&self, rest: &[&str]) -> Reply {
        let (path, all) = (format!("{PATH}/BootOptions"), options(&self.machine.identity));
        match rest {
            [] => {
                let members = all.iter().map(|(reference, ..)| format!("{path}/{reference}")).collect();
                Reply::ok(collection(&path, "#BootOptionCollection.BootOptionCollection", "Boot Options", members))
            }
            [id] => {
                let found = all.iter().find(|(reference, ..)| reference == id);
                found
                    .map(|(reference, name, uefi)| {
                        resource(
                            &format!("{path}/{reference}"),
                            "#BootOption.v1_0_6.BootOption",
                            name,
                            json!({
                                "BootOptionReference": reference,
                                "DisplayName": name,
                                "BootOptionEnabled": true,
                                "UefiDevicePath": uefi,
                                "Alias": if reference == NETWORK { "Pxe" } else { "Hdd" },
                            }),
                        )
                    })
                    .into()
            }
            _ => Reply::missing(&path),
        }
    }

    fn change_system(&mut self, call: &Call) -> Result<Reply> {
        let (mut boot, mut lit, mut asset) = (None, None, None);
        let reply = patch(call, |name, value| {
            match (name, value) {
                ("Boot", Value::Object(_)) => boot = Some(value.clone()),
                ("LocationIndicatorActive", Value::Bool(on)) => lit = Some(*on),
                ("IndicatorLED", Value::String(led)) if ["Lit", "Blinking"].contains(&led.as_str()) => lit = Some(true),
                ("IndicatorLED", Value::String(led)) if led == "Off" => lit = Some(false),
                ("AssetTag", Value::String(tag)) => asset = Some(tag.clone()),
                ("Boot" | "LocationIndicatorActive" | "IndicatorLED" | "AssetTag", _) => {
                    return Err(Message::value(name, value));
                }
                _ => return Err(Message::unknown(name)),
            }
            Ok(())
        });
        if reply.status != StatusCode::OK {
            return Ok(reply);
        }
        if let Some(boot) = boot
            && let Err(refused) = self.change_boot(&boot)?
        {
            return Ok(Reply::bad(refused));
        }
        let system = &mut self.state.system;
        system.lit = lit.unwrap_or(system.lit);
        system.asset = asset.unwrap_or_else(|| std::mem::take(&mut system.asset));
        Ok(Reply::ok(self.system_document()?))
    }

    fn change_boot(&mut self, boot: &Value) -> Result<Result<(), Message>> {
        let identity = &self.machine.identity;
        let (mut wish, mut order) = (self.state.system.wish.clone(), self.state.system.order.clone());
        for (name, value) in boot.as_object().into_iter().flatten() {
            let text = value.as_str().unwrap_or_default();
            match name.as_str() {
                "BootSourceOverrideEnabled" if ["Disabled", "Once", "Continuous"].contains(&text) => {
                    wish.enabled = text.to_owned();
                }
                "BootSourceOverrideTarget" if TARGETS.contains(&text) => wish.target = text.to_owned(),
                "BootSourceOverrideMode" if text == "UEFI" => wish.mode = "UEFI",
                "BootSourceOverrideMode" if text == "Legacy" => wish.mode = "Legacy",
                "UefiTargetBootSourceOverride" if options(identity).iter().any(|(.., path)| path == text) => {
                    wish.uefi_path = Some(text.to_owned());
                }
                "BootOrder" => match self.whole_order(value) {
                    Some(wanted) => order = wanted,
                    None => return Ok(Err(Message::value(name, value))),
                },
                "BootSourceOverrideEnabled"
                | "BootSourceOverrideTarget"
                | "BootSourceOverrideMode"
                | "UefiTargetBootSourceOverride" => return Ok(Err(Message::value(name, value))),
                _ => return Ok(Err(Message::unknown(name))),
            }
        }
        if wish.enabled == "Disabled" {
            wish.target = "None".into();
        }
        wish.at = self.machine.hardware.starts()?;
        self.state.system.wish = wish;
        self.state.system.order = order;
        self.machine.hardware.set_boot(self.wanted_boot())?;
        Ok(Ok(()))
    }

    /// All options, each once.
    fn whole_order(&self, value: &Value) -> Option<Vec<String>> {
        let wanted: Vec<String> = serde_json::from_value(value.clone()).ok()?;
        let (mut sorted, mut known) = (wanted.clone(), self.state.system.order.clone());
        sorted.sort();
        known.sort();
        (sorted == known).then_some(wanted)
    }

    fn wanted_boot(&self) -> Boot {
        let system = &self.state.system;
        let network_first = system.order.first().is_none_or(|first| first == NETWORK);
        let order = if network_first { BootDevice::None } else { BootDevice::Disk };
        let wished = device(&system.wish.target, system.wish.uefi_path.as_deref());
        match system.wish.enabled.as_str() {
            _ if self.behaviour.forgets_boot => Boot { once: BootDevice::None, always: order },
            "Once" => Boot { once: wished, always: order },
            "Continuous" => Boot { once: BootDevice::None, always: wished },
            _ => Boot { once: BootDevice::None, always: order },
        }
    }

    fn reset_names(&self) -> Vec<&'static str> {
        self.behaviour.resets.iter().map(|r| r.name()).collect()
    }

    fn reset_info(&self) -> Value {
        let parameter = json!({
            "Name": "ResetType", "Required": true, "DataType": "String", "AllowableValues": self.reset_names(),
        });
        let body = json!({ "Parameters": [parameter] });
        resource(&format!("{PATH}/ResetActionInfo"), "#ActionInfo.v1_4_0.ActionInfo", "Reset Action Info", body)
    }

    fn reset(&mut self, call: &Call) -> Result<Reply> {
        let wanted = call.json.get("ResetType").and_then(Value::as_str).unwrap_or("On");
        let Some(how) = self.behaviour.resets.iter().copied().find(|r| r.name() == wanted) else {
            return Ok(Reply::bad(Message::action_value("#ComputerSystem.Reset", "ResetType", wanted)));
        };
        let (on, shown) = (self.machine.hardware.is_on()?, self.shown_power()?);
        let needless = matches!(
            (how, on),
            (Reset::On, true) | (Reset::ForceOff | Reset::GracefulShutdown | Reset::ForceRestart, false)
        );
        if self.behaviour.strict_power && needless {
            let message = Message::already(if on { "On" } else { "Off" });
            return Ok(Reply::error(StatusCode::CONFLICT, message));
        }
        self.machine.hardware.reset(how)?;
        if !self.behaviour.power_lag.is_zero() {
            self.state.system.lagging = Some((shown, Instant::now() + self.behaviour.power_lag));
        }
        Ok(Reply::empty())
    }

    fn built_in(&self, part: &str, rest: &[&str]) -> Reply {
        let path = format!("{PATH}/{part}");
        let (kind, members) = match part {
            "Processors" => ("ProcessorCollection", vec![self.processor(&path)]),
            "Memory" => ("MemoryCollection", vec![self.dimm(&path)]),
            "EthernetInterfaces" => ("EthernetInterfaceCollection", vec![self.interface(&path)]),
            _ => ("StorageCollection", vec![self.storage(&path)]),
        };
        let id = |member: &Value| member.get("@odata.id").and_then(Value::as_str).unwrap_or_default().to_owned();
        match rest {
            [] => {
                let paths = members.iter().map(id).collect();
                Reply::ok(collection(&path, &format!("#{kind}.{kind}"), part, paths))
            }
            [one] => members.into_iter().find(|m| id(m) == format!("{path}/{one}")).into(),
            ["1", "Drives", n] if part == "Storage" => self.drive(&path, n).into(),
            _ => Reply::missing(&path),
        }
    }

    fn processor(&self, path: &str) -> Value {
        let body = json!({
            "ProcessorType": "CPU", "Socket": "CPU0", "Manufacturer": "AMD", "Model": "AMD EPYC Processor",
            "InstructionSet": "x86-64", "TotalCores": 2, "TotalThreads": 2, "MaxSpeedMHz": 2600, "Status": healthy(),
        });
        resource(&format!("{path}/CPU0"), "#Processor.v1_20_0.Processor", "CPU0", body)
    }

    fn dimm(&self, path: &str) -> Value {
        let body = json!({
            "MemoryDeviceType": "DDR4",
            "CapacityMiB": self.machine.identity.memory_bytes >> 20,
            "OperatingSpeedMhz": 3200,
            "Manufacturer": self.machine.identity.manufacturer,
            "PartNumber": "LW-DDR4-3200",
            "DeviceLocator": "DIMM_A0",
            "Status": healthy(),
        });
        resource(&format!("{path}/DIMM_A0"), "#Memory.v1_20_0.Memory", "DIMM_A0", body)
    }

    fn interface(&self, path: &str) -> Value {
        let mac = self.machine.identity.mac;
        let body = json!({
            "MACAddress": mac, "PermanentMACAddress": mac, "LinkStatus": "LinkUp", "SpeedMbps": 10_000,
            "InterfaceEnabled": true, "Status": healthy(),
        });
        resource(&format!("{path}/NIC1"), "#EthernetInterface.v1_12_0.EthernetInterface", "NIC1", body)
    }

    fn storage(&self, path: &str) -> Value {
        let path = format!("{path}/1");
        let drives: Vec<Value> =
            (0..self.machine.identity.disks.len()).map(|i| link(&format!("{path}/Drives/{i}"))).collect();
        let body = json!({ "Drives@odata.count": drives.len(), "Drives": drives, "Status": healthy() });
        resource(&path, "#Storage.v1_17_0.Storage", "Storage", body)
    }

    fn drive(&self, path: &str, n: &str) -> Option<Value> {
        let (i, disk) = n.parse().ok().and_then(|i: usize| Some((i, self.machine.identity.disks.get(i)?)))?;
        let (media, protocol) = match disk.kind {
            DiskKind::Nvme => ("SSD", "NVMe"),
            DiskKind::SataSsd => ("SSD", "SATA"),
            DiskKind::Hdd => ("HDD", "SATA"),
        };
        let body = json!({
            "CapacityBytes": disk.bytes, "MediaType": media, "Protocol": protocol, "Model": "LW-DISK",
            "SerialNumber": format!("{}D{i}", self.machine.identity.serial), "Status": healthy(),
        });
        Some(resource(&format!("{path}/1/Drives/{i}"), "#Drive.v1_20_0.Drive", &format!("Disk {i}"), body))
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}
