//! Who fetches an image from whom. Pure: no socket, no clock; the time is an argument.
//!
//! A pipeline is the fastest way to bring one file to many machines that have one link each: every machine uploads about
//! once, every trunk carries about one copy, the server sends one. [`Swarm`] keeps the members of one image's swarm in such
//! lines (`line`) and answers each report with whom to follow. It rests on two habits of the members (`swarm::serve`,
//! `swarm::relay`): a server sends what is arriving right now first and older frames when nothing newer is there, so a late
//! joiner in the middle of a line holds up nobody; and a member whose predecessor is gone turns to the next one of its plan
//! by itself, so a plan that is a second old does no harm.
//!
//! What goes wrong, and what becomes of it:
//!
//! | what | seen by | then |
//! |---|---|---|
//! | a member is gone | no report for [`GONE`] | those around it close up; it has its seat again when it comes back |
//! | the appliance was gone | no report of anybody for [`DEAF`] | nobody is taken for gone until all had time to report |
//! | a member is slow | `slow` | it becomes a leaf: it follows the last of a line, nobody follows it |
//! | a member sends garbage | the report of one that was to follow it | it becomes a leaf |
//! | a member has part of the image from elsewhere | holds and lacks less than all | it becomes a leaf, where it is one of few |
//! | a member is an installed host that helps | its agent | `hosts` |
//! | a member serves nothing, a trunk is down | somebody starves behind one that has more | it passes over that one, or over that whole rack, for [`AVOID`] |

mod choose;
mod hosts;
mod line;
mod slow;
#[cfg(test)]
mod tests;
mod traffic;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

pub use hosts::InRack;
use line::Lines;
use slow::Pace;
pub use traffic::Traffic;

use crate::link::SwarmReport;
use crate::machine::MachineId;

/// Milliseconds since any one moment.
pub type Millis = u64;

/// A member that does not report for so long is gone.
pub const GONE: Millis = 3_000;
/// No report of anybody for so long: it was the appliance that did not hear.
pub const DEAF: Millis = 2_000;
/// How long a member that is gone keeps its seat, and is still shown.
pub const KEEP: Millis = 600_000;
/// How long somebody passes over one from whom nothing came.
pub const AVOID: Millis = 10_000;
/// Without data for so long, though the one before has more: something between the two does not work.
pub const STARVED: u32 = 2_000;
/// Predecessors in a plan besides the appliance.
pub const STANDBYS: usize = 3;
/// Members of a swarm; more are sent to the appliance.
pub const MAX_MEMBERS: usize = 20_000;
/// Sources and garbage peers that are looked at in one report.
pub const MAX_NAMED: usize = 64;
/// How many others one member may accuse before it is not believed any more.
const MAX_ACCUSED: u32 = 4;
/// Seats at the front of a rack: of hosts that hold the image, and then of machines that people wait for.
const HOLDS: u64 = 0;
const FIRST: u64 = 1;

/// Rates in bytes a second; what is not known or not limited is `None`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Settings {
    /// What the appliance can send.
    pub uplink: Option<u64>,
    /// The link of one machine.
    pub machine_link: Option<u64>,
    /// What one machine may send.
    pub upload_limit: Option<u64>,
    /// What may leave a rack for another one, to one line.
    pub rack_limit: Option<u64>,
}

impl Settings {
    /// Lines that the appliance feeds at the full rate of a machine's link.
    fn lines(&self) -> usize {
        match (self.uplink, self.machine_link) {
            (Some(uplink), Some(link)) if link > 0 => usize::try_from(uplink / link).unwrap_or(usize::MAX).clamp(1, 64),
            _ => 1,
        }
    }
}

/// Who reports, as the appliance knows it.
#[derive(Debug, Clone)]
pub struct Reporter {
    pub machine: MachineId,
    /// Machines of one rack share a switch; empty where nothing is known.
    pub rack: Arc<str>,
    pub address: IpAddr,
    /// Where it reaches the appliance, which serves every frame.
    pub appliance: SocketAddr,
    /// A person waits for it.
    pub first: bool,
    /// It is an installed host that helps.
    pub host: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub predecessors: Vec<SocketAddr>,
    pub upload_limit: Option<u64>,
    pub needed: bool,
    pub seat: u64,
}

