//! Who may use whom. The order of the modules in `src/lib.rs` is the reading order; each row may use the rows named here
//! and nothing else. A new arrow is a decision: it is made in this table, with a reason in ARCHITECTURE.md.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Module, and what it may use besides `error`, `durable` and `machine`, which everybody may.
#[rustfmt::skip]
const LAYERS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("count", &[]),
    ("durable", &[]),
    ("machine", &[]),
    ("role", &[]),
    ("check", &[]),
    ("link", &["check", "role"]),
    ("ipmi", &["link"]),
    ("template", &["link", "role"]),
    ("judge", &["link"]),
    ("lifecycle", &["check", "link", "role"]),
    ("outlet", &[]),
    ("config", &["boot", "link", "outlet", "template"]),
    ("store", &["lifecycle", "link"]),
    ("httpd", &["count"]),
    ("boot", &["count", "httpd", "store", "template"]),
    ("bmc", &["ipmi"]),
    ("firmware", &["bmc", "lifecycle"]),
    ("image", &[]),
    ("swarm", &["count", "image", "link"]),
    ("handoff", &["check", "image", "lifecycle", "link", "template"]),
    ("agent", &["check", "image", "ipmi", "link", "role", "swarm"]),
    ("engine", &["bmc", "boot", "check", "config", "firmware", "handoff", "image", "judge", "lifecycle", "link", "outlet", "role", "store", "template"]),
    ("api", &["bmc", "boot", "config", "engine", "firmware", "handoff", "httpd", "image", "judge", "lifecycle", "link", "role", "swarm"]),
    ("console", &["api", "engine", "handoff"]),
    ("lab", &["agent", "api", "check", "config", "image", "link", "role", "template"]),
    ("cli", &["agent", "api", "bmc", "boot", "check", "config", "console", "engine", "firmware", "handoff", "httpd", "image", "ipmi", "judge", "lab", "lifecycle", "link", "outlet", "role", "store", "swarm"]),
];

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// The modules named as `crate::NAME` or in `use crate::{a, b}` outside comments.
fn used(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in text.lines().filter(|l| !l.trim_start().starts_with("//")) {
        let mut rest = line;
        while let Some(at) = rest.find("crate::") {
            rest = &rest[at + 7..];
            if let Some(group) = rest.strip_prefix('{') {
                let names =
                    group.split(',').map(|n| n.split("::").next().unwrap_or("").trim().trim_end_matches([';', '}']));
                found.extend(names.filter(|n| n.chars().all(char::is_lowercase)).map(str::to_owned));
            } else {
                found.insert(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
            }
        }
    }
    found
}

#[test]
fn every_module_uses_only_what_the_table_allows() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for (module, allowed) in LAYERS {
        let mut files = Vec::new();
        let folder = src.join(module);
        if folder.is_dir() {
            sources(&folder, &mut files);
        } else {
            files.push(src.join(format!("{module}.rs")));
        }
        for file in files {
            for name in used(&std::fs::read_to_string(&file).unwrap()) {
                let known = LAYERS.iter().any(|(m, _)| *m == name);
                let everybody = ["error", "durable", "machine", module];
                let fine = everybody.contains(&name.as_str()) || allowed.contains(&name.as_str());
                if known && !fine {
                    wrong.push(format!("{} uses {name}", file.strip_prefix(&src).unwrap().display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "not in the table of tests/it/layers.rs:\n{}", wrong.join("\n"));
}

#[test]
fn the_table_is_the_reading_order_of_the_library() {
    let lib = include_str!("../../src/lib.rs");
    let order: Vec<&str> = lib.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let table: Vec<&str> = LAYERS.iter().map(|(m, _)| *m).collect();
    assert_eq!(order, table);
}

#[test]
fn logic_files_stay_readable() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.strip_prefix(&src).unwrap().display();
        assert!(text.starts_with("//!"), "{name} does not open with what it is and why");
        let logic = text.split("#[cfg(test)]\nmod tests").next().unwrap_or("").lines().count();
        assert!(logic <= 600, "{name} has {logic} lines");
    }
}
