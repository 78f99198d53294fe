//! `rackline passport …`: what a delivered host is and what was proved of it, on the screen, on paper, and held against the key of
//! the site, without the appliance where there is a file.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::Value;

use super::remote::Remote;
use super::show;
use crate::api::client::segment;
use crate::api::handoff::KeyView;
use crate::api::view::MachineView;
use crate::error::{Error, Kind, OrFail, Result};
use crate::handoff::page;
use crate::handoff::passport::{MAX_BYTES, Signed};
use crate::image::PublicKey;
use crate::judge;
use crate::lifecycle::passport::Passport;
use crate::machine::{Finding, Inventory};

/// Keys that are believed where none is named, one a line; what follows the key is a comment.
const PINNED: &str = "/etc/rackline/passport.keys";

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The passport of a machine, or of a file.
    Show {
        /// A machine's name, or a file.
        name: String,
        /// The page for the printer.
        #[arg(long)]
        html: bool,
    },
    /// Whether a passport is as the site signed it. Needs no appliance.
    Verify {
        file: PathBuf,
        /// A public key of 64 hex digits, or a file with keys, one a line; /etc/rackline/passport.keys where none is named.
        #[arg(long = "key", value_name = "HEX|FILE")]
        keys: Vec<String>,
    },
    /// What has changed in a machine since a passport was made.
    Compare {
        old: PathBuf,
        /// A later passport, or a machine's name.
        new: String,
    },
    /// The public key that passports of this site are signed with.
    Key,
}

pub async fn run(args: Args) -> Result<()> {
    let json = args.remote.json;
    match args.command {
        Command::Show { name, html } => {
            let value = match Path::new(&name).is_file() {
                true => serde_json::from_str(&read(Path::new(&name))?).map_err(garbage)?,
                false => {
                    args.remote.client()?.get::<Value>(&format!("/api/v1/machines/{}/passport", segment(&name))).await?
                }
            };
            let signed = Signed::parse(&value.to_string())?;
            match html {
                true => {
                    let page = page::html(&signed)?;
                    show::print(false, &(), || page);
                }
                false => {
                    let passport = signed.read()?;
                    show::print(json, &value, || summary(&passport, &signed));
                }
            }
        }
        Command::Verify { file, keys } => {
            let signed = Signed::parse(&read(&file)?)?;
            signed.verify(&trusted(&keys)?)?;
            let passport = signed.read()?;
            let verdict = serde_json::json!({
                "valid": true, "name": passport.name, "hostname": passport.hostname, "key": signed.key().to_string(),
            });
            show::print(json, &verdict, || format!("good: {}", summary(&passport, &signed)));
        }
        Command::Compare { old, new } => {
            let before = Signed::parse(&read(&old)?)?.read()?;
            let now = match Path::new(&new).is_file() {
                true => Signed::parse(&read(Path::new(&new))?)?.read()?.inventory,
                false => inventory(&args.remote, &new).await?,
            };
            let findings = judge::changed::judge(&before.inventory, &now, "delivery");
            show::print(json, &findings, || changes(&before, &findings));
        }
        Command::Key => {
            let key: KeyView = args.remote.client()?.get("/api/v1/passport/key").await?;
            show::print(json, &key, || key.key.clone());
        }
    }
    Ok(())
}

async fn inventory(remote: &Remote, name: &str) -> Result<Inventory> {
    let view: MachineView = remote.client()?.get(&format!("/api/v1/machines/{}", segment(name))).await?;
    view.inventory.ok_or_else(|| {
        Error::conflict("passport.inventory", format!("{} has not been looked at yet", view.name))
            .hint("its inventory is taken when it is commissioned, and when it is released")
    })
}

/// Never more than a passport can have.
fn read(file: &Path) -> Result<String> {
    use std::io::Read;
    let failed = || format!("cannot read {}", file.display());
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).or_fail(Kind::Input, "passport.read", failed)?;
    opened.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).or_fail(Kind::Input, "passport.read", failed)?;
    String::from_utf8(bytes).map_err(|_| {
        Error::input("passport.garbage", format!("{} is no passport: it is no text", file.display()))
            .hint("`rackline passport show NAME --json` writes one")
    })
}

