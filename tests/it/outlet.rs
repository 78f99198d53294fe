//! Outlets against net-snmp's `snmpd`, which plays a PDU with a script for its outlets, and against a small web service.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::hmac;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use rackline::config::Config;
use rackline::machine::Secret;
use rackline::outlet::{Outlets, Settings, SnmpSettings, WebhookSettings};

/// rPDUOutletControlOutletCommand of APC; the outlet's number follows.
const OUTLETS: &str = "1.3.6.1.4.1.318.1.1.12.3.3.1.1.4";
const COMMUNITY: &str = "community-of-the-pdu";
const PASSWORDS: &str = "authenticate-me\nencrypt-me-too\n";

/// A PDU: outlet `n` is the number in the file `n`; one with a file `locked.n` takes commands and stays as it is.
struct Pdu {
    agent: Child,
    dir: tempfile::TempDir,
    address: SocketAddr,
}

impl Drop for Pdu {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

impl Pdu {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let address = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let script = format!(
            "dir={at}; n=${{2##*.}}\n\
             case \"$1\" in\n\
             -s) [ -e \"$dir/$n\" ] || {{ echo not-writable; exit; }}; echo \"$n=$4\" >> \"$dir/log\"; [ -e \"$dir/locked.$n\" ] || echo \"$4\" > \"$dir/$n\" ;;\n\
             -g) [ -e \"$dir/$n\" ] && printf '%s\\ninteger\\n' \"$2\" && cat \"$dir/$n\" ;;\n\
             esac\n"
        );
        let config = format!(
            "agentaddress udp:{address}\n\
             rwcommunity {COMMUNITY}\n\
             createUser rackline SHA-256 authenticate-me AES encrypt-me-too\n\
             rwuser rackline priv\n\
             pass .{OUTLETS} /bin/sh {at}/outlet.sh\n"
        );
        fs::write(dir.path().join("outlet.sh"), script).unwrap();
        fs::write(dir.path().join("snmpd.conf"), config).unwrap();
        for outlet in ["7", "8"] {
            fs::write(dir.path().join(outlet), "1\n").unwrap();
        }
        let mut agent = Command::new("/usr/sbin/snmpd")
            .args(["-f", "-Le", "-C", "-c"])
            .arg(dir.path().join("snmpd.conf"))
            .env("SNMP_PERSISTENT_DIR", dir.path().join("kept"))
            .env("MIBS", "")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("snmpd is missing: `make setup` installs it");
        let mut lines = BufReader::new(agent.stderr.take().unwrap()).lines();
        assert!(lines.any(|line| line.is_ok_and(|line| line.starts_with("NET-SNMP version"))), "snmpd did not start");
        // Its log is read to the end, so that it never waits for room in the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { agent, dir, address }
    }

    fn outlet(&self, number: u8) -> Settings {
        let snmp = SnmpSettings {
            address: self.address,
            oid: format!("{OUTLETS}.{number}"),
            on: 1,
            off: 2,
            state_oid: None,
            state_on: None,
            state_off: None,
            user: None,
            authentication: None,
            privacy: None,
        };
        let name = format!("pdu-a/{number}");
        Settings { machine: "kvm-1".into(), name, snmp: Some(snmp), webhook: None, secret_file: None }
    }

    fn outlet_v3(&self, number: u8) -> Settings {
        let mut settings = self.outlet(number);
        settings.snmp.as_mut().unwrap().user = Some("rackline".into());
        settings
    }

    fn state(&self, file: &str) -> String {
        fs::read_to_string(self.dir.path().join(file)).unwrap_or_default()
    }
}

fn outlets(of: &[(&Settings, &str)]) -> Outlets {
    let mut outlets = Outlets::new(Duration::from_secs(2));
    for (settings, secret) in of {
        outlets.add(&settings.machine, settings.open(&Secret::new(*secret)).unwrap());
    }
    outlets
}

#[tokio::test]
async fn both_outlets_of_a_machine_go_off_and_on_by_either_version() {
    let pdu = Pdu::start();
    // One by SNMPv2c, one by SNMPv3 with SHA-256 and AES.
    let both = outlets(&[(&pdu.outlet(7), COMMUNITY), (&pdu.outlet_v3(8), PASSWORDS)]);
    assert!(both.has("kvm-1") && !both.has("kvm-2"));
    assert_eq!(both.switch("kvm-1", false).await.unwrap(), ["pdu-a/7", "pdu-a/8"]);
    assert_eq!((pdu.state("7"), pdu.state("8")), ("2\n".into(), "2\n".into()));
    both.switch("kvm-1", true).await.unwrap();
    // So already: nothing is sent.
    both.switch("kvm-1", true).await.unwrap();
    assert_eq!((pdu.state("7"), pdu.state("8")), ("1\n".into(), "1\n".into()));
    assert_eq!(pdu.state("log").lines().count(), 4, "{}", pdu.state("log"));
    assert_eq!(both.switch("kvm-2", false).await.unwrap_err().code(), "outlet.unknown");
}

#[tokio::test]
async fn a_machine_is_never_left_half_without_power() {
    let pdu = Pdu::start();
    fs::write(pdu.dir.path().join("locked.8"), "").unwrap();
    let both = outlets(&[(&pdu.outlet(7), COMMUNITY), (&pdu.outlet(8), COMMUNITY)]);
    let error = both.switch("kvm-1", false).await.unwrap_err();
    assert_eq!(error.code(), "outlet.not-applied");
    assert!(error.message().contains("pdu-a/8") && error.message().contains("in state 1"), "{error}");
    assert_eq!((pdu.state("7"), pdu.state("8")), ("1\n".into(), "1\n".into()));
    assert!(pdu.state("log").contains("7=2"), "it had been switched off: {}", pdu.state("log"));
}

