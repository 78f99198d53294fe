//! Lists of expected machines: what a row changes, all rows or none, and the list as it stands.
//!
//! An import is a turn of its own: it looks at the machines as they are, and is written in one transaction. What a list says that is
//! known already changes nothing.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::effects::Effects;
use super::turn::{self, Draft};
use super::{Engine, Post, bmc_secret, now, stopping};
use crate::config::expected::{ExpectedBmc, ExpectedMachine, List, wrong};
use crate::error::{Error, Result};
use crate::judge::model::same_port;
use crate::lifecycle::{self, BmcAccount, Event, Expectation, Machine, Refused, State};
use crate::machine::{Hostname, MacAddr, MachineId, Place, Purchase, Serial, SwitchPort};

/// What an import does, or with `dry_run` would do.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ImportReport {
    pub dry_run: bool,
    pub rows: usize,
    /// Names.
    pub new: Vec<String>,
    pub changed: Vec<Change>,
    pub unchanged: usize,
    /// What contradicts the list elsewhere, and is no obstacle.
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Change {
    pub machine: String,
    /// `place R1-U12 -> R1-U13`
    pub what: Vec<String>,
}

/// A machine as the list has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExpectedView {
    pub name: String,
    pub serial: Serial,
    pub mac: Option<MacAddr>,
    pub place: Option<Place>,
    pub bmc_address: Option<SocketAddr>,
    pub bmc_redfish: Option<SocketAddr>,
    pub bmc_user: Option<String>,
    pub bmc_mac: Option<MacAddr>,
    #[serde(flatten)]
    pub purchase: Purchase,
    pub ports: Vec<SwitchPort>,
    pub state: String,
}

/// On its way to the turn.
pub(super) struct Import {
    list: List,
    /// Lines whose BMC password is the stored one.
    same_password: HashSet<u64>,
    dry_run: bool,
    answer: oneshot::Sender<Result<ImportReport>>,
}

impl Engine {
    /// Whether BMCs of the list get passwords of their own, from the next import on.
    pub fn own_bmc_passwords(&self, own: bool) {
        self.inner.own_passwords.store(own, Ordering::Relaxed);
    }

    /// Takes over a list, all of it or nothing. Other facts wait meanwhile: some seconds for a list of 20,000.
    pub async fn import(&self, list: List, dry_run: bool) -> Result<ImportReport> {
        let same_password = self.look_at(&list).await?;
        let (answer, done) = oneshot::channel();
        let import = Import { list, same_password, dry_run, answer };
        self.inner.inbox.send(Post::Import(import)).await.map_err(|_| stopping())?;
        done.await.map_err(|_| stopping())?
    }

    /// What needs the store or the models, before anything waits for it.
    async fn look_at(&self, list: &List) -> Result<HashSet<u64>> {
        let models = self.models().current();
        let site = &self.inner.site;
        let mut same = HashSet::new();
        for row in &list.machines {
            if let Some(model) = row.purchase.as_ref().and_then(|purchase| purchase.model.as_ref())
                && models.named(model).is_none()
            {
                let known: Vec<&str> = models.all().iter().map(|model| model.name.as_str()).collect();
                return Err(wrong(row.line, "model", format!("there is no model {model:?}"))
                    .hint(format!("the models are {}; a site adds its own to site.models", known.join(", "))));
            }
            let Some(bmc) = &row.bmc else { continue };
            let known = self.world().by_serial(&row.serial).map(|machine| machine.id);
            let stored = match known {
                Some(id) => site.db.secret(&site.seal, &bmc_secret(id)).await?,
                None => None,
            };
            match (&bmc.password, stored) {
                (None, None) => return Err(wrong(row.line, "bmc_password", "is empty, and none was given before")),
                (Some(said), Some(stored)) if said.expose() != stored => {}
                (Some(_), None) => {}
                _ => drop(same.insert(row.line)),
            }
        }
        Ok(same)
    }

    /// All machines of the list, by name.
    pub fn expected(&self) -> Vec<ExpectedView> {
        let view = |machine: &Arc<Machine>| {
            let bmc = machine.bmc.as_ref();
            Some(ExpectedView {
                name: machine.name.clone(),
                serial: machine.serial.clone()?,
                mac: machine.listed_mac,
                place: machine.place.clone(),
                bmc_address: bmc.map(|bmc| bmc.address),
                bmc_redfish: bmc.and_then(|bmc| bmc.redfish),
                bmc_user: bmc.map(|bmc| bmc.user.clone()),
                bmc_mac: machine.bmc_mac,
                purchase: machine.purchase.as_deref().cloned().unwrap_or_default(),
                ports: machine.listed_ports.clone(),
                state: machine.state.name().to_owned(),
            })
        };
        self.machines().iter().filter(|machine| machine.expected).filter_map(view).collect()
    }
}

