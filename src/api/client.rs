//! The other side of `/api/v1`, for the command line and the lab.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Kind, OrFail, Result};
use crate::link::Problem;

const PATIENCE: Duration = Duration::from_secs(30);
/// For what the appliance itself has to wait for: a BMC with its turn and its sensors.
const LONG: Duration = Duration::from_secs(260);
/// A list of 20,000 machines is below; an answer without end is not read for ever.
const MAX_ANSWER: usize = 64 << 20;

pub type Live = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

/// Clones share their connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    patience: Duration,
}

impl Client {
    /// `url` is that of the appliance: `http://127.0.0.1:8480`.
    pub fn new(url: &str) -> Result<Self> {
        let http = reqwest::Client::builder().no_proxy().build();
        let http = http.or_fail(Kind::Internal, "client", || "cannot make an HTTP client")?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned(), patience: PATIENCE })
    }

    /// For questions that take minutes.
    pub fn patient(self) -> Self {
        Self { patience: LONG, ..self }
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.send(self.http.get(format!("{}{path}", self.url))).await
    }

    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.send(self.http.post(format!("{}{path}", self.url)).json(body)).await
    }

    /// A body that is not JSON.
    pub async fn post_text<T: DeserializeOwned>(&self, path: &str, body: String) -> Result<T> {
        self.send(self.http.post(format!("{}{path}", self.url)).body(body)).await
    }

    /// A WebSocket of the same appliance.
    pub async fn live(&self, path: &str) -> Result<Live> {
        use tokio_tungstenite::tungstenite::Error as Socket;
        let Some(address) = self.url.strip_prefix("http://") else {
            return Err(Error::input("client.url", format!("{} is not an http:// address", self.url)));
        };
        let connecting = tokio_tungstenite::connect_async(format!("ws://{address}{path}"));
        let connected = tokio::time::timeout(PATIENCE, connecting).await;
        match connected.unwrap_or_else(|late| Err(Socket::Io(late.into()))) {
            Ok((live, _)) => Ok(live),
            Err(Socket::Http(answer)) => {
                Err(refusal(answer.status().as_u16(), answer.body().as_deref().unwrap_or_default()))
            }
            Err(e) => Err(self.lost(e)),
        }
    }

    fn lost(&self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::unreachable("client.unreachable", format!("the appliance at {} does not answer", self.url))
            .because(cause)
            .hint("is `rackline serve` running? name it with --url or RACKLINE_URL")
    }

    async fn send<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T> {
        let mut answer = request.timeout(self.patience).send().await.map_err(|e| self.lost(e))?;
        let status = answer.status();
        let mut body = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(|e| self.lost(e))? {
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
        Err(refusal(status.as_u16(), &body))
    }
}

fn refusal(status: u16, body: &[u8]) -> Error {
    let kind = match status {
        404 => Kind::NotFound,
        409 => Kind::Conflict,
        422 => Kind::Input,
        503 => Kind::Unreachable,
        500.. => Kind::Internal,
        _ => Kind::Refused,
    };
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => problem.into_error(kind),
        Err(_) => Error::new(kind, "client.answer", format!("the appliance answered {status}")),
    }
}

/// A name as one segment of a path.
pub fn segment(name: &str) -> String {
    let safe = |b: u8| b.is_ascii_alphanumeric() || b"-._~:".contains(&b);
    name.bytes().map(|b| if safe(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
