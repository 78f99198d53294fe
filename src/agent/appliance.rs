//! The agent's side of [`crate::link`]: every question is asked until it is answered.
//!
//! No answer, a 5xx and a 429 are waited out for ever, with growing, jittered pauses and one line on the console each
//! time the reason changes. A 4xx is an answer: it is shown with its hint, and the caller decides.

use std::future::Future;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;

use super::console::{say, say_error};
use super::options::Token;
use crate::error::{Error, Kind, OrFail, Result};
use crate::link::{
    CertificateRequest, Hello, Help, HostCertificate, Issued, POLL_SECONDS, Partner, PartnerAsk, Problem, Progress,
    Received, Report, SwarmReport, Welcome,
};
use crate::machine::{Digest, MachineId};
use crate::swarm::BackOff;
use crate::swarm::announce::Answer;

const CONNECT: Duration = Duration::from_secs(10);
/// For short questions.
const ANSWER: Duration = Duration::from_secs(30);
/// The appliance holds a question for orders open on purpose; past this it is gone.
const POLL: Duration = Duration::from_secs(POLL_SECONDS + 20);
/// Of a stream that measures.
const PIECE: usize = 256 << 10;
const PROGRESS: Duration = Duration::from_secs(5);
/// No answer to the agent is longer than this; a manifest has a limit of its own.
const ANSWER_MAX: usize = 4 << 20;
/// The manifest itself and its signature.
const MANIFEST_MAX: usize = crate::image::manifest::MAX_BYTES + 4096;

#[derive(Clone)]
pub struct Appliance {
    http: Client,
    url: String,
    /// Set by the welcome: the appliance may know the machine by another id, and gives a token of its own.
    known: Arc<RwLock<Known>>,
}

struct Known {
    machine: MachineId,
    token: Option<Token>,
}

/// Why a question did not get the answer that was hoped for.
pub enum Refusal {
    /// The appliance does not know this token (any more): say hello again.
    Unknown(Error),
    /// It understood and says no.
    No(Error),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unknown(e) | Refusal::No(e) => e,
        }
    }
}

/// What came of a question for help to give.
pub enum Wanted {
    Help(Help),
    Nobody,
    /// Hosts do not help here.
    Never,
    /// No answer, or none that is understood.
    Lost,
}

/// What came of a question for a machine to measure the network with.
pub enum Met {
    Partner(Partner),
    /// Nobody in the time of one question.
    Nobody,
    /// No answer, or none that is understood.
    Lost,
}

enum Fault {
    /// Ask again later.
    Passing(Error),
    Refused(Refusal),
}

impl Appliance {
    pub fn new(url: &str, machine: MachineId, token: Option<Token>) -> Result<Self> {
        let http = client(url)?;
        Ok(Self { http, url: url.to_owned(), known: Arc::new(RwLock::new(Known { machine, token })) })
    }

