//! Baselines: what firmware and which settings a model shall have (`firmware/baselines/*.toml`, and those of the site). Read once,
//! checked to the line, and asked by manufacturer and model.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::names::{self, Names};
use crate::bmc::BiosAttributes;
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::Digest;
use crate::machine::version;

/// The baselines that are built in, by the name of their file.
const BUILT_IN: &[(&str, &str)] = &[
    ("dell-r630.toml", include_str!("../../firmware/baselines/dell-r630.toml")),
    ("dell-r740xd.toml", include_str!("../../firmware/baselines/dell-r740xd.toml")),
    ("dell-r750.toml", include_str!("../../firmware/baselines/dell-r750.toml")),
    ("labworks-r1.toml", include_str!("../../firmware/baselines/labworks-r1.toml")),
    ("quanta-d51.toml", include_str!("../../firmware/baselines/quanta-d51.toml")),
];

/// A file of the site that is larger than this is not a baseline.
const MAX_FILE: u64 = 1 << 20;

/// Kinds of parts that have firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    Bmc,
    Bios,
    Nic,
    Disk,
    Cpld,
    Psu,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Part::Bmc => "BMC",
            Part::Bios => "BIOS",
            Part::Nic => "NIC",
            Part::Disk => "disk",
            Part::Cpld => "CPLD",
            Part::Psu => "power supply",
        })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Baseline {
    pub name: String,
    /// By its name in `firmware/settings.toml`.
    pub vendor: String,
    /// Product names as SMBIOS and Redfish have them; `*` at the end stands for anything.
    pub models: Vec<String>,
    /// A machine that does not reach it is held.
    pub required: bool,
    pub network_first: bool,
    pub firmware: Vec<Wanted>,
    /// In the order of the file, which is the order of their weight.
    pub settings: Vec<Setting>,
    /// By the vendor's own names.
    pub attributes: BiosAttributes,
}

/// A version that a kind of part shall have.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    pub part: Part,
    /// Only parts in whose name or id this occurs.
    pub named: Option<String>,
    pub version: Version,
    /// An older version than the one that is there may be written.
    pub downgrade: bool,
    /// The only bundle that may be used.
    pub blake3: Option<Digest>,
    pub sha256: Option<Digest>,
    pub why: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Version {
    Minimum(String),
    Exact(String),
}

