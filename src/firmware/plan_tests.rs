//! Plans for a real PowerEdge R750, and what stands in the way of one.

use serde_json::json;

use super::*;
use crate::firmware::Baselines;
use crate::machine::Digest;

/// As the machine was when its tree was recorded: as its baseline wants it, but for the boot order.
fn r750() -> Seen {
    let text = include_str!("../../tests/fixtures/firmware/dell-r750.json");
    let mut told: Value = serde_json::from_str(text).unwrap();
    Seen {
        components: serde_json::from_value(told["components"].take()).unwrap(),
        bios: serde_json::from_value(told["bios"].take()).unwrap(),
        boot_order: Some(vec!["Boot0003".into(), "Boot0001".into()]),
        boot_names: [
            ("Boot0001".into(), "ubuntu HD(1,GPT,6634D938-1211-4F7A-89C6-A35A60BE1E4A)".into()),
            ("Boot0003".into(), "HTTP Device 1: NIC in Slot 5 Port 1".into()),
        ]
        .into(),
        updating: Some(false),
    }
}

fn baseline(more: &str) -> Baseline {
    let text = format!(
        "name = \"test\"\nvendor = \"Dell\"\nmodels = [\"PowerEdge R750\"]\nboot-order = \"network-first\"\n{more}"
    );
    Baseline::parse("test.toml", &text, Names::built_in()).unwrap()
}

fn bundle(part: Part, version: &str) -> Bundle {
    Bundle {
        file: format!("{part}-{version}.bin"),
        vendor: "Dell".into(),
        models: vec!["PowerEdge R750".into()],
        component: part,
        named: None,
        version: version.into(),
        blake3: Digest::of(format!("{part} {version}").as_bytes()),
        sha256: Digest::of(b"another sum"),
        bytes: 1,
    }
}

fn firmware(part: &str, version: &str) -> String {
    format!("[[firmware]]\ncomponent = \"{part}\"\n{version}\n")
}

fn make(baseline: &Baseline, seen: &Seen, bundles: &[Bundle]) -> Plan {
    plan(baseline, "PowerEdge R750", seen, None, bundles)
}

fn steps(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(ToString::to_string).collect()
}

fn set(seen: &mut Seen, name: &str, value: &str) {
    seen.bios.as_mut().unwrap().now.insert(name.into(), json!(value));
}

#[test]
fn the_recorded_machine_is_as_its_baseline_wants_it() {
    let all = Baselines::built_in().unwrap();
    let plan = make(all.of("Dell Inc.", "PowerEdge R750").unwrap(), &r750(), &[]);
    assert_eq!((plan.steps, plan.findings), (vec![], vec![]));
}

#[test]
fn as_delivered_it_saves_power_and_one_reboot_mends_it_all() {
    let mut seen = r750();
    set(&mut seen, "SysProfile", "PerfPerWattOptimizedDapc");
    set(&mut seen, "ProcCStates", "Enabled");
    set(&mut seen, "ProcC1E", "Enabled");
    set(&mut seen, "LogicalProc", "Disabled");
    seen.boot_order.as_mut().unwrap().reverse();
    let text =
        include_str!("../../firmware/baselines/dell-r750.toml").replace("minimum = \"1.8.2\"", "minimum = \"1.10.2\"");
    let baseline = Baseline::parse("test.toml", &text, Names::built_in()).unwrap();
    let plan = make(&baseline, &seen, &[bundle(Part::Bios, "1.10.2"), bundle(Part::Bios, "1.15.2")]);
    assert_eq!(
        steps(&plan),
        [
            "BIOS firmware 1.8.2 -> 1.15.2",
            "settings: power-profile (SysProfile) PerfPerWattOptimizedDapc -> PerfOptimized, smt (LogicalProc) Disabled -> Enabled",
            "boot order: the network before Boot0001 (ubuntu HD(1,GPT,6634D938-1211-4F7A-89C6-A35A60BE1E4A))",
            "reboot",
        ]
    );
    assert_eq!(plan.summary(), "3 steps, 1 reboot");
    // C-states are read-only while a profile decides them: they are not written, and not complained about yet.
    assert_eq!(plan.findings, []);
}

