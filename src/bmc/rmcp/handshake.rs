//! From nothing to the keys of a session: cipher suites, Open Session, RAKP 1 to 4 (sections 13.17 to 13.24).
//!
//! Each sending has its own message tag, and only the answer to the last one counts: a BMC makes a new random number for
//! each RAKP 1 it sees, so that an answer to an earlier one leads nowhere. Where BMC and console lose each other all the
//! same (RAKP 3 refused although RAKP 2 proved the password), the set-up starts again.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::Duration;

use aws_lc_rs::rand;
use tokio::time::{Instant, sleep};

use super::crypto::{Keys, Suite, equal};
use super::packet::{Setup, sessionless, sessionless_response, setup, setup_payload};
use super::wire::Wire;
use crate::bmc::Access;
use crate::error::{Error, Result};
use crate::ipmi::app::{GetCipherSuites, Privilege, suite_ids};
use crate::ipmi::{Ask, Fields};

/// What a session is made of.
pub struct Established {
    pub suite: Suite,
    pub keys: Keys,
    /// Session id that the BMC expects, and the one that we expect.
    pub remote: u32,
    pub local: u32,
}

/// Status codes of the set-up messages (table 13-15), sorted by what follows from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    /// No answer.
    Silent,
    /// No session slot free; some become free in a while.
    Full,
    /// BMC and console do not speak of the same session: start again.
    Lost,
    Suite,
    Role,
    Name,
    Password,
    /// Two-key log-in: the BMC has a K_g that we do not know.
    BmcKey,
    Other(u8),
    Crypto,
}

impl Broken {
    fn of(status: u8) -> Self {
        match status {
            0x01 | 0x0b => Self::Full,
            0x02 | 0x08 => Self::Lost,
            0x04..=0x07 | 0x10 | 0x11 => Self::Suite,
            0x09 | 0x0a => Self::Role,
            0x0c | 0x0d => Self::Name,
            0x0f => Self::Password,
            other => Self::Other(other),
        }
    }
}

/// Pause before a new try when all session slots are taken or the last set-up broke off.
const AGAIN: Duration = Duration::from_millis(300);
/// How often a set-up that broke off is begun again.
const LOST_MAX: u32 = 4;
/// How long RAKP 1 and RAKP 3 wait for their answers, in first waits, before the set-up is begun again: the BMC may not
/// know the session (a forged or late Open Session answer), and many do not answer a second RAKP 3 when their answer to
/// the first was lost.
const STAGE: u32 = 5;
/// Role byte: look the user up by name only, not by name and privilege together.
const NAME_ONLY: u8 = 0x10;

/// `known` is the suite that this BMC took last time. Without it the stronger one is tried first, and a BMC that does not
/// answer that is asked what it has: most have suite 17 by now, and the question would cost each of them a round trip.
pub async fn open(wire: &mut Wire, access: &Access, whose: &str, known: Option<Suite>) -> Result<Established> {
    let limit = Instant::now() + wire.pace().open;
    let (mut suite, others) = match known {
        Some(suite) => (suite, vec![]),
        None => (Suite::Seventeen, vec![Suite::Three]),
    };
    let mut suites = others.into_iter();
    let mut guessed = known.is_none();
    let mut role = Privilege::Administrator;
    let mut lost = 0;
    loop {
        let heard_by = if guessed { limit.min(Instant::now() + wire.pace().first * STAGE) } else { limit };
        let broken = match attempt(wire, access, suite, role, [heard_by, limit]).await {
            Ok(established) => return Ok(established),
            Err(broken) => broken,
        };
        let can_wait = Instant::now() + AGAIN < limit;
        match broken {
            Broken::Role if role == Privilege::Administrator => role = Privilege::Operator,
            Broken::Suite => suite = suites.next().ok_or_else(|| no_suite(whose))?,
            Broken::Silent if guessed => {
                guessed = false;
                suites = offered(wire, limit).await.ok_or_else(|| silent(wire, whose))?.into_iter();
                suite = suites.next().ok_or_else(|| no_suite(whose))?;
            }
            Broken::Full if can_wait => sleep(AGAIN).await,
            Broken::Lost if can_wait && lost < LOST_MAX => {
                lost += 1;
                sleep(AGAIN).await;
            }
            broken => return Err(failure(broken, wire, access, whose)),
        }
    }
}

