//! The ladder told as conversations, and two properties: every failure ends within a bounded time in a named cause, and no
//! rung is climbed more often than its budget allows.

use std::collections::BTreeMap;

use super::super::ladder::{Arrival, Climb, Means, Rung, Step};
use super::*;

pub fn means() -> impl Strategy<Value = Means> {
    let useless =
        prop::collection::btree_map(prop::sample::select(Rung::ALL.to_vec()), Just("0 of 9".to_owned()), 0..3);
    (any::<bool>(), any::<bool>(), useless).prop_map(|(second_door, outlets, useless)| Means {
        second_door,
        outlets,
        useless,
    })
}

fn everything() -> Means {
    Means { second_door: true, outlets: true, useless: BTreeMap::new() }
}

fn failure(code: &str) -> Problem {
    Problem { code: code.into(), title: format!("it went wrong ({code})"), hint: None, causes: vec![] }
}

/// A machine of the list that was powered on.
fn powered() -> Talk {
    let mut talk = Talk::new();
    talk.tell(expectation(true)).unwrap();
    talk.tell(Event::PowerRequested { action: PowerAction::On }).unwrap();
    talk
}

impl Talk {
    /// Lets the deadline pass; the rung that follows, if there is one.
    fn due(&mut self, means: Means) -> Option<Climb> {
        self.now = self.machine.deadline.unwrap() - 1000;
        self.tell(Event::Due { means }).unwrap();
        match self.actions.last() {
            Some(Action::Climb(climb)) if self.machine.deadline.is_some() => Some(climb.clone()),
            _ => None,
        }
    }

    fn climbs(&mut self, means: &Means, failing: Option<&str>) -> Vec<Rung> {
        let mut rungs = Vec::new();
        if let Some(code) = failing {
            let action = self.actions.last().unwrap().clone();
            self.tell(Event::ActionFailed { action, problem: failure(code) }).unwrap();
        }
        while let Some(climb) = self.due(means.clone()) {
            rungs.push(climb.rung);
            self.tell(Event::Climbing(climb.clone())).unwrap();
            let action = Action::Climb(climb);
            let told = match failing {
                Some(code) => Event::ActionFailed { action, problem: failure(code) },
                None => Event::ActionDone { action, answer: serde_json::Value::Null },
            };
            self.tell(told).unwrap();
        }
        rungs
    }
}

