//! What the appliance of this host knows of its machines, read from its state while it runs or not, for questions about
//! images: which drivers and disks they have, and which images they use.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::image::Cache;
use crate::image::gc::Users;
use crate::image::lint::Expected;
use crate::lifecycle::{Machine, State};
use crate::store::Db;

#[derive(clap::Args, Clone)]
pub struct Source {
    /// The configuration of the appliance whose machines are asked about.
    #[arg(long, default_value = "/etc/rackline/rackline.toml", value_name = "FILE")]
    pub config: PathBuf,
}

/// All machines of the appliance; an error where that is not known for certain.
pub async fn machines(args: &Source) -> Result<Vec<Machine>> {
    let config = Config::load(&args.config)?;
    Db::open_to_read(&config.site.state).await?.machines().await
}

/// The cache that the appliance serves from is this one.
pub fn same_cache(args: &Source, cache: &Cache) -> Result<()> {
    let config = Config::load(&args.config)?;
    let theirs = Cache::open_or_default(config.site.cache.as_deref())?;
    if theirs.root() == cache.root() {
        return Ok(());
    }
    let (ours, theirs) = (cache.root().display(), theirs.root().display());
    Err(Error::config(
        "image.other-cache",
        format!("the appliance of {} serves from {theirs}, not from {ours}", args.config.display()),
    )
    .hint("name the configuration of the appliance that uses this cache: --config FILE"))
}

/// Per image, who uses it: ordered, being written, or running.
pub fn in_use(machines: &[Machine]) -> Users {
    let mut users = Users::new();
    for machine in machines.iter().filter(|m| !matches!(m.state, State::Retired)) {
        let ordered = machine.order.as_ref().map(|o| o.manifest);
        let deployed = machine.deployed.as_ref().map(|d| d.manifest);
        for (digest, how) in [(deployed, "is deployed with it"), (ordered, "is ordered with it")] {
            let Some(digest) = digest else { continue };
            let users = users.entry(digest).or_default();
            let who = format!("{} ", machine.name);
            if !users.iter().any(|u| u.starts_with(&who)) {
                users.push(format!("{who}{how} ({})", machine.state.name()));
            }
        }
    }
    users
}

/// What images are held against: the fleet's drivers and its smallest possible target disk, as far as it is known.
pub async fn expected(args: &Source, smallest_disk: Option<u64>) -> Expected {
    let machines = match machines(args).await {
        Ok(machines) => machines,
        Err(e) => {
            let default = args.config == Path::new("/etc/rackline/rackline.toml");
            if !default || args.config.exists() {
                eprintln!("the fleet is not known: {e}");
            }
            Vec::new()
        }
    };
    let (drivers, disk) = hardware(&machines);
    Expected { drivers, smallest_disk: smallest_disk.or(disk), seed: SEED }
}

/// Room of the seed partition with a release binary, and of the table's backup.
const SEED: u64 = 66 << 20;

/// Drivers by the number of machines, and the smallest disk that could be a target.
fn hardware(machines: &[Machine]) -> (Vec<(String, usize)>, Option<u64>) {
    let mut drivers: BTreeMap<String, usize> = BTreeMap::new();
    let mut smallest = None;
    for inventory in machines.iter().filter_map(|m| m.inventory.as_deref()) {
        let nics = inventory.nics.iter().filter_map(|nic| nic.driver.clone());
        let fixed = inventory.disks.iter().filter(|d| !d.removable && !d.read_only);
        let disks = fixed.clone().filter_map(|d| match d.transport.as_str() {
            "nvme" => Some("nvme".to_owned()),
            "virtio" => Some("virtio_blk".to_owned()),
            "sata" => Some("ahci".to_owned()),
            // Several host adapters come into question, and the inventory does not say which.
            _ => None,
        });
        for driver in nics.chain(disks).collect::<std::collections::BTreeSet<_>>() {
            *drivers.entry(driver).or_default() += 1;
        }
        // A machine takes the image on any of its disks.
        let largest = fixed.map(|d| d.size_bytes).max();
        smallest = [smallest, largest].into_iter().flatten().min();
    }
    (drivers.into_iter().collect(), smallest)
}
