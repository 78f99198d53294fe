//! Who is told, and how: a webhook gets the event signed, a registration is an HTTP request of another system's making,
//! rendered from the same facts.
//!
//! ```text
//! POST URL                                              Standard Webhooks 1.0.0
//! webhook-id: ID                                        the same in each attempt
//! webhook-timestamp: SECONDS                            of this attempt
//! webhook-signature: v1,BASE64(HMAC-SHA256(key, ID.SECONDS.BODY))
//! content-type: application/cloudevents+json
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::announce::{Announcement, KINDS};
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::Secret;
use crate::template;

/// For the whole answer: a receiver that has to think longer answers first and thinks then.
const ANSWER: Duration = Duration::from_secs(15);
/// Of an answer that refuses, this much is told.
const TOLD: usize = 200;
/// Shorter keys are guessed: Standard Webhooks wants 24 bytes at least; 16 is what the site's other hooks take.
const KEY_MIN: usize = 16;

/// Examples for other systems, by name; a site's own is named as a file.
pub const TEMPLATES: &[(&str, &str)] = &[
    ("openstack", include_str!("../../templates/handoff/openstack.toml")),
    ("kubernetes", include_str!("../../templates/handoff/kubernetes.toml")),
    ("zstack", include_str!("../../templates/handoff/zstack.toml")),
];

pub struct Receiver {
    pub name: String,
    /// Kinds of announcements, of [`KINDS`].
    pub events: Vec<String>,
    /// Only machines that have one of these roles; all where there is none.
    pub roles: Vec<String>,
    way: Way,
}

enum Way {
    Webhook { url: reqwest::Url, key: Box<hmac::Key> },
    Registration { template: Box<Template>, values: BTreeMap<String, String>, secret: Option<Secret> },
}

/// An HTTP request in the making. Each string is a template of its own, so that no value can end its field.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    #[serde(default = "post")]
    method: String,
    url: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: String,
    /// Answers that mean that it is done, besides 2xx: 409 where the other side already has it.
    #[serde(default)]
    done: Vec<u16>,
    /// What `values` has to say.
    #[serde(default)]
    needs: Vec<String>,
}

fn post() -> String {
    "POST".into()
}

/// Why an attempt came to nothing.
#[derive(Debug, PartialEq)]
pub enum Failed {
    /// Tried again.
    Later(String),
    /// The receiver says that it does not want this any more (410).
    Gone,
}

impl Receiver {
    /// `key` as Standard Webhooks writes it (`whsec_` and base64), or any words.
    pub fn webhook(name: &str, url: &str, events: &[String], key: &Secret) -> Result<Self> {
        let wrong = |what: String| wrong(name, what);
        let parsed: reqwest::Url = url.parse().map_err(|e| wrong(format!("{url:?} is no URL: {e}")))?;
        if !matches!(parsed.scheme(), "http" | "https") || !parsed.has_host() {
            return Err(wrong(format!("{url:?} is not an HTTP URL")));
        }
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(wrong("a password in a URL ends up in logs: the signature says who asks".into()));
        }
        let words = key.expose().trim();
        let bytes = match words.strip_prefix("whsec_") {
            Some(base64) => {
                STANDARD.decode(base64).map_err(|_| wrong("the secret after whsec_ is not base64".into()))?
            }
            None => words.as_bytes().to_vec(),
        };
        if bytes.len() < KEY_MIN {
            return Err(wrong(format!("the secret has less than {KEY_MIN} bytes")));
        }
        let way = Way::Webhook { url: parsed, key: Box::new(hmac::Key::new(hmac::HMAC_SHA256, &bytes)) };
        Ok(Self { name: name.into(), events: events_of(name, events)?, roles: Vec::new(), way })
    }

    /// `template` is the text of a template.
    pub fn registration(
        name: &str,
        template: &str,
        events: &[String],
        roles: Vec<String>,
        values: BTreeMap<String, String>,
        secret: Option<Secret>,
    ) -> Result<Self> {
        let template: Template =
            toml::from_str(template).map_err(|e| wrong(name, format!("its template is wrong: {}", e.message())))?;
        if let Some(missing) = template.needs.iter().find(|need| !values.contains_key(*need)) {
            return Err(wrong(name, format!("its template needs values.{missing}")));
        }
        let events = if events.is_empty() { vec!["delivered".into()] } else { events_of(name, events)? };
        let way = Way::Registration { template: Box::new(template), values, secret };
        Ok(Self { name: name.into(), events, roles, way })
    }

    pub fn wants(&self, announcement: &Announcement) -> bool {
        let has = |role: &String| {
            let roles = announcement.facts.get("roles").and_then(Value::as_array);
            roles.is_some_and(|roles| roles.iter().any(|r| r.as_str() == Some(role)))
        };
        self.events.contains(&announcement.kind) && (self.roles.is_empty() || self.roles.iter().any(has))
    }

    /// Where it goes, without what may be secret.
    pub fn target(&self) -> String {
        match &self.way {
            Way::Webhook { url, .. } => url.host_str().unwrap_or_default().to_owned(),
            Way::Registration { template, .. } => template.url.split('?').next().unwrap_or_default().to_owned(),
        }
    }

    /// One attempt, `seconds` since 1970.
    pub async fn send(&self, site: &str, announcement: &Announcement, seconds: i64) -> std::result::Result<(), Failed> {
        let request = match &self.way {
            Way::Webhook { url, key } => signed(url, key, site, announcement, seconds),
            Way::Registration { template, values, secret } => {
                rendered(&self.name, template, values, secret.as_ref(), announcement)
            }
        };
        let request = request.map_err(|e| Failed::Later(format!("{e}: {}", e.causes().join(": "))))?;
        let done: &[u16] = match &self.way {
            Way::Webhook { .. } => &[],
            Way::Registration { template, .. } => &template.done,
        };
        let answer = request.send().await.map_err(|e| Failed::Later(silent(&e)))?;
        let status = answer.status();
        match status.as_u16() {
            code if status.is_success() || done.contains(&code) => Ok(()),
            410 => Err(Failed::Gone),
            _ => Err(Failed::Later(format!("answered {status}{}", said(answer).await))),
        }
    }
}

