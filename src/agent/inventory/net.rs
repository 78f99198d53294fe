//! Network devices from `/sys/class/net`: physical ones only, with the address that is burnt in, since the one in use may
//! be that of a bond or set by hand.
//!
//! Driver information, the permanent address, supported speeds and queues come by ioctl (`linux/ethtool.h`), since sysfs has
//! none of them.

use std::ffi::c_void;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::ioctl::{Opcode, Updater, ioctl};
use rustix::net::{AddressFamily, SocketType, socket};

use super::{names, pci, value};
use crate::agent::roots::Roots;
use crate::error::Result;
use crate::machine::{MacAddr, Nic};

const SIOCETHTOOL: Opcode = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GPERMADDR: u32 = 0x20;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_GLINKSETTINGS: u32 = 0x4c;
const SIOCGIFFLAGS: Opcode = 0x8913;
const SIOCSIFFLAGS: Opcode = 0x8914;
/// `IFF_UP` of linux/if.h.
const UP: i16 = 1;

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
    let function = pci::function_of(&device);
    let (queues, max_queues) =
        asker.and_then(|s| queues(s, name)).map_or((None, None), |(n, max)| (Some(n), Some(max)));
    Some(Nic {
        name: name.to_owned(),
        mac,
        driver: driver.and_then(|d| Some(d.file_name()?.to_string_lossy().into_owned())),
        numa: function.as_ref().and_then(|(folder, _)| pci::numa(folder)),
        pci: function.map(|(_, address)| address),
        firmware: asker.and_then(|s| firmware(s, name)),
        link,
        // -1 and 4294967295 are "unknown".
        speed_mbps: value(&dir.join("speed"))
            .and_then(|s| s.parse::<i64>().ok())
            .filter(|s| link && (1..=10_000_000).contains(s))
            .and_then(|s| s.try_into().ok()),
        boot: boot == Some(mac),
        max_mbps: asker.and_then(|s| highest_speed(s, name)),
        queues: queues.or_else(|| receive_queues(dir)),
        max_queues,
        neighbour: None,
    })
}

/// Without `ETHTOOL_GCHANNELS` the kernel still has a folder for each queue.
fn receive_queues(dir: &Path) -> Option<u16> {
    let count = names(&dir.join("queues")).ok()?.iter().filter(|q| q.starts_with("rx-")).count();
    u16::try_from(count).ok().filter(|count| *count > 0)
}

