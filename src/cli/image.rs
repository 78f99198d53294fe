//! `rackline image …`: build by recipe, list.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::show;
use crate::error::{Error, Kind, OrFail, Result};
use crate::image::recipe::{self, Recipe, Shape};
use crate::image::{Built, Cache, Catalogue, Options, Progress, Step, build};

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
        /// Every recipe.
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
    },
    /// The images that machines can be deployed with.
    List,
}

pub async fn run(args: Args) -> Result<()> {
    let cache = Cache::open_or_default(args.cache.as_deref())?;
    let json = args.json;
    match args.command {
        Command::List => list(&cache, json),
        Command::Build { names, all, recipes, mirror, refresh } => {
            let names = if all { buildable(&recipes)? } else { names };
            let stop = Arc::new(AtomicBool::new(false));
            let watched = stop.clone();
            let work = tokio::task::spawn_blocking(move || {
                build_all(&cache, &recipes, &names, mirror.as_deref(), refresh, &watched)
            });
            // The build looks at the flag between its steps and takes its tools down with it.
            tokio::spawn(async move {
                if tokio::signal::ctrl_c().await.is_ok() {
                    stop.store(true, Ordering::Relaxed);
                }
            });
            work.await.or_fail(Kind::Internal, "image.build", || "the build was cut short")?
        }
    }
}

fn buildable(recipes: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for name in recipe::names(recipes) {
        if Recipe::load(recipes, &name)?.shape != Shape::Layer {
            names.push(name);
        }
    }
    match names.is_empty() {
        true => Err(Error::input("image.recipes", format!("there are no recipes in {}", recipes.display()))
            .hint("run it in the project's folder, or name the folder with --recipes")),
        false => Ok(names),
    }
}

fn build_all(
    cache: &Cache,
    recipes: &Path,
    names: &[String],
    mirror: Option<&str>,
    refresh: bool,
    stop: &AtomicBool,
) -> Result<()> {
    let key = cache.signing_key()?;
    for name in names {
        let shown = Shown::new(stop);
        let start = Instant::now();
        let built = build(&Options { recipes, name, cache, key: &key, mirror, refresh }, &shown);
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

/// A line that changes on a terminal, a line for each step elsewhere.
struct Shown<'a> {
    bar: ProgressBar,
    last: Mutex<String>,
    stop: &'a AtomicBool,
}

impl<'a> Shown<'a> {
    fn new(stop: &'a AtomicBool) -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, last: Mutex::default(), stop }
    }
}

impl Progress for Shown<'_> {
    fn step(&self, step: &Step) {
        let share = (step.done * 100).checked_div(step.total).map_or(String::new(), |p| format!(" {p} %"));
        let line = format!("{}: {}", step.image, step.what);
        self.bar.set_message(format!("{line}{share}"));
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != line && !std::io::stderr().is_terminal() {
            eprintln!("{line}");
        }
        *last = line;
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
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
