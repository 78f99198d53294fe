//! The serial cable of each machine, from its QEMU to its BMC.
//!
//! QEMU comes and goes with the machine's power, and `ipmi_sim` looks for a serial port that it lost each ten seconds
//! only. So the cable is here and always plugged in: `ipmi_sim` connects to a TCP port of the lab's network namespace
//! once, each QEMU to a Unix socket when it starts, before its firmware prints anything.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::spec::Machine;
use super::vm;
use crate::error::{Kind, OrFail, Result};

/// A side that takes nothing for this long loses what is sent to it, as on a serial line without flow control.
const PATIENCE: Duration = Duration::from_secs(1);
/// What `ipmi_sim` makes of a break: telnet's sign for it. A Unix socket of QEMU has none.
const BREAK: [u8; 2] = [0xff, 0xf3];

pub struct Cable {
    door: UnixListener,
    thread: JoinHandle<()>,
}

impl Cable {
    pub fn plug(machine: &Machine, netns: &str) -> Result<Self> {
        let failed = || format!("cannot make the serial port of {}", machine.name());
        let door = UnixListener::bind(vm::serial(machine)).or_fail(Kind::Internal, "lab.serial", failed)?;
        let port = listen_inside(netns, machine.serial_port()).or_fail(Kind::Internal, "lab.serial", failed)?;
        let inner = door.try_clone().or_fail(Kind::Internal, "lab.serial", failed)?;
        let thread = std::thread::spawn(move || {
            // Ends with the shut-down of the door.
            let _ = Ends { port, door: inner, bmc: None, machine: None }.carry();
        });
        Ok(Self { door, thread })
    }

    pub fn unplug(self) {
        let _ = rustix::net::shutdown(&self.door, rustix::net::Shutdown::Both);
        let _ = self.thread.join();
    }
}

/// A listener on the namespace's loopback. The namespace is a matter of each thread, so this takes one.
fn listen_inside(netns: &str, port: u16) -> std::io::Result<TcpListener> {
    let namespace = File::open(Path::new("/run/netns").join(netns))?;
    let listen = move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        TcpListener::bind((Ipv4Addr::LOCALHOST, port))
    };
    std::thread::spawn(listen).join().unwrap_or_else(|_| Err(ErrorKind::Other.into()))
}

struct Ends {
    port: TcpListener,
    door: UnixListener,
    bmc: Option<TcpStream>,
    machine: Option<UnixStream>,
}

impl Ends {
    fn carry(mut self) -> Result<()> {
        let failed = || "a serial cable of the lab ended";
        let mut buffer = [0; 4096];
        loop {
            let ready = self.wait().or_fail(Kind::Internal, "lab.serial", failed)?;
            let [at_port, at_door, from_bmc, from_machine] = ready;
            // Whoever had something is read before another one takes its place: a read of the new one could wait for ever.
            if from_machine {
                pass(&mut self.machine, &mut self.bmc, &mut buffer, |_| ());
            }
            if at_door {
                let (machine, _) = self.door.accept().or_fail(Kind::Internal, "lab.serial", failed)?;
                let _ = machine.set_write_timeout(Some(PATIENCE));
                self.machine = Some(machine);
            }
            if from_bmc {
                pass(&mut self.bmc, &mut self.machine, &mut buffer, without_breaks);
            }
            if at_port {
                let (bmc, _) = self.port.accept().or_fail(Kind::Internal, "lab.serial", failed)?;
                let _ = bmc.set_write_timeout(Some(PATIENCE)).and(bmc.set_nodelay(true));
                self.bmc = Some(bmc);
            }
        }
    }

    /// Which of port, door, BMC and machine have something.
    fn wait(&self) -> std::io::Result<[bool; 4]> {
        let ends: [Option<BorrowedFd<'_>>; 4] = [
            Some(self.port.as_fd()),
            Some(self.door.as_fd()),
            self.bmc.as_ref().map(AsFd::as_fd),
            self.machine.as_ref().map(AsFd::as_fd),
        ];
        let mut asked: Vec<PollFd<'_>> =
            ends.iter().flatten().map(|end| PollFd::from_borrowed_fd(*end, PollFlags::IN)).collect();
        while let Err(e) = poll(&mut asked, None) {
            if e != rustix::io::Errno::INTR {
                return Err(e.into());
            }
        }
        let mut answers = asked.iter().map(|end| !end.revents().is_empty());
        Ok(ends.map(|end| end.is_some() && answers.next().unwrap_or(false)))
    }
}

/// What one end has goes to the other; an end that is gone is taken out.
fn pass<A: Read, B: Write>(from: &mut Option<A>, to: &mut Option<B>, buffer: &mut [u8], clean: fn(&mut Vec<u8>)) {
    let read = from.as_mut().map_or(Ok(0), |from| from.read(buffer));
    let Some(bytes) = read.ok().and_then(|count| buffer.get(..count)).filter(|bytes| !bytes.is_empty()) else {
        *from = None;
        return;
    };
    let mut bytes = bytes.to_vec();
    clean(&mut bytes);
    let written = to.as_mut().map_or(Ok(()), |to| to.write_all(&bytes));
    if written.is_err_and(|e| !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)) {
        *to = None;
    }
}

fn without_breaks(bytes: &mut Vec<u8>) {
    while let Some(at) = bytes.windows(BREAK.len()).position(|pair| pair == BREAK) {
        bytes.drain(at..at + BREAK.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cable_stays_when_either_end_is_plugged_in_again() {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, path) = (port.local_addr().unwrap(), dir.path().join("serial"));
        let door = UnixListener::bind(&path).unwrap();
        let inner = door.try_clone().unwrap();
        let thread = std::thread::spawn(move || drop(Ends { port, door: inner, bmc: None, machine: None }.carry()));
        let cable = Cable { door, thread };
        let mut got = [0; 4];
        let mut bmc = TcpStream::connect(address).unwrap();
        for _ in 0..100 {
            let mut machine = UnixStream::connect(&path).unwrap();
            bmc.write_all(b"a\xff\xf3bcd").unwrap();
            machine.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"abcd");
            machine.write_all(b"GRUB").unwrap();
            bmc.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"GRUB");
        }
        let mut machine = UnixStream::connect(&path).unwrap();
        // Nobody at the other end: it is lost, and nothing hangs.
        drop(bmc);
        machine.write_all(&[b'x'; 100_000]).unwrap();
        cable.unplug();
    }
}
