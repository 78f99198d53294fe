//! The file system of a container, as its layers make it one after the other. Only names and attributes are held; what
//! files contain stays in the unpacked layers. Nothing is written to a real folder, so no name can lead out of one.
//!
//! What a layer takes away is said by names (OCI image-spec, layer.md, "Whiteouts"): `.wh.NAME` is that the layers beneath
//! have no NAME any more, `.wh..wh..opq` that they have nothing in that folder.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

/// The nodes of one file system. A Debian system with a desktop has 300,000.
const MAX_NODES: usize = 2_000_000;
/// Symbolic links within one path, as in Linux.
const MAX_HOPS: usize = 40;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names of this kind are aufs's own.
const META: &[u8] = b".wh..wh.";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds since 1970.
    pub mtime: u64,
    /// Extended attributes with their values.
    pub xattrs: Vec<(String, Vec<u8>)>,
    pub content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Folder,
    Fifo,
    Link(PathBuf),
    /// Bytes of an unpacked layer.
    File {
        layer: usize,
        offset: u64,
        size: u64,
    },
}

/// What an entry of a layer puts at its path.
pub enum Item {
    Node(Inode),
    /// A second name of a file that is there.
    HardLink(PathBuf),
}

#[derive(Default)]
pub struct Tree {
    /// By path within the root: parents come before what is in them, and that follows at once.
    nodes: BTreeMap<PathBuf, Node>,
    inodes: Vec<Inode>,
}

#[derive(Clone, Copy)]
struct Node {
    layer: usize,
    /// Index into `inodes`; the same for all names of one file.
    inode: usize,
}

impl Tree {
    /// One entry of layer number `layer`; those of lower layers came before.
    pub fn apply(&mut self, layer: usize, name: &Path, item: Item) -> Result<()> {
        let path = inside(name)?;
        let Some(file_name) = path.file_name() else { return Ok(()) };
        let parent = self.resolve(path.parent().unwrap_or(Path::new("")))?;
        let bytes = file_name.as_bytes();
        if bytes == OPAQUE {
            self.remove_beneath(&parent, layer);
            return Ok(());
        }
        if bytes.starts_with(META) {
            return Ok(());
        }
        if let Some(gone) = bytes.strip_prefix(WHITEOUT) {
            let gone = OsStr::from_bytes(gone);
            if gone.is_empty() || gone == "." || gone == ".." {
                return Err(forged(name, "takes away what is not a file of its folder"));
            }
            let gone = parent.join(gone);
            self.remove_beneath(&gone, layer);
            if self.nodes.get(&gone).is_some_and(|n| n.layer < layer) {
                self.nodes.remove(&gone);
            }
            return Ok(());
        }
        let path = parent.join(file_name);
        let inode = match item {
            Item::Node(inode) => {
                self.inodes.push(inode);
                self.inodes.len() - 1
            }
            Item::HardLink(target) => self.hard_link(name, &target)?,
        };
        self.put(path, Node { layer, inode });
        match self.inodes.len() > MAX_NODES || self.nodes.len() > MAX_NODES {
            true => Err(Error::refused("image.container", format!("the container has more than {MAX_NODES} files"))),
            false => Ok(()),
        }
    }

    fn hard_link(&self, name: &Path, target: &Path) -> Result<usize> {
        // Some tools write these from the root on.
        let target = inside(target.strip_prefix("/").unwrap_or(target))?;
        let parent = self.resolve(target.parent().unwrap_or(Path::new("")))?;
        let found = self.nodes.get(&parent.join(target.file_name().unwrap_or_default())).map(|n| n.inode);
        match found.filter(|&inode| !matches!(self.inodes.get(inode), Some(Inode { content: Content::Folder, .. }))) {
            Some(inode) => Ok(inode),
            None => Err(forged(name, &format!("is another name for {target:?}, which is not there"))),
        }
    }

    fn put(&mut self, path: PathBuf, node: Node) {
        if self.inodes.get(node.inode).is_some_and(|i| i.content != Content::Folder) {
            self.remove_beneath(&path, usize::MAX);
        }
        self.nodes.insert(path, node);
    }

