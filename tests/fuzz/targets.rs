//! Every parser that takes bytes from the network, as a function of those bytes alone. A target panics where the parser
//! does, and where what it made of the bytes contradicts them.
//!
//! Used twice: by `tests/it/fuzz.rs` with known inputs and some thousand mutations of them, in seconds, and by libFuzzer
//! (`make fuzz`), which looks for new paths through the code for as long as it is given. Router solicitations are not
//! here: of those, type and length are all that is read.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::http::{Request as HttpRequest, StatusCode};
use bytes::BytesMut;
use futures::future::BoxFuture;
use rackline::bmc::rmcp::crypto::{Keys, Suite};
use rackline::bmc::rmcp::packet;
use rackline::boot::config::{BootConfig, Mode};
use rackline::boot::count::Answer;
use rackline::boot::dhcp::relay::{RelayInfo, id_text};
use rackline::boot::dhcp::request::Request;
use rackline::boot::dhcp::{Dhcp, Door, Outcome};
use rackline::boot::firmware::Files;
use rackline::boot::loader::Loaders;
use rackline::boot::script::Scripts;
use rackline::boot::switch::Switches;
use rackline::boot::switch::config::{Services, Switch};
use rackline::boot::tftp::packet::Packet;
use rackline::boot::{BootAnswer, Facts, Policy, Sighting, Unanswered, http, others, probe};
use rackline::ipmi::message::{Completion, Response, lan_response};
use rackline::ipmi::records::{Found, Source, Walk};
use rackline::ipmi::{app, chassis, fru, lan, sdr, sel, sensor, user};
use rackline::machine::{Digest, MacAddr, Secret};
use rackline::swarm::torrent::announce::{Announce, Event};
use rackline::swarm::torrent::tracker::Tracker;
use rackline::swarm::{group, wire};
use tower::ServiceExt;

pub type Target = fn(&[u8]);

pub const TARGETS: &[(&str, Target)] = &[
    ("dhcp-request", dhcp_request),
    ("dhcp-server", dhcp_server),
    ("relay-agent", relay_agent),
    ("frames", frames),
    ("tftp", tftp),
    ("http", http_boot),
    ("rmcp", rmcp),
    ("sol", sol),
    ("ipmi", ipmi),
    ("sdr", sensors),
    ("sel", event_log),
    ("fru", inventory),
    ("swarm", swarm),
    ("announce", announce),
];

/// 2026-01-01.
pub const START: i64 = 1_767_225_600_000;

pub const CONFIG: &str = r#"
    url = "http://10.77.0.1"
    unknown_lease_seconds = 3600
    probe_ms = 0
    interfaces = [{ name = "lab0", address = "10.77.0.1" }]
    [[subnets]]
    network = "10.77.0.0/16"
    pools = ["10.77.2.0-10.77.2.255"]
    router = "10.77.0.1"
    domain = "lab"
    [[subnets]]
    network = "10.78.0.0/24"
    pools = ["10.78.0.100-10.78.0.199"]
    router = "10.78.0.1"
"#;

const SWITCHES: &str = r#"
    [[switches]]
    name = "c-tor1"
    vendor = "arista"
    serial = "JPE12221671"
    address = "10.77.0.21/16"
    vlan = 210
    ports = { "Ethernet1" = "c03-u12" }
    uplinks = ["Ethernet49/1"]
"#;

/// Knows nobody.
struct Nobody;

impl Policy for Nobody {
    fn sighted(&self, _: Sighting) {}

    fn unanswered(&self, _: Unanswered) {}

    fn facts(&self, _: MacAddr) -> Option<Facts> {
        None
    }

    fn boot_answer(&self, asking: Sighting) -> BoxFuture<'_, rackline::error::Result<BootAnswer>> {
        Box::pin(async move { Ok(BootAnswer::Hold { reason: format!("nothing to do for {}", asking.mac) }) })
    }
}

fn loaders(config: &BootConfig, files: Files) -> Arc<Loaders> {
    let scripts = Arc::new(Scripts::new(config, "00").unwrap());
    // Nothing is learnt: no file is fetched.
    let (learns, _) = tokio::sync::mpsc::channel(1);
    Arc::new(Loaders::new(config, Arc::new(files), scripts, Arc::new(Nobody), vec![], learns).unwrap())
}

