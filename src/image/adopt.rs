//! A container becomes a bootable image: its file system takes the place of what mmdebstrap makes for a recipe.
//!
//! What a server needs and a container lacks (kernel, initramfs, systemd, cloud-init, network, SSH) is what the recipe
//! `base` names: its packages are installed into the container's file system from the mirror, its files, scripts and
//! units follow, and the disk is made as for any recipe. So it must hold Debian, with apt.
//!
//! Programs of the container run as root during the build, in a root directory and namespaces of their own, as those of
//! packages do; apt and dpkg's front end are those of this machine, and take no settings from the container.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use rustix::fs::Mode;
use serde_json::Value;

use super::build;
use super::catalogue::Entry;
use super::container::tree::{Content, Tree};
use super::container::{self, Flat};
use super::manifest::is_name;
use super::recipe::{Recipe, Shape, walk};
use super::root::{self, Sources};
use super::tool::{Progress, Tools};
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::Role;

/// The recipe that makes a host of it.
pub const BASE: &str = "base";
/// An os-release has some hundred bytes.
const MAX_ABOUT: u64 = 64 << 10;

pub struct Options<'a> {
    /// An archive, packed or not, or an OCI layout in a folder.
    pub source: &'a Path,
    pub roles: &'a [Role],
    /// Bytes that all layers may unpack to.
    pub limit: u64,
    /// Its `name` is that of the image.
    pub build: build::Options<'a>,
}

#[derive(Debug)]
pub struct Adopted {
    pub entry: Entry,
    /// What was found in it: `Debian GNU/Linux 12 (bookworm)`.
    pub system: String,
    pub layers: usize,
    /// Of the container's configuration, what means nothing to a host.
    pub left_out: Vec<String>,
}

pub fn adopt(options: &Options, progress: &dyn Progress) -> Result<Adopted> {
    let build::Options { name, cache, recipes, mirror, .. } = options.build;
    if !is_name(name) {
        return Err(Error::input("image.name", format!("{name:?} is not a name for an image"))
            .hint("letters, digits, and - . _ + behind the first one, at most 64"));
    }
    let base = Recipe::load(recipes, BASE)?;
    // Modes of files that the build makes must not depend on who builds.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let tools = Tools::new(name, cache.log(&format!("import-{name}")), progress)?;
    let _lock = cache.lock(&tools, name)?;
    let work = cache.work(name)?;
    let work = work.path();

    let mut flat = container::flatten(&tools, options.source, work, options.limit)?;
    let about = about(&mut flat)?;
    let system = Debian::of(about.as_deref(), &flat.tree)?;
    let left_out = left_out(&flat.image.config);
    let layers = flat.image.layers.len();
    let labels = BTreeMap::from([
        ("container".to_owned(), container_name(&flat, options.source)),
        ("layers".to_owned(), layers.to_string()),
        ("left-out".to_owned(), left_out.join(", ")),
    ]);
    let recipe = recipe_for(base, name, options.roles, &system, &flat);

    let root = work.join("root");
    unpack(&tools, flat, &root, work)?;
    prepare(&root, &recipe)?;
    let mut sources = Sources::find(&tools, &recipe.suite, mirror)?;
    sources.alone(work)?;
    root::extend(&tools, &recipe, &sources, &root, &cache.folder("debs")?, work).map_err(|e| recipe.locate(e))?;
    let entry = build::disk(&options.build, &tools, &recipe, &root, None, work, labels)?;
    Ok(Adopted { entry, system: system.name, layers, left_out })
}

fn container_name(flat: &Flat, source: &Path) -> String {
    let file = || source.file_name().unwrap_or_default().to_string_lossy().into_owned();
    flat.image.tag.clone().unwrap_or_else(file)
}

