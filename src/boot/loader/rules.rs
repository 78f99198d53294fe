//! What the site says of boot files: `[[boot.loaders]]` by model, `[[boot.overrides]]` for one machine. Checked when the
//! configuration is loaded: a name that is no boot file's would otherwise show as a machine that does not boot.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::boot::firmware;
use crate::boot::script::{Dialect, arch_name};
use crate::error::{Error, Result};
use crate::machine::{ClientArch, MacAddr};

/// The order in which boot files are tried on machines of one model and architecture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderRule {
    /// The product name of the inventory, upper and lower case alike; absent: every model.
    #[serde(default)]
    pub model: Option<String>,
    pub arch: ClientArch,
    /// These in this order, and no others.
    #[serde(rename = "use")]
    pub loaders: Vec<String>,
}

/// What one machine gets instead of what all others get. Exactly one of `machine` and `mac` says which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    #[serde(default)]
    pub machine: Option<String>,
    #[serde(default)]
    pub mac: Option<MacAddr>,
    /// In place of `boot.kernel_args`.
    #[serde(default)]
    pub kernel_args: Option<Vec<String>>,
    /// A template in place of the built-in scripts: `*.ipxe`, or `*.grub` for a machine that boots by shim and GRUB.
    #[serde(default)]
    pub script: Option<PathBuf>,
    /// These boot files in this order; those of another architecture are passed over.
    #[serde(default)]
    pub loaders: Vec<String>,
}

impl LoaderRule {
    pub fn check(&self) -> Result<()> {
        let arch = arch_name(self.arch);
        let what = match &self.model {
            Some(model) => format!("boot.loaders of model {model:?}, {arch}"),
            None => format!("boot.loaders of {arch}"),
        };
        if self.model.as_ref().is_some_and(|m| m.trim().is_empty()) {
            return Err(wrong(format!("{what}: the model is empty")).hint("leave `model` out to mean every model"));
        }
        let known = firmware::known(self.arch);
        check_names(&what, &self.loaders, known)?;
        if self.loaders.is_empty() {
            return Err(wrong(format!("{what}: `use` names no boot file")).hint(these(known)));
        }
        Ok(())
    }

    /// Of no model in particular, or of this one.
    pub fn fits(&self, arch: ClientArch, model: Option<&str>) -> bool {
        let same = |rule: &String| model.is_some_and(|m| m.trim().eq_ignore_ascii_case(rule.trim()));
        self.arch == arch && self.model.as_ref().is_none_or(same)
    }
}

impl Override {
    pub fn check(&self) -> Result<()> {
        let whose = match (&self.machine, self.mac) {
            (Some(machine), None) => machine.clone(),
            (None, Some(mac)) => mac.to_string(),
            _ => {
                return Err(wrong("an entry of boot.overrides needs either machine or mac")
                    .hint("write machine = \"NAME\" or mac = \"52:54:00:12:34:56\""));
            }
        };
        let what = format!("boot.overrides of {whose}");
        if self.kernel_args.is_none() && self.script.is_none() && self.loaders.is_empty() {
            return Err(wrong(format!("{what} changes nothing")).hint("give kernel_args, script or loaders"));
        }
        if self.script.is_some() && self.dialect().is_none() {
            return Err(wrong(format!("{what}: the script's name ends in neither .ipxe nor .grub")));
        }
        check_names(&what, &self.loaders, &firmware::known_anywhere())
    }

    /// Who reads `script`, by its name.
    pub fn dialect(&self) -> Option<Dialect> {
        match self.script.as_ref()?.extension()?.to_str()? {
            "ipxe" => Some(Dialect::Ipxe),
            "grub" => Some(Dialect::Grub),
            _ => None,
        }
    }

    pub fn same_machine(&self, other: &Self) -> bool {
        self.machine == other.machine && self.mac == other.mac
    }
}

fn check_names(what: &str, names: &[String], known: &[firmware::Name]) -> Result<()> {
    for (i, name) in names.iter().enumerate() {
        if !known.iter().any(|k| **k == **name) {
            return Err(wrong(format!("{what}: there is no boot file {name:?}")).hint(these(known)));
        }
        if names.iter().take(i).any(|n| n == name) {
            return Err(wrong(format!("{what}: {name} is named twice")));
        }
    }
    Ok(())
}

fn these(known: &[firmware::Name]) -> String {
    match known.is_empty() {
        true => "there is no boot file for this architecture".into(),
        false => format!("the known ones are {}", known.join(", ")),
    }
}

fn wrong(message: impl Into<String>) -> Error {
    Error::config("boot.config", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Result<()> {
        toml::from_str::<LoaderRule>(text).unwrap().check()
    }

    #[test]
    fn a_rule_names_boot_files_of_its_architecture() {
        rule("model = \"LW-R1\"\narch = \"uefi-x64\"\nuse = [\"shimx64.efi\", \"ipxe.efi\"]").unwrap();
        let error = rule("model = \"LW-R1\"\narch = \"uefi-x64\"\nuse = [\"undionly.kpxe\"]").unwrap_err();
        assert!(error.message().contains("\"LW-R1\", uefi-x64: there is no boot file \"undionly.kpxe\""), "{error}");
        assert_eq!(error.next_step(), Some("the known ones are snponly.efi, ipxe.efi, shimx64.efi"));
        for (text, says) in [
            ("arch = \"bios\"\nuse = []", "names no boot file"),
            ("arch = \"bios\"\nuse = [\"ipxe.pxe\", \"ipxe.pxe\"]", "named twice"),
            ("model = \" \"\narch = \"bios\"\nuse = [\"ipxe.pxe\"]", "model is empty"),
            ("arch = \"uefi-ia32\"\nuse = [\"ipxe.efi\"]", "no boot file \"ipxe.efi\""),
        ] {
            assert!(rule(text).unwrap_err().message().contains(says), "{text}");
        }
    }

    #[test]
    fn a_rule_fits_its_model_in_any_case_and_without_one_every_model() {
        let rule = |model: Option<&str>| LoaderRule {
            model: model.map(str::to_owned),
            arch: ClientArch::Bios,
            loaders: vec!["ipxe.pxe".into()],
        };
        assert!(rule(Some("LW-R1")).fits(ClientArch::Bios, Some("lw-r1 ")));
        assert!(!rule(Some("LW-R1")).fits(ClientArch::Bios, Some("LW-R10")));
        assert!(!rule(Some("LW-R1")).fits(ClientArch::Bios, None));
        assert!(!rule(Some("LW-R1")).fits(ClientArch::UefiX64, Some("LW-R1")));
        assert!(rule(None).fits(ClientArch::Bios, None));
    }

    #[test]
    fn an_override_says_whose_it_is_and_changes_something() {
        let check = |text: &str| toml::from_str::<Override>(text).unwrap().check();
        check("machine = \"kvm-1\"\nkernel_args = []").unwrap();
        check("mac = \"52:54:00:00:00:01\"\nscript = \"rescue.ipxe\"\nloaders = [\"shimx64.efi\"]").unwrap();
        for (text, says) in [
            ("kernel_args = []", "either machine or mac"),
            ("machine = \"a\"\nmac = \"52:54:00:00:00:01\"\nkernel_args = []", "either machine or mac"),
            ("machine = \"a\"", "boot.overrides of a changes nothing"),
            ("machine = \"a\"\nscript = \"rescue.sh\"", "neither .ipxe nor .grub"),
            ("machine = \"a\"\nloaders = [\"ipxe.elf\"]", "no boot file \"ipxe.elf\""),
        ] {
            assert!(check(text).unwrap_err().message().contains(says), "{text}");
        }
    }
}
