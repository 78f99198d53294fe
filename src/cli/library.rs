//! `rackline image …`, the life of a catalogue: channels, roll-back, looking closely, and removing what nobody needs.

use std::collections::HashSet;
use std::time::Duration;

use clap::Subcommand;
use serde_json::json;

use super::fleet;
use super::image::{Shown, until_stopped};
use super::show;
use crate::error::{Error, Result};
use crate::image::channels::{self, Channels, What};
use crate::image::gc::{self, Users, Verdict};
use crate::image::{Cache, Catalogue, Entry, Progress, Step, proof};

/// A running appliance has taken over by then that an image is gone, and takes no order for it.
const SETTLED: Duration = Duration::from_secs(2);

#[derive(Subcommand)]
pub enum Command {
    /// Let a channel point to a version: `promote kvm-20261121-3f2a9c01 --channel stable` makes it `kvm@stable`.
    Promote {
        image: String,
        #[arg(long)]
        channel: String,
        /// Although no `rackline image test` has shown that it boots; the reason stands in the history.
        #[arg(long, value_name = "REASON")]
        force: Option<String>,
    },
    /// The channels, what each points to, and their history.
    Channels,
    /// Let a channel point to what it did before its last promotion.
    Rollback {
        /// As `kvm@stable`.
        channel: String,
    },
    /// All that is known of an image, and what it shares with the version before.
    Show { image: String },
    /// Read an image as a whole and compare every byte with its manifest.
    Verify { image: String },
    /// Remove one version, unless something needs it.
    Remove {
        image: String,
        #[command(flatten)]
        needs: Needs,
    },
    /// Remove the versions that nothing needs, and say of the others why they stay.
    Gc {
        /// Versions of each name that stay in any case, the newest ones.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
        keep: u16,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        needs: Needs,
    },
}

#[derive(clap::Args)]
pub struct Needs {
    #[command(flatten)]
    fleet: fleet::Source,
    /// No appliance uses this cache.
    #[arg(long)]
    no_appliance: bool,
}

impl Needs {
    /// Which images machines use. Where that is not known for certain nothing may be removed, so it is an error then.
    async fn users(&self, cache: &Cache) -> Result<Users> {
        if self.no_appliance {
            return Ok(Users::new());
        }
        let known = match fleet::same_cache(&self.fleet, cache) {
            Ok(()) => fleet::machines(&self.fleet).await,
            Err(e) => Err(e),
        };
        let machines = known.map_err(|e| {
            Error::conflict(
                "image.doubt",
                format!("nothing is removed, since which images are in use is not known: {e}"),
            )
            .because(e)
            .hint(
                "name the appliance's configuration with --config FILE, or say --no-appliance if none uses this cache",
            )
        })?;
        Ok(fleet::in_use(&machines))
    }
}

pub async fn run(cache: Cache, command: Command, json: bool) -> Result<()> {
    match command {
        Command::Promote { image, channel, force } => promote(&cache, &image, &channel, force.as_deref(), json),
        Command::Channels => list_channels(&cache, json),
        Command::Rollback { channel } => {
            let images = cache.folder("images")?;
            let now = channels::roll_back(&images, &open(&cache)?, &channel, &who())?;
            show::print(json, &json!({ "channel": channel, "image": now.image }), || {
                format!("{channel} is {} again", now.image)
            });
            Ok(())
        }
        Command::Show { image } => show_image(&cache, &image, json),
        Command::Verify { image } => verify(cache, image, json).await,
        Command::Remove { image, needs } => remove(&cache, &image, &needs, json).await,
        Command::Gc { keep, dry_run, needs } => collect(&cache, usize::from(keep), dry_run, &needs, json).await,
    }
}

fn open(cache: &Cache) -> Result<Catalogue> {
    Catalogue::open(&cache.folder("images")?, &[cache.signing_key()?.public()])
}

