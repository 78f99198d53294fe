//! How the BMC itself is on the network (EthernetInterfaces and NetworkProtocol of its Manager), and its restart.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

use super::doc::{Doc, Properties};
use super::power::allowed_by;
use super::session::Session;
use crate::bmc::{AddressFrom, Network, SetNetwork};
use crate::error::Result;

impl Session {
    pub(super) async fn network_settings(&mut self) -> Result<Network> {
        let manager = self.manager().await?;
        let interface = self.interface(&manager).await?;
        let mut network = settings(&interface);
        let protocol = self.find_linked(manager.link("NetworkProtocol")).await?;
        network.ntp = protocol.as_ref().and_then(|doc| doc.property("NTP")).map(time_servers);
        Ok(network)
    }

    /// The one that we talk to, else the first with an address, else the first.
    pub(super) async fn interface(&mut self, manager: &Doc) -> Result<Doc> {
        let Some(link) = manager.link("EthernetInterfaces").map(str::to_owned) else {
            return Err(self.lacks("its network settings"));
        };
        let ours = self.address();
        let interfaces = self.members(&link).await?;
        let fit = |doc: &Doc| {
            let address = settings(doc).address;
            (address == Some(ours), address.is_some())
        };
        let best = interfaces.into_iter().rev().max_by_key(fit);
        best.ok_or_else(|| self.lacks("its network settings"))
    }

    pub(super) async fn change_network(&mut self, wanted: &SetNetwork) -> Result<()> {
        let manager = self.manager().await?;
        // First what does not end the connection.
        if let Some(servers) = &wanted.ntp {
            let Some(protocol) = manager.link("NetworkProtocol") else { return Err(self.lacks("its time servers")) };
            let body = json!({ "NTP": { "ProtocolEnabled": !servers.is_empty(), "NTPServers": servers } });
            let reply = self.patch(protocol, |_| Some(body.clone())).await?;
            self.settle(reply).await?;
        }
        let Some(from) = &wanted.address else { return Ok(()) };
        let interface = self.interface(&manager).await?;
        let mut refused = None;
        for body in address_forms(from).ok_or_else(|| self.lacks("a fixed IPv6 address"))? {
            match self.patch(&interface.path, |_| Some(body.clone())).await {
                Ok(reply) => return self.settle(reply).await,
                Err(e) if e.code() == "bmc.refused" => refused.get_or_insert(e),
                // It has moved, or is about to: whether it did, the new address shows.
                Err(e) if matches!(e.code(), "bmc.interrupted" | "bmc.late" | "bmc.unreachable") => return Ok(()),
                Err(e) => return Err(e),
            };
        }
        Err(refused.unwrap_or_else(|| self.lacks("to change its network settings")))
    }

    pub(super) async fn restart_manager(&mut self, cold: bool) -> Result<()> {
        let manager = self.manager().await?;
        let Some(reset) = manager.action("#Manager.Reset") else {
            return Err(self.lacks("to restart the BMC"));
        };
        let mut allowed = reset.allowed("ResetType");
        if allowed.is_empty()
            && let Some(info) = self.find_linked(reset.info()).await?
        {
            allowed = allowed_by(&info, "ResetType");
        }
        let wanted = if cold { ["ForceRestart", "GracefulRestart"] } else { ["GracefulRestart", "ForceRestart"] };
        let kind = wanted.into_iter().find(|kind| allowed.is_empty() || allowed.iter().any(|a| a == kind));
        let Some(kind) = kind else { return Err(self.lacks("to restart the BMC")) };
        match self.post(reset.target, json!({ "ResetType": kind })).await {
            // Some are gone before they have answered.
            Err(e) if e.code() == "bmc.interrupted" => Ok(()),
            answered => answered.map(drop),
        }
    }
}

