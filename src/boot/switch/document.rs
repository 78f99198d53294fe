//! What a switch is given: the DHCP options that lead it to its documents, and the documents, from `templates/switch/`.
//!
//! | system | option | document there |
//! |---|---|---|
//! | ONIE | 114, and 1 under enterprise 42623 of 125 | the installer (ONIE design specification, "Exact Installer URLs From DHCPv4") |
//! | Arista EOS | 67 | `startup-config` (EOS user manual, "Zero Touch Provisioning") |
//! | SONiC | 67 | `ztp.json`, which names `config_db.json` (sonic-ztp, `dhcp/ztp` and `plugins/configdb-json`) |
//! | Cumulus | 239 | `ztp.sh` (Cumulus Linux user guide, "Zero Touch Provisioning") |
//! | Cisco NX-OS | 66 and 150: us, 67: a name on our TFTP server | `poap.py`, which fetches `running-config` ("Using PowerOn Auto Provisioning") |
//! | Cisco IOS XE | 67 | `ztp.py` (IOS XE programmability guide, "Zero-Touch Provisioning") |
//!
//! The documents follow from the configuration alone, so all are made at start: a template that misses a value stops the
//! appliance then, and not a switch in the night. There are no secrets in them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use bytes::Bytes;
use md5::Digest as _;
use serde::Serialize;

use super::config::{Address, Services, Switch, Vendor, subnet_of};
use super::recognise::OCP;
use crate::boot::config::BootConfig;
use crate::error::{Error, Result};
use crate::template;

/// Of a switch, by file name.
pub type Documents = BTreeMap<&'static str, Bytes>;

/// What templates may use.
#[derive(Serialize)]
struct Facts<'a> {
    name: &'a str,
    /// Where its documents are: `http://10.77.0.1/boot/switch/c-tor1`.
    base: String,
    location: Option<String>,
    address: Net,
    gateway: Option<Ipv4Addr>,
    vlan: u16,
    relay: Option<Net>,
    /// Where relayed requests go.
    appliance: Ipv4Addr,
    /// In the order of the front panel.
    ports: Vec<Port<'a>>,
    uplinks: Vec<&'a str>,
    dns: &'a [Ipv4Addr],
    domain: Option<&'a str>,
    ntp: &'a [Ipv4Addr],
    syslog: &'a [Ipv4Addr],
}

#[derive(Serialize)]
struct Net {
    ip: Ipv4Addr,
    prefix: u8,
    mask: Ipv4Addr,
}

#[derive(Serialize)]
struct Port<'a> {
    name: &'a str,
    machine: &'a str,
}

impl From<Address> for Net {
    fn from(address: Address) -> Self {
        Self { ip: address.ip, prefix: address.prefix, mask: address.mask() }
    }
}

macro_rules! template {
    ($name:literal) => {
        (concat!("switch/", $name), include_str!(concat!("../../../templates/switch/", $name)))
    };
}

