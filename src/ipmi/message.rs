//! The IPMI message: request, response, completion code, and the frame they have on a LAN (section 13.8).

use crate::error::Error;

/// Network functions of requests (table 5-1); the response has the next odd number.
pub mod netfn {
    pub const CHASSIS: u8 = 0x00;
    pub const SENSOR: u8 = 0x04;
    pub const APP: u8 = 0x06;
    pub const STORAGE: u8 = 0x0a;
    pub const TRANSPORT: u8 = 0x0c;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub netfn: u8,
    /// Logical unit within the BMC, 0 to 3; only sensors live elsewhere than on 0.
    pub lun: u8,
    pub cmd: u8,
    pub data: Vec<u8>,
}

impl Request {
    pub fn new(netfn: u8, cmd: u8, data: impl Into<Vec<u8>>) -> Self {
        Self { netfn, lun: 0, cmd, data: data.into() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Of the response: odd.
    pub netfn: u8,
    pub cmd: u8,
    pub completion: Completion,
    pub data: Vec<u8>,
}

/// First byte of each response (table 5-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion(pub u8);

impl Completion {
    pub const OK: Self = Self(0x00);
    pub const NODE_BUSY: Self = Self(0xc0);
    pub const INVALID_COMMAND: Self = Self(0xc1);
    pub const TIMEOUT: Self = Self(0xc3);
    pub const RESERVATION_CANCELED: Self = Self(0xc5);
    pub const CANNOT_RETURN_LENGTH: Self = Self(0xca);
    pub const NOT_PRESENT: Self = Self(0xcb);
    pub const INSUFFICIENT_PRIVILEGE: Self = Self(0xd4);

    /// The same question may be answered in a moment.
    pub fn is_passing(self) -> bool {
        matches!(self, Self::NODE_BUSY | Self::TIMEOUT | Self(0xce | 0xd0 | 0xd2))
    }

    /// The generic codes as a part of a sentence.
    pub fn sentence(self) -> &'static str {
        match self.0 {
            0x00 => "done",
            0xc0 => "the BMC is busy",
            0xc1 => "the BMC does not know this command",
            0xc2 => "the command is not valid for this logical unit",
            0xc3 => "the BMC timed out while it worked on the command",
            0xc4 => "the BMC is out of space",
            0xc5 => "the reservation was cancelled",
            0xc6 => "the request was cut short",
            0xc7 => "the length of the request is not valid",
            0xc8 => "the request is longer than this BMC takes",
            0xc9 => "a parameter is out of range",
            0xca => "the BMC cannot return that many bytes",
            0xcb => "the sensor, record or object is not there",
            0xcc => "a field of the request is not valid",
            0xcd => "the command is not allowed for this sensor or record",
            0xce => "the BMC could not make a response",
            0xcf => "the BMC saw the request twice",
            0xd0 => "the sensor repository is being updated",
            0xd1 => "the BMC is in firmware update",
            0xd2 => "the BMC is starting",
            0xd3 => "the destination cannot be reached",
            0xd4 => "the user's privilege is too low, or the firmware firewall forbids it",
            0xd5 => "not possible in the present state",
            0xd6 => "the function is switched off",
            0x80..=0xbe => "refused, with a code of this command",
            0x01..=0x7e => "refused, with a code of the manufacturer",
            _ => "refused without a reason",
        }
    }
}

/// A command: what is sent, and what its answer says.
pub trait Ask {
    /// Name in the specification, for errors.
    const NAME: &'static str;
    type Answer;

    fn request(&self) -> Request;

    /// Reads the data after the completion code; `None` where it is too short or contradicts itself.
    fn parse(&self, data: &mut Fields<'_>) -> Option<Self::Answer>;

    /// Sentences for completion codes that this command defines itself (0x80 to 0xbe).
    fn refusal(&self, _code: u8) -> Option<&'static str> {
        None
    }

    /// The answer in a response, or why there is none.
    fn settle(&self, response: &Response) -> Result<Self::Answer, Fault> {
        if response.completion != Completion::OK {
            let why = self.refusal(response.completion.0).unwrap_or(response.completion.sentence());
            return Err(Fault::Refused { command: Self::NAME, completion: response.completion, why });
        }
        self.parse(&mut Fields(&response.data))
            .ok_or_else(|| Fault::Malformed { command: Self::NAME, data: response.data.clone() })
    }
}

/// An answer came, and it is not the one that was hoped for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    Refused { command: &'static str, completion: Completion, why: &'static str },
    Malformed { command: &'static str, data: Vec<u8> },
}

impl Fault {
    pub fn completion(&self) -> Option<Completion> {
        match self {
            Self::Refused { completion, .. } => Some(*completion),
            Self::Malformed { .. } => None,
        }
    }