/// The suites to try, strongest first; empty where the BMC has none of ours, `None` where it does not answer. A BMC that
/// refuses the question is given the mandatory suite 3, then 17.
async fn offered(wire: &mut Wire, limit: Instant) -> Option<Vec<Suite>> {
    let mut records = Vec::new();
    for list in 0..GetCipherSuites::LISTS {
        let ask = GetCipherSuites { list };
        let request = ask.request();
        let response = wire
            .exchange(
                wire.pace().first,
                limit,
                |_| sessionless(&request, list),
                |packet| {
                    let (seq, response) = sessionless_response(packet)?;
                    (seq == list && response.netfn == request.netfn | 1 && response.cmd == request.cmd).then_some(Ok::<
                        _,
                        Infallible,
                    >(
                        response,
                    ))
                },
            )
            .await?
            .ok()?;
        match ask.settle(&response) {
            Ok(part) => {
                records.extend_from_slice(&part);
                if part.len() < GetCipherSuites::FULL {
                    break;
                }
            }
            Err(_) if records.is_empty() => return Some(vec![Suite::Three, Suite::Seventeen]),
            Err(_) => break,
        }
    }
    let ids = suite_ids(&records);
    Some([Suite::Seventeen, Suite::Three].into_iter().filter(|s| ids.contains(&s.number())).collect())
}

/// The first answer has to come by `heard_by`, the last by `limit`.
async fn attempt(
    wire: &mut Wire,
    access: &Access,
    suite: Suite,
    role: Privilege,
    [heard_by, limit]: [Instant; 2],
) -> Result<Established, Broken> {
    let local = random_id()?;
    let remote = open_session(wire, suite, local, heard_by).await?;
    let user = access.user.as_bytes();
    let mut who = vec![role as u8 | NAME_ONLY, user.len() as u8];
    who.extend(user);
    let party = Party { suite, password: access.password.expose().as_bytes(), who, local, remote };

    let mut console_random = [0u8; 16];
    rand::fill(&mut console_random).map_err(|_| Broken::Crypto)?;
    let answer = party.rakp1(wire, &console_random, limit).await;
    if let Err(Broken::Password) = answer {
        // So that the BMC drops the half-open session now and not by time-out.
        wire.tell(&setup(Setup::Rakp3, &party.rakp3(0, 0x0f, &[]))).await;
    }
    let answer = answer?;
    let session_key = suite.mac(party.password, &[&console_random, &answer.random, &party.who]);
    let check = suite.mac(&session_key, &[&console_random, &remote.to_le_bytes(), &answer.guid]);
    let check = check.get(..suite.check_length()).ok_or(Broken::Crypto)?;
    party.finish(wire, &answer, check, limit).await?;
    let keys = Keys::derive(suite, &session_key).map_err(|_| Broken::Crypto)?;
    Ok(Established { suite, keys, remote, local })
}

fn random_id() -> Result<u32, Broken> {
    let mut id = [0u8; 4];
    rand::fill(&mut id).map_err(|_| Broken::Crypto)?;
    // 0 stands for "outside of a session".
    Ok(u32::from_le_bytes(id).max(1))
}

/// Start of each answer: tag, status, two bytes, our session id. `Ok` with the rest when all is well.
fn answer<'a>(payload: &'a [u8], tag: Option<u8>, local: u32) -> Option<Result<Fields<'a>, Broken>> {
    let mut fields = Fields(payload);
    let (got, status, _reserved) = (fields.u8()?, fields.u8()?, fields.u16()?);
    if tag.is_some_and(|tag| tag != got) {
        return None;
    }
    if status != 0 {
        // Some BMCs leave the id out of an error.
        return fields.u32().is_none_or(|id| id == local).then(|| Err(Broken::of(status)));
    }
    (fields.u32()? == local).then_some(Ok(fields))
}

