//! The rules told as conversations, and three properties over generated ones: every pair is answered, a replay gives the
//! same machine, and nothing is delivered without its checks.

mod baseline;
mod burn;
mod ladder;
mod loops;

use proptest::prelude::*;

use super::*;
use crate::check::Set;
use crate::link::{Check, Deployed, Measured, Outcome, Problem};
use crate::machine::{
    ClientArch, Digest, Disk, Finding, Firmware, Inventory, MacAddr, MachineId, PowerAction, Role, Serial, Severity,
    TargetRule, Who,
};

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);

fn born() -> Machine {
    Machine::new(MachineId(uuid::Uuid::nil()), "m1".into(), 0, State::Expected)
}

fn expectation(bmc: bool) -> Event {
    Event::Expected(Expectation {
        mac: Some(MAC),
        bmc: bmc.then(|| BmcAccount { address: "10.77.1.1:623".parse().unwrap(), redfish: None, user: "admin".into() }),
        ..Expectation::new("m1", Serial::parse("7XK2M13").unwrap())
    })
}

fn sighted(boots: bool) -> Event {
    sighted_within(boots, 6)
}

fn sighted_within(boots: bool, limit: u32) -> Event {
    let arch = Some(ClientArch::UefiX64);
    Event::Sighted(Sighting { mac: MAC, uuid: None, arch, address: "10.77.2.1".parse().ok(), boots, limit, port: None })
}

fn sighted_on_a_port(swapped: bool) -> Event {
    let port = if swapped { "Ethernet7" } else { "Ethernet9" };
    let at = SwitchPort { switch: "c-tor1".into(), port: port.into() };
    let port = Some(SeenPort { at, expects: None });
    Event::Sighted(Sighting { mac: MAC, uuid: None, arch: None, address: None, boots: true, limit: 6, port })
}

fn hello(mode: Mode, boot: u128) -> Event {
    Event::Hello {
        mode,
        boot_id: uuid::Uuid::from_u128(boot),
        serial: Serial::parse("7XK2M13"),
        uuid: None,
        macs: vec![MAC],
        agent_version: "0.1.0".into(),
        address: None,
        arch: None,
        name: None,
        seen_on: Default::default(),
    }
}

fn order(role: Role) -> Event {
    Event::Ordered(Order {
        role: role.into(),
        image_name: "kvm 1".into(),
        manifest: Digest([1; 32]),
        hostname: "m1".parse().unwrap(),
        target: TargetRule::SmallestSsd,
        ssh_keys: vec![],
        compare_with_dd: false,
        setup: Default::default(),
    })
}

fn inventory() -> Inventory {
    Inventory {
        firmware: Firmware::Uefi,
        disks: vec![Disk {
            name: "vda".into(),
            serial: Serial::parse("DSK1"),
            size_bytes: 10 << 30,
            transport: "virtio".into(),
            ..Disk::default()
        }],
        kernel: "6.1".into(),
        ..Inventory::default()
    }
}

fn commissioned() -> Outcome {
    let measured = vec![Measured::new("cpu.blake3", 1.0, "MB/s")];
    Outcome::Commissioned { inventory: Box::new(inventory()), measured, bmc_user_made: false }
}

fn deployed(digest: u8) -> Outcome {
    Outcome::Deployed(Box::new(Deployed {
        manifest: Digest([digest; 32]),
        disk: "vda".into(),
        serial: Serial::parse("DSK1"),
        partitions: vec![],
        written_bytes: 1,
        fetched_bytes: 1,
        peer_bytes: 0,
        appliance_bytes: 1,
        resumed_bytes: 0,
        reused_bytes: 0,
        write_seconds: 1.0,
        read_back_bytes: 1,
        read_back_seconds: 1.0,
        dd_bytes_per_second: None,
    }))
}

