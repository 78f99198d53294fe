//! TFTP against real clients (curl, tftp-hpa, atftp), against one that loses packets and asks like firmware, and against
//! those that mean no good.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rackline::boot::firmware::Files;

use crate::fixture::noise;
use crate::net::{Appliance, Net, can_run, inside, receive, run, until};

const SERVER: &str = "10.77.0.1:69";

/// `rolls` has more than 65,535 blocks of 8 bytes.
fn files() -> Files {
    let file = |size| Bytes::from(noise("rackline tftp", size));
    let mut files = Files::default();
    files.memory.insert("small".into(), Bytes::from_static(b"hello\nworld"));
    files.memory.insert("f1".into(), file(1 << 20));
    files.memory.insert("short".into(), file(100_000));
    files.memory.insert("rolls".into(), file(8 * 65_540 + 3));
    files
}

/// An appliance with these files and a client, where the tools are there.
fn lab(tools: &[&str]) -> Option<(Net, Appliance)> {
    if !can_run(tools) {
        return None;
    }
    let net = Net::new();
    net.client_address("10.77.0.9/16");
    let appliance = Appliance::start(&net, files()).unwrap();
    Some((net, appliance))
}

fn curl(net: &Net, url: &str, block: u32) -> Vec<u8> {
    let (out, block) = (net.path("out"), block.to_string());
    let _ = std::fs::remove_file(&out);
    let args = ["-sS", "-g", url, "-o", out.to_str().unwrap(), "--tftp-blksize", &block, "--max-time", "90"];
    let curl = net.run_client("curl", &args);
    assert!(curl.status.success(), "{url} {block}: {}", String::from_utf8_lossy(&curl.stderr));
    std::fs::read(out).unwrap()
}

#[test]
fn whole_files_with_real_clients() {
    let Some((net, appliance)) = lab(&["ip", "curl", "tftp", "atftp"]) else { return };
    let files = files();
    for (name, block) in [("f1", 512), ("f1", 1468), ("f1", 65464), ("rolls", 8), ("small", 8)] {
        assert!(curl(&net, &format!("tftp://10.77.0.1/{name}"), block) == files.memory[name], "{name} {block}");
    }
    let out = net.path("out");
    let out = out.to_str().unwrap();
    let hpa = net.run_client("tftp", &["-m", "binary", "10.77.0.1", "-c", "get", "f1", out]);
    assert!(hpa.status.success(), "{}", String::from_utf8_lossy(&hpa.stderr));
    assert!(std::fs::read(out).unwrap() == files.memory["f1"]);
    // hpa turns CR LF back into LF.
    net.run_client("tftp", &["-m", "ascii", "10.77.0.1", "-c", "get", "small", out]);
    assert_eq!(std::fs::read(out).unwrap(), files.memory["small"]);
    for (block, window) in [("1428", "16"), ("512", "64"), ("1468", "1000")] {
        let (block, window) = (format!("blksize {block}"), format!("windowsize {window}"));
        let get = ["--option", &block, "--option", &window, "--get", "-r", "f1", "-l", out, "10.77.0.1"];
        let atftp = net.run_client("atftp", &get);
        assert!(atftp.status.success(), "{}", String::from_utf8_lossy(&atftp.stderr));
        assert!(std::fs::read(out).unwrap() == files.memory["f1"], "{block} {window}");
    }
    let put = net.run_client("curl", &["-sS", "-T", out, "tftp://10.77.0.1/small", "--max-time", "20"]);
    assert!(!put.status.success(), "read-only");
    until("the last transfer to be counted", || (appliance.count("tftp-complete") == 10).then_some(()));
    assert_eq!(appliance.count("tftp-refused"), 1);
}

