//! The agent against a small appliance that serves a real image, with loop devices for disks: what it writes, what it
//! refuses, and that neither a lost connection nor a restart of either side costs more than time. Needs root.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path as UrlPath, Query, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use rackline::agent::{Options, Roots, run};
use rackline::image::{Manifest, SigningKey};
use rackline::link::{
    Deploy, Hello, Help, Issued, Leave, Mode, Order, Outcome, ReadBack, Report, Seed, SwarmPlan, SwarmReport, Welcome,
};
use rackline::machine::{Digest, MachineId, Secret, Serial, TargetRule};
use rackline::swarm::{Frame, HttpSource, Limits, Source, Wanted};
use tokio::sync::watch;

use crate::fixture;

const MIB: usize = 1 << 20;
const IMAGE: usize = 24 * MIB;
const DISK: u64 = 640 << 20;
const TOKEN: &str = "it-token";
/// What the disks are full of before.
const OLD: u8 = 0xaa;

// ---- the disk ----

/// A loop device over a sparse file with old data at both ends. Detached and deleted when dropped.
pub struct TestDisk {
    device: PathBuf,
    file: tempfile::NamedTempFile,
}

impl TestDisk {
    pub fn new(size: u64) -> Self {
        let disk = Self::blank(size);
        let old = vec![OLD; 64 * MIB];
        let device = File::options().write(true).open(&disk.device).unwrap();
        device.write_all_at(&old, 0).unwrap();
        device.write_all_at(&old[..32 * MIB], size - 32 * MIB as u64).unwrap();
        device.sync_all().unwrap();
        disk
    }

    pub fn blank(size: u64) -> Self {
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        file.as_file().set_len(size).unwrap();
        let output = Command::new("losetup").args(["-f", "--show"]).arg(file.path()).output().unwrap();
        assert!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        Self { device: String::from_utf8(output.stdout).unwrap().trim().into(), file }
    }

    /// Through the page cache of the device, as the next user would see it.
    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut device = File::open(&self.device).unwrap();
        device.seek(SeekFrom::Start(offset)).unwrap();
        let mut bytes = vec![0; len];
        device.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn untouched(&self) -> bool {
        self.read(0, 64 * MIB).iter().all(|b| *b == OLD) && self.read(DISK - MIB as u64, MIB).iter().all(|b| *b == OLD)
    }
}

impl Drop for TestDisk {
    fn drop(&mut self) {
        Command::new("losetup").arg("-d").arg(&self.device).status().unwrap();
    }
}

/// A machine made of folders: its disks are what we say, not what is built into this one.
pub struct Machine {
    /// Deleted with the machine.
    _dir: tempfile::TempDir,
    pub roots: Roots,
}

impl Machine {
    pub fn new(disks: &[(&str, &TestDisk)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let roots = Roots { sys: at("sys"), proc: at("proc"), dev: at("dev"), run: at("run"), state: at("state") };
        std::fs::create_dir_all(&roots.dev).unwrap();
        std::fs::create_dir_all(roots.proc.join("sys/kernel")).unwrap();
        std::fs::write(roots.proc.join("sys/kernel/osrelease"), "6.1.0-test\n").unwrap();
        for (name, disk) in disks {
            let block = roots.sys.join("block").join(name);
            std::fs::create_dir_all(block.join("queue")).unwrap();
            let size = disk.file.as_file().metadata().unwrap().len() / 512;
            for (file, text) in [("size", size.to_string()), ("serial", format!("SER-{name}")), ("ro", "0".into())] {
                std::fs::write(block.join(file), text).unwrap();
            }
            std::fs::write(block.join("queue/rotational"), "0").unwrap();
            std::os::unix::fs::symlink(&disk.device, roots.dev.join(name)).unwrap();
        }
        Self { _dir: dir, roots }
    }
}

// ---- the image ----

struct Image {
    raw: Vec<u8>,
    manifest: Manifest,
    signed: Vec<u8>,
    data: Vec<u8>,
    digest: Digest,
    key: String,
}

/// A GPT disk with partitions 1 and 14, every third MiB of it zero.
fn image(size: usize) -> Image {
    packed(raw_disk(size), &SigningKey::generate().unwrap())
}

fn raw_disk(size: usize) -> Vec<u8> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size as u64).unwrap();
    let mut noise = blake3::Hasher::new().update(b"rackline test image").finalize_xof();
    let mut piece = vec![0; MIB];
    for mib in (1..size / MIB - 1).filter(|m| m % 3 != 0) {
        noise.fill(&mut piece);
        file.as_file().write_all_at(&piece, (mib * MIB) as u64).unwrap();
    }
    let script = "label: gpt\n1 : start=2048, size=4096, name=one\n14 : start=8192, size=16384, name=fourteen\n";
    let mut sfdisk = Command::new("sfdisk")
        .args(["-q", "--no-reread", "--no-tell-kernel"])
        .arg(file.path())
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    sfdisk.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
    let mut raw = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut raw).unwrap();
    raw
}

fn packed(raw: Vec<u8>, key: &SigningKey) -> Image {
    let fixture::Image { manifest, signed, data } = fixture::Image::pack("test", &raw, MIB, key);
    Image { raw, manifest, digest: signed.digest(), signed: signed.encode(), data, key: key.public().to_string() }
}

// ---- the appliance ----

/// What the appliance does wrong.
#[derive(Default)]
struct Faults {
    /// Answers for data that are cut off after so many bytes, and how many of them.
    cut: Mutex<(usize, usize)>,
    /// Answers for data that stop after so many bytes without an end, and how many of them.
    hang: Mutex<(usize, usize)>,
    /// Reports that are answered with 503 first.
    busy: AtomicUsize,
}

struct Appliance {
    image: Image,
    order: watch::Sender<Issued>,
    reports: Mutex<Vec<Report>>,
    reported: tokio::sync::Notify,
    /// Runs when the target is told, before the answer.
    on_target: Box<dyn Fn() + Send + Sync>,
    data_requests: AtomicUsize,
    faults: Faults,
    machine: MachineId,
    /// Signed manifests of images that are no longer ordered.
    older: Vec<(Digest, Vec<u8>)>,
    /// `None`: this appliance knows no swarms.
    swarm: Option<Arc<Swarm>>,
    /// What its installed host is asked for, once. `None`: hosts do not help here.
    help: Mutex<Option<Vec<Help>>>,
    /// What the host said that it keeps, each time it asked.
    kept: Mutex<Vec<String>>,
}

