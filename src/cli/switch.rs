//! `rackline switch …`: the switches of the site.

use clap::Subcommand;

use super::remote::Remote;
use super::show;
use crate::boot::switch::Report;
use crate::error::Result;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Which switch asked and fetched its configuration, and who asked without being listed.
    List,
}

pub async fn run(args: Args) -> Result<()> {
    match args.command {
        Command::List => {
            let report: Report = args.remote.client()?.get("/api/v1/switches").await?;
            show::print(args.remote.json, &report, || show::switches(&report));
        }
    }
    Ok(())
}