/// A DHCP server with nothing leased, the subnet of its own interface and one behind a relay.
pub fn server(files: Files) -> Dhcp {
    let config: BootConfig = toml::from_str(CONFIG).unwrap();
    config.check().unwrap();
    let switches: HashMap<String, Vec<Switch>> = toml::from_str(SWITCHES).unwrap();
    let switches = Switches::new(switches["switches"].clone(), &Services::default(), &config).unwrap();
    Dhcp::new(&config, [], loaders(&config, files), Arc::new(switches), Arc::new(Nobody))
}

pub const DOOR: Door = Door { own: Ipv4Addr::new(10, 77, 0, 1), mode: Mode::Dhcp, port: 67 };

fn dhcp_request(bytes: &[u8]) {
    let Ok(request) = Request::parse(bytes) else { return };
    assert_eq!(request.xid.to_be_bytes(), bytes[4..8]);
    assert_eq!(request.client.mac.0, bytes[28..34]);
    assert_eq!(request.giaddr.octets(), bytes[24..28]);
}

/// Packets one after another, each behind its length in two bytes, a second apart. Whatever comes, no address has two
/// holders, and every answer is one that belongs to its request.
fn dhcp_server(bytes: &[u8]) {
    let mut server = server(Files::default());
    let mut holders: HashMap<Ipv4Addr, (MacAddr, i64)> = HashMap::new();
    let mut now = START;
    for packet in packets(bytes) {
        let outcome = server.receive(now, packet, DOOR);
        let save = match &outcome {
            Outcome::Answer(ready) => {
                belongs(&ready.packet, packet, ready.what);
                ready.save.clone()
            }
            Outcome::Probe { .. } => panic!("probing is off"),
            Outcome::Silent { save, .. } => save.clone(),
        };
        if let Some(lease) = save {
            let holder = holders.insert(lease.address, (lease.mac, lease.expires));
            let taken = holder.is_some_and(|(mac, until)| mac != lease.mac && until > now);
            assert!(!taken, "{} of {holder:?} was given to {}", lease.address, lease.mac);
        }
        now += 1000;
    }
}

fn packets(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let (packet, next) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
        bytes = next;
        Some(packet)
    })
}

fn belongs(answer: &[u8], request: &[u8], what: Answer) {
    assert!((300..=1500).contains(&answer.len()), "{} bytes", answer.len());
    assert_eq!((answer[0], &answer[4..8], &answer[28..34]), (2, &request[4..8], &request[28..34]));
    assert_eq!(answer[236..242], [99, 130, 83, 99, 53, 1], "the type comes first");
    let kind = [Answer::Offer, Answer::Ack, Answer::Nak].iter().position(|a| *a == what);
    assert_eq!(kind.map(|k| [2, 5, 6][k]), Some(answer[242]));
    let given = Ipv4Addr::from(<[u8; 4]>::try_from(&answer[16..20]).unwrap());
    let [a, b, ..] = given.octets();
    assert!(given.is_unspecified() || (a, b) == (10, 77) || (a, b) == (10, 78), "{given}");
}

fn relay_agent(bytes: &[u8]) {
    let info = RelayInfo::parse(bytes);
    assert_eq!(info.raw, bytes, "echoed as it came");
    for id in [info.circuit, info.remote].into_iter().flatten() {
        assert!(!id_text(&id).chars().any(char::is_control));
    }
}

/// Frames that raw sockets give: other servers' answers, ARP, ICMP.
fn frames(bytes: &[u8]) {
    let _ = (others::sender(bytes), probe::arp_reply(bytes), probe::echo_reply(bytes));
}

fn tftp(bytes: &[u8]) {
    if let Some(Packet::Read(read)) = Packet::parse(bytes) {
        assert!(!read.name.contains('\0'));
        assert!(read.block_size.is_none_or(|n| (8..=65464).contains(&n)));
        assert!(read.timeout != Some(0) && read.window != Some(0));
    }
}