fn checked(role: Role, failing: Option<&str>) -> Outcome {
    let roles = role.into();
    let checks = Set::built_in().of(&roles).map(|declared| Check {
        id: declared.id.clone(),
        passed: Some(declared.id.as_str()) != failing,
        expected: "yes".into(),
        found: "no".into(),
        ..Check::default()
    });
    Outcome::Checked { checks: checks.collect(), measured: vec![] }
}

/// Runs a conversation, one second between facts; reports carry the current number.
struct Talk {
    machine: Machine,
    now: Millis,
    actions: Vec<Action>,
    accepted: Vec<(Millis, Event)>,
}

impl Talk {
    fn new() -> Self {
        Self { machine: born(), now: 0, actions: vec![], accepted: vec![] }
    }

    fn tell(&mut self, event: Event) -> Result<(), Refused> {
        self.now += 1000;
        let step = decide(self.now, &self.machine, &event)?;
        self.machine = step.machine;
        self.actions.extend(step.actions);
        self.accepted.push((self.now, event));
        Ok(())
    }

    /// A machine with a BMC is looked at when its inventory is there; nothing is found that has to be done.
    fn report(&mut self, outcome: Outcome) -> Result<(), Refused> {
        let number = self.machine.number;
        self.tell(Event::Reported { number, outcome, findings: Vec::new() })?;
        match self.machine.baseline_running() {
            Some(_) => self.tell(baseline::nothing_to_do()),
            None => Ok(()),
        }
    }

    fn until_verifying(role: Role) -> Self {
        let mut talk = Self::new();
        for event in [expectation(true), order(role), sighted(true), hello(Mode::Ram, 1)] {
            talk.tell(event).unwrap();
        }
        talk.report(commissioned()).unwrap();
        talk.report(deployed(1)).unwrap();
        talk
    }
}

#[test]
fn a_listed_bmc_gets_a_password_of_its_own_when_it_is_enlisted_and_once() {
    let wanted = Event::BmcPasswordWanted { own: true };
    let changed = Event::ActionDone { action: Action::ChangeBmcPassword, answer: serde_json::json!({}) };
    let mut talk = Talk::new();
    assert_eq!(talk.tell(wanted.clone()), Err(Refused::Nothing), "it has no BMC");
    talk.tell(expectation(true)).unwrap();
    talk.tell(wanted.clone()).unwrap();
    assert_eq!(talk.tell(wanted.clone()), Err(Refused::Nothing));
    talk.tell(sighted(true)).unwrap();
    talk.tell(hello(Mode::Ram, 1)).unwrap();
    assert!(talk.actions.is_empty(), "nobody has said yet whose BMC it is");
    talk.report(commissioned()).unwrap();
    // With the new password its firmware is looked at.
    assert_eq!(talk.actions, [Action::ChangeBmcPassword, Action::BmcSetup, Action::Baseline]);
    assert!(still_wanted(&talk.machine, &Action::ChangeBmcPassword, 0));
    talk.tell(changed).unwrap();
    assert!(!still_wanted(&talk.machine, &Action::ChangeBmcPassword, 0));
    for own in [true, false] {
        assert_eq!(talk.tell(Event::BmcPasswordWanted { own }), Err(Refused::Nothing), "what is done is done");
    }
    // The same list again changes nothing, a list with another BMC does.
    assert_eq!(talk.tell(expectation(true)), Err(Refused::Nothing));
    let Event::Expected(mut other) = expectation(true) else { panic!() };
    other.bmc = other.bmc.map(|bmc| BmcAccount { address: "10.77.1.2:623".parse().unwrap(), ..bmc });
    talk.tell(Event::Expected(other)).unwrap();
    talk.tell(wanted).unwrap();
    assert_eq!(talk.actions.last(), Some(&Action::ChangeBmcPassword), "it waits as ready");
}

fn finding(severity: Severity, part: &str) -> Finding {
    Finding {
        id: "disk.health".into(),
        part: part.into(),
        severity,
        cause: "the drive says that it fails".into(),
        expected: "passed".into(),
        found: "failed".into(),
        who: Who::Supplier,
        next: "exchange the drive".into(),
    }
}