    fn content(&self, path: &Path) -> Option<&Content> {
        self.nodes.get(path).and_then(|n| self.inodes.get(n.inode)).map(|i| &i.content)
    }

    /// What layers below `layer` have in a folder, at any depth, goes.
    fn remove_beneath(&mut self, folder: &Path, layer: usize) {
        let behind = self.nodes.range::<Path, _>((Bound::Excluded(folder), Bound::Unbounded));
        let within = behind.take_while(|(path, _)| path.starts_with(folder));
        let gone: Vec<PathBuf> = within.filter(|(_, n)| n.layer < layer).map(|(path, _)| path.clone()).collect();
        for path in gone {
            self.nodes.remove(&path);
        }
    }

    /// Where a folder really is: symbolic links on the way are followed as a process in the container would, for whom
    /// nothing is above the root.
    fn resolve(&self, folder: &Path) -> Result<PathBuf> {
        let mut ahead: VecDeque<OsString> = folder.iter().map(OsStr::to_owned).collect();
        let mut at = PathBuf::new();
        let mut hops = 0;
        while let Some(name) = ahead.pop_front() {
            match name.as_bytes() {
                b"/" => at = PathBuf::new(),
                b"." => {}
                b".." => drop(at.pop()),
                _ => match self.content(&at.join(&name)) {
                    Some(Content::Link(target)) => {
                        hops += 1;
                        if hops > MAX_HOPS {
                            return Err(forged(folder, "goes through symbolic links that lead in a circle"));
                        }
                        target.iter().rev().for_each(|part| ahead.push_front(part.to_owned()));
                    }
                    None | Some(Content::Folder) => at.push(name),
                    Some(_) => return Err(forged(folder, "goes through what is not a folder")),
                },
            }
        }
        Ok(at)
    }

    /// What is at a path, symbolic links followed; nothing where they lead nowhere.
    pub fn follow(&self, path: &Path) -> Option<&Content> {
        let mut path = path.to_owned();
        for _ in 0..MAX_HOPS {
            let parent = self.resolve(path.parent()?).ok()?;
            match self.content(&parent.join(path.file_name()?))? {
                Content::Link(target) => path = parent.join(target),
                found => return Some(found),
            }
        }
        None
    }

    /// Every name, parents first, with its file; the second and later names of a file come with the first one.
    pub fn entries(&self) -> impl Iterator<Item = (&Path, &Inode, Option<&Path>)> {
        let mut first: BTreeMap<usize, &Path> = BTreeMap::new();
        self.nodes.iter().filter_map(move |(path, node)| {
            let inode = self.inodes.get(node.inode)?;
            let before = first.get(&node.inode).copied();
            if before.is_none() {
                first.insert(node.inode, path);
            }
            Some((path.as_path(), inode, before))
        })
    }
}

/// The name of an entry without `./`.
fn inside(name: &Path) -> Result<PathBuf> {
    let mut path = PathBuf::new();
    for part in name.components() {
        match part {
            Component::Normal(part) if part.len() <= 255 => path.push(part),
            Component::Normal(_) => return Err(forged(name, "has a part of more than 255 bytes")),
            Component::CurDir => {}
            _ => return Err(forged(name, "leads out of the container")),
        }
    }
    match path.as_os_str().len() {
        0..=4095 => Ok(path),
        _ => Err(forged(name, "is longer than 4095 bytes")),
    }
}

