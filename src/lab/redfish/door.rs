//! HTTP as DSP0266 has it: who asks, entity tags, paging, `$expand`, errors; and the faults that are planted.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures::{StreamExt, stream};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::account::{Account, Accounts, Role};
use super::control::Controls;
use super::fault::Fault;
use super::message::Message;
use super::service::{Call, Reply, Service};
use super::session;

/// Firmware images come whole.
const MAX_BODY: usize = 64 << 20;
const GARBAGE: usize = 64 << 10;

pub struct Door {
    service: Arc<dyn Service>,
    controls: Arc<Controls>,
    accounts: Arc<Accounts>,
}

/// What the request says beside its body.
struct Head {
    method: Method,
    path: String,
    query: String,
    headers: HeaderMap,
}

impl Door {
    pub fn new(service: Arc<dyn Service>, controls: Arc<Controls>, accounts: Arc<Accounts>) -> Self {
        Self { service, controls, accounts }
    }

    pub fn controls(&self) -> &Controls {
        &self.controls
    }

    /// `None` where the connection is to be reset.
    pub async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Option<Response<Body>> {
        if self.controls.is_away() {
            return None;
        }
        let (parts, body) = request.into_parts();
        let path = percent_encoding::percent_decode_str(parts.uri.path()).decode_utf8_lossy().into_owned();
        let head = Head {
            method: parts.method,
            path: path.strip_suffix('/').unwrap_or(&path).to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers,
        };
        let fault = self.controls.meet(head.method.as_str(), &head.path);
        // Read also where it is not looked at: closing with unread bytes would reset the connection.
        let Ok(bytes) = to_bytes(Body::new(body), MAX_BODY).await else {
            let reply = Reply::error(StatusCode::PAYLOAD_TOO_LARGE, Message::general("The body is too large."));
            return Some(respond(reply));
        };
        match &fault {
            Some(Fault::Reset) => return None,
            Some(Fault::Silent) => std::future::pending().await,
            Some(Fault::Slow(time)) => tokio::time::sleep(*time).await,
            Some(fault) => {
                if let Some(response) = self.instead(fault, &head) {
                    return Some(response);
                }
            }
            None => {}
        }
        let (door, ignored) = (self.clone(), fault == Some(Fault::Ignored));
        let oddity = match fault {
            Some(Fault::Odd(oddity)) => Some(oddity),
            _ => None,
        };
        // Hardware may take its time.
        let answered = tokio::task::spawn_blocking(move || {
            let mut reply = door.reply(&head, bytes, ignored);
            if let (Some(oddity), Some(body)) = (oddity, &mut reply.body) {
                oddity.apply(&head.path, body);
            }
            let tag = head.method == Method::GET && reply.status == StatusCode::OK;
            let tag = reply.body.as_ref().filter(|_| tag).map(tag_of);
            (reply, tag)
        });
        let (reply, tag) = answered.await.ok()?;
        let mut response = respond(reply);
        if let Some(tag) = tag.and_then(|t| HeaderValue::from_str(&t).ok()) {
            response.headers_mut().insert(header::ETAG, tag);
        }
        Some(match fault {
            Some(Fault::Truncated) => cut_short(response).await,
            Some(Fault::Drip(each)) => drip(response, each).await,
            _ => response,
        })
    }

