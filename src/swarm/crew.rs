//! Who fetches for a relay at any moment: the peer that is followed, one on trial, and HTTP when nobody else delivers.
//!
//! The peer that is followed is the first of the plan that works. It is left when its connection ends, and [`follow`] ends
//! it for silence, for garbage, and for not sending what it has. It is *not* left for having nothing new: then another is
//! tried beside it, and takes its place only by delivering.
//!
//! [`follow`]: super::follow

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval};

use super::follow::{End, Link, follow};
use super::relay::{Fallback, Note, Shared};
use super::standing::{Failure, Standings};
use super::{Frame, Wanted};
use crate::error::{Error, Kind, Result};
use crate::link::SwarmPlan;

/// How often the crew looks at itself.
const LOOK: Duration = Duration::from_millis(100);
/// A peer on trial delivers within this time, or another one is tried.
const TRIAL: Duration = Duration::from_secs(2);
/// Frames that are asked for at once over HTTP: few, so that peers can take over again soon.
const BATCH: usize = 16;
/// So often may a frame come wrong over HTTP.
const WRONG: u32 = 3;
/// Without progress for this long, the operator is told.
const TELL: Duration = Duration::from_secs(2);
/// Between two tries of HTTP.
const HTTP_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Crew<'a> {
    shared: &'a Arc<Shared>,
    plan: watch::Receiver<SwarmPlan>,
    fallback: Option<&'a Arc<Fallback>>,
    note: &'a Note,
    standings: Standings,
    tasks: JoinSet<Ended>,
    current: Option<Member>,
    trial: Option<Member>,
    http: Option<Http>,
    /// Since when there is no peer that has accepted us.
    alone: Option<Instant>,
    end_game: Option<EndGame>,
    /// Frames that came wrong over HTTP.
    wrong: HashMap<u32, u32>,
    http_error: Option<Error>,
    http_again: Instant,
    last_end: Option<String>,
    told: bool,
    started: Instant,
    at_start: u64,
}

enum Ended {
    Peer(Arc<Link>, End),
    /// Frames that came wrong, and why it ended.
    Http(Vec<u32>, Result<()>),
}

struct Member {
    link: Arc<Link>,
    task: AbortHandle,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Http {
    task: AbortHandle,
    /// What the peer that is followed had brought when this began.
    peers_had: u64,
}

impl Drop for Http {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Little is missing. It should take `due`; after twice as long others are asked too, after four times HTTP.
struct EndGame {
    since: Instant,
    due: Duration,
}

impl<'a> Crew<'a> {
    pub fn new(
        shared: &'a Arc<Shared>,
        plan: watch::Receiver<SwarmPlan>,
        fallback: Option<&'a Arc<Fallback>>,
        note: &'a Note,
    ) -> Self {
        let now = Instant::now();
        Self {
            shared,
            plan,
            fallback,
            note,
            standings: Standings::default(),
            tasks: JoinSet::new(),
            current: None,
            trial: None,
            http: None,
            alone: Some(now),
            end_game: None,
            wrong: HashMap::new(),
            http_error: None,
            http_again: now,
            last_end: None,
            told: false,
            started: now,
            at_start: shared.missing().bytes,
        }
    }

    /// Goes on until it has to give up; whoever has all frames drops it.
    pub async fn run(&mut self) -> Error {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = Instant::now();
            if let Err(e) = self.look(now) {
                return e;
            }
            tokio::select! {
                _ = look.tick() => {}
                Some(ended) = self.tasks.join_next() => if let Err(e) = self.ended(ended) {
                    return e;
                },
                () = self.shared.wake.notified() => {}
            }
        }
    }

    fn look(&mut self, now: Instant) -> Result<()> {
        self.standings.follow_plan(&self.plan.borrow().predecessors);
        let missing = self.shared.missing();
        if missing.frames == 0 {
            (self.current, self.trial, self.http) = (None, None, None);
            return Ok(());
        }
        let starved = self.shared.starved();
        self.watch_end_game(now, missing.bytes);
        self.judge_trial(now);
        self.staff(now, starved);
        self.alone = match self.is_welcome() {
            true => None,
            false => self.alone.or(Some(now)),
        };
        self.use_http(now, starved);
        self.tell(starved);
        self.give_up(starved)
    }

    fn is_welcome(&self) -> bool {
        [&self.current, &self.trial].into_iter().flatten().any(|m| m.link.is_welcome())
    }

