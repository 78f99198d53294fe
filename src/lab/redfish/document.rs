//! The frame that all Redfish documents share (DSP0266 sections 8 and 9).

use serde_json::{Value, json};

use super::message::Message;
use super::service::{Call, Reply};

pub fn link(path: &str) -> Value {
    json!({ "@odata.id": path })
}

/// A resource whose `Id` is the last part of its path; `body` is an object.
pub fn resource(path: &str, kind: &str, name: &str, body: Value) -> Value {
    let id = path.rsplit('/').next().unwrap_or(path);
    let mut document = json!({ "@odata.id": path, "@odata.type": kind, "Id": id, "Name": name });
    if let (Value::Object(document), Value::Object(body)) = (&mut document, body) {
        document.extend(body);
    }
    document
}

pub fn collection(path: &str, kind: &str, name: &str, members: Vec<String>) -> Value {
    json!({
        "@odata.id": path,
        "@odata.type": kind,
        "Name": name,
        "Members": members.iter().map(|m| link(m)).collect::<Vec<_>>(),
        "Members@odata.count": members.len(),
    })
}

pub fn healthy() -> Value {
    json!({ "State": "Enabled", "Health": "OK", "HealthRollup": "OK" })
}

/// A change of each property in the body; the first one that is refused ends it. The answer to one that was made is 200
/// with a message, for the caller to put the new document in its place.
pub fn patch(call: &Call, mut set: impl FnMut(&str, &Value) -> Result<(), Message>) -> Reply {
    let Some(body) = call.json.as_object().filter(|body| !body.is_empty()) else {
        return Reply::bad(Message::malformed());
    };
    for (name, value) in body.iter().filter(|(name, _)| !name.starts_with("@odata.")) {
        if let Err(refused) = set(name, value) {
            return Reply::bad(refused);
        }
    }
    Reply::ok(json!({ "@Message.ExtendedInfo": [Message::success().json()] }))
}
