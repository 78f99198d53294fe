//! Recipes: what goes into an image, as a folder that people edit.
//!
//! `images/NAME/recipe.toml` names the packages, units, scripts and the shape of the result; what lies in
//! `images/NAME/files/` is copied over the root of the system, with its executable bits. A recipe that `extends`
//! another starts from what that one built:
//!
//! ```toml
//! kind = "disk"                  # "layer": only a start for others; "disk": a disk image; "ram": kernel and initramfs
//! description = "Host of virtual machines"
//! extends = "base"
//! roles = ["kvm"]
//! packages = ["qemu-system-x86", "libvirt-daemon-system"]
//! scripts = ["guest.sh"]         # run in the new system as root, in this order, after the packages are in
//!
//! [units]
//! enable = ["libvirtd.socket"]
//! mask = ["apt-daily.timer"]
//! ```
//!
//! A recipe that `combines` others, disks that extend the same recipe as it does itself, has all that they have; its own
//! packages and scripts come after theirs:
//!
//! ```toml
//! kind = "disk"
//! description = "Host of virtual machines on Open vSwitch"
//! extends = "base"
//! combines = ["kvm", "ovs"]
//! ```
//!
//! A recipe without `extends` bootstraps: it names the `suite` and may `exclude` paths that packages then never write.
//! `[disk]` is inherited key by key, `[ram]` is not. Unknown keys are refused, since a misspelt one would be an image
//! that lacks something.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::manifest::is_name;
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::{Digest, Role};

/// Part of every key: raise it when the same recipe would be built differently.
const BUILDER: u32 = 2;
/// A recipe extends at most this many others.
const MAX_DEPTH: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    Layer,
    Disk,
    Ram,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Units {
    #[serde(default)]
    pub enable: Vec<String>,
    #[serde(default)]
    pub mask: Vec<String>,
}

/// The layout of a disk image. Keys that are absent come from the parent, then from [`Disk`]'s defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct DiskText {
    esp_mib: Option<u32>,
    free_mib: Option<u32>,
    kernel_args: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Size of the EFI system partition.
    pub esp_mib: u32,
    /// Room that is left on the root file system until it grows at the first boot.
    pub free_mib: u32,
    /// Follows `root=LABEL=root ro` on the kernel command line.
    pub kernel_args: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ram {
    /// Kernel modules to bring along, with all that they need.
    pub modules: Vec<String>,
    /// Programs to bring along to `/bin`, with the libraries they need.
    #[serde(default)]
    pub programs: Vec<String>,
    /// Data that they read.
    #[serde(default)]
    pub files: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    kind: Shape,
    description: String,
    extends: Option<String>,
    #[serde(default)]
    combines: Vec<String>,
    suite: Option<String>,
    #[serde(default)]
    exclude: Vec<String>,
    #[serde(default)]
    roles: Vec<Role>,
    #[serde(default)]
    packages: Vec<String>,
    #[serde(default)]
    scripts: Vec<String>,
    #[serde(default)]
    units: Units,
    #[serde(default)]
    disk: DiskText,
    ram: Option<Ram>,
}

#[derive(Debug, Clone)]
pub struct Recipe {
    pub name: String,
    pub folder: PathBuf,
    pub shape: Shape,
    pub description: String,
    pub parent: Option<Box<Recipe>>,
    /// Those whose content it has, too.
    pub parts: Vec<Recipe>,
    pub suite: String,
    pub exclude: Vec<String>,
    pub roles: Vec<Role>,
    pub packages: Vec<String>,
    pub scripts: Vec<String>,
    pub units: Units,
    pub disk: Disk,
    pub ram: Option<Ram>,
    /// Digest of all that decides what is built: the folder, those of the parents, and the builder.
    pub key: Digest,
    /// Archives of containers that the host loads at its first boot.
    pub containers: Vec<PathBuf>,
}

