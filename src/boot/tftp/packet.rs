//! TFTP on the wire: RFC 1350, options of RFC 2347, blksize (2348), tsize and timeout (2349), windowsize (7440).

/// A read request as asked. Options with values outside their RFC's range are as if not sent (RFC 2347: an option that
/// is not acknowledged is not in use).
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
        let number: Option<u32> = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
        match option.to_ascii_lowercase().as_slice() {
            b"blksize" => request.block_size = number.filter(|n| (8..=65464).contains(n)).map(|n| n as u16),
            b"timeout" => request.timeout = number.filter(|n| (1..=255).contains(n)).map(|n| n as u8),
            b"windowsize" => request.window = number.filter(|n| (1..=65535).contains(n)).map(|n| n as u16),
            b"tsize" => request.size = number.is_some(),
            _ => {}
        }
    }
    Some(Packet::Read(request))
}

pub fn data(block: u16, bytes: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(4 + bytes.len());
    packet.extend(DATA.to_be_bytes());
    packet.extend(block.to_be_bytes());
    packet.extend(bytes);
    packet
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
    use super::*;

    #[test]
    fn requests_with_and_without_options() {
        let plain = ReadRequest {
            name: "a".into(),
            netascii: false,
            block_size: None,
            size: false,
            timeout: None,
            window: None,
        };
        assert_eq!(Packet::parse(b"\0\x01a\0OcTet\0"), Some(Packet::Read(plain.clone())));
        let all = b"\0\x01a\0octet\0BLKSIZE\x001468\0tsize\x000\0timeout\x003\0windowsize\x008\0multicast\0\0";
        let asked =
            ReadRequest { block_size: Some(1468), size: true, timeout: Some(3), window: Some(8), ..plain.clone() };
        assert_eq!(Packet::parse(all), Some(Packet::Read(asked)));
        let out_of_range = b"\0\x01a\0octet\0blksize\x004\0timeout\x00256\0windowsize\x000\0tsize\0x\0";
        assert_eq!(Packet::parse(out_of_range), Some(Packet::Read(plain.clone())));
        assert_eq!(Packet::parse(b"\0\x01a\0octet\0blksize\0"), Some(Packet::Read(plain)), "an option without value");
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
