//! `rackline image …`: build by recipe, list; the other subcommands have files of their own.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{import, library, show, trial};
use crate::config::Config;
use crate::error::{Error, Kind, OrFail, Result};
use crate::image::recipe::{self, Recipe, Shape};
use crate::image::snapshot::{self, Snapshot};
use crate::image::{Built, Cache, Catalogue, Options, Progress, Step, build, userns};
use crate::swarm::torrent::{self, Metainfo};

#[derive(clap::Args)]
pub struct Args {
    /// Where images, packages and layers are kept [default: RACKLINE_CACHE, else the user's cache folder]
    #[arg(long, global = true, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Print JSON instead of tables.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build images, and the RAM system `agent`, from Debian packages. What is there already is not built again.
    Build {
        /// Recipes by name.
        #[arg(required_unless_present = "all")]
        names: Vec<String>,
        /// Every recipe, except combinations of others.
        #[arg(long, conflicts_with = "names")]
        all: bool,
        /// The folder of recipes.
        #[arg(long, default_value = "images", value_name = "DIR")]
        recipes: PathBuf,
        /// Package mirror, instead of those of this machine.
        #[arg(long, value_name = "URL")]
        mirror: Option<String>,
        /// Build again even where the recipe is the same: packages may have changed.
        #[arg(long)]
        refresh: bool,
        /// Build from the packages of this list, as `rackline image snapshot` prints it, and from no others.
        #[arg(long, value_name = "FILE")]
        snapshot: Option<PathBuf>,
    },
    /// Print the packages that an image was built from, for `build --snapshot`.
    Snapshot { image: String },
    /// Take in an image that others built: a disk image (raw, qcow2, VMDK, VHDX, VHD; raw also as .zst, .gz, .xz), or a
    /// container.
    Import(import::Args),
    /// Say what may go wrong with an image on our machines.
    Lint(import::LintArgs),
    /// Boot an image in a virtual machine, run the checks of its roles inside, and keep the signed proof.
    Test(trial::Args),
    /// The images that machines can be deployed with.
    List,
    /// Print the .torrent of an image, for any BitTorrent client in a network that the appliance serves.
    Torrent {
        /// Name, name and release, or digest.
        name: String,
        /// The appliance's configuration, which says where machines reach it.
        #[arg(long, default_value = "/etc/rackline/rackline.toml", value_name = "FILE")]
        config: PathBuf,
    },
    #[command(flatten)]
    Library(library::Command),
}

pub async fn run(args: Args) -> Result<()> {
    let cache = Cache::open_or_default(args.cache.as_deref())?;
    let json = args.json;
    match args.command {
        Command::List => list(&cache, json),
        Command::Torrent { name, config } => torrent(&cache, &name, &config),
        Command::Test(args) => trial::run(cache, args, json).await,
        Command::Library(command) => library::run(cache, command, json).await,
        Command::Import(args) => import::run(cache, args, json).await,
        Command::Lint(args) => import::lint(&cache, args, json).await,
        Command::Snapshot { image } => print_snapshot(&cache, &image),
        Command::Build { names, all, recipes, mirror, refresh, snapshot } => {
            userns::become_root()?;
            let snapshot = snapshot.as_deref().map(read_snapshot).transpose()?;
            let names = if all { buildable(&recipes)? } else { names };
            until_stopped(move |stop| {
                build_all(&cache, &recipes, &names, mirror.as_deref(), refresh, snapshot.as_ref(), stop)
            })
            .await
        }
    }
}

/// Runs long work beside the runtime. Ctrl-C raises the flag: the work looks at it between its steps, takes its tools
/// down with it and cleans up.
pub async fn until_stopped<T: Send + 'static>(
    work: impl FnOnce(&AtomicBool) -> Result<T> + Send + 'static,
) -> Result<T> {
    let stop = Arc::new(AtomicBool::new(false));
    let watched = stop.clone();
    let work = tokio::task::spawn_blocking(move || work(&watched));
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.store(true, Ordering::Relaxed);
        }
    });
    work.await.or_fail(Kind::Internal, "image.work", || "the work was cut short")?
}

fn buildable(recipes: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for name in recipe::names(recipes) {
        let recipe = Recipe::load(recipes, &name)?;
        if recipe.shape != Shape::Layer && recipe.parts.is_empty() {
            names.push(name);
        }
    }
    match names.is_empty() {
        true => Err(Error::input("image.recipes", format!("there are no recipes in {}", recipes.display()))
            .hint("run it in the project's folder, or name the folder with --recipes")),
        false => Ok(names),
    }
}

