//! What came from whom, as the members tell it: for people to see. It decides nothing.

use super::{MAX_NAMED, Millis, Note, Swarm};
use crate::link::SwarmReport;
use crate::machine::MachineId;

/// Bytes that were fetched, by where they came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub appliance: u64,
    pub same_rack: u64,
    pub other_rack: u64,
    /// From an address that belongs to no member.
    pub unknown: u64,
}

impl Swarm {
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Rack and bytes that came into it.
    pub fn into_racks(&self) -> impl Iterator<Item = (&str, u64)> {
        self.into_rack.iter().map(|(rack, bytes)| (&**rack, *bytes))
    }

    /// What came from whom since its last report. The numbers are the member's own: they count up to a bound, and decide
    /// nothing.
    pub(super) fn count(&mut self, now: Millis, id: MachineId, report: &SwarmReport) {
        for source in report.from.iter().take(MAX_NAMED) {
            let other = self.by_address.get(&source.address);
            let from = other.and_then(|other| self.members.get(other)).map(|m| m.rack.clone());
            let Some(member) = self.members.get_mut(&id) else { return };
            if member.from.len() >= MAX_NAMED && !member.from.contains_key(&source.address) {
                continue;
            }
            let before = member.from.insert(source.address, source.bytes).unwrap_or(0);
            let room = self.data_size.saturating_mul(4).saturating_sub(member.counted);
            let bytes = source.bytes.saturating_sub(before).min(room);
            member.counted += bytes;
            // By its frame server or over HTTP; the address is not specified where the machine knows a name only.
            let ip = source.address.ip();
            let appliance = from.is_none() && (ip == member.appliance.ip() || ip.is_unspecified());
            *if appliance { &mut member.from_appliance } else { &mut member.from_peers } += bytes;
            let (sum, outside) = match from {
                Some(rack) if rack == member.rack => (&mut self.traffic.same_rack, false),
                Some(_) => (&mut self.traffic.other_rack, true),
                None if appliance => (&mut self.traffic.appliance, true),
                None => (&mut self.traffic.unknown, true),
            };
            *sum += bytes;
            if outside {
                *self.into_rack.entry(member.rack.clone()).or_default() += bytes;
            }
        }
        let Some(member) = self.members.get_mut(&id) else { return };
        let fetching = !member.is_done();
        if std::mem::replace(&mut member.fetching, fetching) && !fetching {
            let (from_peers, from_appliance) = (member.from_peers, member.from_appliance);
            let took = now.saturating_sub(member.joined);
            self.note(Note::Done { member: id, from_peers, from_appliance, took });
        }
    }
}
