//! What runs on the target: in RAM, booted from the network, and later on the installed host.
//!
//! Its life is one list of steps: say hello, then ask for the order, carry it out, report, and ask again. All that is
//! waited for is waited for here or in [`appliance`], and said on the console. Between orders there is one open question
//! and no timer; on an installed host there may be a second one ([`help`]).

mod appliance;
mod block;
mod burn;
mod check;
mod console;
mod deploy;
mod erase;
mod help;
pub(crate) mod inventory;
mod leave;
mod ledger;
mod measure;
mod member;
mod options;
mod progress;
mod roots;
mod setup;
pub mod tls;
mod tool;

pub use deploy::write_image;
pub use deploy::{INSTALLED_FILE, Installed, seed_image};
pub use options::{Hooks, Options, RESIDENT_FILE, Token};
pub use roots::Roots;
pub use setup::apply;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use appliance::{Appliance, Refusal};
use console::{say, say_error};
use ledger::Ledger;
use progress::Meter;

use crate::error::{Error, Kind, OrFail, Result};
use crate::link::{self, BmcUser, Hello, Leave, Mode, Order, Outcome, Problem, Report};
use crate::machine::Serial;
use crate::swarm::BackOff;

/// An answer to a held question that comes sooner than this brought nothing: the next one waits a little.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Lives until it is ordered to leave. An error means that it cannot even start.
pub async fn run(options: Options) -> Result<()> {
    let ledger = Ledger::open(&options.roots.run)?;
    let appliance = Appliance::new(&options.url, options.machine, options.token.clone())?;
    let agent = Agent { options, appliance, ledger, member: Mutex::default() };
    agent.hello().await;
    match agent.options.mode {
        Mode::Ram => agent.live().await,
        Mode::Resident => {
            let stop = CancellationToken::new();
            let live = async {
                let _stops = stop.clone().drop_guard();
                agent.live().await
            };
            tokio::join!(live, help::help(&agent, &stop)).0
        }
    }
}

struct Agent {
    options: Options,
    appliance: Appliance,
    ledger: Ledger,
    /// After its own deployment this machine goes on serving others, until it leaves or gets another order.
    member: Mutex<Option<deploy::Member>>,
}

impl Agent {
    async fn live(&self) -> Result<()> {
        let mut done = 0;
        let mut wait = BackOff::default();
        loop {
            let asked = Instant::now();
            let issued = match self.appliance.order(done).await {
                Ok(issued) if issued.number != done => issued,
                Ok(_) => {
                    self.pause(asked, &mut wait).await;
                    continue;
                }
                Err(refusal) => {
                    self.refused(refusal).await;
                    self.pause(asked, &mut wait).await;
                    continue;
                }
            };
            wait.reset();
            let number = issued.number;
            match issued.order {
                Order::Wait { reason } => say(format!("waiting: {reason}")),
                Order::Leave { how, reason } => {
                    if self.leave(number, how, &reason).await? {
                        return Ok(());
                    }
                }
                order => {
                    let report = match self.ledger.finished(number) {
                        Some(report) => report,
                        None => self.carry_out(number, order).await?,
                    };
                    self.report(&report).await;
                }
            }
            done = number;
        }
    }

    async fn hello(&self) {
        let roots = self.options.roots.clone();
        let ours = self.options.mode == Mode::Ram;
        let identity = blocking(move || Ok(inventory::identity(&roots, ours))).await;
        let identity = identity.unwrap_or(inventory::Identity { serial: None, uuid: None, macs: Vec::new() });
        let roots = &self.options.roots;
        let hello = Hello {
            version: link::VERSION,
            machine: self.options.machine,
            mode: self.options.mode,
            boot_id: roots.boot_id().unwrap_or_default(),
            serial: identity.serial,
            uuid: identity.uuid,
            macs: identity.macs,
            agent_version: env!("CARGO_PKG_VERSION").into(),
            uptime: roots.uptime(),
        };
        say(format!("agent {} of machine {}", hello.agent_version, hello.machine));
        let welcome = self.appliance.hello(&hello).await;
        say(format!("this is {}, known to the appliance at {}", welcome.name, self.appliance.url()));
    }

    /// A question that was answered at once without news would be asked again at once, for ever.
    async fn pause(&self, asked: Instant, wait: &mut BackOff) {
        if asked.elapsed() < AT_ONCE {
            tokio::time::sleep(wait.next_wait()).await;
        } else {
            wait.reset();
        }
    }

    async fn refused(&self, refusal: Refusal) {
        match refusal {
            Refusal::Unknown(error) => {
                say_error(&error);
                self.hello().await;
            }
            Refusal::No(error) => say_error(&error),
        }
    }

    /// Does the order, whatever becomes of the appliance meanwhile, and remembers what came of it.
    async fn carry_out(&self, number: u64, order: Order) -> Result<Report> {
        let meter = Meter::new(number);
        let work = self.work(number, order, &meter);
        let outcome = tokio::select! {
            outcome = work => outcome,
            () = meter.tell(&self.appliance) => unreachable!("telling ends only when the work has"),
        };
        let outcome = outcome.unwrap_or_else(|error| {
            say_error(&error);
            Outcome::Failed(Problem::from(&error))
        });
        let report = Report { number, outcome };
        self.ledger.finish(&report)?;
        Ok(report)
    }

    fn stay(&self, member: Option<deploy::Member>) {
        *self.member.lock().unwrap_or_else(PoisonError::into_inner) = member;
    }

