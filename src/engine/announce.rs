//! Tells the site's receivers what became of machines.
//!
//! ```text
//! turn ── one transaction: state and a row for each receiver ──► a task for each receiver ──► HTTP
//!                                                                 │ not taken: 5 s, 30 s, 2 min … 1 h, for a day
//! ```
//!
//! Nothing waits for a receiver, and none waits for another one. What was written is told after a crash, too, then perhaps
//! twice: the id of the message stays the same.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::{Any, Transaction};
use tokio::sync::Notify;

use super::{Engine, now};
use crate::error::{Error, Result};
use crate::handoff::announce::Announcement;
use crate::handoff::receiver::{Failed, Receiver};
use crate::lifecycle::Millis;
use crate::store::posts::{self, Post, Standing};

const MINUTE: Millis = 60_000;
/// From one attempt to the next; the last one again and again.
const PAUSES: [Millis; 6] = [5_000, 30_000, 2 * MINUTE, 10 * MINUTE, 30 * MINUTE, 60 * MINUTE];
/// From the event to the last attempt.
const PATIENCE: Millis = 24 * 60 * MINUTE;
/// What was given up is shown for so long.
const SHOWN: Millis = 7 * PATIENCE;
/// After a failure of our own database.
const PAUSE: Duration = Duration::from_secs(10);

/// Whom the site wants to be told; nobody unless set.
#[derive(Default)]
pub struct Announce {
    site: String,
    lines: Vec<Arc<Line>>,
}

struct Line {
    receiver: Receiver,
    bell: Notify,
    last: Mutex<Option<Last>>,
}

/// The last attempt of this run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    pub at: Millis,
    /// `None`: it was taken.
    pub error: Option<String>,
}

/// `GET /api/v1/handoff/receivers`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReceiverView {
    pub name: String,
    pub target: String,
    pub events: Vec<String>,
    #[serde(flatten)]
    pub standing: Standing,
    pub last: Option<Last>,
}

impl Announce {
    pub fn new(site: &str, receivers: Vec<Receiver>) -> Self {
        let line = |receiver| Arc::new(Line { receiver, bell: Notify::new(), last: Mutex::default() });
        Self { site: site.to_owned(), lines: receivers.into_iter().map(line).collect() }
    }

    /// Somebody wants to know.
    pub(super) fn wanted(&self, announcement: &Announcement) -> bool {
        self.lines.iter().any(|line| line.receiver.wants(announcement))
    }

    /// In the transaction of the turn that it tells of.
    pub(super) async fn write(&self, tx: &mut Transaction<'static, Any>, announcement: &Announcement) -> Result<()> {
        let body = serde_json::to_string(announcement)
            .map_err(|e| Error::internal("store.encode", "an announcement cannot be written as JSON").because(e))?;
        for line in self.lines.iter().filter(|line| line.receiver.wants(announcement)) {
            posts::put(tx, &line.receiver.name, announcement.at, &body).await?;
        }
        Ok(())
    }

    /// There may be something new.
    pub(super) fn ring(&self) {
        self.lines.iter().for_each(|line| line.bell.notify_one());
    }
}

/// When the next attempt is made after `tries` that failed, of which the last ended at `now`. `None`: there is none.
fn next_attempt(at: Millis, tries: i64, now: Millis) -> Option<Millis> {
    let pause = PAUSES[usize::try_from(tries - 1).unwrap_or(0).min(PAUSES.len() - 1)];
    (now + pause <= at + PATIENCE).then_some(now + pause)
}

impl Engine {
    /// A task for each receiver, until the stop.
    pub(super) fn announce(&self) {
        let engine = self.clone();
        tokio::spawn(async move {
            if let Err(e) = engine.forget_strangers().await {
                tracing::warn!(error = ?e, "messages of receivers that are gone stay");
            }
        });
        for line in &self.inner.site.announce.lines {
            tokio::spawn(self.clone().tell_receiver(line.clone()));
        }
    }

    /// A receiver that was taken out of the configuration by mistake is back within a day.
    async fn forget_strangers(&self) -> Result<()> {
        self.db().forget_posts(now() - SHOWN).await?;
        for receiver in self.db().post_receivers().await? {
            if !self.inner.site.announce.lines.iter().any(|line| line.receiver.name == receiver) {
                tracing::warn!(receiver, "there are messages for a receiver that rackline.toml does not name any more");
                self.db().drop_posts(&receiver, now() - PATIENCE).await?;
            }
        }
        Ok(())
    }

