//! Writes cpio archives in the format "newc" that Linux unpacks as initramfs
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`): a header of 13 hexadecimal numbers of 8 digits, the
//! name, the data, each padded to 4 bytes. Owner is root and time is zero, so the same files give the same archive.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::recipe::walk;

const FILE: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;
const LINK: u32 = 0o120_000;

pub struct Archive<W> {
    out: W,
    inode: u32,
}

impl<W: Write> Archive<W> {
    pub fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    pub fn folder(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, FOLDER | 0o755, &[])
    }

    pub fn file(&mut self, name: &str, executable: bool, data: &[u8]) -> io::Result<()> {
        self.entry(name, FILE | if executable { 0o755 } else { 0o644 }, data)
    }

    pub fn link(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.entry(name, LINK | 0o777, target.as_bytes())
    }

    /// Everything beneath a folder, named relative to it.
    pub fn tree(&mut self, folder: &Path) -> io::Result<()> {
        for (path, about) in walk(folder)? {
            let within = path.strip_prefix(folder).unwrap_or(&path);
            let name = within.to_str().ok_or_else(|| io::Error::other("a file name is not UTF-8"))?;
            if about.is_dir() {
                self.folder(name)?;
            } else if about.is_symlink() {
                let target = fs::read_link(&path)?;
                self.link(name, target.to_str().ok_or_else(|| io::Error::other("a link is not UTF-8"))?)?;
            } else {
                self.file(name, about.permissions().mode() & 0o111 != 0, &fs::read(&path)?)?;
            }
        }
        Ok(())
    }

    pub fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        let size = u32::try_from(data.len()).map_err(|_| io::Error::other("a file is too large for an initramfs"))?;
        self.inode += 1;
        let links = if mode & FOLDER == FOLDER { 2 } else { 1 };
        // inode, mode, uid, gid, links, mtime, size, device (4 numbers), length of the name with its 0, checksum
        let numbers = [self.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        let mut header = String::from("070701");
        for number in numbers {
            header.push_str(&format!("{number:08x}"));
        }
        header.push_str(name);
        header.push('\0');
        let padding = [0; 3];
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(&padding[..header.len().next_multiple_of(4) - header.len()])?;
        self.out.write_all(data)?;
        self.out.write_all(&padding[..data.len().next_multiple_of(4) - data.len()])
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_cpio_of_debian_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = Archive::new(Vec::new());
        archive.folder("bin").unwrap();
        archive.file("bin/a", true, b"hello").unwrap();
        archive.link("init", "bin/a").unwrap();
        let bytes = archive.finish().unwrap();
        let mut child = Command::new("cpio")
            .args(["--extract", "--quiet", "--make-directories"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(fs::read_to_string(dir.path().join("init")).unwrap(), "hello");
        assert_eq!(fs::metadata(dir.path().join("bin/a")).unwrap().permissions().mode() & 0o777, 0o755);
        // Packed again from the folder: the same archive.
        let mut again = Archive::new(Vec::new());
        again.tree(dir.path()).unwrap();
        assert_eq!(again.finish().unwrap(), bytes);
    }
}