pub fn render(switch: &Switch, services: &Services, boot: &BootConfig) -> Result<Documents> {
    let facts = facts(switch, services, boot)?;
    let documents: &[(&'static str, (&'static str, &'static str))] = match switch.vendor {
        Vendor::Arista => &[("startup-config", template!("arista.cfg"))],
        Vendor::Cumulus => &[("ztp.sh", template!("cumulus.sh"))],
        Vendor::IosXe => &[("ztp.py", template!("iosxe.py"))],
        Vendor::NxOs => &[(POAP, template!("nxos.py")), ("running-config", template!("nxos.cfg"))],
        Vendor::Sonic => &[("ztp.json", template!("sonic-ztp.json")), ("config_db.json", template!("sonic.json"))],
    };
    let made = documents.iter().map(|(file, (name, source))| {
        let mut text = template::render(name, source, &facts)?;
        if !text.ends_with('\n') {
            text.push('\n');
        }
        Ok((*file, Bytes::from(if *file == POAP { with_checksum(&text) } else { text })))
    });
    made.collect()
}

fn facts<'a>(switch: &'a Switch, services: &'a Services, boot: &'a BootConfig) -> Result<Facts<'a>> {
    let subnet = subnet_of(boot, switch.address.ip);
    let mut ports: Vec<_> =
        switch.ports.iter().map(|(name, machine)| Port { name, machine: machine.as_str() }).collect();
    ports.sort_by_cached_key(|port| panel_order(port.name));
    let dns = match (services.dns.is_empty(), subnet) {
        (true, Some(subnet)) => &subnet.dns,
        _ => &services.dns,
    };
    Ok(Facts {
        name: switch.name.as_str(),
        base: base(switch, boot),
        location: switch.place().map(|place| format!("rack {} unit {}", place.rack, place.unit)),
        address: switch.address.into(),
        gateway: switch.gateway.or_else(|| subnet?.router),
        vlan: switch.vlan,
        relay: switch.relay.map(Net::from),
        appliance: appliance(boot)?,
        ports,
        uplinks: switch.uplinks.iter().map(String::as_str).collect(),
        dns,
        domain: subnet.and_then(|subnet| subnet.domain.as_ref()).map(|domain| domain.as_str()),
        ntp: &services.ntp,
        syslog: &services.syslog,
    })
}

fn base(switch: &Switch, boot: &BootConfig) -> String {
    format!("{}/boot/switch/{}", boot.url, switch.name)
}

/// Our address, as relays and TFTP clients need it.
fn appliance(boot: &BootConfig) -> Result<Ipv4Addr> {
    let first = boot.interfaces.first().map(|interface| interface.address);
    first.ok_or_else(|| Error::config("switch.config", "there are switches, but boot has no interface"))
}

/// `Ethernet2` before `Ethernet10`.
fn panel_order(name: &str) -> (String, Vec<u32>) {
    let word = name.chars().take_while(|c| !c.is_ascii_digit()).collect();
    let numbers = name.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
    (word, numbers)
}

/// The script that POAP runs, and its name with us.
const POAP: &str = "poap.py";

/// NX-OS checks its script: the second line has the MD5 of the others.
fn with_checksum(script: &str) -> String {
    let digest = hex::encode(md5::Md5::digest(script.as_bytes()));
    let (first, rest) = script.split_once('\n').unwrap_or((script, ""));
    format!("{first}\n#md5sum=\"{digest}\"\n{rest}")
}

/// The name of a document on the TFTP server, for the systems that fetch by TFTP.
pub fn tftp_name(switch: &Switch) -> Option<(String, &'static str)> {
    (switch.vendor == Vendor::NxOs).then(|| (format!("{}.{POAP}", switch.name), POAP))
}

/// The options of an answer to a switch that asks for its configuration.
pub fn configuration_options(switch: &Switch, boot: &BootConfig) -> Result<Vec<(u8, Vec<u8>)>> {
    let base = base(switch, boot);
    let url = |code: u8, file: &str| vec![(code, format!("{base}/{file}").into_bytes())];
    Ok(match switch.vendor {
        Vendor::Arista => url(67, "startup-config"),
        Vendor::Cumulus => url(239, "ztp.sh"),
        Vendor::IosXe => url(67, "ztp.py"),
        Vendor::Sonic => url(67, "ztp.json"),
        Vendor::NxOs => {
            let us = appliance(boot)?;
            let name = tftp_name(switch).map_or(String::new(), |(name, _)| name);
            vec![(66, us.to_string().into_bytes()), (67, name.into_bytes()), (150, us.octets().to_vec())]
        }
    })
}

/// The options of an answer to ONIE.
pub fn installer_options(url: &str) -> Vec<(u8, Vec<u8>)> {
    let inner = [&[1, url.len() as u8][..], url.as_bytes()].concat();
    let vivso = [&OCP.to_be_bytes()[..], &[inner.len() as u8], &inner].concat();
    vec![(114, url.as_bytes().to_vec()), (125, vivso)]
}

