//! TFTP on the wire: RFC 1350, options of RFC 2347, blksize (2348), tsize and timeout (2349), windowsize (7440).

/// A read request as asked. An option whose value no answer can repair is as if not sent (RFC 2347: an option that is
/// not acknowledged is not in use). A block size or window above the RFC's range is cut to it, since the server may
/// answer with less than was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRequest {
    pub name: String,
    pub netascii: bool,
    /// 8 to 65464.
    pub block_size: Option<u16>,
    /// The client wants to know the size.
    pub size: bool,
    /// Seconds, 1 to 255.
    pub timeout: Option<u8>,
    /// 1 to 65535 blocks.
    pub window: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    Read(ReadRequest),
    /// A write request, or a mode other than octet and netascii.
    Refused(&'static str),
    Ack(u16),
    /// The client ends the transfer.
    Error,
}

/// RFC 1350 section 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    NotFound = 1,
    AccessViolation = 2,
    IllegalOperation = 4,
}

/// RFC 2348: 8 to 65464 bytes of data in a block.
pub const MAX_BLOCK: u16 = 65464;

const READ: u16 = 1;
const WRITE: u16 = 2;
const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OPTION_ACK: u16 = 6;

impl Packet {
    /// `None`: no TFTP packet that a client sends.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (code, rest) = bytes.split_first_chunk::<2>()?;
        match u16::from_be_bytes(*code) {
            READ => read_request(rest),
            WRITE => Some(Self::Refused("this server is read-only")),
            ACK => rest.first_chunk().map(|n| Self::Ack(u16::from_be_bytes(*n))),
            ERROR => Some(Self::Error),
            _ => None,
        }
    }
}

fn read_request(bytes: &[u8]) -> Option<Packet> {
    // Every string ends with NUL, so what follows the last NUL is not one.
    let end = bytes.iter().rposition(|b| *b == 0)?;
    let mut words = bytes.get(..end)?.split(|b| *b == 0);
    let name = String::from_utf8(words.next()?.to_vec()).ok()?;
    let mode = words.next()?.to_ascii_lowercase();
    let netascii = match mode.as_slice() {
        b"octet" => false,
        b"netascii" => true,
        _ => return Some(Packet::Refused("use mode octet or netascii")),
    };
    let mut request = ReadRequest { name, netascii, block_size: None, size: false, timeout: None, window: None };
    while let (Some(option), Some(value)) = (words.next(), words.next()) {
        let number = decimal(value);
        match option.to_ascii_lowercase().as_slice() {
            b"blksize" => request.block_size = number.filter(|n| *n >= 8).map(|n| n.min(MAX_BLOCK.into()) as u16),
            b"timeout" => request.timeout = number.filter(|n| (1..=255).contains(n)).map(|n| n as u8),
            b"windowsize" => request.window = number.filter(|n| *n >= 1).map(|n| n.min(u16::MAX.into()) as u16),
            b"tsize" => request.size = number.is_some(),
            _ => {}
        }
    }
    Some(Packet::Read(request))
}

/// ASCII digits and nothing else; numbers that no option needs count as the largest there is.
fn decimal(text: &[u8]) -> Option<u32> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let value = |n: u32, digit: &u8| n.saturating_mul(10).saturating_add(u32::from(digit - b'0'));
    digits.then(|| text.iter().fold(0, value))
}

/// What stands before a block's bytes.
pub fn data_header(block: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (DATA.to_be_bytes(), block.to_be_bytes());
    [a, b, c, d]
}

pub fn option_ack(options: &[(&str, u64)]) -> Vec<u8> {
    let mut packet = OPTION_ACK.to_be_bytes().to_vec();
    for (name, value) in options {
        packet.extend(name.as_bytes());
        packet.push(0);
        packet.extend(value.to_string().as_bytes());
        packet.push(0);
    }
    packet
}