#[test]
fn a_fault_keeps_a_machine_out_of_the_pool_and_a_warning_does_not() {
    for (severity, end) in [(Severity::Warning, "ready"), (Severity::Fault, "broken")] {
        let mut talk = Talk::new();
        for event in [expectation(false), sighted(true), hello(Mode::Ram, 1)] {
            talk.tell(event).unwrap();
        }
        let findings = vec![finding(severity, "disk sda"), finding(Severity::Note, "disk sdb")];
        let number = talk.machine.number;
        talk.tell(Event::Reported { number, outcome: commissioned(), findings }).unwrap();
        assert_eq!((talk.machine.state.name(), talk.machine.findings.len()), (end, 2));
        if let State::Broken { problem, .. } = &talk.machine.state {
            assert_eq!(problem.title, "disk sda: the drive says that it fails");
            assert!(problem.hint.as_ref().is_some_and(|hint| hint.starts_with("exchange the drive")));
        }
    }
}

#[test]
fn from_the_list_to_the_passport_in_one_network_boot() {
    let mut talk = Talk::new();
    talk.tell(expectation(true)).unwrap();
    talk.tell(order(Role::Kvm)).unwrap();
    talk.tell(Event::PowerRequested { action: PowerAction::On }).unwrap();
    assert_eq!(talk.actions, [Action::NetworkBoot]);
    talk.tell(sighted(true)).unwrap();
    talk.tell(hello(Mode::Ram, 1)).unwrap();
    assert_eq!(task(&talk.machine, Mode::Ram), Task::Commission);
    talk.report(commissioned()).unwrap();
    assert_eq!(task(&talk.machine, Mode::Ram), Task::Deploy);
    talk.report(deployed(1)).unwrap();
    assert!(matches!(task(&talk.machine, Mode::Ram), Task::Reboot { .. }));
    assert_eq!(boot_choice(&talk.machine), BootChoice::LocalDisk);
    talk.now += 30_000;
    talk.tell(sighted(true)).unwrap();
    talk.tell(hello(Mode::Resident, 2)).unwrap();
    assert_eq!(task(&talk.machine, Mode::Resident), Task::Verify);
    talk.report(checked(Role::Kvm, None)).unwrap();
    assert_eq!(talk.actions, [Action::NetworkBoot, Action::BmcSetup, Action::Baseline, Action::SignPassport]);
    talk.tell(Event::PassportSigned { passport: serde_json::json!({}) }).unwrap();
    assert!(matches!(talk.machine.state, State::Delivered { .. }));
    assert_eq!(boot_choice(&talk.machine), BootChoice::LocalDisk);
    let stages: Vec<&str> = talk.machine.times.iter().map(|t| t.state.as_str()).collect();
    let way = ["expected", "seen", "enlisted", "commissioning", "ready", "allocated", "deploying", "verifying"];
    assert_eq!(stages, way);
}

/// As the store has them from before there were port maps.
#[test]
fn older_events_are_still_read() {
    let mac = "52:54:00:00:00:01";
    for old in [
        serde_json::json!({"event": "sighted", "mac": mac, "uuid": null, "arch": "bios", "address": null, "boots": true}),
        serde_json::json!({"event": "expected", "name": "m1", "serial": "7XK2M13", "mac": mac, "place": null, "bmc": null}),
        serde_json::json!({"event": "hello", "mode": "ram", "boot_id": uuid::Uuid::nil(), "serial": "7XK2M13", "uuid": null,
            "macs": [mac], "agent_version": "0.1.0", "address": null, "arch": null, "name": null}),
    ] {
        let event: Event = serde_json::from_value(old.clone()).unwrap_or_else(|e| panic!("{old}: {e}"));
        assert!(decide(1, &born(), &event).is_ok());
    }
    let mut machine = serde_json::to_value(born()).unwrap();
    machine.as_object_mut().unwrap().retain(|key, _| key != "ports" && key != "seen_on" && key != "ladder");
    machine["attempts"] = 2.into();
    let due = serde_json::from_value(serde_json::json!({"event": "due"}));
    assert_eq!(due.ok(), Some(Event::Due { means: Default::default() }));
    assert_eq!(serde_json::from_value::<Machine>(machine).unwrap(), born());
}

