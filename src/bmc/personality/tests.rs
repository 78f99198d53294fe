//! What is learnt, and what is not.

use super::*;
use crate::bmc::{BootOverride, BootSeen, Power, Update, UpdateFrom};
use crate::error::Error;
use crate::machine::{Firmware, PowerAction};

const ON: Command = Command::Power { action: PowerAction::On };
const CYCLE: Command = Command::Power { action: PowerAction::Cycle };
const PXE: BootOverride = BootOverride { device: BootDevice::Network, firmware: Firmware::Uefi, persistent: false };

fn usual() -> Limits {
    Limits::default()
}

fn power(acted: bool, outcome: Outcome, millis: u64) -> Result<Answer> {
    Ok(Answer::Power { action: PowerAction::On, before: Power::Off, after: Power::On, acted, outcome, millis })
}

fn unconfirmed() -> Outcome {
    Outcome::Unconfirmed { why: "the BMC shows the machine as on all the time".into() }
}

fn not_applied() -> Result<Answer> {
    Err(Error::refused("bmc.not-applied", "it is off 15 s later"))
}

#[test]
fn a_slow_bmc_gets_the_time_it_needs_and_a_fast_one_the_usual() {
    let mut slow = Personality::default();
    assert_eq!(slow.limits(&usual()).confirm, usual().confirm);
    slow.note(&ON, &power(true, Outcome::Confirmed, 300));
    assert_eq!(slow.limits(&usual()).confirm, usual().confirm);
    slow.note(&ON, &power(true, Outcome::Confirmed, 11_000));
    assert_eq!(slow.limits(&usual()).confirm, Duration::from_secs(22));
    slow.note(&ON, &power(true, Outcome::Confirmed, 600_000));
    assert_eq!(slow.limits(&usual()).confirm, CONFIRM_MAX);
    // One that never gets there in time is waited for longest, until it has shown how long it takes.
    let mut never = Personality::default();
    never.note(&ON, &not_applied());
    assert_eq!(never.limits(&usual()).confirm, usual().confirm);
    never.note(&ON, &not_applied());
    assert_eq!(never.limits(&usual()).confirm, CONFIRM_MAX);
    never.note(&ON, &power(true, Outcome::Confirmed, 9_000));
    assert_eq!(never.limits(&usual()).confirm, Duration::from_secs(18));
}

#[test]
fn the_gap_of_a_cycle_is_not_waited_for_where_it_is_never_shown() {
    let mut gapless = Personality::default();
    for n in 0..HOPELESS {
        assert_eq!(gapless.limits(&usual()).cycle, usual().cycle, "after {n}");
        gapless.note(&CYCLE, &power(true, unconfirmed(), 6_000));
    }
    assert_eq!(gapless.limits(&usual()).cycle, usual().look);
    gapless.note(&CYCLE, &power(true, Outcome::Confirmed, 3_000));
    assert_eq!(gapless.limits(&usual()).cycle, usual().cycle);
}

#[test]
fn what_was_so_already_and_what_only_looks_says_nothing() {
    let mut quiet = Personality::default();
    quiet.note(&ON, &power(false, Outcome::Confirmed, 0));
    assert_eq!(quiet.acts["power on"].of(), 0);
    quiet.note(&Command::PowerStatus, &Err(Error::unreachable("bmc.unreachable", "silence")));
    assert!(quiet.failures.is_empty() && quiet.acts.len() == 1);
    quiet.note(&ON, &Err(Error::unreachable("bmc.unreachable", "silence")));
    assert_eq!((quiet.acts["power on"].failed, quiet.failures["bmc.unreachable"]), (1, 1));
}

