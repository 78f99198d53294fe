//! Fleets from a seed, with faults planted in them: what is found, what is told of machines that are well, and why.

use super::*;
use crate::machine::{Cpu, Dimm, Disk, DiskHealth, MacAddr, Memory, Nic, Serial, System};

/// splitmix64 (Steele, Lea, Flood 2014).
struct Dice(u64);

impl Dice {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box, Muller 1958).
    fn normal(&mut self) -> f64 {
        let (a, b) = (self.share().max(1e-12), self.share());
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Governor,
    Channel,
    Pending(usize),
    Link,
}

/// What the cause must say, and of which part.
fn sentence(fault: Fault) -> (&'static str, String) {
    match fault {
        Fault::Governor => ("governor is powersave", "CPU".into()),
        Fault::Channel => ("7 of 8 channels populated", "memory".into()),
        Fault::Pending(disk) => ("14 pending sectors", format!("disk sd{}", (b'a' + disk as u8) as char)),
        Fault::Link => ("its link runs at 1000 of 25000 Mb/s", "NIC eno1".into()),
    }
}

const MODELS: [(&str, f64, usize); 4] =
    [("LW-C1", 900.0, 2), ("LW-S1", 700.0, 12), ("LW-M1", 1100.0, 2), ("LW-H1", 1500.0, 4)];

fn machine(dice: &mut Dice, number: usize, fault: Option<Fault>) -> (Inventory, Vec<Measured>) {
    let (product, speed, disks) = MODELS[number % MODELS.len()];
    let governor = if fault == Some(Fault::Governor) { "powersave" } else { "performance" };
    let cpu = Cpu {
        model: "Xeon".into(),
        stepping: Some("6-85-7".into()),
        governor: Some(governor.into()),
        ..Cpu::default()
    };
    let mut memory = Memory::default();
    for channel in 'A'..='H' {
        let slot = format!("{channel}1");
        if fault == Some(Fault::Channel) && channel == 'H' {
            memory.empty.push(slot);
        } else {
            memory.dimms.push(Dimm { slot, size_bytes: 32 << 30, ..Dimm::default() });
        }
    }
    let disk = |i: usize| Disk {
        name: format!("sd{}", (b'a' + i as u8) as char),
        model: Some(format!("{product} disk")),
        serial: Serial::parse(&format!("S{number}X{i}")),
        transport: "sas".into(),
        health: Some(DiskHealth {
            pending_sectors: (fault == Some(Fault::Pending(i))).then_some(14),
            ..DiskHealth::default()
        }),
        ..Disk::default()
    };
    let nic = Nic {
        name: "eno1".into(),
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        driver: Some("mlx5_core".into()),
        pci: None,
        firmware: Some("16.35".into()),
        link: true,
        speed_mbps: Some(if fault == Some(Fault::Link) { 1000 } else { 25_000 }),
        boot: true,
        max_mbps: Some(25_000),
        queues: None,
        max_queues: None,
        numa: None,
        neighbour: None,
    };
    let inventory = Inventory {
        system: System { product: Some(product.into()), ..System::default() },
        cpus: vec![cpu.clone(), cpu],
        memory,
        disks: (0..disks).map(disk).collect(),
        nics: vec![nic],
        ..Inventory::default()
    };
    // A fault costs more in one machine and less in another.
    let much = dice.share();
    // Processors scatter by 1 %, memory by 2, disks by 3 and the network by 4; one value in fifty by three times as much.
    let mut value = |name: String, middle: f64, scatter: f64, share: f64, unit: &str| {
        let scatter = if dice.share() < 0.02 { scatter * 3.0 } else { scatter };
        Measured::new(name, middle * share * (1.0 + scatter * dice.normal()), unit)
    };
    let slow = |is: Fault, least: f64, most: f64| if fault == Some(is) { most + much * (least - most) } else { 1.0 };
    let mut measured = vec![
        value("cpu.blake3".into(), speed, 0.01, slow(Fault::Governor, 0.60, 0.80), "MB/s"),
        value("memory.copy".into(), speed * 9.0, 0.02, slow(Fault::Channel, 0.75, 0.87), "MB/s"),
        value("net.send.eno1".into(), 23_500.0, 0.04, slow(Fault::Link, 0.03, 0.04), "Mbit/s"),
    ];
    for (i, disk) in inventory.disks.iter().enumerate() {
        let share = slow(Fault::Pending(i), 0.4, 0.78);
        measured.push(value(format!("disk.read.{}", disk.name), speed / 4.0, 0.03, share, "MB/s"));
    }
    (inventory, measured)
}

/// 4,000 machines, one in twenty with a fault. Returns found and planted, false and healthy, told with the right cause.
fn fleet(seed: u64) -> [usize; 5] {
    let mut dice = Dice(seed);
    let mut cohorts = Cohorts::default();
    let [mut found, mut planted, mut alarms, mut healthy, mut right] = [0; 5];
    for number in 0..4000 {
        let fault = (dice.share() < 0.05).then(|| match dice.draw() % 4 {
            0 => Fault::Governor,
            1 => Fault::Channel,
            2 => Fault::Pending(dice.draw() as usize % MODELS[number % MODELS.len()].2),
            _ => Fault::Link,
        });
        let (inventory, mut measured) = machine(&mut dice, number, fault);
        let findings = cohorts.judge(&inventory, None, &mut measured, &Floors::new());
        cohorts.replace(None, Some((&inventory, &measured)));
        // Whoever comes first has no twins yet.
        if number < MODELS.len() * (TWINS_MIN + 1) {
            continue;
        }
        match fault {
            None => {
                healthy += 1;
                alarms += usize::from(!findings.is_empty());
            }
            Some(fault) => {
                planted += 1;
                let (words, part) = sentence(fault);
                let of_it = |f: &&Finding| f.part.starts_with(&part);
                found += usize::from(findings.iter().any(|f| of_it(&f) && f.severity >= Severity::Warning));
                right += usize::from(findings.iter().any(|f| of_it(&f) && f.cause.contains(words)));
            }
        }
    }
    [found, planted, alarms, healthy, right]
}

