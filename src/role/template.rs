//! The files that say what a role is (`templates/role/*.toml`, and those of the site), and several roles joined into one.
//!
//! How roles are joined, key by key:
//!
//! * `image`: the same name, or a combined image whose name is theirs joined by `-`, as `kvm-ovs`.
//! * `storage`: pools, thin pools and volumes of both. What both name must be the same in both; of what they put into one pool
//!   together, no more than the pool may be promised. `discard` must be the same.
//! * `network`: the same in both, or only in one.
//! * `tuning`: what both set must be the same; of limits and floors the stricter or larger one (`tuning::Join`).
//! * `checks`, `hand-off`: all of them.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::storage::{Storage, Wrong};
use super::tuning::{self, Setting};
use super::{HandOff, Network, Setup};
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::{Role, Roles};

/// The roles that are built in, by the name of their file.
const BUILT_IN: &[(&str, &str)] = &[
    ("docker.toml", include_str!("../../templates/role/docker.toml")),
    ("kvm.toml", include_str!("../../templates/role/kvm.toml")),
    ("ovs.toml", include_str!("../../templates/role/ovs.toml")),
];

/// A file of the site that is larger than this is not a role.
const MAX_FILE: u64 = 1 << 20;

/// What one role is, or several at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    /// The name of the file, or of the files: `kvm.toml and ovs.toml`.
    pub file: String,
    pub role: Roles,
    pub image: String,
    pub setup: Setup,
}

/// As it stands in the file: every key has to be there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Document {
    role: Role,
    image: Spanned<String>,
    storage: Spanned<Storage>,
    network: Network,
    tuning: Vec<Row>,
    checks: Spanned<Vec<String>>,
    hand_off: Vec<HandOff>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    set: Spanned<String>,
    value: Spanned<toml::Value>,
    why: Spanned<String>,
}

impl Template {
    /// `file` is for errors, which name it with the line or the key.
    pub fn parse(file: &str, text: &str) -> Result<Self> {
        let line = |offset: usize| 1 + text.bytes().take(offset).filter(|b| *b == b'\n').count();
        let document: Document = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(1, |span| line(span.start));
            invalid(file, line, e.message()).hint("docs/roles.md has every key; templates/role/ are examples")
        })?;
        if document.image.as_ref().trim().is_empty() {
            return Err(invalid(file, line(document.image.span().start), "image is empty"));
        }
        document.storage.as_ref().check().map_err(|w| contradiction(file, &w))?;
        let mut settings: Vec<Setting> = Vec::new();
        for row in document.tuning {
            let at = line(row.set.span().start);
            let name = row.set.into_inner();
            let knob = tuning::knob(&name).ok_or_else(|| {
                invalid(file, at, &format!("there is no setting {name:?}"))
                    .hint(format!("there are {}", tuning::names()))
            })?;
            let at_value = line(row.value.span().start);
            let value = scalar(row.value.into_inner()).filter(|v| knob.values.allow(v)).ok_or_else(|| {
                invalid(file, at_value, &format!("{name} cannot be that")).hint(format!("it can be {}", knob.values))
            })?;
            if row.why.as_ref().trim().is_empty() {
                return Err(invalid(file, line(row.why.span().start), &format!("{name} is set without a reason")));
            }
            if settings.iter().any(|s| s.name == name) {
                return Err(invalid(file, at, &format!("{name} is set twice")));
            }
            settings.push(Setting { name, value, why: row.why.into_inner() });
        }
        let checks_at = line(document.checks.span().start);
        let checks = document.checks.into_inner();
        if let Some(id) = checks.iter().find(|id| !is_id(id)) {
            let hint = "ids are like kvm.guest: lower case letters, digits, - and .";
            return Err(invalid(file, checks_at, &format!("{id:?} is not the id of a check")).hint(hint));
        }
        Ok(Self {
            file: file.to_owned(),
            role: document.role.into(),
            image: document.image.into_inner(),
            setup: Setup {
                storage: document.storage.into_inner(),
                network: document.network,
                tuning: settings,
                checks,
                hand_off: document.hand_off,
            },
        })
    }

    /// Both at once; see the head of this file. The error names both files.
    fn join(self, other: Self) -> Result<Self> {
        let files = format!("{} and {}", self.file, other.file);
        let contradict = |what: String| {
            Error::input("role.contradiction", format!("{files} contradict each other: {what}"))
                .hint("order the roles on two machines, or change one of the files in the site's folder")
        };
        let image = if self.image == other.image { self.image } else { format!("{}-{}", self.image, other.image) };
        let mut storage = self.setup.storage;
        if storage.discard != other.setup.storage.discard {
            return Err(contradict("storage.discard is on in one and off in the other".into()));
        }
        join_rows(&mut storage.pool, other.setup.storage.pool, |p| &p.name)
            .and_then(|()| join_rows(&mut storage.thin, other.setup.storage.thin, |t| &t.name))
            .and_then(|()| join_rows(&mut storage.volume, other.setup.storage.volume, |v| &v.name))
            .and_then(|()| join_rows(&mut storage.separate, other.setup.storage.separate, |s| &s.name))
            .map_err(|name| contradict(format!("storage has two different things named {name}")))?;
        storage.check().map_err(|w| contradict(format!("{}: {} (allowed: {})", w.key, w.what, w.allowed)))?;

        let network = match (self.setup.network, other.setup.network) {
            (one, other) if one == other || other == Network::default() => one,
            (one, other) if one == Network::default() => other,
            _ => return Err(contradict("their networks differ".into())),
        };
        let mut settings = self.setup.tuning;
        for theirs in other.setup.tuning {
            let Some(ours) = settings.iter_mut().find(|s| s.name == theirs.name) else {
                settings.push(theirs);
                continue;
            };
            let joined = tuning::knob(&ours.name).and_then(|knob| knob.join(&ours.value, &theirs.value));
            match joined {
                Some(value) if value == ours.value => {}
                Some(_) => *ours = theirs,
                None => {
                    return Err(contradict(format!(
                        "{} is {} in one and {} in the other",
                        ours.name, ours.value, theirs.value
                    )));
                }
            }
        }
        let mut checks = self.setup.checks;
        checks.extend(other.setup.checks);
        checks.sort();
        checks.dedup();
        let mut hand_off = self.setup.hand_off;
        hand_off.extend(other.setup.hand_off);
        hand_off.sort();
        hand_off.dedup();
        let role = Roles::of(self.role.iter().chain(other.role.iter())).unwrap_or(self.role);
        Ok(Self { file: files, role, image, setup: Setup { storage, network, tuning: settings, checks, hand_off } })
    }
}