#[test]
fn how_a_boot_override_is_kept_is_counted() {
    let mut forgetful = Personality::default();
    let set = |valid, persistent| {
        let seen = BootSeen { device: Some(BootDevice::Network), firmware: Firmware::Uefi, persistent, valid };
        Ok(Answer::SetBoot { wanted: PXE, seen: Some(seen), acted: true, outcome: Outcome::Confirmed })
    };
    forgetful.note(&Command::SetBoot(PXE), &set(false, false));
    forgetful.note(&Command::SetBoot(PXE), &set(true, true));
    let always = Command::SetBoot(BootOverride { persistent: true, ..PXE });
    forgetful.note(&always, &not_applied());
    assert_eq!(forgetful.valid, Share { yes: 1, no: 1 });
    assert_eq!(forgetful.duration_kept, Share { yes: 1, no: 1 });
    assert_eq!(forgetful.acts["boot device for good"].not_applied, 1);
}

#[test]
fn a_remedy_is_left_out_only_after_others_helped_in_its_place() {
    let mut known = Personality::default();
    for n in 0..HOPELESS {
        assert_eq!(known.useless().count(), 0, "after {n}");
        known.helped("cold_reset", ["retry", "warm_reset"]);
    }
    let useless: Vec<_> = known.useless().collect();
    assert_eq!(useless.len(), 2);
    assert_eq!(useless[1], ("warm_reset", "helped in 0 of 5 cases".to_owned()));
    known.helped("retry", []);
    assert_eq!(known.useless().map(|(rung, _)| rung).collect::<Vec<_>>(), ["warm_reset"]);
}

#[test]
fn boots_are_followed_or_not_and_old_counts_weigh_less() {
    let mut known = Personality::default();
    known.booted(90_000, 2);
    assert_eq!((known.followed, known.boot.mean()), (Share { yes: 1, no: 2 }, Some(90_000)));
    for _ in 0..1_000 {
        known.booted(30_000, 0);
        known.note(&ON, &power(true, Outcome::Confirmed, 500));
    }
    assert!(known.followed.of() <= OLD && known.followed.no == 0, "{:?}", known.followed);
    assert!(known.boot.longest_millis < 60_000 && known.boot.mean().unwrap() < 31_000, "{:?}", known.boot);
    assert!(known.acts["power on"].of() <= OLD);
}

#[test]
fn words_from_the_network_are_bounded() {
    let mut known = Personality::default();
    for n in 0..100 {
        known.spoke(&format!("{n}{}", "x".repeat(500)));
    }
    assert_eq!(known.protocols.len(), WORDS);
    assert!(known.protocols.keys().all(|word| word.len() <= 64));
    let text = serde_json::to_string(&known).unwrap();
    assert_eq!(serde_json::from_str::<Personality>(&text).unwrap(), known);
}

#[test]
fn an_update_has_the_time_that_updates_of_its_kind_take() {
    let update = Command::Update(Update { from: UpdateFrom::Url("http://10.0.0.1/x".into()), targets: Vec::new() });
    let done = || Ok(Answer::Done { what: "the update".into(), outcome: Outcome::Confirmed });
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let mut known = Personality::default();
    for n in 0..UPDATES {
        assert_eq!(known.allowed(&update, minutes(60)), minutes(60), "after {n}");
        known.note(&update, &done());
        known.took(&update, &done(), minutes(8));
    }
    assert_eq!(known.allowed(&update, minutes(60)), minutes(24));
    assert_eq!(known.acts["firmware update"].took.longest_millis, 480_000, "`rackline bmc personalities` shows it");
    // What failed says nothing of how long it takes, nor does another command.
    known.took(&update, &not_applied(), minutes(1));
    known.took(&ON, &done(), minutes(1));
    assert_eq!((known.acts["firmware update"].took.count, known.acts.len()), (UPDATES, 1));
    assert_eq!(known.allowed(&ON, minutes(1)), minutes(1));
    // Short ones leave room for a larger image, and long ones get more than is usual.
    let mut quick = Personality::default();
    (0..UPDATES).for_each(|_| quick.took(&update, &done(), Duration::from_secs(20)));
    assert_eq!(quick.allowed(&update, minutes(60)), minutes(15));
    known.took(&update, &done(), minutes(35));
    assert_eq!(known.allowed(&update, minutes(60)), minutes(105));
    // One that still ran when its time was over.
    quick.note(&update, &Err(Error::unreachable("bmc.task-late", "it still runs")));
    assert_eq!(quick.allowed(&update, minutes(60)), minutes(120));
}
