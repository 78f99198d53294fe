//! Delivery checks on the installed host: what was ordered is what runs here, and it does its work.
//!
//! What is asked for came with the order ([`crate::check`]); how each thing is measured is here, one function for each kind.
//! Each check says what was expected and what was found, takes its own time and has its own deadline; one that fails does
//! not stop the others, so that one visit shows all that is wrong.

mod docker;
mod guest;
mod host;
mod kvm;
mod own;
mod ovs;
mod tls;
mod uplinks;

use std::future::Future;
use std::time::{Duration, Instant};

use super::Agent;
use super::progress::Meter;
use super::setup;
use crate::check::{Declared, Kind};
use crate::error::Result;
use crate::link::{Check, Measured, Outcome, Verify};
use crate::machine::Role;

pub async fn check(agent: &Agent, order: &Verify, meter: &Meter) -> Result<Outcome> {
    let mut visit = Visit { meter, asked: &order.checks, checks: Vec::new(), measured: Vec::new() };
    host::check(agent, order, &mut visit).await;
    visit.checks.extend(setup::verify(agent, &order.setup, meter).await);
    let served = order.tls && tls::prepare(agent, order, &mut visit).await;
    for role in order.role.iter() {
        match role {
            Role::Kvm => kvm::check(&agent.options.roots, &mut visit).await,
            Role::Docker => docker::check(&mut visit).await,
            Role::Ovs => ovs::check(&agent.options.roots, &mut visit).await,
        }
    }
    own::check(&mut visit).await;
    if served {
        tls::check(order, &mut visit).await;
    }
    Ok(Outcome::Checked { checks: visit.checks, measured: visit.measured })
}

/// What was found, and whether it is what was expected.
#[derive(Debug, Clone, PartialEq)]
enum Found {
    Good(String),
    Bad(String),
    /// Good where it keeps to the bound that is declared; in the unit of the kind. The sentence is for people.
    Value(f64, String),
    /// There is nothing to look at, for this reason.
    Skipped(String),
}

impl Found {
    fn when(good: bool, found: impl Into<String>) -> Self {
        if good { Self::Good(found.into()) } else { Self::Bad(found.into()) }
    }

    fn bad(found: impl Into<String>) -> Self {
        Self::Bad(found.into())
    }
}

/// The beginning of what a program said, for a sentence about what cannot be read.
fn said(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    match line.chars().take(80).collect::<String>() {
        line if line.is_empty() => "nothing".into(),
        line => format!("{line:?}"),
    }
}

struct Visit<'a> {
    meter: &'a Meter,
    asked: &'a [Declared],
    checks: Vec<Check>,
    measured: Vec<Measured>,
}

impl<'a> Visit<'a> {
    /// What is declared of a kind, for an order that asks for it.
    fn asked(&self, kind: Kind) -> impl Iterator<Item = &'a Declared> + use<'a> {
        self.asked.iter().filter(move |declared| declared.kind == kind)
    }

    fn asks(&self, kind: Kind) -> bool {
        self.asked(kind).next().is_some()
    }

    /// Answers what is asked of a kind by `work`; nothing is done where nothing is asked. Whether it was asked and passed.
    async fn ask(&mut self, kind: Kind, work: impl Future<Output = Result<Found>>) -> bool {
        match self.asked(kind).next() {
            Some(declared) => self.answer(declared, work).await,
            None => false,
        }
    }