/// Within the engine's loop: nothing else changes a machine meanwhile.
pub(super) async fn import(engine: &Engine, import: Import, effects: &Effects) {
    let at = now();
    let mut draft = Draft::default();
    let planned = plan(engine, at, &import, &mut draft);
    let outcome = match planned {
        Ok(report) if import.dry_run => Ok(report),
        Ok(report) => match turn::write(engine, at, &draft, &[]).await {
            Ok(posted) => {
                turn::publish(engine, draft);
                posted.into_iter().for_each(|pending| effects.start(pending));
                Ok(report)
            }
            Err(e) => {
                tracing::error!(error = ?e, "an import could not be written; nothing of it took effect");
                Err(turn::not_written())
            }
        },
        Err(e) => Err(e),
    };
    let _ = import.answer.send(outcome);
}

fn plan(engine: &Engine, at: lifecycle::Millis, import: &Import, draft: &mut Draft) -> Result<ImportReport> {
    let own = engine.inner.own_passwords.load(Ordering::Relaxed);
    let mut ports = ports_by_machine(engine);
    let mut report = ImportReport { dry_run: import.dry_run, rows: import.list.machines.len(), ..Default::default() };
    let mut purchases = HashSet::new();
    let mut names: HashSet<String> = HashSet::new();
    for row in &import.list.machines {
        let known = engine.world().by_serial(&row.serial);
        let name = name(row, known.as_deref())?;
        let holder = engine.world().by_name(&name).filter(|holder| known.as_ref().is_none_or(|m| m.id != holder.id));
        if holder.is_some() || !names.insert(name.clone()) {
            let whose = holder.and_then(|holder| holder.serial.clone());
            let whose = whose.map_or(String::new(), |serial| format!(" with the serial number {serial}"));
            return Err(wrong(row.line, "name", format!("{name} is another machine{whose}")));
        }
        let new = || Machine::new(MachineId::generate(), name.clone(), at, State::Expected);
        let before = known.as_deref().cloned().unwrap_or_else(new);
        let map = ports.remove(&name).unwrap_or_default();
        let expectation = expectation(row, &import.list.columns, name, &before, &map, &mut purchases);
        let mut events = vec![Event::Expected(expectation)];
        events.extend(row.bmc.as_ref().map(|_| Event::BmcPasswordWanted { own }));
        let mut after = before.clone();
        for event in events {
            match lifecycle::decide(at, &after, &event) {
                Ok(step) => {
                    draft.actions.extend(step.actions.into_iter().map(|action| (after.id, action)));
                    draft.book.push((step.machine.clone(), event));
                    after = step.machine;
                }
                Err(Refused::Nothing) => {}
                Err(Refused::Stale) => return Err(wrong(row.line, "serial", "the machine has changed meanwhile")),
                Err(Refused::State(why)) => return Err(wrong(row.line, "serial", why)),
            }
        }
        let mut what = differences(&before, &after);
        if let Some(ExpectedBmc { password: Some(password), .. }) = &row.bmc
            && !import.same_password.contains(&row.line)
        {
            draft.secrets.push((bmc_secret(after.id), password.clone()));
            what.push("BMC password".into());
        }
        match (known.is_some(), what.is_empty()) {
            (false, _) => report.new.push(after.name.clone()),
            (true, true) => report.unchanged += 1,
            (true, false) => report.changed.push(Change { machine: after.name.clone(), what }),
        }
        if after != before || known.is_none() {
            draft.changed.insert(after.id, after);
        }
    }
    for (machine, ports) in ports {
        if engine.world().by_name(&machine).is_none() {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            report
                .warnings
                .push(format!("[[switches]] expects {machine} on {}, which is not on the list", ports.join(", ")));
        }
    }
    Ok(report)
}

fn name(row: &ExpectedMachine, known: Option<&Machine>) -> Result<String> {
    match (&row.name, known) {
        (Some(name), _) => Ok(name.to_string()),
        (None, Some(machine)) => Ok(machine.name.clone()),
        (None, None) => row.serial.as_str().parse().map(|name: Hostname| name.to_string()).map_err(|_| {
            let what = format!("is empty, and the serial number {} cannot be a host name", row.serial);
            wrong(row.line, "name", what)
        }),
    }
}

