//! Burn-in: when it comes, what a power cut costs, what ends it, and that an order waits for it.

use super::super::stage::{BURN_SLACK, COMMISSION};
use super::*;
use crate::link::{BurnProfile, CpuBurn, DiskBurn, MemoryBurn, NetworkBurn, Tested};

const TESTS: [&str; 4] = ["network", "disks", "cpu", "memory"];

fn profile() -> BurnProfile {
    BurnProfile {
        name: "quick".into(),
        rounds: 1,
        network: NetworkBurn { seconds: 5, wait_seconds: 10, across: false },
        disk: DiskBurn { seconds: 5, write_mib: 64 },
        cpu: CpuBurn { seconds: 3600, stressors: vec!["cpu".into()] },
        memory: MemoryBurn { seconds: 20, share_percent: 90 },
        smart: None,
    }
}

pub fn wanted(asked: bool) -> Event {
    Event::BurnInWanted { profile: Box::new(profile()), overwrite: false, asked }
}

fn tested(test: &str, rate: f64) -> Outcome {
    Outcome::Tested(Box::new(Tested {
        test: test.into(),
        seconds: 5.0,
        measured: vec![Measured::new("cpu.stress", rate, "ops/s")],
        findings: vec![],
        notes: vec!["vda holds data and was only read".into()],
    }))
}

pub fn any_tested() -> impl Strategy<Value = Outcome> {
    (0..TESTS.len()).prop_map(|n| tested(TESTS[n], 1.0))
}

fn ecc(severity: Severity) -> Finding {
    Finding { id: "burn.ecc".into(), ..finding(severity, "DIMM B1") }
}

fn told(talk: &mut Talk, outcome: Outcome, findings: Vec<Finding>) -> Result<(), Refused> {
    let number = talk.machine.number;
    talk.tell(Event::Reported { number, outcome, findings })
}

/// As far as the first test; `bmc`: with a firmware baseline before.
fn burning(bmc: bool) -> Talk {
    let mut talk = Talk::new();
    for event in [expectation(bmc), order(Role::Kvm), sighted(true), hello(Mode::Ram, 1), wanted(false)] {
        talk.tell(event).unwrap();
    }
    assert_eq!(task(&talk.machine, Mode::Ram), Task::Commission);
    talk.report(commissioned()).unwrap();
    assert_eq!(task(&talk.machine, Mode::Ram), Task::BurnIn);
    talk
}

#[test]
fn it_comes_after_inventory_and_firmware_and_the_order_waits_for_it() {
    for bmc in [false, true] {
        let mut talk = burning(bmc);
        let number = talk.machine.number;
        assert_eq!(talk.machine.state, State::Commissioning);
        for test in TESTS {
            assert!(talk.machine.waiting().unwrap().reason.contains(test));
            told(&mut talk, tested(test, 2.0), vec![]).unwrap();
        }
        assert_eq!(talk.machine.number, number, "it is one order");
        told(&mut talk, Outcome::BurnedIn, vec![]).unwrap();
        assert_eq!(talk.machine.state, State::Deploying);
        let burn = talk.machine.burn.as_ref().unwrap();
        assert_eq!((burn.done(), burn.restarts, burn.stopped), (TESTS.map(str::to_owned).into(), 0, false));
        // The value of the burn-in in the place of the short one, and the short ones that have no other.
        let values: Vec<_> = talk.machine.measured.iter().map(|m| (m.name.as_str(), m.value)).collect();
        assert_eq!(values, [("cpu.blake3", 1.0), ("cpu.stress", 2.0)]);
    }
}

#[test]
fn a_power_cut_costs_the_test_that_ran() {
    let mut talk = burning(false);
    told(&mut talk, tested("network", 1.0), vec![]).unwrap();
    told(&mut talk, tested("disks", 1.0), vec![]).unwrap();
    // The deadline is that of the next test.
    assert_eq!(talk.machine.deadline, Some(talk.now + 3_600_000 + BURN_SLACK));
    let number = talk.machine.number;
    talk.now += 60_000;
    talk.tell(sighted(true)).unwrap();
    talk.tell(hello(Mode::Ram, 2)).unwrap();
    assert_eq!((task(&talk.machine, Mode::Ram), talk.machine.number), (Task::BurnIn, number));
    let burn = talk.machine.burning().unwrap();
    assert_eq!((burn.next().as_deref(), burn.restarts), (Some("cpu"), 1));
    // Told again after a lost answer, of another machine's test, and too early an end.
    assert_eq!(told(&mut talk, tested("disks", 1.0), vec![]), Err(Refused::Nothing));
    assert!(matches!(told(&mut talk, tested("gpu", 1.0), vec![]), Err(Refused::State(_))));
    for test in ["cpu", "memory"] {
        told(&mut talk, tested(test, 1.0), vec![]).unwrap();
    }
    told(&mut talk, Outcome::BurnedIn, vec![]).unwrap();
    assert_eq!(talk.machine.state, State::Deploying);
    assert_eq!(talk.machine.findings.len(), 1);
    assert_eq!(talk.machine.findings[0].to_string(), "machine: it started again once during its burn-in");
}

