//! What is refused: other keys, flipped bytes, tables that contradict themselves.

use super::*;
use crate::image::chunk::{PackOptions, Packed, pack};

/// A manifest around what was packed.
pub fn manifest_of(packed: Packed) -> Manifest {
    Manifest {
        name: "kvm".into(),
        release: "20261121-3f2a9c01".into(),
        arch: "amd64".into(),
        roles: vec![Role::Kvm],
        firmware: vec![Firmware::Bios, Firmware::Uefi],
        disk_size: packed.disk_size,
        chunk_size: packed.chunk_size,
        used_bytes: packed.used_bytes,
        data_size: packed.data_size,
        boot: Boot {
            root_label: "root".into(),
            release: "6.1.0-37-amd64".into(),
            kernel: "/boot/vmlinuz-6.1.0-37-amd64".into(),
            initrd: "/boot/initrd.img-6.1.0-37-amd64".into(),
            command_line: "root=LABEL=root ro".into(),
        },
        labels: BTreeMap::from([("suite".into(), "bookworm".into())]),
        chunks: packed.chunks,
    }
}

fn manifest() -> Manifest {
    let mut disk = vec![0; 4096 * 6];
    disk[4096..3 * 4096].fill(3);
    disk[5 * 4096] = 1;
    let options = PackOptions { chunk_size: 4096, level: 3, threads: 1 };
    manifest_of(pack(&disk[..], disk.len() as u64, Vec::new(), options, &|_| {}).unwrap())
}

#[test]
fn signed_read_and_believed() {
    let key = SigningKey::generate().unwrap();
    let signed = SignedManifest::sign(&manifest(), &key).unwrap();
    let file = signed.encode();
    let read = SignedManifest::parse(&file).unwrap();
    assert_eq!(read, signed);
    assert_eq!(read.verify(&[key.public()]).unwrap(), manifest());
    // The name is the digest of the manifest alone: another key, the same image.
    let other = SignedManifest::sign(&manifest(), &SigningKey::generate().unwrap()).unwrap();
    assert_eq!(other.digest(), signed.digest());
    assert_eq!(signed.digest(), Digest::of(&file[84..]));
}

#[test]
fn another_key_is_named() {
    let (key, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let signed = SignedManifest::sign(&manifest(), &key).unwrap();
    let error = signed.verify(&[other.public()]).unwrap_err();
    assert_eq!(error.code(), "image.signature");
    assert!(error.message().contains(&key.public().id().to_string()));
    assert!(signed.verify(&[]).is_err());
    assert!(signed.verify(&[other.public(), key.public()]).is_ok());
}

#[test]
fn every_flipped_byte_is_found() {
    let key = SigningKey::generate().unwrap();
    let file = SignedManifest::sign(&manifest(), &key).unwrap().encode();
    for at in 0..file.len() {
        let mut damaged = file.clone();
        damaged[at] ^= 1;
        let error = SignedManifest::parse(&damaged).and_then(|s| s.verify(&[key.public()])).unwrap_err();
        let expected = if at < 8 || (80..84).contains(&at) { "image.manifest" } else { "image.signature" };
        assert_eq!(error.code(), expected, "byte {at}");
    }
    for length in 0..file.len() {
        assert_eq!(SignedManifest::parse(&file[..length]).unwrap_err().code(), "image.manifest");
    }
    assert!(SignedManifest::parse(&[file, vec![0]].concat()).is_err());
}

#[test]
fn contradictions_are_refused() {
    let refused = |why: &str, change: &dyn Fn(&mut Manifest)| {
        let mut manifest = manifest();
        assert!(manifest.encode().is_ok());
        change(&mut manifest);
        let error = manifest.encode().unwrap_err();
        assert_eq!(error.code(), "image.manifest");
        assert!(error.message().contains(why), "{why}: {error}");
    };
    refused("overlaps", &|m| m.chunks[1].offset -= 1);
    refused("twice or out of order", &|m| m.chunks.swap(0, 1));
    refused("twice or out of order", &|m| m.chunks[1].index = 1);
    refused("beyond the end of the disk", &|m| m.chunks[2].index = 6);
    refused("beyond the end of the data file", &|m| m.chunks[2].offset = m.data_size);
    refused("beyond the end of the data file", &|m| m.chunks[2].offset = u64::MAX);
    refused("impossible length", &|m| m.chunks[2].length = 0);
    refused("impossible length", &|m| m.chunks[2].length = 1 << 20);
    refused("used bytes", &|m| m.chunks.truncate(2));
    refused("used bytes", &|m| m.used_bytes += 1);
    refused("no room for its seek table", &|m| m.data_size = 3);
    refused("chunk size", &|m| m.chunk_size = 5000);
    refused("disk has", &|m| m.disk_size += 1);
    refused("disk has", &|m| m.disk_size = u64::MAX);
    refused("name", &|m| m.name = "../etc".into());
    refused("no firmware", &|m| m.firmware.clear());
}

#[test]
fn what_is_not_a_manifest_is_refused() {
    let json = String::from_utf8(manifest().encode().unwrap()).unwrap();
    for text in [
        "",
        "[]",
        &json.replace("\"version\":1", "\"version\":2"),
        &json.replace("\"version\":1", "\"version\":1,\"more\":1"),
        &json.replacen("[1,", "[-1,", 1),
        &json[..json.len() - 1],
    ] {
        assert_eq!(Manifest::parse(text.as_bytes()).unwrap_err().code(), "image.manifest", "{text}");
    }
}

#[test]
fn zero_ranges_and_chunks_by_place() {
    let manifest = manifest();
    assert_eq!(manifest.zero_ranges(), [(0, 4096), (3 * 4096, 2 * 4096)]);
    assert_eq!(manifest.chunk_at(2 * 4096 + 17).map(|c| c.index), Some(2));
    assert_eq!(manifest.chunk_at(3 * 4096), None);
    assert_eq!(manifest.chunk_at(u64::MAX), None);
}
