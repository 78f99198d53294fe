//! `rackline model …`: the bills of materials that machines are held against.

use std::path::PathBuf;

use clap::Subcommand;

use super::remote::Remote;
use super::show;
use crate::api::models::ModelList;
use crate::engine::models::{self, ModelView};
use crate::error::Result;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Those of the site, and those built in.
    List,
    /// A built-in one as it is written: compute, high-io, memory or storage. A good start for an own one.
    Show { model: String },
    /// Check a model of the site; errors name line and key.
    Check { file: PathBuf },
}

pub async fn run(args: Args) -> Result<()> {
    let json = args.remote.json;
    match args.command {
        Command::List => {
            let list: ModelList = args.remote.client()?.get("/api/v1/models").await?;
            show::print(json, &list, || {
                let refused =
                    list.refused.iter().map(|why| format!("the folder as it is now is not in use: {why}\n\n"));
                refused.collect::<String>() + &table(&list.models)
            });
        }
        Command::Show { model } => {
            let text = models::example(&model)?;
            show::print(json, &text, || text.trim_end().to_owned());
        }
        Command::Check { file } => {
            let model = models::check(&file)?;
            show::print(json, &model, || table(std::slice::from_ref(&model)));
        }
    }
    Ok(())
}

fn table(models: &[ModelView]) -> String {
    let mut table = show::table(&["MODEL", "PRODUCTS", "PARTS", "WHAT FOR"]);
    for m in models {
        table.add_row([m.name.clone(), m.products.join("\n"), m.parts.join("\n"), m.why.clone()]);
    }
    table.to_string()
}
