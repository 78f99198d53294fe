//! LAN configuration of a BMC: read (section 23.2) and set (23.1).

use std::net::Ipv4Addr;

use super::message::{Ask, Fields, Request, netfn};
use crate::machine::MacAddr;

/// Get LAN Configuration Parameters, for one parameter (table 23-4) of which the type knows the form.
pub struct GetLan<P> {
    pub channel: u8,
    pub parameter: P,
}

pub trait Parameter {
    const NUMBER: u8;
    type Value;

    fn read(data: &mut Fields<'_>) -> Option<Self::Value>;
}

/// 3: IPv4 address; 0.0.0.0 where it has none.
pub struct Address;
/// 4: where the address is from.
pub struct Source;
/// 5.
pub struct Mac;
/// 6: subnet mask.
pub struct Mask;
/// 12: default gateway; 0.0.0.0 where it has none.
pub struct Gateway;
/// 20: VLAN id, where it is on.
pub struct Vlan;

impl Parameter for Address {
    const NUMBER: u8 = 3;
    type Value = Option<Ipv4Addr>;

    fn read(data: &mut Fields<'_>) -> Option<Self::Value> {
        let address = Ipv4Addr::from(data.array::<4>()?);
        Some((!address.is_unspecified()).then_some(address))
    }
}

/// Where an address is from (parameter 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Static,
    Dhcp,
    /// Set by the BIOS, by other software, or unspecified.
    Other(u8),
}

impl Origin {
    fn code(self) -> u8 {
        match self {
            Self::Static => 1,
            Self::Dhcp => 2,
            Self::Other(code) => code & 0xf,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Dhcp => "DHCP",
            Self::Other(3) => "BIOS",
            Self::Other(4) => "other",
            Self::Other(_) => "unspecified",
        }
    }
}

impl Parameter for Source {
    const NUMBER: u8 = 4;
    type Value = Origin;

    fn read(data: &mut Fields<'_>) -> Option<Self::Value> {
        Some(match data.u8()? & 0xf {
            1 => Origin::Static,
            2 => Origin::Dhcp,
            other => Origin::Other(other),
        })
    }
}

impl Parameter for Mac {
    const NUMBER: u8 = 5;
    type Value = MacAddr;

    fn read(data: &mut Fields<'_>) -> Option<Self::Value> {
        data.array().map(MacAddr)
    }
}

impl Parameter for Mask {
    const NUMBER: u8 = 6;
    type Value = Ipv4Addr;

    fn read(data: &mut Fields<'_>) -> Option<Self::Value> {
        data.array::<4>().map(Ipv4Addr::from)
    }
}

impl Parameter for Gateway {
    const NUMBER: u8 = 12;
    type Value = Option<Ipv4Addr>;

    fn read(data: &mut Fields<'_>) -> Option<Self::Value> {
        Address::read(data)
    }
}

impl Parameter for Vlan {
    const NUMBER: u8 = 20;
    type Value = Option<u16>;

    fn read(data: &mut Fields<'_>) -> Option<Self::Value> {
        let vlan = data.u16()?;
        Some((vlan & 0x8000 != 0).then_some(vlan & 0x0fff))
    }
}

impl<P: Parameter> Ask for GetLan<P> {
    const NAME: &'static str = "Get LAN Configuration Parameters";
    type Answer = P::Value;

    fn request(&self) -> Request {
        Request::new(netfn::TRANSPORT, 0x02, [self.channel & 0xf, P::NUMBER, 0, 0])
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<P::Value> {
        let _revision = data.u8()?;
        P::read(data)
    }

    fn refusal(&self, code: u8) -> Option<&'static str> {
        lan_refusal(code)
    }
}

fn lan_refusal(code: u8) -> Option<&'static str> {
    Some(match code {
        0x80 => "the BMC does not have this LAN parameter",
        0x81 => "somebody else is setting LAN parameters",
        0x82 => "the LAN parameter cannot be written",
        _ => return None,
    })
}