/// The query of a boot script, a line end, and a file's `Range`.
fn http_boot(bytes: &[u8]) {
    thread_local! {
        static SITE: (tokio::runtime::Runtime, axum::Router) = site();
    }
    let (query, range) = match bytes.iter().position(|b| *b == b'\n') {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &b""[..]),
    };
    SITE.with(|(runtime, router)| {
        let ask = |uri: &[u8], range: &[u8]| {
            let uri = [b"http://a", uri].concat();
            let request = HttpRequest::get(uri).header("range", range).body(Body::empty()).ok()?;
            runtime.block_on(async {
                let answer = router.clone().oneshot(request).await.unwrap();
                let (head, body) = answer.into_parts();
                Some((head.status, axum::body::to_bytes(body, 1 << 20).await.unwrap()))
            })
        };
        if let Some((status, body)) = ask(&[b"/boot/ipxe?", query].concat(), b"") {
            assert!(status == StatusCode::OK && body.starts_with(b"#!ipxe\n"), "{status}");
        }
        if let Some((status, body)) = ask(b"/boot/files/file", range) {
            let whole = include_bytes!("targets.rs");
            let right = match status {
                StatusCode::OK => body == whole[..],
                StatusCode::PARTIAL_CONTENT => whole.windows(body.len().max(1)).any(|w| w == body),
                status => status == StatusCode::RANGE_NOT_SATISFIABLE || status == StatusCode::BAD_REQUEST,
            };
            assert!(right, "{status} with {} bytes", body.len());
        }
        if let Some((status, _)) = ask(&[b"/boot/files/", query].concat(), b"") {
            assert!(query.starts_with(b"file") || status.is_client_error(), "{status}");
        }
    });
}

fn site() -> (tokio::runtime::Runtime, axum::Router) {
    let config: BootConfig = toml::from_str(CONFIG).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|dir| dir.join("tests/fuzz/targets.rs"));
    let path = path.into_iter().find(|p| p.exists()).unwrap();
    let loaders = loaders(&config, Files::default().with("file", &path).unwrap());
    let files = Arc::new(loaders.files().clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    (runtime, http::router(Arc::new(http::Site { policy: Arc::new(Nobody), files, loaders })))
}

/// As they come from a BMC, and as what is inside a packet that is signed right.
fn rmcp(bytes: &[u8]) {
    use packet::Setup;
    packet::sessionless_response(bytes);
    for kind in [Setup::OpenResponse, Setup::Rakp2, Setup::Rakp4] {
        packet::setup_payload(bytes, kind);
    }
    for suite in [Suite::Three, Suite::Seventeen] {
        let keys = Keys::derive(suite, &[7; 20]).unwrap();
        assert_eq!(packet::unseal(&keys, 9, bytes), None, "nobody guesses the key");
        keys.decrypt(bytes);
        if let Ok(sealed) = packet::sealed(&keys, 9, 1, packet::Payload::Sol, bytes) {
            // Longer messages than the 16 bits of the length field are not sent.
            let back = packet::unseal(&keys, 9, &sealed);
            assert!(bytes.len() > 60_000 || back == Some((1, packet::Payload::Sol, bytes.to_vec())));
        }
    }
}

/// A packet of the serial console, with a key and a break on their way; and what a machine printed, as lines.
fn sol(bytes: &[u8]) {
    use rackline::bmc::sol::{link::Link, record::Piece, text};
    let (mut link, now) = (Link::new(32, 0), tokio::time::Instant::now());
    link.type_in(b"key");
    link.press_break();
    for part in bytes.chunks(40) {
        link.next(now);
        link.receive(now, part);
    }
    let (bytes, next) = (bytes.to_vec(), bytes.len() as u64);
    let lines = text::lines(&Piece { offset: 0, bytes, next, end: next, entries: Vec::new() });
    assert!(lines.lines.iter().chain(&lines.tail).all(|line| !line.text.contains(char::is_control)));
}

