//! Images that others built: a vendor's cloud image, or the disk of a virtual machine, becomes one of the catalogue.
//!
//! The file is recognised by its content ([`convert`]), brought to a raw disk, looked at ([`super::inspect`],
//! [`super::lint`]) and published like a built one. Nothing of it is run, and nothing is left of an import that failed.

pub mod convert;

use std::collections::BTreeMap;
use std::path::Path;

use super::cache::Cache;
use super::catalogue::Entry;
use super::inspect::System;
use super::inspect::disk::Disk;
use super::lint::{self, Expected, Finding};
use super::manifest::{Boot, is_name};
use super::publish::{Draft, publish};
use super::sign::SigningKey;
use super::tool::{Progress, Tools};
use crate::error::{Error, Result};
use crate::machine::Role;

pub struct Options<'a> {
    pub file: &'a Path,
    /// The image's name in the catalogue.
    pub name: &'a str,
    pub roles: &'a [Role],
    pub cache: &'a Cache,
    pub key: &'a SigningKey,
    /// What the image is held against.
    pub expected: &'a Expected,
    /// Publish in spite of errors that lint found, with the reason that goes into the manifest.
    pub force: Option<&'a str>,
}

#[derive(Debug)]
pub struct Imported {
    pub entry: Entry,
    pub findings: Vec<Finding>,
    /// The format of the file, in the words of `qemu-img`.
    pub format: &'static str,
}

pub fn import(options: &Options, progress: &dyn Progress) -> Result<Imported> {
    let Options { file, name, cache, .. } = *options;
    if !is_name(name) {
        return Err(Error::input("image.name", format!("{name:?} is not a name for an image"))
            .hint("letters, digits, and - . _ + behind the first one, at most 64"));
    }
    let tools = Tools::new(name, cache.log(&format!("import-{name}")), progress)?;
    let _lock = cache.lock(&tools, name)?;
    let work = cache.work(name)?;
    let source = convert::raw_disk(&tools, file, work.path())?;

    tools.step("looking at the system")?;
    let disk = Disk::raw(&source.path)?;
    let system = System::find(&disk)?;
    let findings = lint::check(&disk, &system, options.expected)?;
    lint::refuse(name, &findings, options.force)?;
    let draft = draft(options, &system, source.format)?;
    let entry = publish(&tools, cache, options.key, &source.path, disk.size(), draft, work.path())?;
    Ok(Imported { entry, findings, format: source.format })
}

fn draft(options: &Options, system: &System, format: &str) -> Result<Draft> {
    if system.firmware.is_empty() {
        return Err(Error::input("image.boot-loader", "the disk image has no boot loader for BIOS or UEFI")
            .hint("take a whole-disk image that boots, not one of a file system"));
    }
    let mut labels = BTreeMap::from([
        ("description".to_owned(), format!("imported: {}", system.name)),
        ("source".to_owned(), options.file.file_name().unwrap_or_default().to_string_lossy().into_owned()),
        ("format".to_owned(), format.to_owned()),
    ]);
    if let Some(reason) = options.force {
        labels.insert("forced".to_owned(), reason.to_owned());
    }
    let kernel = system.kernel.clone();
    let now = jiff::Timestamp::now().as_second();
    Ok(Draft {
        name: options.name.to_owned(),
        epoch: u64::try_from(now).unwrap_or_default(),
        arch: system.arch.unwrap_or("unknown").to_owned(),
        roles: options.roles.to_vec(),
        firmware: system.firmware.clone(),
        boot: Boot {
            root_label: system.root.label.clone().unwrap_or_default(),
            release: kernel.as_ref().map(|k| k.release.clone()).unwrap_or_default(),
            kernel: kernel.as_ref().map(|k| k.image.clone()).unwrap_or_default(),
            initrd: kernel.as_ref().map(|k| k.initrd.clone()).unwrap_or_default(),
            command_line: kernel.map(|k| k.command_line).unwrap_or_default(),
        },
        labels,
    })
}