async fn open_session(wire: &mut Wire, suite: Suite, local: u32, limit: Instant) -> Result<u32, Broken> {
    let last = AtomicU8::new(0);
    let first = wire.pace().first;
    let found = wire.exchange(
        first,
        limit,
        |tag| {
            last.store(tag, Relaxed);
            // 0: the highest privilege that the suite allows.
            let mut payload = vec![tag, 0, 0, 0];
            payload.extend(local.to_le_bytes());
            for (kind, algorithm) in (0u8..).zip(suite.algorithms()) {
                payload.extend([kind, 0, 0, 8, algorithm, 0, 0, 0]);
            }
            setup(Setup::OpenRequest, &payload)
        },
        |packet| {
            Some(match answer(setup_payload(packet, Setup::OpenResponse)?, Some(last.load(Relaxed)), local)? {
                // A session id of 0 would mean no session.
                Ok(mut fields) => Ok(fields.u32().filter(|id| *id != 0)?),
                Err(broken) => Err(broken),
            })
        },
    );
    found.await.unwrap_or(Err(Broken::Silent))
}

/// What stays the same through RAKP 1 to 4.
struct Party<'a> {
    suite: Suite,
    password: &'a [u8],
    /// Role, length of the name, name: as sent in RAKP 1 and signed in all codes.
    who: Vec<u8>,
    local: u32,
    remote: u32,
}

/// What the BMC says of itself, once its code has shown that it knows the password.
struct Rakp2 {
    random: [u8; 16],
    guid: [u8; 16],
}

impl Party<'_> {
    async fn rakp1(&self, wire: &mut Wire, console_random: &[u8; 16], limit: Instant) -> Result<Rakp2, Broken> {
        let last = AtomicU8::new(0);
        let first = wire.pace().first;
        let found = wire.exchange(
            first,
            limit.min(Instant::now() + first * STAGE),
            |tag| {
                last.store(tag, Relaxed);
                let mut payload = vec![tag, 0, 0, 0];
                payload.extend(self.remote.to_le_bytes());
                payload.extend(console_random);
                let (role, name) = self.who.split_at(1);
                payload.extend(role);
                payload.extend([0, 0]);
                payload.extend(name);
                setup(Setup::Rakp1, &payload)
            },
            |packet| {
                Some(match answer(setup_payload(packet, Setup::Rakp2)?, Some(last.load(Relaxed)), self.local)? {
                    Ok(mut fields) => {
                        let (random, guid) = (fields.array()?, fields.array()?);
                        let code = fields.take(self.suite.code_length())?;
                        match equal(&self.code2(console_random, &random, &guid), code) {
                            true => Ok(Rakp2 { random, guid }),
                            false => Err(Broken::Password),
                        }
                    }
                    Err(broken) => Err(broken),
                })
            },
        );
        found.await.unwrap_or(Err(Broken::Lost))
    }

    /// Key exchange authentication code of RAKP 2.
    fn code2(&self, console_random: &[u8; 16], random: &[u8; 16], guid: &[u8; 16]) -> Vec<u8> {
        let (local, remote) = (self.local.to_le_bytes(), self.remote.to_le_bytes());
        self.suite.mac(self.password, &[&local, &remote, console_random, random, guid, &self.who])
    }

    fn rakp3(&self, tag: u8, status: u8, code: &[u8]) -> Vec<u8> {
        let mut payload = vec![tag, status, 0, 0];
        payload.extend(self.remote.to_le_bytes());
        payload.extend(code);
        payload
    }

    /// RAKP 3 and 4. A refusal here does not mean the password, which RAKP 2 proved.
    async fn finish(&self, wire: &mut Wire, answer2: &Rakp2, check: &[u8], limit: Instant) -> Result<(), Broken> {
        let code = self.suite.mac(self.password, &[&answer2.random, &self.local.to_le_bytes(), &self.who]);
        let first = wire.pace().first;
        let last = AtomicU8::new(0);
        let found = wire.exchange(
            first,
            limit.min(Instant::now() + first * STAGE),
            |tag| {
                last.store(tag, Relaxed);
                setup(Setup::Rakp3, &self.rakp3(tag, 0, &code))
            },
            |packet| {
                let payload = setup_payload(packet, Setup::Rakp4)?;
                Some(match answer(payload, None, self.local)? {
                    Ok(mut fields) => match equal(fields.take(self.suite.check_length())?, check) {
                        true => Ok(()),
                        false => Err(Broken::BmcKey),
                    },
                    Err(_) if payload.first() != Some(&last.load(Relaxed)) => return None,
                    Err(Broken::Password) => Err(Broken::Lost),
                    Err(broken) => Err(broken),
                })
            },
        );
        found.await.unwrap_or(Err(Broken::Lost))
    }
}

