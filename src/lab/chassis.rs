//! `rackline lab chassis DIR get|set …`: the program that `ipmi_sim` runs for each chassis command. It passes the command
//! on to the lab and prints the answer; the machine's power lives there ([`super::rack`]).

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::rack::{Answer, Request, socket};
use crate::error::{Error, Kind, OrFail, Result};

/// Longer than the lab takes to start a machine on a busy host.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

pub fn main(dir: &Path, arguments: Vec<String>) -> Result<ExitCode> {
    ask(dir, arguments)?.iter().for_each(|line| println!("{line}"));
    Ok(ExitCode::SUCCESS)
}

/// One command and its answer; the Redfish BMC asks the same way.
pub fn ask(dir: &Path, arguments: Vec<String>) -> Result<Vec<String>> {
    let failed = || "the lab does not answer";
    let mut stream = UnixStream::connect(socket(dir)).or_fail(Kind::Unreachable, "lab.chassis", failed)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN)).or_fail(Kind::Internal, "lab.chassis", failed)?;
    let request = serde_json::to_string(&Request(arguments)).or_fail(Kind::Internal, "lab.chassis", failed)?;
    writeln!(stream, "{request}").or_fail(Kind::Unreachable, "lab.chassis", failed)?;
    let mut line = String::new();
    BufReader::new(stream.take(64 << 10)).read_line(&mut line).or_fail(Kind::Unreachable, "lab.chassis", failed)?;
    match serde_json::from_str(&line).or_fail(Kind::Internal, "lab.chassis", failed)? {
        Answer::Done(lines) => Ok(lines),
        Answer::Failed(why) => Err(Error::refused("lab.chassis", why)),
    }
}
