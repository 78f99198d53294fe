//! Settings of the machine's firmware (Bios) and new firmware (UpdateService).

use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};

use super::doc::{Doc, Properties};
use super::http::{Call, Payload, Reply};
use super::resource::refusal;
use super::session::Session;
use super::task::Ended;
use crate::bmc::{Bios, BiosAttributes, Update, UpdateFrom};
use crate::error::{Error, Result};

impl Session {
    async fn bios_docs(&mut self) -> Result<(Doc, Option<Doc>)> {
        let system = self.system().await?;
        let Some(link) = system.link("Bios").map(str::to_owned) else {
            return Err(self.lacks("the settings of the firmware"));
        };
        let bios = self.get(&link).await?;
        let link = bios.property("@Redfish.Settings").and_then(|s| s.link("SettingsObject")).map(str::to_owned);
        let settings = self.find_linked(link.as_deref()).await?;
        Ok((bios, settings))
    }

    pub(super) async fn bios_settings(&mut self) -> Result<Bios> {
        let (bios, settings) = self.bios_docs().await?;
        let now = attributes(&bios);
        // Some list there what changes, some everything as it will be.
        let mut pending = settings.as_ref().map(|doc| attributes(doc)).unwrap_or_default();
        pending.retain(|name, value| now.get(name) != Some(value));
        Ok(Bios { now, pending })
    }

    pub(super) async fn change_bios(&mut self, wanted: &BiosAttributes) -> Result<()> {
        let (bios, settings) = self.bios_docs().await?;
        let now = attributes(&bios);
        let unknown: Vec<&str> = wanted.keys().filter(|name| !now.contains_key(*name)).map(String::as_str).collect();
        if !unknown.is_empty() && !now.is_empty() {
            let message = format!("the firmware behind {} has no setting {}", self.whose(), unknown.join(", "));
            return Err(Error::input("bmc.bios-attribute", message).hint("use the names that the BMC lists"));
        }
        let times = bios.property("@Redfish.Settings").map(|s| s.list("SupportedApplyTimes")).unwrap_or_default();
        let on_reset = times.iter().any(|time| time == "OnReset");
        let mut body = json!({ "Attributes": wanted });
        if on_reset {
            body["@Redfish.SettingsApplyTime"] = json!({ "ApplyTime": "OnReset" });
        }
        let Some(settings) = settings else {
            // Supermicro takes them where they are shown (NVIDIA/libredfish, `supermicro::Bmc::machine_setup`).
            return self.patch(&bios.path, |_| Some(body.clone())).await.map(drop);
        };
        self.patch(&settings.path, |_| Some(body.clone())).await?;
        match dell_jobs(&settings) {
            Some(jobs) if !on_reset => {
                let jobs = jobs.to_owned();
                self.post(&jobs, json!({ "TargetSettingsURI": settings.path })).await.map(drop)
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn update_service(&mut self) -> Result<Doc> {
        match self.root().link("UpdateService").map(str::to_owned) {
            Some(link) => self.get(&link).await,
            None => Err(self.lacks("firmware updates")),
        }
    }

    /// By the tasks: whichever runs, since their names differ between vendors. One that waits for the next boot writes nothing.
    pub(super) async fn writes_firmware(&mut self) -> Result<bool> {
        let Some(service) = self.root().link("Tasks").map(str::to_owned) else {
            return Err(self.lacks("to tell what it is doing"));
        };
        let service = self.get(&service).await?;
        let Some(tasks) = service.link("Tasks").map(str::to_owned) else { return Ok(false) };
        let running = |task: &Doc| {
            let state = task.text("TaskState");
            matches!(state.as_deref(), Some("New" | "Starting" | "Running" | "Stopping" | "Service" | "Cancelling"))
        };
        Ok(self.members(&tasks).await?.iter().any(running))
    }

    pub(super) async fn update_firmware(&mut self, update: &Update) -> Result<()> {
        let service = self.update_service().await?;
        let targets = self.targets(&update.targets).await?;
        let reply = match &update.from {
            UpdateFrom::Url(url) => self.pull(&service, url, &targets).await?,
            UpdateFrom::File(file) => self.push(&service, file, &targets).await?,
        };
        let ended = self.watch(&reply, self.deadline()).await?;
        match ended {
            Ended::Done => {}
            Ended::Staged => tracing::info!(bmc = self.whose(), "the update waits for the machine's next boot"),
            Ended::Forgotten => tracing::debug!(bmc = self.whose(), "the task of the update is not told of any more"),
        }
        Ok(())
    }

    /// The paths of components; each must be there.
    async fn targets(&mut self, ids: &[String]) -> Result<Vec<String>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let docs = self.component_docs().await?;
        let path = |id: &String| {
            let doc = docs.iter().find(|doc| doc.text("Id").as_ref() == Some(id));
            doc.map(|doc| doc.path.clone()).ok_or_else(|| {
                Error::input("bmc.component", format!("{} has no component {id}", self.whose()))
                    .hint("list the components that it has")
            })
        };
        ids.iter().map(path).collect()
    }

    async fn pull(&mut self, service: &Doc, url: &str, targets: &[String]) -> Result<Reply> {
        let Some(action) = service.action("#UpdateService.SimpleUpdate") else {
            return Err(self.lacks("to fetch firmware by itself"));
        };
        let mut body = json!({ "ImageURI": url });
        let protocol = url.split(':').next().unwrap_or_default().to_ascii_uppercase();
        // Where it lists protocols, it wants to be told one; the URL alone does not do for iDRAC.
        if action.allowed("TransferProtocol").contains(&protocol) {
            body["TransferProtocol"] = json!(protocol);
        }
        if !targets.is_empty() {
            body["Targets"] = json!(targets);
        }
        let target = action.target.to_owned();
        self.post(&target, body).await
    }

    async fn push(&mut self, service: &Doc, file: &Path, targets: &[String]) -> Result<Reply> {
        let Some(push) = service.text("MultipartHttpPushUri") else {
            return Err(self.lacks("to be sent firmware"));
        };
        let mut parameters = json!({});
        if !targets.is_empty() || self.dell() {
            parameters["Targets"] = json!(targets);
        }
        let payload = Payload::Upload { file: file.to_owned(), parameters };
        let call = Call::new(Method::POST, push, payload);
        let reply = self.exchange(&call).await?;
        match reply.status.is_success() {
            true => Ok(reply),
            false => Err(refusal(self.whose(), &call, &reply)),
        }
    }
}

fn attributes(doc: &Value) -> BiosAttributes {
    let attributes = doc.property("Attributes").and_then(Value::as_object);
    attributes.map(|all| all.iter().map(|(name, value)| (name.clone(), value.clone())).collect()).unwrap_or_default()
}

/// iDRAC applies settings by a job of its own, which older firmware does not make without being told (dell/
/// iDRAC-Redfish-Scripting, `SetBiosAttributesREDFISH`): the settings resource says where.
fn dell_jobs(settings: &Value) -> Option<&str> {
    settings.property("Oem")?.property("Dell")?.link("Jobs")
}
