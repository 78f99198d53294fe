//! The order of the members: lines, each a doubly linked list in which the members of a rack stand together.
//!
//! ```text
//!  line 0   │ rack A: a1 ─ a2 ─ a3 │ rack C: c1 ─ c2 │        every member follows the one before it,
//!  line 1   │ rack B: b1 ─ b2      │ rack D: d1      │        the first of a line follows the appliance
//! ```
//!
//! Whatever is planned points towards the front of a line, or to an earlier line. So nobody can come to depend on itself,
//! and no rack is entered twice. Every operation costs the same however many members there are, but for the one that puts
//! a member back to its seat, which passes those of its section that sit behind it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use slab::Slab;

/// Members of one section. A rack of 48 machines fits; those whose rack is unknown are cut into several.
pub const SECTION: usize = 64;
/// A line has this many members before another is opened: for a few machines, a short line costs the server less.
pub const SHORT: usize = 16;
/// No line is longer. A hop costs the time of one group of 64 KiB (0.5 ms at 1 Gbit/s), so the last of so many is some four
/// seconds behind the first; and each break holds up those behind it for a second or two. Below, only the uplink of the
/// server decides on the number of lines: a second line on an uplink that carries one doubles everybody's time.
pub const LONG: usize = 8192;

#[derive(Debug)]
struct Seat<K> {
    number: u64,
    section: usize,
    before: Option<K>,
    after: Option<K>,
}

/// Neighbours in one line that are in one rack.
#[derive(Debug)]
struct Section<K> {
    rack: Arc<str>,
    line: usize,
    first: K,
    last: K,
    len: usize,
}

#[derive(Debug)]
struct Line<K> {
    first: Option<K>,
    last: Option<K>,
    len: usize,
}

#[derive(Debug)]
pub struct Lines<K> {
    seats: HashMap<K, Seat<K>>,
    sections: Slab<Section<K>>,
    /// The sections of each rack, oldest first.
    racks: HashMap<Arc<str>, Vec<usize>>,
    lines: Vec<Line<K>>,
    /// How many the server feeds without slowing down.
    capacity: usize,
    /// Steps from one member to another; the measure of what a report costs.
    #[cfg(test)]
    pub steps: std::cell::Cell<usize>,
}

impl<K: Copy + Eq + Hash> Lines<K> {
    pub fn new(capacity: usize) -> Self {
        Self {
            seats: HashMap::new(),
            sections: Slab::new(),
            racks: HashMap::new(),
            lines: Vec::new(),
            capacity: capacity.max(1),
            #[cfg(test)]
            steps: std::cell::Cell::default(),
        }
    }

    pub fn contains(&self, id: K) -> bool {
        self.seats.contains_key(&id)
    }

    pub fn before(&self, id: K) -> Option<K> {
        #[cfg(test)]
        self.steps.set(self.steps.get() + 1);
        self.seats.get(&id)?.before
    }

    pub fn after(&self, id: K) -> Option<K> {
        self.seats.get(&id)?.after
    }

    /// How many lines there are, empty ones included.
    pub fn count(&self) -> usize {
        self.lines.len()
    }

    /// The number of this one's line.
    pub fn line_of(&self, id: K) -> Option<usize> {
        self.section(id).map(|s| s.line)
    }

    pub fn len(&self) -> usize {
        self.seats.len()
    }

