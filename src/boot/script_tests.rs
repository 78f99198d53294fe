//! A snapshot of each script, and what is refused.

use super::*;
use crate::boot::config::tests::sample;
use crate::machine::MachineId;

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x77, 0, 1]);

fn scripts() -> Scripts {
    Scripts::new(&sample(), "ab12").unwrap()
}

fn asker(dialect: Dialect, arch: Option<ClientArch>) -> Asker<'static> {
    Asker { mac: MAC, name: Some("kvm-1"), arch, dialect }
}

fn machine() -> MachineId {
    "0190c0de000070008000000000000001".parse().unwrap()
}

fn agent() -> BootAnswer {
    BootAnswer::Agent { machine: machine(), token: "t0ken".into() }
}

fn hold() -> BootAnswer {
    BootAnswer::Hold { reason: "no order\nfor it; ${net0/ip} || exit # \"$x\" \\".into() }
}

fn ipxe(answer: &BootAnswer, arch: Option<ClientArch>) -> String {
    scripts().render(&asker(Dialect::Ipxe, arch), answer).unwrap()
}

fn grub(answer: &BootAnswer) -> String {
    scripts().render(&asker(Dialect::Grub, Some(ClientArch::UefiX64)), answer).unwrap()
}

#[test]
fn agent_ipxe() {
    insta::assert_snapshot!(ipxe(&agent(), Some(ClientArch::Bios)));
}

#[test]
fn disk_ipxe() {
    insta::assert_snapshot!(ipxe(&BootAnswer::LocalDisk { machine: machine() }, Some(ClientArch::UefiX64)));
}

#[test]
fn hold_ipxe() {
    insta::assert_snapshot!(ipxe(&hold(), None));
}

#[test]
fn agent_grub() {
    insta::assert_snapshot!(grub(&agent()));
}

#[test]
fn disk_grub() {
    insta::assert_snapshot!(grub(&BootAnswer::LocalDisk { machine: machine() }));
}

#[test]
fn hold_grub() {
    insta::assert_snapshot!(grub(&hold()));
}

#[test]
fn grub_config() {
    insta::assert_snapshot!(scripts().grub_config().unwrap());
}

/// GRUB's own parser takes them.
#[test]
fn grub_scripts_are_scripts_of_grub() {
    use std::io::Write;
    let disk = BootAnswer::LocalDisk { machine: machine() };
    let texts = [grub(&agent()), grub(&disk), grub(&hold()), scripts().grub_config().unwrap()];
    for text in texts {
        let mut check = std::process::Command::new("grub-script-check");
        let Ok(mut check) = check.stdin(std::process::Stdio::piped()).spawn() else {
            return eprintln!("SKIPPED: grub-common is not installed");
        };
        check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(check.wait().unwrap().success(), "{text}");
    }
}

#[test]
fn values_that_a_shell_would_read_are_refused() {
    for token in ["", "a b", "${ip}", "a\nb", "a;b", "é", "a'b", "a\"b"] {
        let answer = BootAnswer::Agent { machine: machine(), token: token.into() };
        for dialect in [Dialect::Ipxe, Dialect::Grub] {
            let error = scripts().render(&asker(dialect, None), &answer).unwrap_err();
            assert_eq!(error.code(), "boot.script", "{token:?}");
        }
    }
}

#[test]
fn a_missing_value_is_an_error_in_every_template() {
    for (name, source) in BUILT_IN {
        assert!(source.contains("{{"), "{name}");
        assert!(scripts().fill(name, context! { nothing => "of use" }).is_err(), "{name}");
    }
}

/// A site's configuration with one override, whose template has this text.
fn site(dir: &Path, file: &str, template: &str, special: &str) -> Result<Scripts> {
    std::fs::write(dir.join(file), template).unwrap();
    let mut config = sample();
    let path = dir.join(file);
    config.overrides = vec![toml::from_str(&format!("script = {path:?}\n{special}")).unwrap()];
    config.check()?;
    Scripts::new(&config, "ab12")
}

#[test]
fn one_machine_has_its_own_script_and_arguments() {
    let dir = tempfile::tempdir().unwrap();
    let template = "#!ipxe\n\
        {% if answer == \"agent\" %}kernel {{ url }}/rescue {{ kernel_args | join(\" \") }} id={{ machine }}\n{% endif %}\
        {% include \"again.ipxe\" %}";
    let scripts = site(dir.path(), "rescue.ipxe", template, "machine = \"kvm-1\"\nkernel_args = [\"quiet\"]").unwrap();
    let own = asker(Dialect::Ipxe, None);
    let script = scripts.render(&own, &agent()).unwrap();
    assert!(script.starts_with("#!ipxe\nkernel http://10.77.0.1/rescue quiet id=0190c0de"), "{script}");
    assert!(script.contains("goto again"), "{script}");
    let other = Asker { name: Some("kvm-2"), ..own };
    let script = scripts.render(&other, &agent()).unwrap();
    assert!(script.contains("/boot/files/vmlinuz") && script.contains("panic=10"), "{script}");
    // A machine that boots by GRUB has the arguments, and the built-in script.
    let script = scripts.render(&asker(Dialect::Grub, None), &agent()).unwrap();
    assert!(script.contains("linux /vmlinuz") && script.contains(" 'quiet'") && !script.contains("panic"), "{script}");
}

#[test]
fn an_override_by_mac_comes_before_one_by_name() {
    let mut config = sample();
    let special = |text: &str| toml::from_str::<Override>(text).unwrap();
    config.overrides = vec![
        special("machine = \"kvm-1\"\nkernel_args = [\"by-name\"]"),
        special("mac = \"52:54:00:77:00:01\"\nkernel_args = []"),
    ];
    let scripts = Scripts::new(&config, "ab12").unwrap();
    let script = scripts.render(&asker(Dialect::Ipxe, None), &agent()).unwrap();
    assert!(!script.contains("by-name") && !script.contains("panic=10"), "{script}");
}

#[test]
fn a_wrong_template_is_refused_with_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let says = |file: &str, text: &str| {
        let error = site(dir.path(), file, text, "mac = \"52:54:00:77:00:01\"").err().unwrap();
        assert_eq!(error.code(), "boot.template", "{error}");
        error.message().to_owned()
    };
    let path = dir.path().join("x.ipxe").display().to_string();
    let unknown = says("x.ipxe", "#!ipxe\necho one\necho {{ tokn }}\n");
    assert!(unknown.starts_with(&format!("{path}, line 3: ")), "{unknown}");
    let syntax = says("x.ipxe", "#!ipxe\n{% if answer %}\n");
    assert!(syntax.starts_with(&format!("{path}, line 2: ")), "{syntax}");
    // Good for two answers of three.
    let hold = says("x.ipxe", "#!ipxe\n{% if answer == \"hold\" %}\necho {{ token }}{% endif %}\n");
    assert!(hold.contains("line 3"), "{hold}");
    assert!(says("x.ipxe", "#!/bin/sh\n").contains("line 1: not an iPXE script"));
    assert!(says("x.grub", "echo {{ nobody }}").contains("x.grub, line 1"));
    let mut config = sample();
    config.overrides = vec![toml::from_str("machine = \"a\"\nscript = \"/nowhere/x.ipxe\"").unwrap()];
    let error = Scripts::new(&config, "ab12").err().unwrap();
    assert_eq!(error.message(), "cannot read the boot script /nowhere/x.ipxe");
}
