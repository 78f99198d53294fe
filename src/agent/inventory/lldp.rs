//! Which switch port is at the other end of each cable, by LLDP (IEEE 802.1AB-2016).
//!
//! In RAM we listen ourselves: the protocol is one frame that is sent each half minute, and lldpd with its libraries (Perl
//! for SNMP, ICU for XML) would add 46 MB to the RAM system, 14 compressed. We also send such a frame. The switch then knows
//! us, and one that transmits fast for a new neighbour (section 9.2.5) is heard within a second instead of in its own time.
//!
//! Where an lldpd runs already, it is asked by `lldpcli`.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::netdevice::name_to_index;
use serde_json::Value;
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

use crate::machine::{MacAddr, Neighbour, Nic};

const ETHERTYPE: u16 = 0x88cc;
/// "Nearest bridge", table 7-1: no bridge passes it on.
const GROUP: [u8; 6] = [0x01, 0x80, 0xc2, 0x00, 0x00, 0x0e];
/// Frames are sent at the start and then this often, since a card that was just brought up has no link yet.
const ANNOUNCE: Duration = Duration::from_secs(2);
/// How often the listener looks whether it shall end.
const LOOK: Duration = Duration::from_millis(100);
/// Capabilities (section 8.5.8.1): bit 2 is a bridge, bit 4 a router.
const BRIDGE: u8 = 1 << 2;
const ROUTER: u8 = 1 << 4;
/// The name by which agents announce themselves.
const AGENT: &str = "rackline-agent";
/// Names are shown to people: longer ones are cut.
const NAME_MAX: usize = 64;

/// What was heard on one card.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Heard {
    neighbour: Neighbour,
    /// It says that it is a bridge or a router, and not another host.
    forwards: bool,
}

/// Listens beside everything else, from its start until it is asked.
pub struct Listener {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<u32, Heard>>,
    cards: BTreeMap<u32, String>,
}

impl Listener {
    /// On the cards of the kernel that runs here; they must be up.
    pub fn start(nics: &[Nic]) -> io::Result<Self> {
        let socket = open()?;
        let cards: BTreeMap<u32, &Nic> =
            nics.iter().filter_map(|nic| Some((name_to_index(&socket, &nic.name).ok()?, nic))).collect();
        socket.set_read_timeout(Some(LOOK))?;
        cards.keys().for_each(|card| drop(join(&socket, *card)));
        socket.bind(&link_address(0))?;
        let stop = Arc::new(AtomicBool::new(false));
        let ours: BTreeMap<u32, MacAddr> = cards.iter().map(|(index, nic)| (*index, nic.mac)).collect();
        let names: BTreeMap<u32, String> = cards.iter().map(|(index, nic)| (*index, nic.name.clone())).collect();
        let (asked, spoken) = (Arc::clone(&stop), names.clone());
        let work = move || listen(&socket, &ours, &spoken, &asked);
        let thread = std::thread::Builder::new().name("lldp".into()).spawn(work)?;
        Ok(Self { stop, thread, cards: names })
    }

    /// What was heard until now, by name of the card.
    pub fn finish(self) -> BTreeMap<String, Neighbour> {
        self.stop.store(true, Ordering::Relaxed);
        let heard = self.thread.join().unwrap_or_default();
        heard.into_iter().filter_map(|(card, heard)| Some((self.cards.get(&card)?.clone(), heard.neighbour))).collect()
    }
}

/// A socket that sends on each card, and receives once it is bound.
fn open() -> io::Result<Socket> {
    Socket::new(Domain::PACKET, Type::RAW, None)
}

/// Sends as another one than this machine's agent: the rehearsals' switch.
pub(crate) fn speak(cards: &BTreeMap<String, Vec<u8>>) -> io::Result<()> {
    let socket = open()?;
    for (card, frame) in cards {
        let index = name_to_index(&socket, card)?;
        // A port without a link sends nothing.
        let _ = socket.send_to(frame, &link_address(index));
    }
    Ok(())
}

