//! Which switch is asking, from what its DHCP client says of itself.
//!
//! | system | says | source |
//! |---|---|---|
//! | ONIE | class (60) `onie_vendor:ARCH-VENDOR_MACHINE-rREV`, user class (77) `onie_dhcp_user_class`, machine and architecture under enterprise 42623 of option 125; the serial number only later, in an HTTP header | ONIE design specification, "Image Discovery and Execution"; `rootconf/default/lib/onie/functions`, `udhcpc_args` |
//! | Arista EOS | class `Arista;MODEL;HARDWARE;SERIAL` | `dhcpv4/ztpv4` of insomniacslk/dhcp, with classes of real switches |
//! | SONiC | user class `SONiC-ZTP`, client id (61) `SONiC##PRODUCT##SERIAL` | sonic-buildimage `files/dhcp/dhclient.conf.j2` |
//! | Cumulus | class `cumulus-linux ARCH`; neither model nor serial number | Cumulus Linux user guide, "Zero Touch Provisioning" |
//! | Cisco NX-OS | client id: a zero byte and the serial number; class with the model (`N9K-…`) where sent | Nexus 9000 fundamentals guide, "Using PowerOn Auto Provisioning" |
//! | Cisco IOS XE | class `ciscopnp`, or the product id after a byte with its length; product id under enterprise 9 of option 124, serial number as client id since 16.8 | IOS XE programmability guide, "Zero-Touch Provisioning" |
//!
//! A firmware that boots from the network (`PXEClient`, `HTTPClient`, iPXE) is never a switch in this sense.

use std::fmt;

use super::config::Vendor;
use crate::boot::dhcp::request::Request;
use crate::machine::Serial;

/// A switch that wants its installer or its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asking {
    /// `None`: ONIE, which does not know yet what it will run.
    pub vendor: Option<Vendor>,
    pub model: Option<String>,
    pub serial: Option<Serial>,
    pub stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// No system on it: asks for an installer.
    Installer,
    /// Runs its system, without a configuration.
    Configuration,
}

/// "an Arista EOS switch DCS-7050S-64 with serial number JPE12221671".
impl fmt::Display for Asking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.vendor {
            Some(Vendor::Arista) => write!(f, "an {} switch", Vendor::Arista)?,
            Some(vendor) => write!(f, "a {vendor} switch")?,
            None => f.write_str("a switch in ONIE")?,
        }
        if let Some(model) = &self.model {
            write!(f, " {model}")?;
        }
        match &self.serial {
            Some(serial) => write!(f, " with serial number {serial}"),
            None => Ok(()),
        }
    }
}

/// Open Compute Project and Cisco in the IANA registry of enterprise numbers.
pub(super) const OCP: u32 = 42623;
const CISCO: u32 = 9;
/// Longer names are cut: they end up in lists and logs.
const MAX_MODEL: usize = 64;

pub fn recognise(request: &Request) -> Option<Asking> {
    if request.stage != crate::boot::Stage::System {
        return None;
    }
    let class = request.classes.vendor.as_slice();
    let id = request.client.id.as_slice();
    onie(request, class)
        .or_else(|| arista(class))
        .or_else(|| sonic(request, id))
        .or_else(|| cumulus(class))
        .or_else(|| ios_xe(request, class, id))
        .or_else(|| nx_os(class, id))
}

fn onie(request: &Request, class: &[u8]) -> Option<Asking> {
    let named = class.strip_prefix(b"onie_vendor:");
    if named.is_none() && !has_class(&request.classes.user, b"onie_dhcp_user_class") {
        return None;
    }
    // Code 3 of ONIE's options is the machine.
    let machine = || sub_option(enterprise(&request.classes.information, OCP)?, 3);
    let model = named.or_else(machine).and_then(text);
    Some(Asking { vendor: None, model, serial: None, stage: Stage::Installer })
}

