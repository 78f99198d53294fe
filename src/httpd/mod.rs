//! The web server for machines: boot loaders, kernels and images go from the page cache to the socket by `sendfile(2)`,
//! everything else is answered by an axum router.
//!
//! ```text
//!  accept ─► read a request head ─► is its path one of the files? ── yes ─► head, sendfile, next request
//!                                                │ no
//!                                                └─► hyper and the router, until the connection ends
//! ```
//!
//! A connection that the router has does not come back, and files on it are copied through user space. So the router ends
//! it where files follow: with the boot script, and with a file ([`respond`]). It does not where firmware asks twice, HEAD
//! and GET: older UEFI firmware does not open a second connection.
//!
//! What a client sends never becomes a path: it is looked up among the names of a closed set, by [`Find`].

mod answer;
mod connection;
mod count;
mod range;
mod send;
mod server;

use std::io::{Seek, SeekFrom};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

pub use count::{Counters, Event};
pub use server::{Limits, Server};

/// From the path of a URL, as the client wrote it and without the query, to the file that is served there.
pub type Find = dyn Fn(&str) -> Option<PathBuf> + Send + Sync;

/// Extension of each request: the address of ours at which the client reached us.
#[derive(Debug, Clone, Copy)]
pub struct Reached(pub IpAddr);

/// Bytes that are read at once where a file goes through user space.
const PIECE: usize = 256 << 10;

/// The answer for the file at `path` where a router gives it: the same as the server's own, but copied, and it ends the
/// connection, so that the next file is the server's.
pub fn respond(request: &Request, path: &Path) -> Response {
    let answer = answer::answer(request.method(), request.headers(), path);
    let body = match answer.body {
        answer::Body::Empty => Body::empty(),
        answer::Body::Text(text) => text.into(),
        answer::Body::File { mut file, first, length } => {
            if let Err(e) = file.seek(SeekFrom::Start(first)) {
                tracing::error!(error = %e, path = %path.display(), "a file that is served cannot be read");
                return text(
                    request.method(),
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the appliance cannot read the file\n",
                );
            }
            let file = tokio::fs::File::from_std(file).take(length);
            Body::from_stream(ReaderStream::with_capacity(file, PIECE))
        }
    };
    let mut response = Response::new(body);
    (*response.status_mut(), *response.headers_mut()) = (answer.status, answer.headers);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// A status with one line of text.
pub fn text(method: &Method, status: StatusCode, text: &'static str) -> Response {
    let answer = answer::Answer::text(method, status, text);
    let mut response = Response::new(if *method == Method::HEAD { Body::empty() } else { text.into() });
    (*response.status_mut(), *response.headers_mut()) = (answer.status, answer.headers);
    response
}
