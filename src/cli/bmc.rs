//! `rackline bmc …`: the BMCs of the site.

use std::net::Ipv4Addr;

use clap::{ArgGroup, Subcommand};
use serde_json::json;

use super::remote::Remote;
use super::{show, show_bmc};
use crate::api::client::{Client, segment};
use crate::api::view::{MachineView, PowerRequest};
use crate::bmc::discover::{self, Found, Range, Search};
use crate::bmc::personality::{Share, Tally};
use crate::bmc::{AddressFrom, Answer, SetNetwork};
use crate::boot::config::Network;
use crate::boot::monitor::Status;
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
    /// Maker, firmware, address and power of a machine's BMC.
    Show { machine: String },
    /// Whether the machine is on; or on, off, cycle, reset, soft.
    Power { machine: String, action: Option<String> },
    /// Temperatures, fans, voltages and states, with what is out of bounds first.
    Sensors {
        machine: String,
        /// Also those that have nothing to show.
        #[arg(long)]
        all: bool,
    },
    /// What the BMC has written down, oldest first.
    Log {
        machine: String,
        /// Keep it in the machine's timeline, then clear it.
        #[arg(long)]
        clear: bool,
    },
    /// Makers, models and serial numbers of the parts.
    Fru { machine: String },
    /// Light the machine's identify light.
    Identify {
        machine: String,
        /// How long; 0 turns it off.
        #[arg(long, default_value_t = 60)]
        seconds: u8,
    },
    /// Who can log in to the BMC.
    Users { machine: String },
    /// How the BMC is on the network, or how it shall be.
    #[command(group(ArgGroup::new("from").args(["dhcp", "address"])))]
    Network {
        machine: String,
        /// Its address by DHCP.
        #[arg(long)]
        dhcp: bool,
        /// A fixed address: 10.77.1.7/24.
        #[arg(long, value_parser = address)]
        address: Option<(Ipv4Addr, u8)>,
        #[arg(long, requires = "address")]
        gateway: Option<Ipv4Addr>,
        /// Time server (repeat for more); Redfish only.
        #[arg(long)]
        ntp: Vec<String>,
    },
    /// How far the BMC's clock is off.
    Clock {
        machine: String,
        /// Set it to the appliance's.
        #[arg(long)]
        set: bool,
    },
    /// Restart the BMC; the machine goes on.
    Reset {
        machine: String,
        /// With its hardware.
        #[arg(long)]
        cold: bool,
    },
    /// What BMCs of each kind were found to do: how often a command took effect, how often the boot device was followed.
    Personalities,
    /// BMCs that asked the appliance for an address, and whose they are.
    Found,
    /// Look for BMCs from this host, without any password: one address after the other in a range, or those with Redfish
    /// in the boot networks, all asked at once (SSDP).
    Discover {
        /// 10.0.0.0/24, or one address; the boot networks of the appliance if not given.
        range: Option<Range>,
        /// Addresses begun in a second.
        #[arg(long, default_value_t = 200)]
        rate: u32,
    },
}

fn address(word: &str) -> std::result::Result<(Ipv4Addr, u8), String> {
    let parsed = word.split_once('/').and_then(|(address, prefix)| Some((address.parse().ok()?, prefix.parse().ok()?)));
    parsed.ok_or_else(|| "an address with the bits of its network: 10.77.1.7/24".to_owned())
}

pub async fn run(args: Args) -> Result<()> {
    let client = args.remote.client()?.patient();
    let json = args.remote.json;
    let ask = async |machine: &str, what: &str| -> Result<Answer> { client.get(&path(machine, what)).await };
    let answer = match args.command {
        Command::Show { machine } => {
            let answers = [ask(&machine, "info").await?, ask(&machine, "power").await?];
            show::print(json, &answers, || answers.each_ref().map(|a| show_bmc::answer(a, false)).join("\n"));
            return Ok(());
        }
        Command::Power { machine, action: None } => ask(&machine, "power").await?,
        Command::Power { machine, action: Some(action) } => return power(&client, json, &machine, action).await,
        Command::Sensors { machine, all } => {
            let answer = ask(&machine, "sensors").await?;
            show::print(json, &answer, || show_bmc::answer(&answer, all));
            return Ok(());
        }
        Command::Log { machine, clear: false } => ask(&machine, "log").await?,
        Command::Log { machine, clear: true } => client.post(&path(&machine, "log"), &json!({ "clear": true })).await?,
        Command::Fru { machine } => ask(&machine, "fru").await?,
        Command::Identify { machine, seconds } => {
            client.post(&path(&machine, "identify"), &json!({ "seconds": seconds })).await?
        }
        Command::Users { machine } => ask(&machine, "users").await?,
        Command::Network { machine, dhcp, address, gateway, ntp } => {
            let from = match address {
                _ if dhcp => Some(AddressFrom::Dhcp),
                Some((address, prefix)) => {
                    Some(AddressFrom::Static { address: address.into(), prefix, gateway: gateway.map(Into::into) })
                }
                None => None,
            };
            let wanted = SetNetwork { address: from, ntp: (!ntp.is_empty()).then_some(ntp) };
            match wanted == SetNetwork::default() {
                true => ask(&machine, "network").await?,
                false => client.post(&path(&machine, "network"), &wanted).await?,
            }
        }
        Command::Clock { machine, set: false } => ask(&machine, "clock").await?,
        Command::Clock { machine, set: true } => client.post(&path(&machine, "clock"), &json!({})).await?,
        Command::Reset { machine, cold } => client.post(&path(&machine, "reset"), &json!({ "cold": cold })).await?,
        Command::Personalities => {
            let known: Vec<Known> = client.get("/api/v1/bmc/personalities").await?;
            show::print(json, &known, || personalities(&known));
            return Ok(());
        }
        Command::Found => {
            let found: Vec<FoundBmc> = client.get("/api/v1/bmc/found").await?;
            show::print(json, &found, || asked(&found));
            return Ok(());
        }
        Command::Discover { range, rate } => {
            let search = Search { per_second: rate, ..Search::default() };
            let found = match range {
                Some(range) => discover::search(range, search).await?,
                None => discover::announced(&boot_networks(&client).await?, search).await?,
            };
            show::print(json, &found, || discovered(&found));
            return Ok(());
        }
    };
    show::print(json, &answer, || show_bmc::answer(&answer, false));
    Ok(())
}

fn path(machine: &str, what: &str) -> String {
    format!("/api/v1/machines/{}/bmc/{what}", segment(machine))
}

async fn boot_networks(client: &Client) -> Result<Vec<Range>> {
    let status: Status = client.get("/api/v1/boot").await?;
    let networks = status.subnets.iter().map(|subnet| subnet.network.parse::<Network>());
    networks.map(|network| network.map(|n| Range::between(n.first_host(), n.last_host()))).collect()
}

/// Through the lifecycle, which has to know what becomes of its machine.
async fn power(client: &Client, json: bool, machine: &str, action: String) -> Result<()> {
    let view: MachineView =
        client.post(&format!("/api/v1/machines/{}/power", segment(machine)), &PowerRequest { action }).await?;
    show::print(json, &view, || show::machines(std::slice::from_ref(&view)));
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
        return "nothing there answers as a BMC does".into();
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
