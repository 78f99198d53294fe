//! The words between a successor and the machine that it follows, byte by byte. Numbers are little endian.
//!
//! Frames go by their place in the manifest's list of chunks, from 0, which is dense where chunk numbers are not.
//!
//! # From the successor: a hello
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `RKLSWM1\n` |
//! | 8 | 32 | proof that it knows the swarm's key, see [`proof`] |
//! | 40 | 32 | digest of the image |
//! | 72 | 4 | n, the number of frames of the image |
//! | 76 | 2 | p, the number of frames that it has a part of, at most [`PARTS_MAX`] |
//! | 78 | 2 | zero |
//! | 80 | n / 8, rounded up | bit i % 8 of byte i / 8 is 1: frame i is not to be sent; bits beyond n are 0 |
//! | … | 8 p | a frame (4 bytes) and how many of its groups it has, counted from the first (4 bytes) |
//!
//! and then, at any time, the numbers of frames (4 bytes each) that are no longer wanted.
//!
//! # From the one that is followed: messages behind a head of twelve bytes
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1 | 1 alive, 2 begin, 3 group, 4 refused |
//! | 1 | 1 | alive: 1 if it will get no more frames itself; refused: the [`Refusal`]; else 0 |
//! | 2 | 2 | begin: the first group that follows; group: its number; else 0 |
//! | 4 | 4 | begin, group: the frame; alive: how many frames it holds; else 0 |
//! | 8 | 4 | alive: how many of them are still to be sent to this successor; else 0 |
//!
//! * **alive** comes once the hello is accepted, and whenever nothing else was sent for [`KEEP_ALIVE`].
//! * **begin** is followed by the list of chaining values ([`super::group`]). A frame begins at most once.
//! * **group** is followed by its bytes, as many as the manifest says. The groups of a frame come in their order; at most
//!   [`OPEN_MAX`] frames are under way at once, since one may itself still be arriving.
//! * **refused** is the last message.
//!
//! No length is ever taken from the wire: all follow from the signed manifest.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::group;
use crate::machine::{Digest, Secret};

const MAGIC: &[u8; 8] = b"RKLSWM1\n";
/// The part of a hello whose length does not depend on the image.
pub const HELLO: usize = 80;
/// Partly held frames that a hello may list.
pub const PARTS_MAX: usize = 32;
/// Frames that may be under way on one connection.
pub const OPEN_MAX: usize = 8;
/// Head of each message of the one that is followed.
pub const HEAD: usize = 12;
/// A connection is silent for no longer than this.
pub const KEEP_ALIVE: Duration = Duration::from_millis(250);

/// Not the key itself, so that nobody who listens to one image's hello can speak for another image.
pub fn proof(key: &Secret, image: &Digest) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_derive_key("rackline 2026-11-21 swarm hello");
    hasher.update(&image.0);
    hasher.update(key.expose().as_bytes());
    hasher.finalize()
}

/// A set of frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    bits: Vec<u8>,
    len: u32,
}

impl Bitmap {
    pub fn new(len: u32, all: bool) -> Self {
        let mut new = Self { bits: vec![if all { 0xff } else { 0 }; Self::bytes(len)], len };
        new.clear_tail();
        new
    }

    pub fn bytes(len: u32) -> usize {
        (len as usize).div_ceil(8)
    }

    fn clear_tail(&mut self) {
        if let (Some(last), used @ 1..) = (self.bits.last_mut(), self.len % 8) {
            *last &= (1 << used) - 1;
        }
    }

    pub fn len(&self) -> u32 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.bits.iter().all(|b| *b == 0)
    }

    pub fn count(&self) -> u32 {
        self.bits.iter().map(|b| b.count_ones()).sum()
    }

    pub fn get(&self, at: u32) -> bool {
        at < self.len && self.bits.get(at as usize / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1)
    }

    /// Beyond the end nothing happens.
    pub fn set(&mut self, at: u32, to: bool) {
        if at < self.len
            && let Some(byte) = self.bits.get_mut(at as usize / 8)
        {
            *byte = *byte & !(1 << (at % 8)) | u8::from(to) << (at % 8);
        }
    }

    pub fn ones(&self) -> impl Iterator<Item = u32> {
        (0..self.len).filter(|at| self.get(*at))
    }
}

/// The fixed part of a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    pub proof: [u8; 32],
    pub image: Digest,
    pub frames: u32,
    pub parts: u16,
}

