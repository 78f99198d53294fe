//! How hosts are handed over: TLS, and who is told what becomes of machines (`[[handoff.webhooks]]`, `[[handoff.registrations]]`).

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::machine::Role;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Handoff {
    /// Delivered hosts get a certificate of the site's own authority; libvirt, Docker and OVSDB listen with it for clients that have
    /// one, too. Off unless set.
    pub tls: bool,
    pub webhooks: Vec<Webhook>,
    pub registrations: Vec<Registration>,
}

/// Gets events as they are, signed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    pub name: String,
    pub url: String,
    /// The key of the signature; read once at start and sealed.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
    /// `ready`, `deploying`, `delivered`, `broken`, `releasing`, `released`, `retired`; delivered, broken and released where none
    /// is named.
    #[serde(default)]
    pub events: Vec<String>,
}

/// A request of another system's making, rendered from a template.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    pub name: String,
    /// `openstack`, `kubernetes`, `zstack`, or a file that ends in `.toml`.
    pub template: String,
    /// What the template calls `secret`; read once at start and sealed.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
    /// As of a webhook; only `delivered` where none is named.
    #[serde(default)]
    pub events: Vec<String>,
    /// For machines with one of these; all where none is named.
    #[serde(default)]
    pub roles: Vec<Role>,
    /// What the template calls `values`.
    #[serde(default)]
    pub values: BTreeMap<String, String>,
}

impl Handoff {
    pub(super) fn check(&self) -> Result<()> {
        let names = self.webhooks.iter().map(|w| &w.name).chain(self.registrations.iter().map(|r| &r.name));
        let mut seen = HashSet::new();
        for name in names {
            if !seen.insert(name) {
                return Err(Error::config("config.invalid", format!("there are two receivers named {name}"))
                    .hint("each of [[handoff.webhooks]] and [[handoff.registrations]] has a name of its own"));
            }
        }
        Ok(())
    }

    /// Paths that a relative one is resolved in.
    pub(super) fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let webhooks = self.webhooks.iter_mut().filter_map(|w| w.secret_file.as_mut());
        webhooks.chain(self.registrations.iter_mut().filter_map(|r| r.secret_file.as_mut()))
    }

    pub(super) fn resolve_templates(&mut self, base: &Path) {
        for registration in self.registrations.iter_mut().filter(|r| r.template.ends_with(".toml")) {
            registration.template = base.join(&registration.template).display().to_string();
        }
    }
}
