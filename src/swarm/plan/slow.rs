//! Who holds up those behind it.
//!
//! In a line everybody is as fast as the slowest before it, so a rate says nothing by itself. What tells is a step: the
//! member before is much faster and has what this one lacks, and the one behind gets no more than this one. The first of a
//! line has nobody before it to be compared with; so it changes places with its successor, once, after some seconds, and
//! then has. The last of a line has nobody behind it; it follows another one for a while.

use super::{AVOID, Avoid, Member, Millis, Note, Standing, Swarm, Why};
use crate::machine::MachineId;

/// Rates are taken over so long: from one report to the next.
const WINDOW: Millis = 900;
/// Windows in a row with a step before something is done.
const STRIKES: u32 = 3;
/// Windows of one that came later after which the first of its line is compared with it all the same.
const LATE: u32 = 30;
/// A second member that seems slow behind the same one, within this: then it is that one which does not send.
const SAME_CAUSE: Millis = 15_000;

#[derive(Debug, Default)]
pub struct Pace {
    mark: Option<(Millis, u64)>,
    /// Bytes a second in the last window.
    pub rate: u64,
    /// The best of all windows.
    best: u64,
    windows: u32,
    strikes: u32,
    /// When one was made a leaf for being slow behind this one.
    blamed: Option<(Millis, MachineId)>,
    /// As the first of a line it has been compared.
    compared: bool,
    /// It follows another one instead of this one, behind which it got so many bytes a second.
    trial: Option<(MachineId, u64)>,
    tried: Option<MachineId>,
}

impl Pace {
    /// True when a window has ended.
    fn measure(&mut self, now: Millis, bytes: u64) -> bool {
        let Some((at, before)) = self.mark.filter(|(at, _)| now.saturating_sub(*at) < 4 * WINDOW) else {
            self.mark = Some((now, bytes));
            return false;
        };
        let passed = now.saturating_sub(at);
        if passed < WINDOW {
            return false;
        }
        let gained = u128::from(bytes.saturating_sub(before));
        self.rate = u64::try_from(gained * 1000 / u128::from(passed)).unwrap_or(u64::MAX);
        self.best = self.best.max(self.rate);
        self.windows = self.windows.saturating_add(1);
        self.mark = Some((now, bytes));
        true
    }
}

impl Swarm {
    pub(super) fn look_at_pace(&mut self, now: Millis, id: MachineId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if !member.pace.measure(now, member.bytes) || member.standing != Standing::Line {
            return;
        }
        let (before, after) = (self.lines.before(id), self.lines.after(id));
        let Some(front) = before else { return self.compare_first(id, after) };
        if self.is_on_trial(now, id) {
            return;
        }
        let stepped = self.is_a_step(front, id, after);
        let Some(member) = self.members.get_mut(&id) else { return };
        member.pace.strikes = if stepped { member.pace.strikes + 1 } else { 0 };
        if member.pace.strikes < STRIKES {
            return;
        }
        member.pace.strikes = 0;
        match after {
            Some(_) => self.blame(now, front, id),
            None => self.try_another(now, front, id),
        }
    }

    /// `front` gets the data much faster than `id`, which holds up `after`, if there is anybody.
    fn is_a_step(&self, front: MachineId, id: MachineId, after: Option<MachineId>) -> bool {
        let at = |id| self.members.get(&id);
        let (Some(front), Some(member)) = (at(front), at(id)) else { return false };
        // What a host gives is limited by the site; it says nothing of those behind it.
        if member.is_done() || front.host || front.frames <= member.frames {
            return false;
        }
        let rate = if front.is_done() { front.pace.best } else { front.pace.rate };
        let allowed = rate.min(self.settings.upload_limit.unwrap_or(u64::MAX));
        let share = allowed / if self.leaf_of(front.machine).is_some() { 2 } else { 1 };
        // Bytes are counted by whole frames, of which a slow one gets one or two in a window: one more is chance.
        let alike = member.pace.rate + (member.pace.rate / 4).max(self.one_frame());
        let as_slow = |after: &Member| !after.is_done() && after.pace.rate <= alike;
        let held_up = after.and_then(at).is_none_or(as_slow);
        member.pace.rate.saturating_mul(2) < share && held_up
    }

