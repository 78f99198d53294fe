//! The swarm's relay in one process, each machine on an address of the loopback of its own: rows of machines, peers that
//! break or lie, and strangers. What the wire's bytes mean is tested beside `wire.rs`.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use rackline::error::Result;
use rackline::image::chunk::Packed;
use rackline::image::{Chunk, Manifest};
use rackline::link::SwarmPlan;
use rackline::machine::{Digest, Secret};
use rackline::swarm::wire::{self, Bitmap};
use rackline::swarm::{
    Fallback, Frame, Holdings, Keep, RamKeep, Relay, RelayLimits, ServeLimits, Server, Source, Wanted, group,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::fixture::{manifest, noise};

/// Longer than anything here may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// Four groups and a part of one.
const FRAME: usize = 4 * group::GROUP + 4_321;
/// Bytes a second where a test needs time to break something.
const SLOW: u64 = 4 << 20;

/// An image whose frames are random bytes: what they decompress to does not matter here.
#[derive(Clone)]
struct Image {
    digest: Digest,
    manifest: Arc<Manifest>,
    data: Bytes,
}

impl Image {
    /// The last frame is shorter.
    fn new(name: &str, frames: u32) -> Self {
        let data = Bytes::from(noise(name, frames as usize * FRAME - 70_000));
        let size = 512 << 10;
        let chunks = (0..frames).map(|i| {
            let frame = data.slice(i as usize * FRAME..((i as usize + 1) * FRAME).min(data.len()));
            Chunk {
                // Chunks of nothing but zeros are in no frame.
                index: 3 * i + 1,
                offset: u64::from(i) * FRAME as u64,
                length: frame.len() as u32,
                frame: Digest::of(&frame),
                raw: Digest::of(&frame),
                disk_offset: u64::from(3 * i + 1) * u64::from(size),
                raw_length: size,
            }
        });
        let packed = Packed {
            disk_size: u64::from(3 * frames + 1) * u64::from(size),
            chunk_size: size,
            used_bytes: u64::from(frames) * u64::from(size),
            data_size: data.len() as u64,
            chunks: chunks.collect(),
        };
        Self { digest: Digest::of(name.as_bytes()), manifest: Arc::new(manifest(name, packed)), data }
    }

    fn frame(&self, frame: u32) -> Bytes {
        let chunk = &self.manifest.chunks[frame as usize];
        self.data.slice(chunk.offset as usize..chunk.offset as usize + chunk.length as usize)
    }

    fn frames(&self) -> u32 {
        self.manifest.chunks.len() as u32
    }

    fn wanted(&self) -> Vec<Wanted> {
        self.manifest.chunks.iter().map(|c| Wanted { index: c.index, offset: c.offset, len: c.length }).collect()
    }

    async fn complete(&self) -> Arc<Holdings> {
        let keep = RamKeep::new(u64::MAX);
        for (frame, chunk) in (0..).zip(&self.manifest.chunks) {
            assert!(keep.put(chunk, self.frame(frame)).await);
        }
        Arc::new(Holdings::complete(self.digest, Arc::clone(&self.manifest), Box::new(keep)))
    }

    fn empty(&self) -> Arc<Holdings> {
        Arc::new(Holdings::empty(self.digest, Arc::clone(&self.manifest), Box::new(RamKeep::new(u64::MAX))))
    }

    fn hello(&self, key: &str) -> Vec<u8> {
        let proof = wire::proof(&Secret::new(key), &self.digest);
        wire::hello(&proof, &self.digest, &Bitmap::new(self.frames(), false), &[]).to_vec()
    }
}

/// Something that listens, until it is ended or dropped.
struct Serving {
    address: SocketAddr,
    server: Arc<Server>,
    stop: CancellationToken,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn serve(host: u8, port: u16, holdings: &[Arc<Holdings>], rate: Option<u64>, limits: ServeLimits) -> Serving {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, host], port))).await.unwrap();
    let (server, stop) = (Server::new(limits), CancellationToken::new());
    server.limit(rate);
    holdings.iter().for_each(|h| server.share(Arc::clone(h), &Secret::new("key")));
    let address = listener.local_addr().unwrap();
    tokio::spawn(Arc::clone(&server).serve(listener, stop.clone()));
    Serving { address, server, stop }
}