/// The name of what both have and differs.
fn join_rows<T: PartialEq>(ours: &mut Vec<T>, theirs: Vec<T>, name: impl Fn(&T) -> &str) -> Result<(), String> {
    for row in theirs {
        match ours.iter().find(|o| name(o) == name(&row)) {
            Some(same) if *same == row => {}
            Some(_) => return Err(name(&row).to_owned()),
            None => ours.push(row),
        }
    }
    Ok(())
}

fn is_id(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-')
}

fn scalar(value: toml::Value) -> Option<String> {
    Some(match value {
        toml::Value::String(text) => text,
        toml::Value::Integer(number) => number.to_string(),
        _ => return None,
    })
}

fn invalid(file: &str, line: usize, what: &str) -> Error {
    Error::config("role.template", format!("{file}, line {line}: {}", what.trim_end()))
}

fn contradiction(file: &str, wrong: &Wrong) -> Error {
    Error::config("role.template", format!("{file}, {}: {}", wrong.key, wrong.what))
        .hint(format!("allowed: {}", wrong.allowed))
}

/// Where roles are looked up: the site's folder, then what is built in. Read anew each time: a site changes them while the
/// appliance runs.
#[derive(Debug, Clone, Default)]
pub struct Templates {
    folder: Option<PathBuf>,
}

impl Templates {
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    /// All of them, those of the site first.
    pub fn all(&self) -> Result<Vec<Template>> {
        let mut all = Vec::new();
        if let Some(folder) = &self.folder {
            let unreadable = || format!("cannot read the folder of roles {}", folder.display());
            let mut files = Vec::new();
            for entry in std::fs::read_dir(folder).or_fail(Kind::Config, "role.templates", unreadable)? {
                let path = entry.or_fail(Kind::Config, "role.templates", unreadable)?.path();
                if path.extension().is_some_and(|e| e == "toml") {
                    files.push(path);
                }
            }
            files.sort();
            for file in files {
                all.push(read(&file)?);
            }
        }
        for (file, text) in BUILT_IN {
            all.push(Template::parse(file, text)?);
        }
        Ok(all)
    }