#[test]
fn a_fault_under_load_is_shown_at_once_and_breaks_the_machine_at_the_end() {
    let mut talk = burning(false);
    told(&mut talk, tested("network", 1.0), vec![ecc(Severity::Warning)]).unwrap();
    told(&mut talk, tested("disks", 1.0), vec![ecc(Severity::Fault)]).unwrap();
    assert_eq!((talk.machine.findings.len(), talk.machine.findings[0].severity), (1, Severity::Fault));
    assert_eq!(talk.machine.state, State::Commissioning);
    for test in ["cpu", "memory"] {
        told(&mut talk, tested(test, 1.0), vec![]).unwrap();
    }
    told(&mut talk, Outcome::BurnedIn, vec![]).unwrap();
    assert!(matches!(&talk.machine.state, State::Broken { problem, .. } if problem.code == "burn.ecc"));
    // It begins anew with a retry, when the agent comes.
    for event in [Event::RetryRequested, sighted(true), hello(Mode::Ram, 2)] {
        talk.now += 60_000;
        talk.tell(event).unwrap();
    }
    assert_eq!((talk.machine.state.name(), &talk.machine.burn), ("commissioning", &None));
}

#[test]
fn an_early_end_is_not_believed() {
    let mut talk = burning(false);
    told(&mut talk, Outcome::BurnedIn, vec![]).unwrap();
    assert!(matches!(&talk.machine.state, State::Broken { problem, .. } if problem.code == "burn.incomplete"));
}

#[test]
fn an_operator_burns_a_ready_machine_in_and_cuts_it_short() {
    let mut talk = Talk::new();
    for event in [expectation(false), sighted(true), hello(Mode::Ram, 1)] {
        talk.tell(event).unwrap();
    }
    assert!(matches!(talk.tell(Event::BurnInStopped), Err(Refused::State(_))));
    talk.report(commissioned()).unwrap();
    assert_eq!(talk.machine.state, State::Ready);
    talk.machine.findings.push(ecc(Severity::Warning));
    assert_eq!(talk.tell(wanted(false)), Err(Refused::Nothing), "it is past what the site wants");
    talk.tell(wanted(true)).unwrap();
    assert_eq!((task(&talk.machine, Mode::Ram), talk.machine.findings.len()), (Task::BurnIn, 0));
    assert!(matches!(talk.tell(wanted(true)), Err(Refused::State(_))), "once at a time");
    talk.tell(order(Role::Kvm)).unwrap();
    told(&mut talk, tested("network", 1.0), vec![]).unwrap();
    assert_eq!(talk.machine.state, State::Commissioning, "the order waits");
    let number = talk.machine.number;
    talk.tell(Event::BurnInStopped).unwrap();
    assert_eq!(talk.machine.state, State::Deploying);
    assert!(talk.machine.number > number && talk.machine.burn.as_ref().unwrap().stopped);
    assert_eq!(
        talk.tell(Event::Reported { number, outcome: tested("disks", 1.0), findings: vec![] }),
        Err(Refused::Stale)
    );
}

#[test]
fn a_machine_that_goes_silent_under_load_climbs_and_says_in_which_test() {
    let mut talk = burning(false);
    for test in ["network", "disks"] {
        told(&mut talk, tested(test, 1.0), vec![]).unwrap();
    }
    assert!(talk.machine.deadline.unwrap() > talk.now + COMMISSION);
    talk.now = talk.machine.deadline.unwrap();
    talk.tell(Event::Due { means: Default::default() }).unwrap();
    let State::Broken { problem, .. } = &talk.machine.state else { panic!("{:?}", talk.machine.state) };
    assert_eq!((problem.code.as_str(), problem.title.contains("cpu, 2 of 4 tests done")), ("burn.silent", true));
}