#[test]
fn the_bmc_comes_first_and_costs_no_reboot() {
    let wanted = firmware("bios", "minimum = \"1.9.2\"") + &firmware("bmc", "minimum = \"6.10.30.00\"");
    let bundles = [bundle(Part::Bios, "1.9.2"), bundle(Part::Bmc, "6.10.30.00")];
    let both = make(&baseline(&wanted), &r750(), &bundles);
    assert_eq!(steps(&both), ["BMC firmware 6.00.30.00 -> 6.10.30.00", "BIOS firmware 1.8.2 -> 1.9.2", "reboot"]);
    let bmc = make(&baseline(&firmware("bmc", "minimum = \"6.10.30.00\"")), &r750(), &bundles);
    assert_eq!((steps(&bmc).len(), bmc.reboots()), (1, 0));
}

#[test]
fn parts_with_one_image_are_one_step() {
    let plan = make(&baseline(&firmware("disk", "minimum = \"2.2.0\"")), &r750(), &[bundle(Part::Disk, "2.2.0")]);
    assert_eq!(steps(&plan), ["disk firmware 2.1.3 -> 2.2.0 (3 parts)", "reboot"]);
    let named = firmware("nic", "named = \"BCM5720\"\nminimum = \"22.0\"");
    let plan = make(&baseline(&named), &r750(), &[bundle(Part::Nic, "22.0.6")]);
    let Step::Update { targets, .. } = &plan.steps[0] else { panic!() };
    assert_eq!(
        targets,
        &["Installed-108255-21.80.9__NIC.Embedded.1-1-1", "Installed-108255-21.80.9__NIC.Embedded.2-1-1"]
    );
}

#[test]
fn what_must_not_be_written_is_refused_with_the_reason() {
    let newer = firmware("bios", "minimum = \"1.10.2\"");
    let good = bundle(Part::Bios, "1.10.2");
    let other_model = Bundle { models: vec!["PowerEdge R650".into()], ..good.clone() };
    let pinned = newer.clone() + &format!("blake3 = \"{}\"\n", Digest::of(b"the right one"));
    let older = firmware("bios", "exact = \"1.6.5\"");
    let allowed = older.clone() + "downgrade = true\n";
    for (wanted, bundles, cause) in [
        (&newer, vec![], "there is no bundle"),
        (&newer, vec![other_model], "is for PowerEdge R650, not for PowerEdge R750"),
        (&newer, vec![Bundle { vendor: "HPE".into(), ..good.clone() }], "there is no bundle"),
        (&newer, vec![bundle(Part::Bios, "1.9.2")], "there is no bundle"),
        (&pinned, vec![good.clone()], "another digest"),
        (&older, vec![bundle(Part::Bios, "1.6.5")], "downgrade"),
        (&firmware("bios", "minimum = \"U30 v2.42\""), vec![good.clone()], "nobody can say"),
    ] {
        let plan = make(&baseline(wanted), &r750(), &bundles);
        assert_eq!(steps(&plan), [] as [String; 0]);
        let [finding] = plan.findings.as_slice() else { panic!("{:?}", plan.findings) };
        assert!(finding.cause.contains(cause), "{finding}");
        assert_eq!((finding.what.as_str(), finding.found.as_str()), ("BIOS firmware", "1.8.2"));
    }
    let plan = make(&baseline(&allowed), &r750(), &[bundle(Part::Bios, "1.6.5")]);
    assert_eq!(steps(&plan), ["BIOS firmware 1.8.2 -> 1.6.5", "reboot"]);
}

#[test]
fn what_is_written_already_waits_for_the_reboot() {
    let mut seen = r750();
    set(&mut seen, "LogicalProc", "Disabled");
    seen.bios.as_mut().unwrap().pending.insert("LogicalProc".into(), json!("Enabled"));
    let smt = "[[setting]]\nname = \"smt\"\nvalue = \"on\"\n";
    let plan = make(&baseline(smt), &seen, &[]);
    let Step::Settings { changes } = &plan.steps[0] else { panic!() };
    assert!(changes[0].pending);
}

#[test]
fn a_follower_that_does_not_follow_is_a_finding() {
    let mut seen = r750();
    set(&mut seen, "ProcCStates", "Enabled");
    let all = Baselines::built_in().unwrap();
    let plan = make(all.of("Dell Inc.", "PowerEdge R750").unwrap(), &seen, &[]);
    assert_eq!(plan.steps, []);
    assert_eq!(plan.findings[0].what, "c-states (ProcCStates)");
    assert_eq!(plan.summary(), "nothing that can be done; 1 finding");
    // On its own it is written.
    let alone = make(&baseline("[[setting]]\nname = \"c-states\"\nvalue = \"off\"\n"), &seen, &[]);
    assert_eq!(steps(&alone)[0], "settings: c-states (ProcCStates) Enabled -> Disabled");
}

