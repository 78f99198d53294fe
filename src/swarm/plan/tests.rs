//! Whatever members come, go, lie and starve: plans have no circle, everybody is fed in the end, nobody feeds many.

use proptest::prelude::*;

use super::*;
use crate::link::SwarmSource;
use crate::machine::Digest;

mod hall;
mod hosts;

const FRAMES: u32 = 100;
const APPLIANCE: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)), 7000);

fn machine(n: u32) -> MachineId {
    MachineId(uuid::Uuid::from_u128(u128::from(n) + 1))
}

fn who(n: u32, rack: &str) -> Reporter {
    let [_, a, b, c] = n.to_be_bytes();
    Reporter {
        machine: machine(n),
        rack: rack.into(),
        address: IpAddr::from([10, 1 + a, b, c]),
        appliance: APPLIANCE,
        first: false,
        host: false,
    }
}

fn address(n: u32) -> SocketAddr {
    SocketAddr::new(who(n, "").address, 4000)
}

fn report(frames: u32) -> SwarmReport {
    SwarmReport {
        image: Digest([0; 32]),
        port: 4000,
        frames,
        bytes: u64::from(frames) * 1000,
        lacking: FRAMES.saturating_sub(frames),
        from: Vec::new(),
        garbage: Vec::new(),
        starved_ms: 0,
        leaving: false,
        seat: None,
    }
}

fn swarm() -> Swarm {
    Swarm::new(Settings::default(), FRAMES, u64::from(FRAMES) * 1000)
}

fn joined(swarm: &mut Swarm, members: &[(u32, &str)]) {
    for (n, rack) in members {
        swarm.report(0, &who(*n, rack), &report(0));
    }
}

fn follows(swarm: &mut Swarm, now: Millis, n: u32, rack: &str, frames: u32) -> Vec<SocketAddr> {
    swarm.report(now, &who(n, rack), &report(frames)).predecessors
}

#[test]
fn one_pipeline_through_one_rack_after_the_other() {
    let mut s = swarm();
    joined(&mut s, &[(1, "a"), (2, "b"), (3, "a"), (4, "b")]);
    assert_eq!(follows(&mut s, 100, 1, "a", 0), [APPLIANCE]);
    assert_eq!(follows(&mut s, 100, 3, "a", 0), [address(1), APPLIANCE]);
    assert_eq!(follows(&mut s, 100, 2, "b", 0), [address(3), address(1), APPLIANCE]);
    assert_eq!(follows(&mut s, 100, 4, "b", 0), [address(2), address(3), address(1), APPLIANCE]);
}

#[test]
fn who_falls_silent_is_passed_over_and_has_its_seat_when_it_comes_back() {
    let mut s = swarm();
    joined(&mut s, &[(1, "a"), (2, "a"), (3, "a")]);
    for now in [1000, 2000, 3000, 4000] {
        follows(&mut s, now, 1, "a", 5);
        follows(&mut s, now, 3, "a", 5);
    }
    assert_eq!(follows(&mut s, 4000, 3, "a", 5), [address(1), APPLIANCE]);
    assert_eq!(s.notes(), [Note::Gone { member: machine(2) }]);
    assert_eq!(follows(&mut s, 5000, 2, "a", 5), [address(1), APPLIANCE]);
    assert_eq!(follows(&mut s, 5000, 3, "a", 5), [address(2), address(1), APPLIANCE]);
}

#[test]
fn who_comes_later_gets_from_the_first_what_that_has() {
    let mut s = swarm();
    joined(&mut s, &[(1, "a")]);
    (1..=30).for_each(|t| _ = follows(&mut s, t * 1000, 1, "a", t as u32));
    for t in 31..=50 {
        follows(&mut s, t * 1000, 1, "a", t as u32);
        assert_eq!(follows(&mut s, t * 1000, 2, "a", t as u32 - 30), [address(1), APPLIANCE], "after {t} s");
    }
}

#[test]
fn near_the_end_nobody_changes_places_because_of_an_older_report() {
    let mut s = swarm();
    joined(&mut s, &[(1, "a"), (2, "a"), (3, "a")]);
    follows(&mut s, 100, 1, "a", 99);
    follows(&mut s, 100, 2, "a", 94);
    assert_eq!(follows(&mut s, 900, 3, "a", 98), [address(2), address(1), APPLIANCE]);
    follows(&mut s, 1000, 2, "a", 40);
    assert_eq!(follows(&mut s, 1100, 3, "a", 98), [address(1), address(2), APPLIANCE], "but 2 has long to go");
}