/// A sentence without the URL, in which the site may have put what nobody else has to know.
fn silent(e: &reqwest::Error) -> String {
    if e.is_timeout() {
        return format!("did not answer within {} s", ANSWER.as_secs());
    }
    let mut cause: &dyn std::error::Error = e;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    format!("cannot be reached: {cause}")
}

/// The start of the answer, on one line.
async fn said(mut answer: reqwest::Response) -> String {
    let start = answer.chunk().await.ok().flatten().unwrap_or_default();
    let text: String =
        String::from_utf8_lossy(&start).chars().take(TOLD).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.trim().is_empty() { String::new() } else { format!(": {}", text.trim()) }
}

fn wrong(name: &str, what: String) -> Error {
    Error::config("config.invalid", format!("[handoff] {name}: {what}")).hint("see [handoff] in rackline.example.toml")
}

fn events_of(name: &str, events: &[String]) -> Result<Vec<String>> {
    if let Some(unknown) = events.iter().find(|e| !KINDS.contains(&e.as_str())) {
        return Err(wrong(name, format!("there is no event {unknown:?}; there are {}", KINDS.join(", "))));
    }
    match events {
        [] => Ok(super::announce::USUAL.iter().map(|e| (*e).to_owned()).collect()),
        events => Ok(events.to_vec()),
    }
}

fn client() -> Result<reqwest::Client> {
    // A redirect would take the signature to somebody else.
    let client = reqwest::Client::builder().timeout(ANSWER).redirect(reqwest::redirect::Policy::none()).no_proxy();
    client.build().or_fail(Kind::Internal, "handoff.client", || "cannot make an HTTP client")
}

