//! An ext4 file system in a file, as `mke2fs -d` leaves it: who owns which blocks, and the same content with the blocks
//! of files elsewhere.
//!
//! `mke2fs` fills a file system from its first free block on, so one file that grows by a block moves all that come
//! after it. [`super::layout`] says where each file shall lie instead; this copies the file system accordingly, block by
//! block, and sets right what speaks of block numbers: extents, block counts, bitmaps, group descriptors, checksums.
//! Inodes, names, attributes and the journal stay as they are. `e2fsck -fn` agrees with the result, or there is none.
//!
//! Offsets are those of `Documentation/filesystems/ext4` of Linux (super block, group descriptors, inodes, extents,
//! directory entries). Only what this project's own `mke2fs` call makes is read: any other feature is an error.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::chunk::is_zero;

pub const BLOCK: u64 = 4096;
const INODE: usize = 256;
const DESCRIPTOR: usize = 64;

const ROOT_INODE: u32 = 2;
/// Below are the resize inode, the journal and other inodes without names; from here on, and at 2, are files.
const FIRST_INODE: u32 = 11;
/// `EXT4_EXTENTS_FL`
const EXTENTS: u32 = 0x8_0000;
const EXTENT_MAGIC: u16 = 0xF30A;
/// Extents in an inode, in a block of their own, and blocks in an extent.
const IN_INODE: usize = 4;
const IN_BLOCK: usize = 340;
const EXTENT_MAX: u64 = 32768;
/// Group flags: the inode table, the block bitmap was never written.
const INODE_UNINIT: u16 = 1;
const BLOCK_UNINIT: u16 = 2;
/// filetype, extents, 64bit, flex_bg; has_journal, ext_attr, resize_inode, dir_index; metadata_csum and plain ones.
const INCOMPAT: u32 = 0x2 | 0x40 | 0x80 | 0x200;
const COMPAT: u32 = 0x4 | 0x8 | 0x10 | 0x20;
const RO_COMPAT: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400;

/// Blocks in a row: `len` of the file, from `logical` on, at `start` of the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub logical: u64,
    pub start: u64,
    pub len: u64,
}

/// A file, directory or long symbolic link with blocks of its own.
#[derive(Debug, Clone)]
pub struct Node {
    inode: u32,
    /// One of its names, from the root of the file system, without the slash in front.
    pub path: PathBuf,
    pub regular: bool,
    pub runs: Vec<Run>,
    /// Blocks that hold extents.
    index: Vec<u64>,
}

impl Node {
    pub fn blocks(&self) -> u64 {
        self.runs.iter().map(|run| run.len).sum()
    }
}

/// A file system that can be read.
pub struct Ext4<'a> {
    file: &'a File,
    blocks: u64,
    blocks_per_group: u64,
    inodes_per_group: u32,
    reserved_descriptors: u64,
    seed: u32,
    superblock: Vec<u8>,
    descriptors: Vec<u8>,
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the new file system is not what was asked for: {why}"))
}

fn get<const N: usize>(bytes: &[u8], at: usize) -> io::Result<[u8; N]> {
    let part = bytes.get(at..at + N).and_then(|part| part.try_into().ok());
    part.ok_or_else(|| bad("a structure is cut off"))
}