#[test]
fn a_sighting_on_a_port_is_replayed_and_kept_once() {
    let port = SeenPort { at: SwitchPort { switch: "c-tor1".into(), port: "Ethernet7".into() }, expects: None };
    let sighted = Event::Sighted(Sighting {
        mac: MAC,
        uuid: None,
        arch: None,
        address: None,
        boots: false,
        limit: 6,
        port: Some(port.clone()),
    });
    assert_eq!(sighted.sentence(), "52:54:00:00:00:01 asked for an address, seen on c-tor1 Ethernet7");
    // What is stored is JSON, and the addresses are keys there.
    let stored: Event = serde_json::from_str(&serde_json::to_string(&sighted).unwrap()).unwrap();
    let step = decide(1, &born(), &stored).unwrap();
    assert_eq!(step.machine.seen_on, [(MAC, port)].into());
    let kept: Machine = serde_json::from_str(&serde_json::to_string(&step.machine).unwrap()).unwrap();
    assert_eq!(decide(2, &kept, &sighted), Err(Refused::Nothing));
    let mut hello = hello(Mode::Ram, 1);
    if let Event::Hello { seen_on, .. } = &mut hello {
        seen_on.clone_from(&kept.seen_on);
    }
    let hello: Event = serde_json::from_str(&serde_json::to_string(&hello).unwrap()).unwrap();
    assert_eq!(decide(3, &born(), &hello).unwrap().machine.seen_on, kept.seen_on);
}

#[test]
fn a_failed_or_missing_check_keeps_the_host_back_and_names_it() {
    let mut talk = Talk::until_verifying(Role::Kvm);
    talk.tell(hello(Mode::Resident, 2)).unwrap();
    talk.report(checked(Role::Kvm, Some("kvm.guest"))).unwrap();
    assert!(matches!(&talk.machine.state, State::Broken { problem, .. } if problem.title.contains("kvm.guest")));

    let mut talk = Talk::until_verifying(Role::Kvm);
    talk.tell(hello(Mode::Resident, 2)).unwrap();
    talk.report(checked(Role::Docker, None)).unwrap();
    assert!(matches!(&talk.machine.state, State::Broken { problem, .. } if problem.code == "check.missing"));
    assert!(!talk.actions.contains(&Action::SignPassport));
}

#[test]
fn a_warning_is_noted_in_the_passport_and_a_skipped_check_holds_nothing_back() {
    let mut talk = Talk::until_verifying(Role::Kvm);
    let Outcome::Checked { mut checks, measured } = checked(Role::Kvm, Some("kvm.bridge")) else { unreachable!() };
    for check in &mut checks {
        match check.id.as_str() {
            "kvm.bridge" => check.severity = Severity::Warning,
            "time" => (check.passed, check.skipped) = (false, true),
            _ => {}
        }
    }
    talk.report(Outcome::Checked { checks, measured }).unwrap();
    assert_eq!(talk.actions.last(), Some(&Action::SignPassport));
    let passport = passport::Passport::of(&talk.machine, Default::default(), talk.now).unwrap();
    let bridge = passport.checks.iter().find(|c| c.id == "kvm.bridge").unwrap();
    assert!(!bridge.passed && bridge.severity == Severity::Warning);
}