    /// What these roles are together.
    pub fn of(&self, roles: &Roles) -> Result<Template> {
        let all = self.all()?;
        let each = roles.iter().map(|role| {
            let wanted = Roles::from(role);
            all.iter()
                .find(|t| t.role == wanted)
                .cloned()
                .ok_or_else(|| Error::not_found("role.template", format!("nothing says what the role {role} is")))
        });
        let joined = each.reduce(|one, other| one?.join(other?));
        joined.unwrap_or_else(|| Err(Error::input("role.none", "an order without a role")))
    }
}

/// One file of the site.
pub fn read(path: &Path) -> Result<Template> {
    let unreadable = || format!("cannot read the role {}", path.display());
    let size = std::fs::metadata(path).or_fail(Kind::Config, "role.template", unreadable)?.len();
    if size > MAX_FILE {
        return Err(Error::config("role.template", format!("{} is too large for a role", path.display())));
    }
    let text = std::fs::read_to_string(path).or_fail(Kind::Config, "role.template", unreadable)?;
    Template::parse(&path.display().to_string(), &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str =
        "role = \"kvm\"\nimage = \"kvm\"\nchecks = []\nhand-off = []\ntuning = []\n[network]\n[storage]\n";

    fn with(storage: &str) -> String {
        format!("{LEAST}{storage}")
    }

    #[test]
    fn the_built_in_ones_are_complete_and_say_why() {
        let templates = Templates::default();
        for role in Role::ALL {
            let template = templates.of(&role.into()).unwrap();
            assert_eq!(template.image, role.name());
            assert!(!template.setup.checks.is_empty() && !template.setup.tuning.is_empty());
            assert!(!template.setup.storage.discard);
        }
    }

    #[test]
    fn the_example_of_the_documentation_is_one() {
        let text = include_str!("../../docs/roles.md");
        let example = text.split("```toml\n").nth(1).and_then(|t| t.split("```").next()).unwrap();
        let template = Template::parse("docs/roles.md", example).unwrap();
        assert!(template.setup.storage.pool[0].cache.is_some());
        let table: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("| `")?.split('`').next()).collect();
        for name in &table {
            let name = name.replace("NAME", "a").replace("FEATURE", "a");
            assert!(tuning::knob(&name).is_some(), "{name}");
        }
        assert_eq!(tuning::names(), table.join(", "));
    }

    #[test]
    fn every_file_of_the_folder_is_built_in() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("templates/role");
        let mut files: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        assert_eq!(files, BUILT_IN.iter().map(|(file, _)| *file).collect::<Vec<_>>());
    }

    #[test]
    fn all_roles_can_be_one_host() {
        let all = Templates::default().of(&"kvm+docker+ovs".parse().unwrap()).unwrap();
        assert_eq!(all.image, "kvm-docker-ovs");
        assert_eq!(all.role.to_string(), "kvm+docker+ovs");
        assert_eq!(all.setup.tuned("cpu.governor"), Some("performance"));
        assert_eq!(all.setup.hand_off, [HandOff::Libvirt, HandOff::Docker, HandOff::Ovsdb]);
        assert!(all.setup.checks.iter().any(|c| c == "ovs.vlan") && all.setup.checks.iter().any(|c| c == "kvm.guest"));
        assert_eq!(all.setup.kernel_floor("6.0"), "6.1");
        assert_eq!(all.setup.kernel_floor("6.12"), "6.12");
    }

    #[test]
    fn a_site_goes_before_what_is_built_in() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ours.toml"), LEAST.replace("image = \"kvm\"", "image = \"kvm-2026\""))
            .unwrap();
        std::fs::write(folder.path().join("notes.txt"), "no role").unwrap();
        let templates = Templates::new(Some(folder.path().to_owned()));
        assert_eq!(templates.of(&Role::Kvm.into()).unwrap().image, "kvm-2026");
        assert_eq!(templates.of(&"kvm+ovs".parse().unwrap()).unwrap().image, "kvm-2026-ovs");
        assert_eq!(Templates::new(Some("/nowhere".into())).all().unwrap_err().code(), "role.templates");
    }

    #[test]
    fn errors_name_file_line_and_what_is_allowed() {
        let row = |set: &str, value: &str, why: &str| {
            LEAST.replace("tuning = []\n", "")
                + &format!("[[tuning]]\nset = \"{set}\"\nvalue = {value}\nwhy = \"{why}\"\n")
        };
        for (text, line, part, allowed) in [
            (LEAST.replace("image = \"kvm\"\n", ""), 1, "image", ""),
            (LEAST.replace("hand-off = []\n", ""), 1, "hand-off", ""),
            (LEAST.replace("[network]\n", ""), 1, "network", ""),
            (LEAST.replace("\"kvm\"\nimage", "\"xen\"\nimage"), 1, "`kvm`, `docker`, `ovs`", ""),
            (LEAST.replace("hand-off = []", "hand-off = [\"rdp\"]"), 4, "libvirt", ""),
            (format!("colour = 1\n{LEAST}"), 1, "colour", ""),
            (LEAST.replace("checks = []", "checks = [\"Kvm!\"]"), 3, "not the id of a check", "kvm.guest"),
            (with("colour = 1\n"), 8, "colour", ""),
            (with("[[storage.pool]]\nname = \"a\"\ndisks = { kind = \"tape\" }\n"), 10, "tape", ""),
            (
                with("[[storage.thin]]\nname = \"a\"\npool = \"p\"\nsize = \"7 bananas\"\n"),
                11,
                "write it as 200G, 50% or rest",
                "",
            ),
            (row("cpu.govenor", "1", "x"), 8, "no setting", "cpu.governor"),
            (row("cpu.governor", "\"fast\"", "x"), 9, "cannot be that", "performance or"),
            (row("limit.files", "1", "x"), 9, "cannot be that", "a number from"),
            (row("limit.files", "4096", " "), 10, "without a reason", ""),
        ] {
            let error = Template::parse("site.toml", &text).unwrap_err();
            assert!(error.message().starts_with(&format!("site.toml, line {line}: ")), "{error}");
            assert!(error.message().contains(part), "{error}");
            assert!(error.next_step().is_some_and(|h| h.contains(allowed)) || allowed.is_empty(), "{error}");
            assert_eq!(error.code(), "role.template");
        }
    }

    #[test]
    fn storage_that_cannot_be_right_is_refused_by_its_key() {
        let pool = "[[storage.pool]]\nname = \"p\"\ndisks = { least = 2 }\n";
        let all = format!("{pool}[[storage.volume]]\nname = \"v\"\npool = \"p\"\nsize = \"100%\"\n");
        let thin = |size: &str, volumes: &[&str]| {
            let mut text = format!("{pool}[[storage.thin]]\nname = \"t\"\npool = \"p\"\nsize = \"{size}\"\n");
            for (i, size) in volumes.iter().enumerate() {
                text += &format!("[[storage.volume]]\nname = \"v{i}\"\nthin = \"t\"\nsize = \"{size}\"\n");
            }
            text
        };
        let mount = |mount: &str, more: &str| {
            let fs = format!("file-system = \"xfs\"\nmount = \"{mount}\"\n{more}\n");
            all.clone() + &fs
        };
        for text in [
            all.clone(),
            thin("100%", &["60%", "40%"]),
            thin("200G", &["100G", "100G"]),
            mount("/srv/data", "options = [\"noatime\"]"),
            mount("/var/lib/docker", ""),
        ] {
            Template::parse("site.toml", &with(&text)).unwrap();
        }
        for (text, key, part) in [
            (pool.to_owned(), "storage.pool p", "has no volume"),
            (thin("100%", &["60%", "41%"]), "storage.thin t", "promised 101% of 100%"),
            (thin("200G", &["100G", "101G"]), "storage.thin t", "promised 201G of 200G"),
            (thin("50%", &["100G"]), "storage.thin t", "nobody can say"),
            (thin("200G", &["rest"]), "storage.thin t", "nobody can say"),
            (
                all.replace("100%", "70%") + &all[pool.len()..].replace("\"v\"", "\"w\"").replace("100%", "31%"),
                "storage.pool p",
                "101%",
            ),
            (all.replace("pool = \"p\"\n", ""), "storage.volume v", "both or neither"),
            (all.replace("pool = \"p\"\n", "pool = \"q\"\n"), "storage.volume v.pool", "no pool"),
            (
                all.clone() + "[[storage.volume]]\nname = \"w\"\npool = \"q\"\nsize = \"1%\"\n",
                "storage.volume w.pool",
                "no pool",
            ),
            (all.replace("\"v\"", "\"V-1\""), "storage.volume.name", "not a name"),
            (all.replace("\"v\"", "\"p\""), "storage.volume.name", "twice"),
            (all.replace("least = 2", "count = 3"), "", ""),
            (all.replace("least = 2 }", "count = 3 }\nraid = \"10\""), "storage.pool p.raid", "RAID 10 of 3"),
            (all.replace("least = 2 }", "count = 1 }\nraid = \"1\""), "storage.pool p.raid", "of one disk"),
            (all.replace("least = 2", "least = 2, count = 2"), "storage.pool p.disks", "count and least"),
            (mount("/var/lib", ""), "storage.volume v.mount", "nothing is mounted"),
            (mount("/etc/x", ""), "storage.volume v.mount", "nothing is mounted"),
            (mount("/srv/../etc", ""), "storage.volume v.mount", "nothing is mounted"),
            (mount("/srv/a b", ""), "storage.volume v.mount", "nothing is mounted"),
            (mount("/srv/a", "options = [\"a,b\"]"), "storage.volume v.options", "not one option"),
            (mount("/srv/a", "options = [\"discard\"]"), "storage.volume v.options", "storage.discard is off"),
            (all.clone() + "options = [\"noatime\"]\n", "storage.volume v", "half a file system"),
        ] {
            let found = Template::parse("site.toml", &with(&text));
            if key.is_empty() {
                found.unwrap();
                continue;
            }
            let error = found.unwrap_err();
            assert!(error.message().starts_with(&format!("site.toml, {key}: ")), "{error}");
            assert!(error.message().contains(part), "{error}");
            assert!(error.next_step().is_some_and(|h| h.starts_with("allowed: ")));
        }
        let cache = |more: &str| {
            with(&all.replace(
                "least = 2 }",
                &format!("kind = \"hdd\", least = 2 }}\ncache = {{ volume = \"v\", disks = {{ kind = \"ssd\", count = 2 }}, {more} }}"),
            ))
        };
        Template::parse("site.toml", &cache("mode = \"writeback\", raid = \"1\"")).unwrap();
        let error = Template::parse("site.toml", &cache("mode = \"writeback\"")).unwrap_err();
        assert!(error.message().contains("loses data with that SSD"), "{error}");
        let error = Template::parse("site.toml", &cache("raid = \"1\"").replace("volume = \"v\"", "volume = \"w\""))
            .unwrap_err();
        assert!(error.message().contains("no volume \"w\" in this pool"), "{error}");
    }

    #[test]
    fn roles_that_contradict_each_other_are_both_named() {
        let kvm = |storage: &str| Template::parse("kvm.toml", &with(storage)).unwrap();
        let ovs = |storage: &str, tuning: &str| {
            let text = with(storage).replacen("\"kvm\"", "\"ovs\"", 1).replace("tuning = []\n", "");
            Template::parse("ovs.toml", &format!("{text}{tuning}")).unwrap()
        };
        let pool = "[[storage.pool]]\nname = \"p\"\ndisks = { least = 0 }\n";
        let volume = |name: &str, size: &str| {
            format!("[[storage.volume]]\nname = \"{name}\"\npool = \"p\"\nsize = \"{size}\"\n")
        };
        let rest = "[[tuning]]\nset = \"cpu.governor\"\nvalue = \"powersave\"\nwhy = \"x\"\n";

        let both = kvm(&(pool.to_owned() + &volume("a", "rest")))
            .join(ovs(&(pool.to_owned() + &volume("b", "rest")), rest))
            .unwrap();
        assert_eq!((both.setup.storage.pool.len(), both.setup.storage.volume.len()), (1, 2));
        assert_eq!((both.image.as_str(), both.role.to_string().as_str()), ("kvm", "kvm+ovs"));

        let performance = Templates::default().of(&Role::Kvm.into()).unwrap();
        for (one, other, part) in [
            (performance, ovs("", rest), "cpu.governor is performance in one and powersave in the other"),
            (kvm("discard = true\n"), ovs("", rest), "storage.discard"),
            (
                kvm(&(pool.to_owned() + &volume("a", "60%"))),
                ovs(&(pool.to_owned() + &volume("b", "60%")), rest),
                "120%",
            ),
            (
                kvm(&(pool.to_owned() + &volume("a", "60%"))),
                ovs(&(pool.to_owned() + &volume("a", "6%")), rest),
                "named a",
            ),
        ] {
            let error = one.join(other).unwrap_err();
            assert!(error.message().starts_with("kvm.toml and ovs.toml contradict each other: "), "{error}");
            assert!(error.message().contains(part), "{error}");
        }
    }
}
