//! `UpdateService`: what firmware there is, and new firmware by a URL (`SimpleUpdate`) or by push.
//!
//! An image is a line `LWFW1 component=BIOS version=2.5.0 model=LW-R1` and whatever follows: enough for one that is for
//! another model, or no image at all, to be refused the way real ones are, by the task and not by the request.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::document::{collection, healthy, link, resource};
use super::machine::{Scene, lock};
use super::message::Message;
use super::service::{Call, Reply};
use super::task::Effect;

const PATH: &str = "/redfish/v1/UpdateService";
const INVENTORY: &str = "/redfish/v1/UpdateService/FirmwareInventory";
const UPLOAD: &str = "/redfish/v1/UpdateService/upload";
const MAGIC: &str = "LWFW1";
const MAX_IMAGE: usize = 64 << 20;
const FETCH_WITHIN: Duration = Duration::from_secs(120);

struct Component {
    id: &'static str,
    name: &'static str,
    version: String,
    /// Installed, and active after the next start.
    waiting: Option<String>,
}

pub struct Inventory(Vec<Component>);

impl Default for Inventory {
    fn default() -> Self {
        let component = |id, name, version: &str| Component { id, name, version: version.to_owned(), waiting: None };
        Self(vec![
            component("BMC", "BMC Firmware", "9.8.0"),
            component("BIOS", "System BIOS", "2.4.1"),
            component("NIC1", "Network Adapter", "22.31.6"),
            component("Disk0", "Disk 0", "LW1.0"),
        ])
    }
}

impl Inventory {
    pub fn version(&self, id: &str) -> Option<&str> {
        self.0.iter().find(|c| c.id == id).map(|c| c.version.as_str())
    }

    /// True where the BMC restarts for it.
    pub fn installed(&mut self, effect: &Effect) -> bool {
        for component in self.0.iter_mut().filter(|c| c.id == effect.component) {
            match component.id {
                "BMC" => component.version = effect.version.clone(),
                _ => component.waiting = Some(effect.version.clone()),
            }
        }
        effect.component == "BMC"
    }

    pub fn restarted(&mut self) {
        for component in &mut self.0 {
            component.version = component.waiting.take().unwrap_or_else(|| std::mem::take(&mut component.version));
        }
    }
}

/// A firmware image for `model`, with some weight to it.
pub fn image(component: &str, version: &str, model: &str) -> Vec<u8> {
    let mut bytes = format!("{MAGIC} component={component} version={version} model={model}\n").into_bytes();
    bytes.resize(64 << 10, 0xa5);
    bytes
}

impl Scene<'_> {
    pub fn update(&mut self, call: &Call, rest: &[&str]) -> Reply {
        match (call.method.as_str(), rest) {
            ("GET", []) => Reply::ok(service()),
            ("GET", ["FirmwareInventory"]) => {
                let members = self.state.inventory.0.iter().map(|c| format!("{INVENTORY}/{}", c.id)).collect();
                let kind = "#SoftwareInventoryCollection.SoftwareInventoryCollection";
                Reply::ok(collection(INVENTORY, kind, "Firmware Inventory", members))
            }
            ("GET", ["FirmwareInventory", id]) => {
                self.state.inventory.0.iter().find(|c| c.id == *id).map(component).into()
            }
            ("POST", ["Actions", "UpdateService.SimpleUpdate"]) => self.simple_update(call),
            ("POST", ["upload"]) => self.push(call),
            ("GET", _) => Reply::missing(&call.path),
            _ => Reply::not_allowed(),
        }
    }

    fn simple_update(&mut self, call: &Call) -> Reply {
        let Some(url) = call.json.get("ImageURI").and_then(Value::as_str).map(str::to_owned) else {
            return Reply::bad(Message::lacks("ImageURI"));
        };
        if !url.starts_with("http://") {
            return Reply::bad(Message::action_value("#UpdateService.SimpleUpdate", "ImageURI", &url));
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return Reply::error(StatusCode::INTERNAL_SERVER_ERROR, Message::general("There is no runtime."));
        };
        let offset = self.clock();
        let id = self.state.tasks.begin("Firmware Update", offset);
        let (state, targets) = (self.machine.shared(), targets(&call.json));
        let model = self.machine.identity.model.clone();
        runtime.spawn(async move {
            let fetched = tokio::time::timeout(FETCH_WITHIN, fetch(&url)).await;
            let bytes = fetched.unwrap_or_else(|_| Err(format!("{url} was not fetched in time.")));
            let effect = bytes.and_then(|bytes| read(&bytes, &model, &targets));
            lock(&state).tasks.fetched(id, effect);
        });
        self.state.tasks.accepted(id, &self.behaviour)
    }

    /// `MultipartHttpPushUri`, and the older `HttpPushUri` at the same place.
    fn push(&mut self, call: &Call) -> Reply {
        let boundary = call.content_type.split("boundary=").nth(1).map(|b| b.trim_matches('"'));
        let (bytes, targets) = match boundary.filter(|_| call.content_type.starts_with("multipart/form-data")) {
            None => (call.bytes.to_vec(), Vec::new()),
            Some(boundary) => {
                let parts = parts(&call.bytes, boundary);
                let part = |name: &str| parts.iter().find(|(n, _)| n == name).map(|(_, bytes)| *bytes);
                let Some(file) = part("UpdateFile") else { return Reply::bad(Message::lacks("UpdateFile")) };
                let Some(parameters) = part("UpdateParameters").and_then(|b| serde_json::from_slice(b).ok()) else {
                    return Reply::bad(Message::lacks("UpdateParameters"));
                };
                (file.to_vec(), self::targets(&parameters))
            }
        };
        let offset = self.clock();
        let id = self.state.tasks.begin("Firmware Update", offset);
        self.state.tasks.fetched(id, read(&bytes, &self.machine.identity.model, &targets));
        self.state.tasks.accepted(id, &self.behaviour)
    }
}