fn broken(talk: &Talk) -> &Problem {
    match &talk.machine.state {
        State::Broken { problem, .. } => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn silence_climbs_every_rung_and_ends_in_a_named_cause() {
    use Rung::*;
    let mut talk = powered();
    let first = talk.due(everything()).unwrap();
    assert_eq!((first.rung, first.number, first.of), (Retry, 1, 7));
    assert_eq!(
        Event::Climbing(first).sentence(),
        "rung 1 of 7: the same again, because: no DHCP request since power-on"
    );
    let rest = talk.climbs(&everything(), None);
    assert_eq!(rest, [Retry, OtherDoor, BootOrder, OffAndOn, WarmReset, ColdReset, Outlets]);
    let end = broken(&talk);
    assert_eq!(end.code, "boot.no-dhcp");
    assert!(end.causes.contains(&"tried: the same again, 2 times".to_owned()), "{end:?}");
    assert!(talk.now < 3 * 3_600_000, "{} s", talk.now / 1000);
    // The cause is mended: the ladder stands there anew.
    talk.tell(Event::RetryRequested).unwrap();
    assert_eq!(talk.machine.state, State::Expected);
    assert_eq!(talk.due(everything()).map(|climb| climb.rung), Some(Retry));
}

#[test]
fn a_rung_that_cannot_help_is_passed_over_and_the_reason_told() {
    use Rung::*;
    let mut talk = powered();
    let alone = Means::default();
    let useless = [(BootOrder, "0 of 6 on Dell iDRAC 2.92".to_owned())].into();
    let some = Means { useless, ..alone.clone() };
    talk.due(some.clone()).unwrap();
    talk.due(some.clone()).unwrap();
    let climb = talk.due(some.clone()).unwrap();
    assert_eq!((climb.rung, climb.number, climb.of), (OffAndOn, 2, 4));
    let told = Event::Climbing(climb).sentence();
    assert!(told.ends_with(
        "(skipped: through the BMC's other interface: its BMC has one interface; \
         the network first in the boot order: 0 of 6 on Dell iDRAC 2.92)"
    ));
    assert_eq!(talk.climbs(&some, None), [WarmReset, ColdReset]);
    assert!(broken(&talk).causes.iter().any(|c| c == "not tried: outlets off and on: no outlet is named for it"));
}

#[test]
fn the_kind_of_trouble_says_which_rungs_can_help() {
    use Rung::*;
    let climbs = |code| powered().climbs(&everything(), Some(code));
    assert_eq!(climbs("bmc.unreachable"), [Retry, Retry, OtherDoor, Outlets]);
    assert_eq!(climbs("bmc.auth"), [OtherDoor]);
    let unwilling = [Retry, Retry, OtherDoor, BootOrder, OffAndOn, WarmReset, ColdReset, Outlets];
    assert_eq!(climbs("bmc.not-applied"), unwilling);
    let mut talk = powered();
    talk.climbs(&everything(), Some("bmc.auth"));
    let end = broken(&talk);
    assert_eq!((end.code.as_str(), end.title.as_str()), ("bmc.auth", "could not start it: it went wrong (bmc.auth)"));
}

/// It boots, and its agent never comes: a new BMC or a cut outlet would not help that.
#[test]
fn a_machine_that_follows_its_bmc_is_not_blamed_on_it() {
    use Rung::*;
    let mut talk = powered();
    talk.tell(sighted(true)).unwrap();
    let mut rungs = Vec::new();
    while let Some(climb) = talk.due(everything()) {
        rungs.push(climb.rung);
        talk.tell(Event::Climbing(climb)).unwrap();
        talk.now += 60_000;
        talk.tell(sighted(true)).unwrap();
        assert_eq!(talk.machine.ladder.current, None);
    }
    assert_eq!(rungs, [Retry, Retry, OffAndOn]);
    assert_eq!(broken(&talk).code, "boot.no-agent");
}

#[test]
fn a_failure_pauses_before_the_next_rung_and_longer_each_time() {
    let mut talk = powered();
    let mut pauses = Vec::new();
    let action = talk.actions.last().unwrap().clone();
    talk.tell(Event::ActionFailed { action, problem: failure("bmc.unreachable") }).unwrap();
    loop {
        pauses.push((talk.machine.deadline.unwrap() - talk.now) / 1000);
        let Some(climb) = talk.due(everything()) else { break };
        talk.tell(Event::ActionFailed { action: Action::Climb(climb), problem: failure("bmc.unreachable") }).unwrap();
    }
    assert_eq!(pauses, [10, 30, 90, 270, 300]);
}

#[test]
fn a_rung_begins_once_and_not_when_the_machine_came_meanwhile() {
    let mut talk = powered();
    let climb = talk.due(everything()).unwrap();
    let action = Action::Climb(climb.clone());
    assert!(still_wanted(&talk.machine, &action, talk.now));
    talk.tell(Event::Climbing(climb.clone())).unwrap();
    assert!(matches!(talk.tell(Event::Climbing(climb)), Err(Refused::State(_))));
    // After a restart it is still to be brought to its end, until the machine is seen.
    assert!(talk.machine.ladder.begun && still_wanted(&talk.machine, &action, talk.now));
    talk.tell(sighted(true)).unwrap();
    assert!(!still_wanted(&talk.machine, &action, talk.now));

    let mut talk = powered();
    let climb = talk.due(everything()).unwrap();
    talk.tell(sighted(true)).unwrap();
    assert!(matches!(talk.tell(Event::Climbing(climb)), Err(Refused::State(_))));
}

#[test]
fn what_is_left_of_an_interrupted_rung_takes_nothing_down() {
    for (rung, network) in Rung::ALL.into_iter().flat_map(|rung| [(rung, true), (rung, false)]) {
        let left: Vec<Step> = rung.steps(network).into_iter().filter_map(Step::again).collect();
        let harmless =
            |step: &Step| matches!(step, Step::OutletsOn | Step::BootNetwork { .. } | Step::Power(PowerAction::On));
        assert!(left.iter().all(harmless), "{rung:?}: {left:?}");
        assert_eq!(left.last(), Some(&Step::Power(PowerAction::On)), "{rung:?} leaves it off");
        assert_eq!(rung == Rung::Outlets, left.contains(&Step::OutletsOn));
    }
}

#[test]
fn the_old_system_is_no_answer_to_a_network_boot() {
    let mut talk = delivered();
    talk.tell(Event::ReleaseRequested).unwrap();
    talk.tell(hello(Mode::Resident, 7)).unwrap();
    assert!(talk.machine.ladder.asked.is_some());
    talk.now += 60_000;
    talk.tell(sighted(true)).unwrap();
    assert_eq!(talk.machine.ladder.asked, None);
}

#[test]
fn a_machine_without_bmc_has_its_outlets() {
    let mut talk = Talk::new();
    talk.tell(expectation(false)).unwrap();
    talk.tell(sighted(true)).unwrap();
    assert_eq!(talk.climbs(&everything(), None), [Rung::Outlets]);
    let mut talk = Talk::new();
    talk.tell(expectation(false)).unwrap();
    talk.tell(sighted(true)).unwrap();
    assert_eq!(talk.climbs(&Means::default(), None), []);
    assert_eq!(broken(&talk).code, "boot.no-agent");
}

/// What is told to the BMC's personality: only when the machine comes, and then of all that was tried before.
#[test]
fn an_arrival_says_what_brought_the_machine_and_what_did_not() {
    let arrival = |talk: &mut Talk, event| {
        let before = talk.machine.clone();
        talk.tell(event).unwrap();
        Arrival::of(talk.now, &before, &talk.machine)
    };
    let mut talk = powered();
    let asked = talk.now;
    let first = arrival(&mut talk, sighted(true)).unwrap();
    let millis = (talk.now - asked) as u64;
    assert_eq!(first, Arrival { millis, unheeded: 0, by: None, after: vec![] });

    let mut talk = powered();
    for _ in 0..3 {
        talk.now = talk.machine.deadline.unwrap() - 1000;
        assert_eq!(arrival(&mut talk, Event::Due { means: everything() }), None);
        let climb = talk.machine.ladder.current.clone().unwrap();
        assert_eq!(arrival(&mut talk, Event::Climbing(climb)), None);
    }
    let late = arrival(&mut talk, sighted(true)).unwrap();
    assert_eq!((late.unheeded, late.by, late.after), (3, Some(Rung::OtherDoor), vec![Rung::Retry]));
    // A machine that never comes says nothing of its BMC.
    let mut talk = powered();
    while talk.machine.deadline.is_some() {
        talk.now = talk.machine.deadline.unwrap() - 1000;
        assert_eq!(arrival(&mut talk, Event::Due { means: everything() }), None);
    }
}

proptest! {
    /// Whatever fails how, with whatever means at each deadline: it ends, in time, and within every budget.
    #[test]
    fn every_failure_ends(
        start in 0..4usize,
        ways in prop::collection::vec((means(), prop::sample::select(vec![
            "", "bmc.unreachable", "bmc.auth", "bmc.not-applied", "sighted",
        ])), 24)
    ) {
        let mut talk = match start {
            0 => powered(),
            1 => { let mut talk = powered(); talk.tell(sighted(true)).unwrap(); talk }
            2 => Talk::until_verifying(Role::Kvm),
            _ => { let mut talk = delivered(); talk.tell(Event::ReleaseRequested).unwrap(); talk }
        };
        let began = talk.now;
        let mut climbed: BTreeMap<(&str, Rung), u32> = BTreeMap::new();
        for (means, how) in ways {
            if talk.machine.deadline.is_none() {
                break;
            }
            let state = talk.machine.state.name();
            let Some(climb) = talk.due(means) else { break };
            let times = climbed.entry((state, climb.rung)).or_default();
            *times += 1;
            prop_assert!(*times <= climb.rung.budget(), "{climb:?}");
            prop_assert!((1..=climb.of).contains(&climb.number) && climb.of <= 7, "{climb:?}");
            talk.tell(Event::Climbing(climb.clone())).unwrap();
            match how {
                "" => {}
                "sighted" => { talk.now += 60_000; let _ = talk.tell(sighted(true)); }
                code => {
                    talk.tell(Event::ActionFailed { action: Action::Climb(climb), problem: failure(code) }).unwrap();
                }
            }
        }
        prop_assert!(matches!(talk.machine.state, State::Broken { .. }), "{:?}", talk.machine.state);
        // Nine rungs in each of two states, each with the longest wait and the longest steps.
        prop_assert!(talk.now - began < 18 * 70 * 60_000, "{} min", (talk.now - began) / 60_000);
    }
}
