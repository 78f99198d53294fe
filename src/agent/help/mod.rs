//! An installed host helps: asked by the appliance, it gives an image to new machines of its rack, from its own disk.
//!
//! ```text
//! open question ─ help ─► kept? ── yes ──────────────► serve ─ not needed for a while ─► open question
//!                           └ no ─ room ─ fetch, keep ───┘
//! ```
//!
//! Meanwhile orders are carried out as ever. All of it runs at a low priority, on threads that are gone afterwards; idle, it
//! is one request that waits for its answer.

mod shelf;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use shelf::{Kept, Part, Shelf};

use super::appliance::{Appliance, Wanted as Answer};
use super::console::{say, say_error};
use super::member::{Member, Wish};
use super::{AT_ONCE, Agent, blocking, deploy};
use crate::error::{Error, Kind, OrFail, Result};
use crate::image::Manifest;
use crate::link::Help;
use crate::swarm::{BackOff, Frame, Holdings, Wanted};

/// Where hosts do not help, the next question comes after so long: somebody may have switched it on.
const OFF: Duration = Duration::from_secs(600);
/// It goes when nobody has needed it for so long.
const IDLE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_secs(1);
/// Of each thread, since Linux gives each its own (setpriority(2)). Reads and writes go by it, too (ioprio_set(2)).
const NICE: i32 = 10;

/// Until `stop`.
pub async fn help(agent: &Agent, stop: &CancellationToken) {
    let shelf = Shelf::new(&agent.options.roots.state);
    let mut wait = BackOff::default();
    let mut said = String::new();
    while !stop.is_cancelled() {
        let asked = Instant::now();
        let Some(answer) = stop.run_until_cancelled(agent.appliance.help(&shelf.images())).await else { return };
        if let Answer::Help(help) = &answer
            && let Err(e) = quietly(agent, &shelf, help, stop).await
            && e.to_string() != said
        {
            say_error(&e);
            said = e.to_string();
        }
        let pause = match answer {
            Answer::Never => OFF,
            Answer::Help(_) | Answer::Nobody if asked.elapsed() >= AT_ONCE => {
                wait.reset();
                continue;
            }
            _ => wait.next_wait(),
        };
        stop.run_until_cancelled(sleep(pause)).await;
    }
}

/// On threads of its own, which yield to everything else on this host.
async fn quietly(agent: &Agent, shelf: &Shelf, help: &Help, stop: &CancellationToken) -> Result<()> {
    let session = Session {
        appliance: agent.appliance.apart()?,
        key: agent.options.key.clone(),
        shelf: shelf.clone(),
        help: help.clone(),
        stop: stop.clone(),
    };
    let threads = Threads::start()?;
    let running = threads.0.as_ref().map(|threads| threads.spawn(session.run()));
    match running {
        Some(running) => running.await.or_fail(Kind::Internal, "agent.task", || "helping others has failed")?,
        None => Ok(()),
    }
}

struct Threads(Option<Runtime>);

impl Threads {
    fn start() -> Result<Self> {
        let yields = || {
            // Without it this host helps all the same, and no faster than it may.
            let _ = rustix::process::setpriority_process(None, NICE);
        };
        let threads = Builder::new_multi_thread().worker_threads(1).on_thread_start(yields).enable_all().build();
        Ok(Self(Some(threads.or_fail(Kind::Internal, "agent.task", || "no thread can be started")?)))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(threads) = self.0.take() {
            threads.shutdown_background();
        }
    }
}

struct Session {
    appliance: Appliance,
    key: Option<String>,
    shelf: Shelf,
    help: Help,
    stop: CancellationToken,
}

enum End {
    Done,
    /// What is kept is not the image any more.
    Damaged,
}

