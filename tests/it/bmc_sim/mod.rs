//! A BMC in memory, written from the IPMI 2.0 specification and sharing no codec with the client: RMCP+ with cipher
//! suites 3 and 17, chassis commands, sensors, event log, and the faults that a test asks for. `ipmitool` is run against
//! it too, so that client and simulator cannot be wrong together.
//!
//! The benchmarks run thousands of them in one process, each with an address and a [`Manner`] of its own.

pub mod records;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::cipher::{AES_128, DecryptingKey, DecryptionContext, EncryptingKey, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{hmac, rand};
use records::Records;
use tokio::net::UdpSocket;

/// How a BMC keeps its client waiting.
#[derive(Debug, Default, Clone, Copy)]
pub struct Manner {
    /// From each request to its answer.
    pub latency: Duration,
    /// Hears everything and says nothing.
    pub dead: bool,
    /// Answers that are lost, in percent.
    pub loss: u32,
    /// Answers that come a second time, late, in percent.
    pub doubled: u32,
    /// Answers before which the same comes with another session's id, in percent.
    pub misled: u32,
}

pub struct Sim {
    pub address: SocketAddr,
    pub state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub struct State {
    pub suites: Vec<u8>,
    pub user: &'static str,
    pub password: &'static str,
    pub privilege: u8,
    pub power: bool,
    pub boot: [u8; 5],
    /// Does not answer to a suite that it lacks.
    pub mute: bool,
    /// Says yes to chassis commands and does nothing.
    pub deaf: bool,
    /// Completion code 0xC0 for so many commands.
    pub busy: u32,
    /// Each answer within a session also a second time, and before it once with a bit changed.
    pub noisy: bool,
    pub manner: Manner,
    /// Sessions at once; one more is refused, and those that nobody used for [`SESSION_IDLE`] are dropped first.
    pub sessions_max: usize,
    pub records: Records,
    /// Chassis Control commands that were carried out, and set-ups that were begun.
    pub controls: Vec<u8>,
    pub opened: u32,
    pub closed: u32,
    /// Packets that came, requests in a session that were seen, and the most sessions that there were at once.
    pub heard: u32,
    pub requests: u32,
    pub most: usize,
    pub sessions: HashMap<u32, Session>,
    dice: u32,
}

pub struct Session {
    remote: [u8; 4],
    suite: u8,
    random: [u8; 16],
    client_random: [u8; 16],
    who: Vec<u8>,
    sik: Vec<u8>,
    active: bool,
    level: u8,
    sequence: u32,
    used: Instant,
}

/// Section 6.12.15: 60 s, give or take 3.
const SESSION_IDLE: Duration = Duration::from_secs(60);
const GUID: [u8; 16] = *b"simulated-bmc-01";

fn mac(suite: u8, key: &[u8], data: &[u8]) -> Vec<u8> {
    let algorithm = if suite == 17 { hmac::HMAC_SHA256 } else { hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY };
    hmac::sign(&hmac::Key::new(algorithm, key), data).as_ref().to_vec()
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).unwrap();
    bytes
}

fn sum(bytes: &[u8]) -> u8 {
    (256 - bytes.iter().map(|b| u32::from(*b)).sum::<u32>() % 256) as u8
}

impl Sim {
    pub async fn start(address: &str) -> Self {
        Self::with(address.parse().unwrap(), |_| ()).await.unwrap()
    }

    /// Changes the BMC before anybody can see it.
    pub async fn with(address: SocketAddr, change: impl FnOnce(&mut State)) -> io::Result<Self> {
        let socket = Arc::new(UdpSocket::bind(address).await?);
        let address = socket.local_addr()?;
        let mut state = State::new(address);
        change(&mut state);
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        let task = tokio::spawn(async move {
            let mut buffer = [0u8; 2048];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                let answers = shared.lock().unwrap().answers(&buffer[..length]);
                for (wait, answer) in answers {
                    if wait.is_zero() {
                        let _ = socket.send_to(&answer, peer).await;
                        continue;
                    }
                    let socket = socket.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(wait).await;
                        let _ = socket.send_to(&answer, peer).await;
                    });
                }
            }
        });
        Ok(Self { address, state, task })
    }
}

