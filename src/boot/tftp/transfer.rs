//! One file on its way to one client: which blocks to send now. No sockets and no clock.

use bytes::Bytes;

use super::packet::{self, ReadRequest};

/// Ethernet with the usual 1500 bytes, less IP, UDP and TFTP headers: a larger block would travel as fragments, which
/// PXE ROMs do not put together.
pub const MAX_BLOCK: u16 = 1468;
/// Blocks in flight. More gains nothing on a LAN, and a burst must fit the buffers of old switches and cards.
pub const MAX_WINDOW: u16 = 64;
const DEFAULT_BLOCK: u16 = 512;

#[derive(Debug)]
pub struct Transfer {
    file: Bytes,
    block_size: usize,
    window: u64,
    /// What was agreed, as the OACK says it; empty: no OACK.
    options: Vec<(&'static str, u64)>,
    /// Blocks acknowledged, counted without rollover; with options, block 0 is the OACK.
    acknowledged: u64,
    /// The OACK was acknowledged, or there is none.
    open: bool,
    /// The window was sent again for a repeated ACK already (RFC 1350's "sorcerer's apprentice" otherwise).
    repeated: bool,
}

/// What an ACK brings about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Send [`Transfer::window`].
    Send,
    /// An ACK of the past, or of nothing we sent.
    Nothing,
    Complete,
}

impl Transfer {
    pub fn new(file: &Bytes, request: &ReadRequest) -> Self {
        let file = if request.netascii { netascii(file) } else { file.clone() };
        let block_size = request.block_size.map(|n| n.min(MAX_BLOCK));
        let window = request.window.map(|n| n.min(MAX_WINDOW));
        let mut options = Vec::new();
        options.extend(block_size.map(|n| ("blksize", u64::from(n))));
        options.extend(request.size.then_some(("tsize", file.len() as u64)));
        options.extend(request.timeout.map(|n| ("timeout", u64::from(n))));
        options.extend(window.map(|n| ("windowsize", u64::from(n))));
        Self {
            open: options.is_empty(),
            block_size: block_size.unwrap_or(DEFAULT_BLOCK).into(),
            window: window.unwrap_or(1).into(),
            file,
            options,
            acknowledged: 0,
            repeated: false,
        }
    }

    /// The number of the last block: the first one that is not full, perhaps empty (RFC 1350 section 2).
    fn last(&self) -> u64 {
        (self.file.len() / self.block_size) as u64 + 1
    }

    /// Everything that may be in flight now, first to last.
    pub fn window(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        let option_ack = (!self.open).then(|| packet::option_ack(&self.options));
        let blocks = match self.open {
            true => self.acknowledged + 1..self.last().min(self.acknowledged + self.window) + 1,
            false => 0..0,
        };
        option_ack.into_iter().chain(blocks.map(|n| self.block(n)))
    }

    /// Block numbers roll over from 65535 to 0, as every client that loads more than 32 MB expects.
    fn block(&self, number: u64) -> Vec<u8> {
        let start = (number as usize - 1) * self.block_size;
        let end = (start + self.block_size).min(self.file.len());
        packet::data(number as u16, self.file.get(start..end).unwrap_or_default())
    }

    pub fn acknowledge(&mut self, number: u16) -> Progress {
        if !self.open {
            self.open = number == 0;
            return if self.open { Progress::Send } else { Progress::Nothing };
        }
        let step = u64::from(number.wrapping_sub(self.acknowledged as u16));
        if step == 0 {
            // With a window it tells that the window's first block was lost; without, it is an echo of a repetition.
            let resend = self.window > 1 && !self.repeated;
            self.repeated = true;
            return if resend { Progress::Send } else { Progress::Nothing };
        }
        if step > self.window || self.acknowledged + step > self.last() {
            return Progress::Nothing;
        }
        self.acknowledged += step;
        self.repeated = false;
        match self.acknowledged == self.last() {
            true => Progress::Complete,
            false => Progress::Send,
        }
    }
}