    fn watch_end_game(&mut self, now: Instant, missing: u64) {
        if missing > self.shared.limits.end_game {
            self.end_game = None;
            return;
        }
        let brought = self.at_start.saturating_sub(missing);
        let elapsed = now - self.started;
        self.end_game.get_or_insert_with(|| {
            // From the rate so far; where nothing came yet, none is known.
            let due = elapsed.as_secs_f64() * missing as f64 / brought.max(1) as f64;
            EndGame { since: now, due: Duration::from_secs_f64(due.min(60.0)) }
        });
    }

    /// Whether the end takes `times` as long as it should, and half a second more for each.
    fn overdue(&self, now: Instant, times: u32) -> bool {
        let late = |end: &EndGame| now - end.since > (end.due + Duration::from_millis(250)) * times;
        self.end_game.as_ref().is_some_and(late)
    }

    /// Whoever is on trial takes the place of the one that is followed when it delivers what is missing. One that the plan
    /// puts before it need not be ahead, which it cannot be while both are fed by the same: it takes the place when it sends
    /// at all, and where nothing is held against it, at once.
    fn judge_trial(&mut self, now: Instant) {
        let Some(trial) = &self.trial else { return };
        let (peer, rank) = (trial.link.peer, self.standings.rank(trial.link.peer));
        let followed = self.current.as_ref().map_or(usize::MAX, |c| self.standings.rank(c.link.peer));
        let works = self.standings.is_clean(peer) || trial.link.sent() > 0;
        let ordered = trial.link.is_welcome() && rank < followed && works;
        if trial.link.delivered() > 0 || ordered {
            // At the end both go on: the first that comes wins.
            if self.end_game.is_none() || self.current.is_none() || ordered {
                self.current = self.trial.take();
            }
        } else if now - trial.link.since > TRIAL {
            self.standings.failed(peer, Failure::Useless, now);
            self.trial = None;
        }
    }

    fn staff(&mut self, now: Instant, starved: Duration) {
        let busy: Vec<_> = [&self.current, &self.trial].into_iter().flatten().map(|m| m.link.peer).collect();
        let Some(next) = self.standings.next(&busy, now) else { return };
        match &self.current {
            None => self.current = Some(self.hire(next)),
            Some(_) if self.trial.is_some() => {}
            Some(current) => {
                let better = self.standings.rank(next) < self.standings.rank(current.link.peer);
                if better || starved > self.shared.limits.probe || self.overdue(now, 2) {
                    self.trial = Some(self.hire(next));
                }
            }
        }
    }

    fn hire(&mut self, peer: std::net::SocketAddr) -> Member {
        let link = Link::new(peer);
        let (shared, followed) = (Arc::clone(self.shared), Arc::clone(&link));
        let task = self.tasks.spawn(async move {
            let end = follow(shared, Arc::clone(&followed)).await;
            Ended::Peer(followed, end)
        });
        Member { link, task }
    }

    fn use_http(&mut self, now: Instant, starved: Duration) {
        let Some(fallback) = self.fallback else { return };
        let limits = &self.shared.limits;
        // Not all machines of a hall at the same moment.
        let patience =
            limits.starved.mul_f64(1.0 + spread(self.shared.holdings.frames(), fallback.address.port()) / 2.0);
        let alone = self.alone.is_some_and(|since| now - since >= limits.fallback);
        let at_the_end = self.overdue(now, 4);
        if let Some(http) = &self.http {
            // Peers deliver again: what comes from them need not come from the appliance.
            let peers_have = self.current.as_ref().map_or(0, |c| c.link.delivered());
            if !at_the_end && !alone && peers_have > http.peers_had && starved < limits.silence {
                self.http = None;
            }
        } else if now >= self.http_again && (alone || starved >= patience || at_the_end) {
            let wanted = self.wanted();
            let peers_had = self.current.as_ref().map_or(0, |c| c.link.delivered());
            let task = self.tasks.spawn(over_http(Arc::clone(self.shared), Arc::clone(fallback), wanted));
            self.http = Some(Http { task, peers_had });
        }
    }

    /// The next frames for HTTP.
    fn wanted(&self) -> Vec<Wanted> {
        let holdings = &self.shared.holdings;
        let chunk = |frame| holdings.chunk(frame).map(|c| Wanted { index: c.index, offset: c.offset, len: c.length });
        self.shared.lacking().ones().filter_map(chunk).take(BATCH).collect()
    }

