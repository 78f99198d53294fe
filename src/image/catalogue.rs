//! The images of a folder: `NAME-RELEASE/` with `disk.zst`, the data file, and `manifest`, signed.
//!
//! [`channels`] keeps beside them which version a name such as `kvm@stable` means.
//!
//! Each version has a data file of its own, although versions share most chunks: three versions of our three roles take
//! about 1.6 GB, where a store of chunks would take about 0.6 GB. One file is what `sendfile` and every BitTorrent client
//! serve, and removing a version is removing a folder.
//!
//! Only what one of the trusted keys signed is an image; anything else is shown with the reason, and never served.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::channels::{self, Channels};
use super::chunk;
use super::manifest::{Manifest, SignedManifest};
use super::sign::PublicKey;
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::Digest;

pub const DATA: &str = "disk.zst";
pub const MANIFEST: &str = "manifest";

/// An image that can be handed out.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Names the image everywhere else.
    pub digest: Digest,
    pub manifest: Manifest,
    /// The data file.
    pub data: PathBuf,
    /// The signed manifest, as it is served.
    pub signed: PathBuf,
    published: SystemTime,
}

impl Entry {
    /// Reads one image folder. That every byte of the data file is right is for [`Entry::verify`] to say.
    pub fn open(folder: &Path, trusted: &[PublicKey]) -> Result<Self> {
        let (data, signed) = (folder.join(DATA), folder.join(MANIFEST));
        let unreadable = |path: &Path| format!("cannot read {}", path.display());
        let file = fs::read(&signed).or_fail(Kind::NotFound, "image.manifest", || unreadable(&signed))?;
        let published = fs::metadata(&signed).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let file = SignedManifest::parse(&file)?;
        let manifest = file.verify(trusted)?;
        let length = fs::metadata(&data).or_fail(Kind::NotFound, "image.data", || unreadable(&data))?.len();
        if length != manifest.data_size {
            return Err(Error::refused(
                "image.data",
                format!("{} has {length} bytes, its manifest says {}", data.display(), manifest.data_size),
            )
            .hint(format!("rackline image build {} --refresh", manifest.name)));
        }
        Ok(Self { digest: file.digest(), manifest, data, signed, published })
    }

    /// `kvm-20261121-3f2a9c01`.
    pub fn name(&self) -> String {
        format!("{}-{}", self.manifest.name, self.manifest.release)
    }

    /// Every byte of the data file against the manifest; `progress` is told the bytes of the disk that are done.
    pub fn verify(&self, progress: &dyn Fn(u64)) -> Result<()> {
        let mut data = File::open(&self.data)
            .or_fail(Kind::NotFound, "image.data", || format!("cannot read {}", self.data.display()))?;
        chunk::check(&mut data, &self.manifest, progress)
    }
}

#[derive(Debug, Default)]
pub struct Catalogue {
    /// By name, the newest first.
    pub images: Vec<Entry>,
    /// Folders that hold no usable image, each with the reason.
    pub unusable: Vec<(PathBuf, Error)>,
    pub channels: Channels,
}

impl Catalogue {
    /// A folder that does not exist is an empty catalogue.
    pub fn open(folder: &Path, trusted: &[PublicKey]) -> Result<Self> {
        let entries = match fs::read_dir(folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            entries => {
                entries.or_fail(Kind::Config, "image.catalogue", || format!("cannot read {}", folder.display()))?
            }
        };
        let mut catalogue = Self::default();
        match Channels::load(folder) {
            Ok(channels) => catalogue.channels = channels,
            Err(e) => catalogue.unusable.push((folder.join(channels::FILE), e)),
        }
        // A name with a dot in front is something that is being removed.
        let shown = |entry: &fs::DirEntry| !entry.file_name().as_encoded_bytes().starts_with(b".");
        for entry in entries.flatten().filter(|entry| shown(entry) && entry.path().is_dir()) {
            match Entry::open(&entry.path(), trusted) {
                Ok(image) => catalogue.images.push(image),
                Err(e) => catalogue.unusable.push((entry.path(), e)),
            }
        }
        let age = |e: &Entry| (e.manifest.release.get(..8).map(str::to_owned), e.published);
        catalogue.images.sort_by(|a, b| a.manifest.name.cmp(&b.manifest.name).then_with(|| age(b).cmp(&age(a))));
        catalogue.unusable.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(catalogue)
    }