    /// Answers one check by `work`, which is dropped at the deadline. Whether it passed.
    async fn answer(&mut self, declared: &Declared, work: impl Future<Output = Result<Found>>) -> bool {
        self.meter.step(format!("checking {}", declared.id), 0);
        let deadline = Duration::try_from_secs_f64(declared.deadline_seconds).unwrap_or(Duration::ZERO);
        let start = Instant::now();
        let answer = tokio::time::timeout(deadline, work).await;
        let seconds = start.elapsed().as_secs_f64();
        let mut hint = Some(declared.next.clone());
        let found = match answer {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                hint = error.next_step().map(str::to_owned).or(hint);
                Found::Bad(error.message().to_owned())
            }
            Err(_) => Found::Bad(format!("no answer within {} s", deadline.as_secs_f64())),
        };
        let skipped = matches!(found, Found::Skipped(_));
        let unit = declared.kind.unit();
        let (passed, found, value) = match found {
            Found::Good(found) => (true, found, None),
            Found::Bad(found) => (false, found, None),
            Found::Skipped(why) => (false, format!("skipped: {why}"), None),
            Found::Value(value, found) => (declared.bound.is_none_or(|b| b.holds(value)), found, Some(value)),
        };
        let check = Check {
            id: declared.id.clone(),
            passed,
            skipped,
            expected: declared.expected.clone(),
            found,
            value,
            unit: value.and(unit).map(|unit| unit.name().to_owned()),
            severity: declared.severity,
            who: declared.who,
            why: match &declared.changed {
                Some(changed) => format!("{} ({changed})", declared.why),
                None => declared.why.clone(),
            },
            seconds,
            hint: hint.filter(|_| !passed && !skipped),
        };
        if check.failed() {
            super::console::say(format!("{}: expected {}, found {}", check.id, check.expected, check.found));
        }
        let measured = value.zip(check.unit.clone());
        self.measured.extend(measured.map(|(value, unit)| Measured::new(check.id.clone(), value, unit)));
        self.checks.push(check);
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Bound, Unit};
    use crate::error::Error;
    use crate::machine::{Severity, Who};

    fn declared(id: &str, bound: Option<Bound>) -> Declared {
        Declared {
            id: id.into(),
            kind: Kind::Command,
            role: None,
            why: "it matters".into(),
            how: "asked".into(),
            expected: "yes".into(),
            bound,
            severity: Severity::Warning,
            who: Who::Network,
            next: "try again".into(),
            deadline_seconds: 0.1,
            disruptive: false,
            subject: None,
            changed: Some("slow here".into()),
        }
    }

    #[tokio::test]
    async fn good_bad_failed_and_late_are_told_apart() {
        let meter = Meter::new(1);
        let plain = declared("a", None);
        let mut visit = Visit { meter: &meter, asked: &[], checks: Vec::new(), measured: Vec::new() };
        assert!(visit.answer(&plain, async { Ok(Found::Good("yes".into())) }).await);
        assert!(!visit.answer(&plain, async { Ok(Found::Bad("no".into())) }).await);
        let error = async { Err(Error::config("x", "it broke").hint("mend it")) };
        assert!(!visit.answer(&plain, error).await);
        assert!(!visit.answer(&plain, async { Ok(Found::Skipped("no bridge".into())) }).await);
        assert!(!visit.answer(&plain, std::future::pending()).await);
        assert!(!visit.ask(Kind::HostName, async { panic!("nobody asks for it") }).await);
        let seen: Vec<_> = visit.checks.iter().map(|c| (c.passed, c.found.as_str(), c.hint.as_deref())).collect();
        assert_eq!(
            seen[..4],
            [
                (true, "yes", None),
                (false, "no", Some("try again")),
                (false, "it broke", Some("mend it")),
                (false, "skipped: no bridge", None),
            ]
        );
        assert!(!seen[4].0 && seen[4].1.contains("within 0.1 s"));
        let failed: Vec<bool> = visit.checks.iter().map(Check::failed).collect();
        assert_eq!(failed, [false, true, true, false, true]);
        assert!(!visit.checks.iter().any(Check::holds_back), "a warning holds nothing back");
        assert_eq!(visit.checks[0].why, "it matters (slow here)");
    }

    #[tokio::test]
    async fn a_value_is_held_to_its_bound_and_kept() {
        let meter = Meter::new(1);
        let bound = Bound { at_least: None, at_most: Some(7.0), unit: Unit::Count };
        let bounded = declared("b", Some(bound));
        let mut visit = Visit { meter: &meter, asked: &[], checks: Vec::new(), measured: Vec::new() };
        for (value, passes) in [(7.0, true), (7.5, false), (f64::NAN, false)] {
            assert_eq!(visit.answer(&bounded, async { Ok(Found::Value(value, "so much".into())) }).await, passes);
        }
        assert_eq!(visit.measured[1].value, 7.5);
        assert_eq!((visit.checks[1].value, visit.checks[1].unit.as_deref()), (Some(7.5), Some("")));
    }

    #[test]
    fn what_cannot_be_read_is_quoted_in_part() {
        assert_eq!(said(" \n"), "nothing");
        assert_eq!(said("\u{7}x\nmore"), "\"\\u{7}x\"");
        assert!(said(&"z".repeat(5000)).len() < 90);
    }
}
