//! Which boot file a machine is given, and why: by its architecture, by what the site says of its model or of this one
//! machine, and by what its network card has shown ([`learn`]).
//!
//! DHCP asks here what to put into its answer, TFTP and HTTP say here what was fetched, and take from here what is made for
//! one machine alone. Nothing here waits: what is to be remembered goes to a task of its own ([`crate::store::loader`]).

pub mod http;
pub mod learn;
pub mod rules;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tracing::{error, info, warn};

use super::config::BootConfig;
use super::dhcp::reply::BootFile;
use super::firmware::{Files, Name};
use super::script::{Asker, Dialect, Scripts, arch_name};
use super::{BootAnswer, Policy, Sighting, Stage};
use crate::error::Result;
use crate::machine::{ClientArch, Firmware, MacAddr};
use crate::store::loader::Learnt;
use learn::{Book, News, Started, Why};
use rules::{LoaderRule, Override};

/// Cards that are remembered, in memory and in the store: more than a site has.
pub const CARDS: usize = 65_536;
/// How long the rules may take for a script over TFTP; GRUB repeats its request after some seconds.
const DECIDE: Duration = Duration::from_secs(3);
/// What GRUB reads first, where its `$prefix` points; its own script lies beside it as `MAC.cfg`.
const GRUB_CONFIG: &str = "grub/grub.cfg";

/// What DHCP knows of who asks.
#[derive(Debug, Clone)]
pub struct Asking {
    pub mac: MacAddr,
    pub uuid: Option<uuid::Uuid>,
    pub arch: Option<ClientArch>,
    pub stage: Stage,
    /// The vendor class begins with `HTTPClient`.
    pub http: bool,
    /// The address in the answer: whose it is tells later who fetches by TFTP.
    pub address: Option<IpAddr>,
    /// The first packet of a boot (DISCOVER), not one that goes on with it (REQUEST).
    pub begins: bool,
}

/// A file for TFTP.
pub enum File {
    Ready(Bytes),
    /// Made when it is asked for, and for this machine only; `None`: there is none after all.
    Made(BoxFuture<'static, Option<Bytes>>),
}

/// Where the order of the candidates comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Architecture,
    Model,
    Site,
    Machine,
}

/// What the configuration says; taken over as a whole.
struct Site {
    url: String,
    tftp: bool,
    rules: Vec<LoaderRule>,
    /// Those that name boot files.
    overrides: Vec<Override>,
    scripts: Arc<Scripts>,
    grub_config: Bytes,
}

impl Site {
    fn new(config: &BootConfig, files: &Files, scripts: Arc<Scripts>) -> Result<Self> {
        let named = config.loaders.iter().map(|r| (r.arch, &r.loaders));
        for (arch, name) in named.flat_map(|(arch, names)| names.iter().map(move |n| (arch, n))) {
            if !files.loaders(arch).iter().any(|l| **l == **name) {
                warn!(name, arch = arch_name(arch), "a boot file of boot.loaders is not installed and is left out");
            }
        }
        Ok(Self {
            url: config.url.clone(),
            tftp: config.tftp,
            rules: config.loaders.clone(),
            overrides: config.overrides.iter().filter(|o| !o.loaders.is_empty()).cloned().collect(),
            grub_config: scripts.grub_config()?.into(),
            scripts,
        })
    }
}

/// The rules of choosing, with what was learnt.
pub struct Loaders {
    site: RwLock<Arc<Site>>,
    files: Arc<Files>,
    policy: Arc<dyn Policy>,
    book: Mutex<Book>,
    learnt: tokio::sync::mpsc::Sender<Learnt>,
    /// What switches fetch by TFTP, by name.
    for_switches: RwLock<HashMap<String, Bytes>>,
}

impl Loaders {
    /// `known`: what was learnt in earlier runs, oldest first. What is learnt from now on goes to `learnt`.
    pub fn new(
        config: &BootConfig,
        files: Arc<Files>,
        scripts: Arc<Scripts>,
        policy: Arc<dyn Policy>,
        known: Vec<Learnt>,
        learnt: tokio::sync::mpsc::Sender<Learnt>,
    ) -> Result<Self> {
        Ok(Self {
            site: RwLock::new(Arc::new(Site::new(config, &files, scripts)?)),
            files,
            policy,
            book: Mutex::new(Book::new(CARDS, known.into_iter().map(|l| (l.mac, l.loader)))),
            learnt,
            for_switches: RwLock::default(),
        })
    }

