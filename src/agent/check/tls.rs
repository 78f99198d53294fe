//! The services of the host answer by TLS with the host's certificate, take a client of the site, and refuse one without a
//! certificate. Each is asked in its own words, so that what answers is what should.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::crypto::aws_lc_rs as provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Found, Visit};
use crate::agent::Agent;
use crate::agent::tls::{self, Key, Place};
use crate::error::{Error, Kind, OrFail, Result};
use crate::link::{Check, Verify};
use crate::machine::{Role, Severity, Who};
use crate::role::HandOff;

const START: Duration = Duration::from_secs(300);
const ANSWER: Duration = Duration::from_secs(60);
const WORDS: usize = 4096;

/// A key, its certificate, and the services made to show it. `false`: there is nothing to look at.
pub async fn prepare(agent: &Agent, order: &Verify, visit: &mut Visit<'_>) -> bool {
    let work = async {
        let key = Key::make(&agent.appliance.machine().to_string())?;
        let signed = agent.appliance.certificate(&key.request).await?;
        let roles = services(order);
        Place::new("/".as_ref()).keep(&key.pem, &signed, &roles)?;
        for role in roles {
            tls::serve(role).await?;
        }
        Ok(Found::Good(format!("for {}, taken by {}", order.hostname, order.role)))
    };
    let expected = "a certificate of the site, taken by each service";
    ask(visit, "tls.certificate", expected.into(), START, work).await
}

/// Not declared, since it follows from how the site hands over; holds the host back like one that is.
async fn ask(
    visit: &mut Visit<'_>,
    id: &str,
    expected: String,
    deadline: Duration,
    work: impl Future<Output = Result<Found>>,
) -> bool {
    visit.meter.step(format!("checking {id}"), 0);
    let start = Instant::now();
    let (passed, found) = match tokio::time::timeout(deadline, work).await {
        Ok(Ok(Found::Good(found))) => (true, found),
        Ok(Ok(Found::Bad(found) | Found::Skipped(found) | Found::Value(_, found))) => (false, found),
        Ok(Err(e)) => (false, format!("{e}: {}", e.causes().join(": "))),
        Err(_) => (false, format!("no answer within {} s", deadline.as_secs())),
    };
    let hint = "see `ss -ltnp` and the journal of the service on the host: `journalctl -u libvirtd -u docker`";
    visit.checks.push(Check {
        id: id.to_owned(),
        passed,
        expected,
        found,
        severity: Severity::Fault,
        who: Who::Operator,
        why: "who works with the host from afar has to know that it is this host, and nobody else may".into(),
        seconds: start.elapsed().as_secs_f64(),
        hint: (!passed).then(|| hint.to_owned()),
        ..Check::default()
    });
    passed
}

/// Those of the roles that are handed over as services; all where nothing is said of it.
fn services(order: &Verify) -> Vec<Role> {
    let wanted = &order.setup.hand_off;
    let service = |role: Role| match role {
        Role::Kvm => HandOff::Libvirt,
        Role::Docker => HandOff::Docker,
        Role::Ovs => HandOff::Ovsdb,
    };
    order.role.iter().filter(|role| wanted.is_empty() || wanted.contains(&service(*role))).collect()
}

pub async fn check(order: &Verify, visit: &mut Visit<'_>) {
    for role in services(order) {
        let (id, port) = match role {
            Role::Kvm => ("kvm.tls", tls::LIBVIRT),
            Role::Docker => ("docker.tls", tls::DOCKER),
            Role::Ovs => ("ovs.tls", tls::OVSDB),
        };
        let expected = format!("port {port} answers a client of the site as {}, and nobody else", order.hostname);
        ask(visit, id, expected, ANSWER, endpoint(role, port, order.hostname.to_string())).await;
    }
}

async fn endpoint(role: Role, port: u16, hostname: String) -> Result<Found> {
    let place = Place::new("/".as_ref());
    // A service that was told to listen a moment ago may need another one.
    let said = loop {
        match talk(&place, role, port, &hostname, true).await {
            Ok(said) => break said,
            // Ends with the deadline of the question.
            Err(e) if e.kind() == Kind::Unreachable => tokio::time::sleep(Duration::from_millis(500)).await,
            Err(e) => return Ok(Found::Bad(format!("{e}: {}", e.causes().join(": ")))),
        }
    };
    if let Ok(said) = talk(&place, role, port, &hostname, false).await {
        return Ok(Found::Bad(format!("it also answers a client without certificate: {said}")));
    }
    Ok(Found::Good(said))
}

/// What the service says of itself. `Kind::Unreachable`: nobody listens.
async fn talk(place: &Place, role: Role, port: u16, hostname: &str, with_certificate: bool) -> Result<String> {
    let lost = || format!("port {port} does not speak as it should");
    let socket = TcpStream::connect(("127.0.0.1", port)).await;
    let socket = socket.or_fail(Kind::Unreachable, "tls.connect", || format!("nobody listens on port {port}"))?;
    let name = ServerName::try_from(hostname.to_owned()).or_fail(Kind::Internal, "tls.name", lost)?;
    let connector = TlsConnector::from(Arc::new(config(place, with_certificate)?));
    let mut stream = connector.connect(name, socket).await.or_fail(Kind::Refused, "tls.handshake", lost)?;
    let (ask, good): (&[u8], &str) = match role {
        // A byte 1 once the client's certificate was looked at (libvirt, src/rpc/virnetserverclient.c).
        Role::Kvm => (b"", "\u{1}"),
        Role::Docker => (b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n", "200 OK"),
        // RFC 7047 section 4.1.11.
        Role::Ovs => (br#"{"method":"echo","params":["rackline"],"id":"rackline"}"#, "\"rackline\""),
    };
    stream.write_all(ask).await.or_fail(Kind::Refused, "tls.lost", lost)?;
    let mut words = vec![0; WORDS];
    let mut len = 0;
    loop {
        let room = words.get_mut(len..).unwrap_or_default();
        let read = stream.read(room).await.or_fail(Kind::Refused, "tls.lost", lost)?;
        len += read;
        let said = String::from_utf8_lossy(words.get(..len).unwrap_or_default()).into_owned();
        if said.contains(good) {
            return Ok(format!("port {port}, TLS, as {hostname}"));
        }
        if read == 0 || len == WORDS {
            let start: String = said.chars().filter(|c| !c.is_control()).take(80).collect();
            return Err(Error::refused("tls.answer", format!("port {port} said {start:?}")));
        }
    }
}

fn config(place: &Place, with_certificate: bool) -> Result<ClientConfig> {
    let failed = || "the certificates of this host cannot be read";
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(place.authority()).or_fail(Kind::Internal, "tls.files", failed)?;
    roots.add(authority).or_fail(Kind::Internal, "tls.files", failed)?;
    let config = ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_safe_default_protocol_versions()
        .or_fail(Kind::Internal, "tls.versions", failed)?
        .with_root_certificates(roots);
    if !with_certificate {
        return Ok(config.with_no_client_auth());
    }
    let certificate =
        CertificateDer::from_pem_file(place.certificate()).or_fail(Kind::Internal, "tls.files", failed)?;
    let key = PrivateKeyDer::from_pem_file(place.key()).or_fail(Kind::Internal, "tls.files", failed)?;
    config.with_client_auth_cert(vec![certificate], key).or_fail(Kind::Internal, "tls.files", failed)
}
