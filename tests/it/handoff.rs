//! Others are told what becomes of machines: a receiver that works, one that fails and one that hangs; and a passport is verified
//! by the command line, with nothing else of the appliance.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rackline::agent::tls::Key;
use rackline::engine::announce::{Announce, ReceiverView};
use rackline::engine::{About, Engine};
use rackline::handoff::authority::{Authority, Holder, Sealed};
use rackline::handoff::receiver::Receiver;
use rackline::image::SigningKey;
use rackline::lifecycle::{Event, Expectation};
use rackline::link::Problem;
use rackline::machine::{MachineId, Secret, Serial};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::engine::{site, start_on};

/// Of a site that signs nothing else.
pub fn authority() -> Arc<Authority> {
    Arc::new(Authority::open(&Sealed::make("test").unwrap()).unwrap())
}

const KEY: &[u8] = b"the key of the receiver, long enough";

#[derive(Clone, Default)]
struct Seen {
    calls: Arc<Mutex<Vec<(String, HeaderMap, String)>>>,
    /// Paths that answer 500.
    fails: Arc<Mutex<Vec<String>>>,
}

impl Seen {
    fn at(&self, path: &str) -> Vec<(HeaderMap, String)> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|(p, ..)| p == path).map(|(_, headers, body)| (headers.clone(), body.clone())).collect()
    }
}

async fn take(State(seen): State<Seen>, uri: Uri, headers: HeaderMap, body: String) -> (StatusCode, &'static str) {
    let path = uri.path().to_owned();
    seen.calls.lock().unwrap().push((path.clone(), headers, body));
    if path == "/hangs" {
        std::future::pending::<()>().await;
    }
    match seen.fails.lock().unwrap().contains(&path) {
        true => (StatusCode::INTERNAL_SERVER_ERROR, "out of\norder"),
        false => (StatusCode::OK, ""),
    }
}

/// The receiver's side, and where it is reached.
async fn listen() -> (Seen, String) {
    let seen = Seen::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(take).with_state(seen.clone());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (seen, url)
}

fn hook(name: &str, url: &str) -> Receiver {
    let key = Secret::new(format!("whsec_{}", STANDARD.encode(KEY)));
    Receiver::webhook(name, &format!("{url}/{name}"), &["broken".into()], &key).unwrap()
}

async fn engine(dir: &Path, receivers: Vec<Receiver>) -> (Engine, CancellationToken) {
    let mut site = site(dir).await;
    site.announce = Announce::new("hall 3", receivers);
    start_on(site).await
}

async fn machine(engine: &Engine, name: &str) -> MachineId {
    let serial = Serial::parse(&format!("SN-{name}")).unwrap();
    let row = Expectation::new(name, serial.clone());
    engine.submit(About::Serial { serial, name: name.into() }, Event::Expected(row)).await.unwrap()
}

async fn breaks(engine: &Engine, name: &str) {
    let id = machine(engine, name).await;
    let problem =
        Problem { code: "fan".into(), title: format!("a fan of {name} stands still"), hint: None, causes: vec![] };
    engine.submit(About::Machine(id), Event::Misidentified { problem }).await.unwrap();
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn view(engine: &Engine, name: &str) -> ReceiverView {
    engine.receivers().await.unwrap().into_iter().find(|view| view.name == name).unwrap()
}

/// As any receiver of Standard Webhooks checks it.
fn checked(headers: &HeaderMap, body: &str) -> Value {
    let header = |name: &str| headers.get(name).unwrap().to_str().unwrap().to_owned();
    let message = format!("{}.{}.{body}", header("webhook-id"), header("webhook-timestamp"));
    let tag = STANDARD.decode(header("webhook-signature").strip_prefix("v1,").unwrap()).unwrap();
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, KEY), message.as_bytes(), &tag)
        .expect("the signature does not fit");
    assert_eq!(header("content-type"), "application/cloudevents+json");
    let event: Value = serde_json::from_str(body).unwrap();
    assert_eq!((&event["id"], &event["specversion"]), (&json!(header("webhook-id")), &json!("1.0")));
    event
}