    /// Takes over another configuration, or says what is wrong with its templates and changes nothing.
    pub fn reconfigure(&self, config: &BootConfig) -> Result<()> {
        let scripts = Arc::new(self.scripts().again(config)?);
        let site = Arc::new(Site::new(config, &self.files, scripts)?);
        *self.site.write().unwrap_or_else(PoisonError::into_inner) = site;
        Ok(())
    }

    fn site(&self) -> Arc<Site> {
        self.site.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// By who is asking: firmware gets a loader, iPXE gets its script, a running system gets nothing.
    pub fn boot_file(&self, asking: &Asking) -> BootFile {
        match asking.stage {
            Stage::System => BootFile::None,
            Stage::Ipxe => {
                self.speaks(asking.mac);
                BootFile::Script { url: self.script_url(asking) }
            }
            Stage::Rom => self.loader(asking),
        }
    }

    fn loader(&self, asking: &Asking) -> BootFile {
        let Some(said) = asking.arch else { return BootFile::None };
        let http = said.is_http() || asking.http;
        // Some firmware says by its vendor class only that it boots by HTTP.
        let arch = match said {
            ClientArch::UefiX64 if http => ClientArch::HttpX64,
            ClientArch::UefiArm64 if http => ClientArch::HttpArm64,
            other => other,
        };
        let site = self.site();
        if !http && !site.tftp {
            return BootFile::None;
        }
        let (candidates, _) = self.candidates(asking.mac, arch);
        let (news, choice) = {
            let mut book = self.book();
            let news = if asking.begins { book.asks(asking.mac, &candidates) } else { None };
            let choice = book.card(asking.mac).choose(&candidates);
            if let Some((loader, _)) = &choice {
                book.offered(asking.mac, asking.address, loader.clone());
            }
            (news, choice)
        };
        if let Some(news) = news {
            self.tell(asking.mac, &news);
        }
        match choice {
            None => BootFile::None,
            // The MAC address is in the URL, since a file over HTTP may come through a proxy.
            Some((name, _)) if http => {
                let mac = asking.mac.to_string().replace(':', "-");
                BootFile::Http { url: format!("{}/boot/loader/{mac}/{name}", site.url) }
            }
            Some((name, _)) => {
                BootFile::Tftp { name: name.to_string(), pxe_options: arch.firmware() == Firmware::Bios }
            }
        }
    }

    fn script_url(&self, asking: &Asking) -> String {
        let mut url = format!("{}/boot/ipxe?mac={}", self.site().url, asking.mac);
        if let Some(uuid) = asking.uuid {
            url += &format!("&uuid={uuid}");
        }
        if let Some(arch) = asking.arch {
            url += &format!("&arch={}", arch_name(arch));
        }
        url
    }

    /// What is offered to this machine in this order, and who says so. The nearest rule counts: the machine's own, its
    /// model's, the site's, the built-in table's.
    pub fn candidates(&self, mac: MacAddr, arch: ClientArch) -> (Vec<Name>, Order) {
        let installed = self.files.loaders(arch);
        let named = |names: &[String]| -> Vec<Name> {
            names.iter().filter_map(|n| installed.iter().find(|l| ***l == **n)).cloned().collect()
        };
        let site = self.site();
        if site.rules.is_empty() && site.overrides.is_empty() {
            return (installed.to_vec(), Order::Architecture);
        }
        let facts = self.policy.facts(mac);
        let name = facts.as_ref().map(|f| f.name.as_str());
        let own = site.overrides.iter().find(|o| o.mac == Some(mac));
        let own = own.or_else(|| site.overrides.iter().find(|o| o.machine.is_some() && o.machine.as_deref() == name));
        let model = facts.as_ref().and_then(|f| f.model.as_deref());
        let of_model = site.rules.iter().find(|r| r.model.is_some() && r.fits(arch, model));
        let of_site = site.rules.iter().find(|r| r.model.is_none() && r.fits(arch, model));
        let said = [
            own.map(|o| (named(&o.loaders), Order::Machine)),
            of_model.map(|r| (named(&r.loaders), Order::Model)),
            of_site.map(|r| (named(&r.loaders), Order::Site)),
        ];
        // A rule of which nothing is installed, or nothing for this architecture, says nothing.
        let said = said.into_iter().flatten().find(|(names, _)| !names.is_empty());
        said.unwrap_or_else(|| (installed.to_vec(), Order::Architecture))
    }

    /// A machine has all of this file, by TFTP.
    pub fn fetched_by(&self, client: IpAddr, name: &str) {
        let mut book = self.book();
        if let Some(mac) = book.owner(client) {
            book.fetched(mac, name);
        }
    }

    fn fetched(&self, mac: MacAddr, name: &str) {
        self.book().fetched(mac, name);
    }

    /// iPXE or GRUB asks for something: the file that was fetched before works.
    pub fn speaks(&self, mac: MacAddr) {
        let started = self.book().started(mac);
        let Some(Started { loader, news }) = started else { return };
        info!(%mac, %loader, "a boot file works on this card");
        if self.learnt.try_send(Learnt { mac, loader }).is_err() {
            warn!(%mac, "what boot file works is not stored: too much waits for the disk; it is learnt again");
        }
        if let Some(news) = news {
            self.tell(mac, &news);
        }
    }

    fn tell(&self, mac: MacAddr, news: &News) {
        let sentence = sentence(mac, news);
        info!("{sentence}");
        self.policy.noted(mac, sentence);
    }

    /// What TFTP sends to switches from now on, by name; a boot file of that name goes before.
    pub fn serve_switches(&self, files: HashMap<String, Bytes>) {
        *self.for_switches.write().unwrap_or_else(PoisonError::into_inner) = files;
    }

    /// What TFTP sends under this name.
    pub fn file(self: &Arc<Self>, name: &str) -> Option<File> {
        if let Some(bytes) = self.files.memory.get(name) {
            return Some(File::Ready(bytes.clone()));
        }
        if let Some(bytes) = self.for_switches.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Some(File::Ready(bytes.clone()));
        }
        if name == GRUB_CONFIG {
            return Some(File::Ready(self.site().grub_config.clone()));
        }
        let mac = name.strip_prefix("grub/")?.strip_suffix(".cfg")?.parse().ok()?;
        Some(File::Made(self.clone().grub_script(mac).boxed()))
    }

