//! `Managers/1`: the BMC itself: its network, clock, log and restart.

use axum::http::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::control::Behaviour;
use super::document::{collection, healthy, link, patch, resource};
use super::log::{Log, time};
use super::machine::{Identity, Scene};
use super::message::Message;
use super::service::{Call, Reply};
use crate::error::Result;

const PATH: &str = "/redfish/v1/Managers/1";
const ENTRIES: &str = "/redfish/v1/Managers/1/LogServices/Log/Entries";
const RESTARTS: [&str; 2] = ["GracefulRestart", "ForceRestart"];

pub struct Manager {
    /// By how many seconds the clock was set wrong; before that it is as [`Behaviour::clock_offset`] says.
    set: Option<i64>,
    ntp: bool,
    ntp_servers: Vec<String>,
    ipmi: bool,
    host_name: String,
    dhcp: bool,
    /// As the schema has it: objects with `Address`, `SubnetMask`, `Gateway`.
    static_addresses: Value,
    name_servers: Vec<String>,
}

impl Manager {
    pub fn new(identity: &Identity) -> Self {
        Self {
            set: None,
            ntp: false,
            ntp_servers: Vec::new(),
            ipmi: true,
            host_name: format!("bmc-{}", identity.serial.to_lowercase()),
            dhcp: false,
            static_addresses: json!([{
                "Address": identity.bmc_address, "SubnetMask": "255.255.0.0", "Gateway": "0.0.0.0",
            }]),
            name_servers: Vec::new(),
        }
    }

    /// Seconds by which the clock is wrong; network time puts it right.
    pub fn clock(&self, behaviour: &Behaviour) -> i64 {
        if self.ntp { 0 } else { self.set.unwrap_or(behaviour.clock_offset) }
    }
}

