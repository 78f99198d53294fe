//! An image onto the target disk: checked against its signature before anything else, the disk chosen by rule and told
//! before the first byte, streamed and verified, read back, and given its seed.
//!
//! It may be interrupted anywhere and simply be done again: what the disk has by then is found and kept ([`reuse`]).

pub(super) mod gpt;
mod journal;
mod layout;
mod member;
mod pipeline;
mod read_back;
mod reuse;
mod seed;
mod spill;
mod unpack;

pub use member::Member;
pub use seed::{INSTALLED_FILE, Installed, image as seed_image};

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use journal::Journal;
use layout::Layout;
use member::Wish;

use super::appliance::Appliance;
use super::block::Device;
use super::console::say;
use super::member::Fetched;
use super::progress::Meter;
use super::{Agent, blocking, inventory, setup, tool};
use crate::error::{Error, Result};
use crate::image::{Manifest, PublicKey, SignedManifest};
use crate::link::{Deploy, Deployed, Outcome, Report};
use crate::machine::{Digest, Disk, MachineId, TargetRule, select_target};
use crate::swarm::{HttpSource, Limits, Source};

/// Bytes that `dd` writes at most, where it is asked for as a yardstick.
const DD_MAX: u64 = 512 << 20;
const DD_PIECE: u64 = 4 << 20;

pub async fn deploy(agent: &Agent, number: u64, order: &Deploy, meter: &Meter) -> Result<Outcome> {
    meter.step("checking the image", 0);
    let image = Arc::new(signed_image(&agent.appliance, agent.options.key.as_deref(), order.manifest).await?);
    let binary = Arc::new(blocking(seed::own_binary).await?);
    let seed_len = seed::size_for(binary.len() as u64);

    let (disk, device, layout) = choose(agent, &order.target, image.disk_size, seed_len).await?;
    setup::ready(&agent.options.roots, agent.appliance.machine(), &order.setup, &disk).await?;
    tell_target(agent, number, &disk, &order.target).await?;

    let dd = match order.compare_with_dd {
        true => Some(dd_rate(&device, image.used_bytes, meter).await?),
        false => None,
    };
    let prepared = reuse::prepare(agent, order, &device, &layout, &image, meter).await?;
    let journal = Arc::new(Mutex::new(prepared.journal));
    let wish = Wish {
        image: order.manifest,
        manifest: &image,
        kept: &prepared.kept,
        device: &device,
        free: layout.spill.clone(),
    };
    let member = Member::join(agent, wish, http(agent, order, meter), meter).await;
    let alone = http(agent, order, meter);
    let source = member.as_ref().map_or(&alone as &dyn Source, Member::source);
    let written = pipeline::write(&device, &image, &prepared.kept, Some(&journal), source, meter).await?;

    let installed = Installed {
        machine: agent.appliance.machine(),
        manifest: order.manifest,
        disk_serial: disk.serial.clone(),
        disk_wwn: disk.wwn.clone(),
        disk_bytes: disk.size_bytes,
        setup: order.setup.clone(),
    };
    let (how, seed, meter) = (order.read_back, order.seed.clone(), meter.clone());
    let (checked, partitions) = blocking(move || {
        let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
        // What does not read back is not tried again on top of what is there.
        let checked = read_back::check(&device, &image, how, &meter).or_else(|e| journal.remove().and(Err(e)))?;
        meter.step("writing the seed", 0);
        gpt::fit(&device, &layout.seed)?;
        seed::write(&device, &layout.seed, &seed, &installed, &binary)?;
        journal.remove()?;
        device.reread_partitions()?;
        Ok((checked, gpt::partitions(&device)?))
    })
    .await?;
    let Fetched { from_peers, from_appliance } = match &member {
        Some(member) => member.fetched(),
        None => Fetched { from_peers: 0, from_appliance: written.fetched_bytes },
    };
    agent.stay(member);
    Ok(Outcome::Deployed(Box::new(Deployed {
        manifest: order.manifest,
        disk: disk.name,
        serial: disk.serial,
        partitions,
        written_bytes: written.written_bytes,
        fetched_bytes: written.fetched_bytes,
        peer_bytes: from_peers,
        appliance_bytes: from_appliance,
        resumed_bytes: prepared.resumed_bytes,
        reused_bytes: prepared.reused_bytes,
        write_seconds: written.seconds,
        read_back_bytes: checked.bytes,
        read_back_seconds: checked.seconds,
        dd_bytes_per_second: dd,
    })))
}

/// Only the write, for the benchmark: onto a disk that is zero where the image is. The bytes that were written.
pub async fn write_image(disk: &Path, image: Arc<Manifest>, source: &dyn Source, journal: bool) -> Result<u64> {
    let device = Arc::new(Device::claim(disk)?);
    let layout = Layout::new(device.size(), image.disk_size, layout::MIB).ok_or_else(|| too_small(&disk.display()))?;
    let binding = journal::Binding {
        machine: MachineId::generate(),
        image: Digest::of(&image.encode()?),
        chunks: image.chunks.len() as u32,
    };
    let journal = match journal {
        true => Some(Arc::new(Mutex::new(Journal::new(&device, layout.journal, &binding)?))),
        false => None,
    };
    let meter = Meter::new(0);
    let written = pipeline::write(&device, &image, &BTreeSet::new(), journal.as_ref(), source, &meter).await?;
    Ok(written.written_bytes)
}

