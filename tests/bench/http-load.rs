//! For `http.sh`: a client that throws away what it gets, and the server that it asks.
//!
//! * `http-load fetch ADDRESS PATH CLIENTS REQUESTS LENGTH SIZE`: as many connections at once, each with so many requests one
//!   after the other, each for `LENGTH` bytes of a file of `SIZE`. Prints bytes, seconds and GB/s.
//! * `http-load serve ADDRESS FILE`: the machines' web server as the appliance runs it, with `FILE` as `/boot/files/file`.
//!
//! Bodies are dropped in the kernel (`MSG_TRUNC`, tcp(7)), so the client takes as little of the two cores as it can.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Instant;

use rackline::httpd::{Limits, Server};
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Bytes that are dropped with one call.
const PIECE: usize = 1 << 20;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let outcome = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["fetch", address, path, clients, requests, length, size] => {
            numbers([clients, requests, length, size]).and_then(|numbers| fetch(address, path, numbers))
        }
        ["serve", address, file] => serve(address, file),
        _ => Err("usage: http-load fetch ADDRESS PATH CLIENTS REQUESTS LENGTH SIZE | serve ADDRESS FILE".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("http-load: {e}");
            ExitCode::FAILURE
        }
    }
}

fn numbers<const N: usize>(texts: [&str; N]) -> Outcome<[u64; N]> {
    let mut numbers = [0; N];
    for (number, text) in numbers.iter_mut().zip(texts) {
        *number = text.parse()?;
    }
    Ok(numbers)
}

fn serve(address: &str, file: &str) -> Outcome<()> {
    let (address, file): (SocketAddr, _) = (address.parse()?, std::path::PathBuf::from(file));
    // As `rackline serve`.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let find = move |path: &str| (path == "/boot/files/file").then(|| file.clone());
        let server = Server::new(find, axum::Router::new(), Limits::default(), Default::default(), Default::default());
        server.run(TcpListener::bind(address).await?).await;
        Ok(())
    })
}

fn fetch(address: &str, path: &str, [clients, requests, length, size]: [u64; 4]) -> Outcome<()> {
    let address: SocketAddr = address.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let started = Instant::now();
        let mut running = tokio::task::JoinSet::new();
        for client in 0..clients {
            // Each reads another stretch of the file.
            let first = if length < size { client * length % (size - length) } else { 0 };
            let path = path.to_owned();
            running.spawn(async move { one(address, &path, requests, first, length).await });
        }
        let mut bytes = 0;
        while let Some(got) = running.join_next().await {
            bytes += got??;
        }
        let seconds = started.elapsed().as_secs_f64();
        println!("bytes={bytes} seconds={seconds:.3} GBps={:.3}", bytes as f64 / 1e9 / seconds);
        Ok(())
    })
}

/// One client; how many bytes it got.
async fn one(address: SocketAddr, path: &str, requests: u64, first: u64, length: u64) -> Outcome<u64> {
    let mut stream = TcpStream::connect(address).await?;
    let last = first + length - 1;
    let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\nRange: bytes={first}-{last}\r\n\r\n");
    let mut nowhere = vec![0; PIECE];
    for _ in 0..requests {
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        // Byte by byte, so that nothing of the body comes along.
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        if !head.starts_with(b"HTTP/1.1 206") {
            return Err(String::from_utf8_lossy(&head).into_owned().into());
        }
        let mut left = length as usize;
        while left > 0 {
            let piece = left.min(PIECE);
            let mut take = || Ok(recv(&stream, &mut nowhere[..piece], RecvFlags::TRUNC | RecvFlags::DONTWAIT)?.1);
            match stream.try_io(Interest::READABLE, &mut take) {
                Ok(0) => return Err("the body is cut short".into()),
                Ok(n) => left -= n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => stream.readable().await?,
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(requests * length)
}
