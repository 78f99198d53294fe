//! `rackline machine …`: see and steer machines.

use std::time::Duration;

use clap::Subcommand;
use serde_json::json;

use super::remote::Remote;
use super::show;
use crate::api::client::{Client, segment};
use crate::api::health::HealthView;
use crate::api::view::{BurnRequest, DeployRequest, EventView, MachineList, MachineView, PowerRequest};
use crate::engine::parts::StayView;
use crate::error::{Error, Kind, Result};
use crate::machine::{Hostname, Roles, TargetRule};
use crate::swarm::tracker::SwarmList;

/// How often it is looked whether a check on demand is done.
const LOOK: Duration = Duration::from_secs(2);

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// All machines with their state and what they wait for.
    List,
    /// One machine: what it is, what was checked, its passport.
    Show { machine: String },
    /// What its BMC said at the last look: power, sensors, what is beyond a threshold.
    Health { machine: String },
    /// Its parts with a serial number, and those that it had.
    Components { machine: String },
    /// What happened to a machine, oldest first.
    Events { machine: String },
    /// Order a machine to become a host; it starts as soon as it is ready.
    Deploy {
        machine: String,
        /// kvm, docker or ovs.
        #[arg(long)]
        role: Roles,
        /// Image of the catalogue; the newest of the role's own name if not given.
        #[arg(long)]
        image: Option<String>,
        /// Host name; the machine's name if not given.
        #[arg(long)]
        hostname: Option<Hostname>,
        /// Target disk: smallest-ssd, serial=SERIAL or wwn=WWN.
        #[arg(long, default_value = "smallest-ssd")]
        disk: TargetRule,
        /// Public SSH key for root (repeat for more).
        #[arg(long = "ssh-key")]
        ssh_keys: Vec<String>,
    },
    /// Wipe a delivered or broken machine and take it back into the pool. Its data is gone after that.
    Release {
        machine: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// The cause is mended: start a broken machine again.
    Retry { machine: String },
    /// Run the checks of a delivered host again, but for those that would disturb it, and say what is not as it was.
    Check {
        machine: String,
        /// Do not wait for the results; `machine show` has them later.
        #[arg(long)]
        no_wait: bool,
    },
    /// Take a machine out of service for good.
    Retire { machine: String },
    /// Load every part of a machine that is ready, and look whether it stands that. Orders wait until it is over.
    Burn {
        machine: String,
        /// quick (two minutes), standard (half an hour) or soak (a day).
        #[arg(long, default_value = "standard", conflicts_with = "stop")]
        profile: String,
        /// Also write to disks that hold data. It is gone after that.
        #[arg(long, conflicts_with = "stop")]
        overwrite: bool,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Leave the rest of the burn-in that is under way.
        #[arg(long)]
        stop: bool,
    },
    /// on, off, cycle, reset or soft, through its BMC.
    Power { machine: String, action: String },
}

pub async fn run(args: Args) -> Result<()> {
    let client = args.remote.client()?;
    let path = |machine: &str, rest: &str| format!("/api/v1/machines/{}{rest}", segment(machine));
    match args.command {
        Command::List => {
            let list: MachineList = client.get("/api/v1/machines").await?;
            show::print(args.remote.json, &list, || show::machines(&list.machines));
        }
        Command::Show { machine } => {
            let view: MachineView = client.get(&path(&machine, "")).await?;
            // One more line for people; the machine is shown without it, too.
            let swarms: Option<SwarmList> =
                if args.remote.json { None } else { client.get("/api/v1/swarm").await.ok() };
            show::print(args.remote.json, &view, || show::machine(&view, swarms.as_ref()));
        }
        Command::Health { machine } => {
            let view: HealthView = client.get(&path(&machine, "/health")).await?;
            show::print(args.remote.json, &view, || health(&view));
        }
        Command::Components { machine } => {
            let stays: Vec<StayView> = client.get(&path(&machine, "/components")).await?;
            show::print(args.remote.json, &stays, || super::component::table(&stays));
        }
        Command::Events { machine } => {
            let mut events: Vec<EventView> = Vec::new();
            loop {
                let after = events.last().map_or(0, |e| e.sequence);
                let more: Vec<EventView> = client.get(&path(&machine, &format!("/events?after={after}"))).await?;
                if more.is_empty() {
                    break;
                }
                events.extend(more);
            }
            show::print(args.remote.json, &events, || show::events(&events));
        }
        Command::Deploy { machine, role, image, hostname, disk, ssh_keys } => {
            let request = DeployRequest { role, image, hostname, target: disk, ssh_keys, compare_with_dd: false };
            steer(&client, args.remote.json, &path(&machine, "/deploy"), &request).await?;
        }
        Command::Release { machine, yes } => {
            let view: MachineView = client.get(&path(&machine, "")).await?;
            if !yes {
                confirm(&view.name)?;
            }
            steer(&client, args.remote.json, &path(&machine, "/release"), &json!({})).await?;
        }
        Command::Retry { machine } => steer(&client, args.remote.json, &path(&machine, "/retry"), &json!({})).await?,
        Command::Check { machine, no_wait } => check(&client, args.remote.json, &path(&machine, ""), no_wait).await?,
        Command::Retire { machine } => steer(&client, args.remote.json, &path(&machine, "/retire"), &json!({})).await?,
        Command::Burn { machine, stop: true, .. } => {
            steer(&client, args.remote.json, &path(&machine, "/burn/stop"), &json!({})).await?;
        }
        Command::Burn { machine, profile, overwrite, yes, stop: false } => {
            if overwrite && !yes {
                let view: MachineView = client.get(&path(&machine, "")).await?;
                confirm(&view.name)?;
            }
            let request = BurnRequest { profile, overwrite };
            steer(&client, args.remote.json, &path(&machine, "/burn"), &request).await?;
        }
        Command::Power { machine, action } => {
            steer(&client, args.remote.json, &path(&machine, "/power"), &PowerRequest { action }).await?;
        }
    }
    Ok(())
}

