//! The other side of `/api/v1`, for the command line and the lab.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Kind, OrFail, Result};
use crate::link::Problem;

const PATIENCE: Duration = Duration::from_secs(30);
/// A list of 20,000 machines is below; an answer without end is not read for ever.
const MAX_ANSWER: usize = 64 << 20;

/// Clones share their connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
}

impl Client {
    /// `url` is that of the appliance: `http://127.0.0.1:8480`.
    pub fn new(url: &str) -> Result<Self> {
        let http = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build();
        let http = http.or_fail(Kind::Internal, "client", || "cannot make an HTTP client")?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned() })
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.send(self.http.get(format!("{}{path}", self.url))).await
    }

    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.send(self.http.post(format!("{}{path}", self.url)).json(body)).await
    }

    async fn send<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T> {
        let lost = |e: reqwest::Error| {
            Error::unreachable("client.unreachable", format!("the appliance at {} does not answer", self.url))
                .because(e)
                .hint("is `rackline serve` running? name it with --url or RACKLINE_URL")
        };
        let mut answer = request.send().await.map_err(lost)?;
        let status = answer.status();
        let mut body = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(lost)? {
            if body.len() + part.len() > MAX_ANSWER {
                return Err(Error::refused("client.answer", "the appliance's answer does not end"));
            }
            body.extend_from_slice(&part);
        }
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|e| {
                Error::refused("client.answer", "the appliance's answer is not what this release expects")
                    .because(e)
                    .hint("are both of the same release? `rackline --version`")
            });
        }
        let kind = match status.as_u16() {
            404 => Kind::NotFound,
            409 => Kind::Conflict,
            422 => Kind::Input,
            503 => Kind::Unreachable,
            500.. => Kind::Internal,
            _ => Kind::Refused,
        };
        Err(match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => problem.into_error(kind),
            Err(_) => Error::new(kind, "client.answer", format!("the appliance answered {status}")),
        })
    }
}

/// A name as one segment of a path.
pub fn segment(name: &str) -> String {
    let safe = |b: u8| b.is_ascii_alphanumeric() || b"-._~:".contains(&b);
    name.bytes().map(|b| if safe(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
