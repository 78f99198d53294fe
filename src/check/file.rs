//! One file of checks: read strictly, each fault told with file, line and key.
//!
//! ```toml
//! role = "docker"                  # absent: every host
//!
//! [[check]]                        # one that is declared here
//! id = "docker.limits"
//! kind = "command"
//! …
//!
//! [[change]]                       # another bound, severity or deadline of one that is declared before
//! id = "docker.container"
//! at-most = "60 s"
//! reason = "virtual machines without KVM"
//! ```

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;

use super::quantity::{self, Bound, Unit};
use super::{Declared, Kind, Subject};
use crate::error::{Error, Result};
use crate::machine::{Role, Severity, Who};

/// The agent has 20 minutes for all of them.
const MAX_DEADLINE: f64 = 600.0;
/// What may stand in braces in `expected`.
const FACTS: &[&str] = &["bound", "hostname", "manifest", "kernel-floor"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    role: Option<Role>,
    #[serde(default)]
    check: Vec<Row>,
    #[serde(default)]
    change: Vec<Change>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Row {
    id: Spanned<String>,
    kind: Spanned<String>,
    why: Spanned<String>,
    how: Spanned<String>,
    expected: Spanned<String>,
    at_least: Option<Spanned<String>>,
    at_most: Option<Spanned<String>>,
    severity: Severity,
    who: Who,
    next: Spanned<String>,
    deadline: Spanned<String>,
    #[serde(default)]
    disruptive: bool,
    /// Of the kind `file`.
    path: Option<Spanned<String>>,
    /// Of the kind `command`: program and arguments, no shell.
    run: Option<Spanned<Vec<String>>>,
    /// What file or command says, word for word; absent with a bound: a number.
    says: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Change {
    id: Spanned<String>,
    reason: Spanned<String>,
    at_least: Option<Spanned<String>>,
    at_most: Option<Spanned<String>>,
    severity: Option<Severity>,
    who: Option<Who>,
    next: Option<String>,
    deadline: Option<Spanned<String>>,
}

/// Adds to `set` what a file declares, and changes in it what the file changes.
pub fn read(mut set: Vec<Declared>, name: &str, text: &str) -> Result<Vec<Declared>> {
    let source = Source { name, text };
    let document: Document = toml::from_str(text).map_err(|e| {
        let fault = source.fault(e.span().unwrap_or_default(), e.message());
        fault.hint("see templates/check/ for examples")
    })?;
    for row in document.check {
        let declared = source.declared(document.role, &row)?;
        if set.iter().any(|other| other.id == declared.id) {
            let fault = format!("there is a check {} already", declared.id);
            return Err(source.fault(row.id.span(), fault).hint("change it by [[change]], or take another id"));
        }
        if !declared.kind.repeats() && set.iter().any(|other| other.kind == declared.kind) {
            let fault = format!("there is a check of the kind {} already", declared.kind);
            return Err(source
                .fault(row.kind.span(), fault)
                .hint("change it by [[change]]; only `file` and `command` repeat"));
        }
        set.push(declared);
    }
    for change in document.change {
        let Some(declared) = set.iter_mut().find(|declared| declared.id == *change.id.as_ref()) else {
            let fault = format!("there is no check {}", change.id.as_ref());
            return Err(source.fault(change.id.span(), fault).hint("[[check]] declares a new one"));
        };
        source.change(declared, &change)?;
    }
    Ok(set)
}

struct Source<'a> {
    name: &'a str,
    text: &'a str,
}

impl Source<'_> {
    fn fault(&self, span: Range<usize>, what: impl AsRef<str>) -> Error {
        let before = self.text.get(..span.start).unwrap_or_default();
        let line = before.matches('\n').count();
        let key = self.text.lines().nth(line).and_then(|l| l.split_once('=')).map_or("", |(key, _)| key.trim());
        let key = if key.is_empty() || what.as_ref().contains(key) { String::new() } else { format!("{key}: ") };
        Error::config("check.invalid", format!("{}, line {}: {key}{}", self.name, line + 1, what.as_ref().trim_end()))
    }

    fn declared(&self, role: Option<Role>, row: &Row) -> Result<Declared> {
        let id = row.id.as_ref();
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-');
        if id.is_empty() || !id.chars().all(plain) {
            return Err(self.fault(row.id.span(), "an id has lower case letters, digits, dots and hyphens only"));
        }
        let kind = Kind::try_from(row.kind.as_ref().clone())
            .map_err(|e| self.fault(row.kind.span(), e.message()).hint(e.next_step().unwrap_or_default()))?;
        for text in [&row.why, &row.how, &row.next] {
            if text.as_ref().trim().is_empty() {
                return Err(
                    self.fault(text.span(), "a check says why it is there, how it is measured, and what is next")
                );
            }
        }
        let bound = self.bound(kind, None, row.at_least.as_ref(), row.at_most.as_ref())?;
        self.sentence(&row.expected, bound.is_some())?;
        Ok(Declared {
            id: id.clone(),
            kind,
            role,
            why: row.why.as_ref().clone(),
            how: row.how.as_ref().clone(),
            expected: row.expected.as_ref().clone(),
            bound,
            severity: row.severity,
            who: row.who,
            next: row.next.as_ref().clone(),
            deadline_seconds: self.deadline(&row.deadline)?,
            disruptive: row.disruptive,
            subject: self.subject(kind, row, bound.is_some())?,
            changed: None,
        })
    }

    fn change(&self, declared: &mut Declared, change: &Change) -> Result<()> {
        if change.reason.as_ref().trim().is_empty() {
            return Err(self.fault(change.reason.span(), "a change says why"));
        }
        let had = declared.bound;
        declared.bound = self.bound(declared.kind, had, change.at_least.as_ref(), change.at_most.as_ref())?;
        if had.is_none() && declared.bound.is_some() {
            return Err(self.fault(change.id.span(), format!("{} has no bound that could be changed", declared.id)));
        }
        if let Some(deadline) = &change.deadline {
            declared.deadline_seconds = self.deadline(deadline)?;
        }
        declared.severity = change.severity.unwrap_or(declared.severity);
        declared.who = change.who.unwrap_or(declared.who);
        if let Some(next) = &change.next {
            declared.next.clone_from(next);
        }
        declared.changed = Some(change.reason.as_ref().clone());
        Ok(())
    }

    fn quantity(&self, text: &Spanned<String>, wanted: Unit) -> Result<f64> {
        let (value, unit) =
            quantity::parse(text.as_ref()).map_err(|e| self.fault(text.span(), e).hint(quantity::known_units()))?;
        if unit == wanted {
            return Ok(value);
        }
        let fault = format!("{:?} is not what is measured here", text.as_ref());
        Err(self.fault(text.span(), fault).hint(match wanted {
            Unit::Count => "a number without a unit is meant".to_owned(),
            unit => format!("it is measured in {}", unit.name()),
        }))
    }

    /// `had`: what is declared before, of which a change may name one side only.
    fn bound(
        &self,
        kind: Kind,
        had: Option<Bound>,
        least: Option<&Spanned<String>>,
        most: Option<&Spanned<String>>,
    ) -> Result<Option<Bound>> {
        let Some(first) = least.or(most) else { return Ok(had) };
        let unit = kind
            .unit()
            .ok_or_else(|| self.fault(first.span(), format!("the kind {kind} measures nothing, so it has no bound")))?;
        let side = |text: Option<&Spanned<String>>| text.map(|text| self.quantity(text, unit)).transpose();
        let at_least = side(least)?.or(had.and_then(|b| b.at_least));
        let at_most = side(most)?.or(had.and_then(|b| b.at_most));
        if at_least.zip(at_most).is_some_and(|(least, most)| least > most) {
            return Err(self.fault(first.span(), "nothing is at least the one and at most the other"));
        }
        Ok(Some(Bound { at_least, at_most, unit }))
    }

    fn deadline(&self, text: &Spanned<String>) -> Result<f64> {
        let seconds = self.quantity(text, Unit::Seconds)?;
        if seconds > 0.0 && seconds <= MAX_DEADLINE {
            return Ok(seconds);
        }
        Err(self.fault(text.span(), "a deadline is between 0 and 10 min"))
    }

    fn sentence(&self, text: &Spanned<String>, bound: bool) -> Result<()> {
        let mut facts = text.as_ref().split('{').skip(1).map(|rest| rest.split('}').next().unwrap_or(rest));
        if let Some(unknown) = facts.clone().find(|fact| !FACTS.contains(fact)) {
            let hint = format!("there are {}", FACTS.join(", "));
            return Err(self.fault(text.span(), format!("nobody knows {{{unknown}}}")).hint(hint));
        }
        if facts.any(|fact| fact == "bound") == bound {
            return Ok(());
        }
        let fault = if bound { "the sentence does not say its {bound}" } else { "there is no bound that it could say" };
        Err(self.fault(text.span(), fault))
    }

    fn subject(&self, kind: Kind, row: &Row, bound: bool) -> Result<Option<Subject>> {
        let unwanted = match kind {
            Kind::File => row.run.as_ref().map(Spanned::span),
            Kind::Command => row.path.as_ref().map(Spanned::span),
            _ => row.run.as_ref().map(Spanned::span).or_else(|| row.path.as_ref().map(Spanned::span)),
        };
        if let Some(span) = unwanted {
            return Err(self.fault(span, format!("does not belong to the kind {kind}")));
        }
        if bound && row.says.is_some() {
            return Err(self.fault(row.kind.span(), "there is a bound or `says`, not both"));
        }
        match (kind, &row.path, &row.run) {
            (Kind::File, Some(path), _) if path.as_ref().starts_with('/') => {
                Ok(Some(Subject::File { path: path.as_ref().clone(), says: row.says.clone() }))
            }
            (Kind::File, ..) => {
                Err(self.fault(row.kind.span(), "the kind file needs the `path` of a file from the root"))
            }
            (Kind::Command, _, Some(run)) if run.as_ref().first().is_some_and(|program| !program.is_empty()) => {
                Ok(Some(Subject::Command { run: run.as_ref().clone(), says: row.says.clone() }))
            }
            (Kind::Command, ..) => {
                Err(self.fault(row.kind.span(), "the kind command needs `run`, a list of program and arguments"))
            }
            _ if row.says.is_some() => {
                Err(self.fault(row.kind.span(), format!("`says` does not belong to the kind {kind}")))
            }
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Set;

    const SWAP: &str = r#"[[check]]
id = "site.swap"
kind = "command"
why = "guests shall not be swapped out"
how = "sysctl"
expected = "swappiness {bound}"
severity = "warning"
who = "operator"
next = "see /etc/sysctl.d"
deadline = "10 s"
run = ["sysctl", "-n", "vm.swappiness"]
at-most = "10"
"#;

    fn read(text: &str) -> Result<Vec<Declared>> {
        Set::built_in().clone().with("site.toml", text).map(|set| set.iter().cloned().collect())
    }

    #[test]
    fn a_site_adds_a_check_of_its_own() {
        let set = read(SWAP).unwrap();
        let swap = set.last().unwrap();
        assert_eq!((swap.id.as_str(), swap.severity, swap.role), ("site.swap", Severity::Warning, None));
        assert_eq!(swap.bound.unwrap().to_string(), "at most 10");
        assert!(matches!(&swap.subject, Some(Subject::Command { run, says: None }) if run.len() == 3));
    }

    #[test]
    fn a_site_changes_a_bound_and_says_why() {
        let set = read(
            "[[change]]\nid = \"docker.container\"\nat-most = \"1 min\"\nseverity = \"warning\"\nreason = \"emulated\"\n",
        );
        let set = set.unwrap();
        let docker = set.iter().find(|d| d.id == "docker.container").unwrap();
        assert_eq!(docker.bound.unwrap().at_most, Some(60.0));
        assert_eq!((docker.severity, docker.changed.as_deref()), (Severity::Warning, Some("emulated")));
        let before = Set::built_in().iter().find(|d| d.id == "docker.container").unwrap();
        assert_eq!((before.bound.unwrap().at_most, before.severity), (Some(7.0), Severity::Fault));
    }

    #[test]
    fn the_example_of_the_documentation_is_valid() {
        let page = include_str!("../../docs/checks.md");
        let example = page.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let set = read(example).unwrap();
        assert_eq!(set.len(), Set::built_in().iter().count() + 2);
    }

    #[test]
    fn faults_name_file_line_and_key() {
        let change = |lines: &str| format!("[[change]]\nid = \"docker.container\"\nreason = \"slow\"\n{lines}\n");
        for (text, line, parts) in [
            (change("at-most = \"7 parsec\""), 4, ["at-most", "no unit"]),
            (change("at-most = \"7 MiB\""), 4, ["at-most", "not what is measured"]),
            (change("at-most = \"soon\""), 4, ["at-most", "number"]),
            (change("atmost = \"7 s\""), 4, ["unknown field", "atmost"]),
            (change("severity = \"grave\""), 4, ["severity", "grave"]),
            (change("deadline = \"2 GiB\""), 4, ["deadline", "not what is measured"]),
            (change("deadline = \"1000 min\""), 4, ["deadline", "between"]),
            ("[[change]]\nid = \"docker.contaner\"\nreason = \"x\"\n".into(), 2, ["no check", "docker.contaner"]),
            (
                "[[change]]\nid = \"hostname\"\nreason = \"x\"\nat-most = \"3\"\n".into(),
                4,
                ["at-most", "measures nothing"],
            ),
            ("[[change]]\nid = \"hostname\"\nreason = \" \"\n".into(), 3, ["reason", "says why"]),
            ("[[change]]\nid = \"hostname\"\n".into(), 1, ["missing field", "reason"]),
            ("role = \"kvmm\"\n".into(), 1, ["role", "kvmm"]),
            (SWAP.replace("\"command\"", "\"divination\""), 3, ["kind", "divination"]),
            (SWAP.replace("site.swap", "kernel"), 2, ["id", "kernel already"]),
            (SWAP.replace("site.swap", "Site Swap"), 2, ["id", "lower case"]),
            (SWAP.replace("{bound}", "{bond}"), 6, ["expected", "{bond}"]),
            (SWAP.replace("{bound}", "low"), 6, ["expected", "{bound}"]),
            (SWAP.replace("\"sysctl\"\nex", "\"\"\nex"), 5, ["how", "measured"]),
            (SWAP.replace("run = [\"sysctl\", \"-n\", \"vm.swappiness\"]\n", ""), 3, ["kind", "`run`"]),
            (SWAP.replace("\"command\"", "\"docker-start\""), 3, ["kind", "docker-start"]),
            (SWAP.replace("\"command\"", "\"guest\""), 12, ["at-most", "not what is measured"]),
            (SWAP.replace("\"10\"", "\"10\"\npath = \"/x\""), 13, ["path", "does not belong"]),
            ("colour = 1\n".into(), 1, ["unknown field", "colour"]),
            ("[[check]\n".into(), 1, ["", ""]),
        ] {
            let error = read(&text).unwrap_err();
            let place = format!("site.toml, line {line}: ");
            assert!(error.message().starts_with(&place), "{place}: {error}");
            assert!(parts.iter().all(|part| error.message().contains(part)), "{parts:?}: {error}");
            assert_eq!(error.code(), "check.invalid");
        }
    }
}