#[test]
fn whole_frames_do_not_hide_a_slow_one() {
    let mut s = swarm();
    joined(&mut s, &[(1, "a"), (2, "a"), (3, "a"), (4, "a"), (5, "a")]);
    // 3 and those behind it get three frames in two seconds, so by turns one and two.
    for (second, few) in (1..).zip([1, 3, 4]) {
        for n in 1..=5 {
            follows(&mut s, second * 1000, n, "a", if n < 3 { second as u32 * 6 } else { few });
        }
    }
    let slow: Vec<_> = s.members().filter(|m| m.standing == Standing::Leaf(Why::Slow)).map(|m| m.machine).collect();
    assert_eq!(slow, [machine(3)]);
}

#[test]
fn silence_of_the_appliance_is_nobodys_fault() {
    let mut s = swarm();
    joined(&mut s, &[(1, "a"), (2, "a")]);
    assert_eq!(follows(&mut s, 60_000, 2, "a", 9), [address(1), APPLIANCE], "the first to be heard after a minute");
    let told = (61..=64).map(|s| s * 1000).map(|now| follows(&mut s, now, 2, "a", 9)).last();
    assert_eq!(told.unwrap(), [APPLIANCE], "but 1 is gone");
}

#[test]
fn seats_outlast_the_appliance() {
    let (mut before, mut after) = (swarm(), swarm());
    let mut seats = Vec::new();
    for n in 0..5 {
        seats.push(before.report(0, &who(n, "a"), &report(0)).seat);
    }
    for n in [3u32, 0, 4, 2, 1] {
        let report = SwarmReport { seat: Some(seats[n as usize]), ..report(10) };
        after.report(0, &who(n, "a"), &report);
    }
    for n in 1..5 {
        assert_eq!(follows(&mut after, 500, n, "a", 10)[0], address(n - 1));
    }
    let forged = SwarmReport { seat: Some(u64::MAX), ..report(0) };
    assert!(after.report(600, &who(9, "a"), &forged).seat < 1 << 40);
}

#[test]
fn garbage_is_believed_of_those_that_one_follows() {
    let mut s = swarm();
    joined(&mut s, &[(1, "a"), (2, "a"), (3, "a"), (4, "a"), (5, "a"), (6, "a")]);
    let accuses = |by: u32, of: u32| (who(by, "a"), SwarmReport { garbage: vec![address(of)], ..report(3) });
    let (by, stranger) = accuses(2, 6);
    s.report(10, &by, &stranger);
    assert_eq!(s.notes(), [], "2 was never told to follow 6");
    let (by, real) = accuses(3, 2);
    assert_eq!(s.report(20, &by, &real).predecessors, [address(1), APPLIANCE]);
    assert_eq!(s.notes(), [Note::Garbage { peer: machine(2), by: machine(3) }]);
    assert_eq!(s.member(machine(2)).unwrap().standing, Standing::Leaf(Why::Garbage));
    follows(&mut s, 30, 6, "a", 3);
    assert_eq!(follows(&mut s, 30, 2, "a", 3)[0], address(6), "it is still fed");
    s.report(40, &by, &real);
    assert_eq!(s.notes(), []);
}

#[test]
fn who_cries_wolf_is_not_believed_for_long() {
    let mut s = swarm();
    for n in 0..40 {
        s.report(0, &who(n, "a"), &report(0));
    }
    for now in 1..20 {
        let told = s.report(now, &who(39, "a"), &report(1)).predecessors;
        s.report(now, &who(39, "a"), &SwarmReport { garbage: told, ..report(1) });
    }
    assert_eq!(s.notes().len(), MAX_ACCUSED as usize);
}

#[test]
fn the_hungry_pass_over_those_that_do_not_serve() {
    let mut s = swarm();
    joined(&mut s, &[(1, "a"), (2, "a"), (3, "a"), (4, "b")]);
    for n in 1..=3 {
        follows(&mut s, 10, n, "a", 50);
    }
    let hungry = SwarmReport { starved_ms: 2500, ..report(20) };
    s.report(20, &who(3, "a"), &report(50));
    let near = s.report(20, &who(4, "b"), &hungry);
    assert_eq!(near.predecessors, [APPLIANCE], "a whole rack may be out of reach");
    follows(&mut s, 30, 2, "a", 60);
    let inside = s.report(40, &who(3, "a"), &SwarmReport { starved_ms: 2500, ..report(50) });
    assert_eq!(inside.predecessors, [address(1), APPLIANCE]);
    let later = s.report(40 + AVOID, &who(3, "a"), &report(60));
    assert_eq!(later.predecessors[0], address(2));
}

