//! The appliance of the rack: its configuration, its process inside the namespace, and its API as the lab calls it.
//!
//! The API's socket is opened outside the namespace and handed over, so that console and command line work from the
//! host without a route into the rack. The lab keeps it: a restarted appliance is found at the same address, and calls
//! made in between wait.

use std::fs::{self, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::bmc::write_secret;
use super::guard::Guard;
use super::net;
use super::spec::{APPLIANCE, BMC_USER, BRIDGE, Listed, Machine, NETWORK, POOL, Spec};
use crate::api::client::{Client, segment};
use crate::api::view::{DeployRequest, EventView, MachineList, MachineView, PowerRequest};
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::{MacAddr, MachineId, Roles};

const PORTS: std::ops::RangeInclusive<u16> = 8480..=8579;
/// The first start may import images and check their digests.
const START_WITHIN: Duration = Duration::from_secs(120);
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// Asked again and again: the socket stays open without the appliance, so a call may hang.
const LIST_WITHIN: Duration = Duration::from_secs(3);

pub struct Appliance {
    socket: TcpListener,
    pub address: SocketAddr,
    pub config: PathBuf,
    pub log: PathBuf,
    netns: String,
    binary: PathBuf,
    guard: Guard,
    process: Option<Child>,
}

impl Appliance {
    /// Writes the configuration and opens the socket; nothing runs yet.
    pub fn prepare(guard: &Guard, spec: &Spec, machines: &[Machine], password: &str) -> Result<Self> {
        let failed = || "cannot open a socket for the appliance";
        let free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok();
        let socket = PORTS.into_iter().find_map(free).ok_or_else(|| {
            Error::config("lab.port", format!("no free port from {} to {}", PORTS.start(), PORTS.end()))
                .hint("stop other labs: `pgrep -af 'rackline lab'`")
        })?;
        let address = socket.local_addr().or_fail(Kind::Config, "lab.port", failed)?;
        let config = spec.dir.join("rackline.toml");
        let written = fs::create_dir_all(&spec.cache)
            .and_then(|()| fs::create_dir_all(spec.dir.join("checks")))
            .and_then(|()| fs::write(spec.dir.join("checks/lab.toml"), super::CHECKS))
            .and_then(|()| machines_csv(machines, password))
            .and_then(|list| write_secret(&spec.dir.join("machines.csv"), &list))
            .and_then(|()| fs::write(&config, config_toml(spec, address)));
        written.or_fail(Kind::Config, "lab.config", || format!("cannot write {}", config.display()))?;
        Ok(Self {
            socket,
            address,
            config,
            log: spec.dir.join("appliance.log"),
            netns: spec.netns(),
            binary: spec.binary.clone(),
            guard: guard.clone(),
            process: None,
        })
    }

    pub fn start(&mut self) -> Result<()> {
        let failed = || "cannot start the appliance";
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.or_fail(Kind::Config, "lab.appliance", failed)?;
        let errors = log.try_clone().or_fail(Kind::Config, "lab.appliance", failed)?;
        let socket = self.socket.try_clone().or_fail(Kind::Internal, "lab.appliance", failed)?;
        let mut command = net::inside(&self.netns, &self.binary);
        command.args(["lab", "activate"]).arg(&self.binary).arg("serve").arg("--config").arg(&self.config);
        command.stdin(Stdio::from(OwnedFd::from(socket))).stdout(log).stderr(errors);
        self.process = Some(self.guard.spawn(&mut command)?);
        Ok(())
    }

    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|p| matches!(p.try_wait(), Ok(None)))
    }

    /// As a power cut would: no chance to write anything.
    pub fn kill(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        let ended = process.kill().and_then(|()| process.wait());
        ended.or_fail(Kind::Internal, "lab.appliance", || "cannot end the appliance").map(drop)
    }

    /// As a service manager would; killed where that takes too long.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(process) = &mut self.process {
            if let Some(pid) = rustix::process::Pid::from_raw(process.id() as i32) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            let deadline = Instant::now() + STOP_WITHIN;
            while matches!(process.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        self.kill()
    }

    /// Why the appliance does not run, with the end of its log.
    pub fn ended(&self, sentence: &str) -> Error {
        let tail = super::text::tail(&self.log, 8).join("\n");
        Error::internal("lab.appliance", sentence).because(tail).hint(format!("see {}", self.log.display()))
    }
}

