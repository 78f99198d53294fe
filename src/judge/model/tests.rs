//! A machine as its model wants it has no finding; each planted fault gives its finding, and no other one.

use proptest::prelude::*;

use super::bom::{Model, Models};
use super::*;
use crate::machine::{Board, Cpu, Dimm, Disk, Firmware, InBandBmc, Memory, Neighbour, Nic, System, Tpm};

const MODEL: &str = r#"
name = "r640"
why = "for these tests"
products = ["PowerEdge R640"]
[cpu]
count = 2
model = "*Gold 6126*"
stepping = "6-85-4"
cores = 12
[memory]
count = 16
size = "32 GiB"
speed = "2666 MT/s"
channels = 6
[[disks]]
name = "system"
count = 2
size = "480 GB"
model = "SAMSUNG MZ7LH480*"
rotational = false
slots = ["bay 0", "bay 1"]
[[disks]]
count = 12
size = "4 TB"
model = "ST4000*"
interface = "sas"
rotational = true
slots = ["bay 2", "bay 3", "bay 4", "bay 5", "bay 6", "bay 7", "bay 8", "bay 9", "bay 10", "bay 11", "bay 12", "bay 13"]
[[nics]]
count = 2
speed = "25 Gb/s"
driver = "mlx5_core"
firmware = "14.20"
links = 2
[[gpus]]
count = 2
model = "*A100*"
[tpm]
version = "2.0"
[firmware]
bios = "2.10"
bmc = "4.22"
"#;

fn model() -> Model {
    Model::parse("r640.toml", MODEL).unwrap()
}

fn disk(bay: usize, model: &str, bytes: u64, rotational: bool) -> Disk {
    Disk {
        name: format!("sd{}", char::from(b'a' + bay as u8)),
        model: Some(model.into()),
        serial: Serial::parse(&format!("S4YN{bay:04}")),
        size_bytes: bytes,
        rotational,
        transport: if rotational { "sas".into() } else { "sata".into() },
        slot: Some(format!("bay {bay}")),
        ..Disk::default()
    }
}

fn nic(number: u8) -> Nic {
    Nic {
        name: format!("eno{number}"),
        mac: MacAddr([2, 0, 0, 0, 0, number]),
        driver: Some("mlx5_core".into()),
        pci: None,
        firmware: Some("14.32.1010".into()),
        link: true,
        speed_mbps: Some(25_000),
        boot: number == 1,
        max_mbps: Some(25_000),
        queues: None,
        max_queues: None,
        numa: None,
        neighbour: Some(Neighbour {
            switch: format!("leaf-12{}", if number == 1 { 'a' } else { 'b' }),
            port: "Ethernet18".into(),
            description: None,
            vlan: None,
        }),
    }
}

/// As it was ordered: two CPUs with eight DIMMs each in A1 to A8 and B1 to B8, fourteen disks, two ports.
fn machine() -> Inventory {
    let slot = |n: u16| format!("{}{}", if n < 8 { 'A' } else { 'B' }, n % 8 + 1);
    let dimm = |n| Dimm {
        slot: slot(n),
        size_bytes: 32 << 30,
        speed_mts: Some(2666),
        rated_mts: Some(2933),
        serial: Serial::parse(&format!("D{n:03}")),
        ..Dimm::default()
    };
    let gpu = |n: u8, class, name: &str| PciDevice {
        address: format!("0000:3{n}:00.0"),
        id: "10de:20b5".into(),
        class,
        name: Some(name.into()),
        ..PciDevice::default()
    };
    Inventory {
        system: System {
            product: Some("PowerEdge R640".into()),
            serial: Serial::parse("7XK2M13"),
            bios_version: Some("2.12.2".into()),
            ..System::default()
        },
        board: Board::default(),
        firmware: Firmware::Uefi,
        cpus: (1..=2)
            .map(|n| Cpu {
                socket: format!("CPU{n}"),
                model: "Intel(R) Xeon(R) Gold 6126 CPU @ 2.60GHz".into(),
                stepping: Some("6-85-4".into()),
                cores: 12,
                ..Cpu::default()
            })
            .collect(),
        memory: Memory {
            dimms: (0..16).map(dimm).collect(),
            slots: 24,
            empty: (9..=12).flat_map(|n| [format!("A{n}"), format!("B{n}")]).collect(),
            ..Memory::default()
        },
        disks: (0..2)
            .map(|bay| disk(bay, "SAMSUNG MZ7LH480HAHQ-00005", 480_103_981_056, false))
            .chain((2..14).map(|bay| disk(bay, "ST4000NM0295", 4_000_787_030_016, true)))
            .collect(),
        nics: vec![nic(1), nic(2)],
        pci: vec![gpu(0, VGA, "Matrox G200"), gpu(1, 0x0302, "GA100 [A100 PCIe]"), gpu(2, 0x0302, "GA100 [A100 PCIe]")],
        tpm: Some(Tpm { version: "2.0".into(), vendor: None, firmware: None }),
        bmc: Some(InBandBmc {
            address: None,
            mac: Some(MacAddr([2, 0, 0, 0, 1, 0])),
            firmware: Some("4.22.00".into()),
        }),
        ..Inventory::default()
    }
}