/// What a row says; what it has no column for stays as it is.
fn expectation(
    row: &ExpectedMachine,
    columns: &HashSet<&'static str>,
    name: String,
    before: &Machine,
    map: &[SwitchPort],
    purchases: &mut HashSet<Arc<Purchase>>,
) -> Expectation {
    let has = |column: &str| columns.contains(column);
    let (said, old) = (row.purchase.as_deref(), before.purchase.as_deref());
    let word = |column: &str, of: fn(&Purchase) -> &Option<String>| match has(column) {
        true => said.and_then(|purchase| of(purchase).clone()),
        false => old.and_then(|purchase| of(purchase).clone()),
    };
    let purchase = Purchase {
        order: word("order", |purchase| &purchase.order),
        vendor: word("vendor", |purchase| &purchase.vendor),
        model: word("model", |purchase| &purchase.model),
        customer: word("customer", |purchase| &purchase.customer),
    };
    let purchase = (purchase != Purchase::default()).then(|| Purchase::shared(Arc::new(purchase), purchases));
    let listed_ports = if has("switch") { row.ports.clone() } else { before.listed_ports.clone() };
    let mut ports = listed_ports.clone();
    let same = |a: &SwitchPort, b: &SwitchPort| a.switch.eq_ignore_ascii_case(&b.switch) && same_port(&a.port, &b.port);
    ports.extend(map.iter().filter(|port| !listed_ports.iter().any(|own| same(own, port))).cloned());
    let account = |bmc: &ExpectedBmc| BmcAccount { address: bmc.address, redfish: bmc.redfish, user: bmc.user.clone() };
    Expectation {
        mac: if has("mac") { row.mac } else { before.listed_mac },
        place: if has("rack") { row.place.clone() } else { before.place.clone() },
        bmc: row.bmc.as_ref().map(account),
        ports,
        listed_ports,
        bmc_mac: if has("bmc_mac") { row.bmc_mac } else { before.bmc_mac },
        purchase,
        ..Expectation::new(name, row.serial.clone())
    }
}

/// What the list changes of a machine, a few words each.
fn differences(before: &Machine, after: &Machine) -> Vec<String> {
    let said = |machine: &Machine| {
        let purchase = machine.purchase.as_deref().cloned().unwrap_or_default();
        let bmc = machine.bmc.as_ref().map(|bmc| {
            let redfish = bmc.redfish.map_or(String::new(), |address| format!(" https://{address}"));
            format!("{}{redfish} {}", bmc.address, bmc.user)
        });
        let ports: Vec<String> = machine.ports.iter().map(ToString::to_string).collect();
        [
            ("expected", Some(machine.expected.to_string())),
            ("name", Some(machine.name.clone())),
            ("place", machine.place.as_ref().map(ToString::to_string)),
            ("MAC address", machine.listed_mac.map(|mac| mac.to_string())),
            ("BMC", bmc),
            ("BMC MAC address", machine.bmc_mac.map(|mac| mac.to_string())),
            ("own BMC password", Some(format!("{:?}", machine.bmc_password).to_lowercase())),
            ("order", purchase.order),
            ("vendor", purchase.vendor),
            ("model", purchase.model),
            ("customer", purchase.customer),
            ("ports", Some(ports.join(", "))),
        ]
    };
    let none = |value: Option<String>| value.filter(|value| !value.is_empty()).unwrap_or_else(|| "none".into());
    let pairs = said(before).into_iter().zip(said(after)).filter(|((_, old), (_, new))| old != new);
    pairs.map(|((what, old), (_, new))| format!("{what} {} -> {}", none(old), none(new))).collect()
}

fn ports_by_machine(engine: &Engine) -> BTreeMap<String, Vec<SwitchPort>> {
    let mut by_machine: BTreeMap<String, Vec<SwitchPort>> = BTreeMap::new();
    for expected in engine.switches().ports() {
        let at = SwitchPort { switch: expected.switch.to_string(), port: expected.port };
        by_machine.entry(expected.machine.to_string()).or_default().push(at);
    }
    by_machine
}

/// One purchase for all machines of it, as they come from the store.
pub(super) fn share_purchases(machines: &mut [Machine]) {
    let mut known = HashSet::new();
    for machine in machines {
        machine.purchase = machine.purchase.take().map(|purchase| Purchase::shared(purchase, &mut known));
    }
}

/// For errors of a file that are those of the configuration.
pub fn of_file(e: Error, path: &std::path::Path) -> Error {
    Error::config("expected.csv", format!("{}: {}", path.display(), e.message()))
        .hint(e.next_step().unwrap_or("correct it and start again"))
}
