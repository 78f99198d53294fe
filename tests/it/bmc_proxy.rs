//! A UDP proxy that makes bad weather between a BMC and its client: it loses, doubles, delays, replays and makes up
//! datagrams. The dice are seeded, so that a run is like the one before.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use tokio::net::UdpSocket;

/// What the proxy does to datagrams, in percent.
#[derive(Default, Clone, Copy)]
pub struct Weather {
    pub loss: u32,
    pub doubled: u32,
    /// Held back until after the next one.
    pub late: u32,
    pub garbage: bool,
}

pub struct Proxy {
    pub address: SocketAddr,
    seen: Arc<Seen>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    log_ins: AtomicU32,
    lost: AtomicU32,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One direction of the proxy.
struct Way {
    weather: Weather,
    dice: u32,
    held: Option<Vec<u8>>,
    last: Vec<u8>,
    /// Each packet again after the next one.
    replay: bool,
}

impl Way {
    fn roll(&mut self, percent: u32) -> bool {
        // The generator of Numerical Recipes; its upper bits are good enough for weather.
        self.dice = self.dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.dice >> 16) % 100 < percent
    }

    /// What to send on for this packet, in order.
    fn pass(&mut self, packet: &[u8], seen: &Seen) -> Vec<Vec<u8>> {
        let weather = self.weather;
        let mut out = Vec::new();
        if weather.garbage {
            let mut bent = packet.to_vec();
            let at = self.dice as usize % bent.len();
            bent[at] ^= 0x55;
            out.extend([b"not IPMI".to_vec(), packet[..packet.len() / 2].to_vec(), Vec::new()]);
            // Not towards the BMC: ipmi_sim does what it is told as often as it hears it.
            if self.replay {
                out.push(std::mem::take(&mut self.last));
            }
            // Only within a session: the set-up has no protection of its own but the checksum of UDP.
            if packet.get(5) == Some(&0xc0) {
                out.push(bent);
            }
        }
        self.last = packet.to_vec();
        if self.roll(weather.loss) {
            seen.lost.fetch_add(1, Relaxed);
            return out;
        }
        let held = self.held.take();
        if held.is_none() && self.roll(weather.late) {
            self.held = Some(packet.to_vec());
        } else {
            out.push(packet.to_vec());
        }
        if self.roll(weather.doubled) {
            out.push(packet.to_vec());
        }
        out.extend(held);
        out
    }
}

impl Proxy {
    pub async fn start(at: Ipv4Addr, to: SocketAddr, weather: Weather) -> Self {
        let front = UdpSocket::bind((at, 0)).await.unwrap();
        let address = front.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let task = tokio::spawn(Self::run(front, to, weather, seen.clone()));
        Self { address, seen, task }
    }

    /// One client socket at a time: each new one gets a socket of its own towards the BMC.
    async fn run(front: UdpSocket, to: SocketAddr, weather: Weather, seen: Arc<Seen>) {
        let way = |dice, replay| Way { weather, dice, held: None, last: Vec::new(), replay };
        let (mut there, mut back) = (way(1, false), way(2, true));
        let mut client = None;
        let mut rear = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (mut a, mut b) = ([0u8; 2048], [0u8; 2048]);
        loop {
            tokio::select! {
                Ok((length, from)) = front.recv_from(&mut a) => {
                    if client.replace(from).is_some_and(|before| before != from) {
                        rear = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                    }
                    let packet = &a[..length];
                    if packet.get(5) == Some(&0x12) {
                        seen.log_ins.fetch_add(1, Relaxed);
                    }
                    for packet in there.pass(packet, &seen) {
                        let _ = rear.send_to(&packet, to).await;
                    }
                }
                Ok((length, _)) = rear.recv_from(&mut b) => {
                    let Some(client) = client else { continue };
                    for packet in back.pass(&b[..length], &seen) {
                        let _ = front.send_to(&packet, client).await;
                    }
                }
            }
        }
    }

    /// RAKP 1 messages: one per log-in where nothing is lost.
    pub fn log_ins(&self) -> u32 {
        self.seen.log_ins.load(Relaxed)
    }

    pub fn lost(&self) -> u32 {
        self.seen.lost.load(Relaxed)
    }
}