#[test]
fn attributes_by_the_vendors_name_and_unknown_ones() {
    let wanted = "[attributes]\nProcX2Apic = \"Enabled\"\nNoSuch = 3\n";
    let plan = make(&baseline(wanted), &r750(), &[]);
    assert_eq!(steps(&plan)[0], "settings: ProcX2Apic Disabled -> Enabled");
    assert_eq!(plan.findings[0].to_string(), "NoSuch is not there, expected 3: this machine has no such attribute");
}

#[test]
fn a_bmc_that_tells_nothing_leaves_what_the_host_tells_and_what_to_do_by_hand() {
    let all = Baselines::built_in().unwrap();
    let d51 = all.of("Quanta Computer Inc", "D51B-2U (dual 10G LoM)").unwrap();
    let plan = plan(d51, "D51B-2U", &Seen::default(), None, &[]);
    assert_eq!((plan.steps.len(), plan.findings.len()), (0, 4));
    assert!(plan.findings.iter().all(|f| f.cause.contains("by hand")));
}

#[test]
fn kinds_of_parts_by_their_names() {
    let told = r750().components.unwrap();
    let kind_of = |part: &str| told.iter().find(|c| c.id.contains(part)).and_then(|c| kind(&c.id, &c.name));
    for (part, expected) in [
        ("iDRAC.Embedded", Some(Part::Bmc)),
        ("BIOS.Setup", Some(Part::Bios)),
        ("NIC.Slot.5", Some(Part::Nic)),
        ("InfiniBand.Slot", Some(Part::Nic)),
        ("Disk.Bay.0", Some(Part::Disk)),
        ("PSU.Slot.1", Some(Part::Psu)),
        ("CPLD", Some(Part::Cpld)),
        ("RAID.Backplane", None),
        ("DriverPack", None),
        ("Diagnostics", None),
        ("ServiceModule", None),
        ("TPM", None),
    ] {
        assert_eq!(kind_of(part), expected, "{part}");
    }
    // Other vendors: HPE iLO 5, Lenovo XCC, OpenBMC.
    assert_eq!(kind("1", "iLO 5"), Some(Part::Bmc));
    assert_eq!(kind("2", "System ROM"), Some(Part::Bios));
    assert_eq!(kind("BMC-Primary", "Firmware:BMC-Primary"), Some(Part::Bmc));
    assert_eq!(kind("UEFI", "Firmware:UEFI"), Some(Part::Bios));
    assert_eq!(kind("x", "Uniconv controller"), None);
}

proptest::proptest! {
    /// Whatever a BMC says, a plan asks for nothing that its baseline does not, and ends where it is satisfied.
    #[test]
    fn a_plan_that_was_carried_out_is_empty(profile in "[A-Za-z]{0,8}", smt in "[A-Za-z]{0,8}", version in "[0-9.]{0,6}") {
        let mut seen = r750();
        set(&mut seen, "SysProfile", &profile);
        set(&mut seen, "LogicalProc", &smt);
        for component in seen.components.as_mut().unwrap().iter_mut().filter(|c| c.id.contains("BIOS")) {
            component.version = Some(version.clone());
        }
        let all = Baselines::built_in().unwrap();
        let baseline = all.of("Dell Inc.", "PowerEdge R750").unwrap();
        let bundles = [bundle(Part::Bios, "1.15.2")];
        for step in make(baseline, &seen, &bundles).steps {
            match step {
                Step::Settings { changes } => for c in changes {
                    seen.bios.as_mut().unwrap().now.insert(c.attribute, c.wanted);
                },
                Step::Update { targets, bundle, .. } => {
                    let hit = seen.components.as_mut().unwrap().iter_mut().filter(|c| targets.contains(&c.id));
                    hit.for_each(|c| c.version = Some(bundle.version.clone()));
                }
                Step::BootOrder { order, .. } => seen.boot_order = Some(order),
                Step::Reboot => {}
            }
        }
        proptest::prop_assert_eq!(make(baseline, &seen, &bundles).steps, vec![]);
    }
}
