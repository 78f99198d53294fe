//! The network under load: with another machine that is burned in at the same time, else with the appliance.
//!
//! The appliance brings two machines together ([`Partner`]). One connects: first it sends on some connections, then it receives
//! on as many. Each connection begins with the pair's key and a letter for the direction, seen from the one who connects:
//!
//! ```text
//!  key (32 bytes) '>' bytes … end    ◄─ count of good bytes (8), count of wrong ones (8), big endian
//!  key (32 bytes) '<'                ◄─ bytes … end
//! ```
//!
//! What is sent follows from the key, so that what arrives is compared: cards that compute checksums have been seen to spoil
//! data and to call it good. Packets that were broken on the way are counted by the kernel ([`super::counters`]).

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Found;
use crate::agent::appliance::{Appliance, Met};
use crate::agent::inventory;
use crate::agent::roots::Roots;
use crate::error::{Error, Kind, OrFail, Result};
use crate::link::{Measured, NetworkBurn, Partner, PartnerAsk};
use crate::machine::{Finding, Severity, Who};

const STREAMS: usize = 4;
const BLOCK: usize = 256 << 10;
const CONNECT: Duration = Duration::from_secs(10);
/// Beyond the time of a direction.
const LATE: Duration = Duration::from_secs(15);
/// A partner's profile may be longer than ours; past this it is given up.
const LONGEST: Duration = Duration::from_secs(600);
const SEND: u8 = b'>';
const RECEIVE: u8 = b'<';

pub struct Test<'a> {
    pub appliance: &'a Appliance,
    pub roots: &'a Roots,
    pub profile: &'a NetworkBurn,
    /// With a machine of another rack.
    pub across: bool,
    pub stop: &'a CancellationToken,
}

/// Good and wrong bytes, and the time that they took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Got {
    good: u64,
    wrong: u64,
    seconds: f64,
}

impl Test<'_> {
    pub async fn run(&self) -> Found {
        self.stop.run_until_cancelled(self.measure()).await.unwrap_or_default()
    }

    async fn measure(&self) -> Found {
        let mut found = Found::default();
        match self.with_a_machine(&mut found).await {
            Ok(true) => {}
            Ok(false) if self.across => found.notes.push("no machine of another rack was there to measure with".into()),
            Ok(false) => {
                found
                    .notes
                    .push("no machine of its rack was there to measure with: the appliance is the other end".into());
                self.with_the_appliance(&mut found).await;
            }
            Err(e) => found.notes.push(format!("the network was not measured: {}", e.message())),
        }
        found
    }

    /// `false`: nobody came in time.
    async fn with_a_machine(&self, found: &mut Found) -> Result<bool> {
        let listener = TcpListener::bind("0.0.0.0:0").await;
        let listener =
            listener.or_fail(Kind::Internal, "burn.network", || "no port could be opened to be measured at")?;
        let port = listener.local_addr().map_or(0, |at| at.port());
        let ask = PartnerAsk { port, across: self.across };
        let give_up = Instant::now() + Duration::from_secs(self.profile.wait_seconds.into());
        while let Some(left) = give_up.checked_duration_since(Instant::now()) {
            let asked = Instant::now();
            match timeout(left, self.appliance.partner(&ask)).await {
                Ok(Met::Partner(partner)) => match self.talk(&listener, &partner).await {
                    Ok((sent, received)) => {
                        self.tell(found, &partner, sent, received);
                        return Ok(true);
                    }
                    // It may have gone; somebody else may come.
                    Err(e) => super::say_error(&e),
                },
                Ok(Met::Nobody) | Err(_) => {}
                Ok(Met::Lost) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
            tokio::time::sleep(Duration::from_millis(200).saturating_sub(asked.elapsed())).await;
        }
        Ok(false)
    }

    /// What was sent, as the other one got it, and what was received.
    async fn talk(&self, listener: &TcpListener, partner: &Partner) -> Result<(Got, Got)> {
        let key = blake3::hash(partner.key.expose().as_bytes()).into();
        let block: Arc<[u8]> = block(&key).into();
        let time = Duration::from_secs(self.profile.seconds.into());
        let talk = async {
            if partner.connects {
                let sent = connected(partner.address, key, SEND, time, &block).await?;
                Ok((sent, connected(partner.address, key, RECEIVE, time, &block).await?))
            } else {
                let received = accepted(listener, key, SEND, time, &block).await?;
                Ok((accepted(listener, key, RECEIVE, time, &block).await?, received))
            }
        };
        let gave_up = || {
            Error::unreachable("burn.network", format!("{} stopped in the middle of the network test", partner.name))
        };
        timeout(LONGEST.max(time * 2 + LATE), talk).await.map_err(|_| gave_up())?
    }

    fn tell(&self, found: &mut Found, partner: &Partner, sent: Got, received: Got) {
        let nic = self.nic(partner.address.ip());
        let way = if self.across { "-across" } else { "" };
        for (what, got) in [("send", sent), ("receive", received)] {
            // Where the sender cannot know, it takes the other's word for the bytes and its own for the time.
            let value = (got.good as f64 / got.seconds.max(1e-9) / 1e4).round() / 100.0;
            found.measured.push(Measured::new(format!("net.{what}{way}.{nic}"), value, "MB/s"));
        }
        found.notes.push(format!("measured with {}", partner.name));
        let wrong = sent.wrong + received.wrong;
        if wrong > 0 {
            found.findings.push(Finding {
                id: "burn.network.data".into(),
                part: format!("NIC {nic}"),
                severity: Severity::Fault,
                cause: format!(
                    "{wrong} bytes to or from {} came changed, with checksums that called them good",
                    partner.name
                ),
                expected: "what was sent".into(),
                found: format!("{} wrong to it, {} wrong from it", sent.wrong, received.wrong),
                who: Who::Supplier,
                next: "burn both in again with other machines: the one that shows it twice needs another NIC".into(),
            });
        }
    }

    /// Told in words: the appliance holds it to what it can spare, so the values of machines cannot be compared.
    async fn with_the_appliance(&self, found: &mut Found) {
        let time = Duration::from_secs(self.profile.seconds.into());
        let wait = Instant::now() + Duration::from_secs(self.profile.wait_seconds.into()) + time;
        for what in ["received from", "sent to"] {
            let note = loop {
                let began = Instant::now();
                let bytes = match what {
                    "received from" => self.appliance.stream_from(time).await,
                    _ => self.appliance.stream_to(time).await,
                };
                match bytes {
                    Ok(Some(bytes)) => {
                        let rate = bytes as f64 / began.elapsed().as_secs_f64().max(1e-9) / 1e6;
                        break format!("{what} the appliance at {rate:.1} MB/s; it gives no more than it can spare");
                    }
                    // Another machine measures.
                    Ok(None) if Instant::now() < wait => tokio::time::sleep(Duration::from_millis(500)).await,
                    Ok(None) => break format!("nothing was {what} the appliance: other machines had it all the time"),
                    Err(e) => break format!("nothing was {what} the appliance: {}", e.message()),
                }
            };
            found.notes.push(note);
        }
    }

    /// The device that leads to an address; the one that it booted from where the routes do not tell.
    fn nic(&self, to: IpAddr) -> String {
        let booted = || {
            let inventory = inventory::nics(self.roots).unwrap_or_default();
            let first = inventory.iter().find(|nic| nic.boot).or(inventory.iter().find(|nic| nic.link));
            first.map_or_else(|| "net".to_owned(), |nic| nic.name.clone())
        };
        route(&self.roots.proc, to).unwrap_or_else(booted)
    }
}

