//! `rackline handoff …`: how delivered hosts are reached, who is told what becomes of machines, and how that goes.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;

use super::remote::Remote;
use super::{secret, show};
use crate::agent::tls::{DOCKER, Key, OVSDB};
use crate::api::client::segment;
use crate::api::handoff::ClientRequest;
use crate::api::view::MachineView;
use crate::config::Config;
use crate::durable;
use crate::engine::announce::ReceiverView;
use crate::error::{Error, Kind, OrFail, Result};
use crate::handoff::authority::{Authority, Sealed};
use crate::handoff::receiver::{Receiver, TEMPLATES};
use crate::link::HostCertificate;
use crate::machine::Role;
use crate::store::Db;
use crate::store::seal::Seal;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Webhooks and registrations: what waits for each, and why.
    Webhooks {
        /// Send to this one at once what waits or was given up.
        #[arg(long, value_name = "NAME")]
        again: Option<String>,
    },
    /// How a delivered host is reached: SSH, libvirt, Docker, OVSDB.
    Show { machine: String },
    /// Make a key and a certificate for somebody who works with delivered hosts.
    Client {
        name: String,
        /// The folder; the files have the names that libvirt looks for, and Docker's beside them.
        #[arg(long, default_value = ".")]
        out: PathBuf,
    },
    /// An example template for a registration.
    Template {
        /// openstack, kubernetes or zstack.
        name: String,
    },
}

