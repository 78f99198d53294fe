//! Which certificate each BMC has proved itself with, kept over restarts: a file with a line for each, as `known_hosts` of
//! SSH. A person who knows that a certificate was renewed removes its line, and that counts at once.
//!
//! ```text
//! 10.0.0.7:443 3A:0F:…:91
//! ```

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::tls::{Authority, Fingerprint, Trust};
use crate::error::{Error, Kind, OrFail, Result};

/// What the BMCs of the site are believed by.
#[derive(Default)]
pub struct Known {
    /// `None`: for as long as this process runs.
    file: Option<PathBuf>,
    entries: Mutex<HashMap<SocketAddr, Fingerprint>>,
    authority: Option<Authority>,
}

impl Known {
    pub fn open(file: &Path) -> Result<Self> {
        let entries = Mutex::new(read(file)?);
        Ok(Self { file: Some(file.to_owned()), entries, authority: None })
    }

    /// Certificates are not remembered, but checked: the site signs those of its BMCs.
    pub fn by_authority(authority: Authority) -> Self {
        Self { authority: Some(authority), ..Self::default() }
    }

    pub fn trust(&self, address: SocketAddr) -> Trust {
        match (&self.authority, self.entries().get(&address)) {
            (Some(authority), _) => Trust::Authority(authority.clone()),
            (None, Some(fingerprint)) => Trust::Pinned(*fingerprint),
            (None, None) => Trust::FirstUse,
        }
    }

    /// A line that is lost with the power is learnt again: so it is not waited for.
    pub fn learn(&self, address: SocketAddr, fingerprint: Fingerprint) {
        if self.authority.is_some() || self.entries().insert(address, fingerprint) == Some(fingerprint) {
            return;
        }
        let Some(file) = &self.file else { return };
        let written = OpenOptions::new().create(true).append(true).open(file);
        let written = written.and_then(|mut file| file.write_all(format!("{address} {fingerprint}\n").as_bytes()));
        if let Err(error) = written {
            tracing::warn!(file = %file.display(), %error, "the certificate of a BMC is not kept");
        }
    }

    /// After a refused certificate: whether somebody has removed its line since. Then it is as if never seen.
    pub fn was_removed(&self, address: SocketAddr) -> bool {
        let Some(Ok(now)) = self.file.as_deref().map(read) else { return false };
        let removed = !now.contains_key(&address);
        *self.entries() = now;
        removed
    }

    /// The refusal of a certificate, with what to do about it here.
    pub fn explain(&self, refusal: Error, address: SocketAddr) -> Error {
        match &self.file {
            Some(file) => refusal.hint(format!(
                "if its firmware or certificate was renewed, remove the line of {address} from {}; else find out who \
                 answers at this address",
                file.display()
            )),
            None => refusal,
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<SocketAddr, Fingerprint>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last line of an address counts. One that was not written to its end is none.
fn read(file: &Path) -> Result<HashMap<SocketAddr, Fingerprint>> {
    let text = match fs::read_to_string(file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(HashMap::new()),
        read => read.or_fail(Kind::Config, "bmc.known", || format!("{} cannot be read", file.display()))?,
    };
    let mut entries = HashMap::new();
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let Some(line) = line.strip_suffix('\n') else { continue };
        let entry = line.trim();
        if entry.is_empty() || entry.starts_with('#') {
            continue;
        }
        let parsed =
            entry.split_once(' ').and_then(|(address, print)| Some((address.parse().ok()?, print.parse().ok()?)));
        let (address, fingerprint) = parsed.ok_or_else(|| {
            let message = format!("{}, line {}: no address with a certificate's SHA-256", file.display(), number + 1);
            Error::config("bmc.known", message).hint("remove the line: the BMC's certificate is learnt again")
        })?;
        entries.insert(address, fingerprint);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINT: &str =
        "A7:93:7B:64:B8:CA:A5:8F:03:72:1B:B6:BA:CF:5C:78:CB:23:5F:EB:E0:E7:0B:1B:84:CD:99:54:14:61:A0:8E";

    #[test]
    fn what_was_learnt_is_there_after_a_restart_until_its_line_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bmc-certificates");
        let (address, print): (SocketAddr, Fingerprint) = ("10.0.0.7:443".parse().unwrap(), PRINT.parse().unwrap());
        let known = Known::open(&file).unwrap();
        assert!(matches!(known.trust(address), Trust::FirstUse));
        known.learn(address, print);
        known.learn(address, print);
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("10.0.0.7:443 {PRINT}\n"));

        let later = Known::open(&file).unwrap();
        assert!(matches!(later.trust(address), Trust::Pinned(known) if known == print));
        assert!(!later.was_removed(address));
        fs::write(&file, "# renewed\n").unwrap();
        assert!(later.was_removed(address));
        assert!(matches!(later.trust(address), Trust::FirstUse));
    }

    #[test]
    fn a_torn_line_is_no_line_and_a_wrong_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bmc-certificates");
        fs::write(&file, format!("10.0.0.7:443 {PRINT}\n10.0.0.8:443 A7:9")).unwrap();
        assert_eq!(read(&file).unwrap().len(), 1);
        fs::write(&file, "10.0.0.7 zz\n").unwrap();
        assert!(Known::open(&file).err().unwrap().message().contains("line 1"));
    }
}
