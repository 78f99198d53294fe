//! Application commands: what the BMC is, its channels, and the session calls (sections 20 and 22).

use super::message::{Ask, Fields, Request, netfn};

/// Get Device ID (20.1).
pub struct GetDeviceId;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceId {
    /// Firmware revision, minor part from BCD as the specification has it: `2.63`.
    pub firmware: String,
    pub ipmi: String,
    /// IANA enterprise number, 20 bits used.
    pub manufacturer: u32,
    pub product: u16,
    /// The sensor records are in the SDR repository; otherwise they are read as device SDRs.
    pub has_sdr_repository: bool,
}

impl Ask for GetDeviceId {
    const NAME: &'static str = "Get Device ID";
    type Answer = DeviceId;

    fn request(&self) -> Request {
        Request::new(netfn::APP, 0x01, [])
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<DeviceId> {
        let [_id, _revision, major, minor, ipmi, support] = data.array()?;
        let [a, b, c] = data.array()?;
        Some(DeviceId {
            firmware: format!("{}.{minor:02x}", major & 0x7f),
            ipmi: format!("{}.{}", ipmi & 0xf, ipmi >> 4),
            manufacturer: u32::from_le_bytes([a, b, c & 0x0f, 0]),
            product: data.u16()?,
            has_sdr_repository: support & 0x02 != 0,
        })
    }
}

/// Cold Reset (20.2) and Warm Reset (20.3) of the BMC itself; the machine goes on. No answer may come.
pub struct Reset {
    pub cold: bool,
}

impl Ask for Reset {
    const NAME: &'static str = "Reset";
    type Answer = ();

    fn request(&self) -> Request {
        Request::new(netfn::APP, if self.cold { 0x02 } else { 0x03 }, [])
    }

    fn parse(&self, _: &mut Fields<'_>) -> Option<()> {
        Some(())
    }
}

/// Get System GUID (22.14).
pub struct GetSystemGuid;

impl Ask for GetSystemGuid {
    const NAME: &'static str = "Get System GUID";
    /// As sent. The specification wants the last byte of the UUID first, many BMCs send SMBIOS order.
    type Answer = [u8; 16];

    fn request(&self) -> Request {
        Request::new(netfn::APP, 0x37, [])
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<[u8; 16]> {
        data.array()
    }
}

/// Privilege levels (table 6-2 and 22-18).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Privilege {
    /// Enough for power and boot device.
    Operator = 3,
    Administrator = 4,
}

/// Set Session Privilege Level (22.18): a session starts as User, whatever its limit is.
pub struct SetSessionPrivilege(pub Privilege);

impl Ask for SetSessionPrivilege {
    const NAME: &'static str = "Set Session Privilege Level";
    /// The level that the session has now.
    type Answer = u8;

    fn request(&self) -> Request {
        Request::new(netfn::APP, 0x3b, [self.0 as u8])
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<u8> {
        data.u8().map(|level| level & 0xf)
    }

    fn refusal(&self, code: u8) -> Option<&'static str> {
        Some(match code {
            0x80 => "the user does not have this privilege",
            0x81 => "the privilege is above the limit of the user or the channel",
            0x82 => "the user level cannot be switched off",
            _ => return None,
        })
    }
}

/// Close Session (22.19), by the id that the BMC gave the session.
pub struct CloseSession(pub u32);

impl Ask for CloseSession {
    const NAME: &'static str = "Close Session";
    type Answer = ();

    fn request(&self) -> Request {
        Request::new(netfn::APP, 0x3c, self.0.to_le_bytes())
    }

    fn parse(&self, _: &mut Fields<'_>) -> Option<()> {
        Some(())
    }
}

/// "The channel that this message came on".
pub const PRESENT_CHANNEL: u8 = 0x0e;

/// Get Channel Cipher Suites (22.15), one list of up to 16 bytes. The answer goes on while the lists are full.
pub struct GetCipherSuites {
    /// 0 to 63.
    pub list: u8,
}

impl GetCipherSuites {
    pub const FULL: usize = 16;
    pub const LISTS: u8 = 64;
}

impl Ask for GetCipherSuites {
    const NAME: &'static str = "Get Channel Cipher Suites";
    type Answer = Vec<u8>;