/// Who stands in the history.
fn who() -> String {
    let named = ["SUDO_USER", "USER", "LOGNAME"].iter().filter_map(|v| std::env::var(v).ok()).find(|v| !v.is_empty());
    named.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

fn promote(cache: &Cache, image: &str, channel: &str, force: Option<&str>, json: bool) -> Result<()> {
    let catalogue = open(cache)?;
    let entry = catalogue.resolve(image)?;
    let by = match (proof::require(entry, &[cache.signing_key()?.public()]), force) {
        (Ok(()), _) => who(),
        (Err(_), Some(reason)) => format!("{}, untested: {reason}", who()),
        (Err(unproved), None) => return Err(unproved),
    };
    let changed = channels::promote(&cache.folder("images")?, entry, channel, &by)?;
    let name = format!("{}@{channel}", entry.manifest.name);
    show::print(json, &json!({ "channel": name, "image": entry.name(), "changed": changed }), || {
        format!("{name} is {}{}", entry.name(), if changed { "" } else { ", as before" })
    });
    Ok(())
}

fn list_channels(cache: &Cache, json: bool) -> Result<()> {
    let channels = Channels::load(&cache.folder("images")?)?;
    let view: Vec<_> = channels
        .current()
        .map(|(name, now)| json!({ "channel": name, "image": now.image, "manifest": now.manifest, "history": channels.history(name) }))
        .collect();
    show::print(json, &view, || {
        let mut text = String::new();
        for (name, now) in channels.current() {
            text += &format!("{name} is {}\n", now.image);
            for change in channels.history(name).iter().rev() {
                let what = match change.what {
                    What::Promoted => "promoted to",
                    What::RolledBack => "rolled back to",
                };
                let at = jiff::Timestamp::from_millisecond(change.at)
                    .map_or_else(|_| String::new(), |t| t.strftime("%F %T").to_string());
                text += &format!("  {at}  {what} {} by {}\n", change.image, change.by);
            }
        }
        match text.is_empty() {
            true => "no channel yet: `rackline image promote NAME-RELEASE --channel stable`".into(),
            false => text.trim_end().to_owned(),
        }
    });
    Ok(())
}

/// Chunks of `entry` whose content another version has too: their number and the bytes of their frames.
fn shared(entry: &Entry, other: &Entry) -> (usize, u64) {
    let there: HashSet<_> = other.manifest.chunks.iter().map(|c| c.frame).collect();
    let same = entry.manifest.chunks.iter().filter(|c| there.contains(&c.frame));
    same.fold((0, 0), |(n, bytes), c| (n + 1, bytes + u64::from(c.length)))
}

fn show_image(cache: &Cache, image: &str, json: bool) -> Result<()> {
    let catalogue = open(cache)?;
    let entry = catalogue.resolve(image)?;
    let m = &entry.manifest;
    let older =
        catalogue.images.iter().skip_while(|e| e.digest != entry.digest).nth(1).filter(|e| e.manifest.name == m.name);
    let common = older.map(|older| (older.name(), shared(entry, older)));
    let channels: Vec<&str> =
        catalogue.channels.current().filter(|(_, now)| now.manifest == entry.digest).map(|(name, _)| name).collect();
    let view = json!({
        "image": entry.name(), "manifest": entry.digest, "arch": m.arch, "roles": m.roles, "firmware": m.firmware,
        "channels": channels, "boot": m.boot, "labels": m.labels, "disk_bytes": m.disk_size, "used_bytes": m.used_bytes,
        "data_bytes": m.data_size, "chunk_bytes": m.chunk_size, "chunks": m.chunks.len(),
        "zero_chunks": m.chunk_count() as usize - m.chunks.len(),
        "shared": common.as_ref().map(|(name, (n, bytes))| json!({ "with": name, "chunks": n, "data_bytes": bytes })),
    });
    show::print(json, &view, || {
        let words = |list: Vec<String>| if list.is_empty() { "none".to_owned() } else { list.join(", ") };
        let mut lines = vec![
            format!("image     {}", entry.name()),
            format!("manifest  {}", entry.digest),
            format!("channels  {}", words(channels.iter().map(ToString::to_string).collect())),
            format!("roles     {}", words(m.roles.iter().map(ToString::to_string).collect())),
            format!("firmware  {} ({})", words(m.firmware.iter().map(ToString::to_string).collect()), m.arch),
            format!("kernel    {} {}", m.boot.kernel, m.boot.command_line),
            format!("disk      {} MiB, of which {} MiB are written", m.disk_size >> 20, m.used_bytes >> 20),
            format!(
                "data      {} MiB in {} chunks of {} KiB, and {} that are zero",
                m.data_size >> 20,
                m.chunks.len(),
                m.chunk_size >> 10,
                m.chunk_count() as usize - m.chunks.len()
            ),
        ];
        if let Some((name, (n, bytes))) = &common {
            lines.push(format!("shared    {n} of {} chunks, {} MiB, with {name}", m.chunks.len(), bytes >> 20));
        }
        // The list of packages is long, and has a command of its own: `rackline image snapshot`.
        let short = m.labels.iter().filter(|(_, value)| !value.contains('\n'));
        lines.extend(short.map(|(key, value)| format!("{key:<9} {value}")));
        lines.join("\n")
    });
    Ok(())
}

async fn verify(cache: Cache, image: String, json: bool) -> Result<()> {
    let entry = open(&cache)?.resolve(&image)?.clone();
    let checked = entry.clone();
    until_stopped(move |stop| {
        let shown = Shown::new(stop);
        let total = checked.manifest.disk_size;
        let name = checked.name();
        let done = checked.verify(&|done| shown.step(&Step { image: &name, what: "verifying", done, total }));
        shown.bar.finish_and_clear();
        done
    })
    .await?;
    let view =
        json!({ "image": entry.name(), "chunks": entry.manifest.chunks.len(), "data_bytes": entry.manifest.data_size });
    show::print(json, &view, || format!("{}: every byte is as its manifest says", entry.name()));
    Ok(())
}

async fn remove(cache: &Cache, image: &str, needs: &Needs, json: bool) -> Result<()> {
    let images = cache.folder("images")?;
    let _alone = gc::begin(&images)?;
    let catalogue = open(cache)?;
    let entry = catalogue.resolve(image)?;
    let channels = Channels::load(&images)?;
    let reasons = gc::needed(entry, &channels, &needs.users(cache).await?);
    if !reasons.is_empty() {
        return Err(Error::conflict("image.needed", format!("{} stays: {}", entry.name(), reasons.join("; ")))
            .hint("promote another version, or deploy those machines with another one, first"));
    }
    let gone = take_away(cache, &[entry], needs).await?;
    if gone.is_empty() {
        let what = format!("{} stays: it was ordered or promoted in this moment", entry.name());
        return Err(Error::conflict("image.needed", what));
    }
    show::print(json, &json!({ "removed": gone }), || format!("removed {}", gone.join(", ")));
    Ok(())
}

async fn collect(cache: &Cache, keep: usize, dry_run: bool, needs: &Needs, json: bool) -> Result<()> {
    let images = cache.folder("images")?;
    let _alone = gc::begin(&images)?;
    let catalogue = open(cache)?;
    let channels = Channels::load(&images)?;
    let verdicts = gc::judge(&catalogue, &channels, &needs.users(cache).await?, keep);
    let going: Vec<&Entry> = verdicts.iter().filter(|v| v.reasons.is_empty()).map(|v| v.entry).collect();
    let bytes: u64 = going.iter().map(|e| e.manifest.data_size).sum();
    let gone = match dry_run || going.is_empty() {
        true => going.iter().map(|e| e.name()).collect(),
        false => take_away(cache, &going, needs).await?,
    };
    let view = json!({
        "removed": gone, "dry_run": dry_run, "data_bytes": bytes,
        "kept": verdicts.iter().filter(|v| !v.reasons.is_empty())
            .map(|v| json!({ "image": v.entry.name(), "reasons": v.reasons })).collect::<Vec<_>>(),
    });
    show::print(json, &view, || {
        let line = |v: &Verdict| format!("{} stays: {}", v.entry.name(), v.reasons.join("; "));
        let mut lines: Vec<String> = verdicts.iter().filter(|v| !v.reasons.is_empty()).map(line).collect();
        lines.extend(
            catalogue
                .unusable
                .iter()
                .map(|(path, why)| format!("{} stays, since it is not understood: {why}", path.display())),
        );
        let verb = if dry_run { "would be removed" } else { "removed" };
        lines.extend(gone.iter().map(|name| format!("{name} {verb}")));
        lines.push(format!("{} MiB in {} version(s) {verb}", bytes >> 20, gone.len()));
        lines.join("\n")
    });
    Ok(())
}

/// Out of the catalogue first, so that no order takes them any more; once a running appliance has seen that, those that
/// were ordered meanwhile, or got a channel, come back, and the others are removed for good. An error brings all back.
async fn take_away(cache: &Cache, entries: &[&Entry], needs: &Needs) -> Result<Vec<String>> {
    let images = cache.folder("images")?;
    let mut aside = Vec::new();
    for entry in entries {
        aside.push((*entry, gc::set_aside(&images, entry)?));
    }
    if !needs.no_appliance {
        tokio::time::sleep(SETTLED).await;
    }
    let users = needs.users(cache).await?;
    let channels = Channels::load(&images)?;
    let mut gone = Vec::new();
    for (entry, aside) in aside {
        if gc::needed(entry, &channels, &users).is_empty() {
            aside.remove()?;
            gone.push(entry.name());
        }
    }
    Ok(gone)
}