fn service() -> Value {
    let body = json!({
        "ServiceEnabled": true,
        "FirmwareInventory": link(INVENTORY),
        "HttpPushUri": UPLOAD,
        "MultipartHttpPushUri": UPLOAD,
        "MaxImageSizeBytes": MAX_IMAGE,
        "Status": healthy(),
        "Actions": { "#UpdateService.SimpleUpdate": {
            "target": format!("{PATH}/Actions/UpdateService.SimpleUpdate"),
            "TransferProtocol@Redfish.AllowableValues": ["HTTP"],
        }},
    });
    resource(PATH, "#UpdateService.v1_14_0.UpdateService", "Update Service", body)
}

fn component(component: &Component) -> Value {
    let body = json!({
        "Version": component.version,
        "SoftwareId": format!("LW-{}", component.id),
        "Manufacturer": "Labworks",
        "Updateable": true,
        "Status": healthy(),
    });
    let path = format!("{INVENTORY}/{}", component.id);
    resource(&path, "#SoftwareInventory.v1_10_2.SoftwareInventory", component.name, body)
}

fn targets(parameters: &Value) -> Vec<String> {
    let all = parameters.get("Targets").and_then(Value::as_array).into_iter().flatten();
    all.filter_map(|t| t.as_str()?.rsplit('/').next().map(str::to_owned)).collect()
}

/// What an image does, or why it is refused.
fn read(bytes: &[u8], model: &str, targets: &[String]) -> Result<Effect, String> {
    let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
    let line = str::from_utf8(line).map_err(|_| "The image is not valid.".to_owned())?;
    let fields = line.strip_prefix(MAGIC).ok_or("The image is not valid.")?;
    let field = |name: &str| fields.split_whitespace().find_map(|f| f.strip_prefix(name)?.strip_prefix('='));
    let (Some(component), Some(version)) = (field("component"), field("version")) else {
        return Err("The image is not valid.".into());
    };
    if field("model") != Some(model) {
        return Err(format!("The image is not for a {model}."));
    }
    if !targets.is_empty() && !targets.iter().any(|t| t == component) {
        return Err(format!("The image is for {component}, not for {}.", targets.join(", ")));
    }
    Ok(Effect { component: component.to_owned(), version: version.to_owned() })
}

async fn fetch(url: &str) -> Result<Vec<u8>, String> {
    let failed = |e: reqwest::Error| format!("{url} cannot be fetched: {e}");
    let client = reqwest::Client::builder().no_proxy().build().map_err(failed)?;
    let mut response = client.get(url).send().await.and_then(|r| r.error_for_status()).map_err(failed)?;
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_IMAGE {
            return Err(format!("{url} is too large."));
        }
    }
    Ok(bytes)
}

/// Names and contents of the parts of a form (RFC 7578).
fn parts<'a>(bytes: &'a [u8], boundary: &str) -> Vec<(String, &'a [u8])> {
    let mark = format!("--{boundary}").into_bytes();
    let mut found = Vec::new();
    let mut rest = bytes;
    while let Some(start) = find(rest, &mark) {
        rest = &rest[start + mark.len()..];
        let Some(end) = find(rest, &mark) else { break };
        let part = rest[..end].strip_prefix(b"\r\n").and_then(|p| p.strip_suffix(b"\r\n"));
        let Some((part, head)) = part.and_then(|p| find(p, b"\r\n\r\n").map(|at| (p, at))) else { continue };
        let headers = String::from_utf8_lossy(&part[..head]);
        let name = headers.split("name=\"").nth(1).and_then(|n| n.split('"').next());
        found.push((name.unwrap_or_default().to_owned(), &part[head + 4..]));
    }
    found
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_says_what_it_is_for() {
        let bytes = image("BIOS", "2.5.0", "LW-R1");
        assert_eq!(read(&bytes, "LW-R1", &[]), Ok(Effect { component: "BIOS".into(), version: "2.5.0".into() }));
        assert!(read(&bytes, "LW-R2", &[]).unwrap_err().contains("not for a LW-R2"));
        assert!(read(&bytes, "LW-R1", &["BMC".into()]).is_err());
        assert!(read(b"\xff\xfe", "LW-R1", &[]).is_err());
    }

    #[test]
    fn the_parts_of_a_form() {
        let form = b"--x\r\nContent-Disposition: form-data; name=\"UpdateParameters\"\r\n\r\n{}\r\n--x\r\n\
                     Content-Disposition: form-data; name=\"UpdateFile\"; filename=\"a\"\r\n\r\nab\r\ncd\r\n--x--\r\n";
        let parts = parts(form, "x");
        assert_eq!(parts, [("UpdateParameters".into(), &b"{}"[..]), ("UpdateFile".into(), &b"ab\r\ncd"[..])]);
    }
}
