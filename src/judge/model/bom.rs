//! A model: the bill of materials that machines of one kind are held against (`templates/model/*.toml`, and those of the site).
//! What it does not name is not looked at. Read once, checked to the line.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::unit::{Amount, Bytes, Link, Pattern, Transfers};
use crate::error::{Error, Result};
use crate::machine::Severity;

/// Parts of one kind in one machine: the largest enclosures have 108 disks.
const MAX_PARTS: usize = 256;

/// One file, as it stands there.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// What the column `model` of the purchase list says.
    pub name: String,
    pub why: String,
    /// Product names of SMBIOS. Machines of these are of this model where the list names none.
    #[serde(default)]
    pub products: Vec<Pattern>,
    pub cpu: Option<Cpu>,
    pub memory: Option<Memory>,
    #[serde(default)]
    pub disks: Vec<Disks>,
    #[serde(default)]
    pub nics: Vec<Nics>,
    #[serde(default)]
    pub gpus: Vec<Gpus>,
    pub tpm: Option<Tpm>,
    pub firmware: Option<Firmware>,
    /// What each machine measures at least (at most, where fewer is better), by the name of the measure: `cpu.blake3`. The
    /// others are compared with their twins.
    #[serde(default)]
    pub floors: BTreeMap<String, f64>,
    /// How much a cable in the wrong port matters.
    #[serde(default)]
    pub cabling: Cabling,
}

/// What every line of the bill may say: how much a difference matters, and the reason for the line.
macro_rules! line {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
            #[serde(default = "fault")]
            pub severity: Severity,
            pub why: Option<String>,
        }
    };
}

fn fault() -> Severity {
    Severity::Fault
}

line! {
    /// Populated sockets.
    Cpu {
        count: Spanned<usize>,
        model: Option<Pattern>,
        /// Family, model and stepping: `6-85-7`.
        stepping: Option<Pattern>,
        /// Of one socket.
        cores: Option<u16>,
    }
}

line! {
    Memory {
        /// DIMMs.
        count: Spanned<usize>,
        /// Of one DIMM.
        size: Amount<Bytes>,
        /// What each does at least, and runs at.
        speed: Option<Amount<Transfers>>,
        /// Where they are, as SMBIOS names the slots. Otherwise that follows from where the others are.
        #[serde(default)]
        slots: Vec<String>,
        /// Of one CPU, where slots are numbered round the channels (`A1`, `A2`, …), and not named after them (`DIMM_A0`).
        channels: Option<Spanned<usize>>,
    }
}

line! {
    Disks {
        /// For people: `system`, `data`.
        #[serde(default)]
        name: String,
        count: Spanned<usize>,
        /// Within 2 %: makers round.
        size: Option<Amount<Bytes>>,
        model: Option<Pattern>,
        interface: Option<Interface>,
        rotational: Option<bool>,
        /// Where they are, as the inventory names the slots.
        #[serde(default)]
        slots: Vec<String>,
    }
}

line! {
    /// Ports of network cards.
    Nics {
        count: Spanned<usize>,
        /// What each does at least.
        speed: Option<Amount<Link>>,
        /// Of the PCI device, as the PCI ID repository has it.
        model: Option<Pattern>,
        driver: Option<Pattern>,
        /// The oldest firmware that will do.
        firmware: Option<String>,
        /// How many of them have a link.
        links: Option<Spanned<usize>>,
    }
}

line! {
    Gpus {
        count: Spanned<usize>,
        model: Pattern,
    }
}

line! {
    Tpm {
        version: String,
    }
}