/// Where a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// In a line.
    Line,
    /// Fetches, but nobody follows it.
    Leaf(Why),
    /// A host that is not fed as long as others fetch.
    Waits,
    /// Silent; its seat is kept.
    Gone,
    /// Said good-bye.
    Left,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    Slow,
    Garbage,
    /// It has no port that others could reach.
    ServesNobody,
    /// Part of the image is on its disk already, and nobody can have that from it.
    HoldsPart,
}

#[derive(Debug)]
pub struct Member {
    pub machine: MachineId,
    pub rack: Arc<str>,
    pub address: SocketAddr,
    appliance: SocketAddr,
    pub standing: Standing,
    /// Frames it can serve, and those it waits for.
    pub frames: u32,
    pub lacking: u32,
    pub bytes: u64,
    pub starved_ms: u32,
    /// Whom it was told to follow last; `None`: the appliance.
    pub follows: Option<MachineId>,
    pace: Pace,
    seat: u64,
    first: bool,
    /// An installed host that helps.
    pub host: bool,
    /// See [`Standing::Waits`].
    waits: bool,
    /// Why it may not stand in a line; it outlasts its absence.
    leaf: Option<Why>,
    /// Its place among the leaves.
    leaf_at: Option<usize>,
    heard: Millis,
    /// Its entry among the alarms.
    alarm: Millis,
    /// Whom it passes over, and until when.
    avoid: Option<(Avoid, Millis)>,
    /// How many it said garbage came from.
    accused: u32,
    /// What it reported of each source last.
    from: HashMap<SocketAddr, u64>,
    /// Bytes of its reports that were counted.
    counted: u64,
    pub from_peers: u64,
    pub from_appliance: u64,
    joined: Millis,
    /// It was seen to lack something, and not yet to have everything.
    fetching: bool,
    /// Addresses of its last two plans.
    told: Vec<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Avoid {
    Member(MachineId),
    Rack(Arc<str>),
    /// The appliance is left.
    Everybody,
}

/// Something to tell people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// `by` got from `peer` what does not verify.
    Garbage {
        peer: MachineId,
        by: MachineId,
    },
    Slow {
        member: MachineId,
    },
    Gone {
        member: MachineId,
    },
    /// It has all that it wanted, so many milliseconds after its first report.
    Done {
        member: MachineId,
        from_peers: u64,
        from_appliance: u64,
        took: Millis,
    },
}

/// The swarm of one image.
#[derive(Debug)]
pub struct Swarm {
    settings: Settings,
    /// Frames of the image.
    frames: u32,
    data_size: u64,
    members: HashMap<MachineId, Member>,
    by_address: HashMap<SocketAddr, MachineId>,
    lines: Lines<MachineId>,
    /// Those that nobody follows.
    leaves: Vec<MachineId>,
    /// When each member is to be looked at if it says nothing more.
    alarms: BTreeSet<(Millis, MachineId)>,
    next_seat: u64,
    heard: Millis,
    /// Until then nobody is taken for gone.
    grace: Millis,
    traffic: Traffic,
    /// Bytes that came into a rack from another one or from the appliance.
    into_rack: HashMap<Arc<str>, u64>,
    notes: Vec<Note>,
}

