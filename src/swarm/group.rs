//! Groups: the pieces of a frame that can be verified one by one as they arrive.
//!
//! A frame of about 1 MiB that each of 32 machines in a row stores before it passes it on costs 32 times its own time. The
//! signed manifest has only the frame's BLAKE3 digest, but BLAKE3 is a tree (its paper, section 2.1): the chaining values of
//! aligned groups of [`GROUP`] bytes merge to exactly that digest. So a frame travels behind the list of its groups'
//! chaining values. Who receives it checks once that they merge to the signed digest, then each group on arrival, and may
//! hand it on at once. The list is 0.05 % of the frame.
//!
//! A frame that is one group has no list: its digest is the frame's own.

use std::ops::Range;

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use bytes::Bytes;

use crate::machine::Digest;

/// Bytes of a group: a power of two and at least BLAKE3's own chunk of 1 KiB, or the chaining values would not be those of
/// subtrees. What a hop adds to the time of the last machine is the time of one group on its link; smaller groups cost more
/// processor time for each byte.
pub const GROUP: usize = 64 << 10;
/// Bytes of one chaining value.
pub const VALUE: usize = 32;

/// Groups of a frame of `len` bytes.
pub fn count(len: u32) -> u16 {
    // A frame has at most 64 MiB and some bytes (`manifest::CHUNK_SIZES`): 1,025 groups.
    u16::try_from((len as usize).div_ceil(GROUP)).unwrap_or(u16::MAX)
}

/// Where a group lies in its frame; `None` beyond the end.
pub fn range(len: u32, group: u16) -> Option<Range<usize>> {
    let start = usize::from(group) * GROUP;
    (start < len as usize).then(|| start..(start + GROUP).min(len as usize))
}

/// Bytes of the list that goes before a frame of `len` bytes.
pub fn list_len(len: u32) -> usize {
    match count(len) {
        0 | 1 => 0,
        n => usize::from(n) * VALUE,
    }
}

/// The chaining values of a frame's groups, known to merge to the digest that was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Values {
    list: Bytes,
    digest: Digest,
}

impl Values {
    /// Of a frame at hand; `None` if it is not the one with this digest.
    pub fn of(frame: &[u8], digest: Digest) -> Option<Self> {
        let len = u32::try_from(frame.len()).ok()?;
        let groups = match list_len(len) {
            0 => return (Digest::of(frame) == digest).then(|| Self { list: Bytes::new(), digest }),
            _ => frame.chunks(GROUP).zip(0..),
        };
        let list: Vec<u8> = groups.flat_map(|(bytes, group)| chaining_value(group, bytes)).collect();
        Self::signed(list.into(), len, digest)
    }

    /// A list as it came, if it merges to the digest.
    pub fn signed(list: Bytes, len: u32, digest: Digest) -> Option<Self> {
        if list.len() != list_len(len) || len == 0 {
            return None;
        }
        if list.is_empty() {
            return Some(Self { list, digest });
        }
        let (left, right) = halves(&list, len as usize)?;
        let root: [u8; VALUE] = merge_subtrees_root(&left, &right, Mode::Hash).into();
        (Digest(root) == digest).then_some(Self { list, digest })
    }

    /// Whether these bytes are that group of the frame. Their length follows from the manifest and is not looked at.
    pub fn has(&self, group: u16, bytes: &[u8]) -> bool {
        if bytes.is_empty() {
            return false;
        }
        if self.list.is_empty() {
            return group == 0 && Digest::of(bytes) == self.digest;
        }
        let at = usize::from(group) * VALUE;
        self.list.get(at..at + VALUE).is_some_and(|value| value == chaining_value(group, bytes))
    }

    pub fn list(&self) -> &Bytes {
        &self.list
    }
}

fn chaining_value(group: u16, bytes: &[u8]) -> ChainingValue {
    let offset = u64::from(group) * GROUP as u64;
    Hasher::new().set_input_offset(offset).update(bytes.get(..GROUP).unwrap_or(bytes)).finalize_non_root()
}

/// The two subtrees under a node that covers `len` bytes, more than one group.
fn halves(list: &[u8], len: usize) -> Option<(ChainingValue, ChainingValue)> {
    let left = usize::try_from(left_subtree_len(len as u64)).ok()?;
    let (a, b) = list.split_at_checked(left / GROUP * VALUE)?;
    Some((subtree(a, left)?, subtree(b, len.checked_sub(left)?)?))
}

/// Depth: the binary logarithm of the number of groups.
fn subtree(list: &[u8], len: usize) -> Option<ChainingValue> {
    if len <= GROUP {
        return list.try_into().ok();
    }
    let (left, right) = halves(list, len)?;
    Some(merge_subtrees_non_root(&left, &right, Mode::Hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    #[test]
    fn the_values_of_groups_merge_to_the_digest_of_every_length() {
        let edges = [1, 2, 3, 5, 8, 13, 16, 17].map(|n| n * GROUP);
        let lens = edges.iter().flat_map(|n| [n - GROUP + 1, n - 1025, n - 1, *n, n + 1, n + 1023, n + 1024]);
        for len in lens {
            let (frame, short) = (frame(len), len as u32);
            let digest = Digest::of(&frame);
            let made = Values::of(&frame, digest).unwrap_or_else(|| panic!("{len}"));
            assert_eq!(Values::signed(made.list().clone(), short, digest), Some(made.clone()));
            for group in 0..count(short) {
                assert!(made.has(group, &frame[range(short, group).unwrap()]), "{len}: group {group}");
            }
            assert_eq!(range(short, count(short)), None);
            assert_eq!(made.list().len(), list_len(short));
        }
    }

    #[test]
    fn no_other_list_and_no_other_bytes_are_taken() {
        let frame = frame(5 * GROUP + 100);
        let (digest, len) = (Digest::of(&frame), frame.len() as u32);
        let values = Values::of(&frame, digest).unwrap();
        for bit in [0, 7, 32 * 8, values.list().len() * 8 - 1] {
            let mut list = values.list().to_vec();
            list[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Values::signed(list.into(), len, digest), None);
        }
        // Shorter, longer, of another length, of another frame.
        assert_eq!(Values::signed(values.list().slice(32..), len, digest), None);
        assert_eq!(Values::signed([&values.list()[..], &[0; 32]].concat().into(), len, digest), None);
        assert_eq!(Values::signed(values.list().clone(), len - GROUP as u32, digest), None);
        assert_eq!(Values::signed(Bytes::new(), 0, digest), None);
        assert_eq!(Values::of(&frame[1..], digest), None);
        // A list that is right for 5.5 groups is right for 5.6 groups too, but then no last group fits it.
        let mut group = frame[range(len, 2).unwrap()].to_vec();
        assert!(values.has(2, &group) && !values.has(1, &group) && !values.has(3, &group) && !values.has(900, &group));
        group[GROUP - 1] ^= 1;
        assert!(!values.has(2, &group) && !values.has(2, &[]) && !values.has(5, &frame));
    }
}
