//! Network devices from `/sys/class/net`: physical ones only, with the address that is burnt in, since the one in use may
//! be that of a bond or set by hand.
//!
//! Driver information and the permanent address come by ioctl (`linux/ethtool.h`: `ETHTOOL_GDRVINFO`,
//! `ETHTOOL_GPERMADDR`), since sysfs has neither.

use std::ffi::c_void;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::ioctl::{Opcode, Updater, ioctl};
use rustix::net::{AddressFamily, SocketType, socket};

use super::{names, value};
use crate::agent::roots::Roots;
use crate::error::Result;
use crate::machine::{MacAddr, Nic};

const SIOCETHTOOL: Opcode = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GPERMADDR: u32 = 0x20;

pub fn read(roots: &Roots) -> Result<Vec<Nic>> {
    let class = roots.sys.join("class/net");
    if !class.exists() {
        return Ok(Vec::new());
    }
    let boot = boot_mac(&value(&roots.proc.join("cmdline")).unwrap_or_default());
    // A fixture's device name may exist here with another meaning.
    let asker = if roots.live() { socket(AddressFamily::INET, SocketType::DGRAM, None).ok() } else { None };
    Ok(names(&class)?.iter().filter_map(|name| nic(&class.join(name), name, boot, asker.as_ref())).collect())
}

/// `None` for devices without hardware under them, and for what is no Ethernet.
fn nic(dir: &Path, name: &str, boot: Option<MacAddr>, asker: Option<&OwnedFd>) -> Option<Nic> {
    let device = std::fs::canonicalize(dir.join("device")).ok()?;
    // ARPHRD_ETHER of linux/if_arp.h; InfiniBand is 32.
    if value(&dir.join("type")).is_some_and(|t| t != "1") {
        return None;
    }
    let permanent = asker.and_then(|s| permanent_mac(s, name));
    let mac = permanent.or_else(|| value(&dir.join("address"))?.parse().ok())?;
    let driver = std::fs::read_link(dir.join("device/driver")).ok();
    let link = value(&dir.join("carrier")).is_some_and(|c| c == "1");
    Some(Nic {
        name: name.to_owned(),
        mac,
        driver: driver.and_then(|d| Some(d.file_name()?.to_string_lossy().into_owned())),
        pci: device.components().rev().find_map(|c| pci_address(&c.as_os_str().to_string_lossy())),
        firmware: asker.and_then(|s| firmware(s, name)),
        link,
        // -1 and 4294967295 are "unknown".
        speed_mbps: value(&dir.join("speed"))
            .and_then(|s| s.parse::<i64>().ok())
            .filter(|s| link && (1..=10_000_000).contains(s))
            .and_then(|s| s.try_into().ok()),
        boot: boot == Some(mac),
        max_mbps: None,
        queues: None,
        max_queues: None,
        numa: None,
        neighbour: None,
    })
}

/// `0000:3b:00.1`: domain, bus, device, function.
fn pci_address(text: &str) -> Option<String> {
    let (domain, rest) = text.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let hex = |s: &str, len: usize| s.len() == len && s.bytes().all(|b| b.is_ascii_hexdigit());
    (hex(domain, 4) && hex(bus, 2) && hex(device, 2) && hex(function, 1)).then(|| text.to_owned())
}

/// `BOOTIF=01-52-54-00-12-34-56` on the kernel command line: hardware type and address, as PXELINUX and iPXE scripts
/// write it.
fn boot_mac(command_line: &str) -> Option<MacAddr> {
    let value = command_line.split_whitespace().find_map(|w| w.strip_prefix("BOOTIF="))?;
    value.strip_prefix("01-").unwrap_or(value).parse().ok()
}

/// `struct ifreq`: the name, and of the union the pointer, padded to the kernel's 40 bytes.
#[repr(C)]
struct IfRequest {
    name: [u8; 16],
    data: *mut c_void,
    rest: [u8; 16],
}

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    rom: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}

/// `struct ethtool_perm_addr` with room for an InfiniBand address.
#[repr(C)]
struct PermanentAddress {
    command: u32,
    size: u32,
    data: [u8; 32],
}

