//! One file on its way to one client: which blocks to send now. No sockets and no clock; time comes in as durations.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;

use super::packet::{self, ReadRequest};
use super::retry::Retry;

/// Blocks in flight. 64 full Ethernet frames take 147 KB of a receiver's memory, and the buffer of a Linux socket takes
/// 208 KiB; twice as many blocks were measured to be lost there, and not to be faster where they were not.
const MAX_WINDOW: u64 = 64;
/// Bytes in flight, for the same reason: blocks of jumbo frames fill that buffer sooner.
const MAX_FLIGHT: u64 = 128 << 10;
/// RFC 1350 section 2.
const DEFAULT_BLOCK: u16 = 512;

#[derive(Debug)]
pub struct Transfer {
    file: Bytes,
    block_size: usize,
    window: u64,
    /// The OACK packet, until it was acknowledged; `None` also where no option was asked for.
    option_ack: Option<Vec<u8>>,
    /// Blocks acknowledged, counted without rollover.
    acknowledged: u64,
    /// Blocks sent at least once.
    sent: u64,
    /// The next block to send: the one behind `acknowledged` or, where the rest is still under way, behind `sent`.
    next: u64,
    /// The client did not get all of it, or some of it twice.
    in_doubt: bool,
    retry: Retry,
}

/// What to do after something happened, or did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Send [`Transfer::window`], and wait for [`Transfer::patience`].
    Send,
    /// The client goes on, and what is under way will do: wait for [`Transfer::patience`] from now.
    Wait,
    /// Says nothing new; the wait goes on.
    Ignore,
    Complete,
    /// The client is gone.
    GiveUp,
}

/// Everything that may be in flight now.
#[derive(Debug, PartialEq, Eq)]
pub enum Window<'a> {
    OptionAck(&'a [u8]),
    /// Numbers for [`Transfer::block`], without rollover.
    Blocks(RangeInclusive<u64>),
}

impl Transfer {
    /// `path` is the largest block that reaches the client in one piece.
    pub fn new(file: Bytes, request: &ReadRequest, path: u16) -> Self {
        let block_size = request.block_size.map(|n| n.min(path));
        let size = u64::from(block_size.unwrap_or(DEFAULT_BLOCK));
        let window = request.window.map(|n| u64::from(n).min(MAX_WINDOW).min(MAX_FLIGHT / size).max(1));
        let mut options = Vec::new();
        options.extend(block_size.map(|n| ("blksize", u64::from(n))));
        options.extend(request.size.then_some(("tsize", file.len() as u64)));
        options.extend(request.timeout.map(|n| ("timeout", u64::from(n))));
        options.extend(window.map(|n| ("windowsize", n)));
        let mut transfer = Self {
            option_ack: (!options.is_empty()).then(|| packet::option_ack(&options)),
            block_size: size as usize,
            window: window.unwrap_or(1),
            file,
            acknowledged: 0,
            sent: 0,
            next: 1,
            in_doubt: false,
            retry: Retry::new(request.timeout),
        };
        if transfer.option_ack.is_none() {
            transfer.send_from(1);
        }
        transfer
    }

    /// The number of the last block: the first one that is not full, perhaps empty (RFC 1350 section 2).
    fn last(&self) -> u64 {
        (self.file.len() / self.block_size) as u64 + 1
    }

    /// The last block that may be in flight now.
    fn end(&self) -> u64 {
        self.last().min(self.acknowledged + self.window)
    }