fn too_small(disk: &dyn std::fmt::Display) -> Error {
    Error::conflict("disk.too-small", format!("{disk} is too small for image and seed"))
        .hint("order an image for smaller disks, or fit a larger disk")
}

/// The image's manifest: signed by the key that this agent was started with, and the very one that was ordered.
pub async fn signed_image(appliance: &Appliance, key: Option<&str>, ordered: Digest) -> Result<Manifest> {
    let key: PublicKey = match key {
        Some(key) => key.parse()?,
        None => {
            return Err(Error::config(
                "image.key",
                "this agent was started without the key that images are signed with",
            ));
        }
    };
    let file = appliance.manifest(ordered).await?;
    let signed = SignedManifest::parse(&file)?;
    let image = signed.verify(&[key])?;
    if signed.digest() != ordered {
        let found = signed.digest();
        return Err(Error::refused("image.digest", format!("image {found} was sent where {ordered} was ordered"))
            .hint("order again; if it stays, look at the appliance's image folder"));
    }
    if image.chunk_size > pipeline::CHUNK_MAX {
        let what = format!("the image has chunks of {} bytes, at most {}", image.chunk_size, pipeline::CHUNK_MAX);
        return Err(Error::refused("image.chunk-size", what).hint("build it with smaller chunks"));
    }
    Ok(image)
}

/// The disk that the rule means, claimed: nobody else can use it from here on.
async fn choose(agent: &Agent, rule: &TargetRule, image: u64, seed: u64) -> Result<(Disk, Arc<Device>, Layout)> {
    let (roots, rule) = (agent.options.roots.clone(), rule.clone());
    blocking(move || {
        let disks = inventory::disks(&roots)?;
        let disk = select_target(&disks, &rule, image.saturating_add(seed).saturating_add(layout::SPARE))?;
        if let Some(user) = inventory::in_use(&roots.sys, &roots.proc, &disk.name) {
            return Err(Error::conflict("disk.busy", format!("the target disk {} is in use: {user}", disk.name))
                .hint("unmount it, or stop the RAID, LVM or swap on it, then order again"));
        }
        let device = Device::claim(&roots.dev.join(&disk.name))?;
        if device.size() != disk.size_bytes {
            let (found, expected) = (device.size(), disk.size_bytes);
            let what = format!("{} has {found} bytes where {expected} were expected", device.path().display());
            return Err(Error::conflict("disk.changed", what).hint("order again: the disks have changed meanwhile"));
        }
        if device.sector() != 512 {
            let what = format!("{} has sectors of {} bytes, the image is made for 512", disk.name, device.sector());
            return Err(Error::conflict("disk.sector-size", what).hint("format the disk to 512-byte sectors (512e)"));
        }
        let layout = Layout::new(device.size(), image, seed).ok_or_else(|| too_small(&disk.name))?;
        Ok((disk.clone(), Arc::new(device), layout))
    })
    .await
}

/// The operator sees which disk it is before a byte is written; an appliance that no longer wants this order says so.
async fn tell_target(agent: &Agent, number: u64, disk: &Disk, rule: &TargetRule) -> Result<()> {
    let serial = disk.serial.as_ref().map_or("no serial number", |s| s.as_str());
    say(format!("target disk {} ({serial}, {} bytes) by rule {rule}", disk.name, disk.size_bytes));
    let outcome = Outcome::TargetChosen {
        disk: disk.name.clone(),
        serial: disk.serial.clone(),
        wwn: disk.wwn.clone(),
        size_bytes: disk.size_bytes,
        rule: rule.clone(),
    };
    match agent.report(&Report { number, outcome }).await {
        true => Ok(()),
        false => {
            Err(Error::conflict("order.superseded", "the appliance has taken the order back; nothing was written"))
        }
    }
}

/// The image straight from the appliance.
fn http(agent: &Agent, order: &Deploy, meter: &Meter) -> HttpSource {
    let (request, manifest, meter) = (agent.appliance.chunk_request(), order.manifest, meter.clone());
    HttpSource::new(move || request(manifest), move |note| meter.note(note), Limits::default())
}

/// What a plain `dd` reaches on this disk with zeros for as many bytes, in bytes a second until they are on the disk: the
/// yardstick of the benchmark. A failure of the yardstick fails the order, since it was asked for.
async fn dd_rate(device: &Arc<Device>, bytes: u64, meter: &Meter) -> Result<f64> {
    meter.step("measuring dd", 0);
    let count = bytes.min(DD_MAX).min(device.size()).div_euclid(DD_PIECE).max(1);
    let (target, count_arg) = (format!("of={}", device.path().display()), format!("count={count}"));
    let args = ["if=/dev/zero", &target, "bs=4M", "conv=fsync", &count_arg];
    let start = Instant::now();
    tool::expect("dd", &args, Duration::from_secs(600)).await?;
    let seconds = start.elapsed().as_secs_f64();
    Ok((count * DD_PIECE) as f64 / seconds.max(1e-9))
}
