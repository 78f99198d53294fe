//! Delivery checks on the installed host: what was ordered is what runs here, and it does its work.
//!
//! Each check says what was expected and what was found, takes its own time and has its own deadline; one that fails does
//! not stop the others, so that one visit shows all that is wrong.

mod docker;
mod host;
mod kvm;
mod ovs;

use std::future::Future;
use std::time::{Duration, Instant};

use super::Agent;
use super::progress::Meter;
use crate::error::Result;
use crate::link::{Check, Measured, Outcome, Verify};
use crate::machine::Role;

pub async fn check(agent: &Agent, order: &Verify, meter: &Meter) -> Result<Outcome> {
    let mut visit = Visit { meter, checks: Vec::new(), measured: Vec::new() };
    host::check(agent, order, &mut visit).await;
    for role in order.role.iter() {
        match role {
            Role::Kvm => kvm::check(&mut visit).await,
            Role::Docker => docker::check(&mut visit).await,
            Role::Ovs => ovs::check(&mut visit).await,
        }
    }
    Ok(Outcome::Checked { checks: visit.checks, measured: visit.measured })
}

/// What was found, and whether it is what was expected.
enum Found {
    Good(String),
    Bad(String),
}

impl Found {
    fn when(good: bool, found: impl Into<String>) -> Self {
        if good { Self::Good(found.into()) } else { Self::Bad(found.into()) }
    }
}

/// One check before it is run.
struct Question {
    id: &'static str,
    expected: String,
    deadline: Duration,
    hint: &'static str,
}

struct Visit<'a> {
    meter: &'a Meter,
    checks: Vec<Check>,
    measured: Vec<Measured>,
}

impl Visit<'_> {
    /// Answers `question` by `work`, which is dropped at the deadline. Returns the seconds it took, when it passed.
    async fn ask(&mut self, question: Question, work: impl Future<Output = Result<Found>>) -> Option<f64> {
        self.meter.step(format!("checking {}", question.id), 0);
        let start = Instant::now();
        let answer = tokio::time::timeout(question.deadline, work).await;
        let seconds = start.elapsed().as_secs_f64();
        let mut hint = Some(question.hint.to_owned());
        let (passed, found) = match answer {
            Ok(Ok(Found::Good(found))) => (true, found),
            Ok(Ok(Found::Bad(found))) => (false, found),
            Ok(Err(error)) => {
                hint = error.next_step().map(str::to_owned).or(hint);
                (false, error.message().to_owned())
            }
            Err(_) => (false, format!("no answer within {} s", question.deadline.as_secs())),
        };
        if !passed {
            super::console::say(format!("{}: expected {}, found {found}", question.id, question.expected));
        }
        self.checks.push(Check {
            id: question.id.to_owned(),
            passed,
            expected: question.expected,
            found,
            seconds,
            hint: hint.filter(|_| !passed),
        });
        passed.then_some(seconds)
    }

    fn seconds(&mut self, name: &str, value: Option<f64>) {
        self.measured.extend(value.map(|value| Measured::new(name, value, "s")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn question(id: &'static str) -> Question {
        Question { id, expected: "yes".into(), deadline: Duration::from_millis(100), hint: "try again" }
    }

    #[tokio::test]
    async fn good_bad_failed_and_late_are_told_apart() {
        let meter = Meter::new(1);
        let mut visit = Visit { meter: &meter, checks: Vec::new(), measured: Vec::new() };
        assert!(visit.ask(question("a"), async { Ok(Found::Good("yes".into())) }).await.is_some());
        assert!(visit.ask(question("b"), async { Ok(Found::Bad("no".into())) }).await.is_none());
        let error = async { Err(Error::config("x", "it broke").hint("mend it")) };
        assert!(visit.ask(question("c"), error).await.is_none());
        assert!(visit.ask(question("d"), std::future::pending()).await.is_none());
        let seen: Vec<_> = visit.checks.iter().map(|c| (c.passed, c.found.as_str(), c.hint.as_deref())).collect();
        assert_eq!(
            seen[..3],
            [(true, "yes", None), (false, "no", Some("try again")), (false, "it broke", Some("mend it"))]
        );
        assert!(!seen[3].0 && seen[3].1.contains("within"));
    }
}
