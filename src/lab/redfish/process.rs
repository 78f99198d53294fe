//! `rackline lab redfish FILE`: the Redfish BMC of one of the lab's machines, a process in the rack's network as
//! `ipmi_sim` is one. The machine's power is asked for and changed the way `ipmi_sim` does it, over the chassis socket.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Account, Accounts, Boot, Controls, Hardware, Identity, Reset, Server};
use crate::error::{Error, Kind, OrFail, Result};
use crate::lab::bmc::reading_file;
use crate::lab::fru::Sensor;
use crate::lab::spec::{BMC_USER, HTTPS, Machine};
use crate::lab::{BootDevice, chassis};

/// What the lab tells the process, in a file for root only.
#[derive(Serialize, Deserialize)]
pub struct Setup {
    identity: Identity,
    user: String,
    password: String,
    listen: SocketAddr,
    /// Where the machine's chassis is asked, and where its sensors' readings are.
    run: PathBuf,
    dir: PathBuf,
}

impl Setup {
    pub fn of(machine: &Machine, password: &str) -> Self {
        let address = IpAddr::from(machine.bmc_address());
        let identity = Identity {
            manufacturer: "Labworks".into(),
            model: "LW-R1".into(),
            serial: machine.serial(),
            uuid: machine.uuid(),
            firmware: machine.spec.firmware,
            memory_bytes: machine.spec.memory_bytes,
            mac: machine.mac(),
            disks: machine.spec.disks.clone(),
            bmc_mac: machine.bmc_mac(),
            bmc_address: address,
        };
        Self {
            identity,
            user: BMC_USER.into(),
            password: password.to_owned(),
            listen: (address, HTTPS).into(),
            run: machine.run.clone(),
            dir: machine.dir.clone(),
        }
    }
}

/// Where faults are planted while the BMC runs.
pub fn faults_file(dir: &Path) -> PathBuf {
    dir.join("faults.json")
}

/// Serves until it is killed.
pub async fn main(file: &Path) -> Result<ExitCode> {
    let failed = || format!("cannot read {}", file.display());
    let text = std::fs::read_to_string(file).or_fail(Kind::Config, "lab.redfish", failed)?;
    let setup: Setup = serde_json::from_str(&text).or_fail(Kind::Config, "lab.redfish", failed)?;
    let controls = Arc::new(Controls::following(faults_file(&setup.dir)));
    let accounts = Arc::new(Accounts::new(vec![Account::administrator(&setup.user, &setup.password)]));
    let hardware = Arc::new(Qemu { run: setup.run, dir: setup.dir });
    let machine = super::Machine::new(setup.identity, hardware, controls.clone(), accounts.clone());
    let _server = Server::start(setup.listen, true, Arc::new(machine), controls, accounts).await?;
    std::future::pending().await
}

/// The lab's machine, over its chassis socket.
struct Qemu {
    run: PathBuf,
    dir: PathBuf,
}

impl Qemu {
    fn ask(&self, arguments: &[&str]) -> Result<Vec<String>> {
        chassis::ask(&self.run, arguments.iter().map(|a| (*a).to_owned()).collect())
    }

    fn get<const N: usize>(&self, names: [&str; N]) -> Result<[String; N]> {
        let lines = self.ask(&[&["get"], &names[..]].concat())?;
        let values = lines.iter().filter_map(|line| line.split_once(':')).map(|(_, value)| value.to_owned());
        let values: Vec<String> = values.collect();
        values.try_into().map_err(|_| Error::internal("lab.chassis", "the lab's answer has other values"))
    }
}

impl Hardware for Qemu {
    fn is_on(&self) -> Result<bool> {
        let [power] = self.get(["power"])?;
        Ok(power == "1")
    }

    fn reset(&self, how: Reset) -> Result<()> {
        let soft = ["set", "shutdown", "1"];
        let arguments: &[&str] = match how {
            Reset::On => &["set", "power", "1"],
            Reset::ForceOff => &["set", "power", "0"],
            Reset::GracefulShutdown => &soft,
            Reset::PushPowerButton if self.is_on()? => &soft,
            Reset::PushPowerButton => &["set", "power", "1"],
            Reset::ForceRestart => &["set", "reset", "1"],
            Reset::PowerCycle => &["set", "power", "0", "power", "1"],
        };
        self.ask(arguments).map(drop)
    }

    fn boot(&self) -> Result<Boot> {
        let [once, always] = self.get(["boot", "order"])?;
        let device = |name: &str| BootDevice::from_ipmi_sim(name).unwrap_or(BootDevice::None);
        Ok(Boot { once: device(&once), always: device(&always) })
    }

    fn set_boot(&self, boot: Boot) -> Result<()> {
        self.ask(&["set", "order", boot.always.ipmi_sim(), "boot", boot.once.ipmi_sim()]).map(drop)
    }

    fn starts(&self) -> Result<u64> {
        let [starts] = self.get(["starts"])?;
        starts.parse().or_fail(Kind::Internal, "lab.chassis", || "the lab's answer is no number")
    }

    fn reading(&self, sensor: &Sensor) -> u8 {
        let text = std::fs::read_to_string(reading_file(&self.dir, sensor)).unwrap_or_default();
        text.trim().parse().unwrap_or(sensor.nominal)
    }
}