fn read_snapshot(path: &Path) -> Result<Snapshot> {
    let failed = || format!("cannot read the snapshot {}", path.display());
    std::fs::read_to_string(path).or_fail(Kind::Input, "image.snapshot", failed)?.parse()
}

fn print_snapshot(cache: &Cache, image: &str) -> Result<()> {
    let catalogue = Catalogue::open(&cache.folder("images")?, &[cache.signing_key()?.public()])?;
    let entry = catalogue.resolve(image)?;
    let list = entry.manifest.labels.get(snapshot::LIST);
    let list = list.ok_or_else(|| {
        Error::not_found("image.snapshot", format!("{} has no list of packages", entry.name()))
            .hint("images that were imported have none; build it again where it was built by an older version")
    })?;
    print!("{list}");
    Ok(())
}

fn build_all(
    cache: &Cache,
    recipes: &Path,
    names: &[String],
    mirror: Option<&str>,
    refresh: bool,
    snapshot: Option<&Snapshot>,
    stop: &AtomicBool,
) -> Result<()> {
    let key = cache.signing_key()?;
    for name in names {
        let shown = Shown::new(stop);
        let start = Instant::now();
        let built = build(&Options { recipes, name, cache, key: &key, mirror, refresh, snapshot }, &shown);
        shown.bar.finish_and_clear();
        let what = match built? {
            Built::Layer(folder) => folder.display().to_string(),
            Built::Disk(image) => {
                let m = &image.manifest;
                format!("{}, {} MiB for a disk of {} MiB", image.name(), m.data_size >> 20, m.disk_size >> 20)
            }
            Built::Ram(system) => format!("RAM system, kernel {}", system.kernel),
        };
        eprintln!("{name}: {what} ({:.1} s)", start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// On a terminal a line that changes, with bytes, rate and the time that is left; elsewhere a line for each step.
pub struct Shown<'a> {
    pub bar: ProgressBar,
    last: Mutex<String>,
    stop: &'a AtomicBool,
}

impl<'a> Shown<'a> {
    pub fn new(stop: &'a AtomicBool) -> Self {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, last: Mutex::default(), stop }
    }
}

const WAITING: &str = "{spinner} {msg} {elapsed}";
const COUNTING: &str = "{spinner} {msg} [{bar:30}] {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";

impl Progress for Shown<'_> {
    fn step(&self, step: &Step) {
        let line = format!("{}: {}", step.image, step.what);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != line {
            if !std::io::stderr().is_terminal() {
                eprintln!("{line}");
            }
            if let Ok(style) = ProgressStyle::with_template(if step.total == 0 { WAITING } else { COUNTING }) {
                self.bar.set_style(style.progress_chars("=> "));
            }
            self.bar.reset();
            self.bar.set_message(line.clone());
            *last = line;
        }
        if step.total > 0 {
            self.bar.set_length(step.total);
            self.bar.set_position(step.done);
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn torrent(cache: &Cache, name: &str, config: &Path) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if out.is_terminal() {
        return Err(Error::input("image.torrent", "a .torrent is not text")
            .hint(format!("write it to a file: `rackline image torrent {name} > {name}.torrent`")));
    }
    let url = torrent::tracker_url(&Config::load(config)?.boot.url);
    let catalogue = Catalogue::open(&cache.folder("images")?, &[cache.signing_key()?.public()])?;
    let file = Metainfo::of(catalogue.resolve(name)?)?.file(&url);
    out.write_all(&file).and_then(|()| out.flush()).or_fail(
        Kind::Input,
        "image.torrent",
        || "cannot write the .torrent",
    )
}

fn list(cache: &Cache, json: bool) -> Result<()> {
    let catalogue = Catalogue::open(&cache.folder("images")?, &[cache.signing_key()?.public()])?;
    for (folder, why) in &catalogue.unusable {
        eprintln!("not usable: {}: {why}", folder.display());
    }
    let images: Vec<_> = catalogue
        .images
        .iter()
        .map(|e| {
            json!({
                "name": e.manifest.name, "release": e.manifest.release, "manifest": e.digest, "roles": e.manifest.roles,
                "disk_bytes": e.manifest.disk_size, "used_bytes": e.manifest.used_bytes,
                "data_bytes": e.manifest.data_size, "kernel": e.manifest.boot.release,
            })
        })
        .collect();
    show::print(json, &images, || show::images(&catalogue));
    Ok(())
}