#[test]
fn the_finished_stay_as_long_as_somebody_follows() {
    let mut s = swarm();
    joined(&mut s, &[(1, "a"), (2, "a"), (3, "a")]);
    let plan = |s: &mut Swarm, n, frames| s.report(10, &who(n, "a"), &report(frames));
    assert!(plan(&mut s, 1, FRAMES).needed);
    plan(&mut s, 2, FRAMES);
    let done = plan(&mut s, 1, FRAMES);
    assert!(!done.needed && done.predecessors.is_empty());
    assert!(plan(&mut s, 2, FRAMES).needed);
    let bye = s.report(11, &who(2, "a"), &SwarmReport { leaving: true, ..report(FRAMES) });
    assert!(!bye.needed);
    assert_eq!(plan(&mut s, 3, 50).predecessors, [address(1), APPLIANCE]);
}

#[test]
fn a_person_waits_for_it() {
    let mut s = swarm();
    joined(&mut s, &[(1, "a"), (2, "a"), (3, "a")]);
    let urgent = Reporter { first: true, ..who(3, "a") };
    assert_eq!(s.report(10, &urgent, &report(0)).predecessors, [APPLIANCE]);
    assert_eq!(follows(&mut s, 10, 1, "a", 0), [address(3), APPLIANCE]);
}

#[test]
fn limits_of_machine_and_rack() {
    let settings = Settings { upload_limit: Some(50), rack_limit: Some(20), ..Settings::default() };
    let mut s = Swarm::new(settings, FRAMES, 1000);
    joined(&mut s, &[(1, "a"), (2, "a"), (3, "b")]);
    let limit = |s: &mut Swarm, n, rack| s.report(10, &who(n, rack), &report(0)).upload_limit;
    assert_eq!([limit(&mut s, 1, "a"), limit(&mut s, 2, "a")], [Some(50), Some(20)]);
}

#[test]
fn forged_counts_are_held_to_the_image() {
    let mut s = swarm();
    joined(&mut s, &[(1, "a"), (2, "b")]);
    let from = |n, bytes| SwarmSource { address: address(n), bytes };
    let real = SwarmReport { from: vec![from(1, 300), SwarmSource { address: APPLIANCE, bytes: 200 }], ..report(1) };
    s.report(10, &who(2, "b"), &real);
    assert_eq!(s.traffic(), Traffic { appliance: 200, other_rack: 300, ..Traffic::default() });
    let forged = SwarmReport { from: vec![from(1, u64::MAX); 1000], frames: u32::MAX, bytes: u64::MAX, ..report(1) };
    s.report(20, &who(2, "b"), &forged);
    let sum = s.traffic();
    assert_eq!(sum.appliance + sum.other_rack, u64::from(FRAMES) * 1000 * 4);
    assert_eq!(s.member(machine(2)).unwrap().frames, FRAMES);
}

#[test]
fn more_members_than_can_be_kept_are_sent_to_the_appliance() {
    let mut s = swarm();
    for n in 0..MAX_MEMBERS as u32 + 5 {
        s.report(0, &who(n, &(n / 40).to_string()), &report(0));
    }
    assert_eq!(s.members().count(), MAX_MEMBERS);
    assert_eq!(follows(&mut s, 1, MAX_MEMBERS as u32 + 1, "0", 0), [APPLIANCE]);
}

#[test]
fn a_report_costs_the_same_in_a_large_fleet() {
    let steps = |fleet: u32| {
        let mut s = swarm();
        let all: Vec<Reporter> = (0..fleet).map(|n| who(n, &(n / 40).to_string())).collect();
        let round = |s: &mut Swarm, at: Millis| {
            let before = s.lines.steps.get();
            for (n, who) in all.iter().enumerate() {
                s.report(at + n as Millis * 900 / Millis::from(fleet), who, &report(at as u32 / 1000));
            }
            (s.lines.steps.get() - before) / all.len()
        };
        (0..6).map(|at| round(&mut s, at * 1000)).max().unwrap()
    };
    let (small, large) = (steps(100), steps(20_000));
    assert!(small <= 8 && large <= 8, "{small} steps among 100 members, {large} among 20,000");
}

/// Edges of all plans at one moment; (who follows, whom, as which choice).
fn edges(s: &mut Swarm, now: Millis, all: &HashMap<u32, (u8, u32)>) -> Vec<(u32, SocketAddr, usize)> {
    let mut edges = Vec::new();
    for (n, (rack, frames)) in all {
        let plan = s.report(now, &who(*n, &rack.to_string()), &report(*frames));
        edges.extend(plan.predecessors.iter().enumerate().map(|(choice, to)| (*n, *to, choice)));
    }
    edges
}

#[derive(Debug, Clone)]
enum Act {
    Report { n: u32, gained: u32, starved: bool },
    Accuse { n: u32, of: u32 },
    Leave { n: u32 },
    Pass { millis: Millis },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0u32..60, 0u32..40, any::<bool>()).prop_map(|(n, gained, starved)| Act::Report { n, gained, starved }),
        1 => (0u32..60, 0u32..60).prop_map(|(n, of)| Act::Accuse { n, of }),
        1 => (0u32..60).prop_map(|n| Act::Leave { n }),
        2 => (1u64..2000).prop_map(|millis| Act::Pass { millis }),
    ]
}

