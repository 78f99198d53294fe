//! `rackline bmc …`: the BMCs of the site.

use clap::Subcommand;

use super::remote::Remote;
use super::show;
use crate::bmc::personality::{Share, Tally};
use crate::engine::learn::Known;
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
    /// What BMCs of each kind were found to do: how often a command took effect, how often the boot device was followed.
    Personalities,
}

pub async fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Personalities => {
            let known: Vec<Known> = args.remote.client()?.get("/api/v1/bmc/personalities").await?;
            show::print(args.remote.json, &known, || personalities(&known));
        }
    }
    Ok(())
}

fn personalities(known: &[Known]) -> String {
    if known.is_empty() {
        return "nothing is known yet: it is learnt from each power command and network boot".into();
    }
    let mut table = show::table(&["BMC", "CONFIRMED", "VALID", "FOLLOWED", "TO DHCP", "HELPED", "SPEAKS"]);
    for Known { key, learnt } in known {
        let acts = learnt.acts.iter().filter(|(_, tally)| tally.of() > 0).map(|(word, tally)| act(word, tally));
        let remedies = learnt.remedies.iter().map(|(rung, share)| format!("{} {}", rung.replace('_', " "), of(*share)));
        table.add_row([
            key.to_string(),
            acts.collect::<Vec<_>>().join("\n"),
            of(learnt.valid),
            of(learnt.followed),
            learnt.boot.mean().map_or(String::new(), seconds),
            remedies.collect::<Vec<_>>().join("\n"),
            learnt.protocols.keys().cloned().collect::<Vec<_>>().join("\n"),
        ]);
    }
    table.to_string()
}

fn act(word: &str, tally: &Tally) -> String {
    let longest = match tally.took.longest_millis {
        0 => String::new(),
        millis => format!(", up to {}", seconds(millis)),
    };
    format!("{word} {} of {}{longest}", tally.confirmed, tally.of())
}

fn of(share: Share) -> String {
    match share.of() {
        0 => String::new(),
        all => format!("{} of {all}", share.yes),
    }
}

fn seconds(millis: u64) -> String {
    format!("{:.1} s", millis as f64 / 1000.0)
}