impl Version {
    /// `None` where nobody can say.
    pub fn is_met_by(&self, found: &str) -> Option<bool> {
        match self {
            Self::Minimum(least) => version::compare(found, least).map(std::cmp::Ordering::is_ge),
            Self::Exact(exact) => Some(version::same(found, exact)),
        }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Minimum(least) => write!(f, "at least {least}"),
            Self::Exact(exact) => f.write_str(exact),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    pub meaning: String,
    pub value: String,
    pub why: Option<String>,
}

/// As it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Document {
    name: Spanned<String>,
    vendor: Spanned<String>,
    models: Spanned<Vec<String>>,
    #[serde(default)]
    required: bool,
    boot_order: Option<BootOrder>,
    #[serde(default)]
    setting: Vec<SettingRow>,
    #[serde(default)]
    firmware: Vec<FirmwareRow>,
    #[serde(default)]
    attributes: BTreeMap<String, Spanned<toml::Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum BootOrder {
    NetworkFirst,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SettingRow {
    name: Spanned<String>,
    value: Spanned<String>,
    why: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FirmwareRow {
    component: Spanned<Part>,
    named: Option<String>,
    minimum: Option<String>,
    exact: Option<String>,
    #[serde(default)]
    downgrade: bool,
    blake3: Option<Digest>,
    sha256: Option<Digest>,
    why: Option<String>,
}

impl Baseline {
    /// `file` is for errors, which name the line.
    pub fn parse(file: &str, text: &str, names: &Names) -> Result<Self> {
        let document: Document = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(1, |span| line_of(text, span.start));
            invalid(file, line, e.message()).hint("see firmware/baselines/ for examples")
        })?;
        let at = |span: std::ops::Range<usize>| line_of(text, span.start);
        if names.vendor(document.vendor.as_ref()).is_none() {
            let known: Vec<&str> = names.vendors().collect();
            let what = format!("there is no vendor {:?}", document.vendor.as_ref());
            return Err(
                invalid(file, at(document.vendor.span()), &what).hint(format!("the vendors are {}", known.join(", ")))
            );
        }
        if document.name.as_ref().trim().is_empty() {
            return Err(invalid(file, at(document.name.span()), "the name is empty"));
        }
        if document.models.as_ref().is_empty()
            || document.models.as_ref().iter().any(|m| m.trim_matches('*').is_empty())
        {
            return Err(invalid(file, at(document.models.span()), "models names no model"));
        }
        let settings = settings(file, text, document.setting)?;
        let firmware = document.firmware.into_iter().map(|row| wanted(file, text, row)).collect::<Result<_>>()?;
        let mut attributes = BiosAttributes::new();
        for (name, value) in document.attributes {
            let line = at(value.span());
            attributes.insert(
                name,
                scalar(value.into_inner())
                    .ok_or_else(|| invalid(file, line, "an attribute is a word, a number, true or false"))?,
            );
        }
        Ok(Self {
            name: document.name.into_inner(),
            vendor: document.vendor.into_inner(),
            models: document.models.into_inner(),
            required: document.required,
            network_first: matches!(document.boot_order, Some(BootOrder::NetworkFirst)),
            firmware,
            settings,
            attributes,
        })
    }

    /// What it wants, a few words each.
    pub fn wants(&self) -> Vec<String> {
        let settings = self.settings.iter().map(|s| format!("{} {}", s.meaning, s.value));
        let attributes = self.attributes.iter().map(|(name, value)| format!("{name} {}", super::plan::text(value)));
        let order = self.network_first.then(|| "network first".to_owned());
        let firmware = self.firmware.iter().map(|w| match &w.named {
            Some(named) => format!("{} firmware of {named}: {}", w.part, w.version),
            None => format!("{} firmware: {}", w.part, w.version),
        });
        settings.chain(attributes).chain(order).chain(firmware).collect()
    }

    pub fn fits_model(&self, model: &str) -> bool {
        self.models.iter().any(|pattern| fits(pattern, model))
    }
}

/// Whether a model is meant by a name, or by its beginning and `*`.
pub fn fits(pattern: &str, model: &str) -> bool {
    let (pattern, model) = (pattern.trim().to_lowercase(), model.trim().to_lowercase());
    match pattern.strip_suffix('*') {
        Some(beginning) => model.starts_with(beginning),
        None => model == pattern,
    }
}

fn settings(file: &str, text: &str, rows: Vec<SettingRow>) -> Result<Vec<Setting>> {
    let mut settings: Vec<Setting> = Vec::new();
    for row in rows {
        let line = line_of(text, row.name.span().start);
        let meaning = row.name.into_inner();
        let values = names::values(&meaning)
            .map_err(|e| invalid(file, line, e.message()).hint(e.next_step().unwrap_or_default()))?;
        if !values.contains(&row.value.as_ref().as_str()) {
            let line = line_of(text, row.value.span().start);
            let what = format!("{meaning} cannot be {:?}", row.value.as_ref());
            return Err(invalid(file, line, &what).hint(format!("it can be {}", values.join(" or "))));
        }
        if settings.iter().any(|s| s.meaning == meaning) {
            return Err(invalid(file, line, &format!("{meaning} is set twice")));
        }
        settings.push(Setting { meaning, value: row.value.into_inner(), why: row.why });
    }
    Ok(settings)
}

fn wanted(file: &str, text: &str, row: FirmwareRow) -> Result<Wanted> {
    let line = line_of(text, row.component.span().start);
    let part = row.component.into_inner();
    let version = match (row.minimum, row.exact) {
        (Some(least), None) => Version::Minimum(least),
        (None, Some(exact)) => Version::Exact(exact),
        _ => return Err(invalid(file, line, &format!("the {part} firmware needs either minimum or exact"))),
    };
    if row.downgrade && matches!(version, Version::Minimum(_)) {
        return Err(invalid(file, line, "downgrade has a meaning beside exact only"));
    }
    Ok(Wanted {
        part,
        named: row.named,
        version,
        downgrade: row.downgrade,
        blake3: row.blake3,
        sha256: row.sha256,
        why: row.why,
    })
}

fn scalar(value: toml::Value) -> Option<serde_json::Value> {
    Some(match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Boolean(yes) => yes.into(),
        _ => return None,
    })
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count()
}

fn invalid(file: &str, line: usize, what: &str) -> Error {
    Error::config("firmware.baseline", format!("{file}, line {line}: {}", what.trim_end()))
}

/// All baselines that are known here, those of the site first.
#[derive(Debug, Clone, Default)]
pub struct Baselines(Vec<Baseline>);

impl Baselines {
    pub fn built_in() -> Result<Self> {
        let each = BUILT_IN.iter().map(|(file, text)| Baseline::parse(file, text, Names::built_in()));
        Ok(Self(each.collect::<Result<_>>()?))
    }

    /// Those of a folder (`*.toml`, by name), before those built in.
    pub fn with_folder(folder: &Path) -> Result<Self> {
        let unreadable = || format!("cannot read the folder of firmware baselines {}", folder.display());
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).or_fail(Kind::Config, "firmware.baselines", unreadable)? {
            let path = entry.or_fail(Kind::Config, "firmware.baselines", unreadable)?.path();
            if path.extension().is_some_and(|e| e == "toml") {
                files.push(path);
            }
        }
        files.sort();
        let mut all = files.iter().map(|file| read(file)).collect::<Result<Vec<_>>>()?;
        all.extend(Self::built_in()?.0);
        Ok(Self(all))
    }

    pub fn all(&self) -> &[Baseline] {
        &self.0
    }

    /// The first that fits what the machine says of itself.
    pub fn of(&self, manufacturer: &str, model: &str) -> Option<&Baseline> {
        let vendor = Names::built_in().of(manufacturer)?.name();
        self.0.iter().find(|b| b.vendor == vendor && b.fits_model(model))
    }
}

