//! The proof that an image boots and does what its roles promise: for each firmware a signed record beside the image, made
//! by `rackline image test` and asked for before a channel may point to the image.
//!
//! # `proof-bios` and `proof-uefi`, byte by byte
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `RKLPRF1\n` |
//! | 8 | 8 | id of the key, as in a signed manifest |
//! | 16 | 64 | Ed25519 signature (RFC 8032) over the first 8 bytes and the record |
//! | 80 | n | the record, JSON: [`Proof`]; the file ends with it |
//!
//! The record names the manifest by digest, so a proof is of these bytes and of no other version.

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::catalogue::Entry;
use super::sign::{KeyId, PublicKey, SIGNATURE_BYTES, SigningKey};
use crate::durable;
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::{Digest, Firmware, Role};

const MAGIC: &[u8; 8] = b"RKLPRF1\n";
const HEADER: usize = 8 + 8 + SIGNATURE_BYTES;
/// Some dozens of checks are 10 KB.
const MAX_BYTES: u64 = 1 << 20;

/// One boot that went well.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    pub manifest: Digest,
    pub firmware: Firmware,
    pub at: jiff::Timestamp,
    /// Versions of this program and of QEMU.
    pub rackline: String,
    pub qemu: String,
    /// From power-on until the agent of the installed system spoke.
    pub boot_seconds: f64,
    /// The delivery checks of each role of the image; none if it has no role.
    pub checks: Vec<Passed>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passed {
    pub role: Role,
    pub id: String,
    pub found: String,
    pub seconds: f64,
}

fn place(entry: &Entry, firmware: Firmware) -> PathBuf {
    entry.signed.with_file_name(match firmware {
        Firmware::Bios => "proof-bios",
        Firmware::Uefi => "proof-uefi",
    })
}

fn signed_part(record: &[u8]) -> Vec<u8> {
    [MAGIC, record].concat()
}

impl Proof {
    /// Puts the proof beside the image, in one step.
    pub fn store(&self, entry: &Entry, key: &SigningKey) -> Result<()> {
        let failed = || format!("cannot store the proof of {}", entry.name());
        let record = serde_json::to_vec_pretty(self).or_fail(Kind::Internal, "image.proof", failed)?;
        let signature = key.sign(&signed_part(&record));
        let file = [MAGIC.as_slice(), &key.public().id().0, &signature, &record].concat();
        durable::replace(&place(entry, self.firmware), &file).or_fail(Kind::Config, "image.proof", failed)
    }

    /// The proof of this image for that firmware: there, signed by a trusted key, and of these very bytes.
    pub fn load(entry: &Entry, firmware: Firmware, trusted: &[PublicKey]) -> Result<Self> {
        let path = place(entry, firmware);
        let none = || {
            Error::conflict("image.unproved", format!("{} has not been shown to boot by {firmware}", entry.name()))
                .hint(format!("rackline image test {}", entry.name()))
        };
        let about = match fs::metadata(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(none()),
            about => about.or_fail(Kind::Config, "image.proof", || format!("cannot read {}", path.display()))?,
        };
        if about.len() > MAX_BYTES {
            return Err(none().because(format!("{} is too long", path.display())));
        }
        let file =
            fs::read(&path).or_fail(Kind::Config, "image.proof", || format!("cannot read {}", path.display()))?;
        let proof = Self::believe(&file, trusted).map_err(|why| none().because(why))?;
        match proof.manifest == entry.digest && proof.firmware == firmware {
            true => Ok(proof),
            false => Err(none().because("the proof is that of another image or firmware")),
        }
    }

    fn believe(file: &[u8], trusted: &[PublicKey]) -> Result<Self, &'static str> {
        let (header, record) = file.split_at_checked(HEADER).ok_or("the proof is cut off")?;
        let (magic, rest) = header.split_first_chunk::<8>().ok_or("the proof is cut off")?;
        let (key, signature) = rest.split_first_chunk::<8>().ok_or("the proof is cut off")?;
        let signature = signature.try_into().map_err(|_| "the proof is cut off")?;
        if magic != MAGIC {
            return Err("the proof does not begin as one does");
        }
        let key = trusted.iter().find(|k| k.id() == KeyId(*key)).ok_or("the proof is signed with an unknown key")?;
        if !key.signed(&signed_part(record), signature) {
            return Err("the signature of the proof is wrong");
        }
        serde_json::from_slice(record).map_err(|_| "the record of the proof cannot be read")
    }

    /// Takes back what an earlier test has shown.
    pub fn withdraw(entry: &Entry, firmware: Firmware) -> Result<()> {
        match fs::remove_file(place(entry, firmware)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e)
                .or_fail(Kind::Config, "image.proof", || format!("cannot take the proof of {} back", entry.name())),
            _ => Ok(()),
        }
    }
}

