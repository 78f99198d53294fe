//! From a recipe to something that can be served: layers beneath it first, each built once, then the result.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::Mode;

use super::cache::Cache;
use super::catalogue::{Catalogue, Entry};
use super::container;
use super::disk::{Kernel, ROOT_LABEL, assemble, command_line};
use super::manifest::Boot;
use super::publish::{Draft, publish};
use super::ram::{self, RamSystem};
use super::recipe::{Recipe, Shape};
use super::root::{self, Sources};
use super::sign::SigningKey;
use super::snapshot::{self, Snapshot};
use super::tool::{Progress, Tools};
use crate::error::{Error, Result};
use crate::machine::Firmware;

const ARCH: &str = "amd64";
const RECIPE_LABEL: &str = "recipe";

pub struct Options<'a> {
    /// The folder of recipes, `images/`.
    pub recipes: &'a Path,
    /// Which of them.
    pub name: &'a str,
    pub cache: &'a Cache,
    /// Signs the manifest of a disk image.
    pub key: &'a SigningKey,
    /// Instead of the mirrors of this machine.
    pub mirror: Option<&'a str>,
    /// Build again even if nothing of the recipe changed: packages may have.
    pub refresh: bool,
    /// The packages to build from, instead of the newest.
    pub snapshot: Option<&'a Snapshot>,
}

/// What was built, or found as built before.
#[derive(Debug, Clone)]
pub enum Built {
    Layer(PathBuf),
    Disk(Box<Entry>),
    Ram(RamSystem),
}

/// Builds what the recipe says, unless it is there already.
pub fn build(options: &Options, progress: &dyn Progress) -> Result<Built> {
    let mut recipe = Recipe::load(options.recipes, options.name)?;
    recipe.bring_along(container::waiting(options.cache, options.name)?)?;
    // Modes of files that the build makes must not depend on who builds.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Builder { options, progress }.recipe(&recipe, options.refresh)
}

struct Builder<'a> {
    options: &'a Options<'a>,
    progress: &'a dyn Progress,
}

impl Builder<'_> {
    fn recipe(&self, recipe: &Recipe, refresh: bool) -> Result<Built> {
        let tools = Tools::new(&recipe.name, self.options.cache.log(&recipe.name), self.progress)?;
        let _lock = self.options.cache.lock(&tools, &recipe.name)?;
        if !refresh && let Some(built) = self.find(recipe)? {
            return Ok(built);
        }
        if !rustix::process::geteuid().is_root() {
            return Err(Error::config(
                "image.root",
                "building an image needs root: it owns the files of the new system",
            )
            .hint(format!("sudo rackline image build {}", recipe.name)));
        }
        let parent = match &recipe.parent {
            None => None,
            Some(parent) => match self.recipe(parent, refresh)? {
                Built::Layer(folder) => Some(folder),
                _ => return Err(Error::internal("image.recipe", "a recipe extends what is not a layer")),
            },
        };
        let work = self.options.cache.work(&recipe.name)?;
        match (&recipe.ram, &parent) {
            (Some(ram), Some(parent)) => {
                let (out, root) = (work.path().join("out"), work.path().join("root"));
                fs::create_dir(&out).map_err(|e| super::disk_full(e, "making the RAM system"))?;
                // No snapshot of an image lists the packages of the RAM system: they are the newest.
                let sources = Sources::find(&tools, &recipe.suite, self.options.mirror)?;
                let debs = self.options.cache.folder("debs")?;
                copy_of(&tools, parent, &root)?;
                root::install(&tools, recipe, &sources, &root, &debs, work.path()).map_err(|e| recipe.locate(e))?;
                ram::build(&tools, recipe, ram, &root, &out, work.path())?;
                let target = self.ram_folder(recipe)?;
                self.options.cache.publish(&out, &target)?;
                RamSystem::open(&target).map(Built::Ram)
            }
            _ => self.system(&tools, recipe, parent.as_deref(), work.path()),
        }
    }

    /// What an earlier build of the same recipe left.
    fn find(&self, recipe: &Recipe) -> Result<Option<Built>> {
        match recipe.shape {
            Shape::Layer => Ok(Some(self.layer_folder(recipe)?).filter(|p| p.is_dir()).map(Built::Layer)),
            Shape::Ram => Ok(RamSystem::open(&self.ram_folder(recipe)?).ok().map(Built::Ram)),
            Shape::Disk => {
                let images = self.options.cache.folder("images")?;
                let catalogue = Catalogue::open(&images, &[self.options.key.public()])?;
                let key = recipe.key.to_string();
                let wanted = self.options.snapshot.map(|s| s.digest().to_string());
                let same = |e: &&Entry| {
                    let label = |name| e.manifest.labels.get(name);
                    label(RECIPE_LABEL) == Some(&key)
                        && (wanted.is_none() || label(snapshot::DIGEST) == wanted.as_ref())
                };
                Ok(catalogue.images.iter().find(same).cloned().map(|e| Built::Disk(Box::new(e))))
            }
        }
    }

    fn layer_folder(&self, recipe: &Recipe) -> Result<PathBuf> {
        Ok(self.options.cache.folder("layers")?.join(self.folder_name(recipe)))
    }

    fn ram_folder(&self, recipe: &Recipe) -> Result<PathBuf> {
        Ok(self.options.cache.folder("ram")?.join(self.folder_name(recipe)))
    }

    /// What is built of a snapshot is not what is built of the newest packages.
    fn folder_name(&self, recipe: &Recipe) -> String {
        let name = format!("{}-{}", recipe.name, recipe.key.short());
        self.options.snapshot.map_or(name.clone(), |snapshot| format!("{name}-{}", snapshot.digest().short()))
    }

    /// A root directory, and the disk made of it if that is what the recipe is for.
    fn system(&self, tools: &Tools, recipe: &Recipe, parent: Option<&Path>, work: &Path) -> Result<Built> {
        let debs = self.options.cache.folder("debs")?;
        let mut sources = Sources::find(tools, &recipe.suite, self.options.mirror)?;
        if let Some(snapshot) = self.options.snapshot {
            sources.pin(snapshot, work)?;
        }
        let root = work.join("root");
        match parent {
            None => root::bootstrap(tools, recipe, &sources, &root, &debs, work).map_err(|e| recipe.locate(e))?,
            Some(parent) => {
                copy_of(tools, parent, &root)?;
                for recipe in recipe.parts.iter().chain([recipe]) {
                    root::extend(tools, recipe, &sources, &root, &debs, work).map_err(|e| recipe.locate(e))?;
                }
            }
        }
        if let Some(snapshot) = self.options.snapshot {
            snapshot.check(&Snapshot::installed(tools, &root)?)?;
        }
        if recipe.shape == Shape::Layer {
            let target = self.layer_folder(recipe)?;
            self.options.cache.publish(&root, &target)?;
            return Ok(Built::Layer(target));
        }
        let entry = disk(self.options, tools, recipe, &root, parent, work, BTreeMap::new())?;
        Ok(Built::Disk(Box::new(entry)))
    }
}

