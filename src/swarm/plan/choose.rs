//! Whom a member is to follow: towards the front of its line, around those that it cannot use, the appliance last.

use super::{Avoid, Member, Millis, Plan, Reporter, STANDBYS, Swarm};
use crate::machine::MachineId;

/// Members that are looked at for one plan. Past it the appliance is close enough.
const FAR: usize = 64;

impl Swarm {
    pub(super) fn choose(&mut self, now: Millis, who: &Reporter) -> Plan {
        let (id, appliance) = (who.machine, who.appliance);
        let Some(member) = self.members.get(&id) else {
            return Plan { predecessors: vec![appliance], upload_limit: None, needed: false, seat: 0 };
        };
        let complete = member.is_done() || member.waits;
        let followed = if complete || !member.is_here() { Vec::new() } else { self.candidates(now, member) };
        let mut predecessors: Vec<_> = followed.iter().filter_map(|id| Some(self.members.get(id)?.address)).collect();
        let leads = member.leaf.is_none() && self.lines.before(id).is_none();
        match leads {
            true => predecessors.insert(0, appliance),
            false => predecessors.push(appliance),
        }
        let plan = Plan {
            upload_limit: self.upload_limit(member),
            needed: self.is_needed(id),
            seat: member.seat,
            predecessors: if complete { Vec::new() } else { predecessors },
        };
        if let Some(member) = self.members.get_mut(&id) {
            member.follows = followed.first().copied().filter(|_| !leads);
            member.told.drain(..member.told.len().saturating_sub(STANDBYS + 1));
            member.told.extend(&plan.predecessors);
        }
        plan
    }

    /// The one to follow, and those to stand by.
    fn candidates(&self, now: Millis, member: &Member) -> Vec<MachineId> {
        let id = member.machine;
        let leaf = member.leaf_at.and_then(|at| self.above_leaf(at));
        let mut at = if member.leaf.is_some() { leaf } else { self.lines.before(id) };
        if at.is_none() && member.leaf.is_none() {
            return self.lines.earlier_heads(id).take(STANDBYS).collect();
        }
        // A newcomer gets what is arriving now first, and what came before it only at the end. Who lacks less than half of
        // what the newcomer lacks is sooner done if it shares somebody further up with it than if it waits for it. Near the
        // end everybody looks like that, since the other one's report is up to a second older.
        let newcomer = |other: &Member| {
            let lacks = self.frames.saturating_sub(other.frames);
            member.leaf.is_none() && lacks > self.frames / 8 && u64::from(member.lacking) * 2 < u64::from(lacks)
        };
        let (mut found, mut behind) = (Vec::new(), Vec::new());
        for _ in 0..FAR {
            let Some(other) = at.and_then(|at| self.members.get(&at)) else { break };
            match member.avoided(now) {
                Some(Avoid::Rack(rack)) if *rack == other.rack => {
                    at = self.lines.before_section(other.machine);
                    continue;
                }
                Some(Avoid::Everybody) => break,
                Some(Avoid::Member(avoided)) if *avoided == other.machine => {}
                _ if newcomer(other) => behind.push(other.machine),
                _ => found.push(other.machine),
            }
            if found.len() == STANDBYS {
                break;
            }
            at = self.lines.before(other.machine);
        }
        found.extend(behind);
        found.truncate(STANDBYS);
        found
    }

    /// Somebody who is not done follows it. A host stays for its whole rack, or another one would have to come in its place.
    fn is_needed(&self, id: MachineId) -> bool {
        if let Some(host) = self.members.get(&id).filter(|m| m.host && m.is_done()) {
            return self.in_rack(&host.rack).fetching > 0;
        }
        let wants = |id: MachineId| self.members.get(&id).is_some_and(|m| m.is_here() && !m.is_done());
        self.lines.after(id).is_some_and(wants) || self.leaf_of(id).is_some_and(wants)
    }

    /// Where the leaves hang: on the last of each line first, whose links are idle, then on those before them.
    fn above_leaf(&self, leaf: usize) -> Option<MachineId> {
        let lines = self.lines.count().max(1);
        self.lines.tail(leaf % lines).take(FAR).nth(leaf / lines)
    }

    /// The leaf that hangs on this member.
    pub(super) fn leaf_of(&self, id: MachineId) -> Option<MachineId> {
        let (line, lines) = (self.lines.line_of(id)?, self.lines.count());
        let on_line = (self.leaves.len() + lines - 1).checked_sub(line)? / lines;
        let from_end = self.lines.tail(line).take(on_line.min(FAR)).position(|other| other == id)?;
        self.leaves.get(from_end * lines + line).copied()
    }

    fn upload_limit(&self, member: &Member) -> Option<u64> {
        let next = self.lines.after(member.machine).and_then(|id| self.members.get(&id));
        let across = next.is_some_and(|next| next.rack != member.rack);
        let limits = [self.settings.upload_limit, self.settings.rack_limit.filter(|_| across)];
        limits.into_iter().flatten().min()
    }
}
