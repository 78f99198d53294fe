//! Where installed hosts stand.

use super::*;

fn host(n: u32, rack: &str) -> Reporter {
    Reporter { host: true, ..who(n, rack) }
}

#[test]
fn a_host_that_has_it_all_stands_before_the_machines_of_its_rack() {
    let mut s = swarm();
    joined(&mut s, &[(1, "a"), (2, "b"), (3, "b"), (4, "c")]);
    let plan = s.report(10, &host(9, "b"), &report(FRAMES));
    assert!(plan.predecessors.is_empty() && plan.needed);
    assert_eq!(follows(&mut s, 20, 1, "a", 0), [APPLIANCE]);
    assert_eq!(follows(&mut s, 20, 2, "b", 0), [address(9), address(1), APPLIANCE]);
    assert_eq!(follows(&mut s, 20, 3, "b", 0)[0], address(2));
    assert_eq!(follows(&mut s, 20, 4, "c", 0)[0], address(3));
    // Before one that a person waits for as well, and beside another one.
    s.report(30, &host(8, "b"), &report(FRAMES));
    let urgent = Reporter { first: true, ..who(3, "b") };
    assert_eq!(s.report(30, &urgent, &report(0)).predecessors[..2], [address(8), address(9)]);
    assert_eq!(s.in_rack("b"), InRack { fetching: 2, complete: 2 });
    let needed = |s: &mut Swarm| [8, 9].map(|n| s.report(40, &host(n, "b"), &report(FRAMES)).needed);
    follows(&mut s, 40, 3, "b", FRAMES);
    assert_eq!(needed(&mut s), [true, true], "the second machine is not done");
    follows(&mut s, 40, 2, "b", FRAMES);
    assert_eq!(needed(&mut s), [false, false], "what other racks need is not for them");
    assert_eq!(s.notes().len(), 2, "of the machines; a host that only gives is no news");
}

#[test]
fn a_host_that_may_not_send_fast_is_not_taken_for_slow() {
    let mut s = swarm();
    // It had the image fast, and gives it at a twentieth of that.
    for n in 0..=10 {
        s.report(u64::from(n) * 1000, &host(9, "a"), &report(n * 10));
    }
    for n in 0..20 {
        let now = 11_000 + u64::from(n) * 1000;
        s.report(now, &host(9, "a"), &report(FRAMES));
        for m in [1, 2, 3] {
            s.report(now, &who(m, "a"), &SwarmReport { bytes: u64::from(n) * 500, ..report(n / 2) });
        }
    }
    assert!(s.members().all(|m| m.standing == Standing::Line), "{:?}", s.notes());
}

#[test]
fn the_first_host_of_a_line_leaves_the_appliance_nothing_to_do() {
    let mut s = swarm();
    s.report(0, &host(9, "a"), &report(FRAMES));
    joined(&mut s, &[(1, "a"), (2, "b")]);
    assert_eq!(follows(&mut s, 10, 1, "a", 0), [address(9), APPLIANCE]);
    assert_eq!(follows(&mut s, 10, 2, "b", 0)[0], address(1));
}

#[test]
fn a_host_that_lacks_it_takes_nothing_from_those_that_wait_for_it() {
    let mut s = swarm();
    joined(&mut s, &[(1, "a"), (2, "a")]);
    let keeps = |s: &mut Swarm, frames| s.report(10, &host(9, "a"), &report(frames));
    let waits = keeps(&mut s, 0);
    assert_eq!((waits.predecessors, waits.needed), (vec![], false));
    assert_eq!(s.member(machine(9)).unwrap().standing, Standing::Waits);
    follows(&mut s, 20, 1, "a", FRAMES);
    assert!(!s.report(20, &who(2, "a"), &report(FRAMES)).needed, "no machine stays for it");
    assert_eq!(keeps(&mut s, 0).predecessors, [address(2), address(1), APPLIANCE]);
    // The next machine comes before it has all.
    follows(&mut s, 30, 3, "a", 0);
    assert!(keeps(&mut s, 50).predecessors.is_empty());
    assert_eq!(follows(&mut s, 30, 3, "a", 10)[0], address(2));
    follows(&mut s, 40, 3, "a", FRAMES);
    assert_eq!(keeps(&mut s, 50).predecessors[0], address(2));
    keeps(&mut s, FRAMES);
    assert_eq!(s.lines.tail(0).last(), Some(machine(9)), "now it is the first");
    // One that was damaged and is fetched anew.
    follows(&mut s, 50, 4, "a", 0);
    assert!(keeps(&mut s, 0).predecessors.is_empty());
    assert_eq!(follows(&mut s, 50, 4, "a", 0)[0], address(3));
}
