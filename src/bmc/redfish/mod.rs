//! Redfish: a BMC as documents over HTTPS (DMTF DSP0266 and DSP2046).
//!
//! ```text
//! act ──► impl Bmc for Session ──► power boot sensors log account network firmware inventory     what is meant
//!                                      │
//!                                      ▼
//!                     find · resource · doc · task                     links, pages, ETags, oddities, 202
//!                                      │
//!                                      ▼
//!                              session ──► http ──► tls                 tokens, deadlines, pinned certificate
//! ```
//!
//! What vendors do differently stands where it matters, each with its source. Nothing is chosen by vendor where the BMC
//! itself can tell; where it cannot, the forms that are known to work are tried one after the other.

mod account;
mod boot;
mod doc;
mod find;
mod firmware;
mod http;
mod inventory;
mod known;
mod log;
mod network;
mod power;
mod resource;
mod sensors;
mod session;
mod task;
mod tls;
mod upload;

use std::collections::BTreeMap;

pub use known::Known;
pub use session::Session;
pub use tls::{Authority, Fingerprint, Trust};

use super::{
    Bios, BiosAttributes, Bmc, BootOverride, BootSeen, ChassisState, Component, Info, Log, Network, Part, Sensor,
    SetNetwork, Update, User,
};
use crate::error::Result;
use crate::machine::{PowerAction, Secret};

/// Redfish over TLS.
pub const PORT: u16 = 443;

impl Bmc for Session {
    fn whose(&self) -> &str {
        Session::whose(self)
    }

    async fn chassis(&mut self) -> Result<ChassisState> {
        self.power_state().await
    }

    async fn control(&mut self, action: PowerAction) -> Result<()> {
        self.reset(action).await
    }

    async fn identify(&mut self, seconds: u8) -> Result<()> {
        self.set_light(seconds > 0).await
    }

    async fn boot(&mut self) -> Result<Option<BootSeen>> {
        self.boot_override().await
    }

    async fn set_boot(&mut self, wanted: BootOverride) -> Result<()> {
        self.set_boot_override(wanted).await
    }

    async fn sensors(&mut self) -> Result<Vec<Sensor>> {
        self.all_sensors().await
    }

    async fn info(&mut self) -> Result<Info> {
        self.about().await
    }

    async fn log(&mut self, after: Option<&str>) -> Result<Log> {
        self.events(after).await
    }

    async fn clear_log(&mut self, _last: &str) -> Result<()> {
        self.clear_events().await
    }

    async fn set_clock(&mut self) -> Result<()> {
        self.set_time().await
    }

    async fn parts(&mut self) -> Result<Vec<Part>> {
        self.all_parts().await
    }

    async fn users(&mut self) -> Result<Vec<User>> {
        self.accounts().await
    }

    async fn set_password(&mut self, user: &str, password: &Secret) -> Result<()> {
        self.change_password(user, password).await
    }

    async fn network(&mut self) -> Result<Network> {
        self.network_settings().await
    }

    async fn set_network(&mut self, wanted: &SetNetwork) -> Result<()> {
        self.change_network(wanted).await
    }

    async fn reset_bmc(&mut self, cold: bool) -> Result<()> {
        self.restart_manager(cold).await
    }

    async fn bios(&mut self) -> Result<Bios> {
        self.bios_settings().await
    }

    async fn set_bios(&mut self, attributes: &BiosAttributes) -> Result<()> {
        self.change_bios(attributes).await
    }

    async fn boot_order(&mut self) -> Result<Vec<String>> {
        self.order().await
    }

    async fn boot_names(&mut self) -> Result<BTreeMap<String, String>> {
        self.order_names().await
    }

    async fn updating(&mut self) -> Result<bool> {
        self.writes_firmware().await
    }

    async fn set_boot_order(&mut self, order: &[String]) -> Result<()> {
        self.set_order(order).await
    }

    async fn components(&mut self) -> Result<Vec<Component>> {
        self.all_components().await
    }

    async fn update(&mut self, update: &Update) -> Result<()> {
        self.update_firmware(update).await
    }
}