#[tokio::test]
async fn a_receiver_that_fails_or_hangs_delays_nobody_and_gets_it_later() {
    let dir = tempfile::tempdir().unwrap();
    let (seen, url) = listen().await;
    seen.fails.lock().unwrap().push("/fails".into());
    let all = || vec![hook("works", &url), hook("fails", &url), hook("hangs", &url)];
    let (first, stop) = engine(dir.path(), all()).await;
    for name in ["m1", "m2"] {
        breaks(&first, name).await;
    }
    let calls =
        until("both events at the receiver that works", async || Some(seen.at("/works")).filter(|c| c.len() == 2))
            .await;
    let events: Vec<Value> = calls.iter().map(|(headers, body)| checked(headers, body)).collect();
    assert_eq!(events[0]["type"], "rackline.machine.broken");
    assert_eq!((&events[0]["subject"], &events[1]["subject"]), (&json!("m1"), &json!("m2")));
    assert_eq!(events[0]["source"], "/rackline/hall-3");
    assert_eq!(events[0]["data"]["problem"]["title"], "a fan of m1 stands still");
    let failing = until("both attempts that fail", async || {
        let fails = view(&first, "fails").await;
        let later = fails.standing.next_attempt? - fails.standing.oldest? >= 5_000;
        Some(fails).filter(|v| v.standing.waiting == 2 && seen.at("/fails").len() == 2 && later)
    })
    .await;
    let due = failing.standing.next_attempt.unwrap() - failing.standing.oldest.unwrap();
    assert!(due < 20_000, "the next attempt is {due} ms after the event");
    until("why it was not taken", async || {
        let last = view(&first, "fails").await.last?;
        (last.error.as_deref() == Some("answered 500 Internal Server Error: out of order")).then_some(())
    })
    .await;
    assert_eq!(view(&first, "hangs").await.standing.waiting, 2);

    // Nothing is lost with the process, and a stop waits for no receiver.
    let ids: Vec<String> =
        seen.at("/fails").iter().map(|(h, _)| h["webhook-id"].to_str().unwrap().to_owned()).collect();
    stop.cancel();
    drop(first);
    seen.fails.lock().unwrap().clear();
    let (second, stop) = engine(dir.path(), all()).await;
    second.tell_again("fails").await.unwrap();
    until("the messages that failed", async || Some(()).filter(|()| seen.at("/fails").len() == 4)).await;
    let again: Vec<String> =
        seen.at("/fails")[2..].iter().map(|(h, _)| h["webhook-id"].to_str().unwrap().to_owned()).collect();
    assert_eq!(again, ids, "an attempt that is repeated has the id of the first");
    until("an empty outbox", async || (view(&second, "fails").await.standing.waiting == 0).then_some(())).await;
    assert_eq!(seen.at("/works").len(), 2, "what was taken is not sent again");
    assert_eq!(second.tell_again("nobody").await.unwrap_err().code(), "handoff.receiver");
    stop.cancel();
}

#[tokio::test]
async fn a_registration_is_rendered_with_its_secret_and_taken_where_it_is_there_already() {
    let dir = tempfile::tempdir().unwrap();
    let (seen, url) = listen().await;
    let template = r#"
        needs = ["api"]
        method = "put"
        url = "{{ values.api }}/hosts/{{ host.name }}"
        done = [500]
        body = '{"name": {{ host.name | tojson }}, "event": {{ event | tojson }}}'
        [headers]
        Authorization = "Bearer {{ secret }}"
    "#;
    let values = BTreeMap::from([("api".to_owned(), url.clone())]);
    let secret = Some(Secret::new("token-of-the-api\n"));
    let receiver = Receiver::registration("cloud", template, &["broken".into()], vec![], values, secret).unwrap();
    seen.fails.lock().unwrap().push("/hosts/m1".into());
    let (engine, stop) = engine(dir.path(), vec![receiver]).await;
    breaks(&engine, "m1").await;
    let calls = until("the registration", async || Some(seen.at("/hosts/m1")).filter(|c| !c.is_empty())).await;
    assert_eq!(calls[0].0["authorization"], "Bearer token-of-the-api");
    assert_eq!(serde_json::from_str::<Value>(&calls[0].1).unwrap(), json!({ "name": "m1", "event": "broken" }));
    until("an empty outbox", async || (view(&engine, "cloud").await.standing.waiting == 0).then_some(())).await;
    let database = std::fs::read(dir.path().join("rackline.db")).unwrap();
    assert!(!database.windows(16).any(|bytes| bytes == b"token-of-the-api"));
    stop.cancel();
}

