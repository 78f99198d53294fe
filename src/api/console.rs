//! Consoles: what was recorded, and live by WebSocket.
//!
//! Live, binary frames are what the machine prints and what is typed, as it is; text frames are JSON: [`ConsoleSays`]
//! from here, [`ConsoleAsks`] to here.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;

use super::Failure;
use super::view::{ConsoleAsks, ConsoleBoot, ConsoleLine, ConsoleLines, ConsoleSays, ConsoleView};
use crate::bmc::sol::hub::{Hands, Told, Typed, Watch};
use crate::bmc::sol::record::{Boot, Piece};
use crate::bmc::sol::{Consoles, text};
use crate::engine::Engine;
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::MachineId;

/// Bytes of a recording in one answer.
const PIECE: usize = 1 << 20;
/// One paste.
const MESSAGE: usize = 64 << 10;
/// Characters handed on at a time.
const KEYS: usize = 512;
/// Watchers that are gone without a word are found out by this.
const PING: Duration = Duration::from_secs(30);
/// How long keys wait for a machine that takes none.
const KEYS_WITHIN: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(20);

#[derive(Clone)]
pub struct Site {
    pub engine: Engine,
    pub consoles: Consoles,
}

/// For people and scripts.
pub fn people(site: Site) -> Router {
    Router::new()
        .route("/api/v1/machines/{machine}/console", get(show))
        .route("/api/v1/machines/{machine}/console/lines", get(lines))
        .route("/api/v1/machines/{machine}/console/raw", get(raw))
        .route("/api/v1/machines/{machine}/console/live", get(live))
        .with_state(site)
}

impl From<Boot> for ConsoleBoot {
    fn from(Boot { started, last, printed, stored }: Boot) -> Self {
        Self { boot: started, last, printed, stored }
    }
}

/// Reads files beside the runtime.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.or_fail(Kind::Internal, "console.read", || "a recording cannot be read")?
}

async fn show(State(s): State<Site>, Path(name): Path<String>) -> Result<Json<ConsoleView>, Failure> {
    let machine = s.engine.find(&name)?.id;
    let (status, recorded) = s.consoles.status(machine);
    let shelf = s.consoles.shelf().clone();
    let boots = beside(move || shelf.boots(machine)).await?;
    Ok(Json(ConsoleView { state: status, recorded, boots: boots.into_iter().map(Into::into).collect() }))
}

/// A range of a boot; the newest where none is named.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    boot: Option<i64>,
    #[serde(default)]
    offset: u64,
    limit: Option<usize>,
}

async fn piece(s: &Site, name: &str, range: Range) -> Result<Piece> {
    let machine: MachineId = s.engine.find(name)?.id;
    let shelf = s.consoles.shelf().clone();
    let limit = range.limit.unwrap_or(PIECE).clamp(1, PIECE);
    beside(move || shelf.read(machine, range.boot, range.offset, limit)).await
}

/// As lines with times, for people.
async fn lines(
    State(s): State<Site>,
    Path(name): Path<String>,
    Query(range): Query<Range>,
) -> Result<Json<ConsoleLines>, Failure> {
    let piece = piece(&s, &name, range).await?;
    let text::Lines { mut lines, mut tail, mut next } = text::lines(&piece);
    let view = |line: text::Line| ConsoleLine { at: line.at, text: line.text, note: line.note };
    if next == piece.offset && piece.next < piece.end {
        // Part of a line that goes on in the next file: a line of its own, or whoever reads on would never get past it.
        lines.extend(tail.take());
        next = piece.next;
    }
    let lines = lines.into_iter().map(view).collect();
    Ok(Json(ConsoleLines { offset: piece.offset, next, end: piece.end, lines, tail: tail.map(view) }))
}

