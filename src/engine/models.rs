//! The bills of materials of the site, and those built in. A site changes its files while the appliance runs: they are read anew
//! when the folder has changed, and a file with a mistake leaves those in use that were.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, OrFail, Result};
use crate::judge::model::bom::{BUILT_IN, Model, Models};

/// A file that is larger is no model.
const MAX_FILE: u64 = 1 << 20;
const MAX_FILES: usize = 1000;

/// Clones share what was read.
#[derive(Clone, Default)]
pub struct Shelf {
    folder: Option<PathBuf>,
    read: Arc<Mutex<Read>>,
}

#[derive(Default)]
struct Read {
    /// Name, size and time of change of each file; `None` before the first reading.
    stamp: Option<Vec<Stamp>>,
    models: Arc<Models>,
    /// Why the files that are there now are not in use.
    refused: Option<String>,
}

type Stamp = (PathBuf, u64, SystemTime);

impl Shelf {
    /// A mistake in a file is to show now, and not when a machine is commissioned.
    pub fn open(folder: Option<PathBuf>) -> Result<Self> {
        let shelf = Self { folder, read: Arc::default() };
        match shelf.refused() {
            Some(why) => {
                Err(Error::config("model.invalid", why)
                    .hint("correct it; `rackline model check FILE` looks at one file"))
            }
            None => Ok(shelf),
        }
    }

    /// Those that are in use.
    pub fn current(&self) -> Arc<Models> {
        self.look().models.clone()
    }

    /// Why the files that are there now are not in use.
    pub fn refused(&self) -> Option<String> {
        self.look().refused.clone()
    }

    fn look(&self) -> std::sync::MutexGuard<'_, Read> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.folder.as_deref().map_or(Ok(Vec::new()), stamp);
        if stamp.as_ref().is_ok_and(|stamp| read.stamp.as_ref() == Some(stamp)) {
            return read;
        }
        let known = read.refused.take();
        match stamp.and_then(|stamp| Ok((load(&stamp)?, stamp))) {
            Ok((models, stamp)) => {
                read.models = Arc::new(models);
                read.stamp = Some(stamp);
            }
            Err(e) => {
                let why = e.to_string();
                if known.as_ref() != Some(&why) {
                    tracing::error!(error = %why, "the models of the folder are not taken over; those before go on");
                }
                read.refused = Some(why);
            }
        }
        read
    }
}

/// A model as it is told to people.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ModelView {
    pub name: String,
    pub why: String,
    /// Product names for which it is taken where the list names none.
    pub products: Vec<String>,
    pub parts: Vec<String>,
}

impl From<&Model> for ModelView {
    fn from(model: &Model) -> Self {
        Self {
            name: model.name.clone(),
            why: model.why.clone(),
            products: model.products.iter().map(ToString::to_string).collect(),
            parts: model.parts(),
        }
    }
}

/// One file, by itself.
pub fn check(path: &Path) -> Result<ModelView> {
    let size = std::fs::metadata(path).map_or(0, |about| about.len());
    Ok(ModelView::from(&Model::parse(&path.display().to_string(), &read(path, size)?)?))
}

/// A built-in one as it is written, to begin an own one with.
pub fn example(name: &str) -> Result<&'static str> {
    let found = BUILT_IN.iter().find(|(file, _)| file.strip_suffix(".toml") == Some(name));
    found.map(|(_, text)| *text).ok_or_else(|| {
        let names: Vec<&str> = BUILT_IN.iter().filter_map(|(file, _)| file.strip_suffix(".toml")).collect();
        Error::not_found("model.unknown", format!("there is no built-in model {name:?}"))
            .hint(format!("the built-in ones are {}", names.join(", ")))
    })
}

fn stamp(folder: &Path) -> Result<Vec<Stamp>> {
    let failed = || format!("cannot read the folder of models {}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).or_fail(Kind::Config, "model.folder", failed)? {
        let path = entry.or_fail(Kind::Config, "model.folder", failed)?.path();
        if path.extension().is_some_and(|e| e == "toml") {
            let about = std::fs::metadata(&path).or_fail(Kind::Config, "model.folder", failed)?;
            files.push((path, about.len(), about.modified().unwrap_or(SystemTime::UNIX_EPOCH)));
        }
    }
    if files.len() > MAX_FILES {
        return Err(Error::config("model.folder", format!("{} has more than {MAX_FILES} models", folder.display())));
    }
    files.sort();
    Ok(files)
}

fn load(files: &[Stamp]) -> Result<Models> {
    let mut texts = Vec::with_capacity(files.len());
    for (path, size, _) in files {
        texts.push((path.display().to_string(), read(path, *size)?));
    }
    Models::of(texts.iter().map(|(file, text)| (file.as_str(), text.as_str())))
}

fn read(path: &Path, size: u64) -> Result<String> {
    if size > MAX_FILE {
        return Err(Error::config("model.folder", format!("{} is too large for a model", path.display())));
    }
    std::fs::read_to_string(path).or_fail(Kind::Config, "model.folder", || format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_leaves_what_was_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ours.toml");
        let shelf = Shelf::open(Some(folder.path().into())).unwrap();
        assert!(shelf.current().named("compute").is_some() && shelf.current().named("ours").is_none());
        std::fs::write(&file, "name = \"ours\"\nwhy = \"a test\"\n").unwrap();
        assert!(shelf.current().named("ours").is_some());
        std::fs::write(&file, "name = \"ours\"\nwhy = \"a test\"\n[cpu]\ncount = 0\n").unwrap();
        assert!(shelf.current().named("ours").is_some());
        assert!(shelf.refused().unwrap().contains("ours.toml, line 4, count"), "{:?}", shelf.refused());
        assert_eq!(Shelf::open(Some(folder.path().into())).err().unwrap().code(), "model.invalid");
        std::fs::remove_file(&file).unwrap();
        assert!(shelf.current().named("ours").is_none() && shelf.refused().is_none());
        assert!(Shelf::open(Some("/nowhere".into())).is_err());
        assert!(Shelf::default().current().named("storage").is_some());
    }
}
