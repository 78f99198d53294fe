//! Where things are on the target disk, besides the image at its start.
//!
//! ```text
//! 0                disk_size            seed                 tail                      size
//! ├─ image ────────┼─ spill ────────────┼─ seed partition ───┼─ journal ··· backup GPT ─┤
//! ```
//!
//! The tail has a fixed place, so that an agent of another size finds the journal of its predecessor. Spill and journal
//! are in use only while the image is being written and served; afterwards both are free space, which the installed
//! system may take.

use std::ops::Range;

/// Partitions start at whole MiB.
pub const MIB: u64 = 1 << 20;
/// At least this much lies behind the seed partition; the journal has its first half.
const TAIL: u64 = MIB;
/// The backup of the partition table has the other half at least: twenty times what it usually takes.
pub const BACKUP_MAX: u64 = TAIL / 2;
/// What is needed besides image and seed: the tail, and the rounding of both to whole MiB.
pub const SPARE: u64 = TAIL + 2 * MIB;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Free while the machine is deployed. May be empty.
    pub spill: Range<u64>,
    pub seed: Range<u64>,
    pub journal: Range<u64>,
}

impl Layout {
    /// In bytes, for a disk of `size` with an image of `image` and a seed of `seed` bytes. `None`: they do not fit.
    pub fn new(size: u64, image: u64, seed: u64) -> Option<Self> {
        let tail = size.checked_sub(TAIL)? / MIB * MIB;
        let seed_start = tail.checked_sub(seed.checked_next_multiple_of(MIB)?)?;
        let spill_start = image.checked_next_multiple_of(MIB)?;
        (spill_start <= seed_start).then(|| Self {
            spill: spill_start..seed_start,
            seed: seed_start..tail,
            journal: tail..tail + (TAIL - BACKUP_MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps_and_what_was_promised_fits() {
        for (image, seed) in [(24 * MIB, 64 * MIB), (24 * MIB + 512, 64 * MIB + 1), (1 << 40, MIB)] {
            for extra in [0, 512, MIB - 512, 5 * MIB + 512] {
                let size = image + seed + SPARE + extra;
                let layout = Layout::new(size, image, seed).unwrap();
                assert!(layout.spill.start >= image && layout.spill.end == layout.seed.start);
                assert!(layout.seed.end - layout.seed.start >= seed && layout.seed.end == layout.journal.start);
                assert!(layout.journal.end + BACKUP_MAX <= size);
                assert_eq!(layout.seed.start % MIB, 0);
            }
        }
        assert_eq!(Layout::new(88 * MIB, 24 * MIB, 64 * MIB), None);
        assert_eq!(Layout::new(0, 24 * MIB, 64 * MIB), None);
        assert_eq!(Layout::new(u64::MAX, u64::MAX, 1), None);
    }

    #[test]
    fn the_journal_is_where_it_was_for_an_agent_of_another_size() {
        let of = |seed| Layout::new(1 << 30, 24 * MIB, seed).unwrap().journal;
        assert_eq!(of(64 * MIB), of(157 * MIB));
    }
}
