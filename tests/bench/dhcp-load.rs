//! New DHCP clients behind a relay at a fixed rate, for `dhcp.sh`: perfdhcp's exchange with a third of its CPU time, since
//! perfdhcp on one core ends at some 17,000 leases a second and the servers do not.
//!
//! `dhcp-load SERVER RELAY RATE SECONDS` sends RATE DISCOVERs a second from RELAY, whatever comes back, and a REQUEST for each
//! OFFER. What is not answered within a second is lost, as with perfdhcp. Prints
//! `sent N acked N p99_offer MS p99_ack MS`.

use std::error::Error;
use std::io::ErrorKind::WouldBlock;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

const LOST: Duration = Duration::from_secs(1);

/// When a client sent last, and what it waits for.
#[derive(Clone, Copy)]
struct Client {
    sent: Instant,
    waits_for: u8,
}

const OFFER: u8 = 2;
const ACK: u8 = 5;
const NOTHING: u8 = 0;

struct Load {
    socket: UdpSocket,
    relay: Ipv4Addr,
    clients: Vec<Client>,
    offers: Vec<Duration>,
    acks: Vec<Duration>,
}

impl Load {
    fn send(&mut self, number: usize, request: Option<(&[u8], &[u8])>) {
        let mut message = [0; 300];
        message[..4].copy_from_slice(&[1, 1, 6, 1]);
        let xid = (number as u32).to_be_bytes();
        message[4..8].copy_from_slice(&xid);
        message[24..28].copy_from_slice(&self.relay.octets());
        message[28..30].copy_from_slice(&[0x02, 0x0c]);
        message[30..34].copy_from_slice(&xid);
        message[236..242].copy_from_slice(&[99, 130, 83, 99, 53, 1]);
        let tail = match request {
            None => [&[1][..], &[55, 5, 1, 28, 3, 15, 6, 255]].concat(),
            Some((address, server)) => {
                [&[3, 50, 4][..], address, &[54, 4], server, &[55, 5, 1, 28, 3, 15, 6, 255]].concat()
            }
        };
        message[242..242 + tail.len()].copy_from_slice(&tail);
        self.clients[number] = Client { sent: Instant::now(), waits_for: if request.is_some() { ACK } else { OFFER } };
        // A full queue is a lost packet.
        let _ = self.socket.send(&message);
    }

    /// `false`: nothing was there.
    fn receive(&mut self) -> std::io::Result<bool> {
        let mut answer = [0; 1500];
        let length = match self.socket.recv(&mut answer) {
            Ok(length) => length,
            Err(e) if e.kind() == WouldBlock => return Ok(false),
            Err(e) => return Err(e),
        };
        let number = u32::from_be_bytes([answer[4], answer[5], answer[6], answer[7]]) as usize;
        let (kind, server) = (option(&answer[240..length.max(240)], 53), option(&answer[240..length.max(240)], 54));
        let (Some(&[kind]), Some(server), Some(client)) = (kind, server, self.clients.get(number).copied()) else {
            return Ok(true);
        };
        let took = client.sent.elapsed();
        if kind != client.waits_for || took > LOST {
            return Ok(true);
        }
        match kind {
            OFFER => {
                self.offers.push(took);
                self.send(number, Some((&answer[16..20], server)));
            }
            _ => {
                self.acks.push(took);
                self.clients[number].waits_for = NOTHING;
            }
        }
        Ok(true)
    }
}

fn option(mut options: &[u8], code: u8) -> Option<&[u8]> {
    while let [found, length, tail @ ..] = options {
        if *found == 255 {
            return None;
        }
        let (data, next) = tail.split_at_checked((*length).into())?;
        if *found == code {
            return Some(data);
        }
        options = next;
    }
    None
}

/// Milliseconds; -1 for none.
fn p99(times: &mut [Duration]) -> f64 {
    times.sort();
    times.get(times.len() * 99 / 100).map_or(-1.0, |t| t.as_secs_f64() * 1e3)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [server, relay, rate, seconds] = args.as_slice() else {
        return Err("usage: dhcp-load SERVER RELAY RATE SECONDS".into());
    };
    let (server, relay): (Ipv4Addr, Ipv4Addr) = (server.parse()?, relay.parse()?);
    let (rate, seconds): (f64, f64) = (rate.parse()?, seconds.parse()?);
    let socket = UdpSocket::bind((relay, 67))?;
    socket.connect((server, 67))?;
    socket.set_nonblocking(true)?;
    let count = (rate * seconds) as usize;
    let start = Instant::now();
    let clients = vec![Client { sent: start, waits_for: NOTHING }; count];
    let mut load = Load { socket, relay, clients, offers: Vec::with_capacity(count), acks: Vec::with_capacity(count) };
    let (mut sent, mut last) = (0, start);
    // What the machine did not let us send in time is not made up for in the drain second.
    while last.elapsed() < LOST {
        let now = start.elapsed().as_secs_f64();
        let due = if now < seconds { ((now * rate) as usize).min(count) } else { sent };
        let burst = (due - sent).min(32);
        for _ in 0..burst {
            load.send(sent, None);
            sent += 1;
        }
        if now < seconds {
            last = Instant::now();
        }
        let mut idle = burst == 0;
        for _ in 0..32 {
            if !load.receive()? {
                break;
            }
            idle = false;
        }
        if idle {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
    let acked = load.acks.len();
    println!("sent {sent} acked {acked} p99_offer {:.3} p99_ack {:.3}", p99(&mut load.offers), p99(&mut load.acks));
    Ok(())
}