#[test]
fn ipv6_from_every_address_of_the_interface() {
    if !can_run(&["ip", "curl", "tftp"]) {
        return;
    }
    let net = Net::new();
    for address in ["fd77::1/64", "fd77::2/64"] {
        run("ip", &["-n", &net.server, "addr", "add", address, "dev", "lab0", "nodad"]);
    }
    run("ip", &["-n", &net.client, "addr", "add", "fd77::9/64", "dev", "c0", "nodad"]);
    let files = files();
    let _appliance = Appliance::start(&net, files.clone()).unwrap();
    let local = until("the link-local addresses", || {
        link_local(&net.client, "c0")?;
        link_local(&net.server, "lab0")
    });
    for host in ["fd77::1", "fd77::2", &format!("{local}%25c0")] {
        assert!(curl(&net, &format!("tftp://[{host}]/f1"), 1428) == files.memory["f1"], "{host}");
    }
    let out = net.path("out");
    let hpa = net.run_client("tftp", &["-6", "-m", "binary", "fd77::2", "-c", "get", "f1", out.to_str().unwrap()]);
    assert!(hpa.status.success() && std::fs::read(&out).unwrap() == files.memory["f1"]);

    // The answer comes from the address that was asked, and its blocks fit the link.
    let socket = net.socket("[::]:0");
    for host in ["fd77::1", "fd77::2"] {
        let server = SocketAddr::new(host.parse().unwrap(), 69);
        let (answer, from) = ask(&socket, server, b"\0\x01f1\0octet\0blksize\x0065464\0");
        assert_eq!((answer.as_slice(), from.ip()), (&b"\0\x06blksize\x001448\0"[..], server.ip()));
        socket.send_to(b"\0\x05\0\0enough\0", from).unwrap();
        let (answer, from) = ask(&socket, server, b"\0\x01../f1\0octet\0");
        assert_eq!((answer[..4].to_vec(), from), (vec![0, 5, 0, 2], server));
    }
}

/// The link-local address, once it may be used.
fn link_local(ns: &str, link: &str) -> Option<IpAddr> {
    let args = ["-n", ns, "-6", "-o", "addr", "show", "dev", link, "scope", "link", "-tentative"];
    let output = std::process::Command::new("ip").args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().find_map(|word| word.split_once('/')?.0.parse().ok())
}

fn ask(socket: &UdpSocket, server: SocketAddr, request: &[u8]) -> (Vec<u8>, SocketAddr) {
    socket.send_to(request, server).unwrap();
    answer(socket)
}

fn answer(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 65536];
    let (length, from) = receive(socket, &mut buffer).unwrap();
    buffer.truncate(length);
    (buffer, from)
}

/// A TFTP client that loses packets on purpose: `lose` names those that it pretends never arrived, counted from 0.
fn fetch(socket: &UdpSocket, request: &[u8], window: usize, lose: &[usize]) -> Vec<u8> {
    socket.send_to(request, SERVER).unwrap();
    let (mut file, mut expected, mut held, mut arrived) = (Vec::new(), 1u16, 0, 0);
    let block_size = if request.windows(7).any(|w| w == b"blksize") { 1468 } else { 512 };
    loop {
        let (packet, from) = answer(socket);
        arrived += 1;
        if lose.contains(&(arrived - 1)) {
            continue;
        }
        let ack = |n: u16| socket.send_to(&[0, 4, (n >> 8) as u8, n as u8], from).unwrap();
        match packet[1] {
            6 => {
                ack(0);
            }
            3 if u16::from_be_bytes([packet[2], packet[3]]) == expected => {
                file.extend(&packet[4..]);
                (expected, held) = (expected.wrapping_add(1), held + 1);
                let last = packet.len() - 4 < block_size;
                if held == window || last {
                    held = 0;
                    ack(expected.wrapping_sub(1));
                }
                if last {
                    return file;
                }
            }
            3 => {
                // RFC 7440 section 4: a block is missing, so what came before it is acknowledged.
                held = 0;
                ack(expected.wrapping_sub(1));
            }
            other => panic!("opcode {other}: {}", String::from_utf8_lossy(&packet[4..])),
        }
    }
}