/// A LAN message, and the data of an answer to each command.
fn ipmi(bytes: &[u8]) {
    use rackline::ipmi::Ask;
    lan_response(bytes);
    let response = Response { netfn: 7, cmd: 1, completion: Completion::OK, data: bytes.to_vec() };
    let channel = 1;
    let _ = app::GetDeviceId.settle(&response);
    let _ = app::GetSystemGuid.settle(&response);
    let _ = app::GetCipherSuites { list: 0 }.settle(&response);
    let _ = app::GetChannelInfo(channel).settle(&response);
    let _ = app::suite_ids(bytes);
    let _ = chassis::GetStatus.settle(&response);
    let _ = chassis::GetBootFlags.settle(&response);
    let _ = lan::GetLan { channel, parameter: lan::Address }.settle(&response);
    let _ = lan::GetLan { channel, parameter: lan::Source }.settle(&response);
    let _ = lan::GetLan { channel, parameter: lan::Mac }.settle(&response);
    let _ = lan::GetLan { channel, parameter: lan::Mask }.settle(&response);
    let _ = lan::GetLan { channel, parameter: lan::Vlan }.settle(&response);
    let _ = chassis::GetCapabilities.settle(&response);
    let _ = sel::GetInfo.settle(&response);
    let _ = sensor::GetThresholds { lun: 0, number: 1 }.settle(&response);
    let _ = user::GetUserAccess { channel, user: 2 }.settle(&response);
    let _ = sdr::GetRepositoryInfo.settle(&response);
    let _ = sensor::GetReading { lun: 0, number: 1 }.settle(&response);
    let _ = user::GetUserName(2).settle(&response);
}

/// A record; and a repository whose BMC answers with these bytes, however long the walk through it takes.
fn sensors(bytes: &[u8]) {
    if let Ok(sdr::Record::Sensors(sensors)) = sdr::parse(bytes) {
        for sensor in sensors {
            assert!(!sensor.name.chars().any(char::is_control));
            let values = sensor.scale.iter().flat_map(|s| (0..=255).map(|raw| s.value(raw)));
            assert!(values.flatten().all(f64::is_finite));
        }
    }
    records(Source::Repository, bytes);
}

/// The answers of a BMC whose list is walked; gives the records that were whole.
fn records(source: Source, bytes: &[u8]) -> Vec<Vec<u8>> {
    let (mut walk, mut found) = (Walk::new(source), Vec::new());
    let mut pieces = packets(bytes);
    while walk.request().is_some() {
        let Some(piece) = pieces.next() else { break };
        let completion = Completion(piece.first().copied().unwrap_or(0));
        let data = piece.get(1..).unwrap_or_default().to_vec();
        match walk.answer(&Response { netfn: 0x0b, cmd: 0x23, completion, data }) {
            Ok(Some(Found::Record(record))) => found.push(record),
            Ok(Some(Found::Broken(_)) | None) => {}
            Err(_) => break,
        }
    }
    found
}

/// An entry, and a log that is walked: each entry is one printable sentence.
fn event_log(bytes: &[u8]) {
    let walked = records(Source::Log, bytes);
    assert!(walked.iter().all(|entry| entry.len() == 16));
    for entry in walked.iter().map(Vec::as_slice).chain([bytes]).filter_map(sel::Entry::parse) {
        let text = entry.sentence("name", None);
        assert!(!text.is_empty() && !text.chars().any(char::is_control), "{text:?}");
    }
}

/// The storage of an inventory: what is asked for ends, and no value steers a terminal.
fn inventory(bytes: &[u8]) {
    let (mut read, mut rounds) = (0, 0);
    while fru::needed(&bytes[..read]) > read && read < bytes.len() {
        read = fru::needed(&bytes[..read]).min(bytes.len());
        rounds += 1;
    }
    assert!(rounds <= 8 + 256, "{rounds}");
    let found = fru::parse(bytes);
    assert!(found.fields.iter().all(|f| !f.value.is_empty() && !f.value.chars().any(char::is_control)));
}

/// What is taken for a hello says the same when it is said again, and a stream gives the same messages however the network
/// cuts it.
fn swarm(bytes: &[u8]) {
    if let Some(hello) = bytes.first_chunk().and_then(wire::Hello::parse)
        && let Some((skip, parts)) = bytes.get(wire::HELLO..).and_then(|tail| hello.parse_tail(tail))
    {
        assert!(skip.len() == hello.frames && skip.count() <= skip.len() && parts.len() <= wire::PARTS_MAX);
        let again = wire::hello(&hello.proof.into(), &hello.image, &skip, &parts);
        let said = again.first_chunk().and_then(wire::Hello::parse).unwrap();
        assert_eq!((said.image, said.frames), (hello.image, hello.frames));
        assert_eq!(said.parse_tail(&again[wire::HELLO..]), Some((skip, parts)));
    }
    let whole = messages(bytes, bytes.len().max(1));
    assert_eq!(whole, messages(bytes, 7));
    assert!(whole.0.len() <= bytes.len() / wire::HEAD);
}