#[cfg(test)]
mod tests {
    use super::super::config::tests::sample;
    use super::*;
    use crate::boot::config::tests::sample as boot;

    fn services() -> Services {
        let ip = |last| vec![Ipv4Addr::new(10, 77, 0, last)];
        Services { dns: ip(53), ntp: ip(123), syslog: ip(14) }
    }

    fn documents(name: &str) -> Documents {
        let switch = sample().into_iter().find(|s| s.name.as_str() == name).unwrap();
        render(&switch, &services(), &boot()).unwrap()
    }

    fn text(documents: &Documents, file: &str) -> String {
        String::from_utf8(documents[file].to_vec()).unwrap()
    }

    #[test]
    fn arista() {
        insta::assert_snapshot!(text(&documents("c-tor1"), "startup-config"));
    }

    #[test]
    fn cumulus() {
        insta::assert_snapshot!(text(&documents("c-tor2"), "ztp.sh"));
    }

    #[test]
    fn iosxe() {
        insta::assert_snapshot!(text(&documents("f-mgmt1"), "ztp.py"));
    }

    #[test]
    fn nxos() {
        let documents = documents("e-tor1");
        insta::assert_snapshot!(format!("{}====\n{}", text(&documents, POAP), text(&documents, "running-config")));
    }

    #[test]
    fn sonic() {
        let documents = documents("d-tor1");
        insta::assert_snapshot!(format!(
            "{}\n====\n{}",
            text(&documents, "ztp.json"),
            text(&documents, "config_db.json")
        ));
    }

    #[test]
    fn a_template_that_wants_what_nobody_gave_names_it() {
        let switch = &sample()[0];
        let (services, boot) = (services(), boot());
        let error =
            template::render("t", "{{ name }}\n{{ asn }}", facts(switch, &services, &boot).unwrap()).unwrap_err();
        assert_eq!(error.message(), "the template t needs what nobody gave: asn");
    }

    #[test]
    fn json_stays_json_with_and_without_everything() {
        let full = sample().into_iter().find(|s| s.vendor == Vendor::Sonic).unwrap();
        let uplinks = vec!["Ethernet48".to_owned(), "Ethernet52".to_owned()];
        let bare = Switch { relay: None, gateway: None, ports: BTreeMap::new(), ..full.clone() };
        for switch in
            [Switch { uplinks: uplinks.clone(), ..full.clone() }, full, Switch { uplinks, ..bare.clone() }, bare]
        {
            for services in [services(), Services::default()] {
                for document in render(&switch, &services, &boot()).unwrap().values() {
                    serde_json::from_slice::<serde_json::Value>(document).unwrap();
                }
            }
        }
    }

    /// As Cisco's own scripts tell to make it: `sed '/^#md5sum/d' | md5sum`.
    #[test]
    fn the_checksum_is_that_of_the_other_lines() {
        let script = text(&documents("e-tor1"), POAP);
        let others: String = script.lines().filter(|l| !l.starts_with("#md5sum")).map(|l| format!("{l}\n")).collect();
        let line = script.lines().nth(1).unwrap();
        assert_eq!(script, with_checksum(&others), "the checksum covers every line but its own");
        // RFC 1321 appendix A.5.
        assert_eq!(with_checksum("abc").lines().nth(1), Some("#md5sum=\"900150983cd24fb0d6963f7d28e17f72\""));
        assert_eq!(line.len(), "#md5sum=\"\"".len() + 32);
    }

    #[test]
    fn onie_gets_the_url_twice() {
        let options = installer_options("http://10.77.0.1/i");
        assert_eq!(options[0], (114, b"http://10.77.0.1/i".to_vec()));
        let expected = [&[0, 0, 0xa6, 0x7f, 20, 1, 18][..], b"http://10.77.0.1/i"].concat();
        assert_eq!(options[1], (125, expected));
    }
}
