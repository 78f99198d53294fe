//! A machine that takes what it is given, and machines that do not: the conversation is played until it ends.

use serde_json::json;

use super::*;
use crate::bmc::{Bios, Component};
use crate::firmware::names::Names;
use crate::firmware::plan::{Seen, plan};
use crate::firmware::{Baseline, Bundle, Part};
use crate::machine::Digest;

const BASELINE: &str = r#"
name = "test"
vendor = "Dell"
models = ["PowerEdge R750"]
required = true

[[setting]]
name = "smt"
value = "on"

[[firmware]]
component = "bmc"
minimum = "2"

[[firmware]]
component = "bios"
minimum = "2"
"#;

fn bundle(part: Part) -> Bundle {
    Bundle {
        file: "x".into(),
        vendor: "Dell".into(),
        models: vec!["*".into()],
        component: part,
        named: None,
        version: "2".into(),
        blake3: Digest::of(part.to_string().as_bytes()),
        sha256: Digest::of(b""),
        bytes: 1,
    }
}

/// What a machine does with what it is told.
#[derive(Default)]
struct Habits {
    forgets_settings: bool,
    loses_settings_with_new_bios: bool,
    refuses_updates: bool,
    ignores_updates: bool,
    never_comes_back: bool,
}

struct Machine {
    habits: Habits,
    now: Millis,
    smt: &'static str,
    pending: bool,
    versions: [u32; 2],
    staged: bool,
    agent_at: Millis,
    attempts: Vec<Attempt>,
    /// What was done, in order.
    log: Vec<&'static str>,
}

impl Machine {
    fn new(habits: Habits) -> Self {
        let (versions, attempts, log) = ([1, 1], Vec::new(), Vec::new());
        Self {
            habits,
            now: 1_000_000,
            smt: "Disabled",
            pending: false,
            versions,
            staged: false,
            agent_at: 0,
            attempts,
            log,
        }
    }

    fn seen(&self) -> Seen {
        let part = |id: &str, version: u32| Component {
            id: id.into(),
            name: id.into(),
            version: Some(version.to_string()),
            updateable: true,
        };
        let mut bios = Bios { now: [("LogicalProc".to_owned(), json!(self.smt))].into(), pending: Default::default() };
        if self.pending {
            bios.pending.insert("LogicalProc".into(), json!("Enabled"));
        }
        Seen {
            components: Some(vec![part("BMC", self.versions[0]), part("BIOS", self.versions[1])]),
            bios: Some(bios),
            boot_order: None,
            boot_names: Default::default(),
            updating: Some(false),
        }
    }

    fn next(&self) -> Next {
        let baseline = Baseline::parse("test.toml", BASELINE, Names::built_in()).unwrap();
        let plan = plan(&baseline, "PowerEdge R750", &self.seen(), None, &[bundle(Part::Bmc), bundle(Part::Bios)]);
        let facts = Facts {
            now: self.now,
            agent_at: Some(self.agent_at),
            sighted_at: Some(self.agent_at),
            updating: Some(false),
        };
        next(&plan, &self.attempts, &facts)
    }

    fn act(&mut self, step: &Step) -> Option<String> {
        match step {
            Step::Update { .. } if self.habits.refuses_updates => {
                self.log.push("refused");
                return Some("the image is not signed".into());
            }
            Step::Update { part: Part::Bmc, .. } => {
                self.log.push("bmc");
                self.versions[0] += u32::from(!self.habits.ignores_updates);
            }
            Step::Update { .. } => {
                self.log.push("bios");
                self.staged = true;
            }
            Step::Settings { .. } => {
                self.log.push("settings");
                self.pending = true;
            }
            Step::BootOrder { .. } => unreachable!("the baseline has none"),
            Step::Reboot => {
                self.log.push("reboot");
                self.boot();
            }
        }
        None
    }

    fn boot(&mut self) {
        if self.habits.never_comes_back {
            return;
        }
        let loses = self.habits.loses_settings_with_new_bios && self.staged;
        if self.pending && !self.habits.forgets_settings && !loses {
            self.smt = "Enabled";
        }
        self.pending = false;
        self.versions[1] += u32::from(self.staged && !self.habits.ignores_updates);
        self.staged = false;
        self.now += 5 * MINUTE;
        self.agent_at = self.now;
    }

    /// Until it ends: findings as sentences, and whether the machine is held.
    fn run(&mut self) -> (Vec<String>, bool) {
        for _ in 0..10_000 {
            match self.next() {
                Next::Act(step) => {
                    begin(&mut self.attempts, &step, self.now);
                    self.now += SECOND;
                    let failed = self.act(&step);
                    end(&mut self.attempts, &step, self.now, failed);
                }
                Next::Wait(_) => self.now += 10 * SECOND,
                Next::Done { findings, hold } => return (findings.iter().map(ToString::to_string).collect(), hold),
            }
        }
        panic!("it never ends: {:?}", self.log);
    }
}