fn arista(class: &[u8]) -> Option<Asking> {
    let mut parts = class.strip_prefix(b"Arista;")?.split(|b| *b == b';');
    let model = parts.next().and_then(text);
    let serial = parts.nth(1).and_then(serial);
    Some(configuration(Vendor::Arista, model, serial))
}

fn sonic(request: &Request, id: &[u8]) -> Option<Asking> {
    let named = find(id, b"SONiC##").filter(|at| *at <= 1).and_then(|at| id.get(at + 7..));
    if named.is_none()
        && !has_class(&request.classes.user, b"SONiC-ZTP")
        && !request.classes.vendor.starts_with(b"SONiC")
    {
        return None;
    }
    let split = named.and_then(|named| Some((named, find(named, b"##")?)));
    let model = split.and_then(|(named, at)| text(named.get(..at)?));
    let serial = split.and_then(|(named, at)| serial(named.get(at + 2..)?));
    Some(configuration(Vendor::Sonic, model, serial))
}

fn cumulus(class: &[u8]) -> Option<Asking> {
    let arch = class.strip_prefix(b"cumulus-linux")?;
    Some(configuration(Vendor::Cumulus, text(arch), None))
}

fn ios_xe(request: &Request, class: &[u8], id: &[u8]) -> Option<Asking> {
    let product = counted(class).filter(|product| is_product(product));
    if product.is_none() && class != b"ciscopnp" {
        return None;
    }
    let identifying = || enterprise(&request.classes.identifying, CISCO);
    let model = product.or_else(identifying).and_then(|said| text(counted(said).unwrap_or(said)));
    Some(configuration(Vendor::IosXe, model, cisco_serial(id)))
}

fn nx_os(class: &[u8], id: &[u8]) -> Option<Asking> {
    let serial = id.strip_prefix(&[0]).and_then(cisco_serial);
    let named = text(class).filter(|class| is_nexus(class));
    if serial.is_none() && named.is_none() {
        return None;
    }
    let model = named.map(|class| class.trim_start_matches("Cisco").trim_start_matches([' ', '-']).to_owned());
    Some(configuration(Vendor::NxOs, model, serial))
}

fn configuration(vendor: Vendor, model: Option<String>, serial: Option<Serial>) -> Asking {
    Asking { vendor: Some(vendor), model, serial, stage: Stage::Configuration }
}

/// `Cisco N9K-C9372PX`, `N3K-C3172PQ`: an N, a digit, a K.
fn is_nexus(class: &str) -> bool {
    let name = class.trim_start_matches("Cisco").trim_start_matches([' ', '-']);
    matches!(name.as_bytes(), [b'N', digit, b'K', b'-', ..] if digit.is_ascii_digit()) || name.starts_with("Nexus")
}

/// `C9300-24T`, `C9500-48Y4C`, `IE-3400-8T2S`.
fn is_product(name: &[u8]) -> bool {
    let fine = |b: &u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b"-+/".contains(b);
    name.len() >= 4 && name.iter().all(fine) && name.iter().any(u8::is_ascii_digit) && name.contains(&b'-')
}

/// Three letters of the factory, year and week, four characters: `FDO21120U8N`. A client id of Cisco's other clients,
/// `cisco-0011.2233.4455-Vl1`, is none.
fn cisco_serial(id: &[u8]) -> Option<Serial> {
    let id = id.strip_prefix(&[0]).unwrap_or(id);
    let (factory, rest) = id.split_at_checked(3)?;
    let (week, running) = rest.split_at_checked(4)?;
    let shape = factory.iter().all(u8::is_ascii_uppercase)
        && week.iter().all(u8::is_ascii_digit)
        && running.len() == 4
        && running.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
    if shape { serial(id) } else { None }
}

fn serial(bytes: &[u8]) -> Option<Serial> {
    Serial::parse(&text(bytes)?)
}

/// Printable ASCII without blanks around it.
fn text(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?.trim_matches([' ', '\0']);
    let printable = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    printable.then(|| text.chars().take(MAX_MODEL).collect())
}