fn forged(name: &Path, what: &str) -> Error {
    let text = name.to_string_lossy();
    let shown: String = text.chars().take(120).collect();
    Error::refused("image.container", format!("the name {shown:?} in a layer {what}"))
        .hint("the archive is damaged or forged; save the image again")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(content: Content) -> Item {
        Item::Node(Inode { mode: 0o755, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new(), content })
    }

    fn file(size: u64) -> Item {
        node(Content::File { layer: 0, offset: 0, size })
    }

    fn link(to: &str) -> Item {
        node(Content::Link(to.into()))
    }

    fn tree(entries: Vec<(usize, &str, Item)>) -> Result<Vec<String>> {
        let mut tree = Tree::default();
        for (layer, name, item) in entries {
            tree.apply(layer, Path::new(name), item)?;
        }
        Ok(tree
            .entries()
            .map(|(path, inode, before)| {
                let more = match (&inode.content, before) {
                    (_, Some(before)) => format!("={}", before.display()),
                    (Content::Folder, _) => "/".into(),
                    (Content::Fifo, _) => "|".into(),
                    (Content::Link(to), _) => format!(">{}", to.display()),
                    (Content::File { size, .. }, _) => format!(":{size}"),
                };
                format!("{}{more}", path.display())
            })
            .collect())
    }

    fn folder() -> Item {
        node(Content::Folder)
    }

    #[test]
    fn upper_layers_replace_and_take_away() {
        let entries = vec![
            (0, "./", folder()),
            (0, "./a", folder()),
            (0, "a/one", file(1)),
            (0, "a/two", file(2)),
            (0, "b", folder()),
            (0, "b/old", file(3)),
            (0, "b/deep", folder()),
            (0, "b/deep/old", file(3)),
            (0, "c", folder()),
            (0, "c/x", file(4)),
            (0, "ab", file(5)),
            (1, "a", folder()),
            (1, "a/.wh.one", file(0)),
            // What the same layer brings stays, whatever the order.
            (1, "b", folder()),
            (1, "b/new", file(6)),
            (1, "b/.wh..wh..opq", file(0)),
            (1, "c", file(7)),
            (1, ".wh..wh.plnk", folder()),
            (2, "ab", link("c")),
            (2, "d/e/f", file(8)),
            (2, "d", folder()),
        ];
        assert_eq!(tree(entries).unwrap(), ["a/", "a/two:2", "ab>c", "b/", "b/new:6", "c:7", "d/", "d/e/f:8"]);
    }

    #[test]
    fn the_second_name_of_a_file_outlives_the_first() {
        let hard = |to: &str| Item::HardLink(to.into());
        let entries = |last| {
            vec![(0, "a", file(1)), (0, "b", hard("/a")), (0, "z", hard("b")), (1, last, file(0)), (1, "n", file(2))]
        };
        assert_eq!(tree(entries("x")).unwrap(), ["a:1", "b=a", "n:2", "x:0", "z=a"]);
        assert_eq!(tree(entries(".wh.a")).unwrap(), ["b:1", "n:2", "z=b"]);
        assert_eq!(tree(vec![(0, "b", hard("a"))]).unwrap_err().code(), "image.container");
        assert_eq!(tree(vec![(0, "d", folder()), (0, "b", hard("d"))]).unwrap_err().code(), "image.container");
    }

    #[test]
    fn links_are_followed_within_the_root_only() {
        let entries = vec![
            (0, "usr", folder()),
            (0, "usr/lib", folder()),
            (0, "lib", link("usr/lib")),
            (0, "out", link("../../../etc")),
            (0, "far", link("/etc")),
            (1, "lib/new", file(1)),
            (1, "out/passwd", file(2)),
            (1, "far/shadow", file(3)),
            (1, "lib/.wh.none", file(0)),
        ];
        let expected = [
            "etc/passwd:2",
            "etc/shadow:3",
            "far>/etc",
            "lib>usr/lib",
            "out>../../../etc",
            "usr/",
            "usr/lib/",
            "usr/lib/new:1",
        ];
        assert_eq!(tree(entries).unwrap(), expected);
        for forged in [
            vec![(0, "../etc/passwd", file(1))],
            vec![(0, "/etc/passwd", file(1))],
            vec![(0, "a/../../b", file(1))],
            vec![(0, "a", link("b")), (0, "b", link("a")), (0, "a/x", file(1))],
            vec![(0, "a", file(1)), (0, "a/x", file(1))],
            vec![(0, "a/.wh...", file(1))],
            vec![(0, "a/.wh.", file(1))],
            vec![(0, "a", Item::HardLink("../../etc/shadow".into()))],
        ] {
            assert_eq!(tree(forged).unwrap_err().code(), "image.container");
        }
    }
}
