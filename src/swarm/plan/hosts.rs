//! Installed hosts that help: from an earlier wave they keep the image that the next one wants.
//!
//! | a host | stands |
//! |---|---|
//! | has the whole image | at the front of its rack: whoever is behind it needs nothing from outside |
//! | lacks some of it, and machines fetch | nowhere: it would take from them what it cannot give on at their speed |
//! | lacks some of it, and no machine fetches | in its line; it is fed for the next wave |

use super::{HOLDS, Swarm};
use crate::machine::MachineId;

/// The members of one rack that stand in lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InRack {
    /// Those that wait for the image; hosts that only want to keep it do not count.
    pub fetching: usize,
    pub complete: usize,
}

impl Swarm {
    pub fn in_rack(&self, rack: &str) -> InRack {
        let mut count = InRack::default();
        for member in self.lines.of_rack(rack).filter_map(|id| self.members.get(&id)) {
            match member.is_done() {
                true => count.complete += 1,
                false => count.fetching += usize::from(!member.host),
            }
        }
        count
    }

    /// Out of a place that is no longer the right one; it has none then, until it is put where it belongs.
    pub(super) fn place_host(&mut self, id: MachineId) {
        let Some(host) = self.members.get(&id).filter(|m| m.host) else { return };
        let waits = !host.is_done() && self.members.values().any(|m| !m.host && m.is_here() && !m.is_done());
        let seat = if host.is_done() { HOLDS } else { host.seat };
        if (waits, seat) == (host.waits, host.seat) {
            return;
        }
        self.step_out(id);
        if let Some(host) = self.members.get_mut(&id) {
            (host.waits, host.seat) = (waits, seat);
        }
    }
}
