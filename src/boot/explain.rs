//! What a machine would get now and why, step by step, for `rackline boot explain`. The same tables, rules and templates
//! answer as in a real boot, and nothing is changed: no lease, no state, no counter, nothing learnt.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::dhcp::Dhcp;
use super::loader::learn::Why;
use super::loader::{Loaders, Order};
use super::script::{Asker, Dialect, arch_name};
use super::{BootAnswer, Policy};
use crate::error::Result;
use crate::machine::{ClientArch, MacAddr, Roles};

/// In place of the machine's token. A plain word, as the templates want it.
pub const MASKED: &str = "not-shown";
/// What is shown for a machine whose architecture is not known.
const COMMON: [ClientArch; 3] = [ClientArch::Bios, ClientArch::UefiX64, ClientArch::HttpX64];

/// What the rules would answer. Read only, unlike [`Policy::boot_answer`].
pub trait Preview: Send + Sync + 'static {
    fn preview(&self, mac: MacAddr) -> Previewed;
}

pub struct Previewed {
    /// As it was sighted last.
    pub arch: Option<ClientArch>,
    /// With [`MASKED`] for a token.
    pub answer: BootAnswer,
    /// One sentence.
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    pub mac: MacAddr,
    /// `None`: nobody knows it, and this is what a stranger would get.
    pub machine: Option<Known>,
    /// One for each subnet: which one it is, the interface or the relay of its request decides.
    pub networks: Vec<Network>,
    /// One for each architecture that the machine may have.
    pub loaders: Vec<Loader>,
    pub answer: Answer,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    pub name: String,
    pub model: Option<String>,
    pub role: Option<Roles>,
    pub state: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// In CIDR notation.
    pub subnet: String,
    /// `None`: one of the pools, or none at all; `why` says which.
    pub address: Option<Ipv4Addr>,
    pub why: String,
    pub lease_seconds: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loader {
    pub arch: ClientArch,
    /// `None`: it gets an address and no boot file.
    pub loader: Option<String>,
    /// What it is, in a few words.
    pub about: String,
    pub why: String,
    /// In the order in which they are tried.
    pub candidates: Vec<String>,
    /// Those that were fetched and did not start on this card.
    pub stalled: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// `agent`, `disk` or `hold`.
    pub boots: String,
    pub why: String,
    /// What `[[boot.overrides]]` gives it of its own.
    pub own: Vec<String>,
    /// What iPXE or GRUB would run, with the token masked.
    pub script: String,
}

/// Sees what the boot services see.
pub struct Explainer {
    pub dhcp: Arc<Mutex<Dhcp>>,
    pub loaders: Arc<Loaders>,
    pub policy: Arc<dyn Policy>,
    pub preview: Arc<dyn Preview>,
}

impl Explainer {
    /// `now` in milliseconds since 1970. `arch`: as if it booted so; absent, as it did last.
    pub fn explain(&self, now: i64, mac: MacAddr, arch: Option<ClientArch>) -> Result<Explanation> {
        let facts = self.policy.facts(mac);
        let previewed = self.preview.preview(mac);
        let arch = arch.or(previewed.arch);
        let loaders: Vec<Loader> = match arch {
            Some(arch) => vec![self.loader(mac, arch)],
            None => COMMON.into_iter().map(|arch| self.loader(mac, arch)).collect(),
        };
        let first = loaders.first().and_then(|l| l.loader.as_deref());
        let grub = first.is_some_and(|name| self.loaders.files().starts_grub(name));
        let asker = Asker {
            mac,
            name: facts.as_ref().map(|f| f.name.as_str()),
            arch,
            dialect: if grub { Dialect::Grub } else { Dialect::Ipxe },
        };
        let answer = self.answer(&asker, previewed)?;
        let networks = self.dhcp.lock().unwrap_or_else(PoisonError::into_inner).explain(now, mac);
        let machine = facts.map(|f| Known { name: f.name, model: f.model, role: f.role, state: f.state.to_owned() });
        Ok(Explanation { mac, machine, networks, loaders, answer })
    }

    fn loader(&self, mac: MacAddr, arch: ClientArch) -> Loader {
        let (candidates, order) = self.loaders.candidates(mac, arch);
        let (choice, stalled) = self.loaders.choice(mac, &candidates);
        let ordered = match order {
            Order::Architecture => format!("the order for {}", arch_name(arch)),
            Order::Model => "the order of boot.loaders for its model".into(),
            Order::Site => "the order of boot.loaders for every model".into(),
            Order::Machine => "the order of boot.overrides for this machine".into(),
        };
        let (loader, why) = match choice {
            None => (None, format!("no boot file for {} is installed", arch_name(arch))),
            Some(_) if !arch.is_http() && !self.loaders.tftp() => (None, "boot.tftp is off".into()),
            Some((name, Why::First)) => (Some(name), format!("the first in {ordered}")),
            Some((name, Why::Learnt)) => (Some(name), "it started on this card before".into()),
            Some((name, Why::OthersStalled)) => {
                (Some(name), format!("in {ordered}, those before it were fetched and did not start"))
            }
        };
        Loader {
            arch,
            about: loader.as_ref().map_or("", |name| self.loaders.files().about(name)).to_owned(),
            loader: loader.map(|name| name.to_string()),
            why,
            candidates: candidates.iter().map(ToString::to_string).collect(),
            stalled: stalled.iter().map(ToString::to_string).collect(),
        }
    }