fn ask<T>(socket: &OwnedFd, name: &str, answer: &mut T) -> bool {
    let mut request = IfRequest { name: [0; 16], data: (answer as *mut T).cast(), rest: [0; 16] };
    match request.name.get_mut(..name.len()) {
        Some(room) if name.len() < 16 => room.copy_from_slice(name.as_bytes()),
        _ => return false,
    }
    // SAFETY: SIOCETHTOOL takes an ifreq whose pointer leads to the structure of the command in its first field; `T` is
    // that structure, of the kernel's size, and lives until the call has returned.
    unsafe { ioctl(socket, Updater::<SIOCETHTOOL, IfRequest>::new(&mut request)) }.is_ok()
}

fn permanent_mac(socket: &OwnedFd, name: &str) -> Option<MacAddr> {
    let mut address = PermanentAddress { command: ETHTOOL_GPERMADDR, size: 32, data: [0; 32] };
    let answered = ask(socket, name, &mut address) && address.size == 6;
    let mac: [u8; 6] = address.data.get(..6)?.try_into().ok()?;
    (answered && mac != [0; 6] && mac != [0xff; 6]).then_some(MacAddr(mac))
}

fn firmware(socket: &OwnedFd, name: &str) -> Option<String> {
    let mut info = DriverInfo {
        command: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        version: [0; 32],
        firmware: [0; 32],
        bus: [0; 32],
        rom: [0; 32],
        reserved: [0; 12],
        counts: [0; 5],
    };
    let answered = ask(socket, name, &mut info);
    let text = String::from_utf8_lossy(info.firmware.split(|b| *b == 0).next()?).trim().to_owned();
    (answered && !text.is_empty() && text != "N/A").then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_kernel_structures_have_their_sizes() {
        assert_eq!(size_of::<IfRequest>(), 40);
        assert_eq!(size_of::<DriverInfo>(), 196);
    }

    #[test]
    fn physical_devices_with_their_place_and_link() {
        let root = tempfile::tempdir().unwrap();
        let sys = root.path().join("sys");
        let device = sys.join("devices/pci0000:00/0000:00:03.0/virtio0");
        fs::create_dir_all(&device).unwrap();
        fs::create_dir_all(sys.join("bus/virtio/drivers/virtio_net")).unwrap();
        symlink(sys.join("bus/virtio/drivers/virtio_net"), device.join("driver")).unwrap();
        for (name, mac) in [("eth0", "52:54:00:00:00:01"), ("lo", "00:00:00:00:00:00"), ("bond0", "52:54:00:00:00:09")]
        {
            let dir = sys.join("class/net").join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("address"), format!("{mac}\n")).unwrap();
            fs::write(dir.join("type"), "1\n").unwrap();
            fs::write(dir.join("carrier"), "1\n").unwrap();
            fs::write(dir.join("speed"), "-1\n").unwrap();
        }
        symlink(&device, sys.join("class/net/eth0/device")).unwrap();
        let proc = root.path().join("proc");
        fs::create_dir_all(&proc).unwrap();
        fs::write(proc.join("cmdline"), "quiet BOOTIF=01-52-54-00-00-00-01 x=y\n").unwrap();

        let nics = read(&Roots { sys, proc, ..Roots::default() }).unwrap();
        let [nic] = nics.as_slice() else { panic!("{nics:?}") };
        assert_eq!((nic.name.as_str(), nic.mac.to_string().as_str()), ("eth0", "52:54:00:00:00:01"));
        assert_eq!((nic.driver.as_deref(), nic.pci.as_deref()), (Some("virtio_net"), Some("0000:00:03.0")));
        assert_eq!((nic.link, nic.speed_mbps, nic.boot), (true, None, true));
    }

    #[test]
    fn pci_addresses_and_nothing_else() {
        assert_eq!(pci_address("0000:3b:00.1").as_deref(), Some("0000:3b:00.1"));
        for text in ["virtio0", "pci0000:00", "0000:3b:00", "0000:3g:00.1"] {
            assert_eq!(pci_address(text), None, "{text}");
        }
        assert_eq!(boot_mac("BOOTIF=01-52-54"), None);
    }
}
