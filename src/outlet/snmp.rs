//! An outlet of a PDU by SNMPv2c or SNMPv3 (RFC 3416, RFC 3414): one INTEGER that is set, and one that is read.

use std::time::Duration;

use async_snmp::{Auth, AuthProtocol, Client, ErrorKind, Oid, PrivProtocol, Retry, UdpHandle, UsmConfig, Value};
use tokio::time::{Instant, sleep};

use super::{LOOK, SnmpSettings, not_applied};
use crate::error::{Error, Result};
use crate::machine::Secret;

/// For one answer; asked three times.
const ANSWER: Duration = Duration::from_secs(2);
const REPEATS: u32 = 2;

pub struct Snmp {
    name: String,
    settings: SnmpSettings,
    auth: Auth,
    switch: Oid,
    state: Oid,
}

impl Snmp {
    /// What is wrong, as part of a sentence.
    pub fn new(name: &str, settings: &SnmpSettings, secret: &Secret) -> std::result::Result<Self, String> {
        let oid = |text: &str| text.trim_start_matches('.').parse::<Oid>().map_err(|_| format!("{text:?} is no OID"));
        let switch = oid(&settings.oid)?;
        let state = settings.state_oid.as_deref().map_or_else(|| Ok(switch.clone()), oid)?;
        if settings.on == settings.off {
            return Err("`on` and `off` are the same value".into());
        }
        Ok(Self { name: name.to_owned(), settings: settings.clone(), auth: auth(settings, secret)?, switch, state })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub async fn switch(&self, on: bool, confirm: Duration) -> Result<()> {
        let retry = Retry::fixed(REPEATS, Duration::ZERO).unwrap_or_else(|_| Retry::none());
        let client = Client::builder(self.settings.address, self.auth.clone()).request_timeout(ANSWER).retry(retry);
        let client = client.connect().await.map_err(|e| self.failed(e))?;
        let SnmpSettings { on: value_on, off: value_off, state_on, state_off, .. } = self.settings;
        let (value, wanted) =
            if on { (value_on, state_on.unwrap_or(value_on)) } else { (value_off, state_off.unwrap_or(value_off)) };
        if self.read(&client).await? == Some(wanted) {
            return Ok(());
        }
        client.set(&self.switch, Value::Integer(value)).await.map_err(|e| self.failed(e))?;
        let until = Instant::now() + confirm;
        loop {
            let state = self.read(&client).await?;
            if state == Some(wanted) {
                return Ok(());
            }
            if Instant::now() >= until {
                let state = state.map_or("in no known state".to_owned(), |state| format!("in state {state}"));
                return Err(not_applied(&self.name, on, &state));
            }
            sleep(LOOK).await;
        }
    }

    /// `None`: a value that is no number, or no such object.
    async fn read(&self, client: &Client<UdpHandle>) -> Result<Option<i32>> {
        let answer = client.get(&self.state).await.map_err(|e| self.failed(e))?;
        Ok(match answer.single().map(|binding| &binding.value) {
            Some(Value::Integer(state)) => Some(*state),
            Some(Value::Gauge32(state)) => i32::try_from(*state).ok(),
            _ => None,
        })
    }

    fn failed(&self, e: Box<async_snmp::Error>) -> Error {
        let Self { name, settings: SnmpSettings { address, .. }, .. } = self;
        let error = match e.kind() {
            // SNMPv2c drops what has the wrong community.
            ErrorKind::Timeout | ErrorKind::Network | ErrorKind::ConstructionTimeout => {
                Error::unreachable("outlet.unreachable", format!("the PDU {address} of outlet {name} does not answer"))
                    .hint(format!("check cable, address and community or password: ping {}", address.ip()))
            }
            ErrorKind::Auth | ErrorKind::Report => {
                Error::refused("outlet.auth", format!("the PDU {address} of outlet {name} does not let us in"))
                    .hint("check user, passwords and protocols in [[power.outlets]]")
            }
            _ => Error::refused("outlet.refused", format!("the PDU {address} refuses to switch outlet {name}"))
                .hint("check the OID, and that the community or user may write"),
        };
        error.because(e)
    }
}

fn auth(settings: &SnmpSettings, secret: &Secret) -> std::result::Result<Auth, String> {
    let Some(user) = &settings.user else {
        return Ok(Auth::v2c(secret.expose().trim_end().to_owned()));
    };
    let mut lines = secret.expose().lines();
    let (Some(first), Some(second)) = (lines.next(), lines.next()) else {
        return Err("SNMPv3 needs two passwords in the secret file, on a line each".into());
    };
    let said = settings.authentication.as_deref().unwrap_or("sha256");
    let authentication: AuthProtocol = said.parse().map_err(|_| format!("{said:?} is no way to authenticate"))?;
    let said = settings.privacy.as_deref().unwrap_or("aes128");
    let privacy: PrivProtocol = said.parse().map_err(|_| format!("{said:?} is no cipher of SNMPv3"))?;
    let usm = UsmConfig::new(user.clone()).auth_priv(authentication, first, privacy, second);
    usm.map(Auth::from).map_err(|e| format!("the passwords cannot be used: {e}"))
}
