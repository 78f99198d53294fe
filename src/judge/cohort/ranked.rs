//! A multiset of numbers that knows its k-th smallest: a treap in one vector, whose nodes know how many are below them.
//! Inserting, removing and counting take O(log n) steps.

/// Index of no node.
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Node {
    value: f64,
    /// Of the heap: a parent's is at least its children's.
    priority: u32,
    left: u32,
    right: u32,
    /// Nodes in this subtree.
    size: u32,
}

#[derive(Debug, Clone)]
pub struct Ranked {
    nodes: Vec<Node>,
    free: Vec<u32>,
    root: u32,
    /// State of the priorities' generator: the same values in the same order give the same tree.
    random: u32,
}

impl Default for Ranked {
    fn default() -> Self {
        Self { nodes: Vec::new(), free: Vec::new(), root: NONE, random: 0x9e37_79b9 }
    }
}

impl Ranked {
    pub fn len(&self) -> usize {
        self.size(self.root) as usize
    }

    /// Not a number is not taken: it has no rank.
    pub fn insert(&mut self, value: f64) {
        if value.is_nan() {
            return;
        }
        let node = Node { value, priority: self.draw(), left: NONE, right: NONE, size: 1 };
        let index = match self.free.pop() {
            Some(index) => {
                self.nodes[index as usize] = node;
                index
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        let (below, rest) = self.split(self.root, value);
        let left = self.merge(below, index);
        self.root = self.merge(left, rest);
    }

    /// One of those that are equal; `false` where there is none.
    pub fn remove(&mut self, value: f64) -> bool {
        let mut path = Vec::new();
        let mut at = self.root;
        while at != NONE && self.node(at).value != value {
            path.push(at);
            let node = self.node(at);
            at = if value < node.value { node.left } else { node.right };
        }
        if at == NONE {
            return false;
        }
        let joined = self.merge(self.node(at).left, self.node(at).right);
        match path.last() {
            None => self.root = joined,
            Some(parent) => {
                let parent = &mut self.nodes[*parent as usize];
                let side = if parent.left == at { &mut parent.left } else { &mut parent.right };
                *side = joined;
            }
        }
        for index in path {
            self.nodes[index as usize].size -= 1;
        }
        self.free.push(at);
        true
    }

    /// Counted from 0.
    pub fn smallest(&self, mut k: usize) -> Option<f64> {
        let mut at = self.root;
        while at != NONE {
            let node = self.node(at);
            let left = self.size(node.left) as usize;
            match k.cmp(&left) {
                std::cmp::Ordering::Less => at = node.left,
                std::cmp::Ordering::Equal => return Some(node.value),
                std::cmp::Ordering::Greater => {
                    k -= left + 1;
                    at = node.right;
                }
            }
        }
        None
    }

    /// How many are smaller than `value`, or equal where `equal` is set.
    pub fn below(&self, value: f64, equal: bool) -> usize {
        let (mut at, mut count) = (self.root, 0);
        while at != NONE {
            let node = self.node(at);
            if node.value < value || (equal && node.value == value) {
                count += self.size(node.left) as usize + 1;
                at = node.right;
            } else {
                at = node.left;
            }
        }
        count
    }

    fn node(&self, index: u32) -> &Node {
        &self.nodes[index as usize]
    }

    fn size(&self, index: u32) -> u32 {
        if index == NONE { 0 } else { self.node(index).size }
    }

    /// Everything below `value`, and the rest.
    fn split(&mut self, at: u32, value: f64) -> (u32, u32) {
        if at == NONE {
            return (NONE, NONE);
        }
        let node = *self.node(at);
        if node.value < value {
            let (below, rest) = self.split(node.right, value);
            self.nodes[at as usize].right = below;
            self.count(at);
            (at, rest)
        } else {
            let (below, rest) = self.split(node.left, value);
            self.nodes[at as usize].left = rest;
            self.count(at);
            (below, at)
        }
    }

    /// Of two trees, all of whose values on the left are at most those on the right.
    fn merge(&mut self, left: u32, right: u32) -> u32 {
        if left == NONE || right == NONE {
            return if left == NONE { right } else { left };
        }
        if self.node(left).priority >= self.node(right).priority {
            let joined = self.merge(self.node(left).right, right);
            self.nodes[left as usize].right = joined;
            self.count(left);
            left
        } else {
            let joined = self.merge(left, self.node(right).left);
            self.nodes[right as usize].left = joined;
            self.count(right);
            right
        }
    }

    fn count(&mut self, at: u32) {
        let node = *self.node(at);
        self.nodes[at as usize].size = 1 + self.size(node.left) + self.size(node.right);
    }

    /// xorshift32 (Marsaglia 2003).
    fn draw(&mut self) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        self.random
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a sorted vector, whatever comes and goes.
        #[test]
        fn ranks_are_those_of_a_sorted_list(steps in proptest::collection::vec((any::<bool>(), 0i32..40), 0..200)) {
            let (mut ranked, mut sorted) = (Ranked::default(), Vec::<f64>::new());
            for (insert, value) in steps {
                let value = f64::from(value);
                if insert {
                    ranked.insert(value);
                    sorted.insert(sorted.partition_point(|x| *x < value), value);
                } else {
                    let at = sorted.iter().position(|x| *x == value);
                    prop_assert_eq!(ranked.remove(value), at.is_some());
                    at.map(|at| sorted.remove(at));
                }
            }
            prop_assert_eq!(ranked.len(), sorted.len());
            for (k, value) in sorted.iter().enumerate() {
                prop_assert_eq!(ranked.smallest(k), Some(*value));
            }
            prop_assert_eq!(ranked.smallest(sorted.len()), None);
            for value in 0..40 {
                let value = f64::from(value);
                prop_assert_eq!(ranked.below(value, false), sorted.iter().filter(|x| **x < value).count());
                prop_assert_eq!(ranked.below(value, true), sorted.iter().filter(|x| **x <= value).count());
            }
        }
    }

    #[test]
    fn what_is_no_number_has_no_rank() {
        let mut ranked = Ranked::default();
        ranked.insert(f64::NAN);
        assert_eq!((ranked.len(), ranked.remove(f64::NAN), ranked.smallest(0)), (0, false, None));
    }

    /// In ascending order a plain tree would be a list.
    #[test]
    fn ascending_values_do_not_make_a_list() {
        let mut ranked = Ranked::default();
        (0..100_000).for_each(|i| ranked.insert(f64::from(i)));
        fn depth(ranked: &Ranked, at: u32) -> usize {
            if at == NONE {
                return 0;
            }
            let node = ranked.node(at);
            1 + depth(ranked, node.left).max(depth(ranked, node.right))
        }
        assert!(depth(&ranked, ranked.root) < 80);
        assert_eq!(ranked.smallest(77_777), Some(77_777.0));
    }
}
