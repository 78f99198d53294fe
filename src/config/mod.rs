//! `rackline.toml`: typed, unknown keys refused, every path resolved against the folder the file lies in.
//!
//! `rackline.example.toml` beside Cargo.toml explains each key and is itself a test.

pub mod expected;
pub mod handoff;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::boot::config::BootConfig;
use crate::boot::script::Scripts;
use crate::boot::switch::config::{self as switch, Services, Switch};
use crate::error::{Error, Kind, OrFail, Result};
use crate::link::BurnProfile;
use crate::machine::Hostname;
use crate::outlet;
use crate::template::burn;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub site: Site,
    #[serde(default)]
    pub api: Api,
    pub boot: BootConfig,
    #[serde(default)]
    pub host: Host,
    #[serde(default)]
    pub swarm: Swarm,
    #[serde(default)]
    pub power: Power,
    #[serde(default)]
    pub bmc: Bmc,
    #[serde(default)]
    pub firmware: Firmware,
    #[serde(default)]
    pub commission: Commission,
    #[serde(default)]
    pub handoff: handoff::Handoff,
    /// What every switch is told besides its own entry.
    #[serde(default)]
    pub services: Services,
    /// The switches that get their configuration here, with the machine expected on each port.
    #[serde(default)]
    pub switches: Vec<Switch>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    pub name: String,
    /// Database, site key, signing key.
    pub state: PathBuf,
    /// Images and the agent's RAM system.
    #[serde(default)]
    pub cache: Option<PathBuf>,
    /// CSV of the machines that are to come.
    #[serde(default)]
    pub expected: Option<PathBuf>,
    /// Folder of the site's own bills of materials, besides those built in.
    #[serde(default)]
    pub models: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Api {
    /// Console and API. Loopback unless set: there are no users and no TLS yet.
    #[serde(default = "loopback")]
    pub listen: SocketAddr,
}

impl Default for Api {
    fn default() -> Self {
        Self { listen: loopback() }
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8480))
}

/// What switches the mains of machines.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Power {
    #[serde(default)]
    pub outlets: Vec<outlet::Settings>,
}

impl Power {
    fn check(&self) -> Result<()> {
        let mut names = HashSet::new();
        for outlet in &self.outlets {
            outlet.check()?;
            if !names.insert(&outlet.name) {
                let twice = format!("there are two [[power.outlets]] named {}", outlet.name);
                return Err(Error::config("config.invalid", twice).hint("each outlet has a name of its own"));
            }
        }
        Ok(())
    }
}

/// What is done with the BMCs of all machines.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bmc {
    pub console: Console,
    /// In which time every BMC is looked at once: power, sensors, log. 0: none is.
    pub sweep_seconds: u32,
    /// The password of the list is changed, when a machine is enlisted, to one that is generated for it.
    pub own_passwords: bool,
    /// Time servers that every BMC gets when its machine is commissioned; empty: each keeps those that it has.
    pub ntp: Vec<String>,
    /// What becomes of its address then.
    pub address: BmcAddress,
    /// PEM of the authority that signs the certificates of the site's BMCs. Without one, the first certificate of each is
    /// kept, and another one refused.
    pub authority: Option<PathBuf>,
}

impl Default for Bmc {
    fn default() -> Self {
        Self {
            console: Console::default(),
            sweep_seconds: 60,
            own_passwords: false,
            ntp: Vec::new(),
            address: BmcAddress::Keep,
            authority: None,
        }
    }
}

/// Where a BMC has its address from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BmcAddress {
    #[default]
    Keep,
    Dhcp,
    /// The one that it has now, from now on without asking for it.
    Static,
}