    /// For a runtime of its own: connections end with the runtime that made them.
    pub fn apart(&self) -> Result<Self> {
        Ok(Self { http: client(&self.url)?, ..self.clone() })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn machine(&self) -> MachineId {
        self.known().machine
    }

    fn known(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Until the appliance knows us. Even a refusal is asked again: it may be configured meanwhile.
    pub async fn hello(&self, hello: &Hello) -> Welcome {
        let mut wait = BackOff::default();
        loop {
            let request = self.request(Method::POST, "/agent/v1/hello").timeout(ANSWER).json(hello);
            match self.patiently("the appliance", || answer::<Welcome>(request.try_clone())).await {
                Ok(welcome) => {
                    let mut known = self.known.write().unwrap_or_else(std::sync::PoisonError::into_inner);
                    *known = Known { machine: welcome.machine, token: Some(Token::new(welcome.token.clone())) };
                    return welcome;
                }
                Err(refusal) => {
                    say_error(&refusal.into());
                    tokio::time::sleep(wait.next_wait().max(Duration::from_secs(5))).await;
                }
            }
        }
    }

    /// The order that is newer than number `after`, or the same again when the appliance's patience ends.
    pub async fn order(&self, after: u64) -> Result<Issued, Refusal> {
        let path = format!("/agent/v1/{}/order?after={after}", self.machine());
        let request = self.request(Method::GET, &path).timeout(POLL);
        self.patiently("orders", || answer(request.try_clone())).await
    }

    /// Until the report is on the appliance's disk.
    pub async fn report(&self, report: &Report) -> Result<(), Refusal> {
        let path = format!("/agent/v1/{}/report", self.machine());
        let request = self.request(Method::POST, &path).timeout(ANSWER).json(report);
        self.patiently("the appliance to take the report", || nothing(request.try_clone())).await
    }

    /// For a key that was made here.
    pub async fn certificate(&self, request: &CertificateRequest) -> Result<HostCertificate> {
        let path = format!("/agent/v1/{}/certificate", self.machine());
        let request = self.request(Method::POST, &path).timeout(ANSWER).json(request);
        self.patiently("the host's certificate", || answer(request.try_clone())).await.map_err(Error::from)
    }

    /// Once, briefly: the next one replaces it.
    pub async fn progress(&self, progress: &Progress) {
        let path = format!("/agent/v1/{}/progress", self.machine());
        // A lost one is not worth a line: the report that follows is repeated until it is accepted.
        let _ = self.request(Method::POST, &path).timeout(PROGRESS).json(progress).send().await;
    }

    /// Once: the next one replaces it. How long the answer is waited for is the caller's to say.
    pub async fn swarm(&self, report: &SwarmReport) -> Answer {
        let path = format!("/agent/v1/{}/swarm", self.machine());
        let Ok(response) = self.request(Method::POST, &path).json(report).send().await else { return Answer::Lost };
        match response.status() {
            StatusCode::NO_CONTENT => Answer::Same,
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Answer::Never,
            status if status.is_success() => {
                let plan = body(response, ANSWER_MAX).await.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
                plan.map_or(Answer::Lost, Answer::Plan)
            }
            _ => Answer::Lost,
        }
    }

    /// Once, held open; `kept` are the images that this host has. Of lost answers the question for orders tells.
    pub async fn help(&self, kept: &[Digest]) -> Wanted {
        let kept: Vec<String> = kept.iter().map(Digest::to_string).collect();
        let path = format!("/agent/v1/{}/help?kept={}", self.machine(), kept.join(","));
        let Ok(response) = self.request(Method::GET, &path).timeout(POLL).send().await else { return Wanted::Lost };
        match response.status() {
            StatusCode::NO_CONTENT => Wanted::Nobody,
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Wanted::Never,
            status if status.is_success() => {
                let help = body(response, ANSWER_MAX).await.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
                help.map_or(Wanted::Lost, Wanted::Help)
            }
            _ => Wanted::Lost,
        }
    }

    /// Once, held open.
    pub async fn partner(&self, ask: &PartnerAsk) -> Met {
        let path = format!("/agent/v1/{}/partner", self.machine());
        let Ok(response) = self.request(Method::POST, &path).timeout(POLL).json(ask).send().await else {
            return Met::Lost;
        };
        match response.status() {
            StatusCode::NO_CONTENT => Met::Nobody,
            status if status.is_success() => {
                let partner = body(response, ANSWER_MAX).await.ok().and_then(|b| serde_json::from_slice(&b).ok());
                partner.map_or(Met::Lost, Met::Partner)
            }
            _ => Met::Lost,
        }
    }

    /// Bytes that come in this time. `None`: it measures with another machine.
    pub async fn stream_from(&self, time: Duration) -> Result<Option<u64>> {
        let request = self.request(Method::GET, &self.stream_path()).timeout(time + ANSWER);
        let Some(mut response) = streamed(request).await? else { return Ok(None) };
        let (end, mut bytes) = (Instant::now() + time, 0);
        while Instant::now() < end {
            match response.chunk().await.or_fail(Kind::Unreachable, "burn.stream", || "the stream broke")? {
                Some(piece) => bytes += piece.len() as u64,
                None => break,
            }
        }
        Ok(Some(bytes))
    }

    /// Bytes that the appliance got in this time. `None`: it measures with another machine.
    pub async fn stream_to(&self, time: Duration) -> Result<Option<u64>> {
        let (piece, end) = (Bytes::from(vec![0x5a; PIECE]), Instant::now() + time);
        let pieces = futures::stream::iter(std::iter::from_fn(move || {
            (Instant::now() < end).then(|| Ok::<_, std::io::Error>(piece.clone()))
        }));
        let request = self.request(Method::POST, &self.stream_path()).timeout(time + ANSWER);
        let Some(response) = streamed(request.body(reqwest::Body::wrap_stream(pieces))).await? else { return Ok(None) };
        let said = body(response, ANSWER_MAX).await.ok().and_then(|b| serde_json::from_slice::<Received>(&b).ok());
        let odd = || Error::refused("burn.stream", "the appliance does not say what it received");
        said.map(|said| Some(said.bytes)).ok_or_else(odd)
    }

    fn stream_path(&self) -> String {
        format!("/agent/v1/{}/stream", self.machine())
    }

    /// The signed manifest, unchecked.
    pub async fn manifest(&self, digest: Digest) -> Result<Vec<u8>> {
        let path = format!("/images/{digest}/manifest");
        let request = self.request(Method::GET, &path).timeout(Duration::from_secs(120));
        let fetch = || async { body(send(request.try_clone()).await?, MANIFEST_MAX).await };
        self.patiently("the image's manifest", fetch).await.map_err(Error::from)
    }

    /// What the chunks are fetched with: the same rights, no total time limit.
    pub fn chunk_request(&self) -> impl Fn(Digest) -> RequestBuilder + Send + Sync + 'static {
        let (http, url, token) = (self.http.clone(), self.url.clone(), self.known().token.clone());
        move |digest| with_token(http.get(format!("{url}/images/{digest}/data")), token.as_ref())
    }

    /// Offset of this machine's clock from the appliance's, in seconds, from the `Date` of an answer (to the second).
    pub async fn clock_offset(&self) -> Result<f64> {
        let answer = self.request(Method::GET, "/").timeout(ANSWER).send().await;
        let answer =
            answer.or_fail(Kind::Unreachable, "appliance.unreachable", || "the appliance does not answer over HTTP")?;
        let date = answer.headers().get("date").and_then(|d| d.to_str().ok()).unwrap_or_default();
        let theirs = jiff::fmt::rfc2822::parse(date)
            .or_fail(Kind::Refused, "appliance.date", || format!("the appliance's date {date:?} cannot be read"))?;
        Ok(jiff::Timestamp::now().duration_since(theirs.timestamp()).as_secs_f64())
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        with_token(request, self.known().token.as_ref())
    }

    /// Asks until there is an answer or a refusal. `what` completes "waiting for …".
    async fn patiently<T, F: Future<Output = Result<T, Fault>>>(
        &self,
        what: &str,
        mut ask: impl FnMut() -> F,
    ) -> Result<T, Refusal> {
        let mut wait = BackOff::default();
        let mut said = String::new();
        loop {
            match ask().await {
                Ok(answer) => {
                    if !said.is_empty() {
                        say("the appliance answers again");
                    }
                    return Ok(answer);
                }
                Err(Fault::Refused(refusal)) => return Err(refusal),
                Err(Fault::Passing(error)) => {
                    let reason = error.causes().pop().unwrap_or_else(|| error.to_string());
                    if reason != said {
                        say(format!("waiting for {what} at {}: {reason}", self.url));
                        said = reason;
                    }
                    tokio::time::sleep(wait.next_wait()).await;
                }
            }
        }
    }
}

/// In RAM there are no certificate authorities, and the client does not start without any: over plain HTTP it is told
/// not to look for them. What matters is signed or hashed.
fn client(url: &str) -> Result<Client> {
    let builder = Client::builder()
        .connect_timeout(CONNECT)
        .read_timeout(POLL)
        .tcp_nodelay(true)
        .no_proxy()
        .pool_idle_timeout(Duration::from_secs(60))
        .user_agent(concat!("rackline-agent/", env!("CARGO_PKG_VERSION")));
    let builder = if url.starts_with("https://") { builder } else { builder.tls_certs_only([]) };
    builder.build().or_fail(Kind::Config, "agent.http", || "the HTTP client does not start")
}

fn with_token(request: RequestBuilder, token: Option<&Token>) -> RequestBuilder {
    match token {
        Some(token) => request.bearer_auth(token.secret()),
        None => request,
    }
}

async fn streamed(request: RequestBuilder) -> Result<Option<reqwest::Response>> {
    let sent = request.send().await.map_err(reqwest::Error::without_url);
    let response = sent.or_fail(Kind::Unreachable, "burn.stream", || "the appliance is not there to measure with")?;
    match response.status() {
        StatusCode::TOO_MANY_REQUESTS => Ok(None),
        status if status.is_success() => Ok(Some(response)),
        status => Err(Error::refused("burn.stream", format!("the appliance does not measure: {status}"))),
    }
}

async fn answer<T: DeserializeOwned>(request: Option<RequestBuilder>) -> Result<T, Fault> {
    let bytes = body(send(request).await?, ANSWER_MAX).await?;
    serde_json::from_slice(&bytes)
        .or_fail(
            Kind::Refused,
            "appliance.answer",
            || "the appliance's answer is not understood: is it another version?",
        )
        .map_err(|e| Fault::Refused(Refusal::No(e)))
}

async fn nothing(request: Option<RequestBuilder>) -> Result<(), Fault> {
    send(request).await.map(drop)
}

async fn send(request: Option<RequestBuilder>) -> Result<reqwest::Response, Fault> {
    let Some(request) = request else {
        return Err(Fault::Refused(Refusal::No(Error::internal("agent.http", "a request cannot be repeated"))));
    };
    let response = request.send().await.map_err(passing)?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    if status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) {
        let error = Error::unreachable("appliance.unreachable", format!("the appliance answers {status}"));
        return Err(Fault::Passing(error));
    }
    let bytes = body(response, 64 << 10).await?;
    let error = match serde_json::from_slice::<Problem>(&bytes) {
        Ok(problem) => problem.into_error(Kind::Refused),
        Err(_) => Error::refused("appliance.refused", format!("the appliance answers {status}")),
    };
    Err(Fault::Refused(match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Refusal::Unknown(error),
        _ => Refusal::No(error),
    }))
}

/// The whole body, as long as it is within `limit` bytes.
async fn body(mut response: reqwest::Response, limit: usize) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(passing)? {
        if bytes.len() + piece.len() > limit {
            let error = Error::refused("appliance.answer", format!("an answer is longer than {limit} bytes"));
            return Err(Fault::Refused(Refusal::No(error)));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

fn passing(e: reqwest::Error) -> Fault {
    Fault::Passing(
        Error::unreachable("appliance.unreachable", "the appliance does not answer").because(e.without_url()),
    )
}