proptest! {
    #[test]
    fn plans_have_no_circle_and_lead_to_the_appliance(
        lines in 1u64..4,
        racks in 1u32..6,
        acts in prop::collection::vec(act(), 1..400),
    ) {
        let settings = Settings { uplink: Some(lines * 100), machine_link: Some(100), ..Settings::default() };
        let mut s = Swarm::new(settings, FRAMES, u64::from(FRAMES) * 1000);
        let mut all: HashMap<u32, (u8, u32)> = HashMap::new();
        let mut now = 0;
        for act in acts {
            let rack = |n: u32| (n % racks) as u8;
            match act {
                Act::Report { n, gained, starved } => {
                    let at = all.entry(n).or_insert((rack(n), 0));
                    at.1 = (at.1 + gained).min(FRAMES);
                    let starved_ms = if starved { STARVED } else { 0 };
                    s.report(now, &who(n, &at.0.to_string()), &SwarmReport { starved_ms, ..report(at.1) });
                }
                Act::Accuse { n, of } if all.contains_key(&n) => {
                    let (rack, frames) = all[&n];
                    let garbage = vec![address(of)];
                    s.report(now, &who(n, &rack.to_string()), &SwarmReport { garbage, ..report(frames) });
                }
                Act::Leave { n } if all.contains_key(&n) => {
                    let (rack, frames) = all.remove(&n).unwrap();
                    s.report(now, &who(n, &rack.to_string()), &SwarmReport { leaving: true, ..report(frames) });
                }
                Act::Pass { millis } => now += millis,
                _ => {}
            }
        }
        // Everybody is heard once, so that those who fell silent are back; then each is asked for its plan.
        edges(&mut s, now, &all);
        let edges = edges(&mut s, now, &all);
        let unfinished: Vec<u32> = all.iter().filter(|(_, (_, f))| *f < FRAMES).map(|(n, _)| *n).collect();
        for n in &unfinished {
            let of_n: Vec<_> = edges.iter().filter(|e| e.0 == *n).collect();
            prop_assert!(of_n.iter().any(|e| e.1 == APPLIANCE) && of_n.len() <= STANDBYS + 1);
        }
        // No circle over first choices and standbys together: leaves can be taken off until nothing is left.
        let mut left: Vec<(SocketAddr, SocketAddr)> =
            edges.iter().filter(|e| e.1 != APPLIANCE).map(|e| (address(e.0), e.1)).collect();
        while !left.is_empty() {
            let before = left.len();
            let followers: std::collections::HashSet<_> = left.iter().map(|(from, _)| *from).collect();
            left.retain(|(_, to)| followers.contains(to));
            prop_assert!(left.len() < before, "a circle among {left:?}");
        }
        let mut load: HashMap<SocketAddr, usize> = HashMap::new();
        for (_, to, _) in edges.iter().filter(|e| e.2 == 0 && e.1 != APPLIANCE) {
            *load.entry(*to).or_default() += 1;
        }
        // One in the line and a leaf; for a while one that avoids somebody, and one that waits for a newcomer.
        prop_assert!(load.values().all(|n| *n <= 4), "{load:?}");
    }

    #[test]
    fn a_quiet_swarm_crosses_each_trunk_once_a_line(
        lines in 1u64..4,
        order in Just((0u32..96).collect::<Vec<_>>()).prop_shuffle(),
        racks in 1u32..8,
    ) {
        let settings = Settings { uplink: Some(lines * 100), machine_link: Some(100), ..Settings::default() };
        let mut s = Swarm::new(settings, FRAMES, u64::from(FRAMES) * 1000);
        for n in &order {
            s.report(0, &who(*n, &(n % racks).to_string()), &report(0));
        }
        let mut load: HashMap<SocketAddr, usize> = HashMap::new();
        let mut into: HashMap<u32, usize> = HashMap::new();
        for n in &order {
            let first = s.report(1, &who(*n, &(n % racks).to_string()), &report(0)).predecessors[0];
            *load.entry(first).or_default() += 1;
            let from = order.iter().find(|m| address(**m) == first).map(|m| m % racks);
            if from != Some(n % racks) {
                *into.entry(n % racks).or_default() += 1;
            }
        }
        prop_assert!(load.iter().all(|(to, n)| *n <= if *to == APPLIANCE { lines as usize } else { 1 }), "{load:?}");
        // A rack of more than a section's length is cut, each part in one line.
        let parts = |rack: u32| order.iter().filter(|n| *n % racks == rack).count().div_ceil(line::SECTION);
        prop_assert!(into.iter().all(|(rack, n)| *n <= parts(*rack)), "{into:?}");
    }
}
