//! A session with a BMC by Redfish: who we are, for every request (DSP0266, “Authentication”).
//!
//! A session of the SessionService is preferred: BMCs hash passwords slowly, and some count every Basic request as a log-in.
//! Basic is for BMCs without sessions and for those that have none left. A token that is refused is renewed once; a refused
//! password ends the command at once, so that no account is locked.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use reqwest::header::LOCATION;
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::time::{Duration, Instant};

use super::doc::{Doc, Properties, reference};
use super::find::Found;
use super::http::{Call, Credentials, Http, Payload, Reply, TOKEN};
use super::tls::{Fingerprint, Pin, Trust};
use crate::bmc::Access;
use crate::error::{Error, Result};
use crate::machine::{Identity, Secret};

/// The only path that is not taken from a link (DSP0266, “Redfish-defined URIs”).
const ROOT: &str = "/redfish/v1/";
/// How long the farewell may take; a BMC that misses it ends the session by time-out.
const FAREWELL: Duration = Duration::from_millis(1500);

struct Login {
    credentials: Credentials,
    /// Where the session is, to end it.
    session: Option<String>,
}

/// Why there is no session.
enum NoSession {
    Refused(Error),
    /// The BMC has no sessions, or none left.
    Use(&'static str),
}

pub struct Session {
    http: Http,
    user: String,
    password: Secret,
    login: Login,
    root: Doc,
    pub(super) machine: Identity,
    pub(super) found: Option<Found>,
}

impl Session {
    pub async fn open(access: &Access, address: SocketAddr, trust: Trust, deadline: Instant) -> Result<Self> {
        let pin: Arc<Pin> = Pin::new(trust);
        let mut http = Http::new(address, pin, deadline)?;
        let (user, password) = (access.user.clone(), access.password.clone());
        let root = root(&mut http, &user, &password).await?;
        let login = log_in(&mut http, &root, &user, &password).await?;
        let machine = access.machine.clone();
        Ok(Self { http, user, password, login, root, machine, found: None })
    }

    /// For the next command, which may be for another machine of this BMC.
    pub fn turn_to(&mut self, machine: &Identity) {
        if self.machine != *machine {
            self.machine.clone_from(machine);
            self.found = None;
        }
    }

    pub fn whose(&self) -> &str {
        self.http.whose()
    }

    pub fn last_used(&self) -> Instant {
        self.http.last_used()
    }

    /// For the next command: its deadline, and nothing heard yet.
    pub fn begin(&mut self, deadline: Instant) {
        self.http.begin(deadline);
    }

    /// Whether the BMC has answered since [`Session::begin`].
    pub fn heard(&self) -> bool {
        self.http.heard()
    }

    pub fn deadline(&self) -> Instant {
        self.http.deadline()
    }

    /// Of the BMC, as we reach it.
    pub(super) fn address(&self) -> IpAddr {
        self.http.address().ip()
    }

    /// What the BMC proved itself with.
    pub fn certificate(&self) -> Option<Fingerprint> {
        self.http.pin().seen()
    }

    /// The service root, as it was when the session began.
    pub(super) fn root(&self) -> &Doc {
        &self.root
    }

    /// A link of the BMC as a path on it.
    pub(super) fn local(&self, link: &str) -> Result<String> {
        self.http.local(link)
    }

    /// One request as the user that we are, and its answer whatever the status, 401 apart.
    pub(super) async fn exchange(&mut self, call: &Call) -> Result<Reply> {
        let reply = self.http.send(call, &self.login.credentials).await?;
        if reply.status != StatusCode::UNAUTHORIZED {
            return Ok(reply);
        }
        if let Credentials::Basic { .. } = self.login.credentials {
            return Err(wrong_password(self.http.whose(), &reply));
        }
        // The session has expired, or the BMC was restarted. The request was not carried out.
        tracing::debug!(bmc = self.http.whose(), "the session is not known any more");
        self.login = log_in(&mut self.http, &self.root, &self.user, &self.password).await?;
        let reply = self.http.send(call, &self.login.credentials).await?;
        match reply.status {
            StatusCode::UNAUTHORIZED => Err(wrong_password(self.http.whose(), &reply)),
            _ => Ok(reply),
        }
    }

