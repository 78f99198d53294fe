//! What the agent says on the console: one plain line each, for somebody who stands in front of the machine or reads its
//! serial log.

use crate::error::Error;

/// One line to standard output. A console that cannot be written to is no reason to stop.
pub fn say(line: impl AsRef<str>) {
    use std::io::Write;
    let line = line.as_ref().replace(['\n', '\r'], " ");
    let _ = writeln!(std::io::stdout().lock(), "rackline: {line}");
}

/// The sentence, what lies beneath it, and the next step.
pub fn say_error(error: &Error) {
    let causes = error.causes();
    match causes.last() {
        Some(cause) => say(format!("{error} ({cause})")),
        None => say(error.to_string()),
    }
    if let Some(hint) = error.next_step() {
        say(format!("hint: {hint}"));
    }
}
