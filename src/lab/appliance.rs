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
use serde::de::DeserializeOwned;

use super::bmc::write_secret;
use super::guard::Guard;
use super::net;
use super::spec::{APPLIANCE, BMC_USER, BRIDGE, Machine, NETWORK, POOL, Spec};
use crate::api::view::{DeployRequest, MachineList, MachineView, PowerRequest};
use crate::error::{Error, Kind, OrFail, Result};
use crate::link::Problem;
use crate::machine::{MacAddr, MachineId, Role};

const PORTS: std::ops::RangeInclusive<u16> = 8480..=8579;
/// The first start may import images and check their digests.
const START_WITHIN: Duration = Duration::from_secs(120);
const STOP_WITHIN: Duration = Duration::from_secs(5);
const CALL_WITHIN: Duration = Duration::from_secs(15);
/// Asked again and again: the socket stays open without the appliance, so a call may hang.
const LIST_WITHIN: Duration = Duration::from_secs(3);
/// A list of 32 machines with inventory is far below.
const MAX_ANSWER: usize = 16 << 20;

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
        let socket = PORTS
            .map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)))
            .reduce(|found, next| found.or(next))
            .ok_or_else(|| Error::internal("lab.port", "no ports to try"))?
            .or_fail(Kind::Config, "lab.port", failed)?;
        let address = socket.local_addr().or_fail(Kind::Config, "lab.port", failed)?;
        let config = spec.dir.join("rackline.toml");
        let written = fs::create_dir_all(&spec.cache)
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
    boot: Boot,
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
    interface: &'static str,
    address: Ipv4Addr,
    url: String,
    kernel_args: [&'static str; 2],
    subnet: [Subnet; 1],
}

#[derive(Serialize)]
struct Subnet {
    network: &'static str,
    pools: [&'static str; 1],
    lease_seconds: u32,
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
        boot: Boot {
            interface: BRIDGE,
            address: APPLIANCE,
            url: format!("http://{APPLIANCE}"),
            // Under TCG on a busy host Linux sometimes takes the timer for broken and stops.
            kernel_args: ["no_timer_check", "panic=10"],
            subnet: [Subnet { network: NETWORK, pools: [POOL], lease_seconds: 600 }],
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
    bmc_address: Ipv4Addr,
    bmc_user: &'static str,
    bmc_password: String,
    role: Role,
}

fn machines_csv(machines: &[Machine], password: &str) -> std::io::Result<String> {
    let mut lines = csv::Writer::from_writer(Vec::new());
    for m in machines {
        lines.serialize(Expected {
            name: m.name(),
            serial: m.serial(),
            mac: m.mac(),
            rack: "lab",
            unit: m.unit(),
            bmc_address: m.bmc_address(),
            bmc_user: BMC_USER,
            bmc_password: m.spec.listed_password.clone().unwrap_or_else(|| password.to_owned()),
            role: m.spec.role,
        })?;
    }
    let bytes = lines.into_inner().map_err(|e| e.into_error())?;
    String::from_utf8(bytes).map_err(std::io::Error::other)
}

/// `/api/v1` as the lab uses it. Clones share connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
}

impl Client {
    pub fn new(address: SocketAddr) -> Result<Self> {
        let http = reqwest::Client::builder().no_proxy().timeout(CALL_WITHIN).build();
        let http = http.or_fail(Kind::Internal, "lab.api", || "cannot make an HTTP client")?;
        Ok(Self { http, base: format!("http://{address}/api/v1") })
    }

    pub async fn machines(&self) -> Result<Vec<MachineView>> {
        let listed = tokio::time::timeout(LIST_WITHIN, self.get::<MachineList>("/machines")).await;
        Ok(listed.or_fail(Kind::Unreachable, "lab.api", || "the appliance does not answer")??.machines)
    }

    pub async fn machine(&self, id: MachineId) -> Result<MachineView> {
        self.get(&format!("/machines/{id}")).await
    }

