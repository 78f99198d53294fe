//! The journal: which chunks of which image this disk has confirmed, so that a power cut costs what was in flight and not
//! the image.
//!
//! Two slots at the end of the disk are written in turn, each after the disk has confirmed all that its record says and
//! the record before it. A write that is torn therefore hurts the newer record only, which its checksum shows, and the
//! older one still holds.
//!
//! # A slot, byte by byte
//!
//! | offset | bytes | what (integers little endian) |
//! |---|---|---|
//! | 0 | 8 | `RKLJRNL1` |
//! | 8 | 8 | generation: of two valid records the higher one counts |
//! | 16 | 16 | id of the machine |
//! | 32 | 32 | digest of the image's manifest |
//! | 64 | 4 | number of chunks that the manifest lists |
//! | 68 | 28 | zero |
//! | 96 | 32 | BLAKE3 of the whole record, with zeros here |
//! | 128 | n | a bit for each listed chunk, in their order, lowest bit first: the disk has it |
//! | 128 + n | … | zeros up to a whole 4096 |
//!
//! A record without a single bit says something too: the disk was cleared for this image. The first chunk never has its
//! bit set, since it comes last of all. The journal is a hint and nothing is built on it alone: what it lists is read
//! back and compared before it counts.

use std::ops::Range;
use std::sync::Arc;

use crate::agent::block::{ALIGN, Buffer, Device};
use crate::error::{Error, Result};
use crate::machine::{Digest, MachineId};

const MAGIC: &[u8; 8] = b"RKLJRNL1";
const GENERATION: Range<usize> = 8..16;
const MACHINE: Range<usize> = 16..32;
const IMAGE: Range<usize> = 32..64;
const CHUNKS: Range<usize> = 64..68;
const CHECKSUM: Range<usize> = 96..128;
const BITS: usize = 128;

/// What a record is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    pub machine: MachineId,
    pub image: Digest,
    /// Listed in the manifest.
    pub chunks: u32,
}

pub struct Journal {
    device: Arc<Device>,
    place: Range<u64>,
    generation: u64,
    record: Buffer,
}

impl Journal {
    /// With nothing listed. `place` is not written to before [`Journal::restart`].
    pub fn new(device: &Arc<Device>, place: Range<u64>, binding: &Binding) -> Result<Self> {
        let journal = Self { device: Arc::clone(device), place, generation: 0, record: blank(binding) };
        if journal.slot_len() < journal.record.len() as u64 {
            let what = format!("an image of {} chunks is too large for the journal", binding.chunks);
            return Err(Error::refused("image.chunk-size", what).hint("build it with larger chunks"));
        }
        Ok(journal)
    }

    /// The newest record in `place` that belongs to this machine and image. A slot that cannot be read counts as none.
    pub fn find(device: &Arc<Device>, place: Range<u64>, binding: &Binding) -> Result<Option<Self>> {
        let mut newest = Self::new(device, place, binding)?;
        for slot in 0..2 {
            let mut record = Buffer::new(newest.record.len());
            if device.read_at(&mut record, newest.place.start + slot * newest.slot_len()).is_err() {
                continue;
            }
            if let Some(generation) = valid(&record, binding).filter(|g| *g > newest.generation) {
                (newest.generation, newest.record) = (generation, record);
            }
        }
        Ok(Some(newest).filter(|j| j.generation > 0))
    }

    /// Positions in the manifest's list.
    pub fn listed(&self) -> impl Iterator<Item = usize> + '_ {
        let bits = self.record.get(BITS..).unwrap_or_default();
        let byte = |(at, byte): (usize, &u8)| {
            let byte = *byte;
            (0..8).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| at * 8 + bit)
        };
        bits.iter().enumerate().flat_map(byte)
    }

    /// Exactly these from now on.
    pub fn restart(&mut self, positions: impl IntoIterator<Item = usize>) -> Result<()> {
        if let Some(bits) = self.record.get_mut(BITS..) {
            bits.fill(0);
        }
        self.confirm(positions)
    }

    /// Has the disk confirm everything that was written to it, and these among it, and then says so.
    pub fn confirm(&mut self, positions: impl IntoIterator<Item = usize>) -> Result<()> {
        self.device.sync()?;
        for position in positions {
            if let Some(byte) = self.record.get_mut(BITS + position / 8) {
                *byte |= 1 << (position % 8);
            }
        }
        self.generation += 1;
        seal(&mut self.record, self.generation);
        self.device.write_at(&self.record, self.place.start + self.generation % 2 * self.slot_len())
    }

    /// Nothing of it is left on the disk.
    pub fn remove(&mut self) -> Result<()> {
        self.device.zero(self.place.start, self.place.end - self.place.start)?;
        self.device.sync()
    }

    fn slot_len(&self) -> u64 {
        let half = (self.place.end - self.place.start) / 2;
        half - half % ALIGN as u64
    }
}

