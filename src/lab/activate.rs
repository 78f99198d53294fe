//! `rackline lab activate PROGRAM …`: hands its standard input, a listening socket, to a program by the socket
//! activation protocol (`sd_listen_fds(3)`) and becomes that program. The lab cannot do it itself: the process id that
//! the protocol wants in the environment is known only here.

use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

use crate::error::{Error, Kind, OrFail, Result};

/// `SD_LISTEN_FDS_START`
const FIRST: i32 = 3;

pub fn main(command: &[OsString]) -> Result<ExitCode> {
    let failed = || "cannot hand over the listening socket";
    let (program, arguments) = command.split_first().ok_or_else(|| Error::input("lab.activate", "no program"))?;
    let socket = fcntl_dupfd_cloexec(std::io::stdin(), FIRST).or_fail(Kind::Internal, "lab.activate", failed)?;
    if socket.as_raw_fd() != FIRST {
        return Err(Error::internal("lab.activate", "descriptor 3 is in use"));
    }
    fcntl_setfd(&socket, FdFlags::empty()).or_fail(Kind::Internal, "lab.activate", failed)?;
    let error = Command::new(program)
        .args(arguments)
        .env("LISTEN_FDS", "1")
        .env("LISTEN_PID", std::process::id().to_string())
        .stdin(std::process::Stdio::null())
        .exec();
    Err(Error::internal("lab.activate", format!("cannot start {}", program.to_string_lossy())).because(error))
}
