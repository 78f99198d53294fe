//! What real BMCs do wrong, by request.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// As text: `"ignored"`, `{"unavailable": 3}`, `{"slow": 500}` in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The change is accepted with 204 and not made.
    Ignored,
    /// 412, whatever the entity tag.
    Precondition,
    /// 503 with `Retry-After` in seconds.
    Unavailable(u64),
    /// 500 with a page of HTML.
    Broken,
    /// 401, and all sessions are gone.
    Expired,
    /// 308 to the same path under this origin (`https://10.0.0.9`); on this host where it is empty.
    Redirect(String),
    /// The body ends in the middle, with the connection.
    Truncated,
    /// One byte of the body each time.
    Drip(#[serde(with = "milliseconds")] Duration),
    /// The answer begins after this time.
    Slow(#[serde(with = "milliseconds")] Duration),
    /// The connection is reset before an answer.
    Reset,
    /// No answer, ever; the connection stays.
    Silent,
    /// 200 and 64 KiB of noise that calls itself JSON.
    Garbage,
    Odd(Oddity),
}

/// OData as some BMCs write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Oddity {
    /// The document does not say where it is.
    NoId,
    /// `@odata.Id`, also in links.
    IdCase,
    /// `@odata.nextLink` for `Members@odata.nextLink`, as OData itself has it.
    PlainNextLink,
    /// A page whose next page is itself.
    NextLinkLoop,
    /// `Members@odata.count` is too high.
    Count,
    /// Every value that a null may stand for is one.
    Nulls,
}

impl Oddity {
    pub fn apply(self, path: &str, document: &mut Value) {
        let Value::Object(map) = document else { return };
        match self {
            Oddity::NoId => drop(map.remove("@odata.id")),
            Oddity::IdCase => rename(document, "@odata.id", "@odata.Id"),
            Oddity::PlainNextLink => rename(document, "Members@odata.nextLink", "@odata.nextLink"),
            Oddity::NextLinkLoop => drop(map.insert("Members@odata.nextLink".into(), json!(path))),
            Oddity::Count => drop(map.insert("Members@odata.count".into(), json!(1_000_000))),
            Oddity::Nulls => {
                let kept = |key: &str| key.starts_with('@') || matches!(key, "Id" | "Name" | "Members");
                map.iter_mut().filter(|(k, v)| !kept(k) && !v.is_object()).for_each(|(_, v)| *v = Value::Null);
            }
        }
    }
}

fn rename(value: &mut Value, from: &str, to: &str) {
    match value {
        Value::Object(map) => {
            if let Some(found) = map.remove(from) {
                map.insert(to.to_owned(), found);
            }
            map.values_mut().for_each(|v| rename(v, from, to));
        }
        Value::Array(items) => items.iter_mut().for_each(|v| rename(v, from, to)),
        _ => {}
    }
}

mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

/// A fault as a file has it: for a BMC that is a process of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planted {
    /// As for [`super::Controls::fault`].
    pub what: String,
    pub fault: Fault,
    /// For so many requests, else for all.
    #[serde(default)]
    pub times: Option<u32>,
}

#[derive(Debug, Clone)]
pub(super) struct Rule {
    /// Empty for any.
    method: String,
    path: String,
    /// The path and all below it.
    below: bool,
    fault: Fault,
    left: Option<u32>,
}

impl Rule {
    pub fn new(what: &str, fault: Fault, left: Option<u32>) -> Self {
        let (method, path) = match what.split_once(' ') {
            Some((method, path)) => (method, path),
            None if what.starts_with('/') => ("", what),
            None => (what, "*"),
        };
        let (path, below) = path.strip_suffix('*').map_or((path, false), |p| (p, true));
        Self { method: method.to_owned(), path: path.to_owned(), below, fault, left }
    }

    pub fn fits(&self, method: &str, path: &str) -> bool {
        let place = if self.below { path.starts_with(&self.path) } else { path == self.path };
        place && (self.method.is_empty() || self.method == method) && self.left != Some(0)
    }

    pub fn used(&mut self) -> Fault {
        self.left = self.left.map(|n| n.saturating_sub(1));
        self.fault.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_names_method_and_path() {
        let fits = |what: &str, method: &str, path: &str| Rule::new(what, Fault::Reset, None).fits(method, path);
        assert!(fits("GET /a", "GET", "/a") && !fits("GET /a", "PATCH", "/a") && !fits("GET /a", "GET", "/a/b"));
        assert!(fits("GET /a*", "GET", "/a/b") && fits("/a", "PATCH", "/a") && fits("POST", "POST", "/x"));
    }

    #[test]
    fn a_fault_is_used_up() {
        let mut rule = Rule::new("/a", Fault::Silent, Some(1));
        assert_eq!(rule.used(), Fault::Silent);
        assert!(!rule.fits("GET", "/a"));
    }

    #[test]
    fn faults_have_a_written_form() {
        let text = r#"[{"what":"PATCH","fault":"ignored"},{"what":"/a","fault":{"drip":5},"times":2}]"#;
        let planted: Vec<Planted> = serde_json::from_str(text).unwrap();
        let drip = Planted { what: "/a".into(), fault: Fault::Drip(Duration::from_millis(5)), times: Some(2) };
        assert_eq!((&planted[0].fault, &planted[1]), (&Fault::Ignored, &drip));
        assert_eq!(serde_json::to_value(&planted[1].fault).unwrap(), json!({ "drip": 5 }));
    }

    #[test]
    fn links_in_the_wrong_case() {
        let mut document = json!({ "@odata.id": "/a", "Members": [{ "@odata.id": "/a/1" }] });
        Oddity::IdCase.apply("/a", &mut document);
        assert_eq!(document, json!({ "@odata.Id": "/a", "Members": [{ "@odata.Id": "/a/1" }] }));
    }
}
