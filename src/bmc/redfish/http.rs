//! HTTP with a BMC that may do anything: every call ends by its deadline, and nothing that comes back is taken on trust.
//!
//! | what the BMC does | what becomes of it |
//! |---|---|
//! | drips a byte a second | the time for one answer runs over headers and body together |
//! | sends without end | cut at [`BODY_MAX`] |
//! | breaks the connection | read again; a write is not repeated, since it may have been done |
//! | truncates the body of a write | the status has said that it was done |
//! | 503, 429 | asked again after `Retry-After`, which says that nothing was done |
//! | redirects | followed on the same host only, and a write only by 307 and 308, which keep the method |
//! | answers with something other than JSON | named with its first words |
//!
//! Credentials are put in by [`super::session`]; the certificate is checked by [`super::tls`].

use std::error::Error as StdError;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use reqwest::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_MATCH, LOCATION, RETRY_AFTER,
};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url, redirect};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};

use super::tls::Pin;
use crate::bmc::Protocol;
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::Secret;

/// The largest documents of real BMCs are attribute registries (6.6 MB on a Dell R750), which nobody reads here; the
/// largest of those that are read have some 300 KB.
const BODY_MAX: usize = 4 << 20;
/// For one answer, headers and body. Slow BMCs need 20 s for a collection of sensors.
const ANSWER: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(10);
/// BMCs close idle connections after some seconds, and a write on a connection that is just being closed is lost.
const IDLE: Duration = Duration::from_secs(4);
/// Reads of one document that may break off.
const READS_MAX: u32 = 3;
const AGAIN: Duration = Duration::from_millis(200);
/// Where a BMC is busy and does not say for how long.
const BUSY: Duration = Duration::from_secs(1);
/// The header that a session is known by.
pub const TOKEN: &str = "x-auth-token";
const BROKE: &str = "broke the connection during";
const HOPS_MAX: u32 = 4;
/// Of what a BMC says, for people.
const QUOTE_MAX: usize = 240;

#[derive(Debug, Clone)]
pub enum Payload {
    None,
    Json(Value),
    /// A file with its description, as `MultipartHttpPushUri` takes them (DSP0266, “Multipart HTTP push updates”).
    Upload {
        file: PathBuf,
        parameters: Value,
    },
}

/// One request, and what it needs to be sent again.
#[derive(Debug, Clone)]
pub struct Call {
    pub method: Method,
    /// A path, or whatever else a BMC put into a link.
    pub path: String,
    pub payload: Payload,
    pub if_match: Option<String>,
}

impl Call {
    pub fn new(method: Method, path: impl Into<String>, payload: Payload) -> Self {
        Self { method, path: path.into(), payload, if_match: None }
    }

    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path, Payload::None)
    }

    fn reads(&self) -> bool {
        self.method == Method::GET
    }
}

/// In whose name a request is made. Has no `Debug`, so that it cannot get into a log.
pub enum Credentials {
    Nobody,
    Token(HeaderValue),
    Basic { user: String, password: Secret },
}

impl Credentials {
    pub fn token(value: &HeaderValue) -> Self {
        let mut value = value.clone();
        value.set_sensitive(true);
        Self::Token(value)
    }

    fn add(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Nobody => request,
            Self::Token(token) => request.header(TOKEN, token),
            Self::Basic { user, password } => request.basic_auth(user, Some(password.expose())),
        }
    }
}

#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Where it came from in the end.
    pub path: String,
    body: Bytes,
}

impl Reply {
    pub fn header(&self, name: impl reqwest::header::AsHeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn etag(&self) -> Option<&str> {
        self.header(ETAG).map(str::trim).filter(|tag| !tag.is_empty())
    }

    /// `Null` where there is no body.
    pub fn json(&self, whose: &str) -> Result<Value> {
        if self.body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&self.body).map_err(|e| {
            let kind = self.header(CONTENT_TYPE).unwrap_or("no content type");
            let begins = quote(&String::from_utf8_lossy(&self.body[..self.body.len().min(60)]));
            let message = format!("{whose} sent no JSON for {}, but {kind} that begins with “{begins}”", self.path);
            Error::refused("bmc.malformed", message)
                .because(e)
                .hint("ask again; if this lasts, restart the BMC or update its firmware")
        })
    }