#[tokio::test]
async fn what_is_wrong_with_a_pdu_is_named() {
    let pdu = Pdu::start();
    let fails = async |settings: &Settings, secret: &str| {
        outlets(&[(settings, secret)]).switch("kvm-1", false).await.unwrap_err().code().to_owned()
    };
    // What refuses a wrong password cannot be authenticated, so it may be anybody's and is not listened to.
    assert_eq!(fails(&pdu.outlet_v3(7), "authenticate-you\nencrypt-me-too").await, "outlet.unreachable");
    // There is no outlet 9.
    assert_eq!(fails(&pdu.outlet(9), COMMUNITY).await, "outlet.refused");
    // A wrong community is silence in SNMPv2c.
    assert_eq!(fails(&pdu.outlet(7), "public").await, "outlet.unreachable");
    assert_eq!(pdu.state("7"), "1\n");
}

/// What the web service was asked, with its signature.
pub type Asked = Arc<Mutex<Vec<(String, String)>>>;

pub async fn service(answer: (StatusCode, &'static str)) -> (Settings, Asked) {
    let asked = Asked::default();
    let log = asked.clone();
    let post = axum::routing::post(move |headers: HeaderMap, body: String| {
        let signature = headers.get("x-rackline-signature").and_then(|v| v.to_str().ok()).unwrap_or_default();
        log.lock().unwrap().push((signature.to_owned(), body));
        async move { answer.into_response() }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/outlet", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().route("/outlet", post)).await });
    let webhook = Some(WebhookSettings { url });
    let settings =
        Settings { machine: "kvm-1".into(), name: "rack-c/7".into(), snmp: None, webhook, secret_file: None };
    (settings, asked)
}

pub const KEY: &str = "a key of thirty-two characters!!";

#[tokio::test]
async fn a_webhook_is_signed_and_its_answer_checked() {
    let (settings, asked) = service((StatusCode::OK, r#"{"state":"off"}"#)).await;
    let hook = outlets(&[(&settings, KEY)]);
    hook.switch("kvm-1", false).await.unwrap();
    // It says that the outlet is off whatever it is asked for.
    assert_eq!(hook.switch("kvm-1", true).await.unwrap_err().code(), "outlet.not-applied");
    let asked = asked.lock().unwrap().clone();
    let key = hmac::Key::new(hmac::HMAC_SHA256, KEY.as_bytes());
    for ((signature, body), state) in asked.iter().zip(["off", "on"]) {
        let hex = signature.strip_prefix("sha256=").unwrap();
        let tag: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        hmac::verify(&key, body.as_bytes(), &tag).unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert!(body["machine"] == "kvm-1" && body["outlet"] == "rack-c/7" && body["state"] == state, "{body}");
        assert!(body["at"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    }
    assert_ne!(asked[0].1, asked[1].1);
}

#[tokio::test]
async fn what_is_wrong_with_a_webhook_is_named() {
    for (answer, code) in [
        ((StatusCode::OK, "<html>"), "outlet.refused"),
        ((StatusCode::FORBIDDEN, r#"{"state":"off"}"#), "outlet.refused"),
        ((StatusCode::OK, r#"{"state":"on"}"#), "outlet.not-applied"),
    ] {
        let (settings, _) = service(answer).await;
        assert_eq!(outlets(&[(&settings, KEY)]).switch("kvm-1", false).await.unwrap_err().code(), code, "{answer:?}");
    }
    let (mut settings, _) = service((StatusCode::OK, "")).await;
    settings.webhook = Some(WebhookSettings { url: "http://127.0.0.1:1/".into() });
    let error = outlets(&[(&settings, KEY)]).switch("kvm-1", false).await.unwrap_err();
    assert_eq!(error.code(), "outlet.unreachable");
}

#[test]
fn a_wrong_outlet_is_refused_when_the_configuration_is_loaded() {
    let example = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("rackline.example.toml")).unwrap();
    assert_eq!(Config::parse(&example).unwrap().power.outlets.len(), 2);
    for (right, wrong, why) in [
        ("oid = \"1.3.6.1.4.1.318.1.1.12.3.3.1.1.4.7\", on = 1", "oid = \"1.x\", on = 1", "no OID"),
        ("on = 1, off = 2 }", "on = 2, off = 2 }", "the same value"),
        ("on = 1, off = 2 }", "on = 1, off = 2, user = \"a\", privacy = \"rot13\" }", "no cipher"),
        ("http://10.77.3.2:8080", "http://user:pw@10.77.3.2:8080", "a password in a URL"),
        ("http://10.77.3.2:8080", "ftp://10.77.3.2:8080", "not an HTTP URL"),
        ("name = \"pdu-c1/8\"", "name = \"pdu-c1/7\"", "two [[power.outlets]]"),
        ("webhook = {", "#webhook = {", "one of them"),
    ] {
        assert!(example.contains(right), "{right}");
        let error = Config::parse(&example.replacen(right, wrong, 1)).unwrap_err();
        assert!(error.message().contains(why), "{wrong}: {error}");
    }
}
