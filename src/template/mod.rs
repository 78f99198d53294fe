//! Facts in, rendered documents out. Templates are part of the binary; a missing key is an error, never an empty string.

pub mod seed;

use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;

use crate::error::{Kind, OrFail, Result};

/// Renders one template. `name` is for the error: the file under `templates/`.
pub fn render(name: &'static str, source: &str, facts: impl Serialize) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.render_named_str(name, source, minijinja::value::Serde(facts)).or_fail(
        Kind::Internal,
        "template.render",
        || format!("the template {name} cannot be rendered"),
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_missing_key_is_an_error() {
        let error = super::render("t", "{{ there }} {{ missing }}", serde_json::json!({"there": 1})).unwrap_err();
        assert_eq!(error.code(), "template.render");
    }
}