fn listen(
    socket: &Socket,
    cards: &BTreeMap<u32, MacAddr>,
    names: &BTreeMap<u32, String>,
    stop: &AtomicBool,
) -> BTreeMap<u32, Heard> {
    let mut heard: BTreeMap<u32, Heard> = BTreeMap::new();
    let mut buffer = [MaybeUninit::<u8>::uninit(); 1600];
    let mut announced: Option<Instant> = None;
    while !stop.load(Ordering::Relaxed) {
        if announced.is_none_or(|at| at.elapsed() >= ANNOUNCE) {
            announced = Some(Instant::now());
            for (card, mac) in cards {
                let name = names.get(card).map_or("", String::as_str);
                let frame = announcement(*mac, AGENT, name, None);
                // Without a link nothing is sent; it is tried again.
                let _ = socket.send_to(&frame, &link_address(*card));
            }
        }
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        // SAFETY: the kernel has written the first `length` bytes.
        let frame = buffer.get(..length).map(|b| unsafe { &*(std::ptr::from_ref(b) as *const [u8]) });
        let (Some(frame), Some(card)) = (frame, card_of(from)) else { continue };
        let ours = |source: &[u8]| cards.values().any(|mac| mac.0 == source);
        if !cards.contains_key(&card) || frame.get(6..12).is_none_or(ours) {
            continue;
        }
        // A switch that knows nothing of LLDP passes its frames on: another agent is no neighbour.
        if let Some(new) = frame.get(14..).and_then(parse).filter(|new| new.neighbour.switch != AGENT) {
            let keep = heard.get(&card).is_some_and(|old| old.forwards && !new.forwards);
            if !keep {
                heard.insert(card, new);
            }
        }
    }
    heard
}

