//! `rackline lab lan FILE get|check|set …`: the program that keeps a BMC's LAN parameters for `ipmi_sim`, as lines of
//! `name:value`. Other values change what the BMC says about itself, not where it listens.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use crate::error::{Error, Kind, OrFail, Result};

pub fn main(file: &Path, arguments: &[String]) -> Result<ExitCode> {
    let wrong = || Error::input("lab.lan", format!("not a LAN parameter command: {}", arguments.join(" ")));
    let failed = || format!("cannot keep LAN parameters in {}", file.display());
    let (verb, rest) = arguments.split_first().ok_or_else(wrong)?;
    // A second program must not read between this one's reading and writing.
    let lock = File::create(file.with_extension("lock")).or_fail(Kind::Internal, "lab.lan", failed)?;
    lock.lock().or_fail(Kind::Internal, "lab.lan", failed)?;
    let text = fs::read_to_string(file).or_fail(Kind::Internal, "lab.lan", failed)?;
    match verb.as_str() {
        "get" => {
            for name in rest {
                println!("{name}:{}", value(&text, name).unwrap_or("0.0.0.0"));
            }
        }
        "check" => {}
        "set" => {
            let new =
                File::create(file.with_extension("new")).and_then(|mut f| f.write_all(set(&text, rest).as_bytes()));
            new.and_then(|()| fs::rename(file.with_extension("new"), file)).or_fail(
                Kind::Internal,
                "lab.lan",
                failed,
            )?;
        }
        _ => return Err(wrong()),
    }
    Ok(ExitCode::SUCCESS)
}

fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

fn set(text: &str, pairs: &[String]) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for pair in pairs.chunks_exact(2) {
        lines.retain(|line| line.strip_prefix(pair[0].as_str()).is_none_or(|rest| !rest.starts_with(':')));
        lines.push(format!("{}:{}", pair[0], pair[1].replace('\n', " ")));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_replaced_and_its_neighbour_is_not() {
        let text = "ip_addr:10.77.1.1\nip_addr_src:static\n";
        let new = set(text, &["ip_addr".into(), "10.77.1.9".into(), "odd".into()]);
        assert_eq!(new, "ip_addr_src:static\nip_addr:10.77.1.9\n");
        assert_eq!(value(&new, "ip_addr"), Some("10.77.1.9"));
        assert_eq!(value(&new, "ip"), None);
    }
}
