//! Files that are whole or not there, whatever moment the power goes.
//!
//! A rename is one step for whoever looks, but not for the disk: the name may get there before the bytes, and the folder
//! with the name after the call has returned. So the bytes are synced first, then comes the name, then its folder is
//! synced. What is being written lies beside the file as `NAME.new`; if its writer dies, the next one takes its place.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Puts `content` in the place of the file at `path`, which need not be there.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    write(path, content, None, |new| fs::rename(new, path))
}

/// A new file that nobody but its owner can read (mode 0600). What is there already stays, and the error is
/// `AlreadyExists`.
pub fn create_secret(path: &Path, content: &[u8]) -> io::Result<()> {
    write(path, content, Some(0o600), |new| {
        fs::hard_link(new, path)?;
        fs::remove_file(new)
    })
}

/// Gives a file its final name, in the same file system. Of a folder only the names in it are synced, not its files.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    File::open(from)?.sync_all()?;
    fs::rename(from, to)?;
    sync_folder(to)
}

/// The name of `path` is on the disk, or that it is gone.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn write(path: &Path, content: &[u8], mode: Option<u32>, name: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let mut file = begin(&new)?;
    let finish = || {
        if let Some(mode) = mode {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        file.write_all(content)?;
        file.sync_all()?;
        name(&new)
    };
    finish().inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })?;
    sync_folder(path)
}

/// An empty file that no other writer of the same name has, until it is dropped.
fn begin(new: &Path) -> io::Result<File> {
    loop {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(new)?;
        file.lock()?;
        // The writer before us may have given it its final name while we waited.
        let ours = file.metadata()?;
        if fs::symlink_metadata(new).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            file.set_len(0)?;
            return Ok(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn readers_and_writers_at_once_see_whole_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        // What a writer left that was killed.
        fs::write(dir.path().join("state.json.new"), "longer than what is written now, and torn").unwrap();
        let content = |n: u8| vec![n; 1000 + usize::from(n)];
        replace(&path, &content(0)).unwrap();
        std::thread::scope(|scope| {
            for n in 1..=4 {
                let path = &path;
                scope.spawn(move || (0..25).for_each(|_| replace(path, &content(n)).unwrap()));
            }
            for _ in 0..1000 {
                let found = fs::read(&path).unwrap();
                assert_eq!(found, content(found[0]));
            }
        });
        assert_eq!(names(dir.path()), ["state.json"]);
    }

    #[test]
    fn a_secret_is_made_once_and_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("site.key");
        let made = std::thread::scope(|scope| {
            let makers: Vec<_> =
                ["a", "b", "c"].into_iter().map(|s| (s, scope.spawn(|| create_secret(&path, s.as_bytes())))).collect();
            let made = makers.into_iter().filter_map(|(secret, maker)| match maker.join().unwrap() {
                Ok(()) => Some(secret),
                Err(e) => {
                    assert_eq!(e.kind(), io::ErrorKind::AlreadyExists);
                    None
                }
            });
            made.collect::<Vec<_>>()
        });
        assert_eq!(made, [fs::read_to_string(&path).unwrap()]);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(names(dir.path()), ["site.key"]);
    }

    #[test]
    fn nothing_is_left_of_what_failed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir_all(path.join("by-a-folder")).unwrap();
        assert!(replace(&path, b"x").is_err());
        assert_eq!(names(dir.path()), ["taken"]);
    }
}
