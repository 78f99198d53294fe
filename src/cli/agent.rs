//! `rackline agent`: in RAM it takes its facts from the kernel command line, on a host from `/etc/rackline/agent.toml`.

use std::path::Path;

use crate::agent::{self, INSTALLED_FILE, Options, RESIDENT_FILE, Roots};
use crate::error::{Kind, OrFail, Result};
use crate::ipmi::device::{self, Device};
use crate::link::BmcUser;
use crate::machine::InBandBmc;

#[derive(clap::Args)]
pub struct Args {
    /// On the installed host: delivery checks and inspection.
    #[arg(long)]
    resident: bool,
    /// On the installed host: set up storage and kernel as it was ordered, and end.
    #[arg(long, conflicts_with = "resident")]
    setup: bool,
}

pub async fn run(args: Args) -> Result<()> {
    if args.setup {
        return agent::apply(&Roots::default(), Path::new(INSTALLED_FILE)).await;
    }
    let mut options = if args.resident {
        Options::resident(Path::new(RESIDENT_FILE))?
    } else {
        let line = std::fs::read_to_string("/proc/cmdline").or_fail(
            Kind::Internal,
            "agent.options",
            || "the kernel command line cannot be read",
        )?;
        Options::from_kernel_command_line(&line)?
    };
    options.hooks.in_band = std::sync::Arc::new(in_band);
    options.hooks.make_bmc_user = std::sync::Arc::new(make_user);
    agent::run(options).await
}

fn in_band() -> Result<Option<InBandBmc>> {
    Device::open()?.map(|mut bmc| device::describe(&mut bmc)).transpose()
}

fn make_user(user: &BmcUser) -> Result<()> {
    let mut bmc = Device::open()?.ok_or_else(|| {
        crate::error::Error::not_found("bmc.in-band", "this machine has no /dev/ipmi0")
            .hint("enter its BMC by hand in the list of expected machines")
    })?;
    device::ensure_user(&mut bmc, user)
}
