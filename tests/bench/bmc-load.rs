//! For `bmc.sh`: a hall of simulated BMCs, and the appliance's BMC client against them.
//!
//! * `bmc-load hall COUNT LOW HIGH DEAD LATE SENSORS SESSIONS`: so many BMCs in one process, the n-th at
//!   `127.1.(n / 250).(n % 250 + 1)`, port 623. Each answers LOW to HIGH ms after it is asked and has SESSIONS sessions; DEAD %
//!   never answer and LATE % after 20 s. Which ones follows from n alone. Says `ready`; ends by SIGTERM.
//! * `bmc-load status COUNT`: power status of all at once, three times: at first contact, in sessions that are open, and
//!   after those were closed; each followed by the slowest healthy one alone in the same way. Prints a line each.
//! * `bmc-load once COUNT`: power status of all at once, once, sessions closed; what a command line tool does.
//! * `bmc-load sweep COUNT INTERVAL SECONDS`: looks at all of them once in INTERVAL seconds, and after the first time measures
//!   for SECONDS.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rackline::bmc::sweep::{Roster, Sweep};
use rackline::bmc::{Access, Command, Doors, Fleet, Settings};
use rackline::machine::{MachineId, Secret};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[path = "../it/bmc_sim/mod.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod bmc_sim;

use bmc_sim::records::Sensor;
use bmc_sim::{Manner, Sim};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const LATE: Duration = Duration::from_secs(20);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let numbers =
        |from: usize| args.get(from..).unwrap_or_default().iter().map(|a| a.parse()).collect::<Result<_, _>>();
    let numbers: Vec<u64> = numbers(1)?;
    match (args.first().map(String::as_str), numbers.as_slice()) {
        (Some("hall"), &[count, low, high, dead, late, sensors, sessions]) => {
            hall(count, Kind { latency: low..high, dead, late, sensors, sessions }).await
        }
        (Some("status"), &[count]) => status(count).await,
        (Some("once"), &[count]) => once(count).await,
        (Some("sweep"), &[count, interval, seconds]) => sweep(count, interval, seconds).await,
        _ => {
            let modes = "hall COUNT LOW HIGH DEAD LATE SENSORS SESSIONS | status COUNT | once COUNT | sweep COUNT INTERVAL SECONDS";
            Err(format!("usage: bmc-load {modes}").into())
        }
    }
}

fn address(n: u64) -> SocketAddr {
    (Ipv4Addr::new(127, 1, (n / 250) as u8, (n % 250) as u8 + 1), 623).into()
}