impl Recipe {
    /// The recipe `name` of the folder `recipes`, with its parents.
    pub fn load(recipes: &Path, name: &str) -> Result<Self> {
        Self::load_within(recipes, name, MAX_DEPTH)
    }

    /// Says of a package that does not exist in which line it is asked for.
    pub fn locate(&self, error: Error) -> Error {
        let wanted = |package: &&String| error.message().ends_with(&super::tool::no_package(package));
        let Some(package) = self.packages.iter().find(wanted).filter(|_| error.code() == "image.package") else {
            return error;
        };
        let path = self.folder.join("recipe.toml");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let line = text.lines().position(|line| line.contains(&format!("\"{package}\"")));
        let place = format!("{}:{}", path.display(), line.map_or(1, |line| line + 1));
        Error::config("image.package", format!("{place}: {}", super::tool::no_package(package)))
            .hint("correct the name there; `apt-cache search` finds names")
            .because(error.causes().join("\n"))
    }

    fn load_within(recipes: &Path, name: &str, depth: usize) -> Result<Self> {
        let folder = recipes.join(name);
        let path = folder.join("recipe.toml");
        if !is_name(name) || !path.is_file() {
            return Err(Error::not_found(
                "image.recipe",
                format!("there is no recipe {name:?} in {}", recipes.display()),
            )
            .hint(format!("the recipes there are: {}", names(recipes).join(", "))));
        }
        let wrong = |why: String| Error::config("image.recipe", format!("{}: {why}", path.display()));
        let text = fs::read_to_string(&path)
            .or_fail(Kind::Config, "image.recipe", || format!("cannot read {}", path.display()))?;
        let text: Text = toml::from_str(&text).map_err(|e| wrong(e.message().to_owned()).because(e))?;
        let parent = match &text.extends {
            None => None,
            Some(_) if depth == 0 => {
                return Err(wrong(format!("recipes extend one another more than {MAX_DEPTH} deep")));
            }
            Some(parent) => Some(Self::load_within(recipes, parent, depth - 1).map_err(|e| {
                match e.code() {
                    "image.recipe" if e.kind() == Kind::NotFound => {
                        wrong(format!("it extends {parent:?}, which does not exist"))
                            .hint(e.next_step().unwrap_or_default().to_owned())
                    }
                    _ => e,
                }
            })?),
        };
        check(&text, parent.as_ref(), &folder).map_err(wrong)?;
        let load = |part: &String| match depth.checked_sub(1) {
            Some(left) if depth == MAX_DEPTH => Self::load_within(recipes, part, left),
            _ => Err(wrong("no other recipe may extend or combine one that combines others".into())),
        };
        let parts = text.combines.iter().map(load).collect::<Result<Vec<_>>>()?;
        check_parts(&text, &parts).map_err(wrong)?;
        let mut roles = text.roles;
        for role in parts.iter().flat_map(|part| &part.roles) {
            if !roles.contains(role) {
                roles.push(*role);
            }
        }
        let suite = match (&text.suite, &parent) {
            (Some(suite), _) => suite.clone(),
            (None, Some(parent)) => parent.suite.clone(),
            (None, None) => return Err(wrong("a recipe that extends nothing names its `suite`".into())),
        };
        let key = key_of(&folder, parent.as_ref(), &parts)
            .or_fail(Kind::Config, "image.recipe", || format!("cannot read {}", folder.display()))?;
        let disk = Disk::resolve(&text.disk, parent.as_ref().map(|p| &p.disk));
        Ok(Self {
            name: name.to_owned(),
            folder,
            shape: text.kind,
            description: text.description,
            parent: parent.map(Box::new),
            parts,
            suite,
            exclude: text.exclude,
            roles,
            packages: text.packages,
            scripts: text.scripts,
            units: text.units,
            disk,
            ram: text.ram,
            key,
            containers: Vec::new(),
        })
    }
}

