//! What a site wants to see besides: a file or a command of the host that says a word, or a number within bounds.

use std::io::Read;
use std::time::Duration;

use super::{Found, Visit, said};
use crate::agent::tool;
use crate::check::{Declared, Kind, Subject};
use crate::error::{Kind as Fault, OrFail, Result};

/// More of a file is not read.
const FILE_MAX: u64 = 64 << 10;

pub async fn check(visit: &mut Visit<'_>) {
    let all: Vec<_> = visit.asked(Kind::File).chain(visit.asked(Kind::Command)).collect();
    for declared in all {
        visit.answer(declared, look(declared)).await;
    }
}

async fn look(declared: &Declared) -> Result<Found> {
    let bounded = declared.bound.is_some();
    match &declared.subject {
        Some(Subject::File { path, says }) => {
            let path = path.clone();
            let text = crate::agent::blocking(move || read(&path)).await?;
            Ok(judge(&text, says.as_deref(), bounded))
        }
        Some(Subject::Command { run, says }) => {
            let Some((program, args)) = run.split_first() else { return Ok(Found::bad("no program is named")) };
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            // The visit's own deadline is the check's.
            let output = tool::run(program, &args, Duration::MAX).await?;
            Ok(match output.success {
                true => judge(&output.stdout, says.as_deref(), bounded),
                false => Found::bad(format!("{program} failed: {}", output.last_words())),
            })
        }
        None => Ok(Found::bad("the declaration does not say what to look at")),
    }
}

fn read(path: &str) -> Result<String> {
    let failed = || format!("{path} cannot be read");
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).or_fail(Fault::NotFound, "check.file", failed)?;
    file.take(FILE_MAX).read_to_end(&mut bytes).or_fail(Fault::Refused, "check.file", failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn judge(text: &str, says: Option<&str>, bounded: bool) -> Found {
    let text = text.trim();
    match (says, bounded) {
        (Some(wanted), _) => Found::when(text == wanted, said(text)),
        (None, true) => match text.parse() {
            Ok(value) => Found::Value(value, text.to_owned()),
            Err(_) => Found::bad(format!("{}, which is not a number", said(text))),
        },
        (None, false) => Found::Good(said(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::progress::Meter;
    use crate::check::Set;

    #[test]
    fn a_word_a_number_or_anything() {
        assert_eq!(judge("performance\n", Some("performance"), false), Found::Good("\"performance\"".into()));
        assert_eq!(judge("powersave\n", Some("performance"), false), Found::bad("\"powersave\""));
        assert_eq!(judge(" 10 ", None, true), Found::Value(10.0, "10".into()));
        assert!(matches!(judge("many", None, true), Found::Bad(found) if found.contains("not a number")));
        assert!(matches!(judge("", None, false), Found::Good(_)));
    }

    #[tokio::test]
    async fn files_and_commands_as_a_site_declares_them() {
        let check = |id: &str, kind: &str, rest: &str| {
            format!(
                "[[check]]\nid = \"{id}\"\nkind = \"{kind}\"\nwhy = \"w\"\nhow = \"h\"\nexpected = \"e\"\n\
                 severity = \"fault\"\nwho = \"operator\"\nnext = \"n\"\ndeadline = \"300 ms\"\n{rest}\n"
            )
        };
        let text = [
            check("a", "file", "path = \"/proc/sys/kernel/ostype\"\nsays = \"Linux\""),
            check("b", "file", "path = \"/no/such/file\""),
            check("c", "command", "run = [\"echo\", \"no\"]\nsays = \"yes\""),
            check("d", "command", "run = [\"sleep\", \"60\"]"),
            check("e", "command", "run = [\"/no/such/tool\"]"),
        ];
        let set = Set::default().with("site.toml", &text.concat()).unwrap();
        let asked: Vec<Declared> = set.iter().cloned().collect();
        let meter = Meter::new(1);
        let mut visit = Visit { meter: &meter, asked: &asked, checks: Vec::new(), measured: Vec::new() };
        super::check(&mut visit).await;
        let found: Vec<_> = visit.checks.iter().map(|c| (c.passed, c.found.as_str())).collect();
        assert_eq!(found[0], (true, "\"Linux\""));
        assert_eq!(found[1], (false, "/no/such/file cannot be read"));
        assert_eq!(found[2], (false, "\"no\""));
        assert_eq!(found[3], (false, "no answer within 0.3 s"));
        assert_eq!(found[4], (false, "/no/such/tool cannot be started"));
    }
}