    /// The first argument of a message in an answer that refuses.
    pub fn argument(&self, id: &str) -> Option<String> {
        let body: Value = serde_json::from_slice(&self.body).ok()?;
        let details = body["error"]["@Message.ExtendedInfo"].as_array()?;
        let message = details.iter().find(|d| d["MessageId"].as_str().is_some_and(|found| found.contains(id)))?;
        message["MessageArgs"][0].as_str().map(str::to_owned)
    }

    /// What the BMC says in an answer that refuses (DSP0266, “Error responses”), and its message ids.
    pub fn complaint(&self) -> (String, Vec<String>) {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let error = &body["error"];
        let details = error["@Message.ExtendedInfo"].as_array().map(Vec::as_slice).unwrap_or_default();
        let ids = details.iter().chain([error]).filter_map(|d| d["MessageId"].as_str().or(d["code"].as_str()));
        let ids = ids.map(str::to_owned).collect();
        let said: Vec<&str> = details.iter().filter_map(|d| d["Message"].as_str()).take(3).collect();
        let said = if said.is_empty() { error["message"].as_str().unwrap_or("").to_owned() } else { said.join(" ") };
        (quote(&said), ids)
    }
}

/// Text of a BMC, fit to be shown.
pub fn quote(text: &str) -> String {
    let printable: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(QUOTE_MAX).collect();
    printable.trim().to_owned()
}

/// One call that came to nothing.
struct Broken {
    error: Error,
    /// A second try may go better, and does no harm to a read.
    again: bool,
}

pub struct Http {
    client: Client,
    address: SocketAddr,
    base: Url,
    whose: String,
    pin: Arc<Pin>,
    begun: Instant,
    deadline: Instant,
    heard: bool,
    last_used: Instant,
}

impl Http {
    pub fn new(address: SocketAddr, pin: Arc<Pin>, deadline: Instant) -> Result<Self> {
        let now = Instant::now();
        let unfit = || format!("no HTTP client for {address} could be made");
        let base = Url::parse(&format!("https://{address}/")).or_fail(Kind::Internal, "bmc.http", unfit)?;
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        // Without it iLO 4 answers with a format from before Redfish.
        headers.insert("OData-Version", HeaderValue::from_static("4.0"));
        let client = Client::builder()
            .tls_backend_preconfigured(pin.config()?)
            .default_headers(headers)
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .http1_only()
            .no_proxy()
            .connect_timeout(CONNECT)
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(1)
            .build()
            .or_fail(Kind::Internal, "bmc.http", unfit)?;
        let whose = Protocol::Redfish.whose(address);
        Ok(Self { client, address, base, whose, pin, begun: now, deadline, heard: false, last_used: now })
    }

    pub fn whose(&self) -> &str {
        &self.whose
    }