impl Scene<'_> {
    pub fn manager(&mut self, call: &Call, rest: &[&str]) -> Result<Reply> {
        Ok(match (call.method.as_str(), rest) {
            ("GET", []) => Reply::ok(self.manager_document()),
            ("PATCH", []) => self.set_clock(call),
            ("POST", ["Actions", "Manager.Reset"]) => self.restart_manager(call),
            ("GET", ["NetworkProtocol"]) => Reply::ok(self.network_protocol()),
            ("PATCH", ["NetworkProtocol"]) => self.change_network_protocol(call),
            ("GET", ["EthernetInterfaces"]) => {
                let path = format!("{PATH}/EthernetInterfaces");
                let kind = "#EthernetInterfaceCollection.EthernetInterfaceCollection";
                Reply::ok(collection(&path, kind, "BMC Network Interfaces", vec![format!("{path}/NIC")]))
            }
            ("GET", ["EthernetInterfaces", "NIC"]) => Reply::ok(self.bmc_interface()),
            ("PATCH", ["EthernetInterfaces", "NIC"]) => self.change_interface(call),
            (_, ["LogServices", rest @ ..]) => self.log_services(call, rest),
            ("GET", _) => Reply::missing(&call.path),
            _ => Reply::not_allowed(),
        })
    }

    fn manager_document(&self) -> Value {
        let child = |name: &str| link(&format!("{PATH}/{name}"));
        let body = json!({
            "ManagerType": "BMC",
            "Manufacturer": self.machine.identity.manufacturer,
            "Model": "LW BMC",
            "FirmwareVersion": self.state.inventory.version("BMC"),
            "UUID": self.machine.identity.uuid,
            "DateTime": time(self.clock()),
            "DateTimeLocalOffset": "+00:00",
            "PowerState": "On",
            "Status": healthy(),
            "NetworkProtocol": child("NetworkProtocol"),
            "EthernetInterfaces": child("EthernetInterfaces"),
            "LogServices": child("LogServices"),
            "Links": {
                "ManagerForServers": [link("/redfish/v1/Systems/1")],
                "ManagerForChassis": [link("/redfish/v1/Chassis/1")],
            },
            "Actions": { "#Manager.Reset": {
                "target": format!("{PATH}/Actions/Manager.Reset"),
                "ResetType@Redfish.AllowableValues": RESTARTS,
            }},
        });
        resource(PATH, "#Manager.v1_19_0.Manager", "Manager", body)
    }

    fn set_clock(&mut self, call: &Call) -> Reply {
        let mut set = self.state.manager.set;
        let ntp = self.state.manager.ntp;
        let reply = patch(call, |name, value| match (name, value.as_str()) {
            ("DateTime", Some(text)) if !ntp => {
                let wanted: Timestamp = text.parse().map_err(|_| Message::value(name, value))?;
                set = Some(wanted.as_second() - Timestamp::now().as_second());
                Ok(())
            }
            ("DateTimeLocalOffset", Some("+00:00" | "Z")) => Ok(()),
            ("DateTime" | "DateTimeLocalOffset", _) => Err(Message::value(name, value)),
            _ => Err(Message::unknown(name)),
        });
        if reply.status != StatusCode::OK {
            return reply;
        }
        self.state.manager.set = set;
        Reply::ok(self.manager_document())
    }

    fn restart_manager(&mut self, call: &Call) -> Reply {
        let wanted = call.json.get("ResetType").and_then(Value::as_str).unwrap_or(RESTARTS[0]);
        if !RESTARTS.contains(&wanted) {
            return Reply::bad(Message::action_value("#Manager.Reset", "ResetType", wanted));
        }
        let offset = self.clock();
        self.state.log.add(offset, "OK", "The BMC was restarted.");
        let (controls, accounts) = (self.machine.controls.clone(), self.machine.accounts.clone());
        let time = self.behaviour.restart;
        // The answer goes out first.
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            accounts.close_all();
            controls.away(time);
        });
        Reply::empty()
    }

    fn network_protocol(&self) -> Value {
        let manager = &self.state.manager;
        let protocol = |enabled: bool, port: u16| json!({ "ProtocolEnabled": enabled, "Port": port });
        let body = json!({
            "HostName": manager.host_name,
            "FQDN": manager.host_name,
            "HTTP": protocol(false, 80),
            "HTTPS": protocol(true, 443),
            "IPMI": protocol(manager.ipmi, 623),
            "SSH": protocol(false, 22),
            "NTP": { "ProtocolEnabled": manager.ntp, "Port": 123, "NTPServers": manager.ntp_servers },
            "Status": healthy(),
        });
        let path = format!("{PATH}/NetworkProtocol");
        resource(&path, "#ManagerNetworkProtocol.v1_10_1.ManagerNetworkProtocol", "Network Protocol", body)
    }

    fn change_network_protocol(&mut self, call: &Call) -> Reply {
        let manager = &mut self.state.manager;
        let reply = patch(call, |name, value| {
            match (name, value) {
                ("NTP", Value::Object(ntp)) => {
                    if let Some(servers) = ntp.get("NTPServers") {
                        let servers = serde_json::from_value(servers.clone());
                        manager.ntp_servers = servers.map_err(|_| Message::value("NTPServers", value))?;
                    }
                    manager.ntp = ntp.get("ProtocolEnabled").and_then(Value::as_bool).unwrap_or(manager.ntp);
                }
                ("IPMI", Value::Object(ipmi)) => {
                    manager.ipmi = ipmi.get("ProtocolEnabled").and_then(Value::as_bool).unwrap_or(manager.ipmi);
                }
                ("HostName", Value::String(host)) => manager.host_name = host.clone(),
                ("NTP" | "IPMI" | "HostName", _) => return Err(Message::value(name, value)),
                _ => return Err(Message::unknown(name)),
            }
            Ok(())
        });
        if reply.status == StatusCode::OK { Reply::ok(self.network_protocol()) } else { reply }
    }

    fn bmc_interface(&self) -> Value {
        let (manager, mac) = (&self.state.manager, self.machine.identity.bmc_mac);
        let origin = if manager.dhcp { "DHCP" } else { "Static" };
        let mut addresses = manager.static_addresses.clone();
        for address in addresses.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            address.insert("AddressOrigin".into(), json!(origin));
        }
        let body = json!({
            "InterfaceEnabled": true,
            "MACAddress": mac,
            "PermanentMACAddress": mac,
            "HostName": manager.host_name,
            "DHCPv4": { "DHCPEnabled": manager.dhcp },
            "IPv4Addresses": addresses,
            "IPv4StaticAddresses": manager.static_addresses,
            "StaticNameServers": manager.name_servers,
            "LinkStatus": "LinkUp",
            "Status": healthy(),
        });
        let path = format!("{PATH}/EthernetInterfaces/NIC");
        resource(&path, "#EthernetInterface.v1_12_0.EthernetInterface", "BMC Network Interface", body)
    }

    fn change_interface(&mut self, call: &Call) -> Reply {
        let manager = &mut self.state.manager;
        let reply = patch(call, |name, value| {
            let wrong = || Message::value(name, value);
            match name {
                "DHCPv4" => manager.dhcp = value["DHCPEnabled"].as_bool().ok_or_else(wrong)?,
                "IPv4StaticAddresses" => {
                    let whole = |a: &Value| ["Address", "SubnetMask"].iter().all(|key| address(&a[*key]));
                    let good = value.as_array().is_some_and(|all| !all.is_empty() && all.iter().all(whole));
                    manager.static_addresses = good.then(|| value.clone()).ok_or_else(wrong)?;
                }
                "StaticNameServers" => {
                    manager.name_servers = serde_json::from_value(value.clone()).map_err(|_| wrong())?;
                }
                "HostName" => manager.host_name = value.as_str().ok_or_else(wrong)?.to_owned(),
                _ => return Err(Message::unknown(name)),
            }
            Ok(())
        });
        if reply.status == StatusCode::OK { Reply::ok(self.bmc_interface()) } else { reply }
    }

    fn log_services(&mut self, call: &Call, rest: &[&str]) -> Reply {
        let (services, log) = (format!("{PATH}/LogServices"), format!("{PATH}/LogServices/Log"));
        match (call.method.clone(), rest) {
            (Method::GET, []) => {
                let kind = "#LogServiceCollection.LogServiceCollection";
                Reply::ok(collection(&services, kind, "Log Services", vec![log]))
            }
            (Method::GET, ["Log"]) => {
                let body = json!({
                    "LogEntryType": "Event",
                    "ServiceEnabled": true,
                    "MaxNumberOfRecords": Log::max_records(),
                    "OverWritePolicy": "WrapsWhenFull",
                    "DateTime": time(self.clock()),
                    "DateTimeLocalOffset": "+00:00",
                    "Entries": link(ENTRIES),
                    "Actions": { "#LogService.ClearLog": { "target": format!("{log}/Actions/LogService.ClearLog") } },
                });
                Reply::ok(resource(&log, "#LogService.v1_7_0.LogService", "System Event Log", body))
            }
            (Method::GET, ["Log", "Entries"]) => {
                let entries = self.state.log.documents(ENTRIES);
                let kind = "#LogEntryCollection.LogEntryCollection";
                let mut document = collection(ENTRIES, kind, "Log Entries", Vec::new());
                document["Members@odata.count"] = json!(entries.len());
                document["Members"] = Value::Array(entries);
                Reply::ok(document)
            }
            (Method::GET, ["Log", "Entries", id]) => self.state.log.document(ENTRIES, id).into(),
            (Method::POST, ["Log", "Actions", "LogService.ClearLog"]) => {
                self.state.log.clear();
                Reply::empty()
            }
            (Method::GET, _) => Reply::missing(&call.path),
            _ => Reply::not_allowed(),
        }
    }
}

fn address(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.parse::<std::net::Ipv4Addr>().is_ok())
}
