//! The two directions of a serial console in packets (sections 15.9 to 15.11): pure, without a socket or a clock.
//!
//! ```text
//! sequence(4 bits)  acknowledged(4 bits)  characters accepted  operation or status  characters…
//! ```
//!
//! One packet is on its way in each direction at a time. It goes out again under the same number until it is
//! acknowledged; what of it was not accepted goes out anew under the next number. A sequence of 0 carries nothing that is
//! to be acknowledged.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Bits of the fourth byte, towards the BMC (table 15-2). The same bit 6 in both directions: not acknowledged.
const REFUSED: u8 = 1 << 6;
const BREAK: u8 = 1 << 4;
/// And from it.
const UNAVAILABLE: u8 = 1 << 5;
const DEACTIVATED: u8 = 1 << 4;
const OVERRUN: u8 = 1 << 3;
const BREAK_SEEN: u8 = 1 << 2;

/// Characters in one packet that can be accepted: their number is one byte.
const COUNT_MAX: usize = 255;
/// How often a packet is sent before its characters are given up. Whether the BMC is still there is asked otherwise.
const TRIES: u32 = 10;
const AGAIN: Duration = Duration::from_millis(250);
const AGAIN_MAX: Duration = Duration::from_secs(1);
/// How long the BMC is left alone after it refused characters, where it does not say earlier that it takes more.
const HOLD: Duration = Duration::from_millis(300);
/// How long it may refuse before what was typed is given up: a machine that is off takes nothing.
const REFUSALS_WITHIN: Duration = Duration::from_secs(10);

enum Key {
    Text(Vec<u8>),
    Break,
}

/// The packet that is on its way.
struct Flight {
    sequence: u8,
    characters: usize,
    due: Instant,
    tries: u32,
}

/// What a packet of the BMC brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Received {
    pub text: Vec<u8>,
    /// To be sent back.
    pub reply: Option<Vec<u8>>,
    /// The BMC lost characters of the machine before these.
    pub overrun: bool,
    pub broke: bool,
    /// The BMC has ended the console, or somebody else did.
    pub ended: bool,
}

pub struct Link {
    keys: VecDeque<Key>,
    ahead: usize,
    flight: Option<Flight>,
    /// Of the last packet sent.
    sequence: u8,
    /// Characters in one packet that the BMC takes.
    largest: usize,
    held_until: Option<Instant>,
    refused_since: Option<Instant>,
    /// Number and characters of the BMC's last packet, to know it when it comes again.
    last: (u8, usize),
    given_up: usize,
}

impl Link {
    /// `largest`: bytes of the largest payload that the BMC takes. `start`: any number; the sequence begins with it,
    /// since `ipmi_sim` takes a first packet for a repeated one that has the number of the last console's last.
    pub fn new(largest: u16, start: u32) -> Self {
        // Some BMCs say 0, or swap the bytes; a packet that is too long is accepted in part.
        let largest = usize::from(largest).checked_sub(4).filter(|n| *n > 0).unwrap_or(16).min(COUNT_MAX);
        Self {
            keys: VecDeque::new(),
            ahead: 0,
            flight: None,
            sequence: (start % 15) as u8,
            largest,
            held_until: None,
            refused_since: None,
            last: (0, 0),
            given_up: 0,
        }
    }

    /// Whether all that was typed has been taken or given up.
    pub fn is_idle(&self) -> bool {
        self.keys.is_empty()
    }

    pub fn type_in(&mut self, text: &[u8]) {
        self.ahead += text.len();
        match self.keys.back_mut() {
            Some(Key::Text(last)) => last.extend_from_slice(text),
            _ if text.is_empty() => {}
            _ => self.keys.push_back(Key::Text(text.to_vec())),
        }
    }

    /// A break on the serial line, after what was typed before.
    pub fn press_break(&mut self) {
        self.keys.push_back(Key::Break);
    }

    /// Characters and breaks that were given up since this was asked last.
    pub fn given_up(&mut self) -> usize {
        std::mem::take(&mut self.given_up)
    }

    /// The packet that is to be sent now, first or again. Ask until there is none.
    pub fn next(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.held_until.is_some_and(|until| now < until) {
            return None;
        }
        match &mut self.flight {
            Some(flight) if now < flight.due => return None,
            Some(flight) if flight.tries >= TRIES => {
                let characters = flight.characters;
                self.flight = None;
                self.give_up(characters);
                return self.next(now);
            }
            Some(flight) => {
                flight.tries += 1;
                flight.due = now + (AGAIN * flight.tries).min(AGAIN_MAX);
            }
            None => {
                let characters = match self.keys.front()? {
                    Key::Text(text) => text.len().min(self.largest),
                    Key::Break => 0,
                };
                self.sequence = self.sequence % 15 + 1;
                self.flight = Some(Flight { sequence: self.sequence, characters, due: now + AGAIN, tries: 1 });
            }
        }
        let flight = self.flight.as_ref()?;
        Some(match self.keys.front()? {
            Key::Text(text) => [&[flight.sequence, 0, 0, 0], text.get(..flight.characters)?].concat(),
            Key::Break => vec![flight.sequence, 0, 0, BREAK],
        })
    }