    async fn tell_receiver(self, line: Arc<Line>) {
        loop {
            let pause = match self.tell_next(&line).await {
                Ok(pause) => pause,
                Err(e) => {
                    tracing::error!(error = ?e, receiver = line.receiver.name, "messages cannot be read or settled");
                    Some(PAUSE)
                }
            };
            let rest = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = rest => {}
                () = line.bell.notified() => {}
                () = self.inner.stop.cancelled() => return,
            }
        }
    }

    /// One attempt, or none: how long there is nothing to do, `None` until the bell rings.
    async fn tell_next(&self, line: &Line) -> Result<Option<Duration>> {
        let name = &line.receiver.name;
        let Some(post) = self.db().next_post(name).await? else { return Ok(None) };
        let wait = post.due - now();
        if wait > 0 {
            return Ok(Some(Duration::from_millis(wait as u64)));
        }
        let error = tokio::select! {
            error = self.attempt(line, &post) => error?,
            // It stays, and is sent again at the next start.
            () = self.inner.stop.cancelled() => return Ok(None),
        };
        *line.last.lock().unwrap_or_else(|e| e.into_inner()) = Some(Last { at: now(), error });
        Ok(Some(Duration::ZERO))
    }

    /// Why it was not taken.
    async fn attempt(&self, line: &Line, post: &Post) -> Result<Option<String>> {
        let name = &line.receiver.name;
        let announcement: Announcement = match serde_json::from_str(&post.body) {
            Ok(announcement) => announcement,
            Err(e) => {
                self.db().post_failed(post.id, None, "it was written by another release").await?;
                return Ok(Some(e.to_string()));
            }
        };
        let (what, machine) = (&announcement.kind, &announcement.name);
        match line.receiver.send(&self.inner.site.announce.site, &announcement, now() / 1000).await {
            Ok(()) => {
                tracing::info!(receiver = name, machine, what, "told");
                self.db().post_done(post.id).await?;
                Ok(None)
            }
            Err(Failed::Gone) => {
                tracing::warn!(
                    receiver = name,
                    machine,
                    what,
                    "the receiver says that it is gone (410): not sent again"
                );
                self.db().post_failed(post.id, None, "answered 410 Gone").await?;
                Ok(Some("answered 410 Gone".into()))
            }
            Err(Failed::Later(error)) => {
                let next = next_attempt(post.at, post.tries + 1, now());
                match next {
                    Some(_) => tracing::warn!(
                        receiver = name,
                        machine,
                        what,
                        error,
                        tries = post.tries + 1,
                        "not taken; again later"
                    ),
                    None => tracing::error!(receiver = name, machine, what, error, "not taken for a day: given up"),
                }
                self.db().post_failed(post.id, next, &error).await?;
                Ok(Some(error))
            }
        }
    }

    /// All receivers, in the order of the configuration.
    pub async fn receivers(&self) -> Result<Vec<ReceiverView>> {
        let mut views = Vec::new();
        for line in &self.inner.site.announce.lines {
            views.push(ReceiverView {
                name: line.receiver.name.clone(),
                target: line.receiver.target(),
                events: line.receiver.events.clone(),
                standing: self.db().standing(&line.receiver.name).await?,
                last: line.last.lock().unwrap_or_else(|e| e.into_inner()).clone(),
            });
        }
        Ok(views)
    }

    /// What waits or was given up is sent at once.
    pub async fn tell_again(&self, receiver: &str) -> Result<()> {
        let known = self.inner.site.announce.lines.iter().find(|line| line.receiver.name == receiver);
        let line = known.ok_or_else(|| {
            Error::not_found("handoff.receiver", format!("there is no receiver {receiver:?}"))
                .hint("`rackline handoff webhooks` lists them")
        })?;
        self.db().posts_again(receiver, now()).await?;
        line.bell.notify_one();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_tried_for_a_day_with_growing_pauses() {
        let (mut at, mut tries, mut pauses) = (0, 0, Vec::new());
        while let Some(next) = {
            tries += 1;
            next_attempt(0, tries, at)
        } {
            pauses.push(next - at);
            at = next;
        }
        assert_eq!(pauses[..3], [5_000, 30_000, 2 * MINUTE]);
        assert!(pauses.windows(2).all(|two| two[0] <= two[1]));
        assert!((20..40).contains(&tries) && at > PATIENCE - 60 * MINUTE && at <= PATIENCE, "{tries} {at}");
    }
}
