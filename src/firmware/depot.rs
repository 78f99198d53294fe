//! What the site has for its machines' firmware: baselines, bundles, and the address under which a BMC fetches one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::baseline::Baselines;
use super::bundle::{Bundle, Bundles};
use crate::error::Result;

/// Images on their way to BMCs at a time: each is some tens of megabytes, and a hall asks for them all at once.
const UPLOADS: usize = 16;
/// Between two looks at a machine that is waited for.
const LOOK: Duration = Duration::from_secs(15);

/// Clones share the limits.
#[derive(Clone)]
pub struct Depot {
    /// Those of the site; besides them there are those built in.
    baselines: Option<PathBuf>,
    bundles: Bundles,
    /// Otherwise machines are looked at, and told what differs.
    pub apply: bool,
    /// The machines' web server, as BMCs reach it.
    url: String,
    /// Makes addresses that nobody can guess.
    secret: [u8; 32],
    pub uploads: Arc<Semaphore>,
    pub look: Duration,
}

/// What is built in, without bundles.
impl Default for Depot {
    fn default() -> Self {
        Self::new(None, PathBuf::from("/var/lib/rackline/firmware"), true, "http://localhost", [0; 32])
    }
}

impl Depot {
    pub fn new(baselines: Option<PathBuf>, bundles: PathBuf, apply: bool, url: &str, secret: [u8; 32]) -> Self {
        Self {
            baselines,
            bundles: Bundles::new(bundles),
            apply,
            url: url.trim_end_matches('/').to_owned(),
            secret,
            uploads: Arc::new(Semaphore::new(UPLOADS)),
            look: LOOK,
        }
    }

    /// Read anew each time: a site changes them while the appliance runs.
    pub fn baselines(&self) -> Result<Baselines> {
        match &self.baselines {
            Some(folder) => Baselines::with_folder(folder),
            None => Baselines::built_in(),
        }
    }

    pub fn bundles(&self) -> &Bundles {
        &self.bundles
    }

    /// Where a BMC fetches a bundle. The same for all of them, for as long as the bundle is there: BMCs try again.
    pub fn url(&self, bundle: &Bundle) -> String {
        format!("{}/firmware/{}/{}", self.url, self.token(bundle).to_hex(), bundle.file)
    }

    /// The file that is served under this path of a URL.
    pub fn file(&self, path: &str) -> Option<PathBuf> {
        let (token, file) = path.strip_prefix("/firmware/")?.split_once('/')?;
        let token = blake3::Hash::from_hex(token).ok()?;
        let bundles = self.bundles.list().unwrap_or_default();
        // Digests are compared in constant time.
        let bundle = bundles.iter().find(|b| self.token(b) == token && b.file == file)?;
        Some(self.bundles.path(bundle))
    }

    fn token(&self, bundle: &Bundle) -> blake3::Hash {
        blake3::keyed_hash(&self.secret, &bundle.blake3.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firmware::Part;
    use crate::firmware::bundle::About;

    #[test]
    fn a_bundle_is_served_under_its_address_only() {
        let dir = tempfile::tempdir().unwrap();
        let depot = |secret| Depot::new(None, dir.path().join("bundles"), true, "http://10.0.0.1/", secret);
        let file = dir.path().join("bios.exe");
        std::fs::write(&file, b"image").unwrap();
        let about = About {
            vendor: "Dell".into(),
            models: vec!["*".into()],
            component: Part::Bios,
            named: None,
            version: "1".into(),
            sha256: None,
        };
        let ours = depot([1; 32]);
        let bundle = ours.bundles().add(&file, about).unwrap();
        let url = ours.url(&bundle);
        let path = url.strip_prefix("http://10.0.0.1").unwrap();
        assert_eq!(std::fs::read(ours.file(path).unwrap()).unwrap(), b"image");
        assert_eq!(depot([2; 32]).file(path), None);
        for other in ["/firmware/", "/firmware/x/bios.exe", "/firmware/../bios.exe", "/boot/x"] {
            assert_eq!(ours.file(other), None, "{other}");
        }
        assert_eq!(ours.file(&path.replace("bios.exe", "index.toml")), None);
    }
}
