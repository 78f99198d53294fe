//! What a setting means, and what each vendor calls it (`firmware/settings.toml`): from a meaning to attributes of the machine's
//! own `Bios` resource, and never to names that it does not have.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bmc::BiosAttributes;
use crate::error::{Error, Kind, OrFail, Result};

/// The table that is built in. One that cannot be read is empty; that it can is a test.
static BUILT_IN: LazyLock<Names> = LazyLock::new(|| {
    Names::parse(include_str!("../../firmware/settings.toml")).unwrap_or_else(|e| {
        tracing::error!(error = ?e, "the built-in names of settings cannot be read");
        Names { vendors: Vec::new() }
    })
});

/// What can be wanted of a machine, and the values that it can have.
const MEANINGS: &[(&str, &[&str])] = &[
    ("power-profile", &["performance", "balanced"]),
    ("c-states", &["on", "off"]),
    ("turbo", &["on", "off"]),
    ("smt", &["on", "off"]),
    ("virtualisation", &["on", "off"]),
    ("sr-iov", &["on", "off"]),
    ("numa", &["on", "off"]),
    ("sub-numa", &["on", "off"]),
    ("boot-mode", &["uefi", "bios"]),
    ("boot-retry", &["on", "off"]),
    ("after-power-loss", &["on", "off", "last"]),
];

/// The values that a meaning can have; an unknown meaning is an error that names the known ones.
pub fn values(meaning: &str) -> Result<&'static [&'static str]> {
    MEANINGS.iter().find(|(name, _)| *name == meaning).map(|(_, values)| *values).ok_or_else(|| {
        let known: Vec<&str> = MEANINGS.iter().map(|(name, _)| *name).collect();
        Error::config("firmware.setting", format!("there is no setting {meaning:?}"))
            .hint(format!("the settings are {}; others go by the vendor's name under [attributes]", known.join(", ")))
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Names {
    #[serde(rename = "vendor")]
    vendors: Vec<Vendor>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vendor {
    name: String,
    /// Beginnings of what SMBIOS and Redfish say.
    manufacturers: Vec<String>,
    #[serde(default, rename = "setting")]
    settings: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    meaning: String,
    value: String,
    attributes: BTreeMap<String, OneOrMore>,
    follows: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    // First, since a list is a value, too.
    More(Vec<Value>),
    One(Value),
}

impl OneOrMore {
    fn all(&self) -> &[Value] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::More(values) => values,
        }
    }
}

/// One attribute of one machine that a meaning comes down to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attribute {
    /// As the machine writes it.
    pub name: String,
    pub now: Value,
    pub wanted: Value,
    /// `now` means the same as `wanted`.
    pub fits: bool,
    /// Another meaning decides it.
    pub follows: Option<String>,
}

impl Names {
    pub fn built_in() -> &'static Self {
        &BUILT_IN
    }

    fn parse(text: &str) -> Result<Self> {
        let names: Self =
            toml::from_str(text).or_fail(Kind::Config, "firmware.names", || "the names of settings are wrong")?;
        for entry in names.vendors.iter().flat_map(|v| &v.settings) {
            let wrong =
                |what: &str| Error::config("firmware.names", format!("{} = {:?}: {what}", entry.meaning, entry.value));
            if !values(&entry.meaning)?.contains(&entry.value.as_str()) {
                return Err(wrong("there is no such value"));
            }
            if entry.attributes.values().any(|v| v.all().is_empty()) || entry.attributes.is_empty() {
                return Err(wrong("there is nothing to set"));
            }
            entry.follows.as_deref().map(values).transpose()?;
        }
        Ok(names)
    }

    pub fn vendor(&self, name: &str) -> Option<&Vendor> {
        self.vendors.iter().find(|v| v.name == name)
    }

    /// The names of all vendors.
    pub fn vendors(&self) -> impl Iterator<Item = &str> {
        self.vendors.iter().map(|v| v.name.as_str())
    }

    /// By what a machine says of its maker: `Dell Inc.`.
    pub fn of(&self, manufacturer: &str) -> Option<&Vendor> {
        let said = manufacturer.trim().to_lowercase();
        self.vendors.iter().find(|v| v.manufacturers.iter().any(|m| said.starts_with(&m.to_lowercase())))
    }
}

