//! iPXE scripts from `templates/boot/*.ipxe`. A name that a template uses and nobody gave is an error, and nothing that
//! comes from outside reaches iPXE's shell unchecked: it expands `${…}` and splits at blanks.
//!
//! Every script ends in a loop that asks again, so that a machine whose script failed shows it and stays.

use minijinja::{Environment, UndefinedBehavior, Value, context};

use super::BootAnswer;
use crate::error::{Error, Kind, OrFail, Result};
use crate::machine::ClientArch;

/// Seconds until a machine on hold asks again.
const HOLD_SECONDS: u32 = 30;
/// Seconds until a machine asks again after its script failed.
const RETRY_SECONDS: u32 = 10;
/// iPXE shows one line of 80 columns; longer reasons wrap.
const MAX_REASON: usize = 240;

/// What every script needs to know of the appliance.
pub struct Scripts {
    env: Environment<'static>,
    url: String,
    kernel_args: Vec<String>,
    image_key: String,
}

impl Scripts {
    /// `image_key`: the public key that images are signed with, in hex.
    pub fn new(url: &str, kernel_args: &[String], image_key: &str) -> Result<Self> {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        for (name, source) in [
            ("agent.ipxe", include_str!("../../templates/boot/agent.ipxe")),
            ("disk.ipxe", include_str!("../../templates/boot/disk.ipxe")),
            ("hold.ipxe", include_str!("../../templates/boot/hold.ipxe")),
            ("again.ipxe", include_str!("../../templates/boot/again.ipxe")),
        ] {
            env.add_template(name, source)
                .or_fail(Kind::Internal, "boot.script", || format!("the template {name} is wrong"))?;
        }
        let image_key = word(image_key)?.to_owned();
        Ok(Self { env, url: url.to_owned(), kernel_args: kernel_args.to_vec(), image_key })
    }

    /// `arch` as the machine named it when it asked; it is passed on when it asks again.
    pub fn render(&self, answer: &BootAnswer, arch: Option<ClientArch>) -> Result<String> {
        let arch = arch.map(arch_name);
        match answer {
            BootAnswer::Agent { machine, token } => self.fill(
                "agent.ipxe",
                context! {
                    machine => machine.to_string(), token => word(token)?, key => &self.image_key,
                    kernel_args => &self.kernel_args, url => &self.url, arch, seconds => RETRY_SECONDS,
                },
            ),
            BootAnswer::LocalDisk { machine } => self.fill(
                "disk.ipxe",
                context! { machine => machine.to_string(), url => &self.url, arch, seconds => RETRY_SECONDS },
            ),
            BootAnswer::Hold { reason } => self.fill(
                "hold.ipxe",
                context! { reason => plain(reason), url => &self.url, arch, seconds => HOLD_SECONDS },
            ),
        }
    }

    fn fill(&self, name: &str, values: Value) -> Result<String> {
        self.env.get_template(name).and_then(|template| template.render(values)).or_fail(
            Kind::Internal,
            "boot.script",
            || format!("the boot script {name} cannot be made"),
        )
    }
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

/// One word of a command line that neither iPXE nor the kernel reads as something else.
fn word(text: &str) -> Result<&str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-+=:/,".contains(&b);
    match !text.is_empty() && text.len() <= 512 && text.bytes().all(plain) {
        true => Ok(text),
        false => Err(Error::internal("boot.script", "a value for the boot script is not one plain word")),
    }
}

/// Text for `echo`: what iPXE's shell would act on becomes a blank.
fn plain(text: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || " .,:_-/()+=@%'".contains(c);
    let line: String = text.chars().map(|c| if safe(c) { c } else { ' ' }).take(MAX_REASON).collect();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::MachineId;

    fn scripts() -> Scripts {
        Scripts::new("http://10.77.0.1", &["no_timer_check".into(), "panic=10".into()], "ab12").unwrap()
    }

    fn machine() -> MachineId {
        "0190c0de000070008000000000000001".parse().unwrap()
    }

    #[test]
    fn agent() {
        let answer = BootAnswer::Agent { machine: machine(), token: "t0ken".into() };
        insta::assert_snapshot!(scripts().render(&answer, Some(ClientArch::Bios)).unwrap());
    }

    #[test]
    fn disk() {
        let answer = BootAnswer::LocalDisk { machine: machine() };
        insta::assert_snapshot!(scripts().render(&answer, Some(ClientArch::UefiX64)).unwrap());
    }

    #[test]
    fn hold() {
        let answer = BootAnswer::Hold { reason: "no order\nfor it; ${net0/ip} || exit #".into() };
        insta::assert_snapshot!(scripts().render(&answer, None).unwrap());
    }

    #[test]
    fn values_that_a_shell_would_read_are_refused() {
        for token in ["", "a b", "${ip}", "a\nb", "a;b", "é"] {
            let answer = BootAnswer::Agent { machine: machine(), token: token.into() };
            assert_eq!(scripts().render(&answer, None).unwrap_err().code(), "boot.script", "{token:?}");
        }
    }

    #[test]
    fn a_missing_value_is_an_error() {
        assert!(scripts().fill("agent.ipxe", context! { url => "u" }).is_err());
    }
}
