//! One connection: request heads in, answers out, in the order of the requests (RFC 9112 section 9.3.2: what was pipelined
//! waits in the buffer). The first request that is not for a file takes the connection to hyper and the router.

use std::convert::Infallible;
use std::io::Cursor;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::ConnectInfo;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use bytes::{Buf, BufMut, BytesMut};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tower::ServiceExt;

use super::Reached;
use super::answer::{Answer, Body, answer, date};
use super::count::Event;
use super::send::{Fault, Sender};
use super::server::Shared;

/// Lines in the head of a request; browsers send about 15, boot firmware about 5.
const MAX_LINES: usize = 100;

/// After an answer that ends the connection: what the client still sends is taken for so long and so many bytes. A socket
/// that is closed with unread bytes in it is reset, and the client may lose the answer with it (RFC 9112 section 9.6).
const LINGER: std::time::Duration = std::time::Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;

/// Files from this size on are sent in turn, in bytes: kernels and RAM systems, not boot loaders and scripts.
const LARGE: u64 = 1 << 20;

pub struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    /// Received, and not yet answered.
    buffer: BytesMut,
    shared: Arc<Shared>,
}

/// The head of a request, as far as it decides where the request goes.
struct Head {
    method: Method,
    /// Of the URL, without the query.
    path: String,
    headers: HeaderMap,
    /// Its length in the buffer.
    length: usize,
    /// HTTP/1.1, and not 1.0.
    modern: bool,
}

/// What the reading of a head came to, besides a head.
enum End {
    /// The client said all it had to say, or was silent for long, or the server stops.
    Quiet,
    /// There is no use in going on.
    Broken(Event),
    /// The client is told why, and the connection ends.
    Refused(Event, StatusCode, &'static str),
}

impl Connection {
    pub fn new(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>) -> Self {
        Self { stream, peer, buffer: BytesMut::new(), shared }
    }

    pub async fn serve(mut self) {
        let mut first = true;
        loop {
            let head = match self.head(first).await {
                Ok(head) => head,
                Err(end) => return self.end(end).await,
            };
            first = false;
            let Some(path) = (self.shared.find)(&head.path) else { return self.route().await };
            let going_on = head.keeps_alive() && !self.shared.stop.is_cancelled();
            let answer = answer(&head.method, &head.headers, &path);
            match self.send(answer, going_on.then_some(head.modern), head.is_patient()).await {
                Ok(event) => self.shared.counters.add(event, Some(self.peer)),
                Err(fault) => return self.shared.counters.add(fault.into(), Some(self.peer)),
            }
            if !going_on {
                return self.linger().await;
            }
            self.buffer.advance(head.length);
        }
    }

    /// The next head, once it is in the buffer as a whole.
    async fn head(&mut self, first: bool) -> Result<Head, End> {
        let limits = &self.shared.limits;
        let mut deadline = Instant::now() + if first { limits.head } else { limits.idle };
        loop {
            // Empty lines before a request line are passed over (RFC 9112 section 2.2).
            while matches!(self.buffer.first(), Some(b'\r' | b'\n')) {
                self.buffer.advance(1);
            }
            if let Some(head) = parse(&self.buffer)? {
                return Ok(head);
            }
            let (held, limit) = (self.buffer.len(), self.shared.limits.head_bytes);
            if held >= limit {
                return Err(TOO_LONG);
            }
            self.buffer.reserve(limit.min(held.max(2048)));
            let mut room = (&mut self.buffer).limit(limit - held);
            let stop = async {
                match held {
                    0 => self.shared.stop.cancelled().await,
                    _ => std::future::pending().await,
                }
            };
            let received = tokio::select! {
                received = timeout_at(deadline, self.stream.read_buf(&mut room)) => received,
                () = stop => return Err(End::Quiet),
            };
            match received {
                Err(_) if held == 0 => return Err(End::Broken(Event::Idle)),
                Err(_) => {
                    let text = "the request did not come to its end in time\n";
                    return Err(End::Refused(Event::HeadTimeout, StatusCode::REQUEST_TIMEOUT, text));
                }
                Ok(Ok(0)) if held == 0 => return Err(End::Quiet),
                Ok(Ok(0) | Err(_)) => return Err(End::Broken(Event::Aborted)),
                Ok(Ok(_)) if held == 0 => deadline = Instant::now() + self.shared.limits.head,
                Ok(Ok(_)) => {}
            }
        }
    }