/// Fails where something is found that would hold a host back.
async fn check(client: &Client, json: bool, path: &str, no_wait: bool) -> Result<()> {
    let asked: MachineView = client.post(&format!("{path}/check"), &json!({})).await?;
    if no_wait {
        show::print(json, &asked, || show::machines(std::slice::from_ref(&asked)));
        return Ok(());
    }
    let recheck = loop {
        tokio::time::sleep(LOOK).await;
        let view: MachineView = client.get(path).await?;
        match view.recheck.filter(|recheck| !recheck.running()) {
            Some(recheck) => break recheck,
            // Released or broken meanwhile.
            None if view.state != "delivered" => {
                return Err(Error::conflict("check.gone", format!("{} is {} by now", view.name, view.state)));
            }
            None => {}
        }
    };
    show::print(json, &recheck, || show::recheck(&recheck));
    let faults = recheck.checks.iter().filter(|c| c.holds_back()).count();
    match (recheck.problem, faults) {
        (Some(problem), _) => Err(problem.into_error(Kind::Refused)),
        (None, 0) => Ok(()),
        (None, faults) => Err(Error::refused("check.failed", format!("{faults} of the checks found a fault"))),
    }
}

fn health(view: &HealthView) -> String {
    let health = &view.health;
    let mut lines = Vec::new();
    lines.extend(health.problem.as_ref().map(|problem| format!("cannot be looked at: {}", problem.sentence)));
    let Some(age) = view.age_seconds else { return lines.join("\n") };
    let power = health.power.map_or("unknown".to_owned(), |power| format!("{power:?}").to_lowercase());
    lines.push(format!("power {power}, {} sensors, {age} s ago", health.sensors.len()));
    let mut table = show::table(&["SENSOR", "KIND", "VALUE", "LEVEL"]);
    for sensor in &health.sensors {
        let value = sensor.value.map_or(String::new(), |value| format!("{value} {}", sensor.unit));
        let level = sensor.level.map_or(String::new(), |level| format!("{level:?}").to_lowercase());
        table.add_row([sensor.name.clone(), sensor.kind.clone(), value, level]);
    }
    lines.push(table.to_string());
    lines.join("\n")
}

async fn steer(client: &Client, json: bool, path: &str, body: &impl serde::Serialize) -> Result<()> {
    let view: MachineView = client.post(path, body).await?;
    show::print(json, &view, || show::machines(std::slice::from_ref(&view)));
    Ok(())
}

/// What cannot be undone is typed out.
fn confirm(name: &str) -> Result<()> {
    eprint!("This erases every disk of {name}. Type its name to go on: ");
    let mut typed = String::new();
    let read = std::io::stdin().read_line(&mut typed);
    if read.is_ok() && typed.trim() == name {
        return Ok(());
    }
    Err(Error::input("confirm", "not confirmed; nothing was changed").hint("type the machine's name, or give --yes"))
}
