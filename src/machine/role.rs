//! What a machine shall become: one role, or several at once, as `kvm+ovs`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What a role makes of a machine. A closed set here; what each one installs is data (`templates/role/*.toml`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Kvm,
    Docker,
    Ovs,
}

impl Role {
    pub const ALL: [Role; 3] = [Role::Kvm, Role::Docker, Role::Ovs];

    pub fn name(self) -> &'static str {
        match self {
            Role::Kvm => "kvm",
            Role::Docker => "docker",
            Role::Ovs => "ovs",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Role {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Role::ALL.into_iter().find(|r| r.name() == s).ok_or_else(|| {
            Error::input("role.unknown", format!("there is no role {s:?}"))
                .hint("the roles are kvm, docker and ovs, and combinations such as kvm+ovs")
        })
    }
}

/// At least one role, each once, in a fixed order. As text, also on the wire: `kvm`, `kvm+ovs`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Roles(BTreeSet<Role>);

impl Roles {
    /// `None` without any.
    pub fn of(roles: impl IntoIterator<Item = Role>) -> Option<Self> {
        let roles: BTreeSet<Role> = roles.into_iter().collect();
        (!roles.is_empty()).then_some(Self(roles))
    }

    pub fn iter(&self) -> impl Iterator<Item = Role> + '_ {
        self.0.iter().copied()
    }

    pub fn contains(&self, role: Role) -> bool {
        self.0.contains(&role)
    }

    /// Each of them is among `offered`.
    pub fn all_in(&self, offered: &[Role]) -> bool {
        self.iter().all(|role| offered.contains(&role))
    }
}

impl From<Role> for Roles {
    fn from(role: Role) -> Self {
        Self(BTreeSet::from([role]))
    }
}

impl From<Roles> for String {
    fn from(roles: Roles) -> Self {
        roles.to_string()
    }
}

impl TryFrom<String> for Roles {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl std::fmt::Display for Roles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.iter().map(Role::name).collect();
        f.write_str(&names.join("+"))
    }
}

impl std::str::FromStr for Roles {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let roles = text.split('+').map(str::parse).collect::<Result<BTreeSet<Role>>>()?;
        Ok(Self(roles))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_role_names_the_known_ones() {
        for text in ["kvmm", "", "kvm+", "kvm ovs"] {
            let error = text.parse::<Roles>().unwrap_err();
            assert!(error.next_step().is_some_and(|h| h.contains("kvm, docker and ovs")), "{text}");
        }
    }

    #[test]
    fn several_roles_are_one_text_in_a_fixed_order() {
        let roles: Roles = "ovs+kvm+ovs".parse().unwrap();
        assert_eq!(roles.to_string(), "kvm+ovs");
        assert_eq!(serde_json::to_string(&roles).unwrap(), r#""kvm+ovs""#);
        assert_eq!(serde_json::from_str::<Roles>(r#""kvm""#).unwrap(), Role::Kvm.into());
        assert!(roles.all_in(&Role::ALL) && !roles.all_in(&[Role::Kvm]));
        assert_eq!(Roles::of([]), None);
    }
}