    /// The script for a machine whose GRUB asks over TFTP; what stands in the way of one is said on its console.
    async fn grub_script(self: Arc<Self>, mac: MacAddr) -> Option<Bytes> {
        self.speaks(mac);
        let arch = Some(ClientArch::UefiX64);
        let asking = Sighting { mac, uuid: None, arch, address: None, stage: Stage::Ipxe, relay: None };
        let answer = match tokio::time::timeout(DECIDE, self.policy.boot_answer(asking)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) => {
                error!(error = ?e, %mac, "no boot answer");
                BootAnswer::Hold { reason: e.to_string() }
            }
            Err(_) => BootAnswer::Hold { reason: "the appliance is too busy to say what to start".into() },
        };
        let facts = self.policy.facts(mac);
        let asker = Asker { mac, name: facts.as_ref().map(|f| f.name.as_str()), arch, dialect: Dialect::Grub };
        let scripts = self.scripts();
        let script = scripts.render(&asker, &answer).or_else(|e| {
            error!(error = ?e, %mac, "boot script");
            let reason = format!("the appliance cannot make the boot script: {e}");
            scripts.render(&asker, &BootAnswer::Hold { reason })
        });
        script.ok().map(Bytes::from)
    }

    /// `false`: firmware that boots by TFTP gets an address and no file.
    pub fn tftp(&self) -> bool {
        self.site().tftp
    }

    pub fn files(&self) -> &Files {
        &self.files
    }

    pub fn scripts(&self) -> Arc<Scripts> {
        self.site().scripts.clone()
    }

    /// What would be offered now, and what this card refused before. Changes nothing.
    pub fn choice(&self, mac: MacAddr, candidates: &[Name]) -> (Option<(Name, Why)>, Vec<Name>) {
        let card = self.book().card(mac);
        (card.choose(candidates), card.stalled().to_vec())
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For the machine's timeline.
fn sentence(mac: MacAddr, news: &News) -> String {
    match news {
        News::Stalled { loader, next } => {
            format!("{loader} was fetched but did not start on {mac}; trying {next}")
        }
        News::Exhausted { candidates } => match candidates.as_slice() {
            [only] => format!("{only} was fetched but did not start on {mac}, and there is no other boot file for it"),
            all => format!("none of {} started on {mac}; trying them again from the first", all.join(", ")),
        },
        News::Works { loader } => format!("{loader} started on {mac} and is offered first from now on"),
    }
}

#[cfg(test)]
pub mod tests;