/// Its checks are run again on demand; the passport and what is in it stay.
#[test]
fn a_delivered_host_is_checked_on_demand() {
    let mut talk = Talk::until_verifying(Role::Kvm);
    talk.tell(hello(Mode::Resident, 2)).unwrap();
    assert!(talk.tell(Event::CheckRequested).is_err(), "it is not delivered yet");
    talk.report(checked(Role::Kvm, None)).unwrap();
    talk.tell(Event::PassportSigned { passport: serde_json::json!({"signed": true}) }).unwrap();
    let (delivered, at_delivery) = (talk.machine.state.clone(), talk.machine.checks.clone());
    assert!(matches!(task(&talk.machine, Mode::Resident), Task::Wait { .. }));

    talk.tell(Event::CheckRequested).unwrap();
    assert_eq!((task(&talk.machine, Mode::Resident), talk.machine.deadline.is_some()), (Task::Verify, true));
    assert!(talk.tell(Event::CheckRequested).is_err(), "one at a time");
    talk.report(checked(Role::Kvm, Some("kvm.disk"))).unwrap();
    let recheck = talk.machine.recheck.clone().unwrap();
    assert!(!recheck.running() && recheck.differences.len() == 1 && recheck.differences[0].starts_with("kvm.disk: ok"));
    assert_eq!((&talk.machine.state, &talk.machine.checks), (&delivered, &at_delivery));
    assert_eq!(talk.machine.deadline, None);

    // An agent that fails, or says nothing, is no reason to take a host out of use.
    talk.tell(Event::CheckRequested).unwrap();
    let failed = Problem { code: "x".into(), title: "out of memory".into(), hint: None, causes: vec![] };
    talk.report(Outcome::Failed(failed)).unwrap();
    assert_eq!(
        talk.machine.recheck.as_ref().and_then(|r| r.problem.as_ref()).map(|p| p.title.as_str()),
        Some("out of memory")
    );
    talk.tell(Event::CheckRequested).unwrap();
    talk.now = talk.machine.deadline.unwrap();
    talk.tell(Event::Due { means: Default::default() }).unwrap();
    assert_eq!(
        talk.machine.recheck.as_ref().and_then(|r| r.problem.as_ref()).map(|p| p.code.as_str()),
        Some("check.silent")
    );
    assert_eq!(talk.machine.state, delivered);

    talk.tell(Event::ReleaseRequested).unwrap();
    assert_eq!(talk.machine.recheck, None);
}

#[test]
fn a_report_on_an_old_order_changes_nothing() {
    let mut talk = Talk::until_verifying(Role::Kvm);
    assert_eq!(
        talk.tell(Event::Reported { number: 1, outcome: deployed(1), findings: Vec::new() }),
        Err(Refused::Stale)
    );
    assert_eq!(talk.machine.state, State::Verifying);
}

fn delivered() -> Talk {
    let mut talk = Talk::until_verifying(Role::Kvm);
    talk.tell(hello(Mode::Resident, 2)).unwrap();
    talk.report(checked(Role::Kvm, None)).unwrap();
    talk.tell(Event::PassportSigned { passport: serde_json::json!({}) }).unwrap();
    talk
}

#[test]
fn a_release_erases_before_the_machine_is_ready_again() {
    let mut talk = Talk::until_verifying(Role::Ovs);
    talk.tell(hello(Mode::Resident, 2)).unwrap();
    talk.report(checked(Role::Ovs, None)).unwrap();
    talk.tell(Event::PassportSigned { passport: serde_json::json!({}) }).unwrap();
    assert!(matches!(talk.tell(order(Role::Kvm)), Err(Refused::State(_))));
    talk.tell(Event::ReleaseRequested).unwrap();
    assert_eq!(boot_choice(&talk.machine), BootChoice::Agent);
    talk.now += 30_000;
    talk.tell(sighted(true)).unwrap();
    talk.tell(hello(Mode::Ram, 3)).unwrap();
    assert_eq!(task(&talk.machine, Mode::Ram), Task::Erase);
    talk.report(Outcome::Erased { disks: vec!["vda".into()], how: "discard".into(), proof: vec![], inventory: None })
        .unwrap();
    assert_eq!(talk.machine.state, State::Ready);
    assert!(talk.machine.order.is_none());
}