    /// `whose` names the BMC in the sentence: `BMC 10.0.0.7`, `the BMC of this machine`.
    pub fn into_error(self, whose: &str) -> Error {
        match self {
            Self::Refused { command, completion: Completion::INSUFFICIENT_PRIVILEGE, why } => {
                Error::refused("bmc.privilege", format!("{whose} refused {command}: {why}"))
                    .hint("give the BMC user the privilege Administrator, or at least Operator")
            }
            Self::Refused { command, completion, why } => {
                Error::refused("bmc.refused", format!("{whose} refused {command}: {why} (code 0x{:02x})", completion.0))
            }
            Self::Malformed { command, data } => {
                let hex: Vec<String> = data.iter().take(64).map(|b| format!("{b:02x}")).collect();
                Error::refused("bmc.malformed", format!("{whose} gave an answer to {command} that makes no sense"))
                    .because(format!("{} bytes: {}", data.len(), hex.join(" ")))
            }
        }
    }
}

/// Bytes that are read from the front, each read checked.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(|[b]| b)
    }

    /// IPMI sends the least significant byte first.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// Addresses on the LAN: the BMC's slave address and the first software id of a remote console (section 13.8).
const BMC: u8 = 0x20;
const CONSOLE: u8 = 0x81;

/// Two's complement checksum: the sum over the bytes and itself is zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)).wrapping_neg()
}

/// The request as it stands in a session payload:
/// `rsAddr netFn/rsLUN checksum rqAddr rqSeq/rqLUN cmd data… checksum`. `seq` has 6 bits.
pub fn lan_request(request: &Request, seq: u8) -> Vec<u8> {
    let mut out = vec![BMC, request.netfn << 2 | request.lun & 3];
    out.push(checksum(&out));
    out.extend([CONSOLE, seq << 2, request.cmd]);
    out.extend(&request.data);
    out.push(checksum(out.get(3..).unwrap_or_default()));
    out
}

/// A response and the sequence number of the request it answers; `None` for anything that is not a whole response.
pub fn lan_response(bytes: &[u8]) -> Option<(u8, Response)> {
    let (head, body) = bytes.split_at_checked(3)?;
    if checksum(head) != 0 || checksum(body) != 0 {
        return None;
    }
    let [to, netfn_lun, _] = head else { return None };
    let netfn = netfn_lun >> 2;
    let (_, body) = body.split_last()?;
    let mut fields = Fields(body);
    let (_from, seq_lun) = (fields.u8()?, fields.u8()?);
    let (cmd, completion) = (fields.u8()?, Completion(fields.u8()?));
    let response = Response { netfn, cmd, completion, data: fields.rest().to_vec() };
    (*to == CONSOLE && netfn & 1 == 1).then_some((seq_lun >> 2, response))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What a command answers to these data bytes, after the completion code 0.
    pub(crate) fn parse<A: Ask>(ask: &A, data: &[u8]) -> Option<A::Answer> {
        let mut fields = Fields(data);
        ask.parse(&mut fields)
    }

    /// Every prefix of a good answer must be refused or read, never panic.
    pub(crate) fn survives_truncation<A: Ask>(ask: &A, data: &[u8]) {
        for end in 0..=data.len() {
            parse(ask, &data[..end]);
        }
    }

    #[test]
    fn get_device_id_on_the_wire() {
        // As `ipmitool -vvv` prints it: 20 18 c8 81 04 01 7a.
        let request = Request::new(netfn::APP, 0x01, []);
        assert_eq!(lan_request(&request, 1), [0x20, 0x18, 0xc8, 0x81, 0x04, 0x01, 0x7a]);
    }

    #[test]
    fn a_response_is_read_with_its_number() {
        let wire = [0x81, 0x1c, 0x63, 0x20, 0x04, 0x01, 0x00, 0x20, 0xbb];
        let (seq, response) = lan_response(&wire).unwrap();
        assert_eq!(seq, 1);
        assert_eq!((response.netfn, response.cmd, response.completion), (7, 1, Completion::OK));
        assert_eq!(response.data, [0x20]);
    }

    #[test]
    fn damaged_short_and_misdirected_messages_are_none() {
        let wire = [0x81u8, 0x1c, 0x63, 0x20, 0x04, 0x01, 0x00, 0x20, 0xbb];
        for i in 0..wire.len() {
            let mut bad = wire;
            bad[i] ^= 0x10;
            assert!(lan_response(&bad).is_none(), "byte {i}");
            assert!(lan_response(&wire[..i]).is_none(), "length {i}");
        }
        // A request with valid checksums is not a response.
        assert!(lan_response(&lan_request(&Request::new(netfn::APP, 1, []), 1)).is_none());
    }

    #[test]
    fn each_code_has_a_sentence_and_low_privilege_its_own_name() {
        for code in 0..=255 {
            assert!(!Completion(code).sentence().is_empty());
        }
        let fault = Fault::Refused { command: "Chassis Control", completion: Completion(0xd4), why: "x" };
        assert_eq!(fault.into_error("BMC a").code(), "bmc.privilege");
        let fault = Fault::Refused { command: "Chassis Control", completion: Completion(0xc1), why: "unknown" };
        assert_eq!(fault.into_error("BMC a").code(), "bmc.refused");
    }
}