impl Bmc {
    fn check(&self) -> Result<()> {
        let wrong =
            |what: String| Err(Error::config("config.invalid", what).hint("ntp = [\"10.0.0.1\", \"ntp.example\"]"));
        if self.ntp.len() > TIME_SERVERS {
            return wrong(format!("bmc.ntp names {} time servers; BMCs have room for {TIME_SERVERS}", self.ntp.len()));
        }
        let named = |server: &&String| server.parse::<IpAddr>().is_err() && server.parse::<Hostname>().is_err();
        match self.ntp.iter().find(named) {
            Some(server) => wrong(format!("bmc.ntp: {server:?} is neither an address nor a host name")),
            None => Ok(()),
        }
    }
}

/// iDRAC and iLO take three or two, others four; more than that none shows.
const TIME_SERVERS: usize = 4;

/// When the serial consoles of machines are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Console {
    /// From power-on until the machine is delivered or broken.
    #[default]
    Boot,
    Always,
    Never,
}

/// How one image reaches many machines: from machine to machine, in lines that the appliance plans.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Swarm {
    /// TCP port on which the appliance itself serves frames.
    pub port: NonZeroU16,
    /// What the appliance may send to members, all together; with `machine_link_mbit` it also says how many lines it feeds.
    pub uplink_mbit: Option<NonZeroU32>,
    /// The link of one machine.
    pub machine_link_mbit: Option<NonZeroU32>,
    /// What one machine may send to others.
    pub machine_upload_mbit: Option<NonZeroU32>,
    /// What one machine may send to another rack.
    pub rack_uplink_mbit: Option<NonZeroU32>,
    /// What one installed host may send to new machines of its rack. Absent: installed hosts never help.
    pub hosts_upload_mbit: Option<NonZeroU32>,
    /// What the images that it keeps for that may take on its root file system, in GiB.
    pub hosts_space_gib: NonZeroU32,
    /// Whether BitTorrent clients get images too. Rackline's own agents do not need it.
    pub bittorrent: bool,
    /// TCP port on which they get them from the appliance.
    pub bittorrent_port: NonZeroU16,
    /// What the appliance may send to them, all together.
    pub bittorrent_mbit: Option<NonZeroU32>,
}

impl Default for Swarm {
    fn default() -> Self {
        let port = |port| NonZeroU16::new(port).unwrap_or(NonZeroU16::MAX);
        Self {
            port: port(7070),
            uplink_mbit: None,
            machine_link_mbit: None,
            machine_upload_mbit: None,
            rack_uplink_mbit: None,
            hosts_upload_mbit: None,
            hosts_space_gib: NonZeroU32::new(20).unwrap_or(NonZeroU32::MIN),
            bittorrent: true,
            bittorrent_port: port(6881),
            bittorrent_mbit: None,
        }
    }
}

/// Firmware and settings of the machines.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Firmware {
    /// Whether machines are brought to their baseline when they are commissioned. Otherwise what differs is told.
    pub apply: bool,
    /// Folder of the site's own baselines, which go before those built in.
    pub baselines: Option<PathBuf>,
    /// Folder of the firmware images; `firmware` in the state folder if not given.
    pub bundles: Option<PathBuf>,
}

impl Default for Firmware {
    fn default() -> Self {
        Self { apply: true, baselines: None, bundles: None }
    }
}

/// What machines go through before they are ready.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Commission {
    /// Burn-in profile: `quick`, `standard`, `soak`, or `off`.
    pub burn: String,
}

impl Default for Commission {
    fn default() -> Self {
        Self { burn: "quick".into() }
    }
}

impl Commission {
    /// `None`: machines are not burned in unless an operator asks for it.
    pub fn profile(&self) -> Result<Option<BurnProfile>> {
        match self.burn.as_str() {
            "off" => Ok(None),
            name => burn::profile(name).map(Some).map_err(|e| {
                Error::config("config.invalid", format!("commission.burn: {}", e.message()))
                    .hint(format!("{}, or off", e.next_step().unwrap_or("there are profiles")))
            }),
        }
    }
}

