//! Facts in, rendered documents out. Templates are part of the binary; a missing key is an error, never an empty string.

pub mod burn;
pub mod seed;

use minijinja::{Environment, UndefinedBehavior, Value};
use serde::Serialize;

use crate::error::{Kind, OrFail, Result};

/// Renders one template. `name` is for the error: the file under `templates/`.
pub fn render(name: &str, source: &str, facts: impl Serialize) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    let facts = Value::from(minijinja::value::Serde(facts));
    let template =
        environment
            .template_from_named_str(name, source)
            .or_fail(Kind::Internal, "template.render", || format!("the template {name} is wrong"))?;
    template.render(&facts).or_fail(Kind::Internal, "template.render", || {
        // Names only: values may be secrets, and this goes to the log.
        let mut missing: Vec<String> = template.undeclared_variables(false).into_iter().collect();
        missing.retain(|key| facts.get_attr(key).is_ok_and(|value| value.is_undefined()));
        missing.sort();
        match missing.is_empty() {
            true => format!("the template {name} cannot be rendered"),
            false => format!("the template {name} needs what nobody gave: {}", missing.join(", ")),
        }
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_missing_key_is_an_error() {
        let error = super::render("t", "{{ there }} {{ missing }}", serde_json::json!({"there": 1})).unwrap_err();
        assert_eq!(error.code(), "template.render");
        assert_eq!(error.message(), "the template t needs what nobody gave: missing");
    }
}