impl State {
    fn new(address: SocketAddr) -> Self {
        Self {
            suites: vec![3, 17],
            user: "admin",
            password: "calvin-lab",
            privilege: 4,
            power: false,
            boot: [0; 5],
            mute: false,
            deaf: false,
            busy: 0,
            noisy: false,
            manner: Manner::default(),
            sessions_max: 64,
            records: Records::default(),
            controls: Vec::new(),
            opened: 0,
            closed: 0,
            heard: 0,
            requests: 0,
            most: 0,
            sessions: HashMap::new(),
            dice: match address.ip() {
                std::net::IpAddr::V4(ip) => ip.to_bits(),
                std::net::IpAddr::V6(_) => 1,
            },
        }
    }

    fn roll(&mut self, percent: u32) -> bool {
        // The generator of Numerical Recipes; its upper bits are good enough for faults.
        self.dice = self.dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.dice >> 16) % 100 < percent
    }

    /// What goes out for this packet, and when.
    fn answers(&mut self, packet: &[u8]) -> Vec<(Duration, Vec<u8>)> {
        self.heard += 1;
        let manner = self.manner;
        let Some(answer) = (!manner.dead).then(|| self.packet(packet)).flatten() else { return Vec::new() };
        let wait = manner.latency;
        let in_session = answer[5] == 0xc0;
        let mut out = Vec::new();
        if self.noisy && in_session {
            let mut bad = answer.clone();
            let middle = bad.len() / 2;
            bad[middle] ^= 4;
            out.extend([(wait, bad), (wait, answer.clone())]);
        }
        if self.roll(manner.misled) && in_session {
            let mut other = answer.clone();
            other[6] ^= 0x55;
            out.push((wait, other));
        }
        if self.roll(manner.doubled) {
            out.push((wait * 3, answer.clone()));
        }
        if !self.roll(manner.loss) {
            out.push((wait, answer));
        }
        out
    }

    fn packet(&mut self, p: &[u8]) -> Option<Vec<u8>> {
        if p.get(..4)? != [6, 0, 255, 7] {
            return None;
        }
        if p[4] == 0 {
            // IPMI 1.5 header: sequence, session, length.
            let message = p.get(14..14 + p[13] as usize)?;
            let answer = self.message(message, &mut 4);
            let mut out = vec![6, 0, 255, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, answer.len() as u8];
            out.extend(answer);
            return Some(out);
        }
        let payload = p.get(16..16 + usize::from(u16::from_le_bytes([p[14], p[15]])))?;
        match p[5] {
            0x10 => self.open(payload),
            0x12 => self.rakp1(payload),
            0x14 => self.rakp3(payload),
            0xc0 => self.sealed(u32::from_le_bytes(p[6..10].try_into().unwrap()), p, payload),
            _ => None,
        }
    }

    fn open(&mut self, p: &[u8]) -> Option<Vec<u8>> {
        let suite = match (p[12], p[20], p[28]) {
            (1, 1, 1) => 3,
            (3, 4, 1) => 17,
            _ => 0,
        };
        self.opened += 1;
        if !self.suites.contains(&suite) {
            return (!self.mute).then(|| unsigned(0x11, &[&[p[0], 0x11, 0, 0], &p[4..8]]));
        }
        if self.sessions.len() >= self.sessions_max {
            self.sessions.retain(|_, session| session.used.elapsed() < SESSION_IDLE);
        }
        if self.sessions.len() >= self.sessions_max {
            return Some(unsigned(0x11, &[&[p[0], 0x01, 0, 0], &p[4..8]]));
        }
        let id = u32::from_le_bytes(random()) | 1;
        let session = Session {
            remote: p[4..8].try_into().unwrap(),
            suite,
            random: random(),
            client_random: [0; 16],
            who: Vec::new(),
            sik: Vec::new(),
            active: false,
            level: 2,
            sequence: 0,
            used: Instant::now(),
        };
        self.sessions.insert(id, session);
        self.most = self.most.max(self.sessions.len());
        Some(unsigned(0x11, &[&[p[0], 0, 4, 0], &p[4..8], &id.to_le_bytes(), &p[8..32]]))
    }

    fn rakp1(&mut self, p: &[u8]) -> Option<Vec<u8>> {
        let id: [u8; 4] = p[4..8].try_into().unwrap();
        let session = self.sessions.get_mut(&u32::from_le_bytes(id))?;
        session.client_random = p[8..24].try_into().unwrap();
        session.random = random();
        session.who = [&p[24..25], &p[27..28 + p[27] as usize]].concat();
        let key = self.password.as_bytes();
        let status = match () {
            () if session.who[2..] != *self.user.as_bytes() => 0x0d,
            () if session.who[0] & 0xf > self.privilege => 0x0a,
            () => 0,
        };
        if status != 0 {
            let remote = session.remote;
            self.sessions.remove(&u32::from_le_bytes(id));
            return Some(unsigned(0x13, &[&[p[0], status, 0, 0], &remote]));
        }
        let mixed = [&session.client_random[..], &session.random, &session.who].concat();
        session.sik = mac(session.suite, key, &mixed);
        let signed = [&session.remote[..], &id, &session.client_random, &session.random, &GUID, &session.who].concat();
        let code = mac(session.suite, key, &signed);
        Some(unsigned(0x13, &[&[p[0], 0, 0, 0], &session.remote, &session.random, &GUID, &code]))
    }

    fn rakp3(&mut self, p: &[u8]) -> Option<Vec<u8>> {
        let id: [u8; 4] = p[4..8].try_into().unwrap();
        let number = u32::from_le_bytes(id);
        if p[1] != 0 {
            self.sessions.remove(&number);
            return None;
        }
        let session = self.sessions.get_mut(&number)?;
        let signed = [&session.random[..], &session.remote, &session.who].concat();
        if mac(session.suite, self.password.as_bytes(), &signed) != p[8..] {
            return Some(unsigned(0x15, &[&[p[0], 0x0f, 0, 0], &session.remote]));
        }
        session.active = true;
        let mut check = mac(session.suite, &session.sik, &[&session.client_random[..], &id, &GUID].concat());
        check.truncate(if session.suite == 17 { 16 } else { 12 });
        Some(unsigned(0x15, &[&[p[0], 0, 0, 0], &session.remote, &check]))
    }

    fn sealed(&mut self, id: u32, packet: &[u8], payload: &[u8]) -> Option<Vec<u8>> {
        let mut session = self.sessions.remove(&id).filter(|s| s.active)?;
        session.used = Instant::now();
        self.requests += 1;
        let cut = if session.suite == 17 { 16 } else { 12 };
        let k1 = mac(session.suite, &session.sik, &[1; 20]);
        let k2 = mac(session.suite, &session.sik, &[2; 20]);
        let (signed, check) = packet[4..].split_at(packet.len() - 4 - cut);
        assert_eq!(mac(session.suite, &k1, signed)[..cut], *check, "the client signs wrongly");
        let iv: [u8; 16] = payload[..16].try_into().unwrap();
        let mut text = payload[16..].to_vec();
        let key = || UnboundCipherKey::new(&AES_128, &k2[..16]).unwrap();
        let context = DecryptionContext::Iv128(FixedLength::from(iv));
        DecryptingKey::cbc(key()).unwrap().decrypt(&mut text, context).unwrap();
        let padding = usize::from(*text.last().unwrap());
        let end = text.len() - 1 - padding;
        let expected: Vec<u8> = (1..=padding as u8).collect();
        assert_eq!(text[end..text.len() - 1], expected, "the client pads wrongly");
        let mut answer = self.message(&text[..end], &mut session.level);
        let padding = (16 - (answer.len() + 1) % 16) % 16;
        answer.extend(1..=padding as u8);
        answer.push(padding as u8);
        let context = EncryptingKey::cbc(key()).unwrap().encrypt(&mut answer).unwrap();
        let iv: &[u8] = (&context).try_into().unwrap();
        session.sequence += 1;
        let mut out = vec![6, 0xc0];
        out.extend(session.remote);
        out.extend(session.sequence.to_le_bytes());
        out.extend((answer.len() as u16 + 16).to_le_bytes());
        out.extend(iv);
        out.extend(answer);
        let padding = (4 - (out.len() + 2) % 4) % 4;
        out.extend(vec![0xff; padding]);
        out.extend([padding as u8, 7]);
        let check = mac(session.suite, &k1, &out)[..cut].to_vec();
        // Close Session of this session: it is gone.
        if text[1] >> 2 != 6 || text[5] != 0x3c {
            self.sessions.insert(id, session);
        } else {
            self.closed += 1;
        }
        Some([&[6, 0, 255, 7], &out[..], &check].concat())
    }

    fn message(&mut self, m: &[u8], level: &mut u8) -> Vec<u8> {
        let (netfn, cmd, data) = (m[1] >> 2, m[5], &m[6..m.len() - 1]);
        assert_eq!((sum(&m[..3]), sum(&m[3..])), (0, 0), "the client's checksums are wrong");
        let result = match self.busy {
            0 => self.command(netfn, cmd, data, level),
            _ => {
                self.busy -= 1;
                vec![0xc0]
            }
        };
        let mut out = vec![m[3], (netfn + 1) << 2];
        out.push(sum(&out));
        out.extend([0x20, m[4], cmd]);
        out.extend(result);
        out.push(sum(&out[3..]));
        out
    }

    /// Completion code and data.
    fn command(&mut self, netfn: u8, cmd: u8, data: &[u8], level: &mut u8) -> Vec<u8> {
        if netfn == 0 && matches!(cmd, 2 | 8) && *level < 3 {
            return vec![0xd4];
        }
        match (netfn, cmd) {
            (6, 0x01) => vec![0, 0x20, 1, 2, 0x10, 2, 0xbf, 0, 0, 0, 1, 0],
            (6, 0x37) => [&[0][..], &GUID].concat(),
            (6, 0x38) => vec![0, 1, 0x80, 0x04, 2, 0, 0, 0, 0],
            (6, 0x3b) if data[0] > self.privilege => vec![0x80],
            (6, 0x3b) => {
                *level = data[0].max(*level);
                vec![0, *level]
            }
            (6, 0x3c) => vec![0],
            // Activate and Deactivate Payload: a serial console on which nothing is said.
            (6, 0x48) => vec![0, 0, 0, 0, 0, 0x20, 0, 0xff, 0, 0x6f, 0x02, 0xff, 0xff],
            (6, 0x49) => vec![0],
            (6, 0x54) => {
                let mut records = Vec::new();
                for suite in &self.suites {
                    records.extend(if *suite == 17 {
                        [0xc0, 17, 3, 0x44, 0x81]
                    } else {
                        [0xc0, *suite, 1, 0x41, 0x81]
                    });
                }
                let list = usize::from(data[2] & 0x3f);
                let part: Vec<u8> = records.into_iter().skip(16 * list).take(16).collect();
                [vec![0, 1], part].concat()
            }
            (0, 1) => vec![0, u8::from(self.power), 0, 0],
            (0, 2) => {
                self.controls.push(data[0]);
                if !self.deaf {
                    self.power = matches!(data[0], 1..=3);
                }
                vec![0]
            }
            (0, 8) if data[0] == 5 && !self.deaf => {
                self.boot = data[1..6].try_into().unwrap();
                vec![0]
            }
            (0, 8) if data[0] == 5 => vec![0],
            (0, 8) => vec![0x80],
            (0, 9) => [&[0, 1, 5], &self.boot[..]].concat(),
            _ => self.records.command(netfn, cmd, data).unwrap_or(vec![0xc1]),
        }
    }
}

fn unsigned(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let payload = parts.concat();
    let mut out = vec![6, 0, 255, 7, 6, kind, 0, 0, 0, 0, 0, 0, 0, 0];
    out.extend((payload.len() as u16).to_le_bytes());
    out.extend(payload);
    out
}
