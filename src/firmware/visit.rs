//! One visit to a machine through its BMC: what it shows, and one step of its plan done. Which step, and when, is decided elsewhere.

use std::path::PathBuf;

use super::depot::Depot;
use super::plan::{Change, Seen, Step};
use crate::bmc::{Answer, BiosAttributes, Command, Update, UpdateFrom};
use crate::error::{Error, Kind, OrFail, Result};

/// Somebody who asks one BMC.
pub trait Ask: Sync {
    fn ask(&self, command: Command) -> impl Future<Output = Result<Answer>> + Send;
}

/// What the machine shows now. What its BMC does not offer is left out; a BMC that does not answer is an error.
///
/// `writing`: whether it writes firmware is of interest.
pub async fn see(bmc: &impl Ask, writing: bool) -> Result<Seen> {
    let components = match offered(bmc.ask(Command::Components).await)? {
        Some(Answer::Components { components }) => Some(components),
        _ => None,
    };
    let bios = match offered(bmc.ask(Command::Bios).await)? {
        Some(Answer::Bios(bios)) => Some(bios),
        _ => None,
    };
    let (boot_order, boot_names) = match offered(bmc.ask(Command::BootOrder).await)? {
        Some(Answer::BootOrder { order, names }) => (Some(order), names),
        _ => Default::default(),
    };
    let updating = match writing {
        true => offered(bmc.ask(Command::Updating).await)?,
        false => None,
    };
    let updating = updating.and_then(|answer| match answer {
        Answer::Updating { busy } => Some(busy),
        _ => None,
    });
    Ok(Seen { components, bios, boot_order, boot_names, updating })
}

fn offered(answer: Result<Answer>) -> Result<Option<Answer>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(e) if is_lacking(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

fn is_lacking(e: &Error) -> bool {
    e.code() == "bmc.unsupported"
}

/// Does one step; a reboot is not among those, since it is the engine's.
pub async fn act(bmc: &impl Ask, depot: &Depot, step: &Step) -> Result<()> {
    match step {
        Step::Update { bundle, targets, .. } => {
            let _turn = depot.uploads.acquire().await;
            let (bundles, looked_at) = (depot.bundles().clone(), bundle.clone());
            let file = tokio::task::spawn_blocking(move || bundles.verify(&looked_at)).await.or_fail(
                Kind::Internal,
                "firmware.verify",
                || "the bundle could not be looked at",
            )??;
            update(bmc, file, depot.url(bundle), targets).await
        }
        Step::Settings { changes } => set(bmc, changes).await,
        Step::BootOrder { order, .. } => bmc.ask(Command::SetBootOrder { order: order.clone() }).await.map(drop),
        Step::Reboot => Ok(()),
    }
}

/// Sent to the BMC, which needs no way to us; where it takes none, fetched by it.
async fn update(bmc: &impl Ask, file: PathBuf, url: String, targets: &[String]) -> Result<()> {
    let command = |from| Command::Update(Update { from, targets: targets.to_vec() });
    match bmc.ask(command(UpdateFrom::File(file))).await {
        Err(e) if is_lacking(&e) => bmc.ask(command(UpdateFrom::Url(url))).await.map(drop),
        answer => answer.map(drop),
    }
}

async fn set(bmc: &impl Ask, changes: &[Change]) -> Result<()> {
    // What waits for the next boot already needs no second word.
    let wanted = changes.iter().filter(|c| !c.pending);
    let attributes: BiosAttributes = wanted.map(|c| (c.attribute.clone(), c.wanted.clone())).collect();
    match attributes.is_empty() {
        true => Ok(()),
        false => bmc.ask(Command::SetBios { attributes }).await.map(drop),
    }
}
