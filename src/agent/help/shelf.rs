//! Images that an installed host keeps for others: `DIGEST.frames`, in the form of the appliance's data file, and
//! `DIGEST.part` while it is being filled. A name without `.part` means that everything was on the disk before.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

use crate::durable;
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::Digest;
use crate::swarm::FileKeep;

const WHOLE: &str = "frames";
const PART: &str = "part";

#[derive(Debug, Clone)]
pub struct Shelf {
    folder: PathBuf,
}

pub enum Kept {
    Whole(FileKeep),
    Part(Part),
}

/// A file that is being filled. It is deleted when it is dropped before [`Self::finish`].
pub struct Part {
    file: Arc<File>,
    path: PathBuf,
    whole: AtomicBool,
}

struct Image {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl Shelf {
    /// Below the folder that an installed host keeps its state in.
    pub fn new(state: &Path) -> Self {
        Self { folder: state.join("swarm") }
    }

    fn path(&self, image: Digest, extension: &str) -> PathBuf {
        self.folder.join(format!("{image}.{extension}"))
    }

    fn files(&self, extension: &str) -> impl Iterator<Item = PathBuf> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        entries.filter(move |path| path.extension().is_some_and(|e| e == extension))
    }

    /// The images that are there as a whole.
    pub fn images(&self) -> Vec<Digest> {
        self.files(WHOLE).filter_map(|path| path.file_stem()?.to_str()?.parse().ok()).collect()
    }

    /// The kept image of `bytes` bytes, or room for it within `space` bytes for all of them.
    pub fn open(&self, image: Digest, bytes: u64, space: u64) -> Result<Kept> {
        // What an earlier attempt left, which a power cut may have torn.
        self.files(PART).try_for_each(|path| remove(&path))?;
        let whole = self.path(image, WHOLE);
        if let Ok(file) = File::open(&whole) {
            if file.metadata().is_ok_and(|meta| meta.len() == bytes) {
                // The image that was not used for longest goes first.
                let _ = file.set_modified(SystemTime::now());
                return FileKeep::open(&whole).map(Kept::Whole);
            }
            remove(&whole)?;
        }
        let failed = || format!("cannot keep an image in {}", self.folder.display());
        std::fs::create_dir_all(&self.folder).or_fail(Kind::Internal, "swarm.keep", failed)?;
        self.make_room(bytes, space)?;
        let path = self.path(image, PART);
        let options = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = Arc::new(options.or_fail(Kind::Internal, "swarm.keep", failed)?);
        let part = Part { file, path, whole: AtomicBool::new(false) };
        // Somebody else may take the room before the last frame has come.
        match fallocate(&*part.file, FallocateFlags::empty(), 0, bytes) {
            Err(Errno::OPNOTSUPP) => part.file.set_len(bytes).or_fail(Kind::Internal, "swarm.keep", failed)?,
            reserved => reserved.or_fail(Kind::Conflict, "swarm.space", failed)?,
        }
        Ok(Kept::Part(part))
    }

    /// One that turned out to be damaged.
    pub fn remove(&self, image: Digest) -> Result<()> {
        remove(&self.path(image, WHOLE))
    }

    /// The oldest go until all are within `space` bytes and half of what would be free without them.
    fn make_room(&self, bytes: u64, space: u64) -> Result<()> {
        let mut images: Vec<Image> = self.files(WHOLE).filter_map(Image::at).collect();
        images.sort_by_key(|image| image.used);
        let mut kept: u64 = images.iter().map(|image| image.bytes).sum();
        let system = statvfs(&self.folder).or_fail(Kind::Internal, "swarm.keep", || "the free space is not known")?;
        let free = system.f_bavail.saturating_mul(system.f_frsize);
        let allowed = space.min(free.saturating_add(kept) / 2);
        if bytes > allowed {
            let what = format!("this host does not keep an image of {bytes} bytes for others: it may use {allowed}");
            return Err(Error::conflict("swarm.space", what).hint("free some of its root file system"));
        }
        for image in images {
            if kept + bytes <= allowed {
                break;
            }
            remove(&image.path)?;
            kept -= image.bytes;
        }
        Ok(())
    }
}

impl Image {
    fn at(path: PathBuf) -> Option<Self> {
        let meta = path.metadata().ok()?;
        Some(Self { bytes: meta.len(), used: meta.modified().ok()?, path })
    }
}

impl Part {
    pub fn keep(&self) -> FileKeep {
        FileKeep::filling(Arc::clone(&self.file))
    }

    /// All of it is there: onto the disk, and under its name.
    pub fn finish(&self) -> Result<()> {
        let failed = || format!("{} cannot be finished", self.path.display());
        let whole = self.path.with_extension(WHOLE);
        durable::rename(&self.path, &whole).or_fail(Kind::Internal, "swarm.keep", failed)?;
        self.whole.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !*self.whole.get_mut() {
            // If it stays, the next image that is kept removes it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).or_fail(Kind::Internal, "swarm.keep", || format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SPACE: u64 = 1000;

    fn part(kept: Result<Kept>) -> Part {
        match kept.unwrap() {
            Kept::Part(part) => part,
            Kept::Whole(_) => panic!("it is there already"),
        }
    }

    /// Kept so many seconds ago.
    fn keep(shelf: &Shelf, name: &str, bytes: u64, ago: u64) -> Digest {
        let image = Digest::of(name.as_bytes());
        part(shelf.open(image, bytes, SPACE)).finish().unwrap();
        let used = SystemTime::now() - Duration::from_secs(ago);
        File::options().write(true).open(shelf.path(image, WHOLE)).unwrap().set_modified(used).unwrap();
        image
    }

    #[test]
    fn only_what_is_whole_has_the_name_of_an_image() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path());
        let image = Digest::of(b"image");
        assert!(shelf.images().is_empty());
        let part_of = part(shelf.open(image, 100, SPACE));
        assert!(shelf.images().is_empty() && shelf.path(image, PART).exists());
        drop(part_of);
        assert!(!shelf.path(image, PART).exists(), "what was given up is gone");
        std::fs::write(shelf.path(Digest::of(b"torn"), PART), b"half").unwrap();
        keep(&shelf, "image", 100, 0);
        assert_eq!(shelf.images(), [image]);
        assert!(!shelf.path(Digest::of(b"torn"), PART).exists());
        assert!(matches!(shelf.open(image, 100, SPACE), Ok(Kept::Whole(_))));
        // A file of another length is not the image.
        assert!(matches!(shelf.open(image, 101, SPACE), Ok(Kept::Part(_))));
        assert!(shelf.images().is_empty());
    }

    #[test]
    fn the_oldest_go_and_one_that_has_no_room_costs_nobody_anything() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path());
        let (old, new, middle) = (keep(&shelf, "a", 400, 90), keep(&shelf, "b", 300, 10), keep(&shelf, "c", 300, 50));
        let error = shelf.open(Digest::of(b"large"), 1001, SPACE).err().unwrap();
        assert_eq!((error.code(), shelf.images().len()), ("swarm.space", 3));
        let next = keep(&shelf, "d", 500, 0);
        let there = |image| shelf.images().contains(&image);
        assert!(there(next) && there(new) && !there(old) && !there(middle));
    }

    #[test]
    fn half_of_what_is_free_stays_free() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path());
        let system = statvfs(dir.path()).unwrap();
        let most = system.f_bavail * system.f_frsize / 2;
        let error = shelf.open(Digest::of(b"huge"), most + (64 << 30), u64::MAX).err().unwrap();
        assert_eq!(error.code(), "swarm.space");
    }
}
