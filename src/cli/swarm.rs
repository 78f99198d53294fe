//! `rackline swarm`: who has how much of which image, and from whom.

use clap::Subcommand;

use super::remote::Remote;
use super::show;
use crate::api::client::segment;
use crate::error::Result;
use crate::swarm::tracker::SwarmList;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// A person waits for this machine: it is fed before the others of its rack, until it has its image.
    First { machine: String },
}

pub async fn run(args: Args) -> Result<()> {
    let client = args.remote.client()?;
    let list: SwarmList = match args.command {
        None => client.get("/api/v1/swarm").await?,
        Some(Command::First { machine }) => {
            client.post(&format!("/api/v1/swarm/first/{}", segment(&machine)), &serde_json::json!({})).await?
        }
    };
    show::print(args.remote.json, &list, || show::swarms(&list));
    Ok(())
}