async fn seeder(image: &Image, rate: Option<u64>) -> Serving {
    serve(1, 0, &[image.complete().await], rate, ServeLimits::default()).await
}

/// The deadlines of a relay, shorter, so that they pass in a test; none is so short that a busy machine misses it.
fn limits() -> RelayLimits {
    RelayLimits {
        connect: Duration::from_secs(1),
        silence: Duration::from_secs(1),
        stall: Duration::from_secs(1),
        probe: Duration::from_secs(2),
        fallback: Duration::from_millis(500),
        starved: Duration::from_secs(20),
        patience: Duration::from_secs(30),
        ..RelayLimits::default()
    }
}

/// Frames in the order in which the sink got them.
type Got = Arc<Mutex<Vec<(u32, Bytes)>>>;

/// A machine that fetches an image and serves it.
struct Machine {
    serving: Serving,
    image: Image,
    holdings: Arc<Holdings>,
    relay: Arc<Relay>,
    plan: watch::Sender<SwarmPlan>,
    got: Got,
    fetching: JoinHandle<Result<()>>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.fetching.abort();
    }
}

fn plan(predecessors: &[SocketAddr], key: &str) -> SwarmPlan {
    let predecessors = predecessors.to_vec();
    SwarmPlan { predecessors, key: Secret::new(key), upload_limit: None, needed: true, seat: 0 }
}

impl Machine {
    async fn start(host: u8, image: &Image, from: &[SocketAddr]) -> Self {
        Self::with(host, image, plan(from, "key"), None, limits()).await
    }

    async fn with(host: u8, image: &Image, plan: SwarmPlan, fallback: Option<Fallback>, limits: RelayLimits) -> Self {
        let holdings = image.empty();
        let serving = serve(host, 0, &[Arc::clone(&holdings)], None, ServeLimits::default()).await;
        let (plan, receiver) = watch::channel(plan);
        let note = move |note: Option<String>| note.into_iter().for_each(|n| eprintln!("machine {host}: {n}"));
        let relay = Arc::new(Relay::new(Arc::clone(&holdings), receiver, fallback, |_| false, note, limits));
        let got = Got::default();
        let (sink, mut frames) = mpsc::channel(4);
        let (fetcher, wanted, taken) = (Arc::clone(&relay), image.wanted(), Arc::clone(&got));
        let fetching = tokio::spawn(async move {
            let take = async {
                while let Some(Frame { index, bytes }) = frames.recv().await {
                    taken.lock().unwrap().push((index, bytes));
                }
            };
            tokio::join!(fetcher.fetch(&wanted, sink), take).0
        });
        Self { serving, image: image.clone(), holdings, relay, plan, got, fetching }
    }

    fn address(&self) -> SocketAddr {
        self.serving.address
    }

    fn count(&self) -> u32 {
        self.got.lock().unwrap().len() as u32
    }

