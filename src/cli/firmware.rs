//! `rackline firmware …`: baselines, bundles, and what a machine would need.

use std::path::PathBuf;

use clap::Subcommand;

use super::fleet::Source;
use super::remote::Remote;
use super::show;
use crate::api::client::segment;
use crate::api::firmware::{MachineFirmware, Stock};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::firmware::baseline::{self, Part};
use crate::firmware::bundle::{About, Bundle, Bundles};
use crate::firmware::names::Names;
use crate::machine::Digest;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The baselines, and the bundles that there are for them.
    List,
    /// Look at a machine, and say what would have to be done for it to be as its baseline wants it. Changes nothing.
    Plan { machine: String },
    /// Check a baseline of the site; errors name the line.
    Check { file: PathBuf },
    /// Keep a vendor's firmware image for updates.
    Add {
        file: PathBuf,
        /// Dell, HPE, Lenovo, Supermicro …
        #[arg(long)]
        vendor: String,
        /// Product name as the machine says it, `*` at the end for anything (repeat for more).
        #[arg(long = "model", required = true)]
        models: Vec<String>,
        #[arg(long)]
        component: Part,
        /// Only for parts in whose name this occurs: BCM5720.
        #[arg(long)]
        named: Option<String>,
        /// As the machine will say it once it runs.
        #[arg(long)]
        version: String,
        /// SHA-256 of the vendor's page; compared.
        #[arg(long)]
        sha256: Option<Digest>,
        #[command(flatten)]
        source: Source,
    },
    /// Remove a bundle, by its file name or the first letters of its BLAKE3 digest.
    Remove {
        bundle: String,
        #[command(flatten)]
        source: Source,
    },
}

pub async fn run(args: Args) -> Result<()> {
    let json = args.remote.json;
    match args.command {
        Command::List => {
            let stock: Stock = args.remote.client()?.get("/api/v1/firmware").await?;
            show::print(json, &stock, || stock_table(&stock));
        }
        Command::Plan { machine } => {
            let path = format!("/api/v1/machines/{}/firmware", segment(&machine));
            let firmware: MachineFirmware = args.remote.client()?.get(&path).await?;
            show::print(json, &firmware, || plan_text(&firmware));
        }
        Command::Check { file } => {
            let baseline = baseline::read(&file)?;
            println!("{}: {}, {}", file.display(), baseline.name, baseline.wants().join(", "));
        }
        Command::Add { file, vendor, models, component, named, version, sha256, source } => {
            let vendor = known(&vendor)?;
            let about = About { vendor, models, component, named, version, sha256 };
            let bundle = bundles(&source)?.add(&file, about)?;
            show::print(json, &bundle, || bundles_table(std::slice::from_ref(&bundle)));
        }
        Command::Remove { bundle, source } => {
            let bundle = bundles(&source)?.remove(&bundle)?;
            show::print(json, &bundle, || format!("removed {} ({} {})", bundle.file, bundle.component, bundle.version));
        }
    }
    Ok(())
}

/// Where the appliance of this configuration has its bundles.
fn bundles(source: &Source) -> Result<Bundles> {
    Ok(Bundles::new(Config::load(&source.config)?.bundles()))
}

fn known(vendor: &str) -> Result<String> {
    let names = Names::built_in();
    let found = names.vendors().find(|v| v.eq_ignore_ascii_case(vendor));
    found.map(str::to_owned).ok_or_else(|| {
        let known: Vec<&str> = names.vendors().collect();
        Error::input("firmware.vendor", format!("there is no vendor {vendor:?}"))
            .hint(format!("the vendors are {}", known.join(", ")))
    })
}

fn stock_table(stock: &Stock) -> String {
    let mut table = show::table(&["BASELINE", "MODELS", "WANTS"]);
    for baseline in &stock.baselines {
        let required = if baseline.required { " (required)" } else { "" };
        let name = format!("{}{required}", baseline.name);
        table.add_row([name, baseline.models.join("\n"), baseline.wants.join("\n")]);
    }
    let apply = match stock.apply {
        true => "machines are brought to their baseline when they are commissioned",
        false => "machines are only looked at: firmware.apply is false",
    };
    let bundles = match stock.bundles.as_slice() {
        [] => "no bundle yet: `rackline firmware add FILE`".to_owned(),
        bundles => bundles_table(bundles),
    };
    format!("{table}\n\n{bundles}\n\n{apply}")
}

fn bundles_table(bundles: &[Bundle]) -> String {
    let mut table = show::table(&["BUNDLE", "FOR", "MODELS", "VERSION", "MIB", "BLAKE3"]);
    for b in bundles {
        let part = b.named.as_ref().map_or(b.component.to_string(), |named| format!("{} {named}", b.component));
        let size = format!("{:.1}", b.bytes as f64 / f64::from(1 << 20));
        table.add_row([b.file.clone(), part, b.models.join("\n"), b.version.clone(), size, b.blake3.short()]);
    }
    table.to_string()
}

fn plan_text(firmware: &MachineFirmware) -> String {
    let mut lines = Vec::new();
    match &firmware.plan {
        None => lines.push("there is no baseline for this model: `rackline firmware list`".to_owned()),
        Some(plan) => {
            lines.push(format!("{} by the baseline {}: {}", plan.model, plan.baseline, plan.summary()));
            lines.extend(plan.steps.iter().enumerate().map(|(n, step)| format!("{:>3}. {step}", n + 1)));
            lines.extend(plan.findings.iter().map(|finding| format!("  - {finding}")));
            lines.extend((!plan.steps.is_empty()).then(|| match firmware.apply {
                true => "done when the machine is commissioned the next time".to_owned(),
                false => "not done when the machine is commissioned: firmware.apply is false".to_owned(),
            }));
        }
    }
    if let Some(last) = &firmware.last {
        let when = if last.done { "when last commissioned" } else { "under way" };
        lines.push(format!("{when}: {}", last.doing));
        lines.extend(last.findings.iter().map(|finding| format!("  - {finding}")));
    }
    lines.join("\n")
}
