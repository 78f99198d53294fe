//! The BitTorrent face: for any BitTorrent client in a network that is served.
//!
//! | request | answer |
//! |---|---|
//! | `GET /images/DIGEST/torrent` | the `.torrent` of an image; the first time after its data file was read as a whole |
//! | `GET /announce?info_hash=…` | BEP 3: always 200, with peers or with a `failure reason` |

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Path, RawQuery, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};

use super::Failure;
use crate::httpd::Reached;
use crate::machine::Digest;
use crate::swarm::torrent::Torrents;

/// Behind [`crate::httpd::Server`].
pub fn router(torrents: Arc<Torrents>) -> Router {
    Router::new().route("/announce", get(announce)).route("/images/{manifest}/torrent", get(file)).with_state(torrents)
}

async fn announce(
    State(torrents): State<Arc<Torrents>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Extension(Reached(home)): Extension<Reached>,
    RawQuery(query): RawQuery,
) -> Response {
    let answer = torrents.announce(peer.ip().to_canonical(), home, &query.unwrap_or_default()).await;
    // Clients come back in half a minute: nothing is won by keeping the connection.
    let about =
        [(header::CONTENT_TYPE, "text/plain"), (header::CACHE_CONTROL, "no-store"), (header::CONNECTION, "close")];
    (about, answer).into_response()
}

async fn file(State(torrents): State<Arc<Torrents>>, Path(image): Path<Digest>) -> Result<Response, Failure> {
    let (name, file) = torrents.file(image).await?;
    let name = format!("attachment; filename=\"{name}.torrent\"");
    let about = [
        (header::CONTENT_TYPE, "application/x-bittorrent"),
        (header::CONTENT_DISPOSITION, name.as_str()),
        (header::CONNECTION, "close"),
    ];
    Ok((about, file).into_response())
}