#[test]
fn planted_faults_are_found_and_healthy_machines_left_alone() {
    let mut sums = [0; 5];
    for seed in 1..=5 {
        sums.iter_mut().zip(fleet(seed)).for_each(|(sum, one)| *sum += one);
    }
    let [found, planted, alarms, healthy, right] = sums;
    let (hits, false_alarms) = (found as f64 / planted as f64, alarms as f64 / healthy as f64);
    println!("{found} of {planted} faults found ({right} with the right cause), {alarms} false alarms in {healthy}");
    assert!(planted > 900 && hits >= 0.95, "{found} of {planted}");
    assert!(false_alarms < 0.005, "{alarms} of {healthy}");
    assert!(right as f64 >= 0.95 * planted as f64, "{right} of {planted}");
}

#[test]
fn a_sentence_names_share_twins_and_cause() {
    let (mut dice, mut cohorts) = (Dice(7), Cohorts::default());
    for number in 0..47 {
        let (inventory, measured) = machine(&mut dice, number * MODELS.len(), None);
        cohorts.replace(None, Some((&inventory, &measured)));
    }
    let (inventory, mut measured) = machine(&mut dice, 400, Some(Fault::Governor));
    let findings = cohorts.judge(&inventory, None, &mut measured, &Floors::new());
    let [finding] = findings.as_slice() else { panic!("{findings:?}") };
    assert_eq!(finding.id, "cohort.cpu.blake3");
    let sentence = finding.to_string();
    assert!(
        sentence.starts_with("CPU: cpu.blake3 ") && sentence.ends_with(" % below 47 twins; governor is powersave"),
        "{sentence}"
    );
    let twins = measured[0].twins.as_ref().unwrap();
    assert!(twins.count == 47 && (twins.median - 900.0).abs() < 10.0 && twins.mad > 0.0, "{twins:?}");
}

#[test]
fn seven_twins_are_no_measure_and_a_floor_needs_none() {
    let (mut dice, mut cohorts) = (Dice(7), Cohorts::default());
    for number in 0..7 {
        let (inventory, measured) = machine(&mut dice, number * MODELS.len(), None);
        cohorts.replace(None, Some((&inventory, &measured)));
    }
    let (inventory, mut measured) = machine(&mut dice, 400, Some(Fault::Governor));
    assert!(cohorts.judge(&inventory, None, &mut measured, &Floors::new()).is_empty());
    let floors = Floors::from([("cpu.blake3".to_owned(), 850.0)]);
    let findings = cohorts.judge(&inventory, None, &mut measured, &floors);
    assert!(findings[0].cause.contains("below what its model must reach"), "{findings:?}");
}

/// A machine that is measured again is not its own twin, and leaves nothing of its old values behind.
#[test]
fn new_values_take_the_place_of_old_ones() {
    let (mut dice, mut cohorts) = (Dice(3), Cohorts::default());
    let (inventory, old) = machine(&mut dice, 0, None);
    let (_, mut new) = machine(&mut dice, 0, None);
    cohorts.replace(None, Some((&inventory, &old)));
    let before = cohorts.views();
    cohorts.judge(&inventory, Some((&inventory, &old)), &mut new, &Floors::new());
    assert_eq!(new[0].twins, None);
    assert_eq!(cohorts.views(), before, "judging changes nothing");
    cohorts.replace(Some((&inventory, &old)), Some((&inventory, &new)));
    let cpu = cohorts.views().into_iter().find(|view| view.measure == "cpu.blake3").unwrap();
    assert_eq!((cpu.count, cpu.median), (1, new[0].value));
    cohorts.replace(Some((&inventory, &new)), None);
    assert!(cohorts.views().is_empty());
}

#[test]
fn median_and_mad_of_a_few_values() {
    let mut cohort = Cohort::default();
    for value in [1.0, 2.0, 2.0, 4.0, 6.0, 9.0, 1.0] {
        cohort.values.insert(value);
    }
    let twins = cohort.middle().unwrap();
    assert!(twins.median == 2.0 && (twins.mad - 1.0).abs() < 1e-6, "{twins:?}");
    cohort.values.remove(1.0);
    assert_eq!(cohort.middle().unwrap().median, 3.0);
}

#[test]
fn slower_is_worse_and_sooner_is_not() {
    let value = |value, unit: &str| Measured {
        twins: Some(Twins { count: 20, median: 10.0, mad: 0.1 }),
        ..Measured::new("x.y", value, unit)
    };
    assert!(worse(&value(13.0, "s"), None).is_some() && worse(&value(7.0, "s"), None).is_none());
    assert!(worse(&value(7.0, "MB/s"), None).is_some() && worse(&value(13.0, "MB/s"), None).is_none());
    assert_eq!(worse(&value(8.8, "MB/s"), None).unwrap().1, Severity::Warning);
    assert!(worse(&value(9.5, "MB/s"), None).is_none());
}
