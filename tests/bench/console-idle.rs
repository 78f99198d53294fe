//! What idle consoles cost: 1,000 of them recorded by one process, with nothing to record, against simulated BMCs in
//! another. Run by `console.sh`, which says what it is compared with.
//!
//! `console-idle CONSOLES SECONDS` prints the memory of one console in KiB and the share of a core that all take.

use std::io::{BufRead, BufReader, Read};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rackline::bmc::sol::hub::Status;
use rackline::bmc::sol::record::{Limits, Recorder};
use rackline::bmc::sol::{Consoles, Door, Timing};
use rackline::bmc::{Access, Doors, Fleet, Settings};
use rackline::error::Error;
use rackline::machine::{MachineId, Secret};

#[allow(dead_code)]
#[path = "../it/bmc_sim/mod.rs"]
mod bmc_sim;

const PORT: u16 = 6230;

fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x7f40_0001 + n / 250 * 256 + n % 250)
}

/// From a line of /proc/self/status.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Of this process, user and system, in clock ticks of 10 ms.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let number = |i: usize, or: u32| words.get(i).and_then(|word| word.parse().ok()).unwrap_or(or);
    if words.first().is_some_and(|word| word == "bmcs") {
        return bmcs(number(1, 1)).await;
    }
    let (count, seconds) = (number(0, 1000), number(1, 45));
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["bmcs", &count.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = child.spawn().unwrap();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    measure(count, Duration::from_secs(seconds.into())).await;
    drop(child.stdin.take());
    child.wait().unwrap();
}

/// Until standard input ends.
async fn bmcs(count: u32) {
    let mut sims = Vec::new();
    for n in 0..count {
        sims.push(bmc_sim::Sim::start(&format!("{}:{PORT}", address(n))).await);
    }
    println!("ready");
    let end = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    end.await.unwrap().unwrap();
}

async fn measure(count: u32, time: Duration) {
    let dir = tempfile::tempdir().unwrap();
    let machines: Vec<MachineId> = (0..count).map(|_| MachineId::generate()).collect();
    let all = machines.clone();
    let door: Door = Arc::new(move |id| {
        let n = all.iter().position(|machine| *machine == id);
        Box::pin(std::future::ready(match n {
            Some(n) => Ok(Access {
                doors: Doors::ipmi((address(n as u32), PORT).into()),
                user: "admin".into(),
                password: Secret::new("calvin-lab".to_owned()),
                machine: Default::default(),
            }),
            None => Err(Error::not_found("bench", "no such machine")),
        }))
    });
    let recorder = Recorder::start(dir.path(), Limits::default()).unwrap();
    let fleet = Fleet::new(Settings::default());
    let consoles = Consoles::new(fleet, recorder, door, Timing::default());
    let (before, begin) = (resident_kib(), Instant::now());
    machines.iter().for_each(|machine| consoles.record(*machine, false));
    let connected = || machines.iter().filter(|machine| consoles.status(**machine).0 == Status::Connected).count();
    while connected() < machines.len() {
        assert!(begin.elapsed() < Duration::from_secs(120), "only {} are connected", connected());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let up = begin.elapsed();
    let (used, from) = (ticks(), Instant::now());
    tokio::time::sleep(time).await;
    let share = (ticks() - used) as f64 / from.elapsed().as_secs_f64();
    let each = (resident_kib() - before) as f64 / f64::from(count);
    assert_eq!(connected(), machines.len(), "all are still connected");
    println!("connected_s {:.1}", up.as_secs_f64());
    println!("each_kib {each:.1}");
    println!("core_percent {share:.2}");
    consoles.close().await;
}
