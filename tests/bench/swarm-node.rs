//! One machine of a swarm, or its appliance, as a program of its own: relay, holdings, server, announcer and tracker exactly
//! as agent and appliance use them, with a file in place of the disk. For the scripts beside it, which give each its own
//! network namespace.
//!
//! ```text
//! swarm-node cut   FILE IMAGES [KIB]     publish FILE in the folder IMAGES as an image with frames of KIB (1024)
//! swarm-node seed  IMAGES                the appliance: frames on port 7070, plans on port 7071
//! swarm-node leech IMAGES OUT --appliance IP --rack NAME [--stamp FILE]
//! ```
//!
//! A leech takes the manifest from IMAGES and everything else from the network: it says each second where it is
//! (`POST /swarm?machine=ID&rack=NAME`) and follows the plan in the answer. It writes the Unix time at which its last byte was
//! verified and written to OUT, as `SECONDS.FRACTION`, to the stamp file and a line of JSON with what came from whom to standard
//! output; then it serves on until it is ended.
//!
//! Everything runs on one thread, since many of these share a machine.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::{ConnectInfo, Query, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Extension, Json, Router};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, ready};
use rackline::httpd::{self, Reached};
use rackline::image::chunk::{self, Packed};
use rackline::image::{Chunk, Library, SigningKey};
use rackline::link::{SwarmPlan, SwarmReport};
use rackline::machine::{Digest, MachineId};
use rackline::swarm::announce::{Answer, announcer};
use rackline::swarm::plan::Settings;
use rackline::swarm::tracker::{Tracker, Who};
use rackline::swarm::{Holdings, Keep, Relay, RelayLimits, ServeLimits, Server, Source, Wanted};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

// The tests use the rest of it.
#[allow(dead_code)]
#[path = "../it/fixture.rs"]
mod fixture;

use fixture::{Image, manifest};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

const FRAMES_PORT: u16 = 7070;
const PLANS_PORT: u16 = 7071;
/// A site keeps its own. With the same one after each start, nobody is a stranger to anybody.
const SECRET: [u8; 32] = *b"what the keys are derived from..";
/// As in the agent: for the first plan.
const FIRST: Duration = Duration::from_secs(3);
const TICK: Duration = Duration::from_secs(1);
const USAGE: &str = "swarm-node cut|seed|leech …, see the head of tests/bench/swarm-node.rs";

fn main() -> Result {
    // `cargo bench` adds an argument of its own.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let (options, words) = split(&args);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match words[..] {
        ["cut", file, images] => cut(Path::new(file), Path::new(images), 1024),
        ["cut", file, images, kib] => cut(Path::new(file), Path::new(images), kib.parse()?),
        ["seed", images] => runtime.block_on(seed(Path::new(images))),
        ["leech", images, out] => runtime.block_on(leech(Path::new(images), Path::new(out), &options)),
        _ => Err(USAGE.into()),
    }
}

type Options = Vec<(String, String)>;

fn split(args: &[String]) -> (Options, Vec<String>) {
    let (mut options, mut words) = (Vec::new(), Vec::new());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.strip_prefix("--") {
            Some(name) => options.push((name.to_owned(), args.next().cloned().unwrap_or_default())),
            None => words.push(arg.clone()),
        }
    }
    (options, words)
}

fn option<'a>(options: &'a Options, name: &str) -> Option<&'a str> {
    options.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
}

/// The file's bytes stand for frames: what is compressed does not matter here.
fn cut(file: &Path, images: &Path, kib: u32) -> Result {
    let mut data = std::fs::read(file)?;
    let size = (kib << 10) as usize;
    let mut chunks = Vec::new();
    for (index, piece) in (0..).zip(data.chunks(size)) {
        let (offset, length, digest) = (u64::from(index) * size as u64, piece.len() as u32, Digest::of(piece));
        let at = (offset, size as u32);
        chunks.push(Chunk { index, offset, length, frame: digest, raw: digest, disk_offset: at.0, raw_length: at.1 });
    }
    let disk_size = chunks.len() as u64 * size as u64;
    let data_size = data.len() as u64 + chunk::seek_table_len(chunks.len() as u32);
    // Nobody reads the seek table.
    data.resize(data_size as usize, 0);
    let packed = Packed { disk_size, chunk_size: size as u32, used_bytes: disk_size, data_size, chunks };
    Image::sign(manifest("bench", packed), data, &key(images)?).store(images);
    Ok(())
}

fn key(images: &Path) -> Result<SigningKey> {
    Ok(SigningKey::load_or_create(&images.join("signing.key"))?)
}

fn library(images: &Path) -> Result<Arc<Library>> {
    Ok(Arc::new(Library::open(images, &[key(images)?.public()])?))
}

