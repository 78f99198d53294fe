//! The recorded tree of a real server behind the simulated door: documents as they were, changes kept in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::http::{Method, StatusCode};
use rackline::lab::redfish::{Account, Accounts, Call, Controls, Reply, Server, Service};
use serde_json::{Value, json};

pub const SYSTEM: &str = "/redfish/v1/Systems/System.Embedded.1";

/// A Dell PowerEdge R750; `tests/fixtures/redfish/README.md` says where it is from.
pub struct Tree {
    documents: Mutex<HashMap<String, Value>>,
    /// Bodies of POST and PATCH, by path.
    pub told: Mutex<Vec<(String, Value)>>,
}

impl Tree {
    pub fn dell() -> Arc<Self> {
        let lines = include_str!("../fixtures/redfish/dell-r750.jsonl").lines();
        let documents = lines.map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            (line["path"].as_str().unwrap().to_owned(), line["document"].take())
        });
        Arc::new(Self { documents: Mutex::new(documents.collect()), told: Mutex::default() })
    }

    /// Changes what was recorded.
    pub fn edit(&self, path: &str, change: impl FnOnce(&mut Value)) {
        change(self.documents.lock().unwrap().get_mut(path).unwrap());
    }

    pub fn document(&self, path: &str) -> Value {
        self.documents.lock().unwrap()[path].clone()
    }

    pub fn add(&self, path: &str, document: Value) {
        self.documents.lock().unwrap().insert(path.to_owned(), document);
    }

    /// What was last sent to this path.
    pub fn last(&self, path: &str) -> Value {
        let told = self.told.lock().unwrap();
        told.iter().rev().find(|(to, _)| to == path).map(|(_, body)| body.clone()).unwrap_or_default()
    }

    pub async fn serve(self: &Arc<Self>, address: &str) -> (Server, Arc<Controls>) {
        let controls = Arc::new(Controls::default());
        let accounts = Arc::new(Accounts::new(vec![Account::administrator("root", "calvin")]));
        let server = Server::start(address.parse().unwrap(), true, self.clone(), controls.clone(), accounts).await;
        (server.unwrap(), controls)
    }
}

impl Service for Tree {
    fn answer(&self, call: &Call) -> Reply {
        let mut documents = self.documents.lock().unwrap();
        if call.method == Method::GET {
            return documents.get(&call.path).cloned().map_or_else(|| Reply::missing(&call.path), Reply::ok);
        }
        self.told.lock().unwrap().push((call.path.clone(), call.json.clone()));
        let power = |state: &str| json!({ "PowerState": state });
        match (call.method.as_str(), call.json["ResetType"].as_str()) {
            ("PATCH", _) => match documents.get_mut(&call.path) {
                Some(document) => {
                    merge(document, &call.json);
                    Reply::ok(document.clone())
                }
                None => Reply::missing(&call.path),
            },
            ("POST", Some(kind)) if call.path.starts_with(SYSTEM) => {
                let state = if kind == "ForceOff" || kind == "GracefulShutdown" { "Off" } else { "On" };
                merge(documents.get_mut(SYSTEM).unwrap(), &power(state));
                Reply::empty()
            }
            ("POST", _) => Reply::empty(),
            _ => Reply { status: StatusCode::METHOD_NOT_ALLOWED, ..Reply::empty() },
        }
    }
}

fn merge(document: &mut Value, change: &Value) {
    match (document, change) {
        (Value::Object(document), Value::Object(change)) => {
            for (name, value) in change {
                merge(document.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (document, change) => *document = change.clone(),
    }
}