fn silent(wire: &mut Wire, whose: &str) -> Error {
    super::unreachable(whose, wire.address(), wire.pace().open, wire.trouble())
}

fn no_suite(whose: &str) -> Error {
    Error::refused("bmc.suite", format!("{whose} takes neither cipher suite 17 nor 3"))
        .hint("switch cipher suite 17 (or 3) on in the BMC's IPMI settings")
}

fn failure(broken: Broken, wire: &mut Wire, access: &Access, whose: &str) -> Error {
    let user = &access.user;
    match broken {
        Broken::Silent | Broken::Lost => silent(wire, whose),
        Broken::Suite => no_suite(whose),
        Broken::Full => Error::unreachable("bmc.busy", format!("{whose} has no session free"))
            .hint("others are logged in; their sessions end by themselves within a minute"),
        Broken::Role => {
            Error::refused("bmc.privilege", format!("{whose} does not let the user {user:?} in as operator"))
                .hint("give the BMC user the privilege Administrator, or at least Operator")
        }
        Broken::Name => Error::refused("bmc.auth", format!("{whose} does not know the user {user:?}"))
            .hint("check the user name, and that IPMI over LAN is allowed for this user"),
        Broken::Password => Error::refused("bmc.auth", format!("{whose} has another password for the user {user:?}"))
            .hint("check the password; some BMCs answer the same for a user that they do not know or that is disabled"),
        Broken::BmcKey => Error::refused("bmc.auth", format!("{whose} has a K_g key of its own"))
            .hint("clear the IPMI encryption key (K_g) in the BMC's settings"),
        Broken::Other(status) => {
            Error::refused("bmc.refused", format!("{whose} broke the log-in off with status 0x{status:02x}"))
        }
        Broken::Crypto => Error::internal("bmc.crypto", "the cryptography library refused a key of fixed length"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_belongs_to_its_tag_and_session() {
        let good = [3u8, 0, 4, 0, 9, 0, 0, 0, 5, 0, 0, 0];
        assert!(matches!(answer(&good, Some(3), 9), Some(Ok(rest)) if rest.0 == [5, 0, 0, 0]));
        assert!(answer(&good, Some(4), 9).is_none());
        assert!(answer(&good, Some(3), 8).is_none());
        for end in 0..8 {
            assert!(answer(&good[..end], Some(3), 9).is_none());
        }
        assert!(matches!(answer(&[3, 0x0d, 0, 0], Some(3), 9), Some(Err(Broken::Name))));
        assert!(matches!(answer(&[3, 0x11, 0, 0, 9, 0, 0, 0], Some(3), 9), Some(Err(Broken::Suite))));
        assert!(answer(&[3, 0x11, 0, 0, 8, 0, 0, 0], Some(3), 9).is_none());
    }

    #[test]
    fn codes_as_another_implementation_computes_them() {
        // Python: hmac.new(b"calvin-lab", parts, "sha1" | "sha256"), see the inputs below.
        let party = |suite| Party {
            suite,
            password: b"calvin-lab",
            who: b"\x14\x05admin".to_vec(),
            local: 0x0403_0201,
            remote: 0x0807_0605,
        };
        let code = |suite| party(suite).code2(&[0xbb; 16], &[0xcc; 16], &[0xdd; 16]);
        assert_eq!(hex::encode(code(Suite::Three)), "353994b72d552be9b3f159aed47ade31a07343c1");
        assert_eq!(
            hex::encode(code(Suite::Seventeen)),
            "73eeceafd261cd2bd01aa3a3aaeea3811a4c7fa77d6710c90a6b6e291f8e76e4"
        );
    }
}
