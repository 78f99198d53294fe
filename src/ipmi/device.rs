//! The BMC of this machine through `/dev/ipmi0` (Linux `ipmi_devintf`, `<linux/ipmi.h>`): what the agent in RAM uses to
//! tell which BMC belongs to its host, and to make itself a user there.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, Setter, Updater, opcode};

use super::app::{GetChannelInfo, GetDeviceId, Privilege};
use super::lan::{Address, GetLan, Mac};
use super::message::{Ask, Completion, Fault, Request, Response};
use super::user::{
    GetUserAccess, GetUserName, NAME_MAX, PASSWORD_SET_MAX, Password, SetUserAccess, SetUserName, SetUserPassword,
};
use crate::error::{Error, OrFail, Result};
use crate::link::BmcUser;
use crate::machine::InBandBmc;

/// How the errors name it.
const WHOSE: &str = "the BMC of this machine";
const PATHS: [&str; 3] = ["/dev/ipmi0", "/dev/ipmi/0", "/dev/ipmidev/0"];
/// Longest wait for one answer. A KCS interface needs milliseconds, a BMC that is writing its flash some seconds.
const ANSWER: Duration = Duration::from_secs(10);
/// `IPMI_MAX_MSG_LENGTH`.
const MESSAGE_MAX: usize = 272;
/// Channel numbers that can be a LAN (table 6-1).
const CHANNELS: std::ops::RangeInclusive<u8> = 1..=0x0b;

/// One command and its answer; `/dev/ipmi0` is one, a session over the network could be another.
pub trait Exchange {
    fn exchange(&mut self, request: &Request) -> Result<Response>;

    /// The outer error is the transport's, the inner one the BMC's.
    fn ask<A: Ask>(&mut self, ask: &A) -> Result<Result<A::Answer, Fault>> {
        Ok(ask.settle(&self.exchange(&ask.request())?))
    }
}

fn refused(fault: Fault) -> Error {
    fault.into_error(WHOSE)
}

#[repr(C)]
struct SystemInterfaceAddress {
    kind: i32,
    channel: i16,
    lun: u8,
}

#[repr(C)]
struct Message {
    netfn: u8,
    cmd: u8,
    length: u16,
    data: *mut u8,
}

/// `struct ipmi_req`.
#[repr(C)]
struct Send {
    address: *mut SystemInterfaceAddress,
    address_length: u32,
    id: std::ffi::c_long,
    message: Message,
}

/// `struct ipmi_recv`.
#[repr(C)]
struct Receive {
    kind: i32,
    address: *mut u8,
    address_length: u32,
    id: std::ffi::c_long,
    message: Message,
}

const SYSTEM_INTERFACE: i32 = 0x0c;
const BMC_CHANNEL: i16 = 0x0f;
const RESPONSE: i32 = 1;
const SEND_COMMAND: Opcode = opcode::read::<Send>(b'i', 13);
const RECEIVE_TRUNCATED: Opcode = opcode::read_write::<Receive>(b'i', 11);

/// An open `/dev/ipmi0`. Calls block up to [`ANSWER`].
pub struct Device {
    file: File,
    last: std::ffi::c_long,
}

impl Device {
    /// `None` where this machine has no IPMI device, which is not an error.
    pub fn open() -> Result<Option<Self>> {
        for path in PATHS {
            match OpenOptions::new().read(true).write(true).open(path) {
                Ok(file) => return Ok(Some(Self { file, last: 0 })),
                // ENODEV: the driver is loaded and found no interface.
                Err(e)
                    if e.kind() == std::io::ErrorKind::NotFound
                        || e.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => {}
                Err(e) => {
                    return Err(Error::config("bmc.device", format!("{path} cannot be opened")).because(e));
                }
            }
        }
        Ok(None)
    }