    /// When [`Link::next`] has something again, if nothing comes before.
    pub fn wake(&self) -> Option<Instant> {
        match (&self.flight, self.held_until) {
            (Some(flight), held) => Some(held.map_or(flight.due, |until| until.max(flight.due))),
            (None, Some(until)) if !self.keys.is_empty() => Some(until),
            _ => None,
        }
    }

    /// Takes a packet of the BMC; `None` where it is too short to be one.
    pub fn receive(&mut self, now: Instant, payload: &[u8]) -> Option<Received> {
        let ([sequence, acknowledged, accepted, status], text) = payload.split_first_chunk::<4>()?;
        self.acknowledge(now, acknowledged & 0xf, (*accepted).into(), *status);
        let mut received = Received {
            overrun: status & OVERRUN != 0,
            broke: status & BREAK_SEEN != 0,
            ended: status & DEACTIVATED != 0,
            ..Received::default()
        };
        let sequence = sequence & 0xf;
        if sequence == 0 {
            return Some(received);
        }
        let repeated = sequence == self.last.0;
        if !repeated {
            received.text = text.iter().take(COUNT_MAX).copied().collect();
            self.last = (sequence, received.text.len());
        }
        // A repeated packet may have more characters at its end. They are left out of the count, and come again under
        // the next number: the BMC may have cut them off its buffer already, or not, and either way this is right.
        received.reply = Some(vec![0, sequence, self.last.1 as u8, 0]);
        Some(received)
    }

    fn acknowledge(&mut self, now: Instant, acknowledged: u8, accepted: usize, status: u8) {
        let refused = status & (REFUSED | UNAVAILABLE) != 0;
        if acknowledged != 0 && !refused {
            // It takes characters, whichever packet that is about.
            self.held_until = None;
        }
        let Some(flight) = self.flight.take_if(|flight| flight.sequence == acknowledged) else { return };
        if refused {
            self.held_until = Some(now + HOLD);
            let since = *self.refused_since.get_or_insert(now);
            if accepted > 0 {
                self.drop_keys(accepted.min(flight.characters));
                self.refused_since = Some(now);
            } else if now - since > REFUSALS_WITHIN {
                self.give_up(self.ahead);
            }
            return;
        }
        self.refused_since = None;
        // Accepted, and none of it, and not refused: what BMCs say that do not count. It was taken.
        let count = if accepted == 0 { flight.characters } else { accepted.min(flight.characters) };
        self.drop_keys(count);
    }

    /// Takes `characters` from the front, or the break that stands there.
    fn drop_keys(&mut self, characters: usize) {
        match self.keys.front_mut() {
            Some(Key::Text(text)) => {
                let count = characters.min(text.len());
                text.drain(..count);
                self.ahead -= count;
                if text.is_empty() {
                    self.keys.pop_front();
                }
            }
            Some(Key::Break) => drop(self.keys.pop_front()),
            None => {}
        }
    }