/// The part of the appliance's configuration that a lab sets.
#[derive(Serialize)]
struct Config<'a> {
    site: Site<'a>,
    api: Api,
    host: Host,
    boot: Boot,
    commission: Commission,
}

#[derive(Serialize)]
struct Host {
    checks: PathBuf,
}

#[derive(Serialize)]
struct Site<'a> {
    name: &'a str,
    state: PathBuf,
    cache: &'a Path,
    expected: PathBuf,
}

#[derive(Serialize)]
struct Api {
    listen: SocketAddr,
}

#[derive(Serialize)]
struct Boot {
    url: String,
    kernel_args: [&'static str; 2],
    interfaces: [Interface; 1],
    subnets: [Subnet; 1],
}

#[derive(Serialize)]
struct Interface {
    name: &'static str,
    address: Ipv4Addr,
}

#[derive(Serialize)]
struct Subnet {
    network: &'static str,
    pools: [&'static str; 1],
    router: Ipv4Addr,
    lease_seconds: u32,
}

#[derive(Serialize)]
struct Commission {
    burn: &'static str,
}

fn config_toml(spec: &Spec, listen: SocketAddr) -> String {
    let config = Config {
        site: Site {
            name: &spec.name,
            state: spec.dir.join("state"),
            cache: &spec.cache,
            expected: spec.dir.join("machines.csv"),
        },
        api: Api { listen },
        host: Host { checks: spec.dir.join("checks") },
        // Every step once; on two cores that virtual machines share it says nothing about hardware.
        commission: Commission { burn: "lab" },
        boot: Boot {
            url: format!("http://{APPLIANCE}"),
            // Under TCG on a busy host Linux sometimes takes the timer for broken and stops.
            kernel_args: ["no_timer_check", "panic=10"],
            interfaces: [Interface { name: BRIDGE, address: APPLIANCE }],
            subnets: [Subnet { network: NETWORK, pools: [POOL], router: APPLIANCE, lease_seconds: 600 }],
        },
    };
    // Names, paths and addresses always have a form in TOML.
    toml::to_string(&config).unwrap_or_default()
}

/// A line of the purchase list, as a supplier would send it.
#[derive(Serialize)]
struct Expected {
    name: String,
    serial: String,
    mac: MacAddr,
    rack: &'static str,
    unit: u8,
    bmc_address: String,
    bmc_user: &'static str,
    bmc_password: String,
}

fn machines_csv(machines: &[Machine], password: &str) -> std::io::Result<String> {
    let mut lines = csv::Writer::from_writer(Vec::new());
    for m in machines {
        let bmc_password = match &m.spec.listed {
            Listed::Right => password.to_owned(),
            Listed::WrongPassword(wrong) => wrong.clone(),
            Listed::Not => continue,
        };
        lines.serialize(Expected {
            name: m.name(),
            serial: m.serial(),
            mac: m.mac(),
            rack: "lab",
            unit: m.unit(),
            bmc_address: m.bmc_doors(),
            bmc_user: BMC_USER,
            bmc_password,
        })?;
    }
    let bytes = lines.into_inner().map_err(|e| e.into_error())?;
    String::from_utf8(bytes).map_err(std::io::Error::other)
}

/// `/api/v1` as the lab uses it. Clones share connections.
#[derive(Clone)]
pub struct Operator {
    client: Client,
}

impl Operator {
    pub fn new(address: SocketAddr) -> Result<Self> {
        Ok(Self { client: Client::new(&format!("http://{address}"))? })
    }

    pub async fn machines(&self) -> Result<Vec<MachineView>> {
        let listed = tokio::time::timeout(LIST_WITHIN, self.client.get::<MachineList>("/api/v1/machines")).await;
        Ok(listed.or_fail(Kind::Unreachable, "lab.api", || "the appliance does not answer")??.machines)
    }