/// A user class, bare or as RFC 3004 wants it: strings, each after its length.
fn has_class(data: &[u8], wanted: &[u8]) -> bool {
    let mut rest = data;
    while let Some((&length, tail)) = rest.split_first() {
        let Some((class, next)) = tail.split_at_checked(length.into()) else { break };
        if class == wanted {
            return true;
        }
        rest = next;
    }
    data == wanted
}

/// The rest of `data` where its first byte is the rest's length.
fn counted(data: &[u8]) -> Option<&[u8]> {
    data.split_first().filter(|(length, rest)| usize::from(**length) == rest.len()).map(|(_, rest)| rest)
}

/// What an enterprise says in option 124 or 125: number (4 bytes), length (1), data (RFC 3925 sections 3 and 4).
fn enterprise(data: &[u8], number: u32) -> Option<&[u8]> {
    let mut rest = data;
    loop {
        let (head, tail) = rest.split_first_chunk::<4>()?;
        let (&length, tail) = tail.split_first()?;
        let (said, next) = tail.split_at_checked(length.into())?;
        if u32::from_be_bytes(*head) == number {
            return Some(said);
        }
        rest = next;
    }
}

/// Code (1 byte), length (1), data.
fn sub_option(data: &[u8], code: u8) -> Option<&[u8]> {
    let mut rest = data;
    loop {
        let ([found, length], tail) = rest.split_first_chunk::<2>()?;
        let (value, next) = tail.split_at_checked(usize::from(*length))?;
        if *found == code {
            return Some(value);
        }
        rest = next;
    }
}

