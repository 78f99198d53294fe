//! Which installed hosts are asked to help: two of a rack in which machines fetch, each at most once for a swarm.
//!
//! Those that keep the image come first. One that does not is asked where none answered; it gets the image when nobody
//! fetches any more, for the next wave.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use super::{Tracked, Tracker, Who};
use crate::link::{Help, SwarmReport};
use crate::machine::{Digest, MachineId};
use crate::swarm::plan::{Millis, Standing};

/// Members of a rack that hold all of the image: with so many nobody else is asked.
const ENOUGH: usize = 2;
/// From being asked to the first report. One that is not here by then has no room, or is gone.
const COMES: Millis = 10_000;
/// Until then only hosts that keep the image are asked.
const LATE: Millis = 3_000;

/// What installed hosts give.
#[derive(Debug, Clone, Copy)]
pub struct Hosts {
    /// Bytes a second, each.
    pub upload_limit: u64,
    /// Bytes on the disk, each.
    pub space: u64,
}

/// A host that would help.
#[derive(Debug, Clone)]
pub struct Host {
    pub machine: MachineId,
    pub rack: Arc<str>,
    /// Images that it has, as it says.
    pub kept: HashSet<Digest>,
}

/// Of one swarm.
#[derive(Debug, Default)]
pub(super) struct Asked {
    hosts: HashMap<MachineId, Asking>,
    /// Since when machines of a rack fetch.
    since: HashMap<Arc<str>, Millis>,
}

#[derive(Debug)]
struct Asking {
    rack: Arc<str>,
    at: Millis,
}

enum Answer {
    Yes(Help),
    /// After so many milliseconds it may be.
    Later(Millis),
    No,
}

impl Tracker {
    pub fn wants_hosts(&self) -> bool {
        self.hosts.is_some()
    }

    /// Waits until this host is to help, for ever where hosts never do.
    pub async fn help(&self, host: &Host) -> Help {
        let bell = self.bell(&host.rack);
        loop {
            let rings = bell.notified();
            tokio::pin!(rings);
            // From here on no ring is missed.
            rings.as_mut().enable();
            match self.ask(host) {
                Answer::Yes(help) => return help,
                Answer::Later(millis) => tokio::select! {
                    () = rings => {}
                    () = sleep(Duration::from_millis(millis)) => {}
                },
                Answer::No => rings.await,
            }
        }
    }

    fn bell(&self, rack: &Arc<str>) -> Arc<Notify> {
        let mut bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(bells.entry(rack.clone()).or_default())
    }

    pub(super) fn ring(&self, rack: &Arc<str>) {
        self.bell(rack).notify_waiters();
    }

    fn ask(&self, host: &Host) -> Answer {
        let (Some(hosts), now) = (self.hosts, self.now()) else { return Answer::No };
        let mut answer = Answer::No;
        for (image, tracked) in &mut self.state().swarms {
            match tracked.ask(now, host, host.kept.contains(image)) {
                Some(0) => {
                    let Hosts { upload_limit, space } = hosts;
                    return Answer::Yes(Help { manifest: *image, upload_limit, space });
                }
                Some(millis) => answer = Answer::Later(millis),
                None => {}
            }
        }
        answer
    }
}

impl Tracked {
    /// After each report: whether this machine is the first of its rack that fetches.
    pub(super) fn enters(&mut self, now: Millis, who: &Who, report: &SwarmReport) -> bool {
        let known = self.hosts.since.contains_key(&who.rack);
        if known == (report.lacking > 0 && !report.leaving) || who.host {
            return false;
        }
        let fetching = self.swarm.in_rack(&who.rack).fetching > 0;
        if known && !fetching {
            self.hosts.since.remove(&who.rack);
        } else if !known && fetching {
            self.hosts.since.insert(who.rack.clone(), now);
        }
        !known && fetching
    }

    /// Milliseconds until this host may be asked; 0: it is asked herewith.
    fn ask(&mut self, now: Millis, host: &Host, keeps: bool) -> Option<Millis> {
        let rack = self.swarm.in_rack(&host.rack);
        let is_here = self.swarm.member(host.machine).is_some_and(|m| m.is_here());
        if rack.fetching == 0 || is_here || self.hosts.hosts.contains_key(&host.machine) {
            return None;
        }
        // Those that came without the image stand in the way of others like them only.
        let comes = |(machine, asking): &(&MachineId, &Asking)| match self.swarm.member(**machine) {
            _ if asking.rack != host.rack => false,
            Some(member) if member.host => member.standing == Standing::Waits && !keeps,
            _ => now.saturating_sub(asking.at) < COMES,
        };
        if rack.complete + self.hosts.hosts.iter().filter(comes).count() >= ENOUGH {
            return None;
        }
        let since = self.hosts.since.get(&host.rack).copied().unwrap_or(now);
        let wait = if keeps { 0 } else { (since + LATE).saturating_sub(now) };
        if wait == 0 {
            self.hosts.hosts.insert(host.machine, Asking { rack: host.rack.clone(), at: now });
        }
        Some(wait)
    }
}
