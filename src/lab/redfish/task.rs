//! `TaskService`: what takes longer than a request (DSP0266 section 12.2, "Asynchronous operations").

use std::time::Instant;

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::control::Behaviour;
use super::document::{collection, link, resource};
use super::log::time;
use super::machine::Scene;
use super::message::Message;
use super::service::{Call, Reply};

const PATH: &str = "/redfish/v1/TaskService";

/// A component of the firmware inventory and the version it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    pub component: String,
    pub version: String,
}

#[derive(Default)]
pub struct Tasks {
    all: Vec<Task>,
    last: u64,
}

struct Task {
    id: u64,
    name: String,
    started: String,
    ended: Option<String>,
    stage: Stage,
}

enum Stage {
    Downloading,
    Installing(Effect, Instant),
    Completed,
    Failed(String),
}

impl Tasks {
    /// A task that waits for its image.
    pub fn begin(&mut self, name: &str, offset: i64) -> u64 {
        self.last += 1;
        let task = Task {
            id: self.last,
            name: name.to_owned(),
            started: time(offset),
            ended: None,
            stage: Stage::Downloading,
        };
        self.all.push(task);
        self.last
    }

    /// The image is there, or will never be.
    pub fn fetched(&mut self, id: u64, image: Result<Effect, String>) {
        for task in self.all.iter_mut().filter(|t| t.id == id && matches!(t.stage, Stage::Downloading)) {
            task.stage = match image.clone() {
                Ok(effect) => Stage::Installing(effect, Instant::now()),
                Err(why) => Stage::Failed(why),
            };
        }
    }

    /// What has been installed meanwhile.
    pub fn settle(&mut self, behaviour: &Behaviour) -> Vec<Effect> {
        let mut done = Vec::new();
        for task in &mut self.all {
            match &task.stage {
                Stage::Installing(effect, since) if behaviour.task.is_some_and(|time| since.elapsed() >= time) => {
                    done.push(effect.clone());
                    task.stage = Stage::Completed;
                    task.ended = Some(time(0));
                }
                Stage::Failed(_) if task.ended.is_none() => task.ended = Some(time(0)),
                _ => {}
            }
        }
        done
    }

    pub fn accepted(&self, id: u64, behaviour: &Behaviour) -> Reply {
        let found = self.all.iter().find(|t| t.id == id);
        found.map_or_else(|| Reply::missing(PATH), |t| Reply::accepted(monitor(id), t.document(behaviour)))
    }
}

fn monitor(id: u64) -> String {
    format!("{PATH}/TaskMonitors/{id}")
}

impl Task {
    fn document(&self, behaviour: &Behaviour) -> Value {
        let (state, status, percent, text) = match &self.stage {
            Stage::Downloading => ("Running", "OK", 0, "The image is being fetched.".to_owned()),
            Stage::Installing(_, since) => {
                // A task without an end creeps towards one.
                let whole = behaviour.task.map_or(600.0, |t| t.as_secs_f64().max(0.001));
                let percent = (since.elapsed().as_secs_f64() / whole * 100.0).clamp(1.0, 99.0) as u64;
                ("Running", "OK", percent, "The image is being installed.".to_owned())
            }
            Stage::Completed => ("Completed", "OK", 100, "The update is complete.".to_owned()),
            Stage::Failed(why) => ("Exception", "Critical", 100, why.clone()),
        };
        let body = json!({
            "TaskState": state,
            "TaskStatus": status,
            "PercentComplete": percent,
            "StartTime": self.started,
            "EndTime": self.ended,
            "TaskMonitor": monitor(self.id),
            "Messages": [{ "MessageId": "Update.1.0.Progress", "Message": text, "MessageSeverity": status }],
        });
        resource(&format!("{PATH}/Tasks/{}", self.id), "#Task.v1_7_4.Task", &self.name, body)
    }
}

impl Scene<'_> {
    pub fn tasks(&mut self, call: &Call, rest: &[&str]) -> Reply {
        let found = |id: &str| self.state.tasks.all.iter().position(|t| t.id.to_string() == id);
        match (call.method.as_str(), rest) {
            ("GET", []) => {
                let body = json!({ "ServiceEnabled": true, "Tasks": link(&format!("{PATH}/Tasks")) });
                Reply::ok(resource(PATH, "#TaskService.v1_2_1.TaskService", "Task Service", body))
            }
            ("GET", ["Tasks"]) => {
                let members = self.state.tasks.all.iter().map(|t| format!("{PATH}/Tasks/{}", t.id)).collect();
                Reply::ok(collection(&format!("{PATH}/Tasks"), "#TaskCollection.TaskCollection", "Tasks", members))
            }
            ("GET", ["Tasks", id]) => found(id).map(|at| self.state.tasks.all[at].document(&self.behaviour)).into(),
            ("GET", ["TaskMonitors", id]) => match found(id).map(|at| &self.state.tasks.all[at]) {
                None => Reply::missing(&call.path),
                Some(Task { stage: Stage::Completed, .. }) => Reply::empty(),
                Some(Task { stage: Stage::Failed(why), .. }) => {
                    Reply::error(StatusCode::BAD_REQUEST, Message::general(why))
                }
                Some(task) => Reply::accepted(monitor(task.id), task.document(&self.behaviour)),
            },
            ("DELETE", ["Tasks" | "TaskMonitors", id]) => match found(id) {
                Some(at) => {
                    self.state.tasks.all.remove(at);
                    Reply::empty()
                }
                None => Reply::missing(&call.path),
            },
            ("GET", _) => Reply::missing(&call.path),
            _ => Reply::not_allowed(),
        }
    }
}