impl Hello {
    /// `None` is no hello of ours.
    pub fn parse(bytes: &[u8; HELLO]) -> Option<Self> {
        let mut rest = &bytes[..];
        let (magic, proof, image) = (take(&mut rest)?, take(&mut rest)?, take(&mut rest)?);
        let (frames, parts) = (rest.get_u32_le(), rest.get_u16_le());
        let fine = magic == *MAGIC && usize::from(parts) <= PARTS_MAX && rest == [0; 2];
        fine.then_some(Self { proof, image: Digest(image), frames, parts })
    }

    /// Bytes that follow the fixed part.
    pub fn tail(&self) -> usize {
        Bitmap::bytes(self.frames) + usize::from(self.parts) * 8
    }

    /// What is not to be sent, and what is there in part, out of the bytes after the fixed part. A part that says more than
    /// a frame can have is left out; the caller knows the frames.
    pub fn parse_tail(&self, tail: &[u8]) -> Option<(Bitmap, Vec<(u32, u16)>)> {
        let (bits, mut parts) = tail.split_at_checked(Bitmap::bytes(self.frames))?;
        let mut skip = Bitmap { bits: bits.to_vec(), len: self.frames };
        skip.clear_tail();
        if skip.bits != bits || parts.len() != usize::from(self.parts) * 8 {
            return None;
        }
        let mut held = Vec::with_capacity(usize::from(self.parts));
        while parts.has_remaining() {
            let (frame, groups) = (parts.get_u32_le(), parts.get_u32_le());
            if let (true, Ok(groups)) = (frame < self.frames, u16::try_from(groups)) {
                held.push((frame, groups));
            }
        }
        Some((skip, held))
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

/// A whole hello.
pub fn hello(proof: &blake3::Hash, image: &Digest, skip: &Bitmap, parts: &[(u32, u16)]) -> Bytes {
    let parts = parts.get(..PARTS_MAX).unwrap_or(parts);
    let mut out = BytesMut::with_capacity(HELLO + skip.bits.len() + parts.len() * 8);
    out.put_slice(MAGIC);
    out.put_slice(proof.as_bytes());
    out.put_slice(&image.0);
    out.put_u32_le(skip.len);
    out.put_u16_le(parts.len() as u16);
    out.put_u16_le(0);
    out.put_slice(&skip.bits);
    for (frame, groups) in parts {
        out.put_u32_le(*frame);
        out.put_u32_le(u32::from(*groups));
    }
    out.freeze()
}

/// Why a successor is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No such image here, or not the key for it; which of the two is not told.
    Unknown,
    /// As many successors as it may have.
    Full,
    /// Not what the protocol allows.
    Malformed,
}

impl Refusal {
    fn code(self) -> u8 {
        match self {
            Self::Unknown => 1,
            Self::Full => 2,
            Self::Malformed => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Unknown, Self::Full, Self::Malformed].into_iter().find(|r| r.code() == code)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Alive { held: u32, pending: u32, complete: bool },
    Begin { frame: u32, first: u16, list: Bytes },
    Group { frame: u32, group: u16, bytes: Bytes },
    Refused(Refusal),
}

/// What is at the start of a buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// Taken out of the buffer.
    Message(Message),
    /// The buffer has to have so many bytes for more to be known.
    Need(usize),
}

pub fn head(tag: u8, flag: u8, group: u16, first: u32, second: u32) -> [u8; HEAD] {
    let ([g, h], [a, b, c, d], [i, j, k, l]) = (group.to_le_bytes(), first.to_le_bytes(), second.to_le_bytes());
    [tag, flag, g, h, a, b, c, d, i, j, k, l]
}

pub fn alive(held: u32, pending: u32, complete: bool) -> [u8; HEAD] {
    head(1, u8::from(complete), 0, held, pending)
}

pub fn begin(frame: u32, first: u16) -> [u8; HEAD] {
    head(2, 0, first, frame, 0)
}

pub fn group(frame: u32, group: u16) -> [u8; HEAD] {
    head(3, 0, group, frame, 0)
}

pub fn refused(why: Refusal) -> [u8; HEAD] {
    head(4, why.code(), 0, 0, 0)
}

/// The next message of the one that is followed. `length` gives the length of a frame in bytes, `None` beyond the last.
/// `Err` is what no machine of ours sends.
pub fn decode(buffer: &mut BytesMut, length: impl Fn(u32) -> Option<u32>) -> Result<Decoded, &'static str> {
    let Some(&[tag, flag, g, h, a, b, c, d, i, j, k, l]) = buffer.first_chunk::<HEAD>() else {
        return Ok(Decoded::Need(HEAD));
    };
    let number = u16::from_le_bytes([g, h]);
    let (first, second) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([i, j, k, l]));
    let frame = || length(first).ok_or("a frame that the image does not have");
    let fits = |len: u32| group::range(len, number).ok_or("a group that the frame does not have");
    let body = match (tag, flag) {
        (1, 0 | 1) if number == 0 => 0,
        (2, 0) if second == 0 => {
            let len = frame()?;
            fits(len)?;
            group::list_len(len)
        }
        (3, 0) if second == 0 => fits(frame()?)?.len(),
        (4, _) if (number, first, second) == (0, 0, 0) => 0,
        _ => return Err("a message that does not exist"),
    };
    if buffer.len() < HEAD + body {
        return Ok(Decoded::Need(HEAD + body));
    }
    buffer.advance(HEAD);
    let bytes = buffer.split_to(body).freeze();
    Ok(Decoded::Message(match tag {
        1 => Message::Alive { held: first, pending: second, complete: flag == 1 },
        2 => Message::Begin { frame: first, first: number, list: bytes },
        3 => Message::Group { frame: first, group: number, bytes },
        _ => Message::Refused(Refusal::from_code(flag).ok_or("a refusal that does not exist")?),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_says_what_it_was_given() {
        let (key, image) = (Secret::new("k"), Digest([7; 32]));
        let mut skip = Bitmap::new(11, false);
        [0, 3, 10, 11, 4000].iter().for_each(|at| skip.set(*at, true));
        assert_eq!((skip.count(), skip.get(10), skip.get(11)), (3, true, false));
        let bytes = hello(&proof(&key, &image), &image, &skip, &[(1, 3), (99, 1)]);
        let parsed = Hello::parse(bytes.first_chunk().unwrap()).unwrap();
        assert_eq!((parsed.image, parsed.frames, parsed.parts), (image, 11, 2));
        assert_eq!(parsed.proof, *proof(&key, &image).as_bytes());
        // A frame that the image does not have is left out.
        assert_eq!(parsed.parse_tail(&bytes[HELLO..]), Some((skip, vec![(1, 3)])));
        assert_eq!(parsed.parse_tail(&bytes[HELLO..bytes.len() - 1]), None);
        let mut wrong = bytes.to_vec();
        wrong[HELLO + 1] |= 0x80;
        assert_eq!(parsed.parse_tail(&wrong[HELLO..]), None, "a bit beyond the last frame");
        for at in [0, 77, 79] {
            let mut wrong = *bytes.first_chunk::<HELLO>().unwrap();
            wrong[at] ^= 0x80;
            assert_eq!(Hello::parse(&wrong), None, "byte {at}");
        }
        assert_ne!(proof(&key, &image), proof(&key, &Digest([8; 32])));
    }

    #[test]
    fn a_full_bitmap_has_no_bits_beyond_its_end() {
        let all = Bitmap::new(11, true);
        assert_eq!((all.count(), all.len(), all.get(11)), (11, 11, false));
        assert_eq!(Bitmap::new(16, true).count(), 16);
        assert!(Bitmap::new(0, true).is_empty());
    }

    #[test]
    fn messages_come_back_as_they_were_sent() {
        let lens = [100, 3 * group::GROUP as u32 + 5];
        let length = |frame: u32| lens.get(frame as usize).copied();
        let list = vec![9; 4 * 32];
        let stream = [
            &alive(5, 2, true)[..],
            &begin(1, 2),
            &list,
            &group(1, 3),
            b"12345",
            &begin(0, 0),
            &group(0, 0),
            &[1; 100],
            &refused(Refusal::Full),
        ]
        .concat();
        let expected = [
            Message::Alive { held: 5, pending: 2, complete: true },
            Message::Begin { frame: 1, first: 2, list: list.into() },
            Message::Group { frame: 1, group: 3, bytes: Bytes::from_static(b"12345") },
            Message::Begin { frame: 0, first: 0, list: Bytes::new() },
            Message::Group { frame: 0, group: 0, bytes: vec![1; 100].into() },
            Message::Refused(Refusal::Full),
        ];
        // However it is cut by the network.
        for step in [1, 7, 12, 1000] {
            let (mut buffer, mut found) = (BytesMut::new(), Vec::new());
            for piece in stream.chunks(step) {
                buffer.extend_from_slice(piece);
                loop {
                    match decode(&mut buffer, length).unwrap() {
                        Decoded::Message(message) => found.push(message),
                        Decoded::Need(n) => break assert!(n > buffer.len()),
                    }
                }
            }
            assert_eq!(found, expected);
        }
        let wrong =
            [head(0, 0, 0, 0, 0), group(2, 0), group(0, 1), begin(1, 4), head(1, 2, 0, 0, 0), head(4, 9, 0, 0, 0)];
        for head in wrong {
            assert!(decode(&mut BytesMut::from(&head[..]), length).is_err(), "{head:?}");
        }
    }
}
