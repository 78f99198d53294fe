//! `rackline image test`: boots an image by itself and keeps the signed proof that it does what it promises.

use clap::ValueEnum;
use serde_json::json;

use super::show;
use crate::error::{Error, Kind, OrFail, Result};
use crate::image::{Cache, Catalogue, Entry, Proof};
use crate::lab::trial::{self, Trial};
use crate::machine::Firmware;

#[derive(clap::Args)]
pub struct Args {
    image: String,
    /// Boot by this firmware only [default: each that the image names]
    #[arg(long)]
    firmware: Option<Which>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Which {
    Bios,
    Uefi,
    Both,
}

pub async fn run(cache: Cache, args: Args, json: bool) -> Result<()> {
    tokio::select! {
        done = tests(&cache, &args, json) => done,
        _ = tokio::signal::ctrl_c() => Err(Error::conflict("image.stopped", "the test was stopped; no proof was made")),
    }
}

async fn tests(cache: &Cache, args: &Args, json: bool) -> Result<()> {
    let key = cache.signing_key()?;
    let catalogue = Catalogue::open(&cache.folder("images")?, &[key.public()])?;
    let entry = catalogue.resolve(&args.image)?.clone();
    let work = cache.work("test")?;
    let disk = work.path().join("disk.raw");
    eprintln!("{}: writing the disk", entry.name());
    let restored = {
        let (entry, disk) = (entry.clone(), disk.clone());
        tokio::task::spawn_blocking(move || trial::restore(&entry, &disk, &|_| {})).await
    };
    restored.or_fail(Kind::Internal, "image.test", || "the test was cut short")??;
    let binary =
        std::fs::read("/proc/self/exe").or_fail(Kind::Internal, "image.test", || "this program cannot read itself")?;

    for firmware in wanted(&entry, args.firmware)? {
        let say = |step: &str| eprintln!("{} by {firmware}: {step}", entry.name());
        let trial = Trial { entry: &entry, firmware, disk: &disk, work: work.path(), binary: &binary };
        let proof = match trial::run(&trial, &say).await {
            Ok(proof) => proof,
            Err(e) => {
                // What was shown once no longer holds.
                Proof::withdraw(&entry, firmware)?;
                return Err(e);
            }
        };
        proof.store(&entry, &key)?;
        show::print(json, &json!({ "image": entry.name(), "proof": proof }), || {
            let name = entry.name();
            format!(
                "{name} boots by {firmware}: agent after {:.0} s, {} checks passed",
                proof.boot_seconds,
                proof.checks.len()
            )
        });
    }
    Ok(())
}

fn wanted(entry: &Entry, which: Option<Which>) -> Result<Vec<Firmware>> {
    let wanted = match which {
        None => entry.manifest.firmware.clone(),
        Some(Which::Bios) => vec![Firmware::Bios],
        Some(Which::Uefi) => vec![Firmware::Uefi],
        Some(Which::Both) => vec![Firmware::Bios, Firmware::Uefi],
    };
    match wanted.iter().find(|f| !entry.manifest.firmware.contains(f)) {
        Some(other) => Err(Error::input("image.firmware", format!("{} is not made for {other}", entry.name()))
            .hint("without --firmware it is tested by each that it is made for")),
        None => Ok(wanted),
    }
}
