//! One machine of a swarm as a program of its own: the relay, its holdings and its server exactly as agent and appliance
//! use them, with a file in place of the disk. For the scripts beside it, which give each its own network namespace.
//!
//! ```text
//! swarm-node cut  FILE MANIFEST [KIB]            describe FILE as an image with frames of KIB (1024)
//! swarm-node seed LISTEN MANIFEST FILE [MANIFEST FILE]... [--limit BYTES_PER_SECOND]
//! swarm-node leech LISTEN MANIFEST OUT --from ADDRESS[,ADDRESS]... [--stamp FILE] [--go FILE] [--limit BYTES_PER_SECOND]
//! swarm-node garbage LISTEN MANIFEST FILE [--every N]   like seed, but each Nth group (10) has a wrong byte
//! ```
//!
//! LISTEN and ADDRESS are `IP:PORT`. `--from` is the plan: the first feeds this machine, the others stand by. A file
//! FILE.plan beside OUT, when it appears or changes, replaces the plan: one ADDRESS a line. A leech begins when the file of
//! `--go` exists, writes the Unix time at which its last byte was verified and written to OUT, as `SECONDS.FRACTION`, to the
//! stamp file and a line of JSON with what came from whom to standard output; then it serves on until it is ended.
//!
//! Everything runs on one thread, since many of these share a machine.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, ready};
use rackline::image::manifest::Boot;
use rackline::image::{Chunk, Manifest, chunk};
use rackline::link::SwarmPlan;
use rackline::machine::{Digest, Firmware, Secret};
use rackline::swarm::{FileKeep, Holdings, Keep, Relay, RelayLimits, ServeLimits, Server, Source, Wanted, group, wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

const KEY: &str = "bench";
const USAGE: &str = "swarm-node cut|seed|leech|garbage …, see the head of tests/bench/swarm-node.rs";

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
        ["cut", file, manifest] => cut(Path::new(file), Path::new(manifest), 1024),
        ["cut", file, manifest, kib] => cut(Path::new(file), Path::new(manifest), kib.parse()?),
        ["seed", listen, ref files @ ..] if files.len() >= 2 => runtime.block_on(seed(listen, files, &options)),
        ["leech", listen, manifest, out] => runtime.block_on(leech(listen, manifest, Path::new(out), &options)),
        ["garbage", listen, manifest, file] => runtime.block_on(garbage(listen, manifest, file, &options)),
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
fn cut(file: &Path, manifest: &Path, kib: u32) -> Result {
    let data = std::fs::read(file)?;
    let size = (kib << 10) as usize;
    let mut chunks = Vec::new();
    for (index, piece) in (0..).zip(data.chunks(size)) {
        let (offset, length, digest) = (u64::from(index) * size as u64, piece.len() as u32, Digest::of(piece));
        let at = (offset, size as u32);
        chunks.push(Chunk { index, offset, length, frame: digest, raw: digest, disk_offset: at.0, raw_length: at.1 });
    }
    let disk_size = chunks.len() as u64 * size as u64;
    let image = Manifest {
        name: "bench".into(),
        release: "1".into(),
        arch: "amd64".into(),
        roles: vec![],
        firmware: vec![Firmware::Bios],
        disk_size,
        chunk_size: size as u32,
        used_bytes: disk_size,
        data_size: data.len() as u64 + chunk::seek_table_len(chunks.len() as u32),
        boot: Boot {
            root_label: "root".into(),
            release: "1".into(),
            kernel: "/k".into(),
            initrd: "/i".into(),
            command_line: String::new(),
        },
        labels: Default::default(),
        chunks,
    };
    Ok(std::fs::write(manifest, image.encode().map_err(|e| format!("{e:?}"))?)?)
}

fn image(path: &str) -> Result<(Digest, Arc<Manifest>)> {
    let bytes = std::fs::read(path)?;
    Ok((Digest::of(&bytes), Arc::new(Manifest::parse(&bytes).map_err(|e| format!("{e:?}"))?)))
}

fn limit(server: &Server, options: &Options) -> Result {
    server.limit(option(options, "limit").map(str::parse).transpose()?);
    Ok(())
}

async fn seed(listen: &str, files: &[&str], options: &Options) -> Result {
    let server = Server::new(ServeLimits::default());
    limit(&server, options)?;
    for pair in files.chunks(2) {
        let [manifest, file] = pair else { return Err(USAGE.into()) };
        let (digest, manifest) = image(manifest)?;
        let keep = FileKeep::open(Path::new(file)).map_err(|e| format!("{e:?}"))?;
        server.share(Arc::new(Holdings::complete(digest, manifest, Box::new(keep))), &Secret::new(KEY));
    }
    server.serve(TcpListener::bind(listen).await?, CancellationToken::new()).await;
    Ok(())
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

async fn leech(listen: &str, manifest: &str, out: &Path, options: &Options) -> Result {
    let (digest, manifest) = image(manifest)?;
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(out)?;
    let holdings = Arc::new(Holdings::empty(digest, Arc::clone(&manifest), Box::new(OutKeep(file))));
    let server = Server::new(ServeLimits::default());
    limit(&server, options)?;
    server.share(Arc::clone(&holdings), &Secret::new(KEY));
    let listener = TcpListener::bind(listen).await?;
    let serving = tokio::spawn(Arc::clone(&server).serve(listener, CancellationToken::new()));

    let plan = SwarmPlan {
        predecessors: addresses(&option(options, "from").ok_or(USAGE)?.replace(',', "\n"))?,
        key: Secret::new(KEY),
        upload_limit: None,
        needed: true,
        seat: 0,
    };
    let (sender, receiver) = watch::channel(plan);
    tokio::spawn(watch_plan(out.with_extension("plan"), sender));
    if let Some(go) = option(options, "go") {
        while !Path::new(go).exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let note = |note: Option<String>| {
        if let Some(note) = note {
            eprintln!("{:.3} {note}", now());
        }
    };
    let relay = Relay::new(holdings, receiver, None, |_| false, note, RelayLimits::default());
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
    fetched.map_err(|e| format!("{e:?}"))?;
    let done = now();
    let report = serde_json::to_string(&relay.report(0, false))?;
    writeln!(std::io::stdout(), "{{\"done\":{done:.6},\"bytes\":{bytes},\"report\":{report}}}")?;
    if let Some(stamp) = option(options, "stamp") {
        std::fs::write(stamp, format!("{done:.6}\n"))?;
    }
    Ok(serving.await?)
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn addresses(text: &str) -> Result<Vec<SocketAddr>> {
    Ok(text.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?)
}

async fn watch_plan(file: PathBuf, plan: watch::Sender<SwarmPlan>) {
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        if let Ok(predecessors) = addresses(&text) {
            plan.send_if_modified(|plan| {
                let new = plan.predecessors != predecessors;
                plan.predecessors = predecessors;
                new
            });
        }
    }
}

/// A peer with honest words and damaged goods.
async fn garbage(listen: &str, manifest: &str, file: &str, options: &Options) -> Result {
    let (_, manifest) = image(manifest)?;
    let data = Arc::new(std::fs::read(file)?);
    let every = option(options, "every").map_or(Ok(10), str::parse)?;
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (manifest, data) = (Arc::clone(&manifest), Arc::clone(&data));
        tokio::spawn(async move { send_garbage(stream, &manifest, &data, every).await });
    }
}

async fn send_garbage(mut stream: TcpStream, image: &Manifest, data: &[u8], every: usize) -> std::io::Result<()> {
    let mut head = [0; wire::HELLO];
    stream.read_exact(&mut head).await?;
    let Some(hello) = wire::Hello::parse(&head) else { return Ok(()) };
    let mut tail = vec![0; hello.tail()];
    stream.read_exact(&mut tail).await?;
    let Some((skip, _)) = hello.parse_tail(&tail) else { return Ok(()) };
    stream.write_all(&wire::alive(hello.frames, skip.len() - skip.count(), true)).await?;
    let mut sent = 0;
    for (frame, chunk) in (0..).zip(&image.chunks).filter(|(frame, _)| !skip.get(*frame)) {
        let start = chunk.offset as usize;
        let bytes = &data[start..start + chunk.length as usize];
        let Some(values) = group::Values::of(bytes, chunk.frame) else { continue };
        stream.write_all(&wire::begin(frame, 0)).await?;
        stream.write_all(values.list()).await?;
        for number in 0..group::count(chunk.length) {
            let Some(range) = group::range(chunk.length, number) else { continue };
            let mut piece = bytes[range].to_vec();
            sent += 1;
            if sent % every == 0 {
                piece[0] ^= 1;
            }
            stream.write_all(&wire::group(frame, number)).await?;
            stream.write_all(&piece).await?;
        }
    }
    Ok(())
}