/// SplitMix64: the n-th number of a series that looks random and is the same each time.
fn mix(n: u64) -> u64 {
    let z = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What the BMCs of a hall are like: milliseconds, then per cent, then numbers.
struct Kind {
    latency: std::ops::Range<u64>,
    dead: u64,
    late: u64,
    sensors: u64,
    sessions: u64,
}

async fn hall(count: u64, kind: Kind) -> Outcome<()> {
    let Kind { latency, dead, late, sensors, sessions } = kind;
    let mut sims = Vec::new();
    for n in 0..count {
        let (speed, fate) = (mix(n) >> 32, mix(n) % 100);
        let usual = Duration::from_millis(latency.start + speed % (latency.end - latency.start).max(1));
        let latency = if (dead..dead + late).contains(&fate) { LATE } else { usual };
        let sim = Sim::with(address(n), |bmc| {
            bmc.manner = Manner { latency, dead: fate < dead, ..Manner::default() };
            bmc.sessions_max = sessions as usize;
            let sensor = |s| Sensor { name: format!("Temp {s}"), raw: 30 + (mix(n + s) % 40) as u8 };
            bmc.records.sensors = (1..=sensors).map(sensor).collect();
            (0..20).for_each(|_| bmc.records.log_event(1));
        });
        sims.push(sim.await?);
    }
    println!("ready");
    signal(SignalKind::terminate())?.recv().await;
    let count =
        |of: &dyn Fn(&bmc_sim::State) -> u32| -> u32 { sims.iter().map(|s| of(&s.state.lock().unwrap())).sum() };
    let most = sims.iter().map(|s| s.state.lock().unwrap().most).max().unwrap_or(0);
    println!(
        "set-ups {} closed {} requests {} readings {}; at most {most} sessions at one BMC",
        count(&|bmc| bmc.opened),
        count(&|bmc| bmc.closed),
        count(&|bmc| bmc.requests),
        count(&|bmc| bmc.records.readings),
    );
    Ok(())
}

fn access(n: u64) -> Access {
    Access {
        doors: Doors::ipmi(address(n)),
        user: "admin".into(),
        password: Secret::new("calvin-lab"),
        machine: Default::default(),
    }
}

/// What one round over the hall came to.
struct Round {
    wall: Duration,
    /// Of those that answered, by time.
    times: Vec<(Duration, u64)>,
    failed: u64,
    cpu: Duration,
}

async fn round(fleet: &Fleet, which: impl IntoIterator<Item = u64>) -> Round {
    let (start, before) = (Instant::now(), cpu());
    let mut tasks = tokio::task::JoinSet::new();
    for n in which {
        let fleet = fleet.clone();
        tasks.spawn(async move {
            let start = Instant::now();
            let answer = fleet.run(&access(n), Command::PowerStatus).await;
            answer.is_ok().then(|| (start.elapsed(), n))
        });
    }
    let asked = tasks.len() as u64;
    let mut times: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    times.sort();
    let failed = asked - times.len() as u64;
    Round { wall: start.elapsed(), times, failed, cpu: cpu() - before }
}

impl Round {
    /// Milliseconds; of those that answered.
    fn percentile(&self, of: usize) -> f64 {
        self.times.get(self.times.len() * of / 100).or(self.times.last()).map_or(-1.0, |(t, _)| t.as_secs_f64() * 1e3)
    }

    fn print(&self, what: &str, alone: Option<&Round>) {
        let healthy = self.times.last().map_or(0.0, |(t, _)| t.as_secs_f64());
        let asked = self.times.len() as u64 + self.failed;
        println!(
            "{what} ok {} failed {} wall {:.3} healthy {healthy:.3} p50 {:.1} p99 {:.1} alone {:.3} cpu_ms {:.4} rss_mb {}",
            self.times.len(),
            self.failed,
            self.wall.as_secs_f64(),
            self.percentile(50),
            self.percentile(99),
            alone.map_or(-1.0, |a| a.wall.as_secs_f64()),
            self.cpu.as_secs_f64() * 1e3 / asked.max(1) as f64,
            memory_kb("VmHWM:") / 1024,
        );
    }
}

async fn status(count: u64) -> Outcome<()> {
    let fleet = Fleet::new(Settings::default());
    // Nobody logs in twice within this, so the times between would be its.
    let gap = Settings::default().log_in_gap;
    let first = round(&fleet, 0..count).await;
    let slowest = first.times.last().ok_or("no BMC answers")?.1;
    // A fleet of its own, which has never met that one.
    let stranger = Fleet::new(Settings::default());
    first.print("first", Some(&round(&stranger, [slowest]).await));
    stranger.close().await;
    let open = round(&fleet, 0..count).await;
    open.print("open", Some(&round(&fleet, [slowest]).await));
    fleet.close().await;
    tokio::time::sleep(gap).await;
    let closed = round(&fleet, 0..count).await;
    fleet.close().await;
    tokio::time::sleep(gap).await;
    closed.print("closed", Some(&round(&fleet, [slowest]).await));
    fleet.close().await;
    Ok(())
}

async fn once(count: u64) -> Outcome<()> {
    let fleet = Fleet::new(Settings::default());
    let round = round(&fleet, 0..count).await;
    fleet.close().await;
    round.print("once", None);
    Ok(())
}

/// The hall as a site: its machines are numbered.
struct Hall {
    machines: Vec<MachineId>,
    told: AtomicUsize,
}

impl Roster for Hall {
    fn machines(&self) -> Vec<MachineId> {
        self.machines.clone()
    }

    async fn access(&self, machine: MachineId) -> rackline::error::Result<Access> {
        let n = self.machines.binary_search(&machine).unwrap_or_default();
        Ok(access(n as u64))
    }

    fn changed(&self, _: MachineId, _: String) {
        self.told.fetch_add(1, Relaxed);
    }
}

async fn sweep(count: u64, interval: u64, seconds: u64) -> Outcome<()> {
    let mut machines: Vec<MachineId> = (0..count).map(|_| MachineId::generate()).collect();
    machines.sort();
    let hall = Arc::new(Hall { machines, told: AtomicUsize::new(0) });
    let fleet = Fleet::new(Settings::default());
    let sweep = Sweep::new(fleet.clone(), Duration::from_secs(interval));
    let stop = CancellationToken::new();
    let before = memory_kb("VmRSS:");
    let running = tokio::spawn(sweep.clone().run(hall.clone(), stop.clone()));
    // The first look reads the sensor records, which takes the slowest some two minutes.
    tokio::time::sleep(Duration::from_secs(interval * 3)).await;
    let (start, used) = (Instant::now(), cpu());
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let share = (cpu() - used).as_secs_f64() / start.elapsed().as_secs_f64();
    stop.cancel();
    running.await?;
    let looks: Vec<_> = hall.machines.iter().filter_map(|m| sweep.health(*m)).collect();
    let now = jiff::Timestamp::now();
    let fresh =
        looks.iter().filter(|l| l.at.is_some_and(|at| now.duration_since(at).as_secs() <= interval as i64 * 3 / 2));
    println!(
        "sweep of {count} BMCs with {} sensors every {interval} s: {:.1} % of a core (wanted 20), {} looked at within 1.5 \
         intervals, {} changes told, {:.1} kB a BMC, at most {} MB",
        looks.iter().map(|l| l.sensors.len()).max().unwrap_or(0),
        share * 100.0,
        fresh.count(),
        hall.told.load(Relaxed),
        (memory_kb("VmRSS:") - before) as f64 / count as f64,
        memory_kb("VmHWM:") / 1024,
    );
    fleet.close().await;
    Ok(())
}

/// Time on the processor so far (proc_pid_schedstat in sched-stats.rst); of the one thread that there is.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    Duration::from_nanos(stat.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
}

/// `VmRSS:` now, `VmHWM:` at most (proc_pid_status(5)).
fn memory_kb(which: &str) -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(which));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