/// Of an image with two frames, one of them of two groups; and how it ended.
fn messages(bytes: &[u8], step: usize) -> (Vec<wire::Message>, Option<&'static str>) {
    let length = |frame: u32| [100, group::GROUP as u32 + 4_008].get(frame as usize).copied();
    let (mut buffer, mut found) = (BytesMut::new(), Vec::new());
    for piece in bytes.chunks(step) {
        buffer.extend_from_slice(piece);
        loop {
            match wire::decode(&mut buffer, length) {
                Ok(wire::Decoded::Message(message)) => found.push(message),
                Ok(wire::Decoded::Need(bytes)) => break assert!(bytes > buffer.len()),
                Err(why) => return (found, Some(why)),
            }
        }
    }
    (found, None)
}

/// The query of a BitTorrent announce, and what the tracker makes of one that it takes.
fn announce(bytes: &[u8]) {
    const LENGTH: u64 = 1 << 20;
    let Ok(query) = std::str::from_utf8(bytes) else { return };
    let Ok(announce) = Announce::parse(query) else { return };
    assert!(announce.port >= 1024 && announce.wanted <= 80);
    if announce.fits(LENGTH).is_ok() {
        assert!(announce.left <= LENGTH);
        let mut tracker = Tracker::default();
        let reply = tracker.announce(Instant::now(), Ipv4Addr::LOCALHOST.into(), &announce).unwrap();
        assert!(reply.peers.is_empty(), "nobody else has announced");
        let (lacking, complete) = tracker.clients();
        assert_eq!(lacking + complete, usize::from(announce.event != Event::Stopped));
    }
}