/// Brings up every card: without that it has no link, and hears no switch.
pub fn bring_up(nics: &[Nic]) {
    let Ok(socket) = socket(AddressFamily::INET, SocketType::DGRAM, None) else { return };
    for nic in nics {
        let Some(name) = request_name(&nic.name) else { continue };
        let mut request = FlagsRequest { name, flags: 0, rest: [0; 22] };
        // SAFETY: both take an ifreq, whose flags are a short behind the name.
        unsafe {
            if ioctl(&socket, Updater::<SIOCGIFFLAGS, FlagsRequest>::new(&mut request)).is_ok()
                && request.flags & UP == 0
            {
                request.flags |= UP;
                // A card that does not come up has no link; the inventory shows that.
                let _ = ioctl(&socket, Updater::<SIOCSIFFLAGS, FlagsRequest>::new(&mut request));
            }
        }
    }
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

/// `struct ifreq` with flags.
#[repr(C)]
struct FlagsRequest {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

fn request_name(name: &str) -> Option<[u8; 16]> {
    let mut room = [0; 16];
    // The last byte ends the name.
    room[..15].get_mut(..name.len())?.copy_from_slice(name.as_bytes());
    Some(room)
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

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max_receive: u32,
    max_send: u32,
    max_other: u32,
    max_combined: u32,
    receive: u32,
    send: u32,
    other: u32,
    combined: u32,
}

/// As many words as the kernel may have for the set of link modes; it had 4 in Linux 6.12.
const MODE_WORDS: usize = 32;

/// `struct ethtool_link_settings` with room for its three sets of link modes.
#[repr(C)]
struct LinkSettings {
    command: u32,
    speed: u32,
    bytes: [u8; 7],
    /// Words in each set; the kernel answers a wrong number with the right one, negative.
    words: i8,
    more: [u8; 4],
    reserved: [u32; 7],
    modes: [u32; 3 * MODE_WORDS],
}

fn ask<T>(socket: &OwnedFd, name: &str, answer: &mut T) -> bool {
    let Some(name) = request_name(name) else { return false };
    let mut request = IfRequest { name, data: (answer as *mut T).cast(), rest: [0; 16] };
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

/// Combined or receive queues: in use, possible.
fn queues(socket: &OwnedFd, name: &str) -> Option<(u16, u16)> {
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
    if !ask(socket, name, &mut channels) {
        return None;
    }
    let sum = |a: u32, b: u32| u16::try_from(a.saturating_add(b)).ok();
    let used = sum(channels.combined, channels.receive)?;
    Some((used, sum(channels.max_combined, channels.max_receive)?.max(used)))
}

/// In Mb/s, of all modes that card and transceiver support.
fn highest_speed(socket: &OwnedFd, name: &str) -> Option<u32> {
    let mut settings = LinkSettings {
        command: ETHTOOL_GLINKSETTINGS,
        speed: 0,
        bytes: [0; 7],
        words: 0,
        more: [0; 4],
        reserved: [0; 7],
        modes: [0; 3 * MODE_WORDS],
    };
    if !ask(socket, name, &mut settings) || settings.words >= 0 {
        return None;
    }
    let words = settings.words.unsigned_abs();
    if usize::from(words) > MODE_WORDS {
        return None;
    }
    settings.words = words as i8;
    settings.command = ETHTOOL_GLINKSETTINGS;
    let answered = ask(socket, name, &mut settings);
    answered.then(|| fastest(settings.modes.get(..usize::from(words))?)).flatten()
}

/// Bits of `enum ethtool_link_mode_bit_indices`, as ranges from first to last, and their speed.
const MODE_SPEEDS: &[(u32, u32, u32)] = &[
    (0, 1, 10),
    (2, 3, 100),
    (4, 5, 1_000),
    (12, 12, 10_000),
    (15, 15, 2_500),
    (17, 17, 1_000),
    (18, 20, 10_000),
    (21, 22, 20_000),
    (23, 26, 40_000),
    (27, 30, 56_000),
    (31, 33, 25_000),
    (34, 35, 50_000),
    (36, 39, 100_000),
    (40, 40, 50_000),
    (41, 41, 1_000),
    (42, 46, 10_000),
    (47, 47, 2_500),
    (48, 48, 5_000),
    (52, 56, 50_000),
    (57, 61, 100_000),
    (62, 66, 200_000),
    (67, 67, 100),
    (68, 68, 1_000),
    (69, 73, 400_000),
    (75, 79, 100_000),
    (80, 84, 200_000),
    (85, 89, 400_000),
    (90, 91, 100),
    (92, 92, 10),
    (93, 98, 800_000),
    (99, 101, 10),
];

fn fastest(modes: &[u32]) -> Option<u32> {
    let has = |bit: u32| modes.get(bit as usize / 32).is_some_and(|word| word >> (bit % 32) & 1 == 1);
    let supported = MODE_SPEEDS.iter().filter(|(first, last, _)| (*first..=*last).any(has));
    supported.map(|(_, _, speed)| *speed).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_kernel_structures_have_their_sizes() {
        assert_eq!(size_of::<IfRequest>(), 40);
        assert_eq!(size_of::<FlagsRequest>(), 40);
        assert_eq!(size_of::<DriverInfo>(), 196);
        assert_eq!(size_of::<Channels>(), 36);
        assert_eq!(size_of::<LinkSettings>(), 48 + 3 * 4 * MODE_WORDS);
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
    fn the_fastest_mode_counts() {
        // 1000baseT/Full, Autoneg, TP, Pause: an onboard card.
        assert_eq!(fastest(&[1 << 5 | 1 << 6 | 1 << 7 | 1 << 13, 0, 0]), Some(1_000));
        // 10000baseT/Full, 25000baseSR (33) and 100000baseSR (76).
        assert_eq!(fastest(&[1 << 12, 1 << 1, 1 << 12, 0]), Some(100_000));
        assert_eq!(fastest(&[1 << 6 | 1 << 7]), None);
        assert_eq!(fastest(&[]), None);
        assert_eq!(boot_mac("BOOTIF=01-52-54"), None);
    }
}