    /// From the last of a line towards its front.
    pub fn tail(&self, line: usize) -> impl Iterator<Item = K> + '_ {
        std::iter::successors(self.lines.get(line).and_then(|l| l.last), |at| self.before(*at))
    }

    /// The one before the first member of this one's section: the way around the whole rack.
    pub fn before_section(&self, id: K) -> Option<K> {
        let section = self.section(id)?;
        self.before(section.first)
    }

    /// The first members of the lines before this one's, the nearest line first.
    pub fn earlier_heads(&self, id: K) -> impl Iterator<Item = K> + '_ {
        let line = self.section(id).map_or(0, |s| s.line);
        self.lines.iter().take(line).rev().filter_map(|l| l.first)
    }

    /// The members of a rack that stand in lines.
    pub fn of_rack(&self, rack: &str) -> impl Iterator<Item = K> {
        let sections = self.racks.get(rack).into_iter().flatten().filter_map(|s| self.sections.get(*s));
        sections.flat_map(|s| std::iter::successors(Some(s.first), |at| self.after(*at)).take(s.len))
    }

    pub fn same_section(&self, a: K, b: K) -> bool {
        matches!((self.seats.get(&a), self.seats.get(&b)), (Some(a), Some(b)) if a.section == b.section)
    }

    fn line_len(&self, line: usize) -> usize {
        self.lines.get(line).map_or(0, |l| l.len)
    }

    fn section(&self, id: K) -> Option<&Section<K>> {
        self.sections.get(self.seats.get(&id)?.section)
    }

    /// Puts a member that is in no line into that of its rack, at its seat: behind everybody of its section with a lower
    /// number. A rack that is new goes to the end of a line.
    pub fn join(&mut self, id: K, rack: &Arc<str>, number: u64) {
        if self.contains(id) {
            return;
        }
        let sections = self.racks.get(rack).into_iter().flatten();
        let roomy = |section: &Section<K>| section.len < SECTION && self.line_len(section.line) < LONG;
        let section = sections.copied().rfind(|s| self.sections.get(*s).is_some_and(roomy));
        match section {
            Some(section) => self.join_section(id, section, number),
            None => self.open_section(id, rack.clone(), number),
        }
    }

    fn join_section(&mut self, id: K, section: usize, number: u64) {
        let Some(Section { first, last, .. }) = self.sections.get(section) else { return };
        let (first, last) = (*first, *last);
        let mut at = Some(last);
        while let Some(other) = at
            && self.seats.get(&other).is_some_and(|s| s.number > number)
        {
            at = if other == first { None } else { self.before(other) };
        }
        let (before, after) = match at {
            Some(other) => (Some(other), self.after(other)),
            None => (self.before(first), Some(first)),
        };
        self.link(id, Seat { number, section, before, after });
        if let Some(s) = self.sections.get_mut(section) {
            s.len += 1;
            match at {
                Some(other) if other == last => s.last = id,
                None => s.first = id,
                _ => {}
            }
        }
    }

    fn open_section(&mut self, id: K, rack: Arc<str>, number: u64) {
        let line = self.line_for_more();
        let before = self.lines.get(line).and_then(|l| l.last);
        let section = self.sections.insert(Section { rack: rack.clone(), line, first: id, last: id, len: 1 });
        self.racks.entry(rack).or_default().push(section);
        self.link(id, Seat { number, section, before, after: None });
    }

    /// The shortest line, or a new one.
    fn line_for_more(&mut self) -> usize {
        let enough = if self.lines.len() < self.capacity { SHORT } else { LONG };
        let shortest = (0..self.lines.len()).min_by_key(|line| self.line_len(*line));
        if let Some(line) = shortest.filter(|line| self.line_len(*line) < enough) {
            return line;
        }
        self.lines.push(Line { first: None, last: None, len: 0 });
        self.lines.len() - 1
    }

    fn link(&mut self, id: K, seat: Seat<K>) {
        let (before, after) = (seat.before, seat.after);
        let line = self.sections.get(seat.section).map(|s| s.line);
        self.seats.insert(id, seat);
        self.join_hands(before, Some(id));
        self.join_hands(Some(id), after);
        if let Some(line) = line.and_then(|line| self.lines.get_mut(line)) {
            line.len += 1;
            if before.is_none() {
                line.first = Some(id);
            }
            if after.is_none() {
                line.last = Some(id);
            }
        }
    }

    fn join_hands(&mut self, front: Option<K>, back: Option<K>) {
        if let Some(seat) = front.and_then(|id| self.seats.get_mut(&id)) {
            seat.after = back;
        }
        if let Some(seat) = back.and_then(|id| self.seats.get_mut(&id)) {
            seat.before = front;
        }
    }

    /// Takes a member out; those around it close up.
    pub fn leave(&mut self, id: K) {
        let Some(seat) = self.seats.remove(&id) else { return };
        self.join_hands(seat.before, seat.after);
        let Some(section) = self.sections.get_mut(seat.section) else { return };
        section.len -= 1;
        if section.first == id
            && let Some(after) = seat.after
        {
            section.first = after;
        }
        if section.last == id
            && let Some(before) = seat.before
        {
            section.last = before;
        }
        let line = section.line;
        if section.len == 0 {
            let rack = self.sections.remove(seat.section).rack;
            if let Some(all) = self.racks.get_mut(&rack) {
                all.retain(|s| *s != seat.section);
                if all.is_empty() {
                    self.racks.remove(&rack);
                }
            }
        }
        if let Some(line) = self.lines.get_mut(line) {
            line.len -= 1;
            if line.first == Some(id) {
                line.first = seat.after;
            }
            if line.last == Some(id) {
                line.last = seat.before;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl<K: Copy + Eq + Hash> Lines<K> {
        /// Everybody, line by line from the front.
        fn walk(&self) -> impl Iterator<Item = K> + '_ {
            self.lines.iter().flat_map(|l| std::iter::successors(l.first, |at| self.after(*at)))
        }
    }

    fn lines(members: &[(u32, &str)]) -> Lines<u32> {
        let mut lines = Lines::new(1);
        for (n, (id, rack)) in members.iter().enumerate() {
            lines.join(*id, &Arc::from(*rack), n as u64);
        }
        lines
    }

    #[test]
    fn racks_stand_together_in_the_order_in_which_they_came() {
        let mut l = lines(&[(1, "a"), (2, "b"), (3, "a"), (4, "c"), (5, "b")]);
        assert_eq!(l.walk().collect::<Vec<_>>(), [1, 3, 2, 5, 4]);
        l.leave(3);
        l.join(3, &Arc::from("a"), 2);
        assert_eq!(l.walk().collect::<Vec<_>>(), [1, 3, 2, 5, 4]);
        l.leave(1);
        l.join(1, &Arc::from("a"), 0);
        assert_eq!(l.walk().collect::<Vec<_>>(), [1, 3, 2, 5, 4], "a seat is kept");
        assert_eq!(l.before_section(5), Some(3));
        assert_eq!(l.tail(0).collect::<Vec<_>>(), [4, 5, 2, 3, 1]);
        assert_eq!(l.before(2), Some(3));
    }

    #[test]
    fn as_many_lines_as_the_server_can_feed_and_none_too_long() {
        let mut l = Lines::new(4);
        for id in 0..200u32 {
            l.join(id, &Arc::from(format!("r{}", id / 20)), id.into());
        }
        assert_eq!(l.lines.len(), 4);
        let mut l = Lines::new(1);
        for id in 0..20_000u32 {
            l.join(id, &Arc::from(""), id.into());
        }
        assert_eq!(l.lines.len(), 3);
        assert!(l.lines.iter().all(|line| line.len <= LONG));
    }

    proptest! {
        /// Whoever comes and goes: each is in one line once, links fit both ways, racks are in one piece.
        #[test]
        fn links_and_sections_hold(steps in prop::collection::vec((0u32..40, 0u8..5, any::<bool>()), 0..300)) {
            let mut lines = Lines::new(2);
            let mut there = HashMap::new();
            for (id, rack, join) in steps {
                if join && !there.contains_key(&id) {
                    lines.join(id, &Arc::from(rack.to_string()), u64::from(id));
                    there.insert(id, rack);
                } else {
                    lines.leave(id);
                    there.remove(&id);
                }
                let all: Vec<u32> = lines.walk().collect();
                prop_assert_eq!(all.len(), there.len());
                for id in &all {
                    prop_assert_eq!(lines.after(*id).map_or(Some(*id), |a| lines.before(a)), Some(*id));
                }
                let mut racks: Vec<u8> = all.iter().map(|id| there[id]).collect();
                racks.dedup();
                let pieces = racks.len();
                racks.sort_unstable();
                racks.dedup();
                prop_assert_eq!(pieces, racks.len(), "a rack is in two pieces");
                prop_assert_eq!(lines.sections.len(), racks.len());
                prop_assert_eq!(lines.lines.iter().map(|l| l.len).sum::<usize>(), all.len());
                for (_, s) in &lines.sections {
                    let inside = std::iter::successors(Some(s.first), |at| lines.after(*at)).take(s.len).last();
                    prop_assert_eq!(inside, Some(s.last));
                }
            }
        }
    }
}
