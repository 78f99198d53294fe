//! A hall of racks in simulated time: links and trunks of one rate, members that behave as `swarm::relay` does, and the
//! planner between them. A frame crosses a link in one tick of 10 ms; 2000 frames are the image, so 20 s are the ideal.

use super::*;

const IMAGE: u32 = 2000;
const TICK: Millis = 10;
/// The appliance, as an index of a node.
const SERVER: usize = 0;
const IDEAL: Millis = IMAGE as Millis * TICK;

struct Node {
    rack: usize,
    host: bool,
    starts: Millis,
    /// Between two reports.
    every: Millis,
    alive: bool,
    /// Frames a tick, down and up.
    down: f64,
    up: f64,
    has: Vec<bool>,
    /// Frames in the order in which they came.
    log: Vec<u32>,
    predecessors: Vec<usize>,
    choice: usize,
    /// Since when the present predecessor cannot be reached.
    lost: Option<Millis>,
    seat: Option<u64>,
    last: Millis,
    credit: f64,
    done: Option<Millis>,
    from: HashMap<usize, u64>,
}

struct Hall {
    nodes: Vec<Node>,
    swarm: Swarm,
    settings: Settings,
    now: Millis,
    /// Rate of a trunk, in frames a tick.
    trunk: f64,
    /// For each rack: its trunk works.
    trunks: Vec<bool>,
    /// Frames that came in over each trunk, and that the server sent.
    into: Vec<u64>,
    sent: u64,
}

impl Hall {
    fn new(racks: usize, each: usize, settings: Settings) -> Self {
        let node = |rack, starts| Node {
            rack,
            host: false,
            starts,
            every: 1000,
            alive: true,
            down: 1.0,
            up: 1.0,
            has: vec![false; IMAGE as usize],
            log: Vec::new(),
            predecessors: Vec::new(),
            choice: 0,
            lost: None,
            seat: None,
            last: starts,
            credit: 0.0,
            done: None,
            from: HashMap::new(),
        };
        let mut server = node(usize::MAX, 0);
        (server.has, server.log) = (vec![true; IMAGE as usize], (0..IMAGE).rev().collect());
        server.up = settings.lines() as f64;
        let mut nodes = vec![server];
        // They come within a second of each other, racks mixed.
        nodes.extend((0..racks * each).map(|i| node(i % racks, (i as Millis * 379) % 1000)));
        let swarm = Swarm::new(settings, IMAGE, u64::from(IMAGE));
        Self { nodes, swarm, settings, now: 0, trunk: 1.0, trunks: vec![true; racks], into: vec![0; racks], sent: 0 }
    }