/// There is a proof for each firmware that the manifest names.
pub fn require(entry: &Entry, trusted: &[PublicKey]) -> Result<()> {
    entry.manifest.firmware.iter().try_for_each(|firmware| Proof::load(entry, *firmware, trusted).map(drop))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::image::chunk::{PackOptions, pack};
    use crate::image::manifest::SignedManifest;
    use crate::image::manifest::tests::manifest_of;

    fn entry(folder: &std::path::Path, name: &str, key: &SigningKey) -> Entry {
        let folder = folder.join(name);
        fs::create_dir(&folder).unwrap();
        let disk = [7u8; 8192];
        let options = PackOptions { chunk_size: 4096, level: 1, threads: 1 };
        let data = File::create(folder.join(crate::image::catalogue::DATA)).unwrap();
        let mut manifest = manifest_of(pack(&disk[..], 8192, data, options, &|_| {}).unwrap());
        manifest.name = name.into();
        manifest.firmware = vec![Firmware::Bios, Firmware::Uefi];
        let signed = SignedManifest::sign(&manifest, key).unwrap().encode();
        fs::write(folder.join(crate::image::catalogue::MANIFEST), signed).unwrap();
        Entry::open(&folder, &[key.public()]).unwrap()
    }

    fn proof(entry: &Entry, firmware: Firmware) -> Proof {
        let checks = vec![Passed { role: Role::Ovs, id: "kernel".into(), found: "6.1".into(), seconds: 0.1 }];
        Proof {
            manifest: entry.digest,
            firmware,
            at: "2026-11-21T12:00:00Z".parse().unwrap(),
            rackline: "0.1.0".into(),
            qemu: "7.2".into(),
            boot_seconds: 61.5,
            checks,
        }
    }

    #[test]
    fn one_for_each_firmware_is_required() {
        let dir = tempfile::tempdir().unwrap();
        let key = SigningKey::generate().unwrap();
        let (image, trusted) = (entry(dir.path(), "ovs", &key), [key.public()]);
        proof(&image, Firmware::Bios).store(&image, &key).unwrap();
        let missing = require(&image, &trusted).unwrap_err();
        assert_eq!(missing.code(), "image.unproved");
        assert!(missing.message().contains("by UEFI"), "{missing}");
        proof(&image, Firmware::Uefi).store(&image, &key).unwrap();
        require(&image, &trusted).unwrap();
        assert_eq!(Proof::load(&image, Firmware::Bios, &trusted).unwrap(), proof(&image, Firmware::Bios));
        Proof::withdraw(&image, Firmware::Bios).unwrap();
        Proof::withdraw(&image, Firmware::Bios).unwrap();
        assert!(require(&image, &trusted).unwrap_err().message().contains("by BIOS"));
    }

    #[test]
    fn a_proof_of_something_else_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let (key, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let (image, older) = (entry(dir.path(), "ovs", &key), entry(dir.path(), "old", &key));
        let trusted = [key.public()];
        let refused = |reason: &str| {
            let error = Proof::load(&image, Firmware::Bios, &trusted).unwrap_err();
            assert!(error.causes().join(" ").contains(reason), "{reason}: {error:?}");
        };
        proof(&image, Firmware::Bios).store(&image, &other).unwrap();
        refused("unknown key");
        proof(&older, Firmware::Bios).store(&image, &key).unwrap();
        refused("another image");
        proof(&image, Firmware::Uefi).store(&image, &key).unwrap();
        fs::rename(place(&image, Firmware::Uefi), place(&image, Firmware::Bios)).unwrap();
        refused("another image or firmware");

        proof(&image, Firmware::Bios).store(&image, &key).unwrap();
        let good = fs::read(place(&image, Firmware::Bios)).unwrap();
        for (at, reason) in [(0, "begin"), (9, "unknown key"), (20, "signature"), (good.len() - 3, "signature")] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(place(&image, Firmware::Bios), bad).unwrap();
            refused(reason);
        }
        fs::write(place(&image, Firmware::Bios), &good[..50]).unwrap();
        refused("cut off");
    }
}