/// RFC 764: a line ends with CR LF, and a CR that stands alone is CR NUL.
fn netascii(file: &Bytes) -> Bytes {
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
    use super::*;

    fn ask(block_size: Option<u16>, window: Option<u16>) -> ReadRequest {
        ReadRequest { name: "f".into(), netascii: false, block_size, size: false, timeout: None, window }
    }

    /// Plays a client that gets every block; returns the bytes and how many packets were sent.
    fn receive(transfer: &mut Transfer) -> (Vec<u8>, usize) {
        let (mut file, mut packets) = (Vec::new(), 0);
        loop {
            let sent: Vec<_> = transfer.window().collect();
            packets += sent.len();
            let last = sent.last().unwrap();
            let number = if last[1] == 6 { 0 } else { u16::from_be_bytes([last[2], last[3]]) };
            file.extend(sent.iter().filter(|p| p[1] == 3).flat_map(|p| p[4..].to_vec()));
            match transfer.acknowledge(number) {
                Progress::Send => {}
                Progress::Complete => return (file, packets),
                Progress::Nothing => panic!("no progress at {number}"),
            }
        }
    }

    #[test]
    fn whole_files_of_awkward_sizes() {
        for size in [0, 1, 511, 512, 513, 1024, 5000] {
            for (block, window) in [(None, None), (Some(8), Some(3)), (Some(512), Some(64)), (Some(1468), None)] {
                let file: Bytes = (0..size).map(|n: u32| n as u8).collect::<Vec<u8>>().into();
                let mut transfer = Transfer::new(&file, &ask(block, window));
                assert_eq!(receive(&mut transfer).0, file, "{size} {block:?} {window:?}");
            }
        }
    }

    #[test]
    fn block_numbers_roll_over() {
        let file = Bytes::from(vec![7u8; 8 * 70_000 + 3]);
        for window in [1, 5, 64] {
            let (received, packets) = receive(&mut Transfer::new(&file, &ask(Some(8), Some(window))));
            assert_eq!((received.len(), packets), (file.len(), 70_002));
        }
    }

    #[test]
    fn options_are_cut_to_what_firmware_survives() {
        let mut request = ask(Some(65464), Some(1000));
        (request.size, request.timeout) = (true, Some(3));
        let transfer = Transfer::new(&Bytes::from_static(b"12345"), &request);
        let sent: Vec<_> = transfer.window().collect();
        assert_eq!(sent, [b"\0\x06blksize\x001468\0tsize\x005\0timeout\x003\0windowsize\x0064\0".to_vec()]);
    }

    #[test]
    fn losses_within_a_window() {
        let file = Bytes::from(vec![1u8; 8 * 10]);
        let mut transfer = Transfer::new(&file, &ask(Some(8), Some(4)));
        assert_eq!(transfer.acknowledge(3), Progress::Nothing, "the OACK comes first");
        assert_eq!(transfer.acknowledge(0), Progress::Send);
        assert_eq!(transfer.acknowledge(2), Progress::Send, "3 and 4 were lost");
        assert_eq!(transfer.window().next().unwrap()[..4], [0, 3, 0, 3]);
        assert_eq!(transfer.acknowledge(2), Progress::Send, "3 was lost again");
        assert_eq!(transfer.acknowledge(2), Progress::Nothing, "once for each ACK");
        assert_eq!(transfer.acknowledge(7), Progress::Nothing, "never sent");
        assert_eq!(transfer.acknowledge(1), Progress::Nothing, "the past");
        assert_eq!(transfer.acknowledge(6), Progress::Send);
    }

    #[test]
    fn a_repeated_ack_does_not_double_the_traffic() {
        let mut transfer = Transfer::new(&Bytes::from(vec![0u8; 2000]), &ask(None, None));
        assert_eq!(transfer.acknowledge(1), Progress::Send);
        assert_eq!(transfer.acknowledge(1), Progress::Nothing);
    }

    #[test]
    fn netascii_lines() {
        let request = ReadRequest { netascii: true, size: true, ..ask(None, None) };
        let mut transfer = Transfer::new(&Bytes::from_static(b"a\nb\r"), &request);
        assert_eq!(transfer.window().next().unwrap(), b"\0\x06tsize\x006\0");
        assert_eq!(receive(&mut transfer).0, b"a\r\nb\r\0");
    }
}
