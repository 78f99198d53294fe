//! What switches fetch, on the machines' listener.
//!
//! | request | answer |
//! |---|---|
//! | `GET /boot/switch/NAME/FILE` | a document of the switch or its installer, with ranges; 404 else |
//! | `GET /boot/onie` | the installer of the switch that `ONIE-SERIAL-NUMBER` or `ONIE-ETH-ADDR` names (ONIE design specification, "HTTP Requests and HTTP Headers"); 404 else |
//!
//! Whoever is on the network may read them: there are no secrets in them.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tracing::warn;

use super::{File, INSTALLER, Switches};
use crate::httpd;
use crate::machine::{MacAddr, Serial};

pub fn router(switches: Arc<Switches>) -> Router {
    Router::new().route("/boot/switch/{name}/{file}", get(named)).route("/boot/onie", get(onie)).with_state(switches)
}

async fn named(
    State(switches): State<Arc<Switches>>,
    Path((name, file)): Path<(String, String)>,
    request: Request,
) -> Response {
    serve(&switches, &name, &file, request).await
}

async fn onie(State(switches): State<Arc<Switches>>, request: Request) -> Response {
    let headers = request.headers();
    let serial = text(headers, "onie-serial-number").and_then(Serial::parse);
    let mac = text(headers, "onie-eth-addr").and_then(|mac| mac.parse::<MacAddr>().ok());
    let Some(name) = switches.name_of(serial.as_ref(), mac) else {
        let (serial, mac) = (serial.map(tracing::field::display), mac.map(tracing::field::display));
        let machine = text(headers, "onie-machine");
        warn!(machine, serial, mac, "a switch in ONIE asked for its installer and is not in [[switches]]");
        return not_found();
    };
    serve(&switches, name.as_str(), INSTALLER, request).await
}

async fn serve(switches: &Switches, name: &str, file: &str, request: Request) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
    let whole = request.method() == Method::GET && begins(request.headers());
    let response = match switches.file(name, file) {
        None => return not_found(),
        Some(File::Document(text)) => ([(header::CONTENT_TYPE, media_type(file))], text).into_response(),
        Some(File::Image(path)) => httpd::respond(&request, &path),
    };
    if whole && response.status().is_success() {
        switches.note_fetched(name, file, peer.map(|peer| peer.to_canonical()));
    }
    response
}

/// Not a later part of a file whose beginning was noted.
fn begins(headers: &HeaderMap) -> bool {
    text(headers, "range").is_none_or(|range| range.starts_with("bytes=0-"))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn media_type(file: &str) -> &'static str {
    if file.ends_with(".json") { "application/json" } else { "text/plain; charset=utf-8" }
}

fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "no such file for a switch\n").into_response()
}
