//! What vendors leave in place of a name, a serial number or a UUID. One list for all who read such values: SMBIOS, disks,
//! BMCs, purchase lists.

use uuid::Uuid;

/// In lower case, without spaces and punctuation at either end.
const FILLERS: &[&str] = &[
    "to be filled by o.e.m",
    "to be filled by oem",
    "to be filled",
    "filled by o.e.m",
    "fill by oem",
    "default string",
    "default_string",
    "default",
    "system manufacturer",
    "system product name",
    "system serial number",
    "system version",
    "chassis manufacture",
    "chassis manufacturer",
    "chassis version",
    "chassis serial number",
    "base board manufacturer",
    "base board product name",
    "base board version",
    "base board serial number",
    "board serial number",
    "serial number",
    "asset tag",
    "assettag",
    "asset-1234567890",
    "asset-0123456789",
    "mb-1234567890",
    "bsn12345678901234567",
    "no asset tag",
    "no asset information",
    "no dimm",
    "no module installed",
    "not specified",
    "not provided",
    "notprovided",
    "not available",
    "not applicable",
    "not present",
    "not installed",
    "not defined",
    "undefined",
    "none",
    "n/a",
    "na",
    "nil",
    "null",
    "unknown",
    "unknow",
    "invalid",
    "reserved",
    "o.e.m",
    "oem",
    "oem serial number",
    "empty",
    "serial",
    "sku",
    "(null)",
    "bad index",
];

/// Words that are followed by a number or a slot and say as little: `SerNum00`, `DIMM_A0_AssetTag`.
const FILLER_STARTS: &[&str] = &["sernum", "partnum", "assettagnum", "manufacturernum", "modulepartnumber"];
const FILLER_ENDS: &[&str] = &["_assettag", "_asset_tag", "_sernum", "_partnum", "_manufacturer"];

/// Text in place of a name or number; also what is empty.
pub fn is_filler(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let plain = lower.trim_matches(|c: char| c.is_whitespace() || matches!(c, '.' | '[' | ']' | '<' | '>' | '-' | '*'));
    plain.is_empty()
        || FILLERS.contains(&plain)
        || FILLER_STARTS.iter().any(|s| plain.strip_prefix(s).is_some_and(|r| r.bytes().all(|b| b.is_ascii_digit())))
        || FILLER_ENDS.iter().any(|end| plain.ends_with(end))
        || counts_up(plain)
}

/// `0000000`, `XXXX`, `........`: one character and nothing else. A single character may be a version.
pub fn is_run(text: &str) -> bool {
    let text = text.trim().strip_prefix("0x").unwrap_or(text.trim());
    text.chars().next().is_some_and(|first| text.chars().all(|c| c == first))
}

/// `0123456789`, `1234567890`, `01234567890123456789AB`, `123456789`: digits in order, over and over. Fewer than eight of
/// them may be by chance.
fn counts_up(text: &str) -> bool {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let in_order = text.as_bytes().windows(2).take(digits.saturating_sub(1)).all(|pair| match pair {
        [a, b] => (a - b'0' + 1) % 10 == b - b'0',
        _ => false,
    });
    let rest = text.get(digits..).unwrap_or_default();
    digits >= 8 && in_order && (rest.is_empty() || "abcdef".starts_with(rest))
}

/// UUIDs that come with the firmware's sources or from a tool nobody ran: they name thousands of boards.
pub fn is_filler_uuid(uuid: &Uuid) -> bool {
    /// In the byte order of RFC 4122; looked for in the other one too, since firmware older than SMBIOS 2.6 writes that.
    const KNOWN: &[u128] = &[
        0x03000200_0400_0500_0006_000700080009,
        0x12345678_1234_1234_1234_123456789abc,
        0x12345678_1234_5678_90ab_cddeefaabbcc,
        0x11223344_5566_7788_99aa_bbccddeeff00,
        0x00112233_4455_6677_8899_aabbccddeeff,
        // Dell's scheme for a service tag of spaces.
        0x4c4c4544_0020_2010_8020_80c04f202020,
        0x4c4c4544_0000_2010_8020_80c04f202020,
    ];
    let bytes = uuid.as_bytes();
    let swapped = Uuid::from_bytes(uuid.to_bytes_le());
    let one_byte = bytes.iter().all(|b| *b == bytes[0]);
    // 00010203-0405-…: bytes that count up.
    let counting = bytes.windows(2).all(|pair| pair[1] == pair[0].wrapping_add(1));
    one_byte || counting || KNOWN.contains(&uuid.as_u128()) || KNOWN.contains(&swapped.as_u128())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_vendors_leave_is_recognised() {
        for text in [
            "",
            "   ",
            "To Be Filled By O.E.M.",
            "To be filled by O.E.M",
            "Default string",
            "0123456789",
            "1234567890",
            "01234567890123456789AB",
            "System Serial Number",
            "NO DIMM",
            "[Empty]",
            "<BAD INDEX>",
            "DIMM_A0_AssetTag",
            "SerNum00",
            "..................",
        ] {
            assert!(is_filler(text) || is_run(text), "{text}");
        }
        for text in ["7XK2M13", "CSX5YM2", "QTFCJ05160195", "12345", "DIMM_A0", "M393A4K40BB0-CPB", "A03", "X11DPi-N"] {
            assert!(!is_filler(text), "{text}");
        }
        assert!(is_run("0x00000000") && is_run("XXXX") && !is_run("0x0010"));
    }

    #[test]
    fn uuids_of_thousands_of_boards() {
        for text in [
            "03000200-0400-0500-0006-000700080009",
            "00020003-0004-0005-0006-000700080009",
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "fefefefe-fefe-fefe-fefe-fefefefefefe",
            "12345678-1234-5678-90ab-cddeefaabbcc",
            "00010203-0405-0607-0809-0a0b0c0d0e0f",
        ] {
            assert!(is_filler_uuid(&Uuid::parse_str(text).unwrap()), "{text}");
        }
        // A Dell of a real service tag, a Supermicro whose UUID ends with its MAC address.
        for text in ["4c4c4544-0053-5810-8035-c3c04f594d32", "00000000-0000-0000-0000-0cc47a6b2c10"] {
            assert!(!is_filler_uuid(&Uuid::parse_str(text).unwrap()), "{text}");
        }
    }
}