/// A passport as an older release wrote it is enough here: what is looked at is the command.
#[test]
fn the_command_line_verifies_a_passport_without_the_appliance() {
    let dir = tempfile::tempdir().unwrap();
    let key = SigningKey::generate().unwrap();
    let mut body: Value = serde_json::from_str(include_str!("../fixtures/passport/version1.json")).unwrap();
    let seal = |body: &Value| {
        let signature = hex::encode(key.sign(body.to_string().as_bytes()));
        json!({ "passport": body, "key": key.public().to_string(), "signature": signature })
    };
    let file = dir.path().join("passport.json");
    let verify = |content: &str, key: &str| {
        std::fs::write(&file, content).unwrap();
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_rackline"))
            .args(["passport", "verify", file.to_str().unwrap(), "--key", key])
            .env("RACKLINE_URL", "http://127.0.0.1:9")
            .output()
            .unwrap();
        (out.status.code(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
    };
    let good = serde_json::to_string_pretty(&seal(&body)).unwrap();
    let public = key.public().to_string();
    let (code, said) = verify(&good, &public);
    assert!(code == Some(0) && said.starts_with("good: m1 as kvm-1"), "{said}");
    let (code, said) = verify(&good.replace("S4YNNE0N801234", "S4YNNE0N801235"), &public);
    assert!(code == Some(1) && said.contains("which field it was cannot be told"), "{said}");
    let (code, said) = verify(&good, &SigningKey::generate().unwrap().public().to_string());
    assert!(code == Some(1) && said.contains("is unchanged, but was signed by key"), "{said}");
    let (code, said) = verify(&good[..good.len() / 2], &public);
    assert!(code == Some(2) && said.contains("this is no passport"), "{said}");
    body["version"] = json!(99);
    let (code, said) = verify(&seal(&body).to_string(), &public);
    assert!(code == Some(2) && said.contains("has version 99"), "{said}");

    let older = file.with_file_name("older.json");
    std::fs::write(&older, &good).unwrap();
    body["version"] = json!(1);
    body["inventory"]["memory"]["dimms"][1]["serial"] = json!("DD99");
    std::fs::write(&file, seal(&body).to_string()).unwrap();
    let run = |args: &[&str]| {
        let out =
            std::process::Command::new(env!("CARGO_BIN_EXE_rackline")).arg("passport").args(args).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let (old, new) = (older.to_str().unwrap(), file.to_str().unwrap());
    assert!(run(&["compare", old, new]).contains("DIMM A2: changed since delivery"), "{}", run(&["compare", old, new]));
    assert!(run(&["compare", old, old]).contains("nothing has changed in m1"));
    assert!(run(&["show", old, "--html"]).contains("<h1>m1</h1>"));
}

/// OpenSSL as both ends: it takes the certificates for what they are, and for nothing else.
#[test]
fn openssl_believes_a_host_by_its_name_and_a_client_of_the_site() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let addresses = ["127.0.0.1".parse().unwrap(), "fd00::7".parse().unwrap()];
    let holders = [
        ("host", Holder::Host { hostname: "hv-1.site.example", addresses: &addresses }),
        ("client", Holder::Client { name: "ops" }),
    ];
    write("ca.pem", authority.certificate());
    for (who, holder) in &holders {
        let key = Key::make(who).unwrap();
        write(&format!("{who}.pem"), &authority.sign(who, holder, &key.request).unwrap().certificate);
        write(&format!("{who}.key"), &key.pem);
    }
    let openssl = |args: &[&str]| {
        let out = std::process::Command::new("openssl").args(args).current_dir(dir.path()).output().unwrap();
        (out.status.success(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
    };
    let verify = |args: &[&str]| openssl(&[&["verify", "-x509_strict", "-CAfile", "ca.pem"], args].concat());
    for good in [
        &["-purpose", "sslserver", "-verify_hostname", "hv-1.site.example", "host.pem"][..],
        &["-purpose", "sslserver", "-verify_ip", "127.0.0.1", "host.pem"],
        &["-purpose", "sslserver", "-verify_ip", "fd00::7", "host.pem"],
        &["-purpose", "sslclient", "host.pem"],
        &["-purpose", "sslclient", "client.pem"],
    ] {
        let (fine, said) = verify(good);
        assert!(fine, "{good:?}: {said}");
    }
    for bad in [
        &["-purpose", "sslserver", "client.pem"][..],
        &["-verify_hostname", "hv-2.site.example", "host.pem"],
        &["-verify_ip", "127.0.0.2", "host.pem"],
    ] {
        let (fine, said) = verify(bad);
        assert!(!fine, "{bad:?}: {said}");
    }
    let (fine, said) = openssl(&["x509", "-in", "host.pem", "-noout", "-text"]);
    // What libvirt's own look at a certificate wants.
    assert!(fine && said.contains("Digital Signature, Key Encipherment"), "{said}");
    let key = openssl(&["pkey", "-in", "host.key", "-pubout"]).1;
    assert_eq!(openssl(&["x509", "-in", "host.pem", "-pubkey", "-noout"]).1, key);
}
