//! `rackline boot …`: how the boot services fare, and what a machine would get from the network, and why.

use clap::Subcommand;

use super::remote::Remote;
use super::show;
use crate::api::client::segment;
use crate::boot::explain::{Explanation, Loader};
use crate::boot::monitor::Status;
use crate::error::Result;
use crate::machine::MacAddr;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Pools, other DHCP servers, requests without answer, counters.
    Status,
    /// Address, boot file and script that a machine would get now, each with the reason. Changes nothing.
    Explain {
        /// Of the network card it boots from.
        mac: MacAddr,
        /// As if it booted so: bios, uefi-x64, http-x64, …; as it did last if not given.
        #[arg(long)]
        arch: Option<String>,
    },
}

pub async fn run(args: Args) -> Result<()> {
    let client = args.remote.client()?;
    let (mac, arch) = match args.command {
        Command::Explain { mac, arch } => (mac, arch),
        Command::Status => {
            let status: Status = client.get("/api/v1/boot").await?;
            show::print(args.remote.json, &status, || show::boot_status(&status));
            return Ok(());
        }
    };
    let arch = arch.map_or(String::new(), |arch| format!("?arch={}", segment(&arch)));
    let explanation: Explanation = client.get(&format!("/api/v1/boot/explain/{mac}{arch}")).await?;
    show::print(args.remote.json, &explanation, || text(&explanation));
    Ok(())
}

fn text(e: &Explanation) -> String {
    let mut lines = vec![match &e.machine {
        Some(m) => {
            let model = m.model.as_ref().map_or(String::new(), |model| format!(", {model}"));
            format!("{} is {}{model}, {}", e.mac, m.name, m.state)
        }
        None => format!("{} is not known here; a stranger would get:", e.mac),
    }];
    lines.push("\n1. address".into());
    for n in &e.networks {
        let address = n.address.map_or(String::new(), |a| format!("{a}, "));
        lines.push(format!("   in {}: {address}{}; lease of {} s", n.subnet, n.why, n.lease_seconds));
    }
    if e.networks.is_empty() {
        lines.push("   no subnet is configured: another server gives the addresses".into());
    }
    lines.push("\n2. boot file".into());
    lines.extend(e.loaders.iter().map(loader));
    lines.push("\n3. answer".into());
    lines.push(format!("   {}: {}", e.answer.boots, e.answer.why));
    lines.extend(e.answer.own.iter().map(|own| format!("   its own: {own}")));
    lines.push("\n4. script".into());
    lines.extend(e.answer.script.lines().map(|line| format!("   | {line}")));
    lines.join("\n")
}

fn loader(l: &Loader) -> String {
    let arch = serde_json::to_value(l.arch).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
    let mut text = match &l.loader {
        Some(name) => format!("   {arch}: {name} ({}): {}", l.about, l.why),
        None => format!("   {arch}: none: {}", l.why),
    };
    if l.candidates.len() > 1 {
        text += &format!("\n      tried in this order: {}", l.candidates.join(", "));
    }
    if !l.stalled.is_empty() {
        text += &format!("\n      fetched, and did not start on this card: {}", l.stalled.join(", "));
    }
    text
}
