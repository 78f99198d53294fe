//! The folder with everything that was built, and the order in it: what is complete has its final name, what is being
//! made lies under `tmp/` and is gone with its maker.
//!
//! | folder | what |
//! |---|---|
//! | `layers/NAME-KEY/` | root directories that recipes extend |
//! | `images/NAME-RELEASE/` | disk images, see [`super::catalogue`] |
//! | `ram/NAME-KEY/` | RAM systems |
//! | `initrd/KEY.zst` | initramfs with the agent's binary |
//! | `containers/RECIPE/` | containers that a recipe's image brings along, see [`super::container`] |
//! | `debs/` | packages as fetched |
//! | `locks/`, `logs/`, `tmp/` | one lock per name, the last build's output, work in progress |

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::sign::SigningKey;
use super::tool::Tools;
use crate::durable;
use crate::error::{Error, Kind, OrFail, Result};

/// How long a build waits for another one of the same name.
const PATIENCE: Duration = Duration::from_secs(2 * 3600);

#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// A folder for work in progress. It is removed when dropped; one whose owner died is removed by the next build.
pub struct Work {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Work {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        remove_tree(&self.path);
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// Tools that were killed may still be writing for a moment.
fn remove_tree(path: &Path) {
    for _ in 0..20 {
        match fs::remove_dir_all(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => std::thread::sleep(Duration::from_millis(100)),
            _ => return,
        }
    }
}

impl Cache {
    /// `$RACKLINE_CACHE`, or `rackline` in the cache folder of the user.
    pub fn default_root() -> Result<PathBuf> {
        let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        var("RACKLINE_CACHE")
            .or_else(|| var("XDG_CACHE_HOME").map(|p| p.join("rackline")))
            .or_else(|| var("HOME").map(|p| p.join(".cache/rackline")))
            .ok_or_else(|| {
                Error::config("image.cache", "there is no folder for built images").hint("set RACKLINE_CACHE to one")
            })
    }

    pub fn open_or_default(root: Option<&Path>) -> Result<Self> {
        match root {
            Some(root) => Self::open(root),
            None => Self::open(&Self::default_root()?),
        }
    }

    pub fn open(root: &Path) -> Result<Self> {
        let failed = || format!("cannot use {} as cache", root.display());
        fs::create_dir_all(root).or_fail(Kind::Config, "image.cache", failed)?;
        // Tools run elsewhere get these paths.
        let root = fs::canonicalize(root).or_fail(Kind::Config, "image.cache", failed)?;
        if root.to_str().is_none_or(|p| p.contains(|c: char| "\"\\@;".contains(c) || c.is_control())) {
            return Err(Error::config(
                "image.cache",
                format!("{} has characters that apt cannot take", root.display()),
            )
            .hint("set RACKLINE_CACHE to a plain path"));
        }
        Ok(Self { root })
    }

    /// The key that images built here are signed with; made at the first use.
    pub fn signing_key(&self) -> Result<SigningKey> {
        SigningKey::load_or_create(&self.root.join("signing.key"))
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).or_fail(Kind::Config, "image.cache", || format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }

    /// An empty folder for work, after removing those whose owners are gone.
    pub fn work(&self, name: &str) -> Result<Work> {
        let tmp = self.folder("tmp")?;
        self.sweep(&tmp);
        let failed = || format!("cannot make a work folder in {}", tmp.display());
        let path = tmp.join(format!("{name}-{}", uuid::Uuid::now_v7().simple()));
        let lock_path = path.with_extension("lock");
        let lock = File::create(&lock_path).or_fail(Kind::Config, "image.cache", failed)?;
        lock.lock().or_fail(Kind::Config, "image.cache", failed)?;
        fs::create_dir(&path).or_fail(Kind::Config, "image.cache", failed)?;
        Ok(Work { path, lock_path, _lock: lock })
    }