/// Where mutations start from: the messages of `tests/fixtures/dhcp`, and good input for the other targets.
pub fn seeds(target: &str, fixtures: &Path) -> Vec<Vec<u8>> {
    let prefixed = |packets: &[Vec<u8>]| {
        packets.iter().flat_map(|p| [&(p.len() as u16).to_be_bytes()[..], p].concat()).collect::<Vec<u8>>()
    };
    let sdr: &[u8] = &[
        0x01, 0x00, 0x51, 0x01, 0x37, 0x20, 0x00, 0x30, 0x07, 0x01, 0x7f, 0x68, 0x01, 0x01, 0x80, 0x0a, 0x80, 0x7a,
        0x38, 0x38, 0x00, 0x01, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x07, 0x28, 0x50, 0x14, 0x7f, 0x80,
        0x00, 0x5a, 0x55, 0x50, 0x05, 0x0a, 0x0f, 0x02, 0x02, 0x00, 0x00, 0x00, 0xc8, b'C', b'P', b'U', b' ', b'T',
        b'e', b'm', b'p',
    ];
    match target {
        "dhcp-request" => conversations(fixtures).concat(),
        "dhcp-server" => conversations(fixtures).iter().map(|c| prefixed(c)).collect(),
        "relay-agent" => {
            vec![b"\x01\x09Ethernet7\x02\x06\x52\x54\0\0\0\x01\x05\x04\x0a\x4e\0\0\x0b\x04\x0a\x4e\0\x01".to_vec()]
        }
        "frames" => {
            let mut udp = [0; 42];
            udp[12..15].copy_from_slice(&[8, 0, 0x45]);
            let answers = conversations(fixtures).concat().into_iter().map(|p| [&udp[..], &p].concat());
            let arp = [&[2; 12][..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &[9; 20]].concat();
            answers.chain([arp, [&[0x45][..], &[1; 19], &[0; 8]].concat()]).collect()
        }
        "announce" => [
            "info_hash=%124Vx%9A%BC%DE%F1%23Eg%89%AB%CD%EF%124Vx%9A&peer_id=-TR3000-yo09ju2336jv&port=6890&uploaded=0\
             &downloaded=0&left=1048576&numwant=80&key=564d0299&compact=1&supportcrypto=1&event=started",
            "info_hash=%991%BF4%11%CDS%17hJ%B4%E9%9Cp%BC%1F%A0%FB%F8i&peer_id=A2-1-36-0-%E1%82e%E6%CF%EF%1A%8D%C5_\
             &uploaded=8192&downloaded=9000&left=0&port=6901&event=completed&no_peer_id=1",
            "info_hash=aaaaaaaaaaaaaaaaaaaa&peer_id=bbbbbbbbbbbbbbbbbbbb&port=65535&left=1&event=stopped&numwant=-1",
        ]
        .map(|s| s.as_bytes().to_vec())
        .to_vec(),
        "tftp" => [
            &b"\0\x01undionly.kpxe\0octet\0tsize\x000\0blksize\x001468\0timeout\x003\0windowsize\x0016\0"[..],
            b"\0\x01a\0netascii\0",
            b"\0\x02a\0octet\0",
            b"\0\x04\xff\xff",
            b"\0\x05\0\x08stop\0",
        ]
        .map(<[u8]>::to_vec)
        .to_vec(),
        "http" => [
            "mac=52:54:00:77:00:01&uuid=4c575231-0077-4000-8000-000000000001&arch=uefi-x64\nbytes=2-4",
            "mac=%35%32-54-00-77-00-01&arch=bios\nbytes=-5",
            "mac=525400770001\nbytes=10-,20-30, 5-6",
            "file\nbytes=18446744073709551615-",
        ]
        .map(|s| s.as_bytes().to_vec())
        .to_vec(),
        "rmcp" => vec![
            [&[6, 0, 0xff, 7, 0][..], &[0; 8], &[9, 0x81, 0x1c, 0x63, 0x20, 0x04, 0x01, 0x00, 0x20, 0xbb]].concat(),
            [&[6, 0, 0xff, 7, 6, 0x11][..], &[0; 8], &[36, 0], &[0; 36]].concat(),
            [&[6, 0, 0xff, 7, 6, 0x13][..], &[0; 8], &[60, 0], &[1; 60]].concat(),
            [&[6, 0, 0xff, 7, 6, 0xc0][..], &[9, 0, 0, 0, 1, 0, 0, 0, 32, 0], &[3; 48]].concat(),
        ],
        "sol" => vec![
            b"\x01\0\0\0GRUB \x1b[1;31mloading\x1b[0m\r\n\x0a".to_vec(),
            [&[0, 1, 3, 0][..], &[0; 36], &[0, 2, 0, 0x60], &[0; 36], &[1, 3, 0, 0x1c]].concat(),
        ],
        "ipmi" => vec![
            vec![0x81, 0x1c, 0x63, 0x20, 0x04, 0x01, 0x00, 0x20, 0xbb],
            vec![0x20, 0x81, 0x02, 0x15, 0x02, 0xbf, 0x57, 0x01, 0x00, 0x00, 0x0b, 0, 0, 0, 0],
            vec![1, 0xc0, 3, 0x01, 0x41, 0x81, 0xc0, 17, 0x03, 0x44, 0x81],
        ],
        "sdr" => {
            let reserve = vec![0, 1, 0];
            let piece = |from: usize, to: usize| [&[0, 0xff, 0xff][..], &sdr[from..to]].concat();
            vec![sdr.to_vec(), prefixed(&[reserve, piece(0, 5), piece(5, 21), piece(21, 37), piece(37, 57)])]
        }
        "sel" => {
            let event = [7, 0, 2, 0x00, 0x6d, 0x5e, 0x69, 0x20, 0, 4, 0x01, 0x04, 0x01, 0x59, 0xb0, 0xaf];
            let timed = [8, 0, 0xc1, 5, 0, 0, 0, 0xa2, 0x02, 0, 1, 2, 3, 4, 5, 6];
            let panic = [9, 0, 0xf0, 0x20, 2, 0x46, 0x61, 0x74, 0x61, 0x6c, 0x20, 0x65, 0x78, 0x63, 0x65, 0x70];
            let answer = |next: u8, entry: [u8; 16]| [&[0, next, 0][..], &entry].concat();
            let log = [answer(8, event), answer(9, timed), vec![0xca], vec![0, 1, 0], answer(0xff, panic)];
            [event, timed, panic].map(|e| e.to_vec()).into_iter().chain([prefixed(&log)]).collect()
        }
        "fru" => fixtures.parent().map(|folder| storages(&folder.join("ipmi"))).unwrap_or_default(),
        "swarm" => {
            let digest = Digest([7; 32]);
            let mut skip = wire::Bitmap::new(11, false);
            skip.set(3, true);
            let hello =
                wire::hello(&wire::proof(&Secret::new("key"), &digest), &digest, &skip, &[(1, 3), (4, 1)]).to_vec();
            let frame = [&wire::begin(1, 1)[..], &[9; 64], &wire::group(1, 1), &[1; 4_008]].concat();
            let short = [&wire::alive(2, 1, true)[..], &wire::begin(0, 0), &wire::group(0, 0), &[1; 100]].concat();
            vec![hello, frame, [&short[..], &wire::refused(wire::Refusal::Full)].concat()]
        }
        _ => Vec::new(),
    }
}

/// What switches ask with, each in its vendor's way: classes (60, 77), client id (61) and enterprise options (124, 125).
fn switches() -> Vec<Vec<u8>> {
    let asked: [&[(u8, &[u8])]; 5] = [
        &[(60, b"Arista;DCS-7050S-64;01.23;JPE12221671")],
        &[(60, b"cumulus-linux x86_64")],
        &[(61, b"SONiC##MSN2700##MT1607X11210"), (77, b"SONiC-ZTP")],
        &[(60, b"onie_vendor:x86_64-accton_as7712_32x-r0"), (125, b"\0\0\xa6\x7f\x06\x03\x04x86_")],
        &[(60, b"ciscopnp"), (61, b"\0FDO21120U8N"), (124, b"\0\0\0\x09\x0aC9300-24UX")],
    ];
    let message = |options: &[(u8, &[u8])]| {
        let mut bytes = vec![0; 240];
        bytes[..3].copy_from_slice(&[1, 1, 6]);
        bytes[28..34].copy_from_slice(&[0, 0x1c, 0x73, 0, 0, 1]);
        bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
        bytes.extend([53, 1, 1]);
        options.iter().for_each(|(code, data)| bytes.extend([&[*code, data.len() as u8][..], data].concat()));
        bytes.push(255);
        bytes
    };
    asked.map(message).to_vec()
}

/// The inventories of real servers, from the command files of their simulations.
fn storages(folder: &Path) -> Vec<Vec<u8>> {
    let emu = std::fs::read_to_string(folder.join("dell_r630.emu")).unwrap();
    let storages = emu.split("mc_add_fru_data ").skip(1).map(|rest| rest.split("\n\n").next().unwrap_or_default());
    // Controller, device, size and `data` in front of the bytes; most of the storage is empty.
    let bytes = storages.map(|words| {
        let words = words.split_whitespace().skip(4).filter_map(|word| word.strip_prefix("0x"));
        words.map(|digits| u8::from_str_radix(digits, 16).unwrap()).take(512).collect()
    });
    bytes.collect()
}

/// The messages of each capture, and those of switches.
fn conversations(fixtures: &Path) -> Vec<Vec<Vec<u8>>> {
    let mut files: Vec<_> = std::fs::read_dir(fixtures).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    let captures = files.iter().map(|path| captured(&std::fs::read_to_string(path).unwrap()));
    captures.chain([switches()]).collect()
}

/// The messages of one capture: hexadecimal digits, with an empty line or a comment between two messages.
pub fn captured(text: &str) -> Vec<Vec<u8>> {
    let blocks = text.split("\n\n").map(|block| block.lines().filter(|l| !l.starts_with('#')).collect::<String>());
    let bytes = |digits: String| -> Vec<u8> {
        let pairs = digits.as_bytes().chunks(2).map(|d| std::str::from_utf8(d).unwrap().to_owned());
        pairs.map(|pair| u8::from_str_radix(&pair, 16).unwrap()).collect()
    };
    blocks.filter(|digits| !digits.is_empty()).map(bytes).collect()
}