    /// The answer that a fault gives without asking anybody.
    fn instead(&self, fault: &Fault, head: &Head) -> Option<Response<Body>> {
        let reply = match fault {
            Fault::Precondition => Reply::error(StatusCode::PRECONDITION_FAILED, Message::precondition(false)),
            Fault::Expired => {
                self.accounts.close_all();
                unauthorised()
            }
            Fault::Unavailable(seconds) => {
                let reply = Reply::error(StatusCode::SERVICE_UNAVAILABLE, Message::unavailable(*seconds));
                let mut response = respond(reply);
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(*seconds));
                return Some(response);
            }
            Fault::Redirect(origin) => {
                let query = if head.query.is_empty() { String::new() } else { format!("?{}", head.query) };
                let to = format!("{origin}{}{query}", head.path);
                let response = Response::builder().status(StatusCode::PERMANENT_REDIRECT);
                return response.header(header::LOCATION, to).body(Body::empty()).ok();
            }
            Fault::Broken => {
                let page = "<html><head><title>500</title></head><body>Internal Server Error</body></html>";
                let response = Response::builder().status(StatusCode::INTERNAL_SERVER_ERROR);
                return response.header(header::CONTENT_TYPE, "text/html").body(Body::from(page)).ok();
            }
            Fault::Garbage => {
                let mut noise = vec![0u8; GARBAGE];
                blake3::Hasher::new().finalize_xof().fill(&mut noise);
                let response = Response::builder().header(header::CONTENT_TYPE, "application/json");
                return response.body(Body::from(noise)).ok();
            }
            _ => return None,
        };
        Some(respond(reply))
    }

    fn reply(&self, head: &Head, bytes: Bytes, ignored: bool) -> Reply {
        let content_type = head.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let json = match content_type.starts_with("application/json") && !bytes.is_empty() {
            true => match serde_json::from_slice(&bytes) {
                Ok(json) => json,
                Err(_) => return Reply::bad(Message::malformed()),
            },
            false => Value::Null,
        };
        let mut call = Call {
            // The body of a HEAD is left out by hyper.
            method: if head.method == Method::HEAD { Method::GET } else { head.method.clone() },
            path: head.path.clone(),
            json,
            bytes,
            content_type: content_type.to_owned(),
            user: String::new(),
        };
        if !open_to_all(&call) {
            match self.who(&head.headers) {
                None => return unauthorised(),
                Some(account) if !may(&account, &call) => {
                    return Reply::error(StatusCode::FORBIDDEN, Message::privilege());
                }
                Some(account) if account.must_change && !session::allowed_before_change(&call, &account) => {
                    return Reply::error(StatusCode::FORBIDDEN, Message::change_password(&account.path()));
                }
                Some(account) => call.user = account.name,
            }
        }
        if let Some(refused) = self.precondition(head, &call) {
            return refused;
        }
        if ignored && call.method != Method::GET {
            return Reply::empty();
        }
        let mut reply = self.ask(&call);
        if call.method == Method::GET
            && let Some(body) = &mut reply.body
        {
            self.page(head, body);
        }
        reply
    }

    /// Sessions belong to the door, whatever stands behind it.
    fn ask(&self, call: &Call) -> Reply {
        match call.parts().split_first() {
            Some((&"SessionService", rest)) => session::sessions(&self.accounts, &self.controls, call, rest),
            _ => self.service.answer(call),
        }
    }

    /// DSP0266 section 13.3: a session's token, or HTTP Basic.
    fn who(&self, headers: &HeaderMap) -> Option<Account> {
        let behaviour = self.controls.behaviour();
        if let Some(token) = headers.get("x-auth-token") {
            return self.accounts.by_token(token.to_str().ok()?, &behaviour);
        }
        let basic = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
        let text = String::from_utf8(BASE64_STANDARD.decode(basic).ok()?).ok()?;
        let (user, password) = text.split_once(':')?;
        self.accounts.log_in(user, password, &behaviour)
    }

    /// DSP0266 section 6.5: a change whose tag is an old one is refused.
    fn precondition(&self, head: &Head, call: &Call) -> Option<Reply> {
        if ![Method::PATCH, Method::PUT, Method::DELETE].contains(&call.method) {
            return None;
        }
        let refused = |status, required| Some(Reply::error(status, Message::precondition(required)));
        let Some(wanted) = head.headers.get(header::IF_MATCH).and_then(|v| v.to_str().ok()) else {
            let required = self.controls.behaviour().tags_required && call.method != Method::DELETE;
            return if required { refused(StatusCode::PRECONDITION_REQUIRED, true) } else { None };
        };
        let current = tag_of(&self.ask(&Call::get(&call.path)).body?);
        let fits = |tag: &str| tag == "*" || tag.trim_start_matches("W/") == current.trim_start_matches("W/");
        match wanted.split(',').map(str::trim).any(fits) {
            true => None,
            false => refused(StatusCode::PRECONDITION_FAILED, false),
        }
    }

    /// `$skip` and `$top`, the rest of a long collection under a next link, and `$expand` of members.
    fn page(&self, head: &Head, body: &mut Value) {
        let text = percent_encoding::percent_decode_str(&head.query).decode_utf8_lossy();
        let query = |name: &str| text.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let expand = query("$expand").is_some();
        let Some(members) = body.get_mut("Members").and_then(Value::as_array_mut) else { return };
        let total = members.len();
        let skip = query("$skip").and_then(|n| n.parse().ok()).unwrap_or(0).min(total);
        let page = self.controls.behaviour().page.max(1);
        let top = query("$top").and_then(|n| n.parse().ok());
        let end = skip + top.unwrap_or(page).min(page).min(total - skip);
        *members = members.drain(skip..end).collect();
        if expand {
            for member in members.iter_mut() {
                let path = member.get("@odata.id").and_then(Value::as_str);
                if let Some(found) = path.and_then(|path| self.ask(&Call::get(path)).body) {
                    *member = found;
                }
            }
        }
        if end < total && top.is_none_or(|top| end - skip < top) {
            let more = if expand { "&$expand=." } else { "" };
            body["Members@odata.nextLink"] = json!(format!("{}?$skip={end}{more}", head.path));
        }
    }
}

