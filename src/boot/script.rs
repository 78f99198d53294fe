//! Boot scripts from `templates/boot`: `*.ipxe` for iPXE, `*.grub` for the signed GRUB of the Secure Boot chain; the same
//! answers in both. A name that a template uses and nobody gave is an error, and nothing that comes from outside reaches a
//! boot loader's shell unchecked: both expand `$…` and split at blanks.
//!
//! Every script ends in a loop that asks again, so that a machine whose script failed shows it and stays. A site can give one
//! machine other kernel arguments or a script of its own (`[[boot.overrides]]`); what is wrong with it is said when the
//! configuration is loaded, with file and line.

use std::io::Read;
use std::path::Path;

use minijinja::{Environment, UndefinedBehavior, Value, context};

use super::BootAnswer;
use super::config::BootConfig;
use super::loader::rules::Override;
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::{ClientArch, MacAddr};

/// Seconds until a machine on hold asks again.
const HOLD_SECONDS: u32 = 30;
/// Seconds until a machine asks again after its script failed.
const RETRY_SECONDS: u32 = 10;
/// iPXE shows one line of 80 columns; longer reasons wrap.
const MAX_REASON: usize = 240;
/// A script is a page or two; what is larger is another file.
const MAX_SCRIPT: u64 = 64 << 10;

const BUILT_IN: &[(&str, &str)] = &[
    ("agent.ipxe", include_str!("../../templates/boot/agent.ipxe")),
    ("disk.ipxe", include_str!("../../templates/boot/disk.ipxe")),
    ("hold.ipxe", include_str!("../../templates/boot/hold.ipxe")),
    ("again.ipxe", include_str!("../../templates/boot/again.ipxe")),
    ("agent.grub", include_str!("../../templates/boot/agent.grub")),
    ("disk.grub", include_str!("../../templates/boot/disk.grub")),
    ("hold.grub", include_str!("../../templates/boot/hold.grub")),
    ("grub.cfg", include_str!("../../templates/boot/grub.cfg")),
];

/// Who reads the script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Ipxe,
    Grub,
}

impl Dialect {
    fn extension(self) -> &'static str {
        match self {
            Self::Ipxe => "ipxe",
            Self::Grub => "grub",
        }
    }
}

/// Who asks for a script.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    pub mac: MacAddr,
    /// The machine's name, where it has one.
    pub name: Option<&'a str>,
    /// As the machine named it when it asked; it is passed on when it asks again.
    pub arch: Option<ClientArch>,
    pub dialect: Dialect,
}

/// What every script needs to know of the appliance.
pub struct Scripts {
    env: Environment<'static>,
    url: String,
    kernel_args: Vec<String>,
    image_key: String,
    overrides: Vec<Override>,
}

impl Scripts {
    /// Reads the templates of the overrides and tries each. `image_key`: the public key that images are signed with, in hex.
    pub fn new(config: &BootConfig, image_key: &str) -> Result<Self> {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        for (name, source) in BUILT_IN {
            env.add_template(name, source)
                .or_fail(Kind::Internal, "boot.script", || format!("the template {name} is wrong"))?;
        }
        let image_key = word(image_key)?.to_owned();
        let mut scripts = Self {
            env,
            url: config.url.clone(),
            kernel_args: config.kernel_args.clone(),
            image_key,
            overrides: config.overrides.clone(),
        };
        for special in &config.overrides {
            if let Some(path) = &special.script {
                scripts.add(path)?;
                scripts.try_out(special, path)?;
            }
        }
        Ok(scripts)
    }

    /// The same for another configuration.
    pub fn again(&self, config: &BootConfig) -> Result<Self> {
        Self::new(config, &self.image_key)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let mut source = String::new();
        let read = std::fs::File::open(path).and_then(|f| f.take(MAX_SCRIPT + 1).read_to_string(&mut source));
        read.or_fail(Kind::Config, "boot.template", || format!("cannot read the boot script {}", path.display()))?;
        if source.len() as u64 > MAX_SCRIPT {
            return Err(Error::config("boot.template", format!("{} is too large for a boot script", path.display())));
        }
        self.env.add_template_owned(path.to_string_lossy().into_owned(), source).map_err(|e| wrong(path, &e))
    }

    /// Renders each answer once: a template that works for one and not for another would be found out at the worst moment.
    fn try_out(&self, special: &Override, path: &Path) -> Result<()> {
        let dialect =
            special.dialect().ok_or_else(|| Error::internal("boot.template", "a script without a dialect"))?;
        let mac = special.mac.unwrap_or(MacAddr([0x52, 0x54, 0, 0, 0, 1]));
        let asker = Asker { mac, name: special.machine.as_deref(), arch: Some(ClientArch::UefiX64), dialect };
        let machine = crate::machine::MachineId(uuid::Uuid::nil());
        for answer in [
            BootAnswer::Agent { machine, token: "token".into() },
            BootAnswer::LocalDisk { machine },
            BootAnswer::Hold { reason: "a reason".into() },
        ] {
            let values = self.values(&asker, &answer, Some(special))?;
            let name = path.to_string_lossy();
            let text = self.env.get_template(&name).and_then(|t| t.render(values)).map_err(|e| wrong(path, &e))?;
            if dialect == Dialect::Ipxe && !text.starts_with("#!ipxe") {
                return Err(Error::config("boot.template", format!("{}, line 1: not an iPXE script", path.display()))
                    .hint("its first line is #!ipxe"));
            }
        }
        Ok(())
    }