/// Set LAN Configuration Parameters, one at a time.
pub struct SetLan {
    pub channel: u8,
    pub setting: Setting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// 0: holds together a set of changes; not every BMC knows it.
    Progress(Progress),
    Address(Ipv4Addr),
    Source(Origin),
    Mask(Ipv4Addr),
    Gateway(Ipv4Addr),
    Vlan(Option<u16>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Progress {
    /// "Set complete"; without a commit before it, a BMC may take everything back.
    End = 0,
    Begin = 1,
    Commit = 2,
}

impl Ask for SetLan {
    const NAME: &'static str = "Set LAN Configuration Parameters";
    type Answer = ();

    fn request(&self) -> Request {
        let mut data = vec![self.channel & 0xf];
        match self.setting {
            Setting::Progress(progress) => data.extend([0, progress as u8]),
            Setting::Source(origin) => data.extend([Source::NUMBER, origin.code()]),
            Setting::Vlan(vlan) => {
                let bits = vlan.map_or(0, |id| id & 0x0fff | 0x8000);
                data.push(Vlan::NUMBER);
                data.extend(bits.to_le_bytes());
            }
            Setting::Address(ip) | Setting::Mask(ip) | Setting::Gateway(ip) => {
                data.push(match self.setting {
                    Setting::Mask(_) => Mask::NUMBER,
                    Setting::Gateway(_) => Gateway::NUMBER,
                    _ => Address::NUMBER,
                });
                data.extend(ip.octets());
            }
        }
        Request::new(netfn::TRANSPORT, 0x01, data)
    }

    fn parse(&self, _: &mut Fields<'_>) -> Option<()> {
        Some(())
    }

    fn refusal(&self, code: u8) -> Option<&'static str> {
        lan_refusal(code)
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::{parse, survives_truncation};
    use super::*;

    #[test]
    fn address_source_and_mac() {
        let address = GetLan { channel: 1, parameter: Address };
        assert_eq!(address.request(), Request::new(0x0c, 2, [1, 3, 0, 0]));
        assert_eq!(parse(&address, &[0x11, 10, 77, 1, 1]), Some(Some(Ipv4Addr::new(10, 77, 1, 1))));
        assert_eq!(parse(&address, &[0x11, 0, 0, 0, 0]), Some(None));
        assert_eq!(parse(&GetLan { channel: 1, parameter: Source }, &[0x11, 2]), Some(Origin::Dhcp));
        let mac = GetLan { channel: 1, parameter: Mac };
        assert_eq!(parse(&mac, &[0x11, 2, 0, 0, 0x77, 1, 9]).unwrap().to_string(), "02:00:00:77:01:09");
        survives_truncation(&mac, &[0x11, 2, 0, 0, 0x77, 1, 9]);
    }

    #[test]
    fn what_is_set_is_what_would_be_read() {
        let bytes = |setting| SetLan { channel: 1, setting }.request().data;
        assert_eq!(bytes(Setting::Progress(Progress::Begin)), [1, 0, 1]);
        assert_eq!(bytes(Setting::Source(Origin::Static)), [1, 4, 1]);
        assert_eq!(bytes(Setting::Mask(Ipv4Addr::new(255, 255, 0, 0))), [1, 6, 255, 255, 0, 0]);
        let vlan = bytes(Setting::Vlan(Some(210)));
        assert_eq!(vlan, [1, 20, 0xd2, 0x80]);
        assert_eq!(parse(&GetLan { channel: 1, parameter: Vlan }, &[0x11, vlan[2], vlan[3]]), Some(Some(210)));
        assert_eq!(parse(&GetLan { channel: 1, parameter: Vlan }, &[0x11, 210, 0]), Some(None));
        assert_eq!(
            parse(&GetLan { channel: 1, parameter: Gateway }, &[0x11, 10, 0, 0, 1]),
            Some(Some([10, 0, 0, 1].into()))
        );
    }
}
