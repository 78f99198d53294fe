//! Text from outside made fit for a terminal, and sizes read and written.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::error::{Error, Result};

/// How much of a log's end is looked at.
const TAIL_BYTES: u64 = 64 << 10;

/// The last `lines` lines of a file, as [`plain`] text; empty where the file is not there.
pub fn tail(path: &Path, lines: usize) -> Vec<String> {
    let Ok(mut file) = std::fs::File::open(path) else { return Vec::new() };
    let length = file.metadata().map_or(0, |m| m.len());
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES))).is_err()
        || file.take(TAIL_BYTES).read_to_end(&mut bytes).is_err()
    {
        return Vec::new();
    }
    let text = plain(&String::from_utf8_lossy(&bytes));
    let all: Vec<&str> = text.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
    all.iter().skip(all.len().saturating_sub(lines)).map(|l| (*l).to_owned()).collect()
}

/// Without terminal control: ECMA-48 sequences and control characters go, line ends stay. What a machine prints must
/// not be able to drive the operator's terminal.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => match chars.next() {
                // CSI: parameters and intermediates up to a final byte of 0x40-0x7e (ECMA-48 section 5.4).
                Some('[') => while chars.next().is_some_and(|c| !('\u{40}'..='\u{7e}').contains(&c)) {},
                // A character set selection takes one more character.
                Some('(' | ')') => drop(chars.next()),
                _ => {}
            },
            '\n' => out.push('\n'),
            '\t' => out.push(' '),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// `2G`, `512M`, `10GiB` in bytes.
pub fn size(text: &str) -> Result<u64> {
    let wrong = || Error::input("lab.size", format!("{text:?} is not a size")).hint("write it like 512M or 10G");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_cannot_drive_the_terminal() {
        assert_eq!(plain("\u{1b}[2J\u{1b}[01;01H\u{1b}(Bok\u{7}\r\n\u{1b}]0;x"), "ok\n0;x");
        assert_eq!(plain("cut \u{1b}[3"), "cut ");
    }

    #[test]
    fn sizes_have_a_unit() {
        assert_eq!(size("512M").unwrap(), 512 << 20);
        assert_eq!(size("10GiB").unwrap(), 10 << 30);
        for wrong in ["", "G", "10", "10X", "-1G", "99999999999T"] {
            assert_eq!(size(wrong).unwrap_err().code(), "lab.size", "{wrong}");
        }
    }

    #[test]
    fn the_tail_is_the_last_lines() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "one\n\ntwo\r\nthree").unwrap();
        assert_eq!(tail(file.path(), 2), ["two", "three"]);
        assert!(tail(Path::new("/nonexistent"), 2).is_empty());
    }
}
