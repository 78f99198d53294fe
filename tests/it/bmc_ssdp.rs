//! BMCs found by SSDP in network namespaces: a Redfish service and a responder beside it, which also plays those who lie.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use rackline::bmc::discover::{self, Found, Range, Search};
use rackline::error::Result;

use crate::net::{Net, can_run, inside};

const BMC: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 7);
const SERVICE: &str = "urn:dmtf-org:service:redfish-rest:1";

fn ask(net: &Net, networks: &[Range], port: u16) -> Result<Vec<Found>> {
    let networks = networks.to_vec();
    inside(&net.server, move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let search = Search { redfish_port: port, ..Search::default() };
        runtime.block_on(discover::announced(&networks, search))
    })
}

/// Answers each search with all of these addresses; what it was asked first comes back.
fn responder(net: &Net, answers: Vec<String>) -> std::sync::mpsc::Receiver<String> {
    let (first, asked) = std::sync::mpsc::channel();
    let socket = inside(&net.client, || {
        let socket = UdpSocket::bind("0.0.0.0:1900").unwrap();
        socket.join_multicast_v4(&Ipv4Addr::new(239, 255, 255, 250), &BMC).unwrap();
        socket
    });
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = crate::net::receive(&socket, &mut buffer) {
            let _ = first.send(String::from_utf8_lossy(&buffer[..length]).into_owned());
            for answer in &answers {
                socket.send_to(answer.as_bytes(), from).unwrap();
            }
        }
    });
    asked
}

#[test]
fn bmcs_answer_ssdp_and_nobody_sends_us_elsewhere() {
    if !can_run(&["ip"]) {
        return;
    }
    let net = Net::new();
    net.client_address("10.77.1.7/16");
    // A second service, at an address that answers name and that nobody asked about.
    net.client_address("192.0.2.9/24");
    let (ready, started) = std::sync::mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let client = net.client.clone();
    let bmcs = std::thread::spawn(move || {
        inside(&client, move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
                let redfish = rackline::lab::redfish::start(any).await.unwrap();
                ready.send(redfish.server.address.port()).unwrap();
                let _ = stopped.await;
            });
        });
    });
    let port = started.recv().unwrap();
    let answer =
        |st: &str, al: &str| format!("HTTP/1.1 200 OK\r\nST:{st}\r\nUSN:uuid:1::{st}\r\nAL:{al}\r\nEXT:\r\n\r\n");
    let asked = responder(
        &net,
        vec![
            "garbage".into(),
            answer(SERVICE, "https://192.0.2.9/redfish/v1/"),
            answer("upnp:rootdevice", "https://10.77.1.8/"),
            // Nobody there.
            answer(SERVICE, "https://10.77.1.9/redfish/v1/"),
            // The port of a stranger is not ours to knock at.
            answer(&format!("{SERVICE}:6"), "https://10.77.1.7:9/redfish/v1/"),
        ],
    );
    let lab = Range::between(Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 255, 254));
    let found = ask(&net, &[lab], port).unwrap();
    let [found] = found.as_slice() else { panic!("{found:?}") };
    assert!(found.address == BMC && found.redfish.is_some(), "{found:?}");
    let question = asked.recv().unwrap();
    for word in ["M-SEARCH * HTTP/1.1\r\n", "MAN: \"ssdp:discover\"\r\n", &format!("ST: {SERVICE}\r\n"), "MX: 2\r\n"] {
        assert!(question.contains(word), "{question}");
    }
    // A network of others is not asked at all.
    let away = Range::between(Ipv4Addr::new(10, 78, 0, 1), Ipv4Addr::new(10, 78, 0, 254));
    assert_eq!(ask(&net, &[away], port).unwrap_err().code(), "bmc.ssdp");
    drop(stop);
    bmcs.join().unwrap();
}
