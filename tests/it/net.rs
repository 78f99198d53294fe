//! Network namespaces for tests, and the boot services running in them. Each test makes its own pair of namespaces, joined
//! by a veth pair, and removes them: the appliance runs in one, clients in the other. Needs root and iproute2.

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use rackline::boot::config::BootConfig;
use rackline::boot::firmware::Files;
use rackline::boot::monitor::Monitor;
use rackline::boot::script::Scripts;
use rackline::boot::{BootAnswer, Facts, Handle, Policy, Sighting, Unanswered, http};
use rackline::httpd::{Limits, Server};
use rackline::machine::MacAddr;
use rackline::store::Db;
use rackline::store::lease::{self, Lease};

/// Longest wait for anything here; TCG on a busy machine is slow.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Says why a test did nothing. Without root there are no namespaces.
pub fn can_run(tools: &[&str]) -> bool {
    let root = rustix::process::geteuid().is_root();
    let missing: Vec<_> = tools.iter().filter(|t| !installed(t)).collect();
    if !root {
        eprintln!("SKIPPED: network tests need root");
    }
    // Root is how CI runs; a missing tool there is a broken set-up, not a reason to pass.
    assert!(!root || missing.is_empty(), "not installed: {missing:?}");
    root
}

pub fn installed(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| dir.join(tool).exists())
}

/// The two ends: the same in every test, so that captures compare.
pub const LAB0: [u8; 6] = [2, 0, 0, 0x77, 0, 1];
pub const C0: [u8; 6] = [2, 0, 0, 0x77, 0, 2];

fn text(mac: [u8; 6]) -> String {
    MacAddr(mac).to_string()
}

/// Two namespaces: the appliance on `lab0` (10.77.0.1/16), clients on `c0`.
pub struct Net {
    pub server: String,
    pub client: String,
    more: Vec<String>,
    dir: tempfile::TempDir,
}

/// What comes next, or the end of the socket's patience. Signals (a child that ended, in another test) interrupt a wait with a
/// time-out even where handlers ask for a restart: signal(7).
pub fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> std::io::Result<(usize, SocketAddr)> {
    loop {
        match socket.recv_from(buffer) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

impl Net {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let id = format!("rlb{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let net = Self {
            server: format!("{id}s"),
            client: format!("{id}c"),
            more: Vec::new(),
            dir: tempfile::tempdir().unwrap(),
        };
        let (s, c) = (net.server.as_str(), net.client.as_str());
        run("ip", &["netns", "add", s]);
        run("ip", &["netns", "add", c]);
        let (ours, theirs) = (text(LAB0), text(C0));
        let peer = ["type", "veth", "peer", "name", "c0", "address", &theirs, "netns", c];
        run("ip", &[&["-n", s, "link", "add", "lab0", "address", &ours], &peer[..]].concat());
        run("ip", &["-n", s, "addr", "add", "10.77.0.1/16", "dev", "lab0"]);
        for (ns, link) in [(s, "lo"), (s, "lab0"), (c, "lo"), (c, "c0")] {
            run("ip", &["-n", ns, "link", "set", link, "up"]);
        }
        net
    }

    /// One more namespace, with nothing but its loopback; removed with the others.
    pub fn namespace(&mut self, suffix: &str) -> String {
        let ns = format!("{}{suffix}", self.server);
        run("ip", &["netns", "add", &ns]);
        self.more.push(ns.clone());
        run("ip", &["-n", &ns, "link", "set", "lo", "up"]);
        ns
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command among the clients.
    pub fn client(&self, program: &str, args: &[&str]) -> Command {
        command_in(&self.client, program, args)
    }

    pub fn run_client(&self, program: &str, args: &[&str]) -> Output {
        self.client(program, args).output().unwrap()
    }

    /// A socket among the clients.
    pub fn socket(&self, bind: &str) -> UdpSocket {
        let bind: SocketAddr = bind.parse().unwrap();
        let socket = inside(&self.client, move || UdpSocket::bind(bind).unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    }

    pub fn client_address(&self, address: &str) {
        run("ip", &["-n", &self.client, "addr", "add", address, "dev", "c0"]);
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for ns in [&self.server, &self.client].into_iter().chain(&self.more) {
            let _ = Command::new("ip").args(["netns", "del", ns]).status();
        }
    }
}

pub fn command_in(ns: &str, program: &str, args: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", ns, program]).args(args).stdin(Stdio::null());
    command
}

pub fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs on a thread of its own inside a network namespace. Sockets stay in the namespace they were opened in.
pub fn inside<T: Send + 'static>(ns: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let path = Path::new("/run/netns").join(ns);
    std::thread::spawn(move || {
        use std::os::fd::AsFd;
        let ns = std::fs::File::open(path).unwrap();
        let kind = rustix::thread::LinkNameSpaceType::Network;
        rustix::thread::move_into_link_name_space(ns.as_fd(), Some(kind)).unwrap();
        work()
    })
    .join()
    .unwrap()
}

pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Has one answer for every machine, and remembers what it was told.
#[derive(Default)]
pub struct Watcher {
    pub seen: Mutex<Vec<Sighting>>,
    pub unheard: Mutex<Vec<Unanswered>>,
    pub notes: Mutex<Vec<String>>,
    /// Instead of a hold.
    pub answer: Option<BootAnswer>,
}

impl Watcher {
    pub fn unheard(&self) -> Vec<Unanswered> {
        self.unheard.lock().unwrap().clone()
    }

    pub fn seen(&self) -> Vec<Sighting> {
        self.seen.lock().unwrap().clone()
    }

    /// What would stand in the machines' timelines.
    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap().clone()
    }
}

impl Policy for Watcher {
    fn sighted(&self, sighting: Sighting) {
        self.seen.lock().unwrap().push(sighting);
    }

    fn unanswered(&self, unanswered: Unanswered) {
        self.unheard.lock().unwrap().push(unanswered);
    }

    fn facts(&self, _: MacAddr) -> Option<Facts> {
        None
    }

    fn noted(&self, _: MacAddr, sentence: String) {
        self.notes.lock().unwrap().push(sentence);
    }

    fn boot_answer(&self, asking: Sighting) -> BoxFuture<'_, rackline::error::Result<BootAnswer>> {
        let hold = BootAnswer::Hold { reason: format!("nothing to do for {}", asking.mac) };
        let answer = self.answer.clone().unwrap_or(hold);
        self.seen.lock().unwrap().push(asking);
        Box::pin(async move { Ok(answer) })
    }
}

