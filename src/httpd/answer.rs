//! What is answered to a request for a file: status, headers, and which bytes follow. Both ways to a socket, `sendfile`
//! and the router, take it from here, so they cannot differ.
//!
//! The rules are those of RFC 9110: methods (section 9), preconditions in their order (13.2.2), ranges (14.2).

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode};
use tracing::error;

use super::range::{Wanted, wanted};

/// Status, headers and body. The headers say everything about the message but `Date` and `Connection`, which are the
/// connection's.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Body,
}

#[derive(Debug)]
pub enum Body {
    /// Nothing follows, whatever `Content-Length` says: HEAD and 304.
    Empty,
    /// One line for whoever asked.
    Text(&'static str),
    /// `length` bytes of the file from `first` on.
    File { file: File, first: u64, length: u64 },
}

impl Answer {
    /// A status with a line of text that says why.
    pub fn text(method: &Method, status: StatusCode, text: &'static str) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::CONTENT_LENGTH, text.len().into());
        let body = if method == Method::HEAD { Body::Empty } else { Body::Text(text) };
        Self { status, headers, body }
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

/// What is answered to `method` with these request headers for the file at `path`. The file is opened anew for each request:
/// one that was replaced is served as it is now, under another tag, and each reader has a read-ahead of its own.
pub fn answer(method: &Method, asked: &HeaderMap, path: &Path) -> Answer {
    if method != Method::GET && method != Method::HEAD {
        return Answer::text(method, StatusCode::METHOD_NOT_ALLOWED, "files can only be read: GET or HEAD\n")
            .with(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    let (file, facts) = match open(path) {
        Ok(opened) => opened,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            error!(path = %path.display(), "a file that is served is gone");
            return Answer::text(method, StatusCode::NOT_FOUND, "the file is no longer on the appliance\n");
        }
        Err(e) => {
            error!(error = %e, path = %path.display(), "a file that is served cannot be read");
            return Answer::text(method, StatusCode::INTERNAL_SERVER_ERROR, "the appliance cannot read the file\n");
        }
    };
    let mut answer = match precondition(asked, &facts) {
        Condition::Fine => content(method, asked, file, &facts, content_type(path)),
        Condition::Failed => Answer::text(method, StatusCode::PRECONDITION_FAILED, "the file is another one by now\n"),
        Condition::NotModified => not_modified(method, &facts),
    };
    answer.headers.insert(header::ETAG, facts.tag);
    answer.headers.insert(header::LAST_MODIFIED, date(facts.modified));
    answer
}

/// For HEAD with the length of the content that is not sent (section 8.6): without it, the router would say 0.
fn not_modified(method: &Method, facts: &Facts) -> Answer {
    let mut headers = HeaderMap::new();
    if method == Method::HEAD {
        headers.insert(header::CONTENT_LENGTH, facts.size.into());
    }
    Answer { status: StatusCode::NOT_MODIFIED, headers, body: Body::Empty }
}

fn content(method: &Method, asked: &HeaderMap, file: File, facts: &Facts, kind: &'static str) -> Answer {
    let ranges = HeaderValue::from_static("bytes");
    let (status, first, length, place) = match part(method, asked, facts) {
        Wanted::Whole => (StatusCode::OK, 0, facts.size, None),
        Wanted::Part { first, last } => {
            let place = format!("bytes {first}-{last}/{}", facts.size);
            (StatusCode::PARTIAL_CONTENT, first, last - first + 1, Some(place))
        }
        Wanted::Unsatisfiable => {
            let place = format!("bytes */{}", facts.size);
            return Answer::text(method, StatusCode::RANGE_NOT_SATISFIABLE, "the file has no such range of bytes\n")
                .with(header::CONTENT_RANGE, printable(place))
                .with(header::ACCEPT_RANGES, ranges);
        }
    };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::ACCEPT_RANGES, ranges);
    if let Some(place) = place {
        headers.insert(header::CONTENT_RANGE, printable(place));
    }
    let body = if method == Method::HEAD || length == 0 { Body::Empty } else { Body::File { file, first, length } };
    Answer { status, headers, body }
}

/// Ranges are for GET only (section 14.2), and with `If-Range` only of the very file that is meant (13.1.5). Several
/// `Range` lines have no meaning and are passed over.
fn part(method: &Method, asked: &HeaderMap, facts: &Facts) -> Wanted {
    let mut ranges = asked.get_all(header::RANGE).iter();
    let (Some(range), None) = (ranges.next(), ranges.next()) else { return Wanted::Whole };
    if method != Method::GET {
        return Wanted::Whole;
    }
    let same = match asked.get(header::IF_RANGE).map(HeaderValue::as_bytes) {
        None => true,
        Some(tag) if tag.starts_with(b"\"") => tag == facts.tag.as_bytes(),
        // A date is exact only once the second it names is over (section 8.8.2.2).
        Some(text) => seconds(text) == Some(facts.modified) && facts.modified < facts.now,
    };
    if same { wanted(range.as_bytes(), facts.size) } else { Wanted::Whole }
}

enum Condition {
    Fine,
    NotModified,
    Failed,
}

/// Section 13.2.2. A date that cannot be read is passed over, as each of the headers wants it.
fn precondition(asked: &HeaderMap, facts: &Facts) -> Condition {
    let since = |name| asked.get(name).and_then(|v: &HeaderValue| seconds(v.as_bytes()));
    if asked.contains_key(header::IF_MATCH) {
        if !names(asked, header::IF_MATCH, facts, false) {
            return Condition::Failed;
        }
    } else if since(header::IF_UNMODIFIED_SINCE).is_some_and(|then| facts.modified > then) {
        return Condition::Failed;
    }
    let unchanged = match asked.contains_key(header::IF_NONE_MATCH) {
        true => names(asked, header::IF_NONE_MATCH, facts, true),
        false => since(header::IF_MODIFIED_SINCE).is_some_and(|then| facts.modified <= then),
    };
    if unchanged { Condition::NotModified } else { Condition::Fine }
}

/// Whether a list of entity tags names this file, or is `*`. Our tags hold no comma, so cutting at commas finds them.
fn names(asked: &HeaderMap, name: HeaderName, facts: &Facts, weakly: bool) -> bool {
    asked.get_all(name).iter().flat_map(|line| line.as_bytes().split(|b| *b == b',')).any(|tag| {
        let tag = tag.trim_ascii();
        let tag = if weakly { tag.strip_prefix(b"W/").unwrap_or(tag) } else { tag };
        tag == b"*" || tag == facts.tag.as_bytes()
    })
}

/// What the answer depends on besides the request. Times are seconds since 1970.
struct Facts {
    size: u64,
    modified: u64,
    now: u64,
    /// Strong (section 8.8.1): the kernel moves the change time with each change, and a replaced file is another inode.
    tag: HeaderValue,
}

fn open(path: &Path) -> io::Result<(File, Facts)> {
    let file = File::open(path)?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let (changed, part) = (about.ctime(), about.ctime_nsec());
    let tag = format!("\"{:x}-{:x}-{:x}-{changed:x}.{part:x}\"", about.ino(), about.size(), about.mtime());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // Never in the future (section 8.8.2.1), and always a date that can be written.
    let modified = u64::try_from(about.mtime()).unwrap_or(0).min(now);
    Ok((file, Facts { size: about.size(), modified, now, tag: printable(tag) }))
}

/// UEFI firmware goes by this type or by the ending (UEFI specification 2.10 section 24.7.3.1).
fn content_type(path: &Path) -> &'static str {
    match path.extension().and_then(|e| e.to_str()) {
        Some("efi") => "application/efi",
        _ => "application/octet-stream",
    }
}

/// The last second that a date on the wire can name.
const YEAR_9999: u64 = 253_402_300_799;

/// IMF-fixdate (section 5.6.7).
pub fn date(seconds: u64) -> HeaderValue {
    printable(httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds.min(YEAR_9999))))
}

fn seconds(date: &[u8]) -> Option<u64> {
    let date = httpdate::parse_http_date(std::str::from_utf8(date).ok()?).ok()?;
    date.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// For text of digits and plain letters, which a header always takes.
fn printable(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}