    pub async fn deploy(&self, id: MachineId, role: Role, compare_with_dd: bool) -> Result<()> {
        let request = DeployRequest {
            role,
            image: None,
            hostname: None,
            target: Default::default(),
            ssh_keys: Vec::new(),
            compare_with_dd,
        };
        self.post(&format!("/machines/{id}/deploy"), &request).await
    }

    pub async fn power(&self, id: MachineId, action: &str) -> Result<()> {
        self.post(&format!("/machines/{id}/power"), &PowerRequest { action: action.to_owned() }).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let body = self.call(self.http.get(format!("{}{path}", self.base))).await?;
        serde_json::from_slice(&body)
            .or_fail(Kind::Refused, "lab.api", || format!("{path}: not the JSON that was expected"))
    }

    async fn post(&self, path: &str, body: &impl Serialize) -> Result<()> {
        self.call(self.http.post(format!("{}{path}", self.base)).json(body)).await.map(drop)
    }

    async fn call(&self, request: reqwest::RequestBuilder) -> Result<Vec<u8>> {
        let failed = || "the appliance does not answer";
        let mut response = request.send().await.or_fail(Kind::Unreachable, "lab.api", failed)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(part) = response.chunk().await.or_fail(Kind::Unreachable, "lab.api", failed)? {
            if body.len() + part.len() > MAX_ANSWER {
                return Err(Error::refused("lab.api", "the appliance's answer does not end"));
            }
            body.extend_from_slice(&part);
        }
        if status.is_success() {
            return Ok(body);
        }
        let kind = if status.is_server_error() { Kind::Internal } else { Kind::Refused };
        Err(match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => problem.into_error(kind),
            Err(_) => Error::new(kind, "lab.api", format!("the appliance answers {status}")),
        })
    }
}

/// Waits until the API answers and knows all machines of the purchase list.
pub async fn ready(api: &Client, appliance: &mut Appliance, machines: &[Machine]) -> Result<Vec<MachineView>> {
    let deadline = Instant::now() + START_WITHIN;
    loop {
        let answer = api.machines().await;
        if let Ok(views) = &answer
            && machines.iter().all(|m| views.iter().any(|v| v.name == m.name()))
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
    use crate::lab::spec::MachineSpec;
    use crate::machine::Firmware;

    fn spec() -> Spec {
        let machine = MachineSpec {
            role: Role::Ovs,
            firmware: Firmware::Uefi,
            memory_bytes: 1 << 30,
            disks: Vec::new(),
            listed_password: Some("not,this".into()),
        };
        Spec {
            name: "t".into(),
            dir: "/lab/t".into(),
            cache: "/images".into(),
            binary: "/rackline".into(),
            machines: vec![MachineSpec { listed_password: None, ..machine.clone() }, machine],
        }
    }

    #[test]
    fn the_purchase_list_has_a_line_for_each_machine() {
        let list = machines_csv(&Machine::all(&spec()), "secret").unwrap();
        let expected = "name,serial,mac,rack,unit,bmc_address,bmc_user,bmc_password,role\n\
                        node-01,LW77S00001,52:54:00:77:00:01,lab,1,10.77.1.1,admin,secret,ovs\n\
                        node-02,LW77S00002,52:54:00:77:00:02,lab,3,10.77.1.2,admin,\"not,this\",ovs\n";
        assert_eq!(list, expected);
    }

    #[test]
    fn the_configuration_is_toml_with_the_labs_paths() {
        let text = config_toml(&spec(), ([127, 0, 0, 1], 8480).into());
        let table: toml::Table = toml::from_str(&text).unwrap();
        assert_eq!(table["site"]["state"].as_str(), Some("/lab/t/state"));
        assert_eq!(table["api"]["listen"].as_str(), Some("127.0.0.1:8480"));
        assert_eq!(table["boot"]["subnet"][0]["pools"][0].as_str(), Some(POOL));
    }
}