    fn reaches(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.nodes[a], &self.nodes[b]);
        let up = |rack: usize| self.trunks.get(rack).copied().unwrap_or(true);
        a.alive && b.alive && (a.rack == b.rack || up(a.rack) && up(b.rack))
    }

    fn report(&mut self, n: usize) {
        if !self.reaches(n, SERVER) {
            return;
        }
        let node = &self.nodes[n];
        let starving = if node.done.is_none() { (self.now - node.last) as u32 } else { 0 };
        let of = |i: usize| if i == SERVER { APPLIANCE } else { address(i as u32) };
        let report = SwarmReport {
            frames: node.log.len() as u32,
            bytes: node.log.len() as u64,
            lacking: IMAGE - node.log.len() as u32,
            starved_ms: starving,
            seat: node.seat,
            from: node.from.iter().map(|(i, bytes)| SwarmSource { address: of(*i), bytes: *bytes }).collect(),
            ..report(0)
        };
        let who = Reporter { host: node.host, ..who(n as u32, &node.rack.to_string()) };
        let plan = self.swarm.report(self.now, &who, &report);
        let index = |a: &SocketAddr| (0..self.nodes.len()).find(|i| of(*i) == *a).unwrap();
        let predecessors: Vec<usize> = plan.predecessors.iter().map(index).collect();
        let node = &mut self.nodes[n];
        node.seat = Some(plan.seat);
        let present = node.predecessors.get(node.choice).copied();
        if predecessors.first() != node.predecessors.first() || present.is_none_or(|p| !predecessors.contains(&p)) {
            (node.choice, node.lost) = (0, None);
        } else {
            node.choice = predecessors.iter().position(|p| Some(*p) == present).unwrap_or(0);
        }
        node.predecessors = predecessors;
    }

    /// The one that feeds it now. One that cannot be reached is given up after a second, and the next one is tried.
    fn source(&mut self, n: usize) -> Option<usize> {
        let node = &self.nodes[n];
        let source = *node.predecessors.get(node.choice)?;
        if self.reaches(n, source) {
            self.nodes[n].lost = None;
            return Some(source);
        }
        let (now, node) = (self.now, &mut self.nodes[n]);
        let since = *node.lost.get_or_insert(now);
        if now - since >= 1000 {
            node.choice = (node.choice + 1) % node.predecessors.len();
            node.lost = None;
        }
        None
    }

    /// What the one sends the other next: the newest that the other lacks.
    fn next(&self, from: usize, known: usize, to: usize) -> Option<u32> {
        let (from, to) = (&self.nodes[from], &self.nodes[to]);
        if to.log.len() == IMAGE as usize {
            return None;
        }
        from.log[..known].iter().rev().copied().find(|f| !to.has[*f as usize])
    }

    fn tick(&mut self) {
        self.now += TICK;
        let now = self.now;
        let here = |h: &Self, n: usize| h.nodes[n].alive && h.nodes[n].starts <= now;
        for n in 1..self.nodes.len() {
            if here(self, n) && (now - self.nodes[n].starts) % self.nodes[n].every < TICK {
                self.report(n);
            }
        }
        let known: Vec<usize> = self.nodes.iter().map(|n| n.log.len()).collect();
        let flows: Vec<(usize, usize)> = (1..self.nodes.len())
            .filter(|n| here(self, *n) && self.nodes[*n].done.is_none())
            .collect::<Vec<_>>()
            .into_iter()
            .filter_map(|n| {
                let from = self.source(n)?;
                self.next(from, known[from], n).map(|_| (from, n))
            })
            .collect();
        let rates = self.shares(&flows);
        for ((from, to), rate) in flows.into_iter().zip(rates) {
            self.nodes[to].credit += rate;
            while self.nodes[to].credit >= 1.0 - 1e-9 {
                self.nodes[to].credit -= 1.0;
                let Some(frame) = self.next(from, known[from], to) else { break };
                self.deliver(from, to, frame);
            }
        }
    }

    /// Max-min fair shares of links and trunks, in frames a tick: all grow alike until something is full.
    fn shares(&self, flows: &[(usize, usize)]) -> Vec<f64> {
        #[derive(PartialEq, Eq, Hash, Clone, Copy)]
        enum Pipe {
            Up(usize),
            Down(usize),
            Out(usize),
            Into(usize),
        }
        let pipes_of = |(from, to): (usize, usize)| {
            let (a, b) = (self.nodes[from].rack, self.nodes[to].rack);
            let mut pipes = vec![(Pipe::Up(from), self.nodes[from].up), (Pipe::Down(to), self.nodes[to].down)];
            if a != b {
                pipes.push((Pipe::Into(b), self.trunk));
            }
            if a != b && from != SERVER {
                pipes.push((Pipe::Out(a), self.trunk));
            }
            pipes
        };
        let mut room: HashMap<Pipe, f64> = flows.iter().flat_map(|f| pipes_of(*f)).collect();
        let mut rates = vec![0.0; flows.len()];
        let mut open: Vec<usize> = (0..flows.len()).collect();
        while !open.is_empty() {
            let mut users: HashMap<Pipe, f64> = HashMap::new();
            for i in &open {
                pipes_of(flows[*i]).iter().for_each(|(p, _)| *users.entry(*p).or_default() += 1.0);
            }
            let step = users.iter().map(|(p, n)| room[p] / n).fold(f64::INFINITY, f64::min).max(0.0);
            open.iter().for_each(|i| rates[*i] += step);
            users.iter().for_each(|(p, n)| *room.get_mut(p).unwrap() -= step * n);
            open.retain(|i| pipes_of(flows[*i]).iter().all(|(p, _)| room[p] > 1e-9));
        }
        rates
    }

    fn deliver(&mut self, from: usize, to: usize, frame: u32) {
        let rack = self.nodes[to].rack;
        if self.nodes[from].rack != rack {
            self.into[rack] += 1;
        }
        self.sent += u64::from(from == SERVER);
        let now = self.now;
        let node = &mut self.nodes[to];
        node.has[frame as usize] = true;
        node.log.push(frame);
        node.last = now;
        *node.from.entry(from).or_default() += 1;
        if node.log.len() == IMAGE as usize {
            node.done = Some(now);
        }
    }

    /// Until everybody alive has everything; `each` is called before each tick.
    fn run(&mut self, mut each: impl FnMut(&mut Self)) -> Millis {
        while self.nodes.iter().skip(1).any(|n| n.alive && n.done.is_none()) {
            each(self);
            self.tick();
            assert!(self.now < 20 * IDEAL, "it does not end: {}", self.where_it_stands());
        }
        self.now
    }

    /// The slowest of those, from its own start, over the ideal.
    fn ratio(&self, which: impl Fn(usize, &Node) -> bool) -> f64 {
        let of = |n: &Node| n.done.map_or(f64::INFINITY, |done| (done - n.starts) as f64 / IDEAL as f64);
        let all = self.nodes.iter().enumerate().skip(1);
        all.filter(|(i, n)| n.alive && which(*i, n)).map(|(_, n)| of(n)).fold(0.0, f64::max)
    }

    fn copies(frames: u64) -> f64 {
        frames as f64 / f64::from(IMAGE)
    }

    fn where_it_stands(&self) -> String {
        let line = |(i, n): (usize, &Node)| format!("{i}@{}:{}<{:?}", n.rack, n.log.len(), n.predecessors);
        let open = self.nodes.iter().enumerate().filter(|(_, n)| n.alive && n.done.is_none());
        open.map(line).collect::<Vec<_>>().join(" ")
    }
}

