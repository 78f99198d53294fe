//! The configuration as an operator writes it: the commented example is valid, and what is wrong is named.

use rackline::config::Config;

const EXAMPLE: &str = include_str!("../../rackline.example.toml");

#[test]
fn the_example_is_valid_and_shows_every_section() {
    let config = Config::parse(EXAMPLE).unwrap();
    assert_eq!(config.boot.subnets.len(), 1);
    for section in [
        "[site]",
        "[api]",
        "[boot]",
        "[[boot.interfaces]]",
        "[[boot.subnets]]",
        "[[boot.loaders]]",
        "[[boot.overrides]]",
        "[host]",
        "[services]",
        "[[switches]]",
    ] {
        assert!(EXAMPLE.contains(section), "{section}");
    }
}

#[test]
fn wrong_configuration_is_named() {
    let spoil = |from: &str, to: &str| {
        assert!(EXAMPLE.contains(from), "{from}");
        Config::parse(&EXAMPLE.replacen(from, to, 1)).unwrap_err().message().to_owned()
    };
    assert!(spoil("kernel_args", "kernel_arg").contains("kernel_arg"));
    assert!(spoil("[host]", "[hots]").contains("hots"));
    let second = "[[boot.subnets]]\nnetwork = \"10.77.128.0/17\"\n\n[host]";
    assert!(spoil("[host]", second).contains("overlap"));
    assert!(spoil("10.77.2.0-10.77.9.255", "10.78.2.0-10.78.9.255").contains("10.78.2.0"));
    assert!(spoil("\"6.1\"", "\"new\"").contains("kernel_floor"));
    assert!(spoil("\"ipxe.efi\", \"snp", "\"ipxe.elf\", \"snp").contains("no boot file \"ipxe.elf\""));
    assert!(spoil("boot_limit = 6", "boot_limit = 1").contains("boot_limit"));
    assert!(spoil("#ntp = [\"10.77.0.2\"", "ntp = [\"time_1\"").contains("time_1"));
    assert!(spoil("address = \"keep\"", "address = \"stay\"").contains("stay"));
    assert!(spoil("machine = \"kvm-17\"\n", "").contains("either machine or mac"));
}

/// The roles that are built in ask for checks that are built in.
#[test]
fn roles_ask_for_checks_that_there_are() {
    let roles = rackline::role::Templates::new(None);
    for role in rackline::machine::Role::ALL {
        for id in &roles.of(&role.into()).unwrap().setup.checks {
            assert!(rackline::check::Set::built_in().iter().any(|declared| declared.id == *id), "{role}: {id}");
        }
    }
}

#[test]
fn a_boot_script_of_the_site_is_tried_when_the_configuration_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let (config, script) = (dir.path().join("rackline.toml"), dir.path().join("rescue.ipxe"));
    std::fs::write(&config, EXAMPLE.replace("#script", "script")).unwrap();
    assert!(Config::load(&config).unwrap_err().message().contains("cannot read the boot script"));
    std::fs::write(&script, "#!ipxe\necho {{ mac }}\necho {{ serial }}\n").unwrap();
    let error = Config::load(&config).unwrap_err();
    assert_eq!(error.code(), "boot.template");
    assert!(error.message().starts_with(&format!("{}, line 3: ", script.display())), "{error}");
    std::fs::write(&script, "#!ipxe\necho {{ mac }}\n{% include \"again.ipxe\" %}").unwrap();
    // Relative to the configuration's folder.
    assert_eq!(Config::load(&config).unwrap().boot.overrides[0].script.as_ref(), Some(&script));
}
