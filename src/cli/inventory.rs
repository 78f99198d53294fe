//! `rackline inventory`: the machines for other tools. With `--list` and `--host` it is what Ansible calls an inventory script:
//! `ansible -i rackline.sh all -m ping`, where `rackline.sh` says `exec rackline inventory "$@"`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::remote::Remote;
use super::show;
use crate::api::client::segment;
use crate::error::Result;

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    /// All delivered hosts with their groups (role, rack, model, state) and variables, as Ansible reads them.
    #[arg(long, group = "what")]
    list: bool,
    /// The variables of one host.
    #[arg(long, group = "what", value_name = "NAME")]
    host: Option<String>,
    /// One machine in strings only, as Terraform's `external` data source reads it.
    #[arg(long, group = "what", value_name = "NAME")]
    external: Option<String>,
    /// With --list: also machines that are not delivered.
    #[arg(long, requires = "list")]
    all: bool,
}

pub async fn run(args: Args) -> Result<()> {
    let client = args.remote.client()?;
    if let Some(name) = &args.external {
        let words: BTreeMap<String, String> = client.get(&format!("/api/v1/machines/{}/words", segment(name))).await?;
        show::print(true, &words, String::new);
        return Ok(());
    }
    let path = match &args.host {
        Some(host) => format!("/api/v1/inventory/ansible/{}", segment(host)),
        None => format!("/api/v1/inventory/ansible?all={}", args.all),
    };
    let document: Value = client.get(&path).await?;
    show::print(true, &document, String::new);
    Ok(())
}