    pub fn window(&self) -> Window<'_> {
        match &self.option_ack {
            Some(packet) => Window::OptionAck(packet),
            None => Window::Blocks(self.next..=self.end()),
        }
    }

    /// Header and content of a DATA packet. Block numbers on the wire roll over from 65535 to 0, as every client that
    /// loads more than 65535 blocks expects.
    pub fn block(&self, number: u64) -> ([u8; 4], &[u8]) {
        let start = (number.saturating_sub(1) as usize).saturating_mul(self.block_size).min(self.file.len());
        let end = (start + self.block_size).min(self.file.len());
        (packet::data_header(number as u16), self.file.get(start..end).unwrap_or_default())
    }

    /// More than one packet may be under way.
    pub fn has_window(&self) -> bool {
        self.window > 1
    }

    /// Bytes of a full DATA packet.
    pub fn packet_size(&self) -> usize {
        4 + self.block_size
    }

    /// How long after the last [`Step::Send`] or [`Step::Wait`] to call [`Transfer::expired`].
    pub fn patience(&self) -> Duration {
        if self.in_doubt { self.retry.doubt() } else { self.retry.delay() }
    }

    /// Nothing that helps came within [`Transfer::patience`].
    pub fn expired(&mut self) -> Step {
        if self.in_doubt {
            return self.send_again();
        }
        if self.retry.expired() { self.send_from(self.acknowledged + 1) } else { Step::GiveUp }
    }

    /// An ACK came, so long after the last [`Step::Send`] or [`Step::Wait`].
    pub fn acknowledge(&mut self, number: u16, after: Duration) -> Step {
        if self.option_ack.is_some() {
            if number != 0 {
                return Step::Ignore;
            }
            self.option_ack = None;
            self.retry.answered(after);
            return self.send_from(1);
        }
        let step = u64::from(number.wrapping_sub(self.acknowledged as u16));
        if step > self.window || self.acknowledged + step > self.last() {
            return Step::Ignore;
        }
        self.acknowledged += step;
        if self.acknowledged == self.last() {
            return Step::Complete;
        }
        if step > 0 && self.acknowledged == self.sent {
            self.in_doubt = false;
            self.retry.answered(after);
            return self.send_from(self.acknowledged + 1);
        }
        match self.window {
            // RFC 1123 section 4.2.3.1: to answer a repeated ACK would send every block twice from there on.
            1 => Step::Ignore,
            _ => self.inside_window(step, after),
        }
    }

    /// An ACK inside the window says that the block behind it was lost and the window starts anew from there (RFC 7440
    /// section 4). Or that a block came twice, and then the rest of the window is still under way: EDK2 acknowledges again
    /// whatever it did not expect, and atftp each block by itself. To send the rest again would bring more blocks twice,
    /// for ever. So the window moves on by what the client has, and starts anew when nothing new comes for a moment.
    fn inside_window(&mut self, step: u64, after: Duration) -> Step {
        if after >= self.retry.doubt() && (step == 0 || self.in_doubt) {
            return self.send_again();
        }
        self.in_doubt = true;
        if step == 0 {
            return Step::Ignore;
        }
        self.retry.heard();
        self.retry.mixed();
        if self.sent == self.end() { Step::Wait } else { self.send_from(self.sent + 1) }
    }

    fn send_again(&mut self) -> Step {
        self.in_doubt = false;
        self.retry.mixed();
        self.send_from(self.acknowledged + 1)
    }

    fn send_from(&mut self, block: u64) -> Step {
        self.next = block;
        self.sent = self.sent.max(self.end());
        Step::Send
    }
}