/// Whoever has come later follows those before it. Shared by the appliances of several machines.
#[derive(Default)]
struct Swarm {
    members: Mutex<Vec<(MachineId, SwarmReport)>>,
    /// Everybody stays.
    needed: AtomicBool,
    upload_limit: Option<u64>,
}

impl Swarm {
    fn report(&self, machine: MachineId, report: SwarmReport) -> SwarmPlan {
        let mut members = self.members.lock().unwrap();
        let at = members.iter().position(|(m, _)| *m == machine).unwrap_or(members.len());
        match members.get_mut(at) {
            Some((_, last)) => *last = report,
            None => members.push((machine, report)),
        }
        // All machines are this one. The appliance is 127.0.0.1; machines have another address.
        let address = |(_, r): &(MachineId, SwarmReport)| SocketAddr::from(([127, 0, 0, 2], r.port));
        let before = members[..at].iter().rev().filter(|(_, r)| !r.leaving);
        SwarmPlan {
            predecessors: before.map(address).collect(),
            key: Secret::new("it-swarm"),
            upload_limit: self.upload_limit,
            needed: self.needed.load(Ordering::SeqCst),
            seat: at as u64 + 1,
        }
    }

    fn last(&self, machine: MachineId) -> Option<SwarmReport> {
        self.members.lock().unwrap().iter().find(|(m, _)| *m == machine).map(|(_, r)| r.clone())
    }
}

impl Appliance {
    fn new(image: Image, order: Order, faults: Faults, on_target: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self::of(image, order, faults, on_target))
    }

    fn of(image: Image, order: Order, faults: Faults, on_target: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            image,
            order: watch::Sender::new(Issued { number: 1, order }),
            reports: Mutex::new(Vec::new()),
            reported: tokio::sync::Notify::new(),
            on_target: Box::new(on_target),
            data_requests: AtomicUsize::new(0),
            faults,
            machine: MachineId::generate(),
            older: Vec::new(),
            swarm: None,
            help: Mutex::default(),
            kept: Mutex::default(),
        }
    }

    fn router(self: &Arc<Self>) -> Router {
        let with_token = Router::new()
            .route("/agent/v1/{machine}/order", get(order))
            .route("/agent/v1/{machine}/progress", post(|| async { StatusCode::NO_CONTENT }))
            .route("/agent/v1/{machine}/report", post(report))
            .route("/agent/v1/{machine}/swarm", post(swarm))
            .route("/agent/v1/{machine}/help", get(help))
            .route_layer(middleware::from_fn(check_token));
        with_token
            .route("/agent/v1/hello", post(hello))
            .route("/images/{digest}/manifest", get(manifest))
            .route("/images/{digest}/data", get(data))
            .with_state(Arc::clone(self))
    }

    /// On any port, or again on the one it had. On a runtime of its own, so that it ends like a process: with all its
    /// connections.
    async fn serve(self: &Arc<Self>, port: u16) -> (u16, Server) {
        let listener = loop {
            match std::net::TcpListener::bind(("127.0.0.1", port)) {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = self.router();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), router).await.unwrap();
        });
        (port, Server(Some(runtime)))
    }

    /// The first report that `wanted` likes.
    async fn wait_for(&self, wanted: impl Fn(&Outcome) -> bool) -> Outcome {
        let wait = async {
            loop {
                let reported = self.reported.notified();
                let found = self.reports.lock().unwrap().iter().find(|r| wanted(&r.outcome)).cloned();
                match found {
                    Some(report) => return report.outcome,
                    None => reported.await,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(240), wait).await.expect("no such report")
    }

    /// How the order ended: anything but the telling of the target.
    async fn end(&self) -> Outcome {
        self.wait_for(|o| !matches!(o, Outcome::TargetChosen { .. })).await
    }
}

struct Server(Option<tokio::runtime::Runtime>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.take().unwrap().shutdown_background();
    }
}

async fn check_token(request: Request, next: Next) -> Response {
    match request.headers().get("authorization").is_some_and(|v| v == &format!("Bearer {TOKEN}")) {
        true => next.run(request).await,
        false => StatusCode::UNAUTHORIZED.into_response(),
    }
}

async fn hello(State(a): State<Arc<Appliance>>, Json(hello): Json<Hello>) -> Json<Welcome> {
    assert_eq!(hello.machine, a.machine);
    Json(Welcome { machine: hello.machine, name: "it-1".into(), token: TOKEN.into() })
}

async fn order(State(a): State<Arc<Appliance>>, Query(query): Query<BTreeMap<String, u64>>) -> Json<Issued> {
    let mut orders = a.order.subscribe();
    let after = query["after"];
    let wait = orders.wait_for(|issued| issued.number != after);
    let _ = tokio::time::timeout(Duration::from_secs(5), wait).await;
    Json(a.order.borrow().clone())
}

async fn report(State(a): State<Arc<Appliance>>, Json(report): Json<Report>) -> StatusCode {
    if a.faults.busy.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    if matches!(report.outcome, Outcome::TargetChosen { .. }) {
        (a.on_target)();
    }
    a.reports.lock().unwrap().push(report);
    a.reported.notify_waiters();
    StatusCode::NO_CONTENT
}

