//! Datagrams: RMCP header, session header, payload (sections 13.1 to 13.6). Built and taken apart here, nothing is sent.

use aws_lc_rs::error::Unspecified;

use super::crypto::Keys;
use crate::ipmi::message::{Fields, Request, Response, lan_request, lan_response};

/// RMCP version 1.0, no RMCP acknowledge, class IPMI.
const RMCP: [u8; 4] = [0x06, 0x00, 0xff, 0x07];
/// Authentication type of the session header: none (IPMI 1.5 form), RMCP+.
const NO_AUTHENTICATION: u8 = 0x00;
const RMCP_PLUS: u8 = 0x06;
/// The flags above the payload type.
const ENCRYPTED: u8 = 0x80;
const AUTHENTICATED: u8 = 0x40;
/// Last byte before the check value.
const NEXT_HEADER: u8 = 0x07;

/// Payload types within a session (table 13-16).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Payload {
    Message = 0x00,
    /// Serial over LAN.
    Sol = 0x01,
}

/// Payload types of the session set-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Setup {
    OpenRequest = 0x10,
    OpenResponse = 0x11,
    Rakp1 = 0x12,
    Rakp2 = 0x13,
    Rakp3 = 0x14,
    Rakp4 = 0x15,
}

/// A request outside of any session, in the IPMI 1.5 form.
pub fn sessionless(request: &Request, seq: u8) -> Vec<u8> {
    let message = lan_request(request, seq);
    let mut out = RMCP.to_vec();
    out.push(NO_AUTHENTICATION);
    out.extend([0; 8]);
    // A request outside of a session is a few bytes long.
    out.push(message.len() as u8);
    out.extend(message);
    out
}

pub fn sessionless_response(packet: &[u8]) -> Option<(u8, Response)> {
    let mut fields = Fields(packet.strip_prefix(&RMCP)?);
    if fields.u8()? != NO_AUTHENTICATION {
        return None;
    }
    let _sequence_and_session = fields.take(8)?;
    let length = fields.u8()?;
    lan_response(fields.take(length.into())?)
}

fn header(out: &mut Vec<u8>, kind: u8, session: u32, sequence: u32, payload: &[u8]) {
    out.extend([RMCP_PLUS, kind]);
    out.extend(session.to_le_bytes());
    out.extend(sequence.to_le_bytes());
    // Payloads are built here and are far below 64 KiB.
    out.extend((payload.len() as u16).to_le_bytes());
    out.extend(payload);
}

/// A message of the session set-up: neither signed nor encrypted, session 0.
pub fn setup(kind: Setup, payload: &[u8]) -> Vec<u8> {
    let mut out = RMCP.to_vec();
    header(&mut out, kind as u8, 0, 0, payload);
    out
}

/// The payload, if the packet is of this kind.
pub fn setup_payload(packet: &[u8], kind: Setup) -> Option<&[u8]> {
    let mut fields = Fields(packet.strip_prefix(&RMCP)?);
    if (fields.u8()?, fields.u8()?) != (RMCP_PLUS, kind as u8) {
        return None;
    }
    let (session, _sequence, length) = (fields.u32()?, fields.u32()?, fields.u16()?);
    (session == 0).then(|| fields.take(length.into()))?
}

/// A payload within a session, encrypted and signed.
pub fn sealed(keys: &Keys, session: u32, sequence: u32, kind: Payload, payload: &[u8]) -> Result<Vec<u8>, Unspecified> {
    let mut signed = Vec::with_capacity(128);
    header(&mut signed, kind as u8 | ENCRYPTED | AUTHENTICATED, session, sequence, &keys.encrypt(payload)?);
    // The signed part, with the pad length and next header bytes, is a multiple of 4 long.
    let pad = (4 - (signed.len() + 2) % 4) % 4;
    signed.extend(std::iter::repeat_n(0xff, pad));
    signed.extend([pad as u8, NEXT_HEADER]);
    let check = keys.sign(&signed);
    Ok([&RMCP[..], &signed, &check].concat())
}