fn find(data: &[u8], wanted: &[u8]) -> Option<usize> {
    data.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A DISCOVER with these options.
    fn request(options: &[(u8, &[u8])]) -> Request {
        let mut bytes = vec![0; 240];
        bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
        bytes[28..34].copy_from_slice(&[0x00, 0x1c, 0x73, 1, 2, 3]);
        bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
        bytes.extend([53, 1, 1]);
        for (code, data) in options {
            bytes.extend([*code, data.len() as u8]);
            bytes.extend(*data);
        }
        bytes.push(255);
        Request::parse(&bytes).unwrap()
    }

    /// Vendor, model, serial number.
    fn asks(options: &[(u8, &[u8])]) -> Option<(Option<Vendor>, String, String)> {
        let asking = recognise(&request(options))?;
        assert_eq!(asking.stage == Stage::Installer, asking.vendor.is_none());
        let serial = asking.serial.map_or(String::new(), |s| s.to_string());
        Some((asking.vendor, asking.model.unwrap_or_default(), serial))
    }

    fn found(vendor: Vendor, model: &str, serial: &str) -> Option<(Option<Vendor>, String, String)> {
        Some((Some(vendor), model.into(), serial.into()))
    }

    #[test]
    fn onie_by_class_and_by_its_vendor_options() {
        let class = b"onie_vendor:x86_64-accton_as7326_56x-r0";
        let onie = |model: &str| Some((None, model.to_owned(), String::new()));
        assert_eq!(asks(&[(60, class)]), onie("x86_64-accton_as7326_56x-r0"));
        assert_eq!(asks(&[(60, b"onie_vendor:x86_64-ag7648-r0")]), onie("x86_64-ag7648-r0"));
        // As `udhcpc_args` of ONIE builds it: machine (3), architecture (4), revision (5).
        let options = [&[0, 0, 0xa6, 0x7f, 22, 3, 9][..], b"dell_s600", &[4, 6], b"x86_64", &[5, 1], b"0"].concat();
        assert_eq!(asks(&[(77, b"onie_dhcp_user_class"), (125, &options)]), onie("dell_s600"));
        assert_eq!(asks(&[(77, b"onie_dhcp_user_class"), (125, &[0, 0, 0xa6])]), onie(""));
    }

    #[test]
    fn arista() {
        let eos = |class: &[u8]| asks(&[(60, class)]);
        assert_eq!(eos(b"Arista;DCS-7050S-64;01.23;JPE12221671"), found(Vendor::Arista, "DCS-7050S-64", "JPE12221671"));
        assert_eq!(eos(b"Arista;DCS-7280PR3-24;12.05;JPE21330382").unwrap().2, "JPE21330382");
        assert_eq!(eos(b"Arista;vEOS-lab;;"), found(Vendor::Arista, "vEOS-lab", ""));
        assert_eq!(eos(b"Arista"), None);
        let said = recognise(&request(&[(60, b"Arista;DCS-7050S-64;01.23;JPE12221671")])).unwrap().to_string();
        assert_eq!(said, "an Arista EOS switch DCS-7050S-64 with serial number JPE12221671");
    }

    #[test]
    fn sonic_by_user_class_and_client_id() {
        let id = b"SONiC##MSN2700##MT1607X11210";
        let sonic = found(Vendor::Sonic, "MSN2700", "MT1607X11210");
        assert_eq!(asks(&[(77, b"SONiC-ZTP"), (61, id), (60, b"Mellanox:MSN2700")]), sonic);
        assert_eq!(asks(&[(61, &[&[0][..], id].concat())]), sonic);
        assert_eq!(asks(&[(77, b"\x09SONiC-ZTP")]), found(Vendor::Sonic, "", ""));
    }

    #[test]
    fn cumulus_says_its_architecture_only() {
        assert_eq!(asks(&[(60, b"cumulus-linux x86_64")]), found(Vendor::Cumulus, "x86_64", ""));
    }

    #[test]
    fn cisco() {
        let nexus = found(Vendor::NxOs, "N9K-C9372PX", "FDO21120U8N");
        assert_eq!(asks(&[(60, b"Cisco N9K-C9372PX"), (61, b"\0FDO21120U8N")]), nexus);
        assert_eq!(asks(&[(61, b"\0FDO21120U8N")]), found(Vendor::NxOs, "", "FDO21120U8N"));
        let ios = found(Vendor::IosXe, "C9300-24T", "FCW2129L0PQ");
        assert_eq!(asks(&[(60, b"\x09C9300-24T"), (61, b"FCW2129L0PQ")]), ios);
        let product = [&[0, 0, 0, 9, 10][..], &[9], b"C9300-24T"].concat();
        assert_eq!(asks(&[(60, b"ciscopnp"), (61, b"\0FCW2129L0PQ"), (124, &product)]), ios);
        let old = asks(&[(60, b"ciscopnp"), (61, b"\0cisco-0011.2233.4455-Vl1")]);
        assert_eq!(old, found(Vendor::IosXe, "", ""), "its MAC address is not a serial number");
    }

    #[test]
    fn servers_and_telephones_are_none() {
        for options in [
            &[(60, &b"udhcp 1.35.0"[..]), (61, &[1, 0, 0x1c, 0x73, 1, 2, 3][..])][..],
            &[(60, b"PXEClient:Arch:00007:UNDI:003016"), (93, &[0, 7])],
            &[(60, b"PXEClient:Arch:00007:UNDI:003016"), (61, b"\0FDO21120U8N")],
            &[(60, b"Cisco AP c1240")],
            &[(60, b"MSFT 5.0")],
            &[(60, b"\x04abcd")],
            &[(61, &[255, 0x7d, 0x9c, 0x40, 0x66, 0, 2, 0, 0, 0xab, 0x11, 1, 2, 3, 4])],
            &[],
        ] {
            assert_eq!(asks(options), None, "{options:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_said(
            codes in prop::collection::vec((prop::sample::select(vec![60u8, 61, 77, 124, 125]), prop::collection::vec(any::<u8>(), 0..40)), 0..6),
        ) {
            let options: Vec<_> = codes.iter().map(|(code, data)| (*code, data.as_slice())).collect();
            let model = recognise(&request(&options)).and_then(|asking| asking.model).unwrap_or_default();
            prop_assert!(model.bytes().all(|b| b.is_ascii_graphic() || b == b' '));
        }
    }
}