    fn send(&mut self, request: &Request) -> Result<()> {
        let mut address = SystemInterfaceAddress { kind: SYSTEM_INTERFACE, channel: BMC_CHANNEL, lun: request.lun };
        let mut data = request.data.clone();
        self.last = self.last.wrapping_add(1);
        let length = u16::try_from(data.len())
            .or_fail(crate::error::Kind::Internal, "bmc.device", || "an IPMI request longer than 64 KiB".to_owned())?;
        let message = Message { netfn: request.netfn, cmd: request.cmd, length, data: data.as_mut_ptr() };
        let send = Send {
            address: &mut address,
            address_length: size_of::<SystemInterfaceAddress>() as u32,
            id: self.last,
            message,
        };
        // SAFETY: the opcode takes a `struct ipmi_req`, laid out above; both pointers stay valid for the call, which
        // copies what they point to.
        unsafe { ioctl::ioctl(self.file.as_fd(), Setter::<SEND_COMMAND, Send>::new(send)) }.or_fail(
            crate::error::Kind::Unreachable,
            "bmc.device",
            || format!("{WHOSE} takes no command"),
        )
    }

    /// The next message; the id tells which request it answers.
    fn receive(&mut self) -> Result<Option<(std::ffi::c_long, Response)>> {
        let mut address = [0u8; 64];
        let mut data = [0u8; MESSAGE_MAX];
        let mut receive = Receive {
            kind: 0,
            address: address.as_mut_ptr(),
            address_length: address.len() as u32,
            id: 0,
            message: Message { netfn: 0, cmd: 0, length: MESSAGE_MAX as u16, data: data.as_mut_ptr() },
        };
        // SAFETY: the opcode updates a `struct ipmi_recv`, laid out above; both buffers outlive the call and their
        // lengths are given.
        let result =
            unsafe { ioctl::ioctl(self.file.as_fd(), Updater::<RECEIVE_TRUNCATED, Receive>::new(&mut receive)) };
        match result {
            // EMSGSIZE: the message was cut to the buffer, which is as long as a message may be.
            Ok(()) | Err(Errno::MSGSIZE) => {}
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(e) => {
                return Err(Error::unreachable("bmc.device", format!("{WHOSE} cannot be read")).because(e));
            }
        }
        let length = usize::from(receive.message.length).min(MESSAGE_MAX);
        let Some(([completion], data)) = data.get(..length).and_then(|d| d.split_first_chunk::<1>()) else {
            return Ok(None);
        };
        let response = Response {
            netfn: receive.message.netfn,
            cmd: receive.message.cmd,
            completion: Completion(*completion),
            data: data.to_vec(),
        };
        Ok((receive.kind == RESPONSE).then_some((receive.id, response)))
    }
}

impl Exchange for Device {
    fn exchange(&mut self, request: &Request) -> Result<Response> {
        self.send(request)?;
        let deadline = Instant::now() + ANSWER;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::unreachable(
                    "bmc.unreachable",
                    format!("{WHOSE} did not answer within {} s", ANSWER.as_secs()),
                )
                .hint("the BMC may be starting; if this lasts, take the machine off mains power for a minute"));
            }
            let wait = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.file, PollFlags::IN)], Some(&wait)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(Error::internal("bmc.device", "poll of the IPMI device failed").because(e)),
            }
            // An answer to an earlier request that came too late has another id.
            if let Some((id, response)) = self.receive()?
                && id == self.last
            {
                return Ok(response);
            }
        }
    }
}

/// Firmware, and address and MAC of the first LAN channel that has an address (else of the first LAN channel).
pub fn describe(bmc: &mut impl Exchange) -> Result<InBandBmc> {
    let id = bmc.ask(&GetDeviceId)?.map_err(refused)?;
    let mut found = InBandBmc { address: None, mac: None, firmware: Some(id.firmware) };
    for channel in lan_channels(bmc)? {
        let address = bmc.ask(&GetLan { channel, parameter: Address })?.ok().flatten();
        let mac = bmc.ask(&GetLan { channel, parameter: Mac })?.ok();
        if found.mac.is_none() || address.is_some() {
            found.address = address.map(Into::into);
            found.mac = mac;
        }
        if address.is_some() {
            break;
        }
    }
    Ok(found)
}

