//! Text as sensor records and FRU inventories carry it: three codings, and nothing in what comes out that could steer a
//! terminal or break a line of a log.

/// BCD plus: two characters to the byte, the high nibble first (section 43.15, FRU specification 13.1).
pub fn bcd_plus(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789 -.:,_";
    let nibbles = bytes.iter().flat_map(|b| [b >> 4, b & 0xf]);
    nibbles.filter_map(|n| DIGITS.get(usize::from(n))).map(|d| char::from(*d)).collect()
}

/// 6-bit ASCII, least significant bits first, from the space on (section 43.16).
pub fn packed_ascii(bytes: &[u8]) -> String {
    let bits = |i: usize| bytes.get(i / 8).is_some_and(|b| b >> (i % 8) & 1 == 1);
    (0..bytes.len() * 8 / 6)
        .map(|c| char::from(0x20 + (0..6).map(|i| u8::from(bits(c * 6 + i)) << i).sum::<u8>()))
        .collect()
}

/// 8-bit ASCII and Latin-1.
pub fn latin(bytes: &[u8]) -> String {
    bytes.iter().map(|b| char::from(*b)).collect()
}

/// Without the padding that makers leave (NUL at the end, spaces around), and with `?` for what is not printable.
pub fn printable(text: &str) -> String {
    let text = text.trim_end_matches('\0').trim();
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_codings() {
        // The example of section 43.16: "IPMI" packed into 29 DC A6.
        assert_eq!(packed_ascii(&[0x29, 0xdc, 0xa6]), "IPMI");
        assert_eq!(bcd_plus(&[0x12, 0xbc]), "12-.");
        assert_eq!(printable(&latin(b" PS\x1b1 \0\0")), "PS?1");
        assert_eq!(hex(&[0, 0xab]), "00 ab");
    }
}
