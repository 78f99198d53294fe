//! What has come of the last order, kept where it outlives the agent but not the boot.
//!
//! Each order is done once. An agent that is started again and finds the same number looks here: a finished order is
//! reported again and not done again; one that was only begun is done again, since every order may be.

use std::path::{Path, PathBuf};

use crate::durable;
use crate::error::{Kind, OrFail, Result};
use crate::link::Report;

#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
}

impl Ledger {
    /// `dir` is made where it is missing.
    pub fn open(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)
            .or_fail(Kind::Config, "agent.ledger", || format!("{} cannot be made", dir.display()))?;
        Ok(Self { path: dir.join("last-report.json") })
    }

    /// The report of order `number`, where it was finished in this boot.
    pub fn finished(&self, number: u64) -> Option<Report> {
        let text = std::fs::read(&self.path).ok()?;
        // A file cut short by a crash counts as none: then the order is done again.
        serde_json::from_slice::<Report>(&text).ok().filter(|r| r.number == number)
    }

    /// In one step: an agent that is ended here leaves the old file or the new one.
    pub fn finish(&self, report: &Report) -> Result<()> {
        let failed = || format!("{} cannot be written", self.path.display());
        let text = serde_json::to_vec(report).or_fail(Kind::Internal, "agent.ledger", failed)?;
        durable::replace(&self.path, &text).or_fail(Kind::Config, "agent.ledger", failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Outcome;

    #[test]
    fn a_finished_order_is_remembered_by_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("run")).unwrap();
        assert_eq!(ledger.finished(3), None);
        let report = Report { number: 3, outcome: Outcome::Leaving };
        ledger.finish(&report).unwrap();
        assert_eq!(Ledger::open(&dir.path().join("run")).unwrap().finished(3), Some(report));
        assert_eq!(ledger.finished(4), None);
        std::fs::write(dir.path().join("run/last-report.json"), "{\"number\":3,").unwrap();
        assert_eq!(ledger.finished(3), None);
    }
}