    fn request(&self) -> Request {
        // Payload type 0 is IPMI; the top bit asks for the list by cipher suite.
        Request::new(netfn::APP, 0x54, [PRESENT_CHANNEL, 0, 0x80 | self.list & 0x3f])
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<Vec<u8>> {
        let _channel = data.u8()?;
        let records = data.rest();
        (records.len() <= Self::FULL).then(|| records.to_vec())
    }
}

/// The numbers of the standard suites in joined cipher suite records (table 22-18): `C0 id algorithms…`, or
/// `C1 id IANA(3) algorithms…` for a maker's own suite, where an algorithm byte is below 0xC0.
pub fn suite_ids(records: &[u8]) -> Vec<u8> {
    let mut fields = Fields(records);
    let mut ids = Vec::new();
    while let Some(byte) = fields.u8() {
        match byte {
            0xc0 => ids.extend(fields.u8()),
            0xc1 => drop(fields.take(4)),
            _ => {}
        }
    }
    ids
}

/// Get Channel Info (22.24).
pub struct GetChannelInfo(pub u8);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Channel {
    /// The real one, where [`PRESENT_CHANNEL`] was asked for.
    pub number: u8,
    /// It is an 802.3 LAN (table 6-3, medium 4).
    pub lan: bool,
}

impl Ask for GetChannelInfo {
    const NAME: &'static str = "Get Channel Info";
    type Answer = Channel;

    fn request(&self) -> Request {
        Request::new(netfn::APP, 0x42, [self.0 & 0xf])
    }

    fn parse(&self, data: &mut Fields<'_>) -> Option<Channel> {
        let (number, medium) = (data.u8()?, data.u8()?);
        Some(Channel { number: number & 0xf, lan: medium & 0x7f == 4 })
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::{parse, survives_truncation};
    use super::*;

    #[test]
    fn device_id_of_ipmi_sim_and_of_a_dell() {
        // mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02
        let sim = [0x00, 0x03, 0x09, 0x08, 0x02, 0x9f, 0x91, 0x12, 0x00, 0x02, 0x0f, 0, 0, 0, 0];
        let id = parse(&GetDeviceId, &sim).unwrap();
        assert_eq!((id.firmware.as_str(), id.ipmi.as_str()), ("9.08", "2.0"));
        assert_eq!((id.manufacturer, id.product, id.has_sdr_repository), (0x1291, 0x0f02, true));
        // iDRAC: firmware 2.63 with the minor part in BCD, manufacturer 674.
        let idrac = [0x20, 0x81, 0x02, 0x63, 0x02, 0xdf, 0xa2, 0x02, 0x00, 0x00, 0x01];
        let id = parse(&GetDeviceId, &idrac).unwrap();
        assert_eq!((id.firmware.as_str(), id.manufacturer), ("2.63", 674));
        survives_truncation(&GetDeviceId, &sim);
        assert!(parse(&GetDeviceId, &sim[..10]).is_none());
    }

    #[test]
    fn suites_are_found_among_the_algorithms() {
        // Suites 3 (SHA1, SHA1-96, AES) and 17 (SHA256, SHA256-128, AES), and one of a maker with 17 as its number.
        let records = [0xc0, 3, 1, 0x41, 0x81, 0xc0, 17, 3, 0x44, 0x81, 0xc1, 17, 1, 2, 3, 0, 0x40, 0x80];
        assert_eq!(suite_ids(&records), [3, 17]);
        assert!(suite_ids(&[0xc1, 17, 1]).is_empty());
        assert!(suite_ids(&[0xc0]).is_empty());
        assert!(parse(&GetCipherSuites { list: 0 }, &[1; 18]).is_none());
        assert_eq!(GetCipherSuites { list: 1 }.request().data, [0x0e, 0, 0x81]);
    }

    #[test]
    fn session_calls() {
        assert_eq!(SetSessionPrivilege(Privilege::Administrator).request(), Request::new(6, 0x3b, [4]));
        assert_eq!(parse(&SetSessionPrivilege(Privilege::Operator), &[3]), Some(3));
        assert_eq!(CloseSession(0x0102_0304).request().data, [4, 3, 2, 1]);
        assert_eq!(parse(&GetChannelInfo(0xe), &[1, 4, 1, 0x80]), Some(Channel { number: 1, lan: true }));
        assert_eq!(parse(&GetChannelInfo(0xf), &[15, 12, 5]), Some(Channel { number: 15, lan: false }));
        assert_eq!((Reset { cold: true }.request().cmd, Reset { cold: false }.request().cmd), (2, 3));
    }
}