fn at(switch: &str, port: &str) -> SwitchPort {
    SwitchPort { switch: switch.into(), port: port.into() }
}

fn findings_of(model: Option<&Model>, inventory: &Inventory) -> Vec<Finding> {
    let serial = Serial::parse("7XK2M13").unwrap();
    let listed = Listed {
        serial: Some(&serial),
        model: Some("r640"),
        bmc_mac: Some(MacAddr([2, 0, 0, 0, 1, 0])),
        ports: &[at("leaf-12a", "18"), at("leaf-12b", "18")],
        occupant: &|port| (port.port == "Ethernet17").then(|| "kvm-9".to_owned()),
    };
    judge(&listed, model, inventory)
}

/// The one finding of a machine to which this was done.
fn one(plant: impl FnOnce(&mut Inventory)) -> Finding {
    let mut inventory = machine();
    plant(&mut inventory);
    let mut findings = findings_of(Some(&model()), &inventory);
    assert_eq!(findings.len(), 1, "{findings:#?}");
    findings.remove(0)
}

#[test]
fn as_ordered_there_is_nothing_to_say() {
    assert_eq!(findings_of(Some(&model()), &machine()), []);
}

/// What is done to it, and the sentence.
#[test]
fn each_planted_fault_gives_its_sentence() {
    type Plant = Box<dyn Fn(&mut Inventory)>;
    let plants: Vec<(&str, &str, Plant)> = vec![
        ("system.serial", "machine: its serial number is 7XK2M14, expected 7XK2M13", {
            Box::new(|i| i.system.serial = Serial::parse("7XK2M14"))
        }),
        ("system.product", "machine: it is a PowerEdge R630, expected PowerEdge R640 (model r640)", {
            Box::new(|i| i.system.product = Some("PowerEdge R630".into()))
        }),
        (
            "bmc.mac",
            "BMC: its MAC address is 02:00:00:00:01:01, listed 02:00:00:00:01:00: another board, or a slip in the list",
            Box::new(|i| i.bmc.as_mut().unwrap().mac = Some(MacAddr([2, 0, 0, 0, 1, 1]))),
        ),
        ("cpu.count", "CPUs: 1 of 2 CPUs found", Box::new(|i| drop(i.cpus.pop()))),
        (
            "cpu.model",
            "CPUs: 1 of 2 CPUs is another model: Intel(R) Xeon(R) Silver 4110 (CPU2)",
            Box::new(|i| i.cpus[1].model = "Intel(R) Xeon(R) Silver 4110".into()),
        ),
        (
            "cpu.mixed",
            "CPUs: the CPUs have 2 steppings: CPU1 6-85-4, CPU2 6-85-7",
            Box::new(|i| i.cpus[1].stepping = Some("6-85-7".into())),
        ),
        (
            "cpu.stepping",
            "CPUs: 2 of 2 CPUs are of another stepping: 6-85-7 (CPU1)",
            Box::new(|i| i.cpus.iter_mut().for_each(|cpu| cpu.stepping = Some("6-85-7".into()))),
        ),
        (
            "cpu.cores",
            "CPUs: 1 of 2 CPUs is of another number of cores: 8 cores (CPU1)",
            Box::new(|i| i.cpus[0].cores = 8),
        ),
        (
            "memory.size",
            "DIMM A3 of another size: 16 GiB, expected 32 GiB",
            Box::new(|i| i.memory.dimms[2].size_bytes = 16 << 30),
        ),
        (
            "memory.rated",
            "DIMM A3 too slow: 2400 MT/s, expected 2666 MT/s",
            Box::new(|i| {
                i.memory.dimms[2].rated_mts = Some(2400);
                i.memory.dimms.iter_mut().for_each(|dimm| dimm.speed_mts = Some(2400));
            }),
        ),
        (
            "memory.speed",
            "memory: it runs at 2133 MT/s, expected 2666 MT/s",
            Box::new(|i| i.memory.dimms.iter_mut().for_each(|dimm| dimm.speed_mts = Some(2133))),
        ),
        (
            "disk.missing",
            "disk in bay 7 missing: 11 of 12 × ST4000, 4 TB, sas, spinning",
            Box::new(|i| drop(i.disks.remove(7))),
        ),
        (
            "disk.slot",
            "disk sdg in bay 20, serial S4YN0006: disk is in the wrong slot bay 20, expected in bay 2, bay 3, bay 4, bay 5, \
             bay 6, bay 7, bay 8, bay 9, bay 10, bay 11, bay 12, bay 13",
            Box::new(|i| i.disks[6].slot = Some("bay 20".into())),
        ),
        ("disk.extra", "disk sdz, serial X9: one disk more than the model has", {
            Box::new(|i| {
                let spare = Disk { name: "sdz".into(), slot: None, serial: Serial::parse("X9"), ..i.disks[3].clone() };
                i.disks.push(spare);
            })
        }),
        ("nic.missing", "NICs: one NIC missing: 1 of 2 found", Box::new(|i| drop(i.nics.pop()))),
        ("nic.model", "NIC eno2: 1 of 2 NICs is another model", Box::new(|i| i.nics[1].driver = Some("igb".into()))),
        (
            "nic.speed",
            "NIC eno2: 1 of 2 NICs is too slow: 10 Gb/s, expected 25 Gb/s",
            Box::new(|i| (i.nics[1].max_mbps, i.nics[1].speed_mbps) = (Some(10_000), Some(10_000))),
        ),
        (
            "nic.link-speed",
            "NIC eno2: 1 of 2 NICs is linked at 10 Gb/s, expected 25 Gb/s",
            Box::new(|i| i.nics[1].speed_mbps = Some(10_000)),
        ),
        (
            "nic.firmware",
            "NIC eno2: its firmware 14.18.2 is older than 14.20",
            Box::new(|i| i.nics[1].firmware = Some("14.18.2".into())),
        ),
        ("nic.link", "NIC eno2: 1 of 2 links up", {
            Box::new(|i| (i.nics[1].link, i.nics[1].speed_mbps, i.nics[1].neighbour) = (false, None, None))
        }),
        ("gpu.missing", "GPUs: one GPU missing: 1 of 2 × A100", Box::new(|i| drop(i.pci.pop()))),
        (
            "gpu.model",
            "GPUs: 1 of 2 GPUs is another model",
            Box::new(|i| i.pci[2].name = Some("GV100GL [Tesla V100]".into())),
        ),
        ("tpm.missing", "TPM missing, or switched off in the firmware settings", Box::new(|i| i.tpm = None)),
        ("tpm.version", "TPM 1.2 found, expected 2.0", Box::new(|i| i.tpm.as_mut().unwrap().version = "1.2".into())),
        ("firmware.bios", "BIOS: its firmware 2.9.4 is older than 2.10", {
            Box::new(|i| i.system.bios_version = Some("2.9.4".into()))
        }),
        ("firmware.bmc", "BMC: its firmware 3.36 is older than 4.22", {
            Box::new(|i| i.bmc.as_mut().unwrap().firmware = Some("3.36".into()))
        }),
    ];
    for (id, sentence, plant) in plants {
        let finding = one(plant);
        assert_eq!((finding.id.as_str(), finding.to_string().as_str()), (id, sentence));
        assert!(finding.severity == if id == "disk.extra" { Severity::Warning } else { Severity::Fault }, "{id}");
    }
}