/// What is signed: `ID.SECONDS.BODY` (Standard Webhooks, "Signature scheme").
pub fn signature(key: &hmac::Key, id: &str, seconds: i64, body: &str) -> String {
    let tag = hmac::sign(key, format!("{id}.{seconds}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(tag.as_ref()))
}

fn signed(
    url: &reqwest::Url,
    key: &hmac::Key,
    site: &str,
    announcement: &Announcement,
    seconds: i64,
) -> Result<reqwest::RequestBuilder> {
    let (id, body) = (announcement.id.to_string(), announcement.cloud_event(site).to_string());
    let signature = signature(key, &id, seconds, &body);
    let post = client()?.post(url.clone()).header("content-type", "application/cloudevents+json");
    let post = post.header("webhook-id", id).header("webhook-timestamp", seconds);
    Ok(post.header("webhook-signature", signature).body(body))
}

fn rendered(
    name: &str,
    template: &Template,
    values: &BTreeMap<String, String>,
    secret: Option<&Secret>,
    announcement: &Announcement,
) -> Result<reqwest::RequestBuilder> {
    let secret = secret.map_or("", |s| s.expose().trim());
    let facts = json!({ "host": announcement.facts, "values": values, "secret": secret, "event": announcement.kind });
    let text = |source: &str| template::render(name, source, &facts);
    let wrong = |what: &str| Error::config("handoff.template", format!("the template of {name} makes {what}"));
    let url: reqwest::Url = text(&template.url)?.trim().parse().map_err(|e| wrong("no URL").because(e))?;
    let method = template.method.to_uppercase().parse().map_err(|e| wrong("no HTTP method").because(e))?;
    let mut request = client()?.request::<reqwest::Url>(method, url);
    for (header, value) in &template.headers {
        let value = text(value)?.parse::<reqwest::header::HeaderValue>().map_err(|_| wrong("no header"))?;
        request = request.header(header, value);
    }
    Ok(request.body(text(&template.body)?))
}

#[cfg(test)]
mod tests {
    use super::super::passport::tests::large;
    use super::*;
    use crate::lifecycle::State;
    use crate::machine::Role;

    fn delivered() -> Announcement {
        let before = large(Role::Kvm);
        let mut after = before.clone();
        after.state = State::Retired;
        after.address = "10.77.2.9".parse().ok();
        Announcement { kind: "delivered".into(), ..Announcement::of(&before, &after, 1).unwrap() }
    }

    /// The example of the Standard Webhooks specification's reference libraries.
    #[test]
    fn the_signature_is_that_of_standard_webhooks() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap());
        assert_eq!(
            signature(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn every_example_template_renders_a_request() {
        for (name, text) in TEMPLATES {
            let needs: Template = toml::from_str(text).unwrap();
            let value = |need: &String| (need.clone(), format!("https://{need}.example"));
            let values: BTreeMap<String, String> = needs.needs.iter().map(value).collect();
            let missing = Receiver::registration(name, text, &[], vec![], BTreeMap::new(), None).err().unwrap();
            assert!(missing.message().contains(&needs.needs[0]), "{missing}");
            let secret = Secret::new("token-of-the-api\n");
            let request = rendered(name, &needs, &values, Some(&secret), &delivered()).unwrap().build().unwrap();
            let body = std::str::from_utf8(request.body().unwrap().as_bytes().unwrap()).unwrap();
            let json: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{name}: {e}: {body}"));
            assert!(json.to_string().contains("hv-0412"), "{name}: {body}");
            assert!(format!("{:?}", request.headers()).contains("token-of-the-api"), "{name}");
        }
    }

    #[test]
    fn a_template_that_lacks_a_fact_is_told_and_not_sent() {
        let text = "url = \"http://a/{{ host.nonsense }}\"";
        let template: Template = toml::from_str(text).unwrap();
        let error = rendered("x", &template, &BTreeMap::new(), None, &delivered()).err().unwrap();
        assert_eq!(error.code(), "template.render");
    }

    #[test]
    fn what_is_wrong_in_the_configuration_is_named() {
        let key = Secret::new("sixteen-bytes-at-least");
        let hook = |url: &str, events: &[&str], key: &Secret| {
            let events: Vec<String> = events.iter().map(|e| (*e).to_owned()).collect();
            Receiver::webhook("cmdb", url, &events, key).map(|r| r.events).map_err(|e| e.message().to_owned())
        };
        assert_eq!(hook("https://a/b", &[], &key).unwrap(), ["delivered", "broken", "released"]);
        for (url, events, key, word) in [
            ("ftp://a", &[][..], &key, "HTTP URL"),
            ("https://u:p@a/", &[], &key, "password"),
            ("https://a/", &["borken"], &key, "borken"),
            ("https://a/", &[], &Secret::new("short"), "16 bytes"),
            ("https://a/", &[], &Secret::new("whsec_%%%"), "base64"),
        ] {
            assert!(hook(url, events, key).unwrap_err().contains(word), "{url} {events:?}");
        }
    }

    #[test]
    fn a_registration_is_for_its_roles() {
        let text = "url = \"http://a/\"";
        let of = |roles: &[&str]| {
            let roles = roles.iter().map(|r| (*r).to_owned()).collect();
            Receiver::registration("x", text, &[], roles, BTreeMap::new(), None).unwrap().wants(&delivered())
        };
        assert!(of(&[]) && of(&["docker", "kvm"]) && !of(&["docker"]));
    }
}