impl Swarm {
    /// An image has `frames` frames, `data_size` bytes together.
    pub fn new(settings: Settings, frames: u32, data_size: u64) -> Self {
        Self {
            settings,
            frames,
            data_size,
            members: HashMap::new(),
            by_address: HashMap::new(),
            lines: Lines::new(settings.lines()),
            leaves: Vec::new(),
            alarms: BTreeSet::new(),
            next_seat: FIRST + 1,
            heard: 0,
            grace: 0,
            traffic: Traffic::default(),
            into_rack: HashMap::new(),
            notes: Vec::new(),
        }
    }

    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    pub fn member(&self, id: MachineId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// Of the image.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    pub fn data_size(&self) -> u64 {
        self.data_size
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// What happened since it was asked last.
    pub fn notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// Takes in what a member says and tells it whom to follow.
    pub fn report(&mut self, now: Millis, who: &Reporter, report: &SwarmReport) -> Plan {
        if now.saturating_sub(self.heard) >= DEAF {
            self.grace = now + GONE;
        }
        self.heard = now;
        self.expire(now);
        if !self.members.contains_key(&who.machine) && self.members.len() >= MAX_MEMBERS {
            let predecessors = vec![who.appliance];
            return Plan { predecessors, upload_limit: self.settings.upload_limit, needed: false, seat: 0 };
        }
        let id = who.machine;
        self.take_in(now, who, report);
        self.count(now, id, report);
        self.believe(id, &report.garbage);
        self.take_its_place(id, report);
        self.look_at_pace(now, id);
        self.look_at_hunger(now, id);
        self.choose(now, who)
    }

    /// Now and then. Where nobody says anything, it may be that the appliance cannot hear; there is time to wait.
    pub fn tick(&mut self, now: Millis) {
        let silent = now.saturating_sub(self.heard);
        if !(DEAF..KEEP).contains(&silent) {
            self.expire(now);
        }
    }

    /// Members that have been silent too long.
    fn expire(&mut self, now: Millis) {
        while let Some((at, id)) = self.alarms.first().copied()
            && at <= now
            && now >= self.grace
        {
            self.alarms.pop_first();
            let Some(member) = self.members.get_mut(&id) else { continue };
            let due = member.due();
            if due > now {
                member.alarm = due;
                self.alarms.insert((due, id));
            } else if member.is_here() {
                let complete = member.is_done();
                member.standing = Standing::Gone;
                member.alarm = member.due();
                self.alarms.insert((member.alarm, id));
                self.step_out(id);
                if !complete {
                    self.note(Note::Gone { member: id });
                }
            } else {
                let address = member.address;
                self.members.remove(&id);
                self.forget_address(address, id);
            }
        }
    }

    fn note(&mut self, note: Note) {
        // Nobody may be there to ask.
        if self.notes.len() < 2 * MAX_MEMBERS {
            self.notes.push(note);
        }
    }

    fn forget_address(&mut self, address: SocketAddr, id: MachineId) {
        if self.by_address.get(&address) == Some(&id) {
            self.by_address.remove(&address);
        }
    }

    fn take_in(&mut self, now: Millis, who: &Reporter, report: &SwarmReport) {
        let id = who.machine;
        let address = SocketAddr::new(who.address, report.port);
        let new = !self.members.contains_key(&id);
        // Nobody can push the numbers out of reach.
        let seat = report.seat.filter(|seat| *seat < 1 << 40).unwrap_or(self.next_seat);
        let member = self.members.entry(id).or_insert_with(|| Member::new(who, address, seat, now));
        if new {
            self.alarms.insert((member.alarm, id));
            self.next_seat = self.next_seat.max(seat + 1);
        }
        let ahead = who.first && !std::mem::replace(&mut member.first, who.first);
        if ahead {
            member.seat = FIRST;
        }
        let moved = ahead || member.rack != who.rack;
        let before = std::mem::replace(&mut member.address, address);
        member.heard = now;
        member.appliance = who.appliance;
        member.host = who.host;
        member.frames = report.frames.min(self.frames);
        member.lacking = report.lacking.min(self.frames - member.frames);
        member.bytes = report.bytes.min(self.data_size);
        member.starved_ms = report.starved_ms;
        if before != address {
            self.forget_address(before, id);
        }
        self.by_address.insert(address, id);
        if moved {
            self.step_out(id);
            if let Some(member) = self.members.get_mut(&id) {
                member.rack = who.rack.clone();
            }
        }
    }

    /// Garbage is what the receiver saw; it is believed of those whom it was told to follow, and a few times only.
    fn believe(&mut self, id: MachineId, garbage: &[SocketAddr]) {
        for address in garbage.iter().take(MAX_NAMED) {
            let Some(other) = self.by_address.get(address).copied() else { continue };
            let Some(accuser) = self.members.get_mut(&id) else { return };
            if other == id || accuser.accused >= MAX_ACCUSED || !accuser.told.contains(address) {
                continue;
            }
            accuser.accused += 1;
            if self.make_leaf(other, Why::Garbage) {
                self.note(Note::Garbage { peer: other, by: id });
            }
        }
    }

    /// Nobody follows it any more, for as long as this swarm lives. False if that was so before.
    fn make_leaf(&mut self, id: MachineId, why: Why) -> bool {
        let Some(member) = self.members.get_mut(&id) else { return false };
        if member.leaf.is_some() {
            return false;
        }
        member.leaf = Some(why);
        if member.is_here() {
            self.step_out(id);
            self.stand(id);
        }
        true
    }

    fn take_its_place(&mut self, id: MachineId, report: &SwarmReport) {
        let Some(member) = self.members.get(&id) else { return };
        if report.port == 0 {
            self.make_leaf(id, Why::ServesNobody);
        } else if member.frames + member.lacking < self.frames && self.leaves.len() * 4 <= self.lines.len() {
            // Where many have the same part already, they want the same rest, and a line is right for that.
            self.make_leaf(id, Why::HoldsPart);
        }
        self.place_host(id);
        if report.leaving {
            self.step_out(id);
        } else {
            self.stand(id);
        }
        let Some(member) = self.members.get_mut(&id) else { return };
        if report.leaving {
            member.standing = Standing::Left;
        }
        let due = member.due();
        // Earlier alarms are put right when they ring; a later one would ring too late.
        if due < member.alarm {
            self.alarms.remove(&(member.alarm, id));
            self.alarms.insert((due, id));
            member.alarm = due;
        }
    }

    /// Out of the lines and the leaves.
    fn step_out(&mut self, id: MachineId) {
        self.lines.leave(id);
        let Some(member) = self.members.get_mut(&id) else { return };
        let Some(at) = member.leaf_at.take() else { return };
        self.leaves.swap_remove(at);
        let moved = self.leaves.get(at).copied();
        if let Some(moved) = moved.and_then(|id| self.members.get_mut(&id)) {
            moved.leaf_at = Some(at);
        }
    }

    /// Into its line, or among the leaves; where it is there already, nothing changes.
    fn stand(&mut self, id: MachineId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        match member.leaf {
            _ if member.waits => member.standing = Standing::Waits,
            None => {
                member.standing = Standing::Line;
                let (rack, seat) = (member.rack.clone(), member.seat);
                self.lines.join(id, &rack, seat);
            }
            Some(why) => {
                member.standing = Standing::Leaf(why);
                if member.leaf_at.is_none() {
                    member.leaf_at = Some(self.leaves.len());
                    self.leaves.push(id);
                }
            }
        }
    }

    /// It starves behind one that has more: pass over that one for a while, or over its whole rack if it is another one.
    fn look_at_hunger(&mut self, now: Millis, id: MachineId) {
        let Some(member) = self.members.get(&id) else { return };
        let hungry = !member.is_done() && member.starved_ms >= STARVED;
        let Some(front) = member.follows.and_then(|front| self.members.get(&front)) else { return };
        // Where the one before starves as well, it is for somebody further up to find another way.
        let fed = front.is_done() || front.starved_ms < STARVED / 2;
        if !hungry || !fed || front.frames <= member.frames {
            return;
        }
        let avoid = match &member.avoid {
            // The other way does not bring anything either.
            Some((_, until)) if now < *until && now + AVOID > until + Millis::from(STARVED) => Avoid::Everybody,
            Some((_, until)) if now < *until => return,
            _ if front.rack == member.rack => Avoid::Member(front.machine),
            _ => Avoid::Rack(front.rack.clone()),
        };
        if let Some(member) = self.members.get_mut(&id) {
            member.avoid = Some((avoid, now + AVOID));
        }
    }
}

impl Member {
    fn new(who: &Reporter, address: SocketAddr, seat: u64, now: Millis) -> Self {
        Self {
            machine: who.machine,
            rack: who.rack.clone(),
            address,
            appliance: who.appliance,
            standing: Standing::Line,
            frames: 0,
            lacking: 0,
            bytes: 0,
            starved_ms: 0,
            follows: None,
            pace: Pace::default(),
            seat,
            first: false,
            host: who.host,
            waits: false,
            leaf: None,
            leaf_at: None,
            heard: now,
            alarm: now + GONE,
            avoid: None,
            accused: 0,
            from: HashMap::new(),
            counted: 0,
            from_peers: 0,
            from_appliance: 0,
            joined: now,
            fetching: false,
            told: Vec::new(),
        }
    }

    pub fn is_here(&self) -> bool {
        matches!(self.standing, Standing::Line | Standing::Leaf(_) | Standing::Waits)
    }

    /// It has all that it wants.
    pub fn is_done(&self) -> bool {
        self.lacking == 0
    }

    /// Bytes a second of late.
    pub fn rate(&self) -> u64 {
        self.pace.rate
    }

    /// When it is to be looked at, if nothing more is heard of it.
    fn due(&self) -> Millis {
        self.heard + if self.is_here() { GONE } else { KEEP }
    }

    fn avoided(&self, now: Millis) -> Option<&Avoid> {
        self.avoid.as_ref().filter(|(_, until)| now < *until).map(|(avoid, _)| avoid)
    }
}
