//! QEMU's machine protocol (docs/interop/qmp-spec.txt), as far as a BMC needs it: one command at a time, and the event
//! that says that the machine was reset.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Error, Kind, OrFail, Result};

/// QEMU answers from its main loop, which a busy host can hold up.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const MAX_LINE: u64 = 1 << 20;

pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).or_fail(Kind::Unreachable, "lab.qmp", || "QEMU does not listen")?;
        let timeout = stream.set_read_timeout(Some(ANSWER_WITHIN)).and(stream.set_write_timeout(Some(ANSWER_WITHIN)));
        timeout.or_fail(Kind::Internal, "lab.qmp", || "cannot set a time limit")?;
        let mut qmp = Self { reader: BufReader::new(stream) };
        qmp.read()?; // The greeting.
        qmp.command("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    pub fn command(&mut self, name: &str, arguments: Value) -> Result<Value> {
        let mut line = json!({ "execute": name, "arguments": arguments }).to_string();
        line.push('\n');
        self.reader.get_mut().write_all(line.as_bytes()).or_fail(Kind::Unreachable, "lab.qmp", || "QEMU has gone")?;
        loop {
            let answer = self.read()?;
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = answer.get("error") {
                return Err(Error::internal("lab.qmp", format!("QEMU refuses {name}: {}", error["desc"])));
            }
        }
    }

    /// Makes `order` the boot order of the next reset, and of those after it.
    pub fn set_boot_order(&mut self, order: &[(String, i32)]) -> Result<()> {
        // An index can be given only once, so all are taken away first.
        let cleared = order.iter().map(|(device, _)| (device, -1));
        let set = order.iter().map(|(device, index)| (device, *index));
        for (device, index) in cleared.chain(set) {
            let path = format!("/machine/peripheral/{device}");
            self.command("qom-set", json!({ "path": path, "property": "bootindex", "value": index }))?;
        }
        Ok(())
    }

    /// The next event's name; `None` when QEMU has ended. Waits as long as QEMU runs.
    pub fn event(&mut self) -> Result<Option<String>> {
        self.reader.get_ref().set_read_timeout(None).or_fail(
            Kind::Internal,
            "lab.qmp",
            || "cannot lift the time limit",
        )?;
        loop {
            match self.read() {
                Ok(message) => {
                    if let Some(name) = message.get("event").and_then(Value::as_str) {
                        return Ok(Some(name.to_owned()));
                    }
                }
                Err(e) if e.code() == "lab.qmp-end" => return Ok(None),
                Err(e) => return Err(e),
            }
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        let read = (&mut self.reader).take(MAX_LINE).read_line(&mut line);
        match read.or_fail(Kind::Unreachable, "lab.qmp", || "QEMU does not answer")? {
            0 => Err(Error::unreachable("lab.qmp-end", "QEMU has ended")),
            _ => serde_json::from_str(&line).or_fail(Kind::Internal, "lab.qmp", || "QEMU's answer is not JSON"),
        }
    }
}