/// Sequence number and payload of a packet of this session; `None` for all that is not whole, not of this session, not
/// signed with its key, not encrypted, or of another type.
pub fn unseal(keys: &Keys, session: u32, packet: &[u8]) -> Option<(u32, Payload, Vec<u8>)> {
    let rest = packet.strip_prefix(&RMCP)?;
    let (signed, check) = rest.split_at_checked(rest.len().checked_sub(keys.check_length())?)?;
    let mut fields = Fields(signed);
    if fields.u8()? != RMCP_PLUS {
        return None;
    }
    let kind = fields.u8()?;
    let kind =
        [Payload::Message, Payload::Sol].into_iter().find(|known| kind == *known as u8 | ENCRYPTED | AUTHENTICATED)?;
    let (of, sequence, length) = (fields.u32()?, fields.u32()?, fields.u16()?);
    if of != session || !keys.verify(signed, check) {
        return None;
    }
    let payload = fields.take(length.into())?;
    Some((sequence, kind, keys.decrypt(payload)?))
}

/// Which sequence numbers were seen (section 6.12.13): each is taken once, and none that is 32 or more behind the
/// highest. A jump forward of any width is taken, unlike in the specification: the packets are signed, so a jump only
/// says that packets were lost, and to refuse it would end a good session.
#[derive(Debug, Default)]
pub struct Window {
    highest: u32,
    /// Bit n is the sequence number `highest - n`.
    seen: u32,
}

impl Window {
    /// Whether the number is new; it counts as seen from now on.
    pub fn accept(&mut self, sequence: u32) -> bool {
        if sequence > self.highest {
            self.seen = self.seen.checked_shl(sequence - self.highest).unwrap_or(0) | 1;
            self.highest = sequence;
            return true;
        }
        // 0 is outside of a session.
        let Some(bit) = 1u32.checked_shl(self.highest - sequence).filter(|_| sequence != 0) else { return false };
        let new = self.seen & bit == 0;
        self.seen |= bit;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::super::crypto::Suite;
    use super::*;
    use crate::ipmi::message::netfn;

    #[test]
    fn the_sessionless_form_is_that_of_ipmitool() {
        // Get Channel Authentication Capabilities, as ipmitool sends it.
        let packet = sessionless(&Request::new(netfn::APP, 0x38, [0x8e, 0x04]), 0);
        let expected = [
            0x06, 0x00, 0xff, 0x07, 0x00, 0, 0, 0, 0, 0, 0, 0, 0, 0x09, 0x20, 0x18, 0xc8, 0x81, 0x00, 0x38, 0x8e, 0x04,
            0xb5,
        ];
        assert_eq!(packet, expected);
        assert!(sessionless_response(&packet).is_none(), "a request is not a response");
    }

    #[test]
    fn setup_messages_of_the_wrong_kind_or_length_are_none() {
        let packet = setup(Setup::Rakp2, &[1, 2, 3]);
        assert_eq!(setup_payload(&packet, Setup::Rakp2), Some(&[1, 2, 3][..]));
        assert_eq!(setup_payload(&packet, Setup::Rakp4), None);
        for end in 0..packet.len() {
            assert_eq!(setup_payload(&packet[..end], Setup::Rakp2), None);
        }
    }

    #[test]
    fn sealed_packets_open_and_no_changed_byte_gets_through() {
        for suite in [Suite::Three, Suite::Seventeen] {
            let keys = Keys::derive(suite, b"session key").unwrap();
            let packet = sealed(&keys, 7, 5, Payload::Sol, b"message").unwrap();
            assert_eq!(unseal(&keys, 7, &packet), Some((5, Payload::Sol, b"message".to_vec())));
            assert_eq!(unseal(&keys, 8, &packet), None);
            for i in 0..packet.len() {
                let mut bad = packet.clone();
                bad[i] ^= 1;
                assert_eq!(unseal(&keys, 7, &bad), None, "byte {i}");
                assert_eq!(unseal(&keys, 7, &packet[..i]), None, "length {i}");
            }
        }
    }

    #[test]
    fn the_window_takes_each_number_once() {
        let mut window = Window::default();
        assert!(!window.accept(0));
        assert!(window.accept(1) && !window.accept(1));
        assert!(window.accept(3) && window.accept(2) && !window.accept(2));
        assert!(window.accept(40) && window.accept(9) && !window.accept(8));
        assert!(window.accept(4000) && !window.accept(40) && window.accept(3999));
        assert!(window.accept(u32::MAX) && !window.accept(u32::MAX));
    }
}
