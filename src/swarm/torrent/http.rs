//! The BitTorrent face on the machines' web server.
//!
//! | request | answer |
//! |---|---|
//! | `GET /images/DIGEST/torrent` | the `.torrent` of an image; the first time after its data file was read as a whole |
//! | `GET /announce?info_hash=…` | BEP 3: always 200, with peers or with a `failure reason` |

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tracing::{debug, error};

use super::Torrents;
use super::tracker::failure;
use crate::error::Kind;
use crate::machine::Digest;

pub fn router(torrents: Arc<Torrents>) -> Router {
    Router::new()
        .route("/announce", get(announce))
        .route("/images/{manifest}/torrent", get(torrent))
        .with_state(torrents)
}

async fn announce(
    State(torrents): State<Arc<Torrents>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let home = asked_at(&headers);
    let answer = torrents.announce(peer.ip().to_canonical(), home, &query.unwrap_or_default()).await;
    let answer = answer.unwrap_or_else(|why| {
        debug!(client = %peer, why = why.name(), "announce refused");
        failure(why.sentence())
    });
    // Clients come back in half a minute: nothing is won by keeping the connection.
    let about =
        [(header::CONTENT_TYPE, "text/plain"), (header::CACHE_CONTROL, "no-store"), (header::CONNECTION, "close")];
    (about, answer).into_response()
}

/// The appliance's address as this client reaches it. Who makes one up only misleads itself.
fn asked_at(headers: &HeaderMap) -> Option<IpAddr> {
    let host = headers.get(header::HOST)?.to_str().ok()?;
    let address = host.parse::<SocketAddr>().map(|with_port| with_port.ip());
    address.ok().or_else(|| host.trim_start_matches('[').trim_end_matches(']').parse().ok())
}

async fn torrent(State(torrents): State<Arc<Torrents>>, Path(image): Path<String>) -> Response {
    let found = match image.parse::<Digest>() {
        Ok(image) => torrents.file(image).await,
        Err(e) => Err(e),
    };
    match found {
        Ok((name, file)) => {
            let name = format!("attachment; filename=\"{name}.torrent\"");
            let about = [
                (header::CONTENT_TYPE, "application/x-bittorrent"),
                (header::CONTENT_DISPOSITION, name.as_str()),
                (header::CONNECTION, "close"),
            ];
            (about, file).into_response()
        }
        Err(e) if matches!(e.kind(), Kind::Input | Kind::NotFound) => {
            (StatusCode::NOT_FOUND, format!("{e}\n")).into_response()
        }
        Err(e) => {
            error!(error = ?e, %image, "no torrent of an image");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_that_was_asked() {
        for (host, address) in [
            ("10.77.0.1", Some("10.77.0.1")),
            ("10.77.0.1:8080", Some("10.77.0.1")),
            ("[fd00::1]", Some("fd00::1")),
            ("[fd00::1]:80", Some("fd00::1")),
            ("appliance.dc1", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]);
            assert_eq!(asked_at(&headers), address.map(|a| a.parse().unwrap()), "{host}");
        }
        assert_eq!(asked_at(&HeaderMap::new()), None);
    }
}