fn u16_at(bytes: &[u8], at: usize) -> io::Result<u16> {
    get(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> io::Result<u32> {
    get(bytes, at).map(u32::from_le_bytes)
}

/// A number whose halves lie apart.
fn split_at(bytes: &[u8], low: usize, high: usize) -> io::Result<u64> {
    Ok(u64::from(u32_at(bytes, low)?) | u64::from(u32_at(bytes, high)?) << 32)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// The lower half goes to one place, the upper to another.
fn put_halves(bytes: &mut [u8], low: usize, high: usize, value: u32) {
    put(bytes, low, &(value as u16).to_le_bytes());
    put(bytes, high, &((value >> 16) as u16).to_le_bytes());
}

impl<'a> Ext4<'a> {
    pub fn open(file: &'a File) -> io::Result<Self> {
        let mut superblock = vec![0; 1024];
        file.read_exact_at(&mut superblock, 1024)?;
        let s = &superblock;
        if u16_at(s, 0x38)? != 0xEF53 || u32_at(s, 0x18)? != 2 || u16_at(s, 0x58)? as usize != INODE {
            return Err(bad("no ext4 with blocks of 4096 and inodes of 256 bytes"));
        }
        let odd = (u32_at(s, 0x5C)? & !COMPAT) | (u32_at(s, 0x60)? ^ INCOMPAT) | (u32_at(s, 0x64)? & !RO_COMPAT);
        if odd != 0 || u32_at(s, 0x64)? & 0x400 == 0 || u16_at(s, 0xFE)? as usize != DESCRIPTOR {
            return Err(bad("it has other features"));
        }
        let blocks = split_at(s, 0x4, 0x150)?;
        let blocks_per_group = u64::from(u32_at(s, 0x20)?);
        if blocks_per_group != BLOCK * 8 || blocks == 0 {
            return Err(bad("its groups have an odd size"));
        }
        let mut descriptors = vec![0; blocks.div_ceil(blocks_per_group) as usize * DESCRIPTOR];
        file.read_exact_at(&mut descriptors, BLOCK)?;
        Ok(Self {
            file,
            blocks,
            blocks_per_group,
            inodes_per_group: u32_at(s, 0x28)?,
            reserved_descriptors: u64::from(u16_at(s, 0xCE)?),
            seed: crc32c(!0, &get::<16>(s, 0x68)?),
            descriptors,
            superblock,
        })
    }

    fn groups(&self) -> usize {
        self.descriptors.len() / DESCRIPTOR
    }

    fn descriptor(&self, group: usize) -> &[u8] {
        &self.descriptors[group * DESCRIPTOR..(group + 1) * DESCRIPTOR]
    }

    fn block(&self, number: u64) -> io::Result<Vec<u8>> {
        let mut block = vec![0; BLOCK as usize];
        self.file.read_exact_at(&mut block, number * BLOCK)?;
        Ok(block)
    }

    /// Where an inode is, in bytes.
    fn inode_at(&self, inode: u32) -> io::Result<u64> {
        let index = inode.checked_sub(1).ok_or_else(|| bad("there is no inode 0"))?;
        let group = (index / self.inodes_per_group) as usize;
        if group >= self.groups() {
            return Err(bad("an inode lies beyond the last group"));
        }
        let table = split_at(self.descriptor(group), 0x8, 0x28)?;
        Ok(table * BLOCK + u64::from(index % self.inodes_per_group) * INODE as u64)
    }

    fn inode(&self, inode: u32) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; INODE];
        self.file.read_exact_at(&mut bytes, self.inode_at(inode)?)?;
        Ok(bytes)
    }

    /// All that has a name and blocks, by inode number.
    pub fn nodes(&self) -> io::Result<Vec<Node>> {
        let mut nodes = BTreeMap::new();
        let mut folders = vec![(ROOT_INODE, PathBuf::new())];
        self.add(&mut nodes, ROOT_INODE, PathBuf::new())?;
        while let Some((folder, path)) = folders.pop() {
            let runs = nodes.get(&folder).map_or(Vec::new(), |node: &Node| node.runs.clone());
            for (inode, name, is_folder) in self.names(&runs)? {
                let path = path.join(Path::new(std::ffi::OsStr::from_bytes(&name)));
                if nodes.contains_key(&inode) {
                    continue;
                }
                self.add(&mut nodes, inode, path.clone())?;
                if is_folder {
                    folders.push((inode, path));
                }
            }
        }
        Ok(nodes.into_values().filter(|node| !node.runs.is_empty()).collect())
    }

    fn add(&self, nodes: &mut BTreeMap<u32, Node>, inode: u32, path: PathBuf) -> io::Result<()> {
        let bytes = self.inode(inode)?;
        let regular = u16_at(&bytes, 0)? & 0xF000 == 0x8000;
        let mut node = Node { inode, path, regular, runs: Vec::new(), index: Vec::new() };
        if u32_at(&bytes, 0x20)? & EXTENTS != 0 {
            self.extents(&bytes[0x28..0x28 + 60], &mut node, 5)?;
        }
        nodes.insert(inode, node);
        Ok(())
    }

    /// Entries of a directory: inode, name, is it a directory.
    fn names(&self, runs: &[Run]) -> io::Result<Vec<(u32, Vec<u8>, bool)>> {
        let mut names = Vec::new();
        for number in runs.iter().flat_map(|run| run.start..run.start + run.len) {
            let block = self.block(number)?;
            let mut at = 0;
            while at + 8 <= block.len() {
                let (inode, length) = (u32_at(&block, at)?, u16_at(&block, at + 4)? as usize);
                let (name_len, kind) = (block[at + 6] as usize, block[at + 7]);
                let name = block.get(at + 8..at + 8 + name_len).ok_or_else(|| bad("a name is cut off"))?;
                if length < 8 {
                    return Err(bad("a directory entry has no length"));
                }
                // The checksum at the end of the block is an entry without inode.
                if inode != 0 && (inode >= FIRST_INODE || inode == ROOT_INODE) && name != b"." && name != b".." {
                    names.push((inode, name.to_vec(), kind == 2));
                }
                at += length;
            }
        }
        Ok(names)
    }

    /// A node of the extent tree: header of twelve bytes, then entries of twelve.
    fn extents(&self, tree: &[u8], node: &mut Node, deepest: u16) -> io::Result<()> {
        let (magic, count, depth) = (u16_at(tree, 0)?, u16_at(tree, 2)?, u16_at(tree, 6)?);
        if magic != EXTENT_MAGIC || depth > deepest {
            return Err(bad("an extent tree is damaged"));
        }
        for entry in 0..usize::from(count) {
            let at = 12 + entry * 12;
            if depth > 0 {
                let block = u64::from(u32_at(tree, at + 4)?) | u64::from(u16_at(tree, at + 8)?) << 32;
                node.index.push(block);
                self.extents(&self.block(block)?, node, depth - 1)?;
                continue;
            }
            let len = u64::from(u16_at(tree, at + 4)?);
            let start = u64::from(u32_at(tree, at + 8)?) | u64::from(u16_at(tree, at + 6)?) << 32;
            if len > EXTENT_MAX || start + len > self.blocks {
                return Err(bad("an extent lies outside"));
            }
            node.runs.push(Run { logical: u64::from(u32_at(tree, at)?), start, len });
        }
        Ok(())
    }

    /// Which blocks are used by something that is none of `nodes`.
    pub fn fixed(&self, nodes: &[Node]) -> io::Result<Vec<bool>> {
        let mut used = vec![false; self.blocks as usize];
        for group in 0..self.groups() {
            let first = group as u64 * self.blocks_per_group;
            let end = (first + self.blocks_per_group).min(self.blocks);
            let descriptor = self.descriptor(group);
            if u16_at(descriptor, 0x12)? & BLOCK_UNINIT != 0 {
                // Nothing is in it but, in some groups, a copy of the super block and of the descriptors.
                let copy = if has_copy(group) { 1 + self.descriptor_blocks() + self.reserved_descriptors } else { 0 };
                used[first as usize..(first + copy).min(end) as usize].fill(true);
                continue;
            }
            let bitmap = self.block(split_at(descriptor, 0x0, 0x20)?)?;
            for block in first..end {
                let bit = (block - first) as usize;
                used[block as usize] = bitmap[bit / 8] & 1 << (bit % 8) != 0;
            }
        }
        for node in nodes {
            let data = node.runs.iter().flat_map(|run| run.start..run.start + run.len);
            for block in data.chain(node.index.iter().copied()) {
                match used.get_mut(block as usize) {
                    Some(used) if *used => *used = false,
                    _ => return Err(bad("two files share a block, or have one that is free")),
                }
            }
        }
        Ok(used)
    }

    fn descriptor_blocks(&self) -> u64 {
        (self.descriptors.len() as u64).div_ceil(BLOCK)
    }

    /// Copies the file system to `out` at `offset`, with each node in the blocks beside it, as many as it has.
    /// `index` are free blocks for those that need an extent block. `fixed` is what [`Ext4::fixed`] said.
    pub fn copy(
        mut self,
        out: &File,
        offset: u64,
        fixed: &[bool],
        placed: &[(Node, Vec<Run>)],
        index: &mut dyn Iterator<Item = u64>,
        epoch: u64,
    ) -> io::Result<()> {
        let mut used = fixed.to_vec();
        let write = |block: u64, bytes: &[u8]| match is_zero(bytes) {
            true => Ok(()),
            false => out.write_all_at(bytes, offset + block * BLOCK),
        };
        for (block, _) in fixed.iter().enumerate().filter(|(_, fixed)| **fixed) {
            write(block as u64, &self.block(block as u64)?)?;
        }
        let mut inodes = self.named_inodes()?;
        for (node, runs) in placed {
            let from = node.runs.iter().flat_map(|run| run.start..run.start + run.len);
            let to = runs.iter().flat_map(|run| run.start..run.start + run.len);
            for (from, to) in from.zip(to) {
                write(to, &self.block(from)?)?;
                used[to as usize] = true;
            }
            let inode = inodes.get_mut(&node.inode).ok_or_else(|| bad("a name leads to a free inode"))?;
            if let Some((number, block)) = self.set_extents(inode, node, runs, index)? {
                write(number, &block)?;
                used[number as usize] = true;
            }
        }
        // After the tables, which came with the fixed blocks.
        for (number, mut inode) in inodes {
            self.seal(&mut inode, number, epoch)?;
            out.write_all_at(&inode, offset + self.inode_at(number)?)?;
        }
        self.write_groups(out, offset, &used)
    }

    /// Writes the extents into the inode, or into a block of which the inode has the number; that block, if so.
    fn set_extents(
        &self,
        inode: &mut [u8],
        node: &Node,
        runs: &[Run],
        index: &mut dyn Iterator<Item = u64>,
    ) -> io::Result<Option<(u64, Vec<u8>)>> {
        let runs = joined(runs);
        let number = if runs.len() > IN_INODE { index.next() } else { None };
        if runs.len() > IN_BLOCK || (runs.len() > IN_INODE && number.is_none()) {
            return Err(bad("a file is in too many pieces"));
        }
        let sectors = split_at(inode, 0x1C, 0x74)? & 0xFFFF_FFFF_FFFF;
        let sectors = sectors + u64::from(number.is_some()) * 8 - node.index.len() as u64 * 8;
        put(inode, 0x1C, &(sectors as u32).to_le_bytes());
        put(inode, 0x74, &((sectors >> 32) as u16).to_le_bytes());

        let seed = self.inode_seed(inode, node.inode)?;
        let leaf = number.map(|number| {
            let mut block = vec![0; BLOCK as usize];
            leaves(&mut block, IN_BLOCK, &runs);
            let tail = 12 + IN_BLOCK * 12;
            let sum = crc32c(seed, &block[..tail]);
            put(&mut block, tail, &sum.to_le_bytes());
            (number, block)
        });
        let root = &mut inode[0x28..0x28 + 60];
        root.fill(0);
        match number {
            None => leaves(root, IN_INODE, &runs),
            Some(number) => {
                header(root, 1, IN_INODE, 1);
                put(root, 12, &(runs[0].logical as u32).to_le_bytes());
                put(root, 16, &(number as u32).to_le_bytes());
                put(root, 20, &((number >> 32) as u16).to_le_bytes());
            }
        }
        Ok(leaf)
    }

    /// The root directory and all others that are in use.
    fn named_inodes(&self) -> io::Result<BTreeMap<u32, Vec<u8>>> {
        let mut inodes = BTreeMap::new();
        for group in 0..self.groups() {
            let descriptor = self.descriptor(group);
            if u16_at(descriptor, 0x12)? & INODE_UNINIT != 0 {
                continue;
            }
            let unused = u32::from(u16_at(descriptor, 0x1C)?) | u32::from(u16_at(descriptor, 0x32)?) << 16;
            let first = group as u32 * self.inodes_per_group + 1;
            for number in first..first + self.inodes_per_group.saturating_sub(unused) {
                let inode = self.inode(number)?;
                if (number >= FIRST_INODE || number == ROOT_INODE) && u16_at(&inode, 0x1A)? != 0 {
                    inodes.insert(number, inode);
                }
            }
        }
        Ok(inodes)
    }

    /// Times that tell when the image was built, and not how old the content is, become `epoch`; then the checksum.
    fn seal(&self, inode: &mut [u8], number: u32, epoch: u64) -> io::Result<()> {
        // Access, change, creation: seconds, and two bits more of them in the field for the fraction.
        for (seconds, more) in [(0x8, 0x8C), (0xC, 0x84), (0x90, 0x94)] {
            put(inode, seconds, &(epoch as u32).to_le_bytes());
            put(inode, more, &((epoch >> 32) as u32 & 3).to_le_bytes());
        }
        put_halves(inode, 0x7C, 0x82, 0);
        let sum = crc32c(self.inode_seed(inode, number)?, inode);
        put_halves(inode, 0x7C, 0x82, sum);
        Ok(())
    }

    fn inode_seed(&self, inode: &[u8], number: u32) -> io::Result<u32> {
        Ok(crc32c(crc32c(self.seed, &number.to_le_bytes()), &get::<4>(inode, 0x64)?))
    }

    /// Bitmaps, descriptors and super block for what is used now. The copies of the last two, which only a repair looks
    /// at, stay.
    fn write_groups(&mut self, out: &File, offset: u64, used: &[bool]) -> io::Result<()> {
        let mut all_free = 0;
        for group in 0..self.groups() {
            let first = group as u64 * self.blocks_per_group;
            let end = (first + self.blocks_per_group).min(self.blocks);
            let mut bitmap = vec![0u8; BLOCK as usize];
            for bit in 0..self.blocks_per_group as usize {
                // What lies beyond the end counts as used.
                let taken = used.get(first as usize + bit).copied().unwrap_or(true);
                bitmap[bit / 8] |= u8::from(taken) << (bit % 8);
            }
            let free = used[first as usize..end as usize].iter().filter(|used| !**used).count() as u32;
            all_free += u64::from(free);
            let sum = crc32c(self.seed, &bitmap);
            let descriptor = &mut self.descriptors[group * DESCRIPTOR..(group + 1) * DESCRIPTOR];
            put_halves(descriptor, 0xC, 0x2C, free);
            put_halves(descriptor, 0x18, 0x38, sum);
            let flags = u16_at(descriptor, 0x12)? & !BLOCK_UNINIT;
            put(descriptor, 0x12, &flags.to_le_bytes());
            put(descriptor, 0x1E, &[0, 0]);
            let sum = crc32c(crc32c(self.seed, &(group as u32).to_le_bytes()), descriptor) as u16;
            put(descriptor, 0x1E, &sum.to_le_bytes());
            out.write_all_at(&bitmap, offset + split_at(descriptor, 0x0, 0x20)? * BLOCK)?;
        }
        put(&mut self.superblock, 0xC, &(all_free as u32).to_le_bytes());
        put(&mut self.superblock, 0x158, &((all_free >> 32) as u32).to_le_bytes());
        let sum = crc32c(!0, &self.superblock[..0x3FC]);
        put(&mut self.superblock, 0x3FC, &sum.to_le_bytes());
        out.write_all_at(&self.descriptors, offset + BLOCK)?;
        out.write_all_at(&self.superblock, offset + 1024)
    }
}

/// `sparse_super`: copies are in groups 0, 1 and the powers of 3, 5 and 7.
fn has_copy(group: usize) -> bool {
    let power = |base: usize| {
        std::iter::successors(Some(base), |n| n.checked_mul(base)).take_while(|n| *n <= group).any(|n| n == group)
    };
    group <= 1 || power(3) || power(5) || power(7)
}

/// Neighbours in both file and file system become one, cut at what an extent can hold.
fn joined(runs: &[Run]) -> Vec<Run> {
    let mut joined: Vec<Run> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last)
                if last.logical + last.len == run.logical
                    && last.start + last.len == run.start
                    && last.len + run.len <= EXTENT_MAX =>
            {
                last.len += run.len;
            }
            _ => joined.push(*run),
        }
    }
    joined
}

