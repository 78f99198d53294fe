//! External power: the outlets that machines hang on, switched by SNMP or by a webhook of the site.
//!
//! ```text
//! ladder ── off ──► every outlet of the machine: look, set, read back ──► a moment without power ── on ──► …
//! ```
//!
//! A server has two power supplies as a rule, so a machine has several outlets, and is without power only when all of them
//! are off. Where one cannot be switched off, those that were are on again before the failure is told.

mod snmp;
mod webhook;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

pub use snmp::Snmp;
pub use webhook::Webhook;

use crate::error::{Error, Result};
use crate::machine::Secret;

/// From the command to the state that is read back; a PDU with a delay for each outlet takes some seconds.
pub const CONFIRM: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(500);

/// One `[[power.outlets]]` of the configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The machine's name on the list of expected machines.
    pub machine: String,
    /// What the outlet goes by in messages and in the sealed store: `pdu-a/7`.
    pub name: String,
    #[serde(default)]
    pub snmp: Option<SnmpSettings>,
    #[serde(default)]
    pub webhook: Option<WebhookSettings>,
    /// Read once at start and sealed; it may be deleted after that.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnmpSettings {
    pub address: SocketAddr,
    /// The object that switches the outlet, an INTEGER.
    pub oid: String,
    pub on: i32,
    pub off: i32,
    /// The object that tells the state, where that is another one, and its values.
    #[serde(default)]
    pub state_oid: Option<String>,
    #[serde(default)]
    pub state_on: Option<i32>,
    #[serde(default)]
    pub state_off: Option<i32>,
    /// SNMPv3 with authentication and privacy; SNMPv2c where there is none.
    #[serde(default)]
    pub user: Option<String>,
    /// `sha256` unless set.
    #[serde(default)]
    pub authentication: Option<String>,
    /// `aes128` unless set.
    #[serde(default)]
    pub privacy: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookSettings {
    pub url: String,
}

impl Settings {
    /// Under this name its secret is sealed.
    pub fn secret_name(&self) -> String {
        format!("outlet/{}", self.name)
    }

    /// What is wrong in it, without its secret.
    pub fn check(&self) -> Result<()> {
        self.open(&Secret::new("unknown-yet\nunknown-yet")).map(|_| ())
    }

    /// The outlet, ready to be switched. The secret is the community of SNMPv2c, the two passwords of SNMPv3 on a line
    /// each, or the key that a webhook's requests are signed with.
    pub fn open(&self, secret: &Secret) -> Result<Outlet> {
        let wrong = |what: String| {
            Error::config("config.invalid", format!("[[power.outlets]] {}: {what}", self.name))
                .hint("see [[power.outlets]] in rackline.example.toml")
        };
        match (&self.snmp, &self.webhook) {
            (Some(snmp), None) => {
                Snmp::new(&self.name, snmp, secret).map(|snmp| Outlet::Snmp(Box::new(snmp))).map_err(wrong)
            }
            (None, Some(hook)) => Webhook::new(&self.name, &self.machine, hook, secret)
                .map(|hook| Outlet::Webhook(Box::new(hook)))
                .map_err(wrong),
            _ => Err(wrong("it needs `snmp` or `webhook`, one of them".into())),
        }
    }
}

pub enum Outlet {
    Snmp(Box<Snmp>),
    Webhook(Box<Webhook>),
}

impl Outlet {
    fn name(&self) -> &str {
        match self {
            Outlet::Snmp(snmp) => snmp.name(),
            Outlet::Webhook(hook) => hook.name(),
        }
    }

    /// Looks, switches, and reads back for as long as `confirm`.
    async fn switch(&self, on: bool, confirm: Duration) -> Result<()> {
        match self {
            Outlet::Snmp(snmp) => snmp.switch(on, confirm).await,
            Outlet::Webhook(hook) => hook.switch(on).await,
        }
    }
}

/// All outlets of the site, by machine.
pub struct Outlets {
    by_machine: HashMap<String, Vec<Outlet>>,
    confirm: Duration,
}

impl Default for Outlets {
    fn default() -> Self {
        Self::new(CONFIRM)
    }
}

impl Outlets {
    /// `confirm`: how long a state may take to be read back.
    pub fn new(confirm: Duration) -> Self {
        Self { by_machine: HashMap::new(), confirm }
    }

    pub fn add(&mut self, machine: &str, outlet: Outlet) {
        self.by_machine.entry(machine.to_owned()).or_default().push(outlet);
    }

    pub fn has(&self, machine: &str) -> bool {
        self.by_machine.contains_key(machine)
    }

    /// Switches all outlets of a machine; their names.
    pub async fn switch(&self, machine: &str, on: bool) -> Result<Vec<&str>> {
        let outlets = self.by_machine.get(machine).map(Vec::as_slice).unwrap_or_default();
        if outlets.is_empty() {
            return Err(Error::config("outlet.unknown", format!("no outlet is named for {machine}"))
                .hint("add it to [[power.outlets]] of rackline.toml"));
        }
        let done = futures::future::join_all(outlets.iter().map(|outlet| outlet.switch(on, self.confirm))).await;
        let Some(failed) = done.into_iter().find_map(Result::err) else {
            return Ok(outlets.iter().map(Outlet::name).collect());
        };
        if !on {
            // Half without power is worse than before.
            let back = futures::future::join_all(outlets.iter().map(|outlet| outlet.switch(true, self.confirm))).await;
            for e in back.into_iter().filter_map(Result::err) {
                tracing::error!(machine, error = ?e, "an outlet stays off");
            }
        }
        Err(failed)
    }
}

fn word(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// An outlet that took the command, and is not so.
fn not_applied(name: &str, on: bool, state: &str) -> Error {
    Error::refused("outlet.not-applied", format!("outlet {name} was switched {}, but is {state}", word(on)))
        .hint("look at the PDU: the outlet may be locked, or the values in [[power.outlets]] wrong")
}
