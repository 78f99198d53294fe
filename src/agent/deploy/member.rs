//! The machine that is deployed as a member of its image's swarm. What it fetches it keeps for others in memory and in the
//! free space of its disk.
//!
//! ```text
//! join ─ fetch, served on at once ─ read back, seed ─ report ─ linger while somebody needs it ─ close, reboot
//! ```
//!
//! What the disk had before is there decompressed only; it is not offered to others.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::spill::{self, Spill};
use crate::agent::block::Device;
use crate::agent::console::{say, say_error};
use crate::agent::member::{self, Fetched};
use crate::agent::progress::Meter;
use crate::agent::{Agent, blocking};
use crate::image::Manifest;
use crate::machine::Digest;
use crate::swarm::{Holdings, HttpSource, Source};

/// How long it stays for others after its own deployment. From there to the last check of the installed system the
/// appliance waits 20 minutes, of which the power-on test of a large server takes ten.
const LINGER: Duration = Duration::from_secs(120);
const COUNT: Duration = Duration::from_secs(1);

/// Ends with all that it has begun when it is dropped.
pub struct Member {
    member: member::Member,
    spill: Arc<Spill>,
}

/// What the machine fetches, and where it may keep it for others.
pub struct Wish<'a> {
    pub image: Digest,
    pub manifest: &'a Arc<Manifest>,
    /// Positions of chunks that are on the disk already.
    pub kept: &'a BTreeSet<usize>,
    pub device: &'a Arc<Device>,
    /// Free on the disk until the machine leaves.
    pub free: Range<u64>,
}

impl Member {
    /// `None`: frames come over HTTP only. They do as well until an appliance that does not answer says whom to follow.
    pub async fn join(agent: &Agent, wish: Wish<'_>, http: HttpSource, meter: &Meter) -> Option<Self> {
        let budget = spill::budget(&agent.options.roots.proc, wish.manifest);
        let spill = Arc::new(Spill::new(wish.device, wish.free, budget));
        let keep = Box::new(Arc::clone(&spill));
        let holdings = Arc::new(Holdings::empty(wish.image, Arc::clone(wish.manifest), keep));
        let chunks = &wish.manifest.chunks;
        let kept = wish.kept.iter().filter_map(|p| chunks.get(*p)).map(|c| c.index).collect();
        let (wish, note) = (member::Wish { holdings, kept, http: Some(http), upload_limit: None }, meter.clone());
        let member = member::Member::join(&agent.appliance, wish, move |what| note.note(what)).await?;
        match member.has_plan() {
            true => say(format!("serving others on port {}", member.port())),
            false => say("the appliance does not say yet whom to follow"),
        }
        Some(Self { member, spill })
    }

    pub fn source(&self) -> &dyn Source {
        self.member.source()
    }

    pub fn fetched(&self) -> Fetched {
        self.member.fetched()
    }

    /// Serves for as long as somebody needs it, within bounds.
    pub async fn linger(&mut self, meter: &Meter) {
        if !self.member.is_needed() {
            return;
        }
        meter.step("serving other machines", 0);
        let (mut told, end) = (self.member.sent(), Instant::now() + LINGER);
        while !self.member.linger(COUNT).await {
            let now = self.member.sent();
            meter.add(now - std::mem::replace(&mut told, now));
            if Instant::now() >= end || self.member.is_over() {
                return say("others still need this machine; they have to get on without it");
            }
        }
    }

    /// Says good-bye, serves nobody any more, and leaves nothing of it on the disk.
    pub async fn close(mut self) {
        self.member.close().await;
        let Fetched { from_peers, from_appliance } = self.fetched();
        let sent = self.member.sent();
        say(format!("got {from_peers} bytes from other machines and {from_appliance} from the appliance, sent {sent}"));
        let spill = Arc::clone(&self.spill);
        if let Err(e) = blocking(move || spill.wipe()).await {
            say_error(&e);
        }
    }
}
