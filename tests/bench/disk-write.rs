//! The agent's way from frames to the disk without network and appliance, run by `disk-write.sh`:
//!
//!     disk-write write IMAGE DEVICE [--no-journal]
//!     disk-write unpack IMAGE
//!
//! IMAGE is a folder with `manifest` and `disk.zst` as `rackline image build` makes it. `write` writes to DEVICE, a disk
//! whose content is lost; `unpack` only decompresses, on all cores, for comparison. Each prints one line: seconds, decompressed
//! bytes, most memory in KiB that this process ever had.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use rackline::agent::write_image;
use rackline::error::{Error, Kind, OrFail, Result};
use rackline::image::{Manifest, chunk};
use rackline::swarm::{Frame, Source, Wanted};
use tokio::sync::mpsc;

/// The fields before the manifest in a signed one.
const SIGNED_HEADER: usize = 84;

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (seconds, bytes) = match args[..] {
        ["write", image, device] => write(image, device, true).await?,
        ["write", image, device, "--no-journal"] => write(image, device, false).await?,
        ["unpack", image] => unpack(image)?,
        _ => return Err(Error::input("usage", "disk-write write IMAGE DEVICE [--no-journal] | unpack IMAGE")),
    };
    println!("{seconds:.3} {bytes} {}", most_memory());
    Ok(())
}

async fn write(image: &str, device: &str, journal: bool) -> Result<(f64, u64)> {
    let (manifest, data) = open(image)?;
    let source = FileSource(Arc::new(data));
    let start = Instant::now();
    let written = write_image(Path::new(device), Arc::new(manifest), &source, journal).await?;
    Ok((start.elapsed().as_secs_f64(), written))
}

fn unpack(image: &str) -> Result<(f64, u64)> {
    let (manifest, data) = open(image)?;
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let (mut frame, mut raw) = (Vec::new(), Vec::new());
                while let Some(chunk) = manifest.chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    frame.resize(chunk.length as usize, 0);
                    data.read_exact_at(&mut frame, chunk.offset).unwrap();
                    chunk::verify_and_decompress(chunk, &frame, &mut raw).unwrap();
                }
            });
        }
    });
    Ok((start.elapsed().as_secs_f64(), manifest.used_bytes))
}

/// Nothing is trusted here, so that no signature is checked.
fn open(image: &str) -> Result<(Manifest, File)> {
    let failed = || format!("{image} is no image's folder");
    let signed = std::fs::read(Path::new(image).join("manifest")).or_fail(Kind::Input, "bench.image", failed)?;
    let manifest = Manifest::parse(signed.get(SIGNED_HEADER..).unwrap_or_default())?;
    let data = File::open(Path::new(image).join("disk.zst")).or_fail(Kind::Input, "bench.image", failed)?;
    Ok((manifest, data))
}

/// Frames as fast as a file gives them, in the order that is asked for.
struct FileSource(Arc<File>);

impl Source for FileSource {
    fn fetch<'a>(&'a self, wanted: &'a [Wanted], sink: mpsc::Sender<Frame>) -> BoxFuture<'a, Result<()>> {
        let (file, wanted) = (Arc::clone(&self.0), wanted.to_vec());
        async move {
            let read = move || {
                for Wanted { index, offset, len } in wanted {
                    let mut bytes = vec![0; len as usize];
                    file.read_exact_at(&mut bytes, offset)?;
                    if sink.blocking_send(Frame { index, bytes: Bytes::from(bytes) }).is_err() {
                        break;
                    }
                }
                std::io::Result::Ok(())
            };
            let read = tokio::task::spawn_blocking(read).await.or_fail(Kind::Internal, "bench.read", || "reader")?;
            read.or_fail(Kind::Internal, "bench.read", || "the data file cannot be read")
        }
        .boxed()
    }
}

/// `VmHWM` of proc_pid_status(5).
fn most_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}