/// `/proc/net/route`: device, destination, gateway, flags, three counters, mask; the numbers in hexadecimal as they stand in
/// memory (`fib_route_seq_show` in net/ipv4/fib_trie.c).
fn route(proc: &Path, to: IpAddr) -> Option<String> {
    let IpAddr::V4(to) = to else { return None };
    let to = u32::from_ne_bytes(to.octets());
    let text = std::fs::read_to_string(proc.join("net/route")).ok()?;
    let rows = text.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let hex = |i: usize| u32::from_str_radix(words.get(i)?, 16).ok();
        let (device, destination, mask) = (words.first()?, hex(1)?, hex(7)?);
        (to & mask == destination).then(|| (mask.count_ones(), (*device).to_owned()))
    });
    // The first of those that are equally narrow.
    rows.reduce(|best, row| if row.0 > best.0 { row } else { best }).map(|(_, device)| device)
}

/// What is sent, again and again.
fn block(key: &[u8; 32]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    blake3::Hasher::new_keyed(key).finalize_xof().fill(&mut block);
    block
}

async fn connected(to: SocketAddr, key: [u8; 32], direction: u8, time: Duration, block: &Arc<[u8]>) -> Result<Got> {
    let began = Instant::now();
    let mut streams = JoinSet::new();
    for _ in 0..STREAMS {
        let block = Arc::clone(block);
        streams.spawn(async move {
            let mut stream = timeout(CONNECT, TcpStream::connect(to)).await.map_err(std::io::Error::other)??;
            stream.write_all(&key).await?;
            stream.write_u8(direction).await?;
            match direction {
                SEND => send(&mut stream, time, &block).await,
                _ => receive(&mut stream, &block).await,
            }
        });
    }
    sum(streams, began).await
}

