//! How the BMC is on the network.

use std::net::{IpAddr, Ipv4Addr};

use super::Ipmi;
use crate::bmc::{AddressFrom, Network, SetNetwork};
use crate::error::{Error, Result};
use crate::ipmi::lan::{
    Address, Gateway, GetLan, Mac, Mask, Origin, Parameter, Progress, SetLan, Setting, Source, Vlan,
};

impl Ipmi<'_> {
    /// `None` where the BMC does not have the parameter.
    async fn lan<P: Parameter>(&mut self, channel: u8, parameter: P) -> Result<Option<P::Value>> {
        Ok(self.session.ask(&GetLan { channel, parameter }).await?.ok())
    }

    pub(super) async fn read_network(&mut self) -> Result<Network> {
        let channel = self.channel().await?;
        Ok(Network {
            mac: self.lan(channel, Mac).await?,
            address: self.lan(channel, Address).await?.flatten().map(IpAddr::V4),
            prefix: self.lan(channel, Mask).await?.and_then(prefix),
            gateway: self.lan(channel, Gateway).await?.flatten().map(IpAddr::V4),
            source: self.lan(channel, Source).await?.map(|origin| origin.name().to_owned()),
            vlan: self.lan(channel, Vlan).await?.flatten(),
            ntp: None,
        })
    }

    /// What the BMC has already is not written: each write makes some BMCs drop off the network for seconds. The address
    /// comes last, since the BMC may answer nowhere else from then on.
    pub(super) async fn write_network(&mut self, wanted: &SetNetwork) -> Result<()> {
        if wanted.ntp.is_some() {
            let message = format!("{} cannot be given time servers by IPMI", self.session.whose());
            return Err(Error::refused("bmc.unsupported", message)
                .hint("set its clock instead: `rackline bmc clock NAME --set`, or use Redfish"));
        }
        let Some(address) = &wanted.address else { return Ok(()) };
        let settings = settings(address)?;
        let channel = self.channel().await?;
        let now = self.read_network().await?;
        let missing: Vec<Setting> = settings.into_iter().filter(|setting| !has(&now, *setting)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let progress = |progress| SetLan { channel, setting: Setting::Progress(progress) };
        let known = self.session.ask(&progress(Progress::Begin)).await?.is_ok();
        for setting in missing {
            self.ask(&SetLan { channel, setting }).await?;
        }
        for last in [Progress::Commit, Progress::End].into_iter().filter(|_| known) {
            if let Err(e) = self.session.ask(&progress(last)).await {
                // Expected where the address has changed.
                tracing::debug!(bmc = self.session.whose(), error = ?e, "no answer to the end of the network settings");
                break;
            }
        }
        Ok(())
    }
}

fn settings(wanted: &AddressFrom) -> Result<Vec<Setting>> {
    let v4 = |address: IpAddr| match address {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => {
            Err(Error::input("bmc.network", format!("{address} is an IPv6 address, which IPMI does not set this way"))
                .hint("give an IPv4 address"))
        }
    };
    Ok(match wanted {
        AddressFrom::Dhcp => vec![Setting::Source(Origin::Dhcp)],
        AddressFrom::Static { address, prefix, gateway } => {
            let mut settings = vec![Setting::Source(Origin::Static), Setting::Mask(mask(*prefix)?)];
            if let Some(gateway) = gateway {
                settings.push(Setting::Gateway(v4(*gateway)?));
            }
            settings.push(Setting::Address(v4(*address)?));
            settings
        }
    })
}

fn has(now: &Network, setting: Setting) -> bool {
    match setting {
        Setting::Source(origin) => now.source.as_deref() == Some(origin.name()),
        Setting::Mask(wanted) => now.prefix == prefix(wanted),
        Setting::Gateway(gateway) => now.gateway == Some(gateway.into()),
        Setting::Address(address) => now.address == Some(address.into()),
        Setting::Vlan(vlan) => now.vlan == vlan,
        Setting::Progress(_) => false,
    }
}

fn mask(prefix: u8) -> Result<Ipv4Addr> {
    match prefix {
        1..=32 => Ok(Ipv4Addr::from_bits(u32::MAX << (32 - prefix))),
        _ => Err(Error::input("bmc.network", format!("a network has 1 to 32 bits, not {prefix}"))),
    }
}

/// `None` for a mask with holes.
fn prefix(mask: Ipv4Addr) -> Option<u8> {
    let bits = mask.to_bits();
    (bits.leading_ones() + bits.trailing_zeros() >= 32).then_some(bits.leading_ones() as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_prefixes() {
        for bits in 1..=32 {
            assert_eq!(prefix(mask(bits).unwrap()), Some(bits));
        }
        assert!(mask(0).is_err() && mask(33).is_err());
        assert_eq!(prefix(Ipv4Addr::new(255, 0, 255, 0)), None);
        assert_eq!(prefix(Ipv4Addr::UNSPECIFIED), Some(0));
    }

    #[test]
    fn the_address_comes_last_and_ipv6_is_refused() {
        let wanted =
            AddressFrom::Static { address: [10, 0, 0, 7].into(), prefix: 24, gateway: Some([10, 0, 0, 1].into()) };
        let settings = settings(&wanted).unwrap();
        assert_eq!(settings.last(), Some(&Setting::Address([10, 0, 0, 7].into())));
        assert_eq!(settings.first(), Some(&Setting::Source(Origin::Static)));
        let six = AddressFrom::Static { address: "fd00::7".parse().unwrap(), prefix: 24, gateway: None };
        assert_eq!(super::settings(&six).unwrap_err().code(), "bmc.network");
    }
}