/// The boot services, with a web server, in the server namespace.
pub struct Appliance {
    pub watcher: Arc<Watcher>,
    pub monitor: Monitor,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Appliance {
    pub fn start(net: &Net, files: Files) -> rackline::error::Result<Self> {
        Self::start_with(net, files, CONFIG)
    }

    /// `config` is a `[boot]` section with the appliance at 10.77.0.1.
    pub fn start_with(net: &Net, files: Files, config: &str) -> rackline::error::Result<Self> {
        Self::start_as(net, files, config, Watcher::default())
    }

    pub fn start_as(net: &Net, files: Files, config: &str, watcher: Watcher) -> rackline::error::Result<Self> {
        let config: BootConfig = toml::from_str(config).unwrap();
        let (files, watcher) = (Arc::new(files), Arc::new(watcher));
        let (policy, dir) = (watcher.clone(), net.path("state"));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, started) = std::sync::mpsc::channel();
        let ns = net.server.clone();
        let thread = std::thread::spawn(move || {
            inside(&ns, move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let scripts = Arc::new(Scripts::new(&config, "00").unwrap());
                    let db = Db::open(&dir).await.unwrap();
                    let (switches, rules) = (Arc::default(), policy.clone());
                    let serving = rackline::boot::serve(&config, files.clone(), scripts, switches, rules, db).await;
                    let handle = match serving {
                        Ok(handle) => handle,
                        Err(e) => return ready.send(Err(e)).unwrap(),
                    };
                    let site = Arc::new(http::Site { policy, files, loaders: handle.loaders() });
                    let listener = tokio::net::TcpListener::bind("10.77.0.1:80").await.unwrap();
                    let router = http::router(site.clone());
                    let find = move |path: &str| site.file(path).map(PathBuf::from);
                    let web = Server::new(find, router, Limits::default(), Default::default(), Default::default());
                    let web = tokio::spawn(web.run(listener));
                    ready.send(Ok(handle.monitor())).unwrap();
                    let _ = stopped.await;
                    web.abort();
                    show(&handle);
                    handle.stop().await;
                });
            });
        });
        let monitor = started.recv().unwrap()?;
        Ok(Self { watcher, monitor, stop: Some(stop), thread: Some(thread) })
    }

    /// How often something was answered, or was not, by its name in the metrics.
    pub fn count(&self, name: &str) -> u64 {
        self.monitor.status().counters[name]
    }

    /// What is on disk after the services ended.
    pub fn stop(mut self, net: &Net) -> Vec<Lease> {
        self.end();
        leases(net)
    }

    pub fn end(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// In the log of a failed test: what was answered, and what was not and why.
pub fn show(handle: &Handle) {
    let counts: Vec<_> = handle.counters().snapshot().into_iter().filter(|(_, n)| *n > 0).collect();
    eprintln!("boot services: {counts:?}");
}

pub fn leases(net: &Net) -> Vec<Lease> {
    lease::read(&net.path("state")).unwrap()
}

pub const CONFIG: &str = r#"
    url = "http://10.77.0.1"
    unknown_lease_seconds = 3600
    interfaces = [{ name = "lab0", address = "10.77.0.1" }]
    [[subnets]]
    network = "10.77.0.0/16"
    pools = ["10.77.2.0-10.77.2.255"]
    router = "10.77.0.1"
    domain = "lab"
"#;

/// udhcpc tells its script what it got; this one writes it down and takes the address.
pub fn udhcpc_script(net: &Net) -> String {
    let script = net.path("udhcpc.sh");
    let log = net.path("udhcpc.log");
    let text = format!(
        "#!/bin/sh\nif [ -n \"$ip\" ]; then ip addr add $ip/$mask dev $interface 2>/dev/null; fi\n\
         echo \"$1 ip=$ip router=$router domain=$domain serverid=$serverid lease=$lease boot_file=$boot_file\" >> {}\n",
        log.display()
    );
    std::fs::write(&script, text).unwrap();
    run("chmod", &["755", script.to_str().unwrap()]);
    script.to_str().unwrap().to_owned()
}

/// Ends with the test, whatever becomes of it.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