    /// What an operator means: `kvm` is the newest of that name, `kvm-RELEASE` that one, `kvm@stable` what the channel
    /// points to, and a digest is exact.
    pub fn resolve(&self, text: &str) -> Result<&Entry> {
        if text.contains('@') {
            let change = self.channels.get(text).ok_or_else(|| channels::unknown(&self.channels, text))?;
            return self.by_digest(change.manifest).ok_or_else(|| {
                Error::not_found("image.channel", format!("{text} points to {}, which is not here", change.image))
                    .hint(format!("rackline image rollback {text}, or promote another version"))
            });
        }
        let digest = text.parse::<Digest>().ok();
        let found = self.images.iter().find(|e| match digest {
            Some(digest) => e.digest == digest,
            None => e.manifest.name == text || e.name() == text,
        });
        found.ok_or_else(|| {
            let names: Vec<String> = self.images.iter().map(Entry::name).collect();
            let hint = match names.is_empty() {
                true => format!("build it: `rackline image build {text}`"),
                false => format!("there are {}; `rackline image build NAME` makes more", names.join(", ")),
            };
            Error::not_found("image.unknown", format!("there is no image {text:?}")).hint(hint)
        })
    }

    pub fn by_digest(&self, digest: Digest) -> Option<&Entry> {
        self.images.iter().find(|e| e.digest == digest)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::image::chunk::{PackOptions, pack};
    use crate::image::manifest::tests::manifest_of;
    use crate::image::sign::SigningKey;

    pub fn publish(folder: &Path, name: &str, release: &str, key: &SigningKey) -> PathBuf {
        let folder = folder.join(format!("{name}-{release}"));
        fs::create_dir_all(&folder).unwrap();
        let mut disk = vec![0; 4096 * 3];
        disk[5000] = release.len() as u8;
        let options = PackOptions { chunk_size: 4096, level: 3, threads: 1 };
        let data = File::create(folder.join(DATA)).unwrap();
        let mut manifest = manifest_of(pack(&disk[..], disk.len() as u64, data, options, &|_| {}).unwrap());
        (manifest.name, manifest.release) = (name.into(), release.into());
        fs::write(folder.join(MANIFEST), SignedManifest::sign(&manifest, key).unwrap().encode()).unwrap();
        folder
    }

    #[test]
    fn by_name_by_release_and_by_digest() {
        let dir = tempfile::tempdir().unwrap();
        let key = SigningKey::generate().unwrap();
        publish(dir.path(), "kvm", "20261120-aaaaaaaa", &key);
        publish(dir.path(), "kvm", "20261121-00000000", &key);
        publish(dir.path(), "ovs", "20261101-00000000", &key);
        let catalogue = Catalogue::open(dir.path(), &[key.public()]).unwrap();
        let newest = catalogue.resolve("kvm").unwrap();
        assert_eq!(newest.name(), "kvm-20261121-00000000");
        assert_eq!(catalogue.resolve("kvm-20261120-aaaaaaaa").unwrap().manifest.release, "20261120-aaaaaaaa");
        assert_eq!(catalogue.resolve(&newest.digest.to_string()).unwrap().name(), newest.name());
        newest.verify(&|_| {}).unwrap();
        let unknown = catalogue.resolve("docker").unwrap_err();
        assert!(unknown.next_step().unwrap().contains("ovs-20261101-00000000"));
    }

    #[test]
    fn what_is_not_trusted_or_not_whole_is_not_served() {
        let dir = tempfile::tempdir().unwrap();
        let (key, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        publish(dir.path(), "a", "1", &other);
        let short = publish(dir.path(), "b", "1", &key);
        File::options().write(true).open(short.join(DATA)).unwrap().set_len(10).unwrap();
        fs::create_dir(dir.path().join("c")).unwrap();
        let flipped = publish(dir.path(), "d", "1", &key);
        let mut data = fs::read(flipped.join(DATA)).unwrap();
        data[40] ^= 1;
        fs::write(flipped.join(DATA), data).unwrap();

        let catalogue = Catalogue::open(dir.path(), &[key.public()]).unwrap();
        let codes: Vec<_> = catalogue.unusable.iter().map(|(_, e)| e.code()).collect();
        assert_eq!(codes, ["image.signature", "image.data", "image.manifest"]);
        let found = catalogue.resolve("d").unwrap().verify(&|_| {}).unwrap_err();
        assert!(["image.chunk", "image.data"].contains(&found.code()));
        assert!(Catalogue::open(&dir.path().join("none"), &[]).unwrap().images.is_empty());
    }
}