    fn answer(&self, asker: &Asker<'_>, previewed: Previewed) -> Result<Answer> {
        let scripts = self.loaders.scripts();
        let boots = match previewed.answer {
            BootAnswer::Agent { .. } => "agent",
            BootAnswer::LocalDisk { .. } => "disk",
            BootAnswer::Hold { .. } => "hold",
        };
        let mut own = Vec::new();
        if let Some(special) = scripts.special(asker) {
            own.extend(special.kernel_args.as_ref().map(|args| format!("kernel arguments {args:?}")));
            let script = special.script.as_ref().filter(|_| special.dialect() == Some(asker.dialect));
            own.extend(script.map(|path| format!("boot script {}", path.display())));
            own.extend((!special.loaders.is_empty()).then(|| format!("boot files {}", special.loaders.join(", "))));
        }
        let script = scripts.render(asker, &previewed.answer)?;
        Ok(Answer { boots: boots.to_owned(), why: previewed.why, own, script })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::config::tests::sample;
    use crate::boot::dhcp::request::Client;
    use crate::boot::dhcp::table::Offer;
    use crate::boot::loader;
    use crate::boot::loader::tests::Nobody;
    use crate::machine::MachineId;

    struct Agent;

    impl Preview for Agent {
        fn preview(&self, mac: MacAddr) -> Previewed {
            let machine = MachineId(uuid::Uuid::nil());
            let answer = BootAnswer::Agent { machine, token: MASKED.into() };
            let arch = (mac.0[5] == 1).then_some(ClientArch::UefiX64);
            Previewed { arch, answer, why: "a machine that is ready boots the agent".into() }
        }
    }

    #[test]
    fn a_stranger_and_what_one_override_changes() {
        let mut config = sample();
        config.overrides = vec![
            toml::from_str("mac = \"52:54:00:77:00:01\"\nkernel_args = [\"nomodeset\"]\nloaders = [\"shimx64.efi\"]")
                .unwrap(),
        ];
        let loaders = loader::tests::loaders(&config);
        let policy: Arc<dyn Policy> = Arc::new(Nobody);
        let dhcp = Arc::new(Mutex::new(Dhcp::new(&config, [], loaders.clone(), Arc::default(), policy.clone())));
        let explainer = Explainer { dhcp, loaders, policy, preview: Arc::new(Agent) };
        let stranger = explainer.explain(0, MacAddr([0x52, 0x54, 0, 0x77, 0, 2]), None).unwrap();
        assert_eq!((stranger.machine.as_ref(), stranger.networks.len(), stranger.loaders.len()), (None, 2, 3));
        assert_eq!(stranger.networks[0].address, None);
        assert_eq!(stranger.loaders[0].loader.as_deref(), Some("undionly.kpxe"));
        assert_eq!(stranger.loaders[0].why, "the first in the order for bios");
        let script = &stranger.answer.script;
        assert!(script.starts_with("#!ipxe") && script.contains("rackline.token=not-shown"), "{script}");
        // Twice the same: nothing was changed by looking.
        assert_eq!(explainer.explain(0, stranger.mac, None).unwrap(), stranger);

        let own = explainer.explain(0, MacAddr([0x52, 0x54, 0, 0x77, 0, 1]), None).unwrap();
        assert_eq!(own.loaders.len(), 1, "its architecture is known");
        assert_eq!(own.loaders[0].loader.as_deref(), Some("shimx64.efi"));
        assert_eq!(own.loaders[0].why, "the first in the order of boot.overrides for this machine");
        assert_eq!(own.answer.own, ["kernel arguments [\"nomodeset\"]", "boot files shimx64.efi"]);
        assert!(own.answer.script.contains("linux /vmlinuz") && own.answer.script.contains("nomodeset"));
        let bios = explainer.explain(0, own.mac, Some(ClientArch::Bios)).unwrap();
        assert_eq!(bios.loaders[0].loader.as_deref(), Some("undionly.kpxe"));
        assert!(bios.answer.script.starts_with("#!ipxe"));
        let reserved = explainer.explain(0, MacAddr([0x52, 0x54, 0, 0x77, 0, 0x99]), None).unwrap();
        assert_eq!(reserved.networks[0].address, Some(Ipv4Addr::new(10, 77, 9, 9)));
        assert_eq!(reserved.networks[0].why, "it is reserved for this machine");
    }

    #[test]
    fn the_address_that_is_explained_is_the_one_that_is_given() {
        let config = sample();
        let mut dhcp = Dhcp::new(&config, [], loader::tests::loaders(&config), Arc::default(), Arc::new(Nobody));
        let mac = MacAddr([0x52, 0x54, 0, 0x77, 0, 1]);
        let client = Client { mac, uuid: None, id: vec![], port: None };
        let would = |dhcp: &Dhcp, now| dhcp.explain(now, mac).into_iter().next().unwrap();
        assert_eq!((would(&dhcp, 0).address, would(&dhcp, 0).lease_seconds), (None, 300));
        let subnet = dhcp.table.of(Ipv4Addr::new(10, 77, 2, 0)).unwrap();
        let Offer::Address { address, .. } = dhcp.table.offer(subnet, 0, &client, None, false) else { panic!("none") };
        for (now, why) in [(0, "the machine holds it"), (3_600_000, "the machine had it last")] {
            let network = would(&dhcp, now);
            assert_eq!((network.subnet.as_str(), network.address), ("10.77.0.0/16", Some(address)));
            assert_eq!(network.why, why);
        }
        assert!(
            matches!(dhcp.table.offer(subnet, 3_600_000, &client, None, false), Offer::Address { address: a, .. } if a == address)
        );
    }
}
