//! Zero-touch provisioning of switches, and the port map that comes of it.
//!
//! A switch that asks by DHCP is known by what it says ([`recognise`]), found in `[[switches]]` ([`config`]), and led to
//! documents made for it ([`document`], [`http`]). The same list says which machine is expected on which port, so that a
//! machine's request through a relay names its place in the rack ([`port`]).
//!
//! A switch that is not on the list is given an address and nothing else; it is told of by vendor, model and serial
//! number. What switches asked and fetched is kept in memory: after a restart of the appliance it is told anew.

pub mod config;
pub mod document;
pub mod http;
pub mod port;
pub mod recognise;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::RelayPort;
use super::config::BootConfig;
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::{Hostname, MacAddr, Place, Serial};
use config::{Services, Switch, Vendor};
use document::Documents;
use recognise::{Asking, Stage};

/// The file under which ONIE's installer is fetched.
const INSTALLER: &str = "installer";
/// Unlisted switches that are remembered; more are only logged.
const MAX_UNLISTED: usize = 256;
/// A switch asks every few seconds; the log says so once in this time, in milliseconds.
const SAY_AGAIN: i64 = 10 * 60_000;

/// The switches of the site.
#[derive(Default)]
pub struct Switches {
    listed: RwLock<Arc<Listed>>,
    seen: Mutex<Seen>,
}

/// `[[switches]]`, and what is made of it.
#[derive(Default)]
pub struct Listed {
    list: Vec<Switch>,
    made: Vec<Made>,
    /// Where a switch in ONIE that is known by its serial number only finds its installer.
    onie_url: String,
    /// Our own addresses: who reads a document there is a person, not a switch.
    own: Vec<IpAddr>,
}

/// What a listed switch is given.
struct Made {
    documents: Documents,
    configuration: Vec<(u8, Vec<u8>)>,
    installer: Vec<(u8, Vec<u8>)>,
}

#[derive(Default)]
struct Seen {
    /// By name.
    listed: HashMap<Hostname, Record>,
    unlisted: BTreeMap<MacAddr, Unlisted>,
}

#[derive(Default)]
struct Record {
    asked: Option<i64>,
    model: Option<String>,
    serial: Option<Serial>,
    mac: Option<MacAddr>,
    fetched: Vec<Fetched>,
    problem: Option<String>,
}

/// `GET /api/v1/switches`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    pub switches: Vec<SwitchReport>,
    /// Asked, and not in `[[switches]]`.
    pub unlisted: Vec<Unlisted>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SwitchReport {
    pub name: String,
    pub vendor: Vendor,
    pub address: String,
    pub place: Option<Place>,
    /// Ports that a machine is expected on.
    pub ports: usize,
    pub state: State,
    pub model: Option<String>,
    pub serial: Option<Serial>,
    pub mac: Option<MacAddr>,
    /// Milliseconds since 1970.
    pub asked: Option<i64>,
    pub fetched: Vec<Fetched>,
    /// Why it was given nothing when it asked last.
    pub problem: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Has not asked since the appliance started.
    Expected,
    Asked,
    /// Has fetched its installer or its configuration.
    Fetched,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fetched {
    pub file: String,
    /// Milliseconds since 1970, the last time.
    pub at: i64,
    pub by: Option<IpAddr>,
    pub times: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Unlisted {
    pub mac: MacAddr,
    /// "an Arista EOS switch DCS-7050S-64 with serial number JPE12221671".
    pub what: String,
    /// Milliseconds since 1970, the last time.
    pub asked: i64,
    pub times: u64,
}

/// A port of the map, and the machine that is expected there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    pub switch: String,
    pub port: String,
    pub expects: Option<String>,
}

/// A machine that the map expects on a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    pub switch: Hostname,
    pub port: String,
    pub machine: Hostname,
}

/// What lies behind a URL.
pub enum File {
    Document(Bytes),
    Image(PathBuf),
}

impl Listed {
    /// Checks the list against itself and against the boot networks, and makes every document.
    pub fn new(list: Vec<Switch>, services: &Services, boot: &BootConfig) -> Result<Self> {
        config::check(&list, boot)?;
        let made = list.iter().map(|switch| Made::new(switch, services, boot)).collect::<Result<_>>()?;
        let onie_url = format!("{}/boot/onie", boot.url);
        let own = boot.interfaces.iter().map(|interface| interface.address.into()).collect();
        Ok(Self { list, made, onie_url, own })
    }

