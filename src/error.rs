//! The one error of the project, made for two readers.
//!
//! The operator reads one sentence, whose fault it is, and `hint:` with the next step. The log reads the whole chain of
//! sources, once. Code that can be tried again or matched on looks at [`Kind`] and [`Error::code`], never at the text.

use std::fmt;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose turn it is to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What was asked cannot be done as asked: a typing error, an unknown name, an order that contradicts itself.
    Input,
    /// The configuration or the site is wrong: a port in use, overlapping subnets, a missing tool.
    Config,
    /// What was named does not exist.
    NotFound,
    /// It exists, but its state does not allow this now.
    Conflict,
    /// A device or peer did not answer, or not in time: may pass by itself.
    Unreachable,
    /// A device or peer answered, and the answer is wrong: a bad hash, a refused password, the wrong serial.
    Refused,
    /// A fault of ours.
    Internal,
}

/// One sentence for the operator, with whose fault it is, what to do next and what lies beneath.
pub struct Error {
    kind: Kind,
    code: &'static str,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// `code` is a short stable name (`disk.ambiguous`, `bmc.auth`) for scripts and for the list of named causes.
    pub fn new(kind: Kind, code: &'static str, message: impl Into<String>) -> Self {
        Self { kind, code, message: message.into(), hint: None, source: None }
    }

    pub fn input(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::Input, code, message)
    }

    pub fn config(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::Config, code, message)
    }

    pub fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, code, message)
    }

    pub fn conflict(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::Conflict, code, message)
    }

    pub fn unreachable(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::Unreachable, code, message)
    }

    pub fn refused(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, code, message)
    }

    pub fn internal(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, code, message)
    }

    /// The next step, as a command where there is one.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn code(&self) -> &'static str {
        self.code
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    pub fn next_step(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The chain beneath the sentence, outermost first: for the log and for `--json`.
    pub fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let mut next = self.source.as_deref().map(|e| e as &dyn std::error::Error);
        while let Some(e) = next {
            causes.push(e.to_string());
            next = e.source();
        }
        causes
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.message, self.code)?;
        for cause in self.causes() {
            write!(f, ": {cause}")?;
        }
        match &self.hint {
            Some(hint) => write!(f, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

/// `std::io` and friends into an [`Error`] with a sentence: `read(path).or_fail("config.read", || format!("…"))`.
pub trait OrFail<T> {
    fn or_fail<M: Into<String>>(self, kind: Kind, code: &'static str, message: impl FnOnce() -> M) -> Result<T>;
}

impl<T, E: Into<Box<dyn std::error::Error + Send + Sync>>> OrFail<T> for std::result::Result<T, E> {
    fn or_fail<M: Into<String>>(self, kind: Kind, code: &'static str, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|e| Error::new(kind, code, message()).because(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_is_for_people_and_the_chain_for_the_log() {
        let io = std::io::Error::new(std::io::ErrorKind::AddrInUse, "address in use");
        let error = Error::config("boot.port", "UDP port 67 is in use").because(io).hint("stop the other DHCP server");
        assert_eq!(error.to_string(), "UDP port 67 is in use");
        assert_eq!(error.causes(), ["address in use"]);
        assert_eq!(error.next_step(), Some("stop the other DHCP server"));
        assert_eq!((error.kind(), error.code()), (Kind::Config, "boot.port"));
    }
}
