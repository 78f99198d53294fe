//! `rackline bmc …`: the BMCs of the site.

use clap::Subcommand;

use super::remote::Remote;
use super::show;
use crate::bmc::discover::{self, Found, Range, Search};
use crate::bmc::personality::{Share, Tally};
use crate::engine::found::FoundBmc;
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
    /// BMCs that asked the appliance for an address, and whose they are.
    Found,
    /// Look for BMCs in a range of addresses, from this host and without any password.
    Discover {
        /// 10.0.0.0/24, or one address.
        range: Range,
        /// Addresses begun in a second.
        #[arg(long, default_value_t = 200)]
        rate: u32,
    },
}

pub async fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Personalities => {
            let known: Vec<Known> = args.remote.client()?.get("/api/v1/bmc/personalities").await?;
            show::print(args.remote.json, &known, || personalities(&known));
        }
        Command::Found => {
            let found: Vec<FoundBmc> = args.remote.client()?.get("/api/v1/bmc/found").await?;
            show::print(args.remote.json, &found, || asked(&found));
        }
        Command::Discover { range, rate } => {
            let found = discover::search(range, Search { per_second: rate, ..Search::default() }).await?;
            show::print(args.remote.json, &found, || discovered(&found));
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

fn asked(found: &[FoundBmc]) -> String {
    if found.is_empty() {
        return "no BMC has asked for an address since the appliance started".into();
    }
    let mut table = show::table(&["ADDRESS", "MAC", "MAKER", "MACHINE"]);
    for bmc in found {
        let maker = bmc.maker.clone().unwrap_or_default();
        let machine = bmc.machine.clone().unwrap_or_else(|| "not known yet".into());
        table.add_row([bmc.address.to_string(), bmc.mac.to_string(), maker, machine]);
    }
    table.to_string()
}

fn discovered(found: &[Found]) -> String {
    if found.is_empty() {
        return "nothing in this range answers as a BMC does".into();
    }
    let mut table = show::table(&["ADDRESS", "IPMI", "REDFISH", "MAKER", "PRODUCT", "SYSTEM GUID"]);
    for bmc in found {
        let root = bmc.redfish.as_ref();
        table.add_row([
            bmc.address.to_string(),
            if bmc.ipmi { "yes" } else { "" }.to_owned(),
            root.map_or(String::new(), |root| root.version.clone()),
            root.and_then(|root| root.vendor.clone()).unwrap_or_default(),
            root.and_then(|root| root.product.clone()).unwrap_or_default(),
            bmc.guid.map_or(String::new(), |guid| guid.to_string()),
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