pub fn error(fault: Fault, message: &str) -> Vec<u8> {
    let mut packet = ERROR.to_be_bytes().to_vec();
    packet.extend((fault as u16).to_be_bytes());
    packet.extend(message.as_bytes());
    packet.push(0);
    packet
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(name: &str) -> ReadRequest {
        ReadRequest { name: name.into(), netascii: false, block_size: None, size: false, timeout: None, window: None }
    }

    /// As a client writes it.
    fn encode(request: &ReadRequest) -> Vec<u8> {
        let mut words = vec![request.name.clone(), if request.netascii { "netascii" } else { "octet" }.to_owned()];
        let mut option = |name: &str, value: Option<String>| words.extend(value.map(|v| format!("{name}\0{v}")));
        option("blksize", request.block_size.map(|n| n.to_string()));
        option("tsize", request.size.then(|| "0".to_owned()));
        option("timeout", request.timeout.map(|n| n.to_string()));
        option("windowsize", request.window.map(|n| n.to_string()));
        let mut packet = READ.to_be_bytes().to_vec();
        words.iter().for_each(|w| packet.extend([w.as_bytes(), b"\0"].concat()));
        packet
    }

    fn requests() -> impl Strategy<Value = ReadRequest> {
        let option = proptest::option::of::<std::ops::RangeInclusive<u16>>;
        (
            "[^\0]{0,40}",
            any::<bool>(),
            option(8..=MAX_BLOCK),
            any::<bool>(),
            proptest::option::of(1..=u8::MAX),
            option(1..=u16::MAX),
        )
            .prop_map(|(name, netascii, block_size, size, timeout, window)| ReadRequest {
                name,
                netascii,
                block_size,
                size,
                timeout,
                window,
            })
    }

    /// Bytes that get past the first checks more often than noise does.
    fn almost_requests() -> impl Strategy<Value = Vec<u8>> {
        let word = proptest::sample::select(vec![
            &b"octet"[..],
            b"NetASCII",
            b"blksize",
            b"windowsize",
            b"timeout",
            b"tsize",
            b"0",
            b"7",
            b"65535",
            b"99999999999999999999",
            b"-1",
            b"+8",
            b"\0",
            b"\xff\xfe",
            b"../../etc/shadow",
            b"",
        ]);
        (0..8u8, proptest::collection::vec(word, 0..12), any::<bool>()).prop_map(|(code, words, ends)| {
            let mut bytes = vec![0, code];
            bytes.extend(words.join(&0));
            bytes.extend(ends.then_some(0));
            bytes
        })
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived_and_what_is_understood_is_understood_again(
            bytes in prop_oneof![proptest::collection::vec(any::<u8>(), 0..600), almost_requests()]
        ) {
            if let Some(Packet::Read(request)) = Packet::parse(&bytes) {
                prop_assert!(!request.name.contains('\0'));
                prop_assert!(request.block_size.is_none_or(|n| (8..=MAX_BLOCK).contains(&n)));
                prop_assert!(request.window != Some(0) && request.timeout != Some(0));
                prop_assert_eq!(Packet::parse(&encode(&request)), Some(Packet::Read(request)));
            }
        }

        #[test]
        fn every_request_is_read_as_written(request in requests(), cut in 1..100usize) {
            let bytes = encode(&request);
            prop_assert_eq!(Packet::parse(&bytes), Some(Packet::Read(request)));
            let _ = Packet::parse(&bytes[..bytes.len().saturating_sub(cut)]);
        }
    }

    #[test]
    fn requests_with_and_without_options() {
        assert_eq!(Packet::parse(b"\0\x01a\0OcTet\0"), Some(Packet::Read(plain("a"))));
        let all = b"\0\x01a\0octet\0BLKSIZE\x001468\0tsize\x000\0timeout\x003\0windowsize\x008\0multicast\0\0";
        let asked = ReadRequest { block_size: Some(1468), size: true, timeout: Some(3), window: Some(8), ..plain("a") };
        assert_eq!(Packet::parse(all), Some(Packet::Read(asked)));
        assert_eq!(Packet::parse(b"\0\x01a\0octet\0blksize\0"), Some(Packet::Read(plain("a"))), "no value");
    }

    #[test]
    fn values_outside_their_range() {
        for options in [
            &b"blksize\x004\0timeout\x00256\0windowsize\x000\0tsize\0x\0"[..],
            b"blksize\x000\0timeout\x000\0windowsize\0-1\0tsize\0-1\0",
            b"blksize\0\0timeout\0\0windowsize\0+8\0tsize\0\0",
            b"blksize\x000x200\0timeout\x001.5\0windowsize\0 1\0",
        ] {
            let bytes = [b"\0\x01a\0octet\0", options].concat();
            assert_eq!(Packet::parse(&bytes), Some(Packet::Read(plain("a"))), "{bytes:?}");
        }
        let large = ReadRequest { block_size: Some(MAX_BLOCK), window: Some(65535), ..plain("a") };
        for options in
            [&b"blksize\x0065535\0windowsize\x0065535\0"[..], b"blksize\x004294967297\0windowsize\x0099999\0"]
        {
            let bytes = [b"\0\x01a\0octet\0", options].concat();
            assert_eq!(Packet::parse(&bytes), Some(Packet::Read(large.clone())));
        }
    }

    #[test]
    fn what_is_refused_and_what_is_nothing() {
        assert!(matches!(Packet::parse(b"\0\x02a\0octet\0"), Some(Packet::Refused(_))));
        assert!(matches!(Packet::parse(b"\0\x01a\0mail\0"), Some(Packet::Refused(_))));
        assert_eq!(Packet::parse(b"\0\x05\0\x08user abort\0"), Some(Packet::Error));
        assert_eq!(Packet::parse(b"\0\x04\xff\xff"), Some(Packet::Ack(65535)));
        for bytes in
            [&b""[..], b"\0", b"\0\x01", b"\0\x01a", b"\0\x01a\0", b"\0\x01a\0octet", b"\0\x04\0", b"\0\x09a\0b\0"]
        {
            assert_eq!(Packet::parse(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_name_with_nul_is_cut_there_as_c_would() {
        // "x NUL shadow": the second word is the mode then, and no mode is called so.
        assert!(matches!(Packet::parse(b"\0\x01x\0shadow\0octet\0"), Some(Packet::Refused(_))));
    }
}