/// As it was printed.
async fn raw(
    State(s): State<Site>,
    Path(name): Path<String>,
    Query(range): Query<Range>,
) -> Result<impl IntoResponse, Failure> {
    let Piece { offset, bytes, next, end, .. } = piece(&s, &name, range).await?;
    // RFC 9110 section 14.4; an empty range cannot be written in it.
    let content =
        if bytes.is_empty() { format!("bytes */{end}") } else { format!("bytes {offset}-{}/{end}", next - 1) };
    Ok(([(header::CONTENT_TYPE, "application/octet-stream".to_owned()), (header::CONTENT_RANGE, content)], bytes))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Live {
    /// Types, where nobody else does.
    #[serde(default)]
    types: bool,
    /// From whoever has it: keys here, the console at the BMC.
    #[serde(default)]
    force: bool,
}

async fn live(
    State(s): State<Site>,
    Path(name): Path<String>,
    Query(query): Query<Live>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Failure> {
    same_origin(&headers)?;
    let machine = s.engine.find(&name)?;
    if machine.bmc.is_none() {
        return Err(Error::conflict("bmc.unknown", "its BMC is not known")
            .hint("add it to the list of expected machines")
            .into());
    }
    let hands = match (query.types, query.force) {
        (false, _) => Hands::Off,
        (true, false) => Hands::On,
        (true, true) => Hands::Instead,
    };
    let (consoles, id) = (s.consoles.clone(), machine.id);
    let upgrade = upgrade.max_message_size(MESSAGE).max_frame_size(MESSAGE);
    // The watch begins with the connection, so that a request that goes no further leaves nothing behind.
    Ok(upgrade.on_upgrade(move |socket| async move {
        let watch = consoles.watch(id, hands, query.force);
        if let Err(e) = carry(socket, watch).await {
            tracing::debug!(machine = %id, error = %e, "a watcher of a console is gone");
        }
    }))
}

/// A browser sends a page's origin with its WebSocket, and lets every page open one. Only our own pages may.
fn same_origin(headers: &HeaderMap) -> Result<()> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(origin) = text(header::ORIGIN) else { return Ok(()) };
    let host = origin.split_once("://").map(|(_, host)| host);
    match host.is_some() && host == text(header::HOST) {
        true => Ok(()),
        false => Err(Error::refused("console.origin", "a page of another site asked for a console")),
    }
}

fn said(told: Told) -> Message {
    let say = match told {
        Told::Text(text) => return Message::Binary(Bytes::copy_from_slice(&text)),
        Told::Note(note) => ConsoleSays::Note(note),
        Told::Status(status) => ConsoleSays::State(status),
        Told::Displaced => ConsoleSays::Types(false),
    };
    Message::Text(serde_json::to_string(&say).unwrap_or_default().into())
}

/// Until either side ends.
async fn carry(mut socket: WebSocket, mut watch: Watch) -> Result<(), axum::Error> {
    let recent = std::mem::take(&mut watch.recent);
    if !recent.is_empty() {
        socket.send(Message::Binary(recent.into())).await?;
    }
    socket.send(said(Told::Status(watch.status.clone()))).await?;
    let types = serde_json::to_string(&ConsoleSays::Types(watch.types)).unwrap_or_default();
    socket.send(Message::Text(types.into())).await?;
    let mut ping = tokio::time::interval(PING);
    ping.reset();
    let mut answered = true;
    loop {
        tokio::select! {
            told = watch.next() => match told {
                Some(told) => socket.send(said(told)).await?,
                None => return socket.send(Message::Close(None)).await,
            },
            message = socket.recv() => {
                let Some(message) = message else { return Ok(()) };
                answered = true;
                match message? {
                    Message::Binary(keys) => type_in(&watch, &keys).await,
                    Message::Text(ask) => if let Ok(ConsoleAsks::Break) = serde_json::from_str(&ask) {
                        watch.type_in(&mut Some(Typed::Break));
                    },
                    Message::Close(_) => return Ok(()),
                    Message::Ping(_) | Message::Pong(_) => {}
                }
            }
            _ = ping.tick() => {
                if !std::mem::take(&mut answered) {
                    return Ok(());
                }
                socket.send(Message::Ping(Bytes::new())).await?;
            }
        }
    }
}

/// While the machine takes none, nothing more is read from the one who types.
async fn type_in(watch: &Watch, keys: &[u8]) {
    let until = tokio::time::Instant::now() + KEYS_WITHIN;
    for part in keys.chunks(KEYS) {
        let mut typed = Some(Typed::Text(part.to_vec()));
        while !watch.type_in(&mut typed) && tokio::time::Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_other_sites_get_no_console() {
        let asked = |origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, "127.0.0.1:8480".parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            same_origin(&headers).is_ok()
        };
        assert!(asked(None) && asked(Some("http://127.0.0.1:8480")));
        for other in ["http://evil.example", "null", "http://127.0.0.1:8480.evil.example", "http://127.0.0.1"] {
            assert!(!asked(Some(other)), "{other}");
        }
    }
}