/// What every delivered host has to meet.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Kernel release below which no host is handed off, as `major.minor`.
    #[serde(default = "kernel_floor")]
    pub kernel_floor: String,
    /// Public SSH keys for root on every host, besides those of the order.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// Folder of the site's own roles, which go before those built in.
    #[serde(default)]
    pub roles: Option<PathBuf>,
    /// Folder with the site's own checks, and changes of those built in.
    #[serde(default)]
    pub checks: Option<PathBuf>,
}

impl Default for Host {
    fn default() -> Self {
        Self { kernel_floor: kernel_floor(), ssh_keys: Vec::new(), roles: None, checks: None }
    }
}

fn kernel_floor() -> String {
    "6.1".into()
}

impl Config {
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .or_fail(Kind::Config, "config.read", || format!("cannot read {}", path.display()))
            .map_err(|e| e.hint("copy rackline.example.toml and name it with --config"))?;
        let mut config = Self::parse(&text).map_err(|e| match e.kind() {
            Kind::Config => Error::config("config.invalid", format!("{}: {}", path.display(), e.message()))
                .hint(e.next_step().unwrap_or("compare with rackline.example.toml")),
            _ => e,
        })?;
        let base = path.parent().unwrap_or(Path::new("."));
        let Site { state, cache, expected, models, .. } = &mut config.site;
        let site = [Some(state), cache.as_mut(), expected.as_mut(), models.as_mut()];
        let firmware =
            [config.firmware.baselines.as_mut(), config.firmware.bundles.as_mut(), config.host.roles.as_mut()];
        let scripts = config.boot.overrides.iter_mut().filter_map(|o| o.script.as_mut());
        let installers = config.switches.iter_mut().filter_map(|switch| switch.installer.as_mut());
        let secrets = config.power.outlets.iter_mut().filter_map(|outlet| outlet.secret_file.as_mut());
        let secrets =
            secrets.chain(&mut config.bmc.authority).chain(&mut config.host.checks).chain(config.handoff.paths());
        for path in site.into_iter().chain(firmware).flatten().chain(scripts).chain(installers).chain(secrets) {
            if path.is_relative() {
                *path = base.join(&path);
            }
        }
        config.handoff.resolve_templates(base);
        // A template's fault is to show now, and not when the machine asks for its script.
        Scripts::new(&config.boot, "00")?;
        Ok(config)
    }

    /// Where firmware images are kept.
    pub fn bundles(&self) -> PathBuf {
        self.firmware.bundles.clone().unwrap_or_else(|| self.site.state.join("firmware"))
    }

    /// From text; relative paths stay as they are.
    pub fn parse(text: &str) -> Result<Self> {
        let config: Self =
            toml::from_str(text).map_err(|e| Error::config("config.invalid", e.to_string().trim_end()))?;
        config.boot.check()?;
        config.power.check()?;
        config.bmc.check()?;
        config.commission.profile()?;
        config.handoff.check()?;
        switch::check(&config.switches, &config.boot)?;
        let swarm = config.swarm.port.get();
        if swarm == config.boot.port() || swarm == config.api.listen.port() {
            return Err(Error::config(
                "config.invalid",
                format!("swarm.port {swarm} is that of boot.url or api.listen"),
            )
            .hint("the swarm needs a port of its own; 7070 is used where none is named"));
        }
        let peers = config.swarm.bittorrent_port.get();
        if config.swarm.bittorrent && [swarm, config.boot.port(), config.api.listen.port()].contains(&peers) {
            return Err(Error::config(
                "config.invalid",
                format!("swarm.bittorrent_port {peers} is used for something else"),
            )
            .hint("BitTorrent needs a port of its own; 6881 is used where none is named"));
        }
        let floor = &config.host.kernel_floor;
        let numbers: Vec<_> = floor.split('.').map(str::parse::<u16>).collect();
        if numbers.len() != 2 || numbers.iter().any(Result::is_err) {
            return Err(Error::config(
                "config.invalid",
                format!("host.kernel_floor is {floor:?}, not a release like 6.1"),
            ));
        }
        Ok(config)
    }
}