impl Recipe {
    /// With archives of containers, which become part of the key.
    pub fn bring_along(&mut self, containers: Vec<PathBuf>) -> Result<()> {
        for path in &containers {
            let failed = || format!("cannot read {}", path.display());
            let mut hasher = blake3::Hasher::new();
            hasher.update(&self.key.0).update(path.file_name().unwrap_or_default().as_encoded_bytes()).update(&[0]);
            let file = fs::File::open(path).or_fail(Kind::Config, "image.recipe", failed)?;
            hasher.update_reader(file).or_fail(Kind::Config, "image.recipe", failed)?;
            self.key = hasher.finalize().into();
        }
        self.containers = containers;
        Ok(())
    }
}

impl Disk {
    fn resolve(text: &DiskText, parent: Option<&Disk>) -> Self {
        Self {
            esp_mib: text.esp_mib.or(parent.map(|p| p.esp_mib)).unwrap_or(64),
            free_mib: text.free_mib.or(parent.map(|p| p.free_mib)).unwrap_or(256),
            kernel_args: text.kernel_args.clone().or(parent.map(|p| p.kernel_args.clone())).unwrap_or_default(),
        }
    }
}

/// The names of all recipes in a folder, sorted.
pub fn names(recipes: &Path) -> Vec<String> {
    let entries = fs::read_dir(recipes).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().join("recipe.toml").is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

fn check(text: &Text, parent: Option<&Recipe>, folder: &Path) -> Result<(), String> {
    if parent.is_some_and(|p| p.shape != Shape::Layer) {
        return Err("it can only extend a recipe of kind \"layer\"".into());
    }
    if parent.is_some() && (text.suite.is_some() || !text.exclude.is_empty()) {
        return Err("`suite` and `exclude` belong to the recipe that extends nothing".into());
    }
    if (text.kind == Shape::Ram) != text.ram.is_some() {
        return Err("[ram] belongs to a recipe of kind \"ram\", and to no other".into());
    }
    if text.kind == Shape::Ram && (parent.is_none() || !text.scripts.is_empty() || text.units != Units::default()) {
        return Err("a RAM system takes kernel and programs from the recipe it extends and from packages; it runs no \
                    scripts and has no units"
            .into());
    }
    let paths = text.ram.iter().flat_map(|ram| ram.programs.iter().chain(&ram.files));
    if let Some(path) = paths.into_iter().find(|p| !p.starts_with('/') || p.contains("..")) {
        return Err(format!("{path:?} is not the path of a program or file from the root on"));
    }
    if text.kind == Shape::Ram && !folder.join("files/init").is_file() {
        return Err("a RAM system starts with files/init, which does not exist".into());
    }
    let package = |name: &&String| {
        !(name.len() > 1 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b)))
    };
    if let Some(name) = text.packages.iter().find(package) {
        return Err(format!("{name:?} is not the name of a package"));
    }
    if let Some(script) = text.scripts.iter().find(|s| !is_name(s) || !folder.join(s).is_file()) {
        return Err(format!("there is no script {script:?} beside it"));
    }
    let unit = |name: &&String| !name.contains('.') || name.bytes().any(|b| b == b'/' || b.is_ascii_whitespace());
    if let Some(name) = text.units.enable.iter().chain(&text.units.mask).find(unit) {
        return Err(format!("{name:?} is not the name of a unit, such as ssh.service"));
    }
    let args = text.disk.kernel_args.as_deref().unwrap_or_default();
    if args.bytes().any(|b| !(b' '..=b'~').contains(&b) || b"\\'\"${};".contains(&b)) {
        return Err("kernel-args has characters that a boot loader would interpret".into());
    }
    match (text.disk.esp_mib.unwrap_or(64), text.disk.free_mib.unwrap_or(256)) {
        (34..=4096, 16..=1_048_576) => Ok(()),
        _ => Err("esp-mib is at least 34, the smallest FAT32, and free-mib at least 16".into()),
    }
}