line! {
    /// The oldest that will do, where no firmware baseline says it.
    Firmware {
        bios: Option<String>,
        bmc: Option<String>,
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cabling {
    pub severity: Severity,
    pub why: Option<String>,
}

impl Default for Cabling {
    fn default() -> Self {
        Self { severity: Severity::Fault, why: None }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interface {
    Nvme,
    Sata,
    Sas,
    Scsi,
    Usb,
    Virtio,
}

impl Interface {
    /// As the inventory has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Nvme => "nvme",
            Self::Sata => "sata",
            Self::Sas => "sas",
            Self::Scsi => "scsi",
            Self::Usb => "usb",
            Self::Virtio => "virtio",
        }
    }
}

impl Model {
    /// `file` is for errors, which name the line and the key.
    pub fn parse(file: &str, text: &str) -> Result<Self> {
        let model: Self = toml::from_str(text).map_err(|e| {
            let at = e.span().map_or(0, |span| span.start);
            invalid(file, text, at, e.message()).hint("compare with the examples: `rackline model show compute`")
        })?;
        let wrong = |at: usize, what: String| Err(invalid(file, text, at, &what));
        if model.name.trim().is_empty() || model.name.trim() != model.name {
            return wrong(0, "the name is empty, or has spaces around it".into());
        }
        if let Some((name, _)) = model.floors.iter().find(|(_, floor)| !floor.is_finite() || **floor <= 0.0) {
            return wrong(text.find(name).unwrap_or(0), "a floor is a number above zero".into());
        }
        let groups = |counts: Vec<&Spanned<usize>>| counts.iter().map(|count| *count.as_ref()).sum::<usize>();
        let counts = [
            model.cpu.iter().map(|row| &row.count).collect::<Vec<_>>(),
            model.memory.iter().map(|row| &row.count).collect(),
            model.disks.iter().map(|row| &row.count).collect(),
            model.nics.iter().map(|row| &row.count).collect(),
            model.gpus.iter().map(|row| &row.count).collect(),
        ];
        for kind in counts {
            if let Some(none) = kind.iter().find(|count| *count.as_ref() == 0) {
                return wrong(none.span().start, "none of them: leave the section out".into());
            }
            if let Some(last) = kind.last().filter(|_| groups(kind.clone()) > MAX_PARTS) {
                return wrong(last.span().start, format!("more than {MAX_PARTS} of one kind in one machine"));
            }
        }
        model.check(&|at, what| Err(invalid(file, text, at, &what)))?;
        Ok(model)
    }

    /// What contradicts itself.
    fn check(&self, wrong: &dyn Fn(usize, String) -> Result<()>) -> Result<()> {
        let twice = |slots: &[&str]| {
            let mut sorted = slots.to_vec();
            sorted.sort_unstable();
            sorted.windows(2).find(|pair| pair[0].eq_ignore_ascii_case(pair[1])).map(|pair| pair[0].to_owned())
        };
        if let Some(memory) = &self.memory {
            let (count, at) = (*memory.count.as_ref(), memory.count.span().start);
            if !memory.slots.is_empty() && memory.slots.len() != count {
                return wrong(at, format!("{count} DIMMs, but {} slots", memory.slots.len()));
            }
            if let Some(slot) = twice(&memory.slots.iter().map(String::as_str).collect::<Vec<_>>()) {
                return wrong(at, format!("the slot {slot} is named twice"));
            }
            if let Some(channels) = memory.channels.as_ref().filter(|channels| !(1..=16).contains(channels.as_ref())) {
                return wrong(channels.span().start, format!("a CPU has no {} channels", channels.as_ref()));
            }
        }
        for disks in self.disks.iter().filter(|disks| !disks.slots.is_empty()) {
            let count = *disks.count.as_ref();
            if disks.slots.len() != count {
                return wrong(disks.count.span().start, format!("{count} disks, but {} slots", disks.slots.len()));
            }
        }
        let slots: Vec<&str> = self.disks.iter().flat_map(|disks| disks.slots.iter().map(String::as_str)).collect();
        if let (Some(slot), Some(first)) = (twice(&slots), self.disks.first()) {
            return wrong(first.count.span().start, format!("the slot {slot} is named twice"));
        }
        for nics in &self.nics {
            if let Some(links) = nics.links.as_ref().filter(|links| links.as_ref() > nics.count.as_ref()) {
                let what = format!("{} links on {} NICs", links.as_ref(), nics.count.as_ref());
                return wrong(links.span().start, what);
            }
        }
        Ok(())
    }
}

impl Model {
    /// Its parts, a few words each.
    pub fn parts(&self) -> Vec<String> {
        let line = |count: &Spanned<usize>, words: Vec<Option<String>>| {
            format!("{} × {}", count.as_ref(), words.into_iter().flatten().collect::<Vec<_>>().join(", "))
        };
        let text = |pattern: &Option<Pattern>| pattern.as_ref().map(ToString::to_string);
        let cpu = self.cpu.iter().map(|row| {
            let cores = row.cores.map(|cores| format!("{cores} cores"));
            line(&row.count, vec![Some(text(&row.model).unwrap_or("CPU".into())), text(&row.stepping), cores])
        });
        let memory = self.memory.iter().map(|row| {
            let speed = row.speed.as_ref().map(ToString::to_string);
            line(&row.count, vec![Some(format!("{} DIMM", row.size)), speed])
        });
        let disks = self.disks.iter().map(|row| {
            let kind = row.rotational.map(|yes| if yes { "spinning".to_owned() } else { "solid state".to_owned() });
            let interface = row.interface.map(|interface| interface.word().to_owned());
            let name = Some(format!("{} disk", row.name).trim_start().to_owned());
            line(&row.count, vec![name, row.size.as_ref().map(ToString::to_string), text(&row.model), interface, kind])
        });
        let nics = self.nics.iter().map(|row| {
            let speed = row.speed.as_ref().map(ToString::to_string);
            line(&row.count, vec![Some("NIC".into()), speed, text(&row.model), text(&row.driver)])
        });
        let gpus = self.gpus.iter().map(|row| line(&row.count, vec![Some(row.model.to_string())]));
        let tpm = self.tpm.iter().map(|row| format!("TPM {}", row.version));
        cpu.chain(memory).chain(disks).chain(nics).chain(gpus).chain(tpm).collect()
    }
}

/// Names the key that stands in the line.
fn invalid(file: &str, text: &str, at: usize, what: &str) -> Error {
    let before = text.get(..at).unwrap_or_default();
    let line = 1 + before.bytes().filter(|b| *b == b'\n').count();
    let key = text.lines().nth(line - 1).and_then(|line| line.split_once('=')).map(|(key, _)| key.trim());
    let key =
        key.filter(|key| !key.is_empty() && !key.starts_with('#')).map_or(String::new(), |key| format!(", {key}"));
    let what = what.trim_end().replace('\n', ", ");
    Error::config("model.invalid", format!("{file}, line {line}{key}: {what}"))
}

/// All models that are known, those of the site first.
#[derive(Debug, Clone, Default)]
pub struct Models(Vec<Model>);

/// What is built in, by the name of its file.
pub const BUILT_IN: &[(&str, &str)] = &[
    ("compute.toml", include_str!("../../../templates/model/compute.toml")),
    ("high-io.toml", include_str!("../../../templates/model/high-io.toml")),
    ("memory.toml", include_str!("../../../templates/model/memory.toml")),
    ("storage.toml", include_str!("../../../templates/model/storage.toml")),
];

impl Models {
    /// Files of a site, by name, and what is built in; a site's model takes the place of a built-in one of its name.
    pub fn of<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let mut models: Vec<Model> = Vec::new();
        for (file, text) in files {
            let model = Model::parse(file, text)?;
            if models.iter().any(|other| other.name == model.name) {
                return Err(Error::config("model.invalid", format!("{file}: there are two models {}", model.name))
                    .hint("each model has a name of its own"));
            }
            models.push(model);
        }
        for (file, text) in BUILT_IN {
            let model = Model::parse(file, text)?;
            if models.iter().all(|other| other.name != model.name) {
                models.push(model);
            }
        }
        Ok(Self(models))
    }

    pub fn built_in() -> Result<Self> {
        Self::of([])
    }

    pub fn all(&self) -> &[Model] {
        &self.0
    }

    pub fn named(&self, name: &str) -> Option<&Model> {
        self.0.iter().find(|model| model.name == name)
    }

    /// The one that says that it is for this product.
    pub fn of_product(&self, product: &str) -> Option<&Model> {
        self.0.iter().find(|model| model.products.iter().any(|pattern| pattern.fits(product)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_folder_is_built_in_and_gives_its_reasons() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("templates/model");
        let mut files: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        assert_eq!(files, BUILT_IN.iter().map(|(file, _)| *file).collect::<Vec<_>>());
        for model in Models::built_in().unwrap().all() {
            let whys = [
                model.cpu.iter().map(|row| &row.why).collect::<Vec<_>>(),
                model.memory.iter().map(|row| &row.why).collect(),
                model.disks.iter().map(|row| &row.why).collect(),
                model.nics.iter().map(|row| &row.why).collect(),
                model.gpus.iter().map(|row| &row.why).collect(),
                model.tpm.iter().map(|row| &row.why).collect(),
                model.firmware.iter().map(|row| &row.why).collect(),
            ];
            assert!(whys.iter().flatten().all(|why| why.is_some()), "{} has a line without a reason", model.name);
        }
    }

    #[test]
    fn a_site_goes_before_what_is_built_in() {
        let ours = "name = \"compute\"\nwhy = \"ours\"\nproducts = [\"PowerEdge R640\"]\n";
        let models = Models::of([("ours.toml", ours)]).unwrap();
        assert_eq!(models.all().len(), BUILT_IN.len());
        assert_eq!(models.named("compute").unwrap().why, "ours");
        assert_eq!(models.of_product("PowerEdge R640").unwrap().name, "compute");
        assert!(models.of_product("PowerEdge R650").is_none());
        let twice = Models::of([("a.toml", ours), ("b.toml", ours)]).unwrap_err();
        assert!(twice.message().starts_with("b.toml: there are two models compute"), "{twice}");
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let head = "name = \"x\"\nwhy = \"y\"\n";
        for (rest, wanted) in [
            ("colour = 1\n", "m.toml, line 3, colour: unknown field"),
            ("[memory]\ncount = 2\nsize = \"32 GB!\"\n", "m.toml, line 5, size: \"32 GB!\" is no size"),
            ("[memory]\ncount = 2\nsize = \"32 GiB\"\nspeed = \"3 GHz\"\n", "m.toml, line 6, speed: "),
            (
                "[memory]\ncount = 2\nsize = \"32 GiB\"\nslots = [\"A1\"]\n",
                "m.toml, line 4, count: 2 DIMMs, but 1 slots",
            ),
            ("[memory]\ncount = 2\nsize = \"32 GiB\"\nslots = [\"A1\", \"a1\"]\n", "m.toml, line 4, count: the slot"),
            ("[memory]\ncount = 2\nsize = \"32 GiB\"\nchannels = 0\n", "m.toml, line 6, channels: "),
            ("[cpu]\ncount = 0\n", "m.toml, line 4, count: none of them"),
            ("[cpu]\ncount = -1\n", "m.toml, line 4, count: "),
            ("[cpu]\ncount = \"two\"\n", "m.toml, line 4, count: "),
            ("[[disks]]\ncount = 2\nslots = [\"1\"]\n", "m.toml, line 4, count: 2 disks, but 1 slots"),
            ("[[disks]]\ncount = 200\n[[disks]]\ncount = 200\n", "m.toml, line 6, count: more than 256"),
            ("[[disks]]\ncount = 1\ninterface = \"scuzzy\"\n", "m.toml, line 5, interface: unknown variant"),
            ("[[disks]]\ncount = 1\nseverity = \"bad\"\n", "m.toml, line 5, severity: unknown variant"),
            ("[[nics]]\ncount = 1\nlinks = 2\n", "m.toml, line 5, links: 2 links on 1 NICs"),
            ("[floors]\n\"cpu.blake3\" = 0.0\n", "m.toml, line 4, \"cpu.blake3\": a floor"),
            ("[[gpus]]\ncount = 1\nmodel = \"*\"\n", "m.toml, line 5, model: "),
        ] {
            let error = Model::parse("m.toml", &format!("{head}{rest}")).unwrap_err();
            assert!(error.message().starts_with(wanted), "{error}\n{wanted}");
            assert_eq!(error.code(), "model.invalid");
        }
        let twice = "[[disks]]\ncount = 1\nslots = [\"1\"]\n".repeat(2);
        assert!(
            Model::parse("m.toml", &format!("{head}{twice}")).unwrap_err().message().contains("slot 1 is named twice")
        );
        assert!(
            Model::parse("m.toml", "name = \" \"\nwhy = \"y\"\n").unwrap_err().message().contains("the name is empty")
        );
    }
}
