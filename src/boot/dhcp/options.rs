//! Options of a reply and their place in the packet: the options field first, and where that is full the unused `file`
//! and `sname` fields (option overload, RFC 2132 section 9.3). What still does not fit is left out, from the end.
//!
//! dhcproto reads requests; it is not used here because it sorts options by number, while firmware wants the message type
//! first, relays want their own option last, and a short packet must drop the least important option.

use std::net::Ipv4Addr;

use super::request::Request;

/// BOOTP's size (RFC 951 section 3 with a 64-byte vendor area); some relays and ROMs drop what is shorter.
const MIN_SIZE: usize = 300;
/// IP and UDP headers, which option 57 counts in (RFC 2132 section 9.10).
const HEADERS: usize = 28;
/// What every client takes: 576 bytes with headers (RFC 2131 section 2).
const SMALL: usize = 576;
const ETHERNET: usize = 1500;

pub const SNAME: std::ops::Range<usize> = 44..108;
pub const FILE: std::ops::Range<usize> = 108..236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const OVERLOAD: u8 = 52;
const RELAY: u8 = 82;
const END: u8 = 255;

/// Options in the order of their importance, as code, length and data.
pub struct Options(Vec<u8>);

impl Options {
    pub fn new(message_type: u8, request: &Request) -> Self {
        let mut options = Self(Vec::with_capacity(256));
        options.put(53, &[message_type]);
        // RFC 6842: a client id is echoed. Firmware that reuses transaction ids tells answers apart by it.
        options.put(61, &request.client.id);
        options
    }

    /// Data of more than 255 bytes is split (RFC 3396).
    pub fn put(&mut self, code: u8, data: &[u8]) {
        for part in data.chunks(255) {
            self.0.extend([code, part.len() as u8]);
            self.0.extend(part);
        }
    }

    pub fn address(&mut self, code: u8, address: Ipv4Addr) {
        self.put(code, &address.octets());
    }

    /// Nothing where the list is empty: an option of length 0 is malformed.
    pub fn addresses(&mut self, code: u8, list: &[Ipv4Addr]) {
        if let Ok(length @ 4..) = u8::try_from(list.len() * 4) {
            self.0.extend([code, length]);
            self.0.extend(list.iter().flat_map(Ipv4Addr::octets));
        }
    }

    fn each(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.0.as_slice();
        std::iter::from_fn(move || {
            let length = usize::from(*rest.get(1)?) + 2;
            let (option, tail) = rest.split_at_checked(length)?;
            rest = tail;
            Some(option)
        })
    }
}

/// The header fields of a reply that are not copied from the request; `None`: 0.0.0.0.
#[derive(Default)]
pub struct Layout {
    pub ciaddr: Option<Ipv4Addr>,
    pub yiaddr: Option<Ipv4Addr>,
    pub siaddr: Option<Ipv4Addr>,
    pub file: Vec<u8>,
    /// On top of what the client asked for.
    pub broadcast: bool,
}

impl Layout {
    /// The packet, with option 82 as it came and last, as RFC 3046 section 2.2 wants it. A relay takes its option off
    /// again, so it does not count against what the client takes.
    pub fn encode(self, request: &Request, options: Options) -> Vec<u8> {
        let mut packet = self.header(request);
        let relay = request.relay.as_ref().map_or(&[][..], |r| &r.raw);
        let relay_size = relay.len() + 2 * relay.len().div_ceil(255);
        let limit = usize::from(request.max_size.unwrap_or(0)).clamp(SMALL, ETHERNET) - HEADERS;
        let room = limit.min(ETHERNET - HEADERS - relay_size.min(ETHERNET - HEADERS - MIN_SIZE));
        if packet.len() + options.0.len() < room {
            packet.extend(&options.0);
        } else {
            spread(&mut packet, &options, room, self.file.is_empty());
        }
        for part in relay.chunks(255) {
            packet.extend([RELAY, part.len() as u8]);
            packet.extend(part);
        }
        packet.push(END);
        packet.resize(packet.len().max(MIN_SIZE), 0);
        packet
    }

    fn header(&self, request: &Request) -> Vec<u8> {
        let mut packet = Vec::with_capacity(SMALL);
        packet.extend([2, 1, 6, 0]);
        packet.extend(request.xid.to_be_bytes());
        let flags = if request.broadcast || self.broadcast { 0x80 } else { 0 };
        packet.extend([0, 0, flags, 0]);
        for address in [self.ciaddr, self.yiaddr, self.siaddr, Some(request.giaddr)] {
            packet.extend(address.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        }
        packet.extend(request.client.mac.0);
        packet.resize(FILE.start, 0);
        packet.extend(self.file.iter().take(FILE.len() - 1));
        packet.resize(FILE.end, 0);
        packet.extend(COOKIE);
        packet
    }
}

/// Puts options where there is room: behind the header up to `room`, then `file` where it is free, then `sname`.
fn spread(packet: &mut Vec<u8>, options: &Options, room: usize, file_is_free: bool) {
    let (mut file, mut sname) = (Vec::new(), Vec::new());
    // Room for the overload option itself, for END, and for END within each field.
    let main = room.saturating_sub(4);
    for option in options.each() {
        if packet.len() + option.len() <= main {
            packet.extend(option);
        } else if file_is_free && file.len() + option.len() < FILE.len() {
            file.extend(option);
        } else if sname.len() + option.len() < SNAME.len() {
            sname.extend(option);
        }
    }
    let used = u8::from(!file.is_empty()) | u8::from(!sname.is_empty()) << 1;
    for (range, field) in [(FILE, file), (SNAME, sname)] {
        if let Some(place) = packet.get_mut(range).filter(|_| !field.is_empty()) {
            let bytes = field.iter().chain(&[END]);
            place.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
        }
    }
    if used != 0 {
        packet.extend([OVERLOAD, 1, used]);
    }
}