fn check_parts(text: &Text, parts: &[Recipe]) -> Result<(), String> {
    if !parts.is_empty() && text.kind != Shape::Disk {
        return Err("only a recipe of kind \"disk\" combines others".into());
    }
    let other = |part: &&Recipe| {
        let parent = part.parent.as_ref().map(|p| &p.name);
        part.shape != Shape::Disk || parent != text.extends.as_ref()
    };
    match parts.iter().find(other) {
        Some(part) => {
            Err(format!("it can combine only disks that extend the same recipe as itself, and not {}", part.name))
        }
        None => Ok(()),
    }
}

/// BLAKE3 over the builder, the keys of parent and parts and every file of the folder: path, executable bit, length,
/// content.
fn key_of(folder: &Path, parent: Option<&Recipe>, parts: &[Recipe]) -> std::io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&BUILDER.to_le_bytes());
    hasher.update(super::root::SCRIPTS.as_bytes());
    hasher.update(&parent.map_or([0; 32], |p| p.key.0));
    for part in parts {
        hasher.update(&part.key.0);
    }
    let mut add = |path: &Path, kind: u8, content: &[u8]| {
        hasher.update(&[kind]);
        for part in [path.as_os_str().as_encoded_bytes(), content] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    };
    for (path, about) in walk(folder)? {
        let within = path.strip_prefix(folder).unwrap_or(&path);
        if about.is_dir() {
            add(within, b'd', b"");
        } else if about.is_symlink() {
            add(within, b'l', fs::read_link(&path)?.as_os_str().as_encoded_bytes());
        } else {
            let kind = if about.permissions().mode() & 0o111 == 0 { b'f' } else { b'x' };
            add(within, kind, &fs::read(&path)?);
        }
    }
    Ok(hasher.finalize().into())
}