    /// An answer, and whether the client may go on, with the version it speaks; `None` ends the connection. Who is `patient`
    /// may be left waiting for a file.
    async fn send(&self, answer: Answer, going_on: Option<bool>, patient: bool) -> Result<Event, Fault> {
        let connection = match going_on {
            Some(true) => None,
            Some(false) => Some("keep-alive"),
            None => Some("close"),
        };
        let mut head = written(&answer, connection);
        let limits = &self.shared.limits;
        let sender = Sender { stream: &self.stream, patience: limits.write, counters: &self.shared.counters };
        match answer.body {
            Body::Empty => sender.bytes(&head, false).await.map(|()| Event::Answered),
            Body::Text(text) => {
                head.extend_from_slice(text.as_bytes());
                sender.bytes(&head, false).await.map(|()| Event::Answered)
            }
            Body::File { file, first, length } => {
                let queued = patient && length >= LARGE;
                sender.bytes(&head, !queued).await?;
                let sending = sender.file(file, first, length);
                if queued { self.in_turn(sending).await } else { sending.await }.map(|()| Event::Sent)
            }
        }
    }

    /// Not more than [`Limits::downloads`](super::Limits) at once, each wait with an end.
    async fn in_turn(&self, sending: impl Future<Output = Result<(), Fault>>) -> Result<(), Fault> {
        let shared = &self.shared;
        let place = match shared.places.try_acquire() {
            Ok(place) => Some(place),
            Err(_) => {
                shared.counters.add(Event::Queued, Some(self.peer));
                timeout(shared.limits.queue, shared.places.acquire()).await.ok().and_then(Result::ok)
            }
        };
        let mut sending = pin!(sending);
        match timeout(shared.limits.place, &mut sending).await {
            Ok(sent) => sent,
            Err(_) => {
                drop(place);
                sending.await
            }
        }
    }

    async fn end(self, end: End) {
        match end {
            End::Quiet => {}
            End::Broken(event) => self.shared.counters.add(event, Some(self.peer)),
            End::Refused(event, status, text) => {
                self.shared.counters.add(event, Some(self.peer));
                let answer = Answer::text(&Method::GET, status, text);
                if self.send(answer, None, false).await.is_ok() {
                    self.linger().await;
                }
            }
        }
    }

    async fn linger(mut self) {
        let _ = timeout(LINGER, async {
            self.stream.shutdown().await?;
            let mut rest = [0; 8192];
            let mut taken = 0;
            while taken < LINGER_BYTES {
                match self.stream.read(&mut rest).await? {
                    0 => break,
                    n => taken += n,
                }
            }
            std::io::Result::Ok(())
        })
        .await;
    }

    /// The request in the buffer goes to the router, and with it the connection.
    async fn route(self) {
        let Self { stream, peer, buffer, shared } = self;
        let reached = stream.local_addr().ok().map(|address| Reached(address.ip().to_canonical()));
        let (read, write) = stream.into_split();
        let read = AsyncReadExt::chain(Cursor::new(buffer), read);
        let io = TokioIo::new(tokio::io::join(read, write));
        let state = shared.clone();
        let service = service_fn(move |request| routed(state.clone(), peer, reached, request));
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(shared.limits.idle)
            .serve_connection(io, service);
        tokio::pin!(serving);
        let ended = tokio::select! {
            ended = serving.as_mut() => ended,
            () = shared.stop.cancelled() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        let event = match ended {
            Ok(()) => return,
            Err(e) if e.is_timeout() => Event::Idle,
            Err(e) if e.is_parse() => Event::Malformed,
            Err(_) => Event::Aborted,
        };
        shared.counters.add(event, Some(peer));
    }
}

/// The router's answer, or 503 when it takes too long.
async fn routed(
    shared: Arc<Shared>,
    peer: SocketAddr,
    reached: Option<Reached>,
    request: Request<Incoming>,
) -> Result<Response, Infallible> {
    shared.counters.add(Event::Router, Some(peer));
    let mut request = request.map(axum::body::Body::new);
    request.extensions_mut().insert(ConnectInfo(peer));
    if let Some(reached) = reached {
        request.extensions_mut().insert(reached);
    }
    let method = request.method().clone();
    match timeout(shared.limits.router, shared.router.clone().oneshot(request)).await {
        Ok(response) => response,
        Err(_) => {
            shared.counters.add(Event::RouterTimeout, Some(peer));
            Ok(super::text(&method, StatusCode::SERVICE_UNAVAILABLE, "the answer took too long: try again\n"))
        }
    }
}

impl Head {
    /// iPXE waits for a file as long as the connection lives; UEFI's and GRUB's own clients give up after some seconds.
    fn is_patient(&self) -> bool {
        self.headers.get(header::USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(b"iPXE/"))
    }