#[test]
fn windows_and_losses() {
    let Some((net, _appliance)) = lab(&["ip"]) else { return };
    let files = files();
    let socket = net.socket("0.0.0.0:2070");
    let windowed = b"\0\x01f1\0octet\0blksize\x001468\0windowsize\x0016\0";
    assert!(fetch(&socket, windowed, 16, &[]) == files.memory["f1"]);
    assert!(fetch(&socket, windowed, 16, &[0, 3, 20, 21, 40, 80, 81, 82]) == files.memory["f1"], "with losses");
    let plain = b"\0\x01/f1\0octet\0blksize\x001468\0";
    assert!(fetch(&socket, plain, 1, &[0, 5]) == files.memory["f1"], "the OACK and a block are sent again");
    assert!(fetch(&socket, b"\0\x01small\0octet\0", 1, &[0]) == files.memory["small"], "without options");
}

/// The network loses 3 % of the packets.
#[test]
fn a_link_that_loses_packets() {
    let Some((net, appliance)) = lab(&["ip", "nft", "tftp", "atftp"]) else { return };
    let files = files();
    // On arrival: what a host drops while it leaves is an error of the sending program.
    let lose = |ns: &str, what: &str| {
        let rule = format!("{what} numgen random mod 100 < 3 drop");
        let table = format!("table inet loss {{ chain input {{ type filter hook input priority 0; {rule}; }}; }}");
        run("ip", &["netns", "exec", ns, "nft", &table]);
    };
    lose(&net.client, "meta length > 100");
    lose(&net.server, "");
    let out = net.path("out");
    // hpa asks for no option, and so for no retransmission time: curl and its 5 s would take minutes.
    let hpa = net.run_client("tftp", &["-m", "binary", "10.77.0.1", "-c", "get", "short", out.to_str().unwrap()]);
    assert!(hpa.status.success(), "{}", String::from_utf8_lossy(&hpa.stderr));
    assert!(std::fs::read(&out).unwrap() == files.memory["short"]);
    // atftp takes a repeated OACK for an error, so its ACKs arrive.
    run("ip", &["netns", "exec", &net.server, "nft", "delete table inet loss"]);
    let (block, window) = ("blksize 1468", "windowsize 16");
    let get = ["--option", block, "--option", window, "--get", "-r", "f1", "-l", out.to_str().unwrap(), "10.77.0.1"];
    let atftp = net.run_client("atftp", &get);
    assert!(atftp.status.success(), "{}", String::from_utf8_lossy(&atftp.stderr));
    assert!(std::fs::read(&out).unwrap() == files.memory["f1"]);
    assert_eq!(appliance.count("tftp-malformed"), 0);
}

/// What firmware does: ask for the size, stop, and ask again at once, from the same port.
#[test]
fn size_probes_and_repeated_requests() {
    let Some((net, _appliance)) = lab(&["ip"]) else { return };
    let socket = net.socket("0.0.0.0:2070");
    let server: SocketAddr = SERVER.parse().unwrap();
    let probe = b"\0\x01small\0octet\0tsize\x000\0blksize\x001468\0";
    for stop in [&b"\0\x05\0\x08stop\0"[..], b"\0\x05", b""] {
        let (answer, from) = ask(&socket, server, probe);
        assert_eq!(answer, b"\0\x06blksize\x001468\0tsize\x0011\0");
        if !stop.is_empty() {
            socket.send_to(stop, from).unwrap();
        }
        let asked = Instant::now();
        assert_eq!(fetch(&socket, b"\0\x01small\0octet\0blksize\x001468\0", 1, &[]), b"hello\nworld");
        assert!(asked.elapsed() < Duration::from_millis(900), "it did not wait for a repetition");
    }

    // The same request again, and nothing between them: not a repetition, since the first was stopped.
    for _ in 0..50 {
        let (_, from) = ask(&socket, server, probe);
        socket.send_to(b"\0\x05\0\x08stop\0", from).unwrap();
        assert_eq!(fetch(&socket, probe, 1, &[]), b"hello\nworld");
    }

    // A request that is repeated because its answer took too long: the client may go on with either answer.
    let (first, from) = ask(&socket, server, probe);
    let (second, again) = ask(&socket, server, probe);
    assert_eq!((&first, from), (&second, again), "one transfer, not two");
    socket.send_to(&[0, 4, 0, 0], from).unwrap();
    assert_eq!(answer(&socket), (b"\0\x03\0\x01hello\nworld".to_vec(), from));
    // Repeated later than that, it is a new beginning, on a port of its own.
    let (_, new) = ask(&socket, server, probe);
    assert_ne!(new, from);
}

