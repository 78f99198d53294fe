//! What the door asks of whatever stands behind it, and what it gets back.

use axum::body::Bytes;
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use super::message::Message;

/// Answers for resources. Called one at a time for each connection, on threads that may block.
pub trait Service: Send + Sync + 'static {
    fn answer(&self, call: &Call) -> Reply;
}

/// A request whose sender is known and may do this.
#[derive(Debug, Clone)]
pub struct Call {
    pub method: Method,
    /// Without a trailing slash, percent-decoded: `/redfish/v1/Systems/1`.
    pub path: String,
    /// `Null` where the body is empty or no JSON.
    pub json: Value,
    pub bytes: Bytes,
    pub content_type: String,
    /// Name of the account; empty where none is needed.
    pub user: String,
}

impl Call {
    pub fn get(path: &str) -> Self {
        Self {
            method: Method::GET,
            path: path.to_owned(),
            json: Value::Null,
            bytes: Bytes::new(),
            content_type: String::new(),
            user: String::new(),
        }
    }

    /// The parts of the path after `/redfish/v1`.
    pub fn parts(&self) -> Vec<&str> {
        let rest = self.path.strip_prefix("/redfish/v1").unwrap_or("");
        rest.split('/').filter(|part| !part.is_empty()).collect()
    }
}

#[derive(Debug, Clone)]
pub struct Reply {
    pub status: StatusCode,
    pub body: Option<Value>,
    /// Of what was made, or of the task monitor.
    pub location: Option<String>,
    /// Of a new session.
    pub token: Option<String>,
}

impl Reply {
    fn new(status: StatusCode, body: Option<Value>) -> Self {
        Self { status, body, location: None, token: None }
    }

    pub fn ok(body: Value) -> Self {
        Self::new(StatusCode::OK, Some(body))
    }

    pub fn empty() -> Self {
        Self::new(StatusCode::NO_CONTENT, None)
    }

    pub fn created(location: String, body: Value) -> Self {
        Self { location: Some(location), ..Self::new(StatusCode::CREATED, Some(body)) }
    }

    /// DSP0266 section 7.11: the task as body, its monitor as location.
    pub fn accepted(monitor: String, task: Value) -> Self {
        Self { location: Some(monitor), ..Self::new(StatusCode::ACCEPTED, Some(task)) }
    }

    /// DSP0266 section 8.6, "Error responses".
    pub fn error(status: StatusCode, message: Message) -> Self {
        let text = message.text.clone();
        let body = json!({ "error": {
            "code": format!("{}.{}", super::message::REGISTRY, message.id),
            "message": text,
            "@Message.ExtendedInfo": [message.json()],
        }});
        Self::new(status, Some(body))
    }

    pub fn bad(message: Message) -> Self {
        Self::error(StatusCode::BAD_REQUEST, message)
    }

    pub fn missing(path: &str) -> Self {
        Self::error(StatusCode::NOT_FOUND, Message::missing(path))
    }

    pub fn not_allowed() -> Self {
        Self::error(StatusCode::METHOD_NOT_ALLOWED, Message::not_allowed())
    }
}

impl From<Option<Value>> for Reply {
    fn from(found: Option<Value>) -> Self {
        found.map_or_else(|| Reply::missing(""), Reply::ok)
    }
}
