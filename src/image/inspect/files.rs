//! The files of a system on a disk image, read without starting or believing any of it.
//!
//! ext2, ext3, ext4 and FAT are read by libraries within this process, as any user. XFS and btrfs are mounted by the
//! kernel, as root: read-only, without replaying their log, with nothing executable, in a mount namespace of a thread
//! that ends with the reading, so that neither a crash nor `kill -9` leaves a mount behind. Links are followed within the
//! file system only.

use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::disk::Disk;
use super::table::{Content, Partition};
use crate::error::{Error, Kind, OrFail, Result};

/// Reading one file system. Paths start with `/`; what does not exist is an error of kind `NotFound`.
pub trait Files {
    /// Names in a folder, sorted.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;
    /// The file's bytes, the first `max` of them.
    fn read(&self, path: &str, max: u64) -> io::Result<Vec<u8>>;
    fn exists(&self, path: &str) -> bool;
}

/// The file system of a partition.
pub fn open(disk: &Disk, partition: &Partition) -> Result<Box<dyn Files>> {
    let failed = || format!("the file system of partition {} cannot be read", partition.number);
    let window = disk.window(partition.start, partition.length);
    match partition.content {
        Content::Ext => {
            let system = ext4_view::Ext4::load(Box::new(window)).or_fail(Kind::Input, "image.filesystem", failed)?;
            Ok(Box::new(Ext(system)))
        }
        Content::Fat => {
            let system = fatfs::FileSystem::new(window, fatfs::FsOptions::new());
            Ok(Box::new(Fat(system.or_fail(Kind::Input, "image.filesystem", failed)?)))
        }
        Content::Xfs => Mounted::open(disk, partition, "xfs", "norecovery").map(|m| Box::new(m) as Box<dyn Files>),
        Content::Btrfs => {
            let mounted = Mounted::open(disk, partition, "btrfs", "rescue=nologreplay")?;
            // Distributions put the root into a subvolume.
            let within = ["/root", "/@"].into_iter().find(|p| mounted.exists(&format!("{p}/etc")));
            Ok(match within {
                Some(folder) => Box::new(Mounted {
                    root: mounted.open_in(folder).or_fail(Kind::Input, "image.filesystem", failed)?,
                    ..mounted
                }),
                None => Box::new(mounted),
            })
        }
        Content::Luks | Content::Lvm | Content::Unknown => Err(Error::input("image.filesystem", failed())),
    }
}

struct Ext(ext4_view::Ext4);

fn of_ext(e: ext4_view::Ext4Error) -> io::Error {
    e.into()
}

impl Files for Ext {
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in self.0.read_dir(path).map_err(of_ext)? {
            let name = entry.map_err(of_ext)?.file_name().display().to_string();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn read(&self, path: &str, max: u64) -> io::Result<Vec<u8>> {
        let mut file = self.0.open(path).map_err(of_ext)?;
        let length = file.metadata().len().min(max) as usize;
        let mut bytes = vec![0; length];
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match file.read_bytes(rest).map_err(of_ext)? {
                0 => break,
                n => done += n,
            }
        }
        bytes.truncate(done);
        Ok(bytes)
    }

    fn exists(&self, path: &str) -> bool {
        self.0.exists(path).unwrap_or(false)
    }
}

struct Fat(fatfs::FileSystem<super::disk::Window>);

impl Files for Fat {
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let folder = path.trim_matches('/');
        let dir = if folder.is_empty() { self.0.root_dir() } else { self.0.root_dir().open_dir(folder)? };
        let mut names = dir.iter().map(|e| e.map(|e| e.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.retain(|name| name != "." && name != "..");
        names.sort();
        Ok(names)
    }

    fn read(&self, path: &str, max: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.0.root_dir().open_file(path.trim_matches('/'))?.take(max).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn exists(&self, path: &str) -> bool {
        self.0.root_dir().open_file(path.trim_matches('/')).is_ok()
    }
}

/// A folder that somebody else provides: a mount, or the root directory of a build. Nothing leads out of it.
struct Mounted {
    root: OwnedFd,
    /// Holds the mount until it is dropped.
    _until: Option<mpsc::Sender<()>>,
}

impl Mounted {
    fn open(disk: &Disk, partition: &Partition, kind: &'static str, options: &'static str) -> Result<Self> {
        let failed = || format!("cannot mount partition {} ({kind}) for reading", partition.number);
        let Some(path) = disk.path() else {
            return Err(Error::input("image.filesystem", format!("{kind} can only be read from a raw disk"))
                .hint("look at the file that it was imported from"));
        };
        if !rustix::process::geteuid().is_root() {
            return Err(Error::config("image.root", format!("reading {kind} needs root: the kernel has to mount it"))
                .hint("run it with sudo"));
        }
        let source = path.to_owned();
        let (start, length) = (partition.start, partition.length);
        let (send, receive) = mpsc::channel();
        let (until, end) = mpsc::channel::<()>();
        // A thread may have a mount namespace of its own, which goes with it.
        let thread = std::thread::spawn(move || {
            let _ = send.send(mount(&source, start, length, kind, options));
            let _ = end.recv();
        });
        let root = receive.recv().or_fail(Kind::Internal, "image.mount", failed)?;
        if root.is_err() {
            drop(until);
            let _ = thread.join();
            return root.or_fail(Kind::Input, "image.filesystem", failed).map(|root| Self { root, _until: None });
        }
        Ok(Self { root: root.or_fail(Kind::Input, "image.filesystem", failed)?, _until: Some(until) })
    }

    fn open_in(&self, path: &str) -> io::Result<OwnedFd> {
        self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK)
    }

    fn open_at(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = match path.trim_matches('/') {
            "" => ".",
            path => path,
        };
        Ok(rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
    }
}

/// Mounts the stretch of the file in a new mount namespace of this thread, on a tmpfs that nobody else sees.
fn mount(source: &Path, start: u64, length: u64, kind: &str, options: &str) -> io::Result<OwnedFd> {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    // SAFETY: no file descriptor is unshared, only this thread's mounts.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS | rustix::thread::UnshareFlags::FS)? };
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    // losetup finds a free device and detaches it by itself with the last user.
    let output = std::process::Command::new("losetup")
        .args([
            "--find",
            "--show",
            "--read-only",
            "--offset",
            &start.to_string(),
            "--sizelimit",
            &length.to_string(),
            "--",
        ])
        .arg(source)
        .output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOSUID;
    let data = CString::new(options).unwrap_or_default();
    let mounted = mount(device.as_str(), c"/mnt", kind, flags, data.as_c_str());
    // From now on the device lives as long as the mount.
    let _ = std::process::Command::new("losetup").args(["--detach", &device]).output();
    mounted?;
    Ok(rustix::fs::openat(CWD, "/mnt", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

impl Files for Mounted {
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(self.open_in(path)?)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.retain(|name| name != "." && name != "..");
        names.sort();
        Ok(names)
    }

    fn read(&self, path: &str, max: u64) -> io::Result<Vec<u8>> {
        let file = std::fs::File::from(self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK)?);
        let mut bytes = Vec::new();
        file.take(max).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn exists(&self, path: &str) -> bool {
        self.open_at(path, OFlags::PATH).is_ok()
    }
}