    /// Of the BMC, as we reach it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn pin(&self) -> &Pin {
        &self.pin
    }

    pub fn last_used(&self) -> Instant {
        self.last_used
    }

    pub fn begin(&mut self, deadline: Instant) {
        self.begun = Instant::now();
        self.deadline = deadline;
        self.heard = false;
    }

    pub fn heard(&self) -> bool {
        self.heard
    }

    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// A link of the BMC as a path on this very BMC, without its fragment.
    pub fn local(&self, link: &str) -> Result<String> {
        let elsewhere = || {
            let message = format!("{} points to {}, which is not on this BMC", self.whose, quote(link));
            Error::refused("bmc.redirect", message).hint("enter the address that the BMC itself goes by")
        };
        let url = self.base.join(link.trim()).map_err(|_| elsewhere())?;
        if url.origin() != self.base.origin() {
            return Err(elsewhere());
        }
        Ok(match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        })
    }

    /// One request and its answer, whatever the status.
    pub async fn send(&mut self, call: &Call, credentials: &Credentials) -> Result<Reply> {
        let mut path = self.local(&call.path)?;
        let (mut reads, mut hops) = (1, 0);
        loop {
            let reply = match self.once(call, &path, credentials).await {
                Ok(reply) => reply,
                Err(broken) if call.reads() && broken.again && reads < READS_MAX => {
                    tracing::debug!(bmc = %self.whose, path, error = ?broken.error, "read again");
                    reads += 1;
                    sleep(AGAIN * reads).await;
                    continue;
                }
                Err(broken) => return Err(broken.error),
            };
            if reply.status.is_redirection() && reply.status != StatusCode::NOT_MODIFIED {
                hops += 1;
                path = self.follow(call, &reply, hops)?;
            } else if let Some(wait) = busy(call, &reply) {
                self.wait(wait, call).await?;
            } else {
                return Ok(reply);
            }
        }
    }

    fn follow(&self, call: &Call, reply: &Reply, hops: u32) -> Result<String> {
        let keeps = matches!(reply.status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
        let target = reply.header(LOCATION).filter(|_| hops <= HOPS_MAX && (call.reads() || keeps));
        let Some(target) = target else {
            let message =
                format!("{} redirects {} {} to nowhere ({})", self.whose, call.method, call.path, reply.status);
            return Err(
                Error::refused("bmc.redirect", message).hint("update the BMC firmware, or use its IPMI address")
            );
        };
        // Relative to where the answer came from.
        let from = self.base.join(&reply.path).unwrap_or_else(|_| self.base.clone());
        self.local(from.join(target).as_ref().map_or(target, Url::as_str))
    }

    async fn wait(&self, wait: Duration, call: &Call) -> Result<()> {
        if Instant::now() + wait >= self.deadline {
            let message = format!("{} is too busy for {} {}", self.whose, call.method, call.path);
            return Err(
                Error::unreachable("bmc.busy", message).hint(format!("ask again in {} s", wait.as_secs().max(1)))
            );
        }
        sleep(wait).await;
        Ok(())
    }

    async fn once(&mut self, call: &Call, path: &str, credentials: &Credentials) -> Result<Reply, Broken> {
        let start = Instant::now();
        // An upload takes as long as it takes; all else has to answer soon.
        let limit = match call.payload {
            Payload::Upload { .. } => self.deadline,
            _ => self.deadline.min(start + ANSWER),
        };
        if start >= limit {
            let error = if self.heard { self.late(call, "left no time for") } else { self.silent(self.begun, None) };
            return Err(Broken { error, again: false });
        }
        let request = self.request(call, path, credentials).await.map_err(|error| Broken { error, again: false })?;
        let answered = timeout_at(limit, request.send()).await;
        self.last_used = Instant::now();
        let response = match answered {
            Ok(Ok(response)) => response,
            Ok(Err(e)) => return Err(self.broken(call, e, start)),
            Err(_) if call.reads() => return Err(Broken { error: self.silent(start, None), again: false }),
            Err(_) => return Err(Broken { error: self.interrupted(call, "did not answer", None), again: false }),
        };
        self.heard = true;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = timeout_at(limit, self.body(call, response)).await;
        self.last_used = Instant::now();
        let body = match body {
            Ok(Ok(body)) => body,
            // The body of a write only repeats what the status has said.
            Ok(Err(broken)) if !call.reads() && status.is_success() => {
                tracing::debug!(bmc = %self.whose, path, error = ?broken.error, "the answer to a write broke off");
                Bytes::new()
            }
            Ok(Err(broken)) => return Err(broken),
            Err(_) => return Err(Broken { error: self.late(call, "did not finish its answer to"), again: false }),
        };
        tracing::trace!(bmc = %self.whose, method = %call.method, path, %status, length = body.len(), "answered");
        Ok(Reply { status, headers, path: path.to_owned(), body })
    }

    async fn request(&self, call: &Call, path: &str, credentials: &Credentials) -> Result<RequestBuilder> {
        let url = self.base.join(path).or_fail(Kind::Refused, "bmc.malformed", || {
            format!("{} has a link that is none: {}", self.whose, quote(path))
        })?;
        let mut request = credentials.add(self.client.request(call.method.clone(), url));
        if let Some(tag) = call.if_match.as_deref().and_then(|tag| HeaderValue::from_str(tag).ok()) {
            request = request.header(IF_MATCH, tag);
        }
        Ok(match &call.payload {
            Payload::None if call.reads() => request,
            // Some BMCs wait for a body where no length is given.
            Payload::None => request.header(CONTENT_LENGTH, 0),
            Payload::Json(body) => request.json(body),
            Payload::Upload { file, parameters } => super::upload::attach(request, file, parameters).await?,
        })
    }

    async fn body(&self, call: &Call, mut response: Response) -> Result<Bytes, Broken> {
        let too_long = || {
            let message = format!("{} sent more than {} MiB for {}", self.whose, BODY_MAX >> 20, call.path);
            Broken { error: Error::refused("bmc.malformed", message).hint("restart the BMC"), again: false }
        };
        if response.content_length().is_some_and(|length| length > BODY_MAX as u64) {
            return Err(too_long());
        }
        let mut body = BytesMut::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() > BODY_MAX => return Err(too_long()),
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => return Ok(body.freeze()),
                Err(e) => return Err(Broken { error: self.interrupted(call, BROKE, Some(e)), again: true }),
            }
        }
    }

    fn broken(&self, call: &Call, e: reqwest::Error, start: Instant) -> Broken {
        if let Some(error) = self.pin.refusal(&self.whose) {
            return Broken { error: error.because(e), again: false };
        }
        if e.is_connect() {
            let error = match tls_fault(&e) {
                Some(Tls::Certificate) => self.untrusted(e),
                Some(Tls::Other) => self.no_tls(e),
                None => self.silent(start, Some(e)),
            };
            return Broken { error, again: false };
        }
        Broken { error: self.interrupted(call, BROKE, Some(e)), again: true }
    }

    fn interrupted(&self, call: &Call, what: &str, cause: Option<reqwest::Error>) -> Error {
        let hint = match call.reads() {
            true => "ask again; if this lasts, restart the BMC",
            false => "whether the BMC has done it is not known: look at the state before trying again",
        };
        let message = format!("{} {what} {} {}", self.whose, call.method, call.path);
        with_cause(Error::unreachable("bmc.interrupted", message).hint(hint), cause)
    }

    fn silent(&self, start: Instant, cause: Option<reqwest::Error>) -> Error {
        let waited = start.elapsed().as_secs_f64();
        let error =
            Error::unreachable("bmc.unreachable", format!("{} did not answer within {waited:.1} s", self.whose));
        let error = match self.base.host_str() {
            Some(host) => error.hint(format!("check the cable and the address: ping {host}")),
            None => error,
        };
        with_cause(error, cause)
    }

    fn late(&self, call: &Call, what: &str) -> Error {
        Error::unreachable("bmc.late", format!("{} {what} {} {}", self.whose, call.method, call.path))
            .hint("ask again; if this lasts, reset the BMC")
    }

    fn untrusted(&self, e: reqwest::Error) -> Error {
        let message = format!("{} shows a certificate that the site's authority has not given to it", self.whose);
        Error::refused("bmc.certificate", message)
            .because(e.without_url())
            .hint("give the BMC a certificate of that authority for its address")
    }

    fn no_tls(&self, e: reqwest::Error) -> Error {
        Error::refused("bmc.tls", format!("{} speaks no TLS 1.2 or 1.3 that could be agreed on", self.whose))
            .because(e.without_url())
            .hint("update the BMC firmware, renew its certificate, or use its IPMI address")
    }
}