fn any_event() -> impl Strategy<Value = Event> {
    let problem = Problem { code: "x".into(), title: "x".into(), hint: None, causes: vec![] };
    let outcome = prop_oneof![
        Just(commissioned()),
        Just(deployed(1)),
        Just(deployed(9)),
        Just(checked(Role::Kvm, None)),
        Just(checked(Role::Kvm, Some("services"))),
        burn::any_tested(),
        Just(Outcome::BurnedIn),
        Just(Outcome::Leaving),
        Just(Outcome::Erased { disks: vec![], how: "discard".into(), proof: vec![], inventory: None }),
        Just(Outcome::Failed(problem.clone())),
    ];
    prop_oneof![
        any::<bool>().prop_map(expectation),
        (any::<bool>(), 3..9u32).prop_map(|(boots, limit)| sighted_within(boots, limit)),
        any::<bool>().prop_map(sighted_on_a_port),
        (0..4u128).prop_map(|b| hello(Mode::Ram, b)),
        (0..4u128).prop_map(|b| hello(Mode::Resident, b)),
        // Number 0 is replaced by the current one, so that reports are often welcome.
        outcome.prop_map(|outcome| Event::Reported { number: 0, outcome, findings: Vec::new() }),
        Just(order(Role::Kvm)),
        Just(Event::ReleaseRequested),
        Just(Event::RetryRequested),
        Just(Event::CheckRequested),
        Just(Event::PowerRequested { action: PowerAction::On }),
        Just(Event::ActionFailed { action: Action::NetworkBoot, problem }),
        any::<bool>().prop_map(|own| Event::BmcPasswordWanted { own }),
        Just(Event::ActionDone { action: Action::BmcSetup, answer: "was so".into() }),
        Just(Event::ActionDone { action: Action::ChangeBmcPassword, answer: serde_json::json!({ "length": 16 }) }),
        Just(Event::PassportSigned { passport: serde_json::json!({}) }),
        baseline::any_news(),
        any::<bool>().prop_map(burn::wanted),
        Just(Event::BurnInStopped),
        Just(Event::Noted { sentence: "snponly.efi did not start".into() }),
        Just(Event::Unanswered { why: "no subnet".into() }),
        ladder::means().prop_map(|means| Event::Due { means }),
    ]
}

proptest! {
    #[test]
    fn whatever_is_told(events in prop::collection::vec((any_event(), 1..700_000i64), 1..60)) {
        let mut talk = Talk::new();
        for (event, pause) in events {
            talk.now += pause;
            let event = match event {
                Event::Reported { outcome, .. } => Event::Reported { number: talk.machine.number, outcome, findings: Vec::new() },
                other => other,
            };
            let before = talk.machine.clone();
            if talk.tell(event).is_err() {
                prop_assert_eq!(&before, &talk.machine);
            }
            if let State::Delivered { .. } = talk.machine.state {
                prop_assert!(passport::PassingChecks::of(&Role::Kvm.into(), &[], &talk.machine.checks).is_ok());
            }
            // Nobody is sent round for ever unheard.
            let looping = talk.machine.boots > 9 && !matches!(boot_choice(&talk.machine), BootChoice::Hold { .. });
            prop_assert!(!looping || talk.machine.comes_back, "{:?}", talk.machine);
            // Whoever has to bring the next fact has a deadline or is a person.
            let resting = matches!(
                talk.machine.state,
                State::Expected | State::Ready | State::Delivered { .. } | State::Broken { .. } | State::Retired
            );
            prop_assert!(resting || talk.machine.deadline.is_some() , "{:?}", talk.machine.state);
        }
        let mut again = born();
        for (at, event) in &talk.accepted {
            again = decide(*at, &again, event).unwrap().machine;
        }
        prop_assert_eq!(again, talk.machine);
    }
}
