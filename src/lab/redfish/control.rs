//! What a test changes while the BMC runs: how it behaves, which faults it has, and what it was asked.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::fault::{Fault, Planted, Rule};
use super::hardware::Reset;

/// How this BMC differs from the good one that [`Behaviour::default`] is.
#[derive(Debug, Clone)]
pub struct Behaviour {
    /// Members of a collection on one page (DSP0266 section 7.3).
    pub page: usize,
    /// A session that was silent for so long is gone.
    pub session_timeout: Duration,
    pub max_sessions: usize,
    /// Wrong passwords in a row until the account is locked, and for how long it is. 0 for never.
    pub lockout_after: u32,
    pub lockout: Duration,
    /// A change needs `If-Match`, else 428.
    pub tags_required: bool,
    /// For so long after a reset the old power state is shown.
    pub power_lag: Duration,
    /// 409 for a reset that asks for the state the machine is in.
    pub strict_power: bool,
    pub resets: Vec<Reset>,
    /// The boot override is taken, shown, and forgotten at the reset.
    pub forgets_boot: bool,
    /// From 202 to the end of a task; never, where `None`.
    pub task: Option<Duration>,
    /// The BMC is away for so long after its own reset or update.
    pub restart: Duration,
    /// Seconds by which its clock is wrong.
    pub clock_offset: i64,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            page: 50,
            session_timeout: Duration::from_secs(1800),
            max_sessions: 8,
            lockout_after: 5,
            lockout: Duration::from_secs(60),
            tags_required: false,
            power_lag: Duration::ZERO,
            strict_power: false,
            resets: Reset::ALL.to_vec(),
            forgets_boot: false,
            task: Some(Duration::from_millis(500)),
            restart: Duration::from_millis(500),
            clock_offset: 0,
        }
    }
}

#[derive(Default)]
pub struct Controls(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    behaviour: Behaviour,
    rules: Vec<Rule>,
    /// Where faults are planted from outside, and what stood there last.
    file: Option<PathBuf>,
    planted: String,
    away_until: Option<Instant>,
    seen: Vec<String>,
}

/// Requests that are remembered.
const MAX_SEEN: usize = 10_000;

impl Controls {
    /// The faults are those of this file: a list of [`Planted`], looked at with each request. None without the file.
    pub fn following(file: PathBuf) -> Self {
        Self(Mutex::new(Inner { file: Some(file), ..Inner::default() }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn behaviour(&self) -> Behaviour {
        self.inner().behaviour.clone()
    }

    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.inner().behaviour);
    }

    /// From now on until [`Controls::heal`]. `what` is `GET /redfish/v1/Systems/1`, a method alone, a path alone, or
    /// either with a `*` at the end of the path; the first rule that fits is the one that holds.
    pub fn fault(&self, what: &str, fault: Fault) {
        self.inner().rules.push(Rule::new(what, fault, None));
    }

    /// For so many requests.
    pub fn fault_times(&self, what: &str, times: u32, fault: Fault) {
        self.inner().rules.push(Rule::new(what, fault, Some(times)));
    }

    pub fn heal(&self) {
        self.inner().rules.clear();
    }

    /// Nobody listens for so long: new connections and open ones are reset.
    pub fn away(&self, time: Duration) {
        self.inner().away_until = Some(Instant::now() + time);
    }

    pub fn is_away(&self) -> bool {
        self.inner().away_until.is_some_and(|until| Instant::now() < until)
    }

    /// `METHOD path` of each request so far, refused ones too.
    pub fn seen(&self) -> Vec<String> {
        self.inner().seen.clone()
    }

    /// How many requests so far begin like this.
    pub fn count(&self, what: &str) -> usize {
        self.inner().seen.iter().filter(|s| s.starts_with(what)).count()
    }

    /// Takes note of a request and says which fault it meets.
    pub(super) fn meet(&self, method: &str, path: &str) -> Option<Fault> {
        let mut inner = self.inner();
        inner.follow();
        if inner.seen.len() < MAX_SEEN {
            inner.seen.push(format!("{method} {path}"));
        }
        inner.rules.iter_mut().find(|rule| rule.fits(method, path)).map(Rule::used)
    }
}

impl Inner {
    fn follow(&mut self) {
        let Some(file) = &self.file else { return };
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if text == self.planted {
            return;
        }
        let planted: Vec<Planted> = match text.is_empty() {
            true => Vec::new(),
            false => serde_json::from_str(&text).unwrap_or_else(|e| {
                tracing::warn!("{} is no list of faults: {e}", file.display());
                Vec::new()
            }),
        };
        self.rules = planted.into_iter().map(|p| Rule::new(&p.what, p.fault, p.times)).collect();
        self.planted = text;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_follow_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("faults.json");
        let controls = Controls::following(file.clone());
        assert_eq!(controls.meet("GET", "/a"), None);
        std::fs::write(&file, r#"[{"what":"GET /a","fault":"reset","times":1}]"#).unwrap();
        assert_eq!(controls.meet("GET", "/a"), Some(Fault::Reset));
        assert_eq!(controls.meet("GET", "/a"), None, "the same file does not plant it again");
        std::fs::write(&file, "nonsense").unwrap();
        assert_eq!(controls.meet("GET", "/a"), None);
    }
}