    /// The script for this machine, and nobody else: an agent's has its token in it.
    pub fn render(&self, asker: &Asker<'_>, answer: &BootAnswer) -> Result<String> {
        let special = self.special(asker);
        let values = self.values(asker, answer, special)?;
        if let Some(path) = special.filter(|s| s.dialect() == Some(asker.dialect)).and_then(|s| s.script.as_ref()) {
            return self.fill(&path.to_string_lossy(), values);
        }
        let kind = match answer {
            BootAnswer::Agent { .. } => "agent",
            BootAnswer::LocalDisk { .. } => "disk",
            BootAnswer::Hold { .. } => "hold",
        };
        self.fill(&format!("{kind}.{}", asker.dialect.extension()), values)
    }

    /// What GRUB reads first, the same for every machine.
    pub fn grub_config(&self) -> Result<String> {
        self.fill("grub.cfg", context! { seconds => RETRY_SECONDS })
    }

    /// What the site wants for this machine in particular; by MAC address before by name.
    pub fn special(&self, asker: &Asker<'_>) -> Option<&Override> {
        let by_mac = self.overrides.iter().find(|o| o.mac == Some(asker.mac));
        by_mac.or_else(|| self.overrides.iter().find(|o| o.machine.is_some() && o.machine.as_deref() == asker.name))
    }

    fn values(&self, asker: &Asker<'_>, answer: &BootAnswer, special: Option<&Override>) -> Result<Value> {
        let everywhere = context! {
            mac => asker.mac.to_string(), mac_hyphen => asker.mac.to_string().replace(':', "-"),
            name => asker.name.map(plain), url => &self.url, arch => asker.arch.map(arch_name), key => &self.image_key,
            kernel_args => special.and_then(|s| s.kernel_args.as_ref()).unwrap_or(&self.kernel_args),
            seconds => RETRY_SECONDS,
        };
        Ok(match answer {
            BootAnswer::Agent { machine, token } => {
                context! { answer => "agent", machine => machine.to_string(), token => word(token)?, ..everywhere }
            }
            BootAnswer::LocalDisk { machine } => {
                context! { answer => "disk", machine => machine.to_string(), ..everywhere }
            }
            BootAnswer::Hold { reason } => {
                context! { answer => "hold", reason => plain(reason), seconds => HOLD_SECONDS, ..everywhere }
            }
        })
    }

    fn fill(&self, name: &str, values: Value) -> Result<String> {
        self.env.get_template(name).and_then(|template| template.render(values)).or_fail(
            Kind::Internal,
            "boot.script",
            || format!("the boot script {name} cannot be made"),
        )
    }
}

/// A template's fault as its author needs it: which file, which line, what.
fn wrong(path: &Path, e: &minijinja::Error) -> Error {
    let file = e.name().map_or_else(|| path.display().to_string(), str::to_owned);
    let line = e.line().map_or(String::new(), |line| format!(", line {line}"));
    let what = e.detail().map_or_else(|| e.kind().to_string(), |detail| format!("{}: {detail}", e.kind()));
    Error::config("boot.template", format!("{file}{line}: {what}")).hint(
        "templates know answer (agent, disk or hold), mac, mac_hyphen, name, arch, url, key, kernel_args and seconds; \
         with agent also machine and token, with disk machine, with hold reason",
    )
}

/// As `arch=` in the script's URL: the name that [`ClientArch`] has in configuration files.
pub fn arch_name(arch: ClientArch) -> &'static str {
    match arch {
        ClientArch::Bios => "bios",
        ClientArch::UefiIa32 => "uefi-ia32",
        ClientArch::UefiX64 => "uefi-x64",
        ClientArch::UefiArm64 => "uefi-arm64",
        ClientArch::HttpIa32 => "http-ia32",
        ClientArch::HttpX64 => "http-x64",
        ClientArch::HttpArm64 => "http-arm64",
    }
}

/// One word of a command line that no boot loader and no kernel reads as something else.
fn word(text: &str) -> Result<&str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-+=:/,".contains(&b);
    match !text.is_empty() && text.len() <= 512 && text.bytes().all(plain) {
        true => Ok(text),
        false => Err(Error::internal("boot.script", "a value for the boot script is not one plain word")),
    }
}

/// Text for `echo`: what the shell of iPXE or, in double quotes, that of GRUB would act on becomes a blank.
fn plain(text: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || " .,:_-/()+=@%'".contains(c);
    let line: String = text.chars().map(|c| if safe(c) { c } else { ' ' }).take(MAX_REASON).collect();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
#[path = "script_tests.rs"]
mod tests;