/// One file of the site.
pub fn read(path: &Path) -> Result<Baseline> {
    let unreadable = || format!("cannot read the firmware baseline {}", path.display());
    let size = std::fs::metadata(path).or_fail(Kind::Config, "firmware.baseline", unreadable)?.len();
    if size > MAX_FILE {
        return Err(Error::config("firmware.baseline", format!("{} is too large for a baseline", path.display())));
    }
    let text = std::fs::read_to_string(path).or_fail(Kind::Config, "firmware.baseline", unreadable)?;
    Baseline::parse(&path.display().to_string(), &text, Names::built_in())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Baseline> {
        Baseline::parse("site.toml", text, Names::built_in())
    }

    #[test]
    fn the_built_in_ones_can_be_read_and_begin_with_the_power_profile() {
        let all = Baselines::built_in().unwrap();
        assert_eq!(all.all().len(), BUILT_IN.len());
        for baseline in all.all() {
            let first = &baseline.settings[0];
            assert_eq!((first.meaning.as_str(), first.value.as_str()), ("power-profile", "performance"));
            assert!(first.why.is_some(), "{} does not say why", baseline.name);
        }
    }

    #[test]
    fn every_file_of_the_folder_is_built_in() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("firmware/baselines");
        let mut files: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        assert_eq!(files, BUILT_IN.iter().map(|(file, _)| *file).collect::<Vec<_>>());
    }

    #[test]
    fn by_what_machines_say_of_themselves() {
        let all = Baselines::built_in().unwrap();
        let name = |maker, model| all.of(maker, model).map(|b| b.name.clone());
        assert_eq!(name("Dell Inc.", "PowerEdge R750").as_deref(), Some("Dell PowerEdge R750"));
        assert_eq!(name("Quanta Computer Inc", "D51B-2U (dual 10G LoM)").as_deref(), Some("Quanta D51B-2U"));
        assert_eq!(name("Labworks", "LW-R1").as_deref(), Some("Labworks LW-R1"));
        assert_eq!(name("Dell Inc.", "PowerEdge R7505"), None);
        assert_eq!(name("HPE", "PowerEdge R750"), None);
    }

    #[test]
    fn a_site_goes_before_what_is_built_in() {
        let folder = tempfile::tempdir().unwrap();
        let text = "name = \"ours\"\nvendor = \"Dell\"\nmodels = [\"PowerEdge R7*\"]\n";
        std::fs::write(folder.path().join("ours.toml"), text).unwrap();
        std::fs::write(folder.path().join("notes.txt"), "not a baseline").unwrap();
        let all = Baselines::with_folder(folder.path()).unwrap();
        assert_eq!(all.of("Dell Inc.", "PowerEdge R750").unwrap().name, "ours");
        assert_eq!(all.of("Dell Inc.", "PowerEdge R630").unwrap().name, "Dell PowerEdge R630");
        assert_eq!(Baselines::with_folder(Path::new("/nowhere")).unwrap_err().code(), "firmware.baselines");
    }

    #[test]
    fn errors_name_file_and_line() {
        let head = "name = \"x\"\nvendor = \"Dell\"\nmodels = [\"y\"]\n";
        for (text, line, part) in [
            ("name = \"x\"\nvendor = \"Delll\"\nmodels = [\"y\"]\n".to_owned(), 2, "no vendor"),
            ("name = \"x\"\nvendor = \"Dell\"\nmodels = []\n".to_owned(), 3, "no model"),
            (format!("{head}[[setting]]\nname = \"smtt\"\nvalue = \"on\"\n"), 5, "no setting"),
            (format!("{head}[[setting]]\nname = \"smt\"\nvalue = \"yes\"\n"), 6, "cannot be"),
            (format!("{head}[[firmware]]\ncomponent = \"bios\"\n"), 5, "either minimum or exact"),
            (format!("{head}[[firmware]]\ncomponent = \"toaster\"\nminimum = \"1\"\n"), 5, "toaster"),
            (format!("{head}[[firmware]]\ncomponent = \"bios\"\nminimum = \"1\"\ndowngrade = true\n"), 5, "downgrade"),
            (format!("{head}[attributes]\nA = [1]\n"), 5, "an attribute is"),
            (format!("{head}colour = 1\n"), 4, "colour"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.message().starts_with(&format!("site.toml, line {line}: ")), "{error}");
            assert!(error.message().contains(part), "{error}");
            assert_eq!(error.code(), "firmware.baseline");
        }
        let twice = "[[setting]]\nname = \"smt\"\nvalue = \"on\"\n".repeat(2);
        assert!(parse(&format!("{head}{twice}")).unwrap_err().message().contains("line 8: smt is set twice"));
    }
}