fn garbage(e: serde_json::Error) -> Error {
    Error::input("passport.garbage", format!("this is no passport: {e}"))
}

fn trusted(keys: &[String]) -> Result<Vec<PublicKey>> {
    let mut trusted = Vec::new();
    let pinned = Path::new(PINNED);
    match keys {
        [] if pinned.exists() => trusted.extend(keys_in(pinned)?),
        [] => {
            return Err(Error::input("passport.no-key", "there is no key to hold the passport against")
                .hint(format!("give --key HEX (`rackline passport key` prints the site's), or keep it in {PINNED}")));
        }
        keys => {
            for key in keys {
                match key.parse() {
                    Ok(key) => trusted.push(key),
                    Err(_) if Path::new(key).is_file() => trusted.extend(keys_in(Path::new(key))?),
                    Err(e) => return Err(e),
                }
            }
        }
    }
    Ok(trusted)
}

fn keys_in(file: &Path) -> Result<Vec<PublicKey>> {
    let text = read(file)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<PublicKey> =
        lines.map(|line| line.split_whitespace().next().unwrap_or_default().parse()).collect::<Result<_>>()?;
    match keys.is_empty() {
        true => Err(Error::input("passport.no-key", format!("there is no key in {}", file.display()))),
        false => Ok(keys),
    }
}

fn summary(p: &Passport, signed: &Signed) -> String {
    let at = jiff::Timestamp::from_millisecond(p.issued_at).map_or(String::new(), |at| at.to_string());
    let system = &p.inventory.system;
    let mut lines = vec![
        format!("{} as {} ({}, {}), delivered {at}", p.name, p.hostname, p.role, p.image),
        format!(
            "{} {}, serial {}",
            system.manufacturer.as_deref().unwrap_or("unknown maker"),
            system.product.as_deref().unwrap_or("unknown model"),
            system.serial.as_ref().map_or("unknown", |s| s.as_str()),
        ),
        format!(
            "{} CPU, {} DIMMs, {} disks, {} NICs; {} checks passed; {} findings",
            p.inventory.cpus.len(),
            p.inventory.memory.dimms.len(),
            p.inventory.disks.len(),
            p.inventory.nics.len(),
            p.checks.iter().filter(|c| c.passed).count(),
            p.findings.len()
        ),
    ];
    lines.extend(p.energy.iter().map(|e| format!("{:.0} W at delivery", e.watts)));
    lines.extend(
        p.erased.iter().flat_map(|erased| &erased.disks).map(|d| format!("erased before: {} {}", d.name, d.how)),
    );
    lines.push(format!("version {}, signed by key {} ({})", p.version, signed.key().id(), signed.key()));
    lines.join("\n")
}

fn changes(before: &Passport, findings: &[Finding]) -> String {
    if findings.is_empty() {
        return format!("nothing has changed in {} since its delivery", before.name);
    }
    let line = |f: &Finding| format!("{}: {f}\n  {}: {}", f.severity, f.who, f.next);
    findings.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_from_words_or_files() {
        let dir = tempfile::tempdir().unwrap();
        let (file, hex) = (dir.path().join("keys"), "ab".repeat(32));
        std::fs::write(&file, format!("# the site\n{hex} hall 3\n\n{}\n", "cd".repeat(32))).unwrap();
        assert_eq!(trusted(std::slice::from_ref(&hex)).unwrap().len(), 1);
        assert_eq!(trusted(&[file.display().to_string(), hex]).unwrap().len(), 3);
        assert!(trusted(&["nonsense".into()]).is_err());
        std::fs::write(&file, "# none\n").unwrap();
        assert_eq!(trusted(&[file.display().to_string()]).unwrap_err().code(), "passport.no-key");
    }
}
