//! An outlet behind a web service of the site: a POST with what is wanted, signed, and an answer that has to say that it is
//! so.
//!
//! ```text
//! POST URL                                   X-Rackline-Signature: sha256=HMAC-SHA256(key, body), in hexadecimal
//! {"machine":"kvm-1","outlet":"pdu-a/7","state":"off","at":"2026-11-21T19:00:00Z","id":"…"}
//! 200  {"state":"off"}
//! ```
//!
//! `at` and `id` are in what is signed, so that the receiver can refuse an old or a repeated request.

use std::time::Duration;

use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};

use super::{WebhookSettings, not_applied, word};
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::Secret;

/// For the whole answer: the service waits for the PDU.
const ANSWER: Duration = Duration::from_secs(60);
const ANSWER_MAX: usize = 64 << 10;
/// Shorter keys are guessed.
const KEY_MIN: usize = 16;

pub struct Webhook {
    name: String,
    machine: String,
    url: reqwest::Url,
    key: hmac::Key,
}

#[derive(Serialize)]
struct Request<'a> {
    machine: &'a str,
    outlet: &'a str,
    state: &'static str,
    at: jiff::Timestamp,
    id: uuid::Uuid,
}

#[derive(Deserialize)]
struct Answer {
    state: String,
}

impl Webhook {
    /// What is wrong, as part of a sentence.
    pub fn new(
        name: &str,
        machine: &str,
        settings: &WebhookSettings,
        secret: &Secret,
    ) -> std::result::Result<Self, String> {
        let url: reqwest::Url = settings.url.parse().map_err(|e| format!("{:?} is no URL: {e}", settings.url))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(format!("{:?} is not an HTTP URL", settings.url));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a password in a URL ends up in logs: the signature says who asks".into());
        }
        let key = secret.expose().trim_end().as_bytes();
        if key.len() < KEY_MIN {
            return Err(format!("the key in the secret file has less than {KEY_MIN} characters"));
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        Ok(Self { name: name.to_owned(), machine: machine.to_owned(), url, key })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub async fn switch(&self, on: bool) -> Result<()> {
        let request = Request {
            machine: &self.machine,
            outlet: &self.name,
            state: word(on),
            at: jiff::Timestamp::now(),
            id: uuid::Uuid::new_v4(),
        };
        let body =
            serde_json::to_vec(&request).or_fail(Kind::Internal, "outlet.request", || "a request has no JSON")?;
        let tag = hmac::sign(&self.key, &body);
        let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let client = reqwest::Client::builder().timeout(ANSWER).redirect(reqwest::redirect::Policy::none()).no_proxy();
        let client = client.build().or_fail(Kind::Internal, "outlet.client", || "cannot make an HTTP client")?;
        let post = client.post(self.url.clone()).header("content-type", "application/json");
        let post = post.header("x-rackline-signature", format!("sha256={hex}")).body(body);
        let mut answer = post.send().await.map_err(|e| self.silent(e))?;
        let status = answer.status();
        if !status.is_success() {
            return Err(self.refused(format!("answered {status}")));
        }
        let mut text = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(|e| self.silent(e))? {
            if text.len() + part.len() > ANSWER_MAX {
                return Err(self.refused("sent an answer without end".into()));
            }
            text.extend_from_slice(&part);
        }
        let Ok(Answer { state }) = serde_json::from_slice(&text) else {
            return Err(self.refused("did not say which state the outlet is in".into()));
        };
        match state == word(on) {
            true => Ok(()),
            false => Err(not_applied(&self.name, on, &state.chars().take(40).collect::<String>())),
        }
    }

    fn silent(&self, e: reqwest::Error) -> Error {
        let host = self.url.host_str().unwrap_or_default();
        Error::unreachable("outlet.unreachable", format!("the web service {host} of outlet {} is silent", self.name))
            .because(e.without_url())
            .hint("check that it runs and is reached from the appliance")
    }

    fn refused(&self, what: String) -> Error {
        let host = self.url.host_str().unwrap_or_default();
        Error::refused("outlet.refused", format!("the web service {host} of outlet {} {what}", self.name))
            .hint("it has to answer 200 with {\"state\":\"on\"} or {\"state\":\"off\"}, as the outlet then is")
    }
}