    fn stayed(&self) -> Option<deploy::Member> {
        self.member.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn work(&self, number: u64, order: Order, meter: &Meter) -> Result<Outcome> {
        // It holds the disk.
        if let Some(member) = self.stayed() {
            member.close().await;
        }
        match (order, self.options.mode) {
            (Order::Commission { bmc_user }, Mode::Ram) => self.commission(bmc_user, meter).await,
            (Order::BurnIn(order), Mode::Ram) => burn::burn_in(self, number, &order, meter).await,
            (Order::Deploy(order), Mode::Ram) => deploy::deploy(self, number, &order, meter).await,
            (Order::Erase { keep }, Mode::Ram) => self.erase(keep, meter).await,
            (Order::Verify(order), Mode::Resident) => check::check(self, &order, meter).await,
            (_, Mode::Ram) => {
                Err(Error::conflict("order.mode", "this order is for the installed host, and this is RAM"))
            }
            (_, Mode::Resident) => {
                Err(Error::conflict("order.mode", "this order is for the RAM system, and this is the installed host")
                    .hint("boot the machine from the network"))
            }
        }
    }

    /// The drives are asked while the processor and the memory are measured: both take seconds, and neither disturbs the
    /// other. Drives are measured last.
    async fn commission(&self, bmc_user: Option<BmcUser>, meter: &Meter) -> Result<Outcome> {
        let (roots, hooks) = (self.options.roots.clone(), self.options.hooks.clone());
        meter.step("taking the inventory", 0);
        let ours = self.options.mode == Mode::Ram;
        let (begun, bmc_user_made) = blocking(move || {
            // A BMC that does not answer from inside is no reason to lose the inventory.
            let bmc = (hooks.in_band)().unwrap_or_else(|e| {
                say_error(&e);
                None
            });
            let bmc_user_made = match (&bmc_user, &bmc) {
                (Some(user), Some(_)) => (hooks.make_bmc_user)(user).inspect_err(say_error).is_ok(),
                _ => false,
            };
            Ok((inventory::Begun::begin(&roots, bmc, ours)?, bmc_user_made))
        })
        .await?;
        let roots = &self.options.roots;
        let (disks, start) = (begun.inventory.disks.clone(), Instant::now());
        let measure = {
            let (roots, disks, meter) = (roots.clone(), disks.clone(), meter.clone());
            blocking(move || Ok((measure::all(&roots, &disks, &meter), start.elapsed())))
        };
        let (drives, measured) = tokio::join!(inventory::drives(roots, &disks), measure);
        let (measured, measuring) = measured?;
        let waited = start.elapsed().saturating_sub(measuring);
        let inventory = begun.finish(roots, drives, waited).await?;
        inventory.gaps.iter().for_each(|gap| say(gap.clone()));
        say(format!(
            "the inventory took {:.1} s, the measurements {:.1} s",
            inventory.seconds,
            measuring.as_secs_f64()
        ));
        Ok(Outcome::Commissioned { inventory: Box::new(inventory), measured, bmc_user_made })
    }

    /// The inventory goes first: it shows what came back.
    async fn erase(&self, keep: Vec<Serial>, meter: &Meter) -> Result<Outcome> {
        meter.step("taking the inventory", 0);
        let hooks = self.options.hooks.clone();
        let bmc = blocking(move || Ok((hooks.in_band)().ok().flatten())).await?;
        // What cannot be listed is erased all the same.
        let inventory = inventory::take(&self.options.roots, bmc).await.inspect_err(say_error).ok().map(Box::new);
        let (roots, meter) = (self.options.roots.clone(), meter.clone());
        let proof = blocking(move || erase::erase(&roots, &keep, &meter)).await?;
        let how: Vec<String> = proof.iter().map(|d| format!("{}: {}", d.name, d.how)).collect();
        let disks = proof.iter().map(|d| d.name.clone()).collect();
        Ok(Outcome::Erased { disks, how: how.join("; "), proof, inventory })
    }

    /// Until the appliance has it on disk. `false`: it does not want it, the order is no longer its own.
    async fn report(&self, report: &Report) -> bool {
        let mut wait = BackOff::default();
        loop {
            match self.appliance.report(report).await {
                Ok(()) => return true,
                Err(Refusal::No(error)) => {
                    say_error(&error);
                    return false;
                }
                Err(unknown) => {
                    self.refused(unknown).await;
                    tokio::time::sleep(wait.next_wait()).await;
                }
            }
        }
    }

    /// `false` when the appliance has meanwhile thought of something else.
    async fn leave(&self, number: u64, how: Leave, reason: &str) -> Result<bool> {
        if let Some(mut member) = self.stayed() {
            let meter = Meter::new(number);
            tokio::select! {
                () = member.linger(&meter) => {}
                () = meter.tell(&self.appliance) => unreachable!("telling ends only when the machine leaves"),
            }
            member.close().await;
        }
        say(match how {
            Leave::Reboot => format!("rebooting: {reason}"),
            Leave::PowerOff => format!("powering off: {reason}"),
        });
        if !self.report(&Report { number, outcome: Outcome::Leaving }).await {
            return Ok(false);
        }
        let leave = Arc::clone(&self.options.hooks.leave);
        blocking(move || leave(how)).await.map(|()| true)
    }
}

/// Runs what blocks beside the conversation with the appliance, not in it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.or_fail(Kind::Internal, "agent.task", || "a part of the agent has failed")?
}
