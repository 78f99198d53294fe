//! Which machine and which BMC this is: names, serial numbers, versions.

use std::collections::BTreeMap;

use serde_json::Value;

use super::doc::{Doc, Properties};
use super::session::Session;
use crate::bmc::{Component, Info, Part};
use crate::error::Result;

impl Session {
    pub(super) async fn about(&mut self) -> Result<Info> {
        let system = self.system().await?;
        let manager = self.manager().await.ok();
        let network = match &manager {
            Some(_) => self.network_settings().await.ok(),
            None => None,
        };
        let (address, mac, source) = network.map(|n| (n.address, n.mac, n.source)).unwrap_or_default();
        let version = self.root().text("RedfishVersion").unwrap_or_else(|| "of unknown version".to_owned());
        let maker = system.text("Manufacturer").or_else(|| self.root().text("Vendor"));
        Ok(Info {
            protocol: format!("Redfish {version}"),
            firmware: manager.and_then(|manager| manager.text("FirmwareVersion")).unwrap_or_default(),
            manufacturer: maker.unwrap_or_default(),
            product: 0,
            guid: system.text("UUID").and_then(|text| text.parse().ok()),
            address,
            mac,
            address_source: source,
        })
    }

    /// The machine, its chassis and power supplies.
    pub(super) async fn all_parts(&mut self) -> Result<Vec<Part>> {
        let system = self.system().await?;
        let mut product = vec![
            ("product.manufacturer", system.text("Manufacturer")),
            ("product.name", system.text("Model")),
            ("product.serial", system.text("SerialNumber")),
            ("product.part number", system.text("PartNumber")),
            ("product.asset tag", system.text("AssetTag")),
            ("product.uuid", system.text("UUID")),
            ("product.firmware", system.text("BiosVersion")),
            ("product.sku", system.text("SKU")),
        ];
        // iDRAC has the serial number of the board there; what is printed on the machine is the service tag.
        if self.dell()
            && let Some(tag) = system.text("SKU")
        {
            product.push(("board.serial", system.text("SerialNumber")));
            product.retain(|(name, _)| *name != "product.serial");
            product.push(("product.serial", Some(tag)));
        }
        let mut parts = vec![part("System", product)];
        for chassis in self.found().await?.chassis {
            let Some(chassis) = self.find(&chassis).await? else { continue };
            parts.push(part(
                &chassis.text("Name").or_else(|| chassis.text("Id")).unwrap_or_else(|| "Chassis".to_owned()),
                vec![
                    ("chassis.type", chassis.text("ChassisType")),
                    ("chassis.manufacturer", chassis.text("Manufacturer")),
                    ("chassis.name", chassis.text("Model")),
                    ("chassis.serial", chassis.text("SerialNumber")),
                    ("chassis.part number", chassis.text("PartNumber")),
                ],
            ));
            parts.extend(self.supplies(&chassis).await?);
        }
        parts.retain(|part| !part.fields.is_empty());
        Ok(parts)
    }

    async fn supplies(&mut self, chassis: &Doc) -> Result<Vec<Part>> {
        let subsystem = self.find_linked(chassis.link("PowerSubsystem")).await?;
        if let Some(link) = subsystem.as_ref().and_then(|doc| doc.link("PowerSupplies")) {
            let supplies = self.members(link).await?;
            if !supplies.is_empty() {
                return Ok(supplies.iter().filter_map(|doc| supply(doc)).collect());
            }
        }
        let power = self.find_linked(chassis.link("Power")).await?;
        Ok(power.map(|power| power.list("PowerSupplies").iter().filter_map(supply).collect()).unwrap_or_default())
    }

    pub(super) async fn all_components(&mut self) -> Result<Vec<Component>> {
        let docs = self.component_docs().await?;
        Ok(docs.iter().filter_map(|doc| component(doc)).collect())
    }

    pub(super) async fn component_docs(&mut self) -> Result<Vec<Doc>> {
        let service = self.update_service().await?;
        let Some(link) = service.link("FirmwareInventory").map(str::to_owned) else {
            return Err(self.lacks("its firmware versions"));
        };
        let docs = self.members(&link).await?;
        // iDRAC keeps the version before (`Previous-…`) and lists what runs twice (`Current-…`, `Installed-…`).
        let installed = |doc: &Doc| doc.text("Id").is_some_and(|id| id.starts_with("Installed-"));
        match self.dell() && docs.iter().any(installed) {
            true => Ok(docs.into_iter().filter(installed).collect()),
            false => Ok(docs),
        }
    }
}

fn part(name: &str, fields: Vec<(&str, Option<String>)>) -> Part {
    let fields: BTreeMap<String, String> =
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    Part { name: name.to_owned(), fields, broken: Vec::new() }
}

fn supply(of: &Value) -> Option<Part> {
    let name = of.text("Name").or_else(|| of.text("Id"))?;
    Some(part(
        &name,
        vec![
            ("product.manufacturer", of.text("Manufacturer")),
            ("product.name", of.text("Model")),
            ("product.serial", of.text("SerialNumber")),
            ("product.part number", of.text("PartNumber")),
            ("product.firmware", of.text("FirmwareVersion")),
        ],
    ))
}

fn component(doc: &Value) -> Option<Component> {
    let id = doc.text("Id")?;
    Some(Component {
        name: doc.text("Name").unwrap_or_else(|| id.clone()),
        version: doc.text("Version"),
        updateable: doc.flag("Updateable").unwrap_or(false),
        id,
    })
}