/// The text of its os-release(5), if it has one.
fn about(flat: &mut Flat) -> Result<Option<String>> {
    let found = ["etc/os-release", "usr/lib/os-release"].iter().find_map(|path| flat.tree.follow(Path::new(path)));
    let Some(&Content::File { layer, offset, size }) = found else { return Ok(None) };
    let mut text = Vec::new();
    let failed = || "cannot read the container's os-release";
    let mut from =
        flat.contents.read(layer, offset, size.min(MAX_ABOUT)).or_fail(Kind::Input, "image.source", failed)?;
    from.read_to_end(&mut text).or_fail(Kind::Input, "image.source", failed)?;
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

#[derive(Debug, PartialEq, Eq)]
struct Debian {
    name: String,
    /// `bookworm`
    suite: String,
}

impl Debian {
    fn of(about: Option<&str>, tree: &Tree) -> Result<Self> {
        let refused = |what: String| {
            Err(Error::refused("image.container-system", what).hint(
                "only a container that holds Debian with apt can become a bootable image: build it FROM \
                 debian:bookworm; to run this one on a Docker host, import it with --as container",
            ))
        };
        let Some(about) = about else {
            return refused("the container holds programs, but no operating system: it has no /etc/os-release".into());
        };
        let field = |name: &str| {
            let value = about.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
            Some(value.trim().trim_matches(['"', '\''])).filter(|v| !v.is_empty())
        };
        let shown: String =
            field("PRETTY_NAME").or(field("NAME")).unwrap_or("an unknown system").chars().take(80).collect();
        if field("ID") != Some("debian") {
            return refused(format!("the container holds {shown}, which cannot be made bootable here"));
        }
        let is_file = |path: &str| matches!(tree.follow(Path::new(path)), Some(Content::File { .. }));
        if let Some(lacks) = ["usr/bin/apt-get", "usr/bin/dpkg", "var/lib/dpkg/status"].iter().find(|p| !is_file(p)) {
            return refused(format!("the container holds {shown} without its package manager: it has no /{lacks}"));
        }
        match field("VERSION_CODENAME").filter(|s| s.bytes().all(|b| b.is_ascii_lowercase())) {
            Some(suite) => Ok(Self { suite: suite.to_owned(), name: shown }),
            None => refused(format!("the container holds {shown}, and does not say which release that is")),
        }
    }
}

/// The keys of its configuration (OCI image-spec, config.md) that say something.
fn left_out(config: &serde_json::Map<String, Value>) -> Vec<String> {
    let says = |value: &Value| match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::Number(_) => true,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    };
    let run = config.get("config").and_then(Value::as_object).into_iter().flatten();
    run.filter(|(_, value)| says(value)).map(|(key, _)| key.clone()).collect()
}

/// The recipe `base` as one for this disk. Its key also says which layers it begins with.
fn recipe_for(base: Recipe, name: &str, roles: &[Role], system: &Debian, flat: &Flat) -> Recipe {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&base.key.0).update(name.as_bytes()).update(&[0]);
    for layer in &flat.image.layers {
        hasher.update(&layer.unpacked.0);
    }
    Recipe {
        name: name.to_owned(),
        shape: Shape::Disk,
        description: format!("container {}", flat.image.tag.as_deref().unwrap_or(name)),
        suite: system.suite.clone(),
        roles: roles.to_vec(),
        key: hasher.finalize().into(),
        ..base
    }
}

/// Writes the file system out. Every name was resolved within the tree, so tar meets no link on its way.
fn unpack(tools: &Tools, mut flat: Flat, root: &Path, work: &Path) -> Result<()> {
    let failed = |e| super::disk_full(e, "unpacking the container");
    let archive = work.join("root.tar");
    container::write_layer(tools, &flat.tree, &mut flat.contents, &archive)?;
    for layer in &flat.contents.layers {
        fs::remove_file(layer).map_err(failed)?;
    }
    tools.step("unpacking the container")?;
    fs::create_dir(root).map_err(failed)?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--numeric-owner", "--same-owner", "--same-permissions", "--xattrs", "--xattrs-include=*"]);
    tools.run("tar", tar.arg("-f").arg(&archive).arg("-C").arg(root))?;
    fs::remove_file(&archive).map_err(failed)
}