/// Takes the streams of the one who connects; strangers do not know the key.
async fn accepted(
    listener: &TcpListener,
    key: [u8; 32],
    direction: u8,
    time: Duration,
    block: &Arc<[u8]>,
) -> Result<Got> {
    let (mut streams, mut began) = (JoinSet::new(), None);
    let patience = Instant::now() + CONNECT + LATE;
    while streams.len() < STREAMS {
        let left = patience.saturating_duration_since(Instant::now());
        let silent = || Error::unreachable("burn.network", "the machine to measure with did not connect");
        let accepted = timeout(left, listener.accept()).await.map_err(|_| silent())?;
        let (mut stream, _) = accepted.or_fail(Kind::Unreachable, "burn.network", || "a connection was lost")?;
        let mut head = [0; 33];
        let read = timeout(CONNECT, stream.read_exact(&mut head)).await;
        if !matches!(read, Ok(Ok(_))) || head[..32] != key || head[32] != direction {
            continue;
        }
        began.get_or_insert_with(Instant::now);
        let block = Arc::clone(block);
        streams.spawn(async move {
            match direction {
                // The other one sends.
                SEND => {
                    let got = receive(&mut stream, &block).await?;
                    stream.write_u64(got.good).await?;
                    stream.write_u64(got.wrong).await?;
                    Ok(got)
                }
                _ => {
                    let sent = pour(&mut stream, time, &block).await?;
                    Ok(Got { good: sent, ..Got::default() })
                }
            }
        });
    }
    sum(streams, began.unwrap_or_else(Instant::now)).await
}

async fn sum(mut streams: JoinSet<std::io::Result<Got>>, began: Instant) -> Result<Got> {
    let mut all = Got::default();
    while let Some(one) = streams.join_next().await {
        let one = one.or_fail(Kind::Internal, "burn.network", || "a stream was lost")?;
        let one = one.or_fail(Kind::Unreachable, "burn.network", || "a connection broke in the network test")?;
        all = Got { good: all.good + one.good, wrong: all.wrong + one.wrong, ..all };
    }
    Ok(Got { seconds: began.elapsed().as_secs_f64(), ..all })
}

/// Sends for some time and asks what arrived.
async fn send(stream: &mut TcpStream, time: Duration, block: &[u8]) -> std::io::Result<Got> {
    pour(stream, time, block).await?;
    let (good, wrong) = (stream.read_u64().await?, stream.read_u64().await?);
    Ok(Got { good, wrong, ..Got::default() })
}

async fn pour(stream: &mut TcpStream, time: Duration, block: &[u8]) -> std::io::Result<u64> {
    let (end, mut bytes) = (Instant::now() + time, 0);
    while Instant::now() < end {
        stream.write_all(block).await?;
        bytes += block.len() as u64;
    }
    stream.shutdown().await?;
    Ok(bytes)
}

async fn receive(stream: &mut TcpStream, block: &[u8]) -> std::io::Result<Got> {
    let (mut buffer, mut got) = (vec![0; BLOCK], Got::default());
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(got);
        }
        let mut rest = buffer.get(..read).unwrap_or_default();
        while !rest.is_empty() {
            let at = ((got.good + got.wrong) % BLOCK as u64) as usize;
            let wanted = block.get(at..).unwrap_or_default();
            let len = rest.len().min(wanted.len());
            let (piece, wanted) = (&rest[..len], &wanted[..len]);
            let wrong = match piece == wanted {
                true => 0,
                false => piece.iter().zip(wanted).filter(|(a, b)| a != b).count(),
            };
            got.good += (len - wrong) as u64;
            got.wrong += wrong as u64;
            rest = &rest[len..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_ends_count_the_same_and_a_changed_byte_is_seen() {
        let key = [7; 32];
        let block: Arc<[u8]> = block(&key).into();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let time = Duration::from_millis(200);
        // A stranger is turned away and disturbs nobody.
        let mut stranger = TcpStream::connect(at).await.unwrap();
        stranger.write_all(&[0; 33]).await.unwrap();
        for direction in [SEND, RECEIVE] {
            let (there, here) = tokio::join!(
                connected(at, key, direction, time, &block),
                accepted(&listener, key, direction, time, &block)
            );
            let (there, here) = (there.unwrap(), here.unwrap());
            assert!(there.good > 0 && there.wrong == 0, "{there:?}");
            assert_eq!(there.good, here.good);
        }
        let mut spoilt = block.to_vec();
        spoilt[1000] ^= 1;
        let spoilt: Arc<[u8]> = spoilt.into();
        let (there, here) =
            tokio::join!(connected(at, key, SEND, time, &spoilt), accepted(&listener, key, SEND, time, &block));
        let (there, here) = (there.unwrap(), here.unwrap());
        assert!(here.wrong > 0 && here.good > 0);
        assert_eq!((there.good, there.wrong), (here.good, here.wrong));
    }

    #[test]
    fn the_device_is_that_of_the_narrowest_route() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("net")).unwrap();
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                     eno1\t00000000\t01004D0A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     eno2\t00004D0A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
                     broken line\n";
        std::fs::write(dir.path().join("net/route"), table).unwrap();
        assert_eq!(route(dir.path(), "10.77.0.9".parse().unwrap()).as_deref(), Some("eno2"));
        assert_eq!(route(dir.path(), "192.0.2.1".parse().unwrap()).as_deref(), Some("eno1"));
        assert_eq!(route(dir.path(), "::1".parse().unwrap()), None);
    }
}