/// RFC 764: a line ends with CR LF, and a CR that stands alone is CR NUL.
pub fn netascii(file: &[u8]) -> Bytes {
    let mut text = Vec::with_capacity(file.len() + file.len() / 32);
    for &byte in file {
        match byte {
            b'\n' => text.extend(b"\r\n"),
            b'\r' => text.extend(b"\r\0"),
            _ => text.push(byte),
        }
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const SOON: Duration = Duration::from_micros(100);
    const LATER: Duration = Duration::from_millis(250);
    const ETHERNET: u16 = 1468;

    fn ask(block_size: Option<u16>, window: Option<u16>) -> ReadRequest {
        ReadRequest { name: "f".into(), netascii: false, block_size, size: false, timeout: None, window }
    }

    fn noise(size: usize) -> Bytes {
        (0..size).map(|n| (n * 31 + n / 251) as u8).collect::<Vec<u8>>().into()
    }

    /// The packets of a window.
    fn packets(transfer: &Transfer) -> Vec<Vec<u8>> {
        match transfer.window() {
            Window::OptionAck(packet) => vec![packet.to_vec()],
            Window::Blocks(numbers) => numbers
                .map(|n| transfer.block(n))
                .map(|(header, bytes)| {
                    assert!(4 + bytes.len() <= transfer.packet_size());
                    [&header, bytes].concat()
                })
                .collect(),
        }
    }

    /// A client as RFC 1350 and 7440 want it, that acknowledges again whatever it did not expect.
    #[derive(Debug)]
    struct Client {
        block_size: usize,
        window: usize,
        file: Vec<u8>,
        /// The last block that came in order; `None`: not even the OACK.
        held: Option<u64>,
        in_window: usize,
        done: bool,
    }

    impl Client {
        fn new(transfer: &Transfer) -> Self {
            let waits = transfer.option_ack.is_some();
            Self {
                block_size: transfer.block_size,
                window: transfer.window as usize,
                file: Vec::new(),
                held: (!waits).then_some(0),
                in_window: 0,
                done: false,
            }
        }

        fn receive(&mut self, packet: &[u8]) -> Option<u16> {
            if packet[1] == 6 {
                self.held.get_or_insert(0);
                return (self.held == Some(0)).then_some(0);
            }
            let held = self.held?;
            if u16::from_be_bytes([packet[2], packet[3]]) != (held + 1) as u16 || self.done {
                self.in_window = 0;
                return Some(held as u16);
            }
            self.file.extend(&packet[4..]);
            (self.held, self.in_window) = (Some(held + 1), self.in_window + 1);
            self.done = packet.len() - 4 < self.block_size;
            let answer = self.done || self.in_window == self.window;
            self.in_window %= self.window;
            answer.then_some((held + 1) as u16)
        }
    }

    /// Transfers without losses; returns the bytes and how many packets were sent.
    fn receive(transfer: &mut Transfer) -> (Vec<u8>, usize) {
        let mut client = Client::new(transfer);
        let mut sent = 0;
        loop {
            let window = packets(transfer);
            sent += window.len();
            let acks: Vec<u16> = window.iter().filter_map(|p| client.receive(p)).collect();
            assert_eq!(acks.len(), 1, "one ACK for a window");
            match transfer.acknowledge(acks[0], SOON) {
                Step::Send => {}
                Step::Complete => return (client.file, sent),
                step => panic!("{step:?} at {}", acks[0]),
            }
        }
    }

    #[test]
    fn whole_files_of_awkward_sizes() {
        for size in [0, 1, 511, 512, 513, 1024, 5000] {
            for (block, window) in [(None, None), (Some(8), Some(3)), (Some(512), Some(64)), (Some(1468), None)] {
                let file = noise(size);
                let mut transfer = Transfer::new(file.clone(), &ask(block, window), ETHERNET);
                assert_eq!(receive(&mut transfer).0, file, "{size} {block:?} {window:?}");
            }
        }
    }

    #[test]
    fn block_numbers_roll_over() {
        // Twice, and with a last block that is number 0 on the wire and empty.
        for (blocks, rest) in [(140_000, 3), (65_535, 0)] {
            let file = noise(8 * blocks + rest);
            for window in [1, 5, 64] {
                let (received, packets) =
                    receive(&mut Transfer::new(file.clone(), &ask(Some(8), Some(window)), ETHERNET));
                assert!(received == file);
                assert_eq!(packets, blocks + 2);
            }
        }
    }

    #[test]
    fn options_are_cut_to_what_the_path_and_the_receiver_take() {
        let mut request = ask(Some(65464), Some(1000));
        (request.size, request.timeout) = (true, Some(3));
        let agreed = |path| packets(&Transfer::new(Bytes::from_static(b"12345"), &request, path)).concat();
        assert_eq!(agreed(ETHERNET), b"\0\x06blksize\x001468\0tsize\x005\0timeout\x003\0windowsize\x0064\0");
        assert_eq!(agreed(8968), b"\0\x06blksize\x008968\0tsize\x005\0timeout\x003\0windowsize\x0014\0");
        assert_eq!(agreed(u16::MAX), b"\0\x06blksize\x0065464\0tsize\x005\0timeout\x003\0windowsize\x002\0");
    }

    #[test]
    fn losses_within_a_window() {
        let mut transfer = Transfer::new(noise(8 * 10), &ask(Some(8), Some(4)), ETHERNET);
        assert_eq!(transfer.acknowledge(3, SOON), Step::Ignore, "the OACK comes first");
        assert_eq!(transfer.acknowledge(0, SOON), Step::Send);
        assert_eq!(transfer.window(), Window::Blocks(1..=4));
        assert_eq!(transfer.acknowledge(2, SOON), Step::Send, "3 and 4 were lost, or come yet");
        assert_eq!(transfer.window(), Window::Blocks(5..=6));
        assert_eq!(transfer.acknowledge(2, SOON), Step::Ignore);
        assert_eq!(transfer.patience(), Duration::from_millis(1));
        assert_eq!(transfer.expired(), Step::Send, "3 and 4 were lost");
        assert_eq!(transfer.window(), Window::Blocks(3..=6));
        assert_eq!(transfer.patience(), Duration::from_millis(200));
        assert_eq!(transfer.acknowledge(2, LATER), Step::Send, "3 was lost again");
        assert_eq!(transfer.window(), Window::Blocks(3..=6));
        assert_eq!(transfer.acknowledge(7, SOON), Step::Ignore, "never sent");
        assert_eq!(transfer.acknowledge(1, SOON), Step::Ignore, "the past");
        assert_eq!(transfer.acknowledge(6, SOON), Step::Send);
        assert_eq!(transfer.window(), Window::Blocks(7..=10));
    }

    #[test]
    fn a_repeated_ack_does_not_double_the_traffic() {
        let mut transfer = Transfer::new(noise(2000), &ask(None, None), ETHERNET);
        assert_eq!(transfer.acknowledge(1, SOON), Step::Send);
        assert_eq!(transfer.acknowledge(1, LATER), Step::Ignore);
    }

    #[test]
    fn netascii_lines() {
        assert_eq!(netascii(b"a\nb\r"), &b"a\r\nb\r\0"[..]);
        assert_eq!(netascii(b""), &b""[..]);
    }

    /// What becomes of a packet on the way.
    #[derive(Debug, Clone, Copy)]
    enum Fate {
        Arrives,
        Lost,
        Doubled,
        /// Others overtake it.
        Late(Duration),
    }

    fn fates() -> impl Strategy<Value = Vec<Fate>> {
        let one = prop_oneof![
            6 => Just(Fate::Arrives),
            1 => Just(Fate::Lost),
            1 => Just(Fate::Doubled),
            1 => (0..2000u64).prop_map(|us| Fate::Late(Duration::from_micros(us))),
        ];
        proptest::collection::vec(one, 0..300)
    }

    enum Packet {
        ToClient(Vec<u8>),
        ToServer(u16),
    }

    /// Server and client with a link between them: 100 us each way, 10 us a packet.
    struct Link {
        transfer: Transfer,
        client: Client,
        /// By when they arrive.
        packets: BTreeMap<(Duration, usize), Packet>,
        /// Of the packets from now on; then all arrive.
        fates: std::vec::IntoIter<Fate>,
        now: Duration,
        since: Duration,
        sent: usize,
        travelled: usize,
    }

    impl Link {
        fn new(transfer: Transfer, fates: Vec<Fate>) -> Self {
            let client = Client::new(&transfer);
            let (now, since) = (Duration::ZERO, Duration::ZERO);
            let (packets, fates) = (BTreeMap::new(), fates.into_iter());
            Self { transfer, client, packets, fates, now, since, sent: 0, travelled: 0 }
        }

        fn travel(&mut self, packet: impl Fn() -> Packet, after: u32) {
            let arrival = self.now + Duration::from_micros(100) + Duration::from_micros(10) * after;
            let arrivals = match self.fates.next().unwrap_or(Fate::Arrives) {
                Fate::Arrives => vec![arrival],
                Fate::Lost => vec![],
                Fate::Doubled => vec![arrival; 2],
                Fate::Late(by) => vec![arrival + by],
            };
            for arrival in arrivals {
                self.travelled += 1;
                self.packets.insert((arrival, self.travelled), packet());
            }
        }

        fn send(&mut self) {
            let window = packets(&self.transfer);
            assert!(!window.is_empty(), "Send with nothing to send");
            self.sent += window.len();
            self.since = self.now;
            for (packet, after) in window.iter().zip(0..) {
                self.travel(|| Packet::ToClient(packet.clone()), after);
            }
        }

        /// Until the server is through with it, or something else is true.
        fn run(&mut self, until: impl Fn(&Self) -> bool) -> Option<Step> {
            for _ in 0..100_000 {
                if until(self) {
                    return None;
                }
                let deadline = self.since + self.transfer.patience();
                let due = self.packets.first_entry().filter(|first| first.key().0 <= deadline);
                let step = match due.map(|first| first.remove_entry()) {
                    None => {
                        self.now = deadline;
                        self.transfer.expired()
                    }
                    Some(((arrival, _), Packet::ToServer(ack))) => {
                        self.now = arrival;
                        self.transfer.acknowledge(ack, arrival - self.since)
                    }
                    Some(((arrival, _), Packet::ToClient(packet))) => {
                        self.now = arrival;
                        if let Some(ack) = self.client.receive(&packet) {
                            self.travel(|| Packet::ToServer(ack), 0);
                        }
                        Step::Ignore
                    }
                };
                match step {
                    Step::Send => self.send(),
                    Step::Wait => self.since = self.now,
                    Step::Ignore => {}
                    end => return Some(end),
                }
            }
            panic!("does not come to an end: {:?}", self.transfer.retry);
        }
    }

    proptest! {
        #[test]
        fn any_network_ends_with_the_file_or_a_clean_end(
            fates in fates(), size in 0..1000usize, block in 8..40u16, window in proptest::option::of(1..9u16)
        ) {
            let file = noise(size);
            let transfer = Transfer::new(file.clone(), &ask(Some(block), window), ETHERNET);
            let mut link = Link::new(transfer, fates);
            link.send();
            match link.run(|_| false) {
                Some(Step::Complete) => prop_assert!(link.client.file == file),
                // The client has it all, and its last ACK was lost each time.
                Some(Step::GiveUp) => prop_assert!(file.starts_with(&link.client.file)),
                end => prop_assert!(false, "{end:?}"),
            }
        }

        /// Whatever was lost and doubled on the way: on a good network every block travels once from then on, after a
        /// last window or two.
        #[test]
        fn disturbed_transfers_calm_down(fates in fates(), window in 1..9u16) {
            let file = noise(8 * 1000);
            let mut link = Link::new(Transfer::new(file.clone(), &ask(Some(8), Some(window)), ETHERNET), fates);
            link.send();
            if link.run(|link| link.fates.as_slice().is_empty()).is_none() {
                let before = link.sent;
                let left = link.transfer.last() - link.transfer.acknowledged;
                if link.run(|_| false) == Some(Step::Complete) {
                    prop_assert!(link.client.file == file);
                    let most = left as usize + 3 * usize::from(window);
                    prop_assert!(link.sent - before <= most, "{} packets instead of {left}", link.sent - before);
                }
            }
        }

        #[test]
        fn stray_acks_are_survived(acks in proptest::collection::vec((any::<u16>(), 0..2000u64), 0..400), window in 1..9u16) {
            let mut transfer = Transfer::new(noise(3000), &ask(Some(8), Some(window)), ETHERNET);
            for (ack, after) in acks {
                match transfer.acknowledge(ack % 400, Duration::from_micros(after)) {
                    Step::Send => prop_assert!(!packets(&transfer).is_empty()),
                    Step::Wait | Step::Ignore => {}
                    Step::Complete => return Ok(()),
                    Step::GiveUp => prop_assert!(false, "an ACK is a sign of life"),
                }
            }
        }

        #[test]
        fn a_client_that_is_gone_is_given_up(acks in proptest::collection::vec(any::<u16>(), 0..20), timeout: Option<u8>) {
            let request = ReadRequest { timeout: timeout.filter(|t| *t > 0), ..ask(Some(8), Some(4)) };
            let mut transfer = Transfer::new(noise(1000), &request, ETHERNET);
            acks.into_iter().for_each(|ack| _ = transfer.acknowledge(ack, SOON));
            let mut silence = Duration::ZERO;
            for _ in 0..100 {
                silence += transfer.patience();
                if transfer.expired() == Step::GiveUp {
                    prop_assert!((Duration::from_secs(30)..=Duration::from_secs(4 * 255)).contains(&silence));
                    return Ok(());
                }
            }
            prop_assert!(false, "waits for ever");
        }
    }
}