    fn ended(&mut self, ended: Result<Ended, JoinError>) -> Result<()> {
        let now = Instant::now();
        match ended {
            Ok(Ended::Peer(link, end)) => self.left(&link, end, now),
            Ok(Ended::Http(wrong, result)) => {
                self.http = None;
                for frame in wrong {
                    let times = self.wrong.entry(frame).or_default();
                    *times += 1;
                    if *times >= WRONG {
                        let index = self.shared.holdings.chunk(frame).map_or(frame, |c| c.index);
                        let what = format!("chunk {index} of the image is not what was signed");
                        return Err(
                            Error::refused("image.chunk", what).hint("see `rackline image verify` on the appliance")
                        );
                    }
                }
                self.http_error = result.err();
                if self.http_error.is_some() {
                    self.http_again = now + HTTP_PAUSE;
                }
            }
            // Taken off the job.
            Err(e) if e.is_cancelled() => {}
            Err(e) => return Err(Error::internal("relay.task", "fetching has failed").because(e)),
        }
        Ok(())
    }

    fn left(&mut self, link: &Arc<Link>, end: End, now: Instant) {
        tracing::debug!(peer = %link.peer, %end, groups = link.delivered(), "a peer is no longer followed");
        let same = |member: &Option<Member>| member.as_ref().is_some_and(|m| Arc::ptr_eq(&m.link, link));
        if same(&self.current) {
            self.current = self.trial.take();
        } else if same(&self.trial) {
            self.trial = None;
        }
        match end {
            End::Garbage(what) => {
                tracing::warn!(peer = %link.peer, what, "a peer sends garbage and is not asked again");
                self.standings.garbage(link.peer);
                self.shared.garbage(link.peer);
            }
            _ if link.delivered() > 0 => self.standings.failed(link.peer, Failure::AfterUse, now),
            _ if link.is_welcome() => self.standings.failed(link.peer, Failure::Useless, now),
            End::Stalled => self.standings.failed(link.peer, Failure::Useless, now),
            _ => self.standings.failed(link.peer, Failure::NotReached, now),
        }
        self.last_end = Some(format!("{}: {end}", link.peer));
    }

    fn tell(&mut self, starved: Duration) {
        if starved < TELL {
            if std::mem::take(&mut self.told) {
                (self.note)(None);
            }
            return;
        }
        let why = match (&self.current, &self.last_end) {
            (Some(c), _) if c.link.is_welcome() => format!("{} has nothing new", c.link.peer),
            (_, Some(end)) => end.clone(),
            (Some(c), None) => format!("{} does not answer", c.link.peer),
            (None, None) => "no peer is known".to_owned(),
        };
        self.told = true;
        (self.note)(Some(format!("waiting for image data: {why}")));
    }

    fn give_up(&mut self, starved: Duration) -> Result<()> {
        let limits = &self.shared.limits;
        let refused = self.http_error.as_ref().is_some_and(|e| e.kind() != Kind::Unreachable);
        let late = starved >= limits.patience || refused && self.alone.is_some() && starved >= limits.refused;
        // With no one else to ask, a refusal is final.
        let hopeless = refused && !self.standings.anybody();
        if !late && !hopeless {
            return Ok(());
        }
        let why = self.http_error.take();
        if refused && let Some(error) = why {
            return Err(error);
        }
        let what = format!("no data of the image came within {} s", starved.as_secs());
        let error = Error::unreachable("source.unreachable", what)
            .hint("look at the network between this machine, its neighbours and the appliance, then order again");
        Err(match (why, self.last_end.take()) {
            (Some(e), _) => error.because(e),
            (None, Some(end)) => error.because(end),
            (None, None) => error,
        })
    }
}

/// Between 0 and 1, another number in each process.
fn spread(a: u32, b: u16) -> f64 {
    let hash = blake3::hash(&[&a.to_le_bytes()[..], &b.to_le_bytes(), &std::process::id().to_le_bytes()].concat());
    f64::from(hash.as_bytes()[0]) / 255.0
}

/// Fetches some frames from the appliance.
async fn over_http(shared: Arc<Shared>, fallback: Arc<Fallback>, wanted: Vec<Wanted>) -> Ended {
    let (sink, mut frames) = mpsc::channel(1);
    let mut wrong = Vec::new();
    let take = async {
        while let Some(Frame { index, bytes }) = frames.recv().await {
            let Some(frame) = shared.holdings.frame_of(index) else { continue };
            shared.count(fallback.address, bytes.len() as u64);
            match shared.holdings.put_frame(frame, &bytes) {
                Ok(Some(whole)) => {
                    shared.moved();
                    shared.complete(whole, None).await;
                }
                Ok(None) => {}
                Err(_) => wrong.push(frame),
            }
        }
    };
    let (result, ()) = tokio::join!(fallback.source.fetch(&wanted, sink), take);
    Ended::Http(wrong, result)
}