async fn swarm(State(a): State<Arc<Appliance>>, Json(report): Json<SwarmReport>) -> Response {
    match &a.swarm {
        Some(swarm) => Json(swarm.report(a.machine, report)).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn help(State(a): State<Arc<Appliance>>, Query(query): Query<BTreeMap<String, String>>) -> Response {
    a.kept.lock().unwrap().push(query["kept"].clone());
    let help = match &mut *a.help.lock().unwrap() {
        Some(wanted) => wanted.pop(),
        None => return StatusCode::NOT_FOUND.into_response(),
    };
    match help {
        Some(help) => Json(help).into_response(),
        None => {
            tokio::time::sleep(Duration::from_secs(5)).await;
            StatusCode::NO_CONTENT.into_response()
        }
    }
}

async fn manifest(State(a): State<Arc<Appliance>>, UrlPath(digest): UrlPath<String>) -> Vec<u8> {
    let older = a.older.iter().find(|(d, _)| d.to_string() == digest);
    older.map_or_else(|| a.image.signed.clone(), |(_, signed)| signed.clone())
}

async fn data(State(a): State<Arc<Appliance>>, headers: HeaderMap) -> Response {
    a.data_requests.fetch_add(1, Ordering::SeqCst);
    let range = headers["range"].to_str().unwrap().strip_prefix("bytes=").unwrap();
    let (start, end) = range.split_once('-').unwrap();
    let (start, end): (usize, usize) = (start.parse().unwrap(), end.parse().unwrap());
    let bytes = Bytes::copy_from_slice(&a.image.data[start..=end]);
    let take = |fault: &Mutex<(usize, usize)>| {
        let mut fault = fault.lock().unwrap();
        (fault.1 > 0).then(|| {
            fault.1 -= 1;
            fault.0
        })
    };
    let body = if let Some(len) = take(&a.faults.cut) {
        let part = bytes.slice(..len.min(bytes.len()));
        Body::from_stream(futures::stream::iter([Ok(part), Err(std::io::Error::other("cut off"))]))
    } else if let Some(len) = take(&a.faults.hang) {
        let part = bytes.slice(..len.min(bytes.len()));
        let first = futures::stream::iter([Ok::<_, std::io::Error>(part)]);
        Body::from_stream(futures::StreamExt::chain(first, futures::stream::pending()))
    } else {
        Body::from(bytes)
    };
    let place = format!("bytes {start}-{end}/{}", a.image.data.len());
    (StatusCode::PARTIAL_CONTENT, [("content-range", place)], body).into_response()
}

// ---- the agent ----

fn options(port: u16, appliance: &Appliance, machine: &Machine) -> Options {
    let line = format!(
        "quiet rackline.url=http://127.0.0.1:{port} rackline.machine={} rackline.token=boot rackline.key={}",
        appliance.machine, appliance.image.key
    );
    let mut options = Options::from_kernel_command_line(&line).unwrap();
    options.roots = machine.roots.clone();
    // The real one would restart the machine that runs the tests.
    options.hooks.leave = Arc::new(|_| Ok(()));
    options
}

fn deploy(digest: Digest, target: TargetRule) -> Order {
    let seed = Seed {
        meta_data: "instance-id: it-1\n".into(),
        user_data: "#cloud-config\n".into(),
        network_config: "version: 2\n".into(),
    };
    Order::Deploy(Box::new(Deploy {
        manifest: digest,
        target,
        seed,
        read_back: ReadBack::Full,
        reuse: true,
        compare_with_dd: true,
        setup: Default::default(),
    }))
}

/// As an order for a machine that was deployed before. Without `dd`, which writes over the start of the disk.
fn deploy_again(digest: Digest, reuse: bool) -> Order {
    match deploy(digest, TargetRule::SmallestSsd) {
        Order::Deploy(order) => Order::Deploy(Box::new(Deploy { reuse, compare_with_dd: false, ..*order })),
        other => other,
    }
}

/// An agent that lives for as long as this does.
pub struct Living(tokio::task::JoinHandle<rackline::error::Result<()>>);

impl Living {
    pub fn start(options: Options) -> Self {
        Self(tokio::spawn(run(options)))
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs the order to its end.
async fn end_of_order(appliance: &Arc<Appliance>, machine: &Machine) -> Outcome {
    let (port, _server) = appliance.serve(0).await;
    let _agent = Living::start(options(port, appliance, machine));
    appliance.end().await
}

/// The code of the failure that the order ends with.
async fn failure(appliance: &Arc<Appliance>, machine: &Machine) -> String {
    match end_of_order(appliance, machine).await {
        Outcome::Failed(problem) => problem.code,
        other => panic!("did not fail: {other:?}"),
    }
}

fn assert_written(disk: &TestDisk, image: &Image) {
    // The first MiB has the partition table, which was fitted to the disk; the image's own backup of it is gone.
    let end = image.raw.len() - MIB;
    let there = disk.read(0, image.raw.len());
    let differs = (MIB..end).find(|i| there[*i] != image.raw[*i]);
    assert_eq!(differs, None, "first byte that differs, zero chunks included");
    assert_eq!(there[..440], image.raw[..440]);
}

fn assert_fitted(disk: &TestDisk, image: &Image) -> (u64, u64) {
    let table = gpt::GptConfig::new().only_valid_headers(true).open(&disk.device).unwrap();
    let (first, last) = (table.primary_header().unwrap(), table.backup_header().unwrap());
    assert_eq!((first.backup_lba, last.current_lba), (DISK / 512 - 1, DISK / 512 - 1));
    let verify = Command::new("sfdisk").arg("--verify").arg(&disk.device).output().unwrap();
    let said = String::from_utf8_lossy(&[verify.stdout, verify.stderr].concat()).into_owned();
    assert!(verify.status.success() && said.contains("No errors"), "{said}");
    let parts: Vec<(u32, String)> = table.partitions().iter().map(|(n, p)| (*n, p.name.clone())).collect();
    assert_eq!(parts, [(1, "one".into()), (14, "fourteen".into()), (15, "rackline-seed".into())]);
    let seed = &table.partitions()[&15];
    assert_eq!(seed.first_lba % 2048, 0);
    assert!(seed.first_lba * 512 > image.raw.len() as u64);
    (seed.first_lba * 512, (seed.last_lba + 1 - seed.first_lba) * 512)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_written_read_back_and_given_its_seed() {
    let disk = Arc::new(TestDisk::new(DISK));
    let machine = Machine::new(&[("vda", &disk)]);
    let image = image(IMAGE);
    let order = deploy(image.digest, TargetRule::SmallestSsd);
    let before = Arc::clone(&disk);
    let untouched = move || assert!(before.untouched(), "written to before the target was told");
    let appliance = Appliance::new(image, order, Faults::default(), untouched);
    let (port, server) = appliance.serve(0).await;
    let left = Arc::new(Mutex::new(None));
    let mut options = options(port, &appliance, &machine);
    let seen = Arc::clone(&left);
    options.hooks.leave = Arc::new(move |how| {
        *seen.lock().unwrap() = Some(how);
        Ok(())
    });
    let agent = tokio::spawn(run(options));

    let end = appliance.end().await;
    let Outcome::Deployed(deployed) = end else { panic!("{end:?}") };
    let image = &appliance.image;
    assert_eq!((deployed.disk.as_str(), deployed.serial), ("vda", Serial::parse("SER-vda")));
    assert_eq!((deployed.written_bytes, deployed.read_back_bytes), (image.manifest.used_bytes, IMAGE as u64));
    let compressed: u64 = image.manifest.chunks.iter().map(|c| u64::from(c.length)).sum();
    assert_eq!(deployed.fetched_bytes, compressed);
    assert!(deployed.dd_bytes_per_second.is_some_and(|rate| rate > 0.0));
    assert_written(&disk, image);
    assert!(disk.read(IMAGE as u64, 16 * MIB).iter().all(|b| *b == 0), "old data behind the image");

    let (offset, len) = assert_fitted(&disk, image);
    let seed = fatfs::FileSystem::new(Cursor::new(disk.read(offset, len as usize)), fatfs::FsOptions::new()).unwrap();
    let file = |name: &str| {
        let mut bytes = Vec::new();
        seed.root_dir().open_file(name).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    };
    assert_eq!(seed.volume_label(), "CIDATA");
    assert_eq!(file("meta-data"), b"instance-id: it-1\n");
    assert_eq!(file("network-config"), b"version: 2\n");
    assert_eq!(Digest::of(&file("rackline")), Digest::of(&std::fs::read("/proc/self/exe").unwrap()));
    let installed: serde_json::Value = serde_json::from_slice(&file("deployed.json")).unwrap();
    assert_eq!(installed["manifest"], image.digest.to_string());

    let leave = Order::Leave { how: rackline::link::Leave::Reboot, reason: "start the installed system".into() };
    appliance.order.send_replace(Issued { number: 2, order: leave });
    agent.await.unwrap().unwrap();
    assert_eq!(*left.lock().unwrap(), Some(rackline::link::Leave::Reboot));
    let reports: Vec<u64> = appliance.reports.lock().unwrap().iter().map(|r| r.number).collect();
    assert_eq!(reports, [1, 1, 2], "target, end, leaving: each once");
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_connections_and_a_restart_of_the_appliance_cost_only_time() {
    let disk = TestDisk::new(DISK);
    let machine = Machine::new(&[("vda", &disk)]);
    let image = image(IMAGE);
    let order = deploy(image.digest, TargetRule::SmallestSsd);
    let faults = Faults { cut: Mutex::new((3 * MIB / 2, 4)), busy: AtomicUsize::new(2), ..Faults::default() };
    let appliance = Appliance::new(image, order, faults, || ());
    let (port, server) = appliance.serve(0).await;
    let agent = Living::start(options(port, &appliance, &machine));
    appliance.wait_for(|o| matches!(o, Outcome::TargetChosen { .. })).await;
    // Every connection is lost, and for a while nobody listens.
    drop(server);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (_, server) = appliance.serve(port).await;
    let end = appliance.end().await;
    assert!(matches!(end, Outcome::Deployed(_)), "{end:?}");
    assert_written(&disk, &appliance.image);
    assert_eq!(appliance.faults.cut.lock().unwrap().1, 0, "the data was cut off as often as planned");

    // An agent that is started again in the same boot does not write again.
    drop(agent);
    let requests = appliance.data_requests.load(Ordering::SeqCst);
    appliance.reports.lock().unwrap().clear();
    let agent = Living::start(options(port, &appliance, &machine));
    assert_eq!(appliance.end().await, end);
    assert_eq!(appliance.data_requests.load(Ordering::SeqCst), requests);
    drop(agent);
    drop(server);
}

async fn deployed(appliance: &Arc<Appliance>, machine: &Machine) -> rackline::link::Deployed {
    match end_of_order(appliance, machine).await {
        Outcome::Deployed(deployed) => *deployed,
        other => panic!("{other:?}"),
    }
}

/// Where the journal is: the start of the last MiB but one that begins at a whole MiB.
const JOURNAL: u64 = (DISK - (1 << 20)) / (1 << 20) * (1 << 20);

/// The disk as a power cut leaves it: the appliance's data has stopped after `bytes`, and all that came is in the journal.
/// How many chunks the newest record lists, and which slot has it.
async fn interrupted(appliance: &Arc<Appliance>, machine: &Machine, disk: &TestDisk, bytes: usize) -> (u32, u64) {
    *appliance.faults.hang.lock().unwrap() = (bytes, usize::MAX);
    // All but the first, which waits for the others.
    let rest = &appliance.image.manifest.chunks[1..];
    let end = rest[0].offset + bytes as u64;
    let expected = rest.iter().filter(|c| c.offset + u64::from(c.length) <= end).count() as u32;
    let (port, server) = appliance.serve(0).await;
    let agent = Living::start(options(port, appliance, machine));
    let slot = |n: u64| {
        let mut slot = vec![0; 4096];
        disk.file.as_file().read_exact_at(&mut slot, JOURNAL + n * (256 << 10)).unwrap();
        let bits = slot[128..].iter().map(|b| b.count_ones()).sum::<u32>();
        (slot.starts_with(b"RKLJRNL1"), bits, n)
    };
    let listed = async {
        loop {
            match [slot(0), slot(1)].into_iter().find(|(ours, bits, _)| *ours && *bits == expected) {
                Some((_, bits, slot)) => return (bits, slot),
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let listed = tokio::time::timeout(Duration::from_secs(60), listed).await.expect("not in the journal");
    drop(agent);
    drop(server);
    *appliance.faults.hang.lock().unwrap() = (0, 0);
    appliance.reports.lock().unwrap().clear();
    listed
}

fn resumable(image: Image) -> Arc<Appliance> {
    let order = deploy_again(image.digest, true);
    Appliance::new(image, order, Faults::default(), || ())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_write_is_taken_up_and_a_chunk_that_is_not_there_is_fetched_again() {
    let disk = TestDisk::new(DISK);
    let machine = Machine::new(&[("vda", &disk)]);
    let appliance = resumable(image(IMAGE));
    let (listed, _) = interrupted(&appliance, &machine, &disk, 9 * MIB).await;
    assert!(listed >= 6);
    // A disk that has confirmed and forgotten.
    let lost = &appliance.image.manifest.chunks[3];
    disk.file.as_file().write_all_at(b"?", lost.disk_offset + 77).unwrap();

    let deployed = deployed(&appliance, &machine).await;
    let there = u64::from(listed - 1) * MIB as u64;
    let used = appliance.image.manifest.used_bytes;
    assert_eq!((deployed.resumed_bytes, deployed.reused_bytes), (there, 0));
    assert_eq!(deployed.written_bytes, used - there);
    assert!(deployed.fetched_bytes < used - there + MIB as u64);
    assert_written(&disk, &appliance.image);
    assert_fitted(&disk, &appliance.image);
    assert!(disk.read(JOURNAL, MIB / 2).iter().all(|b| *b == 0), "the journal is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_of_another_machine_or_image_and_a_torn_one_count_for_nothing() {
    let disk = TestDisk::new(DISK);
    let appliance = resumable(image(IMAGE));
    let fresh = async |appliance: &Arc<Appliance>| {
        // Old data between the chunks must not show through, whatever the journal said.
        disk.file.as_file().write_all_at(&vec![OLD; MIB], 3 * MIB as u64).unwrap();
        let deployed = deployed(appliance, &Machine::new(&[("vda", &disk)])).await;
        assert_eq!((deployed.resumed_bytes, deployed.written_bytes), (0, appliance.image.manifest.used_bytes));
        assert_written(&disk, &appliance.image);
    };
    let interrupt = async || {
        disk.file.as_file().write_all_at(&vec![OLD; MIB], 0).unwrap();
        interrupted(&appliance, &Machine::new(&[("vda", &disk)]), &disk, 9 * MIB).await
    };
    interrupt().await;
    let another_image = Appliance::of(image(IMAGE), Order::Wait { reason: String::new() }, Faults::default(), || ());
    let order = deploy_again(another_image.image.digest, true);
    another_image.order.send_replace(Issued { number: 1, order });
    fresh(&Arc::new(Appliance { machine: appliance.machine, ..another_image })).await;

    interrupt().await;
    let same_image = packed(appliance.image.raw.clone(), &SigningKey::generate().unwrap());
    assert_eq!(same_image.digest, appliance.image.digest);
    fresh(&resumable(same_image)).await;

    let (_, newest) = interrupt().await;
    for slot in [newest, 1 - newest] {
        disk.file.as_file().write_all_at(&[0xff], JOURNAL + slot * (256 << 10) + 130).unwrap();
    }
    fresh(&appliance).await;
}

/// What a new version of an image has in common with the one on the disk.
fn versions() -> (Image, Image) {
    let key = SigningKey::generate().unwrap();
    let old = raw_disk(IMAGE);
    let mut new = old.clone();
    // One chunk changes, one that was zero gets data that stands elsewhere too, one becomes zero.
    new[5 * MIB + 3] ^= 1;
    new.copy_within(7 * MIB..8 * MIB, 9 * MIB);
    new[11 * MIB..12 * MIB].fill(0);
    (packed(old, &key), packed(new, &key))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_version_takes_from_the_disk_what_has_not_changed() {
    let disk = TestDisk::new(DISK);
    let (old, new) = versions();
    let (old_digest, old_signed) = (old.digest, old.signed.clone());
    deployed(&resumable(old), &Machine::new(&[("vda", &disk)])).await;
    // The installed system has lived: something changed in a chunk that both have, and in what is zero in both.
    disk.file.as_file().write_all_at(b"log", 13 * MIB as u64).unwrap();
    disk.file.as_file().write_all_at(b"log", 6 * MIB as u64).unwrap();

    let order = deploy_again(new.digest, true);
    let mut appliance = Appliance::of(new, order, Faults::default(), || ());
    appliance.older.push((old_digest, old_signed));
    let appliance = Arc::new(appliance);
    let deployed = deployed(&appliance, &Machine::new(&[("vda", &disk)])).await;
    let image = &appliance.image;
    // Not there: the first (fitted to the disk and written last), the changed one, the one with the log, and the last,
    // where the image's own backup of the partition table was.
    let fetched = |c: &&rackline::image::Chunk| matches!(c.index, 0 | 5 | 13 | 23);
    let bytes: u64 = image.manifest.chunks.iter().filter(fetched).map(|c| u64::from(c.length)).sum();
    assert_eq!(deployed.fetched_bytes, bytes);
    assert_eq!(deployed.reused_bytes, image.manifest.used_bytes - deployed.written_bytes);
    assert_eq!(deployed.resumed_bytes, 0);
    assert_written(&disk, image);
    assert_fitted(&disk, image);
}

#[tokio::test(flavor = "multi_thread")]
async fn reuse_needs_neither_the_old_manifest_nor_a_policy_to_be_right() {
    let disk = TestDisk::new(DISK);
    let (old, new) = versions();
    deployed(&resumable(old), &Machine::new(&[("vda", &disk)])).await;
    // The appliance no longer knows the old image: what is at its place still counts, what has moved does not.
    let digest = new.digest;
    let appliance = Appliance::new(new, deploy_again(digest, true), Faults::default(), || ());
    let again = deployed(&appliance, &Machine::new(&[("vda", &disk)])).await;
    assert_eq!(again.reused_bytes, appliance.image.manifest.used_bytes - again.written_bytes);
    assert_eq!(again.written_bytes, 4 * MIB as u64, "the first, the changed, the moved and the last");
    assert_written(&disk, &appliance.image);

    // Without the policy everything is cleared and written.
    appliance.order.send_replace(Issued { number: 1, order: deploy_again(digest, false) });
    appliance.reports.lock().unwrap().clear();
    let whole = deployed(&appliance, &Machine::new(&[("vda", &disk)])).await;
    assert_eq!((whole.reused_bytes, whole.written_bytes), (0, appliance.image.manifest.used_bytes));
    assert_written(&disk, &appliance.image);
}

/// The appliances of two machines that get the same image.
fn pair(swarm: &Arc<Swarm>) -> [Arc<Appliance>; 2] {
    let (raw, key) = (raw_disk(IMAGE), SigningKey::generate().unwrap());
    [(), ()].map(|()| {
        let image = packed(raw.clone(), &key);
        let order = deploy_again(image.digest, false);
        let appliance = Appliance::of(image, order, Faults::default(), || ());
        Arc::new(Appliance { swarm: Some(Arc::clone(swarm)), ..appliance })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_gets_the_image_from_the_one_before_it_which_stays_while_it_is_needed() {
    let swarm = Arc::new(Swarm { needed: AtomicBool::new(true), ..Swarm::default() });
    let [first, second] = pair(&swarm);
    let (disks, left) = ([TestDisk::new(DISK), TestDisk::new(DISK)], Arc::new(AtomicBool::new(false)));
    // Without a word on its memory a machine keeps every frame at the end of its disk.
    let machines = [Machine::new(&[("vda", &disks[0])]), Machine::new(&[("vda", &disks[1])])];
    let (port, server) = first.serve(0).await;
    let mut leaves = options(port, &first, &machines[0]);
    let seen = Arc::clone(&left);
    leaves.hooks.leave = Arc::new(move |_| {
        seen.store(true, Ordering::SeqCst);
        Ok(())
    });
    let agent = tokio::spawn(run(leaves));
    let Outcome::Deployed(alone) = first.end().await else { panic!("not deployed") };
    assert_eq!((alone.peer_bytes, alone.appliance_bytes), (0, alone.fetched_bytes));
    let order = Order::Leave { how: Leave::Reboot, reason: "start the installed system".into() };
    first.order.send_replace(Issued { number: 2, order });

    let deployed = deployed(&second, &machines[1]).await;
    // On a busy machine the end may take so long that the appliance is asked too, and some comes twice.
    assert!(deployed.peer_bytes + deployed.appliance_bytes >= deployed.fetched_bytes, "{deployed:?}");
    assert!(deployed.peer_share().is_some_and(|share| share > 0.6), "{deployed:?}");
    assert_written(&disks[1], &second.image);

    assert!(!left.load(Ordering::SeqCst), "left though it was needed");
    let (seed, _) = assert_fitted(&disks[0], &first.image);
    let frames = || disks[0].read(IMAGE as u64, seed as usize - IMAGE).iter().any(|b| *b != 0 && *b != OLD);
    assert!(frames(), "no frame is on the disk");
    swarm.needed.store(false, Ordering::SeqCst);
    tokio::time::timeout(Duration::from_secs(30), agent).await.expect("it stays for ever").unwrap().unwrap();
    assert!(left.load(Ordering::SeqCst) && swarm.last(first.machine).unwrap().leaving);
    assert_written(&disks[0], &first.image);
    assert!(!frames(), "frames are left on the disk");
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_goes_on_with_a_write_offers_only_what_it_fetched_itself() {
    let (disk, swarm) = (TestDisk::new(DISK), Arc::new(Swarm::default()));
    let machine = Machine::new(&[("vda", &disk)]);
    let [first, again] = pair(&swarm);
    let first = Arc::new(Appliance { swarm: None, ..Arc::into_inner(first).unwrap() });
    let again = Arc::new(Appliance { machine: first.machine, ..Arc::into_inner(again).unwrap() });
    let (listed, _) = interrupted(&first, &machine, &disk, 9 * MIB).await;

    let (port, server) = again.serve(0).await;
    let agent = Living::start(options(port, &again, &machine));
    let end = again.end().await;
    assert!(matches!(&end, Outcome::Deployed(d) if d.resumed_bytes == u64::from(listed) * MIB as u64), "{end:?}");
    let all_there = async {
        loop {
            match swarm.last(again.machine).filter(|r| r.lacking == 0) {
                Some(report) => return report,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let report = tokio::time::timeout(Duration::from_secs(30), all_there).await.expect("it lacks frames for ever");
    assert_eq!(report.frames, again.image.manifest.chunks.len() as u32 - listed);
    drop((agent, server));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_machine_before_it_in_the_middle_costs_only_time() {
    let swarm = Arc::new(Swarm { needed: AtomicBool::new(true), upload_limit: Some(4 << 20), ..Swarm::default() });
    let [first, second] = pair(&swarm);
    let disks = [TestDisk::new(DISK), TestDisk::new(DISK)];
    let machines = [Machine::new(&[("vda", &disks[0])]), Machine::new(&[("vda", &disks[1])])];
    let (port, server) = first.serve(0).await;
    let agent = Living::start(options(port, &first, &machines[0]));
    assert!(matches!(first.end().await, Outcome::Deployed(_)));
    let ends = async {
        while swarm.last(second.machine).is_none_or(|r| r.frames < 3) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(agent);
    };
    let (deployed, ()) = tokio::join!(deployed(&second, &machines[1]), ends);
    assert!(deployed.peer_bytes >= 3 * MIB as u64 && deployed.appliance_bytes > 0, "{deployed:?}");
    assert_written(&disks[1], &second.image);
    drop(server);
}

/// An installed host of the same site, asked to help with the image; what it keeps lies in the file that is returned.
async fn host(appliance: &Arc<Appliance>, machine: &Machine) -> (Living, Server, PathBuf) {
    appliance.order.send_replace(Issued { number: 1, order: Order::Wait { reason: "delivered".into() } });
    let help = Help { manifest: appliance.image.digest, upload_limit: 1 << 30, space: 1 << 30 };
    *appliance.help.lock().unwrap() = Some(vec![help]);
    let (port, server) = appliance.serve(0).await;
    let mut options = options(port, appliance, machine);
    options.mode = Mode::Resident;
    let kept = machine.roots.state.join(format!("swarm/{}.frames", appliance.image.digest));
    (Living::start(options), server, kept)
}

fn keep(machine: &Machine, image: &Image, data: &[u8]) {
    std::fs::create_dir_all(machine.roots.state.join("swarm")).unwrap();
    std::fs::write(machine.roots.state.join(format!("swarm/{}.frames", image.digest)), data).unwrap();
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let waiting = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installed_host_gives_the_image_that_it_keeps() {
    let swarm = Arc::new(Swarm { needed: AtomicBool::new(true), ..Swarm::default() });
    let [installed, new] = pair(&swarm);
    let (disk, machine) = (TestDisk::new(DISK), Machine::new(&[]));
    keep(&machine, &installed.image, &installed.image.data);
    let (agent, server, kept) = host(&installed, &machine).await;
    until("the host does not come", || swarm.last(installed.machine).is_some()).await;
    let report = swarm.last(installed.machine).unwrap();
    assert_eq!((report.lacking, report.frames as usize), (0, installed.image.manifest.chunks.len()));
    assert_eq!(*installed.kept.lock().unwrap(), [installed.image.digest.to_string()]);

    let deployed = deployed(&new, &Machine::new(&[("vda", &disk)])).await;
    assert!(deployed.peer_share().is_some_and(|share| share > 0.8), "{deployed:?}");
    assert_written(&disk, &new.image);
    assert!(std::fs::read(&kept).unwrap() == installed.image.data, "what it keeps stays as it was");
    assert_eq!(installed.data_requests.load(Ordering::SeqCst), 0);
    // An order goes on beside it, and at the end it says good-bye.
    let order = Order::Leave { how: Leave::Reboot, reason: "a new kernel".into() };
    installed.order.send_replace(Issued { number: 2, order });
    until("it does not say good-bye", || swarm.last(installed.machine).unwrap().leaving).await;
    drop((agent, server));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_image_that_is_damaged_reaches_nobody_and_is_removed() {
    let swarm = Arc::new(Swarm { needed: AtomicBool::new(true), ..Swarm::default() });
    let [installed, new] = pair(&swarm);
    let (disk, machine) = (TestDisk::new(DISK), Machine::new(&[]));
    let mut data = installed.image.data.clone();
    let chunks = &installed.image.manifest.chunks;
    data[chunks[chunks.len() / 2].offset as usize + 100] ^= 1;
    keep(&machine, &installed.image, &data);
    let (agent, server, kept) = host(&installed, &machine).await;
    until("the host does not come", || swarm.last(installed.machine).is_some()).await;
    deployed(&new, &Machine::new(&[("vda", &disk)])).await;
    assert_written(&disk, &new.image);
    assert!(swarm.last(new.machine).unwrap().garbage.is_empty(), "it was found before it was sent");
    let anew = || swarm.last(installed.machine).is_some_and(|r| r.frames == 0 && r.lacking > 0);
    until("it does not fetch the image anew", anew).await;
    assert!(!kept.exists() && kept.with_extension("part").exists());
    drop((agent, server));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_the_image_fetches_and_keeps_it() {
    let swarm = Arc::new(Swarm { needed: AtomicBool::new(true), ..Swarm::default() });
    let [new, installed] = pair(&swarm);
    let disk = TestDisk::new(DISK);
    let (first, machine) = (Machine::new(&[("vda", &disk)]), Machine::new(&[]));
    let (port, server) = new.serve(0).await;
    let fetches = Living::start(options(port, &new, &first));
    assert!(matches!(new.end().await, Outcome::Deployed(_)));
    let (agent, other, kept) = host(&installed, &machine).await;
    until("it keeps nothing", || kept.exists()).await;
    // Frames of zeros are in the data file only.
    let there = std::fs::read(&kept).unwrap();
    for chunk in &installed.image.manifest.chunks {
        let place = chunk.offset as usize..(chunk.offset + u64::from(chunk.length)) as usize;
        assert!(there[place.clone()] == installed.image.data[place], "chunk {}", chunk.index);
    }
    assert_eq!(installed.data_requests.load(Ordering::SeqCst), 0, "never over HTTP");
    drop((agent, fetches, server, other));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_with_one_flipped_byte_leaves_the_disk_alone() {
    let disk = TestDisk::new(DISK);
    let machine = Machine::new(&[("vda", &disk)]);
    let mut image = image(IMAGE);
    let middle = image.signed.len() / 2;
    image.signed[middle] ^= 1;
    let order = deploy(image.digest, TargetRule::SmallestSsd);
    let appliance = Appliance::new(image, order, Faults::default(), || ());
    assert_eq!(failure(&appliance, &machine).await, "image.signature");
    assert!(disk.untouched());
    assert_eq!(appliance.reports.lock().unwrap().len(), 1, "no target was told");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_image_than_the_ordered_one_leaves_the_disk_alone() {
    let disk = TestDisk::new(DISK);
    let machine = Machine::new(&[("vda", &disk)]);
    let order = deploy(Digest::of(b"another"), TargetRule::SmallestSsd);
    let appliance = Appliance::new(image(IMAGE), order, Faults::default(), || ());
    assert_eq!(failure(&appliance, &machine).await, "image.digest");
    assert!(disk.untouched());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_with_one_flipped_byte_never_reaches_the_disk() {
    let disk = TestDisk::new(DISK);
    let machine = Machine::new(&[("vda", &disk)]);
    let mut image = image(IMAGE);
    let chunk = image.manifest.chunks[5].clone();
    image.data[chunk.offset as usize + 1000] ^= 1;
    let order = deploy(image.digest, TargetRule::SmallestSsd);
    let appliance = Appliance::new(image, order, Faults::default(), || ());
    assert_eq!(failure(&appliance, &machine).await, "image.chunk");
    let there = disk.read(chunk.disk_offset, chunk.raw_length as usize);
    assert!(there.iter().all(|b| *b == 0) || there.iter().all(|b| *b == OLD), "something of the chunk was written");
    // Asked for three times, and the rest of the disk was not dressed up as a success.
    assert!(appliance.data_requests.load(Ordering::SeqCst) >= 3);
    assert!(disk.read(0, MIB).iter().all(|b| *b == 0), "a half-written disk must not start");
    assert_ne!(disk.read(DISK - 512, 8), b"EFI PART");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_disk_two_disks_a_small_one_and_a_used_one_are_refused() {
    let (one, two) = (TestDisk::new(DISK), TestDisk::new(DISK));
    let attempt = async |machine: &Machine, size: usize, target: TargetRule| {
        let image = image(size);
        let order = deploy(image.digest, target);
        failure(&Appliance::new(image, order, Faults::default(), || ()), machine).await
    };
    assert_eq!(attempt(&Machine::new(&[]), IMAGE, TargetRule::SmallestSsd).await, "disk.none");
    let both = Machine::new(&[("vda", &one), ("vdb", &two)]);
    assert_eq!(attempt(&both, IMAGE, TargetRule::SmallestSsd).await, "disk.ambiguous");
    // Image and seed do not fit together.
    let small = TestDisk::new(80 << 20);
    assert_eq!(attempt(&Machine::new(&[("vda", &small)]), IMAGE, TargetRule::SmallestSsd).await, "disk.too-small");
    assert!(one.untouched() && two.untouched());

    // /proc of this machine is not told of the mount: the kernel's own claim must hold.
    let dir = tempfile::tempdir().unwrap();
    let ok = |command: &mut Command| assert!(command.output().unwrap().status.success(), "{command:?}");
    ok(Command::new("mkfs.ext4").arg("-q").arg(&one.device));
    ok(Command::new("mount").arg(&one.device).arg(dir.path()));
    let serial = TargetRule::Serial(Serial::parse("SER-vda").unwrap());
    let code = attempt(&Machine::new(&[("vda", &one), ("vdb", &two)]), IMAGE, serial).await;
    ok(Command::new("umount").arg(dir.path()));
    assert_eq!(code, "disk.busy");
    ok(Command::new("fsck.ext4").arg("-fn").arg(&one.device));
}

#[tokio::test(flavor = "multi_thread")]
async fn erasing_keeps_the_kept_and_blanks_the_rest() {
    let (one, two) = (TestDisk::new(DISK), TestDisk::new(DISK));
    let machine = Machine::new(&[("vda", &one), ("vdb", &two)]);
    let order = Order::Erase { keep: vec![Serial::parse("SER-vdb").unwrap()] };
    let appliance = Appliance::new(image(IMAGE), order, Faults::default(), || ());
    let end = end_of_order(&appliance, &machine).await;
    let Outcome::Erased { disks, how, proof, inventory } = end else { panic!("{end:?}") };
    assert_eq!(proof.iter().map(|d| (d.name.as_str(), d.size_bytes)).collect::<Vec<_>>(), [("vda", DISK)]);
    assert!(proof[0].read_back_bytes >= (2 * 4 * 64) << 10, "{proof:?}");
    assert_eq!(proof[0].how.complete(), how.contains("reads zero"));
    assert_eq!(inventory.unwrap().disks.len(), 2, "as it came back, with the disk that is kept");
    assert_eq!(disks, ["vda"]);
    assert!(how.starts_with("vda: "), "{how}");
    for at in [0, DISK - 16 * MIB as u64] {
        assert!(one.read(at, 16 * MIB).iter().all(|b| *b == 0));
    }
    assert_eq!(how.contains("reads zero"), one.read(40 << 20, MIB).iter().all(|b| *b == 0), "{how}");
    assert!(two.untouched());
}

#[tokio::test(flavor = "multi_thread")]
async fn commissioning_tells_what_is_there_and_how_fast_it_is() {
    let disk = TestDisk::new(DISK);
    let machine = Machine::new(&[("vda", &disk)]);
    let order = Order::Commission { bmc_user: None };
    let appliance = Appliance::new(image(IMAGE), order, Faults::default(), || ());
    let end = end_of_order(&appliance, &machine).await;
    let Outcome::Commissioned { inventory, measured, bmc_user_made } = end else { panic!("{end:?}") };
    assert_eq!(inventory.disks.iter().map(|d| d.size_bytes).collect::<Vec<_>>(), [DISK]);
    let names: Vec<&str> = measured.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["cpu.blake3", "memory.copy", "disk.read.vda"]);
    assert!(measured.iter().all(|m| m.value > 0.0 && m.unit == "MB/s"));
    assert!(!bmc_user_made && disk.untouched());
}

/// All frames of an image by HTTP with short limits, or the code of the failure.
async fn fetch_all(appliance: &Arc<Appliance>, limits: Limits) -> Result<usize, &'static str> {
    let (port, server) = appliance.serve(0).await;
    let http = reqwest::Client::builder().tls_certs_only([]).build().unwrap();
    let request = move || http.get(format!("http://127.0.0.1:{port}/images/x/data"));
    let source = HttpSource::new(request, |_| (), limits);
    let wanted = |c: &rackline::image::Chunk| Wanted { index: c.index, offset: c.offset, len: c.length };
    let wanted: Vec<Wanted> = appliance.image.manifest.chunks.iter().map(wanted).collect();
    let (sink, mut frames) = tokio::sync::mpsc::channel::<Frame>(4);
    let (fetched, right) = tokio::join!(source.fetch(&wanted, sink), async {
        let mut right = 0;
        while let Some(frame) = frames.recv().await {
            let chunk = appliance.image.manifest.chunks.iter().find(|c| c.index == frame.index).unwrap();
            rackline::image::chunk::verify_frame(chunk, &frame.bytes).unwrap();
            right += 1;
        }
        right
    });
    drop(server);
    fetched.map(|()| right).map_err(|e| e.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_hangs_is_asked_again_and_given_up_in_the_end() {
    let limits = Limits {
        streams: 2,
        range: 4 * MIB as u64,
        stall: Duration::from_millis(300),
        frame: Duration::from_secs(20),
        patience: Duration::from_secs(2),
    };
    let faults = |hangs| Faults { hang: Mutex::new((MIB / 2, hangs)), ..Faults::default() };
    let appliance = Appliance::new(image(IMAGE), Order::Wait { reason: "none".into() }, faults(3), || ());
    let count = appliance.image.manifest.chunks.len();
    assert_eq!(fetch_all(&appliance, limits.clone()).await, Ok(count));
    // One that never gets a frame out is not waited for for ever.
    let appliance = Appliance::new(image(IMAGE), Order::Wait { reason: "none".into() }, faults(usize::MAX), || ());
    assert_eq!(fetch_all(&appliance, limits).await, Err("source.unreachable"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_resident_agent_erases_nothing() {
    let disk = TestDisk::new(DISK);
    let machine = Machine::new(&[("vda", &disk)]);
    let appliance = Appliance::new(image(IMAGE), Order::Erase { keep: vec![] }, Faults::default(), || ());
    let (port, server) = appliance.serve(0).await;
    let mut options = options(port, &appliance, &machine);
    options.mode = Mode::Resident;
    let agent = Living::start(options);
    // On the installed host nothing is erased, whatever is ordered.
    let end = appliance.end().await;
    assert!(matches!(&end, Outcome::Failed(p) if p.code == "order.mode"), "{end:?}");
    assert!(disk.untouched());
    // Nor does it help where that is not switched on: it asks once, and not again for a while.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(*appliance.kept.lock().unwrap(), [""]);
    assert!(!machine.roots.state.exists());
    drop(agent);
    drop(server);
}