    /// Gives the session slot back to the BMC, which has few.
    pub async fn close(mut self) {
        let Some(session) = self.login.session.take() else { return };
        self.http.begin(Instant::now() + FAREWELL);
        let farewell = Call::new(Method::DELETE, session, Payload::None);
        if let Err(error) = self.http.send(&farewell, &self.login.credentials).await {
            tracing::debug!(bmc = self.http.whose(), ?error, "the BMC did not confirm the end of the session");
        }
    }
}

/// Open to everybody by the specification; some BMCs want a password all the same.
async fn root(http: &mut Http, user: &str, password: &Secret) -> Result<Doc> {
    let call = Call::get(ROOT);
    let mut reply = http.send(&call, &Credentials::Nobody).await?;
    if matches!(reply.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        reply = http.send(&call, &basic(user, password)).await?;
        if reply.status == StatusCode::UNAUTHORIZED {
            return Err(wrong_password(http.whose(), &reply));
        }
    }
    if !reply.status.is_success() {
        let message = format!("{} has no Redfish service: {ROOT} is answered with {}", http.whose(), reply.status);
        return Err(
            Error::refused("bmc.unsupported", message).hint("turn Redfish on in the BMC, or use its IPMI address")
        );
    }
    let body = reply.json(http.whose())?;
    if !body.is_object() {
        let message = format!("{} has no Redfish service: {ROOT} is no document", http.whose());
        return Err(Error::refused("bmc.malformed", message).hint("check the address: is it that of the BMC?"));
    }
    Ok(Doc { path: reply.path.clone(), etag: None, body })
}

async fn log_in(http: &mut Http, root: &Doc, user: &str, password: &Secret) -> Result<Login> {
    match new_session(http, root, user, password).await {
        Ok(login) => Ok(login),
        Err(NoSession::Refused(error)) => Err(error),
        Err(NoSession::Use(why)) => {
            tracing::debug!(bmc = http.whose(), why, "Basic is used");
            Ok(Login { credentials: basic(user, password), session: None })
        }
    }
}

async fn new_session(http: &mut Http, root: &Doc, user: &str, password: &Secret) -> Result<Login, NoSession> {
    let Some(sessions) = root.property("Links").and_then(|links| links.link("Sessions")) else {
        return Err(NoSession::Use("it has no sessions"));
    };
    let body = json!({ "UserName": user, "Password": password.expose() });
    let call = Call::new(Method::POST, sessions, Payload::Json(body));
    let reply = match http.send(&call, &Credentials::Nobody).await {
        Ok(reply) => reply,
        Err(e) if e.code() == "bmc.busy" => return Err(NoSession::Use("its sessions are busy")),
        Err(e) => return Err(NoSession::Refused(e)),
    };
    if !reply.status.is_success() {
        return Err(no_session(http.whose(), &reply));
    }
    let Some(token) = reply.headers.get(TOKEN) else {
        return Err(NoSession::Use("it makes sessions without a token"));
    };
    let location = reply.header(LOCATION).map(str::to_owned);
    let location = location.or_else(|| reply.json("").ok().as_ref().and_then(reference).map(str::to_owned));
    // A session that has no name, or is elsewhere, ends by its time-out.
    let session = location.and_then(|location| http.local(&location).ok());
    Ok(Login { credentials: Credentials::token(token), session })
}

/// A wrong password must not be tried a second time by another way.
fn no_session(whose: &str, reply: &Reply) -> NoSession {
    let (said, ids) = reply.complaint();
    let about = |words: &[&str]| ids.iter().any(|id| words.iter().any(|word| id.contains(word)));
    match reply.status {
        _ if about(&["SessionLimitExceeded", "NoFreeSession", "MaxSession"]) => {
            NoSession::Use("it has no session left")
        }
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
            NoSession::Use("it has no sessions")
        }
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => NoSession::Use("its sessions are busy"),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => NoSession::Refused(wrong_password(whose, reply)),
        // iLO answers a wrong password with 400 and `iLO.0.10.UnauthorizedLoginAttempt`.
        StatusCode::BAD_REQUEST if about(&["Unauthorized", "Login", "Credential", "Password"]) => {
            NoSession::Refused(wrong_password(whose, reply))
        }
        status => NoSession::Refused(
            Error::refused("bmc.session", format!("{whose} makes no session ({status}): {said}"))
                .hint("restart the BMC, or use its IPMI address"),
        ),
    }
}

fn wrong_password(whose: &str, reply: &Reply) -> Error {
    let (said, _) = reply.complaint();
    let said = if said.is_empty() { String::new() } else { format!(": {said}") };
    Error::refused("bmc.auth", format!("{whose} refused the user or the password{said}"))
        .hint("enter the right user and password of the BMC")
}

fn basic(user: &str, password: &Secret) -> Credentials {
    Credentials::Basic { user: user.to_owned(), password: password.clone() }
}