fn with_cause(error: Error, cause: Option<reqwest::Error>) -> Error {
    match cause {
        Some(cause) => error.because(cause.without_url()),
        None => error,
    }
}

/// How long to wait before the same call again, where the BMC was too busy for it.
fn busy(call: &Call, reply: &Reply) -> Option<Duration> {
    if !matches!(reply.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
        return None;
    }
    match reply.header(RETRY_AFTER).map(str::trim) {
        Some(after) => Some(retry_after(after, SystemTime::now())),
        None => call.reads().then_some(BUSY),
    }
}

/// Seconds or a date (RFC 9110 section 10.2.3).
pub fn retry_after(value: &str, now: SystemTime) -> Duration {
    let wait = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(value).ok().and_then(|at| at.duration_since(now).ok()).unwrap_or(BUSY),
    };
    wait.clamp(AGAIN, Duration::from_secs(3600))
}

enum Tls {
    Certificate,
    Other,
}

/// Whether the connection failed in TLS and not before it.
fn tls_fault(e: &reqwest::Error) -> Option<Tls> {
    let mut next = e.source();
    while let Some(cause) = next {
        match within(cause) {
            Some(rustls::Error::InvalidCertificate(_)) => return Some(Tls::Certificate),
            Some(_) => return Some(Tls::Other),
            None => next = cause.source(),
        }
    }
    None
}

