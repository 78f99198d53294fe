//! The data file against itself, against Debian's `zstd -d`, and against damage.

use std::io::Cursor;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;
use crate::image::manifest::tests::manifest_of;

const SMALL: PackOptions = PackOptions { chunk_size: 4096, level: 3, threads: 3 };

/// Chunks of zeros, of one letter and of noise, with a short one at the end.
fn disk() -> Vec<u8> {
    let mut disk = vec![0u8; 4096 * 9 + 512];
    disk[4096..8192].fill(b'a');
    let mut state = 1u32;
    for byte in &mut disk[3 * 4096 + 100..5 * 4096] {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    }
    disk[9 * 4096 + 511] = 1;
    disk
}

fn packed(disk: &[u8], options: PackOptions) -> (Packed, Vec<u8>) {
    let mut data = Vec::new();
    let packed = pack(disk, disk.len() as u64, &mut data, options, &|_| {}).unwrap();
    (packed, data)
}

fn unpack(packed: &Packed, data: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; packed.disk_size as usize];
    let mut raw = Vec::new();
    for chunk in &packed.chunks {
        let frame = &data[chunk.offset as usize..][..chunk.length as usize];
        verify_and_decompress(chunk, frame, &mut raw).unwrap();
        verify_raw(chunk, &raw).unwrap();
        disk[chunk.disk_offset as usize..][..raw.len()].copy_from_slice(&raw);
    }
    disk
}

#[test]
fn zero_chunks_are_neither_listed_nor_lost() {
    let disk = disk();
    let (packed, data) = packed(&disk, SMALL);
    assert_eq!(packed.chunks.iter().map(|c| c.index).collect::<Vec<_>>(), [1, 3, 4, 9]);
    assert_eq!(packed.used_bytes, 3 * 4096 + 512);
    assert_eq!(packed.data_size, data.len() as u64);
    assert_eq!(unpack(&packed, &data), disk);
    check(&mut Cursor::new(&data), &manifest_of(packed), &|_| {}).unwrap();
}

#[test]
fn the_file_does_not_depend_on_the_number_of_threads() {
    let disk = disk();
    assert_eq!(packed(&disk, SMALL), packed(&disk, PackOptions { threads: 1, ..SMALL }));
}

#[test]
fn debians_zstd_restores_the_disk_and_lists_the_frames() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = vec![0u8; (20 << 20) + 512];
    disk[5 << 20..9 << 20].fill(7);
    let (packed, data) = packed(&disk, PackOptions { chunk_size: 4 << 20, level: 3, threads: 2 });
    let zeros = packed.data_size - seek_table_len(6) - packed.chunks.iter().map(|c| u64::from(c.length)).sum::<u64>();
    assert!(zeros < 4 * 200, "{zeros} bytes for four chunks of zeros");
    let path = dir.path().join("disk.zst");
    std::fs::write(&path, &data).unwrap();
    let output = Command::new("zstd").args(["-dc", "--"]).arg(&path).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success());
    assert!(output.stdout == disk);
}

#[test]
fn one_flipped_byte_is_named_with_its_chunk() {
    let disk = disk();
    let (packed, data) = packed(&disk, SMALL);
    let chunk = &packed.chunks[1];
    let mut frame = data[chunk.offset as usize..][..chunk.length as usize].to_vec();
    let mut raw = Vec::new();
    verify_and_decompress(chunk, &frame, &mut raw).unwrap();
    frame[chunk.length as usize / 2] ^= 1;
    let error = verify_and_decompress(chunk, &frame, &mut raw).unwrap_err();
    assert_eq!(error.code(), "image.chunk");
    let message = error.message();
    assert!(message.starts_with("chunk 3 (disk offset 12288)"), "{message}");
    assert!(message.contains(&chunk.frame.to_string()) && message.contains(&Digest::of(&frame).to_string()));
    assert_eq!(verify_and_decompress(chunk, &frame[1..], &mut raw).unwrap_err().code(), "image.chunk");
    raw[0] ^= 1;
    assert_eq!(verify_raw(chunk, &raw).unwrap_err().code(), "image.chunk");
}

#[test]
fn a_frame_of_another_length_is_refused_even_when_signed() {
    let (packed, _) = packed(&disk(), SMALL);
    for frame in
        [zstd::bulk::compress(&[1; 8192], 3).unwrap(), zstd::bulk::compress(&[1; 100], 3).unwrap(), vec![9; 80]]
    {
        let lying = Chunk { length: frame.len() as u32, frame: Digest::of(&frame), ..packed.chunks[0].clone() };
        let mut raw = Vec::new();
        assert_eq!(verify_and_decompress(&lying, &frame, &mut raw).unwrap_err().code(), "image.chunk");
        assert!(raw.capacity() <= 4096);
    }
}

#[test]
fn every_damaged_or_shortened_data_file_is_found() {
    let disk = disk();
    let (packed, data) = packed(&disk, SMALL);
    let manifest = manifest_of(packed);
    let listed =
        |at: usize| manifest.chunks.iter().any(|c| (c.offset..c.offset + u64::from(c.length)).contains(&(at as u64)));
    for at in 0..data.len() {
        let mut damaged = data.clone();
        damaged[at] ^= 0x10;
        match check(&mut Cursor::new(&damaged), &manifest, &|_| {}) {
            Err(error) => assert!(["image.chunk", "image.data"].contains(&error.code()), "byte {at}: {error:?}"),
            // A bit without meaning (RFC 8878, section 3.1.1.1.1: "unused bit") in a frame of zeros.
            Ok(()) => assert!(!listed(at) && zstd::decode_all(&damaged[..]).unwrap() == disk, "byte {at}"),
        }
    }
    for length in [0, 1, data.len() / 2, data.len() - 1] {
        assert_eq!(check(&mut Cursor::new(&data[..length]), &manifest, &|_| {}).unwrap_err().code(), "image.data");
    }
}

#[test]
fn a_disk_that_ends_early_and_a_full_disk_are_told_apart() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let disk = disk();
    let early = pack(&disk[..8000], disk.len() as u64, Vec::new(), SMALL, &|_| {}).unwrap_err();
    assert_eq!(early.code(), "image.source");
    let full = pack(&disk[..], disk.len() as u64, Full, SMALL, &|_| {}).unwrap_err();
    assert_eq!(full.code(), "image.disk-full");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_packed_comes_back(
        sectors in prop::collection::vec(prop_oneof![Just(None), any::<u8>().prop_map(Some)], 1..80),
        chunk_size in prop::sample::select(vec![4096u32, 8192, 16384]),
        threads in 1usize..5,
    ) {
        let disk: Vec<u8> = sectors.iter().flat_map(|s| s.map_or([0; 512], |v| {
            let mut sector = [v; 512];
            sector[v as usize] = 1;
            sector
        })).collect();
        let (packed, data) = packed(&disk, PackOptions { chunk_size, level: 1, threads });
        prop_assert_eq!(&unpack(&packed, &data), &disk);
        let manifest = manifest_of(packed);
        check(&mut Cursor::new(&data), &manifest, &|_| {}).unwrap();
        prop_assert_eq!(Manifest::parse(&manifest.encode().unwrap()).unwrap(), manifest.clone());
        let zeros: u64 = manifest.zero_ranges().iter().map(|(_, length)| length).sum();
        prop_assert_eq!(zeros + manifest.used_bytes, manifest.disk_size);
    }
}
