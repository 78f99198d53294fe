//! What a host must show before it is handed off, as data: `templates/check/*.toml`, and what a site changes of it or adds.
//!
//! ```text
//!  templates/check/*.toml ─► Set ─┬─► the order to verify: what is asked for ─► agent: value or sentence ─► link::Check
//!  the site's own folder ─────────┘                                                                            │
//!  templates/check/*.toml ─► what each role must have shown at least ─► PassingChecks ◄────────────────────────┘
//! ```
//!
//! How a thing is measured is code, one [`Kind`] each; what is expected of it, how bad it is when it is not so, and who does
//! what about it is declared. Pure: it reads no file but those it is given.

mod file;
mod kind;
mod quantity;

use std::path::Path;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

pub use kind::Kind;
pub use quantity::{Bound, Unit};

use crate::error::{Error, Kind as Fault, OrFail, Result};
use crate::machine::{Digest, Hostname, Role, Roles, Severity, Who};

const BUILT_IN: &[(&str, &str)] = &[
    ("host.toml", include_str!("../../templates/check/host.toml")),
    ("kvm.toml", include_str!("../../templates/check/kvm.toml")),
    ("docker.toml", include_str!("../../templates/check/docker.toml")),
    ("ovs.toml", include_str!("../../templates/check/ovs.toml")),
];

/// A file of the site that is larger than this declares no checks.
const MAX_FILE: u64 = 1 << 20;

/// One check before it is carried out; so it also travels to the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Declared {
    /// Stable: `kernel`, `kvm.guest`.
    pub id: String,
    pub kind: Kind,
    /// `None`: every host must show it.
    #[serde(default)]
    pub role: Option<Role>,
    pub why: String,
    /// How it is measured, for people.
    pub how: String,
    /// A sentence; `{bound}` and the facts of the order are filled in by [`Set::asks`].
    pub expected: String,
    #[serde(default)]
    pub bound: Option<Bound>,
    pub severity: Severity,
    pub who: Who,
    pub next: String,
    pub deadline_seconds: f64,
    /// It takes services away for a moment: before delivery only.
    #[serde(default)]
    pub disruptive: bool,
    #[serde(default)]
    pub subject: Option<Subject>,
    /// Why the site has another bound or severity than the one that is built in.
    #[serde(default)]
    pub changed: Option<String>,
}

/// What the kinds that a site may use as often as it likes look at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    File { path: String, says: Option<String> },
    Command { run: Vec<String>, says: Option<String> },
}

/// What a sentence may say of the order.
pub struct Facts<'a> {
    pub hostname: &'a Hostname,
    pub manifest: Digest,
    pub kernel_floor: &'a str,
}

/// All that is declared, in the order of the files.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Set(Vec<Declared>);

impl Set {
    /// What every site starts from.
    pub fn built_in() -> &'static Set {
        static SET: LazyLock<Set> = LazyLock::new(|| {
            let all = BUILT_IN.iter().try_fold(Set::default(), |set, (name, text)| set.with(name, text));
            all.unwrap_or_else(|e| unreachable!("a test reads templates/check: {e}"))
        });
        &SET
    }

    /// What is built in, with the `.toml` files of a site's folder in the order of their names.
    pub fn load(folder: &Path) -> Result<Self> {
        let failed = || format!("cannot read the checks in {}", folder.display());
        let entries = std::fs::read_dir(folder).or_fail(Fault::Config, "check.read", failed)?;
        let mut paths: Vec<_> = entries.flatten().map(|e| e.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|e| e == "toml"));
        paths.sort();
        let mut set = Self::built_in().clone();
        for path in paths {
            let name = path.display().to_string();
            let about = std::fs::metadata(&path).or_fail(Fault::Config, "check.read", failed)?;
            if about.len() > MAX_FILE {
                return Err(Error::config("check.invalid", format!("{name} is larger than 1 MiB")));
            }
            set = set.with(&name, &std::fs::read_to_string(&path).or_fail(Fault::Config, "check.read", failed)?)?;
        }
        Ok(set)
    }

    /// With what one file declares and changes. `name` is for errors, which say the line too.
    pub fn with(self, name: &str, text: &str) -> Result<Self> {
        file::read(self.0, name, text).map(Self)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Declared> {
        self.0.iter()
    }

    /// What a host of these roles must show.
    pub fn of(&self, roles: &Roles) -> impl Iterator<Item = &Declared> {
        self.iter().filter(|declared| declared.role.is_none_or(|role| roles.contains(role)))
    }

    /// The same, ready for the agent. Of a host in use only what does not disturb it is asked.
    pub fn asks(&self, roles: &Roles, facts: &Facts<'_>, in_use: bool) -> Vec<Declared> {
        let asked = self.of(roles).filter(|declared| !(in_use && declared.disruptive));
        asked.map(|declared| Declared { expected: declared.sentence(facts), ..declared.clone() }).collect()
    }
}

