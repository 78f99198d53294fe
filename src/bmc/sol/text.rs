//! What a reader sees of a recording: lines with their times, without escape sequences. What a machine prints must not be
//! able to drive the reader's terminal.

use anstyle_parse::{DefaultCharAccumulator, Params, Parser, Perform};

use super::record::{Entry, Millis, Piece};

/// Longer lines are cut into lines; a machine that never ends one does not fill the memory.
const LINE_MAX: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Of its first character, to the second.
    pub at: Millis,
    pub text: String,
    /// Not printed by the machine.
    pub note: bool,
}

/// Lines of a piece.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lines {
    pub lines: Vec<Line>,
    /// What stands behind the last line end, such as a prompt.
    pub tail: Option<Line>,
    /// Of the tail's first byte: where to read on.
    pub next: u64,
}

/// Printable characters as they come; where the machine moves the cursor to another line, that is a line end.
#[derive(Default)]
struct Screen {
    line: String,
    /// Carriage return: the next character begins the line anew.
    returned: bool,
    /// The line is over.
    over: bool,
}

impl Perform for Screen {
    fn print(&mut self, c: char) {
        // DEL and the C1 controls come here too.
        if c.is_control() {
            return;
        }
        if std::mem::take(&mut self.returned) {
            self.line.clear();
        }
        self.line.push(c);
        self.over |= self.line.len() >= LINE_MAX;
    }

    fn execute(&mut self, byte: u8) {
        match byte {
            b'\n' => self.over = true,
            b'\r' => self.returned = true,
            b'\t' => self.print(' '),
            // Backspace.
            0x08 => drop(self.line.pop()),
            _ => {}
        }
    }

    fn csi_dispatch(&mut self, params: &Params, _intermediates: &[u8], _ignore: bool, action: u8) {
        let count = || params.iter().next().and_then(|p| p.first()).copied().unwrap_or(1);
        match action {
            // Cursor to a row and column, up, down, to a line: what follows stands elsewhere. Erase the screen.
            b'H' | b'f' | b'A' | b'B' | b'd' | b'J' => self.over |= !self.line.is_empty(),
            // Cursor forward, with which boot loaders write spaces.
            b'C' => (0..count().min(80)).for_each(|_| self.line.push(' ')),
            _ => {}
        }
    }
}

/// The lines of a piece of a recording.
pub fn lines(piece: &Piece) -> Lines {
    let mut out = Lines { next: piece.offset, ..Lines::default() };
    let (mut parser, mut screen) = (Parser::<DefaultCharAccumulator>::new(), Screen::default());
    let mut entries = piece.entries.iter().peekable();
    let mut time = piece.entries.first().map_or(0, |entry| entry.at);
    let mut begun = time;
    for (offset, byte) in (piece.offset..).zip(&piece.bytes) {
        while let Some(entry) = entries.next_if(|entry| entry.offset <= offset) {
            time = entry.at;
            note(&mut out, &mut screen, entry, &mut begun, offset);
        }
        if screen.line.is_empty() {
            begun = time;
        }
        parser.advance(&mut screen, *byte);
        if screen.over {
            end_line(&mut out, &mut screen, begun, offset + 1);
        }
    }
    for entry in entries {
        note(&mut out, &mut screen, entry, &mut begun, piece.next);
    }
    let text = screen.line.trim_end().to_owned();
    out.tail = (!text.is_empty()).then_some(Line { at: begun, text, note: false });
    out
}

fn end_line(out: &mut Lines, screen: &mut Screen, at: Millis, next: u64) {
    let text = std::mem::take(&mut screen.line).trim_end().to_owned();
    (screen.over, screen.returned, out.next) = (false, false, next);
    // A machine's blank lines are kept, but one at a time: screens are full of them.
    if !text.is_empty() || out.lines.last().is_some_and(|last| !last.text.is_empty()) {
        out.lines.push(Line { at, text, note: false });
    }
}

fn note(out: &mut Lines, screen: &mut Screen, entry: &Entry, begun: &mut Millis, offset: u64) {
    let Some(text) = &entry.note else { return };
    if !screen.line.is_empty() {
        end_line(out, screen, *begun, offset);
    }
    *begun = entry.at;
    let text = text.chars().filter(|c| !c.is_control()).collect();
    out.lines.push(Line { at: entry.at, text, note: true });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(bytes: &[u8], entries: &[(Millis, u64, Option<&str>)]) -> Piece {
        let entries =
            entries.iter().map(|(at, offset, note)| Entry { at: *at, offset: *offset, note: note.map(str::to_owned) });
        let (bytes, next) = (bytes.to_vec(), 100 + bytes.len() as u64);
        Piece { offset: 100, bytes, next, end: next, entries: entries.collect() }
    }

    fn texts(bytes: &[u8]) -> Vec<String> {
        let lines = lines(&piece(bytes, &[(7, 100, None)]));
        lines.lines.into_iter().chain(lines.tail).map(|line| line.text).collect()
    }

    #[test]
    fn a_machine_cannot_drive_the_terminal() {
        assert_eq!(
            texts(b"\x1b[2J\x1b[01;01H\x1b(Bok\x07\r\n\x1b]0;title\x07more\x1b[31m red\x1b[0m\n"),
            ["ok", "more red"]
        );
        assert_eq!(texts(b"10%\r20%\r100%\r\ndone"), ["100%", "done"]);
        assert_eq!(texts(b"a\x1b[5;10Hb\x1b[3Cc\x08d"), ["a", "b   d"]);
        assert_eq!(texts("Gr\u{fc}\u{df}e \u{fffd}\n".as_bytes()), ["Gr\u{fc}\u{df}e \u{fffd}"]);
        assert_eq!(texts(b"\n\n\nx\n\n\n\ny"), ["x", "", "y"]);
        assert_eq!(texts(&[b'x'; 5000]).iter().map(String::len).collect::<Vec<_>>(), [4096, 904]);
        assert!(texts(b"\xff\xfe\x9b2J").concat().chars().all(|c| !c.is_control()));
    }

    #[test]
    fn lines_have_times_and_notes_stand_where_they_belong() {
        let entries = [(1000, 90, None), (2000, 104, None), (3000, 109, Some("silent for 5 s")), (4000, 109, None)];
        let lines = lines(&piece(b"GRU\nload.login: ", &entries));
        let line = |at, text: &str, note| Line { at, text: text.into(), note };
        assert_eq!(
            lines.lines,
            [line(1000, "GRU", false), line(2000, "load.", false), line(3000, "silent for 5 s", true)]
        );
        assert_eq!((lines.tail, lines.next), (Some(line(4000, "login:", false)), 109));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            let lines = lines(&piece(&bytes, &[(1, 100, None), (2, 150, Some("note\u{1b}[2J"))]));
            for line in lines.lines.iter().chain(&lines.tail) {
                proptest::prop_assert!(line.text.chars().all(|c| !c.is_control()), "{:?}", line.text);
            }
            proptest::prop_assert!(lines.next <= 100 + bytes.len() as u64);
        }
    }
}
