//! Whether the cloud-init of an image takes up our seed: a file system labelled CIDATA, the data source NoCloud.
//!
//! Two places decide: `datasource_list` of cloud-init's configuration (the last file that names it wins; without one the
//! built-in list holds NoCloud), and `ds-identify`, which runs before it and obeys /etc/cloud/ds-identify.cfg and
//! `datasource_list` alike.

use super::Tree;
use super::files::Files;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloudInit {
    Missing,
    /// Installed, and kept from running: the reason.
    Disabled(String),
    /// NoCloud is not among its data sources: the list, and the file that has it.
    OtherSources {
        sources: Vec<String>,
        file: String,
    },
    Fits,
}

pub fn check(files: &Tree) -> CloudInit {
    let programs = ["/usr/bin/cloud-init", "/usr/local/bin/cloud-init"];
    if !programs.iter().any(|p| files.exists(p)) {
        return CloudInit::Missing;
    }
    if files.exists("/etc/cloud/cloud-init.disabled") {
        return CloudInit::Disabled("/etc/cloud/cloud-init.disabled".into());
    }
    let mut configs = vec!["/etc/cloud/cloud.cfg".to_owned()];
    let parts = files.list("/etc/cloud/cloud.cfg.d").unwrap_or_default();
    configs.extend(parts.iter().filter(|n| n.ends_with(".cfg")).map(|n| format!("/etc/cloud/cloud.cfg.d/{n}")));
    let mut lists = configs.iter().rev().filter_map(|path| Some((path, datasources(&files.text(path)?)?)));
    if let Some((file, sources)) = lists.next().filter(|(_, sources)| !sources.iter().any(|s| s == "NoCloud")) {
        return CloudInit::OtherSources { sources, file: file.clone() };
    }
    let identify = files.text("/etc/cloud/ds-identify.cfg").unwrap_or_default();
    for line in identify.lines().map(str::trim).filter(|l| !l.starts_with('#')) {
        let Some((key, value)) = line.split_once(':').map(|(k, v)| (k.trim(), v.trim())) else { continue };
        match key {
            "policy" if value == "disabled" => return CloudInit::Disabled("/etc/cloud/ds-identify.cfg".into()),
            "datasource" if value != "NoCloud" && !value.is_empty() => {
                let sources = vec![value.to_owned()];
                return CloudInit::OtherSources { sources, file: "/etc/cloud/ds-identify.cfg".into() };
            }
            _ => {}
        }
    }
    CloudInit::Fits
}

/// The list under the key `datasource_list` at the top level of a YAML file, in the two styles of YAML: `[A, B]`, perhaps
/// over several lines, or `- A` line by line. ds-identify itself reads no more of YAML than this.
fn datasources(text: &str) -> Option<Vec<String>> {
    let mut lines = text.lines().map(|l| l.split_once(" #").map_or(l, |(before, _)| before).trim_end());
    let mut flow = lines.find_map(|l| l.strip_prefix("datasource_list:"))?.trim().to_owned();
    let word = |s: &str| s.trim().trim_matches(['"', '\'']).to_owned();
    if flow.is_empty() {
        let mut items = Vec::new();
        for line in lines.filter(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#')) {
            match line.trim_start().strip_prefix("- ") {
                Some(item) => items.push(word(item)),
                // The list began on a line of its own.
                None if items.is_empty() && line.trim_start().starts_with('[') => return Some(flow_items(line.trim())),
                None => break,
            }
        }
        return Some(items);
    }
    while !flow.contains(']') {
        match lines.next() {
            Some(more) => flow.push_str(more.trim()),
            None => break,
        }
    }
    Some(flow_items(&flow))
}

fn flow_items(flow: &str) -> Vec<String> {
    let inner = flow.trim_start_matches('[').split(']').next().unwrap_or_default();
    inner.split(',').map(|s| s.trim().trim_matches(['"', '\'']).to_owned()).filter(|s| !s.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_in_every_style() {
        assert_eq!(datasources("a: 1\n"), None);
        assert_eq!(datasources("datasource_list: [ NoCloud, None ]\n").unwrap(), ["NoCloud", "None"]);
        assert_eq!(
            datasources("x: 1\ndatasource_list: ['Ec2', # first\n  \"NoCloud\"]\ny: 2").unwrap(),
            ["Ec2", "NoCloud"]
        );
        assert_eq!(datasources("datasource_list:\n  - Ec2\n- None\nother: 1").unwrap(), ["Ec2", "None"]);
        assert_eq!(datasources("  datasource_list: [Ec2]\n"), None, "not at the top level");
        assert_eq!(datasources("datasource_list: [Ec2").unwrap(), ["Ec2"]);
    }
}