#[test]
fn the_bmc_first_then_all_with_one_reboot() {
    let mut machine = Machine::new(Habits::default());
    assert_eq!(machine.run(), (vec![], false));
    assert_eq!(machine.log, ["bmc", "bios", "settings", "reboot"]);
    // And once more: nothing is left to do.
    assert_eq!(machine.run(), (vec![], false));
    assert_eq!(machine.log.len(), 4);
}

#[test]
fn a_setting_that_does_not_stick_is_told_after_its_reboot() {
    let mut machine = Machine::new(Habits { forgets_settings: true, ..Habits::default() });
    machine.versions = [2, 2];
    let (findings, hold) = machine.run();
    assert_eq!(machine.log, ["settings", "reboot"]);
    assert!(hold);
    assert_eq!(
        findings,
        [
            "smt (LogicalProc) is Disabled, expected Enabled: it was written and accepted, and is not so after the reboot"
        ]
    );
}

#[test]
fn defaults_of_a_new_bios_are_written_over_once_more() {
    let mut machine = Machine::new(Habits { loses_settings_with_new_bios: true, ..Habits::default() });
    assert_eq!(machine.run(), (vec![], false));
    assert_eq!(machine.log, ["bmc", "bios", "settings", "reboot", "settings", "reboot"]);
}

#[test]
fn an_update_without_effect_is_tried_twice_and_told() {
    let mut machine = Machine::new(Habits { ignores_updates: true, ..Habits::default() });
    let (findings, hold) = machine.run();
    assert!(hold);
    assert_eq!(machine.log.iter().filter(|l| **l == "bmc").count(), 2);
    assert_eq!(machine.log.iter().filter(|l| **l == "bios").count(), 2);
    assert!(findings[0].starts_with("BMC firmware is 1, expected 2") && findings[1].starts_with("BIOS firmware is 1"));
}

#[test]
fn a_refused_update_is_told_in_the_words_of_the_bmc_and_the_rest_goes_on() {
    let mut machine = Machine::new(Habits { refuses_updates: true, ..Habits::default() });
    let (findings, _) = machine.run();
    assert_eq!(machine.log, ["refused", "refused", "refused", "refused", "settings", "reboot"]);
    assert!(findings[0].ends_with("the image is not signed"));
}

#[test]
fn a_machine_that_does_not_come_back_is_held_with_the_reason() {
    let mut machine = Machine::new(Habits { never_comes_back: true, ..Habits::default() });
    let begun = machine.now;
    let (findings, hold) = machine.run();
    assert!(hold && findings[0].contains("look at its console"), "{findings:?}");
    assert!(machine.now - begun <= BACK + 10 * MINUTE);
    assert_eq!(machine.log.iter().filter(|l| **l == "reboot").count(), 1);
}

#[test]
fn after_a_crash_no_update_is_sent_twice_at_once() {
    let mut machine = Machine::new(Habits::default());
    let Next::Act(step) = machine.next() else { panic!() };
    begin(&mut machine.attempts, &step, machine.now);
    // The appliance is killed here: the image may be on its way, and the BMC may be writing it.
    let writing = Facts { now: machine.now + 5 * MINUTE, updating: Some(true), ..Facts::default() };
    let unknown = Facts { updating: None, ..writing };
    let idle = Facts { updating: Some(false), ..writing };
    let baseline = Baseline::parse("test.toml", BASELINE, Names::built_in()).unwrap();
    let plan = plan(&baseline, "PowerEdge R750", &machine.seen(), None, &[bundle(Part::Bmc), bundle(Part::Bios)]);
    assert!(matches!(next(&plan, &machine.attempts, &writing), Next::Wait(_)));
    assert!(matches!(next(&plan, &machine.attempts, &unknown), Next::Wait(_)));
    let late = Facts { now: machine.now + LOST + MINUTE, ..unknown };
    assert_eq!(next(&plan, &machine.attempts, &late), Next::Act(step.clone()));
    // It says that it writes nothing, and has the old version: the image never arrived.
    assert_eq!(next(&plan, &machine.attempts, &idle), Next::Act(step));
    // Or it has the new one, and the next step is due.
    machine.versions[0] = 2;
    assert_eq!(machine.run(), (vec![], false));
    assert_eq!(machine.log, ["bios", "settings", "reboot"]);
}

#[test]
fn a_reboot_that_the_appliance_did_not_live_to_send_is_sent() {
    let mut machine = Machine::new(Habits::default());
    machine.attempts.push(Attempt {
        what: REBOOT.into(),
        tries: 1,
        begun: machine.now,
        ended: None,
        failed: None,
        needs_boot: false,
    });
    assert!(matches!(machine.next(), Next::Wait(_)));
    machine.now += 2 * MINUTE;
    assert_eq!(machine.next(), Next::Act(Step::Reboot));
    // It was sent: the machine was seen to start.
    machine.agent_at = machine.now;
    assert!(matches!(machine.next(), Next::Act(Step::Update { .. })));
}
