//! What a BMC does later: 202 and the task that tells how it goes (DSP0266, “Asynchronous operations”).
//!
//! Told by a task monitor, which answers 202 until it is done and then as the operation itself would have; by a Task
//! resource with a `TaskState`; or by the monitor answering with that Task resource (iDRAC). All three are understood.

use reqwest::StatusCode;
use reqwest::header::{LOCATION, RETRY_AFTER};
use serde_json::Value;
use std::time::SystemTime;
use tokio::time::{Duration, Instant, sleep};

use super::doc::{Properties, reference};
use super::http::{Call, Reply, quote, retry_after};
use super::resource::refusal;
use super::session::Session;
use crate::error::{Error, Kind, Result};

/// Between two looks: soon at first, for what is done at once.
const LOOK: Duration = Duration::from_millis(200);
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Changes of settings that are read back afterwards are not waited for longer than this.
const SETTLE: Duration = Duration::from_secs(10);
/// A task that has not begun for this long waits for the machine's next boot, as iDRAC's do with a BIOS image (TaskState
/// `Pending`, DSP0268): nothing more comes of waiting.
const STAGED: Duration = Duration::from_secs(60);
/// Of a BMC that restarts while it updates itself.
const ABSENCE_LOOK: Duration = Duration::from_secs(2);

/// How a task stands.
#[derive(Debug, Clone, PartialEq)]
enum Progress {
    Pending,
    Running { percent: Option<u8>, state: String },
    Done,
    Failed(String),
}

/// What waiting came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Done,
    /// It will be done with the machine's next boot.
    Staged,
    /// The BMC has lost the task in a restart of its own; what is there now, it shows itself.
    Forgotten,
}

impl Session {
    /// After a change of settings: waits a little for its task, where there is one. A task that goes on, such as one that
    /// waits for the next boot, is no fault: what the BMC shows decides.
    pub(super) async fn settle(&mut self, reply: Option<Reply>) -> Result<()> {
        let Some(reply) = reply.filter(|reply| reply.status == StatusCode::ACCEPTED) else { return Ok(()) };
        let until = self.deadline().min(Instant::now() + SETTLE);
        match self.watch(&reply, until).await {
            Err(e) if e.code() == "bmc.task-late" => Ok(()),
            ended => ended.map(drop),
        }
    }

    /// Waits until the task of `reply` has ended, at most until `until`.
    pub(super) async fn watch(&mut self, reply: &Reply, until: Instant) -> Result<Ended> {
        if reply.status != StatusCode::ACCEPTED {
            return Ok(Ended::Done);
        }
        let mut links = task_links(reply, &reply.json(self.whose()).unwrap_or_default());
        if links.is_empty() {
            // Nothing tells how it goes; what the BMC shows decides.
            return Ok(Ended::Forgotten);
        }
        let start = Instant::now();
        let (mut pause, mut absent) = (LOOK, false);
        let mut last = String::from("not begun");
        let mut pending: Option<Instant> = None;
        loop {
            let Some(link) = links.first().cloned() else { return self.lost(absent) };
            let call = Call::get(&link);
            let next = match self.exchange(&call).await {
                Ok(reply) if gone(reply.status) => {
                    links.remove(0);
                    continue;
                }
                Ok(reply) => {
                    let wait = reply.header(RETRY_AFTER).map(|after| retry_after(after, SystemTime::now()));
                    match self.progress(&call, &reply)? {
                        Progress::Done => return Ok(Ended::Done),
                        Progress::Failed(why) => return Err(self.failed(&why)),
                        Progress::Pending if pending.get_or_insert_with(Instant::now).elapsed() >= STAGED => {
                            return Ok(Ended::Staged);
                        }
                        Progress::Pending => last = String::from("not begun"),
                        Progress::Running { percent, state } => {
                            pending = None;
                            last = percent.map_or(state.clone(), |percent| format!("{state}, {percent} %"));
                        }
                    }
                    wait.unwrap_or(pause).min(LOOK_MAX)
                }
                // It restarts, as after an update of its own firmware.
                Err(e) if e.kind() == Kind::Unreachable => {
                    absent = true;
                    ABSENCE_LOOK
                }
                Err(e) => return Err(e),
            };
            if Instant::now() + next >= until {
                let message =
                    format!("{} is not done after {:.0} s: {last}", self.whose(), start.elapsed().as_secs_f64());
                return Err(Error::unreachable("bmc.task-late", message)
                    .hint(format!("the BMC goes on by itself; its task is {link}")));
            }
            sleep(next).await;
            pause = (pause * 2).min(LOOK_MAX);
        }
    }