    pub async fn machine(&self, id: MachineId) -> Result<MachineView> {
        self.client.get(&format!("/api/v1/machines/{id}")).await
    }

    pub async fn by_name(&self, name: &str) -> Result<MachineView> {
        self.client.get(&format!("/api/v1/machines/{}", segment(name))).await
    }

    /// The first thousand: more than a delivery brings.
    pub async fn events(&self, id: MachineId) -> Result<Vec<EventView>> {
        self.client.get(&format!("/api/v1/machines/{id}/events")).await
    }

    pub async fn release(&self, id: MachineId) -> Result<MachineView> {
        self.client.post(&format!("/api/v1/machines/{id}/release"), &serde_json::json!({})).await
    }

    pub async fn deploy(&self, id: MachineId, role: impl Into<Roles>, compare_with_dd: bool) -> Result<MachineView> {
        let request = DeployRequest {
            role: role.into(),
            image: None,
            hostname: None,
            target: Default::default(),
            ssh_keys: Vec::new(),
            compare_with_dd,
        };
        self.client.post(&format!("/api/v1/machines/{id}/deploy"), &request).await
    }

    pub async fn power(&self, id: MachineId, action: &str) -> Result<MachineView> {
        let request = PowerRequest { action: action.to_owned() };
        self.client.post(&format!("/api/v1/machines/{id}/power"), &request).await
    }
}

/// Waits until the API answers and knows all machines of the purchase list.
pub async fn ready(api: &Operator, appliance: &mut Appliance, machines: &[Machine]) -> Result<Vec<MachineView>> {
    let deadline = Instant::now() + START_WITHIN;
    loop {
        let answer = api.machines().await;
        if let Ok(views) = &answer
            && machines.iter().all(|m| m.spec.listed == Listed::Not || views.iter().any(|v| v.name == m.name()))
        {
            return Ok(views.clone());
        }
        if !appliance.is_running() {
            return Err(appliance.ended("the appliance has ended right after its start"));
        }
        if Instant::now() > deadline {
            return Err(appliance.ended(match answer {
                Ok(_) => "the appliance does not know the machines of its purchase list",
                _ => "the appliance does not answer",
            }));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::spec::{BmcKind, MachineSpec};
    use crate::machine::{Firmware, Role};

    fn spec() -> Spec {
        let machine = MachineSpec {
            role: Role::Ovs.into(),
            firmware: Firmware::Uefi,
            memory_bytes: 1 << 30,
            disks: Vec::new(),
            bmc: BmcKind::Both,
            listed: Listed::WrongPassword("not,this".into()),
            smbios: None,
        };
        Spec {
            name: "t".into(),
            dir: "/lab/t".into(),
            cache: "/images".into(),
            binary: "/rackline".into(),
            machines: vec![MachineSpec { listed: Listed::Right, bmc: BmcKind::Redfish, ..machine.clone() }, machine],
        }
    }

    #[test]
    fn the_purchase_list_has_a_line_for_each_machine() {
        let list = machines_csv(&Machine::all(&spec()), "secret").unwrap();
        let expected = "name,serial,mac,rack,unit,bmc_address,bmc_user,bmc_password\n\
                        node-01,LW77S00001,52:54:00:77:00:01,lab,1,https://10.77.1.1,admin,secret\n\
                        node-02,LW77S00002,52:54:00:77:00:02,lab,3,10.77.1.2 https://10.77.1.2,admin,\"not,this\"\n";
        assert_eq!(list, expected);
    }

    #[test]
    fn the_configuration_is_one_that_the_appliance_takes() {
        let text = config_toml(&spec(), ([127, 0, 0, 1], 8480).into());
        let config = crate::config::Config::parse(&text).unwrap();
        assert_eq!(config.site.state, PathBuf::from("/lab/t/state"));
        assert_eq!(config.api.listen, ([127, 0, 0, 1], 8480).into());
        assert_eq!(config.boot.subnets[0].pools[0].to_string(), POOL);
        assert_eq!(
            crate::config::expected::parse(&machines_csv(&Machine::all(&spec()), "secret").unwrap())
                .unwrap()
                .machines
                .len(),
            2
        );
    }
}