fn hall(racks: usize, each: usize) -> Hall {
    Hall::new(racks, each, Settings::default())
}

#[test]
fn racks_behind_trunks_are_as_fast_as_one_link() {
    for (racks, each) in [(1, 32), (2, 16), (4, 16)] {
        let mut h = hall(racks, each);
        h.run(|_| {});
        // Of the excess, one tick a hop is the simulation's own.
        let (ratio, server) = (h.ratio(|_, _| true), Hall::copies(h.sent));
        let trunk = h.into.iter().map(|n| Hall::copies(*n)).fold(0.0, f64::max);
        assert!(ratio < 1.1 && trunk <= 1.1 && server <= 1.1, "{racks} racks: {ratio}, trunk {trunk}, server {server}");
        let seen = h.swarm.traffic();
        assert!(seen.unknown == 0 && seen.appliance.abs_diff(h.sent) < 200, "{seen:?}");
    }
}

#[test]
fn a_rack_with_a_host_that_keeps_the_image_needs_nothing_from_outside() {
    let mut h = hall(3, 12);
    let all: Vec<u32> = (0..IMAGE).collect();
    let host = &mut h.nodes[2];
    (host.host, host.starts, host.done) = (true, TICK, Some(TICK));
    (host.has, host.log) = (vec![true; IMAGE as usize], all);
    h.run(|_| {});
    let ratio = h.ratio(|n, _| n != 2);
    assert_eq!((h.nodes[2].rack, h.into[1]), (1, 0), "frames over the trunk of its rack");
    assert!(ratio < 1.1 && Hall::copies(h.sent) <= 1.1, "{ratio}, server {}", Hall::copies(h.sent));
}

#[test]
fn a_fast_uplink_feeds_several_lines() {
    let settings = Settings { uplink: Some(400), machine_link: Some(100), ..Settings::default() };
    let mut h = Hall::new(4, 24, settings);
    h.run(|_| {});
    assert!(h.ratio(|_, _| true) < 1.1 && Hall::copies(h.sent) < 4.2, "{}", h.ratio(|_, _| true));
}

#[test]
fn a_third_dies_at_half() {
    let mut h = hall(4, 16);
    h.run(|h| {
        if h.now == IDEAL / 2 {
            (1..h.nodes.len()).filter(|i| i % 3 == 1).for_each(|i| h.nodes[i].alive = false);
        }
    });
    assert!(h.ratio(|_, _| true) < 1.3, "{}", h.ratio(|_, _| true));
}

#[test]
fn one_slow_machine_holds_up_nobody() {
    // The first of all, one in the middle, the last.
    for slow in [1, 22, 64] {
        let mut h = hall(4, 16);
        (h.nodes[slow].down, h.nodes[slow].up) = (0.15, 0.15);
        h.run(|_| {});
        let others = h.ratio(|i, _| i != slow);
        assert!(others < 1.35, "{slow} is slow, the others took {others}");
        let leaves = h.swarm.members().filter(|m| m.leaf.is_some());
        assert!(leaves.map(|m| m.machine).all(|m| m == machine(slow as u32)));
    }
}

