//! The configuration as an operator writes it: the commented example is valid, and what is wrong is named.

use rackline::config::Config;

const EXAMPLE: &str = include_str!("../../rackline.example.toml");

#[test]
fn the_example_is_valid_and_shows_every_section() {
    let config = Config::parse(EXAMPLE).unwrap();
    assert_eq!(config.boot.subnets.len(), 1);
    for section in ["[site]", "[api]", "[boot]", "[[boot.interfaces]]", "[[boot.subnets]]", "[host]"] {
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
}
