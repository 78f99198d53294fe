//! Machines that boot again and again: held with the reason, and a delivered host never.

use super::*;

/// Boots from the network: the ROM asks, then iPXE, `seconds` after the last fact.
fn boots(talk: &mut Talk, seconds: i64, limit: u32) {
    talk.now += seconds * 1000;
    for _ in 0..2 {
        let _ = talk.tell(sighted_within(true, limit));
        talk.now += 4_000;
    }
}

fn looped(talk: &Talk) -> Option<&str> {
    match &talk.machine.state {
        State::Broken { problem, .. } if problem.code == "boot.loop" => Some(&problem.title),
        _ => None,
    }
}

#[test]
fn a_machine_that_boots_for_ever_is_held_with_the_reason() {
    // However fast it goes round, and whatever the site allows.
    for (seconds, limit) in [(25, 6), (60, 6), (600, 6), (60, 3), (60, 20)] {
        let mut talk = Talk::new();
        talk.tell(expectation(false)).unwrap();
        // The first one takes it from expected to seen, and is not counted there.
        for _ in 0..=limit + 1 {
            assert_eq!(looped(&talk), None, "every {seconds} s, {limit} allowed");
            boots(&mut talk, seconds, limit);
        }
        assert!(looped(&talk).is_some_and(|t| t.contains(&format!("{} times", limit + 1))), "{:?}", talk.machine.state);
        assert!(matches!(boot_choice(&talk.machine), BootChoice::Hold { .. }));
    }
}

#[test]
fn an_agent_that_never_gets_further_is_a_loop_too() {
    let mut talk = Talk::new();
    talk.tell(expectation(false)).unwrap();
    for n in 0..9 {
        boots(&mut talk, 60, 6);
        let _ = talk.tell(hello(Mode::Ram, n));
    }
    assert!(matches!(&talk.machine.state, State::Broken { stage, .. } if stage == "commissioning"));
    assert!(looped(&talk).is_some());
}

#[test]
fn a_disk_that_does_not_start_is_a_loop_before_delivery() {
    let mut talk = Talk::until_verifying(Role::Kvm);
    for _ in 0..7 {
        assert_eq!(boot_choice(&talk.machine), BootChoice::LocalDisk);
        boots(&mut talk, 60, 6);
    }
    assert!(looped(&talk).is_some_and(|t| t.contains("instead of starting from its own disk")));
    // Whereas a system that reports has arrived, however often it is restarted for its checks.
    let mut talk = Talk::until_verifying(Role::Kvm);
    for n in 0..20 {
        boots(&mut talk, 60, 6);
        talk.tell(hello(Mode::Resident, n)).unwrap();
    }
    assert_eq!(talk.machine.state, State::Verifying);
}

#[test]
fn a_delivered_host_keeps_its_disk_and_the_operator_hears_that_it_comes_back() {
    let mut talk = delivered();
    for _ in 0..6 {
        boots(&mut talk, 60, 6);
    }
    assert_eq!(talk.machine.waiting(), None);
    boots(&mut talk, 60, 6);
    let waiting = talk.machine.waiting().unwrap();
    assert!(waiting.reason.contains("came back to the network 7 times"), "{}", waiting.reason);
    assert!(matches!(talk.machine.state, State::Delivered { .. }));
    assert_eq!(boot_choice(&talk.machine), BootChoice::LocalDisk);
    // For a week: it stays said, and the book does not fill up.
    let told = talk.accepted.len();
    for _ in 0..7 * 24 * 60 {
        boots(&mut talk, 52, 6);
        assert!(talk.machine.comes_back);
    }
    assert!(talk.accepted.len() - told <= 7 * 24 * 6);
    talk.tell(hello(Mode::Resident, 9)).unwrap();
    assert_eq!(talk.machine.waiting(), None);
}

#[test]
fn a_broken_machine_that_goes_on_booting_does_not_fill_the_book() {
    let mut talk = Talk::new();
    talk.tell(expectation(false)).unwrap();
    while looped(&talk).is_none() {
        boots(&mut talk, 60, 6);
    }
    let told = talk.accepted.len();
    for _ in 0..24 * 60 {
        boots(&mut talk, 52, 6);
    }
    assert!(talk.accepted.len() - told <= 24 * 6 + 7, "{}", talk.accepted.len() - told);
    // A retry starts the count anew.
    talk.tell(Event::RetryRequested).unwrap();
    boots(&mut talk, 60, 6);
    assert_eq!((&talk.machine.state, talk.machine.boots), (&State::Seen, 0));
}

#[test]
fn boots_far_apart_are_no_loop() {
    let mut talk = Talk::new();
    for event in [expectation(false), sighted(true), hello(Mode::Ram, 1)] {
        talk.tell(event).unwrap();
    }
    talk.report(commissioned()).unwrap();
    for n in 2..50 {
        boots(&mut talk, 7 * 3600, 6);
        talk.tell(hello(Mode::Ram, n)).unwrap();
    }
    assert_eq!(talk.machine.state, State::Ready);
}