fn header(tree: &mut [u8], count: usize, max: usize, depth: u16) {
    put(tree, 0, &EXTENT_MAGIC.to_le_bytes());
    put(tree, 2, &(count as u16).to_le_bytes());
    put(tree, 4, &(max as u16).to_le_bytes());
    put(tree, 6, &depth.to_le_bytes());
}

fn leaves(tree: &mut [u8], max: usize, runs: &[Run]) {
    header(tree, runs.len(), max, 0);
    for (i, run) in runs.iter().enumerate() {
        let at = 12 + i * 12;
        put(tree, at, &(run.logical as u32).to_le_bytes());
        put(tree, at + 4, &(run.len as u16).to_le_bytes());
        put(tree, at + 6, &((run.start >> 32) as u16).to_le_bytes());
        put(tree, at + 8, &(run.start as u32).to_le_bytes());
    }
}

/// CRC-32C (Castagnoli), reflected, without the final inversion, as ext4 chains it.
fn crc32c(state: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let (mut value, mut bit) = (i as u32, 0);
            while bit < 8 {
                value = value >> 1 ^ if value & 1 == 1 { 0x82F6_3B78 } else { 0 };
                bit += 1;
            }
            table[i] = value;
            i += 1;
        }
        table
    };
    bytes.iter().fold(state, |state, byte| TABLE[usize::from(state as u8 ^ byte)] ^ state >> 8)
}