/// GRUB asks for a script that is made by then, while other transfers go on.
#[test]
fn a_script_that_is_made_when_asked_for() {
    let Some((net, appliance)) = lab(&["ip"]) else { return };
    let socket = net.socket("0.0.0.0:2070");
    for mode in ["octet", "netascii"] {
        let request = format!("\0\x01/grub/52:54:00:77:00:01.cfg\0{mode}\0");
        let script = fetch(&socket, request.as_bytes(), 1, &[]);
        let script = String::from_utf8(script).unwrap();
        assert!(script.contains("nothing to do for 52:54:00:77:00:01"), "{script}");
        assert_eq!(script.contains('\r'), mode == "netascii");
    }
    until("the transfers to be counted", || (appliance.count("tftp-complete") == 2).then_some(()));
    let (answer, _) = ask(&socket, SERVER.parse().unwrap(), b"\0\x01grub/52:54.cfg\0octet\0");
    assert_eq!(answer[..4], [0, 5, 0, 2]);
}

#[test]
fn blocks_fill_the_packets_of_the_interface() {
    let Some((net, _appliance)) = lab(&["ip"]) else { return };
    let socket = net.socket("0.0.0.0:2070");
    let agreed = |asked: &[u8]| {
        let request = [b"\0\x01f1\0octet\0", asked].concat();
        let (answer, from) = ask(&socket, SERVER.parse().unwrap(), &request);
        socket.send_to(b"\0\x05\0\0enough\0", from).unwrap();
        String::from_utf8_lossy(&answer[2..]).replace('\0', " ").trim_end().to_owned()
    };
    assert_eq!(agreed(b"blksize\x0065464\0windowsize\x0065535\0"), "blksize 1468 windowsize 64");
    assert_eq!(agreed(b"blksize\x0065535\0windowsize\x000\0"), "blksize 1468");
    assert_eq!(agreed(b"blksize\x001024\0timeout\x00255\0timeout\x00256\0tsize\0junk\0"), "blksize 1024");
    for (ns, link) in [(&net.server, "lab0"), (&net.client, "c0")] {
        run("ip", &["-n", ns, "link", "set", link, "mtu", "9000"]);
    }
    assert_eq!(agreed(b"blksize\x0065464\0windowsize\x0065535\0"), "blksize 8968 windowsize 14");
}

#[test]
fn hostile_requests_are_refused_or_counted() {
    let Some((net, appliance)) = lab(&["ip"]) else { return };
    let socket = net.socket("0.0.0.0:2070");
    let refused = [
        (&b"\0\x01../../etc/shadow\0octet\0"[..], 2),
        (b"\0\x01/etc/shadow\0octet\0", 2),
        (b"\0\x01//f1\0octet\0", 2),
        (b"\0\x01..\\..\\etc\\shadow\0octet\0", 2),
        (b"\0\x01nothing\0octet\0", 1),
        (b"\0\x01\0octet\0", 1),
        (b"\0\x01small\0/../../etc/shadow\0octet\0", 4),
        (b"\0\x02small\0octet\0", 4),
        (b"\0\x01small\0mail\0", 4),
    ];
    for (request, code) in refused {
        let (answer, from) = ask(&socket, SERVER.parse().unwrap(), request);
        assert_eq!((answer[1], answer[3], from.port()), (5, code, 69), "{request:?}");
        let text = String::from_utf8_lossy(&answer[4..]);
        assert!(!text.contains("etc"), "{text}");
    }
    until("the last refusal to be counted", || (appliance.count("tftp-refused") == refused.len() as u64).then_some(()));

    let nonsense = [
        &b""[..],
        b"\0",
        b"\0\x01",
        b"\0\x01small",
        b"\0\x01small\0octet",
        b"\0\x01\xff\xfe\0octet\0",
        b"\0\x03\0\x01data",
        b"\0\x04\0\x01",
        b"\0\x05\0\x01no\0",
        b"\xff\xff\xff\xff",
        &[0; 65_000],
    ];
    for packet in nonsense {
        socket.send_to(packet, SERVER).unwrap();
    }
    until("the nonsense to be counted", || (appliance.count("tftp-malformed") == nonsense.len() as u64).then_some(()));
    assert_eq!(fetch(&socket, b"\0\x01small\0octet\0", 1, &[]), b"hello\nworld", "and nothing came in answer to it");
}

