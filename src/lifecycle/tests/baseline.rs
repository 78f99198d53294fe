//! Commissioning with a firmware baseline: when the machine goes on, when it is looked at once more, and when it is held.

use super::super::baseline::{Attempt, BaselineEnd, BaselineNews, Finding};
use super::super::stage::BASELINE;
use super::*;

fn attempt(what: &str) -> Attempt {
    Attempt { what: what.into(), tries: 1, begun: 1, ended: Some(2), failed: None, needs_boot: true }
}

fn finding() -> Finding {
    Finding {
        what: "power-profile (SysProfile)".into(),
        expected: "PerfOptimized".into(),
        found: "Custom".into(),
        cause: "it was written and accepted, and is not so after the reboot".into(),
    }
}

fn news(attempts: Vec<Attempt>, end: Option<(Vec<Finding>, bool)>) -> Event {
    Event::Baseline(BaselineNews {
        baseline: Some("Dell PowerEdge R750".into()),
        attempts,
        sentence: "settings: SysProfile Custom -> PerfOptimized".into(),
        end: end.map(|(findings, hold)| BaselineEnd { findings, hold }),
    })
}

pub fn nothing_to_do() -> Event {
    news(Vec::new(), Some((Vec::new(), false)))
}

pub fn any_news() -> impl Strategy<Value = Event> {
    let end = prop_oneof![
        Just(None),
        Just(Some((vec![], false))),
        Just(Some((vec![finding()], false))),
        Just(Some((vec![finding()], true)))
    ];
    (0..2usize, end).prop_map(|(count, end)| news(vec![attempt("settings"); count], end))
}

/// As far as the inventory.
fn commissioning(bmc: bool) -> Talk {
    let mut talk = Talk::new();
    for event in [expectation(bmc), order(Role::Kvm), sighted(true), hello(Mode::Ram, 1)] {
        talk.tell(event).unwrap();
    }
    let number = talk.machine.number;
    talk.tell(Event::Reported { number, outcome: commissioned(), findings: Vec::new() }).unwrap();
    talk
}

#[test]
fn without_a_bmc_nothing_is_looked_at() {
    let talk = commissioning(false);
    assert_eq!((talk.machine.state.name(), talk.actions), ("deploying", vec![]));
}

#[test]
fn a_machine_that_is_as_it_should_be_goes_on_at_once() {
    let mut talk = commissioning(true);
    assert_eq!(talk.actions, [Action::BmcSetup, Action::Baseline]);
    assert_eq!(talk.machine.state, State::Commissioning);
    assert!(matches!(task(&talk.machine, Mode::Ram), Task::Wait { .. }));
    assert!(talk.machine.waiting().is_some_and(|w| w.reason.contains("firmware")));
    talk.tell(nothing_to_do()).unwrap();
    assert_eq!(task(&talk.machine, Mode::Ram), Task::Deploy);
    assert_eq!(talk.machine.baseline.as_ref().unwrap().name.as_deref(), Some("Dell PowerEdge R750"));
    // What comes late is not wanted, so that nothing is begun after it.
    assert!(matches!(talk.tell(nothing_to_do()), Err(Refused::State(_))));
}

#[test]
fn what_was_changed_is_taken_down_again_by_the_agent_of_the_new_boot() {
    let mut talk = commissioning(true);
    talk.tell(news(vec![attempt("settings")], None)).unwrap();
    talk.tell(news(vec![attempt("settings"), attempt("reboot")], None)).unwrap();
    for boot in 2..8 {
        talk.now += 300_000;
        talk.tell(sighted(true)).unwrap();
        talk.tell(hello(Mode::Ram, boot)).unwrap();
        // The reboots are ours, and no loop.
        talk.tell(news(vec![attempt("settings"), attempt("reboot")], None)).unwrap();
        assert_eq!((talk.machine.state.name(), talk.machine.boots), ("commissioning", 0));
    }
    talk.tell(news(vec![attempt("settings"), attempt("reboot")], Some((vec![finding()], false)))).unwrap();
    assert_eq!(task(&talk.machine, Mode::Ram), Task::Commission);
    talk.report(commissioned()).unwrap();
    assert_eq!(task(&talk.machine, Mode::Ram), Task::Deploy);
    assert_eq!(talk.actions, [Action::BmcSetup, Action::Baseline]);
    assert_eq!(talk.machine.baseline.as_ref().unwrap().findings, [finding()]);
}

#[test]
fn a_machine_that_must_get_there_and_does_not_is_held_with_expected_and_found() {
    let mut talk = commissioning(true);
    talk.tell(news(vec![attempt("settings")], Some((vec![finding()], true)))).unwrap();
    let State::Broken { problem, stage } = &talk.machine.state else { panic!("{:?}", talk.machine.state) };
    assert_eq!((problem.code.as_str(), stage.as_str()), ("firmware.baseline", "commissioning"));
    assert!(problem.title.contains("is Custom, expected PerfOptimized"), "{}", problem.title);
    // Mended, it is looked at anew.
    talk.tell(Event::RetryRequested).unwrap();
    talk.now += 60_000;
    talk.tell(sighted(true)).unwrap();
    talk.tell(hello(Mode::Ram, 9)).unwrap();
    assert_eq!(task(&talk.machine, Mode::Ram), Task::Commission);
    talk.report(commissioned()).unwrap();
    assert_eq!(talk.machine.state, State::Deploying);
}

#[test]
fn a_baseline_without_end_ends_with_its_deadline() {
    let mut talk = commissioning(true);
    talk.tell(news(vec![attempt("settings")], None)).unwrap();
    talk.now += BASELINE;
    talk.tell(Event::Due { means: Default::default() }).unwrap();
    assert!(matches!(&talk.machine.state, State::Broken { problem, .. } if problem.code == "firmware.silent"));
    assert!(!still_wanted(&talk.machine, &Action::Baseline, 0));
}