#[test]
fn one_that_sends_slowly_is_told_from_one_that_receives_slowly() {
    let mut h = hall(2, 16);
    h.trunk = 4.0;
    h.nodes[7].up = 0.15;
    h.run(|_| {});
    assert!(h.ratio(|_, _| true) < 1.4, "{}", h.ratio(|_, _| true));
    let leaves: Vec<_> = h.swarm.members().filter(|m| m.leaf.is_some()).map(|m| m.machine).collect();
    assert_eq!(leaves, [machine(7)], "and the one that was taken for it at first is back in its place");
}

#[test]
fn one_that_sends_slowly_near_the_end_of_a_line() {
    for from_end in [1, 2] {
        let (mut h, mut slow) = (hall(2, 16), 0);
        h.run(|h| {
            if h.now == 2000 {
                let id = h.swarm.lines.tail(0).nth(from_end);
                slow = (1..h.nodes.len()).find(|n| Some(machine(*n as u32)) == id).unwrap();
                h.nodes[slow].up = 0.1;
            }
        });
        assert!(h.ratio(|_, _| true) < 1.6, "{from_end}: {}", h.ratio(|_, _| true));
        let leaves: Vec<_> = h.swarm.members().filter(|m| m.leaf.is_some()).map(|m| m.machine).collect();
        assert_eq!(leaves, [machine(slow as u32)], "{from_end} from the end");
    }
}

#[test]
fn a_trunk_is_down_for_twenty_seconds() {
    for down in [0, 3] {
        let mut h = hall(4, 16);
        h.run(|h| match h.now {
            8000 => h.trunks[down] = false,
            28000 => h.trunks[down] = true,
            _ => {}
        });
        let (cut, others) = (h.ratio(|_, n| n.rack == down), h.ratio(|_, n| n.rack != down));
        assert!(cut < 2.2 && others < 1.3, "{cut}, {others}: a second is 0.05");
        assert!(Hall::copies(h.into[down]) < 1.1);
    }
}

#[test]
fn machines_come_one_after_the_other() {
    let mut h = hall(4, 16);
    for (i, node) in h.nodes.iter_mut().enumerate().skip(1) {
        node.starts = (i as Millis * 7919) % (2 * IDEAL) / TICK * TICK;
        node.last = node.starts;
    }
    h.run(|_| {});
    let mut all: Vec<f64> =
        h.nodes[1..].iter().filter_map(|n| Some((n.done? - n.starts) as f64 / IDEAL as f64)).collect();
    all.sort_by(f64::total_cmp);
    assert!(all[32] < 1.1 && all[63] < 1.8, "from its own start: half by {}, all by {}", all[32], all[63]);
    assert!(h.into.iter().all(|n| Hall::copies(*n) <= 1.2) && Hall::copies(h.sent) <= 1.2);
}

#[test]
fn reports_that_come_late_hold_up_nobody() {
    let mut h = hall(2, 16);
    h.nodes.iter_mut().for_each(|n| n.every = 2500);
    // Silent for longer than GONE each time, so that it is passed over and taken in again all the while.
    h.nodes[5].every = 5000;
    h.run(|_| {});
    assert!(h.ratio(|_, _| true) < 1.3, "{}", h.ratio(|_, _| true));
    assert!(h.swarm.members().all(|m| m.leaf.is_none()));
}

#[test]
fn the_appliance_restarts_in_the_middle() {
    let mut h = hall(2, 16);
    h.run(|h| match h.now {
        5000 => h.nodes[SERVER].alive = false,
        12000 => {
            h.nodes[SERVER].alive = true;
            h.swarm = Swarm::new(h.settings, IMAGE, u64::from(IMAGE));
        }
        _ => {}
    });
    assert!(h.ratio(|_, _| true) < 1.5, "seven seconds without a source are 0.35: {}", h.ratio(|_, _| true));
    assert!(Hall::copies(h.sent) < 1.2);
}

#[test]
fn nobody_serves_and_everybody_still_ends() {
    let mut h = hall(1, 4);
    h.nodes[1..].iter_mut().for_each(|n| n.up = 0.0);
    h.run(|_| {});
}
