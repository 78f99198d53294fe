//! What the one at the terminal wants of us and not of the machine: `~` at the beginning of a line, as with ssh.

pub const HELP: &str = "~.  end the console\r\n~B  send a break (Linux: with SysRq)\r\n~~  a tilde\r\n~?  this text";

#[derive(Debug, PartialEq, Eq)]
pub enum Key {
    Text(Vec<u8>),
    Break,
    Help,
    End,
}

#[derive(Default)]
pub struct Escape {
    /// Something was typed since the last line end.
    within: bool,
    /// A tilde is held back.
    tilde: bool,
}

impl Escape {
    pub fn feed(&mut self, typed: &[u8]) -> Vec<Key> {
        let (mut keys, mut text) = (Vec::new(), Vec::new());
        for byte in typed {
            let own = match (std::mem::take(&mut self.tilde), byte) {
                (true, b'.') => Some(Key::End),
                (true, b'B') => Some(Key::Break),
                (true, b'?') => Some(Key::Help),
                (true, b'~') => {
                    text.push(b'~');
                    self.within = true;
                    continue;
                }
                (true, _) => {
                    text.push(b'~');
                    None
                }
                (false, b'~') if !self.within => {
                    self.tilde = true;
                    continue;
                }
                (false, _) => None,
            };
            match own {
                Some(own) => {
                    if !text.is_empty() {
                        keys.push(Key::Text(std::mem::take(&mut text)));
                    }
                    keys.push(own);
                    self.within = false;
                }
                None => {
                    text.push(*byte);
                    self.within = !matches!(byte, b'\r' | b'\n');
                }
            }
        }
        if !text.is_empty() {
            keys.push(Key::Text(text));
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Key {
        Key::Text(text.into())
    }

    #[test]
    fn a_tilde_is_ours_at_the_beginning_of_a_line_only() {
        let mut escape = Escape::default();
        assert_eq!(escape.feed(b"~"), []);
        assert_eq!(escape.feed(b"?"), [Key::Help]);
        assert_eq!(escape.feed(b"ls ~.\r"), [text("ls ~.\r")]);
        assert_eq!(escape.feed(b"~B~x\r"), [Key::Break, text("~x\r")]);
        assert_eq!(escape.feed(b"~~.\r~~~.\r"), [text("~.\r~~.\r")]);
        assert_eq!(escape.feed(b"ab\r~.more"), [text("ab\r"), Key::End, text("more")]);
    }
}
