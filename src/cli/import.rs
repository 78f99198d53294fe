//! `rackline image import` and `rackline image lint`.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;

use super::fleet;
use super::image::{Shown, until_stopped};
use super::show;
use crate::error::{Error, Result};
use crate::image::import::{self, Options};
use crate::image::inspect::System;
use crate::image::inspect::disk::Disk;
use crate::image::lint::{self, Expected, Finding, Level};
use crate::image::recipe::Recipe;
use crate::image::{Cache, Catalogue, adopt, build, container, userns};
use crate::machine::Role;

#[derive(clap::Args)]
pub struct Args {
    /// The file; what it is, is told from its content.
    file: PathBuf,
    /// What it becomes.
    #[arg(long = "as", value_enum, default_value = "disk")]
    kind: As,
    /// Its name in the catalogue; a container's, with its tag, is also found in the archive.
    #[arg(long, required_if_eq("kind", "disk"))]
    name: Option<String>,
    /// The recipe whose image brings the container along.
    #[arg(long, value_name = "RECIPE", default_value = "docker")]
    into: String,
    /// The folder of recipes; `base` says what makes a host of a container.
    #[arg(long, default_value = "images", value_name = "DIR")]
    recipes: PathBuf,
    /// Package mirror for a bootable container, instead of those of this machine.
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// What machines with it are for; several with commas.
    #[arg(long = "role", value_delimiter = ',')]
    roles: Vec<Role>,
    /// Publish in spite of errors found by lint; the reason stands in the manifest.
    #[arg(long, value_name = "REASON")]
    force: Option<String>,
    /// The smallest disk that it may meet, in bytes or as 480G, 2T; else that of the known machines.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    smallest_disk: Option<u64>,
    #[command(flatten)]
    fleet: fleet::Source,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum As {
    /// An image that machines boot: of a disk image, or of a container (`docker save` or an OCI layout) that holds Debian with
    /// apt. Kernel, boot loader, cloud-init, network and SSH are added from the mirror; environment and command are left
    /// out. The container's programs run as root during the build.
    Disk,
    /// A container that the image of a recipe brings along: its layers become one.
    Container,
}

#[derive(clap::Args)]
pub struct LintArgs {
    /// An image of the catalogue, or the file of a raw disk.
    image: String,
    /// The smallest disk that it may meet, in bytes or as 480G, 2T; else that of the known machines.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    smallest_disk: Option<u64>,
    #[command(flatten)]
    fleet: fleet::Source,
}

/// Disks are sold in powers of ten.
fn size(text: &str) -> std::result::Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let unit = match unit {
        "" => 1,
        "M" | "MB" => 1_000_000,
        "G" | "GB" => 1_000_000_000,
        "T" | "TB" => 1_000_000_000_000,
        _ => return Err("sizes end with M, G or T, or are in bytes".into()),
    };
    let number = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    number.ok_or_else(|| format!("{text} is not a size"))
}

pub async fn run(cache: Cache, args: Args, json: bool) -> Result<()> {
    if args.kind == As::Container {
        return preload(cache, args, json).await;
    }
    if container::is_archive(&args.file) {
        return adopt_container(cache, args, json).await;
    }
    let expected = fleet::expected(&args.fleet, args.smallest_disk).await;
    let begin = Instant::now();
    let imported = until_stopped(move |stop| {
        let key = cache.signing_key()?;
        let shown = Shown::new(stop);
        let options = Options {
            file: &args.file,
            name: args.name.as_deref().unwrap_or_default(),
            roles: &args.roles,
            cache: &cache,
            key: &key,
            expected: &expected,
            force: args.force.as_deref(),
        };
        let imported = import::import(&options, &shown);
        shown.bar.finish_and_clear();
        imported
    })
    .await?;
    let m = &imported.entry.manifest;
    let view = json!({
        "image": imported.entry.name(), "manifest": imported.entry.digest, "format": imported.format,
        "disk_bytes": m.disk_size, "data_bytes": m.data_size, "firmware": m.firmware, "kernel": m.boot.release,
        "seconds": begin.elapsed().as_secs_f64(), "findings": imported.findings,
    });
    show::print(json, &view, || {
        let firmware: Vec<String> = m.firmware.iter().map(ToString::to_string).collect();
        format!(
            "{}{} from {}: {}, {}, kernel {}, {} MiB for a disk of {} MiB ({:.1} s)",
            findings(&imported.findings),
            imported.entry.name(),
            imported.format,
            m.labels.get("description").map_or("", String::as_str),
            firmware.join(" and "),
            m.boot.release,
            m.data_size >> 20,
            m.disk_size >> 20,
            begin.elapsed().as_secs_f64()
        )
    });
    Ok(())
}