impl Vendor {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The attributes that make `meaning` be `value` on a machine that has these; `None` where none is known.
    pub fn attributes(&self, meaning: &str, value: &str, machine: &BiosAttributes) -> Option<Vec<Attribute>> {
        let mut ways = self.settings.iter().filter(|e| e.meaning == meaning && e.value == value);
        ways.find_map(|entry| {
            let each = entry.attributes.iter().map(|(name, wanted)| {
                let (name, now) = find(machine, name)?;
                Some(attribute(name, now, wanted.all(), entry.follows.clone()))
            });
            each.collect()
        })
    }
}

/// One attribute by the vendor's own name.
pub fn by_name(machine: &BiosAttributes, name: &str, wanted: &Value) -> Option<Attribute> {
    let (name, now) = find(machine, name)?;
    Some(attribute(name, now, std::slice::from_ref(wanted), None))
}

fn attribute(name: &str, now: &Value, wanted: &[Value], follows: Option<String>) -> Attribute {
    let fits = wanted.contains(now);
    let wanted = if fits { now.clone() } else { spelt_alike(now, wanted) };
    Attribute { name: name.to_owned(), now: now.clone(), wanted, fits, follows }
}

/// By its name, or by its name with the number that some vendors add: `PowerTechnology#2800`, `PowerTechnology_0084`.
fn find<'a>(machine: &'a BiosAttributes, name: &str) -> Option<(&'a str, &'a Value)> {
    let numbered = |found: &str| {
        let number = found.strip_prefix(name).and_then(|rest| rest.strip_prefix(['#', '_']));
        number.is_some_and(|n| n.len() >= 4 && n.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let exact = machine.get_key_value(name);
    exact.or_else(|| machine.iter().find(|(found, _)| numbered(found))).map(|(name, value)| (name.as_str(), value))
}

/// Of several spellings the one that ends as the machine's value does: against `Disable` it is `Enable`, against `Disabled` it is
/// `Enabled`.
fn spelt_alike(now: &Value, wanted: &[Value]) -> Value {
    let ends = |value: &Value| value.as_str().is_some_and(|text| text.ends_with("ed"));
    let alike = wanted.iter().find(|value| ends(value) == ends(now));
    alike.or(wanted.first()).cloned().unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn machine(attributes: Value) -> BiosAttributes {
        serde_json::from_value(attributes).unwrap()
    }

    #[test]
    fn the_built_in_table_can_be_read() {
        let names = Names::parse(include_str!("../../firmware/settings.toml")).unwrap();
        assert!(names.vendors().any(|v| v == "Dell") && names.vendors().any(|v| v == "Supermicro"));
        assert_eq!(names.of("Dell Inc.").map(Vendor::name), Some("Dell"));
        assert_eq!(names.of(" HPE ").map(Vendor::name), Some("HPE"));
        assert!(names.of("Whiteboxer").is_none());
    }

    #[test]
    fn names_are_found_with_the_number_of_the_question_and_spelt_as_the_machine_does() {
        let supermicro = Names::built_in().vendor("Supermicro").unwrap();
        let machine = machine(json!({
            "PowerTechnology#2800": "Energy Efficient", "Hyper-Threading[ALL]_0049": "Enable", "PowerTechnologyX": "no",
            "CPUC6report#0840": "Enable", "EnhancedHaltState(C1E)#0841": "Enable",
        }));
        let power = supermicro.attributes("power-profile", "performance", &machine).unwrap();
        assert_eq!((power[0].name.as_str(), &power[0].wanted), ("PowerTechnology#2800", &json!("Disable")));
        assert!(supermicro.attributes("smt", "on", &machine).unwrap()[0].fits);
        // The second way to say it: this board spells the name with a small r.
        assert_eq!(supermicro.attributes("c-states", "off", &machine).unwrap().len(), 2);
        assert!(supermicro.attributes("virtualisation", "on", &machine).is_none());
    }

    #[test]
    fn generations_of_a_vendor_differ_in_values() {
        let lenovo = Names::built_in().vendor("Lenovo").unwrap();
        for (now, wanted) in [("Disabled", "Enabled"), ("Disable", "Enable")] {
            let machine = machine(json!({ "Processors_HyperThreading": now }));
            let found = lenovo.attributes("smt", "on", &machine).unwrap();
            assert_eq!(found[0].wanted, json!(wanted));
        }
    }

    #[test]
    fn an_unknown_setting_names_the_known_ones() {
        let error = values("powerprofile").unwrap_err();
        assert!(error.next_step().is_some_and(|h| h.contains("power-profile, c-states")));
    }
}
