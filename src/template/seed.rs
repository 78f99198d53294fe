//! The NoCloud seed of an installed host: who it is, who may log in, how it reaches the network, and the resident agent.
//!
//! Source: cloud-init's documentation of the NoCloud data source, of "network config v2" and of the modules named in
//! `templates/seed/user-data.yaml`. Every value goes through `tojson`, and JSON is YAML, so no value can end its field.

use serde::Serialize;

use super::render as document;
use crate::error::Result;
use crate::link::Seed;
use crate::machine::{Digest, Hostname, MacAddr, MachineId, Roles};

#[derive(Debug, Clone, Serialize)]
pub struct Facts<'a> {
    pub machine: MachineId,
    pub hostname: &'a Hostname,
    pub role: &'a Roles,
    pub ssh_keys: &'a [String],
    /// Where the appliance is reached from the host.
    pub url: &'a str,
    pub token: &'a str,
    /// The public key that image manifests are signed with, for a host that may help others to get images.
    pub key: Option<&'a str>,
    pub manifest: Digest,
    /// The NIC that the host was installed through; all Ethernet NICs where it is not known.
    pub boot_mac: Option<MacAddr>,
}

pub fn render(facts: &Facts<'_>) -> Result<Seed> {
    Ok(Seed {
        meta_data: document("seed/meta-data.yaml", include_str!("../../templates/seed/meta-data.yaml"), facts)?,
        user_data: document("seed/user-data.yaml", include_str!("../../templates/seed/user-data.yaml"), facts)?,
        network_config: document(
            "seed/network-config.yaml",
            include_str!("../../templates/seed/network-config.yaml"),
            facts,
        )?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Role;

    fn facts<'a>(hostname: &'a Hostname, role: &'a Roles, keys: &'a [String]) -> Facts<'a> {
        Facts {
            machine: MachineId(uuid::Uuid::nil()),
            hostname,
            role,
            ssh_keys: keys,
            url: "http://10.77.0.1",
            token: "00ff",
            key: Some("0a1b"),
            manifest: Digest([7; 32]),
            boot_mac: Some(MacAddr([0x52, 0x54, 0, 0, 0, 1])),
        }
    }

    #[test]
    fn the_three_documents() {
        let (host, keys) = ("kvm-01.lab".parse().unwrap(), ["ssh-ed25519 AAAA ops".to_owned()]);
        let seed = render(&facts(&host, &Role::Kvm.into(), &keys)).unwrap();
        insta::assert_snapshot!(
            "seed",
            format!("{}\n====\n{}\n====\n{}", seed.meta_data, seed.user_data, seed.network_config)
        );
    }

    #[test]
    fn a_key_cannot_break_out_of_its_field() {
        let (host, keys) = ("a".parse().unwrap(), ["x\"\nruncmd: [evil]".to_owned()]);
        let seed = render(&facts(&host, &Role::Kvm.into(), &keys)).unwrap();
        assert!(!seed.user_data.lines().any(|l| l.starts_with("runcmd: [evil]")));
    }
}