impl Declared {
    fn sentence(&self, facts: &Facts<'_>) -> String {
        let bound = self.bound.map_or(String::new(), |bound| bound.to_string());
        let values = [
            ("{bound}", bound),
            ("{hostname}", facts.hostname.to_string()),
            ("{manifest}", facts.manifest.to_string()),
            ("{kernel-floor}", facts.kernel_floor.to_owned()),
        ];
        values.iter().fold(self.expected.clone(), |text, (name, value)| text.replace(name, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_in_is_whole() {
        let set = Set::built_in();
        for role in Role::ALL {
            let own = set.iter().filter(|d| d.role == Some(role)).count();
            assert!(own >= 3, "{role} has {own} checks");
        }
        for kind in Kind::all().filter(|kind| !kind.repeats()) {
            assert_eq!(set.iter().filter(|d| d.kind == kind).count(), 1, "{kind}");
        }
        assert!(set.iter().all(|d| d.changed.is_none()));
        let worst: f64 = set.iter().map(|d| d.deadline_seconds).fold(0.0, f64::max);
        assert!(worst <= 300.0, "the whole visit has 20 minutes");
    }

    #[test]
    fn an_order_asks_for_its_roles_and_says_what_it_wants() {
        let hostname = "kvm-01".parse().unwrap();
        let facts = Facts { hostname: &hostname, manifest: Digest([7; 32]), kernel_floor: "6.1" };
        let asks = Set::built_in().asks(&Role::Ovs.into(), &facts, false);
        assert!(asks.iter().any(|d| d.id == "ovs.vlan") && !asks.iter().any(|d| d.role == Some(Role::Kvm)));
        assert!(asks.iter().all(|d| !d.expected.contains(['{', '}'])), "{asks:?}");
        let name = asks.iter().find(|d| d.id == "hostname").unwrap();
        assert_eq!(name.expected, "kvm-01");
        let in_use = Set::built_in().asks(&Role::Ovs.into(), &facts, true);
        assert!(in_use.len() < asks.len() && in_use.iter().all(|d| !d.disruptive));
    }

    #[test]
    fn a_sites_folder_is_read_in_the_order_of_names() {
        let folder = tempfile::tempdir().unwrap();
        let change =
            |seconds| format!("[[change]]\nid = \"docker.container\"\nat-most = \"{seconds} s\"\nreason = \"slow\"\n");
        std::fs::write(folder.path().join("2.toml"), change(20)).unwrap();
        std::fs::write(folder.path().join("1.toml"), change(10)).unwrap();
        std::fs::write(folder.path().join("notes.txt"), "nothing").unwrap();
        let set = Set::load(folder.path()).unwrap();
        let docker = set.iter().find(|d| d.id == "docker.container").unwrap();
        assert_eq!(docker.bound.unwrap().at_most, Some(20.0));
        assert_eq!(Set::load(&folder.path().join("nowhere")).unwrap_err().code(), "check.read");
    }
}