/// The published image of a root directory that has all that the recipe says. `parent` is the layer that it began with,
/// `labels` more words for its manifest.
pub fn disk(
    options: &Options,
    tools: &Tools,
    recipe: &Recipe,
    root: &Path,
    parent: Option<&Path>,
    work: &Path,
    labels: BTreeMap<String, String>,
) -> Result<Entry> {
    let epoch = match options.snapshot {
        Some(snapshot) => snapshot.epoch,
        None => root::epoch(root)?,
    };
    root::finish(tools, root, epoch)?;
    let snapshot = Snapshot { epoch, packages: Snapshot::installed(tools, root)? };
    let kernel = Kernel::find(root)?;
    let raw = work.join("disk.raw");
    let roots: Vec<&Path> = parent.into_iter().chain([root]).collect();
    let size = assemble(tools, &roots, &raw, &recipe.disk, recipe.key, epoch, work)?;

    let mut draft = draft(recipe, &kernel, &snapshot);
    draft.labels.extend(labels);
    publish(tools, options.cache, options.key, &raw, size, draft, work)
}

fn copy_of(tools: &Tools, layer: &Path, root: &Path) -> Result<()> {
    tools.step("copying the layer beneath")?;
    let mut copy = Command::new("cp");
    tools.run("coreutils", copy.args(["-a", "--reflink=auto", "--"]).arg(layer).arg(root))
}

fn draft(recipe: &Recipe, kernel: &Kernel, snapshot: &Snapshot) -> Draft {
    Draft {
        name: recipe.name.clone(),
        epoch: snapshot.epoch,
        arch: ARCH.into(),
        roles: recipe.roles.clone(),
        firmware: vec![Firmware::Bios, Firmware::Uefi],
        boot: Boot {
            root_label: ROOT_LABEL.into(),
            release: kernel.release.clone(),
            kernel: kernel.image(),
            initrd: kernel.initrd(),
            command_line: command_line(&recipe.disk),
        },
        labels: BTreeMap::from([
            ("suite".into(), recipe.suite.clone()),
            ("description".into(), recipe.description.clone()),
            ("packages".into(), snapshot.packages.len().to_string()),
            (snapshot::DIGEST.into(), snapshot.digest().to_string()),
            (snapshot::LIST.into(), snapshot.to_string()),
            (RECIPE_LABEL.into(), recipe.key.to_string()),
        ]),
    }
}