fn blank(binding: &Binding) -> Buffer {
    let len = BITS + binding.chunks.div_ceil(8) as usize;
    let mut record = Buffer::new(len.next_multiple_of(ALIGN));
    record[..MAGIC.len()].copy_from_slice(MAGIC);
    record[MACHINE].copy_from_slice(binding.machine.0.as_bytes());
    record[IMAGE].copy_from_slice(&binding.image.0);
    record[CHUNKS].copy_from_slice(&binding.chunks.to_le_bytes());
    record
}

fn seal(record: &mut [u8], generation: u64) {
    record[GENERATION].copy_from_slice(&generation.to_le_bytes());
    record[CHECKSUM].fill(0);
    let checksum = Digest::of(record);
    record[CHECKSUM].copy_from_slice(&checksum.0);
}

/// The generation of a record that is whole and has this binding.
fn valid(record: &[u8], binding: &Binding) -> Option<u64> {
    let expected = blank(binding);
    let same = |range: Range<usize>| record.get(range.clone()).is_some_and(|there| *there == expected[range]);
    if !(same(0..MAGIC.len()) && same(MACHINE) && same(IMAGE) && same(CHUNKS)) {
        return None;
    }
    let generation = u64::from_le_bytes(record.get(GENERATION)?.try_into().ok()?);
    let mut again = Buffer::new(record.len());
    again.copy_from_slice(record);
    seal(&mut again, generation);
    // One below the highest, so that counting on cannot overflow.
    (again[CHECKSUM] == record[CHECKSUM] && generation < u64::MAX).then_some(generation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding() -> Binding {
        Binding { machine: MachineId::generate(), image: Digest::of(b"image"), chunks: 60_000 }
    }

    fn record(binding: &Binding, generation: u64) -> Buffer {
        let mut record = blank(binding);
        record[BITS + 1] = 0b101;
        record[BITS + 5000] = generation as u8;
        seal(&mut record, generation);
        record
    }

    #[test]
    fn any_flipped_byte_is_noticed() {
        let binding = binding();
        let mut record = record(&binding, 7);
        assert_eq!((record.len(), valid(&record, &binding)), (2 * ALIGN, Some(7)));
        for at in (0..BITS).chain((BITS..record.len()).step_by(97)) {
            record[at] ^= 0x10;
            assert_eq!(valid(&record, &binding), None, "byte {at}");
            record[at] ^= 0x10;
        }
        assert_eq!(valid(&record[..BITS], &binding), None);
        assert_eq!(valid(&[], &binding), None);
    }

    #[test]
    fn a_record_that_was_torn_anywhere_is_none() {
        let binding = binding();
        let (old, new) = (record(&binding, 5), record(&binding, 7));
        for sectors in 1..=5000 / 512 {
            let (mut begun, mut ended) = (old.to_vec(), new.to_vec());
            begun[..sectors * 512].copy_from_slice(&new[..sectors * 512]);
            ended[..sectors * 512].copy_from_slice(&old[..sectors * 512]);
            assert_eq!((valid(&begun, &binding), valid(&ended, &binding)), (None, None), "{sectors} sectors");
        }
        assert_eq!(valid(&vec![0; ALIGN], &binding), None);
    }

    #[test]
    fn another_machine_image_or_count_is_not_ours() {
        let own = binding();
        let one = record(&own, 1);
        assert_eq!(valid(&one, &Binding { machine: MachineId::generate(), ..own }), None);
        assert_eq!(valid(&one, &Binding { image: Digest::of(b"another"), ..own }), None);
        assert_eq!(valid(&one, &Binding { chunks: 60_001, ..own }), None);
        assert_eq!(valid(&record(&own, u64::MAX), &own), None);
    }
}