/// DSP0266 section 13.3.1: the service root, its metadata, and the making of a session.
fn open_to_all(call: &Call) -> bool {
    match call.method {
        Method::GET => {
            matches!(
                call.path.as_str(),
                "" | "/redfish" | "/redfish/v1" | "/redfish/v1/odata" | "/redfish/v1/$metadata"
            )
        }
        Method::POST => {
            matches!(
                call.path.as_str(),
                "/redfish/v1/SessionService/Sessions" | "/redfish/v1/SessionService/Sessions/Members"
            )
        }
        _ => false,
    }
}

/// Reading is for all; users may end sessions and change their own account; the BMC and accounts are the administrator's.
fn may(account: &Account, call: &Call) -> bool {
    let own = call.path == account.path() || call.path.starts_with("/redfish/v1/SessionService/Sessions/");
    let manages = ["/redfish/v1/Managers", "/redfish/v1/AccountService", "/redfish/v1/UpdateService"];
    match account.role {
        Role::Administrator => true,
        _ if call.method == Method::GET || own => true,
        Role::Operator => !manages.iter().any(|path| call.path.starts_with(path)),
        Role::ReadOnly => false,
    }
}

fn unauthorised() -> Reply {
    Reply::error(StatusCode::UNAUTHORIZED, Message::no_session())
}

/// Weak, since it says nothing about the order of properties.
fn tag_of(document: &Value) -> String {
    let digest = blake3::hash(document.to_string().as_bytes()).to_hex();
    format!("W/\"{}\"", &digest[..16])
}

fn respond(reply: Reply) -> Response<Body> {
    let body = reply.body.as_ref().map_or_else(Vec::new, |body| body.to_string().into_bytes());
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    headers.insert("odata-version", HeaderValue::from_static("4.0"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if reply.body.is_some() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json;charset=utf-8"));
    }
    if reply.status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"Redfish\""));
    }
    for (name, value) in [("location", &reply.location), ("x-auth-token", &reply.token)] {
        if let Some(value) = value.as_ref().and_then(|v| HeaderValue::from_str(v).ok()) {
            headers.insert(name, value);
        }
    }
    response
}

async fn whole(response: Response<Body>) -> (axum::http::response::Parts, Bytes) {
    let (parts, body) = response.into_parts();
    (parts, to_bytes(body, usize::MAX).await.unwrap_or_default())
}

async fn cut_short(response: Response<Body>) -> Response<Body> {
    let (mut parts, bytes) = whole(response).await;
    parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    let half = bytes.slice(..bytes.len() / 2);
    // The pause lets the half go out before the error ends the connection.
    let end = stream::once(async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(std::io::Error::from(std::io::ErrorKind::ConnectionAborted))
    });
    Response::from_parts(parts, Body::from_stream(stream::iter([Ok(half)]).chain(end)))
}

async fn drip(response: Response<Body>, each: Duration) -> Response<Body> {
    let (mut parts, bytes) = whole(response).await;
    parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    let drops = stream::iter(0..bytes.len()).then(move |at| {
        let drop = bytes.slice(at..=at);
        async move {
            tokio::time::sleep(each).await;
            Ok::<_, std::io::Error>(drop)
        }
    });
    Response::from_parts(parts, Body::from_stream(drops))
}