    /// The rate of one frame in a window.
    fn one_frame(&self) -> u64 {
        self.data_size / u64::from(self.frames.max(1)) * 1000 / WINDOW
    }

    fn blame(&mut self, now: Millis, front: MachineId, id: MachineId) {
        // Where a quarter is slow, it is not the machines.
        if self.leaves.len() * 4 > self.lines.len() {
            return;
        }
        let Some(member) = self.members.get_mut(&front) else { return };
        let before = member.pace.blamed.replace((now, id)).filter(|(at, _)| now.saturating_sub(*at) < SAME_CAUSE);
        let culprit = match before {
            Some((_, innocent)) => {
                self.acquit(innocent);
                front
            }
            None => id,
        };
        if self.make_leaf(culprit, Why::Slow) {
            self.note(Note::Slow { member: culprit });
        }
    }

    /// Nobody is behind the last of a line to be looked at as well. Where it is not known already that `front` does not send,
    /// it follows another one for a while, once.
    fn try_another(&mut self, now: Millis, front: MachineId, id: MachineId) {
        let blamed = self.members.get(&front).and_then(|m| m.pace.blamed);
        if blamed.is_some_and(|(at, other)| other != id && now.saturating_sub(at) < SAME_CAUSE) {
            return self.blame(now, front, id);
        }
        let Some(member) = self.members.get_mut(&id).filter(|m| m.pace.tried != Some(front)) else { return };
        member.pace.tried = Some(front);
        member.pace.trial = Some((front, member.pace.rate));
        member.avoid = Some((Avoid::Member(front), now + AVOID));
    }

    /// Where it is much faster behind another one, it was the one before it that did not send.
    fn is_on_trial(&mut self, now: Millis, id: MachineId) -> bool {
        let Some(member) = self.members.get_mut(&id) else { return false };
        let Some((front, before)) = member.pace.trial else { return false };
        if member.avoided(now).is_none() {
            member.pace.trial = None;
            return false;
        }
        if member.pace.rate / 2 > before {
            (member.pace.trial, member.avoid) = (None, None);
            if self.make_leaf(front, Why::Slow) {
                self.note(Note::Slow { member: front });
            }
        }
        true
    }

    /// It was not slow itself: back to its seat.
    fn acquit(&mut self, id: MachineId) {
        let Some(member) = self.members.get(&id).filter(|m| m.leaf == Some(Why::Slow)) else { return };
        let here = member.is_here();
        self.step_out(id);
        if let Some(member) = self.members.get_mut(&id) {
            member.leaf = None;
        }
        if here {
            self.stand(id);
        }
    }

    /// The first of a line changes places with the next one of its rack; one that is alone goes to the end. One that came
    /// later would get from the appliance what the first has already, so it is left behind it for longer.
    fn compare_first(&mut self, id: MachineId, after: Option<MachineId>) {
        let (Some(first), Some(next)) = (self.members.get(&id), after.and_then(|a| self.members.get(&a))) else {
            return;
        };
        let settled =
            first.pace.rate > 0 && first.pace.windows >= STRIKES && next.pace.windows >= 1 && !first.is_done();
        let as_slow = next.pace.rate <= first.pace.rate + first.pace.rate / 4 && !next.is_done();
        let level = next.frames.saturating_add(self.frames / 8) >= first.frames || next.pace.windows >= LATE;
        if !settled || !as_slow || !level || first.pace.compared {
            return;
        }
        let (next, seats) = (next.machine, (first.seat, next.seat));
        let together = self.lines.same_section(id, next);
        for member in [id, next] {
            if let Some(member) = self.members.get_mut(&member) {
                member.pace.compared = true;
                if together {
                    member.seat = if member.machine == id { seats.1 } else { seats.0 };
                }
            }
        }
        self.step_out(id);
        if together {
            self.step_out(next);
            self.stand(next);
        }
        self.stand(id);
    }
}
