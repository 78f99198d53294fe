//! A frame into the memory that goes to the disk, without a copy in between.

use crate::error::{Error, Kind, OrFail, Result};
use crate::image::Chunk;

/// Keeps zstd's work space from frame to frame.
pub struct Unpacker(zstd::bulk::Decompressor<'static>);

impl Unpacker {
    pub fn new() -> Result<Self> {
        let unpacker = zstd::bulk::Decompressor::new();
        Ok(Self(unpacker.or_fail(Kind::Internal, "agent.zstd", || "zstd does not start")?))
    }

    /// A frame that has been verified, into the start of `target`, exactly as far as the manifest says.
    pub fn unpack(&mut self, chunk: &Chunk, frame: &[u8], target: &mut [u8]) -> Result<()> {
        let wrong = || Error::refused("image.chunk", format!("chunk {} is signed and yet no zstd frame", chunk.index));
        let target = target.get_mut(..chunk.raw_length as usize).ok_or_else(wrong)?;
        let len = self.0.decompress_to_buffer(frame, target).map_err(|e| wrong().because(e))?;
        if len == target.len() { Ok(()) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Digest;

    #[test]
    fn a_frame_must_fill_its_chunk_exactly() {
        let frame = zstd::bulk::compress(b"hello", 3).unwrap();
        let chunk = |raw_length| Chunk {
            index: 0,
            offset: 0,
            length: frame.len() as u32,
            frame: Digest::of(&frame),
            raw: Digest::of(b"hello"),
            disk_offset: 0,
            raw_length,
        };
        let mut unpacker = Unpacker::new().unwrap();
        let mut target = [0u8; 16];
        unpacker.unpack(&chunk(5), &frame, &mut target).unwrap();
        assert_eq!(&target[..6], b"hello\0");
        for length in [4, 6, 17] {
            assert_eq!(unpacker.unpack(&chunk(length), &frame, &mut target).unwrap_err().code(), "image.chunk");
        }
        assert!(unpacker.unpack(&chunk(5), b"no frame", &mut target).is_err());
    }
}
