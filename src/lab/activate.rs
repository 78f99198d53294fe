//! `rackline lab activate PROGRAM …`: hands its standard input, a listening socket, to a program by the socket
//! activation protocol (`sd_listen_fds(3)`) and becomes that program. The lab cannot do it itself: the process id that
//! the protocol wants in the environment is known only here.

use std::ffi::OsString;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use crate::error::{Error, Kind, OrFail, Result};

/// `SD_LISTEN_FDS_START`
const FIRST: i32 = 3;

pub fn main(command: &[OsString]) -> Result<ExitCode> {
    let (program, arguments) = command.split_first().ok_or_else(|| Error::input("lab.activate", "no program"))?;
    // SAFETY: descriptor 3 is taken over whatever it is, here perhaps the async runtime's own; nothing uses it between
    // this and `exec`, and it is given away again below, so it is not closed.
    let mut third = unsafe { OwnedFd::from_raw_fd(FIRST) };
    // The new descriptor stays open over `exec`, unlike those that Rust opens.
    let placed = rustix::io::dup2(std::io::stdin(), &mut third);
    let _ = third.into_raw_fd();
    placed.or_fail(Kind::Internal, "lab.activate", || "cannot hand over the listening socket")?;
    let error = Command::new(program)
        .args(arguments)
        .env("LISTEN_FDS", "1")
        .env("LISTEN_PID", std::process::id().to_string())
        .stdin(std::process::Stdio::null())
        .exec();
    Err(Error::internal("lab.activate", format!("cannot start {}", program.to_string_lossy())).because(error))
}
