//! BitTorrent clients that others wrote, in network namespaces, against the appliance's tracker and seeder: they get the
//! image's data file, and from one another where the appliance gives nothing. And announces that are not true.
//!
//! ```text
//! c0 10.77.0.21 ─── lab0 10.77.0.1  appliance  lab1 10.78.0.1 ─── d0 10.78.0.22
//! ```

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use rackline::api;
use rackline::httpd::{Limits, Server};
use rackline::image::{Library, SigningKey};
use rackline::swarm::torrent::{Metainfo, Settings, Torrents};
use tokio_util::sync::CancellationToken;

use crate::fixture::{Image, noise};
use crate::net::{Net, Running, can_run, command_in, inside, run, until};

/// Not a multiple of a piece.
const SIZE: usize = (24 << 20) + 8192;

struct Site {
    net: Net,
    far: String,
    torrents: Arc<Torrents>,
    image: rackline::image::Entry,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// A library of one image, whose data does not compress.
fn library(folder: &Path) -> Library {
    let folder = folder.join("images");
    let key = SigningKey::generate().unwrap();
    let image = Image::pack("kvm", &noise("rackline torrent", SIZE), 1 << 20, &key).store(&folder);
    // As the seeder finds it where images are not its own: it must not need to write.
    let mut only_read = fs::metadata(image.join("disk.zst")).unwrap().permissions();
    only_read.set_readonly(true);
    fs::set_permissions(image.join("disk.zst"), only_read).unwrap();
    Library::open(&folder, &[key.public()]).unwrap()
}

impl Site {
    fn new() -> Self {
        let mut net = Net::new();
        let far = net.namespace("f");
        let server = net.server.as_str();
        run("ip", &["-n", server, "link", "add", "lab1", "type", "veth", "peer", "name", "d0", "netns", &far]);
        run("ip", &["-n", server, "addr", "add", "10.78.0.1/24", "dev", "lab1"]);
        run("ip", &["-n", &far, "addr", "add", "10.78.0.22/24", "dev", "d0"]);
        for (ns, link) in [(server, "lab1"), (far.as_str(), "d0")] {
            run("ip", &["-n", ns, "link", "set", link, "up"]);
        }
        net.client_address("10.77.0.21/16");
        run("ip", &["-n", &net.client, "route", "add", "default", "via", "10.77.0.1"]);
        run("ip", &["-n", &far, "route", "add", "default", "via", "10.78.0.1"]);
        inside(server, || fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());

        let library = Arc::new(library(&net.path("cache")));
        let image = library.current().images[0].clone();
        let settings = Settings { port: 6881, rate: None };
        let served = |ip: IpAddr| ["10.77.", "10.78."].iter().any(|network| ip.to_string().starts_with(network));
        let torrents = Arc::new(Torrents::new(library, "http://10.77.0.1", settings, served));
        let (stop, serving, ns) = (CancellationToken::new(), torrents.clone(), net.server.clone());
        let stopped = stop.clone();
        let (ready, started) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            inside(&ns, move || {
                // Its workers are made by this thread, and so are in its namespace.
                let runtime =
                    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
                runtime.block_on(async {
                    let listener = tokio::net::TcpListener::bind("0.0.0.0:80").await.unwrap();
                    let router = api::torrent::router(serving);
                    let server = Server::new(|_: &str| None, router, Limits::default(), Default::default(), stopped);
                    ready.send(()).unwrap();
                    server.run(listener).await;
                });
                runtime.shutdown_background();
            });
        });
        started.recv().unwrap();
        Self { net, far, torrents, image, stop, thread: Some(thread) }
    }

    fn counted(&self) -> HashMap<&'static str, u64> {
        self.torrents.snapshot().into_iter().collect()
    }

    fn curl(&self, args: &[&str]) -> Vec<u8> {
        let output = self.net.client("curl", &["-sS", "--max-time", "30"]).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// The `.torrent`, as a client fetches it.
    fn torrent(&self) -> PathBuf {
        let path = self.net.path("kvm-1.torrent");
        let url = format!("http://10.77.0.1/images/{}/torrent", self.image.digest);
        self.curl(&["-f", "-o", path.to_str().unwrap(), &url]);
        path
    }

    /// aria2c with this folder; it goes on giving what it has until it is dropped.
    fn aria2c(&self, ns: &str, folder: &str) -> (Running, PathBuf) {
        let folder = self.net.path(folder);
        let mut command = command_in(ns, "aria2c", &["--no-conf", "--enable-dht=false", "--bt-enable-lpd=false"]);
        command.args(["--file-allocation=none", "--seed-ratio=0", "--summary-interval=0", "--listen-port=6882"]);
        command.arg("--dir").arg(&folder).arg(self.torrent()).env("HOME", self.net.path("home"));
        let running = Running(command.stdout(Stdio::null()).spawn().unwrap());
        (running, folder.join("kvm-1.zst"))
    }

    /// Until a client has all of it, and has said so to the tracker.
    fn complete(&self, file: &Path, clients: u64) {
        until("the client to have everything", || {
            (self.counted()["torrent-complete-clients"] >= clients).then_some(())
        });
        assert!(fs::read(file).unwrap() == fs::read(&self.image.data).unwrap(), "{} differs", file.display());
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn clients_get_the_image_from_the_appliance_and_from_one_another() {
    if !can_run(&["ip", "nft", "curl", "aria2c"]) {
        return;
    }
    let site = Site::new();
    let length = site.image.manifest.data_size;
    let sockets = || command_in(&site.net.server, "ss", &["-ltnH", "sport = :6881"]).output().unwrap().stdout;
    assert!(sockets().is_empty(), "nobody has asked yet");
    let (_first, file) = site.aria2c(&site.net.client, "first");
    site.complete(&file, 1);
    assert!(!sockets().is_empty());
    assert!((length..length + (1 << 20)).contains(&site.counted()["torrent-bytes"]), "{:?}", site.counted());

    // From now on the appliance gives nothing.
    let closed = "add table inet t; add chain inet t in { type filter hook input priority 0; }; \
                  add rule inet t in tcp dport 6881 drop";
    run("ip", &["netns", "exec", &site.net.server, "nft", closed]);
    let given = site.counted()["torrent-bytes"];
    let (_second, file) = site.aria2c(&site.far, "second");
    site.complete(&file, 2);
    assert_eq!(site.counted()["torrent-bytes"], given, "all of it came from the first client");
    assert!(site.counted()["torrent-announce"] >= 4, "{:?}", site.counted());
}

#[test]
fn transmission_gets_the_image() {
    if !can_run(&["ip", "curl", "transmission-cli"]) {
        return;
    }
    let site = Site::new();
    let (torrent, folder) = (site.torrent(), site.net.path("transmission"));
    fs::create_dir(&folder).unwrap();
    // With uTP on, version 3.00 tries that first, breaks off the TCP connection that it makes after it, and is silent for a
    // quarter of an hour. The seeder speaks TCP.
    fs::create_dir(site.net.path("config")).unwrap();
    fs::write(site.net.path("config").join("settings.json"), r#"{"utp-enabled": false}"#).unwrap();
    let mut command = command_in(&site.far, "transmission-cli", &["-M", "-p", "6883"]);
    command.arg("-g").arg(site.net.path("config")).arg("-w").arg(&folder).arg(torrent).env("HOME", &folder);
    let _running = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    site.complete(&folder.join("kvm-1.zst"), 1);
}

#[test]
fn announces_that_are_not_true_are_refused_and_counted() {
    if !can_run(&["ip", "curl"]) {
        return;
    }
    let site = Site::new();
    let hash: String = Metainfo::of(&site.image).unwrap().info_hash.0.iter().map(|b| format!("%{b:02x}")).collect();
    let length = site.image.manifest.data_size;
    run("ip", &["-n", &site.net.client, "addr", "add", "10.99.0.1/32", "dev", "lo"]);
    run("ip", &["-n", &site.net.server, "route", "add", "10.99.0.1", "via", "10.77.0.21"]);
    let ask = |query: &str, from: &str| {
        let url = format!("http://10.77.0.1/announce?{query}");
        String::from_utf8_lossy(&site.curl(&["--interface", from, &url])).into_owned()
    };
    let good = format!("info_hash={hash}&peer_id=-XX0001-abcdefghijkl&port=7001&uploaded=0&downloaded=0&left={length}");
    let reply = ask(&format!("{good}&ip=10.77.9.9&event=started"), "10.77.0.21");
    assert!(reply.contains("8:completei1e10:incompletei1e") && reply.contains("5:peers6:"), "{reply}");
    for (from, to, name) in [
        ("port=7001", "port=22", "torrent-forged-port"),
        ("port=7001", "port=0", "torrent-forged-port"),
        (&*format!("left={length}"), &*format!("left={}", length + 1), "torrent-forged-size"),
        (&*format!("left={length}"), "left=5&event=completed", "torrent-forged-size"),
        (&*hash, &*"%aa".repeat(20), "torrent-unknown"),
        ("port=7001", "port=7001&port=7002", "torrent-malformed"),
    ] {
        let before = site.counted()[name];
        let reply = ask(&good.replace(from, to), "10.77.0.21");
        assert!(reply.starts_with("d14:failure reason"), "{to}: {reply}");
        assert_eq!(site.counted()[name], before + 1, "{to}");
    }
    let reply = ask(&good, "10.99.0.1");
    assert!(reply.starts_with("d14:failure reason"), "{reply}");
    assert_eq!(site.counted()["torrent-outside"], 1);
    // Whoever was refused is told to nobody: not even where it claimed to be.
    let reply = ask(&good.replace("port=7001", "port=7009"), "10.77.0.21");
    assert!(reply.contains("incompletei2e") && reply.contains("5:peers12:"), "the appliance and 7001: {reply}");
}
