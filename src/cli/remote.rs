//! Where the appliance is and how its answers are printed, for every subcommand that asks one.

use crate::api::client::Client;
use crate::error::Result;

#[derive(clap::Args, Clone)]
pub struct Remote {
    /// The appliance's API.
    #[arg(long, env = "RACKLINE_URL", default_value = "http://127.0.0.1:8480", global = true)]
    url: String,
    /// Print JSON instead of text and tables.
    #[arg(long, global = true)]
    pub json: bool,
}

impl Remote {
    pub fn client(&self) -> Result<Client> {
        Client::new(&self.url)
    }
}