fn lan_channels(bmc: &mut impl Exchange) -> Result<Vec<u8>> {
    let mut channels = Vec::new();
    for channel in CHANNELS {
        if bmc.ask(&GetChannelInfo(channel))?.is_ok_and(|found| found.lan) {
            channels.push(channel);
        }
    }
    Ok(channels)
}

/// Makes `user` an enabled administrator on each LAN channel: the user of that name, else the first free slot. Asking
/// again with the same words changes nothing but the password, which is written and read back each time.
pub fn ensure_user(bmc: &mut impl Exchange, user: &BmcUser) -> Result<()> {
    check_words(user)?;
    let channels = lan_channels(bmc)?;
    let first = *channels.first().ok_or_else(|| {
        Error::refused("bmc.no-lan", format!("{WHOSE} has no LAN channel"))
            .hint("give this machine's BMC credentials by hand, or power it by other means")
    })?;
    let (id, named) = user_slot(bmc, first, &user.name)?;
    if !named {
        bmc.ask(&SetUserName { user: id, name: &user.name })?.map_err(refused)?;
    }
    let mut password = |operation| bmc.ask(&SetUserPassword { user: id, operation });
    password(Password::Set(&user.password))?.map_err(refused)?;
    password(Password::Enable)?.map_err(refused)?;
    // A BMC that does not know the test has its own code for that; only a clear "no" is one.
    if let Err(Fault::Refused { completion: Completion(SetUserPassword::MISMATCH), why, .. }) =
        password(Password::Test(&user.password))?
    {
        return Err(not_applied(format!("{WHOSE} did not keep the password of {}: {why}", user.name)));
    }
    for &channel in &channels {
        let set = SetUserAccess { channel, user: id, privilege: Privilege::Administrator };
        bmc.ask(&set)?.map_err(refused)?;
        let access = bmc.ask(&GetUserAccess { channel, user: id })?.map_err(refused)?;
        if access.privilege != Privilege::Administrator as u8 || !access.may_message {
            let found = format!("{WHOSE} did not make {} an administrator on channel {channel}", user.name);
            return Err(not_applied(found));
        }
    }
    if bmc.ask(&GetUserName(id))?.map_err(refused)? != user.name.as_bytes() {
        return Err(not_applied(format!("{WHOSE} did not keep the name of user {id}")));
    }
    Ok(())
}

fn not_applied(message: String) -> Error {
    Error::refused("bmc.not-applied", message).hint("make the user in the BMC's own web page and enter it by hand")
}

fn check_words(user: &BmcUser) -> Result<()> {
    if user.name.is_empty() || user.name.len() > NAME_MAX {
        return Err(Error::input("bmc.user", format!("the name of a BMC user has 1 to {NAME_MAX} bytes")));
    }
    if user.password.is_empty() || user.password.len() > PASSWORD_SET_MAX {
        return Err(Error::input("bmc.user", format!("the password of a BMC user has 1 to {PASSWORD_SET_MAX} bytes")));
    }
    Ok(())
}

/// The slot with this name and `true`, else the first slot without a name. Slot 1 has no name by definition.
fn user_slot(bmc: &mut impl Exchange, channel: u8, name: &str) -> Result<(u8, bool)> {
    let slots = bmc.ask(&GetUserAccess { channel, user: 1 })?.map_err(refused)?.slots;
    let mut free = None;
    for id in 2..=slots {
        match bmc.ask(&GetUserName(id))? {
            Ok(found) if found == name.as_bytes() => return Ok((id, true)),
            Ok(found) if found.is_empty() => free = free.or(Some(id)),
            // Some BMCs answer CCh for a slot that was never named.
            Err(fault) if fault.completion() == Some(Completion(0xcc)) => free = free.or(Some(id)),
            Ok(_) | Err(_) => {}
        }
    }
    free.map(|id| (id, false)).ok_or_else(|| {
        Error::conflict("bmc.users-full", format!("all {slots} user slots of {WHOSE} are taken"))
            .hint(format!("delete a user, or name one {name}"))
    })
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
