//! A delivered host that is looked at again on demand. What was found is kept beside its passport, which stays as it is.

use serde::{Deserialize, Serialize};

use super::Millis;
use crate::link::{Check, Problem};

/// A value that is worse or better than at delivery by more than this is told, even if it keeps to its bound.
const FACTOR: f64 = 1.5;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Recheck {
    pub asked: Millis,
    /// `None`: the host has not reported yet.
    #[serde(default)]
    pub done: Option<Millis>,
    #[serde(default)]
    pub checks: Vec<Check>,
    /// What is not as it was when the host was delivered, a sentence each.
    #[serde(default)]
    pub differences: Vec<String>,
    /// Why it could not be looked at.
    #[serde(default)]
    pub problem: Option<Problem>,
}

impl Recheck {
    pub fn asked(at: Millis) -> Self {
        Self { asked: at, ..Self::default() }
    }

    pub fn running(&self) -> bool {
        self.done.is_none()
    }
}

/// What is not the same now, check by check. One that was not run again says nothing: some disturb a host in use.
pub fn differences(then: &[Check], now: &[Check]) -> Vec<String> {
    now.iter()
        .filter_map(|new| {
            let Some(old) = then.iter().find(|old| old.id == new.id) else {
                return new.failed().then(|| format!("{}: not looked at when delivered; now {}", new.id, state(new)));
            };
            let moved = old.value.zip(new.value).is_some_and(|(old, new)| {
                let (small, large) = (old.abs().min(new.abs()), old.abs().max(new.abs()));
                large > small * FACTOR
            });
            (old.verdict() != new.verdict() || moved)
                .then(|| format!("{}: {} when delivered; now {}", new.id, state(old), state(new)))
        })
        .collect()
}

fn state(check: &Check) -> String {
    match check.failed() {
        true => format!("{} (expected {}, found {})", check.verdict(), check.expected, check.found),
        false => format!("{} ({})", check.verdict(), check.found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(id: &str, passed: bool, value: Option<f64>) -> Check {
        let found = value.map_or("this".to_owned(), |v| format!("{v} MB/s"));
        Check { id: id.into(), passed, expected: "that".into(), found, value, ..Check::default() }
    }

    #[test]
    fn what_changed_is_told_and_nothing_else() {
        let then = [check("a", true, None), check("b", true, None), check("disk", true, Some(200.0))];
        let now = |disk| [check("a", true, None), check("b", false, None), check("disk", true, Some(disk))];
        assert_eq!(
            differences(&then, &now(180.0)),
            ["b: ok (this) when delivered; now fault (expected that, found this)"]
        );
        assert_eq!(differences(&then, &now(90.0))[1], "disk: ok (200 MB/s) when delivered; now ok (90 MB/s)");
        assert_eq!(differences(&then, &then), [""; 0]);
        assert_eq!(differences(&then, &[]), [""; 0]);
        assert_eq!(differences(&[], &[check("new", true, None)]), [""; 0]);
    }
}