async fn adopt_container(cache: Cache, args: Args, json: bool) -> Result<()> {
    userns::become_root()?;
    let begin = Instant::now();
    let adopted = until_stopped(move |stop| {
        let key = cache.signing_key()?;
        let shown = Shown::new(stop);
        let build = build::Options {
            recipes: &args.recipes,
            name: args.name.as_deref().unwrap_or_default(),
            cache: &cache,
            key: &key,
            mirror: args.mirror.as_deref(),
            refresh: true,
            snapshot: None,
        };
        let options = adopt::Options { source: &args.file, roles: &args.roles, limit: container::LIMIT, build };
        let adopted = adopt::adopt(&options, &shown);
        shown.bar.finish_and_clear();
        adopted
    })
    .await?;
    let (m, seconds) = (&adopted.entry.manifest, begin.elapsed().as_secs_f64());
    let view = json!({
        "image": adopted.entry.name(), "manifest": adopted.entry.digest, "system": adopted.system,
        "layers": adopted.layers, "left_out": adopted.left_out, "disk_bytes": m.disk_size, "data_bytes": m.data_size,
        "firmware": m.firmware, "kernel": m.boot.release, "seconds": seconds,
    });
    show::print(json, &view, || {
        let left_out = match adopted.left_out.is_empty() {
            true => String::new(),
            false => format!("left out, since it means nothing to a host: {}\n", adopted.left_out.join(", ")),
        };
        let name = adopted.entry.name();
        format!(
            "{name} from a container of {} layers with {}: kernel {}, {} MiB for a disk of {} MiB ({seconds:.1} s)\n\
             {left_out}try it: rackline image test {name}",
            adopted.layers,
            adopted.system,
            m.boot.release,
            m.data_size >> 20,
            m.disk_size >> 20,
        )
    });
    Ok(())
}

async fn preload(cache: Cache, args: Args, json: bool) -> Result<()> {
    let begin = Instant::now();
    let into = args.into.clone();
    let done = until_stopped(move |stop| {
        let recipe = Recipe::load(&args.recipes, &args.into)?;
        let shown = Shown::new(stop);
        let tag = args.name.as_deref();
        let options =
            container::Options { source: &args.file, tag, recipe: &recipe, cache: &cache, limit: container::LIMIT };
        let done = container::preload(&options, &shown);
        shown.bar.finish_and_clear();
        done
    })
    .await?;
    let seconds = begin.elapsed().as_secs_f64();
    let view = json!({
        "container": done.tag, "archive": done.archive, "into": into, "layers": done.layers, "layer_bytes": done.before,
        "data_bytes": done.after, "devices_left_out": done.devices, "seconds": seconds,
    });
    show::print(json, &view, || {
        let devices = match done.devices {
            0 => String::new(),
            n => format!("; {n} device node(s) left out, the runtime makes its own"),
        };
        format!(
            "{}: {} layers, {} MiB, are one of {} MiB{devices} ({seconds:.1} s)\n\
             the next `rackline image build {into}` brings it along; to take it out: rm {}",
            done.tag,
            done.layers,
            done.before >> 20,
            done.after >> 20,
            done.archive.display(),
        )
    });
    Ok(())
}

pub async fn lint(cache: &Cache, args: LintArgs, json: bool) -> Result<()> {
    let expected = fleet::expected(&args.fleet, args.smallest_disk).await;
    let found = look(cache, &args.image, &expected)?;
    show::print(json, &found, || match found.is_empty() {
        true => format!("{}: nothing to object to", args.image),
        false => findings(&found).trim_end().to_owned(),
    });
    let errors = found.iter().filter(|f| f.level == Level::Error).count();
    match errors {
        0 => Ok(()),
        n => Err(Error::refused("image.lint", format!("{} has {n} error(s) that keep it from use", args.image))),
    }
}

fn look(cache: &Cache, image: &str, expected: &Expected) -> Result<Vec<Finding>> {
    let catalogue = Catalogue::open(&cache.folder("images")?, &[cache.signing_key()?.public()])?;
    let disk = match catalogue.resolve(image) {
        Ok(entry) => Disk::packed(entry)?,
        Err(_) if std::path::Path::new(image).is_file() => Disk::raw(std::path::Path::new(image))?,
        Err(e) => return Err(e),
    };
    lint::check(&disk, &System::find(&disk)?, expected)
}

fn findings(findings: &[Finding]) -> String {
    let mut text = String::new();
    for f in findings {
        let level = match f.level {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Note => "note",
        };
        text += &format!("{level}: {} [{}]\n  hint: {}\n", f.sentence, f.code, f.hint);
    }
    text
}
