//! The network boot services alone, for the benchmarks: DHCP, TFTP, router advertisements and the boot pages over HTTP,
//! with the store that the appliance uses, and rules that send every machine into the agent's RAM system.
//!
//! `boot-server CONFIG STATE [NAME=PATH …]` reads CONFIG, which is the `[boot]` section of `rackline.toml` by itself,
//! keeps leases in the folder STATE, and serves each PATH as the boot file NAME over TFTP and HTTP besides the installed
//! boot loaders. Says `ready` on standard output; ends by SIGTERM, and then prints what was answered and what was not.

use std::error::Error;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;
use rackline::boot::config::BootConfig;
use rackline::boot::firmware::Files;
use rackline::boot::script::Scripts;
use rackline::boot::{BootAnswer, Facts, Policy, Sighting, Unanswered, http};
use rackline::httpd::{Limits, Server};
use rackline::machine::{MacAddr, MachineId};
use rackline::store::Db;
use tokio::signal::unix::{SignalKind, signal};

/// Every machine is a new one that nobody ordered anything for.
struct Agents;

impl Policy for Agents {
    fn sighted(&self, _: Sighting) {}

    fn unanswered(&self, _: Unanswered) {}

    fn facts(&self, _: MacAddr) -> Option<Facts> {
        None
    }

    fn boot_answer(&self, asking: Sighting) -> BoxFuture<'_, rackline::error::Result<BootAnswer>> {
        let token = asking.mac.to_string().replace(':', "");
        Box::pin(async move { Ok(BootAnswer::Agent { machine: MachineId::generate(), token }) })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    // `cargo bench` adds --bench to the arguments of every benchmark.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [config, state, more @ ..] = args.as_slice() else {
        return Err("usage: boot-server CONFIG STATE [NAME=PATH …]".into());
    };
    let config: BootConfig = toml::from_str(&std::fs::read_to_string(config)?)?;
    let files = Arc::new(files(more)?);
    let policy = Arc::new(Agents);
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, config.port())).await?;
    let db = Db::open(Path::new(state)).await?;
    let (scripts, switches) = (Arc::new(Scripts::new(&config, "00")?), Arc::default());
    let services = rackline::boot::serve(&config, files.clone(), scripts, switches, policy.clone(), db).await?;
    let site = Arc::new(http::Site { policy, files, loaders: services.loaders() });
    let router = http::router(site.clone());
    let find = move |path: &str| site.file(path).map(PathBuf::from);
    let web = tokio::spawn(
        Server::new(find, router, Limits::default(), Default::default(), Default::default()).run(listener),
    );
    println!("ready");
    signal(SignalKind::terminate())?.recv().await;
    web.abort();
    let counted: Vec<_> = services.counters().snapshot().into_iter().filter(|(_, n)| *n > 0).collect();
    services.stop().await;
    println!("{counted:?}");
    Ok(())
}

fn files(more: &[String]) -> Result<Files, Box<dyn Error>> {
    let mut files = Files::installed()?;
    for file in more {
        let (name, path) = file.split_once('=').ok_or("a file is given as NAME=PATH")?;
        files = files.with(name, Path::new(path))?;
        files.memory.insert(name.to_owned(), std::fs::read(path)?.into());
    }
    Ok(files)
}