/// Receives the group's frames on a card (`PACKET_ADD_MEMBERSHIP` of packet(7)).
fn join(socket: &Socket, card: u32) -> io::Result<()> {
    let mut address = [0; 8];
    address[..6].copy_from_slice(&GROUP);
    let request = libc::packet_mreq {
        mr_ifindex: card as i32,
        mr_type: libc::PACKET_MR_MULTICAST as u16,
        mr_alen: 6,
        mr_address: address,
    };
    // SAFETY: the option takes a packet_mreq of this size, which the kernel only reads.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            std::ptr::from_ref(&request).cast(),
            size_of::<libc::packet_mreq>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct sockaddr_ll` for LLDP on a card; 0 is every card.
fn link_address(card: u32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is plain data, smaller than sockaddr_storage, and zero is a valid value of each field.
    let link: &mut libc::sockaddr_ll = unsafe { storage.view_as() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_ifindex = card as i32;
    link.sll_protocol = ETHERTYPE.to_be();
    // SAFETY: the storage holds a sockaddr_ll, as the family says, of this length.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}

fn card_of(from: SockAddr) -> Option<u32> {
    if from.domain() != Domain::PACKET {
        return None;
    }
    let mut storage = from.as_storage();
    // SAFETY: the family is AF_PACKET, so the kernel filled in a sockaddr_ll.
    let link: &libc::sockaddr_ll = unsafe { storage.view_as() };
    u32::try_from(link.sll_ifindex).ok()
}

/// A frame with chassis and port (subtypes 4 and 5), a life of two minutes and a name; for a switch, which has several ports
/// of which each has a description, also that and what it is.
pub(crate) fn announcement(mac: MacAddr, name: &str, port: &str, description: Option<&str>) -> Vec<u8> {
    let mut frame = [&GROUP[..], &mac.0, &ETHERTYPE.to_be_bytes()].concat();
    let mut add = |kind: u16, subtype: &[u8], value: &[u8]| {
        let value = value.get(..NAME_MAX).unwrap_or(value);
        frame.extend((kind << 9 | (subtype.len() + value.len()) as u16).to_be_bytes());
        frame.extend_from_slice(subtype);
        frame.extend_from_slice(value);
    };
    add(1, &[4], &mac.0);
    add(2, &[5], port.as_bytes());
    add(3, &[], &120u16.to_be_bytes());
    add(5, &[], name.as_bytes());
    if let Some(description) = description {
        add(4, &[], description.as_bytes());
        add(7, &[], &[0, BRIDGE, 0, BRIDGE]);
    }
    add(0, &[], &[]);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// The data unit of a frame: type, length and value of each field (section 8.4).
fn parse(mut unit: &[u8]) -> Option<Heard> {
    let (mut chassis, mut port, mut name, mut description, mut vlan) = (None, None, None, None, None);
    let mut forwards = false;
    while let [high, low, rest @ ..] = unit {
        let length = usize::from(u16::from_be_bytes([*high, *low]) & 0x1ff);
        // A field that is longer than the frame: what came before it is not believed either.
        let (field, rest) = (rest.get(..length)?, rest.get(length..)?);
        match (high >> 1, field) {
            (0, _) => break,
            (1, [4, mac @ ..]) => chassis = mac_text(mac),
            (1, [5, address @ ..]) => chassis = address_text(address),
            (1, [_, id @ ..]) => chassis = text(id),
            (2, [3, mac @ ..]) => port = mac_text(mac),
            (2, [4, address @ ..]) => port = address_text(address),
            (2, [_, id @ ..]) => port = text(id),
            (4, words) => description = text(words),
            (5, words) => name = text(words),
            // What it can, and what of that is enabled.
            (7, [_, _, _, enabled]) => forwards = enabled & (BRIDGE | ROUTER) != 0,
            // IEEE 802.1, "Port VLAN ID"; 0 is "none".
            (127, [0x00, 0x80, 0xc2, 1, high, low]) => {
                vlan = Some(u16::from_be_bytes([*high, *low])).filter(|id| (1..4095).contains(id));
            }
            _ => {}
        }
        unit = rest;
    }
    let port = port?;
    let description = description.filter(|d| *d != port);
    Some(Heard { neighbour: Neighbour { switch: name.or(chassis)?, port, description, vlan }, forwards })
}

fn text(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let text: String = text.chars().filter(|c| !c.is_control()).take(NAME_MAX).collect();
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn mac_text(bytes: &[u8]) -> Option<String> {
    Some(MacAddr(bytes.try_into().ok()?).to_string())
}

/// Of the IANA's families 1 is IPv4 and 2 IPv6.
fn address_text(bytes: &[u8]) -> Option<String> {
    match bytes {
        [1, address @ ..] => Some(Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?).to_string()),
        [2, address @ ..] => Some(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).to_string()),
        _ => None,
    }
}

/// The answer of `lldpcli -f json show neighbors` (or `-f json0`), by name of the card. What is one thing there is an
/// object, what is several an array, with `json0` always an array; and names are keys, but not with `json0`.
pub fn from_lldpcli(answer: &str) -> Result<BTreeMap<String, Neighbour>, String> {
    let root: Value = serde_json::from_str(answer).map_err(|_| "what lldpcli printed is not JSON".to_owned())?;
    let lldp = root.get("lldp").ok_or("lldpcli's answer says nothing of LLDP")?;
    let interfaces = several(lldp).into_iter().filter_map(|l| l.get("interface")).flat_map(several);
    let mut found: BTreeMap<String, (bool, Neighbour)> = BTreeMap::new();
    for interface in interfaces {
        let named: Vec<(&str, &Value)> = match interface.get("name").and_then(Value::as_str) {
            Some(name) => vec![(name, interface)],
            None => interface.as_object().into_iter().flatten().map(|(k, v)| (k.as_str(), v)).collect(),
        };
        for (card, about) in named {
            let Some((forwards, neighbour)) = neighbour(about) else { continue };
            if forwards || !found.get(card).is_some_and(|(forwards, _)| *forwards) {
                found.insert(card.to_owned(), (forwards, neighbour));
            }
        }
    }
    Ok(found.into_iter().map(|(card, (_, neighbour))| (card, neighbour)).collect())
}

fn several(value: &Value) -> Vec<&Value> {
    value.as_array().map_or_else(|| vec![value], |list| list.iter().collect())
}

/// `"x"`, `{"value": "x"}` or `[{"value": "x"}]`.
fn word(value: &Value) -> Option<String> {
    let value = value.as_array().map_or(Some(value), |list| list.first())?;
    text(value.as_str().or_else(|| value.get("value")?.as_str())?.as_bytes())
}

fn neighbour(about: &Value) -> Option<(bool, Neighbour)> {
    let chassis = several(about.get("chassis")?).into_iter().next()?;
    // A chassis with a name is an object in an object under that name.
    let (key, chassis) = match chassis.as_object()?.iter().next()? {
        (name, inner) if chassis.get("id").is_none() && inner.is_object() => (text(name.as_bytes()), inner),
        _ => (None, chassis),
    };
    let name = key.or_else(|| word(chassis.get("name")?)).or_else(|| word(chassis.get("id")?))?;
    let port = several(about.get("port")?).into_iter().next()?;
    let id = word(port.get("id")?)?;
    let vlans = about.get("vlan").map(several).unwrap_or_default();
    let yes = |v: &Value| v.as_bool() == Some(true) || v.as_str().is_some_and(|s| s == "yes" || s == "true");
    let untagged = vlans.into_iter().find(|v| v.get("pvid").is_some_and(yes));
    let number = |v: &Value| v.as_u64().or_else(|| v.as_str()?.parse().ok()).and_then(|n| u16::try_from(n).ok());
    let capabilities = chassis.get("capability").map(several).unwrap_or_default();
    let forwards = capabilities.iter().any(|c| {
        let kind = c.get("type").and_then(Value::as_str).unwrap_or_default();
        matches!(kind, "Bridge" | "Router") && c.get("enabled").is_some_and(yes)
    });
    let neighbour = Neighbour {
        switch: name,
        description: port.get("descr").and_then(word).filter(|d| *d != id),
        port: id,
        vlan: untagged.and_then(|v| number(v.get("vlan-id")?)).filter(|id| (1..4095).contains(id)),
    };
    Some((forwards, neighbour))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    fn fixture(name: &str) -> String {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lldp");
        std::fs::read_to_string(folder.join(name)).unwrap()
    }

    fn leaf(port: u16, description: &str) -> Neighbour {
        let port = format!("Ethernet1/{port}");
        Neighbour { switch: "leaf-12b".into(), port, description: Some(description.into()), vlan: None }
    }

    #[test]
    fn every_shape_of_lldpcli() {
        let two = from_lldpcli(&fixture("two-ports.json")).unwrap();
        assert_eq!(two.len(), 2);
        assert_eq!(two["ivb1"], leaf(18, "c03-u14 port 2"));
        for one in ["one-port.json", "one-port-json0.json"] {
            let one = from_lldpcli(&fixture(one)).unwrap();
            assert_eq!(one.into_iter().collect::<Vec<_>>(), [("ivb0".into(), leaf(17, "c03-u14 port 1"))]);
        }
        let vlans = r#"{"lldp": {"interface": {"eno1": {"chassis": {"id": {"type": "mac", "value": "44:4c:a8:00:00:01"}},
            "port": {"id": {"type": "ifname", "value": "Ethernet7"}, "descr": "Ethernet7"},
            "vlan": [{"vlan-id": "20", "pvid": false}, {"vlan-id": "10", "pvid": true, "value": "prov"}]}}}}"#;
        let one = from_lldpcli(vlans).unwrap();
        let expected = Neighbour {
            switch: "44:4c:a8:00:00:01".into(),
            port: "Ethernet7".into(),
            description: None,
            vlan: Some(10),
        };
        assert_eq!(one["eno1"], expected);
        assert_eq!(from_lldpcli(r#"{"lldp": {}}"#), Ok(BTreeMap::new()));
        assert!(from_lldpcli("").is_err() && from_lldpcli("{}").is_err());
    }

    fn field(kind: u16, value: &[u8]) -> Vec<u8> {
        [&(kind << 9 | value.len() as u16).to_be_bytes()[..], value].concat()
    }

    #[test]
    fn a_frame_of_a_switch() {
        let unit = [
            field(1, &[4, 0x44, 0x4c, 0xa8, 0, 0, 1]),
            field(2, b"\x05Ethernet17"),
            field(3, &[0, 120]),
            field(4, b"c03-u14 port 1\0"),
            field(5, b"leaf-12b"),
            field(7, &[0, 0x14, 0, 0x14]),
            field(127, &[0x00, 0x80, 0xc2, 1, 0, 100]),
            field(0, &[]),
            vec![0; 20],
        ]
        .concat();
        let heard = parse(&unit).unwrap();
        assert!(heard.forwards);
        assert_eq!(
            heard.neighbour,
            Neighbour {
                switch: "leaf-12b".into(),
                port: "Ethernet17".into(),
                description: Some("c03-u14 port 1".into()),
                vlan: Some(100)
            }
        );
        // Without a name the chassis id stands for it; a field that is longer than the frame spoils it.
        let unnamed = [field(1, &[5, 1, 10, 0, 0, 7]), field(2, &[3, 2, 0, 0, 0, 0, 9])].concat();
        let neighbour = parse(&unnamed).unwrap().neighbour;
        assert_eq!((neighbour.switch.as_str(), neighbour.port.as_str()), ("10.0.0.7", "02:00:00:00:00:09"));
        assert_eq!(parse(&[unnamed, vec![0x0a, 200, 1]].concat()), None);
        assert_eq!(parse(&field(5, b"leaf")), None);
    }

    #[test]
    fn our_own_frame_can_be_read() {
        let frame = announcement(MacAddr([2, 0, 0, 0, 0, 9]), "rackline-agent", "eno1", None);
        assert_eq!((frame.len(), &frame[..6]), (60, &GROUP[..]));
        let neighbour = parse(&frame[14..]).unwrap().neighbour;
        assert_eq!((neighbour.switch.as_str(), neighbour.port.as_str()), ("rackline-agent", "eno1"));
        let frame = announcement(MacAddr([2, 0, 0, 0, 0, 1]), "leaf", "Ethernet7", Some("node-07"));
        let heard = parse(&frame[14..]).unwrap();
        assert!(heard.forwards && heard.neighbour.description.as_deref() == Some("node-07"), "{heard:?}");
    }

    /// In a network of its own: this thread's.
    pub(crate) fn own_network() -> bool {
        // SAFETY: takes flags and changes only the network namespace of this thread.
        unsafe { libc::unshare(libc::CLONE_NEWNET) == 0 }
    }

    pub(crate) fn run(program: &str, arguments: &str) -> String {
        let output = std::process::Command::new(program).args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) fn card(name: &str) -> Nic {
        let text = run("ip", &format!("-br link show {name}"));
        let mac = text.split_whitespace().nth(2).unwrap().parse().unwrap();
        Nic {
            name: name.into(),
            mac,
            driver: None,
            pci: None,
            firmware: None,
            link: true,
            speed_mbps: None,
            boot: false,
            max_mbps: None,
            queues: None,
            max_queues: None,
            numa: None,
            neighbour: None,
        }
    }

    /// lldpd at the other end of a cable is heard, its own tool says of us what we sent.
    #[test]
    fn a_real_lldpd_is_heard_and_hears_us() {
        let in_thread = std::thread::spawn(|| {
            if !own_network() {
                eprintln!("skipped: this needs root");
                return;
            }
            run("ip", "link add agent0 type veth peer name switch0");
            run("ip", "link set agent0 up");
            run("ip", "link set switch0 up");
            let dir = tempfile::tempdir().unwrap();
            let (conf, socket) = (dir.path().join("conf"), dir.path().join("socket"));
            let lines = "configure system hostname leaf-12b\nconfigure lldp tx-interval 1\n\
                         configure ports switch0 lldp portidsubtype local Ethernet1/17 description c03-u14\n";
            std::fs::write(&conf, lines).unwrap();
            let mut lldpd = std::process::Command::new("lldpd");
            lldpd.args(["-d", "-I", "switch0", "-C", "switch0", "-u"]).arg(&socket).arg("-O").arg(&conf);
            let mut lldpd = lldpd.stderr(std::process::Stdio::null()).spawn().unwrap();
            let show = format!("-u {} show configuration", socket.display());
            let up = |_: &u32| {
                std::thread::sleep(Duration::from_millis(100));
                let asked = std::process::Command::new("lldpcli").args(show.split(' ')).output();
                asked.is_ok_and(|o| o.status.success() && String::from_utf8_lossy(&o.stdout).contains("leaf-12b"))
            };
            let started = (0..200).find(up).is_some();
            let listener = Listener::start(&[card("agent0")]).unwrap();
            std::thread::sleep(Duration::from_secs(5));
            let heard = listener.finish();
            let told = run("lldpcli", &format!("-u {} -f json show neighbors", socket.display()));
            rustix::process::kill_process(rustix::process::Pid::from_child(&lldpd), rustix::process::Signal::TERM)
                .unwrap();
            lldpd.wait().unwrap();
            assert!(started, "lldpd does not start");
            let expected = Neighbour {
                switch: "leaf-12b".into(),
                port: "Ethernet1/17".into(),
                description: Some("c03-u14".into()),
                vlan: None,
            };
            assert_eq!(heard.into_iter().collect::<Vec<_>>(), [("agent0".to_owned(), expected)]);
            // The other way round: what we sent was understood.
            assert_eq!(from_lldpcli(&told).unwrap()["switch0"].switch, "rackline-agent");
        });
        in_thread.join().unwrap();
    }

    proptest! {
        #[test]
        fn no_frame_stops_the_listener(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            parse(&bytes);
        }

        #[test]
        fn no_answer_of_lldpcli_does(changes in proptest::collection::vec((0usize..1500, any::<u8>()), 1..20)) {
            for name in ["two-ports.json", "one-port.json", "one-port-json0.json"] {
                let mut bytes = fixture(name).into_bytes();
                changes.iter().for_each(|(at, byte)| if let Some(old) = bytes.get_mut(*at) { *old = *byte });
                let _ = from_lldpcli(&String::from_utf8_lossy(&bytes));
            }
        }
    }
}
