//! Burn-in: every part under load, one test after the other, each reported as soon as it is done. What the kernel counts of
//! errors is compared before and after each test, whatever the test is about.
//!
//! A test that cannot be made here (no tool, no partner, a disk with data) is left out by name; only what a part did wrong is a
//! finding, with who acts. An order that is withdrawn ends the test that runs: all of them look at the same token.

mod counters;
mod cpu;
mod disk;
mod memory;
mod network;
mod smart;

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::Agent;
use super::console::{say, say_error};
use super::progress::Meter;
use crate::error::{Error, Result};
use crate::link::{BurnIn, Measured, Outcome, Report, Tested};
use crate::machine::Finding;
use crate::swarm::BackOff;
use counters::Counters;

/// What a test brought.
#[derive(Debug, Default)]
struct Found {
    measured: Vec<Measured>,
    findings: Vec<Finding>,
    notes: Vec<String>,
}

impl Found {
    fn add(&mut self, other: Found) {
        self.measured.extend(other.measured);
        self.findings.extend(other.findings);
        self.notes.extend(other.notes);
    }
}

pub async fn burn_in(agent: &Agent, number: u64, order: &BurnIn, meter: &Meter) -> Result<Outcome> {
    let stop = CancellationToken::new();
    let work = tests(agent, number, order, meter, &stop);
    tokio::pin!(work);
    tokio::select! {
        outcome = &mut work => outcome,
        () = withdrawn(agent, number) => {
            stop.cancel();
            // Until the test has let go of its disks and processes.
            work.await
        }
    }
}

async fn tests(agent: &Agent, number: u64, order: &BurnIn, meter: &Meter, stop: &CancellationToken) -> Result<Outcome> {
    let over = || Error::conflict("burn.withdrawn", "the burn-in is no longer wanted");
    let all = order.profile.tests();
    let left = all.iter().enumerate().filter(|(_, test)| !order.done.contains(test));
    for (place, test) in left {
        let step = format!("burn-in {}, {test} ({} of {})", order.profile.name, place + 1, all.len());
        meter.step(step, order.profile.seconds(test).into());
        let tested = one(agent, order, test, meter, stop).await;
        if stop.is_cancelled() {
            return Err(over());
        }
        tested.findings.iter().for_each(|finding| say(format!("{}: {finding}", finding.severity)));
        let report = Report { number, outcome: Outcome::Tested(Box::new(tested)) };
        if !agent.report(&report).await {
            return Err(over());
        }
    }
    Ok(Outcome::BurnedIn)
}

async fn one(agent: &Agent, order: &BurnIn, test: &str, meter: &Meter, stop: &CancellationToken) -> Tested {
    let roots = &agent.options.roots;
    let (began, before) = (Instant::now(), Counters::take(roots));
    let work = load(agent, order, test, meter, stop);
    let ticks = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            meter.add(1);
        }
    };
    let mut found = tokio::select! {
        found = work => found,
        () = ticks => unreachable!("ticks only while the test runs"),
    };
    found.findings.extend(Counters::take(roots).since(&before, test));
    let Found { measured, findings, notes } = found;
    Tested { test: test.to_owned(), seconds: began.elapsed().as_secs_f64(), measured, findings, notes }
}

async fn load(agent: &Agent, order: &BurnIn, test: &str, meter: &Meter, stop: &CancellationToken) -> Found {
    let (roots, profile) = (&agent.options.roots, &order.profile);
    match test.split('#').next().unwrap_or(test) {
        kind @ ("network" | "network.across") => {
            let across = kind == "network.across";
            let appliance = &agent.appliance;
            network::Test { appliance, roots, profile: &profile.network, across, stop }.run().await
        }
        "disks" => {
            let (roots, disk, overwrite, stop) = (roots.clone(), profile.disk.clone(), order.overwrite, stop.clone());
            blocking(move || disk::run(&roots, &disk, overwrite, &stop)).await
        }
        "cpu" => cpu::run("stress-ng", &profile.cpu, stop).await,
        "memory" => {
            let (roots, memory, stop) = (roots.clone(), profile.memory.clone(), stop.clone());
            blocking(move || memory::run(&roots, &memory, &stop)).await
        }
        _ => match &profile.smart {
            Some(smart) => smart::run("smartctl", roots, smart, stop, |note| meter.note(Some(note))).await,
            None => Found { notes: vec![format!("this agent has no test {test}")], ..Found::default() },
        },
    }
}

async fn blocking(work: impl FnOnce() -> Found + Send + 'static) -> Found {
    let done = super::blocking(move || Ok(work())).await;
    done.unwrap_or_else(|e| Found { notes: vec![e.message().to_owned()], ..Found::default() })
}

/// Until the appliance wants something else. An order takes hours; without this question a stop would wait for its end.
async fn withdrawn(agent: &Agent, number: u64) {
    let mut wait = BackOff::default();
    loop {
        let asked = Instant::now();
        match agent.appliance.order(number).await {
            Ok(issued) if issued.number != number => return,
            Ok(_) => {}
            Err(refusal) => agent.refused(refusal).await,
        }
        agent.pause(asked, &mut wait).await;
    }
}

/// A sequence without order: the finalizer of SplitMix64.
fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}
