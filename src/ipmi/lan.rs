//! LAN configuration of a BMC (section 23.2).

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

impl Parameter for Address {
    const NUMBER: u8 = 3;
    type Value = Option<Ipv4Addr>;

    fn read(data: &mut Fields<'_>) -> Option<Self::Value> {
        let address = Ipv4Addr::from(data.array::<4>()?);
        Some((!address.is_unspecified()).then_some(address))
    }
}

impl Parameter for Source {
    const NUMBER: u8 = 4;
    type Value = &'static str;

    fn read(data: &mut Fields<'_>) -> Option<Self::Value> {
        Some(match data.u8()? & 0xf {
            1 => "static",
            2 => "DHCP",
            3 => "BIOS",
            4 => "other",
            _ => "unspecified",
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
        (code == 0x80).then_some("the BMC does not have this LAN parameter")
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
        assert_eq!(parse(&GetLan { channel: 1, parameter: Source }, &[0x11, 2]), Some("DHCP"));
        let mac = GetLan { channel: 1, parameter: Mac };
        assert_eq!(parse(&mac, &[0x11, 2, 0, 0, 0x77, 1, 9]).unwrap().to_string(), "02:00:00:77:01:09");
        survives_truncation(&mac, &[0x11, 2, 0, 0, 0x77, 1, 9]);
    }
}