/// Folders and files of the new root that the build touches from outside: a link there would lead it to our own.
const TOUCHED: &[&str] = &[
    "boot/grub/grub.cfg",
    "dev/null",
    "etc/apt/sources.list",
    "etc/dpkg/dpkg.cfg.d/rackline",
    "etc/machine-id",
    "etc/resolv.conf",
    "etc/ssh/ssh_host_key",
    "proc/self",
    "root/.bash_history",
    "run/lock/file",
    "sys/file",
    "tmp/recipe/file",
    "usr/sbin/policy-rc.d",
    "var/cache/apt/archives/partial/file",
    "var/cache/debconf/file",
    "var/cache/ldconfig/aux-cache",
    "var/lib/apt/lists/partial/file",
    "var/lib/dbus/machine-id",
    "var/lib/dpkg/lock",
    "var/lib/systemd/random-seed",
    "var/log/apt/term.log",
    "var/tmp/file",
];

/// Takes out of an unpacked container what stands in a host's way.
fn prepare(root: &Path, recipe: &Recipe) -> Result<()> {
    let failed = |e| super::disk_full(e, "preparing the container");
    let files = recipe.folder.join("files");
    let mut touched: Vec<PathBuf> = TOUCHED.iter().map(PathBuf::from).collect();
    if files.is_dir() {
        let ours = walk(&files).map_err(failed)?.into_iter().filter(|(_, about)| !about.is_dir());
        touched.extend(ours.filter_map(|(path, _)| Some(path.strip_prefix(&files).ok()?.to_owned())));
    }
    for path in &touched {
        clear_way(root, path)?;
    }
    for folder in ["boot", "dev", "proc", "run", "sys", "tmp", "var/lib/apt/lists", "etc/dpkg/dpkg.cfg.d"] {
        fs::create_dir_all(root.join(folder)).map_err(failed)?;
    }
    // Package lists as old as the container would ask the mirror for what it has no more.
    let lists = fs::read_dir(root.join("var/lib/apt/lists")).map_err(failed)?.flatten().map(|entry| entry.path());
    let told = ["etc/resolv.conf", ".dockerenv"].map(|name| root.join(name));
    for path in lists.filter(|path| path.is_file()).chain(told) {
        match fs::remove_file(path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
    }
    let excluded: String = recipe.exclude.iter().map(|path| format!("path-exclude={path}\n")).collect();
    fs::write(root.join("etc/dpkg/dpkg.cfg.d/rackline"), excluded).map_err(failed)
}

/// The folders on the way to a file are folders, and a link in its place is gone.
fn clear_way(root: &Path, within: &Path) -> Result<()> {
    let mut path = root.to_owned();
    let mut parts = within.components().peekable();
    while let Some(Component::Normal(part)) = parts.next() {
        path.push(part);
        let Ok(about) = path.symlink_metadata() else { return Ok(()) };
        match parts.peek() {
            Some(_) if !about.is_dir() => {
                let shown = path.strip_prefix(root).unwrap_or(&path).display().to_string();
                let what = format!("in the container /{shown} is not a folder, as it is in Debian");
                return Err(Error::refused("image.container", what)
                    .hint("a link there would lead the build out of the container; make it a folder"));
            }
            None if about.is_symlink() => {
                fs::remove_file(&path).map_err(|e| super::disk_full(e, "preparing the container"))?;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::container::tree::{Inode, Item};
    use super::*;

    fn tree(files: &[&str], links: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::default();
        let mut put = |name: &str, content| {
            let inode = Inode { mode: 0o644, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new(), content };
            tree.apply(0, Path::new(name), Item::Node(inode)).unwrap();
        };
        links.iter().for_each(|(name, to)| put(name, Content::Link(to.into())));
        files.iter().for_each(|name| put(name, Content::File { layer: 0, offset: 0, size: 1 }));
        tree
    }

    const DEBIAN: &str = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_CODENAME=bookworm\n";

    #[test]
    fn only_debian_with_its_package_manager_becomes_a_host() {
        let whole = ["usr/bin/apt-get", "usr/bin/dpkg", "var/lib/dpkg/status"];
        let found = Debian::of(Some(DEBIAN), &tree(&whole, &[])).unwrap();
        assert_eq!((found.suite.as_str(), found.name.as_str()), ("bookworm", "Debian GNU/Linux 12 (bookworm)"));
        let refused = |about: Option<&str>, tree: &Tree, why: &str| {
            let error = Debian::of(about, tree).unwrap_err();
            assert_eq!(error.code(), "image.container-system");
            assert!(error.message().contains(why), "{error}");
            assert!(error.next_step().unwrap().contains("--as container"));
        };
        refused(None, &tree(&["app"], &[]), "no operating system");
        refused(Some("NAME='Alpine Linux'\nID=alpine\n"), &tree(&whole, &[]), "holds Alpine Linux,");
        refused(Some("ID=\"rocky\"\nPRETTY_NAME=\"Rocky Linux 9.4\"\n"), &tree(&whole, &[]), "Rocky Linux 9.4");
        refused(Some(DEBIAN), &tree(&whole[1..], &[]), "no /usr/bin/apt-get");
        refused(Some(DEBIAN), &tree(&whole[..2], &[]), "no /var/lib/dpkg/status");
        refused(Some("ID=debian\n"), &tree(&whole, &[]), "which release");
        refused(Some("ID=debian\nVERSION_CODENAME=a b;c\n"), &tree(&whole, &[]), "which release");
    }

    #[test]
    fn links_within_the_container_are_followed_and_no_others() {
        let links = [
            ("etc/os-release", "../usr/lib/os-release"),
            ("lib", "usr/lib"),
            ("out", "/../../usr/lib/os-release"),
            ("round", "about"),
            ("about", "round"),
            ("up", ".."),
        ];
        let tree = tree(&["usr/lib/os-release"], &links);
        for there in ["etc/os-release", "lib/os-release", "usr/lib/os-release", "out"] {
            assert!(matches!(tree.follow(Path::new(there)), Some(Content::File { .. })), "{there}");
        }
        for not in ["round", "up", "etc/none", "", "/", ".."] {
            assert!(tree.follow(Path::new(not)).is_none(), "{not}");
        }
    }

    #[test]
    fn what_means_nothing_to_a_host_is_named() {
        let config = serde_json::json!({
            "config": { "Cmd": ["/bin/app"], "Env": ["A=b"], "User": "", "Entrypoint": null, "Volumes": {} },
            "os": "linux",
        });
        assert_eq!(left_out(config.as_object().unwrap()), ["Cmd", "Env"]);
        assert!(left_out(&serde_json::Map::new()).is_empty());
    }

    #[test]
    fn no_link_leads_the_build_out_of_the_container() {
        let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("images");
        let base = Recipe::load(&recipes, BASE).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("hosts"), "ours").unwrap();
        let fresh = |link: &str, to: &Path| {
            let root = dir.path().join("root");
            let _ = fs::remove_dir_all(&root);
            let link = root.join(link);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(to, link).unwrap();
            root
        };
        for folder in ["etc", "usr/sbin", "var/lib/apt", "dev", "etc/systemd/network", "tmp", "var/cache/apt/archives"]
        {
            let error = prepare(&fresh(folder, &outside), &base).unwrap_err();
            assert!(error.message().contains(&format!("/{folder} is not a folder")), "{error}");
        }
        // A link in place of a file of ours makes room for it.
        let root = fresh("etc/hosts", &outside.join("hosts"));
        fs::create_dir_all(root.join("var/lib/apt/lists")).unwrap();
        fs::write(root.join("var/lib/apt/lists/old_Release"), "").unwrap();
        fs::write(root.join(".dockerenv"), "").unwrap();
        prepare(&root, &base).unwrap();
        assert!(root.join("etc/hosts").symlink_metadata().is_err());
        assert_eq!(fs::read_to_string(outside.join("hosts")).unwrap(), "ours");
        assert_eq!(fs::read_dir(root.join("var/lib/apt/lists")).unwrap().count(), 0);
        assert!(!root.join(".dockerenv").exists());
        let excluded = fs::read_to_string(root.join("etc/dpkg/dpkg.cfg.d/rackline")).unwrap();
        assert_eq!(excluded.lines().count(), base.exclude.len());
    }
}