/// Only the machine that asked can move its transfer, or end it.
#[test]
fn strangers_have_no_say() {
    let Some((net, appliance)) = lab(&["ip"]) else { return };
    net.client_address("10.77.0.10/16");
    let socket = net.socket("10.77.0.9:2070");
    let (_, from) = ask(&socket, SERVER.parse().unwrap(), b"\0\x01small\0octet\0blksize\x008\0");
    let strangers = ["10.77.0.9:2071", "10.77.0.10:2070"].map(|address| net.socket(address));
    for stranger in &strangers {
        stranger.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        for packet in [&[0, 4, 0, 0][..], b"\0\x05\0\0end\0"] {
            stranger.send_to(packet, from).unwrap();
        }
        assert!(receive(stranger, &mut [0; 600]).is_err(), "an answer to the wrong machine");
    }
    for (ack, data) in [(0, &b"\0\x03\0\x01hello\nwo"[..]), (1, b"\0\x03\0\x02rld")] {
        socket.send_to(&[0, 4, 0, ack], from).unwrap();
        assert_eq!(answer(&socket), (data.to_vec(), from));
    }
    socket.send_to(&[0, 4, 0, 2], from).unwrap();
    until("the transfer to be complete", || (appliance.count("tftp-complete") == 1).then_some(()));
}

/// 2,016 clients of 63 machines in the middle of a transfer, and one machine that asks without end.
#[test]
fn thousands_at_once_and_a_flood() {
    let Some((net, appliance)) = lab(&["ip"]) else { return };
    // Every address of it is one of this host.
    run("ip", &["-n", &net.client, "route", "add", "local", "10.77.128.0/24", "dev", "c0"]);
    let machines = |host: u8| SocketAddr::new(IpAddr::from([10, 77, 128, host]), 0);
    let clients: Vec<UdpSocket> = inside(&net.client, move || {
        (0..63 * 32).map(|n| UdpSocket::bind(machines((n / 32) as u8 + 1)).unwrap()).collect()
    });
    let server: SocketAddr = SERVER.parse().unwrap();
    let request = b"\0\x01small\0octet\0blksize\x008\0timeout\x0060\0";
    let answers: Vec<_> = clients
        .iter()
        .map(|client| {
            client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            ask(client, server, request)
        })
        .collect();
    assert_eq!(appliance.count("tftp-transfer"), clients.len() as u64, "all open");

    // One more machine gets its 32 and no more.
    let flood: Vec<UdpSocket> =
        inside(&net.client, || (0..200).map(|_| UdpSocket::bind("10.77.0.9:0").unwrap()).collect());
    for _ in 0..10 {
        flood.iter().for_each(|socket| _ = socket.send_to(request, server).unwrap());
    }
    until("the flood to be counted", || (appliance.count("tftp-busy") == 10 * (200 - 32)).then_some(()));
    assert_eq!(appliance.count("tftp-transfer"), clients.len() as u64 + 32);

    for (client, (_, from)) in clients.iter().zip(answers) {
        for (ack, data) in [(0, &b"\0\x03\0\x01hello\nwo"[..]), (1, b"\0\x03\0\x02rld")] {
            client.send_to(&[0, 4, 0, ack], from).unwrap();
            assert_eq!(answer(client), (data.to_vec(), from));
        }
        client.send_to(&[0, 4, 0, 2], from).unwrap();
    }
    until("the transfers to be complete", || (appliance.count("tftp-complete") == clients.len() as u64).then_some(()));
}