    /// By serial number, else by MAC address.
    fn find(&self, serial: Option<&Serial>, mac: MacAddr) -> Option<(&Switch, &Made)> {
        let all = || self.list.iter().zip(&self.made);
        let by_serial = |serial| all().find(|(switch, _)| switch.serial.as_ref() == Some(serial));
        serial.and_then(by_serial).or_else(|| all().find(|(switch, _)| switch.mac == Some(mac)))
    }

    fn named(&self, name: &str) -> Option<(&Switch, &Made)> {
        self.list.iter().zip(&self.made).find(|(switch, _)| switch.name.as_str() == name)
    }
}

impl Switches {
    pub fn new(list: Vec<Switch>, services: &Services, boot: &BootConfig) -> Result<Self> {
        Ok(Self { listed: RwLock::new(Listed::new(list, services, boot)?.into()), seen: Mutex::default() })
    }

    /// Another list from now on; what its switches asked and fetched so far stays noted.
    pub fn take_over(&self, listed: Listed) {
        self.seen().unlisted.clear();
        *self.listed.write().unwrap_or_else(PoisonError::into_inner) = listed.into();
    }

    fn listed(&self) -> Arc<Listed> {
        self.listed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it is one of the list, as far as it says who it is.
    pub fn lists(&self, asking: &Asking, mac: MacAddr) -> bool {
        self.listed().find(asking.serial.as_ref(), mac).is_some()
    }

    /// The options that lead a switch to what it asks for; none where it is not to have it. Noted and logged.
    pub fn answer(&self, asking: &Asking, mac: MacAddr) -> Vec<(u8, Vec<u8>)> {
        let (at, listed) = (now(), self.listed());
        let Some((switch, made)) = listed.find(asking.serial.as_ref(), mac) else {
            // ONIE tells its serial number only when it fetches.
            if asking.stage == Stage::Installer && listed.list.iter().any(|s| s.installer.is_some() && s.mac.is_none())
            {
                return document::installer_options(&listed.onie_url);
            }
            self.note_unlisted(asking, mac, at);
            return Vec::new();
        };
        let options = options(switch, made, asking);
        self.note_asked(switch, asking, mac, at, options.as_ref().err().cloned());
        options.unwrap_or_default()
    }

    fn note_asked(&self, switch: &Switch, asking: &Asking, mac: MacAddr, at: i64, problem: Option<String>) {
        let mut seen = self.seen();
        let record = seen.listed.entry(switch.name.clone()).or_default();
        let news = record.asked.is_none_or(|last| at - last > SAY_AGAIN) || record.problem != problem;
        record.asked = Some(at);
        record.model = asking.model.clone().or(record.model.take());
        record.serial = asking.serial.clone().or(record.serial.take());
        record.mac = Some(mac);
        record.problem.clone_from(&problem);
        drop(seen);
        match problem {
            Some(problem) if news => warn!(switch = %switch.name, %mac, "{problem}: it gets no configuration"),
            None if news => info!(switch = %switch.name, %mac, "{asking} asked"),
            _ => {}
        }
    }

    fn note_unlisted(&self, asking: &Asking, mac: MacAddr, at: i64) {
        let mut seen = self.seen();
        let full = seen.unlisted.len() >= MAX_UNLISTED;
        let what = asking.to_string();
        let news = match seen.unlisted.get_mut(&mac) {
            Some(known) => {
                let news = at - known.asked > SAY_AGAIN;
                (known.asked, known.times, known.what) = (at, known.times + 1, what);
                news
            }
            None if full => return,
            None => {
                seen.unlisted.insert(mac, Unlisted { mac, what, asked: at, times: 1 });
                true
            }
        };
        drop(seen);
        if news {
            warn!(%mac, "{asking} asked and is not in [[switches]]");
        }
    }

    /// A document or the installer of a switch; `None`: there is none of this name.
    pub fn file(&self, name: &str, file: &str) -> Option<File> {
        let listed = self.listed();
        let (switch, made) = listed.named(name)?;
        match file {
            INSTALLER => switch.installer.clone().map(File::Image),
            _ => made.documents.get(file).cloned().map(File::Document),
        }
    }

    /// The name of the switch that ONIE's headers speak of.
    pub fn name_of(&self, serial: Option<&Serial>, mac: Option<MacAddr>) -> Option<Hostname> {
        let none = MacAddr([0; 6]);
        self.listed().find(serial, mac.unwrap_or(none)).map(|(switch, _)| switch.name.clone())
    }

    /// Takes note that a file went out to a switch.
    pub fn note_fetched(&self, name: &str, file: &str, by: Option<IpAddr>) {
        let listed = self.listed();
        if by.is_some_and(|by| by.is_loopback() || listed.own.contains(&by)) {
            return;
        }
        let Some((switch, _)) = listed.named(name) else { return };
        let at = now();
        let mut seen = self.seen();
        let record = seen.listed.entry(switch.name.clone()).or_default();
        match record.fetched.iter_mut().find(|fetched| fetched.file == file) {
            Some(fetched) => (fetched.at, fetched.by, fetched.times) = (at, by, fetched.times + 1),
            None => record.fetched.push(Fetched { file: file.to_owned(), at, by, times: 1 }),
        }
        drop(seen);
        info!(switch = name, file, by = by.map(tracing::field::display), "fetched");
    }

    pub fn report(&self) -> Report {
        let (seen, listed) = (self.seen(), self.listed());
        let switches = listed.list.iter().map(|switch| {
            let none = Record::default();
            let record = seen.listed.get(&switch.name).unwrap_or(&none);
            let state = match (record.fetched.is_empty(), record.asked) {
                (false, _) => State::Fetched,
                (true, Some(_)) => State::Asked,
                (true, None) => State::Expected,
            };
            SwitchReport {
                name: switch.name.to_string(),
                vendor: switch.vendor,
                address: switch.address.to_string(),
                place: switch.place(),
                ports: switch.ports.len(),
                state,
                model: record.model.clone(),
                serial: switch.serial.clone().or(record.serial.clone()),
                mac: switch.mac.or(record.mac),
                asked: record.asked,
                fetched: record.fetched.clone(),
                problem: record.problem.clone(),
            }
        });
        Report { switches: switches.collect(), unlisted: seen.unlisted.values().cloned().collect() }
    }

    /// Where a request came through, if the map knows.
    pub fn locate(&self, relay: &RelayPort) -> Option<Located> {
        let listed = self.listed();
        let (switch, port) = port::locate(&listed.list, relay)?;
        let expects = switch.ports.get(port).map(|machine| machine.to_string());
        Some(Located { switch: switch.name.to_string(), port: port.to_owned(), expects })
    }

    /// Every port of the map, with the machine expected there.
    pub fn ports(&self) -> Vec<Expected> {
        let of = |switch: &Switch| {
            let switch_name = switch.name.clone();
            let expected = |(port, machine): (&String, &Hostname)| Expected {
                switch: switch_name.clone(),
                port: port.clone(),
                machine: machine.clone(),
            };
            switch.ports.iter().map(expected).collect::<Vec<_>>()
        };
        self.listed().list.iter().flat_map(of).collect()
    }

    /// What must be on the TFTP server, by name.
    pub fn tftp_files(&self) -> HashMap<String, Bytes> {
        let listed = self.listed();
        let file = |(switch, made): (&Switch, &Made)| {
            let (name, file) = document::tftp_name(switch)?;
            Some((name, made.documents.get(file)?.clone()))
        };
        listed.list.iter().zip(&listed.made).filter_map(file).collect()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Made {
    fn new(switch: &Switch, services: &Services, boot: &BootConfig) -> Result<Self> {
        if let Some(path) = &switch.installer {
            let readable = std::fs::File::open(path).and_then(|file| file.metadata());
            let metadata = readable
                .or_fail(Kind::Config, "switch.installer", || {
                    format!("installer {} of switch {} cannot be read", path.display(), switch.name)
                })
                .map_err(|e| e.hint("correct the path in [[switches]], or remove it"))?;
            if !metadata.is_file() {
                let message = format!("installer {} of switch {} is not a file", path.display(), switch.name);
                return Err(Error::config("switch.installer", message));
            }
        }
        let url = format!("{}/boot/switch/{}/{INSTALLER}", boot.url, switch.name);
        Ok(Self {
            documents: document::render(switch, services, boot)?,
            configuration: document::configuration_options(switch, boot)?,
            installer: switch.installer.iter().flat_map(|_| document::installer_options(&url)).collect(),
        })
    }
}

/// `Err`: why it gets nothing.
fn options(switch: &Switch, made: &Made, asking: &Asking) -> Result<Vec<(u8, Vec<u8>)>, String> {
    if let (Some(expected), Some(found)) = (&switch.serial, &asking.serial)
        && expected != found
    {
        return Err(format!("{} has serial number {found} and is listed with {expected}", switch.name));
    }
    match asking.vendor {
        Some(vendor) if vendor != switch.vendor => {
            Err(format!("{} is listed with {}, and {asking} asked", switch.name, switch.vendor))
        }
        Some(_) => Ok(made.configuration.clone()),
        None if made.installer.is_empty() => {
            Err(format!("{} asks for an installer, and none is set for it in [[switches]]", switch.name))
        }
        None => Ok(made.installer.clone()),
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::config::tests::sample as boot;

    const MAC: MacAddr = MacAddr([0x44, 0x38, 0x39, 0, 1, 2]);
    const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

    /// With leases as long as NX-OS wants them.
    fn long_leases() -> BootConfig {
        let mut boot = boot();
        boot.subnets.iter_mut().for_each(|subnet| subnet.lease_seconds = 3600);
        boot
    }

    fn switches(installer: bool) -> Switches {
        let mut list = config::tests::sample();
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        list.iter_mut().for_each(|switch| switch.installer = installer.then(|| path.clone()));
        Switches::new(list, &Services::default(), &long_leases()).unwrap()
    }

    fn asking(vendor: Option<Vendor>, serial: &str) -> Asking {
        let stage = if vendor.is_some() { Stage::Configuration } else { Stage::Installer };
        Asking { vendor, model: Some("DCS-7050S-64".into()), serial: Serial::parse(serial), stage }
    }

    fn codes(options: &[(u8, Vec<u8>)]) -> Vec<u8> {
        options.iter().map(|(code, _)| *code).collect()
    }

    #[test]
    fn another_list_takes_effect_and_what_was_noted_stays() {
        let all = switches(true);
        all.answer(&asking(Some(Vendor::Cumulus), ""), MAC);
        all.answer(&asking(Some(Vendor::Cumulus), ""), OTHER);
        assert_eq!(all.report().unlisted.len(), 1);
        let mut list = config::tests::sample();
        list.retain(|switch| switch.vendor != Vendor::Arista);
        list.iter_mut().for_each(|switch| switch.installer = None);
        list.iter_mut().filter(|s| s.vendor == Vendor::NxOs).for_each(|s| s.name = "z-tor9".parse().unwrap());
        all.take_over(Listed::new(list, &Services::default(), &long_leases()).unwrap());
        let report = all.report();
        let cumulus = report.switches.iter().find(|s| s.name == "c-tor2").unwrap();
        assert_eq!((cumulus.state, cumulus.mac), (State::Asked, Some(MAC)));
        assert!(report.unlisted.is_empty() && !report.switches.iter().any(|s| s.name == "c-tor1"));
        assert!(all.file("c-tor1", "startup-config").is_none());
        assert_eq!(all.tftp_files().keys().collect::<Vec<_>>(), ["z-tor9.poap.py"]);
    }

    #[test]
    fn each_vendor_its_options() {
        let all = switches(true);
        let arista = all.answer(&asking(Some(Vendor::Arista), "JPE12221671"), OTHER);
        assert_eq!(arista, [(67, b"http://10.77.0.1/boot/switch/c-tor1/startup-config".to_vec())]);
        let cumulus = all.answer(&asking(Some(Vendor::Cumulus), ""), MAC);
        assert_eq!(cumulus, [(239, b"http://10.77.0.1/boot/switch/c-tor2/ztp.sh".to_vec())]);
        assert_eq!(codes(&all.answer(&asking(None, ""), MAC)), [114, 125]);
        let nexus = all.answer(&asking(Some(Vendor::NxOs), "FDO21120U8N"), OTHER);
        let expected = [(66, b"10.77.0.1".to_vec()), (67, b"e-tor1.poap.py".to_vec()), (150, vec![10, 77, 0, 1])];
        assert_eq!(nexus, expected);
        assert!(all.tftp_files()["e-tor1.poap.py"].starts_with(b"#!"));
        assert_eq!(codes(&all.answer(&asking(Some(Vendor::Sonic), "MT1607X11210"), OTHER)), [67]);
        assert_eq!(codes(&all.answer(&asking(Some(Vendor::IosXe), "FCW2129L0PQ"), OTHER)), [67]);
        assert!(all.report().switches.iter().all(|s| s.state == State::Asked && s.problem.is_none()));
    }

    #[test]
    fn who_is_not_listed_gets_nothing_and_is_told_of() {
        let all = switches(false);
        for _ in 0..3 {
            assert!(all.answer(&asking(Some(Vendor::Arista), "JPE99999999"), OTHER).is_empty());
        }
        let report = all.report();
        assert_eq!((report.unlisted.len(), report.unlisted[0].times), (1, 3));
        assert_eq!(report.unlisted[0].what, "an Arista EOS switch DCS-7050S-64 with serial number JPE99999999");
        assert!(report.switches.iter().all(|s| s.state == State::Expected));
        for n in 0..=255 {
            for m in 0..3 {
                all.answer(&asking(Some(Vendor::Arista), ""), MacAddr([2, 0, 0, 1, m, n]));
            }
        }
        assert_eq!(all.report().unlisted.len(), MAX_UNLISTED);
    }

    #[test]
    fn what_contradicts_the_list_gets_nothing_and_the_reason_is_kept() {
        let all = switches(false);
        let problem = |name: &str| {
            let report = all.report();
            report.switches.into_iter().find(|s| s.name == name).unwrap().problem.unwrap_or_default()
        };
        assert!(all.answer(&asking(Some(Vendor::Sonic), "JPE12221671"), OTHER).is_empty());
        assert!(problem("c-tor1").contains("listed with Arista EOS, and a SONiC switch"), "{}", problem("c-tor1"));
        assert!(all.answer(&asking(None, ""), MAC).is_empty());
        assert!(problem("c-tor2").contains("asks for an installer"));
        let mac = MacAddr([0x7c, 0xfe, 0x90, 0xeb, 0xbb, 0x80]);
        assert!(all.answer(&asking(Some(Vendor::Sonic), "MT0000X00001"), mac).is_empty());
        assert!(problem("d-tor1").contains("MT0000X00001 and is listed with MT1607X11210"));
        all.answer(&asking(Some(Vendor::Sonic), "MT1607X11210"), mac);
        assert_eq!(problem("d-tor1"), "");
    }

    /// ONIE's request has no serial number: where a switch is listed by that alone, the URL is one where it tells it.
    #[test]
    fn onie_may_be_known_by_its_headers_only() {
        let all = switches(true);
        let options = all.answer(&asking(None, ""), OTHER);
        assert_eq!(options[0], (114, b"http://10.77.0.1/boot/onie".to_vec()));
        let name_of = |serial: &str, mac| {
            all.name_of(Serial::parse(serial).as_ref(), mac).map_or(String::new(), |name| name.to_string())
        };
        assert_eq!(name_of("JPE12221671", Some(OTHER)), "c-tor1");
        assert_eq!(name_of("", Some(MAC)), "c-tor2");
        assert_eq!(name_of("", None), "");
        assert!(matches!(all.file("c-tor1", "installer"), Some(File::Image(_))));
        assert!(all.file("c-tor1", "ztp.sh").is_none() && all.file("c-tor9", "startup-config").is_none());
    }

    #[test]
    fn an_installer_that_is_not_there_is_named() {
        let mut list = config::tests::sample();
        list.retain(|switch| switch.vendor == Vendor::Cumulus);
        let error = Switches::new(list, &Services::default(), &boot()).err().unwrap();
        assert!(error.message().contains("cumulus-linux.bin of switch c-tor2"), "{error}");
    }
}