async fn seed(images: &Path) -> Result {
    let server = Server::new(ServeLimits::default());
    let tracker = Tracker::new(library(images)?, Arc::clone(&server), Settings::default(), FRAMES_PORT, SECRET);
    let tracker = Arc::new(tracker);
    let any = Ipv4Addr::UNSPECIFIED;
    let (frames, plans) = (TcpListener::bind((any, FRAMES_PORT)).await?, TcpListener::bind((any, PLANS_PORT)).await?);
    let router = Router::new().route("/swarm", post(plan)).with_state(Arc::clone(&tracker));
    let stop = CancellationToken::new();
    let web = httpd::Server::new(|_| None, router, httpd::Limits::default(), Arc::default(), stop.clone());
    tokio::join!(server.serve(frames, stop), web.run(plans), async {
        loop {
            tokio::time::sleep(TICK).await;
            for happened in tracker.tick() {
                eprintln!("{:.3} {:?}", now(), happened.note);
            }
        }
    });
    Ok(())
}

/// Here a machine says itself what the appliance has in its records.
#[derive(Deserialize)]
struct Asks {
    machine: MachineId,
    rack: String,
}

async fn plan(
    State(tracker): State<Arc<Tracker>>,
    Query(asks): Query<Asks>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Extension(Reached(reached)): Extension<Reached>,
    Json(report): Json<SwarmReport>,
) -> std::result::Result<Json<SwarmPlan>, StatusCode> {
    let (machine, rack, address) = (asks.machine, asks.rack.into(), peer.ip().to_canonical());
    let who = Who { machine, rack, address, reached, host: false };
    tracker.report(&who, &report).map(Json).map_err(|_| StatusCode::NOT_FOUND)
}

/// The file that stands for the disk keeps the frames at their offsets.
struct OutKeep(File);

impl Keep for OutKeep {
    fn put<'a>(&'a self, chunk: &'a Chunk, frame: Bytes) -> BoxFuture<'a, bool> {
        ready(self.0.write_all_at(&frame, chunk.offset).is_ok()).boxed()
    }

    fn get<'a>(&'a self, chunk: &'a Chunk) -> BoxFuture<'a, Option<Bytes>> {
        let mut frame = vec![0; chunk.length as usize];
        ready(self.0.read_exact_at(&mut frame, chunk.offset).is_ok().then(|| frame.into())).boxed()
    }
}

async fn leech(images: &Path, out: &Path, options: &Options) -> Result {
    let catalogue = library(images)?.current();
    let image = catalogue.images.first().ok_or("no image")?;
    let manifest = Arc::new(image.manifest.clone());
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(out)?;
    let holdings = Arc::new(Holdings::empty(image.digest, Arc::clone(&manifest), Box::new(OutKeep(file))));
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    let port = listener.local_addr()?.port();

    let (announcer, mut plan) = announcer();
    let note = |note: Option<String>| {
        if let Some(note) = note {
            eprintln!("{:.3} {note}", now());
        }
    };
    let limits = RelayLimits::default();
    let relay = Arc::new(Relay::new(Arc::clone(&holdings), plan.clone(), None, |_| false, note, limits));
    let (server, leave) = (Server::new(ServeLimits::default()), CancellationToken::new());
    let serving = tokio::spawn(Arc::clone(&server).serve(listener, leave.clone()));
    let reports = Arc::clone(&relay);
    let apply = move |plan: &SwarmPlan| {
        eprintln!("{:.3} seat {} follows {:?}", now(), plan.seat, plan.predecessors);
        server.share(Arc::clone(&holdings), &plan.key);
        server.limit(plan.upload_limit);
    };
    tokio::spawn(announcer.run(leave, move |leaving| reports.report(port, leaving), teller(options)?, apply));
    timeout(FIRST, plan.changed()).await.ok();

    let wanted: Vec<Wanted> =
        manifest.chunks.iter().map(|c| Wanted { index: c.index, offset: c.offset, len: c.length }).collect();
    let (sink, mut frames) = mpsc::channel(4);
    let (fetched, bytes) = tokio::join!(relay.fetch(&wanted, sink), async {
        let mut bytes = 0;
        while let Some(frame) = frames.recv().await {
            bytes += frame.bytes.len();
        }
        bytes
    });
    fetched?;
    let done = now();
    let report = serde_json::to_string(&relay.sources())?;
    writeln!(std::io::stdout(), "{{\"done\":{done:.6},\"bytes\":{bytes},\"from\":{report}}}")?;
    if let Some(stamp) = option(options, "stamp") {
        std::fs::write(stamp, format!("{done:.6}\n"))?;
    }
    Ok(serving.await?)
}

/// Asks the appliance as the agent does.
fn teller(options: &Options) -> Result<impl Fn(SwarmReport) -> BoxFuture<'static, Answer> + Send + 'static> {
    let appliance: IpAddr = option(options, "appliance").ok_or(USAGE)?.parse()?;
    let rack = option(options, "rack").ok_or(USAGE)?;
    let at = SocketAddr::new(appliance, PLANS_PORT);
    let url = format!("http://{at}/swarm?machine={}&rack={rack}", MachineId::generate());
    let http = reqwest::Client::builder().tcp_nodelay(true).no_proxy().tls_certs_only([]).build()?;
    Ok(move |report: SwarmReport| {
        let request = http.post(&url).json(&report).send();
        let ask = async move { request.await?.error_for_status()?.json().await };
        ask.map(|plan: reqwest::Result<SwarmPlan>| plan.map_or(Answer::Lost, Answer::Plan)).boxed()
    })
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