    /// Whether another request may follow (RFC 9112 section 9.3). One with content ends the connection: a request for a file
    /// has no use for it, so it is not read, and then nobody knows where the next one begins.
    fn keeps_alive(&self) -> bool {
        let empty = self.headers.get(header::CONTENT_LENGTH).is_none_or(|length| length == "0");
        if !empty || self.headers.contains_key(header::TRANSFER_ENCODING) {
            return false;
        }
        let says = |word: &[u8]| {
            let lines = self.headers.get_all(header::CONNECTION);
            let mut words = lines.iter().flat_map(|line| line.as_bytes().split(|b| *b == b','));
            words.any(|w| w.trim_ascii().eq_ignore_ascii_case(word))
        };
        if self.modern { !says(b"close") } else { says(b"keep-alive") && !says(b"close") }
    }
}

const TOO_LONG: End = End::Refused(
    Event::HeadTooLong,
    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    "the head of the request is too long\n",
);
const MALFORMED: End =
    End::Refused(Event::Malformed, StatusCode::BAD_REQUEST, "this is not a request that HTTP/1.1 allows\n");
const VERSION: End =
    End::Refused(Event::Malformed, StatusCode::HTTP_VERSION_NOT_SUPPORTED, "this server speaks HTTP/1.1\n");

/// `None` while the head is not there as a whole.
fn parse(buffer: &[u8]) -> Result<Option<Head>, End> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_LINES];
    let mut request = httparse::Request::new(&mut lines);
    let length = match request.parse(buffer) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(TOO_LONG),
        Err(httparse::Error::Version) => return Err(VERSION),
        Err(_) => return Err(MALFORMED),
    };
    let method = request.method.and_then(|m| Method::from_bytes(m.as_bytes()).ok()).ok_or(MALFORMED)?;
    let mut headers = HeaderMap::with_capacity(request.headers.len());
    for line in request.headers.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| MALFORMED)?;
        headers.append(name, HeaderValue::from_bytes(line.value).map_err(|_| MALFORMED)?);
    }
    let modern = request.version == Some(1);
    let hosts = headers.get_all(header::HOST).iter().count();
    if hosts > 1 || (modern && hosts == 0) {
        return Err(MALFORMED);
    }
    let path = path_of(request.path.unwrap_or_default()).to_owned();
    Ok(Some(Head { method, path, headers, length, modern }))
}

/// The path in a request target (RFC 9112 section 3.2): `/path?query`, or a whole URL as for a proxy.
fn path_of(target: &str) -> &str {
    let path = match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/"),
        _ => target,
    };
    path.split('?').next().unwrap_or_default()
}

/// The head of an answer as it goes on the wire; `connection` is the header of that name.
pub fn written(answer: &Answer, connection: Option<&str>) -> Vec<u8> {
    let mut head = Vec::with_capacity(512);
    let mut line = |parts: &[&[u8]]| parts.iter().for_each(|part| head.extend_from_slice(part));
    let reason = answer.status.canonical_reason().unwrap_or_default();
    line(&[b"HTTP/1.1 ", answer.status.as_str().as_bytes(), b" ", reason.as_bytes(), b"\r\n"]);
    for (name, value) in &answer.headers {
        line(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    line(&[b"date: ", date(now).as_bytes(), b"\r\n"]);
    if let Some(connection) = connection {
        line(&[b"connection: ", connection.as_bytes(), b"\r\n"]);
    }
    line(&[b"\r\n"]);
    head
}
