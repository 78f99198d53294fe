//! A word that must not be seen: a password or token that shows itself only where it is asked for by name.

use serde::{Deserialize, Serialize};

/// Has no `Display`, and its `Debug` says only that it is there. It is serialised as it is, since the store encrypts
/// the rows that hold one; keep it out of anything else that is serialised.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(word: impl Into<String>) -> Self {
        Self(word.into())
    }

    /// The word itself, for the one place that needs it: the key of a MAC, the body of a login.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_not_in_debug_and_is_stored_whole() {
        let secret = Secret::new("calvin");
        assert_eq!(format!("{secret:?}"), "Secret");
        assert_eq!(serde_json::to_string(&secret).unwrap(), r#""calvin""#);
        assert_eq!(serde_json::from_str::<Secret>(r#""calvin""#).unwrap(), secret);
    }
}