    fn give_up(&mut self, characters: usize) {
        self.given_up += characters.max(1);
        match characters < self.ahead {
            true => self.drop_keys(characters),
            false => {
                self.keys.clear();
                self.ahead = 0;
            }
        }
        self.refused_since = None;
        self.held_until = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// With the number 1 for the first packet.
    fn link(largest: u16) -> Link {
        Link::new(largest, 15)
    }

    #[test]
    fn keys_go_out_in_packets_of_the_size_that_the_bmc_takes() {
        let (mut link, now) = (link(8), Instant::now());
        link.type_in(b"reboot\r");
        assert_eq!(link.next(now).unwrap(), b"\x01\0\0\0rebo");
        link.type_in(b"!");
        assert_eq!(link.next(now), None, "one packet at a time");
        assert_eq!(link.wake(), Some(now + AGAIN));
        assert_eq!(link.next(now + AGAIN).unwrap(), b"\x01\0\0\0rebo", "again, under the same number");
        // Three of the four are taken.
        assert_eq!(link.receive(now, &[0, 1, 3, 0]).unwrap(), Received::default());
        assert_eq!(link.next(now).unwrap(), b"\x02\0\0\0oot\r");
        link.receive(now, &[0, 1, 3, 0]).unwrap();
        assert_eq!(link.next(now), None, "an old confirmation confirms nothing");
        link.receive(now, &[0, 2, 4, 0]).unwrap();
        assert_eq!(link.next(now).unwrap(), b"\x03\0\0\0!");
        // A BMC that does not count.
        link.receive(now, &[0, 3, 0, 0]).unwrap();
        assert_eq!((link.next(now), link.wake(), link.ahead), (None, None, 0));
    }

    #[test]
    fn a_break_keeps_its_place_among_the_keys() {
        let (mut link, now) = (link(64), Instant::now());
        link.type_in(b"a");
        link.press_break();
        link.type_in(b"b");
        link.type_in(b"c");
        for (expected, sequence) in [(&b"\x01\0\0\0a"[..], 1), (b"\x02\0\0\x10", 2), (b"\x03\0\0\0bc", 3)] {
            assert_eq!(link.next(now).unwrap(), expected);
            link.receive(now, &[0, sequence, 9, 0]).unwrap();
        }
        assert_eq!(link.next(now), None);
    }

    #[test]
    fn a_refusal_holds_the_keys_until_the_bmc_takes_more() {
        let (mut link, now) = (link(64), Instant::now());
        link.type_in(b"abcd");
        link.next(now).unwrap();
        link.receive(now, &[0, 1, 1, REFUSED]).unwrap();
        assert_eq!(link.next(now + ms(100)), None);
        assert_eq!(link.wake(), Some(now + HOLD));
        // It says itself that it goes on.
        link.receive(now + ms(150), &[0, 1, 1, 0]).unwrap();
        assert_eq!(link.next(now + ms(150)).unwrap(), b"\x02\0\0\0bcd");
        link.receive(now + ms(150), &[0, 2, 0, REFUSED | UNAVAILABLE]).unwrap();
        // It does not; the same again, under new numbers, until they are given up.
        let mut at = now + ms(150);
        let mut sent = 0;
        while link.given_up == 0 {
            at += HOLD;
            let packet = link.next(at).unwrap();
            link.receive(at, &[0, packet[0], 0, REFUSED | UNAVAILABLE]).unwrap();
            sent += 1;
        }
        assert!((30..=40).contains(&sent), "{sent}");
        assert_eq!((link.given_up(), link.given_up(), link.next(at)), (3, 0, None));
    }

    #[test]
    fn keys_that_nobody_confirms_are_given_up() {
        let (mut link, mut now) = (link(64), Instant::now());
        link.type_in(b"lost");
        let mut sent = 0;
        while link.next(now).is_some() {
            sent += 1;
            now = link.wake().unwrap();
        }
        assert_eq!((sent, link.given_up()), (TRIES, 4));
        link.type_in(b"x");
        assert_eq!(link.next(now).unwrap(), b"\x02\0\0\0x");
    }

    #[test]
    fn what_comes_twice_is_taken_once_and_confirmed_twice() {
        let (mut link, now) = (link(64), Instant::now());
        let first = link.receive(now, b"\x05\0\0\0GRUB").unwrap();
        assert_eq!((first.text.as_slice(), first.reply.as_deref()), (&b"GRUB"[..], Some(&[0, 5, 4, 0][..])));
        // Our confirmation was lost; meanwhile the machine said more.
        let again = link.receive(now, b"\x05\0\0\0GRUB loading").unwrap();
        assert_eq!((again.text.as_slice(), again.reply.as_deref()), (&b""[..], Some(&[0, 5, 4, 0][..])));
        assert_eq!(link.receive(now, b"\x06\0\0\0 loading").unwrap().text, b" loading");
        // Nothing but a question whether we are there.
        let empty = link.receive(now, &[7, 0, 0, 0]).unwrap();
        assert_eq!((empty.text.len(), empty.reply.as_deref()), (0, Some(&[0, 7, 0, 0][..])));
        let long = [&[8, 0, 0, 0][..], &[b'x'; 300]].concat();
        let long = link.receive(now, &long).unwrap();
        assert_eq!((long.text.len(), long.reply.as_deref()), (255, Some(&[0, 8, 255, 0][..])));
    }

    #[test]
    fn the_status_of_the_bmc() {
        let (mut link, now) = (link(64), Instant::now());
        let received = link.receive(now, &[0, 0, 0, OVERRUN | BREAK_SEEN | DEACTIVATED]).unwrap();
        assert!(received.overrun && received.broke && received.ended && received.reply.is_none());
        for short in [&[][..], &[1], &[1, 0, 0]] {
            assert!(link.receive(now, short).is_none());
        }
    }

    #[test]
    fn sequence_numbers_go_from_1_to_15_and_sizes_that_make_no_sense_are_bounded() {
        for (start, first) in [(0, 1), (14, 15), (15, 1), (u32::MAX, 1)] {
            let mut link = Link::new(64, start);
            link.type_in(b"x");
            assert_eq!(link.next(Instant::now()).unwrap()[0], first);
        }
        assert_eq!([0, 4, 5, 32, 0x2000].map(|inbound| Link::new(inbound, 0).largest), [16, 16, 1, 28, 255]);
    }

    proptest::proptest! {
        /// Whatever a BMC sends, and however it acknowledges: no panic, and the keys are counted right.
        #[test]
        fn any_packets(packets in proptest::collection::vec((proptest::collection::vec(proptest::num::u8::ANY, 0..12), 0u64..400), 0..60)) {
            let (mut link, mut now) = (link(16), Instant::now());
            for (payload, pause) in packets {
                link.type_in(&payload);
                if payload.len() == 3 {
                    link.press_break();
                }
                while link.next(now).is_some() {}
                link.receive(now, &payload);
                now += ms(pause);
                let ahead: usize = link.keys.iter().map(|key| match key { Key::Text(text) => text.len(), Key::Break => 0 }).sum();
                proptest::prop_assert_eq!(ahead, link.ahead);
            }
        }
    }
}