    fn sweep(&self, tmp: &Path) {
        for entry in fs::read_dir(tmp).into_iter().flatten().flatten() {
            let lock_path = entry.path();
            if lock_path.extension().is_some_and(|e| e == "lock")
                && File::open(&lock_path).is_ok_and(|lock| lock.try_lock().is_ok())
                // A lock that was made this moment may not be held yet.
                && entry.metadata().and_then(|m| m.modified()).is_ok_and(|t| t.elapsed().is_ok_and(|age| age.as_secs() > 5))
            {
                remove_tree(&lock_path.with_extension(""));
                let _ = fs::remove_file(&lock_path);
            }
        }
    }

    /// Keeps others from building the same; waits for one that does. Held until dropped, or until we die.
    pub fn lock(&self, tools: &Tools, name: &str) -> Result<File> {
        let path = self.folder("locks")?.join(name);
        let failed = || format!("cannot lock {}", path.display());
        let file = File::create(&path).or_fail(Kind::Config, "image.cache", failed)?;
        let begin = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if begin.elapsed() > PATIENCE => {
                    return Err(Error::conflict(
                        "image.busy",
                        format!("another build of {name} has not ended for two hours"),
                    )
                    .hint(format!("look for it: fuser {}", path.display())));
                }
                Err(TryLockError::WouldBlock) => tools.step("waiting for another build of it")?,
                Err(TryLockError::Error(e)) => return Err(e).or_fail(Kind::Config, "image.cache", failed),
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Gives finished work its final name, in one step. What had that name before is removed.
    pub fn publish(&self, from: &Path, to: &Path) -> Result<()> {
        let failed = || format!("cannot publish {}", to.display());
        // Work is thousands of files that tools wrote: what has a final name is on the disk after a power cut, too.
        File::open(from)
            .and_then(|f| Ok(rustix::fs::syncfs(f)?))
            .map_err(|e| super::disk_full(e, "syncing the work"))?;
        if to.exists() {
            let old = self.work("replaced")?;
            fs::rename(to, old.path().join("old")).or_fail(Kind::Config, "image.cache", failed)?;
        }
        durable::rename(from, to).or_fail(Kind::Config, "image.cache", failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_gone_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let work = cache.work("kvm").unwrap();
        fs::write(work.path().join("half"), "x").unwrap();
        // Another build does not take it away from under us.
        drop(cache.work("kvm").unwrap());
        assert!(work.path().exists());
        drop(work);
        // One whose owner died: its lock is free.
        let tmp = dir.path().join("tmp");
        fs::create_dir(tmp.join("dead")).unwrap();
        let lock = File::create(tmp.join("dead.lock")).unwrap();
        lock.set_modified(std::time::UNIX_EPOCH).unwrap();
        drop(lock);
        drop(cache.work("kvm").unwrap());
        assert_eq!(fs::read_dir(tmp).unwrap().count(), 0);
    }

    #[test]
    fn publishing_replaces_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let images = cache.folder("images").unwrap();
        for text in ["one", "two"] {
            let work = cache.work("kvm").unwrap();
            fs::create_dir(work.path().join("out")).unwrap();
            fs::write(work.path().join("out/data"), text).unwrap();
            cache.publish(&work.path().join("out"), &images.join("kvm")).unwrap();
            assert_eq!(fs::read_to_string(images.join("kvm/data")).unwrap(), text);
        }
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn one_build_of_a_name_at_a_time() {
        use std::sync::atomic::{AtomicBool, Ordering};

        use crate::image::tool::{Progress, Step};
        struct Watch(AtomicBool);
        impl Progress for Watch {
            fn step(&self, step: &Step) {
                self.0.store(step.what.contains("another build"), Ordering::SeqCst);
            }
            fn stopped(&self) -> bool {
                self.0.load(Ordering::SeqCst)
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let watch = Watch(AtomicBool::new(false));
        let tools = Tools::new("kvm", cache.log("kvm"), &watch).unwrap();
        let first = cache.lock(&tools, "kvm").unwrap();
        assert_eq!(cache.lock(&tools, "kvm").unwrap_err().code(), "image.stopped");
        drop(first);
        assert!(cache.lock(&tools, "kvm").is_ok());
    }
}