#[test]
fn a_dimm_is_missing_where_the_other_bank_has_one() {
    let finding = one(|i| i.memory.empty.push(i.memory.dimms.remove(11).slot));
    assert_eq!((finding.part.as_str(), finding.cause.as_str()), ("DIMM B4", "DIMM B4 missing: 15 of 16 × 32 GiB"));
    assert_eq!(finding.to_string(), "DIMM B4 missing: 15 of 16 × 32 GiB");
    // In both banks the same one, with neighbours on both sides.
    let both = one(|i| {
        i.memory.dimms.retain(|dimm| !dimm.slot.ends_with('4'));
        i.memory.empty.extend(["A4".into(), "B4".into()]);
    });
    assert_eq!(both.cause, "DIMMs A4, B4 missing: 14 of 16 × 32 GiB");
    // The last of both: it could be any slot behind.
    let unclear = one(|i| {
        i.memory.dimms.retain(|dimm| !dimm.slot.ends_with('8'));
        i.memory.empty.extend(["A8".into(), "B8".into()]);
    });
    assert_eq!(unclear.to_string(), "memory: 2 DIMMs missing: 14 of 16 × 32 GiB");
}

#[test]
fn slots_that_are_named_after_their_channel() {
    let text = "name = \"d51\"\nwhy = \"slots as of a Quanta D51\"\n[memory]\ncount = 8\nsize = \"16 GiB\"\n";
    let model = Model::parse("d51.toml", text).unwrap();
    let slot = |channel: u8, place: u8| format!("DIMM_{}{place}", char::from(b'A' + channel));
    let dimm = |slot: String| Dimm { slot, size_bytes: 16 << 30, ..Dimm::default() };
    let mut inventory = Inventory::default();
    inventory.memory.dimms = (0..4).flat_map(|channel| [slot(channel, 0), slot(channel, 1)]).map(dimm).collect();
    inventory.memory.empty = (0..4).map(|channel| slot(channel, 2)).collect();
    let ids = |inventory: &Inventory| {
        let found = findings_of(Some(&model), inventory);
        found.iter().filter(|f| f.id.starts_with("memory")).map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(ids(&inventory).is_empty());
    let taken = inventory.memory.dimms.remove(5);
    inventory.memory.empty.push(taken.slot.clone());
    assert_eq!(ids(&inventory), ["DIMM_C1 missing: 7 of 8 × 16 GiB"]);
    // Both of channel C moved to third places: all are there, and one channel is not used.
    inventory.memory.dimms.retain(|dimm| !dimm.slot.starts_with("DIMM_C"));
    inventory.memory.dimms.extend(["DIMM_A2", "DIMM_B2"].map(|slot| dimm(slot.into())));
    inventory.memory.empty = ["DIMM_C0", "DIMM_C1", "DIMM_C2", "DIMM_D2"].map(str::to_owned).to_vec();
    assert_eq!(ids(&inventory), ["memory: 3 of 4 channels populated: bandwidth is lost"]);
}

#[test]
fn slots_that_the_model_names() {
    let text = "name = \"x\"\nwhy = \"y\"\n[memory]\ncount = 2\nsize = \"16 GiB\"\nslots = [\"A1\", \"B1\"]\n";
    let model = Model::parse("x.toml", text).unwrap();
    let of = |slots: &[&str]| {
        let mut inventory = Inventory::default();
        let dimm = |slot: &&str| Dimm { slot: (*slot).into(), size_bytes: 16 << 30, ..Dimm::default() };
        inventory.memory.dimms = slots.iter().map(dimm).collect();
        let found = findings_of(Some(&model), &inventory);
        found.iter().filter(|f| f.id.starts_with("memory")).map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(of(&["A1", "b1"]).is_empty());
    assert_eq!(of(&["A1"]), ["DIMM B1 missing: 1 of 2 × 16 GiB"]);
    assert_eq!(of(&["A1", "A2"]), ["DIMM A2 belongs in B1"]);
    assert_eq!(of(&["A2"]), ["memory: one DIMM missing: 1 of 2 × 16 GiB"]);
    assert_eq!(of(&["A1", "A2", "B1"]), ["memory: 3 DIMMs found, 2 expected"]);
}

#[test]
fn wrong_disks_are_told_once_with_how_many() {
    let finding = one(|i| {
        for bay in [4, 9] {
            i.disks[bay].model = Some("WD4002FYYZ".into());
        }
    });
    assert_eq!((finding.id.as_str(), finding.cause.as_str()), ("disk.model", "2 of 12 disks are another model"));
    assert!(finding.part.contains("sde in bay 4, serial S4YN0004; disk sdj"), "{finding}");
    assert_eq!((finding.who, finding.expected.as_str()), (Who::Supplier, "ST4000, 4 TB, sas, spinning"));
    let finding = one(|i| i.disks[5] = disk(5, "SAMSUNG MZ7LH960", 960_197_124_096, false));
    assert_eq!(finding.cause, "1 of 12 disks is another kind, interface, size and model");
    let swapped = one(|i| {
        i.disks[1].slot = Some("bay 2".into());
        i.disks[2].slot = Some("bay 1".into());
    });
    assert_eq!(swapped.cause, "system disk in bay 2 and disk in bay 1 are swapped");
}

#[test]
fn a_site_says_how_much_it_matters() {
    let tolerant = MODEL.replace("model = \"ST4000*\"", "model = \"ST4000*\"\nseverity = \"note\"");
    let tolerant = format!("{tolerant}[cabling]\nseverity = \"warning\"\n");
    let mut inventory = machine();
    inventory.disks[4].model = Some("WD4002FYYZ".into());
    inventory.nics[1].neighbour.as_mut().unwrap().port = "Ethernet17".into();
    let model = Model::parse("r640.toml", &tolerant).unwrap();
    let severities: Vec<Severity> = findings_of(Some(&model), &inventory).iter().map(|f| f.severity).collect();
    assert_eq!(severities, [Severity::Note, Severity::Warning]);
}

#[test]
fn cables_in_other_ports() {
    let neighbour = |i: &mut Inventory, nic: usize, switch: &str, port: &str| {
        let neighbour = i.nics[nic].neighbour.as_mut().unwrap();
        (neighbour.switch, neighbour.port) = (switch.into(), port.into());
    };
    let finding = one(|i| neighbour(i, 1, "leaf-12b", "17"));
    assert_eq!(finding.to_string(), "NIC 2 on leaf-12b port 17, expected port 18");
    assert_eq!(
        (finding.expected.as_str(), finding.found.as_str()),
        ("leaf-12b 18", "leaf-12b 17 (eno2, 02:00:00:00:00:02)")
    );
    let finding = one(|i| neighbour(i, 1, "leaf-12b.dc1.example", "Ethernet17"));
    assert_eq!(
        finding.next,
        "kvm-9 is expected on leaf-12b.dc1.example Ethernet17: swap the cables, or correct the list"
    );
    let finding = one(|i| neighbour(i, 0, "leaf-13a", "18"));
    assert_eq!(finding.cause, "NIC 1 on leaf-13a port 18, expected leaf-12a 18");
    // Both cables of a bond the other way round are where the list has the machine.
    let mut inventory = machine();
    neighbour(&mut inventory, 0, "leaf-12b", "Eth18");
    neighbour(&mut inventory, 1, "leaf-12a", "18");
    assert_eq!(findings_of(Some(&model()), &inventory), []);
}

#[test]
fn a_model_that_nobody_knows_is_told_and_its_parts_are_not_compared() {
    let mut inventory = machine();
    inventory.disks.clear();
    let findings = findings_of(None, &inventory);
    assert_eq!(
        (findings.len(), findings[0].id.as_str(), findings[0].severity),
        (1, "model.unknown", Severity::Warning)
    );
}

/// Any inventory that fits one of the built-in models.
fn as_ordered(model: &Model) -> Inventory {
    let mut inventory = machine();
    let cpu = inventory.cpus[0].clone();
    inventory.cpus = vec![cpu; *model.cpu.as_ref().unwrap().count.as_ref()];
    let memory = model.memory.as_ref().unwrap();
    let dimm = |n: usize| Dimm { slot: format!("A{n}"), size_bytes: memory.size.value, ..Dimm::default() };
    inventory.memory = Memory { dimms: (1..=*memory.count.as_ref()).map(dimm).collect(), ..Memory::default() };
    let groups = model.disks.iter().flat_map(|group| (0..*group.count.as_ref()).map(move |_| group));
    let disk = |(n, group): (usize, &bom::Disks)| Disk {
        name: format!("d{n}"),
        // Makers round up by a little.
        size_bytes: group.size.as_ref().unwrap().value / 1000 * 1003,
        rotational: group.rotational.unwrap_or(true),
        transport: group.interface.map_or("sata", bom::Interface::word).into(),
        ..Disk::default()
    };
    inventory.disks = groups.enumerate().map(disk).collect();
    for nic in &mut inventory.nics {
        let speed = model.nics[0].speed.as_ref().unwrap().value as u32;
        (nic.max_mbps, nic.speed_mbps) = (Some(speed), Some(speed));
    }
    inventory
}

proptest! {
    #[test]
    fn whatever_the_order_of_the_disks_one_wrong_one_is_one_finding(
        (which, shuffled) in (0usize..4, Just((0usize..64).collect::<Vec<_>>()).prop_shuffle()),
        planted in any::<prop::sample::Index>(),
        fault in 0u8..4,
    ) {
        let models = Models::built_in().unwrap();
        let model = &models.all()[which];
        let mut inventory = as_ordered(model);
        let order: Vec<usize> = shuffled.into_iter().filter(|n| *n < inventory.disks.len()).collect();
        inventory.disks = order.iter().map(|n| inventory.disks[*n].clone()).collect();
        prop_assert_eq!(findings_of(Some(model), &inventory), []);
        let at = planted.index(inventory.disks.len());
        match fault {
            0 => drop(inventory.disks.remove(at)),
            1 => inventory.disks[at].size_bytes /= 2,
            2 => inventory.disks[at].rotational ^= true,
            _ => inventory.disks.push(Disk { name: "dx".into(), ..inventory.disks[at].clone() }),
        }
        let findings = findings_of(Some(model), &inventory);
        prop_assert_eq!(findings.len(), 1, "{:#?}", findings);
        prop_assert_eq!(&findings[0].id, ["disk.missing", "disk.size", "disk.kind", "disk.extra"][usize::from(fault)]);
    }

    #[test]
    fn nothing_that_an_agent_says_is_too_strange(
        slots in prop::collection::vec(".{0,12}", 0..20), empty in prop::collection::vec("[AB]?[0-9]{0,12}", 0..20),
        sizes in prop::collection::vec(any::<u64>(), 0..20), texts in prop::collection::vec(".{0,20}", 4),
    ) {
        let mut inventory = machine();
        inventory.memory.dimms = slots.iter().map(|slot| Dimm { slot: slot.clone(), ..Dimm::default() }).collect();
        inventory.memory.empty = empty;
        let disk = |size: &u64| Disk { size_bytes: *size, slot: texts.first().cloned(), ..Disk::default() };
        inventory.disks = sizes.iter().map(disk).collect();
        inventory.system.product = texts.get(1).cloned();
        inventory.nics[0].firmware = texts.get(2).cloned();
        inventory.nics[0].neighbour.as_mut().unwrap().port = texts[3].clone();
        for finding in findings_of(Some(&model()), &inventory) {
            prop_assert!(!finding.cause.is_empty() && !finding.next.is_empty());
        }
    }
}
