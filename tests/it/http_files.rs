//! The machines' web server against curl and raw sockets, on the loopback: what is right, what is wrong, and who is slow.
//! What the appliance's own pages answer is for `boot.rs` and `loader.rs`.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::http::StatusCode;
use axum::routing::any;
use rackline::httpd::{self, Counters, Event, Limits, Server};
use tokio_util::sync::CancellationToken;

/// Not a multiple of anything that is sent at once.
const SIZE: usize = (5 << 20) + 4321;
/// Longer than a server may need for anything here, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// `kernel` is served as `vmlinuz`, an empty file as `empty`, a loader as `snponly.efi`; once by the server, and once by the
/// router alone.
struct Appliance {
    dir: tempfile::TempDir,
    content: Vec<u8>,
    /// The server.
    address: SocketAddr,
    /// The router behind it, asked without it.
    router: SocketAddr,
    counters: Arc<Counters>,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Appliance {
    fn start(limits: Limits) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut content = vec![0; SIZE];
        blake3::Hasher::new().update(b"rackline http").finalize_xof().fill(&mut content);
        let mut files = HashMap::new();
        for (name, file, bytes) in
            [("vmlinuz", "kernel", content.as_slice()), ("empty", "empty", b""), ("snponly.efi", "snponly.efi", b"MZ")]
        {
            std::fs::write(dir.path().join(file), bytes).unwrap();
            files.insert(format!("/boot/files/{name}"), dir.path().join(file));
        }
        let routed = files.clone();
        let file = async move |request: Request| match routed.get(request.uri().path()) {
            Some(path) => httpd::respond(&request, path),
            None => httpd::text(request.method(), StatusCode::NOT_FOUND, "no such boot file\n"),
        };
        let who = async |ConnectInfo(peer): ConnectInfo<SocketAddr>, body: String| format!("{} {body}", peer.ip());
        let router = Router::new().route("/boot/files/{name}", any(file)).route("/who", any(who));
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let counters = Arc::<Counters>::default();
        let find = move |path: &str| files.get(path).cloned();
        let server = Server::new(find, router.clone(), limits, counters.clone(), stop.clone());
        let (ready, started) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let any = (Ipv4Addr::LOCALHOST, 0);
                let listener = tokio::net::TcpListener::bind(any).await.unwrap();
                let plain = tokio::net::TcpListener::bind(any).await.unwrap();
                ready.send((listener.local_addr().unwrap(), plain.local_addr().unwrap())).unwrap();
                let routed = axum::serve(plain, router.into_make_service_with_connect_info::<SocketAddr>())
                    .with_graceful_shutdown(stopped.cancelled_owned());
                tokio::spawn(async move { routed.await.unwrap() });
                server.run(listener).await;
            });
        });
        let (address, router) = started.recv().unwrap();
        Self { dir, content, address, router, counters, stop, thread: Some(thread) }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("kernel")
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn curl(&self, args: &[&str]) -> Vec<u8> {
        let output =
            Command::new("curl").args(["-sS", "--path-as-is", "--max-time", "60"]).args(args).output().unwrap();
        output.stdout
    }

    fn status(&self, args: &[&str]) -> String {
        let out = self.dir.path().join("out");
        let ask = ["-o", out.to_str().unwrap(), "-w", "%{http_code} %{num_connects}"];
        String::from_utf8(self.curl(&[&ask, args].concat())).unwrap()
    }

    fn client(&self) -> Client {
        Client::to(self.address)
    }

    fn until(&self, event: Event, count: u64) {
        until(event.name(), || self.counters.get(event) >= count);
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

fn until(what: &str, mut there: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !there() {
        assert!(Instant::now() < end, "no {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A client that says exactly what it is told to.
struct Client(TcpStream);

#[derive(Debug, PartialEq)]
struct Response {
    status: u16,
    /// Sorted, without those that belong to the connection.
    headers: Vec<String>,
    body: Vec<u8>,
    closes: bool,
}

impl Client {
    fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    fn say(&mut self, text: impl AsRef<[u8]>) -> &mut Self {
        // A server that already refused may not read the rest.
        let _ = self.0.write_all(text.as_ref());
        self
    }

    /// One response to anything but HEAD.
    fn hear(&mut self) -> Response {
        self.response(true)
    }

    fn response(&mut self, body: bool) -> Response {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap_or_else(|e| panic!("{e} after {:?}", String::from_utf8_lossy(&head)));
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers: Vec<String> = lines.map(str::to_owned).collect();
        let length = headers.iter().find_map(|h| h.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
        let closes = headers.contains(&"connection: close".to_owned());
        assert_eq!(
            headers.iter().filter(|h| h.starts_with("date: ")).count(),
            usize::from(status != 503),
            "{headers:?}"
        );
        headers.retain(|h| !h.starts_with("date: ") && !h.starts_with("connection: "));
        headers.sort();
        let mut bytes = vec![0; if body { length } else { 0 }];
        self.0.read_exact(&mut bytes).unwrap();
        Response { status, headers, body: bytes, closes }
    }

    /// Whether the server ended the connection, as it should.
    fn ended(&mut self) -> bool {
        loop {
            match self.0.read(&mut [0; 16]) {
                Ok(n) => return n == 0,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return e.kind() == ErrorKind::ConnectionReset,
            }
        }
    }
}

impl Response {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|h| h.strip_prefix(name)?.strip_prefix(": "))
    }
}

#[test]
fn curl_gets_files_ranges_and_the_rest_of_a_broken_download() {
    let a = Appliance::start(Limits::default());
    let url = a.url("/boot/files/vmlinuz");
    assert!(a.curl(&[&url]) == a.content);
    assert!(a.curl(&["--http1.0", &url]) == a.content);
    let head = String::from_utf8(a.curl(&["-I", &url])).unwrap().to_lowercase();
    assert!(
        head.contains(&format!("content-length: {SIZE}\r\n")) && head.contains("accept-ranges: bytes\r\n"),
        "{head}"
    );
    for (range, from, to) in
        [("0-0", 0, 1), ("7-4194311", 7, 4_194_312), ("5000000-", 5_000_000, SIZE), ("-9", SIZE - 9, SIZE)]
    {
        assert!(a.curl(&["-r", range, &url]) == a.content[from..to], "{range}");
    }
    let part = a.dir.path().join("part");
    std::fs::write(&part, &a.content[..3_000_001]).unwrap();
    a.curl(&["-C", "-", "-o", part.to_str().unwrap(), &url]);
    assert!(std::fs::read(&part).unwrap() == a.content);
    // One connection for all of them, as iPXE has it.
    let out = ["-o", "/dev/null", "-o", "/dev/null", "-o", "/dev/null", "-w", "%{http_code} %{num_connects}\n"];
    let codes = a.curl(&[&out[..], &["-r", "0-99", &url, &url, &url]].concat());
    assert_eq!(String::from_utf8(codes).unwrap(), "206 1\n206 0\n206 0\n");
    assert_eq!(a.counters.get(Event::Router), 0);
}

#[test]
fn curl_asks_only_for_what_changed() {
    let a = Appliance::start(Limits::default());
    let url = a.url("/boot/files/vmlinuz");
    let (tags, out) = (a.dir.path().join("tag"), a.dir.path().join("kept"));
    let (tags, out) = (tags.to_str().unwrap(), out.to_str().unwrap());
    let ask = ["--etag-save", tags, "--etag-compare", tags, "-o", out, "-w", "%{http_code}", &url];
    assert_eq!(a.curl(&ask), b"200");
    assert_eq!(a.curl(&ask), b"304");
    assert_eq!(a.curl(&["-z", out, "-o", "/dev/null", "-w", "%{http_code}", &url]), b"304");
    let tag = std::fs::read_to_string(tags).unwrap().trim().to_owned();
    let rest = |tag: &str| a.status(&["-r", "5-9", "-H", &format!("If-Range: {tag}"), &url]);
    assert_eq!(rest(&tag), "206 1");

    // Replaced as a package manager does it: another file under the same name.
    std::fs::write(a.dir.path().join("new"), b"new kernel").unwrap();
    std::fs::rename(a.dir.path().join("new"), a.file()).unwrap();
    assert_eq!(rest(&tag), "200 1");
    assert_eq!(a.curl(&ask), b"200");
    assert_eq!(std::fs::read(out).unwrap(), b"new kernel");
    std::fs::remove_file(a.file()).unwrap();
    assert_eq!(a.status(&[&url]), "404 1");
}

#[test]
fn the_server_and_the_router_give_the_same_answers() {
    let a = Appliance::start(Limits::default());
    let tag = a.client().say("GET /boot/files/vmlinuz HTTP/1.1\r\nHost: a\r\n\r\n").hear();
    let (tag, modified) = (tag.header("etag").unwrap().to_owned(), tag.header("last-modified").unwrap().to_owned());
    let tagged = |name: &str| format!("{name}: {tag}\r\n");
    let dated = |name: &str| format!("{name}: {modified}\r\n");
    const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    let cases: Vec<(&str, String, u16)> = vec![
        ("GET", String::new(), 200),
        ("HEAD", String::new(), 200),
        ("HEAD", "Range: bytes=0-5\r\n".into(), 200),
        ("GET", "Range: bytes=0-5\r\n".into(), 206),
        ("GET", "Range: bytes=-5\r\n".into(), 206),
        ("GET", "Range: bytes=1-99999999999999999999999999\r\n".into(), 206),
        ("GET", "Range: bytes=99999999999999999999999999-\r\n".into(), 416),
        ("GET", format!("Range: bytes={SIZE}-\r\n"), 416),
        ("GET", "Range: bytes=5-2\r\n".into(), 416),
        ("GET", "Range: bytes=x\r\n".into(), 416),
        ("GET", "Range: bytes=0-1,4-5\r\n".into(), 200),
        ("GET", "Range: bytes=0-1\r\nRange: bytes=4-5\r\n".into(), 200),
        ("GET", "Range: lines=0-1\r\n".into(), 200),
        ("GET", tagged("If-None-Match"), 304),
        ("HEAD", tagged("If-None-Match"), 304),
        ("GET", format!("If-None-Match: \"a\", W/{tag}\r\n"), 304),
        ("GET", "If-None-Match: *\r\n".into(), 304),
        ("GET", format!("If-None-Match: \"a\"\r\n{}", dated("If-Modified-Since")), 200),
        ("GET", dated("If-Modified-Since"), 304),
        ("GET", format!("If-Modified-Since: {OLD}\r\n"), 200),
        ("GET", "If-Modified-Since: yesterday\r\n".into(), 200),
        ("GET", tagged("If-Match"), 200),
        ("GET", format!("If-Match: W/{tag}\r\n"), 412),
        ("GET", format!("If-Unmodified-Since: {OLD}\r\n"), 412),
        ("GET", dated("If-Unmodified-Since"), 200),
        ("GET", format!("Range: bytes=0-5\r\n{}", tagged("If-Range")), 206),
        ("GET", format!("Range: bytes=0-5\r\nIf-Range: W/{tag}\r\n"), 200),
        ("GET", format!("Range: bytes=0-5\r\nIf-Range: {OLD}\r\n"), 200),
        ("POST", String::new(), 405),
        ("OPTIONS", String::new(), 405),
    ];
    for (method, lines, status) in cases {
        for name in ["vmlinuz", "empty", "snponly.efi"] {
            let request =
                format!("{method} /boot/files/{name} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{lines}\r\n");
            let ask = |address| Client::to(address).say(&request).response(method != "HEAD");
            let (ours, routers) = (ask(a.address), ask(a.router));
            assert_eq!(ours.status, routers.status, "{request}");
            assert_eq!(ours.headers, routers.headers, "{request}");
            assert!(ours == routers, "the bodies differ: {request}");
            if name == "vmlinuz" {
                assert_eq!(ours.status, status, "{request}");
            }
        }
    }
    let headers = |name: &str| a.client().say(format!("GET {name} HTTP/1.1\r\nHost: a\r\n\r\n")).hear();
    assert_eq!(headers("/boot/files/snponly.efi").header("content-type"), Some("application/efi"));
    let unmet = a.client().say("GET /boot/files/vmlinuz HTTP/1.1\r\nHost: a\r\nRange: bytes=9-1\r\n\r\n").hear();
    assert_eq!(unmet.header("content-range"), Some(format!("bytes */{SIZE}").as_str()));
    assert_eq!(unmet.body, b"the file has no such range of bytes\n");
}

#[test]
fn ipxe_waits_for_its_turn_and_nobody_waits_for_ever() {
    const PLACE: Duration = Duration::from_secs(2);
    let a = Appliance::start(Limits { downloads: 1, place: PLACE, ..Limits::default() });
    let kernel = |agent: &str| format!("GET /boot/files/vmlinuz HTTP/1.1\r\nHost: a\r\nUser-Agent: {agent}\r\n\r\n");
    let start = Instant::now();
    // It asks and takes nothing, so it has the only place until that is taken from it.
    let mut slow = a.client();
    slow.say(kernel("iPXE/1.21.1"));
    let mut next = a.client();
    a.until(Event::Connection, 1);
    std::thread::sleep(Duration::from_millis(200));
    next.say(kernel("iPXE/1.21.1"));
    a.until(Event::Queued, 1);
    assert!(
        a.client().say(kernel("UefiHttpBoot/1.0")).hear().body == a.content,
        "firmware that gives up soon is not kept"
    );
    let small = "GET /boot/files/snponly.efi HTTP/1.1\r\nHost: a\r\nUser-Agent: iPXE/1.21.1\r\n\r\n";
    assert_eq!(a.client().say(small).hear().body, b"MZ");
    a.until(Event::Sent, 2);
    assert!(next.hear().body == a.content);
    assert!(start.elapsed() >= PLACE && a.counters.get(Event::Queued) == 1);
    assert!(slow.hear().body == a.content, "it goes on beside the others");
}

#[test]
fn many_requests_in_one_packet_are_answered_in_their_order() {
    let a = Appliance::start(Limits::default());
    let mut client = a.client();
    let range = |from, to| format!("GET /boot/files/vmlinuz HTTP/1.1\r\nHost: a\r\nRange: bytes={from}-{to}\r\n\r\n");
    let all = [
        "\r\nHEAD /boot/files/vmlinuz HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        range(3_000_000, 5_000_000),
        range(9, 1),
        range(0, 9),
        "GET http://a/boot/files/snponly.efi?x=1 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET /boot/files/empty HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n".to_owned(),
        "POST /who HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
        "HEAD /who HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        range(1, 3),
    ]
    .concat();
    client.say(all);
    assert_eq!(client.response(false).status, 200);
    assert!(client.hear().body == a.content[3_000_000..=5_000_000]);
    assert_eq!(client.hear().status, 416);
    assert_eq!(client.hear().body, a.content[..=9]);
    assert_eq!(client.hear().body, b"MZ");
    let empty = client.hear();
    assert_eq!((empty.status, empty.closes), (200, false));
    // From here on the router answers, which knows the client too; a file there is the last one.
    let who = client.hear();
    assert_eq!((who.body.as_slice(), who.closes), (b"127.0.0.1 hello".as_slice(), false));
    assert_eq!(client.response(false).status, 200);
    let last = client.hear();
    assert_eq!((last.body.as_slice(), last.closes), (&a.content[1..=3], true));
    assert!(client.ended());
    assert_eq!((a.counters.get(Event::Connection), a.counters.get(Event::Router)), (1, 3));
}

#[test]
fn a_request_in_small_pieces_is_a_request() {
    let a = Appliance::start(Limits::default());
    let mut client = a.client();
    client.0.set_nodelay(true).unwrap();
    for byte in b"GET /boot/files/snponly.efi HTTP/1.1\r\nHost: a\r\n\r\n" {
        client.say([*byte]);
    }
    assert_eq!(client.hear().body, b"MZ");
    // And one that a router answers, with content behind the head.
    client.say("POST /who HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe").say("llo");
    assert_eq!(client.hear().body, b"127.0.0.1 hello");
}

#[test]
fn when_a_connection_ends() {
    let a = Appliance::start(Limits::default());
    let file = "/boot/files/snponly.efi";
    for (request, status) in [
        (format!("GET {file} HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n"), 200),
        (format!("GET {file} HTTP/1.0\r\n\r\n"), 200),
        // Content is not read, so whatever stands in it is no request.
        (format!("POST {file} HTTP/1.1\r\nHost: a\r\nContent-Length: 44\r\n\r\nGET {file} HTTP/1.1\r\n"), 405),
        (format!("GET {file} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 200),
        (format!("GET {file} HTTP/1.1\r\n\r\n"), 400),
        (format!("GET {file} HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), 400),
        (format!("GET {file} HTTP/1.1\r\nHost : a\r\n\r\n"), 400),
        (format!("GET {file} HTTP/2.0\r\nHost: a\r\n\r\n"), 505),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 505),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03 a TLS client\r\n\r\n".into(), 400),
        (format!("GET {file} HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(100 << 10)), 431),
        (format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(100 << 10)), 431),
        (format!("GET {file} HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(101)), 431),
    ] {
        let mut client = a.client();
        let response = client.say(&request).hear();
        assert_eq!((response.status, response.closes), (status, true), "{request:.200}");
        assert!(status == 200 || response.body.ends_with(b"\n"), "{response:?}");
        assert!(client.ended(), "{request:.200}");
    }
    assert_eq!((a.counters.get(Event::Malformed), a.counters.get(Event::HeadTooLong)), (6, 3));
}

#[test]
fn a_request_never_becomes_a_path() {
    let a = Appliance::start(Limits::default());
    for name in [
        "/boot/files/../../etc/shadow",
        "/boot/files/../../../../../../../../etc/shadow",
        "/boot/files//etc/shadow",
        "/boot/files/%2e%2e%2f%2e%2e%2fetc%2fshadow",
        "/boot/files/..%2fkernel",
        "/boot/files/kernel",
        "/boot/files/vmlinuz%00",
        "/boot/files/vmlinuz%00.efi",
        "/boot/files/vmlinuz/",
        "/boot/files/vmlinuz/..",
        "/boot/files/",
        "/boot/files",
        "/../etc/shadow",
        "/boot/files/./vmlinuz",
    ] {
        let code = a.status(&[&a.url(name)]);
        assert_eq!(code, "404 1", "{name}");
        assert!(a.status(&["-I", &a.url(name)]).starts_with("404"), "{name}");
        assert!(!std::fs::read_to_string(a.dir.path().join("out")).unwrap().contains("root:"), "{name}");
    }
    let raw = a.client().say(b"GET /boot/files/vmlinuz\0 HTTP/1.1\r\nHost: a\r\n\r\n").hear();
    assert_eq!(raw.status, 400);
    let header = format!("X: {}", "x".repeat(100 << 10));
    assert_eq!(a.status(&["-H", &header, &a.url("/boot/files/vmlinuz")]), "431 1");
    assert_eq!(a.status(&[&a.url("/boot/files/vmlinuz")]), "200 1");
}

#[test]
fn slow_clients_are_given_up_and_others_do_not_wait_for_them() {
    let short = Duration::from_millis(400);
    let a = Appliance::start(Limits { head: short, idle: short, write: short, ..Limits::default() });
    // Larger than what the kernel takes for a client that reads nothing.
    std::fs::File::options().write(true).open(a.file()).unwrap().set_len(64 << 20).unwrap();
    let get = "GET /boot/files/vmlinuz HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut deaf = a.client();
    deaf.say(get);
    let mut silent = a.client();
    let mut kept = [a.client(), a.client()];
    for (client, path) in kept.iter_mut().zip(["/boot/files/empty", "/who"]) {
        assert_eq!(client.say(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).hear().status, 200);
    }
    // A byte now and then does not prolong anything.
    let mut dripping = a.client();
    let drip = dripping.0.try_clone().unwrap();
    let drip = std::thread::spawn(move || {
        let slowly = |byte: &u8| {
            std::thread::sleep(Duration::from_millis(100));
            (&drip).write_all(&[*byte])
        };
        get.as_bytes().iter().try_for_each(slowly)
    });
    assert!(a.curl(&["-r", "0-4999999", &a.url("/boot/files/vmlinuz")]) == a.content[..5_000_000]);
    let answer = dripping.hear();
    assert_eq!((answer.status, answer.closes), (408, true));
    assert!(silent.ended() && kept.iter_mut().all(Client::ended));
    a.until(Event::WriteTimeout, 1);
    a.until(Event::Idle, 3);
    assert_eq!(a.counters.get(Event::HeadTimeout), 1);
    let mut taken = Vec::new();
    let _ = deaf.0.read_to_end(&mut taken);
    assert!(taken.len() < 64 << 20, "a download that was given up is not whole");
    drop(dripping);
    let _ = drip.join().unwrap();
}

#[test]
fn no_more_connections_than_allowed() {
    let a = Appliance::start(Limits { connections: 6, of_one_client: 4, ..Limits::default() });
    let get = "GET /boot/files/snponly.efi HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut held: Vec<Client> = (0..4).map(|_| a.client()).collect();
    for client in &mut held {
        assert_eq!(client.say(get).hear().status, 200);
    }
    let refused = |from: &str| {
        let out = a.curl(&["--interface", from, "-w", " %{http_code}", &a.url("/boot/files/snponly.efi")]);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(refused("127.0.0.1"), "there are too many connections: try again in a while\n 503");
    assert_eq!(refused("127.0.0.2"), "MZ 200");
    assert_eq!(a.counters.get(Event::ClientBusy), 1);
    let local = |last| SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0));
    let connect = |last| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&local(last).into()).unwrap();
        socket.connect(&a.address.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client(stream)
    };
    for last in [3, 4] {
        // The place of a client that has just gone may still be taken.
        until("a place", || {
            let mut client = connect(last);
            let taken = client.say(get).hear().status == 200;
            held.push(client);
            taken
        });
    }
    assert!(refused("127.0.0.5").ends_with("503"));
    a.until(Event::Busy, 1);
    // Places are given back.
    drop(held);
    until("a place", || refused("127.0.0.1").ends_with("200"));
}

#[test]
fn files_that_are_not_in_memory_are_read_from_disk_first() {
    let a = Appliance::start(Limits::default());
    let file = std::fs::File::open(a.file()).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let now = rustix::io::ReadWriteFlags::NOWAIT;
    let probe = rustix::io::preadv2(&file, &mut [std::io::IoSliceMut::new(&mut [0])], SIZE as u64 - 1, now);
    let gone = probe == Err(rustix::io::Errno::AGAIN);
    assert!(a.curl(&[&a.url("/boot/files/vmlinuz")]) == a.content);
    // A file system in memory has nothing to read.
    assert_eq!(a.counters.get(Event::Cold) > 0, gone, "{:?}", a.counters.snapshot());
}

#[test]
fn a_file_that_is_cut_short_ends_the_connection() {
    let a = Appliance::start(Limits::default());
    let file = std::fs::File::options().write(true).open(a.file()).unwrap();
    file.set_len(64 << 20).unwrap();
    let mut client = a.client();
    client.say("GET /boot/files/vmlinuz HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut start = [0; 1000];
    client.0.read_exact(&mut start).unwrap();
    file.set_len(1 << 20).unwrap();
    let mut rest = Vec::new();
    let _ = client.0.read_to_end(&mut rest);
    assert!(rest.len() < 64 << 20);
    a.until(Event::FileFailed, 1);
}

#[test]
fn the_stop_ends_what_is_idle_at_once_and_the_rest_soon() {
    let mut a = Appliance::start(Limits::default());
    std::fs::File::options().write(true).open(a.file()).unwrap().set_len(64 << 20).unwrap();
    let mut kept = [a.client(), a.client()];
    for (client, path) in kept.iter_mut().zip(["/boot/files/snponly.efi", "/who"]) {
        assert_eq!(client.say(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).hear().status, 200);
    }
    let mut deaf = a.client();
    deaf.say("GET /boot/files/vmlinuz HTTP/1.1\r\nHost: a\r\n\r\n");
    a.until(Event::Connection, 3);
    let started = Instant::now();
    a.stop.cancel();
    assert!(kept.iter_mut().all(Client::ended));
    a.thread.take().unwrap().join().unwrap();
    assert!(started.elapsed() < Duration::from_secs(20), "the grace is 2 s");
    let mut taken = Vec::new();
    let _ = deaf.0.read_to_end(&mut taken);
    assert!(TcpStream::connect(a.address).is_err());
}