/// Everything beneath a folder, sorted, parents before children; links are not followed.
pub fn walk(folder: &Path) -> std::io::Result<Vec<(PathBuf, fs::Metadata)>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next)? {
            let entry = entry?;
            let about = entry.metadata()?;
            if about.is_dir() {
                folders.push(entry.path());
            }
            found.push((entry.path(), about));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(recipes: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in recipes {
            fs::create_dir_all(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("recipe.toml"), text).unwrap();
        }
        dir
    }

    const BASE: &str = "kind = 'layer'\ndescription = 'b'\nsuite = 'bookworm'\n[disk]\nfree-mib = 99\n";

    #[test]
    fn a_recipe_inherits_suite_and_layout() {
        let dir =
            folder(&[("base", BASE), ("kvm", "kind='disk'\ndescription='k'\nextends='base'\n[disk]\nesp-mib=40\n")]);
        let recipe = Recipe::load(dir.path(), "kvm").unwrap();
        assert_eq!(recipe.suite, "bookworm");
        assert_eq!((recipe.disk.esp_mib, recipe.disk.free_mib), (40, 99));
        assert_eq!(names(dir.path()), ["base", "kvm"]);
    }

    #[test]
    fn a_combination_has_what_its_parts_have() {
        let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("images");
        let both = Recipe::load(&recipes, "kvm-ovs").unwrap();
        let [kvm, ovs] = &both.parts[..] else { panic!("{:?}", both.parts) };
        assert_eq!((kvm.name.as_str(), ovs.name.as_str()), ("kvm", "ovs"));
        assert_eq!(both.roles, [Role::Kvm, Role::Ovs]);
        assert!(both.packages.is_empty() && both.scripts.is_empty(), "nothing is said twice");
        assert_eq!(both.disk, kvm.disk);

        let dir = folder(&[
            ("base", BASE),
            ("a", "kind='disk'\ndescription='a'\nextends='base'\n"),
            ("b", "kind='disk'\ndescription='b'\nextends='base'\ncombines=['a']\n"),
        ]);
        let first = Recipe::load(dir.path(), "b").unwrap().key;
        fs::write(dir.path().join("a/more"), "").unwrap();
        assert_ne!(Recipe::load(dir.path(), "b").unwrap().key, first);
    }

    #[test]
    fn the_key_changes_with_every_file_of_the_chain() {
        let dir = folder(&[("base", BASE), ("kvm", "kind='disk'\ndescription='k'\nextends='base'\n")]);
        let key = || Recipe::load(dir.path(), "kvm").unwrap().key;
        let first = key();
        assert_eq!(first, key());
        fs::create_dir_all(dir.path().join("base/files/etc")).unwrap();
        let second = key();
        fs::write(dir.path().join("base/files/etc/motd"), "a").unwrap();
        let third = key();
        fs::set_permissions(dir.path().join("base/files/etc/motd"), fs::Permissions::from_mode(0o755)).unwrap();
        let keys = [first, second, third, key()];
        assert!((1..4).all(|i| !keys[..i].contains(&keys[i])));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let refused = |text: &str, why: &str| {
            let dir = folder(&[("base", BASE), ("x", text)]);
            let error = Recipe::load(dir.path(), "x").unwrap_err();
            assert_eq!(error.code(), "image.recipe");
            assert!(error.message().contains(why), "{why}: {error}");
        };
        let start = "description='x'\nextends='base'\n";
        refused(&format!("kind='disk'\n{start}pakages=['vim']\n"), "unknown field `pakages`");
        refused(&format!("kind='disc'\n{start}"), "unknown variant `disc`");
        refused("kind='disk'\ndescription='x'\nextends='bsae'\n", "\"bsae\", which does not exist");
        refused("kind='disk'\ndescription='x'\n", "names its `suite`");
        refused("kind='disk'\ndescription='x'\nextends='x'\n", "deep");
        refused(&format!("kind='disk'\n{start}packages=['vim; rm']\n"), "\"vim; rm\" is not the name");
        refused(&format!("kind='disk'\n{start}scripts=['../a']\n"), "no script");
        refused(&format!("kind='disk'\n{start}[units]\nenable=['ssh']\n"), "\"ssh\" is not the name of a unit");
        refused(&format!("kind='disk'\n{start}[disk]\nkernel-args='a\\nb'\n"), "kernel-args");
        refused(&format!("kind='ram'\n{start}"), "[ram] belongs");
        refused(&format!("kind='ram'\n{start}[ram]\nmodules=[]\nprograms=['ls']\n"), "\"ls\" is not the path");
        refused(&format!("kind='disk'\n{start}combines=['base']\n"), "and not base");
        refused(&format!("kind='disk'\n{start}combines=['nosuch']\n"), "no recipe \"nosuch\"");
        refused(&format!("kind='disk'\n{start}combines=['x']\n"), "no other recipe may extend or combine");
        refused(&format!("kind='ram'\n{start}[ram]\nmodules=[]\n"), "files/init");
    }

    #[test]
    fn a_package_that_does_not_exist_is_found_in_the_recipe() {
        let dir = folder(&[("base", &format!("packages = [\n 'apt',\n \"qemu-sytem\",\n]\n{BASE}"))]);
        let recipe = Recipe::load(dir.path(), "base").unwrap();
        let missing = |name| Error::config("image.package", super::super::tool::no_package(name)).because("E: x");
        let error = recipe.locate(missing("qemu-sytem"));
        assert!(error.message().contains("base/recipe.toml:3: "), "{error}");
        assert_eq!(error.causes(), ["E: x"]);
        // One that another package asks for is in no line of ours.
        assert_eq!(recipe.locate(missing("libx")).message(), super::super::tool::no_package("libx"));
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let dir = folder(&[("base", BASE)]);
        let error = Recipe::load(dir.path(), "kvmm").unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.next_step().unwrap().ends_with("base"));
        assert!(Recipe::load(dir.path(), "../base").is_err());
    }
}