    fn lost(&self, absent: bool) -> Result<Ended> {
        if absent {
            return Ok(Ended::Forgotten);
        }
        let message = format!("{} does not know its own task any more", self.whose());
        Err(Error::refused("bmc.task-lost", message).hint("look at the versions and settings that the BMC has now"))
    }

    fn failed(&self, why: &str) -> Error {
        Error::refused("bmc.task-failed", format!("{} gave up: {why}", self.whose()))
            .hint("look at the BMC's own log for the reason")
    }

    fn progress(&self, call: &Call, reply: &Reply) -> Result<Progress> {
        let body = match reply.json(self.whose()) {
            Ok(body) => body,
            Err(_) if reply.status == StatusCode::ACCEPTED => Value::Null,
            Err(e) => return Err(e),
        };
        if let Some(state) = body.text("TaskState") {
            return Ok(standing(&state, &body));
        }
        match reply.status {
            StatusCode::ACCEPTED => Ok(Progress::Running { percent: None, state: "running".to_owned() }),
            status if status.is_success() => Ok(Progress::Done),
            // The monitor answers as the operation would have: so this is how it failed.
            _ => Ok(Progress::Failed(refusal(self.whose(), call, reply).message().to_owned())),
        }
    }
}

fn gone(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE)
}

/// Where the task can be asked, the monitor first. iDRAC sends the task as `Location`, others the task in the body.
fn task_links(reply: &Reply, body: &Value) -> Vec<String> {
    let monitor = body.text("TaskMonitor").or_else(|| body.link("TaskMonitor").map(str::to_owned));
    let itself = body.property("TaskState").and_then(|_| reference(body)).map(str::to_owned);
    let mut links: Vec<String> = Vec::new();
    for link in [reply.header(LOCATION).map(str::to_owned), monitor, itself].into_iter().flatten() {
        if !links.contains(&link) {
            links.push(link);
        }
    }
    links
}

fn standing(state: &str, task: &Value) -> Progress {
    let percent = task.number("PercentComplete").map(|percent| percent.clamp(0.0, 100.0) as u8);
    let bad = matches!(task.text("TaskStatus").as_deref(), Some("Critical"));
    match state {
        "Completed" if !bad => Progress::Done,
        "Completed" | "Exception" | "Killed" | "Cancelled" | "Interrupted" => Progress::Failed(said(state, task)),
        "Pending" => Progress::Pending,
        _ => Progress::Running { percent, state: quote(state) },
    }
}

fn said(state: &str, task: &Value) -> String {
    let messages: Vec<String> = task.list("Messages").iter().filter_map(|m| m.text("Message")).take(3).collect();
    match messages.is_empty() {
        true => format!("the task ended as {}", quote(state)),
        false => quote(&messages.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_task_is_done_only_if_it_says_so_and_is_well() {
        let of = |state: &str, more: Value| standing(state, &more);
        assert_eq!(of("Completed", json!({"TaskStatus": "OK"})), Progress::Done);
        assert_eq!(of("Completed", json!({"TaskStatus": "Warning"})), Progress::Done);
        let failed = of("Completed", json!({"TaskStatus": "Critical", "Messages": [{"Message": "wrong model"}]}));
        assert_eq!(failed, Progress::Failed("wrong model".into()));
        assert_eq!(of("Exception", json!({})), Progress::Failed("the task ended as Exception".into()));
        let running = Progress::Running { percent: Some(100), state: "Running".into() };
        assert_eq!(of("Running", json!({"PercentComplete": 400})), running);
        assert_eq!(of("Pending", json!({"PercentComplete": 0})), Progress::Pending);
        assert!(matches!(of("Scheduled by vendor", json!({})), Progress::Running { percent: None, .. }));
    }
}
