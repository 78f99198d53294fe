//! What was typed → what is to be done. One file per subcommand; here they are only named and sent on.

mod agent;
mod bmc;
mod boot;
mod reload;
mod remote;
mod cohort;
mod console;
mod component;
mod expect;
mod firmware;
mod fleet;
mod handoff;
mod image;
mod import;
mod inventory;
mod library;
mod machine;
mod model;
mod outlets;
mod passport;
mod secret;
mod serve;
mod show;
mod show_bmc;
mod show_parts;
mod swarm;
mod switch;
mod trial;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::{Kind, Result};
use crate::lab;

/// Bare-metal provisioning: racked, blank servers in, delivered hypervisor hosts out.
#[derive(Parser)]
#[command(name = "rackline", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the appliance.
    Serve(serve::Args),
    /// See and steer machines.
    Machine(machine::Args),
    /// See what machines that are built alike measure, and how far apart they are.
    Cohort(cohort::Args),
    /// See what BMCs do.
    Bmc(bmc::Args),
    /// The serial console of a machine: live, or what was recorded of it.
    Console(console::Args),
    /// See and keep what firmware and settings machines are to have.
    Firmware(firmware::Args),
    /// Where a part is and has been, by its serial number.
    Component(component::Args),
    /// Take over purchase lists: the machines that are to come.
    Expect(expect::Args),
    /// See what machines are to be made of.
    Model(model::Args),
    /// See how a machine boots from the network.
    Boot(boot::Args),
    /// See which machine has how much of which image, and from whom.
    Swarm(swarm::Args),
    /// Passports of delivered hosts: see, print, verify, compare.
    Passport(passport::Args),
    /// What other systems are told and need to take a host over.
    Handoff(handoff::Args),
    /// The machines for Ansible and Terraform.
    Inventory(inventory::Args),
    /// See switches and what they fetched.
    Switch(switch::Args),
    /// Build, import and check images.
    Image(image::Args),
    /// A virtual rack on this machine.
    #[command(subcommand)]
    Lab(lab::Command),
    /// Run on a server that is provisioned: in RAM, or on the installed host.
    Agent(agent::Args),
}

pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Serve(args) => block_on(serve::run(args)),
        Command::Machine(args) => block_on(machine::run(args)),
        Command::Cohort(args) => block_on(cohort::run(args)),
        Command::Bmc(args) => block_on(bmc::run(args)),
        Command::Console(args) => block_on(console::run(args)),
        Command::Firmware(args) => block_on(firmware::run(args)),
        Command::Component(args) => block_on(component::run(args)),
        Command::Expect(args) => block_on(expect::run(args)),
        Command::Model(args) => block_on(model::run(args)),
        Command::Boot(args) => block_on(boot::run(args)),
        Command::Swarm(args) => block_on(swarm::run(args)),
        Command::Passport(args) => block_on(passport::run(args)),
        Command::Handoff(args) => block_on(handoff::run(args)),
        Command::Inventory(args) => block_on(inventory::run(args)),
        Command::Switch(args) => block_on(switch::run(args)),
        Command::Image(args) => block_on(image::run(args)),
        Command::Lab(command) => return finish(block_on(lab::main(command))),
        Command::Agent(args) => block_on(agent::run(args)),
    };
    finish(outcome.map(|()| ExitCode::SUCCESS))
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| crate::error::Error::internal("runtime", "cannot start the runtime").because(e))?;
    runtime.block_on(work)
}

/// Exit codes: 0 done, 1 it failed, 2 what was asked is wrong (as clap has it for what was typed).
fn finish(outcome: Result<ExitCode>) -> ExitCode {
    let error = match outcome {
        Ok(code) => return code,
        Err(error) => error,
    };
    eprintln!("error: {error}");
    for cause in error.causes() {
        eprintln!("  because: {cause}");
    }
    if let Some(hint) = error.next_step() {
        eprintln!("hint: {hint}");
    }
    match error.kind() {
        Kind::Input | Kind::Config => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}

/// Logs go to standard error; `RUST_LOG` overrides the level.
fn log_to_stderr(level: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let _ =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).try_init();
}
