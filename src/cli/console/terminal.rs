//! The terminal while a console has it: raw, so that every key reaches the machine, and put back whichever way it ends.

use std::io::{Read, Write, stdin, stdout};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::sync::mpsc;

use crate::error::{Kind, OrFail, Result};

pub struct Terminal {
    /// As it was.
    before: Option<Termios>,
}

impl Terminal {
    pub fn open(raw: bool) -> Result<Self> {
        let failed = || "the terminal cannot be set";
        let mut terminal = Self { before: None };
        if raw {
            let before = tcgetattr(stdin()).or_fail(Kind::Internal, "console.terminal", failed)?;
            let mut made_raw = before.clone();
            made_raw.make_raw();
            terminal.before = Some(before);
            tcsetattr(stdin(), OptionalActions::Now, &made_raw).or_fail(Kind::Internal, "console.terminal", failed)?;
        }
        Ok(terminal)
    }

    /// What the machine printed. False where nobody reads any more.
    pub fn print(&self, text: &[u8]) -> bool {
        let mut out = stdout().lock();
        out.write_all(text).and_then(|()| out.flush()).is_ok()
    }

    /// What we say, on lines of its own; beside the text where that goes to a file.
    pub fn say(&self, what: &str) {
        let _ = match self.before {
            Some(_) => write!(stdout(), "\r\n[{what}]\r\n").and_then(|()| stdout().flush()),
            None => writeln!(std::io::stderr(), "[{}]", what.replace('\r', "")),
        };
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(stdin(), OptionalActions::Now, before);
        }
    }
}

/// What is typed. Read by a thread of its own, which a read of a terminal holds up until the next key: the end of the
/// program does not wait for it.
pub fn keys() -> mpsc::Receiver<Vec<u8>> {
    let (keys, typed) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = stdin().read(&mut buffer) {
            let Some(read) = buffer.get(..count) else { return };
            if keys.blocking_send(read.to_vec()).is_err() {
                return;
            }
        }
    });
    typed
}