/// An I/O error does not have what it wraps as its source.
fn within<'a>(cause: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    cause.downcast_ref().or_else(|| within(cause.downcast_ref::<std::io::Error>()?.get_ref()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http() -> Http {
        let pin = Pin::new(Default::default());
        Http::new(([10, 0, 0, 7], 443).into(), pin, Instant::now() + Duration::from_secs(1)).unwrap()
    }

    #[tokio::test]
    async fn a_link_stays_on_the_bmc() {
        let http = http();
        assert_eq!(http.local("/redfish/v1/Chassis/1/Thermal#/Fans/0").unwrap(), "/redfish/v1/Chassis/1/Thermal");
        assert_eq!(http.local("https://10.0.0.7/redfish/v1").unwrap(), "/redfish/v1");
        assert_eq!(http.local("/redfish/v1/Entries?$skip=50").unwrap(), "/redfish/v1/Entries?$skip=50");
        for elsewhere in
            ["https://10.0.0.8/redfish/v1", "//evil/redfish", "http://10.0.0.7/redfish/v1", "https://10.0.0.7:8443/"]
        {
            assert_eq!(http.local(elsewhere).unwrap_err().code(), "bmc.redirect", "{elsewhere}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        assert_eq!(retry_after("3", now), Duration::from_secs(3));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now), Duration::from_secs(7));
        assert_eq!(retry_after("soon", now), BUSY);
        assert_eq!(retry_after("99999999999", now), Duration::from_secs(3600));
    }

    fn reply(body: &[u8]) -> Reply {
        Reply {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            path: "/redfish/v1".into(),
            body: Bytes::copy_from_slice(body),
        }
    }

    #[test]
    fn what_is_not_json_is_named_with_its_first_words() {
        let error = reply(b"<html>\x07 Login").json("BMC 10.0.0.7").unwrap_err();
        assert_eq!(error.code(), "bmc.malformed");
        assert!(error.message().contains("begins with “<html>  Login”"), "{error}");
        assert_eq!(reply(b" \r\n").json("").unwrap(), Value::Null);
        let deep = "[".repeat(100_000);
        assert!(reply(deep.as_bytes()).json("").is_err());
    }

    #[test]
    fn the_complaint_is_what_the_details_say() {
        let body = br#"{"error": {"code": "Base.1.8.GeneralError", "message": "See ExtendedInfo",
            "@Message.ExtendedInfo": [{"MessageId": "Base.1.8.PropertyUnknown", "Message": "No such\nproperty."}]}}"#;
        let (said, ids) = reply(body).complaint();
        assert_eq!(said, "No such property.");
        assert_eq!(ids, ["Base.1.8.PropertyUnknown", "Base.1.8.GeneralError"]);
        assert_eq!(reply(b"garbage").complaint(), (String::new(), vec![]));
    }
}