    async fn has(&self, frames: u32) {
        within(&format!("{frames} frames"), async {
            while self.count() < frames {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// Everything came, once, and is what was signed.
    async fn finish(&mut self) {
        within("all frames", &mut self.fetching).await.unwrap().unwrap();
        let got = self.got.lock().unwrap();
        let frames: BTreeMap<u32, &Bytes> = got.iter().map(|(index, bytes)| (*index, bytes)).collect();
        assert_eq!((got.len(), frames.len()), (self.image.frames() as usize, self.image.frames() as usize));
        for (frame, chunk) in (0..).zip(&self.image.manifest.chunks) {
            assert!(*frames[&chunk.index] == self.image.frame(frame), "frame {frame}");
        }
        assert_eq!(self.holdings.held(), (self.image.frames(), self.image.data.len() as u64));
    }

    fn from(&self, peer: SocketAddr) -> u64 {
        let report = self.relay.report(0, false);
        report.from.iter().find(|source| source.address == peer).map_or(0, |source| source.bytes)
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}

fn sent(serving: &Serving) -> u64 {
    serving.server.counted.sent.load(Ordering::Relaxed)
}

// Machines in a row

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_of_eight_gets_the_image_and_the_seeder_sends_it_once() {
    let image = Image::new("row", 16);
    let seeder = seeder(&image, None).await;
    let mut row: Vec<Machine> = Vec::new();
    for host in 2..10 {
        let before = row.last().map_or(seeder.address, Machine::address);
        row.push(Machine::start(host, &image, &[before]).await);
    }
    for machine in &mut row {
        machine.finish().await;
        assert_eq!(machine.from(machine.plan.borrow().predecessors[0]), image.data.len() as u64);
    }
    assert_eq!(sent(&seeder), image.data.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_joins_late_passes_on_what_comes_now_and_makes_up_for_the_beginning() {
    let image = Image::new("late", 24);
    let seeder = seeder(&image, Some(SLOW)).await;
    let mut first = Machine::start(2, &image, &[seeder.address]).await;
    // Not more than what comes now: on a faster link, the gaps are filled meanwhile.
    first.serving.server.limit(Some(SLOW * 3 / 4));
    first.has(8).await;
    let mut late = Machine::start(3, &image, &[first.address()]).await;
    let mut last = Machine::start(4, &image, &[late.address()]).await;
    for machine in [&mut first, &mut late, &mut last] {
        machine.finish().await;
    }
    // The seeder sends from the beginning; the others began where the stream was.
    let order: Vec<u32> = last.got.lock().unwrap().iter().map(|(index, _)| index / 3).collect();
    assert!(order[0] >= 8 && order[23] < 8, "{order:?}");
    assert_eq!(first.got.lock().unwrap()[0].0 / 3, 0);
    assert_eq!((sent(&seeder), sent(&first.serving)), (image.data.len() as u64, image.data.len() as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_images_at_once_through_the_same_machine() {
    let images = [Image::new("one", 8), Image::new("two", 12)];
    let all = [images[0].complete().await, images[1].complete().await];
    let seeder = serve(1, 0, &all, None, ServeLimits::default()).await;
    let mut first = [
        Machine::start(2, &images[0], &[seeder.address]).await,
        Machine::start(2, &images[1], &[seeder.address]).await,
    ];
    // One server with both, one of which still arrives.
    let both = [Arc::clone(&first[0].holdings), Arc::clone(&first[1].holdings)];
    let middle = serve(3, 0, &both, None, ServeLimits::default()).await;
    let mut last = [
        Machine::start(4, &images[0], &[middle.address]).await,
        Machine::start(4, &images[1], &[middle.address]).await,
    ];
    for machine in first.iter_mut().chain(&mut last) {
        machine.finish().await;
    }
    middle.server.unshare(&images[0].digest);
    assert_eq!(ask(middle.address, &images[0].hello("key")).await, Some(wire::refused(wire::Refusal::Unknown)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_on_what_goes_out_can_be_changed_while_it_does() {
    let image = Image::new("limit", 16);
    let seeder = seeder(&image, Some(1)).await;
    let mut machine = Machine::start(2, &image, &[seeder.address]).await;
    // The least that is kept is 256 KiB/s: the whole would take 16 s.
    machine.has(1).await;
    let began = Instant::now();
    seeder.server.limit(None);
    machine.finish().await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_ready_later_takes_its_place_and_the_standby_is_free_again() {
    let image = Image::new("later", 24);
    let seeder = seeder(&image, Some(SLOW)).await;
    let reserved = TcpListener::bind("127.0.0.5:0").await.unwrap();
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    let mut second = Machine::start(3, &image, &[address, seeder.address]).await;
    second.has(4).await;
    // It is behind the one that it is to feed, and whatever the seeder sends comes to both alike.
    let mut first = Machine::start(2, &image, &[seeder.address]).await;
    let there = serve(5, address.port(), &[Arc::clone(&first.holdings)], None, ServeLimits::default()).await;
    first.finish().await;
    second.finish().await;
    let twice = sent(&seeder) - image.data.len() as u64;
    assert!(twice <= 14 * FRAME as u64, "{} frames", twice / FRAME as u64);
    assert!(sent(&there) > image.data.len() as u64 / 3);
}

// Peers that break

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_predecessor_dies_the_next_one_goes_on() {
    let image = Image::new("dies", 24);
    let seeder = seeder(&image, Some(SLOW)).await;
    let first = Machine::start(2, &image, &[seeder.address]).await;
    let mut second = Machine::start(3, &image, &[first.address(), seeder.address]).await;
    let mut third = Machine::start(4, &image, &[second.address()]).await;
    second.has(12).await;
    let gone = first.address();
    drop(first);
    second.finish().await;
    third.finish().await;
    let whole = image.data.len() as u64;
    assert!(second.from(gone) > whole / 3 && second.from(seeder.address) > whole / 3);
    // Not one group came twice, but for what was on its way.
    assert!(second.from(gone) + second.from(seeder.address) <= whole + 2 * group::GROUP as u64);
    assert_eq!(third.from(second.address()), whole);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_seeder_is_gone_machines_help_one_another_and_then_go_on() {
    let image = Image::new("gone", 24);
    let seeder = seeder(&image, Some(SLOW)).await;
    let mut first = Machine::start(2, &image, &[seeder.address]).await;
    let mut second = Machine::start(3, &image, &[first.address(), seeder.address]).await;
    first.has(8).await;
    let address = seeder.address;
    seeder.stop.cancel();
    // Longer than any of the deadlines that make a relay leave a peer.
    sleep(Duration::from_millis(2500)).await;
    let mut late = Machine::start(4, &image, &[second.address(), first.address()]).await;
    late.has(first.count()).await;
    assert!(first.count() < 24);
    let again = serve(1, address.port(), &[image.complete().await], None, ServeLimits::default()).await;
    for machine in [&mut first, &mut second, &mut late] {
        machine.finish().await;
    }
    assert_eq!(late.from(again.address), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_has_nothing_new_itself_is_not_left() {
    let image = Image::new("patient", 8);
    let seeder = seeder(&image, None).await;
    let patient = RelayLimits { probe: DEADLINE, ..limits() };
    let first = image.empty();
    let before = serve(2, 0, &[Arc::clone(&first)], None, ServeLimits::default()).await;
    let from = plan(&[before.address, seeder.address], "key");
    let mut machine = Machine::with(3, &image, from, None, patient).await;
    sleep(Duration::from_millis(2500)).await;
    assert_eq!(machine.count(), 0);
    for frame in 0..8 {
        let whole = first.put_frame(frame, &image.frame(frame)).unwrap().unwrap();
        assert!(first.settle(&whole).await);
    }
    machine.finish().await;
    assert_eq!((machine.from(before.address), machine.from(seeder.address)), (image.data.len() as u64, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_plan_is_followed_at_once() {
    let image = Image::new("plan", 24);
    let (slow, fast) = (seeder(&image, Some(SLOW)).await, seeder(&image, None).await);
    let mut machine = Machine::start(2, &image, &[slow.address]).await;
    machine.has(4).await;
    machine.plan.send_replace(plan(&[fast.address, slow.address], "key"));
    machine.finish().await;
    assert!(machine.from(fast.address) > image.data.len() as u64 / 2);
}

/// How a peer treats a successor whose hello it has read.
type Manners = fn(Image, TcpStream) -> BoxFuture<'static, std::io::Result<()>>;

async fn peer(host: u8, image: &Image, manners: Manners) -> SocketAddr {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, host], 0))).await.unwrap();
    let (address, image) = (listener.local_addr().unwrap(), image.clone());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let image = image.clone();
            tokio::spawn(async move {
                let mut head = [0; wire::HELLO];
                stream.read_exact(&mut head).await?;
                let hello = wire::Hello::parse(&head).unwrap();
                let mut tail = vec![0; hello.tail()];
                stream.read_exact(&mut tail).await?;
                manners(image, stream).await
            });
        }
    });
    address
}

/// Says nothing more, and does not hang up.
async fn hold(stream: TcpStream) -> std::io::Result<()> {
    sleep(DEADLINE).await;
    drop(stream);
    Ok(())
}

async fn begin(image: &Image, stream: &mut TcpStream, frame: u32, first: u16) -> std::io::Result<()> {
    let chunk = &image.manifest.chunks[frame as usize];
    let values = group::Values::of(&image.frame(frame), chunk.frame).unwrap();
    stream.write_all(&wire::begin(frame, first)).await?;
    stream.write_all(values.list()).await
}

/// Machines behind a peer that does not do what it should get everything, from the seeder; within seconds.
async fn passed_over(name: &str, manners: Manners) -> (SocketAddr, Machine) {
    let image = Image::new(name, 8);
    let seeder = seeder(&image, None).await;
    let bad = peer(2, &image, manners).await;
    let mut machine = Machine::start(3, &image, &[bad, seeder.address]).await;
    let mut behind = Machine::start(4, &image, &[machine.address()]).await;
    machine.finish().await;
    behind.finish().await;
    let report = behind.relay.report(0, false);
    assert_eq!((report.garbage, report.from.len()), (vec![], 1), "{name}: not a byte of it went on");
    (bad, machine)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_stalls_is_passed_over() {
    let silent: Manners = |_, stream| hold(stream).boxed();
    let says_it_has_more: Manners = |image, mut stream| {
        async move {
            loop {
                stream.write_all(&wire::alive(image.frames(), image.frames(), true)).await?;
                sleep(wire::KEEP_ALIVE).await;
            }
        }
        .boxed()
    };
    let stops_in_a_group: Manners = |image, mut stream| {
        async move {
            stream.write_all(&wire::alive(image.frames(), image.frames(), true)).await?;
            begin(&image, &mut stream, 0, 0).await?;
            stream.write_all(&wire::group(0, 0)).await?;
            stream.write_all(&image.frame(0)[..1000]).await?;
            hold(stream).await
        }
        .boxed()
    };
    let a_byte_at_a_time: Manners = |image, mut stream| {
        async move {
            begin(&image, &mut stream, 0, 0).await?;
            stream.write_all(&wire::group(0, 0)).await?;
            for byte in image.frame(0) {
                stream.write_all(&[byte]).await?;
                sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        }
        .boxed()
    };
    let hangs_up: Manners = |_, _| async { Ok(()) }.boxed();
    let has_nothing: Manners = |_, mut stream| {
        async move {
            stream.write_all(&wire::alive(0, 0, true)).await?;
            hold(stream).await
        }
        .boxed()
    };
    let cases = [
        ("silent", silent),
        ("says it has more", says_it_has_more),
        ("stops in a group", stops_in_a_group),
        ("a byte at a time", a_byte_at_a_time),
        ("hangs up", hangs_up),
        ("has nothing", has_nothing),
    ];
    let runs = cases.map(|(name, manners)| async move {
        let (_, machine) = passed_over(name, manners).await;
        assert_eq!(machine.relay.report(0, false).garbage, [], "{name}: slow is not wrong");
    });
    futures::future::join_all(runs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_sends_garbage_is_named_once_and_passed_over() {
    let wrong_bytes: Manners = |image, mut stream| {
        async move {
            begin(&image, &mut stream, 0, 0).await?;
            for number in 0..4 {
                let mut bytes = image.frame(0)[group::range(FRAME as u32, number).unwrap()].to_vec();
                // The last one, so that the others are good.
                bytes[77] ^= u8::from(number == 3);
                stream.write_all(&wire::group(0, number)).await?;
                stream.write_all(&bytes).await?;
            }
            hold(stream).await
        }
        .boxed()
    };
    let wrong_list: Manners = |_, mut stream| {
        async move {
            stream.write_all(&wire::begin(1, 0)).await?;
            stream.write_all(&[7; 5 * 32]).await?;
            hold(stream).await
        }
        .boxed()
    };
    let same_frame_without_end: Manners = |image, mut stream| {
        async move {
            loop {
                begin(&image, &mut stream, 2, 4).await?;
                stream.write_all(&wire::group(2, 4)).await?;
                stream.write_all(&image.frame(2)[4 * group::GROUP..]).await?;
            }
        }
        .boxed()
    };
    let all_frames_at_once: Manners = |image, mut stream| {
        async move {
            for frame in 0..image.frames() {
                begin(&image, &mut stream, frame, 0).await?;
            }
            begin(&image, &mut stream, 0, 0).await?;
            hold(stream).await
        }
        .boxed()
    };
    let beyond_the_image: Manners = |image, mut stream| {
        async move {
            stream.write_all(&wire::begin(image.frames(), 0)).await?;
            hold(stream).await
        }
        .boxed()
    };
    let not_announced: Manners = |image, mut stream| {
        async move {
            stream.write_all(&wire::group(0, 0)).await?;
            stream.write_all(&image.frame(0)[..group::GROUP]).await?;
            hold(stream).await
        }
        .boxed()
    };
    let another_protocol: Manners = |_, mut stream| {
        async move {
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await?;
            hold(stream).await
        }
        .boxed()
    };
    let cases = [
        ("wrong bytes", wrong_bytes),
        ("wrong list", wrong_list),
        ("same frame without end", same_frame_without_end),
        ("all frames at once", all_frames_at_once),
        ("beyond the image", beyond_the_image),
        ("not announced", not_announced),
        ("another protocol", another_protocol),
    ];
    let runs = cases.map(|(name, manners)| async move {
        let (bad, machine) = passed_over(name, manners).await;
        assert_eq!(machine.relay.report(0, false).garbage, [bad], "{name}");
        assert_eq!(machine.relay.report(0, false).garbage, [], "{name}: told once");
    });
    futures::future::join_all(runs).await;
}

// The appliance over HTTP

/// Frames as HTTP brings them.
struct Shelf {
    image: Image,
    brought: Arc<AtomicUsize>,
    wrong: bool,
}

impl Source for Shelf {
    fn fetch<'a>(&'a self, wanted: &'a [Wanted], sink: mpsc::Sender<Frame>) -> BoxFuture<'a, Result<()>> {
        async move {
            for wanted in wanted {
                let at = wanted.offset as usize;
                let mut bytes = self.image.data.slice(at..at + wanted.len as usize);
                if self.wrong {
                    bytes = vec![0; bytes.len()].into();
                }
                self.brought.fetch_add(1, Ordering::Relaxed);
                let _ = sink.send(Frame { index: wanted.index, bytes }).await;
            }
            Ok(())
        }
        .boxed()
    }
}

fn shelf(image: &Image, wrong: bool) -> (Fallback, Arc<AtomicUsize>) {
    let brought = Arc::<AtomicUsize>::default();
    let source = Shelf { image: image.clone(), brought: Arc::clone(&brought), wrong };
    (Fallback { source: Box::new(source), address: ([127, 0, 0, 9], 80).into() }, brought)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_brings_what_no_peer_does_and_nothing_else() {
    let image = Image::new("http", 24);
    let closed = TcpListener::bind("127.0.0.8:0").await.unwrap().local_addr().unwrap();
    let (fallback, brought) = shelf(&image, false);
    let mut alone = Machine::with(2, &image, plan(&[closed], "key"), Some(fallback), limits()).await;
    let (unused, none) = shelf(&image, false);
    let mut behind = Machine::with(3, &image, plan(&[alone.address()], "key"), Some(unused), limits()).await;
    alone.finish().await;
    behind.finish().await;
    assert_eq!(alone.from(([127, 0, 0, 9], 80).into()), image.data.len() as u64);
    assert_eq!((brought.load(Ordering::Relaxed), none.load(Ordering::Relaxed)), (24, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_wrong_over_http_three_times_ends_it() {
    let image = Image::new("wrong", 2);
    let (fallback, brought) = shelf(&image, true);
    let mut machine = Machine::with(2, &image, plan(&[], "key"), Some(fallback), limits()).await;
    let error = within("an error", &mut machine.fetching).await.unwrap().unwrap_err();
    assert_eq!(error.code(), "image.chunk");
    assert_eq!((machine.count(), brought.load(Ordering::Relaxed)), (0, 6));
}

// Strangers

/// The first message that comes back; `None`: the connection was closed.
async fn ask(server: SocketAddr, hello: &[u8]) -> Option<[u8; wire::HEAD]> {
    let mut stream = TcpStream::connect(server).await.unwrap();
    stream.write_all(hello).await.ok()?;
    let mut head = [0; wire::HEAD];
    within("an answer", stream.read_exact(&mut head)).await.ok()?;
    Some(head)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_knows_key_and_image_is_served() {
    let image = Image::new("stranger", 11);
    let limits = ServeLimits { hello: Duration::from_millis(500), ..ServeLimits::default() };
    let server = serve(1, 0, &[image.complete().await], None, limits).await;
    let refused = |why| Some(wire::refused(why));
    let good = image.hello("key");
    assert_eq!(ask(server.address, &good).await, Some(wire::alive(11, 11, true)));
    assert_eq!(ask(server.address, &image.hello("lock")).await, refused(wire::Refusal::Unknown));
    let other = Image::new("another", 11).hello("key");
    assert_eq!(ask(server.address, &other).await, refused(wire::Refusal::Unknown));
    let with = |at: usize, bytes: &[u8]| {
        let mut hello = good.clone();
        hello[at..at + bytes.len()].copy_from_slice(bytes);
        hello
    };
    let malformed = [
        with(0, b"GET / HTTP/1.1\r\n"),
        with(72, &12_u32.to_le_bytes()),
        with(72, &u32::MAX.to_le_bytes()),
        with(76, &33_u16.to_le_bytes()),
        with(78, &[1]),
        with(81, &[0x80]),
    ];
    for hello in malformed {
        assert_eq!(ask(server.address, &hello).await, refused(wire::Refusal::Malformed));
    }
    // Cut short, and one byte at a time: no answer, and not for long.
    assert_eq!(ask(server.address, &good[..good.len() - 1]).await, None);
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    let drip = async {
        for byte in &good {
            if slow.write_all(&[*byte]).await.is_err() {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("somebody who took 4 s for a hello is served");
    };
    within("the end of a slow hello", drip).await;
    // The machine that is told the wrong key gives up, and does not call anybody a liar.
    let impatient = RelayLimits { patience: Duration::from_secs(2), ..self::limits() };
    let mut machine = Machine::with(2, &image, plan(&[server.address], "lock"), None, impatient).await;
    let error = within("an error", &mut machine.fetching).await.unwrap().unwrap_err();
    assert_eq!((error.code(), machine.relay.report(0, false).garbage), ("source.unreachable", vec![]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_hold_connections_do_not_keep_others_out_for_long() {
    let image = Image::new("crowd", 16);
    let limits = ServeLimits {
        connections: 3,
        per_address: 3,
        hello: Duration::from_millis(800),
        stuck: Duration::from_millis(800),
    };
    let server = serve(1, 0, &[image.complete().await], None, limits).await;
    // One that never reads, two that say nothing.
    let mut deaf = TcpStream::connect(server.address).await.unwrap();
    deaf.write_all(&image.hello("key")).await.unwrap();
    let mute = [TcpStream::connect(server.address).await.unwrap(), TcpStream::connect(server.address).await.unwrap()];
    within("three connections", async {
        while server.server.successors() < 3 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(ask(server.address, &[]).await, Some(wire::refused(wire::Refusal::Full)));
    let mut machine = Machine::start(2, &image, &[server.address]).await;
    machine.finish().await;
    within("the deaf one's end", async {
        while server.server.counted.stuck.load(Ordering::Relaxed) == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    drop((deaf, mute));
}
