//! Documents of a BMC, read with tolerance: a property that is missing, null, empty, of another type or in another case
//! than the schema says is taken as far as it makes sense, and never fails the whole document.

use serde_json::Value;

/// One resource as it was read.
#[derive(Debug, Clone)]
pub struct Doc {
    /// Where it was read from, which is not always what its `@odata.id` claims.
    pub path: String,
    /// Of the header, else of the body.
    pub etag: Option<String>,
    pub body: Value,
}

impl std::ops::Deref for Doc {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.body
    }
}

/// Properties by name.
pub trait Properties {
    /// `None` for null too. The exact name is preferred to one that differs in case.
    fn property(&self, name: &str) -> Option<&Value>;
    /// Without blanks around it, and not empty; numbers are text as well.
    fn text(&self, name: &str) -> Option<String>;
    /// Some BMCs put numbers into quotes.
    fn number(&self, name: &str) -> Option<f64>;
    fn flag(&self, name: &str) -> Option<bool>;
    fn list(&self, name: &str) -> &[Value];
    /// Of a property that refers to another resource.
    fn link(&self, name: &str) -> Option<&str>;
    fn links(&self, name: &str) -> Vec<String>;
    /// `#ComputerSystem.Reset` of `Actions`, where it has a target.
    fn action(&self, name: &str) -> Option<Action<'_>>;
}

impl Properties for Value {
    fn property(&self, name: &str) -> Option<&Value> {
        let object = self.as_object()?;
        let found = object.get(name).or_else(|| {
            let (_, value) = object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
            Some(value)
        });
        found.filter(|value| !value.is_null())
    }

    fn text(&self, name: &str) -> Option<String> {
        match self.property(name)? {
            Value::String(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    fn number(&self, name: &str) -> Option<f64> {
        let number = match self.property(name)? {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        number.filter(|number| number.is_finite())
    }

    fn flag(&self, name: &str) -> Option<bool> {
        match self.property(name)? {
            Value::Bool(flag) => Some(*flag),
            Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
            Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
            _ => None,
        }
    }

    fn list(&self, name: &str) -> &[Value] {
        self.property(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }

    fn link(&self, name: &str) -> Option<&str> {
        reference(self.property(name)?)
    }

    fn links(&self, name: &str) -> Vec<String> {
        self.list(name).iter().filter_map(reference).map(str::to_owned).collect()
    }

    fn action(&self, name: &str) -> Option<Action<'_>> {
        let about = self.property("Actions")?.property(name)?;
        let target = about.property("target")?.as_str()?;
        Some(Action { target, about })
    }
}

/// `{"@odata.id": "/redfish/v1/…"}`, or the bare path that some BMCs write.
pub fn reference(value: &Value) -> Option<&str> {
    let path = match value {
        Value::String(path) => Some(path.as_str()),
        object => object.property("@odata.id").and_then(Value::as_str),
    };
    path.map(str::trim).filter(|path| !path.is_empty())
}

/// Something that a resource can be told to do.
#[derive(Debug, Clone, Copy)]
pub struct Action<'a> {
    pub target: &'a str,
    pub about: &'a Value,
}

impl Action<'_> {
    /// What the BMC takes for a parameter; empty where it does not say.
    pub fn allowed(&self, parameter: &str) -> Vec<String> {
        allowable(self.about, parameter)
    }

    /// Where the allowed values are instead of in the action itself.
    pub fn info(&self) -> Option<&str> {
        self.about.link("@Redfish.ActionInfo")
    }
}

/// `NAME@Redfish.AllowableValues` beside `NAME`.
pub fn allowable(about: &Value, name: &str) -> Vec<String> {
    let values = about.list(&format!("{name}@Redfish.AllowableValues"));
    values.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn oddities_are_read_as_they_are_meant() {
        let odd = json!({
            "Model": "  R750 ", "SKU": "", "Serial": null, "Reading": "12.5", "Speed": 18600, "Lit": "True",
            "sensors": {"@Odata.Id": "/redfish/v1/s "}, "Bare": "/redfish/v1/b", "Empty": {},
            "Links": [{"@odata.id": "/a"}, "/b", {"no": 1}, null],
        });
        assert_eq!(odd.text("Model").as_deref(), Some("R750"));
        assert_eq!((odd.text("SKU"), odd.text("Serial"), odd.text("Gone")), (None, None, None));
        assert_eq!(
            (odd.number("Reading"), odd.number("Speed"), odd.number("Model")),
            (Some(12.5), Some(18600.0), None)
        );
        assert_eq!((odd.flag("Lit"), odd.flag("Speed")), (Some(true), None));
        assert_eq!(odd.link("Sensors"), Some("/redfish/v1/s"));
        assert_eq!((odd.link("Bare"), odd.link("Empty")), (Some("/redfish/v1/b"), None));
        assert_eq!(odd.links("Links"), ["/a", "/b"]);
        assert!(odd.list("Model").is_empty());
        assert!(json!([]).property("x").is_none());
    }

    #[test]
    fn an_action_needs_a_target() {
        let system = json!({"Actions": {"#ComputerSystem.Reset": {
            "target": "/reset", "ResetType@Redfish.AllowableValues": ["On", 7, "ForceOff"],
        }, "#Other": {}}});
        let reset = system.action("#ComputerSystem.Reset").unwrap();
        assert_eq!(
            (reset.target, reset.allowed("ResetType")),
            ("/reset", vec!["On".to_owned(), "ForceOff".to_owned()])
        );
        assert!(reset.info().is_none());
        assert!(system.action("#Other").is_none());
    }
}