fn settings(interface: &Value) -> Network {
    let unset = |entry: &&Value| address(entry).is_some_and(|address| !address.is_unspecified());
    let v4 = interface.list("IPv4Addresses").iter().find(unset);
    let v6 = interface.list("IPv6Addresses").iter().find(unset);
    let entry = v4.or(v6);
    let vlan = interface.property("VLAN").filter(|vlan| vlan.flag("VLANEnable") == Some(true));
    let prefix = |entry: &Value| match entry.text("SubnetMask") {
        Some(mask) => mask.parse::<Ipv4Addr>().ok().and_then(prefix),
        None => entry.number("PrefixLength").map(|bits| bits.clamp(0.0, 128.0) as u8),
    };
    let gateway = |text: String| text.parse::<IpAddr>().ok().filter(|gateway| !gateway.is_unspecified());
    Network {
        mac: interface
            .text("MACAddress")
            .or_else(|| interface.text("PermanentMACAddress"))
            .and_then(|mac| mac.parse().ok()),
        address: entry.and_then(address),
        prefix: entry.and_then(prefix),
        gateway: entry.and_then(|entry| entry.text("Gateway")).and_then(gateway),
        source: entry.and_then(|entry| entry.text("AddressOrigin")).map(|origin| match origin.as_str() {
            "Static" => "static".to_owned(),
            _ => origin,
        }),
        vlan: vlan.and_then(|vlan| vlan.number("VLANId")).filter(|id| (1.0..4095.0).contains(id)).map(|id| id as u16),
        ntp: None,
    }
}

fn address(entry: &Value) -> Option<IpAddr> {
    entry.text("Address")?.parse().ok()
}

/// `None` for a mask with holes.
fn prefix(mask: Ipv4Addr) -> Option<u8> {
    let bits = u32::from(mask);
    (bits.leading_ones() + bits.trailing_zeros() >= 32).then_some(bits.leading_ones() as u8)
}

fn mask(prefix: u8) -> Ipv4Addr {
    let bits = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
    Ipv4Addr::from(bits)
}

fn time_servers(ntp: &Value) -> Vec<String> {
    let on = ntp.flag("ProtocolEnabled") != Some(false);
    let named = ntp.list("NTPServers").iter().filter(|_| on).filter_map(Value::as_str);
    named.map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// As it is since 2018 (EthernetInterface 1.4, `DHCPv4` and `IPv4StaticAddresses`), then as before. `None`: not by Redfish.
fn address_forms(from: &AddressFrom) -> Option<Vec<Value>> {
    match from {
        AddressFrom::Dhcp => Some(vec![
            json!({ "DHCPv4": { "DHCPEnabled": true } }),
            json!({ "IPv4Addresses": [{ "AddressOrigin": "DHCP" }] }),
        ]),
        AddressFrom::Static { address: IpAddr::V4(address), prefix, gateway } => {
            let mut entry = json!({ "Address": address, "SubnetMask": mask(*prefix) });
            if let Some(gateway) = gateway {
                entry["Gateway"] = json!(gateway);
            }
            let mut old = entry.clone();
            old["AddressOrigin"] = json!("Static");
            Some(vec![
                json!({ "DHCPv4": { "DHCPEnabled": false }, "IPv4StaticAddresses": [entry] }),
                json!({ "IPv4Addresses": [old] }),
            ])
        }
        AddressFrom::Static { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_prefixes() {
        for (bits, text) in [(0, "0.0.0.0"), (26, "255.255.255.192"), (32, "255.255.255.255")] {
            assert_eq!(mask(bits).to_string(), text);
            assert_eq!(prefix(text.parse().unwrap()), Some(bits));
        }
        assert_eq!(prefix("255.0.255.0".parse().unwrap()), None);
        assert_eq!(mask(200), mask(32));
    }

    #[test]
    fn an_interface_as_dell_tells_it() {
        let read = settings(&json!({
            "IPv4Addresses": [{"Address": "10.180.247.199", "AddressOrigin": "DHCP", "Gateway": "10.180.247.193",
                "SubnetMask": "255.255.255.192"}],
            "IPv6Addresses": [{"Address": "::", "PrefixLength": 64}],
            "MACAddress": "b0:7b:25:d6:51:82", "VLAN": {"VLANEnable": false, "VLANId": 1},
        }));
        assert_eq!((read.address.unwrap().to_string(), read.prefix), ("10.180.247.199".into(), Some(26)));
        assert_eq!((read.source.as_deref(), read.vlan), (Some("DHCP"), None));
        assert_eq!(time_servers(&json!({"ProtocolEnabled": true, "NTPServers": ["", "a", {}]})), ["a"]);
    }
}