impl Session {
    async fn run(self) -> Result<()> {
        let signed = deploy::signed_image(&self.appliance, self.key.as_deref(), self.help.manifest);
        let Some(image) = self.stop.run_until_cancelled(signed).await else { return Ok(()) };
        let image = Arc::new(image?);
        // What is damaged is fetched anew. If that is damaged as well, it is for somebody to look at the disk.
        for _ in 0..2 {
            match self.take_part(&image).await? {
                End::Done => return Ok(()),
                End::Damaged => {
                    say(format!("the kept image {} is damaged and is removed", self.help.manifest.short()));
                    let (shelf, manifest) = (self.shelf.clone(), self.help.manifest);
                    blocking(move || shelf.remove(manifest)).await?;
                }
            }
        }
        Err(Error::refused("swarm.keep", "an image that was just kept is damaged")
            .hint("look at the disk of this host"))
    }

    async fn take_part(&self, image: &Arc<Manifest>) -> Result<End> {
        let (shelf, help, bytes) = (self.shelf.clone(), self.help.clone(), image.data_size);
        let kept = blocking(move || shelf.open(help.manifest, bytes, help.space)).await?;
        let (manifest, digest) = (Arc::clone(image), self.help.manifest);
        let (holdings, part) = match kept {
            Kept::Whole(keep) => (Holdings::complete(digest, manifest, Box::new(keep)), None),
            Kept::Part(part) => (Holdings::empty(digest, manifest, Box::new(part.keep())), Some(part)),
        };
        let holdings = Arc::new(holdings);
        // Never over HTTP: a host is fed when it costs the appliance and the racks the least, which the plan knows.
        let wish = Wish {
            holdings: Arc::clone(&holdings),
            kept: BTreeSet::new(),
            http: None,
            upload_limit: Some(self.help.upload_limit),
        };
        let Some(mut member) = Member::join(&self.appliance, wish, |_| ()).await else { return Ok(End::Done) };
        let end = self.stop.run_until_cancelled(stay(&member, &holdings, part)).await.unwrap_or(Ok(End::Done));
        member.close().await;
        say(format!("gave {} bytes of {}-{} to other machines", member.sent(), image.name, image.release));
        end
    }
}

/// Until nobody needs this host any more.
async fn stay(member: &Member, holdings: &Holdings, part: Option<Part>) -> Result<End> {
    if let Some(part) = part {
        fetch(member, holdings).await?;
        blocking(move || part.finish()).await?;
    }
    let mut needed = Instant::now();
    while needed.elapsed() < IDLE && !member.is_over() {
        sleep(LOOK).await;
        if holdings.held().0 < holdings.frames() {
            return Ok(End::Damaged);
        }
        if member.is_needed() {
            needed = Instant::now();
        }
    }
    Ok(End::Done)
}

/// The frames go to the file as they come; here they are only counted off.
async fn fetch(member: &Member, holdings: &Holdings) -> Result<()> {
    let wanted = |c: &crate::image::Chunk| Wanted { index: c.index, offset: c.offset, len: c.length };
    let wanted: Vec<Wanted> = holdings.manifest().chunks.iter().map(wanted).collect();
    let (sink, mut frames) = mpsc::channel::<Frame>(1);
    let counted = async move {
        while let Some(frame) = frames.recv().await {
            if !holdings.frame_of(frame.index).is_some_and(|frame| holdings.holds(frame)) {
                return false;
            }
        }
        true
    };
    let (fetched, kept) = tokio::join!(member.source().fetch(&wanted, sink), counted);
    fetched?;
    match kept {
        true => Ok(()),
        false => Err(Error::conflict("swarm.keep", "this host cannot write the image that it was to keep for others")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_its_own_threads_yield() {
        let of_thread = || rustix::process::getpriority_process(None).unwrap();
        let here = of_thread();
        let threads = Threads::start().unwrap();
        let runtime = threads.0.as_ref().unwrap();
        let there = runtime.spawn(async move {
            let blocking = tokio::task::spawn_blocking(of_thread).await.unwrap();
            [of_thread(), blocking]
        });
        assert_eq!(there.await.unwrap(), [NICE; 2]);
        assert_eq!(of_thread(), here);
    }
}