pub async fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Webhooks { again } => {
            let client = args.remote.client()?;
            let views: Vec<ReceiverView> = match again {
                Some(name) => client.post(&format!("/api/v1/handoff/receivers/{}/again", segment(&name)), &()).await?,
                None => client.get("/api/v1/handoff/receivers").await?,
            };
            show::print(args.remote.json, &views, || receivers_table(&views));
        }
        Command::Show { machine } => {
            let view: MachineView =
                args.remote.client()?.get(&format!("/api/v1/machines/{}", segment(&machine))).await?;
            let ways = ways(&view)?;
            show::print(args.remote.json, &ways, || {
                ways.iter().map(|way| format!("{:8} {}", way.what, way.how)).collect::<Vec<_>>().join("\n")
            });
        }
        Command::Client { name, out } => client(&args.remote, &name, &out).await?,
        Command::Template { name } => {
            let (_, text) = template(&name)?;
            show::print(args.remote.json, &text, || text.trim_end().to_owned());
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct Way {
    what: &'static str,
    how: String,
}

/// The words to type; `CERTS` stands for the folder of `rackline handoff client`.
fn ways(view: &MachineView) -> Result<Vec<Way>> {
    let (Some(address), Some(roles), Some(hostname), "delivered") =
        (view.address, &view.role, &view.hostname, view.state.as_str())
    else {
        return Err(Error::conflict("handoff.state", format!("{} is {}, and not handed over", view.name, view.state)));
    };
    let mut ways = vec![
        Way { what: "ssh", how: format!("ssh root@{address}") },
        Way {
            what: "name",
            how: format!("{address} {hostname}  # where the site's DNS does not know it: libvirt checks the name"),
        },
    ];
    let secured = |id: &str| view.checks.iter().any(|c| c.id == id && c.passed);
    for role in roles.iter() {
        let (what, id, how) = match role {
            Role::Kvm => ("libvirt", "kvm.tls", format!("virsh -c 'qemu+tls://{hostname}/system?pkipath=CERTS'")),
            Role::Docker => (
                "docker",
                "docker.tls",
                format!(
                    "docker context create {hostname} --docker \
                     host=tcp://{address}:{DOCKER},ca=CERTS/ca.pem,cert=CERTS/cert.pem,key=CERTS/key.pem"
                ),
            ),
            Role::Ovs => (
                "ovsdb",
                "ovs.tls",
                format!(
                    "ovs-vsctl --db=ssl:{address}:{OVSDB} -p CERTS/clientkey.pem -c CERTS/clientcert.pem \
                     -C CERTS/cacert.pem show"
                ),
            ),
        };
        let how = match (secured(id), role) {
            (true, _) => how,
            (false, Role::Kvm) => format!("virsh -c qemu+ssh://root@{address}/system"),
            (false, Role::Docker) => format!("docker context create {hostname} --docker host=ssh://root@{address}"),
            (false, Role::Ovs) => format!("ssh root@{address} ovs-vsctl show"),
        };
        ways.push(Way { what, how });
    }
    Ok(ways)
}

/// The key is made here and does not leave this machine.
async fn client(remote: &Remote, name: &str, out: &Path) -> Result<()> {
    let key = Key::make(name)?;
    let request = ClientRequest { name: name.to_owned(), request: key.request };
    let signed: HostCertificate = remote.client()?.post("/api/v1/handoff/clients", &request).await?;
    let failed = || format!("cannot write to {}", out.display());
    std::fs::create_dir_all(out).or_fail(Kind::Input, "handoff.client", failed)?;
    let secret = out.join("clientkey.pem");
    durable::create_secret(&secret, key.pem.as_bytes())
        .or_fail(Kind::Input, "handoff.client", || format!("cannot make {}", secret.display()))
        .map_err(|e| e.hint("a key that is there is not replaced: name another folder with --out"))?;
    for (file, text) in [("clientcert.pem", &signed.certificate), ("cacert.pem", &signed.authority)] {
        durable::replace(&out.join(file), text.as_bytes()).or_fail(Kind::Input, "handoff.client", failed)?;
    }
    for (docker, file) in [("ca.pem", "cacert.pem"), ("cert.pem", "clientcert.pem"), ("key.pem", "clientkey.pem")] {
        let _ = std::os::unix::fs::symlink(file, out.join(docker));
    }
    show::print(remote.json, &signed, || {
        format!("{}: clientkey.pem, clientcert.pem, cacert.pem, and Docker's names", out.display())
    });
    Ok(())
}

/// The site's authority, made at the first start and sealed.
pub async fn authority(config: &Config, db: &Db, seal: &Seal) -> Result<Authority> {
    const NAME: &str = "handoff authority";
    let failed = || "the site's certificate authority cannot be kept";
    if let Some(text) = db.secret(seal, NAME).await? {
        let sealed: Sealed = serde_json::from_str(&text).or_fail(Kind::Config, "authority.sealed", failed)?;
        return Authority::open(&sealed);
    }
    let sealed = Sealed::make(&config.site.name)?;
    let text = serde_json::to_string(&sealed).or_fail(Kind::Internal, "authority.sealed", failed)?;
    db.put_secret(seal, NAME, &text).await?;
    Authority::open(&sealed)
}

fn receivers_table(views: &[ReceiverView]) -> String {
    if views.is_empty() {
        return "nobody is told: see [[handoff.webhooks]] in rackline.example.toml".into();
    }
    let mut table = show::table(&["RECEIVER", "TO", "EVENTS", "WAITING", "GIVEN UP", "LAST"]);
    for view in views {
        let last = match (&view.last, &view.standing.error) {
            (Some(last), _) => last.error.clone().unwrap_or_else(|| "taken".into()),
            (None, Some(error)) => error.clone(),
            (None, None) => String::new(),
        };
        let standing = &view.standing;
        table.add_row([
            view.name.clone(),
            view.target.clone(),
            view.events.join(", "),
            standing.waiting.to_string(),
            standing.given_up.to_string(),
            last,
        ]);
    }
    table.to_string()
}

fn template(name: &str) -> Result<(&'static str, &'static str)> {
    TEMPLATES.iter().find(|(known, _)| *known == name).copied().ok_or_else(|| {
        let known: Vec<&str> = TEMPLATES.iter().map(|(name, _)| *name).collect();
        Error::config("handoff.template", format!("there is no template {name:?}")).hint(format!(
            "there are {}; a template of the site is named as a file that ends in .toml",
            known.join(", ")
        ))
    })
}

/// From the configuration, with the secrets from their files or, once sealed, from the store.
pub async fn receivers(config: &Config, db: &Db, seal: &Seal) -> Result<Vec<Receiver>> {
    let mut receivers = Vec::new();
    for hook in &config.handoff.webhooks {
        let key = secret::known(&format!("handoff/{}", hook.name), hook.secret_file.as_deref(), db, seal).await?;
        let key = key.ok_or_else(|| {
            Error::config("handoff.secret", format!("the secret of the webhook {} is not known", hook.name))
                .hint("name a file with it as secret_file: `openssl rand -base64 32`; it is read and sealed, and may be deleted then")
        })?;
        receivers.push(Receiver::webhook(&hook.name, &hook.url, &hook.events, &key)?);
    }
    for registration in &config.handoff.registrations {
        let name = &registration.name;
        let key = secret::known(&format!("handoff/{name}"), registration.secret_file.as_deref(), db, seal).await?;
        let text = match registration.template.ends_with(".toml") {
            true => {
                std::fs::read_to_string(&registration.template)
                    .or_fail(Kind::Config, "handoff.template", || format!("cannot read {}", registration.template))?
            }
            false => template(&registration.template)?.1.to_owned(),
        };
        let roles = registration.roles.iter().map(|role| role.name().to_owned()).collect();
        let values = registration.values.clone();
        receivers.push(Receiver::registration(name, &text, &registration.events, roles, values, key)?);
    }
    Ok(receivers)
}
