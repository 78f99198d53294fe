//! What an agent must know to start: from the kernel command line in RAM, from a file on the installed host.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::leave::{leave_installed, leave_ram};
use super::roots::Roots;
use crate::error::{Error, Kind, OrFail, Result};
use crate::link::{BmcUser, Leave, Mode};
use crate::machine::{InBandBmc, MachineId};

/// The resident agent's file on the installed host.
pub const RESIDENT_FILE: &str = "/etc/rackline/agent.toml";

pub struct Options {
    /// The appliance: `http://10.0.0.1:8080`.
    pub url: String,
    pub machine: MachineId,
    /// Proves to the appliance which boot or seed this agent came from.
    pub token: Option<Token>,
    /// The public key that image manifests are signed with, as text. Hosts of an earlier release have none.
    pub key: Option<String>,
    pub mode: Mode,
    pub roots: Roots,
    pub hooks: Hooks,
}

/// A bearer token. It does not print.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

type InBand = dyn Fn() -> Result<Option<InBandBmc>> + Send + Sync;
type MakeUser = dyn Fn(&BmcUser) -> Result<()> + Send + Sync;
type LeaveNow = dyn Fn(Leave) -> Result<()> + Send + Sync;

/// What reaches out of the agent's own modules: the BMC as seen from inside, and the end of this system.
#[derive(Clone)]
pub struct Hooks {
    pub in_band: Arc<InBand>,
    pub make_bmc_user: Arc<MakeUser>,
    pub leave: Arc<LeaveNow>,
}

impl Hooks {
    fn new(leave: fn(Leave) -> Result<()>) -> Self {
        Self {
            in_band: Arc::new(|| Ok(None)),
            make_bmc_user: Arc::new(|_| {
                Err(Error::config("bmc.in-band", "this agent has no way to the BMC from inside")
                    .hint("give the BMC a user by hand and tell the appliance"))
            }),
            leave: Arc::new(leave),
        }
    }
}

impl Options {
    /// `rackline.url= rackline.machine= rackline.token= rackline.key=`, as the boot script writes them.
    pub fn from_kernel_command_line(line: &str) -> Result<Self> {
        let word = |name: &str| line.split_whitespace().find_map(|w| w.strip_prefix(name)?.strip_prefix('='));
        let needed = |name: &str| {
            word(name).filter(|v| !v.is_empty()).ok_or_else(|| {
                Error::config("agent.options", format!("the kernel command line has no {name}="))
                    .hint("boot this machine through the appliance, which writes it")
            })
        };
        Ok(Self {
            url: url(needed("rackline.url")?)?,
            machine: needed("rackline.machine")?.parse()?,
            token: word("rackline.token").map(Token::new),
            key: Some(needed("rackline.key")?.to_owned()),
            mode: Mode::Ram,
            roots: Roots::default(),
            hooks: Hooks::new(leave_ram),
        })
    }

    /// The installed host's file: `url`, `machine`, `token`, `key`.
    pub fn resident(path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            url: String,
            machine: MachineId,
            token: Option<Token>,
            key: Option<String>,
        }
        let name = path.display();
        let text = std::fs::read_to_string(path)
            .or_fail(Kind::Config, "agent.options", || format!("{name} cannot be read"))
            .map_err(|e| e.hint("it is written at the first boot from the seed: look at `cloud-init status --long`"))?;
        // The parser's own message quotes the line, which may be the one with the token.
        let file: File = toml::from_str(&text)
            .map_err(|e| Error::config("agent.options", format!("{name} is not valid: {}", e.message())))?;
        Ok(Self {
            url: url(&file.url)?,
            machine: file.machine,
            token: file.token,
            key: file.key,
            mode: Mode::Resident,
            roots: Roots::default(),
            hooks: Hooks::new(leave_installed),
        })
    }
}

/// Without the slash at the end, which paths bring with them.
fn url(text: &str) -> Result<String> {
    let text = text.trim_end_matches('/');
    let known = text.strip_prefix("http://").or(text.strip_prefix("https://")).is_some_and(|rest| !rest.is_empty());
    match known {
        true => Ok(text.to_owned()),
        false => Err(Error::config("agent.options", format!("{text:?} is not the address of an appliance"))
            .hint("write it as http://ADDRESS:PORT")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = "0190b5a0a0a07000800000000000002a";

    #[test]
    fn the_boot_script_says_it_all() {
        let line = format!(
            "quiet console=ttyS0 rackline.url=http://10.77.0.1:8080/ rackline.machine={MACHINE} rackline.token=s3cret \
             rackline.key=abcd panic=10\n"
        );
        let options = Options::from_kernel_command_line(&line).unwrap();
        assert_eq!((options.url.as_str(), options.mode), ("http://10.77.0.1:8080", Mode::Ram));
        assert_eq!(options.machine.to_string(), MACHINE);
        assert_eq!(options.key.as_deref(), Some("abcd"));
        assert_eq!(options.roots, Roots::default());
        assert!(!format!("{:?}", options.token).contains("s3cret"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = Options::from_kernel_command_line("rackline.url=http://10.0.0.1").err().unwrap();
        assert!(error.message().contains("rackline.machine="), "{error}");
        let wrong = format!("rackline.url=ftp://x rackline.machine={MACHINE} rackline.key=a");
        assert_eq!(Options::from_kernel_command_line(&wrong).err().unwrap().code(), "agent.options");
    }

    #[test]
    fn the_resident_file_and_its_faults() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("url = 'http://a:1'\nmachine = '{MACHINE}'\ntoken = 't'\n")).unwrap();
        let options = Options::resident(file.path()).unwrap();
        assert_eq!((options.mode, options.key), (Mode::Resident, None));
        std::fs::write(file.path(), format!("url = 'http://a:1'\nmachine = '{MACHINE}'\nkey = 'abcd'\n")).unwrap();
        assert_eq!(Options::resident(file.path()).unwrap().key.as_deref(), Some("abcd"));
        std::fs::write(file.path(), "url = 'http://a:1'\ntoken = s3cret\n").unwrap();
        let error = Options::resident(file.path()).err().unwrap();
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        assert_eq!(Options::resident(Path::new("/no/such/file")).err().unwrap().code(), "agent.options");
    }
}
